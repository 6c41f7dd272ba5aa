//! What a record of shared pages must do, so that different ones can be compared.

use thiserror::Error;

use super::Status;
use crate::page::{Frame, PageRange};

/// A record of which pages of RAM are shared; all others are private.
///
/// Ranges given to it lie in RAM. Every record answers exactly what it was told, or fails.
pub trait Tracker {
    /// Records that all of `range` has `status`.
    ///
    /// # Errors
    /// [`Full`] if the record cannot hold it; the record is then unchanged.
    fn set(&mut self, range: PageRange, status: Status) -> Result<(), Full>;

    /// The first run of shared frames in `within`, as long as it can be without leaving `within`.
    fn first_shared(&self, within: PageRange) -> Option<PageRange>;

    /// Makes every page private.
    fn clear(&mut self);

    /// Bytes of host memory that the record holds.
    fn memory_bytes(&self) -> usize;
}

/// The runs of shared frames in `within`, ascending, none touching the next.
pub fn shared_in<T: Tracker + ?Sized>(
    tracker: &T,
    within: PageRange,
) -> impl Iterator<Item = PageRange> {
    let mut rest = Some(within);
    std::iter::from_fn(move || {
        let run = tracker.first_shared(rest?)?;
        rest = PageRange::new(run.limit(), within.limit()).ok();
        Some(run)
    })
}

/// Calls `flipped` with each run of `range` that does not have `status` yet.
///
/// Returns how many pages those are.
pub(super) fn each_flip<T: Tracker + ?Sized>(
    tracker: &T,
    range: PageRange,
    status: Status,
    flipped: &mut dyn FnMut(PageRange),
) -> u64 {
    let mut pages = 0;
    let mut flip = |base: Frame, limit: Frame| {
        if let Ok(run) = PageRange::new(base, limit) {
            pages += run.pages();
            flipped(run);
        }
    };
    let mut gap_start = range.base();
    for run in shared_in(tracker, range) {
        match status {
            Status::Private => flip(run.base(), run.limit()),
            Status::Shared => flip(gap_start, run.base()),
        }
        gap_start = run.limit();
    }
    if status == Status::Shared {
        flip(gap_start, range.limit());
    }
    pages
}

/// A record was asked to hold more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the list of shared regions is full at {bound} regions")]
pub struct Full {
    /// The most regions that it may hold.
    pub bound: usize,
}
