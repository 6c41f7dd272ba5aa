//! guest-firmware as an SEV guest and as a plain VM: what it was told, and what the report says.

use std::time::Duration;

use rustix::process::Signal;
use support::process::{Ended, PASS, Sevferry, asset, own_view, shared_regions};

const SEV: &str = "--platform sev=software --memory size=64M --report=json";
/// Starts guest-firmware with `options` of `sevferry run` and the words of its scenario.
fn firmware(options: &str, words: &str) -> Sevferry {
    let kernel = asset("guest-firmware.elf");
    let guest = ["run", "--kernel", &kernel, "--cmdline", words];
    Sevferry::start(guest.into_iter().chain(options.split_whitespace()))
}

/// Runs a scenario to its end, which must be a pass and a power-off.
#[track_caller]
fn pass(options: &str, words: &str) -> Ended {
    let ended = firmware(options, words).end().with_code(0);
    assert_eq!(ended.out.lines().last(), Some(PASS), "{ended}");
    ended
}

#[track_caller]
fn assert_views_agree(ended: &Ended) {
    let own = own_view(ended);
    assert!(!own.is_empty(), "the guest shares nothing; {ended}");
    assert_eq!(shared_regions(&ended.report()), own, "{ended}");
}

/// Content written before a conversion's hypercall or after it is there afterwards, below 1 MiB too;
/// and the report's regions are those of the guest's page tables.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn conversions_keep_contents_and_the_report_agrees_with_the_page_tables() {
    let ended = pass(
        SEV,
        "ready fill=16M+64:1 in-place-share=16M+64:2 check=16M+64:2 in-place-private=16M+32:3
         check=16M+32:3 share=24M+16 fill=24M+16:4 check=24M+16:4 share=0x40000+4
         in-place-share=0x50000+3:5 check=0x50000+3:5 storm=32M+2000:6,1500 private=24M+2 tables",
    );
    assert!(ended.out.starts_with("guest-firmware: start sev=1 "), "{ended}");
    assert_views_agree(&ended);
    let sev = &ended.report()["sev"];
    assert_eq!(sev["migration_ready"], true);
    assert_eq!(sev["measurement_verified"], true);
    assert_eq!(sev["guest"]["state"], "Running");
    let pages = sev["shared_pages"].as_u64().unwrap() + sev["private_pages"].as_u64().unwrap();
    assert_eq!(pages, 64 << 8);
}

/// RAM above the hole below 4 GiB is RAM like any other.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn memory_above_4_gib_is_shared_and_encrypted_as_well() {
    let ended = pass(
        "--platform sev=software --memory size=5G --report=json",
        "fill=5G+8:1 share=4G+16 fill=4G+16:2 check=4G+16:2 check=5G+8:1 in-place-share=5G+8:3
         check=5G+8:3 share=3G+8 tables",
    );
    let (three, four, five) = (3 << 18, 4 << 18, 5 << 18);
    let beyond_hole = vec![(four, four + 16), (five, five + 8)];
    assert_eq!(own_view(&ended), beyond_hole, "the hole from {three:#x} on is no RAM; {ended}");
    assert_views_agree(&ended);
}

/// Four processors convert at once, and each finds what it wrote.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn four_processors_convert_at_once() {
    let options = format!("{SEV} --cpus boot=4");
    let ended = pass(&options, "storm-smp=16M+6000:1,400 tables");
    assert!(ended.out.contains("cpus: up=4 of=4"), "{ended}");
    assert_eq!(ended.out.matches("storm: cpu=").count(), 4, "{ended}");
    assert_views_agree(&ended);
}

/// The same firmware finds no SEV in a plain VM, where all else works.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn a_plain_vm_has_no_sev() {
    let options = "--memory size=64M --cpus boot=2 --report=json";
    let words = "ready fill=16M+8:1 check=16M+8:1 hypercall=16M,1,0 storm-smp=16M+200:1,50";
    let ended = pass(options, words);
    for line in ["guest-firmware: start sev=0 c_bit=0", "ready: skipped", "hypercall: skipped"] {
        assert!(ended.out.contains(line), "{ended}");
    }
    assert!(ended.report()["sev"].is_null(), "{ended}");
    assert!(!ended.err.contains("launch"), "{ended}");
}

/// A port is read and written as wide, and as often, as the instruction says, in a plain VM and in an SEV
/// guest: string instructions too, and wide accesses to the serial port.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn every_port_access_has_its_size_and_count() {
    for options in [SEV, "--memory 64M"] {
        assert!(pass(options, "ports").out.contains("ports: ok"));
    }
}

/// What KVM cannot emulate ends the guest, and is told by name, with the instruction.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn an_instruction_that_kvm_cannot_emulate_is_named() {
    let ended = firmware("--memory 64M", "unemulated").end().with_code(1);
    let ended = ended.saying("left the guest with KVM_INTERNAL_ERROR_EMULATION");
    // fld dword ptr [a register]
    ended.saying("KVM cannot emulate the instruction d9 0");
}

