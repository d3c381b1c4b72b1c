//! Writing through: to the store first, then into the cache.
//!
//! This file owns the order of writes to one key. Writers of a key take turns at its home, so
//! what the cache holds afterwards is what the store took last. Nothing is acknowledged before
//! the store has it. After an outcome that is unknown, the cache forgets the key.

use crate::core::Core;
use crate::format::RecordHeader;
use crate::key::{BlockHash, BlockId, Freshness};
use crate::messages::{BlockPayload, PutObject, PutSource, WriteError};
use crate::patience::DISK_WRITE_WAIT;
use crate::shard::AppendFailure;
use forebay_io::disk::Disk;
use forebay_io::local::Turn;
use forebay_io::runtime::{Runtime, timeout};
use forebay_io::store::{Attempts, ObjectMeta, StoreError, StoreErrorKind};
use forebay_io::uplink::{Upload, UploadBody};
use std::rc::Rc;
use std::sync::Arc;

/// Attempts at a tombstone. Each failed write moves on to another segment, so a fault of one place
/// on the disk is overcome; a disk that takes nothing three times running takes nothing.
const TOMBSTONE_ATTEMPTS_MAX: u32 = 3;

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Writes an object to its store and, if it came whole, into the cache.
    pub async fn put(self: &Rc<Self>, object: PutObject) -> Result<Arc<ObjectMeta>, WriteError> {
        let PutObject {
            id,
            headers,
            length,
            crc64nvme,
            if_none_match,
            source,
        } = object;
        let hash = id.hash();
        self.shard_to_write(hash).await?;
        let turn = self.turn(hash).await?;
        let (payload, body) = match source {
            PutSource::Whole(payload) => {
                let view = payload.buffer.watch().view_all();
                (Some(payload), UploadBody::Whole(vec![view]))
            }
            PutSource::Stream(pieces) => (None, UploadBody::Stream(pieces)),
        };
        let upload = Upload {
            key: id.key.to_string(),
            length,
            headers: headers.clone(),
            crc64nvme,
            if_none_match,
            attempts: Attempts::StorePolicy,
            body,
        };
        let turn = match if_none_match {
            true => turn,
            false => self.bury_unchecked(hash, &id, turn).await?,
        };
        let reply = match self.parts.uplink.put(id.volume.store_number, upload).await {
            Ok(reply) => reply,
            Err(error) => {
                let failure = self.write_failed(hash, &id, turn, error, if_none_match);
                return Err(failure.await);
            }
        };
        let last_modified = match reply.last_modified {
            0 => self.parts.runtime.unix_seconds(),
            seconds => seconds,
        };
        let meta = Arc::new(ObjectMeta {
            size: length,
            etag: reply.etag,
            last_modified,
            headers,
        });
        let in_flight = self.supersede(hash);
        // A record replaces the old one in the index, and inherits how hot it was.
        let cached = match payload {
            Some(_) => self.shard(hash).is_some_and(|shard| shard.may_hold(hash)),
            None => self.forget(hash),
        };
        self.learn(&id, hash, meta.clone());
        let (core, written) = (self.clone(), meta.clone());
        let caching = async move {
            let _turn = turn;
            let outranked = match payload {
                Some(payload) => {
                    core.store_block(hash, &id, &written, payload, || true)
                        .await
                }
                // No record of the new version outranks the old one, and nobody promises an insert.
                None => false,
            };
            if !outranked && (in_flight || cached) {
                if let Some(shard) = core.shard(hash) {
                    shard.forget(hash);
                }
                core.bury(hash, &id, || true).await;
            }
        };
        // The store has it: a disk that does not answer takes nothing from that.
        self.patience.write(self.shard_number(hash), caching).await;
        Ok(meta)
    }

    /// Nothing ever checks a copy of a key that is written once. If it is written again all the
    /// same, the old copy must be gone before the store has the new one: a crash in between would
    /// leave it there for ever.
    ///
    /// # Errors
    /// [`WriteError::Stalled`] if the disk did not say in time that it has the tombstone.
    async fn bury_unchecked(
        self: &Rc<Self>,
        hash: BlockHash,
        id: &BlockId,
        turn: Turn<BlockHash>,
    ) -> Result<Turn<BlockHash>, WriteError> {
        let is_held = self.shard(hash).is_some_and(|shard| shard.may_hold(hash));
        if id.volume.freshness != Freshness::Immutable || !is_held {
            return Ok(turn);
        }
        self.supersede(hash);
        self.forget(hash);
        self.bury_in_turn(hash, id, turn).await
    }

    /// Writes a tombstone and gives the turn back. If the disk does not answer, the turn stays with
    /// the tombstone.
    async fn bury_in_turn(
        self: &Rc<Self>,
        hash: BlockHash,
        id: &BlockId,
        turn: Turn<BlockHash>,
    ) -> Result<Turn<BlockHash>, WriteError> {
        let (core, id) = (self.clone(), id.clone());
        let burying = async move {
            core.bury(hash, &id, || true).await;
            turn
        };
        let turn = self.patience.write(self.shard_number(hash), burying).await;
        turn.ok_or(WriteError::Stalled)
    }

    /// Caches a block of an object that was just written in pieces.
    pub async fn insert(
        self: &Rc<Self>,
        id: BlockId,
        meta: Arc<ObjectMeta>,
        payload: BlockPayload,
    ) {
        let hash = id.hash();
        if self.shard_to_write(hash).await.is_err() {
            return;
        }
        let Ok(turn) = self.turn(hash).await else {
            return;
        };
        // Block 0 stands for the object: it must be the version that was written last.
        if id.number == 0 && !self.is_current(hash, &meta) {
            return;
        }
        self.supersede(hash);
        let core = self.clone();
        let caching = async move {
            let _turn = turn;
            core.store_block(hash, &id, &meta, payload, || true).await
        };
        self.patience.write(self.shard_number(hash), caching).await;
    }

    /// Deletes an object from its store and from the cache.
    pub async fn delete(self: &Rc<Self>, id: BlockId) -> Result<(), WriteError> {
        let hash = id.hash();
        self.shard_to_write(hash).await?;
        let turn = self.turn(hash).await?;
        match self
            .parts
            .uplink
            .delete(id.volume.store_number, id.key.to_string())
            .await
        {
            Ok(()) => {}
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            Err(error) => return Err(self.write_failed(hash, &id, turn, error, false).await),
        }
        self.drop_key(hash, &id, turn).await
    }

    /// Forgets an object of which the store was seen to have another version.
    pub async fn invalidate(self: &Rc<Self>, id: BlockId) {
        let hash = id.hash();
        let _ = self.shard_to_write(hash).await;
        if let Ok(turn) = self.turn(hash).await {
            let _ = self.drop_key(hash, &id, turn).await;
        }
    }

    /// Waits for the turn of a key, as long as its disk answers.
    async fn turn(&self, hash: BlockHash) -> Result<Turn<BlockHash>, WriteError> {
        let mut taking = std::pin::pin!(self.turns.take(hash));
        loop {
            let turn = timeout(&self.parts.runtime, DISK_WRITE_WAIT, taking.as_mut()).await;
            match turn {
                Some(turn) => return Ok(turn),
                None if self.patience.is_overdue(self.shard_number(hash)) => {
                    return Err(WriteError::Stalled);
                }
                None => {}
            }
        }
    }

    /// Forgets a key for good: also after a restart.
    ///
    /// # Errors
    /// [`WriteError::Stalled`] if the disk did not say in time that it has the tombstone.
    async fn drop_key(
        self: &Rc<Self>,
        hash: BlockHash,
        id: &BlockId,
        turn: Turn<BlockHash>,
    ) -> Result<(), WriteError> {
        let in_flight = self.supersede(hash);
        let cached = self.forget(hash);
        if !in_flight && !cached {
            return Ok(());
        }
        self.bury_in_turn(hash, id, turn).await.map(drop)
    }

    /// Writes a tombstone, so that no record of the key is found after a restart. `wanted` turns
    /// false when something newer comes, which then outranks the old record itself.
    pub(crate) async fn bury(&self, hash: BlockHash, id: &BlockId, wanted: impl Fn() -> bool) {
        let Some(shard) = self.shard(hash) else {
            return;
        };
        let now = self.parts.runtime.unix_seconds();
        let tombstone = RecordHeader::tombstone(hash, id, now);
        for attempt in 1..=TOMBSTONE_ATTEMPTS_MAX {
            let Ok(buffer) = self.take_buffer(0).await else {
                log::warn!("{}/{}: no memory for a tombstone", id.volume.name, id.key);
                return;
            };
            match shard.append(tombstone.clone(), buffer, &wanted).await {
                Ok(()) => {
                    self.stats.records_written.add(1);
                    self.stats
                        .record_bytes_written
                        .add(tombstone.record_bytes());
                    return;
                }
                Err(AppendFailure::Superseded) => return,
                Err(failure) => {
                    self.stats.write_failures.add(1);
                    let (volume, key) = (&id.volume.name, &id.key);
                    log::warn!("{volume}/{key}: no tombstone at attempt {attempt}: {failure}");
                }
            }
        }
    }

    async fn write_failed(
        self: &Rc<Self>,
        hash: BlockHash,
        id: &BlockId,
        turn: Turn<BlockHash>,
        error: StoreError,
        if_none_match: bool,
    ) -> WriteError {
        if if_none_match && error.kind == StoreErrorKind::PreconditionFailed {
            return WriteError::Exists;
        }
        if error.kind.is_retryable() {
            // It may have been done after all.
            let _ = self.drop_key(hash, id, turn).await;
        }
        WriteError::Store(Arc::new(error))
    }
}
