//! What the Azure client makes of a store that misbehaves, and of what no emulator does.
//!
//! A scripted server plays the store; what its requests looked like is read from what it saw.

mod scripted_server;

use forebay::creds::AzureCredentials;
use forebay::settings::secret::Secret;
use forebay::store::azure::AzureStore;
use forebay::store::retry::RetrySettings;
use forebay::store::{AzureSpec, StoreSpec, build};
use forebay_io::listing::{Entry, ListRequest};
use forebay_io::multipart::{CopyRequest, CopySource, PartStore};
use forebay_io::store::{Store, StoreErrorKind as Kind};
use scripted_server::client::{DEADLINES, ONCE, THRICE, failure, read, run, wanted, whole};
use scripted_server::{Act, Seen, Server, answer};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

const KEY: &str = "YS1rZXktbm9ib2R5LW1heS1zZWU=";

fn spec(server: &Server, retry: RetrySettings) -> AzureSpec {
    let credentials = AzureCredentials::Key {
        account: "account1".into(),
        key: Secret::new(KEY),
    };
    let mut spec = AzureSpec::new(&server.url(), "con", credentials);
    spec.deadlines = DEADLINES;
    spec.retry = retry;
    spec
}

async fn scripted(script: Vec<Vec<u8>>, retry: RetrySettings) -> (Server, Rc<dyn Store>) {
    let server = Server::start(script.into_iter().map(Act::Send)).await;
    let store = build(&StoreSpec::Azure(spec(&server, retry))).expect("a good spec");
    (server, store)
}

/// A store that asks once and does not repeat itself, for what the other one hides.
async fn plain(script: Vec<Vec<u8>>) -> (Server, AzureStore) {
    let server = Server::start(script.into_iter().map(Act::Send)).await;
    let store = AzureStore::new(&spec(&server, ONCE)).expect("a good spec");
    (server, store)
}

fn refused(status: u16, code: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let body =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>");
    let headers = [headers, &[("x-ms-error-code", code)]].concat();
    answer(status, &headers, body.as_bytes())
}

fn object(body: &[u8]) -> Vec<u8> {
    answer(200, &[("ETag", "\"0x8D1\"")], body)
}

fn stored(headers: &[(&str, &str)]) -> Vec<u8> {
    let headers = [headers, &[("ETag", "\"0x8D1\"")]].concat();
    answer(201, &headers, b"")
}

#[test]
fn a_busy_store_is_given_time() {
    run(async {
        let busy = refused(503, "ServerBusy", &[("Retry-After", "7")]);
        let (_server, store) = scripted(vec![busy], ONCE).await;
        let error = failure(store.as_ref()).await;
        assert_eq!((error.kind, error.status), (Kind::SlowDown, Some(503)));
        assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
        let script = vec![
            refused(503, "ServerBusy", &[("Retry-After", "0")]),
            refused(500, "OperationTimedOut", &[]),
            object(b"hello"),
        ];
        let (server, store) = scripted(script, THRICE).await;
        assert_eq!(read(store.as_ref(), wanted(None)).await.0, b"hello");
        assert_eq!(server.seen().len(), 3);
    });
}

#[test]
fn a_wrong_key_is_denied_and_told_to_nobody() {
    run(async {
        let denied = refused(403, "AuthenticationFailed", &[]);
        let (server, store) = scripted(vec![denied], THRICE).await;
        let error = failure(store.as_ref()).await;
        assert_eq!((error.kind, error.attempts), (Kind::Denied, 1));
        let text = format!("{error} {:?}", server.seen().len());
        assert!(!text.contains(KEY) && !text.contains("SharedKey"), "{text}");
        let seen = &server.seen()[0];
        let authorization = seen.header("authorization").expect("signed");
        assert!(
            authorization.starts_with("SharedKey account1:"),
            "{authorization}"
        );
    });
}

