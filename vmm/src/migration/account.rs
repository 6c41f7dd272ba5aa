//! What each side counts: pages, bytes and phases, for the progress and the summary.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::convergence::{Left, Rates};
use super::handover::journal::Side;
use super::progress::{Carried, Outcome, Phase, PhaseClock, Progress, Summary};
use super::wire::{PageKind, Transfer};
use crate::machine::pinning::Pinned;

/// Counted by the threads that send or place pages, at either side. Read by the thread that shows the progress.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    shared: AtomicU64,
    zero: AtomicU64,
    private: AtomicU64,
    bytes: AtomicU64,
    /// Source: nanoseconds that all senders together spent on sealing.
    sealing_ns: AtomicU64,
    /// Destination: all bytes on all connections, also of incomplete messages. It grows while the source is there.
    pub(crate) taken: AtomicU64,
    /// Destination: rounds that have arrived completely.
    rounds: AtomicU32,
}

impl Tally {
    /// A page frame has been sent, or placed.
    pub(crate) fn count(&self, kind: PageKind, pages: u8, bytes: usize) {
        let pages_of_kind = match kind {
            PageKind::Shared => &self.shared,
            PageKind::Zero => &self.zero,
            PageKind::Private => &self.private,
        };
        pages_of_kind.fetch_add(pages.into(), Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Adds the time that sealing a page took.
    pub(crate) fn sealed(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sealing_ns.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// How long all pages together took to seal.
    pub(crate) fn sealing(&self) -> Duration {
        Duration::from_nanos(self.sealing_ns.load(Ordering::Relaxed))
    }

    /// A round has arrived completely.
    pub(crate) fn round_arrived(&self, round: u32) {
        self.rounds.store(round, Ordering::Relaxed);
    }

    /// Pages and bytes so far.
    pub(crate) fn carried(&self) -> Carried {
        Carried {
            private_pages: self.private.load(Ordering::Relaxed),
            shared_pages: self.shared.load(Ordering::Relaxed),
            zero_pages: self.zero.load(Ordering::Relaxed),
            wire_bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// One migration's account, at either side.
#[derive(Debug, Clone)]
pub struct Account {
    begun: Instant,
    clock: PhaseClock,
    progress: Progress,
    connections: u16,
    /// Source: when the guest was paused.
    paused: Option<Instant>,
    /// Source: the most that the guest was slowed down.
    throttle_percent_max: u32,
    /// Source: pages to send when the round began, and pages sent by then.
    of_round: (Left, Carried),
}

impl Account {
    /// For a migration that began at `begun`.
    pub(crate) fn new(begun: Instant, transfer: Transfer, side: Side, connections: u16) -> Self {
        Self {
            begun,
            clock: PhaseClock::new(),
            progress: Progress::new(transfer, side),
            connections,
            paused: None,
            throttle_percent_max: 0,
            of_round: (Left::default(), Carried::default()),
        }
    }

    /// A phase begins.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.clock.enter(phase, self.begun.elapsed());
        self.progress.phase = phase;
        if phase == Phase::LastRound {
            self.paused = Some(Instant::now());
        }
    }

    /// The destination has pinned this much of the guest's memory.
    pub(crate) fn pinned(&mut self, pinned: Pinned) {
        self.progress.pinned = Some(pinned);
    }

    /// Source: a round begins with this much to send.
    pub(crate) fn begin_round(&mut self, left: Left, tally: &Tally) {
        self.progress.round = self.progress.round.saturating_add(1);
        self.progress.left = left;
        self.of_round = (left, tally.carried());
    }

    /// Source: what the last round shows about the next.
    pub(crate) fn expect(&mut self, rates: Rates, downtime: Option<Duration>, is_stalled: bool) {
        self.progress.rates = Some(rates);
        self.progress.expected_downtime_ms = downtime.map(milliseconds);
        self.progress.is_stalled = is_stalled;
    }

    /// Source: how many pages changed in a round, and how long it took.
    pub(crate) fn changed(&mut self, pages: u64, took: Duration) {
        let per_second = u128::from(pages) * 1_000_000 / took.as_micros().max(1);
        self.progress.dirty_pages_per_s = u64::try_from(per_second).ok();
    }

    /// Source: from now on the guest is slowed down by this much.
    pub(crate) fn throttled(&mut self, percent: u32) {
        self.progress.throttle_percent = percent;
        self.throttle_percent_max = self.throttle_percent_max.max(percent);
    }

    /// Destination: the guest has arrived, in this many rounds. The handover is left.
    pub(crate) fn all_arrived(&mut self, tally: &Tally, rounds: u32) {
        self.progress(tally);
        self.progress.round = rounds;
        self.enter(Phase::Handover);
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Source: for how long the guest has been paused, if it is.
    pub(crate) fn paused_for(&self) -> Option<Duration> {
        self.paused.map(|paused| paused.elapsed())
    }

    /// The progress now, with the present counts.
    pub(crate) fn progress(&mut self, tally: &Tally) -> &Progress {
        let now = tally.carried();
        self.progress.elapsed_ms = milliseconds(self.begun.elapsed());
        self.progress.carried = now;
        match self.progress.side {
            Side::Source => self.progress.left = self.left(&now),
            Side::Destination => {
                let arrived = tally.rounds.load(Ordering::Relaxed);
                self.progress.round = arrived.saturating_add(1);
            }
        }
        &self.progress
    }

    /// What is left of the round.
    fn left(&self, now: &Carried) -> Left {
        let (of_round, before) = &self.of_round;
        let shared = |carried: &Carried| carried.shared_pages.saturating_add(carried.zero_pages);
        let private = now.private_pages.saturating_sub(before.private_pages);
        let shared = shared(now).saturating_sub(shared(before));
        Left {
            private_pages: of_round.private_pages.saturating_sub(private),
            shared_pages: of_round.shared_pages.saturating_sub(shared),
        }
    }

    /// The progress as it was last.
    #[must_use]
    pub fn now(&self) -> &Progress {
        &self.progress
    }

    /// It is over.
    #[must_use]
    pub fn summary(mut self, outcome: Outcome) -> Summary {
        let downtime = self.paused_for();
        self.enter(Phase::Done);
        Summary {
            transfer: self.progress.transfer,
            side: self.progress.side,
            outcome,
            rounds: self.progress.round,
            throttle_percent_max: self.throttle_percent_max,
            connections: self.connections,
            carried: self.progress.carried,
            phases: self.clock.times(),
            downtime_us: downtime.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::wire::VmId;

    const TRANSFER: Transfer = Transfer { vm: VmId([7; 16]), epoch: 2 };

    /// The destination's summary has what arrived, and says on which side it was written.
    #[test]
    fn what_arrives_adds_up() {
        let mut account = Account::new(Instant::now(), TRANSFER, Side::Destination, 3);
        let tally = Tally::default();
        tally.count(PageKind::Private, 5, 4);
        tally.count(PageKind::Zero, 6, 2);
        assert_eq!(account.progress(&tally).round, 1);
        tally.round_arrived(2);
        tally.count(PageKind::Shared, 0, 1);
        account.all_arrived(&tally, 2);
        assert_eq!(account.now().phase, Phase::Handover);
        let summary = account.summary(Outcome::Moved);
        assert_eq!((summary.rounds, summary.connections), (2, 3));
        assert_eq!((summary.carried.pages(), summary.carried.wire_bytes), (11, 7));
        let text = summary.to_string();
        assert!(text.starts_with("moved: the guest runs here\n"), "{text}");
        assert!(!text.contains("downtime"), "{text}");
    }

    /// The source shows what is left of a round, and knows for how long the guest stood still.
    #[test]
    fn what_is_sent_is_not_left() {
        let mut account = Account::new(Instant::now(), TRANSFER, Side::Source, 1);
        let tally = Tally::default();
        tally.count(PageKind::Shared, 9, 1);
        account.begin_round(Left { private_pages: 10, shared_pages: 20 }, &tally);
        tally.count(PageKind::Private, 4, 1);
        tally.count(PageKind::Shared, 5, 1);
        tally.count(PageKind::Zero, 6, 1);
        let left = account.progress(&tally).left;
        assert_eq!(left, Left { private_pages: 6, shared_pages: 9 });
        account.enter(Phase::LastRound);
        let summary = account.summary(Outcome::Moved);
        assert_eq!((summary.side, summary.rounds), (Side::Source, 1));
        assert!(summary.downtime_us.is_some());
    }
}
