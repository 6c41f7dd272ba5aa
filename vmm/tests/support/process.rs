//! One sevferry process under test: started, listened to, signalled, and gone at the end.
//!
//! Tests wait for lines and for ends, each with a deadline, and never for time to pass.
#![expect(clippy::panic, reason = "what a test waits for in vain fails it")]

use std::env;
use std::ffi::OsStr;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::fs::read_to_string;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// From a process's start to its end. Generous: the lab is emulated, and others may use the machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A file that guests start from: what `scripts/with-kvm` has put where this process finds it.
pub fn asset(name: &str) -> String {
    let directory = env::var("SEVFERRY_ASSETS")
        .expect("SEVFERRY_ASSETS names the guests' files: run this through scripts/test");
    format!("{directory}/{name}")
}

/// The Debian kernels that there are; a distribution need not have both.
pub fn kernels() -> Vec<String> {
    let all = ["vmlinuz-6.1", "vmlinuz-6.12"].map(asset);
    let there: Vec<_> = all.into_iter().filter(|path| Path::new(path).exists()).collect();
    assert!(!there.is_empty(), "no kernel among the assets: scripts/fetch gets them");
    there
}

/// What guest-firmware says last if all that it checked was right.
pub const PASS: &str = "guest-firmware: PASS";

/// What the page tables of guest-firmware leave unencrypted, from its word `tables`.
pub fn own_view(ended: &Ended) -> Vec<(u64, u64)> {
    let frame = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let runs = ended.out.lines().filter_map(|line| line.strip_prefix("map: shared "));
    let runs = runs.map(|run| {
        let (base, limit) = run.split_once("..")?;
        Some((frame(base)?, frame(limit)?))
    });
    runs.collect::<Option<_>>().expect("map: shared BASE..LIMIT")
}

