//! One bit per page of RAM: set means shared. Its size is known before the guest starts.

use super::{Full, Status, Tracker};
use crate::page::bits::{WORD_BITS, fill, find};
use crate::page::{Frame, FrameSet, PageRange, RamLayout};

/// Frames of a block, as a power of two: 512 bytes of the bitmap.
const BLOCK_SHIFT: u32 = 12;

/// Which pages are shared, as one bit per page of RAM: RAM / 32,768 bytes, 3 MiB per 100 GiB.
///
/// A guest shares little of its RAM, so there is also a bit for each block of 4096 frames, 8 bytes per GiB. If it is
/// not set, no frame of the block is shared, and the block is not searched.
#[derive(Debug, Clone)]
pub struct SharedBitmap {
    shared: FrameSet,
    blocks: Vec<u64>,
}

impl SharedBitmap {
    /// A bitmap of this RAM in which every page is private.
    #[must_use]
    pub fn new(layout: RamLayout) -> Self {
        Self { shared: FrameSet::new(layout), blocks: vec![0; words_of_blocks(layout)] }
    }

    /// Records that the part of `range` that is RAM has `status`.
    pub fn mark(&mut self, range: PageRange, status: Status) {
        let (base, limit) = (range.base().0, range.limit().0);
        let shared = status == Status::Shared;
        // A block with a private page may also have shared pages.
        let (first, end) = match status {
            Status::Shared => (base >> BLOCK_SHIFT, limit.div_ceil(1 << BLOCK_SHIFT)),
            Status::Private => (base.div_ceil(1 << BLOCK_SHIFT), limit >> BLOCK_SHIFT),
        };
        let bit = |block: u64| usize::try_from(block).unwrap_or(usize::MAX).min(self.bits());
        let (first, end) = (bit(first), bit(end));
        fill(&mut self.blocks, first, end, shared);
        match status {
            Status::Shared => self.shared.insert_range(range),
            Status::Private => self.shared.remove_range(range),
        }
    }

    fn bits(&self) -> usize {
        self.blocks.len() * WORD_BITS
    }
}

fn words_of_blocks(layout: RamLayout) -> usize {
    let limit = layout.ranges().last().map_or(0, |run| run.limit().0);
    usize::try_from(limit >> BLOCK_SHIFT).map_or(0, |last| last / WORD_BITS + 1)
}

impl SharedBitmap {
    /// The shared frames.
    pub(super) fn frames(&self) -> &FrameSet {
        &self.shared
    }
}

impl From<FrameSet> for SharedBitmap {
    /// Every block's bit is set: to find the right bits would take as long as the first question, which finds them too.
    fn from(shared: FrameSet) -> Self {
        let blocks = vec![u64::MAX; words_of_blocks(shared.layout())];
        Self { shared, blocks }
    }
}

impl Tracker for SharedBitmap {
    fn set(&mut self, range: PageRange, status: Status) -> Result<(), Full> {
        self.mark(range, status);
        Ok(())
    }

    fn first_shared(&self, within: PageRange) -> Option<PageRange> {
        let (mut base, limit) = (within.base().0, within.limit().0);
        let last = usize::try_from((limit - 1) >> BLOCK_SHIFT).unwrap_or(usize::MAX);
        let blocks = self.bits().min(last.saturating_add(1));
        while base < limit {
            let from = usize::try_from(base >> BLOCK_SHIFT).ok()?;
            let first = find(&self.blocks, from, blocks, true)?;
            let end = find(&self.blocks, first, blocks, false).unwrap_or(blocks);
            base = base.max((first as u64) << BLOCK_SHIFT);
            let end = limit.min((end as u64) << BLOCK_SHIFT);
            // Beyond these blocks no frame is shared, so no run is cut.
            let near = PageRange::new(Frame(base), Frame(end)).ok()?;
            if let Some(run) = self.shared.first_run(near) {
                return Some(run);
            }
            base = end;
        }
        None
    }

    fn clear(&mut self) {
        self.shared.clear();
        self.blocks.fill(0);
    }

    fn memory_bytes(&self) -> usize {
        self.shared.memory_bytes() + self.blocks.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::encryption::shared_in;

    fn range(base: u64, limit: u64) -> PageRange {
        PageRange::new(Frame(base), Frame(limit)).unwrap()
    }

    /// The bitmap is RAM / 32,768 bytes, where the hole below 4 GiB costs nothing, and 8 bytes for
    /// each GiB up to its end.
    #[test]
    fn costs_one_bit_per_page_of_ram() {
        let gib = |n: u64| SharedBitmap::new(RamLayout::new(n << 30).unwrap()).memory_bytes();
        assert_eq!(gib(1), (32 << 10) + 16);
        assert_eq!(gib(100), (3_200 << 10) + 102 * 8);
    }

    proptest! {
        /// What blocks say is empty is: any history of reports gives the runs of a plain set.
        #[test]
        fn blocks_hide_nothing(
            reports in vec((0..30_000_u64, 1..12_000_u64, any::<bool>()), 1..20),
            (from, pages) in (0..30_000_u64, 1..30_000_u64),
        ) {
            let layout = RamLayout::new(100 << 20).unwrap();
            let (mut bitmap, mut plain) = (SharedBitmap::new(layout), FrameSet::new(layout));
            for (base, pages, shared) in reports {
                let run = range(base, base + pages);
                bitmap.mark(run, if shared { Status::Shared } else { Status::Private });
                if shared { plain.insert_range(run) } else { plain.remove_range(run) }
            }
            let within = range(from, from + pages);
            prop_assert_eq!(bitmap.first_shared(within), plain.first_run(within));
            let runs: Vec<_> = shared_in(&bitmap, range(0, 40_000)).collect();
            prop_assert_eq!(&runs, &plain.runs().collect::<Vec<_>>());
            prop_assert_eq!(shared_in(&SharedBitmap::from(plain), range(0, 40_000)).collect::<Vec<_>>(), runs);
        }
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
