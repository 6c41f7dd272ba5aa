//! What of a disk's changes is durable, and what must be before the driver hears that they are done.

use super::layout::{CONFIG_WCE, FLUSH};

/// Counts changes of the disk; some of them may be in a cache of the host.
#[derive(Debug)]
pub(super) struct Cache {
    changes: u64,
    /// Those up to this one are durable, or it is known that they are not.
    flushed: u64,
    /// Whether what is written may wait until the driver flushes, if it chooses.
    pub(super) writeback: bool,
    /// Whether a flush of our own has failed, of which the driver's next one must tell.
    pub(super) flush_failed: bool,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { changes: 0, flushed: 0, writeback: true, flush_failed: false }
    }

    /// How many changes there were.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// The disk has changed, or may have.
    pub(super) fn changed(&mut self) {
        self.changes += 1;
    }

    /// A flush that was begun after so many changes has ended.
    pub(super) fn flushed(&mut self, changes: u64) {
        self.flushed = self.flushed.max(changes);
    }

    /// Whether nothing was changed since the last flush.
    pub(super) fn is_clean(&self) -> bool {
        self.changes == self.flushed
    }

    /// Whether a change must be durable before a driver with these features hears that it is done: one
    /// that cannot flush, or has said so in the configuration.
    pub(super) fn is_write_through(&self, features: u64) -> bool {
        if features & CONFIG_WCE != 0 { !self.writeback } else { features & FLUSH == 0 }
    }
}
