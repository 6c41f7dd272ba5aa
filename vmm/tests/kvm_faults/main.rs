//! Every step of a migration times every fault, between two real processes: afterwards exactly one
//! guest runs, or `resolve` decides; its memory is right; and a new migration works.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what a test waits for in vain fails it")]
#![expect(clippy::indexing_slicing, reason = "lengths are checked where they are made")]

mod hosts;
mod relay;
mod steps;
mod strangers;
mod tape;

use std::fs::{remove_file, write};

use rustix::process::Signal;
use sevferry::control::api::{Request, Resolution, Response, State};
use sevferry::migration::wire::Kind;

use hosts::{Hosts, Migration, Vmm};
use steps::{STEPS, Stage, Step};

/// The steps at which a fault leaves the guest where it is, in order: one guest goes through all of
/// them, and so each attempt shows that the step at which the one before it broke works again.
fn steps_before_commit() -> impl Iterator<Item = Step> {
    STEPS.into_iter().filter(|step| matches!(step.stage, Stage::Arriving | Stage::Prepared))
}

/// The others: they end with the guest elsewhere.
fn steps_from_commit() -> impl Iterator<Item = Step> {
    STEPS.into_iter().filter(|step| matches!(step.stage, Stage::Committed | Stage::Owned))
}

/// Two hosts and a migration that stands still at `step`.
fn stopped_at(step: Step) -> (Hosts, Vmm, Vmm, Migration) {
    let (hosts, a, b) = Hosts::with_guest();
    let migration = hosts.migrate_up_to(step, &a);
    (hosts, a, b, migration)
}

/// The guest of `b` goes back to where it came from.
fn goes_back(hosts: &Hosts, b: Vmm) {
    b.has(State::Running);
    hosts.tape.goes_on();
    let a = hosts.receive("a");
    hosts.moves(b, &a);
}

/// What a destination does after an attempt that broke before the commit.
fn is_left_by(step: Step, b: &Vmm) {
    // What has arrived whole waits for its source's word, and hears it by the next offer.
    b.has(if step.stage == Stage::Arriving { State::Waiting } else { State::InDoubt });
}

/// Quitting is refused while a process may hold the only copy of the guest.
fn does_not_quit(vmm: &Vmm) {
    vmm.has(State::InDoubt);
    vmm.process.signal(Signal::TERM);
    let refused = vmm.ask(&Request::Quit);
    assert!(matches!(refused, Response::Refused { .. }), "{refused:?}");
}

/// A connection that is reset costs an attempt before the commit, and nothing after it.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn connections_are_reset() {
    let (hosts, a, b) = Hosts::with_guest();
    for step in steps_before_commit() {
        let migration = hosts.migrate_up_to(step, &a);
        hosts.wire.cut();
        migration.was_kept();
        a.has(State::Running);
        hosts.tape.goes_on();
        is_left_by(step, &b);
    }
    hosts.moves(a, &b);
    for step in steps_from_commit() {
        let (hosts, a, b, migration) = stopped_at(step);
        hosts.wire.cut();
        migration.moved();
        a.process.end().with_code(0);
        goes_back(&hosts, b);
    }
}

/// A wire on which nothing comes any more ends the attempt before the commit; after it both hosts
/// wait until the wire is whole again, and cannot be made to end by mistake.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn connections_stall() {
    let (hosts, a, b) = Hosts::with_impatient_guest();
    for step in steps_before_commit() {
        let migration = hosts.migrate_up_to(step, &a);
        migration.was_kept();
        a.has(State::Running);
        hosts.tape.goes_on();
        is_left_by(step, &b);
        // What was said then arrives now, and must not count.
        hosts.wire.release();
    }
    hosts.moves(a, &b);
    for step in steps_from_commit() {
        let (hosts, a, b) = Hosts::with_impatient_guest();
        let migration = hosts.migrate_up_to(step, &a);
        does_not_quit(&a);
        if step.stage == Stage::Committed {
            does_not_quit(&b);
        }
        hosts.wire.release();
        migration.moved();
        a.process.end().with_code(0).saying("`sevferry resolve` decides");
        goes_back(&hosts, b);
    }
}

/// A connection that is stuck for ever, and not broken, is replaced by another after the commit.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn connections_are_stuck() {
    for step in steps_from_commit() {
        let (hosts, a, b) = Hosts::with_impatient_guest();
        let migration = hosts.migrate_up_to(step, &a);
        hosts.wire.strand();
        migration.moved();
        a.process.end().with_code(0);
        b.has(State::Running);
        hosts.tape.goes_on();
    }
}

