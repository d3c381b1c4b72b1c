//! Volumes whose bucket keeps versions.
//!
//! This file owns what is known of that, how long it is believed, and what it means for what waits for
//! its upload: a bucket that keeps versions gives out ids, so writes of its volumes go through, and
//! what was dirty before is never replaced unseen: it goes to the store first, where it stays a
//! version. Versions themselves are never cached: they are asked for by id, and only their store knows
//! which there are.
//!
//! **What is believed.** Nobody asks before somebody writes. The first write of a volume waits for the
//! store's word, [`FIRST_WORD_WAIT`] at most; what it said is believed for [`BELIEVED_SECONDS`], after
//! which the next write asks anew, beside itself. An id in the answer to a write says it as well.
//! Where the bucket belongs to several volumes they know it together.

use crate::core::Core;
use crate::key::{BlockHash, BlockId, Volume};
use crate::messages::{Message, WriteCondition, WriteError};
use crate::names::NamesError;
use crate::router::{Router, core_gone};
use forebay_io::disk::Disk;
use forebay_io::listing::{Entry, LIST_NAMES_MAX, ListRequest};
use forebay_io::runtime::{Runtime, timeout};
use forebay_io::store::{
    GetRequest, ObjectHead, PutReply, StoreError, StoreErrorKind, StoreResult,
};
use forebay_io::tags::Tags;
use forebay_io::uplink::Fetched;
use forebay_io::versions::{
    Deleted, NULL_VERSION, VersionName, Versioning, VersionsPage, VersionsRequest,
};
use futures::stream::{self, StreamExt};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// How long a store's word is believed before a write has it asked again, seconds: it is one small
/// request, and who turns versions on beside us should not wait for long.
pub const BELIEVED_SECONDS: u64 = 30;

/// How long it takes until a store that could not tell is asked again, seconds.
const UNTOLD_SECONDS: u64 = 5;

/// How long the first write of a volume waits for the store's word: longer than any store takes that
/// is well, and short for one that is away, whose writes are taken all the same.
pub const FIRST_WORD_WAIT: Duration = Duration::from_secs(2);

/// How long what is dirty may take to reach the store before whoever needs it there is told to come
/// again.
const SETTLE_WAIT: Duration = Duration::from_secs(15);

/// Objects that are brought to the store at a time. Each is at most a block, in memory already or read
/// from disk.
const SETTLED_AT_ONCE_MAX: usize = 8;

/// Pause between two looks at what others wait for, too.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// What is known of a bucket's versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Known {
    /// Nothing yet.
    Nothing,
    /// It never kept any.
    Never,
    /// It keeps them, or did.
    Kept,
    /// A client is changing it right now: its writes go through already.
    Changing,
}

/// What all cores know of a bucket's versions. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Versions {
    /// Nothing: the store knows no versions at all.
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    known: AtomicU8,
    /// Seconds since the Unix epoch of the last question; 0 before the first.
    asked_at: AtomicU64,
    /// Grows with each change by a client: what was asked before it says nothing any more.
    changes: AtomicU64,
    is_asking: AtomicBool,
}

/// What is learned of a volume is no part of what it is.
impl PartialEq for Versions {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Versions {}

impl Versions {
    /// Of a bucket that may keep versions.
    pub fn of_bucket() -> Versions {
        Versions {
            shared: Some(Arc::new(Shared {
                known: AtomicU8::new(Known::Nothing as u8),
                asked_at: AtomicU64::new(0),
                changes: AtomicU64::new(0),
                is_asking: AtomicBool::new(false),
            })),
        }
    }

