//! When a copy is checked, and what happens when the store does not answer or has another version.

use crate::support::client::{self, Answer, Refusal};
use crate::support::ops::content;
use crate::support::world::{Geometry, Machine, TTL, World, home};
use forebay_io::runtime::Runtime;
use forebay_io::sim::store::{Fault, FaultChances, Verb};
use forebay_io::store::StoreErrorKind;
use forebay_shards::key::{Freshness, Volume};
use forebay_shards::messages::{BlockRequest, Outcome, ReadError};
use forebay_shards::range::RangeSpec;
use std::sync::Arc;
use std::time::Duration;

fn get(world: &mut World, volume: &Arc<Volume>) -> Result<Answer, Refusal> {
    get_range(world, volume, RangeSpec::All)
}

fn get_range(
    world: &mut World,
    volume: &Arc<Volume>,
    wanted: RangeSpec,
) -> Result<Answer, Refusal> {
    let (node, volume) = (world.nodes[0].clone(), volume.clone());
    world.run(async move { client::read(&node, &volume, "k", Some(wanted)).await })
}

fn cut_the_line(machine: &Machine) {
    machine.store.set_chances(
        FaultChances {
            unreachable: 1000,
            ..FaultChances::default()
        },
        1,
    );
}

#[test]
fn an_unchanged_copy_is_confirmed_and_a_changed_one_replaced() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.checked();
    machine.store.insert("k", content(1, 40_000));
    let mut world = machine.start(1, 2);
    assert_eq!(
        get(&mut world, &volume).expect("there").outcome,
        Outcome::Miss
    );
    let again = get(&mut world, &volume).expect("there").outcome;
    assert!(
        matches!(again, Outcome::HitRam | Outcome::HitDisk),
        "young: {again:?}"
    );
    world.rest(TTL);
    assert_eq!(
        get(&mut world, &volume).expect("there").outcome,
        Outcome::Revalidated
    );
    machine.store.insert("k", content(2, 30_000));
    world.rest(TTL);
    assert!(get(&mut world, &volume).expect("there").bytes == content(2, 30_000));
    machine.store.remove("k");
    world.rest(TTL);
    let gone = get(&mut world, &volume);
    assert!(
        matches!(gone, Err(Refusal::Error(ReadError::NotFound))),
        "{gone:?}"
    );
}

#[test]
fn a_later_block_that_is_gone_takes_the_first_with_it() {
    for (later, expected) in [(None, None), (Some(20_000), Some(20_000))] {
        let machine = Machine::new(Geometry::SMALL);
        let volume = machine.immutable();
        machine.store.insert("k", content(1, 40_000));
        let mut world = machine.start(1, 2);
        let first_block = RangeSpec::Between(0, 99);
        get_range(&mut world, &volume, first_block).expect("there");
        machine.store.remove("k");
        if let Some(length) = later {
            machine.store.insert("k", content(2, length));
        }
        // The copy of the first block is never checked, but it has no third block any more.
        for wanted in [RangeSpec::From(39_000), first_block] {
            let answer = get_range(&mut world, &volume, wanted);
            let seen = match &answer {
                Ok(answer) => Some(answer.meta.size),
                Err(Refusal::Error(ReadError::NotSatisfiable { size })) => Some(*size),
                Err(Refusal::Error(ReadError::NotFound)) => None,
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(seen, expected, "{wanted:?}: {answer:?}");
        }
    }
}

#[test]
fn a_copy_that_the_store_was_seen_to_have_replaced_is_not_found_again() {
    let machine = Machine::new(Geometry::SMALL);
    // Longer than all of this takes: nothing but the one check could find out.
    let volume = machine.volume(Freshness::RevalidateAfter(Duration::from_secs(60)));
    machine.store.insert("k", content(1, 40_000));
    let mut world = machine.start(1, 1);
    get(&mut world, &volume).expect("there");
    machine.store.insert("k", content(2, 40_000));
    world.rest(Duration::from_secs(61));
    // Only the object's description is asked for, since the first block is not wanted.
    let later_block = RangeSpec::From(39_000);
    let answer = get_range(&mut world, &volume, later_block).expect("there");
    assert!(answer.bytes == content(2, 40_000)[39_000..]);
    let home = home(&volume, "k").hash();
    assert_eq!(
        world.found(home),
        (None, false),
        "in the index, on the disk"
    );
}

#[test]
fn a_copy_stands_in_while_the_store_is_down_and_not_much_longer() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.checked();
    machine.store.insert("k", content(1, 10_000));
    let mut world = machine.start(1, 1);
    get(&mut world, &volume).expect("there");
    cut_the_line(&machine);
    world.rest(Duration::from_secs(5));
    assert!(get(&mut world, &volume).expect("stale").bytes == content(1, 10_000));
    machine.store.insert("k", content(2, 10_000));
    machine.store.heal();
    world.rest(Duration::from_secs(2));
    assert!(get(&mut world, &volume).expect("healed").bytes == content(2, 10_000));
}

