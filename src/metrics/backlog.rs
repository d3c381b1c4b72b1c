//! Metrics of what is acknowledged and not yet in a store. Unlike most, they are sums over all cores.

use super::{Kind, Metric, Page};
use forebay_shards::backlog::Backlog;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const UPLOAD_PAUSED: Metric = Metric(
    "forebay_upload_paused_seconds",
    Kind::Gauge,
    "How long no upload to a store is begun, because it failed; by the store's number.",
);
const OLDEST: Metric = Metric(
    "forebay_dirty_oldest_age_seconds",
    Kind::Gauge,
    "Time since the oldest block that waits for its upload was acknowledged; 0 if none waits.",
);
/// A metric, and where its value is.
type Sum = (Metric, fn(&Backlog) -> u64);

/// Sums over all cores.
const SUMS: [Sum; 13] = [
    (
        Metric(
            "forebay_dirty_blocks",
            Kind::Gauge,
            "Blocks acknowledged and to be uploaded.",
        ),
        |backlog| backlog.blocks,
    ),
    (
        Metric(
            "forebay_dirty_bytes",
            Kind::Gauge,
            "Bytes of blocks acknowledged and to be uploaded.",
        ),
        |backlog| backlog.bytes,
    ),
    (
        Metric(
            "forebay_dirty_soft_limit_bytes",
            Kind::Gauge,
            "Bytes of dirty records from which on writers are slowed.",
        ),
        |backlog| backlog.soft_limit_bytes,
    ),
    (
        Metric(
            "forebay_dirty_hard_limit_bytes",
            Kind::Gauge,
            "Bytes of dirty records from which on writes go through to the store.",
        ),
        |backlog| backlog.hard_limit_bytes,
    ),
    (
        Metric(
            "forebay_uploads_in_flight",
            Kind::Gauge,
            "Blocks on their way to a store.",
        ),
        |backlog| backlog.uploading,
    ),
    (
        Metric(
            "forebay_quarantined_blocks",
            Kind::Gauge,
            "Blocks kept because a store refuses them for good, or because they are damaged; see \
             `forebay dirty`.",
        ),
        |backlog| backlog.quarantined_blocks,
    ),
    (
        Metric(
            "forebay_quarantined_bytes",
            Kind::Gauge,
            "Bytes of quarantined blocks.",
        ),
        |backlog| backlog.quarantined_bytes,
    ),
    (
        Metric(
            "forebay_conflict_blocks",
            Kind::Gauge,
            "Blocks kept and not served because their store has something newer; see `forebay dirty`.",
        ),
        |backlog| backlog.conflict_blocks,
    ),
    (
        Metric(
            "forebay_conflict_bytes",
            Kind::Gauge,
            "Bytes of blocks in conflict.",
        ),
        |backlog| backlog.conflict_bytes,
    ),
    (
        Metric(
            "forebay_orphaned_blocks",
            Kind::Gauge,
            "Dirty blocks of volumes or stores that the settings no longer name.",
        ),
        |backlog| backlog.orphaned_blocks,
    ),
    (
        Metric(
            "forebay_unsynced_bytes",
            Kind::Gauge,
            "Bytes acknowledged that a power cut could still take.",
        ),
        |backlog| backlog.unsynced_bytes,
    ),
    (
        Metric(
            "forebay_dirty_shards_unread",
            Kind::Gauge,
            "Shards whose dirty blocks are not all counted yet after a start.",
        ),
        |backlog| backlog.shards_unread,
    ),
    (
        Metric(
            "forebay_draining",
            Kind::Gauge,
            "1 while a drain keeps new dirty blocks out.",
        ),
        |backlog| backlog.draining.into(),
    ),
];

/// Renders all of them.
pub(super) fn render(page: &mut Page, backlog: &Backlog, now: SystemTime) {
    for (metric, pick) in &SUMS {
        page.begin(metric);
        let _ = writeln!(page.0, "{} {}", metric.0, pick(backlog));
    }
    let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis());
    let age_ms = backlog.oldest_age_ms(now_ms as u64);
    page.begin(&OLDEST);
    let _ = writeln!(page.0, "{} {}", OLDEST.0, age_ms as f64 / 1e3);
    page.begin(&UPLOAD_PAUSED);
    for store in &backlog.stores {
        let labels = format_args!("store=\"{}\"", store.store);
        page.sample(&UPLOAD_PAUSED, labels, store.paused_ms as f64 / 1e3);
    }
}
