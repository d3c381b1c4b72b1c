//! What a start finds: after crashes, damage, reuse of segments and a smaller quota.

use crate::support::client::{self, Refusal};
use crate::support::ops::content;
use crate::support::world::{Geometry, Machine, SETTLE, World, home, open_shard};
use forebay_io::buffer::{PAGE, Pool};
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;
use forebay_io::sim::{DiskOperation, SimDisk, SimExecutor};
use forebay_io::store::ObjectMeta;
use forebay_shards::format::{RecordHeader, RecordKind};
use forebay_shards::index::Location;
use forebay_shards::key::{BlockHash, BlockId, Volume};
use forebay_shards::log::ShardLayout;
use forebay_shards::messages::{BlockPayload, ReadError};
use forebay_shards::range::RangeSpec;
use forebay_shards::recover::RecoveryReport;
use forebay_shards::segment::segment_name;
use forebay_shards::superblock::{FolderLimits, QUOTA_BYTES_MIN, open_or_format, segment_files};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const EIO: i32 = 5;

/// One shard of small segments.
const ONE_SHARD: Geometry = Geometry {
    shards: 1,
    ram_bytes: 0,
    ..Geometry::SMALL
};

fn name(n: u64) -> String {
    format!("k{n}")
}

fn put(world: &mut World, volume: &Arc<Volume>, n: u64, version: u64) {
    let (node, volume) = (world.nodes[0].clone(), volume.clone());
    world
        .run(async move {
            client::put(&node, &volume, &name(n), &content(version, 10_000), false).await
        })
        .expect("a put without faults");
}

fn delete(world: &mut World, volume: &Arc<Volume>, n: u64) {
    let (node, volume) = (world.nodes[0].clone(), volume.clone());
    world
        .run(async move { client::delete(&node, &volume, &name(n)).await })
        .expect("a delete without faults");
}

fn get(world: &mut World, volume: &Arc<Volume>, n: u64) -> Option<Vec<u8>> {
    let (node, volume) = (world.nodes[0].clone(), volume.clone());
    let wanted = Some(RangeSpec::All);
    match world.run(async move { client::read(&node, &volume, &name(n), wanted).await }) {
        Ok(answer) => Some(answer.bytes),
        Err(Refusal::Error(ReadError::NotFound)) => None,
        Err(refusal) => panic!("{refusal:?}"),
    }
}

fn id(volume: &Arc<Volume>, n: u64) -> BlockId {
    home(volume, &name(n))
}

fn find(world: &World, volume: &Arc<Volume>, n: u64) -> Option<Location> {
    let id = id(volume, n);
    world.shard_of(&id).find(id.hash())
}

/// Recovers shard 0 of a folder alone: where its blocks are, and how that was learnt.
fn recovered(
    disk: &SimDisk,
    layout: ShardLayout,
    hashes: &[BlockHash],
) -> (Vec<Option<Location>>, RecoveryReport) {
    let mut executor = SimExecutor::new(1);
    let runtime = executor.runtime();
    disk.attach(runtime.clone());
    let (disk, hashes) = (disk.clone(), hashes.to_vec());
    executor.block_on(async move {
        let (shard, report) = open_shard(&runtime, &disk, &Pool::new(4 << 20), layout, None).await;
        (
            hashes.iter().map(|hash| shard.find(*hash)).collect(),
            report,
        )
    })
}

#[test]
fn records_behind_a_torn_one_are_found() {
    let machine = Machine::new(ONE_SHARD);
    let volume = machine.immutable();
    let mut world = machine.start(1, 1);
    for n in 0..6 {
        put(&mut world, &volume, n, n);
    }
    let torn = find(&world, &volume, 2).expect("cached");
    drop(world);
    machine.disk.flip_bit(
        &segment_name(0, torn.segment),
        torn.page as usize * PAGE + 700,
    );
    let world = machine.start(2, 1);
    for n in 0..6 {
        assert_eq!(find(&world, &volume, n).is_some(), n != 2, "block {n}");
    }
}

#[test]
fn a_payload_that_was_torn_is_fetched_again() {
    let machine = Machine::new(ONE_SHARD);
    let volume = machine.immutable();
    let mut world = machine.start(1, 1);
    put(&mut world, &volume, 0, 0);
    let torn = find(&world, &volume, 0).expect("cached");
    drop(world);
    machine.disk.flip_bit(
        &segment_name(0, torn.segment),
        (torn.page as usize + 2) * PAGE + 9,
    );
    let mut world = machine.start(2, 1);
    assert!(get(&mut world, &volume, 0).as_deref() == Some(&content(0, 10_000)[..]));
    assert_eq!(
        world.nodes[0].core.snapshot().counters["damaged_records"],
        1
    );
}

