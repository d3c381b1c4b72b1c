//! The only door to glommio: one pinned executor per core, tasks, timers.
//!
//! glommio 0.9 is pinned and treated as code we own; whatever of it other crates need passes
//! through here, so that its traps are worked around in one place. Start-up probes must have
//! passed before ([`crate::rt`] never asks whether io_uring is permitted: glommio would panic).

use crate::runtime::{CLOCK_START_NS, MonoTime, Runtime};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use std::cell::Cell;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Memory that glommio registers with its rings for its own files, which we do not use: the least
/// that it takes, to spare the lockable-memory limit.
pub const IO_MEMORY_BYTES: usize = 64 << 10;

/// Entries of each of glommio's three rings: polls of sockets and timers.
const RING_DEPTH: usize = 512;

/// How to start one core's executor.
#[derive(Clone, Copy, Debug)]
pub struct CoreBuilder {
    /// Position among our cores, from 0; names the thread.
    pub index: usize,
    /// The CPU to pin it to; `None` leaves it to the kernel's scheduler.
    pub cpu: Option<usize>,
}

/// A running executor.
pub struct CoreHandle<T: Send + 'static>(ExecutorJoinHandle<T>);

impl CoreBuilder {
    /// Starts the executor's thread and runs the future that `body` makes on it.
    pub fn spawn<T, F>(self, body: impl FnOnce() -> F + Send + 'static) -> io::Result<CoreHandle<T>>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let placement = match self.cpu {
            Some(cpu) => Placement::Fixed(cpu),
            None => Placement::Unbound,
        };
        LocalExecutorBuilder::new(placement)
            .name(&format!("forebay-core-{}", self.index))
            .io_memory(IO_MEMORY_BYTES)
            .ring_depth(RING_DEPTH)
            .spawn(body)
            .map(CoreHandle)
            .map_err(|e| io::Error::other(format!("cannot start an executor: {e}")))
    }
}

impl<T: Send + 'static> CoreHandle<T> {
    /// Waits for the executor's future to end.
    pub fn join(self) -> io::Result<T> {
        self.0
            .join()
            .map_err(|e| io::Error::other(format!("an executor failed: {e}")))
    }
}

/// CPUs that this process may use, in order.
pub fn usable_cpus() -> Vec<usize> {
    // SAFETY: `cpu_set_t` is plain data for which all-zero is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the given size into `set`.
    let failed =
        unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0;
    let all = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: every index is below CPU_SETSIZE.
    let usable: Vec<usize> = all
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect();
    if failed || usable.is_empty() {
        vec![0]
    } else {
        usable
    }
}

/// Starts a task of the current executor that nobody waits for.
pub(crate) fn spawn_detached(task: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(task).detach();
}

/// Completes on the current executor after at least `duration`.
pub(crate) fn sleep(duration: Duration) -> impl Future<Output = ()> + 'static {
    glommio::timer::sleep(duration)
}

/// Runs something that blocks on glommio's helper threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    glommio::executor().spawn_blocking(work).await
}

/// The current executor as a [`Runtime`].
#[derive(Clone)]
pub struct GlommioRuntime {
    start: Instant,
    random: Rc<Cell<u64>>,
}

impl GlommioRuntime {
    /// A handle to the executor that runs the calling task. `start` is the beginning of
    /// [`Runtime::now`]; cores that compare times share it.
    pub fn current(start: Instant) -> Self {
        // The hasher's keys come from the operating system's random source.
        let seed = RandomState::new().hash_one(start) | 1;
        GlommioRuntime {
            start,
            random: Rc::new(Cell::new(seed)),
        }
    }
}

impl Runtime for GlommioRuntime {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        spawn_detached(task);
    }

    fn now(&self) -> MonoTime {
        MonoTime(CLOCK_START_NS + self.start.elapsed().as_nanos() as u64)
    }

    fn unix_seconds(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |passed| passed.as_secs())
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        sleep(duration)
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        yield_now()
    }

    fn random(&self) -> u64 {
        // xorshift64* (Marsaglia 2003, Vigna 2016): identities and jitter, never secrets.
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Completes on its second poll, with its task at the end of the line.
pub(crate) fn yield_now() -> impl Future<Output = ()> + 'static {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}
