//! The guests of the benchmark: an ELF that every VMM here boots by PVH, and the noise in its RAM.
//!
//! `guest.s` says what the guest does. The gap between the source's last byte and the destination's
//! first is the downtime as a user sees it, measured alike for every VMM. An initramfs fills its RAM.
#![expect(unsafe_code, reason = "assembly, whose bytes are a symbol of this program")]

use std::arch::global_asm;
use std::fs::{File, write};
use std::io::{BufWriter, Error, Write};
use std::path::{Path, PathBuf};

use super::cost::Result;

global_asm!(include_str!("guest.s"), options(att_syntax, raw));

/// As in `guest.s`.
const IMAGE_BYTES: usize = 0x800;
const BASE: u32 = 0x10_0000;
const ENTRY: u32 = BASE + 0x100;
/// What the guest needs behind its image: a stack and page tables.
const BYTES_IN_MEMORY: u32 = 0xb000;

// guest.s defines it, with this length and without any address of this program.
unsafe extern "C" {
    safe static guest_image: [u8; IMAGE_BYTES];
}

const PAGE_BYTES: u64 = 4096;

/// What a guest does between two of its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// It sleeps.
    Idle,
    /// It sleeps, and says that an SEV guest may be moved.
    SevIdle,
    /// It writes so many megabytes in a second, again and again to the same `1 / part` of its RAM.
    Writing { megabytes: u64, part: u64 },
}

/// A guest, by what a VMM needs to start it.
pub(crate) struct Guest {
    /// Files of this benchmark.
    directory: PathBuf,
    /// Bytes of RAM.
    pub(crate) ram: u64,
    /// Whether it is one of SEV.
    pub(crate) is_sev: bool,
    /// The ELF.
    pub(crate) kernel: PathBuf,
    /// What fills its RAM, if anything does.
    pub(crate) initramfs: Option<PathBuf>,
    /// Pages that it writes in each millisecond, and how many there are.
    pages_per_tick: u32,
    pages: u32,
}

impl Guest {
    /// Writes the ELF. `initramfs` is one that [`write_noise`] has written.
    pub(crate) fn prepare(
        directory: &Path,
        ram: u64,
        load: Load,
        initramfs: Option<&Path>,
    ) -> Result<Self> {
        let (is_sev, rate, part) = match load {
            Load::Idle => (false, 0, ram),
            Load::SevIdle => (true, 0, ram),
            Load::Writing { megabytes, part } => (false, megabytes, part),
        };
        let pages = 1 << (ram / part / PAGE_BYTES).max(1).ilog2();
        let pages_per_tick = u32::try_from((rate * 1000 + PAGE_BYTES / 2) / PAGE_BYTES)?;
        // In the middle of the RAM, which is full of noise.
        let memory = u32::try_from(ram / 2)?;
        let kernel = directory.join(format!("guest-{is_sev}-{pages_per_tick}-{pages}.elf"));
        write(&kernel, elf([is_sev.into(), memory, pages, pages_per_tick]))?;
        let initramfs = initramfs.map(Path::to_owned);
        let directory = directory.to_owned();
        Ok(Self { directory, ram, is_sev, kernel, initramfs, pages_per_tick, pages })
    }

    /// A file of this benchmark.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Bytes that the guest writes while it writes all of its pages once, if none takes long.
    pub(crate) fn ticks_per_round(&self) -> usize {
        self.pages.checked_div(self.pages_per_tick).unwrap_or(0) as usize
    }
}

/// The ELF, with what the image's first words say.
fn elf(words: [u32; 4]) -> Vec<u8> {
    let mut file = headers();
    file.resize(0x1000, 0);
    file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    file.extend(guest_image.iter().skip(size_of_val(&words)));
    file
}

/// An ELF64 header, a loaded segment and a PVH note (type 18, name `Xen`: the entry).
fn headers() -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let word = |out: &mut Vec<u8>, words: &[u64], bytes: usize| {
        for value in words {
            out.extend(value.to_le_bytes().iter().take(bytes));
        }
    };
    word(&mut out, &[2, 62], 2); // executable, x86-64
    word(&mut out, &[1], 4);
    word(&mut out, &[ENTRY.into(), 64, 0], 8);
    word(&mut out, &[0], 4);
    word(&mut out, &[64, 56, 2, 64, 0, 0], 2);
    word(&mut out, &[1, 7], 4); // PT_LOAD, all rights
    word(&mut out, &[0x1000, BASE.into(), BASE.into(), IMAGE_BYTES as u64], 8);
    word(&mut out, &[BYTES_IN_MEMORY.into(), 0x1000], 8);
    word(&mut out, &[4, 4], 4); // PT_NOTE
    word(&mut out, &[176, 0, 0, 24, 24, 4], 8);
    word(&mut out, &[4, 8, 18], 4);
    out.extend(b"Xen\0");
    word(&mut out, &[ENTRY.into()], 8);
    out
}

/// Writes a file of noise, with which a guest's RAM is filled: no page is zero or like another.
pub(crate) fn write_noise(path: &Path, bytes: u64) -> std::result::Result<(), Error> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..bytes / 8 {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    file.flush()
}
