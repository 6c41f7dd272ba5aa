//! The command lines that say what a guest is: to boot it, and to compute its launch digest.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::devices::DeviceArguments;
use super::owner_files::{OwnerFileError, read_owner, read_tik};
use super::process::{ProcessArguments, ProcessOptions};
use super::values::{self, PLATFORM, PlatformArgument};
use crate::machine::config::{
    Config, DEFAULT_CMDLINE, OwnerInput, PlatformKind, Serial, SevConfig, VcpuCount,
};
use crate::page::RamLayout;
use crate::sev::Policy;
use crate::sev::endorsement::EndorsementFiles;
use crate::sev::measurement::{FirmwareVersion, Measurement};
use crate::sev::session::Key;

/// How `run` behaves, beside what machine it builds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RunOptions {
    /// Boot again when the guest asks for a reset.
    pub(crate) reboot: bool,
    /// Wait before the guest runs.
    pub(crate) paused: Option<Pause>,
    pub(crate) process: ProcessOptions,
}

/// For how long a guest waits until it is let run; `None` is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause(pub(crate) Option<Duration>);

/// Which launch digest, and what to check it against.
#[derive(Debug)]
pub(crate) struct DigestOptions {
    /// The guest; its platform and serial port do not matter.
    pub(crate) config: Config,
    pub(crate) c_bit: CBit,
    pub(crate) policy: Policy,
    /// Where to write what is measured.
    pub(crate) launch_data: Option<PathBuf>,
    pub(crate) check: Option<MeasurementCheck>,
}

/// The number of the C-bit, which stands in the guest's page tables.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CBit {
    /// This.
    Number(u8),
    /// As `run` would have it on this host, with this platform.
    OfThisHost(PlatformKind),
}

/// A measurement and what it takes to verify it.
#[derive(Debug)]
pub(crate) struct MeasurementCheck {
    pub(crate) measurement: Measurement,
    pub(crate) tik: Key,
    pub(crate) version: FirmwareVersion,
}

/// What the guest starts from.
#[derive(Debug, Args)]
struct GuestArguments {
    /// Kernel to boot: a bzImage, or an ELF with a PVH note
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    kernel: PathBuf,
    /// Initramfs for the kernel
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    initramfs: Option<PathBuf>,
    /// Command line of the kernel
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_CMDLINE, allow_hyphen_values = true)]
    cmdline: String,
    /// Number of vCPUs, 1 to 8
    #[arg(long, value_name = "N", default_value = "1", value_parser = values::vcpus)]
    cpus: VcpuCount,
    /// Memory in bytes, or with K, M, G or T (512M, 512MiB)
    #[arg(long, value_name = "N", default_value = "512M", value_parser = values::memory)]
    memory: RamLayout,
}

impl GuestArguments {
    fn config(self, serial: Serial, sev: Option<SevConfig>) -> Config {
        let Self { kernel, initramfs, cmdline, cpus: vcpus, memory: ram } = self;
        let devices = Vec::new();
        Config { kernel, initramfs, cmdline, vcpus, ram, serial, sev, devices }
    }
}

/// Its keys.
const PLATFORM_HELP: &str = "\
Make it an SEV guest; without this it is a plain VM. Keys, separated by commas:
  sev=software|hardware  who answers SEV commands; software gives no confidentiality
  policy=N               guest policy [default: 0x21, NODBG and SEV]
  status=list|bitmap|donated
                         what keeps track of shared pages: a list of regions, one bit per page, or
                         a table that the guest donates [default: list]
  overflow=promote|poison
                         when the guest shares more regions than the list may hold, keep a
                         bitmap, or give up on migration [default: promote]
  dh_cert_file=FILE,session_file=FILE
                         the guest owner's files, as sevctl session makes them
  cek_cert_file=FILE     hardware: this chip's CEK as AMD's key server signed it, for migrations
  ask_ark_file=FILE      hardware: AMD's ASK and ARK, of a generation that sevferry does not know
  write_back=never|last-round
                         hardware: make the kernel write back all caches before the last round of a
                         migration; see docs/hardware.md [default: never]
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
pub(crate) struct RunArguments {
    #[command(flatten)]
    guest: GuestArguments,
    /// The guest's serial port: tty, null or file=PATH
    #[arg(long, value_name = "tty|...", default_value = "tty", value_parser = values::serial)]
    serial: Serial,
    /// Make it an SEV guest; without this it is a plain VM
    #[arg(long, value_name = PLATFORM, value_parser = values::platform, long_help = PLATFORM_HELP)]
    platform: Option<PlatformArgument>,
    #[command(flatten)]
    devices: DeviceArguments,
    #[command(flatten)]
    process: ProcessArguments,
    /// End when the guest asks for a reset, instead of booting it again
    #[arg(long)]
    no_reboot: bool,
    /// Wait before the guest runs, for inject-secret and continue; end after N seconds, if given
    #[arg(
        short = 'S',
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        value_parser = values::seconds,
        requires = "api_socket"
    )]
    paused: Option<Option<Duration>>,
}

