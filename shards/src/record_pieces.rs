//! Reading a whole record piece by piece: its first bytes are given while its last are still read.
//!
//! A piece is published only after its chunks were verified. What breaks off later is told to whoever
//! follows; this file does not look for the block elsewhere, and writes nothing.

use crate::format::{CHUNK_BYTES, NotOurs, RecordHeader};
use crate::index::Location;
use crate::key::BlockHash;
use crate::record::{PAST_THE_END, ReadFailure, ReadRoom, is_read_whole};
use crate::segment::SegmentUse;
use crate::shard::Shard;
use forebay_io::buffer::{PAGE, View, Watch, page_align};
use forebay_io::disk::{Disk, DiskFile, Pieces};
use forebay_io::runtime::Runtime;
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// A record of which the first piece is read and verified.
pub struct BegunRecord<R: Runtime, D: Disk> {
    shard: Rc<Shard<R, D>>,
    hash: BlockHash,
    location: Location,
    header: Rc<RecordHeader>,
    pieces: <D::File as DiskFile>::Pieces,
    /// Nothing else may be written to its place meanwhile.
    _used: SegmentUse<D::File>,
}

impl<R: Runtime, D: Disk> Shard<R, D> {
    /// Whether a read of `wanted` bytes of a payload is one of the whole record, in several pieces.
    pub fn is_read_in_pieces(&self, location: Location, wanted: &Range<usize>) -> bool {
        let payload_length = location.payload_length as usize;
        let piece_bytes = <D::File as DiskFile>::PIECE_BYTES;
        payload_length > piece_bytes && is_read_whole(wanted, payload_length)
    }

    /// Reads the first piece of a block's record into what [`Shard::read_room`] gave for all of it,
    /// while the others are on their way.
    ///
    /// # Errors
    /// As [`Shard::read`]; a block that has moved meanwhile is [`ReadFailure::Gone`].
    pub async fn begin(
        self: Rc<Self>,
        hash: BlockHash,
        location: Location,
        room: ReadRoom,
    ) -> Result<BegunRecord<R, D>, ReadFailure> {
        let begun = self.first_piece(hash, location, room).await;
        if let Err(failure) = &begun {
            self.drop_unreadable(hash, location, failure);
        }
        begun
    }

    async fn first_piece(
        self: &Rc<Self>,
        hash: BlockHash,
        location: Location,
        room: ReadRoom,
    ) -> Result<BegunRecord<R, D>, ReadFailure> {
        let used = self.use_segment(hash, location)?;
        let payload_bytes = page_align(location.payload_length as usize);
        let offset = u64::from(location.page) * PAGE as u64;
        let file = &used.segment().file;
        let mut pieces = file.pieces(offset, room.body, payload_bytes, CHUNK_BYTES);
        let first = pieces
            .next()
            .await
            .unwrap_or(Err(io::ErrorKind::UnexpectedEof.into()));
        first.map_err(failed)?;
        let page = pieces.arriving().headroom();
        let header = self.inner.header_of(&used, hash, location, page)?;
        publish(&header, &mut pieces)?;
        Ok(BegunRecord {
            shard: self.clone(),
            hash,
            location,
            header: Rc::new(header),
            pieces,
            _used: used,
        })
    }
}

impl<R: Runtime, D: Disk> BegunRecord<R, D> {
    /// The shard that it is read from.
    pub fn shard(&self) -> &Rc<Shard<R, D>> {
        &self.shard
    }

    /// The record's header.
    pub fn header(&self) -> &Rc<RecordHeader> {
        &self.header
    }

    /// Follows the payload. It fails if [`BegunRecord::rest`] does, or is given up.
    pub fn watch(&mut self) -> Watch {
        self.pieces.arriving().watch()
    }

    /// Reads and publishes the rest; gives the header and the whole payload.
    ///
    /// # Errors
    /// As [`Shard::read`]. Those who follow the payload learn of it after the index did.
    pub async fn rest(mut self) -> Result<(Rc<RecordHeader>, View), ReadFailure> {
        match self.publish_rest().await {
            Ok(payload) => Ok((self.header, payload)),
            Err(failure) => {
                self.shard
                    .drop_unreadable(self.hash, self.location, &failure);
                Err(failure)
            }
        }
    }

    async fn publish_rest(&mut self) -> Result<View, ReadFailure> {
        while let Some(piece) = self.pieces.next().await {
            piece.map_err(failed)?;
            publish(&self.header, &mut self.pieces)?;
        }
        let arriving = self.pieces.arriving();
        if arriving.published() != self.header.payload_length as usize {
            return Err(PAST_THE_END.into());
        }
        arriving.finish();
        Ok(arriving.watch().view_all())
    }
}

/// Publishes what has come of a payload, if it is what the header says.
fn publish(header: &RecordHeader, pieces: &mut impl Pieces) -> Result<(), ReadFailure> {
    let arriving = pieces.arriving();
    let published = arriving.published();
    let left = header.payload_length as usize - published;
    // Padding follows the payload.
    let come = arriving.unpublished();
    let come = &come[..come.len().min(left)];
    if !header.verify_chunks(published / CHUNK_BYTES, come) {
        return Err(NotOurs::Checksum.into());
    }
    let count = come.len();
    arriving.publish(count);
    Ok(())
}

fn failed(error: io::Error) -> ReadFailure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => PAST_THE_END.into(),
        _ => error.into(),
    }
}
