//! A guest owner's day: the guest is measured and waits, is given its secrets, and runs.

use std::fs::read;
use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use serde_json::{Value, from_str};
use sevferry::sev::measurement::Measurement;
use sevferry::sev::software::Identity;
use sha2::{Digest, Sha256};
use support::owner::GuestOwner;
use support::process::{Ended, PASS, Sevferry, asset, kernels};
use support::scratch::Scratch;
use support::terminal::Terminal;

/// What guest-firmware says of the secret that it was told to look for.
const FOUND: &str = "secret: 736869e5-84f0-4973-92ec-06879ce3da0b ok";

/// A host with its keys, and the owner of its guests.
struct Scene {
    scratch: Scratch,
    owner: GuestOwner,
}

impl Scene {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let identity = Identity::load_or_create(Path::new(&scratch.path("identity")));
        let owner = GuestOwner::new(identity.expect("an identity").pdh_certificate());
        let [certificate, session] = owner.files();
        scratch.file("dh", certificate);
        scratch.file("session", session);
        Self { scratch, owner }
    }

    fn platform(&self) -> String {
        let path = |name| self.scratch.path(name);
        let owner = format!("dh_cert_file={},session_file={}", path("dh"), path("session"));
        format!("--platform=sev=software,identity={},{owner}", path("identity"))
    }

    /// Starts the owner's guest, and waits until it waits.
    fn pause(&self, options: &str, words: &str) -> Sevferry {
        let options = format!("{} --paused {options}", self.platform());
        let mut guest = self.start(&options, words);
        guest.wait_for("sevferry: paused");
        guest
    }

    fn start(&self, options: &str, words: &str) -> Sevferry {
        let kernel = asset("guest-firmware.elf");
        let guest = ["--kernel", &kernel, "--memory=size=64M", "--cmdline", words];
        self.start_guest(&guest, options, Stdio::null())
    }

    fn start_guest(&self, guest: &[&str], options: &str, input: Stdio) -> Sevferry {
        let api = self.scratch.path("api");
        let options = options.split_whitespace().chain(["--api-socket", &api]);
        let guest = ["run"].into_iter().chain(guest.iter().copied());
        Sevferry::start_with_input(guest.chain(options), input)
    }

    fn ask(&self, request: &str) -> Ended {
        let api = self.scratch.path("api");
        Sevferry::start(request.split(' ').chain(["--api-socket", &api])).end()
    }

    fn status(&self, state: &str) -> Value {
        let status: Value = from_str(&self.ask("status --json").with_code(0).out).expect("JSON");
        assert_eq!(status.get("state"), Some(&state.into()), "{status}");
        status
    }

    fn verified(&self) -> Measurement {
        self.owner.verified(&self.status("paused"))
    }

    /// Seals a password as the owner of what was measured so does, and injects it.
    fn inject(&self, measurement: &Measurement, password: &str, options: &str) -> Ended {
        let packet = self.owner.seal(measurement, password);
        self.inject_files(packet.map(|bytes| BASE64_STANDARD.encode(bytes).into()), options)
    }

    fn inject_files(&self, [header, secret]: [Vec<u8>; 2], options: &str) -> Ended {
        let header = self.scratch.file("header", header);
        let secret = self.scratch.file("secret", secret);
        self.ask(&format!("inject-secret --header {header} --secret {secret}{options}"))
    }
}

/// The owner verifies what was measured, and the guest finds the secret by the table that was measured
/// with it. What was not made for this very launch is refused, with the reason, and may be put right.
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn a_guest_waits_for_its_owners_secret() {
    let scene = Scene::new("owner");
    let guest = scene.pause("", "secret=open-sesame");
    let measurement = scene.verified();
    let other = Measurement { mac: [7; 32], ..measurement };
    let refused = scene.inject(&other, "open-sesame", "").with_code(1);
    refused.saying("BAD_MEASUREMENT").saying("another launch");
    for (gpa, why) in [
        ("0xef008", "start at a multiple of 16"),
        ("0xeffe0", "lie in one page"),
        ("0x4000000", "no RAM at 0x4000000"),
        ("0xfffffffffffffff0", "one page"),
    ] {
        let gpa = format!(" --gpa {gpa}");
        scene.inject(&measurement, "open-sesame", &gpa).with_code(1).saying(why);
    }
    let empty = [vec![0; 52], Vec::new()];
    scene.inject_files(empty, "").with_code(1).saying("a secret of 0 bytes");
    let short = [vec![0; 51], vec![0; 16]];
    scene.inject_files(short, "").with_code(1).saying("has 52 bytes, not 51");
    scene.ask("migrate --to tcp:127.0.0.1:1").with_code(10).saying("sevferry continue");
    scene.ask("cancel").with_code(1).saying("no migration");
    scene.ask("resolve keep").with_code(1).saying("no handover");
    let report = scene.ask("report").with_code(0);
    assert!(report.out.contains("\"state\":\"LaunchSecret\""), "{report}");
    scene.inject(&measurement, "open-sesame", "").with_code(0).saying("sevferry continue");
    scene.ask("continue").with_code(0).saying("the guest runs");
    let ended = guest.end().with_code(0);
    assert!(ended.out.contains(FOUND) && ended.out.contains(PASS), "{ended}");
}

/// Nobody has to send a secret; then there is none, and while the guest runs it takes none.
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn a_guest_may_run_without_a_secret() {
    let scene = Scene::new("no-secret");
    let mut guest = scene.pause("", "no-secret count=1 then=halt");
    let measurement = scene.verified();
    scene.ask("continue").with_code(0);
    guest.wait_for("no-secret: ok");
    guest.wait_for(PASS);
    let status = scene.status("running");
    let shown = status.pointer("/launch/launch_measurement").and_then(Value::as_str);
    assert_eq!(shown, Some(BASE64_STANDARD.encode(measurement.to_bytes()).as_str()));
    scene.inject(&measurement, "late", "").with_code(1).saying("--paused");
    scene.ask("continue").with_code(1).saying("runs already");
    scene.ask("quit").with_code(0);
    guest.end().with_code(0);
}

