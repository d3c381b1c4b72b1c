//! A core's way to the stores: two bounded queues to a companion thread, where stores run.
//!
//! The core's side is [`Uplink`]: it never touches a socket or waits for more than a queue. The
//! companion's side is [`serve`]: it runs the stores' futures, fetches and uploads with separate
//! limits, so that a backlog of uploads never delays a fetch. Neither side shares a lock. The
//! companion is tied to no client: what a fetch returns ends with the queue it is read from.

use crate::buffer::View;
use crate::histogram::Histogram;
use crate::listing::{ListPage, ListRequest};
use crate::multipart::{
    CompleteRequest, CopyPartRequest, CopyRequest, PartRequest, PartsPage, PartsRequest,
    UploadName, UploadsPage, UploadsRequest,
};
use crate::queue::{self, Receiver, Sender};
use crate::runtime::Runtime;
use crate::store::{
    Attempts, ByteSpan, GetReply, GetRequest, ObjectHead, ObjectMeta, PutBody, PutReply,
    PutRequest, Store, StoreError, StoreErrorKind, StoreResult,
};
use crate::tags::Tags;
use crate::versions::{Deleted, VersionName, Versioning, VersionsPage, VersionsRequest};
use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

/// Orders that may wait per lane and core. Beyond it, those who order wait: the bound on memory
/// is the buffers that they hold, so this only has to cover the companion's reaction time.
const LANE_CAPACITY: usize = 256;

/// Pieces of one body between companion and core: enough that the companion reads on while the core
/// copies. A fetch counts as in flight until the last is taken, or bodies would pile up here
/// whenever block buffers are short.
const BODY_PIECES_MAX: usize = 3;

/// Largest piece of a body, bytes: what the HTTP client reads at once at most. A smaller piece may
/// keep that much memory.
const PIECE_BYTES_MAX: usize = 408 << 10;

/// The most memory that a fetch holds outside block buffers, bytes: its pieces, the one that the
/// client is reading, and TLS records.
pub const FETCH_BYTES_MAX: usize = (BODY_PIECES_MAX + 1) * PIECE_BYTES_MAX + (64 << 10);

/// Stores by volume number. Each companion builds its own from plain descriptions.
pub type StoreTable = Vec<Rc<dyn Store>>;

/// Makes a companion's stores, on the companion's thread.
pub type StoreFactory = Box<dyn FnOnce() -> StoreTable + Send>;

/// How much a companion does at once.
#[derive(Clone, Copy, Debug)]
pub struct UplinkLimits {
    /// GET, HEAD and list requests in flight.
    pub fetches_max: usize,
    /// PUT and DELETE requests in flight.
    pub uploads_max: usize,
}

/// A successful fetch: the head, and the body as it arrives.
pub struct Fetched {
    /// The whole object's description.
    pub meta: ObjectMeta,
    /// The bytes that the body holds.
    pub span: ByteSpan,
    /// Pieces in order. Ends early (`None` before `span.len()` bytes) only if the companion died;
    /// readers count.
    pub body: Receiver<StoreResult<Bytes>>,
}

/// A body on its way out.
pub enum UploadBody {
    /// In memory, shared with whoever else reads it.
    Whole(Vec<View>),
    /// As it arrives from a client. Dropping the sender early fails the upload.
    Stream(Receiver<StoreResult<Bytes>>),
}

/// What to write.
pub struct Upload {
    /// Key inside the volume.
    pub key: String,
    /// Exact length, bytes.
    pub length: u64,
    /// Headers that belong to the object.
    pub headers: Vec<(String, String)>,
    /// CRC64-NVME of the body where known.
    pub crc64nvme: Option<u64>,
    /// Write only if the key is free.
    pub if_none_match: bool,
    /// Write only over the object of this ETag; as in [`PutRequest`].
    pub if_match: Option<String>,
    /// How often a body in memory may be sent.
    pub attempts: Attempts,
    /// The body.
    pub body: UploadBody,
}

