//! Runs that belong to no matrix: owns what is shown of one run by itself, and of several beside each other.

use super::figures::{latency_line, percentile_panel};
use super::plot::{Line, Panel, Point, STYLES, sign};
use super::records::Single;
use super::scale::Axis;
use super::text::{self, count, figure, html, latency, plural, put, tick_latency};
use crate::load::report::{Report, Second};

/// All single runs: what they have in common first, then each.
pub(super) fn section(singles: &[Single]) -> String {
    let mut out = String::new();
    if singles.len() > 1 {
        out.push_str(&overview(singles));
    }
    for (at, single) in singles.iter().enumerate() {
        out.push_str(&one(at, single, singles.len() > 1));
    }
    out
}

/// What was run, in one line.
fn name(report: &Report) -> String {
    let workload = if report.workload.is_empty() {
        &report.method
    } else {
        &report.workload
    };
    // Of a range, or where sizes differ, what was asked for says what the bytes are of.
    let moved = text::bytes(report.size_bytes);
    let size = if report.size.is_empty() || report.size == moved.replace(' ', "") {
        moved
    } else {
        format!("{moved} of {}", report.size)
    };
    let mut parts = vec![
        format!("{workload} {size}"),
        plural(report.connections, "connection"),
    ];
    if report.depth > 1 {
        parts.push(format!("depth {}", report.depth));
    }
    if let Some(rate) = report.rate {
        parts.push(format!("{} requests/s offered", figure(rate)));
    }
    if report.core_aware {
        parts.push("core-aware".into());
    }
    parts.push(if report.tls.is_some() {
        "TLS".into()
    } else {
        "plain".into()
    });
    parts.join(", ")
}

/// A table of all runs, and what can be drawn of them together.
fn overview(singles: &[Single]) -> String {
    let mut out = String::from(
        "<div class=\"wide\"><table><thead><tr><th>Run</th><th class=\"n\">GiB/s</th><th class=\"n\">requests/s</th>\
         <th class=\"n\">p50</th><th class=\"n\">p99</th><th class=\"n\">server CPU s/GiB</th><th class=\"n\">errors</th></tr></thead><tbody>",
    );
    for (at, Single { report, .. }) in singles.iter().enumerate() {
        let at_percentile = |us: Option<u64>| us.map_or("–".into(), |us| latency(us as f64));
        let errors: u64 = report.errors.values().sum();
        put(
            &mut out,
            format_args!(
                "<tr><th scope=\"row\">{}<a href=\"#run-{at}\">{}</a></th><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                sign(at),
                html(&name(report)),
                figure(report.gib_per_s),
                figure(report.requests_per_s),
                at_percentile(report.latency_us.map(|latency| latency.p50)),
                at_percentile(report.latency_us.map(|latency| latency.p99)),
                report.server_cpu_s_per_gib.map_or("–".into(), figure),
                count(errors),
            ),
        );
    }
    out.push_str("</tbody></table></div>");
    let lines = singles.iter().take(STYLES).enumerate();
    let lines =
        lines.filter_map(|(at, single)| latency_line(&name(&single.report), at, &[&single.report]));
    let panels: Vec<String> = [
        percentile_panel("Latency of all runs", lines.collect()),
        over_rate(singles),
    ]
    .into_iter()
    .flatten()
    .collect();
    out.push_str(&grid(&panels));
    out
}

/// Latency over the offered rate, where runs differ in it.
fn over_rate(singles: &[Single]) -> Option<String> {
    let mut offered: Vec<(f64, &Report)> = singles
        .iter()
        .filter_map(|single| Some((single.report.rate?, &single.report)))
        .collect();
    offered.sort_by(|a, b| a.0.total_cmp(&b.0));
    if offered.first()?.0 >= offered.last()?.0 {
        return None;
    }
    let lines = [("p50", 0), ("p99", 1)].map(|(which, style)| {
        let points = offered.iter().filter_map(|(rate, report)| {
            let latency_us = report.latency_us?;
            let us = if style == 0 {
                latency_us.p50
            } else {
                latency_us.p99
            } as f64;
            Some(marked(
                *rate,
                us,
                format!("{which} at {} requests/s: {}", figure(*rate), latency(us)),
            ))
        });
        Line {
            style,
            points: points.collect(),
            gaps: Vec::new(),
        }
    });
    let rates: Vec<f64> = offered.iter().map(|(rate, _)| *rate).collect();
    let values: Vec<f64> = lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.y)
        .collect();
    let panel = Panel {
        title: "Latency by offered rate".into(),
        unit: "● p50  ■ p99".into(),
        across: "requests/s offered".into(),
        x: Axis::from_zero(&rates),
        y: Axis::fitting(&values, tick_latency),
        lines: lines.into(),
        wide: true,
    };
    Some(panel.svg())
}

