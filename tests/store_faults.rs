//! What the S3 client makes of a store that misbehaves, row by row of the fault catalogue (35–49).
//!
//! A scripted server plays the store. What is never allowed is the same in every case: a short or
//! wrong body that ends without an error, credentials that reach another server, a request that
//! hangs.

mod scripted_server;

use bytes::Bytes;
use forebay::store::{StoreSpec, build};
use forebay_io::store::{GetRequest, PutBody, PutReply, PutRequest, StoreErrorKind as Kind};
use futures::stream::{self, StreamExt};
use scripted_server::client::{
    DEADLINES, ONCE, THRICE, failure, object, part, read, refused, run, scripted, spec, store,
    stored, streamed, wanted, whole,
};
use scripted_server::{Act, Server, answer};
use std::time::{Duration, Instant};

#[test]
fn row_35_a_busy_store_is_given_time() {
    run(async {
        let busy = |pause| answer(503, &[("Retry-After", pause)], b"");
        let (_server, store) = scripted(vec![Act::Send(busy("7"))], ONCE).await;
        let error = failure(store.as_ref()).await;
        assert_eq!((error.kind, error.status), (Kind::SlowDown, Some(503)));
        assert_eq!(error.retry_after, Some(Duration::from_secs(7)));

        let script = vec![
            Act::Send(busy("1")),
            Act::Send(refused(429, "TooManyRequests")),
            Act::Send(object(b"hello")),
        ];
        let (server, store) = scripted(script, THRICE).await;
        let began = Instant::now();
        let (bytes, error) = read(store.as_ref(), wanted(None)).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(bytes, b"hello");
        assert!(
            began.elapsed() >= Duration::from_secs(1),
            "Retry-After was not honoured"
        );
        assert_eq!(server.seen().len(), 3);
    });
}

#[test]
fn row_36_a_failing_store_is_asked_again_on_a_new_connection() {
    for status in [500, 502, 504] {
        run(async {
            let script = vec![
                Act::Send(refused(status, "InternalError")),
                Act::Send(object(b"hello")),
            ];
            let (server, store) = scripted(script, THRICE).await;
            assert_eq!(
                read(store.as_ref(), wanted(None)).await.0,
                b"hello",
                "{status}"
            );
            let connections: Vec<_> = server.seen().iter().map(|seen| seen.connection).collect();
            assert_eq!(connections, [0, 1], "{status}");

            let (server, store) = scripted(vec![Act::Send(refused(status, "X")); 9], THRICE).await;
            let error = store.put(whole("x")).await.expect_err("never heals");
            assert_eq!(
                (error.kind, error.attempts),
                (Kind::Internal, 3),
                "{status}"
            );
            assert_eq!(server.script_left(), 6);
        });
    }
}

#[test]
fn row_37_what_never_comes_is_not_waited_for() {
    run(async {
        let head = answer(
            200,
            &[("ETag", "\"t\""), ("Content-Length", "1000000")],
            b"",
        );
        let script = vec![
            Act::Ignore,
            Act::SendAndHang(b"HTTP/1.1 200 OK\r\nETag: ".to_vec()),
            Act::SendAndHang([head.clone(), vec![b'x'; 1000]].concat()),
            Act::SendSlowly(head, vec![b'x'; 100_000], Duration::from_millis(5)),
        ];
        let count = script.len();
        let (_server, store) = scripted(script, ONCE).await;
        for case in 0..count {
            let error = failure(store.as_ref()).await;
            assert_eq!(error.kind, Kind::Timeout, "case {case}: {error}");
        }
    });
}

#[test]
fn row_37_a_put_that_is_not_taken_or_not_answered_ends() {
    run(async {
        // More than the buffers of two sockets on one machine hold.
        let big = Bytes::from(vec![7; 32 * 1024 * 1024]);
        let (_server, store) =
            scripted(vec![Act::Ignore, Act::SendAndHang(Vec::new())], ONCE).await;
        let error = store.put(whole(big)).await.expect_err("nobody reads it");
        assert_eq!(error.kind, Kind::Timeout, "{error}");
        let error = store
            .put(whole("small"))
            .await
            .expect_err("nobody answers it");
        assert_eq!(error.kind, Kind::Timeout, "{error}");
    });
}

