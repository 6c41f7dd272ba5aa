//! Why a machine cannot be put together or started.

use std::io::Error as IoError;

use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

use super::config::{BadRam, BadVcpuCount};
use super::device_offer::DeviceDifference;
use super::devices::DevicesError;
use super::host::{HostError, NotLockable};
use super::pinned::Pinned;
use crate::boot::BootError;
use crate::memory::RamError;
use crate::sev::command::CommandError;
use crate::sev::device::ExportError;
use crate::sev::endorsement::EndorsementError;
use crate::sev::hardware::Unavailable;
use crate::sev::launch::LaunchError;
use crate::sev::measurement::WrongMeasurement;
use crate::sev::session::SessionError;
use crate::sev::software::IdentityError;
use crate::vcpu::VcpuError;
use crate::vcpu::cpuid::CpuidError;

/// Why a machine cannot be put together or started.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The serial port's interrupt.
    #[error("connecting the serial port's interrupt")]
    Interrupt(#[source] IoError),
    /// SEV.
    #[error(transparent)]
    Encrypted(#[from] EncryptedError),
    /// Guest RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// What is on the PCI bus.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// The kernel and what comes with it.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// What the guest's CPUID would be.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// A vCPU's first state.
    #[error("setting up a vCPU")]
    VcpuSetup(#[from] VcpuSetupError),
    /// What a vCPU is like here.
    #[error("asking KVM what vCPUs are like: {0}")]
    Msrs(Errno),
    /// The RAM of a machine that comes from elsewhere.
    #[error("the machine that was offered has {0}")]
    OfferedRam(BadRam),
    /// The vCPUs of a machine that comes from elsewhere.
    #[error("the machine that was offered has {0}")]
    OfferedVcpus(BadVcpuCount),
    /// The devices of a machine that comes from elsewhere.
    #[error("the machine that was offered: {0}")]
    OfferedDevices(DeviceDifference),
    /// There are no certificates for the SEV platform.
    #[error(transparent)]
    Endorsement(#[from] EndorsementError),
    /// A vCPU's thread.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

impl MachineError {
    /// The first of what [`compatibility::compare`](super::compatibility::compare) names all of.
    pub(super) fn offered_devices(differences: Vec<DeviceDifference>) -> Self {
        let first = differences.into_iter().next().map(Self::OfferedDevices);
        first.unwrap_or(Self::Devices(DevicesError::TooMany))
    }
}

/// Why a machine could not become an SEV guest.
#[derive(Debug, Error)]
pub enum EncryptedError {
    /// The host has no SEV.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// KVM's CPUID does not say where the C-bit is, or leaves it no room.
    #[error("KVM's CPUID leaves no room for a C-bit: it needs a physical address width above 32")]
    CBit,
    /// An address of RAM would have the C-bit set.
    #[error(
        "guest RAM ends at {end:#x}, but bit {c_bit} of an address is the C-bit on this host: \
         give the guest less memory"
    )]
    RamReachesCBit {
        /// The first address after RAM.
        end: u64,
        /// The number of the C-bit.
        c_bit: u8,
    },
    /// The kernel would refuse to pin it.
    #[error(transparent)]
    LockedMemory(#[from] NotLockable),
    /// It was given up while memory was being pinned.
    #[error("stopped while {} of {} pages of the guest's memory were pinned", .0.pages, .0.of)]
    Stopped(Pinned),
    /// The software platform's keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The software platform's descriptor.
    #[error("opening the software SEV platform")]
    Device(#[source] IoError),
    /// Guest RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The platform's version.
    #[error("asking the SEV platform for its version")]
    Status(#[from] CommandError),
    /// The platform's certificates.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A launch command.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The platform measured something else than we loaded.
    #[error("checking what the SEV platform measured")]
    Measurement(#[from] WrongMeasurement),
}

/// A vCPU could not be set up.
#[derive(Debug, Error)]
#[error("vCPU {index}, {step}: {cause}")]
pub struct VcpuSetupError {
    /// Which vCPU.
    pub index: u8,
    /// What was being done.
    pub step: &'static str,
    /// KVM's errno.
    pub cause: Errno,
}
