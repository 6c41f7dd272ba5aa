//! Decides after each round: another round, pause the guest now, or give up. No clock and no I/O: the caller gives
//! the times.
//!
//! The two kinds of pages cost different things. A shared page costs bytes on the wire. A private page costs a
//! firmware command: on hardware about half a millisecond, however fast the wire is, and the whole host shares one
//! firmware. So each kind has its own rate, measured in the rounds before, and the expected downtime is the sum.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::page::PAGE_SIZE;
use crate::vcpu::THROTTLE_MAX_PERCENT;

/// What every pause costs besides pages: stopping vCPUs, the machine's state, two journal writes and three
/// messages. No target below it could be met.
pub const FIXED_DOWNTIME: Duration = Duration::from_millis(10);

/// Most rounds, however fast they are.
pub const ROUNDS_MAX: u32 = 10_000;

/// Rounds without progress that make a stall.
const STALL_ROUNDS: u32 = 3;

/// A round's rate for a kind counts only if the round sent this many pages of that kind.
const SAMPLE_PAGES: u64 = 64;

/// Private pages per second until it is measured: half a millisecond each, a guess for hardware.
const PRIVATE_PAGES_PER_S: f64 = 2000.0;

/// Shared bytes per second until it is measured: a gigabit link.
const SHARED_BYTES_PER_S: f64 = 117e6;

/// The slow-down at the first stall, and what each further stall adds, in percent.
const THROTTLE_STEP_PERCENT: u32 = 20;

/// What to do when the time is over and the guest still writes faster than its pages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeoutStrategy {
    /// Cancel; the guest runs on at the source.
    #[default]
    Cancel,
    /// Pause the guest for as long as it takes.
    Stop,
}

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    /// The guest is paused when sending the rest is expected to take no longer than this. At least
    /// [`FIXED_DOWNTIME`].
    pub downtime: Duration,
    /// After this time, `strategy` decides.
    pub timeout: Duration,
    /// What to do after that time.
    pub strategy: TimeoutStrategy,
}

/// A finished round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeasuredRound {
    /// Private pages that it sent.
    pub private: Share,
    /// Shared pages that it sent with their bytes. Zero pages do not count.
    pub shared: Share,
}

/// One kind of page in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// How many pages.
    pub pages: u64,
    /// Time that they took: what all senders spent on them, divided by the number of senders.
    pub took: Duration,
}

/// Pages that the guest has written, or whose status has flipped, since they were last sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Left {
    /// Private ones.
    pub private_pages: u64,
    /// Shared ones.
    pub shared_pages: u64,
}

/// How fast pages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Private pages per second.
    pub private_pages_per_s: f64,
    /// Bytes of shared pages per second.
    pub shared_bytes_per_s: f64,
}

impl Rates {
    fn measure(&mut self, round: &MeasuredRound) {
        if let Some(rate) = rate(round.private) {
            self.private_pages_per_s = rate;
        }
        if let Some(rate) = rate(round.shared) {
            self.shared_bytes_per_s = rate * PAGE_SIZE as f64;
        }
    }

    /// How long the guest would be paused if it were paused now.
    #[must_use]
    pub fn downtime(&self, left: Left) -> Duration {
        let private = left.private_pages as f64 / self.private_pages_per_s;
        let shared = left.shared_pages as f64 * PAGE_SIZE as f64 / self.shared_bytes_per_s;
        let pages = Duration::try_from_secs_f64(private + shared).unwrap_or(Duration::MAX);
        FIXED_DOWNTIME.saturating_add(pages)
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self { private_pages_per_s: PRIVATE_PAGES_PER_S, shared_bytes_per_s: SHARED_BYTES_PER_S }
    }
}

/// Pages per second, if the sample is large enough.
fn rate(share: Share) -> Option<f64> {
    let seconds = share.took.as_secs_f64();
    (share.pages >= SAMPLE_PAGES && seconds > 0.0).then(|| share.pages as f64 / seconds)
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Send what is left while the guest runs.
    AnotherRound {
        /// How much to slow the guest down, in percent. From the first stall on it stays above 0, because at full
        /// speed the migration would only stall again.
        throttle_percent: u32,
    },
    /// Pause the guest and send what is left.
    PauseNow,
    /// Cancel.
    GiveUp(GaveUp),
}

