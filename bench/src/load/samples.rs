//! What was measured: owns the window in which things count, the latency histogram and the errors by kind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::load::report::Latency;

/// Longest latency that is told apart: ten minutes, in microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;

/// Significant decimal digits kept of a latency.
const LATENCY_DIGITS: u8 = 3;

/// The time that counts, and what all threads add to while it lasts.
#[derive(Debug)]
pub(super) struct Window {
    start: Instant,
    end: Instant,
    closed: AtomicBool,
    /// Body bytes moved so far, before the window too; its ends are told apart by whoever reads it.
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Window {
    pub(super) fn starting(start: Instant, length: Duration) -> Self {
        let (bytes, errors) = (AtomicU64::new(0), AtomicU64::new(0));
        Self {
            start,
            end: start + length,
            closed: AtomicBool::new(false),
            bytes,
            errors,
        }
    }

    pub(super) fn end(&self) -> Instant {
        self.end
    }

    /// Whether what ends at `time` counts.
    pub(super) fn contains(&self, time: Instant) -> bool {
        (self.start..self.end).contains(&time) && !self.is_closed()
    }

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

    pub(super) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    pub(super) fn add_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// What one thread saw, or all of them.
#[derive(Debug)]
pub(super) struct Samples {
    latency_us: Histogram<u64>,
    pub(super) errors: BTreeMap<String, u64>,
    /// Bodies that differed from what they should be, in length or in content.
    pub(super) wrong_content: u64,
    /// Protocol and cipher of the last handshake.
    pub(super) tls: Option<String>,
}

impl Samples {
    pub(super) fn new() -> Result<Self, String> {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS)
            .map_err(|error| format!("latency histogram: {error}"))?;
        Ok(Self {
            latency_us,
            errors: BTreeMap::new(),
            wrong_content: 0,
            tls: None,
        })
    }

    pub(super) fn add(&mut self, latency: Duration) {
        self.latency_us
            .saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn add_error(&mut self, kind: String) {
        *self.errors.entry(kind).or_default() += 1;
    }

    pub(super) fn merge(&mut self, other: Self) -> Result<(), String> {
        self.latency_us
            .add(&other.latency_us)
            .map_err(|error| format!("latency histogram: {error}"))?;
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.wrong_content += other.wrong_content;
        self.tls = self.tls.take().or(other.tls);
        Ok(())
    }

    pub(super) fn requests(&self) -> u64 {
        self.latency_us.len()
    }

    pub(super) fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }

    pub(super) fn latency(&self) -> Option<Latency> {
        let at = |quantile| self.latency_us.value_at_quantile(quantile);
        (!self.latency_us.is_empty()).then(|| Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.latency_us.max(),
        })
    }
}
