//! Debian with a disk, as a plain VM and as an SEV guest: written, read back, and moved while it is in use.

use std::fs::{OpenOptions, metadata, read};
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::Signal;
use support::process::{Ended, Sevferry, asset, kernels};
use support::scratch::Scratch;

const PLATFORMS: [&str; 2] = ["", "--platform=sev=software"];

const MIB: u64 = 1 << 20;

/// A guest that writes the first disk of `options` and reads it back, for ever.
fn run(kernel: &str, options: &str) -> Sevferry {
    let initramfs = asset("guest.cpio.gz");
    let cmdline = "console=ttyS0 quiet panic=-1 sevferry.devices=yes sevferry.then=disk";
    let guest = ["run", "--kernel", kernel, "--initramfs", &initramfs, "--cmdline", cmdline];
    let more = "--memory=size=192M --rng=src=/dev/urandom";
    let options = more.split_whitespace().chain(options.split_whitespace());
    Sevferry::start(guest.into_iter().chain(options)).within(Duration::from_secs(400))
}

/// Waits for a guest at `listen`.
fn receive(listen: &str, options: &str) -> Sevferry {
    let all = format!("receive --listen {listen} --rng=src=/dev/urandom {options}");
    let mut there = Sevferry::start(all.split_whitespace()).within(Duration::from_secs(400));
    there.wait_for("waiting for a guest");
    there
}

fn migrate(socket: &str, listen: &str) -> Ended {
    let to = format!("migrate --api-socket {socket} --to {listen} --timeout-s=90");
    Sevferry::start(to.split_whitespace().chain(["--timeout-strategy=stop"])).end()
}

/// How often the guest has read back what it wrote; nothing was wrong so far.
#[track_caller]
fn pass(guest: &mut Sevferry) -> u64 {
    let line = guest.wait_for("sevferry-guest: disk");
    assert!(line.contains("disk="), "{line}");
    let (_, count) = line.split_once("disk=").expect("what was waited for");
    count.trim().parse().expect("a number")
}

/// The guest finds its disks, with what was configured, and what it writes is in the file.
#[test]
#[ignore = "needs KVM: scripts/test kvm_disks"]
fn the_guest_reads_what_it_wrote() {
    for kernel in kernels() {
        for platform in PLATFORMS {
            let scratch = Scratch::new(&format!("disks-{}", platform.len()));
            let (one, two) = (scratch.zeros("a.raw", 8 * MIB), scratch.zeros("b.raw", MIB));
            let disks = format!(
                "--disk path={one},serial=FIRST,num_queues=2 --disk path={two},readonly=on,serial=SECOND"
            );
            let mut guest = run(&kernel, &format!("{platform} {disks}"));
            guest.wait_for("block=vda 16384 0 FIRST");
            guest.wait_for("block=vdb 2048 1 SECOND");
            assert_eq!(pass(&mut guest), 1);
            assert_eq!(pass(&mut guest), 2);
            let bytes = read(&one).expect("the disk");
            let mib = usize::try_from(MIB).expect("small");
            assert!(bytes[mib..2 * mib].iter().any(|byte| *byte != 0));
            assert!(bytes[2 * mib..].iter().all(|byte| *byte == 0));
        }
    }
}

/// The guest is moved while it writes: nothing is lost or wrong. Its disk is locked by one of the two at
/// any time: nobody else can have it before, nor after.
#[test]
#[ignore = "needs KVM: scripts/test kvm_disks"]
fn a_disk_moves_with_its_guest() {
    let kernel = kernels().pop().expect("one at least");
    for platform in PLATFORMS {
        let scratch = Scratch::new(&format!("disks-{}", platform.len()));
        let (socket, listen) = (scratch.path("api"), format!("unix:{}", scratch.path("listen")));
        let disk = scratch.zeros("disk.raw", 8 * MIB);
        let option = format!("--disk path={disk}");
        let mut guest = run(&kernel, &format!("{platform} {option} --api-socket={socket}"));
        pass(&mut guest);
        // A second guest does not get it.
        run(&kernel, &option).end().with_code(1).saying("is in use");
        // What the destination cannot open, or has otherwise, is named, and the guest stays.
        for (options, why) in [
            (String::new(), "it has a disk in slot 2, and none was given here"),
            ("--disk path=/nowhere/disk.raw".to_owned(), "opening /nowhere/disk.raw"),
            (format!("{option},readonly=on"), "readonly \"off\", and here \"on\""),
        ] {
            if platform.is_empty() {
                let there = receive(&listen, &format!("{platform} {options}"));
                let stayed = migrate(&socket, &listen).with_code(10);
                assert!(stayed.out.contains(why), "{stayed}");
                there.signal(Signal::TERM);
                there.end().with_code(0);
            }
        }
        let before = pass(&mut guest);
        let mut there = receive(&listen, &format!("{platform} {option}"));
        migrate(&socket, &listen).with_code(0);
        guest.end().with_code(0);
        let after = pass(&mut there);
        assert!(after > before, "{before} then {after}");
        assert!(pass(&mut there) > after);
        run(&kernel, &option).end().with_code(1).saying("is in use");
        assert_eq!(metadata(&disk).expect("the disk").len(), 8 * MIB);
    }
}

/// A destination whose disk is not the source's own file finds it locked by somebody else, when it would
/// own the guest: the guest stays where it is, and goes on with its disk.
#[test]
#[ignore = "needs KVM: scripts/test kvm_disks"]
fn a_guest_stays_where_its_disk_can_be_locked() {
    let kernel = kernels().pop().expect("one at least");
    let scratch = Scratch::new("disks-lock");
    let (socket, listen) = (scratch.path("api"), format!("unix:{}", scratch.path("listen")));
    let (here, there) = (scratch.zeros("a.raw", 8 * MIB), scratch.zeros("b.raw", 8 * MIB));
    let mut guest = run(&kernel, &format!("--disk path={here} --api-socket={socket}"));
    pass(&mut guest);
    // Somebody has the other one.
    let held = OpenOptions::new().read(true).write(true).open(&there).expect("the file");
    fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive).expect("a lock");
    let mut destination = receive(&listen, &format!("--disk path={there}"));
    migrate(&socket, &listen).with_code(10);
    destination.wait_for("is in use");
    let before = pass(&mut guest);
    assert!(pass(&mut guest) > before);
}
