//! The names of what is dirty on one core, for lists: in order, page by page.
//!
//! This file owns the answer to "which objects does this core alone have". The order of uploads knows
//! dirty blocks by their hash only, so names are read from the headers of their records and kept in
//! bounded memory; what does not fit is read again for each page. Nothing here changes anything.
//!
//! No dirty block is missed that is acknowledged before the question: what the schedule knows, what
//! writers hold back from it and what is on its way back into it is looked at in one step, without a
//! pause. In what follows a block may become clean: then the store has it already, and whoever asks
//! the store after this core finds it there.

use crate::core::Core;
use crate::index::BlockMap;
use crate::key::{BlockHash, Volume};
use crate::marks::MarkPlace;
use crate::record::ReadFailure;
use forebay_io::disk::Disk;
use forebay_io::listing::{ListPage, ListRequest, ListedObject, PageBuilder, Wanted};
use forebay_io::runtime::Runtime;
use futures::stream::{self, StreamExt};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Memory for names on each core, bytes: sixty thousand of 100 bytes. Beyond it a page of a list
/// costs a read of 4 KiB for each dirty block whose name is not kept.
pub const NAMES_BYTES_MAX: usize = 16 << 20;

/// What a name takes beside its strings, bytes: the entry, and its place in the table.
const NAME_BYTES: usize = 160;

/// Headers that are read at a time: enough to keep a disk busy, few enough to leave it to others.
const READS_MAX: usize = 32;

/// Blocks whose hashes are taken down at a time, 16 bytes each. Of more dirty blocks, parts are
/// looked at one after the other, told apart by their hashes.
const PART_BLOCKS_MAX: u64 = 128 << 10;

/// Blocks that are looked at before others on the core have their turn: some tens of microseconds.
const PAUSE_BLOCKS: usize = 256;

/// Times that a record is followed that moves while it is read.
const READ_ROUNDS_MAX: usize = 4;

/// How long a list waits for shards that are still being loaded, or looked through.
const LOAD_WAIT_MAX: Duration = Duration::from_secs(5);

/// How often it looks whether they are here.
const LOAD_PAUSE: Duration = Duration::from_millis(10);

/// Why what is dirty could not be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    /// After a start, what is dirty is not all known yet.
    #[error("part of the cache is still loading after a start")]
    Loading,
    /// The disk did not give the name of a dirty block.
    #[error("the disk does not answer")]
    Disk,
    /// A core is gone.
    #[error("a core is gone")]
    CoreGone,
}

/// An object as its dirty record describes it.
struct Named {
    /// Of the record that was read: another one may be of other content.
    place: MarkPlace,
    volume: Box<str>,
    store_identity: u64,
    object: ListedObject,
}

impl Named {
    fn bytes(&self) -> usize {
        NAME_BYTES + self.volume.len() + self.object.key.len() + self.object.etag.len()
    }
}

/// The names that were read, as far as there is memory for them.
#[derive(Default)]
pub(crate) struct Names {
    known: BlockMap<Rc<Named>>,
    used_bytes: usize,
}

impl Names {
    fn find(&self, hash: BlockHash, place: MarkPlace) -> Option<Rc<Named>> {
        let named = self.known.get(&hash)?;
        (named.place == place).then(|| named.clone())
    }

    fn keep(&mut self, hash: BlockHash, named: &Rc<Named>) {
        self.forget(hash);
        if self.used_bytes + named.bytes() <= NAMES_BYTES_MAX {
            self.used_bytes += named.bytes();
            self.known.insert(hash, named.clone());
        }
    }

    fn forget(&mut self, hash: BlockHash) {
        if let Some(former) = self.known.remove(&hash) {
            self.used_bytes -= former.bytes();
        }
    }

    /// Forgets all but the blocks that are dirty.
    fn retain(&mut self, is_dirty: impl Fn(BlockHash) -> bool) {
        let used_bytes = &mut self.used_bytes;
        self.known.retain(|hash, named| {
            let stays = is_dirty(*hash);
            *used_bytes -= if stays { 0 } else { named.bytes() };
            stays
        });
    }
}

