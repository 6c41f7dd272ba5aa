//! What devices cost: each driven through its rings by a driver in this process, beside the same work
//! without it. `docs/devices.md` keeps the figures.
//!
//! Every figure is the best of several runs: other work on the machine only ever adds to it.

mod disk;
mod plain_reads;

use std::error::Error;

use clap::{Parser, Subcommand};

/// What to measure.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    device: Device,
}

#[derive(Debug, Subcommand)]
enum Device {
    /// Reads of a file through a disk, beside a plain loop over `io_uring` on the same file
    Disk(disk::Arguments),
}

fn main() -> Result<(), Box<dyn Error>> {
    match Arguments::parse().device {
        Device::Disk(arguments) => disk::measure(&arguments),
    }
}
