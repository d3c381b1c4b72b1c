//! Uploads in parts: their begin and their ends. Parts themselves are in [`super::upload_part`], lists
//! in [`super::list_parts`].
//!
//! This file owns the document that completes an upload: nothing is asked of the store before all of it
//! was received, verified and understood.

use super::body::{Body, BodyError};
use super::connection::{Connection, Ended};
use super::digest;
use super::get::{core_label, quoted};
use super::head::{Framing, Head};
use super::limits::{COMPLETE_BODY_BYTES_MAX, LIST_WAIT_MAX};
use super::put::{
    Signed, condition, object_headers, refuse_conditions, refuse_unknown, version_header,
};
use super::reply::ErrorReply;
use super::{ObjectRequest, finish_with};
use crate::xml::{self, Document, Node, XmlError};
use forebay_io::multipart::{CompletedPart, PART_NUMBER_MAX};
use forebay_io::runtime::timeout;
use forebay_io::store::CHECKSUM_PREFIX;
use forebay_shards::messages::{CompleteObject, WriteCondition, Written};
use forebay_shards::parts::KnownParts;

/// Which checksums of parts and object an upload is to have. We verify those that come; the store is
/// not told, for it would want one with every part, and that of a stream is known too late.
const UPLOAD_CHECKSUM_HEADERS: [&str; 2] = ["x-amz-checksum-algorithm", "x-amz-checksum-type"];

/// How large the object is to be.
const OBJECT_SIZE: &str = "x-amz-mp-object-size";

/// Elements of a part that tell a checksum of it, and the headers of the same meaning.
const PART_CHECKSUMS: [(&str, &str); 5] = [
    ("ChecksumCRC32", "x-amz-checksum-crc32"),
    ("ChecksumCRC32C", "x-amz-checksum-crc32c"),
    ("ChecksumCRC64NVME", "x-amz-checksum-crc64nvme"),
    ("ChecksumSHA1", "x-amz-checksum-sha1"),
    ("ChecksumSHA256", "x-amz-checksum-sha256"),
];

/// Serves CreateMultipartUpload.
pub async fn create(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
) -> Result<(), Ended> {
    let begun = match begin(connection, head, object).await {
        Ok(document) => document,
        Err(error) => return finish_with(connection, error, object).await,
    };
    let mut reply = connection.reply(200);
    reply.header("content-type", "application/xml");
    for name in UPLOAD_CHECKSUM_HEADERS {
        if let Some(value) = head.header(name) {
            reply.header(name, value);
        }
    }
    reply.header("x-forebay-core", core_label(connection, &object.block(0)));
    connection.respond(reply, begun.as_bytes()).await
}

async fn begin(
    connection: &Connection,
    head: &Head,
    object: &ObjectRequest,
) -> Result<String, ErrorReply> {
    refuse_unknown(head)?;
    refuse_conditions(head, "the begin of an upload")?;
    check_upload_checksums(head)?;
    let headers = object_headers(head)?;
    let router = &connection.context().router;
    let upload = router.create_upload(&object.block(0), headers).await;
    let upload = upload.map_err(|error| ErrorReply::from(&error))?;
    let root = "InitiateMultipartUploadResult";
    let mut document = Document::new(root);
    document
        .element("Bucket", &object.volume.name)
        .exact_element("Key", &object.key)
        .element("UploadId", &upload.upload_id);
    Ok(document.finish(root))
}

