//! Fetches in flight: one per block, joined by every reader, tied to none.
//!
//! This file owns the way of a miss. The first reader launches a flight; all others join it and
//! are told once its head is known; then they read the block while it arrives. A flight runs to
//! its end whoever leaves. Short, long or contradictory answers fail it, and a failed flight
//! leaves nothing in the cache.

use crate::core::Core;
use crate::format::{PayloadChecksums, RecordHeader, RecordKind};
use crate::key::{BlockHash, BlockId, Freshness, Volume};
use crate::messages::{BlockPayload, ReadError};
use crate::ram::RamBlock;
use crate::range::{RangeSpec, block_span};
use crate::shard::AppendFailure;
use forebay_io::buffer::{BufferWriter, Watch};
use forebay_io::disk::Disk;
use forebay_io::local::Event;
use forebay_io::runtime::{MonoTime, Runtime};
use forebay_io::store::{ByteSpan, GetRequest, ObjectMeta, StoreError, StoreErrorKind};
use forebay_io::uplink::Fetched;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// What a flight asks of the store.
pub struct Plan {
    id: BlockId,
    kind: PlanKind,
    /// Whether we have a copy that is only too old: it stands in if the store does not answer.
    checking: bool,
    /// The version that is wanted, where it is known: the cache may have its bytes under other names.
    known: Option<Arc<ObjectMeta>>,
}

enum PlanKind {
    /// The block, whatever its version.
    Fill,
    /// The block, only if its object is no longer the version that we have.
    Check { etag: String },
    /// The block of one version.
    Version { etag: String, size: u64 },
    /// The object's description only.
    Describe,
}

impl Plan {
    /// Fetches block 0.
    pub fn fill(id: BlockId) -> Plan {
        Plan {
            id,
            kind: PlanKind::Fill,
            checking: false,
            known: None,
        }
    }

    /// Brings block 0 of an object that is known to be as `meta` says.
    pub fn fill_known(id: BlockId, meta: Arc<ObjectMeta>) -> Plan {
        Plan {
            known: Some(meta),
            ..Plan::fill(id)
        }
    }

    /// Asks whether the object is still the version with the store's ETag `validator`; fetches
    /// block 0 if it is not and `wanted` begins in it.
    pub fn check(id: BlockId, validator: &str, wanted: Option<RangeSpec>) -> Plan {
        let sight = Plan::first_sight(id, wanted);
        // A weak or missing tag confirms nothing.
        let strong = !validator.is_empty() && !validator.starts_with("W/");
        let kind = match sight.kind {
            PlanKind::Fill if strong => PlanKind::Check {
                etag: validator.to_owned(),
            },
            kind => kind,
        };
        Plan {
            kind,
            checking: true,
            ..sight
        }
    }

    /// Fetches a block of the version that `meta` describes.
    pub fn version(id: BlockId, meta: &Arc<ObjectMeta>) -> Plan {
        let kind = PlanKind::Version {
            etag: meta.etag.clone(),
            size: meta.size,
        };
        Plan {
            id,
            kind,
            checking: false,
            known: Some(meta.clone()),
        }
    }

    /// For an object of which nothing is known: block 0 if `wanted` begins in it, else only the
    /// description, for a range of 100 bytes must not fetch a block that it does not touch.
    pub fn first_sight(id: BlockId, wanted: Option<RangeSpec>) -> Plan {
        let first_byte = wanted.and_then(RangeSpec::first_byte);
        let kind = match first_byte {
            Some(first) if first < id.volume.block_bytes => PlanKind::Fill,
            _ => PlanKind::Describe,
        };
        Plan {
            id,
            kind,
            checking: false,
            known: None,
        }
    }

    fn request(&self) -> GetRequest {
        let block_bytes = self.id.volume.block_bytes;
        let size = match self.kind {
            PlanKind::Version { size, .. } => size,
            _ => u64::MAX,
        };
        let mut request = GetRequest {
            key: self.id.key.to_string(),
            span: Some(block_span(self.id.number, block_bytes, size)),
            ..GetRequest::default()
        };
        match &self.kind {
            PlanKind::Check { etag } => request.if_none_match = Some(etag.clone()),
            PlanKind::Version { etag, .. } if !etag.starts_with("W/") && !etag.is_empty() => {
                request.if_match = Some(etag.clone());
            }
            PlanKind::Version { .. } | PlanKind::Fill | PlanKind::Describe => {}
        }
        request
    }
}

