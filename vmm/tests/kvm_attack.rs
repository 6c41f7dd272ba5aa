//! Guests that attack the record of page status: how much they can make the host allocate and print, whether status,
//! quit and migrate still work, and what is left of the record.

use std::io::{PipeWriter, Write, pipe};
use std::time::{Duration, Instant};

use serde_json::{Value, from_str};
use support::process::{Ended, PASS, Sevferry, asset, own_view, shared_regions};
use support::scratch::Scratch;

/// How long the storm of the first test goes on.
const STORM: Duration = Duration::from_secs(60);

/// How long a storm may take to come.
const STORM_COMES: Duration = Duration::from_secs(120);

/// What a storm may make the process hold beside the record itself.
const GROWTH_KIB: u64 = 1024;

/// What `sevferry` may print while a guest storms.
const LOG_BYTES: usize = 4096;

/// Four processors that convert pages all over half of RAM until a byte arrives.
const STORM_WORDS: &str = "ready count=1 storm-smp=16M+8192:1,input tables";

/// A process with a guest in it, or one that waits for a guest, and the guest's console.
struct Host {
    sevferry: Sevferry,
    console: PipeWriter,
    api: String,
}

impl Host {
    fn start(scratch: &Scratch, name: &str, status: &str, arguments: &[&str]) -> Self {
        let (input, console) = pipe().expect("a pipe");
        let (api, journal) = (scratch.path(name), scratch.path(&format!("{name}-journal")));
        let platform = format!("sev=software{status}");
        let own = ["--api-socket", &api, "--journal", &journal, "--platform", &platform];
        let arguments = arguments.iter().copied().chain(own).chain(["--report=json"]);
        let sevferry = Sevferry::start_with_input(arguments, input.into());
        Self { sevferry, console, api }
    }

    fn run(scratch: &Scratch, status: &str, words: &str) -> Self {
        let kernel = asset("guest-firmware.elf");
        let run = ["run", "--kernel", &kernel, "--cmdline", words];
        let sizes = ["--memory", "size=64M", "--cpus", "boot=4"];
        Self::start(scratch, "source", status, &[&run[..], &sizes].concat())
    }

    fn receive(scratch: &Scratch, listen: &str) -> Self {
        let mut host = Self::start(scratch, "destination", "", &["receive", "--listen", listen]);
        host.sevferry.wait_for("waiting for a guest");
        host
    }

    fn ask(&self, request: &str) -> String {
        let asked = [request, "--api-socket", &self.api];
        Sevferry::start(asked).end().with_code(0).out
    }

    fn hypercalls(&self) -> u64 {
        let report: Value = from_str(&self.ask("report")).expect("JSON");
        let of = |kind| report.pointer(&format!("/sev/hypercalls/{kind}")).and_then(Value::as_u64);
        of("shared").zip(of("private")).map(|(shared, private)| shared + private).expect("counters")
    }

    /// Waits until the storm is on.
    fn wait_for_storm(&mut self) {
        self.sevferry.wait_for("count: 1");
        let deadline = Instant::now() + STORM_COMES;
        while self.hypercalls() < 2000 {
            assert!(Instant::now() < deadline, "no storm within {STORM_COMES:?}");
        }
    }

    fn migrate(&self, to: &str, options: &str) -> Ended {
        let asked = ["migrate", "--api-socket", &self.api, "--to", to];
        Sevferry::start(asked.into_iter().chain(options.split_whitespace())).end()
    }

    /// What the process holds of its own, guest RAM aside.
    fn memory_kib(&self) -> u64 {
        self.sevferry.memory_kib("RssAnon")
    }

    fn press_a_key(&mut self) {
        self.console.write_all(b"x").expect("the guest's console");
    }
}

/// The guest's own page tables and the report are of one mind, and the guest found all its contents.
#[track_caller]
fn assert_storm_ended_well(ended: &Ended) {
    assert_eq!(ended.out.lines().last(), Some(PASS), "{ended}");
    // Their own lines may be written into each other: four processors share a slow port.
    assert!(ended.out.contains("cpus: up=4 of=4"), "{ended}");
    assert_eq!(shared_regions(&ended.report()), own_view(ended));
    let said: usize = ended.err.lines().filter(|line| !line.starts_with('{')).map(str::len).sum();
    assert!(said < LOG_BYTES, "{said} bytes on standard error; {ended}");
}

