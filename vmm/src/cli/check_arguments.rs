//! The command line of `sevferry check`: of this host, or of a migration to another.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;

use super::arguments::{PLATFORM, Task};
use super::check::CheckOptions;
use super::preflight::PreflightOptions;
use super::values::{self, ReceivingPlatform};
use crate::control::api::{Connections, MigrateRequest, TimeoutStrategy};
use crate::migration::Endpoint;

/// What `check` checks.
#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// The platform that must be usable for exit code 0 [default: sev=software]
    #[arg(
        long,
        value_name = PLATFORM,
        value_parser = values::receiving_platform,
        conflicts_with = "to"
    )]
    platform: Option<ReceivingPlatform>,
    /// Where `sevferry receive` listens: say why the guest would not be moved there
    #[arg(long, value_name = "tcp:HOST:PORT|unix:PATH", requires = "api_socket")]
    to: Option<Endpoint>,
    /// API socket of the guest's process, with --to
    #[arg(long, value_name = "PATH", value_parser = values::path, requires = "to")]
    api_socket: Option<PathBuf>,
    /// Take also a guest whose policy lets the firmware send it to any destination, with --to
    #[arg(long, requires = "to")]
    allow_unchecked: bool,
    /// Seconds that the other host may be silent before it counts as gone, with --to
    #[arg(
        long,
        value_name = "N",
        default_value_t = MigrateRequest::default_silence_s()
    )]
    silence_s: NonZeroU32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl CheckArguments {
    pub(super) fn task(self) -> Task {
        let Self { platform, to, api_socket, allow_unchecked, silence_s, json } = self;
        let Some((to, api_socket)) = to.zip(api_socket) else {
            return Task::Check(CheckOptions { platform, json });
        };
        let request = MigrateRequest {
            to,
            downtime_ms: MigrateRequest::default_downtime_ms(),
            timeout_s: MigrateRequest::default_timeout_s(),
            timeout_strategy: TimeoutStrategy::default(),
            connections: Connections::default(),
            silence_s,
            throttle: MigrateRequest::default_throttle(),
            allow_unchecked,
        };
        Task::Preflight(PreflightOptions { api_socket, request, json })
    }
}
