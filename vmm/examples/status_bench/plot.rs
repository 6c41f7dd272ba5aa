//! The time of a hypercall by the number of regions, as SVG.

use std::fmt::Write;

/// Pixels.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

const COLOURS: [&str; 3] = ["#1f77b4", "#d62728", "#2ca02c"];

/// A curve's name and its points: regions, nanoseconds.
pub(crate) type Curve = (String, Vec<(u64, f64)>);

/// All curves over a logarithmic axis of regions.
pub(crate) fn svg(curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|(_, points)| points.iter());
    let most_ns = points().map(|(_, ns)| *ns).fold(100.0, f64::max) * 1.1;
    let log = |regions: u64| (regions as f64).log2();
    let least = points().map(|(regions, _)| log(*regions)).fold(f64::INFINITY, f64::min);
    let most = points().map(|(regions, _)| log(*regions)).fold(0.0, f64::max);
    let x = |regions: u64| LEFT + (log(regions) - least) / (most - least) * (WIDTH - LEFT - RIGHT);
    let y = |ns: f64| HEIGHT - BOTTOM - ns / most_ns * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">Time of a page-status hypercall by the number of shared regions (guest of 100 GiB)</text>\n"
    );
    let step = if most_ns > 400.0 { 100.0 } else { 25.0 };
    let mut ns = 0.0;
    while ns < most_ns {
        let at = y(ns);
        out += &format!(
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ns} ns</text>\n",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
        ns += step;
    }
    for (regions, _) in curves.first().map_or(&[][..], |(_, points)| points) {
        out += &format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{regions}</text>\n",
            x(*regions),
            HEIGHT - BOTTOM + 18.0
        );
    }
    out += &format!(
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">shared regions</text>\n",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 12.0
    );
    for ((name, points), colour) in curves.iter().zip(COLOURS) {
        let mut path = String::new();
        for (regions, ns) in points {
            // Writing to a String cannot fail.
            write!(path, "{:.1},{:.1} ", x(*regions), y(*ns)).unwrap_or_default();
        }
        out += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            path.trim_end()
        );
        if let Some((regions, ns)) = points.last() {
            out += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>\n",
                x(*regions) + 8.0,
                y(*ns) + 4.0
            );
        }
    }
    out + "</svg>\n"
}
