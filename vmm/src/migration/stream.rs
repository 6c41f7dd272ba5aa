//! Connections between two hosts: TCP or a unix socket, listened for and opened alike.

use std::fs::remove_file;
use std::io::{Error as IoError, ErrorKind, IoSlice, Read, Result as IoResult, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use log::debug;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Endpoint;

/// Where connections arrive, for as long as this lives.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket, whose file is removed in the end.
    Unix {
        /// The socket.
        listener: UnixListener,
        /// Its file.
        path: String,
    },
}

impl Listener {
    /// Listens at `endpoint`.
    ///
    /// # Errors
    /// As the host gives them; a unix socket that exists is not replaced.
    pub fn bind(endpoint: &Endpoint) -> IoResult<Self> {
        let listener = match endpoint {
            Endpoint::Tcp { host, port } => {
                let listener = TcpListener::bind((host.as_str(), *port))?;
                listener.set_nonblocking(true)?;
                Self::Tcp(listener)
            }
            Endpoint::Unix { path } => {
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Self::Unix { listener, path: path.clone() }
            }
        };
        Ok(listener)
    }

    /// The next connection; `None` if none came within `patience`.
    ///
    /// # Errors
    /// As the host gives them.
    pub fn accept(&self, patience: Duration) -> IoResult<Option<Stream>> {
        let deadline = Instant::now() + patience;
        loop {
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().map(|(stream, _peer)| Stream::Tcp(stream)),
                Self::Unix { listener, .. } => {
                    listener.accept().map(|(stream, _peer)| Stream::Unix(stream))
                }
            };
            match accepted {
                Ok(stream) => return stream.prepared().map(Some),
                Err(cause) if is_transient(&cause) => {}
                Err(cause) => return Err(cause),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = Timespec::try_from(left).map_err(IoError::other)?;
            match poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&timeout)) {
                Ok(_ready) => {}
                Err(cause) if cause == rustix::io::Errno::INTR => {}
                Err(cause) => return Err(cause.into()),
            }
        }
    }
}

/// Nobody waits, or whoever did has gone.
fn is_transient(cause: &IoError) -> bool {
    [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted]
        .contains(&cause.kind())
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix { listener, .. } => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self
            && let Err(cause) = remove_file(&*path)
        {
            debug!("removing {path}: {cause}");
        }
    }
}

/// A connection. Reads and writes go through a shared reference: a thread may do each.
#[derive(Debug)]
pub enum Stream {
    /// TCP, without delay for small messages.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Connects to `endpoint`, trying each of a name's addresses for at most `patience`.
    ///
    /// # Errors
    /// As the host gives them, of the last address.
    pub fn connect(endpoint: &Endpoint, patience: Duration) -> IoResult<Self> {
        match endpoint {
            Endpoint::Unix { path } => Self::Unix(UnixStream::connect(path)?).prepared(),
            Endpoint::Tcp { host, port } => {
                let mut last = IoError::new(ErrorKind::NotFound, "the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(stream) => return Self::Tcp(stream).prepared(),
                        Err(cause) => last = cause,
                    }
                }
                Err(last)
            }
        }
    }

    fn prepared(self) -> IoResult<Self> {
        match &self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
            }
            Self::Unix(stream) => stream.set_nonblocking(false)?,
        }
        Ok(self)
    }

    /// A read or a write that moves nothing for `patience` fails with [`ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// As the host gives them.
    pub fn set_patience(&self, patience: Option<Duration>) -> IoResult<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(patience)
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(patience)
            }
        }
    }

    /// Ends both directions; whoever waits for this connection, on any thread, wakes up.
    ///
    /// # Errors
    /// As the host gives them.
    pub fn shutdown(&self) -> IoResult<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> IoResult<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).read(buffer),
            Stream::Unix(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(bytes),
            Stream::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> IoResult<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write_vectored(slices),
            Stream::Unix(stream) => (&*stream).write_vectored(slices),
        }
    }

    fn flush(&mut self) -> IoResult<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    /// A unix socket takes connections, and its file goes with the listener.
    #[test]
    fn a_listener_takes_connections() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("s");
        let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
        let listener = Listener::bind(&endpoint).unwrap();
        assert!(listener.accept(Duration::ZERO).unwrap().is_none());
        let near = Stream::connect(&endpoint, Duration::from_secs(1)).unwrap();
        let far = listener.accept(Duration::from_secs(1)).unwrap().unwrap();
        (&near).write_all(b"over").unwrap();
        let mut bytes = [0; 4];
        (&far).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"over");
        far.shutdown().unwrap();
        assert_eq!((&near).read(&mut bytes).unwrap(), 0);
        let taken = Listener::bind(&endpoint).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
    }

    /// A connection on which nothing moves does not hold a thread for ever.
    #[test]
    fn patience_ends() {
        let (near, _far) = UnixStream::pair().unwrap();
        let near = Stream::Unix(near);
        near.set_patience(Some(Duration::from_millis(1))).unwrap();
        assert_eq!((&near).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
