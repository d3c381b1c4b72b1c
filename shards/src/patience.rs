//! How long a request waits for the disk, and which shards have lost its patience.
//!
//! A disk may take a request and never answer. This file owns the deadlines for that: who waits
//! for the disk stops waiting, the operation goes on by itself, and the shard is passed by until
//! the last overdue operation has ended. An operation keeps its buffers, its segment and its turn
//! however long it takes; nothing here ends one, retries one or frees what one uses.

use forebay_io::runtime::Runtime;
use futures::future::{Either, select};
use std::cell::Cell;
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// How long a read waits for the disk. A healthy one answers in milliseconds, a busy one in some
/// hundred; the store answers in less than what this leaves of a client's patience.
pub const DISK_READ_WAIT: Duration = Duration::from_secs(5);

/// How long a write waits for the disk. Longer, because a queue of writes may stand before it that
/// is as long as the memory for blocks is large.
pub const DISK_WRITE_WAIT: Duration = Duration::from_secs(10);

/// Parts that a wait for the disk is cut into. A timer runs on while the process does not (a
/// suspended machine, SIGSTOP), and so does what it waits for; one part at most is lost to that.
const WAIT_PARTS: u32 = 10;

/// Reads or writes that are overdue, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

#[derive(Default)]
struct Overdue {
    reads: Cell<u64>,
    writes: Cell<u64>,
}

impl Overdue {
    fn of(&self, kind: Kind) -> &Cell<u64> {
        match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
        }
    }

    fn sum(&self) -> u64 {
        self.reads.get() + self.writes.get()
    }
}

/// The operations of one core's shards that are overdue.
pub struct Patience<R> {
    runtime: R,
    /// By shard. Equation: each counts the [`Entry`]s that exist for it.
    shards: HashMap<u32, Rc<Overdue>>,
}

/// Counts one operation as overdue until dropped.
struct Entry {
    shard: u32,
    kind: Kind,
    overdue: Rc<Overdue>,
}

impl Entry {
    fn new(shard: u32, kind: Kind, overdue: &Rc<Overdue>) -> Entry {
        if overdue.sum() == 0 {
            log::error!("shard {shard}: the disk does not answer; it is passed by until it does");
        }
        let count = overdue.of(kind);
        count.set(count.get() + 1);
        Entry {
            shard,
            kind,
            overdue: overdue.clone(),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let count = self.overdue.of(self.kind);
        count.set(count.get() - 1);
        if self.overdue.sum() == 0 {
            log::warn!("shard {}: the disk answers again", self.shard);
        }
    }
}

impl<R: Runtime> Patience<R> {
    /// Patience with the disk of `shards`, all of it.
    pub fn new(runtime: R, shards: impl Iterator<Item = u32>) -> Self {
        let shards = shards.map(|shard| (shard, Rc::default())).collect();
        Patience { runtime, shards }
    }

    /// Whether a read of this shard is overdue, so that no other one should begin.
    pub fn is_read_overdue(&self, shard: u32) -> bool {
        self.shards[&shard].reads.get() > 0
    }

    /// Whether anything of this shard is overdue, so that no block should be written to it.
    pub fn is_overdue(&self, shard: u32) -> bool {
        self.shards[&shard].sum() > 0
    }

    /// Operations that are overdue now.
    pub fn overdue(&self) -> u64 {
        self.shards.values().map(|overdue| overdue.sum()).sum()
    }

    /// Waits [`DISK_READ_WAIT`] for `operation` at most; it goes on without us then.
    pub async fn read<T: 'static>(
        &self,
        shard: u32,
        operation: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        self.within(shard, Kind::Read, DISK_READ_WAIT, operation)
            .await
    }

