//! How a driver can break the rules of a ring.

use thiserror::Error;
use virtio_queue::Error as RingError;

/// Most descriptors of a chain, in the ring and in an indirect table: what QEMU takes.
pub const CHAIN_MAX: usize = 1024;

/// Not a ring.
#[derive(Debug, Error)]
pub enum BadRing {
    /// A size or an alignment.
    #[error("a ring with {0}")]
    Fields(RingError),
    /// It leaves RAM.
    #[error("a ring that is not in guest RAM")]
    NotRam,
}

/// The driver has broken the rules; the device does nothing more until it is reset.
#[derive(Debug, Error)]
pub enum Broken {
    /// The ring itself.
    #[error("the ring: {0}")]
    Ring(#[from] RingError),
    /// A chain that starts nowhere.
    #[error("a chain starts at descriptor {head} of {size}")]
    Head {
        /// Its head.
        head: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A loop, an index that is none, a table that is none, more than 4 GiB.
    #[error("the chain at {head} has no end")]
    Chain {
        /// Its head.
        head: u16,
    },
    /// Too many descriptors.
    #[error("the chain at {head} has more than {CHAIN_MAX} descriptors")]
    TooLong {
        /// Its head.
        head: u16,
    },
    /// A buffer to read follows one to write.
    #[error("the chain at {head} is not in order: what the device reads comes first")]
    Order {
        /// Its head.
        head: u16,
    },
    /// A buffer that leaves RAM.
    #[error("the chain at {head} names {bytes} bytes at {address:#x}, which are not guest RAM")]
    NotRam {
        /// Its head.
        head: u16,
        /// Where the buffer is.
        address: u64,
        /// How long it is.
        bytes: u32,
    },
    /// A ring that cannot be enabled.
    #[error("queue {index}: {cause}")]
    Setup {
        /// Which queue.
        index: u16,
        /// What is wrong with it.
        cause: BadRing,
    },
    /// Steps of the initialisation in a wrong order.
    #[error("{0}")]
    Protocol(&'static str),
    /// What a device says of its driver.
    #[error("{0}")]
    Request(String),
}
