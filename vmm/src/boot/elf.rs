//! What a PVH kernel's ELF file says: its segments, and its 32-bit entry point.
//!
//! Written out rather than left to `linux-loader`, which neither bounds segments nor finds the
//! PVH note unless it is in the last note segment.

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr,
    PT_LOAD, PT_NOTE,
};
use vm_memory::ByteValued;

use super::error::BootError;
use super::input::Input;
use super::layout::KERNEL_MIN;
use super::room::Room;

/// Every ELF file starts with this.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

/// Note type of the PVH entry point, under the name "Xen".
const PHYS32_ENTRY: u32 = 18;

/// Most bytes of notes that are looked at, in all note segments together: a file may have 65,535.
const NOTES_MAX: u64 = 1 << 20;

/// One run of memory that the file wants filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoadSegment {
    /// Guest-physical address.
    pub(super) address: u64,
    /// Length in memory, in bytes; zeros where the file's part ends.
    pub(super) bytes: u64,
    /// Where its bytes are in the file.
    pub(super) offset: u64,
    /// How many bytes the file has of it; at most `bytes`.
    pub(super) file_bytes: u64,
}

impl LoadSegment {
    /// One past its last byte. In range, once `parse` has accepted the segment.
    pub(super) fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes)
    }
}

/// A sound PVH kernel.
#[derive(Debug)]
pub(super) struct ElfKernel {
    /// Ascending, disjoint, between 1 MiB and the end of low RAM; at least one.
    pub(super) segments: Vec<LoadSegment>,
    /// Where it is entered, within a segment.
    pub(super) entry: u32,
}

/// Reads the headers of `input` and refuses what could not boot in RAM that ends at `low_end`.
pub(super) fn parse(input: &mut Input, low_end: u64) -> Result<ElfKernel, BootError> {
    let headers = program_headers(input)?;
    let mut segments = Vec::new();
    let mut entry = None;
    let mut notes_left = NOTES_MAX;
    for header in headers {
        let (offset, file_bytes) = (header.p_offset, header.p_filesz);
        match header.p_type {
            PT_NOTE if entry.is_none() => {
                within_file(input, offset, file_bytes)?;
                let bytes = file_bytes.min(notes_left);
                notes_left -= bytes;
                entry = find_entry(&read(input, offset, bytes)?);
            }
            PT_LOAD if header.p_memsz > 0 => {
                let (address, bytes) = (header.p_paddr, header.p_memsz);
                within_file(input, offset, file_bytes)?;
                segments.push(LoadSegment { address, bytes, offset, file_bytes });
            }
            _ => {}
        }
    }
    let Some(entry) = entry else { return Err(BootError::NoPvhNote { path: input.path.clone() }) };
    segments.sort_unstable_by_key(|segment| segment.address);
    check(input, &segments, entry, low_end)?;
    Ok(ElfKernel { segments, entry })
}

/// Refuses segments (in ascending order) that do not fit, overlap, or do not hold `entry`.
fn check(
    input: &Input,
    segments: &[LoadSegment],
    entry: u32,
    low_end: u64,
) -> Result<(), BootError> {
    let malformed = |what| Err(BootError::Malformed { path: input.path.clone(), what });
    for segment in segments {
        let end = segment.address.checked_add(segment.bytes);
        let fits = segment.address >= KERNEL_MIN.0 && end.is_some_and(|end| end <= low_end);
        if !fits {
            let (path, LoadSegment { address, bytes, .. }) = (input.path.clone(), *segment);
            let room = (address >= KERNEL_MIN.0).then(|| Room::to_end_at(end));
            return Err(BootError::SegmentOutsideRam { path, address, bytes, low_end, room });
        }
        if segment.file_bytes > segment.bytes {
            return malformed("a segment is longer in the file than in memory");
        }
    }
    if segments.iter().zip(segments.iter().skip(1)).any(|(one, next)| one.end() > next.address) {
        return malformed("two of its segments overlap");
    }
    let entry = u64::from(entry);
    if !segments.iter().any(|segment| (segment.address..segment.end()).contains(&entry)) {
        return malformed("its entry point is in none of its segments");
    }
    Ok(())
}

fn program_headers(input: &mut Input) -> Result<Vec<Elf64_Phdr>, BootError> {
    let mut header = Elf64_Ehdr::default();
    if !input.read_at(0, header.as_mut_slice())? {
        let bytes = size_of::<Elf64_Ehdr>() as u64;
        return Err(BootError::Truncated { path: input.path.clone(), bytes, len: input.bytes });
    }
    let malformed = |what| BootError::Malformed { path: input.path.clone(), what };
    let ident = (header.e_ident.get(EI_CLASS), header.e_ident.get(EI_DATA));
    if ident != (Some(&ELFCLASS64), Some(&ELFDATA2LSB)) {
        return Err(malformed("it is not a 64-bit little-endian ELF"));
    }
    if header.e_machine != EM_X86_64 {
        return Err(malformed("it is not an ELF for x86-64"));
    }
    let entry_bytes = size_of::<Elf64_Phdr>();
    if usize::from(header.e_phentsize) != entry_bytes {
        return Err(malformed("its program headers have an unknown size"));
    }
    let table_bytes = u64::from(header.e_phnum) * u64::from(header.e_phentsize);
    within_file(input, header.e_phoff, table_bytes)?;
    let table = read(input, header.e_phoff, table_bytes)?;
    Ok(table.chunks_exact(entry_bytes).map(copied::<Elf64_Phdr>).collect())
}

/// The PVH entry point, if `notes` has it.
fn find_entry(mut notes: &[u8]) -> Option<u32> {
    loop {
        let (head, rest) = notes.split_at_checked(size_of::<Elf64_Nhdr>())?;
        let head: Elf64_Nhdr = copied(head);
        let (name, rest) = split_padded(rest, head.n_namesz)?;
        let (value, rest) = split_padded(rest, head.n_descsz)?;
        if head.n_type == PHYS32_ENTRY && name == b"Xen\0" {
            // 4 bytes or 8. A 32-bit address uses the first 4.
            return value.first_chunk().copied().map(u32::from_le_bytes);
        }
        notes = rest;
    }
}

/// The first `len` bytes, and what follows them after padding to a multiple of 4.
fn split_padded(bytes: &[u8], len: u32) -> Option<(&[u8], &[u8])> {
    let len = usize::try_from(len).ok()?;
    let (field, _) = bytes.split_at_checked(len)?;
    let rest = bytes.get(len.checked_next_multiple_of(4)?..).unwrap_or_default();
    Some((field, rest))
}

/// Refuses `bytes` at `offset` unless the file has them.
fn within_file(input: &Input, offset: u64, bytes: u64) -> Result<(), BootError> {
    let end = offset.saturating_add(bytes);
    if end > input.bytes {
        let (path, len) = (input.path.clone(), input.bytes);
        return Err(BootError::Truncated { path, bytes: end, len });
    }
    Ok(())
}

/// `bytes` at `offset`; the caller has bounded them.
fn read(input: &mut Input, offset: u64, bytes: u64) -> Result<Vec<u8>, BootError> {
    let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
    if input.read_at(offset, &mut buffer)? {
        Ok(buffer)
    } else {
        let path = input.path.clone();
        Err(BootError::Truncated { path, bytes: offset.saturating_add(bytes), len: input.bytes })
    }
}

/// A structure from its bytes. There are exactly as many as it has.
fn copied<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    value.as_mut_slice().iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    value
}
