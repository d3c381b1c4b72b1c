//! Making acknowledged records durable: one flush at a time per shard, for all that came before it.
//!
//! This file owns what is written and not yet known to survive a power cut. With `--sync` a writer
//! waits here, and one flush answers everybody whose record was complete before it began. Without
//! it a flush follows within [`FLUSH_DELAY`] or after [`FLUSH_BYTES_MAX`]. It never believes a flush
//! that follows a failed one: what the failed one was to cover is read back, verified and written
//! elsewhere, because a kernel may have dropped it and reported that only once ("fsyncgate").

use crate::format::SegmentPurpose;
use crate::index::Location;
use crate::key::BlockHash;
use crate::segment::Segment;
use crate::shard::Inner;
use forebay_io::disk::{Disk, DiskFile};
use forebay_io::runtime::Runtime;
use futures::channel::oneshot;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// The oldest acknowledged record that a power cut may take is at most this old, plus a flush.
pub const FLUSH_DELAY: Duration = Duration::from_millis(900);

/// The most acknowledged bytes of a shard that a power cut may take, plus what arrives during a
/// flush.
pub const FLUSH_BYTES_MAX: u64 = 48 << 20;

/// Pause before records that could not be written again after a failed flush are tried once more.
const RESCUE_PAUSE: Duration = Duration::from_secs(1);

/// A dirty record that a flush is to cover.
type Written = (BlockHash, Location);

/// Records of one segment that are complete and not known to be durable.
struct Group<F> {
    segment: Rc<Segment<F>>,
    bytes: u64,
    records: Vec<Written>,
    waiting: Vec<oneshot::Sender<Result<(), io::ErrorKind>>>,
}

/// What of a shard a power cut may take.
pub(crate) struct Unsynced<F> {
    groups: RefCell<BTreeMap<u32, Group<F>>>,
    flushing: Cell<bool>,
    timer: Cell<bool>,
    bytes: Cell<u64>,
    /// Records that a failed flush was to cover and that are not yet written again.
    suspects: Cell<usize>,
    /// Who waits for the next round of flushes, which covers all that is complete by then.
    round: RefCell<Vec<oneshot::Sender<()>>>,
}

impl<F> Default for Unsynced<F> {
    fn default() -> Self {
        Unsynced {
            groups: RefCell::default(),
            flushing: Cell::new(false),
            timer: Cell::new(false),
            bytes: Cell::new(0),
            suspects: Cell::new(0),
            round: RefCell::default(),
        }
    }
}

impl<F> Unsynced<F> {
    /// Bytes that a power cut may take.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    fn group<T>(&self, segment: &Rc<Segment<F>>, note: impl FnOnce(&mut Group<F>) -> T) -> T {
        let mut groups = self.groups.borrow_mut();
        note(groups.entry(segment.number).or_insert_with(|| Group {
            segment: segment.clone(),
            bytes: 0,
            records: Vec::new(),
            waiting: Vec::new(),
        }))
    }

    fn add_bytes(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }
}

impl<R: Runtime, D: Disk> Inner<R, D> {
    /// A record is complete; a flush is to follow soon.
    pub(crate) fn note_unsynced(
        self: &Rc<Self>,
        segment: &Rc<Segment<D::File>>,
        record: Option<Written>,
        bytes: u64,
    ) {
        self.unsynced.group(segment, |group| {
            group.bytes += bytes;
            group.records.extend(record);
        });
        self.unsynced.add_bytes(bytes);
        if self.unsynced.bytes() >= FLUSH_BYTES_MAX {
            self.start_flush();
        } else {
            self.flush_after(FLUSH_DELAY);
        }
    }

    /// Waits for a flush that begins after this call.
    ///
    /// # Errors
    /// What the disk said: the record is suspect.
    pub(crate) async fn make_durable(
        self: &Rc<Self>,
        segment: &Rc<Segment<D::File>>,
        bytes: u64,
    ) -> io::Result<()> {
        let (sender, flushed) = oneshot::channel();
        self.unsynced.group(segment, |group| {
            group.bytes += bytes;
            group.waiting.push(sender);
        });
        self.unsynced.add_bytes(bytes);
        self.start_flush();
        match flushed.await {
            Ok(result) => result.map_err(io::Error::from),
            Err(_) => Err(io::ErrorKind::Interrupted.into()),
        }
    }

