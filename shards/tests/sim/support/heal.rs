//! The second phase of a seed: the faults stop, and progress is required.
//!
//! Everything that is asked here succeeds, with the right bytes; what is written is cached and
//! found again after a crash; nothing is left waiting; the index is what the disk says.

use super::ops::{Clients, Op, is_immutable};
use super::workload::{self, Life};
use super::world::{SETTLE, World};
use forebay_io::sim::Crash;
use forebay_shards::backlog::BlockState;
use forebay_shards::messages::Outcome;
use forebay_shards::range::RangeSpec;
use std::rc::Rc;

/// Keys that are written in this phase only.
pub fn key_names() -> impl Iterator<Item = String> {
    [true, false]
        .into_iter()
        .map(|immutable| workload::key_name(immutable, workload::KEYS))
}

/// Ends all faults and requires progress, in the run of the program that met them and in others.
pub fn require_progress(life: &mut Life, mut world: World) {
    let clients = life.clients.clone();
    clients.machine.store.heal();
    clients.machine.disk.heal();
    life.note("heal".into());
    // A stalled operation may still run; copies that were not checked are checked again.
    life.settle(&mut world);
    world.check_rest();
    settle_model(life, &mut world);
    clients.errors_allowed.set(false);
    read_all(life, &mut world);
    write_and_hit(life, &mut world, key_names().collect());
    life.settle(&mut world);
    world.check_rest();
    world.stop();
    // A start without faults sees every record that is left. What is written after it outranks
    // them all, so the strict checks hold from here on, whatever the disk did before.
    let mut world = life.restart();
    clients.model.borrow_mut().end_lossy();
    let keys: Vec<String> = workload::key_names().collect();
    write_and_hit(life, &mut world, keys);
    life.settle(&mut world);
    world.check_rest();
    if !clients.model.borrow().is_lossy() {
        life.check_index(&world);
    }
    if life.dice.one_in(2) {
        world.stop();
    } else {
        clients.model.borrow_mut().kill();
        world.crash(Crash::Kill);
        life.note("kill".into());
    }
    let mut world = life.restart();
    read_all(life, &mut world);
    world.rest(SETTLE);
    world.check_rest();
    world.stop();
}

/// Nothing waits for its upload any more. What is in conflict is what somebody wrote; then it is
/// given up, and the store has the last word on every key.
fn settle_model(life: &mut Life, world: &mut World) {
    let clients = life.clients.clone();
    if !life.writes_back() {
        return clients.model.borrow_mut().settle();
    }
    for held in world.dirty_blocks() {
        let router = world.nodes[0].router.clone();
        let key = held.name.key.clone();
        let is_excused = held.state == BlockState::Conflict;
        assert!(is_excused, "held without a reason: {held:?}");
        let name = held.name.clone();
        let (exported, given_up) = world.run(async move {
            let exported = router.export(name.clone()).await;
            (exported, router.abandon(name).await)
        });
        let exported = exported.expect("readable").expect("held");
        let model = clients.model.borrow();
        let (etag, size) = (&exported.meta.etag, exported.meta.size);
        model.check_bytes(&key, etag, 0, size, &exported.payload);
        assert_eq!(given_up, Ok(()), "{key}");
        life.note(format!(
            "gave up {key}: {}",
            held.last_error.unwrap_or_default()
        ));
    }
    let mut model = clients.model.borrow_mut();
    model.clean();
    for key in workload::key_names().chain(key_names()) {
        let stored = clients.machine.store.etag(&key);
        model.settle_by(&key, stored.as_deref());
        let puts = clients.machine.store.puts_in_flight_max(&key);
        assert!(puts <= 1, "{key}: {puts} uploads at once");
    }
}

/// Reads every key, alone: it cannot fail. Reads of the checked volume give what the store has.
fn read_all(life: &mut Life, world: &mut World) {
    let clients = life.clients.clone();
    for key in workload::key_names() {
        let spec = RangeSpec::All;
        let get = Op::Get {
            key: key.clone(),
            spec,
        };
        life.perform(world, vec![get], false);
        let outcome = get_alone(&clients, world, &key);
        let stored = clients.machine.store.object(&key).is_some();
        if !is_immutable(&key) && outcome.is_some() != stored {
            let what = format!("read as {outcome:?} although the store has it: {stored}");
            clients.journal.accuse(&key, &what);
        }
    }
}

/// Writes something new to each key; it is cached, and read back as a hit.
fn write_and_hit(life: &mut Life, world: &mut World, keys: Vec<String>) {
    let clients = life.clients.clone();
    for key in keys {
        let put = life.new_put(key.clone());
        let one_block = match put {
            Op::Put { length, .. } => length <= clients.machine.geometry.block_bytes,
            _ => false,
        };
        life.perform(world, vec![put], false);
        let outcome = get_alone(&clients, world, &key);
        let hit = matches!(
            outcome,
            Some(Outcome::HitRam | Outcome::HitDisk | Outcome::HitDirty | Outcome::Revalidated)
        );
        // Inserts of larger objects are not promised: their blocks are cached one by one.
        if one_block && !hit {
            let what = format!("just written and without faults, but read as {outcome:?}");
            clients.journal.accuse(&key, &what);
        }
    }
}

fn get_alone(clients: &Rc<Clients>, world: &mut World, key: &str) -> Option<Outcome> {
    let (node, clients, key) = (world.nodes[0].clone(), clients.clone(), key.to_owned());
    world.run(async move { clients.get(&node, &key, Some(RangeSpec::All)).await.1 })
}
