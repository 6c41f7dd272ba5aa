//! Live migration side by side with QEMU's, and with what this machine can do at best.
//!
//! `scripts/bench migrate` builds and runs this; `docs/performance.md` keeps its figures.

mod guest;
mod limits;
mod ours;
mod qemu;
mod table;
mod vmm;

use std::fs::write;
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
    /// An empty directory for the guest's files
    #[arg(long)]
    directory: PathBuf,
    /// How often each contender runs, in turns
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Mebibytes of guest RAM; three quarters are filled
    #[arg(long, default_value_t = 1024)]
    memory: u64,
    /// Print every run
    #[arg(long)]
    verbose: bool,
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
    fn prepare(directory: PathBuf, ram: u64) -> Result<Self> {
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

/// Does it once, with this port.
type Measure = Box<dyn FnMut(&Guest, u16) -> Result<Run>>;

/// A way to migrate, or a limit of the machine.
struct Contender {
    name: String,
    measure: Measure,
    runs: Vec<Run>,
}

fn contenders(arguments: &Arguments) -> Vec<Contender> {
    let mut all = Vec::new();
    let mut add = |name: String, measure: Measure| {
        if name.contains(&arguments.only) {
            all.push(Contender { name, measure, runs: Vec::new() });
        }
    };
    add("memcpy".to_owned(), Box::new(|guest, _| limits::memcpy(guest.filled())));
    for connections in [1, 2] {
        let measure = move |guest: &Guest, _| limits::loopback(connections, guest.filled());
        add(format!("raw TCP x{connections}"), Box::new(measure));
    }
    // Each page is sealed once and opened once.
    add("crypto".to_owned(), Box::new(|guest, _| limits::page_cryptography(2 * guest.ram)));
    for connections in [1, 2] {
        let program = arguments.sevferry.clone();
        let measure =
            move |guest: &Guest, port| ours::migrate(&program, guest, false, connections, port);
        add(format!("sevferry plain x{connections}"), Box::new(measure));
        let measure = move |guest: &Guest, port| qemu::migrate(guest, connections, port);
        let mode = if connections == 1 { "precopy" } else { "multifd" };
        add(format!("QEMU {mode} x{connections}"), Box::new(measure));
    }
    for connections in [1, 2] {
        let program = arguments.sevferry.clone();
        let measure =
            move |guest: &Guest, port| ours::migrate(&program, guest, true, connections, port);
        add(format!("sevferry SEV x{connections}"), Box::new(measure));
    }
    all
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let guest = Guest::prepare(arguments.directory.clone(), arguments.memory << 20)?;
    let mut contenders = contenders(&arguments);
    let (all, filled) = (arguments.memory, guest.filled() >> 20);
    println!("guest: 1 vCPU, {all} MiB, {filled} MiB filled; {}", qemu::version()?);
    // Ports of runs before may still be waiting for late packets.
    let mut ports = 20_000 + u16::try_from(id() % 10_000)?..;
    for run in 1..=arguments.runs {
        for Contender { name, measure, runs } in &mut contenders {
            let done = measure(&guest, ports.next().ok_or("no more ports")?)?;
            if arguments.verbose {
                println!("{run}: {}", table::line(name, &done));
            }
            runs.push(done);
        }
    }
    for line in table::HEADING {
        println!("{line}");
    }
    for Contender { name, runs, .. } in &contenders {
        println!("{}", table::row(name, runs));
    }
    let results: Vec<_> = contenders.iter().map(|each| (each.name.as_str(), &*each.runs)).collect();
    table::print_ratios(&results);
    Ok(())
}
