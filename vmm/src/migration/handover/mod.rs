//! Who owns the guest: the last steps of a migration, as two state machines without I/O.
//!
//! ```text
//!      source                                              destination
//!                                                          journal: accepted, with the secret
//!   Waiting   guest paused, all sent                      guest loaded and checked
//!      |  <----------------------- prepared -----------------  Prepared   paused
//!   Committing   journal: committed                            |
//!   InDoubt   ------------------------ commit ------------->   |
//!      |                                                    Owning     journal: owner
//!      |  <----------------------- running ------------------  Running    guest runs
//!   Released   SEND_FINISH, tear down, journal: released       |
//!      |  ---------------------------- released ------------>  |
//!      forget the journal                                   forget the journal
//! ```
//!
//! - Before `committed` is on the source's disk only the source may run the guest: whatever goes
//!   wrong, it cancels the transfer and resumes ([`SourceState::Resumed`]).
//! - After it the source says `commit` again on every connection until the destination answers, or
//!   a person decides ([`Resolution`]). It resumes only if the destination has no copy any more and
//!   never ran it, and says so.
//! - The destination runs the guest only after `owner` is on its disk, which it writes only when
//!   told `commit`, or when a person decides. If that cannot be written it gives the guest back: its
//!   copy goes first, then it says so. A copy that it knows to be the last it keeps.
//! - Nothing that is heard counts unless it is proven to be the other side's on this very transfer
//!   ([`Source::hear`], [`Destination::hear`]).
//! - A side forgets its journal when the other has no question left that only the journal answers.
//!
//! So never do two run it, and none runs only while in doubt. `tests/handover_model` drives
//! these functions through every order of losses, repeats, crashes, lies and decisions.
//!
//! Outputs are carried out in their order, each before the next; the result of a journal write
//! comes back as an input before anything else does.

mod destination;
mod source;
#[cfg(test)]
mod tests;

pub use destination::{Destination, DestinationInput, DestinationOutput, DestinationState};
pub use source::{By, Doubt, Source, SourceInput, SourceOutput, SourceState};

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
    #[error("the journal could not be written, so nothing was changed: free space and try again")]
    Journal,
}
