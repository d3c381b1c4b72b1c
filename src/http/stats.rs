//! What one core's connections count. Written by that core only, read by whoever renders metrics:
//! relaxed atomics without contention, so that no message is needed to look.

use forebay_io::histogram::BOUNDS_US;
use forebay_shards::messages::Outcome;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// A counter that one core raises.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts `count` more.
    pub fn add(&self, count: u64) {
        // One writer: a plain read and write costs less than a locked addition.
        self.0
            .store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations in the buckets of [`BOUNDS_US`].
#[derive(Default)]
pub struct Times {
    buckets: [Count; BOUNDS_US.len() + 1],
    sum_us: Count,
}

impl Times {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let us = duration.as_micros() as u64;
        self.buckets[BOUNDS_US.partition_point(|bound| *bound < us)].add(1);
        self.sum_us.add(us);
    }

    /// Counts per bucket and the sum in microseconds.
    pub fn values(&self) -> (Vec<u64>, u64) {
        (
            self.buckets.iter().map(Count::get).collect(),
            self.sum_us.get(),
        )
    }
}

/// What is counted of responses with one cache outcome.
#[derive(Default)]
pub struct OutcomeStats {
    /// Responses.
    pub responses: Count,
    /// Object bytes sent.
    pub bytes: Count,
    /// From the request's head to the last byte sent.
    pub times: Times,
}

/// One core's connections.
#[derive(Default)]
pub struct HttpStats {
    outcomes: [OutcomeStats; Outcome::ALL.len()],
    /// Responses by method and status. A lock, but one that only this core and whoever renders
    /// metrics take; nothing waits for anything while holding it.
    statuses: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Connections accepted.
    pub accepted: Count,
    /// Connections open.
    pub open: AtomicI64,
    /// Handshakes that failed or took too long.
    pub handshake_failures: Count,
    /// Connections closed for a malformed request.
    pub malformed: Count,
    /// Connections closed for a deadline or a least rate.
    pub too_slow: Count,
    /// Times that accepting paused because descriptors ran out.
    pub accept_pauses: Count,
    /// Object bytes received.
    pub bytes_in: Count,
    /// Times of writes, from the request's head to the answer.
    pub write_times: Times,
    /// Raised every so often by a task of the core; a core that stalls stops raising it.
    pub ticks: AtomicU64,
}

impl HttpStats {
    /// The counters of one outcome.
    pub fn outcome(&self, outcome: Outcome) -> &OutcomeStats {
        let at = Outcome::ALL
            .iter()
            .position(|candidate| *candidate == outcome);
        &self.outcomes[at.expect("ALL holds every outcome")]
    }

    /// Counts a response.
    pub fn count_status(&self, method: &'static str, status: u16) {
        let mut statuses = self.statuses.lock().unwrap_or_else(|e| e.into_inner());
        *statuses.entry((method, status)).or_insert(0) += 1;
    }

    /// Responses by method and status.
    pub fn statuses(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.statuses
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .clone()
    }
}
