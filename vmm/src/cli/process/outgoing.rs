//! A guest on its way out: what the owner does for `sevferry migrate`.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use log::warn;

use super::audit::{HAS_ENDED, audit_before_sending, contradiction};
use super::guest_process::{GuestProcess, ProcessError};
use super::inbox::{Ended as How, Interruption};
use super::journals::open_with_room;
use crate::control::Answer;
use crate::control::api::{MigrateRequest, Outcome, Resolution, Response, State, Summary};
use crate::machine::{RunningMachine, chain_of};
use crate::migration::handing_over::{Ended, send};
use crate::migration::journal::Side;
use crate::migration::message::{Abandoned, Reason, Transfer};
use crate::migration::preflight::{Candidate, Hindrance, Side as At};
use crate::migration::progress::{Phase, Progress};
use crate::migration::source::{Look, Options, Wish};

/// Where the guest is now.
#[derive(Debug)]
pub(crate) enum Sent {
    /// At the destination.
    Moved,
    /// Still here, running.
    Stayed(Box<RunningMachine>),
    /// It ended by itself meanwhile; the owner's inbox tells how.
    Ended,
}

/// Sends the guest to `request.to`; tells the asker when it has begun and how it ended.
///
/// # Errors
/// [`ProcessError::Vcpu`] if the guest could not be resumed after a migration that failed.
pub(crate) fn send_guest(
    machine: RunningMachine,
    request: &MigrateRequest,
    answer: &Answer,
    process: &GuestProcess,
) -> Result<Sent, ProcessError> {
    let machine = match audit_before_sending(machine, answer, process)? {
        Ok(machine) => machine,
        Err(Sent::Ended) => {
            let outcome = outcome_of_its_end(process)
                .unwrap_or_else(|| Outcome::Ended("it stopped".to_owned()));
            let summary = Summary::of_nothing(process.following_transfer(), Side::Source, outcome);
            answer.give(Response::Ended(Box::new(summary)));
            return Ok(Sent::Ended);
        }
        Err(stayed) => return Ok(stayed),
    };
    let transfer = process.next_transfer();
    let directory = process.options.journal.as_deref();
    let mut journal = match open_with_room(directory, transfer.vm, Side::Source) {
        Ok(journal) => journal,
        Err(cause) => {
            answer.refuse(chain_of(&cause));
            return Ok(Sent::Stayed(Box::new(machine)));
        }
    };
    for doubt in machine.doubts() {
        warn!("sending a guest that may arrive damaged: {doubt}");
    }
    let options = options_of(request, transfer, process.abandoned());
    let progress = Arc::new(Mutex::new(Progress::new(transfer, Side::Source)));
    process.board.show_migration(State::Migrating, Arc::clone(&progress));
    answer.give(Response::Accepted);
    let mut wish = |look: Look<'_>| {
        look.progress.clone_into(&mut progress.lock().unwrap_or_else(PoisonError::into_inner));
        if look.in_doubt {
            process.board.show(State::InDoubt);
        }
        if let Some(refusal) = look.refused {
            process.inbox.refuse_decision(&refusal.to_string());
        }
        process.inbox.interruption(&process.board).and_then(wish_of)
    };
    let (sent, mut summary) =
        match send(machine, &options, &mut journal, &process.events, &mut wish) {
            Ok(Ended::Moved(summary)) => (Sent::Moved, summary),
            Ok(Ended::Stayed { machine, summary, abandoned }) => {
                process.abandon(abandoned);
                (machine.map_or(Sent::Ended, Sent::Stayed), summary)
            }
            Err(cause) => {
                answer.give(Response::Error { message: chain_of(&cause) });
                return Err(ProcessError::Vcpu(cause));
            }
        };
    if !matches!(sent, Sent::Moved)
        && let Some(outcome) = outcome_of_its_end(process)
    {
        summary.outcome = outcome;
    }
    let mut last = progress.lock().unwrap_or_else(PoisonError::into_inner);
    last.phase = Phase::Done;
    // Whoever runs the guest now runs it at full speed.
    last.throttle_percent = 0;
    drop(last);
    process.inbox.settle_decision(match sent {
        Sent::Moved => Resolution::Discard,
        Sent::Stayed(_) | Sent::Ended => Resolution::Keep,
    });
    let said = format!("sevferry: {summary}");
    answer.give(Response::Ended(summary));
    eprintln!("{said}");
    Ok(sent)
}

/// What it means for its migration that the guest has ended of its own; `None` if it has not.
fn outcome_of_its_end(process: &GuestProcess) -> Option<Outcome> {
    Some(match process.inbox.why_it_ended(&process.board)? {
        How::Reset if process.reboots => {
            Outcome::Kept("the guest was reset, and boots again here".to_owned())
        }
        How::Reset => Outcome::Ended("it was reset".to_owned()),
        How::Gone(how) => Outcome::Ended(how),
    })
}

/// Answers `sevferry check --to` with every reason why [`send_guest`] would not move the guest.
///
/// # Errors
/// [`ProcessError::Vcpu`] if the guest could not go on after a look at its page tables.
pub(crate) fn check_guest(
    machine: RunningMachine,
    request: &MigrateRequest,
    answer: &Answer,
    process: &GuestProcess,
) -> Result<Sent, ProcessError> {
    let Some((machine, contradiction)) = contradiction(machine, answer, process)? else {
        answer.refuse(HAS_ENDED);
        return Ok(Sent::Ended);
    };
    let own = |subject, cause: &dyn Error| Hindrance::new(At::Source, subject, cause);
    let mut found: Vec<_> =
        contradiction.iter().map(|contradiction| own("page status", contradiction)).collect();
    let transfer = process.following_transfer();
    let mut stop = || process.inbox.interruption(&process.board).is_some();
    let guest = Candidate::running(&machine);
    found.extend(guest.hindrances(&options_of(request, transfer, Vec::new()), &mut stop));
    let journal = open_with_room(process.options.journal.as_deref(), transfer.vm, Side::Source);
    found.extend(journal.err().map(|cause| own("journal", &cause)));
    answer.give(Response::Checked(found));
    Ok(Sent::Stayed(Box::new(machine)))
}

/// A request as the engine takes it.
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

fn wish_of(interruption: Interruption) -> Option<Wish> {
    let cancel = |reason| Some(Wish::Cancel(Reason::new(reason)));
    match interruption {
        Interruption::GuestStopped => cancel("the guest stopped"),
        Interruption::Quit => cancel("sevferry is to end"),
        Interruption::Cancelled => cancel("the user cancelled it"),
        Interruption::Resolved(resolution) => Some(Wish::Resolve(resolution)),
    }
}
