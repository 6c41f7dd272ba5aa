//! Which host the software platform stands for: its kernel, its number of guests, how long things take, what fails.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::failure::Failure;
use crate::sev::measurement::FirmwareVersion;

/// The API version that the firmware follows; the newest for plain SEV.
pub(super) const VERSION: FirmwareVersion = FirmwareVersion { major: 1, minor: 55, build: 1 };

/// How many guests may run at once, unless the model says otherwise: ASIDs 1 to this.
pub(super) const ASID_MAX: u32 = 509;

/// A kernel's version, as far as KVM's and ccp's answers depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    major: u16,
    minor: u16,
}

impl KernelVersion {
    /// The first with `KVM_SEV_SEND_CANCEL` and page-status exits. Guests need both.
    const OLDEST: Self = Self::new(5, 14);

    /// The newest whose source the model was compared with.
    pub const NEWEST: Self = Self::new(6, 17);

    /// Since then a VM that has SEV is told -EINVAL when it wants it again, and a host without any
    /// ASID for guests without ES says -ENOTTY; both were -EBUSY. (6.1 is before, 6.11 after.)
    const NEWER_ERRORS: Self = Self::new(6, 9);

    /// Since then ccp shuts a platform down again that it has initialised only to answer `/dev/sev`.
    const SHUTS_DOWN: Self = Self::new(6, 15);

    const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    pub(super) fn has_newer_errors(self) -> bool {
        self >= Self::NEWER_ERRORS
    }

    pub(super) fn shuts_down_again(self) -> bool {
        self >= Self::SHUTS_DOWN
    }
}

impl FromStr for KernelVersion {
    type Err = BadKernel;

    fn from_str(text: &str) -> Result<Self, BadKernel> {
        let (major, minor) = text.split_once('.').ok_or(BadKernel)?;
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).ok_or(BadKernel)
        };
        let kernel = Self::new(number(major)?, number(minor)?);
        if kernel < Self::OLDEST { Err(BadKernel) } else { Ok(kernel) }
    }
}

impl Display for KernelVersion {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Not a kernel version that sevferry's guests can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected a kernel's version, 5.14 or newer, such as 6.1")]
pub struct BadKernel;

/// Everything that hosts differ in. The default is a new kernel and firmware that cost no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// The kernel whose answers are given.
    pub kernel: KernelVersion,
    /// The version that the firmware reports.
    pub firmware: FirmwareVersion,
    /// How many guests without SEV-ES can have an ASID at once.
    pub asids: u32,
    /// `RLIMIT_MEMLOCK`, in bytes, of a caller without `CAP_IPC_LOCK`.
    pub lock_limit: Option<u64>,
    /// The time that each firmware command takes, one after the other, beside our own work.
    pub command_cost: Duration,
    /// The time that pinning, zeroing and flushing a MiB of guest RAM takes when it is registered.
    pub pin_cost: Duration,
    /// Whether ccp has initialised the platform (`psp_init_on_probe`).
    pub is_initialised: bool,
    /// Whether the firmware says how long a packet is when it is asked with room for nothing.
    pub tells_packet_lengths: bool,
    /// A command that fails.
    pub failure: Option<Failure>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            kernel: KernelVersion::NEWEST,
            firmware: VERSION,
            asids: ASID_MAX,
            lock_limit: None,
            command_cost: Duration::ZERO,
            pin_cost: Duration::ZERO,
            is_initialised: true,
            tells_packet_lengths: true,
            failure: None,
        }
    }
}

impl Model {
    /// Takes the time that registering so many bytes costs.
    pub(super) fn take_time_to_pin(&self, bytes: u64) {
        let mib = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let (begun, cost) = (Instant::now(), self.pin_cost.saturating_mul(mib));
        while let Some(left) = cost.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            thread::park_timeout(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernels are two numbers, compared as such, and none older than what guests need.
    #[test]
    fn kernels_are_two_numbers() {
        let kernel: KernelVersion = "6.10".parse().unwrap();
        assert!(kernel > "6.9".parse().unwrap() && kernel.to_string() == "6.10");
        assert!(kernel.has_newer_errors() && !kernel.shuts_down_again());
        assert!(!KernelVersion::OLDEST.has_newer_errors());
        for bad in ["", "6", "6.", ".1", "6.+1", "5.13", "4.20", "6.1.0", "6.1-rc1", "70000.1"] {
            assert_eq!(bad.parse::<KernelVersion>(), Err(BadKernel), "{bad}");
        }
    }
}