/// A part to write; as [`PartRequest`].
pub struct PartUpload {
    /// The upload.
    pub upload: UploadName,
    /// Its number.
    pub number: u32,
    /// Exact length, bytes.
    pub length: u64,
    /// Checksums that the client gave before the body, as `x-amz-checksum-*` headers.
    pub headers: Vec<(String, String)>,
    /// CRC64-NVME of the body where known.
    pub crc64nvme: Option<u64>,
    /// How often a body in memory may be sent.
    pub attempts: Attempts,
    /// The body.
    pub body: UploadBody,
}

/// What the companion does with a volume's store, or with the error that there is none.
type Work = Box<dyn FnOnce(StoreResult<Rc<dyn Store>>) -> LocalBoxFuture<'static, ()> + Send>;

/// Work with the store of a volume, by its number.
struct Order {
    volume: u32,
    work: Work,
}

/// A future of what a store answers.
type Answer<T> = LocalBoxFuture<'static, StoreResult<T>>;

/// Store requests counted by verb and outcome (an HTTP status or an error kind), and their times
/// to the head of the answer.
#[derive(Default)]
pub struct UplinkStats {
    /// `(verb, outcome) → requests`.
    pub requests: RefCell<BTreeMap<(&'static str, String), u64>>,
    /// Time from the order to the head of the answer, queueing included.
    pub latency: Histogram,
}

/// A core's end. Clones share the queues.
#[derive(Clone)]
pub struct Uplink<R: Runtime> {
    runtime: R,
    fetches: Sender<Order>,
    uploads: Sender<Order>,
    factories: Sender<StoreFactory>,
    stats: Rc<UplinkStats>,
}

/// The core's queues before they reach their core's thread.
pub struct UplinkPort {
    fetches: Sender<Order>,
    uploads: Sender<Order>,
    factories: Sender<StoreFactory>,
}

/// The companion's end.
pub struct CompanionPort {
    fetches: Receiver<Order>,
    uploads: Receiver<Order>,
    factories: Receiver<StoreFactory>,
}

/// Makes the two ends of one core's uplink.
pub fn pair() -> (UplinkPort, CompanionPort) {
    let (fetch_sender, fetch_receiver) = queue::bounded(LANE_CAPACITY);
    let (upload_sender, upload_receiver) = queue::bounded(LANE_CAPACITY);
    let (factory_sender, factory_receiver) = queue::bounded(1);
    (
        UplinkPort {
            fetches: fetch_sender,
            uploads: upload_sender,
            factories: factory_sender,
        },
        CompanionPort {
            fetches: fetch_receiver,
            uploads: upload_receiver,
            factories: factory_receiver,
        },
    )
}

fn companion_gone() -> StoreError {
    StoreError::new(
        StoreErrorKind::Internal,
        "the core's companion thread is gone",
    )
}

impl UplinkPort {
    /// The core's end, on the core's thread.
    pub fn attach<R: Runtime>(self, runtime: R) -> Uplink<R> {
        Uplink {
            runtime,
            fetches: self.fetches,
            uploads: self.uploads,
            factories: self.factories,
            stats: Rc::default(),
        }
    }
}

impl<R: Runtime> Uplink<R> {
    /// Counters of this core's store requests.
    pub fn stats(&self) -> &UplinkStats {
        &self.stats
    }

    /// Orders waiting for the companion: fetches, uploads.
    pub fn backlog(&self) -> (usize, usize) {
        (self.fetches.len(), self.uploads.len())
    }

    /// Replaces the companion's stores; requests in flight end with the old ones.
    pub async fn replace_stores(&self, factory: StoreFactory) {
        // A companion that is gone fails every later order, which says so.
        let _ = self.factories.send(factory).await;
    }

    /// Reads an object or a span of it.
    pub async fn get(&self, volume: u32, request: GetRequest) -> StoreResult<Fetched> {
        let success = if request.span.is_some() { 206 } else { 200 };
        let lane = &self.fetches;
        self.order("GET", success, lane, volume, |reply| {
            Box::new(|store| {
                Box::pin(async move {
                    match store {
                        Ok(store) => fetch(store, request, reply).await,
                        Err(e) => drop(reply.send(Err(e))),
                    }
                })
            })
        })
        .await
    }

    /// Describes an object.
    pub async fn head(&self, volume: u32, key: String) -> StoreResult<ObjectHead> {
        self.ask(Verb("HEAD", 200), volume, |store| {
            Box::pin(async move { store.head(key).await })
        })
        .await
    }

