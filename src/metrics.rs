//! Metrics: every name, unit and help text, and their rendering for Prometheus.
//!
//! Names are stable from the first release on; only this file and those below it have any. They only
//! read.

mod backlog;

use crate::http::stats::HttpStats;
use forebay_io::histogram::{BOUNDS_US, HistogramSnapshot};
use forebay_shards::backlog::Backlog;
use forebay_shards::messages::Outcome;
use forebay_shards::stats::CoreSnapshot;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// How Prometheus takes a metric.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric's name, kind and help.
struct Metric(&'static str, Kind, &'static str);

const REQUESTS: Metric = Metric(
    "forebay_http_responses_total",
    Kind::Counter,
    "Responses by method, status and core.",
);
const CACHE_RESPONSES: Metric = Metric(
    "forebay_cache_responses_total",
    Kind::Counter,
    "Reads of objects by how they were answered (as in x-cache) and core; what is not in the store is a miss.",
);
const CACHE_BYTES: Metric = Metric(
    "forebay_cache_response_bytes_total",
    Kind::Counter,
    "Object bytes sent by how they were answered and core.",
);
const CACHE_SECONDS: Metric = Metric(
    "forebay_cache_response_seconds",
    Kind::Histogram,
    "Time from a read's head to its last byte sent, by how it was answered and core.",
);
const WRITE_SECONDS: Metric = Metric(
    "forebay_write_seconds",
    Kind::Histogram,
    "Time from a write's head to its answer, by core.",
);
const BYTES_IN: Metric = Metric(
    "forebay_http_received_bytes_total",
    Kind::Counter,
    "Object bytes received.",
);
const ACCEPTED: Metric = Metric(
    "forebay_connections_accepted_total",
    Kind::Counter,
    "Connections accepted.",
);
const OPEN: Metric = Metric("forebay_connections_open", Kind::Gauge, "Connections open.");
const HANDSHAKE_FAILURES: Metric = Metric(
    "forebay_tls_handshake_failures_total",
    Kind::Counter,
    "TLS handshakes that failed or took too long.",
);
const MALFORMED: Metric = Metric(
    "forebay_http_malformed_total",
    Kind::Counter,
    "Requests refused as malformed.",
);
const TOO_SLOW: Metric = Metric(
    "forebay_http_too_slow_total",
    Kind::Counter,
    "Connections closed for a deadline or a least rate.",
);
const ACCEPT_PAUSES: Metric = Metric(
    "forebay_accept_pauses_total",
    Kind::Counter,
    "Times that accepting paused because file descriptors ran out.",
);
const BLOCKS: Metric = Metric("forebay_disk_blocks", Kind::Gauge, "Blocks in the index.");
const DISK_USED: Metric = Metric(
    "forebay_disk_used_bytes",
    Kind::Gauge,
    "Bytes of segment files.",
);
const DISK_OVERDUE: Metric = Metric(
    "forebay_disk_overdue_operations",
    Kind::Gauge,
    "Operations that the disk has not answered in time; their shards are passed by.",
);
const DISK_QUOTA: Metric = Metric(
    "forebay_disk_quota_bytes",
    Kind::Gauge,
    "Bytes of segment files that the quota allows.",
);
const SCRUB_CYCLE: Metric = Metric(
    "forebay_scrub_cycle",
    Kind::Gauge,
    "Times that the background scrub has begun to read the core's shards.",
);
const SCRUB_BYTES: Metric = Metric(
    "forebay_scrub_bytes_total",
    Kind::Counter,
    "Payload bytes that the background scrub has read and verified.",
);
const SCRUB_DAMAGED: Metric = Metric(
    "forebay_scrub_damaged_records_total",
    Kind::Counter,
    "Records that the background scrub found damaged or unreadable, and dropped.",
);
const SHARDS: Metric = Metric(
    "forebay_shards",
    Kind::Gauge,
    "Virtual shards that the core runs.",
);
const SHARDS_LOADED: Metric = Metric(
    "forebay_shards_loaded",
    Kind::Gauge,
    "Virtual shards whose index is loaded; the others are read through.",
);
const SHARDS_FULL: Metric = Metric(
    "forebay_shards_disk_full",
    Kind::Gauge,
    "Virtual shards that a full file system keeps from growing to their quota.",
);
/// What the engine's shards count, by the name that they have there.
const SHARD: [(&str, Metric); 11] = [
    (
        "admitted_bytes",
        Metric(
            "forebay_disk_admitted_bytes_total",
            Kind::Counter,
            "Bytes of records that were cached on disk.",
        ),
    ),
    (
        "reappended_bytes",
        Metric(
            "forebay_disk_reappended_bytes_total",
            Kind::Counter,
            "Bytes of hot records that eviction wrote again.",
        ),
    ),
    (
        "written_bytes",
        Metric(
            "forebay_disk_log_bytes_total",
            Kind::Counter,
            "Bytes of all records written to the logs, tombstones and re-appended ones included.",
        ),
    ),
    (
        "segments_reclaimed",
        Metric(
            "forebay_segments_reclaimed_total",
            Kind::Counter,
            "Segments that were emptied to make room.",
        ),
    ),
    (
        "records_evicted",
        Metric(
            "forebay_blocks_evicted_total",
            Kind::Counter,
            "Blocks that left the disk cache to make room.",
        ),
    ),
    (
        "damaged_records",
        Metric(
            "forebay_relocation_failures_total",
            Kind::Counter,
            "Hot records that were damaged or unreadable when eviction came to write them again.",
        ),
    ),
    (
        "flushes",
        Metric(
            "forebay_flushes_total",
            Kind::Counter,
            "Flushes of acknowledged blocks to the disk's lasting memory.",
        ),
    ),
    (
        "flush_failures",
        Metric(
            "forebay_flush_failures_total",
            Kind::Counter,
            "Flushes that failed; what they were to cover is written again.",
        ),
    ),
    (
        "suspect_records",
        Metric(
            "forebay_suspect_blocks_total",
            Kind::Counter,
            "Acknowledged blocks that could not be written again at once after a failed flush.",
        ),
    ),
    (
        "dirty_moved",
        Metric(
            "forebay_dirty_blocks_moved_total",
            Kind::Counter,
            "Dirty blocks that were moved so that a segment came free.",
        ),
    ),
    (
        "writebacks_early",
        Metric(
            "forebay_writebacks_early_total",
            Kind::Counter,
            "Acknowledged writes of which the first bytes went to disk while the rest was received.",
        ),
    ),
];
const RAM_BYTES: Metric = Metric(
    "forebay_ram_used_bytes",
    Kind::Gauge,
    "Bytes in the RAM tier.",
);
const RAM_BLOCKS: Metric = Metric("forebay_ram_blocks", Kind::Gauge, "Blocks in the RAM tier.");
const BUFFERS: Metric = Metric(
    "forebay_buffer_used_bytes",
    Kind::Gauge,
    "Bytes of block buffers in use by all cores, RAM tiers included.",
);
const BUFFERS_KEPT: Metric = Metric(
    "forebay_buffer_kept_bytes",
    Kind::Gauge,
    "Bytes of block buffers not in use and kept for reuse.",
);
const BUFFER_BUDGET: Metric = Metric(
    "forebay_buffer_budget_bytes",
    Kind::Gauge,
    "Bytes of block buffers that may be in use.",
);
const FLIGHTS: Metric = Metric(
    "forebay_fetches_in_flight",
    Kind::Gauge,
    "Fetches from stores in flight.",
);
const BACKLOG: Metric = Metric(
    "forebay_uplink_queue_length",
    Kind::Gauge,
    "Orders waiting for the companion thread, by lane.",
);
const STORE_REQUESTS: Metric = Metric(
    "forebay_store_requests_total",
    Kind::Counter,
    "Requests to object stores by verb and outcome (a status or the kind of failure).",
);
const STORE_SECONDS: Metric = Metric(
    "forebay_store_request_seconds",
    Kind::Histogram,
    "Time from an order to the head of the store's answer, retries included, by core.",
);
const UPTIME: Metric = Metric(
    "forebay_uptime_seconds",
    Kind::Gauge,
    "Seconds since the server started.",
);

