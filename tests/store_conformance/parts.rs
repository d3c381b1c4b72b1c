//! What every store promises of parts and copies.

use super::{Subject, pattern, put, read, read_kind, remove, wanted, whole};
use bytes::Bytes;
use forebay_io::multipart::{
    CompleteRequest, CompletedPart, CopyPartRequest, CopyRequest, CopySource, PART_BYTES_MIN,
    PART_NUMBER_MAX, PartRequest, PartsRequest, UploadName, UploadsRequest,
};
use forebay_io::store::{
    Attempts, ByteSpan, PutBody, PutReply, PutRequest, Store, StoreErrorKind as Kind, StoreResult,
};
use futures::stream::{self, StreamExt};
use md5::{Digest, Md5};

/// Every part but the last has at least so many bytes.
const PART: usize = PART_BYTES_MIN as usize;

/// A key that is taken apart by whoever encodes it once too often or too little.
const ODD_KEY: &str = "parts/a b+c%20&ü=?#/\"<x>";

pub async fn all_cases(subject: &Subject) {
    let store = subject.store.as_ref();
    parts_become_an_object(subject).await;
    wrong_parts_are_refused(subject).await;
    unknown_uploads_are_unknown(store).await;
    an_aborted_upload_leaves_nothing(store).await;
    parts_are_listed_in_pages(store).await;
    uploads_are_listed_in_order(subject).await;
    a_wrong_body_never_becomes_a_part(store).await;
    a_completion_can_be_conditional(subject).await;
    objects_are_copied(store).await;
    copies_keep_to_their_version(store).await;
    spans_are_copied_into_parts(subject).await;
    writes_keep_to_their_version(subject).await;
}

async fn begin(store: &dyn Store, key: &str) -> UploadName {
    begin_with(store, key, &[]).await
}

async fn begin_with(store: &dyn Store, key: &str, headers: &[(&str, &str)]) -> UploadName {
    let headers = owned(headers);
    let begun = store.create_upload(key.into(), headers).await;
    let begun = begun.unwrap_or_else(|error| panic!("create {key:?}: {error}"));
    assert_eq!(begun.key, key);
    assert!(!begun.upload_id.is_empty());
    begun
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = headers.iter();
    let owned = owned.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    owned.collect()
}

fn part(upload: &UploadName, number: u32, body: impl Into<Bytes>) -> PartRequest {
    let body = body.into();
    PartRequest {
        upload: upload.clone(),
        number,
        length: body.len() as u64,
        headers: Vec::new(),
        crc64nvme: Some(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &body)),
        attempts: Attempts::StorePolicy,
        body: PutBody::Whole(vec![body]),
    }
}

async fn send(
    store: &dyn Store,
    upload: &UploadName,
    number: u32,
    body: impl Into<Bytes>,
) -> CompletedPart {
    let sent = store.put_part(part(upload, number, body)).await;
    let sent = sent.unwrap_or_else(|error| panic!("part {number} of {upload:?}: {error}"));
    listed(number, &sent)
}

fn listed(number: u32, sent: &PutReply) -> CompletedPart {
    assert!(
        !sent.etag.is_empty() && !sent.etag.contains('"'),
        "{sent:?}"
    );
    CompletedPart {
        number,
        etag: sent.etag.clone(),
        checksums: Vec::new(),
    }
}

fn completion(upload: &UploadName, parts: &[CompletedPart]) -> CompleteRequest {
    CompleteRequest {
        upload: upload.clone(),
        parts: parts.to_vec(),
        if_none_match: false,
        headers: Vec::new(),
    }
}

async fn complete_kind(store: &dyn Store, upload: &UploadName, parts: &[CompletedPart]) -> Kind {
    let outcome = store.complete_upload(completion(upload, parts)).await;
    outcome.expect_err("it must be refused").kind
}

fn all_parts(upload: &UploadName) -> PartsRequest {
    PartsRequest {
        upload: upload.clone(),
        after: 0,
        limit: 1000,
    }
}

/// The uploads of the keys that begin so, page by page.
async fn uploads(store: &dyn Store, prefix: &str, limit: usize) -> Vec<UploadName> {
    let mut request = UploadsRequest {
        prefix: prefix.into(),
        limit,
        ..UploadsRequest::default()
    };
    let mut all = Vec::new();
    loop {
        let page = store.list_uploads(request.clone()).await;
        let page = page.unwrap_or_else(|error| panic!("{request:?}: {error}"));
        assert!(page.uploads.len() <= limit, "{page:?}");
        all.extend(page.uploads.into_iter().map(|upload| upload.upload));
        if !page.is_truncated {
            return all;
        }
        let last = all.last().expect("a page that goes on is not empty");
        request.key_marker = last.key.clone();
        request.upload_id_marker = last.upload_id.clone();
    }
}

