//! Connections that have not said their first message yet. All are heard at once, so that nobody who
//! says nothing, or little, keeps the others waiting; how many there are, how much they may say, and
//! how long they may take, is bounded.

use std::collections::VecDeque;
use std::io::{Error as IoError, ErrorKind, Read};
use std::time::{Duration, Instant};

use super::caller::{Caller, Line};
use super::frame::{CONNECTIONS_MAX, FRAME_HEADER_LEN, FrameHeader};
use super::link::{Due, Link, LinkError};
use super::message::{Message, Reason};
use super::transport::{Listener, Stream, wait_for_any};

/// How long a first message may take, from the connection to its last byte.
pub(super) const GREETING_MAX: Duration = Duration::from_secs(10);

/// Connections at a time; beyond, the oldest is closed. A migration's own come all at once.
const ROOM: usize = 2 * CONNECTIONS_MAX as usize;

/// What all first messages that are not whole may hold together; beyond, the longest is closed. An
/// offer has some tens of KiB, and one may have a mebibyte.
const BYTES_MAX: usize = 2 << 20;

/// How much is read from a connection at a time.
const STEP: usize = 64 << 10;

/// Who has connected and is not known yet.
#[derive(Debug)]
pub struct Lobby {
    due: Due,
    newcomers: VecDeque<Newcomer>,
    /// Those who have said something, or were turned away, and were not told of yet.
    heard: VecDeque<Result<Caller, LinkError>>,
}

impl Lobby {
    /// Of a host that receives guests: a source offers one, or asks for an earlier one.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Due::GREETING)
    }

    /// Whoever says anything but what is due is turned away.
    pub(super) fn of(due: Due) -> Self {
        Self { due, newcomers: VecDeque::new(), heard: VecDeque::new() }
    }

    /// The next who has said a whole first message, or why somebody was turned away; `None` if there
    /// is nobody within `patience`.
    ///
    /// # Errors
    /// If nobody can be listened to.
    pub fn hear(
        &mut self,
        listener: &Listener,
        patience: Duration,
    ) -> Result<Option<Result<Caller, LinkError>>, IoError> {
        let until = Instant::now() + patience;
        loop {
            // Before anything is read: who has given up long ago is no caller.
            self.turn_late_ones_away();
            if let Some(heard) = self.heard.pop_front() {
                return Ok(Some(heard));
            }
            let mut left = until.saturating_duration_since(Instant::now());
            if let Some(first) = self.newcomers.front() {
                left = left.min(first.until.saturating_duration_since(Instant::now()));
            }
            let streams = self.newcomers.iter().map(|newcomer| &newcomer.stream);
            if wait_for_any(listener, streams, left)? {
                self.let_in(listener)?;
                self.listen();
            }
            if self.heard.is_empty() && Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    /// Hears also who has been heard before: what is said there next is a first message again.
    pub fn let_back_in(&mut self, Line(link): Line) {
        self.newcomers.push_back(Newcomer::new(link.into_stream()));
    }

    /// Accepts all who knock now.
    fn let_in(&mut self, listener: &Listener) -> Result<(), IoError> {
        for _ in 0..ROOM {
            let Some(stream) = listener.accept(Duration::ZERO)? else { break };
            if self.newcomers.len() == ROOM
                && let Some(oldest) = self.newcomers.pop_front()
            {
                self.turn_away(oldest, crowded());
            }
            self.newcomers.push_back(Newcomer::new(stream));
        }
        Ok(())
    }

    /// Takes in what everybody has said meanwhile.
    fn listen(&mut self) {
        for mut newcomer in std::mem::take(&mut self.newcomers) {
            match newcomer.listen(self.due) {
                Ok(None) => self.newcomers.push_back(newcomer),
                Ok(Some(first)) => {
                    let link = Link::new(newcomer.stream);
                    self.heard.push_back(Ok(Caller { link, first }));
                }
                Err(cause) => self.turn_away(newcomer, cause),
            }
        }
        while self.newcomers.iter().map(|newcomer| newcomer.body.len()).sum::<usize>() > BYTES_MAX {
            let longest = (0..self.newcomers.len())
                .max_by_key(|&at| self.newcomers.get(at).map(|newcomer| newcomer.body.len()));
            let Some(newcomer) = longest.and_then(|at| self.newcomers.remove(at)) else { break };
            self.turn_away(newcomer, crowded());
        }
    }

    fn turn_late_ones_away(&mut self) {
        let now = Instant::now();
        while self.newcomers.front().is_some_and(|first| first.until <= now)
            && let Some(late) = self.newcomers.pop_front()
        {
            let cause = match late.said {
                0 => self.due.silent(GREETING_MAX),
                _ => LinkError::Lost(IoError::new(ErrorKind::TimedOut, "the peer is too slow")),
            };
            self.turn_away(late, cause);
        }
    }

    /// A source of another version learns so, if it is one at all.
    fn turn_away(&mut self, newcomer: Newcomer, cause: LinkError) {
        let reason = Reason::new(&super::chain_of(&cause));
        let mut link = Link::new(newcomer.stream);
        // It may be gone: then it needs no reason.
        link.send(&Message::Refuse { reason }).unwrap_or_default();
        self.heard.push_back(Err(cause));
    }
}

impl Default for Lobby {
    fn default() -> Self {
        Self::new()
    }
}

/// Why somebody is closed who has done nothing wrong.
fn crowded() -> LinkError {
    LinkError::Lost(IoError::new(ErrorKind::QuotaExceeded, "too many connections at once"))
}

/// A connection that has not said yet who it is.
#[derive(Debug)]
struct Newcomer {
    stream: Stream,
    until: Instant,
    /// What has come of its first message.
    said: usize,
    head: [u8; FRAME_HEADER_LEN],
    /// Grows with what has come.
    body: Vec<u8>,
}

impl Newcomer {
    fn new(stream: Stream) -> Self {
        let until = Instant::now() + GREETING_MAX;
        Self { stream, until, said: 0, head: [0; FRAME_HEADER_LEN], body: Vec::new() }
    }

    /// Takes what has come of its first message, and no byte more; the message, if it is whole.
    /// Never waits.
    fn listen(&mut self, due: Due) -> Result<Option<Message>, LinkError> {
        while let Some(rest @ [_, ..]) = self.head.get_mut(self.said..) {
            match read(&mut self.stream, rest)? {
                None => return Ok(None),
                Some(count) => self.said += count,
            }
        }
        let header = FrameHeader::decode(&self.head)?;
        due.check(header)?;
        let missing = header.length().saturating_sub(self.body.len()).min(STEP);
        if missing > 0 {
            let before = self.body.len();
            self.body.reserve_exact(missing);
            self.body.resize(before + missing, 0);
            let count = read(&mut self.stream, self.body.get_mut(before..).unwrap_or_default());
            let count = count?.unwrap_or(0);
            self.body.truncate(before + count);
            self.said += count;
        }
        if self.body.len() < header.length() {
            return Ok(None);
        }
        Ok(Some(Message::decode(header, std::mem::take(&mut self.body))?))
    }
}

/// Reads what there is; `None` if there is nothing yet.
fn read(stream: &mut Stream, into: &mut [u8]) -> Result<Option<usize>, LinkError> {
    loop {
        match stream.read(into) {
            Ok(0) => return Err(LinkError::Lost(ErrorKind::UnexpectedEof.into())),
            Ok(count) => return Ok(Some(count)),
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            Err(cause) => return Err(LinkError::Lost(cause)),
        }
    }
}

#[cfg(test)]
#[path = "lobby_tests.rs"]
mod tests;
