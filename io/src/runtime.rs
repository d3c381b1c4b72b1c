//! What policy may ask of the thread it runs on: tasks, time, randomness.
//!
//! This file owns the trait only. Policy never names an executor, a wall clock or a random number
//! generator: it is generic over [`Runtime`], which glommio implements in [`crate::rt`] and the
//! seeded simulator in [`crate::sim`].

use std::future::Future;
use std::time::Duration;

/// Where every run's monotonic clock begins: far enough from zero that points decades before the
/// start can be expressed.
pub const CLOCK_START_NS: u64 = 1 << 62;

/// A point on a monotonic clock, nanoseconds; a run begins at [`CLOCK_START_NS`]. Comparable only with other
/// points of the same run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// Time passed since `earlier`; zero if `earlier` lies ahead.
    pub fn since(self, earlier: MonoTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This point moved by `duration`.
    pub fn plus(self, duration: Duration) -> MonoTime {
        MonoTime(self.0.saturating_add(duration.as_nanos() as u64))
    }
}

/// One core's executor as policy sees it. Cloning gives another handle to the same executor.
pub trait Runtime: Clone + 'static {
    /// Starts a task on this core, tied to nobody: it runs until it ends.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
    /// The monotonic clock.
    fn now(&self) -> MonoTime;
    /// The wall clock, seconds since the Unix epoch. May jump; never used for order.
    fn unix_seconds(&self) -> u64;
    /// Completes after at least `duration`.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static;
    /// Lets other tasks of this core run.
    fn yield_now(&self) -> impl Future<Output = ()> + 'static;
    /// A random number, for identities and jitter; not for secrets.
    fn random(&self) -> u64;
}

/// Runs `future` for at most `limit`; `None` when the time is over, the future is then dropped.
pub async fn timeout<R: Runtime, T>(
    runtime: &R,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let sleep = runtime.sleep(limit);
    futures::pin_mut!(future, sleep);
    match futures::future::select(future, sleep).await {
        futures::future::Either::Left((value, _)) => Some(value),
        futures::future::Either::Right(((), _)) => None,
    }
}
