//! Which plots a matrix of runs is shown in: owns the choice of rows and what each panel holds. Draws nothing itself.

use std::collections::BTreeMap;

use super::plot::{Bar, Bars, Line, Panel, Point};
use super::records::{Outcome, Row};
use super::scale::{Axis, Tick};
use super::study::{Metric, Spread, Study};
use super::text;
use crate::load::report::Report;

/// The row that stands for a workload where several could: this many bytes, so many connections.
const CENTRE_BYTES: f64 = (1 << 20) as f64;
const CENTRE_CONNECTIONS: f64 = 64.0;

/// Shares of the samples that latencies are drawn at.
const SHARES: [f64; 23] = [
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998,
    0.999, 0.9995, 0.9998, 0.9999, 0.99995, 0.99999,
];

/// Those of them that the marks of the lines stand at.
const MARKED: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 0.9999];

/// Panels that belong together, and what they show.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) title: String,
    pub(super) text: String,
    /// Panels as SVG, row by row.
    pub(super) panels: Vec<String>,
    /// In one row.
    pub(super) columns: usize,
}

/// All figures of a workload.
pub(super) fn of_workload(study: &Study, workload: &str) -> Vec<Figure> {
    let figures = [
        side_by_side(study, workload),
        over_size(study, workload),
        over_connections(study, workload),
        percentiles(study, workload),
    ];
    figures.into_iter().flatten().collect()
}

/// Both ways over the wire, TLS first.
const WIRES: [bool; 2] = [true, false];

/// The row of a workload that most systems have figures for; nearest to the middle if several do.
fn centre<'a>(study: &'a Study, workload: &str, tls: bool) -> Option<&'a Row> {
    let rows = study
        .rows(workload)
        .into_iter()
        .filter(|row| row.tls == tls);
    let systems = |row: &Row| {
        let all = 0..study.systems.len();
        all.filter(|system| study.spread(row, *system, row.rate()).is_some())
            .count()
    };
    let rows = rows.filter(|row| systems(row) > 0);
    rows.min_by(|a, b| {
        let key = |row: &Row| (systems(row), distance(row));
        let ((count_a, far_a), (count_b, far_b)) = (key(a), key(b));
        count_b.cmp(&count_a).then(far_a.total_cmp(&far_b))
    })
}

/// How far a row is from the middle of the matrix, in doublings.
fn distance(row: &Row) -> f64 {
    let size = (row.moved_bytes().max(1) as f64 / CENTRE_BYTES).log2();
    size.abs() + far_from_centre(row.connections)
}

fn far_from_centre(connections: u64) -> f64 {
    (connections.max(1) as f64 / CENTRE_CONNECTIONS)
        .log2()
        .abs()
}

/// Bars of all systems in the middle of the matrix.
fn side_by_side(study: &Study, workload: &str) -> Option<Figure> {
    let rows: Vec<&Row> = WIRES
        .into_iter()
        .filter_map(|tls| centre(study, workload, tls))
        .collect();
    let panels = rows.iter().flat_map(|row| {
        let metrics = [row.rate(), Metric::Cpu, Metric::P99];
        metrics
            .into_iter()
            .filter_map(|metric| bars(study, row, metric))
            .map(|bars| bars.svg())
    });
    let panels: Vec<String> = panels.collect();
    let labels: Vec<String> = rows.iter().map(|row| row.label()).collect();
    (!panels.is_empty()).then(|| Figure {
        title: "Side by side".into(),
        text: format!(
            "{}. Bars are medians over the rounds, whiskers reach from the lowest to the highest.",
            labels.join("; ")
        ),
        panels,
        columns: 3,
    })
}

fn bars(study: &Study, row: &Row, metric: Metric) -> Option<Bars> {
    let best = study.best(row, metric).map(|best| best.0);
    let cells =
        (0..study.systems.len()).filter_map(|system| Some((system, study.cell(row, system)?)));
    let bars: Vec<Bar> = cells
        .map(|(system, cell)| {
            let (name, spread) = (study.systems[system].clone(), cell.spread(metric));
            let (label, title) = match (spread, cell.trouble().next()) {
                (Some(spread), _) => (metric.show(spread.median), said(&name, metric, spread)),
                (None, Some((_, outcome))) => trouble(&name, outcome),
                (None, None) => ("not measured".into(), format!("{name}: not measured")),
            };
            Bar {
                style: system,
                value: spread.map(|spread| spread.median),
                low: spread.map_or(0.0, |spread| spread.low),
                high: spread.map_or(0.0, |spread| spread.high),
                label,
                title,
                best: best == Some(system),
                name,
            }
        })
        .collect();
    let better = if metric.lower_is_better() {
        "less is better"
    } else {
        "more is better"
    };
    bars.iter().any(|bar| bar.value.is_some()).then(|| Bars {
        title: format!("{}, {}", metric.name(), row.wire()),
        unit: match metric {
            Metric::P50 | Metric::P99 => better.into(),
            _ => format!("{}, {better}", metric.unit()),
        },
        bars,
    })
}

