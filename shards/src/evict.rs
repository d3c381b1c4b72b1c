//! Which records stay and which go: S3-FIFO over the records of a segment log.
//!
//! Pure policy. This file never does I/O, never touches the index and cannot name a dirty
//! segment: it is asked about records of clean segments only.
//!
//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) keeps new
//! objects in a small queue, moves those that were wanted again to a main queue, gives wanted
//! objects of the main queue another round, and remembers the names of those that left the small
//! queue, so that one which returns enters the main queue at once. Here a queue is a sequence of
//! segments, and to move a record means to write it again. A *write budget* bounds that: each
//! byte admitted earns a fraction of a byte that may be re-appended. When it is spent, records
//! that would have stayed go, the least wanted first.

use crate::format::{SegmentPurpose, record_bytes};
use crate::ghost::Ghost;
use crate::index::LiveRecord;
use crate::key::BlockHash;

/// Share of a shard's segments that the probation queue may hold, percent: the small queue's size
/// in the S3-FIFO paper.
const PROBATION_PERCENT: usize = 10;

/// Least segments of a shard with a main queue of its own. Below it, two more open segments cost
/// more space than scan resistance wins, and records go in plain FIFO order.
pub const TWO_QUEUES_SEGMENTS_MIN: u32 = 6;

/// Bytes of credit that may pile up, in segments. A queue's worth of survivors may come at once
/// after a long time without any.
const CREDIT_SEGMENTS_MAX: u64 = 4;

/// Bytes that may be re-appended for each byte admitted, percent: device write amplification
/// stays at or below 1 plus this.
pub const WRITE_BUDGET_PERCENT: u32 = 50;

/// How a shard evicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionSettings {
    /// Segments that the shard may have.
    pub segments_max: u32,
    /// Bytes of each.
    pub segment_bytes: u64,
    /// Bytes that may be re-appended for 100 bytes admitted.
    pub write_budget_percent: u32,
}

/// What becomes of the records of a segment that is reclaimed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// To be written again into the main queue, in the order in which they lie, each with the
    /// frequency that it keeps.
    pub survivors: Vec<LiveRecord>,
    /// To be dropped.
    pub evicted: Vec<LiveRecord>,
}

/// The evictor of one shard.
pub struct Evictor {
    settings: EvictionSettings,
    ghost: Ghost,
    /// Bytes that may be re-appended now.
    credit_bytes: u64,
}

impl Evictor {
    /// An evictor that remembers nothing yet.
    pub fn new(settings: EvictionSettings) -> Evictor {
        Evictor {
            settings,
            ghost: Ghost::default(),
            credit_bytes: 0,
        }
    }

    fn has_two_queues(&self) -> bool {
        self.settings.segments_max >= TWO_QUEUES_SEGMENTS_MIN
    }

    /// Segments that the probation queue may hold, the open one included.
    fn probation_segments_max(&self) -> usize {
        (self.settings.segments_max as usize * PROBATION_PERCENT / 100).max(1)
    }

    /// Where a new clean record goes.
    pub fn admit(&mut self, hash: BlockHash, bytes: u64) -> SegmentPurpose {
        let earned = bytes.saturating_mul(self.settings.write_budget_percent.into()) / 100;
        let limit = CREDIT_SEGMENTS_MAX * self.settings.segment_bytes;
        self.credit_bytes = self.credit_bytes.saturating_add(earned).min(limit);
        if self.has_two_queues() && self.ghost.take(hash) {
            SegmentPurpose::Main
        } else {
            SegmentPurpose::Probation
        }
    }

    /// Which queue gives up its oldest segment, when so many segments are in them (open ones
    /// included); never an empty one.
    pub fn choose(&self, probation: usize, main: usize) -> SegmentPurpose {
        if main == 0 || probation > self.probation_segments_max() {
            SegmentPurpose::Probation
        } else {
            SegmentPurpose::Main
        }
    }

    /// Divides the records of a segment of the queue `from`, which is reclaimed. `blocks` live
    /// records are in the shard.
    pub fn judge(
        &mut self,
        from: SegmentPurpose,
        records: Vec<LiveRecord>,
        blocks: usize,
    ) -> Verdict {
        self.ghost.set_window(blocks);
        let mut verdict = Verdict::default();
        let mut wanted = Vec::new();
        for record in records {
            match record.frequency {
                1.. if self.has_two_queues() => wanted.push(record),
                _ => verdict.evicted.push(record),
            }
        }
        wanted.sort_by_key(|record| std::cmp::Reverse(record.frequency));
        for mut record in wanted {
            let cost = record_bytes(record.at.payload_length);
            if cost > self.credit_bytes {
                verdict.evicted.push(record);
                continue;
            }
            self.credit_bytes -= cost;
            record.frequency = match from {
                SegmentPurpose::Main => record.frequency - 1,
                _ => 0,
            };
            verdict.survivors.push(record);
        }
        verdict.survivors.sort_by_key(|record| record.at.page);
        if from == SegmentPurpose::Probation {
            for record in &verdict.evicted {
                self.ghost.insert(record.hash);
            }
        }
        verdict
    }

    /// A survivor was not written again after all.
    pub fn give_back(&mut self, bytes: u64) {
        self.credit_bytes += bytes;
    }
}
