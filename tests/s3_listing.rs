//! Lists, DeleteObjects and what can be asked of buckets: exactly what goes over the wire.
//!
//! In front of a folder where no store is needed that fails, in front of the stub where one is. Objects stay
//! dirty by `--writebackDelay`: they are acknowledged, and the store does not have them.

mod common;

use base64::Engine;
use common::proxy::{OTHER_VOLUME, StoreSpec};
use common::stores::S3Server;
use common::{Answer, OTHER, Proxy, READ_ONLY, READ_WRITE, Setup, VOLUME, wait_until};
use forebay_bench::stub::{Action, Fault, Stub, StubHandle, StubOptions};
use md5::{Digest, Md5};

/// Longer than any test: nothing is uploaded.
const FOR_EVER: [&str; 2] = ["--writebackDelay", "3600000"];

fn writeback() -> Setup {
    Setup {
        volume_lines: "ttl = \"600s\"\n".to_string(),
        shards: 2,
        ..Setup::default()
    }
}

fn never_uploading() -> Setup {
    Setup {
        flags: FOR_EVER.map(str::to_string).into(),
        ..writeback()
    }
}

/// A proxy in front of a stub, and the stub.
fn in_front_of_stub(setup: Setup) -> (Proxy, StubHandle) {
    let options = StubOptions::default();
    let stub = Stub::start(options.clone()).expect("the stub starts");
    let server = S3Server {
        name: "STUB",
        endpoint: stub.url(),
        region: options.region,
        bucket: "bucket".to_string(),
        key: options.access_key,
        secret: options.secret_key,
    };
    let prefix = "p".to_string();
    let store = Some(StoreSpec::S3 { server, prefix });
    (Setup { store, ..setup }.start(), stub)
}

/// The names of a list: its keys, and its common prefixes.
fn names(answer: &Answer) -> (Vec<String>, Vec<String>) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let of = |outer: &str, inner: &str| -> Vec<String> {
        let begin = format!("<{outer}>");
        let parts = text.split(&begin).skip(1);
        parts.map(|part| element(part, inner)).collect()
    };
    (of("Contents", "Key"), of("CommonPrefixes", "Prefix"))
}

/// The text of the first element of a name.
fn element(text: &str, name: &str) -> String {
    let rest = text.split_once(&format!("<{name}>"));
    let rest = rest.unwrap_or_else(|| panic!("no <{name}> in {text}")).1;
    let text = rest.split_once(&format!("</{name}>")).expect("closed").0;
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"");
    text.replace("&amp;", "&")
}

fn list(proxy: &Proxy, query: &str) -> Answer {
    proxy.request("GET", &format!("/{VOLUME}?{query}"), &[], b"")
}

fn keys(proxy: &Proxy, query: &str) -> Vec<String> {
    names(&list(proxy, query)).0
}

fn md5(body: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(Md5::digest(body))
}

fn delete_objects(proxy: &Proxy, document: &str) -> Answer {
    let digest = md5(document.as_bytes());
    let headers = [("content-md5", digest.as_str())];
    let target = format!("/{VOLUME}?delete");
    proxy.request("POST", &target, &headers, document.as_bytes())
}

fn document_of(keys: &[&str]) -> String {
    let objects = keys
        .iter()
        .map(|key| format!("<Object><Key>{key}</Key></Object>"));
    format!("<Delete>{}</Delete>", objects.collect::<String>())
}

fn bearer(token: &str) -> (&'static str, String) {
    ("Authorization", format!("Bearer {token}"))
}

fn as_whom(proxy: &Proxy, token: &str, method: &str, target: &str) -> Answer {
    let (name, value) = bearer(token);
    proxy.request(method, target, &[(name, &value)], b"")
}

