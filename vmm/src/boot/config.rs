//! What to boot, and in what machine.

use std::path::Path;

use crate::page::RamLayout;

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