/// What became of a flight's head.
#[derive(Clone)]
pub enum Landing {
    /// The block arrives.
    Body(Arc<ObjectMeta>, Watch),
    /// The block is here: the cache had its bytes under other names.
    Assembled(Arc<ObjectMeta>, Watch),
    /// The object's description is known now.
    Described,
    /// The object's description, which must not be remembered: of its key something is held back.
    Told(Arc<ObjectMeta>),
    /// The store confirmed our copy.
    Confirmed,
    /// The store did not answer; our copy stands in for a while.
    Unchecked,
    /// Nothing to be had.
    Failed(ReadError),
}

/// A fetch in flight.
pub struct Flight {
    /// When it was launched: what the store says may be as old as that, however long the bytes take.
    asked: MonoTime,
    landed: Event,
    landing: RefCell<Option<Landing>>,
    /// Nobody can join it any more.
    ended: Event,
    /// Something newer than this fetch was written: it must not be cached.
    superseded: Cell<bool>,
}

impl Flight {
    fn new(asked: MonoTime) -> Flight {
        Flight {
            asked,
            landed: Event::default(),
            landing: RefCell::default(),
            ended: Event::default(),
            superseded: Cell::default(),
        }
    }

    fn land(&self, landing: Landing) {
        *self.landing.borrow_mut() = Some(landing);
        self.landed.set();
    }

    /// Waits until the head is known.
    pub async fn landing(&self) -> Landing {
        self.landed.wait().await;
        self.landing.borrow().clone().expect("landed")
    }

    /// Whether a read of `volume` that began at `since` may be answered by it. What the store has said
    /// by then must be no older than what is cached may be; what it has yet to say is news.
    pub fn is_young_enough(&self, volume: &Volume, since: MonoTime, now: MonoTime) -> bool {
        let Freshness::RevalidateAfter(limit) = volume.freshness else {
            return true;
        };
        self.asked >= since || self.landing.borrow().is_none() || now.since(self.asked) < limit
    }

    /// Waits until nobody can join it any more.
    pub async fn end(&self) {
        self.ended.wait().await;
    }

    /// Whether the block is complete already.
    pub fn has_arrived(&self) -> bool {
        match &*self.landing.borrow() {
            Some(Landing::Body(_, watch) | Landing::Assembled(_, watch)) => watch.is_finished(),
            _ => false,
        }
    }

    /// Keeps what this flight brings out of the cache.
    pub fn supersede(&self) {
        self.superseded.set(true);
        self.ended.set();
    }
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Starts a flight for a block that has none.
    pub(crate) fn launch(self: &Rc<Self>, hash: BlockHash, plan: Plan) -> Rc<Flight> {
        let flight = Rc::new(Flight::new(self.parts.runtime.now()));
        let before = self.flights.borrow_mut().insert(hash, flight.clone());
        assert!(before.is_none(), "one flight per block");
        let (core, task) = (self.clone(), flight.clone());
        self.parts.runtime.spawn(async move {
            core.fly(hash, plan, &task).await;
            core.end_flight(hash, &task);
        });
        flight
    }

    fn end_flight(&self, hash: BlockHash, flight: &Rc<Flight>) {
        let mut flights = self.flights.borrow_mut();
        if flights
            .get(&hash)
            .is_some_and(|current| Rc::ptr_eq(current, flight))
        {
            flights.remove(&hash);
        }
        flight.ended.set();
    }

    /// Cuts a flight off from new readers and from the cache; returns whether there was one. What is
    /// written now exists.
    pub(crate) fn supersede(&self, hash: BlockHash) -> bool {
        self.absences.borrow_mut().end(hash);
        let flight = self.flights.borrow_mut().remove(&hash);
        flight.inspect(|flight| flight.supersede()).is_some()
    }