/// The ETag that S3 gives an object of these parts; `None` if the store's are no MD5s.
fn tag_of_parts(parts: &[CompletedPart]) -> Option<String> {
    let mut all = Md5::new();
    for part in parts {
        let md5 = hex::decode(&part.etag).ok()?;
        all.update((md5.len() == 16).then_some(md5)?);
    }
    Some(format!("{}-{}", hex::encode(all.finalize()), parts.len()))
}

async fn parts_become_an_object(subject: &Subject) {
    let store = subject.store.as_ref();
    let headers = [
        ("content-type", "application/x-forebay"),
        ("cache-control", "max-age=60"),
        ("x-amz-meta-colour", "dark blue"),
    ];
    let upload = begin_with(store, ODD_KEY, &headers).await;
    let content = pattern(2 * PART + 12_345);
    let (first, rest) = content.split_at(PART);
    let (second, last) = rest.split_at(PART);
    // In any order, each as often as one likes; what is not listed in the end is not part of it.
    send(store, &upload, 1, &b"replaced"[..]).await;
    let last = send(store, &upload, 7, last.to_vec()).await;
    if subject.may_leave_parts_out {
        send(store, &upload, 5, &b"discarded"[..]).await;
    }
    let second = send(store, &upload, 3, second.to_vec()).await;
    let first = send(store, &upload, 1, first.to_vec()).await;
    assert_eq!(
        read_kind(store, wanted(ODD_KEY, None)).await,
        Kind::NotFound
    );
    assert_eq!(
        uploads(store, "parts/", 10).await,
        std::slice::from_ref(&upload)
    );
    let parts = [first, second, last];
    let made = store.complete_upload(completion(&upload, &parts)).await;
    let made = made.expect("complete");
    if let Some(tag) = tag_of_parts(&parts) {
        assert_eq!(made.etag, tag);
    }
    let (meta, bytes) = read(store, wanted(ODD_KEY, None)).await.expect("readable");
    assert!(bytes == content);
    assert_eq!(meta.etag, made.etag);
    let head = store.head(ODD_KEY.into()).await.expect("there");
    assert_eq!(
        (head.meta.etag, head.meta.size),
        (made.etag, content.len() as u64)
    );
    if let Some(crc) = head.crc64nvme {
        let expected = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &content);
        assert_eq!(crc, expected);
    }
    for header in owned(&headers) {
        assert!(head.meta.headers.contains(&header), "{header:?}");
    }
    let span = (PART as u64 - 5, PART as u64 + 5);
    let (_, bytes) = read(store, wanted(ODD_KEY, Some(span)))
        .await
        .expect("readable");
    assert_eq!(bytes, content[PART - 5..PART + 5]);
    assert_eq!(uploads(store, "", 10).await, []);
    if subject.forgets_complete_uploads {
        let error = store.list_parts(all_parts(&upload)).await;
        assert_eq!(error.expect_err("over").kind, Kind::NoSuchUpload);
    }
    remove(store, ODD_KEY).await;
}

async fn wrong_parts_are_refused(subject: &Subject) {
    let store = subject.store.as_ref();
    let key = "parts/wrong";
    let upload = begin(store, key).await;
    let one = send(store, &upload, 1, pattern(PART)).await;
    let two = send(store, &upload, 2, pattern(100)).await;
    let three = send(store, &upload, 3, pattern(200)).await;
    let other = CompletedPart {
        etag: three.etag.clone(),
        ..one.clone()
    };
    let missing = CompletedPart {
        number: 4,
        ..three.clone()
    };
    let refused = [
        (vec![other, two.clone()], Kind::InvalidPart),
        (vec![one.clone(), missing], Kind::InvalidPart),
        (vec![two.clone(), one.clone()], Kind::InvalidPart),
        (vec![one.clone(), two, three.clone()], Kind::PartTooSmall),
    ];
    for (parts, kind) in refused {
        assert_eq!(
            complete_kind(store, &upload, &parts).await,
            kind,
            "{parts:?}"
        );
        assert_eq!(read_kind(store, wanted(key, None)).await, Kind::NotFound);
    }
    assert_eq!(complete_kind(store, &upload, &[]).await, Kind::Rejected);
    for number in [0, PART_NUMBER_MAX + 1] {
        let error = store.put_part(part(&upload, number, &b"x"[..])).await;
        let error = error.expect_err("no such number");
        assert_eq!(error.kind, Kind::Rejected, "{error}");
    }
    // None of this has harmed the upload.
    let two = send(store, &upload, 2, pattern(PART)).await;
    let parts = [one, two, three];
    let made = store.complete_upload(completion(&upload, &parts)).await;
    made.expect("complete");
    let (meta, _) = read(store, wanted(key, Some((0, 1)))).await.expect("there");
    assert_eq!(meta.size, 2 * PART as u64 + 200);
    remove(store, key).await;
}

