//! Every workload of at most three operations, ended at every disk operation in every way.
//!
//! A workload runs once; at each moment of each disk operation that changes anything (asked for,
//! under way, done) and after each answer the folder, the store and the model are forked. Each fork dies, by a kill and by a power cut, once
//! for each way in which the crash may leave what is undecided; then it starts again, everything
//! is read and held against the model, and the index against the folder.
//!
//! What is undecided is taken in units of a page of a write, as one unit has no neighbour that
//! would be torn with it; [`samples`] of single sectors come on top. Up to [`ALL_SUBSETS_UNITS_MAX`]
//! units every subset is tried; beyond that none, all, each alone, all but each, every prefix and
//! every suffix. `FOREBAY_SIM_COMPLETE=1` raises the bounds; without it every workload is of at
//! most two operations, and a seeded choice of those of three.

use crate::support::client;
use crate::support::journal::Journal;
use crate::support::model::Model;
use crate::support::ops::{Clients, Op};
use crate::support::world::{Geometry, Machine, World, home};
use forebay_io::runtime::Runtime;
use forebay_io::sim::disk::Undecided;
use forebay_io::sim::random::Dice;
use forebay_io::sim::{Crash, DiskOperation, SimDisk};
use forebay_shards::key::BlockId;
use forebay_shards::range::RangeSpec;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// One shard of two segments, each of which holds two or three records.
const TINY: Geometry = Geometry {
    shards: 1,
    segments_max: 2,
    segment_bytes: 32 << 10,
    block_bytes: 4 << 10,
    pool_bytes: 1 << 20,
    ram_bytes: 32 << 10,
};

/// Undecided units of which every subset is tried.
const ALL_SUBSETS_UNITS_MAX: usize = 3;

/// As [`ALL_SUBSETS_UNITS_MAX`], in a complete run.
const ALL_SUBSETS_UNITS_COMPLETE_MAX: usize = 6;

/// Ways of tearing single sectors that are tried at each crash.
const SAMPLES: u64 = 1;

/// As [`SAMPLES`], in a complete run.
const SAMPLES_COMPLETE: u64 = 6;

/// Of the workloads of three operations, so many are chosen when not all are run.
const TRIPLES: usize = 24;

/// Bytes of each object: a header page and one page of payload.
const OBJECT_BYTES: u64 = 3000;

/// What a workload is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Writes a key for the first time.
    PutNew,
    /// Writes a key that has a value.
    Overwrite,
    /// Deletes a key that has a value.
    Delete,
    /// Reads a key that only the store has.
    Fill,
    /// Writes other keys until a segment is reclaimed.
    Rotate,
    /// Stops and starts again.
    Restart,
    /// Deletes a key so many microseconds after a rotation has begun; not among [`STEPS`].
    DeleteDuringRotation(u64),
}

const STEPS: [Step; 6] = [
    Step::PutNew,
    Step::Overwrite,
    Step::Delete,
    Step::Fill,
    Step::Rotate,
    Step::Restart,
];

/// Keys of the immutable volume, whose copies nobody checks: what is wrong with them shows.
const KEY: &str = "i0";
const NEW: &str = "i1";
const STORED: &str = "i2";
const OTHERS: [&str; 4] = ["i3", "i4", "i5", "i6"];

/// A place to crash at.
struct CrashPoint {
    place: String,
    disk: SimDisk,
    model: Model,
    machine: Machine,
}

struct Bounds {
    all_subsets_units_max: usize,
    samples: u64,
}

fn is_complete() -> bool {
    std::env::var("FOREBAY_SIM_COMPLETE").is_ok_and(|value| value == "1")
}

/// All workloads of one and two operations, and all or some of three.
fn workloads(complete: bool) -> Vec<Vec<Step>> {
    let extend = |shorter: &[Vec<Step>]| -> Vec<Vec<Step>> {
        let longer = |workload: &Vec<Step>| STEPS.map(|step| [&workload[..], &[step]].concat());
        shorter.iter().flat_map(longer).collect()
    };
    let ones = STEPS.map(|step| vec![step]).to_vec();
    let twos = extend(&ones);
    let mut threes = extend(&twos);
    if !complete {
        let mut dice = Dice::new(1);
        for at in 0..TRIPLES {
            let chosen = at + dice.below((threes.len() - at) as u64) as usize;
            threes.swap(at, chosen);
        }
        threes.truncate(TRIPLES);
    }
    [ones, twos, threes].concat()
}

fn put(key: &str, version: u64) -> Op {
    Op::Put {
        key: key.into(),
        version,
        length: OBJECT_BYTES,
    }
}

/// The requests of one step; versions tell them apart.
fn ops_of(step: Step, at: u64) -> Vec<Op> {
    let version = 100 * (at + 1);
    match step {
        Step::PutNew => vec![put(NEW, version)],
        Step::Overwrite => vec![put(KEY, version)],
        Step::Delete => vec![Op::Delete { key: KEY.into() }],
        Step::Fill => vec![Op::Get {
            key: STORED.into(),
            spec: RangeSpec::All,
        }],
        Step::Rotate => (0..)
            .zip(OTHERS)
            .map(|(n, key)| put(key, version + n))
            .collect(),
        Step::DeleteDuringRotation(_) | Step::Restart => Vec::new(),
    }
}

