//! Latency counts in fixed buckets, as Prometheus takes them. Owned by one core, no atomics.

use std::cell::{Cell, RefCell};
use std::time::Duration;

/// Upper bounds of the buckets, microseconds: 1-2.5-5 steps from 50 µs (a RAM hit over loopback)
/// to 60 s (past every deadline). One more bucket, without bound, follows.
pub const BOUNDS_US: [u64; 19] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Counts of durations per bucket.
#[derive(Default)]
pub struct Histogram {
    buckets: RefCell<[u64; BOUNDS_US.len() + 1]>,
    sum_us: Cell<u64>,
}

/// A histogram's values at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Counts per bucket, not cumulative; `BOUNDS_US.len() + 1` of them, or none when nothing was
    /// ever recorded.
    pub buckets: Vec<u64>,
    /// Sum of all durations, microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let us = duration.as_micros() as u64;
        let at = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets.borrow_mut()[at] += 1;
        self.sum_us.set(self.sum_us.get() + us);
    }

    /// The values now.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            buckets: self.buckets.borrow().to_vec(),
            sum_us: self.sum_us.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_first_bucket_that_holds_them() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(50));
        histogram.record(Duration::from_micros(51));
        histogram.record(Duration::from_secs(100));
        let snapshot = histogram.snapshot();
        assert_eq!((snapshot.buckets[0], snapshot.buckets[1]), (1, 1));
        assert_eq!(snapshot.buckets[BOUNDS_US.len()], 1);
        assert_eq!(snapshot.sum_us, 100_000_101);
    }
}