#[test]
fn a_slow_source_is_not_the_stores_stall() {
    run(async {
        let (server, store) = scripted(vec![Act::Send(stored())], ONCE).await;
        let slow = stream::iter(["a", "b", "c"]).then(|piece| async move {
            tokio::time::sleep(DEADLINES.stall).await;
            Ok(Bytes::from_static(piece.as_bytes()))
        });
        let request = PutRequest {
            body: PutBody::Stream(slow.boxed_local()),
            ..streamed("abc")
        };
        store.put(request).await.expect("slow but whole");
        assert_eq!(server.seen()[0].body, b"abc");
    });
}

#[test]
fn a_slow_reader_is_not_the_stores_stall() {
    run(async {
        let body = vec![7; 3_000_000];
        let (_server, store) = scripted(vec![Act::Send(object(&body))], ONCE).await;
        let mut reply = store.get(wanted(None)).await.expect("a head");
        let mut length = 0;
        while let Some(piece) = reply.body.next().await {
            if length == 0 {
                tokio::time::sleep(DEADLINES.stall * 3).await;
            }
            length += piece.expect("good").len();
        }
        assert_eq!(length, body.len());
    });
}

#[test]
fn row_38_a_store_that_is_off_is_unreachable() {
    run(async {
        let server = Server::start([]).await;
        let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", gone.local_addr().expect("bound"));
        drop(gone);
        let store = build(&StoreSpec::S3(spec(&url, THRICE))).expect("a good spec");
        let error = failure(store.as_ref()).await;
        assert_eq!(
            (error.kind, error.attempts),
            (Kind::Unreachable, 3),
            "{error}"
        );
        // Open, but closes at once.
        let store = self::store(&server, ONCE);
        assert_eq!(failure(store.as_ref()).await.kind, Kind::Unreachable);
    });
}

#[test]
fn row_39_a_name_that_does_not_resolve_is_unreachable() {
    run(async {
        let spec = spec("http://store.invalid:1", ONCE);
        let store = build(&StoreSpec::S3(spec)).expect("a good spec");
        let kind = failure(store.as_ref()).await.kind;
        // Without a name server the look-up itself may run into the deadline.
        assert!(
            matches!(kind, Kind::Unreachable | Kind::Timeout),
            "{kind:?}"
        );
    });
}

#[test]
fn row_40_a_refusal_is_not_repeated() {
    run(async {
        let denied = Act::Send(refused(403, "AccessDenied"));
        let (server, store) = scripted(vec![denied; 3], THRICE).await;
        let error = failure(store.as_ref()).await;
        assert_eq!((error.kind, error.attempts), (Kind::Denied, 1));
        let error = store.put(whole("x")).await.expect_err("denied");
        assert_eq!(error.kind, Kind::Denied);
        assert_eq!(server.seen().len(), 2);
    });
}

#[test]
fn row_41_the_stores_clock_is_learnt_once() {
    for ahead_seconds in [-20 * 60, 20 * 60, -30 * 24 * 3600] {
        run(async {
            let get = Act::CheckClock {
                ahead_seconds,
                good: object(b"hello"),
            };
            let put = Act::CheckClock {
                ahead_seconds,
                good: stored(),
            };
            let script = vec![get.clone(), get.clone(), get, put];
            let (server, store) = scripted(script, ONCE).await;
            assert_eq!(read(store.as_ref(), wanted(None)).await.0, b"hello");
            assert_eq!(server.seen().len(), 2, "refused, then signed anew");
            assert_eq!(read(store.as_ref(), wanted(None)).await.0, b"hello");
            store.put(whole("x")).await.expect("signed in time");
            assert_eq!(server.seen().len(), 4);
        });
    }
}