/// Metrics of the owner cores' counters, by the counter's name.
const ENGINE: [(&str, Metric); 21] = [
    (
        "fills",
        Metric(
            "forebay_fills_total",
            Kind::Counter,
            "Fetches of blocks begun.",
        ),
    ),
    (
        "fill_bytes",
        Metric(
            "forebay_fill_bytes_total",
            Kind::Counter,
            "Bytes that fetches brought.",
        ),
    ),
    (
        "fill_failures",
        Metric(
            "forebay_fill_failures_total",
            Kind::Counter,
            "Fetches that failed after their head.",
        ),
    ),
    (
        "coalesced",
        Metric(
            "forebay_coalesced_total",
            Kind::Counter,
            "Readers that joined a fetch in flight.",
        ),
    ),
    (
        "assembled",
        Metric(
            "forebay_blocks_assembled_total",
            Kind::Counter,
            "Blocks of new objects put together from cached parts or copied objects, without a fetch.",
        ),
    ),
    (
        "assembled_bytes",
        Metric(
            "forebay_blocks_assembled_bytes_total",
            Kind::Counter,
            "Bytes of such blocks.",
        ),
    ),
    (
        "revalidations",
        Metric(
            "forebay_revalidations_total",
            Kind::Counter,
            "Cached copies that a store confirmed.",
        ),
    ),
    (
        "negative_hits",
        Metric(
            "forebay_negative_hits_total",
            Kind::Counter,
            "Reads told that there is no such object without asking a store (negative_ttl).",
        ),
    ),
    (
        "stale_served",
        Metric(
            "forebay_stale_served_total",
            Kind::Counter,
            "Cached copies served unconfirmed because the store did not answer.",
        ),
    ),
    (
        "records_written",
        Metric(
            "forebay_disk_records_written_total",
            Kind::Counter,
            "Records written to segments.",
        ),
    ),
    (
        "record_bytes_written",
        Metric(
            "forebay_disk_written_bytes_total",
            Kind::Counter,
            "Bytes of records written.",
        ),
    ),
    (
        "write_failures",
        Metric(
            "forebay_disk_write_failures_total",
            Kind::Counter,
            "Records that were not written.",
        ),
    ),
    (
        "records_read",
        Metric(
            "forebay_disk_records_read_total",
            Kind::Counter,
            "Records read from segments.",
        ),
    ),
    (
        "record_bytes_read",
        Metric(
            "forebay_disk_read_bytes_total",
            Kind::Counter,
            "Payload bytes wanted of them.",
        ),
    ),
    (
        "shared_reads",
        Metric(
            "forebay_disk_reads_shared_total",
            Kind::Counter,
            "Reads of a record that was being read for another one.",
        ),
    ),
    (
        "damaged_records",
        Metric(
            "forebay_damaged_records_total",
            Kind::Counter,
            "Records that failed their checks and were dropped.",
        ),
    ),
    (
        "read_failures",
        Metric(
            "forebay_disk_read_failures_total",
            Kind::Counter,
            "Records the disk could not read.",
        ),
    ),
    (
        "overloads",
        Metric(
            "forebay_overloads_total",
            Kind::Counter,
            "Requests refused for lack of memory.",
        ),
    ),
    (
        "writebacks",
        Metric(
            "forebay_writebacks_total",
            Kind::Counter,
            "Writes acknowledged before the store had them.",
        ),
    ),
    (
        "writebacks_refused",
        Metric(
            "forebay_writebacks_refused_total",
            Kind::Counter,
            "Writes that went through to the store because the disk would not take them.",
        ),
    ),
    (
        "writes_slowed",
        Metric(
            "forebay_writes_slowed_total",
            Kind::Counter,
            "Writes held for a moment because the disk fills up with dirty blocks.",
        ),
    ),
];

