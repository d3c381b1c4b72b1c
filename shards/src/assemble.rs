//! Putting blocks together from what the cache has under other names.
//!
//! This file owns the way from "a block of this version is missing" to its bytes without the store: it
//! asks the object's home how the version was put together, and the cores that own the places for their
//! bytes. It takes all of a block or nothing, and never a byte of another version; whoever is refused
//! here asks the store.

use crate::core::Core;
use crate::format::PayloadChecksums;
use crate::key::BlockId;
use crate::messages::Message;
use crate::parts::{Assembly, Place};
use forebay_io::buffer::{BufferWriter, View};
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;
use forebay_io::store::ObjectMeta;
use std::sync::Arc;

/// Bytes that are copied and checksummed before other tasks of the core have their turn.
const COPIED_AT_ONCE_BYTES: usize = 512 << 10;

impl<R: Runtime, D: Disk> Core<R, D> {
    /// How the version of an object that `meta` describes was put together, if its home knows.
    pub(crate) fn find_assembly(
        &self,
        home: &BlockId,
        meta: &Arc<ObjectMeta>,
    ) -> Option<Arc<Assembly>> {
        self.assemblies.borrow_mut().find(home.hash(), meta)
    }

    /// A block of the version that `meta` describes, from other names of its bytes.
    pub(crate) async fn assemble(
        &self,
        id: &BlockId,
        meta: &Arc<ObjectMeta>,
    ) -> Option<(BufferWriter, PayloadChecksums)> {
        let assembly = self.assembly_of(id, meta).await?;
        let places = assembly.places(&id.volume, id.number)?;
        // All of them before the block has a buffer: who holds memory must not wait for more of it.
        let mut views = Vec::with_capacity(places.len());
        for place in places {
            views.push(self.bytes_at(place).await?);
        }
        let bytes: usize = views.iter().map(|view| view.len()).sum();
        let mut buffer = self.take_buffer(bytes).await.ok()?;
        let mut checksums = PayloadChecksums::default();
        for view in views {
            for piece in view.chunks(COPIED_AT_ONCE_BYTES) {
                checksums.update(piece);
                buffer.append(piece);
                self.parts.runtime.yield_now().await;
            }
        }
        buffer.finish();
        self.stats.assembled.add(1);
        self.stats.assembled_bytes.add(bytes as u64);
        Some((buffer, checksums))
    }

    async fn assembly_of(&self, id: &BlockId, meta: &Arc<ObjectMeta>) -> Option<Arc<Assembly>> {
        let home = id.sibling(0);
        let owner = self.parts.topology.core_of(home.hash());
        if owner == self.parts.index {
            return self.find_assembly(&home, meta);
        }
        let peers = self.peers.borrow().upgrade()?;
        let message = |reply| Message::FindAssembly(home, meta.clone(), reply);
        peers.ask(owner, message).await.flatten()
    }

    async fn bytes_at(&self, place: Place) -> Option<View> {
        let wanted = place.range.len();
        let owner = self.parts.topology.core_of(place.id.hash());
        let view = match owner == self.parts.index {
            true => self.peek(place).await?,
            false => {
                let peers = self.peers.borrow().upgrade()?;
                let message = |reply| Message::Peek(Box::new(place), reply);
                peers.ask(owner, message).await.flatten()?
            }
        };
        (view.len() == wanted).then_some(view)
    }
}
