//! A memory slot, and why KVM refuses it: RAM may end beyond the addresses of the host's processors.

use std::arch::x86_64::__cpuid;

use kvm_bindings::kvm_userspace_memory_region;
use libc::EINVAL;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::errno::Error as Errno;

use super::error::RamError;
use crate::page::Gpa;

/// `CPUID` leaf with the address widths, the physical one in the low byte of EAX.
const ADDRESS_WIDTHS: u32 = 0x8000_0008;

/// Slot `slot` for `region`, `offset` bytes above the region's own address.
pub(super) fn memory_slot(
    slot: u32,
    region: &GuestRegionMmap<()>,
    offset: Gpa,
) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0 + offset.0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    }
}

/// The reason why KVM has refused `slot` on this host.
pub(super) fn refused(slot: &kvm_userspace_memory_region, cause: Errno) -> RamError {
    let [bits, ..] = __cpuid(ADDRESS_WIDTHS).eax.to_le_bytes();
    refused_with(bits, slot, cause)
}

/// The same for a host whose processors have `bits` address bits. KVM says only `EINVAL`.
fn refused_with(bits: u8, slot: &kvm_userspace_memory_region, cause: Errno) -> RamError {
    let (gpa, bytes) = (Gpa(slot.guest_phys_addr), slot.memory_size);
    let end = gpa.0.checked_add(bytes);
    let limit = 1_u64.checked_shl(bits.into()).unwrap_or(u64::MAX);
    match end {
        Some(end) if end <= limit || cause.errno() != EINVAL => {
            RamError::Register { gpa, bytes, cause }
        }
        _ => RamError::AddressWidth { end: end.unwrap_or(u64::MAX), bits, limit },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RAM beyond the width names the width; whatever else KVM refuses keeps KVM's word.
    #[test]
    fn ram_beyond_the_address_width_names_the_width() {
        let slot = |guest_phys_addr, memory_size| kvm_userspace_memory_region {
            guest_phys_addr,
            memory_size,
            ..kvm_userspace_memory_region::default()
        };
        let (four_gib, tib) = (4 << 30, 1 << 40);
        let said = |bits, slot, errno| refused_with(bits, &slot, Errno::new(errno)).to_string();
        assert_eq!(
            said(40, slot(four_gib, 2 * tib), EINVAL),
            "guest RAM ends at 0x20100000000, but this host's processors address 40 bits, which is \
             below 0x10000000000: give the guest less memory"
        );
        for (bits, slot, errno) in [
            (40, slot(four_gib, tib - four_gib), EINVAL),
            (48, slot(four_gib, 2 * tib), EINVAL),
            (40, slot(four_gib, 2 * tib), libc::ENOMEM),
        ] {
            let said = said(bits, slot, errno);
            assert!(said.starts_with("giving KVM the guest memory at"), "{said}");
        }
    }
}