#[test]
fn row_41_puts_are_signed_anew_and_streams_can_be_sent_again() {
    run(async {
        let put = Act::CheckClock {
            ahead_seconds: 1200,
            good: stored(),
        };
        let (server, store) = scripted(vec![put.clone(), put.clone()], ONCE).await;
        store.put(whole("x")).await.expect("signed anew");
        assert_eq!(server.seen().len(), 2);

        let (_server, store) = scripted(vec![put.clone(), put], ONCE).await;
        let error = store
            .put(streamed("x"))
            .await
            .expect_err("the stream is gone");
        assert!(error.kind.is_retryable(), "{error}");
        store
            .put(streamed("x"))
            .await
            .expect("the clock is known now");
    });
}

#[test]
fn row_41_requests_that_were_on_their_way_profit_from_what_another_learnt() {
    run(async {
        let put = Act::CheckClock {
            ahead_seconds: 1200,
            good: stored(),
        };
        let (server, store) = scripted(vec![put; 8], ONCE).await;
        let puts = (0..4).map(|_| store.put(whole("x")));
        for outcome in futures::future::join_all(puts).await {
            outcome.expect("signed anew");
        }
        assert_eq!(server.seen().len(), 8);
    });
}

#[test]
fn row_42_only_the_store_can_say_that_a_key_is_missing() {
    run(async {
        let portal = answer(
            404,
            &[("Content-Type", "text/html")],
            b"<html>not here</html>",
        );
        let script = vec![
            Act::Send(refused(404, "NoSuchKey")),
            Act::Send(refused(404, "NoSuchBucket")),
            Act::Send(portal.clone()),
        ];
        let (_server, store) = scripted(script, ONCE).await;
        for kind in [Kind::NotFound, Kind::NoSuchBucket, Kind::Corrupt] {
            assert_eq!(failure(store.as_ref()).await.kind, kind);
        }
        let script = vec![
            Act::Send(answer(204, &[("x-amz-request-id", "1")], b"")),
            Act::Send(refused(404, "NoSuchKey")),
            Act::Send(refused(404, "NoSuchBucket")),
            Act::Send(portal),
        ];
        let (_server, store) = scripted(script, ONCE).await;
        store.delete("k".into()).await.expect("removed");
        store
            .delete("k".into())
            .await
            .expect("removing nothing succeeds");
        for kind in [Kind::NoSuchBucket, Kind::Corrupt] {
            assert_eq!(
                store.delete("k".into()).await.expect_err("a fault").kind,
                kind
            );
        }
    });
}

#[test]
fn row_43_conflicts_of_conditional_puts_are_told_apart() {
    run(async {
        let conflict = refused(409, "ConditionalRequestConflict");
        let script = vec![
            Act::Send(refused(412, "PreconditionFailed")),
            Act::Send(answer(304, &[], b"")),
            Act::Send(conflict),
            Act::Send(stored()),
        ];
        let (server, store) = scripted(script, THRICE).await;
        let create = || PutRequest {
            if_none_match: true,
            ..whole("x")
        };
        for _ in 0..2 {
            let error = store.put(create()).await.expect_err("taken");
            assert_eq!(error.kind, Kind::PreconditionFailed);
        }
        store.put(create()).await.expect("409 is tried again");
        let seen = server.seen();
        assert_eq!(seen.len(), 4);
        assert!(
            seen.iter()
                .all(|seen| seen.header("if-none-match") == Some("*"))
        );
    });
}

/// Every way to cut an answer of `length` bytes that is near an edge of something.
fn cuts(length: usize) -> Vec<usize> {
    let edges = [0, 1, 2, 8_191, 8_192, 8_193, 65_535, 65_536, 65_537];
    let mut cuts: Vec<usize> = edges.into_iter().filter(|cut| *cut < length).collect();
    cuts.extend([length - 2, length - 1]);
    cuts
}

