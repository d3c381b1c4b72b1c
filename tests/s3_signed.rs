//! Bodies whose chunks are signed, and what of them must not be stored.
//!
//! Every body comes below and above a block, with its length and in HTTP's own chunks: what is larger
//! than a block is on its way to the store before its end was seen.

mod common;

use common::signing::{
    Pair, READER, SIGNED, SIGNED_TRAILER, STRANGER, Sealing, Signing, WRITER, assert_code,
    borrowed, now, start, start_with,
};
use common::{Proxy, READ_WRITE, Setup, VOLUME, assert_same_bytes, pattern};

const CRC32: &str = "x-amz-checksum-crc32";

/// The CRC32 of a body as headers have it.
fn crc32(body: &[u8]) -> String {
    use base64::Engine;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, body) as u32;
    base64::engine::general_purpose::STANDARD.encode(crc.to_be_bytes())
}

/// Bytes in HTTP's own chunks.
fn chunked(bytes: &[u8], chunk_bytes: usize) -> Vec<u8> {
    let mut sent = Vec::new();
    for chunk in bytes.chunks(chunk_bytes) {
        sent.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        sent.extend_from_slice(chunk);
        sent.extend_from_slice(b"\r\n");
    }
    sent.extend_from_slice(b"0\r\n\r\n");
    sent
}

fn writeback() -> Setup {
    Setup {
        volume_lines: "ttl = \"600s\"\nwriteback = true\n".to_string(),
        ..Setup::default()
    }
}

#[test]
fn signed_chunks_are_taken() {
    for setup in [Setup::default(), writeback()] {
        let proxy = start_with(setup);
        let mut client = proxy.client();
        for (number, length) in [0, 1, 70_000, 2_500_000].into_iter().enumerate() {
            let body = pattern(number as u64, length);
            let crc = crc32(&body);
            for (trailer, outer) in [
                (None, None),
                (Some((CRC32, crc.as_str())), None),
                (None, Some(1000)),
                (Some((CRC32, crc.as_str())), Some(65_536)),
            ] {
                let target = format!("/{VOLUME}/{number}-{}-{outer:?}", trailer.is_some());
                let (mut headers, sealed) = WRITER.seal(&Sealing {
                    target: &target,
                    headers: &[("x-amz-meta-colour", "green")],
                    content: &body,
                    chunk_bytes: 65_536,
                    trailer,
                });
                let sent = match outer {
                    None => sealed,
                    Some(chunk_bytes) => {
                        headers.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
                        headers.push(("content-length".to_owned(), String::new()));
                        chunked(&sealed, chunk_bytes)
                    }
                };
                let written = client.request("PUT", &target, &borrowed(&headers), &sent);
                assert_eq!(written.status, 200, "{target}: {}", written.text());
                if trailer.is_some() {
                    assert_eq!(written.header(CRC32), Some(crc.as_str()));
                }
                let read = client.request("GET", &target, &[], b"");
                assert_same_bytes(&read.body, &body, &target);
                assert_eq!(read.header("content-encoding"), None);
                assert_eq!(read.header("x-amz-meta-colour"), Some("green"));
            }
        }
    }
}

#[test]
fn chunks_of_any_size_are_taken_in_any_pieces() {
    let proxy = start();
    let body = pattern(3, 300);
    for chunk_bytes in [1, 7, 300] {
        let target = format!("/{VOLUME}/small-{chunk_bytes}");
        let (headers, sealed) = WRITER.seal(&Sealing {
            target: &target,
            headers: &[],
            content: &body,
            chunk_bytes,
            trailer: Some((CRC32, &crc32(&body))),
        });
        let mut client = proxy.client();
        let length = sealed.len().to_string();
        let mut headers = borrowed(&headers);
        headers.push(("Content-Length", &length));
        client.send_request("PUT", &target, &headers, b"");
        for piece in sealed.chunks(97) {
            assert!(client.send(piece));
        }
        assert_eq!(client.read_answer("PUT").status, 200);
        assert_eq!(client.request("GET", &target, &[], b"").body, body);
    }
}

