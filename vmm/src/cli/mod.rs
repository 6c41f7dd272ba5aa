//! The command line: from arguments to an exit code.

#[macro_use]
mod say;

mod arguments;
mod ask;
mod audit;
mod certificates;
mod check;
mod check_arguments;
mod digest;
mod exit;
mod held;
mod inbox;
mod incoming;
mod journals;
mod key_values;
mod migrate;
mod migration_arguments;
mod outgoing;
mod owner;
mod owner_files;
mod preflight;
mod progress;
mod receive;
mod report;
mod run;
mod terminal;
mod typed;
mod values;

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::Error as IoError;
use std::process::ExitCode;

use env_logger::{Builder, Target};

use crate::machine::chain_of;
use crate::machine::probe;
use arguments::{ArgumentError, Arguments, LogOptions, Task};
use exit::Exit;

/// Does what the arguments (the program's name first) ask for; prints what went wrong.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
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
        Task::Run { config, options } => match run::run(&config, options) {
            Ok(ending) => ending.into(),
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Receive(options) => match receive::receive(&options) {
            Ok(ending) => ending.into(),
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Migrate(options) => match migrate::migrate(&options) {
            Ok(exit) => exit,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Ask(options) => match ask::ask(&options) {
            Ok(()) => Exit::Success,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Digest(options) => match digest::digest(&options) {
            Ok(()) => Exit::Success,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Certificates { platform, out } => match certificates::export(&platform, &out) {
            Ok(()) => Exit::Success,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Check(options) => match check::check(&options) {
            Ok(exit) => exit,
            Err(cause) => failed(&cause, Exit::Failure),
        },
        Task::Preflight(options) => match preflight::preflight(&options) {
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

fn start_log(log: &LogOptions) -> Result<(), IoError> {
    let mut builder = Builder::new();
    builder.filter_level(log.level).format_target(false);
    if let Some(path) = &log.file {
        let file = File::options().append(true).create(true).open(path)?;
        builder.target(Target::Pipe(Box::new(file)));
    }
    builder.try_init().map_err(IoError::other)
}
