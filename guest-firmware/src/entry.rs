//! Where assembly and Rust meet: the symbols of `entry.s` and `link.ld`, and the calls from there.
#![expect(unsafe_code, reason = "assembly, its symbols, and functions it calls by name")]

use core::ops::Range;

#[cfg(panic = "abort")]
core::arch::global_asm!(include_str!("entry.s"), options(att_syntax, raw));

unsafe extern "C" {
    safe static __image_start: u8;
    safe static __image_end: u8;
    safe static __tables_end: u8;
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

/// Where the page tables that `entry.s` filled in end, and free memory begins.
pub(crate) fn tables_end() -> u64 {
    address(&raw const __tables_end)
}

fn address(symbol: *const u8) -> u64 {
    symbol.addr() as u64
}

/// Called by `entry.s` on the first processor, in 64-bit mode, interrupts disabled.
#[unsafe(no_mangle)]
extern "C" fn firmware_main(start_info: u64, c_mask: u64) -> ! {
    crate::run(start_info, c_mask)
}

/// Called by `entry.s` for every exception.
#[unsafe(no_mangle)]
extern "C" fn exception_taken(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    crate::verdict::exception(vector, error, rip, cr2)
}
