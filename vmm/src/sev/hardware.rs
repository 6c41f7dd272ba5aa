//! SEV by the kernel: ioctls on a KVM VM and on `/dev/sev`.
#![expect(unsafe_code, reason = "ioctls that take user addresses")]

use std::ffi::{c_ulong, c_void};
use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::fs::{File, OpenOptions};
use std::io::Error as IoError;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use kvm_bindings::{KVMIO, kvm_enc_region, kvm_sev_cmd};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::errno::Error as SystemError;
use vmm_sys_util::ioctl::{_IOC_READ, _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref};

use super::abi::SevIssueCmd;
use super::{Errno, Platform, SevDevice};
use crate::memory::GuestRam;

/// Where the kernel's ccp driver puts the secure processor.
pub const DEVICE_PATH: &str = "/dev/sev";

/// `SEV_ISSUE_CMD` in `include/uapi/linux/psp-sev.h`: `_IOWR('S', 0, struct sev_issue_cmd)`.
pub(super) const SEV_ISSUE_CMD: c_ulong = 0xc010_5300;

/// As `include/uapi/linux/kvm.h` has them, `_IOWR` of an `unsigned long` and `_IOR` of a region;
/// kvm-ioctls has numbers of its own, which a test holds against the same header.
pub(super) const KVM_MEMORY_ENCRYPT_OP: c_ulong = 0xc008_aeba;
pub(super) const KVM_MEMORY_ENCRYPT_REG_REGION: c_ulong = 0x8010_aebb;
pub(super) const KVM_MEMORY_ENCRYPT_UNREG_REGION: c_ulong = 0x8010_aebc;

const _: () = {
    assert!(size_of::<SevIssueCmd>() == 16);
    assert!(size_of::<c_ulong>() == 8);
    assert!(size_of::<kvm_enc_region>() == 16);
    let both = _IOC_READ | _IOC_WRITE;
    assert!(SEV_ISSUE_CMD == ioctl_expr(both, 0x53, 0, 16));
    assert!(KVM_MEMORY_ENCRYPT_OP == ioctl_expr(both, KVMIO, 0xba, 8));
    assert!(KVM_MEMORY_ENCRYPT_REG_REGION == ioctl_expr(_IOC_READ, KVMIO, 0xbb, 16));
    assert!(KVM_MEMORY_ENCRYPT_UNREG_REGION == ioctl_expr(_IOC_READ, KVMIO, 0xbc, 16));
};

/// A VM whose SEV commands the kernel and the AMD secure processor answer.
pub struct HardwarePlatform {
    /// Dropped before the RAM.
    vm: Arc<VmFd>,
    /// The guest's RAM. It must not be unmapped while there is the VM, because then the kernel writes back all caches.
    _ram: Option<Arc<GuestRam>>,
}

impl HardwarePlatform {
    /// The SEV side of `vm`, if the host has SEV.
    ///
    /// # Errors
    /// [`Unavailable::Kvm`].
    pub fn new(vm: Arc<VmFd>) -> Result<Self, Unavailable> {
        // SAFETY: a null argument asks whether SEV is usable; the kernel reads and writes nothing.
        match unsafe { vm.encrypt_op(ptr::null_mut::<c_void>()) } {
            Ok(()) => Ok(Self { vm, _ram: None }),
            Err(cause) => Err(Unavailable::Kvm { cause: errno(cause) }),
        }
    }

    /// The same; the guest's RAM stays mapped as long as this may keep the VM.
    #[must_use]
    pub fn keeping(self, ram: Arc<GuestRam>) -> Self {
        Self { _ram: Some(ram), ..self }
    }
}

impl Debug for HardwarePlatform {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "HardwarePlatform(vm {})", self.vm.as_raw_fd())
    }
}

impl Platform for HardwarePlatform {
    fn memory_encrypt_op(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.vm.encrypt_op_sev(command).map_err(errno)
    }

    fn register_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.vm.register_enc_memory_region(region).map_err(errno)
    }

    fn unregister_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.vm.unregister_enc_memory_region(region).map_err(errno)
    }
}

/// The open `/dev/sev`.
#[derive(Debug)]
pub struct HardwareDevice {
    file: File,
}

impl HardwareDevice {
    /// Opens `/dev/sev` for reading and writing.
    ///
    /// # Errors
    /// [`Unavailable::Device`].
    pub fn open() -> Result<Self, Unavailable> {
        Self::open_path(Path::new(DEVICE_PATH))
    }

    fn open_path(path: &Path) -> Result<Self, Unavailable> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|cause| Unavailable::Device { path: path.to_owned(), cause })?;
        Ok(Self { file })
    }
}

impl SevDevice for HardwareDevice {
    fn issue(&self, command: &mut SevIssueCmd) -> Result<(), Errno> {
        // SAFETY: the ioctl takes this structure; what its address points at is the caller's duty.
        match unsafe { ioctl_with_mut_ref(&self.file, SEV_ISSUE_CMD, command) } {
            0.. => Ok(()),
            _ => Err(errno(SystemError::last())),
        }
    }

    fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// Why this host cannot run SEV guests.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// `/dev/sev` cannot be opened.
    #[error(
        "SEV hardware is not available: {path} cannot be opened; it needs an AMD EPYC with SEV on in \
         the firmware setup, the ccp module, and read and write access to the device (use sev=software \
         to try without SEV hardware)"
    )]
    Device {
        /// What was opened.
        path: PathBuf,
        /// Why it failed.
        #[source]
        cause: IoError,
    },
    /// KVM has no SEV.
    #[error(
        "SEV hardware is not available: KVM answers {cause}; load kvm_amd with sev=1 and see \
         /sys/module/kvm_amd/parameters/sev (use sev=software to try without SEV hardware)"
    )]
    Kvm {
        /// What `KVM_MEMORY_ENCRYPT_OP(NULL)` returned.
        cause: Errno,
    },
}

fn errno(error: SystemError) -> Errno {
    Errno(error.errno())
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    /// A file that is no `/dev/sev` says so.
    #[test]
    fn another_device_does_not_know_the_ioctl() {
        let wrong = HardwareDevice::open_path(Path::new("/dev/null")).unwrap();
        assert_eq!(wrong.issue(&mut SevIssueCmd::default()), Err(Errno::ENOTTY));
    }

    /// Without the device the error says at once what is missing and what to do.
    #[test]
    fn a_host_without_sev_is_told_what_is_missing() {
        let missing = HardwareDevice::open_path(Path::new("/nonexistent/sev")).unwrap_err();
        let text = missing.to_string();
        assert!(text.contains("/nonexistent/sev") && text.contains("sev=software"), "{text}");
        assert!(missing.source().is_some());
    }
}
