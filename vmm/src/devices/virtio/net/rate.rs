//! A bucket of bytes: how much may pass, and how long to wait when it is empty.
//!
//! Pure data; the time comes from outside. A packet passes if anything at all is in the bucket, and
//! what it is longer than that is owed: so packets need not be cut, and over time no more passes than
//! is filled in.

use std::time::{Duration, Instant};

/// How many bytes pass in which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// What the bucket holds; more than 0.
    pub bytes: u32,
    /// In which time it is filled from empty to full; more than 0.
    pub refill: Duration,
}

/// A bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: RateLimit,
    /// What may pass; less than 0 is owed.
    left: i64,
    /// Up to when it was filled.
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(limit: RateLimit, now: Instant) -> Self {
        Self { limit, left: limit.bytes.into(), filled: now }
    }

    /// How long to wait before anything may pass; `None` if it may now.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        let missing = u64::try_from(1 - self.left).ok().filter(|missing| *missing > 0)?;
        let since = now.saturating_duration_since(self.filled);
        let needed = self.time_of(missing).saturating_sub(since);
        Some(needed.max(Duration::from_nanos(1)))
    }

    /// A packet of so many bytes passes.
    pub(super) fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled);
        let more = since.as_nanos() * u128::from(self.limit.bytes) / self.refill_ns();
        let more = i64::try_from(more).unwrap_or(i64::MAX);
        let left = self.left.saturating_add(more);
        if left >= self.limit.bytes.into() {
            (self.left, self.filled) = (self.limit.bytes.into(), now);
        } else if more > 0 {
            // Only the time that was counted: the rest of it goes into the next byte.
            self.filled += self.time_of(more.unsigned_abs());
            self.left = left;
        }
    }

    /// The time in which so many bytes are filled in, not rounded down.
    fn time_of(&self, bytes: u64) -> Duration {
        let bucket = u128::from(self.limit.bytes.max(1));
        let nanoseconds = (u128::from(bytes) * self.refill_ns()).div_ceil(bucket);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn refill_ns(&self) -> u128 {
        self.limit.refill.as_nanos().max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: RateLimit = RateLimit { bytes: 1000, refill: Duration::from_millis(100) };

    /// A full bucket lets a burst through, and then as much as is filled in.
    #[test]
    fn a_bucket_lets_a_burst_through() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(LIMIT, begin);
        bucket.take(600);
        assert_eq!(bucket.wait(begin), None);
        bucket.take(600);
        // 200 are owed, and one byte must be there: a byte takes 100 us.
        assert_eq!(bucket.wait(begin), Some(Duration::from_micros(20_100)));
        assert_eq!(
            bucket.wait(begin + Duration::from_millis(20)),
            Some(Duration::from_micros(100))
        );
        assert_eq!(bucket.wait(begin + Duration::from_micros(20_100)), None);
        // Never more than full, however long nothing passes.
        let later = begin + Duration::from_secs(1000);
        assert_eq!(bucket.wait(later), None);
        bucket.take(1000);
        assert!(bucket.wait(later).is_some());
    }

    proptest! {
        /// Whoever waits as told sends as soon as it may, and never more than a burst, one packet and
        /// what time fills in.
        #[test]
        fn no_more_passes_than_is_filled_in(
            bytes in 1_u32..100_000,
            refill_us in 1_u64..1_000_000,
            steps in vec((1_usize..70_000, 0_u64..50_000), 1..60),
        ) {
            let limit = RateLimit { bytes, refill: Duration::from_micros(refill_us) };
            let begin = Instant::now();
            let (mut bucket, mut now, mut passed) = (Bucket::new(limit, begin), begin, 0_u128);
            for (packet, idle_us) in steps {
                now += Duration::from_micros(idle_us);
                if let Some(wait) = bucket.wait(now) {
                    now += wait;
                    prop_assert_eq!(bucket.wait(now), None);
                }
                let elapsed = now.duration_since(begin).as_nanos();
                let filled = u128::from(bytes) + elapsed * u128::from(bytes) / limit.refill.as_nanos();
                prop_assert!(passed <= filled, "{} of {}", passed, filled);
                bucket.take(packet);
                passed += packet as u128;
            }
        }
    }
}
