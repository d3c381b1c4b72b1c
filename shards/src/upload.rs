//! Uploads: from the dirty records of one core to their stores.
//!
//! This file does what [`crate::schedule`] decides: it reads a dirty record, verifies it, asks the
//! store first where something newer may be there, sends it, and says in the index and in the ledger
//! that the store has it. It never uploads a record that is not the newest of its key, never two of
//! one key at once, and never drops one that the store would not have.

use crate::core::Core;
use crate::format::{RecordHeader, RecordState, content_name};
use crate::index::{BlockMap, Location};
use crate::key::{BlockHash, Freshness, Volume};
use crate::marks::{Mark, MarkPlace};
use crate::schedule::{Age, Ended, FailureCause, Held, Next, Schedule, ScheduleSettings};
use crate::shard::ReadFailure;
use forebay_io::buffer::View;
use forebay_io::disk::Disk;
use forebay_io::local::{Event, Signal};
use forebay_io::runtime::{Runtime, timeout};
use forebay_io::store::{Attempts, ObjectHead, StoreError, StoreErrorKind, StoreResult};
use forebay_io::uplink::{Upload, UploadBody};
use md5::{Digest, Md5};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// An upload of a record that was acknowledged longer ago asks the store first whether somebody
/// else has written the key since.
const UNASKED_AGE_MAX_SECONDS: u64 = 60;

/// Why a block leads to no store.
pub(crate) const ORPHANED: &str = "its volume or store is no longer in the settings";

/// Failed writes through that are remembered: some hundred KiB, and more than a store of which the
/// answers get lost leaves in the minutes that matter.
const IN_DOUBT_MAX: usize = 4096;

/// Contents that a record names as perhaps on their way: each is one more kill between a write and
/// its upload. They must fit a header beside the longest names.
const ON_THEIR_WAY_MAX: usize = 4;

/// Bytes that are hashed before other tasks of the core have their turn.
const HASHED_AT_ONCE_BYTES: usize = 256 << 10;

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
}

impl WritebackSettings {
    /// No write is acknowledged before the store has it.
    pub fn off() -> WritebackSettings {
        WritebackSettings {
            enabled: false,
            sync: false,
            active_max: 1,
            delay: Duration::ZERO,
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
    in_flight: RefCell<BlockMap<InFlight>>,
    /// Blocks whose uploads writers hold back, with how many do.
    held: Rc<RefCell<BlockMap<usize>>>,
    /// Blocks of which the store has something newer: the cache passes them by.
    pub(crate) conflicts: RefCell<HashSet<BlockHash>>,
    /// Blocks that an operator wants to be uploaded over what the store has.
    pub(crate) forced: RefCell<HashSet<BlockHash>>,
    /// Blocks of which the store may have something newer from us: a write went through, and the
    /// disk did not take that this one is gone.
    doubted: RefCell<HashSet<BlockHash>>,
    /// CRC64-NVMEs of what was written through with an outcome that nobody knows: it may arrive late.
    in_doubt: RefCell<BlockMap<u64>>,
    /// ETags of versions that we uploaded before, and perhaps did not know it when a newer one was
    /// acknowledged.
    pub(crate) own_etags: RefCell<HashSet<String>>,
    volumes: RefCell<HashMap<String, Arc<Volume>>>,
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
            conflicts: RefCell::default(),
            forced: RefCell::default(),
            doubted: RefCell::default(),
            in_doubt: RefCell::default(),
            own_etags: RefCell::default(),
            volumes: RefCell::default(),
            stores: RefCell::default(),
            draining: Cell::new(false),
            unread_blocks: Cell::new(0),
            unread_shards: Cell::new(0),
        }
    }

