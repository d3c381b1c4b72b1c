//! Random lives of the cache, checked against the [`Model`] at every step.
//!
//! Everything follows from one seed: sizes, faults, what is asked of which core and when, where a
//! crash falls. Equal seeds give equal event logs.

use super::client::{self, Answer, Refusal};
use super::model::{Ending, Model};
use super::world::{Geometry, Machine, Node, SETTLE, World, home};
use bytes::Bytes;
use forebay_io::local::Event;
use forebay_io::runtime::Runtime;
use forebay_io::sim::store::FaultChances;
use forebay_io::sim::{DiskOperation, SimRuntime};
use forebay_shards::index::Location;
use forebay_shards::key::Volume;
use forebay_shards::messages::{ReadError, WriteError};
use forebay_shards::range::RangeSpec;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Keys of each volume: few, so that they meet.
const KEYS: u64 = 4;

/// Runs of the program per seed.
const LIVES: u64 = 3;

/// Batches of simultaneous operations per run.
const BATCHES: u64 = 4;

/// SplitMix64, apart from the executor's, so that what is asked does not depend on the schedule.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// `length` bytes that no other `version` shares.
pub fn content(version: u64, length: u64) -> Bytes {
    let mut dice = Dice::new(version.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut bytes = Vec::with_capacity(length as usize + 8);
    while (bytes.len() as u64) < length {
        bytes.extend_from_slice(&dice.next().to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes.into()
}

#[derive(Clone, Debug)]
enum Op {
    Put {
        immutable: bool,
        key: String,
        version: u64,
        length: u64,
    },
    Delete {
        immutable: bool,
        key: String,
    },
    Get {
        immutable: bool,
        key: String,
        spec: RangeSpec,
    },
    Head {
        immutable: bool,
        key: String,
    },
    Invalidate {
        immutable: bool,
        key: String,
    },
    ExternalPut {
        key: String,
        version: u64,
        length: u64,
    },
    ExternalDelete {
        key: String,
    },
}

/// What one seed has in store.
struct Faults {
    store: bool,
    disk: bool,
    flips: bool,
}

struct Shared {
    model: RefCell<Model>,
    log: RefCell<Vec<String>>,
    /// Whether errors are to be expected.
    errors_allowed: bool,
    checked: Arc<Volume>,
    immutable: Arc<Volume>,
    machine: Machine,
}

struct Run {
    dice: Dice,
    seed: u64,
    faults: Faults,
    shared: Rc<Shared>,
    versions: u64,
    /// Whether a crash may have torn a record.
    crashed: bool,
}

/// Runs one seed and returns its event log. Panics when a promise is broken.
pub fn run(seed: u64) -> Vec<String> {
    let mut dice = Dice::new(seed);
    let mut geometry = if dice.one_in(12) {
        Geometry::LARGE
    } else {
        Geometry::SMALL
    };
    if dice.one_in(4) {
        // Room for a few blocks only.
        let block = geometry.block_bytes as usize;
        geometry.ram_bytes = 2 * block;
        geometry.pool_bytes = 10 * block;
    }
    let faults = Faults {
        store: dice.one_in(3),
        disk: dice.one_in(4),
        flips: dice.one_in(6),
    };
    let machine = Machine::new(geometry);
    machine
        .wan
        .set_pause_us_max([30, 300, 3000][dice.below(3) as usize]);
    let shared = Rc::new(Shared {
        model: RefCell::default(),
        log: RefCell::default(),
        errors_allowed: faults.store || faults.disk || geometry.pool_bytes < 1 << 20,
        checked: machine.checked(),
        immutable: machine.immutable(),
        machine,
    });
    let mut run = Run {
        dice,
        seed,
        faults,
        shared,
        versions: 0,
        crashed: false,
    };
    let mut sealed = None;
    for life in 0..LIVES {
        sealed = run.live(life, sealed);
    }
    run.finish(sealed);
    run.shared.log.take()
}

/// A block as its shard knew it at an orderly stop.
#[derive(Debug)]
#[allow(dead_code, reason = "the name is for the message of a failure")]
struct Known {
    key: String,
    number: u64,
    location: Option<Location>,
    may_hold: bool,
}

type Index = Vec<Known>;

impl Run {
    fn start(&mut self, life: u64, sealed: Option<Index>) -> World {
        let cores = 1 + self.dice.below(4) as u32;
        self.note(format!("life {life} on {cores} cores"));
        let world = self
            .shared
            .machine
            .start(self.seed.wrapping_mul(31) + life, cores);
        if let Some(before) = sealed {
            let after = self.index(&world);
            for (before, after) in before.iter().zip(&after) {
                // A block may only come back if it was known that its record had stayed behind.
                let expected = before.location == after.location
                    || (before.location.is_none() && before.may_hold);
                assert!(
                    expected,
                    "before the stop {before:?}, after the start {after:?}"
                );
            }
        }
        world
    }

    fn live(&mut self, life: u64, sealed: Option<Index>) -> Option<Index> {
        let mut world = self.start(life, sealed);
        if self.faults.store {
            let chances = FaultChances {
                internal: 40,
                timeout: 40,
                unreachable: 40,
                delay: 100,
                delay_ms_max: 60,
                cut: 60,
                lost_reply: 60,
                ..FaultChances::default()
            };
            self.shared
                .machine
                .store
                .set_chances(chances, self.dice.next());
        }
        let crash_at = self.dice.below(BATCHES + 1);
        for batch in 0..BATCHES {
            if self.faults.disk && self.dice.one_in(2) {
                self.break_disk();
            }
            let ops = self.choose_ops();
            let crash = batch == crash_at;
            if self.perform(&mut world, ops, crash) {
                self.note("crash".into());
                self.crashed = true;
                self.shared.model.borrow_mut().crash();
                drop(world);
                self.damage();
                return None;
            }
            let machine = &self.shared.machine;
            assert!(
                machine.disk.used_bytes_max() <= machine.geometry.quota_bytes(),
                "quota"
            );
        }
        world.rest(SETTLE);
        world.check_rest();
        let index = self.index(&world);
        self.check_damage_counters(&world);
        world.stop();
        self.note("stop".into());
        let damaged = self.damage();
        (!damaged && !self.faults.disk).then_some(index)
    }

    /// The last life: nothing fails any more, and the checked volume shows what the store has.
    fn finish(&mut self, sealed: Option<Index>) {
        let mut world = self.start(LIVES, sealed);
        self.shared.machine.store.heal();
        self.shared.machine.disk.heal();
        world.rest(SETTLE);
        self.shared.model.borrow_mut().settle();
        let mut ops = Vec::new();
        for key in 0..KEYS {
            for immutable in [true, false] {
                let key = key_name(immutable, key);
                ops.push(Op::Get {
                    immutable,
                    key,
                    spec: RangeSpec::All,
                });
            }
        }
        for op in ops.clone() {
            // One by one: what is read alone cannot fail.
            self.perform(&mut world, vec![op], false);
        }
        for op in &ops {
            let Op::Get {
                immutable: false,
                key,
                ..
            } = op
            else {
                continue;
            };
            let (node, volume) = (world.nodes[0].clone(), self.shared.checked.clone());
            let name = key.clone();
            let got = world.run(async move {
                client::read(&node, &volume, &name, Some(RangeSpec::All)).await
            });
            let stored = self.shared.machine.store.object(key);
            match (got, stored) {
                (Ok(answer), Some(bytes)) => assert!(answer.bytes == bytes, "{key} after healing"),
                (Err(Refusal::Error(ReadError::NotFound)), None) => {}
                (got, stored) => panic!("{key}: {got:?}, store {:?}", stored.map(|b| b.len())),
            }
        }
        world.rest(SETTLE);
        world.check_rest();
        world.stop();
    }

    fn note(&self, event: String) {
        self.shared.log.borrow_mut().push(event);
    }

    fn index(&self, world: &World) -> Index {
        let mut found = Vec::new();
        for key in 0..KEYS {
            for immutable in [true, false] {
                let volume = self.shared.volume(immutable);
                let home = home(volume, &key_name(immutable, key));
                for number in 0..8 {
                    let id = home.sibling(number);
                    let (shard, hash) = (world.shard_of(&id), id.hash());
                    let (location, may_hold) = (shard.find(hash), shard.may_hold(hash));
                    let key = key_name(immutable, key);
                    found.push(Known {
                        key,
                        number,
                        location,
                        may_hold,
                    });
                }
            }
        }
        found
    }

    /// A record is damaged only if somebody damaged it.
    fn check_damage_counters(&self, world: &World) {
        if self.faults.disk || self.faults.flips {
            return;
        }
        for node in &world.nodes {
            let counters = node.core.snapshot().counters;
            assert!(
                self.crashed || counters["damaged_records"] == 0,
                "a good record was refused"
            );
            assert_eq!(counters["read_failures"], 0);
        }
    }

    fn break_disk(&mut self) {
        let operations = [
            DiskOperation::Read,
            DiskOperation::Write,
            DiskOperation::Sync,
            DiskOperation::Create,
        ];
        let operation = operations[self.dice.below(4) as usize];
        let errno = if self.dice.one_in(2) { EIO } else { ENOSPC };
        let times = 1 + self.dice.below(4) as u32;
        self.note(format!("{operation:?} fails {times} times with {errno}"));
        self.shared.model.borrow_mut().set_lossy();
        self.shared.machine.disk.fail_next(operation, errno, times);
    }

    /// Flips bits while nobody looks; returns whether it did.
    fn damage(&mut self) -> bool {
        let disk = &self.shared.machine.disk;
        let names = disk.names();
        if !self.faults.flips || names.is_empty() || self.dice.one_in(2) {
            return false;
        }
        self.shared.model.borrow_mut().set_lossy();
        for _ in 0..20 {
            let name = &names[self.dice.below(names.len() as u64) as usize];
            let length = disk.length(name) as u64;
            let mut offset = self.dice.below(length);
            if self.dice.one_in(3) {
                // Near the front of a page, where headers are.
                offset = offset / 4096 * 4096 + self.dice.below(200);
            }
            disk.flip_bit(name, offset as usize);
        }
        self.note("bits flipped".into());
        true
    }

    fn choose_ops(&mut self) -> Vec<Op> {
        (0..3 + self.dice.below(9))
            .map(|_| self.choose_op())
            .collect()
    }

    fn choose_op(&mut self) -> Op {
        let immutable = self.dice.one_in(2);
        let key = key_name(immutable, self.dice.below(KEYS));
        match self.dice.below(20) {
            0..5 => {
                let (version, length) = self.new_version();
                Op::Put {
                    immutable,
                    key,
                    version,
                    length,
                }
            }
            5..7 => Op::Delete { immutable, key },
            7..15 => Op::Get {
                immutable,
                key,
                spec: self.range(),
            },
            15 => Op::Head { immutable, key },
            16 => Op::Invalidate { immutable, key },
            17 | 18 if !immutable => {
                let (version, length) = self.new_version();
                Op::ExternalPut {
                    key,
                    version,
                    length,
                }
            }
            19 if !immutable => Op::ExternalDelete { key },
            _ => Op::Get {
                immutable,
                key,
                spec: RangeSpec::All,
            },
        }
    }

    fn new_version(&mut self) -> (u64, u64) {
        self.versions += 1;
        let block = self.shared.machine.geometry.block_bytes;
        let length = match self.dice.below(8) {
            0 => self.dice.below(3),
            1 => block,
            2 => block + 1,
            3..5 => 1 + self.dice.below(block),
            _ => 1 + self.dice.below(4 * block),
        };
        (self.seed.wrapping_mul(1000) + self.versions, length)
    }

    fn range(&mut self) -> RangeSpec {
        let reach = 4 * self.shared.machine.geometry.block_bytes;
        let start = self.dice.below(reach);
        match self.dice.below(4) {
            0 => RangeSpec::From(start),
            1 => RangeSpec::Between(start, start + self.dice.below(reach)),
            2 => RangeSpec::Last(self.dice.below(reach)),
            _ => RangeSpec::All,
        }
    }

    /// Carries out `ops` at once, each on some core. Returns whether it ended in a crash.
    fn perform(&mut self, world: &mut World, ops: Vec<Op>, crash: bool) -> bool {
        let left = Rc::new(Cell::new(ops.len()));
        let done = Event::default();
        for op in ops {
            let node = world.nodes[self.dice.below(world.nodes.len() as u64) as usize].clone();
            let (shared, left, done) = (self.shared.clone(), left.clone(), done.clone());
            let pause = Duration::from_micros(self.dice.below(4000));
            let runtime = world.runtime.clone();
            world.runtime.spawn(async move {
                runtime.sleep(pause).await;
                shared.carry_out(&node, op, &runtime).await;
                left.set(left.get() - 1);
                if left.get() == 0 {
                    done.set();
                }
            });
        }
        if crash && world.executor.run_steps(self.dice.below(3000) as usize) && left.get() > 0 {
            return true;
        }
        world.run(async move { done.wait().await });
        false
    }
}

fn key_name(immutable: bool, key: u64) -> String {
    format!("{}-{key}", if immutable { "immutable" } else { "checked" })
}

impl Shared {
    fn volume(&self, immutable: bool) -> &Arc<Volume> {
        if immutable {
            &self.immutable
        } else {
            &self.checked
        }
    }

    async fn carry_out(&self, node: &Node, op: Op, runtime: &SimRuntime) {
        let name = format!("{op:?}");
        let result = match op {
            Op::Put {
                immutable,
                key,
                version,
                length,
            } => {
                let bytes = content(version, length);
                let write = self.model.borrow_mut().begin_write(&key, Some(&bytes));
                let volume = self.volume(immutable);
                let put = client::put(node, volume, &key, &bytes, immutable).await;
                self.end_write(write, &put.map(drop))
            }
            Op::Delete { immutable, key } => {
                let write = self.model.borrow_mut().begin_write(&key, None);
                let deleted = client::delete(node, self.volume(immutable), &key).await;
                self.end_write(write, &deleted)
            }
            Op::Get {
                immutable,
                key,
                spec,
            } => self.get(node, immutable, &key, Some(spec)).await,
            Op::Head { immutable, key } => self.get(node, immutable, &key, None).await,
            Op::Invalidate { immutable, key } => {
                node.router
                    .invalidate(home(self.volume(immutable), &key))
                    .await;
                String::new()
            }
            Op::ExternalPut {
                key,
                version,
                length,
            } => {
                let bytes = content(version, length);
                self.model.borrow_mut().external_write(&key, Some(&bytes));
                self.machine.store.insert(&key, bytes).etag
            }
            Op::ExternalDelete { key } => {
                self.model.borrow_mut().external_write(&key, None);
                self.machine.store.remove(&key);
                String::new()
            }
        };
        let (now, operations) = (runtime.now().0, self.machine.disk.operations());
        self.log
            .borrow_mut()
            .push(format!("{now} {operations} {name} -> {result}"));
    }

    fn end_write(&self, write: usize, result: &Result<(), WriteError>) -> String {
        let ending = match result {
            Ok(()) => Ending::Done,
            Err(WriteError::Exists | WriteError::Loading) => Ending::NotDone,
            Err(WriteError::Store(_) | WriteError::Stalled) => Ending::Unknown,
        };
        self.model.borrow_mut().end_write(write, ending);
        format!("{ending:?}")
    }

    async fn get(
        &self,
        node: &Node,
        immutable: bool,
        key: &str,
        spec: Option<RangeSpec>,
    ) -> String {
        let began = self.model.borrow_mut().begin_read();
        let read = client::read(node, self.volume(immutable), key, spec).await;
        let mut model = self.model.borrow_mut();
        let check = |model: &mut Model, answer: &Answer| {
            let etag = &answer.meta.etag;
            model.check_version(key, began, Some(etag));
            let start = answer.span.start;
            model.check_bytes(key, etag, start, answer.meta.size, &answer.bytes);
            format!(
                "{:?} {} bytes of {etag}",
                answer.outcome,
                answer.bytes.len()
            )
        };
        match read {
            Ok(answer) => {
                let expected = spec.map_or(0, |_| answer.span.len());
                assert_eq!(answer.bytes.len() as u64, expected, "{key}: a short answer");
                check(&mut model, &answer)
            }
            Err(Refusal::CutShort(answer)) => {
                format!("cut short after {}", check(&mut model, &answer))
            }
            Err(Refusal::Error(ReadError::NotFound)) => {
                model.check_version(key, began, None);
                "nothing".into()
            }
            Err(Refusal::Error(error)) => {
                let expected =
                    matches!(error, ReadError::Changed | ReadError::NotSatisfiable { .. });
                assert!(
                    expected || self.errors_allowed,
                    "{key}: {error} without a fault"
                );
                error.to_string()
            }
        }
    }
}
