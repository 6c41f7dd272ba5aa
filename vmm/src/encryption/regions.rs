//! A bounded list of the runs of shared frames.
//!
//! Sorted, disjoint and non-adjacent, on shelves of up to 64 regions: a lookup is two short binary
//! searches, and a change moves at most one shelf (1 KiB), however many regions there are.

use super::{Full, Status, Tracker};
use crate::page::{Frame, PageRange, RamLayout};

/// Fewest regions that a list may hold however small RAM is.
const SMALLEST_BOUND: u64 = 512;

/// Most regions that a list may hold however large RAM is: 64 KiB of them, in 140 KiB at worst.
///
/// Real guests have tens of regions. More regions are better kept as a bitmap, which costs the same for any number.
const LARGEST_BOUND: u64 = 4096;

/// Most regions on a shelf.
const SHELF: usize = 64;

/// Room on a shelf: a change puts one region more on it, or two in place of one, before it is split.
const SHELF_ROOM: usize = SHELF + 2;

/// The runs of shared frames, at most a fixed number of them.
#[derive(Debug, Clone)]
pub struct SharedRegions {
    /// Ascending, none empty; two neighbours have more than [`SHELF`] regions together, so that
    /// shelves are more than half full on average. Between each region and the next is at least one
    /// private frame.
    shelves: Vec<Vec<PageRange>>,
    /// The limit of the last region of each shelf.
    limits: Vec<Frame>,
    count: usize,
    bound: usize,
}

/// A region's place: its shelf, and its number there. The place after the last region is the start of a shelf that does
/// not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    shelf: usize,
    at: usize,
}

