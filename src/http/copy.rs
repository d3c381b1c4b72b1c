//! CopyObject and UploadPartCopy.
//!
//! What the store has it copies itself, bound to the version that was looked at. What only this proxy
//! has is at most a block: it is written anew, so that a rename costs no round trip where a PUT costs
//! none. From another volume, or where the store cannot copy, the bytes go through this proxy.

use super::connection::{Connection, Ended};
use super::get::{core_label, quoted};
use super::head::Head;
use super::limits::OBJECT_BYTES_MAX;
use super::operation::PartName;
use super::put::{
    STREAM_PIECES_MAX, object_headers, payload, refuse_conditions, refuse_unknown, send_split,
    take_buffer, version_header,
};
use super::reply::{ErrorReply, ReplyHead};
use super::source::{CopyError, Source, SourceReader, with_source};
use super::upload_part::{Keeper, upload_of};
use super::{CoreContext, ObjectRequest, finish_with};
use crate::xml::{Document, moment};
use bytes::Bytes;
use forebay_io::multipart::{CopyPartRequest, CopySource, UploadName};
use forebay_io::queue::{self, Sender};
use forebay_io::runtime::Runtime;
use forebay_io::store::{
    ByteSpan, CHECKSUM_PREFIX, ObjectMeta, StoreError, StoreErrorKind, StoreResult,
};
use forebay_io::uplink::UploadBody;
use forebay_shards::messages::{
    BlockPayload, CopyFrom, CopyObject, LateFacts, PutObject, PutSource, WriteCondition,
    WriteError, Written,
};
use forebay_shards::parts::{NotedPart, Origin, Piece};
use futures::channel::oneshot;

/// Which bytes of its source a part is.
const COPY_RANGE: &str = "x-amz-copy-source-range";

/// Serves CopyObject.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    source: &Source,
) -> Result<(), Ended> {
    let copied = copy(connection, head, object, source).await;
    let stats = connection.context().stats();
    stats.write_times.record(connection.elapsed());
    match copied {
        Ok(written) => {
            let Written { meta, is_dirty, .. } = &written;
            let how = if *is_dirty { "back" } else { "through" };
            let document = result("CopyObjectResult", &meta.etag, meta.last_modified);
            let mut reply = connection.reply(200);
            version_header(&mut reply, written.version_id.as_deref());
            reply.header("x-forebay-write", how);
            respond(connection, object, source, reply, &document).await
        }
        Err(error) => finish_with(connection, error, object).await,
    }
}

/// Serves UploadPartCopy.
pub async fn serve_part(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    part: &PartName,
    source: &Source,
) -> Result<(), Ended> {
    let copied = copy_part(connection, head, object, part, source).await;
    let stats = connection.context().stats();
    stats.write_times.record(connection.elapsed());
    match copied {
        Ok((etag, last_modified)) => {
            let document = result("CopyPartResult", &etag, last_modified);
            let mut reply = connection.reply(200);
            reply.header("x-forebay-write", "through");
            respond(connection, object, source, reply, &document).await
        }
        Err(error) => finish_with(connection, error, object).await,
    }
}

fn result(root: &str, etag: &str, last_modified: u64) -> String {
    let mut document = Document::new(root);
    document
        .element("LastModified", &moment(last_modified * 1000))
        .element("ETag", &quoted(etag));
    document.finish(root)
}

async fn respond(
    connection: &mut Connection,
    object: &ObjectRequest,
    source: &Source,
    mut reply: ReplyHead,
    document: &str,
) -> Result<(), Ended> {
    if let Some(id) = &source.version_id {
        reply.header("x-amz-copy-source-version-id", id);
    }
    reply
        .header("content-type", "application/xml")
        .header("x-forebay-core", core_label(connection, &object.block(0)));
    connection.respond(reply, document.as_bytes()).await
}

/// The headers that the copy gets instead of its source's, if it does.
fn new_headers(head: &Head) -> Result<Option<Vec<(String, String)>>, ErrorReply> {
    if !matches!(head.header("x-amz-tagging-directive"), None | Some("COPY")) {
        return Err(ErrorReply::not_implemented("new tags for a copy"));
    }
    match head.header("x-amz-metadata-directive") {
        None | Some("COPY") => Ok(None),
        Some("REPLACE") => object_headers(head).map(Some),
        Some(_) => Err(ErrorReply::new(
            400,
            "InvalidArgument",
            "x-amz-metadata-directive is COPY or REPLACE",
        )),
    }
}

