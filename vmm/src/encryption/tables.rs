//! Reads a guest's own page tables: the only thing that its reports can be compared with.
//!
//! The C-bit of the entry that maps a page decides whether the processor encrypts it; tables
//! themselves are always private (AMD APM volume 2, 15.34.5). A page may be mapped several times, and
//! Linux maps `.bss..decrypted` with the C-bit in its direct map and without it in that of its image:
//! a page is shared if any entry says so. The tables are a guest's, so the walk is bounded.

use std::fmt::{Display, Formatter, Result as FmtResult};

use thiserror::Error;

use super::{Incomplete, PageStatus};
use crate::page::{Frame, FrameSet, Gpa, PageRange, RamLayout};

/// Entries of a table.
pub const ENTRIES: usize = 512;

/// The most tables that a walk reads: what maps 256 GiB page by page.
pub const TABLES_MAX: u64 = 1 << 17;

/// Levels of tables, with 5-level paging.
const LEVELS_MAX: usize = 5;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What the tables of all vCPUs say about RAM.
#[derive(Debug)]
pub struct PageTables {
    layout: RamLayout,
    c_mask: u64,
    /// By level, so that a table that is used at two of them is walked at both, and a ring ends.
    walked: [FrameSet; LEVELS_MAX],
    tables: u64,
    private: FrameSet,
    shared: FrameSet,
}

/// A table that is to be walked, at a level: 0 maps pages.
type Table = (Frame, usize);

impl PageTables {
    /// Nothing is mapped yet; `c_bit` is the number of the C-bit.
    #[must_use]
    pub fn new(layout: RamLayout, c_bit: u8) -> Self {
        let none = || FrameSet::new(layout);
        Self {
            layout,
            c_mask: 1_u64.checked_shl(c_bit.into()).unwrap_or(0),
            walked: [none(), none(), none(), none(), none()],
            tables: 0,
            private: none(),
            shared: none(),
        }
    }

    /// Adds what the tables under `cr3` map; `levels` is 4 or 5. `read` gives a table as the guest's
    /// processors see it. What is outside RAM, or was walked before, is passed over.
    ///
    /// # Errors
    /// [`Unwalked::Unreadable`] with what `read` said, [`Unwalked::TooMany`].
    pub fn walk<E>(
        &mut self,
        cr3: u64,
        levels: usize,
        read: &mut dyn FnMut(Frame) -> Result<[u64; ENTRIES], E>,
    ) -> Result<(), Unwalked<E>> {
        let mut left = Vec::new();
        self.find((self.frame(cr3), levels.clamp(1, LEVELS_MAX) - 1), &mut left);
        while let Some((table, level)) = left.pop() {
            self.tables += 1;
            if self.tables > TABLES_MAX {
                return Err(Unwalked::TooMany);
            }
            let entries = read(table).map_err(Unwalked::Unreadable)?;
            for entry in entries.into_iter().filter(|entry| entry & PRESENT != 0) {
                if level == 0 || level <= 2 && entry & LARGE != 0 {
                    self.map(entry, level);
                } else {
                    self.find((self.frame(entry), level - 1), &mut left);
                }
            }
        }
        Ok(())
    }

    /// How many tables were read.
    #[must_use]
    pub fn tables(&self) -> u64 {
        self.tables
    }

    /// The pages on which `status` and the tables do not agree. Nothing is known of pages that no table maps.
    ///
    /// # Errors
    /// [`Incomplete`]: there is nothing to compare with.
    pub fn compare(&self, status: &PageStatus) -> Result<Contradictions, Incomplete> {
        let mut reported = FrameSet::new(self.layout);
        for region in status.shared_regions()? {
            reported.insert_range(region);
        }
        let unreported = self.shared.frames().filter(|&frame| !reported.contains(frame));
        let mapped_private =
            |&frame: &Frame| self.private.contains(frame) && !self.shared.contains(frame);
        Ok(Contradictions {
            unreported: set(self.layout, unreported),
            not_shared: set(self.layout, reported.frames().filter(mapped_private)),
        })
    }

    fn find(&mut self, table: Table, left: &mut Vec<Table>) {
        let (frame, level) = table;
        let Some(walked) = self.walked.get_mut(level) else { return };
        if self.layout.ranges().any(|run| run.contains(frame)) && !walked.contains(frame) {
            walked.insert(frame);
            left.push(table);
        }
    }

    fn map(&mut self, entry: u64, level: usize) {
        let pages = 1_u64 << (9 * level);
        let base = self.frame(entry).0 & !(pages - 1);
        let set = if entry & self.c_mask == 0 { &mut self.shared } else { &mut self.private };
        if let Ok(range) = PageRange::new(Frame(base), Frame(base + pages)) {
            set.insert_range(range);
        }
    }

    fn frame(&self, entry: u64) -> Frame {
        Gpa(entry & ADDRESS & !self.c_mask).frame()
    }
}

fn set(layout: RamLayout, frames: impl Iterator<Item = Frame>) -> FrameSet {
    let mut set = FrameSet::new(layout);
    frames.for_each(|frame| set.insert(frame));
    set
}

/// Why tables could not be walked.
#[derive(Debug, Error)]
pub enum Unwalked<E> {
    /// A table could not be read.
    #[error("reading a page table of the guest")]
    Unreadable(#[source] E),
    /// More than [`TABLES_MAX`].
    #[error("the guest has more than {TABLES_MAX} page tables")]
    TooMany,
}

/// Pages whose status the guest's reports and its page tables do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradictions {
    /// Mapped without the C-bit and not reported shared.
    pub unreported: FrameSet,
    /// Reported shared, and mapped with the C-bit only.
    pub not_shared: FrameSet,
}

impl Contradictions {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unreported.is_empty() && self.not_shared.is_empty()
    }

    /// Those that are here and in `other`: a guest that is in the middle of a change contradicts
    /// itself for a moment.
    #[must_use]
    pub fn also_in(&self, other: &Self) -> Self {
        let both = |one: &FrameSet, other: &FrameSet| {
            set(one.layout(), one.frames().filter(|&frame| other.contains(frame)))
        };
        Self {
            unreported: both(&self.unreported, &other.unreported),
            not_shared: both(&self.not_shared, &other.not_shared),
        }
    }
}

impl Display for Contradictions {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let mut first = "";
        if let Some(frame) = self.unreported.frames().next() {
            let pages = self.unreported.count();
            write!(
                f,
                "{pages} pages mapped without the C-bit were never reported, from {frame:#x}"
            )?;
            first = "; ";
        }
        if let Some(frame) = self.not_shared.frames().next() {
            let pages = self.not_shared.count();
            write!(
                f,
                "{first}{pages} pages reported shared are mapped with the C-bit, from {frame:#x} \
                 (Linux without commit ac3f9c9f1b37 reports a page too many)"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
