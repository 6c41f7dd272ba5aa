//! What a machine can say about itself: the launch, and the page status.

use std::sync::{Arc, PoisonError};

use super::LaunchRecord;
use crate::encryption::{Counters, Form, Incomplete, NotMigratable, PageStatus};
use crate::page::{PageRange, RamLayout};
use crate::sev::launch::GuestStatus;
use crate::vcpu::Board;

/// A snapshot of a machine.
#[derive(Debug)]
pub struct Report {
    /// Where RAM is.
    pub ram: RamLayout,
    /// How many vCPUs it has.
    pub vcpus: usize,
    /// The rest, for an SEV guest.
    pub sev: Option<SevReport>,
}

/// A snapshot of an SEV guest.
#[derive(Debug)]
pub struct SevReport {
    /// What was launched.
    pub launch: LaunchRecord,
    /// What the firmware says now; `None` if it did not answer.
    pub guest: Option<GuestStatus>,
    /// What the guest has reported.
    pub pages: PageReport,
}

/// A snapshot of page status.
#[derive(Debug)]
pub struct PageReport {
    /// Every run of shared pages, ascending.
    pub regions: Result<Vec<PageRange>, Incomplete>,
    /// How many pages are shared.
    pub shared: Result<u64, Incomplete>,
    /// How many pages are private.
    pub private: Result<u64, Incomplete>,
    /// How the record is kept.
    pub form: Form,
    /// Bytes of host memory that the record takes.
    pub memory_bytes: usize,
    /// Hypercalls and pages.
    pub counters: Counters,
    /// Whether the guest may be migrated now.
    pub migratable: Result<(), NotMigratable>,
}

impl PageReport {
    /// What `status` says now.
    #[must_use]
    pub fn new(status: &PageStatus) -> Self {
        Self {
            regions: status.shared_regions().map(Iterator::collect),
            shared: status.shared_pages(),
            private: status.private_pages(),
            form: status.form(),
            memory_bytes: status.memory_bytes(),
            counters: status.counters(),
            migratable: status.migratable(),
        }
    }
}

/// Looks at the page status of a machine that runs.
#[derive(Debug, Clone)]
pub struct PageWatch(Arc<Board>);

/// Page status in short.
#[derive(Debug, Clone)]
pub struct PageSummary {
    /// How many pages are shared.
    pub shared: Result<u64, Incomplete>,
    /// How many pages are private.
    pub private: Result<u64, Incomplete>,
    /// Whether the guest may be migrated now.
    pub migratable: Result<(), NotMigratable>,
}

impl PageWatch {
    /// `None` if no page is encrypted.
    pub(super) fn new(board: &Arc<Board>) -> Option<Self> {
        board.pages.is_some().then(|| Self(Arc::clone(board)))
    }

    /// What the page status is now; `None` if no page is encrypted. Hypercalls wait meanwhile.
    #[must_use]
    pub fn summary(&self) -> Option<PageSummary> {
        let pages = self.0.pages.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let status = pages.status();
        Some(PageSummary {
            shared: status.shared_pages(),
            private: status.private_pages(),
            migratable: status.migratable(),
        })
    }
}
