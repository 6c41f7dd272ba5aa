//! The record of page status in the designs other than the list: what a guest sees of them, what happens to a guest
//! that lies, and that each moves with its guest.

use support::process::{Ended, PASS, Sevferry, asset, shared_regions};

fn firmware(status: &str, options: &str, words: &str) -> Sevferry {
    let (kernel, platform) = (asset("guest-firmware.elf"), format!("sev=software,status={status}"));
    let own = ["run", "--kernel", &kernel, "--cmdline", words, "--platform", &platform];
    let sizes = ["--memory", "size=64M", "--report=json"];
    Sevferry::start(own.into_iter().chain(sizes).chain(options.split_whitespace()))
}

#[track_caller]
fn pass(status: &str, options: &str, words: &str) -> Ended {
    let ended = firmware(status, options, words).end().with_code(0);
    assert_eq!(ended.out.lines().last(), Some(PASS), "{ended}");
    ended
}

/// The report's regions are those of the guest's own page tables.
#[track_caller]
fn assert_views_agree(ended: &Ended) {
    let frame = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let runs = ended.out.lines().filter_map(|line| line.strip_prefix("map: shared "));
    let runs = runs.map(|run| {
        let (base, limit) = run.split_once("..")?;
        Some((frame(base)?, frame(limit)?))
    });
    let own: Vec<_> = runs.collect::<Option<_>>().expect("map: shared BASE..LIMIT");
    assert!(!own.is_empty(), "the guest shares nothing; {ended}");
    assert_eq!(shared_regions(&ended.report()), own, "{ended}");
}

/// A bitmap from the start, whatever the guest shares.
#[test]
#[ignore = "needs KVM: scripts/test kvm_status"]
fn a_bitmap_keeps_the_record_from_the_start() {
    let ended = pass("bitmap", "", "ready share=24M+16 alternate=16M+1200*1 tables");
    assert_eq!(ended.report()["sev"]["record"], "bitmap");
    // A bit per page, and a word for the blocks of 16 MiB.
    assert_eq!(ended.report()["sev"]["record_bytes"], (64 << 20) / 32_768 + 8);
    assert_views_agree(&ended);
}

/// A guest keeps the record itself, on several processors at once too, and the host reads it there.
#[test]
#[ignore = "needs KVM: scripts/test kvm_status"]
fn a_guest_keeps_the_record_in_its_own_table() {
    let words =
        "ready share=24M+16 donate=16M alternate=28M+1200*1 storm-smp=32M+2000:1,200 tables";
    let ended = pass("donated", "--cpus boot=2", words);
    let sev = &ended.report()["sev"];
    assert_eq!((&sev["record"], &sev["migration_ready"]), (&"donated table".into(), &true.into()));
    assert!(sev["record_bytes"].as_u64().is_some_and(|bytes| bytes < 256), "{ended}");
    assert_views_agree(&ended);
}

/// A guest that should keep the record and does not, or that reports what its table does not say,
/// runs on; the report says why it cannot move. A new table heals it.
#[test]
#[ignore = "needs KVM: scripts/test kvm_status"]
fn a_guest_without_a_right_table_is_not_migratable() {
    let reason = |words| {
        let sev = pass("donated", "", words).report()["sev"].clone();
        assert!(sev["shared_pages"].is_null(), "{sev}");
        sev["not_migratable"].as_str().expect("a reason").to_owned()
    };
    let none = reason("ready share=24M+16 fill=24M+16:1 check=24M+16:1");
    assert!(none.contains("donated no table"), "{none}");
    let lie = reason("ready donate=16M hypercall=24M,1,0 share=28M+1");
    assert!(lie.contains("reported frame 0x1800 shared while its own table"), "{lie}");
    let took_back = reason("ready donate=16M hypercall=16M,1,0x10");
    assert!(took_back.contains("took back frame 0x1000 of the table"), "{took_back}");
    let healed =
        pass("donated", "", "ready donate=16M hypercall=24M,1,0 hypercall=24M,1,0x10 donate=20M");
    assert_eq!(healed.report()["sev"]["migration_ready"], true, "{healed}");
}

/// What a guest writes into a register that it was not offered is a fault.
#[test]
#[ignore = "needs KVM: scripts/test kvm_status"]
fn a_guest_that_was_not_asked_has_no_table_register() {
    let ended = firmware("list", "", "ready donate=16M").end().with_code(0);
    assert!(ended.out.contains("exception: vector=13 "), "{ended}");
}

/// The record moves with the guest, in whatever design: the guest goes on, and the regions there are
/// those of its page tables, changes after the move included.
#[test]
#[ignore = "needs KVM: scripts/test kvm_status"]
fn each_design_moves_with_its_guest() {
    for status in ["list", "bitmap", "donated"] {
        let path = |what: &str| {
            std::env::temp_dir().join(format!("kvm_status-{status}-{what}")).display().to_string()
        };
        let (api, listen) = (path("api"), format!("unix:{}", path("listen")));
        let journals = ["a", "b"].map(path);
        let receive = ["receive", "--listen", &listen, "--platform", "sev=software"];
        let more = ["--journal", &journals[1], "--report=json"];
        let mut destination = Sevferry::start(receive.into_iter().chain(more));
        destination.wait_for("waiting for a guest");
        let donate = if status == "donated" { "donate=12M" } else { "" };
        let words = format!(
            "ready share=4M+64 fill=4M+64:7 {donate} count=12000 storm=14M+800:3,300 check=4M+64:7 \
             private=4M+8 share=16M+3 tables"
        );
        let kernel = asset("guest-firmware.elf");
        let platform = format!("sev=software,status={status}");
        let run = ["run", "--kernel", &kernel, "--cmdline", &words, "--memory", "size=20M"];
        let more = ["--platform", &platform, "--api-socket", &api, "--journal", &journals[0]];
        let mut source = Sevferry::start(run.into_iter().chain(more));
        source.wait_for("count: 1");
        Sevferry::start(["migrate", "--api-socket", &api, "--to", &listen]).end().with_code(0);
        source.end().with_code(0);
        let ended = destination.end().with_code(0);
        assert_eq!(ended.out.lines().last(), Some(PASS), "{status}: {ended}");
        let record = match status {
            "list" => "region list",
            "bitmap" => "bitmap",
            _ => "donated table",
        };
        assert_eq!(ended.report()["sev"]["record"], record, "{ended}");
        assert_views_agree(&ended);
    }
}
