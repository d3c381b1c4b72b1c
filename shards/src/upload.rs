//! Uploads: from the dirty records of one core to their stores.
//!
//! This file does what [`crate::schedule`] decides: it reads a dirty record, verifies it, sends it
//! unless the store has something newer (`verdict.rs`), and says in the index and in the ledger
//! that the store has it. It never uploads a record that is not the newest of its key, never two of
//! one key at once, and never drops one that the store would not have.

use crate::core::Core;
use crate::format::{RecordHeader, RecordState};
use crate::index::{BlockMap, Location};
use crate::key::{BlockHash, Freshness, Volume};
use crate::marks::{Mark, MarkPlace};
use crate::messages::WriteError;
use crate::read::NOT_IN_TIME;
use crate::record::ReadFailure;
use crate::schedule::{Age, Ended, FailureCause, Held, Next, Schedule, ScheduleSettings};
use crate::shard::AppendFailure;
use crate::verdict::Verdict;
use forebay_io::buffer::View;
use forebay_io::disk::{Disk, REQUEST_BYTES_MAX};
use forebay_io::local::{Event, Permits, Signal};
use forebay_io::runtime::{Runtime, timeout};
use forebay_io::store::{Attempts, StoreError, StoreErrorKind, StoreResult};
use forebay_io::uplink::{Upload, UploadBody};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Why a block leads to no store.
pub(crate) const ORPHANED: &str = "its volume or store is no longer in the settings";

/// How a core writes back.
#[derive(Clone, Copy, Debug)]
pub struct WritebackSettings {
    /// Whether writes may be acknowledged before the store has them. What is dirty is uploaded
    /// all the same.
    pub enabled: bool,
    /// Whether an acknowledged write survives a power cut.
    pub sync: bool,
    /// Uploads at a time on this core, at least 1.
    pub active_max: usize,
    /// What each upload sleeps before it sends.
    pub delay: Duration,
    /// How much of a body goes to disk at once while the rest of it is received, bytes: a multiple
    /// of a page.
    pub piece_bytes: usize,
}

impl WritebackSettings {
    /// No write is acknowledged before the store has it.
    pub fn off() -> WritebackSettings {
        WritebackSettings {
            enabled: false,
            sync: false,
            active_max: 1,
            delay: Duration::ZERO,
            piece_bytes: REQUEST_BYTES_MAX,
        }
    }
}

/// What a core knows of its uploads.
pub(crate) struct Uploads {
    pub(crate) schedule: RefCell<Schedule>,
    pub(crate) signal: Signal,
    /// Blocks of which a dirty record is being written. Nothing else of them may take a place in
    /// the order of their records then: it would outrank the dirty one at the next start.
    appending: RefCell<HashSet<BlockHash>>,
    pub(crate) in_flight: RefCell<BlockMap<InFlight>>,
    /// Blocks whose uploads writers hold back, with how many do.
    held: Rc<RefCell<BlockMap<usize>>>,
    /// Blocks that are read to be entered into the schedule again, with how often.
    returning: Rc<RefCell<BlockMap<usize>>>,
    /// Blocks of which the store has something newer: the cache passes them by.
    pub(crate) conflicts: RefCell<HashSet<BlockHash>>,
    /// Blocks that an operator wants to be uploaded over what the store has.
    pub(crate) forced: RefCell<HashSet<BlockHash>>,
    /// Blocks of which the store may have something newer from us: a write went through, and the
    /// disk did not take that this one is gone.
    pub(crate) doubted: RefCell<HashSet<BlockHash>>,
    /// CRC64-NVMEs of what was written through with an outcome that nobody knows: it may arrive late.
    pub(crate) in_doubt: RefCell<BlockMap<u64>>,
    /// ETags of versions that we uploaded before, and perhaps did not know it when a newer one was
    /// acknowledged.
    pub(crate) own_etags: RefCell<HashSet<String>>,
    volumes: RefCell<HashMap<String, Arc<Volume>>>,
    /// Records are read for upload one at a time: a disk that is asked for dozens of whole blocks
    /// at once keeps readers of hits waiting behind all of them, and one fills any uplink.
    reading: Permits,
    /// Store identities; a store's place here is its name in the schedule.
    stores: RefCell<Vec<u64>>,
    draining: Cell<bool>,
    /// Dirty blocks that a start found and that are not in the schedule yet.
    pub(crate) unread_blocks: Cell<u64>,
    /// Shards whose dirty records are being looked through.
    pub(crate) unread_shards: Cell<u64>,
}

