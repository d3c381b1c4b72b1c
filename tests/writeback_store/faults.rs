//! Faults of single requests that pass: everything ends as if there had been none.

use crate::rig::{BUCKET, IMMUTABLE, REVALIDATE, Rig, WAIT_MAX, stored_key, wait_until};
use forebay_bench::stub::{Action, Fault, Stub, StubOptions};
use std::time::Duration;

/// Objects that meet a storm.
const STORM_OBJECTS: u64 = 20;

/// What the storm asks for between two attempts, seconds.
const STORM_RETRY_AFTER_SECONDS: u64 = 1;

/// How long the storm lasts, seconds, by the store's clock.
const STORM_SECONDS: u64 = 6;

fn status(status: u16, code: &str) -> Action {
    Action::Status {
        status,
        code: Some(code.to_string()),
        retry_after_s: None,
    }
}

/// What may go wrong with a PUT, by the rows of the catalogue, and end well. What makes a store wait
/// as a whole has tests of its own.
fn passing_faults() -> Vec<(&'static str, Vec<Action>)> {
    let checksum = Action::header("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=");
    let early = |status| Action::EarlyAnswer { status, code: None };
    let cut = |after_bytes, reset| Action::Cut { after_bytes, reset };
    vec![
        ("36-500", vec![Action::status(500)]),
        ("36-502", vec![Action::status(502)]),
        ("36-504", vec![Action::status(504)]),
        (
            "36-500-late",
            vec![Action::DelayHead { ms: 200 }, Action::status(500)],
        ),
        ("37-slow-answer", vec![Action::DelayHead { ms: 1500 }]),
        ("43-409", vec![status(409, "ConditionalRequestConflict")]),
        ("44-reset-before", vec![Action::Drop]),
        ("44-reset-at-0", vec![Action::CutUpload { after_bytes: 0 }]),
        ("44-reset-at-1", vec![Action::CutUpload { after_bytes: 1 }]),
        (
            "44-reset-at-4096",
            vec![Action::CutUpload { after_bytes: 4096 }],
        ),
        (
            "44-reset-at-end",
            vec![Action::CutUpload {
                after_bytes: 19_999,
            }],
        ),
        ("44-error-cut", vec![Action::status(500), cut(10, false)]),
        ("44-error-reset", vec![Action::status(500), cut(10, true)]),
        ("45-no-etag", vec![Action::header("ETag", "")]),
        ("45-wrong-checksum", vec![checksum]),
        ("46-portal", vec![Action::CaptivePortal]),
        ("47-reply-lost", vec![Action::CommitThenDrop]),
        ("48-early-500", vec![early(500)]),
        ("48-early-503", vec![early(503)]),
    ]
}

/// Each fault strikes the first PUT of its own key. One after the other: a store of which nothing
/// but failures is heard is given a rest, which grows.
fn faults_of_puts_pass(volume_lines: &str) {
    let rig = Rig::start(volume_lines);
    for (key, actions) in passing_faults() {
        let fault = Fault::on("PUT", &stored_key(key)).times(1);
        rig.stub
            .add_fault(actions.into_iter().fold(fault, Fault::then));
        rig.put(key);
        rig.assert_readable();
        rig.wait_uploaded();
        assert!(rig.puts_seen(key) >= 1, "the store never saw {key}");
    }
    rig.finish();
}

#[test]
fn rows_36_to_48_faults_of_a_put_pass_where_keys_are_written_again() {
    faults_of_puts_pass(REVALIDATE);
}

#[test]
fn rows_36_to_48_faults_of_a_put_pass_where_keys_are_written_once() {
    faults_of_puts_pass(IMMUTABLE);
}

#[test]
fn faults_of_the_look_before_a_retry_pass() {
    let rig = Rig::start(REVALIDATE);
    // The first PUT fails, so that a look comes before the second; then the look fails.
    let looks = [
        ("look-500", Action::status(500)),
        ("look-503", Action::status(503)),
        ("look-403", Action::status(403)),
        ("look-lost", Action::Drop),
        ("look-portal", Action::CaptivePortal),
    ];
    for (key, action) in looks.clone() {
        let put = Fault::on("PUT", &stored_key(key)).times(1);
        rig.stub.add_fault(put.then(Action::CommitThenDrop));
        let look = Fault::on("HEAD", &stored_key(key)).times(1);
        rig.stub.add_fault(look.then(action));
    }
    for (key, _) in looks {
        rig.put(key);
    }
    rig.finish();
}

