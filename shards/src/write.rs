//! Writing and deleting: the order of what happens to one key, and the way through to the store.
//!
//! Writers of a key take turns at its home, so what the cache holds afterwards is what the store
//! took last. What may be acknowledged before the store has it is in `writeback.rs`; nothing
//! here is. After an outcome that is unknown, the cache forgets the key, unless it has the only copy
//! of what was acknowledged before.

use crate::core::Core;
use crate::format::{RecordHeader, RecordState};
use crate::key::{BlockHash, BlockId, Freshness};
use crate::messages::{
    BlockPayload, LateFacts, PutObject, PutSource, WriteCondition, WriteError, Written,
};
use crate::parts::is_body;
use crate::patience::DISK_WRITE_WAIT;
use crate::shard::AppendFailure;
use crate::writeback::{DirtyWrite, Taken};
use forebay_io::disk::Disk;
use forebay_io::local::Turn;
use forebay_io::runtime::{Runtime, timeout};
use forebay_io::store::{Attempts, ObjectMeta, PutReply, StoreError, StoreErrorKind};
use forebay_io::uplink::{Upload, UploadBody};
use forebay_io::versions::Deleted;
use futures::channel::oneshot;
use std::rc::Rc;
use std::sync::Arc;

/// Attempts at a tombstone. Each failed write moves on to another segment, so a fault of one place
/// on the disk is overcome; a disk that takes nothing three times running takes nothing.
const TOMBSTONE_ATTEMPTS_MAX: u32 = 3;

/// A write that goes to the store before it is acknowledged.
pub(crate) struct ThroughWrite {
    pub(crate) id: BlockId,
    pub(crate) headers: Vec<(String, String)>,
    /// What the store was not told, for it came with the last of the bytes.
    pub(crate) late: Option<oneshot::Receiver<LateFacts>>,
    pub(crate) length: u64,
    pub(crate) crc64nvme: Option<u64>,
    pub(crate) terms: Terms,
    pub(crate) body: UploadBody,
    /// The block to be cached, if the object came whole.
    pub(crate) payload: Option<BlockPayload>,
}

/// What the store must find true of a key for a write of it to be done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    /// It holds no object.
    pub(crate) if_none_match: bool,
    /// It holds the version with this ETag of the store's.
    pub(crate) if_match: Option<String>,
}

