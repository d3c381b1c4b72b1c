//! The object store in memory, with faults on request.
//!
//! This file owns a [`Store`] that behaves like S3 until it is told not to: by a script, one fault
//! for one request, or by seeded chances. It counts what it is asked and how many writes of one
//! key overlap. It never reads a clock and never draws from a global random number generator: time
//! passes through the sleep it is given, and equal seeds give equal runs.

mod parts;
mod tags;

pub use parts::parts_tag;

use super::random::Dice;
use crate::listing::{ListPage, ListRequest, ListedObject, PageBuilder, Wanted};
use crate::multipart::PART_BYTES_MIN;
use crate::store::{
    ByteSpan, GetReply, GetRequest, ObjectHead, ObjectMeta, PutBody, PutReply, PutRequest, Store,
    StoreError, StoreErrorKind, StoreResult, check_key,
};
use crate::tags::Tags;
use crate::versions::{Deleted, no_versions};
use bytes::{Bytes, BytesMut};
use crc_fast::CrcAlgorithm;
use futures::future::LocalBoxFuture;
use futures::stream::{self, StreamExt};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Bytes of a body per piece: small, so that readers meet many pieces.
const BODY_PIECE_BYTES: usize = 16 * 1024;

/// What the logical clock shows at the first write; each write moves it by a second.
const FIRST_WRITE_UNIX_SECONDS: u64 = 1_700_000_000;

/// How this store lets time pass.
pub type Sleep = Rc<dyn Fn(Duration) -> LocalBoxFuture<'static, ()>>;

/// The things a store can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// [`Store::get`].
    Get,
    /// [`Store::head`].
    Head,
    /// [`Store::put`].
    Put,
    /// [`Store::delete`].
    Delete,
    /// [`Store::list`]; its prefix stands for the key.
    List,
    /// [`PartStore::copy`](crate::multipart::PartStore::copy); its key is the one that is written.
    Copy,
    /// [`PartStore::create_upload`](crate::multipart::PartStore::create_upload).
    CreateUpload,
    /// [`PartStore::put_part`](crate::multipart::PartStore::put_part).
    PutPart,
    /// [`PartStore::copy_part`](crate::multipart::PartStore::copy_part); its key is the upload's.
    CopyPart,
    /// [`PartStore::complete_upload`](crate::multipart::PartStore::complete_upload).
    CompleteUpload,
    /// [`PartStore::abort_upload`](crate::multipart::PartStore::abort_upload).
    AbortUpload,
    /// [`PartStore::list_parts`](crate::multipart::PartStore::list_parts).
    ListParts,
    /// [`PartStore::list_uploads`](crate::multipart::PartStore::list_uploads); its prefix stands for
    /// the key.
    ListUploads,
}

/// One thing that goes wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The request does nothing and fails so.
    Fail(StoreErrorKind),
    /// The store is overloaded and names a time to come back.
    SlowDown(Duration),
    /// The request takes this much longer, then goes on as usual.
    Delay(Duration),
    /// The answer never comes.
    Hang,
    /// GET: the body fails with [`StoreErrorKind::Corrupt`] after this many bytes, as an honest
    /// store client reports a connection that was cut.
    Cut(u64),
    /// GET: the body ends without an error after this many bytes. Breaks the contract of
    /// [`GetReply::body`], to try those who rely on it.
    Short(u64),
    /// GET: the body yields this many bytes more than it should. Breaks the contract too.
    Long(u64),
    /// GET: the byte at this place of the body has one bit flipped, unnoticed.
    Flip(u64),
    /// GET: the head comes at once, the body only after this.
    SlowBody(Duration),
    /// GET: the head names another version than the one that the bytes are of.
    WrongEtag,
    /// Whatever changes the store: the change is made, the answer is lost.
    LostReply,
}

