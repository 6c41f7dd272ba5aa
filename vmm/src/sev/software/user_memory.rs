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
    read_all([(address, bytes)])
}

/// Copies `bytes` to `address`.
///
/// # Errors
/// [`Errno::EFAULT`] if any byte cannot be written; earlier ones may have been.
pub(super) fn write(address: u64, bytes: &[u8]) -> Result<(), Errno> {
    write_all([(address, bytes)])
}

/// Fills buffers, each from its address, with one system call.
///
/// # Errors
/// [`Errno::EFAULT`] if any byte cannot be read.
pub(super) fn read_all<const N: usize>(parts: [(u64, &mut [u8]); N]) -> Result<(), Errno> {
    let mut remotes = [NOTHING; N];
    let mut len = 0;
    for (to, (address, bytes)) in remotes.iter_mut().zip(&parts) {
        *to = remote(*address, bytes.len())?;
        len += bytes.len();
    }
    let mut locals = parts.map(|(_, bytes)| IoSliceMut::new(bytes));
    let (locals, count) = (locals.as_mut_ptr().cast::<iovec>(), N as libc::c_ulong);
    let remotes = remotes.as_ptr();
    // SAFETY: `locals` are vectors over borrowed bytes (IoSliceMut has the layout of iovec), and the
    // kernel checks `remotes` itself.
    let copied = unsafe { libc::process_vm_readv(own_pid(), locals, count, remotes, count, 0) };
    complete(copied, len)
}

/// Copies buffers, each to its address, in order, with one system call.
///
/// # Errors
/// [`Errno::EFAULT`] if any byte cannot be written; earlier ones may have been.
pub(super) fn write_all<const N: usize>(parts: [(u64, &[u8]); N]) -> Result<(), Errno> {
    let mut remotes = [NOTHING; N];
    let mut len = 0;
    for (to, (address, bytes)) in remotes.iter_mut().zip(&parts) {
        *to = remote(*address, bytes.len())?;
        len += bytes.len();
    }
    let locals = parts.map(|(_, bytes)| IoSlice::new(bytes));
    let (locals, count) = (locals.as_ptr().cast::<iovec>(), N as libc::c_ulong);
    let remotes = remotes.as_ptr();
    // SAFETY: `locals` are vectors over borrowed bytes (IoSlice has the layout of iovec) that are only
    // read. The kernel checks `remotes`; that they are meant to be written is what `Platform` demands.
    let copied = unsafe { libc::process_vm_writev(own_pid(), locals, count, remotes, count, 0) };
    complete(copied, len)
}

/// A vector to be filled in.
const NOTHING: iovec = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

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