/// The first names of a page, of objects that come in no order.
struct Selection<'r> {
    request: &'r ListRequest,
    /// By name; `None` is a common prefix.
    first: BTreeMap<String, Option<Rc<Named>>>,
    is_cut: bool,
}

impl Selection<'_> {
    fn offer(&mut self, named: &Rc<Named>) {
        let key = named.object.key.as_str();
        let Some(name) = self.request.name_of(key) else {
            return;
        };
        let is_object = self.request.common_prefix(key).is_none();
        let entry = is_object.then(|| named.clone());
        self.first.insert(name.to_owned(), entry);
        if self.first.len() > self.request.limit {
            self.first.pop_last();
            self.is_cut = true;
        }
    }

    fn finish(self) -> ListPage {
        let mut page = PageBuilder::new(self.request);
        for (name, named) in self.first {
            match named {
                Some(named) => page.add_object(named.object.clone()),
                None => {
                    debug_assert_eq!(page.wants(&name), Wanted::Presence);
                    page.add_presence(&name);
                }
            }
        }
        page.finish(self.is_cut)
    }
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// A page of the list of a volume's dirty objects on this core: those that it serves in place of
    /// what the store has.
    ///
    /// # Errors
    /// [`NamesError::Loading`] soon after a start, [`NamesError::Disk`] if a name cannot be read.
    pub async fn list_dirty(
        self: &Rc<Self>,
        volume: &Volume,
        request: &ListRequest,
    ) -> Result<ListPage, NamesError> {
        self.all_dirty_known().await?;
        let mut selection = Selection {
            request,
            first: BTreeMap::new(),
            is_cut: false,
        };
        let parts = self
            .uploads
            .dirty_blocks_max()
            .div_ceil(PART_BLOCKS_MAX)
            .max(1);
        for part in 0..parts {
            let blocks = self.uploads.dirty_blocks_of(part, parts);
            let mut unread = Vec::new();
            for (count, hash) in blocks.into_iter().enumerate() {
                match self.known_name(hash) {
                    Some(Ok(named)) => offer(&mut selection, volume, &named),
                    Some(Err(())) => unread.push(hash),
                    None => {}
                }
                if count % PAUSE_BLOCKS == PAUSE_BLOCKS - 1 {
                    self.parts.runtime.yield_now().await;
                }
            }
            let mut reads = stream::iter(unread)
                .map(|hash| self.read_name(hash))
                .buffer_unordered(READS_MAX);
            while let Some(read) = reads.next().await {
                if let Some(named) = read? {
                    offer(&mut selection, volume, &named);
                }
            }
        }
        self.forget_names_of_clean_blocks();
        Ok(selection.finish())
    }

    /// Looks at every name that is kept, so only when there must be many to forget.
    fn forget_names_of_clean_blocks(&self) {
        let dirty = self.uploads.dirty_blocks_max() as usize;
        let mut names = self.names.borrow_mut();
        if names.known.len() > dirty + dirty / 4 + PAUSE_BLOCKS {
            names.retain(|hash| self.is_dirty(hash));
        }
    }

    /// Waits until all that is dirty from before the start is in the schedule.
    async fn all_dirty_known(&self) -> Result<(), NamesError> {
        let began = self.parts.runtime.now();
        let shards = &self.parts.shards;
        while shards.loaded_count() < shards.len() || self.uploads.unread_shards.get() > 0 {
            if self.parts.runtime.now().since(began) >= LOAD_WAIT_MAX {
                return Err(NamesError::Loading);
            }
            self.parts.runtime.sleep(LOAD_PAUSE).await;
        }
        Ok(())
    }

    /// What is known of a block without reading: `None` if it is not dirty, or not served; an error
    /// if it is and has to be read.
    fn known_name(&self, hash: BlockHash) -> Option<Result<Rc<Named>, ()>> {
        // What is in conflict is passed by: the store's object is served.
        if self.uploads.is_conflict(hash) {
            return None;
        }
        let shard = self.shard(hash)?;
        let location = shard.find(hash).filter(|_| shard.is_dirty(hash))?;
        let place = shard.mark_place(location);
        let named = place.and_then(|place| self.names.borrow().find(hash, place));
        Some(named.ok_or(()))
    }

    /// Reads a dirty block's name from its record; `None` if it is not dirty any more, or damaged:
    /// then nobody can tell what it was called, and it is quarantined.
    async fn read_name(&self, hash: BlockHash) -> Result<Option<Rc<Named>>, NamesError> {
        for _ in 0..READ_ROUNDS_MAX {
            match self.known_name(hash) {
                None => return Ok(None),
                Some(Ok(named)) => return Ok(Some(named)),
                Some(Err(())) => {}
            }
            let found = self.shard(hash);
            let found = found.and_then(|shard| Some((shard.find(hash)?, shard)));
            let Some((location, shard)) = found else {
                return Ok(None);
            };
            let place = shard.mark_place(location);
            let header = match self.header_at(&shard, hash, location).await {
                Some(Ok(header)) => header,
                Some(Err(ReadFailure::Gone)) => continue,
                Some(Err(ReadFailure::Damaged(_))) => return Ok(None),
                Some(Err(ReadFailure::Disk(_))) | None => return Err(NamesError::Disk),
            };
            let Some(place) = place else { continue };
            let named = Rc::new(Named {
                place,
                volume: header.volume.into(),
                store_identity: header.store_identity,
                object: ListedObject {
                    key: header.key,
                    size: header.meta.size,
                    etag: header.meta.etag,
                    last_modified_ms: header.meta.last_modified * 1000,
                },
            });
            self.names.borrow_mut().keep(hash, &named);
            return Ok(Some(named));
        }
        Err(NamesError::Disk)
    }
}

