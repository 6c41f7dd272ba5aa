//! The processors that the MADT lists.

use core::array;

use crate::physical::{read8, read32, read64};

/// Processors that this program starts.
pub(crate) const MAX_PROCESSORS: usize = 16;

const ROOT_POINTER: u64 = u64::from_le_bytes(*b"RSD PTR ");
const MADT: u32 = u32::from_le_bytes(*b"APIC");
const HEADER_BYTES: u64 = 36;
const MADT_ENTRIES: u64 = 44;
/// Tables longer than this are cut: a MADT of 16 processors takes some hundred bytes.
const MAX_TABLE_BYTES: u64 = 65536;
const LOCAL_APIC: u8 = 0;
const ENABLED: u32 = 1;

/// Local APIC identifiers; the first processor is among them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processors {
    ids: [Option<u8>; MAX_PROCESSORS],
}

impl Processors {
    /// Finds the MADT from the root pointer's address (0: none); without one, one processor.
    pub(crate) fn find(root_pointer: u64) -> Self {
        let mut ids = madt(root_pointer).into_iter().flat_map(local_apics).fuse();
        let ids = array::from_fn(|_| ids.next());
        Self { ids: if ids == [None; MAX_PROCESSORS] { first_only() } else { ids } }
    }

    /// How many there are.
    pub(crate) fn count(self) -> u64 {
        self.ids().count() as u64
    }

    /// The identifiers, in the table's order.
    pub(crate) fn ids(self) -> impl Iterator<Item = u8> {
        self.ids.into_iter().flatten()
    }
}

fn first_only() -> [Option<u8>; MAX_PROCESSORS] {
    array::from_fn(|processor| (processor == 0).then_some(0))
}

fn madt(root_pointer: u64) -> Option<u64> {
    if root_pointer == 0 || read64(root_pointer) != ROOT_POINTER {
        return None;
    }
    let (table, entry_bytes) = match read8(root_pointer + 15) {
        0 | 1 => (u64::from(read32(root_pointer + 16)), 4),
        _ => (read64(root_pointer + 24), 8),
    };
    let mut entries = (table + HEADER_BYTES..table + length(table)).step_by(entry_bytes);
    entries.find_map(|at| {
        let table = if entry_bytes == 4 { u64::from(read32(at)) } else { read64(at) };
        (read32(table) == MADT).then_some(table)
    })
}

fn local_apics(madt: u64) -> impl Iterator<Item = u8> {
    let end = madt + length(madt);
    let mut at = madt + MADT_ENTRIES;
    core::iter::from_fn(move || {
        while at + 8 <= end {
            let entry = at;
            at += u64::from(read8(entry + 1).max(2));
            if read8(entry) == LOCAL_APIC && read32(entry + 4) & ENABLED != 0 {
                return Some(read8(entry + 3));
            }
        }
        None
    })
}

fn length(table: u64) -> u64 {
    u64::from(read32(table + 4)).min(MAX_TABLE_BYTES)
}
