//! The C=0 view of the software platform: one mapping whose pieces switch between S and P.
#![expect(unsafe_code, reason = "replaces pieces of a mapping that this file owns, with MAP_FIXED")]

use std::fs::File;
use std::io::{Error as IoError, ErrorKind};
use std::os::fd::AsRawFd;

use libc::{MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, off_t};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use crate::page::{Frame, PAGE_SIZE, PageRange};

/// Frames in the unit that switches at once: 2 MiB.
///
/// One page shared shows all of its chunk shared, so a guest that alternates pages cannot make
/// more than 512 mappings per GiB (the kernel allows a process 65,530).
const CHUNK_FRAMES: u64 = 512;

/// Below 1 MiB single pages switch: APs start there with paging off, hence private, beside pages
/// that may be shared.
const SINGLE_PAGE_LIMIT: Frame = Frame(0x100);

/// A mapping of guest RAM that shows S or P, piece by piece.
#[derive(Debug)]
pub(super) struct SwitchedView {
    mapping: GuestMemoryMmap<()>,
    shared: Backing,
    private: Backing,
    /// Base frames of the pieces that show S, sorted.
    showing_shared: Vec<Frame>,
}

/// S or P: the file, and a mapping of all of it at the addresses of guest RAM.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: File,
    pub(super) mapping: GuestMemoryMmap<()>,
}

impl SwitchedView {
    /// `mapping` is a mapping of `private` of its own, at the addresses of guest RAM.
    pub(super) fn new(mapping: GuestMemoryMmap<()>, shared: Backing, private: Backing) -> Self {
        Self { mapping, shared, private, showing_shared: Vec::new() }
    }

    /// The mapping that KVM gets.
    pub(super) fn mapping(&self) -> &GuestMemoryMmap<()> {
        &self.mapping
    }

    /// Brings every piece that `range` (inside one run of RAM) touches in line with page status.
    ///
    /// Where a piece showed P and the guest has just reported pages of it shared, those pages are
    /// copied from P to S first: Linux converts in place through a C=0 mapping and makes the
    /// hypercall afterwards, and on hardware those bytes survive in DRAM.
    pub(super) fn follow(
        &mut self,
        range: PageRange,
        reported_shared: bool,
        any_shared: &dyn Fn(PageRange) -> bool,
    ) -> Result<(), IoError> {
        let mut next = range.base();
        while next < range.limit() {
            let piece = self.piece(next)?;
            let place = self.showing_shared.binary_search(&piece.base());
            // Only a report of shared pages switches to S: a poisoned record cannot rule out that
            // a page is shared, and must not turn the view of pages reported private.
            match (reported_shared || any_shared(piece), place) {
                (true, Err(place)) if reported_shared => {
                    if let Some(pages) = range.intersection(piece) {
                        copy(pages, &self.private.mapping, &self.shared.mapping)?;
                    }
                    self.map(piece, &self.shared.file)?;
                    self.showing_shared.insert(place, piece.base());
                }
                (false, Ok(place)) => {
                    self.map(piece, &self.private.file)?;
                    self.showing_shared.remove(place);
                }
                (true, Ok(_)) | (_, Err(_)) => {}
            }
            next = piece.limit();
        }
        Ok(())
    }

    /// Brings every piece of `range`, a run of RAM, in line with page status that came from another host together with
    /// the contents of both memories. So nothing is copied.
    pub(super) fn restore(
        &mut self,
        range: PageRange,
        any_shared: &dyn Fn(PageRange) -> bool,
    ) -> Result<(), IoError> {
        let mut next = range.base();
        while next < range.limit() {
            let piece = self.piece(next)?;
            match (any_shared(piece), self.showing_shared.binary_search(&piece.base())) {
                (true, Err(place)) => {
                    self.map(piece, &self.shared.file)?;
                    self.showing_shared.insert(place, piece.base());
                }
                (false, Ok(place)) => {
                    self.map(piece, &self.private.file)?;
                    self.showing_shared.remove(place);
                }
                (true, Ok(_)) | (false, Err(_)) => {}
            }
            next = piece.limit();
        }
        Ok(())
    }

    /// The unit that switches with `frame`, cut to the run of RAM it is in.
    fn piece(&self, frame: Frame) -> Result<PageRange, IoError> {
        let unit = if frame < SINGLE_PAGE_LIMIT { 1 } else { CHUNK_FRAMES };
        let start = frame.0 - frame.0 % unit;
        let base = if unit == 1 { start } else { start.max(SINGLE_PAGE_LIMIT.0) };
        let region = self.region(frame)?;
        let first = region.start_addr().0 / PAGE_SIZE;
        let last = first + region.len() / PAGE_SIZE;
        PageRange::new(Frame(base.max(first)), Frame((start + unit).min(last)))
            .map_err(|empty| IoError::new(ErrorKind::InvalidInput, empty))
    }

    fn region(&self, frame: Frame) -> Result<&GuestRegionMmap<()>, IoError> {
        frame
            .gpa()
            .and_then(|gpa| self.mapping.find_region(GuestAddress(gpa.0)))
            .ok_or_else(|| IoError::new(ErrorKind::InvalidInput, "not guest RAM"))
    }

    /// Maps `piece` of `file` over what the view shows there now.
    fn map(&self, piece: PageRange, file: &File) -> Result<(), IoError> {
        let region = self.region(piece.base())?;
        let into_region = piece.start().0 - region.start_addr().0;
        let file_start = region.file_offset().map_or(0, FileOffset::start);
        let (Ok(into), Ok(bytes), Ok(file_offset)) = (
            usize::try_from(into_region),
            usize::try_from(piece.bytes()),
            off_t::try_from(file_start + into_region),
        ) else {
            return Err(IoError::new(ErrorKind::InvalidInput, "beyond the address space"));
        };
        let address = region.as_ptr().wrapping_add(into).cast();
        let protection = PROT_READ | PROT_WRITE;
        let flags = MAP_SHARED | MAP_FIXED | MAP_NORESERVE;
        // SAFETY: `piece` lies inside `region`, a mapping that `self` owns and that nothing but
        // the guest reads or writes, so replacing a part of it invalidates no reference.
        let mapped =
            unsafe { mmap(address, bytes, protection, flags, file.as_raw_fd(), file_offset) };
        if mapped == MAP_FAILED { Err(IoError::last_os_error()) } else { Ok(()) }
    }
}

/// Copies `pages` from one memory to the same place in the other.
fn copy(
    pages: PageRange,
    from: &GuestMemoryMmap<()>,
    to: &GuestMemoryMmap<()>,
) -> Result<(), IoError> {
    let bytes = usize::try_from(pages.bytes()).map_err(IoError::other)?;
    let start = GuestAddress(pages.start().0);
    let source = from.get_slice(start, bytes).map_err(IoError::other)?;
    let destination = to.get_slice(start, bytes).map_err(IoError::other)?;
    source.copy_to_volatile_slice(destination);
    Ok(())
}
