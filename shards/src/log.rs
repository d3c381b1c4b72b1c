//! The segments of one virtual shard: which are open, which are sealed, which are free.
//!
//! This file owns space: it hands out places for records, seals full segments with a footer and
//! begins and ends segments' lives on disk. It never looks into a record, never decides what is in
//! the index and never chooses what to evict; [`crate::reclaim`] brings the three together.
//!
//! A segment's life:
//!
//! ```text
//!   free ──open──▶ open ──full──▶ sealed, clean ──────────────────reclaim──▶ erased, free
//!    ▲               └──────────▶ sealed, dirty ──all uploaded──▶ sealed, clean
//!    └── created, as long as the quota and the file system allow
//! ```
//!
//! At most one segment is open for each purpose. A free segment says on disk that it is free, so
//! that nothing of its former life is found again and a start need not look through it.

use crate::format::{self, FolderId, Grave, Place, SegmentPurpose};
use crate::segment::{CleanSegment, DirtySegment, Segment, SegmentUse, segment_name};
use forebay_io::buffer::{PAGE, Pool};
use forebay_io::disk::{Disk, DiskFile};
use forebay_io::local::Permits;
use forebay_io::runtime::{MonoTime, Runtime};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How long a refusal by the file system to hold another segment is believed. Long enough that a
/// full disk is not asked at every rotation, short enough that space that came free is used.
const GROWTH_PAUSE: Duration = Duration::from_secs(10);

/// Segments that are made durable one by one; more of them, as after a start, with the whole file
/// system.
const SYNCS_MAX: usize = 3;

/// Footers that may be written at the same time by all shards of a core: memory for them.
const FOOTERS_AT_ONCE: usize = 2;

/// A shard's place in its folder.
#[derive(Clone, Copy, Debug)]
pub struct ShardLayout {
    /// The folder's identity.
    pub folder: FolderId,
    /// The virtual shard's number.
    pub shard: u32,
    /// Bytes of each segment.
    pub segment_bytes: u64,
    /// Segments that the quota allows this shard.
    pub segments_max: u32,
}

/// A place reserved for one record.
pub struct Reservation<F> {
    /// Keeps the segment while the record is written.
    pub used: SegmentUse<F>,
    /// Where the record goes.
    pub place: Place,
}

/// Sealed segments, oldest first.
struct Queues<F> {
    probation: VecDeque<CleanSegment<F>>,
    main: VecDeque<CleanSegment<F>>,
    dirty: Vec<DirtySegment<F>>,
}

/// By purpose.
type OpenSegments<F> = [Option<Rc<Segment<F>>>; 3];

/// The segments of one shard.
pub struct SegmentLog<R: Runtime, D: Disk> {
    runtime: R,
    disk: D,
    /// For headers and footers only. Not the pool of block buffers: whoever waits for a place in
    /// the log holds buffers of that one, and would wait for ever if the log waited for them.
    pages: Pool,
    layout: ShardLayout,
    /// Every segment by number.
    all: RefCell<HashMap<u32, Rc<Segment<D::File>>>>,
    /// By purpose.
    open: RefCell<OpenSegments<D::File>>,
    queues: RefCell<Queues<D::File>>,
    free: RefCell<VecDeque<Rc<Segment<D::File>>>>,
    /// Free ones that could not be opened when they were last tried: for when there is no other.
    bad: RefCell<VecDeque<Rc<Segment<D::File>>>>,
    /// Segment files that exist, also those that cannot be opened.
    created: Cell<u32>,
    /// Numbers from here up were never used.
    next_number: Cell<u32>,
    next_incarnation: Cell<u64>,
    /// Held while the open segment of a purpose changes.
    rotations: [Permits; 3],
    /// Held while all that was written is made durable.
    syncing: Permits,
    /// Until when the file system is taken to hold no more segments.
    growth_refused_until: Cell<Option<MonoTime>>,
}