impl Uploads {
    pub(crate) fn new(settings: &WritebackSettings) -> Uploads {
        let active_max = settings.active_max.max(1);
        Uploads {
            schedule: RefCell::new(Schedule::new(ScheduleSettings { active_max })),
            signal: Signal::default(),
            appending: RefCell::default(),
            in_flight: RefCell::default(),
            held: Rc::default(),
            returning: Rc::default(),
            conflicts: RefCell::default(),
            forced: RefCell::default(),
            doubted: RefCell::default(),
            in_doubt: RefCell::default(),
            own_etags: RefCell::default(),
            volumes: RefCell::default(),
            reading: Permits::new(1),
            stores: RefCell::default(),
            draining: Cell::new(false),
            unread_blocks: Cell::new(0),
            unread_shards: Cell::new(0),
        }
    }

    /// Whether the store has something newer than what is kept of a key.
    pub(crate) fn is_conflict(&self, hash: BlockHash) -> bool {
        self.conflicts.borrow().contains(&hash)
    }

    /// Whether a dirty record of a block is being written.
    pub(crate) fn is_appending(&self, hash: BlockHash) -> bool {
        self.appending.borrow().contains(&hash)
    }

    /// Says that a dirty record of a block is being written, or no longer is.
    pub(crate) fn set_appending(&self, hash: BlockHash, appending: bool) {
        let mut blocks = self.appending.borrow_mut();
        match appending {
            true => blocks.insert(hash),
            false => blocks.remove(&hash),
        };
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.set(draining);
    }

    fn is_held(&self, hash: BlockHash) -> bool {
        self.held.borrow().contains_key(&hash)
    }

    /// Says of a block that it is dirty though the schedule does not know it yet.
    pub(crate) fn note_returning(&self, hash: BlockHash) -> HeldUpload {
        HeldUpload::new(hash, &self.returning)
    }

    /// How many blocks [`Uploads::dirty_blocks_of`] looks at.
    pub(crate) fn dirty_blocks_max(&self) -> u64 {
        let others = self.held.borrow().len() + self.returning.borrow().len();
        (self.schedule.borrow().len() + others) as u64
    }

    /// The blocks that may be dirty, of one of so many parts that hashes fall into: those in the
    /// schedule, and those that were taken out of it and are not clean yet.
    pub(crate) fn dirty_blocks_of(&self, part: u64, parts: u64) -> Vec<BlockHash> {
        let schedule = self.schedule.borrow();
        let (held, returning) = (self.held.borrow(), self.returning.borrow());
        let others = held.keys().chain(returning.keys()).copied();
        let all = schedule.hashes().chain(others);
        // Not the bits that chose the shard and the core.
        all.filter(|hash| (hash.0 >> 64) as u64 % parts == part)
            .collect()
    }

    /// A store's name in the schedule.
    pub(crate) fn store(&self, identity: u64) -> u32 {
        let mut stores = self.stores.borrow_mut();
        let at = stores.iter().position(|known| *known == identity);
        let at = at.unwrap_or_else(|| {
            stores.push(identity);
            stores.len() - 1
        });
        at as u32
    }

    /// The volume that a record is of, if it still leads to the same store.
    pub(crate) fn volume_of(&self, header: &RecordHeader) -> Option<Arc<Volume>> {
        let volume = self.volumes.borrow().get(&header.volume).cloned();
        volume.filter(|volume| volume.store_identity == header.store_identity)
    }
}

/// An upload that has begun.
#[derive(Clone, Default)]
pub(crate) struct InFlight {
    /// Set when it ends.
    ended: Event,
    /// Set when a writer waits for that: what has not been sent then need not be.
    unwanted: Event,
    /// What is sent, once it is.
    pub(crate) sent: Rc<RefCell<Option<(u64, View)>>>,
}

