//! A device driven by a driver in this process: bring-up, rings, interrupts, resets and moves.

mod echo;
mod hostile;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::driver::{DRIVER_LAYOUT, DRIVER_SLOT, Driver, DriverError};
use super::{Condition, FunctionState, Rng};
use crate::devices::pci::PciFunction;
use crate::memory::GuestRam;
use crate::page::{Frame, FrameSet, Gpa, PageRange, RamLayout};
use echo::Echo;

const RAM_BYTES: u64 = 16 << 20;
const CONFIG: u64 = DRIVER_LAYOUT.ecam.0 + ((DRIVER_SLOT as u64) << 15);
const NEEDS_RESET: u8 = 64;
/// What a driver may accept or not.
const INDIRECT: u64 = 1 << 28;
const EVENT_INDEX: u64 = 1 << 29;

fn driver() -> Driver {
    Driver::new(Box::new(Echo::default()), RAM_BYTES, 4096).unwrap()
}

fn started(features: u64) -> Driver {
    let mut driver = driver();
    driver.start(features).unwrap();
    driver
}

/// Sends `text` through the device and wants it back.
#[track_caller]
fn echo(driver: &mut Driver, text: &[u8]) {
    let head = driver.add(0, &[text], &[4096]).unwrap();
    driver.ring(0);
    let returned = driver.wait(0).unwrap();
    assert_eq!((returned.head, usize::try_from(returned.written).unwrap()), (head, text.len()));
    assert_eq!(&returned.bytes[..text.len()], text);
}

fn read(driver: &Driver, address: u64) -> u32 {
    let mut data = [0; 4];
    driver.bus().read(address, &mut data);
    u32::from_le_bytes(data)
}

/// What a guest's own software finds in configuration space: a modern device with MSI-X and the five
/// parts that virtio names, each in BAR 0.
#[test]
fn the_capabilities_name_every_part() {
    let driver = driver();
    assert_eq!(read(&driver, CONFIG), 0x1069_1af4);
    let mut at = u64::from(read(&driver, CONFIG + 0x34) & 0xff);
    let mut found = Vec::new();
    while at != 0 {
        let [id, next, length, part] = read(&driver, CONFIG + at).to_le_bytes();
        let (offset, bytes) = (read(&driver, CONFIG + at + 8), read(&driver, CONFIG + at + 12));
        found.push(if id == 9 { (part, length, offset, bytes) } else { (id, 0, 0, 0) });
        at = u64::from(next);
    }
    let parts = [
        (0x11, 0, 0, 0),
        (1, 16, 0, 0x38),
        (3, 16, 0x1000, 1),
        (4, 16, 0x2000, 0x1000),
        (2, 20, 0x3000, 8),
        (5, 20, 0, 0),
    ];
    assert_eq!(found, parts);
}

/// Requests go out and come back, whatever the driver has accepted, more of them than the ring has
/// entries.
#[test]
fn requests_come_back() {
    for features in [0, EVENT_INDEX, INDIRECT | EVENT_INDEX] {
        let mut driver = started(features);
        for round in 0_u32..300 {
            echo(&mut driver, &round.to_le_bytes());
        }
        for round in 0_u32..60 {
            driver.add(0, &[&round.to_le_bytes()], &[4]).unwrap();
        }
        driver.ring(0);
        for round in 0_u32..60 {
            assert_eq!(driver.wait(0).unwrap().bytes, round.to_le_bytes());
        }
        assert_eq!(driver.status(), 15);
    }
}

/// A driver that has not accepted what it must does not get `FEATURES_OK`, and one that skips it breaks
/// the device; each can start anew.
#[test]
fn negotiation_cannot_be_skipped() {
    let mut driver = driver();
    driver.enable();
    for accepted in [1_u64 << 32, 1 << 33, 3 << 32 | 1 << 40, 0] {
        for status in [0, 1, 3] {
            driver.write(0x14, &[status]);
        }
        for half in [0_u32, 1] {
            driver.write(0x08, &half.to_le_bytes());
            driver.write(0x0c, &(accepted >> (32 * half)).to_le_bytes()[..4]);
        }
        driver.write(0x14, &[11]);
        assert_eq!(driver.status(), 3, "{accepted:#x}");
        driver.write(0x14, &[15]);
        assert_eq!(driver.status(), 7 | NEEDS_RESET);
    }
    driver.start(EVENT_INDEX).unwrap();
    echo(&mut driver, b"again");
}

