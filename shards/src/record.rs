//! Reading the records of one shard: a header, some chunks or all, verified.
//!
//! The memory for a read is taken before it begins, by whoever wants it: how long one waits for
//! memory says nothing about the disk. This file writes nothing, and takes a record out of the
//! index only if it could not be read.

use crate::format::{CHUNK_BYTES, NotOurs, RecordHeader, RecordKind};
use crate::index::Location;
use crate::key::BlockHash;
use crate::segment::SegmentUse;
use crate::shard::{Inner, Shard};
use forebay_io::buffer::{BufferWriter, PAGE, View, page_align};
use forebay_io::disk::{Disk, DiskFile};
use forebay_io::runtime::Runtime;
use std::io;
use std::ops::Range;

/// A range read takes the whole record with one request when that costs at most this many bytes
/// more: a second request costs about as much as moving 128 KiB.
const WHOLE_READ_SLACK_BYTES: usize = 128 << 10;

/// Times that a read follows a block to another place before it gives up. Each time the block was
/// overwritten or moved while the read waited for a buffer.
const READ_MOVES_MAX: usize = 4;

/// Said of a record that the file does not hold to its end.
pub(crate) const PAST_THE_END: NotOurs = NotOurs::Field("record past the end of its segment");

/// Memory for one read of a record.
pub struct ReadRoom {
    /// For the header, where it is read by itself.
    header: Option<BufferWriter>,
    /// For the chunks that are wanted, or for the whole record.
    pub(crate) body: BufferWriter,
}

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

/// Whether all of a payload is read for the sake of `wanted`.
pub(crate) fn is_read_whole(wanted: &Range<usize>, payload_length: usize) -> bool {
    wanted.len() + WHOLE_READ_SLACK_BYTES >= payload_length
}

/// The whole chunks that hold `wanted`.
fn chunks_around(wanted: &Range<usize>, payload_length: usize) -> Range<usize> {
    let end = wanted.end.next_multiple_of(CHUNK_BYTES);
    wanted.start / CHUNK_BYTES * CHUNK_BYTES..end.min(payload_length)
}

impl<R: Runtime, D: Disk> Shard<R, D> {
    /// A block's record that could not be read leaves the index, unless it is the only copy.
    pub(crate) fn drop_unreadable(
        &self,
        hash: BlockHash,
        location: Location,
        failure: &ReadFailure,
    ) {
        if !matches!(failure, ReadFailure::Gone) && !self.is_dirty(hash) {
            self.forget_if_at(hash, location);
        }
    }

    /// Memory for a header page; waits for it as long as it takes.
    pub async fn header_room(&self) -> BufferWriter {
        self.inner.blocks.take(0).await
    }

    /// Memory for a read of `wanted` bytes of a payload; waits for it as long as it takes.
    pub async fn read_room(&self, location: Location, wanted: Range<usize>) -> ReadRoom {
        let payload_length = location.payload_length as usize;
        if is_read_whole(&wanted, payload_length) {
            let body = self.inner.blocks.take(payload_length).await;
            return ReadRoom { header: None, body };
        }
        let chunks = chunks_around(&wanted, payload_length);
        let (header, body) = self.inner.blocks.take_two(0, chunks.len()).await;
        let header = Some(header);
        ReadRoom { header, body }
    }

    /// Reads a block's header page only, into what [`Shard::header_room`] gave.
    pub async fn read_header(
        &self,
        hash: BlockHash,
        location: Location,
        room: BufferWriter,
    ) -> Result<RecordHeader, ReadFailure> {
        let result = self.load(hash, location, room, 0, false).await;
        if let Err(failure) = &result {
            self.drop_unreadable(hash, location, failure);
        }
        result.map(|(header, _)| header)
    }

    /// Reads `wanted` bytes of a block's payload and verifies them, into what [`Shard::read_room`]
    /// gave for them. A block that moved while the read waited is followed, as long as its length
    /// stayed the same.
    ///
    /// # Panics
    /// If `wanted` reaches past the payload.
    pub async fn read(
        &self,
        hash: BlockHash,
        mut location: Location,
        wanted: Range<usize>,
        room: ReadRoom,
    ) -> Result<FoundRecord, ReadFailure> {
        let payload_length = location.payload_length as usize;
        assert!(wanted.start <= wanted.end && wanted.end <= payload_length);
        let mut room = Some(room);
        for _ in 0..READ_MOVES_MAX {
            let room = match room.take() {
                Some(room) => room,
                None => self.read_room(location, wanted.clone()).await,
            };
            match self.read_at(hash, location, wanted.clone(), room).await {
                Err(ReadFailure::Gone) => {}
                Err(failure) => {
                    self.drop_unreadable(hash, location, &failure);
                    return Err(failure);
                }
                Ok(found) => return Ok(found),
            }
            match self.find(hash) {
                Some(moved) if moved.payload_length == location.payload_length => location = moved,
                _ => break,
            }
        }
        Err(ReadFailure::Gone)
    }

