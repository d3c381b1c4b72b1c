//! Versions of objects, by their ids: reads past the cache, deletions, tags; and whether a bucket keeps
//! them at all. Lists of versions are in [`super::list_versions`].
//!
//! A version is asked of its store each time and streamed from there; nothing of it is cached, for the
//! cache knows objects by their keys. All bytes of a response are of the version that its head tells.

use super::conditional::{self, Verdict};
use super::connection::{Connection, Ended};
use super::get::{
    Wishes, checksum_headers, core_label, object_headers, span_headers, version_headers,
};
use super::head::Head;
use super::limits::{SEND_BYTES_MAX, VERSION_WAIT_MAX, VERSIONING_BODY_BYTES_MAX};
use super::put::{DELETE_MARKER, refuse_conditions, tell_deleted, version_header};
use super::reply::{ErrorReply, ReplyHead};
use super::{ObjectRequest, delete_objects, finish_with, range};
use crate::xml::{self, Document, Node, XmlError};
use bytes::Bytes;
use forebay_io::local::Permit;
use forebay_io::runtime::timeout;
use forebay_io::store::{ByteSpan, GetRequest, ObjectMeta, StoreError, StoreErrorKind};
use forebay_io::tags::Tags;
use forebay_io::uplink::Fetched;
use forebay_io::versions::{NULL_VERSION, VersionName, Versioning};
use forebay_shards::key::Volume;
use forebay_shards::messages::{Outcome, ReadError};
use forebay_shards::range::RangeSpec;
use forebay_shards::versions::{UnsettledError, VersioningError};
use std::io;
use std::sync::Arc;

/// A version that was found, and its bytes if they are wanted.
struct Found {
    meta: ObjectMeta,
    spec: RangeSpec,
    span: ByteSpan,
    body: Option<Fetched>,
}

/// What became of the question for one.
enum Asked {
    Found(Box<Found>),
    NotModified(ObjectMeta),
}

/// An error of a store's about one version of an object, as S3 tells it.
fn about_version(error: &StoreError) -> ErrorReply {
    match (error.kind, error.status) {
        (StoreErrorKind::NotFound, _) => {
            ErrorReply::new(404, "NoSuchVersion", "the object has no such version")
        }
        (_, Some(405)) => {
            let message = "the version is a marker of a deletion";
            ErrorReply::new(405, "MethodNotAllowed", message).with(DELETE_MARKER, "true")
        }
        (StoreErrorKind::Rejected, Some(400)) => {
            ErrorReply::new(400, "InvalidArgument", "no version can have such an id")
        }
        (StoreErrorKind::PreconditionFailed, _) => ReadError::Changed.into(),
        _ => ErrorReply::from(error),
    }
}

fn name(object: &ObjectRequest, version_id: &str) -> VersionName {
    VersionName {
        key: object.key.to_string(),
        version_id: version_id.to_owned(),
    }
}

/// The version `null` may be what waits for its upload.
async fn settle(
    connection: &Connection,
    object: &ObjectRequest,
    version_id: &str,
) -> Result<(), ErrorReply> {
    if version_id == NULL_VERSION {
        let router = &connection.context().router;
        router.settle(&object.block(0)).await?;
    }
    Ok(())
}

/// What the store says of a version.
///
/// # Errors
/// What the client is told instead.
pub async fn describe(
    connection: &Connection,
    object: &ObjectRequest,
    version_id: &str,
) -> Result<ObjectMeta, ErrorReply> {
    settle(connection, object, version_id).await?;
    let router = &connection.context().router;
    let head = router.head_version(&object.volume, name(object, version_id));
    let head = head.await.map_err(|error| about_version(&error))?;
    Ok(head.meta)
}

/// Serves `GET` or `HEAD` of a version.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    wishes: &Wishes,
    version_id: &str,
) -> Result<(), Ended> {
    let asked = match ask(connection, head, object, wishes, version_id).await {
        Ok(asked) => asked,
        Err(error) => return finish_with(connection, error, object).await,
    };
    let (asked, _permit) = asked;
    let found = match asked {
        Asked::Found(found) => found,
        Asked::NotModified(meta) => {
            let mut reply = begin(connection, object, &meta, version_id, 304);
            object_headers(&mut reply, &meta, &Default::default());
            let reply = connection.seal_head(reply);
            return connection.send(&[&reply]).await;
        }
    };
    let status = if found.spec == RangeSpec::All {
        200
    } else {
        206
    };
    let mut reply = begin(connection, object, &found.meta, version_id, status);
    object_headers(&mut reply, &found.meta, wishes.overrides());
    if wishes.with_checksum() && status == 200 {
        checksum_headers(&mut reply, &found.meta);
    }
    span_headers(&mut reply, status, found.span, found.meta.size);
    let reply = connection.seal_head(reply);
    let sent = match found.body {
        Some(body) => send_body(connection, object, reply, body).await,
        None => connection.send(&[&reply]).await,
    };
    let stats = connection.context().stats().outcome(Outcome::Bypass);
    stats.responses.add(1);
    if wishes.with_body() && sent.is_ok() {
        stats.bytes.add(found.span.len());
    }
    stats.times.record(connection.elapsed());
    sent
}