/// What a driver has set up is not its any more: sizes and addresses of a queue that is enabled stay,
/// and so do features that are settled.
#[test]
fn what_is_settled_stays() {
    let mut driver = started(EVENT_INDEX);
    driver.write(0x16, &[0, 0]);
    let before: Vec<_> = (0..14).map(|word| driver.read(4 * word, 4)).collect();
    for (register, data) in [
        (0x18, &[0xff, 0xff][..]),
        (0x1c, &[0, 0]),
        (0x20, &[0xff; 8]),
        (0x28, &[0xff; 4]),
        (0x34, &[0xff; 4]),
        (0x0c, &[0xff; 4]),
        (0x04, &[0xff; 4]),
        (0x12, &[9, 9]),
    ] {
        driver.write(register, data);
    }
    let after: Vec<_> = (0..14).map(|word| driver.read(4 * word, 4)).collect();
    assert_eq!(before, after);
    echo(&mut driver, b"as before");
}

/// A ring that is nowhere, of no size, or not aligned breaks the device before anything is read.
#[test]
fn a_ring_that_is_none_is_refused() {
    for (register, value) in [
        (0x18, 0_u64),
        (0x18, 3),
        (0x18, 0x8000),
        (0x20, RAM_BYTES),
        (0x20, u64::MAX - 0xf),
        (0x20, 0x10_0008),
        (0x28, 0),
        (0x28, 0x11_0001),
        (0x28, RAM_BYTES - 4),
        (0x30, RAM_BYTES - 4),
        (0x30, 0x12_0002),
    ] {
        let driver = started(0);
        for status in [0, 1, 3] {
            driver.write(0x14, &[status]);
        }
        driver.write(0x08, &[1, 0, 0, 0]);
        driver.write(0x0c, &[3, 0, 0, 0]);
        driver.write(0x14, &[11]);
        let queue = driver.queue(0).unwrap().clone();
        for (register, address) in
            [(0x20, queue.descriptors), (0x28, queue.available), (0x30, queue.used)]
        {
            driver.write(register, &address.to_le_bytes());
        }
        let bytes = if register == 0x18 { 2 } else { 8 };
        driver.write(register, &value.to_le_bytes()[..bytes]);
        driver.write(0x1c, &[1, 0]);
        assert_eq!(driver.status(), 11 | NEEDS_RESET, "{register:#x} {value:#x}");
    }
}

/// A driver may reset the device at any time and begin anew; what it had in the ring is not done.
#[test]
fn a_reset_begins_anew() {
    let mut driver = started(EVENT_INDEX);
    echo(&mut driver, b"one");
    driver.add(0, &[b"lost"], &[4]).unwrap();
    assert_eq!(driver.function().condition(), Condition::Used);
    driver.write(0x14, &[0]);
    assert_eq!(driver.function().condition(), Condition::Unused);
    assert_eq!((driver.status(), driver.read(0x1c, 2)), (0, 0));
    driver.ring(0);
    driver.start(0).unwrap();
    echo(&mut driver, b"two");
}

/// While the guest has taken the bus from it, as a kernel does before it starts another, the device
/// neither reads nor writes memory, nor interrupts; then it goes on.
#[test]
fn without_the_bus_nothing_moves() {
    let mut driver = started(0);
    driver.bus().write(CONFIG + 4, &[2, 0]);
    driver.add(0, &[b"wait"], &[4]).unwrap();
    driver.ring(0);
    assert!(!driver.wires().wait(Duration::from_millis(50)));
    assert_eq!(driver.poll(0).unwrap(), None);
    driver.bus().write(CONFIG + 4, &[6, 0]);
    assert_eq!(driver.wait(0).unwrap().bytes, b"wait");
}

