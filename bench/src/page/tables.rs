//! Tables of the page: owns which figures stand in which column, as HTML. Computes nothing.

use super::plot;
use super::records::{Row, Target};
use super::study::{Ahead, Metric, Spread, Study, workload_title};
use super::text::{count, figure, html, plural, put};
use super::troubles::{self, Trouble, Warning};

/// Rows of a long table that are shown at once; the rest is a click away.
const ROWS_SHOWN: usize = 12;

/// Promises and what was found.
pub(super) fn targets(targets: &[Target]) -> String {
    let mut out = String::from(
        "<div class=\"wide\"><table class=\"targets\"><thead><tr><th>Target</th><th>Promised</th><th class=\"n\">Found</th>\
         <th></th><th>Met</th><th>How and why</th></tr></thead><tbody>",
    );
    for target in targets {
        let value = target
            .value
            .map_or("–".into(), |value| with_unit(value, &target.unit));
        let spread = match (target.low, target.high) {
            (Some(low), Some(high)) => format!("<small>{} … {}</small>", figure(low), figure(high)),
            _ => String::new(),
        };
        let (class, word) = match target.met {
            Some(true) => ("good", "✓ met"),
            Some(false) => ("bad", "✗ missed"),
            None => ("none", "not measured"),
        };
        put(
            &mut out,
            format_args!(
                "<tr class=\"{class}\"><th scope=\"row\">{}</th><td>{}</td><td class=\"n\">{}{spread}</td><td>{}</td>\
             <td><span class=\"badge {class}\">{word}</span></td><td class=\"prose\">",
                html(&target.name),
                html(&target.target),
                html(&value),
                beside_its_limit(target)
            ),
        );
        if let Some(how) = &target.how {
            put(&mut out, format_args!("{}", html(how)));
        }
        if let Some(why) = &target.why {
            put(&mut out, format_args!("<p class=\"why\">{}</p>", html(why)));
        }
        out.push_str("</td></tr>");
    }
    out.push_str("</tbody></table></div>");
    out
}

/// A figure with the unit that a target names.
pub(super) fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "" => figure(value),
        "ratio" => format!("{} ×", figure(value)),
        _ => format!("{} {unit}", figure(value)),
    }
}

/// A drawing of the value beside its limit, where the promise begins with one that can be drawn.
fn beside_its_limit(target: &Target) -> String {
    let (Some(value), Some((limit, below))) = (target.value, limit(&target.target)) else {
        return String::new();
    };
    let (low, high) = (target.low.unwrap_or(value), target.high.unwrap_or(value));
    plot::bullet(value, low, high, limit, below, target.met.unwrap_or(false))
}

/// The number that a promise such as `≤ 0.40 × nginx` begins with, and whether it is to stay below; absent if it begins otherwise.
fn limit(text: &str) -> Option<(f64, bool)> {
    let text = text.trim_start();
    let below = text.starts_with(['≤', '<']);
    if !below && !text.starts_with(['≥', '>']) {
        return None;
    }
    let number = text.trim_start_matches(['≤', '≥', '<', '>', '=', '+', ' ', '\u{a0}', '\u{202f}']);
    let end =
        number.find(|letter: char| !(letter.is_ascii_digit() || letter == '.' || letter == ','));
    let digits = number[..end.unwrap_or(number.len())].trim_end_matches(['.', ',']);
    let limit: f64 = digits.replace(',', "").parse().ok()?;
    (limit > 0.0).then_some((limit, below))
}

/// Where a peer did better, the widest lead first.
pub(super) fn ahead(study: &Study, all: &[Ahead]) -> String {
    let head = "<table><thead><tr><th>Workload</th><th>Request</th><th>Figure</th><th class=\"n\">forebay</th>\
                <th>Peer</th><th class=\"n\">peer</th><th class=\"n\">forebay ÷ peer</th><th>Pairs</th></tr></thead><tbody>";
    let rows: Vec<String> = all.iter().map(|one| ahead_row(study, one)).collect();
    folded(head, &rows, "rows where a peer is ahead")
}

fn ahead_row(study: &Study, one: &Ahead) -> String {
    let ours = one
        .ours
        .map_or("no figures".into(), |ours| one.metric.say(ours.median));
    let (ratio, pairs) = match one.ratio {
        None => ("–".into(), "forebay failed".into()),
        Some(ratio) if ratio.count == 0 => (
            format!("{} ×", figure(ratio.median)),
            "not in pairs: medians".into(),
        ),
        Some(ratio) => (
            format!("{} ×{}", figure(ratio.median), between(ratio, figure)),
            pairs_won(one.metric, ratio),
        ),
    };
    let others: Vec<&str> = one
        .others
        .iter()
        .map(|&other| study.systems[other].as_str())
        .collect();
    let others = if others.is_empty() {
        String::new()
    } else {
        format!("<small>also {}</small>", html(&others.join(", ")))
    };
    format!(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td>{}{}{others}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{ratio}</td><td>{pairs}</td></tr>",
        html(workload_title(&one.row.workload)),
        html(&one.row.label()),
        one.metric.name(),
        html(&ours),
        plot::sign(one.peer),
        html(&study.systems[one.peer]),
        html(&one.metric.say(one.theirs.median)),
    )
}

