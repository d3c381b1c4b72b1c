//! Answers as tables: what comes in, what is made of it.

use super::*;
use StoreErrorKind as Kind;
use proptest::prelude::*;
use reqwest::header::HeaderValue;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let pairs = lines.iter().map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a good name");
        (name, HeaderValue::from_str(value).expect("a good value"))
    });
    pairs.collect()
}

fn request(span: Option<(u64, u64)>) -> GetRequest {
    GetRequest {
        key: "k".into(),
        span: span.map(|(start, end)| ByteSpan { start, end }),
        ..GetRequest::default()
    }
}

fn document(code: &str) -> Vec<u8> {
    let xml = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>a &lt;b&gt; &#99;</Message></Error>"
    );
    xml.into_bytes()
}

fn kind_of(verb: Verb, status: u16, body: &[u8]) -> Kind {
    refusal(verb, status, &HeaderMap::new(), body, SystemTime::now()).kind
}

#[test]
fn refusals_are_told_apart_by_status_and_code() {
    let table = [
        (Verb::Get, 404, "NoSuchKey", Kind::NotFound),
        (Verb::Get, 404, "NoSuchBucket", Kind::NoSuchBucket),
        (Verb::Get, 404, "SomethingElse", Kind::Rejected),
        (Verb::Head, 404, "", Kind::NotFound),
        (Verb::Get, 404, "", Kind::Corrupt),
        (Verb::Delete, 404, "", Kind::Corrupt),
        (Verb::Put, 404, "", Kind::Corrupt),
        (Verb::Put, 404, "NoSuchBucket", Kind::NoSuchBucket),
        (Verb::Delete, 404, "NoSuchBucket", Kind::NoSuchBucket),
        (Verb::Get, 301, "PermanentRedirect", Kind::Misdirected),
        (Verb::Get, 307, "TemporaryRedirect", Kind::Misdirected),
        (Verb::Put, 302, "", Kind::Misdirected),
        (Verb::Head, 301, "", Kind::Misdirected),
        (
            Verb::Put,
            400,
            "AuthorizationHeaderMalformed",
            Kind::Misdirected,
        ),
        (Verb::Get, 304, "", Kind::NotModified),
        (Verb::Put, 304, "", Kind::PreconditionFailed),
        (Verb::Get, 400, "InvalidArgument", Kind::Rejected),
        (Verb::Put, 400, "InvalidArgument", Kind::Rejected),
        (Verb::Delete, 400, "InvalidArgument", Kind::Rejected),
        (Verb::Put, 400, "", Kind::Corrupt),
        (Verb::Head, 400, "", Kind::Denied),
        (Verb::Head, 405, "", Kind::Rejected),
        (Verb::Put, 400, "BadDigest", Kind::Corrupt),
        (Verb::Put, 400, "RequestTimeout", Kind::Timeout),
        (Verb::Get, 400, "ExpiredToken", Kind::Denied),
        (Verb::Get, 401, "", Kind::Denied),
        (Verb::Get, 403, "AccessDenied", Kind::Denied),
        (Verb::Put, 403, "SignatureDoesNotMatch", Kind::Denied),
        (Verb::Head, 403, "", Kind::Denied),
        (Verb::Delete, 403, "AccessDenied", Kind::Denied),
        (Verb::Get, 403, "RequestTimeTooSkewed", Kind::ClockSkew),
        (Verb::Put, 408, "", Kind::Timeout),
        (
            Verb::Put,
            409,
            "ConditionalRequestConflict",
            Kind::Contended,
        ),
        (Verb::Delete, 409, "OperationAborted", Kind::Contended),
        (Verb::Put, 409, "", Kind::Contended),
        (Verb::Put, 409, "BucketNotEmpty", Kind::Rejected),
        (
            Verb::Put,
            412,
            "PreconditionFailed",
            Kind::PreconditionFailed,
        ),
        (Verb::Put, 413, "EntityTooLarge", Kind::Rejected),
        (Verb::Put, 413, "", Kind::Rejected),
        (Verb::Get, 416, "InvalidRange", Kind::RangeNotSatisfiable),
        (Verb::Get, 429, "", Kind::SlowDown),
        (Verb::Get, 500, "InternalError", Kind::Internal),
        (Verb::Get, 500, "SlowDown", Kind::SlowDown),
        (Verb::Put, 501, "NotImplemented", Kind::Unsupported),
        (Verb::Get, 502, "", Kind::Internal),
        (Verb::Get, 503, "", Kind::SlowDown),
        (Verb::Put, 503, "SlowDown", Kind::SlowDown),
        (Verb::Head, 503, "", Kind::SlowDown),
        (Verb::Delete, 503, "SlowDown", Kind::SlowDown),
        (Verb::Get, 504, "", Kind::Internal),
    ];
    for (verb, status, code, kind) in table {
        let body = if code.is_empty() {
            b"<html>no</html>".to_vec()
        } else {
            document(code)
        };
        assert_eq!(
            kind_of(verb, status, &body),
            kind,
            "{verb:?} {status} {code}"
        );
    }
}

