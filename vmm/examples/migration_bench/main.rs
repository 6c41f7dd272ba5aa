//! Live migration side by side with that of other VMMs, and with what this machine can do at best.
//!
//! `scripts/bench migrate` builds and runs this; `docs/performance.md` keeps its figures.

mod cloud_hypervisor;
mod contender;
mod cost;
mod guest;
mod limits;
mod ours;
mod process;
mod qemu;
mod table;
mod tasks;

use std::env::var;
use std::path::PathBuf;
use std::process::id;
use std::rc::Rc;

use clap::Parser;

use cloud_hypervisor::CloudHypervisor;
use cost::Result;
use ours::Sevferry;
use qemu::Qemu;
use tasks::{Contenders, Task};

/// Names builds of Cloud Hypervisor, with colons between them.
const CLOUD_HYPERVISOR: &str = "SEVFERRY_BENCH_CH";

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
    /// Only what has this in its `TASK: NAME`
    #[arg(long, default_value = "")]
    only: String,
}

/// sevferry and the peers that are here. Prints who they are.
fn contenders(arguments: &Arguments) -> Result<Contenders> {
    let mut all: Contenders = vec![Rc::new(Sevferry { program: arguments.sevferry.clone() })];
    match Qemu::version() {
        Some(version) => {
            println!("{version}");
            all.push(Rc::new(Qemu));
        }
        None => println!("no QEMU: Debian has it as qemu-system-x86"),
    }
    for build in CloudHypervisor::all(&var(CLOUD_HYPERVISOR).unwrap_or_default()) {
        println!("{}", build.version()?);
        all.push(Rc::new(build));
    }
    Ok(all)
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    println!("guests: 1 vCPU, {} MiB, three quarters filled", arguments.memory);
    let ram = arguments.memory << 20;
    let mut tasks = tasks::all(&arguments.directory, ram, &contenders(&arguments)?)?;
    for task in &mut tasks {
        let Task { name: task, entries } = task;
        entries.retain(|entry| format!("{task}: {}", entry.name).contains(&arguments.only));
    }
    tasks.retain(|task| !task.entries.is_empty());
    // Ports of runs before may still be waiting for late packets.
    let mut ports = 20_000 + u16::try_from(id() % 10_000)?..;
    for run in 1..=arguments.runs {
        for Task { name: task, entries } in &mut tasks {
            for entry in entries {
                let name = format!("{task}: {}", entry.name);
                let port = ports.next().ok_or("no more ports")?;
                let done = (entry.measure)(port).map_err(|cause| format!("{name}: {cause}"))?;
                if arguments.verbose {
                    println!("{run}: {}", table::line(&name, &done));
                }
                entry.runs.push(done);
            }
        }
    }
    for line in table::HEADING {
        println!("{line}");
    }
    for Task { name, entries } in &tasks {
        println!("{name}");
        for entry in entries {
            println!("{}", table::row(entry));
        }
    }
    let ratios: Vec<String> = tasks.iter().flat_map(table::ratios).collect();
    if !ratios.is_empty() {
        println!();
        for line in table::RATIOS.map(str::to_owned).iter().chain(&ratios) {
            println!("{line}");
        }
    }
    Ok(())
}
