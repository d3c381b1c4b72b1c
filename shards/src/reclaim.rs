//! Making room: which segment is reclaimed, what of it is written again, what must be buried.
//!
//! This file brings the log, the index and the evictor together. A reclaim is a task of its own,
//! one at a time per shard, tied to no request. It never touches a dirty record, never waits for
//! block buffers and never erases a segment before what must outlive it is on disk elsewhere, and durable.
//!
//! ```text
//!   oldest clean segment
//!     1  wait for its writers          4  wait for its readers
//!     2  ask the evictor               5  erase: one write of its first page ends its life and
//!     3  copy the survivors               buries what would come back from other segments
//! ```

use crate::evict::{TWO_QUEUES_SEGMENTS_MIN, Verdict};
use crate::format::{GRAVES_MAX, Grave, RecordHeader, RecordState, SegmentPurpose};
use crate::index::{LiveRecord, Location};
use crate::key::BlockHash;
use crate::log::Reservation;
use crate::marks::Mark;
use crate::segment::{CleanSegment, Segment};
use crate::shard::{Append, AppendFailure, Inner, Shard, footer_entry};
use forebay_io::buffer::PAGE;
use forebay_io::disk::{Disk, DiskFile};
use forebay_io::runtime::{Runtime, timeout};
use futures::channel::oneshot;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Segments kept for records that move, which must find room without anything being reclaimed.
const KEPT_FOR_RELOCATION: usize = 1;

/// Spare segments that a reclaim in the background provides: one for the next rotation beside the
/// one kept for relocation.
const SPARES_WANTED: usize = KEPT_FOR_RELOCATION + 1;

/// Reclaims that one rotation waits for. Each frees a segment unless relocation takes it up, so
/// more than a few mean that others take what comes free.
const RECLAIMS_PER_ROTATION_MAX: usize = 8;

/// Segments that one rotation tries to open: one bad place on the disk is passed by, a disk that
/// takes nothing is not asked for long.
const OPENINGS_MAX: usize = 3;

/// Segments tried by one reclaim before it gives up.
const VICTIMS_MAX: usize = 4;

/// How long a reclaim waits for those who read or write its segment. A disk that takes longer is
/// stalled, and another segment may do.
const USERS_WAIT: Duration = Duration::from_secs(5);

/// Rounds of finding out what must be buried. Each ends because a record of such a block is being
/// written, or because there were too many.
const BURY_ROUNDS_MAX: usize = 16;

/// Pause before a round that met a block of which a record is just being written.
const BURY_PAUSE: Duration = Duration::from_millis(2);

/// Share of a shard's segments that may hold dirty records, percent. The rest stays for reads and
/// for what moves.
const DIRTY_PERCENT_MAX: u32 = 50;
/// Share of those from which on writers are slowed and dirty segments compacted, percent.
const DIRTY_PERCENT_SOFT: u32 = 75;
/// Segments that never hold dirty records: an open one and one to reclaim into.
const CLEAN_SEGMENTS_MIN: u32 = 2;
/// A dirty segment is compacted when at most this part of it is still dirty: what is moved is
/// written again.
const DIRTY_COMPACTED_DIVISOR: u64 = 4;

/// How a reclaim ended, for all who wait for it.
type Outcome = Result<(), (io::ErrorKind, String)>;

/// The reclaim that runs, who waits for it, and what it could not erase.
pub(crate) struct ReclaimState<F> {
    running: Cell<bool>,
    compacting_dirty: Cell<bool>,
    waiting: RefCell<Vec<oneshot::Sender<Outcome>>>,
    /// Segments without live records whose former life may still be found.
    unerased: RefCell<VecDeque<Rc<Segment<F>>>>,
}

impl<F> Default for ReclaimState<F> {
    fn default() -> Self {
        ReclaimState {
            running: Cell::new(false),
            compacting_dirty: Cell::new(false),
            waiting: RefCell::default(),
            unerased: RefCell::default(),
        }
    }
}

fn no_room(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, what)
}

