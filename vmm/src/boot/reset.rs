//! The code at the reset vector: it resets the machine.
//!
//! Linux takes hardware-reduced ACPI for a sign of EFI and then does not use ACPI's reset register:
//! it calls EFI and, without one, goes back to real mode and jumps to the BIOS. This is the BIOS.

use crate::devices::{ACPI_PORT, ACPI_RESET};

/// Real-mode code for [`RESET_VECTOR`](super::layout::RESET_VECTOR), at most 16 bytes.
pub(super) fn code() -> [u8; 9] {
    let [port_low, port_high] = ACPI_PORT.to_le_bytes();
    // mov dx, ACPI_PORT; mov al, ACPI_RESET; out dx, al; then hlt, for ever.
    [0xba, port_low, port_high, 0xb0, ACPI_RESET, 0xee, 0xf4, 0xeb, 0xfd]
}