    /// Whether the store is of a kind that knows versions.
    pub fn may_be_kept(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether writes must go through, for the store's ids.
    pub fn are_kept(&self) -> bool {
        matches!(self.known(), Known::Kept | Known::Changing)
    }

    /// Whether the bucket is taken never to have kept any, so that each object is its only version.
    pub fn are_unknown_to_bucket(&self) -> bool {
        self.known() == Known::Never
    }

    fn known(&self) -> Known {
        let Some(shared) = &self.shared else {
            return Known::Never;
        };
        match shared.known.load(Ordering::Acquire) {
            0 => Known::Nothing,
            1 => Known::Never,
            2 => Known::Kept,
            _ => Known::Changing,
        }
    }

    /// Notes the answer to a question that was asked at `asked_at`, after so many changes.
    fn note(&self, told: &StoreResult<Versioning>, changes: u64, asked_at: u64) {
        let Some(shared) = &self.shared else {
            return;
        };
        if shared.changes.load(Ordering::Acquire) != changes {
            return;
        }
        shared.asked_at.store(asked_at.max(1), Ordering::Release);
        if let Some(known) = meaning(told) {
            shared.known.store(known as u8, Ordering::Release);
        }
    }

    /// Notes what the answer to a write tells.
    pub(crate) fn note_write(&self, reply: &PutReply) {
        if reply.version_id.is_some() {
            self.note_id();
        }
    }

    /// An answer to a write told an id. Whether the bucket still keeps versions is to be asked.
    fn note_id(&self) {
        if let (Some(shared), Known::Nothing | Known::Never) = (&self.shared, self.known()) {
            shared.known.store(Known::Kept as u8, Ordering::Release);
            shared.asked_at.store(1, Ordering::Release);
        }
    }

    /// Whether somebody should ask at `now`, and claims it.
    fn claim(&self, now: u64) -> bool {
        let Some(shared) = &self.shared else {
            return false;
        };
        let believed = match self.known() {
            Known::Changing => return false,
            Known::Nothing => UNTOLD_SECONDS,
            Known::Never | Known::Kept => BELIEVED_SECONDS,
        };
        let asked_at = shared.asked_at.load(Ordering::Acquire);
        // A clock that was set back must not keep what is known for ever.
        now.abs_diff(asked_at) >= believed && !shared.is_asking.swap(true, Ordering::AcqRel)
    }

    /// Whether nobody has had an answer yet, of whatever kind.
    fn is_unasked(&self) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| shared.asked_at.load(Ordering::Acquire) == 0)
    }
}

/// What an answer says for writes; nothing if the store could not tell.
fn meaning(told: &StoreResult<Versioning>) -> Option<Known> {
    use StoreErrorKind::{NotFound, Rejected, Unsupported};
    match told {
        Ok(Versioning::Never) => Some(Known::Never),
        Ok(Versioning::Enabled | Versioning::Suspended) => Some(Known::Kept),
        // A store that does not know the question keeps no versions.
        Err(error) if matches!(error.kind, Unsupported | Rejected | NotFound) => Some(Known::Never),
        Err(_) => None,
    }
}

/// Why what waits for its upload did not reach the store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UnsettledError {
    /// It takes longer than a client waits.
    #[error("objects still wait for their upload")]
    Waiting,
    /// One of them could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A core cannot tell.
    #[error(transparent)]
    Names(#[from] NamesError),
}