impl<R: Runtime, D: Disk> Inner<R, D> {
    /// Reserves `bytes` for a record, making room if need be.
    ///
    /// # Errors
    /// `StorageFull` when nothing can be reclaimed, `FileTooLarge`, or what the disk says.
    pub(crate) async fn reserve(
        self: &Rc<Self>,
        purpose: SegmentPurpose,
        bytes: u64,
    ) -> io::Result<Reservation<D::File>> {
        if bytes > self.log.record_bytes_max() {
            let larger = io::ErrorKind::FileTooLarge;
            return Err(io::Error::new(larger, "larger than a segment"));
        }
        if let Some(reservation) = self.log.try_reserve(purpose, bytes) {
            return Ok(reservation);
        }
        let _turn = self.log.rotation(purpose).acquire().await;
        loop {
            if let Some(reservation) = self.log.try_reserve(purpose, bytes) {
                return Ok(reservation);
            }
            if purpose == SegmentPurpose::Dirty {
                self.make_room_for_dirty()?;
            }
            // Before the wait, so that it may be the one to be reclaimed.
            self.log.retire_open(purpose);
            if let Err(refusal) = self.open_another(purpose).await {
                // An open segment cannot be reclaimed. Where there are few, it may be the only one
                // that could.
                if !self.retire_others(purpose) {
                    return Err(refusal);
                }
                self.open_another(purpose).await?;
            }
            self.provide_spares();
        }
    }

    /// As [`Inner::reserve`], or in whatever segment is open: what says that a block is gone must
    /// find room on the fullest disk.
    pub(crate) async fn reserve_anywhere(
        self: &Rc<Self>,
        purpose: SegmentPurpose,
        bytes: u64,
    ) -> io::Result<Reservation<D::File>> {
        use SegmentPurpose::{Dirty, Main, Probation};
        let refusal = match self.reserve(purpose, bytes).await {
            Ok(reservation) => return Ok(reservation),
            Err(refusal) => refusal,
        };
        let mut open = [Probation, Main, Dirty].into_iter();
        open.find_map(|purpose| self.log.try_reserve(purpose, bytes))
            .ok_or(refusal)
    }

    /// Segments that may hold dirty records: from which on writers are slowed, and at most.
    pub(crate) fn dirty_segments_limits(&self) -> (u32, u32) {
        let segments_max = self.log.layout().segments_max;
        let floor = segments_max.saturating_sub(CLEAN_SEGMENTS_MIN).max(1);
        let hard = (segments_max * DIRTY_PERCENT_MAX / 100).clamp(1, floor);
        ((hard * DIRTY_PERCENT_SOFT / 100).max(1), hard)
    }

    /// # Errors
    /// `StorageFull` if no further segment may be given to dirty records.
    fn make_room_for_dirty(self: &Rc<Self>) -> io::Result<()> {
        let (soft, hard) = self.dirty_segments_limits();
        if self.log.dirty_segments() < soft {
            return Ok(());
        }
        self.settle();
        self.start_dirty_compaction();
        match self.log.dirty_segments() < hard {
            true => Ok(()),
            false => Err(no_room("the limit of dirty segments is reached")),
        }
    }

    fn settle(&self) {
        self.log
            .settle(|segment| self.index.borrow().dirty_records(segment));
    }

    /// Moves what is still dirty out of segments that are clean for the most part, so that a few
    /// blocks that cannot be uploaded do not pin them.
    fn start_dirty_compaction(self: &Rc<Self>) {
        if self.reclaim.compacting_dirty.replace(true) {
            return;
        }
        let inner = self.clone();
        self.runtime.spawn(async move {
            let (soft, _) = inner.dirty_segments_limits();
            while inner.log.dirty_segments() >= soft && inner.compact_dirty().await {}
            inner.reclaim.compacting_dirty.set(false);
        });
    }

    /// Empties the sparsest dirty segment of what is dirty. Returns whether there was one.
    async fn compact_dirty(self: &Rc<Self>) -> bool {
        let limit = self.log.layout().segment_bytes / DIRTY_COMPACTED_DIVISOR;
        let dirty_bytes = |segment: u32| -> u64 {
            let records = self.index.borrow().dirty_blocks(segment);
            records.iter().map(|record| record.at.record_bytes()).sum()
        };
        let Some(sparse) = self.log.take_sparsest_dirty(dirty_bytes, limit) else {
            return false;
        };
        let segment = sparse.segment().clone();
        let written = self.within(segment.written()).await;
        let records = self.index.borrow().dirty_blocks(segment.number);
        let mut moved = written.is_ok();
        for record in records {
            moved &= self.move_dirty(&segment, record.hash, record.at).await;
        }
        // The copies first: the segment may be erased from now on.
        moved &= self.flush_all().await;
        self.log.put_back_dirty(sparse);
        self.settle();
        moved
    }

