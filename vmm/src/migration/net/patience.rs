//! How long this host waits for its peer. There are two limits, the same for reading and for writing:
//!
//! - the silence (`--silence-s`), since the last byte that the peer sent or took;
//! - for one whole message or page frame, twice the silence, plus the time that its bytes need at [`RATE_MIN`].
//!
//! So a stall shorter than the silence ends nothing. A peer that is gone is noticed after the silence. A peer
//! that sends a byte now and then is given up after the second limit.

use std::io::{Error as IoError, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;

/// Least bytes a second of a message or page frame. It is less than any network has that guests are moved over,
/// and more than a peer sends that only keeps the connection open.
const RATE_MIN: u64 = 16 << 10;

/// How often a wait checks whether to give up.
const STEP: Duration = Duration::from_millis(50);

/// How long `len` bytes may take in all.
pub(crate) fn in_all(silence: Duration, len: usize) -> Duration {
    silence.saturating_mul(2).saturating_add(Duration::from_secs(len as u64 / RATE_MIN))
}

/// The time that one message or page frame may still take. Only time spent waiting counts: the time that this
/// host spends on the bytes is not the peer's fault.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    silence: Duration,
    /// Waited since the last byte.
    quiet: Duration,
    /// Waited in all.
    waited: Duration,
}

impl Patience {
    pub(crate) fn new(silence: Duration) -> Self {
        Self { silence, quiet: Duration::ZERO, waited: Duration::ZERO }
    }

    /// A byte has arrived, or the peer took one.
    pub(crate) fn moved(&mut self) {
        self.quiet = Duration::ZERO;
    }

    /// This host waited for so long.
    pub(crate) fn wait(&mut self, time: Duration) {
        self.quiet = self.quiet.saturating_add(time);
        self.waited = self.waited.saturating_add(time);
    }

    /// How much longer it may take, if it has `len` bytes.
    ///
    /// # Errors
    /// [`Overdue`] when the patience is at its end.
    pub(crate) fn left(&self, len: usize) -> Result<Duration, Overdue> {
        let seconds = self.silence.as_secs();
        let until_silent = self.silence.saturating_sub(self.quiet);
        let in_all = in_all(self.silence, len);
        match (until_silent, in_all.saturating_sub(self.waited)) {
            (Duration::ZERO, _) => Err(Overdue::Silent { seconds }),
            (_, Duration::ZERO) => Err(Overdue::Slow { len, seconds: in_all.as_secs() }),
            (until_silent, until_slow) => Ok(until_silent.min(until_slow)),
        }
    }
}

/// The wait for one message or page frame, and the check whether to give it up.
pub(crate) struct Wait<'a> {
    patience: Patience,
    len: usize,
    stop: &'a mut dyn FnMut() -> bool,
    /// Bytes that have arrived or were taken, on all connections: the thread that watches them reads it.
    count: Option<&'a AtomicU64>,
}

impl<'a> Wait<'a> {
    /// For `len` bytes; [`Wait::expect`] replaces that number.
    pub(crate) fn new(silence: Duration, len: usize, stop: &'a mut dyn FnMut() -> bool) -> Self {
        Self { patience: Patience::new(silence), len, stop, count: None }
    }

    /// Adds all bytes to `count` too.
    pub(crate) fn counting(self, count: &'a AtomicU64) -> Self {
        Self { count: Some(count), ..self }
    }

    /// It has `len` bytes, as its header says.
    pub(crate) fn expect(&mut self, len: usize) {
        self.len = len;
    }

    /// `bytes` have arrived, or were taken.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.patience.moved();
        if let Some(count) = self.count {
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// How long to wait now, before [`Wait::waited`] is told.
    ///
    /// # Errors
    /// [`Overdue`], also when it is no longer wanted.
    pub(crate) fn step(&mut self) -> Result<Duration, Overdue> {
        if (self.stop)() {
            return Err(Overdue::Unwanted);
        }
        Ok(self.patience.left(self.len)?.min(STEP))
    }

    pub(crate) fn waited(&mut self, time: Duration) {
        self.patience.wait(time);
    }
}

/// Why this host stops waiting for its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Overdue {
    /// No byte for too long.
    #[error("the peer has neither sent nor taken a byte for {seconds} s")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// Too few bytes.
    #[error("the peer is too slow: {len} bytes have taken more than {seconds} s")]
    Slow {
        /// How many would have been due.
        len: usize,
        /// How long.
        seconds: u64,
    },
    /// The wait was given up.
    #[error("it was given up")]
    Unwanted,
}

impl From<Overdue> for IoError {
    fn from(cause: Overdue) -> Self {
        Self::new(ErrorKind::TimedOut, cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    /// A stall of any length below the silence is forgiven, one that is as long is not.
    #[test]
    fn a_stall_shorter_than_the_silence_is_forgiven() {
        let mut patience = Patience::new(SILENCE);
        patience.wait(SILENCE - SECOND);
        assert_eq!(patience.left(64), Ok(SECOND));
        patience.moved();
        patience.wait(SILENCE - SECOND);
        assert_eq!(patience.left(64), Ok(SECOND));
        patience.wait(SECOND);
        assert_eq!(patience.left(64), Err(Overdue::Silent { seconds: 30 }));
    }

    /// A byte now and then is no way to hold anybody; a slow network has time for much.
    #[test]
    fn a_trickle_comes_to_an_end() {
        let mut patience = Patience::new(SILENCE);
        let ended = (0..1000).find(|_| {
            patience.moved();
            patience.wait(SECOND);
            patience.left(1 << 10).is_err()
        });
        assert_eq!(ended, Some(59));
        assert_eq!(patience.left(1 << 10), Err(Overdue::Slow { len: 1 << 10, seconds: 60 }));
        patience.left(4 << 20).unwrap();
        assert_eq!(in_all(SILENCE, 4 << 20), Duration::from_secs(60 + 256));
    }

    /// A wait that is given up ends at once.
    #[test]
    fn a_wait_that_is_given_up_ends() {
        let mut wanted = [false, true].into_iter();
        let mut stop = || wanted.next().unwrap();
        let mut wait = Wait::new(SILENCE, 64, &mut stop);
        assert_eq!(wait.step(), Ok(STEP));
        assert_eq!(wait.step(), Err(Overdue::Unwanted));
    }
}
