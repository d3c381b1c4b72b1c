//! Whole cores over a simulated folder and store, and their crashes.
//!
//! A [`Machine`] is what survives a crash: the folder and the store. A [`World`] is one run of the
//! program on it; dropping it is a crash. Segments and blocks are small here, because shards are
//! laid out directly and not through the superblock, whose least segment is 16 MiB.

use super::wan::Wan;
use forebay_io::buffer::{PAGE, Pool};
use forebay_io::disk::Disk;
use forebay_io::ledger;
use forebay_io::queue;
use forebay_io::runtime::Runtime;
use forebay_io::sim::executor::UNIX_START_SECONDS;
use forebay_io::sim::ledger::SimLedger;
use forebay_io::sim::store::MemoryStore;
use forebay_io::sim::{Crash, SimDisk, SimExecutor, SimRuntime};
use forebay_io::store::Store;
use forebay_io::uplink::{self, UplinkLimits};
use forebay_shards::backlog::{Backlog, DirtyBlock};
use forebay_shards::core::{Core, CoreParts};
use forebay_shards::evict::WRITE_BUDGET_PERCENT;
use forebay_shards::index::Location;
use forebay_shards::key::{BlockHash, BlockId, Freshness, Topology, Volume};
use forebay_shards::log::ShardLayout;
use forebay_shards::marks::Marks;
use forebay_shards::recover::{RecoveryReport, recover};
use forebay_shards::router::{self, MESH_CAPACITY, Router};
use forebay_shards::segment::parse_segment_name;
use forebay_shards::shard::{Housekeeping, Shard, ShardParts};
use forebay_shards::superblock::discard_unmade;
use forebay_shards::table::ShardTable;
use forebay_shards::upload::WritebackSettings;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The folder's identity in all tests.
pub const FOLDER: [u8; 16] = *b"simulated folder";

/// How long a copy on the revalidated volume is good.
pub const TTL: Duration = Duration::from_millis(40);

/// Longer than any grace after which the store must be asked again, and than any fill.
pub const SETTLE: Duration = Duration::from_secs(30);

/// A byte of a trailer page that its checksum covers.
const TRAILER_BYTE: usize = 60;

/// Room for what recovery reads.
const SCAN_POOL_BYTES: usize = 16 << 20;

pub type SimCore = Core<SimRuntime, SimDisk>;
pub type SimRouter = Router<SimRuntime, SimDisk>;
pub type SimShard = Shard<SimRuntime, SimDisk>;

/// Sizes of everything.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub shards: u32,
    pub segments_max: u32,
    pub segment_bytes: u64,
    pub block_bytes: u64,
    pub pool_bytes: usize,
    pub ram_bytes: usize,
}

impl Geometry {
    /// Blocks of four pages in segments of a dozen blocks: reclaim happens all the time.
    pub const SMALL: Geometry = Geometry {
        shards: 4,
        segments_max: 3,
        segment_bytes: 256 << 10,
        block_bytes: 16 << 10,
        pool_bytes: 2 << 20,
        ram_bytes: 128 << 10,
    };

    /// Blocks of four checksummed chunks, so that range reads read parts of records.
    pub const LARGE: Geometry = Geometry {
        shards: 2,
        segments_max: 3,
        segment_bytes: 2 << 20,
        block_bytes: 256 << 10,
        pool_bytes: 16 << 20,
        ram_bytes: 600 << 10,
    };

    pub fn quota_bytes(&self) -> u64 {
        u64::from(self.shards) * u64::from(self.segments_max) * self.segment_bytes
    }

    pub fn layout(&self, shard: u32) -> ShardLayout {
        ShardLayout {
            folder: FOLDER,
            shard,
            segment_bytes: self.segment_bytes,
            segments_max: self.segments_max,
        }
    }
}