fn trouble(name: &str, outcome: &Outcome) -> (String, String) {
    match outcome {
        Outcome::Ran(_) => (String::new(), String::new()),
        Outcome::Failed(reason) => ("failed".into(), format!("{name} failed: {reason}")),
        Outcome::Skipped(reason) => ("not done".into(), format!("{name}: not done: {reason}")),
    }
}

fn said(name: &str, metric: Metric, spread: Spread) -> String {
    let (low, high) = (metric.show(spread.low), metric.show(spread.high));
    let rounds = text::plural(spread.count, "round");
    let median = metric.say(spread.median);
    if spread.count < 2 {
        return format!("{name}: {median} ({rounds})");
    }
    format!("{name}: {median} ({low} … {high}, {rounds})")
}

/// One number over the sizes of objects.
fn over_size(study: &Study, workload: &str) -> Option<Figure> {
    let mut groups: BTreeMap<u64, Vec<&Row>> = BTreeMap::new();
    for row in study.rows(workload) {
        groups.entry(row.connections).or_default().push(row);
    }
    // A range is as large as it is, unless there are whole objects of that size.
    for rows in groups.values_mut() {
        let whole: Vec<u64> = rows
            .iter()
            .filter(|row| row.range_bytes.is_none())
            .map(|row| row.size_bytes)
            .collect();
        rows.retain(|row| row.range_bytes.is_none_or(|range| !whole.contains(&range)));
    }
    let (connections, rows) = widest(study, groups, Row::moved_bytes, |connections| {
        far_from_centre(*connections)
    })?;
    let ticks = |row: &Row| Tick {
        value: row.moved_bytes().max(1) as f64,
        label: match row.range_bytes {
            Some(range) => format!("{} range", text::bytes(range)),
            None => text::bytes(row.size_bytes),
        },
    };
    let count = usize::try_from(connections).unwrap_or(usize::MAX);
    Some(Figure {
        title: "By size".into(),
        text: format!(
            "{}. Bands reach from the lowest to the highest round.",
            text::plural(count, "connection")
        ),
        panels: sweep(study, &rows, "bytes of one request", ticks),
        columns: 3,
    })
}

/// One number over the connections.
fn over_connections(study: &Study, workload: &str) -> Option<Figure> {
    let mut groups: BTreeMap<(u64, Option<u64>), Vec<&Row>> = BTreeMap::new();
    for row in study.rows(workload) {
        groups
            .entry((row.size_bytes, row.range_bytes))
            .or_default()
            .push(row);
    }
    let (_, rows) = widest(
        study,
        groups,
        |row| row.connections,
        |(size, range)| {
            (range.unwrap_or(*size).max(1) as f64 / CENTRE_BYTES)
                .log2()
                .abs()
        },
    )?;
    let ticks = |row: &Row| Tick {
        value: row.connections.max(1) as f64,
        label: text::count(row.connections),
    };
    Some(Figure {
        title: "By connections".into(),
        text: format!(
            "{}. Bands reach from the lowest to the highest round.",
            rows[0].size()
        ),
        panels: sweep(study, &rows, "connections", ticks),
        columns: 3,
    })
}

/// The group of rows with the most figures, among those with two places on the x axis at least; the nearest to the middle of several.
fn widest<'a, K: Clone>(
    study: &Study,
    groups: BTreeMap<K, Vec<&'a Row>>,
    place: impl Fn(&Row) -> u64,
    far: impl Fn(&K) -> f64,
) -> Option<(K, Vec<&'a Row>)> {
    let figures = |rows: &[&Row]| -> usize {
        let of_row = |row: &&Row| {
            let all = 0..study.systems.len();
            all.filter(|system| study.spread(row, *system, row.rate()).is_some())
                .count()
        };
        rows.iter().map(of_row).sum()
    };
    let wide = groups.into_iter().filter(|(_, rows)| {
        let first = place(rows[0]);
        rows.iter().any(|row| place(row) != first) && figures(rows) > 0
    });
    wide.max_by(|(key_a, rows_a), (key_b, rows_b)| {
        let (a, b) = (figures(rows_a), figures(rows_b));
        a.cmp(&b).then(far(key_b).total_cmp(&far(key_a)))
    })
}

