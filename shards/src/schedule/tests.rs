//! The schedule against a model of what it may do, and in virtual time against stores that fail.

mod model;
mod stores;

use super::*;
use crate::backlog::BlockState;
use std::collections::BTreeMap;

/// Where the tests' clock begins.
const START: MonoTime = MonoTime(1 << 62);

/// SplitMix64: the tests' chance, which a seed repeats.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }
}

fn mixed(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The hash of block `number`; as uniform as hashes are.
fn block(number: u64) -> BlockHash {
    BlockHash(u128::from(mixed(number)) << 64 | u128::from(number))
}

fn number(block: BlockHash) -> u64 {
    block.0 as u64
}

fn age(acked_unix_ms: u64) -> Age {
    Age {
        acked_unix_ms,
        sequence: acked_unix_ms,
    }
}

fn failed(cause: FailureCause) -> Ended {
    Ended::Failed {
        cause,
        retry_after: None,
        message: format!("{cause:?}"),
    }
}

fn schedule(active_max: usize) -> Schedule {
    Schedule::new(ScheduleSettings { active_max })
}

#[test]
fn a_million_blocks_are_added_and_drained() {
    const COUNT: u64 = 1_000_000;
    let mut schedule = schedule(16);
    for number in 0..COUNT {
        // A start reads shards one after the other: eight sorted sequences, not one.
        let acked = number % (COUNT / 8) * 8 + number / (COUNT / 8);
        schedule.add(block(number), age(acked), 0, 10);
    }
    assert_eq!(
        schedule.waiting_up_to(COUNT / 2 - 1),
        (COUNT / 2, COUNT * 5)
    );
    assert_eq!(schedule.oldest(3)[2].age, age(2));
    for acked in 0..COUNT {
        let Next::Start(block) = schedule.next(START) else {
            panic!("{acked} of {COUNT}");
        };
        let uploaded = number(block) % (COUNT / 8) * 8 + number(block) / (COUNT / 8);
        assert_eq!(uploaded, acked, "oldest first");
        schedule.ended(block, age(acked), Ended::Uploaded, START, 0);
    }
    assert_eq!(schedule.next(START), Next::Idle);
    assert_eq!(schedule.summary().waiting_blocks, 0);
}

#[test]
fn newer_content_waits_for_the_older_to_end_and_loses_nothing_to_it() {
    for end in [
        Ended::Uploaded,
        Ended::Superseded,
        failed(FailureCause::Rejected),
    ] {
        let mut schedule = schedule(4);
        schedule.add(block(1), age(1), 0, 10);
        assert_eq!(schedule.next(START), Next::Start(block(1)));
        schedule.add(block(1), age(1), 0, 10);
        assert_eq!(schedule.state(block(1)), Some(BlockState::Uploading));
        schedule.add(block(1), age(2), 0, 20);
        assert_eq!(schedule.next(START), Next::Idle);
        assert_eq!(schedule.state(block(1)), Some(BlockState::Waiting));
        schedule.ended(block(1), age(1), end, START, 0);
        assert_eq!(schedule.next(START), Next::Start(block(1)));
        schedule.ended(block(1), age(2), Ended::Uploaded, START, 0);
        assert_eq!(schedule.state(block(1)), None);
    }
}

#[test]
fn a_deleted_block_that_is_written_again_is_not_uploaded_twice_at_once() {
    let mut schedule = schedule(4);
    schedule.add(block(1), age(1), 0, 10);
    schedule.next(START);
    schedule.remove(block(1));
    assert!(schedule.is_uploading(block(1)) && schedule.state(block(1)).is_none());
    schedule.add(block(1), age(2), 0, 10);
    assert_eq!(schedule.next(START), Next::Idle);
    schedule.ended(block(1), age(1), Ended::Uploaded, START, 0);
    assert_eq!(schedule.next(START), Next::Start(block(1)));
}

#[test]
fn what_was_uploaded_newer_than_it_was_told_is_done() {
    let mut schedule = schedule(4);
    schedule.add(block(1), age(1), 0, 10);
    schedule.next(START);
    schedule.add(block(1), age(2), 0, 10);
    // The driver read the record after that.
    schedule.ended(block(1), age(2), Ended::Uploaded, START, 0);
    assert_eq!(schedule.state(block(1)), None);
}

#[test]
fn held_blocks_wait_for_the_operator() {
    let mut schedule = schedule(4);
    schedule.hold(block(1), age(1), 0, 10, Held::Quarantined, 3, "400".into());
    schedule.hold(block(2), age(2), 0, 20, Held::Conflict, 1, "412".into());
    schedule.hold(block(3), age(3), 9, 30, Held::Orphaned, 0, "gone".into());
    assert_eq!(schedule.next(START), Next::Idle);
    let summary = schedule.summary();
    assert_eq!(
        (summary.quarantined_blocks, summary.quarantined_bytes),
        (1, 10)
    );
    assert_eq!((summary.conflict_blocks, summary.conflict_bytes), (1, 20));
    assert_eq!((summary.orphaned_blocks, summary.oldest), (1, None));
    assert_eq!(schedule.waiting_up_to(u64::MAX), (0, 0));
    let listed = schedule.oldest(10);
    assert_eq!(listed[0].last_error.as_deref(), Some("400"));
    assert_eq!(
        listed.iter().map(|l| l.attempts).collect::<Vec<_>>(),
        [3, 1, 0]
    );
    assert_eq!(
        schedule.retry(Some(block(3))),
        0,
        "there is nowhere to send it"
    );
    assert_eq!(schedule.retry(None), 1, "a conflict only by name");
    assert_eq!(schedule.next(START), Next::Start(block(1)));
    assert_eq!(schedule.retry(Some(block(2))), 1);
    assert_eq!(schedule.next(START), Next::Start(block(2)));
    assert_eq!(schedule.attempts(block(1)), 3);
    schedule.ended(block(1), age(1), failed(FailureCause::Rejected), START, 0);
    assert_eq!(schedule.state(block(1)), Some(BlockState::Quarantined));
    assert_eq!(schedule.attempts(block(1)), 4);
    schedule.add(block(1), age(4), 0, 10);
    assert_eq!(
        (
            schedule.attempts(block(1)),
            schedule.summary().quarantined_blocks
        ),
        (0, 0)
    );
}

#[test]
fn a_hurry_ends_our_own_waits_only() {
    let mut schedule = schedule(4);
    schedule.add(block(1), age(1), 0, 10);
    schedule.next(START);
    schedule.ended(block(1), age(1), failed(FailureCause::Key), START, u64::MAX);
    let Next::WaitUntil(until) = schedule.next(START) else {
        panic!("it backs off");
    };
    assert!(until.since(START) <= Duration::from_secs(1));
    schedule.hurry();
    assert_eq!(schedule.next(START), Next::Start(block(1)));
    let asked = Ended::Failed {
        cause: FailureCause::SlowDown,
        retry_after: Some(Duration::from_secs(9)),
        message: String::new(),
    };
    schedule.ended(block(1), age(1), asked, START, 0);
    schedule.hurry();
    let until = START.plus(Duration::from_secs(9));
    assert_eq!(schedule.next(START), Next::WaitUntil(until));
    schedule.store_changed(Some(7));
    assert_eq!(
        schedule.next(START),
        Next::WaitUntil(until),
        "another store"
    );
    schedule.store_changed(Some(0));
    assert_eq!(schedule.next(START), Next::Start(block(1)));
}

#[test]
fn own_waits_double_up_to_five_minutes_and_a_longer_wish_is_granted() {
    let mut schedule = schedule(4);
    schedule.add(block(1), age(1), 0, 10);
    let mut now = START;
    let mut waits = Vec::new();
    for _ in 0..40 {
        assert_eq!(schedule.next(now), Next::Start(block(1)));
        schedule.ended(block(1), age(1), failed(FailureCause::Disk), now, u64::MAX);
        let Next::WaitUntil(until) = schedule.next(now) else {
            panic!("it backs off");
        };
        waits.push(until.since(now).as_secs_f64().round() as u64);
        now = until;
    }
    assert_eq!(waits[..4], [1, 2, 4, 8]);
    assert_eq!(waits[39], 300);
    schedule.add(block(1), age(2), 0, 10);
    schedule.next(now);
    let asked = Ended::Failed {
        cause: FailureCause::Key,
        retry_after: Some(Duration::MAX),
        message: String::new(),
    };
    schedule.ended(block(1), age(2), asked, now, 0);
    let until = now.plus(Duration::from_secs(300));
    assert_eq!(schedule.next(now), Next::WaitUntil(until));
}
