//! One segment file in one of its lives, and who may do what with it.
//!
//! This file owns the use counts that keep a segment in its present life, and the types that say
//! what may be reclaimed: a [`CleanSegment`] may, a [`DirtySegment`] cannot be named where victims
//! are chosen. It never does I/O and never looks into a record.

use crate::format::{FooterEntry, SegmentPurpose};
use forebay_io::buffer::PAGE;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// How segment files' names begin.
pub const SEGMENT_NAME_PREFIX: &str = "segment-";

/// Largest segment number: six digits, as the names have, and more than any quota gives a shard.
pub const SEGMENT_NUMBER_MAX: u32 = 999_999;

/// Name of a segment's file.
pub fn segment_name(shard: u32, segment: u32) -> String {
    format!("{SEGMENT_NAME_PREFIX}{shard:03}-{segment:06}")
}

/// Shard and segment of a file name, if it is a segment's.
pub fn parse_segment_name(name: &str) -> Option<(u32, u32)> {
    let (shard, segment) = name.strip_prefix(SEGMENT_NAME_PREFIX)?.split_once('-')?;
    let parsed = (shard.parse().ok()?, segment.parse().ok()?);
    let ours = parsed.1 <= SEGMENT_NUMBER_MAX && segment_name(parsed.0, parsed.1) == name;
    ours.then_some(parsed)
}

/// A segment file in one of its lives.
pub struct Segment<F> {
    /// Its number in the shard.
    pub number: u32,
    /// Its file.
    pub file: F,
    incarnation: Cell<u64>,
    purpose: Cell<SegmentPurpose>,
    /// Where the next record goes.
    cursor: Cell<u64>,
    /// Records of this life that are completely written, until the footer holds them.
    entries: RefCell<Vec<FooterEntry>>,
    /// Reads and writes that rely on this life.
    users: Cell<usize>,
    /// Those of them that write.
    writers: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
    /// Whether a record was written since the file was last made durable.
    unsynced: Cell<bool>,
    /// Whether a flush of this life has failed: no later one proves anything.
    distrusted: Cell<bool>,
}

/// A sealed segment of which the store has every record: the only kind that can be reclaimed.
pub struct CleanSegment<F>(Rc<Segment<F>>);

/// A sealed segment that holds, or may hold, the only copy of a block. There is no way from here
/// to a [`CleanSegment`] but [`DirtySegment::settle`].
pub struct DirtySegment<F>(Rc<Segment<F>>);

impl<F> CleanSegment<F> {
    /// A sealed segment that was opened for clean records.
    ///
    /// # Panics
    /// If it was not: dirty ones become clean through [`DirtySegment::settle`].
    pub fn new(segment: Rc<Segment<F>>) -> Self {
        use SegmentPurpose::{Main, Probation};
        assert!(matches!(segment.purpose(), Main | Probation));
        CleanSegment(segment)
    }

    /// The segment.
    pub fn segment(&self) -> &Rc<Segment<F>> {
        &self.0
    }

    /// Gives it up to be used again.
    pub fn into_segment(self) -> Rc<Segment<F>> {
        self.0
    }
}

impl<F> DirtySegment<F> {
    /// A sealed segment that was opened for dirty records.
    pub fn new(segment: Rc<Segment<F>>) -> Self {
        DirtySegment(segment)
    }

    /// The segment.
    pub fn segment(&self) -> &Rc<Segment<F>> {
        &self.0
    }

    /// The same segment as a clean one, once no record in it is dirty.
    ///
    /// # Errors
    /// Itself, if one still is.
    pub fn settle(self, dirty_records: usize) -> Result<CleanSegment<F>, Self> {
        if dirty_records == 0 && self.0.writers.get() == 0 {
            Ok(CleanSegment(self.0))
        } else {
            Err(self)
        }
    }
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
    /// A segment as recovery found it, or a new one.
    pub fn new(number: u32, file: F, incarnation: u64, purpose: SegmentPurpose) -> Self {
        Segment {
            number,
            file,
            incarnation: Cell::new(incarnation),
            purpose: Cell::new(purpose),
            cursor: Cell::new(PAGE as u64),
            entries: RefCell::default(),
            users: Cell::new(0),
            writers: Cell::new(0),
            waiting: RefCell::default(),
            unsynced: Cell::new(false),
            distrusted: Cell::new(false),
        }
    }

    /// Begins another life, empty.
    ///
    /// # Panics
    /// If anybody still relies on the present one.
    pub(crate) fn begin_life(&self, incarnation: u64, purpose: SegmentPurpose) {
        assert_eq!(self.users.get(), 0, "nobody relies on the former life");
        self.incarnation.set(incarnation);
        self.purpose.set(purpose);
        self.cursor.set(PAGE as u64);
        self.entries.borrow_mut().clear();
        self.distrusted.set(false);
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

    /// What this life is for.
    pub fn purpose(&self) -> SegmentPurpose {
        self.purpose.get()
    }

    /// Adds a record that is completely written.
    pub fn add(&self, entry: FooterEntry) {
        self.entries.borrow_mut().push(entry);
        self.unsynced.set(true);
    }

    /// Whether a record was added since the file was last made durable.
    pub(crate) fn is_unsynced(&self) -> bool {
        self.unsynced.get()
    }

    /// Says whether a power cut may take records of it.
    pub(crate) fn set_unsynced(&self, unsynced: bool) {
        self.unsynced.set(unsynced);
    }

    /// Whether a flush of this life has failed.
    pub(crate) fn is_distrusted(&self) -> bool {
        self.distrusted.get()
    }

    /// A flush has failed: a kernel may have dropped what it was to cover, and report that only once.
    pub(crate) fn distrust(&self) {
        self.distrusted.set(true);
    }

    /// Takes the list of its records, which the footer is about to hold.
    pub(crate) fn take_entries(&self) -> Vec<FooterEntry> {
        self.entries.take()
    }

    /// Records that its footer will list once every writer is done.
    pub(crate) fn entries_expected(&self) -> usize {
        self.entries.borrow().len() + self.writers.get()
    }

    /// Where the next record goes.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor.get()
    }

    /// Takes `bytes` from the cursor on.
    pub(crate) fn advance(&self, bytes: u64) {
        self.cursor.set(self.cursor.get() + bytes);
    }

    /// Waits until nobody writes.
    pub(crate) async fn written(&self) {
        self.wait_until(|segment| segment.writers.get() == 0).await;
    }

    /// Waits until nobody relies on this life.
    pub(crate) async fn unused(&self) {
        self.wait_until(|segment| segment.users.get() == 0).await;
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

    #[test]
    fn a_dirty_segment_settles_only_when_nothing_in_it_is_dirty() {
        let segment = Rc::new(Segment::new(1, (), 1, SegmentPurpose::Dirty));
        let dirty = DirtySegment::new(segment.clone());
        let Err(dirty) = dirty.settle(1) else {
            panic!("one record is dirty");
        };
        let writing = segment.using(true);
        let Err(dirty) = dirty.settle(0) else {
            panic!("one record is being written");
        };
        drop(writing);
        assert!(dirty.settle(0).is_ok());
    }
}
