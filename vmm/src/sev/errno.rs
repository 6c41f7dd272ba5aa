//! An error number as the kernel's SEV interfaces return it, and what it means there.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};

/// A positive `errno` value from `KVM_MEMORY_ENCRYPT_OP` or `SEV_ISSUE_CMD`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The firmware refused; its status says why.
    pub const EIO: Self = Self(libc::EIO);
    /// Not a usable `/dev/sev` descriptor.
    pub const EBADF: Self = Self(libc::EBADF);
    /// Memory could not be pinned.
    pub const ENOMEM: Self = Self(libc::ENOMEM);
    /// A bad user address.
    pub const EFAULT: Self = Self(libc::EFAULT);
    /// Already done, or nothing left to give.
    pub const EBUSY: Self = Self(libc::EBUSY);
    /// A bad argument or an unknown command.
    pub const EINVAL: Self = Self(libc::EINVAL);
    /// No SEV here.
    pub const ENOTTY: Self = Self(libc::ENOTTY);
    /// The descriptor lacks the access that the command needs.
    pub const EPERM: Self = Self(libc::EPERM);
    /// No secure processor.
    pub const ENODEV: Self = Self(libc::ENODEV);
    /// The secure processor did not answer.
    pub const ETIMEDOUT: Self = Self(libc::ETIMEDOUT);
    /// The firmware is older than the command: a number that the kernel keeps for itself, and hands out
    /// here.
    pub const ENOTSUPP: Self = Self(524);

    /// The kernel's name for it, if it is one that the SEV interfaces return.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::EIO => "EIO",
            Self::EBADF => "EBADF",
            Self::ENOMEM => "ENOMEM",
            Self::EFAULT => "EFAULT",
            Self::EBUSY => "EBUSY",
            Self::EINVAL => "EINVAL",
            Self::ENOTTY => "ENOTTY",
            Self::EPERM => "EPERM",
            Self::ENODEV => "ENODEV",
            Self::ETIMEDOUT => "ETIMEDOUT",
            Self::ENOTSUPP => "ENOTSUPP",
            _ => return None,
        })
    }

    /// What it means from `command`, under its kernel name, and what to do about it.
    #[must_use]
    pub fn meaning(self, command: &str) -> &'static str {
        let turns_on = command.starts_with("KVM_SEV_INIT");
        match self {
            Self::EIO => "the SEV platform failed, or this process does not own the VM",
            Self::EBADF => {
                "the descriptor given is not an open /dev/sev; keep it open while the VM lives"
            }
            Self::ENOMEM => {
                "guest memory could not be pinned; raise the locked-memory limit (ulimit -l unlimited, \
                 or LimitMEMLOCK=infinity) or give the host more memory"
            }
            Self::EFAULT => {
                "an address given to the kernel is not mapped; or, on a host that is initialised for \
                 SEV-SNP, the kernel could not hand a buffer to the firmware or take it back: see dmesg, \
                 and turn SNP off (kvm_amd.sev_snp=0)"
            }
            Self::EBUSY if turns_on => {
                "the host has no free SEV ASID, or SEV is already on for this VM; stop another SEV \
                 guest, and see misc.max of the cgroup"
            }
            Self::EBUSY => {
                "the secure processor has stopped answering, and the kernel asks it nothing more; or, on \
                 a host that is initialised for SEV-SNP, an earlier command has lost its buffer: see \
                 dmesg, and restart the host"
            }
            Self::EINVAL if turns_on => {
                "SEV is already on for this VM, or it had a vCPU before, or the kernel does not know the \
                 command"
            }
            Self::EINVAL => "the kernel refused an argument, or does not know the command",
            Self::ENOTTY if turns_on => {
                "SEV is off for this host, or all of its ASIDs are kept for SEV-ES and SEV-SNP guests; check \
                 SME/SEV and the SEV-ES ASID space limit in the firmware setup, and \
                 /sys/module/kvm_amd/parameters/sev"
            }
            Self::ENOTTY => {
                "SEV is off for this VM or host; check SME/SEV in the firmware setup and \
                 /sys/module/kvm_amd/parameters/sev"
            }
            Self::EPERM => {
                "the /dev/sev descriptor lacks write access; check the device's permissions"
            }
            Self::ENODEV => "the kernel has no secure processor; load the ccp module",
            Self::ETIMEDOUT => {
                "the secure processor did not answer and is now unusable; restart the host"
            }
            Self::ENOTSUPP => "the SEV firmware is too old for the command; update it",
            _ => "an error that the SEV interfaces do not document",
        }
    }
}

impl Debug for Errno {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        Display::fmt(self, f)
    }
}

impl Display for Errno {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}
