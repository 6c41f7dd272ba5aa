//! A bounded list of the runs of shared frames.
//!
//! Sorted, disjoint and non-adjacent, in one flat array: real guests have tens of regions and change
//! them often, so a lookup is a short binary search and a change moves a few hundred bytes.

use std::ops::Range;

use super::{Full, Status, Tracker};
use crate::page::{PageRange, RamLayout};

/// Fewest regions that a list may hold however small RAM is: 8 KiB.
const SMALLEST_BOUND: u64 = 512;

/// Most regions that a list may hold however large RAM is: 64 KiB.
///
/// A change in the middle moves half the array, so this bounds the cost of one hypercall: about a
/// third of a microsecond, less than the exit that brings it. Real guests have tens of regions; what
/// is larger is better kept as a bitmap, where a change costs the same however many there are.
const LARGEST_BOUND: u64 = 4096;

/// The runs of shared frames, at most a fixed number of them.
#[derive(Debug, Clone)]
pub struct SharedRegions {
    /// Ascending; between each and the next is at least one private frame.
    regions: Vec<PageRange>,
    bound: usize,
}

impl SharedRegions {
    /// An empty list that holds up to `bound` regions and never allocates again.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self { regions: Vec::with_capacity(bound), bound }
    }

    /// The bound for this much RAM: where the list would outgrow a bitmap, within fixed limits.
    ///
    /// A region costs 16 bytes and a bitmap one bit per page, so they are equal at one region per
    /// 128 pages. From 2 GiB of RAM up the list stops at 4,096 regions, to keep changes cheap;
    /// below 256 MiB it may hold 512 all the same, so that a small guest is not cut short.
    #[must_use]
    pub fn default_bound(layout: &RamLayout) -> usize {
        let region_bits = 8 * size_of::<PageRange>() as u64;
        let bound = (layout.pages() / region_bits).clamp(SMALLEST_BOUND, LARGEST_BOUND);
        usize::try_from(bound).unwrap_or(usize::MAX)
    }

    /// The regions, ascending.
    #[must_use]
    pub fn regions(&self) -> &[PageRange] {
        &self.regions
    }

    /// Adds `range`, joined with every region that it overlaps or touches.
    fn insert(&mut self, range: PageRange) -> Result<(), Full> {
        let first = self.regions.partition_point(|region| region.limit() < range.base());
        let last = self.regions.partition_point(|region| region.base() <= range.limit());
        let touched = self.regions.get(first..last).unwrap_or_default();
        let base = touched.first().map_or(range.base(), |region| region.base().min(range.base()));
        let limit =
            touched.last().map_or(range.limit(), |region| region.limit().max(range.limit()));
        match PageRange::new(base, limit) {
            Ok(joined) => self.replace(first..last, &[joined]),
            Err(_) => Ok(()),
        }
    }

    /// Cuts `range` out of every region that it overlaps.
    fn remove(&mut self, range: PageRange) -> Result<(), Full> {
        let first = self.regions.partition_point(|region| region.limit() <= range.base());
        let last = self.regions.partition_point(|region| region.base() < range.limit());
        let touched = self.regions.get(first..last).unwrap_or_default();
        let before =
            touched.first().and_then(|region| PageRange::new(region.base(), range.base()).ok());
        let after =
            touched.last().and_then(|region| PageRange::new(range.limit(), region.limit()).ok());
        match (before, after) {
            (Some(before), Some(after)) => self.replace(first..last, &[before, after]),
            (Some(kept), None) | (None, Some(kept)) => self.replace(first..last, &[kept]),
            (None, None) => self.replace(first..last, &[]),
        }
    }

    fn replace(&mut self, old: Range<usize>, new: &[PageRange]) -> Result<(), Full> {
        if self.regions.len() - old.len() + new.len() > self.bound {
            return Err(Full { bound: self.bound });
        }
        self.regions.splice(old, new.iter().copied());
        Ok(())
    }
}