#[test]
fn error_documents_are_read_and_other_pages_are_not() {
    let read = parse_error_document(&document("NoSuchKey")).expect("an error document");
    assert_eq!(
        (read.code.as_str(), read.message.as_str()),
        ("NoSuchKey", "a <b> c")
    );
    for page in [
        "",
        "<html><Code>NoSuchKey</Code></html>",
        "<Error></Error>",
        "<Error><Code>NoSuchKey",
        "<Error><Code>A</Code>",
        "<List><Error><Code>NoSuchKey</Code></Error></List>",
        "Code",
        "<Error><Inner><Code>NoSuchKey</Code></Inner></Error>",
        "{\"Code\":\"NoSuchKey\"}",
    ] {
        assert_eq!(parse_error_document(page.as_bytes()), None, "{page}");
    }
}

#[test]
fn the_size_in_a_416_is_kept() {
    let told = headers(&[("content-range", "bytes */42")]);
    let now = SystemTime::now();
    assert_eq!(
        refusal(Verb::Get, 416, &told, b"", now).object_size,
        Some(42)
    );
    let xml = b"<Error><Code>InvalidRange</Code><ActualObjectSize>7</ActualObjectSize></Error>";
    assert_eq!(
        refusal(Verb::Get, 416, &HeaderMap::new(), xml, now).object_size,
        Some(7)
    );
    assert_eq!(
        refusal(Verb::Get, 416, &HeaderMap::new(), b"", now).object_size,
        None
    );
}

