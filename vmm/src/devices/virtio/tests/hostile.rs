//! Drivers that break the rules: whatever is in rings, descriptors, registers and configuration space,
//! nothing outside the buffers that were named is written, nothing panics, and a reset helps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::driver::{Driver, DriverQueue};
use super::super::queue::RingSetup;
use super::super::{CHAIN_MAX, Condition, Ring, Segment};
use super::{CONFIG, EVENT_INDEX, INDIRECT, NEEDS_RESET, RAM_BYTES, driver, echo, started};
use crate::page::{FrameSet, Gpa, RamLayout};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const TABLE: u16 = 4;

/// A descriptor: address, bytes, flags, next.
type Described = (u64, u32, u16, u16);

/// Puts descriptors in the table as they are, makes `head` available, rings, and waits until the
/// device has answered or is broken.
fn submit(driver: &mut Driver, descriptors: &[Described], head: u16) -> bool {
    let mut queue = driver.queue(0).unwrap().clone();
    let memory = driver.memory().clone();
    for (id, &(address, bytes, flags, next)) in (0..).zip(descriptors) {
        queue.describe(memory.view(), id, Segment { address, bytes }, (flags, next)).unwrap();
    }
    queue.publish(memory.view(), head).unwrap();
    driver.wires().clear();
    driver.ring(0);
    driver.wires().wait(Duration::from_secs(10));
    driver.status() & NEEDS_RESET == 0
}

/// Chains that loop, start or go on nowhere, leave RAM, wrap, are out of order, or whose table is
/// none, break the device, and only it; it works again after a reset.
#[test]
fn chains_that_break_the_rules_break_the_device() {
    let buffer = 0x40_0000;
    let rows: &[(&str, &[Described], u16)] = &[
        ("loop of one", &[(buffer, 4, NEXT, 0)], 0),
        ("loop of two", &[(buffer, 4, NEXT, 1), (buffer, 4, NEXT, 0)], 0),
        ("next beyond the ring", &[(buffer, 4, NEXT, 128)], 0),
        ("head beyond the ring", &[(buffer, 4, 0, 0)], 128),
        ("head far beyond", &[(buffer, 4, 0, 0)], 0xffff),
        ("beyond RAM", &[(RAM_BYTES - 2, 4, WRITE, 0)], 0),
        ("far beyond RAM", &[(1 << 60, 4, 0, 0)], 0),
        ("in the device's own BAR", &[(0xc000_8000, 4, WRITE, 0)], 0),
        ("wraps", &[(u64::MAX - 1, 4, WRITE, 0)], 0),
        ("longer than RAM", &[(0, u32::MAX, WRITE, 0)], 0),
        ("read after write", &[(buffer, 4, NEXT | WRITE, 1), (buffer, 4, 0, 0)], 0),
        ("longer than 4 GiB", &[(0, 0xc0_0000, NEXT, 1), (0, u32::MAX, 0, 0)], 0),
        ("table of no whole entries", &[(buffer, 17, TABLE, 0)], 0),
        ("empty table", &[(buffer, 0, TABLE, 0)], 0),
        ("table beyond RAM", &[(RAM_BYTES, 32, TABLE, 0)], 0),
        ("table of 2^28 entries", &[(0, 0xffff_fff0, TABLE, 0)], 0),
    ];
    let mut other = started(0);
    for (what, descriptors, head) in rows {
        for features in [0, INDIRECT | EVENT_INDEX] {
            let mut driver = started(features);
            assert!(!submit(&mut driver, descriptors, *head), "{what}");
            // Nothing moves it but a reset.
            driver.write(0x14, &[15]);
            driver.ring(0);
            assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET, "{what}");
            assert_eq!(driver.function().condition(), Condition::Broken);
            driver.start(features).unwrap();
            echo(&mut driver, what.as_bytes());
        }
        echo(&mut other, what.as_bytes());
    }
}

