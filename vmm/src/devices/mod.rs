//! The devices of a guest: a serial port, two ways to stop, and what is on the PCI bus.
//!
//! A device never calls up: if a write asks the machine for something, it returns that as a [`PowerEvent`].

mod output;
pub mod pci;
mod ports;
mod power;
mod serial;
pub mod virtio;

pub use output::SerialOutput;
pub use ports::Ports;
pub use power::{ACPI_PORT, ACPI_RESET, PowerEvent};
pub use serial::{COM1_IRQ, COM1_PORT, SerialError, SerialPort, SerialState};