    /// Writes an object.
    pub async fn put(&self, volume: u32, upload: Upload) -> StoreResult<PutReply> {
        self.tell(Verb("PUT", 200), volume, |store| {
            Box::pin(async move { store.put(into_request(upload)).await })
        })
        .await
    }

    /// Removes an object.
    pub async fn delete(&self, volume: u32, key: String) -> StoreResult<Deleted> {
        self.tell(Verb("DELETE", 204), volume, |store| {
            Box::pin(async move { store.delete(key).await })
        })
        .await
    }

    /// Lists objects.
    pub async fn list(&self, volume: u32, request: ListRequest) -> StoreResult<ListPage> {
        self.ask(Verb("LIST", 200), volume, |store| {
            Box::pin(async move { store.list(request).await })
        })
        .await
    }

    /// Copies an object inside its store.
    pub async fn copy(&self, volume: u32, request: CopyRequest) -> StoreResult<PutReply> {
        self.tell(Verb("COPY", 200), volume, |store| {
            Box::pin(async move { store.copy(request).await })
        })
        .await
    }

    /// Begins an upload in parts.
    pub async fn create_upload(
        &self,
        volume: u32,
        key: String,
        headers: Vec<(String, String)>,
    ) -> StoreResult<UploadName> {
        self.tell(Verb("CREATE_UPLOAD", 200), volume, |store| {
            Box::pin(async move { store.create_upload(key, headers).await })
        })
        .await
    }

    /// Writes a part.
    pub async fn put_part(&self, volume: u32, part: PartUpload) -> StoreResult<PutReply> {
        self.tell(Verb("PUT_PART", 200), volume, |store| {
            Box::pin(async move { store.put_part(into_part_request(part)).await })
        })
        .await
    }

    /// Copies a part inside its store.
    pub async fn copy_part(&self, volume: u32, request: CopyPartRequest) -> StoreResult<PutReply> {
        self.tell(Verb("COPY_PART", 200), volume, |store| {
            Box::pin(async move { store.copy_part(request).await })
        })
        .await
    }

    /// Makes an object from its parts.
    pub async fn complete_upload(
        &self,
        volume: u32,
        request: CompleteRequest,
    ) -> StoreResult<PutReply> {
        self.tell(Verb("COMPLETE_UPLOAD", 200), volume, |store| {
            Box::pin(async move { store.complete_upload(request).await })
        })
        .await
    }

    /// Discards an upload and its parts.
    pub async fn abort_upload(&self, volume: u32, upload: UploadName) -> StoreResult<()> {
        self.tell(Verb("ABORT_UPLOAD", 204), volume, |store| {
            Box::pin(async move { store.abort_upload(upload).await })
        })
        .await
    }

    /// Lists the parts of an upload.
    pub async fn list_parts(&self, volume: u32, request: PartsRequest) -> StoreResult<PartsPage> {
        self.ask(Verb("LIST_PARTS", 200), volume, |store| {
            Box::pin(async move { store.list_parts(request).await })
        })
        .await
    }

    /// Lists uploads that are neither complete nor aborted.
    pub async fn list_uploads(
        &self,
        volume: u32,
        request: UploadsRequest,
    ) -> StoreResult<UploadsPage> {
        self.ask(Verb("LIST_UPLOADS", 200), volume, |store| {
            Box::pin(async move { store.list_uploads(request).await })
        })
        .await
    }

    /// The tags of an object.
    pub async fn tags(&self, volume: u32, key: String) -> StoreResult<Tags> {
        self.ask(Verb("TAGS", 200), volume, |store| {
            Box::pin(async move { store.tags(key).await })
        })
        .await
    }

    /// Replaces the tags of an object.
    pub async fn set_tags(&self, volume: u32, key: String, tags: Tags) -> StoreResult<()> {
        self.tell(Verb("SET_TAGS", 200), volume, |store| {
            Box::pin(async move { store.set_tags(key, tags).await })
        })
        .await
    }

    /// What the bucket does with versions.
    pub async fn versioning(&self, volume: u32) -> StoreResult<Versioning> {
        self.ask(Verb("VERSIONING", 200), volume, |store| {
            Box::pin(async move { store.versioning().await })
        })
        .await
    }

