//! What a schedule tells of its blocks. It changes nothing.

use super::blocks::Place;
use super::{Age, Held, Schedule};
use crate::backlog::BlockState;
use crate::key::BlockHash;
use forebay_io::runtime::MonoTime;

/// A dirty block for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub block: BlockHash,
    /// Its place in the order.
    pub age: Age,
    /// Payload length.
    pub bytes: u64,
    /// Uploads of this content that failed.
    pub attempts: u32,
    /// Where it stands.
    pub state: BlockState,
    /// What failed last.
    pub last_error: Option<String>,
}

/// One store as this core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSummary {
    /// Its number.
    pub store: u32,
    /// Uploads at a time now.
    pub concurrency: usize,
    /// No upload begins before then; may have passed.
    pub paused_until: Option<MonoTime>,
    /// Failures of the store as a whole in a row.
    pub failures: u32,
}

/// All dirty blocks of a core in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Blocks that are not held, those being uploaded included.
    pub waiting_blocks: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Uploads in flight, those of blocks that are no longer dirty included.
    pub uploading: usize,
    /// Blocks in quarantine.
    pub quarantined_blocks: u64,
    /// Their bytes.
    pub quarantined_bytes: u64,
    /// Blocks in conflict.
    pub conflict_blocks: u64,
    /// Their bytes.
    pub conflict_bytes: u64,
    /// Blocks without a volume.
    pub orphaned_blocks: u64,
    /// The oldest block that is not held.
    pub oldest: Option<Age>,
    /// Every store that had something to upload since the start, by number.
    pub stores: Vec<StoreSummary>,
}

impl Schedule {
    /// Whether an upload of a block is in flight, of whatever content.
    pub fn is_uploading(&self, block: BlockHash) -> bool {
        self.uploading.contains_key(&block)
    }

    /// The place in the order of a block's present content, if it is dirty.
    pub fn age(&self, block: BlockHash) -> Option<Age> {
        let slot = self.blocks.find(block)?;
        Some(self.blocks.get(slot).age)
    }

    /// Whether nothing is dirty, held blocks included.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// How many blocks are dirty, held ones included.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// All dirty blocks, held ones too, in no order. Costs a look at each.
    pub fn hashes(&self) -> impl Iterator<Item = BlockHash> {
        self.blocks.hashes()
    }

    /// How many uploads of a block's present content failed; 0 if it is not dirty.
    pub fn attempts(&self, block: BlockHash) -> u32 {
        let slot = self.blocks.find(block);
        slot.map_or(0, |slot| self.blocks.get(slot).attempts)
    }

    /// Where a block stands, if it is dirty.
    pub fn state(&self, block: BlockHash) -> Option<BlockState> {
        let slot = self.blocks.find(block)?;
        Some(state_of(self.blocks.get(slot).place))
    }

    /// All in figures. Costs nothing for a block.
    pub fn summary(&self) -> Summary {
        let (waiting_blocks, waiting_bytes) = self.waiting.sum();
        let held = |held: Held| self.held[held as usize].sum();
        let (quarantined_blocks, quarantined_bytes) = held(Held::Quarantined);
        let (conflict_blocks, conflict_bytes) = held(Held::Conflict);
        let stores = self.stores.iter().map(|(store, lanes)| StoreSummary {
            store: *store,
            concurrency: lanes.flow.concurrency(),
            paused_until: lanes.flow.paused_until(),
            failures: lanes.flow.failures(),
        });
        Summary {
            waiting_blocks,
            waiting_bytes,
            uploading: self.uploading.len(),
            quarantined_blocks,
            quarantined_bytes,
            conflict_blocks,
            conflict_bytes,
            orphaned_blocks: held(Held::Orphaned).0,
            oldest: self.waiting.first().map(|(age, _)| age),
            stores: stores.collect(),
        }
    }

    /// How many blocks acknowledged up to then are not held, those being uploaded included, and
    /// their bytes. Of 4 million blocks it looks at some ten thousand sums.
    pub fn waiting_up_to(&self, acked_unix_ms: u64) -> (u64, u64) {
        self.waiting.sum_up_to(&self.blocks, acked_unix_ms)
    }

    /// The oldest blocks, held or not, oldest first.
    pub fn oldest(&self, limit: usize) -> Vec<Listed> {
        let lists = [&self.waiting].into_iter().chain(&self.held);
        // The oldest of all are among the oldest of each.
        let slots = lists.flat_map(|list| list.iter().take(limit));
        let mut slots: Vec<u32> = slots.collect();
        slots.sort_by_key(|slot| (self.blocks.get(*slot).age, *slot));
        slots.truncate(limit);
        slots.into_iter().map(|slot| self.listed(slot)).collect()
    }

    fn listed(&self, slot: u32) -> Listed {
        let entry = self.blocks.get(slot);
        let trouble = self.blocks.trouble(slot);
        Listed {
            block: entry.block,
            age: entry.age,
            bytes: entry.bytes.into(),
            attempts: entry.attempts,
            state: state_of(entry.place),
            last_error: trouble.map(|trouble| trouble.message.clone().into()),
        }
    }
}

fn state_of(place: Place) -> BlockState {
    match place {
        Place::Fresh | Place::Again | Place::Blamed | Place::Behind => BlockState::Waiting,
        Place::Uploading => BlockState::Uploading,
        Place::Held(Held::Quarantined) => BlockState::Quarantined,
        Place::Held(Held::Conflict) => BlockState::Conflict,
        Place::Held(Held::Orphaned) => BlockState::Orphaned,
    }
}
