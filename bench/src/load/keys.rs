//! Which object comes next: owns key names, their order, and the generator's random numbers. Deterministic for one seed.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::content::mix;
use crate::load::plan::Method;
use crate::load::sizes::Sizes;
use crate::load::trace::{self, Entry};

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

    /// One of the many sequences of a seed.
    pub(super) fn of(seed: u64, number: u64) -> Self {
        Self::new(mix(seed) ^ number)
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
        unit(self.next())
    }
}

/// A random word as a number in [0, 1).
pub(super) fn unit(word: u64) -> f64 {
    (word >> 11) as f64 / (1_u64 << 53) as f64
}

/// The order in which keys are asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Order {
    Uniform,
    Sequential,
    Zipf(f64),
    /// As written down, again and again.
    Trace(Vec<Entry>),
}

impl Order {
    /// Reads `--order`, and the file that it may name.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(file) = text.strip_prefix("trace:") {
            return trace::read(Path::new(file)).map(Self::Trace);
        }
        match (text, text.strip_prefix("zipf:").map(str::parse::<f64>)) {
            ("uniform", _) => Ok(Self::Uniform),
            ("sequential", _) => Ok(Self::Sequential),
            (_, Some(Ok(exponent))) if exponent > 0.0 && exponent.is_finite() => {
                Ok(Self::Zipf(exponent))
            }
            _ => Err(format!(
                "--order {text:?}: expected uniform, sequential, zipf:EXPONENT (such as zipf:0.9) or trace:FILE"
            )),
        }
    }
}

/// What the keys of a run are called, and how large the objects are.
#[derive(Debug, Clone)]
pub(super) struct Naming<'a> {
    pub(super) pattern: &'a str,
    /// As typed.
    pub(super) size: &'a str,
    /// Different keys, which have the numbers from `first` on.
    pub(super) count: u64,
    pub(super) first: u64,
    /// What stands for this run alone.
    pub(super) run: &'a str,
}

/// One request's object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: String,
    pub(super) size: u64,
    /// As a trace wants it.
    pub(super) method: Option<Method>,
    /// As a trace wants it: offset and length.
    pub(super) range: Option<(u64, u64)>,
}

/// All objects of a run, shared by its threads.
#[derive(Debug)]
pub(super) struct Keys {
    pattern: String,
    count: u64,
    first: u64,
    sizes: Sizes,
    order: Order,
    /// Next number in sequential order, over all connections.
    next: AtomicU64,
    /// Cumulated weights, for Zipf.
    cumulated: Vec<f64>,
}

impl Keys {
    pub(super) fn new(naming: &Naming<'_>, order: Order) -> Result<Self, String> {
        let sizes: Sizes = naming.size.parse()?;
        let mut count = naming.count;
        if count == 0 {
            return Err("the number of keys must be above 0".into());
        }
        let mut pattern = naming.pattern.replace("{run}", naming.run);
        if matches!(sizes, Sizes::Fixed(_)) {
            pattern = pattern.replace("{size}", naming.size);
        }
        let cumulated = match &order {
            Order::Zipf(_) if count > ZIPF_KEYS_MAX => {
                return Err(format!("--order zipf takes at most {ZIPF_KEYS_MAX} keys"));
            }
            Order::Zipf(exponent) => cumulate(count, *exponent),
            Order::Trace(entries) => {
                count = entries.len() as u64;
                Vec::new()
            }
            Order::Uniform | Order::Sequential => Vec::new(),
        };
        if count > 1 && !pattern.contains("{i}") && !matches!(order, Order::Trace(_)) {
            return Err(format!(
                "--key-pattern {pattern:?} has no {{i}}, so it cannot name {count} keys"
            ));
        }
        Ok(Self {
            pattern,
            count,
            first: naming.first,
            sizes,
            order,
            next: AtomicU64::new(0),
            cumulated,
        })
    }

    /// The number of the next object, below the number of keys or of a trace's lines.
    pub(super) fn next(&self, random: &mut Random) -> u64 {
        match self.order {
            Order::Uniform => random.below(self.count),
            Order::Sequential | Order::Trace(_) => {
                self.next.fetch_add(1, Ordering::Relaxed) % self.count
            }
            Order::Zipf(_) => {
                let total = self.cumulated.last().copied().unwrap_or_default();
                let wanted = random.unit() * total;
                let rank = self.cumulated.partition_point(|sum| *sum <= wanted) as u64;
                rank.min(self.count - 1)
            }
        }
    }

    /// The object of that number.
    pub(super) fn item(&self, number: u64) -> Item {
        if let Order::Trace(entries) = &self.order {
            let entry = &entries[number as usize];
            return Item {
                key: entry.key.to_string(),
                size: entry.size,
                method: entry.method,
                range: entry.range,
            };
        }
        let number = self.first + number;
        let size = self.sizes.of(number);
        let mut key = self.pattern.replace("{i}", &number.to_string());
        if !matches!(self.sizes, Sizes::Fixed(_)) {
            key = key.replace("{size}", &size.to_string());
        }
        Item {
            key,
            size,
            method: None,
            range: None,
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The size that all objects have, if they all have one.
    pub(super) fn only_size(&self) -> Option<u64> {
        match (&self.sizes, &self.order) {
            (_, Order::Trace(_)) => None,
            (Sizes::Fixed(size), _) => Some(*size),
            _ => None,
        }
    }

    /// The largest object's size.
    pub(super) fn size_max(&self) -> u64 {
        match &self.order {
            Order::Trace(entries) => entries.iter().map(|entry| entry.size).max().unwrap_or(0),
            _ => self.sizes.max(),
        }
    }

    /// Whether a trace asks for this method by name.
    pub(super) fn names_method(&self, method: Method) -> bool {
        match &self.order {
            Order::Trace(entries) => entries.iter().any(|entry| entry.method == Some(method)),
            _ => false,
        }
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

    fn named(pattern: &'static str, size: &'static str, count: u64) -> Naming<'static> {
        Naming {
            pattern,
            size,
            count,
            first: 0,
            run: "r",
        }
    }

    fn counts(order: Order, draws: u64) -> Vec<u64> {
        let keys = Keys::new(&named("k{i}", "1", 10), order).unwrap();
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
        let keys = Keys::new(&named("b/{size}/{i}", "4MiB", 3), Order::Uniform).unwrap();
        let item = keys.item(2);
        assert_eq!((item.key.as_str(), item.size), ("b/4MiB/2", 4 << 20));
        assert!(Keys::new(&named("same", "1", 2), Order::Uniform).is_err());
        assert!(Keys::new(&named("same", "1", 1), Order::Uniform).is_ok());
        assert_eq!(Order::parse("zipf:0.9"), Ok(Order::Zipf(0.9)));
        for wrong in ["zipf", "zipf:x", "zipf:-1", "random", "trace:/no/such/file"] {
            assert!(Order::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_carry_the_run_the_first_number_and_a_drawn_size() {
        let naming = Naming {
            first: 100,
            ..named("{run}/{size}/{i}", "1..1000", 5)
        };
        let keys = Keys::new(&naming, Order::Sequential).unwrap();
        let item = keys.item(3);
        assert_eq!(item.key, format!("r/{}/103", item.size));
        assert!((1..=1000).contains(&item.size) && keys.only_size().is_none());
    }
}