/// Chances of each fault per request, in thousandths; tried in the order of the fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultChances {
    /// [`Fault::Fail`] with `Internal`.
    pub internal: u32,
    /// [`Fault::SlowDown`] of one second.
    pub slow_down: u32,
    /// [`Fault::Fail`] with `Timeout`.
    pub timeout: u32,
    /// [`Fault::Fail`] with `Unreachable`.
    pub unreachable: u32,
    /// [`Fault::Delay`] of up to `delay_ms_max`.
    pub delay: u32,
    /// Longest seeded delay, milliseconds.
    pub delay_ms_max: u64,
    /// [`Fault::Cut`] somewhere in the body; for GET only.
    pub cut: u32,
    /// [`Fault::LostReply`]; for what changes the store only.
    pub lost_reply: u32,
}

#[derive(Clone)]
struct Object {
    meta: ObjectMeta,
    bytes: Bytes,
}

struct ScriptedFault {
    verb: Verb,
    /// `None` strikes any key.
    key: Option<String>,
    fault: Fault,
}

struct Inside {
    objects: BTreeMap<String, Object>,
    /// Of the present versions.
    tags: BTreeMap<String, Tags>,
    uploads: parts::Uploads,
    /// Uploads ever begun; names them.
    uploads_begun: u64,
    /// The least size of every part but the last, bytes.
    part_bytes_min: u64,
    bucket_missing: bool,
    /// Whether HEAD tells no checksum, as of stores that keep none.
    checksums_hidden: bool,
    /// `None`: any fault strikes at once when scripted, none by chance.
    chances: Option<FaultChances>,
    dice: Option<Dice>,
    script: VecDeque<ScriptedFault>,
    writes: u64,
    /// The wall clock, where the store's own is to agree with it.
    clock: Option<WallClock>,
    requests: BTreeMap<(Verb, String), u64>,
    puts_in_flight: BTreeMap<String, u64>,
    puts_in_flight_max: BTreeMap<String, u64>,
    faults_struck: u64,
}

/// Tells seconds since the Unix epoch.
pub type WallClock = Rc<dyn Fn() -> u64>;

/// The store. Clones share the objects, the script and the counts.
#[derive(Clone)]
pub struct MemoryStore {
    inside: Rc<RefCell<Inside>>,
    sleep: Sleep,
}

impl MemoryStore {
    /// An empty store without faults, whose delays pass through `sleep`.
    pub fn new(sleep: Sleep) -> Self {
        MemoryStore {
            inside: Rc::new(RefCell::new(Inside::new())),
            sleep,
        }
    }

    /// From now on faults strike by `chances`, drawn from `seed`; scripted ones come first.
    pub fn set_chances(&self, chances: FaultChances, seed: u64) {
        let mut inside = self.inside.borrow_mut();
        inside.chances = Some(chances);
        inside.dice = Some(Dice::new(seed));
    }

    /// From now on only scripted faults strike.
    pub fn heal(&self) {
        self.inside.borrow_mut().chances = None;
    }

    /// The next request of `verb` for `key` (for any key if `None`) that no earlier entry of the
    /// script takes meets `fault`.
    pub fn script(&self, verb: Verb, key: Option<&str>, fault: Fault) {
        let key = key.map(str::to_owned);
        let scripted = ScriptedFault { verb, key, fault };
        self.inside.borrow_mut().script.push_back(scripted);
    }

    /// Faults of the script that no request has met yet.
    pub fn script_left(&self) -> usize {
        self.inside.borrow().script.len()
    }

    /// Faults met, scripted or by chance.
    pub fn faults_struck(&self) -> u64 {
        self.inside.borrow().faults_struck
    }

    /// Makes the bucket vanish or come back, with its objects.
    pub fn set_bucket_missing(&self, missing: bool) {
        self.inside.borrow_mut().bucket_missing = missing;
    }

    /// Lets the store stamp objects by this clock; without one it counts writes.
    pub fn set_clock(&self, clock: WallClock) {
        self.inside.borrow_mut().clock = Some(clock);
    }

