//! A hostile destination against the real source: whatever it answers, the guest runs on, and the
//! next good destination gets it.

use std::thread;
use std::time::{Duration, Instant};

use sevferry::migration::frame::Kind;
use sevferry::migration::handover::Resolution;
use sevferry::migration::message::{Message, NotRunning, Transfer};
use sevferry::migration::progress::Outcome;

use super::answers::{Step, answer, before, good, say};
use super::memory::peak_of;
use super::peer::Bench as Alone;
use super::rows_answers::{self as rows, ACCEPT, ANSWERS, Row};
use super::source::{Bench, SILENCE, User, reason};

/// Tries every row with the same guest, which is then moved to a good destination.
#[track_caller]
fn assert_kept(rows: &[Row]) {
    let mut bench = Bench::new(false);
    let mut wrong = Vec::new();
    for Row { input, what, steps, said } in rows {
        let reason = bench.kept(steps);
        if !reason.contains(said) {
            wrong.push(format!("{input}, {what}: {reason:?} instead of {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "of {} rows:\n{}", rows.len(), wrong.join("\n"));
    bench.moves();
}

#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn a_good_destination_gets_the_guest() {
    Bench::new(false).moves();
}

#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn answers_that_are_none_leave_the_guest() {
    assert_kept(&rows::of_frames());
}

#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn answers_out_of_their_place_leave_the_guest() {
    assert_kept(&rows::of_order());
}

#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn connections_that_fail_leave_the_guest() {
    assert_kept(&rows::of_connections());
}

/// A destination that goes away after any byte of any answer up to `prepared` costs nothing.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn answers_cut_after_every_byte_leave_the_guest() {
    let mut bench = Bench::new(false);
    for nth in ANSWERS {
        let len = answer(&good(super::golden::TRANSFER, None), nth).len();
        for cut in 0..len {
            let reason = bench.kept(|transfer| {
                let steps = good(transfer, None);
                let bytes = answer(&steps, nth)[..cut].to_vec();
                [before(&steps, nth), vec![Step::Say(0, bytes), Step::CloseAll]].concat()
            });
            let lost = "the connection to the other host was lost";
            assert!(reason.contains(lost), "answer {nth} cut after {cut} bytes: {reason}");
        }
    }
    bench.moves();
}
