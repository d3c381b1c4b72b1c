//! The stub as a bucket: what it stores, what it refuses, and that it refuses as S3 does.

mod common;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use base64::Engine;
use common::{connect, presigned_target, read_answer, send, signed};
use forebay_bench::content::Content;
use forebay_bench::stub::{Stub, StubHandle, StubOptions};

fn start() -> StubHandle {
    Stub::start(StubOptions::default()).expect("the stub starts")
}

fn start_open(synthetic: bool) -> StubHandle {
    Stub::start(StubOptions {
        auth: false,
        synthetic,
        ..StubOptions::default()
    })
    .expect("the stub starts")
}

#[test]
fn an_object_comes_back_with_its_headers_and_goes_when_deleted() {
    let stub = start();
    let headers = [("Content-Type", "text/plain"), ("x-amz-meta-owner", "me")];
    let put = signed(&stub, "PUT", "a/b c", &headers, b"hello");
    assert_eq!((put.status, put.broken), (200, None), "{put:?}");
    assert_eq!(
        put.header("etag"),
        Some("\"5d41402abc4b2a76b9719d911017c592\"")
    );
    let get = signed(&stub, "GET", "a/b c", &[], b"");
    assert_eq!(
        (get.status, get.body.as_slice()),
        (200, b"hello".as_slice())
    );
    assert_eq!(get.header("content-type"), Some("text/plain"));
    assert_eq!(get.header("x-amz-meta-owner"), Some("me"));
    assert!(get.header("x-amz-request-id").is_some() && get.header("last-modified").is_some());
    let head = signed(&stub, "HEAD", "a/b c", &[], b"");
    assert_eq!(
        (head.status, head.body.len(), head.header("content-length")),
        (200, 0, Some("5"))
    );
    assert_eq!(signed(&stub, "DELETE", "a/b c", &[], b"").status, 204);
    let gone = signed(&stub, "GET", "a/b c", &[], b"");
    assert_eq!((gone.status, gone.code()), (404, "NoSuchKey".into()));
    assert_eq!(stub.stats().key("bucket", "a/b c").gets, 2);
}

