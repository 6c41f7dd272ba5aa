//! A network card driven by a driver in this process, with a socket for its wire.

mod hostile;
mod moved;
mod packing;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::flow::AT_A_TIME;
use super::{Mac, Net, RateLimit};
use crate::devices::virtio::Driver;
use crate::memory::GuestRam;
use crate::page::{Frame, Gpa, PageRange, RamLayout};
use wire::{Wire, port};

const RAM_BYTES: u64 = 32 << 20;
/// Bytes behind each descriptor of the driver.
const BUFFER: u32 = 4096;
const NEEDS_RESET: u8 = 64;
const NO_HEADER: [u8; 12] = [0; 12];

const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_OFFLOADS: u64 = 1 << 2;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MERGEABLE: u64 = 1 << 15;
const CONTROL: u64 = 1 << 17;
const GUEST_ANNOUNCE: u64 = 1 << 21;
const SEVERAL: u64 = 1 << 22;

fn mac() -> Mac {
    "52:54:00:00:00:01".parse().unwrap()
}

/// A machine with a card of `pairs` queue pairs, not started, and its wires.
fn machine(pairs: usize) -> (Driver, Vec<Wire>) {
    let (ports, wires) = (0..pairs).map(|_| port()).unzip();
    let card = Net::over(ports, Some(mac()), None).unwrap();
    (Driver::new(Box::new(card), RAM_BYTES, BUFFER).unwrap(), wires)
}

/// A card of one queue pair whose driver has accepted `features`.
fn started(features: u64) -> (Driver, Wire) {
    let (mut driver, mut wires) = machine(1);
    assert_eq!(driver.start(features).unwrap() & features, features);
    (driver, wires.remove(0))
}

/// The guest sends `packet`, and the card is done with it.
#[track_caller]
fn send(driver: &mut Driver, header: &[u8], packet: &[u8]) {
    let parts: Vec<_> = std::iter::once(header).chain(packet.chunks(BUFFER as usize)).collect();
    driver.add(1, &parts, &[]).unwrap();
    driver.ring(1);
    assert_eq!(driver.wait(1).unwrap().written, 0);
}

/// The next packet that the guest gets, with its header, from as many buffers as that says.
#[track_caller]
fn receive(driver: &mut Driver) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut take = |driver: &mut Driver| {
        let returned = driver.wait(0).unwrap();
        bytes.extend(&returned.bytes[..usize::try_from(returned.written).unwrap()]);
        u16::from_le_bytes([bytes[10], bytes[11]])
    };
    for _ in 1..take(driver) {
        take(driver);
    }
    let packet = bytes.split_off(12);
    (bytes, packet)
}

/// A command in the control queue of a card; its answer.
#[track_caller]
fn command(driver: &mut Driver, queue: u16, bytes: &[u8]) -> u8 {
    driver.add(queue, &[bytes], &[1]).unwrap();
    driver.ring(queue);
    let returned = driver.wait(queue).unwrap();
    assert_eq!(returned.written, 1);
    returned.bytes[0]
}

/// The card's own configuration: its address, its status, and its queue pairs.
fn config(driver: &Driver) -> ([u8; 6], u8, u16) {
    let mut bytes = [0; 10];
    driver.read_config(0, &mut bytes);
    let [mac @ .., status, _, low, high] = bytes;
    (mac, status, u16::from_le_bytes([low, high]))
}

/// Bytes that differ from packet to packet.
fn packet(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + seed * 31 + at / 251) % 251).unwrap()).collect()
}

/// Packets of every size go out and come in as they are, more of them than the rings have entries.
#[test]
fn packets_go_out_and_come_in() {
    for features in [0, MERGEABLE] {
        let (mut driver, wire) = started(features);
        assert_eq!(config(&driver), (mac().bytes(), 1, 1));
        for round in 0..300 {
            let sent = packet(round, 60 + round * 4);
            send(&mut driver, &NO_HEADER, &sent);
            assert_eq!(wire.receive(), (NO_HEADER.to_vec(), sent.clone()));
            driver.add(0, &[], &[BUFFER]).unwrap();
            driver.ring(0);
            wire.send(&NO_HEADER, &sent);
            let (header, got) = receive(&mut driver);
            assert_eq!((header[..10].to_vec(), got), (NO_HEADER[..10].to_vec(), sent));
        }
        assert_eq!(driver.status(), 15);
    }
}