/// What a crash leaves standing.
pub struct Machine {
    pub disk: SimDisk,
    pub store: MemoryStore,
    pub wan: Wan,
    pub ledger: SimLedger,
    /// How the cores write back.
    pub writeback: Cell<WritebackSettings>,
    pub geometry: Geometry,
    /// The wall clock at the next start: runs follow each other.
    pub unix_seconds: Rc<Cell<u64>>,
}

/// One core of a run.
pub struct Node {
    pub runtime: SimRuntime,
    pub core: Rc<SimCore>,
    pub router: Rc<SimRouter>,
    pub pool: Pool,
    pub shards: HashMap<u32, Rc<SimShard>>,
}

/// One run of the program.
pub struct World {
    pub executor: SimExecutor,
    pub runtime: SimRuntime,
    pub nodes: Vec<Rc<Node>>,
    geometry: Geometry,
    disk: SimDisk,
    unix_seconds: Rc<Cell<u64>>,
    /// Tasks that serve as long as the program runs: the fewest seen at rest.
    tasks_at_rest: Cell<usize>,
}

impl Machine {
    pub fn new(geometry: Geometry) -> Machine {
        let wan = Wan::new();
        let store = wan.memory().clone();
        Machine {
            disk: SimDisk::new(0),
            store,
            wan,
            ledger: SimLedger::new(),
            writeback: Cell::new(WritebackSettings::off()),
            geometry,
            unix_seconds: Rc::new(Cell::new(UNIX_START_SECONDS)),
        }
    }

    /// The same machine with other hardware: what is left of it after some crash.
    pub fn with(&self, disk: SimDisk) -> Machine {
        let wan = self.wan.fork();
        Machine {
            disk,
            store: wan.memory().clone(),
            wan,
            ledger: SimLedger::new(),
            writeback: self.writeback.clone(),
            geometry: self.geometry,
            unix_seconds: Rc::new(self.unix_seconds.as_ref().clone()),
        }
    }

    /// The volumes: one whose copies are checked, one whose keys are written once. Both are in
    /// the one store, so keys of different volumes must differ.
    pub fn volume(&self, freshness: Freshness) -> Arc<Volume> {
        let name = match freshness {
            Freshness::Immutable => "immutable",
            Freshness::RevalidateAfter(_) => "checked",
        };
        Arc::new(Volume {
            name: name.into(),
            store_number: 0,
            store_identity: 7,
            block_bytes: self.geometry.block_bytes,
            freshness,
            absence_ttl: Duration::ZERO,
            writeback: self.writeback.get().enabled,
            versions: Default::default(),
        })
    }

    pub fn checked(&self) -> Arc<Volume> {
        self.volume(Freshness::RevalidateAfter(TTL))
    }

    pub fn immutable(&self) -> Arc<Volume> {
        self.volume(Freshness::Immutable)
    }

    /// Starts `cores` cores: recovers the shards and connects everything.
    pub fn start(&self, seed: u64, cores: u32) -> World {
        let (mut executor, runtime) = self.power_up(seed);
        let boot = self.boot(runtime.clone(), cores);
        let nodes = executor.block_on(boot);
        let mut world = World {
            executor,
            runtime,
            nodes,
            geometry: self.geometry,
            disk: self.disk.clone(),
            unix_seconds: self.unix_seconds.clone(),
            tasks_at_rest: Cell::new(0),
        };
        // Whatever the start leaves to do has been done by then.
        world.rest(Duration::from_secs(1));
        // What a former run left to upload is tried again and again.
        while world.is_uploading() {
            world.rest(Duration::from_millis(1));
        }
        world.tasks_at_rest.set(world.executor.tasks());
        world
    }

    /// Starts, and dies after so many steps of the start.
    pub fn start_and_die(&self, seed: u64, cores: u32, steps: usize) {
        let (mut executor, runtime) = self.power_up(seed);
        let boot = self.boot(runtime.clone(), cores);
        runtime.spawn(async move { drop(boot.await) });
        executor.run_steps(steps);
        self.unix_seconds.set(runtime.unix_seconds() + 1);
        drop(executor);
        self.disk.crash(Crash::Kill);
    }

