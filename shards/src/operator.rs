//! What operators ask of the dirty blocks of one core: sums, lists, another try, the bytes, an end.
//!
//! This file owns the answers. Nothing here uploads, and nothing dirty is given up but by
//! [`Core::abandon`].

use crate::backlog::{
    AbandonError, Backlog, BlockState, DirtyBlock, Exported, ObjectName, StoreBacklog,
};
use crate::core::Core;
use crate::key::{BlockHash, BlockId, Freshness, Volume};
use crate::messages::ReadError;
use crate::read::NOT_IN_TIME;
use crate::record::ReadFailure;
use crate::schedule::Listed;
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;
use std::sync::Arc;

/// Times that an export follows a block that moves.
const EXPORT_ROUNDS_MAX: usize = 4;

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Sums over what is dirty; `blocks` and `bytes` of what was acknowledged up to a time
    /// (milliseconds since the Unix epoch), or of all.
    pub fn backlog(&self, up_to_unix_ms: Option<u64>) -> Backlog {
        let schedule = self.uploads.schedule.borrow();
        let summary = schedule.summary();
        let (blocks, bytes) = schedule.waiting_up_to(up_to_unix_ms.unwrap_or(u64::MAX));
        let now = self.parts.runtime.now();
        let shards = self.parts.shards.loaded();
        let limits = shards.iter().map(|shard| shard.dirty_limits_bytes());
        let (soft, hard) = limits.fold((0, 0), |sum, limit| (sum.0 + limit.0, sum.1 + limit.1));
        let not_loaded = self.parts.shards.len() - self.parts.shards.loaded_count();
        let stores = summary.stores.iter().map(|store| StoreBacklog {
            store: store.store,
            concurrency: store.concurrency as u64,
            paused_ms: store
                .paused_until
                .map_or(0, |until| until.since(now).as_millis() as u64),
            failures: u64::from(store.failures),
        });
        Backlog {
            blocks: blocks + self.uploads.unread_blocks.get(),
            bytes,
            oldest_unix_ms: summary.oldest.map(|age| age.acked_unix_ms),
            uploading: summary.uploading as u64,
            quarantined_blocks: summary.quarantined_blocks,
            quarantined_bytes: summary.quarantined_bytes,
            conflict_blocks: summary.conflict_blocks,
            conflict_bytes: summary.conflict_bytes,
            orphaned_blocks: summary.orphaned_blocks,
            unsynced_bytes: shards.iter().map(|shard| shard.unsynced_bytes()).sum(),
            shards_unread: self.uploads.unread_shards.get() + not_loaded as u64,
            soft_limit_bytes: soft,
            hard_limit_bytes: hard,
            draining: self.uploads.is_draining(),
            stores: stores.collect(),
        }
    }

    /// The oldest dirty blocks, `limit` at most, held ones too, oldest first.
    pub async fn dirty_blocks(&self, limit: usize) -> Vec<DirtyBlock> {
        let listed = self.uploads.schedule.borrow().oldest(limit);
        let mut blocks = Vec::with_capacity(listed.len());
        for of_schedule in listed {
            blocks.push(self.describe_dirty(of_schedule).await);
        }
        blocks
    }

    async fn describe_dirty(&self, listed: Listed) -> DirtyBlock {
        let unknown = ObjectName {
            volume: String::new(),
            key: String::new(),
        };
        DirtyBlock {
            name: self.name_of(listed.block).await.unwrap_or(unknown),
            bytes: listed.bytes,
            acked_unix_ms: listed.age.acked_unix_ms,
            attempts: listed.attempts,
            state: listed.state,
            last_error: listed.last_error,
        }
    }

    async fn name_of(&self, hash: BlockHash) -> Option<ObjectName> {
        let shard = self.shard(hash)?;
        let location = shard.find(hash)?;
        if self.patience.is_read_overdue(self.shard_number(hash)) {
            return None;
        }
        let header = self.header_at(&shard, hash, location).await?.ok()?;
        Some(ObjectName {
            volume: header.volume,
            key: header.key,
        })
    }

    /// Lets a held block be tried again, or all that are quarantined. One in conflict is then
    /// uploaded over what the store has. Returns how many there were.
    pub async fn retry(&self, name: Option<ObjectName>) -> u64 {
        let hash = name.map(|name| name.hash());
        if let Some(hash) = hash
            && self.state_of(hash) == Some(BlockState::Conflict)
        {
            self.uploads.forced.borrow_mut().insert(hash);
            self.uploads.conflicts.borrow_mut().remove(&hash);
        }
        let retried = self.uploads.schedule.borrow_mut().retry(hash);
        self.uploads.signal.raise();
        retried
    }

    pub(crate) fn state_of(&self, hash: BlockHash) -> Option<BlockState> {
        self.uploads.schedule.borrow().state(hash)
    }

    /// Gives up a block that is quarantined, in conflict or orphaned: what the store has of its key
    /// counts from now on.
    ///
    /// # Errors
    /// See [`AbandonError`]; the block is kept then.
    pub async fn abandon(self: &std::rc::Rc<Self>, name: ObjectName) -> Result<(), AbandonError> {
        use BlockState::{Conflict, Orphaned, Quarantined, Uploading, Waiting};
        let hash = name.hash();
        let loaded = self.shard_to_write(hash).await;
        loaded.map_err(|_| AbandonError::Loading)?;
        let turn = self.turn(hash).await.map_err(|_| AbandonError::Disk)?;
        match self.state_of(hash) {
            None if self.uploads.unread_shards.get() > 0 => return Err(AbandonError::Loading),
            None => return Err(AbandonError::NotFound),
            Some(Waiting | Uploading) => return Err(AbandonError::NotHeld),
            Some(Conflict | Orphaned | Quarantined) => {}
        }
        log::warn!("{}/{}: given up by an operator", name.volume, name.key);
        let given_up = self.give_up_dirty(hash, &nameless(&name), turn).await;
        given_up.map_err(|_| AbandonError::Disk)?;
        self.uploads.conflicts.borrow_mut().remove(&hash);
        self.uploads.schedule.borrow_mut().remove(hash);
        Ok(())
    }

    /// A dirty block's object, verified; `None` if nothing dirty has this name.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] if the disk cannot give it, or it is damaged.
    pub async fn export(&self, name: ObjectName) -> Result<Option<Exported>, ReadError> {
        let hash = name.hash();
        // A block that is not known yet must not be taken for one that is not there.
        self.shard_to_write(hash)
            .await
            .map_err(|error| ReadError::Unreadable(error.to_string()))?;
        for _ in 0..EXPORT_ROUNDS_MAX {
            let Some(shard) = self.shard(hash) else {
                return Ok(None);
            };
            let Some(location) = shard.find(hash).filter(|_| shard.is_dirty(hash)) else {
                return Ok(None);
            };
            let unreadable = |problem: String| Err(ReadError::Unreadable(problem));
            match self.record_at(&shard, hash, location).await {
                Some(Ok(found)) => {
                    return Ok(Some(Exported {
                        meta: Arc::new(found.header.meta),
                        payload: found.whole.unwrap_or(found.wanted),
                    }));
                }
                Some(Err(ReadFailure::Gone)) => {}
                Some(Err(failure)) => return unreadable(failure.to_string()),
                None => return unreadable(NOT_IN_TIME.to_owned()),
            }
        }
        Ok(None)
    }

    /// Takes no new dirty blocks, or takes them again.
    pub fn set_draining(&self, draining: bool) {
        self.uploads.set_draining(draining);
        if draining {
            self.uploads.schedule.borrow_mut().hurry();
            self.uploads.signal.raise();
        }
    }

    /// Makes all that was acknowledged durable, and ends all waits before uploads that are not the
    /// store's wish.
    pub async fn hurry(&self) {
        self.uploads.schedule.borrow_mut().hurry();
        self.uploads.signal.raise();
        for shard in self.parts.shards.loaded() {
            shard.flush().await;
        }
    }
}

/// A block of a volume of which only the name is known: enough for a tombstone.
fn nameless(name: &ObjectName) -> BlockId {
    let volume = Volume {
        name: name.volume.clone(),
        store_number: 0,
        store_identity: 0,
        block_bytes: 1,
        freshness: Freshness::Immutable,
        absence_ttl: std::time::Duration::ZERO,
        writeback: true,
        versions: Default::default(),
    };
    BlockId {
        volume: Arc::new(volume),
        key: name.key.as_str().into(),
        number: 0,
    }
}
