//! DeleteObjects: many keys in one request, each deleted exactly as by a DELETE of its own.
//!
//! This file owns the document that names them and the one that answers. Nothing is deleted before
//! the whole body was received, verified and understood; then each key has its own outcome, and one
//! that failed says why.

use super::connection::{Connection, Ended};
use super::digest::BodyChecks;
use super::head::{Framing, Head};
use super::limits::{
    DELETE_BODY_BYTES_MAX, DELETE_FAILURES_MAX, DELETE_KEYS_MAX, DELETES_AT_ONCE_MAX, LIST_WAIT_MAX,
};
use super::reply::ErrorReply;
use super::{ObjectRequest, put, target};
use crate::xml::{self, Document, Node, XmlError};
use forebay_io::runtime::timeout;
use forebay_io::versions::{Deleted, NULL_VERSION};
use forebay_shards::key::Volume;
use forebay_shards::messages::WriteCondition;
use futures::stream::{self, StreamExt};
use std::cell::Cell;
use std::sync::Arc;

/// Bytes read from the client at once.
const READ_BYTES: usize = 64 << 10;

/// What is to be deleted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    objects: Vec<Doomed>,
    /// Whether only failures are to be told.
    is_quiet: bool,
}

/// An object that is to be deleted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Doomed {
    key: String,
    /// The ETag of the version that is to be deleted, if only that is.
    etag: Option<String>,
    /// The version that is to be deleted, if not the present one.
    version_id: Option<String>,
    /// What it is to be deleted only if: a condition that we cannot keep to.
    condition: Option<String>,
}

/// The document that answers; the outer error is the connection's.
pub async fn make(
    connection: &mut Connection,
    head: &Head,
    volume: &Arc<Volume>,
) -> Result<Result<String, ErrorReply>, Ended> {
    let context = connection.context().clone();
    let permit = timeout(&context.runtime, LIST_WAIT_MAX, context.deleting.acquire()).await;
    let Some(_permit) = permit else {
        let message = "too many DeleteObjects are under way";
        return Ok(Err(ErrorReply::slow_down(message)));
    };
    let read = read_document(connection, head, DELETE_BODY_BYTES_MAX).await;
    let order = match read.and_then(|body| Ok(parse(&body)?)) {
        Ok(order) => order,
        Err(Unread::Refused(error)) => return Ok(Err(error)),
        Err(Unread::Ended(ended)) => return Err(ended),
    };
    context.router.know_versioning(volume).await;
    Ok(Ok(carry_out(connection, volume, order).await))
}

/// What the body must match. S3 wants a checksum of every document that deletes.
fn checks_of(head: &Head, bytes_max: u64) -> Result<BodyChecks, ErrorReply> {
    let length = match head.framing {
        Framing::Length(length) => length,
        Framing::None | Framing::Chunked => {
            let message = "the document needs a Content-Length";
            return Err(ErrorReply::new(411, "MissingContentLength", message).closing());
        }
    };
    if length > bytes_max {
        let message = format!("the document has at most {bytes_max} bytes");
        return Err(ErrorReply::new(413, "EntityTooLarge", message));
    }
    let payload = head.header("x-amz-content-sha256").unwrap_or_default();
    if payload.starts_with("STREAMING-") {
        let what = "a document in signed or unsigned chunks";
        return Err(ErrorReply::not_implemented(what));
    }
    let has_checksum = head.has("content-md5")
        || ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"]
            .iter()
            .any(|name| head.has(&format!("x-amz-checksum-{name}")));
    let checks = BodyChecks::of(head)?;
    if !has_checksum {
        let message = "the document needs Content-MD5 or an x-amz-checksum-* header";
        return Err(ErrorReply::new(400, "InvalidRequest", message));
    }
    Ok(checks)
}

/// Why there is no document.
pub(super) enum Unread {
    /// The client is told.
    Refused(ErrorReply),
    /// The connection ended.
    Ended(Ended),
}

impl From<ErrorReply> for Unread {
    fn from(error: ErrorReply) -> Self {
        Unread::Refused(error)
    }
}

/// Reads a document that changes a volume: all of it, verified.
pub(super) async fn read_document(
    connection: &mut Connection,
    head: &Head,
    bytes_max: u64,
) -> Result<Vec<u8>, Unread> {
    let mut checks = checks_of(head, bytes_max)?;
    let mut body = Vec::new();
    let mut piece = vec![0; READ_BYTES];
    loop {
        let count = connection.read_body(&mut piece).await;
        match count.map_err(Unread::Ended)? {
            0 => break,
            count => body.extend_from_slice(&piece[..count]),
        }
    }
    checks.update(&body);
    checks.verify()?;
    Ok(body)
}