/// Panels of a sweep: throughput, CPU and tail, over TLS and plain.
fn sweep(study: &Study, rows: &[&Row], across: &str, tick: impl Fn(&Row) -> Tick) -> Vec<String> {
    let largest = rows.iter().max_by_key(|row| row.moved_bytes());
    let rate = largest.map_or(Metric::Bandwidth, |row| row.rate());
    let panels = WIRES.into_iter().flat_map(|tls| {
        let rows: Vec<&Row> = rows.iter().copied().filter(|row| row.tls == tls).collect();
        [rate, Metric::Cpu, Metric::P99].map(|metric| panel(study, &rows, metric, across, &tick))
    });
    panels.flatten().map(|panel| panel.svg()).collect()
}

fn panel(
    study: &Study,
    rows: &[&Row],
    metric: Metric,
    across: &str,
    tick: impl Fn(&Row) -> Tick,
) -> Option<Panel> {
    let mut lines = Vec::new();
    for system in 0..study.systems.len() {
        let (mut points, mut gaps) = (Vec::new(), Vec::new());
        for row in rows {
            let Some(cell) = study.cell(row, system) else {
                continue;
            };
            let (name, x) = (&study.systems[system], tick(row).value);
            if let Some(spread) = cell.spread(metric) {
                let said = said(name, metric, spread);
                points.push(Point {
                    x,
                    y: spread.median,
                    low: spread.low,
                    high: spread.high,
                    marked: true,
                    title: format!("{said}\n{}", row.label()),
                });
            } else if let Some((_, outcome @ Outcome::Failed(_))) = cell.trouble().next() {
                gaps.push((x, format!("{}\n{}", trouble(name, outcome).1, row.label())));
            }
        }
        if !(points.is_empty() && gaps.is_empty()) {
            lines.push(Line {
                style: system,
                points,
                gaps,
            });
        }
    }
    let points = || lines.iter().flat_map(|line: &Line| &line.points);
    points().next()?;
    let values: Vec<f64> = points().flat_map(|point| [point.low, point.high]).collect();
    let mut ticks: Vec<Tick> = rows.iter().map(|row| tick(row)).collect();
    ticks.sort_by(|a, b| a.value.total_cmp(&b.value));
    ticks.dedup_by(|a, b| a.value == b.value);
    let wire = rows.first().map_or("", |row| row.wire());
    let y = match metric {
        Metric::P50 | Metric::P99 => Axis::fitting(&values, text::tick_latency),
        Metric::Cpu => Axis::fitting(&values, text::tick),
        Metric::Bandwidth | Metric::Requests => Axis::from_zero(&values),
    };
    Some(Panel {
        title: format!("{}, {wire}", metric.name()),
        unit: match metric {
            Metric::P50 | Metric::P99 => String::new(),
            _ => metric.unit().into(),
        },
        across: across.into(),
        x: Axis::steps(ticks),
        y,
        lines,
        wide: false,
    })
}

/// Latency over the share of the samples, in the middle of the matrix.
fn percentiles(study: &Study, workload: &str) -> Option<Figure> {
    let rows: Vec<&Row> = WIRES
        .into_iter()
        .filter_map(|tls| centre(study, workload, tls))
        .collect();
    let panels = rows.iter().filter_map(|row| {
        let lines = (0..study.systems.len()).filter_map(|system| {
            let reports: Vec<&Report> = study
                .cell(row, system)?
                .reports()
                .map(|(_, report)| report)
                .collect();
            latency_line(&study.systems[system], system, &reports)
        });
        percentile_panel(&format!("Latency, {}", row.wire()), lines.collect())
    });
    let panels: Vec<String> = panels.collect();
    let labels: Vec<String> = rows.iter().map(|row| row.label()).collect();
    (!panels.is_empty()).then(|| Figure {
        title: "Latency percentiles".into(),
        text: format!(
            "{}. Each division to the right is ten times rarer. A percentile is drawn as far as there are samples above it.",
            labels.join("; ")
        ),
        panels,
        columns: 2,
    })
}