/// Why a migration is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GaveUp {
    /// The time is over.
    #[error(
        "after {} s what is left would pause the guest for {} ms, and {} ms are allowed: allow \
         more, or choose to stop the guest at the timeout", .elapsed.as_secs(),
         .expected.as_millis(), .target.as_millis()
    )]
    TimedOut {
        /// Since the start.
        elapsed: Duration,
        /// If paused now.
        expected: Duration,
        /// As the user wants.
        target: Duration,
    },
    /// The destination has become slow.
    #[error(
        "the destination takes the last pages too slowly: the guest was paused for {} s, and {} ms \
         were expected", .paused.as_secs(), .expected.as_millis()
    )]
    PausedTooLong {
        /// So far.
        paused: Duration,
        /// When it was paused.
        expected: Duration,
    },
    /// Too many rounds.
    #[error("after {ROUNDS_MAX} rounds the guest still writes faster than its pages can be sent")]
    TooManyRounds,
}

/// The decisions of one migration.
#[derive(Debug, Clone)]
pub struct Convergence {
    goal: Goal,
    rates: Rates,
    rounds: u32,
    /// The least downtime expected so far.
    best: Duration,
    /// Rounds since then.
    rounds_since_best: u32,
    expected: Duration,
    throttle_percent: u32,
}

impl Convergence {
    /// Before the first page.
    #[must_use]
    pub fn new(goal: Goal) -> Self {
        let downtime = goal.downtime.max(FIXED_DOWNTIME);
        Self {
            goal: Goal { downtime, ..goal },
            rates: Rates::default(),
            rounds: 0,
            best: Duration::MAX,
            rounds_since_best: 0,
            expected: Duration::MAX,
            throttle_percent: 0,
        }
    }

    /// What to do after a round that ended `elapsed` after the start and left `left` to be sent.
    pub fn decide(&mut self, elapsed: Duration, round: &MeasuredRound, left: Left) -> Decision {
        self.rounds = self.rounds.saturating_add(1);
        self.rates.measure(round);
        self.expected = self.rates.downtime(left);
        self.watch();
        if self.expected <= self.goal.downtime {
            return Decision::PauseNow;
        }
        let is_over = elapsed >= self.goal.timeout || self.rounds >= ROUNDS_MAX;
        match self.goal.strategy {
            TimeoutStrategy::Stop if is_over => Decision::PauseNow,
            TimeoutStrategy::Cancel if is_over => Decision::GiveUp(self.gave_up(elapsed)),
            TimeoutStrategy::Stop | TimeoutStrategy::Cancel => {
                Decision::AnotherRound { throttle_percent: self.throttle_percent }
            }
        }
    }

    /// Whether to give up in the middle of a round. Pausing the guest there would not shorten the round.
    ///
    /// # Errors
    /// [`GaveUp::TimedOut`], if the strategy is to cancel.
    pub fn check(&self, elapsed: Duration) -> Result<(), GaveUp> {
        let is_over = elapsed >= self.goal.timeout;
        if is_over && self.goal.strategy == TimeoutStrategy::Cancel {
            return Err(self.gave_up(elapsed));
        }
        Ok(())
    }

    /// Whether a guest that has been paused for `paused` before its handover should run on here. A peer that suddenly
    /// reads slowly must not keep it paused. It may take twice the expected downtime, and two silences more.
    ///
    /// # Errors
    /// [`GaveUp::PausedTooLong`].
    pub fn check_pause(&self, paused: Duration, silence: Duration) -> Result<(), GaveUp> {
        let expected = self.expected;
        if paused > expected.saturating_add(silence).saturating_mul(2) {
            return Err(GaveUp::PausedTooLong { paused, expected });
        }
        Ok(())
    }

    /// The rates that were measured last.
    #[must_use]
    pub fn rates(&self) -> Rates {
        self.rates
    }

    /// The downtime that a pause after the last round would have had; `None` before the first.
    #[must_use]
    pub fn expected_downtime(&self) -> Option<Duration> {
        (self.rounds > 0).then_some(self.expected)
    }

