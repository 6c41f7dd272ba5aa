//! A reader that goes away must not make sevferry panic.
#![expect(clippy::unwrap_used, reason = "a command that cannot be started fails the test")]

use std::env::temp_dir;
use std::fs::{remove_file, write};
use std::io::pipe;
use std::process::{Command, id};

/// The exit code of `sevferry ARGUMENTS`, of whose output nobody reads a byte.
fn unread(arguments: &[&str]) -> Option<i32> {
    let (reader, writer) = pipe().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sevferry"));
    command.args(arguments).stdout(writer.try_clone().unwrap()).stderr(writer);
    drop(reader);
    command.status().unwrap().code()
}

/// The exit code stays what it would have been, be it an error, a mistake or help.
#[test]
fn the_exit_code_is_the_same_without_a_reader() {
    let missing = "/nonexistent/kernel";
    assert_eq!(unread(&["digest", "--c-bit", "51", "--kernel", missing]), Some(1));
    assert_eq!(unread(&["run", "--kernel", missing]), Some(1));
    assert_eq!(unread(&["run"]), Some(2));
    assert_eq!(unread(&["frobnicate"]), Some(2));
}

/// What was asked for and cannot be printed is no panic either.
#[test]
fn a_digest_without_a_reader_is_no_panic() {
    let file = temp_dir().join(format!("sevferry-closed-output-{}", id()));
    write(&file, pvh_kernel()).unwrap();
    let path = file.to_str().unwrap();
    let code = unread(&["digest", "--c-bit", "51", "--memory", "size=16M", "--kernel", path]);
    remove_file(&file).unwrap();
    assert_eq!(code, Some(0));
}

/// The smallest ELF that is a kernel: a PVH note, and a segment of no use at 1 MiB.
fn pvh_kernel() -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    // Executable for x86-64, version 1; its entry, program headers at 64, no sections.
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend([0, 64, 0].iter().flat_map(|field: &u64| field.to_le_bytes()));
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    for (kind, address) in [(4_u32, 0_u64), (1, 0x10_0000)] {
        image.extend(kind.to_le_bytes());
        image.extend([0; 4]);
        let fields = [176, address, address, 20, 20, 4];
        image.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    }
    // Name and value of four bytes each, PHYS32_ENTRY; "Xen", and where it is entered.
    image.extend([4_u32, 4, 18].iter().flat_map(|field| field.to_le_bytes()));
    image.extend(b"Xen\0");
    image.extend(0x10_0000_u32.to_le_bytes());
    image
}
