//! What something cost: time, processor time, bytes on the wire, memory.

use std::error::Error;
use std::fs::read_to_string;
use std::time::{Duration, Instant};

use sevferry::encryption::Status;
use sevferry::memory::GuestRam;
use sevferry::page::RamLayout;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// `USER_HZ` of every Linux on x86: the unit of CPU times in `/proc`.
const TICKS_PER_SECOND: u64 = 100;

/// What one migration, one start or one piece of work cost. What it has not is 0.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Run {
    /// From the request to its answer.
    pub(crate) total: Duration,
    /// From the request to the guest's first byte at the destination.
    pub(crate) first_byte: Duration,
    /// From the guest's last byte at the source to its first at the destination.
    pub(crate) gap: Duration,
    /// Of both sides.
    pub(crate) cpu: Duration,
    /// As the loopback device counts them.
    pub(crate) wire_bytes: u64,
    /// At the source while the guest runs, at the destination afterwards.
    pub(crate) beyond_ram: [u64; 2],
    /// CPU time of other processes, over the time that it took.
    pub(crate) others: f64,
}

/// What the machine had done when something began.
pub(crate) struct Meter {
    pub(crate) begun: Instant,
    machine_cpu: Duration,
    wire_bytes: u64,
}

impl Meter {
    /// Something begins.
    pub(crate) fn start() -> Result<Self> {
        let (machine_cpu, wire_bytes) = (machine_cpu_time()?, loopback_bytes()?);
        Ok(Self { begun: Instant::now(), machine_cpu, wire_bytes })
    }

    /// It has ended.
    pub(crate) fn stop(&self) -> Result<Stopped> {
        let total = self.begun.elapsed();
        Ok(Stopped {
            total,
            machine_cpu: machine_cpu_time()?.saturating_sub(self.machine_cpu),
            wire_bytes: loopback_bytes()?.saturating_sub(self.wire_bytes),
        })
    }
}

/// What passed on the machine from a meter's start to its stop.
pub(crate) struct Stopped {
    total: Duration,
    machine_cpu: Duration,
    wire_bytes: u64,
}

impl Stopped {
    /// What it cost, if it took so much CPU time itself: all other is that of others.
    pub(crate) fn with_cpu(&self, cpu: Duration) -> Run {
        let others = self.machine_cpu.saturating_sub(cpu).as_secs_f64() / self.total.as_secs_f64();
        Run { total: self.total, cpu, wire_bytes: self.wire_bytes, others, ..Run::default() }
    }
}

/// CPU time of a process so far, also of its threads that have ended.
pub(crate) fn cpu_time_of(process: u32) -> Result<Duration> {
    cpu_time(&process.to_string(), [13, 14])
}

/// CPU time of this process.
pub(crate) fn own_cpu_time() -> Result<Duration> {
    cpu_time("self", [13, 14])
}

/// CPU time of this process's children that have ended.
pub(crate) fn ended_cpu_time() -> Result<Duration> {
    cpu_time("self", [15, 16])
}

/// The sum of two of the fields of `/proc/PID/stat` that are CPU times, counted from 0.
fn cpu_time(process: &str, fields: [usize; 2]) -> Result<Duration> {
    let stat = read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is a name in parentheses and may have spaces.
    let rest = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?.1;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let mut ticks = 0;
    for field in fields {
        ticks += words.get(field - 2).ok_or("a short /proc/PID/stat")?.parse::<u64>()?;
    }
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// CPU time of everything on this machine since it started.
fn machine_cpu_time() -> Result<Duration> {
    let stat = read_to_string("/proc/stat")?;
    let words = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let times: Vec<u64> = words.map(|word| word.parse().unwrap_or(0)).collect();
    // All but idle, waiting for input or output, steal and guest time, which is in user time.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&field| times.get(field)).sum();
    Ok(Duration::from_millis(busy * 1000 / TICKS_PER_SECOND))
}

/// Bytes that the loopback device has carried.
fn loopback_bytes() -> Result<u64> {
    let devices = read_to_string("/proc/net/dev")?;
    let counts = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    let first = counts.and_then(|counts| counts.split_whitespace().next());
    Ok(first.ok_or("no loopback device in /proc/net/dev")?.parse()?)
}

/// Touches so many bytes in huge pages: a machine that has given memory back to its own host waits for
/// it to come again, which would be measured as the next VMM's.
pub(crate) fn warm_memory(bytes: u64) -> Result<()> {
    let memory = GuestRam::single(RamLayout::new(bytes)?)?;
    for run in memory.layout().ranges() {
        memory.populate(run, Status::Shared);
    }
    Ok(())
}
