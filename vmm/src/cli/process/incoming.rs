//! Waits for a guest, and takes it over.

use std::io::Error as IoError;
use std::time::Duration;

use log::info;

use super::guest_process::GuestProcess;
use super::journals::open_journal;
use super::watcher::Watcher;
use crate::cli::arguments::ReceiveOptions;
use crate::control::api::{Outcome, Resolution, State};
use crate::machine::RunningMachine;
use crate::migration::destination::{
    Answering, Prepared, ReceiveConfig, Received, Taken, receive, take_over,
};
use crate::migration::journal::Side;
use crate::migration::wire::{NotRunning, Transfer, VmId};
use crate::migration::{Caller, Line, Listener, Lobby};
use crate::text::chain_of;
use crate::vcpu::VcpuError;

/// How often to check whether the user wants to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Takes over the next guest that comes; `None` if the user ended the wait. A guest that cannot be taken stays at its
/// source, and this waits for the next.
///
/// # Errors
/// [`VcpuError`] if the guest that this host owns cannot run.
pub(crate) fn receive_guest(
    listener: &Listener,
    options: &ReceiveOptions,
    process: &GuestProcess,
) -> Result<Option<(RunningMachine, Answering)>, VcpuError> {
    let (mut calls_again, mut lobby, mut told) = (None, Lobby::new(options.silence), None);
    loop {
        if process.inbox.wish().is_some() {
            return Ok(None);
        }
        let caller = match calls_again.take() {
            Some(caller) => caller,
            None => match greet_next(listener, &mut lobby) {
                Some(caller) => caller,
                None => continue,
            },
        };
        let mut watcher = Watcher::new(process, State::Receiving);
        let prepared = match prepare(caller, listener, options, &mut watcher, process) {
            Some(Came::Guest(prepared)) => prepared,
            Some(Came::Answered(transfer, because, line)) => {
                // A source that waits for a person's decision asks every second.
                if told.replace((transfer, because)) != Some((transfer, because)) {
                    notice!("sevferry: the source of {transfer} asks for it: {because}");
                }
                lobby.let_back_in(line);
                continue;
            }
            None => continue,
        };
        let (transfer, account) = (prepared.transfer, prepared.account.clone());
        watcher.show(account.now());
        // From here on quitting is refused. Requests that came before this must be handled before it.
        if process.inbox.wish().is_some() {
            prepared.refuse("receiving was stopped");
            return Ok(None);
        }
        process.board.show(State::InDoubt);
        let taken = take_over(*prepared, listener, &process.events, &mut watcher)?;
        match taken {
            Taken::Runs(machine, answering) => {
                process.inbox.settle_decision(Resolution::Keep);
                process.board.show(State::Receiving);
                watcher.show(account.now());
                watcher.end();
                eprintln!("sevferry: {}", account.summary(Outcome::Moved));
                process.adopt(transfer);
                return Ok(Some((*machine, *answering)));
            }
            Taken::Dropped(anew, line) => {
                process.inbox.settle_decision(Resolution::Discard);
                notice!("sevferry: {transfer} was dropped here; waiting for a guest");
                calls_again = anew.map(|caller| *caller);
                line.into_iter().for_each(|line| lobby.let_back_in(line));
            }
        }
        process.board.show(State::Waiting);
    }
}

/// The next connection with a first message; `None` if there is none for a while.
fn greet_next(listener: &Listener, lobby: &mut Lobby) -> Option<Caller> {
    match lobby.hear(listener, LOOK_EVERY)? {
        Ok(caller) => Some(caller),
        Err(cause) => {
            info!("somebody connected: {}", chain_of(&cause));
            None
        }
    }
}

/// The result of a connection.
#[derive(Debug)]
enum Came {
    /// A guest.
    Guest(Box<Prepared>),
    /// The source of an earlier guest was answered, and may have more to say.
    Answered(Transfer, NotRunning, Line),
}

/// Receives a guest completely, or says why it does not come.
fn prepare(
    caller: Caller,
    listener: &Listener,
    options: &ReceiveOptions,
    watcher: &mut Watcher<'_>,
    process: &GuestProcess,
) -> Option<Came> {
    process.board.show(State::Receiving);
    let platform = options.platform.as_ref().map(|platform| &platform.kind);
    let mut journal = |vm: VmId| {
        let directory = process.options.journal.as_deref();
        open_journal(directory, vm, Side::Destination).map_err(IoError::other)
    };
    let silence = options.silence;
    let (devices, output) = (&options.devices, &process.output);
    let mut host = ReceiveConfig { platform, devices, output, journal: &mut journal, silence };
    let received = receive(caller, listener, &mut host, watcher);
    if !matches!(received, Ok(Received::Guest(_))) {
        process.board.show(State::Waiting);
    }
    match received {
        Ok(Received::Guest(prepared)) => {
            info!("{} has arrived", prepared.transfer);
            return Some(Came::Guest(prepared));
        }
        Ok(Received::Answered(transfer, because, line)) => {
            return Some(Came::Answered(transfer, because, line));
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
            notice!("sevferry: a guest was refused: {}", chain_of(&cause));
        }
    }
    None
}
