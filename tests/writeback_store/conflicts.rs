//! Rule 4: an upload never overwrites what is newer, and never takes its own first try for it.

use crate::common::assert_same_bytes;
use crate::rig::{IMMUTABLE, REVALIDATE, Rig, stored_key, wait_until};
use forebay_bench::stub::{Action, Fault};

/// Later than any acknowledgement, so that a clock of whole seconds tells.
const LATER_SECONDS: i64 = 30;

fn busy() -> Action {
    Action::status(503)
}

/// Asserts that the key is in conflict, that the store's object is served, and that ours is kept.
fn assert_conflict(rig: &Rig, key: &str, ours: &[u8], theirs: &[u8]) {
    rig.wait_state(key, "conflict");
    assert_eq!(rig.number("conflict_blocks"), 1);
    let answer = rig.proxy.get(key);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_same_bytes(&answer.body, theirs, "what is served");
    assert_same_bytes(&rig.stored(key).expect("theirs"), theirs, "what is stored");
    let exported = rig.ask("GET", "export", key);
    assert_eq!(exported.status, 200, "{}", exported.text());
    assert_same_bytes(&exported.body, ours, "what is kept");
}

#[test]
fn row_43_the_same_content_under_a_key_is_no_conflict() {
    let rig = Rig::start(IMMUTABLE);
    let body = rig.content(10_000);
    rig.store_directly("same", &body, 0);
    rig.put_bytes("same", &body);
    rig.finish();
    // MinIO has answered 304 where 412 is right.
    let fault = Fault::on("PUT", &stored_key("not-modified")).times(1);
    rig.stub.add_fault(fault.then(Action::status(304)));
    let body = rig.content(10_000);
    rig.store_directly("not-modified", &body, 0);
    rig.put_bytes("not-modified", &body);
    rig.finish();
}

#[test]
fn row_43_other_content_under_a_key_written_once_is_a_conflict() {
    let rig = Rig::start(IMMUTABLE);
    let (ours, theirs) = (rig.content(10_000), rig.content(12_000));
    rig.store_directly("k", &theirs, 0);
    rig.proxy.put("k", &ours);
    assert_conflict(&rig, "k", &ours, &theirs);
    let answer = rig.ask("POST", "abandon", "k");
    assert_eq!(answer.status, 200, "{}", answer.text());
    rig.note("k", &theirs);
    rig.finish();
}

#[test]
fn a_conflict_that_is_named_is_uploaded_over_the_store() {
    let rig = Rig::start(IMMUTABLE);
    let (ours, theirs) = (rig.content(10_000), rig.content(10_000));
    rig.store_directly("k", &theirs, 0);
    rig.proxy.put("k", &ours);
    assert_conflict(&rig, "k", &ours, &theirs);
    // Without its name it is left alone.
    assert_eq!(rig.proxy.operator("POST", "/-/dirty/retry").status, 200);
    assert_eq!(rig.state("k"), "conflict");
    let answer = rig.ask("POST", "retry", "k");
    assert_eq!(answer.status, 200, "{}", answer.text());
    rig.note("k", &ours);
    wait_until("ours is stored", || {
        rig.stored("k").as_deref() == Some(&ours[..])
    });
    rig.finish();
}

#[test]
fn row_47_a_first_try_that_was_stored_is_no_conflict() {
    for volume_lines in [REVALIDATE, IMMUTABLE] {
        let rig = Rig::start(volume_lines);
        let fault = Fault::on("PUT", &stored_key("k")).times(3);
        rig.stub.add_fault(fault.then(Action::CommitThenDrop));
        rig.put("k");
        rig.finish();
    }
}

#[test]
fn row_47_a_first_try_that_was_stored_before_a_kill_is_no_conflict() {
    for volume_lines in [REVALIDATE, IMMUTABLE] {
        let mut rig = Rig::start(volume_lines);
        let fault = Fault::on("PUT", &stored_key("k"));
        rig.stub.add_fault(fault.then(Action::CommitThenDrop));
        rig.stub.add_fault(Fault::on("HEAD", "*").then(busy()));
        let body = rig.put("k");
        wait_until("the store has it", || rig.stored("k").is_some());
        rig.proxy.restart_killed(|_| {});
        rig.assert_dirty("k", &body);
        rig.stub.clear_faults();
        rig.finish();
    }
}

#[test]
fn row_53_what_others_wrote_while_the_proxy_was_down_is_not_overwritten() {
    let mut rig = Rig::start(REVALIDATE);
    let first = rig.put("k");
    rig.wait_uploaded();
    rig.stub.add_fault(Fault::on("PUT", "*").then(busy()));
    let ours = rig.put("k");
    rig.put("untouched");
    rig.assert_dirty("k", &ours);
    assert_same_bytes(&rig.stored("k").expect("the first"), &first, "k");
    rig.proxy.kill();
    let theirs = rig.content(15_000);
    rig.store_directly("k", &theirs, LATER_SECONDS);
    rig.stub.clear_faults();
    rig.proxy.start();
    assert_conflict(&rig, "k", &ours, &theirs);
    // Kept over another kill, until somebody decides.
    rig.proxy.restart_killed(|_| {});
    assert_conflict(&rig, "k", &ours, &theirs);
    let answer = rig.ask("POST", "abandon", "k");
    assert_eq!(answer.status, 200, "{}", answer.text());
    rig.note("k", &theirs);
    rig.finish();
}

#[test]
fn row_53_a_key_written_once_that_others_wrote_meanwhile_is_not_overwritten() {
    let mut rig = Rig::start(IMMUTABLE);
    rig.stub.add_fault(Fault::on("PUT", "*").then(busy()));
    let ours = rig.put("k");
    rig.proxy.kill();
    let theirs = rig.content(15_000);
    rig.store_directly("k", &theirs, 0);
    rig.stub.clear_faults();
    rig.proxy.start();
    assert_conflict(&rig, "k", &ours, &theirs);
    rig.ask("POST", "abandon", "k");
    rig.note("k", &theirs);
    rig.finish();
}

#[test]
fn row_53_what_the_store_had_before_is_overwritten_after_a_kill() {
    let mut rig = Rig::start(REVALIDATE);
    rig.put("k");
    rig.wait_uploaded();
    rig.stub.add_fault(Fault::on("PUT", "*").then(busy()));
    rig.put("k");
    rig.wait_attempts("k", 1);
    rig.proxy.restart_killed(|_| {});
    rig.stub.clear_faults();
    rig.finish();
}
