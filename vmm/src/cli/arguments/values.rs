//! The values of single flags: from what the user wrote to what a machine is made of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::key_values::{BadKeyValues, KeyValues};
use crate::control::api::{Connections, Resolution, TimeoutStrategy};
use crate::encryption::{Design, Overflow};
use crate::machine::config::{PlatformKind, Serial, VcpuCount, ram_layout};
use crate::page::RamLayout;
use crate::sev::Policy;
use crate::sev::endorsement::EndorsementFiles;
use crate::sev::measurement::{MEASUREMENT_LEN, Measurement};
use crate::sev::software::{Failure, KernelVersion, Model};

/// How `--platform` is shown in the help.
pub(crate) const PLATFORM: &str = "sev=software|hardware,...";

/// What `--platform` says; the files that it names are not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlatformArgument {
    pub(crate) kind: PlatformKind,
    pub(crate) policy: Policy,
    pub(crate) status: Design,
    /// The guest owner's certificate and session.
    pub(crate) owner: Option<(PathBuf, PathBuf)>,
}

/// What `--platform` says where guests arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReceivingPlatform {
    pub(crate) kind: PlatformKind,
}

/// `--platform sev=software|hardware,...`
pub(crate) fn platform(text: &str) -> Result<PlatformArgument, BadKeyValues> {
    const KEYS: [&str; 15] = [
        "sev",
        "policy",
        "status",
        "overflow",
        "dh_cert_file",
        "session_file",
        "identity",
        "command_cost_us",
        "pin_cost_us",
        "kernel",
        "asids",
        "fail",
        "cek_cert_file",
        "ask_ark_file",
        "write_back",
    ];
    let list = KeyValues::parse(text, &KEYS)?;
    let (kind, status) = (platform_kind(&list)?, status(&list)?);
    let both = "the guest owner makes both, for each other";
    let owner = match (list.value("dh_cert_file"), list.value("session_file")) {
        (None, None) => None,
        (Some(certificate), Some(session)) => Some((certificate.into(), session.into())),
        (Some(_), None) => {
            let (key, other) = ("dh_cert_file", "session_file");
            return Err(BadKeyValues::Without { key, other, why: both });
        }
        (None, Some(_)) => {
            let (key, other) = ("session_file", "dh_cert_file");
            return Err(BadKeyValues::Without { key, other, why: both });
        }
    };
    Ok(PlatformArgument {
        kind,
        policy: list.parsed("policy", policy)?.unwrap_or_default(),
        status,
        owner,
    })
}

/// `--platform sev=software|hardware,...` of a host where guests arrive: their policies, owners and
/// what keeps their page status come with them.
pub(crate) fn receiving_platform(text: &str) -> Result<ReceivingPlatform, BadKeyValues> {
    const KEYS: [&str; 10] = [
        "sev",
        "identity",
        "command_cost_us",
        "pin_cost_us",
        "kernel",
        "asids",
        "fail",
        "cek_cert_file",
        "ask_ark_file",
        "write_back",
    ];
    let list = KeyValues::parse(text, &KEYS)?;
    Ok(ReceivingPlatform { kind: platform_kind(&list)? })
}

/// What the software platform stands for, in the keys that only it has; each with the reason why hardware has
/// it not.
const MODEL_KEYS: [(&str, &str); 6] = [
    ("identity", "the keys of hardware are its own"),
    ("command_cost_us", "hardware takes the time it takes"),
    ("pin_cost_us", "hardware takes the time it takes"),
    ("kernel", "hardware is driven by this host's kernel"),
    ("asids", "hardware has as many as the firmware setup says"),
    ("fail", "hardware fails when it does"),
];

/// What only hardware has, and why the software platform has it not.
const HARDWARE_KEYS: [(&str, &str); 3] = [
    ("cek_cert_file", "the software platform has its vendor's certificates itself"),
    ("ask_ark_file", "the software platform has its vendor's certificates itself"),
    ("write_back", "the software platform's memories have no caches of their own"),
];