#[test]
fn row_44_a_cut_body_is_never_a_short_success() {
    let body: Vec<u8> = (0..100_000_u32).map(|at| (at % 253) as u8).collect();
    let full = object(&body);
    let head_bytes = full.len() - body.len();
    run(async {
        for kept in cuts(body.len()) {
            for act in [Act::SendAndClose, Act::SendAndReset] {
                let act = act(full[..head_bytes + kept].to_vec());
                let (_server, store) = scripted(vec![act.clone()], ONCE).await;
                let (bytes, error) = read(store.as_ref(), wanted(None)).await;
                let error = error.unwrap_or_else(|| panic!("a success of {kept} bytes"));
                assert_eq!(error.kind, Kind::Corrupt, "{kept}: {error}");
                assert!(body.starts_with(&bytes));
            }
        }
        // Cut inside the head.
        for kept in [0, 1, head_bytes / 2, head_bytes - 1] {
            let act = Act::SendAndClose(full[..kept].to_vec());
            let (_server, store) = scripted(vec![act], ONCE).await;
            let error = failure(store.as_ref()).await;
            assert!(
                matches!(error.kind, Kind::Unreachable | Kind::Corrupt),
                "{error}"
            );
        }
    });
}

#[test]
fn row_44_a_cut_body_is_taken_up_where_it_broke_off() {
    let body: Vec<u8> = (0..100_000_u32).map(|at| (at % 253) as u8).collect();
    let full = object(&body);
    let head_bytes = full.len() - body.len();
    run(async {
        for kept in cuts(body.len()) {
            let range = format!("bytes {kept}-{}/{}", body.len() - 1, body.len());
            let script = vec![
                Act::SendAndClose(full[..head_bytes + kept].to_vec()),
                Act::Send(part("\"t\"", &range, &body[kept..])),
            ];
            let (server, store) = scripted(script, THRICE).await;
            let (bytes, error) = read(store.as_ref(), wanted(None)).await;
            assert!(error.is_none(), "{kept}: {error:?}");
            assert!(bytes == body, "{kept}");
            let again = server.seen().pop().expect("a second request");
            let asked = format!("bytes={kept}-{}", body.len() - 1);
            assert_eq!(again.header("range"), Some(asked.as_str()));
            assert_eq!(again.header("if-match"), Some("\"t\""));
        }
    });
}

#[test]
fn row_44_versions_are_not_mixed_when_a_body_is_taken_up() {
    run(async {
        let cut = Act::SendAndClose(answer(
            200,
            &[("ETag", "\"t\""), ("Content-Length", "10")],
            b"01234",
        ));
        let continuations = [
            refused(412, "PreconditionFailed"),
            refused(404, "NoSuchKey"),
            refused(416, "InvalidRange"),
        ];
        for continuation in continuations {
            let (_server, store) =
                scripted(vec![cut.clone(), Act::Send(continuation)], THRICE).await;
            let (bytes, error) = read(store.as_ref(), wanted(None)).await;
            assert_eq!(
                error.expect("no continuation").kind,
                Kind::PreconditionFailed
            );
            assert_eq!(bytes, b"01234");
        }
        // A store that does not know If-Match.
        let other = Act::Send(part("\"u\"", "bytes 5-9/10", b"56789"));
        let (_server, store) = scripted(vec![cut, other.clone(), other], THRICE).await;
        let (bytes, error) = read(store.as_ref(), wanted(None)).await;
        assert_eq!(error.expect("another version").kind, Kind::Corrupt);
        assert_eq!(bytes, b"01234");
    });
}

