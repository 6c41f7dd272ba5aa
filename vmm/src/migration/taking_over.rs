//! The destination's handover: carries out what `handover/destination.rs` decides.

use std::collections::VecDeque;
use std::io::Error as IoError;
use std::sync::mpsc::Sender;
use std::thread::{Builder, park_timeout};
use std::time::Duration;

use log::{debug, info, warn};

use super::caller::Caller;
use super::destination::Prepared;
use super::handover::{
    Destination, DestinationInput, DestinationOutput, DestinationState, Refusal, Resolution, Say,
};
use super::journal::JournalError;
use super::link::{Due, Link};
use super::lobby::Lobby;
use super::message::{Message, NotRunning, Transfer};
use super::transport::Listener;
use crate::machine::RunningMachine;
use crate::vcpu::{Stop, VcpuError};

/// How often waiting looks up.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Asked now and then whether a person has decided; is told why that was refused, if it was.
pub type Decisions<'a> = dyn FnMut(Option<Refusal>) -> Option<Resolution> + 'a;

/// How a handover ended here.
#[derive(Debug)]
pub enum Taken {
    /// The guest runs here.
    Runs(Box<RunningMachine>, Destination),
    /// The guest was dropped; its source may already offer it anew.
    Dropped(Option<Caller>),
}

/// Waits until the guest is this host's, and runs it, or it is not to be.
///
/// The source may lose its connection and come back by `listener`.
///
/// # Errors
/// [`VcpuError`] if the guest cannot be started.
pub fn take_over<E>(
    prepared: Prepared,
    listener: &Listener,
    events: &Sender<E>,
    decided: &mut Decisions<'_>,
) -> Result<Taken, VcpuError>
where
    E: From<Stop> + Send + 'static,
{
    let Prepared { machine, link, mut journal, transfer, .. } = prepared;
    let (mut paused, mut running, mut refused) = (Some(machine), None, None);
    let mut source = Source { link: Some(link), lobby: Lobby::new(), anew: None };
    let (mut side, outputs) = Destination::new(transfer);
    let (mut outputs, mut inputs) = (VecDeque::from(outputs), VecDeque::new());
    loop {
        while let Some(output) = outputs.pop_front() {
            match output {
                DestinationOutput::WriteJournal(step) => {
                    inputs.push_back(written(journal.append(transfer, step, "source")));
                }
                DestinationOutput::Send(say) => source.tell(say),
                DestinationOutput::RunGuest => {
                    running = paused.take().map(|paused| paused.resume(events)).transpose()?;
                }
                DestinationOutput::TearDown => paused = None,
                DestinationOutput::Refuse(refusal) => refused = Some(refusal),
            }
        }
        match (side.state, running.take()) {
            (DestinationState::Running, Some(machine)) => {
                return Ok(Taken::Runs(Box::new(machine), side));
            }
            (DestinationState::Dropped(because), _) => {
                info!("the guest was dropped here: {because}");
                return Ok(Taken::Dropped(source.anew));
            }
            _ => {}
        }
        let input = inputs.pop_front().or_else(|| match decided(refused.take()) {
            Some(resolution) => Some(DestinationInput::Resolve(resolution)),
            None => source.next_input(listener, transfer),
        });
        if let Some(input) = input {
            let (next, more) = side.on(input);
            (side, outputs) = (next, more.into());
        }
    }
}

fn written(result: Result<(), JournalError>) -> DestinationInput {
    match result {
        Ok(()) => DestinationInput::JournalWritten,
        Err(cause) => {
            warn!("{}", super::chain_of(&cause));
            DestinationInput::JournalFailed
        }
    }
}

/// The source, as far as it can be heard.
struct Source {
    link: Option<Link>,
    /// Who else connects; it may be the source, which has lost its connection.
    lobby: Lobby,
    /// It offers the same guest anew.
    anew: Option<Caller>,
}

