//! What a driver asks of its disk: read from the chain once, checked, and a value from then on.

use super::disk::SECTOR;
use crate::devices::virtio::DescriptorChain;

/// Bytes of a header: type, a reserved word, sector.
const HEADER: usize = 16;

/// Bytes of a range to discard or to fill with zeros: sector, how many, flags.
const RANGE: usize = 16;

/// Most ranges of a request.
pub(super) const RANGES_MAX: u32 = 16;

/// Most sectors of a range to discard: 1 GiB.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 21;

/// Most sectors of a range of zeros, 128 MiB: it may have to be written.
pub(super) const ZERO_SECTORS_MAX: u32 = 1 << 18;

/// Bytes of a serial number.
pub(super) const SERIAL_BYTES: usize = 20;

/// `VIRTIO_BLK_T_*`.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`.
const UNMAP: u32 = 1;

/// How a request ended: `VIRTIO_BLK_S_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestStatus {
    /// Done.
    Ok,
    /// It failed, or cannot be.
    Failed,
    /// No such request.
    Unsupported,
}

impl RequestStatus {
    /// What the driver reads.
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Unsupported => 2,
        }
    }
}

/// What a request may name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) sectors: u64,
    pub(super) readonly: bool,
    /// Bytes of a block.
    pub(super) block: u32,
}

/// What is asked for; places and lengths are in bytes, and on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// Bytes.
    Read { at: u64, bytes: u64 },
    /// Bytes to be written.
    Write { at: u64, bytes: u64 },
    /// All that was written made durable.
    Flush,
    /// The serial number.
    Serial,
    /// What the ranges hold is not needed any more.
    Discard(Vec<Range>),
    /// Zeros in the ranges.
    Zero(Vec<Range>),
}

/// A part of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) at: u64,
    pub(super) bytes: u64,
    /// Whether its space may be given back.
    pub(super) may_unmap: bool,
}

/// Reads the header of a request, and what follows it if that is not data. The place of the status is
/// not in the chain any more. `None`: there is no whole header.
pub(super) fn parse(
    chain: &mut DescriptorChain<'_>,
    limits: &Limits,
) -> Option<Result<Asked, RequestStatus>> {
    let mut header = [0; HEADER];
    if chain.read(&mut header) != HEADER {
        return None;
    }
    let (kind, sector) = (word(&header, 0), long(&header, 8));
    Some(match kind {
        IN => {
            limits.span(sector, chain.writable_bytes()).map(|(at, bytes)| Asked::Read { at, bytes })
        }
        OUT if limits.readonly => Err(RequestStatus::Failed),
        OUT => limits
            .span(sector, chain.readable_bytes())
            .map(|(at, bytes)| Asked::Write { at, bytes }),
        FLUSH => Ok(Asked::Flush),
        GET_ID => Ok(Asked::Serial),
        DISCARD | WRITE_ZEROES if limits.readonly => Err(RequestStatus::Failed),
        DISCARD => ranges(chain, limits, DISCARD_SECTORS_MAX, 0).map(Asked::Discard),
        WRITE_ZEROES => ranges(chain, limits, ZERO_SECTORS_MAX, UNMAP).map(Asked::Zero),
        _ => Err(RequestStatus::Unsupported),
    })
}

impl Limits {
    /// `bytes` from `sector` on, if they are whole blocks of the disk.
    fn span(&self, sector: u64, bytes: u64) -> Result<(u64, u64), RequestStatus> {
        let is_whole = bytes.is_multiple_of(SECTOR);
        let end = sector.checked_add(bytes / SECTOR);
        if !is_whole || end.is_none_or(|end| end > self.sectors) {
            return Err(RequestStatus::Failed);
        }
        // A disk has fewer bytes than a file may have, and so does not overflow.
        let at = sector.checked_mul(SECTOR).ok_or(RequestStatus::Failed)?;
        let block = u64::from(self.block);
        if !at.is_multiple_of(block) || !bytes.is_multiple_of(block) {
            return Err(RequestStatus::Failed);
        }
        Ok((at, bytes))
    }
}

/// The ranges of a request, all checked before one of them is touched. `flags` are those that it may
/// have.
fn ranges(
    chain: &mut DescriptorChain<'_>,
    limits: &Limits,
    sectors_max: u32,
    flags: u32,
) -> Result<Vec<Range>, RequestStatus> {
    let bytes = chain.readable_bytes();
    let most = u64::from(RANGES_MAX) * RANGE as u64;
    if bytes == 0 || bytes > most || !bytes.is_multiple_of(RANGE as u64) {
        return Err(RequestStatus::Failed);
    }
    let mut found = Vec::new();
    let mut range = [0; RANGE];
    while chain.read(&mut range) == RANGE {
        let (sector, sectors, own) = (long(&range, 0), word(&range, 8), word(&range, 12));
        if own & !flags != 0 {
            return Err(RequestStatus::Unsupported);
        }
        if sectors > sectors_max {
            return Err(RequestStatus::Failed);
        }
        let (at, bytes) = limits.span(sector, u64::from(sectors) * SECTOR)?;
        if bytes > 0 {
            found.push(Range { at, bytes, may_unmap: own & UNMAP != 0 });
        }
    }
    Ok(found)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
