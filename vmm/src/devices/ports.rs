//! The I/O port bus: which device answers which port.

use std::sync::{Arc, Mutex, PoisonError};

use super::power::{ACPI_PORT, I8042_PORT, KeyboardController, PowerEvent, acpi_write};
use super::serial::{COM1_PORT, SerialPort};

/// Registers of the UART.
const COM1_PORTS: u16 = 8;

/// Data port to command port of the keyboard controller.
const I8042_PORTS: u16 = 5;

/// All devices, by I/O port. A port that nobody has reads as ones and ignores writes, as on a PC.
#[derive(Debug)]
pub struct Ports {
    serial: Arc<SerialPort>,
    keyboard: Mutex<KeyboardController>,
}

/// Who answers a port.
enum Device {
    Serial(u8),
    Keyboard(u8),
    Acpi,
    Nobody,
}

impl Ports {
    /// The bus with `serial` as COM1.
    #[must_use]
    pub fn new(serial: Arc<SerialPort>) -> Self {
        Self { serial, keyboard: Mutex::new(KeyboardController::new()) }
    }

    /// The guest reads `data.len()` bytes at `port`; only single bytes reach a device.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            *byte = match device(port) {
                Device::Serial(offset) => self.serial.read(offset),
                Device::Keyboard(offset) => {
                    self.keyboard.lock().unwrap_or_else(PoisonError::into_inner).read(offset)
                }
                // Sleep status: nothing to wake from.
                Device::Acpi => 0,
                Device::Nobody => 0xff,
            };
        }
    }

    /// The guest writes at `port`; only single bytes reach a device.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<PowerEvent> {
        let [byte] = *data else { return None };
        match device(port) {
            Device::Serial(offset) => {
                self.serial.write(offset, byte);
                None
            }
            Device::Keyboard(offset) => {
                self.keyboard.lock().unwrap_or_else(PoisonError::into_inner).write(offset, byte)
            }
            Device::Acpi => acpi_write(byte),
            Device::Nobody => None,
        }
    }
}

fn device(port: u16) -> Device {
    let within = |first: u16, count: u16| {
        let offset = port.checked_sub(first).filter(|&offset| offset < count)?;
        u8::try_from(offset).ok()
    };
    if let Some(offset) = within(COM1_PORT, COM1_PORTS) {
        Device::Serial(offset)
    } else if let Some(offset) = within(I8042_PORT, I8042_PORTS).filter(|&at| at == 0 || at == 4) {
        Device::Keyboard(offset)
    } else if port == ACPI_PORT {
        Device::Acpi
    } else {
        Device::Nobody
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    fn ports() -> Ports {
        let interrupt = EventFd::new(0).unwrap();
        Ports::new(Arc::new(SerialPort::new(interrupt, Box::new(io::sink()))))
    }

    /// Every port takes every access size, and only the documented values ask for anything.
    #[test]
    fn any_access_to_any_port_is_harmless() {
        let ports = ports();
        for port in 0..=u16::MAX {
            for size in [0, 1, 2, 4, 4096] {
                let mut data = vec![0; size];
                ports.read(port, &mut data);
                assert_eq!(ports.write(port, &data), None, "port {port:#x} size {size}");
            }
        }
    }

    /// The two stop registers are where the ACPI tables and the PC put them.
    #[test]
    fn the_stop_registers_are_where_guests_look() {
        assert_eq!(ports().write(0x600, &[0x34]), Some(PowerEvent::PowerOff));
        assert_eq!(ports().write(0x600, &[1]), Some(PowerEvent::Reset));
        assert_eq!(ports().write(0x64, &[0xfe]), Some(PowerEvent::Reset));
        assert_eq!(ports().write(0x64, &[0xfe, 0]), None);
    }
}
