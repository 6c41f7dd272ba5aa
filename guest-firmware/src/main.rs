//! guest-firmware: a bare-metal guest that does what its command line says, and gives a verdict.
//!
//! `cargo build -p guest-firmware --profile firmware` makes `target/firmware/guest-firmware`, an ELF
//! with a PVH entry point. `docs/guest-firmware.md` lists the words of the command line and the lines
//! that they print. From the bottom up:
//!
//! - `entry.s`: into 64-bit mode; [`symbols`]: what Rust names of it; [`cpu`] and [`physical`]:
//!   instructions and memory.
//! - [`start_info`], [`ram`], [`acpi`], [`platform`]: what machine this is.
//! - [`paging`], [`descriptors`]: what the processor needs; [`serial`], [`verdict`]: what is said.
//! - [`conversion`], [`pattern`], [`storm`], [`fresh`], [`smp`]: what is done to pages, and by whom.
//! - [`ports`]: port accesses of every size and count.
//! - [`secret`]: what the guest's owner has sent it.
//! - [`scenario`] and [`steps`]: the words, parsed and carried out.
//! - [`start`]: from the start to the verdict; [`entry`]: what `entry.s` calls.
#![no_std]
#![cfg_attr(panic = "abort", no_main)]

// Without `panic = "abort"` (unit tests, clippy) this is a hosted program.
#[cfg(not(panic = "abort"))]
extern crate std;

mod acpi;
mod conversion;
mod cpu;
mod descriptors;
mod entry;
mod fresh;
mod paging;
mod pattern;
mod physical;
mod platform;
mod ports;
mod ram;
mod scenario;
mod secret;
mod serial;
mod smp;
mod start;
mod start_info;
mod steps;
mod storm;
mod symbols;
mod table;
mod verdict;

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
