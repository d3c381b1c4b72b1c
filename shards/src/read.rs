//! Reading: what is known of an object, and its blocks from memory or disk.
//!
//! This file answers readers of one core. What is not here is fetched by [`crate::flight`], which
//! every reader joins. A block of which this proxy has the only copy is never looked for in the
//! store: if it cannot be read, that is an error.

use crate::core::Core;
use crate::flight::{Flight, Landing, Plan};
use crate::follow::Follow;
use crate::format::{RecordHeader, RecordState};
use crate::heads::Head;
use crate::index::Location;
use crate::key::{BlockHash, BlockId, Freshness};
use crate::marks::Mark;
use crate::messages::{BlockBody, BlockRequest, Opened, Outcome, ReadError};
use crate::parts::Place;
use crate::ram::RamBlock;
use crate::range::{RangeSpec, block_span, part_of_block};
use crate::record::{FoundRecord, ReadFailure};
use crate::shard::Shard;
use forebay_io::buffer::{View, Watch};
use forebay_io::disk::Disk;
use forebay_io::runtime::{MonoTime, Runtime};
use forebay_io::store::{ByteSpan, ObjectMeta};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Rounds of an open before it gives up. Each round ends because something changed meanwhile
/// (a fetch landed, a record turned out damaged); more than a few mean constant overwriting.
const OPEN_ROUNDS_MAX: usize = 8;

/// Said of a record that was not read because nobody waits for ever.
pub(crate) const NOT_IN_TIME: &str = "the disk does not answer, or memory is short";

/// What has happened to one open so far.
#[derive(Default)]
struct Story {
    /// How the answer will have come about, if not from what was cached.
    outcome: Option<Outcome>,
    /// What the store has just said of the object, if that must not be remembered.
    told: Option<Arc<ObjectMeta>>,
    /// Whether the store was asked for this open: its answer, or its silence, holds for this one
    /// however short the time to live is.
    asked: bool,
}

/// What a home knows of an object.
enum Known {
    Nothing,
    /// That the store does not have it.
    Absent,
    Fresh(Arc<ObjectMeta>),
    /// With the store's own ETag of it.
    Stale(Arc<ObjectMeta>, String),
}

