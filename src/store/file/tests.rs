//! What a folder must survive: crashes, people, links, other writers.

use super::*;
use forebay_io::store::Attempts;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(future)
}

fn put(key: &str, body: &[u8]) -> PutRequest {
    PutRequest {
        key: key.into(),
        length: body.len() as u64,
        headers: vec![("x-amz-meta-a".into(), "b".into())],
        crc64nvme: None,
        if_none_match: false,
        if_match: None,
        attempts: Attempts::StorePolicy,
        body: PutBody::Whole(vec![Bytes::copy_from_slice(body)]),
    }
}

fn get(key: &str) -> GetRequest {
    GetRequest {
        key: key.into(),
        ..GetRequest::default()
    }
}

async fn read(store: &FileStore, key: &str) -> StoreResult<Vec<u8>> {
    let mut reply = store.get(get(key)).await?;
    let mut all = Vec::new();
    while let Some(piece) = reply.body.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

fn temporaries(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join(".forebay-tmp")).expect("it is made at open");
    entries
        .map(|entry| entry.expect("readable").path())
        .collect()
}

#[test]
fn objects_and_their_metadata_outlive_the_store() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let reply = run(store.put(put("a/b", b"hello"))).expect("written");
    assert_eq!(reply.etag, "5d41402abc4b2a76b9719d911017c592");
    drop(store);
    let store = FileStore::open(root.path()).expect("usable");
    let head = run(store.head("a/b".into())).expect("still there");
    let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, b"hello");
    assert_eq!(head.crc64nvme, Some(crc));
    let meta = head.meta;
    assert_eq!(
        (meta.size, meta.etag, meta.last_modified),
        (5, reply.etag, reply.last_modified)
    );
    assert_eq!(meta.headers, [("x-amz-meta-a".to_owned(), "b".to_owned())]);
    assert_eq!(run(read(&store, "a/b")).expect("readable"), b"hello");
    assert!(temporaries(root.path()).is_empty());
    let mode = |path: &str| {
        fs::metadata(root.path().join(path))
            .expect("there")
            .permissions()
    };
    assert_eq!(mode("a+").mode() & 0o777, 0o700);
    assert_eq!(mode("a+/b").mode() & 0o777, 0o600);
}

#[test]
fn a_key_and_keys_below_it_coexist() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let keys = [
        "a", "a/", "a/b", "a//b", "/a", "A", "a/b/c", "//", "a+", "a%2Fb",
    ];
    for key in keys {
        run(store.put(put(key, key.as_bytes()))).expect(key);
    }
    for key in keys {
        assert_eq!(run(read(&store, key)).expect(key), key.as_bytes());
    }
    for key in keys {
        run(store.delete(key.into())).expect(key);
        assert_eq!(
            run(store.head(key.into())).expect_err(key).kind,
            StoreErrorKind::NotFound
        );
        run(store.delete(key.into())).expect("removing nothing succeeds");
    }
    let left: Vec<_> = fs::read_dir(root.path()).expect("readable").collect();
    assert_eq!(left.len(), 1, "empty directories stay: {left:?}");
}

#[test]
fn plain_files_are_objects_under_names_that_keys_have() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    fs::write(root.path().join("notes.txt"), b"by hand").expect("writable");
    fs::create_dir(root.path().join("dir+")).expect("writable");
    fs::write(root.path().join("dir+/x"), vec![7; 100_000]).expect("writable");
    assert_eq!(
        run(read(&store, "notes.txt")).expect("readable"),
        b"by hand"
    );
    assert_eq!(run(read(&store, "dir/x")).expect("readable").len(), 100_000);
    let before = run(store.head("notes.txt".into())).expect("there").meta;
    fs::write(root.path().join("notes.txt"), b"by hand!").expect("writable");
    let after = run(store.head("notes.txt".into())).expect("there").meta;
    assert_ne!(before.etag, after.etag);
    run(store.put(put("notes.txt", b"ours"))).expect("replaced");
    assert_eq!(run(read(&store, "notes.txt")).expect("readable"), b"ours");
}

#[test]
fn a_plain_file_that_changes_under_a_reader_ends_the_read() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let path = root.path().join("k");
    fs::write(&path, vec![1; 3 * PIECE_BYTES]).expect("writable");
    run(async {
        let mut reply = store.get(get("k")).await.expect("found");
        reply.body.next().await.expect("a piece").expect("good");
        fs::write(&path, vec![2; 3 * PIECE_BYTES]).expect("writable");
        let error = reply
            .body
            .next()
            .await
            .expect("an item")
            .expect_err("changed");
        assert_eq!(error.kind, StoreErrorKind::Corrupt);
        assert!(reply.body.next().await.is_none());
    });
}

#[test]
fn a_reader_keeps_its_version_when_the_object_is_replaced() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let old = vec![1; 3 * PIECE_BYTES];
    run(async {
        store.put(put("k", &old)).await.expect("written");
        let mut reply = store.get(get("k")).await.expect("found");
        store.put(put("k", b"new")).await.expect("written");
        let mut all = Vec::new();
        while let Some(piece) = reply.body.next().await {
            all.extend_from_slice(&piece.expect("good"));
        }
        assert!(all == old);
    });
}

#[test]
fn links_are_never_followed() {
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("secret"), b"secret").expect("writable");
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    symlink(outside.path().join("secret"), root.path().join("link")).expect("linkable");
    symlink(outside.path(), root.path().join("dir+")).expect("linkable");
    for key in ["link", "dir/secret"] {
        let error = run(store.head(key.into())).expect_err("behind a link");
        assert_eq!(error.kind, StoreErrorKind::Denied, "{key}: {error}");
    }
    let error = run(store.put(put("dir/new", b"x"))).expect_err("behind a link");
    assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
    assert!(!outside.path().join("new").exists());
    let error = run(store.delete("dir/secret".into())).expect_err("behind a link");
    assert_eq!(error.kind, StoreErrorKind::Denied);
    // A rename replaces the link itself, as a PUT replaces any object.
    run(store.put(put("link", b"ours"))).expect("the link goes");
    assert_eq!(
        fs::read(outside.path().join("secret")).expect("untouched"),
        b"secret"
    );
}