#[test]
fn row_45_answers_that_contradict_themselves_are_refused() {
    let span = Some((2, 5));
    let long_length = [
        ("ETag", "\"t\""),
        ("Content-Range", "bytes 2-4/9"),
        ("Content-Length", "4"),
    ];
    let chunked = [
        ("ETag", "\"t\""),
        ("Content-Range", "bytes 2-4/9"),
        ("Transfer-Encoding", "chunked"),
    ];
    let cases = [
        ("other span", part("\"t\"", "bytes 3-5/9", b"345")),
        ("short span", part("\"t\"", "bytes 2-3/9", b"23")),
        ("long span", part("\"t\"", "bytes 2-5/9", b"2345")),
        ("no span", answer(206, &[("ETag", "\"t\"")], b"234")),
        ("lengths disagree", answer(206, &long_length, b"2345")),
        (
            "no tag",
            answer(206, &[("Content-Range", "bytes 2-4/9")], b"234"),
        ),
        (
            "short chunks",
            answer(206, &chunked, b"2\r\n23\r\n0\r\n\r\n"),
        ),
        (
            "long chunks",
            answer(206, &chunked, b"4\r\n2345\r\n0\r\n\r\n"),
        ),
    ];
    run(async {
        for (what, bytes) in cases {
            let (_server, store) = scripted(vec![Act::Send(bytes)], ONCE).await;
            let (_, error) = read(store.as_ref(), wanted(span)).await;
            let error = error.unwrap_or_else(|| panic!("{what} was taken"));
            assert_eq!(error.kind, Kind::Corrupt, "{what}: {error}");
        }
        let request = GetRequest {
            if_match: Some("other".into()),
            ..wanted(span)
        };
        let act = Act::Send(part("\"t\"", "bytes 2-4/9", b"234"));
        let (_server, store) = scripted(vec![act], ONCE).await;
        assert_eq!(
            read(store.as_ref(), request)
                .await
                .1
                .expect("other tag")
                .kind,
            Kind::Corrupt
        );
    });
}

#[test]
fn row_45_surplus_bytes_reach_neither_this_answer_nor_the_next() {
    run(async {
        let long = answer(
            200,
            &[("ETag", "\"t\""), ("Content-Length", "5")],
            b"hello, and more",
        );
        let smuggled = [object(b"hello"), object(b"wrong")].concat();
        let script = vec![
            Act::Send(long),
            Act::Send(object(b"second")),
            Act::Send(smuggled),
            Act::Send(object(b"fourth")),
        ];
        let (_server, store) = scripted(script, THRICE).await;
        for expected in ["hello", "second", "hello", "fourth"] {
            let (bytes, error) = read(store.as_ref(), wanted(None)).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(bytes, expected.as_bytes());
        }
    });
}

#[test]
fn a_store_that_ignores_ranges_still_gives_only_the_range() {
    run(async {
        for (span, expected) in [((0, 3), &b"012"[..]), ((2, 5), b"234"), ((8, 99), b"89")] {
            let act = Act::Send(object(b"0123456789"));
            let (_server, store) = scripted(vec![act], ONCE).await;
            let (bytes, error) = read(store.as_ref(), wanted(Some(span))).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(bytes, expected);
        }
        let (_server, store) = scripted(vec![Act::Send(object(b"0123456789"))], ONCE).await;
        let (_, error) = read(store.as_ref(), wanted(Some((10, 11)))).await;
        let error = error.expect("past the end");
        assert_eq!(
            (error.kind, error.object_size),
            (Kind::RangeNotSatisfiable, Some(10))
        );
    });
}

