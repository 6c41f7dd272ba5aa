//! What the driver reads of its disk: features, and `struct virtio_blk_config`.

use super::disk::Disk;
use super::request::{DISCARD_SECTORS_MAX, RANGES_MAX, ZERO_SECTORS_MAX};

/// Entries of each queue.
pub(super) const QUEUE_SIZE: u16 = 256;

/// Most parts of a request's data: header and status have two more descriptors.
pub(super) const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

const SEG_MAX: u64 = 1 << 2;
const READONLY: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`: the driver flushes, and so needs no write-through.
pub(super) const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
/// `VIRTIO_BLK_F_CONFIG_WCE`: the driver chooses between write-back and write-through.
pub(super) const CONFIG_WCE: u64 = 1 << 11;
const MANY_QUEUES: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// Where `writeback` is.
pub(super) const WRITEBACK: u64 = 32;

/// What is offered.
pub(super) fn features(disk: &Disk) -> u64 {
    let options = disk.options();
    let always = SEG_MAX | BLK_SIZE | TOPOLOGY;
    let queues = if options.queues > 1 { MANY_QUEUES } else { 0 };
    let written =
        if options.readonly { READONLY } else { FLUSH | CONFIG_WCE | DISCARD | WRITE_ZEROES };
    always | queues | written
}

/// `struct virtio_blk_config`, to the end of what is offered.
pub(super) fn config(disk: &Disk, writeback: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(60);
    let mut put = |field: &[u8]| bytes.extend_from_slice(field);
    put(&disk.sectors().to_le_bytes());
    // No size_max.
    put(&[0; 4]);
    put(&SEGMENTS_MAX.to_le_bytes());
    // No geometry.
    put(&[0; 4]);
    put(&disk.block().to_le_bytes());
    // Topology: a physical block of 4 KiB, aligned; it is best to ask for such, and for no size.
    let exponent = (4096 / disk.block().clamp(512, 4096)).ilog2().to_le_bytes();
    put(&[exponent[0], 0, 1, 0, 0, 0, 0, 0]);
    put(&[u8::from(writeback), 0]);
    put(&disk.options().queues.to_le_bytes());
    put(&DISCARD_SECTORS_MAX.to_le_bytes());
    put(&RANGES_MAX.to_le_bytes());
    // Space is given back in blocks of 4 KiB.
    put(&8_u32.to_le_bytes());
    put(&ZERO_SECTORS_MAX.to_le_bytes());
    put(&RANGES_MAX.to_le_bytes());
    // Zeros may give space back.
    put(&[1, 0, 0, 0]);
    bytes
}
