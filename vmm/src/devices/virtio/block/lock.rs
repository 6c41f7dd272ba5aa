//! The lock on a disk's file: one writer, or readers.
//!
//! An open file description lock on all of the file, as Cloud Hypervisor takes one; QEMU's, on a few
//! bytes, conflict with it. The kernel hands it to the file server where there is one (NFS 4,
//! `CephFS`, GFS2, OCFS2), and so it holds between hosts. On a block device it holds within one host.

#![expect(unsafe_code, reason = "the one file that calls fcntl with a struct flock")]

use std::fs::File;
use std::io::Error as IoError;
use std::os::fd::AsRawFd;

/// How a file is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nobody else has it.
    Alone,
    /// Nobody else writes.
    Shared,
    /// Not at all.
    Free,
}

/// Locks all of `file` so, at once.
///
/// # Errors
/// `EAGAIN` if somebody else has it; what the file system says.
pub(super) fn hold(file: &File, hold: Hold) -> Result<(), IoError> {
    let kind = match hold {
        Hold::Alone => libc::F_WRLCK,
        Hold::Shared => libc::F_RDLCK,
        Hold::Free => libc::F_UNLCK,
    };
    // From the start, and 0 bytes: to the end, wherever it will be.
    let lock = libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the kernel only reads the struct, which lives that long.
    let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if locked == 0 { Ok(()) } else { Err(IoError::last_os_error()) }
}
