//! Copies and uploads in parts at a store that fails on demand.
//!
//! A scripted server plays the store: successes that tell an error, completions that tell no ETag,
//! answers that are lost.

mod scripted_server;

use forebay_io::multipart::{
    CompleteRequest, CompletedPart, CopyPartRequest, CopyRequest, CopySource, UploadName,
};
use forebay_io::store::{ByteSpan, PutReply, Store, StoreErrorKind as Kind, StoreResult};
use scripted_server::client::{ONCE, THRICE, refused, run, scripted};
use scripted_server::{Act, answer};

/// The MD5 of `hello`, the ETag of its part, and of an object that is this part alone.
const PART_TAG: &str = "5d41402abc4b2a76b9719d911017c592";
const WHOLE_TAG: &str = "62109206880d38a4010a98e11243924a-1";

fn document(root: &str, inside: &str) -> Act {
    let body = format!("<?xml version=\"1.0\"?>\n<{root}>{inside}</{root}>");
    let kind = [("Content-Type", "application/xml")];
    Act::Send(answer(200, &kind, body.as_bytes()))
}

fn copied() -> Act {
    let time = "<LastModified>2024-01-02T03:04:05Z</LastModified>";
    document("CopyObjectResult", &format!("{time}<ETag>\"t\"</ETag>"))
}

fn late_error(code: &str) -> Act {
    document(
        "Error",
        &format!("<Code>{code}</Code><Message>no</Message>"),
    )
}

fn lost() -> Act {
    Act::SendAndClose(Vec::new())
}

fn described(etag: &str) -> Act {
    let etag = format!("\"{etag}\"");
    Act::Send(answer(
        200,
        &[("ETag", &etag), ("Content-Length", "5")],
        b"",
    ))
}

fn copy() -> CopyRequest {
    CopyRequest {
        source: CopySource {
            key: "a b+c/ü%20?".into(),
            if_match: Some("tag".into()),
            version_id: None,
        },
        key: "k".into(),
        headers: None,
    }
}

fn completion(etag: &str) -> CompleteRequest {
    CompleteRequest {
        upload: UploadName {
            key: "k".into(),
            upload_id: "u+/=".into(),
        },
        parts: vec![CompletedPart {
            number: 1,
            etag: etag.into(),
            checksums: vec![("ChecksumCRC32".into(), "AAAAAA==".into())],
        }],
        if_none_match: false,
        headers: Vec::new(),
    }
}

async fn complete(store: &dyn Store) -> StoreResult<PutReply> {
    store.complete_upload(completion(PART_TAG)).await
}

#[test]
fn a_copy_that_succeeds_with_an_error_has_failed() {
    run(async {
        let (server, store) = scripted(vec![late_error("AccessDenied")], ONCE).await;
        let error = store.copy(copy()).await.expect_err("an error");
        assert_eq!((error.kind, error.status), (Kind::Denied, None), "{error}");
        assert_eq!(server.script_left(), 0);
        let script = vec![
            late_error("InternalError"),
            late_error("SlowDown"),
            copied(),
        ];
        let (server, store) = scripted(script, THRICE).await;
        assert_eq!(store.copy(copy()).await.expect("the third time").etag, "t");
        assert_eq!(server.seen().len(), 3);
    });
}

#[test]
fn a_copy_names_its_source_byte_for_byte() {
    run(async {
        let (server, store) = scripted(vec![copied()], ONCE).await;
        let reply = store.copy(copy()).await.expect("copied");
        assert_eq!(
            (reply.etag.as_str(), reply.last_modified),
            ("t", 1_704_164_645)
        );
        let seen = &server.seen()[0];
        let source = seen.header("x-amz-copy-source");
        assert_eq!(source, Some("/bkt/a%20b%2Bc/%C3%BC%2520%3F"));
        assert_eq!(seen.header("x-amz-copy-source-if-match"), Some("\"tag\""));
        assert_eq!(seen.header("content-length"), Some("0"));
        assert_eq!(seen.header("x-amz-metadata-directive"), None);
        assert!(seen.head.starts_with("PUT /bkt/k?"), "{}", seen.head);
        assert!(seen.head.contains("x-amz-copy-source"), "{}", seen.head);
    });
}

#[test]
fn a_copy_may_take_longer_than_other_requests() {
    run(async {
        let slow = |answer: Act| match answer {
            Act::Send(bytes) => {
                // One byte after the other: the head alone is later than any other answer's may be.
                let pause = std::time::Duration::from_millis(6);
                Act::SendSlowly(Vec::new(), bytes, pause)
            }
            other => other,
        };
        let (_, store) = scripted(vec![slow(copied())], ONCE).await;
        store
            .copy(copy())
            .await
            .expect("slow, and within its own time");
        let (_, store) = scripted(vec![Act::SendAndHang(Vec::new())], ONCE).await;
        let error = store.copy(copy()).await.expect_err("never");
        assert_eq!(error.kind, Kind::Timeout, "{error}");
    });
}