async fn copy(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    source: &Source,
) -> Result<Written, ErrorReply> {
    refuse_unknown(head)?;
    refuse_conditions(head, "a copy")?;
    if head.has(COPY_RANGE) {
        let message = "a copy of a range makes a part, not an object";
        return Err(ErrorReply::new(400, "InvalidRequest", message));
    }
    let headers = new_headers(head)?;
    let is_same_volume = source.object.volume.name == object.volume.name;
    let is_itself = is_same_volume && source.object.key == object.key;
    if is_itself && source.version_id.is_none() && headers.is_none() {
        let message = "a copy of an object onto itself must replace its metadata";
        return Err(ErrorReply::new(400, "InvalidRequest", message));
    }
    let connection = &*connection;
    with_source(connection, head, source, async |from: CopyFrom| {
        if from.meta.size > OBJECT_BYTES_MAX {
            let message = format!("what is copied at once has at most {OBJECT_BYTES_MAX} bytes");
            return Err(ErrorReply::new(400, "InvalidRequest", message).into());
        }
        if is_same_volume && from.store_etag.is_some() {
            match copy_in_store(connection, object, source, &from, headers.clone()).await {
                Err(WriteError::Store(error)) if error.kind == StoreErrorKind::Unsupported => {}
                copied => return copied.map_err(copy_failed),
            }
        }
        copy_here(connection, object, source, from, headers.clone()).await
    })
    .await
}

fn copy_failed(error: WriteError) -> CopyError {
    match error {
        WriteError::Store(error) if is_about_source(&error) => CopyError::Changed,
        error => CopyError::Refused(error.into()),
    }
}

/// Whether the store says that the source is not what it was, or gone.
fn is_about_source(error: &StoreError) -> bool {
    use StoreErrorKind::{NotFound, PreconditionFailed};
    matches!(error.kind, NotFound | PreconditionFailed)
}

async fn copy_in_store(
    connection: &Connection,
    object: &ObjectRequest,
    source: &Source,
    from: &CopyFrom,
    headers: Option<Vec<(String, String)>>,
) -> Result<Written, WriteError> {
    let request = CopyObject {
        id: object.block(0),
        source: source.object.key.clone(),
        from: from.clone(),
        headers,
    };
    connection.context().router.copy(request).await
}

/// Copies the bytes through this proxy, as a PUT of its own.
async fn copy_here(
    connection: &Connection,
    object: &ObjectRequest,
    source: &Source,
    from: CopyFrom,
    headers: Option<Vec<(String, String)>>,
) -> Result<Written, CopyError> {
    let meta = &from.meta;
    let (late, facts) = oneshot::channel();
    // The content is the source's, so its MD5 is.
    let is_md5 = meta.etag.len() == 32 && meta.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let _ = late.send(LateFacts {
        headers: Vec::new(),
        md5: (is_md5 && from.store_etag.is_none()).then(|| meta.etag.clone()),
    });
    let request = PutObject {
        id: object.block(0),
        headers: copied_headers(meta, headers),
        late: facts,
        length: meta.size,
        condition: WriteCondition::Always,
        source: PutSource::Stream(queue::bounded(1).1),
    };
    let context = connection.context();
    let span = ByteSpan {
        start: 0,
        end: meta.size,
    };
    let mut reader = SourceReader::new(context, source, meta, span);
    if meta.size <= object.volume.block_bytes {
        let block = next_block(connection, &mut reader, meta.size).await?;
        let (sender, complete) = oneshot::channel();
        let request = PutObject {
            source: PutSource::Arriving(block.buffer.watch(), complete),
            ..request
        };
        let _ = sender.send(block);
        let written = context.router.put(request).await;
        return written.map_err(|error| CopyError::Refused(error.into()));
    }
    let (sender, receiver) = queue::bounded(STREAM_PIECES_MAX);
    let request = PutObject {
        source: PutSource::Stream(receiver),
        ..request
    };
    let sending = send_blocks(connection, object, reader, sender, None);
    let (written, sent) = futures::join!(context.router.put(request), sending);
    sent?;
    written.map_err(|error| CopyError::Refused(error.into()))
}

