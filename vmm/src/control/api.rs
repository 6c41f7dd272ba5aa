//! What can be asked of the process that has a guest, and what it answers: JSON, one per line.
//!
//! ```text
//! {"version":1,"request":"status"}
//! {"version":1,"response":{"status":{"state":"running",...}}}
//! ```
//!
//! A connection carries one request. Most have one response; a migration has two: `accepted` at
//! once, then `ended`. Unknown versions, requests and fields are refused, never skipped.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::num::{NonZeroU8, NonZeroU32};
use std::thread::available_parallelism;
use std::time::Duration;

use base64::prelude::BASE64_STANDARD;
use base64::{DecodeError, Engine};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Error as JsonError, Value, from_slice, to_vec};
use thiserror::Error;
use zerocopy::FromBytes;

use crate::machine::{DeviceReport, LaunchRecord, PageSummary};
use crate::migration::Endpoint;
use crate::migration::convergence::Goal;
pub use crate::migration::convergence::TimeoutStrategy;
pub use crate::migration::handover::Resolution;
pub use crate::migration::preflight::Hindrance;
pub use crate::migration::progress::{Outcome, Progress, Summary};
use crate::sev::launch::SealedSecret;
use crate::sev::measurement::FirmwareVersion;
use crate::sev::packet::{HEADER_LEN, PacketHeader};

/// The version of everything in this file.
pub const VERSION: u32 = 1;

/// Bytes of a request at most, with its line feed.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Bytes of a response at most: the report of a guest whose every second page is shared is long.
pub const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How things stand; answered at any moment.
    Status,
    /// The launch, and the status of every page.
    Report,
    /// Compare what the guest has reported with its own page tables, if its policy allows that.
    Audit,
    /// Give the guest, which is measured and does not run yet, a secret of its owner.
    InjectSecret(InjectRequest),
    /// Let the guest run that waits for its owner.
    Continue,
    /// Move the guest to another host.
    Migrate(MigrateRequest),
    /// Ask whether this migration would be refused. The guest runs meanwhile, and nothing is moved.
    Check(MigrateRequest),
    /// Give up the migration that is under way, and answer when the guest runs as before.
    Cancel,
    /// Decide a handover that is in doubt, and answer when that is done.
    Resolve(Resolution),
    /// Make this disk so many bytes, or look how large it is, and tell the guest.
    ResizeDisk {
        /// Its name.
        id: String,
        /// Its size in bytes, not below what it is; without it the host has changed it already.
        #[serde(default)]
        size: Option<u64>,
    },
    /// End the guest and its process.
    Quit,
}

/// A secret as its owner's tools make it; the fields are QEMU's (`sev-inject-launch-secret`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectRequest {
    /// The packet's header.
    pub packet_header: Base64,
    /// The packet: as many bytes as the secret.
    pub secret: Base64,
    /// Where in the guest's memory; where the guest looks for secrets, if not given.
    #[serde(default)]
    pub gpa: Option<u64>,
}

impl InjectRequest {
    /// For the machine.
    ///
    /// # Errors
    /// [`BadHeader`] if it is not a header.
    pub fn packet(&self) -> Result<SealedSecret, BadHeader> {
        let Base64(bytes) = &self.packet_header;
        let header =
            PacketHeader::read_from_bytes(bytes).map_err(|_size| BadHeader(bytes.len()))?;
        Ok(SealedSecret::new(header, self.secret.0.clone()))
    }
}

/// Not the header of a packet. The number is its length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a secret's packet header has {HEADER_LEN} bytes, not {0}")]
pub struct BadHeader(pub usize);

/// Bytes, in base64 on the wire.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Base64(pub Vec<u8>);

impl Debug for Base64 {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "Base64({} bytes)", self.0.len())
    }
}

impl TryFrom<String> for Base64 {
    type Error = DecodeError;

    fn try_from(text: String) -> Result<Self, DecodeError> {
        BASE64_STANDARD.decode(text).map(Self)
    }
}

impl From<Base64> for String {
    fn from(bytes: Base64) -> Self {
        BASE64_STANDARD.encode(bytes.0)
    }
}

/// Where to move the guest, and within which limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Where `sevferry receive` listens.
    pub to: Endpoint,
    /// Milliseconds for which the guest may be paused.
    #[serde(default = "MigrateRequest::default_downtime_ms")]
    pub downtime_ms: NonZeroU32,
    /// Seconds after which [`TimeoutStrategy`] decides.
    #[serde(default = "MigrateRequest::default_timeout_s")]
    pub timeout_s: NonZeroU32,
    /// What to do after that time.
    #[serde(default)]
    pub timeout_strategy: TimeoutStrategy,
    /// How many connections carry pages.
    #[serde(default)]
    pub connections: Connections,
    /// Seconds for which the other host may neither send nor take a byte before it counts as gone.
    #[serde(default = "MigrateRequest::default_silence_s")]
    pub silence_s: NonZeroU32,
    /// Slow the guest down if it writes faster than its pages can be sent.
    #[serde(default = "MigrateRequest::default_throttle")]
    pub throttle: bool,
    /// Also migrate a guest whose policy lets the firmware send it to any destination.
    #[serde(default)]
    pub allow_unchecked: bool,
}

