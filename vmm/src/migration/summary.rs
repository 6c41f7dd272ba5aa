//! What a migration has done, and from that when to pause the guest.

use std::sync::atomic::Ordering;
use std::time::Duration;

use thiserror::Error;

use super::sender::Sent;

/// Rounds after which a guest that writes faster than it can be sent is taken to never converge.
const ROUNDS_MAX: u32 = 100;

/// What happens when a migration takes too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overtime {
    /// It is given up, and the guest runs on.
    Cancel,
    /// The guest is paused for as long as the rest takes.
    Stop,
}

/// When to pause the guest for the last round.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How long the guest may be paused.
    pub downtime: Duration,
    /// How long the rounds before may take.
    pub timeout: Duration,
    /// What happens then.
    pub overtime: Overtime,
}

impl Plan {
    /// Whether to pause now, with `private` and `shared` pages left.
    ///
    /// # Errors
    /// [`GaveUp`] if it takes too long and that is what the user wants then.
    pub(super) fn decide(
        &self,
        summary: &Summary,
        (private, shared): (u64, u64),
        elapsed: Duration,
    ) -> Result<bool, GaveUp> {
        let expected = summary.expected(private, shared);
        if expected <= self.downtime {
            return Ok(true);
        }
        if elapsed < self.timeout && summary.rounds < ROUNDS_MAX {
            return Ok(false);
        }
        match self.overtime {
            Overtime::Stop => Ok(true),
            Overtime::Cancel => {
                Err(GaveUp { rounds: summary.rounds, elapsed, expected, allowed: self.downtime })
            }
        }
    }
}

/// The guest writes faster than it can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "after {rounds} rounds in {} s the rest would still pause the guest for {} ms, {} ms are allowed; \
     allow more downtime, or use --timeout-strategy stop",
    elapsed.as_secs(), expected.as_millis(), allowed.as_millis()
)]
pub struct GaveUp {
    /// Rounds so far.
    pub rounds: u32,
    /// Time so far.
    pub elapsed: Duration,
    /// How long the last round would take.
    pub expected: Duration,
    /// How long it may.
    pub allowed: Duration,
}

/// What a migration has done.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Names the attempt on its connections.
    pub(super) session: u64,
    /// What is being done.
    pub phase: &'static str,
    /// Private and shared pages that the next round sends.
    pub left: (u64, u64),
    /// Rounds, the last one with the guest paused.
    pub rounds: u32,
    /// Pages sent as they are.
    pub shared: u64,
    /// Zero pages, sent as flags.
    pub zero: u64,
    /// Pages sent as packets.
    pub private: u64,
    /// Bytes on all page connections.
    pub bytes: u64,
    /// Time in rounds.
    pub sending_for: Duration,
    /// From the pause to the word that the guest runs at the destination.
    pub paused_for: Option<Duration>,
    /// Private and shared pages of rounds so far, zero pages among the shared.
    counted: (u64, u64),
}

impl Summary {
    /// A round of `private` and `shared` pages took `elapsed`.
    pub(super) fn round(&mut self, (private, shared): (u64, u64), elapsed: Duration) {
        self.rounds = self.rounds.saturating_add(1);
        self.sending_for += elapsed;
        self.counted.0 += private;
        self.counted.1 += shared;
    }

    /// What the senders have counted.
    pub(super) fn count(&mut self, sent: &Sent) {
        self.shared = sent.shared.load(Ordering::Relaxed);
        self.zero = sent.zero.load(Ordering::Relaxed);
        self.private = sent.private.load(Ordering::Relaxed);
        self.bytes = sent.bytes.load(Ordering::Relaxed);
    }

    /// How long these pages will take at the speed so far.
    ///
    /// The firmware makes a private page cost far more than a shared one; with only the sum of both
    /// known, all time is charged to private pages where there are any, which errs on the safe side.
    fn expected(&self, private: u64, shared: u64) -> Duration {
        let per = |time: Duration, pages: u64| {
            time.checked_div(u32::try_from(pages.max(1)).unwrap_or(u32::MAX))
        };
        let (private_sent, shared_sent) = self.counted;
        let each = per(self.sending_for, if private_sent > 0 { private_sent } else { shared_sent });
        let left = if private_sent > 0 { private.saturating_add(shared) } else { shared };
        each.unwrap_or_default().saturating_mul(u32::try_from(left).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        downtime: Duration::from_millis(300),
        timeout: Duration::from_secs(60),
        overtime: Overtime::Cancel,
    };

    fn after_a_second_of(pages: (u64, u64)) -> Summary {
        let mut summary = Summary::default();
        summary.round(pages, Duration::from_secs(1));
        summary
    }

    /// At 1,000 pages a second 300 pages fit into 300 ms and 301 do not.
    #[test]
    fn the_guest_is_paused_when_the_rest_fits() {
        let summary = after_a_second_of((1000, 0));
        assert_eq!(PLAN.decide(&summary, (200, 100), Duration::ZERO), Ok(true));
        assert_eq!(PLAN.decide(&summary, (201, 100), Duration::ZERO), Ok(false));
        let plain = after_a_second_of((0, 1000));
        assert_eq!(PLAN.decide(&plain, (0, 300), Duration::ZERO), Ok(true));
        assert_eq!(PLAN.decide(&plain, (0, 301), Duration::ZERO), Ok(false));
    }

    /// At the timeout the strategy decides, and the reason has the figures.
    #[test]
    fn the_strategy_decides_at_the_timeout() {
        let summary = after_a_second_of((1000, 0));
        let late = PLAN.timeout;
        let gave_up = PLAN.decide(&summary, (1000, 0), late).unwrap_err();
        assert_eq!(gave_up.expected, Duration::from_secs(1));
        let stop = Plan { overtime: Overtime::Stop, ..PLAN };
        assert_eq!(stop.decide(&summary, (1000, 0), late), Ok(true));
    }

    /// A guest that always writes too much does not keep a migration going for ever.
    #[test]
    fn rounds_are_bounded() {
        let mut summary = Summary::default();
        for _ in 0..ROUNDS_MAX {
            summary.round((1000, 0), Duration::from_secs(1));
        }
        assert!(PLAN.decide(&summary, (1000, 0), Duration::ZERO).is_err());
    }
}
