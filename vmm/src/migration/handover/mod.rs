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
mod driver;
pub mod journal;
mod source;
mod step;
#[cfg(test)]
mod tests;

pub use destination::{Destination, DestinationInput, DestinationOutput, DestinationState};
pub(crate) use driver::{advance, carry_out};
pub use source::{By, Doubt, Source, SourceInput, SourceOutput, SourceState};
pub use step::{Refusal, Resolution, Step};
