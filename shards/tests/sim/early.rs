//! Bodies that go to disk while they arrive, and those that never arrive as a whole.

use crate::support::client::{self, Arrival};
use crate::support::ops::content;
use crate::support::world::{Geometry, Machine, SETTLE, World};
use bytes::Bytes;
use forebay_io::buffer::PAGE;
use forebay_io::sim::{Crash, DiskOperation};
use forebay_shards::key::Volume;
use forebay_shards::messages::{Outcome, WriteError, Written};
use forebay_shards::range::RangeSpec;
use forebay_shards::upload::WritebackSettings;
use std::sync::Arc;
use std::time::Duration;

const EIO: i32 = 5;

const BODY_BYTES: usize = 3 * PAGE + 100;

fn machine(delay: Duration) -> Machine {
    let machine = Machine::new(Geometry {
        segments_max: 8,
        ..Geometry::SMALL
    });
    machine.writeback.set(WritebackSettings {
        enabled: true,
        delay,
        piece_bytes: PAGE,
        ..WritebackSettings::off()
    });
    machine
}

fn put(
    world: &mut World,
    volume: &Arc<Volume>,
    bytes: &Bytes,
    end: usize,
    pause: Duration,
) -> Result<Written, WriteError> {
    let (node, volume, bytes) = (world.nodes[0].clone(), volume.clone(), bytes.clone());
    let arrival = Arrival { end, pause };
    world.run(async move { client::put_block(&node, &volume, "k", &bytes, false, arrival).await })
}

fn read(world: &mut World, volume: &Arc<Volume>) -> Option<(Vec<u8>, Outcome)> {
    let (node, volume) = (world.nodes[0].clone(), volume.clone());
    let wanted = Some(RangeSpec::All);
    let answer = world.run(async move { client::read(&node, &volume, "k", wanted).await });
    answer.ok().map(|answer| (answer.bytes, answer.outcome))
}

fn early(world: &World) -> u64 {
    let shards = world.nodes.iter().flat_map(|node| node.shards.values());
    shards
        .map(|shard| shard.stats().writebacks_early.get())
        .sum()
}

#[test]
fn a_body_that_arrives_quickly_is_written_early_and_survives_a_kill() {
    let machine = machine(Duration::from_secs(3600));
    let volume = machine.checked();
    let mut world = machine.start(1, 2);
    let bytes = content(1, BODY_BYTES as u64);
    let pause = Duration::from_micros(300);
    let written = put(&mut world, &volume, &bytes, BODY_BYTES, pause);
    assert!(written.expect("acknowledged").is_dirty);
    assert_eq!(early(&world), 1);
    drop(world);
    machine.disk.crash(Crash::Kill);
    let mut world = machine.start(2, 3);
    let (found, outcome) = read(&mut world, &volume).expect("acknowledged");
    assert!(found == bytes[..]);
    assert_ne!(outcome, Outcome::Miss);
}

#[test]
fn a_slow_body_is_written_when_it_is_complete() {
    for pause_ms in [1100, 4000] {
        let machine = machine(Duration::from_secs(3600));
        let volume = machine.checked();
        let mut world = machine.start(1, 2);
        let bytes = content(1, BODY_BYTES as u64);
        let pause = Duration::from_millis(pause_ms);
        let written = put(&mut world, &volume, &bytes, BODY_BYTES, pause);
        assert!(written.expect("acknowledged").is_dirty);
        assert_eq!(early(&world), 0);
        let (found, outcome) = read(&mut world, &volume).expect("acknowledged");
        assert!(found == bytes[..] && outcome != Outcome::Miss);
    }
}

#[test]
fn a_body_that_breaks_off_leaves_what_was_there() {
    for end in [0, 1, PAGE, 2 * PAGE + 1, BODY_BYTES - 1] {
        let machine = machine(Duration::ZERO);
        let volume = machine.checked();
        let mut world = machine.start(1, 2);
        let (former, broken) = (content(1, 5000), content(2, BODY_BYTES as u64));
        let pause = Duration::from_micros(300);
        put(&mut world, &volume, &former, 5000, pause).expect("acknowledged");
        let result = put(&mut world, &volume, &broken, end, pause);
        assert!(matches!(result, Err(WriteError::Incomplete)), "{result:?}");
        assert!(read(&mut world, &volume).expect("acknowledged").0 == former[..]);
        world.rest(SETTLE);
        assert_eq!(machine.store.object("k").as_deref(), Some(&former[..]));
        drop(world);
        machine.disk.crash(Crash::Kill);
        let mut world = machine.start(2, 1);
        assert!(read(&mut world, &volume).expect("acknowledged").0 == former[..]);
    }
}

#[test]
fn a_failed_piece_costs_nothing_but_its_place() {
    let machine = machine(Duration::from_secs(3600));
    let volume = machine.checked();
    let mut world = machine.start(1, 1);
    let bytes = content(1, BODY_BYTES as u64);
    // The first write after the segment was opened is a piece.
    let warm = put(&mut world, &volume, &content(3, 100), 100, Duration::ZERO);
    warm.expect("acknowledged");
    machine.disk.fail_next(DiskOperation::Write, EIO, 1);
    let written = put(
        &mut world,
        &volume,
        &bytes,
        BODY_BYTES,
        Duration::from_millis(1),
    );
    assert!(written.expect("acknowledged").is_dirty);
    let (found, _) = read(&mut world, &volume).expect("acknowledged");
    assert!(found == bytes[..]);
}