/// The program under test: what `scripts/build` has built, or else cargo's.
pub fn program() -> PathBuf {
    let built = ["SEVFERRY_BIN", "CARGO_BIN_EXE_sevferry"].into_iter().find_map(env::var_os);
    built.expect("SEVFERRY_BIN names the program, where cargo does not run the test").into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

/// A running sevferry. Dropped, it is killed.
#[derive(Debug)]
pub struct Sevferry {
    child: Child,
    lines: Receiver<(Stream, String)>,
    seen: Vec<(Stream, String)>,
    /// Lines that waiting has gone through.
    passed: usize,
    deadline: Instant,
}

impl Sevferry {
    /// Starts it without input.
    pub fn start<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        Self::start_with_input(arguments, Stdio::null())
    }

    /// Starts it with `input` as its standard input.
    pub fn start_with_input<S: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = S>,
        input: Stdio,
    ) -> Self {
        let mut command = Command::new(program());
        command.args(arguments).stdin(input);
        Self::spawn(command)
    }

    /// Starts it without input, with these variables too.
    pub fn start_with_environment(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program());
        command.args(arguments).stdin(Stdio::null()).envs(variables.iter().copied());
        Self::spawn(command)
    }

    /// Starts it without input, with this umask.
    pub fn start_with_umask(umask: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        command.arg("-c").arg(script).arg(program()).args(arguments).stdin(Stdio::null());
        Self::spawn(command)
    }

    /// Starts it without input, and with `output` as its standard output.
    pub fn start_with_output<S: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = S>,
        output: Stdio,
    ) -> Self {
        let mut command = Command::new(program());
        command.args(arguments).stdin(Stdio::null()).stdout(output);
        Self::spawn_with_output(command)
    }

    fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped());
        Self::spawn_with_output(command)
    }

    fn spawn_with_output(mut command: Command) -> Self {
        command.stderr(Stdio::piped());
        let mut child = command.spawn().expect("sevferry can be started");
        let (sender, lines) = channel();
        if let Some(output) = child.stdout.take() {
            forward(Stream::Out, output, sender.clone());
        }
        forward(Stream::Err, child.stderr.take().expect("a pipe"), sender);
        let deadline = Instant::now() + PATIENCE;
        Self { child, lines, seen: Vec::new(), passed: 0, deadline }
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// From now on, another time than usual until its end.
    pub fn within(mut self, patience: Duration) -> Self {
        self.deadline = Instant::now() + patience;
        self
    }

    /// The next line, of either stream, that contains `text`. Lines before it are passed over.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            while let Some((_, line)) = self.seen.get(self.passed) {
                self.passed += 1;
                if line.contains(text) {
                    return line.trim_end_matches('\n').to_owned();
                }
            }
            if let Err(why) = self.hear() {
                panic!("no '{text}': {why}; {}", self.so_far(None));
            }
        }
    }

    /// Takes in the next line. Disconnected: the process has closed its streams.
    fn hear(&mut self) -> Result<(), RecvTimeoutError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).map(|line| self.seen.push(line))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("a process that has not been waited for");
    }

    /// Lines of `/proc/PID/status` with kibibytes, such as `RssAnon`.
    pub fn memory_kib(&self, name: &str) -> u64 {
        let status = read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// How many mappings the process has.
    pub fn mappings(&self) -> usize {
        read_to_string(format!("/proc/{}/maps", self.id())).expect("it runs").lines().count()
    }

    /// Waits until the process ends of its own; its code is `None` if time was up before that.
    pub fn end(mut self) -> Ended {
        loop {
            match self.hear() {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return self.so_far(None),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.child.wait().expect("our child");
        self.so_far(status.code())
    }

    fn so_far(&self, code: Option<i32>) -> Ended {
        let text = |of| {
            let lines = self.seen.iter().filter(|(stream, _)| *stream == of);
            lines.map(|(_, line)| line.as_str()).collect()
        };
        Ended { code, out: text(Stream::Out), err: text(Stream::Err) }
    }
}

impl Drop for Sevferry {
    fn drop(&mut self) {
        if thread::panicking() {
            self.seen.extend(self.lines.try_iter());
            eprintln!("process {}: {}", self.id(), self.so_far(None));
        }
        // It may have ended, which is what `end` waits for.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Sends each line of a stream on a thread of its own: with `\n` at its end, but for a last line that
/// had none.
fn forward(stream: Stream, from: impl Read + Send + 'static, to: Sender<(Stream, String)>) {
    let copy = move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while let Ok(1..) = from.read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).replace("\r\n", "\n");
            if to.send((stream, text)).is_err() {
                return;
            }
            line.clear();
        }
    };
    thread::spawn(copy);
}

/// The shared regions of a report, as their first frames and the frames after their last.
pub fn shared_regions(report: &Value) -> Vec<(u64, u64)> {
    let regions = report.pointer("/sev/shared_regions_frames").cloned().unwrap_or_default();
    serde_json::from_value(regions).unwrap_or_else(|_| panic!("no regions in {report}"))
}

/// A sevferry that has ended: its exit code, and what it printed: each line ends in `\n`, but perhaps
/// the last.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it, or time was up before.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ended {
    /// Fails unless this is its exit code.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "the exit code; {self}");
        self
    }

    /// Fails unless standard error has this text.
    #[track_caller]
    pub fn saying(self, text: &str) -> Self {
        assert!(self.err.contains(text), "'{text}' is not on standard error; {self}");
        self
    }

    /// The report of `--report=json`, or the last if there are several.
    #[track_caller]
    pub fn report(&self) -> Value {
        let line = self.err.lines().rfind(|line| line.starts_with('{'));
        let report = line.and_then(|line| serde_json::from_str(line).ok());
        report.unwrap_or_else(|| panic!("no report; {self}"))
    }
}

impl Display for Ended {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Self { code, out, err } = self;
        write!(f, "it ended with {code:?}, standard output:\n{out}standard error:\n{err}")
    }
}
