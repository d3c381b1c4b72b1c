//! What is acknowledged and not yet in a store, as operators see it.
//!
//! Plain data that crosses cores: sums, lists, names, and why something asked of a block cannot be
//! done. This file holds no behaviour but adding up; what becomes of the blocks is decided in
//! [`crate::schedule`] and done in [`crate::upload`].

use crate::key::{BlockHash, block_hash};
use forebay_io::buffer::View;
use forebay_io::store::ObjectMeta;
use std::sync::Arc;

/// One object of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The volume's name.
    pub volume: String,
    /// The object's key.
    pub key: String,
}

impl ObjectName {
    /// The hash of the object's block 0.
    pub fn hash(&self) -> BlockHash {
        block_hash(&self.volume, &self.key, 0)
    }
}

/// Where a dirty block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// Waits for its upload, or for another try.
    Waiting,
    /// On its way to the store.
    Uploading,
    /// Refused by the store for good, or damaged: kept until an operator decides.
    Quarantined,
    /// The store has something newer: kept until an operator decides, and not served.
    Conflict,
    /// Of a volume or store that the settings no longer name.
    Orphaned,
}

impl BlockState {
    /// The word for it in answers and logs.
    pub fn label(self) -> &'static str {
        match self {
            BlockState::Waiting => "waiting",
            BlockState::Uploading => "uploading",
            BlockState::Quarantined => "quarantined",
            BlockState::Conflict => "conflict",
            BlockState::Orphaned => "orphaned",
        }
    }
}

/// A dirty block in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBlock {
    /// Its object; empty names if its record cannot be read.
    pub name: ObjectName,
    /// Payload bytes.
    pub bytes: u64,
    /// When it was acknowledged, milliseconds since the Unix epoch.
    pub acked_unix_ms: u64,
    /// Uploads tried.
    pub attempts: u32,
    /// Where it stands.
    pub state: BlockState,
    /// Why the last try failed.
    pub last_error: Option<String>,
}

/// How a store takes uploads, as one core sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreBacklog {
    /// The store's number.
    pub store: u32,
    /// Uploads at a time that it is trusted with now.
    pub concurrency: u64,
    /// How long no upload is begun, milliseconds; 0 if it is not paused.
    pub paused_ms: u64,
    /// Failures since the last success.
    pub failures: u64,
}

/// Sums over the dirty blocks of one core or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Blocks that will be uploaded: waiting or on their way.
    pub blocks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// When the oldest of them was acknowledged, milliseconds since the Unix epoch.
    pub oldest_unix_ms: Option<u64>,
    /// Blocks on their way to a store now.
    pub uploading: u64,
    /// Blocks kept because a store refused them for good, or because they are damaged.
    pub quarantined_blocks: u64,
    /// Bytes of them.
    pub quarantined_bytes: u64,
    /// Blocks kept because their store has something newer.
    pub conflict_blocks: u64,
    /// Bytes of them.
    pub conflict_bytes: u64,
    /// Blocks of volumes or stores that the settings no longer name.
    pub orphaned_blocks: u64,
    /// Bytes acknowledged, and not yet made durable against a power cut.
    pub unsynced_bytes: u64,
    /// Shards, loaded ones, whose dirty records are not all known yet after a start.
    pub shards_unread: u64,
    /// Bytes of dirty records from which on writers are slowed.
    pub soft_limit_bytes: u64,
    /// Bytes of dirty records from which on writes go through to the store.
    pub hard_limit_bytes: u64,
    /// Whether new writes go through because of a drain.
    pub draining: bool,
    /// The stores, of each core that has blocks for them.
    pub stores: Vec<StoreBacklog>,
}

impl Backlog {
    /// How long ago the oldest block was acknowledged, milliseconds; 0 if there is none.
    pub fn oldest_age_ms(&self, now_unix_ms: u64) -> u64 {
        self.oldest_unix_ms
            .map_or(0, |oldest| now_unix_ms.saturating_sub(oldest))
    }

    /// Adds another core's.
    pub fn add(&mut self, other: Backlog) {
        self.blocks += other.blocks;
        self.bytes += other.bytes;
        self.oldest_unix_ms = match (self.oldest_unix_ms, other.oldest_unix_ms) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self.uploading += other.uploading;
        self.quarantined_blocks += other.quarantined_blocks;
        self.quarantined_bytes += other.quarantined_bytes;
        self.conflict_blocks += other.conflict_blocks;
        self.conflict_bytes += other.conflict_bytes;
        self.orphaned_blocks += other.orphaned_blocks;
        self.unsynced_bytes += other.unsynced_bytes;
        self.shards_unread += other.shards_unread;
        self.soft_limit_bytes += other.soft_limit_bytes;
        self.hard_limit_bytes += other.hard_limit_bytes;
        self.draining |= other.draining;
        for store in other.stores {
            match self
                .stores
                .iter_mut()
                .find(|known| known.store == store.store)
            {
                Some(known) => {
                    known.concurrency += store.concurrency;
                    known.paused_ms = known.paused_ms.max(store.paused_ms);
                    known.failures = known.failures.max(store.failures);
                }
                None => self.stores.push(store),
            }
        }
    }
}

/// A dirty block's object, whole and verified.
#[derive(Clone)]
pub struct Exported {
    /// Its description.
    pub meta: Arc<ObjectMeta>,
    /// Its bytes.
    pub payload: View,
}

/// Why a block was not given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AbandonError {
    /// Nothing dirty has this name.
    #[error("no dirty block has this name")]
    NotFound,
    /// It is on its way to the store, which nobody has to give up on.
    #[error("the block is neither quarantined nor in conflict")]
    NotHeld,
    /// The disk did not take the note that it is gone.
    #[error("the disk does not answer")]
    Disk,
}
