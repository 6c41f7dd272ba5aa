//! A third party that knows everything but the secret of a transfer: it decides nothing, at either host.

use std::fs::remove_file;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use sevferry::control::api::State;
use sevferry::migration::wire::{Abandoned, Message, NotRunning, Offer, Reason, Transfer};
use sevferry::migration::wire::{FRAME_HEADER_LEN, FrameHeader};
use sevferry::migration::wire::{Say, Secret, Word};

use super::steps::{STEPS, Stage};
use super::stopped_at;

/// Of no transfer.
const NOBODYS: Secret = Secret([0xee; 16]);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn hear(stream: &mut UnixStream) -> Message {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut header = [0; FRAME_HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    let header = FrameHeader::decode(&header).unwrap();
    let mut body = vec![0; header.length()];
    stream.read_exact(&mut body).unwrap();
    Message::decode(header, body).unwrap()
}

/// What is answered to somebody who connects and says this.
fn told(socket: &str, first: &Message) -> Message {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&first.encode().unwrap()).unwrap();
    hear(&mut stream)
}

/// Everything that would change the owner of the guest.
fn to_the_destination(transfer: Transfer) -> Vec<Message> {
    let says = [
        Say::Commit { is_last: false },
        Say::Commit { is_last: true },
        Say::Abandon(Reason::new("mine")),
        Say::Released,
    ];
    let words = says.map(|say| Word::new(&NOBODYS, transfer, say).into());
    let next = Transfer { epoch: transfer.epoch + 1, ..transfer };
    let offer = |abandoned| {
        let (session, connections, machine) = (1, 1, Vec::new());
        Message::Offer(Offer { transfer: next, session, connections, abandoned, machine })
    };
    let offers = [offer(Vec::new()), offer(vec![Abandoned::new(&NOBODYS, transfer)])];
    words.into_iter().chain(offers).collect()
}

/// Takes the place of a destination that is gone, and answers what would end the source's doubt; the
/// source asks once more, so it is still in doubt.
fn answer_in_the_place_of(socket: &str, transfer: Transfer) {
    remove_file(socket).unwrap_or_default();
    let listener = UnixListener::bind(socket).unwrap();
    let (mut source, _) = listener.accept().unwrap();
    let Message::Word(Word { proof, say: Say::Commit { is_last: false }, .. }) = hear(&mut source)
    else {
        panic!("no commit");
    };
    // With no proof, and with the one that was just heard.
    let says = [Say::Running, Say::NotRunning(NotRunning::GivenBack)];
    for say in says {
        let word = Word::new(&NOBODYS, transfer, say);
        let thrown_back = Word { proof, ..word.clone() };
        for word in [word, thrown_back] {
            source.write_all(&Message::Word(word).encode().unwrap()).unwrap();
        }
    }
    assert!(matches!(hear(&mut source), Message::Word(Word { say: Say::Commit { .. }, .. })));
    remove_file(socket).unwrap();
}

/// Whoever connects to a destination that waits for its source's word, and knows the guest and its
/// attempt, neither has the guest run there nor dropped; whoever listens where a source in doubt asks
/// for its destination neither has it let go of the guest nor resume it.
#[test]
#[ignore = "needs KVM: scripts/test kvm_faults"]
fn strangers_decide_nothing() {
    let commit = STEPS.into_iter().find(|step| step.stage == Stage::Committed).unwrap();
    let (hosts, a, b, migration) = stopped_at(commit);
    b.has(State::InDoubt);
    let transfer = b.status().migration.expect("a migration").transfer;
    let socket = hosts.socket("b");
    for word in to_the_destination(transfer) {
        let answer = told(&socket, &word);
        assert!(matches!(answer, Message::Refuse { .. }), "{word:?}: {answer:?}");
    }
    b.has(State::InDoubt);
    b.kill(&hosts.wire);
    answer_in_the_place_of(&socket, transfer);
    a.has(State::InDoubt);
    // The destination itself is believed: it never ran the guest.
    let b = hosts.receive("b");
    migration.was_kept();
    hosts.tape.goes_on();
    hosts.moves(a, &b);
}
