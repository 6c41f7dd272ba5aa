//! A network card: packets of a driver into a tap, beside the same packets written to it.

use std::error::Error;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::time::{ClockId, clock_gettime};
use sevferry::devices::virtio::{Driver, DriverQueue, Net, Port, Segment, TapSource};
use vm_memory::{Bytes, GuestAddress};

/// RAM of the driver's machine, and bytes behind each of its descriptors.
const RAM_BYTES: u64 = 96 << 20;
const BUFFER: u32 = 64 << 10;

/// Packets in the ring at once.
const BATCH: u16 = 64;

/// The queue for packets to send.
const TRANSMIT: u16 = 1;

/// A run of writable memory follows; of the descriptor flags, the one for a next.
const NEXT: u16 = 1;

/// Checksums, TCP segmentation over IPv4, notifications by index.
const FEATURES: u64 = 1 | 1 << 11 | 1 << 29;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The tap, which is up
    tap: String,
    /// Runs of each measurement, of which the best counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Packets of each run
    #[arg(long, default_value_t = 20_000)]
    packets: usize,
}

/// What a run took.
#[derive(Debug, Clone, Copy)]
struct Took {
    time: Duration,
    cpu: Duration,
}

/// Prints a table.
pub(crate) fn measure(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    println!("| packets | plain writer | card | of it | CPU for each: writer | card |");
    println!("|---|---|---|---|---|---|");
    for (name, header, packet) in [segment(), small()] {
        let plain = best(arguments, |count| write_plainly(arguments, &header, &packet, count))?;
        let card = best(arguments, |count| send(arguments, &header, &packet, count))?;
        let rate = |took: Took| {
            let bits = 8.0 * packet.len() as f64 * arguments.packets as f64;
            bits / took.time.as_secs_f64() / 1e9
        };
        let cpu = |took: Took| took.cpu.as_secs_f64() * 1e6 / arguments.packets as f64;
        println!(
            "| {name} | {:.1} Gbit/s | {:.1} Gbit/s | {:.2} | {:.2} us | {:.2} us |",
            rate(plain),
            rate(card),
            rate(card) / rate(plain),
            cpu(plain),
            cpu(card),
        );
    }
    Ok(())
}

fn best(
    arguments: &Arguments,
    mut run: impl FnMut(usize) -> Result<Took, Box<dyn Error>>,
) -> Result<Took, Box<dyn Error>> {
    let mut best = run(arguments.packets)?;
    for _ in 1..arguments.runs {
        let took = run(arguments.packets)?;
        if took.time < best.time {
            best = took;
        }
    }
    Ok(best)
}