/// An indirect table in an indirect table, one that is longer than any driver's, and one that loops.
#[test]
fn tables_that_break_the_rules_break_the_device() {
    let table = 0x50_0000;
    let entries: [(&str, &[Described], u32); 3] = [
        ("nested", &[(table + 64, 16, TABLE, 0)], 16),
        ("loop", &[(0x40_0000, 4, NEXT, 1), (0x40_0000, 4, NEXT, 0)], 32),
        ("next beyond the table", &[(0x40_0000, 4, NEXT, 7)], 16),
    ];
    for (what, entries, bytes) in entries {
        let mut driver = started(INDIRECT);
        write_table(&driver, table, entries);
        assert!(!submit(&mut driver, &[(table, bytes, TABLE, 0)], 0), "{what}");
    }
    for (length, works) in [(CHAIN_MAX, true), (CHAIN_MAX + 1, false)] {
        let mut driver = started(INDIRECT);
        let entry = |id: usize| {
            let next = id + 1 < length;
            (0x40_0000, 4, u16::from(next) * NEXT, u16::try_from(id + 1).unwrap())
        };
        let entries: Vec<_> = (0..length).map(entry).collect();
        write_table(&driver, table, &entries);
        let bytes = u32::try_from(16 * length).unwrap();
        assert_eq!(submit(&mut driver, &[(table, bytes, TABLE, 0)], 0), works, "{length}");
    }
}

/// A device's turn ends though its driver adds for as long as the device takes; then it wants another.
#[test]
fn a_turn_ends_though_the_ring_does_not() {
    let driver = started(0);
    let memory = driver.memory().clone();
    let mut queue = driver.queue(0).unwrap().clone();
    let buffer = Segment { address: 0x40_0000, bytes: 4 };
    queue.describe(memory.view(), 0, buffer, (0, 0)).unwrap();
    let DriverQueue { size, descriptors, available, used, .. } = queue;
    let setup = RingSetup { size, descriptors, available, used };
    let mut ring = Ring::new(size).unwrap();
    ring.enable(setup, false, memory.view()).unwrap();
    for _ in 0..2 {
        ring.begin_turn();
        let mut count = 0;
        queue.publish(memory.view(), 0).unwrap();
        while let Some(chain) = ring.in_memory(memory.view()).pop().unwrap() {
            ring.in_memory(memory.view()).finish(chain.head(), 0).unwrap();
            queue.publish(memory.view(), 0).unwrap();
            count += 1;
            assert!(count <= 1024, "a turn without an end");
        }
        assert!(count == 1024 && ring.wants_another_turn() && !ring.wants_another_turn());
    }
}

/// A driver that adds to a ring for as long as its device takes from it keeps nobody waiting who wants the
/// device's lock: it is paused, and says how it is.
#[test]
fn a_ring_that_never_ends_does_not_hold_a_pause() {
    let mut driver = started(0);
    let (queue, memory) = (driver.queue(0).unwrap().clone(), driver.memory().clone());
    echo(&mut driver, b"works");
    let used =
        || -> u16 { memory.view().load(GuestAddress(queue.used + 2), Ordering::SeqCst).unwrap() };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // All entries of the ring name the chain that is there; the ring is full, and stays so.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let index = used().wrapping_add(queue.size);
                memory
                    .view()
                    .store(index, GuestAddress(queue.available + 2), Ordering::SeqCst)
                    .unwrap();
            }
        });
        driver.ring(0);
        let (done, paused) = channel();
        let function = driver.function();
        scope.spawn(move || {
            for _ in 0..20 {
                assert_eq!(function.condition(), Condition::Used);
            }
            function.pause();
            done.send(()).unwrap();
        });
        let in_time = paused.recv_timeout(Duration::from_secs(20));
        is_over.store(true, Ordering::Relaxed);
        in_time.expect("the device is paused");
    });
}

fn write_table(driver: &Driver, table: u64, entries: &[Described]) {
    for (id, &(address, bytes, flags, next)) in (0_u64..).zip(entries) {
        let word = u128::from(address)
            | u128::from(bytes) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        let at = GuestAddress(table + 16 * id);
        driver.memory().view().write_slice(&word.to_le_bytes(), at).unwrap();
    }
}

/// An available index that jumps by more than the ring holds is no work for ever.
#[test]
fn an_index_that_jumps_breaks_the_device() {
    let driver = started(0);
    let index = GuestAddress(driver.queue(0).unwrap().available + 2);
    driver.memory().view().write_obj(0x8000_u16.to_le(), index).unwrap();
    driver.ring(0);
    assert!(driver.wires().wait(Duration::from_secs(10)));
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
}

