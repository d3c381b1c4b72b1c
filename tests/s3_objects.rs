//! What S3's clients are told of objects beside their bytes: checksums that were verified, headers that
//! a reader wants changed, parts of the version that he knows.

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::signing::{
    READER, Sealing, Signing, TRAILER, UNSIGNED, WRITER, assert_code, borrowed, now, sha256, start,
    start_with,
};
use common::stores::S3Server;
use common::{Answer, Proxy, Setup, VOLUME, assert_same_bytes, pattern, wait_until};
use crc_fast::CrcAlgorithm;
use md5::{Digest as _, Md5};

/// The header of a checksum, and the checksum of a body as it has it.
type Checksum = (&'static str, fn(&[u8]) -> String);

fn crc(algorithm: CrcAlgorithm, width: usize, body: &[u8]) -> String {
    let bytes = crc_fast::checksum(algorithm, body).to_be_bytes();
    STANDARD.encode(&bytes[bytes.len() - width..])
}

const CHECKSUMS: [Checksum; 5] = [
    ("x-amz-checksum-crc32", |body| {
        crc(CrcAlgorithm::Crc32IsoHdlc, 4, body)
    }),
    ("x-amz-checksum-crc32c", |body| {
        crc(CrcAlgorithm::Crc32Iscsi, 4, body)
    }),
    ("x-amz-checksum-crc64nvme", |body| {
        crc(CrcAlgorithm::Crc64Nvme, 8, body)
    }),
    ("x-amz-checksum-sha1", |body| {
        let algorithm = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
        STANDARD.encode(aws_lc_rs::digest::digest(algorithm, body))
    }),
    ("x-amz-checksum-sha256", |body| {
        STANDARD.encode(hex::decode(sha256(body)).expect("hexadecimal"))
    }),
];

const TYPE: &str = "x-amz-checksum-type";

/// All checksums that an answer tells.
fn told(answer: &Answer) -> Vec<(&str, &str)> {
    let headers = answer.headers.iter();
    let headers = headers.map(|(name, value)| (name.as_str(), value.as_str()));
    headers
        .filter(|(name, _)| name.starts_with("x-amz-checksum-"))
        .collect()
}

fn read(proxy: &Proxy, method: &str, key: &str, headers: &[(&str, &str)]) -> Answer {
    let target = format!("/{VOLUME}/{key}");
    let signed = READER.sign(&Signing {
        method,
        target: &target,
        headers,
        payload: UNSIGNED,
        at: now(),
    });
    proxy.request(method, &target, &borrowed(&signed), b"")
}

/// Reads of an object are told exactly `expected`, and only by who asks, of all of it.
fn assert_told(proxy: &Proxy, key: &str, expected: &[(&str, &str)], what: &str) {
    let mode = ("x-amz-checksum-mode", "ENABLED");
    for method in ["GET", "HEAD"] {
        let answer = read(proxy, method, key, &[mode]);
        assert_eq!(answer.status, 200, "{what}: {method} {key}");
        assert_eq!(told(&answer), expected, "{what}: {method} {key}");
        let answer = read(proxy, method, key, &[]);
        assert_eq!(told(&answer), [], "{what}: {method} {key} without the mode");
        let answer = read(proxy, method, key, &[mode, ("range", "bytes=0-0")]);
        assert_eq!(answer.status, 206);
        assert_eq!(told(&answer), [], "{what}: a part of {key}");
        let tag = read(proxy, "HEAD", key, &[])
            .expect_header("etag")
            .to_owned();
        let answer = read(proxy, method, key, &[mode, ("if-none-match", &tag)]);
        assert_eq!((answer.status, told(&answer)), (304, vec![]));
    }
}

/// A PUT with one header more, signed with the hash of its body.
fn put(proxy: &Proxy, key: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let target = format!("/{VOLUME}/{key}");
    let signed = WRITER.sign(&Signing {
        method: "PUT",
        target: &target,
        headers,
        payload: &sha256(body),
        at: now(),
    });
    proxy.request("PUT", &target, &borrowed(&signed), body)
}

/// A PUT in an envelope whose trailer has the checksum; signed in all of its parts, or not.
fn put_trailing(
    proxy: &Proxy,
    key: &str,
    trailer: (&str, &str),
    body: &[u8],
    is_signed: bool,
) -> Answer {
    let target = format!("/{VOLUME}/{key}");
    if is_signed {
        let (headers, sealed) = WRITER.seal(&Sealing {
            target: &target,
            headers: &[],
            content: body,
            chunk_bytes: 65_536,
            trailer: Some(trailer),
        });
        return proxy.request("PUT", &target, &borrowed(&headers), &sealed);
    }
    let length = body.len().to_string();
    let headers = WRITER.sign(&Signing {
        method: "PUT",
        target: &target,
        headers: &[
            ("x-amz-decoded-content-length", &length),
            ("x-amz-trailer", trailer.0),
        ],
        payload: TRAILER,
        at: now(),
    });
    let mut sent = Vec::new();
    for chunk in body.chunks(100_000) {
        sent.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        sent.extend_from_slice(chunk);
        sent.extend_from_slice(b"\r\n");
    }
    sent.extend_from_slice(format!("0\r\n{}:{}\r\n\r\n", trailer.0, trailer.1).as_bytes());
    proxy.request("PUT", &target, &borrowed(&headers), &sent)
}

fn writeback() -> Setup {
    Setup {
        volume_lines: "ttl = \"600s\"\nwriteback = true\n".to_string(),
        ..Setup::default()
    }
}

/// Removes every cached block; the process must not run.
fn empty_cache(proxy: &Proxy) {
    for folder in [proxy.cache_folder(), proxy.ledger_folder()] {
        for entry in std::fs::read_dir(&folder).expect("folder") {
            let path = entry.expect("entry").path();
            match path.is_dir() {
                true => std::fs::remove_dir_all(path).expect("removed"),
                false => std::fs::remove_file(path).expect("removed"),
            }
        }
    }
}

#[test]
fn a_checksum_belongs_to_its_object() {
    for setup in [Setup::default(), writeback()] {
        let writes_back = setup.volume_lines.contains("writeback = true");
        let mut proxy = start_with(setup);
        let mut written = Vec::new();
        // Nothing, less than a block, and several.
        for length in [0, 100_000, 2_500_000] {
            let body = pattern(length as u64, length);
            for (name, checksum) in CHECKSUMS {
                let value = checksum(&body);
                for way in ["header", "trailer", "signed-trailer"] {
                    let key = format!("{name}/{length}-{way}");
                    let answer = match way {
                        "header" => put(&proxy, &key, &[(name, &value)], &body),
                        _ => put_trailing(&proxy, &key, (name, &value), &body, way != "trailer"),
                    };
                    assert_eq!(answer.status, 200, "{key}: {}", answer.text());
                    let expected = [(name, value.as_str()), (TYPE, "FULL_OBJECT")];
                    assert_eq!(told(&answer), expected, "{key}");
                    if length > 0 {
                        assert_told(&proxy, &key, &expected, "at once");
                    }
                    written.push((key, name, value.clone(), length));
                }
            }
        }
        proxy.kill();
        proxy.start();
        for (key, name, value, length) in &written {
            if *length > 0 {
                let expected = [(*name, value.as_str()), (TYPE, "FULL_OBJECT")];
                assert_told(&proxy, key, &expected, "after a restart");
            }
        }
        if writes_back {
            proxy.operator("POST", "/-/drain");
            wait_until("all is uploaded", || {
                proxy
                    .operator("GET", "/-/dirty")
                    .text()
                    .contains("\"blocks\":[]")
                    || proxy.stored_file_count() >= written.len()
            });
        }
        proxy.kill();
        empty_cache(&proxy);
        proxy.start();
        for (key, name, value, length) in &written {
            // What came behind the bytes of a stream was known too late for the store.
            let was_known = key.ends_with("header") || *length < 1 << 20;
            if *length > 0 && was_known {
                let expected = [(*name, value.as_str()), (TYPE, "FULL_OBJECT")];
                assert_told(&proxy, key, &expected, "after a miss");
            }
        }
    }
}

#[test]
fn who_signs_and_gives_no_checksum_is_given_one() {
    let proxy = start();
    for length in [5, 2_500_000, 10_000_000] {
        let body = pattern(3, length);
        let key = format!("given-{length}");
        let answer = put(&proxy, &key, &[], &body);
        let value = crc(CrcAlgorithm::Crc64Nvme, 8, &body);
        let name = "x-amz-checksum-crc64nvme";
        let expected = [(name, value.as_str()), (TYPE, "FULL_OBJECT")];
        assert_eq!(told(&answer), expected, "{length}");
        if length < 9_000_000 {
            assert_told(&proxy, &key, &expected, "given");
        }
        // A bearer is no client of S3's.
        assert_eq!(told(&proxy.put(&key, &body)), []);
        assert_told(&proxy, &key, &[], "replaced");
    }
}

/// An ETag that is no MD5, and says so.
fn is_fast(etag: &str) -> bool {
    etag.len() == 36 && etag.ends_with("-1\"")
}

#[test]
fn an_etag_is_the_md5_for_who_signs_and_stays() {
    let settings = [
        ("", true, false),
        ("etag = \"md5\"\n", true, true),
        ("etag = \"fast\"\n", false, false),
    ];
    for (lines, for_signed, for_token) in settings {
        let mut setup = writeback();
        setup.volume_lines.push_str(lines);
        let mut proxy = start_with(setup);
        for length in [0, 5, 300_000] {
            let body = pattern(9, length);
            let md5 = format!("\"{}\"", hex::encode(Md5::digest(&body)));
            for (is_signed, is_md5) in [(true, for_signed), (false, for_token)] {
                let key = format!("{length}-{is_signed}");
                let answer = match is_signed {
                    true => put(&proxy, &key, &[], &body),
                    false => proxy.put(&key, &body),
                };
                assert_eq!(answer.header("x-forebay-write"), Some("back"));
                let etag = answer.header("etag").expect("an ETag").to_owned();
                assert_eq!(
                    (etag == md5, is_fast(&etag)),
                    (is_md5, !is_md5),
                    "{lines} {key} {etag}"
                );
                let head = read(&proxy, "HEAD", &key, &[]);
                assert_eq!(head.header("etag"), Some(etag.as_str()));
            }
        }
        let tag = |proxy: &Proxy| {
            let head = read(proxy, "HEAD", "300000-true", &[]);
            assert_eq!(head.status, 200, "{lines}: {head:?}");
            head.header("etag").map(str::to_owned)
        };
        let before = tag(&proxy);
        proxy.kill();
        proxy.start();
        assert_eq!(tag(&proxy), before, "after a kill");
    }
}

#[test]
fn a_wrong_checksum_stores_nothing() {
    for setup in [Setup::default(), writeback()] {
        let proxy = start_with(setup);
        for length in [1000, 2_500_000] {
            let body = pattern(4, length);
            for (name, checksum) in CHECKSUMS {
                let wrong = checksum(&body[1..]);
                let answer = put(&proxy, "wrong", &[(name, &wrong)], &body);
                assert_code(&answer, 400, "BadDigest", name);
                for is_signed in [false, true] {
                    let answer = put_trailing(&proxy, "wrong", (name, &wrong), &body, is_signed);
                    assert_code(&answer, 400, "BadDigest", name);
                    let answer = put_trailing(&proxy, "wrong", (name, "AA=="), &body, is_signed);
                    assert_code(&answer, 400, "InvalidRequest", name);
                }
                let answer = put(&proxy, "wrong", &[(name, "AA==")], &body);
                assert_code(&answer, 400, "InvalidRequest", name);
                assert_eq!(proxy.get("wrong").status, 404, "{name} of {length}");
            }
        }
        let body = b"123456789";
        for (headers, status, code) in [
            (
                vec![
                    ("x-amz-checksum-crc32", "y/Q5Jg=="),
                    ("x-amz-checksum-crc32c", "4waSgw=="),
                ],
                400,
                "InvalidRequest",
            ),
            (
                vec![
                    ("x-amz-checksum-crc32", "y/Q5Jg=="),
                    ("x-amz-sdk-checksum-algorithm", "SHA256"),
                ],
                400,
                "InvalidRequest",
            ),
            (
                vec![("x-amz-sdk-checksum-algorithm", "CRC32")],
                400,
                "InvalidRequest",
            ),
            (vec![("x-amz-checksum-md6", "AAAA")], 501, "NotImplemented"),
            (vec![("content-md5", "AAAA")], 400, "InvalidDigest"),
        ] {
            let answer = put(&proxy, "wrong", &headers, body);
            assert_code(&answer, status, code, &format!("{headers:?}"));
        }
        assert_eq!(proxy.get("wrong").status, 404);
        assert_eq!(proxy.stored_file_count(), 0);
    }
}

#[test]
fn a_reader_may_have_headers_changed() {
    let proxy = start();
    let headers = [
        ("content-type", "text/plain"),
        ("cache-control", "no-cache"),
    ];
    assert_eq!(put(&proxy, "o", &headers, b"body").status, 200);
    // In canonical order, for the signer takes the query as it is.
    let query = "response-cache-control=max-age%3D1\
        &response-content-disposition=attachment%3B%20filename%3D%22%C3%BC%22\
        &response-content-encoding=x&response-content-language=de\
        &response-content-type=text%2Fhtml\
        &response-expires=Thu%2C%2001%20Jan%201970%2000%3A00%3A00%20GMT";
    let expected = [
        ("cache-control", "max-age=1"),
        ("content-disposition", "attachment; filename=\"ü\""),
        ("content-encoding", "x"),
        ("content-language", "de"),
        ("content-type", "text/html"),
        ("expires", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ];
    for method in ["GET", "HEAD"] {
        for range in [&[][..], &[("range", "bytes=0-1")]] {
            let answer = read(&proxy, method, &format!("o?{query}"), range);
            assert!([200, 206].contains(&answer.status), "{}", answer.text());
            for (name, value) in expected {
                assert_eq!(answer.header(name), Some(value), "{method}");
            }
        }
        // With a token, which is as good a proof.
        let target = format!("/{VOLUME}/o?response-content-type=a%2Fb");
        let answer = proxy.request(method, &target, &[], b"");
        assert_eq!(answer.header("content-type"), Some("a/b"));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        let plain = read(&proxy, method, "o", &[]);
        assert_eq!(plain.header("content-type"), Some("text/plain"));
        assert_eq!(plain.header("expires"), None);
    }
    for odd in ["a%0D%0Ax-split%3A%201", "", "a%00"] {
        let answer = read(
            &proxy,
            "GET",
            &format!("o?response-content-type={odd}"),
            &[],
        );
        assert_code(&answer, 400, "InvalidArgument", odd);
        assert_eq!(answer.header("x-split"), None);
    }
    let target = format!("/{VOLUME}/o?response-content-type=a%2Fb");
    let answer = proxy.request("PUT", &target, &[], b"x");
    assert_code(&answer, 501, "NotImplemented", "a PUT");
}

#[test]
fn strangers_may_not_have_headers_changed() {
    let setup = Setup {
        volume_lines: "writeback = false\nanonymous = \"read\"\n".to_string(),
        ..Setup::default()
    };
    let proxy = start_with(setup);
    proxy.put("o", b"body");
    let target = format!("/{VOLUME}/o");
    let nobody = [("Authorization", "")];
    assert_eq!(proxy.request("GET", &target, &nobody, b"").body, b"body");
    for method in ["GET", "HEAD"] {
        let changed = format!("{target}?response-content-type=text%2Fhtml");
        let answer = proxy.request(method, &changed, &nobody, b"");
        assert_eq!(answer.status, 400);
        assert_eq!(answer.header("content-type"), Some("application/xml"));
    }
}

#[test]
fn a_part_is_given_of_the_version_that_is_known() {
    let proxy = start();
    let (first, second) = (pattern(1, 1_500_000), pattern(2, 1_500_000));
    let tag = put(&proxy, "o", &[], &first)
        .expect_header("etag")
        .to_owned();
    let range = ("range", "bytes=1200000-1200009");
    let part = |if_range: &str| read(&proxy, "GET", "o", &[range, ("if-range", if_range)]);
    let answer = part(&tag);
    assert_eq!(answer.status, 206);
    assert_eq!(answer.body, &first[1_200_000..1_200_010]);
    let date = answer.expect_header("last-modified").to_owned();
    assert_eq!(part(&date).status, 206);
    assert_eq!(put(&proxy, "o", &[], &second).status, 200);
    for stale in [
        tag.as_str(),
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "W/\"x\"",
        "*",
    ] {
        let answer = part(stale);
        assert_eq!(answer.status, 200, "{stale}");
        assert_same_bytes(&answer.body, &second, "all of the new version");
        let head = read(&proxy, "HEAD", "o", &[range, ("if-range", stale)]);
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, Some("1500000"))
        );
    }
}

