//! A set of frames of RAM, one bit each: which to send, which were written, which are shared.

use super::bits::{WORD_BITS, fill, find};
use super::{Frame, PageRange, RamLayout};

/// A set of frames of one guest's RAM: RAM / 32,768 bytes, 3 MiB per 100 GiB.
///
/// There is a bit for each frame of RAM, in order, so the device hole below 4 GiB takes none. Frames outside RAM are
/// never in the set.
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

    /// Adds every frame that is in one of `one` and `other`, sets of the same RAM, and not in both.
    pub fn merge_differences(&mut self, one: &Self, other: &Self) {
        for ((word, one), other) in self.words.iter_mut().zip(&one.words).zip(&other.words) {
            *word |= one ^ other;
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

    /// Which bit stands for `frame`.
    fn bit(&self, frame: Frame) -> Option<usize> {
        usize::try_from(self.layout.index_of(frame)?).ok()
    }

    fn fill_range(&mut self, range: PageRange, value: bool) {
        for run in self.layout.clip(range) {
            if let Some(from) = self.bit(run.base()) {
                self.fill(from, from + length(run), value);
            }
        }
    }

    fn fill(&mut self, from: usize, to: usize, value: bool) {
        fill(&mut self.words, from, to, value);
    }

    /// The first bit in `from..to` that has `value`.
    fn find(&self, from: usize, to: usize, value: bool) -> Option<usize> {
        find(&self.words, from, to, value)
    }
}

/// Frames in `run`, which is in RAM and so has fewer than the host has bytes.
fn length(run: PageRange) -> usize {
    usize::try_from(run.pages()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// RAM with a hole: frames `0..0xc_0000` and `0x10_0000..0x10_0200`.
    fn holed() -> RamLayout {
        RamLayout::new((3 << 30) + (2 << 20)).unwrap()
    }

    fn range(base: u64, limit: u64) -> PageRange {
        PageRange::new(Frame(base), Frame(limit)).unwrap()
    }

    #[derive(Debug, Clone)]
    enum Change {
        Insert(u64),
        Remove(u64),
        InsertRange(u64, u64),
        RemoveRange(u64, u64),
        /// Frames of one run of RAM, as KVM's log says them.
        Bits(bool, Vec<u64>),
        Merge(Vec<u64>),
        Clear,
    }

    /// Frames near every edge of RAM.
    fn frame() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..200, 0xb_ff80_u64..0xc_0040, 0xf_ffc0_u64..0x10_0240]
    }

    fn change() -> impl Strategy<Value = Change> {
        let bits = prop::collection::vec(prop_oneof![Just(0), any::<u64>()], 1..10);
        prop_oneof![
            frame().prop_map(Change::Insert),
            frame().prop_map(Change::Remove),
            (frame(), 1_u64..300).prop_map(|(base, pages)| Change::InsertRange(base, base + pages)),
            (frame(), 1_u64..300).prop_map(|(base, pages)| Change::RemoveRange(base, base + pages)),
            (any::<bool>(), bits).prop_map(|(high, bits)| Change::Bits(high, bits)),
            prop::collection::vec(frame(), 0..5).prop_map(Change::Merge),
            Just(Change::Clear),
        ]
    }

    /// The same change, to a plain set of the frames that are RAM.
    fn change_plainly(set: &mut BTreeSet<u64>, change: &Change) {
        let is_ram = |frame: &u64| holed().ranges().any(|ram| ram.contains(Frame(*frame)));
        match change {
            Change::Insert(frame) => set.extend(Some(*frame).filter(is_ram)),
            Change::Remove(frame) => set.retain(|other| other != frame),
            Change::InsertRange(base, limit) => set.extend((*base..*limit).filter(is_ram)),
            Change::RemoveRange(base, limit) => set.retain(|f| !(*base..*limit).contains(f)),
            Change::Bits(high, words) => {
                let ram = holed().ranges().nth(usize::from(*high)).unwrap();
                for bit in 0..words.len() as u64 * 64 {
                    let frame = ram.base().0 + bit;
                    let is_set = words[usize::try_from(bit / 64).unwrap()] >> (bit % 64) & 1 == 1;
                    set.extend(Some(frame).filter(|&f| is_set && ram.contains(Frame(f))));
                }
            }
            Change::Merge(frames) => set.extend(frames.iter().copied().filter(is_ram)),
            Change::Clear => set.clear(),
        }
    }

    fn change_cleverly(set: &mut FrameSet, change: &Change) {
        match change {
            Change::Insert(frame) => set.insert(Frame(*frame)),
            Change::Remove(frame) => set.remove(Frame(*frame)),
            Change::InsertRange(base, limit) => set.insert_range(range(*base, *limit)),
            Change::RemoveRange(base, limit) => set.remove_range(range(*base, *limit)),
            Change::Bits(high, words) => {
                let ram = holed().ranges().nth(usize::from(*high)).unwrap();
                set.insert_bits(ram, words);
            }
            Change::Merge(frames) => {
                let mut other = FrameSet::new(holed());
                frames.iter().for_each(|frame| other.insert(Frame(*frame)));
                set.merge(&other);
            }
            Change::Clear => set.clear(),
        }
    }

    proptest! {
        /// The set agrees with a plain set of numbers, after any changes, in all that it answers.
        #[test]
        fn agrees_with_a_plain_set(changes in prop::collection::vec(change(), 1..40)) {
            let (mut set, mut plain) = (FrameSet::new(holed()), BTreeSet::new());
            for change in &changes {
                change_cleverly(&mut set, change);
                change_plainly(&mut plain, change);
            }
            let frames: Vec<_> = set.frames().map(|frame| frame.0).collect();
            prop_assert_eq!(&frames, &plain.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.count(), plain.len() as u64);
            prop_assert_eq!(set.is_empty(), plain.is_empty());
            for probe in (0..200).chain(0xb_ff80..0xc_0040).chain(0xf_ffc0..0x10_0240) {
                prop_assert_eq!(set.contains(Frame(probe)), plain.contains(&probe));
            }
            let runs: Vec<_> = set.runs().collect();
            for pair in runs.windows(2) {
                let apart = pair[0].limit() < pair[1].base();
                let hole = pair[0].limit() <= Frame(0xc_0000) && pair[1].base() >= Frame(0x10_0000);
                prop_assert!(apart || hole, "{} and {}", pair[0], pair[1]);
            }
        }

        /// A log of any run of RAM, wherever it starts, lands on the frames that it names.
        #[test]
        fn a_log_may_start_anywhere(base in 0_u64..300, pages in 1_u64..200, word in any::<u64>()) {
            let run = range(base, base + pages);
            let mut set = FrameSet::new(holed());
            set.insert_bits(run, &[word; 4]);
            let expected: Vec<_> =
                run.frames().filter(|frame| word >> ((frame.0 - base) % 64) & 1 == 1).collect();
            prop_assert_eq!(set.frames().collect::<Vec<_>>(), expected);
        }
    }

    /// All of RAM is in the full set, and nothing else.
    #[test]
    fn the_full_set_is_all_of_ram() {
        let full = FrameSet::full(holed());
        assert_eq!(full.count(), holed().pages());
        assert_eq!(full.runs().collect::<Vec<_>>(), holed().ranges().collect::<Vec<_>>());
        assert_eq!(full.memory_bytes() as u64, holed().bytes() / 32768);
    }
}
