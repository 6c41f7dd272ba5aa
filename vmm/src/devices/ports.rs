//! The I/O port bus: which device answers which port.

use std::iter::repeat;
use std::sync::{Arc, Mutex, PoisonError};

use super::power::{ACPI_PORT, I8042_PORT, KeyboardController, PowerEvent, acpi_write};
use super::serial::{COM1_PORT, SerialPort};

/// Registers of the UART.
const COM1_PORTS: u16 = 8;

/// Data port to command port of the keyboard controller.
const I8042_PORTS: u16 = 5;

/// All devices, by I/O port. A port without a device reads as ones and ignores writes, as on a PC.
///
/// All devices have 8 bits: a wider access goes to as many ports in a row, the lowest first.
#[derive(Debug)]
pub struct Ports {
    serial: Arc<SerialPort>,
    keyboard: Mutex<KeyboardController>,
}

/// The device that answers a port.
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

    /// The guest reads `size` bytes at `port` again and again, until `data` is full.
    pub fn read(&self, port: u16, size: usize, data: &mut [u8]) {
        for access in data.chunks_mut(size.max(1)) {
            for (byte, port) in access.iter_mut().zip(ports_from(port)) {
                *byte = port.map_or(0xff, |port| self.read_byte(port));
            }
        }
    }

    /// The guest writes `size` bytes of `data` at `port`, then the next ones, until there are none, or
    /// one of them stops the machine.
    pub fn write(&self, port: u16, size: usize, data: &[u8]) -> Option<PowerEvent> {
        let accesses = data.chunks(size.max(1));
        let mut bytes = accesses.flat_map(|access| access.iter().zip(ports_from(port)));
        bytes.find_map(|(&byte, port)| self.write_byte(port?, byte))
    }

    fn read_byte(&self, port: u16) -> u8 {
        match device(port) {
            Device::Serial(offset) => self.serial.read(offset),
            Device::Keyboard(offset) => {
                self.keyboard.lock().unwrap_or_else(PoisonError::into_inner).read(offset)
            }
            // Sleep status: nothing to wake from.
            Device::Acpi => 0,
            Device::Nobody => 0xff,
        }
    }

    fn write_byte(&self, port: u16, byte: u8) -> Option<PowerEvent> {
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

    /// Ends the wait of a vCPU for a reader of the guest's output, because the guest is to end.
    pub fn cut_output(&self) {
        self.serial.cut_output();
    }
}

/// `first` and the ports after it; `None` beyond the last.
fn ports_from(first: u16) -> impl Iterator<Item = Option<u16>> {
    (first..=u16::MAX).map(Some).chain(repeat(None))
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
    use vmm_sys_util::eventfd::EventFd;

    use super::super::output::SerialOutput;
    use super::*;

    fn ports() -> Ports {
        let interrupt = EventFd::new(0).unwrap();
        let serial = SerialPort::new(interrupt, SerialOutput::nowhere()).unwrap();
        Ports::new(Arc::new(serial))
    }

    fn read(ports: &Ports, port: u16, size: usize, count: usize) -> Vec<u8> {
        let mut data = vec![0; size * count];
        ports.read(port, size, &mut data);
        data
    }

    /// Every port takes every access size and count, and only the documented values ask for anything.
    #[test]
    fn any_access_to_any_port_is_harmless() {
        let ports = ports();
        for port in 0..=u16::MAX {
            for (size, len) in [(1, 0), (1, 1), (2, 2), (4, 4), (1, 3), (2, 6), (4, 8), (0, 2)] {
                let mut data = vec![0; len];
                ports.read(port, size, &mut data);
                assert_eq!(ports.write(port, size, &vec![0; len]), None, "{port:#x} size {size}");
            }
        }
        assert_eq!(read(&ports, 0x3ff, 1, 4096), [0; 4096]);
    }

    /// A string instruction is as many accesses as it says: each reads the register, and each write
    /// reaches it.
    #[test]
    fn an_access_is_repeated_as_often_as_it_is_counted() {
        let ports = ports();
        ports.serial.receive(b"abc", &|| false).unwrap();
        assert_eq!(read(&ports, COM1_PORT, 1, 3), b"abc");
        assert_eq!(ports.write(COM1_PORT + 7, 1, b"123"), None);
        assert_eq!(read(&ports, COM1_PORT + 7, 1, 5), b"33333");
        assert_eq!(ports.write(0x64, 1, &[0, 0xfe, 0]), Some(PowerEvent::Reset));
    }

    /// A wide access is one to the ports in a row: registers, and ones where nobody is.
    #[test]
    fn a_wide_access_is_split_over_the_ports_in_a_row() {
        let ports = ports();
        let (modem_control, scratch) = (COM1_PORT + 4, COM1_PORT + 7);
        assert_eq!(ports.write(modem_control, 4, &[0x0b, 0, 0, 0x5a]), None);
        let single: Vec<_> =
            (modem_control..).take(4).flat_map(|p| read(&ports, p, 1, 1)).collect();
        assert_eq!((single[0], single[3]), (0x0b, 0x5a));
        assert_eq!(read(&ports, modem_control, 4, 1), single);
        assert_eq!(read(&ports, modem_control, 2, 2), [&single[..2], &single[..2]].concat());
        assert_eq!(read(&ports, scratch, 2, 2), [0x5a, 0xff, 0x5a, 0xff]);
        assert_eq!(read(&ports, COM1_PORT - 2, 2, 1), [0xff, 0xff]);
        assert_eq!(read(&ports, u16::MAX, 4, 1), [0xff; 4]);
        assert_eq!(ports.write(ACPI_PORT - 1, 2, &[0, 0x34]), Some(PowerEvent::PowerOff));
    }

    /// The two stop registers are where the ACPI tables and the PC put them.
    #[test]
    fn the_stop_registers_are_where_guests_look() {
        assert_eq!(ports().write(0x600, 1, &[0x34]), Some(PowerEvent::PowerOff));
        assert_eq!(ports().write(0x600, 1, &[1]), Some(PowerEvent::Reset));
        assert_eq!(ports().write(0x64, 1, &[0xfe]), Some(PowerEvent::Reset));
        assert_eq!(ports().write(0x64, 2, &[0xfe, 0]), Some(PowerEvent::Reset));
        assert_eq!(ports().write(0x65, 1, &[0xfe]), None);
    }
}
