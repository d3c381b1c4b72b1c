//! What an answer of Azure's means.
//!
//! Pure. This file owns which error an answer stands for, by its `x-ms-error-code`, and what a good
//! answer tells of an object. What holds for every HTTP store, lengths and ranges above all, is judged
//! by `s3/answer.rs`. It never deduces that a blob is missing from a page that Azure did not write.

use super::super::s3::answer::{
    BodyPlan, corrupt, described as described_s3, etag, last_modified, plan_body as plan_s3,
    retry_after, shortened, text,
};
use super::headers;
use super::sign::Verb;
use crate::xml::{self, Node, XmlError};
use forebay_io::store::{
    GetRequest, ObjectHead, PutReply, StoreError, StoreErrorKind, StoreResult,
};
use reqwest::header::{self, HeaderMap, HeaderName};
use std::time::SystemTime;

/// The error that an answer other than 2xx stands for. `body` is its beginning.
pub(super) fn refusal(
    verb: Verb,
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> StoreError {
    let told = text(headers, &HeaderName::from_static("x-ms-error-code"));
    let (document_code, explanation) = parse_error(body).unwrap_or_default();
    let code = told.unwrap_or(&document_code);
    let kind = refusal_kind(verb, status, code);
    let mut message = match code {
        "" => format!("{verb:?} answered without one of Azure's error codes"),
        code => format!("{verb:?} refused: {code}: {explanation}"),
    };
    if kind == StoreErrorKind::Misdirected {
        message = "redirected, which is not followed; set the endpoint".to_owned();
    }
    let mut error = StoreError::new(kind, shortened(&message));
    error.status = Some(status);
    error.retry_after = retry_after(headers, now);
    if kind == StoreErrorKind::RangeNotSatisfiable {
        error.object_size = text(headers, &header::CONTENT_RANGE)
            .and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
    }
    error
}

fn refusal_kind(verb: Verb, status: u16, code: &str) -> StoreErrorKind {
    use StoreErrorKind as Kind;
    match (status, code) {
        // Whatever the status: the code is the more exact.
        (_, "ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled") => {
            Kind::NoSuchBucket
        }
        (_, "ServerBusy" | "TooManyRequests") => Kind::SlowDown,
        (_, "OperationTimedOut" | "RequestTimeout") => Kind::Timeout,
        // The store says that what arrived is not what we sent.
        (400, "Md5Mismatch" | "Crc64Mismatch" | "IncompleteBody") => Kind::Corrupt,
        (400, "InvalidBlockList" | "InvalidBlockId" | "InvalidBlobOrBlock") => Kind::InvalidPart,
        (400, "InvalidUri" | "InvalidResourceName" | "ResourceNameInvalid") => Kind::InvalidKey,
        (400, "InvalidAuthenticationInfo" | "AuthenticationFailed") => Kind::Denied,
        (_, "UnsupportedHeader" | "UnsupportedHttpVerb" | "APINotImplemented") => Kind::Unsupported,
        // Azurite's, with status 500.
        (_, "FeatureNotSupported") => Kind::Unsupported,
        (404, "BlobNotFound" | "ResourceNotFound" | "CannotVerifyCopySource") => Kind::NotFound,
        (404, "") if verb == Verb::Head => Kind::NotFound,
        (409, "BlobAlreadyExists" | "ResourceAlreadyExists") => Kind::PreconditionFailed,
        // Another type of blob, an archived one or one with snapshots: no later try helps.
        (
            409,
            "InvalidBlobType"
            | "BlobArchived"
            | "BlobBeingRehydrated"
            | "SnapshotsPresent"
            | "FeatureVersionMismatch",
        ) => Kind::Rejected,
        (409, "BlobImmutableDueToPolicy" | "AccountBeingCreated") => Kind::Denied,
        // A write or a copy is under way, or somebody holds a lease.
        (409, _) => Kind::Contended,
        (412, code) if code.starts_with("Lease") => Kind::Contended,
        (304, _) if verb == Verb::Put => Kind::PreconditionFailed,
        (304, _) => Kind::NotModified,
        (401 | 403, _) => Kind::Denied,
        (408, _) => Kind::Timeout,
        (412, _) => Kind::PreconditionFailed,
        (416, _) => Kind::RangeNotSatisfiable,
        (429 | 503, _) => Kind::SlowDown,
        (501, _) => Kind::Unsupported,
        (500..=599, _) => Kind::Internal,
        (300..=399, _) => Kind::Misdirected,
        (413, _) => Kind::Rejected,
        // Not a word about the blob: a proxy or a portal spoke, not the store.
        (400..=499, "") if verb != Verb::Head => Kind::Corrupt,
        (400..=499, _) => Kind::Rejected,
        _ => Kind::Corrupt,
    }
}

/// Code and message of an error document.
fn parse_error(body: &[u8]) -> Option<(String, String)> {
    let mut found = (String::new(), String::new());
    xml::read(body, |path, node| {
        let Some(("Error", inside)) = path
            .split_first()
            .map(|(root, inside)| (root.as_str(), inside))
        else {
            return Err(XmlError::new("it is no Error"));
        };
        if let (Node::Close(text), [name]) = (node, inside) {
            match name.as_str() {
                "Code" => found.0 = text.trim().to_owned(),
                // Its first line: the others are an id and the time.
                "Message" => found.1 = text.trim().lines().next().unwrap_or_default().to_owned(),
                _ => {}
            }
        }
        Ok(())
    })
    .ok()?;
    Some(found)
}

/// Judges the head of a successful answer to a GET.
pub(super) fn plan_body(
    request: &GetRequest,
    status: u16,
    headers: &HeaderMap,
) -> StoreResult<BodyPlan> {
    if let Some(size) = size_before_range(request, headers) {
        let message = format!("the range begins at the end of a blob of {size} bytes");
        let mut error = StoreError::new(StoreErrorKind::RangeNotSatisfiable, message);
        error.object_size = Some(size);
        return Err(error);
    }
    let mut plan = plan_s3(request, status, headers)?;
    plan.meta.headers = headers::from_azure(headers).0;
    Ok(plan)
}

/// The size of a blob that ends where the wanted range begins: Azurite answers that with 206 and a
/// range whose last byte is before its first.
fn size_before_range(request: &GetRequest, headers: &HeaderMap) -> Option<u64> {
    let start = request.span?.start;
    let told = text(headers, &header::CONTENT_RANGE)?;
    let nothing = format!("bytes {start}-{}/", i128::from(start) - 1);
    let size = told.strip_prefix(&nothing)?.parse().ok()?;
    (size <= start).then_some(size)
}

/// Judges the head of a successful answer to a HEAD.
pub(super) fn described(status: u16, headers: &HeaderMap) -> StoreResult<ObjectHead> {
    let mut head = described_s3(status, headers)?;
    (head.meta.headers, head.crc64nvme) = headers::from_azure(headers);
    Ok(head)
}

/// Judges the head of a successful answer to a write; `crc` is the checksum that was sent, as text.
pub(super) fn written(
    status: u16,
    headers: &HeaderMap,
    crc: Option<&str>,
) -> StoreResult<PutReply> {
    accepted(status, headers, crc)?;
    Ok(PutReply {
        etag: etag(headers)?,
        last_modified: last_modified(headers),
        version_id: None,
    })
}

/// The same of a block, which has no tag.
pub(super) fn accepted(status: u16, headers: &HeaderMap, crc: Option<&str>) -> StoreResult<()> {
    if !matches!(status, 201 | 202) {
        return Err(corrupt(&format!("status {status} to a write")));
    }
    let told = text(headers, &HeaderName::from_static("x-ms-content-crc64"));
    match (crc, told) {
        (Some(sent), Some(told)) if sent != told => Err(corrupt(&format!(
            "CRC64 {sent} was sent, {told} was stored"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use StoreErrorKind as Kind;
    use reqwest::header::HeaderValue;

    fn kind_of(verb: Verb, status: u16, code: &str) -> Kind {
        let mut headers = HeaderMap::new();
        if !code.is_empty() {
            let value = HeaderValue::from_str(code).expect("a value");
            headers.insert("x-ms-error-code", value);
        }
        refusal(verb, status, &headers, b"", SystemTime::now()).kind
    }

    #[test]
    fn refusals_are_told_apart_by_code_and_status() {
        let table = [
            (Verb::Get, 404, "BlobNotFound", Kind::NotFound),
            (Verb::Get, 404, "ContainerNotFound", Kind::NoSuchBucket),
            (Verb::Put, 409, "ContainerBeingDeleted", Kind::NoSuchBucket),
            (Verb::Head, 404, "", Kind::NotFound),
            (Verb::Get, 404, "", Kind::Corrupt),
            (Verb::Delete, 404, "", Kind::Corrupt),
            (Verb::Get, 503, "ServerBusy", Kind::SlowDown),
            (Verb::Put, 500, "OperationTimedOut", Kind::Timeout),
            (Verb::Put, 500, "InternalError", Kind::Internal),
            (Verb::Get, 403, "AuthenticationFailed", Kind::Denied),
            (
                Verb::Put,
                403,
                "AuthorizationPermissionMismatch",
                Kind::Denied,
            ),
            (Verb::Head, 403, "", Kind::Denied),
            (Verb::Get, 304, "", Kind::NotModified),
            (
                Verb::Put,
                409,
                "BlobAlreadyExists",
                Kind::PreconditionFailed,
            ),
            (Verb::Put, 412, "ConditionNotMet", Kind::PreconditionFailed),
            (
                Verb::Put,
                412,
                "SourceConditionNotMet",
                Kind::PreconditionFailed,
            ),
            (Verb::Put, 412, "LeaseIdMissing", Kind::Contended),
            (Verb::Put, 409, "PendingCopyOperation", Kind::Contended),
            (Verb::Put, 409, "InvalidBlobType", Kind::Rejected),
            (Verb::Put, 400, "Md5Mismatch", Kind::Corrupt),
            (Verb::Put, 400, "InvalidBlockList", Kind::InvalidPart),
            (Verb::Put, 400, "InvalidHeaderValue", Kind::Rejected),
            (Verb::Put, 400, "", Kind::Corrupt),
            (Verb::Put, 413, "RequestBodyTooLarge", Kind::Rejected),
            (Verb::Get, 416, "InvalidRange", Kind::RangeNotSatisfiable),
            (Verb::Put, 501, "", Kind::Unsupported),
            (Verb::Get, 307, "", Kind::Misdirected),
        ];
        for (verb, status, code, expected) in table {
            assert_eq!(
                kind_of(verb, status, code),
                expected,
                "{verb:?} {status} {code}"
            );
        }
    }

    #[test]
    fn a_range_of_nothing_is_no_range() {
        let wanted = |start| GetRequest {
            span: Some(forebay_io::store::ByteSpan {
                start,
                end: start + 5,
            }),
            ..GetRequest::default()
        };
        for (start, range) in [(7, "bytes 7-6/7"), (0, "bytes 0--1/0")] {
            let mut headers = HeaderMap::new();
            headers.insert("etag", HeaderValue::from_static("\"0x8D\""));
            headers.insert("content-length", HeaderValue::from_static("0"));
            headers.insert("content-range", HeaderValue::from_static(range));
            let error = plan_body(&wanted(start), 206, &headers).expect_err(range);
            assert_eq!(error.kind, Kind::RangeNotSatisfiable);
            assert_eq!(error.object_size, Some(start));
        }
    }

    #[test]
    fn a_document_tells_where_the_header_does_not() {
        let body =
            b"\xef\xbb\xbf<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>ServerBusy</Code>\
                     <Message>Slow down.\nRequestId:1\nTime:2</Message><Detail>x</Detail></Error>";
        let now = SystemTime::now();
        let error = refusal(Verb::Get, 500, &HeaderMap::new(), body, now);
        assert_eq!(error.kind, Kind::SlowDown);
        assert_eq!(error.message, "Get refused: ServerBusy: Slow down.");
        let page = refusal(Verb::Get, 404, &HeaderMap::new(), b"<html></html>", now);
        assert_eq!(page.kind, Kind::Corrupt);
    }

    #[test]
    fn a_checksum_that_comes_back_as_another_is_a_fault() {
        let mut headers = HeaderMap::new();
        headers.insert("etag", HeaderValue::from_static("\"0x8D\""));
        headers.insert("x-ms-content-crc64", HeaderValue::from_static("AAAA"));
        let reply = written(201, &headers, Some("AAAA")).expect("stored");
        assert_eq!(reply.etag, "0x8D");
        assert_eq!(
            written(201, &headers, Some("BBBB"))
                .expect_err("another")
                .kind,
            Kind::Corrupt
        );
        assert_eq!(
            written(200, &headers, None)
                .expect_err("no write gets it")
                .kind,
            Kind::Corrupt
        );
    }
}
