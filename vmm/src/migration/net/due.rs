//! Which message may come next on a control connection, and why none came.

use std::io::Error as IoError;
use std::time::Duration;

use thiserror::Error;

use crate::migration::wire::{
    CLOSING_HEADER_LEN, FrameHeader, Kind, Malformed, Reason, STATUS_BYTES_MAX,
};

/// Which message may come next. Any other is refused by its header, before memory is taken for it. A refusal and
/// an abandonment are short, and may always come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    what: &'static str,
    kinds: &'static [Kind],
    /// Of a region list, by the RAM of the guest.
    status_bytes_max: u32,
}

impl Due {
    /// First on a control connection to a host that receives guests.
    pub(crate) const GREETING: Self =
        Self::new("its first message", &[Kind::Offer, Kind::Commit, Kind::Released, Kind::Inquiry]);
    /// First on a page connection.
    pub(crate) const JOIN: Self = Self::new("its first message", &[Kind::Join]);
    pub(crate) const ACCEPT: Self = Self::new("an acceptance", &[Kind::Accept, Kind::Building]);
    pub(crate) const START: Self = Self::new("a start", &[Kind::Start]);
    pub(crate) const STARTED: Self = Self::new("a start", &[Kind::Started]);
    pub(crate) const ROUND_OK: Self = Self::new("the end of a round", &[Kind::RoundOk]);
    pub(crate) const REFUSAL: Self = Self::new("a reason", &[]);
    pub(crate) const ASSESSMENT: Self =
        Self::new("an assessment", &[Kind::Assessment, Kind::Building]);
    /// At the source.
    pub(crate) const VERDICT: Self =
        Self::new("a word on the handover", &[Kind::Prepared, Kind::Running, Kind::NotRunning]);
    /// At the destination.
    pub(crate) const COMMIT: Self = Self::new("a commit", &[Kind::Commit, Kind::Released]);

    const fn new(what: &'static str, kinds: &'static [Kind]) -> Self {
        Self { what, kinds, status_bytes_max: STATUS_BYTES_MAX }
    }

    /// After the last round, from the source of an SEV guest.
    pub(crate) const fn region_list(status_bytes_max: u32) -> Self {
        // The state is refused later, with an error that names what is missing.
        let due = Self::new("the region list", &[Kind::StatusList, Kind::State]);
        Self { status_bytes_max, ..due }
    }

    /// After that, or from the source of a plain VM at once.
    pub(crate) const STATE: Self = Self::new("the state", &[Kind::State]);

    /// It has not come within `patience`.
    pub(crate) fn silent(self, patience: Duration) -> LinkError {
        LinkError::Silent { wanted: self.what, patience }
    }

    pub(crate) fn check(&self, header: FrameHeader) -> Result<(), LinkError> {
        let kind = header.kind();
        if !self.kinds.contains(&kind) && !matches!(kind, Kind::Refuse | Kind::Abandon) {
            return Err(LinkError::Unexpected { wanted: self.what });
        }
        let length = header.length().saturating_sub(CLOSING_HEADER_LEN as usize);
        let most = self.status_bytes_max;
        if kind == Kind::StatusList && length > most as usize {
            let length = length as u64;
            return Err(Malformed::TooLong { kind, length, most }.into());
        }
        Ok(())
    }
}

/// Why there is no message.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The connection is gone, or silent.
    #[error("the connection to the other host was lost")]
    Lost(#[source] IoError),
    /// What came is not a message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The peer has refused or given up.
    #[error("the other host refused: {0}")]
    Refused(Reason),
    /// The peer stopped answering.
    #[error("the other host has not sent {wanted} for {} s", patience.as_secs())]
    Silent {
        /// What had to come.
        wanted: &'static str,
        /// How long.
        patience: Duration,
    },
    /// Its progress does not grow, or is not this guest's.
    #[error(
        "the other host says again that {pages} of {of} pages of the guest's memory are pinned, or of another \
         guest's: it does not get on"
    )]
    Stuck {
        /// As it says.
        pages: u64,
        /// As it says.
        of: u64,
    },
    /// It makes progress, but takes too long.
    #[error("the other host has been pinning the guest's memory for {} hours", patience.as_secs() / 3600)]
    Endless {
        /// How long.
        patience: Duration,
    },
    /// An answer to a question that was not asked yet.
    #[error("the other host answered before it was asked")]
    Early,
    /// Out of order.
    #[error("the other host sent something else where {wanted} was due")]
    Unexpected {
        /// What had to come.
        wanted: &'static str,
    },
}

impl LinkError {
    pub(crate) fn unexpected(wanted: &'static str) -> Self {
        Self::Unexpected { wanted }
    }
}
