//! The RAM tier of one core: whole payloads of hot blocks, verified when they came in.
//!
//! What is hot is decided in [`hot`]; this file owns what it costs: the memory that a payload
//! really holds, and that of its description. Their sum never exceeds the budget. A block is here
//! only while its core considers it the newest.

pub mod hot;

use crate::format::RecordHeader;
use crate::key::BlockHash;
use forebay_io::buffer::View;
use hot::HotSet;
use std::rc::Rc;

/// Bytes for a block's place in the tier's tables, beside its header and payload: an entry of the
/// queue and one of its map, at the lowest fill that a map has after it grew.
const ENTRY_BYTES: usize = 192;

/// A block in memory.
#[derive(Clone)]
pub struct RamBlock {
    /// What its record says of it.
    pub header: Rc<RecordHeader>,
    /// The whole payload.
    pub payload: View,
}

impl RamBlock {
    /// All memory that is held for it.
    fn cost_bytes(&self) -> usize {
        self.payload.pinned_bytes() + header_bytes(&self.header) + ENTRY_BYTES
    }
}

/// Memory of a header and what it points to.
fn header_bytes(header: &RecordHeader) -> usize {
    let meta = &header.meta;
    let pairs = meta.headers.iter();
    let pair_bytes = size_of::<(String, String)>();
    size_of::<RecordHeader>()
        + header.volume.capacity()
        + header.key.capacity()
        + header.chunk_crcs.capacity() * size_of::<u32>()
        + meta.etag.capacity()
        + pairs
            .map(|(name, value)| pair_bytes + name.capacity() + value.capacity())
            .sum::<usize>()
}

/// Hot blocks in memory, within a budget.
pub struct RamTier {
    blocks: HotSet<RamBlock>,
    /// Bytes of payload memory held: part of the pool's, and of what the budget counts.
    pinned_bytes: usize,
}

impl RamTier {
    /// A tier that holds at most `budget_bytes`; 0 holds nothing.
    pub fn new(budget_bytes: usize) -> Self {
        RamTier {
            blocks: HotSet::new(budget_bytes),
            pinned_bytes: 0,
        }
    }

    /// A block that is here, for which this is a hit.
    pub fn get(&mut self, hash: BlockHash) -> Option<RamBlock> {
        self.blocks.get(hash).cloned()
    }

    /// Notes a read of `bytes` of a block of `length` that is not here. Returns whether the block
    /// is hot by now, so that whoever has all of it should insert it.
    pub fn note_read(&mut self, hash: BlockHash, bytes: usize, length: usize) -> bool {
        self.blocks.note_read(hash, bytes as u64, length as u64)
    }

    /// Puts a block in if it has become hot, and others out to make room. One that costs more than
    /// the budget is not kept.
    pub fn insert_if_hot(&mut self, hash: BlockHash, block: RamBlock) {
        if self.blocks.is_wanted(hash, block.payload.len() as u64) {
            self.insert(hash, block);
        }
    }

    fn insert(&mut self, hash: BlockHash, block: RamBlock) {
        let cost = block.cost_bytes();
        self.pinned_bytes += block.payload.pinned_bytes();
        let pinned_bytes = &mut self.pinned_bytes;
        self.blocks.insert(hash, block, cost, |gone| {
            *pinned_bytes -= gone.payload.pinned_bytes();
        });
    }

    /// Takes a block out that is no longer the newest. What was hot is remembered as read once, so
    /// that the first read of what replaces it brings that in.
    pub fn remove(&mut self, hash: BlockHash) {
        if let Some(block) = self.blocks.remove(hash) {
            self.pinned_bytes -= block.payload.pinned_bytes();
            let length = block.payload.len() as u64;
            self.blocks.note_read(hash, length, length);
        }
    }

    /// Gives up at least `bytes` of payload memory, least wanted blocks first, but never below
    /// half of its budget: a crowd of requests for cold blocks waits for each other's buffers
    /// rather than empty the tier.
    pub fn shed(&mut self, bytes: usize) {
        let floor = self.blocks.budget_bytes() / 2;
        let target = self.pinned_bytes.saturating_sub(bytes).max(floor);
        let pinned_bytes = &mut self.pinned_bytes;
        while *pinned_bytes > target {
            // What is said of blocks counts too, so this may take a few rounds.
            let missing = *pinned_bytes - target;
            self.blocks
                .shed(missing, |gone| *pinned_bytes -= gone.payload.pinned_bytes());
        }
    }

    /// Empties the tier.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.pinned_bytes = 0;
    }

    /// Bytes of payload memory held, which the pool counts too.
    pub fn pinned_bytes(&self) -> usize {
        self.pinned_bytes
    }

    /// Bytes held in all: what the budget bounds.
    pub fn used_bytes(&self) -> usize {
        self.blocks.used_bytes()
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

    /// Reads a block as often as makes it hot.
    fn heat(tier: &mut RamTier, number: u128) -> bool {
        let hash = BlockHash(number << 64);
        tier.note_read(hash, 1, 1);
        tier.note_read(hash, 1, 1)
    }

    #[test]
    fn what_leaves_the_tier_goes_back_to_the_pool() {
        let pool = Pool::new(1 << 20);
        let cost = block(&pool).cost_bytes();
        assert!(cost > 2 * PAGE && pool.used_bytes() == 0);
        let mut tier = RamTier::new(2 * cost + cost / 2);
        for n in 0..3 {
            assert!(heat(&mut tier, n));
            tier.insert_if_hot(BlockHash(n << 64), block(&pool));
            assert_eq!(pool.used_bytes(), tier.pinned_bytes());
        }
        assert!(tier.get(BlockHash(0)).is_none(), "the first in goes first");
        assert_eq!(tier.len(), 2);
        assert_eq!(tier.used_bytes(), 2 * cost);
        assert_eq!(pool.used_bytes(), 4 * PAGE);
        tier.shed(1);
        assert_eq!((tier.len(), pool.used_bytes()), (1, 2 * PAGE));
        tier.shed(usize::MAX);
        assert_eq!(tier.len(), 1, "half of the budget stays");
        tier.clear();
        assert_eq!((tier.used_bytes(), pool.used_bytes()), (0, 0));
    }

    #[test]
    fn only_hot_blocks_come_in_and_what_replaces_one_needs_one_read() {
        let pool = Pool::new(1 << 20);
        let mut tier = RamTier::new(1 << 20);
        let hash = BlockHash(9 << 64);
        tier.insert_if_hot(hash, block(&pool));
        assert!(tier.is_empty() && !tier.note_read(hash, 1, 1));
        tier.insert_if_hot(hash, block(&pool));
        assert!(tier.is_empty() && tier.note_read(hash, 1, 1));
        tier.insert_if_hot(hash, block(&pool));
        assert!(tier.get(hash).is_some());
        tier.remove(hash);
        tier.insert_if_hot(hash, block(&pool));
        assert!(tier.is_empty(), "a write alone brings nothing in");
        assert!(tier.note_read(hash, 1, 1));
        tier.insert_if_hot(hash, block(&pool));
        assert_eq!(tier.len(), 1);
        let mut off = RamTier::new(0);
        assert!(!heat(&mut off, 1), "a tier of nothing wants nothing");
        let mut small = RamTier::new(PAGE);
        heat(&mut small, 1);
        tier.clear();
        small.insert_if_hot(BlockHash(1 << 64), block(&pool));
        assert_eq!((small.len(), pool.used_bytes()), (0, 0), "too large for it");
    }
}
