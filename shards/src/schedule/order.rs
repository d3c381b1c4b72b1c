//! Dirty blocks in the order of their age, in 4 to 8 bytes each.
//!
//! A list of short sorted runs of slots: finding a place is two binary searches, changing it moves
//! at most one run. Each run knows the sum of its bytes, so that "how much up to then" costs a look
//! at each run before that and at the blocks of one. It never changes an entry, and an entry's age
//! and length never change while a list names it.

use super::Age;
use super::blocks::Blocks;
use std::collections::VecDeque;

/// Slots of a run at most: 1 KiB to move at worst, and 4 million blocks are 16 thousand runs.
const RUN_SLOTS_MAX: usize = 256;

/// Blocks of the same age are told apart by their slot.
type Key = (Age, u32);

struct Run {
    /// The key of `slots[0]`.
    first: Key,
    /// Never empty, in order.
    slots: Vec<u32>,
    /// Sum of the blocks' bytes.
    bytes: u64,
}

/// Slots, oldest block first.
#[derive(Default)]
pub(super) struct Order {
    runs: VecDeque<Run>,
    blocks: u64,
    bytes: u64,
}

fn key(blocks: &Blocks, slot: u32) -> Key {
    (blocks.get(slot).age, slot)
}

impl Order {
    /// How many blocks, and their bytes.
    pub fn sum(&self) -> (u64, u64) {
        (self.blocks, self.bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// The age and slot of the oldest.
    pub fn first(&self) -> Option<(Age, u32)> {
        self.runs.front().map(|run| run.first)
    }

    /// All slots, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.runs.iter().flat_map(|run| run.slots.iter().copied())
    }

    /// The run that holds a key or would.
    fn run_of(&self, key: Key) -> usize {
        let later = self.runs.partition_point(|run| run.first <= key);
        later.saturating_sub(1)
    }

    /// Adds a slot that is not in the list.
    pub fn insert(&mut self, blocks: &Blocks, slot: u32) {
        let key_new = key(blocks, slot);
        let bytes = u64::from(blocks.get(slot).bytes);
        self.blocks += 1;
        self.bytes += bytes;
        let at = self.run_of(key_new);
        let Some(run) = self.runs.get_mut(at) else {
            self.runs.push_back(Run::of_one(key_new, bytes));
            return;
        };
        let place = run.slots.partition_point(|s| key(blocks, *s) < key_new);
        if run.slots.len() < RUN_SLOTS_MAX {
            run.insert(place, key_new, bytes);
        } else if place == RUN_SLOTS_MAX {
            // Blocks mostly come in order of their age: leave full runs behind.
            self.runs.insert(at + 1, Run::of_one(key_new, bytes));
        } else {
            let mut upper = run.split(blocks);
            let half = run.slots.len();
            match place.checked_sub(half) {
                Some(place) if place > 0 => upper.insert(place, key_new, bytes),
                _ => run.insert(place, key_new, bytes),
            }
            self.runs.insert(at + 1, upper);
        }
    }

    /// Takes out a slot that is in the list.
    pub fn remove(&mut self, blocks: &Blocks, slot: u32) {
        let key_old = key(blocks, slot);
        let bytes = u64::from(blocks.get(slot).bytes);
        let at = self.run_of(key_old);
        let run = self.runs.get_mut(at).expect("the list holds the slot");
        let place = run.slots.partition_point(|s| key(blocks, *s) < key_old);
        assert_eq!(run.slots.get(place), Some(&slot), "the list holds the slot");
        run.slots.remove(place);
        run.bytes -= bytes;
        self.blocks -= 1;
        self.bytes -= bytes;
        match run.slots.first() {
            None => _ = self.runs.remove(at),
            Some(first) => {
                run.first = key(blocks, *first);
                self.join(at);
                if let Some(before) = at.checked_sub(1) {
                    self.join(before);
                }
            }
        }
    }

    /// Joins a run with the next one if both together are small, so that scattered removals do
    /// not leave a run for each block.
    fn join(&mut self, at: usize) {
        let lengths = |at: usize| self.runs.get(at).map(|run| run.slots.len());
        let (Some(this), Some(next)) = (lengths(at), lengths(at + 1)) else {
            return;
        };
        if this + next <= RUN_SLOTS_MAX / 2 {
            let next = self.runs.remove(at + 1).expect("it was there just now");
            self.runs[at].slots.extend(next.slots);
            self.runs[at].bytes += next.bytes;
        }
    }

    /// How many blocks are not younger than that, and their bytes.
    pub fn sum_up_to(&self, blocks: &Blocks, acked_unix_ms: u64) -> (u64, u64) {
        let later = |run: &Run| run.first.0.acked_unix_ms <= acked_unix_ms;
        let runs = self.runs.partition_point(later);
        let Some(last) = runs.checked_sub(1) else {
            return (0, 0);
        };
        let mut sum = self.runs.range(..last).fold((0, 0), |sum, run| {
            (sum.0 + run.slots.len() as u64, sum.1 + run.bytes)
        });
        for slot in &self.runs[last].slots {
            let entry = blocks.get(*slot);
            if entry.age.acked_unix_ms <= acked_unix_ms {
                sum = (sum.0 + 1, sum.1 + u64::from(entry.bytes));
            }
        }
        sum
    }
}

impl Run {
    fn of_one(key: Key, bytes: u64) -> Run {
        Run {
            first: key,
            slots: vec![key.1],
            bytes,
        }
    }