/// A destination that is killed costs an attempt before the commit, and after it as long as it does
/// not run the guest: the restarted one finds in its journal that it never did. If it ran there, and
/// died there, a person decides at the source.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn destinations_are_killed() {
    let (hosts, a, mut b) = Hosts::with_guest();
    for step in steps_before_commit() {
        let migration = hosts.migrate_up_to(step, &a);
        b.kill(&hosts.wire);
        migration.was_kept();
        a.has(State::Running);
        hosts.tape.goes_on();
        b = hosts.receive("b");
    }
    hosts.moves(a, &b);
    for step in steps_from_commit() {
        let (hosts, mut a, b, migration) = stopped_at(step);
        b.kill(&hosts.wire);
        a.has(State::InDoubt);
        let mut b = hosts.receive("b");
        if step.stage == Stage::Committed {
            b.process.wait_for("could not keep the guest, and never ran it");
            migration.was_kept();
            hosts.tape.goes_on();
        } else {
            // It ran there, and died there.
            b.process.wait_for("owned the guest and has crashed since");
            a.resolve(Resolution::Discard);
            migration.moved();
            a.process.end().with_code(0);
            a = hosts.run("a");
        }
        hosts.moves(a, &b);
    }
}

/// A source that is killed takes its guest with it before the commit; after it the destination has
/// the guest, and hears of it from whoever starts with the source's journal.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn sources_are_killed() {
    let (hosts, mut a, b) = Hosts::with_guest();
    for step in steps_before_commit() {
        drop(hosts.migrate_up_to(step, &a));
        a.kill(&hosts.wire);
        is_left_by(step, &b);
        if step.stage == Stage::Prepared {
            b.resolve(Resolution::Discard);
            b.has(State::Waiting);
        }
        a = hosts.run("a");
    }
    hosts.moves(a, &b);
    for step in steps_from_commit() {
        let (hosts, a, b, migration) = stopped_at(step);
        drop(migration);
        a.kill(&hosts.wire);
        if step.stage == Stage::Committed {
            b.has(State::InDoubt);
            let mut a = hosts.receive_again("a", "and its process here is gone");
            a.process.wait_for("runs at tcp:");
            b.has(State::Running);
            hosts.tape.goes_on();
            hosts.moves(b, &a);
        } else {
            goes_back(&hosts, b);
        }
    }
}

/// A source whose journal cannot be written keeps its guest; once it is committed, only the last
/// line is missing.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn journals_of_sources_fail() {
    let (hosts, a, b) = Hosts::with_guest();
    for step in steps_before_commit() {
        let migration = hosts.migrate_up_to(step, &a);
        a.limit_files(true);
        hosts.wire.release();
        let reason = migration.was_kept();
        assert!(reason.contains("journal could not be written"), "{reason}");
        hosts.tape.goes_on();
        b.has(State::Waiting);
        a.limit_files(false);
    }
    hosts.moves(a, &b);
    for step in steps_from_commit() {
        let (hosts, a, b, migration) = stopped_at(step);
        a.limit_files(true);
        hosts.wire.release();
        migration.moved();
        a.process.end().with_code(0);
        goes_back(&hosts, b);
    }
}

/// A source that finds no room for its journal offers nothing; nor does one whose journal's directory
/// is another's. (Where the file system cannot reserve room the commit fails, as above.)
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn a_source_without_room_offers_nothing() {
    let (hosts, a, b) = Hosts::with_guest();
    a.limit_files(true);
    let refused = hosts.try_to_migrate(&a);
    let Response::Refused { reason } = &refused else { panic!("{refused:?}") };
    assert!(reason.contains("reserving room for the journal"), "{reason}");
    b.has(State::Waiting);
    a.limit_files(false);
    hosts.moves(a, &b);
}

/// A migration that nothing disturbs leaves no journal, at either host.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn what_is_settled_leaves_no_journal() {
    let (hosts, a, b) = Hosts::with_guest();
    hosts.moves(a, &b);
    hosts.wait_for_no_journals();
}

/// A destination whose journal cannot be written does not run the guest, and gives it back.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn journals_of_destinations_fail() {
    for step in STEPS {
        let (hosts, a, b, migration) = stopped_at(step);
        b.limit_files(true);
        hosts.wire.release();
        if step.message == Kind::Offer {
            // The guest's memory is a file too, and has not been made yet.
            let reason = migration.was_kept();
            assert!(reason.contains("File too large"), "{reason}");
            b.limit_files(false);
            hosts.moves(a, &b);
            continue;
        }
        if step.stage != Stage::Owned {
            let reason = migration.was_kept();
            assert!(reason.contains("could not keep the guest, and never ran it"), "{reason}");
            a.has(State::Running);
            hosts.tape.goes_on();
            b.has(State::Waiting);
            b.limit_files(false);
            hosts.moves(a, &b);
            hosts.wait_for_no_journals();
            continue;
        }
        migration.moved();
        a.process.end().with_code(0);
        b.limit_files(false);
        goes_back(&hosts, b);
    }
}