#[test]
fn presigned_urls_carry_headers_in_their_query() {
    use common::signing::send_presigned;
    use rusty_s3::S3Action;
    let proxy = start();
    let bucket = common::signing::bucket(VOLUME);
    let writer = WRITER.credentials();
    let put = |parameters: &[(&'static str, &str)]| {
        let mut action = rusty_s3::actions::PutObject::new(&bucket, Some(&writer), "hoisted");
        for (name, value) in parameters {
            action.query_mut().insert(*name, value.to_string());
        }
        WRITER.presign(action, now(), 60)
    };
    let crc = ("x-amz-checksum-crc32", "y/Q5Jg==");
    let word = ("x-amz-sdk-checksum-algorithm", "CRC32");
    let colour = ("X-Amz-Meta-Colour", "green");
    let url = put(&[crc, word, colour]);
    let answer = send_presigned(&proxy, "PUT", &url, b"123456789");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(told(&answer), [crc, (TYPE, "FULL_OBJECT")]);
    assert_eq!(
        proxy.get("hoisted").header("x-amz-meta-colour"),
        Some("green")
    );
    let answer = send_presigned(&proxy, "PUT", &url, b"123456780");
    assert_code(&answer, 400, "BadDigest", "another body");
    let forged = url.replace("Colour=green", "Colour=red");
    let answer = send_presigned(&proxy, "PUT", &forged, b"123456789");
    assert_code(&answer, 403, "SignatureDoesNotMatch", "a changed header");
    for (name, value) in [
        ("x-amz-tagging", "a=b"),
        ("x-amz-acl", "public-read"),
        ("versionId", "1"),
    ] {
        let answer = send_presigned(&proxy, "PUT", &put(&[(name, value)]), b"x");
        assert_code(&answer, 501, "NotImplemented", name);
    }
    let copy = put(&[("x-amz-copy-source", "/vol/other")]);
    let answer = send_presigned(&proxy, "PUT", &copy, b"");
    assert_code(&answer, 404, "NoSuchKey", "a copy of nothing");
    assert_eq!(proxy.get("hoisted").body, b"123456789");
    // Without a signature of the query it is no header.
    let answer = proxy.request("PUT", &format!("/{VOLUME}/o?x-amz-acl=private"), &[], b"x");
    assert_code(&answer, 501, "NotImplemented", "a bearer's query");
}

#[test]
fn presigned_deletes_of_many_keys_carry_headers_in_their_query() {
    use common::signing::send_presigned;
    let proxy = start();
    proxy.put("doomed", b"body");
    let body = b"<Delete><Object><Key>doomed</Key></Object></Delete>";
    let checksum = crc(CrcAlgorithm::Crc32IsoHdlc, 4, body);
    let url = rusty_s3::signing::sign(
        &jiff::Timestamp::from_second(now()).expect("a time"),
        rusty_s3::Method::Post,
        common::signing::bucket(VOLUME).base_url().clone(),
        WRITER.access,
        WRITER.secret,
        None,
        "eu-1",
        60,
        [("delete", ""), ("x-amz-checksum-crc32", &checksum)].into_iter(),
        std::iter::empty(),
    );
    let url = format!("{}?{}", url.path(), url.query().expect("a query"));
    let forged = body.map(|byte| byte.to_ascii_uppercase());
    let answer = send_presigned(&proxy, "POST", &url, &forged);
    assert_code(&answer, 400, "BadDigest", "another body");
    assert_eq!(proxy.get("doomed").status, 200);
    let answer = send_presigned(&proxy, "POST", &url, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(proxy.get("doomed").status, 404);
}

#[test]
fn conditions_that_cannot_be_kept_are_refused() {
    for setup in [Setup::default(), writeback()] {
        let proxy = start_with(setup);
        put(&proxy, "o", &[], b"old");
        let date = "Thu, 01 Jan 2099 00:00:00 GMT";
        for (name, value) in [
            ("if-match", "*"),
            ("if-none-match", "\"other\""),
            ("if-modified-since", date),
            ("if-unmodified-since", date),
            ("content-range", "bytes 0-2/3"),
            ("x-amz-server-side-encryption", "aws:kms"),
            ("x-amz-grant-write", "id=1"),
        ] {
            let answer = put(&proxy, "o", &[(name, value)], b"new");
            assert_code(&answer, 501, "NotImplemented", name);
        }
        let answer = put(&proxy, "o", &[("if-none-match", "*")], b"new");
        assert_code(&answer, 412, "PreconditionFailed", "a key that is taken");
        let target = format!("/{VOLUME}/o");
        for (name, value) in [
            ("If-Match", "\"one\", \"two\""),
            ("x-amz-if-match-size", "3"),
        ] {
            let answer = proxy.request("DELETE", &target, &[(name, value)], b"");
            assert_code(&answer, 501, "NotImplemented", name);
        }
        assert_eq!(proxy.get("o").body, b"old");
        let answer = put(&proxy, "free", &[("if-none-match", "*")], b"new");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[test]
fn a_delete_may_be_bound_to_a_version() {
    let delayed = Setup {
        // What is dirty stays so.
        flags: vec!["--writebackDelay".to_string(), "600000".to_string()],
        ..writeback()
    };
    for setup in [Setup::default(), delayed] {
        let proxy = start_with(setup);
        let target = format!("/{VOLUME}/o");
        let delete = |tag: &str| proxy.request("DELETE", &target, &[("If-Match", tag)], b"");
        let old = put(&proxy, "o", &[], b"old");
        let new = put(&proxy, "o", &[], b"new");
        let tag = new.expect_header("etag");
        for wrong in [old.expect_header("etag"), "\"other\""] {
            assert_code(&delete(wrong), 412, "PreconditionFailed", wrong);
        }
        let many = format!(
            "<Delete><Object><Key>o</Key><ETag>{}</ETag></Object></Delete>",
            old.expect_header("etag").replace('"', "&quot;")
        );
        let md5 = STANDARD.encode(Md5::digest(&many));
        let headers = [("content-md5", md5.as_str())];
        let answer = proxy.request(
            "POST",
            &format!("/{VOLUME}?delete"),
            &headers,
            many.as_bytes(),
        );
        assert!(
            answer.text().contains("<Code>PreconditionFailed</Code>"),
            "{}",
            answer.text()
        );
        assert_eq!(proxy.get("o").body, b"new");
        assert_eq!(delete(tag).status, 204);
        assert_eq!(proxy.get("o").status, 404);
        assert_eq!(
            delete(tag).status,
            204,
            "what is not there needs no deletion"
        );
        assert_eq!(delete("*").status, 204);
    }
}

#[test]
fn refusals_say_what_s3_says_of_them() {
    let proxy = start();
    let target = format!("/{VOLUME}/o");
    let at = |at: i64| {
        let headers = WRITER.sign(&Signing {
            method: "GET",
            target: &target,
            headers: &[],
            payload: UNSIGNED,
            at,
        });
        proxy
            .request("GET", &target, &borrowed(&headers), b"")
            .text()
    };
    let skewed = at(now() - 3600);
    for element in [
        "RequestTime>",
        "ServerTime>",
        "<MaxAllowedSkewMilliseconds>900000<",
    ] {
        assert!(skewed.contains(element), "{element}: {skewed}");
    }
    let mut headers = WRITER.headers("GET", &target, b"");
    headers.push(("x-forged".to_owned(), "1".to_owned()));
    let moved = format!("/{VOLUME}/p");
    let mismatch = proxy
        .request("GET", &moved, &borrowed(&headers), b"")
        .text();
    for element in [
        "<AWSAccessKeyId>FBWRITER<",
        "<StringToSign>AWS4-",
        "<CanonicalRequest>GET\n/vol/p\n",
    ] {
        assert!(mismatch.contains(element), "{element}: {mismatch}");
    }
    let headers = WRITER.headers("PUT", &target, b"this");
    let other = proxy
        .request("PUT", &target, &borrowed(&headers), b"that")
        .text();
    for hash in [sha256(b"this"), sha256(b"that")] {
        assert!(other.contains(&hash), "{other}");
    }
}

const ONE_TAG: &[u8] = b"<Tagging><TagSet><Tag><Key>colour</Key><Value>red &amp; blue</Value></Tag></TagSet></Tagging>";

#[test]
fn tags_are_the_stores() {
    let target = format!("/{VOLUME}/tagged");
    let tagging = format!("{target}?tagging=");
    let folder = start();
    put(&folder, "tagged", &[], b"body");
    for (method, body) in [("GET", &b""[..]), ("PUT", ONE_TAG), ("DELETE", b"")] {
        let answer = WRITER.send(&folder, method, &tagging, body);
        assert_code(&answer, 501, "NotImplemented", "a folder keeps no tags");
    }
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let proxy = start_with(Setup {
        store: Some(server.own_prefix()),
        ..writeback()
    });
    let tags = || {
        let answer = READER.send(&proxy, "GET", &tagging, b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    };
    let missing = READER.send(&proxy, "GET", &tagging, b"");
    assert_code(&missing, 404, "NoSuchKey", "no object, no tags");
    let written = put(&proxy, "tagged", &[], &pattern(1, 70_000));
    assert_eq!(written.expect_header("x-forebay-write"), "back");
    assert!(!tags().contains("<Tag>"), "not yet in the store");
    let refused = WRITER.send(&proxy, "PUT", &tagging, b"<Tagging/>");
    assert_code(&refused, 400, "MalformedXML", "no set of tags");
    let refused = READER.send(&proxy, "PUT", &tagging, ONE_TAG);
    assert_code(&refused, 403, "AccessDenied", "who may only read");
    let answer = WRITER.send(&proxy, "PUT", &tagging, ONE_TAG);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told = tags();
    assert!(
        told.contains("<Key>colour</Key><Value>red &amp; blue</Value>"),
        "{told}"
    );
    let body = read(&proxy, "GET", "tagged", &[]);
    assert_same_bytes(
        &body.body,
        &pattern(1, 70_000),
        "written through with its tags",
    );
    assert_ne!(body.expect_header("x-cache"), "hit-dirty");
    let answer = WRITER.send(&proxy, "DELETE", &tagging, b"");
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert!(!tags().contains("<Tag>"));
}
