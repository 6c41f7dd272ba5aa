//! The output of a guest's serial port, and how to end the wait of a vCPU for its reader.

use std::io::{Error as IoError, Result as IoResult, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::write;

use crate::stream::write_all_unless;

/// The output of a guest's serial port. Clones write to the same place.
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
pub(super) struct OutputLine {
    output: SerialOutput,
    /// Can be read once the line is cut.
    cut: Arc<OwnedFd>,
}

impl OutputLine {
    pub(super) fn new(output: SerialOutput) -> IoResult<Self> {
        Ok(Self { output, cut: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?) })
    }

    /// From now on, output that would have to wait is lost.
    pub(super) fn cut(&self) -> IoResult<()> {
        write(&self.cut, &1_u64.to_ne_bytes()).map(|_eight| ()).map_err(IoError::from)
    }
}

impl Write for OutputLine {
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
