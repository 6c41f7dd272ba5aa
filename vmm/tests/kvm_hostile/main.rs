//! A hostile source against the real destination, and a hostile destination against the real source
//! (`answers_tests.rs`): every cut and every lie is refused by name.
//!
//! Needs `/dev/kvm` for memory slots and vCPUs, but no guest of a destination runs on them. `docs/hostile-peers.md`
//! has the list of inputs and the reasons why some have no row here.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what a test needs and does not get fails it"
)]

mod answers;
mod answers_tests;
mod bounds;
mod golden;
mod memory;
mod peer;
mod rows;
mod rows_answers;
mod rows_sev;
mod script;
mod source;
mod waits;

use golden::Golden;
use peer::Bench;
use rows::Row;
use script::{Step, cut, length};

/// Tries every row, after which a good stream is accepted; says all rows that were not refused as
/// they should be.
#[track_caller]
fn assert_refused(golden: &Golden, rows: &[Row]) {
    let bench = Bench::new(golden.platform.clone());
    let mut wrong = Vec::new();
    for Row { input, what, steps, said } in rows {
        let outcome = bench.attempt(steps);
        match &outcome.result {
            Ok(_) => wrong.push(format!("{input}, {what}: accepted")),
            Err(cause) if !cause.contains(said) => {
                wrong.push(format!("{input}, {what}: {cause:?} instead of {said:?}"));
            }
            // A source that is still there is told.
            Err(_) if outcome.refusal.is_none() && !is_gone(steps) => {
                wrong.push(format!("{input}, {what}: the source was not told"));
            }
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "of {} rows:\n{}", rows.len(), wrong.join("\n"));
    assert_accepted(golden, &bench);
}

fn is_gone(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step, Step::CloseAll))
}

#[track_caller]
fn assert_accepted(golden: &Golden, bench: &Bench) {
    let outcome = bench.attempt(&golden.script.steps());
    assert_eq!(outcome.result.err(), None);
}

/// The good stream is good: what follows differs from it in one thing each.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn a_good_stream_is_accepted() {
    let golden = golden::plain();
    assert_accepted(golden, &Bench::new(None));
}

/// A source that goes away during the handshake, after whichever byte, leaves nothing here. What
/// follows is cut by a unit test of the migration, which needs no KVM.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn every_cut_of_the_handshake_is_refused() {
    let golden = golden::plain();
    let (bench, steps) = (Bench::new(None), golden.script.steps());
    let start = steps.iter().position(|step| matches!(step, Step::Connect(1))).unwrap();
    for bytes in 0..=length(&steps[..start]) {
        let outcome = bench.attempt(&cut(&steps[..start], bytes));
        assert!(!outcome.refused().is_empty(), "cut after {bytes} bytes");
    }
    assert_accepted(golden, &bench);
}

/// A source that goes away at forty places of the whole stream leaves nothing here either: the next
/// guest is accepted.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn a_source_that_goes_away_leaves_nothing() {
    let golden = golden::plain();
    let (bench, steps) = (Bench::new(None), golden.script.steps());
    for n in 0..=40 {
        let bytes = length(&steps) * n / 41;
        assert!(
            !bench.attempt(&cut(&steps, bytes)).refused().is_empty(),
            "cut after {bytes} bytes"
        );
    }
    assert_accepted(golden, &bench);
}

#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn frames_that_are_none_are_refused() {
    assert_refused(golden::plain(), &rows::of_frames(golden::plain()));
    assert_refused(golden::plain(), &rows::of_connections(golden::plain()));
}

#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn machines_that_are_none_are_refused() {
    assert_refused(golden::plain(), &rows::of_machines(golden::plain()));
}

#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn pages_that_do_not_belong_are_refused() {
    assert_refused(golden::plain(), &rows::of_pages(golden::plain()));
    assert_refused(golden::plain(), &rows::of_rounds(golden::plain()));
}

/// An SEV guest's stream is good as well, and the lies that any guest's stream can hold are refused.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hostile"]
fn pages_of_an_sev_guest_that_do_not_belong_are_refused() {
    let golden = golden::sev();
    assert_refused(golden, &rows::of_pages(golden));
    assert_refused(golden, &rows::of_rounds(golden));
}

#[test]
#[ignore = "needs KVM: scripts/test kvm_hostile"]
fn what_the_platform_does_not_take_is_refused() {
    assert_refused(golden::sev(), &rows_sev::of_the_platform(golden::sev()));
}

#[test]
#[ignore = "needs KVM: scripts/test kvm_hostile"]
fn region_lists_that_lie_are_refused() {
    assert_refused(golden::sev(), &rows_sev::of_regions(golden::sev()));
}

/// Without a platform an SEV guest is refused before anything is built for it.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hostile"]
fn an_sev_guest_needs_a_platform() {
    let outcome = Bench::new(None).attempt(&golden::sev().script.steps());
    assert!(outcome.refused().contains("none receives guests here"), "{}", outcome.refused());
    assert_eq!(outcome.refusal.as_deref(), Some(outcome.refused()));
}
