//! Versions of objects through the front door, in front of the real S3 servers: each test has a bucket
//! of its own there, for what a bucket does with versions concerns all that is in it.

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::http::Client;
use common::signing::{
    Pair, READER, Signing, UNSIGNED, WRITER, assert_code, borrowed, now, start, start_with,
};
use common::stores::S3Server;
use common::{Answer, Proxy, Setup, VOLUME, assert_same_bytes, pattern};
use md5::{Digest as _, Md5};
use std::net::ToSocketAddrs;
use std::time::SystemTime;

const ENABLED: &[u8] =
    b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
const SUSPENDED: &[u8] =
    b"<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";

/// This server with a new bucket, made by asking it directly.
fn with_new_bucket(server: &S3Server) -> S3Server {
    let passed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = passed.expect("after 1970").as_nanos();
    let server = S3Server {
        bucket: format!("versions-{nanos}"),
        ..server.clone()
    };
    let made = directly(&server, "PUT", &[], b"");
    assert_eq!(made.status, 200, "{}", made.text());
    server
}

/// Asks the store itself about the bucket.
fn directly(server: &S3Server, method: &str, query: &[(&str, &str)], body: &[u8]) -> Answer {
    let method_signed = match method {
        "GET" => rusty_s3::Method::Get,
        _ => rusty_s3::Method::Put,
    };
    let url = format!("{}/{}", server.endpoint, server.bucket);
    let time = jiff::Timestamp::now();
    let url = rusty_s3::signing::sign(
        &time,
        method_signed,
        url.parse().expect("a URL"),
        &server.key,
        &server.secret,
        None,
        &server.region,
        600,
        query.iter().copied(),
        std::iter::empty(),
    );
    let address = server.authority().to_socket_addrs();
    let address = address.expect("an address").next().expect("one");
    let target = format!("{}?{}", url.path(), url.query().unwrap_or_default());
    let headers = [("host", server.authority()), ("authorization", "")];
    Client::connect(address).request(method, &target, &headers, body)
}

/// A proxy before a new bucket of a server, which acknowledges writes from its disk and uploads none
/// by itself while a test looks.
fn proxy_before(server: &S3Server) -> Proxy {
    start_with(Setup {
        volume_lines: "ttl = \"600s\"\nwriteback = true\n".to_string(),
        flags: vec!["--writebackDelay".to_string(), "600000".to_string()],
        store: Some(server.own_prefix()),
        ..Setup::default()
    })
}

fn ask_as(
    proxy: &Proxy,
    pair: Pair,
    method: &str,
    rest: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let target = format!("/{VOLUME}{rest}");
    let signed = pair.sign(&Signing {
        method,
        target: &target,
        headers,
        payload: UNSIGNED,
        at: now(),
    });
    proxy.request(method, &target, &borrowed(&signed), body)
}

fn ask(proxy: &Proxy, method: &str, rest: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    ask_as(proxy, WRITER, method, rest, headers, body)
}

/// A success, or what the answer said instead.
fn done(answer: Answer) -> Answer {
    assert!(answer.status < 300, "{} {}", answer.status, answer.text());
    answer
}

fn id_of(answer: &Answer) -> String {
    let id = answer.expect_header("x-amz-version-id");
    assert!(!id.is_empty() && id != "null", "{id}");
    id.to_owned()
}

fn put(proxy: &Proxy, key: &str, body: &[u8]) -> String {
    let answer = done(ask(proxy, "PUT", &format!("/{key}"), &[], body));
    assert_eq!(answer.expect_header("x-forebay-write"), "through");
    id_of(&answer)
}

fn get(proxy: &Proxy, key: &str) -> Answer {
    ask_as(proxy, READER, "GET", &format!("/{key}"), &[], b"")
}

fn version(proxy: &Proxy, method: &str, key: &str, id: &str, headers: &[(&str, &str)]) -> Answer {
    let rest = format!("/{key}?versionId={}", id.replace('/', "%2F"));
    let pair = if method == "DELETE" { WRITER } else { READER };
    ask_as(proxy, pair, method, &rest, headers, b"")
}