#[test]
fn a_token_that_has_expired_is_said_to_have() {
    run(async {
        let denied = refused(
            403,
            "AuthenticationFailed",
            &[("Date", "Mon, 01 Jan 2040 00:00:00 GMT")],
        );
        let server = Server::start([Act::Send(denied)]).await;
        let token = "sv=2022-11-02&sr=c&sp=r&se=2020-01-01T00%3A00%3A00Z&sig=hush";
        let spec = AzureSpec {
            credentials: AzureCredentials::Sas(Secret::new(token)),
            ..spec(&server, ONCE)
        };
        let store = build(&StoreSpec::Azure(spec)).expect("a good spec");
        let error = failure(store.as_ref()).await;
        let text = error.to_string();
        assert_eq!(error.kind, Kind::Denied);
        assert!(text.contains("expired at 2020-01-01T00:00:00Z"), "{text}");
        assert!(!text.contains("hush"), "{text}");
        // It is not signed by the clock, so the store's clock is no reason to ask again.
        assert_eq!(server.seen().len(), 1);
        assert!(server.seen()[0].head.contains(token));
    });
}

#[test]
fn a_clock_that_is_off_is_learned_from_the_refusal() {
    run(async {
        let there = SystemTime::now() + Duration::from_secs(3 * 3600);
        let date = httpdate::fmt_http_date(there);
        let script = vec![
            refused(403, "AuthenticationFailed", &[("Date", &date)]),
            stored(&[]),
            object(b"x"),
        ];
        let (server, store) = scripted(script, ONCE).await;
        store.put(whole("x")).await.expect("signed by its clock");
        assert_eq!(read(store.as_ref(), wanted(None)).await.0, b"x");
        let ahead: Vec<bool> = server
            .seen()
            .iter()
            .map(|seen| {
                let date = seen.header("x-ms-date").expect("signed");
                let signed = httpdate::parse_http_date(date).expect("a date");
                there.duration_since(signed).unwrap_or_default() < Duration::from_secs(600)
            })
            .collect();
        assert_eq!(ahead, [false, true, true]);
    });
}

#[test]
fn a_body_that_breaks_off_is_no_object() {
    run(async {
        let headers = [("ETag", "\"0x8D1\""), ("Content-Length", "10")];
        let short = answer(200, &headers, b"hello");
        let server = Server::start([Act::SendAndClose(short)]).await;
        let store = build(&StoreSpec::Azure(spec(&server, ONCE))).expect("a good spec");
        let (bytes, error) = read(store.as_ref(), wanted(None)).await;
        assert_eq!(bytes, b"hello");
        assert_eq!(error.expect("it is short").kind, Kind::Corrupt);
    });
}

#[test]
fn blocks_of_two_versions_are_never_mixed() {
    run(async {
        let script = vec![
            refused(412, "ConditionNotMet", &[]),
            // One that does not know the condition.
            answer(
                206,
                &[("ETag", "\"0x8D2\""), ("Content-Range", "bytes 0-1/9")],
                b"ab",
            ),
        ];
        let (server, store) = scripted(script, ONCE).await;
        let request = || forebay_io::store::GetRequest {
            if_match: Some("0x8D1".into()),
            ..wanted(Some((0, 2)))
        };
        let error = store.get(request()).await.err().expect("another version");
        assert_eq!(error.kind, Kind::PreconditionFailed);
        let error = store.get(request()).await.err().expect("another version");
        assert_eq!(error.kind, Kind::Corrupt);
        let seen = &server.seen()[0];
        assert_eq!(seen.header("if-match"), Some("\"0x8D1\""));
        assert_eq!(seen.header("range"), Some("bytes=0-1"));
    });
}

#[test]
fn pages_that_azure_did_not_write_say_nothing_about_blobs() {
    run(async {
        let portal = answer(404, &[("Content-Type", "text/html")], b"<html>no</html>");
        let login = answer(
            200,
            &[("Content-Type", "text/html"), ("ETag", "\"x\"")],
            b"<html>",
        );
        let (_server, store) = scripted(vec![portal, login], ONCE).await;
        for _ in 0..2 {
            assert_eq!(failure(store.as_ref()).await.kind, Kind::Corrupt);
        }
    });
}

