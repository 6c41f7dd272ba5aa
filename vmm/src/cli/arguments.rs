//! The command line: strings in, a machine's [`Config`] or another task out.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use log::LevelFilter;
use thiserror::Error;

use super::check::CheckOptions;
use super::check_arguments::CheckArguments;
use super::exit::EXIT_CODES;
use super::migration_arguments::{
    AskArguments, AskOptions, InjectArguments, MigrateArguments, MigrateOptions, ReceiveArguments,
    ReceiveOptions, ResolveArguments, StatusArguments,
};
use super::owner_files::{OwnerFileError, read_owner, read_tik};
use super::preflight::PreflightOptions;
use super::values::{self, PlatformArgument, ReceivingPlatform};
use crate::control::api::Request;
use crate::machine::config::{
    Config, DEFAULT_CMDLINE, OwnerInput, PlatformKind, Serial, SevConfig, VcpuCount,
};
use crate::page::RamLayout;
use crate::sev::Policy;
use crate::sev::endorsement::EndorsementFiles;
use crate::sev::measurement::{FirmwareVersion, Measurement};
use crate::sev::session::Key;

/// What the user wants.
#[derive(Debug)]
pub(super) struct Arguments {
    pub(super) log: LogOptions,
    pub(super) task: Task,
}

/// What to do.
#[derive(Debug)]
pub(super) enum Task {
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
pub(super) struct LogOptions {
    pub(super) level: LevelFilter,
    /// `None` is standard error.
    pub(super) file: Option<PathBuf>,
}

/// How `run` behaves, beside what machine it builds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RunOptions {
    /// Boot again when the guest asks for a reset.
    pub(super) reboot: bool,
    /// Wait before the guest runs.
    pub(super) paused: Option<Pause>,
    pub(super) owner: OwnerOptions,
}

/// For how long a guest waits until it is let run; `None` is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pause(pub(super) Option<Duration>);

/// How the owner of a guest behaves, wherever the guest came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnerOptions {
    /// Report when the guest has ended, in this format.
    pub(super) report: Option<ReportFormat>,
    /// Where to answer requests.
    pub(super) api_socket: Option<PathBuf>,
    /// The directory that remembers handovers.
    pub(super) journal: Option<PathBuf>,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ReportFormat {
    /// Tables for people.
    Text,
    /// One JSON object.
    Json,
}

/// Which launch digest, and what to check it against.
#[derive(Debug)]
pub(super) struct DigestOptions {
    /// The guest; its platform and serial port do not matter.
    pub(super) config: Config,
    pub(super) c_bit: CBit,
    pub(super) policy: Policy,
    /// Where to write what is measured.
    pub(super) launch_data: Option<PathBuf>,
    pub(super) check: Option<MeasurementCheck>,
}

/// The number of the C-bit, which stands in the guest's page tables.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CBit {
    /// This.
    Number(u8),
    /// As `run` would have it on this host, with this platform.
    OfThisHost(PlatformKind),
}

/// A measurement and what it takes to verify it.
#[derive(Debug)]
pub(super) struct MeasurementCheck {
    pub(super) measurement: Measurement,
    pub(super) tik: Key,
    pub(super) version: FirmwareVersion,
}

impl Arguments {
    /// Parses the process's arguments, the program's name first.
    ///
    /// # Errors
    /// [`ArgumentError`]; that includes `--help` and `--version`, as clap does.
    pub(super) fn parse(
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
            Command::Run(run) => run.task()?,
            Command::Receive(receive) => Task::Receive(receive.options()),
            Command::Migrate(migrate) => Task::Migrate(migrate.options()),
            Command::Status(status) => Task::Ask(status.options()),
            Command::Audit(audit) => Task::Ask(audit.options(Request::Audit)),
            Command::Report(report) => Task::Ask(report.options(Request::Report)),
            Command::InjectSecret(inject) => Task::Ask(inject.options()?),
            Command::Continue(go) => Task::Ask(go.options(Request::Continue)),
            Command::Cancel(cancel) => Task::Ask(cancel.options(Request::Cancel)),
            Command::Resolve(resolve) => Task::Ask(resolve.options()),
            Command::Quit(quit) => Task::Ask(quit.options(Request::Quit)),
            Command::Digest(digest) => digest.task()?,
            Command::Check(check) => check.task(),
            Command::Certificates(CertificatesArguments { platform, out }) => {
                Task::Certificates { platform: platform.kind, out }
            }
            Command::Probe => Task::Probe,
        };
        Ok(Self { log: LogOptions { level, file: log_file }, task })
    }
}

/// Why there is nothing to do.
#[derive(Debug, Error)]
pub(super) enum ArgumentError {
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
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
        Config { kernel, initramfs, cmdline, vcpus, ram, serial, sev }
    }
}

/// How `--platform` is shown in the help.
pub(super) const PLATFORM: &str = "sev=software|hardware,...";

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
struct RunArguments {
    #[command(flatten)]
    guest: GuestArguments,
    /// The guest's serial port: tty, null or file=PATH
    #[arg(long, value_name = "tty|...", default_value = "tty", value_parser = values::serial)]
    serial: Serial,
    /// Make it an SEV guest; without this it is a plain VM
    #[arg(long, value_name = PLATFORM, value_parser = values::platform, long_help = PLATFORM_HELP)]
    platform: Option<PlatformArgument>,
    #[command(flatten)]
    owner: OwnerArguments,
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
    fn task(self) -> Result<Task, OwnerFileError> {
        let sev = self.platform.map(sev_config).transpose()?;
        let (reboot, paused) = (!self.no_reboot, self.paused.map(Pause));
        let options = RunOptions { reboot, paused, owner: self.owner.options() };
        Ok(Task::Run { config: Box::new(self.guest.config(self.serial, sev)), options })
    }
}

/// How the owner of a guest behaves.
#[derive(Debug, Args)]
pub(super) struct OwnerArguments {
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

impl OwnerArguments {
    pub(super) fn options(self) -> OwnerOptions {
        let Self { report, api_socket, journal } = self;
        OwnerOptions { report, api_socket, journal }
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
struct DigestArguments {
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
    fn task(self) -> Result<Task, OwnerFileError> {
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
        Ok(Task::Digest(Box::new(DigestOptions { config, c_bit, policy, launch_data, check })))
    }
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
