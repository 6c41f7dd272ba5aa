//! A scripted source, which sends whatever the test says, and the real destination.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::create_dir_all;
use std::io::{Error as IoError, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use sevferry::devices::SerialOutput;
use sevferry::machine::config::PlatformKind;
use sevferry::migration::destination::{ReceiveConfig, Received, receive};
use sevferry::migration::handover::journal::{Journal, Side};
use sevferry::migration::watch::{Sight, Wish};
use sevferry::migration::wire::Message;
use sevferry::migration::wire::Reason;
use sevferry::migration::wire::Secret;
use sevferry::migration::wire::{FRAME_HEADER_LEN, FrameHeader};
use sevferry::migration::{Endpoint, Listener, Lobby};

use super::script::{Channel, Step, TO_FILL_IN};

/// After this an attempt hangs. Far above every deadline of the destination's.
pub(crate) const HANG: Duration = Duration::from_secs(180);

/// How long a source may say nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// Held for writing where memory is counted: nothing else may run then.
static MEMORY: RwLock<()> = RwLock::new(());

/// A destination with a place to connect to.
pub(crate) struct Bench {
    /// Somebody wants it to stop in this round.
    pub(crate) stop_at_round: u32,
    /// Or after this time.
    pub(crate) stop_after: Duration,
    /// How long a source may say nothing.
    pub(crate) silence: Duration,
    _memory: Option<RwLockReadGuard<'static, ()>>,
    path: PathBuf,
    listener: Listener,
    platform: Option<PlatformKind>,
}

/// How an attempt ended.
pub(crate) struct Outcome {
    /// Whether a guest arrived, or the error with its causes.
    pub(crate) result: Result<bool, String>,
    /// What the destination told the source, if it refused.
    pub(crate) refusal: Option<String>,
    pub(crate) took: Duration,
}

impl Outcome {
    /// The error; fails if a guest arrived.
    #[track_caller]
    pub(crate) fn refused(&self) -> &str {
        self.result.as_ref().expect_err("a guest was accepted that must not be")
    }
}

impl Bench {
    pub(crate) fn new(platform: Option<PlatformKind>) -> Self {
        let memory = MEMORY.read().unwrap_or_else(PoisonError::into_inner);
        Self { _memory: Some(memory), ..Self::unlocked(platform) }
    }

    /// While this is held no other bench is there; make the bench with [`Bench::unlocked`].
    pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
        MEMORY.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn unlocked(platform: Option<PlatformKind>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("sevferry-hostile-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
        let listener = Listener::bind(&endpoint).unwrap();
        let (stop_at_round, stop_after, silence) = (u32::MAX, HANG, SILENCE);
        Self { stop_at_round, stop_after, silence, _memory: None, path, listener, platform }
    }

    /// Lets a source do `steps`, and the destination receive.
    pub(crate) fn attempt(&self, steps: &[Step]) -> Outcome {
        let (done, over) = channel();
        thread::scope(|scope| {
            let source = scope.spawn(move || Source::new(&self.path, over).play(steps));
            let began = Instant::now();
            let first = Lobby::new(self.silence).hear(&self.listener, HANG);
            let output = &SerialOutput::nowhere();
            let directory = self.path.with_extension("journals");
            let mut journal = |vm| -> Result<Journal, IoError> {
                create_dir_all(&directory)?;
                Journal::open(&directory, vm, Side::Destination).map_err(IoError::other)
            };
            let mut host = ReceiveConfig {
                devices: &[],
                platform: self.platform.as_ref(),
                output,
                journal: &mut journal,
                silence: self.silence,
            };
            let mut watch = |sight: &Sight<'_>| {
                let is_over =
                    began.elapsed() > self.stop_after || sight.progress.round >= self.stop_at_round;
                is_over.then(|| Wish::Cancel(Reason::new("the test has seen enough")))
            };
            let result = match first.expect("the source connects first") {
                Ok(caller) => receive(caller, &self.listener, &mut host, &mut watch),
                Err(cause) => Err(cause.into()),
            };
            done.send(result.is_err()).unwrap();
            let refusal = source.join().unwrap();
            self.forget_waiting();
            let took = began.elapsed();
            assert!(took < HANG, "an attempt hung");
            let arrived = result.map(|received| match received {
                Received::Guest(prepared) => {
                    prepared.refuse("it was only tried");
                    true
                }
                Received::Answered(..) | Received::Settled(_) | Received::Asked(..) => false,
            });
            Outcome { result: arrived.map_err(|cause| chain(&cause)), refusal, took }
        })
    }

    /// Connections that nobody accepted are not the next attempt's.
    fn forget_waiting(&self) {
        while let Ok(Some(_stale)) = self.listener.accept(Duration::ZERO) {}
    }
}

/// An error and its causes.
fn chain(error: &dyn Error) -> String {
    let cause = error.source().map_or_else(String::new, |cause| format!(": {}", chain(cause)));
    format!("{error}{cause}")
}

/// The source's connections.
struct Source<'a> {
    path: &'a PathBuf,
    streams: BTreeMap<Channel, UnixStream>,
    refusal: Option<String>,
    /// What the destination has told.
    secret: Option<Secret>,
    /// Whether the attempt is over, and was refused.
    ended: Option<bool>,
    over: Receiver<bool>,
}

