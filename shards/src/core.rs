//! One core's part of the cache: its shards, its RAM tier, what it knows of objects.
//!
//! A block is owned by one core, so everything that must happen once or in order (fetching it,
//! replacing it, deleting it) happens here, without a lock. Reading is in `read.rs`, fetching in
//! [`crate::flight`], writing in [`crate::write`]. It never waits for a client: what it starts for
//! one reader outlives that reader.
//!
//! The *home* of an object is the owner of its block 0. Only the home knows which version of the
//! object is current; other blocks are asked for by version.

use crate::absent::Absences;
use crate::flight::Flight;
use crate::follow::Reading;
use crate::format::CHUNK_BYTES;
use crate::heads::{HEADS_BYTES_MAX, Head, Heads};
use crate::index::BlockMap;
use crate::key::{BlockHash, BlockId, Topology, Volume};
use crate::messages::{ReadError, WriteError};
use crate::names::Names;
use crate::parts::Parts;
use crate::patience::Patience;
use crate::ram::RamTier;
use crate::recover::RecoveryReport;
use crate::router::Peers;
use crate::scrub::Scrub;
use crate::shard::Shard;
use crate::stats::{CoreSnapshot, CoreStats};
use crate::table::ShardTable;
use crate::upload::{Uploads, WritebackSettings};
use forebay_io::buffer::{BufferWriter, PAGE, Pool};
use forebay_io::disk::Disk;
use forebay_io::local::Turns;
use forebay_io::runtime::{MonoTime, Runtime, timeout};
use forebay_io::store::ObjectMeta;
use forebay_io::uplink::Uplink;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How long a request waits for a block buffer before it is refused. Longer than any burst that
/// still drains (1,024 requests for 8 MiB each, on a disk of 1.3 GiB/s, wait 6 s each), shorter than
/// a client's patience.
const BUFFER_WAIT: Duration = Duration::from_secs(10);

/// How long a copy that could not be checked, because the store did not answer, is served before
/// the store is asked again.
const STALE_GRACE: Duration = Duration::from_secs(1);

/// How long a read waits for its shard when the server has just started. A shard loads in some
/// tens of milliseconds, and one that is waited for loads next; a store over a WAN takes as long.
const READ_LOAD_WAIT: Duration = Duration::from_millis(200);

/// How long a write waits for its shard. Much longer than loading takes on any healthy disk.
const WRITE_LOAD_WAIT: Duration = Duration::from_secs(20);

/// What a core's cache is made of.
pub struct CoreParts<R: Runtime, D: Disk> {
    /// Which core this is.
    pub index: usize,
    /// Where blocks live.
    pub topology: Topology,
    /// The executor.
    pub runtime: R,
    /// The source of all block buffers.
    pub pool: Pool,
    /// The way to the stores.
    pub uplink: Uplink<R>,
    /// The shards that this core runs, some of them perhaps still to come.
    pub shards: ShardTable<R, D>,
    /// Budget of the RAM tier, bytes; less than the pool's.
    pub ram_bytes: usize,
    /// How writes are acknowledged before the store has them.
    pub writeback: WritebackSettings,
}

/// A core's part of the cache.
pub struct Core<R: Runtime, D: Disk> {
    pub(crate) parts: CoreParts<R, D>,
    pub(crate) ram: RefCell<RamTier>,
    pub(crate) heads: RefCell<Heads>,
    pub(crate) absences: RefCell<Absences>,
    pub(crate) flights: RefCell<BlockMap<Rc<Flight>>>,
    /// Large records that are being read, each until its last byte is there.
    pub(crate) readings: RefCell<BlockMap<Rc<Reading>>>,
    pub(crate) turns: Turns<BlockHash>,
    pub(crate) stats: CoreStats,
    pub(crate) patience: Patience<R>,
    pub(crate) uploads: Uploads,
    /// Names of dirty blocks, as far as they were asked for.
    pub(crate) names: RefCell<Names>,
    recovery: Cell<RecoveryReport>,
    began: MonoTime,
    /// From `began` until the last shard was here.
    load_ms: Cell<Option<u64>>,
    /// The scrub of each shard that had one, by its number.
    pub(crate) scrubs: RefCell<BTreeMap<u32, Rc<Scrub<R, D>>>>,
    /// Of which bytes objects are made that the cache has under other names.
    pub(crate) assemblies: RefCell<Parts>,
    /// The way to the other cores; gone when the router is.
    pub(crate) peers: RefCell<Weak<Peers>>,
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// A core over its parts.
    pub fn new(parts: CoreParts<R, D>) -> Rc<Self> {
        assert!(
            parts.ram_bytes < parts.pool.budget_bytes(),
            "the RAM tier leaves room to work"
        );
        let began = parts.runtime.now();
        let (index, topology) = (parts.index, parts.topology);
        let own = (0..topology.shards()).filter(|shard| topology.core_of_shard(*shard) == index);
        let patience = Patience::new(parts.runtime.clone(), own);
        let ram = RefCell::new(RamTier::new(parts.ram_bytes));
        let uploads = Uploads::new(&parts.writeback);
        let core = Rc::new(Core {
            parts,
            ram,
            heads: RefCell::new(Heads::new(HEADS_BYTES_MAX)),
            absences: RefCell::default(),
            flights: RefCell::default(),
            readings: RefCell::default(),
            turns: Turns::default(),
            stats: CoreStats::default(),
            patience,
            uploads,
            names: RefCell::default(),
            recovery: Cell::default(),
            load_ms: Cell::default(),
            scrubs: RefCell::default(),
            assemblies: RefCell::default(),
            peers: RefCell::default(),
            began,
        });
        core.start_uploads();
        core
    }

