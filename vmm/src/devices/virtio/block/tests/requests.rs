//! Requests on real files: what is written is read, what is not on the disk is refused.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use super::*;
use crate::memory::GuestRam;
use crate::page::{Frame, Gpa, PageRange, RamLayout};

/// What is written is read again, by either engine, and is in the file.
#[test]
fn what_is_written_is_read_again() {
    let image = Image::of(64);
    for (seed, mut guest) in (1..).zip(image.by_each_engine()) {
        guest.driver.function().hold().unwrap();
        let data = pattern(seed, 3 * 512);
        guest.write(5, &data);
        assert_eq!(guest.request(FLUSH, 0, &[], &[]).0, OK);
        assert_eq!(guest.read(5, 3 * 512), data);
        assert_eq!(guest.read(8, 512), [0; 512]);
        assert_eq!(image.bytes()[5 * 512..8 * 512], data);
        guest.write(63, &data[..512]);
        assert_eq!(guest.read(63, 512), data[..512]);
        assert_eq!(guest.request(OUT, 63, &[0; 512], &[]).0, OK);
    }
}

/// Past the page cache, where the file system of the test's files lets one.
#[test]
fn a_disk_can_be_used_past_the_page_cache() {
    let image = Image::of(64);
    let disk = match Disk::open(DiskOptions { direct: true, ..image.options() }) {
        Ok(disk) => disk,
        Err(cause) => {
            assert!(cause.to_string().contains("leave out direct=on"), "{cause}");
            return;
        }
    };
    let block = usize::try_from(disk.block()).unwrap();
    let mut guest = Guest::of(Block::new(disk).unwrap(), u64::MAX);
    let data = pattern(9, 2 * block);
    guest.write(8, &data);
    assert_eq!(guest.read(8, u32::try_from(2 * block).unwrap()), data);
    assert_eq!(image.bytes()[4096..4096 + 2 * block], data);
}

/// Header, data and status may be cut anywhere, and share buffers.
#[test]
fn requests_may_be_cut_anywhere() {
    let image = Image::of(16);
    let mut guest = Guest::on(&image);
    let data = pattern(3, 1024);
    let whole = [&header(OUT, 2)[..], &data].concat();
    let cuts: [&[usize]; 3] = [&[], &[1, 15, 17, 1000], &[8, 16, 528]];
    for cuts in cuts {
        let mut parts = Vec::new();
        let mut rest = &whole[..];
        for pair in [&[0], cuts].concat().windows(2) {
            let (part, left) = rest.split_at(pair[1] - pair[0]);
            parts.push(part);
            rest = left;
        }
        parts.push(rest);
        guest.driver.add(0, &parts, &[1]).unwrap();
        guest.driver.ring(0);
        assert_eq!(guest.driver.wait(0).unwrap().bytes, [OK], "{cuts:?}");
        assert_eq!(image.bytes()[1024..2048], data);
    }
    for room in [&[1025][..], &[1, 1023, 1], &[1000, 25], &[1024, 0, 1]] {
        guest.driver.add(0, &[&header(IN, 2)], room).unwrap();
        guest.driver.ring(0);
        let returned = guest.driver.wait(0).unwrap();
        assert_eq!((returned.written, &returned.bytes[..1024]), (1025, &data[..]), "{room:?}");
        assert_eq!(returned.bytes[1024], OK);
    }
}

/// What is not wholly on the disk, or in no whole sectors, is refused; nothing is changed.
#[test]
fn what_is_not_on_the_disk_is_refused() {
    let image = Image::of(16);
    let mut guest = Guest::on(&image);
    for sector in [16, 15, 1 << 55, u64::MAX, u64::MAX - 1] {
        assert_eq!(guest.request(OUT, sector, &[7; 1024], &[]).0, IOERR, "{sector}");
        assert_eq!(guest.request(IN, sector, &[], &[1024]).0, IOERR, "{sector}");
    }
    for bytes in [1, 511, 513, 1000] {
        assert_eq!(guest.request(OUT, 0, &vec![7; bytes], &[]).0, IOERR, "{bytes}");
    }
    assert_eq!(guest.request(IN, 0, &[], &[100]).0, IOERR);
    for kind in [2, 3, 5, 14, u32::MAX] {
        assert_eq!(guest.request(kind, 0, &[], &[512]).0, UNSUPP, "{kind}");
    }
    assert_eq!(guest.request(IN, 16, &[], &[]).0, OK, "nothing, at the end");
    assert!(image.bytes().iter().all(|byte| *byte == 0));
    assert!(!guest.is_broken());
}