    /// Lets the bucket keep versions, or no more new ones.
    pub async fn set_versioning(&self, volume: u32, is_enabled: bool) -> StoreResult<()> {
        self.tell(Verb("SET_VERSIONING", 200), volume, move |store| {
            Box::pin(async move { store.set_versioning(is_enabled).await })
        })
        .await
    }

    /// Describes a version of an object.
    pub async fn head_version(&self, volume: u32, name: VersionName) -> StoreResult<ObjectHead> {
        self.ask(Verb("HEAD_VERSION", 200), volume, |store| {
            Box::pin(async move { store.head_version(name).await })
        })
        .await
    }

    /// Removes a version of an object for good.
    pub async fn delete_version(&self, volume: u32, name: VersionName) -> StoreResult<Deleted> {
        self.tell(Verb("DELETE_VERSION", 204), volume, |store| {
            Box::pin(async move { store.delete_version(name).await })
        })
        .await
    }

    /// The tags of a version of an object.
    pub async fn version_tags(&self, volume: u32, name: VersionName) -> StoreResult<Tags> {
        self.ask(Verb("TAGS", 200), volume, |store| {
            Box::pin(async move { store.version_tags(name).await })
        })
        .await
    }

    /// Replaces the tags of a version of an object.
    pub async fn set_version_tags(
        &self,
        volume: u32,
        name: VersionName,
        tags: Tags,
    ) -> StoreResult<()> {
        self.tell(Verb("SET_TAGS", 200), volume, |store| {
            Box::pin(async move { store.set_version_tags(name, tags).await })
        })
        .await
    }

    /// Lists versions.
    pub async fn list_versions(
        &self,
        volume: u32,
        request: VersionsRequest,
    ) -> StoreResult<VersionsPage> {
        self.ask(Verb("LIST_VERSIONS", 200), volume, |store| {
            Box::pin(async move { store.list_versions(request).await })
        })
        .await
    }

    /// Sends what reads, among the fetches.
    async fn ask<T: Send + 'static>(
        &self,
        verb: Verb,
        volume: u32,
        work: impl FnOnce(Rc<dyn Store>) -> Answer<T> + Send + 'static,
    ) -> StoreResult<T> {
        let Verb(name, success) = verb;
        self.order(name, success, &self.fetches, volume, answered(work))
            .await
    }

    /// Sends what changes the store, among the uploads.
    async fn tell<T: Send + 'static>(
        &self,
        verb: Verb,
        volume: u32,
        work: impl FnOnce(Rc<dyn Store>) -> Answer<T> + Send + 'static,
    ) -> StoreResult<T> {
        let Verb(name, success) = verb;
        self.order(name, success, &self.uploads, volume, answered(work))
            .await
    }

    async fn order<T>(
        &self,
        verb: &'static str,
        success: u16,
        lane: &Sender<Order>,
        volume: u32,
        work: impl FnOnce(oneshot::Sender<StoreResult<T>>) -> Work,
    ) -> StoreResult<T> {
        let start = self.runtime.now();
        let (reply, answer) = oneshot::channel();
        let work = work(reply);
        let result = match lane.send(Order { volume, work }).await {
            Err(_) => Err(companion_gone()),
            Ok(()) => answer.await.unwrap_or_else(|_| Err(companion_gone())),
        };
        let outcome = match &result {
            Ok(_) => success.to_string(),
            Err(e) => e
                .status
                .map_or_else(|| format!("{:?}", e.kind), |s| s.to_string()),
        };
        *self
            .stats
            .requests
            .borrow_mut()
            .entry((verb, outcome))
            .or_insert(0) += 1;
        self.stats.latency.record(self.runtime.now().since(start));
        result
    }
}

/// Starts a companion thread with a current-thread runtime; it ends when its core is gone and its
/// work is done.
pub fn spawn_companion(
    index: usize,
    port: CompanionPort,
    limits: UplinkLimits,
    factory: StoreFactory,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("forebay-uplink-{index}"))
        .spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                Ok(runtime) => runtime,
                Err(e) => {
                    // Dropping the port fails every order with "the companion thread is gone".
                    log::error!("cannot start the uplink runtime of core {index}: {e}");
                    return;
                }
            };
            runtime.block_on(async { serve(port, limits, factory()).await });
        })
}

