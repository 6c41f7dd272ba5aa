//! Lines from a socket: bounded in length, and in time.

use std::io::{Error as IoError, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use thiserror::Error;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// What has come and was not yet handed on.
#[derive(Debug)]
pub(super) struct LineReader<'a> {
    stream: &'a UnixStream,
    pending: Vec<u8>,
    bytes_max: usize,
}

impl<'a> LineReader<'a> {
    /// Lines of at most `bytes_max` bytes, line feed included.
    pub(super) fn new(stream: &'a UnixStream, bytes_max: usize) -> Self {
        Self { stream, pending: Vec::new(), bytes_max }
    }

    /// The next line with its line feed; `None` at the end of the stream.
    ///
    /// The whole line must have come by `deadline`, however many bytes come before.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> Result<Option<Vec<u8>>, LineError> {
        let (mut searched, mut chunk) = (0, vec![0; CHUNK]);
        loop {
            let fresh = self.pending.iter().skip(searched);
            if let Some(at) = fresh.enumerate().find(|&(_, &byte)| byte == b'\n') {
                let rest = self.pending.split_off(searched + at.0 + 1);
                let line = std::mem::replace(&mut self.pending, rest);
                let fits = line.len() <= self.bytes_max;
                return if fits { Ok(Some(line)) } else { Err(self.too_long()) };
            }
            searched = self.pending.len();
            if searched >= self.bytes_max {
                return Err(self.too_long());
            }
            match self.read(&mut chunk, deadline)? {
                0 if searched == 0 => return Ok(None),
                0 => return Err(LineError::Cut),
                count => self.pending.extend(chunk.iter().take(count)),
            }
        }
    }

    /// Whether bytes came after the last line that was handed on.
    pub(super) fn has_more(&self) -> bool {
        !self.pending.is_empty()
    }

    fn too_long(&self) -> LineError {
        LineError::TooLong { bytes_max: self.bytes_max }
    }

    fn read(&mut self, chunk: &mut [u8], deadline: Option<Instant>) -> Result<usize, LineError> {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(LineError::Late);
            }
            self.stream.set_read_timeout(left)?;
            match self.stream.read(chunk) {
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                // The kernel's clock for this may be a little early.
                Err(cause)
                    if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&cause.kind()) => {}
                read => return Ok(read?),
            }
        }
    }
}

/// Why there is no line.
#[derive(Debug, Error)]
pub enum LineError {
    /// Longer than allowed.
    #[error("a line of more than {bytes_max} bytes")]
    TooLong {
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// Not all of it came in time.
    #[error("no whole line came in time")]
    Late,
    /// The other end went away in the middle of it.
    #[error("the connection ended in the middle of a line")]
    Cut,
    /// The socket.
    #[error("reading from the socket: {0}")]
    Read(#[from] IoError),
}