/// Why a bucket was not told what to do with versions.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VersioningError {
    /// What was written before has not all reached the store.
    #[error(transparent)]
    Unsettled(#[from] UnsettledError),
    /// The store failed or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<R: Runtime, D: Disk> Router<R, D> {
    /// Learns what writes of a volume need to know, before one of them is begun. It waits only for
    /// the first word on a bucket.
    pub async fn know_versioning(&self, volume: &Arc<Volume>) {
        let versions = &volume.versions;
        if !versions.may_be_kept() {
            return;
        }
        let runtime = &self.core().parts.runtime;
        let is_first = versions.is_unasked();
        if versions.claim(runtime.unix_seconds()) {
            let (core, volume) = (self.core().clone(), volume.clone());
            runtime.spawn(async move {
                let _ = core.ask_versioning(&volume).await;
                if let Some(shared) = &volume.versions.shared {
                    shared.is_asking.store(false, Ordering::Release);
                }
            });
        }
        if is_first {
            let told = async {
                while versions.is_unasked() {
                    runtime.sleep(LOOK_PAUSE).await;
                }
            };
            timeout(runtime, FIRST_WORD_WAIT, told).await;
        }
    }

    /// What the bucket behind a volume does with versions, in the store's words.
    ///
    /// # Errors
    /// The store's.
    pub async fn versioning(&self, volume: &Volume) -> StoreResult<Versioning> {
        self.core().ask_versioning(volume).await
    }

    /// Lets the bucket behind a volume keep versions, or no more new ones. What was acknowledged
    /// before reaches the store first; from the beginning of this on, writes go through.
    ///
    /// # Errors
    /// [`VersioningError::Unsettled`] if that takes too long; then nothing was asked of the store.
    pub async fn set_versioning(
        &self,
        volume: &Arc<Volume>,
        is_enabled: bool,
    ) -> Result<(), VersioningError> {
        let change = Change::begin(&volume.versions);
        self.settle_volume(volume, "").await?;
        let uplink = &self.core().parts.uplink;
        uplink
            .set_versioning(volume.store_number, is_enabled)
            .await?;
        change.finish(Known::Kept, self.core().parts.runtime.unix_seconds());
        Ok(())
    }

    /// Waits until all that is acknowledged of a volume, of keys that start so, is in the store.
    ///
    /// # Errors
    /// If it is not soon.
    pub async fn settle_volume(
        &self,
        volume: &Arc<Volume>,
        prefix: &str,
    ) -> Result<(), UnsettledError> {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            limit: LIST_NAMES_MAX,
            ..ListRequest::default()
        };
        let settled = async {
            loop {
                let dirty = self.list_dirty(volume, &request).await?.entries;
                if dirty.is_empty() {
                    return Ok(());
                }
                let settling = dirty
                    .into_iter()
                    .map(|entry| self.settle_named(volume, entry));
                let mut settling = stream::iter(settling).buffer_unordered(SETTLED_AT_ONCE_MAX);
                while let Some(settled) = settling.next().await {
                    settled?;
                }
            }
        };
        let settled = timeout(&self.core().parts.runtime, SETTLE_WAIT, settled).await;
        settled.unwrap_or(Err(UnsettledError::Waiting))
    }

    async fn settle_named(&self, volume: &Arc<Volume>, entry: Entry) -> Result<(), WriteError> {
        let home = BlockId {
            volume: volume.clone(),
            key: entry.name().into(),
            number: 0,
        };
        self.settle(&home).await
    }

    /// Brings what waits for its upload of one object to the store, if it does.
    ///
    /// # Errors
    /// As a write that goes through.
    pub async fn settle(&self, home: &BlockId) -> Result<(), WriteError> {
        let id = home.clone();
        let answer = self
            .ask_owner(home, |reply| Message::Settle(id, reply))
            .await;
        answer.unwrap_or_else(|| Err(WriteError::Store(core_gone())))
    }

    /// Begins to read a version of an object, past the cache.
    ///
    /// # Errors
    /// The store's.
    pub async fn get_version(&self, volume: &Volume, request: GetRequest) -> StoreResult<Fetched> {
        let uplink = &self.core().parts.uplink;
        uplink.get(volume.store_number, request).await
    }

    /// Describes a version of an object, past the cache.
    ///
    /// # Errors
    /// The store's.
    pub async fn head_version(
        &self,
        volume: &Volume,
        name: VersionName,
    ) -> StoreResult<ObjectHead> {
        let uplink = &self.core().parts.uplink;
        uplink.head_version(volume.store_number, name).await
    }

    /// Removes a version of the object whose block 0 is `home`, for good. Runs to its end at the home
    /// even if the caller goes away.
    ///
    /// # Errors
    /// As a DELETE.
    pub async fn delete_version(
        &self,
        home: &BlockId,
        version_id: String,
    ) -> Result<Deleted, WriteError> {
        let id = home.clone();
        let message = |reply| Message::DeleteVersion(id, version_id, reply);
        let answer = self.ask_owner(home, message).await;
        answer.unwrap_or_else(|| Err(WriteError::Store(core_gone())))
    }

    /// The tags of a version.
    ///
    /// # Errors
    /// The store's.
    pub async fn version_tags(&self, volume: &Volume, name: VersionName) -> StoreResult<Tags> {
        let uplink = &self.core().parts.uplink;
        uplink.version_tags(volume.store_number, name).await
    }

    /// Replaces the tags of a version.
    ///
    /// # Errors
    /// The store's.
    pub async fn set_version_tags(
        &self,
        volume: &Volume,
        name: VersionName,
        tags: Tags,
    ) -> StoreResult<()> {
        let uplink = &self.core().parts.uplink;
        let number = volume.store_number;
        uplink.set_version_tags(number, name, tags).await
    }

    /// A page of the versions that the store behind a volume has.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_versions(
        &self,
        volume: &Volume,
        request: VersionsRequest,
    ) -> StoreResult<VersionsPage> {
        let uplink = &self.core().parts.uplink;
        uplink.list_versions(volume.store_number, request).await
    }
}