/// The BAR and the doorbells in it move together; outside the window, or switched off, it answers
/// nowhere.
#[test]
fn a_moved_bar_takes_its_doorbells_along() {
    let mut driver = started(0);
    let first = driver.bar();
    assert_eq!(driver.wires().bells(), [first + 0x3000, first + 0x3004]);
    let moved = first + 0x8_0000;
    driver.bus().write(CONFIG + 0x10, &moved.to_le_bytes()[..4]);
    assert_eq!(driver.bar(), moved);
    assert_eq!(driver.wires().bells(), [moved + 0x3000, moved + 0x3004]);
    assert_eq!(read(&driver, first), u32::MAX);
    echo(&mut driver, b"moved");
    for (register, value) in [(0x14, 1_u32), (0x10, 0xe000_0000), (4, 4)] {
        let mut before = [0; 4];
        driver.bus().read(CONFIG + register, &mut before);
        driver.bus().write(CONFIG + register, &value.to_le_bytes());
        assert_eq!(driver.function().bar(), None);
        assert!(driver.wires().bells().is_empty());
        driver.bus().write(CONFIG + register, &before);
        assert_eq!(driver.function().bar(), Some(moved));
    }
    echo(&mut driver, b"and back");
}

/// The capability that reaches the BAR through configuration space does, for what is whole.
#[test]
fn the_bar_is_reached_through_configuration_space() {
    let driver = started(0);
    let window = u64::from(read(&driver, CONFIG + 0x34) & 0xff);
    let mut at = window;
    while read(&driver, CONFIG + at).to_le_bytes()[3] != 5 {
        at = u64::from(read(&driver, CONFIG + at).to_le_bytes()[1]);
    }
    let reach = |offset: u32, bytes: u32| {
        driver.bus().write(CONFIG + at + 8, &offset.to_le_bytes());
        driver.bus().write(CONFIG + at + 12, &bytes.to_le_bytes());
        read(&driver, CONFIG + at + 16)
    };
    assert_eq!(reach(0x14, 1) & 0xff, 15);
    assert_eq!(reach(0x12, 2) & 0xffff, 2);
    reach(0x16, 2);
    driver.bus().write(CONFIG + at + 16, &[1, 0, 0, 0]);
    assert_eq!(driver.read(0x16, 2), 1);
    for (offset, bytes) in [(0x15, 2), (0x14, 3), (0x14, 8), (0x8000, 1), (u32::MAX, 1), (0, 0)] {
        reach(offset, bytes);
    }
}

/// The guest's configuration changes and its own are each said by the right interrupt.
#[test]
fn a_change_of_configuration_interrupts() {
    let mut driver = started(0);
    let before = driver.read(0x15, 1);
    driver.write_config(0, b"word");
    let mut word = [0; 4];
    driver.read_config(0, &mut word);
    assert_eq!(&word, b"word");
    echo(&mut driver, b"change");
    driver.wires().clear();
    driver.add(1, &[b"x"], &[]).unwrap();
    driver.ring(1);
    driver.wait(1).unwrap();
    assert_eq!(driver.read(0x15, 1), before + 1);
    assert_eq!(read(&driver, driver.bar() + 0x1000) & 0xff, 3);
    assert_eq!(read(&driver, driver.bar() + 0x1000) & 0xff, 0);
}

/// What a device writes to guest RAM is in the record of written pages: its buffers and its used
/// ring, and nothing else.
#[test]
fn what_a_device_writes_is_recorded() {
    let mut driver = started(0);
    for queue in [1, 0] {
        // Both were looked at when the driver started.
        driver.add(queue, &[b"x"], &[]).unwrap();
        driver.ring(queue);
        driver.wait(queue).unwrap();
    }
    driver.wires().clear();
    driver.add(0, &[b"record"], &[4096]).unwrap();
    driver.memory().forget_written();
    driver.ring(0);
    driver.wires().wait(Duration::from_secs(10));
    let mut written = FrameSet::new(RamLayout::new(RAM_BYTES).unwrap());
    driver.memory().take_written(&mut written);
    let queue = driver.queue(0).unwrap();
    let pages = [queue.used, queue.buffer(1, 4096)].map(|address| Gpa(address).frame());
    assert_eq!(written.frames().collect::<Vec<_>>(), pages);
}