/// Rotates, and deletes a key meanwhile.
fn delete_during_rotation(world: &mut World, clients: &Rc<Clients>, at: u64, pause_us: u64) {
    let (node, runtime) = (world.nodes[0].clone(), world.runtime.clone());
    let clients = clients.clone();
    world.run(async move {
        let rotate = async {
            for op in ops_of(Step::Rotate, at) {
                clients.carry_out(&node, op, &runtime).await;
            }
        };
        let delete = async {
            runtime.sleep(Duration::from_micros(pause_us)).await;
            for op in ops_of(Step::Delete, at) {
                clients.carry_out(&node, op, &runtime).await;
            }
        };
        futures::join!(rotate, delete);
    });
}

fn run_ops(world: &mut World, clients: &Rc<Clients>, ops: Vec<Op>) {
    for op in ops {
        let (node, clients) = (world.nodes[0].clone(), clients.clone());
        let runtime = world.runtime.clone();
        world.run(async move { clients.carry_out(&node, op, &runtime).await });
    }
}

/// Runs a workload once and gives every place to crash at.
fn crash_points(workload: &[Step], journal: &Rc<Journal>) -> Vec<CrashPoint> {
    let machine = Machine::new(TINY);
    machine.wan.set_pause_us_max(10);
    let clients = Rc::new(Clients::new(machine, journal.clone()));
    let points: Rc<RefCell<Vec<CrashPoint>>> = Rc::default();
    let mut world = clients.machine.start(1, 1);
    // The key that is overwritten and deleted is there and in its segment.
    run_ops(&mut world, &clients, vec![put(KEY, 1)]);
    let stored = Op::ExternalPut {
        key: STORED.into(),
        version: 2,
        length: OBJECT_BYTES,
    };
    run_ops(&mut world, &clients, vec![stored]);
    clients.model.borrow_mut().settle();
    let (watched, seen) = (clients.clone(), points.clone());
    let see = Rc::new(move |place: String| {
        let disk = watched.machine.disk.fork();
        let machine = watched.machine.with(disk.clone());
        let model = watched.model.borrow().clone();
        seen.borrow_mut().push(CrashPoint {
            place,
            disk,
            model,
            machine,
        });
    });
    let see_inside = see.clone();
    clients.machine.disk.observe(move |operation, moment| {
        // What a read leaves was left by what came before it.
        if operation != DiskOperation::Read {
            see_inside(format!("{operation:?} {moment:?}"));
        }
    });
    for (at, step) in workload.iter().enumerate() {
        match step {
            Step::Restart => {
                world.stop();
                world = clients.machine.start(2 + at as u64, 1);
            }
            Step::DeleteDuringRotation(pause_us) => {
                delete_during_rotation(&mut world, &clients, at as u64, *pause_us);
            }
            step => {
                for op in ops_of(*step, at as u64) {
                    run_ops(&mut world, &clients, vec![op]);
                    see("an answer".into());
                }
            }
        }
    }
    world.rest(Duration::from_secs(1));
    see("the end".into());
    clients.machine.disk.unobserve();
    drop(world);
    points.take()
}

/// Each set of `count` units to keep that is tried.
fn subsets(count: usize, all_subsets_units_max: usize) -> Vec<Vec<bool>> {
    if count <= all_subsets_units_max {
        let masks = 0..1_u32 << count;
        return masks
            .map(|mask| (0..count).map(|unit| mask & (1 << unit) != 0).collect())
            .collect();
    }
    let of = |keep: &dyn Fn(usize) -> bool| (0..count).map(keep).collect::<Vec<bool>>();
    let mut all = Vec::new();
    for at in 0..=count {
        all.push(of(&|unit| unit < at));
        all.push(of(&|unit| unit >= at));
        all.push(of(&|unit| unit == at));
        all.push(of(&|unit| unit != at));
    }
    all.sort();
    all.dedup();
    all
}

/// Sectors of one page of one write go together.
fn same_unit(one: &Undecided, two: &Undecided) -> bool {
    match (one, two) {
        (
            Undecided::Sector { write, page, .. },
            Undecided::Sector {
                write: other,
                page: on,
                ..
            },
        ) => (write, page) == (other, on),
        _ => one == two,
    }
}

/// For each way of dying, whether each undecided thing is kept.
fn ways_to_die(undecided: &[Undecided], bounds: &Bounds) -> Vec<Vec<bool>> {
    let mut units: Vec<usize> = Vec::new();
    for pair in 0..undecided.len() {
        let unit = match pair.checked_sub(1) {
            None => 0,
            Some(last) => units[last] + usize::from(!same_unit(&undecided[last], &undecided[pair])),
        };
        units.push(unit);
    }
    let count = units.last().map_or(0, |last| last + 1);
    let mut ways: Vec<Vec<bool>> = subsets(count, bounds.all_subsets_units_max)
        .into_iter()
        .map(|subset| units.iter().map(|unit| subset[*unit]).collect())
        .collect();
    if count > 0 {
        for sample in 0..bounds.samples {
            let mut dice = Dice::new(sample);
            ways.push(undecided.iter().map(|_| dice.one_in(2)).collect());
        }
    }
    ways
}

