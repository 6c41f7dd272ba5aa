//! The page tables that a 64-bit kernel starts on: an identity map of the first 4 GiB.
//!
//! A guest reads only through the C-bit what was encrypted at launch, so every entry of every
//! level has it. (Hardware ignores it in the levels above; `docs/launch-digest.md` fixes it.)

use super::layout::{IDENTITY_MAPPED, PAGE_TABLES, PAGE_TABLES_PAGES};
use crate::page::PAGE_SIZE;

/// Bytes mapped by one entry of a page directory.
const LARGE_PAGE: u64 = 2 << 20;

/// Entries of one table.
const ENTRIES: u64 = 512;

/// Present, writable, accessed, dirty: set here, so that the processor never writes the tables.
const ENTRY: u64 = 0x63;

/// Maps a page of 2 MiB instead of naming a table.
const LARGE: u64 = 0x80;

/// The tables as they lie at [`PAGE_TABLES`]; `c_bit` is the number of the C-bit, if any.
pub(super) fn identity_map(c_bit: Option<u8>) -> Vec<u8> {
    let mark = c_bit.map_or(0, |bit| 1u64.checked_shl(bit.into()).unwrap_or(0));
    let table = |index: u64| PAGE_TABLES.0 + index * PAGE_SIZE;
    let directories = PAGE_TABLES_PAGES - 2;

    let mut entries = vec![(table(1) | ENTRY) | mark];
    entries.resize(512, 0);
    entries.extend((0..directories).map(|index| table(2 + index) | ENTRY | mark));
    entries.resize(1024, 0);
    entries
        .extend((0..IDENTITY_MAPPED / LARGE_PAGE).map(|n| (n * LARGE_PAGE) | ENTRY | LARGE | mark));
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

const _: () = assert!(IDENTITY_MAPPED == (PAGE_TABLES_PAGES - 2) * ENTRIES * LARGE_PAGE);

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tables: &[u8], address: u64) -> u64 {
        let offset = usize::try_from(address - PAGE_TABLES.0).unwrap();
        u64::from_le_bytes(tables[offset..offset + 8].try_into().unwrap())
    }

    /// What the processor finds for `address`, and the entries it used.
    fn walk(tables: &[u8], address: u64, c_bit: u8) -> (u64, [u64; 3]) {
        let base = |entry: u64| entry & !(1 << c_bit) & !0xfff;
        let top = entry(tables, PAGE_TABLES.0 + (address >> 39) * 8);
        let middle = entry(tables, base(top) + ((address >> 30) & 511) * 8);
        let leaf = entry(tables, base(middle) + ((address >> 21) & 511) * 8);
        (base(leaf) + (address & 0x1f_ffff), [top, middle, leaf])
    }

    /// Every address below 4 GiB maps to itself, through the C-bit in all three levels.
    #[test]
    fn maps_the_first_4_gib_to_itself_as_private() {
        let tables = identity_map(Some(47));
        assert_eq!(tables.len() as u64, PAGE_TABLES_PAGES * PAGE_SIZE);
        for address in (0..IDENTITY_MAPPED).step_by(1 << 20).chain([0xffff_ffff]) {
            let (to, entries) = walk(&tables, address, 47);
            assert_eq!(to, address);
            assert!(entries.iter().all(|e| e >> 47 == 1 && e & 3 == 3), "{entries:#x?}");
            assert_eq!(entries.map(|e| e & LARGE), [0, 0, LARGE]);
        }
    }

    /// A plain VM's tables have no bit above the addresses.
    #[test]
    fn a_plain_vm_has_no_c_bit() {
        let tables = identity_map(None);
        let entries = tables.chunks(8).map(|e| u64::from_le_bytes(e.try_into().unwrap()));
        assert!(entries.clone().all(|e| e < 1 << 32));
        assert_eq!(entries.filter(|e| *e != 0).count(), 1 + 4 + 2048);
    }
}