/// What recovery hands to the log.
pub struct RecoveredSegments<F> {
    /// Segments with records, in the order of their incarnations, each with the number of its
    /// records that are dirty and not outranked.
    pub sealed: Vec<(Rc<Segment<F>>, usize)>,
    /// Segments without any.
    pub free: Vec<Rc<Segment<F>>>,
    /// Files that exist and cannot be opened.
    pub lost: u32,
    /// Higher than every number seen.
    pub next_number: u32,
    /// Higher than every incarnation seen.
    pub next_incarnation: u64,
}

/// Memory for the headers and footers of all logs of a core: footers of segments full of
/// tombstones, the smallest records there are. Another that is due at the same time waits.
pub fn pages_pool(segment_bytes: u64) -> Pool {
    let entries_max = segment_bytes as usize / PAGE;
    let footer_bytes_max = format::footer_bytes(entries_max) as usize;
    Pool::new(FOOTERS_AT_ONCE * (PAGE + footer_bytes_max.next_power_of_two()))
}

fn slot(purpose: SegmentPurpose) -> usize {
    match purpose {
        SegmentPurpose::Probation => 0,
        SegmentPurpose::Main => 1,
        SegmentPurpose::Dirty => 2,
        SegmentPurpose::Free => unreachable!("records are never written to a free segment"),
    }
}

impl<R: Runtime, D: Disk> SegmentLog<R, D> {
    /// A log over what recovery found. `pages` comes from [`pages_pool`].
    pub fn new(
        runtime: R,
        disk: D,
        pages: Pool,
        layout: ShardLayout,
        found: RecoveredSegments<D::File>,
    ) -> Self {
        let sealed = found.sealed.iter().map(|(segment, _)| segment);
        let all: HashMap<_, _> = sealed
            .chain(&found.free)
            .map(|segment| (segment.number, segment.clone()))
            .collect();
        let log = SegmentLog {
            runtime,
            disk,
            pages,
            layout,
            open: RefCell::default(),
            created: Cell::new(all.len() as u32 + found.lost),
            all: RefCell::new(all),
            queues: RefCell::new(Queues {
                probation: VecDeque::new(),
                main: VecDeque::new(),
                dirty: Vec::new(),
            }),
            free: RefCell::new(found.free.into()),
            bad: RefCell::default(),
            next_number: Cell::new(found.next_number),
            next_incarnation: Cell::new(found.next_incarnation),
            rotations: [Permits::new(1), Permits::new(1), Permits::new(1)],
            syncing: Permits::new(1),
            growth_refused_until: Cell::new(None),
        };
        for segment in log.all.borrow().values() {
            // The former process may have been killed before it made its writes durable.
            segment.set_unsynced(true);
        }
        for (segment, dirty_records) in found.sealed {
            log.enqueue(segment, dirty_records);
        }
        log
    }

    /// Puts a sealed segment where its kind belongs.
    fn enqueue(&self, segment: Rc<Segment<D::File>>, dirty_records: usize) {
        let mut queues = self.queues.borrow_mut();
        match segment.purpose() {
            _ if dirty_records > 0 => queues.dirty.push(DirtySegment::new(segment)),
            SegmentPurpose::Probation => queues.probation.push_back(CleanSegment::new(segment)),
            SegmentPurpose::Main => queues.main.push_back(CleanSegment::new(segment)),
            SegmentPurpose::Dirty => match DirtySegment::new(segment).settle(dirty_records) {
                Ok(clean) => queues.probation.push_back(clean),
                Err(dirty) => queues.dirty.push(dirty),
            },
            SegmentPurpose::Free => unreachable!("a free segment is never sealed"),
        }
    }

    /// Where the shard lives.
    pub fn layout(&self) -> &ShardLayout {
        &self.layout
    }

    /// Bytes of segment files.
    pub fn used_bytes(&self) -> u64 {
        u64::from(self.created.get()) * self.layout.segment_bytes
    }

    /// Whether the file system, and not the quota, keeps the shard from growing.
    pub fn is_growth_refused(&self) -> bool {
        self.created.get() < self.layout.segments_max && !self.may_grow()
    }

    /// The largest record that a segment can hold.
    pub fn record_bytes_max(&self) -> u64 {
        self.layout.segment_bytes - PAGE as u64 - format::footer_bytes(1)
    }