#[test]
fn dirty_and_stored_objects_are_one_list_page_by_page() {
    let mut proxy = Setup {
        flags: vec!["--noWriteback".to_string()],
        ..writeback()
    }
    .start();
    let all: Vec<String> = (0..60).map(|n| format!("d{}/k{n:02}", n % 7)).collect();
    for key in all.iter().step_by(2) {
        proxy.put(key, b"stored");
    }
    proxy.restart_killed(|setup| setup.flags = FOR_EVER.map(str::to_string).into());
    for key in all.iter().skip(1).step_by(3) {
        proxy.put(key, b"dirty it is");
    }
    let mut expected: Vec<String> = all.iter().step_by(2).cloned().collect();
    expected.extend(all.iter().skip(1).step_by(3).cloned());
    expected.sort();
    expected.dedup();
    for size in [1, 7, 59, 1000] {
        let (mut listed, mut token) = (Vec::new(), String::new());
        loop {
            let answer = list(&proxy, &format!("list-type=2&max-keys={size}{token}"));
            let page = names(&answer).0;
            let text = answer.text();
            assert_eq!(element(&text, "KeyCount"), page.len().to_string());
            listed.extend(page.clone());
            if element(&text, "IsTruncated") == "false" {
                break;
            }
            assert_eq!(page.len(), size, "a page that is not the last is full");
            let next = element(&text, "NextContinuationToken");
            token = format!("&continuation-token={next}");
        }
        assert_eq!(listed, expected, "pages of {size}");
    }
    // The first version goes on by names.
    let (mut listed, mut marker) = (Vec::new(), String::new());
    loop {
        let answer = list(&proxy, &format!("max-keys=11&marker={marker}"));
        listed.extend(names(&answer).0);
        match element(&answer.text(), "IsTruncated").as_str() {
            "true" => marker = element(&answer.text(), "NextMarker"),
            _ => break,
        }
    }
    assert_eq!(listed, expected);
    let (keys, prefixes) = names(&list(&proxy, "delimiter=/"));
    assert_eq!(keys, [""; 0]);
    assert_eq!(
        prefixes,
        (0..7).map(|n| format!("d{n}/")).collect::<Vec<_>>()
    );
    let (_, prefixes) = names(&list(&proxy, "delimiter=/&marker=d2/&max-keys=2"));
    assert_eq!(prefixes, ["d3/", "d4/"]);
}

#[test]
fn a_dirty_object_shows_as_what_it_is_and_over_what_the_store_has() {
    let mut proxy = Setup {
        flags: vec!["--noWriteback".to_string()],
        ..writeback()
    }
    .start();
    proxy.put("key", b"old");
    proxy.restart_killed(|setup| setup.flags = FOR_EVER.map(str::to_string).into());
    let written = proxy.put("key", b"newer content");
    let head = proxy.request("HEAD", &format!("/{VOLUME}/key"), &[], b"");
    for _ in 0..2 {
        let text = list(&proxy, "list-type=2&fetch-owner=true").text();
        assert_eq!(element(&text, "KeyCount"), "1");
        assert_eq!(element(&text, "Size"), "13");
        assert_eq!(element(&text, "ETag"), written.expect_header("etag"));
        let modified = element(&text, "LastModified");
        let seconds = head.expect_header("last-modified")[17..25].to_string();
        assert!(
            modified.ends_with("Z") && modified.contains(&seconds),
            "{modified}"
        );
        assert_eq!(element(&text, "ID"), "forebay");
        // The same after a crash: what is dirty is found again.
        proxy.restart_killed(|_| {});
    }
}

#[test]
fn what_was_deleted_is_not_listed_whether_it_was_dirty_or_stored() {
    let mut proxy = Setup {
        flags: vec!["--noWriteback".to_string()],
        ..writeback()
    }
    .start();
    for key in ["stored", "stored-deleted", "both", "both-deleted"] {
        proxy.put(key, b"1");
    }
    proxy.restart_killed(|setup| setup.flags = FOR_EVER.map(str::to_string).into());
    for key in ["both", "both-deleted", "dirty", "dirty-deleted"] {
        proxy.put(key, b"22");
    }
    for key in ["stored-deleted", "both-deleted", "dirty-deleted"] {
        let answer = proxy.request("DELETE", &format!("/{VOLUME}/{key}"), &[], b"");
        assert_eq!(answer.status, 204, "{}", answer.text());
        assert!(!keys(&proxy, "").contains(&key.to_string()), "{key}");
    }
    assert_eq!(keys(&proxy, ""), ["both", "dirty", "stored"]);
    proxy.restart_killed(|_| {});
    assert_eq!(keys(&proxy, "list-type=2"), ["both", "dirty", "stored"]);
}

