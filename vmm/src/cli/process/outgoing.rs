//! Sends a guest to another host: what its process does for `sevferry migrate`.

use std::error::Error;

use log::warn;

use super::audit::{Gone, contradiction, lost};
use super::guest_process::{GuestProcess, ProcessError};
use super::inbox::OwnEnd;
use super::journals::open_with_room;
use super::watcher::Watcher;
use crate::control::Answer;
use crate::control::api::{MigrateRequest, Outcome, Resolution, Response, State, Summary};
use crate::machine::{RunningMachine, Unaudited};
use crate::migration::journal::Side;
use crate::migration::preflight::{Candidate, Hindrance};
use crate::migration::progress::Progress;
use crate::migration::source::{Ended, Options, send};
use crate::migration::wire::{Abandoned, Transfer};
use crate::text::chain_of;

/// Where the guest is now.
#[derive(Debug)]
pub(crate) enum Departure {
    /// At the destination.
    Moved,
    /// Still here, running.
    Stayed(Box<RunningMachine>),
    /// It ended by itself meanwhile. The inbox has the event that says how.
    Ended,
}

/// Sends the guest to `request.to`. Tells the client when it has begun and how it ended.
///
/// # Errors
/// [`ProcessError::Vcpu`] if the guest could not be resumed after a migration that failed.
pub(crate) fn send_guest(
    mut machine: RunningMachine,
    request: &MigrateRequest,
    answer: &Answer,
    process: &GuestProcess,
) -> Result<Departure, ProcessError> {
    match contradiction(&mut machine) {
        Ok(None) => {}
        Ok(Some(found)) => {
            answer.refuse(found.to_string());
            return Ok(Departure::Stayed(Box::new(machine)));
        }
        Err(Gone::Ended) => {
            let outcome = outcome_of_its_end(process)
                .unwrap_or_else(|| Outcome::Ended("it stopped".to_owned()));
            let summary = Summary::of_nothing(process.following_transfer(), Side::Source, outcome);
            answer.give(Response::Ended(Box::new(summary)));
            return Ok(Departure::Stayed(Box::new(machine)));
        }
        Err(Gone::Lost(cause)) => return Err(lost(cause, answer)),
    }
    let transfer = process.next_transfer();
    let directory = process.options.journal.as_deref();
    let mut journal = match open_with_room(directory, transfer.vm, Side::Source) {
        Ok(journal) => journal,
        Err(cause) => {
            answer.refuse(chain_of(&cause));
            return Ok(Departure::Stayed(Box::new(machine)));
        }
    };
    for doubt in machine.doubts() {
        warn!("sending a guest that may arrive damaged: {doubt}");
    }
    let options = options_of(request, transfer, process.abandoned());
    let mut watcher = Watcher::new(process, State::Migrating);
    watcher.show(&Progress::new(transfer, Side::Source));
    answer.give(Response::Accepted);
    let (sent, mut summary) =
        match send(machine, &options, &mut journal, &process.events, &mut watcher) {
            Ok(Ended::Moved(summary)) => (Departure::Moved, summary),
            Ok(Ended::Stayed { machine, summary, abandoned }) => {
                process.abandon(abandoned);
                (machine.map_or(Departure::Ended, Departure::Stayed), summary)
            }
            Err(cause) => return Err(lost(cause, answer)),
        };
    if !matches!(sent, Departure::Moved)
        && let Some(outcome) = outcome_of_its_end(process)
    {
        summary.outcome = outcome;
    }
    watcher.end();
    process.inbox.settle_decision(match sent {
        Departure::Moved => Resolution::Discard,
        Departure::Stayed(_) | Departure::Ended => Resolution::Keep,
    });
    let said = format!("sevferry: {summary}");
    answer.give(Response::Ended(summary));
    eprintln!("{said}");
    Ok(sent)
}

/// The migration's outcome if the guest has ended by itself; `None` if it has not.
fn outcome_of_its_end(process: &GuestProcess) -> Option<Outcome> {
    Some(match process.inbox.why_it_ended()? {
        OwnEnd::Reset if process.reboots => {
            Outcome::Kept("the guest was reset, and boots again here".to_owned())
        }
        OwnEnd::Reset => Outcome::Ended("it was reset".to_owned()),
        OwnEnd::Gone(how) => Outcome::Ended(how),
    })
}

/// Answers `sevferry check --to` with every reason why [`send_guest`] would not move the guest.
///
/// # Errors
/// [`ProcessError::Vcpu`] if the guest could not go on after a look at its page tables.
pub(crate) fn check_guest(
    machine: &mut RunningMachine,
    request: &MigrateRequest,
    answer: &Answer,
    process: &GuestProcess,
) -> Result<(), ProcessError> {
    let contradiction = match contradiction(machine) {
        Ok(contradiction) => contradiction,
        Err(Gone::Ended) => {
            answer.refuse(chain_of(&Unaudited::Stopped));
            return Ok(());
        }
        Err(Gone::Lost(cause)) => return Err(lost(cause, answer)),
    };
    let own = |subject, cause: &dyn Error| Hindrance::new(Side::Source, subject, cause);
    let mut found: Vec<_> =
        contradiction.iter().map(|contradiction| own("page status", contradiction)).collect();
    let transfer = process.following_transfer();
    let mut stop = || process.inbox.wish().is_some();
    let guest = Candidate::running(machine);
    found.extend(guest.hindrances(&options_of(request, transfer, Vec::new()), &mut stop));
    let journal = open_with_room(process.options.journal.as_deref(), transfer.vm, Side::Source);
    found.extend(journal.err().map(|cause| own("journal", &cause)));
    answer.give(Response::Checked(found));
    Ok(())
}

/// The migration engine's options for a request.
pub(crate) fn options_of(
    request: &MigrateRequest,
    transfer: Transfer,
    abandoned: Vec<Abandoned>,
) -> Options {
    Options {
        to: request.to.clone(),
        connections: request.connections.get().into(),
        goal: request.goal(),
        throttle: request.throttle,
        silence: request.silence(),
        transfer,
        abandoned,
        allow_unchecked: request.allow_unchecked,
    }
}
