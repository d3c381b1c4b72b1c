//! The way from any core to a block's owner.
//!
//! This file owns the decision "here or there": a request for a block of this core is a function
//! call, any other is one message and one answer. It never copies a payload.

use crate::backlog::{AbandonError, Backlog, DirtyBlock, Exported, ObjectName};
use crate::core::Core;
use crate::key::{BlockHash, BlockId, Topology, Volume};
use crate::messages::{
    BlockBody, BlockPayload, BlockRequest, CompleteObject, CopyFrom, CopyObject, Message, Opened,
    Outcome, PutObject, ReadError, WriteCondition, WriteError, Written,
};
use crate::names::NamesError;
use crate::parts::{Assembly, BodyName, KnownParts, NotedPart};
use crate::range::RangeSpec;
use crate::stats::CoreSnapshot;
use forebay_io::disk::Disk;
use forebay_io::listing::{self, ListPage, ListRequest};
use forebay_io::multipart::{
    CopyPartRequest, PartsPage, PartsRequest, UploadName, UploadsPage, UploadsRequest,
};
use forebay_io::queue::{Inbox, MeshPort, Sender};
use forebay_io::runtime::Runtime;
use forebay_io::store::{ObjectMeta, PutReply, StoreError, StoreErrorKind, StoreResult};
use forebay_io::tags::Tags;
use forebay_io::uplink::PartUpload;
use forebay_io::versions::Deleted;
use futures::channel::oneshot;
use std::rc::Rc;
use std::sync::Arc;

/// Messages that may wait between each two cores. A core that is this far behind makes others
/// wait instead of holding ever more of their requests.
pub const MESH_CAPACITY: usize = 1024;

/// A core's view of the whole cache.
pub struct Router<R: Runtime, D: Disk> {
    core: Rc<Core<R, D>>,
    peers: Rc<Peers>,
}

/// The ways to all cores, by their number.
pub struct Peers(Vec<Sender<Message>>);

