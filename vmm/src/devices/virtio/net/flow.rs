//! One direction of a card: what it may carry, what it lost, and what is left after a turn of work.

use std::time::{Duration, Instant};

use super::drops::Drops;
use super::rate::{Bucket, RateLimit};

/// Most packets of a queue, and commands, before others have their turn.
pub(super) const AT_A_TIME: usize = 64;

/// To the network, or from it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) drops: Drops,
    bucket: Option<Bucket>,
}

/// What is left to do on a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing, until a bell or the tap says so.
    Nothing,
    /// More, at once.
    More,
    /// More, after this time.
    Later(Duration),
}

impl Flow {
    pub(super) fn new(limit: Option<RateLimit>) -> Self {
        let bucket = limit.map(|limit| Bucket::new(limit, Instant::now()));
        Self { drops: Drops::default(), bucket }
    }

    /// How long a packet would have to wait.
    pub(super) fn wait(&mut self) -> Option<Duration> {
        self.bucket.as_mut().and_then(|bucket| bucket.wait(Instant::now()))
    }

    /// A packet of so many bytes has passed.
    pub(super) fn take(&mut self, bytes: usize) {
        if let Some(bucket) = &mut self.bucket {
            bucket.take(bytes);
        }
    }
}