fn begin(
    connection: &Connection,
    object: &ObjectRequest,
    meta: &ObjectMeta,
    version_id: &str,
    status: u16,
) -> ReplyHead {
    let mut reply = connection.reply(status);
    reply
        .header("accept-ranges", "bytes")
        .header("x-cache", Outcome::Bypass.label())
        .header("x-forebay-core", core_label(connection, &object.block(0)));
    version_headers(&mut reply, meta);
    version_header(&mut reply, Some(version_id));
    reply
}

/// Asks the store for what a request wants, and judges it. The permit is kept while bytes are sent:
/// each such response holds one of the core's fetches.
async fn ask(
    connection: &Connection,
    head: &Head,
    object: &ObjectRequest,
    wishes: &Wishes,
    version_id: &str,
) -> Result<(Asked, Permit), ErrorReply> {
    let context = connection.context();
    let reading = context.version_reads.acquire();
    let permit = timeout(&context.runtime, VERSION_WAIT_MAX, reading).await;
    let permit = permit.ok_or_else(|| ErrorReply::slow_down("too many versions are being read"))?;
    let mut ranges = head.values("range");
    let mut spec = match (ranges.next(), ranges.next()) {
        (Some(value), None) => range::parse(value),
        _ => RangeSpec::All,
    };
    if spec == RangeSpec::All && wishes.with_body() {
        settle(connection, object, version_id).await?;
        let body = fetch(connection, object, version_id, None, None).await?;
        let meta = body.meta.clone();
        let asked = judge(head, meta, spec)?;
        return Ok((with_body(asked, Some(body)), permit));
    }
    let meta = describe(connection, object, version_id).await?;
    if !conditional::range_holds(head, &meta) {
        spec = RangeSpec::All;
    }
    let asked = judge(head, meta, spec)?;
    let Asked::Found(found) = asked else {
        return Ok((asked, permit));
    };
    let body = match wishes.with_body() {
        false => None,
        true => {
            let span = (!found.span.is_empty()).then_some(found.span);
            let body = fetch(connection, object, version_id, span, Some(&found.meta)).await?;
            if body.span != found.span || body.meta.size != found.meta.size {
                return Err(ReadError::Changed.into());
            }
            Some(body)
        }
    };
    Ok((with_body(Asked::Found(found), body), permit))
}

/// Whether the request's conditions hold for a version, and which bytes of it are wanted.
fn judge(head: &Head, meta: ObjectMeta, spec: RangeSpec) -> Result<Asked, ErrorReply> {
    match conditional::judge(head, &meta) {
        Verdict::Proceed => {}
        Verdict::NotModified => return Ok(Asked::NotModified(meta)),
        Verdict::Failed => {
            let message = "a precondition did not hold";
            return Err(ErrorReply::new(412, "PreconditionFailed", message));
        }
    }
    let span = spec.resolve(meta.size);
    let span = span.map_err(|_| ReadError::NotSatisfiable { size: meta.size })?;
    Ok(Asked::Found(Box::new(Found {
        meta,
        spec,
        span,
        body: None,
    })))
}

fn with_body(asked: Asked, body: Option<Fetched>) -> Asked {
    match asked {
        Asked::Found(found) => Asked::Found(Box::new(Found { body, ..*found })),
        asked => asked,
    }
}

async fn fetch(
    connection: &Connection,
    object: &ObjectRequest,
    version_id: &str,
    span: Option<ByteSpan>,
    known: Option<&ObjectMeta>,
) -> Result<Fetched, ErrorReply> {
    let tag = known.map(|meta| meta.etag.clone());
    let request = GetRequest {
        key: object.key.to_string(),
        span,
        if_match: tag.filter(|tag| !tag.is_empty() && !tag.starts_with("W/")),
        if_none_match: None,
        version_id: Some(version_id.to_owned()),
    };
    let router = &connection.context().router;
    let fetched = router.get_version(&object.volume, request).await;
    fetched.map_err(|error| about_version(&error))
}