/// Each command of a transfer, and the times it is issued that differ: first, or in the middle.
const COMMANDS_OF_SOURCES: [&str; 4] =
    ["SEND_START:1", "SEND_START:2", "SEND_UPDATE_DATA:1", "SEND_UPDATE_DATA:300"];
const COMMANDS_OF_DESTINATIONS: [&str; 4] =
    ["RECEIVE_START:1", "RECEIVE_UPDATE_DATA:1", "RECEIVE_UPDATE_DATA:300", "RECEIVE_FINISH:1"];

fn failing(failure: &str) -> String {
    format!("sev=software,fail={failure}")
}

/// The name of the command in what a migration's end says.
#[track_caller]
fn assert_names(reason: &str, failure: &str) {
    let (command, _) = failure.split_once(':').unwrap();
    assert!(reason.contains(command) && reason.contains("HW_PLATFORM"), "{reason}");
}

/// A firmware that fails at the source costs the attempt, and nothing once the guest is committed.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn firmware_of_sources_fails() {
    for failure in COMMANDS_OF_SOURCES {
        let hosts = Hosts::new();
        let (b, a) = (hosts.receive("b"), hosts.run_on("a", &failing(failure)));
        assert_names(&hosts.migrate(&a).was_kept(), failure);
        hosts.tape.goes_on();
        b.has(State::Waiting);
        hosts.moves(a, &b);
    }
    let hosts = Hosts::new();
    let (b, a) = (hosts.receive("b"), hosts.run_on("a", &failing("SEND_FINISH:1")));
    hosts.migrate(&a).moved();
    a.process.end().with_code(0).saying("SEND_FINISH");
    goes_back(&hosts, b);
}

/// A firmware that fails at the destination costs the attempt, and the source says why; also if the
/// source's firmware then fails to cancel, once.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn firmware_of_destinations_fails() {
    for failure in COMMANDS_OF_DESTINATIONS {
        let hosts = Hosts::new();
        let broken = hosts.receive_on("b", &failing(failure));
        let mut a = hosts.run_on("a", &failing("SEND_CANCEL:1"));
        assert_names(&hosts.migrate(&a).was_kept(), failure);
        a.process.wait_for("trying once more");
        hosts.tape.goes_on();
        broken.has(State::Waiting);
        broken.process.signal(Signal::TERM);
        broken.process.end().with_code(0);
        let b = hosts.receive("b");
        hosts.moves(a, &b);
    }
}

/// What a destination cannot write down is refused at its offer, and it goes on waiting.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn a_journal_that_cannot_be_opened_refuses_the_guest() {
    let hosts = Hosts::new();
    let b = hosts.receive("b");
    let a = hosts.run("a");
    write(hosts.journal("b"), "in the way").unwrap();
    let reason = hosts.migrate(&a).was_kept();
    assert!(reason.contains("without its journal"), "{reason}");
    b.has(State::Waiting);
    remove_file(hosts.journal("b")).unwrap();
    hosts.moves(a, &b);
}

/// A cancel is heard at the destination, which says so in the source's words.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn a_cancel_is_heard_at_the_destination() {
    let (hosts, a, mut b, migration) = stopped_at(STEPS[5]);
    hosts.wire.release();
    assert_eq!(a.ask(&Request::Cancel), Response::Accepted);
    let reason = migration.was_kept();
    assert!(reason.contains("the user cancelled it"), "{reason}");
    b.process.wait_for("sevferry: the source gave up: cancelled: the user cancelled it");
    hosts.tape.goes_on();
    hosts.moves(a, &b);
}

/// Who decides at the destination that the guest runs there ends the doubt at both: a source that
/// then says its commit again is told so.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn a_person_decides_at_the_destination() {
    let commit = STEPS.into_iter().find(|step| step.stage == Stage::Committed).unwrap();
    let (hosts, a, b, migration) = stopped_at(commit);
    b.has(State::InDoubt);
    // The rule: the source's journal says `committed` and its process is gone.
    drop(migration);
    a.kill(&hosts.wire);
    b.resolve(Resolution::Keep);
    b.has(State::Running);
    hosts.tape.goes_on();
    let mut a = hosts.receive("a");
    a.process.wait_for("runs at tcp:");
    hosts.moves(b, &a);
}
