//! One suite for every store: in memory, a folder, and each S3 server that the environment names.
//!
//! The cases are plain async functions over a [`Subject`], so that all stores answer for the same
//! promises. Servers are named by `FOREBAY_TEST_S3_<NAME>_ENDPOINT`, `_KEY`, `_SECRET` and
//! `_REGION`; `RGW` and `SWIFT` are expected, and with `FOREBAY_TEST_REQUIRE_SERVERS=1` their
//! absence is a failure. Every run works under a prefix of its own and removes what it wrote.

mod parts;

use bytes::Bytes;
use forebay::store::{S3Spec, StoreSpec, build};
use forebay_io::listing::{Entry, ListRequest};
use forebay_io::sim::store::MemoryStore;
use forebay_io::store::{
    Attempts, ByteSpan, GetRequest, ObjectMeta, PutBody, PutReply, PutRequest, Store,
    StoreErrorKind as Kind, StoreResult,
};
use futures::stream::{self, StreamExt};
use rusty_s3::actions::S3Action;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The servers that CI starts.
const EXPECTED_SERVERS: [&str; 2] = ["RGW", "SWIFT"];

const BUCKET: &str = "forebay-conformance";

/// Larger than any buffer on the way, and not a multiple of one.
const BIG_BYTES: usize = 20 * 1024 * 1024 + 7;

/// A store under test, and what its kind is known not to do.
struct Subject {
    store: Rc<dyn Store>,
    /// Swift refuses `If-None-Match: *` on PUT.
    has_conditional_put: bool,
    /// Whether a write can be bound to the version that it replaces.
    has_if_match: bool,
    /// Whether an upload can be completed without some of its parts. Ceph wants all of them.
    may_leave_parts_out: bool,
    /// Whether uploads are listed by their keys' bytes; see `UploadsPage`.
    has_uploads_in_order: bool,
    /// Whether the parts of an upload cannot be listed any more once it is complete. At Swift they
    /// can: the object is made of them.
    forgets_complete_uploads: bool,
}

fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future);
}

#[test]
fn memory() {
    let store = MemoryStore::new(Rc::new(|_| Box::pin(futures::future::ready(()))));
    run(all_cases(Subject {
        store: Rc::new(store),
        has_conditional_put: true,
        has_if_match: true,
        may_leave_parts_out: true,
        has_uploads_in_order: true,
        forgets_complete_uploads: true,
    }));
}

#[test]
fn folder() {
    let root = tempfile::tempdir().expect("a folder");
    let spec = StoreSpec::File {
        path: root.path().to_owned(),
    };
    run(async {
        let store = build(&spec).expect("usable");
        all_cases(Subject {
            store,
            has_conditional_put: true,
            has_if_match: true,
            may_leave_parts_out: true,
            has_uploads_in_order: true,
            forgets_complete_uploads: true,
        })
        .await;
    });
    let left: Vec<_> = std::fs::read_dir(root.path()).expect("readable").collect();
    assert_eq!(
        left.len(),
        1,
        "only the folder for temporary files stays, of uploads nothing: {left:?}"
    );
}

#[test]
fn s3_servers() {
    let is_required = std::env::var("FOREBAY_TEST_REQUIRE_SERVERS").is_ok_and(|flag| flag == "1");
    let names = server_names();
    for expected in EXPECTED_SERVERS {
        if !names.iter().any(|name| name == expected) {
            let message = format!("FOREBAY_TEST_S3_{expected}_ENDPOINT is not set");
            assert!(!is_required, "{message}");
            eprintln!("skipped: {message}");
        }
    }
    for name in names {
        eprintln!("server {name}");
        run(async {
            let spec = server_spec(&name);
            create_bucket(&spec).await;
            let has_conditional_put = name != "SWIFT";
            let store = build(&StoreSpec::S3(spec.clone())).expect("a good spec");
            all_cases(Subject {
                store,
                has_conditional_put,
                has_if_match: has_conditional_put,
                may_leave_parts_out: name != "RGW",
                has_uploads_in_order: !matches!(name.as_str(), "RGW" | "SWIFT"),
                forgets_complete_uploads: name != "SWIFT",
            })
            .await;
            prefixes_are_apart(&spec).await;
            a_missing_bucket_is_not_a_missing_key(&spec).await;
            wrong_credentials_are_denied(&spec).await;
        });
    }
}

