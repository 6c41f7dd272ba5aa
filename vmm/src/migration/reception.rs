//! What the destination keeps count of while a guest arrives, for progress and the summary.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::handover::journal::Side;
use super::progress::{Carried, Outcome, Phase, PhaseClock, Progress, Summary};
use super::wire::Transfer;
use crate::machine::pinning::Pinned;

/// Pages and bytes that have arrived, counted by all placers.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) shared: AtomicU64,
    pub(crate) zero: AtomicU64,
    pub(crate) private: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Bytes of any kind on any connection, whole or not: it grows while the source is there.
    pub(crate) taken: AtomicU64,
    /// Rounds that have arrived whole.
    pub(crate) rounds: AtomicU32,
}

/// One guest's account.
#[derive(Debug, Clone)]
pub struct Reception {
    begun: Instant,
    clock: PhaseClock,
    progress: Progress,
    connections: u16,
}

impl Reception {
    /// The source connected at `begun`, and has offered this transfer.
    pub(crate) fn new(begun: Instant, transfer: Transfer, connections: u16) -> Self {
        let progress = Progress::new(transfer, Side::Destination);
        Self { begun, clock: PhaseClock::new(), progress, connections }
    }

    /// A phase begins.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.clock.enter(phase, self.begun.elapsed());
        self.progress.phase = phase;
    }

    /// So much of the guest's memory is pinned here.
    pub(crate) fn pinned(&mut self, pinned: Pinned) {
        self.progress.pinned = Some(pinned);
    }

    /// How things stand, with what the placers have counted.
    pub(crate) fn progress(&mut self, arrived: &Arrived) -> &Progress {
        self.progress.elapsed_ms = milliseconds(self.begun.elapsed());
        self.progress.round = arrived.rounds.load(Ordering::Relaxed).saturating_add(1);
        self.progress.carried = Carried {
            private_pages: arrived.private.load(Ordering::Relaxed),
            shared_pages: arrived.shared.load(Ordering::Relaxed),
            zero_pages: arrived.zero.load(Ordering::Relaxed),
            wire_bytes: arrived.bytes.load(Ordering::Relaxed),
        };
        &self.progress
    }

    /// All has arrived, in so many rounds; what is left is to decide who owns the guest.
    pub(crate) fn all_arrived(&mut self, arrived: &Arrived, rounds: u32) {
        self.progress(arrived);
        self.progress.round = rounds;
        self.enter(Phase::Handover);
    }

    /// How far it has come.
    #[must_use]
    pub fn now(&self) -> &Progress {
        &self.progress
    }

    /// It is over.
    #[must_use]
    pub fn summary(mut self, outcome: Outcome) -> Summary {
        self.enter(Phase::Done);
        Summary {
            transfer: self.progress.transfer,
            side: Side::Destination,
            outcome,
            rounds: self.progress.round,
            throttle_percent_max: 0,
            connections: self.connections,
            carried: self.progress.carried,
            phases: self.clock.times(),
            // Only the source knows when the guest stood still.
            downtime_us: None,
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

    /// The summary has what arrived, and says on which side it was written.
    #[test]
    fn a_reception_adds_up() {
        let transfer = Transfer { vm: VmId([7; 16]), epoch: 2 };
        let mut reception = Reception::new(Instant::now(), transfer, 3);
        let arrived = Arrived::default();
        arrived.private.store(5, Ordering::Relaxed);
        arrived.zero.store(6, Ordering::Relaxed);
        assert_eq!(reception.progress(&arrived).round, 1);
        arrived.rounds.store(2, Ordering::Relaxed);
        arrived.bytes.store(7, Ordering::Relaxed);
        reception.all_arrived(&arrived, 2);
        assert_eq!(reception.now().phase, Phase::Handover);
        let summary = reception.summary(Outcome::Moved);
        assert_eq!((summary.rounds, summary.connections), (2, 3));
        assert_eq!((summary.carried.pages(), summary.carried.wire_bytes), (11, 7));
        let text = summary.to_string();
        assert!(text.starts_with("moved: the guest runs here\n"), "{text}");
        assert!(!text.contains("downtime"), "{text}");
    }
}
