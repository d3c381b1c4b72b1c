//! Writes, deletes and what must not come back after them.

use crate::support::client::{self, Refusal};
use crate::support::ops::content;
use crate::support::world::{Geometry, Machine, Node, SETTLE, World, home};
use bytes::Bytes;
use forebay_io::runtime::Runtime;
use forebay_io::sim::store::{Fault, Verb};
use forebay_io::sim::{Crash, DiskOperation};
use forebay_io::store::StoreErrorKind;
use forebay_shards::key::Volume;
use forebay_shards::messages::{Outcome, ReadError, WriteError};
use forebay_shards::range::RangeSpec;
use forebay_shards::upload::WritebackSettings;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const EIO: i32 = 5;

fn put(world: &mut World, volume: &Arc<Volume>, key: &'static str, bytes: &Bytes) {
    let (node, volume, bytes) = (world.nodes[0].clone(), volume.clone(), bytes.clone());
    world
        .run(async move { client::put(&node, &volume, key, &bytes, false).await })
        .expect("a put without faults");
}

fn delete(world: &mut World, volume: &Arc<Volume>, key: &'static str) {
    let (node, volume) = (world.nodes[0].clone(), volume.clone());
    world
        .run(async move { client::delete(&node, &volume, key).await })
        .expect("a delete without store faults");
}

/// The whole object as a reader gets it, and how; `None` if there is none.
fn get(world: &mut World, volume: &Arc<Volume>, key: &'static str) -> Option<(Vec<u8>, Outcome)> {
    let (node, volume) = (world.nodes[0].clone(), volume.clone());
    let wanted = Some(RangeSpec::All);
    match world.run(async move { client::read(&node, &volume, key, wanted).await }) {
        Ok(answer) => Some((answer.bytes, answer.outcome)),
        Err(Refusal::Error(ReadError::NotFound)) => None,
        Err(refusal) => panic!("{refusal:?}"),
    }
}

fn bytes_of(world: &mut World, volume: &Arc<Volume>, key: &'static str) -> Option<Vec<u8>> {
    get(world, volume, key).map(|(bytes, _)| bytes)
}

async fn started_put(node: Rc<Node>, volume: Arc<Volume>, key: &'static str, bytes: Bytes) {
    client::put(&node, &volume, key, &bytes, false)
        .await
        .expect("a put without faults");
}

/// Restarts as after kill -9.
fn crash(machine: &Machine, world: World, seed: u64) -> World {
    drop(world);
    machine.start(seed, 2)
}

#[test]
fn a_delete_outlives_a_crash_on_an_immutable_volume() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.immutable();
    let mut world = machine.start(1, 2);
    put(&mut world, &volume, "k", &content(1, 10_000));
    assert!(bytes_of(&mut world, &volume, "k").is_some());
    delete(&mut world, &volume, "k");
    let mut world = crash(&machine, world, 2);
    assert!(get(&mut world, &volume, "k").is_none());
}

#[test]
fn a_delete_of_a_block_that_could_not_be_read_outlives_a_restart() {
    let machine = Machine::new(Geometry {
        ram_bytes: 0,
        ..Geometry::SMALL
    });
    let volume = machine.immutable();
    let mut world = machine.start(1, 1);
    put(&mut world, &volume, "k", &content(1, 10_000));
    // The record leaves the index because of a passing fault, not the disk. Its refetch fails.
    machine.disk.fail_next(DiskOperation::Read, EIO, 1);
    machine
        .store
        .script(Verb::Get, Some("k"), Fault::Fail(StoreErrorKind::Internal));
    let (node, inside) = (world.nodes[0].clone(), volume.clone());
    let failed =
        world.run(async move { client::read(&node, &inside, "k", Some(RangeSpec::All)).await });
    assert!(
        failed.is_err(),
        "neither disk nor store gave it: {failed:?}"
    );
    delete(&mut world, &volume, "k");
    world.stop();
    let mut world = machine.start(2, 1);
    assert!(
        get(&mut world, &volume, "k").is_none(),
        "deleted stays deleted"
    );
}

