//! Memory for the bytes of requests in flight: one mapping, handed out in runs of pages.
//!
//! A [`ArenaSlot`] is the only way to its bytes, and there is one for each run: who has it may read and
//! write them, and an engine that has been given one is alone with it. What an engine forgets is
//! never handed out again, so the kernel may still write to it.

#![expect(unsafe_code, reason = "the one file that makes slices of the arena")]

use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::MmapRegion;
use vm_memory::mmap::MmapRegionError;

/// What is handed out is a multiple of this; storage that is opened with `O_DIRECT` wants it so.
pub(super) const PAGE: usize = 4096;

/// Pages by the bits of a word.
const WORD: usize = 64;

/// The mapping. Its pages are the host's only once they are written.
#[derive(Debug)]
pub(super) struct Arena {
    mapping: MmapRegion,
    /// A bit for each page that is handed out.
    taken: Mutex<Vec<u64>>,
}

/// A run of bytes of an arena.
#[derive(Debug)]
pub(super) struct ArenaSlot {
    arena: Arc<Arena>,
    page: usize,
    pages: usize,
    /// Bytes at the front that are done with.
    skipped: usize,
    bytes: usize,
}

impl Arena {
    /// An arena of `pages` pages, a multiple of 64.
    pub(super) fn new(pages: usize) -> Result<Arc<Self>, MmapRegionError> {
        let mapping = MmapRegion::new(pages * PAGE)?;
        Ok(Arc::new(Self { mapping, taken: Mutex::new(vec![0; pages / WORD]) }))
    }

    /// Where it starts, to be told to the kernel.
    pub(super) fn base(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// A run of `bytes`, at least one; `None` while too much is in use.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Option<ArenaSlot> {
        let pages = bytes.div_ceil(PAGE).max(1);
        let mut taken = self.lock();
        let page = free_run(&taken, pages)?;
        mark(&mut taken, page, pages, true);
        drop(taken);
        Some(ArenaSlot { arena: Arc::clone(self), page, pages, skipped: 0, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ArenaSlot {
    /// Where its bytes are in the arena.
    pub(super) fn place(&self) -> usize {
        self.page * PAGE + self.skipped
    }

    /// How many bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// The address of its first byte.
    pub(super) fn address(&self) -> *mut u8 {
        self.arena.base().wrapping_add(self.place())
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: they are within the mapping, which the slot keeps, and no other slot has them. The
        // kernel writes them only while an engine has the slot, and no engine calls this then.
        unsafe { slice::from_raw_parts(self.address(), self.bytes) }
    }

    /// The bytes, to be written.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the slot is borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.address(), self.bytes) }
    }

    /// Leaves out the first `bytes`, which are done with.
    pub(super) fn skip(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.skipped += bytes;
        self.bytes -= bytes;
    }
}

impl Drop for ArenaSlot {
    fn drop(&mut self) {
        mark(&mut self.arena.lock(), self.page, self.pages, false);
    }
}

/// The first run of `pages` pages that are free.
fn free_run(taken: &[u64], pages: usize) -> Option<usize> {
    let mut start = 0;
    loop {
        start = next(taken, start, false)?;
        let end = next(taken, start, true).unwrap_or(taken.len() * WORD);
        if end - start >= pages {
            return Some(start);
        }
        start = end;
    }
}

/// The first page from `from` on that is taken, or free.
fn next(taken: &[u64], from: usize, is_taken: bool) -> Option<usize> {
    for (index, word) in taken.iter().enumerate().skip(from / WORD) {
        let wanted = if is_taken { *word } else { !word };
        let within = if index == from / WORD { u64::MAX << (from % WORD) } else { u64::MAX };
        if wanted & within != 0 {
            return Some(index * WORD + (wanted & within).trailing_zeros() as usize);
        }
    }
    None
}

fn mark(taken: &mut [u64], page: usize, pages: usize, is_taken: bool) {
    for page in page..page + pages {
        if let Some(word) = taken.get_mut(page / WORD) {
            let bit = 1 << (page % WORD);
            *word = if is_taken { *word | bit } else { *word & !bit };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two runs never have a byte in common, and what is given back is handed out again.
    #[test]
    fn runs_do_not_overlap() {
        let arena = Arena::new(64).unwrap();
        let mut slots: Vec<_> = (0..16).map(|_| arena.take(4 * PAGE).unwrap()).collect();
        assert!(arena.take(1).is_none());
        for (mark, slot) in (0..).zip(&mut slots) {
            slot.bytes_mut().fill(mark);
        }
        for (mark, slot) in (0..).zip(&slots) {
            assert!(slot.bytes().iter().all(|byte| *byte == mark));
        }
        slots.remove(3);
        slots.remove(3);
        assert_eq!(arena.take(8 * PAGE).unwrap().place(), 12 * PAGE);
        assert!(arena.take(8 * PAGE + 1).is_none());
    }

    /// What is skipped is gone from the front.
    #[test]
    fn a_slot_can_be_cut_from_the_front() {
        let arena = Arena::new(64).unwrap();
        let mut slot = arena.take(600).unwrap();
        slot.bytes_mut()[512..].fill(7);
        slot.skip(512);
        assert_eq!((slot.place(), slot.bytes()), (512, &[7; 88][..]));
        slot.skip(100);
        assert_eq!(slot.len(), 0);
    }

    proptest! {
        /// The search agrees with one flag for each page.
        #[test]
        fn finds_the_first_free_run(taken in any::<[u64; 3]>(), pages in 1_usize..80) {
            let flags: Vec<_> = (0..192).map(|at| taken[at / 64] >> (at % 64) & 1 == 1).collect();
            let first = flags.windows(pages).position(|run| run.iter().all(|taken| !taken));
            prop_assert_eq!(free_run(&taken, pages), first);
        }
    }
}