#[test]
fn retry_after_is_read_in_both_forms_and_bounded() {
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let later = httpdate::fmt_http_date(now + Duration::from_secs(9));
    let table = [
        ("7", Some(7)),
        (later.as_str(), Some(9)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ("99999999", Some(300)),
        ("soon", None),
    ];
    for (value, seconds) in table {
        let error = refusal(
            Verb::Get,
            503,
            &headers(&[("retry-after", value)]),
            b"",
            now,
        );
        assert_eq!(
            error.retry_after,
            seconds.map(Duration::from_secs),
            "{value}"
        );
    }
}

#[test]
fn a_redirect_is_explained_without_its_signature() {
    let target = "https://evil.example/k?X-Amz-Signature=abcdef&X-Amz-Credential=me";
    let error = refusal(
        Verb::Get,
        307,
        &headers(&[("location", target)]),
        b"",
        SystemTime::now(),
    );
    assert!(error.message.contains("evil.example"), "{error}");
    assert!(
        !error.message.contains("abcdef") && !error.message.contains("me&"),
        "{error}"
    );
    let told = headers(&[("x-amz-bucket-region", "eu-west-1")]);
    let error = refusal(Verb::Head, 301, &told, b"", SystemTime::now());
    assert!(error.message.contains("eu-west-1"), "{error}");
}

#[test]
fn good_heads_are_taken() {
    let whole = headers(&[
        ("content-length", "10"),
        ("etag", "\"t\""),
        ("x-amz-meta-a", "b"),
        ("server", "s"),
        ("last-modified", "Thu, 01 Jan 1970 00:01:00 GMT"),
        ("content-type", "text/html"),
        ("accept-ranges", "bytes"),
    ]);
    let plan = plan_body(&request(None), 200, &whole).expect("a good head");
    assert_eq!(
        (
            plan.meta.size,
            plan.meta.etag.as_str(),
            plan.meta.last_modified
        ),
        (10, "t", 60)
    );
    assert_eq!(plan.span, ByteSpan { start: 0, end: 10 });
    assert_eq!(plan.meta.headers.len(), 2, "{:?}", plan.meta.headers);

    let part = |range| headers(&[("content-range", range), ("etag", "\"t\"")]);
    let plan = plan_body(&request(Some((4, 6))), 206, &part("bytes 4-5/10")).expect("good");
    assert_eq!(
        (plan.span, plan.meta.size),
        (ByteSpan { start: 4, end: 6 }, 10)
    );
    let plan = plan_body(&request(Some((4, 99))), 206, &part("bytes 4-9/10")).expect("good");
    assert_eq!(plan.span, ByteSpan { start: 4, end: 10 });
}

/// What is made of a head with these lines and a tag; it must not be a plan.
fn refused_head(span: Option<(u64, u64)>, status: u16, lines: &[(&str, &str)]) -> Kind {
    let lines: Vec<_> = lines.iter().copied().chain([("etag", "\"t\"")]).collect();
    let outcome = plan_body(&request(span), status, &headers(&lines));
    outcome.expect_err(&format!("{lines:?} was taken")).kind
}

#[test]
fn heads_of_whole_answers_that_say_too_little_are_not_taken() {
    let length = ("content-length", "10");
    for tag in [vec![length], vec![length, ("etag", "\"\"")]] {
        let outcome = plan_body(&request(None), 200, &headers(&tag));
        assert_eq!(outcome.expect_err("no tag").kind, Kind::Corrupt);
    }
    assert_eq!(refused_head(None, 200, &[]), Kind::Corrupt);
    assert_eq!(
        refused_head(None, 200, &[("content-length", "x")]),
        Kind::Corrupt
    );
    assert_eq!(refused_head(None, 204, &[length]), Kind::Corrupt);
    assert_eq!(
        refused_head(None, 206, &[("content-range", "bytes 0-9/10")]),
        Kind::Corrupt
    );
    let portal = [length, ("content-type", "text/html")];
    assert_eq!(refused_head(None, 200, &portal), Kind::Corrupt);
}

#[test]
fn heads_of_ranged_answers_that_contradict_the_request_or_themselves_are_not_taken() {
    let span = Some((4, 8));
    for range in [
        "bytes 3-7/10",
        "bytes 4-6/10",
        "bytes 4-8/10",
        "bytes 4-7/*",
        "bytes 4-7/7",
        "bytes 7-4/10",
        "bytes +4-7/10",
        "lines 4-7/10",
        "bytes */10",
        "",
    ] {
        let kind = refused_head(span, 206, &[("content-range", range)]);
        assert_eq!(kind, Kind::Corrupt, "{range:?}");
    }
    let multipart = ("content-type", "multipart/byteranges; boundary=b");
    assert_eq!(refused_head(span, 206, &[multipart]), Kind::Corrupt);
    let disagreeing = [("content-range", "bytes 4-7/10"), ("content-length", "5")];
    assert_eq!(refused_head(span, 206, &disagreeing), Kind::Corrupt);
}

#[test]
fn a_whole_answer_to_a_range_yields_only_the_range() {
    let whole = |length: &str| headers(&[("content-length", length), ("etag", "\"t\"")]);
    let plan = plan_body(&request(Some((0, 4))), 200, &whole("10")).expect("its beginning");
    assert_eq!(
        (plan.span.len(), plan.skipped_bytes, plan.is_exact),
        (4, 0, false)
    );
    let plan = plan_body(&request(Some((4, 99))), 200, &whole("10")).expect("its end");
    assert_eq!(
        (plan.span.len(), plan.skipped_bytes, plan.is_exact),
        (6, 4, true)
    );
    let error = plan_body(&request(Some((10, 12))), 200, &whole("10")).expect_err("past it");
    assert_eq!(
        (error.kind, error.object_size),
        (Kind::RangeNotSatisfiable, Some(10))
    );
    let far = SKIPPED_BYTES_MAX + 1;
    let error = plan_body(&request(Some((far, far + 1))), 200, &whole("99999999999"));
    assert_eq!(error.expect_err("too far").kind, Kind::Unsupported);
}

#[test]
fn conditions_that_the_store_ignored_are_noticed() {
    let head = headers(&[("content-length", "1"), ("etag", "\"new\"")]);
    let mut conditional = request(None);
    conditional.if_match = Some("old".into());
    assert_eq!(
        plan_body(&conditional, 200, &head).expect_err("other").kind,
        Kind::Corrupt
    );
    conditional.if_match = Some("new".into());
    assert!(plan_body(&conditional, 200, &head).is_ok());
    conditional.if_match = None;
    conditional.if_none_match = Some("new".into());
    assert_eq!(
        plan_body(&conditional, 200, &head).expect_err("same").kind,
        Kind::NotModified
    );
}

#[test]
fn a_confirmed_put_has_a_tag_and_our_checksum() {
    let name = "x-amz-checksum-crc64nvme";
    let good = headers(&[("etag", "\"t\""), (name, "AAAA")]);
    assert_eq!(written(200, &good, Some("AAAA")).expect("good").etag, "t");
    assert_eq!(
        written(200, &good, Some("BBBB")).expect_err("other").kind,
        Kind::Corrupt
    );
    assert_eq!(
        written(204, &good, None).expect_err("odd").kind,
        Kind::Corrupt
    );
    assert_eq!(
        written(200, &headers(&[]), None).expect_err("no tag").kind,
        Kind::Corrupt
    );
}

#[test]
fn the_clocks_are_compared() {
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let at = |seconds: u64| {
        headers(&[(
            "date",
            &httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)),
        )])
    };
    assert_eq!(clock_ahead_seconds(&at(1_001_200), now), Some(1200));
    assert_eq!(clock_ahead_seconds(&at(998_800), now), Some(-1200));
    assert_eq!(
        clock_ahead_seconds(&headers(&[("date", "noon")]), now),
        None
    );
}

proptest! {
    #[test]
    fn any_error_body_can_be_read(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_error_document(&body);
    }

    #[test]
    fn a_content_range_that_is_believed_is_a_range(range in "bytes [0-9]{0,20}-[0-9]{0,20}/[0-9*]{0,20}") {
        if let Some((span, size)) = parse_content_range(&range) {
            prop_assert!(span.start < span.end && span.end <= size);
        }
    }
}