/// A panel of latency lines; absent without any.
pub(super) fn percentile_panel(title: &str, lines: Vec<Line>) -> Option<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let last = points().map(|point| point.x).reduce(f64::max)?;
    let values: Vec<f64> = points().flat_map(|point| [point.low, point.high]).collect();
    let panel = Panel {
        title: title.into(),
        unit: String::new(),
        across: "share of requests that were at least as fast".into(),
        x: Axis::nines(last),
        y: Axis::fitting(&values, text::tick_latency),
        lines,
        wide: true,
    };
    Some(panel.svg())
}

/// Latency of one system over the share of samples: medians of its runs, with their spread; absent without samples.
pub(super) fn latency_line(name: &str, style: usize, reports: &[&Report]) -> Option<Line> {
    let at_share = |share: f64| {
        let values: Option<Vec<f64>> = reports
            .iter()
            .map(|report| latency_at(report, share))
            .collect();
        let spread = Spread::of(values?)?;
        let percent = text::figure(share * 100.0);
        // Three digits are too few for the last of the nines.
        let percent = if share > 0.99 {
            format!("{}", (share * 1e5).round() / 1e3)
        } else {
            percent
        };
        Some(Point {
            x: share,
            y: spread.median,
            low: spread.low,
            high: spread.high,
            marked: MARKED.contains(&share),
            title: format!(
                "{percent} % of requests\n{}",
                said(name, Metric::P50, spread)
            ),
        })
    };
    let points: Vec<Point> = SHARES.into_iter().filter_map(at_share).collect();
    (!points.is_empty()).then_some(Line {
        style,
        points,
        gaps: Vec::new(),
    })
}

/// Latency that this share of the samples kept, in microseconds; absent where fewer than one sample is above it.
fn latency_at(report: &Report, share: f64) -> Option<f64> {
    let listed = report.latency_histogram.last().map_or(0, |last| last[1]);
    let total = listed.max(report.requests);
    if (1.0 - share) * (total as f64) < 1.0 - 1e-9 {
        return None;
    }
    if report.latency_histogram.is_empty() {
        let latency = report.latency_us?;
        let known = [
            (0.5, latency.p50),
            (0.9, latency.p90),
            (0.99, latency.p99),
            (0.999, latency.p999),
        ];
        let found = known.iter().find(|(at, _)| (at - share).abs() < 1e-9);
        return found.map(|(_, us)| *us as f64);
    }
    let points = report.latency_histogram.iter();
    let points = points.map(|&[us, below]| (us as f64, below as f64 / total as f64));
    let mut before: Option<(f64, f64)> = None;
    for (us, at) in points {
        if at < share - 1e-9 {
            before = Some((us, at));
            continue;
        }
        // Between two points of the histogram by the nines, as the axis has them; what is beyond the last sample is its latency.
        let nines = |share: f64| -(1.0 - share).max(1.0 / total as f64).log10();
        let Some((us_before, at_before)) = before.filter(|_| at > share + 1e-9) else {
            return Some(us);
        };
        let way = (nines(share) - nines(at_before)) / (nines(at) - nines(at_before));
        return Some(us_before + (us - us_before) * way.clamp(0.0, 1.0));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::report::Latency;

    #[test]
    fn latencies_are_read_off_the_histogram_as_far_as_it_reaches() {
        let report = Report {
            requests: 1000,
            latency_histogram: vec![[10, 100], [20, 500], [90, 990], [300, 1000]],
            ..Report::default()
        };
        assert_eq!(latency_at(&report, 0.0), Some(10.0));
        assert_eq!(latency_at(&report, 0.5), Some(20.0));
        assert_eq!(latency_at(&report, 0.99), Some(90.0));
        // Between two points it is between their latencies, by the number of nines.
        let tenth = latency_at(&report, 0.9).expect("a latency");
        assert!((20.0 + 70.0 * 0.411 - tenth).abs() < 0.1, "{tenth}");
        let last = latency_at(&report, 0.999).expect("a latency");
        assert!((last - 300.0).abs() < 1e-6, "{last}");
        // One sample in a thousand says nothing of one in ten thousand.
        assert_eq!(latency_at(&report, 0.9999), None);
    }

    #[test]
    fn without_a_histogram_the_printed_percentiles_serve() {
        let latency = Latency {
            p50: 5,
            p90: 6,
            p99: 7,
            p999: 8,
            max: 9,
        };
        let report = Report {
            requests: 500,
            latency_us: Some(latency),
            ..Report::default()
        };
        assert_eq!(latency_at(&report, 0.99), Some(7.0));
        assert_eq!(latency_at(&report, 0.95), None);
        assert_eq!(latency_at(&report, 0.999), None);
        assert!(latency_line("x", 0, &[&Report::default()]).is_none());
    }
}
