//! Packets that went nowhere: counted, and said once.

use std::io::Error as IoError;

use log::{debug, warn};
use thiserror::Error;

/// How many packets of a card were dropped. A network may lose packets: neither guest nor host is
/// told of each.
#[derive(Debug, Default)]
pub(super) struct Drops {
    count: u64,
}

impl Drops {
    pub(super) fn count(&mut self, why: &Drop) {
        self.count = self.count.saturating_add(1);
        if self.count == 1 {
            warn!("a network card drops packets, which it says once for each direction: {why}");
        } else {
            debug!("packet {} that a network card drops: {why}", self.count);
        }
    }
}

/// Why a packet is dropped.
#[derive(Debug, Error)]
pub(super) enum Drop {
    /// No Ethernet frame.
    #[error("the guest sends one of {bytes} bytes")]
    Length { bytes: usize },
    /// Its header asks for what was not agreed to, or points out of the packet.
    #[error("the guest sends one whose header is wrong")]
    Header,
    /// The tap does not take it.
    #[error("the tap does not take one: {0}")]
    Unsent(#[source] IoError),
    /// The driver has not accepted what is undone in it.
    #[error("one came that the guest's driver does not understand")]
    Foreign,
    /// The driver's buffers are too small.
    #[error("one of {bytes} bytes came, and the guest has no buffers that are large enough")]
    NoRoom { bytes: usize },
}