    /// The shards of this core.
    pub fn shards(&self) -> &ShardTable<R, D> {
        &self.parts.shards
    }

    /// Takes in a shard that has been loaded.
    pub fn adopt(self: &Rc<Self>, number: u32, shard: Rc<Shard<R, D>>, report: &RecoveryReport) {
        let mut recovery = self.recovery.get();
        recovery.add(report);
        self.recovery.set(recovery);
        self.take_in_dirty(&shard);
        self.parts.shards.add(number, shard);
        if self.parts.shards.loaded_count() == self.parts.shards.len() {
            let passed = self.parts.runtime.now().since(self.began);
            self.load_ms.set(Some(passed.as_millis() as u64));
        }
    }

    /// How the shards that are here were recovered.
    pub fn recovery(&self) -> RecoveryReport {
        self.recovery.get()
    }

    /// How long it took until all shards were here, milliseconds; `None` before that.
    pub fn load_ms(&self) -> Option<u64> {
        self.load_ms.get()
    }

    /// The number of a block's shard.
    pub(crate) fn shard_number(&self, hash: BlockHash) -> u32 {
        self.parts.topology.shard_of(hash)
    }

    /// The shard of a block, if it is loaded.
    pub(crate) fn shard(&self, hash: BlockHash) -> Option<Rc<Shard<R, D>>> {
        self.parts.shards.get(self.shard_number(hash))
    }

    /// Whether the store must be asked before records of a block's shard are served.
    pub(crate) fn is_doubtful(&self, hash: BlockHash) -> bool {
        self.shard(hash).is_some_and(|shard| shard.is_doubtful())
    }

    /// Waits a moment for the shard of a block that is to be read. Without it the block is fetched
    /// and not kept: the store knows every block, the shard only saves a request. Where writes are
    /// acknowledged before the store has them, only the shard knows.
    ///
    /// # Errors
    /// [`ReadError::Loading`] if a shard that must be asked did not arrive in time.
    pub(crate) async fn shard_to_read(
        &self,
        volume: &Volume,
        hash: BlockHash,
    ) -> Result<(), ReadError> {
        if self.shard(hash).is_some() {
            return Ok(());
        }
        let wait = match volume.writeback {
            true => WRITE_LOAD_WAIT,
            false => READ_LOAD_WAIT,
        };
        let arrival = self.parts.shards.arrival(self.shard_number(hash));
        let arrived = timeout(&self.parts.runtime, wait, arrival).await;
        match arrived.is_some() || !volume.writeback {
            true => Ok(()),
            false => Err(ReadError::Loading),
        }
    }

    /// Waits for the shard of a block that is to be written: what it holds of the block is not
    /// known before, and must not come back.
    pub(crate) async fn shard_to_write(&self, hash: BlockHash) -> Result<(), WriteError> {
        if self.shard(hash).is_some() {
            return Ok(());
        }
        let number = self.shard_number(hash);
        let arrival = self.parts.shards.arrival(number);
        let arrived = timeout(&self.parts.runtime, WRITE_LOAD_WAIT, arrival).await;
        arrived.ok_or(WriteError::Loading)
    }

    pub(crate) fn flight(&self, hash: BlockHash) -> Option<Rc<Flight>> {
        self.flights.borrow().get(&hash).cloned()
    }

