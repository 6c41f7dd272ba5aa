//! Who owns the guest: the last steps of a migration, as two state machines without I/O.
//!
//! ```text
//!      source                                              destination
//!   Waiting   guest paused, all sent                      guest loaded and checked
//!      |  <----------------------- prepared -----------------  Prepared   paused
//!   Committing   journal: committed                            |
//!   InDoubt   ------------------------ commit ------------->   |
//!      |                                                    Owning     journal: owner
//!      |  <----------------------- running ------------------  Running    guest runs
//!   Released   SEND_FINISH, tear down, journal: released
//! ```
//!
//! - Before `committed` is on the source's disk only the source may run the guest: whatever goes
//!   wrong, it cancels the transfer and resumes ([`SourceState::Resumed`]).
//! - After it the source never resumes by itself. It says `commit` again on every connection until
//!   the destination answers, or a person decides ([`Resolution`]).
//! - The destination runs the guest only after `owner` is on its disk, which it writes only when
//!   told `commit`, or when a person decides.
//!
//! So never do two run it, and none runs only while in doubt. `tests/handover_model` drives
//! these functions through every order of losses, repeats, crashes and decisions.
//!
//! Outputs are carried out in their order, each before the next; the result of a journal write
//! comes back as an input before anything else does.

mod destination;
mod source;
#[cfg(test)]
mod tests;

pub use destination::{Destination, DestinationInput, DestinationOutput, DestinationState};
pub use source::{Doubt, Source, SourceInput, SourceOutput, SourceState};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::message::{Message, NotRunning, Reason, Transfer};

/// What a journal says of a transfer. The last step counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Source: the destination may own the guest from here on; the source resumes it no more.
    Committed,
    /// Source: a person decided that it keeps the guest.
    Kept,
    /// Source: the destination owns the guest, and it is torn down here.
    Released,
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
    #[error("the journal could not be written, so nothing was changed: free space and try again")]
    Journal,
}

/// What either side says in a handover.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Say {
    /// [`Message::Prepared`]
    Prepared(Transfer),
    /// [`Message::Commit`]
    Commit(Transfer),
    /// [`Message::Running`]
    Running(Transfer),
    /// [`Message::NotRunning`]
    NotRunning(Transfer, NotRunning),
    /// [`Message::Abandon`]
    Abandon(Transfer, Reason),
}

impl From<Say> for Message {
    fn from(say: Say) -> Self {
        match say {
            Say::Prepared(transfer) => Self::Prepared(transfer),
            Say::Commit(transfer) => Self::Commit(transfer),
            Say::Running(transfer) => Self::Running(transfer),
            Say::NotRunning(transfer, because) => Self::NotRunning { transfer, because },
            Say::Abandon(transfer, reason) => Self::Abandon { transfer, reason },
        }
    }
}
