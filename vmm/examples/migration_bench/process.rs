//! A VMM's process, observed from outside: the bytes of its guest, its CPU time, its memory.

use std::fs::{File, read_to_string};
use std::io::{BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::cost::{Meter, Result, Run, cpu_time_of, ended_cpu_time, warm_memory};
use super::guest::Guest;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running VMM whose guest writes to its standard output. Dropped, it is killed.
pub(crate) struct Process {
    child: Child,
    heard: Arc<Heard>,
}

/// Each byte of the guest, and when it came.
#[derive(Default)]
struct Heard {
    bytes: Mutex<Vec<(Instant, u8)>>,
    more: Condvar,
}

impl Process {
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
    fn wait_for_bytes(&self, count: usize) -> Result<()> {
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
    fn ends(&self) -> Option<[(Instant, u8); 2]> {
        let bytes = self.heard.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        Some([*bytes.first()?, *bytes.last()?])
    }

    /// CPU time of all its threads so far, also of those that have ended.
    fn cpu_time(&self) -> Result<Duration> {
        cpu_time_of(self.child.id())
    }

    /// Waits until it has ended, by itself or else killed; its CPU time in all.
    fn end(mut self, by_itself: bool) -> Result<Duration> {
        let before = ended_cpu_time()?;
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
        Ok(ended_cpu_time()?.saturating_sub(before))
    }

    /// Bytes that it has in memory beyond the guest's RAM, whose mappings are `ram` bytes long or
    /// longer, and beyond the initramfs's file. Pages shared with others count: the two sides of a
    /// migration are one program, but on two hosts they share nothing.
    fn bytes_beyond_ram(&self, ram: u64) -> Result<u64> {
        let maps = read_to_string(format!("/proc/{}/smaps", self.child.id()))?;
        let kib = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        let (mut own, mut beyond) = (true, 0_u64);
        for line in maps.lines() {
            if line.starts_with("Size:") {
                own &= kib(line).unwrap_or(0) < ram >> 10;
            } else if line.starts_with("Rss:") && own {
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

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Connects to a socket by which a VMM is controlled, as soon as there is one.
pub(crate) fn connect(path: &Path) -> Result<BufReader<UnixStream>> {
    let deadline = Instant::now() + PATIENCE;
    let stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(cause) if Instant::now() > deadline => return Err(cause.into()),
            Err(_not_yet) => thread::park_timeout(Duration::from_millis(1)),
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

/// Times a start: from the process's to its guest's first byte. It is too short for CPU times.
pub(crate) fn time_start(guest: &Guest, command: &mut Command) -> Result<Run> {
    warm_memory(guest.ram)?;
    let begun = Instant::now();
    let process = Process::start(command, &guest.file("start.err"))?;
    process.wait_for_bytes(1)?;
    let [(first, _), _] = process.ends().ok_or("no byte")?;
    Ok(Run { total: first.saturating_duration_since(begun), ..Run::default() })
}

/// Times one migration: `migrate` asks for it and waits for its end.
pub(crate) fn time_migration(
    guest: &Guest,
    source: Process,
    destination: &Process,
    source_ends: bool,
    migrate: &mut dyn FnMut() -> Result<()>,
) -> Result<Run> {
    let ram = guest.ram;
    source.wait_for_bytes(100)?;
    warm_memory(ram / 2 * 5)?;
    let at_source = source.bytes_beyond_ram(ram)?;
    let cpu_before = source.cpu_time()? + destination.cpu_time()?;
    let meter = Meter::start()?;
    migrate()?;
    let stopped = meter.stop()?;
    destination.wait_for_bytes(1)?;
    let [(first, number), _] = destination.ends().ok_or("no byte at the destination")?;
    let destination_cpu = destination.cpu_time()?;
    // By then, a guest that writes memory has found all of it as it was.
    destination.wait_for_bytes(20 + guest.ticks_per_round())?;
    let [_, (last, before)] = source.ends().ok_or("no byte at the source")?;
    if before.wrapping_add(1) != number {
        return Err(format!("the guest wrote {before} at the source, {number} then").into());
    }
    let at_destination = destination.bytes_beyond_ram(ram)?;
    // Giving back the guest's memory is part of a migration: it is in the time of a process that ended.
    let source_cpu = source.end(source_ends)?;
    let cpu = (source_cpu + destination_cpu).saturating_sub(cpu_before);
    Ok(Run {
        first_byte: first.saturating_duration_since(meter.begun),
        gap: first.saturating_duration_since(last),
        beyond_ram: [at_source, at_destination],
        ..stopped.with_cpu(cpu)
    })
}
