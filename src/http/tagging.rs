//! Tags of an object: GetObjectTagging, PutObjectTagging, DeleteObjectTagging.
//!
//! This file owns their document. Nothing is changed before all of it was received, verified and
//! understood.

use super::body::{Body, BodyError};
use super::connection::{Connection, Ended};
use super::get::core_label;
use super::head::{Framing, Head};
use super::limits::TAGGING_BODY_BYTES_MAX;
use super::put::{Signed, refuse_conditions, version_header};
use super::reply::ErrorReply;
use super::{ObjectRequest, bucket, finish_with, versions};
use crate::xml::{self, Node, XmlError};
use forebay_io::tags::{TAG_NAME_MAX, TAG_VALUE_MAX, TAGS_MAX, Tags};

/// Serves GetObjectTagging.
pub async fn read(
    connection: &mut Connection,
    object: &ObjectRequest,
    version_id: Option<&str>,
) -> Result<(), Ended> {
    let tags = match version_id {
        None => {
            let tags = connection.context().router.tags(&object.block(0)).await;
            tags.map_err(ErrorReply::from)
        }
        Some(id) => versions::tags(connection, object, id).await,
    };
    match tags {
        Ok(tags) => {
            let mut reply = connection.reply(200);
            version_header(&mut reply, version_id);
            bucket::respond_with(connection, reply, &xml::tagging(&tags)).await
        }
        Err(error) => finish_with(connection, error, object).await,
    }
}

/// Serves PutObjectTagging.
pub async fn write(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    version_id: Option<&str>,
    signed: Signed,
) -> Result<(), Ended> {
    match receive(connection, head, signed).await {
        Ok(tags) => set(connection, object, version_id, tags, 200).await,
        Err(BodyError::Refused(error)) => finish_with(connection, error, object).await,
        Err(BodyError::Ended(ended)) => Err(ended),
    }
}

/// Serves DeleteObjectTagging.
pub async fn clear(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    version_id: Option<&str>,
) -> Result<(), Ended> {
    if let Err(error) = refuse_conditions(head, "the removal of tags") {
        return finish_with(connection, error, object).await;
    }
    set(connection, object, version_id, Tags::new(), 204).await
}

async fn set(
    connection: &mut Connection,
    object: &ObjectRequest,
    version_id: Option<&str>,
    tags: Tags,
    status: u16,
) -> Result<(), Ended> {
    let router = &connection.context().router;
    let set = match version_id {
        None => {
            let set = router.set_tags(&object.block(0), tags).await;
            set.map_err(ErrorReply::from)
        }
        Some(id) => versions::set_tags(connection, object, id, tags).await,
    };
    if let Err(error) = set {
        return finish_with(connection, error, object).await;
    }
    let mut reply = connection.reply(status);
    version_header(&mut reply, version_id);
    reply.header("x-forebay-core", core_label(connection, &object.block(0)));
    match status {
        204 => {
            let reply = connection.seal_head(reply);
            connection.send(&[&reply]).await
        }
        _ => connection.respond(reply, b"").await,
    }
}

async fn receive(
    connection: &mut Connection,
    head: &Head,
    signed: Signed,
) -> Result<Tags, BodyError> {
    refuse_conditions(head, "a change of tags")?;
    let body = Body::of(head, signed.chunks)?;
    if matches!(head.framing, Framing::None) || body.length() > TAGGING_BODY_BYTES_MAX {
        let message = format!("the document has 1 to {TAGGING_BODY_BYTES_MAX} bytes");
        return Err(malformed(&message).into());
    }
    Ok(parse(&body.read_all(connection).await?)?)
}

fn malformed(what: &str) -> ErrorReply {
    let message = format!("the document does not name tags: {what}");
    ErrorReply::new(400, "MalformedXML", message)
}