async fn unknown_uploads_are_unknown(store: &dyn Store) {
    put(store, "parts/source", &b"source"[..]).await;
    let real = begin(store, "parts/real").await;
    let sent = send(store, &real, 1, &b"x"[..]).await;
    // Other keys' uploads, words, and ways out of a folder.
    let ids = [
        real.upload_id.as_str(),
        "none",
        "..",
        "../x",
        "a/b",
        "2~x",
        "%2e",
        "ü",
    ];
    for id in ids {
        let upload = UploadName {
            key: "parts/other".into(),
            upload_id: id.into(),
        };
        let mut kinds = Vec::new();
        let sending = store.put_part(part(&upload, 1, &b"x"[..]));
        kinds.push(sending.await.expect_err(id).kind);
        let copying = CopyPartRequest {
            source: source("parts/source"),
            span: None,
            upload: upload.clone(),
            number: 1,
        };
        let copied = store.copy_part(copying).await.expect_err(id);
        kinds.push(copied.kind);
        kinds.push(
            store
                .list_parts(all_parts(&upload))
                .await
                .expect_err(id)
                .kind,
        );
        kinds.push(complete_kind(store, &upload, std::slice::from_ref(&sent)).await);
        kinds.push(store.abort_upload(upload).await.expect_err(id).kind);
        assert_eq!(kinds, [Kind::NoSuchUpload; 5], "{id:?}: {copied}");
    }
    store.abort_upload(real).await.expect("aborted");
    assert_eq!(
        read_kind(store, wanted("parts/other", None)).await,
        Kind::NotFound
    );
    remove(store, "parts/source").await;
}

async fn an_aborted_upload_leaves_nothing(store: &dyn Store) {
    let key = "parts/aborted";
    put(store, key, &b"kept"[..]).await;
    let upload = begin(store, key).await;
    let sent = send(store, &upload, 1, &b"x"[..]).await;
    store.abort_upload(upload.clone()).await.expect("aborted");
    assert_eq!(uploads(store, "parts/", 10).await, []);
    assert_eq!(
        complete_kind(store, &upload, &[sent]).await,
        Kind::NoSuchUpload
    );
    let error = store.put_part(part(&upload, 2, &b"x"[..])).await;
    assert_eq!(error.expect_err("over").kind, Kind::NoSuchUpload);
    let (_, bytes) = read(store, wanted(key, None)).await.expect("untouched");
    assert_eq!(bytes, b"kept");
    remove(store, key).await;
}

async fn parts_are_listed_in_pages(store: &dyn Store) {
    let upload = begin(store, ODD_KEY).await;
    let empty = store.list_parts(all_parts(&upload)).await.expect("known");
    assert_eq!((empty.parts.len(), empty.is_truncated), (0, false));
    // Swift is set up with a thousand at most.
    let numbers = [2, 9, 10, 100, 999, 1000];
    for number in numbers {
        send(store, &upload, number, pattern(number as usize)).await;
    }
    for limit in [1, 2, 3, 6, 1000] {
        let mut request = all_parts(&upload);
        request.limit = limit;
        let mut parts = Vec::new();
        loop {
            let page = store.list_parts(request.clone()).await.expect("known");
            assert!(page.parts.len() <= limit, "{page:?}");
            parts.extend(page.parts);
            if !page.is_truncated {
                break;
            }
            let last = parts.last().expect("a page that goes on is not empty");
            request.after = last.number;
        }
        let found: Vec<u32> = parts.iter().map(|part| part.number).collect();
        assert_eq!(found, numbers, "{limit} at a time");
        for part in parts {
            assert_eq!(part.size, u64::from(part.number));
            assert!(part.last_modified > 1_600_000_000, "{part:?}");
            assert!(
                !part.etag.is_empty() && !part.etag.contains('"'),
                "{part:?}"
            );
        }
    }
    store.abort_upload(upload).await.expect("aborted");
}

