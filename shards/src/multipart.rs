//! Objects from parts and from other objects: what the home of such an object does.
//!
//! A part itself belongs to nobody's order: the store keeps it under its upload's name. Only when the
//! object is made of them, or copied, does its key have a turn, and everything that is said in
//! [`crate::write`] of a write that goes through holds. What the cache has of the object's bytes is
//! remembered ([`crate::parts`]), so that no block of it is fetched; nothing is written for that.

use crate::core::Core;
use crate::key::{BlockHash, BlockId};
use crate::messages::{
    CompleteObject, CopyFrom, CopyObject, Message, ReadError, WriteError, Written,
};
use crate::parts::{Assembly, KnownParts, NotedPart, Origin, Piece, is_body};
use crate::write::{Change, Terms};
use forebay_io::disk::Disk;
use forebay_io::multipart::{
    CompleteRequest, CompletedPart, CopyRequest, CopySource, PartsRequest, UploadName,
};
use forebay_io::runtime::Runtime;
use forebay_io::store::{CHECKSUM_PREFIX, ObjectMeta, PutReply};
use std::rc::Rc;
use std::sync::Arc;

/// Parts that a store is asked to describe at a time: S3's own limit.
const PARTS_PAGE_MAX: usize = 1000;

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Notes a part that the store has taken. What the cache has of a part that it replaces is of no
    /// use any more.
    pub(crate) fn note_part(self: &Rc<Self>, home: &BlockId, upload_id: &str, part: NotedPart) {
        let mut assemblies = self.assemblies.borrow_mut();
        let former = assemblies.note(home.hash(), upload_id, part);
        self.discard_bodies(home, former);
    }

    /// What is known of an upload's parts without the store.
    pub(crate) fn known_parts(&self, home: &BlockId, upload_id: &str) -> KnownParts {
        self.assemblies.borrow().known(home.hash(), upload_id)
    }

    /// Forgets an upload that was given up, and what the cache has of it.
    pub(crate) fn end_upload(self: &Rc<Self>, home: &BlockId, upload_id: &str) {
        let known = self.assemblies.borrow_mut().end(home.hash(), upload_id);
        self.discard_bodies(home, known.into_values());
    }

    /// Makes an object from its parts.
    pub(crate) async fn complete(
        self: &Rc<Self>,
        object: CompleteObject,
    ) -> Result<Written, WriteError> {
        let CompleteObject {
            id,
            upload_id,
            parts,
            condition,
            headers,
        } = object;
        let hash = id.hash();
        self.shard_to_write(hash).await?;
        self.settle_kept(&id, hash).await?;
        let (turn, terms) = self.turn_to_write(&id, hash, &condition).await?;
        let upload = UploadName {
            key: id.key.to_string(),
            upload_id: upload_id.clone(),
        };
        let chosen = self.choose_parts(&id, hash, &upload, &parts).await;
        let request = CompleteRequest {
            upload,
            parts,
            if_none_match: terms.if_none_match,
            headers,
        };
        let change = Change {
            hash,
            id: &id,
            terms: &terms,
            crc64nvme: None,
        };
        let number = id.volume.store_number;
        let completing = self.parts.uplink.complete_upload(number, request);
        let (reply, turn) = self.change_store(change, turn, completing).await?;
        let described = self.describe_written(&id, &reply).await;
        id.volume.versions.note_write(&reply);
        let version_id = reply.version_id.clone();
        let meta = described.clone().unwrap_or_else(|| {
            let sizes = chosen.iter().flatten().map(|part| part.size);
            self.written_meta(reply, sizes.sum(), Vec::new())
        });
        let unused = self.assemblies.borrow_mut().end(hash, &upload_id);
        if let Some(chosen) = chosen {
            self.discard_unused(&id, unused, &chosen);
            let assembly = Assembly::new(meta.etag.clone(), chosen);
            self.assemblies.borrow_mut().remember(hash, assembly);
        }
        self.cache_written(hash, id, described, None, turn).await?;
        Ok(Written {
            meta,
            is_dirty: false,
            version_id,
        })
    }

    /// The parts that an object is to be made of, with what is known of each; `None` if of one not even
    /// the size can be found out.
    async fn choose_parts(
        &self,
        id: &BlockId,
        hash: BlockHash,
        upload: &UploadName,
        listed: &[CompletedPart],
    ) -> Option<Vec<NotedPart>> {
        let known = self.assemblies.borrow().known(hash, &upload.upload_id);
        let find = |known: &KnownParts, part: &CompletedPart| {
            let noted = known.get(&part.number);
            noted.filter(|noted| noted.etag == part.etag).cloned()
        };
        let chosen: Option<Vec<NotedPart>> = listed.iter().map(|part| find(&known, part)).collect();
        if chosen.is_some() {
            return chosen;
        }
        // Some came by another way, or before the last start.
        let stored = self.stored_parts(id, upload).await?;
        let parts = listed.iter().map(|part| {
            let stored = || find(&stored, part);
            find(&known, part).or_else(stored)
        });
        parts.collect()
    }

    /// What the store knows of an upload's parts.
    async fn stored_parts(&self, id: &BlockId, upload: &UploadName) -> Option<KnownParts> {
        let mut found = KnownParts::new();
        let mut after = 0;
        loop {
            let request = PartsRequest {
                upload: upload.clone(),
                after,
                limit: PARTS_PAGE_MAX,
            };
            let number = id.volume.store_number;
            let page = self.parts.uplink.list_parts(number, request).await.ok()?;
            let last = page.parts.last().map(|part| part.number);
            found.extend(page.parts.into_iter().map(|part| {
                let noted = NotedPart {
                    number: part.number,
                    etag: part.etag,
                    size: part.size,
                    checksum: None,
                    piece: None,
                };
                (part.number, noted)
            }));
            match last.filter(|last| page.is_truncated && *last > after) {
                Some(last) => after = last,
                None => return Some(found),
            }
        }
    }

    /// The object that the store has just made, in its own words; `None` if it does not say, or if it
    /// is another one already.
    async fn describe_written(&self, id: &BlockId, reply: &PutReply) -> Option<Arc<ObjectMeta>> {
        let number = id.volume.store_number;
        let head = self.parts.uplink.head(number, id.key.to_string()).await;
        let meta = head.ok()?.meta;
        (meta.etag == reply.etag).then(|| Arc::new(meta))
    }

    /// Describes an object that is to be copied.
    pub(crate) async fn describe_source(
        self: &Rc<Self>,
        id: BlockId,
    ) -> Result<CopyFrom, ReadError> {
        let hash = id.hash();
        let meta = self.open(id, None).await?.meta;
        let is_here_alone = self.is_here_alone(hash);
        let store_etag = {
            let heads = self.heads.borrow();
            let head = heads.peek(hash).filter(|head| head.meta.etag == meta.etag);
            head.map(|head| head.validator().to_owned())
        };
        let store_etag = store_etag.unwrap_or_else(|| meta.etag.clone());
        Ok(CopyFrom {
            meta,
            store_etag: (!is_here_alone).then_some(store_etag),
            version_id: None,
        })
    }

    /// Copies an object inside its store.
    pub(crate) async fn copy(self: &Rc<Self>, object: CopyObject) -> Result<Written, WriteError> {
        let CopyObject {
            id,
            source,
            from,
            headers,
        } = object;
        let hash = id.hash();
        self.shard_to_write(hash).await?;
        self.settle_kept(&id, hash).await?;
        let (turn, terms) = (self.turn(hash).await?, Terms::default());
        // A weak or missing tag binds nothing.
        let tag = from.store_etag.clone();
        let request = CopyRequest {
            source: CopySource {
                key: source.to_string(),
                if_match: tag.filter(|tag| !tag.is_empty() && !tag.starts_with("W/")),
                version_id: from.version_id.clone(),
            },
            key: id.key.to_string(),
            headers: headers.clone(),
        };
        let change = Change {
            hash,
            id: &id,
            terms: &terms,
            crc64nvme: None,
        };
        let copying = self.parts.uplink.copy(id.volume.store_number, request);
        let (reply, turn) = self.change_store(change, turn, copying).await?;
        let version_id = self.version_copied(&id, &reply).await;
        let headers = headers.unwrap_or_else(|| copied_headers(&from.meta));
        let meta = self.written_meta(reply, from.meta.size, headers);
        let piece = Piece {
            origin: Origin::Object {
                key: source,
                etag: from.meta.etag.as_str().into(),
            },
            size: from.meta.size,
            start: 0,
        };
        let assembly = Assembly::copy(meta.etag.clone(), piece);
        self.assemblies.borrow_mut().remember(hash, assembly);
        self.cache_written(hash, id, Some(meta.clone()), None, turn)
            .await?;
        Ok(Written {
            meta,
            is_dirty: false,
            version_id,
        })
    }

    /// Forgets what the cache has of parts that the object is not made of.
    fn discard_unused(self: &Rc<Self>, home: &BlockId, known: KnownParts, used: &[NotedPart]) {
        let is_used = |part: &NotedPart| {
            let at = used.binary_search_by_key(&part.number, |used| used.number);
            at.is_ok_and(|at| used[at].piece == part.piece)
        };
        self.discard_bodies(home, known.into_values().filter(|part| !is_used(part)));
    }

    /// Lets their owners forget the bodies of some parts. Best effort: what stays is evicted as any
    /// other block that nobody reads.
    fn discard_bodies(self: &Rc<Self>, home: &BlockId, parts: impl IntoIterator<Item = NotedPart>) {
        let pieces = parts.into_iter().filter_map(|part| part.piece);
        let bodies = pieces.filter(|piece| matches!(piece.origin, Origin::Body(_)));
        let bodies: Vec<Piece> = bodies.collect();
        if bodies.is_empty() {
            return;
        }
        let (core, volume) = (self.clone(), home.volume.clone());
        self.parts.runtime.spawn(async move {
            for body in bodies {
                core.discard_everywhere(body.blocks(&volume)).await;
            }
        });
    }

    /// Lets their owners forget blocks of bodies.
    pub(crate) async fn discard_everywhere(&self, blocks: Vec<BlockId>) {
        let topology = self.parts.topology;
        let mut of_core: Vec<Vec<BlockId>> = vec![Vec::new(); topology.cores()];
        for id in blocks {
            of_core[topology.core_of(id.hash())].push(id);
        }
        for (owner, ids) in of_core.into_iter().enumerate() {
            if owner == self.parts.index {
                self.discard(&ids);
            } else if !ids.is_empty() {
                let peers = self.peers.borrow().upgrade();
                let Some(peers) = peers else {
                    return;
                };
                peers.ask(owner, |reply| Message::Discard(ids, reply)).await;
            }
        }
    }

    /// Forgets blocks of bodies of parts.
    pub(crate) fn discard(&self, ids: &[BlockId]) {
        for id in ids {
            assert!(is_body(id), "only what has no other name is discarded");
            self.forget(id.hash());
        }
    }
}

/// What a copy has of its source's headers. The checksum of an object that came in parts may be one of
/// theirs; that of a copy is of its bytes.
fn copied_headers(source: &ObjectMeta) -> Vec<(String, String)> {
    let is_of_parts = source.etag.contains('-');
    let headers = source.headers.iter();
    let kept = headers.filter(|(name, _)| !is_of_parts || !name.starts_with(CHECKSUM_PREFIX));
    kept.cloned().collect()
}
