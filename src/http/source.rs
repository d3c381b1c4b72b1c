//! The source of a copy: which object, whether it may be copied, and its bytes where the store cannot
//! copy them itself.
//!
//! Who copies must be allowed to read the source. All bytes of a copy are of one version, the one that
//! the request's conditions were judged by.

use super::auth::{self, Access, Identity};
use super::conditional;
use super::connection::Connection;
use super::head::Head;
use super::limits::CHANGED_RETRIES_MAX;
use super::operation::COPY_SOURCE;
use super::reply::ErrorReply;
use super::target;
use super::{CoreContext, ObjectRequest};
use crate::server::volumes::VolumeTable;
use forebay_io::buffer::{BufferWriter, View};
use forebay_io::runtime::Runtime;
use forebay_io::store::{ByteSpan, ObjectMeta, StoreError, StoreErrorKind};
use forebay_shards::format::PayloadChecksums;
use forebay_shards::messages::{BlockBody, BlockRequest, CopyFrom, ReadError};
use forebay_shards::range::{RangeSpec, part_of_block};
use std::rc::Rc;
use std::sync::Arc;

/// Bytes that are copied before others on the core have their turn.
const PAUSE_BYTES: usize = 512 << 10;

/// The object that a request names as its source, if it may read that.
pub fn of(
    table: &VolumeTable,
    identity: Identity<'_>,
    head: &Head,
) -> Result<ObjectRequest, ErrorReply> {
    let (volume, key) = name(head)?;
    let Some(served) = table.find(&volume) else {
        let known = auth::is_known(identity, table.list().map(|volume| &volume.settings));
        return Err(match known {
            true => ErrorReply::new(404, "NoSuchBucket", "there is no volume of this name"),
            false => auth::refuse_stranger(identity),
        });
    };
    auth::check(identity, &served.settings, Access::Read)?;
    Ok(ObjectRequest {
        volume: served.volume.clone(),
        key: key.into(),
    })
}

/// Volume and key, from the header.
fn name(head: &Head) -> Result<(String, String), ErrorReply> {
    let invalid = |message: &str| ErrorReply::new(400, "InvalidArgument", message);
    let mut values = head.values(COPY_SOURCE);
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(invalid("x-amz-copy-source is not one name of an object"));
    };
    let value = value.trim();
    if value.starts_with("arn:") {
        return Err(ErrorReply::not_implemented("a copy from an access point"));
    }
    let (path, version) = value.split_once('?').unwrap_or((value, ""));
    match version.split_once('=') {
        None if version.is_empty() => {}
        // The one version that an object without versions has.
        Some(("versionId", "null")) => {}
        Some(("versionId", _)) => {
            return Err(ErrorReply::not_implemented("a copy of a version by its id"));
        }
        _ => return Err(invalid("x-amz-copy-source has a query of no meaning")),
    }
    // Some encode all of it, the slashes too.
    let path = match path.contains('/') {
        true => path.to_owned(),
        false => path.replace("%2F", "/").replace("%2f", "/"),
    };
    let path = path.strip_prefix('/').unwrap_or(&path);
    // As a target, so that a key is decoded and judged in one place.
    match target::parse(&format!("/{path}"))?.target {
        target::Target::Object { volume, key } => Ok((volume, key)),
        _ => Err(invalid(
            "x-amz-copy-source is a volume and a key with a slash between",
        )),
    }
}

/// What the store or a cached copy says of the source, if the request's conditions hold.
pub async fn describe(
    connection: &Connection,
    head: &Head,
    source: &ObjectRequest,
) -> Result<CopyFrom, ErrorReply> {
    let router = &connection.context().router;
    let from = router.describe_source(&source.block(0)).await?;
    match conditional::judge_source(head, &from.meta) {
        true => Ok(from),
        false => {
            let message = "a precondition of the copy did not hold";
            Err(ErrorReply::new(412, "PreconditionFailed", message))
        }
    }
}

/// Makes a copy of a source that may change meanwhile: `attempt` starts over with a new description as
/// often as a read does.
pub async fn with_source<T>(
    connection: &Connection,
    head: &Head,
    source: &ObjectRequest,
    mut attempt: impl AsyncFnMut(CopyFrom) -> Result<T, CopyError>,
) -> Result<T, ErrorReply> {
    for _ in 0..CHANGED_RETRIES_MAX {
        let from = describe(connection, head, source).await?;
        match attempt(from).await {
            Ok(copied) => return Ok(copied),
            Err(CopyError::Refused(error)) => return Err(error),
            Err(CopyError::Changed) => {
                let router = &connection.context().router;
                router.invalidate(source.block(0)).await;
            }
        }
    }
    Err(ReadError::Changed.into())
}

/// Why nothing was copied.
pub enum CopyError {
    /// The source is no longer what it was said to be.
    Changed,
    /// The client is told.
    Refused(ErrorReply),
}

impl From<ErrorReply> for CopyError {
    fn from(error: ErrorReply) -> Self {
        CopyError::Refused(error)
    }
}

impl From<ReadError> for CopyError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Changed | ReadError::NotFound => CopyError::Changed,
            error => CopyError::Refused(error.into()),
        }
    }
}