    fn power_up(&self, seed: u64) -> (SimExecutor, SimRuntime) {
        let executor = SimExecutor::starting_at(seed, self.unix_seconds.get());
        let runtime = executor.runtime();
        self.disk.attach(runtime.clone());
        self.wan.attach(runtime.clone());
        (executor, runtime)
    }

    fn boot(
        &self,
        runtime: SimRuntime,
        cores: u32,
    ) -> impl Future<Output = Vec<Rc<Node>>> + 'static {
        let (disk, wan, geometry) = (self.disk.clone(), self.wan.clone(), self.geometry);
        let (ledger, writeback) = (self.ledger.clone(), self.writeback.get());
        let volumes = [self.checked(), self.immutable()];
        async move {
            let mut nodes = Vec::new();
            let ports = queue::mesh(cores as usize, MESH_CAPACITY);
            for (index, port) in ports.into_iter().enumerate() {
                let topology = Topology::new(geometry.shards, cores);
                let pool = Pool::new(geometry.pool_bytes);
                let numbers =
                    (0..geometry.shards).filter(|shard| topology.core_of_shard(*shard) == index);
                let (port_of_ledger, service) = ledger::pair();
                runtime.spawn(ledger.service(service));
                let rows = port_of_ledger.attach();
                let mut shards = HashMap::new();
                let mut recovery = RecoveryReport::default();
                for number in numbers {
                    let marks = Marks::new(&runtime, rows.clone(), FOLDER, number);
                    let back = Some((marks, writeback.sync));
                    let (shard, report) =
                        open_shard(&runtime, &disk, &pool, geometry.layout(number), back).await;
                    recovery.add(&report);
                    shards.insert(number, Rc::new(shard));
                }
                nodes.push(
                    connect(
                        &runtime, &wan, index, topology, geometry, pool, shards, recovery, port,
                        writeback, &volumes,
                    )
                    .await,
                );
            }
            nodes
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The next run begins later, if only by a moment.
        self.unix_seconds.set(self.runtime.unix_seconds() + 1);
    }
}

/// Recovers one shard and fits it to its quota.
pub async fn open_shard(
    runtime: &SimRuntime,
    disk: &SimDisk,
    pool: &Pool,
    layout: ShardLayout,
    back: Option<(Marks, bool)>,
) -> (SimShard, RecoveryReport) {
    let mut entries = disk.list().await.expect("a simulated folder can be listed");
    // Another shard may be serving already, and making a segment.
    let is_own =
        |name: &str| parse_segment_name(name).is_some_and(|(shard, _)| shard == layout.shard);
    entries.retain(|entry| is_own(&entry.name));
    let discarded = discard_unmade(disk, &mut entries).await;
    discarded.expect("simulated files can be removed");
    let numbers: Vec<u32> = entries
        .iter()
        .filter_map(|entry| parse_segment_name(&entry.name))
        .map(|(_, segment)| segment)
        .collect();
    // A scan reads a mebibyte at once, more than the tight pools of some tests have in all.
    let scans = Pool::new(SCAN_POOL_BYTES);
    let (found, report) = recover(disk, &scans, &layout, &numbers).await;
    let parts = ShardParts {
        runtime: runtime.clone(),
        disk: disk.clone(),
        blocks: pool.clone(),
        housekeeping: Housekeeping::new(layout.segment_bytes),
        layout,
        write_budget_percent: WRITE_BUDGET_PERCENT,
        sync: back.as_ref().is_some_and(|(_, sync)| *sync),
        marks: back.map(|(marks, _)| marks),
    };
    let shard = Shard::new(parts, found);
    shard.shrink().await.expect("files can be removed");
    (shard, report)
}

