//! Bits in words, numbered from the lowest of the first: what sets of frames are made of.

/// Bits in a word.
pub(crate) const WORD_BITS: usize = u64::BITS as usize;

/// Gives bits `from..to` this value; those that `words` does not have are passed over.
pub(crate) fn fill(words: &mut [u64], from: usize, to: usize, value: bool) {
    let mut bit = from;
    while bit < to {
        let offset = bit % WORD_BITS;
        let count = (WORD_BITS - offset).min(to - bit);
        let mask = (u64::MAX >> (WORD_BITS - count)) << offset;
        if let Some(word) = words.get_mut(bit / WORD_BITS) {
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
pub(crate) fn find(words: &[u64], from: usize, to: usize, value: bool) -> Option<usize> {
    let mut bit = from;
    while bit < to {
        let word = *words.get(bit / WORD_BITS)?;
        let hits = if value { word } else { !word } >> (bit % WORD_BITS);
        if hits != 0 {
            let found = bit + hits.trailing_zeros() as usize;
            return (found < to).then_some(found);
        }
        bit = (bit / WORD_BITS + 1) * WORD_BITS;
    }
    None
}
