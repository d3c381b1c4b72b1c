//! The page itself: owns the order of its sections and the frame around them. Figures, tables and numbers come from its siblings;
//! style and script are files of their own that are written into the page, so that it needs nothing beside it.

use super::figures::{self, Figure};
use super::plot::{sign, style};
use super::records::{About, Check, Machine};
use super::study::{Ahead, Firsts, Metric, Study, workload_title};
use super::text::{bytes, count, figure, html, plural, put};
use super::troubles::{self, Trouble};
use super::{singles, tables};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Share of a bar that a name has room in; a smaller part has its number, its colour, and its name when pointed at.
const NAMED_SHARE_MIN: f64 = 0.13;

/// A part of the page with its place in the table of contents.
struct Section {
    id: String,
    title: String,
    body: String,
}

/// The page.
pub(super) fn page(study: &Study, title: Option<&str>) -> String {
    let said = study.abouts.iter().find_map(|about| about.title.as_deref());
    let title = title.or(said).unwrap_or("Load generator runs");
    let sections = sections(study);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><meta name=\"generator\" content=\"forebay-bench report\">\
         <title>{0}</title><style>{STYLE}</style></head><body><header><p class=\"kicker\">forebay-bench</p><h1>{0}</h1>",
        html(title)
    );
    for about in &study.abouts {
        out.push_str(&byline(about));
    }
    out.push_str("</header><nav><ul>");
    for section in &sections {
        put(
            &mut out,
            format_args!(
                "<li><a href=\"#{}\">{}</a></li>",
                section.id,
                html(&section.title)
            ),
        );
    }
    out.push_str("</ul></nav><main>");
    out.push_str(&tiles(study));
    for section in &sections {
        put(
            &mut out,
            format_args!(
                "<section id=\"{}\"><h2>{}</h2>{}</section>",
                section.id,
                html(&section.title),
                section.body
            ),
        );
    }
    put(
        &mut out,
        format_args!("</main><script>{SCRIPT}</script></body></html>\n"),
    );
    out
}

fn sections(study: &Study) -> Vec<Section> {
    let section = |id: &str, title: &str, body: String| Section {
        id: id.into(),
        title: title.into(),
        body,
    };
    let (found, warned) = (troubles::troubles(study), troubles::warnings(study));
    let mut all = Vec::new();
    if !study.targets.is_empty() {
        all.push(section(
            "targets",
            "Targets",
            tables::targets(&study.targets),
        ));
    }
    if study.systems.len() > 1 {
        let ahead = study.ahead();
        all.push(section(
            "ahead",
            "Where a peer is ahead",
            ahead_body(study, &ahead),
        ));
        all.push(section("overall", "Overall", overall(study)));
    }
    for (at, workload) in study.workloads().into_iter().enumerate() {
        let body = workload_body(study, workload, &found);
        all.push(section(
            &format!("workload-{at}"),
            workload_title(workload),
            body,
        ));
    }
    if !study.singles.is_empty() {
        let title = if study.singles.len() > 1 {
            "Runs"
        } else {
            "The run"
        };
        all.push(section("runs", title, singles::section(&study.singles)));
    }
    if !found.is_empty() {
        all.push(section(
            "troubles",
            "Failed and not done",
            tables::troubles(study, &found),
        ));
    }
    if !warned.is_empty() || study.superseded() > 0 {
        let mut body = tables::warnings(study, &warned);
        if study.superseded() > 0 {
            put(
                &mut body,
                format_args!(
                    "<p>{} of a round that was run again: the last run of a round is the one that counts.</p>",
                    plural(study.superseded(), "earlier run")
                ),
            );
        }
        all.push(section("warnings", "Warnings", body));
    }
    if !study.checks.is_empty() {
        all.push(section("checks", "Cross-checks", checks(&study.checks)));
    }
    if !study.abouts.is_empty() {
        all.push(section("about", "Machine and method", about_body(study)));
    }
    all
}