#[allow(clippy::too_many_arguments, reason = "the parts of a core, named once")]
async fn connect(
    runtime: &SimRuntime,
    wan: &Wan,
    index: usize,
    topology: Topology,
    geometry: Geometry,
    pool: Pool,
    shards: HashMap<u32, Rc<SimShard>>,
    recovery: RecoveryReport,
    port: queue::MeshPort<forebay_shards::messages::Message>,
    writeback: WritebackSettings,
    volumes: &[Arc<Volume>],
) -> Rc<Node> {
    let (uplink_port, companion) = uplink::pair();
    let store: Rc<dyn Store> = Rc::new(wan.clone());
    let limits = UplinkLimits {
        fetches_max: 8,
        uploads_max: 4,
    };
    runtime.spawn(uplink::serve(companion, limits, vec![store]));
    let core = Core::new(CoreParts {
        index,
        topology,
        runtime: runtime.clone(),
        pool: pool.clone(),
        uplink: uplink_port.attach(runtime.clone()),
        shards: ShardTable::new(shards.keys().copied().collect::<BTreeSet<u32>>()),
        ram_bytes: geometry.ram_bytes,
        writeback,
    });
    core.set_volumes(volumes.iter().cloned());
    let mut recovery = Some(recovery);
    while let Some(number) = core.shards().next_to_load() {
        let report = recovery.take().unwrap_or_default();
        core.recall_marks(&shards[&number]).await;
        core.adopt(number, shards[&number].clone(), &report);
    }
    let router = Rc::new(router::join(core.clone(), port));
    Rc::new(Node {
        runtime: runtime.clone(),
        core,
        router,
        pool,
        shards,
    })
}

impl World {
    /// Runs `future` to its end, and everything else meanwhile.
    pub fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        self.executor.block_on(future)
    }

    /// Lets so much virtual time pass.
    pub fn rest(&mut self, duration: Duration) {
        let sleep = self.runtime.sleep(duration);
        self.executor.block_on(sleep);
    }

    /// Whether something is on its way to the store, or to the disk's lasting memory.
    pub fn is_uploading(&self) -> bool {
        let backlog = self.backlog();
        backlog.uploading > 0 || backlog.shards_unread > 0 || backlog.unsynced_bytes > 0
    }

    /// What is dirty on all cores.
    pub fn backlog(&self) -> Backlog {
        let mut sum = Backlog::default();
        for node in &self.nodes {
            sum.add(node.core.backlog(None));
        }
        sum
    }

    /// The dirty blocks of all cores.
    pub fn dirty_blocks(&mut self) -> Vec<DirtyBlock> {
        let router = self.nodes[0].router.clone();
        self.run(async move { router.dirty_blocks(usize::MAX).await })
    }

    /// The shard that holds a block.
    pub fn shard_of(&self, id: &BlockId) -> Rc<SimShard> {
        let topology = self.nodes[0].router.topology();
        let node = &self.nodes[topology.core_of(id.hash())];
        node.shards[&topology.shard_of(id.hash())].clone()
    }

    /// kill -9 or a power cut; returns since when the disk has lost what it had completed.
    pub fn crash(self, crash: Crash) -> Option<u64> {
        let disk = self.disk.clone();
        drop(self);
        disk.crash(crash).lost_since
    }

    /// An orderly stop: seals every segment, then ends.
    pub fn stop(mut self) {
        for node in self.nodes.clone() {
            self.run(async move { node.core.seal().await });
        }
    }

    /// What must hold when nothing is asked of the cores and all fills have ended.
    pub fn check_rest(&self) {
        let mut pinned = 0;
        let mut in_ram = 0;
        // What reads a block again that the disk did not give may still have run at the start.
        let tasks = self.executor.tasks();
        assert!(
            tasks <= self.tasks_at_rest.replace(tasks),
            "{tasks} tasks are at rest, fewer were before"
        );
        for node in &self.nodes {
            let snapshot = node.core.snapshot();
            assert_eq!(snapshot.flights, 0, "fills in flight at rest");
            assert_eq!(snapshot.turns, 0, "turns held at rest");
            assert_eq!(snapshot.uplink_backlog, (0, 0), "orders waiting at rest");
            assert!(snapshot.disk_used_bytes <= snapshot.disk_quota_bytes);
            pinned += node.pool.used_bytes() as u64;
            in_ram += snapshot.ram_bytes;
        }
        // A put's payload stays in the pool of the core that took it, so only the sums agree.
        assert_eq!(
            pinned, in_ram,
            "buffers held at rest by something else than the RAM tiers"
        );
    }
}

