//! `PUT` and `DELETE` of an object.
//!
//! A body is read once, straight into block buffers, and checksummed on the way. One of at most a
//! block is verified before the cache or the store hears of it; a larger one streams to the store,
//! its last piece held back until its checksums hold, so that a bad body never becomes an object.

use super::aws_chunked::{Decoder, Malformed, Step};
use super::connection::{Connection, Ended};
use super::digest::BodyChecks;
use super::get::{core_label, quoted};
use super::head::{Framing, Head};
use super::limits::{CHUNKED_READ_BYTES, OBJECT_BYTES_MAX, PUT_BLOCKS_KEPT_MAX, SEND_BYTES_MAX};
use super::reply::ErrorReply;
use super::{ObjectRequest, finish_with};
use bytes::Bytes;
use forebay_io::buffer::BufferWriter;
use forebay_io::queue::{self, Sender};
use forebay_io::runtime::Runtime;
use forebay_io::store::{StoreError, StoreErrorKind, StoreResult};
use forebay_shards::format::PayloadChecksums;
use forebay_shards::messages::{BlockPayload, PutObject, PutSource, WriteError, Written};
use futures::channel::oneshot;

/// Bytes read from the client at once.
const READ_BYTES: usize = 256 << 10;

/// Bytes received at a stretch before others on the core have their turn: half a millisecond.
const PAUSE_BYTES: usize = 512 << 10;

/// Pieces of a streamed body on their way to the store. Each pins its block's buffer, so this
/// bounds a large PUT to a few blocks whatever its size.
const STREAM_PIECES_MAX: usize = 4;

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
const REFUSED_HEADERS: [&str; 13] = [
    "x-amz-copy-source",
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

/// Most bytes of user metadata, names and values (S3's limit).
const USER_METADATA_BYTES_MAX: usize = 2 << 10;

/// A body as the object's bytes: with its envelope taken off, if it has one.
struct Body {
    length: u64,
    left: u64,
    envelope: Option<Envelope>,
    checks: BodyChecks,
}

struct Envelope {
    decoder: Decoder,
    scratch: Vec<u8>,
    start: usize,
    end: usize,
}

/// Why a body could not be taken.
enum BodyError {
    Ended(Ended),
    Refused(ErrorReply),
}

impl From<Ended> for BodyError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Framing(error) => error.into(),
            ended => BodyError::Ended(ended),
        }
    }
}

impl From<ErrorReply> for BodyError {
    fn from(reply: ErrorReply) -> Self {
        BodyError::Refused(reply)
    }
}

impl From<Malformed> for BodyError {
    fn from(error: Malformed) -> Self {
        BodyError::Refused(ErrorReply::new(400, "InvalidRequest", error.to_string()))
    }
}

