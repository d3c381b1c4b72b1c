//! A file system without room: row 25, and files that may not grow: row 32. Reads pass through,
//! writes reach the store, a metric says why, and space that comes free is used.

use super::common::{Setup, wait_until};
use super::fuse::{Effect, Fault, Op};
use super::rig::{self, Mount, Rig};
use std::fs::File;
use std::io::Write;
use std::path::Path;

const FULL: &str = "forebay_shards_disk_full";

/// Takes all room of a file system, as another process that shares it would.
fn fill(folder: &Path) {
    let mut ballast = File::create(folder.join("ballast")).expect("ballast");
    for size in [1 << 20, 4096, 512] {
        while ballast.write_all(&vec![0xab; size]).is_ok() {}
    }
}

fn make_room(folder: &Path) {
    std::fs::remove_file(folder.join("ballast")).expect("no more ballast");
}

/// A file system with room for the cache and for somebody else's folder beside it.
fn shared(mount: Mount) -> (Mount, Setup) {
    let cache = mount.path.join("cache");
    rig::make_private(&cache);
    let setup = Setup {
        cache_folder: Some(cache),
        ..rig::setup()
    };
    (mount, setup)
}

fn tmpfs(mib: u64) -> Option<(Mount, Setup)> {
    Mount::tmpfs(mib << 20).map(shared)
}

fn ext4(mib: u64) -> Option<(Mount, Setup)> {
    // No blocks in reserve: we are root, who would get them.
    let make = ["mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard"];
    Mount::on_loop(mib << 20, &make, 512).map(shared)
}

#[test]
fn row_25_a_file_system_smaller_than_the_quota_is_used_as_far_as_it_goes() {
    for place in [tmpfs(120), ext4(140)] {
        let Some((_mount, setup)) = place else { return };
        let proxy = setup.start();
        rig::put_blocks(&proxy, 0..120);
        for number in 0..120 {
            rig::get_block(&proxy, number);
        }
        assert!(
            rig::metric(&proxy, FULL) > 0,
            "no metric says that it is full"
        );
        assert!(rig::hits(&proxy, 110..120) > 0, "what there is is used");
        let complaints = proxy.stderr().lines().count();
        assert!(complaints < 30, "{complaints} lines:\n{}", proxy.stderr());
    }
}

#[test]
fn row_25_another_process_fills_the_disk_while_running_and_leaves_again() {
    for place in [tmpfs(200), ext4(240)] {
        let Some((mount, setup)) = place else { return };
        let proxy = setup.start();
        rig::put_blocks(&proxy, 0..8);
        assert_eq!(rig::hits(&proxy, 0..8), 8);
        fill(&mount.path);
        assert!(rig::hits(&proxy, 0..8) == 8, "what is cached is read");
        rig::put_blocks(&proxy, 8..48);
        for number in 8..48 {
            rig::get_block(&proxy, number);
        }
        assert!(
            rig::metric(&proxy, FULL) > 0,
            "no metric says that it is full"
        );
        let used = rig::allocated_bytes(&proxy.cache_folder());
        make_room(&mount.path);
        // A refusal is believed for ten seconds.
        let mut number = 48;
        wait_until("the room that came free is used", || {
            rig::put_blocks(&proxy, number..number + 4);
            number += 4;
            let grown = rig::allocated_bytes(&proxy.cache_folder()) > used + (16 << 20);
            grown && rig::metric(&proxy, FULL) == 0
        });
        assert!(rig::hits(&proxy, number - 4..number) > 0);
    }
}

#[test]
fn row_25_a_start_on_a_full_disk_serves_what_is_cached() {
    for place in [tmpfs(200), ext4(240)] {
        let Some((mount, setup)) = place else { return };
        let mut proxy = setup.start();
        rig::put_blocks(&proxy, 0..8);
        proxy.kill();
        fill(&mount.path);
        proxy.start();
        assert!(rig::hits(&proxy, 0..8) == 8, "what is cached is read");
        rig::put_blocks(&proxy, 8..16);
        for number in 0..16 {
            rig::get_block(&proxy, number);
        }
        make_room(&mount.path);
        proxy.assert_serves();
    }
}

#[test]
fn row_25_a_new_folder_on_a_full_disk_is_refused_and_left_as_it_was() {
    let Some((mount, setup)) = tmpfs(16) else {
        return;
    };
    fill(&mount.path);
    let mut proxy = setup.prepare();
    proxy.spawn();
    wait_until("it has ended", || proxy.exit_status().is_some());
    assert_eq!(
        proxy.exit_status().and_then(|status| status.code()),
        Some(1)
    );
    let stderr = proxy.stderr();
    assert!(stderr.contains("No space left"), "{stderr}");
    let left = super::common::proxy::files_below(&proxy.cache_folder());
    assert!(left.is_empty(), "left behind: {left:?}");
    make_room(&mount.path);
    proxy.forget();
    proxy.start();
    proxy.assert_serves();
}

#[test]
fn row_25_no_partial_file_is_left_by_a_refused_segment() {
    let Some(rig) = Rig::start() else { return };
    let full = Fault::on_segments(Op::Allocate, Effect::Fail(libc::ENOSPC));
    rig.fuse.faults.add(full);
    rig::put_blocks(&rig.proxy, 0..12);
    assert!(rig::metric(&rig.proxy, FULL) > 0);
    let left: Vec<_> = std::fs::read_dir(&rig.fuse.backing)
        .expect("listing")
        .map(|entry| entry.expect("entry").file_name())
        .filter(|name| name.to_string_lossy().starts_with("segment-"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn row_25_a_record_that_finds_no_room_in_its_segment_is_not_served() {
    let Some(rig) = Rig::start() else { return };
    let full = Fault::on_segments(Op::Write, Effect::Fail(libc::ENOSPC));
    rig.fuse.faults.add(full.between(4096, u64::MAX).times(4));
    rig::put_blocks(&rig.proxy, 0..8);
    for number in 0..8 {
        rig::get_block(&rig.proxy, number);
    }
    assert_eq!(rig.fuse.faults.struck(), 4);
    assert_eq!(rig::hits(&rig.proxy, 0..8), 8);
}

#[test]
fn row_32_a_file_size_limit_is_an_error_and_not_the_end() {
    // Below a segment, so that none can be made; the superblock fits.
    let setup = Setup {
        wrapper: ["prlimit", "--fsize=2097152"].map(String::from).to_vec(),
        flags: rig::NO_RAM.map(String::from).to_vec(),
        ..Setup::default()
    };
    let mut proxy = setup.start();
    // The store is a folder here, and under the same limit.
    for number in 0..4 {
        rig::put_blocks(&proxy, number..number + 1);
        rig::get_block(&proxy, number);
    }
    assert!(
        proxy.stderr().contains("File too large"),
        "{}",
        proxy.stderr()
    );
    assert_eq!(proxy.terminate().code(), Some(0));
    proxy.setup.wrapper.clear();
    proxy.start();
    rig::put_blocks(&proxy, 4..8);
    assert_eq!(rig::hits(&proxy, 4..8), 4, "without the limit");
}
