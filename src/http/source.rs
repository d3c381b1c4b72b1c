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
use super::operation::{COPY_SOURCE, VERSION_ID};
use super::reply::ErrorReply;
use super::target;
use super::{CoreContext, ObjectRequest, versions};
use crate::server::volumes::VolumeTable;
use bytes::Bytes;
use forebay_io::buffer::{BufferWriter, View};
use forebay_io::queue::Receiver;
use forebay_io::runtime::Runtime;
use forebay_io::store::{
    ByteSpan, GetRequest, ObjectMeta, StoreError, StoreErrorKind, StoreResult,
};
use forebay_io::versions::{NULL_VERSION, VersionName};
use forebay_shards::block_reader::BlockReader;
use forebay_shards::format::PayloadChecksums;
use forebay_shards::messages::{BlockRequest, CopyFrom, ReadError};
use forebay_shards::range::{RangeSpec, part_of_block};
use percent_encoding::percent_decode_str;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes that are copied before others on the core have their turn.
const PAUSE_BYTES: usize = 512 << 10;

/// What a request copies.
pub struct Source {
    /// The object.
    pub object: ObjectRequest,
    /// Its version, if it is not the present one.
    pub version_id: Option<String>,
}

impl Source {
    fn version(&self) -> Option<VersionName> {
        let version_id = self.version_id.clone()?;
        let key = self.object.key.to_string();
        Some(VersionName { key, version_id })
    }
}

/// The object that a request names as its source, if it may read that.
pub fn of(table: &VolumeTable, identity: Identity<'_>, head: &Head) -> Result<Source, ErrorReply> {
    let (volume, key, version_id) = name(head)?;
    let Some(served) = table.find(&volume) else {
        let known = auth::is_known(identity, table.list().map(|volume| &volume.settings));
        return Err(match known {
            true => ErrorReply::new(404, "NoSuchBucket", "there is no volume of this name"),
            false => auth::refuse_stranger(identity),
        });
    };
    auth::check(identity, &served.settings, Access::Read)?;
    let versions = &served.volume.versions;
    let version_id = match version_id {
        // Without versions it is what there is, and may not be in the store yet.
        Some(id) if id == NULL_VERSION && versions.are_unknown_to_bucket() => None,
        Some(_) if !versions.may_be_kept() => {
            return Err(ErrorReply::not_implemented("a copy of a version by its id"));
        }
        version_id => version_id,
    };
    Ok(Source {
        object: ObjectRequest {
            volume: served.volume.clone(),
            key: key.into(),
        },
        version_id,
    })
}

/// Volume, key and perhaps a version, from the header.
fn name(head: &Head) -> Result<(String, String, Option<String>), ErrorReply> {
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
    let version_id = match version.split_once('=') {
        None if version.is_empty() => None,
        Some((VERSION_ID, id)) if !id.is_empty() => {
            let id = percent_decode_str(id).decode_utf8();
            let id = id.map_err(|_| invalid("the version of x-amz-copy-source is no text"))?;
            Some(id.into_owned())
        }
        _ => return Err(invalid("x-amz-copy-source has a query of no meaning")),
    };
    // Some encode all of it, the slashes too.
    let path = match path.contains('/') {
        true => path.to_owned(),
        false => path.replace("%2F", "/").replace("%2f", "/"),
    };
    let path = path.strip_prefix('/').unwrap_or(&path);
    // As a target, so that a key is decoded and judged in one place.
    match target::parse(&format!("/{path}"))?.target {
        target::Target::Object { volume, key } => Ok((volume, key, version_id)),
        _ => Err(invalid(
            "x-amz-copy-source is a volume and a key with a slash between",
        )),
    }
}