#[test]
fn a_tombstone_that_meets_a_passing_fault_is_written_all_the_same() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.immutable();
    let mut world = machine.start(1, 1);
    put(&mut world, &volume, "k", &content(1, 10_000));
    machine.disk.fail_next(DiskOperation::Write, EIO, 1);
    delete(&mut world, &volume, "k");
    let mut world = crash(&machine, world, 2);
    assert!(
        get(&mut world, &volume, "k").is_none(),
        "deleted stays deleted"
    );
}

#[test]
fn an_overwrite_that_is_not_cached_still_buries_the_old_version() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.checked();
    let mut world = machine.start(1, 2);
    put(&mut world, &volume, "k", &content(1, 10_000));
    // A streamed object, of which the client's core crashed before it inserted a block.
    let (node, inside) = (world.nodes[0].clone(), volume.clone());
    let (sender, receiver) = forebay_io::queue::bounded(4);
    let bytes = content(2, 20_000);
    sender.try_send(Ok(bytes.clone())).expect("room");
    drop(sender);
    world
        .run(async move {
            let object = forebay_shards::messages::PutObject {
                id: home(&inside, "k"),
                headers: Vec::new(),
                late: futures::channel::oneshot::channel().1,
                length: 20_000,
                condition: forebay_shards::messages::WriteCondition::Always,
                source: forebay_shards::messages::PutSource::Stream(receiver),
            };
            node.router.put(object).await
        })
        .expect("a put without faults");
    let mut world = crash(&machine, world, 2);
    // The store does not answer, so whatever copy there is would stand in.
    machine.store.script(
        Verb::Get,
        Some("k"),
        Fault::Fail(StoreErrorKind::Unreachable),
    );
    let (node, inside) = (world.nodes[0].clone(), volume.clone());
    let answer =
        world.run(async move { client::read(&node, &inside, "k", Some(RangeSpec::All)).await });
    assert!(
        answer.is_err(),
        "the replaced version was served: {answer:?}"
    );
    assert!(bytes_of(&mut world, &volume, "k").as_deref() == Some(&bytes[..]));
}

#[test]
fn an_overwrite_whose_record_cannot_be_written_buries_the_old_version() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.checked();
    let mut world = machine.start(1, 1);
    put(&mut world, &volume, "k", &content(1, 10_000));
    machine.disk.fail_next(DiskOperation::Write, EIO, 1);
    put(&mut world, &volume, "k", &content(2, 10_000));
    let mut world = crash(&machine, world, 2);
    machine.store.script(
        Verb::Get,
        Some("k"),
        Fault::Fail(StoreErrorKind::Unreachable),
    );
    let (node, inside) = (world.nodes[0].clone(), volume.clone());
    let answer =
        world.run(async move { client::read(&node, &inside, "k", Some(RangeSpec::All)).await });
    assert!(
        answer.is_err(),
        "the replaced version was served: {answer:?}"
    );
}

#[test]
fn two_puts_of_one_key_leave_what_the_store_took_last() {
    for seed in 0..20 {
        let machine = Machine::new(Geometry::SMALL);
        let volume = machine.immutable();
        let mut world = machine.start(seed, 3);
        let nodes = world.nodes.clone();
        let inside = volume.clone();
        world.run(async move {
            let puts = (0..6_u64).map(|n| {
                let (node, volume) = (nodes[n as usize % 3].clone(), inside.clone());
                started_put(node, volume, "k", content(n, 3000 * (n + 1)))
            });
            futures::future::join_all(puts).await;
        });
        assert_eq!(
            machine.store.puts_in_flight_max("k"),
            1,
            "writers take turns"
        );
        let stored = machine.store.object("k").expect("written");
        assert!(bytes_of(&mut world, &volume, "k").as_deref() == Some(&stored[..]));
        let mut world = crash(&machine, world, seed + 1);
        assert!(bytes_of(&mut world, &volume, "k").as_deref() == Some(&stored[..]));
    }
}

