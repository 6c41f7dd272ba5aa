//! The serial form of page status, for the migration stream and the control interface.
//!
//! All numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `SEVPAGES` |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | flags: bit 0 poisoned, bit 1 migration offered, bit 2 guest ready, bit 3 donated table; others 0 |
//! | 12 | 4 | the frame of the donated table's head; 0 without bit 3 |
//! | 16 | 8 | epoch |
//! | 24 | 8 | count of regions |
//! | 32 | 16 × count | `base`, `limit`: frames of one shared region |
//!
//! Regions lie in RAM, ascend and do not touch, so a state has exactly one serial form.
//! A poisoned record has no regions and no table.

use thiserror::Error;

use super::ledger::Ledger;
use super::readiness::Readiness;
use super::{Design, Overflow, PageStatus, SharedRegions, Status};
use crate::page::{Frame, PageRange, RamLayout};

const MAGIC: [u8; 8] = *b"SEVPAGES";
const VERSION: u16 = 1;

const POISONED: u16 = 1 << 0;
const OFFERED: u16 = 1 << 1;
const READY: u16 = 1 << 2;
const DONATED: u16 = 1 << 3;

const HEADER_BYTES: usize = 32;
const REGION_BYTES: usize = 16;

impl PageStatus {
    /// The serial form, as of now.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // A record of the host's own holds still; one that the guest keeps may not.
        let sampled = self.sampled_if_donated();
        let now = sampled.as_ref().unwrap_or(self);
        let poisoned = if now.ledger.whole().is_err() { POISONED } else { 0 };
        // The largest RAM has fewer frames than this can say.
        let table = now.ledger.sampled_frames().and_then(|(_, base)| u32::try_from(base.0).ok());
        let donated = if table.is_some() { DONATED } else { 0 };
        let readiness = match self.readiness {
            Readiness::NotOffered => 0,
            Readiness::NotReady | Readiness::Withdrawn => OFFERED,
            Readiness::Ready => OFFERED | READY,
        };
        let mut regions = Vec::new();
        let mut count: u64 = 0;
        for region in now.shared_regions().into_iter().flatten() {
            count += 1;
            regions.extend_from_slice(&region.base().0.to_le_bytes());
            regions.extend_from_slice(&region.limit().0.to_le_bytes());
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + regions.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(poisoned | readiness | donated).to_le_bytes());
        bytes.extend_from_slice(&table.unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&regions);
        bytes
    }

    /// Reads the serial form of a guest with this RAM. The bytes are not trusted.
    ///
    /// # Errors
    /// [`MalformedStatus`] unless they are exactly what [`PageStatus::to_bytes`] could have written.
    pub fn from_bytes(
        bytes: &[u8],
        layout: RamLayout,
        design: impl Into<Design>,
    ) -> Result<Self, MalformedStatus> {
        Self::from_bytes_with_bound(bytes, layout, design, SharedRegions::default_bound(&layout))
    }

    /// As [`PageStatus::from_bytes`], with another bound on the region list.
    ///
    /// # Errors
    /// As [`PageStatus::from_bytes`].
    pub fn from_bytes_with_bound(
        bytes: &[u8],
        layout: RamLayout,
        design: impl Into<Design>,
        bound: usize,
    ) -> Result<Self, MalformedStatus> {
        let design = design.into();
        let (header, regions) = StatusHeader::split(bytes)?;
        if header.poisoned && header.count > 0 {
            return Err(MalformedStatus::PoisonedWithRegions { count: header.count });
        }
        let most = match design {
            Design::List(Overflow::Poison) => most_regions(&layout).min(bound as u64),
            Design::List(Overflow::Promote) | Design::Bitmap | Design::Donated => {
                most_regions(&layout)
            }
        };
        if header.count > most {
            return Err(MalformedStatus::TooManyRegions { count: header.count, most });
        }
        let expected = u128::from(header.count) * REGION_BYTES as u128;
        if regions.len() as u128 != expected {
            return Err(MalformedStatus::Length { count: header.count, len: regions.len() });
        }
        let mut ledger = match (header.poisoned, design, header.table) {
            (true, _, _) => Ledger::poisoned(layout, design, bound),
            (false, Design::Donated, Some(base)) => Ledger::sampled(layout, design, base),
            (false, Design::List(_) | Design::Bitmap, None) => Ledger::new(layout, design, bound),
            (false, _, table) => {
                return Err(MalformedStatus::Table { named: table.is_some(), design });
            }
        };
        read_regions(regions, &mut ledger)?;
        let mut status = Self::from_parts(ledger, header.readiness, header.epoch);
        status.history.heard = true;
        Ok(status)
    }
}

