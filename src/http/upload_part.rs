//! UploadPart: one part of an object, to the store and into the cache.
//!
//! A part is acknowledged when the store has it. Its blocks are cached as they come, under a name that
//! no client can say, so that the object is there when it is complete; memory is a few blocks whatever
//! the part's size. As with a PUT, the last piece is held back until the body's checksums hold.

use super::body::{Body, BodyError};
use super::connection::{Connection, Ended};
use super::digest::{ObjectChecksum, Verified};
use super::get::{core_label, quoted};
use super::head::Head;
use super::operation::PartName;
use super::put::{
    STREAM_PIECES_MAX, Signed, payload, read_block, refuse_conditions, refuse_unknown, send_split,
    take_buffer,
};
use super::reply::ErrorReply;
use super::{CoreContext, ObjectRequest, finish_with};
use bytes::Bytes;
use forebay_io::local::Permits;
use forebay_io::multipart::{PartsRequest, UploadName};
use forebay_io::queue::{self, Sender};
use forebay_io::runtime::Runtime;
use forebay_io::store::{Attempts, ObjectMeta, StoreError, StoreErrorKind, StoreResult};
use forebay_io::uplink::{PartUpload, UploadBody};
use forebay_shards::key::Volume;
use forebay_shards::messages::BlockPayload;
use forebay_shards::parts::{BodyName, NotedPart, Origin, Piece};
use std::rc::Rc;
use std::sync::Arc;

/// Blocks of a part on their way to disk. Each pins its buffer; a disk that is slower than the client
/// makes the client wait.
const KEEPING_MAX: usize = 3;

/// Serves UploadPart.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    part: &PartName,
    signed: Signed,
) -> Result<(), Ended> {
    let result = put_part(connection, head, object, part, signed).await;
    let stats = connection.context().stats();
    stats.write_times.record(connection.elapsed());
    match result {
        Ok(noted) => {
            connection.context().stats().bytes_in.add(noted.size);
            let mut reply = connection.reply(200);
            reply.header("etag", quoted(&noted.etag));
            if let Some((name, value)) = &noted.checksum {
                reply.header(name, value);
            }
            reply.header("x-forebay-write", "through");
            reply.header("x-forebay-core", core_label(connection, &object.block(0)));
            connection.respond(reply, b"").await
        }
        Err(BodyError::Refused(error)) => finish_with(connection, error, object).await,
        Err(BodyError::Ended(ended)) => Err(ended),
    }
}

async fn put_part(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    part: &PartName,
    signed: Signed,
) -> Result<NotedPart, BodyError> {
    refuse_unknown(head)?;
    refuse_conditions(head, "a part")?;
    let body = Body::of(head, signed.chunks)?;
    let context = connection.context().clone();
    let keeper = Keeper::new(&context, &object.volume, body.length());
    let result = if body.length() <= object.volume.block_bytes {
        put_whole(connection, body, object, part, &keeper).await
    } else {
        put_stream(connection, body, object, part, &keeper).await
    };
    match result {
        Ok((etag, checksum)) => Ok(keeper.note(object, part, etag, checksum).await),
        Err(error) => {
            keeper.discard();
            Err(error)
        }
    }
}

/// A part of at most a block: the store hears of it when all of it is verified.
async fn put_whole(
    connection: &mut Connection,
    mut body: Body,
    object: &ObjectRequest,
    part: &PartName,
    keeper: &Keeper,
) -> Result<(String, Option<ObjectChecksum>), BodyError> {
    let length = body.length();
    let buffer = take_buffer(connection, length).await?;
    let (buffer, checksums) = read_block(connection, &mut body, length, buffer, None).await?;
    let (crc64nvme, chunk_crcs) = checksums.finish();
    let Verified { checksum, .. } = body.finish(connection).await?;
    let view = buffer.watch().view_all();
    let block = payload(buffer, crc64nvme, chunk_crcs);
    let upload = PartUpload {
        crc64nvme: Some(crc64nvme),
        ..upload_of(object, part, length, UploadBody::Whole(vec![view]))
    };
    let router = &connection.context().router;
    let putting = router.put_part(&object.volume, upload);
    let (reply, ()) = futures::join!(putting, keeper.keep(block));
    match reply {
        Ok(reply) => Ok((reply.etag, checksum)),
        Err(error) => Err(refusal(connection, object, part, error).await.into()),
    }
}

/// What the client is told of a part that the store did not take. A store may refuse while it is still
/// sent the body, and close the connection before its reason is read: then it is asked for that.
async fn refusal(
    connection: &Connection,
    object: &ObjectRequest,
    part: &PartName,
    error: StoreError,
) -> ErrorReply {
    if error.kind != StoreErrorKind::Corrupt || error.status != Some(404) {
        return ErrorReply::from(&error);
    }
    let request = PartsRequest {
        upload: UploadName {
            key: object.key.to_string(),
            upload_id: part.upload_id.clone(),
        },
        after: 0,
        limit: 1,
    };
    let router = &connection.context().router;
    match router.list_parts(&object.volume, request).await {
        Err(reason) if reason.kind == StoreErrorKind::NoSuchUpload => ErrorReply::from(&reason),
        _ => ErrorReply::from(&error),
    }
}

