//! Debian's kernels, unchanged, as SEV guests and as plain VMs: what they say of themselves, and what
//! the report says of them.
#![expect(clippy::indexing_slicing, reason = "an absent member of a report is null, not a panic")]

use rustix::process::Signal;
use support::process::{Ended, Sevferry, asset, kernels, shared_regions};

const ACTIVE: &str = "Memory Encryption Features active: AMD SEV";

/// A guest to boot.
struct Guest<'a> {
    kernel: &'a str,
    vcpus: u32,
    memory: &'a str,
    /// Words of its command line: see scripts/guest/init.
    cmdline: &'a str,
}

impl Guest<'_> {
    /// The options that decide what is measured, for `run` and `digest`.
    fn options(&self) -> Vec<String> {
        let Guest { kernel, vcpus, memory, cmdline } = self;
        // A panic must end the test, not hang it.
        let cmdline = format!("console=ttyS0 quiet panic=-1 {cmdline}");
        let options = ["--kernel", kernel, "--initramfs", &asset("guest.cpio.gz")];
        let sizes = [format!("--cpus=boot={vcpus}"), format!("--memory=size={memory}")];
        let sizes = sizes.into_iter().chain([format!("--cmdline={cmdline}")]);
        options.into_iter().map(str::to_owned).chain(sizes).collect()
    }

    fn run(&self, options: &str) -> Sevferry {
        let run = ["run", "--report=json"].into_iter().chain(options.split_whitespace());
        Sevferry::start(run.map(str::to_owned).chain(self.options()))
    }

    /// Runs it to its end, which must be a power-off or a reset.
    #[track_caller]
    fn boot(&self, options: &str) -> Ended {
        self.run(options).end().with_code(0)
    }

    /// What `sevferry digest` makes of the same files.
    #[track_caller]
    fn digest(&self, c_bit: u64) -> String {
        let digest = ["digest".to_owned(), format!("--c-bit={c_bit}")];
        let ended = Sevferry::start(digest.into_iter().chain(self.options())).end().with_code(0);
        let digest = ended.out.lines().find_map(|line| line.strip_prefix("launch digest: "));
        digest.expect("a line with the digest").to_owned()
    }
}

/// The values of a fact that the guest's init printed.
fn facts<'a>(ended: &'a Ended, name: &str) -> Vec<&'a str> {
    let facts =
        ended.out.lines().filter_map(|line| line.split_once("sevferry-guest: ")?.1.split_once('='));
    facts.filter(|(fact, _)| *fact == name).map(|(_, value)| value).collect()
}

/// What the kernel's own page tables leave unencrypted, in frames.
fn own_view(ended: &Ended) -> Vec<(u64, u64)> {
    let frame = |text: &str| Some(u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()? >> 12);
    let ranges = facts(ended, "shared").into_iter().map(|range| {
        let (start, end) = range.split_once('-')?;
        Some((frame(start)?, frame(end)?))
    });
    ranges.collect::<Option<_>>().expect("shared=0xSTART-0xEND")
}

/// What every SEV guest shows when it has come up and powered off.
#[track_caller]
fn assert_encrypted(guest: &Guest<'_>, ended: &Ended) {
    assert_eq!(facts(ended, "sev"), [ACTIVE], "{ended}");
    assert_eq!(facts(ended, "cpus"), [guest.vcpus.to_string()], "{ended}");
    assert_eq!(facts(ended, "warnings"), ["0"], "{ended}");
    assert_eq!(facts(ended, "clocksource"), ["kvm-clock"], "{ended}");
    let report = ended.report();
    let sev = &report["sev"];
    let own = own_view(ended);
    // Swiotlb alone is thousands of pages.
    assert!(own.iter().map(|(base, limit)| limit - base).sum::<u64>() > 1000, "{ended}");
    assert_eq!(shared_regions(&report), own, "{ended}");
    assert_eq!(sev["migration_ready"], true, "{ended}");
    assert_eq!(sev["measurement_verified"], true, "{ended}");
    assert_eq!(sev["hypercalls"]["refused"], 0, "{ended}");
    let digest = guest.digest(sev["c_bit"].as_u64().expect("a number"));
    assert_eq!(sev["launch_digest"], digest, "{ended}");
}

#[track_caller]
fn boot_encrypted(vcpus: u32, memory: &str) -> Vec<Ended> {
    let boot = |kernel: String| {
        let cmdline = "sevferry.dump=page_tables sevferry.then=poweroff";
        let guest = Guest { kernel: &kernel, vcpus, memory, cmdline };
        let ended = guest.boot("--platform=sev=software");
        assert_encrypted(&guest, &ended);
        ended
    };
    kernels().into_iter().map(boot).collect()
}