/// Dies in each way, starts again and reads everything; returns how often.
fn crash_everywhere(
    point: &CrashPoint,
    crash: Crash,
    journal: &Rc<Journal>,
    bounds: &Bounds,
) -> u64 {
    let undecided = point.disk.undecided(crash);
    let ways = ways_to_die(&undecided, bounds);
    for way in &ways {
        let disk = point.disk.fork();
        let mut place = 0;
        let report = disk.crash_keeping(crash, |_| {
            place += 1;
            way[place - 1]
        });
        let mut model = point.model.clone();
        model.kill();
        if let Some(lost_since) = report.lost_since {
            model.power_cut(lost_since);
        }
        let kept = way.iter().filter(|kept| **kept).count();
        journal.note(format!(
            "{crash:?} at {}, {kept} of {} undecided sectors kept, lost since {:?}",
            point.place,
            way.len(),
            report.lost_since
        ));
        restart_and_read(point.machine.with(disk), model, journal);
    }
    ways.len() as u64
}

fn restart_and_read(machine: Machine, model: Model, journal: &Rc<Journal>) {
    let clients = Clients::new(machine, journal.clone());
    *clients.model.borrow_mut() = model;
    let clients = Rc::new(clients);
    let mut world = clients.machine.start(7, 1);
    let keys = || [KEY, NEW, STORED].into_iter().chain(OTHERS);
    let blocks: Vec<BlockId> = keys().map(|key| home(&clients.immutable, key)).collect();
    world.check_index(&blocks, false);
    let get = |key: &str| Op::Get {
        key: key.into(),
        spec: RangeSpec::All,
    };
    run_ops(&mut world, &clients, keys().map(get).collect());
    world.rest(Duration::from_secs(1));
    world.check_rest();
    world.check_index(&blocks, false);
}

/// Crashes one workload everywhere; returns the places and the crashes.
fn crash_workload(workload: &[Step], journal: &Rc<Journal>, bounds: &Bounds) -> (u64, u64) {
    journal.note(format!("{workload:?}"));
    let points = crash_points(workload, journal);
    let mut crashes = 0;
    for point in &points {
        for crash in [Crash::Kill, Crash::PowerCut] {
            crashes += crash_everywhere(point, crash, journal, bounds);
        }
    }
    (points.len() as u64, crashes)
}

#[test]
fn every_crash_of_every_small_workload_keeps_every_promise() {
    let complete = is_complete();
    let bounds = match complete {
        true => Bounds {
            all_subsets_units_max: ALL_SUBSETS_UNITS_COMPLETE_MAX,
            samples: SAMPLES_COMPLETE,
        },
        false => Bounds {
            all_subsets_units_max: ALL_SUBSETS_UNITS_MAX,
            samples: SAMPLES,
        },
    };
    let workloads = workloads(complete);
    let (next, points, crashes) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let crash_some = || {
        while let Some(workload) = workloads.get(next.fetch_add(1, Ordering::Relaxed)) {
            let journal: Rc<Journal> = Rc::default();
            let run = || crash_workload(workload, &journal, &bounds);
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok((places, times)) => {
                    points.fetch_add(places, Ordering::Relaxed);
                    crashes.fetch_add(times, Ordering::Relaxed);
                }
                Err(panic) => {
                    let history = journal.history();
                    eprintln!("workload {workload:?}, before that:\n  {history}");
                    resume_unwind(panic);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(crash_some);
        }
    });
    let (points, crashes) = (points.into_inner(), crashes.into_inner());
    println!(
        "{} workloads, {points} crash points, {crashes} crashes survived",
        workloads.len()
    );
    assert!(points > 500, "the workloads hardly touched the disk");
}

#[test]
fn a_delete_while_its_segment_is_reclaimed_outlives_every_crash() {
    let bounds = Bounds {
        all_subsets_units_max: 1,
        samples: 0,
    };
    for step in 0..16 {
        let workload = [Step::DeleteDuringRotation(100 * step)];
        let journal: Rc<Journal> = Rc::default();
        let run = || crash_workload(&workload, &journal, &bounds);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            eprintln!("{workload:?}, before that:\n  {}", journal.history());
            resume_unwind(panic);
        }
    }
}

#[test]
fn the_workloads_reclaim_segments() {
    let machine = Machine::new(TINY);
    let clients = Rc::new(Clients::new(machine, Rc::default()));
    let mut world = clients.machine.start(1, 1);
    run_ops(&mut world, &clients, vec![put(KEY, 1)]);
    run_ops(&mut world, &clients, ops_of(Step::Rotate, 0));
    assert!(world.nodes[0].core.snapshot().shard_counters["segments_reclaimed"] > 0);
    let (node, volume) = (world.nodes[0].clone(), clients.immutable.clone());
    let answer = world
        .run(async move { client::read(&node, &volume, OTHERS[3], Some(RangeSpec::All)).await });
    assert_eq!(answer.expect("written").bytes.len() as u64, OBJECT_BYTES);
}
