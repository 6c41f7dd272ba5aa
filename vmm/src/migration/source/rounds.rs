//! Which pages each round sends: those that changed since the round before, each by its present status.
//!
//! Order matters, and [`ChangeLog`] keeps it. The dirty log is taken first. Then come the pages whose status flipped,
//! and with them the status by which the round sends. A page that flips afterwards is in the next round, so no page
//! stays sent from the wrong view. The last round, with vCPUs paused, is exact. Without this rule there are three
//! races: a write before its hypercall, a status older than the dirty log, and a flip between the two reads.
//! `race_tests.rs` has each of them, and shows what it does without the rule.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::sender::{PageSender, Round, SenderError};
use crate::encryption::{Incomplete, PageStatus};
use crate::machine::ChangeLog;
use crate::memory::{GuestRam, RamError};
use crate::migration::account::Tally;
use crate::migration::convergence::Left;
use crate::page::FrameSet;
use crate::sev::send::Sending;

/// How often a running round calls the watch.
const LOOK_UP: Duration = Duration::from_millis(20);

/// Where rounds learn what has changed: from a machine, or from the script of a test.
pub(crate) trait Changes {
    /// As [`ChangeLog::take`].
    fn take(&mut self, into: &mut FrameSet) -> Result<Option<PageStatus>, RamError>;
}

impl Changes for ChangeLog {
    fn take(&mut self, into: &mut FrameSet) -> Result<Option<PageStatus>, RamError> {
        self.take(into)
    }
}

/// What changes, as rounds.
#[derive(Debug)]
pub(crate) struct Rounds<C = ChangeLog> {
    ram: Arc<GuestRam>,
    log: C,
    /// Frames that the next round sends.
    changed: FrameSet,
    /// Frames that are shared, as of the same moment.
    shared: FrameSet,
    status: Option<PageStatus>,
    number: u32,
}

impl Rounds {
    /// Stops to record changes.
    pub(crate) fn stop(self) -> Result<(), RoundsError> {
        Ok(self.log.stop()?)
    }
}

impl<C: Changes> Rounds<C> {
    /// The first round sends all of RAM.
    pub(crate) fn start(ram: Arc<GuestRam>, mut log: C) -> Result<Self, RoundsError> {
        let layout = ram.layout();
        let mut changed = FrameSet::full(layout);
        let status = log.take(&mut changed)?;
        let shared = FrameSet::new(layout);
        let mut rounds = Self { ram, log, changed, shared, status, number: 0 };
        rounds.sample_shared()?;
        Ok(rounds)
    }

    /// Adds what has changed since the last time.
    pub(crate) fn take_changes(&mut self) -> Result<(), RoundsError> {
        self.status = self.log.take(&mut self.changed)?;
        self.sample_shared()
    }

    /// Pages that the next round sends, private and shared.
    pub(crate) fn left(&self) -> Left {
        let all = self.changed.count();
        if self.status.is_none() {
            return Left { private_pages: 0, shared_pages: all };
        }
        let shared = self.changed.frames().filter(|&frame| self.shared.contains(frame)).count();
        Left { private_pages: all.saturating_sub(shared as u64), shared_pages: shared as u64 }
    }

    /// Sends all that has changed over all connections, and forgets it.
    ///
    /// `look_up` is asked now and then whether to stop.
    pub(crate) fn send(
        &mut self,
        senders: &mut [PageSender],
        sending: Option<&Sending>,
        tally: &Tally,
        look_up: &mut dyn FnMut() -> bool,
    ) -> Result<Duration, SenderError> {
        self.number = self.number.saturating_add(1);
        let (stop, begun) = (AtomicBool::new(false), Instant::now());
        let round = Round {
            number: self.number,
            ram: &self.ram,
            frames: &self.changed,
            shared: &self.shared,
            sending,
            stop: &stop,
            cursor: AtomicU64::new(0),
            tally,
        };
        send_on_all(senders, &round, look_up)?;
        self.changed.clear();
        Ok(begun.elapsed())
    }

    /// The round that was sent last, from 1.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    fn sample_shared(&mut self) -> Result<(), RoundsError> {
        self.shared.clear();
        let Some(status) = &self.status else { return Ok(()) };
        for region in status.shared_regions()? {
            self.shared.insert_range(region);
        }
        Ok(())
    }
}

/// One thread per connection; the first failure stops the others.
fn send_on_all(
    senders: &mut [PageSender],
    round: &Round<'_>,
    look_up: &mut dyn FnMut() -> bool,
) -> Result<(), SenderError> {
    thread::scope(|scope| {
        let (done, finished) = channel();
        let started = senders.iter_mut().try_for_each(|sender| {
            let done = done.clone();
            let send = move || {
                let result = sender.send_round(round);
                if result.is_err() {
                    round.stop.store(true, Ordering::Relaxed);
                }
                // Fails only if the round has ended.
                done.send(result).unwrap_or_default();
            };
            Builder::new().spawn_scoped(scope, send).map(drop)
        });
        drop(done);
        let mut failure = started.map_err(SenderError::Thread).err();
        if failure.is_some() {
            round.stop.store(true, Ordering::Relaxed);
        }
        loop {
            match finished.recv_timeout(LOOK_UP) {
                Ok(Ok(_end)) => {}
                // The others were stopped because of the first.
                Ok(Err(cause)) if matches!(failure, None | Some(SenderError::Stopped)) => {
                    failure = Some(cause);
                }
                Ok(Err(_later)) => {}
                Err(RecvTimeoutError::Timeout) => {
                    if look_up() {
                        round.stop.store(true, Ordering::Relaxed);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        failure.map_or(Ok(()), Err)
    })
}

/// Why changes are not known.
#[derive(Debug, Error)]
pub enum RoundsError {
    /// The dirty log.
    #[error("recording which pages the guest writes")]
    Log(#[from] RamError),
    /// The guest's page status.
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
}
