//! What was measured, as a table and as ratios.

use super::contender::Role;
use super::cost::Run;
use super::tasks::{Entry, Task};

/// Above the rows.
pub(crate) const HEADING: [&str; 2] = [
    "                                    total ms                  gap ms        byte ms   CPU ms  beyond RAM, MB  wire  others",
    "                            median [ best.. worst]  median [best..worst]     median   median  source,  dest.    MB       %",
];

/// What is compared.
type Value = fn(&Run) -> f64;

/// Which of the runs counts.
type Pick = fn(&Spread) -> f64;

/// The middle, the least and the most.
struct Spread {
    median: f64,
    best: f64,
    worst: f64,
}

impl Spread {
    fn of(runs: &[Run], value: impl Fn(&Run) -> f64) -> Self {
        let mut values: Vec<f64> = runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median: at(values.len() / 2),
            best: at(0),
            worst: at(values.len().saturating_sub(1)),
        }
    }
}

fn total_ms(run: &Run) -> f64 {
    run.total.as_secs_f64() * 1e3
}

fn cpu_ms(run: &Run) -> f64 {
    run.cpu.as_secs_f64() * 1e3
}

fn gap_ms(run: &Run) -> f64 {
    run.gap.as_secs_f64() * 1e3
}

fn byte_ms(run: &Run) -> f64 {
    run.first_byte.as_secs_f64() * 1e3
}

fn megabytes(run: &Run, side: usize) -> f64 {
    run.beyond_ram.get(side).map_or(0.0, |&bytes| bytes as f64 / 1e6)
}

fn wire_megabytes(run: &Run) -> f64 {
    run.wire_bytes as f64 / 1e6
}

/// One contender, all its runs.
pub(crate) fn row(Entry { name, runs, .. }: &Entry) -> String {
    let spread = |value: Value| Spread::of(runs, value);
    let (total, cpu, gap) = (spread(total_ms), spread(cpu_ms), spread(gap_ms));
    let mut row =
        format!("  {name:24} {:7.1} [{:5.1}..{:6.1}]", total.median, total.best, total.worst);
    if gap.worst > 0.0 {
        let [source, destination] =
            [0, 1].map(|side| Spread::of(runs, |run| megabytes(run, side)).worst);
        row += &format!(
            " {:7.1} [{:4.1}..{:5.1}]    {:8.1} {:8.0}  {source:6.1}, {destination:6.1} {:5.0}",
            gap.median,
            gap.best,
            gap.worst,
            spread(byte_ms).median,
            cpu.median,
            spread(wire_megabytes).median
        );
    } else if cpu.worst > 0.0 {
        row += &format!("{:34} {:8.0} {:22}", "", cpu.median, "");
    }
    if cpu.worst > 0.0 {
        row += &format!("    {:4.0}", spread(|run| run.others * 100.0).median);
    }
    row
}

/// One run.
pub(crate) fn line(name: &str, run: &Run) -> String {
    let mut line = format!("{name:46} {:6.1} ms", total_ms(run));
    if !run.gap.is_zero() {
        let (byte, gap, wire) = (byte_ms(run), gap_ms(run), wire_megabytes(run));
        line += &format!(", byte {byte:6.1} ms, gap {gap:5.1} ms, {wire:.0} MB on the wire");
    }
    if !run.cpu.is_zero() {
        line += &format!(", CPU {:4.0} ms, others {:.0} %", cpu_ms(run), run.others * 100.0);
    }
    line
}

/// Above the rows of [`ratios`].
pub(crate) const RATIOS: [&str; 3] = [
    "ratios (needed by the best of the others / by sevferry): above 1, sevferry needs less",
    "                                    total            gap            CPU        beyond RAM",
    "                               median  best   median  best   median  best   source   dest.",
];

/// How far sevferry is from the best of its peers, and from what the machine can do. There is a row
/// for each of the two that was measured beside it.
pub(crate) fn ratios(Task { name, entries }: &Task) -> Vec<String> {
    let mut rows = Vec::new();
    for (role, who) in [(Role::Peer, "peers"), (Role::Limit, "limits")] {
        let least = |role, value: Value, pick: Pick| {
            let of_role = entries.iter().filter(|entry| entry.role == role);
            of_role.map(|entry| pick(&Spread::of(&entry.runs, value))).reduce(f64::min)
        };
        let ratio = |value, pick| {
            let ratio = least(role, value, pick)? / least(Role::Sevferry, value, pick)?;
            (ratio.is_normal()).then(|| format!("{ratio:.2}"))
        };
        let values: [(Value, Pick); 8] = [
            (total_ms, |all| all.median),
            (total_ms, |all| all.best),
            (gap_ms, |all| all.median),
            (gap_ms, |all| all.best),
            (cpu_ms, |all| all.median),
            (cpu_ms, |all| all.best),
            (|run| megabytes(run, 0), |all| all.worst),
            (|run| megabytes(run, 1), |all| all.worst),
        ];
        let cells = values.map(|(value, pick)| ratio(value, pick).unwrap_or_default());
        let [a, b, c, d, e, f, g, h] = &cells;
        if !a.is_empty() {
            rows.push(format!(
                "{:30} {a:>6} {b:>5}   {c:>6} {d:>5}   {e:>6} {f:>5}   {g:>6} {h:>6}",
                format!("{name}: {who}")
            ));
        }
    }
    rows
}
