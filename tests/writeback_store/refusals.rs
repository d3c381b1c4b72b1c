//! Refusals: those that heal are waited for, those that cannot heal are set aside.

use crate::common::{VOLUME, assert_same_bytes};
use crate::rig::{REVALIDATE, Rig, stored_key, wait_until};
use forebay_bench::stub::{Action, Fault};

fn refused(key: &str, status: u16, code: &str) -> Fault {
    Fault::on("PUT", &stored_key(key)).then(Action::Status {
        status,
        code: Some(code.to_string()),
        retry_after_s: None,
    })
}

#[test]
fn row_42_a_bucket_that_is_gone_keeps_everything_waiting() {
    let rig = Rig::start(REVALIDATE);
    rig.stub.add_fault(refused("*", 404, "NoSuchBucket"));
    let bodies: Vec<_> = (0..3)
        .map(|number| rig.put(&format!("k-{number}")))
        .collect();
    rig.wait_attempts("k-0", 1);
    for (number, body) in bodies.iter().enumerate() {
        rig.assert_dirty(&format!("k-{number}"), body);
    }
    assert_eq!(rig.number("quarantined_blocks"), 0);
    rig.stub.clear_faults();
    rig.finish();
}

#[test]
fn row_42_a_dirty_key_never_asks_the_store_whether_it_is_there() {
    let rig = Rig::start(REVALIDATE);
    assert_eq!(rig.proxy.get("late").status, 404);
    rig.stub.add_fault(refused("late", 503, "SlowDown"));
    let body = rig.put("late");
    let stats = rig.stub.stats();
    for _ in 0..5 {
        rig.assert_dirty("late", &body);
    }
    assert_eq!(rig.stub.stats().method("GET"), stats.method("GET"));
    rig.stub.clear_faults();
    rig.finish();
}

#[test]
fn row_40_access_that_is_denied_for_a_while_is_waited_for() {
    let rig = Rig::start(REVALIDATE);
    rig.stub.add_fault(refused("*", 403, "AccessDenied"));
    let body = rig.put("denied");
    rig.wait_attempts("denied", 1);
    rig.assert_dirty("denied", &body);
    assert_eq!(rig.number("quarantined_blocks"), 0);
    let listed = rig.listed("denied").expect("it waits");
    let error = listed["last_error"].as_str().expect("an error");
    assert!(error.contains("AccessDenied"), "{error}");
    rig.stub.clear_faults();
    rig.finish();
}

#[test]
fn row_51_what_is_refused_for_good_is_set_aside_served_and_kept_over_a_kill() {
    let mut rig = Rig::start(REVALIDATE);
    let early = Action::EarlyAnswer {
        status: 413,
        code: Some("EntityTooLarge".to_string()),
    };
    rig.stub
        .add_fault(refused("bad-400", 400, "InvalidArgument"));
    rig.stub
        .add_fault(Fault::on("PUT", &stored_key("bad-413")).then(early));
    let bad: Vec<_> = ["bad-400", "bad-413"].map(|key| (key, rig.put(key))).into();
    rig.put("good");
    for (key, _) in &bad {
        rig.wait_state(key, "quarantined");
    }
    wait_until("the good one is stored", || rig.stored("good").is_some());
    assert_eq!(rig.number("quarantined_blocks"), 2);
    rig.proxy.restart_killed(|_| {});
    for (key, body) in &bad {
        rig.wait_state(key, "quarantined");
        rig.assert_dirty(key, body);
        let exported = rig.ask("GET", "export", key);
        assert_eq!(exported.status, 200, "{}", exported.text());
        assert_same_bytes(&exported.body, body, key);
        assert_eq!(rig.stored(key), None);
    }
    // It ends with a retry once the store takes it, or is given up by name.
    rig.stub.clear_faults();
    let answer = rig.ask("POST", "retry", "bad-400");
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_until("the retry succeeds", || rig.stored("bad-400").is_some());
    let answer = rig.ask("POST", "abandon", "bad-413");
    assert_eq!(answer.status, 200, "{}", answer.text());
    rig.forget("bad-413");
    assert_eq!(rig.ask("POST", "abandon", "bad-413").status, 404);
    rig.finish();
    assert_eq!(rig.proxy.get("bad-413").status, 404);
}

#[test]
fn a_new_put_takes_the_place_of_what_was_set_aside() {
    let rig = Rig::start(REVALIDATE);
    rig.stub.add_fault(refused("k", 400, "InvalidArgument"));
    rig.put("k");
    rig.wait_state("k", "quarantined");
    assert_eq!(rig.ask("POST", "abandon", "other").status, 404);
    rig.stub.clear_faults();
    rig.put("k");
    rig.finish();
}

#[test]
fn what_waits_cannot_be_abandoned() {
    let rig = Rig::start(REVALIDATE);
    rig.stub.add_fault(refused("k", 503, "SlowDown"));
    rig.put("k");
    rig.wait_attempts("k", 1);
    let answer = rig.ask("POST", "abandon", "k");
    assert_eq!(answer.status, 409, "{}", answer.text());
    let target = format!("/-/dirty/abandon?volume={VOLUME}");
    assert_eq!(rig.proxy.operator("POST", &target).status, 400);
    rig.stub.clear_faults();
    rig.finish();
}
