//! Copies from and to this process's own addresses that may be bad, as the kernel does it.
#![expect(unsafe_code, reason = "system calls that copy memory by address")]

use std::io::{IoSlice, IoSliceMut};
use std::process;

use libc::iovec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::sev::Errno;

/// The structure at `address`.
///
/// # Errors
/// [`Errno::EFAULT`] if it cannot be read.
pub(super) fn read_value<T: FromBytes + IntoBytes>(address: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    read(address, value.as_mut_bytes())?;
    Ok(value)
}

/// Writes a structure at `address`.
///
/// # Errors
/// [`Errno::EFAULT`] if it cannot be written.
pub(super) fn write_value<T: IntoBytes + Immutable>(address: u64, value: &T) -> Result<(), Errno> {
    write(address, value.as_bytes())
}

/// Fills `bytes` from `address`.
///
/// # Errors
/// [`Errno::EFAULT`] if any byte cannot be read.
pub(super) fn read(address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
    let len = bytes.len();
    let remote = remote(address, len)?;
    let mut local = IoSliceMut::new(bytes);
    let local = (&raw mut local).cast::<iovec>();
    // SAFETY: `local` is one vector over borrowed bytes (IoSliceMut has the layout of iovec), and the
    // kernel checks `remote` itself.
    let copied = unsafe { libc::process_vm_readv(own_pid(), local, 1, &raw const remote, 1, 0) };
    complete(copied, len)
}

/// Copies `bytes` to `address`.
///
/// # Errors
/// [`Errno::EFAULT`] if any byte cannot be written; earlier ones may have been.
pub(super) fn write(address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let len = bytes.len();
    let remote = remote(address, len)?;
    let local = IoSlice::new(bytes);
    let local = (&raw const local).cast::<iovec>();
    // SAFETY: `local` is one vector over borrowed bytes (IoSlice has the layout of iovec) that is only
    // read. The kernel checks `remote`; that it is meant to be written is what `Platform` demands.
    let copied = unsafe { libc::process_vm_writev(own_pid(), local, 1, &raw const remote, 1, 0) };
    complete(copied, len)
}

fn remote(address: u64, len: usize) -> Result<iovec, Errno> {
    let address = usize::try_from(address).map_err(|_too_large| Errno::EFAULT)?;
    Ok(iovec { iov_base: std::ptr::with_exposed_provenance_mut(address), iov_len: len })
}

fn own_pid() -> libc::pid_t {
    process::id().cast_signed()
}

fn complete(copied: isize, len: usize) -> Result<(), Errno> {
    if usize::try_from(copied) == Ok(len) { Ok(()) } else { Err(Errno::EFAULT) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::command::{address_of, address_of_mut};

    /// Bytes at good addresses arrive; bad addresses are an error, not a crash.
    #[test]
    fn copies_or_says_efault() {
        let source = [1_u8, 2, 3];
        let mut copy = [0_u8; 3];
        read(address_of(&source), &mut copy).unwrap();
        assert_eq!(copy, source);
        let mut target = [0_u8; 3];
        write(address_of_mut(&mut target), &source).unwrap();
        assert_eq!(target, source);
        for address in [0, 1, 0xdead_0000, 1 << 63, u64::MAX] {
            assert_eq!(read(address, &mut copy), Err(Errno::EFAULT), "{address:#x}");
            assert_eq!(write(address, &source), Err(Errno::EFAULT), "{address:#x}");
        }
    }
}
