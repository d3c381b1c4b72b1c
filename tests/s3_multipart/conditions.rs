//! Writes that are only done if the key is as it must be: `If-Match` and `If-None-Match`.

use crate::common::signing::{assert_code, verdict};
use crate::common::{Answer, Proxy, Setup, pattern, wait_until};
use crate::rig::{
    Upload, assert_gone, assert_object, is_clean, proxies, proxies_with, request, target, writeback,
};

fn put_if(proxy: &Proxy, key: &str, tag: &str, body: &[u8]) -> Answer {
    request(proxy, "PUT", &target(key), &[("if-match", tag)], body)
}

#[test]
fn a_write_is_bound_to_the_version_that_clients_are_told_of() {
    let fast = Setup {
        volume_lines: writeback().volume_lines + "etag = \"fast\"\n",
        flags: Vec::new(),
        ..Setup::default()
    };
    for setup in [Setup::default(), writeback(), fast] {
        for proxy in proxies_with(&setup) {
            // Less than a block, and several.
            for length in [10, 2_500_000] {
                let first = request(&proxy, "PUT", &target("k"), &[], &pattern(1, length));
                let first = first.expect_header("etag").to_owned();
                let body = pattern(2, length);
                let answer = put_if(&proxy, "k", "\"other\"", &pattern(3, length));
                assert_code(&answer, 412, "PreconditionFailed", "another version");
                let answer = put_if(&proxy, "k", &first, &body);
                assert_eq!(answer.status, 200, "{}", answer.text());
                let second = answer.expect_header("etag").to_owned();
                assert_object(&proxy, "k", &body, "the version was there");
                let answer = put_if(&proxy, "k", &first, &pattern(3, length));
                assert_code(&answer, 412, "PreconditionFailed", "it is replaced");
                assert_object(&proxy, "k", &body, "nothing was done");
                // Whether the store has it by now changes nothing of what the client is told.
                proxy.operator("POST", "/-/flush");
                let bare = second.trim_matches('"');
                let answer = put_if(&proxy, "k", bare, &pattern(4, length));
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_object(&proxy, "k", &pattern(4, length), "again");
            }
        }
    }
}

#[test]
fn an_uploaded_object_keeps_its_tag_for_conditions() {
    let setup = Setup {
        volume_lines: writeback().volume_lines + "etag = \"fast\"\n",
        flags: Vec::new(),
        ..Setup::default()
    };
    for proxy in proxies_with(&setup) {
        let put = request(&proxy, "PUT", &target("k"), &[], b"first");
        assert_eq!(put.expect_header("x-forebay-write"), "back");
        let tag = put.expect_header("etag").to_owned();
        wait_until("it is uploaded", || is_clean(&proxy));
        let answer = put_if(&proxy, "k", "\"other\"", b"third");
        assert_code(&answer, 412, "PreconditionFailed", "another version");
        let answer = put_if(&proxy, "k", &tag, b"second");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_object(&proxy, "k", b"second", "by the tag that was told");
    }
}

#[test]
fn a_condition_on_nothing_or_of_another_kind_is_refused() {
    for setup in [Setup::default(), writeback()] {
        for proxy in proxies_with(&setup) {
            let answer = put_if(&proxy, "k", "\"a\"", b"body");
            // S3 says that there is none; Ceph that it is not this one.
            let verdict = verdict(&answer, "PUT");
            let expected = [(404, "NoSuchKey"), (412, "PreconditionFailed")];
            let is_expected = |(status, code): &(u16, &str)| verdict == (*status, (*code).into());
            assert!(expected.iter().any(is_expected), "{verdict:?}");
            assert_gone(&proxy, "k", "nothing was written");
            for tag in ["*", "\"a\", \"b\"", "W/\"a\"", ""] {
                let answer = put_if(&proxy, "k", tag, b"body");
                let expected = if tag.is_empty() { 400..=501 } else { 501..=501 };
                assert!(
                    expected.contains(&answer.status),
                    "{tag}: {}",
                    answer.text()
                );
            }
            let both = [("if-match", "\"a\""), ("if-none-match", "*")];
            let answer = request(&proxy, "PUT", &target("k"), &both, b"body");
            assert_code(&answer, 501, "NotImplemented", "both");
            assert_gone(&proxy, "k", "nothing was written");
        }
    }
}

#[test]
fn an_upload_completes_only_on_a_free_key_if_it_is_to() {
    for proxy in proxies() {
        let free = [("if-none-match", "*")];
        proxy.put("taken", b"before");
        for (key, is_free) in [("taken", false), ("free", true)] {
            let upload = Upload::begin(&proxy, key);
            let etag = upload.put(1, b"body");
            let answer = upload.complete_with(&[(1, &etag)], &free);
            match is_free {
                true => {
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert_object(&proxy, key, b"body", "it was free");
                }
                false => {
                    assert_code(&answer, 412, "PreconditionFailed", key);
                    assert_object(&proxy, key, b"before", "it was taken");
                }
            }
        }
    }
    for proxy in proxies_with(&writeback()) {
        proxy.put("taken", b"dirty");
        let upload = Upload::begin(&proxy, "taken");
        let etag = upload.put(1, b"body");
        let answer = upload.complete_with(&[(1, &etag)], &[("if-none-match", "*")]);
        assert_code(&answer, 412, "PreconditionFailed", "only the proxy has it");
        assert_object(&proxy, "taken", b"dirty", "it was taken");
    }
}
