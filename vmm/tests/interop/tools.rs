//! Runs the tools of guest owners, `sevctl` and `virt-qemu-sev-validate`, on sevferry's files, and sevferry's
//! platform on theirs. `scripts/interop-tools` gets them.

#![expect(clippy::panic, reason = "a test whose program cannot be run fails")]

mod platform;

use std::env;
use std::ffi::OsStr;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::fs::{read, read_to_string, write};
use std::path::PathBuf;
use std::process::{Command, Output};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use platform::{Guest, Host};
use sevferry::sev::Policy;
use sevferry::sev::launch::{Measured, SealedSecret};
use sevferry::sev::packet::PacketHeader;
use sevferry::sev::software::Identity;
use vmm_sys_util::tempdir::TempDir;
use zerocopy::{FromBytes, IntoBytes};

/// The program that an environment variable names.
fn program(variable: &str) -> PathBuf {
    let path = env::var_os(variable);
    path.unwrap_or_else(|| panic!("{variable} is not set: run this through scripts/test interop"))
        .into()
}

/// A directory of the guest owner's, a host with an identity, and its certificates as files.
struct Scene {
    directory: TempDir,
    host: Host,
}

impl Scene {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let identity = Identity::load_or_create(&directory.as_path().join("identity"));
        let host = Host::new(identity.expect("an identity"));
        let scene = Self { directory, host };
        let platform = format!("sev=software,identity={}", scene.text("identity"));
        scene
            .run(
                "SEVFERRY_BIN",
                ["certificates", "--platform", &platform, "--out", &scene.text("certs")],
            )
            .succeeded();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.as_path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Runs a program in the directory.
    fn run<S: AsRef<OsStr>>(&self, variable: &str, arguments: impl IntoIterator<Item = S>) -> Ran {
        let mut command = Command::new(program(variable));
        command.args(arguments).current_dir(self.directory.as_path());
        Ran(command.output().unwrap_or_else(|cause| panic!("starting {command:?}: {cause}")))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        read(self.path(name)).unwrap_or_else(|cause| panic!("reading {name}: {cause}"))
    }

    fn decoded(&self, name: &str) -> Vec<u8> {
        let text = read_to_string(self.path(name)).expect("text");
        BASE64_STANDARD.decode(text.trim()).expect("base64")
    }

    /// What `sevctl session` makes for this host, and a guest launched with it.
    fn launch_with_sevctl(&self, policy: Policy, data: &[u8]) -> (Guest, [u8; 32]) {
        let policy_number = policy.bits().to_string();
        self.run("SEVFERRY_SEVCTL", ["session", "--name", "vm", "certs/pdh.cert", &policy_number])
            .succeeded();
        let files = (self.decoded("vm_godh.b64"), self.decoded("vm_session.b64"));
        let guest = self.host.start(policy, (&files.0, &files.1)).expect("sevctl's session");
        let digest = guest.load(data);
        (guest, digest)
    }

    /// What both tools ask for beside the measurement.
    fn version(&self) -> [String; 3] {
        let version = self.host.version();
        [version.major, version.minor, version.build].map(|number| number.to_string())
    }

    fn secret(&self, name: &str) {
        write(self.path(name), "open sesame").expect("a file");
    }
}

/// How a program ended.
struct Ran(Output);

impl Ran {
    #[track_caller]
    fn succeeded(self) -> String {
        assert!(self.0.status.success(), "{self}");
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    #[track_caller]
    fn failed(self) {
        assert!(!self.0.status.success(), "{self}");
    }
}

impl Display for Ran {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Output { status, stdout, stderr } = &self.0;
        let text = |bytes| String::from_utf8_lossy(bytes);
        write!(f, "it ended with {status}: {}{}", text(stdout), text(stderr))
    }
}

fn in_base64(measured: &Measured) -> String {
    BASE64_STANDARD.encode(measured.measurement().to_bytes())
}

fn packet(header: &[u8], ciphertext: Vec<u8>) -> SealedSecret {
    SealedSecret::new(
        PacketHeader::read_from_bytes(header).expect("a header of 52 bytes"),
        ciphertext,
    )
}

/// `sevctl verify` finds every link of our chain good, and finds the one that is not.
#[test]
#[ignore = "needs sevctl: scripts/test interop"]
fn sevctl_verifies_our_chain() {
    let scene = Scene::new();
    let verify =
        |sev: &str, ca: &str| scene.run("SEVFERRY_SEVCTL", ["verify", "--sev", sev, "--ca", ca]);
    let said = verify("certs/sev.chain", "certs/ca.chain").succeeded();
    assert!(said.contains("PDH E"), "{said}");
    let other = Host::ephemeral().certificates().to_bytes();
    let mut mixed = scene.bytes("certs/sev.chain");
    mixed.splice(..2084, other.into_iter().take(2084));
    write(scene.path("mixed.chain"), mixed).expect("a file");
    verify("mixed.chain", "certs/ca.chain").failed();
    // Without ours, it looks for AMD's.
    scene.run("SEVFERRY_SEVCTL", ["verify", "--sev", "certs/sev.chain"]).failed();
}

