//! Uploads that are refused: wrong bodies, wrong parts, wrong documents, wrong keys.

use crate::common::signing::{READER, STRANGER, WRITER, assert_code};
use crate::common::{OTHER, READ_ONLY, pattern};
use crate::rig::{
    PART_BYTES_MIN, Upload, assert_gone, assert_object, bear, proxies, request, request_as, target,
};

#[test]
fn a_bad_body_makes_no_part() {
    for proxy in proxies() {
        let upload = Upload::begin(&proxy, "k");
        // Of less than a block and of several.
        for length in [1000, PART_BYTES_MIN + 5] {
            let body = pattern(1, length);
            for (header, value, code) in [
                ("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==", "BadDigest"),
                ("x-amz-checksum-crc32", "AAAAAA==", "BadDigest"),
                ("x-amz-checksum-crc32", "AAAA", "InvalidRequest"),
            ] {
                let answer = upload.put_with(1, &[(header, value)], &body);
                assert_code(&answer, 400, code, header);
            }
            let headers = WRITER.headers("PUT", &upload.part_target(1), b"other");
            let headers = crate::common::signing::borrowed(&headers);
            let answer = proxy.request("PUT", &upload.part_target(1), &headers, &body);
            assert_code(&answer, 400, "XAmzContentSHA256Mismatch", "another body");
        }
        let listed = upload.list("");
        assert!(!listed.text().contains("<PartNumber>"), "{}", listed.text());
        assert_eq!(upload.abort().status, 204);
    }
}

#[test]
fn an_upload_completes_as_its_parts_are_or_not_at_all() {
    for proxy in proxies() {
        proxy.put("k", b"before");
        let upload = Upload::begin(&proxy, "k");
        let small = upload.put(1, b"small");
        let last = upload.put(2, b"last");
        let wrong = "\"d41d8cd98f00b204e9800998ecf8427e\"";
        let many: String = (1..=10_001)
            .map(|n| format!("<Part><ETag>a</ETag><PartNumber>{n}</PartNumber></Part>"))
            .collect();
        let huge = format!("<CompleteMultipartUpload>{}", " ".repeat(3 << 20));
        for (document, code) in [
            (String::new(), "MalformedXML"),
            ("no document".into(), "MalformedXML"),
            ("<CompleteMultipartUpload/>".into(), "MalformedXML"),
            (format!("<CompleteMultipartUpload>{many}"), "MalformedXML"),
            (huge, "MalformedXML"),
        ] {
            let answer = request(&proxy, "POST", &upload.target(), &[], document.as_bytes());
            assert_code(&answer, 400, code, &document[..document.len().min(60)]);
        }
        for (parts, code) in [
            (vec![(1, wrong)], "InvalidPart"),
            (vec![(3, small.as_str())], "InvalidPart"),
            (
                vec![(2, last.as_str()), (1, small.as_str())],
                "InvalidPartOrder",
            ),
            (
                vec![(1, small.as_str()), (1, small.as_str())],
                "InvalidPartOrder",
            ),
            (
                vec![(1, small.as_str()), (2, last.as_str())],
                "EntityTooSmall",
            ),
        ] {
            let answer = upload.complete_with(&parts, &[]);
            assert_code(&answer, 400, code, &format!("{parts:?}"));
        }
        let size = [("x-amz-mp-object-size", "6")];
        let answer = upload.complete_with(&[(1, &small)], &size);
        assert_code(&answer, 400, "InvalidRequest", "another size");
        assert_object(&proxy, "k", b"before", "nothing was done");
        let alone = Upload::begin(&proxy, "k");
        let small = alone.put(1, b"small");
        alone.complete(&[(1, &small)]);
        assert_object(&proxy, "k", b"small", "one part of any size");
        assert_eq!(upload.abort().status, 204);
    }
}

#[test]
fn what_is_no_upload_is_none() {
    for proxy in proxies() {
        for (method, query) in [
            ("GET", "uploadId=none"),
            ("DELETE", "uploadId=none"),
            ("PUT", "partNumber=1&uploadId=none"),
            ("PUT", "partNumber=1&uploadId=..%2F..%2Fx"),
            ("PUT", "partNumber=1&uploadId=%00%F0%9F%98%80"),
        ] {
            let target = format!("{}?{query}", target("k"));
            let answer = request(&proxy, method, &target, &[], b"body");
            assert_code(&answer, 404, "NoSuchUpload", query);
        }
        let upload = Upload::begin(&proxy, "k");
        let elsewhere = Upload {
            proxy: &proxy,
            key: "other".into(),
            id: upload.id.clone(),
        };
        let answer = elsewhere.put_with(1, &[], b"body");
        assert_code(&answer, 404, "NoSuchUpload", "of another key");
        for number in ["0", "10001", "x", "-1", ""] {
            let target = format!("{}?partNumber={number}&uploadId=a", target("k"));
            let answer = request(&proxy, "PUT", &target, &[], b"body");
            assert_code(&answer, 400, "InvalidArgument", number);
        }
        assert_eq!(upload.abort().status, 204);
    }
}

#[test]
fn who_may_not_write_uploads_nothing() {
    for proxy in proxies() {
        let upload = Upload::begin(&proxy, "k");
        let etag = upload.put(1, b"body");
        let copy = [("x-amz-copy-source", "vol/k")];
        for (method, at) in [
            ("POST", format!("{}?uploads=", target("x"))),
            ("PUT", upload.part_target(1)),
            ("POST", upload.target()),
            ("DELETE", upload.target()),
        ] {
            for pair in [READER, STRANGER] {
                for headers in [&[][..], &copy] {
                    let answer = request_as(&proxy, pair, method, &at, headers, b"");
                    assert_code(&answer, 403, "AccessDenied", &at);
                }
            }
            for token in [READ_ONLY, OTHER] {
                let answer = bear(&proxy, token, method, &at, b"");
                assert_code(&answer, 403, "AccessDenied", &at);
            }
        }
        let answer = request_as(&proxy, READER, "GET", &upload.target(), &[], b"");
        assert_eq!(answer.status, 200, "a list is a read");
        upload.complete(&[(1, &etag)]);
        assert_object(&proxy, "k", b"body", "untouched");
    }
}

#[test]
fn what_would_be_dropped_silently_is_refused() {
    for proxy in proxies() {
        let begin = format!("{}?uploads=", target("k"));
        for (header, value) in [
            ("x-amz-tagging", "a=b"),
            ("x-amz-acl", "public-read"),
            ("x-amz-storage-class", "GLACIER"),
            ("x-amz-server-side-encryption", "aws:kms"),
            ("x-amz-object-lock-mode", "GOVERNANCE"),
            ("if-none-match", "*"),
        ] {
            let answer = request(&proxy, "POST", &begin, &[(header, value)], b"");
            assert_code(&answer, 501, "NotImplemented", header);
        }
        for (header, value) in [("x-amz-storage-class", "GLACIER"), ("x-amz-tagging", "a=b")] {
            for headers in [
                vec![(header, value)],
                vec![(header, value), ("x-amz-copy-source", "vol/k")],
            ] {
                let answer = request(&proxy, "PUT", &target("k"), &headers, b"");
                assert_code(&answer, 501, "NotImplemented", header);
            }
        }
        let harmless = [
            ("x-amz-acl", "private"),
            ("x-amz-checksum-algorithm", "CRC32"),
            ("x-amz-storage-class", "STANDARD"),
        ];
        let upload = Upload::begin_with(&proxy, "k", &harmless);
        assert_eq!(upload.abort().status, 204);
        assert_gone(&proxy, "k", "nothing was written");
    }
}