/// A chain that is no request at all breaks the device until it is reset.
#[test]
fn what_is_no_request_breaks_the_device() {
    let image = Image::of(16);
    let mut guest = Guest::on(&image);
    let rows: [(&[&[u8]], &[u32]); 3] =
        [(&[&[0; 15]], &[513]), (&[], &[513]), (&[&header(FLUSH, 0)], &[])];
    for (readable, writable) in rows {
        guest.driver.wires().clear();
        guest.driver.add(0, readable, writable).unwrap();
        guest.driver.ring(0);
        guest.driver.wires().wait(std::time::Duration::from_secs(10));
        assert!(guest.is_broken(), "{writable:?}");
        guest.driver.start(u64::MAX).unwrap();
        assert_eq!(guest.read(0, 512), [0; 512]);
    }
}

/// A disk that is only to be read is: it says so, and refuses whatever would change it.
#[test]
fn a_disk_can_be_for_reading_only() {
    let image = Image::of(16);
    let file = OpenOptions::new().write(true).open(&image.0).unwrap();
    file.write_all_at(&[5; 512], 512).unwrap();
    let mut guest = Guest::with(DiskOptions { readonly: true, ..image.options() });
    guest.driver.write(0x00, &0_u32.to_le_bytes());
    assert_eq!(guest.driver.read(0x04, 4) & 1 << 5, 1 << 5);
    assert_eq!(guest.read(1, 512), [5; 512]);
    assert_eq!(guest.request(OUT, 1, &[7; 512], &[]).0, IOERR);
    assert_eq!(guest.request(DISCARD, 0, &range(1, 1, 0), &[]).0, IOERR);
    assert_eq!(guest.request(WRITE_ZEROES, 0, &range(1, 1, 0), &[]).0, IOERR);
    assert_eq!(image.bytes()[512..1024], [5; 512]);
}

/// What the driver reads of the disk, and its serial number, into as much room as it gives.
#[test]
fn a_disk_says_what_it_is() {
    let image = Image::of(4096);
    let mut guest = Guest::with(DiskOptions { queues: 3, ..image.options() });
    let fields = [(0, 8, 4096), (12, 4, 254), (20, 4, 512), (24, 1, 3), (32, 1, 1), (34, 2, 3)];
    for (offset, bytes, value) in fields {
        assert_eq!(guest.config(offset, bytes), value, "at {offset}");
    }
    for (offset, value) in [(36, 1 << 21), (40, 16), (44, 8), (48, 1 << 18), (52, 16), (56, 1)] {
        assert_eq!(guest.config(offset, 4), value, "at {offset}");
    }
    assert_eq!(guest.config(4000, 8), 0);
    let (status, serial) = guest.request(GET_ID, 0, &[], &[20]);
    assert_eq!((status, &serial[..]), (OK, &b"SERIAL-1\0\0\0\0\0\0\0\0\0\0\0\0"[..]));
    let head = guest.begin(GET_ID, 0, &[], &[4]);
    assert_eq!(guest.end(), (head, OK, b"SERI".to_vec()));
}

/// What is discarded or made zero reads as zeros; only what was named is, and its space is given back if
/// that was allowed.
#[test]
fn ranges_become_zeros() {
    let image = Image::of(4096);
    let used = || image.0.metadata().unwrap().blocks();
    for kind in [DISCARD, WRITE_ZEROES] {
        for mut guest in image.by_each_engine() {
            guest.driver.function().hold().unwrap();
            let data = pattern(1, 1 << 20);
            guest.write(0, &data);
            guest.request(FLUSH, 0, &[], &[]);
            let before = used();
            let ranges = [range(8, 8, 0), range(128, 1024, 0)].concat();
            assert_eq!(guest.request(kind, 0, &ranges, &[]).0, OK);
            let mut wanted = data;
            wanted[8 * 512..16 * 512].fill(0);
            wanted[128 * 512..1152 * 512].fill(0);
            assert_eq!(image.bytes()[..1 << 20], wanted, "{kind}");
            assert_eq!(guest.read(4, 8192), wanted[4 * 512..20 * 512]);
            if kind == DISCARD {
                assert!(used() + 1000 < before, "{} of {before}", used());
            }
            guest.request(FLUSH, 0, &[], &[]);
        }
    }
    let mut guest = Guest::on(&image);
    assert_eq!(guest.request(WRITE_ZEROES, 0, &range(0, 2048, 1), &[]).0, OK);
    assert!(image.bytes().iter().all(|byte| *byte == 0));
    assert!(used() < 100);
}