    /// A block buffer, waited for within reason.
    ///
    /// # Errors
    /// [`ReadError::Overloaded`] when none came free in time.
    pub async fn take_buffer(&self, bytes: usize) -> Result<BufferWriter, ReadError> {
        if let Some(buffer) = self.parts.pool.try_take(bytes) {
            return Ok(buffer);
        }
        // What the RAM tier holds is only a copy: it gives way to requests.
        self.ram.borrow_mut().shed(bytes);
        self.in_time(self.parts.pool.take(bytes)).await
    }

    /// What `taking` gives of the memory for blocks, waited for within reason.
    ///
    /// # Errors
    /// [`ReadError::Overloaded`] when none came free in time.
    pub(crate) async fn in_time<T>(&self, taking: impl Future<Output = T>) -> Result<T, ReadError> {
        let mut taking = std::pin::pin!(taking);
        // Nearly always there is room: no timer for that.
        if let Poll::Ready(taken) = futures::poll!(taking.as_mut()) {
            return Ok(taken);
        }
        let taken = timeout(&self.parts.runtime, BUFFER_WAIT, taking);
        taken.await.ok_or_else(|| {
            self.stats.overloads.add(1);
            ReadError::Overloaded
        })
    }

    /// Makes the RAM tier give way to the buffers of a read that is about to begin: of so many
    /// bytes of a record's payload.
    pub(crate) fn make_room(&self, bytes: usize, payload_length: usize) {
        let pool = &self.parts.pool;
        // A read of a part takes whole chunks, and a second buffer for the header.
        let body = payload_length.min(bytes + 2 * CHUNK_BYTES);
        let header = if body < payload_length { 2 * PAGE } else { 0 };
        // A buffer may be almost twice as large as what it is for.
        let needed = header + PAGE + body.max(PAGE).next_power_of_two();
        let free = pool.budget_bytes().saturating_sub(pool.used_bytes());
        self.ram.borrow_mut().shed(needed.saturating_sub(free));
    }

    /// Notes a read of part of a block that the RAM tier does not hold, whoever answers it.
    /// Returns whether the block is hot by now.
    pub(crate) fn note_read(&self, hash: BlockHash, range: &Range<usize>, length: u64) -> bool {
        let mut ram = self.ram.borrow_mut();
        ram.note_read(hash, range.len(), length as usize)
    }

    /// Whether a block's record is the only copy of it.
    pub(crate) fn is_dirty(&self, hash: BlockHash) -> bool {
        self.shard(hash).is_some_and(|shard| shard.is_dirty(hash))
    }

    /// Whether the store does not have what clients are told of. What is in conflict they are not.
    pub(crate) fn is_here_alone(&self, hash: BlockHash) -> bool {
        self.is_dirty(hash) && !self.uploads.is_conflict(hash)
    }

    /// Remembers what the store said of an object when it was asked at `asked`: what it says may be
    /// as old as that.
    pub(crate) fn learn(
        &self,
        id: &BlockId,
        hash: BlockHash,
        meta: Arc<ObjectMeta>,
        asked: MonoTime,
    ) {
        let validated = Some(asked);
        let store_identity = id.volume.store_identity;
        let head = Head {
            meta,
            store_etag: None,
            store_identity,
            validated,
            excused_until: None,
        };
        self.heads.borrow_mut().put(hash, head);
    }

    /// Remembers that the store has just said there is no such object, where the volume wants that.
    pub(crate) fn learn_absence(&self, id: &BlockId, hash: BlockHash) {
        let volume = &id.volume;
        if !volume.absence_ttl.is_zero() {
            let until = self.parts.runtime.now().plus(volume.absence_ttl);
            let mut absences = self.absences.borrow_mut();
            absences.note(hash, volume.store_identity, until);
        }
    }

    /// Whether the store has lately said that there is no such object.
    pub(crate) fn is_absent(&self, id: &BlockId, hash: BlockHash) -> bool {
        let now = self.parts.runtime.now();
        let identity = id.volume.store_identity;
        // A volume that was told to forget does so at once.
        !id.volume.absence_ttl.is_zero() && self.absences.borrow_mut().holds(hash, identity, now)
    }

    /// Whether `meta` is what the home takes for the current version.
    pub(crate) fn is_current(&self, hash: BlockHash, meta: &ObjectMeta) -> bool {
        self.heads
            .borrow()
            .peek(hash)
            .is_some_and(|head| head.meta.etag == meta.etag || head.validator() == meta.etag)
    }

