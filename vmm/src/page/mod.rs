//! Guest pages: addresses, frames, ranges, sets of frames and where RAM is. The only page arithmetic.

pub(crate) mod bits;
mod frame_set;

use std::fmt::{Display, Formatter, LowerHex, Result as FmtResult};

use thiserror::Error;

pub use frame_set::FrameSet;

/// Bytes in a guest page.
pub const PAGE_SIZE: u64 = 4096;

/// [`PAGE_SIZE`] as the length of a buffer.
pub const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE_SIZE, "one page size");

/// Bits of a guest-physical address below the frame number.
const PAGE_SHIFT: u32 = PAGE_SIZE.trailing_zeros();

/// Where the hole for memory-mapped devices starts; RAM beyond it continues at [`HIGH_RAM_START`].
pub const LOW_RAM_END: Gpa = Gpa(0xc000_0000);

/// Where RAM continues above the hole below 4 GiB.
pub const HIGH_RAM_START: Gpa = Gpa(0x1_0000_0000);

/// A guest-physical address in bytes, without the C-bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The frame that holds this address.
    #[must_use]
    pub fn frame(self) -> Frame {
        Frame(self.0 >> PAGE_SHIFT)
    }
}

impl Display for Gpa {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{:#x}", self.0)
    }
}

/// A guest page number: a [`Gpa`] divided by [`PAGE_SIZE`] (the kernel's `gfn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u64);

impl Frame {
    /// The first address of this frame; `None` if it is beyond 2^64.
    #[must_use]
    pub fn gpa(self) -> Option<Gpa> {
        self.0.checked_mul(PAGE_SIZE).map(Gpa)
    }
}

impl Display for Frame {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{:#x}", self.0)
    }
}

impl LowerHex for Frame {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        LowerHex::fmt(&self.0, f)
    }
}

/// A run of frames, `base..limit`, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRange {
    base: Frame,
    limit: Frame,
}

impl PageRange {
    /// The frames from `base` up to but not including `limit`.
    ///
    /// # Errors
    /// [`BadRange::Empty`] unless `base < limit`.
    pub fn new(base: Frame, limit: Frame) -> Result<Self, BadRange> {
        if base < limit { Ok(Self { base, limit }) } else { Err(BadRange::Empty { base, limit }) }
    }

    /// `frame` alone.
    ///
    /// # Errors
    /// [`BadRange::Empty`] for the last number that there is: no range can end behind it.
    pub fn one(frame: Frame) -> Result<Self, BadRange> {
        Self::new(frame, Frame(frame.0.saturating_add(1)))
    }

    /// The frames of `len` bytes at `gpa`; both in whole pages.
    ///
    /// # Errors
    /// [`BadRange`] if the bytes are not whole pages, are none, or wrap.
    pub fn from_bytes(gpa: Gpa, len: u64) -> Result<Self, BadRange> {
        let end = gpa.0.checked_add(len).ok_or(BadRange::Overflow { gpa, len })?;
        if !gpa.0.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(BadRange::Unaligned { gpa, len });
        }
        Self::new(gpa.frame(), Gpa(end).frame())
    }

    /// First frame.
    #[must_use]
    pub fn base(self) -> Frame {
        self.base
    }

    /// One past the last frame.
    #[must_use]
    pub fn limit(self) -> Frame {
        self.limit
    }

    /// How many frames; at least 1.
    #[must_use]
    pub fn pages(self) -> u64 {
        self.limit.0 - self.base.0
    }

    /// First address in bytes; saturates beyond 2^64.
    #[must_use]
    pub fn start(self) -> Gpa {
        Gpa(self.base.0.saturating_mul(PAGE_SIZE))
    }

    /// Length in bytes; saturates beyond 2^64.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.pages().saturating_mul(PAGE_SIZE)
    }

    /// Whether `frame` is one of these.
    #[must_use]
    pub fn contains(self, frame: Frame) -> bool {
        self.base <= frame && frame < self.limit
    }

    /// The frames in both ranges.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.base.max(other.base), self.limit.min(other.limit)).ok()
    }

    /// Every frame in order.
    pub fn frames(self) -> impl Iterator<Item = Frame> {
        (self.base.0..self.limit.0).map(Frame)
    }
}

impl Display for PageRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{:#x}..{:#x}", self.base.0, self.limit.0)
    }
}

/// Why numbers do not name a run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadRange {
    /// `base >= limit`.
    #[error("pages {base}..{limit} are none")]
    Empty {
        /// First frame.
        base: Frame,
        /// One past the last frame.
        limit: Frame,
    },
    /// Not whole pages.
    #[error("{len:#x} bytes at {gpa} are not whole 4 KiB pages")]
    Unaligned {
        /// Start in bytes.
        gpa: Gpa,
        /// Length in bytes.
        len: u64,
    },
    /// Past 2^64.
    #[error("{len:#x} bytes at {gpa} run past 2^64")]
    Overflow {
        /// Start in bytes.
        gpa: Gpa,
        /// Length in bytes.
        len: u64,
    },
}

