//! The stub as an enemy: each fault does to the client exactly what it says, and nothing to the store that it does not.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use common::{connect, send, signed};
use forebay_bench::stub::{Action, Fault, Stub, StubHandle, StubOptions};

const BODY: &str = "0123456789";

fn start() -> StubHandle {
    let stub = Stub::start(StubOptions::default()).expect("the stub starts");
    stub.put_object("bucket", "k", BODY);
    stub
}

/// A GET of `k` from a fresh stub with one fault.
fn get_with(action: Action) -> common::Answer {
    let stub = start();
    stub.add_fault(Fault::on("GET", "*").then(action));
    signed(&stub, "GET", "k", &[], b"")
}

#[test]
fn refusals_carry_status_code_and_retry_after_and_end_after_their_count() {
    let stub = start();
    let refusal = Action::Status {
        status: 503,
        code: None,
        retry_after_s: Some(7),
    };
    stub.add_fault(Fault::on("GET", "k").times(2).then(refusal));
    for _ in 0..2 {
        let answer = signed(&stub, "GET", "k", &[], b"");
        assert_eq!((answer.status, answer.code()), (503, "SlowDown".into()));
        assert_eq!(answer.header("retry-after"), Some("7"));
    }
    assert_eq!(signed(&stub, "GET", "k", &[], b"").status, 200);
    stub.add_fault(Fault::on("PUT", "*").then(Action::status(500)));
    assert_eq!(signed(&stub, "PUT", "new", &[], b"x").status, 500);
    assert!(
        stub.object("bucket", "new").is_none(),
        "a refused PUT stores nothing"
    );
    stub.clear_faults();
    assert_eq!(signed(&stub, "PUT", "new", &[], b"x").status, 200);
    let stats = stub.stats();
    assert_eq!(
        (
            stats.requests["GET 503"],
            stats.requests["GET 200"],
            stats.requests["PUT 500"]
        ),
        (2, 1, 1)
    );
}

#[test]
fn a_cut_body_ends_at_the_byte_with_close_or_reset() {
    for after_bytes in [0, 1, 9, 10] {
        let closed = get_with(Action::Cut {
            after_bytes,
            reset: false,
        });
        assert_eq!(closed.status, 200);
        assert_eq!(closed.header("content-length"), Some("10"));
        assert_eq!(closed.body, BODY.as_bytes()[..after_bytes as usize]);
        assert_eq!(closed.broken, None);
        let reset = get_with(Action::Cut {
            after_bytes,
            reset: true,
        });
        assert_eq!(
            reset.broken,
            Some(ErrorKind::ConnectionReset),
            "cut at {after_bytes}"
        );
        assert!(reset.body.len() <= after_bytes as usize);
    }
}

#[test]
fn bodies_lie_in_length_content_and_headers() {
    let longer = get_with(Action::Extend { bytes: 3 });
    assert_eq!(
        (longer.header("content-length"), longer.body.as_slice()),
        (Some("10"), b"0123456789!!!".as_slice())
    );
    let shorter = get_with(Action::ContentLength { value: 12 });
    assert_eq!(
        (shorter.header("content-length"), shorter.body.len()),
        (Some("12"), 10)
    );
    let corrupt = get_with(Action::Corrupt { offset: 4 });
    assert_eq!(corrupt.body, b"0123556789");
    assert_eq!(
        get_with(Action::header("ETag", "\"wrong\"")).header("etag"),
        Some("\"wrong\"")
    );
    assert_eq!(
        get_with(Action::header("Content-Range", "bytes 0-1/2")).header("content-range"),
        Some("bytes 0-1/2")
    );
    assert_eq!(get_with(Action::header("ETag", "")).header("etag"), None);
    let portal = get_with(Action::CaptivePortal);
    assert_eq!(
        (portal.status, portal.header("content-type")),
        (200, Some("text/html"))
    );
    assert!(portal.body.starts_with(b"<!DOCTYPE html>"));
}

#[test]
fn a_range_can_be_overlooked() {
    let stub = start();
    stub.add_fault(Fault::on("GET", "k").then(Action::IgnoreRange));
    let answer = signed(&stub, "GET", "k", &[("Range", "bytes=0-1")], b"");
    assert_eq!(
        (
            answer.status,
            answer.body.len(),
            answer.header("content-range")
        ),
        (200, 10, None)
    );
}

#[test]
fn redirects_point_where_they_are_told() {
    let action = Action::Redirect {
        status: 307,
        location: "http://127.0.0.1:1/bucket/k".into(),
    };
    let answer = get_with(action);
    assert_eq!(
        (answer.status, answer.header("location")),
        (307, Some("http://127.0.0.1:1/bucket/k"))
    );
}

#[test]
fn commit_then_drop_applies_the_write_and_drop_does_not() {
    let stub = start();
    stub.add_fault(Fault::on("PUT", "applied").then(Action::CommitThenDrop));
    stub.add_fault(Fault::on("PUT", "lost").then(Action::Drop));
    let answer = signed(&stub, "PUT", "applied", &[], b"x");
    assert_eq!(
        (answer.status, answer.broken),
        (0, Some(ErrorKind::ConnectionReset))
    );
    assert_eq!(
        signed(&stub, "PUT", "lost", &[], b"x").broken,
        Some(ErrorKind::ConnectionReset)
    );
    assert_eq!(stub.keys("bucket"), ["applied", "k"]);
    assert_eq!(stub.stats().requests["PUT 0"], 2);
}