/// Empty buffers are nothing to read and nothing to write, but no offence.
#[test]
fn empty_buffers_are_harmless() {
    let mut driver = started(0);
    let chain = [(0x40_0000, 0, NEXT, 1), (u64::MAX, 0, WRITE, 0)];
    assert!(!submit(&mut driver, &chain, 0), "an empty buffer beyond all addresses");
    driver.start(0).unwrap();
    assert!(submit(&mut driver, &[(0x40_0000, 0, NEXT, 1), (0x40_0000, 0, WRITE, 0)], 0));
    assert_eq!(driver.poll(0).unwrap().unwrap().written, 0);
}

/// Where descriptors point to in these tests: RAM, its ends, and beyond.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0x40_0000_u64..0x60_0000,
        1 => RAM_BYTES - 0x1000..RAM_BYTES + 0x1000,
        1 => any::<u64>(),
    ]
}

fn described() -> impl Strategy<Value = Described> {
    let bytes = prop_oneof![4 => 0_u32..0x3000, 1 => any::<u32>()];
    (address(), bytes, 0_u16..8, 0_u16..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any descriptors at all: the device writes nothing but its used ring and what a descriptor that
    /// may be written names, and a reset makes it whole.
    #[test]
    fn only_what_was_named_is_written(
        descriptors in vec(described(), 1..10),
        table in vec(described(), 8),
        head in 0_u16..12,
    ) {
        let mut driver = started(INDIRECT);
        write_table(&driver, 0x40_0000, &table);
        let queue = driver.queue(0).unwrap().clone();
        let mut allowed = FrameSet::new(RamLayout::new(RAM_BYTES).unwrap());
        let mut allow = |address: u64, bytes: u64| {
            let last = address.saturating_add(bytes.saturating_sub(1)).min(RAM_BYTES - 1);
            for page in (address >> 12)..=(last >> 12) {
                allowed.insert(Gpa(page << 12).frame());
            }
        };
        allow(queue.used, 0x1000);
        // The other queue is looked at once when the driver starts.
        allow(driver.queue(1).unwrap().used, 0x1000);
        // What the driver itself writes, after the record is emptied.
        allow(queue.descriptors, 0x1000);
        allow(queue.available, 0x1000);
        // A table may lie anywhere in what was described, so any descriptor that can be read as one
        // counts only if it is at the place of the table.
        for &(address, bytes, flags, _) in descriptors.iter().chain(&table) {
            if flags & WRITE != 0 && address < RAM_BYTES {
                allow(address, bytes.into());
            }
        }
        let reads_other_tables = descriptors.iter().chain(&table).any(|(address, _, flags, _)| {
            flags & TABLE != 0 && *address != 0x40_0000
        });
        driver.memory().forget_written();
        submit(&mut driver, &descriptors, head);
        driver.function().pause();
        let mut written = FrameSet::new(RamLayout::new(RAM_BYTES).unwrap());
        driver.memory().take_written(&mut written);
        if !reads_other_tables {
            for frame in written.frames() {
                prop_assert!(allowed.contains(frame), "{frame:?}");
            }
        }
        driver.function().resume();
        driver.start(0).unwrap();
        echo(&mut driver, b"whole");
    }

    /// Any writes to registers, the table of interrupts and configuration space: the device answers,
    /// and once it is where it was, a driver can bring it up.
    #[test]
    fn registers_take_anything(
        writes in vec((any::<bool>(), 0_u64..0x6100, vec(any::<u8>(), 1..9)), 1..60),
    ) {
        let mut driver = driver();
        for (is_config, offset, data) in &writes {
            if *is_config {
                driver.bus().write(CONFIG + offset % 0x1000, data);
            } else {
                driver.bus().write(driver.bar() + offset, data);
            }
            let mut seen = [0; 8];
            driver.bus().read(CONFIG + offset % 0x1000, &mut seen);
            driver.bus().read(driver.bar() + offset, &mut seen);
        }
        let state = driver.function().state();
        super::driver().function().restore(&state).unwrap();
        let home = super::DRIVER_LAYOUT.bar_of(super::DRIVER_SLOT);
        driver.bus().write(CONFIG + 4, &[0; 2]);
        driver.bus().write(CONFIG + 0x10, &home.to_le_bytes());
        driver.start(EVENT_INDEX).unwrap();
        echo(&mut driver, b"still there");
    }
}