#[test]
fn a_write_that_becomes_clean_never_leaves_the_list() {
    let (proxy, stub) = in_front_of_stub(Setup {
        flags: vec!["--writebackDelay".to_string(), "5".to_string()],
        ..writeback()
    });
    let mut put = Vec::new();
    for number in 0..150 {
        let key = format!("k{number:03}");
        proxy.put(&key, key.as_bytes());
        put.push(key);
        if number % 5 == 0 {
            assert_eq!(keys(&proxy, "list-type=2"), put);
        }
    }
    wait_until("all is uploaded", || {
        assert_eq!(keys(&proxy, "list-type=2"), put);
        stub.keys("bucket").len() == put.len()
    });
    assert_eq!(keys(&proxy, "list-type=2"), put);
}

#[test]
fn overwriting_and_deleting_hide_nothing_while_the_store_takes_its_time() {
    let (proxy, stub) = in_front_of_stub(never_uploading());
    proxy.put("dirty", b"acknowledged");
    // A write that goes through waits for the store; what is dirty is held back meanwhile.
    let slow = Action::DelayApply { ms: 1500 };
    stub.add_fault(Fault::on("PUT", "*").then(slow.clone()));
    stub.add_fault(Fault::on("DELETE", "*").then(slow));
    let large = vec![7; 3 << 20];
    std::thread::scope(|scope| {
        let put = scope.spawn(|| {
            let answer = proxy.request("PUT", &format!("/{VOLUME}/dirty"), &[], &large);
            assert_eq!(answer.status, 200, "{}", answer.text());
        });
        while !put.is_finished() {
            assert_eq!(keys(&proxy, ""), ["dirty"]);
        }
    });
    assert_eq!(
        element(&list(&proxy, "").text(), "Size"),
        large.len().to_string()
    );
    proxy.put("dirty", b"again");
    std::thread::scope(|scope| {
        let delete = scope.spawn(|| {
            let answer = proxy.request("DELETE", &format!("/{VOLUME}/dirty"), &[], b"");
            assert_eq!(answer.status, 204, "{}", answer.text());
        });
        wait_until("it is deleted", || {
            let listed = keys(&proxy, "");
            assert!(listed.is_empty() || listed == ["dirty"]);
            delete.is_finished()
        });
    });
    assert_eq!(keys(&proxy, ""), [""; 0]);
}

#[test]
fn a_store_that_is_away_makes_no_half_list() {
    let (proxy, stub) = in_front_of_stub(never_uploading());
    stub.put_object("bucket", &format!("p/{VOLUME}/stored"), "x");
    proxy.put("dirty", b"x");
    assert_eq!(keys(&proxy, ""), ["dirty", "stored"]);
    for action in [Action::status(500), Action::Drop, Action::CaptivePortal] {
        stub.add_fault(Fault::on("GET", "").then(action));
        let answer = list(&proxy, "");
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (503, "ServiceUnavailable")
        );
        assert!(answer.header("retry-after").is_some());
        stub.clear_faults();
        // Hits need no list.
        assert_eq!(proxy.get("dirty").cache(), "hit-dirty");
    }
    // One failure is not passed on.
    stub.add_fault(Fault::on("GET", "").times(1).then(Action::status(503)));
    assert_eq!(keys(&proxy, ""), ["dirty", "stored"]);
}

