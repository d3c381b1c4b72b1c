//! The quota, in blocks that the file system says are allocated, and other file systems and sector
//! sizes: row 31.

use super::common::{Proxy, Setup};
use super::rig::{self, Mount};

/// Puts and overwrites objects of many sizes, and demands at every step that the folder stays
/// within `quota`.
fn load(proxy: &Proxy, quota: u64, rounds: usize) {
    for round in 0..rounds {
        for number in 0..16 {
            let size = [1, 4096, 5000, 300_000, 1 << 20, 3 << 20][(round + number) % 6];
            let body = super::common::pattern((round * 16 + number) as u64, size);
            proxy.put(&format!("q/{number}"), &body);
            proxy.put(&format!("q/{round}/{number}"), &body);
        }
        within(proxy, quota);
    }
}

fn within(proxy: &Proxy, quota: u64) {
    let used = rig::allocated_bytes(&proxy.cache_folder());
    assert!(used <= quota, "{used} bytes are allocated of {quota}");
}

#[test]
fn a_quota_is_never_exceeded_by_a_block() {
    for quota in [64 << 20, 257 << 20] {
        let make = ["mkfs.ext4", "-q", "-E", "nodiscard"];
        let Some(mount) = Mount::on_loop(600 << 20, &make, 512) else {
            return;
        };
        let mut proxy = Setup {
            disk_quota: quota.to_string(),
            ..rig::setup_on(&mount)
        }
        .start();
        load(&proxy, quota, 5);
        let used = rig::metric(&proxy, "forebay_disk_used_bytes");
        // What holds the segments and the superblock, and not a byte of anything else.
        let exact = used + 2 * 4096;
        proxy.restart_killed(|setup| setup.disk_quota = exact.to_string());
        load(&proxy, exact, 2);
    }
}

#[test]
fn a_share_of_the_file_system_is_a_share_of_its_size() {
    let make = ["mkfs.xfs", "-q", "-K"];
    let Some(mount) = Mount::on_loop(400 << 20, &make, 512) else {
        return;
    };
    let proxy = Setup {
        disk_quota: "30%".into(),
        ..rig::setup_on(&mount)
    }
    .start();
    let quota = rig::file_system_bytes(&mount.path) * 30 / 100;
    load(&proxy, quota, 5);
    let used = rig::metric(&proxy, "forebay_disk_used_bytes");
    assert!(used > quota / 2, "{used} bytes used of {quota}");
}

#[test]
fn a_smaller_quota_is_kept_from_the_next_start_on_and_a_larger_one_is_used() {
    const BLOCKS: &str = "forebay_disk_blocks";
    let mut proxy = Setup {
        disk_quota: "257M".into(),
        ..rig::setup()
    }
    .start();
    rig::put_blocks(&proxy, 0..160);
    let before = rig::metric(&proxy, BLOCKS);
    assert!(before > 100, "{before} of 160 blocks are cached");
    proxy.restart_killed(|setup| setup.disk_quota = "130M".into());
    super::common::wait_until("all shards are loaded", || {
        rig::metric(&proxy, "forebay_shards_loaded") == rig::metric(&proxy, "forebay_shards")
    });
    within(&proxy, 130 << 20);
    let kept = rig::metric(&proxy, BLOCKS);
    assert!(kept > 0 && kept < before, "{kept} of {before} were kept");
    for number in 0..100 {
        rig::get_block(&proxy, number);
    }
    within(&proxy, 130 << 20);
    proxy.restart_killed(|setup| setup.disk_quota = "400M".into());
    rig::put_blocks(&proxy, 0..200);
    let used = rig::allocated_bytes(&proxy.cache_folder());
    assert!(
        used > 150 << 20,
        "only {used} bytes are used of a larger quota"
    );
    within(&proxy, 400 << 20);
    assert_eq!(rig::hits(&proxy, 180..200), 20);
}

#[test]
fn row_31_large_sectors_and_other_file_systems_hold_a_cache() {
    let ext4 = ["mkfs.ext4", "-q", "-b", "4096", "-E", "nodiscard"];
    let xfs = ["mkfs.xfs", "-q", "-K"];
    let xfs_large = ["mkfs.xfs", "-q", "-K", "-s", "size=4096"];
    for (make, sector_bytes) in [(&ext4[..], 4096), (&xfs[..], 512), (&xfs_large[..], 4096)] {
        let Some(mount) = Mount::on_loop(400 << 20, make, sector_bytes) else {
            return;
        };
        let mut proxy = rig::setup_on(&mount).start();
        rig::put_blocks(&proxy, 0..16);
        proxy.put("odd", &super::common::pattern(9, 12_345));
        assert_eq!(rig::hits(&proxy, 0..16), 16, "{make:?}");
        proxy.restart_killed(|_| {});
        assert_eq!(rig::hits(&proxy, 0..16), 16, "{make:?} after kill -9");
        assert_eq!(proxy.get("odd").body, super::common::pattern(9, 12_345));
        assert_eq!(proxy.terminate().code(), Some(0));
        proxy.start();
        assert_eq!(rig::hits(&proxy, 0..16), 16, "{make:?} after a stop");
    }
}

#[test]
fn row_31_a_folder_in_memory_holds_a_cache() {
    let Some(mount) = Mount::tmpfs(400 << 20) else {
        return;
    };
    let mut proxy = rig::setup_on(&mount).start();
    rig::put_blocks(&proxy, 0..16);
    assert_eq!(rig::hits(&proxy, 0..16), 16);
    proxy.restart_killed(|_| {});
    assert_eq!(rig::hits(&proxy, 0..16), 16, "after kill -9");
    within(&proxy, 257 << 20);
}
