//! A guest owner's day: the guest is measured and waits, is given its secrets, and runs.

#[expect(dead_code, reason = "each test file uses its part")]
mod vmm;

#[expect(dead_code, reason = "each test file uses its part")]
#[path = "vmm/scratch.rs"]
mod scratch;

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use scratch::Scratch;
use serde_json::{Value, from_str};
use sevferry::sev::Policy;
use sevferry::sev::launch::Secret;
use sevferry::sev::measurement::{Claim, FirmwareVersion, Measurement};
use sevferry::sev::session::OwnerSession;
use sevferry::sev::software::Identity;
use vmm::{Ended, Sevferry, asset};
use zerocopy::IntoBytes;

const PASS: &str = "guest-firmware: PASS";

/// `1e74f542-71dd-4d66-963e-ef4287ff173b` and `736869e5-84f0-4973-92ec-06879ce3da0b` as in memory: a
/// table of secrets, and a disk's password in it.
const TABLE: [u8; 16] = *b"\x42\xf5\x74\x1e\xdd\x71\x66\x4d\x96\x3e\xef\x42\x87\xff\x17\x3b";
const PASSWORD: [u8; 16] = *b"\xe5\x69\x68\x73\xf0\x84\x73\x49\x92\xec\x06\x87\x9c\xe3\xda\x0b";

/// A host with its keys, and the owner of its guests.
struct Scene {
    scratch: Scratch,
    owner: OwnerSession,
}

impl Scene {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let identity = Identity::load_or_create(Path::new(&scratch.path("identity")));
        let identity = identity.expect("an identity");
        let owner =
            OwnerSession::new(identity.pdh_certificate(), Policy::default()).expect("a session");
        scratch.file("dh", BASE64_STANDARD.encode(owner.certificate.as_bytes()));
        scratch.file("session", BASE64_STANDARD.encode(owner.session.as_bytes()));
        scratch.file("tik", owner.keys.tik.as_bytes());
        Self { scratch, owner }
    }

    /// Starts the owner's guest, and waits until it waits.
    fn pause(&self, options: &str, words: &str) -> Sevferry {
        let path = |name| self.scratch.path(name);
        let platform = format!(
            "--platform=sev=software,identity={},dh_cert_file={},session_file={}",
            path("identity"),
            path("dh"),
            path("session")
        );
        let mut guest = self.start(&[&platform, "--paused", options].join(" "), words);
        guest.wait_for("sevferry: paused");
        guest
    }

    fn start(&self, options: &str, words: &str) -> Sevferry {
        let (kernel, api) = (asset("guest-firmware.elf"), self.scratch.path("api"));
        let guest = ["run", "--kernel", &kernel, "--memory=size=64M", "--cmdline", words];
        let options = options.split_whitespace().chain(["--api-socket", &api]);
        Sevferry::start(guest.into_iter().chain(options))
    }

    fn ask(&self, request: &str) -> Ended {
        let api = self.scratch.path("api");
        Sevferry::start(request.split(' ').chain(["--api-socket", &api])).end()
    }

    fn status(&self) -> Value {
        from_str(&self.ask("status --json").with_code(0).out).expect("JSON")
    }

    /// What the owner is told: the measurement, and what it claims.
    fn measured(&self) -> (Measurement, Claim) {
        let status = self.status();
        assert_eq!(status.get("state"), Some(&"paused".into()), "{status}");
        let of_launch =
            |name: &str| status.pointer(&format!("/launch/{name}")).expect("it is there");
        let number =
            |name| u8::try_from(of_launch(name).as_u64().expect("a number")).expect("small");
        let text = |name| of_launch(name).as_str().expect("a text");
        let measurement = BASE64_STANDARD.decode(text("launch_measurement")).expect("base64");
        let digest: Vec<u8> = (0..64)
            .step_by(2)
            .map(|at| u8::from_str_radix(&text("launch_digest")[at..at + 2], 16).expect("hex"))
            .collect();
        let (major, minor) = (number("api_major"), number("api_minor"));
        let version = FirmwareVersion { major, minor, build: number("build_id") };
        let policy = Policy::default();
        assert_eq!(of_launch("policy").as_u64(), Some(policy.bits().into()));
        (
            Measurement::from_bytes(&measurement.try_into().expect("48 bytes")),
            Claim { version, policy, digest: digest.try_into().expect("32 bytes") },
        )
    }

    /// Seals a table with one password as the owner of what was measured so does, and injects it.
    fn inject(&self, measurement: &Measurement, password: &str, options: &str) -> Ended {
        let sealed = Secret::seal(&self.owner.keys, measurement, &table(password));
        let (header, secret) = sealed.expect("randomness").into_parts();
        let header = self.scratch.file("header", BASE64_STANDARD.encode(header.as_bytes()));
        let secret = self.scratch.file("secret", BASE64_STANDARD.encode(secret));
        self.ask(&format!("inject-secret --header {header} --secret {secret}{options}"))
    }
}

