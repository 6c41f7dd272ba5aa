//! What pages are filled with: every word depends on the seed, the frame and its place.

use core::fmt::{Display, Formatter, Result as FmtResult};

use crate::physical::{read64, write64};
use crate::ram::{PAGE_SIZE, Pages};

/// Words in a page.
const WORDS: u64 = PAGE_SIZE / 8;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A word that is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mismatch {
    address: u64,
    expected: u64,
    got: u64,
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Self { address, expected, got } = self;
        write!(f, "mismatch at={address:#x} expected={expected:#x} got={got:#x}")
    }
}

/// Fills pages, through the mapping they have.
pub(crate) fn fill(pages: Pages, seed: u64) {
    for frame in pages.frames() {
        for (at, word) in words(frame, seed) {
            write64(at, word);
        }
    }
}

/// Fills pages with zeros.
pub(crate) fn clear(pages: Pages) {
    let start = pages.gpa();
    (start..start + pages.count * PAGE_SIZE).step_by(8).for_each(|at| write64(at, 0));
}

/// Compares pages with what [`fill`] writes.
pub(crate) fn check(pages: Pages, seed: u64) -> Result<(), Mismatch> {
    pages.frames().try_for_each(|frame| words(frame, seed).try_for_each(compare))
}

/// Writes the first and the last word of a page only.
pub(crate) fn stamp(frame: u64, seed: u64) {
    ends(frame, seed).into_iter().for_each(|(at, word)| write64(at, word));
}

/// Compares a page with what [`stamp`] writes.
pub(crate) fn check_stamp(frame: u64, seed: u64) -> Result<(), Mismatch> {
    ends(frame, seed).into_iter().try_for_each(compare)
}

/// Compares a word with what is expected at its address.
pub(crate) fn compare((address, expected): (u64, u64)) -> Result<(), Mismatch> {
    let got = read64(address);
    if got == expected { Ok(()) } else { Err(Mismatch { address, expected, got }) }
}

/// Addresses and contents of a page's words.
fn words(frame: u64, seed: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = mix(mix(seed) ^ frame);
    (0..WORDS)
        .map(move |at| (frame * PAGE_SIZE + at * 8, first.wrapping_add(STEP.wrapping_mul(at))))
}

fn ends(frame: u64, seed: u64) -> [(u64, u64); 2] {
    let first = mix(mix(seed) ^ frame);
    let page = frame * PAGE_SIZE;
    [(page, first), (page + PAGE_SIZE - 8, !first)]
}

/// The finalizer of `SplitMix64`: neighbours become strangers.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(STEP);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::words;

    #[test]
    fn no_word_repeats_across_seeds_frames_and_places() {
        let mut seen = BTreeSet::new();
        for (frame, seed) in [(1, 1), (1, 2), (2, 1), (2, 2), (0x8000, 0)] {
            assert!(words(frame, seed).all(|(_, word)| seen.insert(word)));
        }
    }

    #[test]
    fn words_cover_the_page() {
        let at = words(3, 0).map(|(at, _)| at);
        assert!(at.eq((0x3000..0x4000).step_by(8)));
    }
}
