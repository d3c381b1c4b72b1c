//! Uploads that end well: parts of every kind, in every order, over kills and restarts.

use crate::common::signing::{Sealing, WRITER, assert_code, borrowed, bucket, now, send_presigned};
use crate::common::{READ_WRITE, Setup, VOLUME, assert_same_bytes, pattern, wait_until};
use crate::rig::{
    PART_BYTES_MIN, Upload, assert_gone, assert_object, bear, bodies, element, elements, etag_of,
    is_clean, md5, metric, proxies, proxies_with, put_in_parts, request, store_gets, target,
    wants_all_parts, writeback,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rusty_s3::actions::UploadPart;

#[test]
fn a_completed_object_is_read_without_the_store() {
    for shards in [1, 3] {
        let setup = Setup {
            shards,
            ..Setup::default()
        };
        for proxy in proxies_with(&setup) {
            let bodies = bodies(1);
            let all = put_in_parts(&proxy, "a%2Fb%20c", &bodies);
            let before = store_gets(&proxy);
            // A part of it first, over the border of two parts and inside a block.
            let border = bodies[0].len();
            let range = format!("bytes={}-{}", border - 5, border + 4);
            let answer = proxy.get_range("a%2Fb%20c", &range);
            assert_eq!(answer.status, 206);
            assert_same_bytes(&answer.body, &all[border - 5..border + 5], "a border");
            let answer = assert_object(&proxy, "a%2Fb%20c", &all, "at once");
            let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
            assert_eq!(answer.expect_header("etag"), etag_of(&slices));
            assert_eq!(store_gets(&proxy), before, "the store was asked for bytes");
            let blocks = all.len().div_ceil(1 << 20) as u64;
            let assembled = metric(&proxy, "forebay_blocks_assembled_total", "");
            assert_eq!(assembled, blocks, "each block once");
            let bytes = metric(&proxy, "forebay_blocks_assembled_bytes_total", "");
            assert_eq!(bytes, all.len() as u64);
            let again = assert_object(&proxy, "a%2Fb%20c", &all, "again");
            assert!(again.cache().starts_with("hit-"), "{}", again.cache());
            assert_eq!(metric(&proxy, "forebay_blocks_assembled_total", ""), blocks);
            assert_eq!(store_gets(&proxy), before);
        }
    }
}

#[test]
fn parts_come_in_any_order_again_and_not_all_count() {
    for proxy in proxies() {
        let upload = Upload::begin_with(
            &proxy,
            "k",
            &[("content-type", "a/b"), ("x-amz-meta-colour", "green")],
        );
        let [first, second, last] = bodies(10);
        let unused = (!wants_all_parts(&proxy)).then(|| upload.put(500, &pattern(99, 10)));
        let last_tag = upload.put(9000, &last);
        let former = upload.put(7, &pattern(98, PART_BYTES_MIN));
        let second_tag = upload.put(7, &second);
        assert_ne!(former, second_tag);
        let first_tag = upload.put(3, &first);
        let mut sent = vec![
            (3, first.len(), &first_tag),
            (7, second.len(), &second_tag),
            (9000, last.len(), &last_tag),
        ];
        if let Some(unused) = &unused {
            sent.insert(2, (500, 10, unused));
        }
        let listed = upload.list("");
        let columns = ["PartNumber", "Size", "ETag"].map(|name| elements(&listed, name));
        let numbers: Vec<String> = sent.iter().map(|(n, _, _)| n.to_string()).collect();
        let sizes: Vec<String> = sent.iter().map(|(_, size, _)| size.to_string()).collect();
        let tags: Vec<String> = sent.iter().map(|(_, _, tag)| tag.to_string()).collect();
        assert_eq!(columns, [numbers, sizes, tags]);
        assert_eq!(element(&listed, "IsTruncated"), "false");
        let page = upload.list("max-parts=1&part-number-marker=3");
        assert_eq!(elements(&page, "PartNumber"), ["7"]);
        assert_eq!(element(&page, "IsTruncated"), "true");
        assert_eq!(element(&page, "NextPartNumberMarker"), "7");
        // A part that was replaced is not the one that is meant.
        let stale = upload.complete_with(&[(3, &first_tag), (7, &former), (9000, &last_tag)], &[]);
        assert_code(&stale, 400, "InvalidPart", "a replaced part");
        let etag = upload.complete(&[(3, &first_tag), (7, &second_tag), (9000, &last_tag)]);
        assert_eq!(etag, etag_of(&[&first, &second, &last]));
        let before = store_gets(&proxy);
        let all = [first, second, last].concat();
        let answer = assert_object(&proxy, "k", &all, "the parts that count");
        assert_eq!(store_gets(&proxy), before);
        assert_eq!(answer.expect_header("content-type"), "a/b");
        assert_eq!(answer.expect_header("x-amz-meta-colour"), "green");
        assert_code(&upload.list(""), 404, "NoSuchUpload", "it has ended");
    }
}

#[test]
fn a_read_of_one_part_is_of_that_part() {
    for proxy in proxies() {
        let bodies = bodies(20);
        let all = put_in_parts(&proxy, "k", &bodies);
        let mut start = 0;
        for (body, number) in bodies.iter().zip(1..) {
            let part = format!("{}?partNumber={number}", target("k"));
            for method in ["GET", "HEAD"] {
                let answer = request(&proxy, method, &part, &[], b"");
                assert_eq!(answer.status, 206, "{}", answer.text());
                assert_eq!(answer.expect_header("x-amz-mp-parts-count"), "3");
                let length = body.len().to_string();
                assert_eq!(answer.expect_header("content-length"), length);
                let range = format!("bytes {start}-{}/{}", start + body.len() - 1, all.len());
                assert_eq!(answer.expect_header("content-range"), range);
                if method == "GET" {
                    assert_same_bytes(&answer.body, body, "a part");
                }
            }
            start += body.len();
        }
        let past = request(&proxy, "GET", "/vol/k?partNumber=4", &[], b"");
        assert_code(&past, 416, "InvalidPartNumber", "past the last");
        let range = [("range", "bytes=0-1")];
        let both = request(&proxy, "GET", "/vol/k?partNumber=1", &range, b"");
        assert_code(&both, 400, "InvalidRequest", "a range beside");
        proxy.put("whole", b"abc");
        let answer = request(&proxy, "GET", "/vol/whole?partNumber=1", &[], b"");
        assert_eq!((answer.status, answer.body.as_slice()), (206, &b"abc"[..]));
        assert_eq!(answer.expect_header("content-range"), "bytes 0-2/3");
        let past = request(&proxy, "GET", "/vol/whole?partNumber=2", &[], b"");
        assert_code(&past, 416, "InvalidPartNumber", "it came whole");
    }
}

#[test]
fn every_kind_of_payload_makes_a_part() {
    for proxy in proxies() {
        let upload = Upload::begin(&proxy, "k");
        let body = pattern(30, PART_BYTES_MIN + 1);
        let tag = format!("\"{}\"", md5(&body));
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &body);
        let crc = STANDARD.encode((crc as u32).to_be_bytes());
        let name = "x-amz-checksum-crc32";
        // Chunks that are signed, with a signed trailer.
        let trailers = [Some((name, crc.as_str())), None];
        for (trailer, number) in trailers.into_iter().zip(1..) {
            let part = upload.part_target(number);
            let (headers, sealed) = WRITER.seal(&Sealing {
                target: &part,
                headers: &[],
                content: &body,
                chunk_bytes: 65_536,
                trailer,
            });
            let answer = proxy.request("PUT", &part, &borrowed(&headers), &sealed);
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.expect_header("etag"), tag);
            let told = trailer.map(|(_, value)| value);
            assert_eq!(answer.header(name), told, "the checksum is told again");
        }
        // A hash of all of it, an MD5, a checksum in a header.
        let digest = STANDARD.encode(hex::decode(md5(&body)).expect("hexadecimal"));
        let headers = [("content-md5", digest.as_str()), (name, &crc)];
        let answer = upload.put_with(3, &headers, &body);
        assert_eq!((answer.status, answer.header(name)), (200, Some(&*crc)));
        let answer = WRITER.send(&proxy, "PUT", &upload.part_target(4), &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        // A signature in the query, and a token.
        let credentials = WRITER.credentials();
        let bucket = bucket(VOLUME);
        let action = UploadPart::new(&bucket, Some(&credentials), "k", 5, &upload.id);
        let url = WRITER.presign(action, now(), 60);
        let answer = send_presigned(&proxy, "PUT", &url, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = bear(&proxy, READ_WRITE, "PUT", &upload.part_target(6), &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let parts: Vec<(u32, &str)> = (1..=6).map(|number| (number, tag.as_str())).collect();
        let etag = upload.complete(&parts);
        assert_eq!(etag, etag_of(&[body.as_slice(); 6]));
        let before = store_gets(&proxy);
        assert_object(&proxy, "k", &body.repeat(6), "six of a kind");
        assert_eq!(store_gets(&proxy), before);
    }
}

#[test]
fn an_upload_goes_on_after_a_kill() {
    for mut proxy in proxies() {
        let [first, second, last] = bodies(40);
        let (id, first_tag) = {
            let upload = Upload::begin(&proxy, "k");
            (upload.id.clone(), upload.put(1, &first))
        };
        proxy.kill();
        proxy.start();
        let upload = Upload {
            proxy: &proxy,
            key: "k".into(),
            id,
        };
        let second_tag = upload.put(2, &second);
        let last_tag = upload.put(3, &last);
        let etag = upload.complete(&[(1, &first_tag), (2, &second_tag), (3, &last_tag)]);
        assert_eq!(etag, etag_of(&[&first, &second, &last]));
        let all = [first, second, last].concat();
        assert_object(&proxy, "k", &all, "after the kill");
        // What came after the kill was not fetched.
        assert!(metric(&proxy, "forebay_blocks_assembled_total", "") > 0);
        proxy.kill();
        proxy.start();
        assert_object(&proxy, "k", &all, "after another");
    }
}

#[test]
fn a_completed_object_replaces_what_was_acknowledged_before() {
    for mut proxy in proxies_with(&writeback()) {
        let answer = proxy.put("k", b"older");
        assert_eq!(answer.expect_header("x-forebay-write"), "back");
        assert_eq!(
            assert_object(&proxy, "k", b"older", "dirty").cache(),
            "hit-dirty"
        );
        let all = put_in_parts(&proxy, "k", &bodies(50));
        assert_object(&proxy, "k", &all, "completed");
        assert!(is_clean(&proxy), "the older content still waits");
        proxy.put("k", b"newer");
        assert_object(&proxy, "k", b"newer", "dirty again");
        proxy.kill();
        proxy.setup.flags.clear();
        proxy.start();
        wait_until("all is uploaded", || is_clean(&proxy));
        assert_object(&proxy, "k", b"newer", "uploaded");
    }
}

#[test]
fn an_aborted_upload_leaves_nothing() {
    for proxy in proxies() {
        let upload = Upload::begin(&proxy, "dir/k");
        upload.put(1, &pattern(60, PART_BYTES_MIN));
        let listed = request(&proxy, "GET", "/vol?prefix=dir&uploads=", &[], b"");
        assert_eq!(elements(&listed, "UploadId"), [upload.id.as_str()]);
        assert_eq!(upload.abort().status, 204);
        assert_gone(&proxy, "dir/k", "aborted");
        for (answer, what) in [
            (upload.list(""), "a list"),
            (upload.put_with(1, &[], b"a"), "a small part"),
            (
                upload.put_with(1, &[], &pattern(61, PART_BYTES_MIN)),
                "a part",
            ),
            (upload.complete_with(&[(1, "\"a\"")], &[]), "a completion"),
            (upload.abort(), "another abort"),
        ] {
            assert_code(&answer, 404, "NoSuchUpload", what);
        }
        let listed = request(&proxy, "GET", "/vol?prefix=dir&uploads=", &[], b"");
        assert_eq!(elements(&listed, "UploadId"), Vec::<String>::new());
        proxy.assert_serves();
    }
}

#[test]
fn uploads_are_listed_page_by_page() {
    for proxy in proxies() {
        let keys = ["a", "b/1", "b/2", "b/ü &", "c"];
        let uploads: Vec<Upload<'_>> = keys
            .iter()
            .map(|key| {
                let encoded = key
                    .replace(' ', "%20")
                    .replace('&', "%26")
                    .replace('ü', "%C3%BC");
                let uploads = format!("{}?uploads=", target(&encoded));
                let answer = request(&proxy, "POST", &uploads, &[], b"");
                Upload {
                    proxy: &proxy,
                    key: encoded,
                    id: element(&answer, "UploadId"),
                }
            })
            .collect();
        let list = |query: &str| {
            let answer = request(&proxy, "GET", &format!("/vol?{query}"), &[], b"");
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer
        };
        let all = list("uploads=");
        assert_eq!(elements(&all, "Key"), keys);
        assert_eq!(element(&all, "IsTruncated"), "false");
        let encoded = list("encoding-type=url&prefix=b%2F&uploads=");
        assert_eq!(elements(&encoded, "Key")[2], "b/%C3%BC%20%26");
        let grouped = list("delimiter=%2F&uploads=");
        assert_eq!(elements(&grouped, "Key"), ["a", "c"]);
        assert!(
            grouped
                .text()
                .contains("<CommonPrefixes><Prefix>b/</Prefix>")
        );
        let (mut found, mut markers) = (Vec::new(), String::new());
        loop {
            let page = list(&format!("{markers}max-uploads=2&uploads="));
            found.extend(elements(&page, "Key"));
            if element(&page, "IsTruncated") == "false" {
                break;
            }
            let key = element(&page, "NextKeyMarker").replace('/', "%2F");
            let key = key
                .replace(' ', "%20")
                .replace('&', "%26")
                .replace('ü', "%C3%BC");
            markers = format!("key-marker={key}&");
        }
        assert_eq!(found, keys);
        for upload in uploads {
            assert_eq!(upload.abort().status, 204);
        }
    }
}
