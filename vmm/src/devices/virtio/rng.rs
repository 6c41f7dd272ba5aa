//! The entropy device: random bytes of the host, in one queue.

use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use super::{BadState, Broken, DeviceKind, DeviceState, Queues, VirtioDevice};
use crate::memory::DeviceView;

/// Version of its state, which has no fields.
const VERSION: u32 = 1;

/// Entries of the queue.
const QUEUE_SIZE: u16 = 64;

/// Most bytes of one request that are filled: a driver that asks for more asks again.
const REQUEST_MAX: usize = 4096;

/// The device.
#[derive(Debug)]
pub struct Rng {
    source: File,
}

impl Rng {
    /// `VIRTIO_ID_RNG`, and what PCI has no class for.
    pub const KIND: DeviceKind = DeviceKind { id: 4, name: "rng", class: [0xff, 0, 0] };

    /// A device that gives the bytes of `source`, a character device as `/dev/urandom` is one.
    ///
    /// # Errors
    /// [`NoSource`].
    pub fn open(source: &Path) -> Result<Self, NoSource> {
        let failed = |cause| NoSource::Open { path: source.to_owned(), cause };
        let file = File::open(source).map_err(failed)?;
        if !file.metadata().map_err(failed)?.file_type().is_char_device() {
            return Err(NoSource::DeviceKind { path: source.to_owned() });
        }
        Ok(Self { source: file })
    }

    /// Whether a read would not wait. What cannot be polled never does for long.
    fn has_bytes(&self) -> bool {
        let mut polled = [PollFd::new(&self.source, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        Self::KIND
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.source.as_raw_fd()]
    }

    fn process(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let Some(mut queue) = queues.get(index) else { return Ok(()) };
        let mut bytes = [0; REQUEST_MAX];
        // Bytes first: a request is only taken if it can be answered.
        while self.has_bytes() {
            let Some(mut chain) = queue.pop()? else { break };
            let wanted = usize::try_from(chain.writable_bytes()).unwrap_or(usize::MAX);
            let into = bytes.get_mut(..wanted.min(REQUEST_MAX)).unwrap_or_default();
            let got = match self.source.read(into) {
                Ok(got) => got,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => 0,
                Err(cause) => return Err(Broken::Request(format!("its source: {cause}"))),
            };
            chain.write(into.get(..got).unwrap_or_default());
            queue.finish(chain.head(), chain.written())?;
        }
        Ok(())
    }

    fn wake(&mut self, _source: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        self.process(0, queues)
    }

    fn reset(&mut self) {}

    fn state(&self) -> DeviceState {
        DeviceState::new(&Self::KIND, VERSION, &())
    }

    fn restore(&mut self, state: &DeviceState, _memory: &DeviceView) -> Result<(), BadState> {
        state.read(&Self::KIND, VERSION)
    }
}

/// Nothing to take random bytes from.
#[derive(Debug, Error)]
pub enum NoSource {
    /// It cannot be opened.
    #[error("opening {} for the guest's random numbers", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: IoError,
    },
    /// A file, which would end.
    #[error(
        "{} is not a character device: random numbers come from /dev/urandom or the like",
        path.display()
    )]
    DeviceKind {
        /// The path.
        path: PathBuf,
    },
}