impl Peers {
    /// Asks a core; `None` if it is gone.
    pub(crate) async fn ask<T>(
        &self,
        core: usize,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0[core].send(message(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// Joins a core to the mesh: answers other cores' requests from now on.
pub fn join<R: Runtime, D: Disk>(core: Rc<Core<R, D>>, port: MeshPort<Message>) -> Router<R, D> {
    let (outgoing, inbox) = port.split();
    let runtime = core.parts.runtime.clone();
    runtime.spawn(serve(core.clone(), inbox));
    let peers = Rc::new(Peers(outgoing));
    *core.peers.borrow_mut() = Rc::downgrade(&peers);
    Router { core, peers }
}

async fn serve<R: Runtime, D: Disk>(core: Rc<Core<R, D>>, mut inbox: Inbox<Message>) {
    while let Some(message) = inbox.recv().await {
        let handler = core.clone();
        core.parts
            .runtime
            .spawn(async move { handle(&handler, message).await });
    }
}

/// Carries one request out. Whoever asked may be gone; the work is done all the same.
async fn handle<R: Runtime, D: Disk>(core: &Rc<Core<R, D>>, message: Message) {
    match message {
        Message::Open(id, wanted, reply) => drop(reply.send(core.open(id, wanted).await)),
        Message::ReadBlock(request, reply) => drop(reply.send(core.read_block(request).await)),
        Message::Put(object, reply) => drop(reply.send(core.put(*object).await)),
        Message::Insert(id, meta, payload, reply) => {
            core.insert(id, meta, payload).await;
            let _ = reply.send(());
        }
        Message::Delete(id, condition, reply) => {
            drop(reply.send(core.delete(id, condition).await));
        }
        Message::DeleteVersion(id, version_id, reply) => {
            drop(reply.send(core.delete_version(id, version_id).await));
        }
        Message::Settle(id, reply) => drop(reply.send(core.settle(id).await)),
        Message::Invalidate(id, reply) => {
            core.invalidate(id).await;
            let _ = reply.send(());
        }
        Message::Snapshot(reply) => drop(reply.send(core.snapshot())),
        Message::Backlog(up_to, reply) => drop(reply.send(core.backlog(up_to))),
        Message::DirtyBlocks(limit, reply) => drop(reply.send(core.dirty_blocks(limit).await)),
        Message::ListDirty(volume, request, reply) => {
            drop(reply.send(core.list_dirty(&volume, &request).await));
        }
        Message::Retry(name, reply) => drop(reply.send(core.retry(name).await)),
        Message::Abandon(name, reply) => drop(reply.send(core.abandon(name).await)),
        Message::Export(name, reply) => drop(reply.send(core.export(name).await)),
        Message::SetDraining(draining, reply) => {
            core.set_draining(draining);
            let _ = reply.send(());
        }
        Message::Hurry(reply) => {
            core.hurry().await;
            let _ = reply.send(());
        }
        Message::NotePart(id, upload_id, part, reply) => {
            core.note_part(&id, &upload_id, *part);
            let _ = reply.send(());
        }
        Message::KnownParts(id, upload_id, reply) => {
            drop(reply.send(core.known_parts(&id, &upload_id)));
        }
        Message::Complete(object, reply) => drop(reply.send(core.complete(*object).await)),
        Message::EndUpload(id, upload_id, reply) => {
            core.end_upload(&id, &upload_id);
            let _ = reply.send(());
        }
        Message::DescribeSource(id, reply) => drop(reply.send(core.describe_source(id).await)),
        Message::Copy(object, reply) => drop(reply.send(core.copy(*object).await)),
        Message::Tags(id, reply) => drop(reply.send(core.tags(id).await)),
        Message::SetTags(id, tags, reply) => drop(reply.send(core.set_tags(id, tags).await)),
        Message::FindAssembly(id, meta, reply) => {
            drop(reply.send(core.find_assembly(&id, &meta)));
        }
        Message::Peek(place, reply) => drop(reply.send(core.peek(*place).await)),
        Message::Discard(ids, reply) => {
            core.discard(&ids);
            let _ = reply.send(());
        }
    }
}

pub(crate) fn core_gone() -> Arc<StoreError> {
    Arc::new(StoreError::new(
        StoreErrorKind::Internal,
        "the block's owner core is gone",
    ))
}

impl<R: Runtime, D: Disk> Router<R, D> {
    /// This core.
    pub fn core(&self) -> &Rc<Core<R, D>> {
        &self.core
    }

    /// The number of this core.
    pub fn index(&self) -> usize {
        self.core.parts.index
    }

    /// Where blocks live.
    pub fn topology(&self) -> Topology {
        self.core.parts.topology
    }

    /// The core that owns a block.
    pub fn owner(&self, hash: BlockHash) -> usize {
        self.topology().core_of(hash)
    }

    fn is_mine(&self, id: &BlockId) -> bool {
        self.owner(id.hash()) == self.core.parts.index
    }

    async fn ask<T>(
        &self,
        core: usize,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Option<T> {
        self.peers.ask(core, message).await
    }

    pub(crate) async fn ask_owner<T>(
        &self,
        id: &BlockId,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Option<T> {
        self.ask(self.owner(id.hash()), message).await
    }

    /// See [`Core::open`].
    pub async fn open(&self, id: BlockId, wanted: Option<RangeSpec>) -> Result<Opened, ReadError> {
        if self.is_mine(&id) {
            return self.core.open(id, wanted).await;
        }
        let answer = self
            .ask_owner(&id.clone(), |reply| Message::Open(id, wanted, reply))
            .await;
        answer.unwrap_or_else(|| Err(ReadError::Store(core_gone())))
    }

    /// See [`Core::read_block`].
    pub async fn read_block(
        &self,
        request: BlockRequest,
    ) -> Result<(BlockBody, Outcome), ReadError> {
        if self.is_mine(&request.id) {
            return self.core.read_block(request).await;
        }
        let id = request.id.clone();
        let answer = self
            .ask_owner(&id, |reply| Message::ReadBlock(request, reply))
            .await;
        answer.unwrap_or_else(|| Err(ReadError::Store(core_gone())))
    }

    /// See [`Core::put`]. Runs to its end at the home even if the caller goes away.
    pub async fn put(&self, object: PutObject) -> Result<Written, WriteError> {
        let id = object.id.clone();
        let answer = self
            .ask_owner(&id, |reply| Message::Put(Box::new(object), reply))
            .await;
        answer.unwrap_or_else(|| Err(WriteError::Store(core_gone())))
    }

    /// See [`Core::insert`].
    pub async fn insert(&self, id: BlockId, meta: Arc<ObjectMeta>, payload: BlockPayload) {
        let owner = id.clone();
        self.ask_owner(&owner, |reply| Message::Insert(id, meta, payload, reply))
            .await;
    }

    /// See [`Core::delete`]. Runs to its end at the home even if the caller goes away.
    pub async fn delete(
        &self,
        id: BlockId,
        condition: WriteCondition,
    ) -> Result<Deleted, WriteError> {
        let owner = id.clone();
        let message = |reply| Message::Delete(id, condition, reply);
        let answer = self.ask_owner(&owner, message).await;
        answer.unwrap_or_else(|| Err(WriteError::Store(core_gone())))
    }

    /// See [`Core::invalidate`].
    pub async fn invalidate(&self, id: BlockId) {
        self.ask_owner(&id.clone(), |reply| Message::Invalidate(id, reply))
            .await;
    }

    /// The counters of every core that still answers.
    pub async fn snapshots(&self) -> Vec<CoreSnapshot> {
        self.ask_all(Message::Snapshot).await
    }

    async fn ask_all<T>(&self, message: impl Fn(oneshot::Sender<T>) -> Message + Copy) -> Vec<T> {
        let asked = (0..self.topology().cores()).map(|core| self.ask(core, message));
        let answers = futures::future::join_all(asked).await;
        answers.into_iter().flatten().collect()
    }

    /// Sums over what is dirty on all cores; with a time (milliseconds since the Unix epoch),
    /// `blocks` and `bytes` count only what was acknowledged up to it.
    pub async fn backlog(&self, up_to_unix_ms: Option<u64>) -> Backlog {
        let mut sum = Backlog::default();
        let message = |reply| Message::Backlog(up_to_unix_ms, reply);
        for backlog in self.ask_all(message).await {
            sum.add(backlog);
        }
        sum
    }

    /// The oldest dirty blocks of all cores, `limit` at most, oldest first.
    pub async fn dirty_blocks(&self, limit: usize) -> Vec<DirtyBlock> {
        let lists = self.ask_all(|reply| Message::DirtyBlocks(limit, reply));
        let mut blocks: Vec<DirtyBlock> = lists.await.into_iter().flatten().collect();
        blocks.sort_by_key(|block| block.acked_unix_ms);
        blocks.truncate(limit);
        blocks
    }

    /// A page of the list of a volume's dirty objects on all cores; see [`Core::list_dirty`]. It takes
    /// the memory of one page for each core.
    ///
    /// # Errors
    /// That of the first core that cannot tell.
    pub async fn list_dirty(
        &self,
        volume: &Arc<Volume>,
        request: &ListRequest,
    ) -> Result<ListPage, NamesError> {
        let ask = |core| {
            let (volume, request) = (volume.clone(), Box::new(request.clone()));
            let message = |reply| Message::ListDirty(volume, request, reply);
            self.ask(core, message)
        };
        let asked = (0..self.topology().cores()).map(ask);
        let answers = futures::future::join_all(asked).await;
        let pages = answers
            .into_iter()
            .map(|answer| answer.unwrap_or(Err(NamesError::CoreGone)));
        let pages: Result<Vec<ListPage>, NamesError> = pages.collect();
        Ok(listing::merge(request.limit, pages?))
    }

    /// A page of the list of what the store behind a volume has.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_store(
        &self,
        volume: &Volume,
        request: ListRequest,
    ) -> Result<ListPage, StoreError> {
        let uplink = &self.core.parts.uplink;
        uplink.list(volume.store_number, request).await
    }

    /// A name for the body of a part, which no other ever has.
    pub fn name_body(&self) -> BodyName {
        let runtime = &self.core.parts.runtime;
        BodyName::new(runtime.random(), runtime.random())
    }

    /// Caches a block of the body of a part, whatever becomes of it.
    pub async fn insert_body(
        &self,
        body: BodyName,
        volume: &Arc<Volume>,
        number: u64,
        meta: Arc<ObjectMeta>,
        payload: BlockPayload,
    ) {
        self.insert(body.block(volume, number), meta, payload).await;
    }

    /// Forgets the blocks of the body of a part of `size` bytes.
    pub async fn discard_body(&self, body: BodyName, volume: &Arc<Volume>, size: u64) {
        let count = size.div_ceil(volume.block_bytes);
        let blocks = (0..count).map(|number| body.block(volume, number));
        self.core.discard_everywhere(blocks.collect()).await;
    }

    /// The tags of the object whose block 0 is `home`, as its store has them.
    ///
    /// # Errors
    /// As a read; the store's `Unsupported` where it keeps none.
    pub async fn tags(&self, home: &BlockId) -> Result<Tags, ReadError> {
        let id = home.clone();
        let answer = self.ask_owner(home, |reply| Message::Tags(id, reply)).await;
        answer.unwrap_or_else(|| Err(ReadError::Store(core_gone())))
    }

    /// Replaces the tags of the object whose block 0 is `home`; what the store does not have yet goes
    /// there first.
    ///
    /// # Errors
    /// As a write that goes through.
    pub async fn set_tags(&self, home: &BlockId, tags: Tags) -> Result<(), WriteError> {
        let id = home.clone();
        let message = |reply| Message::SetTags(id, tags, reply);
        let answer = self.ask_owner(home, message).await;
        answer.unwrap_or_else(|| Err(WriteError::Store(core_gone())))
    }

    /// Begins an upload of an object in parts.
    ///
    /// # Errors
    /// The store's.
    pub async fn create_upload(
        &self,
        id: &BlockId,
        headers: Vec<(String, String)>,
    ) -> StoreResult<UploadName> {
        let uplink = &self.core.parts.uplink;
        let (number, key) = (id.volume.store_number, id.key.to_string());
        uplink.create_upload(number, key, headers).await
    }

    /// Gives a part to the store. Parts have no order among them, so any core may do this.
    ///
    /// # Errors
    /// The store's.
    pub async fn put_part(&self, volume: &Volume, part: PartUpload) -> StoreResult<PutReply> {
        let uplink = &self.core.parts.uplink;
        uplink.put_part(volume.store_number, part).await
    }

    /// Makes a part from an object inside the store.
    ///
    /// # Errors
    /// The store's.
    pub async fn copy_part(
        &self,
        volume: &Volume,
        request: CopyPartRequest,
    ) -> StoreResult<PutReply> {
        let uplink = &self.core.parts.uplink;
        uplink.copy_part(volume.store_number, request).await
    }

    /// Notes a part that the store has taken, for the object whose block 0 is `home`.
    pub async fn note_part(&self, home: &BlockId, upload_id: &str, part: NotedPart) {
        let (id, upload_id) = (home.clone(), upload_id.to_owned());
        self.ask_owner(home, |reply| {
            Message::NotePart(id, upload_id, Box::new(part), reply)
        })
        .await;
    }

    /// What is known of an upload's parts without the store.
    pub async fn known_parts(&self, home: &BlockId, upload_id: &str) -> KnownParts {
        let (id, upload_id) = (home.clone(), upload_id.to_owned());
        let message = |reply| Message::KnownParts(id, upload_id, reply);
        self.ask_owner(home, message).await.unwrap_or_default()
    }

    /// Makes an object from its parts. Runs to its end at the home even if the caller goes away.
    pub async fn complete(&self, object: CompleteObject) -> Result<Written, WriteError> {
        let id = object.id.clone();
        let message = |reply| Message::Complete(Box::new(object), reply);
        let answer = self.ask_owner(&id, message).await;
        answer.unwrap_or_else(|| Err(WriteError::Store(core_gone())))
    }

    /// Discards an upload, at the store and then here.
    ///
    /// # Errors
    /// The store's.
    pub async fn abort_upload(&self, home: &BlockId, upload_id: &str) -> StoreResult<()> {
        let upload = UploadName {
            key: home.key.to_string(),
            upload_id: upload_id.to_owned(),
        };
        let uplink = &self.core.parts.uplink;
        uplink
            .abort_upload(home.volume.store_number, upload)
            .await?;
        let (id, upload_id) = (home.clone(), upload_id.to_owned());
        let message = |reply| Message::EndUpload(id, upload_id, reply);
        self.ask_owner(home, message).await;
        Ok(())
    }

    /// A page of the parts of an upload, as the store has them.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_parts(
        &self,
        volume: &Volume,
        request: PartsRequest,
    ) -> StoreResult<PartsPage> {
        let uplink = &self.core.parts.uplink;
        uplink.list_parts(volume.store_number, request).await
    }

    /// A page of the uploads that are under way, as the store has them.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_uploads(
        &self,
        volume: &Volume,
        request: UploadsRequest,
    ) -> StoreResult<UploadsPage> {
        let uplink = &self.core.parts.uplink;
        uplink.list_uploads(volume.store_number, request).await
    }

    /// Describes an object that is to be copied.
    pub async fn describe_source(&self, id: &BlockId) -> Result<CopyFrom, ReadError> {
        let message = |reply| Message::DescribeSource(id.clone(), reply);
        let answer = self.ask_owner(id, message).await;
        answer.unwrap_or_else(|| Err(ReadError::Store(core_gone())))
    }

    /// Copies an object inside its store. Runs to its end at the home even if the caller goes away.
    pub async fn copy(&self, object: CopyObject) -> Result<Written, WriteError> {
        let id = object.id.clone();
        let message = |reply| Message::Copy(Box::new(object), reply);
        let answer = self.ask_owner(&id, message).await;
        answer.unwrap_or_else(|| Err(WriteError::Store(core_gone())))
    }

    /// How a version of an object was put together, if that is known.
    pub async fn find_assembly(
        &self,
        home: &BlockId,
        meta: &Arc<ObjectMeta>,
    ) -> Option<Arc<Assembly>> {
        let message = |reply| Message::FindAssembly(home.clone(), meta.clone(), reply);
        self.ask_owner(home, message).await.flatten()
    }

    /// Lets a held block be tried again, or all quarantined ones; returns how many there were.
    pub async fn retry(&self, name: Option<ObjectName>) -> u64 {
        match name {
            Some(name) => {
                let owner = self.owner(name.hash());
                let answer = self.ask(owner, |reply| Message::Retry(Some(name), reply));
                answer.await.unwrap_or(0)
            }
            None => {
                let answers = self.ask_all(|reply| Message::Retry(None, reply)).await;
                answers.into_iter().sum()
            }
        }
    }

    /// Gives up a block that is quarantined or in conflict.
    pub async fn abandon(&self, name: ObjectName) -> Result<(), AbandonError> {
        let owner = self.owner(name.hash());
        let answer = self.ask(owner, |reply| Message::Abandon(name, reply));
        answer.await.unwrap_or(Err(AbandonError::Disk))
    }

    /// A dirty block's object, verified; `None` if nothing dirty has this name.
    pub async fn export(&self, name: ObjectName) -> Result<Option<Exported>, ReadError> {
        let owner = self.owner(name.hash());
        let answer = self.ask(owner, |reply| Message::Export(name, reply));
        answer
            .await
            .unwrap_or_else(|| Err(ReadError::Store(core_gone())))
    }

    /// Takes no new dirty blocks on any core, or takes them again.
    pub async fn set_draining(&self, draining: bool) {
        self.ask_all(|reply| Message::SetDraining(draining, reply))
            .await;
    }

    /// Makes all that was acknowledged durable, and ends all waits before uploads that are not
    /// the store's wish.
    pub async fn hurry(&self) {
        self.ask_all(Message::Hurry).await;
    }
}
