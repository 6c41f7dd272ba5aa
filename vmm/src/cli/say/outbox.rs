//! Messages on their way out: a bounded queue, and a thread that writes them.
//!
//! To print never waits for a reader. A guest's process that waited would not notice signals, requests and the other
//! host for as long as a pipe is full or a terminal is stopped.

use std::collections::VecDeque;
use std::io::Error as IoError;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::repeats::{CallSite, Repeats};
use crate::stream::write_all;

/// Most bytes that wait before another message is refused. A message that is taken is taken whole.
const BYTES_MAX: usize = 256 << 10;

/// Bytes written at a time: a pipe takes this many in one piece, also when other processes write to it.
const STEP: usize = 4096;

/// The longest that [`Outbox::flush`] waits, however slow the reader is.
const FLUSH_MAX: Duration = Duration::from_secs(30);

/// A place for messages. It is written to by a thread that ends with the process.
#[derive(Debug)]
pub(crate) struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<Queue>,
    /// Notified when there is something to write, and when something was written.
    changed: Condvar,
    says_losses: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Queued>,
    /// Bytes of the messages that wait.
    bytes: usize,
    repeats: Repeats,
    /// Messages that were lost, and that the reader was not told of yet.
    lost: u64,
    /// Whether the last write failed. Then the next try comes with the next message.
    is_broken: bool,
    is_writing: bool,
    /// Grows with what the reader takes.
    written: u64,
    /// There is no thread.
    is_closed: bool,
}

#[derive(Debug)]
struct Queued {
    text: Vec<u8>,
    /// How many messages are lost if it is.
    stands_for: u64,
}

impl Outbox {
    /// Writes to `target`, and also writes there how many messages were lost.
    pub(crate) fn new(target: impl AsFd + Send + 'static) -> Self {
        Self::start(target, true)
    }

    /// Writes to `target` nothing but what it is given.
    pub(crate) fn verbatim(target: impl AsFd + Send + 'static) -> Self {
        Self::start(target, false)
    }

    fn start(target: impl AsFd + Send + 'static, says_losses: bool) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, changed, says_losses });
        let of_thread = Arc::clone(&shared);
        let writer = Builder::new().name("messages".to_owned());
        if writer.spawn(move || of_thread.write_to(&target)).is_err() {
            // If the host has no thread for this, it has none for a guest either, and nothing is printed.
            shared.lock().is_closed = true;
        }
        Self { shared }
    }