/// Refuses checksums that could not be verified.
fn check_upload_checksums(head: &Head) -> Result<(), ErrorReply> {
    let [algorithm, kind] = UPLOAD_CHECKSUM_HEADERS;
    if let Some(word) = head.header(algorithm)
        && !digest::is_algorithm(word)
    {
        let message = format!("{algorithm} names no checksum that is known");
        return Err(ErrorReply::new(400, "InvalidRequest", message));
    }
    let word = head.header(algorithm).unwrap_or_default();
    // Of parts' CRCs that of the whole follows, of their hashes it does not.
    let is_hash = word.to_ascii_uppercase().starts_with("SHA");
    let is_whole_only = word.eq_ignore_ascii_case("CRC64NVME");
    match head.header(kind) {
        Some("FULL_OBJECT") if is_hash => {
            let message = format!("{word} knows no {kind} but COMPOSITE");
            Err(ErrorReply::new(400, "InvalidRequest", message))
        }
        Some("COMPOSITE") if is_whole_only => {
            let message = format!("{word} knows no {kind} but FULL_OBJECT");
            Err(ErrorReply::new(400, "InvalidRequest", message))
        }
        None | Some("COMPOSITE" | "FULL_OBJECT") => Ok(()),
        Some(_) => {
            let message = format!("{kind} is COMPOSITE or FULL_OBJECT");
            Err(ErrorReply::new(400, "InvalidRequest", message))
        }
    }
}

/// Serves AbortMultipartUpload.
pub async fn abort(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    upload_id: &str,
) -> Result<(), Ended> {
    if let Err(error) = refuse_conditions(head, "the abort of an upload") {
        return finish_with(connection, error, object).await;
    }
    let router = &connection.context().router;
    match router.abort_upload(&object.block(0), upload_id).await {
        Ok(()) => {
            let reply = connection.reply(204);
            let reply = connection.seal_head(reply);
            connection.send(&[&reply]).await
        }
        Err(error) => finish_with(connection, ErrorReply::from(&error), object).await,
    }
}

/// Serves CompleteMultipartUpload.
pub async fn complete(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    upload_id: String,
    signed: Signed,
) -> Result<(), Ended> {
    let completed = finish_upload(connection, head, object, upload_id, signed).await;
    let stats = connection.context().stats();
    stats.write_times.record(connection.elapsed());
    let (
        Written {
            meta, version_id, ..
        },
        checksum,
    ) = match completed {
        Ok(completed) => completed,
        Err(BodyError::Refused(error)) => return finish_with(connection, error, object).await,
        Err(BodyError::Ended(ended)) => return Err(ended),
    };
    let root = "CompleteMultipartUploadResult";
    let mut document = Document::new(root);
    document
        .exact_element("Location", &object.resource())
        .element("Bucket", &object.volume.name)
        .exact_element("Key", &object.key)
        .element("ETag", &quoted(&meta.etag));
    if let Some((name, value)) = checksum {
        let element = PART_CHECKSUMS.iter().find(|(_, header)| *header == name);
        let kind = match value.contains('-') {
            true => "COMPOSITE",
            false => "FULL_OBJECT",
        };
        if let Some((element, _)) = element {
            document.element(element, &value);
            document.element("ChecksumType", kind);
        }
    }
    let document = document.finish(root);
    let mut reply = connection.reply(200);
    version_header(&mut reply, version_id.as_deref());
    reply
        .header("content-type", "application/xml")
        .header("x-forebay-write", "through")
        .header("x-forebay-core", core_label(connection, &object.block(0)));
    connection.respond(reply, document.as_bytes()).await
}

async fn finish_upload(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    upload_id: String,
    signed: Signed,
) -> Result<(Written, Option<(String, String)>), BodyError> {
    let condition = match condition(head)? {
        // The store could not judge it when it makes the object.
        WriteCondition::Version(_) => {
            let what = "If-Match on the completion of an upload";
            return Err(ErrorReply::not_implemented(what).into());
        }
        condition => condition,
    };
    let body = Body::of(&without_object_checksums(head), signed.chunks)?;
    if matches!(head.framing, Framing::None) || body.length() > COMPLETE_BODY_BYTES_MAX {
        let message = format!("the document has 1 to {COMPLETE_BODY_BYTES_MAX} bytes");
        return Err(malformed(&message).into());
    }
    let context = connection.context().clone();
    let permit = timeout(&context.runtime, LIST_WAIT_MAX, context.deleting.acquire()).await;
    let Some(_permit) = permit else {
        let message = "too many large documents are being read";
        return Err(ErrorReply::slow_down(message).into());
    };
    let parts = parse(&body.read_all(connection).await?)?;
    let home = object.block(0);
    let known = context.router.known_parts(&home, &upload_id).await;
    let checksum = judge(head, &parts, &known)?;
    let request = CompleteObject {
        id: home,
        upload_id,
        parts: parts.into_iter().map(without_checksums).collect(),
        condition,
        headers: object_size(head),
    };
    let written = context.router.complete(request).await;
    let written = written.map_err(ErrorReply::from)?;
    Ok((written, checksum))
}

