//! The few devices of a guest: a serial port, and two ways to stop.
//!
//! A device never calls up: if a write asks the machine for something, it returns that as a [`PowerEvent`].

mod output;
mod ports;
mod power;
mod serial;

pub use output::SerialOutput;
pub use ports::Ports;
pub use power::{ACPI_PORT, ACPI_RESET, PowerEvent};
pub use serial::{COM1_IRQ, COM1_PORT, SerialError, SerialPort, SerialState};