    /// Prints `text` as it is, with its line feeds. It is lost if too much waits already.
    pub(crate) fn say(&self, text: String) {
        let mut state = self.shared.lock();
        state.add(text, self.shared.says_losses);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Prints `line` and a line feed, unless a message of the same place came just before.
    pub(crate) fn say_seldom(&self, kind: CallSite, line: String) {
        let mut state = self.shared.lock();
        if let Some(line) = state.repeats.admit(kind, line, Instant::now()) {
            state.add(line + "\n", self.shared.says_losses);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Waits until all is written, for as long as the reader takes something within `patience`; false
    /// if it did not.
    pub(crate) fn flush(&self, patience: Duration) -> bool {
        let mut state = self.shared.lock();
        let latest = Instant::now() + FLUSH_MAX;
        let (mut written, mut until) = (state.written, Instant::now() + patience);
        while state.is_busy() {
            let left = until.min(latest).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.written != written {
                (written, until) = (state.written, Instant::now() + patience);
            }
        }
        true
    }

    /// As [`Outbox::flush`], with the messages that were held back because others of the same place came before.
    pub(crate) fn flush_all(&self, patience: Duration) -> bool {
        let mut state = self.shared.lock();
        for line in state.repeats.release() {
            state.add(line + "\n", self.shared.says_losses);
        }
        drop(state);
        self.shared.changed.notify_all();
        self.flush(patience)
    }
}

impl Queue {
    fn add(&mut self, text: String, says_losses: bool) {
        if self.bytes >= BYTES_MAX || self.is_closed {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        if says_losses {
            self.tell_losses();
        }
        self.push(Queued { text: text.into_bytes(), stands_for: 1 });
    }

    fn tell_losses(&mut self) {
        if self.lost > 0 {
            let text = format!("sevferry: {} messages were lost: nobody read them\n", self.lost);
            self.push(Queued { text: text.into_bytes(), stands_for: self.lost });
            self.lost = 0;
        }
    }

    fn push(&mut self, message: Queued) {
        self.bytes = self.bytes.saturating_add(message.text.len());
        self.waiting.push_back(message);
    }

    fn is_busy(&self) -> bool {
        self.is_writing || (!self.waiting.is_empty() && !self.is_closed)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, target: &impl AsFd) {
        loop {
            let message = self.next();
            let outcome = self.write_all(target, &message.text);
            let mut state = self.lock();
            state.is_writing = false;
            state.is_broken = outcome.is_err();
            if outcome.is_err() {
                state.lost = state.lost.saturating_add(message.stands_for);
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits for the next bytes to write.
    fn next(&self) -> Queued {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            for line in state.repeats.due(now) {
                state.add(line + "\n", self.says_losses);
            }
            if state.waiting.is_empty() && self.says_losses && !state.is_broken {
                state.tell_losses();
            }
            if let Some(message) = state.waiting.pop_front() {
                state.bytes = state.bytes.saturating_sub(message.text.len());
                state.is_writing = true;
                return message;
            }
            state = match state.repeats.next_due() {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let left = due.saturating_duration_since(now);
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn write_all(&self, target: &impl AsFd, text: &[u8]) -> Result<(), IoError> {
        for step in text.chunks(STEP) {
            write_all(target, step)?;
            let mut state = self.lock();
            state.written = state.written.saturating_add(step.len() as u64);
            drop(state);
            self.changed.notify_all();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};
    use std::thread::spawn;

    use rustix::io::ioctl_fionbio;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);
    const AT_ONCE: Duration = Duration::from_millis(1);

    /// Says more than the pipe and the queue take: `bytes` in all, in lines of 100 bytes.
    fn flood(outbox: &Outbox, bytes: usize) {
        for number in 0..bytes / 100 {
            outbox.say(format!("{number:099}\n"));
        }
    }

    /// All that comes, up to now.
    fn drained(outbox: &Outbox, mut reader: PipeReader) -> String {
        let reading = spawn(move || {
            let mut all = Vec::new();
            let mut buffer = [0; 65536];
            while !all.ends_with(b"end\n") {
                let count = reader.read(&mut buffer).unwrap();
                all.extend_from_slice(&buffer[..count]);
            }
            String::from_utf8(all).unwrap()
        });
        assert!(outbox.flush(SOON));
        outbox.say("end\n".to_owned());
        reading.join().unwrap()
    }

    /// Printing does not wait although nothing reads. The queue is bounded, and lost messages are counted: the reader
    /// gets their number when it reads at last.
    #[test]
    fn speaking_does_not_wait_for_a_reader() {
        let (reader, writer) = pipe().unwrap();
        let outbox = Outbox::new(writer);
        flood(&outbox, 4 << 20);
        let waiting = outbox.shared.lock().bytes;
        assert!(waiting < BYTES_MAX + 200, "{waiting} bytes wait");
        assert!(!outbox.flush(AT_ONCE), "a pipe that nobody reads is full");
        let all = drained(&outbox, reader);
        let (mut next, mut lost_in_all) = (0, 0);
        for line in all.lines().filter(|line| *line != "end") {
            let lost = line.strip_prefix("sevferry: ");
            if let Some(lost) = lost.and_then(|line| line.split_once(" messages were lost")) {
                let lost: usize = lost.0.parse().unwrap();
                (next, lost_in_all) = (next + lost, lost_in_all + lost);
            } else {
                assert_eq!(line, format!("{next:099}"));
                next += 1;
            }
        }
        assert_eq!(next, (4 << 20) / 100);
        assert!(lost_in_all > 0);
        assert!(outbox.flush(AT_ONCE));
    }

    /// The end waits for a reader that reads, also one that has made the pipe non-blocking, and loses
    /// nothing.
    #[test]
    fn a_flush_waits_for_a_reader() {
        for is_nonblocking in [false, true] {
            let (mut reader, writer) = pipe().unwrap();
            ioctl_fionbio(&writer, is_nonblocking).unwrap();
            let outbox = Outbox::new(writer);
            flood(&outbox, 200 << 10);
            let reading = spawn(move || {
                let mut all = vec![0; (200 << 10) / 100 * 100];
                reader.read_exact(&mut all).map(|()| all)
            });
            assert!(outbox.flush(SOON));
            let all = String::from_utf8(reading.join().unwrap().unwrap()).unwrap();
            let lines = all.lines().enumerate();
            assert!(lines.into_iter().all(|(at, line)| line == format!("{at:099}")));
        }
    }

    /// A reader that is gone is not waited for.
    #[test]
    fn a_reader_that_is_gone_is_not_waited_for() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let outbox = Outbox::new(writer);
        flood(&outbox, 4 << 20);
        assert!(outbox.flush(SOON));
    }

    /// A message of any size is taken whole if there is room at all: a report may be long.
    #[test]
    fn a_long_message_is_whole() {
        let (reader, writer) = pipe().unwrap();
        let outbox = Outbox::verbatim(writer);
        outbox.say("x".repeat(2 * BYTES_MAX));
        flood(&outbox, 4 << 20);
        let all = drained(&outbox, reader);
        assert!(all.starts_with(&"x".repeat(2 * BYTES_MAX)));
        assert!(!all.contains("lost"), "nothing else is written to it");
    }

    /// What was held back comes when its second is over, and at the end at once.
    #[test]
    fn what_is_repeated_comes_later() {
        let (mut reader, writer) = pipe().unwrap();
        let outbox = Outbox::new(writer);
        let mut expect = |text: &str| {
            let mut said = vec![0; text.len()];
            reader.read_exact(&mut said).unwrap();
            assert_eq!(String::from_utf8(said).unwrap(), text);
        };
        for number in 0..10 {
            outbox.say_seldom(("a.rs", 1), format!("call {number}"));
        }
        expect("call 0\ncall 9 (and 8 more like it)\n");
        outbox.say_seldom(("a.rs", 1), "and then".to_owned());
        assert!(outbox.flush_all(SOON));
        expect("and then\n");
    }
}