/// What the head says of checksums concerns the object here, not the document.
fn without_object_checksums(head: &Head) -> Head {
    let mut head = head.clone();
    head.headers.retain(|(name, _)| {
        !name.starts_with(CHECKSUM_PREFIX) && name != "x-amz-sdk-checksum-algorithm"
    });
    head
}

fn object_size(head: &Head) -> Vec<(String, String)> {
    let size = head.header(OBJECT_SIZE).map(str::trim);
    let pair = size.map(|size| (OBJECT_SIZE.to_owned(), size.to_owned()));
    pair.into_iter().collect()
}

fn without_checksums(part: CompletedPart) -> CompletedPart {
    CompletedPart {
        checksums: Vec::new(),
        ..part
    }
}

fn malformed(what: &str) -> ErrorReply {
    let message = format!("the document is not what completes an upload: {what}");
    ErrorReply::new(400, "MalformedXML", message)
}

/// A part in the making.
#[derive(Default)]
struct Draft {
    number: Option<u32>,
    etag: Option<String>,
    checksums: Vec<(String, String)>,
}

impl Draft {
    fn finish(self) -> Result<CompletedPart, XmlError> {
        let (Some(number), Some(etag)) = (self.number, self.etag) else {
            return Err(XmlError::new("a Part without PartNumber or ETag"));
        };
        Ok(CompletedPart {
            number,
            etag,
            checksums: self.checksums,
        })
    }

    fn set(&mut self, name: &str, text: &str) -> Result<(), XmlError> {
        let text = text.trim();
        match name {
            "PartNumber" if self.number.is_none() => {
                let number = text.parse().ok();
                let number = number.filter(|number| (1..=PART_NUMBER_MAX).contains(number));
                let number = number.ok_or_else(|| XmlError::new("a PartNumber that is none"))?;
                self.number = Some(number);
            }
            "ETag" if self.etag.is_none() => self.etag = Some(text.trim_matches('"').to_owned()),
            "PartNumber" | "ETag" => {
                return Err(XmlError::new(format!("a Part with two of {name}")));
            }
            _ if PART_CHECKSUMS.iter().any(|(known, _)| *known == name) => {
                self.checksums.push((name.to_owned(), text.to_owned()));
            }
            _ => return Err(XmlError::new(format!("an element {name:?}"))),
        }
        Ok(())
    }
}

/// Reads the document.
fn parse(body: &[u8]) -> Result<Vec<CompletedPart>, ErrorReply> {
    const ROOT: &str = "CompleteMultipartUpload";
    let mut parts: Vec<CompletedPart> = Vec::new();
    let mut draft = Draft::default();
    let outcome = xml::read(body, |path, node| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match (names.as_slice(), node) {
            ([ROOT], _) | ([ROOT, "Part", _], Node::Open) => {}
            ([ROOT, "Part"], Node::Open) => draft = Draft::default(),
            ([ROOT, "Part"], Node::Close(_)) => {
                if parts.len() == PART_NUMBER_MAX as usize {
                    let message = format!("more than {PART_NUMBER_MAX} parts");
                    return Err(XmlError::new(message));
                }
                parts.push(std::mem::take(&mut draft).finish()?);
            }
            ([ROOT, "Part", name], Node::Close(text)) => draft.set(name, text)?,
            _ => {
                let name = names.last().copied().unwrap_or_default();
                return Err(XmlError::new(format!("an element {name:?}")));
            }
        }
        Ok(())
    });
    outcome.map_err(|error| malformed(&error.to_string()))?;
    if parts.is_empty() {
        return Err(malformed("it names no part"));
    }
    if parts
        .windows(2)
        .any(|pair| pair[0].number >= pair[1].number)
    {
        let message = "the parts are not in ascending order of their numbers";
        return Err(ErrorReply::new(400, "InvalidPartOrder", message));
    }
    Ok(parts)
}

