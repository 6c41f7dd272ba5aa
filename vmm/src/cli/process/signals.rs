//! The signals of a guest's process, as events: most end the guest in order.

use std::io::Error as IoError;
use std::sync::mpsc::Sender;
use std::thread::Builder;

use libc::{SIGPWR, SIGRTMAX, SIGRTMIN, SIGSTKFLT};
use log::debug;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM};
use signal_hook::consts::{SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::control::Event;

/// Signals that would end the process at once, and leave the terminal raw and the sockets behind. Instead they end the
/// guest in order. Signals of a faulty program (such as SIGSEGV) are not among them. SIGPWR and SIGSTKFLT have no names
/// in `signal_hook`.
const ENDING: [i32; 12] = [
    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXCPU, SIGPWR,
    SIGSTKFLT,
];

/// [`ENDING`] and the real-time signals end the guest, except the first real-time signal, which makes vCPUs leave the
/// guest. SIGUSR1 asks for a report. SIGXFSZ is ignored, because it would end the process: if a file may not grow any
/// more, only the write to it fails.
pub(crate) fn forward_signals(events: Sender<Event>) -> Result<(), IoError> {
    let real_time = SIGRTMIN() + 1..=SIGRTMAX();
    let mut signals = Signals::new(ENDING.into_iter().chain(real_time).chain([SIGUSR1, SIGXFSZ]))?;
    let forward = move || {
        for signal in signals.forever() {
            debug!("signal {signal}");
            let event = match signal {
                SIGXFSZ => continue,
                SIGUSR1 => Event::Report,
                _ => Event::Quit,
            };
            if events.send(event).is_err() {
                return;
            }
        }
    };
    Builder::new().name("signals".to_owned()).spawn(forward).map(|_detached| ())
}
