//! What a core remembers of objects without reading a record, within a budget of bytes.
//!
//! This file owns the bound: names and user metadata make some objects ten times as large as
//! others, so what counts is their bytes. It never decides what is current.

use crate::index::Uniform;
use crate::key::BlockHash;
use forebay_io::runtime::MonoTime;
use forebay_io::store::ObjectMeta;
use lru::LruCache;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

/// Most bytes that a core remembers of objects: some 64 Ki of those that S3 tools write. Beyond
/// it, a description costs one page read.
pub const HEADS_BYTES_MAX: usize = 24 << 20;

/// Bytes of an object's description beside its own strings: the entry, its place in the table at
/// the lowest fill, and the shared description.
const HEAD_BYTES: usize = 320;

/// What the home remembers of an object.
#[derive(Clone)]
pub struct Head {
    /// The object.
    pub meta: Arc<ObjectMeta>,
    /// The store's own ETag where it differs from the one that clients are told.
    pub store_etag: Option<Arc<str>>,
    /// Where it is stored.
    pub store_identity: u64,
    /// When the store last vouched for it; nothing if that is not known or in doubt.
    pub validated: Option<MonoTime>,
    /// Until when it is served unchecked, because the store did not answer.
    pub excused_until: Option<MonoTime>,
}

impl Head {
    /// What the store is asked about: its own ETag of this version.
    pub fn validator(&self) -> &str {
        self.store_etag.as_deref().unwrap_or(&self.meta.etag)
    }

    fn bytes(&self) -> usize {
        let pairs = self.meta.headers.iter();
        let pair_bytes = size_of::<(String, String)>();
        HEAD_BYTES
            + self.meta.etag.capacity()
            + self.store_etag.as_ref().map_or(0, |etag| etag.len())
            + pairs
                .map(|(name, value)| pair_bytes + name.capacity() + value.capacity())
                .sum::<usize>()
    }
}

/// The objects that were asked for last.
pub struct Heads {
    latest: LruCache<BlockHash, Head, BuildHasherDefault<Uniform>>,
    used_bytes: usize,
    budget_bytes: usize,
}

impl Heads {
    /// Remembers at most `budget_bytes`.
    pub fn new(budget_bytes: usize) -> Self {
        Heads {
            latest: LruCache::unbounded_with_hasher(BuildHasherDefault::default()),
            used_bytes: 0,
            budget_bytes,
        }
    }

    /// An object, which becomes the latest.
    pub fn get(&mut self, hash: BlockHash) -> Option<&mut Head> {
        // The caller changes times, never what has a size.
        self.latest.get_mut(&hash)
    }

    /// An object, for a look.
    pub fn peek(&self, hash: BlockHash) -> Option<&Head> {
        self.latest.peek(&hash)
    }

    /// Remembers an object, and forgets those that were not asked for longest.
    pub fn put(&mut self, hash: BlockHash, head: Head) {
        self.remove(hash);
        self.used_bytes += head.bytes();
        self.latest.put(hash, head);
        while self.used_bytes > self.budget_bytes {
            let Some((_, oldest)) = self.latest.pop_lru() else {
                break;
            };
            self.used_bytes -= oldest.bytes();
        }
    }

    /// Forgets an object.
    pub fn remove(&mut self, hash: BlockHash) {
        if let Some(head) = self.latest.pop(&hash) {
            self.used_bytes -= head.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(metadata_bytes: usize) -> Head {
        let meta = ObjectMeta {
            headers: vec![("x-amz-meta-a".into(), "v".repeat(metadata_bytes))],
            ..ObjectMeta::default()
        };
        Head {
            meta: Arc::new(meta),
            store_etag: None,
            store_identity: 0,
            validated: None,
            excused_until: None,
        }
    }

    #[test]
    fn large_descriptions_count_for_more() {
        let mut heads = Heads::new(100_000);
        for number in 0..1000 {
            heads.put(BlockHash(number << 64), head(2000));
            assert!(heads.used_bytes <= 100_000);
        }
        assert!((40..50).contains(&heads.latest.len()));
        assert!(heads.peek(BlockHash(0)).is_none());
        assert!(heads.get(BlockHash(999 << 64)).is_some());
        for number in 0..1000 {
            heads.put(BlockHash(number << 64), head(2));
            heads.remove(BlockHash(number << 64));
        }
        assert_eq!(heads.latest.len() * head(2000).bytes(), heads.used_bytes);
        heads.put(BlockHash(5 << 64), head(1 << 20));
        assert_eq!(
            (heads.latest.len(), heads.used_bytes),
            (0, 0),
            "larger than the budget"
        );
    }
}
