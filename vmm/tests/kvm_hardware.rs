//! The hardware platform's own code, end to end: launch, run, and migration between two chips.
//!
//! Where there is no SEV hardware the chips are not there: `scripts/epyc` answers their ioctls.

use std::fs::{read, write};
use std::path::PathBuf;

use sevferry::sev::certificate::Certificate;
use support::owner::GuestOwner;
use support::process::{Ended, PASS, Sevferry, asset, shared_regions};

/// A host: a chip, the files of its processes, and whether its KVM has a type of VM for SEV guests
/// (Linux 6.10), if it is not there.
struct Host(&'static str, VmTypes);

#[derive(Clone, Copy)]
enum VmTypes {
    Old,
    New,
}

impl Host {
    fn path(&self, what: &str) -> PathBuf {
        std::env::temp_dir().join(format!("kvm_hardware-{}-{what}", self.0))
    }

    fn text(&self, what: &str) -> String {
        self.path(what).display().to_string()
    }

    /// `sev=hardware` with the certificates of this chip: a file that the user has for a real one.
    fn platform(&self) -> String {
        let keys = self.text("chip");
        match std::env::var("SEVFERRY_CEK") {
            Ok(cek) => format!("sev=hardware,cek_cert_file={cek}"),
            Err(_) => format!(
                "sev=hardware,cek_cert_file={keys}/cek.cert,ask_ark_file={keys}/ask_ark.cert"
            ),
        }
    }

    fn start(&self, arguments: &[&str]) -> Sevferry {
        self.start_with(("SEVFERRY_EPYC_PROCESSOR", ""), arguments)
    }

    /// The same, of a chip or kernel of another kind, if it is not there.
    fn start_with(&self, kind: (&str, &str), arguments: &[&str]) -> Sevferry {
        let types = match self.1 {
            VmTypes::Old => "no",
            VmTypes::New => "yes",
        };
        let chip = self.text("chip");
        let variables = [("SEVFERRY_EPYC", chip.as_str()), ("SEVFERRY_EPYC_VM_TYPES", types), kind];
        Sevferry::start_with_environment(arguments, &variables)
    }

    /// Boots guest-firmware here.
    fn run(&self, platform: &str, words: &str) -> Sevferry {
        let (kernel, api) = (asset("guest-firmware.elf"), self.text("api"));
        let guest = ["--kernel", &kernel, "--cmdline", words, "--memory", "size=20M"];
        let own = ["run", "--platform", platform, "--api-socket", &api, "--report=json"];
        self.start(&[own.as_slice(), &guest].concat())
    }

    /// Waits here for a guest.
    fn receive(&self, platform: &str) -> Sevferry {
        let (listen, api) = (format!("unix:{}", self.text("listen")), self.text("api"));
        let own = ["receive", "--listen", &listen, "--platform", platform];
        let mut host =
            self.start(&[own.as_slice(), &["--api-socket", &api, "--report=json"]].concat());
        host.wait_for("waiting for a guest");
        host
    }

    fn migrate(&self, to: &Self) -> Ended {
        let (api, to) = (self.text("api"), format!("unix:{}", to.text("listen")));
        self.start(&["migrate", "--api-socket", &api, "--to", &to]).end()
    }
}

/// The guest's verdict on its own contents.
#[track_caller]
fn assert_passed(ended: &Ended) {
    assert_eq!(ended.out.lines().last(), Some(PASS), "{ended}");
}

/// `check` finds all that this host needs for SEV hardware, and how SEV will be turned on.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hardware"]
fn a_host_with_sev_is_recognised() {
    for (types, command) in [(VmTypes::Old, "(KVM_SEV_INIT)"), (VmTypes::New, "(KVM_SEV_INIT2)")] {
        let host = Host("check", types);
        let ended = host.start(&["check", "--platform", "sev=hardware"]).end().with_code(0);
        assert!(ended.out.contains("It can run SEV guests on hardware"), "{ended}");
        assert!(ended.out.contains("guests at once"), "{ended}");
        // A real kernel has it or has not.
        let is_real = std::env::var("SEVFERRY_CEK").is_ok();
        assert!(is_real || ended.out.contains(command), "{ended}");
    }
}

/// Milan has its C-bit above all address bits: `check` finds nothing wrong, a guest is launched, measured and
/// given its vCPUs, and would be taken by another Milan. It is not run: its page tables need a processor that
/// has such a bit.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hardware"]
fn a_guest_is_launched_and_would_be_taken_on_milan() {
    const MILAN: (&str, &str) = ("SEVFERRY_EPYC_PROCESSOR", "milan");
    if std::env::var("SEVFERRY_CEK").is_ok() {
        // A real chip is what it is.
        return;
    }
    let (a, b) = (Host("milan-a", VmTypes::New), Host("milan-b", VmTypes::Old));
    let ended = a.start_with(MILAN, &["check", "--platform", "sev=hardware"]).end().with_code(0);
    assert!(ended.out.contains("C-bit 51; 509 guests at once"), "{ended}");
    b.start_with(MILAN, &["check", "--platform", "sev=hardware"]).end().with_code(0);

    let (kernel, api, platform) = (asset("guest-firmware.elf"), a.text("api"), a.platform());
    let guest = ["--kernel", &kernel, "--memory=size=20M", "--cmdline=ready"];
    let options = ["run", "--paused", "--platform", &platform, "--api-socket", &api];
    let mut paused = a.start_with(MILAN, &[options.as_slice(), &guest].concat());
    paused.wait_for("sevferry: paused");

    let (listen, platform) = (format!("unix:{}", b.text("listen")), b.platform());
    let receive = ["receive", "--listen", &listen, "--platform", &platform];
    let mut destination = b.start_with(MILAN, &receive);
    destination.wait_for("waiting for a guest");
    let platform = a.platform();
    let ask = ["check", "--to", &listen, "--platform", &platform, "--memory", "size=20M"];
    let ended = a.start_with(MILAN, &ask).end().with_code(0);
    // Milan's guests stay among those that have the same bit.
    let elsewhere = a.start(&ask).end().with_code(3);
    assert!(elsewhere.out.contains("C-bit"), "{ended} {elsewhere}");
    a.start(&["quit", "--api-socket", &api]).end().with_code(0);
    let ended = paused.end().with_code(0).saying("C-bit 51");
    assert!(ended.to_string().contains("(verified)"), "{ended}");
}

/// A host that is initialised for SEV-SNP is warned, and its guests run all the same.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hardware"]
fn a_host_that_is_initialised_for_snp_is_warned() {
    let host = Host("snp", VmTypes::New);
    let check = ["check", "--platform", "sev=hardware"];
    let warned = host.start_with(("SEVFERRY_EPYC_SNP", "yes"), &check).end().with_code(0);
    let is_real = std::env::var("SEVFERRY_CEK").is_ok();
    assert!(is_real || warned.out.contains("kvm_amd.sev_snp=0"), "{warned}");
}

/// Launched and measured by the hardware platform, the guest finds its private and its shared memory
/// as it left them, and its page tables agree with the list.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hardware"]
fn a_guest_is_launched_and_runs() {
    let host = Host("run", VmTypes::New);
    let words = "share=4M+64 fill=4M+64:7 fill=8M+400:9 in-place-share=12M+32:5 check=4M+64:7 \
         check=8M+400:9 check=12M+32:5 tables";
    let ended = host.run("sev=hardware", words).end().with_code(0).saying("launch measurement");
    assert_passed(&ended);
    let tables = ended.out.lines().filter(|line| line.starts_with("map: shared ")).count();
    assert_eq!(shared_regions(&ended.report()).len(), tables, "{ended}");
}

/// Where the policy lets the host debug, the guest's page tables are read by `DBG_DECRYPT`, and a page
/// that it reported shared by mistake is found.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hardware"]
fn a_guest_that_may_be_debugged_is_held_against_its_tables() {
    let host = Host("audit", VmTypes::Old);
    let words = "share=4M+64 hypercall=8M,1,0 count=1000000000";
    let mut guest = host.run("sev=hardware,policy=0x20", words);
    guest.wait_for("count: 1");
    let ask = |request: &str| Sevferry::start([request, "--api-socket", &host.text("api")]).end();
    ask("audit").with_code(1).saying(
        "contradict its reports: 1 pages reported shared are mapped with the C-bit, from 0x800",
    );
    ask("quit").with_code(0);
    guest.end().with_code(0);
}

/// A guest moves from one chip to another, and on to a third, with all its pages: sealed by
/// `SEND_UPDATE_DATA`, opened by `RECEIVE_UPDATE_DATA`, to a chain completed from the files of AMD's key
/// server. Whether KVM turns SEV on by `KVM_SEV_INIT2` or by `KVM_SEV_INIT` is each host's own affair.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hardware"]
fn a_guest_moves_between_two_chips() {
    let (a, b) = (Host("move-a", VmTypes::New), Host("move-b", VmTypes::Old));
    let c = Host("move-c", VmTypes::New);
    let (between, destination) = (b.receive(&b.platform()), c.receive(&c.platform()));
    let words = "ready share=4M+64 fill=4M+64:7 fill=8M+400:9 in-place-share=12M+32:5 count=24000 \
         storm=14M+800:3,1500 check=4M+64:7 check=8M+400:9 check=12M+32:5 tables";
    let mut source = a.run(&a.platform(), words);
    source.wait_for("count: 1");
    let moved = a.migrate(&b).with_code(0);
    assert!(moved.out.contains("moved: the guest runs at the destination"), "{moved}");
    source.end().with_code(0);
    b.migrate(&c).with_code(0);
    between.end().with_code(0);
    let destination = destination.end().with_code(0);
    assert_passed(&destination);
    let tables = destination.out.lines().filter(|line| line.starts_with("map: shared ")).count();
    assert_eq!(shared_regions(&destination.report()).len(), tables, "{destination}");
}

/// What a guest has just written arrives as it was written, by a source that writes back all caches before the
/// last round: `docs/hardware.md` says where that may be needed.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hardware"]
fn what_a_guest_has_just_written_arrives() {
    let (a, b) = (Host("fresh-a", VmTypes::New), Host("fresh-b", VmTypes::New));
    let destination = b.receive(&b.platform());
    let platform = format!("{},write_back=last-round", a.platform());
    let mut source = a.run(&platform, "ready share=4M+16 fresh=8M+16:60000");
    source.wait_for("fresh: 0x800000+16 begins");
    a.migrate(&b).with_code(0);
    let source = source.end().with_code(0);
    let is_real = std::env::var("SEVFERRY_CEK").is_ok();
    assert!(is_real || source.err.contains("epyc: caches written back"), "{source}");
    let destination = destination.end().with_code(0);
    assert!(destination.out.contains("fresh: 0x800000+16 passes=60000 ok"), "{destination}");
    assert_passed(&destination);
}

/// Without the signed CEK, and to the software platform, a guest stays where it is and runs on.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hardware"]
fn a_guest_without_certificates_stays() {
    let (a, b, software) = (
        Host("stay-a", VmTypes::Old),
        Host("stay-b", VmTypes::New),
        Host("stay-software", VmTypes::Old),
    );
    let destination = b.receive("sev=hardware");
    let mut source = a.run(&a.platform(), "ready fill=8M+40:9 count=12000 check=8M+40:9");
    source.wait_for("count: 1");
    let refused = a.migrate(&b).with_code(10);
    assert!(refused.out.contains("cek_cert_file="), "{refused}");
    drop(destination);
    let destination = software.receive("sev=software");
    let refused = a.migrate(&software).with_code(10);
    assert!(refused.out.contains("and software receives here"), "{refused}");
    drop(destination);
    assert_passed(&source.end().with_code(0));
}

/// The chip's owner's part is the same as the software platform's: its certificates, a session with it,
/// the measurement, and a secret that the guest finds.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hardware"]
fn a_guest_on_a_chip_has_an_owner() {
    let host = Host("owner", VmTypes::Old);
    let file = |name: &str, bytes: &[u8]| {
        write(host.path(name), bytes).expect("a file of our own");
        host.text(name)
    };
    let (platform, api) = (host.platform(), host.text("api"));
    let ask = |request: &[&str]| host.start(&[request, &["--api-socket", &api]].concat()).end();
    // A chip that is not there has its files once something has asked it.
    host.start(&["check", "--platform", "sev=hardware"]).end().with_code(0);
    let export = ["certificates", "--platform", &platform, "--out", &host.text("certs")];
    host.start(&export).end().with_code(0);
    let pdh = read(host.path("certs").join("pdh.cert")).expect("it was written");
    let owner = GuestOwner::new(&Certificate::decode(&pdh).expect("a certificate"));
    let [certificate, session] = owner.files();
    let (dh, session) = (file("dh", certificate.as_bytes()), file("session", session.as_bytes()));
    let platform = format!("sev=hardware,dh_cert_file={dh},session_file={session}");
    let kernel = asset("guest-firmware.elf");
    let guest = ["--kernel", &kernel, "--memory=size=20M", "--cmdline=secret=open-sesame"];
    let options = ["run", "--paused", "--platform", &platform, "--api-socket", &api];
    let mut running = host.start(&[options.as_slice(), &guest].concat());
    running.wait_for("sevferry: paused");
    let status = ask(&["status", "--json"]).with_code(0).out;
    let measurement = owner.verified(&serde_json::from_str(&status).expect("JSON"));
    let [header, secret] = owner.seal(&measurement, "open-sesame");
    let (header, secret) = (file("header", &header), file("secret", &secret));
    ask(&["inject-secret", "--header", &header, "--secret", &secret]).with_code(0);
    ask(&["continue"]).with_code(0);
    assert_passed(&running.end().with_code(0));
}