    /// Makes HEAD tell no checksum any more, or tell it again.
    pub fn set_checksums_hidden(&self, hidden: bool) {
        self.inside.borrow_mut().checksums_hidden = hidden;
    }

    /// Writes an object behind everybody's back: no fault, no count.
    pub fn insert(&self, key: &str, bytes: impl Into<Bytes>) -> PutReply {
        self.commit(key, bytes.into(), Vec::new())
    }

    /// Removes an object behind everybody's back: no fault, no count.
    pub fn remove(&self, key: &str) {
        self.inside.borrow_mut().objects.remove(key);
    }

    /// The bytes of an object, past every fault and count.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        let inside = self.inside.borrow();
        inside.objects.get(key).map(|object| object.bytes.clone())
    }

    /// The ETag of an object, past every fault and count.
    pub fn etag(&self, key: &str) -> Option<String> {
        let inside = self.inside.borrow();
        let object = inside.objects.get(key);
        object.map(|object| object.meta.etag.clone())
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<String> {
        self.inside.borrow().objects.keys().cloned().collect()
    }

    /// How often `key` was asked for with `verb`.
    pub fn requests(&self, verb: Verb, key: &str) -> u64 {
        let inside = self.inside.borrow();
        let count = inside.requests.get(&(verb, key.to_owned()));
        count.copied().unwrap_or(0)
    }

    /// The most PUTs of `key` that were ever in flight at once.
    pub fn puts_in_flight_max(&self, key: &str) -> u64 {
        let inside = self.inside.borrow();
        inside.puts_in_flight_max.get(key).copied().unwrap_or(0)
    }

    /// Counts the request, chooses its fault and lets it strike as far as it strikes up front.
    async fn begin(&self, verb: Verb, key: &str) -> StoreResult<Option<Fault>> {
        if !matches!(verb, Verb::List | Verb::ListUploads) {
            check_key(key)?;
        }
        let fault = self.inside.borrow_mut().next_fault(verb, key);
        match fault {
            Some(Fault::Fail(kind)) => Err(StoreError::new(kind, "a fault on request")),
            Some(Fault::SlowDown(pause)) => {
                let mut error = StoreError::new(StoreErrorKind::SlowDown, "a fault on request");
                error.status = Some(503);
                error.retry_after = Some(pause);
                Err(error)
            }
            Some(Fault::Hang) => futures::future::pending().await,
            Some(Fault::Delay(pause)) => {
                (self.sleep)(pause).await;
                self.check_bucket().map(|()| None)
            }
            other => self.check_bucket().map(|()| other),
        }
    }

    fn check_bucket(&self) -> StoreResult<()> {
        if self.inside.borrow().bucket_missing {
            let message = "the bucket does not exist";
            return Err(StoreError::new(StoreErrorKind::NoSuchBucket, message));
        }
        Ok(())
    }

    fn commit(&self, key: &str, bytes: Bytes, headers: Vec<(String, String)>) -> PutReply {
        self.commit_tagged(key, content_tag(&bytes), bytes, headers)
    }

    fn commit_tagged(
        &self,
        key: &str,
        etag: String,
        bytes: Bytes,
        headers: Vec<(String, String)>,
    ) -> PutReply {
        let mut inside = self.inside.borrow_mut();
        let last_modified = inside.now();
        inside.writes += 1;
        let meta = ObjectMeta {
            size: bytes.len() as u64,
            etag: etag.clone(),
            last_modified,
            headers,
        };
        let object = Object { meta, bytes };
        inside.objects.insert(key.to_owned(), object);
        inside.tags.remove(key);
        PutReply {
            etag,
            last_modified,
            version_id: None,
        }
    }

    async fn get_inner(&self, request: GetRequest) -> StoreResult<GetReply> {
        if request.version_id.is_some() {
            return Err(no_versions());
        }
        let fault = self.begin(Verb::Get, &request.key).await?;
        let object = self.find(&request.key)?;
        check_conditions(&request, &object.meta)?;
        let span = satisfy(request.span, object.meta.size)?;
        let wanted = object.bytes.slice(span.start as usize..span.end as usize);
        let mut meta = object.meta;
        if matches!(fault, Some(Fault::WrongEtag)) {
            meta.etag = format!("{}-other", meta.etag);
        }
        let pause = match fault {
            Some(Fault::SlowBody(pause)) => Some((self.sleep)(pause)),
            _ => None,
        };
        let pieces = faulty_pieces(&wanted, fault);
        let body = stream::once(async move {
            if let Some(pause) = pause {
                pause.await;
            }
            stream::iter(pieces)
        });
        let body = body.flatten().boxed_local();
        Ok(GetReply { meta, span, body })
    }

    fn find(&self, key: &str) -> StoreResult<Object> {
        let inside = self.inside.borrow();
        inside
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| StoreError::new(StoreErrorKind::NotFound, "the key does not exist"))
    }

    async fn put_inner(&self, request: PutRequest) -> StoreResult<PutReply> {
        let _in_flight = PutInFlight::enter(self, &request.key);
        let fault = self.begin(Verb::Put, &request.key).await?;
        let bytes = collect(request.body).await?;
        if bytes.len() as u64 != request.length {
            let message = format!(
                "the body has {} bytes, {} were announced",
                bytes.len(),
                request.length
            );
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        if request
            .crc64nvme
            .is_some_and(|announced| announced != crc64nvme(&bytes))
        {
            let message = "the body does not have the checksum announced";
            return Err(StoreError::new(StoreErrorKind::Corrupt, message));
        }
        if request.if_none_match && self.object(&request.key).is_some() {
            let message = "an object has this key already";
            return Err(StoreError::new(StoreErrorKind::PreconditionFailed, message));
        }
        if let Some(tag) = request.if_match
            && self.find(&request.key)?.meta.etag != tag
        {
            let message = "the object has another ETag";
            return Err(StoreError::new(StoreErrorKind::PreconditionFailed, message));
        }
        let reply = self.commit(&request.key, bytes, request.headers);
        lose_reply(fault.as_ref()).map(|()| reply)
    }

    async fn delete_inner(&self, key: String) -> StoreResult<Deleted> {
        let fault = self.begin(Verb::Delete, &key).await?;
        self.inside.borrow_mut().objects.remove(&key);
        lose_reply(fault.as_ref()).map(|()| Deleted::default())
    }

    async fn list_inner(&self, request: ListRequest) -> StoreResult<ListPage> {
        self.begin(Verb::List, &request.prefix).await?;
        let inside = self.inside.borrow();
        let mut page = PageBuilder::new(&request);
        for (key, object) in inside.objects.range(request.first_key().to_owned()..) {
            if !key.starts_with(&request.prefix) {
                break;
            }
            match page.wants(key) {
                Wanted::Nothing => {}
                Wanted::Presence => page.add_presence(key),
                Wanted::Object => page.add_object(ListedObject {
                    key: key.clone(),
                    size: object.meta.size,
                    etag: object.meta.etag.clone(),
                    last_modified_ms: object.meta.last_modified * 1000,
                }),
                Wanted::Full => return Ok(page.finish(true)),
            }
        }
        Ok(page.finish(false))
    }
}

