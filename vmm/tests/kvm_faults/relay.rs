//! A wire between two hosts that knows the protocol: it stops at a message, and then does what wires do.

use std::io::{Error as IoError, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;
use sevferry::migration::wire::{FRAME_HEADER_LEN, FrameHeader, Kind};

/// How often a connection looks whether it has been cut.
const LOOK_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// How long a message may be waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A wire. Its source side is TCP, so that it can be reset.
pub(crate) struct Relay {
    wire: Arc<Wire>,
    port: u16,
}

struct Wire {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The message that stops everything.
    trap: Option<Kind>,
    /// Nothing passes, in either direction, on any connection.
    stopped: bool,
    /// Connections of an earlier generation are cut, or stuck.
    generation: u32,
    /// Those are stuck: they stand, and nothing passes on them any more.
    stuck: bool,
}

impl Relay {
    /// A wire to the unix socket at `to`.
    pub(crate) fn to(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Mutex::new(State { trap: None, stopped: false, generation: 0, stuck: false });
        let wire = Arc::new(Wire { state, changed: Condvar::new() });
        let accepting = Arc::clone(&wire);
        thread::spawn(move || {
            for front in listener.incoming() {
                let front = front.unwrap();
                // Nobody there: the source sees an end at once.
                if let Ok(back) = UnixStream::connect(&to) {
                    join(&accepting, front, back);
                }
            }
        });
        Self { wire, port }
    }

    /// Where its source side is.
    pub(crate) fn endpoint(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }

    /// Stops everything at the next message of this kind, which does not arrive.
    pub(crate) fn stop_at(&self, kind: Kind) {
        self.wire.state().trap = Some(kind);
    }

    /// Waits until everything is stopped.
    #[track_caller]
    pub(crate) fn wait_for_stop(&self) {
        let until = Instant::now() + PATIENCE;
        let mut state = self.wire.state();
        while !state.stopped {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{:?} never came", state.trap);
            let waited = self.wire.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Everything goes on, and what was stopped arrives.
    pub(crate) fn release(&self) {
        self.wire.state().stopped = false;
        self.wire.changed.notify_all();
    }

    /// Every connection is reset, and what was stopped is lost. New connections work.
    pub(crate) fn cut(&self) {
        let mut state = self.wire.state();
        (state.stopped, state.generation) = (false, state.generation + 1);
        self.wire.changed.notify_all();
    }

    /// Nothing will ever pass on the connections that there are, and neither side is told. New
    /// connections work.
    pub(crate) fn strand(&self) {
        self.wire.state().stuck = true;
        self.cut();
    }
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while everything is stopped; false if this connection was cut.
    fn may_pass(&self, kind: Option<Kind>, generation: u32) -> bool {
        let mut state = self.state();
        if kind.is_some() && state.trap == kind && state.generation == generation {
            (state.trap, state.stopped) = (None, true);
            self.changed.notify_all();
        }
        while state.stopped && state.generation == generation {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        while state.stuck && state.generation != generation {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.generation == generation
    }
}

/// Forwards in both directions until either side ends.
fn join(wire: &Arc<Wire>, front: TcpStream, back: UnixStream) {
    // What is closed is reset, not ended in order.
    set_socket_linger(&front, Some(Duration::ZERO)).unwrap();
    let (generation, over) = (wire.state().generation, Arc::new(AtomicBool::new(false)));
    let (front_too, back_too) = (front.try_clone().unwrap(), back.try_clone().unwrap());
    let (out, home) = (Arc::clone(wire), Arc::clone(wire));
    let ended = Arc::clone(&over);
    thread::spawn(move || forward(&out, generation, front, back, &over));
    thread::spawn(move || forward(&home, generation, back_too, front_too, &ended));
}

fn forward(
    wire: &Wire,
    generation: u32,
    mut from: impl Read + AsFd,
    mut to: impl Write,
    over: &AtomicBool,
) {
    loop {
        let mut polled = [PollFd::new(&from, PollFlags::IN)];
        let is_readable = poll(&mut polled, Some(&LOOK_UP)).is_ok_and(|count| count > 0);
        if over.load(Ordering::Relaxed) || !wire.may_pass(None, generation) {
            break;
        }
        if !is_readable {
            continue;
        }
        let frame = read_frame(&mut from);
        let kind = frame.as_ref().ok().map(|(kind, _)| *kind);
        // An end waits like everything else.
        if !wire.may_pass(kind, generation) {
            break;
        }
        let passed = frame.and_then(|(_, bytes)| to.write_all(&bytes));
        if passed.is_err() {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
}

fn read_frame(from: &mut impl Read) -> Result<(Kind, Vec<u8>), IoError> {
    let mut header = [0; FRAME_HEADER_LEN];
    from.read_exact(&mut header)?;
    let frame = FrameHeader::decode(&header).expect("both ends are sevferry");
    let mut bytes = vec![0; FRAME_HEADER_LEN + frame.length()];
    bytes[..FRAME_HEADER_LEN].copy_from_slice(&header);
    from.read_exact(&mut bytes[FRAME_HEADER_LEN..])?;
    Ok((frame.kind(), bytes))
}
