//! A reader that goes away must not make sevferry panic, and one that comes late must not miss anything.
#![expect(clippy::unwrap_used, reason = "a command that cannot be started fails the test")]

use std::env::temp_dir;
use std::fs::{remove_file, write};
use std::io::{Read, Write, pipe};
use std::path::PathBuf;
use std::process::{Command, Stdio, id};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;

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
    let kernel = Kernel::new("unread");
    assert_eq!(unread(&kernel.digest()), Some(0));
}

/// An output that somebody else has made non-blocking, and that is full, is waited for: what was asked for is
/// there when it is read at last.
#[test]
fn a_late_reader_of_a_non_blocking_output_gets_the_digest() {
    let kernel = Kernel::new("late");
    let (mut reader, writer) = pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    let mut full = writer.try_clone().unwrap();
    while full.write(b".").is_ok() {}
    drop(full);
    let mut command = Command::new(env!("CARGO_BIN_EXE_sevferry"));
    let mut child =
        command.args(kernel.digest()).stdout(writer).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    // Time enough to print it, and to end if it were not waited for.
    let late = Instant::now() + Duration::from_secs(1);
    while child.try_wait().unwrap().is_none() && Instant::now() < late {
        park_timeout(Duration::from_millis(10));
    }
    let mut printed = String::new();
    reader.read_to_string(&mut printed).unwrap();
    assert!(printed.trim_start_matches('.').starts_with("launch digest: "), "{printed}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A file with a kernel, for one test.
struct Kernel(PathBuf);

impl Kernel {
    fn new(name: &str) -> Self {
        let file = temp_dir().join(format!("sevferry-closed-output-{name}-{}", id()));
        write(&file, pvh_kernel()).unwrap();
        Self(file)
    }

    fn digest(&self) -> [&str; 7] {
        let path = self.0.to_str().unwrap();
        ["digest", "--c-bit", "51", "--memory", "16M", "--kernel", path]
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        remove_file(&self.0).unwrap_or_default();
    }
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
