//! The destination's intake: rounds of pages over all connections, then the two messages that end it.
//!
//! Each placer and the control connection have a thread. They put what they receive into one queue, and only the
//! caller's thread decides.

use std::collections::BTreeSet;
use std::io::Error as IoError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::placer::{PagePlacer, PageTarget, PlacerError};
use crate::machine::SavedBetween;
use crate::migration::convergence::ROUNDS_MAX;
use crate::migration::net::{Due, Link, LinkError, Stream, in_all};
use crate::migration::wire::{
    BadClosing, Closing, Kind, Message, Reason, RoundEnd, Say, Word, status_bytes_max,
};

/// Bytes that must arrive within twice the silence. With a silence of 30 s that is 1 KiB a second: less than any
/// network has, and more than a peer sends that only keeps the connection open.
const PACE_BYTES: u64 = 64 << 10;

/// How long all rounds together may take.
const ROUNDS_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The source gives up or pauses the guest after [`ROUNDS_MAX`] rounds. Then one last round follows.
const ROUNDS_TAKEN_MAX: u32 = ROUNDS_MAX + 1;

/// How long a source may take to say why its page connection failed.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How often a wait checks whether to stop.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What the source sends after the last page.
#[derive(Debug)]
pub(crate) struct Delivered {
    /// `PageStatus::to_bytes`; `None` for a plain VM.
    pub(crate) status: Option<Vec<u8>>,
    /// The machine's state.
    pub(crate) state: Vec<u8>,
    /// The source saved that after this moment: when the last round was acknowledged.
    pub(crate) saved: SavedBetween,
    /// Rounds that arrived.
    pub(crate) rounds: u32,
}

/// What arrives on the queue.
#[derive(Debug)]
enum Arrival {
    /// A connection has ended a round.
    Round(usize, RoundEnd),
    /// A message on the control connection.
    Control(Message),
    /// A connection failed.
    Failed(IntakeError),
}

/// Takes pages until the source has sent the machine's state. Ends early once `stop` returns true.
pub(crate) fn take_in(
    link: &mut Link,
    placers: &mut [PagePlacer],
    target: &PageTarget<'_>,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Delivered, IntakeError> {
    let over = AtomicBool::new(false);
    let control = link.try_clone().map_err(LinkError::Lost)?;
    let connections = placers.iter().map(PagePlacer::connection).collect::<Result<Vec<_>, _>>();
    let connections = connections.map_err(LinkError::Lost)?;
    thread::scope(|scope| {
        // The queue is short: a source that sends too much waits until its last message was read.
        let (queue, arrivals) = sync_channel(1);
        let (mut go, over_here) = (Vec::new(), &over);
        let mut started = placers.iter_mut().enumerate().try_for_each(|(index, placer)| {
            let (proceed, may_proceed) = channel();
            go.push(proceed);
            let queue = queue.clone();
            let place =
                move || place_rounds(index, placer, target, (&queue, &may_proceed), over_here);
            Builder::new().spawn_scoped(scope, place).map(drop)
        });
        let list = Due::region_list(status_bytes_max(&target.ram.layout()));
        let due = target.receiving.map_or(Due::STATE, |_sev| list);
        let taken = &target.tally.taken;
        let read = move || read_control(control, due, (&queue, taken), over_here);
        started = started.and_then(|()| Builder::new().spawn_scoped(scope, read).map(drop));
        let started = started.map_err(IntakeError::Thread);
        let delivered = started.and_then(|()| collect(link, target, &arrivals, &go, stop));
        over.store(true, Ordering::Relaxed);
        if delivered.is_err() {
            // The placers stop at once, because the pages are of no use. The source is still told why.
            connections.iter().for_each(Stream::shut_down);
            link.stop_reading();
        }
        // The placers wait for this. Then they report whether anything came after the last round.
        drop(go);
        let delivered = delivered?;
        match arrivals.iter().find(|arrival| !matches!(arrival, Arrival::Control(_))) {
            Some(Arrival::Failed(cause)) => Err(cause),
            Some(_) => Err(IntakeError::Unfinished),
            None => Ok(delivered),
        }
    })
    .and_then(|delivered| match placers.iter().any(PagePlacer::is_in_a_round) {
        true => Err(IntakeError::Unfinished),
        false => Ok(delivered),
    })
}

/// A placer's thread. After each round it waits until all connections have ended the round.
fn place_rounds(
    index: usize,
    placer: &mut PagePlacer,
    target: &PageTarget<'_>,
    (queue, may_proceed): (&SyncSender<Arrival>, &Receiver<()>),
    over: &AtomicBool,
) {
    loop {
        let arrival = match placer.place_round(target, &|| over.load(Ordering::Relaxed)) {
            Ok(Some(end)) => Arrival::Round(index, end),
            Ok(None) => return,
            Err(cause) => Arrival::Failed(cause.into()),
        };
        // The caller has ended the intake.
        if queue.send(arrival).is_err() || may_proceed.recv().is_err() {
            return;
        }
    }
}

