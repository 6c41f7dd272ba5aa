//! The steps that a journal records, the decisions that a person can make, and the reasons to refuse them.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a journal says of a transfer. The last step counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Source: from here on the destination may own the guest, and the source does not resume it.
    Committed,
    /// Source: it keeps the guest. The destination gave it back, or a person decided so.
    Kept,
    /// Source: nothing of the guest is left here, and its fate is known.
    Released,
    /// Destination: it accepts the guest. From here on the source may commit it.
    Accepted,
    /// Destination: it owns the guest.
    Owner,
    /// Destination: a person decided that it drops the guest.
    Discarded,
}

/// What a person decides for a side that is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// The guest runs here. Before that, the other side must have dropped it or lost it for good.
    Keep,
    /// The guest is dropped here.
    Discard,
}

/// Why a side refuses a cancel or a decision. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// A cancel after the commit.
    #[error("the guest is committed to the destination: only `resolve` can end the doubt")]
    Committed,
    /// A decision while the two sides can still decide it themselves.
    #[error("the handover is not in doubt: cancel the migration instead")]
    NotInDoubt,
    /// A decision that came too late.
    #[error("the handover is over: {over}")]
    Over {
        /// How it ended here.
        over: &'static str,
    },
    /// Nothing to keep.
    #[error("the guest is not here any more: this side can only discard it")]
    GuestGone,
    /// The decision could not be written down.
    #[error(
        "the journal could not be written, or a disk not be locked, so nothing was changed: the log says \
         which; mend it and try again"
    )]
    Journal,
}
