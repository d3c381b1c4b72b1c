//! The policy against plain LRU, and its budget under any sequence of calls.

use super::*;
use proptest::prelude::*;

fn block(number: u64) -> BlockHash {
    // As a real hash: uniform in the half that the tables use.
    BlockHash(u128::from(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64)
}

/// What the owner core does with a read of a whole block; returns whether it was a hit.
fn read(set: &mut HotSet<()>, number: u64, length: u64) -> bool {
    if set.get(block(number)).is_some() {
        return true;
    }
    if set.note_read(block(number), length, length) {
        set.insert(block(number), (), length as usize, drop);
    }
    false
}

/// A generator of its own, so that a run is the same everywhere.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 11) as f64
            / (1_u64 << 53) as f64
    }
}

/// Blocks drawn so that the `n`th most popular has weight `n^-exponent`.
fn zipf(keys: usize, exponent: f64, draws: usize, seed: u64) -> Vec<u64> {
    let mut sum = 0.0;
    let cumulated: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        })
        .collect();
    let mut random = Random(seed);
    let mut draw = || cumulated.partition_point(|weight| *weight <= random.unit() * sum) as u64;
    (0..draws).map(|_| draw()).collect()
}

/// Hits of the set on the second half of a trace of blocks of one size.
fn hits_of_set(trace: &[u64], capacity: u64) -> usize {
    let length = 1 << 20;
    let mut set = HotSet::new((capacity * length) as usize);
    let mut hits = trace.iter().map(|number| read(&mut set, *number, length));
    hits.by_ref().take(trace.len() / 2).for_each(drop);
    hits.filter(|hit| *hit).count()
}

/// Hits of plain LRU on the same.
fn hits_of_lru(trace: &[u64], capacity: u64) -> usize {
    let capacity = std::num::NonZeroUsize::new(capacity as usize).expect("not empty");
    let mut lru = LruCache::new(capacity);
    let mut hits = trace.iter().map(|number| lru.put(*number, ()).is_some());
    hits.by_ref().take(trace.len() / 2).for_each(drop);
    hits.filter(|hit| *hit).count()
}

#[test]
fn read_once_takes_no_room_and_read_twice_does() {
    let mut set = HotSet::new(10_000);
    assert!(!read(&mut set, 1, 1000) && set.is_empty());
    assert!(!read(&mut set, 1, 1000) && set.len() == 1);
    assert!(read(&mut set, 1, 1000));
}

#[test]
fn a_scan_in_pieces_is_still_a_scan() {
    let length = 4 << 20;
    for piece in [64 << 10, 128 << 10, 1 << 20, 4 << 20] {
        // In order, backwards, and as parallel readers would: every other first.
        let pieces = length / piece;
        let evens_first = (0..pieces).step_by(2).chain((1..pieces).step_by(2));
        let orders: [Vec<u64>; 3] = [
            (0..pieces).collect(),
            (0..pieces).rev().collect(),
            evens_first.collect(),
        ];
        for order in orders {
            let mut set: HotSet<()> = HotSet::new(64 << 20);
            for number in 0..20 {
                for _ in &order {
                    assert!(!set.note_read(block(number), piece, length), "{piece}");
                }
                // An unaligned neighbour, and a look at the end.
                assert!(!set.note_read(block(number), 4096, length), "{piece}");
            }
        }
    }
}

#[test]
fn small_reads_of_a_large_block_make_it_hot_in_the_end() {
    let mut set: HotSet<()> = HotSet::new(64 << 20);
    let reads = (1..)
        .find(|_| set.note_read(block(0), 4096, 4 << 20))
        .expect("it becomes hot");
    assert!((20..200).contains(&reads), "after {reads} reads");
}

#[test]
fn the_window_forgets() {
    let mut set: HotSet<()> = HotSet::new(1000);
    assert!(!set.note_read(block(0), 100, 100));
    for number in 1..100 {
        assert!(!set.note_read(block(number), 100, 100));
    }
    assert!(!set.note_read(block(0), 100, 100), "too long ago");
    assert!(set.note_read(block(0), 100, 100), "just now");
    let mut many: HotSet<()> = HotSet::new(usize::MAX >> 8);
    for number in 0..3 * WINDOW_BLOCKS_MAX as u64 {
        many.note_read(block(number), 1, 1);
    }
    assert!(many.seen.len() <= WINDOW_BLOCKS_MAX && many.window.len() <= WINDOW_BLOCKS_MAX);
}

