//! The RAM tier of one core: whole payloads of hot blocks, verified when they came in.
//!
//! Least recently used goes first. The budget counts the memory that a payload really holds and
//! is never exceeded. A block is here only while its core considers it the newest.

use crate::format::RecordHeader;
use crate::key::BlockHash;
use forebay_io::buffer::View;
use lru::LruCache;
use std::rc::Rc;

/// A block in memory.
#[derive(Clone)]
pub struct RamBlock {
    /// What its record says of it.
    pub header: Rc<RecordHeader>,
    /// The whole payload.
    pub payload: View,
}

/// Blocks in memory, within a budget.
pub struct RamTier {
    blocks: LruCache<BlockHash, RamBlock>,
    used_bytes: usize,
    budget_bytes: usize,
}

impl RamTier {
    /// A tier that holds at most `budget_bytes`; 0 holds nothing.
    pub fn new(budget_bytes: usize) -> Self {
        RamTier {
            blocks: LruCache::unbounded(),
            used_bytes: 0,
            budget_bytes,
        }
    }

    /// A block, which thereby becomes the most recently used.
    pub fn get(&mut self, hash: BlockHash) -> Option<RamBlock> {
        self.blocks.get(&hash).cloned()
    }

    /// Puts a block in, and others out to make room. One larger than the budget is not kept.
    pub fn insert(&mut self, hash: BlockHash, block: RamBlock) {
        self.remove(hash);
        let cost = block.payload.pinned_bytes();
        if cost > self.budget_bytes {
            return;
        }
        while self.used_bytes + cost > self.budget_bytes {
            let Some((_, oldest)) = self.blocks.pop_lru() else {
                break;
            };
            self.used_bytes -= oldest.payload.pinned_bytes();
        }
        self.used_bytes += cost;
        self.blocks.put(hash, block);
    }

    /// Takes a block out.
    pub fn remove(&mut self, hash: BlockHash) {
        if let Some(block) = self.blocks.pop(&hash) {
            self.used_bytes -= block.payload.pinned_bytes();
        }
    }

    /// Gives up at least `bytes` of memory, oldest first, as far as there is any.
    pub fn shed(&mut self, bytes: usize) {
        let target = self.used_bytes.saturating_sub(bytes);
        while self.used_bytes > target {
            let Some((_, oldest)) = self.blocks.pop_lru() else {
                break;
            };
            self.used_bytes -= oldest.payload.pinned_bytes();
        }
    }

    /// Empties the tier.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.used_bytes = 0;
    }

    /// Bytes of memory held.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Blocks held.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_io::buffer::{PAGE, Pool};

    fn block(pool: &Pool) -> RamBlock {
        let mut writer = pool.try_take(PAGE).expect("budget");
        writer.append(b"x");
        let header = RecordHeader::grave(BlockHash(0));
        RamBlock {
            header: Rc::new(header),
            payload: writer.freeze().view(),
        }
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let pool = Pool::new(1 << 20);
        let mut tier = RamTier::new(2 * 2 * PAGE);
        for n in 0..2 {
            tier.insert(BlockHash(n), block(&pool));
        }
        assert!(tier.get(BlockHash(0)).is_some());
        tier.insert(BlockHash(2), block(&pool));
        assert!(tier.get(BlockHash(1)).is_none() && tier.get(BlockHash(0)).is_some());
        assert_eq!(tier.used_bytes(), 4 * PAGE);
        assert_eq!(
            pool.used_bytes(),
            4 * PAGE,
            "what left the tier went back to the pool"
        );
        tier.insert(BlockHash(2), block(&pool));
        assert_eq!(tier.len(), 2);
        tier.remove(BlockHash(0));
        tier.clear();
        assert_eq!((tier.used_bytes(), pool.used_bytes()), (0, 0));
        RamTier::new(PAGE).insert(BlockHash(9), block(&pool));
        assert_eq!(pool.used_bytes(), 0, "too large for the tier");
    }
}
