//! What was measured: owns the window in which things count, the latency histograms and the errors by kind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::load::report::{self, Latency};

/// Longest latency that is told apart: ten minutes, in microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;

/// Significant decimal digits kept of a latency.
const LATENCY_DIGITS: u8 = 3;

/// The time that counts, and what all threads add to while it lasts.
///
/// It is planned when the run begins, and opened and shut by whoever takes the snapshots at its ends, at their moments: on a
/// machine that is taken away for a while that may be long after the planned ones, and what is counted must be what the
/// length of time, the bytes and the CPU time between the snapshots are about.
#[derive(Debug)]
pub(super) struct Window {
    /// Before all that is planned; moments are kept as nanoseconds since it.
    origin: Instant,
    planned_start: Instant,
    planned_end: Instant,
    /// [`NEVER`] until it is opened.
    start_ns: AtomicU64,
    /// [`NEVER`] until it is shut.
    end_ns: AtomicU64,
    closed: AtomicBool,
    /// Body bytes moved so far, before the window too; its ends are told apart by whoever reads it.
    bytes: AtomicU64,
}

/// A moment that does not come.
const NEVER: u64 = u64::MAX;

impl Window {
    /// One that is to be opened after `warmup` from `origin` on, and shut `length` later.
    pub(super) fn planned(origin: Instant, warmup: Duration, length: Duration) -> Self {
        Self {
            origin,
            planned_start: origin + warmup,
            planned_end: origin + warmup + length,
            start_ns: AtomicU64::new(NEVER),
            end_ns: AtomicU64::new(NEVER),
            closed: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn planned_start(&self) -> Instant {
        self.planned_start
    }

    pub(super) fn planned_end(&self) -> Instant {
        self.planned_end
    }

    /// Counts what ends at `time` and later.
    pub(super) fn open(&self, time: Instant) {
        self.start_ns.store(self.ns(time), Ordering::Release);
    }

    /// Counts nothing that ends at `time` or later.
    pub(super) fn shut(&self, time: Instant) {
        self.end_ns.store(self.ns(time), Ordering::Release);
    }

    pub(super) fn is_open(&self) -> bool {
        self.start_ns.load(Ordering::Acquire) != NEVER
    }

    /// Whether what ends at `time` counts.
    pub(super) fn contains(&self, time: Instant) -> bool {
        let counted = self.start_ns.load(Ordering::Acquire)..self.end_ns.load(Ordering::Acquire);
        counted.contains(&self.ns(time))
    }

    fn ns(&self, time: Instant) -> u64 {
        u64::try_from((time - self.origin).as_nanos()).unwrap_or(NEVER - 1)
    }

    /// Says that nothing more is to be sent.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// As what a request is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Read,
    Write,
    /// A read of the set that is read again and again.
    Hot,
    /// A read of what is read once.
    Scan,
    /// Of a herd's rounds, the last answer of each; counted among the reads too.
    Slowest,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Hot => "hot",
            Self::Scan => "scan",
            Self::Slowest => "slowest",
        }
    }
}

/// Latencies in microseconds.
pub(super) fn latency_histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS)
        .map_err(|error| format!("latency histogram: {error}"))
}

/// What requests of one kind came to.
#[derive(Debug)]
struct Tally {
    latency_us: Histogram<u64>,
    bytes: u64,
    errors: u64,
}

/// What one thread saw since it was last emptied, or all of them from the start.
#[derive(Debug, Default)]
pub(super) struct Samples {
    tallies: BTreeMap<Kind, Tally>,
    pub(super) errors: BTreeMap<String, u64>,
    /// Bodies that differed from what they should be, in length or in content.
    pub(super) wrong_content: u64,
    /// Protocol and cipher of the last handshake.
    pub(super) tls: Option<String>,
    /// Answers over connections whose core is known, from servers that name the owner.
    pub(super) owner_known: u64,
    /// Those of them whose owner was the connection's core.
    pub(super) owner_met: u64,
}

impl Samples {
    fn tally(&mut self, kind: Kind) -> Result<&mut Tally, String> {
        use std::collections::btree_map::Entry;
        match self.tallies.entry(kind) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(Tally {
                latency_us: latency_histogram()?,
                bytes: 0,
                errors: 0,
            })),
        }
    }

    pub(super) fn add(&mut self, kind: Kind, latency: Duration, bytes: u64) -> Result<(), String> {
        let tally = self.tally(kind)?;
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        tally.latency_us.saturating_record(latency_us);
        tally.bytes += bytes;
        Ok(())
    }

    pub(super) fn add_error(&mut self, kind: Kind, name: String) -> Result<(), String> {
        *self.errors.entry(name).or_default() += 1;
        self.tally(kind)?.errors += 1;
        Ok(())
    }

    pub(super) fn merge(&mut self, other: Self) -> Result<(), String> {
        for (kind, theirs) in other.tallies {
            let ours = self.tally(kind)?;
            ours.latency_us
                .add(&theirs.latency_us)
                .map_err(|error| format!("latency histogram: {error}"))?;
            ours.bytes += theirs.bytes;
            ours.errors += theirs.errors;
        }
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.wrong_content += other.wrong_content;
        self.tls = other.tls.or(self.tls.take());
        self.owner_known += other.owner_known;
        self.owner_met += other.owner_met;
        Ok(())
    }

    /// All latencies, each once.
    pub(super) fn latencies(&self) -> Result<Histogram<u64>, String> {
        let mut all = latency_histogram()?;
        for (kind, tally) in &self.tallies {
            if *kind != Kind::Slowest {
                all.add(&tally.latency_us)
                    .map_err(|error| format!("latency histogram: {error}"))?;
            }
        }
        Ok(all)
    }

    pub(super) fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Samples of one kind.
    pub(super) fn requests_of(&self, kind: Kind) -> u64 {
        self.tallies
            .get(&kind)
            .map_or(0, |tally| tally.latency_us.len())
    }

    /// The figures of each kind that occurred.
    pub(super) fn by_kind(&self) -> BTreeMap<String, report::Kind> {
        let figures = |tally: &Tally| report::Kind {
            requests: tally.latency_us.len(),
            bytes: tally.bytes,
            errors: tally.errors,
            latency_us: percentiles(&tally.latency_us),
        };
        let kinds = self.tallies.iter();
        kinds
            .map(|(kind, tally)| (kind.name().to_owned(), figures(tally)))
            .collect()
    }
}

/// The percentiles that reports show; `None` without samples.
pub(super) fn percentiles(latency_us: &Histogram<u64>) -> Option<Latency> {
    let at = |quantile| latency_us.value_at_quantile(quantile);
    (!latency_us.is_empty()).then(|| Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: latency_us.max(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_between_the_snapshots_counts_however_late_they_are() {
        let origin = Instant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        let window = Window::planned(
            origin,
            Duration::from_millis(100),
            Duration::from_millis(500),
        );
        assert_eq!(
            (window.planned_start(), window.planned_end()),
            (at(100), at(600))
        );
        // The planned start is past and the snapshot not taken yet: what ends now is in no length of time.
        assert!(!window.is_open() && !window.contains(at(120)));
        window.open(at(150));
        assert!(window.is_open() && !window.contains(at(149)));
        // Past the planned end, until the snapshot there.
        assert!(window.contains(at(150)) && window.contains(at(650)));
        window.shut(at(700));
        assert!(window.contains(at(699)) && !window.contains(at(700)));
    }
}