impl MigrateRequest {
    /// 300 ms: what a TCP connection and most watchdogs do not notice.
    #[must_use]
    pub fn default_downtime_ms() -> NonZeroU32 {
        const { NonZeroU32::new(300).unwrap() }
    }

    /// An hour.
    #[must_use]
    pub fn default_timeout_s() -> NonZeroU32 {
        const { NonZeroU32::new(3600).unwrap() }
    }

    /// Half a minute: a network that comes back within it costs nothing.
    #[must_use]
    pub fn default_silence_s() -> NonZeroU32 {
        const { NonZeroU32::new(30).unwrap() }
    }

    /// A guest that never arrives is of less use than one that is slow for a while.
    #[must_use]
    pub fn default_throttle() -> bool {
        true
    }

    /// For the engine.
    #[must_use]
    pub fn silence(&self) -> Duration {
        Duration::from_secs(self.silence_s.get().into())
    }

    /// For the engine.
    #[must_use]
    pub fn goal(&self) -> Goal {
        Goal {
            downtime: Duration::from_millis(self.downtime_ms.get().into()),
            timeout: Duration::from_secs(self.timeout_s.get().into()),
            strategy: self.timeout_strategy,
        }
    }
}

/// How many connections carry pages: 1 to [`Connections::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Connections(NonZeroU8);

impl Connections {
    /// The most.
    pub const MAX: u8 = 128;

    /// The most by default: more processors than these are faster than most links.
    const DEFAULT_MAX: u8 = 8;

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0.get()
    }
}

impl Default for Connections {
    /// One for each of this host's processors.
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        let count = u8::try_from(processors).unwrap_or(u8::MAX).min(Self::DEFAULT_MAX);
        Self(NonZeroU8::new(count).unwrap_or(NonZeroU8::MIN))
    }
}

impl TryFrom<u64> for Connections {
    type Error = BadConnections;

    fn try_from(count: u64) -> Result<Self, BadConnections> {
        let wanted = u8::try_from(count).ok().filter(|&count| count <= Self::MAX);
        wanted.and_then(NonZeroU8::new).map(Self).ok_or(BadConnections { count })
    }
}

impl From<Connections> for u64 {
    fn from(connections: Connections) -> Self {
        connections.get().into()
    }
}

/// Too many connections, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{count} connections; a migration has 1 to {}", Connections::MAX)]
pub struct BadConnections {
    /// How many were asked for.
    pub count: u64,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<StatusReply>),
    /// To [`Request::Report`]: as `run --report=json` prints it.
    Report(Value),
    /// To [`Request::Audit`].
    Audited(AuditReply),
    /// It is done or will be done, or it has begun.
    Accepted,
    /// How a migration ended.
    Ended(Box<Summary>),
    /// To [`Request::Check`]: every reason why it would be refused.
    Checked(Vec<Hindrance>),
    /// It cannot be done now.
    Refused {
        /// Why, and what to do about it.
        reason: String,
    },
    /// It is not a request, or answering it failed.
    Error {
        /// What is wrong.
        message: String,
    },
}

/// How things stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusReply {
    /// What the process does.
    pub state: State,
    /// Its process id.
    pub process: u32,
    /// What was launched; `None` for a plain VM, and where there is no guest yet.
    pub launch: Option<LaunchReply>,
    /// Which pages are encrypted; `None` for a plain VM, and where there is no guest yet.
    pub pages: Option<PagesReply>,
    /// What is on the PCI bus of a guest that runs.
    pub devices: Vec<DeviceReport>,
    /// The migration that is under way, or was the last.
    pub migration: Option<Progress>,
}

/// What was launched, with all that the guest's owner needs to check it; the names are those of a
/// report, and of QEMU where it has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchReply {
    /// The guest's policy.
    pub policy: u32,
    /// The number of the C-bit.
    pub c_bit: u8,
    /// Major version of the API of the firmware that measured.
    pub api_major: u8,
    /// Its minor version.
    pub api_minor: u8,
    /// Its build.
    pub build_id: u8,
    /// SHA-256 of what was launched, in hexadecimal.
    pub launch_digest: String,
    /// The firmware's measurement and its nonce, in base64.
    pub launch_measurement: String,
    /// Whether this process was the guest's owner, and has verified it.
    pub measurement_verified: bool,
}

