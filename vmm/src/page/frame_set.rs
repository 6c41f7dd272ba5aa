//! A set of frames of RAM, one bit each: which to send, which were written, which are shared.

use super::{Frame, PageRange, RamLayout};

/// Bits in a word of the set.
const WORD_BITS: usize = u64::BITS as usize;

/// A set of frames of one guest's RAM: RAM / 32,768 bytes, 3 MiB per 100 GiB.
///
/// Bits number the frames of RAM in order, so the device hole below 4 GiB takes none. What lies
/// outside RAM is never in the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameSet {
    layout: RamLayout,
    words: Vec<u64>,
}

impl FrameSet {
    /// The empty set.
    #[must_use]
    pub fn new(layout: RamLayout) -> Self {
        let words = layout.pages().div_ceil(u64::from(u64::BITS));
        Self { layout, words: vec![0; usize::try_from(words).unwrap_or(usize::MAX)] }
    }

    /// All of RAM.
    #[must_use]
    pub fn full(layout: RamLayout) -> Self {
        let mut set = Self::new(layout);
        for range in layout.ranges() {
            set.insert_range(range);
        }
        set
    }

    /// Which frames could be in the set.
    #[must_use]
    pub fn layout(&self) -> RamLayout {
        self.layout
    }

    /// Adds `frame`, if it is RAM.
    pub fn insert(&mut self, frame: Frame) {
        if let Some(bit) = self.bit(frame) {
            self.fill(bit, bit + 1, true);
        }
    }

    /// Adds the part of `range` that is RAM.
    pub fn insert_range(&mut self, range: PageRange) {
        self.fill_range(range, true);
    }

    /// Takes `frame` out.
    pub fn remove(&mut self, frame: Frame) {
        if let Some(bit) = self.bit(frame) {
            self.fill(bit, bit + 1, false);
        }
    }

    /// Takes `range` out.
    pub fn remove_range(&mut self, range: PageRange) {
        self.fill_range(range, false);
    }

    /// Takes all frames out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Whether `frame` is in the set.
    #[must_use]
    pub fn contains(&self, frame: Frame) -> bool {
        self.bit(frame).is_some_and(|bit| self.find(bit, bit + 1, true).is_some())
    }

    /// How many frames are in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no frame is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Adds every frame of `other`, which is a set of the same RAM.
    pub fn merge(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Adds the frames of `range`, a run of RAM, whose bit is set in `bits`: bit 0 of the first
    /// word is the first frame. The form of `KVM_GET_DIRTY_LOG`.
    pub(crate) fn insert_bits(&mut self, range: PageRange, bits: &[u64]) {
        let Some(first) = self.bit(range.base()) else { return };
        let end = first + length(range);
        for (index, &word) in bits.iter().enumerate().filter(|(_, word)| **word != 0) {
            let from = first + index * WORD_BITS;
            let room = end.saturating_sub(from).min(WORD_BITS);
            let Some(unused) = WORD_BITS.checked_sub(room).filter(|&unused| unused < WORD_BITS)
            else {
                return;
            };
            let word = word & (u64::MAX >> unused);
            let (at, shift) = (from / WORD_BITS, from % WORD_BITS);
            if let Some(low) = self.words.get_mut(at) {
                *low |= word << shift;
            }
            if let (Some(high), 1..) = (self.words.get_mut(at + 1), shift) {
                *high |= word >> (WORD_BITS - shift);
            }
        }
    }

    /// The first run of frames of the set in `within`, as long as it can be without leaving it.
    #[must_use]
    pub fn first_run(&self, within: PageRange) -> Option<PageRange> {
        self.layout.clip(within).find_map(|run| {
            let from = self.bit(run.base())?;
            let to = from + length(run);
            let base = self.find(from, to, true)?;
            let limit = self.find(base, to, false).unwrap_or(to);
            let frame = |bit: usize| Frame(run.base().0 + (bit - from) as u64);
            PageRange::new(frame(base), frame(limit)).ok()
        })
    }

    /// Every run of frames of the set, ascending; runs of low and of high RAM do not join.
    pub fn runs(&self) -> impl Iterator<Item = PageRange> {
        self.layout.ranges().flat_map(move |ram| {
            let mut rest = Some(ram);
            std::iter::from_fn(move || {
                let run = self.first_run(rest?)?;
                rest = PageRange::new(run.limit(), ram.limit()).ok();
                Some(run)
            })
        })
    }

    /// Every frame of the set, ascending.
    pub fn frames(&self) -> impl Iterator<Item = Frame> {
        self.runs().flat_map(PageRange::frames)
    }

    /// Bytes of host memory that the set holds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    /// The number of `frame` among the frames of RAM.
    fn bit(&self, frame: Frame) -> Option<usize> {
        let mut before = 0;
        for ram in self.layout.ranges() {
            if ram.contains(frame) {
                return usize::try_from(before + (frame.0 - ram.base().0)).ok();
            }
            before += ram.pages();
        }
        None
    }

    fn fill_range(&mut self, range: PageRange, value: bool) {
        for run in self.layout.clip(range) {
            if let Some(from) = self.bit(run.base()) {
                self.fill(from, from + length(run), value);
            }
        }
    }

    fn fill(&mut self, from: usize, to: usize, value: bool) {
        let mut bit = from;
        while bit < to {
            let offset = bit % WORD_BITS;
            let count = (WORD_BITS - offset).min(to - bit);
            let mask = (u64::MAX >> (WORD_BITS - count)) << offset;
            if let Some(word) = self.words.get_mut(bit / WORD_BITS) {
                if value {
                    *word |= mask;
                } else {
                    *word &= !mask;
                }
            }
            bit += count;
        }
    }

    /// The first bit in `from..to` that has `value`.
    fn find(&self, from: usize, to: usize, value: bool) -> Option<usize> {
        let mut bit = from;
        while bit < to {
            let word = *self.words.get(bit / WORD_BITS)?;
            let hits = if value { word } else { !word } >> (bit % WORD_BITS);
            if hits != 0 {
                let found = bit + hits.trailing_zeros() as usize;
                return (found < to).then_some(found);
            }
            bit = (bit / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }
}

/// Frames in `run`, which is in RAM and so has fewer than the host has bytes.
fn length(run: PageRange) -> usize {
    usize::try_from(run.pages()).unwrap_or(usize::MAX)
}
