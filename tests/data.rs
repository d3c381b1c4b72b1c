//! What a good client gets: objects, ranges, conditions, checksums, and the same after a restart.
//!
//! Seen only from outside. What the store behind sees is in `data_misses.rs`.

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::proxy::disk_usage;
use common::{Answer, Proxy, Setup, VOLUME, assert_same_bytes, pattern};
use md5::{Digest as _, Md5};

const MIB: usize = 1 << 20;

fn put(proxy: &Proxy, key: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    proxy.request("PUT", &format!("/{VOLUME}/{key}"), headers, body)
}

fn get(proxy: &Proxy, key: &str, headers: &[(&str, &str)]) -> Answer {
    proxy.request("GET", &format!("/{VOLUME}/{key}"), headers, b"")
}

/// What every answer to a data request carries.
fn assert_common_headers(answer: &Answer, what: &str) {
    assert!(
        !answer.expect_header("x-amz-request-id").is_empty(),
        "{what}"
    );
    let core = answer.expect_header("x-forebay-core");
    let (index, count) = core
        .split_once('/')
        .unwrap_or_else(|| panic!("{what}: x-forebay-core {core:?}"));
    let (index, count) = (
        index.parse::<u32>().expect("a core"),
        count.parse::<u32>().expect("a count"),
    );
    assert!(index < count, "{what}: x-forebay-core {core:?}");
    let known = [
        "hit-ram",
        "hit-disk",
        "hit-dirty",
        "coalesced",
        "miss",
        "revalidated",
        "bypass",
    ];
    assert!(
        known.contains(&answer.cache()),
        "{what}: x-cache {:?}",
        answer.cache()
    );
}

fn assert_hit(answer: &Answer, what: &str) {
    assert!(
        answer.cache().starts_with("hit-"),
        "{what}: x-cache {}",
        answer.cache()
    );
}

#[test]
fn whole_objects_of_every_size_come_back() {
    for tls in [false, true] {
        let proxy = Setup {
            tls,
            shards: 2,
            ..Setup::default()
        }
        .start();
        // Around pages, checksum chunks and blocks; nothing at all; several blocks and a rest.
        let sizes = [
            0,
            1,
            511,
            4095,
            4096,
            4097,
            65_535,
            65_536,
            65_537,
            MIB - 1,
            MIB,
            MIB + 1,
            3 * MIB,
            5 * MIB + 12_345,
        ];
        for size in sizes {
            let key = format!("sizes/{size}");
            let body = pattern(size as u64, size);
            let written = put(&proxy, &key, &[], &body);
            assert_eq!(written.status, 200, "PUT of {size}: {}", written.text());
            assert!(written.body.is_empty());
            let etag = written.expect_header("etag").to_string();
            assert!(
                etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"'),
                "etag {etag}"
            );
            for round in ["first", "second"] {
                let answer = get(&proxy, &key, &[]);
                assert_eq!(answer.status, 200, "{round} GET of {size}");
                assert_same_bytes(&answer.body, &body, &key);
                assert_eq!(answer.expect_header("etag"), etag);
                assert!(answer.expect_header("last-modified").ends_with(" GMT"));
                assert_common_headers(&answer, &key);
            }
            let head = proxy.request("HEAD", &format!("/{VOLUME}/{key}"), &[], b"");
            assert_eq!(head.status, 200);
            assert_eq!(head.expect_header("content-length"), size.to_string());
            assert_eq!(head.expect_header("etag"), etag);
        }
    }
}