#[test]
fn the_grace_of_an_unchecked_copy_is_short_even_soon_after_a_start() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.volume(Freshness::RevalidateAfter(Duration::from_secs(3)));
    machine.store.insert("k", content(1, 10_000));
    let mut world = machine.start(1, 1);
    get(&mut world, &volume).expect("there");
    world.stop();
    let mut world = machine.start(2, 1);
    // The record says when the store vouched for it: past that and the ttl it must be checked.
    world.rest(Duration::from_secs(4));
    machine.store.script(
        Verb::Get,
        Some("k"),
        Fault::Fail(StoreErrorKind::Unreachable),
    );
    assert!(get(&mut world, &volume).expect("stale").bytes == content(1, 10_000));
    machine.store.insert("k", content(2, 10_000));
    world.rest(Duration::from_secs(2));
    assert!(get(&mut world, &volume).expect("healed").bytes == content(2, 10_000));
}

#[test]
fn a_copy_that_was_checked_before_a_restart_is_fresh_after_it() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.volume(Freshness::RevalidateAfter(Duration::from_secs(3600)));
    machine.store.insert("k", content(1, 10_000));
    let mut world = machine.start(1, 1);
    get(&mut world, &volume).expect("there");
    world.stop();
    let mut world = machine.start(2, 1);
    let asked = machine.store.requests(Verb::Get, "k");
    assert_eq!(
        get(&mut world, &volume).expect("cached").outcome,
        Outcome::HitDisk
    );
    assert_eq!(
        machine.store.requests(Verb::Get, "k"),
        asked,
        "nothing was asked"
    );
}

#[test]
fn a_time_to_live_of_zero_checks_every_read_and_serves_it() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.volume(Freshness::RevalidateAfter(Duration::ZERO));
    machine.store.insert("k", content(1, 10_000));
    let mut world = machine.start(1, 1);
    get(&mut world, &volume).expect("there");
    for _ in 0..3 {
        world.rest(Duration::from_secs(1));
        let before = machine.store.requests(Verb::Get, "k");
        let answer = get(&mut world, &volume).expect("confirmed");
        assert_eq!(answer.outcome, Outcome::Revalidated);
        assert_eq!(
            machine.store.requests(Verb::Get, "k"),
            before + 1,
            "one check"
        );
    }
    world.rest(Duration::from_secs(5));
    cut_the_line(&machine);
    assert!(get(&mut world, &volume).expect("stale").bytes == content(1, 10_000));
}

#[test]
fn a_block_of_a_version_that_is_gone_is_refused() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.immutable();
    machine.store.insert("k", content(1, 40_000));
    let mut world = machine.start(1, 2);
    let (node, inside) = (world.nodes[0].clone(), volume.clone());
    let meta = world
        .run(async move { client::read(&node, &inside, "k", None).await })
        .expect("described")
        .meta;
    machine.store.insert("k", content(2, 40_000));
    let (node, inside) = (world.nodes[0].clone(), volume.clone());
    let request = BlockRequest {
        id: home(&inside, "k").sibling(1),
        meta,
        range: 0..100,
    };
    let answer = world.run(async move { node.router.read_block(request).await.map(drop) });
    assert!(matches!(answer, Err(ReadError::Changed)), "{answer:?}");
    // A reader over HTTP then forgets the object and starts over.
    assert!(get(&mut world, &volume).expect("the new one").bytes == content(2, 40_000));
}

/// A volume that believes the store's "no such object" for that long.
fn believing(machine: &Machine, absence_ttl: Duration) -> Arc<Volume> {
    Arc::new(Volume {
        absence_ttl,
        ..(*machine.checked()).clone()
    })
}

fn is_missing(answer: &Result<Answer, Refusal>) -> bool {
    matches!(answer, Err(Refusal::Error(ReadError::NotFound)))
}

