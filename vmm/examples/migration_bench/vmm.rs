//! A VMM's process, observed from outside: the bytes of its guest, its CPU time, its memory.

use std::error::Error;
use std::fs::{File, read_to_string};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::limits::warm_memory;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// `USER_HZ` of every Linux on x86: the unit of CPU times in `/proc`.
const TICKS_PER_SECOND: u64 = 100;

/// A running VMM whose guest writes to its standard output. Dropped, it is killed.
pub(crate) struct Vmm {
    child: Child,
    heard: Arc<Heard>,
}

/// Each byte of the guest, and when it came.
#[derive(Default)]
struct Heard {
    bytes: Mutex<Vec<(Instant, u8)>>,
    more: Condvar,
}

impl Vmm {
    /// Starts `command`; its standard error goes to the file `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(log)?);
        let mut child = command.spawn()?;
        let mut out = child.stdout.take().ok_or("no pipe")?;
        let heard = Arc::new(Heard::default());
        let listener = heard.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut buffer) {
                let now = Instant::now();
                let mut bytes = listener.bytes.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.extend(buffer.iter().take(count).map(|&byte| (now, byte)));
                listener.more.notify_all();
            }
        });
        Ok(Self { child, heard })
    }

    /// Waits until the guest has written `count` bytes.
    pub(crate) fn wait_for_bytes(&self, count: usize) -> Result<()> {
        let bytes = self.heard.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let few = |bytes: &mut Vec<_>| bytes.len() < count;
        let (bytes, waited) = self
            .heard
            .more
            .wait_timeout_while(bytes, PATIENCE, few)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(format!("the guest wrote {} of {count} bytes", bytes.len()).into());
        }
        Ok(())
    }

    /// The first byte and the last, and when they came.
    pub(crate) fn ends(&self) -> Option<[(Instant, u8); 2]> {
        let bytes = self.heard.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        Some([*bytes.first()?, *bytes.last()?])
    }

    /// CPU time of all its threads so far, also of those that have ended.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        cpu_time(&self.child.id().to_string(), [13, 14])
    }

    /// Waits until it has ended, by itself or else killed; its CPU time in all.
    fn end(mut self, by_itself: bool) -> Result<Duration> {
        let before = cpu_time("self", [15, 16])?;
        if !by_itself {
            self.child.kill()?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err("a VMM whose guest has moved does not end".into());
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        Ok(cpu_time("self", [15, 16])?.saturating_sub(before))
    }

    /// Bytes that it has of its own beyond the guest's RAM, whose mappings are `ram` bytes long or
    /// longer, and beyond the initramfs's file; pages shared with others count in part.
    pub(crate) fn bytes_beyond_ram(&self, ram: u64) -> Result<u64> {
        let maps = read_to_string(format!("/proc/{}/smaps", self.child.id()))?;
        let kib = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        let (mut own, mut beyond) = (true, 0_u64);
        for line in maps.lines() {
            if line.starts_with("Size:") {
                own &= kib(line).unwrap_or(0) < ram >> 10;
            } else if line.starts_with("Pss:") && own {
                beyond += kib(line).unwrap_or(0);
            } else if line.starts_with("VmFlags:") {
                // The next line is the next mapping's first, with the file's name.
                own = true;
            } else if line.ends_with("/noise") {
                own = false;
            }
        }
        Ok(beyond << 10)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
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

/// CPU time of this process.
pub(crate) fn own_cpu_time() -> Result<Duration> {
    cpu_time("self", [13, 14])
}

/// CPU time of everything on this machine since it started.
pub(crate) fn machine_cpu_time() -> Result<Duration> {
    let stat = read_to_string("/proc/stat")?;
    let words = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let times: Vec<u64> = words.map(|word| word.parse().unwrap_or(0)).collect();
    // All but idle, waiting for input or output, steal and guest time, which is in user time.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&field| times.get(field)).sum();
    Ok(Duration::from_millis(busy * 1000 / TICKS_PER_SECOND))
}

/// What one migration cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// From the request to the guest's first byte at the destination.
    pub(crate) total: Duration,
    /// From its last byte at the source to its first at the destination.
    pub(crate) gap: Duration,
    /// Of both sides.
    pub(crate) cpu: Duration,
    /// As the VMM counts them.
    pub(crate) wire_bytes: u64,
    /// At the source while the guest runs, at the destination afterwards.
    pub(crate) beyond_ram: [u64; 2],
    /// CPU time of other processes, over the time that it took.
    pub(crate) others: f64,
}

/// Times one migration: `migrate` asks for it, waits for its end, and says how many bytes it took.
pub(crate) fn time(
    source: Vmm,
    destination: &Vmm,
    ram: u64,
    source_ends: bool,
    migrate: &mut dyn FnMut() -> Result<u64>,
) -> Result<Run> {
    source.wait_for_bytes(100)?;
    warm_memory(ram / 2 * 5)?;
    let at_source = source.bytes_beyond_ram(ram)?;
    let cpu_before = source.cpu_time()? + destination.cpu_time()?;
    let (all_before, begun) = (machine_cpu_time()?, Instant::now());
    let wire_bytes = migrate()?;
    destination.wait_for_bytes(1)?;
    let (all, took) = (machine_cpu_time()?.saturating_sub(all_before), begun.elapsed());
    let [(first, number), _] = destination.ends().ok_or("no byte at the destination")?;
    let destination_cpu = destination.cpu_time()?;
    destination.wait_for_bytes(20)?;
    let [_, (last, before)] = source.ends().ok_or("no byte at the source")?;
    if before.wrapping_add(1) != number {
        return Err(format!("the guest wrote {before} at the source, {number} then").into());
    }
    let beyond_ram = [at_source, destination.bytes_beyond_ram(ram)?];
    // Giving back the guest's memory is part of a migration: it is in the time of a process that ended.
    let source_cpu = source.end(source_ends)?;
    let cpu = (source_cpu + destination_cpu).saturating_sub(cpu_before);
    Ok(Run {
        total: first.saturating_duration_since(begun),
        gap: first.saturating_duration_since(last),
        cpu,
        wire_bytes,
        beyond_ram,
        others: all.saturating_sub(cpu).as_secs_f64() / took.as_secs_f64(),
    })
}
