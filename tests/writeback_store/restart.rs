//! A backlog across restarts: other flags, cores, quota, no ledger, another bucket.

use crate::common::proxy::StoreSpec;
use crate::rig::{IMMUTABLE, REVALIDATE, Rig, wait_until};
use forebay_bench::stub::{Action, Fault};

/// Keys that are dirty when a proxy ends.
const KEYS: [&str; 5] = ["a", "b", "c/d", "e", "f"];

/// A proxy with a backlog for a store that refuses every PUT for now.
fn rig_with_backlog(volume_lines: &str) -> Rig {
    let rig = Rig::start(volume_lines);
    let busy = Action::Status {
        status: 503,
        code: None,
        retry_after_s: None,
    };
    rig.stub.add_fault(Fault::on("PUT", "*").then(busy));
    for key in KEYS {
        let body = rig.put(key);
        rig.assert_dirty(key, &body);
    }
    rig
}

#[test]
fn row_84_a_backlog_is_uploaded_without_writeback_too() {
    for volume_lines in [REVALIDATE, IMMUTABLE] {
        let mut rig = rig_with_backlog(volume_lines);
        rig.proxy.kill();
        rig.stub.clear_faults();
        rig.proxy.setup.flags = vec!["--noWriteback".into()];
        rig.proxy.start();
        rig.finish();
        rig.put("through");
        assert!(rig.stored("through").is_some(), "it went through");
    }
}

#[test]
fn row_76_a_backlog_survives_any_number_of_cores_and_a_smaller_quota() {
    let mut rig = rig_with_backlog(REVALIDATE);
    for (shards, quota) in [(1, "512M"), (4, "128M"), (3, "256M")] {
        rig.proxy.restart_killed(|setup| {
            setup.shards = shards;
            setup.disk_quota = quota.into();
        });
        rig.assert_readable();
        assert_eq!(rig.number("dirty_blocks"), KEYS.len() as u64);
    }
    rig.stub.clear_faults();
    rig.finish();
}

#[test]
fn a_stop_keeps_the_backlog_and_ends_in_time() {
    let mut rig = rig_with_backlog(REVALIDATE);
    let status = rig.proxy.terminate();
    assert_eq!(status.code(), Some(0), "{}", rig.proxy.stderr());
    rig.proxy.start();
    rig.assert_readable();
    rig.stub.clear_faults();
    rig.finish();
}

#[test]
fn a_ledger_that_is_lost_costs_uploads_and_nothing_else() {
    for volume_lines in [REVALIDATE, IMMUTABLE] {
        let mut rig = Rig::start(volume_lines);
        for key in KEYS {
            rig.put(key);
        }
        rig.wait_uploaded();
        rig.proxy.kill();
        std::fs::remove_dir_all(rig.proxy.ledger_folder()).expect("the ledger goes");
        rig.proxy.start();
        rig.finish();
    }
}

#[test]
fn an_etag_outlives_the_upload_and_a_restart() {
    let mut rig = Rig::start("consistency = \"revalidate\"\nttl = \"0s\"\n");
    let body = rig.put("k");
    let first = rig.proxy.get("k");
    let etag = first.header("etag").expect("an ETag").to_owned();
    rig.wait_uploaded();
    let uploaded = rig.proxy.get("k");
    assert_eq!(
        uploaded.cache(),
        "revalidated",
        "the store was asked by its own ETag"
    );
    assert_eq!(uploaded.header("etag"), Some(etag.as_str()));
    let status = rig.proxy.terminate();
    assert_eq!(status.code(), Some(0));
    rig.proxy.start();
    let later = rig.proxy.get("k");
    assert_eq!(
        (later.cache(), later.body.as_slice()),
        ("revalidated", body.as_slice())
    );
    assert_eq!(later.header("etag"), Some(etag.as_str()));
    rig.finish();
}

#[test]
fn row_83_another_bucket_is_refused_while_blocks_wait_for_the_first() {
    let mut rig = rig_with_backlog(REVALIDATE);
    rig.proxy.kill();
    let before = rig.proxy.setup.store.clone();
    let Some(StoreSpec::S3 { server, .. }) = before.clone() else {
        panic!("the rig's store is S3");
    };
    rig.proxy.setup.store = Some(StoreSpec::S3 {
        server: server.clone(),
        prefix: "elsewhere".into(),
    });
    rig.proxy.write_config();
    rig.proxy.spawn();
    let mut status = None;
    wait_until("the start is refused", || {
        status = rig.proxy.exit_status();
        status.is_some()
    });
    let said = rig.proxy.stderr();
    assert_eq!(status.and_then(|status| status.code()), Some(2), "{said}");
    assert!(
        said.contains("5 acknowledged blocks are not uploaded yet"),
        "{said}"
    );
    assert!(said.contains("forebay drain"), "{said}");
    rig.proxy.forget();
    // With the settings as they were everything is uploaded, and then the bucket may change.
    rig.proxy.setup.store = before;
    rig.proxy.write_config();
    rig.stub.clear_faults();
    rig.proxy.start();
    rig.finish();
    assert_eq!(rig.proxy.terminate().code(), Some(0));
    rig.proxy.setup.store = Some(StoreSpec::S3 {
        server,
        prefix: "elsewhere".into(),
    });
    rig.proxy.write_config();
    rig.proxy.start();
    assert_eq!(
        rig.proxy.get("a").status,
        404,
        "another bucket has other objects"
    );
}