/// Notes something of a block until it is dropped: that it is kept from being uploaded while a writer
/// decides what becomes of it, or that it is on its way back into the schedule.
pub(crate) struct HeldUpload {
    hash: BlockHash,
    held: Rc<RefCell<BlockMap<usize>>>,
}

impl HeldUpload {
    fn new(hash: BlockHash, held: &Rc<RefCell<BlockMap<usize>>>) -> HeldUpload {
        *held.borrow_mut().entry(hash).or_insert(0) += 1;
        let held = held.clone();
        HeldUpload { hash, held }
    }
}

impl Drop for HeldUpload {
    fn drop(&mut self) {
        let mut held = self.held.borrow_mut();
        let count = held.get_mut(&self.hash).expect("held until now");
        *count -= 1;
        if *count == 0 {
            held.remove(&self.hash);
        }
    }
}

/// A record that is about to be uploaded.
pub(crate) struct Outgoing {
    age: Age,
    location: Location,
    place: Option<MarkPlace>,
    pub(crate) header: RecordHeader,
    pub(crate) payload: View,
}

/// How an upload went.
struct Attempt {
    /// The age of what was uploaded.
    age: Age,
    end: Ended,
    /// Store and bytes of a block that leads to no store any more.
    orphan: Option<(u32, u64)>,
}

impl Attempt {
    fn ended(age: Age, end: Ended) -> Attempt {
        Attempt {
            age,
            end,
            orphan: None,
        }
    }
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Serves these volumes from now on: uploads find their stores here.
    pub fn set_volumes(&self, volumes: impl IntoIterator<Item = Arc<Volume>>) {
        let by_name = volumes.into_iter().map(|v| (v.name.clone(), v));
        *self.uploads.volumes.borrow_mut() = by_name.collect();
        let mut schedule = self.uploads.schedule.borrow_mut();
        schedule.store_changed(None);
        schedule.retry_orphans();
        self.uploads.signal.raise();
    }

    /// Starts the task that uploads.
    pub(crate) fn start_uploads(self: &Rc<Self>) {
        let core = self.clone();
        self.parts.runtime.spawn(async move {
            let runtime = &core.parts.runtime;
            loop {
                let now = runtime.now();
                let next = core.uploads.schedule.borrow_mut().next(now);
                match next {
                    Next::Start(hash) => core.launch_upload(hash),
                    Next::WaitUntil(time) => {
                        let wait = time.since(now).max(Duration::from_millis(1));
                        timeout(runtime, wait, core.uploads.signal.wait()).await;
                    }
                    Next::Idle => core.uploads.signal.wait().await,
                }
            }
        });
    }

    /// A block has become dirty.
    pub(crate) fn enqueue_upload(&self, hash: BlockHash, age: Age, volume: &Volume, bytes: u64) {
        let store = self.uploads.store(volume.store_identity);
        let mut schedule = self.uploads.schedule.borrow_mut();
        schedule.add(hash, age, store, bytes);
        self.uploads.signal.raise();
    }

    /// Waits until no upload of a block is on its way, and lets none begin. `None` if nothing of it
    /// is dirty then, or what is so is in conflict.
    ///
    /// # Errors
    /// [`WriteError::Stalled`] if it is in conflict and the disk does not say in time that it has that.
    pub(crate) async fn hold_upload(
        self: &Rc<Self>,
        hash: BlockHash,
    ) -> Result<Option<HeldUpload>, WriteError> {
        if self.uploads.is_conflict(hash) {
            self.settle_conflict(hash).await?;
        }
        // What is in conflict is neither uploaded nor touched by what clients do with the key.
        if !self.is_dirty(hash) || self.uploads.is_conflict(hash) {
            return Ok(None);
        }
        let held = HeldUpload::new(hash, &self.uploads.held);
        self.uploads.schedule.borrow_mut().remove(hash);
        loop {
            let in_flight = self.uploads.in_flight.borrow().get(&hash).cloned();
            match in_flight {
                Some(upload) => {
                    upload.unwanted.set();
                    upload.ended.wait().await;
                }
                None => break,
            }
        }
        Ok(self.is_dirty(hash).then_some(held))
    }

