//! Tags of objects, which the store keeps.
//!
//! This file owns what that means for what the store does not have yet: an object that waits for its
//! upload has no tags, and one that is given some goes to the store first. Nothing is cached.

use crate::core::Core;
use crate::key::{BlockHash, BlockId};
use crate::messages::{ReadError, WriteError};
use crate::write::{Terms, ThroughWrite};
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;
use forebay_io::store::StoreErrorKind;
use forebay_io::tags::Tags;
use forebay_io::uplink::UploadBody;
use std::rc::Rc;
use std::sync::Arc;

impl<R: Runtime, D: Disk> Core<R, D> {
    /// The tags of an object.
    ///
    /// # Errors
    /// As a read; the store's `Unsupported` where it keeps none.
    pub(crate) async fn tags(self: &Rc<Self>, id: BlockId) -> Result<Tags, ReadError> {
        let hash = id.hash();
        self.shard_to_read(&id.volume, hash).await?;
        if self.is_here_alone(hash) {
            return Ok(Tags::new());
        }
        let (number, key) = (id.volume.store_number, id.key.to_string());
        let tags = self.parts.uplink.tags(number, key).await;
        tags.map_err(|error| match error.kind {
            StoreErrorKind::NotFound => ReadError::NotFound,
            _ => ReadError::Store(Arc::new(error)),
        })
    }

    /// Replaces the tags of an object, in the turn of its key.
    ///
    /// # Errors
    /// As a write that goes through.
    pub(crate) async fn set_tags(
        self: &Rc<Self>,
        id: BlockId,
        tags: Tags,
    ) -> Result<(), WriteError> {
        let hash = id.hash();
        self.shard_to_write(hash).await?;
        if self.is_here_alone(hash) {
            if tags.is_empty() {
                return Ok(());
            }
            self.carry_through(&id, hash).await?;
        }
        let _turn = self.turn(hash).await?;
        let (number, key) = (id.volume.store_number, id.key.to_string());
        let set = self.parts.uplink.set_tags(number, key, tags).await;
        set.map_err(|error| WriteError::Store(Arc::new(error)))
    }

    /// Writes what waits for its upload through to the store now.
    pub(crate) async fn carry_through(
        self: &Rc<Self>,
        id: &BlockId,
        hash: BlockHash,
    ) -> Result<(), WriteError> {
        let turn = self.turn(hash).await?;
        let shard = self.shard(hash).filter(|_| self.is_here_alone(hash));
        let Some((shard, location)) =
            shard.and_then(|shard| Some((shard.clone(), shard.find(hash)?)))
        else {
            return Ok(());
        };
        let Some(Ok(found)) = self.record_at(&shard, hash, location).await else {
            return Err(WriteError::Stalled);
        };
        let write = ThroughWrite {
            id: id.clone(),
            headers: found.header.meta.headers,
            late: None,
            length: u64::from(location.payload_length),
            crc64nvme: Some(found.header.payload_crc64),
            terms: Terms::default(),
            body: UploadBody::Whole(vec![found.wanted]),
            payload: None,
        };
        self.put_through(hash, write, turn).await.map(drop)
    }
}