fn server_names() -> Vec<String> {
    let mut names: Vec<String> = std::env::vars()
        .filter_map(|(variable, _)| {
            let name = variable
                .strip_prefix("FOREBAY_TEST_S3_")?
                .strip_suffix("_ENDPOINT")?;
            Some(name.to_owned())
        })
        .collect();
    names.sort();
    names
}

fn server_spec(name: &str) -> S3Spec {
    let variable = |part: &str| {
        let variable = format!("FOREBAY_TEST_S3_{name}_{part}");
        std::env::var(&variable).unwrap_or_else(|_| panic!("{variable} is not set"))
    };
    let mut spec = S3Spec::new(&variable("ENDPOINT"), &variable("REGION"), BUCKET);
    spec.access_key = variable("KEY");
    spec.secret_key = variable("SECRET");
    spec.prefix = format!("run {}/ü", unique());
    spec
}

fn unique() -> u128 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.expect("a clock after 1970").as_nanos()
}

async fn create_bucket(spec: &S3Spec) {
    let endpoint = spec.endpoint.parse().expect("an endpoint");
    let style = rusty_s3::UrlStyle::Path;
    let bucket = rusty_s3::Bucket::new(endpoint, style, spec.bucket.clone(), spec.region.clone());
    let bucket = bucket.expect("a bucket");
    let credentials = rusty_s3::Credentials::new(&spec.access_key, &spec.secret_key);
    let url = bucket
        .create_bucket(&credentials)
        .sign(Duration::from_secs(60));
    // This client, unlike the store's own, takes the process-wide provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy();
    let answer = client
        .build()
        .expect("a client")
        .put(url)
        .send()
        .await
        .expect("the server answers");
    // 409: it is there already, and ours.
    let status = answer.status().as_u16();
    assert!(
        matches!(status, 200 | 202 | 409),
        "making {BUCKET} gave {status}"
    );
}

async fn all_cases(subject: Subject) {
    let store = subject.store.as_ref();
    put_get_head_delete(store).await;
    an_object_is_replaced_whole(store).await;
    an_empty_object_is_an_object(store).await;
    ranges_are_exact(store).await;
    headers_come_back(store).await;
    odd_keys_are_kept_apart(store).await;
    bad_keys_are_refused(store).await;
    conditional_reads(store).await;
    conditional_writes(&subject).await;
    a_wrong_body_never_becomes_an_object(store).await;
    a_big_object_streams_both_ways(store).await;
    reads_run_side_by_side(store).await;
    a_body_may_be_left_unread(store).await;
    lists_are_in_order_and_complete(store).await;
    lists_know_sizes_and_tags(store).await;
    parts::all_cases(&subject).await;
}

fn whole(key: &str, body: impl Into<Bytes>) -> PutRequest {
    let body = body.into();
    PutRequest {
        key: key.into(),
        length: body.len() as u64,
        headers: Vec::new(),
        crc64nvme: Some(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &body)),
        if_none_match: false,
        if_match: None,
        attempts: Attempts::StorePolicy,
        body: PutBody::Whole(vec![body]),
    }
}

async fn put(store: &dyn Store, key: &str, body: impl Into<Bytes>) -> PutReply {
    let written = store.put(whole(key, body)).await;
    written.unwrap_or_else(|error| panic!("PUT {key:?}: {error}"))
}

fn wanted(key: &str, span: Option<(u64, u64)>) -> GetRequest {
    GetRequest {
        key: key.into(),
        span: span.map(|(start, end)| ByteSpan { start, end }),
        ..GetRequest::default()
    }
}

/// The whole answer, held against its own head.
async fn read(store: &dyn Store, request: GetRequest) -> StoreResult<(ObjectMeta, Vec<u8>)> {
    let mut reply = store.get(request).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = reply.body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    assert_eq!(bytes.len() as u64, reply.span.len());
    assert!(reply.span.end <= reply.meta.size);
    Ok((reply.meta, bytes))
}

async fn read_kind(store: &dyn Store, request: GetRequest) -> Kind {
    let key = request.key.clone();
    let outcome = read(store, request).await;
    outcome.expect_err(&format!("GET {key:?} must fail")).kind
}

async fn remove(store: &dyn Store, key: &str) {
    let removed = store.delete(key.into()).await;
    removed.unwrap_or_else(|error| panic!("DELETE {key:?}: {error}"));
}

/// Bytes in which every place looks different from its neighbourhood.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at ^ (at >> 8).wrapping_mul(31) ^ (at >> 16)) as u8)
        .collect()
}