async fn uploads_are_listed_in_order(subject: &Subject) {
    let store = subject.store.as_ref();
    // Swift's answer to control characters here is 500, and others refuse them.
    let odd = "u/\u{1}\t\n\r<";
    let is_taken = subject.forgets_complete_uploads && !(subject.refuses)(odd);
    let odd = match is_taken {
        true => odd,
        false => "u/&lt;<",
    };
    let keys = [odd, "u/a", "u/a b+c%20", "u/a/b", "u/b&c=d", "u/ü", "v/a"];
    let mut begun = Vec::new();
    for key in keys {
        begun.push(begin(store, key).await);
    }
    // Two of one key.
    begun.push(begin(store, "u/a").await);
    for limit in [1, 2, 1000] {
        let mut found = uploads(store, "u/", limit).await;
        let mut names: Vec<&str> = found.iter().map(|upload| upload.key.as_str()).collect();
        if !subject.has_uploads_in_order {
            names.sort_unstable();
        }
        let expected = [
            keys[0],
            "u/a",
            "u/a",
            "u/a b+c%20",
            "u/a/b",
            "u/b&c=d",
            "u/ü",
        ];
        assert_eq!(names, expected, "{limit} at a time");
        found.sort_by(|one, other| one.upload_id.cmp(&other.upload_id));
        found.dedup();
        assert_eq!(found.len(), expected.len(), "{limit} at a time");
        assert!(found.iter().all(|upload| begun.contains(upload)));
        assert_eq!(uploads(store, "", limit).await.len(), keys.len() + 1);
        assert_eq!(uploads(store, "u/a b+", limit).await.len(), 1);
        assert_eq!(uploads(store, "none", limit).await, []);
    }
    let behind = UploadsRequest {
        prefix: "u/".into(),
        key_marker: "u/a".into(),
        limit: 1000,
        ..UploadsRequest::default()
    };
    let page = store.list_uploads(behind).await.expect("listed");
    let names: Vec<&str> = page
        .uploads
        .iter()
        .map(|upload| upload.upload.key.as_str())
        .collect();
    assert!(
        !names.contains(&"u/a"),
        "none of the marker's key: {names:?}"
    );
    // Swift leaves out what goes on behind the marker's key with a `/`.
    assert!(names.ends_with(&["u/b&c=d", "u/ü"]), "{names:?}");
    let is_exact = subject.has_uploads_in_order;
    assert!(!is_exact || names.contains(&"u/a/b"), "{names:?}");
    for upload in begun {
        store.abort_upload(upload).await.expect("aborted");
    }
    assert_eq!(uploads(store, "", 10).await, []);
}

async fn a_wrong_body_never_becomes_a_part(store: &dyn Store) {
    let upload = begin(store, "parts/body").await;
    for pieces in [vec!["abc"], vec!["abcde"], vec!["ab", "cd", "e"], vec![]] {
        let pieces = pieces.into_iter();
        let pieces = pieces.map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
        let request = PartRequest {
            length: 4,
            crc64nvme: None,
            body: PutBody::Stream(stream::iter(pieces).boxed_local()),
            ..part(&upload, 1, Bytes::new())
        };
        let error = store.put_part(request).await.expect_err("not 4 bytes");
        assert_eq!(error.kind, Kind::Rejected, "{error}");
    }
    let page = store.list_parts(all_parts(&upload)).await.expect("known");
    assert_eq!(page.parts, []);
    let content = Bytes::from(pattern(300_001));
    let pieces: Vec<_> = content
        .chunks(70_000)
        .map(|piece| Ok(content.slice_ref(piece)))
        .collect();
    let request = PartRequest {
        crc64nvme: None,
        body: PutBody::Stream(stream::iter(pieces).boxed_local()),
        ..part(&upload, 1, content.clone())
    };
    let sent = store.put_part(request).await.expect("sent");
    let made = store.complete_upload(completion(&upload, &[listed(1, &sent)]));
    made.await.expect("one small part is the last one");
    let (_, bytes) = read(store, wanted("parts/body", None))
        .await
        .expect("there");
    assert!(bytes == content);
    remove(store, "parts/body").await;
}