impl<'a> Source<'a> {
    fn new(path: &'a PathBuf, over: Receiver<bool>) -> Self {
        let streams = BTreeMap::new();
        Self { path, streams, refusal: None, secret: None, ended: None, over }
    }

    /// Does the steps, as far as the destination lets it, and stays until the attempt is over.
    /// Returns the destination's reason to refuse, if it said one.
    fn play(mut self, steps: &[Step]) -> Option<String> {
        // It stops where the destination does.
        let _refused = steps.iter().try_for_each(|step| self.step(step));
        let refused = self.ended.unwrap_or_else(|| self.over.recv().unwrap());
        // What was said last is still there.
        while refused && self.refusal.is_none() && self.hear().is_ok() {}
        self.refusal
    }

    fn step(&mut self, step: &Step) -> Result<(), IoError> {
        match step {
            Step::Connect(channel) => {
                let stream = UnixStream::connect(self.path)?;
                stream.set_read_timeout(Some(HANG))?;
                stream.set_write_timeout(Some(HANG))?;
                self.streams.insert(*channel, stream);
                Ok(())
            }
            Step::Send(channel, bytes) => {
                let bytes = self.proven(bytes);
                self.stream(*channel)?.write_all(&bytes)
            }
            Step::Trickle(channel, bytes) => {
                for byte in bytes {
                    self.stream(*channel)?.write_all(&[*byte])?;
                    if let Ok(refused) = self.over.recv_timeout(Duration::from_secs(1)) {
                        self.ended = Some(refused);
                        return Err(ErrorKind::ConnectionAborted.into());
                    }
                }
                Ok(())
            }
            Step::Hear(kind) => {
                while self.hear()?.kind() != *kind {}
                Ok(())
            }
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

    /// A join that has no proof yet gets one.
    fn proven(&self, bytes: &[u8]) -> Vec<u8> {
        let filled_in = || {
            let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_LEN>()?;
            let header = FrameHeader::decode(header).ok()?;
            match Message::decode(header, body.to_vec()) {
                Ok(Message::Join { session, index, proof: TO_FILL_IN }) => {
                    let proof = self.secret?.proof_of_join(session, index);
                    Message::Join { session, index, proof }.encode().ok()
                }
                _ => None,
            }
        };
        filled_in().unwrap_or_else(|| bytes.to_vec())
    }

    fn stream(&mut self, channel: Channel) -> Result<&mut UnixStream, IoError> {
        self.streams.get_mut(&channel).ok_or(ErrorKind::NotConnected.into())
    }

    /// The destination's next message.
    fn hear(&mut self) -> Result<Message, IoError> {
        let stream = self.stream(0)?;
        let mut header = [0; FRAME_HEADER_LEN];
        stream.read_exact(&mut header)?;
        let header = FrameHeader::decode(&header).map_err(IoError::other)?;
        let mut body = vec![0; header.length()];
        stream.read_exact(&mut body)?;
        let message = Message::decode(header, body).map_err(IoError::other)?;
        if let Message::Refuse { reason } = &message {
            self.refusal = Some(reason.to_string());
            return Err(ErrorKind::ConnectionRefused.into());
        }
        if let Message::Accept { secret, .. } = message {
            self.secret = Some(secret);
        }
        Ok(message)
    }
}