/// Four processors in a storm of hypercalls for a minute: the process holds little more than the
/// record, which is as large as it is said to be; it answers all the while, and prints next to nothing.
#[test]
#[ignore = "needs KVM: scripts/test kvm_attack"]
fn a_storm_of_hypercalls_costs_the_record_and_no_more() {
    let scratch = Scratch::new("storm");
    let mut guest = Host::run(&scratch, "", STORM_WORDS);
    guest.wait_for_storm();
    let (begun, calls, before) = (Instant::now(), guest.hypercalls(), guest.memory_kib());
    let mut answers = 0;
    while begun.elapsed() < STORM {
        assert!(guest.ask("status").contains("guest: running"), "no status");
        answers += 1;
    }
    let (after, calls) = (guest.memory_kib(), guest.hypercalls() - calls);
    // 64 MiB may have 512 regions; beyond them it is a bitmap.
    let status = guest.ask("status");
    assert!(status.contains("record: bitmap, 2056 bytes"), "{status}");
    assert!(after <= before + GROWTH_KIB + 2, "{before} KiB, then {after} KiB");
    eprintln!(
        "{calls} hypercalls and {answers} answers in {} s; {before} KiB before, {after} KiB after",
        begun.elapsed().as_secs()
    );
    guest.press_a_key();
    assert_storm_ended_well(&guest.sevferry.end().with_code(0));
}

/// The same while it is moved: what does not fit into the time is given up if that is wanted, and the
/// storm goes on; else the guest is stopped, moved with all its contents, and storms on there.
#[test]
#[ignore = "needs KVM: scripts/test kvm_attack"]
fn a_storm_is_given_up_or_stopped_and_moved_as_configured() {
    let scratch = Scratch::new("storm-moved");
    let listen = format!("unix:{}", scratch.path("listen"));
    let mut source = Host::run(&scratch, "", STORM_WORDS);
    source.wait_for_storm();
    let first = Host::receive(&scratch, &listen);
    let before = source.memory_kib();
    let goal = "--connections 1 --downtime-ms 10";
    let failed = source.migrate(&listen, &format!("{goal} --timeout-s 8")).with_code(10);
    assert!(failed.out.contains("choose to stop the guest at the timeout"), "{failed}");
    drop(first);
    let calls = source.hypercalls();
    while source.hypercalls() == calls {}
    let given_up = source.memory_kib();
    let mut destination = Host::receive(&scratch, &listen);
    let stop = format!("{goal} --timeout-s 8 --timeout-strategy stop");
    let moved = source.migrate(&listen, &stop).with_code(0);
    eprintln!("{before} KiB before, {given_up} KiB after what was given up; then {}", moved.out);
    assert!(given_up <= before + GROWTH_KIB, "{before} KiB, then {given_up} KiB");
    source.sevferry.end().with_code(0);
    let calls = destination.hypercalls();
    while destination.hypercalls() == calls {}
    destination.press_a_key();
    assert_storm_ended_well(&destination.sevferry.end().with_code(0));
}

/// Ending a guest is as fast in a storm as ever.
#[test]
#[ignore = "needs KVM: scripts/test kvm_attack"]
fn a_storm_can_be_ended_at_once() {
    let scratch = Scratch::new("storm-ended");
    let mut guest = Host::run(&scratch, "", STORM_WORDS);
    guest.wait_for_storm();
    guest.ask("quit");
    let within = guest.sevferry.within(Duration::from_secs(10));
    within.end().with_code(0);
}