/// A table with one password, padded as the firmware takes it.
fn table(password: &str) -> Vec<u8> {
    let len = |len: usize| u32::try_from(len).expect("small").to_le_bytes();
    let mut table = Vec::from(TABLE);
    table.extend(len((40 + password.len()).next_multiple_of(16)));
    table.extend(PASSWORD);
    table.extend(len(20 + password.len()));
    table.extend(password.as_bytes());
    table.resize(table.len().next_multiple_of(16), 0);
    table
}

/// The owner verifies what was measured, and the guest finds the secret by the table that was measured
/// with it. What was not made for this very launch is refused, with the reason, and may be put right.
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn a_guest_waits_for_its_owners_secret() {
    let scene = Scene::new("owner");
    let guest = scene.pause("", "secret=open-sesame");
    let (measurement, claim) = scene.measured();
    claim.verify(&scene.owner.keys.tik, &measurement).expect("the measurement of these files");

    let other = Measurement { mac: [7; 32], ..measurement };
    let refused = scene.inject(&other, "open-sesame", "").with_code(1);
    refused.saying("BAD_MEASUREMENT").saying("another launch");
    for (gpa, why) in [
        ("0xef008", "start at a multiple of 16"),
        ("0xeffe0", "lie in one page"),
        ("0x4000000", "no RAM at 0x4000000"),
        ("0xfffffffffffffff0", "one page"),
    ] {
        scene
            .inject(&measurement, "open-sesame", &format!(" --gpa {gpa}"))
            .with_code(1)
            .saying(why);
    }
    scene.ask("migrate --to tcp:127.0.0.1:1").with_code(10).saying("sevferry continue");
    let report = scene.ask("report").with_code(0);
    assert!(report.out.contains("\"state\":\"LaunchSecret\""), "{report}");
    scene.inject(&measurement, "open-sesame", "").with_code(0).saying("sevferry continue");
    scene.ask("continue").with_code(0).saying("the guest runs");
    let ended = guest.end().with_code(0);
    assert!(ended.out.contains("736869e5-84f0-4973-92ec-06879ce3da0b ok"), "{ended}");
    assert!(ended.out.contains(PASS), "{ended}");
}

/// Nobody has to send a secret; then there is none, and while the guest runs it takes none.
#[test]
#[ignore = "needs KVM: scripts/test kvm_owner"]
fn a_guest_may_run_without_a_secret() {
    let scene = Scene::new("no-secret");
    let mut guest = scene.pause("", "no-secret count=1 then=halt");
    let (measurement, _claim) = scene.measured();
    scene.ask("continue").with_code(0);
    guest.wait_for("no-secret: ok");
    guest.wait_for(PASS);
    let status = scene.status();
    assert_eq!(status.get("state"), Some(&"running".into()), "{status}");
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
