//! The destination's handover: carries out what `handover/destination.rs` decides.

use std::collections::VecDeque;
use std::io::Error as IoError;
use std::sync::mpsc::Sender;
use std::thread::{Builder, park_timeout};
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::caller::{Caller, Line};
use super::destination::Prepared;
use super::handover::{
    Destination, DestinationInput, DestinationOutput, DestinationState, Refusal, Resolution,
};
use super::journal::{Journal, JournalError};
use super::link::{Due, Link};
use super::lobby::Lobby;
use super::message::{Message, VmId};
use super::recall::{UNPROVEN, forget};
use super::transport::Listener;
use super::word::{Say, Word};
use crate::machine::RunningMachine;
use crate::vcpu::{Stop, VcpuError};

/// How often waiting looks up.
const LOOK_UP: Duration = Duration::from_millis(50);

/// How long a source that was told that its guest runs here may take for its last word.
const LAST_WORD_MAX: Duration = Duration::from_secs(60);

/// How long nobody has to come who asks for a guest that runs here.
const IDLE: Duration = Duration::from_secs(3600);

/// Asked now and then whether a person has decided; is told why that was refused, if it was.
pub type Decisions<'a> = dyn FnMut(Option<Refusal>) -> Option<Resolution> + 'a;

/// How a handover ended here.
#[derive(Debug)]
pub enum Taken {
    /// The guest runs here.
    Runs(Box<RunningMachine>, Answering),
    /// The guest was dropped. Its source may already offer it anew, or have a last word.
    Dropped(Option<Caller>, Option<Line>),
}

