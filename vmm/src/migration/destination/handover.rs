//! The destination's handover: carries out what `handover/destination.rs` decides.

use std::convert::Infallible;
use std::io::Error as IoError;
use std::sync::mpsc::Sender;
use std::thread::Builder;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::recall::UNPROVEN;
use super::received::Prepared;
use crate::machine::{PausedMachine, RunningMachine};
use crate::migration::handover::journal::{Journal, JournalError, forget};
use crate::migration::handover::{
    Destination, DestinationInput, DestinationOutput, DestinationState, Step, advance, carry_out,
};
use crate::migration::net::{Caller, Due, Line, Link, Listener, Lobby};
use crate::migration::watch::{Sight, Watch, Wish};
use crate::migration::wire::{Message, Say, VmId, Word};
use crate::text::chain_of;
use crate::vcpu::{Stop, VcpuError};

/// How often a wait calls the watch.
const LOOK_UP: Duration = Duration::from_millis(50);

/// How long a source may take to answer that it has heard that its guest runs here.
const LAST_WORD_MAX: Duration = Duration::from_secs(60);

/// After this time without a question about a guest that runs here, answering ends.
const IDLE: Duration = Duration::from_secs(3600);

/// How a handover ended here.
#[derive(Debug)]
pub enum Taken {
    /// The guest runs here.
    Runs(Box<RunningMachine>, Box<Answering>),
    /// The guest was dropped. Its source may already offer it again, or have a last word.
    Dropped(Option<Box<Caller>>, Option<Line>),
}

/// What is left to do for a source while its guest runs here: see [`keep_answering`].
#[derive(Debug)]
pub struct Answering {
    half: Destination,
    source: HeardSource,
}

/// Waits until it is decided who owns the guest. Runs the guest if it is this host, and drops it otherwise.
///
/// The source may lose its connection and connect again to `listener`. A person may decide through `watch`. Nothing
/// can be cancelled any more.
///
/// # Errors
/// [`VcpuError`] if the guest cannot be started.
pub fn take_over<E>(
    prepared: Prepared,
    listener: &Listener,
    events: &Sender<E>,
    watch: &mut dyn Watch,
) -> Result<Taken, VcpuError>
where
    E: From<Stop> + Send + 'static,
{
    let Prepared { machine, link, mut journal, transfer, secret, account } = prepared;
    let (mut paused, mut running, mut refused) = (Some(machine), None, None);
    let lobby = Lobby::new(link.silence());
    let mut source = HeardSource { link: Some(link), lobby, anew: None };
    let (mut half, mut first) = Destination::new(transfer, secret);
    let mut input = None;
    loop {
        let mut perform = |half: &Destination, output: DestinationOutput| {
            match output {
                DestinationOutput::WriteJournal(step) => {
                    if step == Step::Owner && !holds(paused.as_ref()) {
                        return Ok(Some(DestinationInput::JournalFailed));
                    }
                    let input = written(journal.append(transfer, secret, step, "source"));
                    if input == DestinationInput::JournalFailed {
                        paused.iter().for_each(PausedMachine::let_go);
                    }
                    return Ok(Some(input));
                }
                DestinationOutput::Send(say) => source.tell(half.word(say)),
                DestinationOutput::RunGuest => {
                    running = paused.take().map(|paused| paused.resume(events)).transpose()?;
                }
                DestinationOutput::TearDown => paused = None,
                DestinationOutput::Forget => forget(&mut journal, transfer),
                DestinationOutput::Refuse(refusal) => refused = Some(refusal),
            }
            Ok::<_, VcpuError>(None)
        };
        match input.take() {
            Some(input) => advance(&mut half, input, &mut perform)?,
            None => carry_out(&mut half, std::mem::take(&mut first), &mut perform)?,
        }
        match (half.state, running.take()) {
            (DestinationState::Running, Some(machine)) => {
                let answering = Answering { half, source };
                return Ok(Taken::Runs(Box::new(machine), Box::new(answering)));
            }
            (DestinationState::Dropped(because), _) => {
                info!("the guest was dropped here: {because}");
                return Ok(Taken::Dropped(source.anew.map(Box::new), source.link.map(Line)));
            }
            _ => {}
        }
        let sight = Sight { progress: account.now(), in_doubt: true, refused: refused.take() };
        input = match watch.look(&sight) {
            Some(Wish::Resolve(resolution)) => Some(DestinationInput::Resolve(resolution)),
            // The source may commit the guest at any moment, so only a decision ends the doubt.
            Some(Wish::Cancel(_)) | None => source.next_input(listener, &half, LOOK_UP),
        };
    }
}

/// Whether what only one guest may have, as the locks of its disks, could be taken: the source has let
/// go of it. Otherwise the guest is given back.
fn holds(machine: Option<&PausedMachine>) -> bool {
    match machine.map(PausedMachine::hold) {
        Some(Err(cause)) => {
            warn!("the guest cannot run here: {}", chain_of(&cause));
            false
        }
        Some(Ok(())) | None => true,
    }
}