fn set_versioning(proxy: &Proxy, document: &[u8]) -> Answer {
    let digest = STANDARD.encode(Md5::digest(document));
    let headers = [("content-md5", digest.as_str())];
    ask(proxy, "PUT", "?versioning=", &headers, document)
}

fn versioning(proxy: &Proxy) -> String {
    let answer = done(ask_as(proxy, READER, "GET", "?versioning=", &[], b""));
    let text = answer.text();
    let inside = text.split_once("<Status>");
    let inside = inside.and_then(|(_, rest)| rest.split_once("</Status>"));
    inside.map_or(String::new(), |(status, _)| status.to_owned())
}

/// Versions and markers of a list in its order: key, id, whether it is a marker, whether it is the latest.
fn listed(answer: &Answer) -> Vec<(String, String, bool, bool)> {
    let text = answer.text();
    let mut found = Vec::new();
    let mut rest = text.as_str();
    loop {
        let next = [("<Version>", false), ("<DeleteMarker>", true)];
        let next = next
            .into_iter()
            .filter_map(|(tag, is_marker)| Some((rest.find(tag)?, is_marker)))
            .min();
        let Some((at, is_marker)) = next else {
            return found;
        };
        rest = &rest[at + 1..];
        let element = |name: &str| {
            let (_, inside) = rest.split_once(&format!("<{name}>")).expect(name);
            let (inside, _) = inside.split_once("</").expect("closed");
            inside.to_owned()
        };
        let is_latest = element("IsLatest") == "true";
        found.push((element("Key"), element("VersionId"), is_marker, is_latest));
    }
}

/// Without what XML escapes, which names that are percent-encoded do not need.
fn unescaped(versions: &[(String, String, bool, bool)]) -> Vec<(String, String, bool, bool)> {
    let plain = versions.iter().map(|(key, id, is_marker, is_latest)| {
        let key = key.replace("&amp;", "&");
        (key, id.clone(), *is_marker, *is_latest)
    });
    plain.collect()
}

fn list(proxy: &Proxy, query: &str) -> Answer {
    let rest = match query {
        "" => "?versions=".to_owned(),
        query => format!("?{query}&versions="),
    };
    done(ask_as(proxy, READER, "GET", &rest, &[], b""))
}

fn text_of<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, inside) = text.split_once(&format!("<{name}>"))?;
    inside.split_once("</").map(|(inside, _)| inside)
}

#[test]
fn a_bucket_that_keeps_versions_gives_ids_and_gives_them_back() {
    for server in S3Server::all() {
        let proxy = proxy_before(&with_new_bucket(&server));
        assert_eq!(versioning(&proxy), "");
        let before = done(ask(&proxy, "PUT", "/k", &[], b"0"));
        assert_eq!(before.expect_header("x-forebay-write"), "back");
        assert_eq!(before.header("x-amz-version-id"), None);
        assert_eq!(get(&proxy, "k").cache(), "hit-dirty");
        done(set_versioning(&proxy, ENABLED));
        assert_eq!(versioning(&proxy), "Enabled");
        let settled = get(&proxy, "k");
        assert_eq!(settled.body, b"0");
        assert_ne!(
            settled.cache(),
            "hit-dirty",
            "{}: in the store first",
            server.name
        );
        let (one, two) = (put(&proxy, "k", b"11"), put(&proxy, "k", b"222"));
        assert_ne!(one, two);
        assert_eq!(get(&proxy, "k").body, b"222");
        for (id, body) in [(&one, &b"11"[..]), (&two, b"222")] {
            let answer = done(version(&proxy, "GET", "k", id, &[]));
            assert_eq!((answer.body.as_slice(), answer.cache()), (body, "bypass"));
            assert_eq!(answer.expect_header("x-amz-version-id"), id);
            let described = done(version(&proxy, "HEAD", "k", id, &[]));
            assert_eq!(
                described.expect_header("content-length"),
                body.len().to_string()
            );
            assert_eq!(
                described.expect_header("etag"),
                answer.expect_header("etag")
            );
        }
        let deleted = done(ask(&proxy, "DELETE", "/k", &[], b""));
        assert_eq!(
            (deleted.status, deleted.header("x-amz-delete-marker")),
            (204, Some("true"))
        );
        let marker = id_of(&deleted);
        assert_code(&get(&proxy, "k"), 404, "NoSuchKey", "a marker hides it");
        let all = listed(&list(&proxy, "prefix=k"));
        let told: Vec<(&str, bool)> = all.iter().map(|v| (v.1.as_str(), v.2)).collect();
        assert_eq!(
            told[..3],
            [(marker.as_str(), true), (&two, false), (&one, false)]
        );
        assert_eq!((all.len(), all[0].3, all[1].3), (4, true, false), "{all:?}");
        assert!(all.iter().all(|version| version.0 == "k"));
    }
}