#[test]
fn a_scan_of_ten_budgets_leaves_the_hot_set_alone() {
    // A hot set of 80 % of the budget, then the same reads with nine cold ones after each.
    let (length, capacity) = (1 << 20, 100);
    let mut set = HotSet::new(capacity * length as usize);
    let hot = zipf(80, 0.9, 40_000, 7);
    let hits = |set: &mut HotSet<()>, cold: &mut dyn FnMut(&mut HotSet<()>)| {
        let mut hits = 0;
        for number in &hot {
            hits += usize::from(read(set, *number, length));
            cold(set);
        }
        hits as f64 / hot.len() as f64
    };
    hits(&mut set, &mut |_| {});
    let quiet = hits(&mut set, &mut |_| {});
    let mut next = 1_000_000;
    let scanned = hits(&mut set, &mut |set| {
        // Each cold block once, in four pieces: ten budgets' worth between two of 40 reads.
        for _ in 0..25 {
            next += 1;
            for _ in 0..4 {
                if set.note_read(block(next), length / 4, length) {
                    set.insert(block(next), (), length as usize, drop);
                }
            }
        }
    });
    assert!(quiet > 0.99, "{quiet}");
    assert!(scanned > quiet - 0.01, "{quiet} falls to {scanned}");
}

#[test]
fn zipf_is_served_at_least_as_well_as_by_lru() {
    // In steady state: a set that wants two reads of each block is behind while it fills.
    for exponent in [0.6, 0.9, 1.2] {
        let trace = zipf(10_000, exponent, 200_000, 1);
        for capacity in [50, 200, 1000] {
            let (ours, lru) = (hits_of_set(&trace, capacity), hits_of_lru(&trace, capacity));
            println!("zipf {exponent}, {capacity} of 10000: {ours} against {lru} of 100000");
            assert!(ours >= lru, "zipf {exponent}, {capacity}: {ours} < {lru}");
        }
    }
}

#[test]
fn a_hot_set_that_moves_is_followed() {
    // Every 20,000 reads the most popular blocks are others.
    let mut trace = zipf(5000, 0.9, 400_000, 3);
    for (at, number) in trace.iter_mut().enumerate() {
        *number = (*number + (at as u64 / 20_000) * 500) % 5000;
    }
    let (ours, lru) = (hits_of_set(&trace, 300), hits_of_lru(&trace, 300));
    println!("moving hot set: {ours} against {lru} of 200000");
    assert!(ours >= lru, "{ours} < {lru}");
}

#[derive(Clone, Debug)]
enum Step {
    Read { number: u64, parts: u64 },
    Insert { number: u64, cost: usize },
    Remove(u64),
    Shed(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..20u64;
    prop_oneof![
        4 => (number.clone(), 1..5u64).prop_map(|(number, parts)| Step::Read { number, parts }),
        2 => (number.clone(), 0..1500usize).prop_map(|(number, cost)| Step::Insert { number, cost }),
        1 => number.prop_map(Step::Remove),
        1 => (0..3000usize).prop_map(Step::Shed),
    ]
}

proptest! {
    /// Against a plain list of what must be there: the budget holds, costs add up, values are the
    /// ones put in, and shedding frees what it says.
    #[test]
    fn the_budget_holds_for_every_sequence(
        budget in 0usize..4000,
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let mut set = HotSet::new(budget);
        for (stamp, step) in steps.into_iter().enumerate() {
            match step {
                Step::Read { number, parts } => {
                    let length = 400;
                    if set.get(block(number)).is_none()
                        && set.note_read(block(number), parts * 100, length)
                    {
                        set.insert(block(number), stamp, length as usize, drop);
                    }
                }
                Step::Insert { number, cost } => {
                    let kept = set.insert(block(number), stamp, cost, drop);
                    prop_assert_eq!(kept, cost <= budget);
                    prop_assert_eq!(set.get(block(number)), kept.then_some(&stamp));
                }
                Step::Remove(number) => {
                    set.remove(block(number));
                    prop_assert!(set.get(block(number)).is_none());
                }
                Step::Shed(bytes) => {
                    let before = set.used_bytes();
                    set.shed(bytes, drop);
                    prop_assert!(set.used_bytes() <= before.saturating_sub(bytes));
                }
            }
            prop_assert!(set.used_bytes() <= budget);
            let sum: usize = set.queue.iter().map(|(_, kept)| kept.cost).sum();
            prop_assert_eq!(set.used_bytes(), sum);
        }
    }
}