impl Source {
    fn tell(&mut self, say: Say) {
        let sent = self.link.as_mut().map(|link| link.send(&say.into()));
        if !matches!(sent, Some(Ok(()))) {
            debug!("the source is not there to be told; it will ask again");
            self.link = None;
        }
    }

    /// What it says next, on its connection or on a new one: the old one may be stuck for ever.
    fn next_input(&mut self, listener: &Listener, transfer: Transfer) -> Option<DestinationInput> {
        if let Some(link) = &mut self.link {
            match link.receive(Due::COMMIT, LOOK_UP, &mut || false) {
                Ok(None) => {}
                Ok(Some(Message::Commit(named))) => return Some(DestinationInput::Commit(named)),
                Ok(Some(Message::Abandon { transfer, reason })) => {
                    info!("the source keeps the guest: {reason}");
                    return Some(DestinationInput::Abandon(transfer));
                }
                Ok(Some(other)) => {
                    warn!("the source sent {:?} during the handover", other.kind());
                    self.link = None;
                }
                Err(cause) => {
                    info!("{cause}; the guest waits here for its source to come back");
                    self.link = None;
                }
            }
        }
        let patience = if self.link.is_some() { Duration::ZERO } else { LOOK_UP };
        match self.lobby.hear(listener, patience) {
            Ok(None) => None,
            Ok(Some(Ok(caller))) => self.hear(caller, transfer),
            Ok(Some(Err(cause))) => {
                info!("somebody connected: {cause}");
                None
            }
            Err(cause) => {
                warn!("accepting a connection: {cause}");
                park_timeout(LOOK_UP);
                None
            }
        }
    }

    /// A new connection, of the source or of somebody else.
    fn hear(&mut self, mut caller: Caller, transfer: Transfer) -> Option<DestinationInput> {
        if let Message::Commit(named) = caller.first {
            if named == transfer {
                info!("the source of {transfer} is back");
                self.link = Some(caller.link);
                return Some(DestinationInput::Commit(transfer));
            }
            let answer = Say::NotRunning(named, NotRunning::Unknown);
            // Whoever it is asks again.
            caller.link.send(&answer.into()).unwrap_or_default();
            return None;
        }
        if let Message::Abandon { transfer: named, .. } = caller.first {
            return Some(DestinationInput::Abandon(named));
        }
        if let Message::Offer(offer) = &caller.first
            && offer.transfer.vm == transfer.vm
        {
            let offered = DestinationInput::Offered(offer.transfer);
            if offer.transfer > transfer {
                self.anew = Some(caller);
            } else {
                caller.refuse("this host has that guest from a later attempt");
            }
            return Some(offered);
        }
        caller.refuse("this host keeps another guest until its source commits it");
        None
    }
}

/// Goes on answering a source that did not hear that its guest runs here, on a thread of its own
/// that ends with the process.
///
/// # Errors
/// If the host has no thread to give.
pub fn keep_answering(listener: Listener, side: Destination) -> Result<(), IoError> {
    let answer = move || {
        let mut lobby = Lobby::new();
        loop {
            match lobby.hear(&listener, Duration::from_secs(3600)) {
                Ok(None) => {}
                Ok(Some(Ok(caller))) => answer_one(caller, side),
                Ok(Some(Err(cause))) => debug!("somebody connected: {cause}"),
                Err(cause) => {
                    warn!("accepting a connection: {cause}");
                    return;
                }
            }
        }
    };
    Builder::new().name("answer".to_owned()).spawn(answer).map(|_detached| ())
}

fn answer_one(mut caller: Caller, side: Destination) {
    let Message::Commit(transfer) = caller.first else {
        caller.refuse("a guest runs here already: this process takes no other");
        return;
    };
    let (_, outputs) = side.on(DestinationInput::Commit(transfer));
    for output in outputs {
        if let DestinationOutput::Send(say) = output
            && let Err(cause) = caller.link.send(&say.into())
        {
            debug!("{cause}");
        }
    }
}
