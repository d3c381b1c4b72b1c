//! Names of records that were evicted lately, without the records.
//!
//! Pure state. It never decides anything: [`crate::evict`] asks whether a block that is written
//! now was evicted a short while ago, and from where.
//!
//! A table of 8-byte entries in buckets of eight: 32 bits of the block's hash, its queue, and its
//! number among that queue's evictions. A full bucket loses its oldest entry, which approximates a
//! queue at a tenth of its memory. Two blocks in 4 billion look alike; a block that is taken for
//! another enters the main queue at once and leaves it again if nobody wants it.

use crate::key::BlockHash;

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
    pub age: u32,
}

/// Entries of a bucket: one cache line.
const BUCKET: usize = 8;

/// Entries for each hundred blocks of the window. The evictions that matter are at most those of one
/// window from probation and of a part of it from the main queue.
const ENTRIES_PERCENT: usize = 125;

/// How much the window may change before the table is made anew, percent.
const RESIZE_PERCENT: usize = 25;

/// The bit of an entry's number that tells its queue.
const MAIN_BIT: u32 = 1 << 31;

#[derive(Clone, Copy, Default)]
struct Entry {
    /// Bits of the hash, never 0; 0 in an empty entry.
    fingerprint: u32,
    /// The queue, and its count of evictions when this one happened.
    number: u32,
}

impl Entry {
    fn origin(self) -> Origin {
        match self.number & MAIN_BIT {
            0 => Origin::Probation,
            _ => Origin::Main,
        }
    }
}

/// About the last so many evicted blocks of each queue.
#[derive(Default)]
pub struct Ghost {
    /// Whole buckets.
    entries: Vec<Entry>,
    /// Evictions from each queue, modulo 2³¹.
    evictions: [u32; 2],
    /// Those that are remembered at most.
    filled: [u32; 2],
    window: usize,
    /// The window for which `entries` was made.
    made_for: usize,
}

impl Ghost {
    /// Remembers at most `window` blocks of each queue from now on.
    pub fn set_window(&mut self, window: usize) {
        self.window = window.min((MAIN_BIT / 2) as usize);
        let change = self.window.abs_diff(self.made_for);
        if change * 100 > self.made_for * RESIZE_PERCENT {
            self.resize();
        }
        for filled in &mut self.filled {
            *filled = (*filled).min(self.window as u32);
        }
    }

    /// Remembers a block.
    pub fn insert(&mut self, hash: BlockHash, origin: Origin) {
        let queue = origin as usize;
        self.evictions[queue] = (self.evictions[queue] + 1) % MAIN_BIT;
        self.filled[queue] = (self.filled[queue] + 1).min(self.window as u32);
        let queue_bit = if origin == Origin::Main { MAIN_BIT } else { 0 };
        self.place(Entry {
            fingerprint: fingerprint(hash),
            number: self.evictions[queue] | queue_bit,
        });
    }

    /// Where a block was and how long ago, if it is remembered; it is no longer afterwards.
    pub fn take(&mut self, hash: BlockHash) -> Option<Remembered> {
        let fingerprint = fingerprint(hash);
        let bucket = self.bucket(fingerprint)?;
        let found = self.entries[bucket..bucket + BUCKET]
            .iter_mut()
            .find(|entry| entry.fingerprint == fingerprint)?;
        let entry = std::mem::take(found);
        let age = self.age(entry);
        (age as usize <= self.window).then(|| Remembered {
            origin: entry.origin(),
            age,
        })
    }

    /// Blocks of a queue that are remembered, about.
    pub fn filled(&self, origin: Origin) -> usize {
        self.filled[origin as usize] as usize
    }

    fn age(&self, entry: Entry) -> u32 {
        let now = self.evictions[entry.origin() as usize];
        now.wrapping_sub(entry.number) % MAIN_BIT
    }

