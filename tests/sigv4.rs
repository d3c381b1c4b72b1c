//! AWS signatures: requests signed by others than the server are taken, and all others are not.
//!
//! The signer is that of `common/signing.rs`; the presigned URLs are made by rusty-s3.

mod common;

use common::proxy::OTHER_VOLUME;
use common::signing::{
    Pair, READER, STRANGER, Signing, TRAILER, UNSIGNED, WRITER, assert_code, borrowed, bucket, now,
    send, send_presigned, start, verdict,
};
use common::{OPERATOR, READ_WRITE, VOLUME, assert_same_bytes, pattern};
use rusty_s3::S3Action;
use rusty_s3::actions::{DeleteObject, GetObject, HeadObject, PutObject};

#[test]
fn signed_headers_open_what_their_pair_may() {
    let proxy = start();
    let body = pattern(3, 2_500_000);
    let target = format!("/{VOLUME}/a%20b/%D1%8E%2Bc");
    assert_eq!(WRITER.send(&proxy, "PUT", &target, &body).status, 200);
    for pair in [WRITER, READER] {
        let read = pair.send(&proxy, "GET", &target, b"");
        assert_eq!(read.status, 200);
        assert_same_bytes(&read.body, &body, "signed GET");
        assert!(read.cache().starts_with("hit-"), "{}", read.cache());
        assert_eq!(pair.send(&proxy, "HEAD", &target, b"").status, 200);
    }
    // A range is served whether it is signed or not.
    let ranged = READER.sign(&Signing {
        method: "GET",
        target: &target,
        headers: &[("range", "bytes=1000-1999")],
        payload: UNSIGNED,
        at: now(),
    });
    let part = send(&proxy, "GET", &target, &ranged, b"");
    assert_eq!(
        (part.status, part.body.as_slice()),
        (206, &body[1000..2000])
    );
    let mut unsigned = READER.headers("GET", &target, b"");
    unsigned.push(("range".to_owned(), "bytes=-10".to_owned()));
    let part = send(&proxy, "GET", &target, &unsigned, b"");
    assert_eq!(
        (part.status, part.body.as_slice()),
        (206, &body[2_499_990..])
    );
    for (method, body) in [("PUT", &b"other"[..]), ("DELETE", b"")] {
        let answer = READER.send(&proxy, method, &target, body);
        assert_code(&answer, 403, "AccessDenied", "a reader writes");
    }
    assert_eq!(WRITER.send(&proxy, "DELETE", &target, b"").status, 204);
    assert_eq!(READER.send(&proxy, "GET", &target, b"").status, 404);
}

#[test]
fn presigned_urls_open_what_they_name() {
    let proxy = start();
    let (bucket, writer) = (bucket(VOLUME), WRITER.credentials());
    for (number, key) in ["plain", "a b/ü+(c)~'!*", "x//y/", "100%/=&?#;:@$,"]
        .iter()
        .enumerate()
    {
        let body = pattern(number as u64, 3000);
        let put = WRITER.presign(PutObject::new(&bucket, Some(&writer), key), now(), 60);
        assert_eq!(
            send_presigned(&proxy, "PUT", &put, &body).status,
            200,
            "{key}"
        );
        let get = WRITER.presign(GetObject::new(&bucket, Some(&writer), key), now(), 604_800);
        let read = send_presigned(&proxy, "GET", &get, b"");
        assert_eq!(read.status, 200, "{key}");
        assert_eq!(read.body, body, "{key}");
        // HTTP libraries under a client may spell the path in their own way.
        let bare = get
            .replacen("%28c%29", "(c)", 1)
            .replacen("%27%21%2A", "'!*", 1);
        assert_eq!(
            send_presigned(&proxy, "GET", &bare, b"").body,
            body,
            "{key}"
        );
        let head = WRITER.presign(HeadObject::new(&bucket, Some(&writer), key), now(), 60);
        assert_eq!(
            send_presigned(&proxy, "HEAD", &head, b"").status,
            200,
            "{key}"
        );
        for method in ["PUT", "DELETE", "HEAD"] {
            let status = send_presigned(&proxy, method, &get, b"").status;
            assert_eq!(status, 403, "{method} of {key} with a URL for GET");
        }
        let delete = WRITER.presign(DeleteObject::new(&bucket, Some(&writer), key), now(), 60);
        assert_eq!(
            send_presigned(&proxy, "DELETE", &delete, b"").status,
            204,
            "{key}"
        );
        assert_eq!(
            send_presigned(&proxy, "GET", &get, b"").status,
            404,
            "{key}"
        );
    }
}