#[test]
fn what_is_held_shows_as_it_is_served() {
    let (mut proxy, stub) = in_front_of_stub(never_uploading());
    proxy.put("conflict", b"dirty");
    proxy.put("refused", b"refused");
    // Somebody else's, and later than ours.
    stub.set_clock_offset_s(600);
    let key = format!("p/{VOLUME}/conflict");
    stub.put_object("bucket", &key, "newer, in the store");
    stub.set_clock_offset_s(0);
    stub.add_fault(Fault::on("PUT", "*/refused").then(Action::status(400)));
    proxy.restart_killed(|setup| setup.flags.clear());
    wait_until("one is in conflict, and one in quarantine", || {
        let text = proxy.operator("GET", "/-/dirty?limit=10").text();
        text.contains("\"conflict\"") && text.contains("\"quarantined\"")
    });
    let text = list(&proxy, "").text();
    let (conflict, refused) = text.split_once("<Key>refused").expect("both are listed");
    assert_eq!(
        element(conflict, "Size"),
        "19",
        "the store's object is served"
    );
    assert_eq!(
        element(refused, "Size"),
        "7",
        "what nobody else has is served"
    );
    assert_eq!(proxy.get("conflict").body, b"newer, in the store");
    assert_eq!(proxy.get("refused").body, b"refused");
}

#[test]
fn hits_are_served_while_lists_wait_for_a_slow_store() {
    let (proxy, stub) = in_front_of_stub(never_uploading());
    proxy.put("dirty", b"x");
    stub.add_fault(Fault::on("GET", "").then(Action::DelayHead { ms: 2000 }));
    std::thread::scope(|scope| {
        let lists: Vec<_> = (0..4).map(|_| scope.spawn(|| keys(&proxy, ""))).collect();
        let mut hits = 0;
        while !lists.iter().any(|list| list.is_finished()) {
            assert_eq!(proxy.get("dirty").cache(), "hit-dirty");
            hits += 1;
        }
        assert!(hits > 0, "no read was answered before the first list was");
        for list in lists {
            assert_eq!(list.join().expect("listed"), ["dirty"]);
        }
    });
}

#[test]
fn odd_names_survive_in_both_encodings() {
    let proxy = never_uploading().start();
    let odd = [
        "%01%02",
        "%0D%0A%09",
        "a%20b%2Bc%25",
        "%C3%BC%F0%9F%8C%8A",
        "%3C%26%3E%22%27",
        "%EF%BF%BE",
    ];
    for name in odd {
        proxy.put(name, b"x");
    }
    let mut listed = keys(&proxy, "encoding-type=url");
    listed.sort();
    let mut expected = odd.to_vec();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    let plain = keys(&proxy, "");
    for name in [
        "&#x1;&#x2;",
        "&#xD;\n\t",
        "a b+c%",
        "ü🌊",
        "<&>\"'",
        "&#xFFFE;",
    ] {
        assert!(plain.iter().any(|key| key == name), "{name:?} in {plain:?}");
    }
    let text = list(
        &proxy,
        "encoding-type=url&prefix=a%20&delimiter=%2B&marker=a%20",
    )
    .text();
    assert_eq!(element(&text, "EncodingType"), "url");
    assert_eq!(element(&text, "Delimiter"), "%2B");
    assert_eq!(element(&text, "Marker"), "a%20");
    assert_eq!(
        element(text.split_once("CommonPrefixes").expect("one").1, "Prefix"),
        "a%20b%2B"
    );
}

#[test]
fn limits_and_parameters_of_lists() {
    let proxy = never_uploading().start();
    for key in ["a", "b", "c"] {
        proxy.put(key, b"x");
    }
    for (query, maximum, expected) in [
        ("max-keys=0", "0", &[][..]),
        ("max-keys=2", "2", &["a", "b"]),
        ("max-keys=5000", "1000", &["a", "b", "c"]),
        ("prefix=b", "1000", &["b"]),
        ("prefix=b%00", "1000", &[]),
        ("start-after=a&list-type=2", "1000", &["b", "c"]),
        ("marker=bb", "1000", &["c"]),
        ("marker=z", "1000", &[]),
    ] {
        let answer = list(&proxy, query);
        assert_eq!(names(&answer).0, expected, "{query}");
        assert_eq!(element(&answer.text(), "MaxKeys"), maximum);
    }
    assert_eq!(
        element(&list(&proxy, "max-keys=0").text(), "IsTruncated"),
        "false"
    );
    for query in [
        "max-keys=-1",
        "max-keys=many",
        "encoding-type=xml",
        "list-type=3",
        "list-type=2&continuation-token=bm9uZQ",
        "prefix=a&prefix=b",
    ] {
        let answer = list(&proxy, query);
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (400, "InvalidArgument"),
            "{query}"
        );
    }
}

