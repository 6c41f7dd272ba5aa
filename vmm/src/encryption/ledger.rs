//! The record that is kept: a region list, until the guest makes it outgrow its bound.

use std::fmt::{Display, Formatter, Result as FmtResult};

use thiserror::Error;

use super::tracker::each_flip;
use super::{SharedBitmap, SharedRegions, Status, Tracker, shared_in};
use crate::page::{PageRange, RamLayout};

/// What the region list does when the guest makes more regions than it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// It turns itself into a bitmap, once, and loses nothing. Memory grows by RAM / 32,768.
    #[default]
    Promote,
    /// It marks itself incomplete until the next reset: the guest runs on but cannot be migrated.
    Poison,
}

/// How the record is kept at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As a list of regions.
    List,
    /// As a bitmap, because the list reached its bound.
    Bitmap,
    /// Not at all, because the list reached its bound.
    Poisoned,
}

impl Display for Form {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Self::List => "region list",
            Self::Bitmap => "bitmap",
            Self::Poisoned => "poisoned region list",
        })
    }
}

/// The record of shared pages is not whole, so no page's status can be told from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the record of shared pages is incomplete: the guest made more than {bound} shared regions \
     and overflow=poison is configured (use overflow=promote, or reset the guest)"
)]
pub struct Incomplete {
    /// The most regions that the list may hold.
    pub bound: usize,
}

/// Which pages are shared, in at most a known amount of memory.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    layout: RamLayout,
    overflow: Overflow,
    bound: usize,
    record: Record,
    shared_pages: u64,
}

#[derive(Debug, Clone)]
enum Record {
    List(SharedRegions),
    Bitmap(SharedBitmap),
    /// Emptied rather than frozen: a stale answer is worse than none.
    Poisoned,
}

impl Ledger {
    pub(super) fn new(layout: RamLayout, overflow: Overflow, bound: usize) -> Self {
        let record = Record::List(SharedRegions::new(bound));
        Self { layout, overflow, bound, record, shared_pages: 0 }
    }

    /// A record that lost its entries before it came here.
    pub(super) fn poisoned(layout: RamLayout, overflow: Overflow, bound: usize) -> Self {
        Self { record: Record::Poisoned, ..Self::new(layout, overflow, bound) }
    }

    /// Records that `range`, which is in RAM, has `status`; returns how many pages had the other.
    ///
    /// `flipped` gets each run of those pages. A poisoned record cannot tell, so it names all.
    pub(super) fn set(
        &mut self,
        range: PageRange,
        status: Status,
        flipped: &mut dyn FnMut(PageRange),
    ) -> u64 {
        let Ok(tracker) = self.tracker() else {
            flipped(range);
            return range.pages();
        };
        let pages = each_flip(tracker, range, status, flipped);
        if pages == 0 {
            return 0;
        }
        match status {
            Status::Shared => self.shared_pages += pages,
            Status::Private => self.shared_pages -= pages,
        }
        let full = match &mut self.record {
            Record::List(list) => list.set(range, status).is_err(),
            Record::Bitmap(bitmap) => {
                bitmap.mark(range, status);
                false
            }
            Record::Poisoned => false,
        };
        if full {
            self.overflow();
            if let Record::Bitmap(bitmap) = &mut self.record {
                bitmap.mark(range, status);
            }
        }
        pages
    }

    /// Replaces the list, which is full, by what is configured.
    fn overflow(&mut self) {
        self.record = match (self.overflow, &self.record) {
            (Overflow::Promote, Record::List(list)) => {
                let mut bitmap = SharedBitmap::new(self.layout);
                for region in list.regions() {
                    bitmap.mark(*region, Status::Shared);
                }
                Record::Bitmap(bitmap)
            }
            (Overflow::Promote | Overflow::Poison, _) => Record::Poisoned,
        };
    }

    /// The first run of shared frames in `within`.
    pub(super) fn first_shared(&self, within: PageRange) -> Result<Option<PageRange>, Incomplete> {
        Ok(self.tracker()?.first_shared(within))
    }

    /// Every run of shared frames, ascending.
    pub(super) fn regions(&self) -> Result<impl Iterator<Item = PageRange>, Incomplete> {
        let tracker = self.tracker()?;
        Ok(self.layout.ranges().flat_map(move |run| shared_in(tracker, run)))
    }

    /// How many pages are shared.
    pub(super) fn shared_pages(&self) -> Result<u64, Incomplete> {
        self.tracker().map(|_| self.shared_pages)
    }

    /// Makes every page private and the record whole again, as a list.
    pub(super) fn clear(&mut self) {
        self.shared_pages = 0;
        if let Record::List(list) = &mut self.record {
            list.clear();
        } else {
            self.record = Record::List(SharedRegions::new(self.bound));
        }
    }

    pub(super) fn layout(&self) -> &RamLayout {
        &self.layout
    }

    pub(super) fn form(&self) -> Form {
        match self.record {
            Record::List(_) => Form::List,
            Record::Bitmap(_) => Form::Bitmap,
            Record::Poisoned => Form::Poisoned,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.tracker().map_or(0, Tracker::memory_bytes)
    }

    /// The record, if it is whole.
    fn tracker(&self) -> Result<&dyn Tracker, Incomplete> {
        match &self.record {
            Record::List(list) => Ok(list),
            Record::Bitmap(bitmap) => Ok(bitmap),
            Record::Poisoned => Err(Incomplete { bound: self.bound }),
        }
    }
}