async fn a_completion_can_be_conditional(subject: &Subject) {
    let store = subject.store.as_ref();
    if !subject.has_conditional_put {
        return;
    }
    let key = "parts/conditional";
    put(store, key, &b"taken"[..]).await;
    let upload = begin(store, key).await;
    let sent = send(store, &upload, 1, &b"x"[..]).await;
    let request = CompleteRequest {
        if_none_match: true,
        ..completion(&upload, &[sent])
    };
    match store.complete_upload(request.clone()).await {
        Err(error) => {
            assert!(
                matches!(error.kind, Kind::PreconditionFailed | Kind::Unsupported),
                "{error}"
            );
            let (_, bytes) = read(store, wanted(key, None)).await.expect("untouched");
            assert_eq!(bytes, b"taken");
            store.abort_upload(upload).await.expect("aborted");
        }
        Ok(_) => panic!("an object was overwritten"),
    }
    remove(store, key).await;
}

fn source(key: &str) -> CopySource {
    CopySource {
        key: key.into(),
        if_match: None,
        version_id: None,
    }
}

fn copy(from: &str, to: &str) -> CopyRequest {
    CopyRequest {
        source: source(from),
        key: to.into(),
        headers: None,
    }
}

async fn objects_are_copied(store: &dyn Store) {
    let content = pattern(700_001);
    let headers = owned(&[("content-type", "text/x-a"), ("x-amz-meta-a", "b c")]);
    let mut request = whole(ODD_KEY, content.clone());
    request.headers = headers.clone();
    store.put(request).await.expect("written");
    for target in ["copy", "copy/a b+c%20&ü=?#", "copy"] {
        let copied = store.copy(copy(ODD_KEY, target)).await;
        let copied = copied.unwrap_or_else(|error| panic!("{target:?}: {error}"));
        let (meta, bytes) = read(store, wanted(target, None)).await.expect("there");
        assert!(bytes == content, "{target:?}");
        assert_eq!(meta.etag, copied.etag);
        for header in &headers {
            assert!(
                meta.headers.contains(header),
                "{header:?}: {:?}",
                meta.headers
            );
        }
    }
    let new = owned(&[("content-type", "text/x-b"), ("x-amz-meta-new", "1")]);
    for target in ["copy", ODD_KEY] {
        let request = CopyRequest {
            headers: Some(new.clone()),
            ..copy(ODD_KEY, target)
        };
        let copied = store.copy(request).await;
        let copied = copied.unwrap_or_else(|error| panic!("{target:?}: {error}"));
        let (meta, bytes) = read(store, wanted(target, None)).await.expect("there");
        assert!(bytes == content, "{target:?}");
        assert_eq!(meta.etag, copied.etag);
        for header in &new {
            assert!(
                meta.headers.contains(header),
                "{header:?}: {:?}",
                meta.headers
            );
        }
        assert!(!meta.headers.contains(&headers[1]), "{:?}", meta.headers);
    }
    let error = store
        .copy(copy("copy", "copy"))
        .await
        .expect_err("no change");
    assert_eq!(error.kind, Kind::Rejected, "{error}");
    put(store, "copy/empty", Bytes::new()).await;
    store
        .copy(copy("copy/empty", "copy"))
        .await
        .expect("copied");
    assert_eq!(
        read(store, wanted("copy", None)).await.expect("there").1,
        b""
    );
    for key in ["copy", "copy/empty", "copy/a b+c%20&ü=?#", ODD_KEY] {
        remove(store, key).await;
    }
}

async fn copies_keep_to_their_version(store: &dyn Store) {
    let old = put(store, "source", &b"old"[..]).await.etag;
    let new = put(store, "source", &b"new"[..]).await.etag;
    let with = |tag: &str| CopyRequest {
        source: CopySource {
            key: "source".into(),
            if_match: Some(tag.to_owned()),
            version_id: None,
        },
        ..copy("", "target")
    };
    let error = store.copy(with(&old)).await.expect_err("another version");
    assert_eq!(error.kind, Kind::PreconditionFailed, "{error}");
    assert_eq!(
        read_kind(store, wanted("target", None)).await,
        Kind::NotFound
    );
    store.copy(with(&new)).await.expect("its version");
    assert_eq!(
        read(store, wanted("target", None)).await.expect("there").1,
        b"new"
    );
    let error = store.copy(copy("none", "target")).await.expect_err("none");
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    let error = store
        .copy(copy("../source", "target"))
        .await
        .expect_err("bad");
    assert_eq!(error.kind, Kind::InvalidKey, "{error}");
    let error = store.copy(copy("source", "a/../b")).await.expect_err("bad");
    assert_eq!(error.kind, Kind::InvalidKey, "{error}");
    remove(store, "source").await;
    remove(store, "target").await;
}