/// A change of an object that its store makes before it is acknowledged.
pub(crate) struct Change<'c> {
    pub(crate) hash: BlockHash,
    pub(crate) id: &'c BlockId,
    pub(crate) terms: &'c Terms,
    /// Checksum of what is written, where it is known.
    pub(crate) crc64nvme: Option<u64>,
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Writes an object: to this core's disk, to be uploaded later, where that is allowed; else to
    /// its store, and then into the cache.
    pub async fn put(self: &Rc<Self>, object: PutObject) -> Result<Written, WriteError> {
        let PutObject {
            id,
            mut headers,
            late,
            length,
            condition,
            source,
        } = object;
        let hash = id.hash();
        self.shard_to_write(hash).await?;
        self.settle_kept(&id, hash).await?;
        let (body, complete) = match source {
            PutSource::Arriving(body, complete) => (body, complete),
            PutSource::Stream(pieces) => {
                let (turn, terms) = self.turn_to_write(&id, hash, &condition).await?;
                let write = ThroughWrite {
                    id,
                    headers,
                    late: Some(late),
                    length,
                    crc64nvme: None,
                    terms,
                    body: UploadBody::Stream(pieces),
                    payload: None,
                };
                return self.put_through(hash, write, turn).await;
            }
        };
        // Before the turn: a body that is slow, or never complete, is in nobody's way.
        let early = async {
            match condition {
                WriteCondition::Always => self.write_early(&id, hash, body, length).await,
                WriteCondition::Free | WriteCondition::Version(_) => None,
            }
        };
        let (early, payload) = futures::join!(early, complete);
        let payload = payload.map_err(|_| WriteError::Incomplete)?;
        let late = late.await.unwrap_or_default();
        headers.extend(late.headers);
        let write = DirtyWrite {
            id,
            headers,
            md5: late.md5,
            payload,
            early,
        };
        self.put_whole(hash, write, &condition).await
    }

    /// Writes an object of which all is here.
    async fn put_whole(
        self: &Rc<Self>,
        hash: BlockHash,
        write: DirtyWrite<D::File>,
        condition: &WriteCondition,
    ) -> Result<Written, WriteError> {
        let (turn, terms) = self.turn_to_write(&write.id, hash, condition).await?;
        if let Some(meta) = self.same_content(&write.id, hash, &write.payload).await? {
            let is_dirty = self.is_dirty(hash);
            return Ok(Written {
                meta,
                is_dirty,
                version_id: None,
            });
        }
        let asks_store = terms.if_none_match || terms.if_match.is_some();
        let may_write_back = !asks_store && self.may_write_back(&write.id, hash);
        let (id, headers) = (write.id.clone(), write.headers.clone());
        let length = write.payload.buffer.filled() as u64;
        let crc64nvme = Some(write.payload.crc64nvme);
        let through = |view, payload| ThroughWrite {
            id,
            headers,
            late: None,
            length,
            crc64nvme,
            terms,
            body: UploadBody::Whole(vec![view]),
            payload,
        };
        if !may_write_back {
            drop(write.early);
            let view = write.payload.buffer.watch().view_all();
            let write = through(view, Some(write.payload));
            return self.put_through(hash, write, turn).await;
        }
        match self.write_back(hash, write, turn).await? {
            Taken::Written(meta) => Ok(Written {
                meta,
                is_dirty: true,
                version_id: None,
            }),
            Taken::Refused(view, turn) => self.put_through(hash, through(view, None), turn).await,
        }
    }

    /// Waits for the turn of a key, and judges what can be judged of a condition without the store.
    /// With the turn comes what the store must judge.
    ///
    /// What clients are told of a key decides: of a dirty object the store has another version, or
    /// none, and calls an uploaded one by a tag of its own.
    pub(crate) async fn turn_to_write(
        &self,
        id: &BlockId,
        hash: BlockHash,
        condition: &WriteCondition,
    ) -> Result<(Turn<BlockHash>, Terms), WriteError> {
        let turn = self.turn(hash).await?;
        let terms = match condition {
            WriteCondition::Always => Terms::default(),
            WriteCondition::Free if self.is_here_alone(hash) => return Err(WriteError::Exists),
            WriteCondition::Free => Terms {
                if_none_match: true,
                if_match: None,
            },
            WriteCondition::Version(etag) => {
                let known = self.known_version(id, hash).await;
                let known = known.map_err(|_| WriteError::Stalled)?;
                let is_known = known.is_some_and(|meta| meta.etag == *etag);
                let if_match = match (self.is_here_alone(hash), is_known) {
                    (true, true) => None,
                    (true, false) => return Err(WriteError::OtherVersion),
                    (false, true) => self.known_store_etag(hash),
                    (false, false) => Some(etag.clone()),
                };
                // What was dirty may be uploaded by now; what is not remembered is the store's.
                let if_match =
                    if_match.or_else(|| (!self.is_here_alone(hash)).then(|| etag.clone()));
                Terms {
                    if_none_match: false,
                    if_match,
                }
            }
        };
        Ok((turn, terms))
    }

    /// Writes an object to its store and, if it came whole, into the cache.
    pub(crate) async fn put_through(
        self: &Rc<Self>,
        hash: BlockHash,
        write: ThroughWrite,
        turn: Turn<BlockHash>,
    ) -> Result<Written, WriteError> {
        let ThroughWrite {
            id,
            mut headers,
            late,
            length,
            crc64nvme,
            terms,
            body,
            payload,
        } = write;
        let upload = Upload {
            key: id.key.to_string(),
            length,
            headers: headers.clone(),
            crc64nvme,
            if_none_match: terms.if_none_match,
            if_match: terms.if_match.clone(),
            attempts: Attempts::StorePolicy,
            body,
        };
        let change = Change {
            hash,
            id: &id,
            terms: &terms,
            crc64nvme,
        };
        let putting = self.parts.uplink.put(id.volume.store_number, upload);
        let (reply, turn) = self.change_store(change, turn, putting).await?;
        if let Some(late) = late {
            headers.extend(late.await.unwrap_or_default().headers);
        }
        id.volume.versions.note_write(&reply);
        let version_id = reply.version_id.clone();
        let meta = self.written_meta(reply, length, headers);
        self.cache_written(hash, id, Some(meta.clone()), payload, turn)
            .await?;
        Ok(Written {
            meta,
            is_dirty: false,
            version_id,
        })
    }

    /// Lets the store make a change in the turn of its key: what is dirty of the key waits, and is
    /// given up for good once the store has what replaces it. Then the cache must be made to agree.
    pub(crate) async fn change_store(
        self: &Rc<Self>,
        change: Change<'_>,
        turn: Turn<BlockHash>,
        request: impl Future<Output = Result<PutReply, StoreError>>,
    ) -> Result<(PutReply, Turn<BlockHash>), WriteError> {
        let Change {
            hash,
            id,
            terms,
            crc64nvme,
        } = change;
        let turn = match terms.if_none_match {
            true => turn,
            false => self.bury_unchecked(hash, id, turn).await?,
        };
        let held = self.hold_upload(hash).await?;
        let reply = match request.await {
            Ok(reply) => reply,
            Err(error) => {
                self.resume_upload(held);
                if let (true, Some(crc64nvme)) = (error.kind.is_retryable(), crc64nvme) {
                    self.note_in_doubt(hash, crc64nvme);
                }
                return Err(self.write_failed(hash, id, turn, error, terms).await);
            }
        };
        if held.is_none() {
            return Ok((reply, turn));
        }
        // The older content must be gone for good before the newer one is acknowledged.
        match self.give_up_dirty(hash, id, turn).await {
            Ok(turn) => Ok((reply, turn)),
            Err(error) => {
                self.doubt_upload(held);
                Err(error)
            }
        }
    }

    /// An object as the store has just confirmed it.
    pub(crate) fn written_meta(
        &self,
        reply: PutReply,
        length: u64,
        headers: Vec<(String, String)>,
    ) -> Arc<ObjectMeta> {
        let last_modified = match reply.last_modified {
            0 => self.parts.runtime.unix_seconds(),
            seconds => seconds,
        };
        Arc::new(ObjectMeta {
            size: length,
            etag: reply.etag,
            last_modified,
            headers,
        })
    }

    /// Makes the cache agree with the store after a write through. `meta` is the object, as far as that
    /// is known.
    ///
    /// # Errors
    /// [`WriteError::Stalled`] if an older copy may come back, that a restart without the ledger would
    /// serve and upload over what was written now.
    pub(crate) async fn cache_written(
        self: &Rc<Self>,
        hash: BlockHash,
        id: BlockId,
        meta: Option<Arc<ObjectMeta>>,
        payload: Option<BlockPayload>,
        turn: Turn<BlockHash>,
    ) -> Result<(), WriteError> {
        let in_flight = self.supersede(hash);
        if self.uploads.is_conflict(hash) {
            return Ok(());
        }
        // A record replaces the old one in the index, and inherits how hot it was.
        let cached = match payload {
            Some(_) => self.shard(hash).is_some_and(|shard| shard.may_hold(hash)),
            None => self.forget(hash),
        };
        let written = self.parts.runtime.now();
        if let Some(meta) = &meta {
            self.learn(&id, hash, meta.clone(), written);
        }
        let is_gone = !in_flight && !cached;
        let must_be_gone = must_be_buried(&id);
        let core = self.clone();
        let caching = async move {
            let _turn = turn;
            let outranked = match (payload, meta) {
                (Some(payload), Some(meta)) => {
                    core.store_block(hash, &id, &meta, payload, Some(written), || true)
                        .await
                }
                // No record of the new version outranks the old one, and nobody promises an insert.
                (_, _) => false,
            };
            if outranked || is_gone {
                return true;
            }
            if let Some(shard) = core.shard(hash) {
                shard.forget(hash);
            }
            core.bury(hash, &id, || true).await
        };
        // The store has it: a disk that does not answer takes nothing from that, where it has nothing.
        let agrees = self.patience.write(self.shard_number(hash), caching).await;
        match agrees.unwrap_or(is_gone) || !must_be_gone {
            true => Ok(()),
            false => Err(WriteError::Stalled),
        }
    }

    /// Forgets what is dirty of a key, for good: also after a restart and a power cut.
    ///
    /// # Errors
    /// [`WriteError::Stalled`] if the disk did not say in time that it has the tombstone.
    pub(crate) async fn give_up_dirty(
        self: &Rc<Self>,
        hash: BlockHash,
        id: &BlockId,
        turn: Turn<BlockHash>,
    ) -> Result<Turn<BlockHash>, WriteError> {
        self.supersede(hash);
        let (core, id) = (self.clone(), id.clone());
        let burying = async move {
            let buried = core.bury_as(hash, &id, RecordState::Dirty, || true).await;
            // A tombstone that may not survive a power cut buries all the same.
            if !core.is_dirty(hash) {
                core.forget(hash);
            }
            (buried, turn)
        };
        match self.patience.write(self.shard_number(hash), burying).await {
            Some((true, turn)) => Ok(turn),
            _ => Err(WriteError::Stalled),
        }
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
        // What is dirty goes when the store has what replaces it.
        if id.volume.freshness != Freshness::Immutable || !is_held || self.is_dirty(hash) {
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
        let must_be_buried = must_be_buried(&id);
        let burying = async move { (core.bury(hash, &id, || true).await, turn) };
        match self.patience.write(self.shard_number(hash), burying).await {
            Some((buried, turn)) if buried || !must_be_buried => Ok(turn),
            _ => Err(WriteError::Stalled),
        }
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
        if id.number == 0 && !is_body(&id) && !self.is_current(hash, &meta) {
            return;
        }
        self.supersede(hash);
        let core = self.clone();
        let written = self.parts.runtime.now();
        let caching = async move {
            let _turn = turn;
            core.store_block(hash, &id, &meta, payload, Some(written), || true)
                .await
        };
        self.patience.write(self.shard_number(hash), caching).await;
    }

    /// Deletes an object from its store and from the cache.
    ///
    /// Of a condition that the store must judge it is asked before: stores differ in what they do with
    /// one on a DELETE. What is not there needs no deletion, whatever version was meant.
    pub async fn delete(
        self: &Rc<Self>,
        id: BlockId,
        condition: WriteCondition,
    ) -> Result<Deleted, WriteError> {
        let hash = id.hash();
        self.shard_to_write(hash).await?;
        self.settle_kept(&id, hash).await?;
        let (turn, terms) = self.turn_to_write(&id, hash, &condition).await?;
        if let Some(etag) = &terms.if_match {
            let (number, key) = (id.volume.store_number, id.key.to_string());
            match self.parts.uplink.head(number, key).await {
                Ok(head) if head.meta.etag == *etag => {}
                Ok(_) => return Err(WriteError::OtherVersion),
                Err(error) if error.kind == StoreErrorKind::NotFound => {}
                Err(error) => return Err(WriteError::Store(Arc::new(error))),
            }
        }
        let held = self.hold_upload(hash).await?;
        let deleting = self
            .parts
            .uplink
            .delete(id.volume.store_number, id.key.to_string());
        let deleted = match deleting.await {
            Ok(deleted) => deleted,
            Err(error) if error.kind == StoreErrorKind::NotFound => Deleted::default(),
            Err(error) => {
                self.resume_upload(held);
                let terms = Terms::default();
                return Err(self.write_failed(hash, &id, turn, error, &terms).await);
            }
        };
        if held.is_none() {
            return self.drop_key(hash, &id, turn).await.map(|()| deleted);
        }
        let given_up = self.give_up_dirty(hash, &id, turn).await;
        if given_up.is_err() {
            self.doubt_upload(held);
        }
        given_up.map(|_| deleted)
    }

    /// Forgets an object of which the store was seen to have another version.
    pub async fn invalidate(self: &Rc<Self>, id: BlockId) {
        let hash = id.hash();
        let _ = self.shard_to_write(hash).await;
        if let Ok(turn) = self.turn(hash).await
            && !self.is_dirty(hash)
        {
            let _ = self.drop_key(hash, &id, turn).await;
        }
    }

    /// Waits for the turn of a key, as long as its disk answers.
    pub(crate) async fn turn(&self, hash: BlockHash) -> Result<Turn<BlockHash>, WriteError> {
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
    pub(crate) async fn drop_key(
        self: &Rc<Self>,
        hash: BlockHash,
        id: &BlockId,
        turn: Turn<BlockHash>,
    ) -> Result<(), WriteError> {
        let in_flight = self.supersede(hash);
        let cached = self.forget(hash);
        // The only copy of what is in conflict stays whatever happens to the key.
        if !in_flight && !cached || self.is_dirty(hash) {
            return Ok(());
        }
        self.bury_in_turn(hash, id, turn).await.map(drop)
    }

    /// Writes a tombstone, so that no record of the key is found after a restart. `wanted` turns
    /// false when something newer comes, which then outranks the old record itself. Returns whether
    /// nothing of the key can be found.
    pub(crate) async fn bury(
        &self,
        hash: BlockHash,
        id: &BlockId,
        wanted: impl Fn() -> bool,
    ) -> bool {
        let wanted = || wanted() && !self.is_dirty(hash) && !self.uploads.is_appending(hash);
        let state = match self.parts.writeback.sync {
            true => RecordState::Dirty,
            false => RecordState::Clean,
        };
        self.bury_as(hash, id, state, wanted).await
    }

    /// As [`Core::bury`]. A dirty tombstone is made durable as a dirty block is: what it buries
    /// must not be uploaded after a power cut.
    async fn bury_as(
        &self,
        hash: BlockHash,
        id: &BlockId,
        state: RecordState,
        wanted: impl Fn() -> bool,
    ) -> bool {
        let Some(shard) = self.shard(hash) else {
            return false;
        };
        let now = self.parts.runtime.unix_seconds();
        let tombstone = RecordHeader {
            state,
            ..RecordHeader::tombstone(hash, id, now)
        };
        for attempt in 1..=TOMBSTONE_ATTEMPTS_MAX {
            let Ok(buffer) = self.take_buffer(0).await else {
                log::warn!("{}/{}: no memory for a tombstone", id.volume.name, id.key);
                return false;
            };
            match shard.append(tombstone.clone(), buffer, &wanted).await {
                Ok(_) => {
                    self.stats.records_written.add(1);
                    self.stats
                        .record_bytes_written
                        .add(tombstone.record_bytes());
                    return true;
                }
                Err(AppendFailure::Superseded) => return true,
                Err(failure) => {
                    self.stats.write_failures.add(1);
                    let (volume, key) = (&id.volume.name, &id.key);
                    log::warn!("{volume}/{key}: no tombstone at attempt {attempt}: {failure}");
                }
            }
        }
        false
    }

    async fn write_failed(
        self: &Rc<Self>,
        hash: BlockHash,
        id: &BlockId,
        turn: Turn<BlockHash>,
        error: StoreError,
        terms: &Terms,
    ) -> WriteError {
        use StoreErrorKind::{NotFound, PreconditionFailed};
        if terms.if_none_match && error.kind == PreconditionFailed {
            return WriteError::Exists;
        }
        // The store has another version than the one that the client was told of, from here.
        let is_other = matches!(error.kind, PreconditionFailed | NotFound)
            && terms.if_match.is_some()
            && self.known_store_etag(hash) == terms.if_match;
        if (error.kind.is_retryable() || is_other) && !self.is_dirty(hash) {
            // It may have been done after all.
            let _ = self.drop_key(hash, id, turn).await;
        }
        WriteError::Store(Arc::new(error))
    }
}

/// Whether nothing but a tombstone, or a newer record, keeps a copy of a key from coming back that
/// is never checked, or one from being uploaded again of which the ledger has lost that it was.
fn must_be_buried(id: &BlockId) -> bool {
    id.volume.freshness == Freshness::Immutable || id.volume.writeback
}
