//! Large records, of which the first bytes are given before the last are read.

use crate::support::client::{self, Answer, Arrival, Refusal};
use crate::support::ops::content;
use crate::support::world::{Geometry, Machine, SETTLE, World, home};
use bytes::Bytes;
use forebay_io::buffer::PAGE;
use forebay_io::runtime::{Runtime, timeout};
use forebay_io::sim::DiskOperation;
use forebay_io::sim::disk::{DiskChances, DiskFault};
use forebay_io::sim::store::{Fault, Verb};
use forebay_io::store::StoreErrorKind;
use forebay_shards::key::Volume;
use forebay_shards::messages::{BlockBody, Outcome, ReadError};
use forebay_shards::range::RangeSpec;
use forebay_shards::upload::WritebackSettings;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

const EIO: i32 = 5;

/// One block of four pieces, the last of them not whole.
const LENGTH: u64 = 250_000;
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;

/// A machine whose disk alone has the block, and how often the store was asked for it.
struct OnDisk {
    machine: Machine,
    volume: Arc<Volume>,
    world: World,
    asked: u64,
}

fn on_disk(seed: u64, cores: u32) -> OnDisk {
    let machine = Machine::new(Geometry {
        ram_bytes: 0,
        ..Geometry::LARGE
    });
    let volume = machine.immutable();
    machine.store.insert("k", content(1, LENGTH));
    let mut world = machine.start(seed, cores);
    get(&mut world, &volume).expect("fetched");
    world.rest(SETTLE);
    let asked = machine.store.requests(Verb::Get, "k");
    OnDisk {
        machine,
        volume,
        world,
        asked,
    }
}

impl OnDisk {
    fn get(&mut self) -> Result<Answer, Refusal> {
        get(&mut self.world, &self.volume)
    }

    /// GETs of the store since the block is on disk.
    fn asked(&self) -> u64 {
        self.machine.store.requests(Verb::Get, "k") - self.asked
    }
}

/// Flips a bit of the only record of `k`.
fn damage(machine: &Machine, piece: usize) {
    let start = piece * PIECE + 100;
    let sample = &whole()[start..start + 64];
    let disk = &machine.disk;
    let found = disk.names().into_iter().find_map(|name| {
        let bytes = disk.content(&name);
        let at = bytes.windows(64).position(|window| window == sample)?;
        Some((name, at))
    });
    let (name, at) = found.expect("it is on disk");
    disk.flip_bit(&name, at);
}

fn get(world: &mut World, volume: &Arc<Volume>) -> Result<Answer, Refusal> {
    let (node, volume) = (world.nodes[0].clone(), volume.clone());
    world.run(async move { client::read(&node, &volume, "k", Some(RangeSpec::All)).await })
}

fn whole() -> Bytes {
    content(1, LENGTH)
}

#[test]
fn the_first_piece_is_given_before_the_last_is_read() {
    for cores in [1, 2] {
        let mut on_disk = on_disk(3, cores);
        let (node, home) = (on_disk.world.nodes[0].clone(), home(&on_disk.volume, "k"));
        on_disk.world.run(async move {
            let opened = node.router.open(home, Some(RangeSpec::All)).await;
            let opened = opened.expect("it is on disk");
            assert_eq!(opened.outcome, Outcome::HitDisk);
            let Some(BlockBody::Reading { watch, range }) = opened.first else {
                panic!("it is read to its end first");
            };
            assert_eq!(range, 0..LENGTH as usize);
            assert!(watch.filled() >= PIECE, "something is given");
            assert!(watch.filled() < LENGTH as usize, "not all is");
            assert_eq!(watch.wait_for(range.end).await, Ok(range.end));
            assert!(watch.view_all()[..] == whole());
        });
        assert_eq!(on_disk.asked(), 0);
        on_disk.world.rest(SETTLE);
        on_disk.world.check_rest();
    }
}