#[test]
fn ranges_of_small_and_large_objects() {
    let proxy = Setup {
        shards: 2,
        ..Setup::default()
    }
    .start();
    for size in [10_000, 3 * MIB + 777] {
        let body = pattern(11, size);
        let key = format!("ranges/{size}");
        assert_eq!(put(&proxy, &key, &[], &body).status, 200);
        let mut ranges = vec![
            (0, 0),
            (0, size - 1),
            (size - 1, size - 1),
            (1, 4096),
            (4095, 4097),
        ];
        if size > 2 * MIB {
            // Across one block's edge, across two, inside the second block only.
            ranges.extend([
                (MIB - 1, MIB),
                (MIB - 100, 2 * MIB + 100),
                (MIB, 2 * MIB - 1),
                (MIB + 65_535, MIB + 65_536),
            ]);
        }
        for (first, last) in ranges {
            let answer = proxy.get_range(&key, &format!("bytes={first}-{last}"));
            assert_eq!(answer.status, 206, "{first}-{last}");
            assert_eq!(
                answer.expect_header("content-range"),
                format!("bytes {first}-{last}/{size}")
            );
            assert_same_bytes(&answer.body, &body[first..=last], "a range");
        }
        let suffix = proxy.get_range(&key, "bytes=-100");
        assert_eq!(suffix.status, 206);
        assert_same_bytes(&suffix.body, &body[size - 100..], "a suffix");
        let open = proxy.get_range(&key, &format!("bytes={}-", size - 100));
        assert_eq!(open.status, 206);
        assert_same_bytes(&open.body, &body[size - 100..], "an open range");
        let past = proxy.get_range(&key, &format!("bytes={size}-"));
        assert_eq!(
            (past.status, past.expect_header("content-range")),
            (416, format!("bytes */{size}").as_str())
        );
    }
    let empty = put(&proxy, "ranges/empty", &[], b"");
    assert_eq!(empty.status, 200);
    assert_eq!(proxy.get_range("ranges/empty", "bytes=0-0").status, 416);
}

#[test]
fn conditions_are_kept() {
    let proxy = Setup::default().start();
    let body = pattern(12, 1000);
    put(&proxy, "conditions", &[], &body);
    let answer = get(&proxy, "conditions", &[]);
    let (etag, modified) = (
        answer.expect_header("etag"),
        answer.expect_header("last-modified"),
    );
    let (long_ago, far_off) = (
        "Sat, 01 Jan 2000 00:00:00 GMT",
        "Fri, 01 Jan 2100 00:00:00 GMT",
    );
    let list = format!("\"other\", {etag}");
    let cases: &[(&str, &str, u16)] = &[
        ("If-Match", etag, 200),
        ("If-Match", "*", 200),
        ("If-Match", &list, 200),
        ("If-Match", "\"other\"", 412),
        ("If-None-Match", etag, 304),
        ("If-None-Match", "*", 304),
        ("If-None-Match", &list, 304),
        ("If-None-Match", "\"other\"", 200),
        ("If-Modified-Since", modified, 304),
        ("If-Modified-Since", long_ago, 200),
        ("If-Modified-Since", "not a date", 200),
        ("If-Unmodified-Since", modified, 200),
        ("If-Unmodified-Since", far_off, 200),
        ("If-Unmodified-Since", long_ago, 412),
    ];
    for (name, value, status) in cases {
        for method in ["GET", "HEAD"] {
            let answer = proxy.request(
                method,
                &format!("/{VOLUME}/conditions"),
                &[(name, value)],
                b"",
            );
            assert_eq!(answer.status, *status, "{method} with {name}: {value}");
            if *status == 304 {
                assert_eq!(answer.header("etag"), Some(etag), "a 304 names the version");
            }
        }
    }
    // The entity tag decides when both are there (RFC 9110 section 13.2.2).
    let both = get(
        &proxy,
        "conditions",
        &[
            ("If-None-Match", "\"other\""),
            ("If-Modified-Since", far_off),
        ],
    );
    assert_eq!(both.status, 200);
    let part = get(
        &proxy,
        "conditions",
        &[("If-Match", etag), ("Range", "bytes=0-9")],
    );
    assert_eq!((part.status, part.body.len()), (206, 10));
    assert_eq!(
        get(
            &proxy,
            "conditions",
            &[("If-Match", "\"other\""), ("Range", "bytes=0-9")]
        )
        .status,
        412
    );
    assert_eq!(
        get(&proxy, "missing", &[("If-Match", "*")]).error_code(),
        "NoSuchKey"
    );
}

