//! Which blocks are worth memory: a pure policy over costs, with no memory of its own to guard.
//!
//! A block is *hot* once more of it was read, within a window, than there is of it: reading it
//! whole twice makes it hot, so does reading parts of it again and again. Streaming through it
//! once does not, in whatever pieces and order. Only hot blocks are kept, so what is read or
//! written once takes no room and pushes nothing out.
//!
//! Kept blocks stand in one queue. A hit only counts up; the block at the front goes when room is
//! needed, unless it was hit since it last stood there: then it goes to the back with one hit less
//! (S3-FIFO's main queue). The window is a queue of the names of blocks read and not kept.
//!
//! What this file never does: exceed its budget, look at a clock, or remember more than
//! [`WINDOW_BLOCKS_MAX`] blocks that it does not keep.

use crate::index::{BlockMap, Uniform};
use crate::key::BlockHash;
use lru::LruCache;
use std::collections::VecDeque;
use std::hash::BuildHasherDefault;

/// Hits that count at the front of the queue: three lives tell the warm from the hot, more would
/// keep yesterday's hot blocks for too many rounds.
const LIVES_MAX: u8 = 3;

/// The window, in budgets: what was read of blocks not kept, before a block that was read is
/// forgotten. Twice, because a block that comes back within two budgets' worth of reading is hit
/// about every other time once it is kept; a longer one admits what will be gone before its hit.
const WINDOW_BUDGETS: u64 = 2;

/// Most blocks that the window remembers, whatever their size: 8 GiB of blocks of 256 KiB.
pub const WINDOW_BLOCKS_MAX: usize = 32 << 10;

/// Bytes that the window takes for each block: an entry of a map that has just grown, and one of
/// a queue that has.
pub const WINDOW_BLOCK_BYTES: usize = 2 * (48 + 1) + 2 * 32;

/// The least that a read of a part counts, as a share of its block. Each read saves a disk access
/// whatever its size; a scan in pieces of at least this size still counts once.
const PART_SHARE: u64 = 64;

/// More than this many quarters of a block read make it hot. Not four: a scan whose pieces overlap
/// a little, or that looks at an object's end first, is still a scan.
const HOT_QUARTERS: u64 = 5;

struct Kept<V> {
    value: V,
    cost: usize,
    hits: u8,
}

/// A block that was read and is not kept.
#[derive(Clone, Copy)]
struct Seen {
    /// The window's clock when it was first read.
    since: u64,
    /// Bytes of it that were read since.
    read_bytes: u64,
}

/// Hot blocks within a budget.
pub struct HotSet<V> {
    /// Oldest first out; `LruCache` only as a queue with removal: hits do not move anything.
    queue: LruCache<BlockHash, Kept<V>, BuildHasherDefault<Uniform>>,
    used_bytes: usize,
    budget_bytes: usize,
    seen: BlockMap<Seen>,
    /// Blocks and clock in order of their first reading; those that left `seen` otherwise stay
    /// until they come to the front.
    window: VecDeque<(BlockHash, u64)>,
    /// Bytes read of blocks not kept: the window's clock.
    clock: u64,
}

impl<V> HotSet<V> {
    /// A set that holds at most `budget_bytes`; 0 holds nothing and remembers nothing.
    pub fn new(budget_bytes: usize) -> Self {
        HotSet {
            queue: LruCache::unbounded_with_hasher(BuildHasherDefault::default()),
            used_bytes: 0,
            budget_bytes,
            seen: BlockMap::default(),
            window: VecDeque::new(),
            clock: 0,
        }
    }

    /// A kept block, for which this is a hit.
    pub fn get(&mut self, hash: BlockHash) -> Option<&V> {
        let kept = self.queue.peek_mut(&hash)?;
        kept.hits = (kept.hits + 1).min(LIVES_MAX);
        Some(&kept.value)
    }

    /// Notes that `bytes` of a block of `length` were read, and not from here. Returns whether the
    /// block is hot by now: whoever holds the whole of it should [`HotSet::insert`] it.
    pub fn note_read(&mut self, hash: BlockHash, bytes: u64, length: u64) -> bool {
        if self.budget_bytes == 0 {
            return false;
        }
        let weight = bytes.max(length / PART_SHARE).max(1);
        self.clock += weight;
        self.forget_old();
        let clock = self.clock;
        let window = &mut self.window;
        let seen = self.seen.entry(hash).or_insert_with(|| {
            window.push_back((hash, clock));
            Seen {
                since: clock,
                read_bytes: 0,
            }
        });
        seen.read_bytes += weight;
        is_hot(seen.read_bytes, length)
    }

    /// Whether a block of `length` bytes has become hot and is not kept yet.
    pub fn is_wanted(&self, hash: BlockHash, length: u64) -> bool {
        self.seen
            .get(&hash)
            .is_some_and(|seen| is_hot(seen.read_bytes, length))
    }

    /// Keeps a block at a cost, and lets others go to make room. One that costs more than the
    /// budget is not kept. Returns whether it is; `gone` is given what is kept no longer.
    pub fn insert(
        &mut self,
        hash: BlockHash,
        value: V,
        cost: usize,
        mut gone: impl FnMut(V),
    ) -> bool {
        if let Some(before) = self.remove(hash) {
            gone(before);
        }
        if cost > self.budget_bytes {
            gone(value);
            return false;
        }
        let free = self.budget_bytes - self.used_bytes;
        self.shed(cost.saturating_sub(free), gone);
        self.seen.remove(&hash);
        self.used_bytes += cost;
        let kept = Kept {
            value,
            cost,
            hits: 0,
        };
        self.queue.put(hash, kept);
        true
    }

    /// Lets a block go.
    pub fn remove(&mut self, hash: BlockHash) -> Option<V> {
        let kept = self.queue.pop(&hash)?;
        self.used_bytes -= kept.cost;
        Some(kept.value)
    }

    /// Frees at least `bytes`, as far as there are any; least wanted blocks first.
    pub fn shed(&mut self, bytes: usize, mut gone: impl FnMut(V)) {
        let target = self.used_bytes.saturating_sub(bytes);
        while self.used_bytes > target {
            let Some((hash, mut kept)) = self.queue.pop_lru() else {
                break;
            };
            if kept.hits > 0 {
                // Ends: each round takes a life.
                kept.hits -= 1;
                self.queue.put(hash, kept);
            } else {
                self.used_bytes -= kept.cost;
                gone(kept.value);
            }
        }
    }

    /// Lets everything go.
    pub fn clear(&mut self) {
        *self = HotSet::new(self.budget_bytes);
    }

    /// The most that the costs of what is kept may add up to.
    pub fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// The sum of the costs of what is kept.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Blocks kept.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Drops what has left the window.
    fn forget_old(&mut self) {
        let window_bytes = self.budget_bytes as u64 * WINDOW_BUDGETS;
        while let Some((hash, since)) = self.window.front().copied() {
            let is_old = since.saturating_add(window_bytes) < self.clock;
            if !is_old && self.window.len() < WINDOW_BLOCKS_MAX {
                break;
            }
            self.window.pop_front();
            // It may have been kept and seen anew since: then that is another entry's.
            if self.seen.get(&hash).map(|seen| seen.since) == Some(since) {
                self.seen.remove(&hash);
            }
        }
    }
}

fn is_hot(read_bytes: u64, length: u64) -> bool {
    read_bytes.saturating_mul(4) > length.max(1).saturating_mul(HOT_QUARTERS)
}

#[cfg(test)]
mod tests;