    /// A segment by its number.
    pub fn segment(&self, number: u32) -> Option<Rc<Segment<D::File>>> {
        self.all.borrow().get(&number).cloned()
    }

    /// Held by whoever changes the open segment of a purpose and may wait for space.
    pub(crate) fn rotation(&self, purpose: SegmentPurpose) -> &Permits {
        &self.rotations[slot(purpose)]
    }

    /// Reserves `bytes` in the open segment of `purpose`, if there is one with room.
    pub(crate) fn try_reserve(
        &self,
        purpose: SegmentPurpose,
        bytes: u64,
    ) -> Option<Reservation<D::File>> {
        let open = self.open.borrow();
        let segment = open[slot(purpose)].as_ref()?;
        let footer_bytes = format::footer_bytes(segment.entries_expected() + 1);
        let offset = segment.cursor();
        if offset + bytes + footer_bytes > self.layout.segment_bytes {
            return None;
        }
        segment.advance(bytes);
        Some(Reservation {
            used: segment.using(true),
            place: self.place(segment, offset),
        })
    }

    pub(crate) fn place(&self, segment: &Segment<D::File>, offset: u64) -> Place {
        Place {
            folder: self.layout.folder,
            shard: self.layout.shard,
            segment: segment.number,
            incarnation: segment.incarnation(),
            offset,
        }
    }

    /// The number of the open segment of `purpose`.
    pub(crate) fn open_segment(&self, purpose: SegmentPurpose) -> Option<u32> {
        let open = self.open.borrow();
        open[slot(purpose)].as_ref().map(|segment| segment.number)
    }

    /// Takes the open segment of `purpose` out of use. Its footer follows once its writers are
    /// done.
    pub(crate) fn retire_open(&self, purpose: SegmentPurpose) {
        let retired = self.open.borrow_mut()[slot(purpose)].take();
        let Some(segment) = retired else {
            return;
        };
        // Not known here; [`SegmentLog::settle`] asks.
        let maybe_dirty = usize::from(purpose == SegmentPurpose::Dirty);
        self.enqueue(segment.clone(), maybe_dirty);
        let used = segment.using(false);
        let (pages, place) = (self.pages.clone(), self.place(&segment, 0));
        let segment_bytes = self.layout.segment_bytes;
        self.runtime.spawn(async move {
            seal(used.segment(), &pages, place, segment_bytes).await;
        });
    }

    /// Takes a segment out of use, if it is open: after a failed write nothing more is trusted
    /// to it.
    pub(crate) fn retire(&self, segment: &Segment<D::File>) {
        let purpose = segment.purpose();
        let is_open = self.open.borrow()[slot(purpose)]
            .as_ref()
            .is_some_and(|open| open.number == segment.number);
        if is_open {
            self.retire_open(purpose);
        }
    }

    /// Seals the open segments and waits for their footers; for an orderly stop.
    pub async fn seal_open(&self) {
        let purposes = [
            SegmentPurpose::Probation,
            SegmentPurpose::Main,
            SegmentPurpose::Dirty,
        ];
        for purpose in purposes {
            let _turn = self.rotation(purpose).acquire().await;
            let open = self.open.borrow()[slot(purpose)].clone();
            self.retire_open(purpose);
            if let Some(segment) = open {
                // A footer that is being written holds a use.
                segment.unused().await;
            }
        }
    }

    /// Segments that could be opened without reclaiming one.
    pub(crate) fn spares(&self) -> usize {
        let growable = match self.may_grow() {
            true => self.layout.segments_max - self.created.get(),
            false => 0,
        };
        self.free.borrow().len() + growable as usize
    }

    fn may_grow(&self) -> bool {
        let now = self.runtime.now();
        let refused = self.growth_refused_until.get();
        self.created.get() < self.layout.segments_max && refused.is_none_or(|until| now >= until)
    }

    /// A segment to be opened, if there is one beyond `kept` others.
    ///
    /// # Errors
    /// What the disk says, unless it says that it is full: then there is none.
    pub(crate) async fn spare(&self, kept: usize) -> io::Result<Option<Rc<Segment<D::File>>>> {
        if self.spares() <= kept {
            return Ok(None);
        }
        let free = self.free.borrow_mut().pop_front();
        match free {
            Some(segment) => Ok(Some(segment)),
            None => self.grow().await,
        }
    }

