//! What can be seen from outside of a guest whose reports may not be relied upon.

use thiserror::Error;

use super::BadRequest;

/// What a guest has done since it started, or came here, that makes its reports doubtful.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReportHistory {
    /// Whether it has reported anything; what a guest did elsewhere is not known.
    pub(super) heard: bool,
    /// How many reports were refused, and why the last was.
    refused: Option<(u64, BadRequest)>,
}

/// Why a guest's reports may not be relied upon, though nothing proves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReportDoubt {
    /// Linux takes no notice of a refusal and uses the pages as it wanted to.
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
    /// Linux begins with a report that all of RAM is private.
    #[error("the guest says that it is ready, and has not reported a single page since it started")]
    Unheard,
}

impl ReportHistory {
    /// A report was refused. Another hypercall is none.
    pub(super) fn refuse(&mut self, why: BadRequest) {
        if !matches!(why, BadRequest::UnknownHypercall { .. }) {
            let before = self.refused.map_or(0, |(count, _)| count);
            self.refused = Some((before.saturating_add(1), why));
        }
    }

    /// What there is to say of a guest that is ready, or is not.
    pub(super) fn doubts(&self, ready: bool) -> impl Iterator<Item = ReportDoubt> {
        let refused = self.refused.map(|(count, last)| ReportDoubt::Refused { count, last });
        let unheard = (ready && !self.heard).then_some(ReportDoubt::Unheard);
        refused.into_iter().chain(unheard)
    }
}
