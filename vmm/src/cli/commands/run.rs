//! `sevferry run`: boots a guest and is its console until it ends.

use std::time::{Duration, Instant};

use log::info;
use thiserror::Error;

use crate::cli::arguments::{Pause, RunOptions};
use crate::cli::exit::Ending;
use crate::cli::process::{
    GuestEnd, GuestProcess, Held, NotContinued, ProcessError, hold, run_until_end, warn_about,
};
use crate::cli::say::settle;
use crate::cli::show::{print_launch, print_report};
use crate::control::api::State;
use crate::machine::pinning::Pinned;
use crate::machine::{Config, EncryptedError, Machine, MachineError};

/// How often to show how much of a guest's memory is pinned.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// Boots `config` and stays until the guest or the user ends it, or it has moved away.
///
/// # Errors
/// [`RunError`].
pub(crate) fn run(config: &Config, options: RunOptions) -> Result<Ending, RunError> {
    warn_about(config.sev.as_ref().map(|sev| &sev.platform));
    let RunOptions { reboot, paused, process } = options;
    let format = process.report;
    let mut process = GuestProcess::prepare(&config.serial, process, State::Starting)?;
    process.reboots = reboot;
    let ended = boot_until_end(config, paused, &process);
    // Before anything else is printed, and whatever the ending.
    process.leave_terminal();
    let (ending, last) = ended?;
    if let Some((format, last)) = format.zip(last) {
        print_report(&last, format);
    }
    Ok(ending)
}

/// A reset boots the same configuration again, up to the pause if there is to be one.
fn boot_until_end(
    config: &Config,
    paused: Option<Pause>,
    process: &GuestProcess,
) -> Result<GuestEnd, RunError> {
    loop {
        let Some(machine) = build(config, process)? else { return Ok((Ending::Quit, None)) };
        if let Some(launch) = machine.launch() {
            print_launch(launch);
        }
        // What is said of the guest comes before what it says.
        settle();
        process.attach_console(machine.serial());
        let machine = match paused {
            None => machine.run(&process.events)?,
            Some(pause) => match hold(machine, pause, process)? {
                Held::Runs(machine) => *machine,
                Held::Ended(report) => return Ok((Ending::Quit, Some(*report))),
            },
        };
        let ended = run_until_end(process, machine)?;
        if ended.0 != Ending::Reset || !process.reboots {
            return Ok(ended);
        }
        info!("the guest asked for a reset: booting again");
    }
}

/// Puts the machine together, and says how far the memory of an SEV guest is if that takes long; `None` if
/// the user wants no more meanwhile.
fn build(config: &Config, process: &GuestProcess) -> Result<Option<Machine>, RunError> {
    let mut said = Instant::now();
    let mut watch = |Pinned { pages, of }: Pinned| {
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            let mib = |pages: u64| pages >> 8;
            eprintln!("sevferry: {} of {} MiB of the guest's memory pinned", mib(pages), mib(of));
        }
        process.inbox.wish().is_some()
    };
    match Machine::build_watched(config, process.output.clone(), &mut watch) {
        Err(MachineError::Encrypted(EncryptedError::Stopped(_))) => Ok(None),
        built => Ok(Some(built?)),
    }
}

/// Why `sevferry run` failed.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// The console, the signals, the API socket, or a vCPU.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// It was not let run.
    #[error(transparent)]
    Held(#[from] NotContinued),
}
