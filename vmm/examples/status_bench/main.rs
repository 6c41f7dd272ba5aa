//! What page status costs, for each design: `scripts/bench status` builds and runs this, and
//! `docs/page-status.md` keeps its figures.
//!
//! Every figure is the best of several runs: other work on the machine only ever adds to it.

mod guests;
mod measure;
mod plot;

use std::error::Error;
use std::fs::{create_dir_all, write};
use std::path::PathBuf;

use clap::Parser;
use sevferry::encryption::{Design, Overflow};

use guests::{Guest, History};
use measure::{Figures, measure, scan, sweep};

/// The three designs.
const DESIGNS: [Design; 3] = [Design::List(Overflow::Promote), Design::Bitmap, Design::Donated];

/// Sizes of guests in GiB.
const SIZES_GIB: [u64; 4] = [1, 100, 1 << 10, 12 << 10];

/// Guests beyond this are measured once.
const LARGE_GIB: u64 = 1 << 10;

/// Numbers of regions of the plot.
const REGIONS: [u64; 8] = [4, 16, 64, 256, 1024, 2048, 4095, 16384];

/// What to measure.
#[derive(Debug, Parser)]
struct Arguments {
    /// Runs of each measurement, of which the best counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Frames of the scan
    #[arg(long, default_value_t = 100_000_000)]
    frames: u64,
    /// Directory for page-status.svg
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Only guests of at most this many GiB
    #[arg(long, default_value_t = u64::MAX)]
    most_gib: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    println!(
        "| guest | history | status= | regions | ns per hypercall: median | p99 | worst | record | serial form | in | changes taken in |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for gib in SIZES_GIB.into_iter().filter(|&gib| gib <= arguments.most_gib) {
        for history in History::ALL {
            let guest = Guest::new(gib, history)?;
            for design in DESIGNS {
                // The largest take seconds each.
                let runs = if gib > LARGE_GIB { 1 } else { arguments.runs };
                println!("{}", row(&guest, design, &measure(&guest, design, runs)));
            }
        }
    }
    println!(
        "\n| status= | per frame, in order | as runs, 100 GiB | sampled into a set, 100 GiB |"
    );
    println!("|---|---|---|---|");
    for design in DESIGNS {
        let scanned = scan(design, arguments.frames, arguments.runs)?;
        println!(
            "| {design} | {:.2} ns | {} | {} |",
            scanned.per_frame_ns,
            time(scanned.runs_ns),
            time(scanned.sample_ns)
        );
    }
    let curves = DESIGNS.map(|design| {
        let points = REGIONS.map(|regions| (regions, sweep(design, regions, arguments.runs)));
        (design.to_string(), points.to_vec())
    });
    println!("\n| regions | list | bitmap | donated |\n|---|---|---|---|");
    for (at, regions) in REGIONS.iter().enumerate() {
        let ns = curves.iter().filter_map(|(_, points)| points.get(at));
        let cells: Vec<String> = ns.map(|(_, ns)| format!("{ns:.0} ns")).collect();
        println!("| {regions} | {} |", cells.join(" | "));
    }
    if let Some(directory) = arguments.plot {
        create_dir_all(&directory)?;
        write(directory.join("page-status.svg"), plot::svg(&curves))?;
    }
    Ok(())
}

fn row(guest: &Guest, design: Design, figures: &Figures) -> String {
    format!(
        "| {} GiB | {} | {design} | {} | {:.0} | {:.0} | {:.0} | {} | {} | {} | {} |",
        guest.gib,
        guest.history,
        figures.regions,
        figures.median_ns,
        figures.p99_ns,
        figures.worst_ns,
        bytes(figures.record_bytes),
        bytes(figures.serial_bytes),
        time(figures.serial_ns),
        time(figures.take_ns),
    )
}

/// A time with three digits or so.
fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

fn bytes(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