    /// A free segment that could not be opened before, for when nothing else can be had.
    pub(crate) fn take_bad(&self) -> Option<Rc<Segment<D::File>>> {
        self.bad.borrow_mut().pop_front()
    }

    /// Segments that this shard can have now: as the quota says, or what exists while the file
    /// system has no room for more.
    pub(crate) fn segments_within_reach(&self) -> u32 {
        match self.may_grow() {
            true => self.layout.segments_max,
            false => self.created.get(),
        }
    }

    /// Whether the next segment to be opened does not exist yet, and could.
    pub(crate) fn may_grow_ahead(&self) -> bool {
        self.free.borrow().is_empty() && self.may_grow()
    }

    /// Makes a segment before anybody waits for it: its file takes as long to make as a block takes
    /// to write.
    pub(crate) async fn grow_ahead(&self) {
        // Another may have been made since this was asked for.
        if !self.may_grow_ahead() {
            return;
        }
        // Whoever needs it and cannot have it is told; nobody does yet.
        if let Ok(Some(segment)) = self.grow().await {
            self.free.borrow_mut().push_back(segment);
        }
    }

    async fn grow(&self) -> io::Result<Option<Rc<Segment<D::File>>>> {
        let number = self.next_number.get();
        // Before the wait: the next one who grows must not take the same number or place.
        self.next_number.set(number + 1);
        self.created.set(self.created.get() + 1);
        let name = segment_name(self.layout.shard, number);
        match self.disk.create(&name, self.layout.segment_bytes).await {
            Ok(file) => {
                let segment = Rc::new(Segment::new(number, file, 0, SegmentPurpose::Free));
                self.all.borrow_mut().insert(number, segment.clone());
                self.growth_refused_until.set(None);
                Ok(Some(segment))
            }
            Err(e) => {
                self.created.set(self.created.get() - 1);
                if !is_full(&e) {
                    return Err(e);
                }
                if self.growth_refused_until.get().is_none() {
                    let shard = self.layout.shard;
                    log::warn!("shard {shard}: the file system is full below the quota: {e}");
                }
                let until = self.runtime.now().plus(GROWTH_PAUSE);
                self.growth_refused_until.set(Some(until));
                Ok(None)
            }
        }
    }

    /// Opens a free segment for `purpose`: gives it an incarnation on disk before its first
    /// record, then lets it take the place of the one that was open. `graves` are those that it
    /// must go on bearing.
    pub(crate) async fn open(
        &self,
        segment: Rc<Segment<D::File>>,
        purpose: SegmentPurpose,
        graves: &[Grave],
    ) -> io::Result<()> {
        if let Err(e) = self.write_life(&segment, purpose, graves).await {
            self.bad.borrow_mut().push_back(segment);
            return Err(e);
        }
        let is_overtaken = self.open.borrow()[slot(purpose)]
            .as_ref()
            .is_some_and(|open| open.incarnation() > segment.incarnation());
        if is_overtaken {
            // Of two copies of a record the one in the later life counts at the next start. So
            // nothing may be written to an earlier life once a later one has begun.
            self.release(segment);
            return Ok(());
        }
        self.retire_open(purpose);
        self.open.borrow_mut()[slot(purpose)] = Some(segment);
        Ok(())
    }

    /// Makes durable what was written so far, in all segments. What outranks the records of a segment
    /// must not go with a power cut after they have gone.
    pub(crate) async fn sync_written(&self) -> io::Result<()> {
        // One at a time: a segment that somebody else is making durable is not durable yet.
        let _turn = self.syncing.acquire().await;
        let mut unsynced: Vec<_> = {
            let all = self.all.borrow();
            let unsynced = all.values().filter(|segment| segment.is_unsynced());
            unsynced.cloned().collect()
        };
        // The same order in every run of a seed.
        unsynced.sort_by_key(|segment| segment.number);
        if unsynced.len() > SYNCS_MAX {
            return self.sync_all(&unsynced).await;
        }
        for segment in unsynced {
            // What is written during the sync is not covered by it.
            segment.set_unsynced(false);
            if let Err(e) = segment.file.sync().await {
                segment.set_unsynced(true);
                segment.distrust();
                return Err(e);
            }
        }
        Ok(())
    }

