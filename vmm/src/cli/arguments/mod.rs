//! The command line: strings in, a machine's [`Config`] or another task out.

mod check;
mod devices;
mod guest;
mod key_values;
mod migration;
mod owner_files;
mod process;
mod resize;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use log::LevelFilter;
use thiserror::Error;

use super::exit::EXIT_CODES;
use crate::control::api::Request;
use crate::machine::config::{Config, PlatformKind};
use check::{CheckArguments, CheckTask};
pub(crate) use check::{CheckOptions, PreflightGuest, PreflightOptions};
pub(crate) use guest::{CBit, DigestOptions, Pause, RunOptions};
use guest::{DigestArguments, RunArguments};
use migration::{
    AskArguments, InjectArguments, MigrateArguments, ReceiveArguments, ResolveArguments,
    StatusArguments,
};
pub(crate) use migration::{AskOptions, MigrateOptions, ReceiveOptions};
use owner_files::OwnerFileError;
pub(crate) use process::{ProcessOptions, ReportFormat};
use resize::ResizeDiskArguments;
use values::{PLATFORM, ReceivingPlatform};

/// What the user wants.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) log: LogOptions,
    pub(crate) task: Task,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// Boot a guest.
    Run { config: Box<Config>, options: RunOptions },
    /// Take over a guest from another host.
    Receive(ReceiveOptions),
    /// Have a guest moved to another host.
    Migrate(MigrateOptions),
    /// Ask the process that owns a guest.
    Ask(AskOptions),
    /// Recompute a launch digest.
    Digest(Box<DigestOptions>),
    /// Write a platform's certificates to files.
    Certificates { platform: PlatformKind, out: PathBuf },
    /// Say what this host can do.
    Check(CheckOptions),
    /// Say whether a guest would be moved to another host.
    Preflight(Box<PreflightOptions>),
    /// Say whether this host's KVM is of use.
    Probe,
}

/// Where messages go, and how many.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) level: LevelFilter,
    /// `None` is standard error.
    pub(crate) file: Option<PathBuf>,
}

impl Arguments {
    /// Parses the process's arguments, the program's name first.
    ///
    /// # Errors
    /// [`ArgumentError`]; that includes `--help` and `--version`, as clap does.
    pub(crate) fn parse(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, ArgumentError> {
        let CommandLine { verbose, log_file, command } = CommandLine::try_parse_from(arguments)?;
        let level = match verbose {
            0 => LevelFilter::Warn,
            1 => LevelFilter::Info,
            2 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        };
        let task = match command {
            CliCommand::Run(run) => {
                let (config, options) = run.options()?;
                Task::Run { config, options }
            }
            CliCommand::Receive(receive) => Task::Receive(receive.options()),
            CliCommand::Migrate(migrate) => Task::Migrate(migrate.options()),
            CliCommand::Status(status) => Task::Ask(status.options()),
            CliCommand::Audit(audit) => Task::Ask(audit.options(Request::Audit)),
            CliCommand::Report(report) => Task::Ask(report.options(Request::Report)),
            CliCommand::InjectSecret(inject) => Task::Ask(inject.options()?),
            CliCommand::Continue(go) => Task::Ask(go.options(Request::Continue)),
            CliCommand::Cancel(cancel) => Task::Ask(cancel.options(Request::Cancel)),
            CliCommand::Resolve(resolve) => Task::Ask(resolve.options()),
            CliCommand::ResizeDisk(resize) => Task::Ask(resize.options()),
            CliCommand::Quit(quit) => Task::Ask(quit.options(Request::Quit)),
            CliCommand::Digest(digest) => Task::Digest(digest.options()?),
            CliCommand::Check(check) => match check.task() {
                CheckTask::Host(options) => Task::Check(options),
                CheckTask::Migration(options) => Task::Preflight(options),
            },
            CliCommand::Certificates(CertificatesArguments { platform, out }) => {
                Task::Certificates { platform: platform.kind, out }
            }
            CliCommand::Probe => Task::Probe,
        };
        Ok(Self { log: LogOptions { level, file: log_file }, task })
    }
}

/// Why there is nothing to do.
#[derive(Debug, Error)]
pub(crate) enum ArgumentError {
    /// The command line is wrong, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A file that it names is of no use.
    #[error(transparent)]
    OwnerFile(#[from] OwnerFileError),
}

/// Boots AMD SEV guests on KVM and moves them, running, to other hosts.
#[derive(Debug, Parser)]
#[command(name = "sevferry", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
struct CommandLine {
    /// Say more; twice or three times for even more
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 100)]
    verbose: u8,
    /// Write messages to this file instead of standard error
    #[arg(
        long,
        value_name = "FILE",
        value_parser = values::path,
        global = true,
        display_order = 101
    )]
    log_file: Option<PathBuf>,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Boot a guest and be its console until it ends
    Run(RunArguments),
    /// Wait for a guest from another host and be its console until it ends
    Receive(ReceiveArguments),
    /// Move a running guest to another host, and wait until it has moved
    Migrate(MigrateArguments),
    /// Show how things stand with a guest, and how far its migration is
    Status(StatusArguments),
    /// Print the launch and the status of every page of a running guest, as JSON
    Report(AskArguments),
    /// Hold what a guest has reported against its own page tables, if its policy allows debugging
    Audit(AskArguments),
    /// Give a secret of its owner to a guest that was started with --paused
    InjectSecret(InjectArguments),
    /// Let a guest run that was started with --paused
    Continue(AskArguments),
    /// Give up the migration that is under way; the guest runs on where it is
    Cancel(AskArguments),
    /// Decide who has a guest when a handover was interrupted and stays in doubt
    Resolve(ResolveArguments),
    /// Make a disk of a running guest larger, or tell the guest that it has grown
    ResizeDisk(ResizeDiskArguments),
    /// End a guest and its process
    Quit(AskArguments),
    /// Recompute the launch digest of an SEV guest from its files
    Digest(DigestArguments),
    /// Write the certificates of this host's SEV platform to files, for the owners of guests
    Certificates(CertificatesArguments),
    /// Show what this host can do, and what to do about what it cannot; with --to, why a guest would
    /// not be moved there
    Check(CheckArguments),
    /// Say whether this host's KVM delivers what an SEV guest needs
    Probe,
}

/// Whose certificates, and where they go.
#[derive(Debug, Args)]
struct CertificatesArguments {
    /// The platform; with sev=software, identity=DIR must say where its keys are
    #[arg(long, value_name = PLATFORM, value_parser = values::receiving_platform)]
    platform: ReceivingPlatform,
    /// Directory for the files: pdh.cert, pek.cert and so on, sev.chain, ca.chain
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    out: PathBuf,
}