    async fn fly(&self, hash: BlockHash, plan: Plan, flight: &Rc<Flight>) {
        if let PlanKind::Describe = plan.kind {
            return self.describe(hash, &plan, flight).await;
        }
        if let Some(meta) = &plan.known
            && let Some((buffer, checksums)) = self.assemble(&plan.id, meta).await
        {
            flight.land(Landing::Assembled(meta.clone(), buffer.watch()));
            let payload = finished(buffer, checksums);
            return self
                .keep_assembled(hash, &plan.id, meta, payload, flight)
                .await;
        }
        self.stats.fills.add(1);
        let answer = self
            .parts
            .uplink
            .get(plan.id.volume.store_number, plan.request())
            .await;
        match answer {
            Ok(fetched) => match check_head(&plan, &fetched) {
                Ok(()) => self.receive(hash, &plan, fetched, flight).await,
                Err(error) => flight.land(Landing::Failed(store_failed(error))),
            },
            Err(error) => self.failed_head(hash, &plan, error, flight).await,
        }
    }

    async fn describe(&self, hash: BlockHash, plan: &Plan, flight: &Flight) {
        let id = &plan.id;
        match self
            .parts
            .uplink
            .head(id.volume.store_number, id.key.to_string())
            .await
        {
            Ok(head) => {
                let meta = head.meta;
                if self.uploads.is_conflict(hash) {
                    return flight.land(Landing::Told(Arc::new(meta)));
                }
                let same = plan.checking && self.is_current(hash, &meta);
                let land = || {
                    match flight.superseded.get() {
                        true => {}
                        // What clients were told of it stays true.
                        false if same => self.confirm(hash, flight.asked),
                        false => self.learn(id, hash, Arc::new(meta.clone()), flight.asked),
                    }
                    flight.land(if same {
                        Landing::Confirmed
                    } else {
                        Landing::Described
                    });
                };
                // The copy that was checked is of another version. It must not be found at the
                // next start, which may see no reason to check it.
                if plan.checking && !same && !flight.superseded.get() && self.forget(hash) {
                    let shard = self.shard_number(hash);
                    let burying = self.bury(hash, id, || !flight.superseded.get());
                    self.patience.watch_write(shard, burying, land).await;
                }
                land();
            }
            Err(error) => self.failed_head(hash, plan, error, flight).await,
        }
    }

    async fn failed_head(&self, hash: BlockHash, plan: &Plan, error: StoreError, flight: &Flight) {
        match error.kind {
            StoreErrorKind::NotModified if plan.checking => {
                if !flight.superseded.get() {
                    self.confirm(hash, flight.asked);
                }
                self.stats.revalidations.add(1);
                flight.land(Landing::Confirmed);
            }
            StoreErrorKind::NotFound if plan.id.number == 0 => {
                let answer = || {
                    if !flight.superseded.get() {
                        self.learn_absence(&plan.id, hash);
                    }
                    flight.land(Landing::Failed(ReadError::NotFound));
                };
                if !flight.superseded.get() && self.forget(hash) {
                    let shard = self.shard_number(hash);
                    let burying = self.bury(hash, &plan.id, || !flight.superseded.get());
                    self.patience.watch_write(shard, burying, answer).await;
                }
                answer();
            }
            StoreErrorKind::PreconditionFailed => flight.land(Landing::Failed(ReadError::Changed)),
            // The object's description has it: deleted or cut shorter since. Its home is told by
            // whoever reads, or it would go on serving what it has of it.
            StoreErrorKind::NotFound | StoreErrorKind::RangeNotSatisfiable
                if plan.id.number != 0 =>
            {
                flight.land(Landing::Failed(ReadError::Changed));
            }
            StoreErrorKind::RangeNotSatisfiable if plan.id.number == 0 => {
                self.receive_empty(hash, plan, flight).await;
            }
            kind if plan.checking && kind.is_retryable() => {
                self.excuse(hash);
                flight.land(Landing::Unchecked);
            }
            _ => flight.land(Landing::Failed(store_failed(error))),
        }
    }

