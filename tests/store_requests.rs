//! What leaves for an S3 store, and over which connections.
//!
//! A scripted server plays the store and keeps what it was sent: how uploads can be verified, what
//! the signature covers, which headers never leave, whose certificates are believed.

mod scripted_server;

use forebay::store::{S3Spec, StoreSpec, UploadCheck, build};
use forebay_io::store::{PutRequest, StoreErrorKind as Kind, StoreResult};
use scripted_server::client::{
    ONCE, THRICE, object, read, refused, run, scripted, spec, stored, streamed, wanted, whole,
};
use scripted_server::{Act, Server, answer};
use std::io::{Read, Write};
use std::sync::Arc;

#[test]
fn good_answers_share_one_connection() {
    run(async {
        let (server, store) = scripted(vec![Act::Send(object(b"hello")); 5], ONCE).await;
        for _ in 0..5 {
            assert_eq!(read(store.as_ref(), wanted(None)).await.0, b"hello");
        }
        assert_eq!(server.connections(), 1);
    });
}

#[test]
fn the_environments_proxy_is_not_asked() {
    // In a process of its own: the environment belongs to all tests.
    if std::env::var_os("FOREBAY_TEST_PROXY_CHILD").is_some() {
        run(async {
            let (server, store) = scripted(vec![Act::Send(object(b"hello"))], ONCE).await;
            assert_eq!(read(store.as_ref(), wanted(None)).await.0, b"hello");
            assert_eq!(server.connections(), 1);
        });
        return;
    }
    let executable = std::env::current_exe().expect("this test");
    let outcome = std::process::Command::new(executable)
        .args(["--exact", "the_environments_proxy_is_not_asked"])
        .env("FOREBAY_TEST_PROXY_CHILD", "1")
        .env("http_proxy", "http://127.0.0.1:1")
        .env("ALL_PROXY", "http://127.0.0.1:1")
        .output();
    let outcome = outcome.expect("it starts");
    assert!(
        outcome.status.success(),
        "{}",
        String::from_utf8_lossy(&outcome.stdout)
    );
}

const CRC: &str = "x-amz-checksum-crc64nvme";

/// A PUT with a checksum; the scripted server does not care that it is made up.
fn checked() -> PutRequest {
    PutRequest {
        crc64nvme: Some(0x0102_0304_0506_0708),
        ..whole("hello")
    }
}

/// The answer of a store that verified the checksum of [`checked`].
fn echoing() -> Vec<u8> {
    answer(200, &[("ETag", "\"t\""), (CRC, "AQIDBAUGBwg=")], b"")
}

#[test]
fn uploads_are_verified_in_the_way_the_store_knows() {
    run(async {
        // It echoes: the checksum stays.
        let (server, store) = scripted(vec![Act::Send(echoing()); 2], ONCE).await;
        store.put(checked()).await.expect("verified");
        store.put(checked()).await.expect("verified");
        for seen in server.seen() {
            assert_eq!(seen.header(CRC), Some("AQIDBAUGBwg="));
            assert!(
                seen.head
                    .contains("X-Amz-SignedHeaders=host%3Bx-amz-checksum-crc64nvme")
            );
        }
        let digests = server
            .seen()
            .into_iter()
            .map(|seen| seen.header("content-md5").is_some());
        let digests: Vec<bool> = digests.collect();
        assert_eq!(
            digests,
            [true, false],
            "until it has shown that it verifies"
        );
        // It does not: Content-MD5 alone from then on.
        let (server, store) = scripted(vec![Act::Send(stored()); 2], ONCE).await;
        store.put(checked()).await.expect("written");
        store.put(checked()).await.expect("written");
        let seen = server.seen();
        assert!(seen[0].header(CRC).is_some() && seen[1].header(CRC).is_none());
        assert!(seen[0].header("content-md5").is_some());
        assert_eq!(
            seen[1].header("content-md5"),
            Some("XUFAKrxLKna5cZ2REBfFkg==")
        );
    });
}

