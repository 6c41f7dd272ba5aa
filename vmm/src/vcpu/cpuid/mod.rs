//! What the guest's CPUID instruction says, made from what KVM can give.
//!
//! Pure: [`guest_cpuid`] turns `KVM_GET_SUPPORTED_CPUID` into the table of one vCPU. Facts are
//! those of the AMD64 manual volume 3, appendix E, of `Documentation/virt/kvm/x86/cpuid.rst` and
//! of what Linux does with them.

mod comparison;
#[cfg(test)]
pub(crate) mod epyc;
mod leaves;
#[cfg(test)]
mod tests;
mod topology;
mod xsave;

use std::ops::Range;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use thiserror::Error;

pub use comparison::{Register, Shortfall, shortfalls};
pub use leaves::GuestCpu;
use leaves::{ADDRESS_SIZES, EXTENDED_FEATURES, Leaves};

/// Where hypervisors describe themselves; KVM's own leaves start here.
const KVM_SIGNATURE: u32 = 0x4000_0000;
/// `EAX`: what a KVM guest may use.
const KVM_FEATURES: u32 = 0x4000_0001;
/// `EAX`: the highest extended leaf.
const EXTENDED: u32 = 0x8000_0000;
/// Nested virtualization on AMD.
const SVM: u32 = 0x8000_000a;
/// Memory encryption.
const MEMORY_ENCRYPTION: u32 = 0x8000_001f;

/// Leaf 1 `ECX`: MONITOR and MWAIT, which would keep a host CPU from others.
const MONITOR: u32 = 1 << 3;
/// Leaf 1 `ECX`: nested virtualization on Intel.
const VMX: u32 = 1 << 5;
/// Leaf 1 `ECX`: the local APIC's timer can be set in TSC cycles.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 `ECX`: the state of `CR4.OSXSAVE`, which KVM fills in as the guest sets it.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 1 `ECX`: RDRAND.
const RDRAND: u32 = 1 << 30;
/// Leaf 1 `ECX`: runs under a hypervisor; without it nobody looks at leaf 0x40000000.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 `EDX`: MTRRs, served by KVM itself.
const MTRR: u32 = 1 << 12;
/// Leaf 1 `EDX`: page attribute table, served by KVM itself.
const PAT: u32 = 1 << 16;

/// Leaf 0x80000001 `ECX`: nested virtualization on AMD.
const SVM_BIT: u32 = 1 << 2;
/// Leaf 0x80000001 `ECX`: MONITORX and MWAITX.
const MONITORX: u32 = 1 << 29;

/// Leaf 0x40000001 `EAX`: `KVM_FEATURE_HC_MAP_GPA_RANGE` and `KVM_FEATURE_MIGRATION_CONTROL`.
/// KVM has the first's hypercall and we have the second's MSR, but KVM offers neither by itself.
const PAGE_STATUS_FEATURES: u32 = 1 << 16 | 1 << 17;

/// Leaf 0x8000001F `EAX`: SEV. (Bit 0, SME, stays clear: a guest that saw it, but not SEV, would
/// take the machine for bare metal. KVM on hardware shows no SME either.)
const SEV: u32 = 1 << 1;
/// Leaf 0x8000001F `EAX`: caches are coherent between a page's private and shared view.
const COHERENT: u32 = 1 << 10;

/// Which C-bits can be: above every 32-bit address, and an address bit.
const C_BITS: Range<u8> = 32..52;

/// The CPUID of one vCPU, for `KVM_SET_CPUID2`; `supported` is from `KVM_GET_SUPPORTED_CPUID`.
///
/// # Errors
/// [`CpuidError`] if KVM cannot give what an SEV guest needs.
pub fn guest_cpuid(supported: &CpuId, cpu: &GuestCpu) -> Result<CpuId, CpuidError> {
    let supported = supported.as_slice().iter();
    let mut leaves =
        Leaves(supported.map(|entry| ((entry.function, entry.index), *entry)).collect());
    features(&mut leaves, cpu);
    topology::describe(&mut leaves, cpu);
    xsave::make_consistent(&mut leaves);
    match cpu.c_bit {
        Some(c_bit) => offer_sev(&mut leaves, c_bit)?,
        None => leaves.remove(MEMORY_ENCRYPTION),
    }
    let table: Vec<_> = leaves.0.into_values().collect();
    let entries = table.len();
    CpuId::from_entries(&table).map_err(|_too_many| CpuidError::TooMany { entries })
}

/// The C-bit of a guest of the software platform: the top bit of MAXPHYADDR. `None` if that is no
/// possible C-bit.
#[must_use]
pub fn software_c_bit(supported: &CpuId) -> Option<u8> {
    let sizes = supported.as_slice().iter().find(|entry| entry.function == ADDRESS_SIZES)?;
    let [max_phys_addr, ..] = sizes.eax.to_le_bytes();
    max_phys_addr.checked_sub(1).filter(|bit| C_BITS.contains(bit))
}

/// The C-bit of this host's processor; `None` if KVM cannot run SEV guests.
#[must_use]
pub fn hardware_c_bit(supported: &CpuId) -> Option<u8> {
    processor_c_bit(supported.as_slice().iter().find(|entry| entry.function == MEMORY_ENCRYPTION)?)
}