/// Ranges that are not on the disk, too long, too many, or with flags that nobody knows: none of the
/// request's is touched.
#[test]
fn ranges_are_checked_before_one_is_touched() {
    let image = Image::of(4096);
    let mut guest = Guest::on(&image);
    let data = pattern(1, 4096);
    guest.write(0, &data);
    let good = range(0, 8, 0);
    let rows: [(u32, &[u8], u8); 9] = [
        (DISCARD, &range(4095, 2, 0), IOERR),
        (DISCARD, &range(u64::MAX, 1, 0), IOERR),
        (DISCARD, &range(0, u32::MAX, 0), IOERR),
        (WRITE_ZEROES, &range(0, (1 << 18) + 1, 0), IOERR),
        (DISCARD, &range(8, 8, 1), UNSUPP),
        (WRITE_ZEROES, &range(8, 8, 2), UNSUPP),
        (WRITE_ZEROES, &[0; 15], IOERR),
        (DISCARD, &[], IOERR),
        (DISCARD, &good.repeat(16), IOERR),
    ];
    for (kind, bad, status) in rows {
        let ranges = if bad.is_empty() { Vec::new() } else { [&good[..], bad].concat() };
        assert_eq!(guest.request(kind, 0, &ranges, &[]).0, status, "{kind} {bad:?}");
        assert_eq!(image.bytes()[..4096], data);
    }
    assert_eq!(guest.request(DISCARD, 0, &good.repeat(16), &[]).0, OK);
}

/// Requests longer than a piece, and more of them than there is memory for, all come back right.
#[test]
fn more_than_fits_in_memory_comes_back() {
    let image = Image::of(64 << 11);
    let mut guest = Guest::on(&image);
    let data = pattern(8, 3 << 20);
    guest.write(100, &data);
    assert_eq!(guest.read(100, 3 << 20), data);
    // Twelve requests of 1 MiB at a time: three times what the arena has.
    let heads: Vec<_> = (0..12).map(|at| guest.begin(IN, 100 + at, &[], &[64 << 10; 16])).collect();
    let mut left = heads.clone();
    for _ in &heads {
        let (head, status, bytes) = guest.end();
        let at = heads.iter().position(|one| *one == head).unwrap();
        left.retain(|one| *one != head);
        assert_eq!(status, OK);
        assert_eq!(bytes, data[at * 512..][..1 << 20]);
    }
    assert!(left.is_empty(), "{left:?}");
}

/// Each of several queues is served.
#[test]
fn every_queue_is_served() {
    let image = Image::of(64);
    let mut guest = Guest::with(DiskOptions { queues: 4, ..image.options() });
    for queue in 0..4_u16 {
        let data = [u8::try_from(queue).unwrap() + 1; 512];
        guest.driver.add(queue, &[&header(OUT, u64::from(queue)), &data], &[1]).unwrap();
        guest.driver.ring(queue);
        assert_eq!(guest.driver.wait(queue).unwrap().bytes, [OK]);
    }
    let bytes = image.bytes();
    assert_eq!([0, 512, 1024, 1536, 2048].map(|at: usize| bytes[at]), [1, 2, 3, 4, 0]);
}

/// In an SEV guest a disk that is told to write a private page writes noise, and one that is read into
/// stays as the guest has it.
#[test]
fn private_pages_are_noise_to_a_disk() {
    let image = Image::of(64);
    let layout = RamLayout::new(4 << 20).unwrap();
    let (ram, guest_view) = GuestRam::split(layout, 47).unwrap();
    let ram = Arc::new(ram);
    let block = Block::new(Disk::open(image.options()).unwrap()).unwrap();
    let mut driver = Driver::in_ram(Box::new(block), Arc::clone(&ram), 4096).unwrap();
    driver.start(0).unwrap();
    driver.function().hold().unwrap();
    let queue = driver.queue(0).unwrap().clone();
    let address = |id: u16| {
        let frame: Frame = Gpa(queue.buffer(id, 4096)).frame();
        ram.user_address(PageRange::new(frame, Frame(frame.0 + 1)).unwrap()).unwrap()
    };
    let secret = [0x5a; 512];
    // Descriptors: header 0, data 1, status 2.
    guest_view.write(address(1), &secret).unwrap();
    driver.add(0, &[&header(OUT, 0), &[0; 512]], &[1]).unwrap();
    driver.ring(0);
    assert_eq!(driver.wait(0).unwrap().bytes, [OK]);
    assert_ne!(image.bytes()[..512], secret);
    let mut seen = [0; 512];
    guest_view.read(address(1), &mut seen).unwrap();
    assert_eq!(seen, secret);
}