/// Reads by `count` clients, each a random moment of the first millisecond after the first; on all cores.
fn get_together(on_disk: &mut OnDisk, count: usize) -> Vec<Result<Answer, Refusal>> {
    let (nodes, volume) = (on_disk.world.nodes.clone(), on_disk.volume.clone());
    let runtime = on_disk.world.runtime.clone();
    on_disk.world.run(async move {
        let reads = (0..count).map(|n| {
            let (node, volume) = (nodes[n % nodes.len()].clone(), volume.clone());
            let runtime = runtime.clone();
            async move {
                let pause = (n > 0).then(|| runtime.random() % 1000);
                runtime
                    .sleep(Duration::from_micros(pause.unwrap_or_default()))
                    .await;
                client::read(&node, &volume, "k", Some(RangeSpec::All)).await
            }
        });
        futures::future::join_all(reads).await
    })
}

fn counted(on_disk: &OnDisk, counter: &str) -> u64 {
    let nodes = on_disk.world.nodes.iter();
    nodes
        .map(|node| node.core.snapshot().counters[counter])
        .sum()
}

#[test]
fn a_record_that_many_want_at_a_time_is_read_once() {
    let mut shared = 0;
    for seed in 0..40 {
        let mut on_disk = on_disk(seed, 1 + seed as u32 % 2);
        let operations = on_disk.machine.disk.operations();
        on_disk.get().expect("no fault");
        let one = on_disk.machine.disk.operations() - operations;
        for answer in get_together(&mut on_disk, 30) {
            let answer = answer.expect("no fault");
            assert!(answer.bytes == whole());
            assert_eq!(answer.outcome, Outcome::HitDisk);
        }
        let all = on_disk.machine.disk.operations() - operations - one;
        let reads = counted(&on_disk, "records_read") - 1;
        assert_eq!(all, one * reads, "seed {seed}");
        assert_eq!(reads + counted(&on_disk, "shared_reads"), 30);
        shared += counted(&on_disk, "shared_reads");
        assert_eq!(on_disk.asked(), 0);
        on_disk.world.rest(SETTLE);
        on_disk.world.check_rest();
    }
    assert!(shared > 20 * 40, "{shared} of 1,160 followed another");
}

#[test]
fn damage_that_many_meet_is_found_once_and_made_good_once() {
    for piece in 0..PIECES {
        for seed in 0..10 {
            let mut on_disk = on_disk(seed, 1 + seed as u32 % 2);
            damage(&on_disk.machine, piece);
            for answer in get_together(&mut on_disk, 20) {
                assert!(answer.expect("the store has it").bytes == whole());
            }
            assert_eq!(on_disk.asked(), 1, "piece {piece}, seed {seed}");
            assert_eq!(counted(&on_disk, "damaged_records"), 1);
            on_disk.world.rest(SETTLE);
            on_disk.world.check_rest();
        }
    }
}

#[test]
fn a_reader_that_goes_away_leaves_the_others_their_read() {
    for seed in 0..60 {
        let mut on_disk = on_disk(seed, 1);
        let (node, volume) = (on_disk.world.nodes[0].clone(), on_disk.volume.clone());
        let runtime = on_disk.world.runtime.clone();
        let answers = on_disk.world.run(async move {
            let read = || client::read(&node, &volume, "k", Some(RangeSpec::All));
            let pause = Duration::from_micros(runtime.random() % 500);
            let gone = timeout(&runtime, pause, read());
            let (_, one, other) = futures::join!(gone, read(), read());
            [one, other]
        });
        for answer in answers {
            assert!(answer.expect("it is on disk").bytes == whole(), "{seed}");
        }
        assert_eq!(on_disk.asked(), 0);
        on_disk.world.rest(SETTLE);
        on_disk.world.check_rest();
    }
}

