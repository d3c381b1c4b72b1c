//! What is to be sent: pieces of content in front, sealed bytes that a socket has not taken behind.
//!
//! This file owns a core's send buffers and its count of sealed bytes that wait. It seals nothing and meets no socket.

use super::record::{CONTENT_BYTES_MAX, OVERHEAD_BYTES_MAX};
use std::cell::{Cell, RefCell};

/// Bytes of content that are sealed before they are sent, at most. All of it, sealed, is read once more by the kernel
/// from the processor's cache.
pub(super) const SEND_CONTENT_BYTES_MAX: usize = 512 << 10;

/// The same for a socket that has less room, or on a core where much waits already: two records.
pub(super) const SEND_CONTENT_BYTES_MIN: usize = 2 * CONTENT_BYTES_MAX;

/// Records of that much content at most: full ones, one cut short, and one for a piece of its own in front.
pub(super) const SEND_RECORDS_MAX: usize = SEND_CONTENT_BYTES_MAX / CONTENT_BYTES_MAX + 3;

const SEND_BUFFER_BYTES: usize =
    SEND_CONTENT_BYTES_MAX + CONTENT_BYTES_MAX + SEND_RECORDS_MAX * OVERHEAD_BYTES_MAX;

/// Send buffers that a core keeps: one is out at a time.
const SEND_BUFFERS_KEPT_MAX: usize = 1;

/// Sealed bytes that wait on all connections of a core before no connection seals more than
/// [`SEND_CONTENT_BYTES_MIN`] ahead. Only sockets that take less than they say make any wait.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// The most memory that sealed bytes take on each core beyond what is counted for its connections, bytes.
pub const TLS_CORE_BYTES_MAX: usize = WAITING_BYTES_MAX + 2 * SEND_BUFFER_BYTES;

thread_local! {
    static SEND_BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static WAITING_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Room for what [`SEND_CONTENT_BYTES_MAX`] comes to when it is sealed.
pub(super) fn take_send_buffer() -> Box<[u8]> {
    let kept = SEND_BUFFERS.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| vec![0; SEND_BUFFER_BYTES].into_boxed_slice())
}

pub(super) fn keep_send_buffer(buffer: Box<[u8]>) {
    SEND_BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < SEND_BUFFERS_KEPT_MAX {
            kept.push(buffer);
        }
    });
}

/// Whether so much waits on this core that nobody may seal far ahead.
pub(super) fn is_crowded() -> bool {
    WAITING_BYTES.get() > WAITING_BYTES_MAX
}

/// Sealed bytes that a socket has not taken. What it has taken is gone.
#[derive(Default)]
pub(super) struct Unsent {
    bytes: Vec<u8>,
    start: usize,
}

impl Unsent {
    /// What is left.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Puts bytes behind it.
    pub fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        WAITING_BYTES.set(WAITING_BYTES.get() + bytes.len());
    }

    /// So many bytes were taken. With the last of them goes the memory: idle connections keep none.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        WAITING_BYTES.set(WAITING_BYTES.get() - count);
        if self.start == self.bytes.len() {
            (self.bytes, self.start) = (Vec::new(), 0);
        }
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        WAITING_BYTES.set(WAITING_BYTES.get() - self.rest().len());
    }
}

/// Pieces of content in order, less what was taken from the front.
pub(super) struct Rest<'a> {
    pieces: &'a [&'a [u8]],
    /// Bytes of the first piece that are taken.
    taken: usize,
    /// Bytes left.
    pub bytes: usize,
}

impl<'a> Rest<'a> {
    pub fn of(pieces: &'a [&'a [u8]]) -> Rest<'a> {
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        Rest {
            pieces,
            taken: 0,
            bytes,
        }
    }

    /// The content of the next record, in `gathered` where it lies in several places. Pieces are not joined to fill
    /// records: sealing a short one costs less than copying. Only where all that is left fits into one it is joined.
    pub fn next_content<'b>(&mut self, gathered: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        let first = self.take_piece();
        if self.bytes == 0 || first.len() + self.bytes > CONTENT_BYTES_MAX {
            return first;
        }
        gathered.clear();
        gathered.reserve_exact(first.len() + self.bytes);
        gathered.extend_from_slice(first);
        while self.bytes > 0 {
            gathered.extend_from_slice(self.take_piece());
        }
        gathered
    }

    /// Bytes of the first piece that is not empty; at most a record's content, and none where none are left.
    fn take_piece(&mut self) -> &'a [u8] {
        while let Some((first, others)) = self.pieces.split_first() {
            let left = &first[self.taken..];
            if left.is_empty() {
                (self.pieces, self.taken) = (others, 0);
                continue;
            }
            let piece = &left[..left.len().min(CONTENT_BYTES_MAX)];
            self.taken += piece.len();
            self.bytes -= piece.len();
            return piece;
        }
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every byte once and in order, no record too long, none empty, and no more of them than pieces need.
        #[test]
        fn pieces_come_out_as_they_went_in(lengths in proptest::collection::vec(
            prop_oneof![Just(0_usize), 1..500_usize, 16_000..50_000_usize], 0..6)) {
            let content: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|at| (at % 251) as u8).collect();
            let mut left = &content[..];
            let pieces: Vec<&[u8]> = lengths.iter().map(|length| {
                let (piece, rest) = left.split_at(*length);
                left = rest;
                piece
            }).collect();
            let mut rest = Rest::of(&pieces);
            prop_assert_eq!(rest.bytes, content.len());
            let (mut out, mut records) = (Vec::new(), 0);
            while rest.bytes > 0 {
                let mut gathered = Vec::new();
                let record = rest.next_content(&mut gathered);
                prop_assert!(!record.is_empty() && record.len() <= CONTENT_BYTES_MAX);
                out.extend_from_slice(record);
                records += 1;
            }
            prop_assert_eq!(out, content.clone());
            let needed: usize = lengths.iter().map(|length| length.div_ceil(CONTENT_BYTES_MAX)).sum();
            prop_assert!(records <= needed);
            if content.len() <= CONTENT_BYTES_MAX {
                prop_assert!(records <= 1);
            }
        }
    }

    #[test]
    fn bytes_that_wait_are_counted_until_they_are_taken_or_dropped() {
        let mut unsent = Unsent::default();
        unsent.append(&vec![1; WAITING_BYTES_MAX]);
        assert!(!is_crowded());
        unsent.append(b"more");
        assert!(is_crowded());
        unsent.consume(4);
        assert!(!is_crowded());
        assert_eq!(unsent.rest().len(), WAITING_BYTES_MAX);
        let mut other = Unsent::default();
        other.append(b"any");
        assert!(is_crowded());
        drop(unsent);
        assert!(!is_crowded());
        other.consume(3);
        assert_eq!(WAITING_BYTES.get(), 0);
    }
}
