//! Every step of a migration times every fault, between two real processes: afterwards exactly one
//! guest runs, or `resolve` decides; its memory is right; and a new migration works.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what a test waits for in vain fails it")]
#![expect(clippy::indexing_slicing, reason = "lengths are checked where they are made")]

mod hosts;
mod relay;
#[path = "../vmm/scratch.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod scratch;
mod steps;
mod tape;
#[path = "../vmm/mod.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod vmm;

use rustix::process::Signal;
use sevferry::control::api::{Request, Resolution, Response, State};

use hosts::{Hosts, Vmm};
use steps::{STEPS, Stage, Step};

/// Two hosts and a migration that stands still at `step`.
fn stopped_at(step: Step) -> (Hosts, Vmm, Vmm, hosts::Migration) {
    eprintln!(
        "at {:?}, {:?}",
        step.message,
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
            % 1000
    );
    let hosts = Hosts::new();
    let b = hosts.receive("b");
    let a = hosts.run("a");
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

/// A connection that is reset costs an attempt before the commit, and nothing after it.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn connections_are_reset() {
    for step in STEPS {
        let (hosts, a, b, migration) = stopped_at(step);
        hosts.wire.cut();
        match step.stage {
            Stage::Arriving | Stage::Prepared => {
                migration.was_kept();
                a.has(State::Running);
                hosts.tape.goes_on();
                b.has(if step.stage == Stage::Arriving { State::Waiting } else { State::InDoubt });
                // What waits for its source's word hears it by the next offer.
                hosts.moves(a, &b);
            }
            Stage::Committed | Stage::Owned => {
                migration.moved();
                a.process.end().with_code(0);
                goes_back(&hosts, b);
            }
        }
    }
}

/// A wire on which nothing comes any more ends the attempt before the commit; after it both hosts
/// wait until the wire is whole again, and cannot be made to end by mistake.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn connections_stall() {
    for step in STEPS {
        let (hosts, a, b, migration) = stopped_at(step);
        match step.stage {
            Stage::Arriving | Stage::Prepared => {
                migration.was_kept();
                hosts.tape.goes_on();
                b.has(if step.stage == Stage::Arriving { State::Waiting } else { State::InDoubt });
                // What was said then arrives now, and must not count.
                hosts.wire.release();
                hosts.moves(a, &b);
            }
            Stage::Committed | Stage::Owned => {
                a.has(State::InDoubt);
                a.process.signal(Signal::TERM);
                let refused = a.ask(&Request::Quit);
                assert!(matches!(refused, Response::Refused { .. }), "{refused:?}");
                if step.stage == Stage::Committed {
                    b.has(State::InDoubt);
                    b.process.signal(Signal::TERM);
                    let refused = b.ask(&Request::Quit);
                    assert!(matches!(refused, Response::Refused { .. }), "{refused:?}");
                }
                hosts.wire.release();
                migration.moved();
                a.process.end().with_code(0).saying("`sevferry resolve` decides");
                goes_back(&hosts, b);
            }
        }
    }
}

/// A destination that is killed costs an attempt before the commit; after it a person decides at the
/// source, by what the restarted destination finds in its journal.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn destinations_are_killed() {
    for step in STEPS {
        let (hosts, mut a, b, migration) = stopped_at(step);
        b.kill(&hosts.wire);
        let b = match step.stage {
            Stage::Arriving | Stage::Prepared => {
                migration.was_kept();
                hosts.tape.goes_on();
                hosts.receive("b")
            }
            Stage::Committed => {
                a.has(State::InDoubt);
                let mut b = hosts.receive("b");
                b.process.wait_for("does not know this guest");
                a.resolve(Resolution::Keep);
                migration.was_kept();
                hosts.tape.goes_on();
                b
            }
            // It ran there, and died there.
            Stage::Owned => {
                a.has(State::InDoubt);
                let mut b = hosts.receive("b");
                b.process.wait_for("owned the guest and has crashed since");
                a.resolve(Resolution::Discard);
                migration.moved();
                a.process.end().with_code(0);
                a = hosts.run("a");
                b
            }
        };
        hosts.moves(a, &b);
        b.process.signal(Signal::TERM);
    }
}

/// A source that is killed takes its guest with it before the commit; after it the destination has
/// the guest, and hears of it from whoever starts with the source's journal.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn sources_are_killed() {
    for step in STEPS {
        let (hosts, a, b, migration) = stopped_at(step);
        drop(migration);
        a.kill(&hosts.wire);
        match step.stage {
            Stage::Arriving => b.has(State::Waiting),
            Stage::Prepared => {
                b.has(State::InDoubt);
                b.resolve(Resolution::Discard);
                b.has(State::Waiting);
            }
            Stage::Committed => {
                b.has(State::InDoubt);
                let mut a = hosts.receive("a");
                a.process.wait_for("and its process here is gone");
                a.process.wait_for("runs at tcp:");
                b.has(State::Running);
                hosts.tape.goes_on();
                hosts.moves(b, &a);
                continue;
            }
            Stage::Owned => {
                goes_back(&hosts, b);
                continue;
            }
        }
        let a = hosts.run("a");
        hosts.moves(a, &b);
    }
}

/// A source whose journal cannot be written keeps its guest; once it is committed, only the last
/// line is missing.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn journals_of_sources_fail() {
    for step in STEPS {
        let (hosts, a, b, migration) = stopped_at(step);
        a.limit_files(true);
        hosts.wire.release();
        match step.stage {
            Stage::Arriving | Stage::Prepared => {
                let reason = migration.was_kept();
                assert!(reason.contains("journal could not be written"), "{reason}");
                hosts.tape.goes_on();
                b.has(State::Waiting);
                a.limit_files(false);
                hosts.moves(a, &b);
            }
            Stage::Committed | Stage::Owned => {
                migration.moved();
                a.process.end().with_code(0);
                goes_back(&hosts, b);
            }
        }
    }
}

/// A destination whose journal cannot be written does not run the guest, and does so once it can.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn journals_of_destinations_fail() {
    for step in STEPS {
        let (hosts, mut a, b, migration) = stopped_at(step);
        b.limit_files(true);
        hosts.wire.release();
        if step.stage != Stage::Owned {
            a.process.wait_for("the destination could not write its journal");
            a.has(State::InDoubt);
            b.has(State::InDoubt);
            let refused = b.ask(&Request::Resolve(Resolution::Keep));
            assert!(matches!(refused, Response::Refused { .. }), "{refused:?}");
            b.limit_files(false);
        }
        migration.moved();
        a.process.end().with_code(0);
        b.limit_files(false);
        goes_back(&hosts, b);
    }
}
