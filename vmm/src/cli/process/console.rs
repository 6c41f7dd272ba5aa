//! The terminal as the guest's serial console: raw mode, and the key sequences that sevferry handles itself.

use std::io::{Error as IoError, stdin};
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use log::{debug, info, warn};
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

use super::typed::Typed;
use crate::control::Event;
use crate::devices::SerialPort;
use crate::stream::read;

/// How long to wait for a guest that takes no input once the queue is full. After that, bytes are lost: the next keys
/// may be sevferry's own.
const PATIENCE: Duration = Duration::from_secs(1);

/// Ctrl-A, which starts our own key sequences.
const PREFIX: u8 = 0x01;

/// What Ctrl-A h prints.
const HELP: &str = "\r\nCtrl-A x  end the guest and sevferry\r\n\
                    Ctrl-A r  report page status\r\n\
                    Ctrl-A h  this help\r\n\
                    Ctrl-A Ctrl-A  send Ctrl-A\r\n";

/// Standard input in raw mode for as long as this lives.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// `None` if standard input is not a terminal.
    pub(crate) fn enter() -> Result<Option<Self>, IoError> {
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
pub(crate) struct Console(Arc<Attached>);

#[derive(Debug, Default)]
struct Attached {
    port: Mutex<Option<Arc<SerialPort>>>,
    changed: Condvar,
}

impl Console {
    /// Input goes to `port` from now on.
    pub(crate) fn attach(&self, port: Option<Arc<SerialPort>>) {
        *self.0.port.lock().unwrap_or_else(PoisonError::into_inner) = port;
        self.0.changed.notify_all();
    }

    fn is_attached(&self, port: &Arc<SerialPort>) -> bool {
        let now = self.0.port.lock().unwrap_or_else(PoisonError::into_inner);
        now.as_ref().is_some_and(|now| Arc::ptr_eq(now, port))
    }

    /// The port of the machine that runs, once one does.
    fn wait_for_port(&self) -> Arc<SerialPort> {
        let mut port = self.0.port.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(port) = &*port {
                return Arc::clone(port);
            }
            port = self.0.changed.wait(port).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads `input` and gives it to the guest, on two threads, which end with the process.
    ///
    /// With `keys`, Ctrl-A sequences are for sevferry, whatever the guest does. Without (a pipe), every byte is for the
    /// guest, and waits until the guest takes it.
    pub(crate) fn read_input(
        &self,
        input: impl AsFd + Send + 'static,
        events: Sender<Event>,
        keys: bool,
    ) -> Result<(), IoError> {
        let typed = Arc::new(Typed::new(keys.then_some(PATIENCE)));
        let (console, taken) = (self.clone(), Arc::clone(&typed));
        let feeder = move || {
            loop {
                console.give(&taken.take());
            }
        };
        Builder::new().name("console-input".to_owned()).spawn(feeder)?;
        let mut reader =
            KeyReader { keys: keys.then(Keys::default), typed, events, is_losing: false };
        let read_all = move || {
            let mut buffer = [0; 256];
            loop {
                match read(&input, &mut buffer) {
                    Ok(0) => return info!("end of input"),
                    Ok(count) => buffer.iter().take(count).for_each(|&byte| reader.hear(byte)),
                    Err(cause) => return warn!("input: {cause}; the guest gets no more of it"),
                }
            }
        };
        Builder::new().name("console".to_owned()).spawn(read_all).map(|_detached| ())
    }

    fn give(&self, bytes: &[u8]) {
        let port = self.wait_for_port();
        if let Err(cause) = port.receive(bytes, &|| !self.is_attached(&port)) {
            debug!("{cause}");
        }
    }
}

/// Separates the keys for the guest from those for sevferry.
struct KeyReader {
    /// `None` if all keys are for the guest.
    keys: Option<Keys>,
    typed: Arc<Typed>,
    events: Sender<Event>,
    /// Whether there was no room for the last byte.
    is_losing: bool,
}

impl KeyReader {
    fn hear(&mut self, byte: u8) {
        let key = self.keys.as_mut().map_or(KeyPress::Guest(byte), |keys| keys.press(byte));
        let sent = match key {
            KeyPress::Guest(byte) => {
                let is_lost = !self.typed.put(byte);
                if is_lost && !self.is_losing {
                    warn!("the guest takes no input: what is typed is lost until it does");
                }
                self.is_losing = is_lost;
                return;
            }
            KeyPress::Pending => return,
            KeyPress::Help => {
                eprint!("{HELP}");
                return;
            }
            KeyPress::Report => self.events.send(Event::Report),
            KeyPress::Quit => self.events.send(Event::Quit),
        };
        if sent.is_err() {
            debug!("nobody listens for keys any more");
        }
    }
}

/// What a byte from the terminal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyPress {
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
    fn press(&mut self, byte: u8) -> KeyPress {
        if !self.prefixed {
            self.prefixed = byte == PREFIX;
            return if self.prefixed { KeyPress::Pending } else { KeyPress::Guest(byte) };
        }
        self.prefixed = false;
        match byte {
            b'x' => KeyPress::Quit,
            b'r' => KeyPress::Report,
            PREFIX => KeyPress::Guest(PREFIX),
            _ => KeyPress::Help,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Write, pipe};
    use std::sync::mpsc::{Receiver, channel};

    use rustix::io::ioctl_fionbio;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::devices::SerialOutput;

    const LONG: Duration = Duration::from_secs(60);

    fn port() -> Arc<SerialPort> {
        let port = SerialPort::new(EventFd::new(0).unwrap(), SerialOutput::nowhere());
        Arc::new(port.unwrap())
    }

    /// A console that reads a pipe, as it reads a terminal with `keys`.
    fn console(keys: bool) -> (Console, PipeWriter, Receiver<Event>) {
        let ((reader, writer), (events, happened)) = (pipe().unwrap(), channel());
        // Another holder of it may do that at any time.
        ioctl_fionbio(&reader, true).unwrap();
        let console = Console::default();
        console.read_input(reader, events, keys).unwrap();
        (console, writer, happened)
    }

    /// What the guest reads next, once there is something.
    fn next(port: &SerialPort) -> u8 {
        let deadline = std::time::Instant::now() + LONG;
        while port.read(5) & 1 == 0 {
            assert!(std::time::Instant::now() < deadline, "no input");
            std::thread::yield_now();
        }
        port.read(0)
    }

    /// Our keys are heard whatever waits for a guest that never reads: more than its port holds, and more
    /// than is kept for it.
    #[test]
    fn our_keys_are_heard_when_the_guest_reads_nothing() {
        for unread in [100, 80 << 10] {
            let (console, mut keyboard, happened) = console(true);
            console.attach(Some(port()));
            keyboard.write_all(&vec![b'a'; unread]).unwrap();
            keyboard.write_all(b"\x01r\x01x").unwrap();
            for expected in ["Report", "Quit"] {
                let event = happened.recv_timeout(LONG).unwrap();
                assert_eq!(format!("{event:?}"), expected, "{unread}");
            }
        }
    }

    /// Input that is non-blocking is waited for, also by a guest that is not there yet; none of it is lost
    /// or turned round.
    #[test]
    fn input_reaches_the_guest_whole() {
        let (console, mut writer, _happened) = console(false);
        let text: Vec<u8> = (0..2000_u32).map(|i| i.to_le_bytes()[0]).collect();
        let (before, after) = text.split_at(700);
        writer.write_all(before).unwrap();
        let port = port();
        console.attach(Some(Arc::clone(&port)));
        let mut got: Vec<_> = before.iter().map(|_| next(&port)).collect();
        // By now the pipe is empty: a reader that took that for the end would read no more.
        writer.write_all(after).unwrap();
        got.extend(after.iter().map(|_| next(&port)));
        assert_eq!(got, text);
    }

    fn pressed(bytes: &[u8]) -> Vec<KeyPress> {
        let mut keys = Keys::default();
        bytes.iter().map(|&byte| keys.press(byte)).collect()
    }

    /// Everything but Ctrl-A goes to the guest, Ctrl-C too.
    #[test]
    fn plain_keys_are_the_guests() {
        assert_eq!(pressed(b"a\x03"), [KeyPress::Guest(b'a'), KeyPress::Guest(3)]);
    }

    /// Ctrl-A x ends, Ctrl-A Ctrl-A sends one Ctrl-A, and anything else explains.
    #[test]
    fn ctrl_a_starts_our_keys() {
        assert_eq!(pressed(b"\x01x"), [KeyPress::Pending, KeyPress::Quit]);
        assert_eq!(
            pressed(b"\x01\x01x"),
            [KeyPress::Pending, KeyPress::Guest(1), KeyPress::Guest(b'x')]
        );
        assert_eq!(pressed(b"\x01?b"), [KeyPress::Pending, KeyPress::Help, KeyPress::Guest(b'b')]);
    }
}