#[test]
fn what_there_was_no_memory_for_is_read_when_there_is() {
    let mut on_disk = on_disk(1, 1);
    let node = on_disk.world.nodes[0].clone();
    let mut held = Vec::new();
    while let Some(buffer) = node.pool.try_take(PAGE) {
        held.push(buffer);
    }
    for refused in get_together(&mut on_disk, 5) {
        let error = refused.map(|answer| answer.outcome);
        let is_overload = matches!(error, Err(Refusal::Error(ReadError::Overloaded)));
        assert!(is_overload, "{error:?}");
    }
    held.clear();
    let answer = on_disk.get().expect("there is memory");
    assert!(answer.bytes == whole());
    assert_eq!((answer.outcome, on_disk.asked()), (Outcome::HitDisk, 0));
}

#[test]
fn who_comes_after_an_overwrite_does_not_follow_what_was_there() {
    let mut overlaps = 0;
    for seed in 0..20 {
        let machine = Machine::new(Geometry {
            ram_bytes: 0,
            ..Geometry::LARGE
        });
        let volume = machine.checked();
        machine.store.insert("k", content(1, LENGTH));
        let mut world = machine.start(seed, 1);
        get(&mut world, &volume).expect("fetched");
        world.rest(SETTLE);
        let (node, runtime) = (world.nodes[0].clone(), world.runtime.clone());
        let (reads, last) = world.run(async move {
            let read = || client::read(&node, &volume, "k", Some(RangeSpec::All));
            let (is_over, mut reads) = (Cell::new(false), 0);
            // It is read all the time, so that a read is under way when the write is done.
            let reading = async {
                while !is_over.get() {
                    let bytes = read().await.expect("it is there").bytes;
                    assert!(bytes == whole() || bytes == content(2, LENGTH));
                    runtime.sleep(Duration::from_micros(20)).await;
                    reads += 1;
                }
            };
            let writing = async {
                runtime.sleep(Duration::from_millis(1)).await;
                let written = client::put(&node, &volume, "k", &content(2, LENGTH), false).await;
                written.expect("no fault");
                let last = read().await.expect("it was written");
                is_over.set(true);
                last
            };
            let (_, last) = futures::join!(reading, writing);
            (reads, last)
        });
        assert!(last.bytes == content(2, LENGTH), "seed {seed}");
        assert_ne!(last.outcome, Outcome::Miss, "seed {seed}: it is here");
        overlaps += u32::from(reads > 2);
        world.rest(SETTLE);
        world.check_rest();
    }
    assert!(overlaps > 10, "{overlaps}");
}

#[test]
fn damage_in_any_piece_is_made_good_by_the_store() {
    for piece in 0..PIECES {
        for cores in [1, 2] {
            let mut on_disk = on_disk(piece as u64, cores);
            damage(&on_disk.machine, piece);
            let answer = on_disk.get().expect("the store has it");
            assert!(answer.bytes == whole(), "piece {piece}");
            let expected = [Outcome::Miss, Outcome::HitDisk][piece.min(1)];
            assert_eq!(answer.outcome, expected);
            assert_eq!(on_disk.asked(), 1);
            let damaged = on_disk.world.nodes.iter();
            let damaged = damaged.map(|node| node.core.snapshot().counters["damaged_records"]);
            assert_eq!(damaged.sum::<u64>(), 1);
            on_disk.world.rest(SETTLE);
            on_disk.world.check_rest();
            let answer = on_disk.get().expect("it is whole again");
            assert!(answer.bytes == whole());
            assert_eq!((answer.outcome, on_disk.asked()), (Outcome::HitDisk, 1));
        }
    }
}

#[test]
fn damage_that_nobody_makes_good_cuts_the_answer_short() {
    for piece in 0..PIECES {
        let mut on_disk = on_disk(1, 1);
        damage(&on_disk.machine, piece);
        let fault = Fault::Fail(StoreErrorKind::Denied);
        on_disk.machine.store.script(Verb::Get, None, fault);
        match on_disk.get() {
            Err(Refusal::CutShort(answer)) => {
                assert!(piece > 0 && answer.bytes == whole()[..piece * PIECE]);
            }
            Err(Refusal::Error(_)) => assert_eq!(piece, 0),
            Ok(_) => panic!("nobody has piece {piece}"),
        }
    }
}