impl Store for MemoryStore {
    fn get(&self, request: GetRequest) -> LocalBoxFuture<'_, StoreResult<GetReply>> {
        Box::pin(self.get_inner(request))
    }

    fn head(&self, key: String) -> LocalBoxFuture<'_, StoreResult<ObjectHead>> {
        Box::pin(async move {
            self.begin(Verb::Head, &key).await?;
            let object = self.find(&key)?;
            let is_told = !self.inside.borrow().checksums_hidden;
            Ok(ObjectHead {
                meta: object.meta,
                crc64nvme: is_told.then(|| crc64nvme(&object.bytes)),
                version_id: None,
            })
        })
    }

    fn put(&self, request: PutRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(self.put_inner(request))
    }

    fn delete(&self, key: String) -> LocalBoxFuture<'_, StoreResult<Deleted>> {
        Box::pin(self.delete_inner(key))
    }

    fn list(&self, request: ListRequest) -> LocalBoxFuture<'_, StoreResult<ListPage>> {
        Box::pin(self.list_inner(request))
    }
}

impl Inside {
    fn new() -> Self {
        Inside {
            objects: BTreeMap::new(),
            tags: BTreeMap::new(),
            uploads: BTreeMap::new(),
            uploads_begun: 0,
            part_bytes_min: PART_BYTES_MIN,
            bucket_missing: false,
            checksums_hidden: false,
            chances: None,
            dice: None,
            script: VecDeque::new(),
            writes: 0,
            clock: None,
            requests: BTreeMap::new(),
            puts_in_flight: BTreeMap::new(),
            puts_in_flight_max: BTreeMap::new(),
            faults_struck: 0,
        }
    }

