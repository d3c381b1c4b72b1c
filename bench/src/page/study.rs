//! What the runs come to: owns medians over rounds, ratios pair by pair, and who is ahead where. Knows nothing of how it is shown.

use std::collections::BTreeMap;

use super::records::{About, Check, Outcome, Record, Row, Run, Single, System, Target};
use super::text;
use crate::load::report::Report;

/// Two medians that differ by less than this share are called even: it is less than two runs of one system differ by.
const EVEN_SHARE: f64 = 0.01;

/// Requests that move less than this are counted, larger ones are weighed.
const BANDWIDTH_BYTES_MIN: u64 = 128 << 10;

/// Name of the system that the others are peers of; what begins with it and a space or hyphen is the same system in another
/// setting.
const OURS: &str = "forebay";

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    /// Server's CPU seconds for each GiB moved.
    Cpu,
    /// GiB/s.
    Bandwidth,
    /// Requests/s.
    Requests,
    /// Median latency, in microseconds.
    P50,
    /// 99th percentile, in microseconds.
    P99,
}

impl Metric {
    /// Its value in one run; absent where it was not measured.
    pub(super) fn of(self, report: &Report) -> Option<f64> {
        let value = match self {
            Self::Cpu => report.server_cpu_s_per_gib?,
            Self::Bandwidth => report.gib_per_s,
            Self::Requests => report.requests_per_s,
            Self::P50 => report.latency_us?.p50 as f64,
            Self::P99 => report.latency_us?.p99 as f64,
        };
        value.is_finite().then_some(value)
    }

    pub(super) fn lower_is_better(self) -> bool {
        !matches!(self, Self::Bandwidth | Self::Requests)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "Server CPU per GiB",
            Self::Bandwidth => "Throughput",
            Self::Requests => "Requests per second",
            Self::P50 => "Median latency",
            Self::P99 => "99th percentile latency",
        }
    }

    /// Of the numbers on an axis or in a table.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "CPU s/GiB",
            Self::Bandwidth => "GiB/s",
            Self::Requests => "requests/s",
            Self::P50 | Self::P99 => "latency",
        }
    }

    /// A value as a table shows it.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::P50 | Self::P99 => text::latency(value),
            _ => text::figure(value),
        }
    }

    /// A value with its unit, for a sentence.
    pub(super) fn say(self, value: f64) -> String {
        match self {
            Self::P50 | Self::P99 => text::latency(value),
            _ => format!("{} {}", text::figure(value), self.unit()),
        }
    }

    /// Whether `a` is the better of the two.
    fn better(self, a: f64, b: f64) -> bool {
        if self.lower_is_better() { a < b } else { a > b }
    }
}

/// A median and what it was taken from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// The middle, or the mean of the two in the middle.
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) count: usize,
}

impl Spread {
    /// Absent without values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let (left, right) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self {
            median: f64::midpoint(left, right),
            low,
            high,
            count: sorted.len(),
        })
    }
}

/// Which file and which of its rounds. Rounds of different files are never a pair: they were not taken beside each other.
pub(super) type Round = (usize, u64);

/// All rounds of one row on one system.
#[derive(Debug, Default)]
pub(super) struct Cell {
    rounds: BTreeMap<Round, Vec<Outcome>>,
}

impl Cell {
    /// The run of each round that counts: the last that worked.
    pub(super) fn reports(&self) -> impl Iterator<Item = (Round, &Report)> {
        self.rounds.iter().filter_map(|(&round, outcomes)| {
            outcomes.iter().rev().find_map(|outcome| match outcome {
                Outcome::Ran(report) => Some((round, &**report)),
                _ => None,
            })
        })
    }

    /// Median over rounds; absent where no round has it.
    pub(super) fn spread(&self, metric: Metric) -> Option<Spread> {
        Spread::of(self.reports().filter_map(|(_, report)| metric.of(report)))
    }

    /// What did not come to figures.
    pub(super) fn trouble(&self) -> impl Iterator<Item = (Round, &Outcome)> {
        self.rounds.iter().flat_map(|(&round, outcomes)| {
            let bad = outcomes
                .iter()
                .filter(|outcome| !matches!(outcome, Outcome::Ran(_)));
            bad.map(move |outcome| (round, outcome))
        })
    }

    /// Whether any round was tried and did not work.
    pub(super) fn has_failed(&self) -> bool {
        self.trouble()
            .any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
    }

