//! How long to wait after the n-th failure in a row. Pure arithmetic that never overflows: chance
//! is an argument, and the count of failures may be anything.

use std::time::Duration;

/// The first wait and the longest one; each is twice the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    /// Longest wait after the first failure.
    pub base: Duration,
    /// Longest wait ever.
    pub cap: Duration,
}

impl Backoff {
    /// The longest wait after so many failures in a row.
    pub fn longest(self, failures: u32) -> Duration {
        // 2³¹ times the smallest base is days, so a larger exponent could tell nothing more.
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }

    /// Anything from nothing to the longest wait ("full jitter" of the AWS architecture blog's
    /// "Exponential Backoff And Jitter"): spreads those who failed together as far as possible.
    pub fn full_jitter(self, failures: u32, random: u64) -> Duration {
        share(self.longest(failures), random)
    }

    /// From half of the longest wait to all of it, where there must be a rest whatever chance says.
    pub fn half_jitter(self, failures: u32, random: u64) -> Duration {
        let half = self.longest(failures) / 2;
        half + share(half, random)
    }
}

/// `random / 2⁶⁴` of a duration.
fn share(whole: Duration, random: u64) -> Duration {
    let nanoseconds = whole.as_nanos().min(u128::from(u64::MAX)) * u128::from(random);
    Duration::from_nanos((nanoseconds >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let backoff = Backoff {
            base: Duration::from_millis(250),
            cap: Duration::from_secs(60),
        };
        let longest = |failures| backoff.longest(failures).as_millis();
        assert_eq!([0, 1, 2, 3, 8].map(longest), [250, 250, 500, 1000, 32_000]);
        assert_eq!([9, 32, 64, u32::MAX].map(longest), [60_000; 4]);
    }

    #[test]
    fn chance_reaches_from_end_to_end() {
        let backoff = Backoff {
            base: Duration::from_secs(4),
            cap: Duration::from_secs(8),
        };
        assert_eq!(backoff.full_jitter(1, 0), Duration::ZERO);
        assert_eq!(backoff.full_jitter(1, 1 << 63), Duration::from_secs(2));
        assert_eq!(backoff.half_jitter(1, 0), Duration::from_secs(2));
        assert_eq!(backoff.half_jitter(1, 1 << 63), Duration::from_secs(3));
        let nearly = Duration::from_secs(8) - Duration::from_nanos(1);
        assert_eq!(backoff.full_jitter(2, u64::MAX), nearly);
        assert_eq!(backoff.half_jitter(2, u64::MAX), nearly);
    }

    proptest! {
        #[test]
        fn no_wait_is_out_of_bounds(
            base_ms in 0..10_000_u64, cap_ms in 0..10_000_000_u64, failures: u32, random: u64,
        ) {
            let backoff = Backoff {
                base: Duration::from_millis(base_ms),
                cap: Duration::from_millis(cap_ms),
            };
            let longest = backoff.longest(failures);
            prop_assert!(longest <= backoff.cap);
            prop_assert!(longest <= backoff.longest(failures.saturating_add(1)));
            prop_assert!(backoff.full_jitter(failures, random) <= longest);
            let half = backoff.half_jitter(failures, random);
            prop_assert!(longest / 2 <= half && half <= longest);
        }
    }
}
