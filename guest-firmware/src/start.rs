//! From the first instruction in Rust to the verdict: tables, RAM, processors, then the scenario.

use crate::acpi::Processors;
use crate::conversion::Memory;
use crate::descriptors::Descriptors;
use crate::paging::Pool;
use crate::ram::Pages;
use crate::start_info::StartInfo;
use crate::steps::Guest;
use crate::{serial, symbols, verdict};

/// Runs the scenario of the command line. `c_mask` is the C-bit, or 0 without SEV.
pub(crate) fn run(start_info: u64, c_mask: u64) -> ! {
    serial::init();
    let mut pool = Pool::new(symbols::pool(), Descriptors::PAGES);
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
    let own = symbols::image().start..pool.limit();
    if !ram.holds(Pages::between(&own)) {
        return verdict::fail(format_args!("start: {own:#x?} is not all RAM"));
    }
    let memory = Memory::current(c_mask);
    memory.map.add_high_ram(&ram, &mut pool);
    let mut guest = Guest { ram, memory, pool, descriptors, processors };
    guest.perform_all(info.command_line());
}