impl Tracker for SharedRegions {
    fn set(&mut self, range: PageRange, status: Status) -> Result<(), Full> {
        match status {
            Status::Private => self.remove(range),
            Status::Shared => self.insert(range),
        }
    }

    fn first_shared(&self, within: PageRange) -> Option<PageRange> {
        let first = self.regions.partition_point(|region| region.limit() <= within.base());
        self.regions.get(first)?.intersection(within)
    }

    fn clear(&mut self) {
        self.regions.clear();
    }

    fn memory_bytes(&self) -> usize {
        self.regions.capacity() * size_of::<PageRange>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Frame;

    fn range(base: u64, limit: u64) -> PageRange {
        PageRange::new(Frame(base), Frame(limit)).unwrap()
    }

    fn list(bound: usize, shared: &[(u64, u64)]) -> SharedRegions {
        let mut list = SharedRegions::new(bound);
        for &(base, limit) in shared {
            list.set(range(base, limit), Status::Shared).unwrap();
        }
        list
    }

    /// Regions that overlap or touch become one.
    #[test]
    fn joins_what_touches() {
        assert_eq!(list(8, &[(0, 2), (4, 6), (2, 4)]).regions, [range(0, 6)]);
        assert_eq!(list(8, &[(1, 2), (3, 4), (5, 6), (0, 9)]).regions, [range(0, 9)]);
        assert_eq!(list(8, &[(0, 9), (3, 4)]).regions, [range(0, 9)]);
        assert_eq!(list(8, &[(0, 2), (3, 5)]).regions, [range(0, 2), range(3, 5)]);
    }

    /// A hole in the middle of a region leaves both its ends.
    #[test]
    fn cuts_out_what_becomes_private() {
        let mut list = list(8, &[(0, 10), (20, 30)]);
        list.set(range(4, 6), Status::Private).unwrap();
        assert_eq!(list.regions, [range(0, 4), range(6, 10), range(20, 30)]);
        list.set(range(8, 25), Status::Private).unwrap();
        assert_eq!(list.regions, [range(0, 4), range(6, 8), range(25, 30)]);
        list.set(range(0, 40), Status::Private).unwrap();
        assert_eq!(list.regions, []);
    }

    /// At the bound a change that needs one more region is refused and changes nothing; others pass.
    #[test]
    fn refuses_to_outgrow_its_bound() {
        let mut list = list(2, &[(0, 4), (8, 12)]);
        let before = list.regions.clone();
        assert_eq!(list.set(range(20, 21), Status::Shared), Err(Full { bound: 2 }));
        assert_eq!(list.set(range(1, 2), Status::Private), Err(Full { bound: 2 }));
        assert_eq!(list.regions, before);
        list.set(range(4, 8), Status::Shared).unwrap();
        assert_eq!(list.regions, [range(0, 12)]);
    }

    /// However it is used, a list keeps the memory that it began with.
    #[test]
    fn never_allocates_again() {
        let mut list = SharedRegions::new(100);
        let memory_bytes = list.memory_bytes();
        for frame in 0..100 {
            list.set(range(2 * frame, 2 * frame + 1), Status::Shared).unwrap();
        }
        assert_eq!(list.set(range(300, 301), Status::Shared), Err(Full { bound: 100 }));
        assert_eq!(list.memory_bytes(), memory_bytes);
    }

    /// A full list is no larger than the bitmap that would replace it, once RAM is 256 MiB.
    #[test]
    fn default_bound_does_not_outgrow_a_bitmap() {
        for (ram_mib, bound) in [(16, 512), (256, 512), (1024, 2048), (2048, 4096), (1 << 20, 4096)]
        {
            let layout = RamLayout::new(ram_mib << 20).unwrap();
            assert_eq!(SharedRegions::default_bound(&layout), bound, "{ram_mib} MiB");
            if ram_mib >= 256 {
                assert!(16 * bound as u64 <= layout.pages() / 8, "{ram_mib} MiB");
            }
        }
    }
}
