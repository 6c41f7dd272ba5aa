//! What lies in RAM after a load, whatever the files, and what is said when it cannot be done.

mod bz_image;
mod elf;

use std::env::temp_dir;
use std::error::Error;
use std::fs::{File, remove_file, write};
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::spawn;
use std::time::Duration;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::gdt::Mode;
use super::layout::{ACPI, COMMAND_LINE, GDT, IDENTITY_MAPPED, RESET_VECTOR};
use super::*;
use crate::page::{Frame, PAGE_SIZE, PageRange, RamLayout};

const MIB: u64 = 1 << 20;

/// A file that lives as long as its test.
struct TestFile(PathBuf);

impl TestFile {
    fn new(bytes: &[u8]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = temp_dir().join(format!("sevferry-boot-{}-{count}", id()));
        write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        // Nothing depends on it.
        drop(remove_file(&self.0));
    }
}

/// Guest RAM with something in it already.
fn memory(ram: RamLayout) -> GuestMemoryMmap<()> {
    let ranges: Vec<_> = ram
        .ranges()
        .map(|range| (GuestAddress(range.start().0), usize::try_from(range.bytes()).unwrap()))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn bytes_at(memory: &GuestMemoryMmap<()>, gpa: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

fn config<'a>(kernel: &'a TestFile, ram_bytes: u64) -> BootConfig<'a> {
    BootConfig {
        kernel: &kernel.0,
        initramfs: None,
        cmdline: "console=ttyS0",
        vcpus: 2,
        ram: RamLayout::new(ram_bytes).unwrap(),
        c_bit: Some(47),
    }
}

/// Loads into fresh RAM.
fn load_fresh(config: &BootConfig<'_>) -> (GuestMemoryMmap<()>, Result<Loaded, BootError>) {
    let memory = memory(config.ram);
    let loaded = load(&memory, config);
    (memory, loaded)
}

/// What the user is told.
fn refusal(config: &BootConfig<'_>) -> String {
    let error = load_fresh(config).1.unwrap_err();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn measured(memory: &GuestMemoryMmap<()>, pieces: &[Piece]) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces {
        all.extend(bytes_at(memory, piece.range.start().0, piece.range.bytes()));
    }
    all
}

/// Names of the pieces, in measuring order.
fn names(loaded: &Loaded) -> Vec<&'static str> {
    loaded.pieces.iter().map(|piece| piece.name).collect()
}

/// What the measuring order rests on.
fn assert_sound(loaded: &Loaded, ram: &RamLayout) {
    for pair in loaded.pieces.windows(2) {
        assert!(pair[0].range.limit() <= pair[1].range.base(), "{pair:?}");
    }
    for piece in &loaded.pieces {
        assert_eq!(piece.range.intersection(ram.low()), Some(piece.range), "{piece:?}");
        assert!(end(piece.range) <= IDENTITY_MAPPED);
    }
}

/// Everything but the kernel itself has its fixed place, in the table's order.
#[test]
fn what_both_protocols_need_is_where_the_layout_says() {
    let kernel = TestFile::new(&bz_image::image(0x3000));
    let config = config(&kernel, 128 * MIB);
    let (memory, loaded) = load_fresh(&config);
    assert_sound(&loaded.unwrap(), &config.ram);
    assert_eq!(bytes_at(&memory, COMMAND_LINE.0, 14), b"console=ttyS0\0");
    assert_eq!(bytes_at(&memory, ACPI.0, 8), b"RSD PTR ");
    assert_eq!(bytes_at(&memory, RESET_VECTOR.0, 3), [0xba, 0x00, 0x06]);
    assert_eq!(bytes_at(&memory, GDT.0, 48), gdt::table(Mode::Long));
    assert_eq!(bytes_at(&memory, 0, GDT.0), vec![0; 0x500]);
}

/// The pieces, and with them the launch digest, do not depend on what was in RAM before; nothing
/// else is written.
#[test]
fn pieces_are_all_that_is_written() {
    let kernel = TestFile::new(&bz_image::image(0x3210));
    let initramfs = TestFile::new(&[7; 5000]);
    let mut config = config(&kernel, 64 * MIB);
    config.initramfs = Some(&initramfs.0);
    let (fresh, loaded) = load_fresh(&config);
    let loaded = loaded.unwrap();

    let used = memory(config.ram);
    for frame in config.ram.low().frames() {
        used.write_slice(&[0xa5; 4096], GuestAddress(frame.0 * PAGE_SIZE)).unwrap();
    }
    assert_eq!(load(&used, &config).unwrap(), loaded);
    assert_eq!(measured(&fresh, &loaded.pieces), measured(&used, &loaded.pieces));
    for frame in config.ram.low().frames() {
        let in_piece = loaded.pieces.iter().any(|piece| piece.range.contains(frame));
        let page = bytes_at(&used, frame.0 * PAGE_SIZE, PAGE_SIZE);
        assert!(in_piece || page == [0xa5; 4096], "frame {frame} was written");
    }
}