    /// What a change made now is stamped with.
    fn now(&self) -> u64 {
        match &self.clock {
            Some(clock) => clock(),
            None => FIRST_WRITE_UNIX_SECONDS + self.writes,
        }
    }

    fn next_fault(&mut self, verb: Verb, key: &str) -> Option<Fault> {
        *self.requests.entry((verb, key.to_owned())).or_default() += 1;
        let scripted = self.script.iter().position(|entry| {
            entry.verb == verb && entry.key.as_deref().is_none_or(|wanted| wanted == key)
        });
        let fault = match scripted.and_then(|place| self.script.remove(place)) {
            Some(entry) => Some(entry.fault),
            None => self
                .chances
                .and_then(|chances| self.draw(chances, verb, key)),
        };
        self.faults_struck += u64::from(fault.is_some());
        fault
    }

    fn draw(&mut self, chances: FaultChances, verb: Verb, key: &str) -> Option<Fault> {
        let is_read = verb == Verb::Get;
        let is_write = parts::is_change(verb);
        if self.strikes(chances.internal) {
            return Some(Fault::Fail(StoreErrorKind::Internal));
        }
        if self.strikes(chances.slow_down) {
            return Some(Fault::SlowDown(Duration::from_secs(1)));
        }
        if self.strikes(chances.timeout) {
            return Some(Fault::Fail(StoreErrorKind::Timeout));
        }
        if self.strikes(chances.unreachable) {
            return Some(Fault::Fail(StoreErrorKind::Unreachable));
        }
        if self.strikes(chances.delay) {
            let milliseconds = self.below(chances.delay_ms_max + 1);
            return Some(Fault::Delay(Duration::from_millis(milliseconds)));
        }
        if is_read && self.strikes(chances.cut) {
            let size = self.objects.get(key).map_or(0, |object| object.meta.size);
            return Some(Fault::Cut(self.below(size + 1)));
        }
        if is_write && self.strikes(chances.lost_reply) {
            return Some(Fault::LostReply);
        }
        None
    }

    fn strikes(&mut self, per_mille: u32) -> bool {
        let dice = self.dice.as_mut();
        dice.is_some_and(|dice| dice.strikes(per_mille))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.dice.as_mut().map_or(0, |dice| dice.below(limit))
    }
}

/// Counts one PUT of a key as long as its future lives.
struct PutInFlight {
    inside: Rc<RefCell<Inside>>,
    key: String,
}

impl PutInFlight {
    fn enter(store: &MemoryStore, key: &str) -> Self {
        let mut inside = store.inside.borrow_mut();
        let now = inside.puts_in_flight.entry(key.to_owned()).or_default();
        *now += 1;
        let now = *now;
        let most = inside.puts_in_flight_max.entry(key.to_owned()).or_default();
        *most = now.max(*most);
        PutInFlight {
            inside: Rc::clone(&store.inside),
            key: key.to_owned(),
        }
    }
}

