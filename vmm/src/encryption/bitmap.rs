//! One bit per page of RAM: set means shared. Its size is known before the guest starts.

use super::{Full, Status, Tracker};
use crate::page::{FrameSet, PageRange, RamLayout};

/// Which pages are shared, as one bit per page of RAM: RAM / 32,768 bytes, 3 MiB per 100 GiB.
#[derive(Debug, Clone)]
pub struct SharedBitmap {
    shared: FrameSet,
}

impl SharedBitmap {
    /// A bitmap of this RAM in which every page is private.
    #[must_use]
    pub fn new(layout: RamLayout) -> Self {
        Self { shared: FrameSet::new(layout) }
    }

    /// Records that the part of `range` that is RAM has `status`.
    pub fn mark(&mut self, range: PageRange, status: Status) {
        match status {
            Status::Shared => self.shared.insert_range(range),
            Status::Private => self.shared.remove_range(range),
        }
    }
}

impl SharedBitmap {
    /// The shared frames.
    pub(super) fn frames(&self) -> &FrameSet {
        &self.shared
    }
}

impl From<FrameSet> for SharedBitmap {
    fn from(shared: FrameSet) -> Self {
        Self { shared }
    }
}

impl Tracker for SharedBitmap {
    fn set(&mut self, range: PageRange, status: Status) -> Result<(), Full> {
        self.mark(range, status);
        Ok(())
    }

    fn first_shared(&self, within: PageRange) -> Option<PageRange> {
        self.shared.first_run(within)
    }

    fn clear(&mut self) {
        self.shared.clear();
    }

    fn memory_bytes(&self) -> usize {
        self.shared.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption::shared_in;
    use crate::page::Frame;

    fn range(base: u64, limit: u64) -> PageRange {
        PageRange::new(Frame(base), Frame(limit)).unwrap()
    }

    /// The bitmap is RAM / 32,768 bytes: the hole below 4 GiB costs nothing.
    #[test]
    fn costs_one_bit_per_page_of_ram() {
        let gib = |n: u64| SharedBitmap::new(RamLayout::new(n << 30).unwrap()).memory_bytes();
        assert_eq!(gib(1), 32 << 10);
        assert_eq!(gib(100), 3_200 << 10);
    }

    /// Pages on both sides of the hole are told apart, and a run never crosses it.
    #[test]
    fn keeps_both_sides_of_the_hole_apart() {
        let mut bitmap = SharedBitmap::new(RamLayout::new(4 << 30).unwrap());
        bitmap.set(range(0xb_fff0, 0x10_0010), Status::Shared).unwrap();
        let all = range(0, 0x20_0000);
        let runs: Vec<_> = shared_in(&bitmap, all).collect();
        assert_eq!(runs, [range(0xb_fff0, 0xc_0000), range(0x10_0000, 0x10_0010)]);
        bitmap.set(range(0x10_0000, 0x10_0001), Status::Private).unwrap();
        let runs: Vec<_> = shared_in(&bitmap, all).collect();
        assert_eq!(runs, [range(0xb_fff0, 0xc_0000), range(0x10_0001, 0x10_0010)]);
    }

    /// Runs are found whole across words, and cut to the pages asked about.
    #[test]
    fn finds_runs_across_words() {
        let mut bitmap = SharedBitmap::new(RamLayout::new(16 << 20).unwrap());
        bitmap.set(range(60, 200), Status::Shared).unwrap();
        assert_eq!(bitmap.first_shared(range(0, 4096)), Some(range(60, 200)));
        assert_eq!(bitmap.first_shared(range(64, 128)), Some(range(64, 128)));
        assert_eq!(bitmap.first_shared(range(0, 60)), None);
        assert_eq!(bitmap.first_shared(range(200, 4096)), None);
        bitmap.clear();
        assert_eq!(bitmap.first_shared(range(0, 4096)), None);
    }
}
