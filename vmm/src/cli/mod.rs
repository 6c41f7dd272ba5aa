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
use exit::Exit;
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
                Exit::Failure
            }
        },
        Err(ArgumentError::Usage(message)) => {
            // Help and version are no mistakes; clap knows which stream each belongs to.
            let printed = message.print();
            if printed.is_ok() && !message.use_stderr() { Exit::Success } else { Exit::Usage }
        }
        Err(cause @ ArgumentError::OwnerFile(_)) => failed(&cause, Exit::Failure),
    };
    exit.into()
}

fn perform(task: Task) -> Exit {
    match task {
        Task::Run { config, options } => match boot(&config, options) {
            Ok(ending) => ending.into(),
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Receive(options) => match receive(&options) {
            Ok(ending) => ending.into(),
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Migrate(options) => match migrate(&options) {
            Ok(exit) => exit,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Ask(options) => match ask(&options) {
            Ok(()) => Exit::Success,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Digest(options) => match digest(&options) {
            Ok(()) => Exit::Success,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Certificates { platform, out } => match export(&platform, &out) {
            Ok(()) => Exit::Success,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Check(options) => match check(&options) {
            Ok(exit) => exit,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Preflight(options) => match preflight(&options) {
            Ok(exit) => exit,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Probe => match probe() {
            Ok(()) => {
                println!(
                    "this host's KVM delivers page-status hypercalls: SEV guests can run here"
                );
                Exit::Success
            }
            Err(cause) => failed(&cause, Exit::Unusable),
        },
    }
}

/// Prints an error and its causes, each of which adds what the one before does not say.
fn failed(error: &dyn Error, exit: Exit) -> Exit {
    eprintln!("sevferry: error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("sevferry:   because: {error}");
        cause = error.source();
    }
    exit
}