/// The C-bit in leaf 0x8000001F of a processor, if KVM may use SEV.
fn processor_c_bit(leaf: &kvm_cpuid_entry2) -> Option<u8> {
    let [position, ..] = (leaf.ebx & 0x3f).to_le_bytes();
    (leaf.eax & SEV != 0).then_some(position).filter(|bit| C_BITS.contains(bit))
}

/// Whether Linux can start as an SEV guest here: its start-up code repeats RDRAND until it succeeds,
/// to check the C-bit with it.
///
/// # Errors
/// [`CpuidError::NoRdrand`] if that would be for ever.
pub fn require_rdrand(supported: &CpuId) -> Result<(), CpuidError> {
    let basic = supported.as_slice().iter().find(|entry| entry.function == 1);
    let has_rdrand = basic.is_some_and(|leaf| leaf.ecx & RDRAND != 0);
    if has_rdrand { Ok(()) } else { Err(CpuidError::NoRdrand) }
}

/// Leaf 0x8000001F as KVM reports it on a host with SEV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEncryption {
    last_asid: u32,
    first_sev_asid: u32,
}

impl MemoryEncryption {
    /// The leaf, if there is one.
    #[must_use]
    pub fn of(supported: &CpuId) -> Option<Self> {
        let leaf = supported.as_slice().iter().find(|entry| entry.function == MEMORY_ENCRYPTION)?;
        Some(Self { last_asid: leaf.ecx, first_sev_asid: leaf.edx })
    }

    /// How many guests with SEV, but without SEV-ES, can run at once.
    #[must_use]
    pub fn sev_asids(self) -> u32 {
        self.last_asid.saturating_add(1).saturating_sub(self.first_sev_asid.max(1))
    }
}

/// What every guest sees: a hypervisor, its timer and memory types; no nested virtualization.
fn features(leaves: &mut Leaves, cpu: &GuestCpu) {
    let basic = leaves.leaf(1);
    basic.ecx &= !(MONITOR | VMX | OSXSAVE | TSC_DEADLINE);
    basic.ecx |= HYPERVISOR;
    if cpu.tsc_deadline {
        basic.ecx |= TSC_DEADLINE;
    }
    basic.edx |= MTRR | PAT;
    leaves.remove(5);
    leaves.leaf(EXTENDED_FEATURES).ecx &= !(SVM_BIT | MONITORX);
    leaves.remove(SVM);

    let signature = leaves.leaf(KVM_SIGNATURE);
    signature.eax = signature.eax.max(KVM_FEATURES);
    signature.ebx = u32::from_le_bytes(*b"KVMK");
    signature.ecx = u32::from_le_bytes(*b"VMKV");
    signature.edx = u32::from_le_bytes(*b"M\0\0\0");
    leaves.leaf(KVM_FEATURES).eax &= !PAGE_STATUS_FEATURES;
}

/// What an SEV guest sees besides.
fn offer_sev(leaves: &mut Leaves, c_bit: u8) -> Result<(), CpuidError> {
    let [max_phys_addr, ..] = leaves.leaf(ADDRESS_SIZES).eax.to_le_bytes();
    // A processor may have its C-bit above the addresses that KVM reports (Milan: 51, of 48 bits); KVM
    // takes that one out of the reserved bits wherever it is. Any other is an address bit or none.
    let is_the_processors = processor_c_bit(leaves.leaf(MEMORY_ENCRYPTION)) == Some(c_bit);
    if !C_BITS.contains(&c_bit) || (c_bit >= max_phys_addr && !is_the_processors) {
        return Err(CpuidError::CBit { c_bit, max_phys_addr });
    }
    leaves.leaf(KVM_FEATURES).eax |= PAGE_STATUS_FEATURES;
    let highest = leaves.leaf(EXTENDED);
    highest.eax = highest.eax.max(MEMORY_ENCRYPTION);

    let encryption = leaves.leaf(MEMORY_ENCRYPTION);
    let hardware = encryption.eax & SEV != 0;
    // The software platform's two views are ordinary memory, which caches never tell apart.
    let coherent = if hardware { encryption.eax & COHERENT } else { COHERENT };
    encryption.eax = SEV | coherent;
    // One physical address bit, the C-bit itself, is not to be used for addresses.
    encryption.ebx = u32::from(c_bit) | 1 << 6;
    // How many ASIDs there are is the host's concern.
    encryption.ecx = 0;
    encryption.edx = 0;
    Ok(())
}

/// Why a guest cannot be given a CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CpuidError {
    /// It must be within the addresses that the guest can form, or where the processor has it.
    #[error(
        "bit {c_bit} cannot be the C-bit of a guest with {max_phys_addr} physical address bits"
    )]
    CBit {
        /// The C-bit.
        c_bit: u8,
        /// The guest's MAXPHYADDR.
        max_phys_addr: u8,
    },
    /// Linux waits for it for ever.
    #[error("this host's processor has no RDRAND, and Linux cannot start as an SEV guest without")]
    NoRdrand,
    /// More than KVM takes.
    #[error("the guest's CPUID has {entries} entries, more than KVM takes")]
    TooMany {
        /// How many.
        entries: usize,
    },
}
