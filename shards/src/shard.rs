//! One virtual shard: the index of its blocks and the log they are in.
//!
//! A shard belongs to one core and is touched by no other. This file owns the index: a block is
//! in it only after its record is completely written, and leaves it before its segment is
//! reused. It verifies every byte that it reads and never hands out one that failed.

use crate::format::{CHUNK_BYTES, FooterEntry, NotOurs, RecordHeader, RecordKind, record_bytes};
use crate::key::BlockHash;
use crate::log::{Reclaim, Reservation, Segment, SegmentLog, SegmentUse};
use forebay_io::buffer::{BufferWriter, PAGE, Pool, View, page_align};
use forebay_io::disk::{Disk, DiskFile};
use forebay_io::runtime::Runtime;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// A range read takes the whole record with one request when that costs at most this many bytes
/// more: a second request costs about as much as moving 128 KiB.
const WHOLE_READ_SLACK_BYTES: usize = 128 << 10;

/// Where a block's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Segment in the shard.
    pub segment: u32,
    /// Page in the segment at which the record starts.
    pub page: u32,
    /// Payload bytes.
    pub payload_length: u32,
}

/// Block hashes are uniform already.
#[derive(Default)]
pub struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only block hashes are keys");
    }

    fn write_u128(&mut self, value: u128) {
        // The low bits chose the shard: they are the same for every key here.
        self.0 = (value >> 64) as u64;
    }
}

/// A map by block.
pub type BlockMap<T> = HashMap<BlockHash, T, BuildHasherDefault<Uniform>>;

/// What was read of a record.
pub struct FoundRecord {
    /// The record's header.
    pub header: RecordHeader,
    /// The payload bytes asked for.
    pub wanted: View,
    /// The whole payload, verified, when all of it was read.
    pub whole: Option<View>,
}