#[test]
fn metadata_and_type_are_kept() {
    let mut proxy = Setup::default().start();
    let headers = [
        ("Content-Type", "application/x-forebay; v=1"),
        ("x-amz-meta-Colour", "green and blue"),
        ("x-amz-meta-empty-not", "0"),
        ("Cache-Control", "max-age=60"),
        ("Content-Disposition", "attachment; filename=\"a b\""),
    ];
    put(&proxy, "metadata", &headers, b"body");
    let check = |answer: &Answer, what: &str| {
        assert_eq!(answer.status, 200, "{what}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/x-forebay; v=1"),
            "{what}"
        );
        assert_eq!(
            answer.header("x-amz-meta-colour"),
            Some("green and blue"),
            "{what}"
        );
        assert_eq!(answer.header("x-amz-meta-empty-not"), Some("0"), "{what}");
    };
    check(&get(&proxy, "metadata", &[]), "from the cache");
    check(
        &proxy.request("HEAD", &format!("/{VOLUME}/metadata"), &[], b""),
        "HEAD",
    );
    let reader = Setup {
        store: Some(proxy.shared_store()),
        ..Setup::default()
    }
    .start();
    check(&get(&reader, "metadata", &[]), "from the store");
    proxy.restart_killed(|_| {});
    check(&get(&proxy, "metadata", &[]), "after a restart");
    // A new version brings its own metadata and keeps none of the old.
    put(
        &proxy,
        "metadata",
        &[("Content-Type", "text/plain")],
        b"new",
    );
    let answer = get(&proxy, "metadata", &[]);
    assert_eq!(
        (
            answer.header("content-type"),
            answer.header("x-amz-meta-colour")
        ),
        (Some("text/plain"), None)
    );
    assert_eq!(answer.body, b"new");
}

#[test]
fn wrong_checksums_are_refused_and_store_nothing() {
    let proxy = Setup::default().start();
    let body = pattern(13, 100_000);
    let stored = proxy.stored_file_count();
    let wrong = |length: usize| BASE64.encode(vec![7; length]);
    let cases = [
        ("Content-MD5", wrong(16)),
        ("x-amz-checksum-crc32", wrong(4)),
        ("x-amz-checksum-crc32c", wrong(4)),
        ("x-amz-checksum-crc64nvme", wrong(8)),
        ("x-amz-checksum-sha1", wrong(20)),
        ("x-amz-checksum-sha256", wrong(32)),
    ];
    for (name, value) in &cases {
        let answer = put(&proxy, "checked", &[(name, value)], &body);
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (400, "BadDigest"),
            "{name}"
        );
    }
    let answer = put(
        &proxy,
        "checked",
        &[("x-amz-content-sha256", &"0".repeat(64))],
        &body,
    );
    assert_eq!(answer.status, 400, "x-amz-content-sha256");
    assert!(["BadDigest", "XAmzContentSHA256Mismatch"].contains(&answer.error_code().as_str()));
    for (name, value) in [
        ("Content-MD5", "no base64!"),
        ("Content-MD5", "AAAA"),
        ("x-amz-checksum-crc32c", "AA=="),
    ] {
        assert_eq!(
            put(&proxy, "checked", &[(name, value)], &body).status,
            400,
            "{name}: {value}"
        );
    }
    assert_eq!(get(&proxy, "checked", &[]).status, 404);
    assert_eq!(
        proxy.stored_file_count(),
        stored,
        "a refused body reached the store"
    );

    let sha256 = |body: &[u8]| {
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body)
            .as_ref()
            .to_vec()
    };
    let crc = |algorithm, length: usize| {
        crc_fast::checksum(algorithm, &body).to_be_bytes()[8 - length..].to_vec()
    };
    let right = [
        ("Content-MD5", Md5::digest(&body).to_vec()),
        ("x-amz-checksum-sha256", sha256(&body)),
        (
            "x-amz-checksum-crc32c",
            crc(crc_fast::CrcAlgorithm::Crc32Iscsi, 4),
        ),
        (
            "x-amz-checksum-crc64nvme",
            crc(crc_fast::CrcAlgorithm::Crc64Nvme, 8),
        ),
    ];
    for (name, value) in &right {
        let answer = put(&proxy, "checked", &[(name, &BASE64.encode(value))], &body);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    }
    let wrong_now = put(
        &proxy,
        "checked",
        &[("Content-MD5", &cases[0].1)],
        b"replacement",
    );
    assert_eq!(wrong_now.error_code(), "BadDigest");
    assert_same_bytes(
        &get(&proxy, "checked", &[]).body,
        &body,
        "the version before the refused one",
    );
}

