//! Live migration side by side with QEMU's, and with what this machine can do at best.
//!
//! `scripts/bench migrate` builds and runs this; `docs/performance.md` keeps its figures.

mod guest;
mod limits;
mod ours;
mod qemu;
mod vmm;

use std::env::temp_dir;
use std::fs::{create_dir_all, remove_dir_all, write};
use std::path::PathBuf;
use std::process::id;

use clap::Parser;

use vmm::{Result, Run};

/// Milliseconds for which every VMM may pause the guest.
pub(crate) const DOWNTIME_MS: u32 = 30;

/// What to measure.
#[derive(Debug, Parser)]
struct Arguments {
    /// The sevferry to measure
    #[arg(long)]
    sevferry: PathBuf,
    /// How often each contender runs, in turns
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Mebibytes of guest RAM; three quarters are filled
    #[arg(long, default_value_t = 1024)]
    memory: u64,
    /// Only contenders whose name has this
    #[arg(long, default_value = "")]
    only: String,
}

/// The guest that all migrate.
pub(crate) struct Guest {
    /// Files of this benchmark.
    pub(crate) directory: PathBuf,
    /// Bytes of RAM.
    pub(crate) ram: u64,
}

impl Guest {
    fn prepare(ram: u64) -> Result<Self> {
        let directory = temp_dir().join(format!("sevferry-bench-{}", id()));
        create_dir_all(&directory)?;
        let guest = Self { directory, ram };
        for is_sev in [false, true] {
            write(guest.kernel(is_sev), guest::elf(is_sev))?;
        }
        guest::write_noise(&guest.noise(), guest.filled())?;
        Ok(guest)
    }

    /// The ELF.
    pub(crate) fn kernel(&self, is_sev: bool) -> PathBuf {
        self.directory.join(if is_sev { "guest-sev.elf" } else { "guest.elf" })
    }

    /// The initramfs that fills its RAM.
    pub(crate) fn noise(&self) -> PathBuf {
        self.directory.join("noise")
    }

    /// Bytes of RAM that are not zero.
    fn filled(&self) -> u64 {
        self.ram / 4 * 3
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It lies among temporary files.
        remove_dir_all(&self.directory).unwrap_or_default();
    }
}

/// Migrates the guest once, to this port.
type Migrate = Box<dyn FnMut(&Guest, u16) -> Result<Run>>;

/// One way to migrate.
struct Contender {
    name: String,
    migrate: Migrate,
    runs: Vec<Run>,
}

fn contenders(arguments: &Arguments) -> Vec<Contender> {
    let mut all = Vec::new();
    let mut add = |name: String, migrate: Migrate| {
        if name.contains(&arguments.only) {
            all.push(Contender { name, migrate, runs: Vec::new() });
        }
    };
    for connections in [1, 2] {
        let program = arguments.sevferry.clone();
        let run =
            move |guest: &Guest, port| ours::migrate(&program, guest, false, connections, port);
        add(format!("sevferry plain x{connections}"), Box::new(run));
        let run = move |guest: &Guest, port| qemu::migrate(guest, connections, port);
        let mode = if connections == 1 { "precopy" } else { "multifd" };
        add(format!("QEMU {mode} x{connections}"), Box::new(run));
    }
    for connections in [1, 2] {
        let program = arguments.sevferry.clone();
        let run =
            move |guest: &Guest, port| ours::migrate(&program, guest, true, connections, port);
        add(format!("sevferry SEV x{connections}"), Box::new(run));
    }
    all
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let guest = Guest::prepare(arguments.memory << 20)?;
    let mut contenders = contenders(&arguments);
    println!(
        "guest: 1 vCPU, {} MiB, {} MiB filled; {}",
        arguments.memory,
        guest.filled() >> 20,
        qemu::version()?
    );
    let mut limits = Limits::default();
    // Ports of runs before may still be waiting for late packets.
    let mut ports = 20_000 + u16::try_from(id() % 20_000)?..;
    for run in 1..=arguments.runs {
        limits.measure(guest.filled())?;
        for contender in &mut contenders {
            let port = ports.next().ok_or("no more ports")?;
            let done = (contender.migrate)(&guest, port)?;
            println!("{run}: {}", line(&contender.name, &done));
            contender.runs.push(done);
        }
    }
    summarise(&contenders, &limits, guest.filled());
    Ok(())
}

/// The best that was seen of each.
#[derive(Default)]
struct Limits {
    memcpy: f64,
    loopback: [f64; 2],
    cryptography: [f64; 2],
}

impl Limits {
    fn measure(&mut self, bytes: u64) -> Result<()> {
        self.memcpy = self.memcpy.max(limits::memcpy());
        for (connections, best) in (1..).zip(&mut self.loopback) {
            *best = best.max(limits::loopback(connections, bytes)?);
        }
        for (threads, best) in (1..).zip(&mut self.cryptography) {
            *best = best.max(limits::page_cryptography(threads));
        }
        Ok(())
    }
}

fn line(name: &str, run: &Run) -> String {
    let [source, destination] = run.beyond_ram.map(|bytes| bytes as f64 / 1e6);
    format!(
        "{name:18} total {:5.0} ms, gap {:5.1} ms, CPU {:5.0} ms, {:4} MB on the wire, \
         beyond RAM {source:.1} and {destination:.1} MB; others used {:.0} % of a core",
        run.total.as_secs_f64() * 1e3,
        run.gap.as_secs_f64() * 1e3,
        run.cpu.as_secs_f64() * 1e3,
        run.wire_bytes / 1_000_000,
        run.others * 100.0,
    )
}

fn summarise(contenders: &[Contender], limits: &Limits, filled: u64) {
    println!("\n{:18} {:>19} {:>15} {:>19}", "", "total ms", "best", "gap ms");
    for Contender { name, runs, .. } in contenders {
        let spread = |value: &dyn Fn(&Run) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
            [at(values.len() / 2), at(0), at(values.len().saturating_sub(1))]
        };
        let [median, best, worst] = spread(&|run| run.total.as_secs_f64() * 1e3);
        let [gap, least, most] = spread(&|run| run.gap.as_secs_f64() * 1e3);
        let rate = filled as f64 / best / 1e6;
        println!(
            "{name:18} {median:5.0} [{best:4.0}..{worst:4.0}] {rate:10.2} GB/s \
             {gap:6.1} [{least:4.1}..{most:4.1}]"
        );
    }
    let [one, two] = limits.loopback;
    let [core, cores] = limits.cryptography;
    println!(
        "memcpy {:.1} GB/s; raw loopback TCP {:.2} (1) and {:.2} (2 connections) GB/s; \
         AES-CTR and HMAC {:.2} (1 core) and {:.2} (2 cores) GB/s",
        limits.memcpy / 1e9,
        one / 1e9,
        two / 1e9,
        core / 1e9,
        cores / 1e9
    );
}