#[test]
fn the_store_verifies_what_it_is_sent() {
    run(async {
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, b"hello");
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(crc.to_le_bytes());
        let request = || {
            let mut request = whole("hello");
            request.crc64nvme = Some(crc);
            request
        };
        let script = vec![
            stored(&[("x-ms-content-crc64", &text)]),
            stored(&[("x-ms-content-crc64", "AAAAAAAAAAA=")]),
            refused(400, "Crc64Mismatch", &[]),
        ];
        let (server, store) = scripted(script, ONCE).await;
        let reply = store.put(request()).await.expect("stored");
        assert_eq!(reply.etag, "0x8D1");
        for _ in 0..2 {
            let error = store
                .put(request())
                .await
                .expect_err("something else was stored");
            assert_eq!(error.kind, Kind::Corrupt);
        }
        let seen = &server.seen()[0];
        assert_eq!(seen.header("x-ms-content-crc64"), Some(text.as_str()));
        assert_eq!(seen.header("x-ms-blob-type"), Some("BlockBlob"));
        assert_eq!(seen.header("content-length"), Some("5"));
        // What does not know the header is asked without it, and remembered.
        let body = b"<Error><Code>FeatureNotSupported</Code><Message>x-ms-content-crc64 header</Message></Error>";
        let script = vec![answer(500, &[], body), stored(&[]), stored(&[])];
        let (server, store) = scripted(script, ONCE).await;
        for _ in 0..2 {
            store.put(request()).await.expect("stored");
        }
        let has_crc = server.seen().into_iter();
        let has_crc: Vec<_> = has_crc
            .map(|seen| seen.header("x-ms-content-crc64").is_some())
            .collect();
        assert_eq!(has_crc, [true, false, false]);
    });
}

fn listed(names: &[&str], next: &str) -> Vec<u8> {
    let blobs: String = names
        .iter()
        .map(|name| {
            format!(
                "<Blob><Name>{name}</Name><Properties><Etag>0x8D1</Etag><Content-Length>1</Content-Length>\
                 <Last-Modified>Tue, 14 Nov 2023 22:13:20 GMT</Last-Modified></Properties></Blob>"
            )
        })
        .collect();
    let body = format!(
        "<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
    );
    answer(200, &[], body.as_bytes())
}

async fn names(store: &AzureStore, after: &str) -> (Vec<String>, Option<String>) {
    let request = ListRequest {
        after: after.into(),
        limit: 2,
        ..ListRequest::default()
    };
    let page = store.list(request).await.expect("a page");
    let names = page.entries.iter().map(Entry::name).map(str::to_owned);
    (names.collect(), page.complete_to)
}

/// A parameter of a request's query.
fn parameter(seen: &Seen, name: &str) -> Option<String> {
    let line = seen.head.lines().next().expect("a request line");
    let target = line.split(' ').nth(1).expect("a target");
    let url = url::Url::parse(&format!("http://h{target}")).expect("a URL");
    let pair = url.query_pairs().find(|pair| pair.0 == name);
    pair.map(|pair| pair.1.into_owned())
}

#[test]
fn a_list_begins_at_a_name_and_goes_on_at_a_marker() {
    run(async {
        let script = vec![
            listed(&["b", "c", "d"], "m1"),
            listed(&["e"], ""),
            // It has forgotten its marker: the same position by its name.
            refused(400, "OutOfRangeInput", &[]),
            listed(&["d", "e"], ""),
        ];
        let (server, store) = plain(script).await;
        let two = |one: &str, two: &str| vec![one.to_owned(), two.to_owned()];
        assert_eq!(names(&store, "b").await, (two("c", "d"), Some("d".into())));
        for _ in 0..2 {
            assert_eq!(names(&store, "d").await, (vec!["e".to_owned()], None));
        }
        let seen = server.seen();
        let asked =
            |name: &str| -> Vec<_> { seen.iter().map(|seen| parameter(seen, name)).collect() };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(asked("startFrom"), [text("b"), None, None, text("d")]);
        assert_eq!(asked("marker"), [None, text("m1"), text("m1"), None]);
        assert_eq!(
            asked("maxresults"),
            [text("3"), text("2"), text("2"), text("3")]
        );
    });
}

