//! Many seeds of random lives. A seed that fails says how to run it alone.
//!
//! `FOREBAY_SIM_SEEDS` is how many seeds are lived, `FOREBAY_SIM_SEED` the first of them,
//! `FOREBAY_SIM_MINUTES` for how long instead. `scripts/simulate` sets them.

use crate::support::journal::Journal;
use crate::support::workload;
use forebay_io::sim::disk::DiskFault;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seeds that a debug build lives in about half a minute on two cores.
const SEEDS_DEFAULT: u64 = 3000;

/// Seeds that failed when something was wrong, in the engine or here, each with what it was. A seed
/// lives another life once the workload has changed, so this corpus ages; new finds are added.
const SEEDS_FOUND: [(u64, &str); 13] = [
    (
        412_144,
        "a copy does not say that what a kill cut off is gone",
    ),
    (52_836, "a later block that is gone takes the first with it"),
    (
        519_799,
        "a forgotten record outranked an older one when its segment went",
    ),
    (
        523_808,
        "a copy of another version was found again by the next start",
    ),
    (339, "a fetch that began during a dirty write outranked it"),
    (
        377,
        "a clean copy was taken for proof that the store has a block",
    ),
    (988, "a power cut tore a dirty record that a footer listed"),
    (3504, "a full disk had no room for a tombstone"),
    (
        1_000_084,
        "an upload that was held back began before the delete had ended",
    ),
    (1_003_212, "a conflict was forgotten with the ledger"),
    (
        2_004_059,
        "a durable tombstone went before the one that replaced it was durable",
    ),
    (
        3_024_547,
        "a tombstone whose flush failed buried a block at the next start only",
    ),
    (
        7_001_095,
        "the disk was too full to take a conflict, and the ledger that knew it was lost",
    ),
];

/// Failing seeds after which no more are looked for: by then there is enough to do.
const FAILURES_MAX: usize = 20;

/// How often a long run says that it goes on.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} must be a whole number, and is {text:?}")))
}

/// Seeds to live, and what came of them.
struct Campaign {
    first: u64,
    next: AtomicU64,
    end: u64,
    deadline: Option<Instant>,
    failed: Mutex<Vec<u64>>,
    struck: Mutex<Vec<u64>>,
}

impl Campaign {
    fn new() -> Campaign {
        let first = from_environment("FOREBAY_SIM_SEED").unwrap_or(1);
        let minutes = from_environment("FOREBAY_SIM_MINUTES");
        let seeds = match minutes {
            Some(_) => u64::MAX - first,
            None => from_environment("FOREBAY_SIM_SEEDS").unwrap_or(SEEDS_DEFAULT),
        };
        Campaign {
            first,
            next: AtomicU64::new(first),
            end: first + seeds,
            deadline: minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)),
            failed: Mutex::default(),
            struck: Mutex::new(vec![0; DiskFault::ALL.len()]),
        }
    }

    fn failures(&self) -> Vec<u64> {
        self.failed.lock().expect("no holder panics").clone()
    }

    /// The next seed, as long as there are any and it makes sense to go on.
    fn take(&self) -> Option<u64> {
        let late = self.deadline.is_some_and(|end| Instant::now() >= end);
        if late || self.failures().len() >= FAILURES_MAX {
            return None;
        }
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        (seed < self.end).then_some(seed)
    }

    fn lived(&self) -> u64 {
        self.next.load(Ordering::Relaxed).min(self.end) - self.first
    }

    fn live(&self) {
        while let Some(seed) = self.take() {
            let journal: Rc<Journal> = Rc::default();
            match catch_unwind(AssertUnwindSafe(|| workload::run(seed, &journal))) {
                Ok((_, struck)) => {
                    let mut sums = self.struck.lock().expect("no holder panics");
                    for (sum, count) in sums.iter_mut().zip(struck) {
                        *sum += count;
                    }
                }
                Err(_) => {
                    let history = journal.history();
                    eprintln!(
                        "seed {seed} failed, see above; before that:\n  {history}\nreplay it with\n  \
                         scripts/simulate --from {seed} --seeds 1"
                    );
                    self.failed.lock().expect("no holder panics").push(seed);
                }
            }
        }
    }

    fn report_progress(&self, began: Instant) {
        let seconds = began.elapsed().as_secs();
        let failed = self.failures().len();
        eprintln!("{} seeds in {seconds} s, {failed} failed", self.lived());
    }
}

#[test]
fn random_lives_keep_every_promise() {
    let campaign = Campaign::new();
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| campaign.live()))
            .collect();
        let mut told = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            if told.elapsed() >= PROGRESS_EVERY {
                campaign.report_progress(began);
                told = Instant::now();
            }
        }
    });
    let struck = campaign.struck.lock().expect("no holder panics");
    for (fault, count) in DiskFault::ALL.iter().zip(struck.iter()) {
        eprintln!("{fault:?} struck {count} times");
        let never = *count == 0 && campaign.lived() >= SEEDS_DEFAULT;
        assert!(!never, "{fault:?} has never struck: nothing is known of it");
    }
    let failed = campaign.failures();
    let passed = campaign.lived() - failed.len() as u64;
    println!("{passed} seeds passed, {} failed", failed.len());
    assert!(failed.is_empty(), "seeds {failed:?} failed");
}

#[test]
fn seeds_that_found_something_pass() {
    for (seed, found) in SEEDS_FOUND {
        let journal: Rc<Journal> = Rc::default();
        let lived = catch_unwind(AssertUnwindSafe(|| workload::run(seed, &journal)));
        let history = journal.history();
        assert!(lived.is_ok(), "seed {seed} ({found}):\n  {history}");
    }
}

#[test]
fn the_same_seed_lives_the_same_life() {
    let first = from_environment("FOREBAY_SIM_SEED").unwrap_or(1);
    let mut digests = std::collections::BTreeSet::new();
    for seed in first..first + 20 {
        let journals: [Rc<Journal>; 2] = Default::default();
        let [one, two] = journals
            .each_ref()
            .map(|journal| workload::run(seed, journal));
        assert!(journals[0].len() > 10, "seed {seed} did nothing");
        assert_eq!(journals[0].history(), journals[1].history(), "seed {seed}");
        assert_eq!(one, two, "seed {seed}");
        digests.insert(one.0);
    }
    assert_eq!(digests.len(), 20, "different seeds live different lives");
}
