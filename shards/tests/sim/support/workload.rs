//! Random lives of the cache, checked against the model at every step.
//!
//! Everything follows from one seed: sizes, faults, what is asked of which core and when, where a
//! crash falls. Equal seeds give equal digests. A seed has two phases. *Chaos*: several runs of the
//! program on one folder, with other numbers of cores, each ended by a stop, a kill or a power
//! cut. *Heal* ([`super::heal`]): the faults stop, and then everything must be well.
//!
//! There are two modes. In the *strict* one the disk fails in ways that it admits, at most twice a
//! run, so that the engine can always make good (a tombstone is tried three times): every check
//! holds. In the *damage* mode it also lies, rots and fails without limit: which checks are
//! relaxed then is said in [`super::model`].

use super::heal;
use super::journal::Journal;
use super::ops::{Clients, Op, is_immutable};
use super::world::{Geometry, Machine, SETTLE, World, home};
use forebay_io::buffer::PAGE;
use forebay_io::local::Event;
use forebay_io::runtime::Runtime;
use forebay_io::sim::Crash;
use forebay_io::sim::disk::{DiskChances, DiskFault};
use forebay_io::sim::random::Dice;
use forebay_io::sim::store::FaultChances;
use forebay_shards::index::Location;
use forebay_shards::key::BlockId;
use forebay_shards::range::RangeSpec;
use forebay_shards::upload::WritebackSettings;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Keys of each volume: few, so that they meet.
pub const KEYS: u64 = 4;

/// Rests within which everything must be uploaded, whatever the store does meanwhile.
const UPLOAD_ROUNDS_MAX: usize = 40;

/// Runs of the program per seed.
const LIVES: u64 = 3;

/// Batches of simultaneous operations per run, at most.
const BATCHES_MAX: u64 = 4;

/// Blocks that an object may have here.
const BLOCKS_MAX: u64 = 6;

/// Faults per run in the strict mode: one less than would defeat a tombstone's three attempts.
const STRICT_FAULTS_MAX: u32 = 2;

/// What one seed has in store.
struct Plan {
    /// Writes are acknowledged before the store has them; whether they then survive power cuts.
    writeback: Option<bool>,
    store: bool,
    disk: bool,
    damage: bool,
    power_cuts: bool,
}

/// One seed's life.
pub struct Life {
    pub dice: Dice,
    pub seed: u64,
    pub clients: Rc<Clients>,
    plan: Plan,
    versions: u64,
    starts: u64,
    /// Whether a crash may have torn a record.
    crashed: bool,
    /// Whether a power cut has taken something.
    lost: bool,
    /// How often each fault had struck when that was last told.
    struck: [u64; DiskFault::ALL.len()],
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

/// Lives one seed and returns the digest of all that happened and how often each fault struck.
/// Panics when a promise is broken; `journal` then says what came before.
pub fn run(seed: u64, journal: &Rc<Journal>) -> (u64, Vec<u64>) {
    let mut life = Life::new(seed, journal.clone());
    let mut sealed = None;
    for _ in 0..LIVES {
        sealed = life.live(sealed);
    }
    let world = life.start(sealed);
    heal::require_progress(&mut life, world);
    let machine = &life.clients.machine;
    journal.mix(&format!("{} {}", machine.disk.trace(), machine.wan.trace()));
    let struck = DiskFault::ALL.map(|fault| machine.disk.struck(fault));
    (journal.digest(), struck.to_vec())
}

fn geometry(dice: &mut Dice, writes_back: bool) -> Geometry {
    let mut geometry = match dice.one_in(16) {
        true => Geometry::LARGE,
        false => Geometry::SMALL,
    };
    if dice.one_in(4) {
        // Room for a few blocks only.
        let block = geometry.block_bytes as usize;
        geometry.ram_bytes = 2 * block;
        geometry.pool_bytes = 10 * block;
    }
    if dice.one_in(4) {
        geometry.shards = 1;
    }
    if writes_back && dice.one_in(2) {
        // Room for several dirty segments.
        geometry.segments_max = 8;
    }
    geometry
}

impl Life {
    fn new(seed: u64, journal: Rc<Journal>) -> Life {
        let mut dice = Dice::new(seed);
        let damage = dice.one_in(3);
        let writeback = (!damage && dice.one_in(2)).then(|| dice.one_in(2));
        let geometry = geometry(&mut dice, writeback.is_some());
        let plan = Plan {
            writeback,
            store: dice.one_in(3),
            disk: damage || dice.one_in(2),
            damage,
            power_cuts: dice.one_in(2),
        };
        let machine = Machine::new(geometry);
        machine.disk.set_seed(dice.draw());
        machine.disk.set_stall_max(Duration::from_secs(3));
        machine
            .wan
            .set_pause_us_max([30, 300, 3000][dice.below(3) as usize]);
        if let Some(sync) = writeback {
            machine.writeback.set(WritebackSettings {
                enabled: true,
                sync,
                active_max: 1 + dice.below(3) as usize,
                delay: Duration::from_millis(dice.below(3) * 20),
                piece_bytes: PAGE,
            });
        }
        let clients = Clients::new(machine, journal);
        if let Some(sync) = writeback {
            clients.model.borrow_mut().write_back(sync);
        }
        let tight = geometry.pool_bytes < 1 << 20;
        clients.errors_allowed.set(plan.store || plan.disk || tight);
        Life {
            dice,
            seed,
            clients: Rc::new(clients),
            plan,
            versions: 0,
            starts: 0,
            crashed: false,
            lost: false,
            struck: [0; DiskFault::ALL.len()],
        }
    }