fn one(at: usize, single: &Single, several: bool) -> String {
    let report = &single.report;
    let mut out = format!(
        "<article class=\"run\" id=\"run-{at}\"><h3>{}{}</h3><p class=\"where\">{} · {} · {}</p>",
        if several { sign(at) } else { String::new() },
        html(&name(report)),
        html(&report.targets.join(" ")),
        html(report.tls.as_deref().unwrap_or("plain")),
        html(&single.source),
    );
    if !report.is_good() {
        put(
            &mut out,
            format_args!(
                "<p class=\"note bad\"><b>This run failed:</b> {}.</p>",
                html(&report.failure())
            ),
        );
    }
    for warning in &report.warnings {
        put(
            &mut out,
            format_args!("<p class=\"note warn\">{}</p>", html(warning)),
        );
    }
    out.push_str("<dl class=\"facts\">");
    for (what, value) in facts(report) {
        put(
            &mut out,
            format_args!("<div><dt>{what}</dt><dd>{}</dd></div>", html(&value)),
        );
    }
    out.push_str("</dl>");
    out.push_str(&by_kind(report));
    let line = latency_line(&name(report), 0, &[report]);
    let mut panels: Vec<String> =
        percentile_panel("Latency percentiles", line.into_iter().collect())
            .into_iter()
            .collect();
    panels.extend(over_time(&report.series));
    out.push_str(&grid(&panels));
    out.push_str("</article>");
    out
}

fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let percent = |share: f64| format!("{} %", figure(share * 100.0));
    let mut facts = vec![
        ("throughput", format!("{} GiB/s", figure(report.gib_per_s))),
        ("requests", format!("{} /s", figure(report.requests_per_s))),
    ];
    if let Some(us) = report.latency_us {
        for (what, us) in [
            ("p50", us.p50),
            ("p90", us.p90),
            ("p99", us.p99),
            ("p99.9", us.p999),
            ("slowest", us.max),
        ] {
            facts.push((what, latency(us as f64)));
        }
    }
    let optional = [
        (
            "server CPU",
            report
                .server_cpu_s_per_gib
                .map(|cpu_s| format!("{} s/GiB", figure(cpu_s))),
        ),
        ("server memory", report.server_rss_bytes.map(text::bytes)),
        ("server's core busy", report.server_core_busy.map(percent)),
        (
            "taken by the hypervisor",
            Some(percent(report.stolen_share)),
        ),
        (
            "read from the device",
            report.device_bytes_read.map(text::bytes),
        ),
        (
            "written to the device",
            report.device_bytes_written.map(text::bytes),
        ),
        ("met the owner core", report.owner_share.map(percent)),
        (
            "generator CPU",
            report
                .generator_cpu_s_per_gib
                .map(|cpu_s| format!("{} s/GiB", figure(cpu_s))),
        ),
    ];
    facts.extend(
        optional
            .into_iter()
            .filter_map(|(what, value)| Some((what, value?))),
    );
    facts.push(("generator busy", percent(report.generator_busy)));
    facts.push((
        "measured",
        format!(
            "{} s, {} requests",
            figure(report.seconds),
            count(report.requests)
        ),
    ));
    for (kind, number) in &report.errors {
        facts.push(("errors", format!("{} × {kind}", count(*number))));
    }
    facts
}

/// What the kinds of requests of a mixed run came to; nothing for a run of one kind.
fn by_kind(report: &Report) -> String {
    if report.by_kind.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<div class=\"wide\"><table><thead><tr><th>Kind</th><th class=\"n\">requests</th><th class=\"n\">moved</th><th class=\"n\">p50</th>\
         <th class=\"n\">p99</th><th class=\"n\">p99.9</th><th class=\"n\">errors</th></tr></thead><tbody>",
    );
    for (kind, figures) in &report.by_kind {
        let us = |of: fn(&crate::load::report::Latency) -> u64| {
            figures
                .latency_us
                .as_ref()
                .map_or("–".into(), |all| latency(of(all) as f64))
        };
        put(
            &mut out,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                html(kind),
                count(figures.requests),
                text::bytes(figures.bytes),
                us(|all| all.p50),
                us(|all| all.p99),
                us(|all| all.p999),
                count(figures.errors)
            ),
        );
    }
    out.push_str("</tbody></table></div>");
    out
}

/// A line of a panel over time: which style, and its value in a second.
type OfSecond<'a> = (usize, &'a dyn Fn(&Second) -> Option<f64>);

