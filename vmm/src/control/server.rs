//! The API socket's server: a few connections at once, one request each. It never makes the guest's process wait.
//!
//! Other users are kept out twice: by the socket's mode, and by the user id that the kernel gives for a connection.

use std::convert::Infallible;
use std::io::{Error as IoError, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Uid, geteuid};
use thiserror::Error;

use super::api::{REQUEST_BYTES_MAX, Request, Response};
use super::board::StatusBoard;
use super::event::{Answer, Event};
use super::line::LineReader;
use super::policy::needs_process;
use crate::socket_file::{NoSocket, SocketFile};

/// Most connections at once. Another one is refused.
const CONNECTIONS_MAX: usize = 10;

/// How long a client may take to send its request, or to take a response.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for the end of a cancelled migration. It is less than clients wait.
const CANCEL_PATIENCE: Duration = Duration::from_secs(20);

/// How long the last responses may take to reach their clients when the server ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long to wait after a connection could not be accepted (no file descriptors left).
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves the socket as long as this lives, and then removes it.
#[derive(Debug)]
pub struct Server {
    /// Removed with the server.
    _file: SocketFile,
    listener: Arc<UnixListener>,
    /// Dropped to tell the accepting thread to end.
    running: Option<Sender<Infallible>>,
    accepting: Option<JoinHandle<()>>,
    /// Nothing is ever sent on it. It disconnects when the last connection has ended.
    connections: Receiver<Infallible>,
}

impl Server {
    /// Listens at `path`, replacing the socket of a process that is gone. Requests that `board`
    /// does not answer go to `process`.
    ///
    /// # Errors
    /// [`ServerError`], if another process serves this socket, among others.
    pub fn start(
        path: &Path,
        board: Arc<StatusBoard>,
        process: Sender<Event>,
    ) -> Result<Self, ServerError> {
        let no_socket = |cause| ServerError::Socket { path: path.to_owned(), cause };
        let (listener, file) = SocketFile::bind(path).map_err(no_socket)?;
        let listener = Arc::new(listener);
        let (running, ending) = channel();
        let (alive, connections) = channel();
        let reception = Reception { board, process, _alive: alive, seats: Arc::new(()) };
        let ear = Arc::clone(&listener);
        let accept = move || reception.accept(&ear, &ending);
        let accepting =
            Builder::new().name("api".to_owned()).spawn(accept).map_err(ServerError::Thread)?;
        info!("the API socket is {}", path.display());
        let (running, accepting) = (Some(running), Some(accepting));
        Ok(Self { listener, _file: file, running, accepting, connections })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running = None;
        // On Linux this makes accept(2) fail with EINVAL.
        if let Err(cause) = shutdown(&*self.listener, Shutdown::Both) {
            debug!("closing the API socket: {cause}");
        }
        if let Some(accepting) = self.accepting.take()
            && accepting.join().is_err()
        {
            warn!("the API's thread panicked");
        }
        // The last answer (a migration's end) may still be on its way.
        if let Err(RecvTimeoutError::Timeout) = self.connections.recv_timeout(FAREWELL) {
            debug!("an API client is left behind");
        }
    }
}

/// The data of the accepting thread. Each connection's thread gets a copy.
#[derive(Debug, Clone)]
struct Reception {
    board: Arc<StatusBoard>,
    process: Sender<Event>,
    /// Dropped when the connection ends, however it ends.
    _alive: Sender<Infallible>,
    /// Has one reference for each connection, and one of the accepting thread.
    seats: Arc<()>,
}

impl Reception {
    fn accept(&self, listener: &UnixListener, ending: &Receiver<Infallible>) {
        loop {
            match listener.accept() {
                Ok((stream, _address)) => self.admit(stream),
                Err(cause) => match ending.recv_timeout(ACCEPT_AGAIN) {
                    Err(RecvTimeoutError::Timeout) => debug!("accepting an API client: {cause}"),
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            }
        }
    }

    fn admit(&self, stream: UnixStream) {
        let refusal = match socket_peercred(&stream) {
            Ok(peer) if !is_permitted(peer.uid, geteuid()) => {
                warn!("user {} may not use the API", peer.uid.as_raw());
                Some("only the user who runs this guest, and root, may use its API".to_owned())
            }
            Ok(_peer) if Arc::strong_count(&self.seats) > CONNECTIONS_MAX => {
                Some(format!("busy: {CONNECTIONS_MAX} connections are open; try again"))
            }
            Ok(_peer) => None,
            Err(cause) => Some(format!("who connects is unknown: {cause}")),
        };
        let visit = self.clone();
        let outcome = match refusal {
            Some(reason) => send(&stream, &Response::Refused { reason }),
            None => Builder::new()
                .name("api-client".to_owned())
                .spawn(move || {
                    if let Err(cause) = visit.converse(&stream) {
                        debug!("an API client: {cause}");
                    }
                })
                .map(|_detached| ()),
        };
        if let Err(cause) = outcome {
            debug!("an API client: {cause}");
        }
    }

    /// Reads one request, and sends the answers to it.
    fn converse(&self, stream: &UnixStream) -> Result<(), IoError> {
        let request = match read_request(stream) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(message) => return send(stream, &Response::Error { message }),
        };
        debug!("asked for {request:?}");
        if !needs_process(&request) {
            return send(stream, &self.board.answer(&request, CANCEL_PATIENCE));
        }
        let (answer, answers) = Answer::channel();
        let mut answered = false;
        if self.process.send(Event::Request(request, answer)).is_ok() {
            for response in answers {
                send(stream, &response)?;
                answered = true;
            }
        }
        if answered {
            return Ok(());
        }
        let message = "the guest ended before it was asked".to_owned();
        send(stream, &Response::Error { message })
    }
}

/// Whether this is the user who runs the guest, or root, who can do anything to it anyway.
fn is_permitted(peer: Uid, own: Uid) -> bool {
    peer == own || peer.is_root()
}

/// `None` if the client closed the connection without a request. The error is sent to the client.
fn read_request(stream: &UnixStream) -> Result<Option<Request>, String> {
    let mut lines = LineReader::new(stream, REQUEST_BYTES_MAX);
    let deadline = Instant::now() + PATIENCE;
    let Some(line) = lines.next(Some(deadline)).map_err(|cause| cause.to_string())? else {
        return Ok(None);
    };
    if lines.has_more() {
        return Err("more than one request on one connection".to_owned());
    }
    Request::from_line(&line).map(Some).map_err(|cause| cause.to_string())
}

fn send(mut stream: &UnixStream, response: &Response) -> Result<(), IoError> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&response.to_line().map_err(IoError::other)?)
}

/// Why there is no API socket.
#[derive(Debug, Error)]
pub enum ServerError {
    /// No socket where it should be.
    #[error("making the API socket {}; each guest needs its own", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: NoSocket,
    },
    /// The host has no thread to give.
    #[error("starting a thread for the API")]
    Thread(#[source] IoError),
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
