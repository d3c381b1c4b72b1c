//! Tables for a README: owns their form in Markdown. Takes its figures from the study, as the page does.

use super::records::{Row, Target};
use super::study::{Metric, Spread, Study, workload_title};
use super::tables::{pairs_won, with_unit};
use super::text::{count, figure, markdown, put};
use super::troubles::{Trouble, troubles};

/// Rows where a peer is ahead that are listed one by one; of more, the page has all.
const AHEAD_ROWS_MAX: usize = 20;

/// All tables.
pub(super) fn tables(study: &Study) -> String {
    let mut out = String::new();
    if !study.targets.is_empty() {
        out.push_str(&targets(&study.targets));
    }
    if study.systems.len() > 1 && study.ours().is_some() {
        out.push_str(&ahead(study));
    }
    let troubles = troubles(study);
    for workload in study.workloads() {
        out.push_str(&matrix(study, workload, &troubles));
    }
    out.push_str(&list_of(study, &troubles));
    if !study.singles.is_empty() {
        out.push_str(&singles(study));
    }
    out
}

fn targets(targets: &[Target]) -> String {
    let mut out = String::from("### Targets\n\n| | target | found | |\n|---|---|---|---|\n");
    for target in targets {
        let value = target
            .value
            .map_or("–".into(), |value| with_unit(value, &target.unit));
        let spread = match (target.low, target.high) {
            (Some(low), Some(high)) => format!(" ({} … {})", figure(low), figure(high)),
            _ => String::new(),
        };
        let met = match (target.met, &target.why) {
            (Some(true), _) => "met".into(),
            (Some(false), None) => "**missed**".into(),
            (Some(false), Some(why)) => format!("**missed**: {}", markdown(why)),
            (None, None) => "not measured".into(),
            (None, Some(why)) => format!("not measured: {}", markdown(why)),
        };
        put(
            &mut out,
            format_args!(
                "| {} | {} | {}{spread} | {met} |\n",
                markdown(&target.name),
                markdown(&target.target),
                markdown(&value)
            ),
        );
    }
    out.push('\n');
    out
}

fn ahead(study: &Study) -> String {
    let all = study.ahead();
    let mut out = String::from("### Where a peer is ahead\n\n");
    if all.is_empty() {
        out.push_str("In no row that was measured.\n\n");
        return out;
    }
    out.push_str("| workload | request | figure | forebay | peer | forebay ÷ peer | pairs |\n|---|---|---|--:|---|--:|---|\n");
    for one in all.iter().take(AHEAD_ROWS_MAX) {
        let ours = one
            .ours
            .map_or("no figures".into(), |ours| one.metric.say(ours.median));
        let theirs = one.metric.say(one.theirs.median);
        let (ratio, pairs) = match one.ratio {
            None => ("–".into(), "forebay failed".into()),
            Some(ratio) if ratio.count == 0 => (figure(ratio.median), "not in pairs".into()),
            Some(ratio) => (figure(ratio.median), pairs_won(one.metric, ratio)),
        };
        put(
            &mut out,
            format_args!(
                "| {} | {} | {} | {ours} | {} {theirs} | {ratio} | {pairs} |\n",
                markdown(workload_title(&one.row.workload)),
                one.row.label(),
                one.metric.name(),
                markdown(&study.systems[one.peer])
            ),
        );
    }
    if all.len() > AHEAD_ROWS_MAX {
        put(
            &mut out,
            format_args!(
                "\n{} more are on the page.\n",
                count((all.len() - AHEAD_ROWS_MAX) as u64)
            ),
        );
    }
    out.push('\n');
    out
}

