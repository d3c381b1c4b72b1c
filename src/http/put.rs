//! `PUT` and `DELETE` of an object.
//!
//! A body is read once, straight into block buffers, and checksummed on the way. One of at most a
//! block is verified before the cache or the store hears of it; a larger one streams to the store,
//! its last piece held back until its checksums hold, so that a bad body never becomes an object.

use super::body::{Body, BodyError};
use super::connection::{Connection, Ended};
use super::digest::{ObjectChecksum, Verified, check_md5, crc64nvme_header};
use super::get::{core_label, quoted};
use super::head::Head;
use super::limits::{PUT_BLOCKS_KEPT_MAX, SEND_BYTES_MAX};
use super::md5_queue::BodyMd5;
use super::reply::{ErrorReply, ReplyHead};
use super::sigv4::ChunkVerifier;
use super::{ObjectRequest, finish_with};
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use forebay_io::buffer::BufferWriter;
use forebay_io::queue::{self, Sender};
use forebay_io::runtime::Runtime;
use forebay_io::store::{StoreError, StoreErrorKind, StoreResult};
use forebay_io::versions::Deleted;
use forebay_shards::format::PayloadChecksums;
use forebay_shards::messages::{
    BlockPayload, LateFacts, PutObject, PutSource, WriteCondition, WriteError, Written,
};
use futures::channel::oneshot;

/// Bytes read from the client at once.
const READ_BYTES: usize = 256 << 10;

/// Bytes received at a stretch before others on the core have their turn: half a millisecond.
const PAUSE_BYTES: usize = 512 << 10;

/// Pieces of a streamed body on their way to the store. Each pins its block's buffer, so this
/// bounds a large PUT to a few blocks whatever its size.
pub(super) const STREAM_PIECES_MAX: usize = 4;

/// Request headers that belong to the object, beside `x-amz-meta-*`.
const OBJECT_HEADERS: [&str; 6] = [
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
];

/// Request headers whose meaning we do not carry to the store. Ignoring one would be a success
/// that is none.
const REFUSED_HEADERS: [&str; 16] = [
    "content-range",
    "if-modified-since",
    "if-unmodified-since",
    "x-amz-grant-write",
    "x-amz-tagging",
    "x-amz-grant-read",
    "x-amz-grant-read-acp",
    "x-amz-grant-write-acp",
    "x-amz-grant-full-control",
    "x-amz-website-redirect-location",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-object-lock-legal-hold",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-write-offset-bytes",
];

/// Header that says of what a checksum is.
pub(super) const CHECKSUM_TYPE: &str = "x-amz-checksum-type";

/// A checksum of all of an object's bytes.
pub(super) const WHOLE_CHECKSUM: &str = "FULL_OBJECT";

/// Says that a deletion put a marker in the object's place, or took one away.
pub(super) const DELETE_MARKER: &str = "x-amz-delete-marker";

/// Most bytes of user metadata, names and values (S3's limit).
const USER_METADATA_BYTES_MAX: usize = 2 << 10;

/// How a write came to be asked for.
pub struct Signed {
    /// Whether the request was signed: clients that sign are S3's, and are told what S3 would tell.
    pub is_signed: bool,
    /// Whether the ETag of what is written back is to be its MD5.
    pub wants_md5: bool,
    /// Verifies the body's chunks, if they are signed.
    pub chunks: Option<ChunkVerifier>,
}

/// Serves `PUT`.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    signed: Signed,
) -> Result<(), Ended> {
    let result = put(connection, head, object, signed).await;
    connection
        .context()
        .stats()
        .write_times
        .record(connection.elapsed());
    match result {
        Ok((written, checksum)) => {
            let (meta, is_dirty) = (&written.meta, written.is_dirty);
            let mut reply = connection.reply(200);
            version_header(&mut reply, written.version_id.as_deref());
            reply.header("etag", quoted(&meta.etag));
            if let Some((name, value)) = checksum {
                reply.header(&name, value);
                reply.header(CHECKSUM_TYPE, WHOLE_CHECKSUM);
            }
            reply.header("x-forebay-write", if is_dirty { "back" } else { "through" });
            reply.header("x-forebay-core", core_label(connection, &object.block(0)));
            connection.respond(reply, b"").await
        }
        Err(BodyError::Refused(error)) => finish_with(connection, error, object).await,
        Err(BodyError::Ended(ended)) => Err(ended),
    }
}

