//! The pieces that both boot protocols need, and the place of the initramfs.

use vm_memory::GuestMemoryBackend;

use super::config::BootConfig;
use super::error::BootError;
use super::gdt::{self, Mode};
use super::input::Input;
use super::layout::{ACPI, COMMAND_LINE, COMMAND_LINE_MAX, GDT, PAGE_ZERO, RESET_PAGE};
use super::placement::Placement;
use super::room::Room;
use super::{acpi, reset, secret_table};
use crate::page::{Gpa, PAGE_SIZE};

/// Places what both boot protocols need. `cmdline_max` is the kernel's limit, without the NUL.
pub(super) fn place_common<M: GuestMemoryBackend>(
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
pub(super) fn initramfs_address(
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