/// The headers of a copy. The checksum is of the bytes, which stay, unless it is one of parts.
fn copied_headers(
    source: &ObjectMeta,
    replaced: Option<Vec<(String, String)>>,
) -> Vec<(String, String)> {
    let is_of_parts =
        source.etag.contains('-') && source.headers.iter().any(|(_, v)| v.contains('-'));
    let is_checksum = |name: &str| name.starts_with(CHECKSUM_PREFIX);
    let own = source.headers.iter();
    let checksums = own.filter(|(name, _)| is_checksum(name) && !is_of_parts);
    let kept: Vec<(String, String)> = match replaced {
        Some(replaced) => replaced,
        None => {
            let own = source.headers.iter();
            own.filter(|(name, _)| !is_checksum(name))
                .cloned()
                .collect()
        }
    };
    kept.into_iter().chain(checksums.cloned()).collect()
}

async fn next_block(
    connection: &Connection,
    reader: &mut SourceReader,
    bytes: u64,
) -> Result<BlockPayload, CopyError> {
    let mut buffer = take_buffer(connection, bytes).await?;
    let checksums = reader.fill(&mut buffer, bytes).await?;
    let (crc64nvme, chunk_crcs) = checksums.finish();
    Ok(payload(buffer, crc64nvme, chunk_crcs))
}

/// Sends all that a reader has, block by block. Whoever takes it ends without a whole object if this
/// fails, for the sender is gone then.
async fn send_blocks(
    connection: &Connection,
    object: &ObjectRequest,
    mut reader: SourceReader,
    sender: Sender<StoreResult<Bytes>>,
    keeper: Option<&Keeper>,
) -> Result<(), CopyError> {
    while reader.left() > 0 {
        let bytes = reader.left().min(object.volume.block_bytes);
        let block = next_block(connection, &mut reader, bytes).await?;
        let piece = block.buffer.watch().view_all().into_bytes();
        if send_split(&sender, piece).await.is_err() {
            // The store has answered already, with an error that the caller will see.
            return Ok(());
        }
        if let Some(keeper) = keeper {
            keeper.keep(block).await;
        }
    }
    Ok(())
}

/// The span that a part is to be made of; all of the source without one.
fn copied_span(head: &Head, size: u64) -> Result<ByteSpan, ErrorReply> {
    let whole = ByteSpan {
        start: 0,
        end: size,
    };
    let invalid = |message: &str| ErrorReply::new(400, "InvalidArgument", message);
    let mut values = head.values(COPY_RANGE);
    let value = match (values.next(), values.next()) {
        (None, None) if !head.has(COPY_RANGE) => return Ok(whole),
        (Some(value), None) => value,
        _ => return Err(invalid("x-amz-copy-source-range is not one range")),
    };
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().ok()).flatten()
    };
    let pair = value.trim().strip_prefix("bytes=");
    let pair = pair.and_then(|pair| pair.split_once('-'));
    let pair = pair.and_then(|(first, last)| Some((number(first)?, number(last)?)));
    let Some((first, last)) = pair.filter(|(first, last)| first <= last) else {
        return Err(invalid(
            "x-amz-copy-source-range is bytes=FIRST-LAST, both within the source",
        ));
    };
    // Unlike a read, a copy is never cut at the end.
    if last >= size {
        let message = format!("the range ends past the source's {size} bytes");
        return Err(ErrorReply::new(416, "InvalidRange", message));
    }
    Ok(ByteSpan {
        start: first,
        end: last + 1,
    })
}

/// Makes a part; gives its ETag and when it was made.
async fn copy_part(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    part: &PartName,
    source: &Source,
) -> Result<(String, u64), ErrorReply> {
    refuse_unknown(head)?;
    refuse_conditions(head, "a copy")?;
    let is_same_volume = source.object.volume.name == object.volume.name;
    let connection = &*connection;
    with_source(connection, head, source, async |from: CopyFrom| {
        let span = copied_span(head, from.meta.size)?;
        if span.len() > OBJECT_BYTES_MAX {
            let message = format!("a part has at most {OBJECT_BYTES_MAX} bytes");
            return Err(ErrorReply::new(400, "InvalidRequest", message).into());
        }
        if is_same_volume && let Some(tag) = &from.store_etag {
            match copy_part_in_store(connection, object, part, source, &from, tag, span).await {
                Err(error) if error.kind == StoreErrorKind::Unsupported => {}
                Err(error) if is_about_source(&error) => return Err(CopyError::Changed),
                Err(error) => return Err(ErrorReply::from(&error).into()),
                Ok(copied) => return Ok(copied),
            }
        }
        copy_part_here(connection, object, part, source, from, span).await
    })
    .await
}