/// Tells the version that an answer is about, if it is about one.
pub(super) fn version_header(reply: &mut ReplyHead, version_id: Option<&str>) {
    if let Some(version_id) = version_id {
        reply.header("x-amz-version-id", version_id);
    }
}

/// What was deleted, as the answer's head says it.
pub(super) fn deleted_headers(reply: &mut ReplyHead, deleted: &Deleted) {
    version_header(reply, deleted.version_id.as_deref());
    if deleted.is_marker {
        reply.header(DELETE_MARKER, "true");
    }
}

/// Writes the object; returns what was written, and the checksum that it has from now on.
async fn put(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    signed: Signed,
) -> Result<(Written, Option<ObjectChecksum>), BodyError> {
    refuse_unknown(head)?;
    let mut body = Body::of(head, signed.chunks)?;
    let is_whole = body.length() <= object.volume.block_bytes;
    let told_md5 = if is_whole { body.take_md5() } else { None };
    let is_etag_md5 = signed.wants_md5 && is_whole && object.volume.writeback;
    let announced = body.checks().announced();
    let (late, facts) = oneshot::channel();
    let mut headers = object_headers(head)?;
    headers.extend(announced.clone());
    let request = PutObject {
        id: object.block(0),
        headers,
        late: facts,
        length: 0,
        condition: condition(head)?,
        source: PutSource::Stream(queue::bounded(1).1),
    };
    let incoming = Incoming {
        // Whoever gives a checksum is not given another.
        gives_checksum: signed.is_signed && !body.checks().has_object_checksum(),
        is_announced: announced.is_some(),
        wants_md5: is_etag_md5 || told_md5.is_some(),
        told_md5,
        body,
        late,
    };
    let (written, checksum) = if is_whole {
        put_whole(connection, incoming, request).await?
    } else {
        put_stream(connection, incoming, request, object).await?
    };
    connection.context().stats().bytes_in.add(written.meta.size);
    Ok((written, checksum))
}

/// A body on its way, and where its checksum goes.
struct Incoming {
    body: Body,
    /// Whether the object gets a CRC64-NVME, as S3 gives one to objects that come without a checksum.
    gives_checksum: bool,
    /// Whether its writer knows the checksum from the start.
    is_announced: bool,
    /// Whether the MD5 of all of it is computed apart.
    wants_md5: bool,
    /// The MD5 that the client told of it, if it is computed apart.
    told_md5: Option<Vec<u8>>,
    /// Where what is known with a body's last byte goes before that byte does.
    late: oneshot::Sender<LateFacts>,
}

impl Incoming {
    /// Reads and verifies what follows the object's bytes, of which `crc64nvme` is the checksum, and
    /// tells the object's checksum to whoever writes it.
    async fn finish(
        self,
        connection: &mut Connection,
        crc64nvme: u64,
        md5: Option<[u8; 16]>,
    ) -> Result<Option<ObjectChecksum>, BodyError> {
        let Verified {
            checksum,
            md5: told_md5,
        } = self.body.finish(connection).await?;
        if let (Some(told), Some(found)) = (&self.told_md5, &md5) {
            check_md5(told, found)?;
        }
        let md5 = md5.map(hex::encode).or(told_md5);
        let given = self.gives_checksum.then(|| crc64nvme_header(crc64nvme));
        let checksum = checksum.or(given);
        let unknown = checksum.clone().filter(|_| !self.is_announced);
        let headers = unknown.into_iter().collect();
        // Whoever waited for it has an error to tell.
        let _ = self.late.send(LateFacts { headers, md5 });
        Ok(checksum)
    }
}

pub(super) fn refuse_unknown(head: &Head) -> Result<(), ErrorReply> {
    if let Some(name) = REFUSED_HEADERS.iter().find(|name| head.has(name)) {
        return Err(ErrorReply::not_implemented(&format!("the header {name}")));
    }
    // A key of somebody's own would be a promise that we cannot keep.
    match head.header("x-amz-server-side-encryption") {
        None | Some("AES256") => {}
        Some(kind) => {
            let what = format!("the server-side encryption {kind:?}");
            return Err(ErrorReply::not_implemented(&what));
        }
    }
    match head.header("x-amz-storage-class") {
        None | Some("STANDARD") => {}
        Some(class) => {
            let what = format!("the storage class {class:?}");
            return Err(ErrorReply::not_implemented(&what));
        }
    }
    match head.header("x-amz-acl") {
        None | Some("private" | "bucket-owner-full-control") => Ok(()),
        Some(acl) => Err(ErrorReply::not_implemented(&format!("the ACL {acl:?}"))),
    }
}

