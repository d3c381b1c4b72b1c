//! What a shard knows of the records in its segments, without their bytes.
//!
//! This file owns the index and the account of every other record on disk. It never does I/O.
//! Each record in a segment's present life is exactly one of these:
//!
//! - *live*: the index names it;
//! - *stale*: the index names another record of its block, or none. A start that found it without
//!   anything newer would take it for the block, so it is counted until its segment is reused;
//! - a *tombstone*, which matters for as long as a stale record of its block exists.
//!
//! From this follows what a reclaim must do to stay correct in whatever order segments are reused:
//! when the newest record of a block goes while a stale one remains elsewhere, a tombstone must
//! be written in its place.
//!
//! Memory per live record: 32 bytes in the map at 7/16 to 7/8 load, one byte of control.

use crate::format::{RecordState, record_bytes};
use crate::key::BlockHash;
use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::hash::{BuildHasherDefault, Hasher};

/// Highest frequency that is told apart, as in S3-FIFO.
pub const FREQUENCY_MAX: u8 = 3;

/// Block hashes are uniform already.
#[derive(Default)]
pub struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only block hashes are keys");
    }

    fn write_u128(&mut self, value: u128) {
        // The low bits chose the shard: they are the same for every key here.
        self.0 = (value >> 64) as u64;
    }
}

/// A map by block.
pub type BlockMap<T> = HashMap<BlockHash, T, BuildHasherDefault<Uniform>>;

/// Where a block's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Segment in the shard.
    pub segment: u32,
    /// Page in the segment at which the record starts.
    pub page: u32,
    /// Payload bytes.
    pub payload_length: u32,
}

impl Location {
    /// Bytes of the record on disk: header page and padded payload.
    pub fn record_bytes(self) -> u64 {
        record_bytes(self.payload_length)
    }
}

/// A live record.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: Location,
    /// Bytes read since `frequency` last rose, in 65,536ths of the payload.
    credit: u16,
    /// How often it was read since it was written or last spared, to [`FREQUENCY_MAX`].
    frequency: u8,
    state: RecordState,
}

const _: () = assert!(size_of::<(BlockHash, Entry)>() == 32);

/// A live record as whoever reclaims its segment sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveRecord {
    /// Its block.
    pub hash: BlockHash,
    /// Where it is.
    pub at: Location,
    /// How often it was wanted.
    pub frequency: u8,
}

/// What is known of a block beside its live record. It exists while one of its fields says something.
#[derive(Clone, Copy, Debug, Default)]
struct Shadow {
    /// Stale records of it.
    stale: u32,
    /// The segment of the tombstone that outranks them all, if there is one.
    tombstone: Option<u32>,
}

/// What is known of a segment as a whole. There are thousands, most with nothing but live records.
#[derive(Default)]
struct SegmentAccount {
    /// Bytes of its live records, headers and padding included.
    live_bytes: u64,
    /// Live records that are dirty.
    dirty: u32,
    others: Option<Box<OtherRecords>>,
}

const _: () = assert!(size_of::<(u32, SegmentAccount)>() == 32);

/// What lies in a segment beside its live records.
#[derive(Default)]
struct OtherRecords {
    /// Blocks of its stale records, once for each.
    stale: Vec<BlockHash>,
    /// Blocks whose newest record is, or may be, here and says nothing that is served: its
    /// tombstones that mattered when they were written, and the records that left the index.
    silent: Vec<BlockHash>,
}

/// The records of one shard.
#[derive(Default)]
pub struct Index {
    live: BlockMap<Entry>,
    shadows: BlockMap<Shadow>,
    segments: HashMap<u32, SegmentAccount>,
}

impl Index {
    /// An index with room for `blocks`.
    pub fn with_capacity(blocks: usize) -> Index {
        Index {
            live: BlockMap::with_capacity_and_hasher(blocks, BuildHasherDefault::default()),
            ..Index::default()
        }
    }

    /// Live records.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Every live record, in no order.
    pub fn blocks(&self) -> Vec<(BlockHash, Location)> {
        let located = |(hash, entry): (&BlockHash, &Entry)| (*hash, entry.at);
        self.live.iter().map(located).collect()
    }

