//! Guests that never run: how large they are, and what they report.

use std::error::Error;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sevferry::encryption::{Design, DonatedTable, MapGpaRange, PageStatus, Status, TableMemory};
use sevferry::page::{Frame, Gpa, PAGE_SIZE, PageRange, RamLayout};

/// Boots of Debian's kernels in the lab, as `scripts/guest` has them: one report per line.
const TRACES: [&str; 2] =
    [include_str!("traces/debian-6.1.txt"), include_str!("traces/debian-6.12.txt")];

/// Reports of a synthetic history.
const REPORTS: u64 = 20_000;

/// Where guests put their tables: out of the way of what is reported.
const TABLE: u64 = 0x10_0000;

/// What a guest reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum History {
    /// Linux 6.1's boot.
    Debian61,
    /// Linux 6.12's boot.
    Debian612,
    /// 4,095 regions, of which random ones come and go.
    Churn,
    /// Every other page, ascending.
    Alternating,
    /// Runs of 1 to 8 pages anywhere, shared or private.
    Storm,
}

impl History {
    pub(crate) const ALL: [Self; 5] =
        [Self::Debian61, Self::Debian612, Self::Churn, Self::Alternating, Self::Storm];
}

impl Display for History {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Self::Debian61 => "boot of Debian 6.1",
            Self::Debian612 => "boot of Debian 6.12",
            Self::Churn => "churn at 4,095 regions",
            Self::Alternating => "alternating pages",
            Self::Storm => "random storm",
        })
    }
}

/// A guest: what it has reported before anyone measures, and what it then reports.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) gib: u64,
    pub(crate) history: History,
    pub(crate) layout: RamLayout,
    pub(crate) before: Vec<MapGpaRange>,
    pub(crate) reports: Vec<MapGpaRange>,
}

impl Guest {
    pub(crate) fn new(gib: u64, history: History) -> Result<Self, Box<dyn Error>> {
        let layout = RamLayout::new(gib << 30)?;
        let (before, reports) = match history {
            History::Debian61 => (Vec::new(), trace(TRACES[0])?),
            History::Debian612 => (Vec::new(), trace(TRACES[1])?),
            History::Churn => churn(4095),
            History::Alternating => {
                (Vec::new(), (0..REPORTS).filter_map(|n| one(2 * n, Status::Shared)).collect())
            }
            History::Storm => (Vec::new(), storm(layout)),
        };
        Ok(Self { gib, history, layout, before, reports })
    }
}

fn one(frame: u64, status: Status) -> Option<MapGpaRange> {
    run(frame, 1, status)
}

fn run(frame: u64, pages: u64, status: Status) -> Option<MapGpaRange> {
    let range = PageRange::new(Frame(frame), Frame(frame + pages)).ok()?;
    Some(MapGpaRange { range, status })
}

/// Lines of `gpa pages attributes`, numbers as Rust writes them; `#` begins a comment.
fn trace(text: &str) -> Result<Vec<MapGpaRange>, Box<dyn Error>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut reports = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let mut next = || words.next().ok_or("a trace's line has three numbers");
        let gpa = u64::from_str_radix(next()?.trim_start_matches("0x"), 16)?;
        let pages = next()?.parse()?;
        let attributes = u64::from_str_radix(next()?.trim_start_matches("0x"), 16)?;
        let args = [gpa, pages, attributes, 0, 0, 0];
        reports.push(MapGpaRange::parse(12, &args)?);
    }
    Ok(reports)
}

/// A pseudo-random sequence (splitmix64), the same each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

/// `regions` regions of one page; then a random one goes and comes back, again and again.
pub(crate) fn churn(regions: u64) -> (Vec<MapGpaRange>, Vec<MapGpaRange>) {
    let before = (0..regions).filter_map(|n| one(2 * n, Status::Shared)).collect();
    let mut random = Random(1);
    let pairs = (0..REPORTS / 2).map(|_| 2 * random.below(regions));
    let reports =
        pairs.flat_map(|frame| [Status::Private, Status::Shared].map(|to| one(frame, to)));
    (before, reports.flatten().collect())
}

