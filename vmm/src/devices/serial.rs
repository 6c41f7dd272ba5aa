//! COM1: vm-superio's UART on I/O ports 0x3F8 to 0x3FF.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::io::Error as IoError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{debug, warn};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_superio::serial::{Error as UartError, SerialEvents, SerialState as UartState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::output::{OutputLine, SerialOutput};

/// I/O port of the first register.
pub const COM1_PORT: u16 = 0x3f8;

/// COM1's interrupt on the PC: ISA IRQ 4.
pub const COM1_IRQ: u32 = 4;

/// How long input waits at a time for the guest to drain the receive FIFO.
const DRAIN_WAIT: Duration = Duration::from_millis(100);

type Uart = Serial<Interrupt, Drained, OutputLine>;

/// The serial port.
pub struct SerialPort {
    uart: Mutex<Uart>,
    interrupt: Arc<EventFd>,
    drained: Arc<Condvar>,
    line: OutputLine,
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
    ///
    /// # Errors
    /// If the host has no descriptor to give.
    pub fn new(interrupt: EventFd, output: SerialOutput) -> Result<Self, IoError> {
        let line = OutputLine::new(output)?;
        let (interrupt, drained) = (Arc::new(interrupt), Arc::new(Condvar::new()));
        let (trigger, events) = (Interrupt(Arc::clone(&interrupt)), Drained(Arc::clone(&drained)));
        let uart = Mutex::new(Serial::with_events(trigger, events, line.clone()));
        Ok(Self { uart, interrupt, drained, line, complained: AtomicBool::new(false) })
    }

    /// Ends the wait of a vCPU for a reader of the output, from now on, because the guest is to end.
    pub fn cut_output(&self) {
        // Without the lock, because that vCPU holds it.
        if let Err(cause) = self.line.cut() {
            debug!("cutting the serial port's output: {cause}");
        }
    }

    /// The registers, and the input that the guest has not read yet.
    #[must_use]
    pub fn save(&self) -> SerialState {
        SerialState::from(self.lock().state())
    }

    /// Gives the port `state`; its output stays where it is. Raises the interrupt again if one is
    /// pending, so the interrupt controllers come before it.
    ///
    /// # Errors
    /// [`SerialError::Restore`] if there is more input than the port can hold, or the interrupt
    /// cannot be raised.
    pub fn restore(&self, state: SerialState) -> Result<(), SerialError> {
        let trigger = Interrupt(Arc::clone(&self.interrupt));
        let events = Drained(Arc::clone(&self.drained));
        *self.lock() = Serial::from_state(&state.into(), trigger, events, self.line.clone())
            .map_err(SerialError::Restore)?;
        Ok(())
    }

    /// The guest reads a register.
    pub fn read(&self, offset: u8) -> u8 {
        self.lock().read(offset)
    }

    /// The guest writes a register. Bytes that the output refuses are lost, as on a cut cable, and the first loss is
    /// reported.
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

/// The state of a [`SerialPort`]: its registers by the names that the 16550 gives them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    divisor: [u8; 2],
    ier: u8,
    iir: u8,
    lcr: u8,
    lsr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    unread: Vec<u8>,
}

impl From<UartState> for SerialState {
    fn from(uart: UartState) -> Self {
        Self {
            divisor: [uart.baud_divisor_low, uart.baud_divisor_high],
            ier: uart.interrupt_enable,
            iir: uart.interrupt_identification,
            lcr: uart.line_control,
            lsr: uart.line_status,
            mcr: uart.modem_control,
            msr: uart.modem_status,
            scr: uart.scratch,
            unread: uart.in_buffer,
        }
    }
}

impl From<SerialState> for UartState {
    fn from(state: SerialState) -> Self {
        let [baud_divisor_low, baud_divisor_high] = state.divisor;
        Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.ier,
            interrupt_identification: state.iir,
            line_control: state.lcr,
            line_status: state.lsr,
            modem_control: state.mcr,
            modem_status: state.msr,
            scratch: state.scr,
            in_buffer: state.unread,
        }
    }
}

/// Why input or state did not reach the port.
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
    /// The state is invalid, or the interrupt could not be raised.
    #[error("restoring the serial port")]
    Restore(#[source] UartError<IoError>),
}

