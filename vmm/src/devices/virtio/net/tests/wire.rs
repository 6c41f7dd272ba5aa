//! The other end of a card's port: a socket that keeps packets apart, and what the card asked of it.

use std::io::Error as IoError;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::ioctl_fionbio;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::super::Port;
use crate::memory::DeviceSlice;

/// What the card did with its port.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) offloads: AtomicU32,
    pub(super) is_detached: AtomicBool,
    pub(super) reads: AtomicUsize,
    pub(super) writes: AtomicUsize,
    /// What every read and write fails with, if not 0.
    pub(super) errno: AtomicI32,
}

/// The network's end.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    pub(super) seen: Arc<Seen>,
}

#[derive(Debug)]
struct SocketPort {
    socket: OwnedFd,
    seen: Arc<Seen>,
}

/// A port and its wire.
pub(super) fn port() -> (Box<dyn Port>, Wire) {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (near, far) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    ioctl_fionbio(&near, true).unwrap();
    set_socket_timeout(&far, Timeout::Recv, Some(Duration::from_secs(10))).unwrap();
    let seen = Arc::new(Seen::default());
    let wire = Wire { socket: far, seen: Arc::clone(&seen) };
    (Box::new(SocketPort { socket: near, seen }), wire)
}

impl Wire {
    /// A packet comes from the network, with its header.
    pub(super) fn send(&self, header: &[u8; 12], packet: &[u8]) {
        let bytes = [header, packet].concat();
        assert_eq!(send(&self.socket, &bytes, SendFlags::empty()).unwrap(), bytes.len());
    }

    /// As many packets as the socket takes; how many that is.
    pub(super) fn flood(&self, packet: &[u8]) -> usize {
        let bytes = [&[0; 12], packet].concat();
        (0..).take_while(|_| send(&self.socket, &bytes, SendFlags::DONTWAIT).is_ok()).count()
    }

    /// The next packet that the card sends.
    #[track_caller]
    pub(super) fn receive(&self) -> (Vec<u8>, Vec<u8>) {
        let mut bytes = vec![0; 70_000];
        let (length, _) = recv(&self.socket, &mut bytes[..], RecvFlags::empty()).unwrap();
        bytes.truncate(length);
        let packet = bytes.split_off(12);
        (bytes, packet)
    }

    /// Whether nothing is sent for so long.
    pub(super) fn is_silent_for(&self, patience: Duration) -> bool {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(patience)).unwrap();
        let is_silent = recv(&self.socket, &mut [0; 1][..], RecvFlags::PEEK).is_err();
        set_socket_timeout(&self.socket, Timeout::Recv, Some(Duration::from_secs(10))).unwrap();
        is_silent
    }

    /// Whether nothing was sent that is not received yet.
    pub(super) fn is_silent(&self) -> bool {
        let peeked = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        !recv(&self.socket, &mut [0; 1][..], peeked).is_ok_and(|(length, _)| length > 0)
    }
}

impl AsRawFd for SocketPort {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl SocketPort {
    fn failure(&self) -> Result<(), IoError> {
        match self.seen.errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(IoError::from_raw_os_error(errno)),
        }
    }
}

impl Port for SocketPort {
    fn read(&self, into: &mut [u8]) -> Result<usize, IoError> {
        self.seen.reads.fetch_add(1, Ordering::Relaxed);
        self.failure()?;
        Ok(recv(&self.socket, into, RecvFlags::DONTWAIT)?.0)
    }

    fn write(&self, header: &[u8], packet: &[DeviceSlice<'_>]) -> Result<(), IoError> {
        self.seen.writes.fetch_add(1, Ordering::Relaxed);
        self.failure()?;
        let mut bytes = header.to_vec();
        for part in packet {
            let at = bytes.len();
            bytes.resize(at + part.len(), 0);
            part.copy_to(&mut bytes[at..]);
        }
        send(&self.socket, &bytes, SendFlags::DONTWAIT)?;
        Ok(())
    }

    fn set_offloads(&self, offloads: u32) -> Result<(), IoError> {
        self.seen.offloads.store(offloads, Ordering::Relaxed);
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> Result<(), IoError> {
        self.seen.is_detached.store(!attached, Ordering::Relaxed);
        Ok(())
    }
}
