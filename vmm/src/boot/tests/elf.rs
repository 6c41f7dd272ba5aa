//! PVH kernels, good and bad.

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::ByteValued;

use super::super::layout::{MEMORY_MAP, MODULE_LIST, START_INFO};
use super::*;

/// Where the image below is entered.
const ENTRY: u32 = 0x20_0010;

/// Where its program headers and its segments' bytes lie in the file.
const HEADERS: usize = 64;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x1800;
const NOTES: u64 = 0x2000;

/// One program header.
fn segment(kind: u32, offset: u64, address: u64, file_bytes: u64, bytes: u64) -> Elf64_Phdr {
    Elf64_Phdr {
        p_type: kind,
        p_offset: offset,
        p_paddr: address,
        p_filesz: file_bytes,
        p_memsz: bytes,
        ..Default::default()
    }
}

/// A note: sizes, type, name and value, both padded.
fn note(kind: u32, name: &[u8], value: &[u8]) -> Vec<u8> {
    let sizes = [name.len(), value.len()].map(|len| u32::try_from(len).unwrap());
    let mut bytes: Vec<u8> =
        [sizes[0], sizes[1], kind].iter().flat_map(|word| word.to_le_bytes()).collect();
    for part in [name, value] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// An ELF of these program headers, `C` and `D` in its segments, `notes` at [`NOTES`].
fn elf(headers: &[Elf64_Phdr], notes: &[u8]) -> Vec<u8> {
    let mut head = Elf64_Ehdr {
        e_machine: 62,
        e_phoff: HEADERS as u64,
        e_phentsize: 56,
        e_phnum: u16::try_from(headers.len()).unwrap(),
        ..Default::default()
    };
    head.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut image = head.as_slice().to_vec();
    headers.iter().for_each(|header| image.extend(header.as_slice()));
    image.resize(usize::try_from(CODE).unwrap(), 0);
    image.resize(usize::try_from(DATA).unwrap(), b'C');
    image.resize(usize::try_from(NOTES).unwrap(), b'D');
    image.extend(notes);
    image
}

fn entry_note() -> Vec<u8> {
    note(18, b"Xen\0", &ENTRY.to_le_bytes())
}

/// Code and data that share a page, data with zeros behind, and the note.
pub(super) fn image() -> Vec<u8> {
    let notes = entry_note();
    let len = notes.len() as u64;
    let headers = [
        segment(PT_LOAD, DATA, 0x20_0800, 0x100, 0x2000),
        segment(PT_LOAD, CODE, 0x20_0000, 0x800, 0x800),
        segment(PT_LOAD, CODE, 0x40_0010, 0x20, 0x20),
        segment(PT_NOTE, NOTES, 0, len, len),
    ];
    elf(&headers, &notes)
}

fn read<T: ByteValued + Default>(memory: &GuestMemoryMmap<()>, gpa: u64) -> T {
    let mut value = T::default();
    let bytes = bytes_at(memory, gpa, value.as_slice().len() as u64);
    value.as_mut_slice().copy_from_slice(&bytes);
    value
}

/// Segments lie where they say, whatever their order; those that share a page are one piece.
#[test]
fn segments_lie_where_they_say() {
    let kernel = TestFile::new(&image());
    let (memory, loaded) = load_fresh(&config(&kernel, 16 * MIB));
    let loaded = loaded.unwrap();
    let expected =
        ["page zero", "start info", "command line", "ACPI", "reset vector", "kernel", "kernel"];
    assert_eq!(names(&loaded), expected);
    assert_eq!(loaded.pieces[5].range, frames(0x200, 0x203));
    assert_eq!(loaded.pieces[6].range, frames(0x400, 0x401));
    assert_eq!(bytes_at(&memory, 0x20_0000, 0x800), [b'C'; 0x800]);
    assert_eq!(bytes_at(&memory, 0x20_0800, 0x100), [b'D'; 0x100]);
    assert_eq!(bytes_at(&memory, 0x20_0900, 0x1f00), [0; 0x1f00]);
    assert_eq!(bytes_at(&memory, 0x40_0000, 0x10), [0; 0x10]);
    assert_eq!(bytes_at(&memory, 0x40_0010, 0x20), [b'C'; 0x20]);
    let rbx = u32::try_from(START_INFO.0).unwrap();
    assert_eq!(loaded.entry, Entry::Pvh { rip: ENTRY, rbx });
}

/// Notes are read up to a bound, however many segments of them there are.
#[test]
fn notes_are_read_up_to_a_bound() {
    let notes = entry_note();
    let len = notes.len() as u64;
    let code = segment(PT_LOAD, CODE, 0x20_0000, 0x800, 0x800);
    let last = segment(PT_NOTE, NOTES, 0, len, len);
    for (junk_bytes, understood) in [(MIB - len, true), (MIB, false)] {
        let junk = segment(PT_NOTE, NOTES + len, 0, junk_bytes, junk_bytes);
        let mut image = elf(&[code, junk, last], &notes);
        image.resize(usize::try_from(NOTES + len + junk_bytes).unwrap(), 0);
        let kernel = TestFile::new(&image);
        let refused =
            matches!(load_fresh(&config(&kernel, 16 * MIB)).1, Err(BootError::NoPvhNote { .. }));
        assert_eq!(refused, !understood, "{junk_bytes:#x} bytes of other notes before it");
    }
}

/// The kernel finds its command line, initramfs, tables and RAM through `hvm_start_info`.
#[test]
fn start_info_says_where_everything_is() {
    let kernel = TestFile::new(&image());
    let initramfs = TestFile::new(&[7; 5000]);
    let config = BootConfig { initramfs: Some(&initramfs.0), ..config(&kernel, 16 * MIB) };
    let (memory, loaded) = load_fresh(&config);
    loaded.unwrap();
    let info: hvm_start_info = read(&memory, START_INFO.0);
    let expected = hvm_start_info {
        magic: 0x336e_c578,
        version: 1,
        nr_modules: 1,
        modlist_paddr: MODULE_LIST.0,
        cmdline_paddr: COMMAND_LINE.0,
        rsdp_paddr: ACPI.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: 3,
        ..Default::default()
    };
    assert_eq!(info, expected);
    let module: hvm_modlist_entry = read(&memory, MODULE_LIST.0);
    assert_eq!((module.paddr, module.size), (16 * MIB - 0x2000, 5000));
    assert_eq!(bytes_at(&memory, module.paddr, 5000), [7; 5000]);
    let last: hvm_memmap_table_entry = read(&memory, MEMORY_MAP.0 + 48);
    assert_eq!((last.addr, last.size, last.type_), (MIB, 15 * MIB, 1));
}

/// The note counts wherever it is: behind other notes, in an earlier or a later segment.
#[test]
fn the_note_is_found_among_others() {
    let other = note(3, b"GNU\0", &[1; 20]);
    let not_ours = note(18, b"Xenomorph\0", &[9; 4]);
    let ours = note(18, b"Xen\0", &u64::from(ENTRY).to_le_bytes());
    let len = |bytes: &Vec<u8>| bytes.len() as u64;
    let (before, middle, after) = (len(&other), len(&not_ours) + len(&ours), len(&other));
    let code = segment(PT_LOAD, CODE, 0x20_0000, 0x800, 0x800);
    let headers = [
        segment(PT_NOTE, NOTES, 0, before, before),
        segment(PT_NOTE, NOTES + before, 0, middle, middle),
        segment(PT_NOTE, NOTES + before + middle, 0, after, after),
        code,
    ];
    let kernel = TestFile::new(&elf(&headers, &[other.clone(), not_ours, ours, other].concat()));
    let loaded = load_fresh(&config(&kernel, 16 * MIB)).1.unwrap();
    assert!(matches!(loaded.entry, Entry::Pvh { rip: ENTRY, .. }));
}

/// A kernel that cannot boot here is refused with the reason.
#[test]
fn kernels_that_cannot_boot_here_are_refused() {
    let code = |address, bytes| segment(PT_LOAD, CODE, address, 0x800, bytes);
    let notes = segment(PT_NOTE, NOTES, 0, 20, 20);
    let good = code(0x20_0000, 0x800);
    let cases = [
        (vec![good], "without a PVH note"),
        (vec![notes, code(0xf_f000, 0x2000)], "wants 8192 bytes loaded at 0xff000"),
        (
            vec![notes, good, code(0xff_f000, 0x1001)],
            "RAM for kernels is from 0x100000 to 0x1000000",
        ),
        (vec![notes, good, code(u64::MAX - 5, 0x800)], "loaded at 0xfffffffffffffffa"),
        (vec![notes, good, code(0x20_07ff, 0x800)], "two of its segments overlap"),
        (vec![notes, code(0x30_0000, 0x800)], "entry point is in none of its segments"),
        (vec![notes, good, code(0x30_0000, 0x7ff)], "longer in the file than in memory"),
        (vec![notes, segment(PT_LOAD, 0x1_0000, 0x20_0000, 1, 1)], "ends after"),
        (vec![segment(PT_NOTE, u64::MAX, 0, 20, 20), good], "ends after"),
    ];
    for (headers, expected) in cases {
        let kernel = TestFile::new(&elf(&headers, &entry_note()));
        let said = refusal(&config(&kernel, 16 * MIB));
        assert!(said.contains(expected) && said.contains(kernel.0.to_str().unwrap()), "{said}");
    }
}

/// ELFs for other machines.
#[test]
fn foreign_elfs_are_refused() {
    let cases = [(4, "64-bit"), (5, "little-endian"), (18, "x86-64"), (54, "program headers")];
    for (offset, expected) in cases {
        let mut image = image();
        image[offset] ^= 3;
        let kernel = TestFile::new(&image);
        let said = refusal(&config(&kernel, 16 * MIB));
        assert!(said.contains(expected), "{said}");
    }
}