/// A TCP segment of nearly 64 KiB that the host is to cut up, for nobody.
fn segment() -> (&'static str, Vec<u8>, Vec<u8>) {
    let header = vec![1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    let mut packet = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 8, 0];
    let length = u16::MAX.to_be_bytes();
    packet.extend([0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet.extend([198, 51, 100, 1, 198, 51, 100, 9]);
    packet.extend([
        0x30, 0x39, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    packet.resize(65_535 + 14, 7);
    ("64 KiB segments", header, packet)
}

/// An Ethernet frame of no known type.
fn small() -> (&'static str, Vec<u8>, Vec<u8>) {
    let mut packet = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x88, 0xb5];
    packet.resize(1500, 7);
    ("1500 bytes", vec![0; 12], packet)
}

fn port(arguments: &Arguments) -> Result<Box<dyn Port>, Box<dyn Error>> {
    let mut ports = TapSource::Name(arguments.tap.clone()).open(1)?;
    Ok(ports.pop().ok_or("a tap has a queue")?)
}

fn write_plainly(
    arguments: &Arguments,
    header: &[u8],
    packet: &[u8],
    count: usize,
) -> Result<Took, Box<dyn Error>> {
    let port = port(arguments)?;
    // As many different ones as are in the card's ring: what is in the processor's caches is alike.
    let packets = vec![[header, packet].concat(); BATCH.into()];
    timed(|| {
        for bytes in packets.iter().cycle().take(count) {
            port.write(bytes, &[])?;
        }
        Ok(())
    })
}

/// The same by a card: the packets lie in guest RAM, and the driver only says where, as a guest's
/// does that sends what a program has written there.
fn send(
    arguments: &Arguments,
    header: &[u8],
    packet: &[u8],
    count: usize,
) -> Result<Took, Box<dyn Error>> {
    let card = Net::over(vec![port(arguments)?], None, None)?;
    let mut driver = Driver::new(Box::new(card), RAM_BYTES, BUFFER)?;
    driver.start(FEATURES)?;
    let mut queue = driver.queue(TRANSMIT)?.clone();
    for slot in 0..BATCH {
        put(&driver, &queue, slot, header, packet)?;
    }
    timed(|| {
        let (mut added, mut done) = (0_usize, 0_usize);
        while done < count {
            let before = added;
            while added < count && added - done < usize::from(BATCH) {
                let slot = u16::try_from(added % usize::from(BATCH))?;
                queue.publish(driver.memory().view(), 2 * slot)?;
                added += 1;
            }
            if is_asked_to_ring(&driver, &queue, before, added)? {
                driver.ring(TRANSMIT);
            }
            done = wait(&driver, &queue, done, added - done)?;
        }
        Ok(())
    })
}

/// The chain of a slot: a header, and the packet behind it in one piece or two.
fn put(
    driver: &Driver,
    queue: &DriverQueue,
    slot: u16,
    header: &[u8],
    packet: &[u8],
) -> Result<(), Box<dyn Error>> {
    let memory = driver.memory().view();
    let at = queue.buffer(2 * slot, BUFFER);
    memory.write_slice(&[header, packet].concat(), GuestAddress(at))?;
    let first = Segment { address: at, bytes: u32::try_from(header.len())? };
    let address = at + u64::from(first.bytes);
    let second = Segment { address, bytes: u32::try_from(packet.len())? };
    queue.describe(memory, 2 * slot, first, (NEXT, 2 * slot + 1))?;
    queue.describe(memory, 2 * slot + 1, second, (0, 0))?;
    Ok(())
}

/// Whether the device wants to know that more was added since `before`: not while it works.
fn is_asked_to_ring(
    driver: &Driver,
    queue: &DriverQueue,
    before: usize,
    added: usize,
) -> Result<bool, Box<dyn Error>> {
    let event = GuestAddress(queue.used + 4 + 8 * u64::from(queue.size));
    let event: u16 = driver.memory().view().load(event, Ordering::SeqCst)?;
    let [before, added] = [before & 0xffff, added & 0xffff].map(u16::try_from);
    let (before, added) = (before?, added?);
    Ok(added.wrapping_sub(event).wrapping_sub(1) < added.wrapping_sub(before))
}

/// Waits until more than `done` packets have come back, with so many under way; returns how many.
fn wait(
    driver: &Driver,
    queue: &DriverQueue,
    done: usize,
    underway: usize,
) -> Result<usize, Box<dyn Error>> {
    let memory = driver.memory().view();
    // An interrupt when half of them are back, as a driver does that is not idle.
    let half = u16::try_from(underway.div_ceil(2))?.saturating_sub(1);
    let wanted = u16::try_from(done & 0xffff)?.wrapping_add(half);
    let event = GuestAddress(queue.available + 4 + 2 * u64::from(queue.size));
    memory.store(wanted.to_le(), event, Ordering::SeqCst)?;
    loop {
        let used: u16 = memory.load(GuestAddress(queue.used + 2), Ordering::SeqCst)?;
        let new = usize::from(used.wrapping_sub(u16::try_from(done & 0xffff)?));
        if new > 0 {
            return Ok(done + new);
        }
        driver.wires().wait(Duration::from_secs(1));
        driver.wires().clear();
    }
}

fn timed(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Took, Box<dyn Error>> {
    let cpu = || -> Result<Duration, Box<dyn Error>> {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
    };
    let (begin, before) = (Instant::now(), cpu()?);
    work()?;
    Ok(Took { time: begin.elapsed(), cpu: cpu()? - before })
}