/// Refuses a condition where none is judged: it must not be taken for one that holds.
pub(super) fn refuse_conditions(head: &Head, operation: &str) -> Result<(), ErrorReply> {
    match WRITE_CONDITIONS.iter().find(|name| head.has(name)) {
        None => Ok(()),
        Some(name) => Err(ErrorReply::not_implemented(&format!(
            "{name} on {operation}"
        ))),
    }
}

/// Conditions that a write may have.
const WRITE_CONDITIONS: [&str; 6] = [
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "x-amz-if-match-last-modified-time",
    "x-amz-if-match-size",
];

/// What a write is only to be done if.
pub(super) fn condition(head: &Head) -> Result<WriteCondition, ErrorReply> {
    let one = |name: &'static str| {
        let mut values = head.values(name);
        let value = values.next().map(str::trim);
        let is_one = values.next().is_none() && value.is_some() == head.has(name);
        let refusal = || ErrorReply::not_implemented(&format!("{name} of this kind on a write"));
        is_one.then_some(value).ok_or_else(refusal)
    };
    match (one("if-none-match")?, one("if-match")?) {
        (None, None) => Ok(WriteCondition::Always),
        (Some("*"), None) => Ok(WriteCondition::Free),
        (Some(_), None) => Err(ErrorReply::not_implemented(
            "If-None-Match other than * on a write",
        )),
        (None, Some(tag)) => version(tag),
        (Some(_), Some(_)) => Err(ErrorReply::not_implemented(
            "If-Match beside If-None-Match on a write",
        )),
    }
}

/// The version of one ETag, with its quotes or without.
pub(super) fn version(tag: &str) -> Result<WriteCondition, ErrorReply> {
    let bare = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    let bare = bare.unwrap_or(tag);
    let is_list = bare.contains(['"', ',', ' ']) || tag.starts_with("W/");
    match is_list || matches!(bare, "" | "*") {
        true => Err(ErrorReply::not_implemented(
            "If-Match other than one strong ETag on a write",
        )),
        false => Ok(WriteCondition::Version(bare.to_owned())),
    }
}

/// The headers that are kept with the object.
pub(super) fn object_headers(head: &Head) -> Result<Vec<(String, String)>, ErrorReply> {
    let mut kept = Vec::new();
    let mut user_bytes = 0;
    for (name, value) in &head.headers {
        let user = name.starts_with("x-amz-meta-");
        if !user && !OBJECT_HEADERS.contains(&name.as_ref()) {
            continue;
        }
        let value = std::str::from_utf8(value).map_err(|_| {
            ErrorReply::new(
                400,
                "InvalidArgument",
                format!("the header {name} is not UTF-8"),
            )
        })?;
        let mut value = value.to_owned();
        if user {
            user_bytes += name.len() - "x-amz-meta-".len() + value.len();
        }
        if name == "content-encoding" {
            let codings = value.split(',').map(str::trim);
            let real = codings.filter(|coding| !coding.eq_ignore_ascii_case("aws-chunked"));
            value = real.collect::<Vec<_>>().join(",");
            if value.is_empty() {
                continue;
            }
        }
        kept.push((name.to_string(), value));
    }
    if user_bytes > USER_METADATA_BYTES_MAX {
        let message = format!("user metadata has at most {USER_METADATA_BYTES_MAX} bytes");
        return Err(ErrorReply::new(400, "MetadataTooLarge", message));
    }
    Ok(kept)
}

pub(super) async fn take_buffer(
    connection: &Connection,
    bytes: u64,
) -> Result<BufferWriter, ErrorReply> {
    let core = connection.context().router.core();
    core.take_buffer(bytes as usize)
        .await
        .map_err(ErrorReply::from)
}

/// Reads one block's worth of the body.
pub(super) async fn read_block(
    connection: &mut Connection,
    body: &mut Body,
    bytes: u64,
    buffer: BufferWriter,
    md5: Option<&BodyMd5>,
) -> Result<(BufferWriter, PayloadChecksums), BodyError> {
    connection.set_in_turn(true);
    let filled = fill_block(connection, body, bytes, buffer, md5).await;
    connection.set_in_turn(false);
    filled
}

