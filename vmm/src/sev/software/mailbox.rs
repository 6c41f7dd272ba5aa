//! The time that firmware commands take: the secure processor runs them one after the other.

use std::hint::spin_loop;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A parked thread may wake this much too late, so the last part of a wait is spent spinning.
const WAKE_UP: Duration = Duration::from_micros(80);

/// The queue of commands. They take no time unless a cost is set.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    cost: Duration,
    busy: Mutex<()>,
}

impl Mailbox {
    pub(super) fn new(cost: Duration) -> Self {
        Self { cost, busy: Mutex::new(()) }
    }

    /// Returns after the commands before this one, and this one, have taken their time.
    pub(super) fn wait(&self) {
        if self.cost.is_zero() {
            return;
        }
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        while let Some(left) = self.cost.checked_sub(start.elapsed()) {
            match left.checked_sub(WAKE_UP) {
                Some(sleep) if !sleep.is_zero() => thread::park_timeout(sleep),
                _ => spin_loop(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands of two threads take twice as long as those of one.
    #[test]
    fn commands_queue() {
        let mailbox = Mailbox::new(Duration::from_millis(2));
        let start = Instant::now();
        thread::scope(|scope| {
            for _thread in 0..2 {
                scope.spawn(|| (0..3).for_each(|_| mailbox.wait()));
            }
        });
        assert!(start.elapsed() >= Duration::from_millis(12));
        // Without a cost nobody waits, not even for the queue.
        let free = Mailbox::default();
        let _busy = free.busy.lock().unwrap();
        free.wait();
    }
}
