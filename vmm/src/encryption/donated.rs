//! A table of shared pages that the guest keeps in its own memory, and whose address it tells the host.
//!
//! `docs/page-status.md` is the protocol. The host keeps only the table's address, so no guest can make it keep more.
//! In return it reads the guest's memory for each question, and the guest may write there at any moment. So the head
//! is read and checked once, when the guest names the table, and never again. For each question each bit is read
//! once. Any value is an answer: a page of RAM is either shared or private.

use std::fmt::Debug;
use std::sync::Arc;

use thiserror::Error;

use super::{Full, Status, Tracker};
use crate::page::{Frame, FrameSet, Gpa, PAGE_SIZE, PageRange, RamLayout};

/// The register with which a guest names its table: "SF", a number that no hypervisor uses.
pub const MSR_PAGE_TABLE: u32 = 0x5346_0000;

/// The register's value while this design is on and no table is named: the version.
const VERSION: u64 = 1;

/// Bit 0 of the register: there is a table.
const NAMED: u64 = 1;

/// Addresses of the register, bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The first eight bytes of the head.
const MAGIC: u64 = u64::from_le_bytes(*b"SEVTABLE");

/// Bits in a word.
const WORD_BITS: u64 = u64::BITS as u64;

/// Words read at a time.
const STEP: usize = 512;

/// [`STEP`] as a number of frames.
const STEP_FRAMES: u64 = STEP as u64 * WORD_BITS;

/// Guest memory as the host sees it, where the guest may write at any time.
pub trait TableMemory: Debug + Send + Sync {
    /// Copies the little-endian words at `at`, each of them once; `false` if not all are in RAM.
    fn read_words(&self, at: Gpa, words: &mut [u64]) -> bool;
}

/// A table that a guest has named.
#[derive(Debug, Clone)]
pub struct DonatedTable {
    layout: RamLayout,
    memory: Arc<dyn TableMemory>,
    /// The head; the bits follow on the next page.
    base: Frame,
    pages: PageRange,
}

impl DonatedTable {
    /// The table whose head is at `base`, if there is a table.
    ///
    /// # Errors
    /// [`BadTable`] with what is wrong.
    pub fn read(
        layout: RamLayout,
        memory: Arc<dyn TableMemory>,
        base: Frame,
    ) -> Result<Self, BadTable> {
        let needed = Self::bytes_of_bits(&layout);
        let limit = needed
            .div_ceil(PAGE_SIZE)
            .checked_add(1)
            .and_then(|pages| base.0.checked_add(pages))
            .map(Frame);
        let outside = BadTable::OutsideRam { base };
        let pages = limit.and_then(|limit| PageRange::new(base, limit).ok()).ok_or(outside)?;
        if layout.clip(pages).next() != Some(pages) {
            return Err(outside);
        }
        let mut head = [0; 3];
        if !memory.read_words(pages.start(), &mut head) {
            return Err(outside);
        }
        let [magic, version, bytes] = head;
        if magic != MAGIC {
            return Err(BadTable::Magic { base });
        }
        if version != VERSION {
            return Err(BadTable::Version { version });
        }
        if bytes != needed {
            return Err(BadTable::Length { bytes, needed });
        }
        let table = Self { layout, memory, base, pages };
        match table.first_with(pages, Status::Private) {
            Some(frame) => Err(BadTable::OwnPage { frame }),
            None => Ok(table),
        }
    }

    /// Bytes of bits for this RAM: one for each frame from 0 to the end of RAM, the device hole
    /// included, in whole words.
    #[must_use]
    pub fn bytes_of_bits(layout: &RamLayout) -> u64 {
        let limit = layout.ranges().last().map_or(0, |run| run.limit().0);
        limit.div_ceil(WORD_BITS) * 8
    }

    /// Where its head is.
    #[must_use]
    pub fn base(&self) -> Frame {
        self.base
    }

    /// The frames that it calls shared now, each bit read once.
    #[must_use]
    pub fn sample(&self) -> FrameSet {
        let mut shared = FrameSet::new(self.layout);
        for run in self.layout.ranges() {
            self.each_step(run, &mut |piece, words| {
                shared.insert_bits(piece, words);
                None::<()>
            });
        }
        shared
    }

    /// How many pages of RAM it calls shared now.
    pub(super) fn shared_pages(&self) -> u64 {
        self.sample().count()
    }

    /// The first frame of `range`, which is in RAM, that has `status`.
    fn first_with(&self, range: PageRange, status: Status) -> Option<Frame> {
        let flip = if status == Status::Shared { 0 } else { u64::MAX };
        if range.limit().0 <= word_start(range) + WORD_BITS {
            // Most questions are about one page.
            let mut words = [0];
            let at = Gpa(self.pages.start().0 + PAGE_SIZE + range.base().0 / WORD_BITS * 8);
            let [word] = if self.memory.read_words(at, &mut words) { words } else { return None };
            let hits = masked(range, 0, word ^ flip);
            let first = word_start(range) + u64::from(hits.trailing_zeros());
            return (hits != 0).then_some(Frame(first));
        }
        self.each_step(range, &mut |piece, words| {
            let hits =
                words.iter().enumerate().map(|(index, word)| masked(piece, index, word ^ flip));
            let (index, hits) = hits.enumerate().find(|(_, hits)| *hits != 0)?;
            let bit = u64::from(hits.trailing_zeros());
            Some(Frame(word_start(piece) + index as u64 * WORD_BITS + bit))
        })
    }