#[test]
fn an_error_of_the_disk_in_any_piece_is_made_good_by_the_store() {
    for piece in 0..PIECES as u32 {
        let mut on_disk = on_disk(1, 2);
        let disk = on_disk.machine.disk.clone();
        disk.fail_after(DiskOperation::Read, EIO, piece);
        let answer = on_disk.get().expect("the store has it");
        assert!(answer.bytes == whole(), "piece {piece}");
        assert_eq!(on_disk.asked(), 1, "piece {piece}");
        on_disk.world.rest(SETTLE);
        on_disk.world.check_rest();
    }
}

#[test]
fn a_disk_that_stops_answering_is_not_waited_for() {
    let (mut in_the_middle, mut at_once) = (0, 0);
    for seed in 0..60 {
        let mut on_disk = on_disk(seed, 1);
        let disk = &on_disk.machine.disk;
        disk.set_seed(seed);
        disk.set_stall_max(Duration::from_secs(600));
        disk.set_chances(DiskChances::default().with(DiskFault::Stall, 300), 1);
        let began = on_disk.world.runtime.now();
        let answer = on_disk.get().expect("the store has it");
        let took = on_disk.world.runtime.now().since(began);
        assert!(answer.bytes == whole(), "seed {seed}");
        assert!(took < Duration::from_secs(12), "seed {seed}: {took:?}");
        match (on_disk.asked(), answer.outcome) {
            (1, Outcome::HitDisk) => in_the_middle += 1,
            (1, _) => at_once += 1,
            _ => {}
        }
        on_disk.world.rest(Duration::from_secs(700));
        on_disk.world.check_rest();
    }
    assert!(
        in_the_middle > 0 && at_once > 0,
        "{in_the_middle} {at_once}"
    );
}

#[test]
fn what_is_read_often_enters_memory() {
    let machine = Machine::new(Geometry::LARGE);
    let volume = machine.immutable();
    machine.store.insert("k", content(1, LENGTH));
    let mut world = machine.start(1, 1);
    let mut outcomes = Vec::new();
    for _ in 0..6 {
        let answer = get(&mut world, &volume).expect("no fault");
        assert!(answer.bytes == whole());
        outcomes.push(answer.outcome);
        world.rest(SETTLE);
    }
    assert!(outcomes.contains(&Outcome::HitDisk), "{outcomes:?}");
    assert_eq!(outcomes.last(), Some(&Outcome::HitRam), "{outcomes:?}");
}

#[test]
fn half_of_a_block_that_is_here_alone_is_not_given() {
    let machine = Machine::new(Geometry {
        segments_max: 8,
        ram_bytes: 0,
        ..Geometry::LARGE
    });
    machine.writeback.set(WritebackSettings {
        enabled: true,
        delay: Duration::from_secs(3600),
        ..WritebackSettings::off()
    });
    let volume = machine.checked();
    let mut world = machine.start(1, 1);
    let (node, inside) = (world.nodes[0].clone(), volume.clone());
    let written = world.run(async move {
        let arrival = Arrival {
            end: LENGTH as usize,
            pause: Duration::ZERO,
        };
        client::put_block(&node, &inside, "k", &whole(), false, arrival).await
    });
    assert!(written.expect("acknowledged").is_dirty);
    let answer = get(&mut world, &volume).expect("it is here");
    assert_eq!(answer.outcome, Outcome::HitDirty);
    assert!(answer.bytes == whole());
    damage(&machine, PIECES - 1);
    let refused = get(&mut world, &volume).map(|answer| answer.outcome);
    assert!(
        matches!(refused, Err(Refusal::Error(ReadError::Unreadable(_)))),
        "{refused:?}"
    );
}