    /// What was held is to be uploaded after all, unless the store has something newer.
    pub(crate) fn doubt_upload(self: &Rc<Self>, held: Option<HeldUpload>) {
        if let Some(held) = &held {
            self.uploads.doubted.borrow_mut().insert(held.hash);
        }
        self.resume_upload(held);
    }

    /// What was held may be uploaded after all.
    pub(crate) fn resume_upload(self: &Rc<Self>, held: Option<HeldUpload>) {
        let Some(hash) = held.map(|held| held.hash) else {
            return;
        };
        let (core, returning) = (self.clone(), self.uploads.note_returning(hash));
        self.parts.runtime.spawn(async move {
            core.requeue(hash).await;
            drop(returning);
        });
    }

    fn launch_upload(self: &Rc<Self>, hash: BlockHash) {
        let upload = InFlight::default();
        let before = self
            .uploads
            .in_flight
            .borrow_mut()
            .insert(hash, upload.clone());
        assert!(before.is_none(), "one upload at a time per block");
        let core = self.clone();
        self.parts.runtime.spawn(async move {
            let Attempt { age, end, orphan } = core.upload(hash).await;
            core.note_end(&end);
            let now = core.parts.runtime.now();
            let random = core.parts.runtime.random();
            {
                let mut schedule = core.uploads.schedule.borrow_mut();
                schedule.ended(hash, age, end, now, random);
                if core.uploads.is_held(hash) {
                    schedule.remove(hash);
                } else if let Some((store, bytes)) = orphan {
                    let message = ORPHANED.to_owned();
                    schedule.hold(hash, age, store, bytes, Held::Orphaned, 0, message);
                }
                // Nothing is dirty that could be older than what we uploaded.
                if schedule.is_empty() {
                    core.uploads.own_etags.borrow_mut().clear();
                }
            }
            core.uploads.in_flight.borrow_mut().remove(&hash);
            upload.ended.set();
            core.uploads.signal.raise();
        });
    }

    fn note_end(&self, end: &Ended) {
        let stats = &self.stats;
        match end {
            Ended::Uploaded => stats.uploads_done.add(1),
            Ended::Superseded => stats.uploads_superseded.add(1),
            Ended::Conflict { .. } => stats.uploads_conflict.add(1),
            Ended::Failed {
                cause: FailureCause::Rejected,
                ..
            } => stats.uploads_refused.add(1),
            Ended::Failed { .. } => stats.uploads_failed.add(1),
        }
    }

    /// Uploads what is dirty of a block now.
    async fn upload(&self, hash: BlockHash) -> Attempt {
        let outgoing = match self.outgoing(hash).await {
            Ok(outgoing) => outgoing,
            Err((age, end)) => return Attempt::ended(age, end),
        };
        let (age, header) = (outgoing.age, &outgoing.header);
        let Some(volume) = self.uploads.volume_of(header) else {
            let store = self.uploads.store(header.store_identity);
            return Attempt {
                age,
                end: Ended::Superseded,
                orphan: Some((store, u64::from(header.payload_length))),
            };
        };
        if !self.parts.writeback.delay.is_zero() {
            self.delay(hash).await;
            if self.uploads.is_held(hash) {
                return Attempt::ended(age, Ended::Superseded);
            }
        }
        let end = match self.send(hash, &volume, &outgoing).await {
            Ok(store_etag) => self.uploaded(hash, &outgoing, &store_etag).await,
            Err(end) => end,
        };
        self.note_held(hash, &outgoing, &end).await;
        Attempt::ended(age, end)
    }

    /// Sleeps before an upload, unless a writer or a DELETE of the block waits for its end.
    async fn delay(&self, hash: BlockHash) {
        let in_flight = self.uploads.in_flight.borrow().get(&hash).cloned();
        let unwanted = in_flight.unwrap_or_default().unwanted;
        let delay = self.parts.writeback.delay;
        timeout(&self.parts.runtime, delay, unwanted.wait()).await;
    }