    /// Where a block is.
    pub fn find(&self, hash: BlockHash) -> Option<Location> {
        self.live.get(&hash).map(|entry| entry.at)
    }

    /// Whether a block's live record is dirty.
    pub fn is_dirty(&self, hash: BlockHash) -> bool {
        self.live
            .get(&hash)
            .is_some_and(|entry| entry.state.is_dirty())
    }

    /// Whether a start would find a record of the block.
    pub fn may_hold(&self, hash: BlockHash) -> bool {
        let uncovered = |shadow: &Shadow| shadow.stale > 0 && shadow.tombstone.is_none();
        self.live.contains_key(&hash) || self.shadows.get(&hash).is_some_and(uncovered)
    }

    /// Counts that `bytes` of a block were read. Reading all of it counts once, in however many
    /// pieces, so that a file that is read through once in small ranges does not look hot.
    pub fn touch(&mut self, hash: BlockHash, bytes: usize) {
        let Some(entry) = self.live.get_mut(&hash) else {
            return;
        };
        const WHOLE: u64 = 1 << 16;
        let payload_length = u64::from(entry.at.payload_length).max(1);
        let share = (bytes as u64).min(payload_length) * WHOLE / payload_length;
        let credit = u64::from(entry.credit) + share;
        if credit >= WHOLE || bytes as u64 >= payload_length {
            entry.frequency = (entry.frequency + 1).min(FREQUENCY_MAX);
        }
        entry.credit = (credit % WHOLE) as u16;
    }

    /// Makes a record that is completely written the live one of its block.
    pub fn publish(&mut self, hash: BlockHash, at: Location, state: RecordState) {
        self.uncover(hash);
        let former = self.live.get(&hash).copied();
        let entry = Entry {
            at,
            credit: 0,
            // To be overwritten is to be wanted.
            frequency: former.map_or(0, |former| (former.frequency + 1).min(FREQUENCY_MAX)),
            state,
        };
        self.count(&entry, true);
        self.live.insert(hash, entry);
        if let Some(former) = former {
            self.count(&former, false);
            self.note_stale(hash, former.at.segment);
        }
    }

    /// A tombstone that is completely written, in `segment`, is the newest record of its block.
    /// `others_in_flight`: an older record of the block is still being written and will be stale.
    pub fn publish_tombstone(&mut self, hash: BlockHash, segment: u32, others_in_flight: bool) {
        if let Some(former) = self.live.remove(&hash) {
            self.count(&former, false);
            self.note_stale(hash, former.at.segment);
        }
        if others_in_flight || self.shadows.contains_key(&hash) {
            self.shadows.entry(hash).or_default().tombstone = Some(segment);
            self.others(segment).silent.push(hash);
        }
    }

    /// There is a record of the block in `segment` which something newer outranks, or nothing.
    pub fn note_stale(&mut self, hash: BlockHash, segment: u32) {
        self.shadows.entry(hash).or_default().stale += 1;
        self.others(segment).stale.push(hash);
    }

    /// There is, or may be, a record in `segment` that outranks every tombstone of its block and
    /// yet is not live: its write failed, or it was no longer wanted.
    pub fn note_unwanted(&mut self, hash: BlockHash, segment: u32) {
        self.note_stale(hash, segment);
        self.others(segment).silent.push(hash);
        self.uncover(hash);
    }

    /// No tombstone outranks the block's records any more.
    fn uncover(&mut self, hash: BlockHash) {
        if let MapEntry::Occupied(mut shadow) = self.shadows.entry(hash) {
            shadow.get_mut().tombstone = None;
            if shadow.get().stale == 0 {
                shadow.remove();
            }
        }
    }

    /// Takes a block out of the index if it is at `at`. Its record becomes stale, and still
    /// outranks every other: when its segment goes, the others must not come back. The only copy of
    /// a block stays: whoever may give it up says so first ([`Index::mark_clean`]).
    pub fn forget(&mut self, hash: BlockHash, at: Location) -> bool {
        let is_there = self.find(hash) == Some(at) && !self.is_dirty(hash);
        if is_there {
            let former = self.live.remove(&hash).expect("found above");
            self.count(&former, false);
            self.note_stale(hash, at.segment);
            self.others(at.segment).silent.push(hash);
        }
        is_there
    }

