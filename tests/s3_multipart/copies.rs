//! CopyObject and UploadPartCopy: of what the store has, of what only the proxy has, across volumes, and
//! under conditions.

use crate::common::proxy::OTHER_VOLUME;
use crate::common::signing::{READER, STRANGER, WRITER, assert_code};
use crate::common::{Answer, OTHER, Proxy, READ_WRITE, Setup, pattern, wait_until};
use crate::rig::{
    PART_BYTES_MIN, Upload, assert_gone, assert_object, bodies, element, etag_of, is_clean, metric,
    proxies, proxies_with, put_in_parts, request, request_as, store_gets, target, writeback,
};

fn copy(proxy: &Proxy, source: &str, key: &str, headers: &[(&str, &str)]) -> Answer {
    let mut all = vec![("x-amz-copy-source", source)];
    all.extend(headers);
    request(proxy, "PUT", &target(key), &all, b"")
}

fn assert_copied(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("<CopyObjectResult"));
    assert!(element(answer, "LastModified").ends_with('Z'));
    assert!(element(answer, "ETag").starts_with('"'));
}

#[test]
fn a_copy_has_the_bytes_and_the_headers_of_its_source() {
    for setup in [Setup::default(), writeback()] {
        for proxy in proxies_with(&setup) {
            // Less than a block, and several.
            for length in [0, 1000, 2_500_000] {
                let body = pattern(1, length);
                let headers = [("content-type", "a/b"), ("x-amz-meta-colour", "green")];
                let from = format!("from {length}");
                let put = request(
                    &proxy,
                    "PUT",
                    &target(&from.replace(' ', "%20")),
                    &headers,
                    &body,
                );
                assert_eq!(put.status, 200);
                let source = format!("vol/from%20{length}");
                for (source, key) in [(source.clone(), "a"), (format!("/{source}"), "b/c")] {
                    let answer = copy(&proxy, &source, key, &[]);
                    assert_copied(&answer);
                    let found = assert_object(&proxy, key, &body, "copied");
                    assert_eq!(found.expect_header("content-type"), "a/b");
                    assert_eq!(found.expect_header("x-amz-meta-colour"), "green");
                    assert_eq!(found.expect_header("etag"), element(&answer, "ETag"));
                }
                let replace = [
                    ("content-type", "c/d"),
                    ("x-amz-meta-size", "large"),
                    ("x-amz-metadata-directive", "REPLACE"),
                ];
                for key in ["d", &from.replace(' ', "%20")] {
                    assert_copied(&copy(&proxy, &source, key, &replace));
                    let found = assert_object(&proxy, key, &body, "replaced");
                    assert_eq!(found.expect_header("content-type"), "c/d");
                    assert_eq!(found.expect_header("x-amz-meta-size"), "large");
                    assert_eq!(found.header("x-amz-meta-colour"), None);
                }
            }
        }
    }
}

#[test]
fn a_copy_of_what_only_the_proxy_has_asks_no_store() {
    for mut proxy in proxies_with(&writeback()) {
        let body = pattern(2, 100_000);
        let put = request(&proxy, "PUT", &target("old"), &[], &body);
        assert_eq!(put.expect_header("x-forebay-write"), "back");
        let before = metric(&proxy, "forebay_store_requests_total", "");
        let answer = copy(&proxy, "vol/old", "new", &[]);
        assert_copied(&answer);
        assert_eq!(answer.expect_header("x-forebay-write"), "back");
        assert_eq!(element(&answer, "ETag"), put.expect_header("etag"));
        assert_object(&proxy, "new", &body, "renamed");
        let after = metric(&proxy, "forebay_store_requests_total", "");
        assert_eq!(after, before, "the store was asked");
        assert_eq!(
            request(&proxy, "DELETE", &target("old"), &[], b"").status,
            204
        );
        assert_object(&proxy, "new", &body, "the old name is gone");
        assert_gone(&proxy, "old", "renamed");
        proxy.kill();
        proxy.start();
        assert_object(&proxy, "new", &body, "after a kill");
        proxy.kill();
        proxy.setup.flags.clear();
        proxy.start();
        wait_until("all is uploaded", || is_clean(&proxy));
        assert_object(&proxy, "new", &body, "uploaded");
    }
}

#[test]
fn a_copy_of_what_is_cached_is_read_without_the_store() {
    for proxy in proxies() {
        let all = put_in_parts(&proxy, "k", &bodies(3));
        assert_copied(&copy(&proxy, "vol/k", "copy", &[]));
        assert_object(&proxy, "k", &all, "the source");
        let before = store_gets(&proxy);
        assert_object(&proxy, "copy", &all, "the copy");
        assert_eq!(store_gets(&proxy), before);
        // A copy over it must not be taken for it.
        proxy.put("k", b"short");
        assert_copied(&copy(&proxy, "vol/k", "copy", &[]));
        assert_object(&proxy, "copy", b"short", "replaced");
    }
}