async fn fill_block(
    connection: &mut Connection,
    body: &mut Body,
    bytes: u64,
    mut buffer: BufferWriter,
    md5: Option<&BodyMd5>,
) -> Result<(BufferWriter, PayloadChecksums), BodyError> {
    let mut checksums = PayloadChecksums::default();
    let runtime = connection.context().runtime.clone();
    let mut next_pause = PAUSE_BYTES;
    while (buffer.filled() as u64) < bytes {
        let room = (bytes as usize - buffer.filled()).min(READ_BYTES);
        let count = body
            .read(connection, &mut buffer.spare_mut()[..room])
            .await?;
        checksums.update(&buffer.spare_mut()[..count]);
        buffer.advance(count);
        if buffer.filled() >= next_pause {
            // Whoever writes it to disk, or serves others, need not wait for the whole block.
            next_pause += PAUSE_BYTES;
            if let Some(md5) = md5 {
                md5.progress();
            }
            runtime.yield_now().await;
        } else if body.is_pause_due(PAUSE_BYTES) {
            runtime.yield_now().await;
        }
    }
    Ok((buffer, checksums))
}

/// A whole block, from its bytes and what they were checksummed to.
pub(super) fn payload(
    mut buffer: BufferWriter,
    crc64nvme: u64,
    chunk_crcs: Vec<u32>,
) -> BlockPayload {
    buffer.finish();
    BlockPayload {
        buffer,
        crc64nvme,
        chunk_crcs,
    }
}

/// Takes an object of at most one block: all of it is verified before the store hears of it, and
/// before a record of it begins. The home may write its bytes to disk while they come.
async fn put_whole(
    connection: &mut Connection,
    mut incoming: Incoming,
    request: PutObject,
) -> Result<(Written, Option<ObjectChecksum>), BodyError> {
    let length = incoming.body.length();
    let buffer = take_buffer(connection, length).await?;
    let (sender, complete) = oneshot::channel();
    let request = PutObject {
        length,
        source: PutSource::Arriving(buffer.watch(), complete),
        ..request
    };
    let context = connection.context().clone();
    let write = context.router.put(request);
    let runtime = context.runtime.clone();
    let md5 = incoming.wants_md5.then(|| context.md5s.add(buffer.watch()));
    let read = async move {
        let (buffer, checksums) =
            read_block(connection, &mut incoming.body, length, buffer, md5.as_ref()).await?;
        let (crc64nvme, chunk_crcs) = checksums.finish();
        let md5 = match md5 {
            Some(body) => Some(body.finish(&runtime).await),
            None => None,
        };
        let checksum = incoming.finish(connection, crc64nvme, md5).await?;
        // Whoever waited for it has an error to tell.
        let _ = sender.send(payload(buffer, crc64nvme, chunk_crcs));
        Ok(checksum)
    };
    match futures::join!(write, read) {
        // A client that broke off, or sent a bad body, matters more than what became of the write.
        (_, Err(error)) => Err(error),
        (Ok(written), Ok(checksum)) => Ok((written, checksum)),
        (Err(error), Ok(_)) => Err(BodyError::Refused(error.into())),
    }
}

/// Takes a larger object: block by block to the store, the first few kept for the cache.
async fn put_stream(
    connection: &mut Connection,
    incoming: Incoming,
    mut request: PutObject,
    object: &ObjectRequest,
) -> Result<(Written, Option<ObjectChecksum>), BodyError> {
    let (sender, receiver) = queue::bounded(STREAM_PIECES_MAX);
    request.length = incoming.body.length();
    request.source = PutSource::Stream(receiver);
    let context = connection.context().clone();
    let write = context.router.put(request);
    let read = stream_blocks(connection, incoming, sender, object.volume.block_bytes);
    let (written, streamed) = futures::join!(write, read);
    let (written, streamed) = match (written, streamed) {
        // A client that broke off, or sent a bad body, matters more than the store's view of it.
        (_, Err(error)) => return Err(error),
        (Err(error), Ok(_)) => return Err(BodyError::Refused(ErrorReply::from(error))),
        (Ok(written), Ok(streamed)) => (written, streamed),
    };
    for (number, block) in streamed.kept.into_iter().enumerate() {
        context
            .router
            .insert(object.block(number as u64), written.meta.clone(), block)
            .await;
    }
    Ok((written, streamed.checksum))
}

