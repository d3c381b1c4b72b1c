//! How well the cache evicts, against LRU of the same quota: a table over traces, and the curve
//! of hit ratio over write budget.
//!
//! Run it with `bench/eviction`. It exits 1 when a requirement is missed: hits as many as LRU's on
//! every trace, 1.15 times as many on the scan, and at most 1.5 bytes written for each byte
//! admitted, with every seed. Nothing in it is timed; the same source prints the same figures.

mod contest;
mod trace;

use contest::{Geometry, Outcome, lru_hit_ratio, run_shards};
use forebay_shards::evict::WRITE_BUDGET_PERCENT;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use trace::Trace;

/// A small folder's shards with segments as of 4 MiB blocks.
const GEOMETRY: Geometry = Geometry {
    shards: 4,
    segments: 96,
    segment_records: 8,
};

/// The rows of the table.
const TRACES: [Trace; 4] = [
    Trace::Scan,
    Trace::ShiftingHotSet,
    Trace::Loop,
    Trace::Overwrites,
];

/// The table has the median over these, and their spread.
const SEEDS: [u64; 5] = [1, 2, 3, 4, 5];

/// Write budgets of the curve, percent. The last is more than there are survivors.
const BUDGETS_PERCENT: [u32; 6] = [0, 10, 25, 50, 100, UNLIMITED_PERCENT];

const UNLIMITED_PERCENT: u32 = 100_000;

/// Bytes written for each byte admitted, at most.
const WRITE_AMPLIFICATION_MAX: f64 = 1.5;

/// One run: a trace with a seed and a budget.
#[derive(Clone, Copy)]
struct Run {
    trace: Trace,
    seed: u64,
    budget_percent: u32,
}

/// What came of it.
#[derive(Clone, Copy)]
struct Score {
    run: Run,
    lru_hit_ratio: f64,
    outcome: Outcome,
}

impl Run {
    fn perform(self) -> Score {
        let requests = self.trace.requests(GEOMETRY.cache_records(), self.seed);
        Score {
            run: self,
            lru_hit_ratio: lru_hit_ratio(&requests, GEOMETRY.cache_records()),
            outcome: run_shards(requests, GEOMETRY, self.budget_percent, self.seed),
        }
    }
}

impl Score {
    /// Our hits for each of LRU's; infinite if it has none.
    fn ratio(&self) -> f64 {
        self.outcome.hit_ratio / self.lru_hit_ratio
    }

    fn is_good_enough(&self) -> bool {
        self.outcome.hit_ratio >= self.lru_hit_ratio * self.run.trace.hit_ratio_required()
            && self.outcome.write_amplification <= WRITE_AMPLIFICATION_MAX
    }
}

fn main() -> ExitCode {
    let at_default = runs(&SEEDS, &[WRITE_BUDGET_PERCENT]);
    let scores = perform_all(&at_default);
    let is_good_enough = print_table(&scores);
    print_curve(&perform_all(&runs(&SEEDS[..1], &BUDGETS_PERCENT)));
    if is_good_enough {
        ExitCode::SUCCESS
    } else {
        eprintln!("eviction: a requirement is missed, see the table");
        ExitCode::FAILURE
    }
}

/// Every trace with every one of `seeds` and `budgets_percent`.
fn runs(seeds: &[u64], budgets_percent: &[u32]) -> Vec<Run> {
    let mut runs = Vec::new();
    for &budget_percent in budgets_percent {
        for trace in TRACES {
            runs.extend(seeds.iter().map(|&seed| Run {
                trace,
                seed,
                budget_percent,
            }));
        }
    }
    runs
}

/// Performs all runs, one on each CPU at a time.
fn perform_all(runs: &[Run]) -> Vec<Score> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, scores) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let score = run.perform();
                    scores
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(score);
                }
            });
        }
    });
    scores.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The scores of a trace under a budget.
fn select(scores: &[Score], trace: Trace, budget_percent: u32) -> Vec<Score> {
    let of_both =
        |score: &&Score| score.run.trace == trace && score.run.budget_percent == budget_percent;
    scores.iter().filter(of_both).copied().collect()
}

/// Median, least and most of a figure.
fn spread(scores: &[Score], figure: impl Fn(&Score) -> f64) -> (f64, f64, f64) {
    let mut figures: Vec<f64> = scores.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    (
        figures[figures.len() / 2],
        figures[0],
        figures[figures.len() - 1],
    )
}

/// Prints the table for the default budget; returns whether every seed is good enough.
fn print_table(scores: &[Score]) -> bool {
    let Geometry {
        shards,
        segments,
        segment_records,
    } = GEOMETRY;
    println!(
        "{shards} shards of {segments} segments of {segment_records} records, write budget \
         {WRITE_BUDGET_PERCENT} %; medians and spread of {} seeds\n",
        SEEDS.len()
    );
    println!(
        "| trace | LRU hits | Forebay hits | ratio (spread) | required | bytes written / admitted (spread) | |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut is_good_enough = true;
    for trace in TRACES {
        let of_trace = select(scores, trace, WRITE_BUDGET_PERCENT);
        let passes = of_trace.iter().all(Score::is_good_enough);
        is_good_enough &= passes;
        let (lru, ..) = spread(&of_trace, |score| score.lru_hit_ratio);
        let (ours, ..) = spread(&of_trace, |score| score.outcome.hit_ratio);
        let (ratio, ratio_min, ratio_max) = spread(&of_trace, Score::ratio);
        let (written, written_min, written_max) =
            spread(&of_trace, |score| score.outcome.write_amplification);
        println!(
            "| {} | {lru:.3} | {ours:.3} | {ratio:.3} ({ratio_min:.3} … {ratio_max:.3}) | {:.2} | \
             {written:.2} ({written_min:.2} … {written_max:.2}) | {} |",
            trace.name(),
            trace.hit_ratio_required(),
            if passes { "ok" } else { "MISSED" },
        );
    }
    is_good_enough
}

/// Prints hit ratio over write budget, of one seed.
fn print_curve(scores: &[Score]) {
    println!("\nHit ratio (bytes written / admitted) over write budget, one seed:\n");
    print!("| trace | LRU |");
    for budget in BUDGETS_PERCENT {
        match budget {
            UNLIMITED_PERCENT => print!(" unlimited |"),
            percent => print!(" {percent} % |"),
        }
    }
    println!("\n|---|---|{}", "---|".repeat(BUDGETS_PERCENT.len()));
    for trace in TRACES {
        print!("| {} |", trace.name());
        for (column, budget) in BUDGETS_PERCENT.into_iter().enumerate() {
            let of_budget = select(scores, trace, budget);
            if column == 0 {
                print!(
                    " {:.3} |",
                    spread(&of_budget, |score| score.lru_hit_ratio).0
                );
            }
            let (hits, ..) = spread(&of_budget, |score| score.outcome.hit_ratio);
            let (written, ..) = spread(&of_budget, |score| score.outcome.write_amplification);
            print!(" {hits:.3} ({written:.2}) |");
        }
        println!();
    }
}