/// `sevctl session` starts our guest, `sevctl measurement build` computes what our platform measured,
/// and what `sevctl secret build` makes is taken.
#[test]
#[ignore = "needs sevctl: scripts/test interop"]
fn sevctl_owns_a_guest() {
    let scene = Scene::new();
    for policy in [0x21, 0x29].map(|bits| Policy::new(bits).expect("a policy")) {
        let (guest, digest) = scene.launch_with_sevctl(policy, &[9; 8192]);
        let page = guest.page(100);
        let measured = guest.launching.measure().expect("a measurement");
        let said = in_base64(&measured);
        let [major, minor, build] = scene.version();
        let measure = |digest: &[u8]| {
            let (policy, digest) = (policy.bits().to_string(), BASE64_STANDARD.encode(digest));
            let launch = ["measurement", "build", "--tik", "vm_tik.bin", "--policy", &policy];
            let version = ["--api-major", &major, "--api-minor", &minor, "--build-id", &build];
            let what = ["--launch-digest", &digest, "--launch-measure-blob", &said];
            scene.run("SEVFERRY_SEVCTL", [&launch[..], &version, &what].concat()).succeeded()
        };
        assert_eq!(measure(&digest).trim(), said);
        assert_ne!(measure(&[0; 32]).trim(), said);
        scene.secret("password");
        let keys = ["secret", "build", "--tik", "vm_tik.bin", "--tek", "vm_tek.bin"];
        let what = ["--launch-measure-blob", &said, "--secret"];
        let which = ["736869e5-84f0-4973-92ec-06879ce3da0b:password", "header", "payload"];
        scene.run("SEVFERRY_SEVCTL", [&keys[..], &what, &which].concat()).succeeded();
        let secret = packet(&scene.bytes("header"), scene.bytes("payload"));
        measured.inject_secret(page, &secret).expect("sevctl's secret");
    }
}

/// `sevctl validate` finds that our platform's PEK signed an attestation report, and no other's did.
#[test]
#[ignore = "needs sevctl: scripts/test interop"]
fn sevctl_validates_an_attestation_report() {
    let scene = Scene::new();
    let (guest, _digest) = scene.launch_with_sevctl(Policy::default(), &[9; 4096]);
    let launched = guest.launching.measure().and_then(Measured::finish).expect("a launch");
    let report = launched.attestation_report([3; 16]).expect("a report");
    write(scene.path("report"), report.as_bytes()).expect("a file");
    let validate = |chain| scene.run("SEVFERRY_SEVCTL", ["validate", chain, "report"]);
    validate("certs/sev.chain").succeeded();
    let other = Host::ephemeral().certificates().to_bytes();
    write(scene.path("other.chain"), other).expect("a file");
    validate("other.chain").failed();
}

/// `virt-qemu-sev-validate` takes the launch data that `sevferry digest` writes for its "firmware", finds
/// that our platform measured just that, and seals a secret that is taken. Kernel and initramfs by
/// themselves it cannot check: it knows them only as hashes in a table of OVMF's.
#[test]
#[ignore = "needs virt-qemu-sev-validate: scripts/test interop"]
fn virt_qemu_sev_validate_owns_a_guest() {
    let scene = Scene::new();
    let kernel = program("SEVFERRY_FIRMWARE");
    let kernel = kernel.display().to_string();
    let digest = ["digest", "--kernel", &kernel, "--cmdline", "ready", "--memory", "size=64M"];
    let to = ["--c-bit", "47", "--launch-data", "launch.data"];
    let printed = scene.run("SEVFERRY_BIN", [&digest[..], &to].concat()).succeeded();
    let policy = Policy::default();
    let (guest, digest) = scene.launch_with_sevctl(policy, &scene.bytes("launch.data"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(printed.contains(&hex), "{printed}");
    let page = guest.page(1000);
    let measured = guest.launching.measure().expect("a measurement");
    let said = in_base64(&measured);
    let [major, minor, build] = scene.version();
    let policy = policy.bits().to_string();
    scene.secret("password");
    let validate = |firmware: &str| {
        let launch = ["--measurement", &said, "--policy", &policy, "--firmware", firmware];
        let version = ["--api-major", &major, "--api-minor", &minor, "--build-id", &build];
        let keys = ["--tik", "vm_tik.bin", "--tek", "vm_tek.bin"];
        let secret = ["--inject-secret", "luks-key:password"];
        let to = ["--secret-header", "header.b64", "--secret-payload", "payload.b64"];
        scene.run("SEVFERRY_SEV_VALIDATE", [&launch[..], &version, &keys, &secret, &to].concat())
    };
    validate("launch.data").succeeded();
    let secret = packet(&scene.decoded("header.b64"), scene.decoded("payload.b64"));
    measured.inject_secret(page, &secret).expect("its secret");
    write(scene.path("other.data"), [1; 4096]).expect("a file");
    validate("other.data").failed();
}
