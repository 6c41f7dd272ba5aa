//! The other processors: started by INIT and SIPI for each task, and halted after it.
//!
//! They start in real mode below 1 MiB and run without paging until they have the page tables:
//! their code there must be private, though it is the host's choice what is around it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::acpi::Processors;
use crate::conversion::Memory;
use crate::descriptors::Descriptors;
use crate::physical::{read32, write8, write32, write64};
use crate::ram::Pages;
use crate::scenario::Storm;
use crate::{cpu, storm, symbols};

/// The registers of the local APIC, and its 2 MiB that are mapped for it.
pub(crate) const LOCAL_APIC: u64 = 0xfee0_0000;
const ID: u64 = LOCAL_APIC + 0x20;
const SPURIOUS: u64 = LOCAL_APIC + 0xf0;
const COMMAND_LOW: u64 = LOCAL_APIC + 0x300;
const COMMAND_HIGH: u64 = LOCAL_APIC + 0x310;
const ENABLE: u32 = 0x1ff;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
const DELIVERY_PENDING: u32 = 0x1000;

/// `AP_BASE` and `AP_ROOT_TABLE` of `entry.s`.
const AP_BASE: u64 = 0x8000;
const AP_ROOT_TABLE: u64 = 0x9000;
/// The frames of both.
pub(crate) const AP_PAGES: Pages = Pages { first: 8, count: 2 };
/// Words at the end of the code that are filled in: root table, stack, number, C-bit.
const AP_WORDS: u64 = 4;

/// Ticks, some milliseconds on any processor of today.
const SHORT: u64 = 10_000_000;
/// Ticks, some ten seconds: emulated machines are slow.
const LONG: u64 = 30_000_000_000;

static STARTED: AtomicU64 = AtomicU64::new(0);
static FINISHED: AtomicU64 = AtomicU64::new(0);
/// Set when all have started, so that they work at the same time.
static GO: AtomicBool = AtomicBool::new(false);
static SEGMENTS: AtomicU64 = AtomicU64::new(0);
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
/// The storm that all take part in (first frame, pages, seed, steps, parts); no parts, no storm.
static STORM: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

/// Starts the other processors, lets all of them storm (if there is one), and waits for them.
/// Returns how many are up, this one included.
pub(crate) fn start(
    memory: Memory,
    descriptors: Descriptors,
    processors: Processors,
    storm: Option<&Storm>,
) -> u64 {
    let parts = if storm.is_some() { processors.count() } else { 0 };
    let pages = storm.map_or(Pages::default(), |storm| storm.pages);
    let (seed, steps) = storm.map_or((0, 0), |storm| (storm.seed, storm.steps));
    for (word, value) in STORM.iter().zip([pages.first, pages.count, seed, steps, parts]) {
        word.store(value, Ordering::Relaxed);
    }
    SEGMENTS.store(descriptors.segments, Ordering::Relaxed);
    INTERRUPTS.store(descriptors.interrupts, Ordering::Relaxed);
    STARTED.store(0, Ordering::Relaxed);
    FINISHED.store(0, Ordering::Relaxed);
    GO.store(false, Ordering::Release);

    write32(SPURIOUS, ENABLE);
    let own = read32(ID) >> 24;
    let others = processors.ids().filter(|&id| u32::from(id) != own);
    for (number, id) in (1..).zip(others) {
        place_code(memory, number);
        if !start_one(u32::from(id), number) {
            break;
        }
    }
    let started = STARTED.load(Ordering::Acquire);
    GO.store(true, Ordering::Release);
    if let Some(storm) = storm {
        storm::run_here(memory, storm, 0, parts);
    }
    while FINISHED.load(Ordering::Acquire) < started {
        cpu::pause();
    }
    // What the others changed may still be cached here.
    cpu::flush_all();
    started + 1
}

/// Where a started processor arrives, on its own stack and the common page tables.
pub(crate) fn arrive(number: u64, c_mask: u64) -> ! {
    Descriptors {
        segments: SEGMENTS.load(Ordering::Relaxed),
        interrupts: INTERRUPTS.load(Ordering::Relaxed),
    }
    .load(number);
    STARTED.fetch_add(1, Ordering::Release);
    while !GO.load(Ordering::Acquire) {
        cpu::pause();
    }
    let [first, count, seed, steps, parts] =
        STORM.each_ref().map(|word| word.load(Ordering::Relaxed));
    if parts > 0 {
        let storm = Storm { pages: Pages { first, count }, seed, steps, in_place: false };
        storm::run_here(Memory::current(c_mask), &storm, number, parts);
    }
    FINISHED.fetch_add(1, Ordering::Release);
    cpu::halt()
}

/// Puts the code of a starting processor, its number and its root table below 1 MiB.
fn place_code(memory: Memory, number: u64) {
    let code = symbols::ap_code();
    (AP_BASE..).zip(code).for_each(|(at, &byte)| write8(at, byte));
    let c_mask = memory.platform.c_mask;
    let words = [cpu::root_table(), symbols::stack(number), number, c_mask];
    let at = AP_BASE + code.len() as u64 - AP_WORDS * 8;
    (at..).step_by(8).zip(words).for_each(|(at, word)| write64(at, word));
    // CR3 cannot take the C-bit before 64-bit mode: this one page is reached without it.
    (AP_ROOT_TABLE..AP_ROOT_TABLE + 4096).step_by(8).for_each(|at| write64(at, 0));
    write64(AP_ROOT_TABLE, memory.map.first_entry());
}

/// INIT, SIPI, and a second SIPI if the first was not enough; `false` if it does not come up.
fn start_one(id: u32, number: u64) -> bool {
    let up = || STARTED.load(Ordering::Acquire) >= number;
    let startup = STARTUP | u32::try_from(AP_BASE >> 12).unwrap_or_default();
    send(id, INIT);
    wait(SHORT, || false);
    send(id, startup);
    if !wait(SHORT, up) {
        send(id, startup);
    }
    wait(LONG, up)
}

fn send(id: u32, command: u32) {
    write32(COMMAND_HIGH, id << 24);
    write32(COMMAND_LOW, command);
    wait(SHORT, || read32(COMMAND_LOW) & DELIVERY_PENDING == 0);
}

/// Waits until something is so, but not longer than some ticks; whether it is so.
fn wait(ticks: u64, so: impl Fn() -> bool) -> bool {
    let start = cpu::ticks();
    while !so() {
        if cpu::ticks().wrapping_sub(start) > ticks {
            return false;
        }
        cpu::pause();
    }
    true
}
