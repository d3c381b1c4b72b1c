//! Uploads in parts, copies and lists in Azure, on Azurite: what the conformance suite does not ask.
//!
//! `FOREBAY_TEST_AZURE_ENDPOINT`, `_ACCOUNT` and `_KEY` name the server. Every case works under a
//! prefix of its own.

#[path = "common/azure.rs"]
mod azure;

use bytes::Bytes;
use forebay::creds::AzureCredentials;
use forebay::settings::secret::Secret;
use forebay::store::AzureSpec;
use forebay::store::azure::AzureStore;
use forebay_io::listing::{Entry, ListRequest};
use forebay_io::multipart::{
    CompleteRequest, CompletedPart, CopyPartRequest, CopyRequest, CopySource, PartRequest,
    PartStore, PartsRequest, UploadName, UploadsRequest,
};
use forebay_io::store::{
    Attempts, ByteSpan, GetRequest, PutBody, PutReply, PutRequest, Store, StoreErrorKind as Kind,
    StoreResult,
};
use futures::stream::{self, StreamExt};
use std::time::{SystemTime, UNIX_EPOCH};

const CONTAINER: &str = "forebay-parts";

/// The least that a part has which is not the last.
const PART: usize = 5 << 20;

/// Runs a case on a store of its own, by key and by token.
fn on_azurite(case: impl AsyncFn(AzureStore)) {
    let variable = |part: &str| std::env::var(format!("FOREBAY_TEST_AZURE_{part}")).ok();
    let Some(endpoint) = variable("ENDPOINT") else {
        let is_required =
            std::env::var("FOREBAY_TEST_REQUIRE_SERVERS").is_ok_and(|flag| flag == "1");
        assert!(!is_required, "FOREBAY_TEST_AZURE_ENDPOINT is not set");
        eprintln!("skipped: FOREBAY_TEST_AZURE_ENDPOINT is not set");
        return;
    };
    let account = variable("ACCOUNT").expect("set together with ENDPOINT");
    let key = variable("KEY").expect("set together with ENDPOINT");
    let token = azure::account_token(&account, &key);
    let by_key = AzureCredentials::Key {
        account,
        key: Secret::new(key),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        azure::create_container(&endpoint, CONTAINER, &token).await;
        for credentials in [by_key, AzureCredentials::Sas(Secret::new(token.clone()))] {
            let mut spec = AzureSpec::new(&endpoint, CONTAINER, credentials);
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
            spec.prefix = format!("run {}", since_epoch.expect("after 1970").as_nanos());
            case(AzureStore::new(&spec).expect("a good spec")).await;
        }
    });
}

fn crc(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Bytes in which every place looks different from its neighbourhood, by a seed.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    let places = 0..length;
    places
        .map(|at| ((at ^ (at >> 8).wrapping_mul(31)) + seed) as u8)
        .collect()
}

async fn put(
    store: &AzureStore,
    key: &str,
    bytes: &[u8],
    headers: &[(String, String)],
) -> PutReply {
    let request = PutRequest {
        key: key.into(),
        length: bytes.len() as u64,
        headers: headers.to_vec(),
        crc64nvme: Some(crc(bytes)),
        if_none_match: false,
        if_match: None,
        attempts: Attempts::Once,
        body: PutBody::Whole(vec![Bytes::copy_from_slice(bytes)]),
    };
    store.put(request).await.expect("written")
}