#[test]
fn odd_files_are_no_objects() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let pipe = root.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a pipe");
    fs::create_dir(root.path().join("dir")).expect("writable");
    for key in ["pipe", "dir"] {
        let error = run(store.head(key.into())).expect_err("no object");
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{key}: {error}");
    }
}

#[test]
fn leftovers_of_a_crash_are_removed_and_living_writers_are_not_disturbed() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let leftover = root.path().join(".forebay-tmp/put-1-1");
    fs::write(&leftover, b"half").expect("writable");
    let living = store.folder.temporary().expect("usable");
    assert_eq!(temporaries(root.path()).len(), 2);
    FileStore::open(root.path()).expect("usable");
    assert_eq!(temporaries(root.path()).len(), 1);
    assert!(!leftover.exists());
    drop(living);
    assert!(temporaries(root.path()).is_empty());
}

#[test]
fn a_body_that_is_not_what_was_announced_leaves_nothing() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    let failing = StoreError::new(StoreErrorKind::Timeout, "the client left");
    let streams: [(u64, Vec<StoreResult<Bytes>>, StoreErrorKind); 3] = [
        (
            4,
            vec![Ok(Bytes::from_static(b"abc"))],
            StoreErrorKind::Rejected,
        ),
        (
            2,
            vec![Ok(Bytes::from_static(b"abc"))],
            StoreErrorKind::Rejected,
        ),
        (
            4,
            vec![Ok(Bytes::from_static(b"ab")), Err(failing)],
            StoreErrorKind::Timeout,
        ),
    ];
    for (length, pieces, kind) in streams {
        let mut request = put("k", b"");
        request.length = length;
        request.body = PutBody::Stream(stream::iter(pieces).boxed_local());
        assert_eq!(run(store.put(request)).expect_err("wrong").kind, kind);
    }
    let mut request = put("k", b"abc");
    request.crc64nvme = Some(1);
    assert_eq!(
        run(store.put(request)).expect_err("wrong").kind,
        StoreErrorKind::Corrupt
    );
    let mut request = put("k", b"abc");
    request.crc64nvme = Some(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, b"abc"));
    assert_eq!(
        run(store.head("k".into())).expect_err("none").kind,
        StoreErrorKind::NotFound
    );
    run(store.put(request)).expect("the right checksum");
    assert!(temporaries(root.path()).is_empty());
}

#[test]
fn a_damaged_trailer_is_an_error_and_never_content() {
    let root = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(root.path()).expect("usable");
    run(store.put(put("k", b"content"))).expect("written");
    let path = root.path().join("k");
    let good = fs::read(&path).expect("readable");
    for at in b"content".len()..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(&path, &bad).expect("writable");
        let error = run(read(&store, "k")).expect_err("damaged");
        assert_eq!(error.kind, StoreErrorKind::Corrupt, "byte {at}");
    }
}

#[test]
fn a_missing_folder_is_not_a_missing_key() {
    let parent = tempfile::tempdir().expect("a folder");
    let root = parent.path().join("bucket");
    let refusal = FileStore::open(&root).err().expect("not there");
    assert!(refusal.to_string().contains("bucket"), "{refusal}");
    fs::create_dir(&root).expect("writable");
    let store = FileStore::open(&root).expect("usable");
    fs::remove_dir_all(&root).expect("removable");
    let kinds = [
        run(store.head("k".into())).expect_err("gone").kind,
        run(store.put(put("k", b""))).expect_err("gone").kind,
        run(store.delete("k".into())).expect_err("gone").kind,
    ];
    assert_eq!(kinds, [StoreErrorKind::NoSuchBucket; 3]);
}

#[test]
fn makes_and_removes_in_one_directory_do_not_trip_each_other() {
    let root = tempfile::tempdir().expect("a folder");
    let worker = |name: &'static str| {
        let path = root.path().to_owned();
        std::thread::spawn(move || {
            let store = FileStore::open(&path).expect("usable");
            for round in 0..100 {
                let key = format!("d/e/{name}");
                run(store.put(put(&key, b"x"))).unwrap_or_else(|e| panic!("{round}: {e}"));
                run(store.delete(key)).unwrap_or_else(|e| panic!("{round}: {e}"));
            }
        })
    };
    let workers = [worker("a"), worker("b"), worker("c")];
    for worker in workers {
        worker.join().expect("no failure");
    }
}

#[test]
fn of_many_that_create_one_key_one_wins() {
    let root = tempfile::tempdir().expect("a folder");
    let worker = |index: u8| {
        let path = root.path().to_owned();
        std::thread::spawn(move || {
            let store = FileStore::open(&path).expect("usable");
            let mut request = put("k", &[index]);
            request.if_none_match = true;
            run(store.put(request)).map_err(|error| error.kind)
        })
    };
    let workers: Vec<_> = (0..8).map(worker).collect();
    let outcomes: Vec<_> = workers
        .into_iter()
        .map(|w| w.join().expect("no panic"))
        .collect();
    let losses = |kind| {
        outcomes
            .iter()
            .filter(|outcome| **outcome == Err(kind))
            .count()
    };
    assert_eq!(
        losses(StoreErrorKind::PreconditionFailed),
        7,
        "{outcomes:?}"
    );
    assert!(temporaries(root.path()).is_empty());
}