#[test]
fn errors_are_s3_documents() {
    let proxy = Setup::default().start();
    let missing = get(&proxy, "missing", &[]);
    assert_eq!(
        (missing.status, missing.error_code().as_str()),
        (404, "NoSuchKey")
    );
    assert!(
        missing
            .expect_header("content-type")
            .starts_with("application/xml")
    );
    let id = missing.expect_header("x-amz-request-id");
    assert!(
        missing
            .text()
            .contains(&format!("<RequestId>{id}</RequestId>")),
        "{}",
        missing.text()
    );
    let head = proxy.request("HEAD", &format!("/{VOLUME}/missing"), &[], b"");
    assert_eq!((head.status, head.body.len()), (404, 0));
    // What a client wrote never comes back as markup.
    let hostile = get(&proxy, "%3CCode%3Eevil%3C/Code%3E&", &[]);
    assert_eq!(
        (hostile.status, hostile.error_code().as_str()),
        (404, "NoSuchKey")
    );
    assert!(!hostile.text().contains("<Code>evil"), "{}", hostile.text());
    let ids: std::collections::HashSet<String> = (0..20)
        .map(|_| {
            get(&proxy, "missing", &[])
                .expect_header("x-amz-request-id")
                .to_string()
        })
        .collect();
    assert_eq!(ids.len(), 20, "request ids repeat");
}

#[test]
fn one_connection_serves_many_requests_in_order() {
    let proxy = Setup {
        shards: 2,
        ..Setup::default()
    }
    .start();
    let body = |index: usize| pattern(index as u64, 1000 * index + 1);
    let mut client = proxy.client();
    for index in 0..20 {
        let answer = client.request(
            "PUT",
            &format!("/{VOLUME}/order/{index}"),
            &[],
            &body(index),
        );
        assert_eq!(answer.status, 200, "PUT {index} on the same connection");
    }
    // All requests first, then all answers: their order is that of the requests, whoever owns the key.
    for index in 0..20 {
        client.send_request("GET", &format!("/{VOLUME}/order/{index}"), &[], b"");
    }
    for index in 0..20 {
        let answer = client.read_answer("GET");
        assert_eq!(answer.status, 200, "pipelined GET {index}");
        assert_same_bytes(&answer.body, &body(index), "pipelined GET");
    }
    // Errors, empty answers and HEADs between do not shift the rest.
    for (method, key) in [
        ("HEAD", "order/3"),
        ("GET", "missing"),
        ("GET", "order/4"),
        ("DELETE", "order/5"),
        ("GET", "order/6"),
    ] {
        client.send_request(method, &format!("/{VOLUME}/{key}"), &[], b"");
    }
    assert_eq!(client.read_answer("HEAD").status, 200);
    assert_eq!(client.read_answer("GET").status, 404);
    assert_eq!(client.read_answer("GET").body, body(4));
    assert_eq!(client.read_answer("DELETE").status, 204);
    assert_eq!(client.read_answer("GET").body, body(6));
    // A PUT and the GET of what it wrote, in one packet.
    client.send_request("PUT", &format!("/{VOLUME}/order/7"), &[], b"new");
    client.send_request(
        "GET",
        &format!("/{VOLUME}/order/7"),
        &[("Connection", "close")],
        b"",
    );
    assert_eq!(client.read_answer("PUT").status, 200);
    assert_eq!(client.read_answer("GET").body, b"new");
    assert!(
        client.closes_within(common::WAIT_MAX),
        "Connection: close is honoured"
    );
}