/// CPU and throughput of every row of a workload, the best of each in bold.
fn matrix(study: &Study, workload: &str, troubles: &[Trouble]) -> String {
    let (systems, idle): (Vec<usize>, Vec<usize>) = study
        .systems_of(workload)
        .into_iter()
        .partition(|system| has_begun(study, workload, *system));
    let mut out = format!(
        "### {}\n\nServer CPU s/GiB · throughput; medians over the rounds, the best in bold.\n\n| | connections | |",
        markdown(workload_title(workload))
    );
    for system in &systems {
        put(
            &mut out,
            format_args!(" {} |", markdown(&study.systems[*system])),
        );
    }
    put(
        &mut out,
        format_args!("\n|---|--:|---|{}\n", "--:|".repeat(systems.len())),
    );
    for row in study.rows(workload) {
        put(
            &mut out,
            format_args!(
                "| {} | {} | {} |",
                row.size(),
                count(row.connections),
                row.wire()
            ),
        );
        for system in &systems {
            put(
                &mut out,
                format_args!(" {} |", cell(study, row, *system, troubles)),
            );
        }
        out.push('\n');
    }
    if !idle.is_empty() {
        let names: Vec<_> = idle
            .iter()
            .map(|system| markdown(&study.systems[*system]))
            .collect();
        put(
            &mut out,
            format_args!("\nNot done by {}.\n", names.join(", ")),
        );
    }
    out.push('\n');
    out
}

/// Whether a system has tried any row of a workload: a column of "not done" says nothing.
fn has_begun(study: &Study, workload: &str, system: usize) -> bool {
    study.rows(workload).into_iter().any(|row| {
        let cell = study.cell(row, system);
        cell.is_some_and(|cell| cell.reports().next().is_some() || cell.has_failed())
    })
}

fn cell(study: &Study, row: &Row, system: usize, troubles: &[Trouble]) -> String {
    let Some(cell) = study.cell(row, system) else {
        return String::new();
    };
    let trouble =
        super::troubles::of_cell(troubles, row, system).map(|index| format!(" [{}]", index + 1));
    let trouble = trouble.unwrap_or_default();
    let told = |metric: Metric| {
        let Some(Spread { median, .. }) = cell.spread(metric) else {
            return "–".to_owned();
        };
        let said = match metric {
            Metric::Cpu => metric.show(median),
            _ => metric.say(median),
        };
        let best = study.best(row, metric).is_some_and(|best| best.0 == system);
        if best { format!("**{said}**") } else { said }
    };
    if cell.reports().next().is_some() {
        format!("{} · {}{trouble}", told(Metric::Cpu), told(row.rate()))
    } else if cell.has_failed() {
        format!("failed{trouble}")
    } else {
        format!("not done{trouble}")
    }
}

/// What the numbers in brackets mean.
fn list_of(study: &Study, troubles: &[Trouble]) -> String {
    if troubles.is_empty() {
        return String::new();
    }
    let mut out = String::from("### Failed and not done\n\n");
    for (index, trouble) in troubles.iter().enumerate() {
        let word = if trouble.failed { "failed" } else { "not done" };
        put(
            &mut out,
            format_args!(
                "{}. {} {word} ({}): {}\n",
                index + 1,
                markdown(&study.systems[trouble.system]),
                super::text::plural(trouble.places.len(), "round"),
                markdown(&trouble.reason)
            ),
        );
    }
    out.push('\n');
    out
}

fn singles(study: &Study) -> String {
    let mut out = String::from(
        "### Runs\n\n| run | connections | | GiB/s | requests/s | p50 | p99 | server CPU s/GiB |\n|---|--:|---|--:|--:|--:|--:|--:|\n",
    );
    for single in &study.singles {
        let report = &single.report;
        let us = |us: Option<u64>| us.map_or("–".into(), |us| super::text::latency(us as f64));
        let failed = if report.is_good() { "" } else { " **failed**" };
        put(
            &mut out,
            format_args!(
                "| {} {}{failed} | {} | {} | {} | {} | {} | {} | {} |\n",
                markdown(if report.workload.is_empty() {
                    &report.method
                } else {
                    &report.workload
                }),
                super::text::bytes(report.size_bytes),
                count(report.connections as u64),
                if report.tls.is_some() { "TLS" } else { "plain" },
                figure(report.gib_per_s),
                figure(report.requests_per_s),
                us(report.latency_us.map(|latency| latency.p50)),
                us(report.latency_us.map(|latency| latency.p99)),
                report.server_cpu_s_per_gib.map_or("–".into(), figure),
            ),
        );
    }
    out.push('\n');
    out
}
