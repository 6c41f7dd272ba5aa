//! Debian's kernels, unchanged, when they give up their processors, reboot, and put another kernel in
//! their place: what they say to the host, and whether the list stays that of their page tables.
//!
//! The guests are told what to do on their consoles, by a shell.

use std::fs::read;
use std::io::{PipeWriter, Write, pipe};
use std::time::Duration;

use serde_json::{Value, from_str};
use support::process::{Sevferry, asset, kernels, shared_regions};
use support::scratch::Scratch;

const READY: &str = "sevferry-guest: ready=";
/// Without NODBG, so that what they report is held against their page tables by sevferry too, as it is
/// before each migration.
const PLATFORM: &str = "--platform=sev=software,policy=0x20";
const PATIENCE: Duration = Duration::from_secs(600);
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";

/// An initramfs that has in it what it takes to start the same kernel again.
fn initramfs(scratch: &Scratch, kernel: &str) -> String {
    let guest = asset("guest.cpio.gz");
    let own = read(&guest).expect("scripts/images builds it");
    let mut boot = cpio_entry("boot", 0o040_755, &[]);
    boot.extend(cpio_entry("boot/vmlinuz", 0o100_644, &read(kernel).expect("a kernel")));
    boot.extend(cpio_entry("boot/initramfs", 0o100_644, &own));
    boot.extend(cpio_entry("TRAILER!!!", 0, &[]));
    scratch.file("initramfs", [boot, own].concat())
}

/// A file as Linux unpacks it: `Documentation/driver-api/early-userspace/buffer-format.rst`.
fn cpio_entry(name: &str, mode: u32, bytes: &[u8]) -> Vec<u8> {
    let (length, name_length) = (bytes.len(), name.len() + 1);
    // Inode, mode, owners, links, time; length; devices; length of the name, no checksum.
    let mut entry = format!(
        "070701{0:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{length:08x}{0:08x}{0:08x}{0:08x}{0:08x}\
         {name_length:08x}{0:08x}{name}\0",
        0, 1
    )
    .into_bytes();
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry.extend(bytes);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}

/// A process with a guest in it, or one that waits for a guest, and the guest's console.
struct Host {
    sevferry: Sevferry,
    console: PipeWriter,
    api: String,
}

impl Host {
    fn start(scratch: &Scratch, name: &str, arguments: &[&str]) -> Self {
        let (input, console) = pipe().expect("a pipe");
        let (api, journal) = (scratch.path(name), scratch.path(&format!("{name}-journal")));
        let own = ["--api-socket", &api, "--journal", &journal];
        let arguments = arguments.iter().copied().chain(own);
        // Three kernels boot in it, one after the other.
        let sevferry = Sevferry::start_with_input(arguments, input.into()).within(PATIENCE);
        Self { sevferry, console, api }
    }

    /// Boots a Debian guest with two processors.
    fn boot(scratch: &Scratch, kernel: &str, memory: &str) -> Self {
        let initramfs = initramfs(scratch, kernel);
        let memory = format!("--memory=size={memory}");
        let files = ["run", "--kernel", kernel, "--initramfs", &initramfs, "--cmdline", CMDLINE];
        let arguments = [&files[..], &[&memory, "--cpus=boot=2", PLATFORM]].concat();
        let mut host = Self::start(scratch, "source", &arguments);
        host.sevferry.wait_for(READY);
        host
    }

    /// Has the guest's shell carry out a command, which must succeed.
    #[track_caller]
    fn command(&mut self, command: &str) {
        self.type_in(&format!("{command}; echo done=$?"));
        self.sevferry.wait_for("done=0");
    }

    fn type_in(&mut self, line: &str) {
        writeln!(self.console, "{line}").expect("the guest's console");
    }

    /// Puts the same kernel in the guest's place.
    fn type_in_kexec(&mut self) {
        self.type_in(&format!("kexec /boot/vmlinuz /boot/initramfs '{CMDLINE}'"));
    }

    fn ask(&self, request: &str) -> String {
        let asked = [request, "--api-socket", &self.api];
        Sevferry::start(asked).end().with_code(0).out
    }

    fn report(&self) -> Value {
        from_str(&self.ask("report")).expect("JSON")
    }

