//! A store that is not there: writes go on to a limit, and the backlog goes when it comes (P7).

use crate::common::proxy::disk_usage;
use crate::common::{Setup, assert_same_bytes, pattern, skip};
use crate::rig::{Rig, free_address, server, setup, stub_at, wait_until};
use forebay_bench::stub::{Stub, StubOptions};
use std::process::Command;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// More objects of a block each than the quota has room for.
const OBJECTS_MAX: u64 = 400;

/// The quota of the test of the limit.
const QUOTA_BYTES: u64 = 256 << 20;

#[test]
fn row_38_a_store_that_is_away_for_long_gets_everything_when_it_comes() {
    let address = free_address();
    let mut proxy = setup(server(&format!("http://{address}"))).start();
    let bodies: Vec<_> = (0..10).map(|seed| pattern(seed, MIB)).collect();
    for (number, body) in bodies.iter().enumerate() {
        proxy.put(&format!("k-{number}"), body);
    }
    proxy.restart_killed(|_| {});
    for (number, body) in bodies.iter().enumerate() {
        let answer = proxy.get(&format!("k-{number}"));
        assert_eq!((answer.status, answer.cache()), (200, "hit-dirty"));
        assert_same_bytes(&answer.body, body, "after the kill");
    }
    let rig = Rig::of(proxy, stub_at(address));
    for (number, body) in bodies.iter().enumerate() {
        rig.note(&format!("k-{number}"), body);
    }
    rig.finish();
}

#[test]
fn row_38_at_the_limit_writes_go_through_and_nothing_acknowledged_gives_way() {
    let address = free_address();
    let proxy = Setup {
        disk_quota: format!("{}M", QUOTA_BYTES >> 20),
        ..setup(server(&format!("http://{address}")))
    }
    .start();
    let key = |seed: u64| format!("k-{seed}");
    let mut taken = 0;
    let refused = loop {
        assert!(taken < OBJECTS_MAX, "the quota holds more than it is");
        let target = format!("/{}/{}", crate::common::VOLUME, key(taken));
        let answer = proxy.request("PUT", &target, &[], &pattern(taken, MIB));
        if answer.status != 200 {
            break answer;
        }
        taken += 1;
    };
    // Through to a store that is not there.
    let status = refused.status;
    assert!([502, 503, 504].contains(&status), "{}", refused.text());
    assert!(taken >= 16, "only {taken} MiB were taken");
    let used = disk_usage(&proxy.cache_folder());
    assert!(used <= QUOTA_BYTES, "{used} bytes of disk");
    for seed in 0..taken {
        let answer = proxy.get(&key(seed));
        assert_eq!((answer.status, answer.cache()), (200, "hit-dirty"));
        assert_same_bytes(&answer.body, &pattern(seed, MIB), &key(seed));
    }
    let rig = Rig::of(proxy, stub_at(address));
    for seed in 0..taken {
        rig.note(&key(seed), &pattern(seed, MIB));
    }
    rig.finish();
    // And new writes are taken again.
    rig.put("afterwards");
    rig.finish();
}

/// Whether a command can be run with `/etc/hosts` of its own.
fn can_have_own_hosts() -> bool {
    let tried = Command::new("unshare")
        .args(["--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"])
        .output();
    tried.is_ok_and(|output| output.status.success())
}

#[test]
fn row_39_a_name_that_does_not_resolve_is_looked_up_afresh() {
    if !can_have_own_hosts() {
        return skip("mount namespaces are not allowed here");
    }
    let stub = Stub::start(StubOptions::default()).expect("the stub starts");
    let port = stub.addr().port();
    let folder = tempfile::tempdir().expect("a folder");
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").expect("written");
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let words = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let proxy = Setup {
        wrapper: words.map(str::to_owned).into(),
        ..setup(server(&format!("http://store.forebay.invalid:{port}")))
    }
    .start();
    let rig = Rig::of(proxy, stub);
    let body = rig.put("k");
    rig.wait_attempts("k", 1);
    rig.assert_dirty("k", &body);
    // In place: a rename would leave the old file mounted.
    std::fs::write(&hosts, "127.0.0.1 localhost store.forebay.invalid\n").expect("written");
    rig.finish();
}

#[test]
fn a_flush_is_not_over_while_the_store_is_away() {
    let address = free_address();
    let proxy = setup(server(&format!("http://{address}"))).start();
    proxy.put("k", b"body");
    let answer = proxy.operator("POST", "/-/flush");
    assert_eq!(answer.status, 202, "{}", answer.text());
    let started: serde_json::Value = serde_json::from_str(&answer.text()).expect("JSON");
    let before = started["before_unix_ms"].as_u64().expect("a time");
    let remaining = |proxy: &crate::common::Proxy| {
        let target = format!("/-/dirty/remaining?before_unix_ms={before}");
        let answer = proxy.operator("GET", &target);
        let body: serde_json::Value = serde_json::from_str(&answer.text()).expect("JSON");
        body["blocks"].as_u64().expect("a number")
    };
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(remaining(&proxy), 1);
    let rig = Rig::of(proxy, stub_at(address));
    wait_until("the flush is over", || remaining(&rig.proxy) == 0);
    rig.note("k", b"body");
    rig.finish();
}
