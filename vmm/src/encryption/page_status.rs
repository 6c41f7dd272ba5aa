//! The owner of page status: what the guest reported, whether it is ready, and counters.

use std::sync::Arc;

use thiserror::Error;

use super::donated::{self, Naming};
use super::doubts::ReportHistory;
use super::ledger::Ledger;
use super::readiness::Readiness;
use super::{
    BadControl, BadRequest, BadTable, Contradiction, Design, DonatedTable, Form, Incomplete,
    MapGpaRange, ReportDoubt, SharedRegions, Status, TableMemory,
};
use crate::page::{Frame, FrameSet, PageRange, RamLayout};

/// The status of every page of one guest.
///
/// Feed it hypercall exits in the order in which the guest made them.
///
/// # Examples
/// A guest of 16 MiB reports that it shares two pages, and the VMM asks which they are.
/// ```
/// use sevferry::encryption::{KVM_HC_MAP_GPA_RANGE, Overflow, PageStatus, Status};
/// use sevferry::page::{Frame, RamLayout};
///
/// let layout = RamLayout::new(16 << 20)?;
/// let mut pages = PageStatus::new(layout, Overflow::Promote);
///
/// // `KVM_EXIT_HYPERCALL`: address, number of pages, attributes. Without bit 4 they are shared.
/// let mut flipped = Vec::new();
/// let arguments = [0x8000, 2, 0, 0, 0, 0];
/// pages.hypercall(KVM_HC_MAP_GPA_RANGE, &arguments, &mut |run| flipped.push(run))?;
///
/// assert_eq!(pages.status(Frame(8))?, Status::Shared);
/// assert_eq!(pages.status(Frame(10))?, Status::Private);
/// // A migration in progress sends these pages again, whether they were written or not.
/// assert_eq!(flipped, pages.shared_regions()?.collect::<Vec<_>>());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct PageStatus {
    pub(super) ledger: Ledger,
    pub(super) readiness: Readiness,
    pub(super) epoch: u64,
    pub(super) history: ReportHistory,
    counters: Counters,
}

impl PageStatus {
    /// A guest that has reported nothing: all of its RAM is private and migration is not offered.
    #[must_use]
    pub fn new(layout: RamLayout, design: impl Into<Design>) -> Self {
        Self::with_bound(layout, design, SharedRegions::default_bound(&layout))
    }

    /// As [`PageStatus::new`], with another bound on the region list.
    #[must_use]
    pub fn with_bound(layout: RamLayout, design: impl Into<Design>, bound: usize) -> Self {
        Self::from_parts(Ledger::new(layout, design.into(), bound), Readiness::NotOffered, 0)
    }

    pub(super) fn from_parts(ledger: Ledger, readiness: Readiness, epoch: u64) -> Self {
        let (history, counters) = (ReportHistory::default(), Counters::default());
        Self { ledger, readiness, epoch, history, counters }
    }

    /// Parses a hypercall exit and applies it; see [`PageStatus::apply`].
    ///
    /// # Errors
    /// [`BadRequest`] if the request is invalid: return [`BadRequest::ret`] to the guest.
    pub fn hypercall(
        &mut self,
        nr: u64,
        args: &[u64; 6],
        flipped: &mut dyn FnMut(PageRange),
    ) -> Result<Change, BadRequest> {
        let request = MapGpaRange::parse(nr, args).inspect_err(|&why| {
            self.counters.rejected_calls += 1;
            self.history.refuse(why);
        })?;
        Ok(self.apply(request, flipped))
    }

    /// Records what the guest reports. Pages outside RAM are left out.
    ///
    /// `flipped` gets every run of pages that had the other status before, ascending: a
    /// copy of RAM must count those as written. A poisoned record cannot tell and names all.
    pub fn apply(&mut self, request: MapGpaRange, flipped: &mut dyn FnMut(PageRange)) -> Change {
        let MapGpaRange { range, status } = request;
        let mut change = Change { status, reported: [None; 2], flipped_pages: 0 };
        for (slot, run) in change.reported.iter_mut().zip(self.ledger.layout().clip(range)) {
            *slot = Some(run);
            change.flipped_pages += self.ledger.set(run, status, flipped);
        }
        self.counters.count(range, &change);
        self.history.heard = true;
        change
    }

    /// The status of one page; outside RAM, private.
    ///
    /// # Errors
    /// [`Incomplete`] if the record was poisoned.
    pub fn status(&self, frame: Frame) -> Result<Status, Incomplete> {
        let Ok(page) = PageRange::one(frame) else {
            return Ok(Status::Private);
        };
        let shared = self.ledger.first_shared(page)?;
        Ok(shared.map_or(Status::Private, |_| Status::Shared))
    }

