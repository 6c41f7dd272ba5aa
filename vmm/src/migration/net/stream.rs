//! Byte streams between two hosts, with a deadline on everything.

use std::io::{Error as IoError, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::endpoint::Endpoint;
use super::not_taken::not_taken;
use super::patience::{Overdue, Wait};
use crate::socket_file::{NoSocket, SocketFile};

/// Least time for a try to connect to one address of a name.
const CONNECT_MIN: Duration = Duration::from_millis(100);

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A socket file; `None` once [`Listener::take_file`] has taken charge of its removal.
    Unix(Option<SocketFile>, UnixListener),
}

impl Listener {
    /// Listens at `endpoint`.
    ///
    /// # Errors
    /// From the socket calls; most often the address is in use.
    pub fn bind(endpoint: &Endpoint) -> Result<Self, NoSocket> {
        let listener = match endpoint {
            Endpoint::Tcp { host, port } => Self::Tcp(TcpListener::bind((host.as_str(), *port))?),
            Endpoint::Unix { path } => {
                let (socket, file) = SocketFile::bind(Path::new(path))?;
                Self::Unix(Some(file), socket)
            }
        };
        match &listener {
            Self::Tcp(socket) => socket.set_nonblocking(true)?,
            Self::Unix(_, socket) => socket.set_nonblocking(true)?,
        }
        Ok(listener)
    }

    /// The socket's file, so that it can be removed later than the listener is closed.
    pub fn take_file(&mut self) -> Option<SocketFile> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(file, _) => file.take(),
        }
    }

    /// The next connection; `None` if none came within `patience`.
    ///
    /// # Errors
    /// From the socket calls. Each of them may pass: the host or this process is short of something, or the peer
    /// that connected is gone.
    pub fn accept(&self, patience: Duration) -> Result<Option<Stream>, IoError> {
        if !ready(self.descriptor(), PollFlags::IN, patience)? {
            return Ok(None);
        }
        let stream = match self {
            Self::Tcp(socket) => socket.accept().map(|(stream, _peer)| Stream::Tcp(stream)),
            Self::Unix(_, socket) => socket.accept().map(|(stream, _peer)| Stream::Unix(stream)),
        };
        match stream {
            Ok(stream) => stream.prepared().map(Some),
            // The peer has gone again.
            Err(gone) if gone.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(_, socket) => socket.as_fd(),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Looks up the name, calls `found`, and if that returns true connects within `patience`.
    ///
    /// # Errors
    /// From the socket calls, or if the name has no address.
    pub(crate) fn connect(
        endpoint: &Endpoint,
        patience: Duration,
        found: &dyn Fn() -> bool,
    ) -> Result<Self, IoError> {
        let unwanted = || IoError::from(Overdue::Unwanted);
        let (host, port) = match endpoint {
            Endpoint::Tcp { host, port } => (host, *port),
            Endpoint::Unix { path } if found() => {
                return Self::Unix(connect_unix(path, patience)?).prepared();
            }
            Endpoint::Unix { .. } => return Err(unwanted()),
        };
        let addresses: Vec<_> = (host.as_str(), port).to_socket_addrs()?.collect();
        let mut last = IoError::new(ErrorKind::NotFound, "the name has no address");
        let (until, mut left) = (Instant::now() + patience, addresses.len());
        for address in addresses {
            if !found() {
                return Err(unwanted());
            }
            // An address that does not answer leaves time for the others.
            let share = u32::try_from(left).unwrap_or(u32::MAX);
            let share = until.saturating_duration_since(Instant::now()) / share;
            left -= 1;
            match TcpStream::connect_timeout(&address, share.max(CONNECT_MIN)) {
                Ok(stream) => return Self::Tcp(stream).prepared(),
                Err(cause) => last = cause,
            }
        }
        Err(last)
    }

    /// Small messages must not wait for more to send, and no call may wait beyond its deadline.
    fn prepared(self) -> Result<Self, IoError> {
        match &self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
            }
            Self::Unix(stream) => stream.set_nonblocking(true)?,
        }
        Ok(self)
    }

    /// Another handle on the same connection, so that another thread can shut it down.
    ///
    /// # Errors
    /// From `dup`.
    pub fn try_clone(&self) -> Result<Self, IoError> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// Ends the connection in both directions. Threads that read or write it stop waiting.
    pub fn shut_down(&self) {
        // It may be gone already, which is what is wanted.
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both).unwrap_or_default(),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both).unwrap_or_default(),
        }
    }

    /// Ends reading. Sending goes on.
    pub fn stop_reading(&self) {
        // It may be gone already, which is what is wanted.
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Read).unwrap_or_default(),
            Self::Unix(stream) => stream.shutdown(Shutdown::Read).unwrap_or_default(),
        }
    }

    /// Whether something can be read within `patience`; also true at the end of the stream.
    ///
    /// # Errors
    /// From `poll`.
    pub fn readable(&self, patience: Duration) -> Result<bool, IoError> {
        ready(self.descriptor(), PollFlags::IN, patience)
    }

    /// Bytes that were sent and that the peer has not taken yet.
    pub(crate) fn not_taken(&self) -> usize {
        not_taken(self.descriptor())
    }

    /// Fills `buffer`; `false` if the stream ended before its first byte.
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] if the stream ended in the middle; [`ErrorKind::TimedOut`] when `wait` is over,
    /// however much has arrived by then.
    pub(crate) fn fill(&mut self, buffer: &mut [u8], wait: &mut Wait<'_>) -> Result<bool, IoError> {
        self.fill_by(buffer.len(), wait, &mut |stream, done| {
            stream.read(buffer.get_mut(done..).unwrap_or_default())
        })
    }

    /// Fills guest memory as [`Stream::fill`] fills a buffer.
    ///
    /// # Errors
    /// As [`Stream::fill`].
    pub(crate) fn fill_memory(
        &mut self,
        memory: &VolatileSlice<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<bool, IoError> {
        self.fill_by(memory.len(), wait, &mut |stream, done| {
            let mut rest = memory.offset(done).map_err(io_error)?;
            match stream {
                Self::Tcp(stream) => stream.read_volatile(&mut rest),
                Self::Unix(stream) => stream.read_volatile(&mut rest),
            }
            .map_err(io_error)
        })
    }

    /// Has `read` read what is left of `len` bytes, whose first so many are there, until all are.
    fn fill_by(
        &mut self,
        len: usize,
        wait: &mut Wait<'_>,
        read: &mut dyn FnMut(&mut Self, usize) -> Result<usize, IoError>,
    ) -> Result<bool, IoError> {
        let mut done = 0;
        while done < len {
            match read(self, done) {
                Ok(0) if done == 0 => return Ok(false),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    done += count;
                    wait.moved(count);
                }
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::IN, wait)?;
                }
                Err(cause) => return Err(cause),
            }
        }
        Ok(true)
    }

    /// Writes all of `parts`, in order.
    ///
    /// # Errors
    /// From the socket; [`ErrorKind::TimedOut`] when `wait` is over before the peer has taken it all.
    pub(crate) fn send(
        &mut self,
        parts: &mut [IoSlice<'_>],
        wait: &mut Wait<'_>,
    ) -> Result<(), IoError> {
        let mut parts = parts;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.write_vectored(parts) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    IoSlice::advance_slices(&mut parts, count);
                    wait.moved(count);
                }
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::OUT, wait)?;
                }
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// Writes `bytes`, if the socket's buffer has room for them.
    ///
    /// # Errors
    /// From the socket; [`ErrorKind::WouldBlock`] if there is not enough room.
    pub(crate) fn send_at_once(&mut self, bytes: &[u8]) -> Result<(), IoError> {
        self.write_all(bytes)
    }

    /// Waits until the socket may be ready for `what`. The next try shows whether it is.
    fn wait(&self, what: PollFlags, wait: &mut Wait<'_>) -> Result<(), IoError> {
        let (step, begun) = (wait.step()?, Instant::now());
        ready(self.descriptor(), what, step)?;
        wait.waited(begun.elapsed());
        Ok(())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, IoError> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, IoError> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> Result<usize, IoError> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(parts),
            Self::Unix(stream) => stream.write_vectored(parts),
        }
    }

    fn flush(&mut self) -> Result<(), IoError> {
        Ok(())
    }
}

