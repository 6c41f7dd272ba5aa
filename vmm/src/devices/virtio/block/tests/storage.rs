//! Storage that stalls or fails: nothing is lost, nothing is done twice, and the guest hears of it.

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::super::super::Unquiet;
use super::scripted::{Reply, Script};
use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(30)
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A device that is to be quiet waits for its storage, but not for ever; it begins nothing new, and once
/// all is done it is as if nothing had been asked. Each request is done once.
#[test]
fn a_stalled_storage_keeps_the_guest_where_it_is() {
    let image = Image::of(64);
    let (mut guest, script) = Script::guest(&image, u64::MAX);
    let ranges = range(8, 8, 0);
    let requests: [(&str, u32, &[u8], &[u32]); 4] = [
        ("read", IN, &[], &[512]),
        ("write", OUT, &[7; 512], &[]),
        ("flush", FLUSH, &[], &[]),
        ("discard", DISCARD, &ranges, &[]),
    ];
    for (name, kind, data, room) in requests {
        script.stall();
        let head = guest.begin(kind, 0, data, room);
        script.wait_for(1);
        assert_eq!(guest.driver.function().quiesce(soon()), Err(Unquiet::Busy(1)), "{name}");
        // It goes on with what it has; what comes meanwhile waits in the ring.
        let next = guest.begin(IN, 1, &[], &[512]);
        assert_eq!(guest.driver.function().quiesce(soon()), Err(Unquiet::Busy(1)), "{name}");
        assert_eq!(guest.driver.poll(0).unwrap(), None, "{name}");
        script.go_on();
        assert_eq!(guest.driver.function().quiesce(later()), Ok(()), "{name}");
        assert_eq!(guest.end().0, head, "{name}");
        assert_eq!(guest.driver.poll(0).unwrap(), None, "{name}: once");
        let log = script.log();
        assert_eq!(log.iter().filter(|task| **task == name).count(), 1, "{name}: {log:?}");
        guest.driver.function().resume();
        assert_eq!(guest.end().0, next, "{name}");
        script.log();
    }
}

/// What was written is on the storage, and not in this host's cache, before another host may read it. If
/// that fails, the guest stays until its driver's next flush has said so, once.
#[test]
fn what_was_written_is_durable_before_the_guest_moves() {
    let image = Image::of(64);
    let (mut guest, script) = Script::guest(&image, u64::MAX);
    guest.write(0, &[1; 512]);
    assert_eq!(guest.driver.function().quiesce(later()), Ok(()));
    assert_eq!(script.log(), ["write", "flush"]);
    assert_eq!(guest.driver.function().quiesce(later()), Ok(()));
    assert_eq!(script.log(), [""; 0], "nothing was written since");
    guest.driver.function().resume();
    guest.write(0, &[2; 512]);
    assert_eq!(guest.request(FLUSH, 0, &[], &[]).0, OK);
    assert_eq!(guest.driver.function().quiesce(later()), Ok(()));
    assert_eq!(script.log(), ["write", "flush"], "the driver has flushed it");
    guest.driver.function().resume();
    guest.write(0, &[3; 512]);
    script.reply(&[Reply::Fail(libc::EIO)]);
    let unflushed = Err(Unquiet::Unflushed);
    assert_eq!(guest.driver.function().quiesce(later()), unflushed);
    assert_eq!(guest.driver.function().quiesce(later()), unflushed, "until the guest knows");
    let state = state_of(&guest);
    let (other, _script) = Script::guest(&Image::of(64), u64::MAX);
    other.driver.function().restore(&state).unwrap();
    assert_eq!(state_of(&other), state);
    guest.driver.function().resume();
    assert_eq!(guest.request(FLUSH, 0, &[], &[]).0, IOERR);
    assert_eq!(guest.request(FLUSH, 0, &[], &[]).0, OK);
    assert_eq!(guest.driver.function().quiesce(later()), Ok(()));
}

/// Whatever becomes of a write, and of the device, it may have changed the disk: that is flushed too.
#[test]
fn what_has_failed_is_flushed_too() {
    let image = Image::of(64);
    let (mut guest, script) = Script::guest(&image, u64::MAX);
    script.reply(&[Reply::Fail(libc::EIO)]);
    assert_eq!(guest.request(OUT, 0, &[1; 512], &[]).0, IOERR);
    assert_eq!(guest.driver.function().quiesce(later()), Ok(()));
    assert_eq!(script.log(), ["write", "flush"]);
    guest.driver.function().resume();
    script.stall();
    guest.begin(OUT, 0, &[2; 512], &[]);
    script.wait_for(1);
    guest.driver.write(0x14, &[0]);
    script.go_on();
    assert_eq!(guest.driver.function().quiesce(later()), Ok(()));
    assert_eq!(script.log(), ["write", "flush"], "after a reset");
}

/// A driver that gives up a device whose storage stalls gets a clean one: what was read late is not
/// written to its memory, and nothing of its own begins before that has ended.
#[test]
fn what_is_late_after_a_reset_harms_nobody() {
    let image = Image::of(64);
    let (mut guest, script) = Script::guest(&image, u64::MAX);
    guest.write(0, &[5; 512]);
    script.stall();
    guest.begin(IN, 0, &[], &[512]);
    guest.begin(OUT, 1, &[6; 512], &[]);
    script.wait_for(2);
    script.log();
    guest.driver.start(u64::MAX).unwrap();
    let queue = guest.driver.queue(0).unwrap().clone();
    let mut memory = vec![0; 8 << 16];
    let buffers = GuestAddress(queue.buffer(0, 64 << 10));
    let view = guest.driver.memory().view().clone();
    view.write_slice(&memory, buffers).unwrap();
    let head = guest.begin(OUT, 1, &[8; 512], &[]);
    assert_eq!(guest.driver.function().quiesce(soon()), Err(Unquiet::Busy(2)));
    guest.driver.function().resume();
    assert_eq!(script.log(), [""; 0]);
    script.go_on();
    assert_eq!(guest.end(), (head, OK, Vec::new()));
    assert_eq!(image.bytes()[512..1024], [8; 512], "the later one is the last");
    view.read_slice(&mut memory, buffers).unwrap();
    assert!(!memory.contains(&5));
    assert_eq!(guest.driver.poll(0).unwrap(), None);
    assert_eq!(guest.driver.function().quiesce(later()), Ok(()));
}