impl<R: Runtime, D: Disk> Core<R, D> {
    async fn ask_versioning(&self, volume: &Volume) -> StoreResult<Versioning> {
        let shared = volume.versions.shared.as_ref();
        let changes = shared.map_or(0, |shared| shared.changes.load(Ordering::Acquire));
        let told = self.parts.uplink.versioning(volume.store_number).await;
        let now = self.parts.runtime.unix_seconds();
        if let (Err(error), None) = (&told, meaning(&told)) {
            let name = &volume.name;
            log::warn!("{name}: whether the bucket keeps versions is not known: {error}");
        }
        volume.versions.note(&told, changes, now);
        told
    }

    /// Before an object of a bucket that keeps versions is changed, what is dirty of it becomes one.
    pub(crate) async fn settle_kept(
        self: &Rc<Self>,
        id: &BlockId,
        hash: BlockHash,
    ) -> Result<(), WriteError> {
        if !id.volume.versions.are_kept() || !self.is_here_alone(hash) {
            return Ok(());
        }
        match self.carry_through(id, hash).await {
            // What the store never takes can be no version.
            Err(WriteError::Store(error)) if !error.kind.is_retryable() => Ok(()),
            carried => carried,
        }
    }

    /// See [`Router::settle`].
    pub(crate) async fn settle(self: &Rc<Self>, id: BlockId) -> Result<(), WriteError> {
        let hash = id.hash();
        self.shard_to_write(hash).await?;
        match self.is_here_alone(hash) {
            true => self.carry_through(&id, hash).await,
            false => Ok(()),
        }
    }

    /// See [`Router::delete_version`]. What is cached of the object may have been that version, or an
    /// older one may be the present one now.
    pub(crate) async fn delete_version(
        self: &Rc<Self>,
        id: BlockId,
        version_id: String,
    ) -> Result<Deleted, WriteError> {
        let hash = id.hash();
        if version_id == NULL_VERSION {
            self.settle(id.clone()).await?;
        } else {
            self.shard_to_write(hash).await?;
        }
        let (turn, _) = self
            .turn_to_write(&id, hash, &WriteCondition::Always)
            .await?;
        let name = VersionName {
            key: id.key.to_string(),
            version_id,
        };
        let number = id.volume.store_number;
        let deleted = self.parts.uplink.delete_version(number, name).await;
        let may_be_done = match &deleted {
            Ok(_) => true,
            Err(error) => error.kind.is_retryable(),
        };
        if may_be_done {
            self.drop_key(hash, &id, turn).await?;
        }
        deleted.map_err(|error| WriteError::Store(Arc::new(error)))
    }

    /// The id of the version that a copy has just made. Ceph does not tell it, and is asked.
    pub(crate) async fn version_copied(&self, id: &BlockId, reply: &PutReply) -> Option<String> {
        id.volume.versions.note_write(reply);
        if reply.version_id.is_some() {
            return reply.version_id.clone();
        }
        if !id.volume.versions.are_kept() {
            return None;
        }
        let (number, key) = (id.volume.store_number, id.key.to_string());
        let head = self.parts.uplink.head(number, key).await.ok()?;
        (head.meta.etag == reply.etag).then_some(head.version_id)?
    }
}