/// A record counts for the volume and the store that it was written for.
fn offer(selection: &mut Selection<'_>, volume: &Volume, named: &Rc<Named>) {
    if *named.volume == *volume.name && named.store_identity == volume.store_identity {
        selection.offer(named);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(key: &str, page: u32) -> Rc<Named> {
        Rc::new(Named {
            place: MarkPlace {
                segment: 1,
                incarnation: 1,
                page,
            },
            volume: "v".into(),
            store_identity: 1,
            object: ListedObject {
                key: key.to_owned(),
                ..ListedObject::default()
            },
        })
    }

    #[test]
    fn names_are_kept_within_their_memory_and_for_one_record() {
        let mut names = Names::default();
        let key = "k".repeat(1000);
        for number in 0..40_000_u128 {
            names.keep(BlockHash(number << 64), &named(&key, 7));
            assert!(names.used_bytes <= NAMES_BYTES_MAX);
        }
        let kept = names.known.len();
        assert!(kept > 10_000 && kept < 40_000);
        let first = BlockHash(0);
        assert!(names.find(first, named("", 7).place).is_some());
        assert!(names.find(first, named("", 8).place).is_none());
        names.keep(first, &named(&key, 8));
        assert!(names.find(first, named("", 8).place).is_some());
        names.retain(|hash| hash == first);
        assert_eq!(
            (names.known.len(), names.used_bytes),
            (1, named(&key, 8).bytes())
        );
        names.forget(first);
        assert_eq!(names.used_bytes, 0);
    }

    #[test]
    fn a_selection_is_the_first_of_what_comes_in_no_order() {
        let request = ListRequest {
            delimiter: Some("/".into()),
            after: "a".into(),
            limit: 3,
            ..ListRequest::default()
        };
        let mut selection = Selection {
            request: &request,
            first: BTreeMap::new(),
            is_cut: false,
        };
        for key in ["z", "d/2", "b", "d/1", "a", "c", "d/3"] {
            selection.offer(&named(key, 1));
        }
        let page = selection.finish();
        let names: Vec<&str> = page.entries.iter().map(|entry| entry.name()).collect();
        assert_eq!(names, ["b", "c", "d/"]);
        assert_eq!(page.complete_to.as_deref(), Some("d/"));
    }
}
