//! How long a peer is waited for, the same in both directions: `--silence-s` since the last byte that
//! it sent, or took of ours; and for one message or page frame in all twice that, and what its bytes
//! need at [`RATE_MIN`].
//!
//! So a stall that is shorter than the silence ends nothing, a peer that is gone is noticed when the
//! silence ends, and one that sends a byte now and then holds nobody for long.

use std::io::{Error as IoError, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;

/// Bytes a second that a message or page frame may be relied on to have: less than any network that
/// guests are moved over, and more than a peer that only holds the line.
const RATE_MIN: u64 = 16 << 10;

/// How often waiting asks whether it is still wanted.
const STEP: Duration = Duration::from_millis(50);

/// How long something with `len` bytes may take in all.
pub(crate) fn in_all(silence: Duration, len: usize) -> Duration {
    silence.saturating_mul(2).saturating_add(Duration::from_secs(len as u64 / RATE_MIN))
}

/// The patience with one message or page frame. Only waiting uses it up: what this host does with
/// the bytes meanwhile is not the peer's fault.
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

    /// A byte has come, or was taken.
    pub(crate) fn moved(&mut self) {
        self.quiet = Duration::ZERO;
    }

    /// It was waited for so long.
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

/// The wait for one message or page frame, and who is asked meanwhile whether to give it up.
pub(crate) struct Wait<'a> {
    patience: Patience,
    len: usize,
    stop: &'a mut dyn FnMut() -> bool,
    /// Bytes that have come, or were taken, for whoever looks after all connections.
    count: Option<&'a AtomicU64>,
}

impl<'a> Wait<'a> {
    /// For something with `len` bytes; more may become known.
    pub(crate) fn new(silence: Duration, len: usize, stop: &'a mut dyn FnMut() -> bool) -> Self {
        Self { patience: Patience::new(silence), len, stop, count: None }
    }

    /// Counts all bytes there too.
    pub(crate) fn counting(self, count: &'a AtomicU64) -> Self {
        Self { count: Some(count), ..self }
    }

    /// It has so many bytes, as its header says.
    pub(crate) fn expect(&mut self, len: usize) {
        self.len = len;
    }

    /// So many bytes have come, or were taken.
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

/// Why a peer is not waited for any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Overdue {
    /// Not a byte.
    #[error("the peer has neither sent nor taken a byte for {seconds} s")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// Too few of them.
    #[error("the peer is too slow: {len} bytes have taken more than {seconds} s")]
    Slow {
        /// How many would have been due.
        len: usize,
        /// How long.
        seconds: u64,
    },
    /// Somebody wants no more.
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

    /// Whoever wants no more is heard first.
    #[test]
    fn whoever_wants_no_more_is_heard() {
        let mut wanted = [false, true].into_iter();
        let mut stop = || wanted.next().unwrap();
        let mut wait = Wait::new(SILENCE, 64, &mut stop);
        assert_eq!(wait.step(), Ok(STEP));
        assert_eq!(wait.step(), Err(Overdue::Unwanted));
    }
}
