//! guest-firmware: a bare-metal guest that does what its command line says, and gives a verdict.
#![no_std]
#![cfg_attr(panic = "abort", no_main)]

// Without `panic = "abort"` (unit tests, clippy) this is a hosted program.
#[cfg(not(panic = "abort"))]
extern crate std;

mod cpu;
mod entry;
mod physical;
mod ram;
mod serial;
mod start_info;
mod verdict;

use start_info::StartInfo;

/// Runs the scenario of the command line. `c_mask` is the C-bit, or 0 without SEV.
fn run(start_info: u64, c_mask: u64) -> ! {
    serial::init();
    match StartInfo::read(start_info) {
        Ok(info) => serial::line(format_args!(
            "guest-firmware: start sev={} c_bit={} ram={} end={:#x} cmdline={}",
            u8::from(c_mask != 0),
            if c_mask == 0 { 0 } else { c_mask.trailing_zeros() },
            info.ram.bytes(),
            entry::tables_end(),
            info.command_line()
        )),
        Err(why) => verdict::fail(format_args!("{why}")),
    }
    verdict::finish()
}

#[cfg(panic = "abort")]
#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    verdict::fail(format_args!("{info}"));
    verdict::finish()
}

#[cfg(not(panic = "abort"))]
fn main() {
    std::println!("this is a guest: cargo build -p guest-firmware --profile firmware");
}
