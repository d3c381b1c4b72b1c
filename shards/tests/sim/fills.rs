//! Misses: fetched once, never half, never in the way of each other.

use crate::support::client::{self, Answer, Refusal};
use crate::support::ops::content;
use crate::support::world::{Geometry, Machine, SETTLE, World, home};
use forebay_io::buffer::PAGE;
use forebay_io::runtime::Runtime;
use forebay_io::sim::DiskOperation;
use forebay_io::sim::store::{Fault, Verb};
use forebay_io::store::StoreErrorKind;
use forebay_shards::key::Volume;
use forebay_shards::messages::{Outcome, ReadError};
use forebay_shards::range::RangeSpec;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn get(world: &mut World, volume: &Arc<Volume>, key: &'static str) -> Result<Answer, Refusal> {
    let (node, volume) = (world.nodes[0].clone(), volume.clone());
    world.run(async move { client::read(&node, &volume, key, Some(RangeSpec::All)).await })
}

#[test]
fn a_storm_of_readers_fetches_each_block_once() {
    for seed in 0..20 {
        let machine = Machine::new(Geometry::SMALL);
        let volume = machine.checked();
        machine.store.insert("k", content(1, 60_000));
        let mut world = machine.start(seed, 4);
        let (nodes, inside, runtime) = (world.nodes.clone(), volume.clone(), world.runtime.clone());
        world.run(async move {
            let reads = (0..40_usize).map(|n| {
                let (node, volume, runtime) =
                    (nodes[n % 4].clone(), inside.clone(), runtime.clone());
                async move {
                    runtime
                        .sleep(Duration::from_micros(runtime.random() % 2000))
                        .await;
                    client::read(&node, &volume, "k", Some(RangeSpec::All)).await
                }
            });
            for answer in futures::future::join_all(reads).await {
                assert!(answer.expect("no fault").bytes == content(1, 60_000));
            }
        });
        let gets = machine.wan.gets_of_key("k");
        assert_eq!(gets.len(), 4, "blocks");
        assert!(
            gets.values().all(|count| *count == 1),
            "seed {seed}: {gets:?}"
        );
        world.rest(SETTLE);
        world.check_rest();
    }
}

#[test]
fn a_failed_fill_is_an_error_and_leaves_nothing() {
    let faults = [
        Fault::Short(700),
        Fault::Long(1),
        Fault::Cut(9000),
        Fault::Cut(0),
        Fault::Fail(StoreErrorKind::Internal),
        Fault::SlowDown(Duration::from_secs(1)),
    ];
    for fault in faults {
        let machine = Machine::new(Geometry::SMALL);
        let volume = machine.immutable();
        machine.store.insert("k", content(1, 10_000));
        let mut world = machine.start(1, 2);
        machine.store.script(Verb::Get, Some("k"), fault.clone());
        match get(&mut world, &volume, "k") {
            Err(Refusal::CutShort(answer)) => {
                assert!(answer.bytes.len() < 10_000);
                assert!(content(1, 10_000).starts_with(&answer.bytes));
            }
            Err(Refusal::Error(ReadError::Store(_))) => {}
            // All that was announced is right; only what follows it is not.
            Ok(answer) if matches!(fault, Fault::Long(_)) => {
                assert!(answer.bytes == content(1, 10_000));
            }
            other => panic!("{fault:?}: {other:?}"),
        }
        world.rest(SETTLE);
        world.check_rest();
        let id = home(&volume, "k");
        assert!(
            world.shard_of(&id).find(id.hash()).is_none(),
            "{fault:?} was cached"
        );
        assert!(get(&mut world, &volume, "k").expect("healed").bytes == content(1, 10_000));
    }
}

#[test]
fn an_empty_object_that_is_replaced_while_it_is_looked_at_is_read_all_the_same() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.checked();
    machine.store.insert("k", content(1, 0));
    machine.store.script(
        Verb::Head,
        Some("k"),
        Fault::Delay(Duration::from_millis(50)),
    );
    let mut world = machine.start(1, 1);
    let (runtime, store) = (world.runtime.clone(), machine.store.clone());
    world.runtime.spawn(async move {
        runtime.sleep(Duration::from_millis(20)).await;
        store.insert("k", content(2, 9000));
    });
    assert!(get(&mut world, &volume, "k").expect("no fault").bytes == content(2, 9000));
}

#[test]
fn a_full_or_failing_disk_is_read_through_and_heals() {
    for operation in [
        DiskOperation::Write,
        DiskOperation::Create,
        DiskOperation::Sync,
    ] {
        for errno in [EIO, ENOSPC] {
            let machine = Machine::new(Geometry::SMALL);
            let volume = machine.immutable();
            machine.store.insert("k", content(1, 50_000));
            let mut world = machine.start(1, 2);
            machine.disk.fail_next(operation, errno, u32::MAX);
            for _ in 0..3 {
                let answer = get(&mut world, &volume, "k").expect("read through");
                assert!(answer.bytes == content(1, 50_000));
                world.rest(SETTLE);
            }
            machine.disk.heal();
            machine.store.insert("l", content(2, 50_000));
            assert!(get(&mut world, &volume, "l").expect("healed").bytes == content(2, 50_000));
            world.rest(SETTLE);
            world.check_rest();
            for number in 0..4 {
                let id = home(&volume, "l").sibling(number);
                let found = world.shard_of(&id).find(id.hash());
                assert!(
                    found.is_some(),
                    "{operation:?} {errno}: block {number} is cached again"
                );
            }
        }
    }
}