    /// Reads and verifies what is dirty of a block. As an error, how the upload ends instead.
    async fn outgoing(&self, hash: BlockHash) -> Result<Outgoing, (Age, Ended)> {
        let _turn = self.uploads.reading.acquire().await;
        let age = self.uploads.schedule.borrow().age(hash).unwrap_or_default();
        let superseded = || Err((age, Ended::Superseded));
        let Some(shard) = self.shard(hash) else {
            return superseded();
        };
        let Some(location) = shard.find(hash).filter(|_| shard.is_dirty(hash)) else {
            return superseded();
        };
        if self.uploads.is_held(hash) || self.uploads.is_appending(hash) {
            return superseded();
        }
        let length = location.payload_length as usize;
        self.make_room(length, length);
        let failed = |message: String| Ended::Failed {
            cause: FailureCause::Disk,
            retry_after: None,
            message,
        };
        let found = match self.record_at(&shard, hash, location).await {
            None => return Err((age, failed(NOT_IN_TIME.into()))),
            Some(Err(ReadFailure::Gone)) => {
                // Moved or replaced while it was read; what is there now is tried anew.
                return Err((age, failed("the record was moved".into())));
            }
            Some(Err(failure @ ReadFailure::Disk(_))) => {
                return Err((age, failed(failure.to_string())));
            }
            Some(Err(failure @ ReadFailure::Damaged(_))) => {
                self.stats.damaged_records.add(1);
                let message = format!("not uploaded: {failure}");
                log::error!(
                    "shard {}: a dirty block is damaged: {failure}",
                    self.shard_number(hash)
                );
                let end = Ended::Failed {
                    cause: FailureCause::Rejected,
                    retry_after: None,
                    message,
                };
                return Err((age, end));
            }
            Some(Ok(found)) => found,
        };
        let payload = found.whole.unwrap_or(found.wanted);
        Ok(Outgoing {
            age: age_of(&found.header),
            location,
            place: shard.mark_place(location),
            header: found.header,
            payload,
        })
    }

    /// Sends a record, after asking where something newer may be there. Returns the store's ETag.
    async fn send(
        &self,
        hash: BlockHash,
        volume: &Volume,
        outgoing: &Outgoing,
    ) -> Result<String, Ended> {
        let once = volume.freshness == Freshness::Immutable;
        let forced = self.uploads.forced.borrow().contains(&hash);
        if !once && !forced && self.must_ask(hash, outgoing) {
            match self.ask(hash, volume, outgoing, false).await? {
                Verdict::Upload => {}
                Verdict::Same(store_etag) => return Ok(store_etag),
                Verdict::Newer(message) => return Err(Ended::Conflict { message }),
            }
        }
        // What is being written now does not know of this upload; it is entered anew when it is there.
        if self.uploads.is_appending(hash) {
            return Err(Ended::Superseded);
        }
        if let Some(upload) = self.uploads.in_flight.borrow().get(&hash) {
            let sent = (outgoing.header.payload_crc64, outgoing.payload.clone());
            *upload.sent.borrow_mut() = Some(sent);
        }
        match self.upload_once(volume, outgoing, once && !forced).await {
            Ok(store_etag) => Ok(store_etag),
            // The condition did not hold (MinIO has answered 304 to this), or the store takes none.
            Err(error) if once && is_about_condition(error.kind, forced) => {
                match self.ask(hash, volume, outgoing, true).await? {
                    Verdict::Same(store_etag) => Ok(store_etag),
                    Verdict::Newer(message) => Err(Ended::Conflict { message }),
                    // As with Swift. What others write in between is lost then, as it would be
                    // without us.
                    Verdict::Upload if error.kind == StoreErrorKind::Unsupported => {
                        let sent = self.upload_once(volume, outgoing, false).await;
                        sent.map_err(|error| failed(&error, cause_of(error.kind)))
                    }
                    Verdict::Upload => Err(failed(&error, FailureCause::Key)),
                }
            }
            Err(error) => Err(failed(&error, cause_of(error.kind))),
        }
    }

