//! Which objects a core knows not to exist, for as long as their volumes let it.
//!
//! This file owns the bound and the times. It never asks anybody: a volume that names no time
//! (the default) is never remembered here, and whoever writes an object ends what is remembered.

use crate::index::Uniform;
use crate::key::BlockHash;
use forebay_io::runtime::MonoTime;
use lru::LruCache;
use std::hash::BuildHasherDefault;
use std::num::NonZeroUsize;

/// Most objects that a core knows not to exist. Beyond it, those that were missed longest ago are
/// asked for again.
const ABSENCES_MAX: NonZeroUsize = NonZeroUsize::new(32 << 10).expect("not zero");

/// Bytes of one in the table at its lowest fill, and a list's two ends.
const ABSENCE_BYTES: usize = 128;

/// The most memory that they take, bytes.
pub const ABSENCES_BYTES_MAX: usize = ABSENCES_MAX.get() * ABSENCE_BYTES;

struct Absence {
    store_identity: u64,
    until: MonoTime,
}

/// The objects that the store has lately said it has not.
pub struct Absences {
    latest: LruCache<BlockHash, Absence, BuildHasherDefault<Uniform>>,
}

impl Default for Absences {
    fn default() -> Self {
        // It grows with what it holds: most volumes never ask for it.
        let latest = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        Absences { latest }
    }
}

impl Absences {
    /// Remembers that a store has no such object, until `until`.
    pub fn note(&mut self, hash: BlockHash, store_identity: u64, until: MonoTime) {
        let absence = Absence {
            store_identity,
            until,
        };
        self.latest.put(hash, absence);
        if self.latest.len() > ABSENCES_MAX.get() {
            self.latest.pop_lru();
        }
    }

    /// Whether that store is still taken not to have it.
    pub fn holds(&mut self, hash: BlockHash, store_identity: u64, now: MonoTime) -> bool {
        let Some(absence) = self.latest.peek(&hash) else {
            return false;
        };
        if now < absence.until && absence.store_identity == store_identity {
            return true;
        }
        self.latest.pop(&hash);
        false
    }

    /// The object may exist now.
    pub fn end(&mut self, hash: BlockHash) {
        if !self.latest.is_empty() {
            self.latest.pop(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_ends_with_its_time_its_store_and_a_write() {
        let mut absences = Absences::default();
        let (hash, other) = (BlockHash(1 << 64), BlockHash(2 << 64));
        absences.note(hash, 7, MonoTime(100));
        assert!(absences.holds(hash, 7, MonoTime(99)));
        assert!(!absences.holds(other, 7, MonoTime(99)));
        assert!(!absences.holds(hash, 7, MonoTime(100)), "over");
        absences.note(hash, 7, MonoTime(100));
        assert!(!absences.holds(hash, 8, MonoTime(1)), "another bucket");
        absences.note(hash, 7, MonoTime(100));
        absences.end(hash);
        assert!(!absences.holds(hash, 7, MonoTime(1)), "written");
    }

    #[test]
    fn the_oldest_give_way() {
        let mut absences = Absences::default();
        let hash = |number: usize| BlockHash((number as u128) << 64);
        for number in 0..=ABSENCES_MAX.get() {
            absences.note(hash(number), 7, MonoTime(100));
        }
        assert_eq!(absences.latest.len(), ABSENCES_MAX.get());
        assert!(!absences.holds(hash(0), 7, MonoTime(1)));
        assert!(absences.holds(hash(1), 7, MonoTime(1)));
    }
}
