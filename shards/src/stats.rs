//! Plain counters of one core, and their values at one moment. No names: those are the metrics'.

use crate::recover::RecoveryReport;
use crate::scrub::ScrubProgress;
use forebay_io::histogram::HistogramSnapshot;
use std::cell::Cell;
use std::collections::BTreeMap;

/// A counter of one core.
#[derive(Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Counts `count` more.
    pub fn add(&self, count: u64) {
        self.0.set(self.0.get() + count);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// What a shard counts. Each is since start.
#[derive(Default)]
pub struct ShardStats {
    /// Bytes of records that were asked to be stored and were: headers and padding included.
    pub admitted_bytes: Counter,
    /// Bytes of records that eviction wrote again.
    pub reappended_bytes: Counter,
    /// Bytes of all records written: those two, tombstones, and records superseded meanwhile.
    pub written_bytes: Counter,
    /// Segments made free.
    pub segments_reclaimed: Counter,
    /// Blocks that left the cache to make room.
    pub records_evicted: Counter,
    /// Records found damaged or unreadable when they were to be written again.
    pub damaged_records: Counter,
    /// Flushes of acknowledged records to the disk's lasting memory.
    pub flushes: Counter,
    /// Those that failed.
    pub flush_failures: Counter,
    /// Acknowledged records that a failed flush was to cover and that could not be written again
    /// at once.
    pub suspect_records: Counter,
    /// Dirty records that were moved so that their segment came free.
    pub dirty_moved: Counter,
    /// Acknowledged records of which the first bytes were written while the rest was received.
    pub writebacks_early: Counter,
}

impl ShardStats {
    /// The values by field name.
    pub fn values(&self) -> [(&'static str, u64); 11] {
        [
            ("admitted_bytes", self.admitted_bytes.get()),
            ("reappended_bytes", self.reappended_bytes.get()),
            ("written_bytes", self.written_bytes.get()),
            ("segments_reclaimed", self.segments_reclaimed.get()),
            ("records_evicted", self.records_evicted.get()),
            ("damaged_records", self.damaged_records.get()),
            ("flushes", self.flushes.get()),
            ("flush_failures", self.flush_failures.get()),
            ("suspect_records", self.suspect_records.get()),
            ("dirty_moved", self.dirty_moved.get()),
            ("writebacks_early", self.writebacks_early.get()),
        ]
    }
}

/// What an owner core counts. Each is since start.
#[derive(Default)]
pub struct CoreStats {
    /// Fetches of blocks begun.
    pub fills: Counter,
    /// Bytes that they brought.
    pub fill_bytes: Counter,
    /// Those that failed after their head.
    pub fill_failures: Counter,
    /// Readers that joined one.
    pub coalesced: Counter,
    /// Copies that the store confirmed.
    pub revalidations: Counter,
    /// Reads told that there is no such object without asking the store.
    pub negative_hits: Counter,
    /// Copies served unconfirmed because the store did not answer.
    pub stale_served: Counter,
    /// Records written.
    pub records_written: Counter,
    /// Bytes of them, headers and padding included.
    pub record_bytes_written: Counter,
    /// Records that could not be written.
    pub write_failures: Counter,
    /// Records read from disk.
    pub records_read: Counter,
    /// Payload bytes asked of them.
    pub record_bytes_read: Counter,
    /// Reads that followed a record which was being read for another one.
    pub shared_reads: Counter,
    /// Records that failed their checks and were dropped.
    pub damaged_records: Counter,
    /// Records that the disk could not read.
    pub read_failures: Counter,
    /// Requests refused for lack of memory.
    pub overloads: Counter,
    /// Writes acknowledged before the store had them.
    pub writebacks: Counter,
    /// Writes that were to be acknowledged so and went through to the store.
    pub writebacks_refused: Counter,
    /// Uploads after which the store had the block.
    pub uploads_done: Counter,
    /// Uploads of what had been replaced or deleted meanwhile.
    pub uploads_superseded: Counter,
    /// Uploads that failed and are tried again.
    pub uploads_failed: Counter,
    /// Uploads that the store refused for good, and blocks that were too damaged to be sent.
    pub uploads_refused: Counter,
    /// Uploads that were not done because the store had something newer.
    pub uploads_conflict: Counter,
    /// Writes held for a moment because the disk is filling up with dirty blocks.
    pub writes_slowed: Counter,
    /// Blocks put together from what the cache had under other names.
    pub assembled: Counter,
    /// Bytes of them.
    pub assembled_bytes: Counter,
}

/// One core's values at one moment; they add up across cores.
#[derive(Clone, Debug, Default)]
pub struct CoreSnapshot {
    /// The core.
    pub core: usize,
    /// Virtual shards that it runs.
    pub shards: u64,
    /// Those of them whose index is loaded.
    pub shards_loaded: u64,
    /// Those that the file system, not the quota, keeps from growing.
    pub shards_full: u64,
    /// Blocks in their indexes.
    pub blocks: u64,
    /// Operations of the disk that are overdue.
    pub disk_overdue: u64,
    /// Bytes of segment files.
    pub disk_used_bytes: u64,
    /// Bytes of segment files that the quota allows.
    pub disk_quota_bytes: u64,
    /// Sums of what the loaded shards count, by name of their field in [`ShardStats`].
    pub shard_counters: BTreeMap<&'static str, u64>,
    /// Bytes in the RAM tier.
    pub ram_bytes: u64,
    /// Blocks in the RAM tier.
    pub ram_blocks: u64,
    /// Bytes of block buffers in use, RAM tier included.
    pub buffer_bytes: u64,
    /// Bytes of block buffers that are not in use and kept for reuse.
    pub buffer_kept_bytes: u64,
    /// Bytes of block buffers that may be in use.
    pub buffer_budget_bytes: u64,
    /// Fetches in flight.
    pub flights: u64,
    /// Blocks that a writer holds the turn of, or waits for.
    pub turns: u64,
    /// Orders waiting for the companion thread: fetches and uploads.
    pub uplink_backlog: (u64, u64),
    /// Counters by name of their field in [`CoreStats`].
    pub counters: BTreeMap<&'static str, u64>,
    /// Store requests by verb and outcome.
    pub store_requests: BTreeMap<(&'static str, String), u64>,
    /// Times of store requests.
    pub store_latency: HistogramSnapshot,
    /// How the shards were recovered.
    pub recovery: RecoveryReport,
    /// How long the core took until all of its shards were loaded, milliseconds.
    pub load_ms: Option<u64>,
    /// How far the scrub has come.
    pub scrub: ScrubProgress,
}

impl CoreStats {
    /// The values by field name.
    pub fn values(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::from([
            ("fills", self.fills.get()),
            ("fill_bytes", self.fill_bytes.get()),
            ("fill_failures", self.fill_failures.get()),
            ("coalesced", self.coalesced.get()),
            ("revalidations", self.revalidations.get()),
            ("negative_hits", self.negative_hits.get()),
            ("stale_served", self.stale_served.get()),
            ("records_written", self.records_written.get()),
            ("record_bytes_written", self.record_bytes_written.get()),
            ("write_failures", self.write_failures.get()),
            ("records_read", self.records_read.get()),
            ("record_bytes_read", self.record_bytes_read.get()),
            ("shared_reads", self.shared_reads.get()),
            ("damaged_records", self.damaged_records.get()),
            ("read_failures", self.read_failures.get()),
            ("overloads", self.overloads.get()),
            ("writebacks", self.writebacks.get()),
            ("writebacks_refused", self.writebacks_refused.get()),
            ("uploads_done", self.uploads_done.get()),
            ("uploads_superseded", self.uploads_superseded.get()),
            ("uploads_failed", self.uploads_failed.get()),
            ("uploads_refused", self.uploads_refused.get()),
            ("uploads_conflict", self.uploads_conflict.get()),
            ("writes_slowed", self.writes_slowed.get()),
            ("assembled", self.assembled.get()),
            ("assembled_bytes", self.assembled_bytes.get()),
        ])
    }
}
