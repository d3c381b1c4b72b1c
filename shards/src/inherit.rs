//! What is dirty from before: from the records that a start found to the schedule of uploads.
//!
//! This file owns the way back of a backlog. The ledger is asked first, which may say that the store
//! has a record, or why one is held; what it does not know is uploaded once more. Nothing here talks
//! to a store, and nothing dirty is given up because it cannot be read.

use crate::backlog::BlockState;
use crate::core::Core;
use crate::format::{RecordHeader, RecordState};
use crate::index::Location;
use crate::key::BlockHash;
use crate::marks::Mark;
use crate::record::ReadFailure;
use crate::schedule::{Age, Held};
use crate::shard::{DirtyFound, Shard};
use crate::upload::{ORPHANED, age_of};
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;
use std::rc::Rc;
use std::time::Duration;

/// Why a block is held that was found to be in conflict in an earlier life.
const SOMETHING_NEWER: &str = "the store has something newer";

/// Pauses between tries to read a dirty record that the disk does not give.
const REREAD_PAUSE_MIN: Duration = Duration::from_secs(1);
const REREAD_PAUSE_MAX: Duration = Duration::from_secs(60);

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Asks the ledger about the dirty records that a start found in a shard, before anybody is
    /// served from it: the store may have one, or something newer than one.
    pub async fn recall_marks(&self, shard: &Rc<Shard<R, D>>) {
        let mut found = shard.take_dirty_found();
        let (Some(marks), false) = (shard.marks(), found.is_empty()) else {
            return shard.put_dirty_found(found);
        };
        let is_present = |segment, incarnation| {
            let segment = shard.log().segment(segment);
            segment.is_some_and(|segment| segment.incarnation() == incarnation)
        };
        let mut marks = marks.load(is_present).await;
        let etags = marks.values().filter_map(|mark| match mark {
            Mark::Uploaded { store_etag } => Some(store_etag.clone()),
            _ => None,
        });
        self.uploads.own_etags.borrow_mut().extend(etags);
        found.retain_mut(|record| {
            let Some(location) = shard.find(record.hash) else {
                return false;
            };
            record.mark = shard
                .mark_place(location)
                .and_then(|place| marks.remove(&place));
            let is_uploaded = matches!(record.mark, Some(Mark::Uploaded { .. }));
            if is_uploaded {
                shard.mark_clean(record.hash, location);
            } else if record.in_conflict || matches!(record.mark, Some(Mark::Conflict { .. })) {
                self.enter_conflict(record.hash);
            }
            !is_uploaded
        });
        shard.put_dirty_found(found);
    }

    /// Takes in the dirty records that a start found in a shard.
    pub(crate) fn take_in_dirty(self: &Rc<Self>, shard: &Rc<Shard<R, D>>) {
        let mut found = shard.take_dirty_found();
        if found.is_empty() {
            return;
        }
        let unread = &self.uploads.unread_blocks;
        unread.set(unread.get() + found.len() as u64);
        let shards = &self.uploads.unread_shards;
        shards.set(shards.get() + 1);
        let (core, shard) = (self.clone(), shard.clone());
        self.parts.runtime.spawn(async move {
            found.sort_unstable_by_key(|record| record.sequence);
            for record in found {
                core.read_dirty(&shard, record).await;
                let unread = &core.uploads.unread_blocks;
                unread.set(unread.get() - 1);
            }
            let shards = &core.uploads.unread_shards;
            shards.set(shards.get() - 1);
        });
    }

    /// Enters a dirty record that a start found into the schedule.
    async fn read_dirty(self: &Rc<Self>, shard: &Rc<Shard<R, D>>, record: DirtyFound) {
        let DirtyFound {
            sequence,
            hash,
            mark,
            ..
        } = record;
        let Some(location) = shard.find(hash).filter(|_| shard.is_dirty(hash)) else {
            return;
        };
        let room = shard.header_room().await;
        let header = match shard.read_header(hash, location, room).await {
            Ok(header) => header,
            Err(ReadFailure::Gone) => return self.requeue(hash).await,
            Err(ReadFailure::Disk(_)) => {
                // The others must not wait for what the disk may give later.
                let (core, returning) = (self.clone(), self.uploads.note_returning(hash));
                let task = async move {
                    core.requeue(hash).await;
                    drop(returning);
                };
                return self.parts.runtime.spawn(task);
            }
            Err(failure) => return self.hold_damaged(hash, location, &failure),
        };
        // Something newer is in the schedule already.
        if header.sequence != sequence || shard.find(hash) != Some(location) {
            return;
        }
        match mark {
            Some(Mark::Quarantined { attempts, message }) => {
                self.hold(hash, &header, Held::Quarantined, attempts, message);
            }
            Some(Mark::Conflict { attempts, message }) => {
                self.hold(hash, &header, Held::Conflict, attempts, message);
            }
            _ => self.enqueue_record(hash, &header),
        }
    }

    /// Keeps a dirty record without uploading it.
    fn hold(
        &self,
        hash: BlockHash,
        header: &RecordHeader,
        held: Held,
        attempts: u32,
        message: String,
    ) {
        let store = self.uploads.store(header.store_identity);
        let bytes = u64::from(header.payload_length);
        let age = age_of(header);
        let mut schedule = self.uploads.schedule.borrow_mut();
        schedule.hold(hash, age, store, bytes, held, attempts, message);
    }

    /// Enters a dirty record into the schedule by its header.
    fn enqueue_record(&self, hash: BlockHash, header: &RecordHeader) {
        if self.is_known_conflict(hash, header) {
            // What the schedule says of one that it holds already is better than what can be said here.
            if self.state_of(hash) != Some(BlockState::Conflict) {
                let message = SOMETHING_NEWER.to_owned();
                self.enter_conflict(hash);
                self.hold(hash, header, Held::Conflict, 1, message);
            }
            return;
        }
        match self.uploads.volume_of(header) {
            Some(volume) => {
                let bytes = u64::from(header.payload_length);
                self.enqueue_upload(hash, age_of(header), &volume, bytes);
            }
            None => self.hold(hash, header, Held::Orphaned, 0, ORPHANED.to_owned()),
        }
    }

    /// Whether it was found before that the store has something newer than a dirty record, and no
    /// operator wants it to be uploaded all the same.
    fn is_known_conflict(&self, hash: BlockHash, header: &RecordHeader) -> bool {
        let is_known = header.state == RecordState::Conflict || self.uploads.is_conflict(hash);
        is_known && !self.uploads.forced.borrow().contains(&hash)
    }

    /// Enters a dirty block into the schedule again, by what is on disk of it.
    pub(crate) async fn requeue(&self, hash: BlockHash) {
        let Some(shard) = self.shard(hash) else {
            return;
        };
        let mut pause = REREAD_PAUSE_MIN;
        while let Some(location) = shard.find(hash).filter(|_| shard.is_dirty(hash)) {
            let room = shard.header_room().await;
            match shard.read_header(hash, location, room).await {
                Ok(header) if shard.find(hash) == Some(location) => {
                    return self.enqueue_record(hash, &header);
                }
                Ok(_) | Err(ReadFailure::Gone) => {}
                Err(failure @ ReadFailure::Damaged(_)) => {
                    return self.hold_damaged(hash, location, &failure);
                }
                Err(ReadFailure::Disk(error)) => {
                    let number = self.shard_number(hash);
                    log::warn!("shard {number}: a dirty block is read again later: {error}");
                    self.parts.runtime.sleep(pause).await;
                    pause = (pause * 2).min(REREAD_PAUSE_MAX);
                }
            }
        }
    }

    fn hold_damaged(&self, hash: BlockHash, location: Location, failure: &ReadFailure) {
        log::error!(
            "shard {}: a dirty block cannot be read and is kept: {failure}",
            self.shard_number(hash)
        );
        self.uploads.schedule.borrow_mut().hold(
            hash,
            Age::default(),
            self.uploads.store(0),
            u64::from(location.payload_length),
            Held::Quarantined,
            0,
            failure.to_string(),
        );
    }
}