/// A hypercall that is nonsense gets its error, is counted if it reached us, and changes nothing.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn every_bad_hypercall_gets_its_error() {
    /// RAM is 64 MiB, frames 0 to 0x4000.
    const CALLS: [(&str, i64); 15] = [
        ("hypercall=4M,0,0", -22),
        ("hypercall=4M,0x10000000000000,0", -22),
        ("hypercall=4M,0x10000000000000,0x10", -22),
        ("hypercall=4M,1,0x20", -22),
        ("hypercall=4M,1,0x8000000000000000", -22),
        ("hypercall=4M,1,3", -22),
        ("hypercall=0x400001,1,0", -22),
        ("hypercall=0x400800,1,0", -22),
        ("hypercall=4M,0xffffffffffffffff,0", -22),
        ("hypercall=0xfffffffffffff000,1,0", -22),
        ("hypercall-cpl3=4M,1,0", -1),
        // Not bad: firmware reports device memory too. Only RAM is recorded.
        ("hypercall=0x3ffe000,4,0", 0),
        ("hypercall=0x3fff000,2,0x10", 0),
        ("hypercall=4G,16,0", 0),
        ("hypercall=4M,1,1", 0),
    ];
    let words = CALLS.map(|(call, _)| call).join(" ");
    let ended = pass(SEV, &format!("fill=4M+1:1 {words} hypercall=4M,1,0x10:0 check=4M+1:1"));
    let answers: Vec<i64> = ended
        .out
        .lines()
        .filter_map(|line| line.strip_prefix("hypercall: ")?.split_once("ret=")?.1.parse().ok())
        .collect();
    assert_eq!(answers[..CALLS.len()], CALLS.map(|(_, ret)| ret), "{ended}");
    let report = ended.report();
    // KVM itself refuses 0 pages, unaligned addresses, sums that wrap, and ring 3.
    assert_eq!(report["sev"]["hypercalls"]["refused"], 6, "{ended}");
    assert_eq!(report["sev"]["hypercalls"]["clipped"], 3, "{ended}");
    assert_eq!(shared_regions(&report), [(0x3ffe, 0x3fff)], "{ended}");
}

/// A million conversions cost the host no memory.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn a_million_alternating_conversions_need_no_more_memory() {
    const ANON_GROWTH_KIB: u64 = 256;
    let scenario = "ready alternate=16M+1000*2 count=1 alternate=16M+1000*2000 then=halt";
    // On an emulated host, with another test beside it, it took 100 s.
    let mut sevferry = firmware(SEV, scenario).within(Duration::from_secs(400));
    sevferry.wait_for("count: 1");
    let (anon, mappings) = (sevferry.memory_kib("RssAnon"), sevferry.mappings());
    sevferry.wait_for("conversions=1000000 ");
    sevferry.wait_for(PASS);
    let (anon_after, mappings_after) = (sevferry.memory_kib("RssAnon"), sevferry.mappings());
    sevferry.signal(Signal::TERM);
    let report = sevferry.end().with_code(0).report();
    assert!(anon_after <= anon + ANON_GROWTH_KIB, "{anon} KiB before, {anon_after} KiB after");
    assert!(mappings_after <= mappings, "{mappings} mappings before, {mappings_after} after");
    let calls = &report["sev"]["hypercalls"];
    assert_eq!((&calls["shared"], &calls["private"]), (&500_500.into(), &500_500.into()));
    assert_eq!(report["sev"]["record"], "region list");
    assert_eq!(shared_regions(&report), []);
}

/// A guest that makes more regions than the list may hold, 512 at this size: a bitmap takes over,
/// which knows each of them.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn a_list_that_overflows_becomes_a_bitmap() {
    let scenario = "ready alternate=16M+1200*1 tables";
    let ended = pass(SEV, scenario);
    let report = ended.report();
    assert_eq!(report["sev"]["record"], "bitmap");
    assert_eq!(report["sev"]["migration_ready"], true);
    assert_eq!(report["sev"]["shared_pages"], 600);
    assert_views_agree(&ended);
}

/// Or the record is lost: the guest runs on and notices nothing, but cannot migrate, and the report
/// says why.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn a_list_that_overflows_can_be_given_up() {
    let options = SEV.replace("sev=software", "sev=software,overflow=poison");
    let ended = pass(&options, "ready alternate=16M+1200*1 storm=32M+500:1,300 share=48M+8");
    let sev = &ended.report()["sev"];
    assert_eq!(sev["record"], "poisoned region list");
    assert_eq!(sev["migration_ready"], false);
    let reason = sev["not_migratable"].as_str().expect("a reason");
    assert!(reason.contains("more than 512 shared regions"), "{reason}");
    assert!(reason.contains("overflow=poison"), "{reason}");
    assert!(sev["shared_regions_frames"].is_null(), "a stale list is worse than none");
    assert!(sev["shared_pages"].is_null(), "{ended}");
}

/// A guest that withdraws its readiness cannot migrate.
#[test]
#[ignore = "needs KVM: scripts/test kvm_firmware"]
fn readiness_can_be_withdrawn() {
    let never = pass(SEV, "share=16M+1").report();
    assert_eq!(never["sev"]["migration_ready"], false);
    let withdrawn = pass(SEV, "ready share=16M+1 unready").report();
    assert_eq!(withdrawn["sev"]["migration_ready"], false);
    let reasons = [&never, &withdrawn].map(|report| report["sev"]["not_migratable"].to_string());
    assert!(reasons.iter().all(|reason| reason.contains("ready")), "{reasons:?}");
    let again = pass(SEV, "ready unready ready").report();
    assert_eq!(again["sev"]["migration_ready"], true);
}