    /// Runs that a later run of the same round took the place of.
    fn superseded(&self) -> usize {
        let good = |outcomes: &Vec<Outcome>| {
            let ran = outcomes
                .iter()
                .filter(|outcome| matches!(outcome, Outcome::Ran(_)));
            ran.count().saturating_sub(1)
        };
        self.rounds.values().map(good).sum()
    }
}

/// A peer that did better than we did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ahead {
    pub(super) row: Row,
    pub(super) metric: Metric,
    /// The best of them.
    pub(super) peer: usize,
    pub(super) theirs: Spread,
    /// Ours; absent where we failed and they did not.
    pub(super) ours: Option<Spread>,
    /// Ours over theirs, pair by pair; of the medians alone (`count` 0) where no round has both.
    pub(super) ratio: Option<Spread>,
    /// Others that are ahead, too.
    pub(super) others: Vec<usize>,
}

impl Ahead {
    /// How many times as good the peer is, to sort by: without bound where we have nothing.
    fn lead(&self) -> f64 {
        let Some(ratio) = self.ratio else {
            return f64::INFINITY;
        };
        if self.metric.lower_is_better() {
            ratio.median
        } else {
            1.0 / ratio.median
        }
    }
}

/// How often each system was best at something.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Firsts {
    pub(super) metric: Metric,
    /// By system.
    pub(super) counts: Vec<usize>,
    /// Rows whose best two are too close to be told apart.
    pub(super) even: usize,
}

impl Firsts {
    /// Rows that at least two systems have figures in.
    pub(super) fn rows(&self) -> usize {
        self.counts.iter().sum::<usize>() + self.even
    }
}

/// Everything that was read, in order.
#[derive(Debug, Default)]
pub(super) struct Study {
    pub(super) abouts: Vec<About>,
    /// Ours first, then in the order of the files.
    pub(super) systems: Vec<String>,
    cells: BTreeMap<Row, BTreeMap<usize, Cell>>,
    pub(super) targets: Vec<Target>,
    pub(super) checks: Vec<Check>,
    pub(super) singles: Vec<Single>,
}

impl Study {
    /// Sorts the records of each file.
    pub(super) fn of(files: Vec<Vec<Record>>) -> Self {
        let mut study = Self::default();
        let mut runs = Vec::new();
        for (file, records) in files.into_iter().enumerate() {
            for record in records {
                match record {
                    Record::About(about) => study.abouts.push(*about),
                    Record::Run(run) => runs.push((file, run)),
                    Record::Target(target) => study.targets.push(target),
                    Record::Check(check) => study.checks.push(check),
                    Record::Single(single) => study.singles.push(*single),
                }
            }
        }
        study.name_systems(&runs);
        for (file, run) in runs {
            let system = study.index(&run.system);
            let cell = study.cells.entry(run.row).or_default();
            let rounds = &mut cell.entry(system).or_default().rounds;
            rounds
                .entry((file, run.round))
                .or_default()
                .push(run.outcome);
        }
        study
    }

