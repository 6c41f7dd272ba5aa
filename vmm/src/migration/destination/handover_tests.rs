//! The destination's handover, by itself: who is heard, and for how long.

use std::env::{current_exe, var};
use std::fs::read_dir;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::migration::Endpoint;
use crate::migration::handover::Step;
use crate::migration::handover::journal::Side;
use crate::migration::net::{LinkError, Stream};
use crate::migration::wire::{Abandoned, Offer, Reason, Secret, Transfer};

const TRANSFER: Transfer = Transfer { vm: VmId([5; 16]), epoch: 4 };
const SECRET: Secret = Secret([7; 16]);
const STRANGERS: Secret = Secret([8; 16]);
const SOON: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(60);

/// A destination with a guest that waits for its source.
struct WaitingHost {
    _directory: TempDir,
    socket: Endpoint,
    listener: Listener,
    source: HeardSource,
    side: Destination,
}

impl WaitingHost {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = format!("unix:{}", directory.as_path().join("b").display());
        let socket: Endpoint = socket.parse().unwrap();
        let listener = Listener::bind(&socket).unwrap();
        let source = HeardSource { link: None, lobby: Lobby::new(SOON), anew: None };
        let (side, _) = Destination::new(TRANSFER, SECRET);
        Self { _directory: directory, socket, listener, source, side }
    }

    /// Connects with this first message. Returns what it means here, and the connection.
    fn hears(&mut self, first: &Message) -> (Option<DestinationInput>, Link) {
        let mut link = link_to(&self.socket);
        link.say(first).unwrap();
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

/// A stranger who knows the guest and its epoch, but not the secret, can neither start nor free it here: not with a
/// word, and not with an offer of the same guest.
#[test]
fn strangers_decide_nothing() {
    let mut host = WaitingHost::new();
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
    let mut host = WaitingHost::new();
    let (heard, mut link) = host.hears(&word(&SECRET, Say::Commit { is_last: false }));
    assert_eq!(heard, Some(DestinationInput::Commit { is_last: false }));
    host.source.tell(host.side.word(Say::Running));
    assert_eq!(link.answer(Due::VERDICT, SOON).unwrap(), word(&SECRET, Say::Running));
    // On the same connection too; a word without proof ends it.
    link.say(&word(&SECRET, Say::Released)).unwrap();
    let heard = host.source.next_input(&host.listener, &host.side, SOON);
    assert_eq!(heard, Some(DestinationInput::Released));
    link.say(&word(&STRANGERS, Say::Abandon(Reason::default()))).unwrap();
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
    let host = WaitingHost::new();
    let journals = TempDir::new().unwrap();
    let directory = journals.as_path().to_owned();
    let open = move |vm| Journal::open(&directory, vm, Side::Destination).map_err(IoError::other);
    open(TRANSFER.vm).unwrap().append(TRANSFER, SECRET, Step::Owner, "").unwrap();
    let side = Destination { state: DestinationState::Running, ..host.side };
    let answering = Answering { half: side, source: host.source };
    keep_answering(host.listener, answering, open).unwrap();
    let said = |message: &Message| {
        let mut link = link_to(&host.socket);
        link.say(message).unwrap();
        link
    };
    let mut link = said(&word(&SECRET, Say::Commit { is_last: false }));
    assert_eq!(link.answer(Due::VERDICT, SOON).unwrap(), word(&SECRET, Say::Running));
    assert_refused(said(&word(&STRANGERS, Say::Released)), UNPROVEN);
    let guests = || Journal::guests(journals.as_path(), Side::Destination).unwrap();
    assert_eq!(guests(), [TRANSFER.vm]);
    link.say(&word(&SECRET, Say::Released)).unwrap();
    // It hangs up when the journal is gone.
    link.hear(Due::VERDICT, SOON).unwrap_err();
    assert_eq!(guests(), []);
}

/// Tells the process that this test starts where it is to answer.
const SOCKET: &str = "SEVFERRY_TEST_ANSWERS_AT";

const TEST: &str =
    "migration::destination::handover::tests::answering_survives_a_lack_of_descriptors";

/// Answers for a guest until it is killed, or has nobody left to answer.
fn answer_at(socket: &str) {
    let listener = Listener::bind(&socket.parse().unwrap()).unwrap();
    let (side, _) = Destination::new(TRANSFER, SECRET);
    let side = Destination { state: DestinationState::Running, ..side };
    let source = HeardSource { link: None, lobby: Lobby::new(LONG), anew: None };
    let no_journal = |_| Err(IoError::other("none"));
    keep_answering(listener, Answering { half: side, source }, no_journal).unwrap();
    std::thread::park_timeout(LONG * 2);
}

/// Killed, however its test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().unwrap();
    }
}

impl Process {
    fn allow_descriptors(&self, most: u64) {
        let limit = Rlimit { current: Some(most), maximum: Some(1024) };
        prlimit(Some(Pid::from_child(&self.0)), Resource::Nofile, limit).unwrap();
    }
}

fn link_to(to: &Endpoint) -> Link {
    Link::new(Stream::connect(to, LONG, &|| true).unwrap(), LONG)
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
    let child = Process(child.spawn().unwrap());
    let to: Endpoint = socket.parse().unwrap();
    let begun = Instant::now();
    while Stream::connect(&to, LONG, &|| true).is_err() {
        assert!(begun.elapsed() < LONG, "it does not listen");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let open = read_dir(format!("/proc/{}/fd", child.0.id())).unwrap().count();
    child.allow_descriptors(u64::try_from(open).unwrap() + 2);
    let mut strangers: Vec<_> = (0..12).map(|_| link_to(&to)).collect();
    // Being told so is the proof that the limit was met.
    let crowded = strangers[0].answer(Due::REFUSAL, LONG).unwrap_err().to_string();
    assert!(crowded.contains("too many connections at once"), "{crowded}");
    let mut source = link_to(&to);
    source.say(&word(&SECRET, Say::Commit { is_last: false })).unwrap();
    let answer = source.answer(Due::VERDICT, LONG).unwrap();
    assert_eq!(answer, word(&SECRET, Say::Running));
}