/// Sends the head and what the store sends, piece by piece. What breaks off ends the connection short of
/// the declared length.
async fn send_body(
    connection: &mut Connection,
    object: &ObjectRequest,
    head: Vec<u8>,
    fetched: Fetched,
) -> Result<(), Ended> {
    let mut head = head.as_slice();
    let mut left = fetched.span.len();
    let mut body = fetched.body;
    if left == 0 {
        return connection.send(&[head]).await;
    }
    while left > 0 {
        let piece: Bytes = match body.recv().await {
            Some(Ok(piece)) if piece.len() as u64 <= left => piece,
            failed => {
                let why = match failed {
                    Some(Err(error)) => error.to_string(),
                    _ => "the store's answer has another length than it said".to_owned(),
                };
                let name = object.resource();
                log::warn!("{name}: the response was cut short: {why}");
                return Err(Ended::Io(io::Error::other(why)));
            }
        };
        left -= piece.len() as u64;
        for part in piece.chunks(SEND_BYTES_MAX) {
            connection.send(&[head, part]).await?;
            head = b"";
        }
    }
    Ok(())
}

/// Serves `DELETE` of a version.
pub async fn delete(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    version_id: &str,
) -> Result<(), Ended> {
    if let Err(error) = refuse_conditions(head, "the deletion of a version") {
        return finish_with(connection, error, object).await;
    }
    let router = &connection.context().router;
    let home = object.block(0);
    let deleted = router.delete_version(&home, version_id.to_owned()).await;
    tell_deleted(connection, object, deleted).await
}

/// The tags of a version.
///
/// # Errors
/// What the client is told instead.
pub async fn tags(
    connection: &Connection,
    object: &ObjectRequest,
    version_id: &str,
) -> Result<Tags, ErrorReply> {
    settle(connection, object, version_id).await?;
    let router = &connection.context().router;
    let tags = router.version_tags(&object.volume, name(object, version_id));
    tags.await.map_err(|error| about_version(&error))
}

/// Replaces the tags of a version.
///
/// # Errors
/// What the client is told instead.
pub async fn set_tags(
    connection: &Connection,
    object: &ObjectRequest,
    version_id: &str,
    tags: Tags,
) -> Result<(), ErrorReply> {
    settle(connection, object, version_id).await?;
    let router = &connection.context().router;
    let set = router.set_version_tags(&object.volume, name(object, version_id), tags);
    set.await.map_err(|error| about_version(&error))
}

/// Root of the document that says what a bucket does with versions.
const VERSIONING: &str = "VersioningConfiguration";

/// The document that says what the bucket behind a volume does with versions.
///
/// # Errors
/// What the client is told instead.
pub async fn versioning(
    connection: &Connection,
    volume: &Arc<Volume>,
) -> Result<String, ErrorReply> {
    let mut document = Document::new(VERSIONING);
    if volume.versions.may_be_kept() {
        match connection.context().router.versioning(volume).await {
            Ok(Versioning::Never) => {}
            Ok(Versioning::Enabled) => drop(document.element("Status", "Enabled")),
            Ok(Versioning::Suspended) => drop(document.element("Status", "Suspended")),
            // A store that does not know the question keeps no versions.
            Err(error) if error.kind == StoreErrorKind::Unsupported => {}
            Err(error) => return Err(ErrorReply::from(&error)),
        }
    }
    Ok(document.finish(VERSIONING))
}

/// Takes a document that says what the bucket is to do with versions, and has it done.
pub async fn set_versioning(
    connection: &mut Connection,
    head: &Head,
    volume: &Arc<Volume>,
) -> Result<Result<(), ErrorReply>, Ended> {
    if !volume.versions.may_be_kept() {
        let what = "PUT of a volume with the query parameter \"versioning\"";
        return Ok(Err(ErrorReply::not_implemented(what)));
    }
    let body = delete_objects::read_document(connection, head, VERSIONING_BODY_BYTES_MAX).await;
    let wanted = match body {
        Ok(body) => parse(&body),
        Err(delete_objects::Unread::Refused(error)) => Err(error),
        Err(delete_objects::Unread::Ended(ended)) => return Err(ended),
    };
    let is_enabled = match wanted {
        Ok(is_enabled) => is_enabled,
        Err(error) => return Ok(Err(error)),
    };
    let router = &connection.context().router;
    let set = router.set_versioning(volume, is_enabled).await;
    Ok(set.map_err(|error| match error {
        VersioningError::Unsettled(error) => unsettled(error),
        VersioningError::Store(error) => ErrorReply::from(&error),
    }))
}