#[test]
fn what_is_deleted_by_its_id_is_gone_for_good_and_from_the_cache() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let proxy = proxy_before(&with_new_bucket(&server));
    done(ask(&proxy, "PUT", "/k", &[], b"0"));
    done(set_versioning(&proxy, ENABLED));
    let (one, two) = (put(&proxy, "k", b"11"), put(&proxy, "k", b"222"));
    let marker = id_of(&done(ask(&proxy, "DELETE", "/k", &[], b"")));
    assert_code(&get(&proxy, "k"), 404, "NoSuchKey", "hidden");
    let refused = ask_as(&proxy, READER, "DELETE", "/k?versionId=null", &[], b"");
    assert_code(&refused, 403, "AccessDenied", "who may only read");
    let conditional = version(&proxy, "DELETE", "k", &two, &[("if-match", "\"a\"")]);
    assert_code(&conditional, 501, "NotImplemented", "a condition");
    let answer = done(version(&proxy, "DELETE", "k", &marker, &[]));
    assert_eq!(answer.header("x-amz-delete-marker"), Some("true"));
    assert_eq!(answer.expect_header("x-amz-version-id"), marker);
    assert_eq!(done(get(&proxy, "k")).body, b"222", "it is there again");
    assert_eq!(get(&proxy, "k").body, b"222", "and cached");
    let answer = done(version(&proxy, "DELETE", "k", &two, &[]));
    assert_eq!(answer.header("x-amz-delete-marker"), None);
    assert_eq!(done(get(&proxy, "k")).body, b"11", "the one before");
    assert_code(
        &version(&proxy, "GET", "k", &two, &[]),
        404,
        "NoSuchVersion",
        "gone",
    );
    assert_eq!(done(version(&proxy, "GET", "k", "null", &[])).body, b"0");
    done(version(&proxy, "DELETE", "k", &one, &[]));
    done(version(&proxy, "DELETE", "k", "null", &[]));
    assert_code(&get(&proxy, "k"), 404, "NoSuchKey", "nothing is left");
    assert_eq!(listed(&list(&proxy, "")), []);
}