#[test]
fn a_put_during_a_fill_keeps_the_old_bytes_out_of_the_cache() {
    for seed in 0..40 {
        let machine = Machine::new(Geometry::SMALL);
        let volume = machine.immutable();
        machine.store.insert("k", content(1, 12_000));
        let mut world = machine.start(seed, 2);
        let (reader, writer, runtime) = (
            world.nodes[0].clone(),
            world.nodes[1].clone(),
            world.runtime.clone(),
        );
        let inside = volume.clone();
        world.run(async move {
            let read = client::read(&reader, &inside, "k", Some(RangeSpec::All));
            let write = async {
                runtime
                    .sleep(Duration::from_micros(runtime.random() % 1200))
                    .await;
                started_put(writer.clone(), inside.clone(), "k", content(2, 12_000)).await;
            };
            let (answer, ()) = futures::join!(read, write);
            let bytes = answer.expect("no fault").bytes;
            assert!(bytes == content(1, 12_000) || bytes == content(2, 12_000));
        });
        assert!(bytes_of(&mut world, &volume, "k").as_deref() == Some(&content(2, 12_000)[..]));
        world.rest(SETTLE);
        let mut world = crash(&machine, world, seed + 100);
        assert!(bytes_of(&mut world, &volume, "k").as_deref() == Some(&content(2, 12_000)[..]));
    }
}

#[test]
fn after_an_unknown_outcome_the_store_decides() {
    for verb in [Verb::Put, Verb::Delete] {
        for fault in [Fault::LostReply, Fault::Fail(StoreErrorKind::Timeout)] {
            let machine = Machine::new(Geometry::SMALL);
            let volume = machine.immutable();
            let mut world = machine.start(1, 2);
            put(&mut world, &volume, "k", &content(1, 5000));
            machine.store.script(verb, Some("k"), fault);
            let (node, inside) = (world.nodes[1].clone(), volume.clone());
            let result = world.run(async move {
                match verb {
                    Verb::Put => {
                        let bytes = content(2, 5000);
                        client::put(&node, &inside, "k", &bytes, false)
                            .await
                            .map(drop)
                    }
                    _ => client::delete(&node, &inside, "k").await,
                }
            });
            assert!(
                matches!(result, Err(WriteError::Store(_))),
                "an unknown outcome is an error"
            );
            let mut world = crash(&machine, world, 2);
            let stored = machine.store.object("k").map(|bytes| bytes.to_vec());
            assert!(bytes_of(&mut world, &volume, "k") == stored);
        }
    }
}

#[test]
fn a_tombstone_of_a_slow_reader_does_not_take_a_newer_block_out() {
    // A fetch finds nothing and writes its tombstone while a put of the same key is cached.
    for seed in 0..300 {
        let machine = Machine::new(Geometry::SMALL);
        machine.wan.set_pause_us_max(30);
        let volume = machine.checked();
        let mut world = machine.start(seed, 2);
        put(&mut world, &volume, "k", &content(1, 5000));
        world.rest(Duration::from_secs(1));
        machine.store.remove("k");
        let (reader, writer, runtime) = (
            world.nodes[0].clone(),
            world.nodes[1].clone(),
            world.runtime.clone(),
        );
        let inside = volume.clone();
        world.run(async move {
            let read = client::read(&reader, &inside, "k", Some(RangeSpec::All));
            let write = async {
                runtime
                    .sleep(Duration::from_micros(runtime.random() % 60))
                    .await;
                started_put(writer.clone(), inside.clone(), "k", content(2, 5000)).await;
            };
            let _ = futures::join!(read, write);
        });
        world.rest(SETTLE);
        let shard = world.shard_of(&home(&volume, "k"));
        assert!(
            shard.find(home(&volume, "k").hash()).is_some(),
            "seed {seed}: the put is cached"
        );
    }
}