    /// Whether a page in `range` is, or may be, shared: a poisoned record cannot rule it out.
    #[must_use]
    pub fn may_share(&self, range: PageRange) -> bool {
        self.ledger.first_shared(range).map_or(true, |shared| shared.is_some())
    }

    /// Every run of shared pages, ascending, none touching the next.
    ///
    /// # Errors
    /// [`Incomplete`] if the record was poisoned.
    pub fn shared_regions(&self) -> Result<impl Iterator<Item = PageRange>, Incomplete> {
        self.ledger.regions()
    }

    /// How many pages of RAM are shared.
    ///
    /// # Errors
    /// [`Incomplete`] if the record was poisoned.
    pub fn shared_pages(&self) -> Result<u64, Incomplete> {
        self.ledger.shared_pages()
    }

    /// How many pages of RAM are private.
    ///
    /// # Errors
    /// [`Incomplete`] if the record was poisoned.
    pub fn private_pages(&self) -> Result<u64, Incomplete> {
        Ok(self.ledger.layout().pages() - self.ledger.shared_pages()?)
    }

    /// Bytes of host memory that the record holds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.ledger.memory_bytes()
    }

    /// How the record is kept at the moment.
    #[must_use]
    pub fn form(&self) -> Form {
        self.ledger.form()
    }

    /// Which RAM this is the status of.
    #[must_use]
    pub fn layout(&self) -> &RamLayout {
        self.ledger.layout()
    }

    /// How many times the guest was reset. A record of an earlier epoch is useless.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the guest has done since it was started here, resets included.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Offers migration: call it when CPUID 0x40000001 EAX bit 17 is given to the guest.
    pub fn offer_migration(&mut self) {
        if self.readiness == Readiness::NotOffered {
            self.readiness = Readiness::NotReady;
        }
    }

    /// What the guest reads from `MSR_KVM_MIGRATION_CONTROL`.
    ///
    /// # Errors
    /// [`BadControl`] if the read must fault.
    pub fn read_migration_control(&self) -> Result<u64, BadControl> {
        self.readiness.read()
    }

    /// The guest's write to `MSR_KVM_MIGRATION_CONTROL`: 1 is ready, 0 withdraws.
    ///
    /// # Errors
    /// [`BadControl`] if the write must fault; nothing changes then.
    pub fn write_migration_control(&mut self, value: u64) -> Result<(), BadControl> {
        self.readiness = self.readiness.written(value)?;
        Ok(())
    }

    /// Which design keeps the record.
    #[must_use]
    pub fn design(&self) -> Design {
        self.ledger.design()
    }

    /// What the guest reads from [`MSR_PAGE_TABLE`](super::MSR_PAGE_TABLE).
    ///
    /// # Errors
    /// [`BadTable::NotAsked`]: the read must fault, as if there were no such register.
    pub fn read_table_register(&self) -> Result<u64, BadTable> {
        self.asks_for_table()?;
        Ok(donated::register(self.ledger.table()))
    }

    /// The guest's write to [`MSR_PAGE_TABLE`](super::MSR_PAGE_TABLE): it names a table in `memory`,
    /// or with 0 takes it back. A right table heals a record that was contradicted.
    ///
    /// # Errors
    /// [`BadTable`] if the write must fault; nothing changes then.
    pub fn write_table_register(
        &mut self,
        value: u64,
        memory: Arc<dyn TableMemory>,
    ) -> Result<(), BadTable> {
        self.asks_for_table()?;
        let table = match Naming::parse(value)? {
            Naming::None => None,
            Naming::Table(base) => Some(DonatedTable::read(*self.layout(), memory, base)?),
        };
        self.ledger.name_table(table);
        Ok(())
    }

    fn asks_for_table(&self) -> Result<(), BadTable> {
        if self.design() == Design::Donated { Ok(()) } else { Err(BadTable::NotAsked) }
    }

    /// The record as of now. A copy of a record that the guest keeps would change with it.
    #[must_use]
    pub fn sample(&self) -> Self {
        Self { ledger: self.ledger.sample(), ..self.clone() }
    }

    /// A sample of the guest's table; `None` if the host keeps the record.
    pub(super) fn sampled_if_donated(&self) -> Option<Self> {
        self.ledger.table().map(|_table| self.sample())
    }

    /// The shared frames of a [`PageStatus::sample`] of the guest's table; `None` if the host keeps the record, which
    /// then shows flips without it.
    #[must_use]
    pub fn sampled_table(&self) -> Option<&FrameSet> {
        self.ledger.sampled_frames().map(|(frames, _base)| frames)
    }

    /// The guest's memory has arrived here with this status. If the guest keeps the record, goes on with the table in
    /// `memory`. A table that does not agree with the status is a contradiction.
    pub fn adopt_table(&mut self, memory: Arc<dyn TableMemory>) {
        let Some((_, base)) = self.ledger.sampled_frames() else { return };
        match DonatedTable::read(*self.layout(), memory, base) {
            Ok(table) => self.ledger.adopt(table),
            Err(_not_there) => self.ledger.contradict(Contradiction::Moved),
        }
    }

    /// Whether page status allows a migration now. Ask again before each step: it can change.
    ///
    /// # Errors
    /// [`NotMigratable`] with the reason.
    pub fn migratable(&self) -> Result<(), NotMigratable> {
        self.obstacles().next().map_or(Ok(()), Err)
    }

    /// Every reason why the guest may not be migrated now.
    pub fn obstacles(&self) -> impl Iterator<Item = NotMigratable> {
        let incomplete = self.ledger.whole().err().map(NotMigratable::from);
        let unready = match self.readiness {
            Readiness::NotOffered => Some(NotMigratable::NotOffered),
            Readiness::NotReady => Some(NotMigratable::NotReady),
            Readiness::Withdrawn => Some(NotMigratable::Withdrawn),
            Readiness::Ready => None,
        };
        incomplete.into_iter().chain(unready)
    }

    /// What makes the guest's reports doubtful, though nothing proves that they are wrong.
    pub fn doubts(&self) -> impl Iterator<Item = ReportDoubt> {
        self.history.doubts(self.readiness == Readiness::Ready)
    }

    /// The guest starts anew: all pages private, not ready, next epoch. The offer stands.
    pub fn reset(&mut self) {
        self.ledger.clear();
        self.readiness = self.readiness.reset();
        self.history = ReportHistory::default();
        self.epoch = self.epoch.saturating_add(1);
    }
}

