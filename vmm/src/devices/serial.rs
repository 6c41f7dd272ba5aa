//! COM1: vm-superio's UART on I/O ports 0x3F8 to 0x3FF.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::io::{Error as IoError, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::warn;
use thiserror::Error;
use vm_superio::serial::{Error as UartError, SerialEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// I/O port of the first register.
pub(super) const COM1_PORT: u16 = 0x3f8;

/// COM1's interrupt on the PC: ISA IRQ 4.
pub const COM1_IRQ: u32 = 4;

/// How long input waits at a time for the guest to drain the receive FIFO.
const DRAIN_WAIT: Duration = Duration::from_millis(100);

type Uart = Serial<Interrupt, Drained, Box<dyn Write + Send>>;

/// The serial port.
pub struct SerialPort {
    uart: Mutex<Uart>,
    drained: Arc<Condvar>,
    /// A guest that goes on writing to a full disk must not fill the log.
    complained: AtomicBool,
}

impl Debug for SerialPort {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl SerialPort {
    /// A port that raises `interrupt` and writes what the guest sends to `output`.
    #[must_use]
    pub fn new(interrupt: EventFd, output: Box<dyn Write + Send>) -> Self {
        let drained = Arc::new(Condvar::new());
        let events = Drained(Arc::clone(&drained));
        let uart = Serial::with_events(Interrupt(interrupt), events, output);
        Self { uart: Mutex::new(uart), drained, complained: AtomicBool::new(false) }
    }

    /// The guest reads a register.
    pub fn read(&self, offset: u8) -> u8 {
        self.lock().read(offset)
    }

    /// The guest writes a register. What the output refuses is lost, as on a cut cable, and the
    /// first loss is reported.
    pub fn write(&self, offset: u8, value: u8) {
        let written = self.lock().write(offset, value);
        if let Err(cause) = written
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            warn!("serial port: {cause}; output of the guest is lost (said once)");
        }
    }

    /// Gives the guest input, waiting while its receive FIFO is full.
    ///
    /// # Errors
    /// [`SerialError`] if `gone` becomes true while waiting, or the interrupt cannot be raised.
    pub fn receive(&self, mut input: &[u8], gone: &dyn Fn() -> bool) -> Result<(), SerialError> {
        let mut uart = self.lock();
        while !input.is_empty() {
            let room = uart.fifo_capacity().min(input.len());
            let (now, later) = input.split_at(room);
            if now.is_empty() {
                if gone() {
                    return Err(SerialError::Gone { unread: input.len() });
                }
                let waited = self.drained.wait_timeout(uart, DRAIN_WAIT);
                (uart, _) = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            uart.enqueue_raw_bytes(now).map_err(SerialError::Enqueue)?;
            input = later;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why input did not reach the guest.
#[derive(Debug, Error)]
pub enum SerialError {
    /// The guest is gone.
    #[error("the guest stopped with {unread} bytes of input unread")]
    Gone {
        /// Bytes that it did not take.
        unread: usize,
    },
    /// The interrupt could not be raised.
    #[error("giving input to the serial port")]
    Enqueue(#[source] UartError<IoError>),
}

/// IRQ 4, by the in-kernel interrupt controllers.
#[derive(Debug)]
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = IoError;

    fn trigger(&self) -> Result<(), IoError> {
        self.0.write(1)
    }
}

/// Tells waiting input that the guest has read all.
#[derive(Debug)]
struct Drained(Arc<Condvar>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread;

    use super::*;

    struct Output(Sender<u8>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> Result<usize, IoError> {
            bytes.iter().try_for_each(|&byte| self.0.send(byte)).map_err(IoError::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> Result<(), IoError> {
            Ok(())
        }
    }

    /// What the guest sends comes out, and input longer than the FIFO arrives whole and in order.
    #[test]
    fn bytes_pass_in_both_directions() {
        let (sender, sent) = channel();
        let interrupt = EventFd::new(0).unwrap();
        let port = SerialPort::new(interrupt, Box::new(Output(sender)));
        port.write(0, b'x');
        assert_eq!(sent.recv().unwrap(), b'x');
        let input: Vec<u8> = (0..200).collect();
        thread::scope(|scope| {
            let writer = scope.spawn(|| port.receive(&input, &|| false));
            let mut got = Vec::new();
            while got.len() < input.len() {
                if port.read(5) & 1 == 1 {
                    got.push(port.read(0));
                }
            }
            writer.join().unwrap().unwrap();
            assert_eq!(got, input);
        });
    }

    /// Input to a guest that never reads ends when the guest does.
    #[test]
    fn input_does_not_outlive_the_guest() {
        let interrupt = EventFd::new(0).unwrap();
        let port = SerialPort::new(interrupt, Box::new(std::io::sink()));
        let refused = port.receive(&[0; 100], &|| true).unwrap_err();
        assert!(matches!(refused, SerialError::Gone { unread: 36 }), "{refused:?}");
    }
}