    async fn sync_all(&self, segments: &[Rc<Segment<D::File>>]) -> io::Result<()> {
        segments.iter().for_each(|one| one.set_unsynced(false));
        let synced = self.disk.sync().await;
        if synced.is_err() {
            for segment in segments {
                segment.set_unsynced(true);
                segment.distrust();
            }
        }
        synced
    }

    /// Ends a segment's life on disk and buries blocks with it. Until this has succeeded its
    /// records may be found again.
    pub(crate) async fn erase(
        &self,
        segment: &Rc<Segment<D::File>>,
        graves: &[Grave],
    ) -> io::Result<()> {
        self.write_life(segment, SegmentPurpose::Free, graves).await
    }

    /// Makes an erased segment free.
    pub(crate) fn release(&self, segment: Rc<Segment<D::File>>) {
        self.free.borrow_mut().push_back(segment);
    }

    async fn write_life(
        &self,
        segment: &Segment<D::File>,
        purpose: SegmentPurpose,
        graves: &[Grave],
    ) -> io::Result<()> {
        let incarnation = self.next_incarnation.get();
        self.next_incarnation.set(incarnation + 1);
        segment.begin_life(incarnation, purpose);
        let mut buffer = self.pages.take(0).await;
        let place = self.place(segment, 0);
        format::encode_segment_header(buffer.headroom_mut(), &place, purpose, graves);
        segment.file.write(0, buffer.freeze(), 0..PAGE).await?;
        segment.file.sync().await
    }

    /// Segments of the two clean queues, open ones included.
    pub(crate) fn queue_lengths(&self) -> (usize, usize) {
        let (queues, open) = (self.queues.borrow(), self.open.borrow());
        let is_open = |purpose| usize::from(open[slot(purpose)].is_some());
        (
            queues.probation.len() + is_open(SegmentPurpose::Probation),
            queues.main.len() + is_open(SegmentPurpose::Main),
        )
    }

    /// Takes the oldest sealed segment of the queue `first`, or of the other one if it has none.
    pub(crate) fn take_oldest(&self, first: SegmentPurpose) -> Option<CleanSegment<D::File>> {
        let Queues {
            probation, main, ..
        } = &mut *self.queues.borrow_mut();
        match first {
            SegmentPurpose::Main => main.pop_front().or_else(|| probation.pop_front()),
            _ => probation.pop_front().or_else(|| main.pop_front()),
        }
    }

    /// Takes the sealed clean segment with the fewest live bytes, if it has at most `limit`.
    pub(crate) fn take_sparsest(
        &self,
        live_bytes: impl Fn(u32) -> u64,
        limit: u64,
    ) -> Option<CleanSegment<D::File>> {
        let Queues {
            probation, main, ..
        } = &mut *self.queues.borrow_mut();
        let fewest = |queue: &VecDeque<CleanSegment<D::File>>| {
            let each = queue.iter().enumerate();
            each.map(|(at, clean)| (live_bytes(clean.segment().number), at))
                .min()
        };
        let (of_probation, of_main) = (fewest(probation), fewest(main));
        let is_within =
            |found: Option<(u64, usize)>| found.is_some_and(|(bytes, _)| bytes <= limit);
        match (of_probation, of_main) {
            (Some(one), other)
                if is_within(Some(one)) && other.is_none_or(|other| one.0 <= other.0) =>
            {
                probation.remove(one.1)
            }
            (_, Some((_, at))) if is_within(of_main) => main.remove(at),
            _ => None,
        }
    }

    /// Puts a segment that could not be reclaimed behind all others of its queue.
    pub(crate) fn put_back(&self, segment: CleanSegment<D::File>) {
        let mut queues = self.queues.borrow_mut();
        match segment.segment().purpose() {
            SegmentPurpose::Main => queues.main.push_back(segment),
            _ => queues.probation.push_back(segment),
        }
    }