    /// Starts the program on some number of cores. What an orderly stop had `sealed` is there.
    fn start(&mut self, sealed: Option<Vec<Known>>) -> World {
        let cores = 1 + self.dice.below(4) as u32;
        self.starts += 1;
        let run = self.starts;
        let seed = self.seed.wrapping_mul(31) + run;
        if self.plan.damage {
            self.break_disk_beyond_repair();
        }
        if self.dice.one_in(4) {
            let steps = self.dice.below(60) as usize;
            let seed = seed.wrapping_add(1 << 40);
            self.clients.machine.start_and_die(seed, cores, steps);
            self.note("a start that died".into());
        }
        self.note(format!("run {run} on {cores} cores"));
        let world = self.clients.machine.start(seed, cores);
        if let Some(before) = sealed {
            for (before, after) in before.iter().zip(&self.known(&world)) {
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

    /// Starts the program without faults and without an accident.
    pub fn restart(&mut self) -> World {
        let cores = 1 + self.dice.below(4) as u32;
        self.starts += 1;
        let seed = self.seed.wrapping_mul(31) + self.starts;
        self.note(format!("run {} on {cores} cores", self.starts));
        self.clients.machine.start(seed, cores)
    }

    fn live(&mut self, sealed: Option<Vec<Known>>) -> Option<Vec<Known>> {
        let mut world = self.start(sealed);
        self.set_faults();
        let batches = 1 + self.dice.below(BATCHES_MAX);
        let crash_at = self.dice.below(batches + 1);
        for batch in 0..batches {
            let ops = self.choose_ops();
            let in_the_middle = batch == crash_at;
            if self.perform(&mut world, ops, in_the_middle) {
                self.crash(world);
                return None;
            }
            self.check_quota();
        }
        self.settle(&mut world);
        world.check_rest();
        self.check_damage_counters(&world);
        if !self.plan.damage {
            self.check_index(&world);
        }
        if self.dice.one_in(4) {
            self.crash(world);
            return None;
        }
        let index = self.known(&world);
        world.stop();
        self.note("stop".into());
        if self.plan.power_cuts && self.dice.one_in(4) {
            self.cut_power();
            return None;
        }
        (!self.plan.disk).then_some(index)
    }

    /// Ends a run as no operator would.
    pub fn crash(&mut self, world: World) {
        self.crashed = true;
        self.clients.model.borrow_mut().kill();
        drop(world);
        if self.plan.power_cuts && self.dice.one_in(2) {
            self.cut_power();
        } else {
            self.clients.machine.disk.crash(Crash::Kill);
            self.note("kill".into());
        }
        self.crash_ledger();
    }

    /// The ledger may be late or lost whenever the program dies.
    fn crash_ledger(&mut self) {
        let ledger = self.clients.machine.ledger.clone();
        match self.dice.one_in(8) {
            true => ledger.clear(),
            false => ledger.crash(&mut self.dice),
        }
    }

    /// Lets everything that was begun end, uploads too.
    pub fn settle(&mut self, world: &mut World) {
        world.rest(SETTLE);
        for _ in 0..UPLOAD_ROUNDS_MAX {
            if world.backlog().blocks == 0 && !world.is_uploading() {
                // Whoever waited for the last upload goes on.
                return world.rest(SETTLE);
            }
            world.rest(SETTLE);
        }
        let blocks = world.dirty_blocks();
        panic!("not uploaded: {blocks:?}");
    }

    fn cut_power(&mut self) {
        self.crashed = true;
        let report = self.clients.machine.disk.crash(Crash::PowerCut);
        if let Some(lost_since) = report.lost_since {
            self.lost = true;
            self.clients.model.borrow_mut().power_cut(lost_since);
        }
        self.note(format!("power cut, lost since {:?}", report.lost_since));
        self.crash_ledger();
    }

    fn set_faults(&mut self) {
        let machine = &self.clients.machine;
        if self.plan.store {
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
            machine.store.set_chances(chances, self.dice.draw());
        }
        if self.plan.disk && !self.plan.damage {
            // Nobody can acknowledge on a disk that lies; clean copies are only fetched again.
            let lie = if self.writes_back() { 0 } else { 40 };
            let chances = DiskChances::default()
                .with(DiskFault::ReadError, 40)
                .with(DiskFault::WriteError, 40)
                .with(DiskFault::SyncError, 40)
                .with(DiskFault::SyncLie, lie)
                .with(DiskFault::CreateFull, 60)
                .with(DiskFault::Stall, 10);
            machine.disk.set_chances(chances, STRICT_FAULTS_MAX);
        }
    }

    /// From before the start on, so that recovery meets the faults too.
    fn break_disk_beyond_repair(&mut self) {
        self.clients.model.borrow_mut().set_lossy();
        let mut chances = DiskChances::default();
        for fault in DiskFault::ALL {
            if self.dice.one_in(3) {
                chances = chances.with(fault, [5, 40, 200][self.dice.below(3) as usize]);
            }
        }
        let budget = 1 + self.dice.below(12) as u32;
        self.clients.machine.disk.set_chances(chances, budget);
    }

    /// Tells which faults have struck since it was last told.
    fn note_faults(&mut self) {
        let disk = &self.clients.machine.disk;
        let struck = DiskFault::ALL.map(|fault| disk.struck(fault));
        let since = DiskFault::ALL.iter().zip(struck.iter().zip(self.struck));
        let new: Vec<String> = since
            .filter(|(_, (now, before))| *now > before)
            .map(|(fault, (now, before))| format!("{} {fault:?}", now - before))
            .collect();
        self.struck = struck;
        if !new.is_empty() {
            self.note(format!("struck: {}", new.join(", ")));
        }
    }

    /// Whether writes are acknowledged before the store has them.
    pub fn writes_back(&self) -> bool {
        self.plan.writeback.is_some()
    }

    pub fn note(&self, event: String) {
        self.clients.journal.note(event);
    }

    /// Every block that these clients can have written.
    pub fn blocks(&self) -> Vec<BlockId> {
        let keys = key_names().chain(heal::key_names());
        let homes = keys.map(|key| home(self.clients.volume(&key), &key));
        let bodies = self.clients.bodies.borrow();
        let volumes = [&self.clients.checked, &self.clients.immutable];
        let bodies = bodies
            .iter()
            .flat_map(|body| volumes.map(|volume| body.block(volume, 0)));
        homes
            .chain(bodies)
            .flat_map(|home| (0..BLOCKS_MAX).map(move |number| home.sibling(number)))
            .collect()
    }

    fn known(&self, world: &World) -> Vec<Known> {
        let blocks = self.blocks();
        let known = blocks.iter().map(|id| {
            let (location, may_hold) = world.found(id.hash());
            Known {
                key: id.key.to_string(),
                number: id.number,
                location,
                may_hold,
            }
        });
        known.collect()
    }

    /// The index at rest is what the disk says, as far as it can be after what happened so far.
    pub fn check_index(&self, world: &World) {
        let disk = &self.clients.machine.disk;
        let failed_writes = disk.struck(DiskFault::WriteError);
        let scans_too = failed_writes == 0 && !self.lost;
        world.check_index(&self.blocks(), scans_too);
    }

    fn check_quota(&self) {
        let machine = &self.clients.machine;
        let used_bytes_max = machine.disk.used_bytes_max();
        let quota_bytes = machine.geometry.quota_bytes();
        assert!(
            used_bytes_max <= quota_bytes,
            "{used_bytes_max} bytes were used of a quota of {quota_bytes}"
        );
    }

    /// A record is damaged only if somebody damaged it.
    fn check_damage_counters(&self, world: &World) {
        if self.plan.disk {
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

    fn choose_ops(&mut self) -> Vec<Op> {
        (0..3 + self.dice.below(9))
            .map(|_| self.choose_op())
            .collect()
    }

    fn choose_op(&mut self) -> Op {
        let immutable = self.dice.one_in(2);
        let key = key_name(immutable, self.dice.below(KEYS));
        match self.dice.below(28) {
            0..5 => self.new_put(key),
            20 => self.broken_put(key),
            21..28 => self.put_otherwise(key, immutable),
            5..7 => Op::Delete { key },
            7..15 => Op::Get {
                key,
                spec: self.range(),
            },
            15 => Op::Head { key },
            16 => Op::Invalidate { key },
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
                key,
                spec: RangeSpec::All,
            },
        }
    }

    /// A put of something new.
    pub fn new_put(&mut self, key: String) -> Op {
        let (version, length) = match self.writes_back() && is_immutable(&key) {
            // Acknowledged before the store was asked, so clients must keep what they promised: a
            // key that is written once has one content, however often it is written and deleted.
            true => self.only_version(&key),
            false => self.new_version(),
        };
        Op::Put {
            key,
            version,
            length,
        }
    }

    /// A write in parts, by a copy, or of a known version.
    fn put_otherwise(&mut self, key: String, immutable: bool) -> Op {
        if immutable && self.writes_back() {
            // Clients must keep what they promised: see `new_put`.
            return self.new_put(key);
        }
        match self.dice.below(7) {
            0..3 => {
                let (version, length) = self.new_version();
                Op::PutParts {
                    key,
                    version,
                    length: length.max(1),
                    later: self.dice.one_in(4),
                }
            }
            3 => Op::EndParts {
                key,
                abort: self.dice.one_in(4),
            },
            4 | 5 => {
                let source = key_name(immutable, self.dice.below(KEYS));
                match source == key {
                    // A copy onto itself would change nothing.
                    true => Op::Head { key },
                    false => Op::Copy { source, key },
                }
            }
            _ => {
                let (version, length) = self.new_version();
                Op::PutIf {
                    key,
                    version,
                    length,
                }
            }
        }
    }

    /// A put that breaks off.
    fn broken_put(&mut self, key: String) -> Op {
        self.versions += 1;
        let length = 1 + self.dice.below(self.clients.machine.geometry.block_bytes);
        Op::BrokenPut {
            key,
            version: self.seed.wrapping_mul(1000) + 900 + self.versions,
            length,
            end: self.dice.below(length),
        }
    }

    fn only_version(&self, key: &str) -> (u64, u64) {
        let number = key.bytes().last().map_or(0, u64::from);
        let version = self.seed.wrapping_mul(1000) + 700 + number;
        let block = self.clients.machine.geometry.block_bytes;
        let length = Dice::new(version).below(block + block / 4);
        (version, length)
    }

    fn new_version(&mut self) -> (u64, u64) {
        self.versions += 1;
        let block = self.clients.machine.geometry.block_bytes;
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
        let reach = 4 * self.clients.machine.geometry.block_bytes;
        let start = self.dice.below(reach);
        match self.dice.below(4) {
            0 => RangeSpec::From(start),
            1 => RangeSpec::Between(start, start + self.dice.below(reach)),
            2 => RangeSpec::Last(self.dice.below(reach)),
            _ => RangeSpec::All,
        }
    }

    /// Carries out `ops` at once, each on some core. Returns whether it is to end in a crash.
    pub fn perform(&mut self, world: &mut World, ops: Vec<Op>, crash: bool) -> bool {
        let left = Rc::new(Cell::new(ops.len()));
        let done = Event::default();
        for op in ops {
            let node = world.nodes[self.dice.below(world.nodes.len() as u64) as usize].clone();
            let (clients, left, done) = (self.clients.clone(), left.clone(), done.clone());
            let pause = Duration::from_micros(self.dice.below(4000));
            let runtime = world.runtime.clone();
            world.runtime.spawn(async move {
                runtime.sleep(pause).await;
                clients.carry_out(&node, op, &runtime).await;
                left.set(left.get() - 1);
                if left.get() == 0 {
                    done.set();
                }
            });
        }
        let dies =
            crash && world.executor.run_steps(self.dice.below(3000) as usize) && left.get() > 0;
        if !dies {
            world.run(async move { done.wait().await });
        }
        self.note_faults();
        dies
    }
}

pub fn key_name(immutable: bool, key: u64) -> String {
    format!("{}{key}", if immutable { 'i' } else { 'c' })
}

/// The keys of both volumes.
pub fn key_names() -> impl Iterator<Item = String> {
    let names = |key| [true, false].map(|immutable| key_name(immutable, key));
    (0..KEYS).flat_map(names)
}