/// Whether the peer won all pairs or only their median.
pub(super) fn pairs_won(metric: Metric, ratio: Spread) -> String {
    let all = if metric.lower_is_better() {
        ratio.low > 1.0
    } else {
        ratio.high < 1.0
    };
    match (ratio.count, all) {
        (1, _) => "one pair".into(),
        (count, true) => format!("all {count}"),
        (count, false) => format!("median of {count}, not all"),
    }
}

fn between(spread: Spread, show: impl Fn(f64) -> String) -> String {
    if spread.count < 2 {
        return String::new();
    }
    format!(
        "<small>{} … {}</small>",
        show(spread.low),
        show(spread.high)
    )
}

/// A table that shows its first rows, and the others on demand where there are many.
fn folded(head: &str, rows: &[String], what: &str) -> String {
    let shown = rows.len().min(ROWS_SHOWN);
    let mut out = format!(
        "<div class=\"wide\">{head}{}</tbody></table></div>",
        rows[..shown].concat()
    );
    if rows.len() > shown {
        put(
            &mut out,
            format_args!(
                "<details><summary>{} more {what}</summary><div class=\"wide\">{head}{}</tbody></table></div></details>",
                count((rows.len() - shown) as u64),
                rows[shown..].concat()
            ),
        );
    }
    out
}

