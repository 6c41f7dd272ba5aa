//! Guest-physical memory outside this program's own image, one access at a time.
//!
//! Nothing that Rust knows of lives there, so any access is sound; the image itself is refused.
//! One instruction per access also serves device registers.
#![expect(unsafe_code, reason = "the one file that reads and writes memory by address")]

use core::arch::asm;

use crate::symbols;

/// Reads a byte.
pub(crate) fn read8(address: u64) -> u8 {
    let value;
    let address = outside_image(address, 1);
    // SAFETY: no Rust object lives at the address.
    unsafe {
        asm!("mov {}, byte ptr [{}]", out(reg_byte) value, in(reg) address, options(nostack));
    }
    value
}

/// Reads four bytes.
pub(crate) fn read32(address: u64) -> u32 {
    let value;
    let address = outside_image(address, 4);
    // SAFETY: no Rust object lives at the address.
    unsafe { asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Reads eight bytes.
pub(crate) fn read64(address: u64) -> u64 {
    let value;
    let address = outside_image(address, 8);
    // SAFETY: no Rust object lives at the address.
    unsafe { asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Writes a byte.
pub(crate) fn write8(address: u64, value: u8) {
    let address = outside_image(address, 1);
    // SAFETY: no Rust object lives at the address.
    unsafe { asm!("mov byte ptr [{}], {}", in(reg) address, in(reg_byte) value, options(nostack)) };
}

/// Writes four bytes.
pub(crate) fn write32(address: u64, value: u32) {
    let address = outside_image(address, 4);
    // SAFETY: no Rust object lives at the address.
    unsafe { asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) value, options(nostack)) };
}

/// Writes eight bytes.
pub(crate) fn write64(address: u64, value: u64) {
    let address = outside_image(address, 8);
    // SAFETY: no Rust object lives at the address.
    unsafe { asm!("mov qword ptr [{}], {}", in(reg) address, in(reg) value, options(nostack)) };
}

/// Sets bits of eight bytes, of which other processors change others at the same time.
pub(crate) fn set_bits(address: u64, bits: u64) {
    let address = outside_image(address, 8);
    // SAFETY: no Rust object lives at the address.
    unsafe {
        asm!("lock or qword ptr [{}], {}", in(reg) address, in(reg) bits, options(nostack));
    }
}

/// Clears bits of eight bytes, of which other processors change others at the same time.
pub(crate) fn clear_bits(address: u64, bits: u64) {
    let address = outside_image(address, 8);
    // SAFETY: no Rust object lives at the address.
    unsafe {
        asm!("lock and qword ptr [{}], {}", in(reg) address, in(reg) !bits, options(nostack));
    }
}

/// The address, if an access of `size` bytes there stays out of the image.
fn outside_image(address: u64, size: u64) -> u64 {
    let image = symbols::image();
    let last = address.saturating_add(size - 1);
    assert!(last < image.start || address >= image.end, "access to the image at {address:#x}");
    address
}