    /// Fails unless the list is what the guest's own page tables leave unencrypted.
    #[track_caller]
    fn assert_list_is_that_of_the_tables(&mut self) {
        self.type_in("shared_pages");
        let mut own = Vec::new();
        loop {
            let line = self.sevferry.wait_for("shared");
            if let Some((_, range)) = line.split_once("shared=0x") {
                let (start, end) = range.split_once("-0x").expect("a range");
                let frame = |text| u64::from_str_radix(text, 16).expect("an address") >> 12;
                own.push((frame(start), frame(end)));
            } else if line.contains("shared_pages=") {
                break;
            }
        }
        self.ask("audit");
        let report = self.report();
        // Swiotlb alone is thousands of pages.
        assert!(own.iter().map(|(base, limit)| limit - base).sum::<u64>() > 1000, "{own:?}");
        assert_eq!(shared_regions(&report), own, "{report}");
    }

    #[track_caller]
    fn assert_ready(&self) {
        assert!(self.ask("status").contains("; can be migrated"), "{}", self.ask("status"));
    }

    #[track_caller]
    fn assert_withdrawn(&self) {
        let status = self.ask("status");
        let says = "cannot be migrated now: the guest has withdrawn its readiness";
        assert!(status.contains(says), "{status}");
    }
}

/// Linux withdraws its readiness with the first processor that goes offline, and neither takes it
/// back when it comes online again; a kernel that boots does, by kexec or by reset. What the list
/// says is true at each step.
#[test]
#[ignore = "needs KVM: scripts/test kvm_kexec"]
fn the_list_is_that_of_whatever_kernel_runs() {
    for kernel in kernels() {
        let scratch = Scratch::new("kexec");
        let mut guest = Host::boot(&scratch, &kernel, "256M");
        guest.assert_ready();
        guest.assert_list_is_that_of_the_tables();
        let shared = shared_regions(&guest.report());
        let online = "/sys/devices/system/cpu/cpu1/online";
        guest.command(&format!("echo 0 >{online}"));
        guest.assert_withdrawn();
        guest.command(&format!("echo 1 >{online}"));
        guest.assert_withdrawn();
        guest.assert_list_is_that_of_the_tables();
        let nobody = format!("unix:{}", scratch.path("nobody"));
        let migrate = ["migrate", "--api-socket", &guest.api, "--to", &nobody];
        let refused = Sevferry::start(migrate).end().with_code(10);
        assert!(refused.out.contains("the guest has withdrawn its readiness"), "{refused}");

        guest.type_in_kexec();
        guest.sevferry.wait_for("sevferry-guest: cpus_online=0-1");
        guest.sevferry.wait_for(READY);
        guest.assert_ready();
        guest.assert_list_is_that_of_the_tables();
        let anew = guest.report();
        assert_eq!(anew.pointer("/sev/hypercalls/refused"), Some(&0.into()), "{anew}");
        eprintln!("{kernel}: {shared:?}, after kexec {:?}", shared_regions(&anew));

        guest.type_in("reboot -f");
        guest.sevferry.wait_for("launch digest: ");
        guest.sevferry.wait_for(READY);
        guest.assert_ready();
        guest.assert_list_is_that_of_the_tables();
        guest.ask("quit");
        guest.sevferry.end().with_code(0);
    }
}

/// A kernel that makes room for another withdraws, so a migration that is under way is given up at
/// once; the new kernel runs on, and the next migration carries it and what it shares.
#[test]
#[ignore = "needs KVM: scripts/test kvm_kexec"]
fn a_kexec_gives_up_the_migration_and_the_next_one_carries_the_new_kernel() {
    let kernel = kernels().remove(0);
    let scratch = Scratch::new("kexec-moved");
    let mut source = Host::boot(&scratch, &kernel, "256M");
    let listen = format!("unix:{}", scratch.path("listen"));
    let api = source.api.clone();
    let migrate = ["migrate", "--api-socket", &api, "--to", &listen];
    let mut destination = Host::start(
        &scratch,
        "first",
        &["receive", "--listen", &listen, "--platform=sev=software"],
    );
    destination.sevferry.wait_for("waiting for a guest");
    let mut migration = Sevferry::start(migrate);
    migration.wait_for("round 1");
    source.type_in_kexec();
    let failed = migration.end().with_code(10);
    assert!(failed.out.contains("the guest has withdrawn its readiness"), "{failed}");
    drop(destination);

    source.sevferry.wait_for(READY);
    source.assert_ready();
    source.assert_list_is_that_of_the_tables();
    let mut destination = Host::start(
        &scratch,
        "second",
        &["receive", "--listen", &listen, "--platform=sev=software"],
    );
    destination.sevferry.wait_for("waiting for a guest");
    Sevferry::start(migrate).end().with_code(0);
    source.sevferry.end().with_code(0);
    destination.assert_list_is_that_of_the_tables();
    destination.assert_ready();
    destination.ask("quit");
    destination.sevferry.end().with_code(0);
}
