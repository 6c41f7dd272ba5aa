//! The command lines that move guests, and that ask the processes that have them.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::devices::DeviceArguments;
use super::owner_files::{OwnerFileError, read_packet};
use super::process::{ProcessArguments, ProcessOptions};
use super::values::{self, ReceivingPlatform};
use crate::control::api::{
    Connections, InjectRequest, MigrateRequest, Request, Resolution, TimeoutStrategy,
};
use crate::machine::config::{DeviceConfig, Serial};
use crate::migration::Endpoint;

/// Where a guest is awaited, and how it will run here.
#[derive(Debug)]
pub(crate) struct ReceiveOptions {
    pub(crate) listen: Endpoint,
    pub(crate) serial: Serial,
    /// What answers SEV commands; without it only plain VMs are received.
    pub(crate) platform: Option<ReceivingPlatform>,
    /// What a guest's devices stand on.
    pub(crate) devices: Vec<DeviceConfig>,
    /// How long the source may be silent.
    pub(crate) silence: Duration,
    pub(crate) process: ProcessOptions,
}

/// A migration to ask for.
#[derive(Debug)]
pub(crate) struct MigrateOptions {
    pub(crate) api_socket: PathBuf,
    pub(crate) request: MigrateRequest,
    /// Print every status as a line of JSON.
    pub(crate) json: bool,
}

/// Another request to make.
#[derive(Debug)]
pub(crate) struct AskOptions {
    pub(crate) api_socket: PathBuf,
    pub(crate) request: Request,
    /// Print the answer as it came.
    pub(crate) json: bool,
}

/// How an endpoint is shown in the help.
const ENDPOINT: &str = "tcp:HOST:PORT|unix:PATH";

/// How `--platform` is shown in the help of `receive`.
const RECEIVING_PLATFORM: &str = "sev=software|hardware,...";

/// Its keys.
const RECEIVING_PLATFORM_HELP: &str = "\
Take SEV guests; without this only plain VMs are taken. Keys, separated by commas:
  sev=software|hardware  who answers SEV commands; software gives no confidentiality
  cek_cert_file=FILE     hardware: this chip's CEK as AMD's key server signed it
  ask_ark_file=FILE      hardware: AMD's ASK and ARK, of a generation that sevferry does not know
  write_back=never|last-round
                         hardware: as for `sevferry run`, if the guest is moved on
  identity=DIR           where the software platform keeps its keys [default: nowhere]
  command_cost_us=N      let each command of the software platform take N microseconds, one after
                         the other as on a secure processor [default: 0]
  pin_cost_us=N          let the software platform take N microseconds to pin a MiB of memory
                         [default: 0]
  kernel=MAJOR.MINOR     answer as that kernel does, on the software platform [default: 6.17]
  asids=N                how many guests can have SEV at once on it [default: 509]
  fail=COMMAND:N[:dead|:unknown]
                         let the Nth such command of the software platform fail, such as
                         SEND_FINISH:1: to see what becomes of the guest; dead, and its processor
                         answers nothing any more; unknown, and its firmware never knows it";

#[derive(Debug, Args)]
pub(crate) struct ReceiveArguments {
    /// Where to wait for the guest
    #[arg(long, value_name = ENDPOINT)]
    listen: Endpoint,
    /// The guest's serial port: tty, null or file=PATH
    #[arg(long, value_name = "tty|...", default_value = "tty", value_parser = values::serial)]
    serial: Serial,
    /// Take SEV guests; without this only plain VMs are taken
    #[arg(
        long,
        value_name = RECEIVING_PLATFORM,
        value_parser = values::receiving_platform,
        long_help = RECEIVING_PLATFORM_HELP
    )]
    platform: Option<ReceivingPlatform>,
    #[command(flatten)]
    devices: DeviceArguments,
    /// Seconds for which the other host may neither send nor take a byte before it counts as gone
    #[arg(long, value_name = "N", default_value_t = MigrateRequest::default_silence_s())]
    silence_s: NonZeroU32,
    #[command(flatten)]
    process: ProcessArguments,
}

impl ReceiveArguments {
    pub(crate) fn options(self) -> ReceiveOptions {
        let Self { listen, serial, platform, devices, silence_s, process } = self;
        let silence = Duration::from_secs(silence_s.get().into());
        let (devices, process) = (devices.devices(), process.options());
        ReceiveOptions { listen, serial, platform, devices, silence, process }
    }
}

