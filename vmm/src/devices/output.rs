//! Where what a guest writes to its serial port goes, and how a vCPU that waits for it is let go.

use std::io::{Error as IoError, Result as IoResult, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::write;

use crate::stream::write_all_unless;

/// Where what a guest writes to its serial port goes. Clones go to the same place.
#[derive(Debug, Clone)]
pub struct SerialOutput(Option<Arc<OwnedFd>>);

impl SerialOutput {
    /// Nowhere.
    #[must_use]
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// To a file, pipe or terminal, blocking or not.
    pub fn to(stream: impl Into<OwnedFd>) -> Self {
        Self(Some(Arc::new(stream.into())))
    }
}

/// A UART's line to its output. A vCPU that writes waits for the reader, until the line is cut.
#[derive(Debug, Clone)]
pub(super) struct Line {
    output: SerialOutput,
    /// Can be read once the line is cut.
    cut: Arc<OwnedFd>,
}

impl Line {
    pub(super) fn new(output: SerialOutput) -> IoResult<Self> {
        Ok(Self { output, cut: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?) })
    }

    /// From now on, what would have to be waited for is lost.
    pub(super) fn cut(&self) -> IoResult<()> {
        write(&self.cut, &1_u64.to_ne_bytes()).map(|_eight| ()).map_err(IoError::from)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        if let Self { output: SerialOutput(Some(output)), cut } = self {
            write_all_unless(output, bytes, cut)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> IoResult<()> {
        Ok(())
    }
}