/// Guest owners keep digests: these bytes change on purpose only, with `docs/launch-digest.md`.
#[test]
fn measured_bytes_are_stable() {
    let bz = TestFile::new(&bz_image::image(0x3000));
    let elf = TestFile::new(&elf::image());
    let digest = |kernel| {
        let config = config(kernel, 4096 * MIB);
        let (memory, loaded) = load_fresh(&config);
        Sha256::digest(measured(&memory, &loaded.unwrap().pieces))
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    assert_eq!(
        [digest(&bz), digest(&elf)],
        [
            "64b6e1c51451645e3d33c2bf8cf4a44a9b8d4d2661008203fb64260b840113cd",
            "cefe7e0fe238351ff61e92c736db90e3f47ff3eaccfc799c819a977bc89b84dc",
        ]
    );
}

/// Memory is advised only where it helps: a guest that has plenty is told what the limit is.
#[test]
fn what_does_not_fit_names_the_limit_that_counts() {
    let mut image = bz_image::image(0x3000);
    let kernel = TestFile::new(&image);
    bz_image::set_u32(&mut image, bz_image::INITRD_ADDR_MAX, 0x37ff_ffff);
    let old = TestFile::new(&image);
    bz_image::set_u32(&mut image, bz_image::INIT_SIZE, 0xc000_0000);
    let huge = TestFile::new(&image);
    let elf = TestFile::new(&elf::image());
    let sparse = |bytes: u64| {
        let file = TestFile::new(b"");
        File::options().write(true).open(&file.0).unwrap().set_len(bytes).unwrap();
        file
    };
    let (small, large) = (sparse(900 * MIB), sparse(3072 * MIB));
    let hole = "nothing is loaded above 0xc0000000, where the hole for devices begins";
    let reach = "reads an initramfs only below 0x38000000 (its initrd_addr_max)";
    for (kernel, initramfs, ram, expected) in [
        (&kernel, Some(&small), 128, "give the guest at least 917 MiB"),
        (&elf, Some(&small), 128, "give the guest at least 905 MiB"),
        (&old, Some(&small), 128, reach),
        (&old, Some(&small), 8192, reach),
        (&kernel, Some(&large), 8192, "only below 0x80000000 (its initrd_addr_max)"),
        (&elf, Some(&large), 128, hole),
        (&elf, Some(&large), 8192, hole),
        (&huge, None, 128, hole),
        (&huge, None, 8192, hole),
    ] {
        let initramfs = initramfs.map(|file| file.0.as_path());
        let said = refusal(&BootConfig { initramfs, ..config(kernel, ram * MIB) });
        assert!(said.contains(expected), "{ram} MiB: no '{expected}' in {said}");
        let advised = said.contains("give the guest");
        assert_eq!(advised, expected.starts_with("give"), "{said}");
    }
}

/// Opening a pipe must not wait for somebody to write to it: signals do nothing by then.
#[test]
fn a_pipe_is_refused_at_once() {
    let pipe = TestFile::new(b"");
    remove_file(&pipe.0).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe.0).status().unwrap().success());
    let (path, (sender, answer)) = (pipe.0.clone(), channel());
    spawn(move || sender.send(Input::open(&path).unwrap_err()));
    let refused = answer.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(refused, BootError::NotAFile { .. }), "{refused}");
}

/// A file is named and its fault too, before anything is tried with it.
#[test]
fn unusable_files_are_named() {
    let text = TestFile::new(b"#!/bin/sh\n");
    let short = TestFile::new(b"MZ");
    let empty = TestFile::new(b"");
    let good = TestFile::new(&bz_image::image(0x3000));
    let missing = Path::new("/nonexistent/vmlinuz");
    let cases: [(&Path, &str); 5] = [
        (&text.0, "is not a bzImage nor a PVH ELF (it starts with 23 21 2f 62)"),
        (&short.0, "is not a bzImage nor a PVH ELF (it starts with 4d 5a 00 00)"),
        (&empty.0, "is empty"),
        (&temp_dir(), "is not a regular file"),
        (missing, "No such file or directory"),
    ];
    for (path, expected) in cases {
        let config = BootConfig { kernel: path, ..config(&good, 128 * MIB) };
        let said = refusal(&config);
        assert!(said.contains(expected) && said.contains(path.to_str().unwrap()), "{said}");
    }
    let config = BootConfig { initramfs: Some(missing), ..config(&good, 128 * MIB) };
    assert!(refusal(&config).contains("/nonexistent/vmlinuz"));
}

