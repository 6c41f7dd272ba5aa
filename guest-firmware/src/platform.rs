//! What the machine offers: SEV, and KVM's page status interface.

use crate::cpu;

/// "KVMK", the first register of KVM's signature.
const KVM_SIGNATURE: u32 = 0x4b4d_564b;
const HYPERVISOR: u32 = 1 << 31;
const FEATURE_MAP_GPA_RANGE: u32 = 1 << 16;
const FEATURE_MIGRATION_CONTROL: u32 = 1 << 17;
/// CPUID 0x8000001F EAX: the caches know private from shared lines.
const CACHE_COHERENT: u32 = 1 << 10;
/// `MSR_KVM_MIGRATION_CONTROL`
const MIGRATION_CONTROL: u32 = 0x4b56_4d08;

/// Attributes of `KVM_HC_MAP_GPA_RANGE` for a private page.
pub(crate) const ENCRYPTED: u64 = 1 << 4;

/// What was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Platform {
    /// The C-bit, or 0 without SEV.
    pub(crate) c_mask: u64,
    /// `KVM_HC_MAP_GPA_RANGE` is answered.
    pub(crate) map_gpa_range: bool,
    migration_control: bool,
    flush_caches: bool,
}

impl Platform {
    /// Asks CPUID.
    pub(crate) fn detect(c_mask: u64) -> Self {
        let kvm = cpu::cpuid(1, 0).ecx & HYPERVISOR != 0
            && cpu::cpuid(0x4000_0000, 0).ebx == KVM_SIGNATURE;
        let features = if kvm { cpu::cpuid(0x4000_0001, 0).eax } else { 0 };
        let sev = c_mask != 0;
        Self {
            c_mask,
            map_gpa_range: features & FEATURE_MAP_GPA_RANGE != 0,
            migration_control: features & FEATURE_MIGRATION_CONTROL != 0,
            flush_caches: sev && cpu::cpuid(0x8000_001f, 0).eax & CACHE_COHERENT == 0,
        }
    }

    /// Whether SEV is active.
    pub(crate) fn sev(self) -> bool {
        self.c_mask != 0
    }

    /// Tells the host whether the guest may be migrated; `false` if the host did not ask for it.
    pub(crate) fn report_ready(self, ready: bool) -> bool {
        if self.migration_control {
            cpu::write_kvm_msr(MIGRATION_CONTROL, u64::from(ready));
        }
        self.migration_control
    }

    /// Writes back what the caches hold of a page, where a page that changes status needs it.
    pub(crate) fn flush_cached(self, gpa: u64) {
        if self.flush_caches {
            cpu::flush_cache_lines(gpa);
        }
    }
}
