//! Writes and syncs that fail: rows 23, 24, 27 and 30. What the store has taken is acknowledged; the
//! cache goes on elsewhere, or not at all until the disk takes writes again.

use super::fuse::{Effect, Fault, Op, Seen};
use super::rig::{self, Mount, Rig};

/// Lines of log, from the start on, that a disk may cause which refuses everything for 48 requests.
const COMPLAINTS_MAX: usize = 35;

/// Where records begin: behind the segment's own page.
const FIRST_RECORD: u64 = 4096;

fn failing_records(code: i32) -> Fault {
    Fault::on_segments(Op::Write, Effect::Fail(code)).between(FIRST_RECORD, u64::MAX)
}

#[test]
fn row_23_a_segment_that_refused_a_record_gets_no_other() {
    let Some(rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..8);
    rig.fuse.faults.add(failing_records(libc::EIO).times(1));
    rig::put_blocks(&rig.proxy, 8..40);
    for number in 0..40 {
        rig::get_block(&rig.proxy, number);
    }
    let seen = rig.fuse.faults.seen();
    let at = seen.iter().position(|request| request.struck.is_some());
    let at = at.expect("a record was refused");
    let refused = &seen[at];
    let later: Vec<&Seen> = seen[at + 1..]
        .iter()
        .filter(|request| request.name == refused.name && request.op == Op::Write)
        .take_while(|request| request.offset > 0)
        .collect();
    // Others may have been on their way already, and the footer follows.
    let records = later
        .iter()
        .filter(|request| request.offset > refused.offset);
    assert!(
        records.filter(|request| request.length > 8192).count() == 0,
        "{} is still written to after it refused: {later:?}",
        refused.name
    );
    assert_eq!(
        rig::metric(&rig.proxy, "forebay_disk_write_failures_total"),
        1
    );
    rig::assert_stored(&rig.proxy, 8);
    assert!(
        rig::hits(&rig.proxy, 8..40) >= 30,
        "the next ones are cached"
    );
}

#[test]
fn row_23_an_overwrite_that_could_not_be_cached_shows_no_old_bytes() {
    let Some(mut rig) = Rig::start() else { return };
    for number in 0..8 {
        rig.proxy.put(&format!("o/{number}"), b"an older version");
    }
    rig.fuse.faults.add(failing_records(libc::EIO).times(8));
    rig::put_blocks(&rig.proxy, 0..8);
    for number in 0..8 {
        rig::get_block(&rig.proxy, number);
    }
    rig.proxy.restart_killed(|_| {});
    for number in 0..8 {
        rig::get_block(&rig.proxy, number);
    }
}

#[test]
fn row_23_a_disk_that_refuses_everything_is_passed_by() {
    for (what, fault) in [
        (
            "writes",
            Fault::on_segments(Op::Write, Effect::Fail(libc::EIO)),
        ),
        ("records", failing_records(libc::EIO)),
        (
            "new files",
            Fault::on_segments(Op::Create, Effect::Fail(libc::EIO)),
        ),
        (
            "space",
            Fault::on_segments(Op::Allocate, Effect::Fail(libc::EIO)),
        ),
        (
            "syncs",
            Fault::on_segments(Op::Sync, Effect::Fail(libc::EIO)),
        ),
        (
            "syncs of the folder",
            Fault::on_segments(Op::Sync, Effect::Fail(libc::EIO)).named(""),
        ),
    ] {
        let Some(rig) = Rig::start() else { return };
        rig.fuse.faults.add(fault);
        rig::put_blocks(&rig.proxy, 0..24);
        for number in 0..24 {
            rig::get_block(&rig.proxy, number);
        }
        let complaints = rig.proxy.stderr().lines().count();
        assert!(
            complaints <= COMPLAINTS_MAX,
            "{what}: {complaints} lines:\n{}",
            rig.proxy.stderr()
        );
        assert!(rig.fuse.faults.struck() > 0, "{what}: nothing was refused");
        rig.fuse.faults.heal();
        rig::put_blocks(&rig.proxy, 24..28);
        assert_eq!(rig::hits(&rig.proxy, 24..28), 4, "{what}: healed");
    }
}

#[test]
fn row_23_a_segment_whose_first_page_is_bad_is_left_alone() {
    let Some(rig) = Rig::start() else { return };
    let bad = Fault::on_segments(Op::Write, Effect::Fail(libc::EIO)).between(0, FIRST_RECORD);
    for shard in 0..4 {
        rig.fuse
            .faults
            .add(bad.clone().named(&format!("segment-{shard:03}-000000")));
    }
    rig::put_blocks(&rig.proxy, 0..16);
    for number in 0..16 {
        rig::get_block(&rig.proxy, number);
    }
    assert_eq!(
        rig::hits(&rig.proxy, 0..16),
        16,
        "three good segments are left to each shard"
    );
}

