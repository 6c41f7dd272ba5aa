//! A kernel or initramfs file: opened, its length known, its bytes read where asked.

use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use libc::O_NONBLOCK;

use super::error::BootError;

/// An open, non-empty, regular file.
#[derive(Debug)]
pub(super) struct Input {
    /// The name it was opened by, for messages.
    pub(super) path: PathBuf,
    /// Positioned anywhere.
    pub(super) file: File,
    /// Length in bytes when it was opened; at least 1.
    pub(super) bytes: u64,
}

impl Input {
    pub(super) fn open(path: &Path) -> Result<Self, BootError> {
        let failed = |cause| BootError::Read { path: path.into(), cause };
        // Opening a pipe would wait for its writer; regular files do not know this flag.
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
        let file = file.map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(BootError::NotAFile { path: path.into() });
        }
        match metadata.len() {
            0 => Err(BootError::Empty { path: path.into() }),
            bytes => Ok(Self { path: path.into(), file, bytes }),
        }
    }

    /// Fills `buffer` from `offset`; false if the file ends before that.
    pub(super) fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<bool, BootError> {
        let read =
            self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(buffer));
        match read {
            Ok(()) => Ok(true),
            Err(cause) if cause.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(cause) => Err(self.failed(cause)),
        }
    }

    /// The error for a read that failed.
    pub(super) fn failed(&self, cause: IoError) -> BootError {
        BootError::Read { path: self.path.clone(), cause }
    }
}