/// A segment of 64 KiB goes out from many pieces, and comes in many buffers, with what is undone in
/// it, if the driver takes that.
#[test]
fn long_segments_go_whole() {
    let (mut driver, wire) = started(CSUM | HOST_TSO4 | GUEST_CSUM | GUEST_TSO4 | MERGEABLE);
    let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    let long = packet(1, 65_000);
    send(&mut driver, &header, &long);
    assert_eq!(wire.receive(), (header.to_vec(), long.clone()));
    for _ in 0..20 {
        driver.add(0, &[], &[BUFFER]).unwrap();
    }
    driver.ring(0);
    wire.send(&header, &long);
    let (came, got) = receive(&mut driver);
    assert_eq!((&came[..10], &came[10..]), (&header[..10], &[16, 0][..]));
    assert_eq!(got, long);
}

/// What may be undone in packets that come follows what the driver accepts, and what it asks for
/// later; a driver that goes away leaves whole packets.
#[test]
fn the_tap_leaves_undone_what_the_driver_takes() {
    let (mut driver, wire) = started(GUEST_CSUM | GUEST_TSO4 | CONTROL | GUEST_OFFLOADS);
    let offloads = || wire.seen.offloads.load(Ordering::Relaxed);
    let (checksums, segments) = (libc::TUN_F_CSUM, libc::TUN_F_TSO4);
    assert_eq!(offloads(), checksums | segments);
    let set = |offloads: u64| [&[5, 0], &offloads.to_le_bytes()[..]].concat();
    assert_eq!(command(&mut driver, 2, &set(GUEST_CSUM)), 0);
    assert_eq!(offloads(), checksums);
    // Not accepted.
    assert_eq!(command(&mut driver, 2, &set(GUEST_CSUM | 1 << 8)), 1);
    assert_eq!(command(&mut driver, 2, &set(GUEST_CSUM)[..9]), 1);
    assert_eq!(offloads(), checksums);
    driver.write(0x14, &[0]);
    assert_eq!(offloads(), 0);
}

/// A packet that comes before there is a buffer, or enough of them, waits for them; so do those behind
/// it.
#[test]
fn packets_wait_for_buffers() {
    let (mut driver, wire) = started(MERGEABLE);
    for seed in 0..3 {
        wire.send(&NO_HEADER, &packet(seed, 3000));
    }
    for _ in 0..2 {
        driver.add(0, &[], &[1500]).unwrap();
        driver.ring(0);
    }
    // Two buffers hold less than packet and header.
    assert!(!driver.wires().wait(Duration::from_millis(50)));
    for _ in 0..7 {
        driver.add(0, &[], &[1500]).unwrap();
    }
    driver.ring(0);
    for seed in 0..3 {
        let (header, got) = receive(&mut driver);
        assert_eq!((header[10], got), (3, packet(seed, 3000)));
    }
}

/// Without merging, a packet that does not fit in its buffer is dropped, and the buffer serves the
/// next one.
#[test]
fn a_packet_that_does_not_fit_is_dropped() {
    let (mut driver, wire) = started(0);
    driver.add(0, &[], &[100]).unwrap();
    driver.ring(0);
    wire.send(&NO_HEADER, &packet(1, 89));
    wire.send(&NO_HEADER, &packet(2, 88));
    assert_eq!(receive(&mut driver).1, packet(2, 88));
}

/// Several queue pairs: packets come only in those that the driver uses, and go out by any.
#[test]
fn a_card_has_several_queue_pairs() {
    let (mut driver, wires) = machine(3);
    driver.start(CONTROL | SEVERAL).unwrap();
    assert_eq!(config(&driver).2, 3);
    let detached = || -> Vec<_> {
        wires.iter().map(|wire| wire.seen.is_detached.load(Ordering::Relaxed)).collect()
    };
    assert_eq!(detached(), [false, true, true]);
    assert_eq!(command(&mut driver, 6, &[4, 0, 3, 0]), 0);
    assert_eq!(detached(), [false, false, false]);
    for (pair, wire) in (0_u16..).zip(&wires) {
        driver.add(2 * pair, &[], &[BUFFER]).unwrap();
        driver.ring(2 * pair);
        wire.send(&NO_HEADER, &packet(pair.into(), 200));
        let returned = driver.wait(2 * pair).unwrap();
        assert_eq!(&returned.bytes[12..212], packet(pair.into(), 200));
        driver.add(2 * pair + 1, &[&NO_HEADER, b"an outgoing packet"], &[]).unwrap();
        driver.ring(2 * pair + 1);
        driver.wait(2 * pair + 1).unwrap();
        assert_eq!(wire.receive().1, b"an outgoing packet");
    }
    for none in [0, 4, 0xff] {
        assert_eq!(command(&mut driver, 6, &[4, 0, none, 0]), 1);
    }
    driver.write(0x14, &[0]);
    assert_eq!(detached(), [false, true, true]);
    // A driver of one pair finds its commands in queue 2.
    driver.start(CONTROL).unwrap();
    assert_eq!(command(&mut driver, 2, &[4, 0, 1, 0]), 1);
}

