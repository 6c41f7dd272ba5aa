//! Guests in this process: their files, how they are booted, and their serial output.
#![expect(clippy::panic, reason = "what a test waits for in vain fails it")]

use std::env;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, pipe};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::spawn;
use std::time::{Duration, Instant};

use sevferry::devices::SerialOutput;
use sevferry::encryption::Overflow;
use sevferry::machine::config::{
    OwnerInput, PlatformKind, Serial, SevConfig, VcpuCount, ram_layout,
};
use sevferry::machine::{Config, Machine, PausedMachine, RunningMachine};
use sevferry::sev::Policy;
use sevferry::sev::software::Model;
use sevferry::vcpu::Stop;

/// Between two lines of a guest, and until its end. Generous: the lab is emulated.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A guest's serial output, line by line, with when each came, and how the guest ended.
#[derive(Debug)]
pub struct Console {
    lines: Receiver<(Instant, String)>,
    /// What all machines write to: a guest may be moved in the middle of a line.
    writer: PipeWriter,
    ends: Receiver<Stop>,
    /// Machines say here how they ended.
    pub end_sender: Sender<Stop>,
    /// The lines that waiting has gone through.
    pub seen: Vec<(Instant, String)>,
}

/// Passes lines on, until no machine and no console is left that could write one.
fn read_lines(from: PipeReader, to: &Sender<(Instant, String)>) {
    let (mut from, mut line) = (BufReader::new(from), Vec::new());
    while let Ok(1..) = from.read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if to.send((Instant::now(), text)).is_err() {
            return;
        }
        line.clear();
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// One that no guest writes to yet.
    pub fn new() -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        let (line_sender, lines) = channel();
        spawn(move || read_lines(reader, &line_sender));
        let (end_sender, ends) = channel();
        Self { lines, writer, ends, end_sender, seen: Vec::new() }
    }

    /// An end for the serial port of a machine; the lines of all machines come here.
    pub fn output(&self) -> SerialOutput {
        SerialOutput::to(self.writer())
    }

    /// What [`Console::output`] writes to.
    pub fn writer(&self) -> PipeWriter {
        self.writer.try_clone().expect("a descriptor")
    }

    /// Builds a machine and starts it.
    pub fn boot(&self, config: &Config) -> RunningMachine {
        let machine = Machine::build(config, self.output()).expect("the machine can be built");
        machine.run(&self.end_sender).expect("threads for vCPUs")
    }

    /// Lets a machine go on that was paused.
    pub fn resume(&self, paused: PausedMachine) -> RunningMachine {
        paused.resume(&self.end_sender).expect("threads for vCPUs")
    }

    /// The next line that contains `text`.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok((when, line)) => {
                    self.seen.push((when, line.clone()));
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(_) => panic!("no '{text}' came; {}", self.transcript()),
            }
        }
    }

    /// Waits until the guest has passed and powered off.
    #[track_caller]
    pub fn wait_for_pass(&mut self) {
        let mut verdict = String::new();
        while verdict.is_empty() || verdict.starts_with("guest-firmware: start") {
            verdict = self.wait_for("guest-firmware: ");
        }
        assert_eq!(verdict, "guest-firmware: PASS", "{}", self.transcript());
        self.wait_for_power_off();
    }

    /// Waits until the guest has powered off.
    #[track_caller]
    pub fn wait_for_power_off(&self) {
        let end = self.ends.recv_timeout(PATIENCE);
        assert!(matches!(end, Ok(Stop::PowerOff)), "{end:?}; {}", self.transcript());
    }

    /// Fails unless the lines `count: N` were those from 1 to `last`, each once and in order.
    #[track_caller]
    pub fn assert_counted_to(&self, last: u64) {
        let numbers = self.seen.iter().filter_map(|(_, line)| line.strip_prefix("count: "));
        let mut expected = 1;
        for number in numbers {
            assert_eq!(number.parse(), Ok(expected), "a count repeats or is missing");
            expected += 1;
        }
        assert_eq!(expected - 1, last, "the last count");
    }

    /// All that was read, for messages.
    pub fn transcript(&self) -> String {
        let lines: Vec<_> = self.seen.iter().map(|(_, line)| line.as_str()).collect();
        format!("the guest printed:\n{}", lines.join("\n"))
    }
}

/// Types `text` and a return on the guest's serial port.
pub fn type_line(machine: &RunningMachine, text: &str) {
    let input = format!("{text}\n");
    let deadline = Instant::now() + PATIENCE;
    let gone = || Instant::now() > deadline;
    machine.serial().receive(input.as_bytes(), &gone).expect("the guest reads");
}

/// A file that guests start from: what `scripts/with-kvm` has put where this process finds it.
pub fn asset(name: &str) -> PathBuf {
    let directory = env::var("SEVFERRY_ASSETS")
        .expect("SEVFERRY_ASSETS names the guests' files: run this through scripts/test");
    Path::new(&directory).join(name)
}

/// A software platform with keys of its own.
pub fn software() -> PlatformKind {
    PlatformKind::Software { identity: None, model: Model::default() }
}

/// An SEV guest of the software platform.
pub fn as_sev() -> Option<SevConfig> {
    Some(SevConfig {
        platform: software(),
        policy: Policy::default(),
        status: Overflow::Promote.into(),
        owner: OwnerInput::Own,
    })
}

/// guest-firmware that does as the words say, in the least RAM that a machine can have.
pub fn firmware(words: &str, vcpus: u64, sev: Option<SevConfig>) -> Config {
    Config {
        kernel: asset("guest-firmware.elf"),
        initramfs: None,
        cmdline: words.to_owned(),
        vcpus: VcpuCount::new(vcpus).expect("a number of vCPUs"),
        ram: ram_layout(16 << 20).expect("a size of RAM"),
        serial: Serial::Null,
        sev,
        devices: Vec::new(),
    }
}