/// What is left to do for a source while its guest runs here: see [`keep_answering`].
#[derive(Debug)]
pub struct Answering {
    side: Destination,
    source: Source,
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
    let Prepared { machine, link, mut journal, transfer, secret, .. } = prepared;
    let (mut paused, mut running, mut refused) = (Some(machine), None, None);
    let mut source = Source { link: Some(link), lobby: Lobby::new(), anew: None };
    let (mut side, outputs) = Destination::new(transfer, secret);
    let (mut outputs, mut inputs) = (VecDeque::from(outputs), VecDeque::new());
    loop {
        while let Some(output) = outputs.pop_front() {
            match output {
                DestinationOutput::WriteJournal(step) => {
                    inputs.push_back(written(journal.append(transfer, secret, step, "source")));
                }
                DestinationOutput::Send(say) => source.tell(side.word(say)),
                DestinationOutput::RunGuest => {
                    running = paused.take().map(|paused| paused.resume(events)).transpose()?;
                }
                DestinationOutput::TearDown => paused = None,
                DestinationOutput::Forget => forget(&mut journal, transfer),
                DestinationOutput::Refuse(refusal) => refused = Some(refusal),
            }
        }
        match (side.state, running.take()) {
            (DestinationState::Running, Some(machine)) => {
                return Ok(Taken::Runs(Box::new(machine), Answering { side, source }));
            }
            (DestinationState::Dropped(because), _) => {
                info!("the guest was dropped here: {because}");
                return Ok(Taken::Dropped(source.anew, source.link.map(Line)));
            }
            _ => {}
        }
        let input = inputs.pop_front().or_else(|| match decided(refused.take()) {
            Some(resolution) => Some(DestinationInput::Resolve(resolution)),
            None => source.next_input(listener, &side, LOOK_UP),
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
#[derive(Debug)]
struct Source {
    link: Option<Link>,
    /// Who else connects; it may be the source, which has lost its connection.
    lobby: Lobby,
    /// It offers the same guest anew.
    anew: Option<Caller>,
}

impl Source {
    fn tell(&mut self, word: Word) {
        let sent = self.link.as_mut().map(|link| link.send(&word.into()));
        if !matches!(sent, Some(Ok(()))) {
            debug!("the source is not there to be told; it will ask again");
            self.link = None;
        }
    }

    /// What it says next, on its connection or on a new one: the old one may be stuck for ever. Nobody
    /// may say anything for `patience`.
    fn next_input(
        &mut self,
        listener: &Listener,
        side: &Destination,
        patience: Duration,
    ) -> Option<DestinationInput> {
        if let Some(link) = &mut self.link {
            match link.receive(Due::COMMIT, LOOK_UP.min(patience), &mut || false) {
                Ok(None) => {}
                Ok(Some(Message::Word(word))) => match side.hear(&word) {
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
            Ok(None) => None,
            Ok(Some(Ok(caller))) => self.hear(caller, side),
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
    fn hear(&mut self, caller: Caller, side: &Destination) -> Option<DestinationInput> {
        if let Message::Word(word) = &caller.first {
            let input = side.hear(word);
            match input {
                Some(DestinationInput::Commit { .. }) => {
                    info!("the source of {} is back", side.transfer);
                    self.link = Some(caller.link);
                }
                Some(_) => {}
                None => caller.refuse(UNPROVEN),
            }
            return input;
        }
        if side.state == DestinationState::Running {
            caller.refuse(RUNS);
            return None;
        }
        let mut abandon = None;
        if let Message::Offer(offer) = &caller.first {
            // Of the guest that is here, offered anew: so its source has kept it.
            abandon = offer.abandons().find_map(|word| side.hear(&word));
        }
        match abandon {
            Some(_) => self.anew = Some(caller),
            None => caller.refuse(KEEPS),
        }
        abandon
    }
}

/// What others are told who offer a guest.
const RUNS: &str = "a guest runs here already: this process takes no other";
const KEEPS: &str = "this host keeps a guest until its source commits it, offers it anew with a proof \
     that it is its source, or `sevferry resolve` decides here";

/// Goes on answering a source that did not hear that its guest runs here, on a thread of its own
/// that ends with the process. `journal` opens the guest's journal, which goes when the source has no
/// more to ask.
///
/// # Errors
/// If the host has no thread to give.
pub fn keep_answering(
    listener: Listener,
    answering: Answering,
    mut journal: impl FnMut(VmId) -> Result<Journal, IoError> + Send + 'static,
) -> Result<(), IoError> {
    let Answering { mut side, mut source } = answering;
    let answer = move || {
        let mut said = Instant::now();
        loop {
            if said.elapsed() > LAST_WORD_MAX {
                source.link = None;
            }
            let Some(input) = source.next_input(&listener, &side, IDLE) else { continue };
            said = Instant::now();
            let (next, outputs) = side.on(input);
            side = next;
            for output in outputs {
                match output {
                    DestinationOutput::Send(say) => source.tell(side.word(say)),
                    DestinationOutput::Forget => {
                        match journal(side.transfer.vm) {
                            Ok(mut journal) => forget(&mut journal, side.transfer),
                            Err(cause) => debug!("forgetting {}: {cause}", side.transfer),
                        }
                        source.link = None;
                    }
                    // The guest runs: there is nothing to do to it, and nobody asks for more.
                    DestinationOutput::WriteJournal(_)
                    | DestinationOutput::RunGuest
                    | DestinationOutput::TearDown
                    | DestinationOutput::Refuse(_) => {}
                }
            }
        }
    };
    Builder::new().name("answer".to_owned()).spawn(answer).map(|_detached| ())
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::migration::Endpoint;
    use crate::migration::handover::Step;
    use crate::migration::journal::Side;
    use crate::migration::link::LinkError;
    use crate::migration::message::{Abandoned, Offer, Reason, Transfer};
    use crate::migration::transport::Stream;
    use crate::migration::word::Secret;

    const TRANSFER: Transfer = Transfer { vm: VmId([5; 16]), epoch: 4 };
    const SECRET: Secret = Secret([7; 16]);
    const STRANGERS: Secret = Secret([8; 16]);
    const SOON: Duration = Duration::from_secs(5);

    /// A destination with a guest that waits for its source.
    struct Host {
        _directory: TempDir,
        socket: Endpoint,
        listener: Listener,
        source: Source,
        side: Destination,
    }

    impl Host {
        fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let socket = format!("unix:{}", directory.as_path().join("b").display());
            let socket: Endpoint = socket.parse().unwrap();
            let listener = Listener::bind(&socket).unwrap();
            let source = Source { link: None, lobby: Lobby::new(), anew: None };
            let (side, _) = Destination::new(TRANSFER, SECRET);
            Self { _directory: directory, socket, listener, source, side }
        }

        /// Somebody connects and says this: what it means here, and the connection.
        fn hears(&mut self, first: &Message) -> (Option<DestinationInput>, Link) {
            let mut link = Link::new(Stream::connect(&self.socket).unwrap());
            link.send(first).unwrap();
            (self.source.next_input(&self.listener, &self.side, SOON), link)
        }
    }

    fn word(secret: &Secret, say: Say) -> Message {
        Word::new(secret, TRANSFER, say).into()
    }

    fn offer(transfer: Transfer, abandoned: Vec<Abandoned>) -> Message {
        let (session, connections, machine) = (1, 1, Vec::new());
        Message::Offer(Offer { transfer, session, connections, abandoned, machine })
    }

    #[track_caller]
    fn assert_refused(mut link: Link, why: &str) {
        let told = link.answer(Due::VERDICT, SOON);
        let refused = matches!(&told, Err(LinkError::Refused(reason)) if reason.as_str() == why);
        assert!(refused, "{told:?}");
    }

    /// Whoever knows the guest and its epoch, and not the secret, neither has it run here nor freed,
    /// whatever is said, by itself or with an offer of the same guest.
    #[test]
    fn strangers_decide_nothing() {
        let mut host = Host::new();
        for say in [
            Say::Commit { is_last: false },
            Say::Commit { is_last: true },
            Say::Abandon(Reason::default()),
            Say::Released,
        ] {
            let (heard, link) = host.hears(&word(&STRANGERS, say));
            assert_eq!(heard, None);
            assert_refused(link, UNPROVEN);
        }
        let later = Transfer { epoch: 9, ..TRANSFER };
        for abandoned in [
            Vec::new(),
            vec![Abandoned::new(&STRANGERS, TRANSFER)],
            vec![Abandoned::new(&SECRET, later)],
        ] {
            let (heard, link) = host.hears(&offer(later, abandoned));
            assert_eq!(heard, None);
            assert_refused(link, KEEPS);
        }
        assert!(host.source.anew.is_none() && host.source.link.is_none());
    }

    /// Its source is heard on any connection, and so is its next offer.
    #[test]
    fn the_source_is_heard_wherever_it_comes_from() {
        let mut host = Host::new();
        let (heard, mut link) = host.hears(&word(&SECRET, Say::Commit { is_last: false }));
        assert_eq!(heard, Some(DestinationInput::Commit { is_last: false }));
        host.source.tell(host.side.word(Say::Running));
        assert_eq!(link.answer(Due::VERDICT, SOON).unwrap(), word(&SECRET, Say::Running));
        // On the same connection too; a word without proof ends it.
        link.send(&word(&SECRET, Say::Released)).unwrap();
        let heard = host.source.next_input(&host.listener, &host.side, SOON);
        assert_eq!(heard, Some(DestinationInput::Released));
        link.send(&word(&STRANGERS, Say::Abandon(Reason::default()))).unwrap();
        assert_eq!(host.source.next_input(&host.listener, &host.side, LOOK_UP), None);
        assert!(host.source.link.is_none());
        let later = Transfer { epoch: 5, ..TRANSFER };
        let abandoned = vec![Abandoned::new(&STRANGERS, later), Abandoned::new(&SECRET, TRANSFER)];
        let (heard, _link) = host.hears(&offer(later, abandoned.clone()));
        assert_eq!(heard, Some(DestinationInput::Abandon));
        assert!(host.source.anew.take().is_some());
        // Not once the guest runs here.
        host.side.state = DestinationState::Running;
        let (heard, link) = host.hears(&offer(later, abandoned));
        assert_eq!(heard, None);
        assert_refused(link, RUNS);
    }

    /// What runs here is answered for, and its journal goes with its source's last word.
    #[test]
    fn the_journal_goes_with_the_last_word() {
        let host = Host::new();
        let journals = TempDir::new().unwrap();
        let directory = journals.as_path().to_owned();
        let open =
            move |vm| Journal::open(&directory, vm, Side::Destination).map_err(IoError::other);
        open(TRANSFER.vm).unwrap().append(TRANSFER, SECRET, Step::Owner, "").unwrap();
        let side = Destination { state: DestinationState::Running, ..host.side };
        let answering = Answering { side, source: host.source };
        keep_answering(host.listener, answering, open).unwrap();
        let said = |message: &Message| {
            let mut link = Link::new(Stream::connect(&host.socket).unwrap());
            link.send(message).unwrap();
            link
        };
        let mut link = said(&word(&SECRET, Say::Commit { is_last: false }));
        assert_eq!(link.answer(Due::VERDICT, SOON).unwrap(), word(&SECRET, Say::Running));
        assert_refused(said(&word(&STRANGERS, Say::Released)), UNPROVEN);
        let guests = || Journal::guests(journals.as_path(), Side::Destination).unwrap();
        assert_eq!(guests(), [TRANSFER.vm]);
        link.send(&word(&SECRET, Say::Released)).unwrap();
        // It hangs up when the journal is gone.
        link.receive(Due::VERDICT, SOON, &mut || false).unwrap_err();
        assert_eq!(guests(), []);
    }
}