/// A kernel reads no more of its command line than it says, and stops at a NUL.
#[test]
fn command_lines_that_would_be_cut_are_refused() {
    let kernel = TestFile::new(&bz_image::image(0x3000));
    let of = |cmdline| BootConfig { cmdline, ..config(&kernel, 128 * MIB) };
    let too_long = "x".repeat(2048);
    load_fresh(&of(&too_long[1..])).1.unwrap();
    let said = refusal(&of(&too_long));
    assert!(said.contains("has 2048 bytes, but this kernel reads at most 2047"), "{said}");
    assert!(refusal(&of("a\0b")).contains("NUL"));
}

/// Machines that cannot hold even the fixed pieces, or C-bits that are none.
#[test]
fn impossible_machines_are_refused() {
    let kernel = TestFile::new(&bz_image::image(0x3000));
    assert!(refusal(&config(&kernel, MIB)).contains("more than 1 MiB"));
    for bit in [0, 31, 52, 255] {
        let config = BootConfig { c_bit: Some(bit), ..config(&kernel, 128 * MIB) };
        assert!(refusal(&config).contains("cannot be the C-bit"));
    }
}

/// A RAM size in pages: mostly small, sometimes past the device hole.
fn ram_pages() -> impl Strategy<Value = u64> {
    prop_oneof![0x101u64..0x8000, 0xb_0000u64..0x14_0000]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the sizes: a load is sound, or what is refused really does not fit.
    #[test]
    fn any_sizes_load_soundly_or_do_not_fit(
        pages in ram_pages(),
        image_bytes in 0x1000u64..0x4_0000,
        init_size in 0u32..0x800_0000,
        initramfs_bytes in 1u64..0x20_0000,
        reach in 0x100_0000u32..0x8000_0000,
    ) {
        let mut image = bz_image::image(image_bytes);
        bz_image::set_u32(&mut image, bz_image::INIT_SIZE, init_size);
        bz_image::set_u32(&mut image, bz_image::INITRD_ADDR_MAX, reach);
        let kernel = TestFile::new(&image);
        let initramfs = TestFile::new(&vec![1; usize::try_from(initramfs_bytes).unwrap()]);
        let config = BootConfig {
            initramfs: Some(&initramfs.0),
            ..config(&kernel, pages * PAGE_SIZE)
        };
        let low_end = end(config.ram.low());
        let kernel_end = bz_image::LOAD + u64::from(init_size).max(image_bytes);
        let limit = low_end.min(u64::from(reach) + 1);
        match load_fresh(&config).1 {
            Ok(loaded) => {
                assert_sound(&loaded, &config.ram);
                let placed = loaded.pieces.last().unwrap();
                prop_assert_eq!(placed.name, "initramfs");
                prop_assert!(placed.range.start().0 >= kernel_end);
                prop_assert!(placed.range.start().0 + initramfs_bytes <= limit);
            }
            Err(BootError::KernelTooLarge { .. }) => prop_assert!(kernel_end > low_end),
            Err(BootError::InitramfsTooLarge { room, .. }) => {
                prop_assert!(kernel_end + initramfs_bytes + PAGE_SIZE > limit);
                // What is advised helps, and where nothing is, nothing does.
                let (mib, helps) = match room {
                    Room::Memory { mib } => (mib, true),
                    Room::Hole | Room::Reach { .. } => (8 << 10, false),
                };
                let ram = RamLayout::new(mib * MIB).unwrap();
                let (_memory, again) = load_fresh(&BootConfig { ram, ..config });
                prop_assert_eq!(again.is_ok(), helps, "{:?}: {:?}", room, again);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    /// No file makes the loader panic, whichever bytes of a good one are overwritten.
    #[test]
    fn no_file_makes_it_panic(
        is_elf: bool,
        changes in prop::collection::vec((0usize..0x300, any::<u8>()), 1..8),
        cut in 0usize..0x3000,
    ) {
        let mut image = if is_elf { elf::image() } else { bz_image::image(0x3000) };
        for (offset, byte) in changes {
            image[offset] = byte;
        }
        image.truncate(image.len().saturating_sub(cut).max(1));
        let kernel = TestFile::new(&image);
        let config = config(&kernel, 64 * MIB);
        if let Ok(loaded) = load_fresh(&config).1 {
            assert_sound(&loaded, &config.ram);
        }
    }
}

/// Frames are what `Piece` counts in.
fn frames(base: u64, limit: u64) -> PageRange {
    PageRange::new(Frame(base), Frame(limit)).unwrap()
}