async fn read(store: &AzureStore, key: &str) -> StoreResult<Vec<u8>> {
    let mut reply = store
        .get(GetRequest {
            key: key.into(),
            ..GetRequest::default()
        })
        .await?;
    let mut bytes = Vec::new();
    while let Some(piece) = reply.body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

async fn put_part(
    store: &AzureStore,
    upload: &UploadName,
    number: u32,
    bytes: &[u8],
) -> StoreResult<CompletedPart> {
    let request = PartRequest {
        upload: upload.clone(),
        number,
        length: bytes.len() as u64,
        headers: Vec::new(),
        crc64nvme: Some(crc(bytes)),
        attempts: Attempts::Once,
        body: PutBody::Whole(vec![Bytes::copy_from_slice(bytes)]),
    };
    let etag = store.put_part(request).await?.etag;
    Ok(CompletedPart {
        number,
        etag,
        checksums: Vec::new(),
    })
}

fn complete(upload: &UploadName, parts: &[CompletedPart]) -> CompleteRequest {
    CompleteRequest {
        upload: upload.clone(),
        parts: parts.to_vec(),
        if_none_match: false,
        headers: Vec::new(),
    }
}

async fn create(store: &AzureStore, key: &str, headers: &[(String, String)]) -> UploadName {
    let created = store.create_upload(key.into(), headers.to_vec()).await;
    created.expect("begun")
}

async fn names(store: &AzureStore, delimiter: Option<&str>) -> Vec<String> {
    let request = ListRequest {
        delimiter: delimiter.map(str::to_owned),
        limit: 1000,
        ..ListRequest::default()
    };
    let page = store.list(request).await.expect("listed");
    page.entries
        .iter()
        .map(|entry| entry.name().to_owned())
        .collect()
}

async fn parts_of(store: &AzureStore, upload: &UploadName, after: u32) -> (Vec<u32>, bool) {
    let request = PartsRequest {
        upload: upload.clone(),
        after,
        limit: 2,
    };
    let page = store.list_parts(request).await.expect("listed");
    let numbers = page.parts.iter().map(|part| part.number).collect();
    (numbers, page.is_truncated)
}

#[test]
fn parts_become_an_object_with_the_headers_of_its_beginning() {
    on_azurite(async |store| {
        let headers = [
            pair("content-type", "text/x-forebay"),
            pair("cache-control", "no-cache"),
            pair("expires", "Thu, 01 Jan 2032 00:00:00 GMT"),
            pair("x-amz-meta-made-by", "two words"),
            pair("x-amz-meta-1.2", "grün"),
        ];
        let upload = create(&store, "d/ü big", &headers).await;
        let (first, last) = (pattern(1, PART), pattern(2, 1000));
        // Out of order, the first twice: the later counts.
        let tail = put_part(&store, &upload, 9, &last).await.expect("a part");
        let early = put_part(&store, &upload, 2, b"too early").await;
        let early = early.expect("a part");
        let head = put_part(&store, &upload, 2, &first).await.expect("a part");
        assert_ne!(early.etag, head.etag);
        put_part(&store, &upload, 11, b"left out")
            .await
            .expect("a part");
        assert_eq!(parts_of(&store, &upload, 0).await, (vec![2, 9], true));
        assert_eq!(parts_of(&store, &upload, 9).await, (vec![11], false));
        // Nothing of it is an object yet.
        let head_of = store.head("d/ü big".into()).await;
        assert_eq!(head_of.expect_err("not yet").kind, Kind::NotFound);
        assert_eq!(names(&store, None).await, Vec::<String>::new());
        let stale = complete(&upload, &[early, tail.clone()]);
        let error = store.complete_upload(stale).await.expect_err("replaced");
        assert_eq!(error.kind, Kind::InvalidPart);
        let made = complete(&upload, &[head, tail]);
        let reply = store.complete_upload(made.clone()).await.expect("made");
        let whole = [first, last].concat();
        assert!(read(&store, "d/ü big").await.expect("there") == whole);
        let told = store.head("d/ü big".into()).await.expect("there");
        assert_eq!(
            (&told.meta.etag, told.meta.size),
            (&reply.etag, whole.len() as u64)
        );
        assert_eq!(
            told.crc64nvme,
            Some(crc(&whole)),
            "that of the parts together"
        );
        for header in &headers {
            assert!(
                told.meta.headers.contains(header),
                "{header:?}: {:?}",
                told.meta.headers
            );
        }
        assert!(
            !told
                .meta
                .headers
                .iter()
                .any(|(name, _)| name.contains("__"))
        );
        // Whoever did not hear the answer asks again.
        let again = store.complete_upload(made).await.expect("made already");
        assert_eq!(again.etag, reply.etag);
        let gone = put_part(&store, &upload, 1, b"x").await.expect_err("over");
        assert_eq!(gone.kind, Kind::NoSuchUpload);
        assert_eq!(names(&store, None).await, ["d/ü big"]);
    });
}

#[test]
fn uploads_are_refused_as_s3_refuses_them() {
    on_azurite(async |store| {
        let upload = create(&store, "k", &[]).await;
        let small = [
            put_part(&store, &upload, 1, b"small")
                .await
                .expect("a part"),
            put_part(&store, &upload, 2, b"last").await.expect("a part"),
        ];
        let error = store.complete_upload(complete(&upload, &small)).await;
        assert_eq!(error.expect_err("small").kind, Kind::PartTooSmall);
        let missing = CompletedPart {
            number: 3,
            ..small[1].clone()
        };
        let error = store.complete_upload(complete(&upload, &[missing])).await;
        assert_eq!(error.expect_err("not there").kind, Kind::InvalidPart);
        let mut of_other_size = complete(&upload, &small[1..]);
        of_other_size.headers = vec![pair("x-amz-mp-object-size", "5")];
        let error = store.complete_upload(of_other_size).await;
        assert_eq!(error.expect_err("another size").kind, Kind::Rejected);
        for number in [0, 10_001] {
            let error = put_part(&store, &upload, number, b"x").await;
            assert_eq!(error.expect_err("no number").kind, Kind::Rejected);
        }
        // Somebody else's, and none at all.
        for upload_id in [
            "",
            "x",
            "../k",
            "00000000000000000000000000000000",
            &upload.upload_id.to_uppercase(),
        ] {
            let other = UploadName {
                key: "k".into(),
                upload_id: upload_id.into(),
            };
            if other == upload {
                continue;
            }
            let error = put_part(&store, &other, 1, b"x").await;
            assert_eq!(
                error.expect_err("unknown").kind,
                Kind::NoSuchUpload,
                "{upload_id}"
            );
            let error = store.abort_upload(other.clone()).await;
            assert_eq!(
                error.expect_err("unknown").kind,
                Kind::NoSuchUpload,
                "{upload_id}"
            );
        }
        let of_other_key = UploadName {
            key: "other".into(),
            ..upload.clone()
        };
        let error = store.abort_upload(of_other_key).await;
        assert_eq!(error.expect_err("of another key").kind, Kind::NoSuchUpload);
        store.abort_upload(upload.clone()).await.expect("ended");
        let error = store.complete_upload(complete(&upload, &small[1..])).await;
        assert_eq!(error.expect_err("ended").kind, Kind::NoSuchUpload);
        assert_eq!(
            read(&store, "k").await.expect_err("nothing").kind,
            Kind::NotFound
        );
    });
}

#[test]
fn an_upload_that_lost_its_parts_to_another_one_makes_nothing() {
    on_azurite(async |store| {
        let (one, other) = (
            create(&store, "k", &[]).await,
            create(&store, "k", &[]).await,
        );
        let lost = put_part(&store, &one, 1, b"lost").await.expect("a part");
        let made = put_part(&store, &other, 1, b"made").await.expect("a part");
        let made = store.complete_upload(complete(&other, &[made])).await;
        made.expect("made");
        let error = store.complete_upload(complete(&one, &[lost])).await;
        assert_eq!(
            error.expect_err("its parts are gone").kind,
            Kind::InvalidPart
        );
        assert_eq!(read(&store, "k").await.expect("there"), b"made");
        // It is not over: on top of an object, and only where there is none.
        let part = put_part(&store, &one, 1, b"again").await.expect("a part");
        let mut only_new = complete(&one, std::slice::from_ref(&part));
        only_new.if_none_match = true;
        let error = store.complete_upload(only_new).await;
        assert_eq!(
            error.expect_err("there is one").kind,
            Kind::PreconditionFailed
        );
        assert_eq!(read(&store, "k").await.expect("there"), b"made");
        let made = store.complete_upload(complete(&one, &[part])).await;
        made.expect("on top");
        assert_eq!(read(&store, "k").await.expect("there"), b"again");
    });
}

#[test]
fn uploads_are_listed_by_key_and_hidden_from_lists_of_objects() {
    on_azurite(async |store| {
        let mut begun = Vec::new();
        for key in ["b/ü", "a", "b-", "a", "c"] {
            begun.push(create(&store, key, &[]).await);
        }
        put(&store, "z", b"x", &[]).await;
        assert_eq!(names(&store, None).await, ["z"]);
        // Common prefixes that only what is ours has, and such as others have too.
        for delimiter in ["/", "-", "up", "."] {
            assert_eq!(names(&store, Some(delimiter)).await, ["z"], "{delimiter}");
        }
        put(&store, ".forebay-uploads2", b"x", &[]).await;
        assert_eq!(names(&store, Some("-")).await, [".forebay-", "z"]);
        let page = async |prefix: &str, marker: Option<&UploadName>, limit| {
            let request = UploadsRequest {
                prefix: prefix.into(),
                key_marker: marker.map(|at| at.key.clone()).unwrap_or_default(),
                upload_id_marker: marker.map(|at| at.upload_id.clone()).unwrap_or_default(),
                limit,
            };
            let page = store.list_uploads(request).await.expect("listed");
            let found: Vec<_> = page.uploads.into_iter().map(|found| found.upload).collect();
            (found, page.is_truncated)
        };
        let expected: Vec<UploadName> = [1, 3, 2, 0, 4].map(|at: usize| begun[at].clone()).into();
        assert_eq!(page("", None, 10).await, (expected.clone(), false));
        assert_eq!(page("", None, 2).await, (expected[..2].to_vec(), true));
        let after = Some(&expected[0]);
        assert_eq!(page("", after, 2).await, (expected[1..3].to_vec(), true));
        assert_eq!(page("b", None, 9).await, (expected[2..4].to_vec(), false));
        for upload in begun {
            store.abort_upload(upload).await.expect("ended");
        }
        assert_eq!(page("", None, 10).await, (Vec::new(), false));
    });
}

#[test]
fn objects_are_copied_with_their_headers_or_with_others() {
    on_azurite(async |store| {
        let headers = [
            pair("content-type", "a/b"),
            pair("x-amz-meta-old-name", "1"),
        ];
        let bytes = pattern(3, 300_000);
        let source = put(&store, "from/ü a", &bytes, &headers).await;
        let copy = |key: &str, if_match: Option<&str>, headers: Option<Vec<_>>| CopyRequest {
            source: CopySource {
                key: "from/ü a".into(),
                if_match: if_match.map(str::to_owned),
                version_id: None,
            },
            key: key.into(),
            headers,
        };
        let same = store.copy(copy("to", Some(&source.etag), None)).await;
        let same = same.expect("copied");
        let told = store.head("to".into()).await.expect("there");
        assert_eq!(
            (told.meta.etag, told.crc64nvme),
            (same.etag, Some(crc(&bytes)))
        );
        for header in &headers {
            assert!(
                told.meta.headers.contains(header),
                "{:?}",
                told.meta.headers
            );
        }
        assert!(read(&store, "to").await.expect("there") == bytes);
        let other = vec![pair("content-type", "c/d"), pair("x-amz-meta-new", "2")];
        // Onto itself as well.
        for key in ["to", "from/ü a"] {
            let request = copy(key, None, Some(other.clone()));
            store.copy(request).await.expect("copied");
            let told = store.head(key.into()).await.expect("there");
            assert!(
                other
                    .iter()
                    .all(|header| told.meta.headers.contains(header))
            );
            assert!(
                !told.meta.headers.contains(&headers[1]),
                "{:?}",
                told.meta.headers
            );
            assert!(read(&store, key).await.expect("there") == bytes);
        }
        for headers in [None, Some(other)] {
            let stale = store.copy(copy("to", Some("0x8D0000000000000"), headers.clone()));
            assert_eq!(
                stale.await.expect_err("another").kind,
                Kind::PreconditionFailed
            );
            let mut request = copy("to", None, headers);
            request.source.key = "nowhere".into();
            let error = store.copy(request).await.expect_err("no source");
            assert_eq!(error.kind, Kind::NotFound);
        }
        let error = store.copy(copy("from/ü a", None, None)).await;
        assert_eq!(error.expect_err("it changes nothing").kind, Kind::Rejected);
    });
}

#[test]
fn parts_are_copied_from_objects() {
    on_azurite(async |store| {
        let bytes = pattern(4, PART + 100);
        put(&store, "source", &bytes, &[]).await;
        let upload = create(&store, "target", &[]).await;
        let copy = |number, span: Option<(u64, u64)>| CopyPartRequest {
            source: CopySource {
                key: "source".into(),
                if_match: None,
                version_id: None,
            },
            span: span.map(|(start, end)| ByteSpan { start, end }),
            upload: upload.clone(),
            number,
        };
        let whole = store.copy_part(copy(1, None)).await.expect("copied");
        let some = store.copy_part(copy(2, Some((10, 110)))).await;
        let some = some.expect("copied");
        let past = Some((PART as u64, PART as u64 + 101));
        let error = store
            .copy_part(copy(3, past))
            .await
            .expect_err("past the end");
        assert_eq!(error.kind, Kind::RangeNotSatisfiable);
        let part = |number, reply: PutReply| CompletedPart {
            number,
            etag: reply.etag,
            checksums: Vec::new(),
        };
        let parts = [part(1, whole), part(2, some)];
        let made = store.complete_upload(complete(&upload, &parts)).await;
        made.expect("made");
        let expected = [&bytes[..], &bytes[10..110]].concat();
        assert!(read(&store, "target").await.expect("there") == expected);
    });
}

#[test]
fn a_part_that_is_shorter_than_it_says_is_none() {
    on_azurite(async |store| {
        let upload = create(&store, "k", &[]).await;
        let pieces = [Ok(Bytes::from_static(b"abc"))];
        let request = PartRequest {
            upload: upload.clone(),
            number: 1,
            length: 4,
            headers: Vec::new(),
            crc64nvme: None,
            attempts: Attempts::Once,
            body: PutBody::Stream(stream::iter(pieces).boxed_local()),
        };
        let error = store.put_part(request).await.expect_err("not 4 bytes");
        assert_eq!(error.kind, Kind::Rejected);
        assert_eq!(parts_of(&store, &upload, 0).await, (vec![], false));
        store.abort_upload(upload).await.expect("ended");
    });
}

#[test]
fn lists_are_complete_from_any_position_page_by_page() {
    on_azurite(async |store| {
        let keys: Vec<String> = (0..40).map(|at| format!("n{}/{at:02}", at / 10)).collect();
        for key in &keys {
            put(&store, key, b"x", &[]).await;
        }
        let request = |after: &str, limit| ListRequest {
            after: after.into(),
            limit,
            ..ListRequest::default()
        };
        let listed = async |after: &str, limit| {
            let page = store.list(request(after, limit)).await.expect("listed");
            let names = page.entries.iter().map(Entry::name).map(str::to_owned);
            (names.collect::<Vec<_>>(), page.complete_to)
        };
        // Any position, in any order, with and without what earlier pages left behind.
        for at in [39, 0, 20, 7, 8, 33, 12] {
            let (names, end) = listed(&keys[at], 7).await;
            let expected = &keys[at + 1..(at + 8).min(40)];
            assert_eq!(names, expected);
            assert_eq!(end.is_some(), at + 8 < 40, "{at}");
        }
        // A position that no key has, and one in a page that was given out.
        assert_eq!(listed("n1/105", 3).await.0, &keys[11..14]);
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let (names, end) = listed(&after, 6).await;
            all.extend(names);
            // As a merge with other sources would: it ends before the page does.
            after = match end {
                Some(_) => all[all.len() - 2].clone(),
                None => break,
            };
            all.pop();
        }
        assert_eq!(all, keys);
    });
}