fn platform_kind(list: &KeyValues<'_>) -> Result<PlatformKind, BadKeyValues> {
    let default = Model::default();
    let model = Model {
        command_cost: list.parsed("command_cost_us", cost)?.unwrap_or_default(),
        pin_cost: list.parsed("pin_cost_us", cost)?.unwrap_or_default(),
        kernel: list.parsed("kernel", str::parse::<KernelVersion>)?.unwrap_or(default.kernel),
        asids: list.parsed("asids", asids)?.unwrap_or(default.asids),
        failure: list.parsed("fail", str::parse::<Failure>)?,
        ..default
    };
    let endorsement = EndorsementFiles {
        cek: list.value("cek_cert_file").map(PathBuf::from),
        ask_ark: list.value("ask_ark_file").map(PathBuf::from),
    };
    let write_back = list.parsed("write_back", write_back)?.unwrap_or(false);
    let (other, excluded): (_, &[_]) = list.required("sev", |value| match value {
        "software" => Ok(("sev=hardware", &HARDWARE_KEYS[..])),
        "hardware" => Ok(("sev=software", &MODEL_KEYS[..])),
        _ => Err("expected software or hardware"),
    })?;
    if let Some(&(key, why)) = excluded.iter().find(|(key, _)| list.value(key).is_some()) {
        return Err(BadKeyValues::Without { key, other, why });
    }
    if list.value("sev") == Some("software") {
        let identity = list.value("identity").map(PathBuf::from);
        return Ok(PlatformKind::Software { identity, model });
    }
    if endorsement.cek.is_none() && endorsement.ask_ark.is_some() {
        let (key, other) = ("ask_ark_file", "cek_cert_file");
        return Err(BadKeyValues::Without { key, other, why: "it is what signed the CEK" });
    }
    Ok(PlatformKind::Hardware { endorsement, write_back })
}

/// How many guests can have SEV at once.
fn asids(text: &str) -> Result<u32, &'static str> {
    match number(text).map(u32::try_from) {
        Some(Ok(count @ 0..=1023)) => Ok(count),
        _ => Err("expected a number up to 1023"),
    }
}

/// When the kernel is made to write back all caches.
fn write_back(text: &str) -> Result<bool, &'static str> {
    match text {
        "never" => Ok(false),
        "last-round" => Ok(true),
        _ => Err("expected never or last-round"),
    }
}

/// Microseconds; a second at most, so that no command seems to hang.
fn cost(text: &str) -> Result<Duration, &'static str> {
    match number(text) {
        Some(us @ 0..=1_000_000) => Ok(Duration::from_micros(us)),
        _ => Err("expected microseconds, at most 1000000"),
    }
}

/// What keeps page status; only a list can overflow.
fn status(list: &KeyValues<'_>) -> Result<Design, BadKeyValues> {
    let overflow = list.parsed("overflow", |value| match value {
        "promote" => Ok(Overflow::Promote),
        "poison" => Ok(Overflow::Poison),
        _ => Err("expected promote or poison"),
    })?;
    let design = list.parsed("status", |value| match value {
        "list" => Ok(Design::List(overflow.unwrap_or_default())),
        "bitmap" => Ok(Design::Bitmap),
        "donated" => Ok(Design::Donated),
        _ => Err("expected list, bitmap or donated"),
    })?;
    match (design, overflow) {
        (None, overflow) => Ok(Design::List(overflow.unwrap_or_default())),
        (Some(Design::Bitmap | Design::Donated), Some(_)) => {
            let (key, other) = ("overflow", "status=list");
            Err(BadKeyValues::Without { key, other, why: "only a list can overflow" })
        }
        (Some(design), _) => Ok(design),
    }
}

fn policy(text: &str) -> Result<Policy, String> {
    let policy: Policy = text.parse().map_err(|e| format!("{e}"))?;
    if policy.has(Policy::ES) {
        return Err(format!("guest policy {policy} asks for SEV-ES, which is not supported"));
    }
    Ok(policy)
}

