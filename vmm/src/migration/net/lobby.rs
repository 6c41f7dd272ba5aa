//! Connections whose first message has not arrived yet.
//!
//! The lobby reads from all of them at once, so a silent or slow connection does not delay the others. Their
//! number, the bytes they may send and the time they may take are bounded. If the host has no descriptor or
//! memory for the next connection, the lobby tries again later.

use std::collections::VecDeque;
use std::io::{Error as IoError, ErrorKind};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use log::warn;
use rustix::io::Errno;

use super::caller::{Caller, Line};
use super::due::{Due, LinkError};
use super::link::Link;
use super::patience::{Overdue, in_all};
use super::reading::Reading;
use super::stream::{Listener, Stream, wait_for_any};
use crate::migration::wire::{CONNECTIONS_MAX, Message, Reason};
use crate::text::chain_of;

/// Most connections at a time. One more closes the oldest. The connections of one migration come all at once.
const ROOM: usize = 2 * CONNECTIONS_MAX as usize;

/// Most bytes of all incomplete first messages together. More closes the connection with the longest one. An
/// offer usually has some tens of KiB; it may have 1 MiB.
const BYTES_MAX: usize = 2 << 20;

/// How long to wait after a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Least time between two messages to the user about that.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(60);

/// Connections that are accepted and not identified yet.
#[derive(Debug)]
pub struct Lobby {
    due: Due,
    /// How long a new connection may be silent.
    silence: Duration,
    newcomers: VecDeque<Newcomer>,
    /// Results that the caller of [`Lobby::hear`] has not fetched yet.
    heard: VecDeque<Result<Caller, LinkError>>,
    /// No connection is accepted before this.
    closed_until: Option<Instant>,
    /// When the user was last told so.
    complained: Option<Instant>,
    /// When the last byte or connection arrived.
    last_word: Instant,
}

impl Lobby {
    /// For a host that receives guests: a source offers a guest, or asks about an earlier one. A connection
    /// that is silent for longer than `silence` is closed.
    #[must_use]
    pub fn new(silence: Duration) -> Self {
        Self::of(Due::GREETING, silence)
    }

    /// A connection whose first message is not `due` is closed.
    pub(crate) fn of(due: Due, silence: Duration) -> Self {
        let (newcomers, heard) = (VecDeque::new(), VecDeque::new());
        let last_word = Instant::now();
        Self { due, silence, newcomers, heard, closed_until: None, complained: None, last_word }
    }

    /// When the last byte or connection arrived.
    pub(crate) fn last_word(&self) -> Instant {
        self.last_word
    }

    /// The next connection with a complete first message, or the reason why one was closed. `None` if there is
    /// neither within `patience`.
    pub fn hear(
        &mut self,
        listener: &Listener,
        patience: Duration,
    ) -> Option<Result<Caller, LinkError>> {
        let until = Instant::now() + patience;
        loop {
            // Before anything is read: a connection that was given up long ago is not a caller.
            self.turn_late_ones_away();
            if let Some(heard) = self.heard.pop_front() {
                return Some(heard);
            }
            let now = Instant::now();
            self.closed_until = self.closed_until.filter(|closed| *closed > now);
            let next = self.newcomers.iter().map(|newcomer| newcomer.until(self.silence));
            let next = next.chain(self.closed_until).chain([until]).min().unwrap_or(until);
            let left = next.saturating_duration_since(now);
            let streams = self.newcomers.iter().map(|newcomer| &newcomer.stream);
            let open = self.closed_until.is_none().then_some(listener);
            match wait_for_any(open, streams, left) {
                Ok(true) => {
                    if self.closed_until.is_none() {
                        self.let_in(listener);
                    }
                    self.listen();
                }
                Ok(false) => {}
                Err(cause) => {
                    self.close_for_a_while(&cause);
                    park_timeout(ACCEPT_AGAIN.min(patience));
                }
            }
            if self.heard.is_empty() && Instant::now() >= until {
                return None;
            }
        }
    }

    /// Adds a connection that has been used before. Its next message counts as a first message.
    pub fn let_back_in(&mut self, Line(link): Line) {
        self.newcomers.push_back(Newcomer::new(link.into_stream()));
    }

    /// Accepts every connection that waits now.
    fn let_in(&mut self, listener: &Listener) {
        for _ in 0..ROOM {
            let stream = match listener.accept(Duration::ZERO) {
                Ok(Some(stream)) => stream,
                Ok(None) => return,
                Err(cause) => return self.close_for_a_while(&cause),
            };
            if self.newcomers.len() == ROOM {
                self.turn_oldest_away();
            }
            self.newcomers.push_back(Newcomer::new(stream));
            self.last_word = Instant::now();
        }
    }

