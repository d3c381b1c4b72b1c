//! The segments of one virtual shard: which is open, which are sealed, which goes next.
//!
//! This file owns space: it hands out places for records, seals full segments with a footer and
//! reclaims the oldest sealed one when the shard may not grow. It never looks into a record and
//! never decides what is in the index; whoever reclaims is told which blocks went.
//!
//! A segment's life:
//!
//! ```text
//!   free ──open──▶ open ──full──▶ sealed ──oldest, no users──▶ free, with a new incarnation
//! ```

use crate::format::{self, FolderId, FooterEntry, Place};
use crate::key::BlockHash;
use forebay_io::buffer::{Frozen, PAGE, Pool};
use forebay_io::disk::{Disk, DiskFile};
use forebay_io::local::Permits;
use forebay_io::runtime::Runtime;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// How segment files' names begin.
pub const SEGMENT_NAME_PREFIX: &str = "segment-";

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

/// Name of a segment's file.
pub fn segment_name(shard: u32, segment: u32) -> String {
    format!("{SEGMENT_NAME_PREFIX}{shard:03}-{segment:06}")
}

/// Shard and segment of a file name, if it is a segment's.
pub fn parse_segment_name(name: &str) -> Option<(u32, u32)> {
    let (shard, segment) = name.strip_prefix(SEGMENT_NAME_PREFIX)?.split_once('-')?;
    let parsed = (shard.parse().ok()?, segment.parse().ok()?);
    (segment_name(parsed.0, parsed.1) == name).then_some(parsed)
}

/// A segment file in one of its lives.
pub struct Segment<F> {
    /// Its number in the shard.
    pub number: u32,
    /// Its file.
    pub file: F,
    incarnation: Cell<u64>,
    /// Where the next record goes.
    cursor: Cell<u64>,
    /// Records of this life, written or (while open) being written; a failed write leaves none.
    entries: RefCell<Vec<FooterEntry>>,
    /// Reads and writes that rely on this life.
    users: Cell<usize>,
    /// Those of them that write.
    writers: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

/// Keeps a segment in its present life.
pub struct SegmentUse<F> {
    segment: Rc<Segment<F>>,
    writes: bool,
}

impl<F> SegmentUse<F> {
    /// The segment.
    pub fn segment(&self) -> &Segment<F> {
        &self.segment
    }

    /// The segment, to keep beyond this use.
    pub fn shared(&self) -> Rc<Segment<F>> {
        self.segment.clone()
    }
}

impl<F> Drop for SegmentUse<F> {
    fn drop(&mut self) {
        let segment = &self.segment;
        segment.users.set(segment.users.get() - 1);
        if self.writes {
            segment.writers.set(segment.writers.get() - 1);
        }
        for waker in segment.waiting.take() {
            waker.wake();
        }
    }
}

impl<F> Segment<F> {
    /// A segment as recovery found it.
    pub fn recovered(number: u32, file: F, incarnation: u64, entries: Vec<FooterEntry>) -> Self {
        Segment {
            number,
            file,
            incarnation: Cell::new(incarnation),
            cursor: Cell::new(PAGE as u64),
            entries: RefCell::new(entries),
            users: Cell::new(0),
            writers: Cell::new(0),
            waiting: RefCell::default(),
        }
    }

    /// Keeps the segment from being reclaimed.
    pub fn using(self: &Rc<Self>, writes: bool) -> SegmentUse<F> {
        self.users.set(self.users.get() + 1);
        if writes {
            self.writers.set(self.writers.get() + 1);
        }
        SegmentUse {
            segment: self.clone(),
            writes,
        }
    }

    /// Which life it is in.
    pub fn incarnation(&self) -> u64 {
        self.incarnation.get()
    }

    /// Adds a record that is completely written.
    pub fn add(&self, entry: FooterEntry) {
        self.entries.borrow_mut().push(entry);
    }

