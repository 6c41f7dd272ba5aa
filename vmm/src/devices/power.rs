//! Power-off and reset: ACPI's sleep and reset registers, and the keyboard controller's reset line.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};

use log::debug;
use vm_superio::{I8042Device, Trigger};

/// What the guest asks of the machine with a write to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Enter S5.
    PowerOff,
    /// Start again.
    Reset,
}

/// I/O port of ACPI's reset, sleep-control and sleep-status registers, one byte, as Cloud Hypervisor
/// has it.
pub const ACPI_PORT: u16 = 0x600;

/// What the guest writes to [`ACPI_PORT`] to reset: the FADT's reset value (ACPI 6.5, 4.8.3.6).
pub const ACPI_RESET: u8 = 1;

/// What the guest writes to [`ACPI_PORT`] to power off: `SLP_EN` and `SLP_TYP` 5, which the DSDT gives
/// for `_S5` (ACPI 6.5, 4.8.3.7).
const ACPI_S5: u8 = (1 << 5) | (5 << 2);

/// First I/O port of the keyboard controller.
pub(super) const I8042_PORT: u16 = 0x60;

/// A write to the ACPI register.
pub(super) fn acpi_write(value: u8) -> Option<PowerEvent> {
    match value {
        ACPI_RESET => Some(PowerEvent::Reset),
        ACPI_S5 => Some(PowerEvent::PowerOff),
        other => {
            debug!("write of {other:#x} to the ACPI register ignored");
            None
        }
    }
}

/// The keyboard controller. Only its CPU reset line works.
#[derive(Debug)]
pub(super) struct KeyboardController(I8042Device<ResetLine>);

impl KeyboardController {
    pub(super) fn new() -> Self {
        Self(I8042Device::new(ResetLine(AtomicBool::new(false))))
    }

    pub(super) fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    pub(super) fn write(&mut self, offset: u8, value: u8) -> Option<PowerEvent> {
        let Ok(()) = self.0.write(offset, value);
        let pulled = self.0.reset_evt().0.swap(false, Ordering::Relaxed);
        pulled.then_some(PowerEvent::Reset)
    }
}

#[derive(Debug)]
struct ResetLine(AtomicBool);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux's last resort on reboot pulses the reset line; other commands do nothing.
    #[test]
    fn the_keyboard_controller_resets_the_machine() {
        let mut controller = KeyboardController::new();
        assert_eq!(controller.write(4, 0xd1), None);
        assert_eq!(controller.write(4, 0xfe), Some(PowerEvent::Reset));
        assert_eq!(controller.write(4, 0xd1), None);
    }

    /// Only the two values that the ACPI tables announce mean anything.
    #[test]
    fn the_acpi_register_knows_two_values() {
        assert_eq!(acpi_write(1), Some(PowerEvent::Reset));
        assert_eq!(acpi_write(0x34), Some(PowerEvent::PowerOff));
        assert_eq!(acpi_write(0), None);
    }
}