    /// Systems that have runs, ours first.
    fn name_systems(&mut self, runs: &[(usize, Run)]) {
        let described = self.abouts.iter().flat_map(|about| &about.systems);
        let named = described.map(|system| system.name.as_str());
        let ran: Vec<&str> = runs.iter().map(|(_, run)| run.system.as_str()).collect();
        let mut names: Vec<String> = Vec::new();
        for name in named
            .filter(|name| ran.contains(name))
            .chain(ran.iter().copied())
        {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names.sort_by_key(|name| (name != OURS, !is_ours(name)));
        self.systems = names;
    }

    fn index(&self, name: &str) -> usize {
        let found = self.systems.iter().position(|known| known == name);
        found.expect("every run's system was named")
    }

    /// What the files say about a system, one for each way in which they say it.
    pub(super) fn described(&self, name: &str) -> Vec<&System> {
        let mut all: Vec<&System> = Vec::new();
        for system in self.abouts.iter().flat_map(|about| &about.systems) {
            if system.name == name && !all.contains(&system) {
                all.push(system);
            }
        }
        all
    }

    /// Our system, if it was measured.
    pub(super) fn ours(&self) -> Option<usize> {
        self.systems.iter().position(|name| name == OURS)
    }

    /// Whether a system is somebody else's.
    pub(super) fn is_peer(&self, system: usize) -> bool {
        !is_ours(&self.systems[system])
    }

    /// Workloads in the order of the page.
    pub(super) fn workloads(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for row in self.cells.keys() {
            if !names.contains(&row.workload.as_str()) {
                names.push(&row.workload);
            }
        }
        names.sort_by_key(|name| (workload_rank(name), *name));
        names
    }

    /// Rows of a workload: by size, then connections, then TLS before plain.
    pub(super) fn rows(&self, workload: &str) -> Vec<&Row> {
        let of_it = self.cells.keys().filter(|row| row.workload == workload);
        let mut rows: Vec<&Row> = of_it.collect();
        rows.sort_by_key(|row| (row.moved_bytes(), row.size_bytes, row.connections, !row.tls));
        rows
    }

    /// All rows, in the order of the page.
    pub(super) fn all_rows(&self) -> Vec<&Row> {
        let workloads = self.workloads();
        workloads
            .iter()
            .flat_map(|workload| self.rows(workload))
            .collect()
    }

    /// Systems that were asked for anything of a workload, also where it failed.
    pub(super) fn systems_of(&self, workload: &str) -> Vec<usize> {
        let rows = self
            .cells
            .iter()
            .filter(|(row, _)| row.workload == workload);
        let mut systems: Vec<usize> = rows.flat_map(|(_, cells)| cells.keys().copied()).collect();
        systems.sort_unstable();
        systems.dedup();
        systems
    }

    /// The rounds of a row on a system; absent if it was never tried.
    pub(super) fn cell(&self, row: &Row, system: usize) -> Option<&Cell> {
        self.cells.get(row)?.get(&system)
    }

    /// Median of a row on a system.
    pub(super) fn spread(&self, row: &Row, system: usize, metric: Metric) -> Option<Spread> {
        self.cell(row, system)?.spread(metric)
    }

    /// All cells, in the order of the page.
    pub(super) fn cells(&self) -> impl Iterator<Item = (&Row, usize, &Cell)> {
        self.all_rows().into_iter().flat_map(|row| {
            let cells = &self.cells[row];
            cells.iter().map(move |(&system, cell)| (row, system, cell))
        })
    }

    /// Runs whose figures a later run of the same round replaced.
    pub(super) fn superseded(&self) -> usize {
        self.cells().map(|(_, _, cell)| cell.superseded()).sum()
    }

    /// `a` over `b`, pair by pair; absent if no round has both.
    pub(super) fn ratio(&self, row: &Row, a: usize, b: usize, metric: Metric) -> Option<Spread> {
        let theirs: BTreeMap<Round, f64> = self
            .cell(row, b)?
            .reports()
            .filter_map(|(round, report)| Some((round, metric.of(report)?)))
            .collect();
        let ratios = self.cell(row, a)?.reports().filter_map(|(round, report)| {
            let (ours, theirs) = (metric.of(report)?, *theirs.get(&round)?);
            (theirs > 0.0).then(|| ours / theirs)
        });
        Spread::of(ratios)
    }

    /// Ours over a peer's in all rows of a workload that both have: the median row and the ends.
    pub(super) fn over_peer(
        &self,
        workload: &str,
        tls: bool,
        peer: usize,
        metric: Metric,
    ) -> Option<Spread> {
        let ours = self.ours()?;
        let rows = self
            .cells
            .keys()
            .filter(|row| row.workload == workload && row.tls == tls);
        Spread::of(rows.filter_map(|row| Some(self.ratio(row, ours, peer, metric)?.median)))
    }

    /// The best of a row; absent where fewer than two systems have figures.
    pub(super) fn best(&self, row: &Row, metric: Metric) -> Option<(usize, f64)> {
        let medians = self.medians(row, metric);
        (medians.len() > 1).then(|| medians[0])
    }

    /// Medians of a row, best first.
    fn medians(&self, row: &Row, metric: Metric) -> Vec<(usize, f64)> {
        let systems = 0..self.systems.len();
        let mut medians: Vec<(usize, f64)> = systems
            .filter_map(|system| Some((system, self.spread(row, system, metric)?.median)))
            .collect();
        medians.sort_by(|a, b| {
            if metric.better(a.1, b.1) {
                std::cmp::Ordering::Less
            } else if metric.better(b.1, a.1) {
                std::cmp::Ordering::Greater
            } else {
                a.0.cmp(&b.0)
            }
        });
        medians
    }

    /// Who is first how often, by metric.
    pub(super) fn firsts(&self) -> Vec<Firsts> {
        let metrics = [Metric::Cpu, Metric::Bandwidth, Metric::P50, Metric::P99];
        let firsts = metrics.map(|metric| {
            let mut firsts = Firsts {
                metric,
                counts: vec![0; self.systems.len()],
                even: 0,
            };
            for row in self.cells.keys() {
                match self.medians(row, metric)[..] {
                    [(_, first), (_, second), ..] if is_even(first, second) => firsts.even += 1,
                    [(system, _), _, ..] => firsts.counts[system] += 1,
                    _ => {}
                }
            }
            firsts
        });
        firsts
            .into_iter()
            .filter(|firsts| firsts.rows() > 0)
            .collect()
    }

    /// Where a peer did better than we did, the widest lead first.
    pub(super) fn ahead(&self) -> Vec<Ahead> {
        let Some(ours) = self.ours() else {
            return Vec::new();
        };
        let of_row = |row: &Row| {
            let metrics = [Metric::Cpu, row.rate(), Metric::P50, Metric::P99];
            metrics.map(|metric| self.ahead_in(row, ours, metric))
        };
        let rows = self.all_rows().into_iter();
        let mut all: Vec<Ahead> = rows.flat_map(of_row).flatten().collect();
        all.sort_by(|a, b| b.lead().total_cmp(&a.lead()));
        all
    }

    /// The best peer of one row, if it is ahead of us.
    fn ahead_in(&self, row: &Row, ours: usize, metric: Metric) -> Option<Ahead> {
        // A row that we were never asked for is no defeat; one that we failed at is.
        let our_cell = self.cell(row, ours)?;
        let our_spread = our_cell.spread(metric);
        let lost = metric == row.rate() && our_cell.trouble().next().is_some();
        if our_spread.is_none() && !lost {
            return None;
        }
        let mut leaders = Vec::new();
        for (peer, _) in self.medians(row, metric) {
            let theirs = self.spread(row, peer, metric)?;
            let ratio = our_spread.map(|ours_now| {
                self.ratio(row, ours, peer, metric).unwrap_or(Spread {
                    median: ours_now.median / theirs.median,
                    low: ours_now.median / theirs.median,
                    high: ours_now.median / theirs.median,
                    count: 0,
                })
            });
            let behind = ratio.is_none_or(|ratio| {
                metric.better(1.0, ratio.median) && !is_even(1.0, ratio.median)
            });
            if self.is_peer(peer) && behind {
                leaders.push((peer, theirs, ratio));
            }
        }
        let (peer, theirs, ratio) = *leaders.first()?;
        Some(Ahead {
            row: row.clone(),
            metric,
            peer,
            theirs,
            ours: our_spread,
            ratio,
            others: leaders[1..].iter().map(|leader| leader.0).collect(),
        })
    }
}

impl Row {
    /// Body bytes of one request.
    pub(super) fn moved_bytes(&self) -> u64 {
        self.range_bytes.unwrap_or(self.size_bytes)
    }

