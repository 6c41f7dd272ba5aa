//! The few devices of a guest: a serial port, and two ways to stop.
//!
//! A device never calls up: what a write asks of the machine is returned as a [`PowerEvent`].

mod ports;
mod power;
mod serial;

pub use ports::Ports;
pub use power::PowerEvent;
pub use serial::{COM1_IRQ, SerialError, SerialPort, SerialState};
