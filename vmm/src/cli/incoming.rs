//! A guest on its way in: what the owner does while nothing runs yet.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::info;

use super::inbox::Interruption;
use super::journals::open_journal;
use super::migration_arguments::ReceiveOptions;
use super::owner::{Owner, serial_output};
use super::receive::ReceiveError;
use crate::control::api::{Outcome, Progress, State};
use crate::machine::RunningMachine;
use crate::migration::destination::{Host, Prepared, receive};
use crate::migration::handover::Destination;
use crate::migration::journal::Side;
use crate::migration::progress::Phase;
use crate::migration::taking_over::take_over;
use crate::migration::{Listener, Stream};

/// How often the user's wish to end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Takes over the guest that comes; `None` if the user ended the wait. A guest that cannot be taken
/// stays where it is, and the next one is waited for.
///
/// # Errors
/// [`ReceiveError`] if this host cannot wait, or the guest that it owns cannot run.
pub(super) fn receive_guest(
    listener: &Listener,
    options: &ReceiveOptions,
    owner: &Owner,
) -> Result<Option<(RunningMachine, Destination)>, ReceiveError> {
    loop {
        if owner.inbox.interruption(&owner.board).is_some() {
            return Ok(None);
        }
        let Some(source) = listener.accept(LOOK_EVERY).map_err(ReceiveError::Accept)? else {
            continue;
        };
        let Some(prepared) = prepare(source, listener, options, owner) else { continue };
        let (transfer, reception) = (prepared.transfer, prepared.reception.clone());
        show(owner, State::Receiving, reception.now());
        let mut journal =
            open_journal(owner.options.journal.as_deref(), transfer.vm, Side::Destination)?;
        owner.board.show(State::InDoubt);
        let mut resolved = || match owner.inbox.interruption(&owner.board)? {
            Interruption::Resolved(resolution) => Some(resolution),
            Interruption::GuestStopped | Interruption::Quit | Interruption::Cancelled => None,
        };
        let taken = take_over(prepared, listener, &mut journal, &owner.events, &mut resolved)
            .map_err(ReceiveError::Vcpu)?;
        if let Some(taken) = taken {
            let done = Progress { phase: Phase::Done, ..reception.now().clone() };
            show(owner, State::Receiving, &done);
            eprintln!("sevferry: {}", reception.summary(Outcome::Moved));
            owner.adopt(transfer);
            return Ok(Some(taken));
        }
        owner.board.show(State::Waiting);
    }
}

fn show(owner: &Owner, state: State, progress: &Progress) {
    owner.board.show_migration(state, Arc::new(Mutex::new(progress.clone())));
}

/// Receives a guest whole, or says why it was refused.
fn prepare(
    source: Stream,
    listener: &Listener,
    options: &ReceiveOptions,
    owner: &Owner,
) -> Option<Prepared> {
    owner.board.show(State::Receiving);
    let platform = options.platform.as_ref().map(|platform| &platform.kind);
    let mut output = || serial_output(&options.serial).map_err(std::io::Error::other);
    let mut host = Host { platform, output: &mut output };
    let mut look_up = |progress: &Progress| {
        show(owner, State::Receiving, progress);
        owner.inbox.interruption(&owner.board).is_some()
    };
    match receive(source, listener, &mut host, &mut look_up) {
        Ok(prepared) => {
            info!("{} has arrived", prepared.transfer);
            Some(prepared)
        }
        Err(cause) => {
            eprintln!("sevferry: a guest was refused: {}", super::chain_of(&cause));
            owner.board.show(State::Waiting);
            None
        }
    }
}