/// IRQ 4, by the in-kernel interrupt controllers.
#[derive(Debug)]
struct Interrupt(Arc<EventFd>);

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
    use std::io::{PipeReader, Read, pipe};
    use std::sync::mpsc::channel;
    use std::thread;

    use rustix::io::{ioctl_fionbio, write};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A port that nobody listens to.
    fn silent() -> SerialPort {
        SerialPort::new(EventFd::new(0).unwrap(), SerialOutput::nowhere()).unwrap()
    }

    /// A port, and what it sends.
    fn connected(interrupt: EventFd) -> (SerialPort, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        (SerialPort::new(interrupt, SerialOutput::to(writer)).unwrap(), reader)
    }

    fn next(sent: &mut PipeReader) -> u8 {
        let mut byte = [0];
        sent.read_exact(&mut byte).unwrap();
        byte[0]
    }

    /// What the guest sends comes out, and input longer than the FIFO arrives whole and in order.
    #[test]
    fn bytes_pass_in_both_directions() {
        let (port, mut sent) = connected(EventFd::new(0).unwrap());
        port.write(0, b'x');
        assert_eq!(next(&mut sent), b'x');
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

    /// A port goes on where another one was saved: the input that was not read is there, its
    /// interrupt is raised again, and output goes to the new place.
    #[test]
    fn a_restored_port_goes_on_where_the_saved_one_was() {
        let old = silent();
        old.write(1, 1);
        old.write(7, 0x5a);
        old.receive(b"bc", &|| false).unwrap();

        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let raised = interrupt.try_clone().unwrap();
        let (new, mut sent) = connected(interrupt);
        new.restore(old.save()).unwrap();
        assert_eq!(raised.read().unwrap(), 1);
        assert_eq!(new.save(), old.save());
        assert_eq!((new.read(7), new.read(0), new.read(0)), (0x5a, b'b', b'c'));
        new.write(0, b'x');
        assert_eq!(next(&mut sent), b'x');

        let full = SerialState { unread: vec![0; 65], ..old.save() };
        assert!(matches!(new.restore(full), Err(SerialError::Restore(_))));
    }

    /// Input to a guest that never reads ends when the guest does.
    #[test]
    fn input_does_not_outlive_the_guest() {
        let refused = silent().receive(&[0; 100], &|| true).unwrap_err();
        assert!(matches!(refused, SerialError::Gone { unread: 36 }), "{refused:?}");
    }

    /// Another holder of the output may have made it non-blocking. A reader that is slower than the guest still gets
    /// all of it.
    #[test]
    fn a_slow_reader_of_a_non_blocking_output_loses_nothing() {
        let (mut reader, writer) = pipe().unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        let filled = (0..).take_while(|_| write(&writer, b".").is_ok()).count();
        let port = SerialPort::new(EventFd::new(0).unwrap(), SerialOutput::to(writer)).unwrap();
        let (sender, done) = channel();
        let guest = thread::spawn(move || {
            (0..=255).for_each(|byte| port.write(0, byte));
            drop(port);
            sender.send(())
        });
        // It waits: nobody has read yet.
        done.recv_timeout(Duration::from_millis(50)).unwrap_err();
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        guest.join().unwrap().unwrap();
        assert!(got[filled..].iter().copied().eq(0..=255), "{:?}", &got[filled..]);
    }

    /// A vCPU may wait for a reader that never reads. Cutting the output ends that wait, and no later
    /// write waits.
    #[test]
    fn a_vcpu_does_not_wait_for_an_output_that_is_cut() {
        let (reader, writer) = pipe().unwrap();
        let port = SerialPort::new(EventFd::new(0).unwrap(), SerialOutput::to(writer)).unwrap();
        let port = Arc::new(port);
        let (sender, done) = channel();
        let vcpu = Arc::clone(&port);
        thread::spawn(move || {
            // More than any pipe holds.
            (0..200_000).for_each(|_| vcpu.write(0, b'x'));
            sender.send(())
        });
        done.recv_timeout(Duration::from_millis(50)).unwrap_err();
        port.cut_output();
        done.recv_timeout(PATIENCE).unwrap();
        drop(reader);
    }
}
