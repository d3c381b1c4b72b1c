//! Hostile and odd keys, volumes and ranges.
//!
//! A key reaches the store byte for byte or is refused: it never names anything outside its volume.
//! Each test ends by showing that nothing was stored and that the next client is served.

mod common;

use std::time::Duration;

use common::proxy::StoreSpec;
use common::{Answer, Proxy, READ_WRITE, Setup, VOLUME, pattern};

/// For an answer, or for a close that follows one at once.
const SOON: Duration = Duration::from_secs(10);

/// A request's head with a good token, so that no refusal is for lack of one.
fn head(request_line: &str, fields: &[&str]) -> Vec<u8> {
    let mut text =
        format!("{request_line}\r\nHost: localhost\r\nAuthorization: Bearer {READ_WRITE}\r\n");
    for field in fields {
        text.push_str(field);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// The key that the abusive requests aim at was never made, and others are served.
fn assert_nothing_happened(proxy: &Proxy, stored_before: usize) {
    assert_eq!(
        proxy.get("abuse").status,
        404,
        "an abusive request stored or cached something"
    );
    assert_eq!(
        proxy.stored_file_count(),
        stored_before,
        "something reached the store"
    );
    proxy.assert_serves();
}

#[test]
fn hostile_keys_are_refused() {
    let proxy = Setup::default().start();
    let stored = proxy.stored_file_count();
    let long = "k".repeat(1025);
    let long_segments = "k/".repeat(513);
    let keys = [
        "..",
        ".",
        "../secret",
        "../../etc/passwd",
        "a/../b",
        "a/..",
        "a/./b",
        "./a",
        "a/.",
        "%2e%2e",
        "%2E%2e/x",
        ".%2e/x",
        "%2e",
        "a/%2e%2e/b",
        "a%2f..%2fb",
        "a%2F%2e%2e%2Fb",
        "..%2fother%2fx",
        "%00",
        "a%00b",
        "a%00",
        "%zz",
        "%4",
        "a%",
        &long,
        &long_segments,
        "%",
    ];
    let outside = proxy.folder().join("secret");
    std::fs::write(&outside, b"not an object").expect("file");
    for key in keys {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            let answer = proxy.request(method, &format!("/{VOLUME}/{key}"), &[], b"");
            let shown: String = key.chars().take(40).collect();
            assert_eq!(answer.status, 400, "{method} {shown}: {}", answer.text());
        }
    }
    // An empty key names the volume itself, which cannot be made, read or removed as an object.
    for method in ["PUT", "DELETE"] {
        let answer = proxy.request(method, &format!("/{VOLUME}/"), &[], b"");
        assert!(
            [400, 405, 409, 501].contains(&answer.status),
            "{method} of the empty key: {}",
            answer.status
        );
    }
    for bytes in [&b"a\x7fb"[..], b"a\xffb", b"a\x01b", b"a\tb"] {
        let request = [
            format!("GET /{VOLUME}/").as_bytes(),
            bytes,
            &head(" HTTP/1.1", &[]),
        ]
        .concat();
        let mut client = proxy.client();
        client.send(request);
        let status = client.ending("GET", SOON).status();
        // Bytes beyond ASCII are not allowed in a target, yet much software sends them as they are.
        let lenient = bytes.contains(&0xff) && status == Some(404);
        assert!(
            status == Some(400) || lenient,
            "raw bytes {bytes:?} in a target: {status:?}"
        );
    }
    assert_eq!(
        std::fs::read(&outside).expect("still there"),
        b"not an object"
    );
    assert_nothing_happened(&proxy, stored);
}

#[test]
fn odd_but_legal_keys_keep_their_bytes() {
    let proxy = Setup::default().start();
    // As sent. No two of them are the same key.
    let longest = "k".repeat(1024);
    let keys = [
        "plain",
        "a/b",
        "a//b",
        "a///b",
        "/leading",
        "a%20b",
        "a+b",
        "a%2Bb%2Bc",
        "a%25b",
        "a%2525b",
        "%C3%A9",
        "e%CC%81",
        "a%3Fb",
        "a%23b",
        "a;b",
        "a=b&c",
        "~tilde",
        "...",
        "..a",
        "a..",
        ".hidden",
        "a/.../b",
        "a'b(c)!*",
        "a%5Cb",
        "a:b",
        "a@b",
        "%E2%98%83/%F0%9F%92%A7",
        "Upper",
        "upper",
        "con",
        "a%0Ab",
        "a%7Fb",
        &longest,
    ];
    for (index, key) in keys.iter().enumerate() {
        let answer = proxy.request(
            "PUT",
            &format!("/{VOLUME}/{key}"),
            &[],
            &pattern(index as u64, 100),
        );
        assert_eq!(answer.status, 200, "PUT {key}: {}", answer.text());
    }
    // Through a second cache on the same store: what counts is the key that reached the store.
    let reader = Setup {
        store: Some(proxy.shared_store()),
        ..Setup::default()
    }
    .start();
    for (index, key) in keys.iter().enumerate() {
        for (which, proxy) in [("writer", &proxy), ("reader", &reader)] {
            let answer = proxy.get(key);
            assert_eq!(answer.status, 200, "GET {key} by the {which}");
            assert_eq!(
                answer.body,
                pattern(index as u64, 100),
                "GET {key} by the {which}: another object"
            );
        }
    }
    // Two spellings of one key are one object, in the cache and in the store.
    assert_eq!(proxy.get("%70lain").body, pattern(0, 100));
    assert_eq!(proxy.get("a%2Fb").body, pattern(1, 100));
    // S3 keys are UTF-8. Other bytes are refused, or kept exactly.
    let odd = proxy.request("PUT", &format!("/{VOLUME}/a%FFb"), &[], b"odd");
    assert!([200, 400].contains(&odd.status), "{}", odd.status);
    assert!(odd.status == 400 || reader.get("a%FFb").body == b"odd");
}

#[test]
fn volumes_are_named_by_settings_only() {
    let proxy = Setup::default().start();
    for target in [
        "/no-such-volume/key",
        "//",
        "//vol/key",
        "/vol%2Fkey",
        "/VOL/key",
        "/-/no-such-thing",
        "*",
    ] {
        let answer = proxy.request("GET", target, &[], b"");
        assert!(
            [400, 401, 403, 404].contains(&answer.status),
            "GET {target}: {}",
            answer.status
        );
    }
    let StoreSpec::Folder(store) = proxy.shared_store() else {
        unreachable!("the default store is a folder")
    };
    let names: Vec<_> = std::fs::read_dir(store)
        .expect("store")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(names.len(), 2, "only the two volumes' folders: {names:?}");
    proxy.assert_serves();
}

#[test]
fn odd_ranges_are_ignored_or_refused() {
    let proxy = Setup::default().start();
    let body = pattern(8, 3000);
    proxy.put("ranges", &body);
    let whole = 0..body.len();
    // (range, accepted answers). RFC 9110 section 14.2: what is no valid range is ignored; a valid
    // one that selects nothing is 416. Numbers beyond 64 bits may be taken as either.
    let ignored: &[&str] = &[
        "bytes=5-2",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes",
        "items=0-5",
        "bytes=+0-5",
        "bytes=0x0-5",
        "bytes=--5",
        "bytes=0-5-9",
        "bytes 0-5",
        "0-5",
        "bytes=1.5-3",
        "bytes=0-5,",
        "bytes=0-0,5-9",
        "bytes=0-9,20-29,-5",
    ];
    for range in ignored {
        let answer = proxy.get_range("ranges", range);
        let multipart = range.contains(',') && [206, 416].contains(&answer.status);
        assert!(
            answer.status == 200 || multipart,
            "{range}: {}",
            answer.status
        );
        assert!(
            answer.status != 200 || answer.body == body,
            "{range}: not the whole object"
        );
    }
    for range in [
        "bytes=-0",
        "bytes=3000-",
        "bytes=3000-3005",
        "bytes=4000-5000",
        "bytes=18446744073709551615-",
    ] {
        let answer = proxy.get_range("ranges", range);
        assert_eq!(answer.status, 416, "{range}");
        assert_eq!(
            answer.header("content-range"),
            Some("bytes */3000"),
            "{range}"
        );
        assert_eq!(answer.error_code(), "InvalidRange", "{range}");
    }
    let cut = [
        ("bytes=0-0", 0..1),
        ("bytes=2999-", 2999..3000),
        ("bytes=-1", 2999..3000),
        ("bytes=-5000", whole.clone()),
        ("bytes=100-999999", 100..3000),
        ("bytes=0-18446744073709551615", whole.clone()),
        ("bytes=-18446744073709551615", whole.clone()),
        ("bytes=00010-00019", 10..20),
    ];
    for (range, expected) in cut {
        assert_part(&proxy.get_range("ranges", range), expected, &body, range);
    }
    for range in [
        "bytes=0-99999999999999999999999999",
        "bytes=99999999999999999999999999-",
        "bytes=-99999999999999999999999999",
    ] {
        let answer = proxy.get_range("ranges", range);
        assert!(
            [200, 206, 416].contains(&answer.status),
            "{range}: {}",
            answer.status
        );
        assert!(
            answer.status == 416 || answer.body == body,
            "{range}: neither everything nor nothing"
        );
    }
    let mut client = proxy.client();
    let twice = [("Range", "bytes=0-9"), ("Range", "bytes=10-19")];
    let answer = client.request("GET", &format!("/{VOLUME}/ranges"), &twice, b"");
    assert!(
        answer.status == 400 || (answer.status == 200 && answer.body == body),
        "two Ranges: {}",
        answer.status
    );
    proxy.assert_serves();
}

/// A 206 whose length, `Content-Range` and bytes all say `expected`.
fn assert_part(answer: &Answer, expected: std::ops::Range<usize>, body: &[u8], what: &str) {
    assert_eq!(answer.status, 206, "{what}");
    let range = format!(
        "bytes {}-{}/{}",
        expected.start,
        expected.end - 1,
        body.len()
    );
    assert_eq!(
        answer.header("content-range"),
        Some(range.as_str()),
        "{what}"
    );
    common::assert_same_bytes(&answer.body, &body[expected], what);
}
