//! The destination's handover: carries out what `handover/destination.rs` decides.

use std::collections::VecDeque;
use std::io::Error as IoError;
use std::sync::mpsc::Sender;
use std::thread::Builder;
use std::time::Duration;

use log::{debug, info, warn};

use super::destination::Prepared;
use super::handover::{
    Destination, DestinationInput, DestinationOutput, DestinationState, Resolution,
};
use super::journal::Journal;
use super::link::{Due, Link};
use super::message::{Message, Transfer};
use super::transport::{Listener, Stream};
use crate::machine::RunningMachine;
use crate::vcpu::{Stop, VcpuError};

/// How often waiting looks up.
const LOOK_UP: Duration = Duration::from_millis(50);

/// How long a peer may take for the one message of a new connection.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// Waits until the guest is this host's, and runs it; `None` if it never is.
///
/// `resolved` is asked now and then whether a person has decided. The source may lose its
/// connection and come back by `listener`.
///
/// # Errors
/// [`VcpuError`] if the guest cannot be started.
pub fn take_over<E>(
    prepared: Prepared,
    listener: &Listener,
    journal: &mut Journal,
    events: &Sender<E>,
    resolved: &mut dyn FnMut() -> Option<Resolution>,
) -> Result<Option<(RunningMachine, Destination)>, VcpuError>
where
    E: From<Stop> + Send + 'static,
{
    let Prepared { machine, link, transfer, .. } = prepared;
    let (mut paused, mut running, mut link) = (Some(machine), None, Some(link));
    let (mut side, outputs) = Destination::new(transfer);
    let (mut outputs, mut inputs) = (VecDeque::from(outputs), VecDeque::new());
    loop {
        while let Some(output) = outputs.pop_front() {
            match output {
                DestinationOutput::WriteJournal(step) => {
                    let written = journal.append(transfer, step, "source");
                    if let Err(cause) = &written {
                        warn!("{cause}");
                    }
                    inputs.push_back(match written {
                        Ok(()) => DestinationInput::JournalWritten,
                        Err(_) => DestinationInput::JournalFailed,
                    });
                }
                DestinationOutput::Send(say) => {
                    let sent = link.as_mut().map(|link| link.send(&say.into()));
                    if !matches!(sent, Some(Ok(()))) {
                        debug!("the source is not there to be told; it will ask again");
                        link = None;
                    }
                }
                DestinationOutput::RunGuest => {
                    running = paused.take().map(|paused| paused.resume(events)).transpose()?;
                }
                DestinationOutput::TearDown => paused = None,
                DestinationOutput::Refuse(refusal) => warn!("{refusal}"),
            }
        }
        match side.state {
            DestinationState::Running => return Ok(running.map(|running| (running, side))),
            DestinationState::Dropped(because) => {
                info!("the guest was dropped here: {because}");
                return Ok(None);
            }
            DestinationState::Prepared
            | DestinationState::Owning { .. }
            | DestinationState::Discarding => {}
        }
        let input = inputs.pop_front().or_else(|| match resolved() {
            Some(resolution) => Some(DestinationInput::Resolve(resolution)),
            None => next_input(&mut link, listener, transfer),
        });
        if let Some(input) = input {
            let (next, more) = side.on(input);
            (side, outputs) = (next, more.into());
        }
    }
}

/// What the source says next, on its connection or on a new one.
fn next_input(
    link: &mut Option<Link>,
    listener: &Listener,
    transfer: Transfer,
) -> Option<DestinationInput> {
    let received = match link.as_mut() {
        Some(link) => link.receive(Due::COMMIT, LOOK_UP, &mut || false),
        None => match listener.accept(LOOK_UP) {
            Ok(None) => return None,
            Ok(Some(stream)) => {
                info!("the source of {transfer} may be back");
                link.insert(Link::new(stream)).receive(Due::COMMIT, GREETING_MAX, &mut || false)
            }
            Err(cause) => {
                warn!("accepting a connection: {cause}");
                return None;
            }
        },
    };
    match received {
        Ok(None) => None,
        Ok(Some(Message::Commit(named))) => Some(DestinationInput::Commit(named)),
        Ok(Some(Message::Abandon { transfer, reason })) => {
            info!("the source keeps the guest: {reason}");
            Some(DestinationInput::Abandon(transfer))
        }
        Ok(Some(Message::Offer(offer))) => {
            *link = None;
            Some(DestinationInput::Offered(offer.transfer))
        }
        Ok(Some(other)) => {
            warn!("the source sent {:?} during the handover", other.kind());
            *link = None;
            None
        }
        Err(cause) => {
            info!("{cause}; the guest waits here for its source to come back");
            *link = None;
            None
        }
    }
}

/// Goes on answering a source that did not hear that its guest runs here, on a thread of its own
/// that ends with the process.
///
/// # Errors
/// If the host has no thread to give.
pub fn keep_answering(listener: Listener, side: Destination) -> Result<(), IoError> {
    let answer = move || {
        loop {
            match listener.accept(Duration::from_secs(3600)) {
                Ok(None) => {}
                Ok(Some(stream)) => answer_one(stream, side),
                Err(cause) => {
                    warn!("accepting a connection: {cause}");
                    return;
                }
            }
        }
    };
    Builder::new().name("answer".to_owned()).spawn(answer).map(|_detached| ())
}

fn answer_one(stream: Stream, side: Destination) {
    let mut link = Link::new(stream);
    let Ok(Some(Message::Commit(transfer))) =
        link.receive(Due::COMMIT, GREETING_MAX, &mut || false)
    else {
        return;
    };
    let (_, outputs) = side.on(DestinationInput::Commit(transfer));
    for output in outputs {
        if let DestinationOutput::Send(say) = output
            && let Err(cause) = link.send(&say.into())
        {
            debug!("{cause}");
        }
    }
}