/// What a start would make of the folder as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// By footers where there are any.
    Footers,
    /// By scans alone.
    Scans,
}

impl World {
    /// The index at rest is what a start finds, by footers and by a full scan. `blocks` are all
    /// that were ever cached.
    ///
    /// `scans_too` says whether a scan must find the same. Not so after a write that failed but
    /// landed, which no footer lists, and after a power cut, which may leave a footer that lists
    /// what it took; a read of such a record fails its checks and is a miss.
    pub fn check_index(&self, blocks: &[BlockId], scans_too: bool) {
        let readings = [Some(Reading::Footers), scans_too.then_some(Reading::Scans)];
        for reading in readings.into_iter().flatten() {
            let found = self.recovered(reading);
            for id in blocks {
                let (shard, hash) = (self.shard_of(id), id.hash());
                let live = shard.find(hash);
                let number = self.nodes[0].router.topology().shard_of(hash) as usize;
                let (recovered, may_hold) = (found[number].find(hash), shard.may_hold(hash));
                // What a power cut took may be listed still, in a footer that this start could not read and
                // the next one can.
                let is_listed_only = || {
                    reading == Reading::Footers
                        && self.recovered(Reading::Scans)[number].find(hash) != recovered
                };
                // A block may only come back if it is known that its record has stayed behind.
                assert!(
                    live == recovered || live.is_none() && (may_hold || is_listed_only()),
                    "{} block {}: the index says {live:?} (may hold: {may_hold}), {reading:?} say \
                     {recovered:?}",
                    id.key,
                    id.number
                );
            }
            let live: usize = self.shards().map(|shard| shard.len()).sum();
            let known = blocks
                .iter()
                .filter(|id| self.shard_of(id).find(id.hash()).is_some());
            assert_eq!(live, known.count(), "blocks that nobody wrote");
        }
    }

    fn shards(&self) -> impl Iterator<Item = &Rc<SimShard>> {
        self.nodes.iter().flat_map(|node| node.shards.values())
    }

    fn recovered(&self, reading: Reading) -> Vec<SimShard> {
        let disk = self.disk.fork();
        disk.heal();
        if reading == Reading::Scans {
            for name in disk.names() {
                let length = disk.length(&name);
                // A file whose making a kill cut short has no footer at its end.
                if length as u64 == self.geometry.segment_bytes {
                    disk.flip_bit(&name, length - PAGE + TRAILER_BYTE);
                }
            }
        }
        let mut executor = SimExecutor::new(1);
        let runtime = executor.runtime();
        disk.attach(runtime.clone());
        let geometry = self.geometry;
        executor.block_on(async move {
            let mut shards = Vec::new();
            for number in 0..geometry.shards {
                let layout = geometry.layout(number);
                let (shard, _) = open_shard(&runtime, &disk, &Pool::new(PAGE), layout, None).await;
                shards.push(shard);
            }
            shards
        })
    }

    /// Where a block's record is, and whether it may be found although the index has none.
    pub fn found(&self, hash: BlockHash) -> (Option<Location>, bool) {
        let topology = self.nodes[0].router.topology();
        let shard = &self.nodes[topology.core_of(hash)].shards[&topology.shard_of(hash)];
        (shard.find(hash), shard.may_hold(hash))
    }
}

/// Block 0 of an object.
pub fn home(volume: &Arc<Volume>, key: &str) -> BlockId {
    BlockId {
        volume: volume.clone(),
        key: key.into(),
        number: 0,
    }
}