#[test]
fn row_46_a_portals_page_is_not_an_object() {
    let page = b"<html>please log in</html>";
    let html = ("Content-Type", "text/html; charset=utf-8");
    run(async {
        for headers in [vec![html], vec![html, ("ETag", "\"page\"")], vec![]] {
            let script = vec![Act::Send(answer(200, &headers, page)); 3];
            let (_server, store) = scripted(script, ONCE).await;
            assert_eq!(
                failure(store.as_ref()).await.kind,
                Kind::Corrupt,
                "{headers:?}"
            );
            let (_, error) = read(store.as_ref(), wanted(Some((0, 5)))).await;
            assert_eq!(error.expect("a page").kind, Kind::Corrupt, "{headers:?}");
        }
        // To HEAD there is no body that could give it away, to PUT no length.
        let bodiless = answer(200, &[html, ("Content-Length", "25")], b"");
        let (_server, store) = scripted(vec![Act::Send(bodiless)], ONCE).await;
        assert_eq!(
            store.head("k".into()).await.expect_err("a page").kind,
            Kind::Corrupt
        );
        let (_server, store) = scripted(vec![Act::Send(answer(200, &[html], page))], ONCE).await;
        assert_eq!(
            store.put(whole("x")).await.expect_err("a page").kind,
            Kind::Corrupt
        );
        let (_server, store) =
            scripted(vec![Act::Send(b"SSH-2.0-what\r\n\r\n".to_vec())], ONCE).await;
        let kind = failure(store.as_ref()).await.kind;
        assert!(
            matches!(kind, Kind::Unreachable | Kind::Corrupt),
            "{kind:?}"
        );
    });
}

#[test]
fn row_47_a_put_whose_answer_was_lost_is_sent_again() {
    run(async {
        for lost in [
            Act::SendAndReset(Vec::new()),
            Act::SendAndClose(b"HTTP/1.1 2".to_vec()),
        ] {
            let (server, store) = scripted(vec![lost.clone(), Act::Send(stored())], THRICE).await;
            let PutReply { etag, .. } = store.put(whole("hello")).await.expect("the second counts");
            assert_eq!(etag, "t");
            let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
            assert_eq!(bodies, [b"hello", b"hello"]);

            let (server, store) = scripted(vec![lost, Act::Send(stored())], THRICE).await;
            let error = store
                .put(streamed("hello"))
                .await
                .expect_err("a stream is sent once");
            assert_eq!(error.kind, Kind::Unreachable);
            assert_eq!(server.seen().len(), 1);
        }
    });
}

#[test]
fn row_48_an_early_answer_ends_the_upload() {
    run(async {
        let big = Bytes::from(vec![7; 32 * 1024 * 1024]);
        for (bytes, kind) in [
            (refused(403, "AccessDenied"), Kind::Denied),
            (refused(413, "EntityTooLarge"), Kind::Rejected),
            // A success before the store can have the object.
            (stored(), Kind::Corrupt),
        ] {
            let (_server, store) = scripted(vec![Act::SendEarly(bytes)], ONCE).await;
            let began = Instant::now();
            // A stream carries no digest, whose making would be timed here.
            let error = store
                .put(streamed(big.clone()))
                .await
                .expect_err("refused early");
            assert_eq!(error.kind, kind, "{error}");
            let elapsed = began.elapsed();
            assert!(elapsed < DEADLINES.stall, "{kind:?} took {elapsed:?}");
        }
        // An interim answer is none.
        let interim = [b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), stored()].concat();
        let (_server, store) = scripted(vec![Act::Send(interim)], ONCE).await;
        store
            .put(whole("x"))
            .await
            .expect("the real answer follows");
    });
}

#[test]
fn row_49_no_redirect_is_followed() {
    run(async {
        let target = Server::start([Act::Send(object(b"stolen")), Act::Send(stored())]).await;
        for status in [301, 302, 303, 307, 308] {
            let location = format!("{}/bkt/k", target.url());
            let away = Act::Send(answer(status, &[("Location", &location)], b""));
            let (server, store) = scripted(vec![away; 4], THRICE).await;
            assert_eq!(
                failure(store.as_ref()).await.kind,
                Kind::Misdirected,
                "{status}"
            );
            let error = store.put(whole("x")).await.expect_err("a redirect");
            assert_eq!(error.kind, Kind::Misdirected, "{status}");
            let error = store.head("k".into()).await.expect_err("a redirect");
            assert_eq!(error.kind, Kind::Misdirected, "{status}");
            let error = store.delete("k".into()).await.expect_err("a redirect");
            assert_eq!(error.kind, Kind::Misdirected, "{status}");
            assert_eq!(server.seen().len(), 4, "{status}");
        }
        assert_eq!(target.connections(), 0);
    });
}
