//! The memory map that the guest is told: which addresses are RAM, and where the ACPI tables are.

use super::layout::{ACPI, CONVENTIONAL_END, KERNEL_MIN, SECRET_PAGE};
use crate::page::{Frame, PAGE_SIZE, PageRange, RamLayout};

/// What an entry of the map is; the numbers are those of e820 and of PVH alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum E820Kind {
    /// Free for the guest.
    Ram = 1,
    /// ACPI tables, and behind them the secret page. Not "reserved": Linux maps what is there as
    /// private only in memory of this kind.
    Acpi = 3,
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct E820Entry {
    /// First byte.
    pub(super) address: u64,
    /// Length in bytes.
    pub(super) bytes: u64,
    /// What it is.
    pub(super) kind: E820Kind,
}

/// The map of `ram`, ascending.
pub(super) fn memory_map(ram: &RamLayout) -> Vec<E820Entry> {
    let bytes = SECRET_PAGE.0 + PAGE_SIZE - ACPI.0;
    let acpi = E820Entry { address: ACPI.0, bytes, kind: E820Kind::Acpi };
    let hole = (CONVENTIONAL_END.frame(), KERNEL_MIN.frame());
    let mut map: Vec<_> = ram.ranges().flat_map(|range| around(range, hole)).map(usable).collect();
    map.push(acpi);
    map.sort_unstable_by_key(|entry| entry.address);
    map
}

/// The parts of `range` outside `hole`.
fn around(range: PageRange, hole: (Frame, Frame)) -> impl Iterator<Item = PageRange> {
    let below = PageRange::new(range.base(), range.limit().min(hole.0));
    let above = PageRange::new(range.base().max(hole.1), range.limit());
    [below, above].into_iter().flatten()
}

fn usable(range: PageRange) -> E820Entry {
    E820Entry { address: range.start().0, bytes: range.bytes(), kind: E820Kind::Ram }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::page::Gpa;

    fn ends(bytes: u64) -> Vec<(u64, u64, E820Kind)> {
        let ram = RamLayout::new(bytes).unwrap();
        memory_map(&ram).iter().map(|e| (e.address, e.address + e.bytes, e.kind)).collect()
    }

    /// Conventional memory, ACPI tables, then RAM up to its end.
    #[test]
    fn small_ram_is_two_runs_around_the_legacy_hole() {
        let map = [
            (0, 0xa_0000, E820Kind::Ram),
            (0xe_0000, 0xf_0000, E820Kind::Acpi),
            (0x10_0000, 0x1000_0000, E820Kind::Ram),
        ];
        assert_eq!(ends(256 << 20), map);
    }

    /// RAM beyond 3 GiB is one more run from 4 GiB up.
    #[test]
    fn large_ram_continues_at_4_gib() {
        let map = ends(5 << 30);
        assert_eq!(map[2], (0x10_0000, 0xc000_0000, E820Kind::Ram));
        assert_eq!(map[3], (0x1_0000_0000, 0x1_8000_0000, E820Kind::Ram));
        assert_eq!(map.len(), 4);
    }

    proptest! {
        /// Entries ascend without overlap; a frame is offered exactly if it is RAM and outside
        /// the legacy hole.
        #[test]
        fn offers_all_ram_but_the_legacy_hole(
            pages in 0x101u64..0x40_0000, probe in 0u64..0x50_0000,
        ) {
            let ram = RamLayout::new(pages * PAGE_SIZE).unwrap();
            let map = memory_map(&ram);
            for pair in map.windows(2) {
                prop_assert!(pair[0].address + pair[0].bytes <= pair[1].address);
            }
            let at = Gpa(probe * PAGE_SIZE);
            let offered = map.iter().any(|e| {
                e.kind == E820Kind::Ram && (e.address..e.address + e.bytes).contains(&at.0)
            });
            let is_ram = ram.ranges().any(|range| range.contains(at.frame()));
            let legacy = (0xa_0000..0x10_0000).contains(&at.0);
            prop_assert_eq!(offered, is_ram && !legacy);
        }
    }
}
