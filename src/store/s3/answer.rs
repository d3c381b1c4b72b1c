//! What an answer means, and whether it can be believed.
//!
//! This file owns every judgement on a store's answer: status and headers in, a plan or an error
//! out. It is pure: it neither sends nor reads. It never takes an answer for what was asked when
//! its own numbers disagree, and never deduces that an object is missing from a page that no object
//! store wrote.

use super::sign::Verb;
use base64::Engine;
use forebay_io::store::{
    ByteSpan, CHECKSUM_PREFIX, GetRequest, ObjectHead, ObjectMeta, PutReply, StoreError,
    StoreErrorKind, StoreResult,
};
use forebay_io::versions::Deleted;
use quick_xml::events::Event;
use reqwest::header::{self, HeaderMap, HeaderName};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most bytes that are thrown away to reach the start of a span in an answer that ignored
/// `Range`: one block of the largest size. Beyond that the store is of no use for ranges.
const SKIPPED_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The longest `Retry-After` that is believed; a wrong clock must not stop a store for a day.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// How much of an error's text a message repeats.
const MESSAGE_CHARS_MAX: usize = 200;

/// Headers that belong to an object, beside `x-amz-meta-*`.
pub(in crate::store) const OBJECT_HEADERS: [&str; 6] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
];

/// What starts the names of the user's own headers.
pub(in crate::store) const META_PREFIX: &str = "x-amz-meta-";

/// How to read the body of a successful GET.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) struct BodyPlan {
    pub(in crate::store) meta: ObjectMeta,
    /// What the caller gets.
    pub(in crate::store) span: ByteSpan,
    /// Bytes of the body before the span: the store ignored `Range`.
    pub(in crate::store) skipped_bytes: u64,
    /// Whether the body ends with the span.
    pub(in crate::store) is_exact: bool,
}

/// An S3 error document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorDocument {
    pub(super) code: String,
    pub(super) message: String,
    /// The region that the bucket is in, if the store says that it is in another.
    region: String,
    /// Of a refused range.
    object_size: Option<u64>,
    /// Which part of the request an `InvalidArgument` is about.
    argument: String,
}