async fn spans_are_copied_into_parts(subject: &Subject) {
    let store = subject.store.as_ref();
    let content = pattern(PART + 100_000);
    let tag = put(store, ODD_KEY, content.clone()).await.etag;
    let upload = begin(store, "parts/copied").await;
    let request = |number, span: Option<(u64, u64)>| CopyPartRequest {
        source: CopySource {
            key: ODD_KEY.into(),
            if_match: Some(tag.clone()),
            version_id: None,
        },
        span: span.map(|(start, end)| ByteSpan { start, end }),
        upload: upload.clone(),
        number,
    };
    let size = content.len() as u64;
    let mut parts = Vec::new();
    for (number, span) in [
        (1, None),
        (2, Some((7, 7 + PART as u64))),
        (3, Some((size - 1, size))),
    ] {
        let copied = store.copy_part(request(number, span)).await;
        let copied = copied.unwrap_or_else(|error| panic!("part {number}: {error}"));
        parts.push(listed(number, &copied));
    }
    parts.push(send(store, &upload, 4, &b"end"[..]).await);
    for span in [(0, size + 1), (size, size + 1), (size + 5, size + 6)] {
        let error = store.copy_part(request(5, Some(span))).await;
        let error = error.expect_err("past the end");
        assert_eq!(error.kind, Kind::RangeNotSatisfiable, "{span:?}: {error}");
    }
    let error = store.copy_part(request(5, Some((3, 3)))).await;
    assert_eq!(error.expect_err("empty").kind, Kind::Rejected);
    let mut other = request(5, None);
    other.source.if_match = Some("00000000000000000000000000000000".into());
    let error = store.copy_part(other).await.expect_err("another version");
    assert_eq!(error.kind, Kind::PreconditionFailed, "{error}");
    let mut other = request(5, None);
    other.source = source("parts/none");
    let error = store.copy_part(other).await.expect_err("no source");
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    let small = complete_kind(store, &upload, &parts).await;
    assert_eq!(small, Kind::PartTooSmall);
    let again = store.copy_part(request(3, Some((0, PART as u64)))).await;
    parts[2] = listed(3, &again.expect("copied"));
    store
        .complete_upload(completion(&upload, &parts))
        .await
        .expect("complete");
    let (_, bytes) = read(store, wanted("parts/copied", None))
        .await
        .expect("there");
    let expected = [
        &content[..],
        &content[7..7 + PART],
        &content[..PART],
        b"end",
    ]
    .concat();
    assert!(bytes == expected);
    // An object of parts is copied like any other.
    let copied = store
        .copy(copy("parts/copied", "copy"))
        .await
        .expect("copied");
    let (meta, bytes) = read(store, wanted("copy", None)).await.expect("there");
    assert!(bytes == expected);
    assert_eq!(meta.etag, copied.etag);
    for key in ["copy", "parts/copied", ODD_KEY] {
        remove(store, key).await;
    }
}

async fn writes_keep_to_their_version(subject: &Subject) {
    let store = subject.store.as_ref();
    let over = |tag: &str, body: &'static [u8]| PutRequest {
        if_match: Some(tag.to_owned()),
        ..whole("versions", body)
    };
    let check = |outcome: StoreResult<PutReply>, kinds: &[Kind]| {
        let error = outcome.expect_err("it must be refused");
        assert!(kinds.contains(&error.kind), "{error}");
    };
    if !subject.has_if_match {
        check(store.put(over("t", b"x")).await, &[Kind::Unsupported]);
        return;
    }
    let nothing = store.put(over("t", b"x")).await;
    check(nothing, &[Kind::NotFound, Kind::PreconditionFailed]);
    assert_eq!(
        read_kind(store, wanted("versions", None)).await,
        Kind::NotFound
    );
    let old = put(store, "versions", &b"old"[..]).await.etag;
    let new = put(store, "versions", &b"new"[..]).await.etag;
    check(
        store.put(over(&old, b"x")).await,
        &[Kind::PreconditionFailed],
    );
    let (_, bytes) = read(store, wanted("versions", None)).await.expect("there");
    assert_eq!(bytes, b"new");
    store.put(over(&new, b"newer")).await.expect("its version");
    let (_, bytes) = read(store, wanted("versions", None)).await.expect("there");
    assert_eq!(bytes, b"newer");
    remove(store, "versions").await;
}
