//! The page tables: address for address, and one bit that matters, the C-bit of each page.

use core::ops::Range;

use crate::cpu;
use crate::physical::{read64, write64};
use crate::ram::{PAGE_SIZE, Pages, Ram};

const PRESENT_WRITABLE: u64 = 0x3;
const USER: u64 = 0x4;
const UNCACHED: u64 = 0x18;
const LARGE: u64 = 0x80;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES: u64 = 512;
/// What one entry of a page directory maps.
const CHUNK_FRAMES: u64 = 512;
const CHUNK_BYTES: u64 = CHUNK_FRAMES * PAGE_SIZE;
const GIB_FRAMES: u64 = ENTRIES * CHUNK_FRAMES;
/// `entry.s` maps as much.
const FIRST_GIBS: u64 = 4;
/// Translations that are flushed one by one; above it all are.
const MAX_SINGLE_FLUSHES: u64 = 64;

/// What a page is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Mapped with the C-bit: encrypted.
    Private,
    /// Mapped without the C-bit: the host reads the same bytes.
    Shared,
}

/// Pages that tables are made of, each given out once.
pub(crate) struct Pool {
    free: Range<u64>,
}

impl Pool {
    /// A pool of `pages` pages from an address on.
    pub(crate) fn new(start: u64, pages: u64) -> Self {
        Self { free: start..start + pages * PAGE_SIZE }
    }

    /// Makes the pool large enough to map every page of RAM by itself.
    pub(crate) fn grow_for(&mut self, ram: &Ram) {
        let tables = ram.limit() / CHUNK_FRAMES + ram.limit() / GIB_FRAMES + 4;
        self.free.end += tables * PAGE_SIZE;
    }

    /// The first address behind the pool.
    pub(crate) fn limit(&self) -> u64 {
        self.free.end
    }

    /// The address of a page of zeros.
    pub(crate) fn take(&mut self) -> u64 {
        let page = self.free.start;
        assert!(page < self.free.end, "more page tables needed than RAM has pages");
        self.free.start += PAGE_SIZE;
        (page..self.free.start).step_by(8).for_each(|word| write64(word, 0));
        page
    }
}

/// The tables that the processors run on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Map {
    root: u64,
    c_mask: u64,
}

impl Map {
    /// The tables of this processor. `c_mask` is the C-bit, or 0 without SEV.
    pub(crate) fn current(c_mask: u64) -> Self {
        Self { root: cpu::root_table() & ADDRESS & !c_mask, c_mask }
    }

    /// The root's first entry, which leads to everything mapped.
    pub(crate) fn first_entry(self) -> u64 {
        read64(self.root)
    }

    /// Maps RAM beyond the first 4 GiB, private.
    pub(crate) fn add_high_ram(self, ram: &Ram, pool: &mut Pool) {
        let gibs = ram.limit().div_ceil(GIB_FRAMES);
        assert!(gibs <= ENTRIES, "RAM beyond 512 GiB");
        let pointers = self.next_table(self.first_entry());
        for gib in FIRST_GIBS..gibs {
            let directory = pool.take();
            for entry in 0..ENTRIES {
                let page = (gib * ENTRIES + entry) * CHUNK_BYTES;
                write64(directory + entry * 8, page | PRESENT_WRITABLE | LARGE | self.c_mask);
            }
            write64(pointers + gib * 8, directory | PRESENT_WRITABLE | USER | self.c_mask);
        }
    }

    /// Maps the 2 MiB around a device's registers uncached and without the C-bit.
    pub(crate) fn add_device(self, address: u64) {
        let entry = self.directory_entry(address / PAGE_SIZE);
        write64(entry, (read64(entry) | UNCACHED) & !self.c_mask);
        cpu::flush_all();
    }

    /// Opens a page to ring 3.
    pub(crate) fn open_to_user(self, frame: u64, pool: &mut Pool) {
        self.split(Pages { first: frame, count: 1 }, pool);
        let entry = self.page_entry(frame);
        write64(entry, read64(entry) | USER);
        cpu::flush_page(frame * PAGE_SIZE);
    }

    /// Gives each of these pages an entry of its own.
    pub(crate) fn split(self, pages: Pages, pool: &mut Pool) {
        let mut frame = pages.first;
        while frame < pages.frames().end {
            let entry = self.directory_entry(frame);
            let large = read64(entry);
            if large & LARGE != 0 {
                let table = pool.take();
                for page in 0..ENTRIES {
                    write64(table + page * 8, (large & !LARGE) + page * PAGE_SIZE);
                }
                write64(entry, table | PRESENT_WRITABLE | USER | self.c_mask);
                cpu::flush_all();
            }
            frame = (frame / CHUNK_FRAMES + 1) * CHUNK_FRAMES;
        }
    }

    /// Changes how split pages are mapped, and flushes their translations on this processor.
    pub(crate) fn set_status(self, pages: Pages, status: Status) {
        for frame in pages.frames() {
            let entry = self.page_entry(frame);
            let mapped = read64(entry) & !self.c_mask;
            write64(entry, if status == Status::Private { mapped | self.c_mask } else { mapped });
        }
        if pages.count > MAX_SINGLE_FLUSHES {
            cpu::flush_all();
        } else {
            pages.frames().for_each(|frame| cpu::flush_page(frame * PAGE_SIZE));
        }
    }

    /// How a page is mapped. Without SEV every page is shared.
    pub(crate) fn status(self, frame: u64) -> Status {
        let mut entry = read64(self.directory_entry(frame));
        if entry & LARGE == 0 {
            entry = read64(self.page_entry(frame));
        }
        if entry & self.c_mask == 0 { Status::Shared } else { Status::Private }
    }

    /// The address of the entry that maps the 2 MiB around a page, or leads to its page table.
    fn directory_entry(self, frame: u64) -> u64 {
        let pointers = self.next_table(self.first_entry());
        let directory = self.next_table(read64(pointers + frame / GIB_FRAMES % ENTRIES * 8));
        directory + frame / CHUNK_FRAMES % ENTRIES * 8
    }

    /// The address of the entry that maps a page which has been split.
    fn page_entry(self, frame: u64) -> u64 {
        let entry = read64(self.directory_entry(frame));
        assert!(entry & LARGE == 0, "frame {frame:#x} has no entry of its own");
        self.next_table(entry) + frame % ENTRIES * 8
    }

    fn next_table(self, entry: u64) -> u64 {
        assert!(entry & PRESENT_WRITABLE == PRESENT_WRITABLE, "no table at {entry:#x}");
        entry & ADDRESS & !self.c_mask
    }
}