async fn put_get_head_delete(store: &dyn Store) {
    assert_eq!(read_kind(store, wanted("one", None)).await, Kind::NotFound);
    let missing = store.head("one".into()).await.expect_err("not there yet");
    assert_eq!(missing.kind, Kind::NotFound);
    let written = put(store, "one", &b"hello"[..]).await;
    let (meta, bytes) = read(store, wanted("one", None)).await.expect("readable");
    assert_eq!(bytes, b"hello");
    assert_eq!((meta.size, &meta.etag), (5, &written.etag));
    assert!(!meta.etag.contains('"'), "{}", meta.etag);
    assert!(meta.last_modified > 1_600_000_000, "{}", meta.last_modified);
    let head = store.head("one".into()).await.expect("there");
    assert_eq!(
        (head.meta.size, head.meta.etag, head.meta.last_modified),
        (5, meta.etag, meta.last_modified)
    );
    // Not every store keeps one.
    if let Some(crc) = head.crc64nvme {
        let expected = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, b"hello");
        assert_eq!(crc, expected);
    }
    remove(store, "one").await;
    assert_eq!(read_kind(store, wanted("one", None)).await, Kind::NotFound);
    remove(store, "one").await;
}

async fn an_object_is_replaced_whole(store: &dyn Store) {
    let first = put(store, "two", pattern(100_000)).await;
    let second = put(store, "two", &b"short"[..]).await;
    assert_ne!(first.etag, second.etag);
    let (meta, bytes) = read(store, wanted("two", None)).await.expect("readable");
    assert_eq!((bytes.as_slice(), meta.etag), (&b"short"[..], second.etag));
    remove(store, "two").await;
}

async fn an_empty_object_is_an_object(store: &dyn Store) {
    put(store, "empty", Bytes::new()).await;
    let (meta, bytes) = read(store, wanted("empty", None)).await.expect("readable");
    assert_eq!((meta.size, bytes.len()), (0, 0));
    let head = store.head("empty".into()).await.expect("there");
    assert_eq!(head.meta.size, 0);
    let kind = read_kind(store, wanted("empty", Some((0, 10)))).await;
    assert_eq!(kind, Kind::RangeNotSatisfiable);
    remove(store, "empty").await;
}

async fn ranges_are_exact(store: &dyn Store) {
    let content = pattern(70_000);
    put(store, "range", content.clone()).await;
    let edges = [0, 1, 2, 4095, 4096, 4097, 65_535, 65_536, 69_998, 69_999];
    for start in edges {
        for end in edges
            .into_iter()
            .chain([70_000, 70_001, 1_000_000, u64::MAX])
        {
            if start >= end {
                continue;
            }
            let outcome = read(store, wanted("range", Some((start, end)))).await;
            let (meta, bytes) = outcome.unwrap_or_else(|error| panic!("{start}..{end}: {error}"));
            let cut = end.min(70_000) as usize;
            assert!(bytes == content[start as usize..cut], "{start}..{end}");
            assert_eq!(meta.size, 70_000);
        }
    }
    for start in [70_000, 70_001, 1 << 40] {
        let request = wanted("range", Some((start, start + 1)));
        let error = read(store, request).await.expect_err("past the end");
        assert_eq!(error.kind, Kind::RangeNotSatisfiable);
        assert!(
            error.object_size.is_none_or(|size| size == 70_000),
            "{error:?}"
        );
    }
    assert_eq!(
        read_kind(store, wanted("range", Some((5, 5)))).await,
        Kind::Rejected
    );
    assert_eq!(
        read_kind(store, wanted("none", Some((0, 5)))).await,
        Kind::NotFound
    );
    remove(store, "range").await;
}

async fn headers_come_back(store: &dyn Store) {
    let sent = [
        ("cache-control", "max-age=60"),
        ("content-disposition", "attachment; filename=\"a b.txt\""),
        ("content-type", "application/x-forebay"),
        ("x-amz-meta-colour", "dark blue"),
        ("x-amz-meta-empty-not", "x"),
    ];
    let sent: Vec<_> = sent
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let mut request = whole("headers", &b"x"[..]);
    request.headers = sent.clone();
    store.put(request).await.expect("written");
    let (meta, _) = read(store, wanted("headers", None))
        .await
        .expect("readable");
    let head = store.head("headers".into()).await.expect("there").meta;
    for header in &sent {
        assert!(
            meta.headers.contains(header),
            "GET: {header:?} not in {:?}",
            meta.headers
        );
        assert!(
            head.headers.contains(header),
            "HEAD: {header:?} not in {:?}",
            head.headers
        );
    }
    // The next version does not inherit them.
    put(store, "headers", &b"y"[..]).await;
    let head = store.head("headers".into()).await.expect("there").meta;
    assert!(!head.headers.contains(&sent[3]), "{:?}", head.headers);
    remove(store, "headers").await;
}

