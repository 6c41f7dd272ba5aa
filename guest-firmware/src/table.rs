//! The table of shared pages that this guest keeps for the host: `docs/page-status.md` is the protocol.
//!
//! One bit per frame from frame 0 on, behind a head of one page; all of it in shared pages. Every
//! processor writes its bits before its hypercall.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu;
use crate::paging::Status;
use crate::physical::{clear_bits, set_bits, write64};
use crate::ram::{PAGE_SIZE, Pages};

/// "SEVTABLE", the version, and then the bytes of bits.
const MAGIC: u64 = u64::from_le_bytes(*b"SEVTABLE");
const VERSION: u64 = 1;
/// The register that names the table, and its bit that says that there is one.
const TABLE_REGISTER: u32 = 0x5346_0000;
const NAMED: u64 = 1;

/// Where the bits are; 0 while there is no table.
static BITS: AtomicU64 = AtomicU64::new(0);
/// Frames that have a bit.
static FRAMES: AtomicU64 = AtomicU64::new(0);

/// The pages of a table at `gpa` for frames below `limit`.
pub(crate) fn pages(gpa: u64, limit: u64) -> Pages {
    Pages { first: gpa / PAGE_SIZE, count: 1 + bytes(limit).div_ceil(PAGE_SIZE) }
}

fn bytes(limit: u64) -> u64 {
    limit.div_ceil(64) * 8
}

/// Begins a table in pages that are shared and zero.
pub(crate) fn begin(gpa: u64, limit: u64) {
    for (at, word) in (gpa..).step_by(8).zip([MAGIC, VERSION, bytes(limit)]) {
        write64(at, word);
    }
    FRAMES.store(limit, Ordering::Relaxed);
    BITS.store(gpa + PAGE_SIZE, Ordering::Release);
}

/// Tells the host where the table is, which then reads it.
pub(crate) fn name(gpa: u64) {
    cpu::write_kvm_msr(TABLE_REGISTER, gpa | NAMED);
}

/// Writes what pages are now, if there is a table.
pub(crate) fn write(pages: Pages, status: Status) {
    let bits = BITS.load(Ordering::Acquire);
    if bits == 0 {
        return;
    }
    let limit = pages.frames().end.min(FRAMES.load(Ordering::Relaxed));
    let mut frame = pages.first;
    while frame < limit {
        let next = (frame / 64 + 1) * 64;
        let count = next.min(limit) - frame;
        let mask = (u64::MAX >> (64 - count)) << (frame % 64);
        let word = bits + frame / 64 * 8;
        match status {
            Status::Shared => set_bits(word, mask),
            Status::Private => clear_bits(word, mask),
        }
        frame = next;
    }
}