/// A device that goes while its storage stalls leaves the disk locked: what is written late must not meet
/// the next guest. One that is done leaves it free.
#[test]
fn what_is_on_its_way_keeps_the_lock() {
    let image = Image::of(64);
    let next = || Block::new(Disk::open(image.options()).unwrap()).unwrap().hold();
    let (mut guest, _script) = Script::guest(&image, u64::MAX);
    guest.write(0, &[5; 512]);
    drop(guest);
    next().unwrap();
    let (mut guest, script) = Script::guest(&image, u64::MAX);
    script.stall();
    guest.begin(OUT, 0, &[6; 512], &[]);
    script.wait_for(1);
    drop(guest);
    assert!(next().unwrap_err().to_string().contains("is in use"));
}

/// Errors of the storage are the guest's to know; the disk works on.
#[test]
fn errors_reach_the_guest() {
    let image = Image::of(64);
    let (mut guest, script) = Script::guest(&image, u64::MAX);
    let ranges = range(0, 8, 0);
    let requests: [(u32, &[u8], &[u32]); 5] = [
        (OUT, &[7; 512], &[]),
        (IN, &[], &[512]),
        (FLUSH, &[], &[]),
        (DISCARD, &ranges, &[]),
        (WRITE_ZEROES, &ranges, &[]),
    ];
    for (kind, data, room) in requests {
        for errno in [libc::ENOSPC, libc::EIO] {
            script.reply(&[Reply::Fail(errno)]);
            assert_eq!(guest.request(kind, 0, data, room).0, IOERR, "{kind}");
        }
        assert_eq!(guest.request(kind, 0, data, room).0, OK, "{kind}");
    }
    // One that ends in the middle: what came before it is not said to be all.
    script.reply(&[Reply::Part(100), Reply::Part(0)]);
    assert_eq!(guest.request(IN, 0, &[], &[512]).0, IOERR);
    assert!(!guest.is_broken());
}

/// Reads and writes that do only a part go on with the rest.
#[test]
fn what_is_done_in_part_goes_on() {
    let image = Image::of(64);
    let (mut guest, script) = Script::guest(&image, u64::MAX);
    let data = pattern(4, 4096);
    script.reply(&[Reply::Part(1), Reply::Part(1000), Reply::Part(3)]);
    guest.write(2, &data);
    assert_eq!(image.bytes()[1024..5120], data);
    script.reply(&[Reply::Part(4095)]);
    assert_eq!(guest.read(2, 4096), data);
    assert_eq!(script.log().len(), 4 + 2);
}

/// Storage that can neither discard nor make zeros: to discard is a hint, and zeros are written.
#[test]
fn zeros_are_written_where_storage_makes_none() {
    let image = Image::of(4096);
    let (mut guest, script) = Script::guest(&image, u64::MAX);
    let data = pattern(4, 2 << 20);
    guest.write(0, &data[..1 << 20]);
    guest.write(2048, &data[1 << 20..]);
    script.log();
    script.reply(&[Reply::Fail(libc::EOPNOTSUPP)]);
    assert_eq!(guest.request(DISCARD, 0, &range(0, 8, 0), &[]).0, OK);
    assert_eq!(image.bytes(), data);
    script.reply(&[Reply::Fail(libc::EOPNOTSUPP)]);
    let ranges = [range(8, 4000, 0), range(4095, 1, 1)].concat();
    assert_eq!(guest.request(WRITE_ZEROES, 0, &ranges, &[]).0, OK);
    assert_eq!(script.log(), ["discard", "zero", "write", "write", "write"]);
    let mut wanted = data;
    wanted[8 * 512..4008 * 512].fill(0);
    wanted[4095 * 512..].fill(0);
    assert_eq!(image.bytes(), wanted);
}

/// A driver that does not flush, or has said that it wants no cache, hears of a change when it is durable.
#[test]
fn without_flushes_every_write_is_durable() {
    let image = Image::of(64);
    for (features, chooses, wanted) in [
        (0, None, &["write", "flush"][..]),
        (FLUSH_FEATURE, None, &["write"]),
        (FLUSH_FEATURE | CONFIG_WCE, None, &["write"]),
        (FLUSH_FEATURE | CONFIG_WCE, Some(0), &["write", "flush"]),
        (FLUSH_FEATURE | CONFIG_WCE, Some(1), &["write"]),
    ] {
        let (mut guest, script) = Script::guest(&image, features);
        if let Some(writeback) = chooses {
            guest.driver.write_config(32, &[writeback]);
            assert_eq!(guest.config(32, 1), u64::from(writeback));
        }
        guest.write(0, &[7; 512]);
        assert_eq!(script.log(), wanted, "{features:#x} {chooses:?}");
        guest.read(0, 512);
        assert_eq!(script.log(), ["read"]);
        if wanted.len() == 2 {
            script.reply(&[Reply::Part(512), Reply::Fail(libc::EIO)]);
            assert_eq!(guest.request(OUT, 0, &[7; 512], &[]).0, IOERR);
        }
    }
}
