//! Pinning the RAM of an SEV guest, a piece at a time, so that its progress can be shown.
//!
//! `KVM_MEMORY_ENCRYPT_REG_REGION` has the kernel find every page, zero it, and, on processors whose caches are
//! not coherent between the views of a page, flush it: minutes for a large guest, on one CPU, and silent. So on
//! hardware the pages are first given by several threads, and then registered piece by piece.

use std::num::NonZeroUsize;
use std::thread::{self, available_parallelism};

use super::error::EncryptedError;
pub use super::pinned::{PinCallback, Pinned};
use crate::encryption::Status;
use crate::memory::GuestRam;
use crate::page::{Frame, PAGE_SIZE, PageRange, RamLayout};
use crate::sev::launch::Initialised;

/// Least bytes that are registered at once. Progress after each of them is often enough.
const PIECE_BYTES_MIN: u64 = 4 << 20;

/// Most pieces of one guest. The kernel keeps a list of them.
const PIECES_MAX: u64 = 1024;

/// Most threads that give pages; more than this the kernel's locks do not feed.
const THREADS_MAX: usize = 16;

/// Pages of a huge page, which one thread alone should ask for.
const HUGE_PAGES: u64 = 512;

/// Pins all of `ram`. With `populate` several threads give its pages first.
pub(super) fn pin(
    ram: &GuestRam,
    initialised: &Initialised,
    populate: bool,
    watch: &mut PinCallback<'_>,
) -> Result<(), EncryptedError> {
    let threads = available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX);
    let mut pinned = Pinned { pages: 0, of: ram.layout().pages() };
    for piece in pieces(ram.layout()) {
        if watch(pinned) {
            return Err(EncryptedError::Stopped(pinned));
        }
        if populate {
            populate_by(threads, ram, piece);
        }
        initialised.register_region(ram.user_address(piece)?, piece.bytes())?;
        pinned.pages += piece.pages();
    }
    if watch(pinned) { Err(EncryptedError::Stopped(pinned)) } else { Ok(()) }
}

/// Gives the pages of `piece`, each thread a share.
fn populate_by(threads: usize, ram: &GuestRam, piece: PageRange) {
    let share = piece.pages().div_ceil(threads.max(1) as u64).next_multiple_of(HUGE_PAGES);
    thread::scope(|scope| {
        for part in parts(piece, share) {
            scope.spawn(move || ram.populate(part, Status::Shared));
        }
    });
}

/// `range`, so many pages at a time.
fn parts(range: PageRange, pages: u64) -> impl Iterator<Item = PageRange> {
    let (base, limit) = (range.base().0, range.limit().0);
    let step = usize::try_from(pages).unwrap_or(usize::MAX);
    (base..limit).step_by(step).filter_map(move |start| {
        PageRange::new(Frame(start), Frame(start.saturating_add(pages).min(limit))).ok()
    })
}

/// All of RAM in pieces that do not cross its hole.
fn pieces(layout: RamLayout) -> impl Iterator<Item = PageRange> {
    let least = PIECE_BYTES_MIN / PAGE_SIZE;
    let pages = layout.pages().div_ceil(PIECES_MAX).next_multiple_of(least).max(least);
    layout.ranges().flat_map(move |run| parts(run, pages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::software::fixture::Fixture;
    use crate::sev::software::{Identity, Model};

    /// Whatever its size, a guest's pieces are all of its RAM, in order, none across the hole, and few.
    #[test]
    fn pieces_are_all_of_ram() {
        for bytes in [16 << 20, (20 << 20) + 4096, 4 << 30, (5 << 30) + 8192, 64 << 30, 8 << 40] {
            let layout = RamLayout::new(bytes).unwrap();
            let mut runs = layout.ranges();
            let mut run = runs.next().unwrap();
            let (mut at, mut count) = (run.base(), 0);
            for piece in pieces(layout) {
                if at == run.limit() {
                    run = runs.next().unwrap();
                    at = run.base();
                }
                assert_eq!(
                    (piece.base(), run.intersection(piece)),
                    (at, Some(piece)),
                    "{bytes:#x}"
                );
                at = piece.limit();
                count += 1;
            }
            assert_eq!((at, runs.next()), (run.limit(), None), "{bytes:#x}");
            assert!(count <= PIECES_MAX + 2, "{bytes:#x}: {count}");
        }
    }

    fn fixture() -> Fixture {
        Fixture::modelled_with_ram(Identity::ephemeral().unwrap(), Model::default(), 40 << 20)
    }

    /// The callback is told the progress, from nothing to all, and then all of RAM is registered.
    #[test]
    fn pinning_says_how_far_it_is() {
        let fixture = fixture();
        let mut told = Vec::new();
        let mut watch = |pinned: Pinned| {
            told.push(pinned.pages >> 8);
            assert_eq!(pinned.of, 40 << 8);
            false
        };
        pin(&fixture.memory, &fixture.initialised(), true, &mut watch).unwrap();
        assert_eq!(told, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40]);
    }

    /// The callback can end it.
    #[test]
    fn pinning_can_be_stopped() {
        let fixture = fixture();
        let mut words = 0;
        let mut watch = |_pinned| {
            words += 1;
            words == 2
        };
        let stopped = pin(&fixture.memory, &fixture.initialised(), false, &mut watch).unwrap_err();
        assert!(matches!(stopped, EncryptedError::Stopped(Pinned { pages: 0x400, of: 0x2800 })));
        assert_eq!(words, 2);
    }
}