    /// Whether the store has something newer than what is kept of a key.
    pub(crate) fn is_conflict(&self, hash: BlockHash) -> bool {
        !self.conflicts.borrow().is_empty() && self.conflicts.borrow().contains(&hash)
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
struct InFlight {
    /// Set when it ends.
    ended: Event,
    /// What is sent, once it is.
    sent: Rc<RefCell<Option<(u64, View)>>>,
}

/// Keeps a block from being uploaded while a writer decides what becomes of it, until it is dropped.
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
struct Outgoing {
    age: Age,
    location: Location,
    place: Option<MarkPlace>,
    header: RecordHeader,
    payload: View,
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

/// What the store's own version means for a record that is to be uploaded.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody has written the key since.
    Upload,
    /// The store has this very content, under this ETag.
    Same(String),
    /// Somebody has.
    Newer(String),
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
        let core = Rc::downgrade(self);
        let runtime = self.parts.runtime.clone();
        let task = runtime.clone();
        runtime.spawn(async move {
            while let Some(core) = core.upgrade() {
                let now = core.parts.runtime.now();
                let next = core.uploads.schedule.borrow_mut().next(now);
                match next {
                    Next::Start(hash) => core.launch_upload(hash),
                    Next::WaitUntil(time) => {
                        let wait = time.since(now).max(Duration::from_millis(1));
                        timeout(&task, wait, core.uploads.signal.wait()).await;
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
    /// is dirty then.
    pub(crate) async fn hold_upload(&self, hash: BlockHash) -> Option<HeldUpload> {
        // What is in conflict is neither uploaded nor touched by what clients do with the key.
        if !self.is_dirty(hash) || self.uploads.is_conflict(hash) {
            return None;
        }
        let held = HeldUpload::new(hash, &self.uploads.held);
        self.uploads.schedule.borrow_mut().remove(hash);
        loop {
            let in_flight = self.uploads.in_flight.borrow().get(&hash).cloned();
            match in_flight {
                Some(upload) => upload.ended.wait().await,
                None => break,
            }
        }
        self.is_dirty(hash).then_some(held)
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
        let core = self.clone();
        self.parts.runtime.spawn(async move {
            core.requeue(hash).await;
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
            self.parts.runtime.sleep(self.parts.writeback.delay).await;
        }
        let end = match self.send(hash, &volume, &outgoing).await {
            Ok(store_etag) => self.uploaded(hash, &outgoing, &store_etag).await,
            Err(end) => end,
        };
        self.note_held(hash, &outgoing, &end).await;
        Attempt::ended(age, end)
    }

    /// Reads and verifies what is dirty of a block. As an error, how the upload ends instead.
    async fn outgoing(&self, hash: BlockHash) -> Result<Outgoing, (Age, Ended)> {
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
        self.make_room(
            location.payload_length as usize,
            location.payload_length as usize,
        );
        let (reader, length) = (shard.clone(), location.payload_length as usize);
        let reading = async move { reader.read(hash, location, 0..length).await };
        let failed = |message: String| Ended::Failed {
            cause: FailureCause::Disk,
            retry_after: None,
            message,
        };
        let found = match self.patience.read(self.shard_number(hash), reading).await {
            None => return Err((age, failed("the disk does not answer".into()))),
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
        use StoreErrorKind::{NotModified, PreconditionFailed};
        match self.upload_once(volume, outgoing, once && !forced).await {
            Ok(store_etag) => Ok(store_etag),
            // MinIO has answered 304 to this.
            Err(error) if matches!(error.kind, PreconditionFailed | NotModified) && once => {
                match self.ask(hash, volume, outgoing, true).await? {
                    Verdict::Same(store_etag) => Ok(store_etag),
                    Verdict::Newer(message) => Err(Ended::Conflict { message }),
                    Verdict::Upload => Err(failed(&error, FailureCause::Key)),
                }
            }
            // As Swift, which takes no conditions. What others write in between is lost then, as it
            // would be without us.
            Err(error) if error.kind == StoreErrorKind::Unsupported && once && !forced => {
                match self.ask(hash, volume, outgoing, true).await? {
                    Verdict::Same(store_etag) => Ok(store_etag),
                    Verdict::Newer(message) => Err(Ended::Conflict { message }),
                    Verdict::Upload => {
                        let sent = self.upload_once(volume, outgoing, false).await;
                        sent.map_err(|error| failed(&error, cause_of(error.kind)))
                    }
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
            attempts: Attempts::Once,
            body: UploadBody::Whole(vec![outgoing.payload.clone()]),
        };
        let reply = self.parts.uplink.put(volume.store_number, upload).await;
        reply.map(|reply| reply.etag)
    }

    /// Whether an upload may meet something newer: it was tried before, comes from a former run, or
    /// is late.
    fn must_ask(&self, hash: BlockHash, outgoing: &Outgoing) -> bool {
        let age_seconds = self
            .parts
            .runtime
            .unix_seconds()
            .saturating_sub(outgoing.header.validated_at);
        let tried = self.uploads.schedule.borrow().attempts(hash) > 0;
        let inherited = self
            .shard(hash)
            .is_some_and(|shard| shard.is_inherited(outgoing.header.sequence));
        let doubted = self.uploads.doubted.borrow().contains(&hash);
        tried || inherited || doubted || age_seconds > UNASKED_AGE_MAX_SECONDS
    }

    /// Asks the store what it has. `once`: whatever it has came first.
    async fn ask(
        &self,
        hash: BlockHash,
        volume: &Volume,
        outgoing: &Outgoing,
        once: bool,
    ) -> Result<Verdict, Ended> {
        let key = outgoing.header.key.clone();
        let head = match self.parts.uplink.head(volume.store_number, key).await {
            Ok(head) => head,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(Verdict::Upload),
            Err(error) => return Err(failed(&error, cause_of(error.kind))),
        };
        if self.is_same(&head, outgoing).await {
            return Ok(Verdict::Same(head.meta.etag));
        }
        let known = self.known_store_etag(hash);
        let is_known = was_on_its_way(&head, &outgoing.header)
            || head.meta.etag == outgoing.header.store_etag
            || known.as_deref() == Some(&*head.meta.etag)
            || self.uploads.own_etags.borrow().contains(&head.meta.etag);
        if !once && !head.meta.etag.is_empty() && is_known {
            return Ok(Verdict::Upload);
        }
        let acknowledged = outgoing.header.validated_at;
        if once || head.meta.last_modified > acknowledged {
            return Ok(Verdict::Newer(format!(
                "the store has another object of {} bytes, ETag {}, changed {} s after this one was \
                 acknowledged",
                head.meta.size,
                head.meta.etag,
                head.meta.last_modified.saturating_sub(acknowledged)
            )));
        }
        Ok(Verdict::Upload)
    }

    /// Whether the store's object has the content of a record, as far as its checksums tell.
    async fn is_same(&self, head: &ObjectHead, outgoing: &Outgoing) -> bool {
        let header = &outgoing.header;
        if head.meta.size != u64::from(header.payload_length) {
            return false;
        }
        if let Some(crc64nvme) = head.crc64nvme {
            return crc64nvme == header.payload_crc64;
        }
        let etag = head.meta.etag.as_str();
        let looks_like_md5 = etag.len() == 32 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !looks_like_md5 {
            return false;
        }
        self.md5(&outgoing.payload).await.eq_ignore_ascii_case(etag)
    }

    async fn md5(&self, bytes: &[u8]) -> String {
        let mut md5 = Md5::new();
        for piece in bytes.chunks(HASHED_AT_ONCE_BYTES) {
            md5.update(piece);
            self.parts.runtime.yield_now().await;
        }
        let digest = md5.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The contents of a block's uploads that may be on their way, from this run or the one before,
    /// newest first, with a semicolon between. Should one arrive after all when nobody waits for it
    /// any more, it must be known for ours.
    pub(crate) async fn on_its_way(&self, hash: BlockHash) -> String {
        let upload = self.uploads.in_flight.borrow().get(&hash).cloned();
        let sent = upload.and_then(|upload| upload.sent.borrow().clone());
        let mut names = Vec::new();
        if let Some((crc64nvme, payload)) = sent {
            names.push(content_name(crc64nvme, &self.md5(&payload).await));
        }
        if let Some(crc64nvme) = self.uploads.in_doubt.borrow().get(&hash) {
            names.push(content_name(*crc64nvme, ""));
        }
        if let Some(former) = self.tried_before(hash).await {
            let name = content_name(former.payload_crc64, "");
            if !names.iter().any(|known| known[..16] == name[..16]) {
                names.push(name);
            }
            let older = former.on_its_way.split(';').filter(|name| !name.is_empty());
            names.extend(older.map(str::to_owned));
        }
        names.truncate(ON_THEIR_WAY_MAX);
        names.join(";")
    }

    /// A write through has failed, and may have been done all the same.
    pub(crate) fn note_in_doubt(&self, hash: BlockHash, crc64nvme: u64) {
        let mut in_doubt = self.uploads.in_doubt.borrow_mut();
        // What is forgotten here can only be taken for somebody else's, and is kept then.
        if in_doubt.len() >= IN_DOUBT_MAX {
            in_doubt.clear();
        }
        in_doubt.insert(hash, crc64nvme);
    }

    /// The dirty record of a block whose upload has been tried, or may have been by a former run.
    async fn tried_before(&self, hash: BlockHash) -> Option<RecordHeader> {
        let shard = self.shard(hash)?;
        let location = shard.find(hash).filter(|_| shard.is_dirty(hash))?;
        let age = self.uploads.schedule.borrow().age(hash);
        let tried = self.uploads.schedule.borrow().attempts(hash) > 0;
        if !tried && age.is_some_and(|age| !shard.is_inherited(age.sequence)) {
            return None;
        }
        let reader = shard.clone();
        let reading = async move { reader.read_header(hash, location).await };
        let header = self.patience.read(self.shard_number(hash), reading).await;
        header?.ok()
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
                self.write_conflict(hash, outgoing).await;
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

    /// Writes a record again as one that is in conflict: the ledger may be lost, and what is deleted
    /// or replaced in the store must not be taken for what never came there. If the disk does not take
    /// it, the ledger alone knows.
    async fn write_conflict(&self, hash: BlockHash, outgoing: &Outgoing) {
        let Some(shard) = self.shard(hash) else {
            return;
        };
        let Ok(mut body) = self.take_buffer(outgoing.payload.len()).await else {
            return;
        };
        body.append(&outgoing.payload);
        let header = RecordHeader {
            state: RecordState::Conflict,
            ..outgoing.header.clone()
        };
        let before = shard.find(hash);
        let still = || {
            let now = shard.find(hash);
            now == before && shard.is_dirty(hash) && !self.uploads.is_appending(hash)
        };
        if let Err(failure) = shard.append(header, body, still).await {
            log::warn!("shard {}: {failure}", self.shard_number(hash));
        }
    }

    /// The cache passes a key by from now on: the store has something newer than what is kept.
    pub(crate) fn enter_conflict(&self, hash: BlockHash) {
        self.uploads.conflicts.borrow_mut().insert(hash);
        self.forget(hash);
    }
}

/// Whether the store's object is an older version of the key that we had sent.
fn was_on_its_way(head: &ObjectHead, header: &RecordHeader) -> bool {
    let mut names = header.on_its_way.split(';');
    names.any(|name| match (name.split_once(' '), head.crc64nvme) {
        (None, _) => false,
        (Some((crc64nvme, _)), Some(of_store)) => format!("{of_store:016x}") == crc64nvme,
        (Some((_, md5)), None) => !md5.is_empty() && head.meta.etag.eq_ignore_ascii_case(md5),
    })
}

pub(crate) fn age_of(header: &RecordHeader) -> Age {
    Age {
        acked_unix_ms: header.validated_at * 1000,
        sequence: header.sequence,
    }
}

fn failed(error: &StoreError, cause: FailureCause) -> Ended {
    Ended::Failed {
        cause,
        retry_after: error.retry_after,
        message: error.to_string(),
    }
}

/// What a store's refusal of an upload says of others.
fn cause_of(kind: StoreErrorKind) -> FailureCause {
    use StoreErrorKind::{
        ClockSkew, Contended, Corrupt, Denied, Internal, InvalidKey, Misdirected, NoSuchBucket,
        NotFound, NotModified, PreconditionFailed, RangeNotSatisfiable, Rejected, SlowDown,
        Timeout, Unreachable, Unsupported,
    };
    match kind {
        SlowDown => FailureCause::SlowDown,
        Timeout | Unreachable | Internal | Corrupt => FailureCause::Unreachable,
        // Nothing of the block's: it heals when an operator mends the bucket, the key or the clock.
        Denied | ClockSkew | Misdirected | NoSuchBucket | NotFound | Unsupported => {
            FailureCause::Denied
        }
        Rejected | InvalidKey => FailureCause::Rejected,
        Contended | PreconditionFailed | NotModified | RangeNotSatisfiable => FailureCause::Key,
    }
}