/// A change by a client that is under way. What comes of it is unknown until it is finished.
struct Change(Option<Arc<Shared>>);

impl Change {
    fn begin(versions: &Versions) -> Change {
        if let Some(shared) = &versions.shared {
            shared.changes.fetch_add(1, Ordering::AcqRel);
            let changing = Known::Changing as u8;
            shared.known.store(changing, Ordering::Release);
        }
        Change(versions.shared.clone())
    }

    fn finish(mut self, known: Known, now: u64) {
        if let Some(shared) = self.0.take() {
            shared.changes.fetch_add(1, Ordering::AcqRel);
            shared.asked_at.store(now.max(1), Ordering::Release);
            shared.known.store(known as u8, Ordering::Release);
        }
    }
}

impl Drop for Change {
    /// It failed, or nobody knows: the next write waits for the store's word.
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.changes.fetch_add(1, Ordering::AcqRel);
            shared.asked_at.store(0, Ordering::Release);
            shared.known.store(Known::Nothing as u8, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: StoreErrorKind) -> StoreResult<Versioning> {
        Err(StoreError::new(kind, "scripted"))
    }

    #[test]
    fn a_store_of_another_kind_is_never_asked() {
        let none = Versions::default();
        assert!(!none.may_be_kept() && !none.are_kept() && !none.claim(1_000));
        assert!(none.are_unknown_to_bucket() && !none.is_unasked());
        none.note_id();
        Change::begin(&none).finish(Known::Kept, 5);
        assert!(!none.are_kept());
    }

    #[test]
    fn a_word_is_believed_for_a_while_and_one_asks() {
        let versions = Versions::of_bucket();
        assert!(versions.is_unasked() && versions.claim(1_000) && !versions.claim(1_000));
        let asked = |told: &StoreResult<Versioning>, at: u64| {
            versions.note(told, 0, at);
            let shared = versions.shared.as_ref().expect("a bucket");
            shared.is_asking.store(false, Ordering::Release);
        };
        asked(&error(StoreErrorKind::Unreachable), 1_000);
        assert!(!versions.is_unasked() && !versions.are_kept());
        assert!(!versions.claim(1_000 + UNTOLD_SECONDS - 1));
        assert!(versions.claim(1_000 + UNTOLD_SECONDS));
        asked(&Ok(Versioning::Never), 2_000);
        assert!(!versions.are_kept() && versions.are_unknown_to_bucket());
        assert!(!versions.claim(2_000 + BELIEVED_SECONDS - 1));
        assert!(versions.claim(2_000 + BELIEVED_SECONDS));
        asked(&Ok(Versioning::Suspended), 3_000);
        assert!(versions.are_kept() && !versions.are_unknown_to_bucket());
        // The store that cannot tell takes nothing back.
        asked(&error(StoreErrorKind::Denied), 4_000);
        assert!(versions.are_kept());
        asked(&error(StoreErrorKind::Unsupported), 5_000);
        assert!(!versions.are_kept());
        // A clock that was set back.
        assert!(versions.claim(100));
    }

    #[test]
    fn an_id_says_it_and_has_it_asked() {
        let versions = Versions::of_bucket();
        versions.note(&Ok(Versioning::Never), 0, 1_000);
        versions.note_id();
        assert!(versions.are_kept() && versions.claim(1_001));
    }

    #[test]
    fn what_was_asked_before_a_change_says_nothing_after_it() {
        let versions = Versions::of_bucket();
        let change = Change::begin(&versions);
        assert!(versions.are_kept() && !versions.claim(1_000));
        versions.note(&Ok(Versioning::Never), 0, 1_000);
        assert!(versions.are_kept());
        change.finish(Known::Kept, 1_000);
        versions.note(&Ok(Versioning::Never), 0, 1_001);
        versions.note(&Ok(Versioning::Never), 1, 1_001);
        assert!(versions.are_kept());
        versions.note(&Ok(Versioning::Never), 2, 1_001);
        assert!(!versions.are_kept());
        drop(Change::begin(&versions));
        assert!(!versions.are_kept() && versions.is_unasked());
    }
}