impl Drop for PutInFlight {
    fn drop(&mut self) {
        if let Some(now) = self.inside.borrow_mut().puts_in_flight.get_mut(&self.key) {
            *now -= 1;
        }
    }
}

fn check_conditions(request: &GetRequest, meta: &ObjectMeta) -> StoreResult<()> {
    if request
        .if_match
        .as_ref()
        .is_some_and(|tag| *tag != meta.etag)
    {
        let message = "the object has another ETag";
        return Err(StoreError::new(StoreErrorKind::PreconditionFailed, message));
    }
    if request.if_none_match.as_ref() == Some(&meta.etag) {
        let message = "the object still has this ETag";
        return Err(StoreError::new(StoreErrorKind::NotModified, message));
    }
    Ok(())
}

fn satisfy(wanted: Option<ByteSpan>, size: u64) -> StoreResult<ByteSpan> {
    let Some(span) = wanted else {
        return Ok(ByteSpan {
            start: 0,
            end: size,
        });
    };
    if span.start >= span.end {
        let message = "an empty span cannot be asked for";
        return Err(StoreError::new(StoreErrorKind::Rejected, message));
    }
    if span.start >= size {
        let message = format!("byte {} of an object of {size} bytes", span.start);
        let mut error = StoreError::new(StoreErrorKind::RangeNotSatisfiable, message);
        error.object_size = Some(size);
        return Err(error);
    }
    let end = span.end.min(size);
    Ok(ByteSpan {
        start: span.start,
        end,
    })
}

fn faulty_pieces(wanted: &Bytes, fault: Option<Fault>) -> Vec<StoreResult<Bytes>> {
    let mut bytes = wanted.clone();
    let mut end = None;
    match fault {
        Some(Fault::Cut(kept)) => {
            bytes.truncate(kept as usize);
            let message = format!("the body was cut after {kept} bytes");
            end = Some(StoreError::new(StoreErrorKind::Corrupt, message));
        }
        Some(Fault::Short(kept)) => bytes.truncate(kept as usize),
        Some(Fault::Long(surplus)) => {
            let mut longer = BytesMut::from(&bytes[..]);
            longer.resize(bytes.len() + surplus as usize, b'+');
            bytes = longer.freeze();
        }
        Some(Fault::Flip(place)) => {
            let mut flipped = BytesMut::from(&bytes[..]);
            if let Some(byte) = flipped.get_mut(place as usize) {
                *byte ^= 1;
            }
            bytes = flipped.freeze();
        }
        _ => {}
    }
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        pieces.push(Ok(bytes.split_to(BODY_PIECE_BYTES.min(bytes.len()))));
    }
    pieces.extend(end.map(Err));
    pieces
}

fn lose_reply(fault: Option<&Fault>) -> StoreResult<()> {
    match fault {
        Some(Fault::LostReply) => {
            let message = "the connection ended before the answer";
            Err(StoreError::new(StoreErrorKind::Unreachable, message))
        }
        _ => Ok(()),
    }
}

async fn collect(body: PutBody) -> StoreResult<Bytes> {
    let mut all = BytesMut::new();
    match body {
        PutBody::Whole(pieces) => pieces.iter().for_each(|piece| all.extend_from_slice(piece)),
        PutBody::Stream(mut pieces) => {
            while let Some(piece) = pieces.next().await {
                all.extend_from_slice(&piece?);
            }
        }
    }
    Ok(all.freeze())
}