    /// Sends a record to its store. Returns the store's ETag.
    async fn upload_once(
        &self,
        volume: &Volume,
        outgoing: &Outgoing,
        if_none_match: bool,
    ) -> StoreResult<String> {
        let header = &outgoing.header;
        let upload = Upload {
            key: header.key.clone(),
            length: u64::from(header.payload_length),
            headers: header.meta.headers.clone(),
            crc64nvme: Some(header.payload_crc64),
            if_none_match,
            if_match: None,
            attempts: Attempts::Once,
            body: UploadBody::Whole(vec![outgoing.payload.clone()]),
        };
        let reply = self.parts.uplink.put(volume.store_number, upload).await;
        reply.map(|reply| {
            volume.versions.note_write(&reply);
            reply.etag
        })
    }

    /// The store has a record now.
    async fn uploaded(&self, hash: BlockHash, outgoing: &Outgoing, store_etag: &str) -> Ended {
        let Some(shard) = self.shard(hash) else {
            return Ended::Superseded;
        };
        self.uploads.forced.borrow_mut().remove(&hash);
        self.uploads.doubted.borrow_mut().remove(&hash);
        self.uploads.in_doubt.borrow_mut().remove(&hash);
        let location = shard.find(hash);
        // It may have been moved meanwhile, or replaced.
        let is_newest = shard.is_dirty(hash)
            && (location == Some(outgoing.location)
                || self.uploads.schedule.borrow().age(hash) == Some(outgoing.age));
        let mut places = vec![outgoing.place];
        if let (true, Some(location)) = (is_newest, location) {
            shard.mark_clean(hash, location);
            self.learn_upload(hash, store_etag);
            if location != outgoing.location {
                places.push(shard.mark_place(location));
            }
        } else {
            // What is dirty now was acknowledged when the store did not have this one yet.
            self.uploads
                .own_etags
                .borrow_mut()
                .insert(store_etag.to_owned());
        }
        let mark = Mark::Uploaded {
            store_etag: store_etag.to_owned(),
        };
        if let Some(marks) = shard.marks() {
            for place in places.into_iter().flatten() {
                marks.put(place, &mark).await;
            }
        }
        match is_newest {
            true => Ended::Uploaded,
            false => Ended::Superseded,
        }
    }

    /// Notes in the ledger why a record is held, and stops serving one that is outranked.
    async fn note_held(&self, hash: BlockHash, outgoing: &Outgoing, end: &Ended) {
        let attempts = self.uploads.schedule.borrow().attempts(hash) + 1;
        let name = format!("{}/{}", outgoing.header.volume, outgoing.header.key);
        let mark = match end {
            Ended::Conflict { message } => {
                if self.uploads.schedule.borrow().age(hash) != Some(outgoing.age) {
                    return;
                }
                log::error!("{name}: conflict, kept and not served: {message}");
                let payload = &outgoing.payload;
                let written = self.write_conflict(hash, &outgoing.header, payload).await;
                if let Err(failure) = written {
                    // The ledger alone knows until the key is deleted.
                    log::warn!("{name}: its conflict is not on disk yet: {failure}");
                }
                if self.uploads.schedule.borrow().age(hash) != Some(outgoing.age) {
                    return;
                }
                self.enter_conflict(hash);
                Mark::Conflict {
                    attempts,
                    message: message.clone(),
                }
            }
            Ended::Failed {
                cause: FailureCause::Rejected,
                message,
                ..
            } => {
                log::error!("{name}: quarantined: {message}");
                Mark::Quarantined {
                    attempts,
                    message: message.clone(),
                }
            }
            _ => return,
        };
        let Some(shard) = self.shard(hash) else {
            return;
        };
        let place = shard.find(hash).and_then(|at| shard.mark_place(at));
        if let (Some(place), Some(marks)) = (place, shard.marks()) {
            marks.put(place, &mark).await;
        }
    }