impl From<&LaunchRecord> for LaunchReply {
    fn from(launch: &LaunchRecord) -> Self {
        let FirmwareVersion { major, minor, build } = launch.version;
        Self {
            policy: launch.policy.bits(),
            c_bit: launch.c_bit,
            api_major: major,
            api_minor: minor,
            build_id: build,
            launch_digest: launch.digest_hex(),
            launch_measurement: launch.measurement_base64(),
            measurement_verified: launch.verified,
        }
    }
}

/// What the process that has a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It puts the guest together.
    Starting,
    /// The guest is measured, and waits for its owner before it runs.
    Paused,
    /// The guest runs.
    Running,
    /// The guest is being sent to another host. It runs until shortly before the end.
    Migrating,
    /// It waits for a guest from another host.
    Waiting,
    /// A guest is arriving.
    Receiving,
    /// The other host may or may not run the guest. Here it is paused until that is known.
    InDoubt,
    /// The guest runs on another host; the process is about to end.
    Moved,
}

/// Which pages are encrypted, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagesReply {
    /// Pages that the guest shares; `None` if the record is incomplete.
    pub shared: Option<u64>,
    /// Pages that are encrypted; `None` if the record is incomplete.
    pub private: Option<u64>,
    /// How the record is kept at the moment, in words.
    pub record: String,
    /// Bytes of host memory that it takes.
    pub record_bytes: u64,
    /// Why the guest cannot be migrated now; `None` if it can.
    pub not_migratable: Option<String>,
    /// What makes the guest's reports doubtful, though nothing proves that they are wrong.
    pub doubts: Vec<String>,
}

impl From<&PageSummary> for PagesReply {
    fn from(pages: &PageSummary) -> Self {
        Self {
            shared: pages.shared.as_ref().ok().copied(),
            private: pages.private.as_ref().ok().copied(),
            record: pages.form.to_string(),
            record_bytes: pages.memory_bytes as u64,
            not_migratable: pages.migratable.as_ref().err().map(ToString::to_string),
            doubts: pages.doubts.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A guest's reports compared with its page tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditReply {
    /// How many page tables were read.
    pub tables: u64,
    /// Pages that they map without the C-bit and that were never reported shared.
    pub unreported: u64,
    /// Pages that were reported shared and that they map with the C-bit.
    pub not_shared: u64,
    /// Both in words; `None` if there are none.
    pub contradiction: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine<T> {
    version: u32,
    request: T,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResponseLine<T> {
    version: u32,
    response: T,
}

/// All that is read of a line of another version.
#[derive(Debug, Deserialize)]
struct AnyLine {
    version: u32,
}

impl Request {
    /// As a line, with its line feed.
    ///
    /// # Errors
    /// [`MalformedLine::Json`], which does not happen for a request.
    pub fn to_line(&self) -> Result<Vec<u8>, MalformedLine> {
        to_line(&RequestLine { version: VERSION, request: self })
    }

    /// From a line, with or without its line feed.
    ///
    /// # Errors
    /// [`MalformedLine`] for anything but a request of this version.
    pub fn from_line(line: &[u8]) -> Result<Self, MalformedLine> {
        from_line(line).map(|RequestLine { request, .. }| request)
    }
}

impl Response {
    /// As a line, with its line feed.
    ///
    /// # Errors
    /// [`MalformedLine::Json`], which does not happen for a response.
    pub fn to_line(&self) -> Result<Vec<u8>, MalformedLine> {
        to_line(&ResponseLine { version: VERSION, response: self })
    }

    /// From a line, with or without its line feed.
    ///
    /// # Errors
    /// [`MalformedLine`] for anything but a response of this version.
    pub fn from_line(line: &[u8]) -> Result<Self, MalformedLine> {
        from_line(line).map(|ResponseLine { response, .. }| response)
    }
}

fn to_line(value: &impl Serialize) -> Result<Vec<u8>, MalformedLine> {
    let mut line = to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// Checks the version first, so that a newer program is told that it is newer, and not which field is unknown.
fn from_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, MalformedLine> {
    let AnyLine { version } = from_slice(line)?;
    if version != VERSION {
        return Err(MalformedLine::Version { theirs: version });
    }
    Ok(from_slice(line)?)
}

/// Not a request or response of this version.
#[derive(Debug, Error)]
pub enum MalformedLine {
    /// Not the JSON that it should be.
    #[error("not understood: {0}")]
    Json(#[from] JsonError),
    /// Of another version.
    #[error(
        "version {theirs} of the API; this program speaks version {VERSION}: use the same \
             sevferry on both ends of the socket"
    )]
    Version {
        /// The other end's.
        theirs: u32,
    },
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