#[test]
fn presigned_urls_end_and_carry_nothing_else() {
    let proxy = start();
    proxy.put("dated", b"body");
    let (bucket, reader) = (bucket(VOLUME), READER.credentials());
    let get = |at: i64, seconds: u64| {
        READER.presign(GetObject::new(&bucket, Some(&reader), "dated"), at, seconds)
    };
    let expired = send_presigned(&proxy, "GET", &get(now() - 61, 60), b"");
    assert_code(&expired, 403, "AccessDenied", "expired");
    assert!(
        expired.text().contains("Request has expired"),
        "{}",
        expired.text()
    );
    let early = send_presigned(&proxy, "GET", &get(now() + 1000, 3600), b"");
    assert_code(&early, 403, "AccessDenied", "not yet");
    for (more, status, code) in [
        ("&x-id=GetObject", 403, "SignatureDoesNotMatch"),
        (
            "&X-Amz-Expires=604800",
            400,
            "AuthorizationQueryParametersError",
        ),
        ("&X-Amz-Security-Token=x", 400, "InvalidToken"),
    ] {
        let answer = send_presigned(&proxy, "GET", &(get(now(), 60) + more), b"");
        assert_code(&answer, status, code, more);
    }
    // A good signature of a query that asks for more than is served.
    let mut action = GetObject::new(&bucket, Some(&reader), "dated");
    action
        .query_mut()
        .insert("response-content-type", "text/html");
    let more = READER.presign(action, now(), 60);
    let answer = send_presigned(&proxy, "GET", &more, b"");
    assert_eq!(answer.header("content-type"), Some("text/html"));
    let mut action = GetObject::new(&bucket, Some(&reader), "dated");
    action.query_mut().insert("versionId", "1");
    let more = READER.presign(action, now(), 60);
    let answer = send_presigned(&proxy, "GET", &more, b"");
    assert_code(&answer, 501, "NotImplemented", "more");
    let mut action = GetObject::new(&bucket, Some(&reader), "dated");
    action.query_mut().insert("x-id", "GetObject");
    action.query_mut().insert("x-amz-checksum-mode", "ENABLED");
    action.query_mut().insert("X-Amz-Content-Sha256", UNSIGNED);
    let hints = READER.presign(action, now(), 60);
    assert_eq!(send_presigned(&proxy, "GET", &hints, b"").body, b"body");
    let both = proxy.request("GET", &get(now(), 60), &[], b"");
    assert_code(&both, 400, "InvalidArgument", "a token and a signature");
}

#[test]
fn refusals_come_before_the_body_and_tell_no_keys_apart() {
    let proxy = start();
    proxy.put("guarded", &pattern(5, 1000));
    assert_eq!(proxy.get("guarded").status, 200);
    let stored = proxy.stored_file_count();
    let wrong = Pair {
        secret: "writer-secret-0123456789abcdeX",
        ..WRITER
    };
    let unknown = Pair {
        access: "FBNOBODY",
        ..WRITER
    };
    let at = |pair: Pair, method: &str, target: &str, at: i64| {
        let payload = UNSIGNED;
        pair.sign(&Signing {
            method,
            target,
            headers: &[],
            payload,
            at,
        })
    };
    for (what, pair, shift, code) in [
        ("wrong secret", wrong, 0, "SignatureDoesNotMatch"),
        ("unknown access key", unknown, 0, "InvalidAccessKeyId"),
        ("another volume's key", STRANGER, 0, "AccessDenied"),
        ("too old", WRITER, -960, "RequestTimeTooSkewed"),
        ("from the future", WRITER, 960, "RequestTimeTooSkewed"),
    ] {
        for key in ["guarded", "missing"] {
            for method in ["GET", "HEAD", "PUT", "DELETE"] {
                let target = format!("/{VOLUME}/{key}");
                let mut headers = at(pair, method, &target, now() + shift);
                // No byte of the body is sent: the answer must come all the same.
                if method == "PUT" {
                    headers.push(("content-length".to_owned(), "100000000".to_owned()));
                }
                let answer = send(&proxy, method, &target, &headers, b"");
                let expected = if method == "HEAD" { "" } else { code };
                let found = verdict(&answer, method);
                assert_eq!(
                    (found.0, found.1.as_str()),
                    (403, expected),
                    "{what}: {method} {key}"
                );
            }
        }
    }
    let replayed = WRITER.headers("GET", &format!("/{VOLUME}/guarded"), b"");
    for (method, target) in [
        ("GET", format!("/{VOLUME}/other")),
        ("GET", format!("/{OTHER_VOLUME}/guarded")),
        ("GET", "/nothing/guarded".to_owned()),
        ("DELETE", format!("/{VOLUME}/guarded")),
    ] {
        let answer = send(&proxy, method, &target, &replayed, b"");
        assert_code(&answer, 403, "SignatureDoesNotMatch", &target);
    }
    let answer = WRITER.send(&proxy, "GET", "/nothing/guarded", b"");
    assert_code(
        &answer,
        404,
        "NoSuchBucket",
        "a known key may learn of volumes",
    );
    for path in ["metrics", "status"] {
        let answer = WRITER.send(&proxy, "GET", &format!("/-/{path}"), b"");
        assert_code(&answer, 403, "AccessDenied", path);
    }
    assert_eq!(
        proxy.operator("GET", "/-/status").status,
        200,
        "{OPERATOR} still opens it"
    );
    assert_eq!(proxy.get("guarded").status, 200);
    assert_eq!(
        proxy.stored_file_count(),
        stored,
        "something reached the store"
    );
}