/// What came of a body that was passed on.
#[derive(Default)]
struct Streamed {
    /// The blocks to be cached, or none if there are too many.
    kept: Vec<BlockPayload>,
    checksum: Option<ObjectChecksum>,
}

/// Reads blocks and passes them on.
async fn stream_blocks(
    connection: &mut Connection,
    mut incoming: Incoming,
    sender: Sender<StoreResult<Bytes>>,
    block_bytes: u64,
) -> Result<Streamed, BodyError> {
    let keep = incoming.body.length().div_ceil(block_bytes) <= PUT_BLOCKS_KEPT_MAX as u64;
    let mut streamed = Streamed::default();
    let mut object_crc = 0;
    loop {
        let bytes = incoming.body.left().min(block_bytes);
        let buffer = take_buffer(connection, bytes).await?;
        let (buffer, checksums) =
            read_block(connection, &mut incoming.body, bytes, buffer, None).await?;
        let (crc64nvme, chunk_crcs) = checksums.finish();
        object_crc = join_crc64nvme(object_crc, crc64nvme, bytes);
        let piece = buffer.watch().view_all().into_bytes();
        if incoming.body.left() == 0 {
            // The last piece completes the object: not before its checksums hold.
            streamed.checksum = incoming.finish(connection, object_crc, None).await?;
            let is_taken = sender.send(Ok(piece)).await.is_ok();
            if keep && is_taken {
                streamed.kept.push(payload(buffer, crc64nvme, chunk_crcs));
            }
            return Ok(streamed);
        }
        if send_split(&sender, piece).await.is_err() {
            // The store has answered already, with an error that the caller will see.
            connection.close_after();
            return Ok(Streamed::default());
        }
        if keep {
            streamed.kept.push(payload(buffer, crc64nvme, chunk_crcs));
        }
    }
}

/// The CRC64-NVME of bytes with `first`, and `bytes` more with `second`.
pub(super) fn join_crc64nvme(first: u64, second: u64, bytes: u64) -> u64 {
    crc_fast::checksum_combine(CrcAlgorithm::Crc64Nvme, first, second, bytes)
}

/// Sends a block in pieces, so that the store's side works while the next block is read.
pub(super) async fn send_split(
    sender: &Sender<StoreResult<Bytes>>,
    mut block: Bytes,
) -> Result<(), StoreError> {
    while !block.is_empty() {
        let piece = block.split_to(block.len().min(SEND_BYTES_MAX));
        let gone = |_| StoreError::new(StoreErrorKind::Internal, "the upload has ended");
        sender.send(Ok(piece)).await.map_err(gone)?;
    }
    Ok(())
}

/// What a DELETE is only to be done if. `If-Match: *` leaves it as it is: what is not there is deleted.
fn delete_condition(head: &Head) -> Result<WriteCondition, ErrorReply> {
    let others = &WRITE_CONDITIONS[1..];
    if let Some(name) = others.iter().find(|name| head.has(name)) {
        let what = format!("{name} on a DELETE");
        return Err(ErrorReply::not_implemented(&what));
    }
    let mut tags = head.values("if-match");
    match (tags.next().map(str::trim), tags.next()) {
        (None, _) if !head.has("if-match") => Ok(WriteCondition::Always),
        (Some("*"), None) => Ok(WriteCondition::Always),
        (Some(tag), None) => version(tag),
        _ => Err(ErrorReply::not_implemented(
            "If-Match of this kind on a DELETE",
        )),
    }
}

/// Serves `DELETE`.
pub async fn delete(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
) -> Result<(), Ended> {
    let condition = match delete_condition(head) {
        Ok(condition) => condition,
        Err(error) => return finish_with(connection, error, object).await,
    };
    let router = &connection.context().router;
    let deleted = router.delete(object.block(0), condition).await;
    tell_deleted(connection, object, deleted).await
}

/// Answers a DELETE.
pub(super) async fn tell_deleted(
    connection: &mut Connection,
    object: &ObjectRequest,
    deleted: Result<Deleted, WriteError>,
) -> Result<(), Ended> {
    connection
        .context()
        .stats()
        .write_times
        .record(connection.elapsed());
    match deleted {
        Ok(deleted) => {
            let mut reply = connection.reply(204);
            deleted_headers(&mut reply, &deleted);
            reply.header("x-forebay-core", core_label(connection, &object.block(0)));
            let reply = connection.seal_head(reply);
            connection.send(&[&reply]).await
        }
        Err(error) => finish_with(connection, error.into(), object).await,
    }
}