/// Holds what the client says of the parts and the object against what is known of them here. Gives the
/// object's checksum, if the client said it and it holds.
fn judge(
    head: &Head,
    parts: &[CompletedPart],
    known: &KnownParts,
) -> Result<Option<(String, String)>, ErrorReply> {
    let mut noted = Vec::with_capacity(parts.len());
    for part in parts {
        // Of a part that is known otherwise, or not at all, the store says what is wrong.
        let Some(known) = known.get(&part.number).filter(|k| k.etag == part.etag) else {
            continue;
        };
        for (element, value) in &part.checksums {
            let header = PART_CHECKSUMS.iter().find(|(name, _)| name == element);
            if let (Some((_, header)), Some((name, found))) = (header, &known.checksum)
                && header == name
                && found != value
            {
                let message = format!("{element} of part {} is another one", part.number);
                return Err(ErrorReply::new(400, "InvalidPart", message));
            }
        }
        noted.push(known);
    }
    let is_all_known = noted.len() == parts.len();
    if let Some(size) = head.header(OBJECT_SIZE) {
        let size: Option<u64> = size.trim().parse().ok();
        let sum: u64 = noted.iter().map(|part| part.size).sum();
        // Of parts that are not known here the store knows the sizes; it is told, too.
        if size.is_none_or(|size| is_all_known && size != sum) {
            let message = format!("{OBJECT_SIZE} is not the sum of the parts' sizes");
            return Err(ErrorReply::new(400, "InvalidRequest", message));
        }
    }
    let told = PART_CHECKSUMS.iter().find_map(|(_, name)| {
        let value = head.header(name)?;
        Some(((*name).to_owned(), value.trim().to_owned()))
    });
    let Some((name, value)) = told else {
        return Ok(None);
    };
    let checksums = noted.iter().map(|part| {
        let (of, checksum) = part.checksum.as_ref()?;
        (*of == name).then_some((checksum.as_str(), part.size))
    });
    let checksums: Option<Vec<(&str, u64)>> = checksums.collect();
    let joined =
        checksums
            .filter(|_| is_all_known)
            .and_then(|checksums| match value.contains('-') {
                true => digest::composite(&name, &checksums),
                false => digest::joined(&name, &checksums),
            });
    match joined {
        Some(joined) if joined == value => Ok(Some((name, value))),
        Some(_) => {
            let message = format!("the parts do not have the {name} together");
            Err(ErrorReply::new(400, "BadDigest", message))
        }
        // It would be a promise that nobody has verified.
        None => {
            let what =
                format!("{name} of an object whose parts came without it, or before a start,");
            Err(ErrorReply::not_implemented(&what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::digest::BodyChecks;
    use crate::http::head;
    use forebay_shards::parts::NotedPart;

    /// Whether a head has a checksum of its body at all.
    fn has_checks(head: &Head) -> bool {
        BodyChecks::of(&without_object_checksums(head)).is_ok_and(|checks| !checks.is_empty())
    }

    fn part(number: u32, etag: &str, more: &str) -> String {
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>{more}</Part>")
    }

    fn document(parts: &str) -> String {
        format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
    }

    fn refusal(document: &str) -> (u16, &'static str) {
        let error = parse(document.as_bytes()).expect_err(document);
        (error.status, error.code)
    }

    #[test]
    fn documents_are_read() {
        let more = "<ChecksumCRC32>AAAAAA==</ChecksumCRC32>";
        let text = document(&(part(1, "&quot;a&quot;", more) + &part(10_000, "b", "")));
        let parts = parse(text.as_bytes()).expect("good");
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[0].number, parts[0].etag.as_str()), (1, "a"));
        assert_eq!(parts[0].checksums.len(), 1);
        assert_eq!((parts[1].number, parts[1].etag.as_str()), (10_000, "b"));
    }

    #[test]
    fn what_is_not_understood_completes_nothing() {
        let good = part(1, "a", "");
        let many: String = (1..=10_001).map(|n| part(n, "a", "")).collect();
        for text in [
            String::new(),
            "{}".into(),
            document(""),
            document("<Part></Part>"),
            document("<Part><PartNumber>1</PartNumber></Part>"),
            document("<Part><ETag>a</ETag></Part>"),
            document(&part(0, "a", "")),
            document(&part(10_001, "a", "")),
            document("<Part><PartNumber>x</PartNumber><ETag>a</ETag></Part>"),
            document(&part(1, "a", "<ETag>b</ETag>")),
            document(&part(1, "a", "<Size>5</Size>")),
            document(&(good.clone() + "<Quiet/>")),
            format!("<Delete>{good}</Delete>"),
            format!("<!DOCTYPE a [<!ENTITY b \"c\">]>{}", document(&good)),
            document(&many),
        ] {
            assert_eq!(refusal(&text), (400, "MalformedXML"), "{text:.80}");
        }
        let pairs = [(2, 1), (1, 1)];
        for (first, second) in pairs {
            let text = document(&(part(first, "a", "") + &part(second, "b", "")));
            assert_eq!(refusal(&text), (400, "InvalidPartOrder"));
        }
    }

    fn judged(headers: &str, more: &str) -> Result<bool, &'static str> {
        let text = format!("POST /v/k HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let head = head::parse(text.as_bytes()).expect("a good head");
        assert!(!has_checks(&head), "they are not the document's");
        let text = document(&(part(1, "a", more) + &part(2, "b", "")));
        let parts = parse(text.as_bytes()).expect("good");
        // Of "12345" and "6789", and of both.
        let known = |number, etag: &str, size, crc32: &str| NotedPart {
            number,
            etag: etag.into(),
            size,
            checksum: Some(("x-amz-checksum-crc32".into(), crc32.into())),
            piece: None,
        };
        let known = [known(1, "a", 5, "y/U6HA=="), known(2, "b", 4, "nbq/hw==")];
        let known = known.into_iter().map(|part| (part.number, part)).collect();
        let judged = judge(&head, &parts, &known);
        judged
            .map(|told| told.is_some())
            .map_err(|error| error.code)
    }

    #[test]
    fn what_is_said_of_the_object_is_held_against_its_parts() {
        assert_eq!(judged("", ""), Ok(false));
        assert_eq!(judged("x-amz-mp-object-size: 9\r\n", ""), Ok(false));
        let wrong = judged("x-amz-mp-object-size: 8\r\n", "");
        assert_eq!(wrong, Err("InvalidRequest"));
        assert_eq!(judged("x-amz-checksum-crc32: y/Q5Jg==\r\n", ""), Ok(true));
        let wrong = judged("x-amz-checksum-crc32: y/Q5Jw==\r\n", "");
        assert_eq!(wrong, Err("BadDigest"));
        let unknown = judged("x-amz-checksum-sha256: AAAA\r\n", "");
        assert_eq!(unknown, Err("NotImplemented"));
        assert_eq!(
            judged("", "<ChecksumCRC32>y/U6HA==</ChecksumCRC32>"),
            Ok(false)
        );
        let wrong = judged("", "<ChecksumCRC32>AAAAAA==</ChecksumCRC32>");
        assert_eq!(wrong, Err("InvalidPart"));
    }
}
