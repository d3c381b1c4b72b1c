//! Which records stay and which go: S3-FIFO over the records of a segment log.
//!
//! Pure policy. This file never does I/O, never touches the index and cannot name a dirty
//! segment: it is asked about records of clean segments only.
//!
//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) keeps new
//! objects in a small queue, moves those that were wanted again to a main queue, gives wanted
//! objects of the main queue another round, and remembers the names of those that left, so that
//! one which returns enters the main queue at once. Here a queue is a sequence of segments, and to
//! move a record means to write it again. A *write budget* bounds that: each byte admitted earns a
//! fraction of a byte that may be re-appended. When it is spent, records that would have stayed
//! go, the least wanted first.
//!
//! What differs from the paper, each because a trace of `bench/eviction` lost to LRU without it:
//!
//! - a main segment of which most is wanted is spared whole, which costs no write;
//! - the probation queue's share adapts as in ARC (Megiddo and Modha, FAST 2003): it grows when
//!   blocks return that were evicted on probation, and shrinks when blocks return that were
//!   evicted from the main queue. A hot set that moves needs a long probation;
//! - a record that survives starts again from nothing, rather than with one hit less;
//! - overwriting leaves holes: a segment of which less than half is live is compacted before
//!   anything is evicted. An overwritten block keeps its queue and its frequency.

use crate::format::{SegmentPurpose, record_bytes};
use crate::ghost::{Ghost, Origin, Remembered};
use crate::index::LiveRecord;
use crate::key::BlockHash;

/// Bounds of the share of a shard's segments that the probation queue may hold. It begins with the
/// lower one, the small queue's size in the S3-FIFO paper.
const PROBATION_SHARE_MIN: f64 = 0.1;
const PROBATION_SHARE_MAX: f64 = 0.9;

/// Least part of the blocks in the shard that each queue's ghost is consulted about.
const GHOST_WINDOW_SHARE_MIN: f64 = 0.05;

/// Least segments of a shard with a main queue of its own. Below it, two more open segments cost
/// more space than scan resistance wins, and records go in plain FIFO order.
pub const TWO_QUEUES_SEGMENTS_MIN: u32 = 6;

/// Share of a main segment that must be wanted for the segment to be spared whole, percent. What is
/// not wanted in it stays too, so much less would waste space; much more would copy for little.
const SPARED_PERCENT_MIN: u64 = 60;

/// Segments spared by one reclaim before the next one is reclaimed whatever is in it: they might
/// all be wanted.
const SPARED_IN_A_ROW_MAX: usize = 8;

/// A segment of which at most this share is live is compacted, percent. Two of them make one.
const COMPACTED_PERCENT_MAX: u64 = 50;

/// Bytes of credit that may pile up, in segments. Queues' worths of survivors may come at once
/// after a long time without any.
const CREDIT_SEGMENTS_MAX: u64 = 16;

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

/// What becomes of a segment that is the oldest of its queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Most of it is wanted: it becomes the youngest of its queue as it is, at no cost but the
    /// space of what is not wanted in it. Its records must be wanted anew to be spared again.
    Spared,
    /// It is reclaimed.
    Reclaimed {
        /// To be written again, in the order in which they lie.
        survivors: Vec<LiveRecord>,
        /// To be dropped.
        evicted: Vec<LiveRecord>,
    },
}

/// The evictor of one shard.
pub struct Evictor {
    settings: EvictionSettings,
    ghost: Ghost,
    /// Share of the segments that the probation queue may hold.
    probation_share: f64,
    /// Bytes that may be re-appended now.
    credit_bytes: u64,
}

impl Evictor {
    /// An evictor that remembers nothing yet.
    pub fn new(settings: EvictionSettings) -> Evictor {
        Evictor {
            settings,
            ghost: Ghost::default(),
            probation_share: PROBATION_SHARE_MIN,
            credit_bytes: 0,
        }
    }

    fn has_two_queues(&self) -> bool {
        self.settings.segments_max >= TWO_QUEUES_SEGMENTS_MIN
    }

    /// Segments that the probation queue may hold, the open one included.
    fn probation_segments_max(&self) -> usize {
        let share = f64::from(self.settings.segments_max) * self.probation_share;
        (share as usize).max(1)
    }

