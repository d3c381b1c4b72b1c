//! Reads of which each piece is given as soon as it and all before it are there.
//!
//! This file owns the order of the pieces. The requests are [`RingFile`]'s; what the bytes mean, and
//! when they are published, is decided by whoever asked.

use super::{Ring, RingFile};
use crate::buffer::{Arriving, BufferWriter, PAGE};
use crate::disk::{Pieces, REQUEST_BYTES_MAX, note_piece};
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

/// Cuts headroom and body into as few requests as may carry them, of about the same length and of
/// whole units of the body but the last.
fn body_pieces(body_bytes: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let end = PAGE + body_bytes;
    let count = end.div_ceil(REQUEST_BYTES_MAX);
    let piece = body_bytes.div_ceil(count).next_multiple_of(unit);
    // Rounding up may take the room that the headroom wants.
    let piece = piece
        .min((REQUEST_BYTES_MAX - PAGE) / unit * unit)
        .max(unit);
    let first = end.min(PAGE + piece);
    let others = (first..end).step_by(piece);
    std::iter::once(0..first).chain(others.map(move |start| start..end.min(start + piece)))
}

/// Requests of one read that the kernel has at a time. A device serves what it has at the same time:
/// with all of them the first piece comes hardly before the last (8 MiB: after 5.3 ms, with two 1.9,
/// and to the client's last byte 7.7 and 5.3), and with one it waits for us in between.
const UNDER_WAY_MAX: usize = 2;

/// What came of one request, and the bytes that were asked for.
type PendingPiece = LocalBoxFuture<'static, (io::Result<usize>, usize)>;

/// A read, a few pieces of which the kernel has.
pub struct RingPieces {
    ring: Rc<Ring>,
    /// Not asked for yet.
    later: VecDeque<PendingPiece>,
    under_way: FuturesOrdered<PendingPiece>,
    arriving: Arriving,
}

impl RingPieces {
    /// Cuts a read into pieces. Nothing is asked for before [`Pieces::next`].
    pub(super) fn begin(
        file: &RingFile,
        offset: u64,
        mut buffer: BufferWriter,
        body_bytes: usize,
        unit: usize,
    ) -> RingPieces {
        assert!(offset.is_multiple_of(PAGE as u64) && body_bytes.is_multiple_of(PAGE));
        let held = buffer.watch();
        let later: VecDeque<_> = body_pieces(body_bytes, unit)
            .map(|piece| {
                let (file, held) = (file.clone(), held.clone());
                let at = offset + piece.start as u64;
                let target = buffer.io_target(piece);
                let reading =
                    async move { (file.read_piece(at, target, held).await, target.len()) };
                Box::pin(reading) as PendingPiece
            })
            .collect();
        RingPieces {
            ring: file.ring.clone(),
            later,
            under_way: FuturesOrdered::new(),
            arriving: Arriving::new(buffer),
        }
    }

    /// Lets the kernel have as many requests as it may.
    async fn ask(&mut self) {
        while self.under_way.len() < UNDER_WAY_MAX
            && let Some(mut piece) = self.later.pop_front()
        {
            // Its first poll puts it into the ring's queue.
            let piece = match futures::poll!(&mut piece) {
                Poll::Ready(done) => Box::pin(std::future::ready(done)),
                Poll::Pending => piece,
            };
            self.under_way.push_back(piece);
        }
        self.ring.submit_now();
    }
}

impl Pieces for RingPieces {
    async fn next(&mut self) -> Option<io::Result<()>> {
        self.ask().await;
        let (count, wanted) = self.under_way.next().await?;
        // The device has its next request before anybody looks at this one.
        self.ask().await;
        Some(note_piece(&mut self.arriving, wanted, count))
    }

    fn arriving(&mut self) -> &mut Arriving {
        &mut self.arriving
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{filled, on_disk};
    use super::*;
    use crate::disk::{Disk, DiskFile};

    const UNIT: usize = 64 << 10;

    #[test]
    fn pieces_are_few_even_and_of_whole_units() {
        for pages in [
            0, 1, 15, 16, 17, 128, 255, 256, 257, 511, 512, 1024, 2047, 2048,
        ] {
            let body = pages * PAGE;
            let pieces: Vec<_> = body_pieces(body, UNIT).collect();
            assert!(pieces.iter().all(|piece| piece.len() <= REQUEST_BYTES_MAX));
            assert_eq!(pieces[0].start, 0);
            assert!(pieces.windows(2).all(|two| two[0].end == two[1].start));
            assert_eq!(pieces[pieces.len() - 1].end, PAGE + body);
            let inner = pieces[..pieces.len() - 1].iter();
            assert!(
                inner
                    .clone()
                    .all(|piece| (piece.end - PAGE).is_multiple_of(UNIT))
            );
            // No more requests than bytes alone would make, but for the rounding to units.
            assert!(pieces.len() <= (PAGE + body).div_ceil(REQUEST_BYTES_MAX - UNIT));
        }
    }

    #[test]
    fn pieces_come_in_order_and_together_are_the_record() {
        on_disk(64 << 20, async |disk, pool| {
            let file = disk.create("seg", 8 << 20).await.expect("created");
            const PIECE: usize = REQUEST_BYTES_MAX / 2;
            for body in [
                0,
                1,
                PIECE - 1,
                PIECE,
                PIECE + 1,
                3 * PIECE,
                4 * PIECE + 777,
            ] {
                let record = filled(&pool, body, body as u8);
                let length = record.record().len();
                file.write(8192, record.clone(), 0..length)
                    .await
                    .expect("written");
                let buffer = pool.try_take(4 << 20).expect("budget");
                let mut pieces = file.pieces(8192, buffer, length - PAGE, UNIT);
                let watch = pieces.arriving().watch();
                let mut expected = body_pieces(length - PAGE, UNIT);
                while let Some(piece) = pieces.next().await {
                    piece.expect("read");
                    assert!(pieces.under_way.len() <= UNDER_WAY_MAX);
                    assert!(pieces.later.is_empty() || pieces.under_way.len() == UNDER_WAY_MAX);
                    let is_submitted = pieces.ring.backlog.borrow().is_empty();
                    assert!(is_submitted, "the kernel has the next ones");
                    let arriving = pieces.arriving();
                    assert!(arriving.headroom() == record.headroom());
                    let come = expected.next().expect("no more than that").end - PAGE;
                    assert_eq!(arriving.published() + arriving.unpublished().len(), come);
                    arriving.publish(come.min(body) - arriving.published());
                }
                assert!(expected.next().is_none());
                pieces.arriving().finish();
                assert!(watch.is_finished() && *watch.view_all() == *record.view());
            }
            // The file ends in the second of three.
            let buffer = pool.try_take(4 << 20).expect("budget");
            let offset = (8 << 20) - REQUEST_BYTES_MAX - PIECE;
            let mut pieces = file.pieces(offset as u64, buffer, 5 * PIECE, UNIT);
            assert!(pieces.next().await.expect("one").is_ok());
            let ended = pieces.next().await.expect("two").expect_err("it ends");
            assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
        });
    }
}