/// When and how, and on what, in a line.
fn byline(about: &About) -> String {
    let machine = &about.machine;
    let parts = [
        about.form.as_ref().map(|form| format!("{form} form")),
        about.started.clone(),
        machine.cpu.clone(),
        machine
            .cores
            .map(|cores| plural(usize::try_from(cores).unwrap_or(usize::MAX), "core")),
        machine.memory_bytes.map(bytes),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .flatten()
        .map(|part| html(&part))
        .collect();
    if parts.is_empty() {
        return String::new();
    }
    format!("<p class=\"byline\">{}</p>", parts.join(" <i>·</i> "))
}

/// The page in a few numbers.
fn tiles(study: &Study) -> String {
    let mut tiles: Vec<(String, String, String)> = Vec::new();
    if !study.targets.is_empty() {
        let met = study
            .targets
            .iter()
            .filter(|target| target.met == Some(true))
            .count();
        tiles.push((
            format!("{met}"),
            format!("of {}", study.targets.len()),
            "targets met".into(),
        ));
    }
    if let Some(ours) = study.ours() {
        for firsts in study.firsts() {
            let what = match firsts.metric {
                Metric::Cpu => "where forebay spends least CPU",
                Metric::Bandwidth => "where forebay moves most",
                Metric::P99 => "where forebay’s p99 is lowest",
                Metric::P50 | Metric::Requests => continue,
            };
            let of = format!("of {}", plural(firsts.rows(), "row"));
            tiles.push((count(firsts.counts[ours] as u64), of, what.into()));
        }
    }
    let cells = study.cells().count();
    if cells > 0 {
        let failed = study
            .cells()
            .filter(|(_, _, cell)| cell.has_failed())
            .count();
        tiles.push((
            count(failed as u64),
            format!("of {}", plural(cells, "cell")),
            "with a failed run".into(),
        ));
    }
    if tiles.is_empty() {
        return String::new();
    }
    let tiles: Vec<String> = tiles
        .iter()
        .map(|(number, of, what)| {
            format!("<li><b>{number}</b> <span>{of}</span><p>{what}</p></li>")
        })
        .collect();
    format!("<ul class=\"tiles\">{}</ul>", tiles.concat())
}

fn ahead_body(study: &Study, ahead: &[Ahead]) -> String {
    let Some(_) = study.ours() else {
        return "<p>No run of a system named <code>forebay</code> is among these, so that nobody is its peer.</p>".into();
    };
    if ahead.is_empty() {
        return "<p>In no row that was measured: nowhere does a peer’s median beat forebay’s by more than 1 %.</p>".into();
    }
    format!(
        "<p>Every figure in which the best peer’s median beats forebay’s by more than 1 %, the widest lead first. Ratios are taken pair by \
         pair, between runs of the same round. Where forebay’s ratio is above 1 it spends or waits more; for throughput, below 1 it moves less.</p>{}",
        tables::ahead(study, ahead)
    )
}

/// How often each is first, and ours over each peer.
fn overall(study: &Study) -> String {
    let mut out = legend(study, &(0..study.systems.len()).collect::<Vec<_>>());
    let firsts = study.firsts();
    if !firsts.is_empty() {
        out.push_str("<h3>Who is first</h3><p>Rows by the system with the best median, of those that at least two systems have figures for. \
                      Closer than 1 % is even.</p><div class=\"firsts\">");
        for firsts in &firsts {
            out.push_str(&firsts_bar(study, firsts));
        }
        out.push_str("</div>");
    }
    out.push_str(&over_peers(study));
    out
}

fn firsts_bar(study: &Study, firsts: &Firsts) -> String {
    let mut bar = String::new();
    let parts = firsts
        .counts
        .iter()
        .enumerate()
        .map(|(system, number)| (style(system), study.systems[system].as_str(), *number));
    for (class, name, number) in parts.chain([("even".into(), "even", firsts.even)]) {
        if number > 0 {
            let (name, rows) = (html(name), plural(number, "row"));
            let wide = number as f64 >= NAMED_SHARE_MIN * firsts.rows() as f64;
            let said = if wide { name.as_str() } else { "" };
            put(
                &mut bar,
                format_args!(
                    "<span class=\"{class}\" style=\"flex-grow:{number}\" title=\"{name}: {rows}\"><i>{said}</i> {number}</span>"
                ),
            );
        }
    }
    format!(
        "<p>{}</p><div class=\"stack\">{bar}</div>",
        firsts.metric.name()
    )
}

/// Ours over each peer's: CPU and throughput by workload.
fn over_peers(study: &Study) -> String {
    let peers: Vec<usize> = (0..study.systems.len())
        .filter(|system| study.is_peer(*system))
        .collect();
    if study.ours().is_none() || peers.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<h3>forebay ÷ peer</h3><p>The median row of each workload, and the lowest and the highest row. Green is forebay’s side, red the peer’s.</p>",
    );
    for (metric, caption) in [
        (
            Metric::Cpu,
            "Server CPU per GiB: below 1 forebay spends less",
        ),
        (Metric::Bandwidth, "Throughput: above 1 forebay moves more"),
        (
            Metric::P99,
            "99th percentile latency: below 1 forebay is faster",
        ),
    ] {
        let mut rows = String::new();
        for workload in study.workloads() {
            for tls in [true, false] {
                let cells: Vec<String> = peers
                    .iter()
                    .map(|&peer| over_peer_cell(study, workload, tls, peer, metric))
                    .collect();
                if cells.iter().any(|cell| cell.contains("×")) {
                    put(
                        &mut rows,
                        format_args!(
                            "<tr><th scope=\"row\">{}</th><td>{}</td>{}</tr>",
                            html(workload_title(workload)),
                            if tls { "TLS" } else { "plain" },
                            cells.concat()
                        ),
                    );
                }
            }
        }
        if rows.is_empty() {
            continue;
        }
        let heads = peers.iter().map(|&peer| {
            format!(
                "<th class=\"n\">{}{}</th>",
                sign(peer),
                html(&study.systems[peer])
            )
        });
        put(
            &mut out,
            format_args!(
                "<div class=\"wide\"><table><caption>{caption}</caption><thead><tr><th>Workload</th><th>Wire</th>{}</tr></thead><tbody>{rows}</tbody></table></div>",
                heads.collect::<String>()
            ),
        );
    }
    out
}

