//! Reads of a file through a disk's rings, beside the same reads without them.

use std::error::Error;
use std::fs::{OpenOptions, read_to_string};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sevferry::devices::virtio::{Block, Disk, DiskOptions, Driver};

use super::plain_reads::read_all;

/// What to read.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file, which is made if it is not there
    path: PathBuf,

    /// Its size in MiB
    #[arg(long, default_value_t = 512)]
    mib: u64,

    /// How often each is measured
    #[arg(long, default_value_t = 5)]
    runs: u32,
}

/// Work to measure: so many reads of so many bytes, so many at a time.
struct Load {
    name: &'static str,
    bytes: usize,
    depth: usize,
    count: u64,
    is_direct: bool,
    is_random: bool,
}

/// What a run took.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

/// Measures, and prints a row for each load.
pub(crate) fn measure(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { path, mib, runs } = arguments;
    fill(path, *mib)?;
    println!("| reads | plain | disk | disk/plain | CPU of plain | CPU of disk and driver |");
    println!("|---|---|---|---|---|---|");
    for is_direct in [true, false] {
        let loads = [
            (
                "4 KiB, random, depth 32",
                4 << 10,
                32,
                if is_direct { 20_000 } else { 200_000 },
                true,
            ),
            ("1 MiB, in order, depth 4", 1 << 20, 4, *mib, false),
        ];
        for (name, bytes, depth, count, is_random) in loads {
            let load = Load { name, bytes, depth, count, is_direct, is_random };
            let places = places(&load, *mib << 20);
            let mut best: [Option<Cost>; 2] = [None, None];
            for _ in 0..*runs {
                let plain = cost(|| read_all(path, is_direct, &places, (bytes, depth)))?;
                let disk = through_disk(path, &load, &places)?;
                for (best, cost) in best.iter_mut().zip([plain, disk]) {
                    *best = Some(best.map_or(cost, |best| best.min(cost)));
                }
            }
            if let [Some(plain), Some(disk)] = best {
                print(&load, plain, disk);
            }
        }
    }
    Ok(())
}

fn print(load: &Load, plain: Cost, disk: Cost) {
    let rate = |cost: Cost| {
        let per_second = load.count as f64 / cost.wall.as_secs_f64();
        if load.is_random {
            format!("{per_second:.0}/s")
        } else {
            format!("{:.0} MiB/s", per_second * load.bytes as f64 / 1_048_576.0)
        }
    };
    let cpu = |cost: Cost| cost.cpu.as_secs_f64() * 1e6 / load.count as f64;
    let cache = if load.is_direct { "direct" } else { "page cache" };
    println!(
        "| {}, {cache} | {} | {} | {:.2} | {:.1} us | {:.1} us |",
        load.name,
        rate(plain),
        rate(disk),
        plain.wall.as_secs_f64() / disk.wall.as_secs_f64(),
        cpu(plain),
        cpu(disk),
    );
}

impl Cost {
    fn min(self, other: Self) -> Self {
        Self { wall: self.wall.min(other.wall), cpu: self.cpu.min(other.cpu) }
    }
}

/// The file, with bytes in all of it.
fn fill(path: &Path, mib: u64) -> Result<(), Box<dyn Error>> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    while file.metadata()?.len() < mib << 20 {
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

/// Where to read; the same in every run.
fn places(load: &Load, file_bytes: u64) -> Vec<u64> {
    let blocks = file_bytes / load.bytes as u64;
    let mut state = 1_u64;
    let mut next = |at: u64| {
        if !load.is_random {
            return at % blocks;
        }
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 24) % blocks
    };
    (0..load.count).map(|at| next(at) * load.bytes as u64).collect()
}

fn through_disk(path: &Path, load: &Load, places: &[u64]) -> Result<Cost, Box<dyn Error>> {
    let disk = Disk::open(DiskOptions {
        path: path.to_owned(),
        id: "bench".to_owned(),
        serial: String::new(),
        readonly: true,
        direct: load.is_direct,
        queues: 1,
    })?;
    let part = load.bytes.min(64 << 10);
    let mut driver = Driver::new(Box::new(Block::new(disk)?), 24 << 20, u32::try_from(part)?)?;
    driver.function().hold()?;
    driver.start(u64::MAX)?;
    driver.without_copies();
    let mut room = vec![u32::try_from(part)?; load.bytes / part];
    room.push(1);
    cost(|| {
        let mut places = places.iter();
        let mut flying = 0;
        loop {
            let before = flying;
            while flying < load.depth {
                let Some(place) = places.next() else { break };
                let mut header = [0; 16];
                let (_, sector) = header.split_at_mut(8);
                sector.copy_from_slice(&(place / 512).to_le_bytes());
                driver.add(0, &[&header], &room)?;
                flying += 1;
            }
            if flying > before {
                driver.ring(0);
            }
            if flying == 0 {
                return Ok(());
            }
            let mut returned = Some(driver.wait(0)?);
            while let Some(one) = returned {
                if usize::try_from(one.written)? != load.bytes + 1 {
                    return Err(format!("the disk wrote {} bytes", one.written).into());
                }
                flying -= 1;
                returned = driver.poll(0)?;
            }
        }
    })
}

fn cost(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Cost, Box<dyn Error>> {
    let (begun, before) = (Instant::now(), cpu()?);
    work()?;
    Ok(Cost { wall: begun.elapsed(), cpu: cpu()?.saturating_sub(before) })
}

/// What this process has used, all threads of it; the kernel's own for its sake are not in it.
fn cpu() -> Result<Duration, Box<dyn Error>> {
    let stat = read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let fields = after_name.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = fields.sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}
