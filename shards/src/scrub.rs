//! Reads every block of a shard now and then, so that rot is found before a client finds it.
//!
//! This file owns the order and the pace. It reads through [`Shard::read`] like any reader, which
//! verifies every chunk and drops what is damaged; the block is then fetched again when it is
//! wanted. It never writes, never holds more than one block in memory, and never reads faster than
//! it is told, however far it has fallen behind.

use crate::core::Core;
use crate::index::Location;
use crate::key::BlockHash;
use crate::record::ReadFailure;
use crate::shard::Shard;
use forebay_io::disk::Disk;
use forebay_io::runtime::{MonoTime, Runtime};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Time from one cycle's start to the next one's, at least: rot takes weeks, so a folder that is
/// read in minutes need not be read all the time.
pub const CYCLE_INTERVAL_MIN: Duration = Duration::from_secs(60 * 60);

/// How far a scrub has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Cycles begun since start; 0 before the first. Of several shards that of the last one.
    pub cycle: u64,
    /// Records of this cycle that were dealt with: read, or found gone meanwhile.
    pub records_done: u64,
    /// Records of this cycle: those that were live when it began.
    pub records_total: u64,
    /// Payload bytes read since start.
    pub bytes: u64,
    /// Records that failed their checks since start, and were dropped.
    pub damaged: u64,
    /// Records that the disk could not read since start, and were dropped.
    pub unreadable: u64,
}

impl ScrubProgress {
    /// Adds another shard's or core's, for a total: the cycle is that of the one furthest behind.
    pub fn add(&mut self, other: &ScrubProgress) {
        self.cycle = self.cycle.min(other.cycle);
        self.records_done += other.records_done;
        self.records_total += other.records_total;
        self.bytes += other.bytes;
        self.damaged += other.damaged;
        self.unreadable += other.unreadable;
    }
}

/// Walks over one shard.
pub struct Scrub<R: Runtime, D: Disk> {
    runtime: R,
    shard: Rc<Shard<R, D>>,
    rate_bytes_per_second: u64,
    /// When the next read may begin.
    due: Cell<MonoTime>,
    progress: Cell<ScrubProgress>,
}

impl<R: Runtime, D: Disk> Scrub<R, D> {
    /// A scrub of `shard` at no more than `rate_bytes_per_second`, one record of burst apart.
    ///
    /// # Panics
    /// If the rate is zero: who wants no scrub makes none.
    pub fn new(runtime: R, shard: Rc<Shard<R, D>>, rate_bytes_per_second: u64) -> Self {
        assert!(rate_bytes_per_second > 0);
        Scrub {
            due: Cell::new(runtime.now()),
            runtime,
            shard,
            rate_bytes_per_second,
            progress: Cell::default(),
        }
    }

    /// How far it has come.
    pub fn progress(&self) -> ScrubProgress {
        self.progress.get()
    }

    /// Reads once every block that is live now and still is when its turn comes.
    pub async fn cycle(&self) {
        let mut blocks = self.shard.blocks();
        // As they lie on the disk, so that its read-ahead is of use.
        blocks.sort_unstable_by_key(|(_, location)| (location.segment, location.page));
        self.note(|progress| {
            progress.cycle += 1;
            progress.records_done = 0;
            progress.records_total = blocks.len() as u64;
        });
        for (hash, location) in blocks {
            self.wait_until(self.due.get()).await;
            self.scrub(hash, location).await;
            self.note(|progress| progress.records_done += 1);
            self.runtime.yield_now().await;
        }
    }

    async fn scrub(&self, hash: BlockHash, location: Location) {
        let payload_length = location.payload_length as usize;
        let room = self.shard.read_room(location, 0..payload_length).await;
        let found = self.shard.read(hash, location, 0..payload_length, room);
        let found = found.await;
        let read = match found {
            Ok(_) => true,
            // Replaced, deleted or reclaimed since the cycle began.
            Err(ReadFailure::Gone) => false,
            Err(failure) => {
                let shard = self.shard.log().layout().shard;
                log::warn!(
                    "scrub: shard {shard} segment {} page {}: {failure}; dropped",
                    location.segment,
                    location.page
                );
                self.note(|progress| match failure {
                    ReadFailure::Disk(_) => progress.unreadable += 1,
                    _ => progress.damaged += 1,
                });
                true
            }
        };
        if read {
            self.note(|progress| progress.bytes += u64::from(location.payload_length));
            self.pay(u64::from(location.payload_length));
        }
    }

    /// Puts the next read off by what this one costs. Time in which nothing was read is not saved
    /// up.
    fn pay(&self, bytes: u64) {
        let nanoseconds =
            u128::from(bytes) * 1_000_000_000 / u128::from(self.rate_bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.due
            .set(self.due.get().max(self.runtime.now()).plus(cost));
    }

    async fn wait_until(&self, due: MonoTime) {
        let pause = due.since(self.runtime.now());
        if !pause.is_zero() {
            self.runtime.sleep(pause).await;
        }
    }

    fn note(&self, change: impl FnOnce(&mut ScrubProgress)) {
        let mut progress = self.progress.get();
        change(&mut progress);
        self.progress.set(progress);
    }
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Reads the shards of this core over and over, one after the other, at no more than
    /// `rate_bytes_per_second` in all. Never ends; dropping it ends it.
    pub async fn scrub(self: Rc<Self>, rate_bytes_per_second: u64) {
        let runtime = self.parts.runtime.clone();
        loop {
            let began = runtime.now();
            // Shards may still be loading in the first cycle; those come with the next.
            for shard in self.shards().loaded() {
                self.scrub_of(&shard, rate_bytes_per_second).cycle().await;
            }
            let rest = began.plus(CYCLE_INTERVAL_MIN).since(runtime.now());
            runtime.sleep(rest).await;
        }
    }

    fn scrub_of(&self, shard: &Rc<Shard<R, D>>, rate_bytes_per_second: u64) -> Rc<Scrub<R, D>> {
        let number = shard.log().layout().shard;
        let make = || {
            let runtime = self.parts.runtime.clone();
            Rc::new(Scrub::new(runtime, shard.clone(), rate_bytes_per_second))
        };
        let mut scrubs = self.scrubs.borrow_mut();
        scrubs.entry(number).or_insert_with(make).clone()
    }

    /// How far the scrub of all shards has come.
    pub fn scrub_progress(&self) -> ScrubProgress {
        let scrubs = self.scrubs.borrow();
        let mut each = scrubs.values().map(|scrub| scrub.progress());
        let mut sum = each.next().unwrap_or_default();
        each.for_each(|progress| sum.add(&progress));
        sum
    }
}