/// On one vCPU: SEV is active, the regions are those of the guest's page tables, the digest is that
/// of the files.
#[test]
#[ignore = "needs KVM: scripts/test kvm_linux"]
fn debian_comes_up_encrypted_on_one_vcpu() {
    boot_encrypted(1, "256M");
}

/// On four, whose status hypercalls arrive from all of them.
#[test]
#[ignore = "needs KVM: scripts/test kvm_linux"]
fn debian_comes_up_encrypted_on_four_vcpus() {
    boot_encrypted(4, "256M");
}

/// On as many vCPUs as there can be, and with memory above the hole below 4 GiB, where the kernel
/// puts what it allocates first, shared pages too.
#[test]
#[ignore = "needs KVM: scripts/test kvm_linux"]
fn debian_comes_up_encrypted_with_eight_vcpus_and_four_gib() {
    for ended in boot_encrypted(8, "4G") {
        let memory: Vec<u64> =
            facts(&ended, "memory_kib").iter().filter_map(|kib| kib.parse().ok()).collect();
        assert!(matches!(memory[..], [3_500_000..=4_194_304]), "{ended}");
        assert!(own_view(&ended).iter().any(|(base, _)| *base >= 4 << 18), "{ended}");
    }
}

/// The same kernels as plain VMs: no SEV, no hypercalls, nothing launched.
#[test]
#[ignore = "needs KVM: scripts/test kvm_linux"]
fn debian_comes_up_in_a_plain_vm() {
    for kernel in kernels() {
        let cmdline = "sevferry.then=poweroff";
        let guest = Guest { kernel: &kernel, vcpus: 2, memory: "256M", cmdline };
        let ended = guest.boot("");
        assert_eq!(facts(&ended, "sev"), [""], "{ended}");
        assert_eq!(facts(&ended, "cpus_online"), ["0-1"], "{ended}");
        assert_eq!(facts(&ended, "warnings"), ["0"], "{ended}");
        assert!(ended.report()["sev"].is_null(), "{ended}");
        assert!(!ended.err.contains("launch"), "{ended}");
    }
}

/// A guest that reboots is launched anew, from the same files.
#[test]
#[ignore = "needs KVM: scripts/test kvm_linux"]
fn a_reboot_launches_the_same_guest_again() {
    let kernel = kernels().remove(0);
    let cmdline = "sevferry.then=reboot";
    let guest = Guest { kernel: &kernel, vcpus: 1, memory: "256M", cmdline };
    let mut sevferry = guest.run("--platform=sev=software");
    let launched = sevferry.wait_for("launch digest: ");
    sevferry.wait_for("sevferry-guest: ready=");
    assert_eq!(sevferry.wait_for("launch digest: "), launched);
    sevferry.wait_for(ACTIVE);
    sevferry.wait_for("sevferry-guest: ready=");
    sevferry.signal(Signal::TERM);
    sevferry.end().with_code(0);
}

/// Linux withdraws its readiness before it reboots, from whichever vCPU; `--no-reboot` shows it.
#[test]
#[ignore = "needs KVM: scripts/test kvm_linux"]
fn a_reboot_can_be_the_end_and_withdraws_readiness() {
    for kernel in kernels() {
        let cmdline = "sevferry.then=reboot";
        let guest = Guest { kernel: &kernel, vcpus: 2, memory: "256M", cmdline };
        let ended = guest.boot("--platform=sev=software --no-reboot");
        assert_eq!(facts(&ended, "ready").len(), 1, "{ended}");
        let sev = &ended.report()["sev"];
        assert_eq!(sev["migration_ready"], false, "{ended}");
        assert_eq!(sev["guest"]["state"], "Running", "{ended}");
    }
}

/// A kernel that panics says so on its console and resets, which is no crash of the machine.
#[test]
#[ignore = "needs KVM: scripts/test kvm_linux"]
fn a_panic_ends_as_a_reset() {
    let kernel = kernels().remove(0);
    let cmdline = "sevferry.then=crash";
    let guest = Guest { kernel: &kernel, vcpus: 1, memory: "256M", cmdline };
    let ended = guest.boot("--platform=sev=software --no-reboot");
    assert!(ended.out.contains("Kernel panic - not syncing: sysrq triggered crash"), "{ended}");
    assert!(!ended.out.contains("sevferry-guest: failed"), "{ended}");
}
