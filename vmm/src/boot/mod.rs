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
mod config;
mod e820;
mod elf;
mod entry;
mod error;
pub mod gdt;
mod input;
pub mod layout;
mod linux;
mod page_tables;
mod pieces;
mod placement;
mod pvh;
mod reset;
mod room;
mod secret_table;
#[cfg(test)]
mod tests;

use vm_memory::GuestMemoryBackend;

pub use config::BootConfig;
pub use entry::Entry;
pub use error::BootError;
pub use gdt::Segments;
use input::Input;
use layout::KERNEL_MIN;
pub use placement::Piece;
use placement::{Placement, end};
pub use room::Room;

/// What [`load`] has put into RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// In measuring order: ascending, disjoint, within low RAM.
    pub pieces: Vec<Piece>,
    /// How the first processor starts.
    pub entry: Entry,
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