    /// Makes all durable that is complete now, and waits for it. Returns whether nothing is left
    /// that a failed flush was to cover.
    pub(crate) async fn flush_all(self: &Rc<Self>) -> bool {
        if self.unsynced.bytes() > 0 {
            let (sender, round) = oneshot::channel();
            self.unsynced.round.borrow_mut().push(sender);
            self.start_flush();
            let _ = round.await;
        }
        self.unsynced.suspects.get() == 0
    }

    fn flush_after(self: &Rc<Self>, delay: Duration) {
        if self.unsynced.timer.replace(true) {
            return;
        }
        let inner = self.clone();
        self.runtime.spawn(async move {
            inner.runtime.sleep(delay).await;
            inner.unsynced.timer.set(false);
            inner.start_flush();
        });
    }

    fn start_flush(self: &Rc<Self>) {
        if self.unsynced.flushing.replace(true) {
            return;
        }
        let inner = self.clone();
        self.runtime.spawn(async move {
            loop {
                // What is written while this flush runs is in the next one.
                let groups = inner.unsynced.groups.take();
                let round = inner.unsynced.round.take();
                if groups.is_empty() && round.is_empty() {
                    break;
                }
                for group in groups.into_values() {
                    inner.flush_group(group).await;
                }
                for waiting in round {
                    let _ = waiting.send(());
                }
            }
            inner.unsynced.flushing.set(false);
        });
    }

    async fn flush_group(self: &Rc<Self>, group: Group<D::File>) {
        let Group {
            segment,
            bytes,
            records,
            waiting,
        } = group;
        let synced = match segment.is_distrusted() {
            true => Err(io::Error::other("an earlier flush of the segment failed")),
            false => segment.file.sync().await,
        };
        self.unsynced.bytes.set(self.unsynced.bytes() - bytes);
        self.stats.flushes.add(1);
        if let Err(e) = &synced {
            self.stats.flush_failures.add(1);
            let shard = self.log.layout().shard;
            log::error!(
                "shard {shard} segment {}: a flush failed, what it was to cover is written again: {e}",
                segment.number
            );
            // Nothing more is trusted to it, and what it has is written elsewhere.
            self.log.retire(&segment);
            segment.distrust();
        }
        let result = synced.map_err(|error| error.kind());
        for waiting in waiting {
            // Whoever stopped waiting does not want to know.
            let _ = waiting.send(result);
        }
        if result.is_err() {
            self.rescue(&segment, records).await;
        }
    }

    /// Writes records again that a failed flush was to cover. Those that cannot be written now stay
    /// suspect, and are tried again.
    async fn rescue(self: &Rc<Self>, segment: &Rc<Segment<D::File>>, records: Vec<Written>) {
        let mut left = Vec::new();
        for (hash, at) in records {
            let is_suspect = {
                let index = self.index.borrow();
                index.find(hash) == Some(at) && index.is_dirty(hash)
            };
            if is_suspect && !self.move_dirty(segment, hash, at).await {
                left.push((hash, at));
            }
        }
        if left.is_empty() {
            return;
        }
        self.stats.suspect_records.add(left.len() as u64);
        let suspects = &self.unsynced.suspects;
        suspects.set(suspects.get() + left.len());
        // Nobody else may be about to make room.
        self.make_room(SegmentPurpose::Dirty);
        let (inner, segment) = (self.clone(), segment.clone());
        self.runtime.spawn(async move {
            inner.runtime.sleep(RESCUE_PAUSE).await;
            let suspects = &inner.unsynced.suspects;
            suspects.set(suspects.get() - left.len());
            Box::pin(inner.rescue(&segment, left)).await;
        });
    }
}