/// A larger part: block by block to the store, and into the cache.
async fn put_stream(
    connection: &mut Connection,
    body: Body,
    object: &ObjectRequest,
    part: &PartName,
    keeper: &Keeper,
) -> Result<(String, Option<ObjectChecksum>), BodyError> {
    let (sender, receiver) = queue::bounded(STREAM_PIECES_MAX);
    let upload = upload_of(object, part, body.length(), UploadBody::Stream(receiver));
    let context = connection.context().clone();
    let putting = context.router.put_part(&object.volume, upload);
    let reading = stream_blocks(connection, body, sender, keeper);
    match futures::join!(putting, reading) {
        // A client that broke off, or sent a bad body, matters more than the store's view of it.
        (_, Err(error)) => Err(error),
        (Err(error), Ok(_)) => Err(refusal(connection, object, part, error).await.into()),
        (Ok(reply), Ok(checksum)) => Ok((reply.etag, checksum)),
    }
}

/// A part on its way to the store.
pub(super) fn upload_of(
    object: &ObjectRequest,
    part: &PartName,
    length: u64,
    body: UploadBody,
) -> PartUpload {
    PartUpload {
        upload: UploadName {
            key: object.key.to_string(),
            upload_id: part.upload_id.clone(),
        },
        number: part.number,
        length,
        // Verified here. To the store they would mean that all of the upload's parts have them.
        headers: Vec::new(),
        crc64nvme: None,
        attempts: Attempts::StorePolicy,
        body,
    }
}

async fn stream_blocks(
    connection: &mut Connection,
    mut body: Body,
    sender: Sender<StoreResult<Bytes>>,
    keeper: &Keeper,
) -> Result<Option<ObjectChecksum>, BodyError> {
    loop {
        let bytes = body.left().min(keeper.volume.block_bytes);
        let buffer = take_buffer(connection, bytes).await?;
        let (buffer, checksums) = read_block(connection, &mut body, bytes, buffer, None).await?;
        let (crc64nvme, chunk_crcs) = checksums.finish();
        let piece = buffer.watch().view_all().into_bytes();
        let block = payload(buffer, crc64nvme, chunk_crcs);
        if body.left() == 0 {
            // The last piece completes the part: not before its checksums hold.
            let Verified { checksum, .. } = body.finish(connection).await?;
            let _ = sender.send(Ok(piece)).await;
            keeper.keep(block).await;
            return Ok(checksum);
        }
        if send_split(&sender, piece).await.is_err() {
            // The store has answered already, with an error that the caller will see.
            connection.close_after();
            return Ok(None);
        }
        keeper.keep(block).await;
    }
}

/// Caches the blocks of a part's body while it is on its way.
pub(super) struct Keeper {
    context: Rc<CoreContext>,
    volume: Arc<Volume>,
    name: BodyName,
    meta: Arc<ObjectMeta>,
    /// Taken by each block until it is on disk.
    keeping: Permits,
    next: std::cell::Cell<u64>,
}

impl Keeper {
    /// For a body of `size` bytes.
    pub(super) fn new(context: &Rc<CoreContext>, volume: &Arc<Volume>, size: u64) -> Keeper {
        Keeper {
            context: context.clone(),
            volume: volume.clone(),
            name: context.router.name_body(),
            meta: Arc::new(BodyName::meta(size)),
            keeping: Permits::new(KEEPING_MAX),
            next: std::cell::Cell::default(),
        }
    }

    /// Caches the next block; waits while too many are on their way to disk.
    pub(super) async fn keep(&self, block: BlockPayload) {
        let number = self.next.replace(self.next.get() + 1);
        if block.buffer.filled() == 0 {
            return;
        }
        let permit = self.keeping.acquire().await;
        let (context, volume) = (self.context.clone(), self.volume.clone());
        let (name, meta) = (self.name, self.meta.clone());
        self.context.runtime.spawn(async move {
            let router = &context.router;
            router.insert_body(name, &volume, number, meta, block).await;
            drop(permit);
        });
    }

    /// Waits until all blocks are on disk.
    async fn settle(&self) {
        let all = (0..KEEPING_MAX).map(|_| self.keeping.acquire());
        futures::future::join_all(all).await;
    }

    /// Tells the object's home that the store has the part, and where its bytes are.
    pub(super) async fn note(
        &self,
        object: &ObjectRequest,
        part: &PartName,
        etag: String,
        checksum: Option<ObjectChecksum>,
    ) -> NotedPart {
        self.settle().await;
        let size = self.meta.size;
        let noted = NotedPart {
            number: part.number,
            etag,
            size,
            checksum,
            piece: Some(Piece {
                origin: Origin::Body(self.name),
                size,
                start: 0,
            }),
        };
        let router = &self.context.router;
        router
            .note_part(&object.block(0), &part.upload_id, noted.clone())
            .await;
        noted
    }

    /// Forgets what was cached: it became no part.
    pub(super) fn discard(self) {
        let runtime = self.context.runtime.clone();
        runtime.spawn(async move {
            self.settle().await;
            let router = &self.context.router;
            router
                .discard_body(self.name, &self.volume, self.meta.size)
                .await;
        });
    }
}
