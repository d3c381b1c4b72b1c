//! Writing back: a write is acknowledged when its record is on disk, and uploaded later.
//!
//! This file owns the acknowledgement: which writes may be taken so, what of them is on disk before
//! they are, and when writers are slowed. It never talks to a store; [`crate::upload`] does. A write
//! that cannot be taken so goes through ([`crate::write`]).

use crate::core::Core;
use crate::early::{EarlyWrite, begins_quickly};
use crate::format::{RecordHeader, RecordKind, RecordState};
use crate::key::{BlockHash, BlockId, Freshness};
use crate::messages::{BlockPayload, WriteError};
use crate::ram::RamBlock;
use crate::schedule::Age;
use crate::shard::{AppendFailure, Shard};
use forebay_io::buffer::{View, Watch};
use forebay_io::disk::Disk;
use forebay_io::local::Turn;
use forebay_io::runtime::Runtime;
use forebay_io::store::{ObjectMeta, StoreErrorKind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a writer is held at the hard limit of dirty segments; from the soft one on it rises
/// from nothing. Long enough that a store which takes some uploads gets ahead of the writers.
const SLOW_WAIT_MAX: Duration = Duration::from_millis(200);

/// A write that may be acknowledged before the store has it.
pub(crate) struct DirtyWrite<F> {
    pub(crate) id: BlockId,
    pub(crate) headers: Vec<(String, String)>,
    /// The object's MD5 where it is known.
    pub(crate) md5: Option<String>,
    pub(crate) payload: BlockPayload,
    /// What of it is on its way to the disk already.
    pub(crate) early: Option<EarlyWrite<F>>,
}

/// What became of a write that was to be acknowledged early.
pub(crate) enum Taken {
    /// It is on disk.
    Written(Arc<ObjectMeta>),
    /// The disk would not have it; the bytes and the turn are given back.
    Refused(View, Turn<BlockHash>),
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Whether a write of a whole object may be acknowledged before the store has it.
    pub(crate) fn may_write_back(&self, id: &BlockId, hash: BlockHash) -> bool {
        id.volume.writeback
            && !id.volume.versions.are_kept()
            && self.parts.writeback.enabled
            && !self.uploads.is_draining()
            && !self.uploads.is_conflict(hash)
            && !self.patience.is_overdue(self.shard_number(hash))
            && self
                .shard(hash)
                .is_some_and(|shard| shard.marks().is_some())
    }

    /// Writes the bytes of a body to this core's disk while they come, if the object may be
    /// acknowledged from there. See [`Shard::write_early`].
    pub(crate) async fn write_early(
        self: &Rc<Self>,
        id: &BlockId,
        hash: BlockHash,
        body: Watch,
        length: u64,
    ) -> Option<EarlyWrite<D::File>> {
        let shard = self.shard(hash)?;
        if !self.may_write_back(id, hash) || shard.dirty_crowding() > 0.0 {
            return None;
        }
        let piece_bytes = self.parts.writeback.piece_bytes;
        if length <= piece_bytes as u64
            || !begins_quickly(&self.parts.runtime, &body, piece_bytes).await
        {
            return None;
        }
        let writing = async move { shard.write_early(body, length as usize, piece_bytes).await };
        self.patience
            .write(self.shard_number(hash), writing)
            .await
            .flatten()
    }

    /// Keys of an immutable volume hold one content for ever: what is dirty already and comes again
    /// is no write.
    ///
    /// # Errors
    /// [`WriteError::Immutable`] if the key is known to hold something else.
    pub(crate) async fn same_content(
        &self,
        id: &BlockId,
        hash: BlockHash,
        payload: &BlockPayload,
    ) -> Result<Option<Arc<ObjectMeta>>, WriteError> {
        let is_once = id.volume.freshness == Freshness::Immutable && id.volume.writeback;
        let (Some(shard), true) = (self.shard(hash), is_once) else {
            return Ok(None);
        };
        let Some(location) = shard.find(hash) else {
            return Ok(None);
        };
        if shard.is_doubtful() || self.uploads.is_conflict(hash) {
            return Ok(None);
        }
        let is_dirty = shard.is_dirty(hash);
        let header = match self.header_at(&shard, hash, location).await {
            Some(Ok(header)) if crate::read::names(&header, id) => header,
            // What is not known to be there forbids nothing.
            _ => return Ok(None),
        };
        let size = payload.buffer.filled() as u64;
        let is_same = header.payload_crc64 == payload.crc64nvme && header.meta.size == size;
        match (is_same, is_dirty) {
            (true, true) => Ok(Some(Arc::new(header.meta))),
            // The store may have lost what it had: only an upload finds out.
            (true, false) => Ok(None),
            (false, true) => Err(WriteError::Immutable),
            (false, false) if self.is_gone(id).await => Ok(None),
            (false, false) => Err(WriteError::Immutable),
        }
    }

    /// Whether the store says that it has no such object: a clean copy may be of one that was
    /// deleted, if a power cut has taken the tombstone.
    async fn is_gone(&self, id: &BlockId) -> bool {
        let head = self
            .parts
            .uplink
            .head(id.volume.store_number, id.key.to_string());
        head.await
            .is_err_and(|error| error.kind == StoreErrorKind::NotFound)
    }

    /// Writes an object to this core's disk, as the only copy of it.
    pub(crate) async fn write_back(
        self: &Rc<Self>,
        hash: BlockHash,
        write: DirtyWrite<D::File>,
        turn: Turn<BlockHash>,
    ) -> Result<Taken, WriteError> {
        self.slow_down(hash).await;
        let core = self.clone();
        let writing = async move { core.append_dirty(hash, write, turn).await };
        let taken = self.patience.write(self.shard_number(hash), writing).await;
        taken.ok_or(WriteError::Stalled)
    }

    /// Holds a writer, the longer the nearer its shard is to the limit of dirty segments.
    async fn slow_down(&self, hash: BlockHash) {
        let Some(shard) = self.shard(hash) else {
            return;
        };
        let wait = SLOW_WAIT_MAX.mul_f64(shard.dirty_crowding());
        if !wait.is_zero() {
            self.stats.writes_slowed.add(1);
            self.parts.runtime.sleep(wait).await;
        }
    }

    async fn append_dirty(
        self: &Rc<Self>,
        hash: BlockHash,
        write: DirtyWrite<D::File>,
        turn: Turn<BlockHash>,
    ) -> Taken {
        let DirtyWrite {
            id,
            headers,
            md5,
            payload,
            early,
        } = write;
        let view = payload.buffer.watch().view_all();
        let Some(shard) = self.shard(hash) else {
            return Taken::Refused(view, turn);
        };
        // No upload of an older version begins from here on: the record says which one is on its way.
        self.uploads.set_appending(hash, true);
        let now = self.parts.runtime.unix_seconds();
        let size = view.len() as u64;
        let meta = Arc::new(ObjectMeta {
            size,
            etag: md5.unwrap_or_else(|| content_etag(payload.crc64nvme, size)),
            last_modified: now,
            headers,
        });
        let header = RecordHeader {
            kind: RecordKind::Block,
            state: RecordState::Dirty,
            payload_length: size as u32,
            payload_crc64: payload.crc64nvme,
            chunk_crcs: payload.chunk_crcs,
            meta: (*meta).clone(),
            store_etag: self.known_store_etag(hash).unwrap_or_default(),
            on_its_way: self.on_its_way(hash).await,
            ..RecordHeader::tombstone(hash, &id, now)
        };
        let block = RamBlock {
            header: Rc::new(header.clone()),
            payload: view.clone(),
        };
        let bytes = header.record_bytes();
        self.supersede(hash);
        let appended = shard
            .append_rest(header, payload.buffer, early, || true)
            .await;
        self.uploads.set_appending(hash, false);
        // Readers who came during the write must not be given what it replaced.
        self.supersede(hash);
        let sequence = match appended {
            Ok(sequence) => sequence,
            Err(failure) => {
                self.note_refusal(&id, &failure);
                // What could not be flushed is there all the same, unless the way through ends it.
                if shard.is_dirty(hash) {
                    self.requeue(hash).await;
                }
                return Taken::Refused(view, turn);
            }
        };
        self.stats.writebacks.add(1);
        self.stats.records_written.add(1);
        self.stats.record_bytes_written.add(bytes);
        self.learn(&id, hash, meta.clone(), self.parts.runtime.now());
        self.ram.borrow_mut().insert_if_hot(hash, block);
        let age = Age {
            acked_unix_ms: now * 1000,
            sequence,
        };
        self.enqueue_upload(hash, age, &id.volume, size);
        Taken::Written(meta)
    }

    fn note_refusal(&self, id: &BlockId, failure: &AppendFailure) {
        self.stats.writebacks_refused.add(1);
        let (volume, key) = (&id.volume.name, &id.key);
        log::debug!("{volume}/{key}: written through: {failure}");
    }
}

/// The ETag of an object whose MD5 nobody knows: it names the content, and looks like that of a
/// multipart upload, so that no tool takes it for an MD5.
fn content_etag(crc64nvme: u64, size: u64) -> String {
    format!("{crc64nvme:016x}{size:016x}-1")
}

impl<R: Runtime, D: Disk> Shard<R, D> {
    /// How near the shard is to its limit of dirty segments: 0 up to the soft one, 1 at the hard
    /// one.
    fn dirty_crowding(&self) -> f64 {
        let (soft, hard) = self.inner.dirty_segments_limits();
        let used = self.inner.log.dirty_segments();
        if used < soft || hard == soft {
            return 0.0;
        }
        f64::from(used - soft + 1) / f64::from(hard - soft + 1)
    }

    /// Bytes of segments that may hold dirty records: from which on writers are slowed, and at most.
    pub fn dirty_limits_bytes(&self) -> (u64, u64) {
        let (soft, hard) = self.inner.dirty_segments_limits();
        let segment_bytes = self.inner.log.layout().segment_bytes;
        (
            u64::from(soft) * segment_bytes,
            u64::from(hard) * segment_bytes,
        )
    }
}