fn over_peer_cell(study: &Study, workload: &str, tls: bool, peer: usize, metric: Metric) -> String {
    let Some(ratio) = study.over_peer(workload, tls, peer, metric) else {
        return "<td class=\"n none\">·</td>".into();
    };
    let ours = (ratio.median < 1.0) == metric.lower_is_better();
    let class = if (ratio.median - 1.0).abs() <= 0.01 {
        ""
    } else if ours {
        " good"
    } else {
        " bad"
    };
    let between = if ratio.count > 1 {
        format!(
            "<small>{} … {}</small>",
            figure(ratio.low),
            figure(ratio.high)
        )
    } else {
        String::new()
    };
    format!(
        "<td class=\"n{class}\">{} ×{between}</td>",
        figure(ratio.median)
    )
}

fn workload_body(study: &Study, workload: &str, found: &[Trouble]) -> String {
    let mut out = String::from("<div class=\"matrix\">");
    out.push_str(&legend(study, &study.systems_of(workload)));
    for Figure {
        title,
        text,
        panels,
        columns,
    } in figures::of_workload(study, workload)
    {
        let class = if columns == 2 { "panels two" } else { "panels" };
        put(
            &mut out,
            format_args!(
                "<figure><figcaption><h3>{}</h3><p>{}</p></figcaption><div class=\"{class}\">{}</div></figure>",
                html(&title),
                html(&text),
                panels.concat()
            ),
        );
    }
    let rows = plural(study.rows(workload).len(), "row");
    put(
        &mut out,
        format_args!(
            "<details><summary>All figures: {rows}</summary>{}</details></div>",
            tables::matrix(study, workload, found)
        ),
    );
    out
}

fn legend(study: &Study, systems: &[usize]) -> String {
    let items = systems.iter().map(|&system| {
        format!(
            "<li><button type=\"button\" data-toggle=\"{system}\" aria-pressed=\"true\">{}{}</button></li>",
            sign(system), html(&study.systems[system])
        )
    });
    format!("<ul class=\"legend\">{}</ul>", items.collect::<String>())
}