/// Reads the document.
fn parse(body: &[u8]) -> Result<Order, ErrorReply> {
    let mut order = Order::default();
    let mut doomed: Option<Doomed> = None;
    let mut has_key = false;
    let outcome = xml::read(body, |path, node| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match (names.as_slice(), node) {
            (["Delete"], _) => {}
            (["Delete", "Object"], Node::Open) => {
                (doomed, has_key) = (Some(Doomed::default()), false);
            }
            (["Delete", "Object"], Node::Close(_)) => {
                let whole = doomed.take().filter(|_| has_key);
                let whole = whole.ok_or_else(|| XmlError::new("an Object without Key"))?;
                if order.objects.len() == DELETE_KEYS_MAX {
                    let message = format!("more than {DELETE_KEYS_MAX} objects");
                    return Err(XmlError::new(message));
                }
                order.objects.push(whole);
            }
            (["Delete", "Quiet"], Node::Close(text)) => {
                order.is_quiet = text.trim().eq_ignore_ascii_case("true");
            }
            (["Delete", "Object", name], Node::Close(text)) => {
                let doomed = doomed.as_mut().expect("inside an Object");
                match *name {
                    "Key" if has_key => return Err(XmlError::new("an Object with two keys")),
                    "Key" => (doomed.key, has_key) = (text.to_owned(), true),
                    "VersionId" => {
                        let id = text.trim();
                        doomed.version_id = (!id.is_empty()).then(|| id.to_owned());
                    }
                    "ETag" => doomed.etag = Some(text.trim().to_owned()),
                    "LastModifiedTime" | "Size" => {
                        doomed.condition = Some((*name).to_owned());
                    }
                    _ => return Err(XmlError::new(format!("an element {name:?}"))),
                }
            }
            (["Delete", "Quiet"] | ["Delete", "Object", _], Node::Open) => {}
            _ => {
                let name = names.last().copied().unwrap_or_default();
                return Err(XmlError::new(format!("an element {name:?}")));
            }
        }
        Ok(())
    });
    let malformed = |what: String| {
        let message = format!("the document is not what DeleteObjects takes: {what}");
        ErrorReply::new(400, "MalformedXML", message)
    };
    outcome.map_err(|error| malformed(error.to_string()))?;
    if order.objects.is_empty() {
        return Err(malformed("it names no object".to_owned()));
    }
    if order.objects.iter().any(|doomed| doomed.key.is_empty()) {
        let message = "a key is empty; it must have at least one byte";
        return Err(ErrorReply::new(400, "UserKeyMustBeSpecified", message));
    }
    Ok(order)
}

/// Deletes a few at a time and tells in the order in which they were named.
async fn carry_out(connection: &Connection, volume: &Arc<Volume>, order: Order) -> String {
    const ROOT: &str = "DeleteResult";
    let failures = Cell::new(0);
    let failures = &failures;
    let deletes = order.objects.into_iter().map(|doomed| async move {
        let outcome = match failures.get() >= DELETE_FAILURES_MAX {
            true => {
                let message = "not tried: the store did not take those before it";
                Err(ErrorReply::slow_down(message))
            }
            false => delete(connection, volume, &doomed).await,
        };
        match &outcome {
            Err(error) if error.status >= 500 && error.status != 501 => {
                failures.set(failures.get() + 1);
            }
            _ => failures.set(0),
        }
        (doomed, outcome)
    });
    let mut deletes = stream::iter(deletes).buffered(DELETES_AT_ONCE_MAX);
    let mut document = Document::new(ROOT);
    while let Some((doomed, outcome)) = deletes.next().await {
        let key = &doomed.key;
        match outcome {
            Ok(_) if order.is_quiet => {}
            Ok(deleted) => {
                document.open("Deleted").exact_element("Key", key);
                tell(&mut document, &doomed, &deleted);
                document.close("Deleted");
            }
            Err(error) => {
                document.open("Error").exact_element("Key", key);
                if let Some(version_id) = &doomed.version_id {
                    document.element("VersionId", version_id);
                }
                document.element("Code", error.code);
                document.element("Message", &error.message).close("Error");
            }
        }
    }
    document.finish(ROOT)
}