#[test]
fn never_answer_reads_and_stays_silent() {
    let stub = start();
    stub.add_fault(Fault::on("GET", "k").then(Action::NeverAnswer));
    let mut stream = connect(stub.addr());
    let target = common::presigned_target(&stub, "GET", "k", &[], Duration::from_secs(60));
    stream
        .write_all(format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", stub.addr()).as_bytes())
        .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(150)))
        .unwrap();
    let outcome = stream.read(&mut [0; 1]).map_err(|error| error.kind());
    assert!(
        matches!(outcome, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)),
        "{outcome:?}"
    );
}

#[test]
fn an_early_answer_comes_before_the_body() {
    let stub = start();
    stub.add_fault(Fault::on("PUT", "*").then(Action::EarlyAnswer {
        status: 403,
        code: None,
    }));
    let mut stream = connect(stub.addr());
    stream
        .write_all(b"PUT /bucket/early HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")
        .unwrap();
    assert_eq!(
        common::read_answer(&mut stream).status,
        403,
        "answered though not a byte of the body was sent"
    );
}

#[test]
fn delays_and_rates_take_their_time() {
    for action in [
        Action::DelayHead { ms: 100 },
        Action::DelayBody { ms: 100 },
        Action::DelayApply { ms: 100 },
        Action::RateLimit { bytes_per_s: 100 },
    ] {
        let begun = Instant::now();
        let answer = get_with(action.clone());
        assert_eq!(answer.body, BODY.as_bytes(), "{action:?}");
        assert!(begun.elapsed() >= Duration::from_millis(100), "{action:?}");
    }
}

#[test]
fn concurrent_puts_of_one_key_are_noticed() {
    let stub = start();
    stub.add_fault(Fault::on("PUT", "twice").then(Action::DelayApply { ms: 300 }));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| signed(&stub, "PUT", "twice", &[], b"x"));
        }
    });
    signed(&stub, "PUT", "once", &[], b"x");
    let stats = stub.stats();
    let twice = stats.key("bucket", "twice");
    assert_eq!(
        (twice.puts, twice.puts_concurrent_max, twice.puts_active),
        (2, 2, 0)
    );
    assert_eq!(stats.key("bucket", "once").puts_concurrent_max, 1);
}

#[test]
fn everything_can_be_asked_over_http() {
    let stub = start();
    let ask = |method: &str, path: &str, body: &str| {
        let answer = send(
            stub.addr(),
            method,
            &format!("/_stub/{path}"),
            &[],
            body.as_bytes(),
        );
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    let fault =
        r#"[{"method":"GET","key":"k","times":1,"actions":[{"kind":"status","status":500}]}]"#;
    assert_eq!(ask("POST", "faults", fault).0, 204);
    assert_eq!(ask("POST", "faults", r#"{"acts":1}"#).0, 400);
    assert!(ask("GET", "faults", "").1.contains("\"times\": 1"));
    assert_eq!(signed(&stub, "GET", "k", &[], b"").status, 500);
    assert!(ask("GET", "stats", "").1.contains("\"GET 500\": 1"));
    assert!(ask("GET", "log", "").1.contains("\"key\": \"k\""));
    assert_eq!(ask("POST", "clock", r#"{"offset_s": -3600}"#).0, 204);
    assert_eq!(signed(&stub, "GET", "k", &[], b"").code(), "AccessDenied");
    assert_eq!(ask("POST", "reset", "").0, 204);
    assert!(stub.keys("bucket").is_empty());
    assert_eq!(
        stub.stats().requests_total,
        0,
        "the stub's own requests are not counted"
    );
    assert_eq!(ask("DELETE", "faults", "").0, 204);
    assert_eq!(ask("GET", "nothing", "").0, 405);
}

#[test]
fn the_log_redacts_secrets_and_keeps_the_rest() {
    let stub = start();
    let secret = [("Authorization", "Bearer abc"), ("x-amz-meta-a", "b")];
    send(stub.addr(), "GET", "/bucket/k", &secret, b"");
    let log = stub.log();
    assert_eq!(log[0].header("authorization"), Some("(present)"));
    assert_eq!(log[0].header("x-amz-meta-a"), Some("b"));
    assert_eq!((log[0].status, log[0].signed), (400, true));
}

#[test]
fn an_upload_is_cut_at_the_byte_and_nothing_is_stored() {
    let stub = start();
    let cut = Action::CutUpload { after_bytes: 3 };
    stub.add_fault(Fault::on("PUT", "*").times(1).then(cut));
    let answer = signed(&stub, "PUT", "new", &[], b"0123456789");
    assert_eq!(answer.broken, Some(ErrorKind::ConnectionReset));
    assert!(stub.object("bucket", "new").is_none());
    let entry = stub.log().pop().expect("logged");
    assert_eq!((entry.bytes_in, entry.status), (3, 0));
    assert_eq!(signed(&stub, "PUT", "new", &[], b"0123456789").status, 200);
    assert!(stub.stats().overlapping_puts().is_empty());
}

#[test]
fn a_storm_is_over_after_its_time() {
    let stub = start();
    let storm = Fault::on("GET", "*").lasting(Duration::from_millis(300));
    stub.add_fault(storm.then(Action::status(503)));
    // Its time begins with its first strike, not before.
    std::thread::sleep(Duration::from_millis(350));
    assert_eq!(signed(&stub, "GET", "k", &[], b"").status, 503);
    let began = Instant::now();
    while signed(&stub, "GET", "k", &[], b"").status != 200 {
        assert!(began.elapsed() < Duration::from_secs(30), "it never ends");
    }
}

#[test]
fn puts_of_one_key_that_overlap_are_told() {
    let stub = start();
    stub.add_fault(Fault::on("PUT", "*").then(Action::DelayApply { ms: 1500 }));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| signed(&stub, "PUT", "same", &[], b"x"));
        }
        scope.spawn(|| signed(&stub, "PUT", "other", &[], b"x"));
    });
    assert_eq!(stub.stats().overlapping_puts(), ["bucket/same"]);
}
