//! What each S3 verb does to the objects: owns GET, HEAD, PUT, DELETE and ListObjectsV2. Knows no sockets and no faults,
//! except that a plan may ask it to overlook a range.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use md5::{Digest, Md5};

use crate::stub::Shared;
use crate::stub::error::{S3Error, escape};
use crate::stub::object::{Body, Object, Verdict, resolve_range, weigh};
use crate::stub::reply::{Content, Reply};
use crate::stub::request::Request;
use crate::stub::signature::{Payload, sha256_hex};

/// Headers of a PUT that are kept with the object and sent with it again, besides `x-amz-meta-*`.
const KEPT_HEADERS: [&str; 6] = [
    "content-type",
    "content-encoding",
    "content-language",
    "content-disposition",
    "cache-control",
    "expires",
];

/// Checksum headers that a PUT may carry; kept with the object as S3 does.
const CHECKSUM_HEADERS: [&str; 4] = [
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc32",
    "x-amz-checksum-sha256",
];

/// Keys in one page of a listing, as in S3.
const LIST_KEYS_MAX: usize = 1000;

/// Carries out a request whose signature was good.
pub(super) fn apply(
    shared: &Shared,
    request: &Request,
    payload: &Payload,
    body: Bytes,
    ignore_range: bool,
) -> Result<Reply, S3Error> {
    if request.bucket.is_empty() {
        return Err(S3Error::new("NotImplemented").because("the stub does not list buckets"));
    }
    if !shared.buckets().contains_key(&request.bucket) {
        return Err(S3Error::new("NoSuchBucket"));
    }
    if let Payload::Sha256(expected) = payload
        && sha256_hex(&body) != *expected
    {
        return Err(S3Error::new("XAmzContentSHA256Mismatch"));
    }
    match (request.method.as_str(), request.key.is_empty()) {
        ("HEAD", true) => Ok(Reply::new(200)),
        ("GET", true) => list(shared, request),
        ("GET" | "HEAD", false) => read(shared, request, ignore_range),
        ("PUT", false) => write(shared, request, body),
        ("DELETE", false) => {
            if let Some(objects) = shared.buckets().get_mut(&request.bucket) {
                objects.remove(&request.key);
            }
            Ok(Reply::new(204))
        }
        _ => Err(S3Error::new("MethodNotAllowed")),
    }
}

fn read(shared: &Shared, request: &Request, ignore_range: bool) -> Result<Reply, S3Error> {
    let object = shared
        .object(&request.bucket, &request.key)
        .ok_or_else(|| S3Error::new("NoSuchKey"))?;
    let modified = httpdate::fmt_http_date(object.modified());
    let described = |reply: Reply| {
        reply
            .header("ETag", object.etag())
            .header("Last-Modified", &modified)
    };
    match weigh(&request.headers, &object) {
        Verdict::Proceed => {}
        Verdict::NotModified => return Ok(described(Reply::new(304))),
        Verdict::Failed => return Err(S3Error::new("PreconditionFailed")),
    }
    let size = object.size();
    let range = match request.headers.get("range") {
        Some(range) if !ignore_range => resolve_range(range, size)?,
        _ => None,
    };
    let mut reply = described(Reply::new(if range.is_some() { 206 } else { 200 }))
        .header("Accept-Ranges", "bytes");
    if let Some(range) = &range {
        reply = reply.header(
            "Content-Range",
            format!("bytes {}-{}/{size}", range.start, range.end - 1),
        );
    }
    let wants_checksum = request
        .headers
        .get("x-amz-checksum-mode")
        .is_some_and(|mode| mode == "ENABLED");
    for (name, value) in object.headers() {
        // A checksum is of the whole object and would be wrong for a part of it.
        if !CHECKSUM_HEADERS.contains(&name.as_str()) || (wants_checksum && range.is_none()) {
            reply = reply.header(name, value);
        }
    }
    if !object
        .headers()
        .iter()
        .any(|(name, _)| name == "content-type")
    {
        reply = reply.header("Content-Type", "binary/octet-stream");
    }
    let range = range.unwrap_or(0..size);
    reply.content = match &object.body {
        // The range lies within the bytes in memory, so it fits `usize`.
        Body::Stored(bytes) => {
            Content::Bytes(bytes.slice(range.start as usize..range.end as usize))
        }
        Body::Synthetic { content, .. } => Content::Synthetic {
            content: *content,
            range,
        },
    };
    Ok(reply)
}

