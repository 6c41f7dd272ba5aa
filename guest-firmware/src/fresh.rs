//! Words that are always fresh: pages that a processor writes again and again, small enough for its caches.
//!
//! A page that is sent by the secure processor must be sent as it was last written, also where that is
//! in a cache and not in memory yet. Every word counts the passes over the pages, and is compared before it
//! is counted up: one that came from memory of an earlier moment is behind, and is named.

use crate::pattern::{Mismatch, compare, mix};
use crate::physical::write64;
use crate::ram::{PAGE_SIZE, Pages};
use crate::serial;

/// Passes that go on until a byte arrives on the serial port.
pub(crate) const UNTIL_INPUT: u64 = u64::MAX;

/// Counts up every word of `pages` so many times; returns how often it did.
pub(crate) fn run(pages: Pages, passes: u64) -> Result<u64, Mismatch> {
    let start = pages.gpa();
    let words = || (start..start + pages.count * PAGE_SIZE).step_by(8);
    words().for_each(|at| write64(at, word(at, 0)));
    let mut pass = 0;
    while if passes == UNTIL_INPUT { !serial::has_input() } else { pass < passes } {
        for at in words() {
            compare((at, word(at, pass)))?;
            write64(at, word(at, pass + 1));
        }
        pass += 1;
    }
    words().try_for_each(|at| compare((at, word(at, pass))))?;
    Ok(pass)
}

/// What is at an address after so many passes.
fn word(at: u64, pass: u64) -> u64 {
    mix(at).wrapping_add(pass)
}

#[cfg(test)]
mod tests {
    use super::word;

    #[test]
    fn a_word_tells_its_place_and_its_pass() {
        assert_ne!(word(0x1000, 1), word(0x1000, 2));
        assert_ne!(word(0x1000, 1), word(0x1008, 1));
    }
}