#[test]
fn the_body_must_be_the_one_that_was_signed() {
    let proxy = start();
    let target = format!("/{VOLUME}/signed");
    let headers = WRITER.headers("PUT", &target, b"this body");
    let answer = send(&proxy, "PUT", &target, &headers, b"that body");
    assert_code(&answer, 400, "XAmzContentSHA256Mismatch", "another body");
    let mut headers = WRITER.headers("PUT", &target, b"this body");
    headers.push(("x-amz-meta-late".to_owned(), "1".to_owned()));
    let answer = send(&proxy, "PUT", &target, &headers, b"this body");
    assert_code(&answer, 403, "AccessDenied", "an unsigned x-amz- header");
    assert_eq!(proxy.get("signed").status, 404);
    assert_eq!(proxy.stored_file_count(), 0);
}

/// A signed PUT as SDKs send it: an envelope with a checksum behind it.
fn trailer_headers(target: &str, decoded: usize) -> Vec<(String, String)> {
    WRITER.sign(&Signing {
        method: "PUT",
        target,
        headers: &[
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", &decoded.to_string()),
            ("x-amz-trailer", "x-amz-checksum-crc32"),
        ],
        payload: TRAILER,
        at: now(),
    })
}

fn chunked(body: &[u8], chunk_bytes: usize, trailer: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(chunk_bytes) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
    bytes
}

fn crc32_line(body: &[u8]) -> String {
    use base64::Engine;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, body) as u32;
    let text = base64::engine::general_purpose::STANDARD.encode(crc.to_be_bytes());
    format!("x-amz-checksum-crc32:{text}\r\n")
}

#[test]
fn envelopes_come_with_a_length_or_in_chunks() {
    let proxy = start();
    // Below and above a block; in one connection, so that none leaves a byte behind.
    let mut client = proxy.client();
    for (number, length) in [0, 5, 100_000, 2_500_000].into_iter().enumerate() {
        let body = pattern(number as u64, length);
        let envelope = chunked(&body, 70_001, &crc32_line(&body));
        for outer in [None, Some(1), Some(333), Some(1 << 20)] {
            if outer == Some(1) && length > 5 {
                continue;
            }
            let target = format!("/{VOLUME}/envelope-{number}-{}", outer.unwrap_or_default());
            let mut headers = trailer_headers(&target, length);
            let sent = match outer {
                None => envelope.clone(),
                Some(chunk_bytes) => {
                    headers.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
                    headers.push(("content-length".to_owned(), String::new()));
                    chunked(&envelope, chunk_bytes, "x-ignored: yes\r\n")
                }
            };
            let answer = client.request("PUT", &target, &borrowed(&headers), &sent);
            assert_eq!(
                answer.status,
                200,
                "{length} in {outer:?}: {}",
                answer.text()
            );
            let read = client.request("GET", &target, &[], b"");
            assert_same_bytes(&read.body, &body, "enveloped PUT");
            assert_eq!(read.header("content-encoding"), None);
        }
    }
}

#[test]
fn broken_envelopes_store_nothing() {
    let proxy = start();
    let body = pattern(8, 1000);
    let (good, line) = (chunked(&body, 400, &crc32_line(&body)), crc32_line(&body));
    let outer = |envelope: &[u8]| chunked(envelope, 100, "");
    let mut flipped = body.clone();
    flipped[500] ^= 1;
    let mut odd_size = outer(&good);
    odd_size[..2].copy_from_slice(b"zz");
    let more = [good.as_slice(), b"more"].concat();
    for (what, sent, status, code) in [
        (
            "flipped bit",
            outer(&chunked(&flipped, 400, &line)),
            400,
            "BadDigest",
        ),
        (
            "no trailer",
            outer(&chunked(&body, 400, "")),
            400,
            "MalformedTrailerError",
        ),
        (
            "too short",
            outer(&chunked(&body[1..], 400, &line)),
            400,
            "IncompleteBody",
        ),
        (
            "too long",
            outer(&chunked(&[&body[..], b"x"].concat(), 400, &line)),
            400,
            "IncompleteBody",
        ),
        (
            "cut off",
            outer(&good[..good.len() - 2]),
            400,
            "IncompleteBody",
        ),
        (
            "bytes after the envelope",
            outer(&more),
            400,
            "IncompleteBody",
        ),
        ("an odd chunk size", odd_size, 400, "InvalidRequest"),
    ] {
        let target = format!("/{VOLUME}/broken");
        let mut headers = trailer_headers(&target, body.len());
        headers.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
        headers.push(("content-length".to_owned(), String::new()));
        let mut client = proxy.client();
        let answer = client.request("PUT", &target, &borrowed(&headers), &sent);
        assert_code(&answer, status, code, what);
        assert_eq!(proxy.get("broken").status, 404, "{what}");
    }
    assert_eq!(proxy.stored_file_count(), 0);
    let answer = proxy.request(
        "PUT",
        &format!("/{VOLUME}/broken"),
        &[
            ("Authorization", &format!("Bearer {READ_WRITE}")),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", ""),
        ],
        &chunked(b"hello", 5, ""),
    );
    assert_code(
        &answer,
        411,
        "MissingContentLength",
        "chunks without an envelope",
    );
    proxy.assert_serves();
}