    /// The store says that the object's first byte does not exist: it is empty, which only its
    /// description can prove.
    async fn receive_empty(&self, hash: BlockHash, plan: &Plan, flight: &Flight) {
        let number = plan.id.volume.store_number;
        let meta = match self
            .parts
            .uplink
            .head(number, plan.id.key.to_string())
            .await
            .map(|head| head.meta)
        {
            Ok(meta) if meta.size == 0 => Arc::new(meta),
            // It has been replaced since: its readers look again.
            Ok(meta) => {
                if !flight.superseded.get() {
                    self.learn(&plan.id, hash, Arc::new(meta), flight.asked);
                }
                return flight.land(Landing::Described);
            }
            Err(error) => return flight.land(Landing::Failed(store_failed(error))),
        };
        let Ok(mut buffer) = self.take_buffer(0).await else {
            return flight.land(Landing::Failed(ReadError::Overloaded));
        };
        buffer.finish();
        flight.land(Landing::Body(meta.clone(), buffer.watch()));
        let payload = finished(buffer, PayloadChecksums::default());
        self.keep(hash, &plan.id, meta, payload, flight).await;
    }

    /// Takes the body in, while readers follow, then caches it.
    async fn receive(&self, hash: BlockHash, plan: &Plan, fetched: Fetched, flight: &Flight) {
        let Fetched {
            mut meta,
            span,
            body,
        } = fetched;
        self.inherit_checksum(hash, &mut meta);
        let meta = Arc::new(meta);
        let mut buffer = match self.take_buffer(span.len() as usize).await {
            Ok(buffer) => buffer,
            Err(error) => return flight.land(Landing::Failed(error)),
        };
        flight.land(Landing::Body(meta.clone(), buffer.watch()));
        match fill(&mut buffer, body, span).await {
            Ok(checksums) => {
                self.stats.fill_bytes.add(span.len());
                buffer.finish();
                let payload = finished(buffer, checksums);
                self.keep(hash, &plan.id, meta, payload, flight).await;
            }
            Err(error) => {
                self.stats.fill_failures.add(1);
                let id = &plan.id;
                log::warn!("{}/{} block {}: {error}", id.volume.name, id.key, id.number);
                // Dropping the buffer tells its readers.
            }
        }
    }

    /// Caches a block that was put together. It says nothing new of its object.
    async fn keep_assembled(
        &self,
        hash: BlockHash,
        id: &BlockId,
        meta: &Arc<ObjectMeta>,
        payload: BlockPayload,
        flight: &Flight,
    ) {
        // Block 0 stands for the object: it must be of the version that is current.
        let is_outdated = id.number == 0 && !self.is_current(hash, meta);
        if flight.superseded.get() || is_outdated || self.uploads.is_conflict(hash) {
            return;
        }
        let wanted = || !flight.superseded.get();
        let vouched_at = self.vouched_at(hash, id);
        let storing = self.store_block(hash, id, meta, payload, vouched_at, wanted);
        let shard = self.shard_number(hash);
        self.patience.watch_write(shard, storing, || ()).await;
    }

    /// When the store last vouched for a block, as far as its object's home knows.
    fn vouched_at(&self, hash: BlockHash, id: &BlockId) -> Option<MonoTime> {
        match id.number {
            0 => self.heads.borrow().peek(hash)?.validated,
            // Nothing is deduced from this: it is asked for by version.
            _ => Some(self.parts.runtime.now()),
        }
    }

    async fn keep(
        &self,
        hash: BlockHash,
        id: &BlockId,
        meta: Arc<ObjectMeta>,
        payload: BlockPayload,
        flight: &Flight,
    ) {
        // What is held back from the store must stay the newest record of its key.
        if flight.superseded.get() || self.uploads.is_conflict(hash) {
            return;
        }
        if id.number == 0 {
            self.learn(id, hash, meta.clone(), flight.asked);
        }
        let shard = self.shard_number(hash);
        let wanted = || !flight.superseded.get();
        let storing = self.store_block(hash, id, &meta, payload, Some(flight.asked), wanted);
        self.patience.watch_write(shard, storing, || ()).await;
    }