#[test]
fn conditions_of_a_copy_are_of_its_source() {
    for setup in [Setup::default(), writeback()] {
        for proxy in proxies_with(&setup) {
            let put = request(&proxy, "PUT", &target("k"), &[], b"body");
            let etag = put.expect_header("etag").to_owned();
            let (past, future) = (
                "Sat, 08 Sep 2001 01:46:40 GMT",
                "Fri, 08 Sep 2090 01:46:40 GMT",
            );
            for (name, value, holds) in [
                ("if-match", etag.as_str(), true),
                ("if-match", "\"other\"", false),
                ("if-none-match", etag.as_str(), false),
                ("if-none-match", "\"other\"", true),
                ("if-unmodified-since", future, true),
                ("if-unmodified-since", past, false),
                ("if-modified-since", past, true),
                ("if-modified-since", future, false),
            ] {
                let header = format!("x-amz-copy-source-{name}");
                let answer = copy(&proxy, "vol/k", "copy", &[(&header, value)]);
                let upload = Upload::begin(&proxy, "parts");
                let headers = [(header.as_str(), value), ("x-amz-copy-source", "vol/k")];
                let part = upload.put_with(1, &headers, b"");
                match holds {
                    true => {
                        assert_copied(&answer);
                        assert_eq!(part.status, 200, "{name}: {}", part.text());
                        assert_eq!(
                            request(&proxy, "DELETE", &target("copy"), &[], b"").status,
                            204
                        );
                    }
                    false => {
                        assert_code(&answer, 412, "PreconditionFailed", name);
                        assert_code(&part, 412, "PreconditionFailed", name);
                        assert_gone(&proxy, "copy", name);
                    }
                }
                assert_eq!(upload.abort().status, 204);
            }
        }
    }
}

/// A proxy whose writer may also read, or write, the other volume.
fn with_second_volume(mut proxy: Proxy, permission: &str) -> Proxy {
    let text = std::fs::read_to_string(proxy.config_file()).expect("settings");
    let key = format!(
        "\n[[volume.key]]\naccess_key = \"{}\"\nsecret_key = \"{}\"\npermission = \"{permission}\"\n",
        WRITER.access, WRITER.secret
    );
    // The other volume is the last.
    std::fs::write(proxy.config_file(), text + &key).expect("settings");
    proxy.kill();
    proxy.start();
    proxy
}

#[test]
fn a_copy_across_volumes_needs_a_key_of_both() {
    for setup in [Setup::default(), writeback()] {
        for proxy in proxies_with(&setup) {
            let bearer = format!("Bearer {OTHER}");
            let other = format!("/{OTHER_VOLUME}/k");
            for length in [1000, 2_500_000] {
                let body = pattern(4, length);
                let headers = [("Authorization", bearer.as_str()), ("content-type", "a/b")];
                assert_eq!(proxy.request("PUT", &other, &headers, &body).status, 200);
                let answer = copy(&proxy, &other, "copy", &[]);
                assert_code(&answer, 403, "AccessDenied", "no key of the source");
                assert_gone(&proxy, "copy", "refused");
            }
            let proxy = with_second_volume(proxy, "r");
            let body = assert_object_of(&proxy, &other, &bearer);
            let answer = copy(&proxy, &other, "copy", &[]);
            assert_copied(&answer);
            let found = assert_object(&proxy, "copy", &body, "copied");
            assert_eq!(found.expect_header("content-type"), "a/b");
            let upload = Upload::begin(&proxy, "parts");
            let headers = [
                ("x-amz-copy-source", other.as_str()),
                ("x-amz-copy-source-range", "bytes=7-1500000"),
            ];
            let part = upload.put_with(1, &headers, b"");
            assert_eq!(part.status, 200, "{}", part.text());
            upload.complete(&[(1, &element(&part, "ETag"))]);
            let before = store_gets(&proxy);
            assert_object(&proxy, "parts", &body[7..=1_500_000], "a part of it");
            assert_eq!(store_gets(&proxy), before);
            let own = [("x-amz-copy-source", "vol/copy")];
            let answer = request(&proxy, "PUT", &other, &own, b"");
            assert_code(&answer, 403, "AccessDenied", "the other may only be read");
        }
    }
}

