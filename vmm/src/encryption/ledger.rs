//! The record of shared pages, in the form that its design has at the moment.

use std::fmt::{Display, Formatter, Result as FmtResult};

use thiserror::Error;

use super::donated::{Contradiction, DonatedTable};
use super::tracker::each_flip;
use super::{Design, Full, Overflow, SharedBitmap, SharedRegions, Status, Tracker, shared_in};
use crate::page::{Frame, FrameSet, PageRange, RamLayout};

/// How the record is kept at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As a list of regions.
    List,
    /// As a bitmap: by design, or because the list reached its bound.
    Bitmap,
    /// By the guest, in a table of its own.
    Donated,
    /// Not at all, because the list reached its bound.
    Poisoned,
    /// Not at all: the guest has donated no table, or one that it contradicts.
    NoTable,
}

impl Display for Form {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Self::List => "region list",
            Self::Bitmap => "bitmap",
            Self::Donated => "donated table",
            Self::Poisoned => "poisoned region list",
            Self::NoTable => "no donated table",
        })
    }
}

/// The record of shared pages is incomplete, so it does not tell any page's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Incomplete {
    /// The guest shared more regions than the list may hold.
    #[error(
        "the record of shared pages is incomplete: the guest made more than {bound} shared regions \
         and overflow=poison is configured (use overflow=promote, or reset the guest)"
    )]
    Overflow {
        /// The most regions that the list may hold.
        bound: usize,
    },
    /// The guest should keep the record, and does not.
    #[error(
        "the guest has donated no table of its shared pages, which status=donated needs (use \
         status=list for a guest that only makes hypercalls)"
    )]
    NoTable,
    /// The guest contradicts itself.
    #[error("the guest's record of shared pages cannot be relied upon: {0}")]
    Contradicted(Contradiction),
}

/// Which pages are shared, in at most a known amount of memory.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    layout: RamLayout,
    design: Design,
    bound: usize,
    record: Representation,
    /// How many pages are shared, if the host keeps the record.
    shared_pages: u64,
    /// Where the guest's table was when this was sampled from it.
    sampled_from: Option<Frame>,
}

#[derive(Debug, Clone)]
enum Representation {
    List(SharedRegions),
    Bitmap(SharedBitmap),
    Donated(DonatedTable),
    /// Emptied rather than frozen: a stale answer is worse than none.
    Lost(Incomplete),
}

impl Ledger {
    pub(super) fn new(layout: RamLayout, design: Design, bound: usize) -> Self {
        let record = Representation::new(layout, design, bound);
        Self { layout, design, bound, record, shared_pages: 0, sampled_from: None }
    }

    /// A record that lost its entries before it came here.
    pub(super) fn poisoned(layout: RamLayout, design: Design, bound: usize) -> Self {
        let why = match design {
            Design::List(_) | Design::Bitmap => Incomplete::Overflow { bound },
            Design::Donated => Incomplete::NoTable,
        };
        Self { record: Representation::Lost(why), ..Self::new(layout, design, bound) }
    }

    /// An empty record, for the sample that another host has taken of the guest's table at `base`.
    pub(super) fn sampled(layout: RamLayout, design: Design, base: Frame) -> Self {
        let bitmap = Representation::Bitmap(SharedBitmap::new(layout));
        Self { record: bitmap, sampled_from: Some(base), ..Self::new(layout, design, 0) }
    }

    /// Records that `range`, which is in RAM, has `status`; returns how many pages had the other.
    ///
    /// `flipped` gets each run of those pages. If the guest keeps the record, or the record is lost, the status
    /// before is not known, and `flipped` gets all of `range`.
    pub(super) fn set(
        &mut self,
        range: PageRange,
        status: Status,
        flipped: &mut dyn FnMut(PageRange),
    ) -> u64 {
        match &mut self.record {
            Representation::List(list) => {
                let (pages, kept) = change(list, range, status, flipped);
                self.count(pages, status);
                if kept.is_err() {
                    self.overflow(range, status);
                }
                pages
            }
            Representation::Bitmap(bitmap) => {
                // A bitmap is never full.
                let (pages, _kept) = change(bitmap, range, status, flipped);
                self.count(pages, status);
                pages
            }
            Representation::Donated(table) => {
                if let Some(wrong) = table.contradiction(range, status) {
                    self.record = Representation::Lost(Incomplete::Contradicted(wrong));
                }
                flipped(range);
                range.pages()
            }
            Representation::Lost(_) => {
                flipped(range);
                range.pages()
            }
        }
    }

    fn count(&mut self, flipped: u64, status: Status) {
        match status {
            Status::Shared => self.shared_pages += flipped,
            Status::Private => self.shared_pages -= flipped,
        }
    }