#[test]
fn a_store_that_begins_at_the_beginning_is_passed_over_once() {
    run(async {
        let script = vec![
            listed(&["a", "b", "c"], "m1"),
            listed(&["d", "e"], "m2"),
            // The next page, from where the last one ended, and a position within it.
            listed(&["f"], ""),
            listed(&["d", "e"], "m2"),
        ];
        let (server, store) = plain(script).await;
        assert_eq!(names(&store, "c").await.0, ["d", "e"]);
        assert_eq!(names(&store, "e").await, (vec!["f".to_owned()], None));
        assert_eq!(names(&store, "d").await.0, ["e"]);
        let seen = server.seen();
        let markers: Vec<_> = seen.iter().map(|seen| parameter(seen, "marker")).collect();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(markers, [None, text("m1"), text("m2"), text("m1")]);
        assert!(
            seen[1..]
                .iter()
                .all(|seen| parameter(seen, "startFrom").is_none())
        );
    });
}

#[test]
fn a_list_in_another_order_is_refused_rather_than_given_out_with_a_gap() {
    run(async {
        let script = vec![
            listed(&["x\u{1f600}", "x\u{ff01}"], ""),
            listed(&["x\u{ff01}"], ""),
        ];
        let (_server, store) = plain(script).await;
        for after in ["", "x\u{1f600}"] {
            let request = ListRequest {
                after: after.into(),
                limit: 2,
                ..ListRequest::default()
            };
            let error = store
                .list(request)
                .await
                .expect_err("a name would be missing");
            assert_eq!(error.kind, Kind::Unsupported, "{after:?}");
        }
    });
}

fn copy() -> CopyRequest {
    CopyRequest {
        source: CopySource {
            key: "from".into(),
            if_match: Some("0x8D0".into()),
            version_id: None,
        },
        key: "to".into(),
        headers: None,
    }
}

/// What is told of a blob that a copy goes to.
fn copying(status: &str, id: &str) -> Vec<u8> {
    let headers = [
        ("x-ms-copy-status", status),
        ("x-ms-copy-id", id),
        ("ETag", "\"0x8D2\""),
    ];
    answer(200, &headers, b"")
}

#[test]
fn a_copy_that_takes_its_time_is_waited_for() {
    run(async {
        let begun = answer(
            202,
            &[
                ("x-ms-copy-status", "pending"),
                ("x-ms-copy-id", "1"),
                ("ETag", "\"0x8D1\""),
            ],
            b"",
        );
        let script = vec![
            begun.clone(),
            copying("pending", "1"),
            copying("success", "1"),
        ];
        let (server, store) = plain(script).await;
        assert_eq!(store.copy(copy()).await.expect("copied").etag, "0x8D2");
        let seen = server.seen();
        let source = format!("{}/con/from", server.url());
        assert_eq!(seen[0].header("x-ms-copy-source"), Some(source.as_str()));
        assert_eq!(seen[0].header("x-ms-source-if-match"), Some("\"0x8D0\""));

        // One that fails is taken away: what there is of it is no object.
        let gone = answer(202, &[], b"");
        let script = vec![
            begun.clone(),
            copying("failed", "1"),
            refused(409, "NoPendingCopyOperation", &[]),
            gone,
        ];
        let (server, store) = plain(script).await;
        let error = store.copy(copy()).await.expect_err("it failed");
        assert_eq!(error.kind, Kind::Internal);
        let seen = server.seen();
        assert!(
            seen[3].head.starts_with("DELETE /con/to "),
            "{}",
            seen[3].head
        );

        // What somebody else wrote meanwhile stays.
        let (server, store) = plain(vec![begun, copying("success", "2")]).await;
        let error = store.copy(copy()).await.expect_err("another copy came");
        assert_eq!(error.kind, Kind::Contended);
        assert_eq!(server.seen().len(), 2);
    });
}
