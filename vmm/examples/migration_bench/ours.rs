//! sevferry itself, driven through its API socket.

use std::path::{Path, PathBuf};
use std::process::Command;

use sevferry::control::api::{MigrateRequest, Outcome, Request, Response, TimeoutStrategy};
use sevferry::control::{Client, PATIENCE as API_PATIENCE};

use super::contender::{Contender, DOWNTIME_MS, Role};
use super::cost::{Result, Run};
use super::guest::Guest;
use super::process::{PATIENCE, Process, time_migration};

/// What is to be measured.
pub(crate) struct Sevferry {
    /// The program.
    pub(crate) program: PathBuf,
}

impl Sevferry {
    fn command(&self, what: &str, guest: &Guest) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(what).arg("--journal").arg(guest.file(&format!("journal-{what}")));
        if guest.is_sev {
            command.args(["--platform", "sev=software"]);
        }
        command
    }
}

impl Contender for Sevferry {
    fn role(&self) -> Role {
        Role::Sevferry
    }

    fn name(&self) -> String {
        "sevferry".to_owned()
    }

    fn boot(&self, guest: &Guest, api: &Path) -> Command {
        let mut command = self.command("run", guest);
        command.args(["--memory", &format!("size={}", guest.ram)]);
        command.arg("--kernel").arg(&guest.kernel).arg("--api-socket").arg(api);
        if let Some(initramfs) = &guest.initramfs {
            command.arg("--initramfs").arg(initramfs);
        }
        command
    }

    fn migrate(&self, guest: &Guest, connections: u8, port: u16) -> Result<Run> {
        let address = format!("tcp:127.0.0.1:{port}");
        let mut receive = self.command("receive", guest);
        receive.args(["--listen", &address]);
        let destination = Process::start(&mut receive, &guest.file("destination.err"))?;
        let api = guest.file("api");
        let source = Process::start(&mut self.boot(guest, &api), &guest.file("source.err"))?;
        let request = Request::Migrate(MigrateRequest {
            to: address.parse()?,
            downtime_ms: DOWNTIME_MS.try_into()?,
            timeout_s: MigrateRequest::default_timeout_s(),
            silence_s: MigrateRequest::default_silence_s(),
            timeout_strategy: TimeoutStrategy::Cancel,
            connections: u64::from(connections).try_into()?,
            throttle: false,
            allow_unchecked: false,
        });
        time_migration(guest, source, &destination, true, &mut || {
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
                return Ok(());
            }
            Err(format!("not moved: {answer:?}").into())
        })
    }
}
