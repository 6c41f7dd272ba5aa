//! How the process of a guest behaves, wherever the guest comes from.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values;

/// How the process of a guest behaves, wherever the guest came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessOptions {
    /// Report when the guest has ended, in this format.
    pub(crate) report: Option<ReportFormat>,
    /// Where to answer requests.
    pub(crate) api_socket: Option<PathBuf>,
    /// The directory that remembers handovers.
    pub(crate) journal: Option<PathBuf>,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// Tables for people.
    Text,
    /// One JSON object.
    Json,
}

/// How the process of a guest behaves.
#[derive(Debug, Args)]
pub(crate) struct ProcessArguments {
    /// When the guest has ended, report the launch and the status of its pages
    #[arg(
        long,
        value_name = "FORMAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text"
    )]
    report: Option<ReportFormat>,
    /// Socket to answer sevferry status, migrate and so on
    #[arg(long, value_name = "PATH", value_parser = values::path)]
    api_socket: Option<PathBuf>,
    /// Directory that remembers who has the guest when a migration is interrupted
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    journal: Option<PathBuf>,
}

impl ProcessArguments {
    pub(crate) fn options(self) -> ProcessOptions {
        let Self { report, api_socket, journal } = self;
        ProcessOptions { report, api_socket, journal }
    }
}