fn storm(layout: RamLayout) -> Vec<MapGpaRange> {
    let low = layout.low().pages();
    let mut random = Random(2);
    let mut report = || {
        // In all of RAM, but for the first pages behind the device hole, where the table is.
        let at = random.below(layout.pages() - 8);
        let frame =
            if at < low { at } else { at + (layout.ranges().last()?.limit().0 - layout.pages()) };
        let pages = 1 + random.below(8);
        let status = if random.below(2) == 0 { Status::Shared } else { Status::Private };
        let table = Table::frame(&layout);
        let in_table = frame + 8 > table && frame < table + (1 << 20);
        run(if in_table { frame % 0x1000 } else { frame }, pages, status)
    };
    (0..REPORTS).filter_map(|_| report()).collect()
}

/// The memory of a guest's table.
#[derive(Debug)]
pub(crate) struct Table {
    start: u64,
    words: Vec<AtomicU64>,
}

impl Table {
    /// A table for this RAM; `None` if the guest has no room behind the hole.
    pub(crate) fn new(layout: &RamLayout) -> Arc<Self> {
        let bytes = DonatedTable::bytes_of_bits(layout);
        let start = Self::frame(layout) * PAGE_SIZE;
        let words = usize::try_from(512 + bytes.div_ceil(PAGE_SIZE) * 512).unwrap_or(usize::MAX);
        let words = vec![0_u64; words].into_iter().map(AtomicU64::new).collect();
        let table = Self { start, words };
        let head = [u64::from_le_bytes(*b"SEVTABLE"), 1, bytes];
        for (word, value) in table.words.iter().zip(head) {
            word.store(value, Ordering::Relaxed);
        }
        let pages = 1 + bytes.div_ceil(PAGE_SIZE);
        let own = PageRange::new(Frame(start / PAGE_SIZE), Frame(start / PAGE_SIZE + pages));
        own.into_iter()
            .for_each(|range| table.write(MapGpaRange { range, status: Status::Shared }));
        Arc::new(table)
    }

    /// Small guests have it in low RAM.
    fn frame(layout: &RamLayout) -> u64 {
        if layout.ranges().nth(1).is_some() { TABLE } else { 0x3_f000 }
    }

    /// What the guest does before each report.
    pub(crate) fn write(&self, report: MapGpaRange) {
        let (base, limit) = (report.range.base().0, report.range.limit().0);
        let mut frame = base;
        while frame < limit {
            let next = ((frame / 64 + 1) * 64).min(limit);
            let mask = (u64::MAX >> (64 - (next - frame))) << (frame % 64);
            let index = usize::try_from(512 + frame / 64).unwrap_or(usize::MAX);
            if let Some(word) = self.words.get(index) {
                match report.status {
                    Status::Shared => word.fetch_or(mask, Ordering::Relaxed),
                    Status::Private => word.fetch_and(!mask, Ordering::Relaxed),
                };
            }
            frame = next;
        }
    }
}

impl TableMemory for Table {
    fn read_words(&self, at: Gpa, words: &mut [u64]) -> bool {
        let first = at.0.wrapping_sub(self.start) / 8;
        let Ok(first) = usize::try_from(first) else { return false };
        let Some(from) = self.words.get(first..first + words.len()) else { return false };
        for (word, from) in words.iter_mut().zip(from) {
            *word = from.load(Ordering::Relaxed);
        }
        true
    }
}

/// A host's record of a guest that has just started, and the guest's table.
pub(crate) fn host(layout: RamLayout, design: Design) -> (PageStatus, Option<Arc<Table>>) {
    let mut status = PageStatus::new(layout, design);
    if design != Design::Donated {
        return (status, None);
    }
    let table = Table::new(&layout);
    let memory = Arc::<Table>::clone(&table);
    let named = status.write_table_register(Table::frame(&layout) << 12 | 1, memory);
    assert!(named.is_ok(), "the table is refused: {named:?}");
    (status, Some(table))
}