fn checks(checks: &[Check]) -> String {
    let mut out = String::from(
        "<div class=\"wide\"><table><thead><tr><th>Check</th><th class=\"n\">a</th><th class=\"n\">b</th><th class=\"n\">a ÷ b</th><th>What it says</th></tr></thead><tbody>",
    );
    let number = |value: Option<f64>| value.map_or("–".into(), figure);
    for check in checks {
        put(
            &mut out,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"prose\">{}</td></tr>",
                html(&check.name),
                number(check.a),
                number(check.b),
                number(check.ratio),
                html(&check.text)
            ),
        );
    }
    out.push_str("</tbody></table></div>");
    out
}

fn about_body(study: &Study) -> String {
    let mut out = String::new();
    let mut machines: Vec<&Machine> = Vec::new();
    let mut method: Vec<&str> = Vec::new();
    for about in &study.abouts {
        if about.machine != Machine::default() && !machines.contains(&&about.machine) {
            machines.push(&about.machine);
        }
        for sentence in &about.method {
            if !method.contains(&sentence.as_str()) {
                method.push(sentence);
            }
        }
    }
    for machine in machines {
        out.push_str(&machine_card(machine));
    }
    let mut names: Vec<&str> = study.systems.iter().map(String::as_str).collect();
    for system in study.abouts.iter().flat_map(|about| &about.systems) {
        if !names.contains(&system.name.as_str()) {
            names.push(&system.name);
        }
    }
    if !names.is_empty() {
        out.push_str("<h3>Systems</h3><div class=\"cards\">");
        for (at, name) in names.iter().enumerate() {
            out.push_str(&system_card(study, name, at));
        }
        out.push_str("</div>");
    }
    if !method.is_empty() {
        let items = method
            .iter()
            .map(|sentence| format!("<li>{}</li>", html(sentence)));
        put(
            &mut out,
            format_args!(
                "<h3>Method</h3><ul class=\"prose\">{}</ul>",
                items.collect::<String>()
            ),
        );
    }
    out
}

fn machine_card(machine: &Machine) -> String {
    let facts = [
        ("CPU", machine.cpu.clone()),
        ("cores", machine.cores.map(count)),
        ("memory", machine.memory_bytes.map(bytes)),
        ("disk", machine.disk.clone()),
        ("kernel", machine.kernel.clone()),
    ];
    let facts = facts.into_iter().filter_map(|(what, value)| {
        Some(format!(
            "<div><dt>{what}</dt><dd>{}</dd></div>",
            html(&value?)
        ))
    });
    let notes = notes(&machine.notes);
    format!(
        "<h3>Machine</h3><dl class=\"facts\">{}</dl>{notes}",
        facts.collect::<String>()
    )
}

fn system_card(study: &Study, name: &str, at: usize) -> String {
    let signed = if at < study.systems.len() {
        sign(at)
    } else {
        String::new()
    };
    let mut out = format!("<article class=\"card\"><h4>{signed}{}", html(name));
    let described = study.described(name);
    let mut versions: Vec<&str> = described
        .iter()
        .filter_map(|system| system.version.as_deref())
        .collect();
    versions.dedup();
    if !versions.is_empty() {
        put(
            &mut out,
            format_args!(" <span>{}</span>", html(&versions.join(" and "))),
        );
    }
    out.push_str("</h4>");
    if described.is_empty() {
        out.push_str("<p class=\"none\">The files say nothing of its version and settings.</p>");
    }
    for system in described {
        if let Some(settings) = &system.settings {
            put(&mut out, format_args!("<p>{}</p>", html(settings)));
        }
        out.push_str(&notes(&system.notes));
    }
    out.push_str("</article>");
    out
}

fn notes(notes: &[String]) -> String {
    if notes.is_empty() {
        return String::new();
    }
    let items = notes.iter().map(|note| format!("<li>{}</li>", html(note)));
    format!("<ul class=\"notes\">{}</ul>", items.collect::<String>())
}
