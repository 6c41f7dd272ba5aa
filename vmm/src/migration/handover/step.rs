//! What is written down, decided, and refused in a handover.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a journal says of a transfer. The last step counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Source: the destination may own the guest from here on; the source resumes it no more.
    Committed,
    /// Source: it keeps the guest, which its destination gave back, or a person decided so.
    Kept,
    /// Source: nothing of the guest is left here, and it is known what became of it.
    Released,
    /// Destination: it takes the guest in, and its source may commit it.
    Accepted,
    /// Destination: it owns the guest.
    Owner,
    /// Destination: a person decided that it drops the guest.
    Discarded,
}

/// What a person decides for a side that cannot know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// The guest runs here. The other side must have dropped it, or lost it for good, before.
    Keep,
    /// The guest is dropped here.
    Discard,
}

/// Why a side does not do what it was asked to; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// A cancel after the commit.
    #[error("the guest is committed to the destination: only `resolve` can end the doubt")]
    Committed,
    /// A decision while the protocol still decides.
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