impl SharedRegions {
    /// An empty list that holds up to `bound` regions.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self { shelves: Vec::new(), limits: Vec::new(), count: 0, bound }
    }

    /// The bound for this much RAM: about where the list would outgrow a bitmap, within fixed limits.
    ///
    /// A region costs 16 bytes and a bitmap one bit per page, so they are equal at one region per
    /// 128 pages. From 2 GiB of RAM up the list stops at 4,096 regions; below 256 MiB it may hold
    /// 512 all the same, so that a small guest is not cut short.
    #[must_use]
    pub fn default_bound(layout: &RamLayout) -> usize {
        let region_bits = 8 * size_of::<PageRange>() as u64;
        let bound = (layout.pages() / region_bits).clamp(SMALLEST_BOUND, LARGEST_BOUND);
        usize::try_from(bound).unwrap_or(usize::MAX)
    }

    /// Bytes of host memory that a list with this bound never exceeds, however it is used: every two
    /// shelves have more than 64 regions, so `bound` of them need at most `bound / 32 + 1` shelves.
    #[must_use]
    pub fn most_memory(bound: usize) -> usize {
        let shelves = bound / (SHELF / 2) + 1;
        let each = size_of::<Vec<PageRange>>() + size_of::<Frame>();
        shelves * SHELF_ROOM * size_of::<PageRange>() + shelves.max(4).next_power_of_two() * each
    }

    /// The regions, ascending.
    pub fn regions(&self) -> impl Iterator<Item = PageRange> {
        self.shelves.iter().flatten().copied()
    }

    /// Adds `range`, joined with every region that it overlaps or touches.
    fn insert(&mut self, range: PageRange) -> Result<(), Full> {
        let from = self.first_reaching(range.base());
        let (mut base, mut limit) = (range.base(), range.limit());
        let (mut to, mut touched) = (from, 0);
        while let Some(region) = self.get(to).filter(|region| region.base() <= range.limit()) {
            base = base.min(region.base());
            limit = limit.max(region.limit());
            to = self.after(to);
            touched += 1;
        }
        match PageRange::new(base, limit) {
            Ok(joined) => self.replace(from, to, touched, &[joined]),
            Err(_) => Ok(()),
        }
    }

    /// Cuts `range` out of every region that it overlaps.
    fn remove(&mut self, range: PageRange) -> Result<(), Full> {
        let from = self.first_reaching(Frame(range.base().0.saturating_add(1)));
        let (mut to, mut touched) = (from, 0);
        let (mut before, mut after) = (None, None);
        while let Some(region) = self.get(to).filter(|region| region.base() < range.limit()) {
            if touched == 0 {
                before = PageRange::new(region.base(), range.base()).ok();
            }
            after = PageRange::new(range.limit(), region.limit()).ok();
            to = self.after(to);
            touched += 1;
        }
        match (before, after) {
            (Some(before), Some(after)) => self.replace(from, to, touched, &[before, after]),
            (Some(kept), None) | (None, Some(kept)) => self.replace(from, to, touched, &[kept]),
            (None, None) => self.replace(from, to, touched, &[]),
        }
    }

    /// The first region whose limit is `limit` or beyond.
    fn first_reaching(&self, limit: Frame) -> Place {
        let shelf = self.limits.partition_point(|&last| last < limit);
        let regions = self.shelves.get(shelf).map_or(&[][..], Vec::as_slice);
        Place { shelf, at: regions.partition_point(|region| region.limit() < limit) }
    }

    fn get(&self, place: Place) -> Option<PageRange> {
        self.shelves.get(place.shelf)?.get(place.at).copied()
    }

    /// The place after that of a region.
    fn after(&self, Place { shelf, at }: Place) -> Place {
        match self.shelves.get(shelf) {
            Some(regions) if at + 1 < regions.len() => Place { shelf, at: at + 1 },
            _ => Place { shelf: shelf + 1, at: 0 },
        }
    }

    /// Puts `new`, at most two regions, in the place of `touched` regions: those before `to`.
    fn replace(
        &mut self,
        from: Place,
        to: Place,
        touched: usize,
        new: &[PageRange],
    ) -> Result<(), Full> {
        let count = self.count - touched + new.len();
        if count > self.bound {
            return Err(Full { bound: self.bound });
        }
        self.count = count;
        if from.shelf == self.shelves.len() {
            self.append(new);
            return Ok(());
        }
        if to.shelf > from.shelf {
            self.cut_front(to);
            self.shelves.drain(from.shelf + 1..to.shelf);
            self.limits.drain(from.shelf + 1..to.shelf);
        }
        let end = if to.shelf == from.shelf { to.at } else { usize::MAX };
        if let Some(regions) = self.shelves.get_mut(from.shelf) {
            regions.splice(from.at..end.min(regions.len()), new.iter().copied());
        }
        self.tidy(from.shelf);
        Ok(())
    }

    /// Adds `new` behind the last region.
    fn append(&mut self, new: &[PageRange]) {
        if self.shelves.is_empty() {
            self.shelves.push(Vec::with_capacity(SHELF_ROOM));
            self.limits.push(Frame(0));
        }
        if let Some(last) = self.shelves.last_mut() {
            last.extend_from_slice(new);
        }
        self.tidy(self.shelves.len() - 1);
    }

    /// Takes the regions before `to` off its shelf; some stay there.
    fn cut_front(&mut self, to: Place) {
        if let Some(regions) = self.shelves.get_mut(to.shelf) {
            regions.drain(..to.at);
        }
    }

    /// Makes a shelf that was changed, and its neighbours, as shelves must be.
    fn tidy(&mut self, shelf: usize) {
        self.split(shelf);
        self.join(shelf + 1);
        self.join(shelf);
        if let Some(before) = shelf.checked_sub(1) {
            self.join(before);
        }
    }

    /// Splits a shelf that is too full; drops one that is empty.
    fn split(&mut self, shelf: usize) {
        let Some(regions) = self.shelves.get_mut(shelf) else { return };
        if regions.len() > SHELF {
            let half = regions.len() / 2;
            let mut upper = Vec::with_capacity(SHELF_ROOM);
            upper.extend(regions.drain(half..));
            self.shelves.insert(shelf + 1, upper);
            self.limits.insert(shelf + 1, Frame(0));
            self.note_limit(shelf + 1);
        }
        self.note_limit(shelf);
    }

    /// Puts the regions of the next shelf onto this one, if they fit.
    fn join(&mut self, shelf: usize) {
        let Some([one, next]) = self.shelves.get_mut(shelf..shelf + 2) else {
            if self.shelves.get(shelf).is_some_and(Vec::is_empty) {
                self.shelves.pop();
                self.limits.pop();
            }
            return;
        };
        if one.len() + next.len() > SHELF {
            return;
        }
        one.append(next);
        self.shelves.remove(shelf + 1);
        self.limits.remove(shelf + 1);
        self.note_limit(shelf);
    }

    fn note_limit(&mut self, shelf: usize) {
        let last = self.shelves.get(shelf).and_then(|regions| regions.last());
        if let (Some(limit), Some(last)) = (self.limits.get_mut(shelf), last) {
            *limit = last.limit();
        }
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
        let first = self.first_reaching(Frame(within.base().0.saturating_add(1)));
        self.get(first)?.intersection(within)
    }

    fn clear(&mut self) {
        *self = Self::new(self.bound);
    }

    fn memory_bytes(&self) -> usize {
        let regions: usize = self.shelves.iter().map(Vec::capacity).sum();
        regions * size_of::<PageRange>()
            + self.shelves.capacity() * size_of::<Vec<PageRange>>()
            + self.limits.capacity() * size_of::<Frame>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

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

    fn regions(list: &SharedRegions) -> Vec<PageRange> {
        list.regions().collect()
    }

    /// Regions that overlap or touch become one.
    #[test]
    fn joins_what_touches() {
        let joined = |shared| regions(&list(8, shared));
        assert_eq!(joined(&[(0, 2), (4, 6), (2, 4)]), [range(0, 6)]);
        assert_eq!(joined(&[(1, 2), (3, 4), (5, 6), (0, 9)]), [range(0, 9)]);
        assert_eq!(joined(&[(0, 9), (3, 4)]), [range(0, 9)]);
        assert_eq!(joined(&[(0, 2), (3, 5)]), [range(0, 2), range(3, 5)]);
    }

    /// A hole in the middle of a region leaves both its ends.
    #[test]
    fn cuts_out_what_becomes_private() {
        let mut list = list(8, &[(0, 10), (20, 30)]);
        list.set(range(4, 6), Status::Private).unwrap();
        assert_eq!(regions(&list), [range(0, 4), range(6, 10), range(20, 30)]);
        list.set(range(8, 25), Status::Private).unwrap();
        assert_eq!(regions(&list), [range(0, 4), range(6, 8), range(25, 30)]);
        list.set(range(0, 40), Status::Private).unwrap();
        assert_eq!(regions(&list), []);
    }

    /// At the bound a change that needs one more region is refused and changes nothing; others pass.
    #[test]
    fn refuses_to_outgrow_its_bound() {
        let mut list = list(2, &[(0, 4), (8, 12)]);
        let before = regions(&list);
        assert_eq!(list.set(range(20, 21), Status::Shared), Err(Full { bound: 2 }));
        assert_eq!(list.set(range(1, 2), Status::Private), Err(Full { bound: 2 }));
        assert_eq!(regions(&list), before);
        list.set(range(4, 8), Status::Shared).unwrap();
        assert_eq!(regions(&list), [range(0, 12)]);
    }

    /// A guest that fills the list in the order that leaves shelves emptiest stays within what is
    /// documented, and so does one that then takes most of it back.
    #[test]
    fn memory_is_bounded() {
        const BOUND: usize = 4096;
        let most = SharedRegions::most_memory(BOUND);
        assert!(most < 150 << 10, "{most} bytes");
        let mut list = SharedRegions::new(BOUND);
        for frame in (0..BOUND as u64).rev().chain(0..BOUND as u64) {
            list.set(range(2 * frame, 2 * frame + 1), Status::Shared).unwrap();
            assert!(list.memory_bytes() <= most, "{} bytes", list.memory_bytes());
        }
        for frame in (0..BOUND as u64).filter(|frame| frame % 7 != 0) {
            list.set(range(2 * frame, 2 * frame + 1), Status::Private).unwrap();
            assert!(list.memory_bytes() <= most, "{} bytes", list.memory_bytes());
        }
        let fuller = list.shelves.windows(2).all(|two| two[0].len() + two[1].len() > SHELF);
        assert!(fuller, "shelves are joined as they empty");
    }

    /// The bound follows RAM, within its limits.
    #[test]
    fn default_bound_follows_ram() {
        for (ram_mib, bound) in [(16, 512), (256, 512), (1024, 2048), (2048, 4096), (1 << 20, 4096)]
        {
            let layout = RamLayout::new(ram_mib << 20).unwrap();
            assert_eq!(SharedRegions::default_bound(&layout), bound, "{ram_mib} MiB");
        }
    }

    proptest! {
        /// Over many shelves the list agrees with one flag per page, and shelves stay as they must be.
        #[test]
        fn agrees_with_one_flag_per_page(
            changes in vec((0..2000_u64, prop_oneof![9 => 1..3_u64, 1 => 1..1500_u64], any::<bool>()), 1..600),
        ) {
            const FRAMES: u64 = 3600;
            let mut flags = vec![false; usize::try_from(FRAMES).unwrap()];
            let mut list = SharedRegions::new(2000);
            for frame in (0..FRAMES).step_by(4) {
                list.set(range(frame, frame + 1), Status::Shared).unwrap();
                flags[usize::try_from(frame).unwrap()] = true;
            }
            for (base, pages, shared) in changes {
                let status = if shared { Status::Shared } else { Status::Private };
                list.set(range(base, base + pages), status).unwrap();
                for frame in base..base + pages {
                    flags[usize::try_from(frame).unwrap()] = shared;
                }
                let full = list.shelves.iter().all(|shelf| (1..=SHELF).contains(&shelf.len()));
                let apart = list.shelves.windows(2).all(|two| two[0].len() + two[1].len() > SHELF);
                prop_assert!(full && apart, "{:?}", list.shelves.iter().map(Vec::len).collect::<Vec<_>>());
                prop_assert_eq!(list.count, list.regions().count());
            }
            for (frame, &shared) in (0..).zip(&flags) {
                let seen = list.first_shared(range(frame, frame + 1)).is_some();
                prop_assert_eq!(seen, shared, "frame {}", frame);
            }
            prop_assert!(regions(&list).windows(2).all(|two| two[0].limit() < two[1].base()));
        }
    }
}