/// The effect of one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    status: Status,
    /// RAM is at most two runs.
    reported: [Option<PageRange>; 2],
    flipped_pages: u64,
}

impl Change {
    /// The status that the guest reported.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The RAM that it reported, ascending: the memory views must show all of it, flipped or not.
    pub fn reported(&self) -> impl Iterator<Item = PageRange> + use<> {
        self.reported.into_iter().flatten()
    }

    /// How many of those pages had the other status before.
    #[must_use]
    pub fn flipped_pages(&self) -> u64 {
        self.flipped_pages
    }
}

/// What the guest has done, for people to look at. Not part of the guest's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Reports that pages became shared.
    pub shared_calls: u64,
    /// Reports that pages became private.
    pub private_calls: u64,
    /// Hypercalls that were refused.
    pub rejected_calls: u64,
    /// Accepted reports that named pages outside RAM.
    pub clipped_calls: u64,
    /// Pages of RAM named in accepted reports.
    pub reported_pages: u64,
    /// Pages of RAM whose status changed.
    pub flipped_pages: u64,
}

impl Counters {
    fn count(&mut self, range: PageRange, change: &Change) {
        match change.status {
            Status::Shared => self.shared_calls += 1,
            Status::Private => self.private_calls += 1,
        }
        let reported: u64 = change.reported().map(PageRange::pages).sum();
        self.clipped_calls += u64::from(reported < range.pages());
        self.reported_pages = self.reported_pages.saturating_add(reported);
        self.flipped_pages = self.flipped_pages.saturating_add(change.flipped_pages);
    }
}

/// Why page status does not allow a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotMigratable {
    /// The guest could not know that it may be migrated.
    #[error("this guest was not offered migration (KVM_FEATURE_MIGRATION_CONTROL)")]
    NotOffered,
    /// The guest has not written READY since it started.
    #[error(
        "the guest has not declared itself ready (MSR_KVM_MIGRATION_CONTROL was never 1): it is \
         still booting, or its kernel is too old to report what it shares (Linux before 5.16)"
    )]
    NotReady,
    /// The guest had written READY.
    #[error(
        "the guest has withdrawn its readiness (it wrote 0 to MSR_KVM_MIGRATION_CONTROL): it is \
         rebooting, changing its kernel (kexec), or has taken a CPU offline; after the last, \
         Linux is not ready again before it boots anew"
    )]
    Withdrawn,
    /// Some pages' status is not known.
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
}
