//! Names of records that left the probation queue lately, without the records.
//!
//! Pure state. It never decides anything: [`crate::evict`] asks whether a block that is written
//! now was evicted a short while ago.

use crate::key::BlockHash;
use std::collections::{HashSet, VecDeque};

/// The last so many evicted blocks.
#[derive(Default)]
pub struct Ghost {
    /// Oldest first; some have been taken since.
    order: VecDeque<BlockHash>,
    names: HashSet<BlockHash>,
    window: usize,
}

impl Ghost {
    /// Remembers at most `window` blocks from now on.
    pub fn set_window(&mut self, window: usize) {
        self.window = window;
        self.trim();
    }

    /// Remembers a block.
    pub fn insert(&mut self, hash: BlockHash) {
        if self.names.insert(hash) {
            self.order.push_back(hash);
            self.trim();
        }
    }

    /// Whether a block is remembered; it is no longer afterwards.
    pub fn take(&mut self, hash: BlockHash) -> bool {
        self.names.remove(&hash)
    }

    fn trim(&mut self) {
        while self.order.len() > self.window {
            if let Some(oldest) = self.order.pop_front() {
                self.names.remove(&oldest);
            }
        }
    }
}
