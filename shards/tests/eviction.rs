//! What eviction promises, on small caches: as many hits as LRU of the same quota, more under a
//! scan, within the write budget. `bench/eviction` shows the same with more seeds and with figures.

#[path = "../examples/eviction/contest.rs"]
mod contest;
#[path = "../examples/eviction/trace.rs"]
mod trace;

use contest::{Geometry, lru_hit_ratio, run_shards};
use forebay_shards::evict::WRITE_BUDGET_PERCENT;
use trace::Trace;

/// The same as in `bench/eviction`: shards cut as in a small folder, so that their spare segments weigh as much as they do there.
const GEOMETRY: Geometry = Geometry {
    shards: 4,
    segments: 96,
    segment_records: 8,
};

/// Of the workload. `bench/eviction` has five.
const SEED: u64 = 11;

fn holds_on(trace: Trace) {
    let requests = trace.requests(GEOMETRY.cache_records(), SEED);
    let lru = lru_hit_ratio(&requests, GEOMETRY.cache_records());
    let ours = run_shards(requests, GEOMETRY, WRITE_BUDGET_PERCENT, SEED);
    let required = lru * trace.hit_ratio_required();
    assert!(
        ours.hit_ratio >= required,
        "{}, seed {SEED}: hit ratio {:.4}, required {required:.4} (LRU {lru:.4})",
        trace.name(),
        ours.hit_ratio,
    );
    let written_max = 1.0 + f64::from(WRITE_BUDGET_PERCENT) / 100.0;
    assert!(
        ours.write_amplification <= written_max,
        "{}, seed {SEED}: {:.3} bytes written for each admitted, at most {written_max}",
        trace.name(),
        ours.write_amplification,
    );
}

#[test]
fn a_scan_does_not_flush_the_cache() {
    holds_on(Trace::Scan);
}

#[test]
fn a_shifting_hot_set_is_followed() {
    holds_on(Trace::ShiftingHotSet);
}

#[test]
fn a_loop_larger_than_the_cache_still_hits() {
    let requests = Trace::Loop.requests(GEOMETRY.cache_records(), SEED);
    let ours = run_shards(requests, GEOMETRY, WRITE_BUDGET_PERCENT, SEED);
    // LRU has no hits at all here, so to be as good is to be nothing.
    assert!(ours.hit_ratio > 0.01, "{:.4}", ours.hit_ratio);
    holds_on(Trace::Loop);
}

#[test]
fn overwrites_do_not_crowd_out_what_is_read() {
    holds_on(Trace::Overwrites);
}
