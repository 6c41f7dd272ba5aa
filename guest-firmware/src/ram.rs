//! Runs of guest pages, and which of them are RAM.

use core::fmt::{Display, Formatter, Result as FmtResult};
use core::ops::Range;

/// Bytes in a page.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// Runs of RAM that are kept; a memory map has a handful.
const MAX_RUNS: usize = 32;

/// A run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pages {
    /// The first frame.
    pub(crate) first: u64,
    /// How many.
    pub(crate) count: u64,
}

impl Pages {
    /// The pages between two page addresses.
    pub(crate) fn between(addresses: &Range<u64>) -> Self {
        let first = addresses.start / PAGE_SIZE;
        Self { first, count: (addresses.end / PAGE_SIZE).saturating_sub(first) }
    }

    /// The frames of the run.
    pub(crate) fn frames(self) -> Range<u64> {
        self.first..self.first.saturating_add(self.count)
    }

    /// The first address.
    pub(crate) fn gpa(self) -> u64 {
        self.first.saturating_mul(PAGE_SIZE)
    }
}

impl Display for Pages {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{:#x}+{}", self.gpa(), self.count)
    }
}

/// The memory map's RAM.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ram {
    runs: [Pages; MAX_RUNS],
}

impl Ram {
    /// Adds what whole pages there are between two addresses; `false` if there are too many runs.
    pub(crate) fn add(&mut self, base: u64, bytes: u64) -> bool {
        let first = base.div_ceil(PAGE_SIZE);
        let limit = base.saturating_add(bytes) / PAGE_SIZE;
        let Some(free) = self.runs.iter_mut().find(|run| run.count == 0) else {
            return false;
        };
        *free = Pages { first, count: limit.saturating_sub(first) };
        true
    }

    /// The runs, in the memory map's order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Pages> {
        self.runs.iter().copied().filter(|run| run.count > 0)
    }

    /// Bytes of RAM.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs().map(|run| run.count * PAGE_SIZE).sum()
    }

    /// The first frame above all RAM.
    pub(crate) fn limit(&self) -> u64 {
        self.runs().map(|run| run.frames().end).max().unwrap_or(0)
    }

    /// Whether a frame is RAM.
    pub(crate) fn contains(&self, frame: u64) -> bool {
        self.runs().any(|run| run.frames().contains(&frame))
    }

    /// The pages of a run up to where the RAM that it starts in ends; none if that is no RAM.
    pub(crate) fn clip(&self, pages: Pages) -> Pages {
        let ram = self.runs().find(|run| run.frames().contains(&pages.first));
        let limit = ram.map_or(pages.first, |run| run.frames().end);
        Pages { count: pages.count.min(limit - pages.first), ..pages }
    }

    /// Whether every page of a run is RAM.
    pub(crate) fn holds(&self, pages: Pages) -> bool {
        pages.count <= self.limit() && pages.frames().all(|frame| self.contains(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::{PAGE_SIZE, Pages, Ram};

    #[test]
    fn partial_pages_are_not_ram() {
        let mut ram = Ram::default();
        assert!(ram.add(0, 0x9fc00));
        assert!(ram.add(0x10_0400, 0x2c00));
        assert!(ram.contains(0x9e) && !ram.contains(0x9f));
        assert!(!ram.contains(0x100) && ram.contains(0x101) && ram.contains(0x102));
        assert_eq!(ram.bytes(), (0x9f + 2) * PAGE_SIZE);
        assert_eq!(ram.limit(), 0x103);
    }

    #[test]
    fn a_run_is_clipped_where_its_ram_ends() {
        let mut ram = Ram::default();
        assert!(ram.add(0x1000, 0x3000));
        let clipped = |first, count| ram.clip(Pages { first, count }).count;
        assert_eq!((clipped(2, 1), clipped(2, 9), clipped(0, 9), clipped(4, 9)), (1, 2, 0, 0));
    }

    #[test]
    fn a_run_over_a_hole_is_not_held() {
        let mut ram = Ram::default();
        assert!(ram.add(0, 0x4000) && ram.add(0x5000, 0x1000));
        assert!(ram.holds(Pages { first: 0, count: 4 }));
        assert!(!ram.holds(Pages { first: 3, count: 2 }));
        assert!(!ram.holds(Pages { first: 0, count: u64::MAX }));
    }
}