fn written(result: Result<(), JournalError>) -> DestinationInput {
    match result {
        Ok(()) => DestinationInput::JournalWritten,
        Err(cause) => {
            warn!("{}", chain_of(&cause));
            DestinationInput::JournalFailed
        }
    }
}

/// The connections on which the source may speak.
#[derive(Debug)]
struct HeardSource {
    link: Option<Link>,
    /// New connections. One of them may be the source's, if it has lost its old one.
    lobby: Lobby,
    /// The source offers the same guest again.
    anew: Option<Caller>,
}

impl HeardSource {
    fn tell(&mut self, word: Word) {
        let sent = self.link.as_mut().map(|link| link.say(&word.into()));
        if !matches!(sent, Some(Ok(()))) {
            debug!("the source is not there to be told; it will ask again");
            self.link = None;
        }
    }

    /// The source's next word, on its connection or on a new one, because the old one may be stuck for ever. `None`
    /// if there is none within `patience`.
    fn next_input(
        &mut self,
        listener: &Listener,
        half: &Destination,
        patience: Duration,
    ) -> Option<DestinationInput> {
        if let Some(link) = &mut self.link {
            match link.hear(Due::COMMIT, LOOK_UP.min(patience)) {
                Ok(None) => {}
                Ok(Some(Message::Word(word))) => match half.hear(&word) {
                    Some(input) => {
                        if let Say::Abandon(reason) = &word.say {
                            info!("the source keeps the guest: {reason}");
                        }
                        return Some(input);
                    }
                    None => {
                        warn!("the source cannot prove its word on the guest");
                        self.link = None;
                    }
                },
                Ok(Some(other)) => {
                    warn!("the source sent {:?} during the handover", other.kind());
                    self.link = None;
                }
                Err(cause) => {
                    info!("{cause}; it may come back");
                    self.link = None;
                }
            }
        }
        let patience = if self.link.is_some() { Duration::ZERO } else { patience };
        match self.lobby.hear(listener, patience) {
            None => None,
            Some(Ok(caller)) => self.hear(caller, half),
            Some(Err(cause)) => {
                info!("somebody connected: {cause}");
                None
            }
        }
    }

    /// A new connection, of the source or of another peer.
    fn hear(&mut self, caller: Caller, half: &Destination) -> Option<DestinationInput> {
        if let Message::Word(word) = &caller.first {
            let input = half.hear(word);
            match input {
                Some(DestinationInput::Commit { .. }) => {
                    info!("the source of {} is back", half.transfer);
                    self.link = Some(caller.link);
                }
                Some(_) => {}
                None => caller.refuse(UNPROVEN),
            }
            return input;
        }
        if half.state == DestinationState::Running {
            caller.refuse(RUNS);
            return None;
        }
        let mut abandon = None;
        if let Message::Offer(offer) = &caller.first {
            // The guest that is here is offered again, so its source has kept it.
            abandon = offer.abandons().find_map(|word| half.hear(&word));
        }
        match abandon {
            Some(_) => self.anew = Some(caller),
            None => caller.refuse(KEEPS),
        }
        abandon
    }
}

/// The answer to every other offer.
const RUNS: &str = "a guest runs here already: this process takes no other";
const KEEPS: &str = "this host keeps a guest until its source commits it, offers it anew with a proof \
     that it is its source, or `sevferry resolve` decides here";

/// Goes on answering a source that did not hear that its guest runs here, on a thread of its own that ends with the
/// process. `journal` opens the guest's journal. It is removed when the source has no more to ask.
///
/// # Errors
/// If the host has no thread to give.
pub fn keep_answering(
    listener: Listener,
    answering: Answering,
    mut journal: impl FnMut(VmId) -> Result<Journal, IoError> + Send + 'static,
) -> Result<(), IoError> {
    let Answering { mut half, mut source } = answering;
    let answer = move || {
        let mut said = Instant::now();
        loop {
            if said.elapsed() > LAST_WORD_MAX {
                source.link = None;
            }
            let Some(input) = source.next_input(&listener, &half, IDLE) else { continue };
            said = Instant::now();
            let mut perform = |half: &Destination, output: DestinationOutput| {
                match output {
                    DestinationOutput::Send(say) => source.tell(half.word(say)),
                    DestinationOutput::Forget => {
                        match journal(half.transfer.vm) {
                            Ok(mut journal) => forget(&mut journal, half.transfer),
                            Err(cause) => debug!("forgetting {}: {cause}", half.transfer),
                        }
                        source.link = None;
                    }
                    // The guest runs already, and no person decides here.
                    DestinationOutput::WriteJournal(_)
                    | DestinationOutput::RunGuest
                    | DestinationOutput::TearDown
                    | DestinationOutput::Refuse(_) => {}
                }
                Ok::<_, Infallible>(None)
            };
            let Ok(()) = advance(&mut half, input, &mut perform);
        }
    };
    Builder::new().name("answer".to_owned()).spawn(answer).map(|_detached| ())
}

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;