/// Serves a core's orders until the core's end is dropped.
pub async fn serve(mut port: CompanionPort, limits: UplinkLimits, stores: StoreTable) {
    let mut stores = Rc::new(stores);
    let mut fetches: FuturesUnordered<LocalBoxFuture<'static, ()>> = FuturesUnordered::new();
    let mut uploads: FuturesUnordered<LocalBoxFuture<'static, ()>> = FuturesUnordered::new();
    poll_fn(|cx| {
        while let Poll::Ready(Some(factory)) = port.factories.poll_recv(cx) {
            stores = Rc::new(factory());
        }
        let lanes = [
            (&mut port.fetches, &mut fetches, limits.fetches_max),
            (&mut port.uploads, &mut uploads, limits.uploads_max),
        ];
        let mut finished = true;
        for (lane, active, active_max) in lanes {
            loop {
                while let Poll::Ready(Some(())) = active.poll_next_unpin(cx) {}
                if active.len() >= active_max {
                    finished = false;
                    break;
                }
                match lane.poll_recv(cx) {
                    Poll::Ready(Some(order)) => {
                        active.push((order.work)(store(&stores, order.volume)));
                    }
                    Poll::Ready(None) => {
                        finished &= active.is_empty();
                        break;
                    }
                    Poll::Pending => {
                        finished = false;
                        break;
                    }
                }
            }
        }
        if finished {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// A request's name in the statistics, and the status that its success counts as.
struct Verb(&'static str, u16);

/// Work that sends what the store answers to the core.
fn answered<T: Send + 'static>(
    work: impl FnOnce(Rc<dyn Store>) -> Answer<T> + Send + 'static,
) -> impl FnOnce(oneshot::Sender<StoreResult<T>>) -> Work {
    |reply| {
        Box::new(|store| {
            Box::pin(async move {
                let answer = match store {
                    Ok(store) => work(store).await,
                    Err(e) => Err(e),
                };
                // A receiver that is gone no longer wants the answer.
                drop(reply.send(answer));
            })
        })
    }
}

fn store(stores: &StoreTable, volume: u32) -> StoreResult<Rc<dyn Store>> {
    stores.get(volume as usize).cloned().ok_or_else(|| {
        StoreError::new(
            StoreErrorKind::Internal,
            format!("no store for volume number {volume}"),
        )
    })
}

async fn fetch(
    store: Rc<dyn Store>,
    request: GetRequest,
    reply: oneshot::Sender<StoreResult<Fetched>>,
) {
    let GetReply {
        meta,
        span,
        mut body,
    } = match store.get(request).await {
        Ok(answer) => answer,
        Err(e) => return drop(reply.send(Err(e))),
    };
    let (pieces, receiver) = queue::bounded(BODY_PIECES_MAX);
    if reply
        .send(Ok(Fetched {
            meta,
            span,
            body: receiver,
        }))
        .is_err()
    {
        return;
    }
    while let Some(piece) = body.next().await {
        let failed = piece.is_err();
        if pieces.send(piece).await.is_err() || failed {
            return;
        }
    }
    pieces.drained().await;
}

fn into_body(body: UploadBody) -> PutBody {
    match body {
        UploadBody::Whole(views) => {
            PutBody::Whole(views.into_iter().map(View::into_bytes).collect())
        }
        UploadBody::Stream(receiver) => PutBody::Stream(
            futures::stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.map(|piece| (piece, receiver))
            })
            .boxed_local(),
        ),
    }
}

fn into_part_request(part: PartUpload) -> PartRequest {
    PartRequest {
        upload: part.upload,
        number: part.number,
        length: part.length,
        headers: part.headers,
        crc64nvme: part.crc64nvme,
        attempts: part.attempts,
        body: into_body(part.body),
    }
}

fn into_request(upload: Upload) -> PutRequest {
    PutRequest {
        key: upload.key,
        length: upload.length,
        headers: upload.headers,
        crc64nvme: upload.crc64nvme,
        if_none_match: upload.if_none_match,
        if_match: upload.if_match,
        attempts: upload.attempts,
        body: into_body(upload.body),
    }
}