    /// Puts a block into the log, and into the RAM tier if it is hot already. A block that cannot
    /// be written is not cached on disk. `validated` says when the store was asked for it, if it was. `wanted`
    /// turns false when something newer comes. Returns whether the log was asked: a shard of which
    /// something is overdue is not, for each block that waits for it would keep its memory.
    pub(crate) async fn store_block(
        &self,
        hash: BlockHash,
        id: &BlockId,
        meta: &ObjectMeta,
        payload: BlockPayload,
        validated: Option<MonoTime>,
        wanted: impl Fn() -> bool,
    ) -> bool {
        let view = payload.buffer.watch().view_all();
        let validated_at = validated.map_or(0, |when| self.unix_seconds_at(when));
        let header = RecordHeader {
            kind: RecordKind::Block,
            payload_length: view.len() as u32,
            payload_crc64: payload.crc64nvme,
            chunk_crcs: payload.chunk_crcs,
            meta: meta.clone(),
            ..RecordHeader::tombstone(hash, id, validated_at)
        };
        let block = RamBlock {
            header: Rc::new(header.clone()),
            payload: view,
        };
        self.ram.borrow_mut().insert_if_hot(hash, block);
        let bytes = header.record_bytes();
        let Some(shard) = self.shard(hash) else {
            return true;
        };
        let wanted = || wanted() && !shard.is_dirty(hash) && !self.uploads.is_appending(hash);
        if self.patience.is_overdue(self.shard_number(hash)) {
            self.stats.write_failures.add(1);
            return false;
        }
        // Only block 0 tells which version is current; others are asked for by version.
        let buries = id.number == 0 && shard.may_hold(hash);
        match shard.append(header, payload.buffer, &wanted).await {
            Ok(_) => {
                self.stats.records_written.add(1);
                self.stats.record_bytes_written.add(bytes);
            }
            Err(AppendFailure::Superseded) => {}
            Err(failure) => {
                self.stats.write_failures.add(1);
                log::warn!(
                    "{}/{} block {}: not cached: {failure}",
                    id.volume.name,
                    id.key,
                    id.number
                );
                // An older record of the key must not be found in its place, now or later.
                if wanted() {
                    shard.forget(hash);
                    if buries {
                        self.bury(hash, id, wanted).await;
                    }
                }
            }
        }
        true
    }
}

fn store_failed(error: StoreError) -> ReadError {
    match error.kind {
        StoreErrorKind::NotFound => ReadError::NotFound,
        _ => ReadError::Store(Arc::new(error)),
    }
}

/// Whether the head of an answer is an answer to what was asked.
fn check_head(plan: &Plan, fetched: &Fetched) -> Result<(), StoreError> {
    let block_bytes = plan.id.volume.block_bytes;
    let expected = block_span(plan.id.number, block_bytes, fetched.meta.size);
    let corrupt = |what: String| Err(StoreError::new(StoreErrorKind::Corrupt, what));
    if fetched.span != expected {
        return corrupt(format!(
            "asked for bytes {}..{} of {}, the answer holds {}..{}",
            expected.start, expected.end, fetched.meta.size, fetched.span.start, fetched.span.end
        ));
    }
    match &plan.kind {
        PlanKind::Version { etag, size }
            if (etag, size) != (&fetched.meta.etag, &fetched.meta.size) =>
        {
            // The store ignored If-Match, or the tag is weak: another version either way.
            Err(StoreError::new(
                StoreErrorKind::PreconditionFailed,
                "the object changed",
            ))
        }
        _ => Ok(()),
    }
}

/// Copies a body into `buffer` and checksums it on the way, to exactly the span's length.
async fn fill(
    buffer: &mut BufferWriter,
    mut body: forebay_io::queue::Receiver<forebay_io::store::StoreResult<bytes::Bytes>>,
    span: ByteSpan,
) -> Result<PayloadChecksums, StoreError> {
    let length = span.len() as usize;
    let mut checksums = PayloadChecksums::default();
    while let Some(piece) = body.recv().await {
        let piece = piece?;
        if buffer.filled() + piece.len() > length {
            return Err(StoreError::new(
                StoreErrorKind::Corrupt,
                "the body is longer than announced",
            ));
        }
        checksums.update(&piece);
        buffer.append(&piece);
    }
    if buffer.filled() < length {
        return Err(StoreError::new(
            StoreErrorKind::Corrupt,
            "the body is shorter than announced",
        ));
    }
    Ok(checksums)
}

fn finished(buffer: BufferWriter, checksums: PayloadChecksums) -> BlockPayload {
    let (crc64nvme, chunk_crcs) = checksums.finish();
    BlockPayload {
        buffer,
        crc64nvme,
        chunk_crcs,
    }
}
