//! Many seeds of random lives. A seed that fails says how to run it alone.
//!
//! `FOREBAY_SIM_SEEDS` is how many seeds are run, `FOREBAY_SIM_SEED` the first of them.

use crate::support::workload;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Seeds that a debug build runs in about twenty seconds.
const SEEDS_DEFAULT: u64 = 250;

fn from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} must be a whole number")),
        Err(_) => default,
    }
}

#[test]
fn random_lives_keep_every_promise() {
    let first = from_environment("FOREBAY_SIM_SEED", 1);
    let count = from_environment("FOREBAY_SIM_SEEDS", SEEDS_DEFAULT);
    for seed in first..first + count {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| workload::run(seed))) {
            eprintln!(
                "seed {seed} failed; replay it with\n  FOREBAY_SIM_SEED={seed} FOREBAY_SIM_SEEDS=1 \
                 cargo test -p forebay-shards --test sim random_lives"
            );
            resume_unwind(panic);
        }
    }
}

#[test]
fn the_same_seed_lives_the_same_lives() {
    let first = from_environment("FOREBAY_SIM_SEED", 1);
    for seed in first..first + 5 {
        let (one, two) = (workload::run(seed), workload::run(seed));
        assert!(!one.is_empty());
        for (at, (one, two)) in one.iter().zip(&two).enumerate() {
            assert_eq!(one, two, "seed {seed}, event {at}");
        }
        assert_eq!(one.len(), two.len());
    }
}