impl Body {
    /// What the head says of the body.
    fn of(head: &Head) -> Result<Body, ErrorReply> {
        let payload = head.header("x-amz-content-sha256").unwrap_or_default();
        if payload.starts_with("STREAMING-") && payload != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
            return Err(ErrorReply::not_implemented("a body with signed chunks"));
        }
        let enveloped = !payload.is_empty() && payload.starts_with("STREAMING-")
            || head.values("content-encoding").any(has_aws_chunked);
        let framed = match head.framing {
            Framing::Length(framed) => framed,
            // The envelope says the object's length, so nothing else has to.
            Framing::Chunked if enveloped => 0,
            Framing::Chunked | Framing::None => {
                let message = "a PUT needs a Content-Length";
                return Err(ErrorReply::new(411, "MissingContentLength", message).closing());
            }
        };
        let length = if enveloped {
            let text = head
                .header("x-amz-decoded-content-length")
                .unwrap_or_default();
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let length = digits.then(|| text.parse().ok()).flatten();
            length.ok_or_else(|| {
                let message = "an aws-chunked body needs x-amz-decoded-content-length";
                ErrorReply::new(411, "MissingContentLength", message)
            })?
        } else {
            framed
        };
        if length > OBJECT_BYTES_MAX || framed > 2 * OBJECT_BYTES_MAX {
            let message = format!("an object has at most {OBJECT_BYTES_MAX} bytes");
            return Err(ErrorReply::new(413, "EntityTooLarge", message));
        }
        let envelope = enveloped.then(|| Envelope {
            decoder: Decoder::default(),
            scratch: vec![0; CHUNKED_READ_BYTES],
            start: 0,
            end: 0,
        });
        Ok(Body {
            length,
            left: length,
            envelope,
            checks: BodyChecks::of(head)?,
        })
    }

    /// Reads the next object bytes into `target`; 0 once all are read.
    async fn read(
        &mut self,
        connection: &mut Connection,
        target: &mut [u8],
    ) -> Result<usize, BodyError> {
        let wanted = target
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let target = &mut target[..wanted];
        let count = match &mut self.envelope {
            None => connection.read_body(target).await?,
            Some(envelope) => envelope.read(connection, target).await?,
        };
        self.checks.update(&target[..count]);
        self.left -= count as u64;
        Ok(count)
    }

    /// Reads what follows the object's bytes and verifies them.
    async fn finish(mut self, connection: &mut Connection) -> Result<(), BodyError> {
        if let Some(envelope) = &mut self.envelope {
            envelope.finish(connection, &mut self.checks).await?;
        }
        self.checks.verify()?;
        Ok(())
    }
}

/// Whether a `content-encoding` names the envelope.
fn has_aws_chunked(value: &str) -> bool {
    value
        .split(',')
        .any(|coding| coding.trim().eq_ignore_ascii_case("aws-chunked"))
}

impl Envelope {
    async fn refill(&mut self, connection: &mut Connection) -> Result<(), BodyError> {
        self.start = 0;
        self.end = connection.read_body(&mut self.scratch).await?;
        if self.end == 0 {
            return Err(Malformed("no end").into());
        }
        Ok(())
    }

    async fn read(
        &mut self,
        connection: &mut Connection,
        target: &mut [u8],
    ) -> Result<usize, BodyError> {
        loop {
            let end = self.end.min(self.start + target.len());
            let mut input = &self.scratch[self.start..end];
            let step = self.decoder.step(&mut input)?;
            self.start = end - input.len();
            match step {
                Step::Content(bytes) => {
                    target[..bytes.len()].copy_from_slice(bytes);
                    return Ok(bytes.len());
                }
                Step::NeedMore if self.start < self.end => {}
                Step::NeedMore => self.refill(connection).await?,
                Step::End | Step::Trailer(..) => {
                    return Err(Malformed("fewer bytes than x-amz-decoded-content-length").into());
                }
            }
        }
    }

    async fn finish(
        &mut self,
        connection: &mut Connection,
        checks: &mut BodyChecks,
    ) -> Result<(), BodyError> {
        loop {
            let mut input = &self.scratch[self.start..self.end];
            let step = self.decoder.step(&mut input)?;
            self.start = self.end - input.len();
            match step {
                Step::Content(_) => {
                    return Err(Malformed("more bytes than x-amz-decoded-content-length").into());
                }
                Step::Trailer(name, value) => checks.trailer(&name, &value)?,
                // The next step says that something follows.
                Step::End if self.start < self.end => {}
                Step::End => {
                    // The body around the envelope must end with it.
                    return match connection.read_body(&mut self.scratch).await? {
                        0 => Ok(()),
                        _ => Err(Malformed("bytes after its end").into()),
                    };
                }
                Step::NeedMore => self.refill(connection).await?,
            }
        }
    }
}

