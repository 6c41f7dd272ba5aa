//! Connections that have not said their first message yet. All are heard at once, so that nobody who
//! says nothing, or little, keeps the others waiting; how many there are, how much they may say, and
//! how long they may take, is bounded. That the host lacks a descriptor or memory for the next one
//! passes: it is tried again.

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
use crate::migration::chain_of;
use crate::migration::wire::{CONNECTIONS_MAX, Message, Reason};

/// Connections at a time; beyond, the oldest is closed. A migration's own come all at once.
const ROOM: usize = 2 * CONNECTIONS_MAX as usize;

/// What all first messages that are not whole may hold together; beyond, the longest is closed. An
/// offer has some tens of KiB, and one may have a mebibyte.
const BYTES_MAX: usize = 2 << 20;

/// How long to wait after a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How often the user hears of that.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(60);

/// Who has connected and is not known yet.
#[derive(Debug)]
pub struct Lobby {
    due: Due,
    /// How long a newcomer may be silent.
    silence: Duration,
    newcomers: VecDeque<Newcomer>,
    /// Those who have said something, or were turned away, and were not told of yet.
    heard: VecDeque<Result<Caller, LinkError>>,
    /// Nobody is accepted before this.
    closed_until: Option<Instant>,
    /// When that was last said to the user.
    complained: Option<Instant>,
    /// When anybody was heard last, or came.
    last_word: Instant,
}

impl Lobby {
    /// Of a host that receives guests: a source offers one, or asks for an earlier one. Nobody may
    /// be silent for longer than `silence`.
    #[must_use]
    pub fn new(silence: Duration) -> Self {
        Self::of(Due::GREETING, silence)
    }

    /// Whoever says anything but what is due is turned away.
    pub(crate) fn of(due: Due, silence: Duration) -> Self {
        let (newcomers, heard) = (VecDeque::new(), VecDeque::new());
        let last_word = Instant::now();
        Self { due, silence, newcomers, heard, closed_until: None, complained: None, last_word }
    }

    /// When anybody was heard last, or came.
    pub(crate) fn last_word(&self) -> Instant {
        self.last_word
    }

    /// The next who has said a whole first message, or why somebody was turned away; `None` if there
    /// is nobody within `patience`.
    pub fn hear(
        &mut self,
        listener: &Listener,
        patience: Duration,
    ) -> Option<Result<Caller, LinkError>> {
        let until = Instant::now() + patience;
        loop {
            // Before anything is read: who has given up long ago is no caller.
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

    /// Hears also who has been heard before: what is said there next is a first message again.
    pub fn let_back_in(&mut self, Line(link): Line) {
        self.newcomers.push_back(Newcomer::new(link.into_stream()));
    }

    /// Accepts all who knock now.
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

    /// Somebody could not be accepted. Either who came is gone, or descriptors or memory are short;
    /// then the strangers here may have what is missing.
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

    /// Takes in what everybody has said meanwhile.
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

    /// A source of another version learns so, if it is one at all.
    fn turn_away(&mut self, newcomer: Newcomer, cause: LinkError) {
        let reason = Reason::new(&chain_of(&cause));
        let mut link = Link::new(newcomer.stream, self.silence);
        // It may be gone: then it needs no reason.
        link.say(&Message::Refuse { reason }).unwrap_or_default();
        self.heard.push_back(Err(cause));
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
    came: Instant,
    last_word: Instant,
    /// Its first message, which holds no more than what has come.
    reading: Reading,
}

impl Newcomer {
    fn new(stream: Stream) -> Self {
        let now = Instant::now();
        Self { stream, came: now, last_word: now, reading: Reading::sparing() }
    }

    /// Takes what has come of its first message, and no byte more; the message, if it is whole.
    /// Never waits.
    fn listen(&mut self, due: Due) -> Result<Option<Message>, LinkError> {
        let before = self.reading.said();
        let message = self.reading.take(&mut self.stream, due)?;
        if self.reading.said() > before {
            self.last_word = Instant::now();
        }
        Ok(message)
    }

    /// How long it may take, if it says no more.
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

    /// Bytes that it makes this host hold.
    fn held(&self) -> usize {
        self.reading.held()
    }
}

#[cfg(test)]
#[path = "lobby_tests.rs"]
mod tests;
