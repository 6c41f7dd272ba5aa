//! Pages that change between private and shared, in the order that the interface asks for:
//! caches, page tables, translations, hypercall.

use core::fmt::{Display, Formatter, Result as FmtResult};

use crate::cpu;
use crate::paging::{Map, Status};
use crate::pattern::{self, Mismatch};
use crate::platform::{ENCRYPTED, Platform};
use crate::ram::{PAGE_SIZE, Pages};
use crate::table;

/// The page tables and the host, which must agree about every page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) map: Map,
    pub(crate) platform: Platform,
}

/// The hypercall's RAX, or nothing where it is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer(Option<i64>);

impl Answer {
    /// Whether the host refused.
    pub(crate) fn refused(self) -> bool {
        self.0.is_some_and(|rax| rax != 0)
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self.0 {
            Some(rax) => write!(f, "ret={rax}"),
            None => write!(f, "skipped"),
        }
    }
}

impl Memory {
    /// The memory as this processor sees it. `c_mask` is the C-bit, or 0 without SEV.
    pub(crate) fn current(c_mask: u64) -> Self {
        Self { map: Map::current(c_mask), platform: Platform::detect(c_mask) }
    }

    /// Changes how split pages are mapped here; the host does not know yet.
    pub(crate) fn remap(self, pages: Pages, to: Status) {
        pages.frames().for_each(|frame| self.platform.flush_cached(frame * PAGE_SIZE));
        self.map.set_status(pages, to);
    }

    /// Tells the host what the pages are now.
    pub(crate) fn report(self, pages: Pages, status: Status) -> Answer {
        table::write(pages, status);
        let attributes = if status == Status::Private { ENCRYPTED } else { 0 };
        let offered = self.platform.map_gpa_range;
        Answer(offered.then(|| cpu::map_gpa_range(pages.gpa(), pages.count, attributes)))
    }

    /// Changes pages whose content is then unspecified.
    pub(crate) fn convert(self, pages: Pages, to: Status) -> Answer {
        self.remap(pages, to);
        self.report(pages, to)
    }

    /// Shares every other page with one hypercall each in even rounds, and takes them back in odd
    /// ones. Returns the number of conversions.
    pub(crate) fn alternate(self, pages: Pages, rounds: u64) -> Result<u64, Failure> {
        let every_other = || pages.frames().step_by(2);
        every_other().for_each(|frame| pattern::stamp(frame, 0));
        let mut conversions = 0;
        for round in 0..rounds {
            let to = if round % 2 == 0 { Status::Shared } else { Status::Private };
            for frame in every_other() {
                pattern::check_stamp(frame, round)?;
                let page = Pages { first: frame, count: 1 };
                let answer = self.convert(page, to);
                if answer.refused() {
                    return Err(Failure::Refused(page, answer));
                }
                pattern::stamp(frame, round + 1);
                conversions += 1;
            }
        }
        every_other().try_for_each(|frame| pattern::check_stamp(frame, rounds))?;
        Ok(conversions)
    }
}

/// Why a run of conversions ended early.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Failure {
    /// A page does not hold what was written.
    Mismatch(Mismatch),
    /// The host refused.
    Refused(Pages, Answer),
}

impl From<Mismatch> for Failure {
    fn from(mismatch: Mismatch) -> Self {
        Self::Mismatch(mismatch)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self {
            Self::Mismatch(mismatch) => write!(f, "{mismatch}"),
            Self::Refused(pages, answer) => write!(f, "refused {pages} {answer}"),
        }
    }
}