    /// Makes sure that what is in conflict is held after a restart too, whatever becomes of the
    /// ledger: what is about to be deleted or replaced in the store must not come back by an upload.
    ///
    /// # Errors
    /// [`WriteError::Stalled`] if the disk does not say in time that it has that.
    async fn settle_conflict(self: &Rc<Self>, hash: BlockHash) -> Result<(), WriteError> {
        loop {
            let Some(shard) = self.shard(hash) else {
                return Ok(());
            };
            let Some(location) = shard.find(hash).filter(|_| shard.is_dirty(hash)) else {
                return Ok(());
            };
            let found = match self.record_at(&shard, hash, location).await {
                Some(Ok(found)) if found.header.state == RecordState::Conflict => return Ok(()),
                Some(Ok(found)) => found,
                Some(Err(ReadFailure::Gone)) => continue,
                // It cannot be uploaded either.
                Some(Err(ReadFailure::Damaged(_))) => return Ok(()),
                Some(Err(ReadFailure::Disk(_))) | None => return Err(WriteError::Stalled),
            };
            let core = self.clone();
            let writing = async move {
                let payload = found.whole.unwrap_or(found.wanted);
                core.write_conflict(hash, &found.header, &payload).await
            };
            match self.patience.write(self.shard_number(hash), writing).await {
                Some(Ok(_)) => return Ok(()),
                Some(Err(AppendFailure::Superseded)) => {}
                Some(Err(_)) | None => return Err(WriteError::Stalled),
            }
        }
    }

    /// Writes a record again as one that is in conflict: the ledger may be lost, and what is deleted
    /// or replaced in the store must not be taken for what never came there.
    async fn write_conflict(
        &self,
        hash: BlockHash,
        header: &RecordHeader,
        payload: &View,
    ) -> Result<u64, AppendFailure> {
        let shard = self.shard(hash).ok_or(AppendFailure::Superseded)?;
        let before = shard.find(hash);
        let buffer = self.take_buffer(payload.len()).await;
        let mut body = buffer.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        body.append(payload);
        let header = RecordHeader {
            state: RecordState::Conflict,
            ..header.clone()
        };
        let still = || {
            let now = shard.find(hash);
            now == before && shard.is_dirty(hash) && !self.uploads.is_appending(hash)
        };
        shard.append(header, body, still).await
    }

    /// The cache passes a key by from now on: the store has something newer than what is kept.
    pub(crate) fn enter_conflict(&self, hash: BlockHash) {
        self.uploads.conflicts.borrow_mut().insert(hash);
        self.forget(hash);
    }
}

pub(crate) fn age_of(header: &RecordHeader) -> Age {
    Age {
        acked_unix_ms: header.validated_at * 1000,
        sequence: header.sequence,
    }
}

/// Whether a store's refusal is of the condition, not of the object.
fn is_about_condition(kind: StoreErrorKind, forced: bool) -> bool {
    match kind {
        StoreErrorKind::NotModified | StoreErrorKind::PreconditionFailed => true,
        // Without a condition something else is not supported.
        StoreErrorKind::Unsupported => !forced,
        _ => false,
    }
}

pub(crate) fn failed(error: &StoreError, cause: FailureCause) -> Ended {
    Ended::Failed {
        cause,
        retry_after: error.retry_after,
        message: error.to_string(),
    }
}

/// What a store's refusal of an upload says of others.
pub(crate) fn cause_of(kind: StoreErrorKind) -> FailureCause {
    use StoreErrorKind::{
        ClockSkew, Contended, Corrupt, Denied, Internal, InvalidKey, InvalidPart, Misdirected,
        NoSuchBucket, NoSuchUpload, NotFound, NotModified, PartTooSmall, PreconditionFailed,
        RangeNotSatisfiable, Rejected, SlowDown, Timeout, Unreachable, Unsupported,
    };
    match kind {
        SlowDown => FailureCause::SlowDown,
        Timeout | Unreachable | Internal | Corrupt => FailureCause::Unreachable,
        // Nothing of the block's: it heals when an operator mends the bucket, the key or the clock.
        Denied | ClockSkew | Misdirected | NoSuchBucket | NotFound | Unsupported => {
            FailureCause::Denied
        }
        Rejected | InvalidKey | NoSuchUpload | InvalidPart | PartTooSmall => FailureCause::Rejected,
        Contended | PreconditionFailed | NotModified | RangeNotSatisfiable => FailureCause::Key,
    }
}
