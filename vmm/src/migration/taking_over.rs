//! The destination's handover: carries out what `handover/destination.rs` decides.

use std::collections::VecDeque;
use std::io::Error as IoError;
use std::sync::mpsc::Sender;
use std::thread::Builder;
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
    let lobby = Lobby::new(link.silence());
    let mut source = Source { link: Some(link), lobby, anew: None };
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
        let sent = self.link.as_mut().map(|link| link.say(&say.into()));
        if !matches!(sent, Some(Ok(()))) {
            debug!("the source is not there to be told; it will ask again");
            self.link = None;
        }
    }

    /// What it says next, on its connection or on a new one: the old one may be stuck for ever.
    fn next_input(&mut self, listener: &Listener, transfer: Transfer) -> Option<DestinationInput> {
        if let Some(link) = &mut self.link {
            match link.hear(Due::COMMIT, LOOK_UP) {
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
            None => None,
            Some(Ok(caller)) => self.hear(caller, transfer),
            Some(Err(cause)) => {
                info!("somebody connected: {cause}");
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
            caller.link.say(&answer.into()).unwrap_or_default();
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
/// that ends with the process. Who connects may be silent for `silence`.
///
/// # Errors
/// If the host has no thread to give.
pub fn keep_answering(
    listener: Listener,
    side: Destination,
    silence: Duration,
) -> Result<(), IoError> {
    let answer = move || {
        let mut lobby = Lobby::new(silence);
        loop {
            match lobby.hear(&listener, Duration::from_secs(3600)) {
                None => {}
                Some(Ok(caller)) => answer_one(caller, side),
                Some(Err(cause)) => debug!("somebody connected: {cause}"),
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
            && let Err(cause) = caller.link.say(&say.into())
        {
            debug!("{cause}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::env::{current_exe, var};
    use std::fs::read_dir;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::migration::endpoint::Endpoint;
    use crate::migration::handover::Step;
    use crate::migration::message::VmId;
    use crate::migration::transport::Stream;

    const SOON: Duration = Duration::from_secs(60);

    /// Tells the process that this test starts where it is to answer.
    const SOCKET: &str = "SEVFERRY_TEST_ANSWERS_AT";

    const TEST: &str = "migration::taking_over::tests::answering_survives_a_lack_of_descriptors";

    fn transfer() -> Transfer {
        Transfer { vm: VmId([4; 16]), epoch: 2 }
    }

    /// Answers for a guest until it is killed, or has nobody left to answer.
    fn answer_at(socket: &str) {
        let listener = Listener::bind(&socket.parse().unwrap()).unwrap();
        let side = Destination::recovered(transfer(), Some(Step::Owner));
        keep_answering(listener, side, SOON).unwrap();
        std::thread::park_timeout(SOON * 2);
    }

    /// Killed, however its test ends.
    struct Answering(Child);

    impl Drop for Answering {
        fn drop(&mut self) {
            self.0.kill().unwrap_or_default();
            self.0.wait().unwrap();
        }
    }

    impl Answering {
        fn allow_descriptors(&self, most: u64) {
            let limit = Rlimit { current: Some(most), maximum: Some(1024) };
            prlimit(Some(Pid::from_child(&self.0)), Resource::Nofile, limit).unwrap();
        }
    }

    fn link(to: &Endpoint) -> Link {
        Link::new(Stream::connect(to, SOON, &|| true).unwrap(), SOON)
    }

    /// A source in doubt is answered also after the host has had no descriptor for it for a while,
    /// because strangers had them all: in a real process with a real limit.
    #[test]
    fn answering_survives_a_lack_of_descriptors() {
        if let Ok(socket) = var(SOCKET) {
            return answer_at(&socket);
        }
        let directory = TempDir::new().unwrap();
        let socket = format!("unix:{}", directory.as_path().join("b").display());
        let mut child = Command::new(current_exe().unwrap());
        child.args(["--exact", TEST]).env(SOCKET, &socket).stdout(Stdio::null());
        let child = Answering(child.spawn().unwrap());
        let to: Endpoint = socket.parse().unwrap();
        let begun = Instant::now();
        while Stream::connect(&to, SOON, &|| true).is_err() {
            assert!(begun.elapsed() < SOON, "it does not listen");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let open = read_dir(format!("/proc/{}/fd", child.0.id())).unwrap().count();
        child.allow_descriptors(u64::try_from(open).unwrap() + 2);
        let mut strangers: Vec<_> = (0..12).map(|_| link(&to)).collect();
        // Being told so is the proof that the limit was met.
        let crowded = strangers[0].answer(Due::REFUSAL, SOON).unwrap_err().to_string();
        assert!(crowded.contains("too many connections at once"), "{crowded}");
        let mut source = link(&to);
        source.say(&Message::Commit(transfer())).unwrap();
        let answer = source.answer(Due::VERDICT, SOON).unwrap();
        let because = NotRunning::Crashed;
        assert_eq!(answer, Message::NotRunning { transfer: transfer(), because });
    }
}