    /// The store has a block's dirty record now.
    pub fn mark_clean(&mut self, hash: BlockHash, at: Location) {
        let Some(entry) = self.live.get_mut(&hash) else {
            return;
        };
        if entry.at == at && entry.state.is_dirty() {
            entry.state = RecordState::Clean;
            self.account(at.segment).dirty -= 1;
        }
    }

    /// A record was copied from `from` to `to`. Whichever of the two is not live now is stale.
    pub fn relocate(&mut self, hash: BlockHash, from: Location, to: Location, frequency: u8) {
        match self.live.get_mut(&hash) {
            Some(entry) if entry.at == from => {
                let former = *entry;
                entry.at = to;
                entry.frequency = frequency;
                let moved = *entry;
                self.count(&former, false);
                self.count(&moved, true);
                self.note_stale(hash, from.segment);
            }
            _ => self.note_stale(hash, to.segment),
        }
    }

    /// Dirty live records in a segment.
    pub fn dirty_records(&self, segment: u32) -> usize {
        self.segments
            .get(&segment)
            .map_or(0, |account| account.dirty as usize)
    }

    /// Bytes of the live records in a segment, headers and padding included.
    pub fn live_bytes(&self, segment: u32) -> u64 {
        let account = self.segments.get(&segment);
        account.map_or(0, |account| account.live_bytes)
    }

    /// The dirty live records in a segment, in no order.
    pub fn dirty_blocks(&self, segment: u32) -> Vec<LiveRecord> {
        let mut records = self.live_records(segment);
        records.retain(|record| self.is_dirty(record.hash));
        records
    }

    /// The live records in a segment, in the order in which they lie there.
    pub fn live_records(&self, segment: u32) -> Vec<LiveRecord> {
        let mut records: Vec<LiveRecord> = self
            .live
            .iter()
            .filter(|(_, entry)| entry.at.segment == segment)
            .map(|(hash, entry)| LiveRecord {
                hash: *hash,
                at: entry.at,
                frequency: entry.frequency,
            })
            .collect();
        records.sort_unstable_by_key(|record| record.at.page);
        records
    }

    /// Forgets how often the records of a segment were wanted.
    pub fn cool(&mut self, segment: u32) {
        let entries = self.live.values_mut();
        for entry in entries.filter(|entry| entry.at.segment == segment) {
            entry.frequency = 0;
        }
    }

    /// Blocks that would come back from a stale record elsewhere if a segment that holds no live
    /// record went: those that need another tombstone first.
    pub fn needs_tombstones(&self, segment: u32) -> Vec<BlockHash> {
        let account = self.segments.get(&segment);
        let Some(here) = account.and_then(|account| account.others.as_deref()) else {
            return Vec::new();
        };
        let mut stale_here: BlockMap<u32> = BlockMap::default();
        for hash in &here.stale {
            *stale_here.entry(*hash).or_default() += 1;
        }
        let would_return = |hash: &BlockHash| {
            let Some(shadow) = self.shadows.get(hash) else {
                return false;
            };
            let elsewhere = shadow.stale - stale_here.get(hash).copied().unwrap_or(0);
            // A tombstone elsewhere outranks them all, as does a live record.
            let is_covered = shadow.tombstone.is_some_and(|at| at != segment);
            elsewhere > 0 && !is_covered && !self.live.contains_key(hash)
        };
        let silent = here.silent.iter().copied();
        let mut bare: Vec<BlockHash> = silent.filter(would_return).collect();
        bare.sort_unstable();
        bare.dedup();
        bare
    }

    /// Whether the newest record of some block may be in a segment and says nothing that is served.
    pub fn is_silent_in(&self, segment: u32) -> bool {
        let account = self.segments.get(&segment);
        let others = account.and_then(|account| account.others.as_deref());
        others.is_some_and(|others| !others.silent.is_empty())
    }