    /// How its throughput is best told.
    pub(super) fn rate(&self) -> Metric {
        if self.moved_bytes() < BANDWIDTH_BYTES_MIN {
            Metric::Requests
        } else {
            Metric::Bandwidth
        }
    }

    /// `1 MiB`, or `64 KiB of 1 MiB`.
    pub(super) fn size(&self) -> String {
        let whole = text::bytes(self.size_bytes);
        self.range_bytes.map_or(whole.clone(), |range| {
            format!("{} of {whole}", text::bytes(range))
        })
    }

    /// `TLS` or `plain`.
    pub(super) fn wire(&self) -> &'static str {
        if self.tls { "TLS" } else { "plain" }
    }

    /// All but the workload.
    pub(super) fn label(&self) -> String {
        let connections = usize::try_from(self.connections).unwrap_or(usize::MAX);
        format!(
            "{}, {}, {}",
            self.size(),
            text::plural(connections, "connection"),
            self.wire()
        )
    }
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(OURS)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '-', ',', '(']))
}

fn is_even(a: f64, b: f64) -> bool {
    (a - b).abs() <= EVEN_SHARE * a.abs().max(b.abs())
}

/// What the workloads of the matrix are, for a reader; the name itself for any other.
pub(super) fn workload_title(name: &str) -> &str {
    match name {
        "hit-ram" => "Hits in memory",
        "hit-disk" => "Hits on disk",
        "miss" => "Misses",
        "range" => "Ranges",
        "put" => "Writes",
        _ => name,
    }
}

fn workload_rank(name: &str) -> usize {
    let known = ["hit-ram", "hit-disk", "range", "miss", "put"];
    let found = known.iter().position(|known| *known == name);
    found.unwrap_or(known.len())
}