/// What is done to a good body.
type Change = fn(Vec<u8>) -> Vec<u8>;

/// Where `text` begins for the `count`th time.
fn find(body: &[u8], text: &[u8], count: usize) -> usize {
    let mut places = body.windows(text.len()).enumerate();
    let mut found = places.by_ref().filter(|(_, window)| *window == text);
    found.nth(count).expect("there").0
}

fn flip(mut body: Vec<u8>, at: usize) -> Vec<u8> {
    body[at] ^= 1;
    body
}

/// Changes of a body in chunks of 64 KiB with a trailer, and what each is told.
const CHANGES: [(&str, Change, u16, &str); 14] = [
    (
        "a byte of the middle",
        |body| {
            let at = body.len() / 2;
            flip(body, at)
        },
        403,
        "SignatureDoesNotMatch",
    ),
    (
        "a signature in the middle",
        |body| {
            let at = find(&body, b"chunk-signature=", 1) + 20;
            flip(body, at)
        },
        403,
        "SignatureDoesNotMatch",
    ),
    (
        "no signature",
        |body| {
            let at = find(&body, b";chunk-signature=", 1);
            [&body[..at], &body[at + 81..]].concat()
        },
        403,
        "SignatureDoesNotMatch",
    ),
    (
        "another extension",
        |mut body| {
            let at = find(&body, b"chunk-signature=", 1);
            body[at..at + 5].copy_from_slice(b"CHUNK");
            body
        },
        403,
        "SignatureDoesNotMatch",
    ),
    (
        "the signature of the last chunk",
        |body| {
            let at = find(&body, b"\r\n0;chunk-signature=", 0) + 30;
            flip(body, at)
        },
        403,
        "SignatureDoesNotMatch",
    ),
    (
        "the trailer's value",
        |body| {
            let at = find(&body, b"x-amz-checksum-crc32:", 0) + 21;
            flip(body, at)
        },
        403,
        "SignatureDoesNotMatch",
    ),
    (
        "the trailer's name",
        |mut body| {
            let at = find(&body, b"x-amz-checksum-crc32:", 0);
            body[at..at + 20].copy_from_slice(b"x-amz-checksum-sha25");
            body
        },
        403,
        "SignatureDoesNotMatch",
    ),
    (
        "the trailer's signature",
        |body| {
            let at = find(&body, b"x-amz-trailer-signature:", 0) + 30;
            flip(body, at)
        },
        403,
        "SignatureDoesNotMatch",
    ),
    (
        "no signature of the trailer",
        |body| {
            let at = find(&body, b"x-amz-trailer-signature:", 0);
            [&body[..at], b"\r\n"].concat()
        },
        403,
        "SignatureDoesNotMatch",
    ),
    (
        "no last chunk",
        |body| {
            let at = find(&body, b"\r\n0;chunk-signature=", 0);
            body[..at + 2].to_vec()
        },
        400,
        "IncompleteBody",
    ),
    (
        "bytes after the end",
        |body| [&body[..], b"more"].concat(),
        400,
        "IncompleteBody",
    ),
    (
        "a size that is none",
        |mut body| {
            body[0] = b'x';
            body
        },
        400,
        "InvalidChunkSizeError",
    ),
    (
        "a size beyond all",
        |body| [b"fffffffffffffff", &body[..]].concat(),
        400,
        "InvalidChunkSizeError",
    ),
    (
        "a size without an end",
        |body| [b"1;".to_vec(), vec![b'a'; 100_000], body].concat(),
        400,
        "InvalidChunkSizeError",
    ),
];

