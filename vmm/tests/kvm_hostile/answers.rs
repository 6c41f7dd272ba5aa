//! A scripted destination: it answers whatever the test says.

use std::collections::BTreeMap;
use std::io::{Error as IoError, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use sevferry::migration::wire::{FRAME_HEADER_LEN, FrameHeader, Kind};
use sevferry::migration::wire::{Message, PlatformBytes, Transfer};
use sevferry::migration::wire::{Say, Secret, Word};

use super::script::Channel;

/// After this the source hangs. Far above every deadline of its own.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// One thing that a destination does.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Accepts the next connection; what comes on a page connection is read and forgotten.
    Accept(Channel),
    /// Accepts it, and never reads from it.
    AcceptStalled(Channel),
    /// Reads on the control connection up to this message.
    Hear(Kind),
    /// Waits until so many page connections have ended a round.
    HearRound(u16),
    Say(Channel, Vec<u8>),
    /// Says this one byte a second.
    Drip(Vec<u8>),
    /// Says this until the source has had enough.
    Flood(Vec<u8>),
    Close(Channel),
    /// Ends all connections.
    CloseAll,
}

/// What every destination here makes of chance.
pub(crate) const SECRET: Secret = Secret([0x5e; 16]);

pub(crate) fn word(transfer: Transfer, say: Say) -> Message {
    Word::new(&SECRET, transfer, say).into()
}

pub(crate) fn accept(platform: Option<PlatformBytes>) -> Message {
    Message::Accept { secret: SECRET, platform }
}

/// On the control connection.
pub(crate) fn say(message: &Message) -> Step {
    Step::Say(0, message.encode().unwrap())
}

/// What a good destination does with a guest that is moved in two rounds over two connections.
pub(crate) fn good(transfer: Transfer, platform: Option<&PlatformBytes>) -> Vec<Step> {
    let mut steps = vec![Step::Accept(0), Step::Hear(Kind::Offer)];
    steps.push(say(&accept(platform.cloned())));
    steps.extend([Step::Hear(Kind::Start), say(&Message::Started)]);
    steps.extend([Step::Accept(1), Step::Accept(2)]);
    for round in 1..=2 {
        steps.extend([Step::HearRound(2), say(&Message::RoundOk { round })]);
    }
    steps.extend([Step::Hear(Kind::State), say(&word(transfer, Say::Prepared))]);
    steps.extend([Step::Hear(Kind::Commit), say(&word(transfer, Say::Running))]);
    steps
}

/// The steps before the `nth` thing that is said, which is left out with all that follows.
pub(crate) fn before(steps: &[Step], nth: usize) -> Vec<Step> {
    let said = |step: &&Step| matches!(step, Step::Say(..));
    let mut left = nth + 1;
    let is_it = |step: &Step| {
        left -= usize::from(said(&step));
        left == 0
    };
    let at = steps.iter().position(is_it).expect("so many answers");
    steps[..at].to_vec()
}

/// The bytes of the `nth` thing that is said.
pub(crate) fn answer(steps: &[Step], nth: usize) -> Vec<u8> {
    let said = steps.iter().filter_map(|step| match step {
        Step::Say(_, bytes) => Some(bytes.clone()),
        Step::Accept(_)
        | Step::AcceptStalled(_)
        | Step::Hear(_)
        | Step::HearRound(_)
        | Step::Drip(_)
        | Step::Flood(_)
        | Step::Close(_)
        | Step::CloseAll => None,
    });
    said.into_iter().nth(nth).expect("so many answers")
}

/// The destination's side of one attempt.
pub(crate) struct Destination<'a> {
    listener: &'a UnixListener,
    streams: BTreeMap<Channel, UnixStream>,
    round_ended: Sender<()>,
    rounds: Receiver<()>,
    over: Receiver<()>,
}

