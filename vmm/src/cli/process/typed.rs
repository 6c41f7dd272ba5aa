//! The bytes that were typed and that the guest has not taken yet.
//!
//! The thread that reads the keyboard puts bytes in and goes on. Another thread gives them to the guest. So a guest
//! that does not read does not delay the keys that are for sevferry.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that wait at most.
const BYTES_MAX: usize = 64 << 10;

/// Bytes that are taken at once: what the serial port's receive FIFO holds.
const AT_ONCE: usize = 64;

/// A bounded queue of bytes.
#[derive(Debug)]
pub(crate) struct Typed {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    /// How long to wait for a full queue, since something was last taken out of it; `None` is for ever.
    patience: Option<Duration>,
}

#[derive(Debug)]
struct Waiting {
    bytes: VecDeque<u8>,
    last_taken: Instant,
}

impl Typed {
    /// An empty queue with this patience.
    pub(crate) fn new(patience: Option<Duration>) -> Self {
        let waiting = Waiting { bytes: VecDeque::new(), last_taken: Instant::now() };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new(), patience }
    }

    /// Puts `byte` in. False if the byte is lost: the queue is full, and nothing was taken out of it for too long.
    pub(crate) fn put(&self, byte: u8) -> bool {
        let mut waiting = self.lock();
        while waiting.bytes.len() >= BYTES_MAX {
            let left = self.patience.map(|patience| {
                (waiting.last_taken + patience).saturating_duration_since(Instant::now())
            });
            waiting = match left {
                Some(Duration::ZERO) => return false,
                Some(left) => {
                    let waited = self.changed.wait_timeout(waiting, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
        waiting.bytes.push_back(byte);
        self.changed.notify_all();
        true
    }

    /// Takes the next bytes out. Waits for at least one.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut waiting = self.lock();
        while waiting.bytes.is_empty() {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.last_taken = Instant::now();
        self.changed.notify_all();
        let count = waiting.bytes.len().min(AT_ONCE);
        waiting.bytes.drain(..count).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread::scope;

    use super::*;

    fn byte(number: usize) -> u8 {
        number.to_le_bytes()[0]
    }

    /// However much is put in, it comes out in order, and nothing is lost while the bytes are taken.
    #[test]
    fn all_bytes_come_out_in_order() {
        const COUNT: usize = 3 * BYTES_MAX;
        for patience in [None, Some(Duration::from_secs(60))] {
            let typed = Typed::new(patience);
            scope(|scope| {
                scope.spawn(|| (0..COUNT).for_each(|i| assert!(typed.put(byte(i)), "{i}")));
                let mut taken = Vec::new();
                while taken.len() < COUNT {
                    taken.extend(typed.take());
                }
                assert!(taken.iter().copied().eq((0..COUNT).map(byte)));
            });
        }
    }

    /// If nothing takes the bytes, those that do not fit are lost without a wait. Those that did fit are kept.
    #[test]
    fn a_full_queue_is_not_waited_for_for_ever() {
        let typed = Typed::new(Some(Duration::from_millis(1)));
        let kept = (0..BYTES_MAX + 10).filter(|&i| typed.put(byte(i))).count();
        assert_eq!(kept, BYTES_MAX);
        assert_eq!(typed.take().len(), AT_ONCE);
        assert!(typed.put(0));
    }
}
