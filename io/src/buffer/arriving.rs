//! A buffer between the disk that fills it and the readers who wait for it.
//!
//! This file owns the line between what has come and what is still the disk's, and nothing of the
//! disk or of what the bytes mean.

use super::{BufferWriter, PAGE, Watch};

/// A buffer that a disk fills from its start, the headroom first, piece by piece.
///
/// What has come can be looked at, and its body published; what has not come yet belongs to the
/// disk, and nothing that is public here reaches it. Dropped before [`Arriving::finish`], it fails
/// its readers.
pub struct Arriving {
    writer: BufferWriter,
    /// Bytes from the start of the headroom that the disk has filled and does not touch any more.
    come: usize,
}

impl Arriving {
    /// A buffer of which nothing has come.
    pub(crate) fn new(writer: BufferWriter) -> Arriving {
        assert_eq!(writer.filled(), 0, "disk reads fill fresh buffers");
        Arriving { writer, come: 0 }
    }

    /// Notes that the next `count` bytes are there: the disk is done with them.
    pub(crate) fn note(&mut self, count: usize) {
        self.come += count;
        assert!(self.come <= PAGE + self.writer.capacity());
    }

    /// The write side, for a disk whose transfers are over when they return: while one is under way,
    /// nobody may have this.
    pub(crate) fn writer(&mut self) -> &mut BufferWriter {
        &mut self.writer
    }

    /// Follows what is published.
    pub fn watch(&self) -> Watch {
        self.writer.watch()
    }

    /// The headroom page.
    ///
    /// # Panics
    /// If it has not come.
    pub fn headroom(&self) -> &[u8] {
        assert!(self.come >= PAGE, "not before it is there");
        // SAFETY: inside the allocation, and filled: the disk does not touch it any more, and the
        // one writer is ours and writes no headroom while `&self` lives.
        unsafe { std::slice::from_raw_parts(self.writer.backing.start(), PAGE) }
    }

    /// Body bytes that have come and are not published.
    pub fn unpublished(&self) -> &[u8] {
        let filled = self.writer.filled();
        let end = self.come.saturating_sub(PAGE).max(filled);
        // SAFETY: inside the allocation by the assertion in `note`, and filled: the disk does not
        // touch these bytes any more, and the one writer is ours and writes none while `&self` lives.
        unsafe {
            let body = self.writer.backing.start().add(PAGE);
            std::slice::from_raw_parts(body.add(filled), end - filled)
        }
    }

    /// Publishes the first `count` bytes of [`Arriving::unpublished`].
    ///
    /// # Panics
    /// If there are fewer.
    pub fn publish(&mut self, count: usize) {
        assert!(count <= self.unpublished().len(), "not before it is there");
        self.writer.advance(count);
    }

    /// Body bytes that are published.
    pub fn published(&self) -> usize {
        self.writer.filled()
    }

    /// Says that the body is complete and good.
    pub fn finish(&mut self) {
        self.writer.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FillFailed, Pool};
    use super::*;
    use futures::FutureExt;
    use futures::executor::block_on;

    #[test]
    fn what_has_come_can_be_looked_at_and_then_published() {
        let pool = Pool::new(1 << 20);
        let mut arriving = Arriving::new(pool.try_take(2 * PAGE).expect("room"));
        let watch = arriving.watch();
        arriving.writer().headroom_mut().fill(1);
        arriving.writer().spare_mut().fill(2);
        assert!(arriving.unpublished().is_empty());
        arriving.note(PAGE);
        assert!(arriving.headroom().iter().all(|byte| *byte == 1));
        assert!(arriving.unpublished().is_empty());
        arriving.note(PAGE);
        assert_eq!((arriving.unpublished().len(), watch.filled()), (PAGE, 0));
        arriving.publish(PAGE);
        assert_eq!((arriving.unpublished().len(), watch.filled()), (0, PAGE));
        arriving.note(PAGE);
        assert_eq!(arriving.unpublished(), [2; PAGE]);
        arriving.publish(7);
        arriving.finish();
        assert_eq!((watch.is_finished(), watch.filled()), (true, PAGE + 7));
    }

    #[test]
    #[should_panic(expected = "not before it is there")]
    fn what_has_not_come_cannot_be_published() {
        let mut arriving = Arriving::new(Pool::new(1 << 20).try_take(PAGE).expect("room"));
        arriving.note(PAGE + 10);
        arriving.publish(11);
    }

    #[test]
    fn who_was_told_that_it_failed_is_told_nothing_else() {
        let pool = Pool::new(1 << 20);
        let mut arriving = Arriving::new(pool.try_take(PAGE).expect("room"));
        let watch = arriving.watch();
        let mut waiting = Box::pin(watch.wait_for(1));
        assert!((&mut waiting).now_or_never().is_none());
        watch.give_up();
        assert_eq!((&mut waiting).now_or_never(), Some(Err(FillFailed)));
        arriving.note(2 * PAGE);
        arriving.publish(PAGE);
        arriving.finish();
        assert!(!watch.is_finished());
        assert_eq!(block_on(watch.wait_for(PAGE)), Ok(PAGE), "it is there");
        assert_eq!(block_on(watch.wait_for(PAGE + 1)), Err(FillFailed));
    }
}
