//! Live migration between two processes, over loopback: contents, refusals, faults, and the retry.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::process::{Ended, PASS, Sevferry, asset, shared_regions};
use support::unread::Unread;

/// Contents that must survive, then a long while in which to move, then the checks.
const SCENARIO: &str = "ready share=4M+64 fill=4M+64:7 fill=8M+400:9 in-place-share=12M+32:5 count=12000 \
     storm=14M+800:3,1500 check=4M+64:7 check=8M+400:9 check=12M+32:5 ports tables";

/// One migration at a time: the lab has two slow processors, and a guest must not end too early.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A host: its processes' API socket, journal and endpoint have its name in them.
struct Host(&'static str);

impl Host {
    fn path(&self, what: &str) -> String {
        std::env::temp_dir().join(format!("kvm_migrate-{}-{what}", self.0)).display().to_string()
    }

    fn endpoint(&self) -> String {
        format!("unix:{}", self.path("listen"))
    }

    fn run_arguments(&self, words: &str) -> Vec<String> {
        let (kernel, api, journal) =
            (asset("guest-firmware.elf"), self.path("api"), self.path("j"));
        let own = ["run", "--kernel", &kernel, "--cmdline", words, "--memory", "size=20M"];
        let more = ["--api-socket", &api, "--journal", &journal, "--report=json"];
        own.into_iter().chain(more).map(str::to_owned).collect()
    }

    fn receive_arguments(&self) -> Vec<String> {
        let (listen, api, journal) = (self.endpoint(), self.path("api"), self.path("j"));
        let own = ["receive", "--listen", &listen, "--api-socket", &api, "--journal", &journal];
        own.into_iter().chain(["--report=json"]).map(str::to_owned).collect()
    }

    /// Waits until the process here says that this is what it does.
    fn wait_until(&self, state: &str) {
        let (api, deadline) = (self.path("api"), Instant::now() + Duration::from_secs(60));
        loop {
            let status = Sevferry::start(["status", "--json", "--api-socket", &api]).end();
            if status.out.contains(&format!("\"state\":\"{state}\"")) {
                return;
            }
            assert!(Instant::now() < deadline, "not {state}: {status}");
        }
    }

    /// Boots guest-firmware here and waits until it counts.
    fn run(&self, platform: &str, words: &str) -> Sevferry {
        let platform = platform.split_whitespace().map(str::to_owned);
        let mut guest = Sevferry::start(self.run_arguments(words).into_iter().chain(platform));
        guest.wait_for("count: 1");
        guest
    }

    /// Waits here for a guest.
    fn receive(&self, platform: &str) -> Sevferry {
        let platform = platform.split_whitespace().map(str::to_owned);
        let mut host = Sevferry::start(self.receive_arguments().into_iter().chain(platform));
        host.wait_for("waiting for a guest");
        host
    }

    fn start_migrating(&self, to: &Self, options: &str) -> Sevferry {
        let (api, to) = (self.path("api"), to.endpoint());
        let own = ["migrate", "--api-socket", &api, "--to", &to];
        Sevferry::start(own.into_iter().chain(options.split_whitespace()))
    }

    fn check(&self, to: &Self, options: &str) -> Ended {
        let (api, to) = (self.path("api"), to.endpoint());
        let own = ["check", "--api-socket", &api, "--to", &to];
        Sevferry::start(own.into_iter().chain(options.split_whitespace())).end()
    }

    fn migrate(&self, to: &Self) -> Ended {
        self.start_migrating(to, "").end()
    }
}

const SEV: &str = "--platform sev=software";

/// The guest's verdict on its own contents, and its page tables against the region list here.
#[track_caller]
fn assert_passed(ended: &Ended) {
    assert_eq!(ended.out.lines().last(), Some(PASS), "{ended}");
}

/// What the guest printed at both hosts: each count once, in order.
#[track_caller]
fn assert_counted_on(source: &Ended, destination: &Ended, last: u32) {
    let all = format!("{}{}", source.out, destination.out);
    let mut expected = 0;
    for line in all.lines().filter_map(|line| line.strip_prefix("count: ")) {
        expected += 1;
        assert_eq!(line.parse(), Ok(expected), "{source}\n{destination}");
    }
    assert_eq!(expected, last);
}

/// A guest moves between hosts whose messages nobody reads; then it runs there as `status` says, and
/// its process answers, and ends when it is told to.
#[test]
#[ignore = "needs KVM: scripts/test kvm_migrate"]
fn a_move_needs_nobody_who_reads_about_it() {
    let _alone = alone();
    let (a, b) = (Host("unread-a"), Host("unread-b"));
    let with_sev = |arguments: Vec<String>| {
        arguments.into_iter().chain(SEV.split(' ').chain(["--serial=null"]).map(str::to_owned))
    };
    let destination = Unread::start(false, with_sev(b.receive_arguments()));
    let source = Unread::start(false, with_sev(a.run_arguments("ready count=1000000000")));
    for (host, state) in [(&a, "running"), (&b, "waiting")] {
        host.wait_until(state);
    }
    a.migrate(&b).with_code(0);
    assert_eq!(source.end(), Some(0));
    b.wait_until("running");
    let ask = |request| {
        let api = b.path("api");
        Sevferry::start([request, "--api-socket", &api]).end().with_code(0)
    };
    assert!(ask("report").out.contains("launch_digest"));
    ask("quit");
    assert_eq!(destination.end(), Some(0));
}

/// An SEV guest goes on in the middle of a line; its private and shared pages arrive as they were,
/// and the region list here is that of its page tables.
#[test]
#[ignore = "needs KVM: scripts/test kvm_migrate"]
fn an_sev_guest_moves_with_all_its_pages() {
    let _alone = alone();
    let (a, b) = (Host("sev-a"), Host("sev-b"));
    let destination = b.receive(SEV);
    let source = a.run(SEV, SCENARIO);
    let moved = a.migrate(&b).with_code(0);
    assert!(moved.out.contains("moved: the guest runs at the destination"), "{moved}");
    let (source, destination) = (source.end().with_code(0), destination.end().with_code(0));
    assert_passed(&destination);
    assert_counted_on(&source, &destination, 12_000);
    let report = destination.report();
    let tables = destination.out.lines().filter(|line| line.starts_with("map: shared ")).count();
    assert_eq!(shared_regions(&report).len(), tables, "{destination}");
    let launch = report.pointer("/sev/launch_digest").cloned();
    assert!(launch.is_some_and(|digest| digest.is_string()), "{destination}");
}

/// A plain VM takes the same road, over several connections.
#[test]
#[ignore = "needs KVM: scripts/test kvm_migrate"]
fn a_plain_vm_moves_over_three_connections() {
    let _alone = alone();
    let (a, b) = (Host("plain-a"), Host("plain-b"));
    let destination = b.receive("");
    let source = a.run("", "fill=8M+400:9 count=12000 check=8M+400:9");
    let moved = a.start_migrating(&b, "--connections 3").end().with_code(0);
    assert!(moved.out.contains("over 3 connections"), "{moved}");
    let (source, destination) = (source.end().with_code(0), destination.end().with_code(0));
    assert_passed(&destination);
    assert_counted_on(&source, &destination, 12_000);
}

/// A guest that has come can go again: back to the host that it came from.
#[test]
#[ignore = "needs KVM: scripts/test kvm_migrate"]
fn a_guest_moves_there_and_back() {
    let _alone = alone();
    let (a, b, back) = (Host("chain-a"), Host("chain-b"), Host("chain-c"));
    let (there, home) = (b.receive(SEV), back.receive(SEV));
    let source = a.run(SEV, "ready share=4M+64 fill=4M+64:7 count=24000 check=4M+64:7");
    a.migrate(&b).with_code(0);
    source.end().with_code(0);
    b.migrate(&back).with_code(0);
    there.end().with_code(0);
    assert_passed(&home.end().with_code(0));
}

/// A destination that dies in the middle leaves the guest where it was, and the next attempt works.
/// A destination that needs longer to pin the guest's memory than it may be silent says how far it is, and is
/// waited for; the guest runs meanwhile, and moves.
#[test]
#[ignore = "needs KVM: scripts/test kvm_migrate"]
fn memory_that_takes_long_to_pin_is_waited_for() {
    let _alone = alone();
    let (a, b) = (Host("pin-a"), Host("pin-b"));
    // 6 s for 20 MiB, of which a piece of 4 MiB takes 1.2 s.
    let destination = b.receive("--platform sev=software,pin_cost_us=300000");
    let source = a.run(SEV, "ready fill=8M+40:9 count=12000 check=8M+40:9");
    let moved = a.start_migrating(&b, "--silence-s 3").end().with_code(0);
    assert!(moved.to_string().contains("of 20.0 MiB of memory pinned"), "{moved}");
    source.end().with_code(0);
    assert_passed(&destination.end().with_code(0));
}

#[test]
#[ignore = "needs KVM: scripts/test kvm_migrate"]
fn a_destination_that_dies_costs_nothing() {
    let _alone = alone();
    let (a, b) = (Host("die-a"), Host("die-b"));
    let source = a.run(SEV, &SCENARIO.replace("count=12000", "count=24000"));
    let destination = b.receive(SEV);
    let mut migration = a.start_migrating(&b, "");
    migration.wait_for("round 1");
    destination.signal(Signal::KILL);
    let failed = migration.end().with_code(10);
    assert!(failed.out.contains("not moved: the guest runs on here"), "{failed}");
    drop(destination);
    let destination = b.receive(SEV);
    a.migrate(&b).with_code(0);
    source.end().with_code(0);
    assert_passed(&destination.end().with_code(0));
}

/// What cannot work is refused by name before anything moves, and a cancel is heard: the guest runs
/// on each time.
#[test]
#[ignore = "needs KVM: scripts/test kvm_migrate"]
fn a_guest_that_is_not_moved_runs_on() {
    let _alone = alone();
    let (a, plain, b) = (Host("stay-a"), Host("stay-plain"), Host("stay-b"));
    let source = a.run(SEV, &SCENARIO.replace("count=12000", "count=24000"));
    let nobody = a.migrate(&b).with_code(10);
    assert!(nobody.out.contains("is `sevferry receive` running there?"), "{nobody}");

    let without_sev = plain.receive("");
    let refused = a.migrate(&plain).with_code(10);
    assert!(refused.out.contains("the other host refused"), "{refused}");
    drop(without_sev);

    let destination = b.receive(SEV);
    let mut migration = a.start_migrating(&b, "");
    migration.wait_for("round 1");
    let api = a.path("api");
    Sevferry::start(["cancel", "--api-socket", &api]).end().with_code(0);
    migration.end().with_code(10);
    drop(destination);
    let ended = source.end().with_code(0);
    assert_passed(&ended);
}

/// A guest whose policy leaves its destinations unchecked is not sent unless that is allowed.
#[test]
#[ignore = "needs KVM: scripts/test kvm_migrate"]
fn a_weak_policy_is_refused_unless_allowed() {
    let _alone = alone();
    let (a, b) = (Host("weak-a"), Host("weak-b"));
    let destination = b.receive(SEV);
    let source =
        a.run("--platform sev=software,policy=0x1", "ready fill=8M+40:9 count=12000 check=8M+40:9");
    let refused = a.migrate(&b).with_code(10);
    assert!(refused.out.contains("policy bit SEV"), "{refused}");
    a.start_migrating(&b, "--allow-unchecked").end().with_code(0);
    source.end().with_code(0);
    assert_passed(&destination.end().with_code(0));
}

/// `check --to` names every reason of both sides, each time anew, and moves nothing: the guest runs
/// on, and the destination still waits, for the guest that it may have.
#[test]
#[ignore = "needs KVM: scripts/test kvm_migrate"]
fn a_preflight_names_every_reason_and_moves_nothing() {
    let _alone = alone();
    let (a, plain, b) = (Host("ask-a"), Host("ask-plain"), Host("ask-b"));
    let source = a.run(SEV, &SCENARIO.replace("count=12000", "count=24000"));
    let subjects = |checked: &Ended| -> Vec<String> {
        let answer: serde_json::Value = serde_json::from_str(&checked.out).expect("JSON");
        let reasons = answer.pointer("/reasons").and_then(|reasons| reasons.as_array());
        let word = |reason: &serde_json::Value, key| reason.get(key)?.as_str().map(str::to_owned);
        let line = |reason| Some([word(reason, "by")?, word(reason, "subject")?].join(" "));
        reasons.expect("reasons").iter().filter_map(line).collect()
    };
    let nobody = a.check(&b, "").with_code(3);
    assert!(nobody.out.contains("is `sevferry receive` running there?"), "{nobody}");

    let without_sev = plain.receive("");
    assert_eq!(subjects(&a.check(&plain, "--json").with_code(3)), ["destination platform"]);
    drop(without_sev);

    let mut destination = b.receive(SEV);
    for _ in 0..2 {
        let good = a.check(&b, "").with_code(0);
        assert!(good.out.contains("Nothing speaks against"), "{good}");
        destination.wait_for("it would be taken");
    }
    // NODBG, NOSEND and DOMAIN, without SEV; and not ready.
    let strict = Host("ask-strict");
    let policy = "--platform sev=software,policy=0x19";
    let guest = strict.run(policy, "fill=8M+40:9 count=24000");
    let mut expected = vec!["source page status"];
    expected.extend(["source policy"; 3]);
    assert_eq!(subjects(&strict.check(&b, "--json").with_code(3)), expected);
    drop(guest);

    // Guests that are not there yet.
    let ahead = |options: &str| {
        let (to, own) = (b.endpoint(), ["check", "--json", "--to"]);
        let words = own.into_iter().chain([to.as_str()]).chain(options.split_whitespace());
        Sevferry::start(words).end()
    };
    assert!(
        subjects(&ahead("--cpus boot=2 --memory size=64M --platform sev=software").with_code(0))
            .is_empty()
    );
    let weak = ahead("--platform sev=software,policy=0x9").with_code(3);
    assert_eq!(subjects(&weak), ["source policy"; 2], "{weak}");

    a.migrate(&b).with_code(0);
    source.end().with_code(0);
    assert_passed(&destination.end().with_code(0));
    a.check(&b, "").with_code(1).saying("there is no socket");
}
