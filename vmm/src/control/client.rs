//! Asking the process that has a guest, through its API socket.

use std::io::{Error as IoError, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::debug;
use thiserror::Error;

use super::api::{MalformedLine, RESPONSE_BYTES_MAX, Request, Response};
use super::line::{LineError, LineReader};

/// How long the guest's process may take for a response that does not depend on a migration: it may be
/// putting a guest together.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One request on its way.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
}

impl Client {
    /// Sends `request` to the process that serves the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError`] if there is no such process.
    pub fn ask(path: &Path, request: &Request) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|cause| unreachable_at(path, cause))?;
        let client = Self { stream, path: path.to_owned() };
        let line = request.to_line().map_err(|cause| client.wrong(cause))?;
        // A server that refuses us has answered before it closed the connection. That answer is read instead.
        let sent = client.stream.set_write_timeout(Some(PATIENCE)).and_then(|()| {
            let mut stream = &client.stream;
            stream.write_all(&line)
        });
        if let Err(cause) = sent {
            debug!("sending to {}: {cause}", path.display());
        }
        Ok(client)
    }

    /// What comes back.
    #[must_use]
    pub fn responses(&self) -> Responses<'_> {
        Responses { client: self, lines: LineReader::new(&self.stream, RESPONSE_BYTES_MAX) }
    }

    fn wrong(&self, cause: MalformedLine) -> ClientError {
        ClientError::Malformed { path: self.path.clone(), cause }
    }
}

/// What comes back for one request, in order.
#[derive(Debug)]
pub struct Responses<'a> {
    client: &'a Client,
    lines: LineReader<'a>,
}

impl Responses<'_> {
    /// The next, within `patience`; `None` waits for ever.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Gone`] if there will be none.
    pub fn next(&mut self, patience: Option<Duration>) -> Result<Response, ClientError> {
        let path = || self.client.path.clone();
        let deadline = patience.map(|patience| Instant::now() + patience);
        let line = match self.lines.next(deadline) {
            Ok(Some(line)) => line,
            Ok(None) => return Err(ClientError::Gone { path: path() }),
            Err(cause) => return Err(ClientError::Read { path: path(), cause }),
        };
        Response::from_line(&line).map_err(|cause| self.client.wrong(cause))
    }
}

/// Asks and waits for the one response.
///
/// # Errors
/// [`ClientError`].
pub fn ask(path: &Path, request: &Request) -> Result<Response, ClientError> {
    Client::ask(path, request)?.responses().next(Some(PATIENCE))
}

fn unreachable_at(path: &Path, cause: IoError) -> ClientError {
    let path = path.to_owned();
    if cause.kind() == ErrorKind::NotFound {
        ClientError::NoSocket { path }
    } else if cause.kind() == ErrorKind::ConnectionRefused {
        ClientError::NobodyThere { path }
    } else if cause.kind() == ErrorKind::PermissionDenied {
        ClientError::NotPermitted { path }
    } else {
        ClientError::Connect { path, cause }
    }
}

/// Why there is no response.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no such socket.
    #[error("there is no socket {}: does the guest run with --api-socket?", path.display())]
    NoSocket {
        /// The socket.
        path: PathBuf,
    },
    /// There is a socket that nobody serves.
    #[error("nobody serves {}: it is not a socket, or its process was killed, and the guest with it",
            path.display())]
    NobodyThere {
        /// The socket.
        path: PathBuf,
    },
    /// The socket belongs to another user.
    #[error("{} may be used only by the user who runs the guest, and root", path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// No connection, for another reason.
    #[error("connecting to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// The guest's process hung up.
    #[error("the process that serves {} ended without an answer", path.display())]
    Gone {
        /// The socket.
        path: PathBuf,
    },
    /// No line came.
    #[error("waiting for an answer at {}", path.display())]
    Read {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: LineError,
    },
    /// Something else came.
    #[error("the answer at {} is none of sevferry's", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: MalformedLine,
    },
}
