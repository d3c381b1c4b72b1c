//! What the commands do about blocks whose store is away, refuses them, or has something newer.

use super::common::proxy::{OTHER_VOLUME, StoreSpec, files_below};
use super::common::stores::S3Server;
use super::common::{OTHER, Proxy, Setup, VOLUME, pattern, wait_until};
use super::store::Store;
use super::{Said, operate, operate_command};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::Child;
use std::time::Duration;

fn operate_beside(proxy: &Proxy, words: &[&str]) -> Child {
    let mut command = operate_command(proxy, words);
    command.spawn().expect("the command runs")
}

fn setup(store: &Store) -> Setup {
    let server = S3Server {
        name: "memory",
        endpoint: store.endpoint(),
        region: "us-east-1".to_owned(),
        bucket: store.bucket().to_owned(),
        key: "key".to_owned(),
        secret: "secret-secret".to_owned(),
    };
    let prefix = "p".to_owned();
    Setup {
        // Blocks of both cores take part.
        shards: 2,
        store: Some(StoreSpec::S3 { server, prefix }),
        volume_lines: "ttl = \"600s\"\n".to_owned(),
        ..Setup::default()
    }
}

/// A proxy in front of a store of its own.
fn world() -> (Store, Proxy) {
    let store = Store::start();
    let proxy = setup(&store).start();
    (store, proxy)
}

/// An object's key in the bucket.
fn stored(volume: &str, key: &str) -> String {
    format!("p/{volume}/{key}")
}

fn json(proxy: &Proxy, method: &str, target: &str) -> Value {
    let answer = proxy.operator(method, target);
    let text = answer.text();
    assert!(matches!(answer.status, 200 | 202), "{target}: {text}");
    assert_eq!(answer.expect_header("content-type"), "application/json");
    serde_json::from_str(&text).expect("JSON")
}

fn summary(proxy: &Proxy) -> Value {
    let status = json(proxy, "GET", "/-/status");
    let listed = json(proxy, "GET", "/-/dirty?limit=1");
    let mut names: Vec<&String> = keys(&listed["summary"]);
    let mut others = keys(&status["writeback"]);
    names.sort();
    others.sort();
    assert_eq!(names, others);
    status["writeback"].clone()
}

fn keys(value: &Value) -> Vec<&String> {
    value.as_object().expect("an object").keys().collect()
}

/// The state of each dirty block of a key.
fn states(proxy: &Proxy, key: &str) -> Vec<String> {
    let listed = json(proxy, "GET", "/-/dirty");
    let blocks = listed["blocks"].as_array().expect("a list");
    let of_key = blocks.iter().filter(|block| block["key"] == key);
    of_key
        .map(|block| block["state"].as_str().expect("text").to_owned())
        .collect()
}

fn wait_for_state(proxy: &Proxy, key: &str, state: &str) {
    wait_until(&format!("{key} is {state}"), || {
        states(proxy, key) == [state]
    });
}