/// Reads an S3 error document; `None` if this is none.
pub(super) fn parse_error_document(body: &[u8]) -> Option<ErrorDocument> {
    let mut reader = quick_xml::Reader::from_reader(body);
    let mut path: Vec<Vec<u8>> = Vec::new();
    let mut document = ErrorDocument::default();
    let mut text = String::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                if path.is_empty() && start.local_name().as_ref() != b"Error" {
                    return None;
                }
                path.push(start.local_name().as_ref().to_vec());
                text.clear();
            }
            Event::Text(part) => text.push_str(&part.decode().ok()?),
            Event::CData(part) => text.push_str(&part.decode().ok()?),
            Event::GeneralRef(name) => text.push_str(&resolve_reference(&name)),
            Event::End(_) => {
                let name = path.pop()?;
                if path.len() == 1 {
                    document.set(&name, text.trim());
                }
                if path.is_empty() {
                    return (!document.code.is_empty()).then_some(document);
                }
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

fn resolve_reference(reference: &quick_xml::events::BytesRef<'_>) -> String {
    if let Ok(Some(character)) = reference.resolve_char_ref() {
        return character.to_string();
    }
    let name = reference.decode().unwrap_or_default();
    quick_xml::escape::resolve_predefined_entity(&name)
        .unwrap_or_default()
        .to_owned()
}

impl ErrorDocument {
    fn set(&mut self, name: &[u8], value: &str) {
        match name {
            b"Code" => self.code = value.to_owned(),
            b"Message" => self.message = value.to_owned(),
            b"ArgumentName" => self.argument = value.to_owned(),
            b"Region" => self.region = value.to_owned(),
            b"ActualObjectSize" => self.object_size = value.parse().ok(),
            _ => {}
        }
    }
}

/// The error that an answer other than 2xx stands for. `body` is its beginning.
pub(super) fn refusal(
    verb: Verb,
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> StoreError {
    let document = parse_error_document(body);
    let kind = refusal_kind(verb, status, document.as_ref());
    let document = document.unwrap_or_default();
    let mut message = match document.code.as_str() {
        "" => format!("{verb:?} answered without an S3 error document"),
        code => format!("{verb:?} refused: {code}: {}", document.message),
    };
    if (300..400).contains(&status) && status != 304 {
        message = redirect_message(headers, &document);
    }
    let mut error = StoreError::new(kind, shortened(&message));
    error.status = Some(status);
    error.retry_after = retry_after(headers, now);
    if kind == StoreErrorKind::RangeNotSatisfiable {
        let told = text(headers, &header::CONTENT_RANGE).and_then(|range| {
            let size = range.strip_prefix("bytes */")?;
            size.parse().ok()
        });
        error.object_size = told.or(document.object_size);
    }
    error
}

/// The error that a store tells in the body of an answer that began as a success.
pub(super) fn late_refusal(verb: Verb, document: &ErrorDocument) -> StoreError {
    // What the status would have been.
    let status = match document.code.as_str() {
        "AccessDenied" => 403,
        "NoSuchKey" | "NoSuchBucket" => 404,
        "PreconditionFailed" => 412,
        "ConditionalRequestConflict" | "OperationAborted" => 409,
        "InvalidRange" => 416,
        "NotImplemented" => 501,
        code if code.starts_with("Invalid") || code.starts_with("EntityToo") => 400,
        "BadDigest" | "MalformedXML" => 400,
        _ => 500,
    };
    let kind = refusal_kind(verb, status, Some(document));
    let code = &document.code;
    let message = format!("{verb:?} failed late: {code}: {}", document.message);
    StoreError::new(kind, shortened(&message))
}

fn refusal_kind(verb: Verb, status: u16, document: Option<&ErrorDocument>) -> StoreErrorKind {
    use StoreErrorKind as Kind;
    let code = document.map_or("", |document| document.code.as_str());
    match (status, code) {
        // Whatever the status: the code is the more exact.
        (_, "NoSuchBucket") => Kind::NoSuchBucket,
        (_, "SlowDown" | "ServiceUnavailable" | "TooManyRequests") => Kind::SlowDown,
        (_, "RequestTimeout") => Kind::Timeout,
        (_, "NoSuchUpload") => Kind::NoSuchUpload,
        (_, "InvalidPart" | "InvalidPartOrder") => Kind::InvalidPart,
        (_, "EntityTooSmall") if verb == Verb::Complete => Kind::PartTooSmall,
        // S3's and Swift's words for a span that reaches past the end of the source.
        (400, "InvalidArgument") if verb == Verb::CopyPart && is_about_range(document) => {
            Kind::RangeNotSatisfiable
        }
        // The store says that what arrived is not what we sent.
        (
            400,
            "BadDigest"
            | "IncompleteBody"
            | "XAmzContentChecksumMismatch"
            | "XAmzContentSHA256Mismatch",
        ) => Kind::Corrupt,
        (400, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => Kind::Denied,
        // An answer to HEAD has no code; of the reasons for this one, only a token that has expired
        // is met with a request as plain as a HEAD of ours.
        (400, "") if verb == Verb::Head => Kind::Denied,
        (403, "RequestTimeTooSkewed") => Kind::ClockSkew,
        (
            400,
            "AuthorizationHeaderMalformed"
            | "AuthorizationQueryParametersError"
            | "IllegalLocationConstraintException",
        ) => Kind::Misdirected,
        // Another write of the same key is under way. S3, Ceph and stores without words.
        (
            409,
            "ConditionalRequestConflict" | "OperationAborted" | "ConcurrentModification" | "",
        ) => Kind::Contended,
        // Some stores answer a conditional PUT so.
        (304, _) if verb.is_write() => Kind::PreconditionFailed,
        (304, _) => Kind::NotModified,
        (401 | 403, _) => Kind::Denied,
        // Ceph's word for it in an answer to some of them.
        (404, "NoSuchKey") if verb.is_of_upload() => Kind::NoSuchUpload,
        (404, "NoSuchKey" | "NoSuchVersion") => Kind::NotFound,
        // An answer to HEAD has no body that could say more.
        (404, "") if matches!(verb, Verb::Head | Verb::HeadVersion) => Kind::NotFound,
        (408, _) => Kind::Timeout,
        (412, _) => Kind::PreconditionFailed,
        (416, _) => Kind::RangeNotSatisfiable,
        (429 | 503, _) => Kind::SlowDown,
        (501, _) => Kind::Unsupported,
        (500..=599, _) => Kind::Internal,
        (300..=399, _) => Kind::Misdirected,
        // Too large is too large, whoever says it.
        (413, _) => Kind::Rejected,
        // Not a word about the key: a proxy or a portal spoke, not the store.
        (400..=499, "") if !matches!(verb, Verb::Head | Verb::HeadVersion) => Kind::Corrupt,
        (400..=499, _) => Kind::Rejected,
        // 1xx and 2xx that no request of ours asks for.
        _ => Kind::Corrupt,
    }
}

fn is_about_range(document: Option<&ErrorDocument>) -> bool {
    let argument = document.map_or("", |document| document.argument.as_str());
    matches!(argument, "x-amz-copy-source-range" | "x-amz-source-range")
}

fn redirect_message(headers: &HeaderMap, document: &ErrorDocument) -> String {
    let region = text(headers, &HeaderName::from_static("x-amz-bucket-region"))
        .unwrap_or(document.region.as_str());
    if !region.is_empty() {
        return format!("the bucket is in region {region}; set region and endpoint to match");
    }
    // Only the host: the rest may repeat our signature.
    let target = text(headers, &header::LOCATION)
        .and_then(|location| url::Url::parse(location).ok())
        .and_then(|url| url.host_str().map(str::to_owned));
    match target {
        Some(host) => format!("redirected to host {host}, which is not followed; set the endpoint"),
        None => "redirected, which is not followed; set region and endpoint".to_owned(),
    }
}

/// Judges the head of a successful answer to a GET.
pub(in crate::store) fn plan_body(
    request: &GetRequest,
    status: u16,
    headers: &HeaderMap,
) -> StoreResult<BodyPlan> {
    let length = content_length(headers)?;
    let etag = etag(headers)?;
    if looks_like_a_portal(headers) {
        return Err(corrupt("an HTML page came in place of the object"));
    }
    if request
        .if_match
        .as_ref()
        .is_some_and(|wanted| *wanted != etag)
    {
        return Err(corrupt(&format!(
            "If-Match {:?} was answered with ETag {etag:?}",
            request.if_match.as_deref().unwrap_or_default()
        )));
    }
    if request.if_none_match.as_ref() == Some(&etag) {
        // The store does not know the condition; the answer is the same.
        let message = "the object still has this ETag";
        return Err(StoreError::new(StoreErrorKind::NotModified, message));
    }
    let (size, span, skipped_bytes) = match (request.span, status) {
        (None, 200) => {
            let size = length.ok_or_else(|| corrupt("an answer without a length"))?;
            (
                size,
                ByteSpan {
                    start: 0,
                    end: size,
                },
                0,
            )
        }
        (Some(wanted), 206) => {
            let (span, size) = ranged_span(wanted, headers)?;
            if length.is_some_and(|length| length != span.len()) {
                return Err(corrupt("Content-Length and Content-Range disagree"));
            }
            (size, span, 0)
        }
        (Some(wanted), 200) => {
            let size = length.ok_or_else(|| corrupt("an answer without a length"))?;
            let span = span_of_whole(wanted, size)?;
            (size, span, span.start)
        }
        (_, other) => return Err(corrupt(&format!("status {other} to such a request"))),
    };
    let is_exact = status == 206 || span.end == size;
    let meta = object_meta(headers, size, etag);
    Ok(BodyPlan {
        meta,
        span,
        skipped_bytes,
        is_exact,
    })
}

/// Reads `Content-Range` and checks that it is what was asked for.
fn ranged_span(wanted: ByteSpan, headers: &HeaderMap) -> StoreResult<(ByteSpan, u64)> {
    let range = text(headers, &header::CONTENT_RANGE)
        .ok_or_else(|| corrupt("206 without Content-Range"))?;
    let (span, size) = parse_content_range(range)
        .ok_or_else(|| corrupt(&format!("Content-Range {range:?} says nothing")))?;
    let is_wanted = span.start == wanted.start && span.end == wanted.end.min(size);
    if !is_wanted {
        return Err(corrupt(&format!(
            "bytes {}-{} were asked for, Content-Range is {range:?}",
            wanted.start,
            wanted.end - 1
        )));
    }
    Ok((span, size))
}

/// `bytes FIRST-LAST/SIZE`, with all three given and in order.
fn parse_content_range(range: &str) -> Option<(ByteSpan, u64)> {
    let (span, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let number = |digits: &str| {
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| digits.parse::<u64>().ok()).flatten()
    };
    let (first, last, size) = (number(first)?, number(last)?, number(size)?);
    let span = ByteSpan {
        start: first,
        end: last.checked_add(1)?,
    };
    (first <= last && last < size).then_some((span, size))
}

/// The part of a whole object that was asked for, when the store ignored `Range`.
fn span_of_whole(wanted: ByteSpan, size: u64) -> StoreResult<ByteSpan> {
    if wanted.start >= size {
        let message = format!("byte {} of an object of {size} bytes", wanted.start);
        let mut error = StoreError::new(StoreErrorKind::RangeNotSatisfiable, message);
        error.object_size = Some(size);
        return Err(error);
    }
    if wanted.start > SKIPPED_BYTES_MAX {
        let message = format!(
            "the store ignores Range; {} bytes would have to be thrown away",
            wanted.start
        );
        return Err(StoreError::new(StoreErrorKind::Unsupported, message));
    }
    let end = wanted.end.min(size);
    Ok(ByteSpan {
        start: wanted.start,
        end,
    })
}

/// Judges the head of a successful answer to a HEAD.
pub(in crate::store) fn described(status: u16, headers: &HeaderMap) -> StoreResult<ObjectHead> {
    if status != 200 {
        return Err(corrupt(&format!("status {status} to a HEAD")));
    }
    if looks_like_a_portal(headers) {
        return Err(corrupt("an HTML page came in place of the object"));
    }
    let size = content_length(headers)?.ok_or_else(|| corrupt("an answer without a length"))?;
    Ok(ObjectHead {
        meta: object_meta(headers, size, etag(headers)?),
        crc64nvme: crc64nvme(headers),
        version_id: version_id(headers),
    })
}

/// Judges the head of a successful answer to a PUT; `checksum` is what was sent, as text.
pub(in crate::store) fn written(
    status: u16,
    headers: &HeaderMap,
    checksum: Option<&str>,
) -> StoreResult<PutReply> {
    if status != 200 {
        return Err(corrupt(&format!("status {status} to a PUT")));
    }
    let echoed = echoed_checksum(headers);
    if let (Some(sent), Some(echoed)) = (checksum, echoed)
        && sent != echoed
    {
        return Err(corrupt(&format!(
            "CRC64-NVME {sent} was sent, {echoed} was stored"
        )));
    }
    Ok(PutReply {
        etag: etag(headers)?,
        last_modified: last_modified(headers),
        version_id: version_id(headers),
    })
}

/// The checksum of a whole object; none if the store gives one of another form, as for an object
/// in parts.
fn crc64nvme(headers: &HeaderMap) -> Option<u64> {
    let kind = text(headers, &HeaderName::from_static("x-amz-checksum-type"));
    if kind.is_some_and(|kind| kind != "FULL_OBJECT") {
        return None;
    }
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(echoed_checksum(headers)?)
        .ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The checksum by which a store shows that it verified a PUT.
pub(super) fn echoed_checksum(headers: &HeaderMap) -> Option<&str> {
    text(
        headers,
        &HeaderName::from_static("x-amz-checksum-crc64nvme"),
    )
}

/// The version that an answer is about, where it tells one.
pub(super) fn version_id(headers: &HeaderMap) -> Option<String> {
    let id = text(headers, &HeaderName::from_static("x-amz-version-id"))?;
    (!id.is_empty()).then(|| id.to_owned())
}

/// What a successful answer to a DELETE says.
pub(super) fn deleted(status: u16, headers: &HeaderMap) -> StoreResult<Deleted> {
    if !matches!(status, 200 | 204) {
        return Err(corrupt(&format!("status {status} to a DELETE")));
    }
    let is_marker = text(headers, &HeaderName::from_static("x-amz-delete-marker"));
    Ok(Deleted {
        version_id: version_id(headers),
        is_marker: is_marker == Some("true"),
    })
}

/// How far the store's clock is ahead of ours, seconds.
pub(in crate::store) fn clock_ahead_seconds(headers: &HeaderMap, now: SystemTime) -> Option<i64> {
    let theirs = httpdate::parse_http_date(text(headers, &header::DATE)?).ok()?;
    let seconds = |time: SystemTime| {
        let since_epoch = time.duration_since(UNIX_EPOCH).ok()?;
        i64::try_from(since_epoch.as_secs()).ok()
    };
    seconds(theirs)?.checked_sub(seconds(now)?)
}

/// An HTML page that no object store sent: none of S3's or Azure's headers, and no offer of ranges.
fn looks_like_a_portal(headers: &HeaderMap) -> bool {
    let is_html = text(headers, &header::CONTENT_TYPE)
        .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/html"));
    let is_store = headers.contains_key(header::ACCEPT_RANGES)
        || headers
            .keys()
            .any(|name| name.as_str().starts_with("x-amz-") || name.as_str().starts_with("x-ms-"));
    is_html && !is_store
}

fn object_meta(headers: &HeaderMap, size: u64, etag: String) -> ObjectMeta {
    let is_ours = |name: &str| {
        let is_told = name.starts_with(META_PREFIX) || name.starts_with(CHECKSUM_PREFIX);
        is_told || OBJECT_HEADERS.contains(&name)
    };
    let headers_kept = headers
        .iter()
        .filter(|(name, _)| is_ours(name.as_str()))
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        })
        .collect();
    ObjectMeta {
        size,
        etag,
        last_modified: last_modified(headers),
        headers: headers_kept,
    }
}

pub(in crate::store) fn content_length(headers: &HeaderMap) -> StoreResult<Option<u64>> {
    let Some(length) = text(headers, &header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    let parsed = length
        .parse()
        .map_err(|_| corrupt("Content-Length is no number"))?;
    Ok(Some(parsed))
}

pub(in crate::store) fn etag(headers: &HeaderMap) -> StoreResult<String> {
    let raw = text(headers, &header::ETAG).ok_or_else(|| corrupt("an answer without an ETag"))?;
    let (weak, quoted) = match raw.strip_prefix("W/") {
        Some(quoted) => ("W/", quoted),
        None => ("", raw),
    };
    let bare = quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let bare = bare.unwrap_or(quoted);
    if bare.is_empty() {
        return Err(corrupt("an answer with an empty ETag"));
    }
    Ok(format!("{weak}{bare}"))
}

pub(in crate::store) fn last_modified(headers: &HeaderMap) -> u64 {
    text(headers, &header::LAST_MODIFIED)
        .and_then(|date| httpdate::parse_http_date(date).ok())
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since_epoch| since_epoch.as_secs())
}

pub(in crate::store) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = text(headers, &header::RETRY_AFTER)?;
    let pause = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let moment = httpdate::parse_http_date(value).ok()?;
            moment.duration_since(now).unwrap_or_default()
        }
    };
    Some(pause.min(RETRY_AFTER_MAX))
}

pub(in crate::store) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

pub(in crate::store) fn corrupt(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, message)
}

pub(in crate::store) fn shortened(message: &str) -> String {
    let clean = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    clean.take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