impl<R: Runtime, D: Disk> Core<R, D> {
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
        let since = self.parts.runtime.now();
        for _ in 0..OPEN_ROUNDS_MAX {
            let (flight, own) = match self.flight(hash) {
                Some(flight)
                    if !flight.is_young_enough(&id.volume, since, self.parts.runtime.now()) =>
                {
                    flight.end().await;
                    continue;
                }
                Some(flight) => (flight, false),
                None => {
                    let described = story.told.take();
                    let must_fill = described.is_some();
                    if let Some(answer) = described.and_then(|meta| told(&id, meta, wanted)) {
                        return answer;
                    }
                    let known = match self.known(&id, hash).await? {
                        Known::Stale(meta, _) if story.asked => Known::Fresh(meta),
                        known => known,
                    };
                    let plan = match known {
                        Known::Fresh(meta) => {
                            let found = self.serve(&id, hash, meta.clone(), wanted, story.outcome);
                            match found.await {
                                Some(answer) => return answer,
                                None => Plan::fill_known(id.clone(), meta),
                            }
                        }
                        Known::Stale(_, validator) => Plan::check(id.clone(), &validator, wanted),
                        Known::Absent => {
                            self.stats.negative_hits.add(1);
                            return Err(ReadError::NotFound);
                        }
                        Known::Nothing if must_fill => Plan::fill(id.clone()),
                        Known::Nothing => Plan::first_sight(id.clone(), wanted),
                    };
                    // The steps above may have waited: something newer may have been acknowledged,
                    // which the store does not know.
                    if self.is_here_alone(hash) {
                        continue;
                    }
                    // Another reader may have started.
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
            Landing::Assembled(meta, watch) => Ok(Some((meta, watch, Outcome::HitDisk))),
            Landing::Told(meta) => {
                story.told = Some(meta);
                story.outcome = Some(Outcome::Bypass);
                Ok(None)
            }
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
        self: &Rc<Self>,
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
        let (body, outcome) = match self.cached(id, hash, &meta, range).await {
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
            first: Some(body),
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
                if let Some(found) = self.cached(&id, hash, &meta, range.clone()).await? {
                    return Ok(found);
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
        self: &Rc<Self>,
        id: &BlockId,
        hash: BlockHash,
        meta: &ObjectMeta,
        range: Range<usize>,
    ) -> Result<Option<(BlockBody, Outcome)>, ReadError> {
        if let Some((view, outcome)) = self.in_ram(id, hash, meta, &range) {
            return Ok(Some((BlockBody::Ready(view), outcome)));
        }
        let Some((shard, location)) = self.located(id, hash, meta) else {
            return Ok(None);
        };
        let number = self.shard_number(hash);
        let is_dirty = shard.is_dirty(hash);
        if self.patience.is_read_overdue(number) {
            return self.without_record(id, is_dirty, None);
        }
        // Of a block that is worth keeping in memory all is read, however little is wanted now.
        let payload_length = location.payload_length as usize;
        let inside = match self.note_read(hash, &range, payload_length as u64) {
            true => 0..payload_length,
            false => range.clone(),
        };
        let skipped = inside.start;
        shard.touch(hash, range.len());
        // A dirty block's readers get an error rather than half of it.
        if !is_dirty && shard.is_read_in_pieces(location, &inside) {
            let following = self.follow_record(id, hash, meta, &shard, location);
            match following.await? {
                Follow::Begun(watch) => {
                    let body = BlockBody::Reading { watch, range };
                    return Ok(Some((body, Outcome::HitDisk)));
                }
                Follow::Moved => {}
                Follow::Nothing => return Ok(None),
            }
        }
        self.make_room(inside.len(), payload_length);
        let room = self
            .in_time(shard.read_room(location, inside.clone()))
            .await?;
        let reader = shard.clone();
        let reading = async move { reader.read(hash, location, inside, room).await };
        match self.patience.read(number, reading).await {
            Some(Ok(found)) if is_version(&found.header, id, meta) => {
                let wanted = range.start - skipped..range.end - skipped;
                let answer = found.wanted.slice(wanted);
                self.note_record_read(answer.len());
                if let Some(payload) = found.whole {
                    self.keep_if_hot(hash, &shard, location, Rc::new(found.header), payload);
                }
                let outcome = match is_dirty {
                    true => Outcome::HitDirty,
                    false => Outcome::HitDisk,
                };
                Ok(Some((BlockBody::Ready(answer), outcome)))
            }
            Some(Ok(_)) => {
                shard.forget_if_at(hash, location);
                Ok(None)
            }
            Some(Err(failure)) => self.without_record(id, is_dirty, Some(failure)),
            None => self.without_record(id, is_dirty, None),
        }
    }

    /// A record's header; `None` if the disk does not answer in time, or memory is short.
    pub(crate) async fn header_at(
        &self,
        shard: &Rc<Shard<R, D>>,
        hash: BlockHash,
        location: Location,
    ) -> Option<Result<RecordHeader, ReadFailure>> {
        let room = self.in_time(shard.header_room()).await.ok()?;
        let reader = shard.clone();
        let reading = async move { reader.read_header(hash, location, room).await };
        self.patience.read(self.shard_number(hash), reading).await
    }

    /// All of a record; `None` if the disk does not answer in time, or memory is short.
    pub(crate) async fn record_at(
        &self,
        shard: &Rc<Shard<R, D>>,
        hash: BlockHash,
        location: Location,
    ) -> Option<Result<FoundRecord, ReadFailure>> {
        let all = 0..location.payload_length as usize;
        let room = self.in_time(shard.read_room(location, all.clone()));
        let (room, reader) = (room.await.ok()?, shard.clone());
        let reading = async move { reader.read(hash, location, all, room).await };
        self.patience.read(self.shard_number(hash), reading).await
    }

    /// The outcome of a read that failed, or that the disk did not answer.
    fn without_record<T>(
        &self,
        id: &BlockId,
        is_dirty: bool,
        failure: Option<ReadFailure>,
    ) -> Result<Option<T>, ReadError> {
        let Some(failure) = failure else {
            return self.without_copy(is_dirty, NOT_IN_TIME);
        };
        self.note_failure(id, &failure);
        let is_lost = is_dirty && !matches!(failure, ReadFailure::Gone);
        self.without_copy(is_lost, &failure.to_string())
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

    pub(crate) fn note_record_read(&self, wanted: usize) {
        self.stats.records_read.add(1);
        self.stats.record_bytes_read.add(wanted as u64);
    }

    /// Keeps a payload in the RAM tier if it is hot, and still the newest: an overwrite during the
    /// read has replaced the location.
    pub(crate) fn keep_if_hot(
        &self,
        hash: BlockHash,
        shard: &Shard<R, D>,
        location: Location,
        header: Rc<RecordHeader>,
        payload: View,
    ) {
        if shard.find(hash) == Some(location) {
            let block = RamBlock { header, payload };
            self.ram.borrow_mut().insert_if_hot(hash, block);
        }
    }

    pub(crate) fn note_failure(&self, id: &BlockId, failure: &ReadFailure) {
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
            return Ok(match self.is_absent(id, hash) {
                true => Known::Absent,
                false => Known::Nothing,
            });
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

    /// The version of an object that clients were told of last, as far as it is known here: the store
    /// may have another one, unless it is dirty.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] if it is here alone and cannot be read.
    pub(crate) async fn known_version(
        &self,
        id: &BlockId,
        hash: BlockHash,
    ) -> Result<Option<Arc<ObjectMeta>>, ReadError> {
        Ok(match self.known(id, hash).await? {
            Known::Nothing | Known::Absent => None,
            Known::Fresh(meta) | Known::Stale(meta, _) => Some(meta),
        })
    }

    /// Part of a block if it is here in the version that is meant. Nothing is fetched, and nothing
    /// that is of another version is forgotten: whoever asks knows only an older one.
    pub(crate) async fn peek(&self, place: Place) -> Option<View> {
        let Place { id, meta, range } = place;
        let hash = id.hash();
        let in_ram = self.ram.borrow_mut().get(hash);
        if let Some(block) = in_ram
            && is_version(&block.header, &id, &meta)
        {
            return Some(block.payload.slice(range));
        }
        let shard = self.shard(hash)?;
        let location = shard.find(hash)?;
        let number = self.shard_number(hash);
        let expected = block_span(id.number, id.volume.block_bytes, meta.size);
        let is_fit = u64::from(location.payload_length) == expected.len();
        if !is_fit || self.patience.is_read_overdue(number) {
            return None;
        }
        self.make_room(range.len(), location.payload_length as usize);
        let room = self.in_time(shard.read_room(location, range.clone()));
        let (room, reader) = (room.await.ok()?, shard.clone());
        let reading = async move { reader.read(hash, location, range, room).await };
        let found = self.patience.read(number, reading).await?.ok()?;
        is_version(&found.header, &id, &meta).then_some(found.wanted)
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
            return self.without_record(id, is_dirty, None);
        }
        match self.header_at(&shard, hash, location).await {
            Some(Ok(header)) if names(&header, id) => {
                Ok(Some(self.remember(hash, &shard, location, header).await))
            }
            Some(Ok(_)) => {
                shard.forget_if_at(hash, location);
                Ok(None)
            }
            Some(Err(failure)) => self.without_record(id, is_dirty, Some(failure)),
            None => self.without_record(id, is_dirty, None),
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

    /// A past point of this run's clock as a wall-clock time, whole seconds and never too young.
    pub(crate) fn unix_seconds_at(&self, when: MonoTime) -> u64 {
        let age = self.parts.runtime.now().since(when);
        let seconds = age.as_secs() + u64::from(age.subsec_nanos() > 0);
        self.parts.runtime.unix_seconds().saturating_sub(seconds)
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
pub(crate) fn is_version(header: &RecordHeader, id: &BlockId, meta: &ObjectMeta) -> bool {
    names(header, id) && header.meta.etag == meta.etag && header.meta.size == meta.size
}

/// The answer from a description alone; `None` if block 0 is needed.
fn told(
    id: &BlockId,
    meta: Arc<ObjectMeta>,
    wanted: Option<RangeSpec>,
) -> Option<Result<Opened, ReadError>> {
    let size = meta.size;
    let span = match wanted.map(|spec| spec.resolve(size)) {
        Some(Ok(span)) => span,
        Some(Err(_)) => return Some(Err(ReadError::NotSatisfiable { size })),
        None => ByteSpan { start: 0, end: 0 },
    };
    let is_elsewhere = part_of_block(span, 0, id.volume.block_bytes).is_empty();
    is_elsewhere.then_some(Ok(Opened {
        meta,
        outcome: Outcome::Bypass,
        span,
        first: None,
    }))
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
