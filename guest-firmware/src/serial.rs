//! The first serial port, written by polling: no interrupts, no memory shared with the host.

use core::fmt::{Arguments, Result as FmtResult, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu;

const COM1: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const LINE_STATUS: u16 = COM1 + 5;

/// `LINE_STATUS`: a byte has arrived.
const DATA_READY: u8 = 1;
/// `LINE_STATUS`: the transmit FIFO is empty.
const TRANSMITTER_EMPTY: u8 = 0x20;
/// Bytes that an empty transmit FIFO takes.
const FIFO_BYTES: usize = 16;
/// Polls before a port that does not answer is written to all the same.
const MAX_POLLS: u32 = 100_000;

/// Eight bits, no parity, FIFOs on, no interrupts.
pub(crate) fn init() {
    cpu::out8(INTERRUPT_ENABLE, 0);
    cpu::out8(LINE_CONTROL, 3);
    cpu::out8(FIFO_CONTROL, 1);
}

/// Set while a processor writes a line.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Writes one line.
pub(crate) fn line(text: Arguments<'_>) {
    // Bounded: an exception may have ended the line that is being written.
    for _ in 0..MAX_POLLS {
        if !BUSY.swap(true, Ordering::Acquire) {
            break;
        }
        cpu::pause();
    }
    // The port never fails, so neither does writing to it.
    Port.write_fmt(text).and_then(|()| Port.write_str("\r\n")).unwrap_or_default();
    BUSY.store(false, Ordering::Release);
}

/// Whether a byte has arrived. Nobody takes it, so every processor sees it.
pub(crate) fn has_input() -> bool {
    cpu::in8(LINE_STATUS) & DATA_READY != 0
}

/// Waits for a byte, and takes it.
pub(crate) fn take_input() -> u8 {
    while !has_input() {
        cpu::pause();
    }
    cpu::in8(COM1)
}

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> FmtResult {
        for chunk in text.as_bytes().chunks(FIFO_BYTES) {
            for _ in 0..MAX_POLLS {
                if cpu::in8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                    break;
                }
            }
            for &byte in chunk {
                cpu::out8(COM1, byte);
            }
        }
        Ok(())
    }
}