#[test]
fn ranges_and_preconditions_are_honoured() {
    let stub = start();
    let tag = stub.put_object("bucket", "k", "0123456789");
    let part = signed(&stub, "GET", "k", &[("Range", "bytes=2-4")], b"");
    assert_eq!(
        (part.status, part.body.as_slice()),
        (206, b"234".as_slice())
    );
    assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
    let tail = signed(&stub, "GET", "k", &[("Range", "bytes=-2")], b"");
    assert_eq!(tail.body, b"89");
    let beyond = signed(&stub, "GET", "k", &[("Range", "bytes=10-")], b"");
    assert_eq!(
        (beyond.status, beyond.header("content-range")),
        (416, Some("bytes */10"))
    );
    let get = |name: &str, value: &str| signed(&stub, "GET", "k", &[(name, value)], b"").status;
    assert_eq!(get("If-Match", &tag), 200);
    assert_eq!(get("If-Match", "\"other\""), 412);
    assert_eq!(get("If-None-Match", &tag), 304);
    assert_eq!(get("If-None-Match", "\"other\""), 200);
    assert_eq!(
        get("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"),
        304
    );
    assert_eq!(
        get("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        200
    );
    assert_eq!(
        get("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        412
    );
    let put = signed(&stub, "PUT", "k", &[("If-None-Match", "*")], b"new");
    assert_eq!((put.status, put.code()), (412, "PreconditionFailed".into()));
    assert_eq!(
        stub.object("bucket", "k").unwrap().bytes(),
        "0123456789",
        "a refused PUT changes nothing"
    );
}

#[test]
fn every_checksum_is_verified_and_a_wrong_one_stores_nothing() {
    let stub = start();
    // Published check values of "123456789".
    let crc = |hexadecimal: &str| {
        base64::engine::general_purpose::STANDARD.encode(hex::decode(hexadecimal).unwrap())
    };
    let digests = [
        ("x-amz-checksum-crc64nvme", crc("ae8b14860a799888")),
        ("x-amz-checksum-crc32c", crc("e3069283")),
        ("x-amz-checksum-crc32", crc("cbf43926")),
        (
            "x-amz-checksum-sha256",
            crc("15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ),
        ("Content-MD5", crc("25f9e794323b453885f5181f1b624d0b")),
    ];
    for (name, value) in &digests {
        let good = signed(&stub, "PUT", "good", &[(name, value)], b"123456789");
        assert_eq!(good.status, 200, "{name}: {good:?}");
        let bad = signed(&stub, "PUT", "bad", &[(name, value)], b"123456788");
        assert_eq!(
            (bad.status, bad.code()),
            (400, "BadDigest".into()),
            "{name}"
        );
        let odd = signed(&stub, "PUT", "bad", &[(name, "AAA=")], b"123456789");
        assert_eq!(
            (odd.status, odd.code()),
            (400, "InvalidDigest".into()),
            "{name}"
        );
    }
    assert_eq!(stub.keys("bucket"), ["good"]);
}

#[test]
fn signatures_are_demanded_for_the_very_request() {
    let stub = start();
    stub.put_object("bucket", "k", "x");
    let hour = Duration::from_secs(3600);
    let target = presigned_target(&stub, "GET", "k", &[], hour);
    let get = |target: &str, headers: &[(&str, &str)]| {
        let answer = send(stub.addr(), "GET", target, headers, b"");
        (answer.status, answer.code())
    };
    assert_eq!(get(&target, &[]).0, 200);
    assert_eq!(get("/bucket/k", &[]), (403, "AccessDenied".into()));
    assert_eq!(
        get(&target.replace("/k?", "/l?"), &[]),
        (403, "SignatureDoesNotMatch".into())
    );
    assert_eq!(
        get(&target, &[("Host", "elsewhere")]),
        (403, "SignatureDoesNotMatch".into())
    );
    assert_eq!(
        get(&target, &[("x-amz-acl", "public-read")]),
        (403, "AccessDenied".into())
    );
    assert_eq!(
        send(stub.addr(), "DELETE", &target, &[], b"").code(),
        "SignatureDoesNotMatch"
    );
    stub.set_clock_offset_s(-16 * 60);
    assert_eq!(
        get(&target, &[]),
        (403, "AccessDenied".into()),
        "not yet valid"
    );
    stub.set_clock_offset_s(2 * 3600);
    assert_eq!(get(&target, &[]), (403, "AccessDenied".into()), "expired");
    assert_eq!(stub.log().iter().filter(|entry| entry.signed).count(), 7);
}

#[test]
fn keys_reach_the_store_byte_for_byte() {
    let stub = start();
    for key in [
        "a+b",
        "a%2Fb",
        "ü/€",
        "a&b=c?d#e",
        "sp ace",
        "~-_.",
        "a//b",
        "x/",
    ] {
        let put = signed(&stub, "PUT", key, &[], key.as_bytes());
        assert_eq!(put.status, 200, "{key}: {put:?}");
        assert_eq!(
            stub.object("bucket", key).expect(key).bytes(),
            key.as_bytes()
        );
    }
}

#[test]
fn a_wrong_region_secret_or_bucket_is_refused() {
    let stub = start();
    let other = Stub::start(StubOptions {
        secret_key: "other".into(),
        buckets: vec!["bucket".into(), "second".into()],
        ..StubOptions::default()
    })
    .unwrap();
    let host = stub.addr().to_string();
    let target = presigned_target(&stub, "GET", "k", &[], Duration::from_secs(60));
    assert_eq!(
        send(other.addr(), "GET", &target, &[("Host", &host)], b"").code(),
        "SignatureDoesNotMatch"
    );
    let open = start_open(false);
    assert_eq!(
        send(open.addr(), "GET", "/nowhere/k", &[], b"").code(),
        "NoSuchBucket"
    );
    assert_eq!(
        send(open.addr(), "PUT", "/nowhere/k", &[], b"x").code(),
        "NoSuchBucket"
    );
}

#[test]
fn listing_pages_through_keys_in_order() {
    let stub = start_open(false);
    for number in 0..5 {
        stub.put_object("bucket", &format!("p/{number}"), "x");
    }
    stub.put_object("bucket", "q<&", "x");
    let list = |query: &str| {
        let answer = send(
            stub.addr(),
            "GET",
            &format!("/bucket?list-type=2{query}"),
            &[],
            b"",
        );
        assert_eq!(answer.status, 200);
        String::from_utf8(answer.body).unwrap()
    };
    let first = list("&prefix=p/&max-keys=3");
    assert!(first.contains("<IsTruncated>true</IsTruncated>"), "{first}");
    assert!(
        first.contains("<NextContinuationToken>p/2</NextContinuationToken>"),
        "{first}"
    );
    let second = list("&prefix=p/&continuation-token=p/2");
    assert_eq!(second.matches("<Key>").count(), 2, "{second}");
    assert!(list("&prefix=q").contains("<Key>q&lt;&amp;</Key>"));
}

#[test]
fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let stub = start_open(false);
    let mut stream = connect(stub.addr());
    let put = "PUT /bucket/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
    let get = "GET /bucket/k HTTP/1.1\r\nHost: h\r\n\r\n";
    let last = "GET /bucket/none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    stream
        .write_all(format!("{put}{get}{last}").as_bytes())
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let statuses: Vec<&str> = text
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| &answer[..3])
        .collect();
    assert_eq!(statuses, ["200", "200", "404"]);
    assert_eq!(stub.stats().connections, 1);
}

#[test]
fn the_body_is_asked_for_only_when_it_will_be_taken() {
    let stub = start();
    let target = presigned_target(&stub, "PUT", "k", &[], Duration::from_secs(60));
    let head = |target: &str| {
        format!(
            "PUT {target} HTTP/1.1\r\nHost: {}\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
            stub.addr()
        )
    };
    let mut stream = connect(stub.addr());
    stream.write_all(head(&target).as_bytes()).unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").unwrap();
    assert_eq!(read_answer(&mut stream).status, 200);
    let mut stream = connect(stub.addr());
    stream.write_all(head("/bucket/k").as_bytes()).unwrap();
    assert_eq!(
        read_answer(&mut stream).status,
        403,
        "a stranger is refused at once"
    );
}

#[test]
fn bodies_without_a_length_are_refused() {
    let stub = start_open(false);
    for (header, status) in [
        ("Transfer-Encoding: chunked", 501),
        ("X-Nothing: 1", 411),
        ("Content-Length: 5,5", 400),
    ] {
        let mut stream = connect(stub.addr());
        let head = format!("PUT /bucket/k HTTP/1.1\r\nHost: h\r\n{header}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut stream).status, status, "{header}");
    }
    assert!(stub.keys("bucket").is_empty());
}

#[test]
fn synthetic_objects_exist_and_can_be_verified_at_any_offset() {
    let stub = start_open(true);
    let key = "synthetic/600000/a";
    let whole = send(stub.addr(), "GET", &format!("/bucket/{key}"), &[], b"");
    assert_eq!((whole.status, whole.body.len()), (200, 600_000));
    assert_eq!(Content::of_key(key).first_difference(0, &whole.body), None);
    let part = send(
        stub.addr(),
        "GET",
        &format!("/bucket/{key}"),
        &[("Range", "bytes=4097-300000")],
        b"",
    );
    assert_eq!((part.status, part.body.len()), (206, 295_904));
    assert_eq!(
        Content::of_key(key).first_difference(4097, &part.body),
        None
    );
    assert_eq!(part.header("etag"), whole.header("etag"));
    assert_eq!(
        send(
            start_open(false).addr(),
            "GET",
            &format!("/bucket/{key}"),
            &[],
            b""
        )
        .status,
        404
    );
}

#[test]
fn latency_and_shutdown_keep_their_word() {
    let stub = Stub::start(StubOptions {
        latency: Duration::from_millis(80),
        ..StubOptions::default()
    })
    .unwrap();
    stub.put_object("bucket", "k", "x");
    let begun = Instant::now();
    assert_eq!(signed(&stub, "GET", "k", &[], b"").status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(80));
    let address = stub.addr();
    let _idle = connect(address);
    drop(stub);
    assert!(
        std::net::TcpStream::connect(address).is_err(),
        "a dropped stub listens no more"
    );
}
