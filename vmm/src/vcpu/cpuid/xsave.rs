//! Leaf 0xD, which says how large the XSAVE area is, made to agree with itself and with the
//! feature bits: Linux warns and gives up XSAVE otherwise.

use kvm_bindings::kvm_cpuid_entry2;

use super::leaves::{Leaves, XSAVE};

/// The leaf.
const STATE: u32 = 0xd;

/// Components 0 and 1: x87 and SSE, which every area has.
const LEGACY: u64 = 0b11;

/// Bytes of the legacy part and of the header.
const HEADER_END: u32 = 576;

/// Sub-leaf 1 `EAX`: the compacted form, and supervisor components with it.
const XSAVEC: u32 = 1 << 1;
const XSAVES: u32 = 1 << 3;

/// Components, and where the feature bit is without which they make no sense.
const NEEDED: [(u64, Feature); 5] = [
    (1 << 2, Feature { function: 1, register: |leaf| leaf.ecx, bit: 28 }),
    (0b11 << 3, Feature { function: 7, register: |leaf| leaf.ebx, bit: 14 }),
    (0b111 << 5, Feature { function: 7, register: |leaf| leaf.ebx, bit: 16 }),
    (1 << 9, Feature { function: 7, register: |leaf| leaf.ecx, bit: 3 }),
    (0b11 << 17, Feature { function: 7, register: |leaf| leaf.edx, bit: 24 }),
];

/// A feature bit: AVX, MPX, AVX-512, protection keys, AMX.
struct Feature {
    function: u32,
    register: fn(&kvm_cpuid_entry2) -> u32,
    bit: u32,
}

/// Keeps the components that have their feature and their sub-leaf, and computes the sizes anew,
/// as they are at reset.
pub(super) fn make_consistent(leaves: &mut Leaves) {
    let has_xsave = leaves.find(1, 0).is_some_and(|leaf| leaf.ecx & XSAVE != 0);
    let (Some(&main), true) = (leaves.find(STATE, 0), has_xsave) else {
        leaves.remove(STATE);
        leaves.leaf(1).ecx &= !XSAVE;
        return;
    };
    let extended = leaves.find(STATE, 1).copied().unwrap_or_default();
    let mut user = join(main.eax, main.edx);
    for (components, feature) in &NEEDED {
        let leaf = leaves.find(feature.function, 0);
        if leaf.is_none_or(|leaf| (feature.register)(leaf) & 1 << feature.bit == 0) {
            user &= !components;
        }
    }
    let compacted = extended.eax & (XSAVEC | XSAVES) != 0;
    let supervisor = if extended.eax & XSAVES != 0 { join(extended.ecx, extended.edx) } else { 0 };
    let described =
        |component: u32| leaves.find(STATE, component).is_some_and(|leaf| leaf.eax != 0);
    let with_leaf = (2..63).filter(|bit| described(*bit)).fold(LEGACY, |all, bit| all | 1 << bit);
    let (user, supervisor) = (user & with_leaf, supervisor & with_leaf & !LEGACY);

    let is_in = |set: u64, index: u32| set.checked_shr(index).unwrap_or(0) & 1 == 1;
    leaves.0.retain(|&(function, index), _| {
        function != STATE || index < 2 || is_in(user | supervisor, index)
    });
    let largest = (leaves.0.values())
        .filter(|leaf| leaf.function == STATE && leaf.index >= 2 && is_in(user, leaf.index))
        .map(|leaf| leaf.ebx.saturating_add(leaf.eax))
        .fold(HEADER_END, u32::max);

    // KVM counts EBX of both up as the guest enables components.
    let main = leaves.sub_leaf(STATE, 0);
    (main.eax, main.edx) = split(user);
    (main.ebx, main.ecx) = (HEADER_END, largest);
    let extended = leaves.sub_leaf(STATE, 1);
    extended.ebx = if compacted { HEADER_END } else { 0 };
    (extended.ecx, extended.edx) = split(supervisor);
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn split(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}
