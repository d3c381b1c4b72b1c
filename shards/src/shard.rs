//! One virtual shard: the index of its blocks and the log they are in.
//!
//! A shard belongs to one core and is touched by no other. This file reads and appends: a block
//! is in the index only after its record is completely written, and leaves it before its segment
//! is reused. It verifies every byte that it reads and never hands out one that failed. Making
//! room is in [`crate::reclaim`].

use crate::early::{EarlyBytes, EarlyWrite};
use crate::evict::{EvictionSettings, Evictor};
use crate::flush::Unsynced;
use crate::format::{
    FooterEntry, Grave, RecordHeader, RecordKind, RecordState, SegmentPurpose, record_bytes,
};
use crate::index::{BlockMap, Index, Location};
use crate::key::BlockHash;
use crate::log::{RecoveredSegments, Reservation, SegmentLog, ShardLayout, pages_pool};
use crate::marks::{Mark, MarkPlace, Marks};
use crate::reclaim::ReclaimState;
use crate::stats::ShardStats;
use forebay_io::buffer::{BODY_BYTES_MAX, BufferWriter, Frozen, PAGE, Pool};
use forebay_io::disk::{Disk, DiskFile};
use forebay_io::runtime::Runtime;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// Why a record was not stored.
#[derive(Debug, thiserror::Error)]
pub enum AppendFailure {
    /// It is no longer wanted: something newer has come.
    #[error("superseded")]
    Superseded,
    /// Its names do not fit a header.
    #[error(transparent)]
    HeaderTooLarge(#[from] crate::format::HeaderTooLarge),
    /// No space or a disk error.
    #[error("{0}")]
    Disk(#[from] io::Error),
}

/// Memory with which the shards of one core keep house. Not the pool of block buffers: whoever
/// waits for room in a log holds some of that, and would wait for ever if making room did too.
#[derive(Clone)]
pub struct Housekeeping {
    /// For segment headers and footers.
    pub pages: Pool,
    /// For records that move.
    pub relocation: Pool,
}

impl Housekeeping {
    /// Memory for shards with segments of so many bytes.
    pub fn new(segment_bytes: u64) -> Housekeeping {
        Housekeeping {
            pages: pages_pool(segment_bytes),
            relocation: Pool::new(PAGE + BODY_BYTES_MAX),
        }
    }
}

/// What a shard is made of.
#[derive(Clone)]
pub struct ShardParts<R: Runtime, D: Disk> {
    /// The executor.
    pub runtime: R,
    /// The cache folder.
    pub disk: D,
    /// The source of block buffers.
    pub blocks: Pool,
    /// Memory for everything else.
    pub housekeeping: Housekeeping,
    /// Its place.
    pub layout: ShardLayout,
    /// Bytes that eviction may write again for 100 bytes admitted.
    pub write_budget_percent: u32,
    /// The ledger, if records may become dirty here.
    pub marks: Option<Marks>,
    /// Whether a dirty record counts as written only when it survives a power cut.
    pub sync: bool,
}

/// A dirty record that a start found.
#[derive(Clone, Debug)]
pub struct DirtyFound {
    /// Its place in the order of the shard's records.
    pub sequence: u64,
    /// Its block.
    pub hash: BlockHash,
    /// Whether the store was found to have something newer.
    pub in_conflict: bool,
    /// What the ledger says of it, once that was asked.
    pub mark: Option<Mark>,
}

/// What recovery knows.
pub struct RecoveredShard<F> {
    /// Every record that was found.
    pub index: Index,
    /// The segments.
    pub segments: RecoveredSegments<F>,
    /// Higher than every sequence seen.
    pub next_sequence: u64,
    /// The blocks whose newest record is dirty, as far as the segments know.
    pub dirty: Vec<DirtyFound>,
    /// Whether a record was there that cannot be read any more and may have outranked others.
    pub doubtful: bool,
}

/// The records of one block that are being written at the same time.
#[derive(Default)]
struct Appends {
    writers: usize,
    /// The highest sequence that was published since the first of them began.
    published: u64,
}

/// A shard's state, which its background tasks share.
pub(crate) struct Inner<R: Runtime, D: Disk> {
    pub(crate) runtime: R,
    pub(crate) log: SegmentLog<R, D>,
    pub(crate) index: RefCell<Index>,
    pub(crate) evictor: RefCell<Evictor>,
    pub(crate) housekeeping: Housekeeping,
    pub(crate) reclaim: ReclaimState<D::File>,
    pub(crate) stats: ShardStats,
    pub(crate) unsynced: Unsynced<D::File>,
    pub(crate) marks: Option<Marks>,
    sync: bool,
    /// Sequences below it were handed out by an earlier run.
    first_sequence: u64,
    dirty_found: RefCell<Vec<DirtyFound>>,
    pub(crate) blocks: Pool,
    doubtful: bool,
    /// Blocks of which records are being written.
    appends: RefCell<BlockMap<Appends>>,
    next_sequence: Cell<u64>,
}

/// One record on its way to the disk. Writes end in any order, but the highest sequence of a
/// block wins in the index as it will at the next start.
pub(crate) struct Append<R: Runtime, D: Disk> {
    inner: Rc<Inner<R, D>>,
    hash: BlockHash,
    sequence: u64,
}

impl<R: Runtime, D: Disk> Append<R, D> {
    pub(crate) fn begin(inner: &Rc<Inner<R, D>>, hash: BlockHash, sequence: u64) -> Self {
        inner.appends.borrow_mut().entry(hash).or_default().writers += 1;
        Append {
            inner: inner.clone(),
            hash,
            sequence,
        }
    }

    /// The block and the sequence of the record.
    pub(crate) fn grave(&self) -> Grave {
        Grave {
            hash: self.hash,
            sequence: self.sequence,
        }
    }

    /// A tombstone that is on disk now, in `segment`, becomes the newest record of its block,
    /// unless something newer was published meanwhile.
    pub(crate) fn publish_tombstone(&self, segment: u32) {
        if self.is_outranked() {
            return;
        }
        self.publish();
        let mut index = self.inner.index.borrow_mut();
        index.publish_tombstone(self.hash, segment, !self.is_alone());
    }

    fn is_outranked(&self) -> bool {
        self.inner.appends.borrow()[&self.hash].published > self.sequence
    }

    fn publish(&self) {
        let mut appends = self.inner.appends.borrow_mut();
        appends.entry(self.hash).or_default().published = self.sequence;
    }

    fn is_alone(&self) -> bool {
        self.inner.appends.borrow()[&self.hash].writers == 1
    }
}

impl<R: Runtime, D: Disk> Drop for Append<R, D> {
    fn drop(&mut self) {
        let mut appends = self.inner.appends.borrow_mut();
        let of_block = appends
            .get_mut(&self.hash)
            .expect("present while a record is written");
        of_block.writers -= 1;
        if of_block.writers == 0 {
            appends.remove(&self.hash);
        }
    }
}

impl<R: Runtime, D: Disk> Inner<R, D> {
    /// The next place in the order of this shard's records.
    pub(crate) fn take_sequence(&self) -> u64 {
        let sequence = self.next_sequence.get();
        self.next_sequence.set(sequence + 1);
        sequence
    }

    /// Whether a record of the block is being written.
    pub(crate) fn is_appending(&self, hash: BlockHash) -> bool {
        self.appends.borrow().contains_key(&hash)
    }

    /// Writes a record whose header is complete but for its place, and makes the index say what
    /// it says. `wanted` is asked once more after the write.
    pub(crate) async fn write_record(
        self: &Rc<Self>,
        header: &RecordHeader,
        body: BufferWriter,
        reservation: Reservation<D::File>,
        wanted: impl Fn() -> bool,
    ) -> Result<(), AppendFailure> {
        let nothing = EarlyBytes {
            count: 0,
            written: std::future::ready(Ok(())),
        };
        self.write_rest(header, body, reservation, nothing, wanted)
            .await
    }

    /// The same for a record of which the first bytes are on their way to the disk.
    async fn write_rest(
        self: &Rc<Self>,
        header: &RecordHeader,
        mut body: BufferWriter,
        reservation: Reservation<D::File>,
        early: EarlyBytes<impl Future<Output = io::Result<()>>>,
        wanted: impl Fn() -> bool,
    ) -> Result<(), AppendFailure> {
        let Reservation { used, place } = reservation;
        let segment = used.segment();
        let bytes = record_bytes(header.payload_length);
        header.encode(body.headroom_mut(), &place)?;
        let append = Append::begin(self, header.hash, header.sequence);
        let record = body.freeze();
        if let Err(e) = write_all(&segment.file, place.offset, record, early).await {
            // Nothing after a failed write is trusted to this segment. All of it may be there.
            self.log.retire(segment);
            self.note_useless(header, segment.number, true);
            return Err(e.into());
        }
        let page = (place.offset / PAGE as u64) as u32;
        segment.add(footer_entry(header, page));
        self.stats.written_bytes.add(bytes);
        // After a failed flush it is there for all but a power cut, and the next start would find it: so
        // it counts, but nobody is told that it does.
        let flushed = match self.sync && header.state.is_dirty() {
            true => self.make_durable(&used.shared(), bytes).await,
            false => Ok(()),
        };
        if append.is_outranked() {
            self.note_useless(header, segment.number, false);
            return Err(AppendFailure::Superseded);
        }
        if !wanted() {
            self.note_useless(header, segment.number, true);
            return Err(AppendFailure::Superseded);
        }
        match header.kind {
            RecordKind::Block => {
                append.publish();
                let at = Location {
                    segment: segment.number,
                    page,
                    payload_length: header.payload_length,
                };
                self.index
                    .borrow_mut()
                    .publish(header.hash, at, header.state);
                if header.state.is_dirty() && !self.sync {
                    self.note_unsynced(&used.shared(), Some((header.hash, at)), bytes);
                }
            }
            RecordKind::Tombstone => {
                append.publish_tombstone(segment.number);
                if header.state.is_dirty() && !self.sync {
                    self.note_unsynced(&used.shared(), None, bytes);
                }
            }
        }
        Ok(flushed?)
    }
}

impl<R: Runtime, D: Disk> Inner<R, D> {
    /// Accounts for a record that is, or may be, on disk and that the index will not name.
    /// A tombstone of that kind brings nothing back.
    fn note_useless(&self, header: &RecordHeader, segment: u32, is_newest: bool) {
        let mut index = self.index.borrow_mut();
        match (header.kind, is_newest) {
            (RecordKind::Tombstone, _) => {}
            (RecordKind::Block, true) => index.note_unwanted(header.hash, segment),
            (RecordKind::Block, false) => index.note_stale(header.hash, segment),
        }
    }
}

/// How far a start leaps ahead of the counters that it found: beyond all that one run hands out,
/// and not as far as another start from the same state. 2^29 starts use up half of a counter.
fn counter_leap<R: Runtime>(runtime: &R) -> u64 {
    (1 << 32) + (runtime.random() & u64::from(u32::MAX))
}

/// Writes what of a record is not on its way yet, and waits for all of it. `early` begins at the
/// payload.
async fn write_all<F: DiskFile>(
    file: &F,
    offset: u64,
    record: Frozen,
    early: EarlyBytes<impl Future<Output = io::Result<()>>>,
) -> io::Result<()> {
    let length = record.record().len();
    if early.count == 0 {
        return file.write(offset, record, 0..length).await;
    }
    let rest = PAGE + early.count;
    let header = file.write(offset, record.clone(), 0..PAGE);
    let payload = file.write(offset + rest as u64, record, rest..length);
    // To the end of each, whatever becomes of the others.
    let (header, payload, early) = futures::join!(header, payload, early.written);
    header.and(payload).and(early)
}

/// A record as its segment's footer lists it.
pub(crate) fn footer_entry(header: &RecordHeader, page: u32) -> FooterEntry {
    FooterEntry {
        hash: header.hash,
        sequence: header.sequence,
        page,
        payload_length: header.payload_length,
        kind: header.kind,
        state: header.state,
    }
}

/// One virtual shard.
pub struct Shard<R: Runtime, D: Disk> {
    pub(crate) inner: Rc<Inner<R, D>>,
}

impl<R: Runtime, D: Disk> Shard<R, D> {
    /// A shard over what recovery found.
    pub fn new(parts: ShardParts<R, D>, mut found: RecoveredShard<D::File>) -> Self {
        let ShardParts {
            runtime,
            disk,
            blocks,
            housekeeping,
            layout,
            write_budget_percent,
            marks,
            sync,
        } = parts;
        let evictor = Evictor::new(EvictionSettings {
            segments_max: layout.segments_max,
            segment_bytes: layout.segment_bytes,
            write_budget_percent,
        });
        let pages = housekeeping.pages.clone();
        // A disk that lost the write of a header hides a life, and what is hidden now may be seen
        // again: neither its incarnation nor its sequences may be handed out a second time.
        found.segments.next_incarnation += counter_leap(&runtime);
        found.next_sequence += counter_leap(&runtime);
        Shard {
            inner: Rc::new(Inner {
                log: SegmentLog::new(runtime.clone(), disk, pages, layout, found.segments),
                runtime,
                index: RefCell::new(found.index),
                evictor: RefCell::new(evictor),
                housekeeping,
                reclaim: ReclaimState::default(),
                stats: ShardStats::default(),
                unsynced: Unsynced::default(),
                marks,
                sync,
                first_sequence: found.next_sequence,
                dirty_found: RefCell::new(found.dirty),
                blocks,
                doubtful: found.doubtful,
                appends: RefCell::default(),
                next_sequence: Cell::new(found.next_sequence),
            }),
        }
    }

    /// The shard's log.
    pub fn log(&self) -> &SegmentLog<R, D> {
        &self.inner.log
    }

    /// What the shard counts.
    pub fn stats(&self) -> &ShardStats {
        &self.inner.stats
    }

    /// Blocks in the index.
    pub fn len(&self) -> usize {
        self.inner.index.borrow().len()
    }

    /// Whether the index is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every block in the index, in no order.
    pub fn blocks(&self) -> Vec<(BlockHash, Location)> {
        self.inner.index.borrow().blocks()
    }

    /// Whether a block is here, and where.
    pub fn find(&self, hash: BlockHash) -> Option<Location> {
        self.inner.index.borrow().find(hash)
    }

    /// Whether a block's record is the only copy of it.
    pub fn is_dirty(&self, hash: BlockHash) -> bool {
        self.inner.index.borrow().is_dirty(hash)
    }

    /// Whether records of this shard may have been replaced or deleted by one that was lost to
    /// damage, so that the store must be asked before they are served.
    pub fn is_doubtful(&self) -> bool {
        self.inner.doubtful
    }

    /// Whether a record of the block may be on disk, found by the index or by the next start.
    pub fn may_hold(&self, hash: BlockHash) -> bool {
        self.inner.index.borrow().may_hold(hash)
    }

    /// Counts that `bytes` of a block were served, from wherever: what is wanted stays longer.
    pub fn touch(&self, hash: BlockHash, bytes: usize) {
        self.inner.index.borrow_mut().touch(hash, bytes);
    }

    /// The store has the dirty record at `location` now, or whoever may give it up does.
    pub fn mark_clean(&self, hash: BlockHash, location: Location) {
        self.inner.index.borrow_mut().mark_clean(hash, location);
    }

    /// Takes the dirty records that the start found.
    pub fn take_dirty_found(&self) -> Vec<DirtyFound> {
        self.inner.dirty_found.take()
    }

    /// Keeps those of them that are still dirty by what the ledger says.
    pub(crate) fn put_dirty_found(&self, found: Vec<DirtyFound>) {
        *self.inner.dirty_found.borrow_mut() = found;
    }

    /// Whether a record of this sequence was written before this run.
    pub fn is_inherited(&self, sequence: u64) -> bool {
        sequence < self.inner.first_sequence
    }

    /// The ledger's rows of this shard, if it has any.
    pub fn marks(&self) -> Option<&Marks> {
        self.inner.marks.as_ref()
    }

    /// Where the ledger has the row of the record at `location`.
    pub fn mark_place(&self, location: Location) -> Option<MarkPlace> {
        self.inner.mark_place(location)
    }

    /// Bytes that were acknowledged and that a power cut may still take.
    pub fn unsynced_bytes(&self) -> u64 {
        self.inner.unsynced.bytes()
    }

    /// Makes all that was acknowledged durable.
    pub async fn flush(&self) {
        self.inner.flush_all().await;
    }

    /// Takes a block out of the index. Its record stays on disk until its segment goes or a
    /// tombstone outranks it; returns whether there may be one.
    pub fn forget(&self, hash: BlockHash) -> bool {
        if let Some(location) = self.find(hash) {
            self.forget_if_at(hash, location);
        }
        self.may_hold(hash)
    }

    /// Takes a block out of the index unless it is elsewhere by now.
    pub fn forget_if_at(&self, hash: BlockHash, location: Location) {
        self.inner.index.borrow_mut().forget(hash, location);
    }

    /// Writes a record and makes the index say what it says. `wanted` is asked when the record
    /// takes its place in the order of its key: a record that is no longer wanted then is not
    /// written, one that is no longer wanted after the write is not published. Returns its place in
    /// the order of the shard's records.
    ///
    /// # Errors
    /// See [`AppendFailure`]; after a disk error the record may be there or not.
    pub async fn append(
        &self,
        header: RecordHeader,
        body: BufferWriter,
        wanted: impl Fn() -> bool,
    ) -> Result<u64, AppendFailure> {
        self.append_rest(header, body, None, wanted).await
    }

    /// As [`Shard::append`], for a dirty record of which the first bytes may have been written early.
    pub(crate) async fn append_rest(
        &self,
        mut header: RecordHeader,
        body: BufferWriter,
        early: Option<EarlyWrite<D::File>>,
        wanted: impl Fn() -> bool,
    ) -> Result<u64, AppendFailure> {
        let inner = &self.inner;
        let bytes = record_bytes(header.payload_length);
        if let Some((reservation, early)) = early.and_then(EarlyWrite::into_parts) {
            inner.stats.writebacks_early.add(u64::from(early.count > 0));
            header.sequence = inner.take_sequence();
            inner
                .write_rest(&header, body, reservation, early, wanted)
                .await?;
            inner.stats.admitted_bytes.add(bytes);
            return Ok(header.sequence);
        }
        let purpose = match (header.state, header.kind) {
            // One that must survive a power cut is flushed wherever it is.
            (_, RecordKind::Tombstone) => SegmentPurpose::Probation,
            (RecordState::Dirty | RecordState::Conflict, RecordKind::Block) => {
                SegmentPurpose::Dirty
            }
            (RecordState::Clean, RecordKind::Block) => inner.admit(header.hash, bytes),
        };
        let reservation = match header.kind {
            RecordKind::Block => inner.reserve(purpose, bytes).await?,
            RecordKind::Tombstone => inner.reserve_anywhere(purpose, bytes).await?,
        };
        if !wanted() {
            // The reserved gap holds a former life's bytes at worst: a scan steps over it.
            return Err(AppendFailure::Superseded);
        }
        header.sequence = inner.take_sequence();
        inner
            .write_record(&header, body, reservation, wanted)
            .await?;
        inner.stats.admitted_bytes.add(bytes);
        Ok(header.sequence)
    }
}

impl<R: Runtime, D: Disk> Inner<R, D> {
    /// Where the ledger has the row of the record at `location`.
    pub(crate) fn mark_place(&self, location: Location) -> Option<MarkPlace> {
        let segment = self.log.segment(location.segment)?;
        Some(MarkPlace::new(location, segment.incarnation()))
    }

    /// Where a clean block's new record goes.
    fn admit(&self, hash: BlockHash, bytes: u64) -> SegmentPurpose {
        let index = self.index.borrow();
        let former = index.find(hash);
        let former = former.and_then(|at| self.log.segment(at.segment));
        let queue = former.map(|segment| segment.purpose());
        let mut evictor = self.evictor.borrow_mut();
        evictor.admit(hash, bytes, queue, index.len())
    }
}
