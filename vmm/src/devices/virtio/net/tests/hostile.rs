//! Drivers that lie about packets, and taps that fail: packets are lost, nothing else is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{
    BUFFER, CONTROL, CSUM, GUEST_ANNOUNCE, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MERGEABLE,
    NEEDS_RESET, NO_HEADER, SEVERAL, machine, packet, receive, send, started,
};
use crate::devices::virtio::Driver;

/// Rings after a chain that breaks the rules; the card is broken, and whole after a reset.
#[track_caller]
fn breaks(driver: &mut Driver, queue: u16, readable: &[&[u8]], writable: &[u32]) {
    driver.wires().clear();
    driver.add(queue, readable, writable).unwrap();
    driver.ring(queue);
    assert!(driver.wires().wait(Duration::from_secs(10)));
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
}

/// A packet without a header, a buffer that none fits in, and commands without number or room for the
/// answer break the card until it is reset.
#[test]
fn chains_that_are_none_break_the_card() {
    type Row<'a> = (u16, &'a [&'a [u8]], &'a [u32]);
    let rows: [Row<'_>; 6] = [
        (1, &[&[0; 11]], &[]),
        (1, &[], &[12]),
        (0, &[], &[11]),
        (0, &[&[0; 100]], &[]),
        (2, &[&[3]], &[1]),
        (2, &[&[3, 0]], &[]),
    ];
    for (queue, readable, writable) in rows {
        let (mut driver, wire) = started(MERGEABLE | CONTROL);
        wire.send(&NO_HEADER, &packet(0, 60));
        breaks(&mut driver, queue, readable, writable);
        driver.start(MERGEABLE).unwrap();
        send(&mut driver, &NO_HEADER, &packet(1, 60));
        assert_eq!(wire.receive().1, packet(1, 60));
    }
}

/// A packet that lies in its header, or is too short or too long to be one, is dropped; the next one
/// goes.
#[test]
fn packets_that_lie_are_dropped() {
    let (mut driver, wire) = started(CSUM | HOST_TSO4);
    let headers: [[u8; 12]; 6] = [
        [1, 0, 0, 0, 0, 0, 59, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        [0, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
        [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        [1, 4, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
        [0xff; 12],
    ];
    for header in headers {
        send(&mut driver, &header, &packet(0, 60));
    }
    send(&mut driver, &NO_HEADER, &packet(0, 13));
    send(&mut driver, &NO_HEADER, &packet(0, 65_554));
    send(&mut driver, &NO_HEADER, &packet(1, 65_553));
    assert_eq!(wire.receive().1, packet(1, 65_553));
    assert!(wire.is_silent());
    assert_eq!(driver.status(), 15);
}

/// A packet that comes with more undone than the driver takes is not given to it.
#[test]
fn a_driver_gets_nothing_that_it_did_not_accept() {
    let (mut driver, wire) = started(GUEST_CSUM);
    driver.add(0, &[], &[BUFFER]).unwrap();
    driver.ring(0);
    wire.send(&[1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0], &packet(1, 600));
    wire.send(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &packet(2, 600));
    let (header, got) = receive(&mut driver);
    assert_eq!((header, got), (vec![1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0], packet(2, 600)));
}

/// Features without those that they need do not start the card.
#[test]
fn features_that_need_others_do_not_come_alone() {
    for alone in [HOST_TSO4, GUEST_TSO4, GUEST_ANNOUNCE, SEVERAL] {
        let (mut driver, _wires) = machine(2);
        driver.start(alone).unwrap();
        assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET, "{alone:#x}");
    }
}

/// Commands that nobody knows are refused, however long they are.
#[test]
fn unknown_commands_are_refused() {
    let (mut driver, _wire) = started(CONTROL);
    for bytes in [&[0, 0, 1][..], &[1, 1, 2, 2, 2, 2, 2, 2], &[3, 0], &[4, 0, 1, 0], &[9; 4000]] {
        assert_eq!(super::command(&mut driver, 2, bytes), 1);
    }
}

/// A tap that fails loses packets: each is tried once, no thread spins, and when it works again so
/// does the card.
#[test]
fn a_tap_that_fails_loses_packets_only() {
    for errno in [libc::EIO, libc::EAGAIN, libc::ENOBUFS, libc::EBADFD] {
        let (mut driver, wire) = started(0);
        driver.add(0, &[], &[BUFFER]).unwrap();
        driver.ring(0);
        let done = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        wire.seen.errno.store(errno, Ordering::Relaxed);
        let (reads, writes) = (done(&wire.seen.reads), done(&wire.seen.writes));
        wire.send(&NO_HEADER, &packet(1, 60));
        for _ in 0..10 {
            send(&mut driver, &NO_HEADER, &packet(0, 60));
        }
        // One thread for all: what it did for the packet that came is done, or is being done.
        assert_eq!(done(&wire.seen.writes) - writes, 10);
        assert!(done(&wire.seen.reads) - reads <= 4, "{} reads", done(&wire.seen.reads) - reads);
        wire.seen.errno.store(0, Ordering::Relaxed);
        wire.send(&NO_HEADER, &packet(2, 60));
        assert_eq!(receive(&mut driver).1, packet(1, 60));
        send(&mut driver, &NO_HEADER, &packet(3, 60));
        assert_eq!(wire.receive().1, packet(3, 60));
        assert_eq!(driver.status(), 15);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes in any queue, and packets of any kind that come meanwhile: the card goes on, or is broken
    /// until it is reset, and then works.
    #[test]
    fn a_card_outlives_any_driver(
        features: u64,
        steps in vec((0_u16..3, vec(any::<u8>(), 0..40), vec(1_u32..3000, 0..3), any::<bool>()), 1..40),
    ) {
        let (mut driver, wires) = machine(1);
        driver.start(features).unwrap();
        for (queue, bytes, writable, comes) in &steps {
            if let (true, Some(header)) = (comes, bytes.first_chunk()) {
                wires[0].send(header, &packet(0, 700));
            }
            let readable: &[&[u8]] = if bytes.is_empty() { &[] } else { &[bytes] };
            if readable.len() + writable.len() > 0 {
                driver.add(*queue, readable, writable).unwrap();
                driver.ring(*queue);
            }
        }
        driver.function().pause();
        driver.function().resume();
        driver.start(0).unwrap();
        send(&mut driver, &NO_HEADER, b"the last packet of all");
        // What the driver sent before comes first.
        while wires[0].receive().1 != b"the last packet of all" {}
        prop_assert_eq!(driver.status(), 15);
    }
}
