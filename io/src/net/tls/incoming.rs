//! What has come from a peer and is not opened yet, or opened and not asked for yet.
//!
//! This file owns those bytes and cuts them into records. A connection that waits for more keeps what it has of a
//! record and no more; the large buffer goes to the next connection that has something to read.

use super::record::{RecordError, record_length};
use crate::net::stream::{ReadBuffer, Socket, keep_read_buffer, take_read_buffer};
use std::io;
use std::ops::Range;
use std::task::{Context, Poll};

pub(super) struct Incoming {
    /// Holds `start..end`; `None` while that is nothing, or all of it is `tail`.
    buffer: Option<ReadBuffer>,
    start: usize,
    end: usize,
    /// The beginning of a record whose rest has not come.
    tail: Vec<u8>,
    /// Length of the record at `start` that was shown last.
    shown: usize,
    /// Opened data in the buffer, in front of `start`.
    opened: Range<usize>,
}

impl Incoming {
    /// `early`: bytes that have come already.
    pub fn new(early: Vec<u8>) -> Incoming {
        let has_come = !early.is_empty();
        let mut incoming = Incoming {
            buffer: None,
            start: 0,
            end: 0,
            tail: early,
            shown: 0,
            opened: 0..0,
        };
        if has_come {
            // There may be whole records in it.
            incoming.spread_tail();
        }
        incoming
    }

    /// The next record, if all of it has come. It stays until [`Incoming::consume`] or [`Incoming::keep_opened`].
    pub fn next_record(&mut self) -> Result<Option<&mut [u8]>, RecordError> {
        let Some(buffer) = &mut self.buffer else {
            return Ok(None);
        };
        match record_length(&buffer[self.start..self.end])? {
            Some(length) if length <= self.end - self.start => {
                self.shown = length;
                Ok(Some(&mut buffer[self.start..self.start + length]))
            }
            _ => Ok(None),
        }
    }

    /// Done with the record that was shown.
    pub fn consume(&mut self) {
        self.start += std::mem::take(&mut self.shown);
        self.release();
    }

    /// Done with the record that was shown but for these bytes of it, which were opened in place.
    pub fn keep_opened(&mut self, place: Range<usize>) {
        self.opened = self.start + place.start..self.start + place.end;
        self.start += std::mem::take(&mut self.shown);
        self.release();
    }

    /// Copies opened data to the front of `target`; returns how much.
    pub fn take_opened(&mut self, target: &mut [u8]) -> usize {
        let count = target.len().min(self.opened.len());
        if let Some(buffer) = &self.buffer
            && count > 0
        {
            let place = self.opened.start..self.opened.start + count;
            target[..count].copy_from_slice(&buffer[place]);
            self.opened.start += count;
            self.release();
        }
        count
    }

    /// Reads more behind what is there; returns how many bytes. Nothing opened may be left.
    pub fn poll_fill(
        &mut self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.opened.is_empty());
        self.spread_tail();
        let buffer = self.buffer.as_mut().expect("spread just now");
        let outcome = socket.poll_receive(cx, &mut buffer[self.end..]);
        match &outcome {
            Poll::Ready(Ok(count)) => self.end += count,
            _ => self.tail = buffer[self.start..self.end].to_vec(),
        }
        if !matches!(outcome, Poll::Ready(Ok(1..))) {
            self.start = self.end;
            self.release();
        }
        outcome
    }

    /// Has what is there at the front of a buffer, so that a whole record has room behind it.
    fn spread_tail(&mut self) {
        match &mut self.buffer {
            Some(buffer) => buffer.copy_within(self.start..self.end, 0),
            None => {
                let mut buffer = take_read_buffer();
                let tail = std::mem::take(&mut self.tail);
                buffer[..tail.len()].copy_from_slice(&tail);
                (self.start, self.end) = (0, tail.len());
                self.buffer = Some(buffer);
            }
        }
        (self.start, self.end) = (0, self.end - self.start);
    }

    /// Gives the buffer back once there is nothing in it.
    fn release(&mut self) {
        if self.start == self.end
            && self.opened.is_empty()
            && let Some(buffer) = self.buffer.take()
        {
            keep_read_buffer(buffer);
        }
    }
}
