//! What was measured, as a table and as ratios.

use super::vmm::Run;

/// Above the rows.
pub(crate) const HEADING: [&str; 2] = [
    "                                total ms                 CPU ms                 gap ms   beyond RAM, MB  others",
    "                    median [best..worst]   median [best..worst]   median [best..worst]   source,  dest.       %",
];

/// What is compared.
type Value = fn(&Run) -> f64;

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

/// One contender, all its runs.
pub(crate) fn row(name: &str, runs: &[Run]) -> String {
    let (total, cpu) = (Spread::of(runs, total_ms), Spread::of(runs, cpu_ms));
    let (gap, others) = (Spread::of(runs, gap_ms), Spread::of(runs, |run| run.others * 100.0));
    let beyond = |index: usize| {
        let megabytes = |run: &Run| run.beyond_ram.get(index).map_or(0.0, |&b| b as f64 / 1e6);
        Spread::of(runs, megabytes).worst
    };
    let mut row = format!(
        "{name:18} {:7.0} [{:4.0}..{:5.0}]  {:7.0} [{:4.0}..{:5.0}]",
        total.median, total.best, total.worst, cpu.median, cpu.best, cpu.worst
    );
    if gap.worst > 0.0 {
        row += &format!("  {:7.1} [{:4.1}..{:5.1}]", gap.median, gap.best, gap.worst);
        row += &format!("   {:6.1}, {:6.1}", beyond(0), beyond(1));
    } else {
        row += &" ".repeat(40);
    }
    row + &format!("    {:4.0}", others.median)
}

/// One run.
pub(crate) fn line(name: &str, run: &Run) -> String {
    let (total, cpu, gap) = (total_ms(run), cpu_ms(run), gap_ms(run));
    let (wire, others) = (run.wire_bytes / 1_000_000, run.others * 100.0);
    format!(
        "{name:18} {total:5.0} ms, CPU {cpu:5.0} ms, gap {gap:5.1} ms, {wire} MB on the wire, \
         others {others:.0} %"
    )
}

/// How far sevferry is from QEMU, and from what the machine can do. Above 1, sevferry needs less.
pub(crate) fn print_ratios(results: &[(&str, &[Run])]) {
    println!("\nratios (needed by the other / by sevferry), of the best runs and of the medians:");
    let cases: [(&str, &str, &str, Value); 7] = [
        ("time, plain VM: QEMU's best mode", "QEMU", "sevferry plain", total_ms),
        ("time, plain VM: raw TCP", "raw TCP", "sevferry plain", total_ms),
        ("CPU, plain VM: QEMU's best mode", "QEMU", "sevferry plain", cpu_ms),
        ("CPU, plain VM: raw TCP", "raw TCP", "sevferry plain", cpu_ms),
        ("gap, plain VM: QEMU's best mode", "QEMU", "sevferry plain", gap_ms),
        ("time, SEV: cryptography on both cores", "crypto", "sevferry SEV", total_ms),
        ("CPU, SEV: cryptography", "crypto", "sevferry SEV", cpu_ms),
    ];
    for (what, other, own, value) in cases {
        let least = |prefix: &str, of: fn(&Spread) -> f64| {
            let named = results.iter().filter(|(name, _)| name.starts_with(prefix));
            named.map(|(_, runs)| of(&Spread::of(runs, value))).fold(f64::INFINITY, f64::min)
        };
        let ratio = |of: fn(&Spread) -> f64| least(other, of) / least(own, of);
        println!("{what:40} {:5.2} {:5.2}", ratio(|s| s.best), ratio(|s| s.median));
    }
}