/// What the store or a cached copy says of the source, if the request's conditions hold.
pub async fn describe(
    connection: &Connection,
    head: &Head,
    source: &Source,
) -> Result<CopyFrom, ErrorReply> {
    let router = &connection.context().router;
    let from = match &source.version_id {
        None => router.describe_source(&source.object.block(0)).await?,
        Some(id) => {
            let found = versions::describe(connection, &source.object, id).await?;
            CopyFrom {
                store_etag: Some(found.etag.clone()),
                meta: Arc::new(found),
                version_id: source.version_id.clone(),
            }
        }
    };
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
    source: &Source,
    mut attempt: impl AsyncFnMut(CopyFrom) -> Result<T, CopyError>,
) -> Result<T, ErrorReply> {
    for _ in 0..CHANGED_RETRIES_MAX {
        let from = describe(connection, head, source).await?;
        match attempt(from).await {
            Ok(copied) => return Ok(copied),
            Err(CopyError::Refused(error)) => return Err(error),
            Err(CopyError::Changed) if source.version_id.is_some() => {}
            Err(CopyError::Changed) => {
                let router = &connection.context().router;
                router.invalidate(source.object.block(0)).await;
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
    version: Option<VersionName>,
    meta: Arc<ObjectMeta>,
    span: ByteSpan,
    /// What is left of the bytes that were read last.
    rest: Option<Bytes>,
    /// The bytes of a version, which no cache has, once they are asked for.
    body: Option<Receiver<StoreResult<Bytes>>>,
}

impl SourceReader {
    /// Reads `span` of the version that `meta` describes.
    pub fn new(
        context: &Rc<CoreContext>,
        source: &Source,
        meta: &Arc<ObjectMeta>,
        span: ByteSpan,
    ) -> SourceReader {
        SourceReader {
            context: context.clone(),
            source: ObjectRequest {
                volume: source.object.volume.clone(),
                key: source.object.key.clone(),
            },
            version: source.version(),
            meta: meta.clone(),
            span,
            rest: None,
            body: None,
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
                None => self.next_bytes().await?,
            };
            let count = view.len().min(left);
            for piece in view[..count].chunks(PAUSE_BYTES) {
                checksums.update(piece);
                buffer.append(piece);
                self.context.runtime.yield_now().await;
            }
            left -= count;
            if count < view.len() {
                self.rest = Some(view.slice(count..));
            }
        }
        Ok(checksums)
    }

    async fn next_bytes(&mut self) -> Result<Bytes, ReadError> {
        match self.version.is_some() {
            true => self.next_piece().await,
            false => self.next_block().await.map(View::into_bytes),
        }
    }

    /// The next bytes of a version, from its store.
    async fn next_piece(&mut self) -> Result<Bytes, ReadError> {
        if self.body.is_none() {
            self.body = Some(self.ask_version().await?);
        }
        let body = self.body.as_mut().expect("asked for just now");
        let piece = body.recv().await.unwrap_or_else(|| {
            let message = "the body of a version ended early";
            Err(StoreError::new(StoreErrorKind::Corrupt, message))
        });
        let piece = piece.map_err(|error| ReadError::Store(Arc::new(error)))?;
        self.span.start += piece.len() as u64;
        Ok(piece)
    }

    async fn ask_version(&self) -> Result<Receiver<StoreResult<Bytes>>, ReadError> {
        let VersionName { key, version_id } = self.version.clone().expect("a version's reader");
        let is_strong = !self.meta.etag.starts_with("W/");
        let request = GetRequest {
            key,
            span: Some(self.span),
            if_match: is_strong.then(|| self.meta.etag.clone()),
            if_none_match: None,
            version_id: Some(version_id),
        };
        let router = &self.context.router;
        let fetched = router.get_version(&self.source.volume, request).await;
        let fetched = fetched.map_err(|error| match error.kind {
            StoreErrorKind::PreconditionFailed => ReadError::Changed,
            _ => ReadError::Store(Arc::new(error)),
        })?;
        let is_same = fetched.span == self.span && fetched.meta.size == self.meta.size;
        match is_same {
            true => Ok(fetched.body),
            false => Err(ReadError::Changed),
        }
    }

    async fn next_block(&mut self) -> Result<View, ReadError> {
        let router = &self.context.router;
        let block_bytes = self.source.volume.block_bytes;
        let number = self.span.start / block_bytes;
        let range = part_of_block(self.span, number, block_bytes);
        let request = BlockRequest {
            id: self.source.block(number),
            meta: self.meta.clone(),
            range: range.clone(),
        };
        let body = match number {
            // Of its home: what the store does not have is there only.
            0 => {
                let spec = RangeSpec::Between(self.span.start, self.span.end - 1);
                let opened = router.open(self.source.block(0), Some(spec)).await?;
                let is_same =
                    opened.meta.etag == self.meta.etag && opened.meta.size == self.meta.size;
                opened.first.filter(|_| is_same).ok_or(ReadError::Changed)?
            }
            _ => router.read_block(request.clone()).await?.0,
        };
        let view = BlockReader::new(router, request, body).whole().await?;
        if view.len() != range.len() {
            return Err(ReadError::Changed);
        }
        self.span.start += view.len() as u64;
        Ok(view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head;

    fn named(value: &str) -> Result<(String, String, Option<String>), (u16, &'static str)> {
        let text = format!("PUT /v/k HTTP/1.1\r\nHost: x\r\nx-amz-copy-source: {value}\r\n\r\n");
        let head = head::parse(text.as_bytes()).expect("a good head");
        name(&head).map_err(|error| (error.status, error.code))
    }

    #[test]
    fn sources_are_named_as_clients_do() {
        let version = |volume: &str, key: &str, id: Option<&str>| {
            Ok((volume.to_owned(), key.to_owned(), id.map(str::to_owned)))
        };
        let pair = |volume: &str, key: &str| version(volume, key, None);
        for (value, expected) in [
            ("v/k", pair("v", "k")),
            ("/v/k", pair("v", "k")),
            ("v/a/b%20c+%2B/%C3%BC", pair("v", "a/b c++/ü")),
            ("v//k", pair("v", "/k")),
            ("v%2Fk", pair("v", "k")),
            ("%2fv%2Fa%2Fb%20c", pair("v", "a/b c")),
            ("v/k?versionId=null", version("v", "k", Some("null"))),
            ("v/k?versionId=a%2Fb+c", version("v", "k", Some("a/b+c"))),
            ("v/k?versionId=", Err((400, "InvalidArgument"))),
            ("v/k?versionId=%ff", Err((400, "InvalidArgument"))),
            ("v/k%3FversionId=x", pair("v", "k?versionId=x")),
            ("v/k?versionId=x", version("v", "k", Some("x"))),
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