/// `--cpus N`, or `boot=N`
pub(crate) fn vcpus(text: &str) -> Result<VcpuCount, BadKeyValues> {
    KeyValues::parse_or_bare(text, "boot")?.required("boot", |value| {
        let count = number(value).ok_or_else(|| "expected a number of vCPUs".to_owned())?;
        VcpuCount::new(count).map_err(|e| e.to_string())
    })
}

/// `--memory N[K|M|G|T][iB]`, or `size=` and that
pub(crate) fn memory(text: &str) -> Result<RamLayout, BadKeyValues> {
    KeyValues::parse_or_bare(text, "size")?.required("size", |value| {
        let expected = "expected a number of bytes, or of K, M, G or T, such as 512M or 512MiB";
        let bytes = size(value).ok_or_else(|| expected.to_owned())?;
        ram_layout(bytes).map_err(|e| e.to_string())
    })
}

/// A number of bytes below 2^64 with an optional binary suffix. `MB` is none: it is no power of two.
fn size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at_checked(end)?;
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return None,
    };
    number(digits)?.checked_mul(1 << shift)
}

/// A size in bytes, as `20G`.
pub(crate) fn bytes(text: &str) -> Result<u64, &'static str> {
    size(text).ok_or("expected a number of bytes, as 20G or 512M")
}

/// Decimal digits and nothing else.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// `--serial tty|null|file=PATH`
pub(crate) fn serial(text: &str) -> Result<Serial, &'static str> {
    match (text, text.split_once('=')) {
        ("tty", _) => Ok(Serial::Tty),
        ("null", _) => Ok(Serial::Null),
        (_, Some(("file", path))) if !path.is_empty() => Ok(Serial::File(path.into())),
        _ => Err("expected tty, null or file=PATH"),
    }
}

/// `--measurement BASE64`
pub(crate) fn measurement(text: &str) -> Result<Measurement, String> {
    let bytes = BASE64_STANDARD.decode(text).map_err(|e| format!("not base64: {e}"))?;
    let bytes = <[u8; MEASUREMENT_LEN]>::try_from(bytes);
    let wrong = |bytes: Vec<u8>| {
        format!("{} bytes; a launch measurement has {MEASUREMENT_LEN}, in base64", bytes.len())
    };
    bytes.map(|bytes| Measurement::from_bytes(&bytes)).map_err(wrong)
}

/// A number of seconds, at least one.
pub(crate) fn seconds(text: &str) -> Result<Duration, &'static str> {
    match number(text).map(u32::try_from) {
        Some(Ok(seconds @ 1..)) => Ok(Duration::from_secs(seconds.into())),
        _ => Err("expected a number of seconds, at least 1"),
    }
}

/// A guest-physical address: decimal, or hexadecimal after 0x.
pub(crate) fn address(text: &str) -> Result<u64, &'static str> {
    let address = match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None => number(text),
    };
    address.ok_or("expected an address such as 0xef000")
}

/// A path, which is not empty.
pub(crate) fn path(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() { Err("expected the path of a file") } else { Ok(Path::new(text).into()) }
}

/// `--timeout-strategy cancel|stop`
pub(crate) fn timeout_strategy(text: &str) -> Result<TimeoutStrategy, &'static str> {
    match text {
        "cancel" => Ok(TimeoutStrategy::Cancel),
        "stop" => Ok(TimeoutStrategy::Stop),
        _ => Err("expected cancel or stop"),
    }
}

/// `--connections N`
pub(crate) fn connections(text: &str) -> Result<Connections, String> {
    let count = number(text).ok_or_else(|| "expected a number of connections".to_owned())?;
    Connections::try_from(count).map_err(|e| e.to_string())
}

/// `keep` or `discard`
pub(crate) fn resolution(text: &str) -> Result<Resolution, &'static str> {
    match text {
        "keep" => Ok(Resolution::Keep),
        "discard" => Ok(Resolution::Discard),
        _ => Err("expected keep or discard"),
    }
}