#[test]
fn a_file_system_without_room_is_read_through_and_heals() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.immutable();
    machine.disk.set_capacity(1000);
    machine.store.insert("k", content(1, 50_000));
    let mut world = machine.start(1, 1);
    assert!(get(&mut world, &volume, "k").expect("read through").bytes == content(1, 50_000));
    world.rest(SETTLE);
    assert_eq!(machine.disk.used_bytes(), 0);
    machine.disk.set_capacity(u64::MAX);
    machine.store.insert("l", content(2, 10_000));
    assert!(get(&mut world, &volume, "l").expect("healed").bytes == content(2, 10_000));
    world.rest(SETTLE);
    let id = home(&volume, "l");
    assert!(world.shard_of(&id).find(id.hash()).is_some());
}

#[test]
fn who_waits_for_memory_does_not_wait_for_the_disk() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.immutable();
    machine.store.insert("k", content(1, 50_000));
    let mut world = machine.start(1, 1);
    get(&mut world, &volume, "k").expect("fetched");
    world.rest(SETTLE);
    let asked = machine.store.requests(Verb::Get, "k");
    let node = world.nodes[0].clone();
    let mut held = Vec::new();
    while let Some(buffer) = node.pool.try_take(PAGE) {
        held.push(buffer);
    }
    let refused = get(&mut world, &volume, "k").expect_err("there is no memory for it");
    let Refusal::Error(error) = refused else {
        panic!("{refused:?}");
    };
    assert!(matches!(error, ReadError::Overloaded), "{error:?}");
    let snapshot = node.core.snapshot();
    assert_eq!(snapshot.counters["overloads"], 1);
    assert_eq!(snapshot.disk_overdue, 0, "the disk was not asked");
    drop(held);
    let answer = get(&mut world, &volume, "k").expect("there is memory again");
    assert_eq!(
        answer.outcome,
        Outcome::HitDisk,
        "the disk is none the worse"
    );
    assert_eq!(
        machine.store.requests(Verb::Get, "k"),
        asked,
        "and no stand-in was asked"
    );
}

/// Many objects through few buffers and few segments, from all sides at once.
fn crowd(geometry: Geometry, seed: u64) {
    let machine = Machine::new(geometry);
    machine.wan.set_pause_us_max(50);
    let volume = machine.immutable();
    let names: Vec<Rc<str>> = (0..30).map(|n| format!("k{n}").into()).collect();
    let length = geometry.block_bytes;
    for (n, name) in names.iter().enumerate() {
        machine.store.insert(name, content(n as u64, length));
    }
    let mut world = machine.start(seed, 2);
    for _ in 0..3 {
        let (nodes, inside, names) = (world.nodes.clone(), volume.clone(), names.clone());
        world.run(async move {
            let reads = (0..90_usize).map(|n| {
                let (node, volume) = (nodes[n % 2].clone(), inside.clone());
                let (name, number) = (names[n * 7 % 30].clone(), n * 7 % 30);
                async move {
                    match client::read(&node, &volume, &name, Some(RangeSpec::All)).await {
                        Ok(answer) => assert!(answer.bytes == content(number as u64, length)),
                        Err(Refusal::Error(ReadError::Overloaded)) => {}
                        Err(refusal) => panic!("{refusal:?}"),
                    }
                }
            });
            futures::future::join_all(reads).await;
        });
        world.rest(SETTLE);
        world.check_rest();
        for node in &world.nodes {
            let counters = node.core.snapshot().counters;
            assert_eq!(
                counters["damaged_records"], 0,
                "seed {seed}: a reused segment was read"
            );
        }
    }
}

#[test]
fn few_buffers_do_not_lock_readers_and_writers_up() {
    let block = Geometry::SMALL.block_bytes as usize;
    for seed in 0..10 {
        for spare in [0, 4096, 12_288] {
            crowd(
                Geometry {
                    shards: 1,
                    segments_max: 2,
                    segment_bytes: 128 << 10,
                    ram_bytes: 2 * block,
                    pool_bytes: 6 * (block + 4096) + spare,
                    ..Geometry::SMALL
                },
                seed,
            );
        }
    }
}

#[test]
fn a_segment_is_reused_only_when_the_index_has_left_it() {
    for seed in 0..30 {
        crowd(
            Geometry {
                shards: 1,
                segments_max: 1 + (seed % 2) as u32,
                segment_bytes: 128 << 10,
                ram_bytes: 0,
                ..Geometry::SMALL
            },
            seed,
        );
    }
}