/// The control connection's thread. It ends with the machine's state, or when the source gives up.
fn read_control(
    mut link: Link,
    mut due: Due,
    (queue, taken): (&SyncSender<Arrival>, &AtomicU64),
    over: &AtomicBool,
) {
    let mut heard = link.heard();
    while !over.load(Ordering::Relaxed) {
        let came = link.hear(due, LOOK_UP);
        taken.fetch_add(link.heard().saturating_sub(heard), Ordering::Relaxed);
        heard = link.heard();
        let arrival = match came {
            Ok(None) => continue,
            Ok(Some(message)) => Arrival::Control(message),
            Err(cause) => Arrival::Failed(cause.into()),
        };
        let is_list = matches!(arrival, Arrival::Control(Message::StatusList(_)));
        if queue.send(arrival).is_err() || !is_list {
            return;
        }
        due = Due::STATE;
    }
}

fn collect(
    link: &mut Link,
    target: &PageTarget<'_>,
    arrivals: &Receiver<Arrival>,
    go: &[Sender<()>],
    stop: &mut dyn FnMut() -> bool,
) -> Result<Delivered, IntakeError> {
    let (mut ended, mut rounds, mut status) = (BTreeSet::new(), 0, None);
    let (mut acknowledged, mut looked_up) = (Instant::now(), Instant::now());
    let mut pace = Pace::new(looked_up, target.silence);
    loop {
        // Also while messages of the source keep coming.
        if looked_up.elapsed() >= LOOK_UP {
            looked_up = Instant::now();
            pace.check(target.tally.taken.load(Ordering::Relaxed), looked_up)?;
            if stop() {
                return Err(IntakeError::Stopped);
            }
        }
        let arrival = match arrivals.recv_timeout(LOOK_UP) {
            Ok(arrival) => arrival,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Err(IntakeError::Stopped),
        };
        match arrival {
            Arrival::Round(index, end) => {
                ended.insert(index);
                if ended.len() == go.len() {
                    ended.clear();
                    if end.round > ROUNDS_TAKEN_MAX {
                        return Err(IntakeError::TooManyRounds);
                    }
                    target.arrivals.end_round();
                    rounds = end.round;
                    target.tally.round_arrived(rounds);
                    acknowledged = Instant::now();
                    // A source that does not read this does not send the next round either.
                    link.say(&Message::RoundOk { round: end.round })?;
                    for placer in go {
                        // A placer that has ended reports the reason itself.
                        placer.send(()).unwrap_or_default();
                    }
                }
            }
            Arrival::Control(Message::StatusList(list)) if status.is_none() => {
                status = Some(list);
            }
            Arrival::Control(Message::State(state)) if ended.is_empty() => {
                let open = |list: Closing| list.open(Kind::StatusList, target.session, rounds);
                let status = status.map(open).transpose()?;
                let state = state.open(Kind::State, target.session, rounds)?;
                let saved = SavedBetween { earliest: acknowledged, latest: Instant::now() };
                return Ok(Delivered { status, state, saved, rounds });
            }
            Arrival::Control(
                Message::Word(Word { say: Say::Abandon(reason), .. }) | Message::Refuse { reason },
            ) => {
                return Err(IntakeError::Abandoned { reason });
            }
            Arrival::Control(_) => {
                return Err(LinkError::unexpected("the region list or the state").into());
            }
            Arrival::Failed(cause) => return Err(explained(cause, arrivals)),
        }
    }
}

/// A source that gives up says why and then closes its connections. This host may notice that in the other order.
fn explained(cause: IntakeError, arrivals: &Receiver<Arrival>) -> IntakeError {
    let until = Instant::now() + LAST_WORDS;
    while let IntakeError::Placer(_) = cause {
        let left = until.saturating_duration_since(Instant::now());
        match arrivals.recv_timeout(left) {
            Ok(Arrival::Control(
                Message::Word(Word { say: Say::Abandon(reason), .. }) | Message::Refuse { reason },
            )) => {
                return IntakeError::Abandoned { reason };
            }
            // The other page connections.
            Ok(Arrival::Failed(IntakeError::Placer(_)) | Arrival::Round(..)) => {}
            Ok(Arrival::Control(_) | Arrival::Failed(_)) | Err(_) => break,
        }
    }
    cause
}

/// Notices a source that sends nothing, or too little.
#[derive(Debug)]
struct Pace {
    begun: Instant,
    /// How long nothing at all may arrive. In twice that time at least [`PACE_BYTES`] must arrive.
    silence: Duration,
    /// All bytes by the time when the last one arrived.
    last: (u64, Instant),
    /// All bytes by an earlier time, against which the pace is measured.
    then: (u64, Instant),
}

