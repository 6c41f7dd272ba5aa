//! An ELF with a PVH note, entered in 32-bit mode without paging.
//!
//! The protocol is Xen's, `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`.

use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestMemoryBackend};

use super::config::BootConfig;
use super::e820::memory_map;
use super::elf::{LoadSegment, parse};
use super::entry::Entry;
use super::error::BootError;
use super::gdt::Mode;
use super::input::Input;
use super::layout::{ACPI, COMMAND_LINE, COMMAND_LINE_MAX, MEMORY_MAP, MODULE_LIST, START_INFO};
use super::pieces::{initramfs_address, place_common};
use super::placement::{Placement, end, pages_of};
use crate::page::{Gpa, PageRange};

/// Loads `kernel` and all that its PVH entry needs.
pub(super) fn load<M: GuestMemoryBackend>(
    placement: &mut Placement<'_, M>,
    mut input: Input,
    mut initramfs: Option<Input>,
    config: &BootConfig<'_>,
) -> Result<Entry, BootError> {
    let low_end = end(placement.low_ram());
    let kernel = parse(&mut input, low_end)?;
    place_common(placement, config, Mode::Protected, COMMAND_LINE_MAX - 1)?;
    let runs = page_runs(&kernel.segments);
    for run in &runs {
        placement.clear("kernel", run.start(), run.bytes())?;
    }
    for segment in &kernel.segments {
        let bytes = segment.offset..segment.offset.saturating_add(segment.file_bytes);
        placement.fill("kernel", Gpa(segment.address), &mut input, bytes)?;
    }
    let kernel_end = runs.last().map_or(0, |run| end(*run));
    let module = match &mut initramfs {
        Some(file) => {
            let gpa = initramfs_address(file, kernel_end, (low_end, u64::MAX))?;
            placement.place_file("initramfs", gpa, file)?;
            Some((gpa, file.bytes))
        }
        None => None,
    };
    placement.place("start info", START_INFO, &start_info(config, module))?;
    // A constant below 4 GiB.
    let rbx = u32::try_from(START_INFO.0).unwrap_or(0);
    Ok(Entry::Pvh { rip: kernel.entry, rbx })
}

/// The pages of `segments`, ascending; segments that share or adjoin pages are one run.
fn page_runs(segments: &[LoadSegment]) -> Vec<PageRange> {
    let mut runs: Vec<PageRange> = Vec::new();
    for segment in segments {
        let Some(pages) = pages_of(Gpa(segment.address), segment.bytes) else { continue };
        let joined = runs.pop_if(|run| run.limit() >= pages.base());
        let base = joined.map_or(pages.base(), PageRange::base);
        runs.extend(PageRange::new(base, pages.limit()));
    }
    runs
}

/// `hvm_start_info`, the module list and the memory map, as they lie from [`START_INFO`] on.
fn start_info(config: &BootConfig<'_>, module: Option<(Gpa, u64)>) -> Vec<u8> {
    let map: Vec<_> = memory_map(&config.ram)
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.address,
            size: entry.bytes,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: module.is_some().into(),
        modlist_paddr: if module.is_some() { MODULE_LIST.0 } else { 0 },
        cmdline_paddr: COMMAND_LINE.0,
        rsdp_paddr: ACPI.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    let mut bytes = info.as_slice().to_vec();
    let pad_to = |bytes: &mut Vec<u8>, gpa: Gpa| {
        bytes.resize(usize::try_from(gpa.0 - START_INFO.0).unwrap_or(0), 0);
    };
    pad_to(&mut bytes, MODULE_LIST);
    if let Some((gpa, size)) = module {
        let entry = hvm_modlist_entry { paddr: gpa.0, size, ..Default::default() };
        bytes.extend(entry.as_slice());
    }
    pad_to(&mut bytes, MEMORY_MAP);
    map.iter().for_each(|entry| bytes.extend(entry.as_slice()));
    bytes
}

const _: () = assert!(START_INFO.0 + size_of::<hvm_start_info>() as u64 <= MODULE_LIST.0);
const _: () = assert!(MODULE_LIST.0 + size_of::<hvm_modlist_entry>() as u64 <= MEMORY_MAP.0);
