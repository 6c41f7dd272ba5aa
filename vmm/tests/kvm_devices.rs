//! Debian with devices on its PCI bus, as a plain VM and as an SEV guest: found, used, and moved.

use rustix::process::Signal;
use support::process::{Sevferry, asset, kernels};
use support::scratch::Scratch;

/// A guest that takes random numbers from its device and prints them, for ever.
fn run(kernel: &str, options: &str) -> Sevferry {
    let initramfs = asset("guest.cpio.gz");
    let cmdline = "console=ttyS0 quiet panic=-1 sevferry.devices=yes sevferry.then=random";
    let guest = ["run", "--kernel", kernel, "--initramfs", &initramfs, "--cmdline", cmdline];
    let more = "--memory=size=192M --cpus=boot=2 --rng=src=/dev/urandom";
    let options = more.split_whitespace().chain(options.split_whitespace());
    Sevferry::start(guest.into_iter().chain(options))
}

/// The number of the next sixteen random bytes, and the bytes, which the device must have given.
#[track_caller]
fn random(guest: &mut Sevferry) -> (u64, String) {
    let line = guest.wait_for("sevferry-guest: random=");
    let (_, fact) = line.split_once("random=").expect("what was waited for");
    let (count, bytes) = fact.trim().split_once(' ').expect("a number, and bytes");
    assert!(bytes.len() == 32 && bytes.bytes().any(|digit| digit != b'0'), "{line}");
    (count.parse().expect("a number"), bytes.to_owned())
}

/// The guest finds the host bridge and the device, and its kernel takes the device for its source of
/// random numbers.
#[track_caller]
fn assert_found(guest: &mut Sevferry) {
    guest.wait_for("pci=0000:00:00.0 0x1b36 0x0008");
    guest.wait_for("pci=0000:00:01.0 0x1af4 0x1044 virtio-pci");
    guest.wait_for("rng=virtio_rng.0");
}

/// Random numbers of the host, with each kernel, and no two alike. An SEV guest shares the pages that
/// they come in; from a private page the host would see noise, and the guest zeros.
#[test]
#[ignore = "needs KVM: scripts/test kvm_devices"]
fn the_guest_reads_random_numbers_of_the_host() {
    for kernel in kernels() {
        for platform in ["", "--platform=sev=software"] {
            let mut guest = run(&kernel, platform);
            assert_found(&mut guest);
            let seen = [(); 5].map(|()| random(&mut guest).1);
            assert!((1..5).all(|one| !seen[..one].contains(&seen[one])), "{seen:?}");
        }
    }
}

/// The device goes on where the guest is moved to, with a source there; without one the guest stays.
#[test]
#[ignore = "needs KVM: scripts/test kvm_devices"]
fn the_device_moves_with_its_guest() {
    let kernel = kernels().pop().expect("one at least");
    for platform in ["", "--platform=sev=software"] {
        let scratch = Scratch::new(&format!("devices-{}", platform.len()));
        let (socket, listen) = (scratch.path("api"), format!("unix:{}", scratch.path("listen")));
        let mut guest = run(&kernel, &format!("{platform} --api-socket={socket}"));
        assert_found(&mut guest);
        let before = random(&mut guest);
        let status = Sevferry::start(["status", "--api-socket", &socket]).end().with_code(0);
        assert!(status.out.contains("device: rng in slot 1, used by the guest"), "{status}");
        let receive = |options: &str| {
            let both = platform.split_whitespace().chain(options.split_whitespace());
            let mut there =
                Sevferry::start(["receive", "--listen", &listen].into_iter().chain(both));
            there.wait_for("waiting for a guest");
            there
        };
        let migrate = || {
            let to = ["migrate", "--api-socket", &socket, "--to", &listen, "--timeout-s=150"];
            Sevferry::start(to.into_iter().chain(["--timeout-strategy=stop"])).end()
        };
        let without = receive("");
        let why = "it has a rng in slot 1, and none was given here: start receive with --rng";
        let stayed = migrate().with_code(10);
        assert!(stayed.out.contains(why), "{stayed}");
        without.signal(Signal::TERM);
        without.end().with_code(0);
        let mut there = receive("--rng=src=/dev/urandom");
        migrate().with_code(0);
        let mut last = before;
        for _ in 0..3 {
            let next = random(&mut there);
            assert!(next.0 > last.0 && next.1 != last.1, "{last:?} then {next:?}");
            last = next;
        }
        guest.end().with_code(0);
    }
}
