//! Names of records that were evicted lately, without the records.
//!
//! Pure state. It never decides anything: [`crate::evict`] asks whether a block that is written
//! now was evicted a short while ago, and from where.

use crate::key::BlockHash;
use std::collections::{HashMap, VecDeque};

/// Which queue a record was evicted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was never wanted again while it was on probation.
    Probation,
    /// It was wanted once, and then no longer.
    Main,
}

/// A block that is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Where it was.
    pub origin: Origin,
    /// Evictions from the same queue since.
    pub age: u64,
}

/// The last so many evicted blocks of each queue.
#[derive(Default)]
pub struct Ghost {
    names: HashMap<BlockHash, (Origin, u64)>,
    /// Oldest first; some have been taken since.
    order: [VecDeque<(BlockHash, u64)>; 2],
    evictions: [u64; 2],
    window: usize,
}

impl Ghost {
    /// Remembers at most `window` blocks of each queue from now on.
    pub fn set_window(&mut self, window: usize) {
        self.window = window;
        self.trim(0);
        self.trim(1);
    }

    /// Remembers a block.
    pub fn insert(&mut self, hash: BlockHash, origin: Origin) {
        let queue = origin as usize;
        let at = self.evictions[queue];
        self.evictions[queue] += 1;
        self.names.insert(hash, (origin, at));
        self.order[queue].push_back((hash, at));
        self.trim(queue);
    }

    /// Where a block was and how long ago, if it is remembered; it is no longer afterwards.
    pub fn take(&mut self, hash: BlockHash) -> Option<Remembered> {
        let (origin, at) = self.names.remove(&hash)?;
        let age = self.evictions[origin as usize] - at;
        Some(Remembered { origin, age })
    }

    /// Blocks of a queue that were evicted since the start, `window` at most.
    pub fn filled(&self, origin: Origin) -> usize {
        self.order[origin as usize].len()
    }

    fn trim(&mut self, queue: usize) {
        while self.order[queue].len() > self.window {
            let Some((hash, at)) = self.order[queue].pop_front() else {
                return;
            };
            if self
                .names
                .get(&hash)
                .is_some_and(|(origin, then)| (*origin as usize, *then) == (queue, at))
            {
                self.names.remove(&hash);
            }
        }
    }
}
