//! A card that goes on elsewhere: its address, its queue pairs, and what the network is told.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::super::Net;
use super::{
    BUFFER, CONTROL, GUEST_ANNOUNCE, GUEST_CSUM, MERGEABLE, NO_HEADER, RAM_BYTES, SEVERAL, Wire,
    command, config, mac, machine, packet, port, receive, send, started,
};
use crate::devices::virtio::{Driver, VirtioDevice};

/// Where a guest is moved to, with a card of so many queue pairs that has no address of its own.
fn elsewhere(pairs: usize) -> (Driver, Vec<Wire>) {
    let (ports, wires) = (0..pairs).map(|_| port()).unzip();
    let card = Net::over(ports, None, None).unwrap();
    (Driver::new(Box::new(card), RAM_BYTES, BUFFER).unwrap(), wires)
}

/// Moves memory and card, paused; they do not go on yet.
fn moved(old: Driver, new: Driver) -> Driver {
    old.function().pause();
    let mut ram = vec![0; usize::try_from(RAM_BYTES).unwrap()];
    old.memory().view().read_slice(&mut ram, GuestAddress(0)).unwrap();
    new.memory().view().write_slice(&ram, GuestAddress(0)).unwrap();
    new.function().restore(&old.function().state()).unwrap();
    old.moved_to(new)
}

/// Waits until the guest is asked to announce itself.
#[track_caller]
fn is_asked(driver: &Driver) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while config(driver).1 & 2 == 0 {
        driver.wires().wait(deadline.saturating_duration_since(Instant::now()));
        driver.wires().clear();
        assert!(Instant::now() < deadline);
    }
}

/// The network hears of a card that has come, several times, and so does the guest; not before the
/// guest goes on.
#[test]
fn a_card_that_has_come_is_announced() {
    let (old, _old_wire) = started(CONTROL | GUEST_ANNOUNCE | MERGEABLE);
    let (new, wires) = elsewhere(1);
    let mut driver = moved(old, new);
    assert!(wires[0].is_silent_for(Duration::from_millis(50)));
    assert_eq!(config(&driver), (mac().bytes(), 1, 1));
    driver.function().resume();
    for _ in 0..6 {
        let (_, rarp) = wires[0].receive();
        assert_eq!(rarp.len(), 60);
        assert_eq!(rarp[..6], [0xff; 6]);
        assert_eq!(rarp[6..12], mac().bytes());
        assert_eq!(rarp[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&rarp[22..28], &rarp[32..38]), (&mac().bytes()[..], &mac().bytes()[..]));
        is_asked(&driver);
        assert_eq!(command(&mut driver, 2, &[3, 0]), 0);
        assert_eq!(config(&driver).1, 1);
    }
    // That was the last time.
    assert!(wires[0].is_silent_for(Duration::from_millis(600)));
    assert_eq!(config(&driver).1, 1);
}

/// A driver that cannot announce itself is not asked to; packets go on, one that waited in a ring
/// too.
#[test]
fn packets_go_on_where_a_card_is_moved_to() {
    let (mut old, old_wire) = started(GUEST_CSUM | MERGEABLE);
    send(&mut old, &NO_HEADER, &packet(1, 100));
    assert_eq!(old_wire.receive().1, packet(1, 100));
    old.add(0, &[], &[BUFFER]).unwrap();
    old.function().pause();
    old.add(1, &[&NO_HEADER, &packet(2, 100)], &[]).unwrap();
    let (new, wires) = elsewhere(1);
    let mut driver = moved(old, new);
    assert_eq!(wires[0].seen.offloads.load(Ordering::Relaxed), libc::TUN_F_CSUM);
    driver.function().resume();
    driver.wait(1).unwrap();
    let mut sent = [wires[0].receive().1, wires[0].receive().1];
    sent.sort_by_key(Vec::len);
    assert_eq!((sent[0].len(), &sent[1]), (60, &packet(2, 100)));
    wires[0].send(&NO_HEADER, &packet(3, 100));
    assert_eq!(receive(&mut driver).1, packet(3, 100));
    assert_eq!(config(&driver).1, 1);
    assert!(old_wire.is_silent());
}

/// Queue pairs that the driver uses are used there too.
#[test]
fn queue_pairs_are_used_where_a_card_is_moved_to() {
    let (mut old, _old_wires) = machine(2);
    old.start(CONTROL | SEVERAL).unwrap();
    assert_eq!(command(&mut old, 4, &[4, 0, 2, 0]), 0);
    let (new, wires) = elsewhere(2);
    let detached = || wires[1].seen.is_detached.load(Ordering::Relaxed);
    assert!(detached());
    let driver = moved(old, new);
    assert!(!detached());
    driver.function().resume();
    wires[0].receive();
}

/// A card with an address of its own is not another's, nor is one of fewer queue pairs; without one it
/// takes any.
#[test]
fn a_card_with_another_address_or_other_queues_is_refused() {
    let (old, _wire) = started(0);
    old.function().pause();
    let state = old.function().state();
    let other =
        Net::over(vec![port().0], Some("52:54:00:00:00:02".parse().unwrap()), None).unwrap();
    assert_eq!(other.alike(), [("mac", "52:54:00:00:00:02".to_owned())]);
    let other = Driver::new(Box::new(other), RAM_BYTES, BUFFER).unwrap();
    let refused = other.function().restore(&state).unwrap_err().to_string();
    assert!(refused.contains("another MAC address"), "{refused}");
    assert!(elsewhere(2).0.function().restore(&state).is_err());
    assert_eq!(Net::over(vec![port().0], None, None).unwrap().alike(), [("mac", "*".to_owned())]);
    let there = elsewhere(1).0;
    there.function().restore(&state).unwrap();
    // Where it goes from there, it is looked for by its address.
    let alike = there.function().ask(|card| card.alike());
    assert_eq!(alike, [("mac", mac().to_string())]);
}