fn put_other(proxy: &Proxy, key: &str, body: &[u8]) {
    let target = format!("/{OTHER_VOLUME}/{key}");
    let token = format!("Bearer {OTHER}");
    let answer = proxy.request("PUT", &target, &[("Authorization", &token)], body);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_drain_waits_for_a_store_that_is_away_and_keeps_new_writes_out() {
    let (store, proxy) = world();
    store.set_away(true);
    let bodies: Vec<Vec<u8>> = (0..3).map(|n| pattern(n, 300_000)).collect();
    for (n, body) in bodies.iter().enumerate() {
        proxy.put(&format!("key-{n}"), body);
    }
    let before = summary(&proxy);
    assert_eq!(before["dirty_blocks"], 3);
    assert_eq!(before["dirty_bytes"], 900_000);
    assert_eq!(
        (&before["enabled"], &before["draining"]),
        (&true.into(), &false.into())
    );
    let metrics = proxy.operator("GET", "/-/metrics").text();
    assert!(metrics.contains("\nforebay_dirty_blocks 3\n"), "{metrics}");
    let said = operate(&proxy, &["dirty"]).is(0, "3 to upload (878.91 KiB)");
    assert_eq!(said.output.matches("vol/key-").count(), 3, "{said:?}");
    let mut drain = operate_beside(&proxy, &["drain"]);
    wait_until("the drain has begun", || {
        summary(&proxy)["draining"] == true
    });
    // Goes through to the store, which is away.
    let refused = proxy.request("PUT", &format!("/{VOLUME}/late"), &[], b"late");
    assert!((500..600).contains(&refused.status), "{}", refused.status);
    assert!(
        drain.try_wait().expect("wait").is_none(),
        "nothing is uploaded yet"
    );
    store.set_away(false);
    // Ends the pauses that the failures have led to.
    operate(&proxy, &["flush"]).is(0, "flushed");
    let said = Said::of(drain.wait_with_output().expect("wait")).is(0, "drained: 3 blocks");
    assert!(said.error.contains("3 blocks to upload"), "{said:?}");
    for (n, body) in bodies.iter().enumerate() {
        let object = store.object(&stored(VOLUME, &format!("key-{n}")));
        assert_eq!(object.as_ref(), Some(body), "key-{n}");
    }
    operate(&proxy, &["dirty"]).is(0, "0 to upload (0 B)");
    proxy.put("through", b"through");
    assert_eq!(
        store.object(&stored(VOLUME, "through")),
        Some(b"through".to_vec())
    );
    operate(&proxy, &["drain", "--end"]).is(0, "the drain is over");
    store.set_away(true);
    proxy.put("again", b"again");
    assert_eq!(states(&proxy, "again").len(), 1);
}

#[test]
fn a_flush_waits_for_what_was_there_and_survives_a_kill() {
    let store = Store::start();
    let mut proxy = setup(&store).start();
    operate(&proxy, &["flush"]).is(0, "nothing was left to upload");
    store.set_away(true);
    let body = pattern(9, 1 << 20);
    proxy.put("a/b", &body);
    proxy.restart_killed(|_| {});
    let export = format!("/-/dirty/export?volume={VOLUME}&key=a%2Fb");
    let answer = proxy.operator("GET", &export);
    assert_eq!((answer.status, answer.body == body), (200, true));
    let answer = proxy.operator("HEAD", &export);
    assert_eq!(answer.expect_header("content-length"), "1048576");
    store.set_away(false);
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert_eq!(store.object(&stored(VOLUME, "a/b")), Some(body));
    assert_eq!(proxy.operator("GET", &export).status, 404);
    let metrics = proxy.operator("GET", "/-/metrics").text();
    let done = metrics
        .lines()
        .filter(|line| line.contains("outcome=\"done\"") && line.ends_with(" 1"));
    assert_eq!(done.count(), 1, "{metrics}");
}

#[test]
fn a_drain_says_when_the_proxy_goes_away() {
    let store = Store::start();
    let mut proxy = setup(&store).start();
    store.set_away(true);
    proxy.put("key", b"bytes");
    let mut drain = operate_beside(&proxy, &["drain"]);
    // Its first line says that it has begun to wait.
    let mut lines = BufReader::new(drain.stderr.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("text");
    assert!(first.contains("1 block to upload"), "{first}");
    proxy.kill();
    let last = lines.last().expect("a line").expect("text");
    assert!(last.contains("does not answer: "), "{last}");
    assert!(last.ends_with("1 block had yet to be uploaded"), "{last}");
    assert_eq!(drain.wait().expect("wait").code(), Some(1));
}

#[test]
fn a_drain_that_stands_still_says_why() {
    let (store, proxy) = world();
    store.set_away(true);
    proxy.put("key", b"bytes");
    let mut drain = operate_beside(&proxy, &["drain"]);
    let mut lines = BufReader::new(drain.stderr.take().expect("piped")).lines();
    let told = lines.find_map(|line| {
        let line = line.expect("text");
        line.contains("no upload for").then_some(line)
    });
    let told = told.expect("it ends only when nothing is left");
    assert!(
        told.contains("the oldest block, vol/key, has failed"),
        "{told}"
    );
    store.set_away(false);
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert_eq!(drain.wait().expect("wait").code(), Some(0));
}

#[test]
fn a_quarantined_block_is_listed_exported_and_tried_again() {
    let (store, proxy) = world();
    store.refuse(&["poison", "%2e"]);
    let body = pattern(5, 70_000);
    let headers = [("Content-Type", "text/x-poison"), ("x-amz-meta-who", "me")];
    let target = format!("/{VOLUME}/..a/poison");
    assert_eq!(proxy.request("PUT", &target, &headers, &body).status, 200);
    wait_for_state(&proxy, "..a/poison", "quarantined");
    operate(&proxy, &["drain"]).is(1, "1 quarantined");
    operate(&proxy, &["drain", "--end"]).is(0, "over");
    let said = operate(&proxy, &["dirty", "--limit", "5"]).is(0, "quarantined ");
    assert!(
        said.output.contains("this store does not like the key"),
        "{said:?}"
    );
    let folder = proxy.folder().join("exported");
    let words = ["dirty", "--export", folder.to_str().expect("text")];
    operate(&proxy, &words).is(0, "vol/..a/poison -> ");
    let file = folder.join(VOLUME).join("%2E.a%2Fpoison");
    assert_eq!(std::fs::read(&file).expect("exported"), body);
    assert_eq!(file.metadata().expect("stat").mode() & 0o7777, 0o600);
    // A file that is there is not replaced, whoever wrote it.
    std::fs::write(&file, b"mine").expect("write");
    operate(&proxy, &words).is(1, "1 of 1 held blocks were not exported");
    assert_eq!(std::fs::read(&file).expect("kept"), b"mine");
    let export = format!("/-/dirty/export?volume={VOLUME}&key=..a/poison");
    let answer = proxy.operator("GET", &export);
    assert_eq!(answer.expect_header("content-type"), "text/x-poison");
    assert_eq!(answer.expect_header("x-amz-meta-who"), "me");
    store.refuse(&[]);
    operate(&proxy, &["dirty", "--retry"]).is(0, "1 block will be uploaded again");
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert_eq!(store.object(&stored(VOLUME, "..a/poison")), Some(body));
}

#[test]
fn a_held_block_is_given_up_only_by_a_name_that_is_clear() {
    let (store, proxy) = world();
    store.refuse(&["poison", "other"]);
    proxy.put("poison", b"one");
    proxy.put("other", b"three");
    put_other(&proxy, "poison", b"two");
    wait_until("all are quarantined", || {
        summary(&proxy)["quarantined_blocks"] == 3
    });
    operate(&proxy, &["dirty", "--abandon", "poison"]).is(2, "volumes other, vol");
    operate(&proxy, &["dirty", "--retry", "poison"]).is(2, "volumes other, vol");
    operate(&proxy, &["dirty", "--abandon", "no-such"]).is(1, "no held block has the key");
    let words = ["dirty", "--abandon", "poison", "--volume", VOLUME];
    operate(&proxy, &words).is(0, "vol/poison is given up");
    operate(&proxy, &words).is(1, "answers 404");
    assert_eq!(proxy.get("poison").status, 404);
    operate(&proxy, &["dirty", "--abandon", "poison"]).is(0, "other/poison is given up");
    operate(&proxy, &["dirty", "--abandon", "other"]).is(0, "vol/other is given up");
    operate(&proxy, &["drain"]).is(0, "drained");
}

#[test]
fn a_block_that_waits_is_not_given_up() {
    let (store, proxy) = world();
    store.set_away(true);
    proxy.put("key", b"bytes");
    let target = format!("/-/dirty/abandon?volume={VOLUME}&key=key");
    let answer = proxy.operator("POST", &target);
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (409, "InvalidObjectState")
    );
    let said = operate(&proxy, &["dirty", "--abandon", "key", "--volume", VOLUME]);
    said.is(1, "neither quarantined nor in conflict");
    assert_eq!(proxy.get("key").body, b"bytes");
}

#[test]
fn a_conflict_is_kept_apart_until_it_is_decided() {
    let (store, proxy) = world();
    store.set_away(true);
    proxy.put("key", b"ours");
    // The first try must have failed: only a retry asks whether somebody else wrote.
    wait_until("a try has failed", || {
        json(&proxy, "GET", "/-/dirty")["blocks"][0]["attempts"] != 0
    });
    store.overwrite(&stored(VOLUME, "key"), b"theirs", Duration::from_secs(30));
    store.set_away(false);
    let said = operate(&proxy, &["flush"]).is(1, "1 in conflict");
    assert!(said.error.contains("`forebay dirty`"), "{said:?}");
    assert_eq!(states(&proxy, "key"), ["conflict"]);
    assert_eq!(proxy.get("key").body, b"theirs");
    let folder = proxy.folder().join("exported");
    operate(
        &proxy,
        &["dirty", "--export", folder.to_str().expect("text")],
    )
    .is(0, "vol/key -> ");
    let file = folder.join(VOLUME).join("key");
    assert_eq!(std::fs::read(file).expect("exported"), b"ours");
    // Without its name nothing is written over what the store has.
    operate(&proxy, &["dirty", "--retry"]).is(0, "no block is quarantined");
    operate(&proxy, &["dirty", "--retry", "key"]).is(0, "vol/key will be uploaded again");
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert_eq!(store.object(&stored(VOLUME, "key")), Some(b"ours".to_vec()));
    assert_eq!(proxy.get("key").body, b"ours");
}

#[test]
fn the_list_is_the_oldest_first_and_as_long_as_it_was_asked_to_be() {
    let (store, proxy) = world();
    store.set_away(true);
    for n in 0..12 {
        proxy.put(&format!("key-{n}"), b"bytes");
    }
    let listed = json(&proxy, "GET", "/-/dirty?limit=10");
    let blocks = listed["blocks"].as_array().expect("a list");
    let times: Vec<u64> = blocks
        .iter()
        .map(|block| block["acknowledged_unix_ms"].as_u64().expect("a time"))
        .collect();
    assert_eq!(times.len(), 10);
    assert!(times.is_sorted(), "{times:?}");
    operate(&proxy, &["dirty", "--limit=10"]).is(0, "and 2 more");
    let text = operate(&proxy, &["dirty", "--json", "--limit=10"])
        .is(0, "")
        .output;
    let listed: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(listed["blocks"].as_array().expect("a list").len(), 10);
    let remaining = json(&proxy, "GET", "/-/dirty/remaining?before_unix_ms=1");
    assert_eq!(
        (&remaining["blocks"], &remaining["bytes"]),
        (&0.into(), &0.into())
    );
    assert_eq!(json(&proxy, "GET", "/-/dirty/remaining")["blocks"], 12);
    // A DELETE takes the block out of the backlog, whatever its upload has come to.
    store.set_away(false);
    let target = format!("/{VOLUME}/key-0");
    assert_eq!(proxy.request("DELETE", &target, &[], b"").status, 204);
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert_eq!(store.object(&stored(VOLUME, "key-0")), None);
    assert_eq!(
        store.object(&stored(VOLUME, "key-11")),
        Some(b"bytes".to_vec())
    );
}

#[test]
fn keys_that_play_with_terminals_are_shown_harmless() {
    let (store, proxy) = world();
    store.set_away(true);
    let target = format!("/{VOLUME}/a%1B%5B2J%0Ab%E2%80%AEc");
    assert_eq!(proxy.request("PUT", &target, &[], b"x").status, 200);
    let said = operate(&proxy, &["dirty"]).is(0, r"vol/a\u{1b}[2J\u{a}b\u{202e}c");
    assert!(!said.output.contains('\u{1b}'), "{said:?}");
}

#[test]
fn what_is_uploaded_is_not_uploaded_again_after_an_orderly_stop() {
    let store = Store::start();
    let mut proxy = setup(&store).start();
    for n in 0..8 {
        proxy.put(&format!("key-{n}"), &pattern(n, 10_000));
    }
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert_eq!(store.uploads(), 8);
    assert!(proxy.terminate().success());
    proxy.start();
    operate(&proxy, &["flush"]).is(0, "nothing was left to upload");
    assert_eq!(store.uploads(), 8);
    assert_eq!(proxy.get("key-3").cache(), "hit-disk");
}

#[test]
fn a_ledger_that_is_lost_costs_no_data_of_anybody() {
    let store = Store::start();
    let mut proxy = setup(&store).start();
    for key in ["same", "changed", "gone"] {
        proxy.put(key, format!("ours {key}").as_bytes());
    }
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert!(proxy.terminate().success());
    // What others do meanwhile: the proxy has lost its note that its own work was done.
    store.overwrite(
        &stored(VOLUME, "changed"),
        b"theirs",
        Duration::from_secs(30),
    );
    std::fs::remove_dir_all(proxy.ledger_folder()).expect("remove");
    proxy.start();
    operate(&proxy, &["flush"]).is(1, "1 in conflict");
    assert_eq!(
        store.object(&stored(VOLUME, "changed")),
        Some(b"theirs".to_vec())
    );
    assert_eq!(
        store.object(&stored(VOLUME, "same")),
        Some(b"ours same".to_vec())
    );
    assert_eq!(proxy.get("changed").body, b"theirs");
    assert_eq!(proxy.get("same").body, b"ours same");
    operate(&proxy, &["dirty", "--abandon", "changed"]).is(0, "given up");
    operate(&proxy, &["drain"]).is(0, "drained");
}

#[test]
fn a_ledger_that_is_damaged_is_begun_anew() {
    let store = Store::start();
    let mut proxy = setup(&store).start();
    proxy.put("key", b"bytes");
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert!(proxy.terminate().success());
    let rows = proxy.ledger_folder().join("rows");
    std::fs::write(rows.join("conf"), b"this is no configuration of sled").expect("write");
    proxy.start();
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert!(
        proxy.stderr().contains("the ledger is damaged"),
        "{}",
        proxy.stderr()
    );
    assert!(proxy.ledger_folder().join("rows.damaged-1").exists());
    assert_eq!(proxy.get("key").body, b"bytes");
}

#[test]
fn a_start_without_writeback_still_uploads_what_is_dirty() {
    let store = Store::start();
    let mut proxy = setup(&store).start();
    store.set_away(true);
    proxy.put("key", b"bytes");
    proxy.restart_killed(|setup| setup.flags.push("--noWriteback".to_owned()));
    assert_eq!(summary(&proxy)["enabled"], false);
    assert_eq!(proxy.get("key").cache(), "hit-dirty");
    store.set_away(false);
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert_eq!(
        store.object(&stored(VOLUME, "key")),
        Some(b"bytes".to_vec())
    );
    proxy.put("through", b"through");
    assert_eq!(
        store.object(&stored(VOLUME, "through")),
        Some(b"through".to_vec())
    );
}

#[test]
fn a_new_write_or_a_delete_ends_a_quarantine() {
    let (store, proxy) = world();
    store.refuse(&["poison", "unwanted"]);
    proxy.put("poison", b"old");
    proxy.put("unwanted", b"old");
    wait_until("both are quarantined", || {
        summary(&proxy)["quarantined_blocks"] == 2
    });
    store.refuse(&[]);
    proxy.put("poison", b"new");
    let target = format!("/{VOLUME}/unwanted");
    assert_eq!(proxy.request("DELETE", &target, &[], b"").status, 204);
    operate(&proxy, &["drain"]).is(0, "drained");
    assert_eq!(
        store.object(&stored(VOLUME, "poison")),
        Some(b"new".to_vec())
    );
    assert_eq!(store.object(&stored(VOLUME, "unwanted")), None);
    assert_eq!(proxy.get("unwanted").status, 404);
    operate(&proxy, &["dirty"]).is(0, "0 to upload (0 B), 0 quarantined");
}

#[test]
fn decisions_outlive_a_kill() {
    let store = Store::start();
    let mut proxy = setup(&store).start();
    store.refuse(&["poison"]);
    proxy.put("poison-not", b"bytes");
    proxy.put("poison", b"bytes");
    wait_for_state(&proxy, "poison", "quarantined");
    operate(&proxy, &["dirty", "--abandon", "poison"]).is(0, "given up");
    proxy.restart_killed(|_| {});
    operate(&proxy, &["flush"]).is(0, "flushed");
    assert_eq!(states(&proxy, "poison"), Vec::<String>::new());
    assert_eq!(proxy.get("poison").status, 404);
    assert_eq!(proxy.get("poison-not").body, b"bytes");
}

/// Has the settings read again.
fn reload(proxy: &Proxy) {
    let pid = i32::try_from(proxy.pid()).expect("a process id");
    // SAFETY: sends a signal to our own child, which handles it; no memory is involved.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGHUP) }, 0);
}

#[test]
fn a_volume_that_is_taken_away_orphans_its_blocks() {
    let store = Store::start();
    let proxy = setup(&store).start();
    store.set_away(true);
    put_other(&proxy, "key", b"bytes");
    proxy.put("key", b"bytes");
    let config = std::fs::read_to_string(proxy.config_file()).expect("read");
    let cut = config
        .find("\n[[volume]]\nname = \"other\"")
        .expect("there");
    // A start would be refused; a running proxy keeps what it has.
    std::fs::write(proxy.config_file(), &config[..cut]).expect("write");
    reload(&proxy);
    wait_until("the block leads to no store", || {
        summary(&proxy)["orphaned_blocks"] == 1
    });
    store.set_away(false);
    operate(&proxy, &["flush"]).is(1, "1 of volumes that are gone");
    assert_eq!(
        store.object(&stored(VOLUME, "key")),
        Some(b"bytes".to_vec())
    );
    let folder = proxy.folder().join("exported");
    operate(
        &proxy,
        &["dirty", "--export", folder.to_str().expect("text")],
    )
    .is(0, "other/key -> ");
    let file = folder.join(OTHER_VOLUME).join("key");
    assert_eq!(std::fs::read(file).expect("exported"), b"bytes");
    operate(&proxy, &["dirty", "--abandon", "key"]).is(0, "other/key is given up");
    operate(&proxy, &["flush"]).is(0, "nothing was left");
}

#[test]
fn a_damaged_block_is_neither_served_nor_uploaded() {
    let store = Store::start();
    let mut proxy = setup(&store).start();
    store.set_away(true);
    let body = pattern(77, 200_000);
    proxy.put("key", &body);
    proxy.put("sound", &body[1..]);
    // Everything is flushed and sealed: what is wrong afterwards is rot, not a write cut short.
    assert!(proxy.terminate().success());
    let mut damaged = 0;
    for file in files_below(&proxy.cache_folder()) {
        let mut bytes = std::fs::read(&file).expect("a segment");
        if let Some(at) = bytes.windows(64).position(|window| window == &body[..64]) {
            bytes[at + 100_000] ^= 1;
            std::fs::write(&file, bytes).expect("write");
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1, "the block is in one place");
    store.set_away(false);
    proxy.start();
    operate(&proxy, &["flush"]).is(1, "1 quarantined");
    assert_eq!(store.object(&stored(VOLUME, "key")), None);
    assert_eq!(
        store.object(&stored(VOLUME, "sound")),
        Some(body[1..].to_vec())
    );
    assert_eq!(proxy.get("key").status, 500);
    let folder = proxy.folder().join("exported");
    let said = operate(
        &proxy,
        &["dirty", "--export", folder.to_str().expect("text")],
    );
    said.is(1, "1 of 1 held blocks were not exported");
    assert_eq!(files_below(&folder), Vec::<std::path::PathBuf>::new());
    operate(&proxy, &["dirty", "--abandon", "key"]).is(0, "vol/key is given up");
    assert_eq!(proxy.get("key").status, 404);
    operate(&proxy, &["drain"]).is(0, "drained");
}
