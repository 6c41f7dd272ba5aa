//! The destination's intake: rounds of pages over all connections, then the two messages that end it.
//!
//! Placers and the control connection each have a thread; what they get arrives on one queue, and
//! the caller's thread alone decides.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::link::{Link, LinkError};
use super::message::{Message, Reason, RoundEnd};
use super::placer::{PagePlacer, PlacerError, Target};

/// How long a source whose page connection has failed may take to say why.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How often waiting looks up.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What the source says after the last page.
#[derive(Debug)]
pub(super) struct Delivered {
    /// `PageStatus::to_bytes`; `None` for a plain VM.
    pub(super) status: Option<Vec<u8>>,
    /// The machine's state.
    pub(super) state: Vec<u8>,
    /// Rounds that arrived.
    pub(super) rounds: u32,
}

/// What arrives on the queue.
#[derive(Debug)]
enum Arrival {
    /// A connection has ended a round.
    Round(usize, RoundEnd),
    /// The source says something on the control connection.
    Control(Message),
    /// A connection failed.
    Failed(IntakeError),
}

/// Takes pages until the source has sent the machine's state. `stop` is asked now and then.
pub(super) fn take_in(
    link: &mut Link,
    placers: &mut [PagePlacer],
    target: &Target<'_>,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Delivered, IntakeError> {
    let over = AtomicBool::new(false);
    let control = link.try_clone().map_err(LinkError::Lost)?;
    thread::scope(|scope| {
        let (queue, arrivals) = channel();
        let mut go = Vec::new();
        for (index, placer) in placers.iter_mut().enumerate() {
            let (proceed, may_proceed) = channel();
            go.push(proceed);
            let (queue, over) = (queue.clone(), &over);
            scope.spawn(move || place_rounds(index, placer, target, (&queue, &may_proceed), over));
        }
        let over_here = &over;
        scope.spawn(move || read_control(control, &queue, over_here));
        let delivered = collect(link, target, &arrivals, &go, stop);
        over.store(true, Ordering::Relaxed);
        delivered
    })
}

/// A placer's thread. Between rounds it waits until all connections have ended the round.
fn place_rounds(
    index: usize,
    placer: &mut PagePlacer,
    target: &Target<'_>,
    (queue, may_proceed): (&Sender<Arrival>, &Receiver<()>),
    over: &AtomicBool,
) {
    loop {
        let arrival = match placer.place_round(target, &|| over.load(Ordering::Relaxed)) {
            Ok(Some(end)) => Arrival::Round(index, end),
            Ok(None) => return,
            Err(cause) => Arrival::Failed(cause.into()),
        };
        // Nobody listens any more, or will let us go on.
        if queue.send(arrival).is_err() || may_proceed.recv().is_err() {
            return;
        }
    }
}

/// The control connection's thread: ends with the machine's state, or when the source gives up.
fn read_control(mut link: Link, queue: &Sender<Arrival>, over: &AtomicBool) {
    loop {
        let mut stop = || over.load(Ordering::Relaxed);
        let arrival = match link.receive(LOOK_UP, &mut stop) {
            Ok(None) if stop() => return,
            Ok(None) => continue,
            Ok(Some(message)) => Arrival::Control(message),
            Err(cause) => Arrival::Failed(cause.into()),
        };
        let last = !matches!(arrival, Arrival::Control(Message::StatusList(_)));
        if queue.send(arrival).is_err() || last {
            return;
        }
    }
}

fn collect(
    link: &mut Link,
    target: &Target<'_>,
    arrivals: &Receiver<Arrival>,
    go: &[Sender<()>],
    stop: &mut dyn FnMut() -> bool,
) -> Result<Delivered, IntakeError> {
    let (mut ended, mut rounds, mut status) = (BTreeSet::new(), 0, None);
    let mut alive = Alive::new(target);
    loop {
        let arrival = match arrivals.recv_timeout(LOOK_UP) {
            Ok(arrival) => arrival,
            Err(RecvTimeoutError::Timeout) if stop() => return Err(IntakeError::Stopped),
            Err(RecvTimeoutError::Timeout) => {
                alive.check()?;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Err(IntakeError::Stopped),
        };
        match arrival {
            Arrival::Round(index, end) => {
                ended.insert(index);
                if ended.len() == go.len() {
                    ended.clear();
                    target.arrivals.end_round();
                    rounds = end.round;
                    target.arrived.rounds.store(rounds, Ordering::Relaxed);
                    link.send(&Message::RoundOk { round: end.round })?;
                    for placer in go {
                        // One that has ended says why by itself.
                        placer.send(()).unwrap_or_default();
                    }
                }
            }
            Arrival::Control(Message::StatusList(bytes)) if status.is_none() => {
                status = Some(bytes);
            }
            Arrival::Control(Message::State(state)) if ended.is_empty() => {
                return Ok(Delivered { status, state, rounds });
            }
            Arrival::Control(Message::Abandon { reason, .. } | Message::Refuse { reason }) => {
                return Err(IntakeError::Abandoned { reason });
            }
            Arrival::Control(_) => {
                return Err(LinkError::unexpected("the region list or the state").into());
            }
            Arrival::Failed(cause) => return Err(explained(cause, arrivals)),
        }
    }
}

/// A source that gives up says why, then closes its connections; they are not heard in that order.
fn explained(cause: IntakeError, arrivals: &Receiver<Arrival>) -> IntakeError {
    let until = Instant::now() + LAST_WORDS;
    while let IntakeError::Placer(_) = cause {
        let left = until.saturating_duration_since(Instant::now());
        match arrivals.recv_timeout(left) {
            Ok(Arrival::Control(Message::Abandon { reason, .. } | Message::Refuse { reason })) => {
                return IntakeError::Abandoned { reason };
            }
            // The other page connections.
            Ok(Arrival::Failed(IntakeError::Placer(_)) | Arrival::Round(..)) => {}
            Ok(Arrival::Control(_) | Arrival::Failed(_)) | Err(_) => break,
        }
    }
    cause
}

/// Notices a peer that is connected but says nothing.
struct Alive<'a> {
    bytes: &'a AtomicU64,
    silence: Duration,
    seen: u64,
    since: Instant,
}

impl<'a> Alive<'a> {
    fn new(target: &Target<'a>) -> Self {
        let (bytes, silence) = (&target.arrived.bytes, target.silence);
        Self { bytes, silence, seen: 0, since: Instant::now() }
    }

    fn check(&mut self) -> Result<(), IntakeError> {
        let now = self.bytes.load(Ordering::Relaxed);
        if now != self.seen {
            (self.seen, self.since) = (now, Instant::now());
        }
        if self.since.elapsed() < self.silence {
            return Ok(());
        }
        Err(LinkError::Silent { wanted: "anything", patience: self.silence }.into())
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
    /// The source has given up and keeps the guest.
    #[error("the source gave up: {reason}")]
    Abandoned {
        /// Why, in its words.
        reason: Reason,
    },
    /// We were told to stop.
    #[error("receiving was stopped")]
    Stopped,
}
