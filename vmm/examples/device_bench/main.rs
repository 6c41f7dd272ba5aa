//! What devices cost: each driven through its rings by a driver in this process, beside the same work
//! without it. `docs/devices.md` keeps the figures.
//!
//! Every figure is the best of several runs: other work on the machine only ever adds to it.

mod disk;
mod net;
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
    /// Segments of 64 KiB through a tap, beside a plain writer to that tap
    ///
    /// In a network namespace of its own:
    /// `unshare -rn sh -c 'ip tuntap add tap0 mode tap && ip link set tap0 up && device_bench net tap0'`
    Net(net::Arguments),
}

fn main() -> Result<(), Box<dyn Error>> {
    match Arguments::parse().device {
        Device::Disk(arguments) => disk::measure(&arguments),
        Device::Net(arguments) => net::measure(&arguments),
    }
}