/// Reads a span of one version of an object, through the cache.
pub struct SourceReader {
    context: Rc<CoreContext>,
    source: ObjectRequest,
    meta: Arc<ObjectMeta>,
    span: ByteSpan,
    /// What is left of the block that was read last.
    rest: Option<View>,
}

impl SourceReader {
    /// Reads `span` of the version that `meta` describes.
    pub fn new(
        context: &Rc<CoreContext>,
        source: &ObjectRequest,
        meta: &Arc<ObjectMeta>,
        span: ByteSpan,
    ) -> SourceReader {
        SourceReader {
            context: context.clone(),
            source: ObjectRequest {
                volume: source.volume.clone(),
                key: source.key.clone(),
            },
            meta: meta.clone(),
            span,
            rest: None,
        }
    }

    /// Bytes still to be read.
    pub fn left(&self) -> u64 {
        self.span.len() + self.rest.as_ref().map_or(0, |rest| rest.len() as u64)
    }

    /// Reads so many bytes, which must be left, and checksums them.
    pub async fn fill(
        &mut self,
        buffer: &mut BufferWriter,
        bytes: u64,
    ) -> Result<PayloadChecksums, ReadError> {
        let mut checksums = PayloadChecksums::default();
        let mut left = bytes as usize;
        while left > 0 {
            let view = match self.rest.take() {
                Some(rest) => rest,
                None => self.next_block().await?,
            };
            let count = view.len().min(left);
            for piece in view[..count].chunks(PAUSE_BYTES) {
                checksums.update(piece);
                buffer.append(piece);
                self.context.runtime.yield_now().await;
            }
            left -= count;
            if count < view.len() {
                self.rest = Some(view.slice(count..view.len()));
            }
        }
        Ok(checksums)
    }

    async fn next_block(&mut self) -> Result<View, ReadError> {
        let router = &self.context.router;
        let block_bytes = self.source.volume.block_bytes;
        let number = self.span.start / block_bytes;
        let range = part_of_block(self.span, number, block_bytes);
        let body = match number {
            // Of its home: what the store does not have is there only.
            0 => {
                let spec = RangeSpec::Between(self.span.start, self.span.end - 1);
                let opened = router.open(self.source.block(0), Some(spec)).await?;
                let is_same =
                    opened.meta.etag == self.meta.etag && opened.meta.size == self.meta.size;
                opened.first.filter(|_| is_same).ok_or(ReadError::Changed)?
            }
            _ => {
                let request = BlockRequest {
                    id: self.source.block(number),
                    meta: self.meta.clone(),
                    range: range.clone(),
                };
                router.read_block(request).await?.0
            }
        };
        let view = whole(body).await?;
        if view.len() != range.len() {
            return Err(ReadError::Changed);
        }
        self.span.start += view.len() as u64;
        Ok(view)
    }
}

/// All of what a block has of a range, once it is there.
async fn whole(body: BlockBody) -> Result<View, ReadError> {
    match body {
        BlockBody::Ready(view) => Ok(view),
        BlockBody::Filling { watch, range } => {
            let filled = watch.wait_for(range.end).await;
            match filled {
                Ok(filled) if filled >= range.end => Ok(watch.view(range)),
                _ => {
                    let message = "the fetch of a block failed after its head";
                    let error = StoreError::new(StoreErrorKind::Corrupt, message);
                    Err(ReadError::Store(Arc::new(error)))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head;

    fn named(value: &str) -> Result<(String, String), (u16, &'static str)> {
        let text = format!("PUT /v/k HTTP/1.1\r\nHost: x\r\nx-amz-copy-source: {value}\r\n\r\n");
        let head = head::parse(text.as_bytes()).expect("a good head");
        name(&head).map_err(|error| (error.status, error.code))
    }

    #[test]
    fn sources_are_named_as_clients_do() {
        let pair = |volume: &str, key: &str| Ok((volume.to_owned(), key.to_owned()));
        for (value, expected) in [
            ("v/k", pair("v", "k")),
            ("/v/k", pair("v", "k")),
            ("v/a/b%20c+%2B/%C3%BC", pair("v", "a/b c++/ü")),
            ("v//k", pair("v", "/k")),
            ("v%2Fk", pair("v", "k")),
            ("%2fv%2Fa%2Fb%20c", pair("v", "a/b c")),
            ("v/k?versionId=null", pair("v", "k")),
            ("v/k%3FversionId=x", pair("v", "k?versionId=x")),
            ("v/k?versionId=x", Err((501, "NotImplemented"))),
            ("v/k?versionId", Err((400, "InvalidArgument"))),
            ("v/k?a=b", Err((400, "InvalidArgument"))),
            ("v", Err((400, "InvalidArgument"))),
            ("v/", Err((400, "InvalidArgument"))),
            ("", Err((400, "InvalidArgument"))),
            ("-/ping", Err((400, "InvalidArgument"))),
            ("v/../w/k", Err((400, "InvalidURI"))),
            ("v/%00k", Err((400, "InvalidURI"))),
            ("v/%zz", Err((400, "InvalidURI"))),
            ("arn:aws:s3:x", Err((501, "NotImplemented"))),
        ] {
            assert_eq!(named(value), expected, "{value}");
        }
    }
}
