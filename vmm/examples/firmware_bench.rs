//! What `SEND_UPDATE_DATA` and `RECEIVE_UPDATE_DATA` take per page, on the SEV platform of this host.
//!
//! `scripts/bench firmware [--platform software|hardware] [--cek-cert FILE] [--pages N] [--runs N]`: on
//! SEV hardware if there is any, else on the software platform. A guest that never runs is sent from
//! this host to itself.

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aes::Aes128;
use clap::Parser;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use kvm_bindings::{kvm_enc_region, kvm_sev_cmd, sev_cmd_id_KVM_SEV_SEND_UPDATE_DATA};
use kvm_ioctls::VmFd;
use sevferry::machine::Host;
use sevferry::machine::config::PlatformKind;
use sevferry::memory::GuestRam;
use sevferry::page::{PAGE_LEN, RamLayout};
use sevferry::sev::device::platform_status;
use sevferry::sev::endorsement::EndorsementFiles;
use sevferry::sev::hardware::{DEVICE_PATH, HardwareDevice, HardwarePlatform};
use sevferry::sev::launch::{Initialised, VmType};
use sevferry::sev::measurement::FirmwareVersion;
use sevferry::sev::receive::Receiving;
use sevferry::sev::send::Sending;
use sevferry::sev::software::{Identity, SoftwareHost, vendor_chain};
use sevferry::sev::target::PlatformCertificates;
use sevferry::sev::{Errno, Platform, Policy, SevDevice};
use sha2::Sha256;

/// Bytes of a packet's header.
const HEADER_LEN: usize = 52;

/// What is measured, and on what.
#[derive(Debug, Parser)]
struct Arguments {
    /// software or hardware, whatever there is.
    #[arg(long, value_parser = ["software", "hardware"])]
    platform: Option<String>,
    /// The chip's CEK as AMD's key server signed it: hardware sends nothing without.
    #[arg(long, value_name = "FILE")]
    cek_cert: Option<String>,
    /// ASK and ARK, if they are not built in.
    #[arg(long, value_name = "FILE")]
    ask_ark: Option<String>,
    /// Pages of the guest.
    #[arg(long, default_value_t = 4096)]
    pages: u64,
    /// How often each is sent; all commands of all runs count.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let hardware = match arguments.platform.as_deref() {
        None => Path::new(DEVICE_PATH).exists(),
        Some(platform) => platform == "hardware",
    };
    let layout = RamLayout::new(arguments.pages * PAGE_LEN as u64)?;
    let bench = if hardware { on_hardware(&arguments, layout)? } else { in_software(layout)? };
    let status = platform_status(bench.device.as_ref())?;
    let kind = if hardware { "SEV hardware" } else { "the software platform" };
    let FirmwareVersion { major, minor, build } = status.version;
    println!(
        "{kind}, API {major}.{minor} build {build}, {} pages, {} times",
        arguments.pages, arguments.runs
    );
    bench.print(&arguments)
}

/// A platform that several own: what sends, and what tries two pages at once.
#[derive(Debug, Clone)]
struct Shared(Arc<dyn Platform>);

impl Platform for Shared {
    fn memory_encrypt_op(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.0.memory_encrypt_op(command)
    }

    fn register_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.0.register_region(region)
    }

    fn unregister_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.0.unregister_region(region)
    }
}

/// One end of the guest's way.
struct End {
    ram: GuestRam,
    platform: Shared,
    /// On hardware.
    vm: Option<Arc<VmFd>>,
    vm_type: VmType,
}

impl End {
    /// SEV is on, and RAM registered: with the host address and the bytes of its first part.
    fn initialise(&self, fd: i32) -> Result<(Initialised, u64, u64), Box<dyn Error>> {
        let platform = Box::new(self.platform.clone());
        let initialised = match self.vm_type {
            VmType::Default => Initialised::init(platform, fd)?,
            VmType::Sev => Initialised::init2(platform, fd)?,
        };
        let (address, len) = self.ram.mappings().next().ok_or("no RAM")?;
        initialised.register_region(address, len)?;
        self.vm.as_ref().map(|vm| self.ram.register(vm)).transpose()?;
        Ok((initialised, address, len))
    }
}

