//! Who may do what: tokens on volumes, the operator's token, and when they are checked.
//!
//! A refusal comes before the body is read, is the same for keys that exist and keys that do not,
//! and is the same whether the bytes are in the cache or not.

mod common;

use common::proxy::OTHER_VOLUME;
use common::{OPERATOR, OTHER, Proxy, READ_ONLY, READ_WRITE, Setup, VOLUME, pattern};

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
