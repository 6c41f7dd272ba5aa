//! Times, each the best of several runs.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use sevferry::encryption::{Design, MapGpaRange, PageStatus, Status};
use sevferry::page::{FrameSet, PageRange, RamLayout};

use super::guests::{Guest, History, churn, host};

/// Hypercalls of a run; a short history is repeated on new records until there are as many.
const CALLS: usize = 20_000;

/// What one guest costs with one design.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) regions: usize,
    pub(crate) median_ns: f64,
    pub(crate) p99_ns: f64,
    pub(crate) worst_ns: f64,
    pub(crate) record_bytes: usize,
    pub(crate) serial_bytes: usize,
    pub(crate) serial_ns: f64,
    pub(crate) take_ns: f64,
}

/// Makes `guest` report to a record of `design`, `runs` times.
pub(crate) fn measure(guest: &Guest, design: Design, runs: usize) -> Figures {
    let mut best: Option<Figures> = None;
    for _ in 0..runs {
        let run = measure_once(guest, design);
        best = Some(match best {
            None => run,
            Some(best) => Figures {
                median_ns: best.median_ns.min(run.median_ns),
                p99_ns: best.p99_ns.min(run.p99_ns),
                worst_ns: best.worst_ns.min(run.worst_ns),
                serial_ns: best.serial_ns.min(run.serial_ns),
                take_ns: best.take_ns.min(run.take_ns),
                ..run
            },
        });
    }
    best.unwrap_or_else(|| measure_once(guest, design))
}

fn measure_once(guest: &Guest, design: Design) -> Figures {
    let overhead = clock_ns();
    let mut times = Vec::with_capacity(CALLS + guest.reports.len());
    let (mut status, mut table) = host(guest.layout, design);
    let mut flipped = FrameSet::new(guest.layout);
    loop {
        for &report in &guest.before {
            table.iter().for_each(|table| table.write(report));
            status.apply(report, &mut |_| {});
        }
        for &report in &guest.reports {
            table.iter().for_each(|table| table.write(report));
            times.push((timed(&mut status, report, &mut flipped) - overhead).max(0.0));
        }
        if times.len() >= CALLS {
            break;
        }
        // As of a guest that starts anew.
        for &MapGpaRange { range, .. } in &guest.reports {
            let report = MapGpaRange { range, status: Status::Private };
            table.iter().for_each(|table| table.write(report));
        }
        if table.is_none() {
            status.reset();
        } else {
            (status, table) = host(guest.layout, design);
        }
    }
    times.sort_unstable_by(f64::total_cmp);
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(0.0);
    let (serial, serial_ns) = clocked(|| status.to_bytes());
    let mut changed = FrameSet::new(guest.layout);
    let last = status.sample();
    let mut take = || {
        // As a round of a migration takes them.
        let now = status.sample();
        changed.merge(&flipped);
        flipped.clear();
        if let (Some(last), Some(now)) = (last.sampled_table(), now.sampled_table()) {
            changed.merge_differences(last, now);
        }
    };
    // The first time the sets get their memory.
    take();
    let ((), take_ns) = clocked(take);
    Figures {
        regions: status.shared_regions().map_or(0, Iterator::count),
        median_ns: at(50),
        p99_ns: at(99),
        worst_ns: times.last().copied().unwrap_or(0.0),
        record_bytes: status.memory_bytes(),
        serial_bytes: serial.len(),
        serial_ns,
        take_ns,
    }
}

fn timed(status: &mut PageStatus, report: MapGpaRange, flipped: &mut FrameSet) -> f64 {
    let start = Instant::now();
    black_box(status.apply(black_box(report), &mut |range| flipped.insert_range(range)));
    start.elapsed().as_nanos() as f64
}

fn clocked<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = black_box(work());
    (result, start.elapsed().as_nanos() as f64)
}

/// What it costs to look at the clock: the median of many.
fn clock_ns() -> f64 {
    let mut times: Vec<_> = (0..1001).map(|_| clocked(|| ()).1).collect();
    times.sort_unstable_by(f64::total_cmp);
    times.get(500).copied().unwrap_or(0.0)
}

/// The time of a hypercall at this many regions: of all together, since one alone is near what the
/// clock can tell.
pub(crate) fn sweep(design: Design, regions: u64, runs: usize) -> f64 {
    let Ok(layout) = RamLayout::new(100 << 30) else { return 0.0 };
    let (before, reports) = churn(regions);
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let (mut status, table) = host(layout, design);
        for report in &before {
            table.iter().for_each(|table| table.write(*report));
            status.apply(*report, &mut |_| {});
        }
        let ((), ns) = clocked(|| {
            for report in &reports {
                table.iter().for_each(|table| table.write(*report));
                black_box(status.apply(black_box(*report), &mut |_| {}));
            }
        });
        best = best.min(ns / reports.len() as f64);
    }
    best
}

/// What it costs to ask for every page.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) per_frame_ns: f64,
    pub(crate) runs_ns: f64,
    pub(crate) sample_ns: f64,
}

/// Asks a 100 GiB guest's record about `frames` frames, in order, again from the start if need be.
pub(crate) fn scan(design: Design, frames: u64, runs: usize) -> Result<Scanned, Box<dyn Error>> {
    let guest = Guest::new(100, History::Debian612)?;
    let (mut status, table) = host(guest.layout, design);
    for &report in &guest.reports {
        table.iter().for_each(|table| table.write(report));
        status.apply(report, &mut |_| {});
    }
    let mut best =
        Scanned { per_frame_ns: f64::INFINITY, runs_ns: f64::INFINITY, sample_ns: f64::INFINITY };
    for _ in 0..runs {
        let (shared, ns) = clocked(|| ask(&status, frames));
        black_box(shared);
        best.per_frame_ns = best.per_frame_ns.min(ns / frames as f64);
        let (_, ns) = clocked(|| status.shared_regions().map_or(0, Iterator::count));
        best.runs_ns = best.runs_ns.min(ns);
        let mut set = FrameSet::new(guest.layout);
        let ((), ns) = clocked(|| {
            set.clear();
            let now = status.sample();
            now.shared_regions().into_iter().flatten().for_each(|run| set.insert_range(run));
        });
        best.sample_ns = best.sample_ns.min(ns);
    }
    Ok(best)
}

/// Asks about one frame after the other, from the start again at the end of RAM; how many are shared.
fn ask(status: &PageStatus, frames: u64) -> u64 {
    let (mut asked, mut shared) = (0, 0);
    while asked < frames {
        let left = usize::try_from(frames - asked).unwrap_or(usize::MAX);
        for frame in status.layout().ranges().flat_map(PageRange::frames).take(left) {
            shared += u64::from(status.status(frame) == Ok(Status::Shared));
            asked += 1;
        }
    }
    shared
}