async fn copy_part_in_store(
    connection: &Connection,
    object: &ObjectRequest,
    part: &PartName,
    source: &Source,
    from: &CopyFrom,
    tag: &str,
    span: ByteSpan,
) -> Result<(String, u64), StoreError> {
    let size = from.meta.size;
    let is_whole = span.len() == size;
    let request = CopyPartRequest {
        source: CopySource {
            key: source.object.key.to_string(),
            // A weak or missing tag binds nothing.
            if_match: (!tag.is_empty() && !tag.starts_with("W/")).then(|| tag.to_owned()),
            version_id: from.version_id.clone(),
        },
        span: (!is_whole).then_some(span),
        upload: UploadName {
            key: object.key.to_string(),
            upload_id: part.upload_id.clone(),
        },
        number: part.number,
    };
    let context = connection.context();
    let reply = context.router.copy_part(&object.volume, request).await?;
    let noted = NotedPart {
        number: part.number,
        etag: reply.etag.clone(),
        size: span.len(),
        checksum: None,
        piece: Some(Piece {
            origin: Origin::Object {
                key: source.object.key.clone(),
                etag: from.meta.etag.as_str().into(),
            },
            size,
            start: span.start,
        }),
    };
    let router = &context.router;
    router
        .note_part(&object.block(0), &part.upload_id, noted)
        .await;
    Ok((reply.etag, made_at(context, reply.last_modified)))
}

/// When something was made, where its store does not say: now.
fn made_at(context: &CoreContext, last_modified: u64) -> u64 {
    match last_modified {
        0 => context.runtime.unix_seconds(),
        seconds => seconds,
    }
}

/// Sends the bytes of a part through this proxy, as an UploadPart of its own.
async fn copy_part_here(
    connection: &Connection,
    object: &ObjectRequest,
    part: &PartName,
    source: &Source,
    from: CopyFrom,
    span: ByteSpan,
) -> Result<(String, u64), CopyError> {
    let context = connection.context();
    let keeper = Keeper::new(context, &object.volume, span.len());
    let reader = SourceReader::new(context, source, &from.meta, span);
    let (sender, receiver) = queue::bounded(STREAM_PIECES_MAX);
    let body = UploadBody::Stream(receiver);
    let upload = upload_of(object, part, span.len(), body);
    let sending = send_blocks(connection, object, reader, sender, Some(&keeper));
    let putting = context.router.put_part(&object.volume, upload);
    let (reply, sent) = futures::join!(putting, sending);
    let reply = sent.and_then(|()| reply.map_err(|error| ErrorReply::from(&error).into()));
    match reply {
        Ok(reply) => {
            let noted = keeper.note(object, part, reply.etag, None).await;
            Ok((noted.etag, made_at(context, reply.last_modified)))
        }
        Err(error) => {
            keeper.discard();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head;

    fn span(value: &str) -> Result<(u64, u64), (u16, &'static str)> {
        let text =
            format!("PUT /v/k HTTP/1.1\r\nHost: x\r\nx-amz-copy-source-range: {value}\r\n\r\n");
        let head = head::parse(text.as_bytes()).expect("a good head");
        let span = copied_span(&head, 100);
        span.map(|span| (span.start, span.end))
            .map_err(|error| (error.status, error.code))
    }

    #[test]
    fn a_range_lies_within_the_source() {
        assert_eq!(span("bytes=0-99"), Ok((0, 100)));
        assert_eq!(span("bytes=7-7"), Ok((7, 8)));
        assert_eq!(span("bytes=0-100"), Err((416, "InvalidRange")));
        for value in [
            "bytes=0-",
            "bytes=-5",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=0-1,3-4",
            "bytes=+1-2",
            "0-5",
            "",
        ] {
            assert_eq!(span(value), Err((400, "InvalidArgument")), "{value}");
        }
    }

    #[test]
    fn a_copy_keeps_what_is_true_of_its_bytes() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let meta = |etag: &str, checksum: &str| ObjectMeta {
            etag: etag.into(),
            headers: vec![
                pair("content-type", "a/b"),
                pair("x-amz-checksum-crc32", checksum),
            ],
            ..ObjectMeta::default()
        };
        let whole = copied_headers(&meta("e", "AAAAAA=="), None);
        assert_eq!(whole.len(), 2);
        let of_parts = copied_headers(&meta("e-2", "AAAAAA==-2"), None);
        assert_eq!(of_parts, [pair("content-type", "a/b")]);
        let replaced = copied_headers(&meta("e", "AAAAAA=="), Some(vec![pair("expires", "0")]));
        let expected = [
            pair("expires", "0"),
            pair("x-amz-checksum-crc32", "AAAAAA=="),
        ];
        assert_eq!(replaced, expected);
    }
}
