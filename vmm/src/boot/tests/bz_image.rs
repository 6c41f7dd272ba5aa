//! bzImages, good and bad.

use linux_loader::bootparam::boot_params;
use vm_memory::ByteValued;

use super::super::layout::{BOOT_PARAMS, PAGE_TABLES, STACK_TOP};
use super::*;

/// Where the image below wants to be loaded.
pub(super) const LOAD: u64 = 16 * MIB;

/// Offsets of header fields in the file.
pub(super) const INIT_SIZE: usize = 0x260;
pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
const LENGTH: usize = 0x201;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const SETUP_DATA: usize = 0x250;
const PREF_ADDRESS: usize = 0x258;
const XLOADFLAGS: usize = 0x236;
const SYSSIZE: usize = 0x1f4;

/// Two sectors of setup part: the boot sector and one more.
const SETUP_BYTES: usize = 1024;

pub(super) fn set_u32(image: &mut [u8], offset: usize, value: u32) {
    image[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// A bzImage with `len` bytes of kernel, which count from 0 on.
pub(super) fn image(len: u64) -> Vec<u8> {
    let mut image = vec![0xee; SETUP_BYTES];
    image[0x1f1..0x270].fill(0);
    image[0x1f1] = 1;
    set_u32(&mut image, SYSSIZE, u32::try_from(len / 16).unwrap());
    image[0x200..0x206].copy_from_slice(b"\xeb\x6aHdrS");
    image[VERSION..VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
    image[LOADFLAGS] = 1;
    set_u32(&mut image, INITRD_ADDR_MAX, 0x7fff_ffff);
    set_u32(&mut image, 0x230, 0x20_0000);
    image[XLOADFLAGS] = 1;
    set_u32(&mut image, 0x238, 2047);
    set_u32(&mut image, PREF_ADDRESS, u32::try_from(LOAD).unwrap());
    set_u32(&mut image, INIT_SIZE, 0x10_0000);
    image.extend((0..len).map(|n| n.to_le_bytes()[0]));
    image
}

fn params(memory: &GuestMemoryMmap<()>) -> boot_params {
    let mut params = boot_params::default();
    params.as_mut_slice().copy_from_slice(&bytes_at(memory, BOOT_PARAMS.0, PAGE_SIZE));
    params
}

/// The kernel is where it prefers, whole, and entered 0x200 bytes into it.
#[test]
fn a_kernel_lies_where_it_prefers() {
    let image = image(0x3010);
    let kernel = TestFile::new(&image);
    let (memory, loaded) = load_fresh(&config(&kernel, 128 * MIB));
    let loaded = loaded.unwrap();
    let expected = [
        "page zero",
        "boot_params",
        "page tables",
        "command line",
        "ACPI",
        "reset vector",
        "kernel",
    ];
    assert_eq!(names(&loaded), expected);
    assert_eq!(loaded.pieces[6].range, frames(0x1000, 0x1004));
    assert_eq!(bytes_at(&memory, LOAD, 0x3010), image[SETUP_BYTES..]);
    assert_eq!(bytes_at(&memory, LOAD + 0x3010, 0xff0), vec![0; 0xff0]);
    let entry = Entry::Linux64 {
        rip: LOAD + 0x200,
        rsi: BOOT_PARAMS.0,
        cr3: PAGE_TABLES.0,
        rsp: STACK_TOP.0,
    };
    assert_eq!(loaded.entry, entry);
}

/// The kernel finds its command line, initramfs, tables and RAM through `boot_params`.
#[test]
fn boot_params_say_where_everything_is() {
    let kernel = TestFile::new(&image(0x3000));
    let initramfs = TestFile::new(&[7; 5000]);
    let config = BootConfig { initramfs: Some(&initramfs.0), ..config(&kernel, 4096 * MIB) };
    let (memory, loaded) = load_fresh(&config);
    assert_eq!(loaded.unwrap().pieces[7].range, frames(0x7_fffe, 0x8_0000));
    let params = params(&memory);
    let header = params.hdr;
    let (image, size, cmdline) = (header.ramdisk_image, header.ramdisk_size, header.cmd_line_ptr);
    assert_eq!((image, size, cmdline), (0x7fff_e000, 5000, 0x1_0000));
    assert_eq!(bytes_at(&memory, image.into(), 5000), [7; 5000]);
    let (loader, rsdp) = (header.type_of_loader, params.acpi_rsdp_addr);
    assert_eq!((loader, rsdp), (0xff, 0xe_0000));
    let map = params.e820_table;
    let map: Vec<_> = map.iter().take(5).map(|e| (e.addr, e.size, e.r#type)).collect();
    let expected = [
        (0, 0xa_0000, 1),
        (0xe_0000, 0x1_0000, 2 + 1),
        (0x10_0000, 0xbff0_0000, 1),
        (0x1_0000_0000, 0x4000_0000, 1),
        (0, 0, 0),
    ];
    assert_eq!((params.e820_entries, map), (4, expected.to_vec()));
}

/// Only the header itself reaches the guest: neither the setup code behind it nor a list of data
/// that we have not loaded.
#[test]
fn bytes_behind_the_header_stay_out_of_boot_params() {
    let mut image = image(0x3000);
    image[LENGTH] = 0x62;
    image[0x264..0x300].fill(0xcc);
    set_u32(&mut image, SETUP_DATA, 0xdead_beef);
    let kernel = TestFile::new(&image);
    let (memory, loaded) = load_fresh(&config(&kernel, 128 * MIB));
    loaded.unwrap();
    let bytes = bytes_at(&memory, BOOT_PARAMS.0 + 0x264, 0x6c);
    assert_eq!(bytes, [0; 0x6c]);
    let setup_data = params(&memory).hdr.setup_data;
    assert_eq!(setup_data, 0);
}

/// A kernel that cannot boot here is refused with the reason.
#[test]
fn kernels_that_cannot_boot_here_are_refused() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, &str); 9] = [
        (|i| i[VERSION] = 0x0b, "boot protocol 2.11, but 2.12"),
        (|i| i[LOADFLAGS] = 0, "is a zImage"),
        (|i| i[XLOADFLAGS] = 0, "has no 64-bit entry point"),
        (|i| i.truncate(0x210), "ends after 528 of 620 bytes"),
        (|i| i.truncate(0x1000), "ends after 4096 of 13312 bytes"),
        (|i| set_u32(i, PREF_ADDRESS, 0x10_0000), "not aligned"),
        (|i| set_u32(i, PREF_ADDRESS, 0), "below 1 MiB"),
        (|i| set_u32(i, PREF_ADDRESS, 0xf000_0000), "RAM there ends at 0x8000000"),
        (|i| set_u32(i, INIT_SIZE, 0x700_0001), "give the guest at least 129 MiB"),
    ];
    for (change, expected) in cases {
        let mut image = image(0x3000);
        change(&mut image);
        let kernel = TestFile::new(&image);
        let said = refusal(&config(&kernel, 128 * MIB));
        assert!(said.contains(expected), "{said}");
        assert!(said.contains(kernel.0.to_str().unwrap()), "{said}");
    }
}

/// The memory that the kernel needs to unpack itself is not given to the initramfs.
#[test]
fn an_initramfs_that_does_not_fit_is_refused_with_the_numbers() {
    let mut image = image(0x3000);
    set_u32(&mut image, INIT_SIZE, 0x100_0000);
    let kernel = TestFile::new(&image);
    let initramfs = TestFile::new(&vec![7; 0x10_0001]);
    let of =
        |ram_mib| BootConfig { initramfs: Some(&initramfs.0), ..config(&kernel, ram_mib * MIB) };
    let said = refusal(&of(33));
    assert!(said.contains("(1048577 bytes) does not fit"), "{said}");
    assert!(said.contains("at least 34 MiB"), "{said}");
    load_fresh(&of(34)).1.unwrap();
}
