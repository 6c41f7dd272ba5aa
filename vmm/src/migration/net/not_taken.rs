//! How many of the bytes sent the other host has not taken yet. On a slow network the kernel's buffers hold bytes
//! for a while after they were sent.
#![expect(unsafe_code, reason = "the one file that asks a socket for its queue")]

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that were sent on `socket` and that the other host (TCP) or process (a unix socket) has not taken. It is
/// 0 for a broken socket: the next read or write returns its error.
pub(crate) fn not_taken(socket: BorrowedFd<'_>) -> usize {
    let mut bytes: c_int = 0;
    // SAFETY: SIOCOUTQ, which has TIOCOUTQ's number, writes one int to its argument, which is ours and
    // lives until the call returns; the descriptor is open for as long as it is borrowed.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if answer == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What the other process has not read counts, and what it has read does not.
    #[test]
    fn what_was_not_read_counts() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        assert_eq!(not_taken(near.as_fd()), 0);
        near.write_all(&[7; 1000]).unwrap();
        assert!(not_taken(near.as_fd()) >= 1000);
        far.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(not_taken(near.as_fd()), 0);
    }

    /// What the other host's buffers do not hold counts.
    #[test]
    fn what_finds_no_room_at_the_other_host_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        while near.write(&[7; 1 << 16]).is_ok() {}
        assert!(not_taken(near.as_fd()) > 0);
    }

    /// What is no socket has no queue.
    #[test]
    fn a_file_has_no_queue() {
        assert_eq!(not_taken(File::open("/dev/null").unwrap().as_fd()), 0);
    }
}