#[test]
fn every_crash_point_leaves_whole_blocks_or_none() {
    for seed in 0..150 {
        let machine = Machine::new(ONE_SHARD);
        let volume = machine.immutable();
        let mut world = machine.start(seed, 1);
        let (node, inside) = (world.nodes[0].clone(), volume.clone());
        world.runtime.spawn(async move {
            for n in 0..8 {
                let bytes = content(n, 10_000);
                let _ = client::put(&node, &inside, &name(n), &bytes, false).await;
            }
        });
        world.executor.run_steps(seed as usize * 3);
        let before: Vec<_> = (0..8).map(|n| find(&world, &volume, n)).collect();
        drop(world);
        let mut world = machine.start(seed + 1, 1);
        for n in 0..8_u64 {
            let location = before[n as usize];
            assert!(
                location.is_none() || location == find(&world, &volume, n),
                "seed {seed}: {n}"
            );
            let stored = machine.store.object(&name(n)).map(|bytes| bytes.to_vec());
            assert!(get(&mut world, &volume, n) == stored, "seed {seed}: {n}");
        }
    }
}

#[test]
fn footers_and_scans_find_the_same_and_recovery_changes_nothing() {
    let machine = Machine::new(ONE_SHARD);
    let volume = machine.immutable();
    let mut world = machine.start(1, 1);
    for n in 0..60 {
        put(&mut world, &volume, n % 40, n);
        if n % 7 == 0 {
            delete(&mut world, &volume, n % 40);
        }
    }
    let before: Vec<_> = (0..40).map(|n| find(&world, &volume, n)).collect();
    assert!(before.iter().flatten().count() > 10);
    world.rest(SETTLE);
    world.stop();
    let hashes: Vec<BlockHash> = (0..40).map(|n| id(&volume, n).hash()).collect();
    let layout = machine.geometry.layout(0);
    let (by_footers, report) = recovered(&machine.disk, layout, &hashes);
    assert_eq!((report.footers, report.scans), (3, 0));
    assert_eq!(by_footers, before);
    let (again, _) = recovered(&machine.disk, layout, &hashes);
    assert_eq!(again, before, "recovery reads only");
    let damaged = machine.disk.duplicate();
    for segment in damaged.names() {
        damaged.flip_bit(&segment, layout.segment_bytes as usize - PAGE + 60);
    }
    let (by_scans, report) = recovered(&damaged, layout, &hashes);
    assert_eq!((report.footers, report.scans), (0, 3));
    assert_eq!(by_scans, before);
}

#[test]
fn a_former_life_is_never_served() {
    // Fill the segments several times over with versions of the same keys, crash at any moment.
    for seed in 0..40 {
        let machine = Machine::new(ONE_SHARD);
        let volume = machine.immutable();
        let mut world = machine.start(seed, 1);
        for n in 0..50 + seed {
            put(&mut world, &volume, n % 9, n);
        }
        let snapshot = world.nodes[0].core.snapshot();
        assert!(
            snapshot.shard_counters["segments_reclaimed"] > 0,
            "seed {seed}: {snapshot:?}"
        );
        drop(world);
        let mut world = machine.start(seed + 1, 1);
        for n in 0..9 {
            let stored = machine.store.object(&name(n)).map(|bytes| bytes.to_vec());
            assert!(get(&mut world, &volume, n) == stored, "seed {seed}: {n}");
        }
    }
}

#[test]
fn a_segment_whose_header_is_damaged_keeps_its_records_and_its_place_in_time() {
    for sealed in [true, false] {
        let machine = Machine::new(ONE_SHARD);
        let volume = machine.immutable();
        let mut world = machine.start(1, 1);
        for n in 0..6 {
            put(&mut world, &volume, n, n);
        }
        delete(&mut world, &volume, 0);
        let segment = find(&world, &volume, 1).expect("cached").segment;
        if sealed {
            world.stop()
        } else {
            drop(world)
        }
        machine.disk.flip_bit(&segment_name(0, segment), 100);
        let mut world = machine.start(2, 1);
        assert!(get(&mut world, &volume, 0).is_none());
        for n in 1..6 {
            assert!(
                find(&world, &volume, n).is_some(),
                "sealed {sealed}: block {n}"
            );
        }
        // New versions must outrank the old ones, wherever they are written.
        for n in 1..6 {
            put(&mut world, &volume, n, 100 + n);
        }
        drop(world);
        let mut world = machine.start(3, 1);
        for n in 1..6 {
            let expected = content(100 + n, 10_000);
            assert!(
                get(&mut world, &volume, n).as_deref() == Some(&expected[..]),
                "block {n}"
            );
        }
    }
}

#[test]
fn a_passing_read_error_during_a_start_hides_no_record() {
    // Header, trailer and scan each meet it in turn.
    for skipped in 0..6 {
        let machine = Machine::new(ONE_SHARD);
        let volume = machine.immutable();
        let mut world = machine.start(1, 1);
        for n in 0..4 {
            put(&mut world, &volume, n, n);
        }
        delete(&mut world, &volume, 0);
        drop(world);
        machine.disk.fail_after(DiskOperation::Read, EIO, skipped);
        let mut world = machine.start(2, 1);
        machine.disk.heal();
        assert!(
            get(&mut world, &volume, 0).is_none(),
            "after {skipped} reads"
        );
        for n in 1..4 {
            assert!(
                find(&world, &volume, n).is_some(),
                "after {skipped} reads: block {n}"
            );
        }
    }
}

