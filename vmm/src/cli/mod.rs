//! The command line: from arguments to an exit code.

#[macro_use]
mod say;

mod arguments;
mod commands;
mod exit;
mod process;
mod show;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use crate::machine::probe;
use arguments::{ArgumentError, Arguments, Task};
use commands::{ask, check, digest, export, migrate, preflight, receive, run as boot};
use exit::ExitStatus;
use say::{Farewell, start_log};

/// Does what the arguments (the program's name first) ask for; prints what went wrong.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _farewell = Farewell::prepare();
    let exit = match Arguments::parse(arguments) {
        Ok(Arguments { log, task }) => match start_log(&log) {
            Ok(()) => perform(task),
            Err(cause) => {
                let path = log.file.unwrap_or_default();
                eprintln!("sevferry: error: opening the log file {}: {cause}", path.display());
                ExitStatus::Failure
            }
        },
        Err(ArgumentError::Usage(message)) => {
            // Help and version are no mistakes; clap knows which stream each belongs to.
            let printed = message.print();
            if printed.is_ok() && !message.use_stderr() {
                ExitStatus::Success
            } else {
                ExitStatus::Usage
            }
        }
        Err(cause @ ArgumentError::OwnerFile(_)) => failed(&cause, ExitStatus::Failure),
    };
    exit.into()
}

fn perform(task: Task) -> ExitStatus {
    match task {
        Task::Run { config, options } => match boot(&config, options) {
            Ok(ending) => ending.into(),
            Err(cause) => failed(&cause, ExitStatus::Failure),
        },
        Task::Receive(options) => match receive(&options) {
            Ok(ending) => ending.into(),
            Err(cause) => failed(&cause, ExitStatus::Failure),
        },
        Task::Migrate(options) => match migrate(&options) {
            Ok(exit) => exit,
            Err(cause) => failed(&cause, ExitStatus::Failure),
        },
        Task::Ask(options) => match ask(&options) {
            Ok(()) => ExitStatus::Success,
            Err(cause) => failed(&cause, ExitStatus::Failure),
        },
        Task::Digest(options) => match digest(&options) {
            Ok(()) => ExitStatus::Success,
            Err(cause) => failed(&cause, ExitStatus::Failure),
        },
        Task::Certificates { platform, out } => match export(&platform, &out) {
            Ok(()) => ExitStatus::Success,
            Err(cause) => failed(&cause, ExitStatus::Failure),
        },
        Task::Check(options) => match check(&options) {
            Ok(exit) => exit,
            Err(cause) => failed(&cause, ExitStatus::Failure),
        },
        Task::Preflight(options) => match preflight(&options) {
            Ok(exit) => exit,
            Err(cause) => failed(&cause, ExitStatus::Failure),
        },
        Task::Probe => match probe() {
            Ok(()) => {
                println!(
                    "this host's KVM delivers page-status hypercalls: SEV guests can run here"
                );
                ExitStatus::Success
            }
            Err(cause) => failed(&cause, ExitStatus::Unusable),
        },
    }
}

/// Prints an error and its causes. Each cause adds what the error before it does not say.
fn failed(error: &dyn Error, exit: ExitStatus) -> ExitStatus {
    eprintln!("sevferry: error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("sevferry:   because: {error}");
        cause = error.source();
    }
    exit
}
