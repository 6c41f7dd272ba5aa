//! The command line of `sevferry check`: of this host, or of a migration to another.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;

use super::devices::DeviceArguments;
use super::values::{self, PLATFORM, PlatformArgument};
use crate::control::api::{Connections, MigrateRequest, TimeoutStrategy};
use crate::machine::config::{PlatformKind, VcpuCount};
use crate::machine::{Prospect, SevProspect};
use crate::migration::Endpoint;
use crate::page::RamLayout;

/// What to check for, and how to say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckOptions {
    /// The platform that must be there; `None` asks for the software platform.
    pub(crate) platform: Option<PlatformKind>,
    pub(crate) json: bool,
}

/// Which migration.
#[derive(Debug)]
pub(crate) struct PreflightOptions {
    pub(crate) guest: PreflightGuest,
    pub(crate) request: MigrateRequest,
    pub(crate) json: bool,
}

/// Of which guest.
#[derive(Debug)]
pub(crate) enum PreflightGuest {
    /// The one whose process has this API socket.
    Running(PathBuf),
    /// One that would be started on this host.
    New(Prospect),
}

/// What there is to check.
#[derive(Debug)]
pub(crate) enum CheckTask {
    /// This host.
    Host(CheckOptions),
    /// A migration to another.
    Migration(Box<PreflightOptions>),
}

/// What `check` checks.
#[derive(Debug, Args)]
#[command(mut_group("DeviceArguments", |given| given.requires("to").conflicts_with("api_socket")))]
pub(crate) struct CheckArguments {
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
    #[command(flatten)]
    devices: DeviceArguments,
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
    pub(crate) fn task(self) -> CheckTask {
        let Self { platform, to, api_socket, cpus: vcpus, memory: ram, devices, .. } = self;
        let (allow_unchecked, silence_s, json) = (self.allow_unchecked, self.silence_s, self.json);
        let Some(to) = to else {
            let platform = platform.map(|platform| platform.kind);
            return CheckTask::Host(CheckOptions { platform, json });
        };
        let sev = platform.map(|PlatformArgument { kind: platform, policy, status, .. }| {
            SevProspect { platform, policy, status }
        });
        let devices = devices.devices();
        let new = || PreflightGuest::New(Prospect { ram, vcpus, devices, sev });
        let guest = api_socket.map_or_else(new, PreflightGuest::Running);
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
        CheckTask::Migration(Box::new(PreflightOptions { guest, request, json }))
    }
}
