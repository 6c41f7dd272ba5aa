//! A guest on its way out: what the owner does for `sevferry migrate`.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use log::warn;

use super::audit::{HAS_ENDED, audit_before_sending, contradiction};
use super::inbox::{Ended as How, Interruption};
use super::journals::open_with_room;
use super::owner::{Owner, OwnerError};
use crate::control::Answer;
use crate::control::api::{MigrateRequest, Outcome, Resolution, Response, State, Summary};
use crate::machine::RunningMachine;
use crate::migration::journal::Side;
use crate::migration::message::{Abandoned, Reason, Transfer};
use crate::migration::preflight::{Candidate, Hindrance, Side as At};
use crate::migration::progress::{Phase, Progress};
use crate::migration::source::Options;
use crate::migration::source::{Ended, send};
use crate::migration::watch::{Sight, Wish};

/// Where the guest is now.
#[derive(Debug)]
pub(super) enum Sent {
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
/// [`OwnerError::Vcpu`] if the guest could not be resumed after a migration that failed.
pub(super) fn send_guest(
    machine: RunningMachine,
    request: &MigrateRequest,
    answer: &Answer,
    owner: &Owner,
) -> Result<Sent, OwnerError> {
    let machine = match audit_before_sending(machine, answer, owner)? {
        Ok(machine) => machine,
        Err(Sent::Ended) => {
            let outcome = outcome_of_its_end(owner)
                .unwrap_or_else(|| Outcome::Ended("it stopped".to_owned()));
            let summary = Summary::of_nothing(owner.following_transfer(), Side::Source, outcome);
            answer.give(Response::Ended(Box::new(summary)));
            return Ok(Sent::Ended);
        }
        Err(stayed) => return Ok(stayed),
    };
    let transfer = owner.next_transfer();
    let directory = owner.options.journal.as_deref();
    let mut journal = match open_with_room(directory, transfer.vm, Side::Source) {
        Ok(journal) => journal,
        Err(cause) => {
            answer.refuse(super::chain_of(&cause));
            return Ok(Sent::Stayed(Box::new(machine)));
        }
    };
    for doubt in machine.doubts() {
        warn!("sending a guest that may arrive damaged: {doubt}");
    }
    let options = options_of(request, transfer, owner.abandoned());
    let progress = Arc::new(Mutex::new(Progress::new(transfer, Side::Source)));
    owner.board.show_migration(State::Migrating, Arc::clone(&progress));
    answer.give(Response::Accepted);
    let mut watch = |sight: &Sight<'_>| {
        sight.progress.clone_into(&mut progress.lock().unwrap_or_else(PoisonError::into_inner));
        if sight.in_doubt {
            owner.board.show(State::InDoubt);
        }
        if let Some(refusal) = sight.refused {
            owner.inbox.refuse_decision(&refusal.to_string());
        }
        owner.inbox.interruption(&owner.board).and_then(wish_of)
    };
    let (sent, mut summary) = match send(machine, &options, &mut journal, &owner.events, &mut watch)
    {
        Ok(Ended::Moved(summary)) => (Sent::Moved, summary),
        Ok(Ended::Stayed { machine, summary, abandoned }) => {
            owner.abandon(abandoned);
            (machine.map_or(Sent::Ended, Sent::Stayed), summary)
        }
        Err(cause) => {
            answer.give(Response::Error { message: super::chain_of(&cause) });
            return Err(OwnerError::Vcpu(cause));
        }
    };
    if !matches!(sent, Sent::Moved)
        && let Some(outcome) = outcome_of_its_end(owner)
    {
        summary.outcome = outcome;
    }
    let mut last = progress.lock().unwrap_or_else(PoisonError::into_inner);
    last.phase = Phase::Done;
    // Whoever runs the guest now runs it at full speed.
    last.throttle_percent = 0;
    drop(last);
    owner.inbox.settle_decision(match sent {
        Sent::Moved => Resolution::Discard,
        Sent::Stayed(_) | Sent::Ended => Resolution::Keep,
    });
    let said = format!("sevferry: {summary}");
    answer.give(Response::Ended(summary));
    eprintln!("{said}");
    Ok(sent)
}

/// What it means for its migration that the guest has ended of its own; `None` if it has not.
fn outcome_of_its_end(owner: &Owner) -> Option<Outcome> {
    Some(match owner.inbox.why_it_ended(&owner.board)? {
        How::Reset if owner.reboots => {
            Outcome::Kept("the guest was reset, and boots again here".to_owned())
        }
        How::Reset => Outcome::Ended("it was reset".to_owned()),
        How::Gone(how) => Outcome::Ended(how),
    })
}

/// Answers `sevferry check --to` with every reason why [`send_guest`] would not move the guest.
///
/// # Errors
/// [`OwnerError::Vcpu`] if the guest could not go on after a look at its page tables.
pub(super) fn check_guest(
    machine: RunningMachine,
    request: &MigrateRequest,
    answer: &Answer,
    owner: &Owner,
) -> Result<Sent, OwnerError> {
    let Some((machine, contradiction)) = contradiction(machine, answer, owner)? else {
        answer.refuse(HAS_ENDED);
        return Ok(Sent::Ended);
    };
    let own = |subject, cause: &dyn Error| Hindrance::new(At::Source, subject, cause);
    let mut found: Vec<_> =
        contradiction.iter().map(|contradiction| own("page status", contradiction)).collect();
    let transfer = owner.following_transfer();
    let mut stop = || owner.inbox.interruption(&owner.board).is_some();
    let guest = Candidate::running(&machine);
    found.extend(guest.hindrances(&options_of(request, transfer, Vec::new()), &mut stop));
    let journal = open_with_room(owner.options.journal.as_deref(), transfer.vm, Side::Source);
    found.extend(journal.err().map(|cause| own("journal", &cause)));
    answer.give(Response::Checked(found));
    Ok(Sent::Stayed(Box::new(machine)))
}

/// A request as the engine takes it.
pub(super) fn options_of(
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
