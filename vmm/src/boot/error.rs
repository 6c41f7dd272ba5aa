//! Why a guest's start cannot be put together, and what to do about it.

use std::io::Error as IoError;
use std::path::PathBuf;

use linux_loader::loader::Error as LoaderError;
use thiserror::Error;
use vm_memory::GuestMemoryError;

use super::room::Room;
use crate::page::{Gpa, PageRange};

/// Why a guest's start cannot be put together.
#[derive(Debug, Error)]
pub enum BootError {
    /// No such file, or it cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// A directory, a pipe or a device.
    #[error("{} is not a regular file: name the kernel or initramfs itself", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// No bytes in it.
    #[error("{} is empty: build or copy it again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Neither of the two formats.
    #[error(
        "{} is not a bzImage nor a PVH ELF (it starts with {:02x} {:02x} {:02x} {:02x}): \
         give a vmlinuz, or an ELF with a PVH note",
        path.display(), start[0], start[1], start[2], start[3]
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// Its first bytes; zeros where it ends.
        start: [u8; 4],
    },
    /// Shorter than its own header says.
    #[error("{} ends after {len} of {bytes} bytes: copy it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// How long it must be, in bytes.
        bytes: u64,
        /// How long it is, in bytes.
        len: u64,
    },
    /// The header contradicts itself or the format.
    #[error("{} is not a sound kernel: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        what: &'static str,
    },
    /// From before Linux 3.8.
    #[error(
        "{} speaks boot protocol {}.{:02}, but 2.12 (Linux 3.8) or newer is needed",
        path.display(), version >> 8, version & 0xff
    )]
    OldProtocol {
        /// The file.
        path: PathBuf,
        /// As in the header: major in the high byte.
        version: u16,
    },
    /// A 32-bit kernel.
    #[error("{} has no 64-bit entry point: give a kernel built for x86-64", path.display())]
    No64BitEntry {
        /// The file.
        path: PathBuf,
    },
    /// An ELF that is not meant to be booted like this.
    #[error(
        "{} is an ELF without a PVH note: give a kernel built with CONFIG_PVH, or the bzImage",
        path.display()
    )]
    NoPvhNote {
        /// The file.
        path: PathBuf,
    },
    /// It does not fit, or would lie below 1 MiB.
    #[error(
        "{} wants {bytes} bytes loaded at {address:#x}, but RAM for kernels is from 0x100000 to \
         {low_end:#x}: {}link it elsewhere",
        path.display(),
        room.map_or(String::new(), |room| format!("{room}, or "))
    )]
    SegmentOutsideRam {
        /// The kernel.
        path: PathBuf,
        /// Where the segment starts.
        address: u64,
        /// Its length in memory, in bytes.
        bytes: u64,
        /// Where RAM below the device hole ends.
        low_end: u64,
        /// What would make room; `None` for what lies below 1 MiB.
        room: Option<Room>,
    },
    /// It does not fit below the device hole.
    #[error(
        "{} needs {needed} bytes of RAM at {load:#x}, but RAM there ends at {low_end:#x}: {room}",
        path.display()
    )]
    KernelTooLarge {
        /// The kernel.
        path: PathBuf,
        /// Where it is loaded.
        load: u64,
        /// How much it needs from there, in bytes.
        needed: u64,
        /// Where RAM below the device hole ends.
        low_end: u64,
        /// What would make room.
        room: Room,
    },
    /// It does not fit between the kernel and the end of what the kernel can reach.
    #[error(
        "{} ({bytes} bytes) does not fit between the kernel's end at {kernel_end:#x} and \
         {limit:#x}: {room}; or use a smaller initramfs",
        path.display()
    )]
    InitramfsTooLarge {
        /// The initramfs.
        path: PathBuf,
        /// Its length in bytes.
        bytes: u64,
        /// Where the memory that the kernel needs ends.
        kernel_end: u64,
        /// Where the initramfs must end, by RAM's end or by the kernel's reach.
        limit: u64,
        /// What would make room.
        room: Room,
    },
    /// Longer than the kernel reads.
    #[error("the command line has {len} bytes, but this kernel reads at most {max}: shorten it")]
    CommandLineTooLong {
        /// Bytes without the NUL.
        len: u64,
        /// The most it may have.
        max: u64,
    },
    /// The kernel would read only what is before it.
    #[error("the command line has a NUL character in it: remove it")]
    CommandLineNul,
    /// Not even the first MiB.
    #[error("RAM ends at {low_end:#x}, but a guest needs more than 1 MiB to boot")]
    RamTooSmall {
        /// Where RAM ends.
        low_end: u64,
    },
    /// It would collide with addresses below 4 GiB, or is no address bit.
    #[error("bit {bit} cannot be the C-bit: it must be one of 32 to 51")]
    CBit {
        /// The bit.
        bit: u8,
    },
    /// A piece leaves RAM.
    #[error("{name} needs {len:#x} bytes at {gpa}, but RAM there ends at {end:#x}")]
    OutsideRam {
        /// The piece.
        name: &'static str,
        /// Where it starts.
        gpa: Gpa,
        /// Its length in bytes.
        len: u64,
        /// Where RAM below the device hole ends.
        end: u64,
    },
    /// Two pieces want the same pages.
    #[error("{name} at pages {range} overlaps {other}")]
    Overlap {
        /// The later piece.
        name: &'static str,
        /// Its pages.
        range: PageRange,
        /// The piece that is there already.
        other: &'static str,
    },
    /// `linux-loader` gave up.
    #[error("loading {}", path.display())]
    Loader {
        /// The kernel.
        path: PathBuf,
        /// Why.
        #[source]
        cause: LoaderError,
    },
    /// The mapping does not have the pages that the layout has, or a file shrank meanwhile.
    #[error("writing {name} to guest memory at {gpa}")]
    Memory {
        /// The piece.
        name: &'static str,
        /// Where.
        gpa: Gpa,
        /// Why.
        #[source]
        cause: GuestMemoryError,
    },
}
