//! Seeded dice: everything that a simulation leaves to chance is drawn from here.
//!
//! It never reads a clock, an address or a global generator: equal seeds give equal throws.

/// A seeded generator. Clones go on from the same point, apart from each other.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice whose every throw follows from `seed`.
    pub fn new(seed: u64) -> Dice {
        Dice(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    /// SplitMix64 (Steele et al. 2014): a whole period from any seed, and no dependency.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }

    /// True once in `count` throws.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// True `per_mille` times in a thousand throws.
    pub fn strikes(&mut self, per_mille: u32) -> bool {
        // A chance of zero draws nothing, so that a fault that is off changes no other throw.
        per_mille > 0 && self.below(1000) < u64::from(per_mille)
    }
}
