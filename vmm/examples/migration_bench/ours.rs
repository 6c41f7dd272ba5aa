//! sevferry against itself, driven through its API socket.

use std::path::Path;
use std::process::Command;

use sevferry::control::api::{MigrateRequest, Outcome, Request, Response, TimeoutStrategy};
use sevferry::control::{Client, PATIENCE as API_PATIENCE};

use super::vmm::{PATIENCE, Result, Run, Vmm, time};
use super::{DOWNTIME_MS, Guest};

/// One migration over TCP on loopback.
pub(crate) fn migrate(
    program: &Path,
    guest: &Guest,
    is_sev: bool,
    connections: u8,
    port: u16,
) -> Result<Run> {
    let file = |name: &str| guest.directory.join(name);
    let listen = format!("tcp:127.0.0.1:{port}");
    let journals = [file("journal-source"), file("journal-destination")];
    let platform: &[&str] = if is_sev { &["--platform", "sev=software"] } else { &[] };
    let destination = Vmm::start(
        Command::new(program)
            .args(["receive", "--listen", &listen, "--journal"])
            .arg(&journals[1])
            .args(platform),
        &file("destination.err"),
    )?;
    let api = file("api");
    let source = Vmm::start(
        Command::new(program)
            .args(["run", "--memory", &format!("size={}", guest.ram)])
            .arg("--kernel")
            .arg(guest.kernel(is_sev))
            .arg("--initramfs")
            .arg(guest.noise())
            .arg("--api-socket")
            .arg(&api)
            .arg("--journal")
            .arg(&journals[0])
            .args(platform),
        &file("source.err"),
    )?;
    let request = Request::Migrate(MigrateRequest {
        to: listen.parse()?,
        downtime_ms: DOWNTIME_MS.try_into()?,
        timeout_s: MigrateRequest::default_timeout_s(),
        silence_s: MigrateRequest::default_silence_s(),
        timeout_strategy: TimeoutStrategy::Cancel,
        connections: u64::from(connections).try_into()?,
        throttle: false,
        allow_unchecked: false,
    });
    time(source, &destination, guest.ram, true, &mut || {
        let client = Client::ask(&api, &request)?;
        let mut responses = client.responses();
        let answer = responses.next(Some(API_PATIENCE))?;
        if answer != Response::Accepted {
            return Err(format!("not accepted: {answer:?}").into());
        }
        let answer = responses.next(Some(PATIENCE))?;
        if let Response::Ended(summary) = &answer
            && summary.outcome == Outcome::Moved
        {
            return Ok(summary.carried.wire_bytes);
        }
        Err(format!("not moved: {answer:?}").into())
    })
}
