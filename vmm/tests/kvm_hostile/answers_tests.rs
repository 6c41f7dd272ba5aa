//! A hostile destination against the real source: whatever it answers, the guest runs on, and the
//! next good destination gets it.

use std::thread;

use sevferry::migration::handover::Resolution;
use sevferry::migration::progress::Outcome;
use sevferry::migration::wire::Kind;
use sevferry::migration::wire::{Message, NotRunning, Reason, Transfer};
use sevferry::migration::wire::{Say, Word};

use super::answers::{HANG, SECRET, Step, accept, answer, before, good, say, word};
use super::golden::NOBODYS;
use super::memory::peak_of;
use super::peer::Bench as Alone;
use super::rows_answers::{
    self as rows, ACCEPT, ANSWERS, LAST_ROUND_OK, PREPARED, ROUND_OK, RUNNING, Row, STARTED,
};
use super::source::{Bench, User, reason};

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

/// Somebody who cuts, stalls or drips is not waited for longer than the deadlines say, and the error
/// names what did not come; each with a guest of its own, because waiting takes its time.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn answers_are_not_waited_for_for_ever() {
    let silent = [
        "has not sent an acceptance for 4 s",
        "has not sent a start for 4 s",
        "has not sent the end of a round for 4 s",
        "has not sent the end of a round for 4 s",
        "the destination did not get ready in time",
    ];
    let mut bench = Bench::new(false);
    for (nth, said) in ANSWERS.into_iter().zip(silent) {
        let reason = bench.kept(|transfer| before(&good(transfer, None), nth));
        assert!(reason.contains(said), "{nth}: {reason}");
    }
    bench.moves();
    thread::scope(|scope| {
        for nth in ANSWERS {
            scope.spawn(move || {
                let mut bench = Bench::new(false);
                let reason = bench.kept(|transfer| {
                    let steps = good(transfer, None);
                    let bytes = answer(&steps, nth);
                    [before(&steps, nth), vec![Step::Drip(bytes)]].concat()
                });
                // While the guest is paused, that may have taken too long before.
                let slow = ["the peer is too slow", "takes the last pages too slowly"];
                assert!(slow.iter().any(|words| reason.contains(words)), "{nth}: {reason}");
                bench.moves();
            });
        }
        scope.spawn(|| {
            let mut bench = Bench::new(false);
            let reason = bench.kept(|transfer| stalled(transfer, ROUND_OK));
            // Also where the host's sockets hold all that is not read.
            let late = "the peer has neither sent nor taken a byte for 4 s";
            assert!(reason.contains(late), "{reason}");
            bench.moves();
        });
    });
}

/// A destination that reads one page connection and not the other.
fn stalled(transfer: Transfer, nth: usize) -> Vec<Step> {
    let mut steps = before(&good(transfer, None), nth);
    for step in &mut steps {
        if matches!(step, Step::Accept(2)) {
            *step = Step::AcceptStalled(2);
        }
    }
    steps
}

/// Whatever the destination does not do, the user is heard meanwhile, and long before the deadlines.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn a_cancel_is_heard_while_the_destination_is_waited_for() {
    let mut bench = Bench::new(false);
    bench.silence = HANG;
    for (nth, round) in [(ACCEPT, 0), (STARTED, 0), (ROUND_OK, 1), (LAST_ROUND_OK, 2)] {
        let user = User::CancelsIn(round);
        let (summary, _) = bench.attempt(user, |transfer| before(&good(transfer, None), nth));
        assert_eq!(reason(&summary), "cancelled: tired", "{nth}");
    }
    let (summary, _) = bench.attempt(User::CancelsIn(1), |transfer| stalled(transfer, ROUND_OK));
    assert_eq!(reason(&summary), "cancelled: tired");
    // Nor does an answer that has begun to arrive keep the user waiting.
    for (nth, round) in [(STARTED, 0), (LAST_ROUND_OK, 2)] {
        let (summary, _) = bench.attempt(User::CancelsIn(round), |transfer| {
            let steps = good(transfer, None);
            let begun = answer(&steps, nth)[..5].to_vec();
            [before(&steps, nth), vec![Step::Say(0, begun)]].concat()
        });
        assert_eq!(reason(&summary), "cancelled: tired", "{nth}");
    }
    bench.moves();
}

/// After `prepared` the guest is in doubt, whatever is said that is not proven, or not final: only
/// a person ends that. What the destination says and proves does too.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn a_destination_that_has_the_commit_and_lies_leaves_a_doubt() {
    let mut bench = Bench::new(false);
    let other = |transfer: Transfer| Transfer { epoch: transfer.epoch - 1, ..transfer };
    let lies: [fn(Transfer) -> Vec<Step>; 7] = [
        |_| Vec::new(),
        |_| vec![Step::CloseAll],
        |transfer| vec![say(&word(transfer, Say::NotRunning(NotRunning::Crashed)))],
        |_| vec![Step::Say(0, b"HTTP/1.1 200 OK\r\n\r\n".to_vec())],
        |transfer| {
            let prepared = word(transfer, Say::Prepared);
            vec![Step::Flood(prepared.encode().unwrap().repeat(99))]
        },
        |transfer| {
            let words = [NotRunning::JournalFailed, NotRunning::Crashed];
            let words = words.map(|because| word(transfer, Say::NotRunning(because)));
            vec![Step::Flood(words.map(|word| word.encode().unwrap()).concat().repeat(99))]
        },
        |_| vec![Step::Say(0, vec![b'n'; 1 << 16])],
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let user = User::Decides(Resolution::Keep);
        let (summary, _) = bench.attempt(user, |transfer| {
            [before(&good(transfer, None), RUNNING), lie(transfer)].concat()
        });
        assert_eq!(reason(&summary), "a person decided so", "{number}");
    }
    // A word on another migration is none on this one, and the right one ends the doubt.
    let (summary, _) = bench.attempt(User::Patient, |transfer| {
        let running = word(other(transfer), Say::Running);
        let steps = good(transfer, None);
        let last = Step::Say(0, answer(&steps, RUNNING));
        let released = Step::Hear(Kind::Released);
        [before(&steps, RUNNING), vec![say(&running), last, released]].concat()
    });
    assert_eq!(summary.outcome, Outcome::Moved, "{summary}");
}

