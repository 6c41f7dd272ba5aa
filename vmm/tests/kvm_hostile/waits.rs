//! A source that is slow, silent, endless, or not alone: the destination waits for nothing for ever.

use std::thread;
use std::time::Duration;

use sevferry::migration::wire::Kind;
use sevferry::migration::wire::Message;
use sevferry::migration::wire::Proof;

use super::golden;
use super::peer::{Bench, HANG};
use super::script::{Channel, Part, Step, TO_FILL_IN, say};

/// The good script, before the `nth` message on a connection; and that message.
fn before(channel: Channel, nth: usize) -> (Vec<Step>, Vec<u8>) {
    let steps = golden::plain().script.steps();
    let is_on = |step: &&Step| matches!(step, Step::Send(to, _) if *to == channel);
    let Some(Step::Send(_, message)) = steps.iter().filter(is_on).nth(nth) else {
        panic!("no such message");
    };
    let mut left = nth + 1;
    let at = steps.iter().position(|step| {
        left -= usize::from(is_on(&step));
        left == 0
    });
    (steps[..at.unwrap()].to_vec(), message.clone())
}

/// Where a source may fall silent: before that message on that channel.
const PLACES: [(Channel, usize); 6] = [(0, 0), (0, 1), (2, 0), (2, 1), (1, 2), (0, 2)];

/// What is said then.
const SLOW: [&str; 3] = [
    "the peer is too slow",
    "sent less than 64 KiB in 10 s",
    "not all of the source's 2 page connections came",
];

/// At every step of the way a source that falls silent, or sends a byte a second, is given up: with
/// the deadline's name, and long before anybody would.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn nobody_is_waited_for_for_ever() {
    let silent = [
        "has not sent its first message for 5 s",
        "has not sent a start for 5 s",
        "not all of the source's 2 page connections came",
        "the source has sent nothing for 5 s",
        "the source has sent nothing for 5 s",
        "the source has sent nothing for 5 s",
    ];
    thread::scope(|scope| {
        for ((channel, nth), silent) in PLACES.into_iter().zip(silent) {
            let (silence, message) = before(channel, nth);
            let trickle = [silence.clone(), vec![Step::Trickle(channel, message)]].concat();
            for (steps, said) in [(silence, vec![silent]), (trickle, SLOW.to_vec())] {
                scope.spawn(move || {
                    let mut bench = Bench::new(None);
                    bench.silence = Duration::from_secs(5);
                    let outcome = bench.attempt(&steps);
                    let refused = outcome.refused();
                    let is_named = said.iter().any(|said| refused.contains(said));
                    assert!(is_named, "{channel}, {nth}: {refused}");
                });
            }
        }
    });
}

/// Whoever wants to end the wait is heard at every step, also in the middle of a message that
/// comes byte by byte, long before any deadline.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn a_slow_source_does_not_keep_the_user_from_stopping() {
    thread::scope(|scope| {
        for (channel, nth) in PLACES.into_iter().skip(1) {
            scope.spawn(move || {
                let (mut steps, message) = before(channel, nth);
                steps.push(Step::Trickle(channel, message));
                let mut bench = Bench::new(None);
                (bench.silence, bench.stop_after) = (HANG, Duration::from_secs(5));
                let outcome = bench.attempt(&steps);
                assert_eq!(outcome.refused(), "receiving was stopped", "{channel}, {nth}");
                assert!(outcome.took < HANG / 4, "{channel}, {nth}: {:?}", outcome.took);
            });
        }
    });
}

/// A source that has sent the state and goes on with pages, slowly enough to keep its connection
/// readable and fast enough for every deadline, is refused at once.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn pages_that_drip_after_the_state_hold_nobody() {
    let script = &golden::plain().script;
    let mut steps = script.steps();
    let close = steps.iter().position(|step| matches!(step, Step::Close(2))).unwrap();
    let is_pages = |step: &&Step| matches!(step, Step::Send(2, bytes) if bytes.len() > 4096);
    let Some(Step::Send(_, pages)) = steps.iter().rfind(is_pages).cloned() else {
        panic!("no pages");
    };
    steps.remove(close);
    steps.push(Step::Trickle(2, pages));
    let mut bench = Bench::new(None);
    bench.silence = HANG;
    let outcome = bench.attempt(&steps);
    let refused = outcome.refused();
    assert!(refused.contains("went on after the last round"), "{refused}");
    assert!(outcome.took < HANG / 4, "{:?}", outcome.took);
}