#[test]
fn versions_are_read_in_ranges_and_under_conditions() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let proxy = proxy_before(&with_new_bucket(&server));
    done(set_versioning(&proxy, ENABLED));
    let (body, newer) = (pattern(1, 3_500_000), pattern(2, 3_600_000));
    let headers = [("x-amz-meta-colour", "red"), ("content-type", "a/b")];
    let one = id_of(&done(ask(&proxy, "PUT", "/k", &headers, &body)));
    put(&proxy, "k", &newer);
    let whole = done(version(&proxy, "GET", "k", &one, &[]));
    assert_same_bytes(&whole.body, &body, "the older version");
    assert_eq!(whole.header("x-amz-meta-colour"), Some("red"));
    assert_eq!(whole.header("content-type"), Some("a/b"));
    assert_same_bytes(&get(&proxy, "k").body, &newer, "the newer version");
    for (range, expected) in [
        ("bytes=5-99", 5..100),
        ("bytes=1048570-1048590", 1_048_570..1_048_591),
        ("bytes=3499000-", 3_499_000..3_500_000),
        ("bytes=-7", 3_499_993..3_500_000),
    ] {
        let answer = version(&proxy, "GET", "k", &one, &[("range", range)]);
        assert_eq!(answer.status, 206, "{range}");
        let told = format!("bytes {}-{}/3500000", expected.start, expected.end - 1);
        assert_eq!(answer.expect_header("content-range"), told);
        assert_same_bytes(&answer.body, &body[expected], range);
    }
    let tag = whole.expect_header("etag");
    let answer =
        |method: &str, headers: &[(&str, &str)]| version(&proxy, method, "k", &one, headers);
    assert_eq!(answer("GET", &[("if-none-match", tag)]).status, 304);
    assert_eq!(answer("HEAD", &[("if-none-match", tag)]).status, 304);
    assert_eq!(answer("GET", &[("if-match", tag)]).status, 200);
    assert_eq!(answer("HEAD", &[("if-match", "\"other\"")]).status, 412);
    let failed = answer("GET", &[("if-match", "\"other\"")]);
    assert_code(&failed, 412, "PreconditionFailed", "another tag");
    let range = ("range", "bytes=0-3");
    assert_eq!(answer("GET", &[range, ("if-range", tag)]).status, 206);
    assert_eq!(
        answer("GET", &[range, ("if-range", "\"other\"")]).status,
        200
    );
    let beyond = answer("GET", &[("range", "bytes=9000000-")]);
    assert_code(&beyond, 416, "InvalidRange", "past the end");
    assert_code(
        &version(&proxy, "GET", "k", "bogus", &[]),
        404,
        "NoSuchVersion",
        "no id",
    );
    assert_code(
        &version(&proxy, "GET", "other", &one, &[]),
        404,
        "NoSuchVersion",
        "no key",
    );
    assert_eq!(version(&proxy, "HEAD", "k", "bogus", &[]).status, 404);
    let empty = ask(&proxy, "GET", "/k?versionId=", &[], b"");
    assert_code(&empty, 400, "InvalidArgument", "an id that is empty");
    let part = ask(
        &proxy,
        "GET",
        &format!("/k?partNumber=1&versionId={one}"),
        &[],
        b"",
    );
    assert_code(&part, 501, "NotImplemented", "a part of a version");
    let nothing = put(&proxy, "empty", b"");
    let answer = done(version(&proxy, "GET", "empty", &nothing, &[]));
    assert_eq!((answer.status, answer.body.len()), (200, 0));
}

#[test]
fn copies_are_made_of_versions_and_make_some() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let proxy = proxy_before(&with_new_bucket(&server));
    done(set_versioning(&proxy, ENABLED));
    let (old, new) = (pattern(1, 2_500_000), pattern(2, 2_600_000));
    let key = "a%25b";
    let (one, _) = (put(&proxy, key, &old), put(&proxy, key, &new));
    let source = format!("/{VOLUME}/{key}?versionId={one}");
    let copy = |target: &str, headers: &[(&str, &str)]| {
        let source = ("x-amz-copy-source", source.as_str());
        let headers: Vec<(&str, &str)> = headers.iter().copied().chain([source]).collect();
        ask(&proxy, "PUT", target, &headers, b"")
    };
    let copied = done(copy("/copy", &[]));
    assert_eq!(copied.expect_header("x-amz-copy-source-version-id"), one);
    let id = id_of(&copied);
    assert_same_bytes(&done(get(&proxy, "copy")).body, &old, "a copy of a version");
    assert_same_bytes(
        &done(version(&proxy, "GET", "copy", &id, &[])).body,
        &old,
        "by its id",
    );
    let failed = copy("/copy", &[("x-amz-copy-source-if-match", "\"other\"")]);
    assert_code(&failed, 412, "PreconditionFailed", "another tag");
    // What is restored is copied onto itself.
    let restored = done(copy(&format!("/{key}"), &[]));
    assert_ne!(id_of(&restored), one);
    assert_same_bytes(&done(get(&proxy, key)).body, &old, "restored");
    let begun = done(ask(&proxy, "POST", "/parts?uploads=", &[], b"")).text();
    let upload = text_of(&begun, "UploadId").expect("a name").to_owned();
    let place = format!("/parts?partNumber=1&uploadId={upload}");
    let range = ("x-amz-copy-source-range", "bytes=100-1500099");
    let part = done(copy(&place, &[range]));
    assert_eq!(part.expect_header("x-amz-copy-source-version-id"), one);
    let text = part.text();
    let tag = text_of(&text, "ETag").expect("a tag");
    let document = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part></CompleteMultipartUpload>"
    );
    let place = format!("/parts?uploadId={upload}");
    let completed = done(ask(&proxy, "POST", &place, &[], document.as_bytes()));
    let id = id_of(&completed);
    assert_same_bytes(
        &done(get(&proxy, "parts")).body,
        &old[100..1_500_100],
        "a part",
    );
    let by_id = done(version(&proxy, "GET", "parts", &id, &[]));
    assert_same_bytes(&by_id.body, &old[100..1_500_100], "the whole by its id");
    let bogus = format!("/{VOLUME}/{key}?versionId=bogus");
    let answer = ask(
        &proxy,
        "PUT",
        "/copy",
        &[("x-amz-copy-source", &bogus)],
        b"",
    );
    assert_code(&answer, 404, "NoSuchVersion", "a copy of none");
}