/// Somebody who has taken the destination's place, and listens there, is not believed: the source says
/// `commit` again. What the destination itself says, and proves, ends the doubt: the guest was given
/// back, and nobody had to decide.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn only_a_proven_answer_ends_the_doubt() {
    let mut bench = Bench::new(false);
    let stranger = |transfer, say| Message::Word(Word::new(&NOBODYS, transfer, say));
    let given_back = Say::NotRunning(NotRunning::GivenBack);
    for because in [NotRunning::GivenBack, NotRunning::Discarded] {
        let (summary, played) = bench.attempt(User::Patient, |transfer| {
            // The proof of the commit that was heard, for words of its own.
            let Word { proof, .. } = Word::new(&SECRET, transfer, Say::Commit { is_last: false });
            let thrown_back = |say| Message::Word(Word { transfer, say, proof });
            let lies = [
                stranger(transfer, Say::Running),
                stranger(transfer, given_back.clone()),
                stranger(transfer, Say::Abandon(Reason::new("yours"))),
                thrown_back(Say::Running),
                thrown_back(given_back.clone()),
            ];
            let mut steps = before(&good(transfer, None), RUNNING);
            steps.extend(lies.iter().map(say));
            steps.push(Step::Hear(Kind::Commit));
            steps.push(say(&word(transfer, Say::NotRunning(because))));
            steps.push(Step::Hear(Kind::Abandon));
            steps
        });
        assert_eq!(reason(&summary), because.to_string());
        assert!(played, "the source did not ask again");
    }
    bench.moves();
}

/// However much a destination says, the source holds what its own two connections need.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn answers_cost_no_memory() {
    const BYTES_MAX: usize = 4 << 20;
    const DUE: [Kind; 3] = [Kind::Accept, Kind::Refuse, Kind::Abandon];
    let mut bench = Bench::new(false);
    let _alone = Alone::alone();
    let peak = peak_of(|| drop(bench.kept(|transfer| before(&good(transfer, None), PREPARED))));
    assert!(peak < BYTES_MAX, "{peak} bytes for good answers");
    for nth in ANSWERS {
        // The header of what is not due is all that is read, wherever it comes.
        let kinds = Kind::ALL.into_iter().filter(|kind| nth == ACCEPT || DUE.contains(kind));
        for kind in kinds {
            let mut longest = Message::Started.encode().unwrap();
            longest[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
            longest[8..12].copy_from_slice(&kind.length_max().to_le_bytes());
            // Of what is due it comes whole, so that it is read.
            let whole = DUE.contains(&kind);
            longest.resize(12 + if whole { kind.length_max() as usize } else { 0 }, 1);
            let peak = peak_of(|| {
                bench.kept(|transfer| {
                    let steps = before(&good(transfer, None), nth);
                    [steps, vec![Step::Say(0, longest.clone()), Step::CloseAll]].concat()
                });
            });
            assert!(peak < BYTES_MAX, "{kind:?} at {nth}: {peak} bytes");
        }
    }
}

/// Of an SEV guest's destination: every certificate that is missing, cut, spoilt or another's is
/// named before the firmware is asked, and after each the guest can still be sent.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hostile"]
fn certificates_that_do_not_hold_leave_the_guest() {
    let mut bench = Bench::new(true);
    let own = bench.platform.clone().unwrap();
    let mut wrong = Vec::new();
    for (what, platform, said) in rows::of_certificates(&own) {
        let reason = bench.kept(|transfer| {
            let steps = good(transfer, Some(&own));
            [before(&steps, ACCEPT), vec![say(&accept(platform.clone()))]].concat()
        });
        if !said.split('|').any(|said| reason.contains(said)) {
            wrong.push(format!("{what}: {reason:?} instead of {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // After `SEND_START` the firmware's guest has to be cancelled each time.
    for nth in ANSWERS.into_iter().skip(1) {
        let reason = bench.kept(|transfer| {
            [before(&good(transfer, Some(&own)), nth), vec![Step::CloseAll]].concat()
        });
        assert!(reason.contains("the connection to the other host was lost"), "{nth}: {reason}");
    }
    let user = User::Decides(Resolution::Keep);
    let (summary, _) = bench.attempt(user, |transfer| before(&good(transfer, Some(&own)), RUNNING));
    assert_eq!(reason(&summary), "a person decided so");
    bench.moves();
}