/// A list that overflows becomes a bitmap, says so, and moves with its guest.
#[test]
#[ignore = "needs KVM: scripts/test kvm_attack"]
fn a_promoted_list_is_seen_and_moves() {
    let scratch = Scratch::new("promoted");
    let listen = format!("unix:{}", scratch.path("listen"));
    let words =
        "ready share=4M+64 fill=4M+64:7 input alternate=16M+1200*1 input check=4M+64:7 tables";
    let mut source = Host::run(&scratch, ",status=list", words);
    source.sevferry.wait_for("input: waiting");
    assert!(source.ask("status").contains("record: region list, "));
    source.press_a_key();
    source.sevferry.wait_for("input: waiting");
    let status = source.ask("status");
    assert!(status.contains("; can be migrated\nrecord: bitmap, 2056 bytes"), "{status}");
    let mut destination = Host::receive(&scratch, &listen);
    source.migrate(&listen, "").with_code(0);
    source.sevferry.end().with_code(0);
    assert!(destination.ask("status").contains("record: bitmap, 2056 bytes"));
    destination.press_a_key();
    let ended = destination.sevferry.end().with_code(0);
    assert_eq!(ended.out.lines().last(), Some(PASS), "{ended}");
    assert_eq!(shared_regions(&ended.report()), own_view(&ended));
}

/// A list that may not become a bitmap is lost: the guest runs on, and says why it cannot be moved,
/// in the middle of a migration too. Once it is reset all is well.
#[test]
#[ignore = "needs KVM: scripts/test kvm_attack"]
fn a_poisoned_list_keeps_its_guest_here_until_it_is_reset() {
    let scratch = Scratch::new("poisoned");
    let listen = format!("unix:{}", scratch.path("listen"));
    let words =
        "ready share=4M+64 fill=4M+64:7 input alternate=16M+1200*1 input check=4M+64:7 then=reboot";
    let mut source = Host::run(&scratch, ",status=list,overflow=poison", words);
    source.sevferry.wait_for("input: waiting");
    assert!(source.ask("status").contains("; can be migrated\nrecord: region list, "));
    let destination = Host::receive(&scratch, &listen);
    let migrate = ["migrate", "--api-socket", &source.api, "--to", &listen];
    let mut migration = Sevferry::start(migrate);
    migration.wait_for("round 1");
    source.press_a_key();
    let why =
        "the record of shared pages is incomplete: the guest made more than 512 shared regions";
    let failed = migration.end().with_code(10);
    assert!(failed.out.contains(why), "{failed}");
    drop(destination);
    source.sevferry.wait_for("input: waiting");
    let status = source.ask("status");
    assert!(status.contains("status unknown; cannot be migrated now: ") && status.contains(why));
    assert!(status.contains("record: poisoned region list, 0 bytes"), "{status}");
    let refused = source.migrate(&listen, "").with_code(10);
    assert!(refused.out.contains(why), "{refused}");
    source.press_a_key();
    source.sevferry.wait_for(PASS);
    source.sevferry.wait_for("input: waiting");
    let mut destination = Host::receive(&scratch, &listen);
    source.migrate(&listen, "").with_code(0);
    source.sevferry.end().with_code(0);
    assert!(destination.ask("status").contains("; can be migrated\nrecord: region list, "));
    destination.press_a_key();
    destination.sevferry.wait_for("alternate: ");
    destination.ask("quit");
    destination.sevferry.end().with_code(0);
}

/// A guest that takes its readiness back in the middle of a round stays, at once, and goes when it is
/// ready again.
#[test]
#[ignore = "needs KVM: scripts/test kvm_attack"]
fn a_guest_that_withdraws_stays_until_it_is_ready_again() {
    let scratch = Scratch::new("withdrawn");
    let listen = format!("unix:{}", scratch.path("listen"));
    let words = "ready share=24M+16 input unready input ready input tables";
    let mut source = Host::run(&scratch, "", words);
    source.sevferry.wait_for("input: waiting");
    let destination = Host::receive(&scratch, &listen);
    let mut migration = Sevferry::start(["migrate", "--api-socket", &source.api, "--to", &listen]);
    migration.wait_for("round 1");
    source.press_a_key();
    let why = "the guest has withdrawn its readiness";
    let failed = migration.end().with_code(10);
    assert!(failed.out.contains(why) && !failed.out.contains("round 2"), "{failed}");
    drop(destination);
    source.sevferry.wait_for("input: waiting");
    assert!(source.ask("status").contains(&format!("cannot be migrated now: {why}")));
    source.press_a_key();
    source.sevferry.wait_for("input: waiting");
    let mut destination = Host::receive(&scratch, &listen);
    source.migrate(&listen, "").with_code(0);
    source.sevferry.end().with_code(0);
    destination.press_a_key();
    let ended = destination.sevferry.end().with_code(0);
    assert_eq!(ended.out.lines().last(), Some(PASS), "{ended}");
    assert_eq!(shared_regions(&ended.report()), own_view(&ended));
}

