//! A guest on its way in: what the owner does while nothing runs yet.

use std::io::Error as IoError;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::info;

use super::inbox::Interruption;
use super::journals::open_journal;
use super::migration_arguments::ReceiveOptions;
use super::owner::Owner;
use super::receive::ReceiveError;
use crate::control::api::{Outcome, Progress, Resolution, State};
use crate::machine::RunningMachine;
use crate::migration::destination::{Answering, Taken, take_over};
use crate::migration::destination::{Host, Prepared, Received, receive};
use crate::migration::journal::Side;
use crate::migration::message::{Reason, VmId};
use crate::migration::progress::Phase;
use crate::migration::watch::{Sight, Wish};
use crate::migration::{Caller, Line, Listener, Lobby};

/// How often the user's wish to end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Takes over the guest that comes; `None` if the user ended the wait. A guest that cannot be taken
/// stays where it is, and the next one is waited for.
///
/// # Errors
/// [`ReceiveError`] if the guest that this host owns cannot run.
pub(super) fn receive_guest(
    listener: &Listener,
    options: &ReceiveOptions,
    owner: &Owner,
) -> Result<Option<(RunningMachine, Answering)>, ReceiveError> {
    let (mut calls_again, mut lobby) = (None, Lobby::new(options.silence));
    loop {
        if owner.inbox.interruption(&owner.board).is_some() {
            return Ok(None);
        }
        let caller = match calls_again.take() {
            Some(caller) => caller,
            None => match greet_next(listener, &mut lobby) {
                Some(caller) => caller,
                None => continue,
            },
        };
        let prepared = match prepare(caller, listener, options, owner) {
            Some(Came::Guest(prepared)) => prepared,
            Some(Came::Line(line)) => {
                lobby.let_back_in(line);
                continue;
            }
            None => continue,
        };
        let (transfer, account) = (prepared.transfer, prepared.account.clone());
        show(owner, State::Receiving, account.now());
        // From here on quitting is refused: what was asked before that must be heard before it.
        if owner.inbox.interruption(&owner.board).is_some() {
            prepared.refuse("receiving was stopped");
            return Ok(None);
        }
        owner.board.show(State::InDoubt);
        let mut watch = |sight: &Sight<'_>| {
            if let Some(refusal) = sight.refused {
                owner.inbox.refuse_decision(&refusal.to_string());
            }
            match owner.inbox.interruption(&owner.board)? {
                Interruption::Resolved(resolution) => Some(Wish::Resolve(resolution)),
                Interruption::GuestStopped | Interruption::Quit | Interruption::Cancelled => None,
            }
        };
        let taken = take_over(*prepared, listener, &owner.events, &mut watch)
            .map_err(ReceiveError::Vcpu)?;
        match taken {
            Taken::Runs(machine, answering) => {
                owner.inbox.settle_decision(Resolution::Keep);
                let done = Progress { phase: Phase::Done, ..account.now().clone() };
                show(owner, State::Receiving, &done);
                eprintln!("sevferry: {}", account.summary(Outcome::Moved));
                owner.adopt(transfer);
                return Ok(Some((*machine, *answering)));
            }
            Taken::Dropped(anew, line) => {
                owner.inbox.settle_decision(Resolution::Discard);
                notice!("sevferry: {transfer} was dropped here; waiting for a guest");
                calls_again = anew.map(|caller| *caller);
                line.into_iter().for_each(|line| lobby.let_back_in(line));
            }
        }
        owner.board.show(State::Waiting);
    }
}

/// The next to connect and say something; `None` if nobody does for a while.
fn greet_next(listener: &Listener, lobby: &mut Lobby) -> Option<Caller> {
    match lobby.hear(listener, LOOK_EVERY)? {
        Ok(caller) => Some(caller),
        Err(cause) => {
            info!("somebody connected: {}", super::chain_of(&cause));
            None
        }
    }
}

fn show(owner: &Owner, state: State, progress: &Progress) {
    owner.board.show_migration(state, Arc::new(Mutex::new(progress.clone())));
}

/// What there is to go on with after somebody has called.
#[derive(Debug)]
enum Came {
    /// A guest.
    Guest(Box<Prepared>),
    /// Somebody may have more to say.
    Line(Line),
}

/// Receives a guest whole, or says why it does not come.
fn prepare(
    caller: Caller,
    listener: &Listener,
    options: &ReceiveOptions,
    owner: &Owner,
) -> Option<Came> {
    owner.board.show(State::Receiving);
    let platform = options.platform.as_ref().map(|platform| &platform.kind);
    let mut journal = |vm: VmId| {
        let directory = owner.options.journal.as_deref();
        open_journal(directory, vm, Side::Destination).map_err(IoError::other)
    };
    let silence = options.silence;
    let output = &owner.output;
    let mut host = Host { platform, output, journal: &mut journal, silence };
    let mut watch = |sight: &Sight<'_>| {
        show(owner, State::Receiving, sight.progress);
        let _why = owner.inbox.interruption(&owner.board)?;
        Some(Wish::Cancel(Reason::new("receiving was stopped")))
    };
    let received = receive(caller, listener, &mut host, &mut watch);
    if !matches!(received, Ok(Received::Guest(_))) {
        owner.board.show(State::Waiting);
    }
    match received {
        Ok(Received::Guest(prepared)) => {
            info!("{} has arrived", prepared.transfer);
            return Some(Came::Guest(prepared));
        }
        Ok(Received::Answered(transfer, because, line)) => {
            notice!("sevferry: the source of {transfer} asks for it: {because}");
            return Some(Came::Line(line));
        }
        Ok(Received::Settled(transfer)) => {
            info!("the source of {transfer} has no more to ask");
        }
        Ok(Received::Asked(transfer, against)) => {
            let answer = match against {
                0 => "it would be taken".to_owned(),
                count => format!("it would be refused, for {count} reasons"),
            };
            notice!("sevferry: somebody asks about {transfer}: {answer}");
        }
        Err(cause) if cause.is_the_sources_wish() => notice!("sevferry: {cause}"),
        Err(cause) => {
            notice!("sevferry: a guest was refused: {}", super::chain_of(&cause));
        }
    }
    None
}