#[test]
fn many_keys_are_deleted_each_with_its_own_outcome() {
    let (proxy, stub) = in_front_of_stub(never_uploading());
    for key in ["one", "two", "a&b"] {
        stub.put_object("bucket", &format!("p/{VOLUME}/{key}"), "x");
    }
    proxy.put("dirty", b"x");
    stub.add_fault(Fault::on("DELETE", "*/two").then(Action::status(403)));
    let long = "k".repeat(1025);
    let document = document_of(&["one", "two", "a&amp;b", "dirty", "none", "../x", &long]);
    let answer = delete_objects(&proxy, &document);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    for key in ["one", "a&amp;b", "dirty", "none"] {
        assert!(
            text.contains(&format!("<Deleted><Key>{key}</Key></Deleted>")),
            "{text}"
        );
    }
    for (key, code) in [
        ("two", "BadGateway"),
        ("../x", "InvalidURI"),
        (&long, "KeyTooLongError"),
    ] {
        assert!(
            text.contains(&format!("<Error><Key>{key}</Key><Code>{code}</Code>")),
            "{text}"
        );
    }
    assert_eq!(stub.keys("bucket"), [format!("p/{VOLUME}/two")]);
    stub.clear_faults();
    assert_eq!(keys(&proxy, ""), ["two"]);
    let quiet = "<Delete><Quiet>true</Quiet><Object><Key>two</Key></Object></Delete>";
    let answer = delete_objects(&proxy, quiet);
    assert!(!answer.text().contains("Deleted>"), "{}", answer.text());
    assert_eq!(keys(&proxy, ""), [""; 0]);
}

#[test]
fn a_thousand_keys_go_in_one_request_and_no_more() {
    let proxy = writeback().start();
    let names: Vec<String> = (0..1001).map(|n| format!("k{n:04}")).collect();
    for name in names.iter().take(40) {
        proxy.put(name, b"x");
    }
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let answer = delete_objects(&proxy, &document_of(&all));
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (400, "MalformedXML")
    );
    assert_eq!(keys(&proxy, "").len(), 40, "nothing was deleted");
    let answer = delete_objects(&proxy, &document_of(&all[..1000]));
    assert_eq!(answer.text().matches("<Deleted>").count(), 1000);
    assert_eq!(keys(&proxy, ""), [""; 0]);
}