/// The wait ends without the guest when its time is up, or the user says so.
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn the_wait_has_an_end() {
    let scene = Scene::new("wait");
    let late = scene.start("--platform=sev=software --paused=1", "").end().with_code(1);
    let late = late.saying("nobody let the guest run within the 1 s of --paused");
    assert!(late.out.is_empty(), "the guest ran; {late}");
    let guest = scene.pause("--report=json", "");
    scene.ask("quit").with_code(0);
    let ended = guest.end().with_code(0);
    assert!(ended.out.is_empty() && !ended.report().is_null(), "{ended}");
    let guest = scene.pause("", "");
    guest.signal(Signal::TERM);
    assert!(guest.end().with_code(0).out.is_empty(), "the guest ran");
}

/// Where nobody can have sealed a secret, that is what is said.
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn a_guest_without_an_owner_takes_no_secret() {
    let scene = Scene::new("own");
    let nobody = Measurement { mac: [0; 32], nonce: [0; 16] };
    for (options, why) in [("-S", "plain VM"), ("-S --platform=sev=software", "session_file=")] {
        let mut guest = scene.start(options, "count=1");
        guest.wait_for("sevferry: paused");
        scene.inject(&nobody, "secret", "").with_code(1).saying(why);
        scene.ask("continue").with_code(0);
        let ended = guest.end().with_code(0);
        assert!(ended.out.contains(PASS), "{ended}");
    }
}

/// A guest that resets is another launch: it waits again, has another measurement, and takes no secret
/// that was made for the one before.
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn a_guest_that_resets_waits_again() {
    let scene = Scene::new("reset");
    let mut guest = scene.pause("", "secret=open-sesame then=reboot");
    let first = scene.verified();
    scene.inject(&first, "open-sesame", "").with_code(0);
    scene.ask("continue").with_code(0);
    guest.wait_for(FOUND);
    guest.wait_for("sevferry: paused");
    let second = scene.verified();
    assert_ne!(first, second);
    scene.inject(&first, "open-sesame", "").with_code(1).saying("another launch");
    scene.inject(&second, "open-sesame", "").with_code(0);
    scene.ask("continue").with_code(0);
    guest.wait_for(FOUND);
    scene.ask("quit").with_code(0);
    guest.end().with_code(0);
}

/// The secret is the guest's, wherever it goes. (Here its packet comes as it is, not in base64.)
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn a_secret_moves_with_its_guest() {
    let scene = Scene::new("moves");
    let listen = format!("unix:{}", scene.scratch.path("listen"));
    let receive = ["receive", "--listen", &listen, "--platform", "sev=software"];
    let mut destination = Sevferry::start(receive);
    destination.wait_for("waiting for a guest");
    let words = "ready secret=open-sesame count=12000 secret=open-sesame";
    let mut source = scene.pause("", words);
    let packet = scene.owner.seal(&scene.verified(), "open-sesame");
    scene.inject_files(packet, "").with_code(0);
    scene.ask("continue").with_code(0);
    source.wait_for(FOUND);
    source.wait_for("count: 1");
    scene.ask(&format!("migrate --to {listen}")).with_code(0);
    source.end().with_code(0);
    let ended = destination.end().with_code(0);
    assert!(ended.out.contains(FOUND) && ended.out.contains(PASS), "{ended}");
}

/// The owner's tools get the bytes that were measured as a file, and the digest from anywhere.
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn the_launch_data_is_what_was_measured() {
    let scene = Scene::new("data");
    let guest = scene.pause("", "count=1");
    let status = scene.status("paused");
    let said = |name: &str| status.pointer(&format!("/launch/{name}")).expect("it is there");
    let (kernel, data) = (asset("guest-firmware.elf"), scene.scratch.path("data"));
    let c_bit = said("c_bit").to_string();
    let guest_itself = ["digest", "--kernel", &kernel, "--memory=size=64M", "--cmdline=count=1"];
    let options = ["--c-bit", &c_bit, "--launch-data", &data];
    Sevferry::start(guest_itself.into_iter().chain(options)).end().with_code(0);
    let digest = Sha256::digest(read(&data).expect("the file"));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(said("launch_digest").as_str(), Some(digest.as_str()));
    scene.ask("quit").with_code(0);
    guest.end().with_code(0);
}

/// Linux leaves the secret page alone, and root in it can read it.
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn a_linux_guest_reads_its_secret() {
    let scene = Scene::new("linux");
    let mut terminal = Terminal::open();
    let (kernel, initramfs) = (kernels().remove(0), asset("guest.cpio.gz"));
    let guest = ["--kernel", &kernel, "--initramfs", &initramfs, "--cmdline=console=ttyS0 quiet"];
    let options = format!("{} --paused", scene.platform());
    let mut guest = scene.start_guest(&guest, &options, terminal.input());
    guest.wait_for("sevferry: paused");
    scene.inject(&scene.verified(), "open-sesame", "").with_code(0);
    scene.ask("continue").with_code(0);
    guest.wait_for("This guest's userspace is busybox");
    terminal.press(
        "dd if=/dev/mem bs=4096 skip=239 count=1 2>/dev/null | tail -c +41 | head -c 11; echo\r",
    );
    guest.wait_for("open-sesame");
    terminal.press("poweroff -f\r");
    guest.end().with_code(0);
}