/// A host, and the two ends of a guest's way from it to itself.
struct Bench {
    device: Box<dyn SevDevice>,
    platform: Shared,
    sending: Sending,
    receiving: Receiving,
    /// Host addresses of the guest's RAM at both ends, and what keeps it there.
    from: u64,
    into: u64,
    _ends: [End; 2],
}

fn in_software(layout: RamLayout) -> Result<Bench, Box<dyn Error>> {
    let host = SoftwareHost::new(Identity::ephemeral()?);
    let device: Box<dyn SevDevice> = Box::new(host.open_device()?);
    let own = PlatformCertificates::export(device.as_ref(), vendor_chain(), None)?;
    let ends = [(), ()].map(|()| {
        let (ram, view) = GuestRam::split(layout, 47).ok()?;
        let platform = Shared(Arc::new(host.new_vm(view)));
        Some(End { ram, platform, vm: None, vm_type: VmType::Default })
    });
    let [Some(source), Some(target)] = ends else { return Err("no memory".into()) };
    bench(device, &own, source, target)
}

fn on_hardware(arguments: &Arguments, layout: RamLayout) -> Result<Bench, Box<dyn Error>> {
    let device: Box<dyn SevDevice> = Box::new(HardwareDevice::open()?);
    let path = |file: &Option<String>| file.as_ref().map(Into::into);
    let files =
        EndorsementFiles { cek: path(&arguments.cek_cert), ask_ark: path(&arguments.ask_ark) };
    let own = files.complete(device.as_ref())?;
    let host = Host::open()?;
    let vm_type =
        host.vm_type(Some(&PlatformKind::Hardware { endorsement: files, write_back: false }));
    let end = || -> Result<End, Box<dyn Error>> {
        let vm = Arc::new(host.create_bare_vm(vm_type)?);
        let platform = Shared(Arc::new(HardwarePlatform::new(Arc::clone(&vm))?));
        Ok(End { ram: GuestRam::pinned(layout)?, platform, vm: Some(vm), vm_type })
    };
    bench(device, &own, end()?, end()?)
}

fn bench(
    device: Box<dyn SevDevice>,
    own: &PlatformCertificates,
    source: End,
    target: End,
) -> Result<Bench, Box<dyn Error>> {
    let (vm, from, len) = source.initialise(device.fd())?;
    let launching = vm.start(Policy::default(), None)?;
    launching.update(from, len)?;
    let launched = launching.measure()?.finish()?;
    let sending = launched.start_send(own, own.pdh).map_err(|refused| refused.cause)?;
    let (vm, into, _len) = target.initialise(device.fd())?;
    let receiving = vm.start_receive(sending.session())?;
    let platform = source.platform.clone();
    Ok(Bench { device, platform, sending, receiving, from, into, _ends: [source, target] })
}

/// A page's packet.
#[derive(Clone)]
struct Packet {
    header: [u8; HEADER_LEN],
    data: [u8; PAGE_LEN],
}