/// Whether within `patience` there is a connection to accept from `listener`, if there is one, or something to
/// read from one of `streams`.
///
/// # Errors
/// From `poll`.
pub(crate) fn wait_for_any<'a>(
    listener: Option<&'a Listener>,
    streams: impl Iterator<Item = &'a Stream>,
    patience: Duration,
) -> Result<bool, IoError> {
    let descriptors: Vec<_> = listener
        .map(Listener::descriptor)
        .into_iter()
        .chain(streams.map(Stream::descriptor))
        .collect();
    let mut polled: Vec<_> =
        descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)).collect();
    wait_for(&mut polled, patience)
}

/// std has no deadline here: it would wait for ever for a listener that accepts nothing and whose queue is full.
fn connect_unix(path: &str, patience: Duration) -> Result<UnixStream, IoError> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    match connect(&socket, &address) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(Errno::AGAIN) => {
            Err(IoError::new(ErrorKind::TimedOut, "somebody listens, and accepts nobody"))
        }
        Err(cause) => Err(cause.into()),
    }
}

/// The result of the system call.
fn io_error(cause: VolatileMemoryError) -> IoError {
    if let VolatileMemoryError::IOError(cause) = cause { cause } else { IoError::other(cause) }
}

fn ready(descriptor: BorrowedFd<'_>, what: PollFlags, patience: Duration) -> Result<bool, IoError> {
    wait_for(&mut [PollFd::new(&descriptor, what)], patience)
}

fn wait_for(polled: &mut [PollFd<'_>], patience: Duration) -> Result<bool, IoError> {
    let timeout = Timespec::try_from(patience).ok();
    match poll(polled, timeout.as_ref()) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(cause) => Err(cause.into()),
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
