//! What is opened, locked, and grows.

use std::fs::OpenOptions;

use super::*;

fn refused(options: DiskOptions) -> String {
    Disk::open(options).unwrap_err().to_string()
}

/// Only a file or a block device with something in it is a disk; the path and the reason are named.
#[test]
fn what_is_no_disk_is_refused() {
    let image = Image::of(0);
    let at = |path: &str| DiskOptions { path: PathBuf::from(path), ..image.options() };
    assert!(refused(image.options()).contains("is empty"));
    let none = refused(at("/nowhere/disk.raw"));
    assert!(none.contains("opening /nowhere/disk.raw"), "{none}");
    assert!(refused(at("/dev/null")).contains("neither a file nor a block device"));
    let folder = refused(DiskOptions { readonly: true, ..at("/tmp") });
    assert!(folder.contains("neither a file nor a block device"), "{folder}");
}

/// What does not fill a sector is not part of the disk.
#[test]
fn a_disk_has_whole_sectors() {
    let image = Image::of(10);
    OpenOptions::new().write(true).open(&image.0).unwrap().set_len(10 * 512 + 511).unwrap();
    assert_eq!(Guest::on(&image).config(0, 8), 10);
}

/// One writer, or readers; whoever comes second is refused, until the first lets go or is gone.
#[test]
fn a_second_writer_is_refused() {
    let image = Image::of(16);
    let block = |readonly| {
        Block::new(Disk::open(DiskOptions { readonly, ..image.options() }).unwrap()).unwrap()
    };
    let mut first = block(false);
    first.hold().unwrap();
    first.hold().unwrap();
    for readonly in [true, false] {
        let why = block(readonly).hold().unwrap_err().to_string();
        assert!(why.contains("is in use"), "{why}");
    }
    first.let_go();
    let (mut second, mut third) = (block(true), block(true));
    second.hold().unwrap();
    third.hold().unwrap();
    assert!(first.hold().is_err());
    drop((second, third));
    first.hold().unwrap();
    drop(first);
    block(false).hold().unwrap();
}

/// Without its lock a disk does nothing: requests wait until it has it.
#[test]
fn nothing_happens_without_the_lock() {
    let image = Image::of(16);
    let block = Block::new(Disk::open(image.options()).unwrap()).unwrap();
    let mut guest = Guest::without_lock(block, u64::MAX);
    guest.begin(OUT, 0, &[7; 512], &[]);
    // A register is read behind the device's lock, after what the bell has led to or before it.
    assert_eq!(guest.driver.function().quiesce(std::time::Instant::now()), Ok(()));
    assert_eq!(image.bytes()[..512], [0; 512]);
    assert_eq!(guest.driver.poll(0).unwrap(), None);
    guest.driver.function().hold().unwrap();
    guest.driver.function().resume();
    assert_eq!(guest.end().1, OK);
    assert_eq!(image.bytes()[..512], [7; 512]);
}

/// A disk that has grown, or is made larger, says so, and its new end can be used.
#[test]
fn a_disk_can_grow() {
    let image = Image::of(16);
    let mut guest = Guest::on(&image);
    let generation = |guest: &Guest| guest.driver.read(0x15, 1);
    let before = generation(&guest);
    guest.driver.function().resize(None).unwrap();
    assert_eq!(generation(&guest), before, "nothing has changed");
    assert_eq!(guest.request(OUT, 16, &[7; 512], &[]).0, IOERR);
    OpenOptions::new().write(true).open(&image.0).unwrap().set_len(32 * 512).unwrap();
    guest.driver.wires().clear();
    guest.driver.function().resize(None).unwrap();
    assert!(guest.driver.wires().wait(std::time::Duration::from_secs(10)), "an interrupt");
    assert_ne!(generation(&guest), before);
    assert_eq!(guest.config(0, 8), 32);
    guest.write(31, &[7; 512]);
    assert_eq!(image.bytes()[31 * 512..], [7; 512]);
    guest.driver.function().resize(Some(64 * 512)).unwrap();
    assert_eq!((guest.config(0, 8), image.bytes().len()), (64, 64 * 512));
}

/// A disk does not shrink, nor end in the middle of a block; what is only read is not made larger here.
#[test]
fn a_disk_does_not_shrink() {
    let image = Image::of(16);
    let refused = |options: DiskOptions, bytes| {
        let guest = Guest::with(options);
        let why = guest.driver.function().resize(Some(bytes)).unwrap_err().to_string();
        assert_eq!(guest.config(0, 8), 16);
        why
    };
    for bytes in [0, 15 * 512, 16 * 512 + 1] {
        assert!(refused(image.options(), bytes).contains("can only grow"));
    }
    let readonly = DiskOptions { readonly: true, ..image.options() };
    assert!(refused(readonly, 32 * 512).contains("may write"));
    let guest = Guest::on(&image);
    OpenOptions::new().write(true).open(&image.0).unwrap().set_len(8 * 512).unwrap();
    let why = guest.driver.function().resize(None).unwrap_err().to_string();
    assert!(why.contains("it has 8 sectors now, and had 16"), "{why}");
}

/// A disk goes on elsewhere: what the driver has chosen goes along. One of another size is refused.
#[test]
fn a_disk_goes_on_where_it_was_moved_to() {
    let image = Image::of(64);
    let mut old = Guest::on(&image);
    old.driver.write_config(32, &[0]);
    old.write(3, &[3; 512]);
    assert_eq!(old.driver.function().quiesce(std::time::Instant::now()), Ok(()));
    let state = state_of(&old);
    let open = |image: &Image| Block::new(Disk::open(image.options()).unwrap()).unwrap();
    let new = Driver::new(Box::new(open(&image)), 24 << 20, 64 << 10).unwrap();
    new.function().restore(&state).unwrap();
    assert!(new.function().hold().is_err(), "the source has it still");
    old.driver.function().let_go();
    new.function().hold().unwrap();
    assert!(old.driver.function().hold().is_err());
    let mut byte = [9];
    new.read_config(32, &mut byte);
    assert_eq!(byte, [0]);
    let other = Driver::new(Box::new(open(&Image::of(65))), 24 << 20, 64 << 10).unwrap();
    let why = other.function().restore(&state).unwrap_err().to_string();
    assert!(why.contains("64 sectors, and here it has 65"), "{why}");
}