    /// Writes a dirty record again, into the open dirty segment. Returns whether that was done, or
    /// it is not there or not dirty any more.
    pub(crate) async fn move_dirty(
        self: &Rc<Self>,
        from: &Rc<Segment<D::File>>,
        hash: BlockHash,
        at: Location,
    ) -> bool {
        let still = || {
            let index = self.index.borrow();
            index.find(hash) == Some(at) && index.is_dirty(hash)
        };
        let frequency = 0;
        let record = LiveRecord {
            hash,
            at,
            frequency,
        };
        let moved = still()
            && self
                .relocate(from, &record, SegmentPurpose::Dirty, frequency)
                .await;
        self.stats.dirty_moved.add(u64::from(moved));
        moved || !still()
    }

    /// Seals what is open for other purposes and holds nothing dirty. Returns whether anything was.
    fn retire_others(&self, purpose: SegmentPurpose) -> bool {
        use SegmentPurpose::{Dirty, Main, Probation};
        let others = [Probation, Main, Dirty].into_iter();
        let mut retired = false;
        for other in others.filter(|other| *other != purpose) {
            let open = self.log.open_segment(other);
            let is_clean = |number| self.index.borrow().dirty_records(number) == 0;
            if open.is_some_and(is_clean) {
                self.log.retire_open(other);
                retired = true;
            }
        }
        retired
    }

    /// Opens a segment for `purpose`. One that cannot be opened is set aside, and another tried.
    async fn open_another(self: &Rc<Self>, purpose: SegmentPurpose) -> io::Result<()> {
        let mut failure = no_room("no segment can be opened");
        for _ in 0..OPENINGS_MAX {
            let segment = match self.spare_segment().await {
                Ok(segment) => segment,
                Err(e) => match self.log.take_bad() {
                    Some(segment) => segment,
                    None => return Err(e),
                },
            };
            match self.open(segment, purpose).await {
                Ok(()) => return Ok(()),
                Err(e) => failure = e,
            }
        }
        Err(failure)
    }

    /// Opens a free segment, which keeps the graves that are still needed.
    async fn open(
        self: &Rc<Self>,
        segment: Rc<Segment<D::File>>,
        purpose: SegmentPurpose,
    ) -> io::Result<()> {
        let number = segment.number;
        let burials = match self.dig(number).await {
            Ok(burials) => burials,
            Err(e) => {
                self.log.release(segment);
                return Err(e);
            }
        };
        let graves: Vec<Grave> = burials.iter().map(Append::grave).collect();
        // What covers the graves that are left out must not go with a power cut after them.
        let bears_graves = self.index.borrow().is_silent_in(number);
        if bears_graves && let Err(e) = self.log.sync_written().await {
            self.log.release(segment);
            return Err(e);
        }
        self.log.open(segment, purpose, &graves).await?;
        for burial in burials {
            burial.publish_tombstone(number);
        }
        Ok(())
    }

    fn has_two_queues(&self) -> bool {
        self.log.segments_within_reach() >= TWO_QUEUES_SEGMENTS_MIN
    }

    async fn spare_segment(self: &Rc<Self>) -> io::Result<Rc<Segment<D::File>>> {
        let kept = match self.has_two_queues() {
            true => KEPT_FOR_RELOCATION,
            false => 0,
        };
        for _ in 0..RECLAIMS_PER_ROTATION_MAX {
            if let Some(segment) = self.log.spare(kept).await? {
                return Ok(segment);
            }
            let (sender, outcome) = oneshot::channel();
            self.reclaim.waiting.borrow_mut().push(sender);
            self.start_reclaim();
            if let Ok(Err((kind, text))) = outcome.await {
                return Err(io::Error::new(kind, text));
            }
        }
        Err(no_room("segments that came free were taken by others"))
    }

    /// Has a segment made free for `purpose`, at the price of what others have open.
    pub(crate) fn make_room(self: &Rc<Self>, purpose: SegmentPurpose) {
        self.retire_others(purpose);
        self.start_reclaim();
    }

    fn provide_spares(self: &Rc<Self>) {
        if self.log.may_grow_ahead() {
            let inner = self.clone();
            self.runtime
                .spawn(async move { inner.log.grow_ahead().await });
        }
        if self.has_two_queues() && self.log.spares() < SPARES_WANTED {
            self.start_reclaim();
        }
    }

