//! A volume in Azure, from the outside: acknowledged writes reach the container whatever happens to the
//! proxy, and what is there is read, listed and deleted. In front of Azurite.

mod common;

use common::stores::AzureServer;
use common::{Proxy, Setup, VOLUME, assert_same_bytes, pattern, wait_until};
use serde_json::Value;

/// Longer than any test: nothing is uploaded.
const FOR_EVER: [&str; 2] = ["--writebackDelay", "3600000"];

fn setup(store: common::proxy::StoreSpec) -> Setup {
    Setup {
        store: Some(store),
        volume_lines: "ttl = \"600s\"\nwriteback = true\n".to_string(),
        shards: 2,
        ..Setup::default()
    }
}

/// A server and, by key and by token, a store of its own.
fn stores() -> Vec<common::proxy::StoreSpec> {
    let Some(server) = AzureServer::azurite() else {
        return Vec::new();
    };
    let by_key = format!(
        "access_key = \"{}\"\nsecret_key = \"{}\"",
        server.account, server.key
    );
    let by_token = format!("sas_token = \"{}\"", server.token());
    [by_key, by_token]
        .map(|credentials| server.own_prefix(credentials))
        .into()
}

/// How many blocks are dirty; of a proxy that knows all of them.
fn dirty_blocks(proxy: &Proxy) -> u64 {
    let number = |name: &str| {
        let status: Value =
            serde_json::from_slice(&proxy.operator("GET", "/-/status").body).expect("JSON");
        status["writeback"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no number {name}: {status}"))
    };
    wait_until("all shards' dirty blocks are known", || {
        number("shards_unread") == 0
    });
    number("dirty_blocks")
}

fn names(proxy: &Proxy, query: &str) -> Vec<String> {
    let answer = proxy.request("GET", &format!("/{VOLUME}?list-type=2&{query}"), &[], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let after = text.split("<Key>").skip(1);
    after
        .map(|rest| rest.split("</Key>").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn what_is_acknowledged_reaches_the_container_whatever_happens_to_the_proxy() {
    for store in stores() {
        let mut proxy = Setup {
            flags: FOR_EVER.map(str::to_string).into(),
            ..setup(store)
        }
        .start();
        let objects: Vec<(String, Vec<u8>)> = (0..12)
            .map(|at| (format!("d{}/k {at:02}", at % 3), pattern(at, 200_000)))
            .collect();
        for (key, body) in &objects {
            let target = format!("/{VOLUME}/{}", key.replace(' ', "%20"));
            let headers = [
                ("content-type", "text/x-forebay"),
                ("x-amz-meta-made-by", "us"),
            ];
            let answer = proxy.request("PUT", &target, &headers, body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.header("x-forebay-write"), Some("back"));
        }
        assert_eq!(dirty_blocks(&proxy), 12);
        let all: Vec<String> = {
            let mut keys: Vec<_> = objects.iter().map(|(key, _)| key.clone()).collect();
            keys.sort();
            keys
        };
        assert_eq!(names(&proxy, ""), all, "acknowledged, and not stored yet");
        // kill -9, and again while it uploads.
        proxy.restart_killed(|setup| setup.flags.clear());
        proxy.restart_killed(|_| {});
        wait_until("everything is uploaded", || dirty_blocks(&proxy) == 0);
        // Another one, whose cache is empty: what the container has.
        let other = setup(proxy.shared_store()).start();
        for (key, body) in &objects {
            let answer = other.get(&key.replace(' ', "%20"));
            assert_eq!((answer.status, answer.cache()), (200, "miss"), "{key}");
            assert_same_bytes(&answer.body, body, key);
            assert_eq!(answer.header("content-type"), Some("text/x-forebay"));
            assert_eq!(answer.header("x-amz-meta-made-by"), Some("us"));
        }
        let answer = other.get_range("d0/k%2000", "bytes=100000-100099");
        assert_same_bytes(&answer.body, &objects[0].1[100_000..100_100], "a range");
        assert_eq!(names(&other, "max-keys=1000"), all);
        assert_eq!(names(&other, "prefix=d1/"), all[4..8]);
        assert_eq!(names(&other, "max-keys=2&start-after=d1/k%2004"), all[6..8]);
        for (key, _) in &objects {
            let target = format!("/{VOLUME}/{}", key.replace(' ', "%20"));
            assert_eq!(proxy.request("DELETE", &target, &[], b"").status, 204);
        }
        assert_eq!(names(&proxy, ""), Vec::<String>::new());
        assert_eq!(names(&other, ""), Vec::<String>::new());
    }
}

#[test]
fn what_is_larger_than_a_block_goes_through_and_keys_that_azure_cannot_keep_are_refused() {
    for store in stores() {
        let proxy = setup(store).start();
        let body = pattern(7, 5 << 20);
        let answer = proxy.put("big", &body);
        assert_eq!(answer.header("x-forebay-write"), Some("through"));
        let other = setup(proxy.shared_store()).start();
        assert_same_bytes(&other.get("big").body, &body, "big");
        for key in ["ends.", "a%5Cb", "a.%2Fb", "%01", ".forebay-uploads/x"] {
            let target = format!("/{VOLUME}/{key}");
            let answer = proxy.request("PUT", &target, &[], b"x");
            // Acknowledged from disk it would never reach the container.
            assert_eq!(answer.status, 400, "{key}");
            assert_eq!(answer.error_code(), "InvalidURI", "{key}");
            let answer = proxy.request("DELETE", &target, &[], b"");
            assert_eq!(answer.status, 400, "{key}");
        }
        assert_eq!(dirty_blocks(&proxy), 0);
    }
}

#[test]
fn a_wrong_key_is_said_and_keeps_what_was_acknowledged() {
    let Some(server) = AzureServer::azurite() else {
        return;
    };
    let wrong = format!(
        "access_key = \"{}\"\nsecret_key = \"d3Jvbmc=\"",
        server.account
    );
    let right = wrong.replace("d3Jvbmc=", &server.key);
    let mut proxy = setup(server.own_prefix(wrong)).start();
    let body = pattern(1, 10_000);
    proxy.put("k", &body);
    let listed = proxy.request("GET", &format!("/{VOLUME}?list-type=2"), &[], b"");
    assert!(listed.status >= 500, "{}", listed.text());
    assert!(!listed.text().contains("d3Jvbmc"), "{}", listed.text());
    assert_eq!(proxy.get("k").body, body, "it is served all the same");
    // The file is looked at again, without a restart.
    if let Some(common::proxy::StoreSpec::Azure { credentials, .. }) = &mut proxy.setup.store {
        *credentials = right;
    }
    proxy.write_config();
    wait_until("the right key is taken", || dirty_blocks(&proxy) == 0);
    let other = setup(proxy.shared_store()).start();
    assert_eq!(other.get("k").body, body);
    assert!(!proxy.stderr().contains(&server.key));
}

fn element(text: &str, name: &str) -> String {
    let inside = text
        .split_once(&format!("<{name}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
    let (inside, _) = inside.unwrap_or_else(|| panic!("no {name} in {text}"));
    inside.to_owned()
}

/// Azure's ETags say neither what a part holds nor how many there are.
#[test]
fn an_object_in_parts_is_told_part_by_part_as_long_as_its_parts_are_known() {
    for store in stores() {
        let mut proxy = setup(store).start();
        let target = format!("/{VOLUME}/in-parts");
        let begun = proxy.request("POST", &format!("{target}?uploads"), &[], b"");
        let upload = element(&begun.text(), "UploadId");
        let parts = [pattern(1, 5 << 20), pattern(2, 70_000)];
        let mut document = "<CompleteMultipartUpload>".to_string();
        for (number, part) in (1..).zip(&parts) {
            let to = format!("{target}?partNumber={number}&uploadId={upload}");
            let answer = proxy.request("PUT", &to, &[], part);
            assert_eq!(answer.status, 200, "{}", answer.text());
            let etag = answer.expect_header("etag");
            document +=
                &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        }
        document += "</CompleteMultipartUpload>";
        let to = format!("{target}?uploadId={upload}");
        let answer = proxy.request("POST", &to, &[], document.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_same_bytes(&proxy.get("in-parts").body, &parts.concat(), "the whole");
        let second =
            |proxy: &Proxy| proxy.request("GET", &format!("{target}?partNumber=2"), &[], b"");
        let answer = second(&proxy);
        assert_eq!(
            (answer.status, answer.expect_header("x-amz-mp-parts-count")),
            (206, "2")
        );
        assert_same_bytes(&answer.body, &parts[1], "the second part");
        proxy.restart_killed(|_| {});
        assert_same_bytes(&proxy.get("in-parts").body, &parts.concat(), "after a kill");
        assert_eq!(second(&proxy).status, 501, "known no more, and not guessed");
    }
}