    /// A connection could not be accepted. Either its peer is gone, or descriptors or memory are short. In the
    /// second case the connections in this lobby may hold what is missing.
    fn close_for_a_while(&mut self, cause: &IoError) {
        let now = Instant::now();
        self.closed_until = Some(now + ACCEPT_AGAIN);
        if self.complained.is_none_or(|complained| now - complained > COMPLAIN_AGAIN) {
            self.complained = Some(now);
            warn!("accepting a connection failed, and is tried again: {cause}");
        }
        let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
        if Errno::from_io_error(cause).is_some_and(|errno| short.contains(&errno)) {
            self.turn_oldest_away();
        }
    }

    /// Reads what has arrived on every connection.
    fn listen(&mut self) {
        for mut newcomer in std::mem::take(&mut self.newcomers) {
            match newcomer.listen(self.due) {
                Ok(None) => self.newcomers.push_back(newcomer),
                Ok(Some(first)) => {
                    self.last_word = Instant::now();
                    let link = Link::new(newcomer.stream, self.silence);
                    self.heard.push_back(Ok(Caller { link, first }));
                }
                Err(cause) => self.turn_away(newcomer, cause),
            }
        }
        let last_words = self.newcomers.iter().map(|newcomer| newcomer.last_word);
        self.last_word = last_words.chain([self.last_word]).max().unwrap_or(self.last_word);
        while self.newcomers.iter().map(Newcomer::held).sum::<usize>() > BYTES_MAX {
            let longest = (0..self.newcomers.len())
                .max_by_key(|&at| self.newcomers.get(at).map(Newcomer::held));
            let Some(newcomer) = longest.and_then(|at| self.newcomers.remove(at)) else { break };
            self.turn_away(newcomer, crowded());
        }
    }

    fn turn_oldest_away(&mut self) {
        if let Some(oldest) = self.newcomers.pop_front() {
            self.turn_away(oldest, crowded());
        }
    }

    fn turn_late_ones_away(&mut self) {
        let now = Instant::now();
        let is_late = |newcomer: &Newcomer| newcomer.until(self.silence) <= now;
        if !self.newcomers.iter().any(is_late) {
            return;
        }
        let newcomers = std::mem::take(&mut self.newcomers);
        let (late, others) = newcomers.into_iter().partition::<VecDeque<_>, _>(is_late);
        self.newcomers = others;
        for newcomer in late {
            let cause = newcomer.overdue(self.due, self.silence);
            self.turn_away(newcomer, cause);
        }
    }

    /// Tells a source of another version that this host has another version.
    fn turn_away(&mut self, newcomer: Newcomer, cause: LinkError) {
        let reason = Reason::new(&chain_of(&cause));
        let mut link = Link::new(newcomer.stream, self.silence);
        // It may be gone. Then it needs no reason.
        link.say(&Message::Refuse { reason }).unwrap_or_default();
        self.heard.push_back(Err(cause));
    }
}

/// Why a connection is closed that did nothing wrong.
fn crowded() -> LinkError {
    LinkError::Lost(IoError::new(ErrorKind::QuotaExceeded, "too many connections at once"))
}

/// A connection that is not identified yet.
#[derive(Debug)]
struct Newcomer {
    stream: Stream,
    came: Instant,
    last_word: Instant,
    /// Its first message. It takes memory only for bytes that have arrived.
    reading: Reading,
}

impl Newcomer {
    fn new(stream: Stream) -> Self {
        let now = Instant::now();
        Self { stream, came: now, last_word: now, reading: Reading::sparing() }
    }

    /// Reads what has arrived of its first message, and no byte of the next. Returns the message once it is
    /// complete. Never waits.
    fn listen(&mut self, due: Due) -> Result<Option<Message>, LinkError> {
        let before = self.reading.said();
        let message = self.reading.take(&mut self.stream, due)?;
        if self.reading.said() > before {
            self.last_word = Instant::now();
        }
        Ok(message)
    }

    /// How much longer it may take if nothing more arrives.
    fn until(&self, silence: Duration) -> Instant {
        (self.last_word + silence).min(self.came + in_all(silence, self.reading.len()))
    }

    /// Why it is late.
    fn overdue(&self, due: Due, silence: Duration) -> LinkError {
        let seconds = silence.as_secs();
        let cause = match (self.reading.said(), self.last_word.elapsed() >= silence) {
            (0, _) => return due.silent(silence),
            (_, true) => Overdue::Silent { seconds },
            (_, false) => {
                let len = self.reading.len();
                Overdue::Slow { len, seconds: in_all(silence, len).as_secs() }
            }
        };
        LinkError::Lost(cause.into())
    }

    /// Bytes of memory that it takes on this host.
    fn held(&self) -> usize {
        self.reading.held()
    }
}

#[cfg(test)]
#[path = "lobby_tests.rs"]
mod tests;