impl Bench {
    fn print(&self, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
        let (pages, runs) = (arguments.pages, arguments.runs);
        let mut packets = vec![empty(); usize::try_from(pages)?];
        for (page, packet) in (0..).zip(&mut packets) {
            let address = self.from + page * PAGE_LEN as u64;
            self.sending.seal(address, &mut packet.header, &mut packet.data)?;
        }
        let seal = |page: u64, packet: &mut Packet| {
            let address = self.from + page * PAGE_LEN as u64;
            self.sending.seal(address, &mut packet.header, &mut packet.data).is_ok()
        };
        let open = |page: u64, _: &mut Packet| {
            let packet = usize::try_from(page).ok().and_then(|at| packets.get(at));
            let address = self.into + page * PAGE_LEN as u64;
            packet.is_some_and(|packet| {
                self.receiving.open(address, &packet.header, &packet.data).is_ok()
            })
        };
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&[1; 16])?;
        let raw = |page: u64, packet: &mut Packet| {
            let iv = u128::from(page << 10).to_be_bytes();
            Ctr128BE::<Aes128>::new(&[2; 16].into(), &iv.into()).apply_keystream(&mut packet.data);
            black_box(mac.clone().chain_update(packet.data).finalize());
            true
        };
        println!(
            "{:<22} {:>7}  {:>9} {:>9}  {:>9}",
            "", "threads", "median us", "p99 us", "pages/s"
        );
        for threads in [1, 2] {
            line("SEND_UPDATE_DATA", threads, &measure((threads, pages, runs), &seal)?);
            line("RECEIVE_UPDATE_DATA", threads, &measure((threads, pages, runs), &open)?);
            line("AES-CTR and HMAC alone", threads, &measure((threads, pages, runs), &raw)?);
        }
        println!("two pages in one command: {}", self.two_at_once());
        Ok(())
    }

    /// What the kernel says to `SEND_UPDATE_DATA` of two pages.
    fn two_at_once(&self) -> String {
        let (mut header, mut data) = ([0_u8; HEADER_LEN], vec![0_u8; 2 * PAGE_LEN]);
        let address = |bytes: &mut [u8]| bytes.as_mut_ptr().expose_provenance() as u64;
        let both = data.len() as u64;
        // `struct kvm_sev_send_update_data`: three addresses, each with a length of 32 bits.
        let mut packet =
            [address(&mut header), HEADER_LEN as u64, self.from, both, address(&mut data), both];
        let mut command = kvm_sev_cmd {
            id: sev_cmd_id_KVM_SEV_SEND_UPDATE_DATA,
            data: packet.as_mut_ptr().expose_provenance() as u64,
            sev_fd: self.device.fd().cast_unsigned(),
            ..kvm_sev_cmd::default()
        };
        match self.platform.memory_encrypt_op(&mut command) {
            Ok(()) => "taken".to_owned(),
            Err(refused) => format!("{refused}, so each page has a command of its own"),
        }
    }
}

fn empty() -> Packet {
    Packet { header: [0; HEADER_LEN], data: [0; PAGE_LEN] }
}

/// What each command took, ascending, and how long each run took.
struct Times {
    commands: Vec<Duration>,
    fastest_run: Duration,
    pages: u64,
}

/// Does `work` for every page, shared out among threads, several times.
fn measure(
    (threads, pages, runs): (u64, u64, usize),
    work: &(impl Fn(u64, &mut Packet) -> bool + Sync),
) -> Result<Times, Box<dyn Error>> {
    let mut all = Times { commands: Vec::new(), fastest_run: Duration::MAX, pages };
    for _ in 0..runs {
        let begun = Instant::now();
        let parts = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|first| scope.spawn(move || each((first, threads, pages), work)))
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().ok().flatten())
                .collect::<Option<Vec<_>>>()
        });
        all.fastest_run = all.fastest_run.min(begun.elapsed());
        all.commands.extend(parts.ok_or("a page failed")?.concat());
    }
    all.commands.sort_unstable();
    Ok(all)
}

/// One thread's commands, if none failed.
fn each(
    (first, step, pages): (u64, u64, u64),
    work: &impl Fn(u64, &mut Packet) -> bool,
) -> Option<Vec<Duration>> {
    let mut packet = empty();
    let timed = |page| {
        let begun = Instant::now();
        work(page, &mut packet).then(|| begun.elapsed())
    };
    (first..pages).step_by(usize::try_from(step).ok()?).map(timed).collect()
}

fn line(name: &str, threads: u64, times: &Times) {
    let at = |of: usize| times.commands.get(times.commands.len() * of / 100).copied();
    let us = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64() * 1e6;
    let rate = times.pages as f64 / times.fastest_run.as_secs_f64();
    println!("{name:<22} {threads:>7}  {:>9.2} {:>9.2}  {rate:>9.0}", us(at(50)), us(at(99)));
}