#[test]
fn a_part_of_an_escaped_name_is_carried() {
    run(async {
        let head = described("tag");
        let range = [("ETag", "\"tag\""), ("Content-Range", "bytes 1-2/5")];
        let got = Act::Send(answer(206, &range, b"el"));
        let put = Act::Send(answer(200, &[("ETag", "\"p\"")], b""));
        let (server, store) = scripted(vec![head, got, put], ONCE).await;
        let request = CopyPartRequest {
            source: copy().source,
            span: Some(ByteSpan { start: 1, end: 3 }),
            upload: completion("").upload,
            number: 7,
        };
        assert_eq!(store.copy_part(request).await.expect("carried").etag, "p");
        let seen = server.seen();
        assert!(
            seen[1]
                .head
                .starts_with("GET /bkt/a%20b%2Bc/%C3%BC%2520%3F?"),
            "{}",
            seen[1].head
        );
        assert_eq!(seen[1].header("if-match"), Some("\"tag\""));
        assert_eq!(seen[2].body, b"el");
        assert!(
            seen[2].head.contains("partNumber=7&uploadId=u%2B%2F%3D"),
            "{}",
            seen[2].head
        );
    });
}

#[test]
fn a_completion_without_an_etag_gets_the_one_of_its_parts() {
    run(async {
        let made = || document("CompleteMultipartUploadResult", "<ETag></ETag>");
        let (server, store) = scripted(vec![made()], ONCE).await;
        assert_eq!(
            complete(store.as_ref()).await.expect("made").etag,
            WHOLE_TAG
        );
        let seen = &server.seen()[0];
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        assert!(body.contains(PART_TAG) && !body.contains("CRC32"), "{body}");
        assert!(seen.head.starts_with("POST /bkt/k?"), "{}", seen.head);
        // Parts whose ETags are no MD5s say nothing of it.
        let (_, store) = scripted(vec![made(), described("from-head")], ONCE).await;
        let reply = store.complete_upload(completion("opaque")).await;
        assert_eq!(reply.expect("made").etag, "from-head");
    });
}

#[test]
fn a_completion_whose_answer_was_lost_is_found_out() {
    run(async {
        let gone = || Act::Send(refused(404, "NoSuchUpload"));
        let script = vec![lost(), gone(), described(WHOLE_TAG)];
        let (server, store) = scripted(script, THRICE).await;
        assert_eq!(
            complete(store.as_ref()).await.expect("made before").etag,
            WHOLE_TAG
        );
        assert_eq!(server.script_left(), 0);
        // Another object has the key: somebody else ended the upload, or wrote since.
        let script = vec![lost(), gone(), described("other")];
        let (_, store) = scripted(script, THRICE).await;
        let error = complete(store.as_ref()).await.expect_err("not ours");
        assert_eq!(error.kind, Kind::NoSuchUpload, "{error}");
        // Nothing was lost before.
        let (server, store) = scripted(vec![gone()], THRICE).await;
        let error = complete(store.as_ref()).await.expect_err("unknown");
        assert_eq!((error.kind, error.attempts), (Kind::NoSuchUpload, 1));
        assert_eq!(server.seen().len(), 1);
        // Not to be told from the ETags: the doubt stays.
        let (_, store) = scripted(vec![lost(), gone()], THRICE).await;
        let error = store.complete_upload(completion("opaque")).await;
        assert_eq!(error.expect_err("in doubt").kind, Kind::Unreachable);
    });
}

#[test]
fn a_completion_of_an_upload_that_the_store_does_not_know_is_asked_about() {
    run(async {
        // As Ceph answers.
        let script = vec![
            Act::Send(refused(500, "InternalError")),
            Act::Send(refused(404, "NoSuchKey")),
        ];
        let (server, store) = scripted(script, ONCE).await;
        let error = complete(store.as_ref()).await.expect_err("unknown");
        assert_eq!(error.kind, Kind::NoSuchUpload, "{error}");
        assert!(server.seen()[1].head.starts_with("GET /bkt/k?"));
    });
}

#[test]
fn an_upload_is_begun_again_only_where_none_was() {
    run(async {
        let begun = || document("InitiateMultipartUploadResult", "<UploadId>u</UploadId>");
        let script = vec![Act::Send(refused(503, "SlowDown")), begun()];
        let (_, store) = scripted(script, THRICE).await;
        let upload = store.create_upload("k".into(), Vec::new()).await;
        assert_eq!(upload.expect("the second time").upload_id, "u");
        let (server, store) = scripted(vec![lost(), begun()], THRICE).await;
        let error = store.create_upload("k".into(), Vec::new()).await;
        assert_eq!(error.expect_err("in doubt").kind, Kind::Unreachable);
        assert_eq!(server.script_left(), 1);
    });
}

#[test]
fn an_abort_whose_answer_was_lost_has_succeeded() {
    run(async {
        let gone = || Act::Send(refused(404, "NoSuchUpload"));
        let (_, store) = scripted(vec![lost(), gone()], THRICE).await;
        let upload = completion("").upload;
        store
            .abort_upload(upload.clone())
            .await
            .expect("done before");
        let (_, store) = scripted(vec![gone()], THRICE).await;
        let error = store.abort_upload(upload).await.expect_err("unknown");
        assert_eq!(error.kind, Kind::NoSuchUpload, "{error}");
    });
}