    /// Where a clean record goes that was asked to be stored, in a shard of `blocks` live ones.
    /// `former` is the queue of the block's live record, if there is one.
    pub fn admit(
        &mut self,
        hash: BlockHash,
        bytes: u64,
        former: Option<SegmentPurpose>,
        blocks: usize,
    ) -> SegmentPurpose {
        let earned = bytes.saturating_mul(self.settings.write_budget_percent.into()) / 100;
        let limit = CREDIT_SEGMENTS_MAX * self.settings.segment_bytes;
        self.credit_bytes = self.credit_bytes.saturating_add(earned).min(limit);
        if !self.has_two_queues() {
            return SegmentPurpose::Probation;
        }
        match former {
            Some(SegmentPurpose::Main) => SegmentPurpose::Main,
            Some(_) => SegmentPurpose::Probation,
            None => match self.ghost.take(hash) {
                Some(remembered) => self.welcome_back(remembered, blocks),
                None => SegmentPurpose::Probation,
            },
        }
    }

    /// Learns from a block that was evicted too early, and says where it goes now.
    fn welcome_back(&mut self, remembered: Remembered, blocks: usize) -> SegmentPurpose {
        let blocks = blocks.max(1) as f64;
        let least = blocks * GHOST_WINDOW_SHARE_MIN;
        let probation_window = (blocks * (1.0 - self.probation_share)).max(least);
        let main_window = (blocks * self.probation_share).max(least);
        let known = |origin, window: f64| (self.ghost.filled(origin) as f64).min(window).max(1.0);
        let probation_known = known(Origin::Probation, probation_window);
        let main_known = known(Origin::Main, main_window);
        let age = f64::from(remembered.age);
        let change = match remembered.origin {
            Origin::Probation if age <= probation_window => {
                (main_known / probation_known).max(1.0) / blocks
            }
            Origin::Main if age <= main_window => -(probation_known / main_known).max(1.0) / blocks,
            Origin::Probation if age <= blocks => 0.0,
            _ => return SegmentPurpose::Probation,
        };
        self.probation_share =
            (self.probation_share + change).clamp(PROBATION_SHARE_MIN, PROBATION_SHARE_MAX);
        SegmentPurpose::Main
    }

    /// The most live bytes of a segment that should be compacted before anything is evicted.
    pub fn compacted_bytes_max(&self) -> u64 {
        if !self.has_two_queues() {
            return 0;
        }
        let sparse = self.settings.segment_bytes * COMPACTED_PERCENT_MAX / 100;
        sparse.min(self.credit_bytes)
    }

    /// The live records of a segment that is compacted are all written again.
    pub fn compact(&mut self, records: &[LiveRecord]) {
        let bytes: u64 = records.iter().map(cost).sum();
        self.credit_bytes = self.credit_bytes.saturating_sub(bytes);
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

    /// Judges the oldest segment of the queue `from` by its live records. `blocks` are live in the
    /// shard; `spared` segments were spared already by this reclaim.
    pub fn judge(
        &mut self,
        from: SegmentPurpose,
        records: Vec<LiveRecord>,
        blocks: usize,
        spared: usize,
    ) -> Verdict {
        self.ghost.set_window(blocks);
        let (mut wanted, mut evicted): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| self.has_two_queues() && record.frequency > 0);
        let wanted_bytes: u64 = wanted.iter().map(cost).sum();
        let is_mostly_wanted =
            wanted_bytes * 100 >= self.settings.segment_bytes * SPARED_PERCENT_MIN;
        if from == SegmentPurpose::Main && is_mostly_wanted && spared < SPARED_IN_A_ROW_MAX {
            return Verdict::Spared;
        }
        wanted.sort_by_key(|record| std::cmp::Reverse(record.frequency));
        let mut survivors = Vec::new();
        for record in wanted {
            if cost(&record) > self.credit_bytes {
                evicted.push(record);
            } else {
                self.credit_bytes -= cost(&record);
                survivors.push(record);
            }
        }
        survivors.sort_by_key(|record| record.at.page);
        let origin = match from {
            SegmentPurpose::Main => Origin::Main,
            _ => Origin::Probation,
        };
        for record in &evicted {
            self.ghost.insert(record.hash, origin);
        }
        Verdict::Reclaimed { survivors, evicted }
    }

    /// A survivor was not written again after all.
    pub fn give_back(&mut self, record: &LiveRecord) {
        self.credit_bytes += cost(record);
    }
}

fn cost(record: &LiveRecord) -> u64 {
    record_bytes(record.at.payload_length)
}
