//! Which key comes next: owns key names, their order, and the generator's random numbers. Deterministic for one seed.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::content::mix;

/// What may stand bare in the path of a request.
const PATH_SET: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');

/// Most keys for a Zipf order, whose table takes 8 bytes for each.
const ZIPF_KEYS_MAX: u64 = 10_000_000;

/// Random numbers for load, not for secrets.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Below `bound`, which is not 0. The bias is below one in a billion for any number of keys there can be.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// In [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The order in which keys are asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Order {
    Uniform,
    Sequential,
    Zipf(f64),
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("zipf:").map(str::parse::<f64>)) {
            ("uniform", _) => Ok(Self::Uniform),
            ("sequential", _) => Ok(Self::Sequential),
            (_, Some(Ok(exponent))) if exponent > 0.0 && exponent.is_finite() => {
                Ok(Self::Zipf(exponent))
            }
            _ => Err(format!(
                "--order {text:?}: expected uniform, sequential or zipf:EXPONENT, such as zipf:0.9"
            )),
        }
    }
}

/// All keys of a run, shared by its threads.
#[derive(Debug)]
pub(super) struct Keys {
    pattern: String,
    count: u64,
    order: Order,
    /// Next number in sequential order, over all connections.
    next: AtomicU64,
    /// Cumulated weights, for Zipf.
    cumulated: Vec<f64>,
}

impl Keys {
    pub(super) fn new(pattern: &str, size: &str, count: u64, order: Order) -> Result<Self, String> {
        if count == 0 {
            return Err("the number of keys must be above 0".into());
        }
        let pattern = pattern.replace("{size}", size);
        if count > 1 && !pattern.contains("{i}") {
            return Err(format!(
                "--key-pattern {pattern:?} has no {{i}}, so it cannot name {count} keys"
            ));
        }
        let cumulated = match order {
            Order::Zipf(_) if count > ZIPF_KEYS_MAX => {
                return Err(format!("--order zipf takes at most {ZIPF_KEYS_MAX} keys"));
            }
            Order::Zipf(exponent) => cumulate(count, exponent),
            Order::Uniform | Order::Sequential => Vec::new(),
        };
        Ok(Self {
            pattern,
            count,
            order,
            next: AtomicU64::new(0),
            cumulated,
        })
    }

    /// The number of the next key.
    pub(super) fn next(&self, random: &mut Random) -> u64 {
        match self.order {
            Order::Uniform => random.below(self.count),
            Order::Sequential => self.next.fetch_add(1, Ordering::Relaxed) % self.count,
            Order::Zipf(_) => {
                let total = self.cumulated.last().copied().unwrap_or_default();
                let wanted = random.unit() * total;
                let rank = self.cumulated.partition_point(|sum| *sum <= wanted) as u64;
                rank.min(self.count - 1)
            }
        }
    }

    pub(super) fn name(&self, number: u64) -> String {
        self.pattern.replace("{i}", &number.to_string())
    }
}

fn cumulate(count: u64, exponent: f64) -> Vec<f64> {
    let mut sum = 0.0;
    let weights = (1..=count).map(|rank| (rank as f64).powf(-exponent));
    weights
        .map(|weight| {
            sum += weight;
            sum
        })
        .collect()
}

/// A key as it stands in a request.
pub(super) fn encode(key: &str) -> String {
    utf8_percent_encode(key, PATH_SET).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(order: Order, draws: u64) -> Vec<u64> {
        let keys = Keys::new("k{i}", "1", 10, order).unwrap();
        let mut random = Random::new(1);
        let mut counts = vec![0; 10];
        (0..draws).for_each(|_| counts[keys.next(&mut random) as usize] += 1);
        counts
    }

    #[test]
    fn orders_draw_as_they_promise() {
        assert_eq!(counts(Order::Sequential, 30), [3; 10]);
        let uniform = counts(Order::Uniform, 10_000);
        assert!(
            uniform.iter().all(|count| (800..1200).contains(count)),
            "{uniform:?}"
        );
        let zipf = counts(Order::Zipf(1.0), 10_000);
        // The weights are 1, 1/2, ... 1/10, their sum 2.929.
        assert!((3200..3630).contains(&zipf[0]), "{zipf:?}");
        assert!((280..410).contains(&zipf[9]), "{zipf:?}");
    }

    #[test]
    fn patterns_and_orders_are_checked() {
        let keys = Keys::new("b/{size}/{i}", "4MiB", 3, Order::Uniform).unwrap();
        assert_eq!(keys.name(2), "b/4MiB/2");
        assert!(Keys::new("same", "1", 2, Order::Uniform).is_err());
        assert!(Keys::new("same", "1", 1, Order::Uniform).is_ok());
        assert_eq!("zipf:0.9".parse(), Ok(Order::Zipf(0.9)));
        for wrong in ["zipf", "zipf:x", "zipf:-1", "random"] {
            assert!(wrong.parse::<Order>().is_err(), "{wrong}");
        }
    }
}