/// Which frames are RAM: all below the device hole, the rest from 4 GiB up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamLayout {
    low: PageRange,
    high: Option<PageRange>,
}

impl RamLayout {
    /// The layout of `bytes` of RAM.
    ///
    /// # Errors
    /// [`BadRange`] if `bytes` is 0, not whole pages, or runs past 2^64.
    pub fn new(bytes: u64) -> Result<Self, BadRange> {
        let low = PageRange::from_bytes(Gpa(0), bytes.min(LOW_RAM_END.0))?;
        let high = match bytes.saturating_sub(LOW_RAM_END.0) {
            0 => None,
            rest => Some(PageRange::from_bytes(HIGH_RAM_START, rest)?),
        };
        Ok(Self { low, high })
    }

    /// The one or two runs of RAM, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = PageRange> + use<> {
        [Some(self.low), self.high].into_iter().flatten()
    }

    /// RAM below the device hole; starts at frame 0.
    #[must_use]
    pub fn low(&self) -> PageRange {
        self.low
    }

    /// How many frames of RAM.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ranges().map(PageRange::pages).sum()
    }

    /// How many bytes of RAM.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges().map(PageRange::bytes).sum()
    }

    /// The number of `frame` among the frames of RAM; `None` if it is none of them.
    #[must_use]
    pub fn index_of(&self, frame: Frame) -> Option<u64> {
        let mut before = 0;
        for ram in self.ranges() {
            if ram.contains(frame) {
                return Some(before + (frame.0 - ram.base().0));
            }
            before += ram.pages();
        }
        None
    }

    /// The frame with this number among the frames of RAM; `None` if there are not so many.
    #[must_use]
    pub fn frame_of(&self, index: u64) -> Option<Frame> {
        let mut left = index;
        for ram in self.ranges() {
            if left < ram.pages() {
                return Some(Frame(ram.base().0 + left));
            }
            left -= ram.pages();
        }
        None
    }

    /// The parts of `range` that are RAM, ascending.
    pub fn clip(&self, range: PageRange) -> impl Iterator<Item = PageRange> + use<> {
        self.ranges().filter_map(move |ram| ram.intersection(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u64, limit: u64) -> PageRange {
        PageRange::new(Frame(base), Frame(limit)).unwrap()
    }

    /// Nothing that is empty, unaligned or wrapping becomes a range.
    #[test]
    fn refuses_what_is_not_whole_pages() {
        assert!(matches!(PageRange::from_bytes(Gpa(0), 0), Err(BadRange::Empty { .. })));
        assert!(matches!(PageRange::from_bytes(Gpa(1), 4096), Err(BadRange::Unaligned { .. })));
        assert!(matches!(PageRange::from_bytes(Gpa(0), 4095), Err(BadRange::Unaligned { .. })));
        let top = Gpa(u64::MAX - 4095);
        assert!(matches!(PageRange::from_bytes(top, 4096), Err(BadRange::Overflow { .. })));
        assert!(matches!(PageRange::new(Frame(3), Frame(3)), Err(BadRange::Empty { .. })));
        assert!(matches!(PageRange::one(Frame(u64::MAX)), Err(BadRange::Empty { .. })));
        assert_eq!(PageRange::one(Frame(3)), Ok(range(3, 4)));
    }

    /// RAM of more than 3 GiB continues above the hole, and clipping keeps only RAM.
    #[test]
    fn large_ram_leaves_the_hole_free() {
        let layout = RamLayout::new(4 << 30).unwrap();
        let ranges: Vec<_> = layout.ranges().collect();
        assert_eq!(ranges, [range(0, 0xc0000), range(0x10_0000, 0x14_0000)]);
        assert_eq!(layout.bytes(), 4 << 30);
        let clipped: Vec<_> = layout.clip(range(0xb_fff0, 0x10_0010)).collect();
        assert_eq!(clipped, [range(0xb_fff0, 0xc_0000), range(0x10_0000, 0x10_0010)]);
        assert_eq!(layout.clip(range(0xc_0000, 0x10_0000)).count(), 0);
        for (index, frame) in
            [(0, Some(0)), (0xb_ffff, Some(0xb_ffff)), (0xc_0000, Some(0x10_0000))]
        {
            assert_eq!(layout.frame_of(index), frame.map(Frame));
            assert_eq!(frame.and_then(|frame| layout.index_of(Frame(frame))), Some(index));
        }
        assert_eq!(layout.frame_of(0x10_0000), None);
    }
}