#[test]
fn expect_continue_is_answered_once_the_body_is_wanted() {
    let proxy = Setup::default().start();
    let body = pattern(14, 50_000);
    let mut client = proxy.client();
    let length = body.len().to_string();
    let headers = [
        ("Expect", "100-continue"),
        ("Content-Length", length.as_str()),
    ];
    client.send_request("PUT", &format!("/{VOLUME}/expected"), &headers, b"");
    assert_eq!(client.read_answer("PUT").status, 100);
    client.send(&body);
    assert_eq!(client.read_answer("PUT").status, 200);
    // An old boto3 waits for it before an empty body, too, and then misreads the next answer.
    let empty = [("Expect", "100-continue"), ("Content-Length", "0")];
    client.send_request("PUT", &format!("/{VOLUME}/empty"), &empty, b"");
    assert_eq!(client.read_answer("PUT").status, 100);
    assert_eq!(client.read_answer("PUT").status, 200);
    // A body that is there already needs no 100; both ways are right, the final answer counts.
    client.send_request(
        "PUT",
        &format!("/{VOLUME}/expected"),
        &[("Expect", "100-continue")],
        &body,
    );
    let first = client.read_answer("PUT").status;
    assert!(first == 200 || (first == 100 && client.read_answer("PUT").status == 200));
    assert_eq!(
        client
            .request("GET", &format!("/{VOLUME}/expected"), &[], b"")
            .body,
        body
    );
}

#[test]
fn clients_that_pause_in_their_bodies_hold_nobody_up() {
    let proxy = Setup::default().start();
    let body = pattern(15, MIB);
    let length = body.len().to_string();
    let headers = [("Content-Length", length.as_str())];
    // More than may receive at a time, each stopped at another place of its body.
    let mut paused: Vec<_> = (0..6)
        .map(|index| {
            let mut client = proxy.client();
            let target = format!("/{VOLUME}/paused/{index}");
            client.send_request("PUT", &target, &headers, b"");
            let sent = index * MIB / 6;
            client.send(&body[..sent]);
            (client, target, sent)
        })
        .collect();
    for index in 0..8 {
        let answer = put(&proxy, &format!("swift/{index}"), &[], &body);
        assert_eq!(answer.status, 200, "beside paused bodies");
    }
    // One that has gone gives its turn back.
    drop(paused.pop());
    for (client, target, sent) in &mut paused {
        client.send(&body[*sent..]);
        assert_eq!(client.read_answer("PUT").status, 200, "{target}");
        let answer = client.request("GET", target, &[], b"");
        assert_same_bytes(&answer.body, &body, target);
    }
}

#[test]
fn deleted_means_gone() {
    let mut proxy = Setup {
        shards: 2,
        ..Setup::default()
    }
    .start();
    let body = pattern(15, 2 * MIB + 5);
    let target = format!("/{VOLUME}/doomed");
    proxy.put("doomed", &body);
    assert_same_bytes(&proxy.get("doomed").body, &body, "before");
    assert_eq!(proxy.request("DELETE", &target, &[], b"").status, 204);
    assert_eq!(
        proxy.request("DELETE", &target, &[], b"").status,
        204,
        "deleting what is gone is no error in S3"
    );
    let gone = |proxy: &Proxy, when: &str| {
        assert_eq!(proxy.get("doomed").status, 404, "{when}");
        assert_eq!(proxy.get_range("doomed", "bytes=0-9").status, 404, "{when}");
        assert_eq!(
            proxy.request("HEAD", &target, &[], b"").status,
            404,
            "{when}"
        );
    };
    gone(&proxy, "after DELETE");
    proxy.restart_killed(|_| {});
    gone(&proxy, "after kill -9 and a restart");
    let reader = Setup {
        store: Some(proxy.shared_store()),
        ..Setup::default()
    }
    .start();
    gone(&reader, "in the store");
    proxy.put("doomed", b"again");
    proxy.restart_killed(|_| {});
    assert_eq!(proxy.get("doomed").body, b"again");
}