#[test]
fn versions_have_tags_and_many_are_deleted_at_once() {
    const TAGS: &[u8] =
        b"<Tagging><TagSet><Tag><Key>colour</Key><Value>red</Value></Tag></TagSet></Tagging>";
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let proxy = proxy_before(&with_new_bucket(&server));
    done(set_versioning(&proxy, ENABLED));
    let (one, two) = (put(&proxy, "k", b"1"), put(&proxy, "k", b"2"));
    let place = |id: &str| format!("/k?tagging=&versionId={id}");
    let tags = |rest: &str| done(ask_as(&proxy, READER, "GET", rest, &[], b"")).text();
    let set = done(ask(&proxy, "PUT", &place(&one), &[], TAGS));
    assert_eq!(set.expect_header("x-amz-version-id"), one);
    assert!(tags(&place(&one)).contains("<Value>red</Value>"));
    assert!(!tags(&place(&two)).contains("<Tag>") && !tags("/k?tagging=").contains("<Tag>"));
    done(ask(&proxy, "DELETE", &place(&one), &[], b""));
    assert!(!tags(&place(&one)).contains("<Tag>"));
    let missing = ask(&proxy, "GET", &place("bogus"), &[], b"");
    assert_eq!(missing.status, 404, "{}", missing.text());
    let document = format!(
        "<Delete><Object><Key>k</Key><VersionId>{two}</VersionId></Object>\
         <Object><Key>other</Key></Object></Delete>"
    );
    let digest = STANDARD.encode(Md5::digest(&document));
    let headers = [("content-md5", digest.as_str())];
    let answer = done(ask(
        &proxy,
        "POST",
        "?delete=",
        &headers,
        document.as_bytes(),
    ))
    .text();
    let first = format!("<Deleted><Key>k</Key><VersionId>{two}</VersionId></Deleted>");
    assert!(answer.contains(&first), "{answer}");
    let second =
        "<Deleted><Key>other</Key><DeleteMarker>true</DeleteMarker><DeleteMarkerVersionId>";
    assert!(answer.contains(second), "{answer}");
    assert_eq!(done(get(&proxy, "k")).body, b"1");
}

