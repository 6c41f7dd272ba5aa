//! What the source keeps count of while it sends, for decisions, progress and the summary.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::convergence::{Convergence, Decision, GaveUp, Left, Round, Share};
use super::handover::journal::Side;
use super::progress::{Carried, Outcome, Phase, PhaseClock, Progress, Summary};
use super::source::Options;
use super::source::sender::Sent;
use crate::machine::pinning::Pinned;

/// One attempt's account.
#[derive(Debug)]
pub(crate) struct Account {
    begun: Instant,
    paused: Option<Instant>,
    /// How long the destination may be silent.
    silence: Duration,
    clock: PhaseClock,
    convergence: Convergence,
    progress: Progress,
    connections: u16,
    /// The most that the guest was slowed down.
    throttle_percent_max: u32,
    /// What had been sent when the last round ended.
    before: (Carried, Duration),
    /// What the round began with.
    of_round: Left,
}

impl Account {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            begun: Instant::now(),
            paused: None,
            silence: options.silence,
            clock: PhaseClock::new(),
            convergence: Convergence::new(options.goal),
            progress: Progress::new(options.transfer, Side::Source),
            connections: options.connections,
            throttle_percent_max: 0,
            before: (Carried::default(), Duration::ZERO),
            of_round: Left::default(),
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

    /// The destination has pinned so much of the guest's memory.
    pub(crate) fn pinned(&mut self, pinned: Pinned) {
        self.progress.pinned = Some(pinned);
    }

    /// A round begins with this much to send.
    pub(crate) fn begin_round(&mut self, left: Left) {
        self.progress.round = self.progress.round.saturating_add(1);
        self.progress.left = left;
        self.of_round = left;
    }

    /// How things stand, with what the senders have counted.
    pub(crate) fn progress(&mut self, sent: &Sent) -> &Progress {
        self.progress.elapsed_ms =
            u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = carried(sent);
        self.progress.carried = now;
        let shared = |carried: &Carried| carried.shared_pages + carried.zero_pages;
        self.progress.left = Left {
            private_pages: self
                .of_round
                .private_pages
                .saturating_sub(now.private_pages - self.before.0.private_pages),
            shared_pages: self
                .of_round
                .shared_pages
                .saturating_sub(shared(&now) - shared(&self.before.0)),
        };
        &self.progress
    }

    /// Whether the time is over in the middle of a round.
    pub(crate) fn check(&self) -> Result<(), GaveUp> {
        match self.paused {
            None => self.convergence.check(self.begun.elapsed()),
            Some(paused) => self.convergence.check_pause(paused.elapsed(), self.silence),
        }
    }

    /// A round took `elapsed`, and `left` has changed meanwhile.
    pub(crate) fn end_round(&mut self, sent: &Sent, elapsed: Duration, left: Left) -> Decision {
        let now = (carried(sent), Duration::from_nanos(sent.sealing_ns.load(Ordering::Relaxed)));
        let sealing = (now.1 - self.before.1) / u32::from(self.connections.max(1));
        let round = Round {
            private: Share {
                pages: now.0.private_pages - self.before.0.private_pages,
                took: sealing,
            },
            shared: Share {
                pages: now.0.shared_pages - self.before.0.shared_pages,
                took: elapsed.saturating_sub(sealing),
            },
        };
        self.before = now;
        let decision = self.convergence.decide(self.begun.elapsed(), &round, left);
        self.progress.rates = Some(self.convergence.rates());
        self.progress.expected_downtime_ms = self
            .convergence
            .expected_downtime()
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self.progress.is_stalled = self.convergence.is_stalled();
        let changed = left.private_pages.saturating_add(left.shared_pages);
        let per_second = u128::from(changed) * 1_000_000 / elapsed.as_micros().max(1);
        self.progress.dirty_pages_per_s = u64::try_from(per_second).ok();
        decision
    }

    /// The guest is slowed down so much from now on.
    pub(crate) fn throttled(&mut self, percent: u32) {
        self.progress.throttle_percent = percent;
        self.throttle_percent_max = self.throttle_percent_max.max(percent);
    }

    /// It is over.
    pub(crate) fn summary(&mut self, sent: &Sent, outcome: Outcome) -> Summary {
        let downtime = self.paused.map(|paused| paused.elapsed());
        self.enter(Phase::Done);
        Summary {
            transfer: self.progress.transfer,
            side: Side::Source,
            outcome,
            rounds: self.progress.round,
            throttle_percent_max: self.throttle_percent_max,
            connections: self.connections,
            carried: carried(sent),
            phases: self.clock.times(),
            downtime_us: downtime.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

fn carried(sent: &Sent) -> Carried {
    Carried {
        private_pages: sent.private.load(Ordering::Relaxed),
        shared_pages: sent.shared.load(Ordering::Relaxed),
        zero_pages: sent.zero.load(Ordering::Relaxed),
        wire_bytes: sent.bytes.load(Ordering::Relaxed),
    }
}
