//! Everything that a guest starts from, put into its RAM.
//!
//! [`load`] serves `run` and `digest` alike: what it returns are the pieces that are encrypted and
//! measured, in that order, so that the launch digest can be recomputed from the same files.
//!
//! The measuring order is ascending guest-physical address:
//!
//! | piece | what | bzImage | PVH |
//! |---|---|---|---|
//! | `page zero` | zeros, and the GDT at 0x500 | yes | yes |
//! | `boot_params` / `start info` | what the boot protocol hands over | yes | yes |
//! | `page tables` | identity map of 4 GiB, the C-bit in every entry | yes | no |
//! | `command line` | NUL terminated | yes | yes |
//! | `ACPI` | all tables | yes | yes |
//! | `reset vector` | code for guests that reset by jumping to the BIOS, and where secrets go | yes | yes |
//! | `kernel` | a bzImage without its setup part; an ELF's segments, one piece per run of pages | yes | yes |
//! | `initramfs` | the file | if given | if given |
//!
//! Every piece is whole pages, zeros where its bytes leave off. `docs/launch-digest.md` gives
//! each piece's bytes; [`layout`] gives each address.

mod acpi;
mod e820;
mod elf;
pub mod gdt;
mod input;
pub mod layout;
mod linux;
mod page_tables;
mod placement;
mod pvh;
mod reset;
mod room;
mod secret_table;
#[cfg(test)]
mod tests;

use std::io::Error as IoError;
use std::path::{Path, PathBuf};

use linux_loader::loader::Error as LoaderError;
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryError};

use crate::page::{Gpa, PAGE_SIZE, PageRange, RamLayout};
pub use gdt::Segments;
use gdt::{Mode, segments};
use input::Input;
use layout::{ACPI, COMMAND_LINE, COMMAND_LINE_MAX, GDT, KERNEL_MIN, PAGE_ZERO, RESET_PAGE};
use placement::{Placement, end};
pub use room::Room;

/// What to boot, and in what machine.
#[derive(Debug, Clone, Copy)]
pub struct BootConfig<'a> {
    /// A bzImage, or an ELF with a PVH note.
    pub kernel: &'a Path,
    /// The initramfs, byte for byte as the kernel shall find it.
    pub initramfs: Option<&'a Path>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// How many processors; their APIC ids count from 0.
    pub vcpus: u8,
    /// Where RAM is.
    pub ram: RamLayout,
    /// The number of the C-bit; `None` for a plain VM.
    pub c_bit: Option<u8>,
}

/// What [`load`] has put into RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// In measuring order: ascending, disjoint, within low RAM.
    pub pieces: Vec<Piece>,
    /// How the first processor starts.
    pub entry: Entry,
}

/// A run of whole pages to be encrypted and measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// What it is, for people.
    pub name: &'static str,
    /// Where it is.
    pub range: PageRange,
}

/// The registers of the first processor. All others wait for start-up interrupts; registers not
/// named here are 0, interrupts are off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode with paging (`CR0.PE`, `CR0.PG`, `CR4.PAE`, `EFER.LME`, `EFER.LMA`).
    Linux64 {
        /// `RIP`.
        rip: u64,
        /// `RSI`: the address of `boot_params`.
        rsi: u64,
        /// `CR3`, without the C-bit.
        cr3: u64,
        /// `RSP`: the top of a page that is free, but not measured.
        rsp: u64,
    },
    /// 32-bit protected mode without paging (`CR0.PE` alone).
    Pvh {
        /// `EIP`.
        rip: u32,
        /// `EBX`: the address of `hvm_start_info`.
        rbx: u32,
    },
}

impl Entry {
    /// The segment registers and `GDTR` that go with this entry.
    #[must_use]
    pub fn segments(self) -> Segments {
        segments(self.mode())
    }

    fn mode(self) -> Mode {
        match self {
            Self::Linux64 { .. } => Mode::Long,
            Self::Pvh { .. } => Mode::Protected,
        }
    }
}

