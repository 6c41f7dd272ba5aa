//! A timer that wakes a card once.

use std::io::Error as IoError;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use log::debug;
use rustix::io::read;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Not running at first.
#[derive(Debug)]
pub(super) struct Timer(OwnedFd);

impl Timer {
    /// # Errors
    /// If the host has none to give.
    pub(super) fn new() -> Result<Self, IoError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Runs out after this time, in place of what it was set to before.
    pub(super) fn set(&self, after: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // No time at all would stop it.
        let after = after.max(Duration::from_nanos(1));
        let tv_sec = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
        let it_value = Timespec { tv_sec, tv_nsec: after.subsec_nanos().into() };
        let once = Itimerspec { it_interval: zero, it_value };
        if let Err(cause) = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once) {
            debug!("setting the timer of a network card: {cause}");
        }
    }

    /// Whether it has run out since the last call.
    pub(super) fn has_run_out(&self) -> bool {
        read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
