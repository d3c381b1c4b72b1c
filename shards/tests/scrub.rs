//! The scrub over whole shards in the simulator: it finds what is damaged and nothing else, keeps
//! its pace, and disturbs nobody.

mod damage;

use damage::support::world::{Geometry, SimCore, SimShard, World};
use damage::{End, Folder};
use forebay_io::buffer::PAGE;
use forebay_io::runtime::Runtime;
use forebay_io::sim::{DiskOperation, SimDisk, SimRuntime};
use forebay_shards::scrub::{CYCLE_INTERVAL_MIN, Scrub, ScrubProgress};
use forebay_shards::segment::segment_name;
use std::rc::Rc;
use std::time::Duration;

const EIO: i32 = 5;

/// Slow enough that a cycle takes seconds of virtual time.
const RATE: u64 = 4_000;

/// The largest record's payload.
const PAYLOAD_MAX: u64 = 9_000;

const SMALL: Geometry = Geometry {
    shards: 1,
    segments_max: 4,
    segment_bytes: 64 << 10,
    block_bytes: 16 << 10,
    pool_bytes: 2 << 20,
    ram_bytes: 0,
};

type SimScrub = Rc<Scrub<SimRuntime, SimDisk>>;

fn started(folder: &Folder) -> (World, Rc<SimShard>, SimScrub) {
    let world = folder.machine.start(5, 1);
    let shard = world.nodes[0].shards[&0].clone();
    let scrub = Scrub::new(world.runtime.clone(), shard.clone(), RATE);
    (world, shard, Rc::new(scrub))
}

/// Lets the core scrub in the background, as the server does.
fn set_going(world: &World) -> Rc<SimCore> {
    let core = world.nodes[0].core.clone();
    world.runtime.spawn(core.clone().scrub(RATE));
    core
}

/// Bytes of all live payloads, and how many there are.
fn live(shard: &SimShard) -> (u64, u64) {
    let blocks = shard.blocks();
    let bytes = blocks
        .iter()
        .map(|(_, location)| u64::from(location.payload_length));
    (bytes.sum(), blocks.len() as u64)
}

#[test]
fn an_intact_shard_is_read_once_a_cycle_at_the_pace_given() {
    let folder = Folder::make(SMALL, End::Stop);
    let (mut world, shard, scrub) = started(&folder);
    let (bytes, records) = live(&shard);
    assert!(records >= 5);
    assert_eq!(scrub.progress(), ScrubProgress::default());
    let core = set_going(&world);
    let step = Duration::from_millis(250);
    let mut waited = Duration::ZERO;
    while core.scrub_progress().bytes < bytes {
        world.rest(step);
        waited += step;
        let most = RATE as f64 * waited.as_secs_f64() + PAYLOAD_MAX as f64;
        assert!(
            core.scrub_progress().bytes as f64 <= most,
            "after {waited:?}"
        );
        assert!(
            waited < Duration::from_secs(bytes / RATE + 2),
            "slower than it may be: {:?}",
            core.scrub_progress()
        );
    }
    world.rest(Duration::from_secs(10));
    let once = ScrubProgress {
        cycle: 1,
        records_done: records,
        records_total: records,
        bytes,
        ..ScrubProgress::default()
    };
    assert_eq!(core.scrub_progress(), once);
    world.rest(CYCLE_INTERVAL_MIN);
    let progress = core.scrub_progress();
    assert_eq!((progress.cycle, progress.bytes), (2, 2 * bytes));
    assert_eq!(shard.len() as u64, records, "nothing was dropped");
}

#[test]
fn a_damaged_record_is_found_dropped_and_fetched_again() {
    let folder = Folder::make(SMALL, End::Crash);
    let (mut world, shard, scrub) = started(&folder);
    let (_, records) = live(&shard);
    let (_, location) = shard.blocks()[0];
    let offset = (location.page as usize + 1) * PAGE + location.payload_length as usize - 1;
    let name = segment_name(0, location.segment);
    folder.machine.disk.flip_bit(&name, offset);
    let inside = scrub.clone();
    world.run(async move { inside.cycle().await });
    assert_eq!(scrub.progress().damaged, 1);
    assert_eq!(scrub.progress().unreadable, 0);
    assert_eq!(scrub.progress().records_done, records);
    assert_eq!(shard.len() as u64, records - 1);
    for (volume, key, expected) in &folder.expected {
        assert!(damage::read(&mut world, volume, key) == *expected, "{key}");
    }
    assert_eq!(shard.len() as u64, records, "cached again");
}

#[test]
fn a_record_that_cannot_be_read_is_told_apart_and_the_rest_is_read() {
    let folder = Folder::make(SMALL, End::Stop);
    let (mut world, shard, scrub) = started(&folder);
    let (_, records) = live(&shard);
    folder.machine.disk.fail_next(DiskOperation::Read, EIO, 1);
    let inside = scrub.clone();
    world.run(async move { inside.cycle().await });
    let progress = scrub.progress();
    assert_eq!((progress.damaged, progress.unreadable), (0, 1));
    assert_eq!(progress.records_done, records);
}

#[test]
fn blocks_that_change_during_a_cycle_are_no_damage() {
    let folder = Folder::make(SMALL, End::Stop);
    let (mut world, shard, _) = started(&folder);
    let (_, records) = live(&shard);
    let core = set_going(&world);
    // In the middle of the cycle everything is written and deleted again, several times.
    for _ in 0..6 {
        world.rest(Duration::from_millis(900));
        folder.write_again(&mut world);
    }
    world.rest(Duration::from_secs(60));
    let progress = core.scrub_progress();
    assert_eq!(progress.records_done, records, "the cycle ended");
    assert_eq!((progress.damaged, progress.unreadable), (0, 0));
    for (volume, key, expected) in &folder.expected {
        assert!(damage::read(&mut world, volume, key) == *expected, "{key}");
    }
}