#[test]
fn what_does_not_hold_is_never_stored() {
    for setup in [Setup::default(), writeback()] {
        let proxy = start_with(setup);
        for length in [200_000, 2_500_000] {
            let body = pattern(5, length);
            for (what, change, status, code) in CHANGES {
                let target = format!("/{VOLUME}/broken");
                let (headers, sealed) = WRITER.seal(&Sealing {
                    target: &target,
                    headers: &[],
                    content: &body,
                    chunk_bytes: 65_536,
                    trailer: Some((CRC32, &crc32(&body))),
                });
                let mut client = proxy.client();
                let answer = client.request("PUT", &target, &borrowed(&headers), &change(sealed));
                assert_code(&answer, status, code, &format!("{what} of {length}"));
                assert_eq!(proxy.get("broken").status, 404, "{what} of {length}");
            }
        }
        assert_eq!(proxy.stored_file_count(), 0);
        proxy.assert_serves();
    }
}

#[test]
fn a_failed_overwrite_leaves_what_was_there() {
    for setup in [Setup::default(), writeback()] {
        let proxy = start_with(setup);
        let old = pattern(1, 5000);
        proxy.put("kept", &old);
        for length in [5000, 2_500_000] {
            let body = pattern(6, length);
            let target = format!("/{VOLUME}/kept");
            let (headers, sealed) = WRITER.seal(&Sealing {
                target: &target,
                headers: &[],
                content: &body,
                chunk_bytes: 8192,
                trailer: Some((CRC32, "AAAAAA==")),
            });
            let answer = proxy.request("PUT", &target, &borrowed(&headers), &sealed);
            assert_code(&answer, 400, "BadDigest", "a wrong checksum, well signed");
            assert_same_bytes(&proxy.get("kept").body, &old, "the old content");
        }
    }
}

#[test]
fn a_connection_lives_on_after_a_short_bad_body() {
    let proxy = start();
    let (mut client, body) = (proxy.client(), pattern(7, 3000));
    let target = format!("/{VOLUME}/again");
    let good = |client: &mut common::Client| {
        let (headers, sealed) = WRITER.seal(&Sealing {
            target: &target,
            headers: &[],
            content: &body,
            chunk_bytes: 1000,
            trailer: None,
        });
        client.request("PUT", &target, &borrowed(&headers), &sealed)
    };
    for (what, change, status, code) in &CHANGES[..2] {
        let (headers, sealed) = WRITER.seal(&Sealing {
            target: &target,
            headers: &[],
            content: &body,
            chunk_bytes: 1000,
            trailer: None,
        });
        let answer = client.request("PUT", &target, &borrowed(&headers), &change(sealed));
        assert_code(&answer, *status, code, what);
        assert_eq!(answer.header("connection"), None, "{what}");
        assert_eq!(good(&mut client).status, 200);
    }
    assert_eq!(client.request("GET", &target, &[], b"").body, body);
}

#[test]
fn a_body_that_is_cut_off_is_told_so() {
    let proxy = start();
    let body = pattern(8, 100_000);
    let target = format!("/{VOLUME}/cut");
    let (headers, sealed) = WRITER.seal(&Sealing {
        target: &target,
        headers: &[],
        content: &body,
        chunk_bytes: 65_536,
        trailer: None,
    });
    for end in [0, 10, 50_000, 65_536 + 100, sealed.len() - 1] {
        let mut client = proxy.client();
        let length = sealed.len().to_string();
        let mut headers = borrowed(&headers);
        headers.push(("Content-Length", &length));
        client.send_request("PUT", &target, &headers, &sealed[..end]);
        client.half_close();
        let answer = client.read_answer("PUT");
        assert_code(&answer, 400, "IncompleteBody", &format!("cut off at {end}"));
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(proxy.get("cut").status, 404, "cut off at {end}");
    }
    assert_eq!(proxy.stored_file_count(), 0);
}