fn crc64nvme(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// The tag that this store gives `bytes`, which only equal bytes share: two FNV-1a runs from
/// different starts. Not for adversaries. The hyphen keeps it from being taken for an MD5.
pub fn content_tag(bytes: &[u8]) -> String {
    let (mut low, mut high) = (0xcbf2_9ce4_8422_2325_u64, 0x6c62_272e_07bb_0142_u64);
    for byte in bytes {
        low = (low ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        high = (high ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{low:016x}-{high:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Attempts;
    use futures::executor::block_on;

    fn memory() -> MemoryStore {
        MemoryStore::new(Rc::new(|_| Box::pin(futures::future::ready(()))))
    }

    fn put(key: &str, body: &'static [u8]) -> PutRequest {
        PutRequest {
            key: key.into(),
            length: body.len() as u64,
            headers: Vec::new(),
            crc64nvme: None,
            if_none_match: false,
            if_match: None,
            attempts: Attempts::StorePolicy,
            body: PutBody::Whole(vec![Bytes::from_static(body)]),
        }
    }

    fn read(store: &MemoryStore, key: &str) -> StoreResult<Vec<u8>> {
        let request = GetRequest {
            key: key.into(),
            ..GetRequest::default()
        };
        block_on(async {
            let mut reply = store.get(request).await?;
            let mut all = Vec::new();
            while let Some(piece) = reply.body.next().await {
                all.extend_from_slice(&piece?);
            }
            Ok(all)
        })
    }

    #[test]
    fn a_lost_reply_leaves_the_object_behind() {
        let store = memory();
        store.script(Verb::Put, Some("k"), Fault::LostReply);
        let error = block_on(store.put(put("k", b"v"))).expect_err("the reply is lost");
        assert_eq!(error.kind, StoreErrorKind::Unreachable);
        assert_eq!(store.object("k").as_deref(), Some(&b"v"[..]));
        assert_eq!(store.requests(Verb::Put, "k"), 1);
    }

    #[test]
    fn body_faults_do_what_they_say() {
        let store = memory();
        store.insert("k", &b"0123456789"[..]);
        store.script(Verb::Get, None, Fault::Short(4));
        assert_eq!(read(&store, "k").expect("silently short"), b"0123");
        store.script(Verb::Get, None, Fault::Long(2));
        assert_eq!(read(&store, "k").expect("silently long"), b"0123456789++");
        store.script(Verb::Get, None, Fault::Flip(0));
        assert_eq!(read(&store, "k").expect("silently flipped"), b"1123456789");
        store.script(Verb::Get, None, Fault::Cut(10));
        assert_eq!(
            read(&store, "k").expect_err("cut").kind,
            StoreErrorKind::Corrupt
        );
        assert_eq!(read(&store, "k").expect("healed"), b"0123456789");
        assert_eq!(store.faults_struck(), 4);
    }

    #[test]
    fn the_script_strikes_in_order_and_only_its_key() {
        let store = memory();
        store.insert("a", &b"a"[..]);
        store.insert("b", &b"b"[..]);
        store.script(Verb::Get, Some("b"), Fault::Fail(StoreErrorKind::Internal));
        assert!(read(&store, "a").is_ok());
        assert!(read(&store, "b").is_err());
        assert!(read(&store, "b").is_ok());
        assert_eq!(store.script_left(), 0);
    }

    #[test]
    fn equal_seeds_give_equal_runs() {
        let run = |seed| {
            let store = memory();
            let chances = FaultChances {
                internal: 200,
                cut: 200,
                ..FaultChances::default()
            };
            store.set_chances(chances, seed);
            store.insert("k", vec![7; 100]);
            let outcomes: Vec<_> = (0..200)
                .map(|_| read(&store, "k").map_err(|error| error.to_string()))
                .collect();
            outcomes
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn overlapping_puts_of_one_key_are_counted() {
        let store = memory();
        store.script(Verb::Put, Some("k"), Fault::Hang);
        let mut first = store.put(put("k", b"1"));
        let waker = futures::task::noop_waker();
        let mut context = std::task::Context::from_waker(&waker);
        assert!(first.as_mut().poll(&mut context).is_pending());
        block_on(store.put(put("k", b"2"))).expect("no fault left");
        assert_eq!(store.puts_in_flight_max("k"), 2);
        drop(first);
        block_on(store.put(put("k", b"3"))).expect("no fault left");
        assert_eq!(store.puts_in_flight_max("k"), 2);
    }
}