#[test]
fn when_the_store_is_away_a_long_delete_ends_and_says_so() {
    let (proxy, stub) = in_front_of_stub(never_uploading());
    proxy.put("k000", b"x");
    stub.add_fault(Fault::on("DELETE", "*").then(Action::status(500)));
    let names: Vec<String> = (0..200).map(|n| format!("k{n:03}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let answer = delete_objects(&proxy, &document_of(&all));
    assert_eq!(answer.text().matches("<Error>").count(), 200);
    assert!(answer.text().contains("not tried"), "{}", answer.text());
    stub.clear_faults();
    assert_eq!(
        keys(&proxy, ""),
        ["k000"],
        "what was not deleted is still there"
    );
}

#[test]
fn a_delete_document_must_be_whole_verified_and_sane() {
    let proxy = writeback().start();
    proxy.put("key", b"x");
    let target = format!("/{VOLUME}?delete");
    let good = document_of(&["key"]);
    let digest = md5(good.as_bytes());
    let other = md5(b"other");
    let bomb = "<!DOCTYPE d [<!ENTITY a \"aa\"><!ENTITY b \"&a;&a;\">]><Delete><Object><Key>&b;</Key></Object></Delete>";
    let deep = format!("{}{}", "<Delete>".repeat(2000), "</Delete>".repeat(2000));
    let ask = |headers: &[(&str, &str)], body: &[u8]| {
        let answer = proxy.request("POST", &target, headers, body);
        (answer.status, answer.error_code())
    };
    let owned = |status: u16, code: &str| (status, code.to_string());
    assert_eq!(ask(&[], good.as_bytes()), owned(400, "InvalidRequest"));
    assert_eq!(
        ask(&[("content-md5", "x")], good.as_bytes()),
        owned(400, "InvalidDigest")
    );
    assert_eq!(
        ask(&[("content-md5", &other)], good.as_bytes()),
        owned(400, "BadDigest")
    );
    assert_eq!(
        ask(&[("x-amz-checksum-crc32", "AAAAAA==")], good.as_bytes()),
        owned(400, "BadDigest")
    );
    for body in [bomb, deep.as_str(), "", "not XML", "<Delete/>"] {
        let digest = md5(body.as_bytes());
        assert_eq!(
            ask(&[("content-md5", &digest)], body.as_bytes()),
            owned(400, "MalformedXML")
        );
    }
    let huge = vec![b' '; (2 << 20) + 1];
    let (status, code) = ask(&[("content-md5", &digest)], &huge);
    assert_eq!((status, code.as_str()), (413, "EntityTooLarge"));
    let mut client = proxy.client();
    let chunked = format!(
        "POST {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {READ_WRITE}\r\ncontent-md5: {digest}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    client.send(chunked);
    assert_eq!(client.read_answer("POST").status, 411);
    let (name, value) = bearer(READ_ONLY);
    let reader = [(name, value.as_str()), ("content-md5", &digest)];
    assert_eq!(ask(&reader, good.as_bytes()), owned(403, "AccessDenied"));
    assert_eq!(keys(&proxy, ""), ["key"], "nothing was deleted");
    assert_eq!(delete_objects(&proxy, &good).status, 200);
    assert_eq!(keys(&proxy, ""), [""; 0]);
}

#[test]
fn the_service_lists_the_volumes_that_a_key_may_see() {
    let proxy = writeback().start();
    let buckets = |token: &str, query: &str| {
        let answer = as_whom(&proxy, token, "GET", &format!("/{query}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        let parts = text.split("<Bucket>").skip(1);
        parts.map(|part| element(part, "Name")).collect::<Vec<_>>()
    };
    assert_eq!(buckets(READ_WRITE, ""), [VOLUME]);
    assert_eq!(buckets(READ_ONLY, ""), [VOLUME]);
    assert_eq!(
        buckets(OTHER, "?x-id=ListBuckets&max-buckets=5"),
        [OTHER_VOLUME]
    );
    assert_eq!(buckets(OTHER, "?prefix=vol"), [""; 0]);
    let answer = proxy.request("GET", "/", &[("Authorization", "")], b"");
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (403, "AccessDenied")
    );
    assert_eq!(as_whom(&proxy, "wrong", "GET", "/").status, 403);
    assert_eq!(
        as_whom(&proxy, READ_WRITE, "GET", "/?max-buckets=0").status,
        400
    );
    assert_eq!(as_whom(&proxy, READ_WRITE, "PUT", "/").status, 405);
}

#[test]
fn buckets_say_what_is_true_of_them_and_refuse_the_rest() {
    let proxy = writeback().start();
    let ask = |token: &str, method: &str, target: &str| as_whom(&proxy, token, method, target);
    let bucket = format!("/{VOLUME}");
    let head = ask(READ_ONLY, "HEAD", &bucket);
    assert_eq!(
        (head.status, head.expect_header("x-amz-bucket-region")),
        (200, "us-east-1")
    );
    let text = |query: &str| {
        let answer = ask(READ_ONLY, "GET", &format!("{bucket}?{query}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    };
    assert!(text("location").contains("<LocationConstraint xmlns"));
    assert!(text("versioning").ends_with("></VersioningConfiguration>"));
    assert!(text("acl").contains("<Permission>FULL_CONTROL</Permission>"));
    assert!(!text("acl").contains("AllUsers"));
    for (token, method, target, status, code) in [
        (
            READ_WRITE,
            "PUT",
            bucket.as_str(),
            409,
            "BucketAlreadyOwnedByYou",
        ),
        (READ_ONLY, "PUT", &bucket, 403, "AccessDenied"),
        (READ_WRITE, "DELETE", &bucket, 501, "NotImplemented"),
        (READ_WRITE, "GET", "/none", 404, "NoSuchBucket"),
        (READ_WRITE, "PUT", "/none", 404, "NoSuchBucket"),
        (
            READ_WRITE,
            "GET",
            &format!("/{OTHER_VOLUME}"),
            403,
            "AccessDenied",
        ),
        (READ_WRITE, "POST", &bucket, 501, "NotImplemented"),
        (READ_WRITE, "PATCH", &bucket, 405, "MethodNotAllowed"),
        (
            READ_WRITE,
            "PUT",
            &format!("{bucket}?uploads"),
            501,
            "NotImplemented",
        ),
        (
            READ_WRITE,
            "GET",
            &format!("{bucket}?versions&prefix=a"),
            501,
            "NotImplemented",
        ),
        (
            READ_WRITE,
            "PUT",
            &format!("{bucket}?policy"),
            501,
            "NotImplemented",
        ),
        (
            READ_WRITE,
            "GET",
            &format!("{bucket}/key?tagging"),
            501,
            "NotImplemented",
        ),
        (
            READ_WRITE,
            "POST",
            &format!("{bucket}/key?restore"),
            501,
            "NotImplemented",
        ),
    ] {
        let answer = ask(token, method, target);
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (status, code),
            "{method} {target}"
        );
    }
    assert_eq!(ask(READ_WRITE, "HEAD", "/none").status, 404);
    assert_eq!(ask("wrong", "HEAD", &bucket).status, 403);
    let open = Setup {
        volume_lines: "anonymous = \"read\"\n".to_string(),
        ..Setup::default()
    };
    let open = open.start();
    let anonymous = [("Authorization", "")];
    assert_eq!(open.request("GET", &bucket, &anonymous, b"").status, 200);
    assert!(
        open.request("GET", &format!("{bucket}?acl"), &anonymous, b"")
            .text()
            .contains("AllUsers")
    );
    assert_eq!(open.request("DELETE", &bucket, &anonymous, b"").status, 403);
}

/// The stub takes what a proxy sends and asks: kept here so that a change of either is seen.
#[test]
fn the_store_is_asked_in_full_pages_within_the_prefix() {
    let (proxy, stub) = in_front_of_stub(never_uploading());
    for number in 0..2500 {
        stub.put_object("bucket", &format!("p/{VOLUME}/k{number:04}"), "x");
    }
    stub.put_object("bucket", "p/volume-of-another", "x");
    stub.put_object("bucket", &format!("p/{VOLUME}"), "x");
    let questions = || {
        let log = stub.log();
        log.iter().filter(|entry| entry.key.is_empty()).count()
    };
    proxy.put("k1000-dirty", b"x");
    let before = questions();
    assert_eq!(
        before, 1,
        "a first write asks what the bucket does with versions"
    );
    let mut token = String::new();
    let mut listed = Vec::new();
    loop {
        let answer = list(&proxy, &format!("list-type=2{token}"));
        listed.extend(names(&answer).0);
        if element(&answer.text(), "IsTruncated") == "false" {
            break;
        }
        token = format!(
            "&continuation-token={}",
            element(&answer.text(), "NextContinuationToken")
        );
    }
    assert_eq!(listed.len(), 2501);
    assert!(listed.is_sorted());
    assert_eq!(questions() - before, 3, "one question for each page");
}