/// Every figure of a workload, a table for each metric.
pub(super) fn matrix(study: &Study, workload: &str, found: &[Trouble]) -> String {
    let (rows, systems) = (study.rows(workload), study.systems_of(workload));
    let mut out = String::new();
    for what in [
        What::Rate,
        What::Is(Metric::Cpu),
        What::Is(Metric::P50),
        What::Is(Metric::P99),
    ] {
        let measured = |row: &&&Row| {
            systems
                .iter()
                .any(|system| study.spread(row, *system, what.of(row)).is_some())
        };
        if what != What::Rate && rows.iter().find(measured).is_none() {
            continue;
        }
        put(
            &mut out,
            format_args!(
                "<div class=\"wide\"><table class=\"matrix\"><caption>{}</caption><thead><tr><th>Request</th><th class=\"n\">Connections</th><th>Wire</th>",
                what.caption()
            ),
        );
        for system in &systems {
            put(
                &mut out,
                format_args!("<th class=\"n\">{}</th>", html(&study.systems[*system])),
            );
        }
        out.push_str("</tr></thead><tbody>");
        let mut size = String::new();
        for row in &rows {
            // A size is written once, above the others that have it.
            let first = if row.size() == size {
                ""
            } else {
                " class=\"first\""
            };
            let said = if row.size() == size {
                String::new()
            } else {
                row.size()
            };
            put(
                &mut out,
                format_args!(
                    "<tr{first}><th scope=\"row\">{}</th><td class=\"n\">{}</td><td>{}</td>",
                    html(&said),
                    count(row.connections),
                    row.wire()
                ),
            );
            size = row.size();
            for system in &systems {
                out.push_str(&figure_cell(study, row, *system, what.of(row), found));
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
    }
    out
}

/// What a table of a workload is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// Whatever says a row's throughput best.
    Rate,
    Is(Metric),
}

impl What {
    fn of(self, row: &Row) -> Metric {
        match self {
            Self::Rate => row.rate(),
            Self::Is(metric) => metric,
        }
    }

    fn caption(self) -> String {
        match self {
            Self::Rate => "Throughput".into(),
            Self::Is(metric @ Metric::Cpu) => format!("{}, {}", metric.name(), metric.unit()),
            Self::Is(metric) => metric.name().into(),
        }
    }
}

fn figure_cell(
    study: &Study,
    row: &Row,
    system: usize,
    metric: Metric,
    found: &[Trouble],
) -> String {
    let Some(cell) = study.cell(row, system) else {
        return "<td class=\"n none\">·</td>".into();
    };
    let trouble = troubles::of_cell(found, row, system);
    let link = |text: &str| match trouble {
        Some(index) => format!("<a href=\"#trouble-{index}\">{text}</a>"),
        None => text.to_owned(),
    };
    let Some(spread) = cell.spread(metric) else {
        let (class, word) = if cell.has_failed() {
            ("bad", "failed")
        } else if cell.trouble().next().is_some() {
            ("none", "not done")
        } else {
            ("none", "–")
        };
        return format!("<td class=\"n {class}\">{}</td>", link(word));
    };
    let best = study.best(row, metric).is_some_and(|best| best.0 == system);
    let class = if best { " best" } else { "" };
    let said = match metric {
        Metric::Bandwidth | Metric::Requests => metric.say(spread.median),
        _ => metric.show(spread.median),
    };
    let failed = if cell.has_failed() {
        format!("<small class=\"bad\">{}</small>", link("a round failed"))
    } else {
        String::new()
    };
    let spread = between(spread, |value| metric.show(value));
    format!(
        "<td class=\"n{class}\">{}{spread}{failed}</td>",
        html(&said)
    )
}

/// All that failed, and all that was not tried.
pub(super) fn troubles(study: &Study, all: &[Trouble]) -> String {
    let mut out = String::from("<dl class=\"troubles\">");
    for (index, trouble) in all.iter().enumerate() {
        let (class, word) = if trouble.failed {
            ("bad", "failed")
        } else {
            ("none", "not done")
        };
        put(
            &mut out,
            format_args!(
                "<dt id=\"trouble-{index}\"><span class=\"badge {class}\">{word}</span> <b>{}</b> <q>{}</q></dt><dd>",
                html(&study.systems[trouble.system]),
                html(&trouble.reason)
            ),
        );
        let places = trouble.places.iter().map(|(row, round, again)| {
            let again = if *again {
                " (a later run of this round worked)"
            } else {
                ""
            };
            format!(
                "{}: {}{}{again}",
                workload_title(&row.workload),
                row.label(),
                in_round(*round)
            )
        });
        let places: Vec<String> = places
            .map(|place| format!("<li>{}</li>", html(&place)))
            .collect();
        out.push_str(&listed(&places, "of them"));
        out.push_str("</dd>");
    }
    out.push_str("</dl>");
    out
}

/// All warnings.
pub(super) fn warnings(study: &Study, all: &[Warning]) -> String {
    let mut out = String::from("<dl class=\"troubles\">");
    for warning in all {
        let runs = plural(warning.places.len(), "run");
        put(
            &mut out,
            format_args!(
                "<dt><span class=\"badge warn\">{runs}</span> <q>{}</q></dt><dd>",
                html(&warning.text)
            ),
        );
        let places = warning.places.iter().map(|(system, row, round, text)| {
            let place = format!(
                "{}, {}: {}{}: {text}",
                study.systems[*system],
                workload_title(&row.workload),
                row.label(),
                in_round(*round)
            );
            format!("<li>{}</li>", html(&place))
        });
        let places: Vec<String> = places.collect();
        put(
            &mut out,
            format_args!(
                "<details><summary>each</summary><ul>{}</ul></details></dd>",
                places.concat()
            ),
        );
    }
    out.push_str("</dl>");
    out
}

/// Rounds are counted from 1; a skip that is meant for all of them is none's.
fn in_round(round: u64) -> String {
    if round == 0 {
        return String::new();
    }
    format!(", round {round}")
}

fn listed(items: &[String], what: &str) -> String {
    if items.len() <= ROWS_SHOWN {
        return format!("<ul>{}</ul>", items.concat());
    }
    format!(
        "<details><summary>All {} {what}</summary><ul>{}</ul></details>",
        count(items.len() as u64),
        items.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_off_a_promise_that_begins_with_one() {
        assert_eq!(limit("≤ 0.40 × nginx"), Some((0.4, true)));
        assert_eq!(limit("≤ 1 ms"), Some((1.0, true)));
        assert_eq!(limit("≥ 1.3 × the best peer"), Some((1.3, false)));
        assert_eq!(limit(">= 0.9"), Some((0.9, false)));
        assert_eq!(limit("<= 1,024, as ever"), Some((1024.0, true)));
        assert_eq!(limit("exactly 1 GET"), None);
        assert_eq!(limit("≤ nginx"), None);
    }

    #[test]
    fn a_promise_without_a_value_is_shown_as_not_measured() {
        let target = Target {
            name: "<n>".into(),
            target: "≤ 1".into(),
            value: None,
            low: None,
            high: None,
            unit: "ratio".into(),
            met: None,
            how: None,
            why: Some("it & that".into()),
        };
        let table = targets(&[target]);
        assert!(
            table.contains("not measured") && table.contains("&lt;n&gt;"),
            "{table}"
        );
        assert!(table.contains("it &amp; that"), "{table}");
    }

    #[test]
    fn the_peers_win_is_told_with_its_certainty() {
        let ratio = |low, high, count| Spread {
            median: 1.1,
            low,
            high,
            count,
        };
        assert_eq!(pairs_won(Metric::Cpu, ratio(1.05, 1.2, 5)), "all 5");
        assert_eq!(
            pairs_won(Metric::Cpu, ratio(0.9, 1.2, 5)),
            "median of 5, not all"
        );
        assert_eq!(pairs_won(Metric::Bandwidth, ratio(0.5, 0.9, 3)), "all 3");
        assert_eq!(pairs_won(Metric::Cpu, ratio(1.1, 1.1, 1)), "one pair");
    }

    #[test]
    fn long_tables_are_folded_and_whole() {
        let rows: Vec<String> = (0..20)
            .map(|row| format!("<tr><td>r{row}</td></tr>"))
            .collect();
        let folded = folded("<table>", &rows, "rows");
        assert!(folded.contains("8 more rows") && folded.contains("r19"));
        assert!(!super::folded("<table>", &rows[..3], "rows").contains("details"));
    }
}
