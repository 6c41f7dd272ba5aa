//! `sevferry run`: boots a guest and is its console until it ends.

use std::fs::File;
use std::io::{Error as IoError, Write, sink, stdout};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;

use log::{debug, info};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use thiserror::Error;

use super::arguments::{ReportFormat, RunOptions};
use super::exit::Ending;
use super::report;
use super::terminal::{Console, RawTerminal};
use crate::machine::config::{PlatformKind, Serial, SevConfig};
use crate::machine::{Config, Event, Machine, MachineError, Report, RunningMachine};
use crate::vcpu::{Stop, VcpuError};

/// Printed whenever the software platform is used.
const SOFTWARE_WARNING: &str = "the software SEV platform gives NO confidentiality: it is for \
     development and tests, and its keys live in this process";

/// Boots `config` and stays until the guest or the user ends it.
///
/// # Errors
/// [`RunError`].
pub(super) fn run(config: &Config, options: &RunOptions) -> Result<Ending, RunError> {
    if let Some(SevConfig { platform: PlatformKind::Software { .. }, .. }) = config.sev {
        eprintln!("sevferry: warning: {SOFTWARE_WARNING}");
    }
    let (events, happened) = channel();
    forward_signals(events.clone()).map_err(RunError::Signals)?;
    let console = Console::default();
    let terminal = match config.serial {
        Serial::Tty => RawTerminal::enter().map_err(RunError::Terminal)?,
        Serial::File(_) | Serial::Null => None,
    };
    if config.serial == Serial::Tty {
        console.read_input(events.clone(), terminal.is_some()).map_err(RunError::Terminal)?;
    }
    if terminal.is_some() {
        eprintln!("sevferry: Ctrl-A x ends the guest, Ctrl-A h helps");
    }
    let ending = boot_until_end(config, options, &console, (&events, &happened));
    // Before anything else is printed, and whatever the ending.
    drop(terminal);
    let (ending, last) = ending?;
    if let Some(format) = options.report {
        report::print(&last, format);
    }
    Ok(ending)
}

/// A reset boots the same configuration again.
fn boot_until_end(
    config: &Config,
    options: &RunOptions,
    console: &Console,
    (events, happened): (&Sender<Event>, &Receiver<Event>),
) -> Result<(Ending, Report), RunError> {
    loop {
        let machine = Machine::build(config, output(&config.serial)?)?;
        if let Some(launch) = machine.launch() {
            report::print_launch(launch);
        }
        console.attach(Some(machine.serial()));
        let mut running = machine.run(events)?;
        let outcome = wait(&mut running, happened, options);
        console.attach(None);
        let last = running.stop();
        let ending = outcome?;
        if ending != Ending::Reset || !options.reboot {
            return Ok((ending, last));
        }
        info!("the guest asked for a reset: booting again");
    }
}

fn wait(
    machine: &mut RunningMachine,
    happened: &Receiver<Event>,
    options: &RunOptions,
) -> Result<Ending, RunError> {
    loop {
        match happened.recv().unwrap_or(Event::Quit) {
            Event::Stopped(Stop::PowerOff) => return Ok(Ending::PowerOff),
            Event::Stopped(Stop::Reset) => return Ok(Ending::Reset),
            Event::Stopped(Stop::TripleFault) => {
                eprintln!("sevferry: the guest crashed (triple fault)");
                return Ok(Ending::TripleFault);
            }
            Event::Stopped(Stop::Failed(cause)) => return Err(RunError::Vcpu(cause)),
            Event::Quit => return Ok(Ending::Quit),
            Event::Report => {
                report::print(&machine.report(), options.report.unwrap_or(ReportFormat::Text));
            }
        }
    }
}

fn output(serial: &Serial) -> Result<Box<dyn Write + Send>, RunError> {
    Ok(match serial {
        Serial::Tty => Box::new(stdout()),
        Serial::Null => Box::new(sink()),
        Serial::File(path) => {
            let file = File::options().append(true).create(true).open(path);
            Box::new(file.map_err(|cause| RunError::SerialFile { path: path.clone(), cause })?)
        }
    })
}

/// SIGTERM, SIGINT and SIGHUP end the guest; SIGUSR1 asks for a report.
fn forward_signals(events: Sender<Event>) -> Result<(), IoError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    let forward = move || {
        for signal in signals.forever() {
            debug!("signal {signal}");
            let event = if signal == SIGUSR1 { Event::Report } else { Event::Quit };
            if events.send(event).is_err() {
                return;
            }
        }
    };
    Builder::new().name("signals".to_owned()).spawn(forward).map(|_detached| ())
}

/// Why `sevferry run` failed.
#[derive(Debug, Error)]
pub(super) enum RunError {
    /// No signal handlers.
    #[error("preparing for signals")]
    Signals(#[source] IoError),
    /// The terminal.
    #[error("using standard input as the guest's serial console; try --serial null")]
    Terminal(#[source] IoError),
    /// The file of `--serial file=`.
    #[error("opening {} for the guest's serial output", path.display())]
    SerialFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(VcpuError),
}
