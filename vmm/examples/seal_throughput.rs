//! How fast the software platform seals and opens pages, beside the raw cryptography.
//!
//! `cargo run --release --example seal_throughput`: GB/s, best of several runs.

use std::error::Error;
use std::hint::black_box;
use std::thread;
use std::time::Instant;

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sevferry::memory::GuestRam;
use sevferry::page::RamLayout;
use sevferry::sev::launch::Initialised;
use sevferry::sev::send::PAGE_LEN;
use sevferry::sev::software::{Identity, SoftwareHost, vendor_chain};
use sevferry::sev::target::PlatformCertificates;
use sevferry::sev::{Policy, SevDevice};
use sha2::Sha256;

const RAM_LEN: u64 = 64 << 20;
const PAGES: u64 = RAM_LEN / PAGE_LEN as u64;
const RUNS: usize = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let layout = RamLayout::new(RAM_LEN)?;
    let source = SoftwareHost::new(Identity::ephemeral()?);
    let target = SoftwareHost::new(Identity::ephemeral()?);
    let (source_device, target_device) = (source.open_device()?, target.open_device()?);
    let (source_ram, source_view) = GuestRam::split(layout, 47)?;
    let (target_ram, target_view) = GuestRam::split(layout, 47)?;
    let own = PlatformCertificates::export(&source_device, vendor_chain(), None)?;
    let to = PlatformCertificates::export(&target_device, vendor_chain(), None)?;
    let source_vm = Box::new(source.new_vm(source_view));
    let target_vm = Box::new(target.new_vm(target_view));
    let launching =
        Initialised::init(source_vm, source_device.fd())?.start(Policy::default(), None)?;
    let from = source_ram.mappings().next().ok_or("no RAM")?.0;
    launching.update(from, RAM_LEN)?;
    let sending = launching
        .measure()?
        .finish()?
        .start_send(&to, own.pdh)
        .map_err(|not_sending| not_sending.cause)?;
    let receiving =
        Initialised::init(target_vm, target_device.fd())?.start_receive(sending.session())?;
    let into = target_ram.mappings().next().ok_or("no RAM")?.0;

    let seal = |page: u64, packet: &mut SealedPage| {
        let address = from + page * PAGE_LEN as u64;
        sending.seal(address, &mut packet.header, &mut packet.data).is_ok()
    };
    let mut packets = vec![empty(); usize::try_from(PAGES)?];
    for (page, packet) in (0..PAGES).zip(&mut packets) {
        let address = from + page * PAGE_LEN as u64;
        sending.seal(address, &mut packet.header, &mut packet.data)?;
    }
    let open = |page: u64, _: &mut SealedPage| {
        let packet = usize::try_from(page).ok().and_then(|at| packets.get(at));
        packet.is_some_and(|packet| {
            receiving.open(into + page * PAGE_LEN as u64, &packet.header, &packet.data).is_ok()
        })
    };
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&[1; 16])?;
    let raw = |page: u64, packet: &mut SealedPage| {
        let iv = u128::from(page << 10).to_be_bytes();
        Ctr128BE::<Aes128>::new(&[2; 16].into(), &iv.into()).apply_keystream(&mut packet.data);
        black_box(mac.clone().chain_update(packet.data).finalize());
        true
    };
    for threads in [1, 2] {
        println!("{threads} thread(s): raw AES-CTR and HMAC {:.2} GB/s", best(threads, &raw));
        println!("{threads} thread(s): SEND_UPDATE_DATA     {:.2} GB/s", best(threads, &seal));
        println!("{threads} thread(s): RECEIVE_UPDATE_DATA  {:.2} GB/s", best(threads, &open));
    }
    Ok(())
}

/// A page's packet.
#[derive(Clone)]
struct SealedPage {
    header: [u8; 52],
    data: [u8; PAGE_LEN],
}

fn empty() -> SealedPage {
    SealedPage { header: [0; 52], data: [0; PAGE_LEN] }
}

/// GB/s of `work` over every page, shared out among threads.
fn best(threads: u64, work: &(impl Fn(u64, &mut SealedPage) -> bool + Sync)) -> f64 {
    let run = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for first in 0..threads {
                scope.spawn(move || {
                    let mut packet = empty();
                    let done = (first..PAGES).step_by(usize::try_from(threads).unwrap_or(1));
                    assert!(done.into_iter().all(|page| work(page, &mut packet)), "a page failed");
                });
            }
        });
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..RUNS).map(|_| run()).fold(f64::INFINITY, f64::min);
    RAM_LEN as f64 / fastest / 1e9
}
