//! A disk that takes requests and does not answer: row 28.
//!
//! Nothing here is measured: the tests ask that answers come while the disk holds its own.

use super::common::wait_until;
use super::fuse::{Effect, Fault, Op};
use super::rig::{self, Rig};

#[test]
fn row_28_a_read_that_the_disk_holds_is_answered_from_the_store() {
    let Some(rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..16);
    assert_eq!(rig::hits(&rig.proxy, 0..16), 16, "before the stall");
    // One shard's files: the blocks of the three others are still hits.
    let stalled = Fault::on_segments(Op::Read, Effect::Stall).named("segment-000-");
    rig.fuse.faults.add(stalled);
    let mut hits = 0;
    for number in 0..16 {
        if rig::get_block(&rig.proxy, number).cache() == "hit-disk" {
            hits += 1;
        }
    }
    let held = rig.fuse.faults.stalled();
    assert!(held > 0, "nothing was held, so nothing was tested");
    assert!((4..16).contains(&hits), "{hits} of 16 blocks were hits");
    // Who waited for the first one and came back found the shard passed by.
    let overdue = rig::metric(&rig.proxy, "forebay_disk_overdue_operations");
    assert!((1..=2).contains(&overdue), "{overdue} wait for the disk");
    // A block and its header are two requests.
    assert_eq!(held as u64, 2 * overdue);
    assert!(rig.proxy.stderr().contains("the disk does not answer"));
    rig.fuse.faults.heal();
    wait_until("the shard is used again", || {
        rig::metric(&rig.proxy, "forebay_disk_overdue_operations") == 0
    });
    rig::hits(&rig.proxy, 0..16);
    assert_eq!(rig::hits(&rig.proxy, 0..16), 16, "after the stall");
}

#[test]
fn row_28_writes_that_the_disk_holds_are_acknowledged_by_the_store() {
    let Some(rig) = Rig::start() else { return };
    rig.proxy.put("o/0", b"an older version");
    for op in [Op::Write, Op::Sync, Op::Create, Op::Allocate] {
        rig.fuse.faults.add(Fault::on_segments(op, Effect::Stall));
    }
    // Each shard waits once, all at the same time; then they are passed by.
    std::thread::scope(|scope| {
        for number in 0..16 {
            let proxy = &rig.proxy;
            scope.spawn(move || proxy.put(&format!("o/{number}"), &rig::block(number)));
        }
    });
    assert!(rig.fuse.faults.stalled() > 0, "nothing was held");
    for number in 0..16 {
        rig::get_block(&rig.proxy, number);
    }
    rig::put_blocks(&rig.proxy, 16..32);
    for number in 16..32 {
        rig::get_block(&rig.proxy, number);
    }
    rig::assert_stored(&rig.proxy, 0);
    rig.fuse.faults.heal();
    wait_until("the shards are used again", || {
        rig::metric(&rig.proxy, "forebay_disk_overdue_operations") == 0
    });
    for number in 0..32 {
        rig::get_block(&rig.proxy, number);
    }
    assert_eq!(rig::hits(&rig.proxy, 0..32), 32, "after the stall");
}

#[test]
fn row_28_a_delete_that_the_disk_holds_is_not_confirmed_and_not_undone() {
    let Some(rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..1);
    rig.fuse
        .faults
        .add(Fault::on_segments(Op::Write, Effect::Stall));
    let answer = rig.proxy.request("DELETE", "/vol/o/0", &[], b"");
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (503, "SlowDown")
    );
    assert_eq!(rig.proxy.get("o/0").status, 404, "it is gone all the same");
    rig.fuse.faults.heal();
    wait_until("it is confirmed", || {
        rig.proxy.request("DELETE", "/vol/o/0", &[], b"").status == 204
    });
    assert_eq!(rig.proxy.get("o/0").status, 404);
}

#[test]
fn row_28_an_orderly_stop_does_not_wait_for_the_disk() {
    let Some(mut rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..8);
    rig.fuse
        .faults
        .add(Fault::on_segments(Op::Write, Effect::Stall));
    let pid = rig.proxy.pid() as libc::pid_t;
    // SAFETY: the child is ours and not waited for, so its id names no other process.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let said = || rig.proxy.stderr();
    wait_until("it has stopped", || {
        said().contains("the disk did not take all footers")
    });
    // The kernel keeps the process until its requests are answered; that is not ours to change.
    rig.fuse.faults.heal();
    wait_until("it has ended", || rig.proxy.exit_status().is_some());
    let status = rig.proxy.exit_status().expect("ended");
    assert_eq!(status.code(), Some(0), "{}", rig.proxy.stderr());
}