    /// Replaces the list, which is too full for `range`, by what the design says.
    fn overflow(&mut self, range: PageRange, status: Status) {
        self.record = match (self.design, &self.record) {
            (Design::List(Overflow::Promote), Representation::List(list)) => {
                let mut bitmap = SharedBitmap::new(self.layout);
                list.regions().for_each(|region| bitmap.mark(region, Status::Shared));
                bitmap.mark(range, status);
                Representation::Bitmap(bitmap)
            }
            _ => Representation::Lost(Incomplete::Overflow { bound: self.bound }),
        };
    }

    /// The guest names its table, or takes it back.
    pub(super) fn name_table(&mut self, table: Option<DonatedTable>) {
        self.record =
            table.map_or(Representation::Lost(Incomplete::NoTable), Representation::Donated);
        self.sampled_from = None;
    }

    /// Goes on with the guest's table. Its memory came here together with this sample.
    pub(super) fn adopt(&mut self, table: DonatedTable) {
        let same = match &self.record {
            Representation::Bitmap(bitmap) => *bitmap.frames() == table.sample(),
            Representation::List(_) | Representation::Donated(_) | Representation::Lost(_) => false,
        };
        self.name_table(Some(table));
        if !same {
            self.record = Representation::Lost(Incomplete::Contradicted(Contradiction::Moved));
        }
    }

    /// The guest's table is not where it should be.
    pub(super) fn contradict(&mut self, wrong: Contradiction) {
        self.record = Representation::Lost(Incomplete::Contradicted(wrong));
        self.sampled_from = None;
    }

    /// The record as of now, which the guest no longer changes.
    pub(super) fn sample(&self) -> Self {
        let Representation::Donated(table) = &self.record else { return self.clone() };
        let frames = table.sample();
        let shared_pages = frames.count();
        let record = Representation::Bitmap(SharedBitmap::from(frames));
        Self { record, shared_pages, sampled_from: Some(table.base()), ..self.clone() }
    }

    /// The sampled frames, and where the guest's table was; `None` for a record of the host's own.
    pub(super) fn sampled_frames(&self) -> Option<(&FrameSet, Frame)> {
        match &self.record {
            Representation::Bitmap(bitmap) => self.sampled_from.map(|base| (bitmap.frames(), base)),
            Representation::List(_) | Representation::Donated(_) | Representation::Lost(_) => None,
        }
    }

    pub(super) fn table(&self) -> Option<&DonatedTable> {
        match &self.record {
            Representation::Donated(table) => Some(table),
            Representation::List(_) | Representation::Bitmap(_) | Representation::Lost(_) => None,
        }
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

    /// How many pages are shared. A guest's table is counted through each time.
    pub(super) fn shared_pages(&self) -> Result<u64, Incomplete> {
        match &self.record {
            Representation::List(_) | Representation::Bitmap(_) => Ok(self.shared_pages),
            Representation::Donated(table) => Ok(table.shared_pages()),
            Representation::Lost(why) => Err(*why),
        }
    }

    /// Makes every page private, and the record complete again, as its design begins.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.layout, self.design, self.bound);
    }

    pub(super) fn layout(&self) -> &RamLayout {
        &self.layout
    }

    pub(super) fn design(&self) -> Design {
        self.design
    }

    pub(super) fn form(&self) -> Form {
        match self.record {
            Representation::List(_) => Form::List,
            Representation::Bitmap(_) => Form::Bitmap,
            Representation::Donated(_) => Form::Donated,
            Representation::Lost(Incomplete::Overflow { .. }) => Form::Poisoned,
            Representation::Lost(Incomplete::NoTable | Incomplete::Contradicted(_)) => {
                Form::NoTable
            }
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.tracker().map_or(0, Tracker::memory_bytes)
    }

    /// Whether the record is whole.
    pub(super) fn whole(&self) -> Result<(), Incomplete> {
        self.tracker().map(|_tracker| ())
    }

    /// The record, if it is whole.
    fn tracker(&self) -> Result<&dyn Tracker, Incomplete> {
        match &self.record {
            Representation::List(list) => Ok(list),
            Representation::Bitmap(bitmap) => Ok(bitmap),
            Representation::Donated(table) => Ok(table),
            Representation::Lost(why) => Err(*why),
        }
    }
}

impl Representation {
    fn new(layout: RamLayout, design: Design, bound: usize) -> Self {
        match design {
            Design::List(_) => Self::List(SharedRegions::new(bound)),
            Design::Bitmap => Self::Bitmap(SharedBitmap::new(layout)),
            Design::Donated => Self::Lost(Incomplete::NoTable),
        }
    }
}

/// Gives `flipped` the pages that do not have `status` yet, then records it. Returns how many pages flipped, and
/// whether the tracker could hold it.
fn change<T: Tracker>(
    tracker: &mut T,
    range: PageRange,
    status: Status,
    flipped: &mut dyn FnMut(PageRange),
) -> (u64, Result<(), Full>) {
    let pages = each_flip(tracker, range, status, flipped);
    let kept = if pages == 0 { Ok(()) } else { tracker.set(range, status) };
    (pages, kept)
}
