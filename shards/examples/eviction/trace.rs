//! The requests that cache policies are compared on.
//!
//! Four ordinary workloads, each sized by the cache it meets, each wholly determined by a seed.
//! This file makes requests only; it knows no cache.

/// Keys of the skewed traces, in cache sizes: a cache that holds a tenth of its bucket.
const KEYS_PER_CACHE: usize = 10;

/// Skew of popularity in the skewed traces.
const ZIPF_EXPONENT: f64 = 0.9;

/// Requests before those that count, in cache sizes: enough to fill the cache and settle it.
const WARM_UP_CACHES: usize = 10;

/// Requests that count, in cache sizes.
const MEASURED_CACHES: usize = 20;

/// Requests between two changes of popularity. Each change makes some key one of the hottest, as
/// many as the cache holds, so these are all replaced once in five cache sizes of requests.
const REQUESTS_PER_CHANGE: usize = 5;

/// Length of the loop in percent of the cache.
const LOOP_PERCENT: usize = 110;

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which block.
    pub key: u32,
    /// Whether it is overwritten rather than read.
    pub is_write: bool,
    /// Whether it counts: false for the warm-up.
    pub is_measured: bool,
}

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Zipf reads; then, one request in two, somebody reads every key once and in order, as a
    /// backup does. It is ten times the cache, and only the time of the scan counts.
    Scan,
    /// Zipf reads by popularity that changes: keys become hot and others cease to be, one by one.
    ShiftingHotSet,
    /// The same keys in the same order again and again, a tenth more of them than fit.
    Loop,
    /// Zipf; every second request overwrites its block.
    Overwrites,
}

impl Trace {
    /// What to call it in a table.
    pub fn name(self) -> &'static str {
        match self {
            Trace::Scan => "Zipf 0.9 + scan of 10 caches",
            Trace::ShiftingHotSet => "Zipf 0.9, shifting hot set",
            Trace::Loop => "loop over 1.1 caches",
            Trace::Overwrites => "Zipf 0.9, 50 % overwrites",
        }
    }

    /// The least hit ratio that is good enough, in those of LRU.
    pub fn hit_ratio_required(self) -> f64 {
        match self {
            Trace::Scan => 1.15,
            Trace::ShiftingHotSet | Trace::Loop | Trace::Overwrites => 1.0,
        }
    }

    /// The requests to a cache that holds `cache_records`.
    pub fn requests(self, cache_records: usize, seed: u64) -> Vec<Request> {
        let mut skewed = Skewed::new(cache_records * KEYS_PER_CACHE, seed);
        let warm_up = cache_records * WARM_UP_CACHES;
        let length = warm_up + cache_records * MEASURED_CACHES;
        let request = |key, number| Request {
            key,
            is_write: false,
            is_measured: number >= warm_up,
        };
        let numbers = 0..length;
        match self {
            Trace::Scan => numbers
                .map(|number| match number.checked_sub(warm_up) {
                    Some(since) if since % 2 == 0 => request(since as u32 / 2, number),
                    _ => request(skewed.draw(), number),
                })
                .collect(),
            Trace::ShiftingHotSet => numbers
                .map(|number| {
                    if number % REQUESTS_PER_CHANGE == 0 {
                        skewed.change(cache_records);
                    }
                    request(skewed.draw(), number)
                })
                .collect(),
            Trace::Loop => {
                let keys = cache_records * LOOP_PERCENT / 100;
                numbers
                    .map(|number| request((number % keys) as u32, number))
                    .collect()
            }
            Trace::Overwrites => numbers
                .map(|number| Request {
                    is_write: skewed.random.below(2) == 0,
                    ..request(skewed.draw(), number)
                })
                .collect(),
        }
    }
}

/// Draws keys by Zipf's law.
struct Skewed {
    /// Sums of the weights of the ranks up to each.
    cumulative: Vec<f64>,
    /// The key of each rank.
    keys: Vec<u32>,
    random: Random,
}

impl Skewed {
    fn new(keys: usize, seed: u64) -> Skewed {
        let mut sum = 0.0;
        let cumulative = (1..=keys)
            .map(|rank| {
                sum += (rank as f64).powf(-ZIPF_EXPONENT);
                sum
            })
            .collect();
        let mut skewed = Skewed {
            cumulative,
            keys: (0..keys as u32).collect(),
            random: Random(seed),
        };
        for rank in (1..keys).rev() {
            let other = skewed.random.below(rank + 1);
            skewed.keys.swap(rank, other);
        }
        skewed
    }

    fn draw(&mut self) -> u32 {
        let total = self.cumulative[self.cumulative.len() - 1];
        let point = self.random.fraction() * total;
        let rank = self.cumulative.partition_point(|sum| *sum < point);
        self.keys[rank.min(self.keys.len() - 1)]
    }

    /// One of the `hottest` keys swaps its popularity with any key.
    fn change(&mut self, hottest: usize) {
        let (one, other) = (
            self.random.below(hottest),
            self.random.below(self.keys.len()),
        );
        self.keys.swap(one, other);
    }
}

/// SplitMix64: small, seeded, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Below `limit`. The bias of the remainder is nothing at these sizes.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