#[test]
fn lists_of_versions_are_the_volumes_page_by_page() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let server = with_new_bucket(&server);
    let (proxy, neighbour) = (proxy_before(&server), proxy_before(&server));
    // Before the bucket keeps any, all is one version, what waits for its upload too.
    done(ask(&proxy, "PUT", "/a%20b%2Bc", &[], b"0"));
    let first = listed(&list(&proxy, ""));
    let expected = ("a b+c".to_owned(), "null".to_owned(), false, true);
    assert_eq!(first, [expected]);
    done(set_versioning(&proxy, ENABLED));
    for key in ["a%20b%2Bc", "d/1", "d/2", "d/e/x", "%C3%BC%26"] {
        put(&proxy, key, b"1");
        put(&proxy, key, b"22");
    }
    done(ask(&proxy, "DELETE", "/d/2", &[], b""));
    put(&neighbour, "d/0", b"another volume's");
    let all = listed(&list(&proxy, ""));
    assert_eq!(all.len(), 12, "{all:?}");
    for limit in [1, 2, 5] {
        let mut pages = Vec::new();
        let mut from: Option<(String, String)> = None;
        loop {
            assert!(pages.len() <= all.len(), "it ends: {pages:?}");
            // In the order that a signature wants.
            let rest = match &from {
                None => format!("?encoding-type=url&max-keys={limit}&versions="),
                Some((key, id)) => format!(
                    "?encoding-type=url&key-marker={key}&max-keys={limit}&version-id-marker={id}&versions="
                ),
            };
            let answer = done(ask_as(&proxy, READER, "GET", &rest, &[], b""));
            for (key, id, is_marker, is_latest) in listed(&answer) {
                let key = percent_encoding::percent_decode_str(&key).decode_utf8();
                let key = key.expect("UTF-8").into_owned();
                pages.push((key, id, is_marker, is_latest));
            }
            let text = answer.text();
            if text_of(&text, "IsTruncated") == Some("false") {
                break;
            }
            let key = text_of(&text, "NextKeyMarker").expect("where");
            let id = text_of(&text, "NextVersionIdMarker").expect("which");
            from = Some((key.replace('/', "%2F"), id.to_owned()));
        }
        assert_eq!(unescaped(&pages), unescaped(&all), "pages of {limit}");
    }
    let cut = list(&proxy, "delimiter=%2F&prefix=d%2F");
    let keys: Vec<String> = listed(&cut).into_iter().map(|v| v.0).collect();
    assert_eq!(keys, ["d/1", "d/1", "d/2", "d/2", "d/2"]);
    assert!(
        cut.text()
            .contains("<CommonPrefixes><Prefix>d/e/</Prefix></CommonPrefixes>")
    );
    for (query, code) in [
        ("version-id-marker=a&versions=", "InvalidArgument"),
        ("max-keys=x&versions=", "InvalidArgument"),
    ] {
        let answer = ask(&proxy, "GET", &format!("?{query}"), &[], b"");
        assert_code(&answer, 400, code, query);
    }
    let none = list(&proxy, "max-keys=0");
    assert_eq!(listed(&none), []);
}

#[test]
fn suspended_buckets_write_the_version_null() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let proxy = proxy_before(&with_new_bucket(&server));
    done(set_versioning(&proxy, ENABLED));
    let one = put(&proxy, "k", b"1");
    done(set_versioning(&proxy, SUSPENDED));
    assert_eq!(versioning(&proxy), "Suspended");
    let written = done(ask(&proxy, "PUT", "/k", &[], b"22"));
    assert_eq!(written.expect_header("x-forebay-write"), "through");
    assert_eq!(get(&proxy, "k").body, b"22");
    assert_eq!(done(version(&proxy, "GET", "k", "null", &[])).body, b"22");
    assert_eq!(done(version(&proxy, "GET", "k", &one, &[])).body, b"1");
    done(version(&proxy, "DELETE", "k", "null", &[]));
    assert_eq!(done(get(&proxy, "k")).body, b"1");
}

#[test]
fn what_was_dirty_becomes_a_version_when_it_is_replaced() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let server = with_new_bucket(&server);
    let proxy = proxy_before(&server);
    for key in ["put", "delete", "copy"] {
        let answer = done(ask(&proxy, "PUT", &format!("/{key}"), &[], b"old"));
        assert_eq!(answer.expect_header("x-forebay-write"), "back");
    }
    // Beside us; then somebody asks.
    let set = directly(&server, "PUT", &[("versioning", "")], ENABLED);
    assert_eq!(set.status, 200, "{}", set.text());
    assert_eq!(versioning(&proxy), "Enabled");
    assert_eq!(get(&proxy, "put").cache(), "hit-dirty");
    put(&proxy, "put", b"new");
    id_of(&done(ask(&proxy, "DELETE", "/delete", &[], b"")));
    put(&proxy, "source", b"newer");
    let source = format!("/{VOLUME}/source");
    done(ask(
        &proxy,
        "PUT",
        "/copy",
        &[("x-amz-copy-source", &source)],
        b"",
    ));
    for (key, latest) in [
        ("put", Some(&b"new"[..])),
        ("delete", None),
        ("copy", Some(b"newer")),
    ] {
        let versions = listed(&list(&proxy, &format!("prefix={key}")));
        assert_eq!(versions.len(), 2, "{key}: {versions:?}");
        let older = done(version(&proxy, "GET", key, &versions[1].1, &[]));
        assert_eq!(older.body, b"old", "{key}");
        match latest {
            Some(body) => assert_eq!(done(get(&proxy, key)).body, body),
            None => assert_code(&get(&proxy, key), 404, "NoSuchKey", key),
        }
    }
}

