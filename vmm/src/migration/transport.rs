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

use super::endpoint::Endpoint;
use super::socket_file::{NoSocket, SocketFile};

/// How long connecting may take, and how long a peer may take to read one message or page frame.
const SEND_MAX: Duration = Duration::from_secs(10);

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
    /// From the socket calls; the address in use, most often.
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

    /// The socket's file, for whoever outlives the listener to remove.
    pub fn take_file(&mut self) -> Option<SocketFile> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(file, _) => file.take(),
        }
    }

    /// The next connection; `None` if none came within `patience`.
    ///
    /// # Errors
    /// From the socket calls.
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
    /// Connects within [`SEND_MAX`].
    ///
    /// # Errors
    /// From the socket calls, or if the name has no address.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, IoError> {
        match endpoint {
            Endpoint::Unix { path } => Self::Unix(connect_unix(path, SEND_MAX)?).prepared(),
            Endpoint::Tcp { host, port } => {
                let mut last = IoError::new(ErrorKind::NotFound, "the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, SEND_MAX) {
                        Ok(stream) => return Self::Tcp(stream).prepared(),
                        Err(cause) => last = cause,
                    }
                }
                Err(last)
            }
        }
    }

    /// Small messages must not wait for more, and no call may wait for longer than its deadline.
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

    /// Another handle on the same connection, to shut it down from elsewhere.
    ///
    /// # Errors
    /// From `dup`.
    pub fn try_clone(&self) -> Result<Self, IoError> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// Ends the connection in both directions: whoever reads or writes it stops.
    pub fn shut_down(&self) {
        // It may be gone already, which is what is wanted.
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both).unwrap_or_default(),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both).unwrap_or_default(),
        }
    }

    /// Ends what comes in; sending goes on.
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

    /// Fills `buffer`; `false` if the stream ended before its first byte.
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] in the middle, [`ErrorKind::TimedOut`] at `deadline`, however
    /// much has come by then.
    pub fn fill(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<bool, IoError> {
        let mut done = 0;
        while let Some(rest @ [_, ..]) = buffer.get_mut(done..) {
            match self.read(rest) {
                Ok(0) if done == 0 => return Ok(false),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::IN, deadline)?;
                }
                Err(cause) => return Err(cause),
            }
        }
        Ok(true)
    }

    /// Writes all of `parts`, in order.
    ///
    /// # Errors
    /// From the socket; [`ErrorKind::TimedOut`] when the peer has not taken it all in ten seconds.
    pub fn send(&mut self, parts: &mut [IoSlice<'_>]) -> Result<(), IoError> {
        self.send_by(parts, Instant::now() + SEND_MAX)
    }

    fn send_by(&mut self, parts: &mut [IoSlice<'_>], deadline: Instant) -> Result<(), IoError> {
        let mut parts = parts;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.write_vectored(parts) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut parts, count),
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::OUT, deadline)?;
                }
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// Waits until the socket may be ready for `what`; whether it is, the next try finds out.
    fn wait(&self, what: PollFlags, deadline: Instant) -> Result<(), IoError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(IoError::new(ErrorKind::TimedOut, "the peer is too slow"));
        }
        ready(self.descriptor(), what, left).map(|_ready| ())
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

/// Whether somebody connects to `listener`, or something can be read from any of `streams`, within
/// `patience`.
///
/// # Errors
/// From `poll`.
pub(super) fn wait_for_any<'a>(
    listener: &'a Listener,
    streams: impl Iterator<Item = &'a Stream>,
    patience: Duration,
) -> Result<bool, IoError> {
    let descriptors: Vec<_> =
        [listener.descriptor()].into_iter().chain(streams.map(Stream::descriptor)).collect();
    let mut polled: Vec<_> =
        descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)).collect();
    wait_for(&mut polled, patience)
}

/// std would wait for ever for a listener that accepts nobody and whose queue is full.
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
mod tests {
    use std::thread;

    use super::*;

    fn pair() -> (Stream, Stream) {
        let (one, other) = UnixStream::pair().unwrap();
        (Stream::Unix(one).prepared().unwrap(), Stream::Unix(other).prepared().unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    /// Several parts arrive as one run of bytes, also where the socket takes them piecemeal.
    #[test]
    fn parts_arrive_whole_and_in_order() {
        let (mut sender, mut receiver) = pair();
        let large = vec![7; 4 << 20];
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                sender.send(&mut [IoSlice::new(b"head"), IoSlice::new(&[]), IoSlice::new(&large)])
            });
            let mut got = vec![0; 4 + large.len()];
            assert!(receiver.fill(&mut got, soon()).unwrap());
            assert_eq!(&got[..4], b"head");
            assert_eq!(got[4..], large);
            sending.join().unwrap().unwrap();
        });
    }

    /// The end of the stream between messages is an end; in the middle it is an error.
    #[test]
    fn an_end_in_the_middle_is_an_error() {
        let (mut sender, mut receiver) = pair();
        sender.send(&mut [IoSlice::new(b"abc")]).unwrap();
        drop(sender);
        let cut = receiver.fill(&mut [0; 4], soon()).unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
        assert!(!receiver.fill(&mut [0; 4], soon()).unwrap());
    }

    /// A peer that sends a byte now and then does not get more time than the deadline gives.
    #[test]
    fn a_slow_peer_runs_into_the_deadline() {
        let (mut sender, mut receiver) = pair();
        sender.send(&mut [IoSlice::new(b"a")]).unwrap();
        let slow = receiver.fill(&mut [0; 4], Instant::now()).unwrap_err();
        assert_eq!(slow.kind(), ErrorKind::TimedOut);
    }

    /// Somebody who listens and accepts nobody is not waited for for ever.
    #[test]
    fn a_full_queue_is_not_waited_for() {
        let path = std::env::temp_dir().join(format!("sevferry-queue-{}", std::process::id()));
        let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
        let listener = Listener::bind(&endpoint).unwrap();
        let Listener::Unix(_, socket) = &listener else { panic!("a unix socket") };
        rustix::net::listen(socket, 0).unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            match connect_unix(path.to_str().unwrap(), Duration::from_millis(50)) {
                Ok(stream) => waiting.push(stream),
                Err(cause) => break cause,
            }
            assert!(waiting.len() < 10, "the queue takes everybody");
        };
        assert_eq!(refused.kind(), ErrorKind::TimedOut, "{refused}");
    }

    /// A socket file left by a process that is gone is replaced; one in use is not.
    #[test]
    fn a_stale_socket_file_is_replaced() {
        let path = std::env::temp_dir().join(format!("sevferry-transport-{}", std::process::id()));
        let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
        // std does not remove the file when the listener is dropped.
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&endpoint).unwrap();
        let taken = Listener::bind(&endpoint).unwrap_err();
        assert!(matches!(taken, NoSocket::InUse), "{taken}");
        let _client = Stream::connect(&endpoint).unwrap();
        assert!(listener.accept(Duration::from_secs(5)).unwrap().is_some());
        assert!(listener.accept(Duration::from_millis(1)).unwrap().is_none(), "somebody else");
        drop(listener);
        assert!(!path.exists());
    }
}