fn assert_object_of(proxy: &Proxy, target: &str, bearer: &str) -> Vec<u8> {
    let answer = proxy.request("GET", target, &[("Authorization", bearer)], b"");
    assert_eq!(answer.status, 200);
    answer.body
}

#[test]
fn parts_are_copied_too() {
    for setup in [Setup::default(), writeback()] {
        for proxy in proxies_with(&setup) {
            let all = put_in_parts(&proxy, "k", &bodies(5));
            request(&proxy, "PUT", &target("small"), &[], b"abcdef");
            let upload = Upload::begin(&proxy, "made");
            let border = PART_BYTES_MIN + 100_003;
            let range = format!("bytes=0-{}", border - 1);
            let headers = [
                ("x-amz-copy-source", "vol/k"),
                ("x-amz-copy-source-range", range.as_str()),
            ];
            let first = upload.put_with(1, &headers, b"");
            assert_eq!(first.status, 200, "{}", first.text());
            assert!(first.text().contains("<CopyPartResult"));
            let second = upload.put(2, &all[border..]);
            let headers = [
                ("x-amz-copy-source", "vol/small"),
                ("x-amz-copy-source-range", "bytes=2-4"),
            ];
            let third = upload.put_with(3, &headers, b"");
            assert_eq!(third.status, 200, "{}", third.text());
            let etag = upload.complete(&[
                (1, &element(&first, "ETag")),
                (2, &second),
                (3, &element(&third, "ETag")),
            ]);
            assert_eq!(etag, etag_of(&[&all[..border], &all[border..], b"cde"]));
            let mut made = all.clone();
            made.extend_from_slice(b"cde");
            assert_object(&proxy, "k", &all, "the source");
            assert_object(&proxy, "made", &made, "made of copies");
            for (source, range, status, code) in [
                ("vol/small", "bytes=0-6", 416, "InvalidRange"),
                ("vol/small", "bytes=4-2", 400, "InvalidArgument"),
                ("vol/small", "bytes=0-", 400, "InvalidArgument"),
                ("vol/none", "bytes=0-1", 404, "NoSuchKey"),
            ] {
                let upload = Upload::begin(&proxy, "refused");
                let headers = [
                    ("x-amz-copy-source", source),
                    ("x-amz-copy-source-range", range),
                ];
                let answer = upload.put_with(1, &headers, b"");
                assert_code(&answer, status, code, range);
                assert_eq!(upload.abort().status, 204);
            }
        }
    }
}

#[test]
fn a_copy_that_cannot_be_is_refused() {
    for proxy in proxies() {
        proxy.put("k", b"body");
        // A folder knows no versions; the other store knows none of this id.
        let (no_version, no_version_code) = match proxy.setup.store {
            None => (501, "NotImplemented"),
            Some(_) => (404, "NoSuchVersion"),
        };
        for (source, headers, status, code) in [
            ("vol/none", vec![], 404, "NoSuchKey"),
            ("nothing/k", vec![], 404, "NoSuchBucket"),
            (
                "vol/k",
                vec![("x-amz-metadata-directive", "MOVE")],
                400,
                "InvalidArgument",
            ),
            ("vol/k?versionId=abc", vec![], no_version, no_version_code),
            ("vol", vec![], 400, "InvalidArgument"),
            ("vol/../other/k", vec![], 400, "InvalidURI"),
            ("-/metrics", vec![], 400, "InvalidArgument"),
            (
                "vol/k",
                vec![("x-amz-tagging-directive", "REPLACE")],
                501,
                "NotImplemented",
            ),
            ("vol/k", vec![("if-match", "\"a\"")], 501, "NotImplemented"),
        ] {
            let answer = copy(&proxy, source, "copy", &headers);
            assert_code(&answer, status, code, source);
            assert_gone(&proxy, "copy", source);
        }
        let onto_itself = copy(&proxy, "vol/k", "k", &[]);
        assert_code(&onto_itself, 400, "InvalidRequest", "onto itself");
        assert_copied(&copy(&proxy, "vol/k?versionId=null", "copy", &[]));
        let headers = [("x-amz-copy-source", "vol/k")];
        for pair in [READER, STRANGER] {
            let answer = request_as(&proxy, pair, "PUT", &target("no"), &headers, b"");
            assert_code(&answer, 403, "AccessDenied", "a key that may not write");
        }
        let bearer = format!("Bearer {READ_WRITE}");
        let headers = [headers[0], ("Authorization", bearer.as_str())];
        let answer = proxy.request("PUT", &target("token"), &headers, b"");
        assert_copied(&answer);
        assert_object(&proxy, "token", b"body", "copied by token");
    }
}
