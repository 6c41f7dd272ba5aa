//! Puts pieces into guest RAM, each in whole pages of its own, and remembers them.

use std::io::{Seek, SeekFrom};
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::error::BootError;
use super::input::Input;
use crate::page::{Frame, Gpa, PAGE_LEN, PAGE_SIZE, PageRange, RamLayout};

/// A run of whole pages to be encrypted and measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// What it is, for people.
    pub name: &'static str,
    /// Where it is.
    pub range: PageRange,
}

/// Guest RAM while it is filled.
#[derive(Debug)]
pub(super) struct Placement<'m, M> {
    memory: &'m M,
    low: PageRange,
    pieces: Vec<Piece>,
}

impl<'m, M: GuestMemoryBackend> Placement<'m, M> {
    pub(super) fn new(memory: &'m M, ram: &RamLayout) -> Self {
        Self { memory, low: ram.low(), pieces: Vec::new() }
    }

    pub(super) fn memory(&self) -> &'m M {
        self.memory
    }

    /// RAM below the device hole: all that anything is loaded into.
    pub(super) fn low_ram(&self) -> PageRange {
        self.low
    }

    /// Puts `bytes` at `gpa`, zeros around them up to the page boundaries.
    pub(super) fn place(
        &mut self,
        name: &'static str,
        gpa: Gpa,
        bytes: &[u8],
    ) -> Result<(), BootError> {
        self.clear(name, gpa, bytes.len() as u64)?;
        self.memory.write_slice(bytes, GuestAddress(gpa.0)).map_err(|cause| BootError::Memory {
            name,
            gpa,
            cause,
        })
    }

    /// Puts all of `input` at `gpa`, zeros around it up to the page boundaries.
    pub(super) fn place_file(
        &mut self,
        name: &'static str,
        gpa: Gpa,
        input: &mut Input,
    ) -> Result<(), BootError> {
        self.clear(name, gpa, input.bytes)?;
        self.fill(name, gpa, input, 0..input.bytes)
    }

    /// Reads the `bytes` of `input` to `gpa`, in pages taken before.
    pub(super) fn fill(
        &self,
        name: &'static str,
        gpa: Gpa,
        input: &mut Input,
        bytes: Range<u64>,
    ) -> Result<(), BootError> {
        input.file.seek(SeekFrom::Start(bytes.start)).map_err(|cause| input.failed(cause))?;
        let len = usize::try_from(bytes.end.saturating_sub(bytes.start)).unwrap_or(usize::MAX);
        self.memory
            .read_exact_volatile_from(GuestAddress(gpa.0), &mut input.file, len)
            .map_err(|cause| BootError::Memory { name, gpa, cause })
    }

    /// Takes the pages of `len` bytes at `gpa` for the piece `name` and fills them with zeros.
    pub(super) fn clear(
        &mut self,
        name: &'static str,
        gpa: Gpa,
        len: u64,
    ) -> Result<(), BootError> {
        let outside = BootError::OutsideRam { name, gpa, len, end: end(self.low) };
        let Some(range) = pages_of(gpa, len) else { return Err(outside) };
        if range.intersection(self.low) != Some(range) {
            return Err(outside);
        }
        if let Some(other) = self.pieces.iter().find(|p| p.range.intersection(range).is_some()) {
            return Err(BootError::Overlap { name, range, other: other.name });
        }
        for frame in range.frames() {
            let page = GuestAddress(frame.0 * PAGE_SIZE);
            self.memory.write_slice(&[0; PAGE_LEN], page).map_err(|cause| BootError::Memory {
                name,
                gpa: Gpa(page.0),
                cause,
            })?;
        }
        self.pieces.push(Piece { name, range });
        Ok(())
    }

    /// What was placed, in measuring order: by address.
    pub(super) fn finish(mut self) -> Vec<Piece> {
        self.pieces.sort_unstable_by_key(|piece| piece.range);
        self.pieces
    }
}

/// The whole pages that hold `len` bytes at `gpa`; `None` if there are none or they wrap.
pub(super) fn pages_of(gpa: Gpa, len: u64) -> Option<PageRange> {
    let limit = gpa.0.checked_add(len)?.div_ceil(PAGE_SIZE);
    PageRange::new(gpa.frame(), Frame(limit)).ok()
}

/// One past the last byte of `range`.
pub(super) fn end(range: PageRange) -> u64 {
    range.start().0.saturating_add(range.bytes())
}