/// 503: what must be in the store first is not.
pub(super) fn unsettled(error: UnsettledError) -> ErrorReply {
    match error {
        UnsettledError::Waiting => {
            let message = "what was written before is not all in the object store yet; try again";
            ErrorReply::slow_down(message)
        }
        UnsettledError::Write(error) => {
            let message = format!("what was written before does not reach the store: {error}");
            ErrorReply::slow_down(&message)
        }
        UnsettledError::Names(error) => error.into(),
    }
}

/// Reads whether versions are to be kept.
fn parse(body: &[u8]) -> Result<bool, ErrorReply> {
    let malformed = |what: String| {
        let message = format!("the document is not what PutBucketVersioning takes: {what}");
        ErrorReply::new(400, "MalformedXML", message)
    };
    let (mut status, mut mfa) = (None, None);
    let read = xml::read(body, |path, node| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match (names.as_slice(), node) {
            ([VERSIONING], _) => {}
            ([VERSIONING, "Status"], Node::Close(text)) if status.is_none() => {
                status = Some(text.trim().to_owned());
            }
            ([VERSIONING, "MfaDelete"], Node::Close(text)) if mfa.is_none() => {
                mfa = Some(text.trim().to_owned());
            }
            ([VERSIONING, "Status" | "MfaDelete"], Node::Open) => {}
            _ => return Err(XmlError::new(format!("an element {}", names.join("/")))),
        }
        Ok(())
    });
    read.map_err(|error| malformed(error.to_string()))?;
    match mfa.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled") => return Err(ErrorReply::not_implemented("MfaDelete")),
        Some(_) => return Err(malformed("MfaDelete is Enabled or Disabled".into())),
    }
    match status.as_deref() {
        Some("Enabled") => Ok(true),
        Some("Suspended") => Ok(false),
        None => {
            let message = "the document says no Status";
            Err(ErrorReply::new(
                400,
                "IllegalVersioningConfigurationException",
                message,
            ))
        }
        Some(_) => Err(malformed("Status is Enabled or Suspended".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_says_whether_versions_are_kept() {
        let of = |inside: &str| {
            let body = format!("<{VERSIONING} xmlns=\"urn:a\">{inside}</{VERSIONING}>");
            parse(body.as_bytes()).map_err(|error| (error.status, error.code))
        };
        assert_eq!(of("<Status>Enabled</Status>"), Ok(true));
        let both = "<MfaDelete>Disabled</MfaDelete><Status> Suspended </Status>";
        assert_eq!(of(both), Ok(false));
        for (inside, expected) in [
            ("", (400, "IllegalVersioningConfigurationException")),
            ("<Status>On</Status>", (400, "MalformedXML")),
            (
                "<Status>Enabled</Status><Status>Enabled</Status>",
                (400, "MalformedXML"),
            ),
            ("<Status>Enabled</Status><Other/>", (400, "MalformedXML")),
            ("<Status><b/></Status>", (400, "MalformedXML")),
            (
                "<Status>Enabled</Status><MfaDelete>Enabled</MfaDelete>",
                (501, "NotImplemented"),
            ),
            ("<MfaDelete>Perhaps</MfaDelete>", (400, "MalformedXML")),
        ] {
            assert_eq!(of(inside), Err(expected), "{inside}");
        }
        assert!(parse(b"").is_err() && parse(b"<Versioning/>").is_err());
    }

    #[test]
    fn what_stores_say_of_versions_is_told_in_s3s_words() {
        let told = |kind, status| {
            let mut error = StoreError::new(kind, "scripted");
            error.status = status;
            let reply = about_version(&error);
            (reply.status, reply.code)
        };
        use StoreErrorKind as Kind;
        assert_eq!(told(Kind::NotFound, Some(404)), (404, "NoSuchVersion"));
        assert_eq!(told(Kind::Rejected, Some(405)), (405, "MethodNotAllowed"));
        assert_eq!(told(Kind::Rejected, Some(400)), (400, "InvalidArgument"));
        assert_eq!(told(Kind::PreconditionFailed, None), (503, "SlowDown"));
        assert_eq!(told(Kind::Unsupported, Some(501)), (501, "NotImplemented"));
        assert_eq!(told(Kind::Denied, Some(403)), (502, "BadGateway"));
    }
}
