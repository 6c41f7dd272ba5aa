//! A pipe that is soon full: for outputs that nobody reads.

use std::io::{PipeReader, PipeWriter, pipe};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::io::{ioctl_fionbio, ioctl_fionread};
use rustix::pipe::fcntl_setpipe_size;

/// Bytes of a page, in which the kernel counts what a pipe holds.
const PAGE_BYTES: usize = 4096;

/// How long a guest may take to print a page. Generous: the lab is emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// The reading end of a pipe of two pages.
#[derive(Debug)]
pub struct ShortPipe(pub PipeReader);

impl ShortPipe {
    /// A pipe whose writing end is as somebody else may have left it.
    ///
    /// # Panics
    /// If the host has no pipe to give.
    #[must_use]
    pub fn new(is_non_blocking: bool) -> (Self, PipeWriter) {
        let (reader, writer) = pipe().expect("a pipe");
        fcntl_setpipe_size(&writer, 2 * PAGE_BYTES).expect("a pipe of two pages");
        ioctl_fionbio(&writer, is_non_blocking).expect("a pipe");
        (Self(reader), writer)
    }

    /// Waits until a writer that asks before it writes is told that there is no room: when the second page
    /// has its first byte.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn wait_until_full(&self) {
        let deadline = Instant::now() + PATIENCE;
        while ioctl_fionread(&self.0).expect("a pipe") <= PAGE_BYTES as u64 {
            assert!(Instant::now() < deadline, "the guest does not print enough");
            park_timeout(Duration::from_millis(10));
        }
    }
}
