//! What Rust names of `entry.s` and `link.ld`: addresses, sizes, and one function.
#![expect(unsafe_code, reason = "the symbols of assembly and linker script")]

use core::ops::Range;
use core::slice;

use crate::ram::PAGE_SIZE;

/// As in `entry.s`.
const STACK_BYTES: u64 = 0x8000;
const EXCEPTION_ENTRY_BYTES: u64 = 16;

unsafe extern "C" {
    safe static __image_start: u8;
    safe static __image_end: u8;
    #[link_name = "pool"]
    safe static pool_start: u8;
    safe static stacks: u8;
    safe static exception_entries: u8;
    safe static user_code: u8;
    #[link_name = "ap_code"]
    safe static ap_code_start: u8;
    safe static ap_code_end: u8;
    #[link_name = "user_return"]
    safe static user_return_code: u8;
    /// The hypercall in ring 3; `task_stack` is the address of this processor's TSS.RSP0.
    pub(crate) fn hypercall_from_user(
        gpa: u64,
        pages: u64,
        attributes: u64,
        task_stack: u64,
    ) -> i64;
}

/// Guest-physical addresses of everything Rust knows of: code, data, stacks.
pub(crate) fn image() -> Range<u64> {
    address(&raw const __image_start)..address(&raw const __image_end)
}

/// Where pages for tables begin. The first two are this program's own; the loader may have put its
/// message into those after them.
pub(crate) fn pool() -> u64 {
    address(&raw const pool_start)
}

/// The top of a processor's stack.
pub(crate) fn stack(processor: u64) -> u64 {
    address(&raw const stacks) + (processor + 1) * STACK_BYTES
}

/// The top of a processor's stack for exceptions: the lowest quarter of its stack.
pub(crate) fn exception_stack(processor: u64) -> u64 {
    address(&raw const stacks) + processor * STACK_BYTES + STACK_BYTES / 4
}

/// Where an exception enters.
pub(crate) fn exception_entry(vector: u64) -> u64 {
    address(&raw const exception_entries) + vector * EXCEPTION_ENTRY_BYTES
}

/// Where ring 3 returns.
pub(crate) fn user_return() -> u64 {
    address(&raw const user_return_code)
}

/// The page of the code that runs in ring 3.
pub(crate) fn user_frame() -> u64 {
    address(&raw const user_code) / PAGE_SIZE
}

/// The code that a SIPI starts.
pub(crate) fn ap_code() -> &'static [u8] {
    let start = &raw const ap_code_start;
    let bytes = (&raw const ap_code_end).addr() - start.addr();
    // SAFETY: both symbols bound one read-only section.
    unsafe { slice::from_raw_parts(start, bytes) }
}

fn address(symbol: *const u8) -> u64 {
    symbol.addr() as u64
}
