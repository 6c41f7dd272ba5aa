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
//!   a person decides ([`Resolution`]). It resumes the guest only if the destination says that it has no
//!   copy any more and never ran it.
//! - The destination runs the guest only after `owner` is on its disk. It writes that only when it is
//!   told `commit`, or when a person decides. If it cannot write it, it frees its copy and then gives the
//!   guest back. It keeps a copy that it knows to be the last.
//! - A word counts only with the proof that the other side said it, on this very transfer
//!   ([`Source::hear`], [`Destination::hear`]).
//! - A side removes a transfer from its journal when the other side has no question left that only the
//!   journal answers.
//!
//! So two hosts never run the guest, and only while in doubt does no host run it. `tests/handover_model`
//! drives these functions through every order of losses, repeats, crashes, lies and decisions.
//!
//! Outputs are carried out in order, each before the next. The result of a journal write comes back as an
//! input before any other input.
//!
//! # Examples
//! Any VMM can hand a guest over with these two halves. It carries the words between its hosts, and what is an
//! output here it does: `WriteJournal` makes a line durable, `RunGuest` starts vCPUs.
//! ```
//! use sevferry::migration::handover::{
//!     Destination, DestinationInput, DestinationOutput, Source, SourceInput, SourceOutput, Step,
//! };
//! use sevferry::migration::wire::{Say, Secret, Transfer, VmId};
//!
//! let (transfer, secret) = (Transfer { vm: VmId::random()?, epoch: 1 }, Secret::random()?);
//! let source = Source::new(transfer, secret);
//!
//! // All of the guest has arrived, and the destination says so.
//! let (destination, outputs) = Destination::new(transfer, secret);
//! assert_eq!(outputs, [DestinationOutput::Send(Say::Prepared)]);
//!
//! // The source writes first that the guest may be gone, then it commits. Now it cannot know who owns the guest.
//! let heard = source.hear(&destination.word(Say::Prepared)).ok_or("not from our destination")?;
//! let (source, outputs) = source.on(heard);
//! assert_eq!(outputs, [SourceOutput::WriteJournal(Step::Committed)]);
//! let (source, outputs) = source.on(SourceInput::JournalWritten);
//! let commit = Say::Commit { is_last: false };
//! assert_eq!(outputs, [SourceOutput::Send(commit.clone())]);
//! assert!(source.is_in_doubt());
//!
//! // The destination writes first that it owns the guest, then it runs it.
//! let heard = destination.hear(&source.word(commit)).ok_or("not from our source")?;
//! let (destination, outputs) = destination.on(heard);
//! assert_eq!(outputs, [DestinationOutput::WriteJournal(Step::Owner)]);
//! let (destination, outputs) = destination.on(DestinationInput::JournalWritten);
//! assert_eq!(outputs, [DestinationOutput::RunGuest, DestinationOutput::Send(Say::Running)]);
//!
//! // That ends the source's doubt: the guest is not its own any more.
//! let heard = source.hear(&destination.word(Say::Running)).ok_or("not from our destination")?;
//! let (source, outputs) = source.on(heard);
//! let released = SourceOutput::WriteJournal(Step::Released);
//! assert_eq!(outputs, [SourceOutput::SendFinish, SourceOutput::TearDown, released]);
//! assert!(!source.is_in_doubt());
//!
//! // A word of another transfer, or of a stranger who does not know the secret, counts for nothing.
//! let stranger = Source::new(transfer, Secret::random()?);
//! assert_eq!(destination.hear(&stranger.word(Say::Released)), None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