/// A device that is paused leaves memory alone; what was asked of it meanwhile is done when it goes
/// on.
#[test]
fn a_paused_device_leaves_memory_alone() {
    let mut driver = started(EVENT_INDEX);
    echo(&mut driver, b"before");
    driver.wires().clear();
    driver.function().pause();
    driver.memory().forget_written();
    driver.add(0, &[b"paused"], &[6]).unwrap();
    driver.ring(0);
    assert!(!driver.wires().wait(Duration::from_millis(50)));
    assert_eq!(driver.poll(0).unwrap(), None);
    driver.function().resume();
    assert_eq!(driver.wait(0).unwrap().bytes, b"paused");
}

/// What wakes a device does so once each time, and what happened while it could not work wakes it when
/// it can.
#[test]
fn what_wakes_a_device_is_not_lost() {
    let source = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut driver = Driver::new(Box::new(Echo::woken_by(&source)), RAM_BYTES, 4096).unwrap();
    let woken = |driver: &Driver, times: u8| {
        assert!(driver.wires().wait(Duration::from_secs(10)));
        driver.wires().clear();
        let mut count = [0];
        driver.read_config(0, &mut count);
        assert_eq!(count, [times]);
    };
    // Nobody to tell yet.
    source.write(1).unwrap();
    driver.start(0).unwrap();
    woken(&driver, 1);
    source.write(1).unwrap();
    woken(&driver, 2);
    driver.function().pause();
    source.write(1).unwrap();
    assert!(!driver.wires().wait(Duration::from_millis(50)));
    driver.function().resume();
    woken(&driver, 3);
}

/// In an SEV guest a device sees the host's view: where a descriptor names a private page it reads
/// something else than the guest's plaintext, and what it writes there is not what the guest reads.
#[test]
fn a_private_page_is_noise_to_a_device() {
    let layout = RamLayout::new(RAM_BYTES).unwrap();
    let (ram, guest) = GuestRam::split(layout, 47).unwrap();
    let ram = Arc::new(ram);
    let mut driver = Driver::in_ram(Box::new(Echo::default()), Arc::clone(&ram), 4096).unwrap();
    driver.start(0).unwrap();
    // The chain's first descriptor is number 0, its second number 1.
    let queue = driver.queue(0).unwrap().clone();
    let private = [0, 1].map(|id| Gpa(queue.buffer(id, 4096)).frame());
    let secret = b"what only the guest may know";
    let address = |frame: Frame| {
        ram.user_address(PageRange::new(frame, Frame(frame.0 + 1)).unwrap()).unwrap()
    };
    let head = driver.add(0, &[&[0; 28]], &[28]).unwrap();
    assert_eq!(head, 0);
    for frame in private {
        guest.write(address(frame), secret).unwrap();
    }
    driver.ring(0);
    let returned = driver.wait(0).unwrap();
    assert_eq!(returned.written, 28);
    assert_ne!(returned.bytes, secret);
    let mut seen = [0; 28];
    guest.read(address(private[1]), &mut seen).unwrap();
    assert_eq!(&seen, secret);
}

/// A device goes on elsewhere: its ring, its interrupts, its BAR, its configuration; a request that
/// was not answered before is answered there, once.
#[test]
fn a_device_goes_on_where_it_was_moved_to() {
    for features in [0, EVENT_INDEX] {
        let mut old = started(features);
        for round in 0_u32..70 {
            echo(&mut old, &round.to_le_bytes());
        }
        old.write_config(0, b"word");
        let moved = old.bar() + 0x10_0000;
        old.bus().write(CONFIG + 0x10, &moved.to_le_bytes()[..4]);
        old.function().pause();
        old.add(0, &[b"on its way"], &[16]).unwrap();
        let bytes = old.function().state().to_bytes().unwrap();
        let state = FunctionState::from_bytes(&bytes).unwrap();

        let new = driver();
        let mut ram = vec![0; usize::try_from(RAM_BYTES).unwrap()];
        old.memory().view().read_slice(&mut ram, GuestAddress(0)).unwrap();
        new.memory().view().write_slice(&ram, GuestAddress(0)).unwrap();
        new.function().restore(&state).unwrap();
        assert_eq!(new.function().state(), state);
        assert_eq!(new.bar(), moved);
        // The driver is guest memory too: it goes on with what it knew.
        let mut driver = old.moved_to(new);
        driver.function().resume();
        let returned = driver.wait(0).unwrap();
        assert_eq!(&returned.bytes[..10], b"on its way");
        assert_eq!(driver.poll(0).unwrap(), None);
        let mut word = [0; 4];
        driver.read_config(0, &mut word);
        assert_eq!(&word, b"word");
        echo(&mut driver, b"there");
    }
}