#[test]
fn the_highest_sequence_wins_in_the_index_as_on_disk() {
    // Records of one block are written at once; their writes end in any order.
    for seed in 0..40 {
        let machine = Machine::new(ONE_SHARD);
        let block = id(&machine.immutable(), 0);
        let world = machine.start(seed, 1);
        let (node, shard) = (world.nodes[0].clone(), world.shard_of(&block));
        let (appending, hash) = (shard.clone(), block.hash());
        let mut world = world;
        world.run(async move {
            let appends = (0..4).map(|n| {
                let (node, shard, block) = (node.clone(), appending.clone(), block.clone());
                async move {
                    let bytes = content(n, 1000 + 4000 * (4 - n));
                    let payload = client::payload(&node, &bytes).await;
                    let header = record_header(&block, &payload);
                    let _ = shard.append(header, payload.buffer, || true).await;
                }
            });
            futures::future::join_all(appends).await;
        });
        let before = shard.find(hash);
        drop((world, shard));
        let (after, _) = recovered(&machine.disk, machine.geometry.layout(0), &[hash]);
        assert_eq!(after, [before], "seed {seed}");
    }
}

fn record_header(block: &BlockId, payload: &BlockPayload) -> RecordHeader {
    let size = payload.buffer.filled() as u64;
    RecordHeader {
        kind: RecordKind::Block,
        payload_length: size as u32,
        payload_crc64: payload.crc64nvme,
        chunk_crcs: payload.chunk_crcs.clone(),
        meta: ObjectMeta {
            size,
            ..ObjectMeta::default()
        },
        ..RecordHeader::tombstone(block.hash(), block, 0)
    }
}

#[test]
fn a_smaller_quota_at_a_start_is_obeyed_at_once() {
    let mut machine = Machine::new(ONE_SHARD);
    let volume = machine.immutable();
    let mut world = machine.start(1, 1);
    for n in 0..60 {
        put(&mut world, &volume, n, n);
    }
    world.stop();
    assert_eq!(machine.disk.used_bytes(), 3 * ONE_SHARD.segment_bytes);
    machine.geometry.segments_max = 1;
    let mut world = machine.start(2, 1);
    assert_eq!(machine.disk.used_bytes(), ONE_SHARD.segment_bytes);
    assert!(find(&world, &volume, 59).is_some(), "the newest are kept");
    for n in 0..60 {
        assert!(get(&mut world, &volume, n).as_deref() == Some(&content(n, 10_000)[..]));
    }
    world.rest(Duration::from_secs(1));
    assert_eq!(machine.disk.used_bytes(), ONE_SHARD.segment_bytes);
}

#[test]
fn a_folder_formatted_for_the_least_quota_works_and_stays_within_it() {
    let disk = SimDisk::new(0);
    let quota_bytes = QUOTA_BYTES_MIN + (1 << 20);
    let mut layouts = Vec::new();
    for seed in 0..2 {
        let mut executor = SimExecutor::new(seed);
        let runtime = executor.runtime();
        disk.attach(runtime.clone());
        let folder = disk.clone();
        let layout = executor.block_on(async move {
            let pool = Pool::new(16 << 20);
            let limits = FolderLimits::of_quota(quota_bytes);
            let found = open_or_format(&runtime, &folder, &pool, limits).await;
            let superblock = found.expect("formatted or read");
            let entries = folder.list().await.expect("a listing");
            let numbers = segment_files(&entries, &superblock);
            let layout = ShardLayout {
                folder: superblock.folder,
                shard: 0,
                segment_bytes: superblock.segment_bytes,
                segments_max: superblock
                    .segments_per_shard(quota_bytes)
                    .expect("large enough"),
            };
            let (shard, _) = open_shard(&runtime, &folder, &pool, layout, None).await;
            let shard = Rc::new(shard);
            // Enough to need every segment that the quota allows, and one more.
            let records = layout.segment_bytes / 4096 / 2048 * u64::from(layout.segments_max + 1);
            for record in 0..records {
                let mut body = pool.take(8 << 20).await;
                body.advance(8 << 20);
                let header = RecordHeader {
                    kind: RecordKind::Block,
                    payload_length: 8 << 20,
                    ..RecordHeader::grave(BlockHash(record.into()))
                };
                shard.append(header, body, || true).await.expect("room");
            }
            assert_eq!(numbers.len(), superblock.shards as usize);
            layout
        });
        assert!(disk.used_bytes_max() <= quota_bytes);
        layouts.push((layout.folder, layout.segment_bytes, layout.segments_max));
    }
    assert_eq!(layouts[0], layouts[1]);
}
