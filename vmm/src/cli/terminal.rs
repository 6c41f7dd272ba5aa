//! The terminal as the guest's serial console: raw mode, and the keys that are ours.

use std::io::{Error as IoError, Read, stdin};
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

use log::debug;
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

use crate::control::Event;
use crate::devices::SerialPort;

/// Ctrl-A, which starts our own key sequences.
const PREFIX: u8 = 0x01;

/// What Ctrl-A h prints.
const HELP: &str = "\r\nCtrl-A x  end the guest and sevferry\r\n\
                    Ctrl-A r  report page status\r\n\
                    Ctrl-A h  this help\r\n\
                    Ctrl-A Ctrl-A  send Ctrl-A\r\n";

/// Standard input in raw mode for as long as this lives.
#[derive(Debug)]
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// `None` if standard input is not a terminal.
    pub(super) fn enter() -> Result<Option<Self>, IoError> {
        let input = stdin();
        if !isatty(input.as_fd()) {
            return Ok(None);
        }
        let before = tcgetattr(input.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        // Our own messages end in a bare line feed.
        raw.output_modes.insert(OutputModes::OPOST | OutputModes::ONLCR);
        tcsetattr(input.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(cause) = tcsetattr(stdin().as_fd(), OptionalActions::Now, &self.before) {
            debug!("restoring the terminal: {cause}");
        }
    }
}

/// Where input goes: the serial port of the machine that runs now, if one does.
#[derive(Debug, Clone, Default)]
pub(super) struct Console(Arc<Mutex<Option<Arc<SerialPort>>>>);

impl Console {
    /// Input goes to `port` from now on.
    pub(super) fn attach(&self, port: Option<Arc<SerialPort>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = port;
    }

    fn port(&self) -> Option<Arc<SerialPort>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads standard input on a thread of its own, which ends with the process.
    ///
    /// With `keys`, Ctrl-A sequences are ours; without (a pipe), every byte is the guest's.
    pub(super) fn read_input(&self, events: Sender<Event>, keys: bool) -> Result<(), IoError> {
        let console = self.clone();
        let reader = move || {
            let mut keys = keys.then(Keys::default);
            let mut buffer = [0; 256];
            while let Ok(count @ 1..) = stdin().read(&mut buffer) {
                for &byte in buffer.iter().take(count) {
                    let key = keys.as_mut().map_or(Key::Guest(byte), |keys| keys.press(byte));
                    console.act(key, &events);
                }
            }
        };
        Builder::new().name("console".to_owned()).spawn(reader).map(|_detached| ())
    }

    fn act(&self, key: Key, events: &Sender<Event>) {
        let sent = match key {
            Key::Guest(byte) => {
                if let Some(port) = self.port() {
                    let gone = || self.port().is_none_or(|now| !Arc::ptr_eq(&now, &port));
                    if let Err(cause) = port.receive(&[byte], &gone) {
                        debug!("{cause}");
                    }
                }
                return;
            }
            Key::Pending => return,
            Key::Help => {
                eprint!("{HELP}");
                return;
            }
            Key::Report => events.send(Event::Report),
            Key::Quit => events.send(Event::Quit),
        };
        if sent.is_err() {
            debug!("nobody listens for keys any more");
        }
    }
}

/// What a byte from the terminal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Guest(u8),
    Pending,
    Help,
    Report,
    Quit,
}

/// Recognises Ctrl-A sequences.
#[derive(Debug, Default)]
struct Keys {
    prefixed: bool,
}

impl Keys {
    fn press(&mut self, byte: u8) -> Key {
        if !self.prefixed {
            self.prefixed = byte == PREFIX;
            return if self.prefixed { Key::Pending } else { Key::Guest(byte) };
        }
        self.prefixed = false;
        match byte {
            b'x' => Key::Quit,
            b'r' => Key::Report,
            PREFIX => Key::Guest(PREFIX),
            _ => Key::Help,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pressed(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        bytes.iter().map(|&byte| keys.press(byte)).collect()
    }

    /// Everything but Ctrl-A goes to the guest, Ctrl-C too.
    #[test]
    fn plain_keys_are_the_guests() {
        assert_eq!(pressed(b"a\x03"), [Key::Guest(b'a'), Key::Guest(3)]);
    }

    /// Ctrl-A x ends, Ctrl-A Ctrl-A sends one Ctrl-A, and anything else explains.
    #[test]
    fn ctrl_a_starts_our_keys() {
        assert_eq!(pressed(b"\x01x"), [Key::Pending, Key::Quit]);
        assert_eq!(pressed(b"\x01\x01x"), [Key::Pending, Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(pressed(b"\x01?b"), [Key::Pending, Key::Help, Key::Guest(b'b')]);
    }
}
