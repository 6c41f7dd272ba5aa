//! Where the packets of a queue pair come from and go to: a queue of a tap, or a test's socket.

use std::fmt::Debug;
use std::io::Error as IoError;
use std::os::fd::AsRawFd;

use crate::memory::DeviceSlice;

/// One packet in, one packet out, each with its header. Nothing here waits.
pub trait Port: Debug + Send + AsRawFd {
    /// The next packet.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    fn read(&self, into: &mut [u8]) -> Result<usize, IoError>;

    /// Sends the packet that is in these pieces of guest RAM.
    ///
    /// # Errors
    /// If it is not taken; it will not be later.
    fn write(&self, header: &[u8], packet: &[DeviceSlice<'_>]) -> Result<(), IoError>;

    /// What may be undone in packets that come: `TUN_F_...`.
    ///
    /// # Errors
    /// If the host does not do that.
    fn set_offloads(&self, offloads: u32) -> Result<(), IoError>;

    /// Whether packets come here at all; at first they do.
    ///
    /// # Errors
    /// If the host does not do that.
    fn set_attached(&self, attached: bool) -> Result<(), IoError>;
}