async fn odd_keys_are_kept_apart(store: &dyn Store) {
    let long = "l".repeat(700);
    let keys = [
        "a",
        "a/",
        "a/b",
        "a//b",
        "a/b/",
        "A",
        "/a",
        "//",
        "a b",
        "a+b",
        "a%20b",
        "a%2Fb",
        "a?b",
        "a#b",
        "a&b=c",
        "a;b:c@d",
        "a\\b",
        "ü",
        "u\u{308}",
        "日本/語",
        "...",
        "a..b",
        ".a",
        "~-._!*'()",
        "a=b",
        "%",
        "+",
        "a\"b<c>",
        long.as_str(),
    ];
    for key in keys {
        put(store, key, key.as_bytes().to_vec()).await;
    }
    for key in keys {
        let (_, bytes) = read(store, wanted(key, None)).await.expect(key);
        assert_eq!(bytes, key.as_bytes(), "{key:?}");
    }
    for key in keys {
        remove(store, key).await;
        assert_eq!(
            read_kind(store, wanted(key, None)).await,
            Kind::NotFound,
            "{key:?}"
        );
    }
}

async fn bad_keys_are_refused(store: &dyn Store) {
    let long = "k".repeat(1025);
    for key in [
        "",
        ".",
        "..",
        "../x",
        "a/../b",
        "a/./b",
        "a/%2e%2E",
        "a\0b",
        long.as_str(),
    ] {
        assert_eq!(
            read_kind(store, wanted(key, None)).await,
            Kind::InvalidKey,
            "{key:?}"
        );
        let error = store.put(whole(key, &b"x"[..])).await.expect_err(key);
        assert_eq!(error.kind, Kind::InvalidKey, "{key:?}");
        let error = store.delete(key.into()).await.expect_err(key);
        assert_eq!(error.kind, Kind::InvalidKey, "{key:?}");
        let error = store.head(key.into()).await.expect_err(key);
        assert_eq!(error.kind, Kind::InvalidKey, "{key:?}");
    }
}

async fn conditional_reads(store: &dyn Store) {
    let old = put(store, "cond", &b"old"[..]).await.etag;
    let new = put(store, "cond", &b"new"[..]).await.etag;
    let with = |if_match: Option<&str>, if_none_match: Option<&str>, span| GetRequest {
        if_match: if_match.map(str::to_owned),
        if_none_match: if_none_match.map(str::to_owned),
        ..wanted("cond", span)
    };
    for span in [None, Some((1, 3))] {
        let expected = if span.is_some() { &b"ew"[..] } else { b"new" };
        let (_, bytes) = read(store, with(Some(&new), None, span))
            .await
            .expect("it matches");
        assert_eq!(bytes, expected);
        let kind = read_kind(store, with(Some(&old), None, span)).await;
        assert_eq!(kind, Kind::PreconditionFailed);
        let kind = read_kind(store, with(None, Some(&new), span)).await;
        assert_eq!(kind, Kind::NotModified);
        let (_, bytes) = read(store, with(None, Some(&old), span))
            .await
            .expect("it changed");
        assert_eq!(bytes, expected);
    }
    remove(store, "cond").await;
    assert_eq!(
        read_kind(store, with(None, Some(&new), None)).await,
        Kind::NotFound
    );
}

async fn conditional_writes(subject: &Subject) {
    let store = subject.store.as_ref();
    let create = |body: &'static [u8]| PutRequest {
        if_none_match: true,
        ..whole("create", body)
    };
    if !subject.has_conditional_put {
        let error = store
            .put(create(b"first"))
            .await
            .expect_err("known to be refused");
        assert_eq!(error.kind, Kind::Unsupported, "{error}");
        assert_eq!(
            read_kind(store, wanted("create", None)).await,
            Kind::NotFound
        );
        return;
    }
    store.put(create(b"first")).await.expect("the key is free");
    let error = store
        .put(create(b"second"))
        .await
        .expect_err("the key is taken");
    assert_eq!(error.kind, Kind::PreconditionFailed, "{error}");
    let (_, bytes) = read(store, wanted("create", None)).await.expect("readable");
    assert_eq!(bytes, b"first");
    remove(store, "create").await;
}