    fn insert(&mut self, place: usize, key: Key, bytes: u64) {
        self.slots.insert(place, key.1);
        self.bytes += bytes;
        if place == 0 {
            self.first = key;
        }
    }

    /// Takes the younger half out.
    fn split(&mut self, blocks: &Blocks) -> Run {
        let slots = self.slots.split_off(self.slots.len() / 2);
        let bytes = slots.iter().map(|s| u64::from(blocks.get(*s).bytes)).sum();
        self.bytes -= bytes;
        Run {
            first: key(blocks, slots[0]),
            slots,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::{Entry, Place};
    use super::*;
    use crate::key::BlockHash;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn entry(number: u128, acked_unix_ms: u64) -> Entry {
        Entry {
            block: BlockHash(number << 64),
            age: Age {
                acked_unix_ms,
                sequence: 0,
            },
            bytes: acked_unix_ms as u32 + 1,
            store: 0,
            attempts: 0,
            place: Place::Fresh,
        }
    }

    fn check(order: &Order, blocks: &Blocks, model: &BTreeSet<Key>) {
        assert!(order.iter().eq(model.iter().map(|key| key.1)));
        assert_eq!(order.first(), model.first().copied());
        assert_eq!(order.is_empty(), model.is_empty());
        for until in [0, 7, 50, 99, u64::MAX] {
            let old = model.iter().filter(|key| key.0.acked_unix_ms <= until);
            let sum = old.fold((0, 0), |sum, key| {
                (sum.0 + 1, sum.1 + u64::from(blocks.get(key.1).bytes))
            });
            assert_eq!(order.sum_up_to(blocks, until), sum);
        }
        assert_eq!(order.sum(), order.sum_up_to(blocks, u64::MAX));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn it_is_a_sorted_set(
            ages in proptest::collection::vec(0..100_u64, 1..1500),
            removals in proptest::collection::vec(any::<prop::sample::Index>(), 0..1500),
        ) {
            let (mut blocks, mut order) = (Blocks::default(), Order::default());
            let mut model = BTreeSet::new();
            for (number, acked_unix_ms) in ages.iter().enumerate() {
                let slot = blocks.insert(entry(number as u128, *acked_unix_ms));
                order.insert(&blocks, slot);
                model.insert(key(&blocks, slot));
            }
            check(&order, &blocks, &model);
            for index in removals {
                if model.is_empty() {
                    break;
                }
                let key = *model.iter().nth(index.index(model.len())).expect("not empty");
                order.remove(&blocks, key.1);
                model.remove(&key);
            }
            check(&order, &blocks, &model);
        }
    }

    #[test]
    fn runs_are_full_in_order_and_never_many_small_ones() {
        let (mut blocks, mut order) = (Blocks::default(), Order::default());
        for number in 0..100 * RUN_SLOTS_MAX as u64 {
            let slot = blocks.insert(entry(number.into(), number));
            order.insert(&blocks, slot);
        }
        assert_eq!(order.runs.len(), 100);
        let slots: Vec<u32> = order.iter().collect();
        for slot in slots.iter().filter(|slot| *slot % 32 != 0) {
            order.remove(&blocks, *slot);
        }
        assert_eq!(order.sum().0, 100 * RUN_SLOTS_MAX as u64 / 32);
        assert!(order.runs.len() <= 13, "{} runs", order.runs.len());
    }
}
