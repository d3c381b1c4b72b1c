//! Abuse of HTTP through raw sockets: framing, headers, lengths, keys, ranges, authorisation.
//!
//! Every test asserts three things: the answer (or the close) that is due, that nothing was stored
//! or cached, and that the next client is served. What a hostile *connection* may cost (time,
//! memory, descriptors) is in `raw_connections.rs`.

mod common;

use std::time::Duration;

use common::proxy::{OTHER_VOLUME, StoreSpec};
use common::{
    Answer, Client, Ending, OPERATOR, OTHER, Proxy, READ_ONLY, READ_WRITE, Setup, VOLUME, pattern,
};

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

fn put_with(fields: &[&str], body: &str) -> Vec<u8> {
    let mut bytes = head(&format!("PUT /{VOLUME}/abuse HTTP/1.1"), fields);
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

fn get_with(fields: &[&str]) -> Vec<u8> {
    head(&format!("GET /{VOLUME}/abuse HTTP/1.1"), fields)
}

/// Sends `bytes` and demands one answer of `statuses`, then the end of the connection with not one
/// byte more: whatever followed the bad request must never be read as another.
fn assert_refused_and_closed(proxy: &Proxy, name: &str, bytes: &[u8], statuses: &[u16]) {
    let mut client = proxy.client();
    client.send(bytes);
    match client.ending("GET", SOON) {
        Ending::Answered(answer) => {
            assert!(
                statuses.contains(&answer.status),
                "{name}: status {}, not of {statuses:?}",
                answer.status
            );
        }
        other => panic!("{name}: {other:?} instead of a status of {statuses:?}"),
    }
    assert!(
        client.closes_within(SOON),
        "{name}: the connection went on after the refusal"
    );
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
fn ambiguous_lengths_are_refused() {
    let proxy = Setup::default().start();
    let smuggled = format!("GET /{VOLUME}/victim HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let chunked = format!("5\r\nhello\r\n0\r\n\r\n{smuggled}");
    let stored = proxy.stored_file_count();
    let cases: &[(&str, Vec<u8>, &[u16])] = &[
        (
            "length and chunked",
            put_with(
                &["Content-Length: 5", "Transfer-Encoding: chunked"],
                &chunked,
            ),
            &[400],
        ),
        (
            "chunked and length",
            put_with(
                &["Transfer-Encoding: chunked", "Content-Length: 5"],
                &chunked,
            ),
            &[400],
        ),
        (
            "two lengths",
            put_with(&["Content-Length: 5", "Content-Length: 6"], "helloo"),
            &[400],
        ),
        (
            "one length twice",
            put_with(&["Content-Length: 5", "Content-Length: 5"], "hello"),
            &[400],
        ),
        ("5,5", put_with(&["Content-Length: 5,5"], "hello"), &[400]),
        ("5, 6", put_with(&["Content-Length: 5, 6"], "hello"), &[400]),
        ("+5", put_with(&["Content-Length: +5"], "hello"), &[400]),
        ("-1", put_with(&["Content-Length: -1"], "hello"), &[400]),
        ("0x5", put_with(&["Content-Length: 0x5"], "hello"), &[400]),
        ("5 5", put_with(&["Content-Length: 5 5"], "hello"), &[400]),
        ("5.0", put_with(&["Content-Length: 5.0"], "hello"), &[400]),
        (
            "empty length",
            put_with(&["Content-Length: "], "hello"),
            &[400],
        ),
        // Both say that the number is absurd; which of them is the server's choice.
        (
            "2^64",
            put_with(&["Content-Length: 18446744073709551616"], "hello"),
            &[400, 413],
        ),
        (
            "2^64 + 5",
            put_with(&["Content-Length: 18446744073709551621"], "hello"),
            &[400, 413],
        ),
        (
            "2^63",
            put_with(&["Content-Length: 9223372036854775808"], "hello"),
            &[400, 413],
        ),
        (
            "on a GET too",
            get_with(&["Content-Length: 5", "Transfer-Encoding: chunked"]),
            &[400],
        ),
        ("5,5 on a GET", get_with(&["Content-Length: 5,5"]), &[400]),
    ];
    for (name, bytes, statuses) in cases {
        assert_refused_and_closed(&proxy, name, bytes, statuses);
    }
    assert_nothing_happened(&proxy, stored);
}

#[test]
fn odd_transfer_codings_are_refused() {
    let proxy = Setup::default().start();
    let stored = proxy.stored_file_count();
    let old = format!("PUT /{VOLUME}/abuse HTTP/1.0");
    // 501 is what RFC 9112 section 6.1 asks for a coding that is not understood; 400 is as clear.
    // A body of unknown length gets 411: the quota is claimed before the first byte.
    let cases: &[(&str, Vec<u8>, &[u16])] = &[
        (
            "in HTTP/1.0",
            head(&old, &["Transfer-Encoding: chunked"]),
            &[400],
        ),
        (
            "gzip",
            put_with(&["Transfer-Encoding: gzip"], "hello"),
            &[400, 501],
        ),
        (
            "gzip, chunked",
            put_with(&["Transfer-Encoding: gzip, chunked"], "0\r\n\r\n"),
            &[400, 501],
        ),
        (
            "chunked twice",
            put_with(&["Transfer-Encoding: chunked, chunked"], "0\r\n\r\n"),
            &[400, 501],
        ),
        (
            "not last",
            put_with(&["Transfer-Encoding: chunked, identity"], "0\r\n\r\n"),
            &[400, 501],
        ),
        (
            "xchunked",
            put_with(&["Transfer-Encoding: xchunked"], "0\r\n\r\n"),
            &[400, 501],
        ),
        (
            "vertical tab",
            put_with(&["Transfer-Encoding: \x0bchunked"], "0\r\n\r\n"),
            &[400, 501],
        ),
        (
            "empty",
            put_with(&["Transfer-Encoding: "], "0\r\n\r\n"),
            &[400, 501],
        ),
        (
            "chunked, no length",
            put_with(&["Transfer-Encoding: chunked"], "5\r\nhello\r\n0\r\n\r\n"),
            &[411, 501],
        ),
        (
            "bad chunk size",
            put_with(&["Transfer-Encoding: chunked"], "zz\r\nhello\r\n0\r\n\r\n"),
            &[400, 411, 501],
        ),
        (
            "huge chunk",
            put_with(
                &["Transfer-Encoding: chunked"],
                "ffffffffffffffffff\r\nhello",
            ),
            &[400, 411, 501],
        ),
        ("no length at all", put_with(&[], ""), &[411]),
    ];
    for (name, bytes, statuses) in cases {
        assert_refused_and_closed(&proxy, name, bytes, statuses);
    }
    assert_nothing_happened(&proxy, stored);
}

#[test]
fn malformed_heads_are_refused() {
    let proxy = Setup::default().start();
    let stored = proxy.stored_file_count();
    let line = format!("GET /{VOLUME}/abuse HTTP/1.1");
    let raw = |text: String| text.into_bytes();
    let cases: &[(&str, Vec<u8>, &[u16])] = &[
        ("folded line", get_with(&["X-Folded: one", " two"]), &[400]),
        (
            "folded with a tab",
            get_with(&["X-Folded: one", "\ttwo"]),
            &[400],
        ),
        (
            "bare CR in a value",
            get_with(&["X-Bare: one\rtwo"]),
            &[400],
        ),
        (
            "bare CR hiding a field",
            get_with(&["X-Bare: one\rContent-Length: 5"]),
            &[400],
        ),
        (
            "bare LF between fields",
            get_with(&["X-Bare: one\nX-Two: two"]),
            &[400],
        ),
        (
            "bare LF everywhere",
            raw(format!("{line}\nHost: localhost\n\n")),
            &[400],
        ),
        ("NUL in a value", get_with(&["X-Nul: one\0two"]), &[400]),
        ("NUL in a name", get_with(&["X-N\0ul: one"]), &[400]),
        (
            "space before the colon",
            get_with(&["Content-Length : 5"]),
            &[400],
        ),
        ("tab before the colon", get_with(&["X-Tab\t: 5"]), &[400]),
        (
            "space before the first field",
            raw(format!("{line}\r\n Host: localhost\r\n\r\n")),
            &[400],
        ),
        ("no colon", get_with(&["X-NoColon"]), &[400]),
        ("empty name", get_with(&[": value"]), &[400]),
        ("name with a space", get_with(&["X Name: value"]), &[400]),
        (
            "no Host",
            raw(format!(
                "{line}\r\nAuthorization: Bearer {READ_WRITE}\r\n\r\n"
            )),
            &[400],
        ),
        ("two Hosts", get_with(&["Host: elsewhere"]), &[400]),
        (
            "two spaces in the request line",
            head(&format!("GET  /{VOLUME}/abuse HTTP/1.1"), &[]),
            &[400],
        ),
        (
            "no version",
            head(&format!("GET /{VOLUME}/abuse"), &[]),
            &[400, 505],
        ),
        (
            "HTTP/2.0 in the request line",
            head(&format!("GET /{VOLUME}/abuse HTTP/2.0"), &[]),
            &[400, 505],
        ),
        (
            "lower-case version",
            head(&format!("GET /{VOLUME}/abuse http/1.1"), &[]),
            &[400, 505],
        ),
        (
            "NUL in the target",
            head(&format!("GET /{VOLUME}/ab\0use HTTP/1.1"), &[]),
            &[400],
        ),
        (
            "no method",
            head(&format!(" /{VOLUME}/abuse HTTP/1.1"), &[]),
            &[400],
        ),
    ];
    for (name, bytes, statuses) in cases {
        assert_refused_and_closed(&proxy, name, bytes, statuses);
    }
    assert_nothing_happened(&proxy, stored);
}

#[test]
fn oversized_heads_are_refused() {
    let proxy = Setup::default().start();
    let stored = proxy.stored_file_count();
    let fields: Vec<String> = (0..101)
        .map(|index| format!("X-Field-{index}: value"))
        .collect();
    let many: Vec<&str> = fields.iter().map(String::as_str).collect();
    let ten_thousand = "X: y\r\n".repeat(10_000);
    let cases: &[(&str, Vec<u8>, &[u16])] = &[
        (
            "17 KiB in one field",
            get_with(&[&format!("X-Long: {}", "v".repeat(17 * 1024))]),
            &[431],
        ),
        (
            "64 KiB in one field",
            get_with(&[&format!("X-Long: {}", "v".repeat(64 * 1024))]),
            &[431],
        ),
        (
            "a name of 17 KiB",
            get_with(&[&format!("{}: v", "n".repeat(17 * 1024))]),
            &[431],
        ),
        ("more than 100 fields", get_with(&many), &[431]),
        (
            "10,000 fields",
            get_with(&[ten_thousand.trim_end()]),
            &[431],
        ),
        // The target is part of the head: past the limit both statuses tell the truth.
        (
            "20 KiB target",
            head(
                &format!("GET /{VOLUME}/{} HTTP/1.1", "k".repeat(20 * 1024)),
                &[],
            ),
            &[414, 431],
        ),
        (
            "1 MiB target",
            head(
                &format!("GET /{VOLUME}/{} HTTP/1.1", "k".repeat(1 << 20)),
                &[],
            ),
            &[414, 431],
        ),
    ];
    for (name, bytes, statuses) in cases {
        assert_refused_and_closed(&proxy, name, bytes, statuses);
    }
    assert_nothing_happened(&proxy, stored);
}

/// Not HTTP/1 at all: a clean close, with or without a word, and soon once we end our side.
#[test]
fn other_protocols_are_let_go() {
    let proxy = Setup::default().start();
    let stored = proxy.stored_file_count();
    let client_hello = [
        &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..],
        &pattern(3, 194),
    ]
    .concat();
    let cases: &[(&str, Vec<u8>)] = &[
        (
            "HTTP/2 preface",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        ),
        ("TLS on the plain port", client_hello),
        ("noise", pattern(4, 4096)),
        ("zeros", vec![0; 4096]),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec()),
        ("blank lines", b"\r\n".repeat(2000)),
        (
            "SMTP",
            b"EHLO localhost\r\nMAIL FROM:<a@b>\r\n\r\n".to_vec(),
        ),
        ("nothing", Vec::new()),
    ];
    for (name, bytes) in cases {
        let mut client = proxy.client();
        client.send(bytes);
        client.half_close();
        match client.ending("GET", SOON) {
            Ending::Answered(answer) => assert!(
                [400, 431, 505].contains(&answer.status),
                "{name}: {}",
                answer.status
            ),
            Ending::Closed => continue,
            Ending::Silent => panic!("{name}: kept open"),
        }
        assert!(client.closes_within(SOON), "{name}: the connection went on");
    }
    assert_nothing_happened(&proxy, stored);
}

#[test]
fn plain_http_on_the_tls_port_is_let_go() {
    let proxy = Setup {
        tls: true,
        ..Setup::default()
    }
    .start();
    let mut client = Client::connect(proxy.address);
    client.send(get_with(&[]));
    // A TLS alert is no HTTP answer; reading it raw would be an error of this client, so read bytes.
    let mut received = 0;
    while let Ok(count @ 1..) = client.read_some() {
        received += count;
    }
    assert!(
        received < 1024,
        "{received} bytes in answer to plain HTTP on the TLS port"
    );
    proxy.assert_serves();
}

#[test]
fn unusual_but_legal_requests_are_understood() {
    let proxy = Setup::default().start();
    let body = pattern(5, 3000);
    proxy.put("legal", &body);
    let target = format!("/{VOLUME}/legal");
    let mut client = proxy.client();

    // RFC 9112 section 3.2.2: a server accepts the absolute form, whoever sends it.
    let answer = client.request("GET", &format!("http://localhost{target}"), &[], b"");
    assert!(
        [200, 400].contains(&answer.status),
        "absolute form: {}",
        answer.status
    );
    assert!(answer.status != 200 || answer.body == body);

    // Methods that mean nothing here are refused without harm to the connection or with a close.
    for method in ["BREW", "PATCH", "TRACE", "get", "OPTIONS"] {
        let mut client = proxy.client();
        let answer = client.request(method, &target, &[], b"");
        assert!(
            [400, 405, 501].contains(&answer.status),
            "{method}: {}",
            answer.status
        );
    }
    let mut client = proxy.client();
    client.send("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n");
    let refused = client.read_answer("GET").status;
    assert!(
        [400, 401, 403, 405, 501].contains(&refused),
        "CONNECT: {refused}"
    );

    // Optional white space, odd case, an empty value, HTTP/1.0: all legal.
    let odd = format!(
        "GET {target} HTTP/1.1\r\nhOsT:localhost\r\nAUTHORIZATION: \t Bearer {READ_WRITE} \t \r\nX-Empty:\r\n\r\n"
    );
    let mut client = proxy.client();
    client.send(odd);
    assert_eq!(client.read_answer("GET").body, body);
    let mut client = proxy.client();
    client.send(format!(
        "GET {target} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {READ_WRITE}\r\n\r\n"
    ));
    match client.ending("GET", SOON) {
        Ending::Answered(answer) => assert!(
            answer.status == 505 || answer.body == body,
            "{}",
            answer.status
        ),
        other => panic!("HTTP/1.0: {other:?}"),
    }
    assert!(
        client.closes_within(SOON),
        "HTTP/1.0 without keep-alive ends after the answer"
    );
    assert_eq!(proxy.get("legal").body, body);
}

#[test]
fn truncated_bodies_store_nothing() {
    let proxy = Setup::default().start();
    let stored = proxy.stored_file_count();
    let body = pattern(6, 3 << 20);
    // Within one block, at a block's edge, and one byte short.
    for sent in [0, 1, 1000, 1 << 20, (1 << 20) + 1, body.len() - 1] {
        for reset in [false, true] {
            let mut client = proxy.client();
            client.send(put_with(&[&format!("Content-Length: {}", body.len())], ""));
            client.send(&body[..sent]);
            if reset {
                client.reset();
                continue;
            }
            client.half_close();
            let ending = client.ending("PUT", SOON);
            let refused =
                matches!(ending, Ending::Closed) || matches!(ending.status(), Some(400 | 408));
            assert!(
                refused,
                "{sent} of {} bytes, then the end: {ending:?}",
                body.len()
            );
        }
    }
    assert_nothing_happened(&proxy, stored);
}

/// Reads what follows an early answer: the close, or, when the server read the body away, exactly
/// the answer to the good request that is sent then. Bytes of the body never count as a request.
fn assert_body_is_not_parsed(client: &mut Client, victim: &[u8], name: &str) {
    client.send(format!(
        "GET /{VOLUME}/victim HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {READ_WRITE}\r\n\r\n"
    ));
    match client.ending("GET", SOON) {
        Ending::Closed => {}
        Ending::Answered(answer) => {
            assert_eq!(
                (answer.status, answer.body == victim),
                (200, true),
                "{name}: answered something else"
            );
        }
        Ending::Silent => panic!("{name}: neither served nor closed"),
    }
}

#[test]
fn bytes_of_an_unread_body_are_never_a_request() {
    let proxy = Setup::default().start();
    let victim = pattern(7, 2000);
    proxy.put("victim", &victim);
    let stored = proxy.stored_file_count();
    let delete = format!(
        "DELETE /{VOLUME}/victim HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {READ_WRITE}\r\n\r\n"
    );
    let small = delete.clone();
    let large = delete.repeat(10_000);
    for (size, body) in [("small", &small), ("large", &large)] {
        let length = format!("Content-Length: {}", body.len());
        let bad_token = format!(
            "PUT /{VOLUME}/abuse HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\n{length}\r\n\r\n{body}"
        );
        let bad_key = head(&format!("PUT /{VOLUME}/a/../b HTTP/1.1"), &[&length]);
        let missing_volume = head("PUT /no-such-volume/key HTTP/1.1", &[&length]);
        let mut get = head(&format!("GET /{VOLUME}/victim HTTP/1.1"), &[&length]);
        get.extend_from_slice(body.as_bytes());
        let cases: &[(&str, Vec<u8>)] = &[
            ("refused for its token", bad_token.into_bytes()),
            (
                "refused for its key",
                [bad_key, body.clone().into_bytes()].concat(),
            ),
            (
                "refused for its volume",
                [missing_volume, body.clone().into_bytes()].concat(),
            ),
            ("a cached GET with a body", get),
        ];
        for (what, bytes) in cases {
            let name = format!("{size} body, {what}");
            let mut client = proxy.client();
            client.send(bytes);
            match client.ending("GET", SOON) {
                // 200: a GET's body is read and ignored. The rest: refused, each for its reason.
                Ending::Answered(answer) => {
                    assert!(
                        [200, 400, 401, 403, 404, 413].contains(&answer.status),
                        "{name}: {}",
                        answer.status
                    );
                    assert!(
                        answer.status != 200 || answer.body == victim,
                        "{name}: wrong body"
                    );
                }
                // With megabytes unread, a reset may overtake the answer on its way to us.
                Ending::Closed if size == "large" => continue,
                other => panic!("{name}: {other:?}"),
            }
            assert_body_is_not_parsed(&mut client, &victim, &name);
        }
    }
    assert_eq!(
        proxy.get("victim").body,
        victim,
        "the smuggled DELETE was carried out"
    );
    assert_nothing_happened(&proxy, stored);
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
            [400, 405, 501].contains(&answer.status),
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
        "/",
        "//",
        "//vol/key",
        "/vol%2Fkey",
        "/VOL/key",
        "/-/no-such-thing",
        "*",
    ] {
        let answer = proxy.request("GET", target, &[], b"");
        // 501: listing volumes is not there yet, and is not a way to read one either.
        assert!(
            [400, 401, 403, 404, 501].contains(&answer.status),
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

#[test]
fn authorisation_comes_before_the_body_and_on_hits() {
    let proxy = Setup::default().start();
    let body = pattern(9, 2000);
    proxy.put("guarded", &body);
    assert_eq!(proxy.get("guarded").body, body);
    let stored = proxy.stored_file_count();
    let wrong_last = format!("Bearer {}x", &READ_WRITE[..READ_WRITE.len() - 1]);
    let longer = format!("Bearer {READ_WRITE}0");
    let no_scheme = READ_WRITE.to_string();
    let basic = format!("Basic {READ_WRITE}");
    let other = format!("Bearer {OTHER}");
    let operator = format!("Bearer {OPERATOR}");
    let tokens = [
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer ",
        &wrong_last,
        &longer,
        &no_scheme,
        &basic,
        &other,
        &operator,
    ];
    for token in tokens {
        let token = [("Authorization", token)];
        // A cached key, a key that does not exist, and both ways of asking: no answer differs.
        let refusals = [
            ("GET", "guarded"),
            ("GET", "missing"),
            ("HEAD", "guarded"),
            ("DELETE", "guarded"),
            ("PUT", "abuse"),
        ]
        .map(|(method, key)| {
            proxy
                .request(method, &format!("/{VOLUME}/{key}"), &token, b"")
                .status
        });
        assert!([401, 403].contains(&refusals[0]), "{token:?}: {refusals:?}");
        assert!(
            refusals.iter().all(|status| *status == refusals[0]),
            "{token:?} tells keys apart: {refusals:?}"
        );
    }
    let read_only = format!("Bearer {READ_ONLY}");
    let read_only = [("Authorization", read_only.as_str())];
    let target = format!("/{VOLUME}/guarded");
    assert_eq!(proxy.request("GET", &target, &read_only, b"").body, body);
    assert_eq!(proxy.request("HEAD", &target, &read_only, b"").status, 200);
    for (method, key) in [("PUT", "abuse"), ("PUT", "guarded"), ("DELETE", "guarded")] {
        let answer = proxy.request(method, &format!("/{VOLUME}/{key}"), &read_only, b"");
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (403, "AccessDenied"),
            "{method} {key}"
        );
    }
    let other = [("Authorization", other.as_str())];
    assert_eq!(
        proxy
            .request("GET", &format!("/{OTHER_VOLUME}/guarded"), &other, b"")
            .status,
        404
    );
    assert_eq!(proxy.get("guarded").body, body);
    assert_nothing_happened(&proxy, stored);
}

#[test]
fn refused_writes_are_answered_before_their_body_and_without_100() {
    let proxy = Setup::default().start();
    let stored = proxy.stored_file_count();
    let read_only = format!("Authorization: Bearer {READ_ONLY}");
    for (name, authorisation) in [
        ("none", ""),
        ("wrong", "Authorization: Bearer wrong"),
        ("read-only", read_only.as_str()),
    ] {
        for expect in ["", "Expect: 100-continue\r\n"] {
            let mut client = proxy.client();
            let field = if authorisation.is_empty() {
                String::new()
            } else {
                format!("{authorisation}\r\n")
            };
            client.send(format!(
                "PUT /{VOLUME}/abuse HTTP/1.1\r\nHost: localhost\r\n{field}{expect}Content-Length: 100000000\r\n\r\n"
            ));
            // Not one byte of the body is sent: an answer must come all the same, and be the last word.
            let answer = client.read_answer("PUT");
            assert!(
                [401, 403].contains(&answer.status),
                "token {name}, {expect:?}: {}",
                answer.status
            );
        }
    }
    let mut client = proxy.client();
    client.send(put_with(&["Expect: 100-continue", "Content-Length: 5"], ""));
    assert_eq!(
        client.read_answer("PUT").status,
        100,
        "a good request is told to go on"
    );
    // An unknown expectation: 417, or ignored as RFC 9110 section 10.1.1 allows.
    let mut client = proxy.client();
    client.send(put_with(&["Expect: miracles", "Content-Length: 0"], ""));
    let status = client.read_answer("PUT").status;
    assert!(
        [200, 400, 417].contains(&status),
        "unknown expectation: {status}"
    );
    if status == 200 {
        assert_eq!(
            proxy
                .request("DELETE", &format!("/{VOLUME}/abuse"), &[], b"")
                .status,
            204
        );
    }
    assert_nothing_happened(&proxy, stored);
}

#[test]
fn control_requests_need_the_operator() {
    let proxy = Setup::default().start();
    let data_token = format!("Bearer {READ_WRITE}");
    let guarded = [
        ("GET", "/-/metrics"),
        ("GET", "/-/status"),
        ("GET", "/-/"),
        ("GET", "/-/dirty"),
        ("POST", "/-/flush"),
        ("POST", "/-/drain"),
        ("POST", "/-/evict"),
        ("POST", "/-/warm"),
    ];
    for (method, target) in guarded {
        for token in ["", "Bearer wrong", &data_token] {
            let answer = proxy.request(method, target, &[("Authorization", token)], b"");
            // A page that this version does not have may be unknown to everybody alike.
            assert!(
                [401, 403, 404, 501].contains(&answer.status),
                "{method} {target} with {token:?}: {}",
                answer.status
            );
        }
    }
    for target in ["/-/metrics", "/-/status"] {
        let answer = proxy.request("GET", target, &[("Authorization", "")], b"");
        assert!(
            [401, 403].contains(&answer.status),
            "{target} without a token: {}",
            answer.status
        );
        assert_eq!(proxy.operator("GET", target).status, 200, "{target}");
    }
    for (target, status) in [
        ("/-/ping", 204),
        ("/-/healthz", 200),
        ("/-/readyz", 200),
        ("/-/topology", 200),
    ] {
        let answer = proxy.request("GET", target, &[("Authorization", "")], b"");
        assert_eq!(answer.status, status, "{target} needs no token");
    }
    proxy.assert_serves();
}