#[test]
fn an_object_that_appears_is_seen_at_once_unless_the_volume_believes_its_absence() {
    for absence_ttl in [Duration::ZERO, Duration::from_secs(3)] {
        let machine = Machine::new(Geometry::SMALL);
        let volume = believing(&machine, absence_ttl);
        let mut world = machine.start(1, 2);
        assert!(is_missing(&get(&mut world, &volume)));
        let asked = || machine.store.requests(Verb::Get, "k");
        let before = asked();
        // Behind the cache's back.
        machine.store.insert("k", content(1, 40_000));
        let again = get(&mut world, &volume);
        match absence_ttl.is_zero() {
            true => assert!(again.expect("there").bytes == content(1, 40_000)),
            false => {
                assert!(is_missing(&again));
                assert_eq!(asked(), before, "the store was not asked");
                world.rest(absence_ttl);
                let seen = get(&mut world, &volume).expect("believed no longer");
                assert!(seen.bytes == content(1, 40_000));
            }
        }
    }
}

#[test]
fn what_is_written_here_ends_the_belief_that_it_is_absent() {
    for written_back in [false, true] {
        let machine = Machine::new(Geometry::SMALL);
        let volume = Arc::new(Volume {
            writeback: written_back,
            ..(*believing(&machine, Duration::from_secs(3600))).clone()
        });
        let mut world = machine.start(1, 2);
        assert!(is_missing(&get(&mut world, &volume)));
        let (node, face) = (world.nodes[0].clone(), volume.clone());
        world
            .run(async move {
                let bytes = content(2, 9_000);
                client::put(&node, &face, "k", &bytes, false).await
            })
            .expect("written");
        assert!(get(&mut world, &volume).expect("there").bytes == content(2, 9_000));
        let (node, face) = (world.nodes[0].clone(), volume.clone());
        world
            .run(async move { client::delete(&node, &face, "k").await })
            .expect("deleted");
        assert!(is_missing(&get(&mut world, &volume)));
    }
}

#[test]
fn a_write_of_which_the_answer_was_lost_ends_the_belief_too() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = Arc::new(Volume {
        writeback: false,
        ..(*believing(&machine, Duration::from_secs(3600))).clone()
    });
    let mut world = machine.start(1, 2);
    assert!(is_missing(&get(&mut world, &volume)));
    machine.store.script(Verb::Put, Some("k"), Fault::LostReply);
    let (node, face) = (world.nodes[0].clone(), volume.clone());
    let written = world.run(async move {
        let bytes = content(2, 9_000);
        client::put(&node, &face, "k", &bytes, false).await
    });
    assert!(written.is_err(), "nobody was told");
    assert!(get(&mut world, &volume).expect("there").bytes == content(2, 9_000));
}

#[test]
fn a_copy_is_as_old_as_the_question_however_long_the_answer_took() {
    let machine = Machine::new(Geometry::SMALL);
    let volume = machine.checked();
    machine.store.insert("k", content(1, 40_000));
    machine
        .store
        .script(Verb::Get, Some("k"), Fault::Delay(TTL));
    let mut world = machine.start(1, 2);
    assert_eq!(
        get(&mut world, &volume).expect("there").outcome,
        Outcome::Miss
    );
    machine.store.insert("k", content(2, 30_000));
    assert!(get(&mut world, &volume).expect("there").bytes == content(2, 30_000));
}

#[test]
fn a_reader_who_comes_late_to_a_slow_fetch_is_not_given_what_is_too_old() {
    for (after, version) in [(TTL / 2, 1), (TTL * 2, 2)] {
        let machine = Machine::new(Geometry::SMALL);
        let volume = machine.checked();
        machine.store.insert("k", content(1, 10_000));
        machine
            .store
            .script(Verb::Get, Some("k"), Fault::SlowBody(TTL * 3));
        let mut world = machine.start(1, 2);
        let (node, store) = (world.nodes[0].clone(), machine.store.clone());
        let (early, late) = world.run(async move {
            let read = || client::read(&node, &volume, "k", Some(RangeSpec::All));
            let late = async {
                node.runtime.sleep(after).await;
                store.insert("k", content(2, 10_000));
                read().await
            };
            futures::join!(read(), late)
        });
        assert!(early.expect("there").bytes == content(1, 10_000));
        let late = late.expect("there");
        assert!(late.bytes == content(version, 10_000), "after {after:?}");
    }
}
