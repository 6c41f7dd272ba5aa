//! One bit per page of RAM: set means shared. Its size is known before the guest starts.

use super::{Full, Status, Tracker};
use crate::page::{Frame, PageRange, RamLayout};

/// Bits in a word of the bitmap.
const WORD_BITS: usize = u64::BITS as usize;

/// Which pages are shared, as one bit per page of RAM: RAM / 32,768 bytes, 3 MiB per 100 GiB.
///
/// Bits number pages of RAM in order, so the device hole below 4 GiB takes none.
#[derive(Debug, Clone)]
pub struct SharedBitmap {
    layout: RamLayout,
    words: Vec<u64>,
}

impl SharedBitmap {
    /// A bitmap of this RAM in which every page is private.
    #[must_use]
    pub fn new(layout: RamLayout) -> Self {
        let words = layout.pages().div_ceil(u64::from(u64::BITS));
        Self { layout, words: vec![0; usize::try_from(words).unwrap_or(usize::MAX)] }
    }

    /// Records that the part of `range` that is RAM has `status`.
    pub fn mark(&mut self, range: PageRange, status: Status) {
        for run in self.layout.clip(range) {
            let from = self.first_bit(run);
            self.fill(from, from + length(run), status);
        }
    }

    /// The bit of the first page of `run`, which is wholly in one run of RAM.
    fn first_bit(&self, run: PageRange) -> usize {
        let low = self.layout.low();
        let bit = if low.contains(run.base()) {
            run.base().0
        } else {
            let hole = self.layout.ranges().nth(1).map_or(0, |high| high.base().0 - low.limit().0);
            run.base().0.saturating_sub(hole)
        };
        usize::try_from(bit).unwrap_or(usize::MAX)
    }

    /// The first bit in `from..to` that is set, or that is clear.
    fn find(&self, from: usize, to: usize, wanted: Status) -> Option<usize> {
        let mut bit = from;
        while bit < to {
            let word = *self.words.get(bit / WORD_BITS)?;
            let hits = match wanted {
                Status::Shared => word,
                Status::Private => !word,
            } >> (bit % WORD_BITS);
            if hits != 0 {
                let found = bit + hits.trailing_zeros() as usize;
                return (found < to).then_some(found);
            }
            bit = (bit / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    fn fill(&mut self, from: usize, to: usize, status: Status) {
        let mut bit = from;
        while bit < to {
            let offset = bit % WORD_BITS;
            let count = (WORD_BITS - offset).min(to - bit);
            let mask = (u64::MAX >> (WORD_BITS - count)) << offset;
            if let Some(word) = self.words.get_mut(bit / WORD_BITS) {
                match status {
                    Status::Shared => *word |= mask,
                    Status::Private => *word &= !mask,
                }
            }
            bit += count;
        }
    }
}

impl Tracker for SharedBitmap {
    fn set(&mut self, range: PageRange, status: Status) -> Result<(), Full> {
        self.mark(range, status);
        Ok(())
    }

    fn first_shared(&self, within: PageRange) -> Option<PageRange> {
        self.layout.clip(within).find_map(|run| {
            let from = self.first_bit(run);
            let to = from + length(run);
            let base = self.find(from, to, Status::Shared)?;
            let limit = self.find(base, to, Status::Private).unwrap_or(to);
            let frame = |bit: usize| Frame(run.base().0 + (bit - from) as u64);
            PageRange::new(frame(base), frame(limit)).ok()
        })
    }

    fn clear(&mut self) {
        self.words.fill(0);
    }

    fn memory_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}

/// Pages in `run`, which is in RAM and so has fewer than the host has bytes.
fn length(run: PageRange) -> usize {
    usize::try_from(run.pages()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption::shared_in;

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
