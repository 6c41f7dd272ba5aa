//! What a machine can say about itself: the launch, and the page status.

use std::sync::{Arc, PoisonError};

use super::LaunchRecord;
use super::device_report::DeviceReport;
use crate::encryption::{Counters, Form, Incomplete, NotMigratable, PageStatus, ReportDoubt};
use crate::page::{PageRange, RamLayout};
use crate::sev::launch::GuestStatus;
use crate::vcpu::Board;

/// Most runs of shared pages that a report lists: a guest can make one of every other page.
pub const REGIONS_MAX: usize = 1 << 16;

/// A snapshot of a machine.
#[derive(Debug)]
pub struct Report {
    /// Where RAM is.
    pub ram: RamLayout,
    /// How many vCPUs it has.
    pub vcpus: usize,
    /// What is on its PCI bus, by slot.
    pub devices: Vec<DeviceReport>,
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
    /// The rest in short.
    pub summary: PageSummary,
    /// Runs of shared pages, ascending: the first [`REGIONS_MAX`].
    pub regions: Result<Vec<PageRange>, Incomplete>,
    /// How many runs there are, listed or not.
    pub region_count: u64,
    /// Hypercalls and pages.
    pub counters: Counters,
}

impl PageReport {
    /// What `status` says now.
    #[must_use]
    pub fn new(status: &PageStatus) -> Self {
        let mut region_count = 0;
        let regions = status.shared_regions().map(|regions| {
            let mut listed = Vec::new();
            for region in regions {
                region_count += 1;
                if listed.len() < REGIONS_MAX {
                    listed.push(region);
                }
            }
            listed
        });
        let (summary, counters) = (PageSummary::new(status), status.counters());
        Self { summary, regions, region_count, counters }
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
    /// How the record is kept.
    pub form: Form,
    /// Bytes of host memory that the record takes.
    pub memory_bytes: usize,
    /// Whether the guest may be migrated now.
    pub migratable: Result<(), NotMigratable>,
    /// What makes the guest's reports doubtful.
    pub doubts: Vec<ReportDoubt>,
}

impl PageSummary {
    /// What `status` says now.
    #[must_use]
    pub fn new(status: &PageStatus) -> Self {
        Self {
            shared: status.shared_pages(),
            private: status.private_pages(),
            form: status.form(),
            memory_bytes: status.memory_bytes(),
            migratable: status.migratable(),
            doubts: status.doubts().collect(),
        }
    }
}

impl PageWatch {
    /// `None` if no page is encrypted.
    pub(super) fn new(board: &Arc<Board>) -> Option<Self> {
        board.pages.is_some().then(|| Self(Arc::clone(board)))
    }

    /// The record as it is now; `None` if no page is encrypted. Hypercalls wait while it is copied.
    #[must_use]
    pub fn status(&self) -> Option<PageStatus> {
        let pages = self.0.pages.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(pages.status().clone())
    }

    /// What the page status is now; `None` if no page is encrypted. Hypercalls wait meanwhile.
    #[must_use]
    pub fn summary(&self) -> Option<PageSummary> {
        let pages = self.0.pages.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(PageSummary::new(pages.status()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption::{MapGpaRange, Overflow, Status};
    use crate::page::Frame;

    /// A guest that shares every other page makes the report no longer than its bound.
    #[test]
    fn a_report_is_bounded_and_counts_the_rest() {
        let layout = RamLayout::new(1 << 30).unwrap();
        let mut status = PageStatus::new(layout, Overflow::Promote);
        let runs = REGIONS_MAX as u64 + 5;
        for run in 0..runs {
            let range = PageRange::new(Frame(2 * run), Frame(2 * run + 1)).unwrap();
            status.apply(MapGpaRange { range, status: Status::Shared }, &mut |_| ());
        }
        let report = PageReport::new(&status);
        assert_eq!((report.region_count, report.summary.shared), (runs, Ok(runs)));
        let listed = report.regions.unwrap();
        assert_eq!(listed.len(), REGIONS_MAX);
        assert!(listed.is_sorted());
    }
}
