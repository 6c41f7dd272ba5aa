//! The command line of `sevferry check`: of this host, or of a migration to another.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;

use super::arguments::{PLATFORM, Task};
use super::check::CheckOptions;
use super::preflight::{Guest, PreflightOptions};
use super::values::{self, PlatformArgument};
use crate::control::api::{Connections, MigrateRequest, TimeoutStrategy};
use crate::machine::config::VcpuCount;
use crate::machine::{Prospect, SevProspect};
use crate::migration::Endpoint;
use crate::page::RamLayout;

/// What `check` checks.
#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// The platform that must be usable for exit code 0 [default: sev=software]; with --to, of the
    /// guest [default: a plain VM]
    #[arg(
        long,
        value_name = PLATFORM,
        value_parser = values::platform,
        conflicts_with = "api_socket"
    )]
    platform: Option<PlatformArgument>,
    /// Where `sevferry receive` listens: say why a guest would not be moved there
    #[arg(long, value_name = "tcp:HOST:PORT|unix:PATH")]
    to: Option<Endpoint>,
    /// With --to: the guest that has this API socket; without, one that would be started here
    #[arg(long, value_name = "PATH", value_parser = values::path, requires = "to")]
    api_socket: Option<PathBuf>,
    /// With --to: how many vCPUs the guest would have
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = values::vcpus,
        requires = "to",
        conflicts_with = "api_socket"
    )]
    cpus: VcpuCount,
    /// With --to: how much memory the guest would have
    #[arg(
        long,
        value_name = "N",
        default_value = "512M",
        value_parser = values::memory,
        requires = "to",
        conflicts_with = "api_socket"
    )]
    memory: RamLayout,
    /// With --to: take also a guest whose policy lets the firmware send it to any destination
    #[arg(long, requires = "to")]
    allow_unchecked: bool,
    /// With --to: seconds for which the other host may neither send nor take a byte before it counts
    /// as gone
    #[arg(
        long,
        value_name = "N",
        default_value_t = MigrateRequest::default_silence_s(),
        requires = "to"
    )]
    silence_s: NonZeroU32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl CheckArguments {
    pub(super) fn task(self) -> Task {
        let Self { platform, to, api_socket, cpus, memory, allow_unchecked, silence_s, json } =
            self;
        let Some(to) = to else {
            let platform = platform.map(|platform| platform.kind);
            return Task::Check(CheckOptions { platform, json });
        };
        let sev = platform.map(|PlatformArgument { kind: platform, policy, status, .. }| {
            SevProspect { platform, policy, status }
        });
        let new = || Guest::New(Prospect { ram: memory, vcpus: cpus, sev });
        let guest = api_socket.map_or_else(new, Guest::Running);
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
        Task::Preflight(Box::new(PreflightOptions { guest, request, json }))
    }
}
