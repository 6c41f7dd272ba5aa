//! The last line, and how the machine ends.

use core::fmt::Arguments;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::{cpu, serial};

/// Steps of the scenario that did not go as they should.
static FAILURES: AtomicU32 = AtomicU32::new(0);
/// The chosen [`End`]; an exception ends the machine the same way.
static END: AtomicU8 = AtomicU8::new(End::PowerOff as u8);

/// What to do after the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Power off by the ACPI sleep register.
    PowerOff,
    /// Reset by the keyboard controller.
    Reboot,
    /// Reset by a triple fault.
    TripleFault,
    /// Stop the processor and leave the machine on.
    Halt,
}

/// Chooses how the machine ends.
pub(crate) fn end_by(end: End) {
    END.store(end as u8, Ordering::Relaxed);
}

/// Prints why a step failed, and counts it.
pub(crate) fn fail(why: Arguments<'_>) {
    FAILURES.fetch_add(1, Ordering::Relaxed);
    serial::line(why);
}

/// An exception: prints it, and ends.
pub(crate) fn exception(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    fail(format_args!("exception: vector={vector} error={error:#x} rip={rip:#x} cr2={cr2:#x}"));
    finish()
}

/// Prints the verdict and ends the machine.
pub(crate) fn finish() -> ! {
    match FAILURES.load(Ordering::Relaxed) {
        0 => serial::line(format_args!("guest-firmware: PASS")),
        failures => serial::line(format_args!("guest-firmware: FAIL {failures}")),
    }
    let end = END.load(Ordering::Relaxed);
    if end == End::PowerOff as u8 {
        power_off();
    } else if end == End::Reboot as u8 {
        cpu::out8(0x64, 0xfe);
    } else if end == End::TripleFault as u8 {
        cpu::triple_fault();
    }
    cpu::halt()
}

/// Tries each VMM's way: the first that works ends the machine.
fn power_off() {
    /// `SLP_TYP` 5 and `SLP_EN`: sevferry's and Cloud Hypervisor's sleep control register.
    const SLEEP: u8 = 5 << 2 | 1 << 5;
    cpu::out8(0x600, SLEEP);
    // QEMU: `-device isa-debug-exit` at its two usual ports, then PM1a control of pc and q35.
    cpu::out8(0xf4, 0);
    cpu::out8(0x501, 0);
    cpu::out16(0x604, 0x2000);
}
