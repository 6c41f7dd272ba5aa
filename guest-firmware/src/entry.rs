//! What `entry.s` calls in Rust, by name. Nothing in Rust names this file but the root.
#![expect(unsafe_code, reason = "assembly, and functions that it calls by name")]

#[cfg(panic = "abort")]
core::arch::global_asm!(include_str!("entry.s"), options(att_syntax, raw));

/// Called by `entry.s` on the first processor, in 64-bit mode, interrupts disabled.
#[unsafe(no_mangle)]
extern "C" fn firmware_main(start_info: u64, c_mask: u64) -> ! {
    crate::start::run(start_info, c_mask)
}

/// Called by `entry.s` on every other processor.
#[unsafe(no_mangle)]
extern "C" fn processor_main(number: u64, c_mask: u64) -> ! {
    crate::smp::arrive(number, c_mask)
}

/// Called by `entry.s` for every exception.
#[unsafe(no_mangle)]
extern "C" fn exception_taken(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    crate::verdict::exception(vector, error, rip, cr2)
}