    /// The segment's present life is over: none of its records can be found any more.
    ///
    /// # Panics
    /// If one of them is live: a bug that would serve another's bytes, or lose dirty ones.
    pub fn end_life(&mut self, segment: u32) {
        let Some(account) = self.segments.remove(&segment) else {
            return;
        };
        assert_eq!(account.dirty, 0, "a dirty record is never dropped");
        assert_eq!(account.live_bytes, 0, "no live record is left behind");
        let OtherRecords { stale, silent } = account
            .others
            .map_or_else(Default::default, |others| *others);
        for hash in stale {
            let MapEntry::Occupied(mut shadow) = self.shadows.entry(hash) else {
                unreachable!("every stale record is counted");
            };
            shadow.get_mut().stale -= 1;
            // Nothing is left that a tombstone would have to outrank.
            if shadow.get().stale == 0 {
                shadow.remove();
            }
        }
        for hash in silent {
            if self
                .shadows
                .get(&hash)
                .is_some_and(|shadow| shadow.tombstone == Some(segment))
            {
                self.uncover(hash);
            }
        }
    }

    fn count(&mut self, entry: &Entry, appears: bool) {
        let account = self.account(entry.at.segment);
        let bytes = record_bytes(entry.at.payload_length);
        let dirty = u32::from(entry.state.is_dirty());
        if appears {
            account.live_bytes += bytes;
            account.dirty += dirty;
        } else {
            account.live_bytes -= bytes;
            account.dirty -= dirty;
        }
    }

    fn account(&mut self, segment: u32) -> &mut SegmentAccount {
        self.segments.entry(segment).or_default()
    }