/// A guest is asked to pause in the middle of packets without end: it is, between two of them, and
/// none is lost.
#[test]
fn a_flood_does_not_hold_a_pause() {
    let (mut driver, wire) = started(0);
    for _ in 0..200 {
        driver.add(0, &[], &[BUFFER]).unwrap();
    }
    driver.ring(0);
    let flood = wire.flood(&packet(1, 60)).min(200);
    driver.function().pause();
    driver.memory().forget_written();
    let more = wire.flood(&packet(1, 60));
    assert!(!driver.wires().wait(Duration::ZERO) || flood > 0);
    let mut written = crate::page::FrameSet::new(RamLayout::new(RAM_BYTES).unwrap());
    driver.memory().take_written(&mut written);
    assert!(written.is_empty());
    driver.function().resume();
    for _ in 0..(flood + more).min(200) {
        assert_eq!(receive(&mut driver).1, packet(1, 60));
    }
}

/// More packets at once than the card works on at a time: it comes back for the rest by itself.
#[test]
fn the_rest_of_many_packets_is_not_forgotten() {
    let (mut driver, wire) = started(0);
    for _ in 0..256 {
        driver.add(0, &[], &[100]).unwrap();
    }
    driver.function().pause();
    let flood = wire.flood(&packet(2, 60)).min(256);
    // What the card is woken for when it goes on is not all.
    assert!(flood > 3 * AT_A_TIME, "{flood}");
    driver.function().resume();
    for _ in 0..flood {
        assert_eq!(receive(&mut driver).1, packet(2, 60));
    }
}

/// A card with a limit lets a burst through, and holds back the rest until time has filled its bucket;
/// nothing is lost, in either direction.
#[test]
fn a_limit_holds_packets_back() {
    let (port, wire) = port();
    let limit = RateLimit { bytes: 10_000, refill: Duration::from_millis(50) };
    let card = Net::over(vec![port], Some(mac()), Some(limit)).unwrap();
    let mut driver = Driver::new(Box::new(card), RAM_BYTES, BUFFER).unwrap();
    driver.start(0).unwrap();
    for _ in 0..30 {
        driver.add(0, &[], &[1100]).unwrap();
        driver.add(1, &[&NO_HEADER, &packet(1, 988)], &[]).unwrap();
    }
    let begin = Instant::now();
    driver.ring(1);
    driver.ring(0);
    for _ in 0..30 {
        assert_eq!(wire.receive().1, packet(1, 988));
        wire.send(&NO_HEADER, &packet(2, 988));
        assert_eq!(receive(&mut driver).1, packet(2, 988));
    }
    // 30,000 bytes, of which one bucket and one packet need not wait.
    assert!(begin.elapsed() >= Duration::from_millis(90), "{:?}", begin.elapsed());
}

/// In an SEV guest the network sees the host's view: a packet in a private page goes out as noise, and
/// one that comes into a private page is not what the guest reads.
#[test]
fn a_private_page_is_noise_to_the_network() {
    let layout = RamLayout::new(RAM_BYTES).unwrap();
    let (ram, guest) = GuestRam::split(layout, 47).unwrap();
    let ram = Arc::new(ram);
    let (port, wire) = port();
    let card = Net::over(vec![port], Some(mac()), None).unwrap();
    let mut driver = Driver::in_ram(Box::new(card), Arc::clone(&ram), BUFFER).unwrap();
    driver.start(0).unwrap();
    let secret = b"what only the guest may know, in a packet of sixty bytes ...";
    let address = |queue: u16, id: u16| {
        let frame = Gpa(driver.queue(queue).unwrap().buffer(id, BUFFER)).frame();
        let page = PageRange::new(frame, Frame(frame.0 + 1)).unwrap();
        ram.user_address(page).unwrap()
    };
    // The driver's first descriptors are 0 and 1; the packet is in the second.
    let (out, into) = (address(1, 1), address(0, 0));
    driver.add(1, &[&NO_HEADER, &[0; 60]], &[]).unwrap();
    guest.write(out, secret).unwrap();
    driver.ring(1);
    driver.wait(1).unwrap();
    let (_, noise) = wire.receive();
    assert_eq!(noise.len(), 60);
    assert_ne!(noise, secret);
    driver.add(0, &[], &[BUFFER]).unwrap();
    driver.ring(0);
    wire.send(&NO_HEADER, secret);
    driver.wait(0).unwrap();
    let mut seen = [0; 72];
    guest.read(into, &mut seen).unwrap();
    assert_ne!(&seen[12..], secret);
}