const UPLOADS: Metric = Metric(
    "forebay_uploads_total",
    Kind::Counter,
    "Uploads by how they ended: done; superseded (replaced or deleted meanwhile); failed (tried \
     again); refused (quarantined); conflict (the store has something newer).",
);
/// The outcomes by the name of the counter.
const UPLOAD_OUTCOMES: [(&str, &str); 5] = [
    ("uploads_done", "done"),
    ("uploads_superseded", "superseded"),
    ("uploads_failed", "failed"),
    ("uploads_refused", "refused"),
    ("uploads_conflict", "conflict"),
];

struct Page(String);

impl Page {
    fn begin(&mut self, metric: &Metric) {
        let kind = match metric.1 {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(
            self.0,
            "# HELP {} {}\n# TYPE {} {kind}",
            metric.0, metric.2, metric.0
        );
    }

    fn sample(
        &mut self,
        metric: &Metric,
        labels: std::fmt::Arguments<'_>,
        value: impl std::fmt::Display,
    ) {
        let _ = writeln!(self.0, "{}{{{labels}}} {value}", metric.0);
    }

    fn per_core<T>(
        &mut self,
        metric: &Metric,
        cores: impl IntoIterator<Item = T>,
        pick: impl Fn(&T) -> (usize, u64),
    ) {
        self.begin(metric);
        for core in cores {
            let (index, value) = pick(&core);
            self.sample(metric, format_args!("core=\"{index}\""), value);
        }
    }

    fn histogram(&mut self, metric: &Metric, labels: &str, buckets: &[u64], sum_us: u64) {
        let name = metric.0;
        let mut total = 0;
        for (at, count) in buckets.iter().enumerate() {
            total += count;
            let bound = BOUNDS_US
                .get(at)
                .map_or("+Inf".into(), |us| (*us as f64 / 1e6).to_string());
            let _ = writeln!(self.0, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(self.0, "{name}_sum{{{labels}}} {}", sum_us as f64 / 1e6);
        let _ = writeln!(self.0, "{name}_count{{{labels}}} {total}");
    }
}

/// Renders everything in Prometheus' text format 0.0.4.
pub fn render(
    cores: &[CoreSnapshot],
    dirty: &Backlog,
    http: &[HttpStats],
    uptime: Duration,
) -> String {
    let mut page = Page(String::with_capacity(32 << 10));
    render_http(&mut page, http);
    render_engine(&mut page, cores);
    backlog::render(&mut page, dirty, SystemTime::now());
    render_buffers(&mut page, cores);
    render_stores(&mut page, cores);
    page.begin(&UPTIME);
    let _ = writeln!(page.0, "{} {}", UPTIME.0, uptime.as_secs());
    page.0
}

fn render_http(page: &mut Page, http: &[HttpStats]) {
    page.begin(&REQUESTS);
    for (core, stats) in http.iter().enumerate() {
        for ((method, status), count) in stats.statuses() {
            let labels = format_args!("method=\"{method}\",status=\"{status}\",core=\"{core}\"");
            page.sample(&REQUESTS, labels, count);
        }
    }
    for (metric, pick) in [
        (
            &CACHE_RESPONSES,
            (|s, o| s.outcome(o).responses.get()) as fn(&HttpStats, Outcome) -> u64,
        ),
        (&CACHE_BYTES, |s, o| s.outcome(o).bytes.get()),
    ] {
        page.begin(metric);
        for (core, stats) in http.iter().enumerate() {
            for outcome in Outcome::ALL {
                let labels = format_args!("cache=\"{}\",core=\"{core}\"", outcome.label());
                page.sample(metric, labels, pick(stats, outcome));
            }
        }
    }
    page.begin(&CACHE_SECONDS);
    for (core, stats) in http.iter().enumerate() {
        for outcome in Outcome::ALL {
            let (buckets, sum_us) = stats.outcome(outcome).times.values();
            let labels = format!("cache=\"{}\",core=\"{core}\"", outcome.label());
            page.histogram(&CACHE_SECONDS, &labels, &buckets, sum_us);
        }
    }
    page.begin(&WRITE_SECONDS);
    for (core, stats) in http.iter().enumerate() {
        let (buckets, sum_us) = stats.write_times.values();
        page.histogram(
            &WRITE_SECONDS,
            &format!("core=\"{core}\""),
            &buckets,
            sum_us,
        );
    }
    for (metric, pick) in [
        (&BYTES_IN, (|s| s.bytes_in.get()) as fn(&HttpStats) -> u64),
        (&ACCEPTED, |s| s.accepted.get()),
        (&OPEN, |s| {
            s.open.load(std::sync::atomic::Ordering::Relaxed).max(0) as u64
        }),
        (&HANDSHAKE_FAILURES, |s| s.handshake_failures.get()),
        (&MALFORMED, |s| s.malformed.get()),
        (&TOO_SLOW, |s| s.too_slow.get()),
        (&ACCEPT_PAUSES, |s| s.accept_pauses.get()),
    ] {
        page.per_core(metric, http.iter().enumerate(), |(core, stats)| {
            (*core, pick(stats))
        });
    }
}

fn render_engine(page: &mut Page, cores: &[CoreSnapshot]) {
    for (counter, metric) in &ENGINE {
        page.per_core(metric, cores, |core| {
            (core.core, core.counters.get(counter).copied().unwrap_or(0))
        });
    }
    page.begin(&UPLOADS);
    for core in cores {
        for (counter, outcome) in &UPLOAD_OUTCOMES {
            let labels = format_args!("outcome=\"{outcome}\",core=\"{}\"", core.core);
            let count = core.counters.get(counter).copied().unwrap_or(0);
            page.sample(&UPLOADS, labels, count);
        }
    }
    for (counter, metric) in &SHARD {
        page.per_core(metric, cores, |core| {
            let count = core.shard_counters.get(counter);
            (core.core, count.copied().unwrap_or(0))
        });
    }
    for (metric, pick) in [
        (&BLOCKS, (|c| c.blocks) as fn(&CoreSnapshot) -> u64),
        (&DISK_USED, |c| c.disk_used_bytes),
        (&DISK_QUOTA, |c| c.disk_quota_bytes),
        (&DISK_OVERDUE, |c| c.disk_overdue),
        (&SCRUB_CYCLE, |c| c.scrub.cycle),
        (&SCRUB_BYTES, |c| c.scrub.bytes),
        (&SCRUB_DAMAGED, |c| c.scrub.damaged + c.scrub.unreadable),
        (&SHARDS, |c| c.shards),
        (&SHARDS_LOADED, |c| c.shards_loaded),
        (&SHARDS_FULL, |c| c.shards_full),
        (&RAM_BYTES, |c| c.ram_bytes),
        (&RAM_BLOCKS, |c| c.ram_blocks),
        (&FLIGHTS, |c| c.flights),
    ] {
        page.per_core(metric, cores, |core| (core.core, pick(core)));
    }
}

/// All cores share one pool: any of them tells its state.
fn render_buffers(page: &mut Page, cores: &[CoreSnapshot]) {
    let Some(core) = cores.first() else { return };
    for (metric, value) in [
        (&BUFFERS, core.buffer_bytes),
        (&BUFFERS_KEPT, core.buffer_kept_bytes),
        (&BUFFER_BUDGET, core.buffer_budget_bytes),
    ] {
        page.begin(metric);
        let _ = writeln!(page.0, "{} {value}", metric.0);
    }
}

fn render_stores(page: &mut Page, cores: &[CoreSnapshot]) {
    page.begin(&BACKLOG);
    for core in cores {
        let (fetches, uploads) = core.uplink_backlog;
        for (lane, length) in [("fetch", fetches), ("upload", uploads)] {
            let labels = format_args!("lane=\"{lane}\",core=\"{}\"", core.core);
            page.sample(&BACKLOG, labels, length);
        }
    }
    page.begin(&STORE_REQUESTS);
    for core in cores {
        for ((verb, outcome), count) in &core.store_requests {
            let labels = format_args!(
                "verb=\"{verb}\",outcome=\"{outcome}\",core=\"{}\"",
                core.core
            );
            page.sample(&STORE_REQUESTS, labels, count);
        }
    }
    page.begin(&STORE_SECONDS);
    for core in cores {
        let HistogramSnapshot { buckets, sum_us } = &core.store_latency;
        page.histogram(
            &STORE_SECONDS,
            &format!("core=\"{}\"", core.core),
            buckets,
            *sum_us,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_shards::backlog::StoreBacklog;
    use forebay_shards::stats::{CoreStats, ShardStats};

    #[test]
    fn every_engine_counter_has_a_metric() {
        let counters = CoreStats::default().values();
        let single = ENGINE.iter().map(|(counter, _)| *counter);
        let by_outcome = UPLOAD_OUTCOMES.iter().map(|(counter, _)| *counter);
        let named: Vec<&str> = single.chain(by_outcome).collect();
        assert_eq!(counters.len(), named.len());
        assert!(named.iter().all(|name| counters.contains_key(name)));
        let of_shards = ShardStats::default().values().map(|(name, _)| name);
        assert_eq!(of_shards, SHARD.map(|(name, _)| name));
    }

    #[test]
    fn the_page_is_well_formed() {
        let http = [HttpStats::default(), HttpStats::default()];
        http[1].count_status("GET", 200);
        http[1]
            .outcome(Outcome::Miss)
            .times
            .record(Duration::from_millis(3));
        let cores = [CoreSnapshot {
            core: 0,
            ..CoreSnapshot::default()
        }];
        let backlog = Backlog {
            blocks: 3,
            stores: vec![StoreBacklog {
                store: 2,
                concurrency: 1,
                paused_ms: 1500,
                failures: 4,
            }],
            ..Backlog::default()
        };
        let text = render(&cores, &backlog, &http, Duration::from_secs(7));
        assert!(text.contains("\nforebay_dirty_blocks 3\n"));
        assert!(text.contains("\nforebay_dirty_oldest_age_seconds 0\n"));
        assert!(text.contains("\nforebay_upload_paused_seconds{store=\"2\"} 1.5\n"));
        assert!(
            text.contains(
                "forebay_http_responses_total{method=\"GET\",status=\"200\",core=\"1\"} 1"
            )
        );
        assert!(text.contains(
            "forebay_cache_response_seconds_bucket{cache=\"miss\",core=\"1\",le=\"0.005\"} 1"
        ));
        assert!(text.contains("forebay_cache_response_seconds_count{cache=\"miss\",core=\"1\"} 1"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(name.starts_with("forebay_"), "{line}");
        }
    }
}
