//! Checks that pinned guest RAM stays as it is: to unmap, protect, move or discard any of it while its VM is there
//! would make the kernel write back the caches of all CPUs, and ends the test.

use std::ffi::{c_int, c_long, c_void};

use super::{INSIDE, open_files};

/// Ends the process if these bytes are the RAM of an SEV guest.
fn keep(what: &str, address: *mut c_void, bytes: usize) {
    if INSIDE.get() {
        return;
    }
    let vms: Vec<_> = open_files().vms.values().cloned().collect();
    if vms.iter().any(|vm| vm.has_pinned(address as u64, bytes as u64)) {
        eprintln!("epyc: {what} of {bytes:#x} bytes at {address:?}, which an SEV guest has pinned");
        std::process::abort();
    }
}

/// What a system call returns to C, with errno set.
fn returned(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

/// `munmap(2)`.
///
/// # Safety
/// As the kernel's.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn munmap(address: *mut c_void, bytes: usize) -> c_int {
    keep("munmap", address, bytes);
    // SAFETY: the call of whoever called us, unchanged.
    returned(unsafe { libc::syscall(libc::SYS_munmap, address, bytes) })
}

/// `mprotect(2)`.
///
/// # Safety
/// As the kernel's.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mprotect(
    address: *mut c_void,
    bytes: usize,
    protection: c_int,
) -> c_int {
    keep("mprotect", address, bytes);
    // SAFETY: the call of whoever called us, unchanged.
    returned(unsafe { libc::syscall(libc::SYS_mprotect, address, bytes, protection) })
}

/// `madvise(2)`.
///
/// # Safety
/// As the kernel's.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn madvise(
    address: *mut c_void,
    bytes: usize,
    advice: c_int,
) -> c_int {
    let harmless = [libc::MADV_POPULATE_WRITE, libc::MADV_HUGEPAGE, libc::MADV_DONTFORK];
    if !harmless.contains(&advice) {
        keep("madvise", address, bytes);
    }
    // SAFETY: the call of whoever called us, unchanged.
    returned(unsafe { libc::syscall(libc::SYS_madvise, address, bytes, advice) })
}

/// `mmap(2)`, which replaces what is there if it is told to.
///
/// # Safety
/// As the kernel's.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mmap(
    address: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    if flags & libc::MAP_FIXED != 0 {
        keep("mmap", address, bytes);
    }
    // SAFETY: the call of whoever called us, unchanged.
    let mapped =
        unsafe { libc::syscall(libc::SYS_mmap, address, bytes, protection, flags, fd, offset) };
    mapped.cast_unsigned() as usize as *mut c_void
}
