//! Every guest-physical address that we choose.
//!
//! ```text
//! 0x0000_0000  page zero: zeros, with the GDT at 0x500                 measured
//! 0x0000_1000  boot_params (bzImage) or hvm_start_info (PVH)           measured
//! 0x0000_2000  page tables, six pages (bzImage only)                   measured
//! 0x0000_8000  a page of stack, until the kernel has its own
//! 0x0001_0000  command line                                            measured
//! 0x0002_0000  conventional memory, free: Linux puts its real-mode
//!              code for starting processors here
//! 0x000a_0000  legacy hole: RAM behind it, but not offered to the guest
//! 0x000e_0000  ACPI tables, the RSDP first                             measured
//! 0x000e_f000  the guest owner's secrets, if any are injected
//! 0x000f_0000  legacy hole
//! 0x000f_f000  its last page, with the reset vector at 0xffff0 and,
//!              below it, the table that names the secret page          measured
//! 0x0010_0000  free for kernels: a bzImage goes where it prefers
//!              (16 MiB), an ELF where its segments say                 measured
//!              ...
//!              the initramfs, as high as the kernel allows             measured
//! 0xc000_0000  end of low RAM at the latest; from here the BARs of PCI devices
//! 0xe000_0000  configuration space of the PCI bus; then interrupt controllers, up to 4 GiB
//! 0x1_0000_0000  the rest of RAM; nothing is loaded here
//! ```
//!
//! Where RAM itself lies is [`RamLayout`](crate::page::RamLayout)'s decision.

use crate::devices::pci::PciLayout;
use crate::page::{Gpa, PAGE_SIZE};

/// Page zero. Measured even where it is zeros, because Linux reads the BIOS data area in it.
pub const PAGE_ZERO: Gpa = Gpa(0);

/// Global descriptor table, in page zero.
pub const GDT: Gpa = Gpa(0x500);

/// `boot_params` of the Linux boot protocol, one page.
pub const BOOT_PARAMS: Gpa = Gpa(0x1000);

/// `hvm_start_info` of the PVH protocol; the module list and memory map follow in the same page.
pub const START_INFO: Gpa = Gpa(0x1000);

/// The one entry of the PVH module list, the initramfs.
pub const MODULE_LIST: Gpa = Gpa(0x1100);

/// PVH memory map.
pub const MEMORY_MAP: Gpa = Gpa(0x1200);

/// Page tables: PML4, one page directory pointer table, four page directories.
pub const PAGE_TABLES: Gpa = Gpa(0x2000);

/// Pages of [`PAGE_TABLES`].
pub const PAGE_TABLES_PAGES: u64 = 6;

/// Where the stack of the 64-bit entry starts; it grows down through one page. Not measured.
pub const STACK_TOP: Gpa = Gpa(0x9000);

/// Command line, NUL terminated.
pub const COMMAND_LINE: Gpa = Gpa(0x1_0000);

/// Most bytes of command line including the NUL, whatever the kernel would take.
pub const COMMAND_LINE_MAX: u64 = 0x1_0000;

/// Where conventional memory ends and the legacy hole starts.
pub const CONVENTIONAL_END: Gpa = Gpa(0xa_0000);

/// ACPI tables; the RSDP is at this very address.
pub const ACPI: Gpa = Gpa(0xe_0000);

/// Bytes set aside for ACPI tables.
pub const ACPI_MAX: u64 = 0xf000;

/// Where the guest owner's secrets go, unless they say otherwise: one page. It is not measured, and the
/// memory map has it in one entry with the ACPI tables, because Linux maps an entry of that kind as
/// private.
pub const SECRET_PAGE: Gpa = Gpa(0xe_f000);

/// The page of [`RESET_VECTOR`].
pub const RESET_PAGE: Gpa = Gpa(0xf_f000);

/// Where a PC starts after a reset, in real mode, and where Linux jumps to reset one.
pub const RESET_VECTOR: Gpa = Gpa(0xf_fff0);

/// Where the legacy hole ends: nothing of a kernel or initramfs lies below.
pub const KERNEL_MIN: Gpa = Gpa(0x10_0000);

/// How much the page tables map from address 0: all that is ever loaded, and the device hole.
pub const IDENTITY_MAPPED: u64 = 4 << 30;

/// The PCI bus: configuration space, and the window that BARs are in.
pub const PCI: PciLayout =
    PciLayout { ecam: Gpa(0xe000_0000), window: Gpa(0xc000_0000), window_bytes: 0x2000_0000 };

/// Local APIC of every processor.
pub const LOCAL_APIC: Gpa = Gpa(0xfee0_0000);

/// The I/O APIC.
pub const IO_APIC: Gpa = Gpa(0xfec0_0000);

const _: () = assert!(STACK_TOP.0 >= PAGE_TABLES.0 + (PAGE_TABLES_PAGES + 1) * PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci::ECAM_BYTES;
    use crate::page::{HIGH_RAM_START, LOW_RAM_END};

    /// No two things share a byte, and what is mapped covers all low RAM.
    #[test]
    fn nothing_overlaps() {
        let mut areas = [
            (PAGE_ZERO.0, PAGE_SIZE),
            (BOOT_PARAMS.0, PAGE_SIZE),
            (PAGE_TABLES.0, PAGE_TABLES_PAGES * PAGE_SIZE),
            (STACK_TOP.0 - PAGE_SIZE, PAGE_SIZE),
            (COMMAND_LINE.0, COMMAND_LINE_MAX),
            (CONVENTIONAL_END.0, 0x4_0000),
            (RESET_PAGE.0, PAGE_SIZE),
            (ACPI.0, ACPI_MAX),
            (SECRET_PAGE.0, PAGE_SIZE),
            (KERNEL_MIN.0, LOW_RAM_END.0 - KERNEL_MIN.0),
            (PCI.window.0, PCI.window_bytes),
            (PCI.ecam.0, ECAM_BYTES),
            (IO_APIC.0, PAGE_SIZE),
            (LOCAL_APIC.0, PAGE_SIZE),
            (HIGH_RAM_START.0, PAGE_SIZE),
        ];
        areas.sort_unstable();
        for pair in areas.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:#x?}");
        }
        const { assert!(IDENTITY_MAPPED >= LOW_RAM_END.0) };
        assert_eq!(START_INFO.frame(), MODULE_LIST.frame());
        assert_eq!(START_INFO.frame(), MEMORY_MAP.frame());
        assert_eq!(PAGE_ZERO.frame(), GDT.frame());
        assert_eq!(RESET_PAGE.frame(), RESET_VECTOR.frame());
    }
}