/// The run second by second.
fn over_time(series: &[Second]) -> Vec<String> {
    // Of one second alone there is nothing to draw.
    if series.len() < 2 {
        return Vec::new();
    }
    let rate = |second: &Second| Some(second.gib_per_s);
    // A second without samples has no latency; the form says 0.
    let p50 = |second: &Second| Some(second.p50_us as f64).filter(|us| *us > 0.0);
    let p99 = |second: &Second| Some(second.p99_us as f64).filter(|us| *us > 0.0);
    let cpu = |second: &Second| second.server_cpu.map(|cpus| cpus * 100.0);
    let errors = |second: &Second| Some(second.errors as f64);
    let mut panels = vec![
        panel_over_time(
            series,
            "Throughput over time",
            "GiB/s",
            &[(0, &rate)],
            |value| format!("{} GiB/s", figure(value)),
        ),
        panel_over_time(
            series,
            "Latency over time",
            "p50 and, above it, p99",
            &[(0, &p50), (1, &p99)],
            latency,
        ),
        panel_over_time(
            series,
            "Server CPU over time",
            "% of one CPU",
            &[(0, &cpu)],
            |value| format!("{} %", figure(value)),
        ),
    ];
    if series.iter().any(|second| second.errors > 0) {
        panels.push(panel_over_time(
            series,
            "Errors over time",
            "in a second",
            &[(1, &errors)],
            |value| format!("{} errors", figure(value)),
        ));
    }
    panels.into_iter().flatten().collect()
}

fn panel_over_time(
    series: &[Second],
    title: &str,
    unit: &str,
    lines: &[OfSecond<'_>],
    say: impl Fn(f64) -> String,
) -> Option<String> {
    let lines: Vec<Line> = lines
        .iter()
        .map(|(style, of)| {
            let points = series.iter().filter_map(|second| {
                let value = of(second)?;
                Some(point(
                    second.t_s,
                    value,
                    format!("{} s: {}", figure(second.t_s), say(value)),
                ))
            });
            Line {
                style: *style,
                points: points.collect(),
                gaps: Vec::new(),
            }
        })
        .collect();
    let points = || lines.iter().flat_map(|line| &line.points);
    points().next()?;
    let values: Vec<f64> = points().map(|point| point.y).collect();
    let last = series.iter().map(|second| second.t_s).fold(0.0, f64::max);
    let y = if title.starts_with("Latency") {
        Axis::fitting(&values, tick_latency)
    } else {
        Axis::from_zero(&values)
    };
    let panel = Panel {
        title: title.into(),
        unit: unit.into(),
        across: "seconds".into(),
        x: Axis::exact(0.0, last.ceil()),
        y,
        lines,
        wide: true,
    };
    Some(panel.svg())
}

fn point(x: f64, y: f64, title: String) -> Point {
    Point {
        x,
        y,
        low: y,
        high: y,
        marked: false,
        title,
    }
}

fn marked(x: f64, y: f64, title: String) -> Point {
    Point {
        marked: true,
        ..point(x, y, title)
    }
}

fn grid(panels: &[String]) -> String {
    if panels.is_empty() {
        return String::new();
    }
    format!("<div class=\"panels two\">{}</div>", panels.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(t_s: f64, p50_us: u64) -> Second {
        Second {
            t_s,
            gib_per_s: 1.0,
            p50_us,
            p99_us: p50_us * 2,
            ..Second::default()
        }
    }

    #[test]
    fn a_second_without_samples_is_a_gap_and_no_zero() {
        let panels = over_time(&[second(1.0, 5), second(2.0, 0), second(3.0, 7)]);
        // Throughput and latency; the server was not watched and nothing failed.
        assert_eq!(panels.len(), 2);
        assert!(panels[0].contains("2.00 s: 1.00 GiB/s"), "{}", panels[0]);
        assert!(!panels[1].contains("2.00 s:"), "{}", panels[1]);
    }

    #[test]
    fn runs_at_several_rates_are_drawn_over_the_rate() {
        let single = |rate| Single {
            source: "f:1".into(),
            report: Report {
                rate,
                requests: 9,
                latency_us: Some(Default::default()),
                ..Report::default()
            },
        };
        assert!(over_rate(&[single(Some(10.0)), single(Some(20.0))]).is_some());
        assert!(over_rate(&[single(Some(10.0)), single(Some(10.0))]).is_none());
        assert!(over_rate(&[single(None), single(None)]).is_none());
    }

    #[test]
    fn a_failed_run_says_so_and_its_texts_are_no_markup() {
        let report = Report {
            targets: vec!["http://<x>/".into()],
            warnings: vec!["a<b".into()],
            ..Report::default()
        };
        let section = section(&[Single {
            source: "f:1".into(),
            report,
        }]);
        assert!(
            section.contains("This run failed") && section.contains("a&lt;b"),
            "{section}"
        );
        assert!(!section.contains("<x>"), "{section}");
    }
}
