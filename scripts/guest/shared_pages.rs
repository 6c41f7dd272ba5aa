//! Prints which of this Linux guest's pages its own page tables map without the C-bit.
//!
//! Runs inside the guest and reads the kernel's page tables through `/proc/kcore`: distribution
//! kernels do not have the page table dump in debugfs. The VMCOREINFO note there says where the
//! top table is and which bit is the C-bit. Both mappings of RAM are walked, the direct map and
//! that of the kernel image: a page is shared if either says so (`.bss..decrypted` differs).
//!
//! Output: `shared=0xSTART-0xEND` (guest-physical bytes, END exclusive) per range, in order, then
//! `shared_pages=N`.

use std::fs::File;
use std::io::{Error, Result};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where the kernel image is mapped (`__START_KERNEL_map`), and the most it can take.
const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;
const IMAGE_LEN: u64 = 1 << 30;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

struct Segment {
    kind: u32,
    offset: u64,
    virtual_start: u64,
    physical_start: u64,
    len: u64,
}

/// The kernel's memory, by kernel virtual address.
struct Kcore {
    file: File,
    segments: Vec<Segment>,
}

impl Kcore {
    fn open() -> Result<Self> {
        let file = File::open("/proc/kcore")?;
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0)?;
        let count = u64::from(u16::from_le_bytes([header[56], header[57]]));
        let table = word(&header, 32);
        let mut segments = Vec::new();
        for index in 0..count {
            let mut entry = [0; 56];
            file.read_exact_at(&mut entry, table + index * 56)?;
            segments.push(Segment {
                kind: u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]),
                offset: word(&entry, 8),
                virtual_start: word(&entry, 16),
                physical_start: word(&entry, 24),
                len: word(&entry, 32),
            });
        }
        Ok(Self { file, segments })
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<()> {
        let segment = self.segments.iter().find(|segment| {
            segment.kind == PT_LOAD
                && address >= segment.virtual_start
                && address - segment.virtual_start < segment.len
        });
        let segment = segment.ok_or_else(|| wrong(format!("nothing at {address:#x}")))?;
        self.file.read_exact_at(buffer, segment.offset + address - segment.virtual_start)
    }

    /// The segments of the direct map: RAM, below the kernel image and with a physical address.
    fn direct_map_segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| {
            segment.kind == PT_LOAD
                && segment.virtual_start < IMAGE_BASE
                && segment.physical_start != u64::MAX
        })
    }

    /// Where the direct map has physical address 0.
    fn direct_map(&self) -> Result<u64> {
        let first = self.direct_map_segments().min_by_key(|segment| segment.virtual_start);
        first
            .map(|segment| segment.virtual_start.wrapping_sub(segment.physical_start))
            .ok_or_else(|| wrong("no segment of the direct map".to_owned()))
    }

    fn direct_map_end(&self) -> u64 {
        let ends = self.direct_map_segments().map(|segment| segment.virtual_start + segment.len);
        ends.max().unwrap_or(0)
    }

    /// A number from the VMCOREINFO note, which is lines of `NAME=value`.
    fn number(&self, name: &str, radix: u32) -> Result<u64> {
        let note = self.segments.iter().find(|segment| segment.kind == PT_NOTE);
        let note = note.ok_or_else(|| wrong("no notes".to_owned()))?;
        let mut text = vec![0; usize::try_from(note.len).unwrap_or(0)];
        self.file.read_exact_at(&mut text, note.offset)?;
        let text = String::from_utf8_lossy(&text);
        let value = text.lines().find_map(|line| line.split(name).nth(1)?.strip_prefix('='));
        value
            .and_then(|value| u64::from_str_radix(value.trim_start_matches("0x"), radix).ok())
            .ok_or_else(|| wrong(format!("no {name} in VMCOREINFO")))
    }
}

fn wrong(what: String) -> Error {
    Error::other(format!("/proc/kcore: {what}"))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

struct Walk {
    kcore: Kcore,
    direct_map: u64,
    c_bit: u64,
    /// Physical start and end of what is mapped without the C-bit, in the order it was found.
    shared: Vec<(u64, u64)>,
}

impl Walk {
    /// Visits what a table maps of `span` (first and last address). An entry of level 0 maps 4 KiB,
    /// of each further level 512 times as much; `base` is the address that the first entry maps.
    fn table(&mut self, table: u64, level: u64, base: u64, span: (u64, u64)) -> Result<()> {
        let mut bytes = [0; 4096];
        self.kcore.read(table, &mut bytes)?;
        let size = 1_u64 << (12 + 9 * level);
        let mut start = base.wrapping_sub(size);
        for entry in bytes.chunks_exact(8).map(|entry| word(entry, 0)) {
            start = start.wrapping_add(size);
            if entry & PRESENT == 0 || start > span.1 || start.wrapping_add(size - 1) < span.0 {
                continue;
            }
            let target = entry & ADDRESS & !self.c_bit;
            if level > 0 && (level > 2 || entry & LARGE == 0) {
                self.table(self.direct_map.wrapping_add(target), level - 1, start, span)?;
            } else if entry & self.c_bit == 0 {
                let first = target & !(size - 1);
                self.shared.push((first, first + size));
            }
        }
        Ok(())
    }

    /// The shared ranges, sorted, and one where they touch or overlap.
    fn merged(mut self) -> Vec<(u64, u64)> {
        self.shared.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in self.shared {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        merged
    }
}

fn main() -> ExitCode {
    match print_shared_pages() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shared_pages: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_shared_pages() -> Result<()> {
    let kcore = Kcore::open()?;
    let c_bit = kcore.number("NUMBER(sme_mask)", 10)?;
    if c_bit == 0 {
        return Err(Error::other("memory encryption is not active in this guest"));
    }
    let top_table = kcore.number("SYMBOL(init_top_pgt)", 16)?;
    let top_level = 3 + kcore.number("NUMBER(pgtable_l5_enabled)", 10)?;
    let direct_map = kcore.direct_map()?;
    let direct_map_end = kcore.direct_map_end();
    let mut walk = Walk { kcore, direct_map, c_bit, shared: Vec::new() };
    // The top table maps 2^48 or 2^57 bytes, whose upper half ends where addresses do.
    let base = 0_u64.wrapping_sub(1 << (21 + 9 * top_level));
    walk.table(top_table, top_level, base, (direct_map, direct_map_end - 1))?;
    walk.table(top_table, top_level, base, (IMAGE_BASE, IMAGE_BASE + IMAGE_LEN - 1))?;
    let mut pages = 0;
    for (start, end) in walk.merged() {
        println!("shared={start:#x}-{end:#x}");
        pages += (end - start) >> 12;
    }
    println!("shared_pages={pages}");
    Ok(())
}