/// Which process is asked.
#[derive(Debug, Args)]
pub(super) struct SocketArgument {
    /// API socket of the guest's process
    #[arg(long, value_name = "PATH", value_parser = values::path)]
    pub(super) api_socket: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArguments {
    #[command(flatten)]
    socket: SocketArgument,
    /// Where `sevferry receive` listens
    #[arg(long, value_name = ENDPOINT)]
    to: Endpoint,
    /// Milliseconds for which the guest may stand still
    #[arg(long, value_name = "N", default_value_t = MigrateRequest::default_downtime_ms())]
    downtime_ms: NonZeroU32,
    /// Seconds that the migration may take
    #[arg(long, value_name = "N", default_value_t = MigrateRequest::default_timeout_s())]
    timeout_s: NonZeroU32,
    /// What to do after that: cancel, or stop the guest and move it
    #[arg(
        long,
        value_name = "cancel|stop",
        default_value = "cancel",
        value_parser = values::timeout_strategy
    )]
    timeout_strategy: TimeoutStrategy,
    /// Connections that carry pages, 1 to 128 [default: one for each processor, up to 8]
    #[arg(long, value_name = "N", value_parser = values::connections)]
    connections: Option<Connections>,
    /// Seconds for which the other host may neither send nor take a byte before it counts as gone
    #[arg(long, value_name = "N", default_value_t = MigrateRequest::default_silence_s())]
    silence_s: NonZeroU32,
    /// Leave the guest at full speed even if it writes faster than its pages can be sent
    #[arg(long)]
    no_throttle: bool,
    /// Migrate also a guest whose policy lets the firmware send it to any destination
    #[arg(long)]
    allow_unchecked: bool,
    /// Print the progress as lines of JSON
    #[arg(long)]
    json: bool,
}

impl MigrateArguments {
    pub(crate) fn options(self) -> MigrateOptions {
        let request = MigrateRequest {
            to: self.to,
            downtime_ms: self.downtime_ms,
            timeout_s: self.timeout_s,
            timeout_strategy: self.timeout_strategy,
            connections: self.connections.unwrap_or_default(),
            silence_s: self.silence_s,
            throttle: !self.no_throttle,
            allow_unchecked: self.allow_unchecked,
        };
        MigrateOptions { api_socket: self.socket.api_socket, request, json: self.json }
    }
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    socket: SocketArgument,
    /// Print it as one line of JSON
    #[arg(long)]
    json: bool,
}

impl StatusArguments {
    pub(crate) fn options(self) -> AskOptions {
        let api_socket = self.socket.api_socket;
        AskOptions { api_socket, request: Request::Status, json: self.json }
    }
}

#[derive(Debug, Args)]
pub(crate) struct AskArguments {
    #[command(flatten)]
    socket: SocketArgument,
}

impl AskArguments {
    pub(crate) fn options(self, request: Request) -> AskOptions {
        AskOptions { api_socket: self.socket.api_socket, request, json: false }
    }
}

#[derive(Debug, Args)]
pub(crate) struct InjectArguments {
    #[command(flatten)]
    socket: SocketArgument,
    /// Header of the secret's packet, in base64 or as it is
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    header: PathBuf,
    /// The packet itself, in base64 or as it is
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    secret: PathBuf,
    /// Guest-physical address that it goes to [default: the secret page, where guests look]
    #[arg(long, value_name = "ADDRESS", value_parser = values::address)]
    gpa: Option<u64>,
}

impl InjectArguments {
    /// Reads the files.
    pub(crate) fn options(self) -> Result<AskOptions, OwnerFileError> {
        let Self { socket: SocketArgument { api_socket }, header, secret, gpa } = self;
        let (packet_header, secret) = (read_packet(&header)?, read_packet(&secret)?);
        let request = Request::InjectSecret(InjectRequest { packet_header, secret, gpa });
        Ok(AskOptions { api_socket, request, json: false })
    }
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArguments {
    /// keep: the guest runs here, and never on the other host; discard: it is gone from here
    #[arg(value_name = "keep|discard", value_parser = values::resolution)]
    resolution: Resolution,
    #[command(flatten)]
    socket: SocketArgument,
}

impl ResolveArguments {
    pub(crate) fn options(self) -> AskOptions {
        let request = Request::Resolve(self.resolution);
        AskOptions { api_socket: self.socket.api_socket, request, json: false }
    }
}

#[cfg(test)]
#[path = "migration_tests.rs"]
mod tests;
