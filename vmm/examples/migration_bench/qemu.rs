//! QEMU, driven by QMP.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, from_str, json};

use super::contender::{Contender, DOWNTIME_MS};
use super::cost::{Result, Run};
use super::guest::Guest;
use super::process::{Process, connect, time_migration};

/// Debian's package.
const PROGRAM: &str = "qemu-system-x86_64";

/// The one that is installed.
pub(crate) struct Qemu;

impl Qemu {
    /// Its version, if it is installed.
    pub(crate) fn version() -> Option<String> {
        let out = Command::new(PROGRAM).arg("--version").output().ok()?;
        Some(String::from_utf8_lossy(&out.stdout).lines().next()?.to_owned())
    }
}

impl Contender for Qemu {
    fn name(&self) -> String {
        "QEMU".to_owned()
    }

    fn boot(&self, guest: &Guest, api: &Path) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["-accel", "kvm", "-M", "microvm,auto-kernel-cmdline=off"]);
        command.args(["-cpu", "host,-arch-capabilities", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-serial", "stdio", "-m"]).arg(format!("{}B", guest.ram));
        command.arg("-kernel").arg(&guest.kernel);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", api.display()));
        if let Some(initramfs) = &guest.initramfs {
            command.arg("-initrd").arg(initramfs);
        }
        command
    }

    /// Several connections are multifd.
    fn migrate(&self, guest: &Guest, connections: u8, port: u16) -> Result<Run> {
        let [source_qmp, destination_qmp] =
            ["source", "destination"].map(|side| guest.file(&format!("qmp-{side}")));
        let mut receive = self.boot(guest, &destination_qmp);
        receive.args(["-incoming", "defer"]);
        let destination = Process::start(&mut receive, &guest.file("destination.err"))?;
        let source = Process::start(&mut self.boot(guest, &source_qmp), &guest.file("source.err"))?;
        let mut control = [Monitor::connect(&source_qmp)?, Monitor::connect(&destination_qmp)?];
        for monitor in &mut control {
            let capabilities = json!([
                {"capability": "multifd", "state": connections > 1},
                {"capability": "events", "state": true},
            ]);
            monitor.ask("migrate-set-capabilities", &json!({"capabilities": capabilities}))?;
            let parameters = json!({
                // As much as the link carries; the default is 128 MiB/s.
                "max-bandwidth": u64::MAX >> 4,
                "downtime-limit": DOWNTIME_MS,
                "multifd-channels": connections.max(2),
            });
            monitor.ask("migrate-set-parameters", &parameters)?;
        }
        let uri = json!({"uri": format!("tcp:127.0.0.1:{port}")});
        let [from, to] = &mut control;
        to.ask("migrate-incoming", &uri)?;
        time_migration(guest, source, &destination, false, &mut || {
            from.ask("migrate", &uri)?;
            from.wait_until_migrated()
        })
    }
}

/// A connection to QEMU's monitor.
struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(path: &Path) -> Result<Self> {
        let mut monitor = Self { lines: connect(path)? };
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Events and the greeting are passed over.
    fn ask(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.lines.get_mut(), "{request}")?;
        loop {
            let answer = self.next()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}").into());
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn wait_until_migrated(&mut self) -> Result<()> {
        loop {
            let event = self.next()?;
            match event.pointer("/data/status").and_then(Value::as_str) {
                Some("completed") => return Ok(()),
                Some("failed") => return Err(format!("QEMU: {event}").into()),
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err("QEMU has closed its monitor".into());
        }
        Ok(from_str(&line)?)
    }
}