/// Connections that say something else, half of it, or nothing at all are no part of the migration
/// and do not disturb it.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn strangers_do_not_disturb() {
    let golden = golden::plain();
    let session = golden.script.offer.session;
    let join =
        |session, index| Message::Join { session, index, proof: TO_FILL_IN }.encode().unwrap();
    let stranger = Message::Join { session, index: 0, proof: Proof([1; 32]) };
    let mut greetings = vec![
        Vec::new(),
        vec![0],
        join(session, 0)[..21].to_vec(),
        join(session ^ 1, 0),
        join(session, 2),
        join(session, u16::MAX),
        // It knows everything but the secret.
        stranger.encode().unwrap(),
        Message::Offer(golden.script.offer.clone()).encode().unwrap(),
        b"GET / HTTP/1.1\r\nHost: destination.example\r\n\r\n".to_vec(),
        vec![0xff; 1 << 16],
    ];
    greetings.resize(140, Vec::new());
    let mut steps = golden.script.steps();
    let at = steps.iter().position(|step| matches!(step, Step::Hear(Kind::Started))).unwrap() + 1;
    let strangers = (10..).zip(greetings);
    let strangers = strangers.flat_map(|(channel, greeting)| {
        // Whatever is not read fits into the socket.
        [Step::Connect(channel), Step::Send(channel, greeting)]
    });
    steps.splice(at..at, strangers);
    // A connection that is there already is not replaced.
    let second = steps.iter().position(|step| matches!(step, Step::Connect(2))).unwrap();
    steps.splice(second..second, [Step::Connect(9), Step::Send(9, join(session, 0))]);
    let outcome = Bench::new(None).attempt(&steps);
    assert_eq!(outcome.result.err(), None);
}

/// A script of empty rounds over one connection.
fn empty_rounds(count: usize) -> Vec<Step> {
    let mut script = golden::plain().script.clone();
    script.offer.connections = 1;
    script.rounds = vec![vec![Part::default()]; count];
    script.steps()
}

/// A source may not go on for ever, however busy it is.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn rounds_come_to_an_end() {
    let outcome = Bench::new(None).attempt(&empty_rounds(10_100));
    let refused = outcome.refused();
    assert!(refused.contains("has sent more than 10001 rounds"), "{refused}");
}

/// Whoever wants to end the wait is heard, also while the source keeps the destination busy.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn a_busy_source_does_not_keep_the_user_from_stopping() {
    let mut bench = Bench::new(None);
    bench.stop_at_round = 100;
    let outcome = bench.attempt(&empty_rounds(10_000));
    assert_eq!(outcome.refused(), "receiving was stopped");
}

/// Every message in every state but its own is refused.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn every_message_out_of_its_place_is_refused() {
    let bench = Bench::new(None);
    // Waiting for the offer, the start, pages, the end of a later round, the state.
    for (channel, nth) in [(0, 0), (0, 1), (1, 1), (2, 2), (0, 2)] {
        let (prefix, due) = before(channel, nth);
        for (kind, message) in golden::one_of_each() {
            if message[6..8] == due[6..8] || (channel > 0 && kind == Kind::RoundEnd) {
                continue;
            }
            let early = Step::Send(channel, message);
            let all = golden::plain().script.steps();
            let rest = all[prefix.len()..].to_vec();
            let outcome = bench.attempt(&[prefix.clone(), vec![early], rest].concat());
            let arrived = outcome.result == Ok(true);
            assert!(!arrived, "{kind:?} was accepted at {channel}, {nth}");
        }
    }
}

/// What follows the state is not read as part of the guest: the control connection is the
/// handover's then, and page connections have nothing more to say.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn pages_after_the_last_round_are_refused() {
    let mut script = golden::plain().script.clone();
    let late = script.rounds.pop().unwrap();
    let mut steps = script.steps();
    let close = steps.iter().position(|step| matches!(step, Step::Close(_))).unwrap();
    script.rounds.push(late);
    let all = script.steps();
    let is_late = |step: &&Step| matches!(step, Step::Send(2, bytes) if bytes.len() > 4096);
    let Some(Step::Send(_, mut pages)) = all.iter().rfind(is_late).cloned() else {
        panic!("no pages");
    };
    // The round is not ended: only its first frame comes, or a part of it.
    for len in [44 + 8 + 4096, 44 + 8 + 100] {
        pages.truncate(len);
        let mut steps = steps.clone();
        steps.splice(close..close + 2, [Step::Send(2, pages.clone())]);
        let outcome = Bench::new(None).attempt(&steps);
        assert!(outcome.result.is_err(), "{len} bytes of pages of no round were accepted");
    }
    steps.push(say(&Message::Started));
    let outcome = Bench::new(None).attempt(&steps);
    assert_eq!(outcome.result.err(), None);
}