#[test]
fn row_24_a_segment_counts_only_after_a_good_sync_of_its_own_page() {
    let Some(rig) = Rig::start() else { return };
    let once = Fault::on_segments(Op::Sync, Effect::Fail(libc::EIO)).times(3);
    rig.fuse.faults.add(once);
    rig::put_blocks(&rig.proxy, 0..48);
    for number in 0..48 {
        rig::get_block(&rig.proxy, number);
    }
    assert_eq!(rig.fuse.faults.struck(), 3);
    assert!(rig::hits(&rig.proxy, 0..48) > 0, "caching goes on");
    // What a failed sync was to cover is written again before a later one is believed.
    let mut trusted = std::collections::HashMap::new();
    for request in rig.fuse.faults.seen() {
        let Seen {
            op,
            name,
            offset,
            struck,
            ..
        } = request;
        match op {
            Op::Write if offset == 0 => drop(trusted.insert(name, "written")),
            Op::Sync if struck.is_some() => drop(trusted.insert(name, "lost")),
            Op::Sync if trusted.get(&name) == Some(&"written") => {
                trusted.insert(name, "synced");
            }
            Op::Write if name.starts_with("segment-") => {
                let state = trusted.get(&name);
                assert_eq!(state, Some(&"synced"), "a record went to {name}");
            }
            _ => {}
        }
    }
}

#[test]
fn row_26_short_writes_are_continued_or_refused() {
    let Some(mut rig) = Rig::start() else { return };
    for count in [64 << 10, 5000, 0] {
        let short = Fault::on_segments(Op::Write, Effect::Short(count));
        rig.fuse
            .faults
            .add(short.between(FIRST_RECORD, u64::MAX).times(3));
    }
    rig::put_blocks(&rig.proxy, 0..24);
    for number in 0..24 {
        rig::get_block(&rig.proxy, number);
    }
    assert_eq!(rig.fuse.faults.struck(), 9);
    assert!(rig::hits(&rig.proxy, 0..24) >= 12);
    rig.proxy.restart_killed(|_| {});
    for number in 0..24 {
        rig::get_block(&rig.proxy, number);
    }
}

#[test]
fn row_27_a_file_system_that_turns_read_only_is_read_and_passed_by() {
    let Some(rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..8);
    for op in [Op::Write, Op::Create, Op::Allocate, Op::Sync] {
        let refused = Fault::on_segments(op, Effect::Fail(libc::EROFS));
        rig.fuse.faults.add(refused);
    }
    assert_eq!(rig::hits(&rig.proxy, 0..8), 8, "what is cached is read");
    rig::put_blocks(&rig.proxy, 8..12);
    for number in 8..12 {
        assert_eq!(rig::get_block(&rig.proxy, number).cache(), "miss");
    }
    rig::assert_stored(&rig.proxy, 11);
}

#[test]
fn row_27_ext4_gives_up_while_running() {
    let make = ["mkfs.ext4", "-q", "-E", "nodiscard"];
    let Some(mount) = Mount::on_loop(400 << 20, &make, 512) else {
        return;
    };
    let path = mount.path.to_str().expect("UTF-8");
    let mut proxy = rig::setup_on(&mount).start();
    rig::put_blocks(&proxy, 0..8);
    // As after an error of its journal: read-only at once, open files or not.
    rig::run("mount", &["-o", "remount,abort", path]);
    for number in 0..8 {
        rig::get_block(&proxy, number);
    }
    rig::put_blocks(&proxy, 8..16);
    for number in 8..16 {
        rig::get_block(&proxy, number);
    }
    rig::assert_stored(&proxy, 15);
    assert_eq!(proxy.terminate().code(), Some(0), "an orderly stop");
}

#[test]
fn row_27_a_read_only_folder_is_refused_in_one_line() {
    let make = ["mkfs.ext4", "-q", "-E", "nodiscard"];
    let Some(mount) = Mount::on_loop(400 << 20, &make, 512) else {
        return;
    };
    let path = mount.path.to_str().expect("UTF-8");
    let mut proxy = rig::setup_on(&mount).start();
    proxy.put("first", b"formatted");
    proxy.kill();
    let said = proxy.stderr().len();
    rig::run_when_idle("mount", &["-o", "remount,ro", path]);
    proxy.spawn();
    super::common::wait_until("it has ended", || proxy.exit_status().is_some());
    assert_eq!(
        proxy.exit_status().and_then(|status| status.code()),
        Some(1)
    );
    let stderr = proxy.stderr();
    // Beside the refusal only the usual notice of a flag that comes later.
    let notice = |line: &&str| !line.contains("has no effect in this version");
    let said: Vec<&str> = stderr[said..].lines().filter(notice).collect();
    assert_eq!(said.len(), 1, "one line: {said:?}");
    let said = said[0];
    assert!(said.contains(path) && said.contains("Read-only"), "{said}");
}

#[test]
fn row_30_passing_errors_of_writes_are_tried_again() {
    let Some(rig) = Rig::start() else { return };
    for code in [libc::EAGAIN, libc::EINTR, libc::EBUSY, libc::ENOMEM] {
        rig.fuse.faults.add(failing_records(code).times(1));
    }
    rig::put_blocks(&rig.proxy, 0..4);
    assert_eq!(rig.fuse.faults.struck(), 4);
    assert_eq!(
        rig::metric(&rig.proxy, "forebay_disk_write_failures_total"),
        0
    );
    assert_eq!(rig::hits(&rig.proxy, 0..4), 4);
}