/// Why a record could not be read. The block has left the index, or is elsewhere by now.
#[derive(Debug, thiserror::Error)]
pub enum ReadFailure {
    /// It left the index, or was replaced, before the read began.
    #[error("the record was replaced or reclaimed meanwhile")]
    Gone,
    /// The bytes are not what was written there.
    #[error("damaged record: {0}")]
    Damaged(#[from] NotOurs),
    /// The disk refused.
    #[error("unreadable record: {0}")]
    Disk(#[from] io::Error),
}

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

struct Inner<D: Disk> {
    index: RefCell<BlockMap<Location>>,
    /// Blocks that may have a record on disk which the index does not name, or no longer: the
    /// next start would find it. By the segment of that record; forgotten when the segment goes
    /// or a newer record outranks it.
    leftovers: RefCell<BlockMap<u32>>,
    /// Blocks of which records are being written.
    appends: RefCell<BlockMap<Appends>>,
    segments: RefCell<HashMap<u32, Rc<Segment<D::File>>>>,
}

impl<D: Disk> Inner<D> {
    /// Takes a segment's records out of the index. A block that is deleted from now on needs a
    /// tombstone still, as long as a crash would leave the segment as it was.
    fn leave(&self, segment: u32, entries: &[FooterEntry]) {
        let mut index = self.index.borrow_mut();
        let mut leftovers = self.leftovers.borrow_mut();
        for hash in crate::log::blocks(entries) {
            let location = index.get(&hash);
            if location.is_some_and(|location| location.segment == segment) {
                index.remove(&hash);
                leftovers.entry(hash).or_insert(segment);
            }
        }
    }
}

/// The records of one block that are being written at the same time.
#[derive(Default)]
struct Appends {
    writers: usize,
    /// The highest sequence that was published since the first of them began.
    published: u64,
}

/// One record on its way to the disk. Writes end in any order, but the highest sequence of a
/// block wins in the index as it will at the next start.
struct Append<D: Disk> {
    inner: Rc<Inner<D>>,
    hash: BlockHash,
    sequence: u64,
}

impl<D: Disk> Append<D> {
    fn begin(inner: &Rc<Inner<D>>, hash: BlockHash, sequence: u64) -> Self {
        inner.appends.borrow_mut().entry(hash).or_default().writers += 1;
        Append {
            inner: inner.clone(),
            hash,
            sequence,
        }
    }

    fn is_outranked(&self) -> bool {
        self.inner.appends.borrow()[&self.hash].published > self.sequence
    }

    fn publish(&self) {
        let mut appends = self.inner.appends.borrow_mut();
        appends.entry(self.hash).or_default().published = self.sequence;
    }
}

impl<D: Disk> Drop for Append<D> {
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

/// One virtual shard.
pub struct Shard<R: Runtime, D: Disk> {
    inner: Rc<Inner<D>>,
    log: SegmentLog<R, D>,
    pool: Pool,
    next_sequence: Cell<u64>,
}

/// What recovery knows.
pub struct RecoveredShard<F> {
    /// The newest record of each block that is not deleted.
    pub index: BlockMap<Location>,
    /// The segments.
    pub segments: crate::log::RecoveredSegments<F>,
    /// Higher than every sequence seen.
    pub next_sequence: u64,
}

impl<R: Runtime, D: Disk> Shard<R, D> {
    /// A shard over what recovery found.
    pub fn new(
        runtime: R,
        disk: D,
        pool: Pool,
        layout: crate::log::ShardLayout,
        found: RecoveredShard<D::File>,
    ) -> Self {
        let all = found.segments.sealed.iter().chain(&found.segments.free);
        let segments = all
            .map(|segment| (segment.number, segment.clone()))
            .collect();
        let inner: Rc<Inner<D>> = Rc::new(Inner {
            index: RefCell::new(found.index),
            leftovers: RefCell::default(),
            appends: RefCell::default(),
            segments: RefCell::new(segments),
        });
        let reclaimed = inner.clone();
        let on_reclaim = Box::new(move |segment: u32, reclaim: Reclaim<'_>| match reclaim {
            Reclaim::Leaving(entries) => reclaimed.leave(segment, entries),
            Reclaim::Gone => reclaimed
                .leftovers
                .borrow_mut()
                .retain(|_, at| *at != segment),
        });
        Shard {
            inner,
            log: SegmentLog::new(runtime, disk, layout, found.segments, on_reclaim),
            pool,
            next_sequence: Cell::new(found.next_sequence),
        }
    }

    /// The shard's log.
    pub fn log(&self) -> &SegmentLog<R, D> {
        &self.log
    }

    /// Deletes segments beyond the quota, oldest first.
    pub async fn shrink(&self) -> io::Result<()> {
        let deleted = self.log.shrink().await?;
        self.inner
            .segments
            .borrow_mut()
            .retain(|number, _| !deleted.contains(number));
        Ok(())
    }

    /// Blocks in the index.
    pub fn len(&self) -> usize {
        self.inner.index.borrow().len()
    }

    /// Whether the index is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a block is here, and where.
    pub fn find(&self, hash: BlockHash) -> Option<Location> {
        self.inner.index.borrow().get(&hash).copied()
    }

    /// Whether a record of the block may be on disk, found by the index or by the next start.
    pub fn may_hold(&self, hash: BlockHash) -> bool {
        self.find(hash).is_some() || self.inner.leftovers.borrow().contains_key(&hash)
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
        let mut index = self.inner.index.borrow_mut();
        if index.get(&hash) == Some(&location) {
            index.remove(&hash);
            // One that is noted already is of a later record, which was not published.
            self.inner
                .leftovers
                .borrow_mut()
                .entry(hash)
                .or_insert(location.segment);
        }
    }

    /// Reads a block's header page only.
    pub async fn read_header(
        &self,
        hash: BlockHash,
        location: Location,
    ) -> Result<RecordHeader, ReadFailure> {
        let result = self
            .load(hash, location, 0..0, false)
            .await
            .map(|(header, _)| header);
        if result.is_err() {
            self.forget_if_at(hash, location);
        }
        result
    }

    /// Reads `wanted` bytes of a block's payload and verifies them.
    ///
    /// # Panics
    /// If `wanted` reaches past the payload.
    pub async fn read(
        &self,
        hash: BlockHash,
        location: Location,
        wanted: Range<usize>,
    ) -> Result<FoundRecord, ReadFailure> {
        let payload_length = location.payload_length as usize;
        assert!(wanted.start <= wanted.end && wanted.end <= payload_length);
        let whole = wanted.len() + WHOLE_READ_SLACK_BYTES >= payload_length;
        let result = if whole {
            self.load(hash, location, 0..payload_length, true)
                .await
                .map(|(header, body)| FoundRecord {
                    header,
                    wanted: body.slice(wanted),
                    whole: Some(body),
                })
        } else {
            self.read_part(hash, location, wanted).await
        };
        if result.is_err() {
            self.forget_if_at(hash, location);
        }
        result
    }

    /// Reads the header page and the chunks around `wanted` at the same time.
    async fn read_part(
        &self,
        hash: BlockHash,
        location: Location,
        wanted: Range<usize>,
    ) -> Result<FoundRecord, ReadFailure> {
        let payload_length = location.payload_length as usize;
        let start = wanted.start / CHUNK_BYTES * CHUNK_BYTES;
        let end = wanted.end.next_multiple_of(CHUNK_BYTES).min(payload_length);
        let head = self.load(hash, location, 0..0, false);
        let (head, chunks) = futures::join!(head, self.load_chunks(hash, location, start..end));
        let (header, chunks) = (head?.0, chunks?);
        if !header.verify_chunks(start / CHUNK_BYTES, &chunks) {
            return Err(NotOurs::Checksum.into());
        }
        let inside = wanted.start - start..wanted.end - start;
        Ok(FoundRecord {
            header,
            wanted: chunks.slice(inside),
            whole: None,
        })
    }

    /// Keeps a block's segment while it is read. Taken after the buffer: who holds a segment must
    /// not wait for memory, because those who hold the memory may wait for the segment.
    fn use_segment(
        &self,
        hash: BlockHash,
        location: Location,
    ) -> Result<SegmentUse<D::File>, ReadFailure> {
        if self.find(hash) != Some(location) {
            return Err(ReadFailure::Gone);
        }
        let segments = self.inner.segments.borrow();
        let segment = segments.get(&location.segment).ok_or(NotOurs::Place)?;
        Ok(segment.using(false))
    }

    /// Reads the header page, and with it the whole payload if asked; verifies both.
    async fn load(
        &self,
        hash: BlockHash,
        location: Location,
        payload: Range<usize>,
        verify: bool,
    ) -> Result<(RecordHeader, View), ReadFailure> {
        let buffer = self.pool.take(payload.len()).await;
        let used = self.use_segment(hash, location)?;
        let place = self.log.record_place(used.segment(), location.page);
        let length = PAGE + page_align(payload.len());
        let (count, mut buffer) = used
            .segment()
            .file
            .read(place.offset, buffer, 0..length)
            .await;
        if count? != length {
            return Err(NotOurs::Field("record past the end of its segment").into());
        }
        let header = RecordHeader::decode(buffer.headroom_mut(), &place)?;
        if header.hash != hash
            || header.payload_length != location.payload_length
            || header.kind != RecordKind::Block
        {
            return Err(NotOurs::Place.into());
        }
        buffer.advance(payload.len());
        if verify && !header.verify_chunks(0, buffer.body()) {
            return Err(NotOurs::Checksum.into());
        }
        buffer.finish();
        Ok((header, buffer.watch().view_all()))
    }

    async fn load_chunks(
        &self,
        hash: BlockHash,
        location: Location,
        range: Range<usize>,
    ) -> Result<View, ReadFailure> {
        let buffer = self.pool.take(range.len()).await;
        let used = self.use_segment(hash, location)?;
        let place = self.log.record_place(used.segment(), location.page);
        let offset = place.offset + (PAGE + range.start) as u64;
        let target = PAGE..PAGE + page_align(range.len());
        let (count, mut buffer) = used
            .segment()
            .file
            .read(offset, buffer, target.clone())
            .await;
        if count? != target.len() {
            return Err(NotOurs::Field("record past the end of its segment").into());
        }
        buffer.advance(range.len());
        buffer.finish();
        Ok(buffer.watch().view_all())
    }

    /// Writes a record and, for a block, puts it into the index. `wanted` is asked when the
    /// record takes its place in the order of its key: a record that is no longer wanted then is
    /// not written, one that is no longer wanted after the write is not published.
    pub async fn append(
        &self,
        mut header: RecordHeader,
        mut body: BufferWriter,
        wanted: impl Fn() -> bool,
    ) -> Result<(), AppendFailure> {
        let bytes = record_bytes(header.payload_length);
        let Reservation { used, place } = self.log.reserve(bytes).await?;
        if !wanted() {
            // The reserved gap holds a former life's bytes at worst: a scan steps over it.
            return Err(AppendFailure::Superseded);
        }
        header.sequence = self.next_sequence.get();
        self.next_sequence.set(header.sequence + 1);
        header.encode(body.headroom_mut(), &place)?;
        let append = Append::begin(&self.inner, header.hash, header.sequence);
        let record = body.freeze();
        let segment = used.segment();
        self.adopt(&used);
        if let Err(e) = segment
            .file
            .write(place.offset, record, 0..bytes as usize)
            .await
        {
            // Nothing after a failed write is trusted to this segment. All of it may be there.
            self.log.retire(segment);
            self.inner
                .leftovers
                .borrow_mut()
                .insert(header.hash, segment.number);
            return Err(e.into());
        }
        let page = (place.offset / PAGE as u64) as u32;
        segment.add(FooterEntry {
            hash: header.hash,
            sequence: header.sequence,
            page,
            payload_length: header.payload_length,
            kind: header.kind,
        });
        if append.is_outranked() {
            return Err(AppendFailure::Superseded);
        }
        if !wanted() {
            self.inner
                .leftovers
                .borrow_mut()
                .insert(header.hash, segment.number);
            return Err(AppendFailure::Superseded);
        }
        append.publish();
        self.publish(&header, segment.number, page);
        Ok(())
    }

    /// Makes the index say what a record says that is completely written.
    fn publish(&self, header: &RecordHeader, segment: u32, page: u32) {
        self.inner.leftovers.borrow_mut().remove(&header.hash);
        let mut index = self.inner.index.borrow_mut();
        match header.kind {
            RecordKind::Block => {
                let payload_length = header.payload_length;
                index.insert(
                    header.hash,
                    Location {
                        segment,
                        page,
                        payload_length,
                    },
                );
            }
            RecordKind::Tombstone => {
                index.remove(&header.hash);
            }
        }
    }

    /// Makes a segment known to readers; new ones come into being inside the log.
    fn adopt(&self, used: &SegmentUse<D::File>) {
        let mut segments = self.inner.segments.borrow_mut();
        segments
            .entry(used.segment().number)
            .or_insert_with(|| used.shared());
    }
}
