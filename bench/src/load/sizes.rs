//! How large objects are: owns the distributions of sizes. An object's size follows from its key's number alone, so that a
//! reader knows what a writer wrote without being told.

use std::str::FromStr;

use crate::content::{mix, parse_size};
use crate::load::keys::unit;

/// Sets the draw of sizes apart from all else that is drawn from a key's number.
const SALT: u64 = 0x7369_7a65_7369_7a65;

/// The sizes of a run's objects.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Sizes {
    Fixed(u64),
    /// Evenly by logarithm between two sizes, both included.
    LogUniform(u64, u64),
    /// Size and cumulated weight of each.
    Weighted(Vec<(u64, f64)>),
}

impl Sizes {
    /// The size of the object with this number.
    pub(super) fn of(&self, number: u64) -> u64 {
        let drawn = unit(mix(number ^ SALT));
        match self {
            Self::Fixed(size) => *size,
            Self::LogUniform(low, high) => {
                let (low_f, high_f) = (*low as f64, (*high + 1) as f64);
                let size = low_f * (high_f / low_f).powf(drawn);
                (size as u64).clamp(*low, *high)
            }
            Self::Weighted(sizes) => {
                let total = sizes.last().map_or(0.0, |(_, sum)| *sum);
                let found = sizes.iter().find(|(_, sum)| *sum > drawn * total);
                found.or(sizes.last()).map_or(0, |(size, _)| *size)
            }
        }
    }

    pub(super) fn max(&self) -> u64 {
        match self {
            Self::Fixed(size) | Self::LogUniform(_, size) => *size,
            Self::Weighted(sizes) => sizes.iter().map(|(size, _)| *size).max().unwrap_or(0),
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((low, high)) = text.split_once("..") {
            let (low, high) = (parse_size(low)?, parse_size(high)?);
            if low == 0 || low > high {
                return Err(format!(
                    "--size {text:?}: expected a smaller and a larger size, both above 0"
                ));
            }
            return Ok(Self::LogUniform(low, high));
        }
        if !text.contains(':') {
            return parse_size(text).map(Self::Fixed);
        }
        let mut sum = 0.0;
        let weighted = text.split(',').map(|part| {
            let wrong = || format!("--size {text:?}: expected SIZE:WEIGHT,SIZE:WEIGHT");
            let (size, weight) = part.split_once(':').ok_or_else(wrong)?;
            let weight: f64 = weight.trim().parse().map_err(|_| wrong())?;
            if !(weight > 0.0 && weight.is_finite()) {
                return Err(format!("--size {text:?}: weights are above 0"));
            }
            sum += weight;
            Ok((parse_size(size.trim())?, sum))
        });
        weighted.collect::<Result<_, String>>().map(Self::Weighted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(text: &str) -> Sizes {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_has_one_size_and_sizes_are_spread_as_asked() {
        assert_eq!(sizes("1MiB").of(7), 1 << 20);
        let spread = sizes("256KiB..8MiB");
        let drawn: Vec<u64> = (0..10_000).map(|number| spread.of(number)).collect();
        assert!(
            drawn
                .iter()
                .all(|size| (262_144..=8_388_608).contains(size))
        );
        assert_eq!(drawn[17], spread.of(17));
        // Five doublings, so a fifth of the objects lies in each.
        let first = drawn.iter().filter(|size| **size < 524_288).count();
        let last = drawn.iter().filter(|size| **size >= 4_194_304).count();
        assert!(
            (1800..2200).contains(&first) && (1800..2200).contains(&last),
            "{first} {last}"
        );
        let tiny = sizes("1..3");
        assert!((1..=3).all(|size| (0..100).any(|number| tiny.of(number) == size)));
    }

    #[test]
    fn weights_are_shares() {
        let weighted = sizes("64KiB:50,1MiB:30,4MiB:20");
        let share = |size| (0..10_000).filter(|n| weighted.of(*n) == size).count();
        assert!((4800..5200).contains(&share(65_536)));
        assert!((2800..3200).contains(&share(1 << 20)));
        assert!((1800..2200).contains(&share(4 << 20)));
        assert_eq!(weighted.max(), 4 << 20);
    }

    #[test]
    fn nonsense_is_refused() {
        for wrong in [
            "8..4",
            "0..4",
            "1MiB:0",
            "1MiB:x",
            "1MiB:1,2MiB",
            "..",
            "1XB",
        ] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong}");
        }
    }
}
