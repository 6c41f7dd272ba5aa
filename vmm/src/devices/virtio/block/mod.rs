//! virtio's block device: a file or a block device of the host as the guest's disk.
//!
//! ```text
//! device.rs   queues and requests: what is popped, begun, gone on with, finished
//!   request.rs  what a driver asks for, checked, as a value
//!   flight.rs   one that is taken: its next task, and what a task that ends means for it
//!   cache.rs    what of the disk's changes is durable
//!   layout.rs   the features, and the configuration that the driver reads
//!   disk.rs     what is at the host: opened, measured, locked (lock.rs)
//!   engine.rs   what does the work: io_uring (uring.rs), or threads (threads.rs)
//!     arena.rs    the bytes of requests in flight
//! ```
//!
//! Bytes go through the arena, and not from the storage to guest RAM: a request that the driver has
//! given up, or that is late when the guest moves, then ends in memory that is the device's own.

mod arena;
mod cache;
mod device;
mod disk;
mod engine;
mod flight;
mod layout;
mod lock;
mod request;
#[cfg(test)]
mod tests;
mod threads;
mod uring;

pub use device::Block;
pub use disk::{Disk, DiskOptions, NoDisk, NotResized, QUEUES_MAX};
