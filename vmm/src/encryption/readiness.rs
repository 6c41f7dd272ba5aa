//! `MSR_KVM_MIGRATION_CONTROL`: whether the guest says that its reports are reliable.
//!
//! ABI: Linux `Documentation/virt/kvm/x86/msr.rst`. KVM leaves the register to us (MSR filter).

use thiserror::Error;

/// The register's number.
pub const MSR_KVM_MIGRATION_CONTROL: u32 = 0x4b56_4d08;

/// Bit 0: the guest may be migrated.
const READY: u64 = 1;

/// How far host and guest have agreed on migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// The host has not offered it (`KVM_FEATURE_MIGRATION_CONTROL`, CPUID 0x40000001 EAX bit 17).
    NotOffered,
    /// Offered; the guest has not agreed yet.
    NotReady,
    /// The guest had agreed and has withdrawn: before a reboot or a kexec, or with a CPU that goes
    /// offline (Linux `arch/x86/kernel/kvm.c`, `kvm_guest_cpu_offline`).
    Withdrawn,
    /// The guest reports every change and may be migrated.
    Ready,
}

impl Readiness {
    /// What the guest reads.
    pub(super) fn read(self) -> Result<u64, BadControl> {
        match self {
            Self::NotOffered => Err(BadControl::NotOffered),
            Self::NotReady | Self::Withdrawn => Ok(0),
            Self::Ready => Ok(READY),
        }
    }

    /// The readiness after the guest's write.
    pub(super) fn written(self, value: u64) -> Result<Self, BadControl> {
        match (self, value) {
            (Self::NotOffered, _) => Err(BadControl::NotOffered),
            (Self::NotReady, 0) => Ok(Self::NotReady),
            (Self::Ready | Self::Withdrawn, 0) => Ok(Self::Withdrawn),
            (_, READY) => Ok(Self::Ready),
            _ => Err(BadControl::ReservedBits { value }),
        }
    }

    /// The readiness after a reset: only the offer stays.
    pub(super) fn reset(self) -> Self {
        match self {
            Self::NotOffered => Self::NotOffered,
            Self::NotReady | Self::Withdrawn | Self::Ready => Self::NotReady,
        }
    }
}

/// Why an access to the register gives the guest a general protection fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadControl {
    /// The register does not exist for a guest that was not offered it.
    #[error("access to MSR_KVM_MIGRATION_CONTROL, which this guest was not offered")]
    NotOffered,
    /// Only bit 0 is defined.
    #[error("{value:#x} written to MSR_KVM_MIGRATION_CONTROL sets reserved bits")]
    ReservedBits {
        /// What the guest wrote.
        value: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guest may agree and withdraw as often as it likes; a reset withdraws for it.
    #[test]
    fn can_be_withdrawn_at_any_time() {
        let offered = Readiness::NotReady;
        let ready = offered.written(1).unwrap();
        assert_eq!((ready, ready.read()), (Readiness::Ready, Ok(1)));
        assert_eq!(ready.written(1), Ok(Readiness::Ready));
        let withdrawn = ready.written(0).unwrap();
        assert_eq!((withdrawn, withdrawn.read()), (Readiness::Withdrawn, Ok(0)));
        assert_eq!(withdrawn.written(0), Ok(Readiness::Withdrawn));
        assert_eq!(withdrawn.written(1), Ok(Readiness::Ready));
        assert_eq!(ready.reset(), Readiness::NotReady);
        assert_eq!(withdrawn.reset(), Readiness::NotReady);
        assert_eq!((offered.read(), offered.written(0)), (Ok(0), Ok(Readiness::NotReady)));
    }

    /// Reserved bits fault, whatever bit 0 is.
    #[test]
    fn refuses_reserved_bits() {
        for value in [2, 3, 1 << 63, u64::MAX] {
            let refused = Readiness::Ready.written(value);
            assert_eq!(refused, Err(BadControl::ReservedBits { value }));
        }
    }

    /// A guest that was not offered the register has none, before or after a reset.
    #[test]
    fn does_not_exist_unless_offered() {
        let none = Readiness::NotOffered.reset();
        assert_eq!(none.read(), Err(BadControl::NotOffered));
        assert_eq!(none.written(0), Err(BadControl::NotOffered));
        assert_eq!(none.written(1), Err(BadControl::NotOffered));
    }
}
