//! The control connection: whole messages, with deadlines.

use std::io::{Error as IoError, IoSlice};
use std::time::{Duration, Instant};

use super::due::{Due, LinkError};
use super::patience::{Patience, Wait};
use super::reading::Reading;
use super::stream::Stream;
use crate::migration::wire::{Message, Say, Word};

/// How often a wait for a message checks whether to give up.
const STEP: Duration = Duration::from_millis(50);

/// A control connection.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Stream,
    /// How long the peer may send nothing in the middle of a message, or read nothing of ours.
    silence: Duration,
    /// What has arrived of the next message.
    reading: Reading,
    patience: Patience,
    /// Bytes that have come.
    heard: u64,
}

impl Link {
    pub(crate) fn new(stream: Stream, silence: Duration) -> Self {
        let (reading, patience) = (Reading::new(), Patience::new(silence));
        Self { stream, silence, reading, patience, heard: 0 }
    }

    /// Sends one message, as long as the peer takes it and `stop` does not say otherwise.
    pub(crate) fn send(
        &mut self,
        message: &Message,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<(), LinkError> {
        let bytes = message.encode()?;
        let mut wait = Wait::new(self.silence, bytes.len(), stop);
        self.stream.send(&mut [IoSlice::new(&bytes)], &mut wait).map_err(LinkError::Lost)
    }

    /// Waits until the peer has taken all that was sent, or sends something. `others` gives the bytes that it has
    /// not taken on other connections. A network may be slower than this host fills its buffers.
    pub(crate) fn until_taken(
        &mut self,
        others: &dyn Fn() -> usize,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<(), LinkError> {
        let not_taken = |stream: &Stream| stream.not_taken().saturating_add(others());
        let mut left = not_taken(&self.stream);
        let mut wait = Wait::new(self.silence, left, stop);
        while left > 0 {
            let step = wait.step().map_err(|cause| LinkError::Lost(cause.into()))?;
            let begun = Instant::now();
            if self.stream.readable(step).map_err(LinkError::Lost)? {
                return Ok(());
            }
            wait.waited(begun.elapsed());
            let now = not_taken(&self.stream);
            if now < left {
                wait.moved(left - now);
            }
            left = now;
        }
        Ok(())
    }

    /// Sends a short message at once. If there is no room for it, the peer has read nothing for long, and this
    /// does not wait.
    pub(crate) fn say(&mut self, message: &Message) -> Result<(), LinkError> {
        let bytes = message.encode()?;
        self.stream.send_at_once(&bytes).map_err(LinkError::Lost)
    }

    /// The next message, if it is due and complete within `step`. A part of it is kept for the next call.
    pub(crate) fn hear(&mut self, due: Due, step: Duration) -> Result<Option<Message>, LinkError> {
        let until = Instant::now() + step;
        loop {
            let now = Instant::now();
            let left = until.saturating_duration_since(now);
            let is_readable = self.stream.readable(left).map_err(LinkError::Lost)?;
            if self.is_in_a_message() {
                self.patience.wait(now.elapsed());
            }
            if is_readable {
                let before = self.reading.said();
                if let Some(message) = self.reading.take(&mut self.stream, due)? {
                    self.heard = self.heard.saturating_add(1);
                    self.patience = Patience::new(self.silence);
                    return Ok(Some(message));
                }
                let came = self.reading.said().saturating_sub(before);
                if came > 0 {
                    self.heard = self.heard.saturating_add(came as u64);
                    self.patience.moved();
                }
            }
            if self.is_in_a_message() {
                let overdue = self.patience.left(self.reading.len());
                overdue.map_err(|cause| LinkError::Lost(cause.into()))?;
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    /// How long the peer may be silent.
    pub(crate) fn silence(&self) -> Duration {
        self.silence
    }

    /// Whether a part of a message has arrived.
    pub(crate) fn is_in_a_message(&self) -> bool {
        self.reading.said() > 0
    }

    /// Grows with every byte that arrives.
    pub(crate) fn heard(&self) -> u64 {
        self.heard
    }

    /// Sends a message that has an answer.
    ///
    /// # Errors
    /// [`LinkError::Refused`] if the peer has refused or given up meanwhile. [`LinkError::Early`] if it has sent
    /// anything else: that would be an answer to a message that it has not read.
    pub(crate) fn ask(
        &mut self,
        message: &Message,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<(), LinkError> {
        self.nothing_said(stop)?;
        self.send(message, stop)
    }

    /// Checks that nothing has arrived: it would be too early.
    ///
    /// # Errors
    /// As [`Link::ask`].
    pub(crate) fn nothing_said(&mut self, stop: &mut dyn FnMut() -> bool) -> Result<(), LinkError> {
        if !self.stream.readable(Duration::ZERO).map_err(LinkError::Lost)? {
            return Ok(());
        }
        match self.answer_unless(Due::REFUSAL, self.silence, stop) {
            Ok(_) | Err(LinkError::Unexpected { .. }) => Err(LinkError::Early),
            Err(cause) => Err(cause),
        }
    }

    /// The next message, which must begin to arrive within `patience`.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] if the peer refuses or gives up.
    pub(crate) fn answer(&mut self, due: Due, patience: Duration) -> Result<Message, LinkError> {
        let answer = self.answer_unless(due, patience, &mut || false)?;
        answer.ok_or_else(|| due.silent(patience))
    }

    /// [`Link::answer`], or `None` once `stop` returns true.
    pub(crate) fn answer_unless(
        &mut self,
        due: Due,
        patience: Duration,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Message>, LinkError> {
        let until = Instant::now() + patience;
        loop {
            match self.hear(due, STEP.min(patience))? {
                Some(
                    Message::Refuse { reason }
                    | Message::Word(Word { say: Say::Abandon(reason), .. }),
                ) => {
                    return Err(LinkError::Refused(reason));
                }
                Some(message) => return Ok(Some(message)),
                None if stop() => return Ok(None),
                None if !self.is_in_a_message() && Instant::now() > until => {
                    return Err(due.silent(patience));
                }
                None => {}
            }
        }
    }

    /// Shuts down reading, for every handle. A thread that waits to read stops waiting.
    pub(crate) fn stop_reading(&self) {
        self.stream.stop_reading();
    }

    /// The connection. No byte of it was read after the last message.
    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Another handle on the connection, for a thread of its own.
    pub(crate) fn try_clone(&self) -> Result<Self, IoError> {
        Ok(Self::new(self.stream.try_clone()?, self.silence))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;
    use crate::migration::wire::Closing;
    use crate::migration::wire::Kind;

    const SILENCE: Duration = Duration::from_secs(1);

    /// A peer that takes bytes slowly but steadily may take longer than the silence. One that takes nothing may not.
    /// The wait can be given up meanwhile.
    #[test]
    fn what_was_sent_is_waited_for_while_it_is_taken() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut link = Link::new(Stream::Unix(near), SILENCE);
        let state = Message::State(Closing::new(Kind::State, 1, 1, vec![7; 120 << 10]));
        let len = state.encode().unwrap().len();
        link.send(&state, &mut || false).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut part = [0; 8 << 10];
                for _ in 0..len / part.len() {
                    far.read_exact(&mut part).unwrap();
                    thread::park_timeout(SILENCE / 10);
                }
                far.read_exact(&mut vec![0; len % part.len()]).unwrap();
            });
            let begun = Instant::now();
            link.until_taken(&|| 0, &mut || false).unwrap();
            assert!(begun.elapsed() > SILENCE, "it was taken at once");
        });
        link.send(&state, &mut || false).unwrap();
        let begun = Instant::now();
        link.until_taken(&|| 0, &mut || begun.elapsed() > SILENCE / 10).unwrap_err();
        assert!(begun.elapsed() < SILENCE, "{:?}", begun.elapsed());
        let lost = link.until_taken(&|| 0, &mut || false).unwrap_err();
        assert!(begun.elapsed() >= SILENCE, "{lost}");
    }

    /// A message that comes byte by byte does not keep its reader: what has come is kept, and nothing
    /// of what follows is taken with it.
    #[test]
    fn a_message_may_come_in_pieces() {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut link = Link::new(Stream::Unix(near), SILENCE * 60);
        let ok = Message::RoundOk { round: 7 };
        let (bytes, moment) = (ok.encode().unwrap(), Duration::from_millis(1));
        let mut far = Stream::Unix(far);
        for byte in &bytes[..bytes.len() - 1] {
            far.send_at_once(&[*byte]).unwrap();
            let begun = Instant::now();
            assert_eq!(link.hear(Due::ROUND_OK, moment).unwrap(), None);
            assert!(begun.elapsed() < SILENCE * 10, "{:?}", begun.elapsed());
        }
        far.send_at_once(&[&bytes[bytes.len() - 1..], &bytes].concat()).unwrap();
        assert_eq!(link.hear(Due::ROUND_OK, SILENCE).unwrap(), Some(ok.clone()));
        assert_eq!(link.hear(Due::ROUND_OK, SILENCE).unwrap(), Some(ok));
    }
}