async fn a_wrong_body_never_becomes_an_object(store: &dyn Store) {
    for pieces in [vec!["abc"], vec!["abcde"], vec!["ab", "cd", "e"], vec![]] {
        let pieces = pieces
            .into_iter()
            .map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
        let request = PutRequest {
            length: 4,
            crc64nvme: None,
            body: PutBody::Stream(stream::iter(pieces).boxed_local()),
            ..whole("wrong", Bytes::new())
        };
        let error = store.put(request).await.expect_err("not 4 bytes");
        assert_eq!(error.kind, Kind::Rejected, "{error}");
        assert_eq!(
            read_kind(store, wanted("wrong", None)).await,
            Kind::NotFound
        );
    }
}

async fn a_big_object_streams_both_ways(store: &dyn Store) {
    let content = Bytes::from(pattern(BIG_BYTES));
    let parts = content
        .chunks(300_001)
        .map(|part| Ok(content.slice_ref(part)));
    let parts: Vec<_> = parts.collect();
    let request = PutRequest {
        length: content.len() as u64,
        body: PutBody::Stream(stream::iter(parts).boxed_local()),
        ..whole("big", Bytes::new())
    };
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &content);
    let request = PutRequest {
        crc64nvme: Some(crc),
        ..request
    };
    store.put(request).await.expect("written");
    let (meta, bytes) = read(store, wanted("big", None)).await.expect("readable");
    assert_eq!(meta.size, BIG_BYTES as u64);
    assert!(bytes == content);
    let middle = (4 * 1024 * 1024, 8 * 1024 * 1024);
    let (_, bytes) = read(store, wanted("big", Some(middle)))
        .await
        .expect("readable");
    assert!(bytes == content[middle.0 as usize..middle.1 as usize]);
    remove(store, "big").await;
}

async fn reads_run_side_by_side(store: &dyn Store) {
    let content = pattern(300_000);
    put(store, "shared", content.clone()).await;
    let reads = (0..16_u64).map(|index| {
        let span = (index * 18_000, index * 18_000 + 20_000);
        let content = &content;
        async move {
            let (_, bytes) = read(store, wanted("shared", Some(span)))
                .await
                .expect("readable");
            assert!(bytes == content[span.0 as usize..span.1 as usize]);
        }
    });
    futures::future::join_all(reads).await;
    remove(store, "shared").await;
}

async fn a_body_may_be_left_unread(store: &dyn Store) {
    put(store, "left", pattern(3_000_000)).await;
    for _ in 0..5 {
        let mut reply = store.get(wanted("left", None)).await.expect("readable");
        reply.body.next().await.expect("a piece").expect("good");
    }
    let (_, bytes) = read(store, wanted("left", Some((0, 10))))
        .await
        .expect("readable");
    assert_eq!(bytes, pattern(10));
    remove(store, "left").await;
}

/// All names of a list, page by page.
async fn list(store: &dyn Store, request: &ListRequest) -> Vec<Entry> {
    let mut request = request.clone();
    let mut entries = Vec::new();
    loop {
        let page = store.list(request.clone()).await;
        let page = page.unwrap_or_else(|error| panic!("{request:?}: {error}"));
        assert!(page.entries.len() <= request.limit, "{request:?}");
        let after = Some(request.after.as_str());
        let names = after
            .into_iter()
            .chain(page.entries.iter().map(Entry::name));
        let names: Vec<&str> = names.collect();
        assert!(names.is_sorted_by(|one, other| one < other), "{names:?}");
        entries.extend(page.entries);
        let Some(end) = page.complete_to else {
            return entries;
        };
        assert_eq!(entries.last().map(Entry::name), Some(end.as_str()));
        request.after = end;
    }
}

