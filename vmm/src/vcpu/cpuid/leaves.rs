//! A CPUID table under construction, and the leaves that several parts of it are about.

use std::collections::BTreeMap;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Extended features.
pub(super) const EXTENDED_FEATURES: u32 = 0x8000_0001;
/// `EAX[7:0]`: MAXPHYADDR.
pub(super) const ADDRESS_SIZES: u32 = 0x8000_0008;
/// Leaf 1 `ECX`: XSAVE and leaf 0xD.
pub(super) const XSAVE: u32 = 1 << 26;

/// The vCPU that a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestCpu {
    /// Which vCPU, from 0; also its APIC id.
    pub index: u8,
    /// How many vCPUs; each is a core of one package.
    pub count: u8,
    /// The number of the C-bit; `None` for a plain VM.
    pub c_bit: Option<u8>,
    /// Whether KVM has `KVM_CAP_TSC_DEADLINE_TIMER`. Its CPUID never says so.
    pub tsc_deadline: bool,
}

/// A CPUID table under construction, by function and sub-leaf: so its order is always the same.
pub(super) struct Leaves(pub(super) BTreeMap<(u32, u32), kvm_cpuid_entry2>);

impl Leaves {
    pub(super) fn find(&self, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        self.0.get(&(function, index))
    }

    /// A leaf without sub-leaves, to change; zeros, if there was none.
    pub(super) fn leaf(&mut self, function: u32) -> &mut kvm_cpuid_entry2 {
        self.0.entry((function, 0)).or_insert(kvm_cpuid_entry2 { function, ..Default::default() })
    }

    /// A sub-leaf, to change; zeros, if there was none.
    pub(super) fn sub_leaf(&mut self, function: u32, index: u32) -> &mut kvm_cpuid_entry2 {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        let zeros = kvm_cpuid_entry2 { function, index, flags, ..Default::default() };
        self.0.entry((function, index)).or_insert(zeros)
    }

    /// Removes `function` with all sub-leaves: the guest reads zeros.
    pub(super) fn remove(&mut self, function: u32) {
        self.0.retain(|key, _| key.0 != function);
    }
}