#[test]
fn overwrites_are_seen_at_once() {
    let mut proxy = Setup {
        shards: 2,
        ..Setup::default()
    }
    .start();
    for version in 0..10_u64 {
        // Shorter and longer than a block in turn, so that blocks of an older version are left over.
        let body = pattern(version, if version % 2 == 0 { 3 * MIB } else { 1000 });
        proxy.put("version", &body);
        assert_same_bytes(
            &proxy.get("version").body,
            &body,
            "the version just written",
        );
    }
    proxy.restart_killed(|_| {});
    assert_same_bytes(
        &proxy.get("version").body,
        &pattern(9, 1000),
        "after a restart",
    );
    assert_eq!(
        proxy.get_range("version", "bytes=1000-").status,
        416,
        "no older block shows through"
    );
}

#[test]
fn hits_survive_kill_9_and_other_numbers_of_cores() {
    let mut proxy = Setup {
        shards: 1,
        ..Setup::default()
    }
    .start();
    let body = |index: u64| pattern(100 + index, MIB + 1000 * index as usize);
    for index in 0..24 {
        proxy.put(&format!("kept/{index}"), &body(index));
        assert_hit(&proxy.get(&format!("kept/{index}")), "right after PUT");
    }
    for shards in [2, 4, 1, 3] {
        proxy.restart_killed(|setup| setup.shards = shards);
        let mut hits = 0;
        for index in 0..24 {
            let answer = proxy.get(&format!("kept/{index}"));
            assert_same_bytes(&answer.body, &body(index), "after a restart");
            assert!(
                answer
                    .expect_header("x-forebay-core")
                    .ends_with(&format!("/{shards}"))
            );
            hits += usize::from(answer.cache().starts_with("hit-"));
        }
        assert_eq!(
            hits, 24,
            "with --shards {shards} all blocks are still found"
        );
    }
    assert!(proxy.terminate().success(), "SIGTERM ends with code 0");
    proxy.start();
    assert_hit(&proxy.get("kept/0"), "after a clean stop");
}

#[test]
fn the_quota_holds_after_three_times_as_much() {
    let quota = 96 * MIB as u64;
    let mut proxy = Setup {
        disk_quota: "96M".into(),
        shards: 2,
        ..Setup::default()
    }
    .start();
    let body = |index: u64| pattern(200 + index, 4 * MIB);
    for index in 0..72 {
        proxy.put(&format!("quota/{index}"), &body(index));
        let used = disk_usage(&proxy.cache_folder());
        assert!(
            used <= quota,
            "{used} bytes on disk after {} objects, of {quota}",
            index + 1
        );
    }
    for index in 0..72 {
        assert_same_bytes(
            &proxy.get(&format!("quota/{index}")).body,
            &body(index),
            "evicted or not",
        );
    }
    assert!(
        disk_usage(&proxy.cache_folder()) <= quota,
        "reading back fills the cache no further"
    );
    assert_hit(&proxy.get("quota/71"), "what was read last");
    proxy.restart_killed(|_| {});
    assert!(
        disk_usage(&proxy.cache_folder()) <= quota,
        "a restart keeps the quota"
    );
    assert_same_bytes(&proxy.get("quota/0").body, &body(0), "after the restart");
}