    fn others(&mut self, segment: u32) -> &mut OtherRecords {
        self.account(segment).others.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(segment: u32, page: u32) -> Location {
        Location {
            segment,
            page,
            payload_length: 100,
        }
    }

    #[test]
    fn reading_a_block_through_once_counts_once() {
        let mut index = Index::default();
        let hash = BlockHash(1);
        index.publish(hash, at(0, 1), RecordState::Clean);
        let frequency = |index: &Index| index.live_records(0)[0].frequency;
        for _ in 0..9 {
            index.touch(hash, 10);
        }
        assert_eq!(frequency(&index), 0, "the fill's own reader takes the rest");
        index.touch(hash, 100);
        assert_eq!(frequency(&index), 1);
        for _ in 0..10 {
            index.touch(hash, 50);
        }
        assert_eq!(frequency(&index), FREQUENCY_MAX);
    }

    #[test]
    fn dirty_records_are_counted_where_they_are() {
        let mut index = Index::default();
        index.publish(BlockHash(1), at(0, 1), RecordState::Dirty);
        index.publish(BlockHash(2), at(0, 2), RecordState::Dirty);
        index.publish(BlockHash(1), at(3, 1), RecordState::Dirty);
        assert_eq!((index.dirty_records(0), index.dirty_records(3)), (1, 1));
        index.mark_clean(BlockHash(1), at(0, 1));
        assert!(index.is_dirty(BlockHash(1)), "an older record was uploaded");
        index.mark_clean(BlockHash(1), at(3, 1));
        index.publish_tombstone(BlockHash(2), 4, false);
        assert_eq!((index.dirty_records(0), index.dirty_records(3)), (0, 0));
    }

    /// What lies on a disk, and what a start would make of it.
    #[derive(Default)]
    struct Folder {
        /// Segment, page, block, sequence, whether it is a block's.
        records: Vec<(u32, u32, BlockHash, u64, bool)>,
        /// The highest sequence that was ever written of a block, there still or not.
        highest: BlockMap<u64>,
        next: u64,
        next_page: u32,
    }

    impl Folder {
        fn write(&mut self, segment: u32, hash: BlockHash, sequence: u64, is_block: bool) -> u32 {
            self.next_page += 1;
            let page = self.next_page;
            self.records.push((segment, page, hash, sequence, is_block));
            let highest = self.highest.entry(hash).or_default();
            *highest = sequence.max(*highest);
            page
        }

        fn sequence(&mut self) -> u64 {
            self.next += 1;
            self.next
        }

        fn sequence_at(&self, at: Location) -> u64 {
            let mut found = self
                .records
                .iter()
                .filter(|r| (r.0, r.1) == (at.segment, at.page));
            found.next().expect("the index names records that exist").3
        }

        fn winner(&self, hash: BlockHash) -> Option<(u64, bool)> {
            let of_block = self.records.iter().filter(|record| record.2 == hash);
            of_block.map(|record| (record.3, record.4)).max()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u32, u128),
        Delete(u32, u128),
        FailedWrite(u32, u128),
        Forget(u128),
        Move(u32, u128),
        Reclaim(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let segment = 0..4_u32;
        let block = 0..5_u128;
        prop_oneof![
            4 => (segment.clone(), block.clone()).prop_map(|(s, b)| Step::Write(s, b)),
            2 => (segment.clone(), block.clone()).prop_map(|(s, b)| Step::Delete(s, b)),
            1 => (segment.clone(), block.clone()).prop_map(|(s, b)| Step::FailedWrite(s, b)),
            1 => block.clone().prop_map(Step::Forget),
            2 => (segment.clone(), block).prop_map(|(s, b)| Step::Move(s, b)),
            2 => (segment.clone(), segment).prop_map(|(s, t)| Step::Reclaim(s, t)),
        ]
    }

    fn apply(index: &mut Index, folder: &mut Folder, step: Step) {
        match step {
            Step::Write(segment, block) => {
                let (hash, sequence) = (BlockHash(block), folder.sequence());
                let page = folder.write(segment, hash, sequence, true);
                index.publish(hash, at(segment, page), RecordState::Clean);
            }
            Step::Delete(segment, block) => {
                let (hash, sequence) = (BlockHash(block), folder.sequence());
                folder.write(segment, hash, sequence, false);
                index.publish_tombstone(hash, segment, false);
            }
            Step::FailedWrite(segment, block) => {
                let (hash, sequence) = (BlockHash(block), folder.sequence());
                folder.write(segment, hash, sequence, true);
                if let Some(former) = index.find(hash) {
                    index.forget(hash, former);
                }
                index.note_unwanted(hash, segment);
            }
            Step::Forget(block) => {
                let hash = BlockHash(block);
                if let Some(location) = index.find(hash) {
                    index.forget(hash, location);
                }
            }
            Step::Move(segment, block) => {
                let hash = BlockHash(block);
                if let Some(from) = index.find(hash) {
                    let page = folder.write(segment, hash, folder.sequence_at(from), true);
                    index.relocate(hash, from, at(segment, page), 1);
                }
            }
            Step::Reclaim(segment, tombstones_to) if segment != tombstones_to => {
                for record in index.live_records(segment) {
                    index.forget(record.hash, record.at);
                }
                for hash in index.needs_tombstones(segment) {
                    let sequence = folder.sequence();
                    folder.write(tombstones_to, hash, sequence, false);
                    index.publish_tombstone(hash, tombstones_to, false);
                }
                folder.records.retain(|record| record.0 != segment);
                index.end_life(segment);
            }
            Step::Reclaim(..) => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// However segments are reclaimed, a start finds for each block what the index says, or what
        /// left it last, and never what something newer had replaced.
        #[test]
        fn a_start_finds_what_the_index_says(steps in proptest::collection::vec(step(), 1..60)) {
            let (mut index, mut folder) = (Index::default(), Folder::default());
            for step in steps {
                apply(&mut index, &mut folder, step);
                for block in 0..5_u128 {
                    let hash = BlockHash(block);
                    let found = folder.winner(hash);
                    match index.find(hash) {
                        Some(location) => {
                            prop_assert_eq!(found, Some((folder.sequence_at(location), true)));
                        }
                        // The other way round it may err: that costs a tombstone too many.
                        None => if let Some((sequence, true)) = found {
                            prop_assert!(index.may_hold(hash), "{block} would come back");
                            prop_assert_eq!(sequence, folder.highest[&hash], "older than what was");
                        }
                    }
                }
            }
        }
    }
}