    /// Whether more rounds do not help any more: the guest writes as fast as its pages are sent.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.rounds_since_best >= STALL_ROUNDS
    }

    /// A downtime at least a tenth below the least so far is progress. [`STALL_ROUNDS`] rounds without progress are
    /// a stall, and as many again are another.
    fn watch(&mut self) {
        if self.expected < self.best.saturating_sub(self.best / 10) {
            self.best = self.expected;
            self.rounds_since_best = 0;
        } else {
            self.rounds_since_best = self.rounds_since_best.saturating_add(1);
            if self.rounds_since_best.is_multiple_of(STALL_ROUNDS) {
                let more = self.throttle_percent.saturating_add(THROTTLE_STEP_PERCENT);
                self.throttle_percent = more.min(THROTTLE_MAX_PERCENT);
            }
        }
    }

    fn gave_up(&self, elapsed: Duration) -> GaveUp {
        if elapsed < self.goal.timeout {
            return GaveUp::TooManyRounds;
        }
        GaveUp::TimedOut { elapsed, expected: self.expected, target: self.goal.downtime }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn goal(strategy: TimeoutStrategy) -> Goal {
        Goal { downtime: 300 * MS, timeout: 60 * SECOND, strategy }
    }

    /// A round at hardware's price: half a millisecond per private page, 1 GB/s of shared pages.
    fn round(private_pages: u32, shared_pages: u32) -> MeasuredRound {
        let private = Share { pages: private_pages.into(), took: private_pages * MS / 2 };
        let shared = Share { pages: shared_pages.into(), took: shared_pages * MS / 250 };
        MeasuredRound { private, shared }
    }

    fn left(private_pages: u64, shared_pages: u64) -> Left {
        Left { private_pages, shared_pages }
    }

    const ANOTHER: Decision = Decision::AnotherRound { throttle_percent: 0 };

    /// The same number of pages left can be nothing or far too much: it depends on their kind.
    #[test]
    fn private_pages_are_counted_at_their_own_price() {
        let decide = |left| {
            let mut convergence = Convergence::new(goal(TimeoutStrategy::Cancel));
            let decision = convergence.decide(SECOND, &round(10_000, 10_000), left);
            (decision, convergence.expected_downtime().unwrap().as_millis())
        };
        assert_eq!(decide(left(0, 1000)), (Decision::PauseNow, 14));
        assert_eq!(decide(left(1000, 0)), (ANOTHER, 510));
        assert_eq!(decide(left(580, 0)), (Decision::PauseNow, 300));
        assert_eq!(decide(left(580, 250)), (ANOTHER, 301));
    }

    /// A few pages say little about the rate, so the one before stands.
    #[test]
    fn a_small_round_does_not_change_the_rate() {
        let mut convergence = Convergence::new(goal(TimeoutStrategy::Cancel));
        let _ = convergence.decide(SECOND, &round(1000, 1000), left(9000, 0));
        let measured = convergence.rates();
        assert!((measured.private_pages_per_s - 2000.0).abs() < 1.0, "{measured:?}");
        assert!((measured.shared_bytes_per_s - 1.024e9).abs() < 1e6, "{measured:?}");
        let slow = Share { pages: 63, took: SECOND };
        let slow = MeasuredRound { private: slow, shared: slow };
        let _ = convergence.decide(SECOND, &slow, left(9000, 0));
        assert_eq!(convergence.rates(), measured);
    }

    /// At the timeout the strategy decides, in the middle of a round too.
    #[test]
    fn the_timeout_ends_what_does_not_converge() {
        for (strategy, is_paused) in
            [(TimeoutStrategy::Stop, true), (TimeoutStrategy::Cancel, false)]
        {
            let mut convergence = Convergence::new(goal(strategy));
            let (sent, left) = (round(5000, 0), left(5000, 0));
            assert_eq!(convergence.decide(59 * SECOND, &sent, left), ANOTHER);
            assert_eq!(convergence.check(59 * SECOND), Ok(()));
            let decision = convergence.decide(60 * SECOND, &sent, left);
            assert_eq!(decision == Decision::PauseNow, is_paused);
            assert_eq!(matches!(decision, Decision::GiveUp(GaveUp::TimedOut { .. })), !is_paused);
            assert_eq!(convergence.check(60 * SECOND).is_err(), !is_paused);
        }
    }

    /// A destination that reads the last pages much slower than those before does not keep the guest.
    #[test]
    fn a_pause_comes_to_an_end() {
        let mut convergence = Convergence::new(goal(TimeoutStrategy::Stop));
        let _ = convergence.decide(60 * SECOND, &round(1000, 0), left(20_000, 0));
        assert_eq!(convergence.expected_downtime(), Some(10_010 * MS));
        let silence = 5 * SECOND;
        assert_eq!(convergence.check_pause(30 * SECOND, silence), Ok(()));
        let ended = convergence.check_pause(31 * SECOND, silence);
        assert!(matches!(ended, Err(GaveUp::PausedTooLong { .. })), "{ended:?}");
    }

    /// Rounds that leave as much as they sent are a stall, and the guest is slowed down more and more.
    #[test]
    fn a_stall_is_seen_and_answered() {
        let mut convergence = Convergence::new(goal(TimeoutStrategy::Cancel));
        let mut throttles = Vec::new();
        for _ in 0..20 {
            let decision = convergence.decide(SECOND, &round(5000, 0), left(5000, 0));
            let Decision::AnotherRound { throttle_percent } = decision else {
                panic!("{decision:?}");
            };
            throttles.push(throttle_percent);
        }
        assert_eq!(throttles[..8], [0, 0, 0, 20, 20, 20, 40, 40]);
        assert_eq!(throttles[19], 99);
        assert!(convergence.is_stalled());
        let decision = convergence.decide(SECOND, &round(5000, 0), left(4000, 0));
        let slowed = Decision::AnotherRound { throttle_percent: 99 };
        assert_eq!(decision, slowed, "it moves again, and is not let go");
        assert!(!convergence.is_stalled());
    }

    /// A target below what every pause costs is met when nothing is left.
    #[test]
    fn an_impossible_target_is_the_least_possible() {
        let goal = Goal { downtime: Duration::ZERO, ..goal(TimeoutStrategy::Cancel) };
        let mut convergence = Convergence::new(goal);
        assert_eq!(convergence.expected_downtime(), None);
        assert_eq!(convergence.decide(SECOND, &round(100, 100), left(1, 0)), ANOTHER);
        assert_eq!(convergence.decide(SECOND, &round(100, 100), left(0, 0)), Decision::PauseNow);
    }

    fn some_share() -> impl Strategy<Value = Share> {
        let took = prop_oneof![Just(0), 0..10_000_000_000_u64, any::<u64>()];
        let pages = prop_oneof![0..1_000_000_u64, any::<u64>()];
        (pages, took).prop_map(|(pages, took)| Share { pages, took: Duration::from_nanos(took) })
    }

    fn some_round() -> impl Strategy<Value = (MeasuredRound, Left)> {
        let pages = || prop_oneof![Just(0), 0..100_000_u64, any::<u64>()];
        (some_share(), some_share(), pages(), pages()).prop_map(|(private, shared, some, more)| {
            (MeasuredRound { private, shared }, left(some, more))
        })
    }

    proptest! {
        /// Whatever the rounds are, the guest is paused only within the target, or after the
        /// timeout when the user wants that; and nothing goes on after the timeout.
        #[test]
        fn the_guest_is_paused_only_as_agreed(
            rounds in prop::collection::vec(some_round(), 1..30),
            downtime_ms in 0..2000_u32,
            timeout_s in 0..40_u32,
            stops in any::<bool>(),
        ) {
            let strategy = if stops { TimeoutStrategy::Stop } else { TimeoutStrategy::Cancel };
            let goal = Goal { downtime: downtime_ms * MS, timeout: timeout_s * SECOND, strategy };
            let mut convergence = Convergence::new(goal);
            for (seconds, (round, left)) in (1_u32..).zip(rounds) {
                let elapsed = seconds * SECOND;
                let decision = convergence.decide(elapsed, &round, left);
                let expected = convergence.expected_downtime().unwrap();
                let is_good = expected <= goal.downtime.max(FIXED_DOWNTIME);
                let is_late = elapsed >= goal.timeout;
                match decision {
                    Decision::PauseNow => prop_assert!(is_good || is_late && stops),
                    Decision::GiveUp(_) => prop_assert!(is_late && !stops && !is_good),
                    Decision::AnotherRound { throttle_percent } => {
                        prop_assert!(!is_late && !is_good && throttle_percent <= 99);
                    }
                }
            }
        }

        /// It ends, even if time stands still and the guest never rests.
        #[test]
        fn it_always_ends(rounds in prop::collection::vec(some_round(), 1..5), stops in any::<bool>()) {
            let strategy = if stops { TimeoutStrategy::Stop } else { TimeoutStrategy::Cancel };
            let mut convergence = Convergence::new(goal(strategy));
            let ended = rounds.iter().cycle().take(ROUNDS_MAX as usize).any(|(round, left)| {
                let decision = convergence.decide(Duration::ZERO, round, *left);
                !matches!(decision, Decision::AnotherRound { .. })
            });
            prop_assert!(ended);
        }

        /// More that is left is never expected to be done sooner.
        #[test]
        fn more_takes_longer((round, less) in some_round(), more in any::<u64>()) {
            let mut rates = Rates::default();
            rates.measure(&round);
            for more in [
                left(less.private_pages.saturating_add(more), less.shared_pages),
                left(less.private_pages, less.shared_pages.saturating_add(more)),
            ] {
                prop_assert!(rates.downtime(less) <= rates.downtime(more));
            }
        }
    }
}