#[test]
fn the_clients_checksum_goes_with_a_stream_to_a_store_that_verifies() {
    run(async {
        const SHA: &str = "x-amz-checksum-sha256";
        let told = |request: PutRequest| PutRequest {
            headers: vec![(SHA.to_owned(), "c2hh".to_owned())],
            ..request
        };
        let script = vec![
            Act::Send(stored()),
            Act::Send(echoing()),
            Act::Send(stored()),
            Act::Send(stored()),
        ];
        let (server, store) = scripted(script, ONCE).await;
        for request in [
            // It is not known to verify any yet; such a header may be all that it refuses.
            told(streamed("hello")),
            checked(),
            told(streamed("hello")),
            // What is in memory has ours.
            told(checked()),
        ] {
            store.put(request).await.expect("written");
        }
        let sent: Vec<_> = server
            .seen()
            .iter()
            .map(|seen| (seen.header(CRC).is_some(), seen.header(SHA).is_some()))
            .collect();
        let expected = [(false, false), (true, false), (false, true), (true, false)];
        assert_eq!(sent, expected);
        assert!(server.seen()[2].head.contains("x-amz-checksum-sha256"));
    });
}

#[test]
fn checksums_that_a_store_tells_belong_to_the_object() {
    run(async {
        let headers = [
            ("ETag", "\"t\""),
            ("x-amz-checksum-crc32", "y/Q5Jg=="),
            ("x-amz-checksum-type", "FULL_OBJECT"),
            ("x-amz-checksum-oddity", "kept as it is told"),
        ];
        let described = answer(200, &headers, b"123456789");
        let (server, store) = scripted(vec![Act::Send(described); 2], ONCE).await;
        let read = store.get(wanted(None)).await.expect("the object");
        let kept: Vec<&str> = read.meta.headers.iter().map(|(n, _)| n.as_str()).collect();
        assert!(kept.contains(&"x-amz-checksum-crc32") && kept.contains(&"x-amz-checksum-type"));
        let seen = server.seen();
        assert_eq!(seen[0].header("x-amz-checksum-mode"), Some("ENABLED"));
        let mut bare = read.meta.clone();
        bare.headers.retain(|(name, _)| name == "content-type");
        assert!(!bare.has_checksum());
        bare.inherit_checksum(&read.meta);
        assert!(bare.has_checksum());
        let count = bare.headers.len();
        bare.inherit_checksum(&read.meta);
        assert_eq!(bare.headers.len(), count, "once");
    });
}

#[test]
fn what_the_store_says_about_a_checksum_is_heeded() {
    run(async {
        // It refuses the header: sent again without.
        let script = vec![
            Act::Send(refused(501, "NotImplemented")),
            Act::Send(stored()),
        ];
        let (server, store) = scripted(script, ONCE).await;
        store.put(checked()).await.expect("sent again without");
        assert!(server.seen()[1].header(CRC).is_none());
        // It found damage: that is no reason to stop asking.
        let script = vec![Act::Send(refused(400, "BadDigest")), Act::Send(echoing())];
        let (server, store) = scripted(script, THRICE).await;
        store.put(checked()).await.expect("the second is good");
        assert!(server.seen()[1].header(CRC).is_some());
        // It stored something else.
        let other = PutRequest {
            crc64nvme: Some(1),
            ..whole("hello")
        };
        let (_server, store) = scripted(vec![Act::Send(echoing())], ONCE).await;
        assert_eq!(
            store.put(other).await.expect_err("other bytes").kind,
            Kind::Corrupt
        );
        // It was told not to ask.
        let server = Server::start([Act::Send(stored())]).await;
        let spec = S3Spec {
            upload_check: UploadCheck::Nothing,
            ..spec(&server.url(), ONCE)
        };
        let store = build(&StoreSpec::S3(spec)).expect("a good spec");
        store.put(checked()).await.expect("written");
        let seen = server.seen();
        assert!(seen[0].header(CRC).is_none() && seen[0].header("content-md5").is_none());
    });
}

#[test]
fn encryption_and_session_are_asked_for_under_the_signature() {
    run(async {
        let server = Server::start([Act::Send(stored())]).await;
        let mut spec = spec(&server.url(), ONCE);
        spec.sse = true;
        spec.session_token = Some("a token".into());
        let store = build(&StoreSpec::S3(spec)).expect("a good spec");
        let mut request = whole("x");
        request.headers = vec![("x-amz-meta-a".into(), "b".into())];
        store.put(request).await.expect("written");
        let seen = server.seen().remove(0);
        assert_eq!(seen.header("x-amz-server-side-encryption"), Some("AES256"));
        assert!(
            seen.head
                .contains("host%3Bx-amz-meta-a%3Bx-amz-server-side-encryption")
        );
        assert!(seen.head.contains("X-Amz-Security-Token=a%20token"));
    });
}