    fn start_reclaim(self: &Rc<Self>) {
        if self.reclaim.running.replace(true) {
            return;
        }
        let inner = self.clone();
        self.runtime.spawn(async move {
            loop {
                let result = inner.reclaim_one().await;
                let outcome = result.map_err(|e| (e.kind(), e.to_string()));
                for waiting in inner.reclaim.waiting.take() {
                    // Whoever stopped waiting does not want to know.
                    let _ = waiting.send(outcome.clone());
                }
                let is_enough = !inner.has_two_queues() || inner.log.spares() >= SPARES_WANTED;
                if outcome.is_err() || is_enough {
                    break;
                }
            }
            inner.reclaim.running.set(false);
        });
    }

    /// Makes one segment free.
    async fn reclaim_one(self: &Rc<Self>) -> io::Result<()> {
        self.settle();
        let mut failure = no_room("no clean segment to reclaim");
        let unerased = self.reclaim.unerased.borrow_mut().pop_front();
        if let Some(segment) = unerased {
            match self.erase(segment).await {
                Ok(()) => return Ok(()),
                Err(e) => failure = e,
            }
        }
        if let Some(victim) = self.take_sparsest() {
            match self.compact(&victim).await {
                Ok(()) => return self.erase(victim.into_segment()).await,
                Err(e) => {
                    self.log.put_back(victim);
                    failure = e;
                }
            }
        }
        let (mut failures, mut spared) = (0, 0);
        while failures < VICTIMS_MAX {
            let (probation, main) = self.log.queue_lengths();
            let first = self.evictor.borrow().choose(probation, main);
            let Some(victim) = self.log.take_oldest(first) else {
                break;
            };
            match self.empty(&victim, spared).await {
                Ok(true) => return self.erase(victim.into_segment()).await,
                Ok(false) => {
                    self.log.put_back(victim);
                    spared += 1;
                }
                Err(e) => {
                    self.log.put_back(victim);
                    failures += 1;
                    failure = e;
                }
            }
        }
        Err(failure)
    }

    /// A segment that consists of holes for the most part.
    fn take_sparsest(&self) -> Option<CleanSegment<D::File>> {
        let limit = self.evictor.borrow().compacted_bytes_max();
        let index = self.index.borrow();
        self.log
            .take_sparsest(|segment| index.live_bytes(segment), limit)
    }

    /// Writes every live record of a segment again, into the same queue.
    async fn compact(self: &Rc<Self>, victim: &CleanSegment<D::File>) -> io::Result<()> {
        let segment = victim.segment();
        self.within(segment.written()).await?;
        let records = self.index.borrow().live_records(segment.number);
        self.evictor.borrow_mut().compact(&records);
        let queue = match segment.purpose() {
            SegmentPurpose::Main => SegmentPurpose::Main,
            _ => SegmentPurpose::Probation,
        };
        self.vacate(segment, &records, queue, true).await
    }

    /// Ends the life of a segment that holds no live record, and makes it free. Blocks of which a
    /// stale record elsewhere would be found then are buried in the same write.
    async fn erase(self: &Rc<Self>, segment: Rc<Segment<D::File>>) -> io::Result<()> {
        let number = segment.number;
        let (purpose, incarnation) = (segment.purpose(), segment.incarnation());
        let erased = match self.dig(number).await {
            Ok(burials) => {
                let graves: Vec<Grave> = burials.iter().map(Append::grave).collect();
                match self.log.sync_written().await {
                    Ok(()) => self.log.erase(&segment, &graves).await.map(|()| burials),
                    Err(e) => Err(e),
                }
            }
            Err(e) => Err(e),
        };
        let burials = match erased {
            Ok(burials) => burials,
            Err(e) => {
                self.reclaim.unerased.borrow_mut().push_back(segment);
                return Err(e);
            }
        };
        self.index.borrow_mut().end_life(number);
        if let (SegmentPurpose::Dirty, Some(marks)) = (purpose, &self.marks) {
            marks.end_life(number, incarnation).await;
        }
        for burial in burials {
            burial.publish_tombstone(number);
        }
        self.stats.segments_reclaimed.add(1);
        self.log.release(segment);
        Ok(())
    }

