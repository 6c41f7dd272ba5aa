//! After a move: where the card is now, told to the network by us and by the guest, a few times.
//!
//! We send a RARP packet with the card's address, so that switches learn the new port at once; the
//! guest, which alone knows its addresses, is asked to announce them (`VIRTIO_NET_S_ANNOUNCE`).
//! Either may be lost, so both are repeated, less and less often: at once, and 50, 200, 450, 800 and
//! 1250 ms after.

use std::io::Error as IoError;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use super::header::HEADER_BYTES;
use super::mac::Mac;
use super::timer::Timer;

/// Milliseconds between one time and the next.
const PAUSES_MS: [u64; 5] = [50, 150, 250, 350, 450];

/// Bytes of a RARP packet, filled up to the least that Ethernet carries.
const RARP_BYTES: usize = 60;

/// A timer, and how often it has run out.
#[derive(Debug)]
pub(super) struct Announcer {
    timer: Timer,
    done: usize,
}

impl Announcer {
    /// Not announcing.
    ///
    /// # Errors
    /// If the host has no timer to give.
    pub(super) fn new() -> Result<Self, IoError> {
        Ok(Self { timer: Timer::new()?, done: PAUSES_MS.len() })
    }

    /// From now on, for a while. While the guest is paused nothing is due.
    pub(super) fn begin(&mut self) {
        self.done = 0;
        self.timer.set(Duration::ZERO);
    }

    /// Whether it is time to announce; waits for the next time then.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.timer.has_run_out();
        if is_due && let Some(pause) = PAUSES_MS.get(self.done) {
            self.timer.set(Duration::from_millis(*pause));
            self.done += 1;
        }
        is_due
    }
}

impl AsRawFd for Announcer {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

/// What a card says to its network, with a header before it: a RARP request for its own address.
pub(super) fn rarp(mac: Mac) -> Vec<u8> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    // Type RARP; Ethernet, IPv4, lengths 6 and 4, reverse request.
    const FIXED: [u8; 10] = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];
    const NO_ADDRESS: [u8; 4] = [0; 4];
    let mac = mac.bytes();
    let mut packet = vec![0; HEADER_BYTES];
    for part in [&BROADCAST[..], &mac, &FIXED, &mac, &NO_ADDRESS, &mac, &NO_ADDRESS] {
        packet.extend_from_slice(part);
    }
    packet.resize(HEADER_BYTES + RARP_BYTES, 0);
    packet
}
