//! What uploads in a folder must survive: restarts, crashes, and each other.

use super::*;
use bytes::Bytes;
use forebay_io::multipart::CopySource;
use forebay_io::store::{Attempts, PutBody, Store};
use std::fs;
use std::path::Path;

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(future)
}

fn part(upload: &UploadName, number: u32, body: &'static [u8]) -> PartRequest {
    PartRequest {
        upload: upload.clone(),
        number,
        length: body.len() as u64,
        headers: vec![("x-amz-checksum-crc32".into(), crc32(body))],
        crc64nvme: None,
        attempts: Attempts::StorePolicy,
        body: PutBody::Whole(vec![Bytes::from_static(body)]),
    }
}

fn crc32(body: &[u8]) -> String {
    use base64::Engine;
    let crc = crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, body) as u32;
    base64::engine::general_purpose::STANDARD.encode(crc.to_be_bytes())
}

fn completion(upload: &UploadName, etag: &str, crc32: String) -> CompleteRequest {
    CompleteRequest {
        upload: upload.clone(),
        parts: vec![CompletedPart {
            number: 1,
            etag: etag.into(),
            checksums: vec![("ChecksumCRC32".into(), crc32)],
        }],
        if_none_match: false,
        headers: Vec::new(),
    }
}

fn names_in(root: &Path) -> Vec<String> {
    let names = fs::read_dir(root).expect("readable");
    let names = names.map(|entry| entry.expect("readable").file_name());
    let mut names: Vec<_> = names
        .map(|name| name.into_string().expect("ours"))
        .collect();
    names.sort();
    names
}

#[test]
fn uploads_outlive_the_store() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let headers = vec![
        ("x-amz-meta-a".to_owned(), "b".to_owned()),
        ("x-amz-checksum-algorithm".to_owned(), "CRC32".to_owned()),
    ];
    let upload = run(store.create_upload("a/b".into(), headers)).expect("begun");
    let sent = run(store.put_part(part(&upload, 1, b"hello"))).expect("sent");
    assert_eq!(names_in(root.path()), [".forebay-tmp", ".forebay-uploads"]);
    drop(store);
    let store = FileStore::open(root.path()).expect("usable");
    let wrong = completion(&upload, &sent.etag, crc32(b"other"));
    let error = run(store.complete_upload(wrong)).expect_err("another checksum");
    assert_eq!(error.kind, StoreErrorKind::InvalidPart);
    let request = completion(&upload, &sent.etag, crc32(b"hello"));
    let made = run(store.complete_upload(request)).expect("complete");
    assert!(made.etag.ends_with("-1"), "{made:?}");
    let head = run(store.head("a/b".into())).expect("there");
    let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, b"hello");
    assert_eq!((head.crc64nvme, head.meta.size), (Some(crc), 5));
    let header = |name: &str| {
        let found = head.meta.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!(header("x-amz-meta-a"), Some("b"));
    assert_eq!(header("x-amz-checksum-type"), Some("COMPOSITE"));
    assert_eq!(header("x-amz-checksum-algorithm"), None);
    let composite = header("x-amz-checksum-crc32").expect("of the parts");
    assert!(composite.ends_with("-1"), "{composite}");
    assert_eq!(names_in(root.path()), [".forebay-tmp", "a+"]);
}

#[test]
fn what_a_crash_leaves_of_uploads_is_removed() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let ended = run(store.create_upload("ended".into(), Vec::new())).expect("begun");
    run(store.put_part(part(&ended, 1, b"x"))).expect("sent");
    let kept = run(store.create_upload("kept".into(), Vec::new())).expect("begun");
    run(store.put_part(part(&kept, 1, b"x"))).expect("sent");
    drop(store);
    let uploads = root.path().join(UPLOADS_FOLDER);
    // A crash while one was ended, and one while another was begun.
    fs::remove_file(uploads.join(&ended.upload_id).join(UPLOAD_FILE)).expect("there");
    fs::create_dir(uploads.join("00-1-1")).expect("writable");
    let store = FileStore::open(root.path()).expect("usable");
    assert_eq!(names_in(&uploads), [kept.upload_id.as_str()]);
    run(store.abort_upload(kept)).expect("still there");
    assert_eq!(names_in(root.path()), [".forebay-tmp"]);
}

#[test]
fn one_at_a_time_ends_an_upload() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let other = FileStore::open(root.path()).expect("usable");
    let upload = run(store.create_upload("k".into(), Vec::new())).expect("begun");
    let lock = lock_upload(&store.folder, &upload);
    let lock = lock.map_err(StoreError::from).expect("free");
    let error = run(other.abort_upload(upload.clone())).expect_err("held");
    assert_eq!(error.kind, StoreErrorKind::Contended);
    drop(lock);
    run(other.abort_upload(upload.clone())).expect("free again");
    let error = run(store.put_part(part(&upload, 1, b"x"))).expect_err("over");
    assert_eq!(error.kind, StoreErrorKind::NoSuchUpload);
    assert_eq!(names_in(root.path()), [".forebay-tmp"]);
}

#[test]
fn a_plain_file_is_copied_with_its_md5() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    fs::write(root.path().join("notes.txt"), b"hello").expect("writable");
    let request = CopyRequest {
        source: CopySource {
            key: "notes.txt".into(),
            if_match: None,
            version_id: None,
        },
        key: "copy".into(),
        headers: None,
    };
    let copied = run(store.copy(request)).expect("copied");
    assert_eq!(copied.etag, "5d41402abc4b2a76b9719d911017c592");
    let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, b"hello");
    assert_eq!(
        run(store.head("copy".into())).expect("there").crc64nvme,
        Some(crc)
    );
}