impl RunArguments {
    pub(crate) fn options(self) -> Result<(Box<Config>, RunOptions), OwnerFileError> {
        let sev = self.platform.map(sev_config).transpose()?;
        let (reboot, paused) = (!self.no_reboot, self.paused.map(Pause));
        let options = RunOptions { reboot, paused, process: self.process.options() };
        let devices = self.devices.devices();
        let config = Config { devices, ..self.guest.config(self.serial, sev) };
        Ok((Box::new(config), options))
    }
}

/// Reads the owner's files, if there are any.
fn sev_config(argument: PlatformArgument) -> Result<SevConfig, OwnerFileError> {
    let PlatformArgument { kind: platform, policy, status, owner } = argument;
    let owner = match owner {
        None => OwnerInput::Own,
        Some((certificate, session)) => read_owner(&certificate, &session)?,
    };
    Ok(SevConfig { platform, policy, status, owner })
}

#[derive(Debug, Args)]
pub(crate) struct DigestArguments {
    #[command(flatten)]
    guest: GuestArguments,
    /// The platform that launches the guest, as given to run
    #[arg(
        long,
        value_name = PLATFORM,
        value_parser = values::platform,
        required_unless_present = "c_bit"
    )]
    platform: Option<PlatformArgument>,
    /// Number of the C-bit where the guest is launched [default: this host's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(32..=51))]
    c_bit: Option<u8>,
    /// Write what is measured to this file, as "firmware" for the tools of guest owners
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    launch_data: Option<PathBuf>,
    /// Launch measurement to verify, as run prints it
    #[arg(
        long,
        value_name = "BASE64",
        value_parser = values::measurement,
        requires_all = ["tik", "api_major", "api_minor", "build_id"]
    )]
    measurement: Option<Measurement>,
    /// Transport integrity key of the guest owner's session, 16 bytes
    #[arg(long, value_name = "FILE", value_parser = values::path, requires = "measurement")]
    tik: Option<PathBuf>,
    /// Major version of the API of the firmware that measured
    #[arg(long, value_name = "N", requires = "measurement")]
    api_major: Option<u8>,
    /// Minor version of the API of the firmware that measured
    #[arg(long, value_name = "N", requires = "measurement")]
    api_minor: Option<u8>,
    /// Build of the firmware that measured
    #[arg(long, value_name = "N", requires = "measurement")]
    build_id: Option<u8>,
}

impl DigestArguments {
    pub(crate) fn options(self) -> Result<Box<DigestOptions>, OwnerFileError> {
        let check = match (self.measurement, self.tik) {
            (Some(measurement), Some(tik)) => {
                // The parser has seen to it that these are given too.
                let version = FirmwareVersion {
                    major: self.api_major.unwrap_or_default(),
                    minor: self.api_minor.unwrap_or_default(),
                    build: self.build_id.unwrap_or_default(),
                };
                Some(MeasurementCheck { measurement, tik: read_tik(&tik)?, version })
            }
            _ => None,
        };
        let policy = self.platform.as_ref().map(|platform| platform.policy).unwrap_or_default();
        let hardware = || PlatformKind::Hardware {
            endorsement: EndorsementFiles::default(),
            write_back: false,
        };
        let of_host = || self.platform.map_or_else(hardware, |platform| platform.kind);
        let c_bit = self.c_bit.map_or_else(|| CBit::OfThisHost(of_host()), CBit::Number);
        let config = self.guest.config(Serial::Null, None);
        let launch_data = self.launch_data;
        Ok(Box::new(DigestOptions { config, c_bit, policy, launch_data, check }))
    }
}