fn write(shared: &Shared, request: &Request, body: Bytes) -> Result<Reply, S3Error> {
    if request.headers.get("x-amz-copy-source").is_some() {
        return Err(S3Error::new("NotImplemented").because("the stub does not copy objects"));
    }
    check_digests(request, &body)?;
    let existing = shared.object(&request.bucket, &request.key);
    if let Some(tag) = request.headers.get("if-none-match") {
        if tag != "*" {
            return Err(
                S3Error::new("NotImplemented").because("If-None-Match on a PUT takes * only")
            );
        }
        if existing.is_some() {
            return Err(S3Error::new("PreconditionFailed"));
        }
    }
    if let Some(tags) = request.headers.get("if-match") {
        let object = existing.ok_or_else(|| S3Error::new("NoSuchKey"))?;
        if !crate::stub::object::tag_listed(tags, object.etag()) {
            return Err(S3Error::new("PreconditionFailed"));
        }
    }
    let kept = |name: &str| {
        name.starts_with("x-amz-meta-")
            || name == "x-amz-server-side-encryption"
            || KEPT_HEADERS.contains(&name)
            || CHECKSUM_HEADERS.contains(&name)
    };
    let headers: Vec<_> = request
        .headers
        .0
        .iter()
        .filter(|(name, _)| kept(name))
        .cloned()
        .collect();
    let echoed =
        |name: &str| name == "x-amz-server-side-encryption" || CHECKSUM_HEADERS.contains(&name);
    let answer = headers
        .iter()
        .filter(|(name, _)| echoed(name))
        .cloned()
        .collect();
    let object = Object::new(body, headers, shared.now());
    let stored = shared
        .store(&request.bucket, &request.key, object)
        .ok_or_else(|| S3Error::new("NoSuchBucket"))?;
    let mut reply = Reply::new(200);
    reply.headers = answer;
    Ok(reply.header("ETag", stored.etag()))
}

/// Compares every digest that the request carries with the body.
fn check_digests(request: &Request, body: &[u8]) -> Result<(), S3Error> {
    for (name, value) in &request.headers.0 {
        let actual = match name.as_str() {
            "content-md5" => Md5::digest(body).to_vec(),
            "x-amz-checksum-crc64nvme" => crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body)
                .to_be_bytes()
                .to_vec(),
            "x-amz-checksum-crc32c" => {
                crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, body).to_be_bytes()[4..].to_vec()
            }
            "x-amz-checksum-crc32" => {
                crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, body).to_be_bytes()[4..].to_vec()
            }
            "x-amz-checksum-sha256" => aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body)
                .as_ref()
                .to_vec(),
            "x-amz-checksum-sha1" => {
                return Err(S3Error::new("NotImplemented")
                    .because("the stub does not verify x-amz-checksum-sha1"));
            }
            _ => continue,
        };
        match BASE64.decode(value) {
            Ok(given) if given == actual => {}
            Ok(given) if given.len() == actual.len() => return Err(S3Error::new("BadDigest")),
            _ => {
                return Err(S3Error::new("InvalidDigest")
                    .because(format!("{name}: {value:?} is not such a digest")));
            }
        }
    }
    Ok(())
}

/// ListObjectsV2 with prefix, start-after and continuation; no delimiter.
fn list(shared: &Shared, request: &Request) -> Result<Reply, S3Error> {
    if request.parameter("list-type") != Some("2") {
        return Err(S3Error::new("NotImplemented").because("the stub lists with list-type=2"));
    }
    let delimiter = request.parameter("delimiter").filter(|d| !d.is_empty());
    let prefix = request.parameter("prefix").unwrap_or_default();
    let after = request
        .parameter("continuation-token")
        .or_else(|| request.parameter("start-after"))
        .unwrap_or_default();
    let keys_max = match request.parameter("max-keys").map(str::parse) {
        None => LIST_KEYS_MAX,
        Some(Ok(keys)) => LIST_KEYS_MAX.min(keys),
        Some(Err(_)) => {
            return Err(S3Error::new("InvalidArgument").because("max-keys is not a number"));
        }
    };
    let buckets = shared.buckets();
    let objects = buckets
        .get(&request.bucket)
        .ok_or_else(|| S3Error::new("NoSuchBucket"))?;
    // Keys, and beginnings up to a delimiter that stand for keys.
    let names = objects.keys().filter_map(|key| {
        let rest = key.strip_prefix(prefix)?;
        let end = delimiter.and_then(|d| Some(rest.find(d)? + d.len()));
        let name = end.map_or(key.as_str(), |end| &key[..prefix.len() + end]);
        (name > after).then_some((name, end.is_some()))
    });
    let mut keys: Vec<(&str, bool)> = names.collect();
    keys.sort_unstable();
    keys.dedup();
    let truncated = keys.len() > keys_max;
    keys.truncate(keys_max);
    let mut document = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Name>{}</Name><Prefix>{}</Prefix><KeyCount>{}</KeyCount><MaxKeys>{keys_max}</MaxKeys>\
         <IsTruncated>{truncated}</IsTruncated>",
        escape(&request.bucket),
        escape(prefix),
        keys.len()
    );
    if truncated && let Some((last, _)) = keys.last() {
        document.push_str(&format!(
            "<NextContinuationToken>{}</NextContinuationToken>",
            escape(last)
        ));
    }
    for (key, is_prefix) in keys {
        if is_prefix {
            let prefix = escape(key);
            document.push_str(&format!(
                "<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>"
            ));
            continue;
        }
        document.push_str(&contents(key, &objects[key]));
    }
    document.push_str("</ListBucketResult>");
    Ok(Reply::new(200)
        .header("Content-Type", "application/xml")
        .body(document))
}

/// An object in a list.
fn contents(key: &str, object: &Object) -> String {
    let modified: time::OffsetDateTime = object.modified().into();
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].000Z");
    format!(
        "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size>\
         <StorageClass>STANDARD</StorageClass></Contents>",
        escape(key),
        modified.format(&format).unwrap_or_default(),
        escape(object.etag()),
        object.size()
    )
}
