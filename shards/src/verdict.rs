//! Whose the store's object is: what an upload may meet, and what it makes of it.
//!
//! This file owns the rule that an upload never overwrites what is newer. It says when the store must
//! be asked first, and compares what it has with the record, with versions of ours that may be on
//! their way, and with what was known when the write was acknowledged. It sends nothing and changes
//! nothing that is on disk.

use crate::core::Core;
use crate::format::{RecordHeader, content_name};
use crate::key::{BlockHash, Volume};
use crate::schedule::Ended;
use crate::upload::{Outgoing, cause_of, failed};
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;
use forebay_io::store::{ObjectHead, StoreErrorKind};
use md5::{Digest, Md5};

/// An upload of a record that was acknowledged longer ago asks the store first whether somebody
/// else has written the key since.
const UNASKED_AGE_MAX_SECONDS: u64 = 60;

/// Failed writes through that are remembered: some hundred KiB, and more than a store of which the
/// answers get lost leaves in the minutes that matter.
const IN_DOUBT_MAX: usize = 4096;

/// Contents that a record names as perhaps on their way: each is one more kill between a write and
/// its upload. They must fit a header beside the longest names.
const ON_THEIR_WAY_MAX: usize = 4;

/// Bytes that are hashed before other tasks of the core have their turn.
const HASHED_AT_ONCE_BYTES: usize = 256 << 10;

/// What the store's own version means for a record that is to be uploaded.
pub(crate) enum Verdict {
    /// Nobody has written the key since.
    Upload,
    /// The store has this very content, under this ETag.
    Same(String),
    /// Somebody has.
    Newer(String),
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Whether an upload may meet something newer: it was tried before, comes from a former run, or
    /// is late.
    pub(crate) fn must_ask(&self, hash: BlockHash, outgoing: &Outgoing) -> bool {
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
    pub(crate) async fn ask(
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
        if let Some((former, is_tried)) = self.former_dirty(hash).await {
            let name = content_name(former.payload_crc64, "");
            if is_tried && !names.iter().any(|known| known[..16] == name[..16]) {
                names.push(name);
            }
            // Also of one that was not tried: what was on its way before it is so after it.
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

    /// The dirty record of a block, and whether its upload has been tried, or may have been by a
    /// former run.
    async fn former_dirty(&self, hash: BlockHash) -> Option<(RecordHeader, bool)> {
        let shard = self.shard(hash)?;
        let location = shard.find(hash).filter(|_| shard.is_dirty(hash))?;
        let age = self.uploads.schedule.borrow().age(hash);
        let tried = self.uploads.schedule.borrow().attempts(hash) > 0;
        let is_tried = tried || age.is_none_or(|age| shard.is_inherited(age.sequence));
        let header = self.header_at(&shard, hash, location).await?.ok()?;
        Some((header, is_tried))
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