    /// Tombstones for the blocks that would come back if the present life of a segment ended:
    /// what is not written yet of each is its place in the order of its block's records.
    async fn dig(self: &Rc<Self>, segment: u32) -> io::Result<Vec<Append<R, D>>> {
        for _ in 0..BURY_ROUNDS_MAX {
            let bare = self.index.borrow().needs_tombstones(segment);
            if bare.iter().any(|hash| self.is_appending(*hash)) {
                // Of whatever is being written it is not known yet whether it will be there.
                self.runtime.sleep(BURY_PAUSE).await;
            } else if let Some(excess) = bare.get(GRAVES_MAX..).filter(|rest| !rest.is_empty()) {
                self.bury(excess).await?;
            } else {
                let begin = |hash| Append::begin(self, hash, self.take_sequence());
                return Ok(bare.into_iter().map(begin).collect());
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Moves or drops every live record of a segment as the evictor says. Returns whether that was
    /// done: false if the segment is spared, as `spared` others were before.
    async fn empty(
        self: &Rc<Self>,
        victim: &CleanSegment<D::File>,
        spared: usize,
    ) -> io::Result<bool> {
        let segment = victim.segment();
        self.within(segment.written()).await?;
        let (records, blocks) = {
            let index = self.index.borrow();
            (index.live_records(segment.number), index.len())
        };
        let verdict = self
            .evictor
            .borrow_mut()
            .judge(segment.purpose(), records, blocks, spared);
        let (survivors, evicted) = match verdict {
            Verdict::Spared => {
                self.index.borrow_mut().cool(segment.number);
                return Ok(false);
            }
            Verdict::Reclaimed { survivors, evicted } => (survivors, evicted),
        };
        for record in &evicted {
            self.evict(record);
        }
        let main = SegmentPurpose::Main;
        self.vacate(segment, &survivors, main, false).await?;
        Ok(true)
    }

    /// Moves the live records of a segment to a queue, drops those that cannot be moved, and waits
    /// until nobody reads it.
    async fn vacate(
        self: &Rc<Self>,
        segment: &Rc<Segment<D::File>>,
        survivors: &[LiveRecord],
        queue: SegmentPurpose,
        keeps_frequency: bool,
    ) -> io::Result<()> {
        for record in survivors {
            let frequency = if keeps_frequency { record.frequency } else { 0 };
            if !self.relocate(segment, record, queue, frequency).await {
                self.evictor.borrow_mut().give_back(record);
                self.evict(record);
            }
        }
        self.within(segment.unused()).await
    }

    async fn within(&self, wait: impl Future<Output = ()>) -> io::Result<()> {
        let ended = timeout(&self.runtime, USERS_WAIT, wait).await;
        ended.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "a segment stays in use"))
    }

    fn evict(&self, record: &LiveRecord) {
        let mut index = self.index.borrow_mut();
        if index.forget(record.hash, record.at) {
            self.stats.records_evicted.add(1);
        }
    }

    /// Whether a record may be copied: it is live, and nothing newer of its block is on its way,
    /// which could end in an older segment than the copy.
    fn is_movable(&self, record: &LiveRecord) -> bool {
        let is_live = self.index.borrow().find(record.hash) == Some(record.at);
        is_live && !self.is_appending(record.hash)
    }

    /// Writes a record again, into `queue`. Returns whether that was done.
    async fn relocate(
        self: &Rc<Self>,
        from: &Rc<Segment<D::File>>,
        record: &LiveRecord,
        queue: SegmentPurpose,
        frequency: u8,
    ) -> bool {
        let length = record.at.payload_length as usize;
        let buffer = self.housekeeping.relocation.take(length).await;
        if !self.is_movable(record) {
            return false;
        }
        let used = from.using(false);
        let reading = self.read_record(&used, record.hash, record.at, buffer, length);
        let (header, mut buffer) = match reading.await {
            Ok((header, buffer)) if header.verify_chunks(0, buffer.body()) => (header, buffer),
            _ => {
                self.stats.damaged_records.add(1);
                return false;
            }
        };
        drop(used);
        let header = self.as_it_stands(header, record.at).await;
        let bytes = header.record_bytes();
        let Some(Reservation { used, place }) = self.reserve_now(queue, &[queue], bytes).await
        else {
            return false;
        };
        let encoded = header.encode(buffer.headroom_mut(), &place);
        if !self.is_movable(record) || encoded.is_err() {
            return false;
        }
        let target = used.segment();
        let writing = target
            .file
            .write(place.offset, buffer.freeze(), 0..bytes as usize);
        if writing.await.is_err() {
            self.log.retire(target);
            let mut index = self.index.borrow_mut();
            index.note_stale(record.hash, target.number);
            return false;
        }
        let page = (place.offset / PAGE as u64) as u32;
        target.add(footer_entry(&header, page));
        self.stats.reappended_bytes.add(bytes);
        self.stats.written_bytes.add(bytes);
        let to = Location {
            segment: target.number,
            page,
            payload_length: header.payload_length,
        };
        self.index
            .borrow_mut()
            .relocate(record.hash, record.at, to, frequency);
        if header.state.is_dirty() {
            self.moved_dirty(&used.shared(), record, to).await;
        }
        true
    }

    /// What a record's header would say if it were written now: that the store has it, if it was
    /// uploaded since.
    async fn as_it_stands(&self, mut header: RecordHeader, at: Location) -> RecordHeader {
        if header.state.is_dirty() && !self.index.borrow().is_dirty(header.hash) {
            header.state = RecordState::Clean;
            header.store_etag = match self.mark(at).await {
                Some(Mark::Uploaded { store_etag }) => store_etag,
                _ => String::new(),
            };
        }
        header
    }

    async fn mark(&self, at: Location) -> Option<Mark> {
        let (marks, place) = (self.marks.as_ref()?, self.mark_place(at)?);
        marks.get(place).await
    }

    /// A copy of a dirty record is complete: what holds of the record holds of it.
    async fn moved_dirty(
        self: &Rc<Self>,
        target: &Rc<Segment<D::File>>,
        record: &LiveRecord,
        to: Location,
    ) {
        self.note_unsynced(target, Some((record.hash, to)), to.record_bytes());
        if let Some(mark) = self.mark(record.at).await
            && let (Some(marks), Some(place)) = (&self.marks, self.mark_place(to))
        {
            marks.put(place, &mark).await;
        }
    }

    /// Reserves room without reclaiming anything, in an open segment of one of `purposes` or in a
    /// spare one that is opened for `wanted`.
    async fn reserve_now(
        self: &Rc<Self>,
        wanted: SegmentPurpose,
        purposes: &[SegmentPurpose],
        bytes: u64,
    ) -> Option<Reservation<D::File>> {
        let reserve = || {
            let mut tried = purposes.iter();
            tried.find_map(|purpose| self.log.try_reserve(*purpose, bytes))
        };
        if let Some(reservation) = reserve() {
            return Some(reservation);
        }
        let segment = self.log.spare(0).await.ok()??;
        // Somebody may have opened one while this one was being made.
        if let Some(reservation) = reserve() {
            self.log.release(segment);
            return Some(reservation);
        }
        // Boxed, because a segment with too many graves would bury in one that is opened for it.
        Box::pin(self.open(segment, wanted)).await.ok()?;
        reserve()
    }

    /// Writes tombstones as records, for more blocks than a segment's first page can bury, and
    /// makes them durable.
    async fn bury(self: &Rc<Self>, blocks: &[BlockHash]) -> io::Result<()> {
        let mut touched: Vec<Rc<Segment<D::File>>> = Vec::new();
        for hash in blocks {
            let target = self.bury_block(*hash).await?;
            if touched
                .last()
                .is_none_or(|last| last.number != target.number)
            {
                touched.push(target);
            }
        }
        for segment in touched {
            segment.file.sync().await?;
        }
        Ok(())
    }

    async fn bury_block(self: &Rc<Self>, hash: BlockHash) -> io::Result<Rc<Segment<D::File>>> {
        use SegmentPurpose::{Dirty, Main, Probation};
        let reserving = self.reserve_now(Probation, &[Probation, Main, Dirty], PAGE as u64);
        let reservation = reserving
            .await
            .ok_or_else(|| no_room("no room for tombstones"))?;
        let target = reservation.used.shared();
        // After the reservation, which may need a page of the same pool to open a segment.
        let body = self.housekeeping.pages.take(0).await;
        let header = RecordHeader {
            sequence: self.take_sequence(),
            ..RecordHeader::grave(hash)
        };
        match self.write_record(&header, body, reservation, || true).await {
            // Superseded: what outranks the tombstone outranks the stale records too.
            Ok(()) | Err(AppendFailure::Superseded) => Ok(target),
            Err(AppendFailure::Disk(e)) => Err(e),
            Err(AppendFailure::HeaderTooLarge(_)) => unreachable!("a grave has no names"),
        }
    }
}

impl<R: Runtime, D: Disk> Shard<R, D> {
    /// Deletes segments beyond the quota, as after a restart with a smaller one.
    ///
    /// # Errors
    /// What the disk says; `StorageFull` if what is left cannot be reclaimed.
    pub async fn shrink(&self) -> io::Result<()> {
        while self.inner.log.excess() > 0 {
            // One that bears graves stays until what they bury is gone.
            let may_go = |segment| {
                let index = self.inner.index.borrow();
                index.needs_tombstones(segment).is_empty()
            };
            if !self.inner.log.remove_free(may_go).await? {
                self.inner.reclaim_one().await?;
            }
        }
        Ok(())
    }
}
