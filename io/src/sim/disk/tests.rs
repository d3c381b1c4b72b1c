//! The simulated disk keeps and loses what it says.

use super::{Crash, DiskChances, DiskFault, SimDisk, SimFile};
use crate::buffer::{PAGE, Pool};
use crate::disk::{Disk, DiskFile};
use crate::runtime::Runtime;
use crate::sim::SimExecutor;
use futures::executor::block_on;
use std::io;

async fn fill(file: &SimFile, page: u64, byte: u8) -> io::Result<()> {
    let mut buffer = Pool::new(1 << 20).take(PAGE).await;
    buffer.append(&[byte; PAGE]);
    let offset = page * PAGE as u64;
    file.write(offset, buffer.freeze(), PAGE..2 * PAGE).await
}

/// The first byte of each page.
fn bytes(disk: &SimDisk) -> Vec<u8> {
    disk.content("f").chunks(PAGE).map(|page| page[0]).collect()
}

fn disk_with_file(pages: u64) -> (SimDisk, SimFile) {
    let disk = SimDisk::new(0);
    let file = block_on(disk.create("f", pages * PAGE as u64)).expect("room");
    (disk, file)
}

#[test]
fn a_kill_keeps_what_was_complete_and_a_power_cut_only_what_was_synced() {
    let (disk, file) = disk_with_file(2);
    block_on(fill(&file, 0, 1)).expect("no faults");
    block_on(file.sync()).expect("no faults");
    block_on(fill(&file, 0, 2)).expect("no faults");
    block_on(fill(&file, 1, 3)).expect("no faults");
    assert!(disk.undecided(Crash::Kill).is_empty());
    assert_eq!(disk.undecided(Crash::PowerCut).len(), 16, "sectors");
    let killed = disk.fork();
    killed.crash(Crash::Kill);
    assert_eq!(bytes(&killed), [2, 3]);
    let cut = disk.fork();
    let report = cut.crash_keeping(Crash::PowerCut, |_| false);
    assert_eq!(bytes(&cut), [1, 0]);
    assert_eq!(report.lost_since, Some(2), "the second write");
    let torn = disk.fork();
    let mut sectors = 0;
    torn.crash_keeping(Crash::PowerCut, |_| {
        sectors += 1;
        sectors <= 4
    });
    let content = torn.content("f");
    assert_eq!((content[0], content[PAGE / 2], content[PAGE]), (2, 1, 0));
}

#[test]
fn a_sync_covers_only_what_was_complete_when_it_began() {
    let (disk, file) = disk_with_file(1);
    let mut executor = SimExecutor::new(1);
    disk.attach(executor.runtime());
    let (runtime, late) = (executor.runtime(), file.clone());
    executor.block_on(async move {
        let sync = file.sync();
        let write = fill(&late, 0, 7);
        let (synced, written) = futures::join!(sync, write);
        synced.and(written).expect("no faults");
        runtime.yield_now().await;
    });
    disk.crash_keeping(Crash::PowerCut, |_| false);
    assert_eq!(bytes(&disk), [0]);
}

#[test]
fn a_sync_that_lies_shows_what_the_next_power_cut_takes() {
    let (disk, file) = disk_with_file(1);
    block_on(fill(&file, 0, 7)).expect("no faults");
    disk.set_chances(DiskChances::default().with(DiskFault::SyncLie, 1000), 1);
    block_on(file.sync()).expect_err("it fails once");
    block_on(file.sync()).expect("and then says that all is well");
    assert_eq!(bytes(&disk), [7]);
    let report = disk.crash_keeping(Crash::PowerCut, |_| true);
    assert_eq!(bytes(&disk), [0]);
    assert_eq!(report.lost_since, Some(1));
}

#[test]
fn a_removal_is_durable_once_a_file_is_made_after_it() {
    let (disk, _file) = disk_with_file(1);
    block_on(disk.remove("f")).expect("there");
    let cut = disk.fork();
    cut.crash_keeping(Crash::PowerCut, |_| false);
    assert_eq!(cut.names(), ["f"]);
    block_on(disk.create("g", PAGE as u64)).expect("room");
    disk.crash_keeping(Crash::PowerCut, |_| false);
    assert_eq!(disk.names(), ["g"]);
}

#[test]
fn a_write_that_nobody_waits_for_is_still_in_flight() {
    let (disk, file) = disk_with_file(1);
    let mut executor = SimExecutor::new(1);
    disk.attach(executor.runtime());
    let writer = executor.runtime();
    writer.spawn(async move { drop(fill(&file, 0, 7).await) });
    executor.run_steps(1);
    drop(executor);
    assert_eq!(disk.undecided(Crash::Kill).len(), 8, "sectors");
    disk.crash_keeping(Crash::Kill, |_| true);
    assert_eq!(bytes(&disk), [7]);
}

#[test]
fn faults_strike_within_their_budget_and_are_counted() {
    let (disk, file) = disk_with_file(2);
    let chances = DiskChances::default().with(DiskFault::LostWrite, 1000);
    disk.set_chances(chances, 1);
    block_on(fill(&file, 0, 1)).expect("it says so");
    block_on(fill(&file, 1, 2)).expect("it is");
    assert_eq!(bytes(&disk), [0, 2]);
    assert_eq!(disk.struck(DiskFault::LostWrite), 1);
    assert!(disk.is_damaged());
}