/// Serves `PUT`.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
) -> Result<(), Ended> {
    let result = put(connection, head, object).await;
    connection
        .context()
        .stats()
        .write_times
        .record(connection.elapsed());
    match result {
        Ok(Written { meta, is_dirty }) => {
            let mut reply = connection.reply(200);
            reply.header("etag", quoted(&meta.etag));
            reply.header("x-forebay-write", if is_dirty { "back" } else { "through" });
            reply.header("x-forebay-core", core_label(connection, &object.block(0)));
            connection.respond(reply, b"").await
        }
        Err(BodyError::Refused(error)) => finish_with(connection, error, object).await,
        Err(BodyError::Ended(ended)) => Err(ended),
    }
}

async fn put(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
) -> Result<Written, BodyError> {
    refuse_unknown(head)?;
    let request = PutObject {
        id: object.block(0),
        headers: object_headers(head)?,
        length: 0,
        md5: None,
        if_none_match: if_none_match(head)?,
        source: PutSource::Stream(queue::bounded(1).1),
    };
    let body = Body::of(head)?;
    let written = if body.length <= object.volume.block_bytes {
        put_whole(connection, body, request).await?
    } else {
        put_stream(connection, body, request, object).await?
    };
    connection.context().stats().bytes_in.add(written.meta.size);
    Ok(written)
}

fn refuse_unknown(head: &Head) -> Result<(), ErrorReply> {
    if let Some(name) = REFUSED_HEADERS.iter().find(|name| head.has(name)) {
        return Err(ErrorReply::not_implemented(&format!("the header {name}")));
    }
    match head.header("x-amz-acl") {
        None | Some("private" | "bucket-owner-full-control") => Ok(()),
        Some(acl) => Err(ErrorReply::not_implemented(&format!("the ACL {acl:?}"))),
    }
}

fn if_none_match(head: &Head) -> Result<bool, ErrorReply> {
    if head.has("if-match") {
        return Err(ErrorReply::not_implemented("If-Match on a write"));
    }
    match head.header("if-none-match") {
        None => Ok(false),
        Some("*") => Ok(true),
        Some(_) => Err(ErrorReply::not_implemented(
            "If-None-Match other than * on a write",
        )),
    }
}

/// The headers that are kept with the object.
fn object_headers(head: &Head) -> Result<Vec<(String, String)>, ErrorReply> {
    let mut kept = Vec::new();
    let mut user_bytes = 0;
    for (name, value) in &head.headers {
        let user = name.starts_with("x-amz-meta-");
        if !user && !OBJECT_HEADERS.contains(&name.as_str()) {
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
        kept.push((name.clone(), value));
    }
    if user_bytes > USER_METADATA_BYTES_MAX {
        let message = format!("user metadata has at most {USER_METADATA_BYTES_MAX} bytes");
        return Err(ErrorReply::new(400, "MetadataTooLarge", message));
    }
    Ok(kept)
}

async fn take_buffer(connection: &Connection, bytes: u64) -> Result<BufferWriter, ErrorReply> {
    let core = connection.context().router.core();
    core.take_buffer(bytes as usize)
        .await
        .map_err(ErrorReply::from)
}

/// Reads one block's worth of the body.
async fn read_block(
    connection: &mut Connection,
    body: &mut Body,
    bytes: u64,
    buffer: BufferWriter,
) -> Result<(BufferWriter, PayloadChecksums), BodyError> {
    connection.set_in_turn(true);
    let filled = fill_block(connection, body, bytes, buffer).await;
    connection.set_in_turn(false);
    filled
}

async fn fill_block(
    connection: &mut Connection,
    body: &mut Body,
    bytes: u64,
    mut buffer: BufferWriter,
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
            runtime.yield_now().await;
        }
    }
    Ok((buffer, checksums))
}

