//! Whole pages of guest RAM through the host's view, as the migration engine moves them.
//!
//! The guest may write at the same time, so everything here copies as volatile; what was read
//! may be torn, and then its frame is dirty.

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::error::RamError;
use super::ram::GuestRam;
use crate::encryption::TableMemory;
use crate::page::{Gpa, PAGE_LEN, PageRange};

/// Bytes tested at a time: few enough to stop early, many enough for the widest registers.
const ZERO_STEP: usize = 256;

impl GuestRam {
    /// The host's view of `range`, to read from or write to without another copy.
    ///
    /// # Errors
    /// [`RamError::NotRam`] if the range is not inside one run of RAM.
    pub fn slice(&self, range: PageRange) -> Result<VolatileSlice<'_>, RamError> {
        let not_ram = RamError::NotRam { range };
        let Ok(bytes) = usize::try_from(range.bytes()) else { return Err(not_ram) };
        self.host().get_slice(GuestAddress(range.start().0), bytes).map_err(|_outside| not_ram)
    }

    /// Copies `range` into `bytes`, which is as long.
    ///
    /// # Errors
    /// [`RamError::NotRam`] if the range is not inside one run of RAM, or not as long as `bytes`.
    pub fn read_pages(&self, range: PageRange, bytes: &mut [u8]) -> Result<(), RamError> {
        let pages = self.slice(range)?;
        if pages.len() != bytes.len() {
            return Err(RamError::NotRam { range });
        }
        pages.copy_to(bytes);
        Ok(())
    }

    /// Whether `range` is all zeros now, looking no further than it must.
    ///
    /// # Errors
    /// [`RamError::NotRam`] if the range is not inside one run of RAM.
    pub fn is_zero(&self, range: PageRange) -> Result<bool, RamError> {
        let pages = self.slice(range)?;
        let mut step = [0; ZERO_STEP];
        for offset in (0..pages.len()).step_by(ZERO_STEP) {
            let here = pages.subslice(offset, ZERO_STEP);
            here.map_err(|_not_whole_pages| RamError::NotRam { range })?.copy_to(&mut step);
            if !is_zero(&step) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Copies `bytes`, which is as long as `range`, into it.
    ///
    /// # Errors
    /// As [`GuestRam::read_pages`]; nothing was written then.
    pub fn write_pages(&self, range: PageRange, bytes: &[u8]) -> Result<(), RamError> {
        let pages = self.slice(range)?;
        if pages.len() != bytes.len() {
            return Err(RamError::NotRam { range });
        }
        pages.copy_from(bytes);
        Ok(())
    }

    /// Makes `range` zeros. Pages that are zero already are not written.
    ///
    /// # Errors
    /// [`RamError::NotRam`] if the range is not inside one run of RAM.
    pub fn zero_pages(&self, range: PageRange) -> Result<(), RamError> {
        let pages = self.slice(range)?;
        let mut page = [0; PAGE_LEN];
        for offset in (0..pages.len()).step_by(PAGE_LEN) {
            let here = pages
                .subslice(offset, PAGE_LEN)
                .map_err(|_not_whole_pages| RamError::NotRam { range })?;
            here.copy_to(&mut page);
            if !is_zero(&page) {
                page.fill(0);
                here.copy_from(&page);
            }
        }
        Ok(())
    }
}

impl TableMemory for GuestRam {
    fn read_words(&self, at: Gpa, words: &mut [u64]) -> bool {
        let bytes = size_of_val(words);
        let Ok(slice) = self.host().get_slice(GuestAddress(at.0), bytes) else { return false };
        slice.copy_to(words);
        words.iter_mut().for_each(|word| *word = u64::from_le(*word));
        true
    }
}

/// Whether all of `bytes` are 0.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let zeros = |step: &[u8]| step.iter().fold(0, |all, byte| all | byte) == 0;
    let mut steps = bytes.chunks_exact(ZERO_STEP);
    steps.all(zeros) && zeros(steps.remainder())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{Frame, RamLayout};

    fn pages(base: u64, count: u64) -> PageRange {
        PageRange::new(Frame(base), Frame(base + count)).unwrap()
    }

    /// One byte anywhere, in a length that is no multiple of anything, makes the difference.
    #[test]
    fn one_byte_is_not_zero() {
        for len in [0, 1, 255, 256, 257, PAGE_LEN] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 0x10;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    /// What is written is read back and nothing beside it changes.
    #[test]
    fn pages_are_written_and_read_whole() {
        let ram = GuestRam::single(RamLayout::new(16 << 20).unwrap()).unwrap();
        ram.write_pages(pages(7, 2), &[5; 2 * PAGE_LEN]).unwrap();
        let mut seen = vec![1; 4 * PAGE_LEN];
        ram.read_pages(pages(6, 4), &mut seen).unwrap();
        let expected: Vec<u8> = [0_u8, 5, 5, 0].iter().flat_map(|&b| [b; PAGE_LEN]).collect();
        assert_eq!(seen, expected);
        assert!(!ram.is_zero(pages(6, 2)).unwrap() && ram.is_zero(pages(9, 1)).unwrap());
        ram.zero_pages(pages(0, 8)).unwrap();
        ram.read_pages(pages(6, 4), &mut seen).unwrap();
        assert!(is_zero(&seen[..2 * PAGE_LEN]));
        assert_eq!(seen[2 * PAGE_LEN..3 * PAGE_LEN], [5; PAGE_LEN]);
    }

    /// Pages outside RAM, across the device hole, or of another length than their bytes are
    /// refused, not clipped.
    #[test]
    fn what_is_not_ram_is_refused() {
        let ram = GuestRam::single(RamLayout::new(4 << 30).unwrap()).unwrap();
        let page = [1; PAGE_LEN];
        let refused = |range| {
            let wrote = ram.write_pages(range, &page).is_err();
            wrote && ram.read_pages(range, &mut [0; PAGE_LEN]).is_err()
        };
        assert!(refused(pages(0xc_0000, 1)));
        assert!(refused(pages(0x14_0000, 1)));
        assert!(refused(pages(u64::MAX - 1, 1)));
        assert!(refused(pages(0, 2)));
        assert!(ram.zero_pages(pages(0xb_ffff, 2)).is_err());
        ram.write_pages(pages(0xb_ffff, 1), &page).unwrap();
        ram.write_pages(pages(0x10_0000, 1), &page).unwrap();
    }
}
