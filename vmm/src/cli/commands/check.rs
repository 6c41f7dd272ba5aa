//! `sevferry check`: one screen, or one JSON object, about this host.

use std::io::{Error as IoError, stdout};

use crate::cli::arguments::CheckOptions;
use crate::cli::exit::ExitStatus;
use crate::cli::show::{host_json, host_text};
use crate::machine::HostCheck;
use crate::machine::config::PlatformKind;
use crate::stream::write_all;

/// Prints what was found; [`ExitStatus::Unusable`] if the platform asked for cannot run guests here.
pub(crate) fn check(options: &CheckOptions) -> Result<ExitStatus, IoError> {
    let kind = options.platform.as_ref();
    let host = HostCheck::of_this_host(kind);
    let text = if options.json { host_json(&host) } else { host_text(&host) };
    write_all(stdout(), text.as_bytes())?;
    let usable = match kind {
        Some(PlatformKind::Hardware { .. }) => host.runs_hardware(),
        Some(PlatformKind::Software { .. }) | None => host.runs_software(),
    };
    Ok(if usable { ExitStatus::Success } else { ExitStatus::Unusable })
}