fn payload(mut buffer: BufferWriter, checksums: PayloadChecksums) -> BlockPayload {
    buffer.finish();
    let (crc64nvme, chunk_crcs) = checksums.finish();
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
    mut body: Body,
    request: PutObject,
) -> Result<Written, BodyError> {
    let length = body.length;
    let md5 = body.checks.md5();
    let buffer = take_buffer(connection, length).await?;
    let (sender, complete) = oneshot::channel();
    let request = PutObject {
        length,
        md5,
        source: PutSource::Arriving(buffer.watch(), complete),
        ..request
    };
    let context = connection.context().clone();
    let write = context.router.put(request);
    let read = async move {
        let (buffer, checksums) = read_block(connection, &mut body, length, buffer).await?;
        body.finish(connection).await?;
        // Whoever waited for it has an error to tell.
        let _ = sender.send(payload(buffer, checksums));
        Ok(())
    };
    match futures::join!(write, read) {
        // A client that broke off, or sent a bad body, matters more than what became of the write.
        (_, Err(error)) => Err(error),
        (written, Ok(())) => written.map_err(|error| BodyError::Refused(error.into())),
    }
}

/// Takes a larger object: block by block to the store, the first few kept for the cache.
async fn put_stream(
    connection: &mut Connection,
    body: Body,
    request: PutObject,
    object: &ObjectRequest,
) -> Result<Written, BodyError> {
    let (sender, receiver) = queue::bounded(STREAM_PIECES_MAX);
    let length = body.length;
    let request = PutObject {
        length,
        source: PutSource::Stream(receiver),
        ..request
    };
    let context = connection.context().clone();
    let write = context.router.put(request);
    let read = stream_blocks(connection, body, sender, object.volume.block_bytes);
    let (written, streamed) = futures::join!(write, read);
    let (written, blocks) = match (written, streamed) {
        // A client that broke off, or sent a bad body, matters more than the store's view of it.
        (_, Err(error)) => return Err(error),
        (Err(error), Ok(_)) => return Err(BodyError::Refused(ErrorReply::from(error))),
        (Ok(written), Ok(kept)) => (written, kept),
    };
    for (number, block) in blocks.into_iter().enumerate() {
        context
            .router
            .insert(object.block(number as u64), written.meta.clone(), block)
            .await;
    }
    Ok(written)
}

/// Reads blocks and passes them on; returns those to be cached, or none if there are too many.
async fn stream_blocks(
    connection: &mut Connection,
    mut body: Body,
    sender: Sender<StoreResult<Bytes>>,
    block_bytes: u64,
) -> Result<Vec<BlockPayload>, BodyError> {
    let keep = body.length.div_ceil(block_bytes) <= PUT_BLOCKS_KEPT_MAX as u64;
    let mut kept = Vec::new();
    let mut store_gone = false;
    while body.left > 0 {
        let bytes = body.left.min(block_bytes);
        let buffer = take_buffer(connection, bytes).await?;
        let (buffer, checksums) = read_block(connection, &mut body, bytes, buffer).await?;
        let piece = buffer.watch().view_all().into_bytes();
        if body.left == 0 {
            // The last piece completes the object: not before its checksums hold.
            body.finish(connection).await?;
            store_gone |= sender.send(Ok(piece)).await.is_err();
            if keep && !store_gone {
                kept.push(payload(buffer, checksums));
            }
            break;
        }
        store_gone |= send_split(&sender, piece).await.is_err();
        if store_gone {
            // The store has answered already, with an error that the caller will see.
            connection.close_after();
            return Ok(Vec::new());
        }
        if keep {
            kept.push(payload(buffer, checksums));
        }
    }
    Ok(kept)
}

/// Sends a block in pieces, so that the store's side works while the next block is read.
async fn send_split(
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

/// Serves `DELETE`.
pub async fn delete(connection: &mut Connection, object: &ObjectRequest) -> Result<(), Ended> {
    let deleted: Result<(), WriteError> = connection.context().router.delete(object.block(0)).await;
    connection
        .context()
        .stats()
        .write_times
        .record(connection.elapsed());
    match deleted {
        Ok(()) => {
            let mut reply = connection.reply(204);
            reply.header("x-forebay-core", core_label(connection, &object.block(0)));
            let reply = connection.seal_head(reply);
            connection.send(&[&reply]).await
        }
        Err(error) => finish_with(connection, error.into(), object).await,
    }
}
