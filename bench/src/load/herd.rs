//! The herd's gate: owns letting all connections of all threads go at one instant, and which answer of a round came last.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Barrier;

/// What all connections of a herd pass, round after round.
pub(super) struct Gate {
    barrier: Barrier,
    released: Mutex<Instant>,
    /// Slowest right answer of each round in nanoseconds, 0 while there is none.
    slowest_ns: Vec<AtomicU64>,
}

impl Gate {
    pub(super) fn new(connections: usize, rounds: u64) -> Self {
        Self {
            barrier: Barrier::new(connections),
            released: Mutex::new(Instant::now()),
            slowest_ns: (0..rounds).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Waits for all others and returns the instant at which all were let go.
    pub(super) async fn pass(&self) -> Instant {
        if self.barrier.wait().await.is_leader() {
            *self.released.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        // Nobody passes before the instant stands.
        self.barrier.wait().await;
        *self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn arrived(&self, round: u64, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.slowest_ns[round as usize].fetch_max(nanoseconds, Ordering::Relaxed);
    }

    /// The slowest answer of each round that had one.
    pub(super) fn slowest(&self) -> impl Iterator<Item = Duration> {
        let rounds = self.slowest_ns.iter();
        rounds
            .map(|slowest| slowest.load(Ordering::Relaxed))
            .filter(|nanoseconds| *nanoseconds > 0)
            .map(Duration::from_nanos)
    }
}