/// Tells which version, or marker, is gone, and which marker is there now.
fn tell(document: &mut Document, doomed: &Doomed, deleted: &Deleted) {
    if let Some(version_id) = &doomed.version_id {
        document.element("VersionId", version_id);
    }
    if let (Some(marker), true) = (&deleted.version_id, deleted.is_marker) {
        document.flag("DeleteMarker", true);
        document.element("DeleteMarkerVersionId", marker);
    }
}

/// One DELETE.
async fn delete(
    connection: &Connection,
    volume: &Arc<Volume>,
    doomed: &Doomed,
) -> Result<Deleted, ErrorReply> {
    if let Some(condition) = &doomed.condition {
        let what = format!("deleting an object by its {condition}");
        return Err(ErrorReply::not_implemented(&what));
    }
    let condition = match doomed.etag.as_deref() {
        None | Some("*") => WriteCondition::Always,
        Some(tag) => put::version(tag)?,
    };
    let object = ObjectRequest {
        volume: volume.clone(),
        key: target::check_key(doomed.key.clone())?.into(),
    };
    let router = &connection.context().router;
    if let Some(version_id) = version_of(volume, doomed)? {
        if condition != WriteCondition::Always {
            let what = "deleting a version by its ETag";
            return Err(ErrorReply::not_implemented(what));
        }
        let home = object.block(0);
        return Ok(router.delete_version(&home, version_id).await?);
    }
    Ok(router.delete(object.block(0), condition).await?)
}

/// The version that is to be deleted, if it is not all that there is of the object.
fn version_of(volume: &Volume, doomed: &Doomed) -> Result<Option<String>, ErrorReply> {
    match &doomed.version_id {
        Some(id) if id == NULL_VERSION && volume.versions.are_unknown_to_bucket() => Ok(None),
        Some(_) if !volume.versions.may_be_kept() => {
            let what = "deleting an object by its VersionId";
            Err(ErrorReply::not_implemented(what))
        }
        version_id => Ok(version_id.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(document: &str) -> (u16, &'static str) {
        let error = parse(document.as_bytes()).expect_err(document);
        (error.status, error.code)
    }

    #[test]
    fn documents_are_read() {
        let order = parse(
            b"<?xml version=\"1.0\"?><Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
              <Object><Key>a&amp;&#13;b</Key></Object> <Object><VersionId>null</VersionId><Key> c </Key>\
              </Object><Object><Key>d</Key><VersionId>v7</VersionId></Object><Quiet>true</Quiet></Delete>",
        );
        let order = order.expect("good");
        let keys: Vec<&str> = order.objects.iter().map(|d| d.key.as_str()).collect();
        assert_eq!(keys, ["a&\rb", " c ", "d"]);
        assert!(order.is_quiet);
        assert_eq!(order.objects[0].version_id, None);
        assert_eq!(order.objects[1].version_id.as_deref(), Some("null"));
        assert_eq!(order.objects[2].version_id.as_deref(), Some("v7"));
    }

    #[test]
    fn what_is_not_understood_deletes_nothing() {
        let object = "<Object><Key>k</Key></Object>";
        let many = format!("<Delete>{}</Delete>", object.repeat(DELETE_KEYS_MAX + 1));
        let bomb = format!("<!DOCTYPE Delete [<!ENTITY a \"b\">]><Delete>{object}</Delete>");
        for document in [
            "",
            "{}",
            "<Delete></Delete>",
            "<Delete><Object></Object></Delete>",
            "<Delete><Object><VersionId>null</VersionId></Object></Delete>",
            "<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
            "<Delete><Object><Key>a</Key><Other/></Object></Delete>",
            "<Delete><Object><Key><b/></Key></Object></Delete>",
            "<Delete><Other/></Delete>",
            "<Remove><Object><Key>a</Key></Object></Remove>",
            "<Delete><Object><Key>a</Key></Object>",
            "<Delete><Object><Key>&a;</Key></Object></Delete>",
            &many,
            &bomb,
        ] {
            assert_eq!(refusal(document), (400, "MalformedXML"), "{document:.80}");
        }
        let empty = "<Delete><Object><Key/></Object></Delete>";
        assert_eq!(refusal(empty), (400, "UserKeyMustBeSpecified"));
        let most = format!("<Delete>{}</Delete>", object.repeat(DELETE_KEYS_MAX));
        assert!(parse(most.as_bytes()).is_ok());
    }
}