#[test]
fn an_upload_that_gets_an_id_says_that_versions_are_kept() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let server = with_new_bucket(&server);
    let proxy = start_with(Setup {
        volume_lines: "ttl = \"600s\"\nwriteback = true\n".to_string(),
        store: Some(server.own_prefix()),
        ..Setup::default()
    });
    let first = done(ask(&proxy, "PUT", "/k", &[], b"1"));
    assert_eq!(first.expect_header("x-forebay-write"), "back");
    let set = directly(&server, "PUT", &[("versioning", "")], ENABLED);
    assert_eq!(set.status, 200, "{}", set.text());
    // The first of these that is uploaded is told an id; those behind it go through.
    common::wait_until("a write is told its id", || {
        let answer = done(ask(&proxy, "PUT", "/k", &[], b"2"));
        answer.header("x-amz-version-id").is_some()
    });
}

#[test]
fn what_is_no_configuration_changes_nothing() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let proxy = proxy_before(&with_new_bucket(&server));
    let refused = ask_as(&proxy, READER, "PUT", "?versioning=", &[], ENABLED);
    assert_code(&refused, 403, "AccessDenied", "who may only read");
    let unchecked = ask(&proxy, "PUT", "?versioning=", &[], ENABLED);
    assert_code(&unchecked, 400, "InvalidRequest", "without a checksum");
    let other = STANDARD.encode(Md5::digest(b"other"));
    let headers = [("content-md5", other.as_str())];
    let damaged = ask(&proxy, "PUT", "?versioning=", &headers, ENABLED);
    assert_code(&damaged, 400, "BadDigest", "another body");
    for (document, status, code) in [
        (&b"<VersioningConfiguration/>"[..], 400, "IllegalVersioningConfigurationException"),
        (b"<VersioningConfiguration><Status>On</Status></VersioningConfiguration>", 400, "MalformedXML"),
        (b"Enabled", 400, "MalformedXML"),
        (
            b"<VersioningConfiguration><Status>Enabled</Status><MfaDelete>Enabled</MfaDelete></VersioningConfiguration>",
            501,
            "NotImplemented",
        ),
    ] {
        assert_code(&set_versioning(&proxy, document), status, code, "no configuration");
    }
    let long = vec![b' '; 5_000];
    assert_code(
        &set_versioning(&proxy, &long),
        413,
        "EntityTooLarge",
        "too long",
    );
    assert_eq!(versioning(&proxy), "");
    let written = done(ask(&proxy, "PUT", "/k", &[], b"1"));
    assert_eq!(written.expect_header("x-forebay-write"), "back");
}

#[test]
fn a_folder_keeps_no_versions() {
    let proxy = start();
    done(ask(&proxy, "PUT", "/k", &[], b"body"));
    assert_eq!(versioning(&proxy), "");
    assert_code(
        &set_versioning(&proxy, ENABLED),
        501,
        "NotImplemented",
        "versioning",
    );
    for (method, rest) in [
        ("GET", "?versions="),
        ("GET", "/k?versionId=null"),
        ("HEAD", "/k?versionId=a"),
        ("DELETE", "/k?versionId=null"),
        ("GET", "/k?tagging=&versionId=a"),
    ] {
        let answer = ask(&proxy, method, rest, &[], b"");
        assert_eq!(answer.status, 501, "{method} {rest}");
    }
    let source = format!("/{VOLUME}/k?versionId=a");
    let copy = ask(&proxy, "PUT", "/c", &[("x-amz-copy-source", &source)], b"");
    assert_code(&copy, 501, "NotImplemented", "a copy of a version");
    let source = format!("/{VOLUME}/k?versionId=null");
    done(ask(
        &proxy,
        "PUT",
        "/c",
        &[("x-amz-copy-source", &source)],
        b"",
    ));
    assert_eq!(get(&proxy, "c").body, b"body");
}