#[test]
fn bodies_are_taken_for_the_request_that_they_were_signed_with() {
    let proxy = start();
    let body = pattern(9, 70_000);
    let target = format!("/{VOLUME}/signed");
    let seal = |pair: Pair, target: &str| {
        pair.seal(&Sealing {
            target,
            headers: &[],
            content: &body,
            chunk_bytes: 65_536,
            trailer: None,
        })
    };
    let (headers, _) = seal(WRITER, &target);
    let (other_headers, other_sealed) = seal(WRITER, &format!("/{VOLUME}/elsewhere"));
    let answer = proxy.request("PUT", &target, &borrowed(&headers), &other_sealed);
    assert_code(
        &answer,
        403,
        "SignatureDoesNotMatch",
        "another request's body",
    );
    let answer = proxy.request("PUT", &target, &borrowed(&other_headers), &other_sealed);
    assert_code(&answer, 403, "SignatureDoesNotMatch", "another key");
    let (headers, sealed) = seal(STRANGER, &target);
    let answer = proxy.request("PUT", &target, &borrowed(&headers), &sealed);
    assert_code(&answer, 403, "AccessDenied", "another volume's key");
    let (headers, sealed) = seal(READER, &target);
    let answer = proxy.request("PUT", &target, &borrowed(&headers), &sealed);
    assert_code(&answer, 403, "AccessDenied", "a reader");
    assert_eq!(proxy.stored_file_count(), 0);
}

/// A PUT with a head of its own; `body` is sent as it is.
fn put_as(proxy: &Proxy, payload: &str, headers: &[(&str, &str)], body: &[u8]) -> common::Answer {
    let target = format!("/{VOLUME}/odd");
    let headers = WRITER.sign(&Signing {
        method: "PUT",
        target: &target,
        headers,
        payload,
        at: now(),
    });
    proxy.request("PUT", &target, &borrowed(&headers), body)
}

#[test]
fn heads_that_contradict_their_body_are_refused() {
    let proxy = start();
    let length = ("x-amz-decoded-content-length", "5");
    let trailer = ("x-amz-trailer", CRC32);
    let unsigned = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
    let ecdsa = "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD";
    let body = b"5\r\nhello\r\n0\r\n\r\n";
    for (payload, headers, status, code) in [
        (SIGNED, vec![], 411, "MissingContentLength"),
        (unsigned, vec![], 411, "MissingContentLength"),
        (SIGNED, vec![length, trailer], 400, "InvalidRequest"),
        (SIGNED_TRAILER, vec![length], 400, "InvalidRequest"),
        ("UNSIGNED-PAYLOAD", vec![trailer], 400, "InvalidRequest"),
        (SIGNED, vec![length], 403, "SignatureDoesNotMatch"),
        (
            SIGNED_TRAILER,
            vec![length, trailer],
            403,
            "SignatureDoesNotMatch",
        ),
        (
            unsigned,
            vec![length, ("x-amz-trailer", "x-amz-meta-a")],
            400,
            "InvalidRequest",
        ),
        (
            unsigned,
            vec![length, trailer],
            400,
            "MalformedTrailerError",
        ),
        (ecdsa, vec![length], 501, "NotImplemented"),
        ("STREAMING-SOMETHING", vec![length], 400, "InvalidArgument"),
    ] {
        let answer = put_as(&proxy, payload, &headers, body);
        assert_code(&answer, status, code, &format!("{payload} {headers:?}"));
    }
    for odd in ["", "-5", "+5", "0x5", "5,5", "18446744073709551616"] {
        let headers = [("x-amz-decoded-content-length", odd)];
        let answer = put_as(&proxy, unsigned, &headers, body);
        assert!(
            [411, 403].contains(&answer.status),
            "{odd}: {}",
            answer.text()
        );
    }
    let answer = put_as(
        &proxy,
        unsigned,
        &[("x-amz-decoded-content-length", "6000000000")],
        b"",
    );
    assert_code(&answer, 413, "EntityTooLarge", "an object beyond all");
    // Who signs nothing has no key that chunks could be signed with.
    for payload in [SIGNED, SIGNED_TRAILER] {
        let headers = [
            ("Authorization", &*format!("Bearer {READ_WRITE}")),
            ("x-amz-content-sha256", payload),
            length,
        ];
        let answer = proxy.request("PUT", &format!("/{VOLUME}/odd"), &headers, body);
        assert_code(&answer, 403, "AccessDenied", payload);
    }
    assert_eq!(proxy.get("odd").status, 404);
    assert_eq!(proxy.stored_file_count(), 0);
}
