//! `sevferry run`: boots a guest and is its console until it ends.

use log::info;
use thiserror::Error;

use super::arguments::{Pause, RunOptions};
use super::exit::Ending;
use super::held::{Held, NotContinued, hold};
use super::owner::{Ended, Owner, OwnerError, warn_about};
use super::report;
use crate::control::api::State;
use crate::machine::{Config, Machine, MachineError};

/// Boots `config` and stays until the guest or the user ends it, or it has moved away.
///
/// # Errors
/// [`RunError`].
pub(super) fn run(config: &Config, options: RunOptions) -> Result<Ending, RunError> {
    warn_about(config.sev.as_ref().map(|sev| &sev.platform));
    let RunOptions { reboot, paused, owner } = options;
    let format = owner.report;
    let mut owner = Owner::prepare(&config.serial, owner, State::Starting)?;
    let ended = boot_until_end(config, reboot, paused, &owner);
    // Before anything else is printed, and whatever the ending.
    owner.leave_terminal();
    let (ending, last) = ended?;
    if let Some((format, last)) = format.zip(last) {
        report::print(&last, format);
    }
    Ok(ending)
}

/// A reset boots the same configuration again, up to the pause if there is to be one.
fn boot_until_end(
    config: &Config,
    reboot: bool,
    paused: Option<Pause>,
    owner: &Owner,
) -> Result<Ended, RunError> {
    loop {
        let machine = Machine::build(config, owner.output.clone())?;
        if let Some(launch) = machine.launch() {
            report::print_launch(launch);
        }
        owner.attach_console(machine.serial());
        let machine = match paused {
            None => machine.run(&owner.events)?,
            Some(pause) => match hold(machine, pause, owner)? {
                Held::Runs(machine) => *machine,
                Held::Ended(report) => return Ok((Ending::Quit, Some(*report))),
            },
        };
        let ended = owner.wait(machine)?;
        if ended.0 != Ending::Reset || !reboot {
            return Ok(ended);
        }
        info!("the guest asked for a reset: booting again");
    }
}

/// Why `sevferry run` failed.
#[derive(Debug, Error)]
pub(super) enum RunError {
    /// The console, the signals, the API socket, or a vCPU.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// It was not let run.
    #[error(transparent)]
    Held(#[from] NotContinued),
}
