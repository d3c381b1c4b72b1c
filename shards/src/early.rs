//! Writing a record's bytes early: they go to disk while the rest of them is still being received.
//!
//! A single writer would else wait for the network and then for the disk, never for both at once.
//! This file owns the place that is reserved before the body is there, and the pieces on their way to
//! it. The record itself begins with its header, which [`crate::shard`] writes when the body is
//! complete and verified; until then there is nothing that a scan or a reader could find, and what
//! is given up leaves a gap, which scans step over. It never decides whether a write may be
//! acknowledged.

use crate::format::{SegmentPurpose, record_bytes};
use crate::log::Reservation;
use crate::segment::Segment;
use crate::shard::{Inner, Shard};
use forebay_io::buffer::{PAGE, View, Watch};
use forebay_io::disk::{Disk, DiskFile};
use forebay_io::local::Signal;
use forebay_io::runtime::{Runtime, timeout};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How long a place is kept for a body that pauses, and then for the record to be begun. A segment
/// cannot be sealed or given up before everybody who has a place in it is done, and those who have
/// one here may wait for clients, for the turn of their key, or for memory of somebody who waits
/// for that segment.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(1);

/// The most time between a body's first byte and its first whole piece. A client that is slower
/// gains nothing here: its network takes longer than the disk. Eight such pieces, the largest block,
/// come within [`PLACE_WAIT_MAX`].
const FIRST_PIECE_WAIT_MAX: Duration = Duration::from_millis(100);

/// A record whose first bytes are on disk or on their way there, as long as its place is kept.
pub(crate) struct EarlyWrite<F>(Rc<RefCell<Option<Place<F>>>>);

struct Place<F> {
    reservation: Reservation<F>,
    /// Payload bytes that were given to the disk.
    bytes: usize,
    pieces: Rc<Pieces>,
}

/// The first bytes of a payload that are on disk or on their way there.
pub(crate) struct EarlyBytes<W> {
    /// How many, in whole pages.
    pub(crate) count: usize,
    /// Completes when all of them are on disk.
    pub(crate) written: W,
}

/// Pieces on their way to the disk.
#[derive(Default)]
struct Pieces {
    left: Cell<usize>,
    failure: RefCell<Option<io::Error>>,
    ended: Signal,
}

impl Pieces {
    fn end(&self, result: io::Result<()>) {
        if let Err(error) = result {
            self.failure.borrow_mut().get_or_insert(error);
        }
        self.left.set(self.left.get() - 1);
        self.ended.raise();
    }

    /// Waits for the last of them.
    async fn written(&self) -> io::Result<()> {
        while self.left.get() > 0 {
            self.ended.wait().await;
        }
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl<F> EarlyWrite<F> {
    /// The reserved place and what is on its way there. `None` if the place has become worthless.
    pub(crate) fn into_parts(
        self,
    ) -> Option<(
        Reservation<F>,
        EarlyBytes<impl Future<Output = io::Result<()>>>,
    )> {
        let Place {
            reservation,
            bytes,
            pieces,
        } = self.0.take()?;
        let is_good =
            pieces.failure.borrow().is_none() && !reservation.used.segment().is_distrusted();
        let early = EarlyBytes {
            count: bytes,
            written: async move { pieces.written().await },
        };
        is_good.then_some((reservation, early))
    }
}

/// Waits for the first `piece_bytes` of a body; whether they came quickly enough for what follows to
/// be written early.
pub(crate) async fn begins_quickly(
    runtime: &impl Runtime,
    body: &Watch,
    piece_bytes: usize,
) -> bool {
    if body.wait_for(1).await.is_err() {
        return false;
    }
    let filling = timeout(runtime, FIRST_PIECE_WAIT_MAX, body.wait_for(piece_bytes));
    matches!(filling.await, Some(Ok(_)))
}

impl<R: Runtime, D: Disk> Shard<R, D> {
    /// Reserves the place of a dirty record with `length` bytes of payload, and writes those of
    /// `body` there as they come, `piece_bytes` at a time, until the body is complete. The last
    /// piece is left to whoever writes the header. `None` if the disk would not have it, or the body
    /// failed or took too long.
    pub(crate) async fn write_early(
        &self,
        body: Watch,
        length: usize,
        piece_bytes: usize,
    ) -> Option<EarlyWrite<D::File>> {
        let inner = &self.inner;
        let bytes = record_bytes(length as u32);
        let reserving = inner.reserve(SegmentPurpose::Dirty, bytes);
        let reservation = reserving.await.ok()?;
        let segment = reservation.used.shared();
        let start = reservation.place.offset + PAGE as u64;
        let mut place = Place {
            reservation,
            bytes: 0,
            pieces: Rc::default(),
        };
        let deadline = inner.runtime.now().plus(PLACE_WAIT_MAX);
        while !body.is_finished() && place.bytes + piece_bytes < length {
            let end = place.bytes + piece_bytes;
            let left = deadline.since(inner.runtime.now());
            timeout(&inner.runtime, left, body.wait_for(end))
                .await?
                .ok()?;
            let offset = start + place.bytes as u64;
            inner.write_piece(&segment, offset, body.view(place.bytes..end), &place.pieces);
            place.bytes = end;
        }
        let kept = Rc::new(RefCell::new(Some(place)));
        let (runtime, lent) = (inner.runtime.clone(), Rc::downgrade(&kept));
        inner.runtime.spawn(async move {
            runtime.sleep(PLACE_WAIT_MAX).await;
            if let Some(kept) = lent.upgrade() {
                kept.take();
            }
        });
        Some(EarlyWrite(kept))
    }
}

impl<R: Runtime, D: Disk> Inner<R, D> {
    /// Starts writing a piece. It keeps the segment in its life whatever becomes of its record.
    fn write_piece(
        self: &Rc<Self>,
        segment: &Rc<Segment<D::File>>,
        offset: u64,
        piece: View,
        pieces: &Rc<Pieces>,
    ) {
        pieces.left.set(pieces.left.get() + 1);
        let (inner, used, pieces) = (self.clone(), segment.using(false), pieces.clone());
        self.runtime.spawn(async move {
            let segment = used.segment();
            let written = segment.file.write_part(offset, piece).await;
            if written.is_err() {
                // Nothing after a failed write is trusted to this segment.
                inner.log.retire(segment);
            }
            pieces.end(written);
        });
    }
}