#[test]
fn headers_that_are_not_an_objects_are_not_sent() {
    run(async {
        let (server, store) = scripted(vec![Act::Send(stored())], ONCE).await;
        for (name, value) in [
            ("x-amz-acl", "public-read"),
            ("authorization", "x"),
            ("host", "other"),
            ("Content-Type", "upper"),
            ("content-type", "a\r\nx: y"),
            ("x-amz-meta-a b", "c"),
        ] {
            let mut request = whole("x");
            request.headers = vec![(name.into(), value.into())];
            let error = store.put(request).await.expect_err(name);
            assert_eq!(error.kind, Kind::Rejected, "{name}");
        }
        assert_eq!(server.connections(), 0);
    });
}

/// One TLS answer to one request, by a certificate for `name`; gives the URL and the certificate.
fn tls_server(name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.expect("a key"))
        .expect("they fit");
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept()?;
        let mut connection =
            rustls::ServerConnection::new(config).map_err(std::io::Error::other)?;
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        // The head fits; a client that does not trust us ends the handshake here.
        let _ = stream.read(&mut [0; 4096])?;
        stream.write_all(&object(b"hello"))?;
        stream.flush()
    });
    (format!("https://localhost:{port}"), made.cert.pem())
}

#[test]
fn only_a_store_with_a_certificate_we_trust_is_talked_to() {
    let outcome = |name: &str, is_trusted: bool| -> StoreResult<Vec<u8>> {
        let (url, pem) = tls_server(name);
        let mut spec = spec(&url, ONCE);
        spec.ca_pem = is_trusted.then(|| pem.into_bytes());
        run(async {
            let store = build(&StoreSpec::S3(spec)).expect("the system has authorities");
            match read(store.as_ref(), wanted(None)).await {
                (bytes, None) => Ok(bytes),
                (_, Some(error)) => Err(error),
            }
        })
    };
    assert_eq!(outcome("localhost", true).expect("trusted"), b"hello");
    let unknown = outcome("localhost", false).expect_err("nobody vouches for it");
    assert_eq!(unknown.kind, Kind::Unreachable, "{unknown}");
    let other = outcome("other.example", true).expect_err("a certificate for another name");
    assert_eq!(other.kind, Kind::Unreachable, "{other}");
}

#[test]
fn a_bad_authority_file_is_refused_at_once() {
    for pem in [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let mut spec = spec("https://localhost:1", ONCE);
        spec.ca_pem = Some(pem.into());
        let refusal = build(&StoreSpec::S3(spec)).err().expect("no authority");
        assert!(refusal.to_string().contains("certificate"), "{refusal}");
    }
}

#[test]
fn a_head_asks_for_the_checksum_and_takes_only_that_of_the_whole() {
    run(async {
        let described = |lines: &[(&str, &str)]| {
            let mut head = String::from("HTTP/1.1 200 OK\r\nETag: \"t\"\r\nContent-Length: 5\r\n");
            for (name, value) in lines {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            Act::Send(head.into_bytes())
        };
        let checksum = (CRC, "AQIDBAUGBwg=");
        let script = vec![
            described(&[checksum]),
            described(&[checksum, ("x-amz-checksum-type", "FULL_OBJECT")]),
            described(&[checksum, ("x-amz-checksum-type", "COMPOSITE")]),
            described(&[(CRC, "AQIDBAUGBwg=-2")]),
            described(&[]),
        ];
        let (server, store) = scripted(script, ONCE).await;
        let known = Some(0x0102_0304_0506_0708);
        for expected in [known, known, None, None, None] {
            let head = store.head("k".into()).await.expect("described");
            assert_eq!((head.crc64nvme, head.meta.size), (expected, 5));
        }
        for seen in server.seen() {
            assert_eq!(seen.header("x-amz-checksum-mode"), Some("ENABLED"));
            assert!(
                seen.head
                    .contains("X-Amz-SignedHeaders=host%3Bx-amz-checksum-mode")
            );
        }
    });
}