impl Pace {
    fn new(now: Instant, silence: Duration) -> Self {
        Self { begun: now, silence, last: (0, now), then: (0, now) }
    }

    /// By `now`, `bytes` have arrived in all.
    fn check(&mut self, bytes: u64, now: Instant) -> Result<(), IntakeError> {
        if now.duration_since(self.begun) > ROUNDS_TIME_MAX {
            return Err(IntakeError::Endless);
        }
        if bytes > self.last.0 {
            self.last = (bytes, now);
        }
        if bytes.saturating_sub(self.then.0) >= PACE_BYTES {
            self.then = (bytes, now);
        }
        if now.duration_since(self.last.1) > self.silence {
            return Err(IntakeError::Silent { patience: self.silence });
        }
        let patience = in_all(self.silence, 0);
        if now.duration_since(self.then.1) > patience {
            return Err(IntakeError::Slow { patience });
        }
        Ok(())
    }
}

/// Why the pages did not all arrive.
#[derive(Debug, Error)]
pub enum IntakeError {
    /// The control connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A page connection.
    #[error(transparent)]
    Placer(#[from] PlacerError),
    /// The messages after the last round.
    #[error(transparent)]
    Closing(#[from] BadClosing),
    /// The source has given up and keeps the guest.
    #[error("the source gave up: {reason}")]
    Abandoned {
        /// Why, in its words.
        reason: Reason,
    },
    /// The source sends nothing.
    #[error("the source has sent nothing for {} s", patience.as_secs())]
    Silent {
        /// How long.
        patience: Duration,
    },
    /// The source is there, but too slow for any network.
    #[error("the source sent less than {} KiB in {} s", PACE_BYTES >> 10, patience.as_secs())]
    Slow {
        /// How long.
        patience: Duration,
    },
    /// It goes on and on.
    #[error("the source has been sending for {} hours", ROUNDS_TIME_MAX.as_secs() / 3600)]
    Endless,
    /// It goes on and on.
    #[error("the source has sent more than {ROUNDS_TAKEN_MAX} rounds")]
    TooManyRounds,
    /// The state came too early.
    #[error("the source sent the machine's state in the middle of a round of pages")]
    Unfinished,
    /// The host has no thread to give.
    #[error("starting a thread for a connection")]
    Thread(#[source] IoError),
    /// This host gave up.
    #[error("receiving was stopped")]
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::wire::{Secret, Transfer, VmId};

    /// A source that gives up is heard also if its page connections end first; one that is gone, or
    /// sends what it must not, is not waited for.
    #[test]
    fn a_source_that_gives_up_is_heard() {
        let cut = || IntakeError::Placer(PlacerError::Cut { round: 1 });
        let reason = Reason::new("enough");
        let transfer = Transfer { vm: VmId([1; 16]), epoch: 1 };
        let abandon = Word::new(&Secret([1; 16]), transfer, Say::Abandon(reason.clone())).into();
        for (next, heard) in [
            (vec![Arrival::Failed(cut()), Arrival::Control(abandon)], true),
            (vec![Arrival::Failed(LinkError::unexpected("it").into())], false),
            (vec![], false),
        ] {
            let (queue, arrivals) = sync_channel(2);
            next.into_iter().for_each(|arrival| queue.send(arrival).unwrap());
            drop(queue);
            let cause = explained(cut(), &arrivals);
            assert_eq!(matches!(cause, IntakeError::Abandoned { .. }), heard, "{cause}");
        }
    }

    /// A source that sends steadily may take hours, but not for ever. One that is silent, or sends a byte now and then,
    /// is given up. A stall shorter than the silence ends nothing, wherever it comes.
    #[test]
    fn a_source_keeps_a_pace() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut pace = Pace::new(begun, Duration::from_secs(30));
        pace.check(0, at(30)).unwrap();
        assert!(matches!(pace.check(0, at(31)), Err(IntakeError::Silent { .. })));
        let mut pace = Pace::new(begun, Duration::from_secs(30));
        pace.check(PACE_BYTES - 1, at(29)).unwrap();
        pace.check(PACE_BYTES - 1, at(58)).unwrap();
        pace.check(PACE_BYTES, at(59)).unwrap();
        pace.check(PACE_BYTES, at(88)).unwrap();
        let mut pace = Pace::new(begun, Duration::from_secs(30));
        let trickle = (1..=61).find_map(|second| pace.check(second, at(second)).err());
        assert!(matches!(trickle, Some(IntakeError::Slow { .. })), "{trickle:?}");
        let mut pace = Pace::new(begun, Duration::from_secs(30));
        for second in (0..=24 * 3600).step_by(30) {
            pace.check(second * PACE_BYTES, at(second)).unwrap();
        }
        let day = pace.check(u64::MAX, at(24 * 3600 + 1));
        assert!(matches!(day, Err(IntakeError::Endless)), "{day:?}");
    }
}