/// A state of another device, in another slot, or in another version is refused.
#[test]
fn a_state_of_something_else_is_refused() {
    let echo = started(0);
    let rng = Box::new(Rng::open(Path::new("/dev/urandom")).unwrap());
    let rng = Driver::new(rng, RAM_BYTES, 4096).unwrap();
    assert!(rng.function().restore(&echo.function().state()).is_err());
    assert!(echo.function().restore(&rng.function().state()).is_err());
    let state = rng.function().state();
    rng.function().restore(&state).unwrap();
    let bytes = echo.function().state().to_bytes().unwrap();
    let changed = |name: &str, from: &[u8], to: &[u8]| {
        let field = [&[0xa0 | u8::try_from(name.len()).unwrap()], name.as_bytes(), from].concat();
        let at = bytes.windows(field.len()).position(|window| window == field).unwrap();
        let mut changed = bytes.clone();
        let at = at + field.len() - from.len();
        changed.splice(at..at + from.len(), to.iter().copied());
        let state = FunctionState::from_bytes(&changed).unwrap();
        driver().function().restore(&state).unwrap_err().to_string()
    };
    let text = changed("version", &[1], &[2]);
    assert!(text.contains("version 2; this program reads version 1"), "{text}");
    let text = changed("slot", &[1], &[2]);
    assert!(text.contains("another device"), "{text}");
}

/// The entropy device fills buffers with what its source gives, as much as one request may have.
#[test]
fn random_bytes_come() {
    let zeros = Rng::open(Path::new("/dev/zero")).unwrap();
    let mut driver = Driver::new(Box::new(zeros), RAM_BYTES, 8192).unwrap();
    driver.start(EVENT_INDEX).unwrap();
    let queue = driver.queue(0).unwrap().clone();
    driver.memory().view().write_slice(&[7; 8192], GuestAddress(queue.buffer(0, 8192))).unwrap();
    driver.add(0, &[], &[8192]).unwrap();
    driver.ring(0);
    let returned = driver.wait(0).unwrap();
    assert_eq!(returned.written, 4096);
    assert!(returned.bytes[..4096].iter().all(|byte| *byte == 0));
    assert!(returned.bytes[4096..].iter().all(|byte| *byte == 7));

    let random = Rng::open(Path::new("/dev/urandom")).unwrap();
    let mut driver = Driver::new(Box::new(random), RAM_BYTES, 4096).unwrap();
    driver.start(0).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        driver.add(0, &[], &[32]).unwrap();
        driver.ring(0);
        let returned = driver.wait(0).unwrap();
        assert_eq!(returned.written, 32);
        assert!(!seen.contains(&returned.bytes));
        seen.push(returned.bytes);
    }
}

/// A source that would end, or is not there, is refused by name before there is a guest.
#[test]
fn a_source_must_not_end() {
    for (path, why) in [("/proc/self/status", "character device"), ("/dev/nothing", "opening")] {
        let refused = Rng::open(Path::new(path)).unwrap_err().to_string();
        assert!(refused.contains(why) && refused.contains(path), "{refused}");
    }
    let full = Rng::open(Path::new("/dev/null")).unwrap();
    let mut driver = Driver::new(Box::new(full), RAM_BYTES, 4096).unwrap();
    driver.start(0).unwrap();
    driver.add(0, &[], &[32]).unwrap();
    driver.ring(0);
    assert!(driver.wires().wait(Duration::from_secs(10)));
    assert!(matches!(driver.queue(3), Err(DriverError::NoQueue { index: 3 })));
}