    async fn read_at(
        &self,
        hash: BlockHash,
        location: Location,
        wanted: Range<usize>,
        room: ReadRoom,
    ) -> Result<FoundRecord, ReadFailure> {
        let body = match room.header {
            Some(header) => {
                let room = (header, room.body);
                return self.read_part(hash, location, wanted, room).await;
            }
            None => room.body,
        };
        let payload_length = location.payload_length as usize;
        let (header, body) = self
            .load(hash, location, body, payload_length, true)
            .await?;
        Ok(FoundRecord {
            header,
            wanted: body.slice(wanted),
            whole: Some(body),
        })
    }

    /// Reads the header page and the chunks around `wanted` at the same time.
    async fn read_part(
        &self,
        hash: BlockHash,
        location: Location,
        wanted: Range<usize>,
        (header, body): (BufferWriter, BufferWriter),
    ) -> Result<FoundRecord, ReadFailure> {
        let around = chunks_around(&wanted, location.payload_length as usize);
        let start = around.start;
        let head = self.load(hash, location, header, 0, false);
        let (head, chunks) = futures::join!(head, self.load_chunks(hash, location, body, around));
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
    pub(crate) fn use_segment(
        &self,
        hash: BlockHash,
        location: Location,
    ) -> Result<SegmentUse<D::File>, ReadFailure> {
        if self.find(hash) != Some(location) {
            return Err(ReadFailure::Gone);
        }
        let segment = self.inner.log.segment(location.segment);
        Ok(segment.ok_or(NotOurs::Place)?.using(false))
    }

    /// Reads the header page, and with it the whole payload if asked; verifies both.
    async fn load(
        &self,
        hash: BlockHash,
        location: Location,
        buffer: BufferWriter,
        payload_length: usize,
        verify: bool,
    ) -> Result<(RecordHeader, View), ReadFailure> {
        let used = self.use_segment(hash, location)?;
        let (header, mut buffer) = self
            .inner
            .read_record(&used, hash, location, buffer, payload_length)
            .await?;
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
        buffer: BufferWriter,
        range: Range<usize>,
    ) -> Result<View, ReadFailure> {
        let used = self.use_segment(hash, location)?;
        let record = u64::from(location.page) * PAGE as u64;
        let offset = record + (PAGE + range.start) as u64;
        let target = PAGE..PAGE + page_align(range.len());
        let reading = used.segment().file.read(offset, buffer, target.clone());
        let (count, mut buffer) = reading.await;
        if count? != target.len() {
            return Err(PAST_THE_END.into());
        }
        buffer.advance(range.len());
        buffer.finish();
        Ok(buffer.watch().view_all())
    }
}

impl<R: Runtime, D: Disk> Inner<R, D> {
    /// The header that the first page of the record of `hash` at `location` holds.
    pub(crate) fn header_of(
        &self,
        used: &SegmentUse<D::File>,
        hash: BlockHash,
        location: Location,
        page: &[u8],
    ) -> Result<RecordHeader, NotOurs> {
        let offset = u64::from(location.page) * PAGE as u64;
        let place = self.log.place(used.segment(), offset);
        let header = RecordHeader::decode(page, &place)?;
        let is_it = header.hash == hash
            && header.payload_length == location.payload_length
            && header.kind == RecordKind::Block;
        is_it.then_some(header).ok_or(NotOurs::Place)
    }

    /// Reads the header page of the record of `hash` at `location`, and `length` bytes of payload,
    /// into an empty `buffer`. The payload is not verified.
    pub(crate) async fn read_record(
        &self,
        used: &SegmentUse<D::File>,
        hash: BlockHash,
        location: Location,
        buffer: BufferWriter,
        length: usize,
    ) -> Result<(RecordHeader, BufferWriter), ReadFailure> {
        let segment = used.segment();
        let offset = u64::from(location.page) * PAGE as u64;
        let wanted = PAGE + page_align(length);
        let (count, mut buffer) = segment.file.read(offset, buffer, 0..wanted).await;
        if count? != wanted {
            return Err(PAST_THE_END.into());
        }
        let header = self.header_of(used, hash, location, buffer.headroom_mut())?;
        buffer.advance(length);
        Ok((header, buffer))
    }
}
