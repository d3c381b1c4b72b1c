//! One core's part of the cache: its shards, its RAM tier, what it knows of objects.
//!
//! A block is owned by one core, so everything that must happen once or in order (fetching it,
//! replacing it, deleting it) happens here, without a lock. Reading is in this file, fetching in
//! [`crate::flight`], writing in [`crate::write`]. It never waits for a client: what it starts for
//! one reader outlives that reader.
//!
//! The *home* of an object is the owner of its block 0. Only the home knows which version of the
//! object is current; other blocks are asked for by version.

use crate::flight::{Flight, Landing, Plan};
use crate::format::{CHUNK_BYTES, RecordHeader, RecordState};
use crate::heads::{HEADS_BYTES_MAX, Head, Heads};
use crate::index::{BlockMap, Location};
use crate::key::{BlockHash, BlockId, Freshness, Topology, Volume};
use crate::marks::Mark;
use crate::messages::{BlockBody, BlockRequest, Opened, Outcome, ReadError, WriteError};
use crate::patience::Patience;
use crate::ram::{RamBlock, RamTier};
use crate::range::{RangeSpec, block_span, part_of_block};
use crate::recover::RecoveryReport;
use crate::scrub::Scrub;
use crate::shard::{FoundRecord, ReadFailure, Shard};
use crate::stats::{CoreSnapshot, CoreStats};
use crate::table::ShardTable;
use crate::upload::{Uploads, WritebackSettings};
use forebay_io::buffer::{BufferWriter, PAGE, Pool, View, Watch};
use forebay_io::disk::Disk;
use forebay_io::local::Turns;
use forebay_io::runtime::{MonoTime, Runtime, timeout};
use forebay_io::store::{ByteSpan, ObjectMeta};
use forebay_io::uplink::Uplink;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a request waits for a block buffer before it is refused. Longer than any burst that
/// still drains, shorter than a client's patience.
const BUFFER_WAIT: Duration = Duration::from_secs(5);

/// How long a copy that could not be checked, because the store did not answer, is served before
/// the store is asked again.
const STALE_GRACE: Duration = Duration::from_secs(1);

/// How long a read waits for its shard when the server has just started. A shard loads in some
/// tens of milliseconds, and one that is waited for loads next; a store over a WAN takes as long.
const READ_LOAD_WAIT: Duration = Duration::from_millis(200);

/// How long a write waits for its shard. Much longer than loading takes on any healthy disk.
const WRITE_LOAD_WAIT: Duration = Duration::from_secs(20);

/// Rounds of an open before it gives up. Each round ends because something changed meanwhile
/// (a fetch landed, a record turned out damaged); more than a few mean constant overwriting.
const OPEN_ROUNDS_MAX: usize = 8;

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
    heads: RefCell<Heads>,
    pub(crate) flights: RefCell<BlockMap<Rc<Flight>>>,
    pub(crate) turns: Turns<BlockHash>,
    pub(crate) stats: CoreStats,
    pub(crate) patience: Patience<R>,
    pub(crate) uploads: Uploads,
    recovery: Cell<RecoveryReport>,
    began: MonoTime,
    /// From `began` until the last shard was here.
    load_ms: Cell<Option<u64>>,
    /// The scrub of each shard that had one, by its number.
    pub(crate) scrubs: RefCell<BTreeMap<u32, Rc<Scrub<R, D>>>>,
}

/// What has happened to one open so far.
#[derive(Default)]
struct Story {
    /// How the answer will have come about, if not from what was cached.
    outcome: Option<Outcome>,
    /// Whether the store was asked for this open: its answer, or its silence, holds for this one
    /// however short the time to live is.
    asked: bool,
}

/// What a home knows of an object.
enum Known {
    Nothing,
    Fresh(Arc<ObjectMeta>),
    /// With the store's own ETag of it.
    Stale(Arc<ObjectMeta>, String),
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
            flights: RefCell::default(),
            turns: Turns::default(),
            stats: CoreStats::default(),
            patience,
            uploads,
            recovery: Cell::default(),
            load_ms: Cell::default(),
            scrubs: RefCell::default(),
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
    fn is_doubtful(&self, hash: BlockHash) -> bool {
        self.shard(hash).is_some_and(|shard| shard.is_doubtful())
    }