    async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        poll_fn(|cx| {
            if done(self) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A place reserved for one record.
pub struct Reservation<F> {
    /// Keeps the segment while the record is written.
    pub used: SegmentUse<F>,
    /// Where the record goes.
    pub place: Place,
}

/// How far the reclaim of a segment has come.
pub enum Reclaim<'a> {
    /// These records leave the index. They are on disk still: a start would find them.
    Leaving(&'a [FooterEntry]),
    /// No start will find them any more.
    Gone,
}

/// Told which blocks go with a segment: its number, and what happens to its records.
pub type OnReclaim = Box<dyn Fn(u32, Reclaim<'_>)>;

/// The segments of one shard.
pub struct SegmentLog<R: Runtime, D: Disk> {
    runtime: R,
    disk: D,
    /// For headers and footers only. Not the core's pool: whoever waits for a place in the log
    /// holds buffers of that one, and would wait for ever if the log waited for them.
    pool: Pool,
    layout: ShardLayout,
    open: RefCell<Option<Rc<Segment<D::File>>>>,
    /// Oldest first.
    sealed: RefCell<VecDeque<Rc<Segment<D::File>>>>,
    free: RefCell<Vec<Rc<Segment<D::File>>>>,
    /// Segment files that exist.
    created: Cell<u32>,
    /// Numbers from here up were never used.
    next_number: Cell<u32>,
    next_incarnation: Cell<u64>,
    /// Held while the open segment changes.
    rotation: Permits,
    /// Blocks of reclaimed segments go here.
    on_reclaim: OnReclaim,
    reclaimed: Cell<u64>,
}

/// What recovery hands to the log.
pub struct RecoveredSegments<F> {
    /// Segments with records, oldest first.
    pub sealed: Vec<Rc<Segment<F>>>,
    /// Segments without any.
    pub free: Vec<Rc<Segment<F>>>,
    /// Higher than every incarnation seen.
    pub next_incarnation: u64,
}

impl<R: Runtime, D: Disk> SegmentLog<R, D> {
    /// A log over what recovery found.
    pub fn new(
        runtime: R,
        disk: D,
        layout: ShardLayout,
        found: RecoveredSegments<D::File>,
        on_reclaim: OnReclaim,
    ) -> Self {
        let all = found.sealed.iter().chain(&found.free);
        let next_number = all.map(|segment| segment.number + 1).max().unwrap_or(0);
        SegmentLog {
            runtime,
            disk,
            pool: Pool::new(pages_pool_bytes(&layout)),
            layout,
            open: RefCell::default(),
            created: Cell::new((found.sealed.len() + found.free.len()) as u32),
            sealed: RefCell::new(found.sealed.into()),
            free: RefCell::new(found.free),
            next_number: Cell::new(next_number),
            next_incarnation: Cell::new(found.next_incarnation),
            rotation: Permits::new(1),
            on_reclaim,
            reclaimed: Cell::new(0),
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

    /// Segments reclaimed since start.
    pub fn reclaimed(&self) -> u64 {
        self.reclaimed.get()
    }

    /// The largest record that a segment can hold.
    pub fn record_bytes_max(&self) -> u64 {
        self.layout.segment_bytes - PAGE as u64 - format::footer_bytes(1)
    }

    /// Reserves `bytes` for a record, making room if need be.
    ///
    /// # Errors
    /// `StorageFull` when nothing can be reclaimed, or what the disk says.
    pub async fn reserve(&self, bytes: u64) -> io::Result<Reservation<D::File>> {
        if bytes > self.record_bytes_max() {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "larger than a segment",
            ));
        }
        let _turn = self.rotation.acquire().await;
        loop {
            if let Some(reservation) = self.try_reserve(bytes) {
                return Ok(reservation);
            }
            self.retire_open();
            let segment = self.next_segment().await?;
            *self.open.borrow_mut() = Some(segment);
        }
    }

    fn try_reserve(&self, bytes: u64) -> Option<Reservation<D::File>> {
        let open = self.open.borrow();
        let segment = open.as_ref()?;
        // Every user that writes will add an entry.
        let entries = segment.entries.borrow().len() + segment.writers.get() + 1;
        let offset = segment.cursor.get();
        if offset + bytes + format::footer_bytes(entries) > self.layout.segment_bytes {
            return None;
        }
        segment.cursor.set(offset + bytes);
        let place = self.place(segment, offset);
        Some(Reservation {
            used: segment.using(true),
            place,
        })
    }

    fn place(&self, segment: &Segment<D::File>, offset: u64) -> Place {
        Place {
            folder: self.layout.folder,
            shard: self.layout.shard,
            segment: segment.number,
            incarnation: segment.incarnation.get(),
            offset,
        }
    }

    /// The place of a record at `page` of a segment in its present life.
    pub fn record_place(&self, segment: &Segment<D::File>, page: u32) -> Place {
        self.place(segment, u64::from(page) * PAGE as u64)
    }

    /// Takes the open segment out of use: after a failed write, or because it is full. Its footer
    /// follows once its writers are done.
    pub fn retire_open(&self) {
        let Some(segment) = self.open.take() else {
            return;
        };
        self.sealed.borrow_mut().push_back(segment.clone());
        let used = segment.using(false);
        let (disk_pool, place) = (self.pool.clone(), self.place(&segment, 0));
        let segment_bytes = self.layout.segment_bytes;
        self.runtime.spawn(async move {
            seal(used.segment(), &disk_pool, place, segment_bytes).await;
        });
    }

    /// Takes the open segment out of use if it is the one given.
    pub fn retire(&self, segment: &Segment<D::File>) {
        let is_open = self
            .open
            .borrow()
            .as_ref()
            .is_some_and(|o| o.number == segment.number);
        if is_open {
            self.retire_open();
        }
    }

    /// Seals the open segment and waits for its footer; for an orderly stop.
    pub async fn seal_open(&self) {
        let _turn = self.rotation.acquire().await;
        let segment = self.open.take();
        if let Some(segment) = segment {
            self.sealed.borrow_mut().push_back(segment.clone());
            seal(
                &segment,
                &self.pool,
                self.place(&segment, 0),
                self.layout.segment_bytes,
            )
            .await;
        }
        let sealed: Vec<_> = self.sealed.borrow().iter().cloned().collect();
        for segment in sealed {
            // A footer that is still being written holds a use.
            segment.wait_until(|segment| segment.users.get() == 0).await;
        }
    }

    async fn next_segment(&self) -> io::Result<Rc<Segment<D::File>>> {
        let free = self.free.borrow_mut().pop();
        let segment = match free {
            Some(segment) => segment,
            None => match self.grow().await? {
                Some(segment) => segment,
                None => self.reclaim_oldest().await?,
            },
        };
        match self.begin_life(&segment).await {
            Ok(()) => {
                (self.on_reclaim)(segment.number, Reclaim::Gone);
                Ok(segment)
            }
            Err(e) => {
                self.free.borrow_mut().push(segment);
                Err(e)
            }
        }
    }

    /// A new file, if the quota and the file system allow one.
    async fn grow(&self) -> io::Result<Option<Rc<Segment<D::File>>>> {
        if self.created.get() >= self.layout.segments_max {
            return Ok(None);
        }
        let number = self.next_number.get();
        let name = segment_name(self.layout.shard, number);
        match self.disk.create(&name, self.layout.segment_bytes).await {
            Ok(file) => {
                self.next_number.set(number + 1);
                self.created.set(self.created.get() + 1);
                Ok(Some(Rc::new(Segment::recovered(
                    number,
                    file,
                    0,
                    Vec::new(),
                ))))
            }
            Err(e) if is_full(&e) && !self.sealed.borrow().is_empty() => {
                log::debug!(
                    "shard {}: no room to grow, reclaiming instead",
                    self.layout.shard
                );
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Empties the oldest sealed segment. Its blocks leave the index first, then its users end.
    async fn reclaim_oldest(&self) -> io::Result<Rc<Segment<D::File>>> {
        let oldest = self.sealed.borrow_mut().pop_front();
        let segment = oldest
            .ok_or_else(|| io::Error::new(io::ErrorKind::StorageFull, "no segment to reclaim"))?;
        (self.on_reclaim)(segment.number, Reclaim::Leaving(&segment.entries.borrow()));
        segment.wait_until(|segment| segment.users.get() == 0).await;
        // Records that were still being written have come into the index since.
        (self.on_reclaim)(segment.number, Reclaim::Leaving(&segment.entries.borrow()));
        self.reclaimed.set(self.reclaimed.get() + 1);
        Ok(segment)
    }

    /// Gives a segment a new incarnation on disk before its first record, so that records of its
    /// former life are never taken for new ones.
    async fn begin_life(&self, segment: &Rc<Segment<D::File>>) -> io::Result<()> {
        let incarnation = self.next_incarnation.get();
        self.next_incarnation.set(incarnation + 1);
        segment.entries.borrow_mut().clear();
        segment.cursor.set(PAGE as u64);
        segment.incarnation.set(incarnation);
        let mut buffer = self.pool.take(0).await;
        format::encode_segment_header(buffer.headroom_mut(), &self.place(segment, 0));
        segment.file.write(0, buffer.freeze(), 0..PAGE).await?;
        segment.file.sync().await
    }

    /// Deletes the oldest segments beyond what the quota allows, as after a restart with a smaller
    /// one. Returns their numbers, whose files are gone once the last handle is.
    pub async fn shrink(&self) -> io::Result<Vec<u32>> {
        let mut deleted = Vec::new();
        while self.created.get() > self.layout.segments_max {
            let free = self.free.borrow_mut().pop();
            let segment = match free {
                Some(segment) => segment,
                None => self.reclaim_oldest().await?,
            };
            self.disk
                .remove(&segment_name(self.layout.shard, segment.number))
                .await?;
            (self.on_reclaim)(segment.number, Reclaim::Gone);
            self.created.set(self.created.get() - 1);
            deleted.push(segment.number);
        }
        Ok(deleted)
    }
}

/// Memory for the headers and footers of one log: two footers of a segment full of tombstones, the
/// smallest records there are. A third that is due at the same time waits for them.
fn pages_pool_bytes(layout: &ShardLayout) -> usize {
    let entries_max = layout.segment_bytes as usize / PAGE;
    let footer_bytes_max = format::footer_bytes(entries_max) as usize;
    2 * (PAGE + footer_bytes_max.next_power_of_two())
}

/// Whether an error means that the file system or the quota of the user is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Writes a segment's footer once its writers are done. A footer that cannot be written is no
/// loss: the segment is scanned at the next start.
pub async fn seal<F: DiskFile>(
    segment: &Segment<F>,
    pool: &Pool,
    place: Place,
    segment_bytes: u64,
) {
    segment
        .wait_until(|segment| segment.writers.get() == 0)
        .await;
    let entries = segment.entries.borrow().clone();
    let offset = segment_bytes - format::footer_bytes(entries.len());
    let bytes = format::encode_footer(&entries, &Place { offset, ..place });
    let footer = freeze_copy(pool, &bytes).await;
    let written = segment
        .file
        .write(offset, footer, PAGE..PAGE + bytes.len())
        .await;
    if let Err(e) = written {
        log::warn!(
            "shard {} segment {}: no footer: {e}",
            place.shard,
            segment.number
        );
    }
}

async fn freeze_copy(pool: &Pool, bytes: &[u8]) -> Frozen {
    let mut buffer = pool.take(bytes.len()).await;
    buffer.append(bytes);
    buffer.freeze()
}

/// Blocks of `entries`, for tests and recovery.
pub fn blocks(entries: &[FooterEntry]) -> impl Iterator<Item = BlockHash> + '_ {
    entries.iter().map(|entry| entry.hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        assert_eq!(parse_segment_name(&segment_name(255, 12)), Some((255, 12)));
        for name in [
            "segment-1-2",
            "segment-001-0000012",
            "segment-001",
            "lock",
            "segment-+01-000001",
        ] {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
    }
}