async fn lists_are_in_order_and_complete(store: &dyn Store) {
    let keys = [
        "l/a",
        "l/a b+c%20",
        "l/a-",
        "l/a-/x",
        "l/a.b",
        "l/a/",
        "l/a/b",
        "l/a/b/c",
        "l/a/c",
        "l/a0",
        "l/b//d",
        "l/é",
        "l/ü/x",
        "l/z&<>\"'?#",
        "l/\u{1}\t\n\r",
        "l/\u{10fff0}",
    ];
    for key in keys {
        put(store, key, &b"x"[..]).await;
    }
    let mut sorted = keys;
    sorted.sort_unstable();
    for prefix in ["l/", "l/a", "l/a/", "l/ü", "l/none", "l/a b+"] {
        for delimiter in [None, Some("/"), Some("b"), Some("a/"), Some("é")] {
            for after in ["", "l/a/", "l/a/b/zz", "l/a-/", "zz"] {
                let mut request = ListRequest {
                    prefix: prefix.into(),
                    delimiter: delimiter.map(str::to_owned),
                    after: after.into(),
                    limit: 1000,
                };
                let mut expected: Vec<&str> = sorted
                    .iter()
                    .filter_map(|key| request.name_of(key))
                    .collect();
                expected.dedup();
                for limit in [1000, 3] {
                    request.limit = limit;
                    let entries = list(store, &request).await;
                    let names: Vec<&str> = entries.iter().map(Entry::name).collect();
                    assert_eq!(names, expected, "{request:?}");
                    for entry in &entries {
                        let is_prefix = matches!(entry, Entry::CommonPrefix(_));
                        let is_one = request.common_prefix(entry.name()).is_some();
                        assert_eq!(is_prefix, is_one, "{request:?}: {entry:?}");
                    }
                }
            }
        }
    }
    for key in keys {
        remove(store, key).await;
    }
    let request = ListRequest {
        prefix: "l/".into(),
        limit: 1000,
        ..ListRequest::default()
    };
    assert_eq!(list(store, &request).await, []);
}

async fn lists_know_sizes_and_tags(store: &dyn Store) {
    let written = put(store, "described", pattern(12_345)).await;
    let head = store.head("described".into()).await.expect("there");
    let request = ListRequest {
        prefix: "described".into(),
        limit: 2,
        ..ListRequest::default()
    };
    let entries = list(store, &request).await;
    let [Entry::Object(object)] = entries.as_slice() else {
        panic!("{entries:?}");
    };
    assert_eq!((object.size, &object.etag), (12_345, &written.etag));
    // Swift rounds one of them up and the other one down.
    let seconds = object.last_modified_ms / 1000;
    assert!(seconds.abs_diff(head.meta.last_modified) <= 1);
    remove(store, "described").await;
}

async fn prefixes_are_apart(spec: &S3Spec) {
    let inner = S3Spec {
        prefix: format!("{}/deep", spec.prefix),
        ..spec.clone()
    };
    let outer = build(&StoreSpec::S3(spec.clone())).expect("a good spec");
    let inner = build(&StoreSpec::S3(inner)).expect("a good spec");
    put(inner.as_ref(), "k", &b"inner"[..]).await;
    assert_eq!(
        read_kind(outer.as_ref(), wanted("k", None)).await,
        Kind::NotFound
    );
    let (_, bytes) = read(outer.as_ref(), wanted("deep/k", None))
        .await
        .expect("the same object");
    assert_eq!(bytes, b"inner");
    remove(outer.as_ref(), "deep/k").await;
    assert_eq!(
        read_kind(inner.as_ref(), wanted("k", None)).await,
        Kind::NotFound
    );
}

async fn a_missing_bucket_is_not_a_missing_key(spec: &S3Spec) {
    let bucket = format!("forebay-none-{}", unique());
    let store = build(&StoreSpec::S3(S3Spec {
        bucket,
        ..spec.clone()
    }))
    .expect("a good spec");
    assert_eq!(
        read_kind(store.as_ref(), wanted("k", None)).await,
        Kind::NoSuchBucket
    );
    let error = store
        .put(whole("k", &b"x"[..]))
        .await
        .expect_err("no bucket");
    assert_eq!(error.kind, Kind::NoSuchBucket, "{error}");
    let error = store.list(a_few()).await.expect_err("no bucket");
    assert_eq!(error.kind, Kind::NoSuchBucket, "{error}");
}

fn a_few() -> ListRequest {
    ListRequest {
        limit: 3,
        ..ListRequest::default()
    }
}

async fn wrong_credentials_are_denied(spec: &S3Spec) {
    let secret_key = "not the secret".to_owned();
    let store = build(&StoreSpec::S3(S3Spec {
        secret_key,
        ..spec.clone()
    }))
    .expect("a good spec");
    let error = store.get(wanted("k", None)).await.err().expect("refused");
    assert_eq!(error.kind, Kind::Denied, "{error}");
    assert!(!error.to_string().contains("X-Amz-Signature"), "{error}");
    let error = store.list(a_few()).await.expect_err("refused");
    assert_eq!(error.kind, Kind::Denied, "{error}");
}