    /// Where the bucket of a fingerprint begins.
    fn bucket(&self, fingerprint: u32) -> Option<usize> {
        let buckets = self.entries.len() / BUCKET;
        let at = (u64::from(fingerprint) * buckets as u64) >> 32;
        (buckets > 0).then_some(at as usize * BUCKET)
    }

    /// Puts an entry in the place of its former self, of none, or of the oldest of its bucket.
    fn place(&mut self, entry: Entry) {
        let Some(bucket) = self.bucket(entry.fingerprint) else {
            return;
        };
        let rank = |other: &Entry| match other.fingerprint {
            same if same == entry.fingerprint => u64::MAX,
            0 => u64::MAX - 1,
            _ => u64::from(self.age(*other)),
        };
        let slots = &self.entries[bucket..bucket + BUCKET];
        let ranks = slots.iter().map(rank).enumerate();
        if let Some((at, _)) = ranks.max_by_key(|(_, rank)| *rank) {
            self.entries[bucket + at] = entry;
        }
    }

    fn resize(&mut self) {
        let count = (self.window * ENTRIES_PERCENT / 100).next_multiple_of(BUCKET);
        let former = std::mem::replace(&mut self.entries, vec![Entry::default(); count]);
        self.made_for = self.window;
        for entry in former {
            if entry.fingerprint != 0 && self.age(entry) as usize <= self.window {
                self.place(entry);
            }
        }
    }
}

/// Bits of a hash that chose neither its shard (the lowest) nor its place in the index.
fn fingerprint(hash: BlockHash) -> u32 {
    ((hash.0 >> 32) as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn block(n: u64) -> BlockHash {
        // SplitMix64's finish, so that neighbours are far apart as hashes are.
        let x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        BlockHash(u128::from(x ^ (x >> 27)) << 16)
    }

    #[test]
    fn a_full_window_is_remembered_but_for_a_little() {
        let mut ghost = Ghost::default();
        ghost.set_window(10_000);
        for n in 0..30_000 {
            ghost.insert(block(n), Origin::Probation);
        }
        let recalled = (20_001..30_000).filter(|n| ghost.take(block(*n)).is_some());
        let share = recalled.count() as f64 / 10_000.0;
        assert!(share > 0.9, "{share} of the window");
        assert!((0..15_000).all(|n| ghost.take(block(n)).is_none()));
        assert!(ghost.entries.len() * size_of::<Entry>() <= 11 * 10_000);
    }

    #[test]
    fn a_window_that_grows_forgets_nothing() {
        let mut ghost = Ghost::default();
        for n in 0..5000 {
            ghost.set_window(100 + n as usize);
            ghost.insert(block(n), Origin::Main);
        }
        let recalled = (4000..5000).filter(|n| ghost.take(block(*n)).is_some());
        assert!(recalled.count() > 950);
    }

    proptest! {
        /// What it tells of a block is always true; only forgetting is allowed.
        #[test]
        fn what_is_remembered_is_true(
            steps in proptest::collection::vec((0..40_u64, any::<bool>(), any::<bool>()), 1..400),
            window in 1..60_usize,
        ) {
            let mut ghost = Ghost::default();
            ghost.set_window(window);
            let (mut model, mut counts) = (HashMap::new(), [0_u32; 2]);
            for (n, inserts, from_main) in steps {
                let origin = if from_main { Origin::Main } else { Origin::Probation };
                if inserts {
                    counts[origin as usize] += 1;
                    ghost.insert(block(n), origin);
                    model.insert(n, (origin, counts[origin as usize]));
                } else if let Some(told) = ghost.take(block(n)) {
                    let (origin, number) = model.remove(&n).expect("was inserted");
                    let age = counts[origin as usize] - number;
                    prop_assert_eq!(told, Remembered { origin, age });
                    prop_assert!(age as usize <= window);
                }
                prop_assert!(ghost.filled(Origin::Main) <= window);
            }
        }
    }
}