    /// Calls `step` with pieces of `range` and the words that have their bits, until it answers. The first
    /// word has the bit of the piece's first frame.
    fn each_step<T>(
        &self,
        range: PageRange,
        step: &mut dyn FnMut(PageRange, &[u64]) -> Option<T>,
    ) -> Option<T> {
        let mut words = [0; STEP];
        let mut base = range.base();
        while let Ok(rest) = PageRange::new(base, range.limit()) {
            let limit = Frame((word_start(rest) + STEP_FRAMES).min(range.limit().0));
            let piece = PageRange::new(base, limit).ok()?;
            let count = limit.0.div_ceil(WORD_BITS) - base.0 / WORD_BITS;
            let words = words.get_mut(..usize::try_from(count).ok()?)?;
            let at = self.pages.start().0 + PAGE_SIZE + base.0 / WORD_BITS * 8;
            // It was RAM when the table was named, and RAM does not change.
            if !self.memory.read_words(Gpa(at), words) {
                return None;
            }
            if let Some(answer) = step(piece, words) {
                return Some(answer);
            }
            base = limit;
        }
        None
    }

    /// What the guest does wrong when it reports that `range`, which is in RAM, has `status` now: its
    /// table must say so already, and the table's own pages stay shared.
    pub(super) fn contradiction(&self, range: PageRange, status: Status) -> Option<Contradiction> {
        if let (Status::Private, Some(own)) = (status, self.pages.intersection(range)) {
            return Some(Contradiction::OwnPage { frame: own.base() });
        }
        let other = match status {
            Status::Private => Status::Shared,
            Status::Shared => Status::Private,
        };
        let frame = self.first_with(range, other)?;
        Some(Contradiction::Report { frame, reported: status })
    }
}

/// The frame of the first bit of the first word.
fn word_start(piece: PageRange) -> u64 {
    piece.base().0 / WORD_BITS * WORD_BITS
}

/// The bits of word `index` that belong to `piece`.
fn masked(piece: PageRange, index: usize, word: u64) -> u64 {
    let start = word_start(piece) + index as u64 * WORD_BITS;
    let low = piece.base().0.saturating_sub(start);
    let high = (piece.limit().0 - start).min(WORD_BITS);
    word & (u64::MAX << low) & (u64::MAX >> (WORD_BITS - high))
}

impl Tracker for DonatedTable {
    /// Does nothing: the guest has written its table before it reports.
    fn set(&mut self, _range: PageRange, _status: Status) -> Result<(), Full> {
        Ok(())
    }

    fn first_shared(&self, within: PageRange) -> Option<PageRange> {
        self.layout.clip(within).find_map(|run| {
            let base = self.first_with(run, Status::Shared)?;
            let rest = PageRange::new(base, run.limit()).ok()?;
            let limit = self.first_with(rest, Status::Private).unwrap_or(run.limit());
            // The guest may have cleared the first bit in between: one page it was.
            PageRange::new(base, limit.max(Frame(base.0 + 1))).ok()
        })
    }

    /// Does nothing: the table is the guest's. The host forgets where it is instead.
    fn clear(&mut self) {}

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
    }
}

/// What a guest asks for when it writes [`MSR_PAGE_TABLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    Table(Frame),
    None,
}

impl Naming {
    /// What `value` means.
    pub(super) fn parse(value: u64) -> Result<Self, BadTable> {
        match value {
            0 => Ok(Self::None),
            _ if value & !(ADDRESS | NAMED) == 0 && value & NAMED != 0 => {
                Ok(Self::Table(Gpa(value & ADDRESS).frame()))
            }
            _ => Err(BadTable::ReservedBits { value }),
        }
    }
}

/// What the register reads as: the version, in bits 11:8, and the table.
pub(super) fn register(table: Option<&DonatedTable>) -> u64 {
    let named = table.map_or(0, |table| table.pages.start().0 | NAMED);
    named | VERSION << 8
}

/// Why what the guest names is not a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadTable {
    /// Another design keeps the page status.
    #[error("a table of shared pages, which this guest was not asked for")]
    NotAsked,
    /// Only bits 51:12 and 0 are defined.
    #[error("{value:#x} written to the table register sets reserved bits")]
    ReservedBits {
        /// What the guest wrote.
        value: u64,
    },
    /// Not all of it is RAM.
    #[error("the table of shared pages at frame {base:#x} is not inside one run of RAM")]
    OutsideRam {
        /// The frame of its head.
        base: Frame,
    },
    /// Other bytes are there, or the page is private, so that the host sees noise.
    #[error("there is no SEVTABLE at frame {base:#x}; is the page shared?")]
    Magic {
        /// The frame of its head.
        base: Frame,
    },
    /// A table of another version.
    #[error("the table of shared pages has version {version}; this program reads version 1")]
    Version {
        /// Its version.
        version: u64,
    },
    /// A table for another RAM.
    #[error("the table of shared pages has {bytes} bytes of bits; this RAM has {needed}")]
    Length {
        /// In the head.
        bytes: u64,
        /// What RAM needs.
        needed: u64,
    },
    /// A table that calls itself private could not be read.
    #[error("the table of shared pages says of itself that frame {frame:#x} is private")]
    OwnPage {
        /// The first such frame.
        frame: Frame,
    },
}

/// The guest's reports and its table do not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Contradiction {
    /// A page was reported otherwise.
    #[error("the guest reported frame {frame:#x} {reported} while its own table says otherwise")]
    Report {
        /// The first such frame.
        frame: Frame,
        /// What it reported.
        reported: Status,
    },
    /// A page of the table was made private.
    #[error("the guest took back frame {frame:#x} of the table that it had donated")]
    OwnPage {
        /// The first such frame.
        frame: Frame,
    },
    /// The table that came with the guest's memory is not the list that came with it.
    #[error("the guest's table of shared pages is not what the host that it came from said")]
    Moved,
}

#[cfg(test)]
#[path = "donated_tests.rs"]
mod tests;