/// What a guest's page tables contradict is found where its policy lets them be read, keeps it from
/// being moved, and is forgotten once it is put right.
#[test]
#[ignore = "needs KVM: scripts/test kvm_attack"]
fn a_guest_that_lies_about_its_tables_is_found_out() {
    let scratch = Scratch::new("lies");
    let listen = format!("unix:{}", scratch.path("listen"));
    // A page too many, as Linux had it; then a page that was shared and is said to be private.
    let words = "ready share=24M+16 input hypercall=28M,1,0 input hypercall=28M,1,0x10 \
                 hypercall=24M,2,0x10 input hypercall=24M,2,0 input tables";
    let mut source = Host::run(&scratch, ",policy=0x20", words);
    let next = |source: &mut Host| {
        source.sevferry.wait_for("input: waiting");
        let asked = ["audit", "--api-socket", &source.api];
        Sevferry::start(asked).end()
    };
    let agrees = |audit: Ended| {
        let audit = audit.with_code(0);
        assert!(audit.out.contains("page tables are as it has reported"), "{audit}");
    };
    agrees(next(&mut source));
    source.press_a_key();
    let said = "the guest's page tables contradict its reports: ";
    let too_many = "1 pages reported shared are mapped with the C-bit, from 0x1c00";
    next(&mut source).with_code(1).saying(said).saying(too_many);
    let refused = source.migrate(&listen, "").with_code(10);
    refused.saying(said).saying(too_many);
    let preflight = ["check", "--api-socket", &source.api, "--to", &listen];
    let checked = Sevferry::start(preflight).end().with_code(3);
    assert!(checked.out.contains(too_many) && checked.out.contains("2 reasons"), "{checked}");
    source.press_a_key();
    let too_few = "2 pages mapped without the C-bit were never reported, from 0x1800";
    next(&mut source).with_code(1).saying(said).saying(too_few);
    source.press_a_key();
    agrees(next(&mut source));
    let destination = Host::receive(&scratch, &listen);
    source.migrate(&listen, "").with_code(0);
    source.sevferry.end().with_code(0);
    destination.ask("audit");
    destination.ask("quit");
    destination.sevferry.end().with_code(0);
}

/// The usual policy does not let the host look, which is said; what makes a guest doubtful is said all
/// the same, by its status and before it is sent.
#[test]
#[ignore = "needs KVM: scripts/test kvm_attack"]
fn a_guest_that_cannot_be_audited_can_be_doubted() {
    let scratch = Scratch::new("doubts");
    let listen = format!("unix:{}", scratch.path("listen"));
    // KVM answers a report of no pages itself, and nobody hears of it.
    let words = "ready input share=24M+16 hypercall=28M,0,0:-22 hypercall=28M,1,0x20:-22 \
                 hypercall=28M,1,3:-22 input";
    let mut source = Host::run(&scratch, "", words);
    source.sevferry.wait_for("input: waiting");
    let audit = ["audit", "--api-socket", &source.api];
    Sevferry::start(audit)
        .end()
        .with_code(1)
        .saying("the guest's policy forbids debugging (NODBG)");
    let status = source.ask("status");
    assert!(
        status.contains("\ndoubtful: the guest says that it is ready, and has not"),
        "{status}"
    );
    source.press_a_key();
    source.sevferry.wait_for("input: waiting");
    let status = source.ask("status");
    let doubt = "2 of the guest's reports were refused";
    assert!(status.contains(&format!("\ndoubtful: {doubt}")), "{status}");
    let destination = Host::receive(&scratch, &listen);
    source.migrate(&listen, "").with_code(0);
    source.sevferry.end().with_code(0).saying(&format!("may arrive damaged: {doubt}"));
    destination.ask("quit");
    destination.sevferry.end().with_code(0);
}