#[test]
fn a_crash_after_the_store_took_a_second_version_leaves_no_first_one() {
    for seed in 0..40 {
        let machine = Machine::new(Geometry::SMALL);
        let volume = machine.immutable();
        let mut world = machine.start(seed, 2);
        put(&mut world, &volume, "k", &content(1, 10_000));
        let (node, inside) = (world.nodes[0].clone(), volume.clone());
        world
            .runtime
            .spawn(started_put(node, inside, "k", content(2, 10_000)));
        while machine.store.object("k").as_deref() != Some(&content(2, 10_000)[..]) {
            assert!(world.executor.run_steps(1), "the put reaches the store");
        }
        let mut world = crash(&machine, world, seed + 100);
        let found = bytes_of(&mut world, &volume, "k");
        assert!(
            found.as_deref() == Some(&content(2, 10_000)[..]),
            "seed {seed}: the first version outlived the second"
        );
    }
}

/// A machine of one shard that acknowledges from disk.
fn writing_back(segments_max: u32) -> Machine {
    let machine = Machine::new(Geometry {
        shards: 1,
        segments_max,
        ..Geometry::SMALL
    });
    machine.writeback.set(WritebackSettings {
        enabled: true,
        ..WritebackSettings::off()
    });
    machine
}

#[test]
fn a_write_through_is_not_acknowledged_while_an_uploaded_copy_may_come_back() {
    // Found by seed 2010: the ledger was lost, and the copy was uploaded over what replaced it.
    let mut refused = 0;
    for failed_writes in 1..24 {
        let machine = writing_back(4);
        let volume = machine.checked();
        let mut world = machine.start(1, 1);
        put(&mut world, &volume, "k", &content(1, 5000));
        world.rest(SETTLE);
        assert_eq!(world.backlog().blocks, 0, "uploaded");
        machine
            .disk
            .fail_next(DiskOperation::Write, EIO, failed_writes);
        let larger = content(2, 40_000);
        let (node, inside, bytes) = (world.nodes[0].clone(), volume.clone(), larger.clone());
        let written =
            world.run(async move { client::put(&node, &inside, "k", &bytes, false).await });
        if written.is_err() {
            refused += 1;
            continue;
        }
        world.crash(Crash::Kill);
        machine.ledger.clear();
        let mut world = machine.start(2, 1);
        assert!(bytes_of(&mut world, &volume, "k").as_deref() == Some(&larger[..]));
        world.rest(SETTLE);
        assert_eq!(machine.store.object("k").as_deref(), Some(&larger[..]));
    }
    assert!((1..23).contains(&refused), "{refused} refused");
}

#[test]
fn what_a_failed_flush_was_to_cover_makes_room_for_itself() {
    // Found by seed 11012682: nobody else made any, and the record stayed where a power cut takes it.
    let machine = writing_back(3);
    machine.writeback.set(WritebackSettings {
        delay: Duration::from_secs(3600),
        ..machine.writeback.get()
    });
    let volume = machine.checked();
    let mut world = machine.start(1, 1);
    // Two segments hold clean blocks only.
    for (key, version) in [
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 4),
        ("e", 5),
        ("f", 6),
        ("g", 7),
    ] {
        for n in 0..4 {
            let key: &'static str = Box::leak(format!("{key}{n}").into_boxed_str());
            machine.store.insert(key, content(version, 16_000));
            get(&mut world, &volume, key);
        }
    }
    world.rest(Duration::from_secs(5));
    let (node, inside) = (world.nodes[0].clone(), volume.clone());
    let disk = machine.disk.clone();
    let bytes = content(9, 5000);
    let written = bytes.clone();
    world
        .run(async move {
            let written = client::put(&node, &inside, "k", &written, false).await;
            disk.fail_next(DiskOperation::Sync, EIO, 1);
            written
        })
        .expect("a put without faults");
    world.rest(SETTLE);
    let shard = world.nodes[0].shards.values().next().expect("one shard");
    let stats = shard.stats();
    let counts = (stats.flush_failures.get(), stats.dirty_moved.get());
    assert_eq!(counts, (1, 1), "flushes that failed, records moved");
    world.crash(Crash::PowerCut);
    let mut world = machine.start(2, 1);
    assert!(bytes_of(&mut world, &volume, "k").as_deref() == Some(&bytes[..]));
}