/// The most regions that can be told apart in this RAM: every other page.
fn most_regions(layout: &RamLayout) -> u64 {
    layout.ranges().map(|run| run.pages().div_ceil(2)).sum()
}

fn read_regions(bytes: &[u8], ledger: &mut Ledger) -> Result<(), MalformedStatus> {
    let mut previous_limit = None;
    let mut rest = bytes;
    while let Some((region, after)) = rest.split_first_chunk::<REGION_BYTES>() {
        rest = after;
        let [base, limit] = halves(region).map(Frame);
        let range = PageRange::new(base, limit);
        let range = range.map_err(|_none| MalformedStatus::EmptyRegion { base, limit })?;
        if previous_limit.is_some_and(|previous| base <= previous) {
            return Err(MalformedStatus::NotAscending { base, limit });
        }
        if ledger.layout().clip(range).next() != Some(range) {
            return Err(MalformedStatus::OutsideRam { base, limit });
        }
        ledger.set(range, Status::Shared, &mut |_| {});
        previous_limit = Some(limit);
    }
    Ok(())
}

/// Two numbers that follow each other.
fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(*bytes);
    let low = both & u128::from(u64::MAX);
    [low, both >> 64].map(|half| u64::try_from(half).unwrap_or(u64::MAX))
}

struct StatusHeader {
    poisoned: bool,
    readiness: Readiness,
    /// The head of the guest's table.
    table: Option<Frame>,
    epoch: u64,
    count: u64,
}

impl StatusHeader {
    /// Reads the header; the rest is the regions.
    fn split(bytes: &[u8]) -> Result<(Self, &[u8]), MalformedStatus> {
        let truncated = MalformedStatus::Truncated { len: bytes.len() };
        let (magic, rest) = bytes.split_first_chunk().ok_or(truncated)?;
        let (version, rest) = rest.split_first_chunk().ok_or(truncated)?;
        let (flags, rest) = rest.split_first_chunk().ok_or(truncated)?;
        let (table, rest) = rest.split_first_chunk().ok_or(truncated)?;
        let (numbers, rest) = rest.split_first_chunk().ok_or(truncated)?;
        if *magic != MAGIC {
            return Err(MalformedStatus::Magic);
        }
        let version = u16::from_le_bytes(*version);
        if version != VERSION {
            return Err(MalformedStatus::Version { version });
        }
        let flags = u16::from_le_bytes(*flags);
        let readiness = match flags & (OFFERED | READY) {
            0 => Readiness::NotOffered,
            OFFERED => Readiness::NotReady,
            READY => return Err(MalformedStatus::Flags { flags }),
            _ => Readiness::Ready,
        };
        let (table, poisoned) = (u32::from_le_bytes(*table), flags & POISONED != 0);
        let table = match flags & DONATED {
            0 if table == 0 => None,
            DONATED if !poisoned => Some(Frame(table.into())),
            _ => return Err(MalformedStatus::Flags { flags }),
        };
        if flags & !(POISONED | OFFERED | READY | DONATED) != 0 {
            return Err(MalformedStatus::Flags { flags });
        }
        let [epoch, count] = halves(numbers);
        Ok((Self { poisoned, readiness, table, epoch, count }, rest))
    }
}

