//! Puts another kernel in this one's place, without a reset: `kexec KERNEL INITRAMFS CMDLINE`.
//!
//! Runs inside the guest. Both system calls are made by number: busybox has no kexec, and its reboot
//! does not know this way to do it. Of what user space has open nothing is closed or written first.

use std::ffi::{CString, c_long};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

/// `kexec_file_load(2)`, `reboot(2)` and its numbers, `include/uapi/linux/reboot.h`.
const SYS_KEXEC_FILE_LOAD: c_long = 320;
const SYS_REBOOT: c_long = 169;
const MAGIC: [c_long; 2] = [0xfee1_dead, 672_274_793];
const COMMAND_KEXEC: c_long = 0x4558_4543;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, cmdline] = &arguments[..] else {
        eprintln!("usage: kexec KERNEL INITRAMFS CMDLINE");
        return ExitCode::FAILURE;
    };
    let Err(error) = replace(kernel, initramfs, cmdline);
    eprintln!("kexec: {error}");
    ExitCode::FAILURE
}

/// Returns only if the kernel could not be replaced.
fn replace(kernel: &str, initramfs: &str, cmdline: &str) -> Result<std::convert::Infallible> {
    let open =
        |path: &str| File::open(path).map_err(|cause| Error::other(format!("{path}: {cause}")));
    let (kernel, initramfs, cmdline) = (open(kernel)?, open(initramfs)?, CString::new(cmdline)?);
    let bytes = cmdline.as_bytes_with_nul().len();
    // SAFETY: both files are open, and the command line is as long as it is said to be.
    let loaded = unsafe {
        let (kernel, initramfs) =
            (c_long::from(kernel.as_raw_fd()), c_long::from(initramfs.as_raw_fd()));
        syscall(SYS_KEXEC_FILE_LOAD, kernel, initramfs, bytes, cmdline.as_ptr(), 0_usize)
    };
    if loaded != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: it takes no pointers, and does not return once it has begun.
    unsafe { syscall(SYS_REBOOT, MAGIC[0], MAGIC[1], COMMAND_KEXEC, 0_usize) };
    Err(Error::last_os_error())
}