impl<'a> Destination<'a> {
    /// `over` tells that the attempt has ended.
    pub(crate) fn new(listener: &'a UnixListener, over: Receiver<()>) -> Self {
        let (round_ended, rounds) = channel();
        Self { listener, streams: BTreeMap::new(), round_ended, rounds, over }
    }

    /// Does the steps, as far as the source lets it, and keeps what is open until it is over. True
    /// if it has done all of them.
    pub(crate) fn play(mut self, steps: &[Step]) -> bool {
        let played = steps.iter().try_for_each(|step| self.step(step));
        if !matches!(&played, Err(cause) if cause.kind() == ErrorKind::ConnectionAborted) {
            self.over.recv_timeout(HANG).expect("the source ends");
        }
        played.is_ok()
    }

    fn step(&mut self, step: &Step) -> Result<(), IoError> {
        match step {
            Step::Accept(0) | Step::AcceptStalled(_) => self.accept(step).map(drop),
            Step::Accept(_) => {
                let stream = self.accept(step)?;
                let ended = self.round_ended.clone();
                // Ends with the connection.
                thread::spawn(move || forget(stream, &ended));
                Ok(())
            }
            Step::Hear(kind) => {
                while self.hear()? != *kind {}
                Ok(())
            }
            Step::HearRound(connections) => (0..*connections).try_for_each(|_| {
                while self.rounds.recv_timeout(Duration::from_millis(5)).is_err() {
                    self.still_on(Duration::ZERO)?;
                }
                Ok(())
            }),
            Step::Say(channel, bytes) => self.stream(*channel)?.write_all(bytes),
            Step::Drip(bytes) => bytes.iter().try_for_each(|byte| {
                self.stream(0)?.write_all(&[*byte])?;
                self.still_on(Duration::from_secs(1))
            }),
            Step::Flood(bytes) => loop {
                self.stream(0)?.write_all(bytes)?;
                self.still_on(Duration::ZERO)?;
            },
            Step::Close(channel) => {
                self.streams.remove(channel);
                Ok(())
            }
            Step::CloseAll => {
                self.streams.clear();
                Ok(())
            }
        }
    }

    /// Fails once the attempt is over.
    fn still_on(&self, patience: Duration) -> Result<(), IoError> {
        match self.over.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                Err(ErrorKind::ConnectionAborted.into())
            }
        }
    }

    /// The next connection, also for a thread of its own. It may never come.
    fn accept(&mut self, step: &Step) -> Result<UnixStream, IoError> {
        let (Step::Accept(channel) | Step::AcceptStalled(channel)) = step else {
            panic!("{step:?} accepts nobody");
        };
        let until = Instant::now() + HANG;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(cause) if cause.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                    self.still_on(Duration::from_millis(5))?;
                }
                Err(cause) => return Err(cause),
            }
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(HANG))?;
        stream.set_write_timeout(Some(HANG))?;
        self.streams.insert(*channel, stream.try_clone()?);
        Ok(stream)
    }

    fn stream(&mut self, channel: Channel) -> Result<&mut UnixStream, IoError> {
        self.streams.get_mut(&channel).ok_or(ErrorKind::NotConnected.into())
    }

    fn hear(&mut self) -> Result<Kind, IoError> {
        let stream = self.stream(0)?;
        let mut header = [0; FRAME_HEADER_LEN];
        stream.read_exact(&mut header)?;
        let header = FrameHeader::decode(&header).map_err(IoError::other)?;
        stream.read_exact(&mut vec![0; header.length()])?;
        Ok(header.kind())
    }
}

/// Reads all that comes on a page connection; says when a round has ended on it.
fn forget(mut stream: UnixStream, ended: &Sender<()>) {
    let (mut header, mut body) = ([0; FRAME_HEADER_LEN], Vec::new());
    while stream.read_exact(&mut header).is_ok() {
        let header = FrameHeader::decode(&header).expect("the source is sevferry");
        body.resize(header.length(), 0);
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        if header.kind() == Kind::RoundEnd && ended.send(()).is_err() {
            return;
        }
    }
}
