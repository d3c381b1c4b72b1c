//! One upload at a time per key, the newest last, and nothing after a DELETE.

use crate::rig::{BUCKET, REVALIDATE, Rig, stored_key, wait_until};
use forebay_bench::stub::{Action, Fault};
use std::time::Duration;

/// Longer than a PUT of the client takes, so that writes overtake uploads.
const UPLOAD_TIME: Duration = Duration::from_millis(300);

fn slow(key: &str) -> Fault {
    let ms = UPLOAD_TIME.as_millis() as u64;
    Fault::on("PUT", &stored_key(key)).then(Action::DelayApply { ms })
}

#[test]
fn row_50_one_upload_of_a_key_at_a_time_and_the_newest_last() {
    let rig = Rig::start(REVALIDATE);
    rig.stub.add_fault(slow("*"));
    for round in 0..30 {
        for key in ["a", "b", "c"] {
            rig.put(key);
        }
        if round % 10 == 0 {
            wait_until("an upload is on its way", || {
                rig.stub.stats().method("PUT") > 0
            });
        }
    }
    rig.finish();
    for key in ["a", "b", "c"] {
        let seen = rig.puts_seen(key);
        assert!(seen <= 30, "{seen} uploads of {key} for 30 writes");
    }
}

#[test]
fn row_50_one_upload_of_a_key_at_a_time_over_kills() {
    let mut rig = Rig::start(REVALIDATE);
    rig.stub.add_fault(slow("*"));
    for round in 0..4 {
        for key in ["a", "b", "c"] {
            rig.put(key);
            rig.put(key);
        }
        // Once while uploads are on their way, once before they are.
        if round % 2 == 0 {
            wait_until("an upload is on its way", || rig.number("uploading") > 0);
        }
        rig.proxy.kill();
        // The store goes on with what it was sent; what it sees after it was asked by a new life
        // of the proxy is what counts here.
        std::thread::sleep(UPLOAD_TIME * 2);
        rig.proxy.start();
        rig.assert_readable();
    }
    rig.finish();
}

#[test]
fn a_delete_leaves_nothing_in_the_store_also_when_an_upload_is_on_its_way() {
    let mut rig = Rig::start(REVALIDATE);
    rig.stub.add_fault(slow("in-flight-*"));
    let waiting = Fault::on("PUT", &stored_key("waiting-*")).then(Action::status(503));
    rig.stub.add_fault(waiting);
    let keys: Vec<String> = (0..5)
        .flat_map(|number| [format!("in-flight-{number}"), format!("waiting-{number}")])
        .collect();
    for key in &keys {
        rig.proxy.put(key, &rig.content(20_000));
    }
    wait_until("uploads are on their way", || {
        rig.puts_seen("in-flight-0") > 0
    });
    for key in &keys {
        let target = format!("/{}/{key}", crate::common::VOLUME);
        let answer = rig.proxy.request("DELETE", &target, &[], b"");
        assert_eq!(answer.status, 204, "{key}: {}", answer.text());
        assert_eq!(rig.proxy.get(key).status, 404, "{key}");
    }
    rig.stub.clear_faults();
    rig.proxy.restart_killed(|_| {});
    rig.finish();
    for key in &keys {
        assert_eq!(rig.proxy.get(key).status, 404, "{key}");
    }
    assert_eq!(rig.stub.keys(BUCKET), Vec::<String>::new());
}