    /// Lets dirty segments become clean in which nothing is dirty any more.
    pub(crate) fn settle(&self, dirty_records: impl Fn(u32) -> usize) {
        let mut queues = self.queues.borrow_mut();
        for dirty in std::mem::take(&mut queues.dirty) {
            let count = dirty_records(dirty.segment().number);
            match dirty.settle(count) {
                Ok(clean) => queues.probation.push_back(clean),
                Err(dirty) => queues.dirty.push(dirty),
            }
        }
    }

    /// Segments that hold, or may hold, dirty records, the open one included.
    pub(crate) fn dirty_segments(&self) -> u32 {
        let open = self.open.borrow()[slot(SegmentPurpose::Dirty)].is_some();
        self.queues.borrow().dirty.len() as u32 + u32::from(open)
    }

    /// Takes the sealed dirty segment with the fewest bytes that are still dirty, if they are at
    /// most `limit`.
    pub(crate) fn take_sparsest_dirty(
        &self,
        dirty_bytes: impl Fn(u32) -> u64,
        limit: u64,
    ) -> Option<DirtySegment<D::File>> {
        let dirty = &mut self.queues.borrow_mut().dirty;
        let bytes_of = |segment: &DirtySegment<D::File>| dirty_bytes(segment.segment().number);
        let each = dirty.iter().enumerate();
        let (bytes, at) = each.map(|(at, segment)| (bytes_of(segment), at)).min()?;
        (bytes <= limit).then(|| dirty.remove(at))
    }

    /// Gives back what [`SegmentLog::take_sparsest_dirty`] took.
    pub(crate) fn put_back_dirty(&self, segment: DirtySegment<D::File>) {
        self.queues.borrow_mut().dirty.push(segment);
    }

    /// Segments beyond what the quota allows.
    pub(crate) fn excess(&self) -> u32 {
        self.created.get().saturating_sub(self.layout.segments_max)
    }

    /// Deletes the file of a free segment of which nobody holds a use and that `may_go`. Returns
    /// whether there was one.
    pub(crate) async fn remove_free(&self, may_go: impl Fn(u32) -> bool) -> io::Result<bool> {
        let taken = {
            let mut free = self.free.borrow_mut();
            let at = free.iter().position(|segment| may_go(segment.number));
            at.and_then(|at| free.remove(at))
        };
        let Some(segment) = taken else {
            return Ok(false);
        };
        let name = segment_name(self.layout.shard, segment.number);
        if let Err(e) = self.disk.remove(&name).await {
            self.free.borrow_mut().push_back(segment);
            return Err(e);
        }
        self.all.borrow_mut().remove(&segment.number);
        self.created.set(self.created.get() - 1);
        Ok(true)
    }
}

/// Whether an error means that the file system or the quota of the user is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Writes a segment's footer once its writers are done. A footer that cannot be written is no
/// loss: the segment is scanned at the next start. What a footer says of a dirty record is believed
/// then, so the records are made durable first.
async fn seal<F: DiskFile>(segment: &Segment<F>, pages: &Pool, place: Place, segment_bytes: u64) {
    segment.written().await;
    if segment.purpose() == SegmentPurpose::Dirty
        && let Err(e) = segment.file.sync().await
    {
        segment.distrust();
        let (shard, number) = (place.shard, segment.number);
        return log::warn!("shard {shard} segment {number}: no footer: {e}");
    }
    let entries = segment.take_entries();
    let offset = segment_bytes - format::footer_bytes(entries.len());
    let place = Place { offset, ..place };
    let bytes = format::encode_footer(&entries, &place, segment.purpose());
    let mut buffer = pages.take(bytes.len()).await;
    buffer.append(&bytes);
    let range = PAGE..PAGE + bytes.len();
    if let Err(e) = segment.file.write(offset, buffer.freeze(), range).await {
        let (shard, number) = (place.shard, segment.number);
        log::warn!("shard {shard} segment {number}: no footer: {e}");
    }
}
