//! Page status: which guest pages are private and which are shared, as the guest reports them.
//!
//! The guest decides, page by page, with the C-bit of its page tables: a *private* page is
//! encrypted with the guest's key, a *shared* page is in the clear. The host cannot see the C-bit,
//! so the guest reports each change with the hypercall `KVM_HC_MAP_GPA_RANGE`; a page that was never
//! reported is private. A page that is read in the wrong view is noise, so nothing here guesses: an
//! incomplete record says so ([`Incomplete`]) instead of answering.
//!
//! ```text
//! hypercall exit -> MapGpaRange::parse -> PageStatus::apply -> Change -> the memory views switch
//!                                              |
//!                                         Ledger: one of SharedRegions (at its bound SharedBitmap or
//!                                         poisoned), SharedBitmap, DonatedTable
//! ```
//!
//! Pure data: no I/O, no clock, no locks. vCPUs report at the same time; the caller orders them.

mod bitmap;
mod design;
mod donated;
mod doubts;
mod ledger;
mod page_status;
mod readiness;
mod regions;
mod request;
mod tables;
#[cfg(test)]
mod tests;
mod tracker;
mod wire;

pub use bitmap::SharedBitmap;
pub use design::{Design, Overflow};
pub use donated::{BadTable, Contradiction, DonatedTable, MSR_PAGE_TABLE, TableMemory};
pub use doubts::ReportDoubt;
pub use ledger::{Form, Incomplete};
pub use page_status::{Change, Counters, NotMigratable, PageStatus};
pub use readiness::{BadControl, MSR_KVM_MIGRATION_CONTROL};
pub use regions::SharedRegions;
pub use request::{BadRequest, KVM_HC_MAP_GPA_RANGE, MapGpaRange};
pub use tables::{Contradictions, ENTRIES, PageTables, TABLES_MAX, Unwalked};
pub use tracker::{Full, Tracker, shared_in};
pub use wire::MalformedStatus;

use std::fmt::{Display, Formatter, Result as FmtResult};

/// How the guest maps a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// With the C-bit: encrypted with the guest's key. Every page never reported is this.
    Private,
    /// Without the C-bit: in the clear.
    Shared,
}

impl Display for Status {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Self::Private => "private",
            Self::Shared => "shared",
        })
    }
}