#[test]
fn row_35_a_storm_of_503_and_429_slows_uploads_and_nothing_else() {
    let rig = Rig::start(REVALIDATE);
    let cached = rig.put("cached");
    rig.wait_uploaded();
    let before = rig.stub.stats();
    for (pattern, code) in [("even-*", 503), ("odd-*", 429)] {
        let busy = Action::Status {
            status: code,
            code: None,
            retry_after_s: Some(STORM_RETRY_AFTER_SECONDS),
        };
        let storm = Fault::on("PUT", &stored_key(pattern));
        let time = Duration::from_secs(STORM_SECONDS);
        rig.stub.add_fault(storm.lasting(time).then(busy));
    }
    for number in 0..STORM_OBJECTS {
        let kind = if number % 2 == 0 { "even" } else { "odd" };
        rig.put(&format!("{kind}-{number}"));
    }
    wait_until("the storm is felt", || {
        rig.stub.stats().method("PUT") > before.method("PUT")
    });
    let gets = rig.stub.stats().method("GET");
    let answer = rig.proxy.get("cached");
    assert_eq!((answer.status, answer.body), (200, cached));
    assert_eq!(rig.stub.stats().method("GET"), gets, "a hit asks no store");
    rig.finish();
    let stats = rig.stub.stats();
    let count = |name: &str| stats.requests.get(name).copied().unwrap_or(0);
    let refused = count("PUT 503") + count("PUT 429");
    // By the store's own clock no object may come back before the time that it was told.
    let refused_max = STORM_OBJECTS * (STORM_SECONDS / STORM_RETRY_AFTER_SECONDS + 1);
    assert!(
        (1..=refused_max).contains(&refused),
        "{refused} refusals, {refused_max} would honour Retry-After"
    );
}

#[test]
fn row_37_a_put_that_is_never_answered_is_sent_again() {
    let rig = Rig::start(REVALIDATE);
    let silence = Fault::on("PUT", &stored_key("silent")).times(1);
    rig.stub.add_fault(silence.then(Action::NeverAnswer));
    let body = rig.put("silent");
    wait_until("it is on its way", || rig.puts_seen("silent") == 1);
    // One that hangs keeps none of the others from the store.
    let others: Vec<String> = (0..20).map(|number| format!("other-{number}")).collect();
    for key in &others {
        rig.put(key);
    }
    wait_until("the others are stored", || {
        others.iter().all(|key| rig.stored(key).is_some())
    });
    rig.assert_dirty("silent", &body);
    rig.finish();
    assert!(rig.puts_seen("silent") >= 2, "within {WAIT_MAX:?}");
}

#[test]
fn row_41_a_clock_that_is_off_is_learnt_and_said_once() {
    for ahead_seconds in [-1200, 1200] {
        let rig = Rig::start(REVALIDATE);
        rig.stub.set_clock_offset_s(ahead_seconds);
        for number in 0..5 {
            rig.put(&format!("k-{number}"));
        }
        rig.finish();
        let log = rig.proxy.stderr();
        let said = log.matches("signing by its clock").count();
        assert_eq!(said, 1, "{log}");
    }
}

#[test]
fn row_49_a_redirect_is_not_followed_and_says_nothing_of_the_object() {
    let target = Stub::start(StubOptions::default()).expect("a second stub");
    let rig = Rig::start(IMMUTABLE);
    let away = Action::Redirect {
        status: 307,
        location: format!("{}/{BUCKET}/{}", target.url(), stored_key("moved")),
    };
    rig.stub
        .add_fault(Fault::on("*", &stored_key("moved")).then(away));
    let body = rig.put("moved");
    rig.wait_attempts("moved", 1);
    assert_ne!(rig.state("moved"), "quarantined");
    rig.assert_dirty("moved", &body);
    assert_eq!(target.stats().connections, 0, "the redirect was followed");
    rig.stub.clear_faults();
    rig.finish();
}