fn parse(document: &[u8]) -> Result<Tags, ErrorReply> {
    let mut tags = Tags::new();
    let (mut name, mut value) = (None, None);
    let mut has_set = false;
    let read = xml::read(document, |path, node| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match (names.as_slice(), node) {
            (["Tagging"], _) => {}
            (["Tagging", "TagSet"], _) => has_set = true,
            (["Tagging", "TagSet", "Tag"], Node::Open) => (name, value) = (None, None),
            (["Tagging", "TagSet", "Tag", "Key"], Node::Close(text)) => {
                name = Some(text.to_owned())
            }
            (["Tagging", "TagSet", "Tag", "Value"], Node::Close(text)) => {
                value = Some(text.to_owned());
            }
            (["Tagging", "TagSet", "Tag"], Node::Close(_)) => match (name.take(), value.take()) {
                (Some(name), Some(value)) => tags.push((name, value)),
                _ => return Err(XmlError::new("a Tag without Key or Value")),
            },
            (["Tagging", "TagSet", "Tag", "Key" | "Value"], Node::Open) => {}
            _ => return Err(XmlError::new(format!("an element {}", names.join("/")))),
        }
        Ok(())
    });
    read.map_err(|error| malformed(&error.to_string()))?;
    if !has_set {
        return Err(malformed("there is no TagSet"));
    }
    check(&tags)?;
    Ok(tags)
}

/// S3's limits, which not every store keeps to.
fn check(tags: &Tags) -> Result<(), ErrorReply> {
    if tags.len() > TAGS_MAX {
        let message = format!("an object has at most {TAGS_MAX} tags");
        return Err(ErrorReply::new(400, "BadRequest", message));
    }
    let units = |text: &str| text.encode_utf16().count();
    for (place, (name, value)) in tags.iter().enumerate() {
        let problem = if name.is_empty() || units(name) > TAG_NAME_MAX {
            format!("the name of a tag has 1 to {TAG_NAME_MAX} characters")
        } else if units(value) > TAG_VALUE_MAX {
            format!("the value of a tag has at most {TAG_VALUE_MAX} characters")
        } else if tags[..place].iter().any(|(earlier, _)| earlier == name) {
            "two tags have the same name".to_owned()
        } else {
            continue;
        };
        return Err(ErrorReply::new(400, "InvalidTag", problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(inside: &str) -> String {
        format!("<Tagging xmlns=\"urn:a\"><TagSet>{inside}</TagSet></Tagging>")
    }

    fn tag(name: &str, value: &str) -> String {
        format!("<Tag><Key>{name}</Key><Value>{value}</Value></Tag>")
    }

    fn code(document: &str) -> Option<&'static str> {
        parse(document.as_bytes()).err().map(|error| error.code)
    }

    #[test]
    fn tags_are_read_as_they_are_written() {
        let read = |inside: &str| parse(document(inside).as_bytes()).expect("tags");
        assert_eq!(read(""), Tags::new());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let two = tag("a", "") + &tag("b &amp; c", " d ");
        assert_eq!(read(&two), [pair("a", ""), pair("b & c", " d ")]);
    }

    #[test]
    fn documents_that_are_none_and_tags_that_cannot_be_are_refused() {
        let long = |count: usize| "ü".repeat(count);
        for (document, expected) in [
            (String::new(), "MalformedXML"),
            ("<Tagging/>".into(), "MalformedXML"),
            ("<Tags><TagSet/></Tags>".into(), "MalformedXML"),
            (document("<Tag><Key>a</Key></Tag>"), "MalformedXML"),
            (document("<Tag><Name>a</Name></Tag>"), "MalformedXML"),
            (document(&tag("", "b")), "InvalidTag"),
            (document(&tag(&long(129), "b")), "InvalidTag"),
            (document(&tag("a", &long(257))), "InvalidTag"),
            (document(&(tag("a", "b") + &tag("a", "c"))), "InvalidTag"),
            (
                document(&(0..11).map(|n| tag(&n.to_string(), "")).collect::<String>()),
                "BadRequest",
            ),
        ] {
            assert_eq!(code(&document), Some(expected), "{document}");
        }
        assert_eq!(code(&document(&tag(&long(128), &long(256)))), None);
    }
}