/// Why bytes are not page status of this guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MalformedStatus {
    /// Shorter than the header.
    #[error("page status of {len} bytes is shorter than its 32-byte header")]
    Truncated {
        /// Length in bytes.
        len: usize,
    },
    /// Something else.
    #[error("page status does not start with SEVPAGES")]
    Magic,
    /// Written by another version of this program.
    #[error("page status has version {version}; this program reads version 1")]
    Version {
        /// The version in the header.
        version: u16,
    },
    /// Flags that are reserved, or that contradict each other.
    #[error("page status has flags {flags:#x} or reserved bytes that version 1 does not allow")]
    Flags {
        /// The flags in the header.
        flags: u16,
    },
    /// A table where the host keeps the record, or none where the guest does.
    #[error(
        "page status {} a donated table, but status={design} was offered",
        if *named { "names" } else { "does not name" }
    )]
    Table {
        /// Whether there is a table.
        named: bool,
        /// The design that was offered.
        design: Design,
    },
    /// A poisoned record is empty.
    #[error("page status is marked poisoned but has {count} regions")]
    PoisonedWithRegions {
        /// The count in the header.
        count: u64,
    },
    /// More than RAM, or the configured bound, has room for.
    #[error("page status has {count} regions; at most {most} are accepted here")]
    TooManyRegions {
        /// The count in the header.
        count: u64,
        /// The most that are accepted.
        most: u64,
    },
    /// More or fewer bytes than the regions take.
    #[error("page status has {len} bytes of regions, not 16 for each of {count}")]
    Length {
        /// The count in the header.
        count: u64,
        /// Bytes after the header.
        len: usize,
    },
    /// `base >= limit`.
    #[error("page status has the empty region {base:#x}..{limit:#x}")]
    EmptyRegion {
        /// First frame.
        base: Frame,
        /// One past the last frame.
        limit: Frame,
    },
    /// Overlaps, touches or precedes the region before it.
    #[error(
        "page status has region {base:#x}..{limit:#x} out of order, or not apart from the last"
    )]
    NotAscending {
        /// First frame.
        base: Frame,
        /// One past the last frame.
        limit: Frame,
    },
    /// Not wholly in one run of RAM.
    #[error("page status has region {base:#x}..{limit:#x}, which is not all RAM")]
    OutsideRam {
        /// First frame.
        base: Frame,
        /// One past the last frame.
        limit: Frame,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption::Form;
    use crate::page::PAGE_SIZE;

    const RAM_PAGES: u64 = 256;

    fn layout() -> RamLayout {
        RamLayout::new(RAM_PAGES * PAGE_SIZE).unwrap()
    }

    fn bytes(flags: u16, regions: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = b"SEVPAGES\x01\x00".to_vec();
        bytes.extend(flags.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(7_u64.to_le_bytes());
        bytes.extend((regions.len() as u64).to_le_bytes());
        for (base, limit) in regions {
            bytes.extend(base.to_le_bytes());
            bytes.extend(limit.to_le_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Result<PageStatus, MalformedStatus> {
        PageStatus::from_bytes_with_bound(bytes, layout(), Overflow::Promote, 4)
    }

    /// The bytes of version 1, so that a change of them is noticed.
    #[test]
    fn version_1_is_these_bytes() {
        let golden = bytes(OFFERED | READY, &[(1, 3), (4, 256)]);
        let status = read(&golden).unwrap();
        let regions: Vec<_> =
            status.shared_regions().unwrap().map(|r| (r.base().0, r.limit().0)).collect();
        assert_eq!(regions, [(1, 3), (4, 256)]);
        assert_eq!(status.shared_pages(), Ok(254));
        assert_eq!(status.epoch(), 7);
        assert_eq!(status.migratable(), Ok(()));
        assert_eq!(status.to_bytes(), golden);
    }

    /// A poisoned record arrives poisoned.
    #[test]
    fn carries_the_poison() {
        let status = read(&bytes(POISONED | OFFERED | READY, &[])).unwrap();
        assert_eq!(status.form(), Form::Poisoned);
        assert!(status.migratable().is_err());
        assert_eq!(status.to_bytes(), bytes(POISONED | OFFERED | READY, &[]));
    }

    /// More regions than the list may hold arrive as a bitmap, or are refused if that is not allowed.
    #[test]
    fn long_lists_become_bitmaps() {
        let regions: Vec<_> = (0..5).map(|n| (2 * n, 2 * n + 1)).collect();
        let long = bytes(0, &regions);
        let status = read(&long).unwrap();
        assert_eq!(status.form(), Form::Bitmap);
        assert_eq!(status.to_bytes(), long);
        let refused = PageStatus::from_bytes_with_bound(&long, layout(), Overflow::Poison, 4);
        assert_eq!(refused.unwrap_err(), MalformedStatus::TooManyRegions { count: 5, most: 4 });
    }

    /// A region list that lies is refused, and the error says how.
    #[test]
    fn refuses_regions_that_are_not_a_region_list() {
        let apart =
            |base, limit| MalformedStatus::NotAscending { base: Frame(base), limit: Frame(limit) };
        let empty =
            |base, limit| MalformedStatus::EmptyRegion { base: Frame(base), limit: Frame(limit) };
        let outside =
            |base, limit| MalformedStatus::OutsideRam { base: Frame(base), limit: Frame(limit) };
        for (regions, expected) in [
            (&[(10, 12), (4, 6)][..], apart(4, 6)),
            (&[(4, 6), (5, 7)], apart(5, 7)),
            (&[(4, 6), (6, 7)], apart(6, 7)),
            (&[(4, 6), (4, 6)], apart(4, 6)),
            (&[(4, 4)], empty(4, 4)),
            (&[(6, 4)], empty(6, 4)),
            (&[(250, 257)], outside(250, 257)),
            (&[(256, 257)], outside(256, 257)),
            (&[(0, u64::MAX)], outside(0, u64::MAX)),
        ] {
            assert_eq!(read(&bytes(0, regions)).unwrap_err(), expected);
        }
    }

    /// A region across the device hole is not all RAM, though both its ends are.
    #[test]
    fn refuses_a_region_across_the_hole() {
        let layout = RamLayout::new(4 << 30).unwrap();
        let across = bytes(0, &[(0xb_ffff, 0x10_0001)]);
        let refused = PageStatus::from_bytes(&across, layout, Overflow::Promote).unwrap_err();
        assert!(matches!(refused, MalformedStatus::OutsideRam { .. }), "{refused}");
    }

    /// A header that is not version 1's is refused, and the error says how.
    #[test]
    fn refuses_a_header_that_is_not_ours() {
        let edited = |offset: usize, value: u8| {
            let mut bytes = bytes(OFFERED, &[]);
            bytes[offset] = value;
            read(&bytes).unwrap_err()
        };
        assert_eq!(edited(0, b'Z'), MalformedStatus::Magic);
        assert_eq!(edited(8, 2), MalformedStatus::Version { version: 2 });
        assert_eq!(edited(10, 16), MalformedStatus::Flags { flags: 16 });
        assert_eq!(edited(10, 4), MalformedStatus::Flags { flags: READY });
        assert_eq!(edited(12, 1), MalformedStatus::Flags { flags: OFFERED });
        let poisoned = read(&bytes(POISONED, &[(0, 1)])).unwrap_err();
        assert_eq!(poisoned, MalformedStatus::PoisonedWithRegions { count: 1 });
    }

    /// A count is believed only if RAM has room for it and the bytes are there.
    #[test]
    fn refuses_a_count_that_is_not_true() {
        let counted = |count: u64| {
            let mut bytes = bytes(0, &[(0, 1)]);
            bytes[24..32].copy_from_slice(&count.to_le_bytes());
            read(&bytes).unwrap_err()
        };
        assert_eq!(counted(0), MalformedStatus::Length { count: 0, len: 16 });
        assert_eq!(counted(2), MalformedStatus::Length { count: 2, len: 16 });
        let most = RAM_PAGES / 2;
        assert_eq!(counted(most + 1), MalformedStatus::TooManyRegions { count: most + 1, most });
        assert_eq!(counted(u64::MAX), MalformedStatus::TooManyRegions { count: u64::MAX, most });
    }

    /// Cut short at any byte, or followed by one more, the serial form is refused.
    #[test]
    fn refuses_every_truncation() {
        let mut whole = bytes(OFFERED | READY, &[(1, 3), (4, 256)]);
        for len in 0..whole.len() {
            let refused = read(&whole[..len]).unwrap_err();
            let expected = if len < HEADER_BYTES {
                MalformedStatus::Truncated { len }
            } else {
                MalformedStatus::Length { count: 2, len: len - HEADER_BYTES }
            };
            assert_eq!(refused, expected);
        }
        whole.push(0);
        assert_eq!(read(&whole).unwrap_err(), MalformedStatus::Length { count: 2, len: 33 });
    }
}
