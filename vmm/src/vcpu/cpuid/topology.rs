//! Which processor this is, and how it relates to the others: every vCPU a core of one package.

use super::leaves::{ADDRESS_SIZES, EXTENDED_FEATURES, GuestCpu, Leaves};

/// Leaf 1 `EDX`: the package has several logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001 `ECX`: those are cores, not threads (AMD).
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x80000001 `ECX`: leaves 0x8000001D and 0x8000001E exist (AMD).
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

/// Caches, on Intel.
const CACHES: u32 = 4;
/// Caches, on AMD.
const AMD_CACHES: u32 = 0x8000_001d;
/// Core and node, on AMD.
const AMD_CORE: u32 = 0x8000_001e;
/// Topology of newer AMD processors; left out, so that the older leaves are used.
const AMD_EXTENDED_TOPOLOGY: u32 = 0x8000_0026;
/// Topology by level, and the same with more kinds of levels.
const LEVELS: [u32; 2] = [0xb, 0x1f];

/// Level kinds of [`LEVELS`], in `ECX[15:8]`.
const THREAD: u32 = 1 << 8;
const CORE: u32 = 2 << 8;

/// The first level of cache that all cores share.
const SHARED_CACHE: u32 = 3;

/// Fills in every leaf that says where `cpu` is.
pub(super) fn describe(leaves: &mut Leaves, cpu: &GuestCpu) {
    let (id, count) = (u32::from(cpu.index), u32::from(cpu.count.max(1)));
    let id_bits = count.next_power_of_two().trailing_zeros();
    let multi = |bit| if count > 1 { bit } else { 0 };

    let basic = leaves.leaf(1);
    basic.ebx = (basic.ebx & 0xffff) | count << 16 | id << 24;
    basic.edx = (basic.edx & !HTT) | multi(HTT);

    if is_amd(leaves) {
        let extended = leaves.leaf(EXTENDED_FEATURES);
        extended.ecx = (extended.ecx & !CMP_LEGACY) | multi(CMP_LEGACY);
        let has_extensions = extended.ecx & TOPOLOGY_EXTENSIONS != 0;
        leaves.leaf(ADDRESS_SIZES).ecx = (count - 1) | id_bits << 12;
        leaves.remove(AMD_CORE);
        if has_extensions {
            let core = leaves.leaf(AMD_CORE);
            // One thread per core, one node.
            (core.eax, core.ebx) = (id, id);
        }
    }
    leaves.remove(AMD_EXTENDED_TOPOLOGY);

    for entry in leaves.0.values_mut() {
        let sharing = if (entry.eax >> 5) & 7 >= SHARED_CACHE { count - 1 } else { 0 };
        match entry.function {
            AMD_CACHES => entry.eax = (entry.eax & !(0xfff << 14)) | sharing << 14,
            // No cache, no cores either: a sub-leaf of zeros ends the list.
            CACHES if entry.eax & 0x1f != 0 => {
                let cores = (count - 1).min(63);
                entry.eax = (entry.eax & 0x3fff) | sharing << 14 | cores << 26;
            }
            _ => {}
        }
    }
    let highest = leaves.find(0, 0).map_or(0, |entry| entry.eax);
    for leaf in LEVELS {
        leaves.remove(leaf);
        if highest >= leaf {
            levels(leaves, leaf, id, count, id_bits);
        }
    }
}

/// One thread per core, `count` cores per package, and the end of the list.
fn levels(leaves: &mut Leaves, leaf: u32, id: u32, count: u32, id_bits: u32) {
    let list = [(0, 1, THREAD), (id_bits, count, CORE | 1), (0, 0, 2)];
    for (index, (shift, processors, kind)) in (0..).zip(list) {
        let level = leaves.sub_leaf(leaf, index);
        (level.eax, level.ebx, level.ecx, level.edx) = (shift, processors, kind, id);
    }
}

/// Whether the guest will take the processor for AMD's, or its like.
fn is_amd(leaves: &Leaves) -> bool {
    let vendor = |ebx: &[u8; 4], edx: &[u8; 4], ecx: &[u8; 4]| {
        [ebx, edx, ecx].map(|part| u32::from_le_bytes(*part))
    };
    let known = [vendor(b"Auth", b"enti", b"cAMD"), vendor(b"Hygo", b"nGen", b"uine")];
    leaves.find(0, 0).is_some_and(|leaf| known.contains(&[leaf.ebx, leaf.edx, leaf.ecx]))
}