    /// Waits a moment for the shard of a block that is to be read. Without it the block is fetched
    /// and not kept: the store knows every block, the shard only saves a request. Where writes are
    /// acknowledged before the store has them, only the shard knows.
    ///
    /// # Errors
    /// [`ReadError::Loading`] if a shard that must be asked did not arrive in time.
    async fn shard_to_read(&self, volume: &Volume, hash: BlockHash) -> Result<(), ReadError> {
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
        let taken = timeout(
            &self.parts.runtime,
            BUFFER_WAIT,
            self.parts.pool.take(bytes),
        )
        .await;
        taken.ok_or_else(|| {
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
    fn note_read(&self, hash: BlockHash, range: &Range<usize>, length: u64) -> bool {
        let mut ram = self.ram.borrow_mut();
        ram.note_read(hash, range.len(), length as usize)
    }

    /// Describes the object whose block 0 is `id` and gives block 0's part of `wanted`.
    pub async fn open(
        self: &Rc<Self>,
        id: BlockId,
        wanted: Option<RangeSpec>,
    ) -> Result<Opened, ReadError> {
        assert_eq!(id.number, 0, "objects are opened at their home");
        let hash = id.hash();
        self.shard_to_read(&id.volume, hash).await?;
        let mut story = Story::default();
        for _ in 0..OPEN_ROUNDS_MAX {
            let (flight, own) = match self.flight(hash) {
                Some(flight) => (flight, false),
                None => {
                    let known = match self.known(&id, hash).await? {
                        Known::Stale(meta, _) if story.asked => Known::Fresh(meta),
                        known => known,
                    };
                    let plan = match known {
                        Known::Fresh(meta) => {
                            match self.serve(&id, hash, meta, wanted, story.outcome).await {
                                Some(answer) => return answer,
                                None => Plan::fill(id.clone()),
                            }
                        }
                        Known::Stale(_, validator) => Plan::check(id.clone(), &validator, wanted),
                        Known::Nothing => Plan::first_sight(id.clone(), wanted),
                    };
                    // The steps above may have waited, and another reader may have started.
                    match self.flight(hash) {
                        Some(flight) => (flight, false),
                        None => (self.launch(hash, plan), true),
                    }
                }
            };
            match self.land(&flight, own, &mut story).await? {
                Some((meta, watch, outcome)) => {
                    let length = block_span(0, id.volume.block_bytes, meta.size).len();
                    return answer(&id, meta, wanted, outcome, |range| {
                        self.note_read(hash, &range, length);
                        BlockBody::Filling { watch, range }
                    });
                }
                None => continue,
            }
        }
        Err(ReadError::Changed)
    }

    /// Waits for a flight's head: the block as it fills, or nothing when the next round will find
    /// what is needed. `story` then says how.
    async fn land(
        &self,
        flight: &Flight,
        own: bool,
        story: &mut Story,
    ) -> Result<Option<(Arc<ObjectMeta>, Watch, Outcome)>, ReadError> {
        let outcome = match own {
            true => Outcome::Miss,
            // After the last byte, while the record is being written: served from memory.
            false if flight.has_arrived() => Outcome::HitRam,
            false => Outcome::Coalesced,
        };
        if outcome == Outcome::Coalesced {
            self.stats.coalesced.add(1);
        }
        let landing = flight.landing().await;
        story.asked = true;
        match landing {
            Landing::Body(meta, watch) => Ok(Some((meta, watch, outcome))),
            Landing::Described => {
                story.outcome = Some(outcome);
                Ok(None)
            }
            Landing::Confirmed => {
                story.outcome = Some(Outcome::Revalidated);
                Ok(None)
            }
            Landing::Unchecked => Ok(None),
            Landing::Failed(error) => Err(error),
        }
    }

    /// Answers from what is cached; `None` if block 0 is needed and not here.
    async fn serve(
        &self,
        id: &BlockId,
        hash: BlockHash,
        meta: Arc<ObjectMeta>,
        wanted: Option<RangeSpec>,
        story: Option<Outcome>,
    ) -> Option<Result<Opened, ReadError>> {
        let span = match wanted.map(|spec| spec.resolve(meta.size)) {
            Some(Ok(span)) => span,
            Some(Err(_)) => return Some(Err(ReadError::NotSatisfiable { size: meta.size })),
            None => ByteSpan { start: 0, end: 0 },
        };
        let range = part_of_block(span, 0, id.volume.block_bytes);
        if range.is_empty() {
            let outcome = match self.is_dirty(hash) {
                true => Outcome::HitDirty,
                false => story.unwrap_or(Outcome::HitRam),
            };
            return Some(Ok(Opened {
                meta,
                outcome,
                span,
                first: None,
            }));
        }
        let (view, outcome) = match self.cached(id, hash, &meta, range).await {
            Ok(found) => found?,
            Err(error) => return Some(Err(error)),
        };
        let outcome = match outcome {
            Outcome::HitDirty => outcome,
            outcome => story.unwrap_or(outcome),
        };
        Some(Ok(Opened {
            meta,
            outcome,
            span,
            first: Some(BlockBody::Ready(view)),
        }))
    }

    /// Gives part of a block of a known version of an object.
    pub async fn read_block(
        self: &Rc<Self>,
        request: BlockRequest,
    ) -> Result<(BlockBody, Outcome), ReadError> {
        let BlockRequest { id, meta, range } = request;
        let hash = id.hash();
        self.shard_to_read(&id.volume, hash).await?;
        let span = block_span(id.number, id.volume.block_bytes, meta.size);
        let (flight, own) = match self.flight(hash) {
            Some(flight) => (flight, false),
            None => {
                if let Some((view, outcome)) = self.cached(&id, hash, &meta, range.clone()).await? {
                    return Ok((BlockBody::Ready(view), outcome));
                }
                match self.flight(hash) {
                    Some(flight) => (flight, false),
                    None => (self.launch(hash, Plan::version(id, &meta)), true),
                }
            }
        };
        match self.land(&flight, own, &mut Story::default()).await {
            Ok(Some((found, watch, outcome)))
                if found.etag == meta.etag && found.size == meta.size =>
            {
                self.note_read(hash, &range, span.len());
                Ok((BlockBody::Filling { watch, range }, outcome))
            }
            Ok(_) => Err(ReadError::Changed),
            Err(error) => Err(error),
        }
    }

    /// Part of a block from RAM or disk, if it is here in the version of `meta`.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] if it is here alone and cannot be read.
    async fn cached(
        &self,
        id: &BlockId,
        hash: BlockHash,
        meta: &ObjectMeta,
        range: Range<usize>,
    ) -> Result<Option<(View, Outcome)>, ReadError> {
        if let Some(found) = self.in_ram(id, hash, meta, &range) {
            return Ok(Some(found));
        }
        let Some((shard, location)) = self.located(id, hash, meta) else {
            return Ok(None);
        };
        let number = self.shard_number(hash);
        let is_dirty = shard.is_dirty(hash);
        if self.patience.is_read_overdue(number) {
            return self.without_copy(is_dirty, "the disk does not answer");
        }
        // Of a block that is worth keeping in memory all is read, however little is wanted now.
        let payload_length = location.payload_length as usize;
        let inside = match self.note_read(hash, &range, payload_length as u64) {
            true => 0..payload_length,
            false => range.clone(),
        };
        let skipped = inside.start;
        self.make_room(inside.len(), payload_length);
        shard.touch(hash, range.len());
        let reader = shard.clone();
        let reading = async move { reader.read(hash, location, inside).await };
        match self.patience.read(number, reading).await {
            Some(Ok(found)) if is_version(&found.header, id, meta) => {
                let wanted = range.start - skipped..range.end - skipped;
                Ok(Some(self.found_on_disk(
                    hash, &shard, location, found, wanted, is_dirty,
                )))
            }
            Some(Ok(_)) => {
                shard.forget_if_at(hash, location);
                Ok(None)
            }
            Some(Err(failure)) => {
                self.note_failure(id, &failure);
                let is_lost = is_dirty && !matches!(failure, ReadFailure::Gone);
                self.without_copy(is_lost, &failure.to_string())
            }
            None => self.without_copy(is_dirty, "the disk does not answer"),
        }
    }

    /// The outcome of a read that found nothing: the store has it, unless the block is dirty.
    fn without_copy<T>(&self, is_dirty: bool, problem: &str) -> Result<Option<T>, ReadError> {
        match is_dirty {
            true => Err(ReadError::Unreadable(problem.to_owned())),
            false => Ok(None),
        }
    }

    fn in_ram(
        &self,
        id: &BlockId,
        hash: BlockHash,
        meta: &ObjectMeta,
        range: &Range<usize>,
    ) -> Option<(View, Outcome)> {
        let block = self.ram.borrow_mut().get(hash)?;
        if !is_version(&block.header, id, meta) {
            self.ram.borrow_mut().remove(hash);
            return None;
        }
        if let Some(shard) = self.shard(hash) {
            shard.touch(hash, range.len());
        }
        let outcome = match self.is_dirty(hash) {
            true => Outcome::HitDirty,
            false => Outcome::HitRam,
        };
        Some((block.payload.slice(range.clone()), outcome))
    }

    /// Where a block of the version of `meta` is on disk.
    fn located(
        &self,
        id: &BlockId,
        hash: BlockHash,
        meta: &ObjectMeta,
    ) -> Option<(Rc<Shard<R, D>>, Location)> {
        let shard = self.shard(hash)?;
        let location = shard.find(hash)?;
        let expected = block_span(id.number, id.volume.block_bytes, meta.size);
        if u64::from(location.payload_length) != expected.len() {
            shard.forget_if_at(hash, location);
            return None;
        }
        Some((shard, location))
    }

    /// The answer from a record, which enters the RAM tier if it is hot.
    fn found_on_disk(
        &self,
        hash: BlockHash,
        shard: &Shard<R, D>,
        location: Location,
        found: FoundRecord,
        wanted: Range<usize>,
        is_dirty: bool,
    ) -> (View, Outcome) {
        self.stats.records_read.add(1);
        self.stats.record_bytes_read.add(wanted.len() as u64);
        let answer = found.wanted.slice(wanted);
        // Still the newest: an overwrite during the read has replaced the location.
        if let Some(payload) = found.whole
            && shard.find(hash) == Some(location)
        {
            let header = Rc::new(found.header);
            let block = RamBlock { header, payload };
            self.ram.borrow_mut().insert_if_hot(hash, block);
        }
        let outcome = match is_dirty {
            true => Outcome::HitDirty,
            false => Outcome::HitDisk,
        };
        (answer, outcome)
    }

    /// Whether a block's record is the only copy of it.
    pub(crate) fn is_dirty(&self, hash: BlockHash) -> bool {
        self.shard(hash).is_some_and(|shard| shard.is_dirty(hash))
    }

    fn note_failure(&self, id: &BlockId, failure: &ReadFailure) {
        match failure {
            ReadFailure::Gone => return,
            ReadFailure::Damaged(_) => self.stats.damaged_records.add(1),
            ReadFailure::Disk(_) => self.stats.read_failures.add(1),
        }
        log::warn!(
            "{}/{} block {}: {failure}",
            id.volume.name,
            id.key,
            id.number
        );
    }

    /// What is known of an object without asking the store.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] if it is here alone and cannot be read.
    async fn known(&self, id: &BlockId, hash: BlockHash) -> Result<Known, ReadError> {
        // The store has something newer than what is held of the key.
        if self.uploads.is_conflict(hash) {
            return Ok(Known::Nothing);
        }
        let identity = id.volume.store_identity;
        let head = self.heads.borrow_mut().get(hash).map(|head| head.clone());
        let head = match head {
            Some(head) if head.store_identity == identity => Some(head),
            _ => self.head_from_record(id, hash).await?,
        };
        let Some(head) = head else {
            return Ok(Known::Nothing);
        };
        let fresh = match id.volume.freshness {
            // The store cannot know it better.
            _ if self.is_dirty(hash) => true,
            // Written once, but perhaps deleted by a tombstone that is lost.
            Freshness::Immutable => head.validated.is_some() || !self.is_doubtful(hash),
            Freshness::RevalidateAfter(limit) => {
                let now = self.parts.runtime.now();
                head.validated.is_some_and(|when| now.since(when) < limit)
                    || head.excused_until.is_some_and(|end| now < end)
            }
        };
        Ok(match fresh {
            true => Known::Fresh(head.meta),
            false => {
                let validator = head.validator().to_owned();
                Known::Stale(head.meta, validator)
            }
        })
    }

    async fn head_from_record(
        &self,
        id: &BlockId,
        hash: BlockHash,
    ) -> Result<Option<Head>, ReadError> {
        let number = self.shard_number(hash);
        let Some(shard) = self.shard(hash) else {
            return Ok(None);
        };
        let Some(location) = shard.find(hash) else {
            return Ok(None);
        };
        let is_dirty = shard.is_dirty(hash);
        if self.patience.is_read_overdue(number) {
            return self.without_copy(is_dirty, "the disk does not answer");
        }
        let reader = shard.clone();
        let reading = async move { reader.read_header(hash, location).await };
        match self.patience.read(number, reading).await {
            Some(Ok(header)) if names(&header, id) => {
                Ok(Some(self.remember(hash, &shard, location, header).await))
            }
            Some(Ok(_)) => {
                shard.forget_if_at(hash, location);
                Ok(None)
            }
            Some(Err(failure)) => {
                self.note_failure(id, &failure);
                let is_lost = is_dirty && !matches!(failure, ReadFailure::Gone);
                self.without_copy(is_lost, &failure.to_string())
            }
            None => self.without_copy(is_dirty, "the disk does not answer"),
        }
    }

    /// Remembers the object that a record is of.
    async fn remember(
        &self,
        hash: BlockHash,
        shard: &Shard<R, D>,
        location: Location,
        header: RecordHeader,
    ) -> Head {
        let store_etag = match header.state {
            // Uploaded since it was written: the ledger knows what the store calls it.
            RecordState::Dirty | RecordState::Conflict => uploaded_etag(shard, location).await,
            RecordState::Clean => header.store_etag,
        };
        let head = Head {
            store_identity: header.store_identity,
            store_etag: (!store_etag.is_empty()).then(|| store_etag.into()),
            validated: match shard.is_doubtful() {
                true => None,
                false => self.validated_before(header.validated_at),
            },
            meta: Arc::new(header.meta),
            excused_until: None,
        };
        if shard.find(hash) == Some(location) {
            self.heads.borrow_mut().put(hash, head.clone());
        }
        head
    }

    /// A wall-clock time as a point of this run's clock. One that lies ahead is worth nothing: the
    /// wall clock has jumped.
    fn validated_before(&self, unix_seconds: u64) -> Option<MonoTime> {
        let age = self
            .parts
            .runtime
            .unix_seconds()
            .checked_sub(unix_seconds)?;
        let now = self.parts.runtime.now();
        now.0
            .checked_sub(age.saturating_mul(1_000_000_000))
            .map(MonoTime)
    }

    /// Remembers what the store has just said of an object.
    pub(crate) fn learn(&self, id: &BlockId, hash: BlockHash, meta: Arc<ObjectMeta>) {
        let validated = Some(self.parts.runtime.now());
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

    /// Whether `meta` is what the home takes for the current version.
    pub(crate) fn is_current(&self, hash: BlockHash, meta: &ObjectMeta) -> bool {
        self.heads
            .borrow()
            .peek(hash)
            .is_some_and(|head| head.meta.etag == meta.etag || head.validator() == meta.etag)
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

    /// The store has confirmed what is known of an object.
    pub(crate) fn confirm(&self, hash: BlockHash) {
        if let Some(head) = self.heads.borrow_mut().get(hash) {
            head.validated = Some(self.parts.runtime.now());
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

/// What the store calls the record at `location`, which it took from us; empty if that is not known.
async fn uploaded_etag<R: Runtime, D: Disk>(shard: &Shard<R, D>, location: Location) -> String {
    let (Some(marks), Some(place)) = (shard.marks(), shard.mark_place(location)) else {
        return String::new();
    };
    match marks.get(place).await {
        Some(Mark::Uploaded { store_etag }) => store_etag,
        _ => String::new(),
    }
}

/// Whether a record is of this block of this store.
pub(crate) fn names(header: &RecordHeader, id: &BlockId) -> bool {
    header.store_identity == id.volume.store_identity
        && header.block_number == id.number
        && header.block_bytes == id.volume.block_bytes
        && header.volume == id.volume.name
        && *header.key == *id.key
}

/// Whether a record is of this version of this block.
fn is_version(header: &RecordHeader, id: &BlockId, meta: &ObjectMeta) -> bool {
    names(header, id) && header.meta.etag == meta.etag && header.meta.size == meta.size
}

/// The answer to an open whose block 0 is `body`.
fn answer(
    id: &BlockId,
    meta: Arc<ObjectMeta>,
    wanted: Option<RangeSpec>,
    outcome: Outcome,
    body: impl FnOnce(Range<usize>) -> BlockBody,
) -> Result<Opened, ReadError> {
    let Some(spec) = wanted else {
        let span = ByteSpan { start: 0, end: 0 };
        return Ok(Opened {
            meta,
            outcome,
            span,
            first: None,
        });
    };
    let size = meta.size;
    let span = spec
        .resolve(size)
        .map_err(|_| ReadError::NotSatisfiable { size })?;
    let range = part_of_block(span, 0, id.volume.block_bytes);
    let first = (!range.is_empty()).then(|| body(range));
    Ok(Opened {
        meta,
        outcome,
        span,
        first,
    })
}