/// Fills `memory` (the host view of RAM as `config.ram` lays it out) with all that the guest
/// starts from.
///
/// # Errors
/// [`BootError`] if a file cannot be read, is not a kernel that can boot here, or does not fit.
/// `memory` may then be partly written.
pub fn load<M: GuestMemoryBackend>(
    memory: &M,
    config: &BootConfig<'_>,
) -> Result<Loaded, BootError> {
    let low_end = end(config.ram.low());
    if low_end <= KERNEL_MIN.0 {
        return Err(BootError::RamTooSmall { low_end });
    }
    if let Some(bit) = config.c_bit.filter(|bit| !(32..52).contains(bit)) {
        return Err(BootError::CBit { bit });
    }
    let mut kernel = Input::open(config.kernel)?;
    let initramfs = config.initramfs.map(Input::open).transpose()?;
    let mut placement = Placement::new(memory, &config.ram);

    let entry = if starts_with(&mut kernel, 0, elf::MAGIC)? {
        pvh::load(&mut placement, kernel, initramfs, config)?
    } else if starts_with(&mut kernel, linux::MAGIC_OFFSET, linux::MAGIC)? {
        linux::load(&mut placement, kernel, initramfs, config)?
    } else {
        return Err(not_a_kernel(&mut kernel));
    };
    Ok(Loaded { pieces: placement.finish(), entry })
}

/// Whether the file has `magic` at `offset`.
fn starts_with(kernel: &mut Input, offset: u64, magic: [u8; 4]) -> Result<bool, BootError> {
    let mut found = [0; 4];
    Ok(kernel.read_at(offset, &mut found)? && found == magic)
}

/// The error that shows what the file starts with.
fn not_a_kernel(kernel: &mut Input) -> BootError {
    let mut start = [0; 4];
    match kernel.read_at(0, &mut start) {
        Ok(_) => BootError::NotAKernel { path: kernel.path.clone(), start },
        Err(error) => error,
    }
}

/// Places what both boot protocols need. `cmdline_max` is the kernel's limit, without the NUL.
fn place_common<M: GuestMemoryBackend>(
    placement: &mut Placement<'_, M>,
    config: &BootConfig<'_>,
    mode: Mode,
    cmdline_max: u64,
) -> Result<(), BootError> {
    let mut page_zero = vec![0; usize::try_from(GDT.0).unwrap_or(0)];
    page_zero.extend(gdt::table(mode));
    placement.place("page zero", PAGE_ZERO, &page_zero)?;

    let mut cmdline = config.cmdline.as_bytes().to_vec();
    let (len, max) = (cmdline.len() as u64, cmdline_max.min(COMMAND_LINE_MAX - 1));
    if len > max {
        return Err(BootError::CommandLineTooLong { len, max });
    }
    if cmdline.contains(&0) {
        return Err(BootError::CommandLineNul);
    }
    cmdline.push(0);
    placement.place("command line", COMMAND_LINE, &cmdline)?;
    placement.place("ACPI", ACPI, &acpi::tables(config.vcpus))?;
    placement.place("reset vector", RESET_PAGE, &secret_table::page_with(&reset::code()))
}

/// The highest place for the initramfs in RAM that ends at `low_end`, above the kernel and within its
/// `reach`.
fn initramfs_address(
    file: &Input,
    kernel_end: u64,
    (low_end, reach): (u64, u64),
) -> Result<Gpa, BootError> {
    let limit = low_end.min(reach);
    let start = limit.checked_sub(file.bytes).map(|start| start - start % PAGE_SIZE);
    match start {
        Some(start) if start >= kernel_end => Ok(Gpa(start)),
        _ => Err(BootError::InitramfsTooLarge {
            path: file.path.clone(),
            bytes: file.bytes,
            kernel_end,
            limit,
            room: Room::for_initramfs(file.bytes, kernel_end, reach),
        }),
    }
}

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
