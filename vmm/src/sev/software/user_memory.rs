//! Copies from and to addresses of this process that may be bad, as the kernel does.
#![expect(unsafe_code, reason = "system calls that copy memory by address")]

use std::io::{IoSlice, IoSliceMut};
use std::process;
use std::ptr::with_exposed_provenance_mut;

use kvm_bindings::kvm_sev_cmd;
use libc::iovec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::page::PAGE_SIZE;
use crate::sev::Errno;
use crate::sev::command::address_of;

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

/// The structure of a page command; these run by the million: see [`require_mapped`].
///
/// # Errors
/// [`Errno::EFAULT`] if it is not mapped.
pub(super) fn read_argument<T: FromBytes + IntoBytes>(command: &kvm_sev_cmd) -> Result<T, Errno> {
    let (start, mut value) = (command.data, T::new_zeroed());
    let end = start.checked_add(size_of::<T>() as u64).ok_or(Errno::EFAULT)?;
    // Most callers have both on their stack, and then no system call is needed: the page of a command
    // that is borrowed is mapped.
    let page = address_of(command) & !(PAGE_SIZE - 1);
    if start < page || end > page + PAGE_SIZE {
        check_mapped((start, end))?;
    }
    copy_from(start, value.as_mut_bytes())?;
    Ok(value)
}

/// Fills two buffers, each from its address.
///
/// # Errors
/// [`Errno::EFAULT`] if a page of either is not mapped; nothing is then read.
pub(super) fn read_directly(parts: [(u64, &mut [u8]); 2]) -> Result<(), Errno> {
    require_mapped(parts.each_ref().map(|(address, bytes)| (*address, bytes.len())))?;
    for (address, bytes) in parts {
        copy_from(address, bytes)?;
    }
    Ok(())
}

/// Copies two buffers, each to its address.
///
/// # Errors
/// [`Errno::EFAULT`] if a page of either is not mapped; nothing is then written.
pub(super) fn write_directly(parts: [(u64, &[u8]); 2]) -> Result<(), Errno> {
    require_mapped(parts.map(|(address, bytes)| (address, bytes.len())))?;
    for (address, bytes) in parts {
        copy_to(address, bytes)?;
    }
    Ok(())
}

/// Refuses addresses that nothing is mapped at.
///
/// A copy by the kernel finds every bad address but costs about 1 us, and a page command needs two, beside
/// 2.5 us of cryptography. `msync` costs a tenth and finds what is not mapped; whether the mapping
/// allows the access, the rule of `Platform` for addresses says.
fn require_mapped(parts: [(u64, usize); 2]) -> Result<(), Errno> {
    let [first, second] = parts.map(|(address, len)| {
        let end = address.checked_add(len as u64).ok_or(Errno::EFAULT)?;
        Ok((address, end))
    });
    let (first, second): ((u64, u64), (u64, u64)) = (first?, second?);
    let whole = (first.0.min(second.0), first.1.max(second.1));
    let gap = first.0.max(second.0).saturating_sub(first.1.min(second.1));
    // Between two parts so close lies no page that neither of them touches.
    if gap < PAGE_SIZE {
        return check_mapped(whole);
    }
    check_mapped(first)?;
    check_mapped(second)
}

fn check_mapped((start, end): (u64, u64)) -> Result<(), Errno> {
    let start = start & !(PAGE_SIZE - 1);
    let remote = remote(start, usize::try_from(end - start).map_err(|_too_large| Errno::EFAULT)?)?;
    // SAFETY: without MS_SYNC and MS_INVALIDATE this only looks whether the pages are mapped.
    match unsafe { libc::msync(remote.iov_base, remote.iov_len, libc::MS_ASYNC) } {
        0 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

fn copy_from(address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
    let from = remote(address, bytes.len())?.iov_base.cast_const().cast::<u8>();
    // SAFETY: the pages are mapped, as was just checked, and by the rule of `Platform` the address is of
    // a buffer borrowed for the call; `bytes` is our own and no part of it.
    unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    Ok(())
}

fn copy_to(address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let to = remote(address, bytes.len())?.iov_base.cast::<u8>();
    // SAFETY: as in `copy_from`; the buffer is mutably borrowed for the call.
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    Ok(())
}

fn remote(address: u64, len: usize) -> Result<iovec, Errno> {
    let address = usize::try_from(address).map_err(|_too_large| Errno::EFAULT)?;
    Ok(iovec { iov_base: with_exposed_provenance_mut(address), iov_len: len })
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
    use crate::sev::command::address_of_mut;

    /// Copies without the kernel arrive too, whether their places are close or far apart.
    #[test]
    fn copies_directly() {
        let source: Vec<u8> = (0..=255).cycle().take(0x1_0000).collect();
        for gap in [0, 1, 4000, 0x8000] {
            let places = [100, 150 + gap].map(|at| address_of(&source[at..]));
            let (mut first, mut second) = ([0; 50], [0; 60]);
            read_directly([(places[0], &mut first), (places[1], &mut second)]).unwrap();
            assert_eq!(
                (first.as_slice(), second.as_slice()),
                (&source[100..150], &source[150 + gap..][..60])
            );
            let mut copy = vec![0; source.len()];
            let places = [100, 150 + gap].map(|at| address_of_mut(&mut copy[at..]));
            write_directly([(places[1], &second), (places[0], &first)]).unwrap();
            assert_eq!(
                (&copy[100..150], &copy[150 + gap..][..60]),
                (first.as_slice(), second.as_slice())
            );
        }
    }

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
            let command = kvm_sev_cmd { data: address, ..kvm_sev_cmd::default() };
            assert_eq!(read_argument::<u64>(&command), Err(Errno::EFAULT), "{address:#x}");
            let parts = [(address_of_mut(&mut target), source.as_slice()), (address, &source)];
            assert_eq!(write_directly(parts), Err(Errno::EFAULT), "{address:#x}");
            let [first, second] = parts;
            assert_eq!(write_directly([second, first]), Err(Errno::EFAULT), "{address:#x}");
            let mut other = [0_u8; 3];
            let parts = [(address_of(&source), other.as_mut_slice()), (address, &mut copy)];
            assert_eq!(read_directly(parts), Err(Errno::EFAULT), "{address:#x}");
            assert_eq!((target, other), (source, [0; 3]));
        }
    }
}