    /// A store tells checksums with an object's description and not with parts of its bytes: what is
    /// remembered of the same version is still true.
    pub(crate) fn inherit_checksum(&self, hash: BlockHash, meta: &mut ObjectMeta) {
        if let Some(head) = self.heads.borrow().peek(hash)
            && head.validator() == meta.etag
            && head.meta.size == meta.size
        {
            meta.inherit_checksum(&head.meta);
        }
    }

    /// The store's ETag of the version that is remembered, if one is.
    pub(crate) fn known_store_etag(&self, hash: BlockHash) -> Option<String> {
        let heads = self.heads.borrow();
        heads.peek(hash).map(|head| head.validator().to_owned())
    }

    /// The store has what is remembered of an object now, under this ETag.
    pub(crate) fn learn_upload(&self, hash: BlockHash, store_etag: &str) {
        let mut heads = self.heads.borrow_mut();
        let Some(mut head) = heads.peek(hash).cloned() else {
            return;
        };
        head.store_etag = (*store_etag != head.meta.etag).then(|| store_etag.into());
        head.validated = Some(self.parts.runtime.now());
        heads.put(hash, head);
    }

    /// The store, asked at `asked`, has confirmed what is known of an object.
    pub(crate) fn confirm(&self, hash: BlockHash, asked: MonoTime) {
        if let Some(head) = self.heads.borrow_mut().get(hash) {
            head.validated = Some(asked);
        }
    }

    /// The store did not answer: the copy is served a little longer.
    pub(crate) fn excuse(&self, hash: BlockHash) {
        self.stats.stale_served.add(1);
        if let Some(head) = self.heads.borrow_mut().get(hash) {
            head.excused_until = Some(self.parts.runtime.now().plus(STALE_GRACE));
        }
    }

    /// Forgets an object: what is in RAM, in the index and remembered of it. Returns whether a
    /// record of it may still be found at the next start.
    pub(crate) fn forget(&self, hash: BlockHash) -> bool {
        self.ram.borrow_mut().remove(hash);
        self.heads.borrow_mut().remove(hash);
        self.shard(hash).is_some_and(|shard| shard.forget(hash))
    }

    /// The counters now.
    pub fn snapshot(&self) -> CoreSnapshot {
        let parts = &self.parts;
        let loaded = parts.shards.loaded();
        let shards = || loaded.iter();
        let ram = self.ram.borrow();
        let (fetches, uploads) = parts.uplink.backlog();
        let layout_bytes = |shard: &Rc<Shard<R, D>>| {
            let layout = shard.log().layout();
            u64::from(layout.segments_max) * layout.segment_bytes
        };
        CoreSnapshot {
            core: parts.index,
            shards: parts.shards.len() as u64,
            shards_loaded: parts.shards.loaded_count() as u64,
            shards_full: shards()
                .filter(|shard| shard.log().is_growth_refused())
                .count() as u64,
            blocks: shards().map(|shard| shard.len() as u64).sum(),
            disk_overdue: self.patience.overdue(),
            disk_used_bytes: shards().map(|shard| shard.log().used_bytes()).sum(),
            disk_quota_bytes: shards().map(layout_bytes).sum(),
            shard_counters: shard_values(&loaded),
            ram_bytes: ram.pinned_bytes() as u64,
            ram_blocks: ram.len() as u64,
            buffer_bytes: parts.pool.used_bytes() as u64,
            buffer_kept_bytes: parts.pool.kept_bytes() as u64,
            buffer_budget_bytes: parts.pool.budget_bytes() as u64,
            flights: self.flights.borrow().len() as u64,
            turns: self.turns.len() as u64,
            uplink_backlog: (fetches as u64, uploads as u64),
            counters: self.stats.values(),
            store_requests: parts.uplink.stats().requests.borrow().clone(),
            store_latency: parts.uplink.stats().latency.snapshot(),
            recovery: self.recovery.get(),
            load_ms: self.load_ms.get(),
            scrub: self.scrub_progress(),
        }
    }

    /// Makes all that was acknowledged durable and seals every shard's open segments, so that the
    /// next start reads footers only.
    pub async fn seal(&self) {
        let shards = self.parts.shards.loaded();
        let seals = shards.iter().map(async |shard| {
            shard.flush().await;
            shard.log().seal_open().await;
        });
        futures::future::join_all(seals).await;
    }
}

/// The sums of what shards count.
fn shard_values<R: Runtime, D: Disk>(shards: &[Rc<Shard<R, D>>]) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for shard in shards {
        for (name, value) in shard.stats().values() {
            *sums.entry(name).or_default() += value;
        }
    }
    sums
}
