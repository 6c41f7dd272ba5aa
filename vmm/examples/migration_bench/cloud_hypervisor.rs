//! Cloud Hypervisor, driven by its HTTP API.

use std::fs::read_to_string;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::contender::{Contender, DOWNTIME_MS};
use super::cost::{Result, Run};
use super::guest::Guest;
use super::process::{PATIENCE, Process, connect, time_migration};

/// How often its listener is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A build of it. It has no package in Debian, so whoever measures says where it is.
pub(crate) struct CloudHypervisor {
    program: PathBuf,
}

impl CloudHypervisor {
    /// The programs that a list with colons names.
    pub(crate) fn all(list: &str) -> Vec<Self> {
        let named = list.split(':').filter(|path| !path.is_empty());
        named.map(|path| Self { program: path.into() }).collect()
    }

    /// The version, for the heading.
    pub(crate) fn version(&self) -> Result<String> {
        let out = Command::new(&self.program).arg("--version").output()?;
        let text = String::from_utf8(out.stdout)?;
        Ok(format!("{}: {}", self.name(), text.lines().next().unwrap_or_default()))
    }

    fn controlled_at(&self, api: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--api-socket").arg(format!("path={}", api.display()));
        command
    }
}

impl Contender for CloudHypervisor {
    /// The file's, because several builds may be measured.
    fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn boot(&self, guest: &Guest, api: &Path) -> Command {
        let mut command = self.controlled_at(api);
        command.args(["--cpus", "boot=1", "--serial", "tty", "--console", "off"]);
        command.args(["--memory", &format!("size={}", guest.ram)]);
        command.arg("--kernel").arg(&guest.kernel);
        if let Some(initramfs) = &guest.initramfs {
            command.arg("--initramfs").arg(initramfs);
        }
        command
    }

    /// Its source answers when it has begun, its destination when the guest is there.
    fn migrate(&self, guest: &Guest, connections: u8, port: u16) -> Result<Run> {
        let [source_api, destination_api] =
            ["source", "destination"].map(|side| guest.file(&format!("ch-{side}-{port}")));
        let mut receive = self.controlled_at(&destination_api);
        let destination = Process::start(&mut receive, &guest.file("destination.err"))?;
        let mut to = Api::connect(&destination_api)?;
        let address = format!("tcp:127.0.0.1:{port}");
        to.ask("vm.receive-migration", &json!({"receiver_url": address}))?;
        wait_for_listener(port)?;
        let source = Process::start(&mut self.boot(guest, &source_api), &guest.file("source.err"))?;
        let mut from = Api::connect(&source_api)?;
        let request = json!({
            "destination_url": address,
            "downtime_ms": DOWNTIME_MS,
            "connections": connections,
        });
        time_migration(guest, source, &destination, true, &mut || {
            from.ask("vm.send-migration", &request)?;
            from.answer()?;
            to.answer()
        })
    }
}

/// Waits until a process listens at the port. A connection would be taken for the source's.
fn wait_for_listener(port: u16) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    // The local address ends in the port, and 0A is the state of a listener.
    let local = format!(":{port:04X} 00000000:0000 0A");
    while !read_to_string("/proc/net/tcp")?.contains(&local) {
        if Instant::now() > deadline {
            return Err(format!("nobody listens at port {port}").into());
        }
        thread::park_timeout(LOOK_EVERY);
    }
    Ok(())
}

/// A connection to its API.
struct Api {
    lines: BufReader<UnixStream>,
}

impl Api {
    fn connect(path: &Path) -> Result<Self> {
        Ok(Self { lines: connect(path)? })
    }

    fn ask(&mut self, action: &str, body: &Value) -> Result<()> {
        let body = body.to_string();
        let request = format!(
            "PUT /api/v1/{action} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(self.lines.get_mut().write_all(request.as_bytes())?)
    }

    /// Waits until what was asked is done.
    fn answer(&mut self) -> Result<()> {
        let (mut head, mut body_bytes) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err(format!("the API was closed after {head:?}").into());
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                body_bytes = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
            head += &line;
        }
        let mut body = vec![0; body_bytes];
        self.lines.read_exact(&mut body)?;
        if !head.starts_with("HTTP/1.1 2") {
            return Err(format!("{head}{}", String::from_utf8_lossy(&body)).into());
        }
        Ok(())
    }
}
