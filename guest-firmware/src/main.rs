//! guest-firmware: a bare-metal guest that does what its command line says, and gives a verdict.
//!
//! `cargo build -p guest-firmware --profile firmware` makes `target/firmware/guest-firmware`, an ELF
//! with a PVH entry point. `docs/guest-firmware.md` lists the words of the command line and the lines
//! that they print. From the bottom up:
//!
//! - `entry.s` and [`entry`]: into 64-bit mode; [`cpu`] and [`physical`]: instructions and memory.
//! - [`start_info`], [`ram`], [`acpi`], [`platform`]: what machine this is.
//! - [`paging`], [`descriptors`]: what the processor needs; [`serial`], [`verdict`]: what is said.
//! - [`conversion`], [`pattern`], [`storm`], [`smp`]: what is done to pages, and by whom.
//! - [`ports`]: port accesses of every size and count.
//! - [`secret`]: what the guest's owner has sent it.
//! - [`scenario`] and [`steps`]: the words, parsed and carried out.
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
mod start_info;
mod steps;
mod storm;
mod table;
mod verdict;

use acpi::Processors;
use conversion::Memory;
use descriptors::Descriptors;
use paging::Pool;
use ram::Pages;
use start_info::StartInfo;
use steps::Guest;

/// Runs the scenario of the command line. `c_mask` is the C-bit, or 0 without SEV.
fn run(start_info: u64, c_mask: u64) -> ! {
    serial::init();
    let mut pool = Pool::new(entry::pool(), Descriptors::PAGES);
    let descriptors = Descriptors::build(&mut pool);
    descriptors.load(0);
    match StartInfo::read(start_info) {
        Ok(info) => perform(&info, c_mask, pool, descriptors),
        Err(why) => verdict::fail(format_args!("{why}")),
    }
    verdict::finish()
}

fn perform(info: &StartInfo, c_mask: u64, mut pool: Pool, descriptors: Descriptors) {
    let ram = info.ram;
    let processors = Processors::find(info.acpi_root);
    pool.grow_for(&ram);
    serial::line(format_args!(
        "guest-firmware: start sev={} c_bit={} vcpus={} ram={} free={:#x}",
        u8::from(c_mask != 0),
        if c_mask == 0 { 0 } else { c_mask.trailing_zeros() },
        processors.count(),
        ram.bytes(),
        pool.limit()
    ));
    let own = entry::image().start..pool.limit();
    if !ram.holds(Pages::between(&own)) {
        return verdict::fail(format_args!("start: {own:#x?} is not all RAM"));
    }
    let memory = Memory::current(c_mask);
    memory.map.add_high_ram(&ram, &mut pool);
    let mut guest = Guest { ram, memory, pool, descriptors, processors };
    guest.perform_all(info.command_line());
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
