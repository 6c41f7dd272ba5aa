//! QEMU's own migration of the same guest, driven by QMP.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, from_str, json};

use super::vmm::{PATIENCE, Result, Run, Vmm, time};
use super::{DOWNTIME_MS, Guest};

/// Debian's package.
const PROGRAM: &str = "qemu-system-x86_64";

/// How often the migration's end is looked for; the times measured do not depend on it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One migration over TCP on loopback; several connections are multifd.
pub(crate) fn migrate(guest: &Guest, connections: u8, port: u16) -> Result<Run> {
    let [source_qmp, destination_qmp] =
        ["source", "destination"].map(|side| guest.directory.join(format!("qmp-{side}")));
    let start = |qmp: &Path, log: &str, incoming: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(["-accel", "kvm", "-M", "microvm,auto-kernel-cmdline=off"]);
        command.args(["-cpu", "host,-arch-capabilities", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-serial", "stdio", "-m"]).arg(format!("{}B", guest.ram));
        command.arg("-kernel").arg(guest.kernel(false)).arg("-initrd").arg(guest.noise());
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        command.args(incoming);
        Vmm::start(&mut command, &guest.directory.join(log))
    };
    let destination = start(&destination_qmp, "destination.err", &["-incoming", "defer"])?;
    let source = start(&source_qmp, "source.err", &[])?;
    let mut control = [Monitor::connect(&source_qmp)?, Monitor::connect(&destination_qmp)?];
    let multifd = connections > 1;
    for monitor in &mut control {
        let capability = json!({"capability": "multifd", "state": multifd});
        monitor.ask("migrate-set-capabilities", &json!({"capabilities": [capability]}))?;
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
    time(source, &destination, guest.ram, false, &mut || {
        from.ask("migrate", &uri)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let state = from.ask("query-migrate", &json!({}))?;
            match state.get("status").and_then(Value::as_str) {
                Some("completed") => {
                    let bytes = state.pointer("/ram/transferred").and_then(Value::as_u64);
                    return bytes.ok_or_else(|| format!("QEMU: {state}").into());
                }
                Some("failed") => return Err(format!("QEMU: {state}").into()),
                _ => thread::park_timeout(LOOK_EVERY),
            }
        }
        Err("QEMU does not end the migration".into())
    })
}

/// The version, for the heading.
pub(crate) fn version() -> Result<String> {
    let out = Command::new(PROGRAM).arg("--version").output()?;
    let text = String::from_utf8(out.stdout)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A connection to QEMU's monitor.
struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(cause) if Instant::now() > deadline => return Err(cause.into()),
                Err(_not_yet) => thread::park_timeout(LOOK_EVERY),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self { lines: BufReader::new(stream) };
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Events and the greeting are passed over.
    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.lines.get_mut(), "{request}")?;
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err("QEMU has closed its monitor".into());
            }
            let mut answer: Value = from_str(&line)?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}").into());
            }
            if let Some(found) = answer.get_mut("return") {
                return Ok(found.take());
            }
        }
    }
}
