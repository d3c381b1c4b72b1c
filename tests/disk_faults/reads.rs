//! Reads that fail: rows 22, 26, 30 and 32. A block that cannot be read is fetched again and cached
//! elsewhere, and nobody but the metrics notices.

use super::common::Setup;
use super::fuse::{Effect, Fault, Op};
use super::rig::{self, MIB, Mount, Rig, SEGMENT_BYTES};

#[test]
fn row_22_blocks_that_cannot_be_read_come_from_the_store_and_are_cached_again() {
    let Some(rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..8);
    assert_eq!(rig::hits(&rig.proxy, 0..8), 8, "before the fault");
    let failing = Fault::on_segments(Op::Read, Effect::Fail(libc::EIO));
    rig.fuse.faults.add(failing);
    for number in 0..8 {
        assert_eq!(rig::get_block(&rig.proxy, number).cache(), "miss");
    }
    let failures = rig::metric(&rig.proxy, "forebay_disk_read_failures_total");
    assert_eq!(failures, 8);
    rig.fuse.faults.heal();
    assert_eq!(rig::hits(&rig.proxy, 0..8), 8, "cached anew");
}

#[test]
fn row_22_a_range_behind_an_unreadable_place_is_right() {
    let Some(rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..1);
    let failing = Fault::on_segments(Op::Read, Effect::Fail(libc::EIO)).times(1);
    rig.fuse.faults.add(failing);
    let first = MIB / 2 + 3;
    let answer = rig
        .proxy
        .get_range("o/0", &format!("bytes={first}-{}", first + 99));
    assert_eq!(answer.status, 206);
    assert_eq!(answer.body, rig::block(0)[first..first + 100]);
    assert_eq!(rig.fuse.faults.struck(), 1);
}

#[test]
fn row_22_a_start_with_unreadable_segments_serves() {
    let Some(mut rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..8);
    rig.proxy.kill();
    let failing = Fault::on_segments(Op::Read, Effect::Fail(libc::EIO));
    rig.fuse.faults.add(failing);
    rig.proxy.start();
    for number in 0..8 {
        rig::get_block(&rig.proxy, number);
    }
    rig.fuse.faults.heal();
    rig.proxy.assert_serves();
    rig.proxy.restart_killed(|_| {});
    for number in 0..8 {
        rig::get_block(&rig.proxy, number);
    }
}

#[test]
fn row_22_a_device_that_loses_its_end_costs_no_wrong_byte() {
    const COUNT: usize = 64;
    // Without a journal ext4 has no reason to give up the whole file system.
    let make = ["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard"];
    let Some(mount) = Mount::on_loop(400 << 20, &make, 512) else {
        return;
    };
    let proxy = rig::setup_on(&mount).start();
    rig::put_blocks(&proxy, 0..COUNT);
    let before = rig::hits(&proxy, 0..COUNT);
    assert!(before > COUNT / 2, "{before} of {COUNT} were cached");
    rig::run(
        "sync",
        &["--file-system", mount.path.to_str().expect("UTF-8")],
    );
    let image = mount.image();
    image.set_len(40 << 20).expect("truncated");
    for number in 0..COUNT {
        rig::get_block(&proxy, number);
    }
    // A record written anew far out gives the device its length back, and what was lost reads as
    // zeros from then on.
    let refused = rig::metric(&proxy, "forebay_disk_read_failures_total");
    let damaged = rig::metric(&proxy, "forebay_damaged_records_total");
    assert!(
        refused + damaged > 0,
        "nothing failed, so nothing was tested"
    );
    // Its end is back, but zeros: no error of the device gives them away, only the checksums.
    image.set_len(400 << 20).expect("extended");
    for number in 0..COUNT {
        rig::get_block(&proxy, number);
    }
    proxy.assert_serves();
}

#[test]
fn row_26_short_reads_are_continued_and_reads_past_the_end_are_no_hits() {
    let Some(rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..4);
    // A page boundary can be continued, the middle of a page cannot.
    for (count, what) in [
        (64 << 10, "whole pages"),
        (5000, "part of a page"),
        (0, "nothing"),
    ] {
        let short = Fault::on_segments(Op::Read, Effect::Short(count)).times(2);
        rig.fuse.faults.add(short);
        for number in 0..4 {
            rig::get_block(&rig.proxy, number);
        }
        rig.fuse.faults.heal();
        assert_eq!(rig::hits(&rig.proxy, 0..4), 4, "after reads of {what}");
    }
}

#[test]
fn row_30_passing_errors_of_reads_are_tried_again() {
    let Some(rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..1);
    for code in [libc::EAGAIN, libc::EINTR, libc::EBUSY, libc::ENOMEM] {
        let passing = Fault::on_segments(Op::Read, Effect::Fail(code)).times(2);
        rig.fuse.faults.add(passing);
        assert_eq!(rig::hits(&rig.proxy, 0..1), 1, "errno {code}");
    }
    assert_eq!(rig.fuse.faults.struck(), 8);
}

#[test]
fn row_30_errors_that_never_pass_end_the_read() {
    let Some(rig) = Rig::start() else { return };
    rig::put_blocks(&rig.proxy, 0..4);
    for code in [libc::EAGAIN, libc::EINTR, libc::EBUSY, libc::ENOMEM] {
        let lasting = Fault::on_segments(Op::Read, Effect::Fail(code));
        rig.fuse.faults.add(lasting);
        assert_eq!(
            rig::get_block(&rig.proxy, 0).cache(),
            "miss",
            "errno {code}"
        );
        rig.fuse.faults.heal();
    }
}

#[test]
fn row_32_truncated_segments_are_damage() {
    for new_length in [0, 4096, SEGMENT_BYTES / 4 + 1, SEGMENT_BYTES - 4096] {
        let mut proxy = rig::setup().start();
        rig::put_blocks(&proxy, 0..12);
        for file in segments(&proxy) {
            let file = std::fs::File::options().write(true).open(file);
            file.and_then(|file| file.set_len(new_length)).expect("cut");
        }
        for number in 0..12 {
            rig::get_block(&proxy, number);
        }
        rig::put_blocks(&proxy, 0..12);
        rig::hits(&proxy, 0..12);
        proxy.restart_killed(|_| {});
        for number in 0..12 {
            rig::get_block(&proxy, number);
        }
        rig::put_blocks(&proxy, 12..24);
        assert!(rig::hits(&proxy, 12..24) > 0, "nothing is cached any more");
    }
}

#[test]
fn row_32_deleted_segments_are_missed_by_nobody() {
    let mut proxy = rig::setup().start();
    rig::put_blocks(&proxy, 0..12);
    for file in segments(&proxy) {
        std::fs::remove_file(file).expect("removed");
    }
    for number in 0..12 {
        rig::get_block(&proxy, number);
    }
    rig::put_blocks(&proxy, 0..40);
    for number in 0..40 {
        rig::get_block(&proxy, number);
    }
    proxy.restart_killed(|_| {});
    for number in 0..40 {
        rig::get_block(&proxy, number);
    }
    proxy.restart_killed(|setup: &mut Setup| setup.shards = 2);
    rig::put_blocks(&proxy, 40..44);
    assert_eq!(rig::hits(&proxy, 40..44), 4);
}

fn segments(proxy: &super::common::Proxy) -> Vec<std::path::PathBuf> {
    let mut files = super::common::proxy::files_below(&proxy.cache_folder());
    files.retain(|file| {
        let name = file.file_name().expect("a name").to_string_lossy();
        name.starts_with("segment-")
    });
    assert!(!files.is_empty(), "no segments in the folder");
    files
}
