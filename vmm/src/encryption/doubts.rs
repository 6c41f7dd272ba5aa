//! Signs that a guest's reports may be unreliable, as far as the host can see them.

use thiserror::Error;

use super::BadRequest;

/// What the guest did since it started or arrived here, as far as it makes its reports doubtful.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReportHistory {
    /// Whether it has reported anything. What it did at another host is not known.
    pub(super) heard: bool,
    /// How many reports were refused, and why the last was.
    refused: Option<(u64, BadRequest)>,
}

/// Why a guest's reports may be unreliable, though nothing proves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReportDoubt {
    /// A report was refused. Linux ignores that, and uses the pages as it wanted to.
    #[error(
        "{count} of the guest's reports were refused, so what it has made of their pages is not \
         known; the last: {last}"
    )]
    Refused {
        /// How many.
        count: u64,
        /// Why the last was.
        last: BadRequest,
    },
    /// There was no report at all, although Linux begins with one that all of RAM is private.
    #[error("the guest says that it is ready, and has not reported a single page since it started")]
    Unheard,
}

impl ReportHistory {
    /// A report was refused. A refused hypercall of another number does not count.
    pub(super) fn refuse(&mut self, why: BadRequest) {
        if !matches!(why, BadRequest::UnknownHypercall { .. }) {
            let before = self.refused.map_or(0, |(count, _)| count);
            self.refused = Some((before.saturating_add(1), why));
        }
    }

    /// The doubts about the guest. `ready` says whether it has declared itself ready.
    pub(super) fn doubts(&self, ready: bool) -> impl Iterator<Item = ReportDoubt> {
        let refused = self.refused.map(|(count, last)| ReportDoubt::Refused { count, last });
        let unheard = (ready && !self.heard).then_some(ReportDoubt::Unheard);
        refused.into_iter().chain(unheard)
    }
}
