//! Poison: what the store will never take keeps nothing else from it.

use crate::rig::{REVALIDATE, Rig, stored_key, wait_until};
use forebay_bench::stub::{Action, Fault};

/// Blocks that flow past the poison unless `FOREBAY_POISON_BLOCKS` says otherwise; the long form
/// has 10,000.
const BLOCKS_DEFAULT: usize = 500;

/// Blocks that may be dirty at a time while the others flow. Were the poison in their way, the
/// backlog would grow with their number.
const BACKLOG_MAX: u64 = 100;

/// Small: their number matters here, not their bytes.
const BODY_BYTES: usize = 600;

fn blocks() -> usize {
    match std::env::var("FOREBAY_POISON_BLOCKS") {
        Ok(text) => text.parse().expect("FOREBAY_POISON_BLOCKS is a number"),
        Err(_) => BLOCKS_DEFAULT,
    }
}

/// The age of the oldest dirty block that is none of the poison, seconds.
fn oldest_other_age(rig: &Rig) -> u64 {
    let listed = rig.all_listed();
    let others = listed.iter().filter(|block| {
        let key = block["key"].as_str().expect("a key");
        key.starts_with("other-")
    });
    let ages = others.map(|block| block["age_seconds"].as_u64().expect("an age"));
    ages.max().unwrap_or(0)
}

/// Writes all blocks, never more than [`BACKLOG_MAX`] ahead of the store, with the poison first
/// and oldest. Each wait ends only when older ones have left, so the age of the oldest of them is
/// bounded by the time that the store needs for [`BACKLOG_MAX`] blocks. The greatest age seen is
/// printed.
fn others_flow(rig: &Rig) {
    let mut age_seconds_max = 0;
    for number in 0..blocks() {
        let body = rig.content(BODY_BYTES);
        rig.put_bytes(&format!("other-{number}"), &body);
        if number % 50 == 49 {
            wait_until("the others flow", || {
                age_seconds_max = oldest_other_age(rig).max(age_seconds_max);
                rig.number("dirty_blocks") <= BACKLOG_MAX
            });
        }
    }
    eprintln!(
        "{} others, the oldest of them was dirty for {age_seconds_max} s",
        blocks()
    );
}

#[test]
fn row_51_a_block_refused_for_ever_keeps_no_other_from_the_store() {
    let rig = Rig::start(REVALIDATE);
    let refusal = Action::Status {
        status: 400,
        code: Some("InvalidArgument".to_string()),
        retry_after_s: None,
    };
    rig.stub
        .add_fault(Fault::on("PUT", &stored_key("poison")).then(refusal));
    rig.proxy.put("poison", b"poison");
    others_flow(&rig);
    wait_until("all others are stored", || rig.number("dirty_blocks") == 0);
    rig.wait_state("poison", "quarantined");
    assert_eq!(rig.number("quarantined_blocks"), 1);
    assert_eq!(rig.stored("poison"), None);
    let metrics = rig.proxy.operator("GET", "/-/metrics").text();
    assert!(metrics.contains("forebay_quarantined_blocks"), "{metrics}");
    rig.assert_dirty("poison", b"poison");
    assert_eq!(rig.ask("POST", "abandon", "poison").status, 200);
    rig.finish();
}

/// Failures that may heal, so that the block is not set aside however often it meets them.
fn failures_that_may_heal() -> Vec<(&'static str, Action)> {
    let refused = |status, code: &str| Action::Status {
        status,
        code: Some(code.to_string()),
        retry_after_s: None,
    };
    vec![
        ("lost", Action::Drop),
        ("failed", Action::status(500)),
        ("busy", Action::status(503)),
        // A policy of the bucket may deny one prefix of it.
        ("denied", refused(403, "AccessDenied")),
        ("contended", refused(409, "ConditionalRequestConflict")),
        ("portal", Action::CaptivePortal),
    ]
}

#[test]
fn row_51_blocks_that_fail_for_ever_and_may_heal_keep_no_other_from_the_store() {
    let rig = Rig::start(REVALIDATE);
    let poisons = failures_that_may_heal();
    for (key, action) in &poisons {
        let fault = Fault::on("PUT", &stored_key(key));
        rig.stub.add_fault(fault.then(action.clone()));
        rig.put(key);
    }
    others_flow(&rig);
    let count = poisons.len() as u64;
    wait_until("all others are stored", || {
        rig.number("dirty_blocks") <= count
    });
    assert_eq!(rig.number("dirty_blocks"), count);
    assert_eq!(rig.number("quarantined_blocks"), 0);
    rig.stub.clear_faults();
    rig.finish();
}
