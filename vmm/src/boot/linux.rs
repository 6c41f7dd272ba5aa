//! A bzImage, entered at its 64-bit entry point.
//!
//! Facts are those of the Linux boot protocol, `Documentation/arch/x86/boot.rst`.
//! `linux-loader` copies the kernel; what it does not check is checked here.

use linux_loader::bootparam::{
    LOADED_HIGH, XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header,
};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend};

use super::config::BootConfig;
use super::e820::memory_map;
use super::entry::Entry;
use super::error::BootError;
use super::gdt::Mode;
use super::input::Input;
use super::layout::{ACPI, BOOT_PARAMS, COMMAND_LINE, KERNEL_MIN, PAGE_TABLES, STACK_TOP};
use super::page_tables::identity_map;
use super::pieces::{initramfs_address, place_common};
use super::placement::{Placement, end};
use super::room::Room;
use crate::page::{Gpa, PAGE_SIZE};

/// Where the setup header lies in the file and in `boot_params`.
const SETUP_HEADER: u64 = 0x1f1;

/// The magic number of the setup header.
pub(super) const MAGIC: [u8; 4] = *b"HdrS";

/// Where [`MAGIC`] lies in the file.
pub(super) const MAGIC_OFFSET: u64 = 0x202;

/// Where the file says how many bytes of header follow [`MAGIC_OFFSET`]: a jump over them.
const HEADER_LENGTH: u64 = 0x201;

/// The first protocol with `xloadflags`.
const OLDEST_PROTOCOL: u16 = 0x020c;

/// From the load address to the 64-bit entry point.
const ENTRY_64: u64 = 0x200;

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// A bzImage whose setup header was checked.
struct LinuxImage {
    header: setup_header,
    /// Where it is loaded.
    load: u64,
    /// One past what the kernel needs from `load` on until it has read its memory map.
    end: u64,
}

/// Loads `kernel` and all that its 64-bit entry needs.
pub(super) fn load<M: GuestMemoryBackend>(
    placement: &mut Placement<'_, M>,
    mut input: Input,
    mut initramfs: Option<Input>,
    config: &BootConfig<'_>,
) -> Result<Entry, BootError> {
    let low_end = end(placement.low_ram());
    let kernel = parse(&mut input, low_end)?;
    place_common(placement, config, Mode::Long, u64::from(kernel.header.cmdline_size))?;
    let tables = identity_map(config.c_bit);
    placement.place("page tables", PAGE_TABLES, &tables)?;

    let setup_bytes = setup_bytes(&kernel.header);
    placement.clear("kernel", Gpa(kernel.load), input.bytes - setup_bytes)?;
    let path = input.path.clone();
    BzImage::load(placement.memory(), Some(GuestAddress(kernel.load)), &mut input.file, None)
        .map_err(|cause| BootError::Loader { path, cause })?;

    let ramdisk = match &mut initramfs {
        Some(file) => {
            let highest = u64::from(kernel.header.initrd_addr_max).saturating_add(1);
            let gpa = initramfs_address(file, kernel.end, (low_end, highest))?;
            placement.place_file("initramfs", gpa, file)?;
            Some((gpa, file.bytes))
        }
        None => None,
    };
    let params = boot_params(&kernel, config, ramdisk);
    placement.place("boot_params", BOOT_PARAMS, params.as_slice())?;
    Ok(Entry::Linux64 {
        rip: kernel.load + ENTRY_64,
        rsi: BOOT_PARAMS.0,
        cr3: PAGE_TABLES.0,
        rsp: STACK_TOP.0,
    })
}

/// Reads the setup header and refuses what could not boot here.
fn parse(input: &mut Input, low_end: u64) -> Result<LinuxImage, BootError> {
    let header = read_header(input)?;
    let malformed = |what| BootError::Malformed { path: input.path.clone(), what };
    let version = header.version;
    if version < OLDEST_PROTOCOL {
        return Err(BootError::OldProtocol { path: input.path.clone(), version });
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(malformed("it is a zImage, which loads below 1 MiB"));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry { path: input.path.clone() });
    }
    let image = input.bytes.saturating_sub(setup_bytes(&header));
    let expected = u64::from(header.syssize) * 16;
    if image < expected || image <= ENTRY_64 {
        let bytes = setup_bytes(&header).saturating_add(expected);
        return Err(BootError::Truncated { path: input.path.clone(), bytes, len: input.bytes });
    }
    let (load, alignment) = (header.pref_address, u64::from(header.kernel_alignment));
    if load < KERNEL_MIN.0 || !load.is_multiple_of(alignment.max(PAGE_SIZE)) {
        return Err(malformed("its preferred address is below 1 MiB or not aligned"));
    }
    let needed = image.max(header.init_size.into());
    match load.checked_add(needed) {
        Some(end) if end <= low_end => Ok(LinuxImage { header, load, end }),
        end => {
            let (path, room) = (input.path.clone(), Room::to_end_at(end));
            Err(BootError::KernelTooLarge { path, load, needed, low_end, room })
        }
    }
}

/// The setup header as the file has it; what lies beyond its end is zero.
fn read_header(input: &mut Input) -> Result<setup_header, BootError> {
    let mut length = [0];
    let mut header = setup_header::default();
    let bytes = header.as_mut_slice();
    let whole = input.read_at(SETUP_HEADER, bytes)? && input.read_at(HEADER_LENGTH, &mut length)?;
    if !whole {
        let (path, len) = (input.path.clone(), input.bytes);
        return Err(BootError::Truncated { path, bytes: SETUP_HEADER + bytes.len() as u64, len });
    }
    let [length] = length;
    let used = usize::try_from(MAGIC_OFFSET + u64::from(length) - SETUP_HEADER);
    if let Ok(used) = used {
        bytes.iter_mut().skip(used).for_each(|byte| *byte = 0);
    }
    Ok(header)
}

/// Bytes of boot sector and real-mode code before the kernel proper. 0 sectors mean 4.
fn setup_bytes(header: &setup_header) -> u64 {
    let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
    (u64::from(sectors) + 1) * 512
}

/// The "zero page": the kernel's own header, completed by us, and the memory map.
fn boot_params(
    kernel: &LinuxImage,
    config: &BootConfig<'_>,
    ramdisk: Option<(Gpa, u64)>,
) -> boot_params {
    // Everything that we load is below 4 GiB.
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let mut params = boot_params { hdr: kernel.header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.code32_start = low(kernel.load);
    params.hdr.cmd_line_ptr = low(COMMAND_LINE.0);
    params.hdr.setup_data = 0;
    if let Some((gpa, bytes)) = ramdisk {
        params.hdr.ramdisk_image = low(gpa.0);
        params.hdr.ramdisk_size = low(bytes);
    }
    params.acpi_rsdp_addr = ACPI.0;
    for (slot, entry) in params.e820_table.iter_mut().zip(memory_map(&config.ram)) {
        *slot =
            boot_e820_entry { addr: entry.address, size: entry.bytes, r#type: entry.kind as u32 };
        params.e820_entries += 1;
    }
    params
}

const _: () = assert!(size_of::<boot_params>() as u64 == PAGE_SIZE);