    /// Waits [`DISK_WRITE_WAIT`] for `operation` at most; it goes on without us then.
    pub async fn write<T: 'static>(
        &self,
        shard: u32,
        operation: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        self.within(shard, Kind::Write, DISK_WRITE_WAIT, operation)
            .await
    }

    async fn within<T: 'static>(
        &self,
        shard: u32,
        kind: Kind,
        wait: Duration,
        operation: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let mut operation = Box::pin(operation);
        if let Some(value) = self.wait_for(operation.as_mut(), wait).await {
            return Some(value);
        }
        let entry = Entry::new(shard, kind, &self.shards[&shard]);
        self.runtime.spawn(async move {
            operation.await;
            drop(entry);
        });
        None
    }

    /// Waits for `operation` for as long as `wait` of this process's own time.
    async fn wait_for<T>(
        &self,
        mut operation: Pin<&mut impl Future<Output = T>>,
        wait: Duration,
    ) -> Option<T> {
        for _ in 0..WAIT_PARTS {
            let sleep = std::pin::pin!(self.runtime.sleep(wait / WAIT_PARTS));
            if let Either::Left((value, _)) = select(operation.as_mut(), sleep).await {
                return Some(value);
            }
        }
        None
    }

    /// Waits for a write however long it takes, for a task that nobody waits for. Calls
    /// `on_overdue` once it is.
    pub async fn watch_write<T>(
        &self,
        shard: u32,
        operation: impl Future<Output = T>,
        on_overdue: impl FnOnce(),
    ) -> T {
        let mut operation = std::pin::pin!(operation);
        if let Some(value) = self.wait_for(operation.as_mut(), DISK_WRITE_WAIT).await {
            return value;
        }
        let _entry = Entry::new(shard, Kind::Write, &self.shards[&shard]);
        on_overdue();
        operation.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_io::sim::SimExecutor;
    use futures::channel::oneshot;

    #[test]
    fn an_overdue_operation_goes_on_and_is_counted_until_it_ends() {
        let mut executor = SimExecutor::new(1);
        let runtime = executor.runtime();
        executor.block_on(async move {
            let patience = Patience::new(runtime.clone(), [3, 4].into_iter());
            assert_eq!(patience.read(3, async { 7 }).await, Some(7));
            assert_eq!(patience.overdue(), 0);
            let (release, held) = oneshot::channel::<()>();
            let done = Rc::new(Cell::new(false));
            let set = done.clone();
            let operation = async move {
                let _ = held.await;
                set.set(true);
            };
            assert_eq!(patience.read(3, operation).await, None);
            assert!(patience.is_read_overdue(3) && patience.is_overdue(3));
            assert!(!patience.is_overdue(4), "another shard is none the worse");
            assert!(!done.get());
            release.send(()).expect("it still waits");
            runtime.sleep(Duration::from_millis(1)).await;
            assert!(done.get(), "it went on by itself");
            assert!(!patience.is_overdue(3));
        });
    }

    #[test]
    fn a_pause_of_the_process_is_no_silence_of_the_disk() {
        let mut executor = SimExecutor::new(1);
        let runtime = executor.runtime();
        executor.block_on(async move {
            let patience = Patience::new(runtime.clone(), [3].into_iter());
            let disk = runtime.clone();
            let reading = async move {
                disk.sleep(DISK_READ_WAIT / 2).await;
                disk.pause(DISK_READ_WAIT * 20);
                disk.sleep(DISK_READ_WAIT / 4).await;
            };
            assert_eq!(patience.read(3, reading).await, Some(()));
            assert_eq!(patience.overdue(), 0);
            let disk = runtime.clone();
            let stuck = async move { disk.sleep(DISK_READ_WAIT * 2).await };
            assert_eq!(patience.read(3, stuck).await, None, "as long as ever");
        });
    }

    #[test]
    fn an_overdue_write_leaves_reads_alone() {
        let mut executor = SimExecutor::new(1);
        let runtime = executor.runtime();
        executor.block_on(async move {
            let patience = Rc::new(Patience::new(runtime.clone(), [3].into_iter()));
            let (release, held) = oneshot::channel::<()>();
            let (told, watched) = (Rc::new(Cell::new(false)), patience.clone());
            let tell = told.clone();
            runtime.spawn(async move {
                let write = async { held.await.is_ok() };
                watched.watch_write(3, write, || tell.set(true)).await;
            });
            runtime.sleep(DISK_WRITE_WAIT * 2).await;
            assert!(told.get() && patience.is_overdue(3) && !patience.is_read_overdue(3));
            release.send(()).expect("it still waits");
            runtime.sleep(Duration::from_millis(1)).await;
            assert!(!patience.is_overdue(3));
        });
    }
}
