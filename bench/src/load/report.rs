//! What a run says: owns the figures and how they are printed. Computes nothing but units.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Latency percentiles, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Slowest of all.
    pub max: u64,
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1000.0;
        write!(
            f,
            "p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}",
            ms(self.p50),
            ms(self.p90),
            ms(self.p99),
            ms(self.p999),
            ms(self.max)
        )
    }
}

/// One second of a run, for plots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Second {
    /// End of the second, in seconds since the window's start.
    pub t_s: f64,
    /// Body bytes per second, in GiB.
    pub gib_per_s: f64,
    /// Samples per second.
    pub requests_per_s: f64,
    /// Median latency of the second's samples; 0 without any.
    pub p50_us: u64,
    /// Their 99th percentile.
    pub p99_us: u64,
    /// Requests that failed in it.
    pub errors: u64,
    /// CPU seconds of the server per second, so 1.0 is one whole CPU; absent without `--server-pid`.
    pub server_cpu: Option<f64>,
}

/// What one kind of request came to, in a run that makes several.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kind {
    /// Requests that were answered rightly.
    pub requests: u64,
    /// Body bytes of those.
    pub bytes: u64,
    /// Requests that were not.
    pub errors: u64,
    /// Percentiles; absent without samples.
    pub latency_us: Option<Latency>,
}

/// The figures of one run. Everything is about the measured window only. Read back from JSON, a figure that is not
/// there is as in a run that did nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// What was run: `get`, `put`, `mixed`, `herd`, `scan`.
    pub workload: String,
    /// `GET` or `PUT`, or `GET+PUT` where both are sent.
    pub method: String,
    /// URLs, as typed.
    pub targets: Vec<String>,
    /// Sizes of objects, as typed.
    pub size: String,
    /// Body bytes of one request; the mean of them where they differ.
    pub size_bytes: u64,
    /// Connections.
    pub connections: usize,
    /// Requests that are under way on one connection at once.
    pub depth: usize,
    /// Order of keys, as typed.
    pub order: String,
    /// Threads of the generator.
    pub threads: usize,
    /// Whether requests were sent to a core of their own choice, by the server's topology.
    pub core_aware: bool,
    /// Share of requests that met the owner core, 0 to 1; absent where it is not known.
    pub owner_share: Option<f64>,
    /// Offered requests per second; absent in the closed loop.
    pub rate: Option<f64>,
    /// Protocol and cipher; absent without TLS.
    pub tls: Option<String>,
    /// Length of the window.
    pub seconds: f64,
    /// Requests that were answered rightly: the samples.
    pub requests: u64,
    /// Requests that were not, by kind.
    pub errors: BTreeMap<String, u64>,
    /// Body bytes moved by right answers.
    pub bytes: u64,
    /// The same per second.
    pub gib_per_s: f64,
    /// Samples per second.
    pub requests_per_s: f64,
    /// Percentiles of the samples; absent without any.
    pub latency_us: Option<Latency>,
    /// Latency distribution: [upper bound in microseconds, samples at or below it], at rising percentiles.
    pub latency_histogram: Vec<[u64; 2]>,
    /// The same run second by second.
    pub series: Vec<Second>,
    /// The same figures for `read`, `write`, `hot` or `scan` requests alone, in a run that mixes them.
    pub by_kind: BTreeMap<String, Kind>,
    /// CPU time of the generator.
    pub generator_cpu_s: f64,
    /// The same as a share of its threads' time.
    pub generator_busy: f64,
    /// CPU time of the generator for each GiB moved; absent if nothing was.
    pub generator_cpu_s_per_gib: Option<f64>,
    /// User time of the server.
    pub server_cpu_user_s: Option<f64>,
    /// System time of the server.
    pub server_cpu_system_s: Option<f64>,
    /// User and system time of the server for each GiB moved.
    pub server_cpu_s_per_gib: Option<f64>,
    /// Busy share of the CPU that the server is pinned to, if it is to one: with interrupts and all
    /// else that runs there, which the server's own times leave out.
    pub server_core_busy: Option<f64>,
    /// Share of all CPUs' time that a hypervisor gave to others while there was work, 0 to 1.
    pub stolen_share: f64,
    /// Memory of the server at the end.
    pub server_rss_bytes: Option<u64>,
    /// Bytes read from the watched device, by anybody.
    pub device_bytes_read: Option<u64>,
    /// Bytes written to it, by anybody.
    pub device_bytes_written: Option<u64>,
    /// Responses of wrong length or content; part of `errors`.
    pub wrong_content: u64,
    /// Requests of an exact number that did not succeed.
    pub missing: u64,
    /// What to know before believing the figures.
    pub warnings: Vec<String>,
}

impl Report {
    /// Whether the run is to be believed at all: it has samples of each kind that was tried, all
    /// that were asked for where the number was exact, and none of its bodies was wrong.
    pub fn is_good(&self) -> bool {
        let is_whole = self.requests > 0 && self.wrong_content == 0 && self.missing == 0;
        is_whole && self.failed_kinds().next().is_none()
    }

    /// Why the run is not good, in the words that follow "this run failed: ".
    pub fn failure(&self) -> String {
        let mut text = format!(
            "{} samples, {} wrong bodies, {} requests missing",
            self.requests, self.wrong_content, self.missing
        );
        for kind in self.failed_kinds() {
            text.push_str(&format!(", no sample of {kind} requests"));
        }
        text
    }

    /// Kinds of requests that were tried and never succeeded.
    fn failed_kinds(&self) -> impl Iterator<Item = &str> {
        let kinds = self.by_kind.iter();
        kinds
            .filter(|(_, kind)| kind.requests == 0 && kind.errors > 0)
            .map(|(name, _)| name.as_str())
    }

    /// What the machines did: server, device, generator.
    fn fmt_machines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(user_s), Some(system_s)) = (self.server_cpu_user_s, self.server_cpu_system_s) {
            let per_gib = self
                .server_cpu_s_per_gib
                .map_or("-".to_owned(), |cpu_s| format!("{cpu_s:.4}"));
            let rss_mib = self.server_rss_bytes.unwrap_or_default() / (1 << 20);
            writeln!(
                f,
                "  server      {per_gib} CPU s/GiB (user {user_s:.2} s + system {system_s:.2} s), RSS {rss_mib} MiB"
            )?;
        }
        if let Some(busy) = self.server_core_busy {
            writeln!(f, "  its CPU     {:.0} % busy", busy * 100.0)?;
        }
        if self.stolen_share >= 0.005 {
            let percent = self.stolen_share * 100.0;
            writeln!(f, "  hypervisor  took {percent:.0} % of the machine's time")?;
        }
        if let Some(bytes) = self.device_bytes_read {
            let written = gib(self.device_bytes_written.unwrap_or_default());
            writeln!(
                f,
                "  device      {:.3} GiB read, {written:.3} GiB written",
                gib(bytes)
            )?;
        }
        let busy = self.generator_busy * 100.0;
        let per_gib = self
            .generator_cpu_s_per_gib
            .map_or("-".to_owned(), |cpu_s| format!("{cpu_s:.4}"));
        writeln!(
            f,
            "  generator   {per_gib} CPU s/GiB ({:.2} CPU s, {busy:.0} % of its thread(s))",
            self.generator_cpu_s
        )
    }
}

/// Bytes in GiB.
pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.rate.map_or("closed loop".to_owned(), |rate| {
            format!("open loop, {rate} requests/s offered")
        });
        let wire = self.tls.as_deref().unwrap_or("plain");
        writeln!(
            f,
            "{} {} {} ({wire})",
            self.workload,
            self.method,
            self.targets.join(" ")
        )?;
        let depth = match self.depth {
            0 | 1 => String::new(),
            depth => format!(" x {depth} requests"),
        };
        writeln!(
            f,
            "  load        {} bytes, {} connections{depth}, {} thread(s), {mode}, {:.2} s",
            self.size_bytes, self.connections, self.threads, self.seconds
        )?;
        let direction = match self.method.as_str() {
            "PUT" => "sent",
            "GET" => "received",
            _ => "moved",
        };
        writeln!(
            f,
            "  throughput  {:.3} GiB/s, {:.1} requests/s ({} requests, {:.2} GiB {direction})",
            self.gib_per_s,
            self.requests_per_s,
            self.requests,
            gib(self.bytes)
        )?;
        if let Some(latency) = self.latency_us {
            writeln!(f, "  latency ms  {latency}")?;
        }
        for (name, kind) in &self.by_kind {
            let latency = kind.latency_us.map_or("-".to_owned(), |us| us.to_string());
            let (requests, errors) = (kind.requests, kind.errors);
            writeln!(
                f,
                "  {name:10}  {latency}  ({requests} requests, {errors} errors)"
            )?;
        }
        if let Some(share) = self.owner_share {
            writeln!(
                f,
                "  owner core  met by {:.1} % of the requests",
                share * 100.0
            )?;
        }
        self.fmt_machines(f)?;
        for (kind, count) in &self.errors {
            writeln!(f, "  error       {count} x {kind}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  WARNING     {warning}")?;
        }
        Ok(())
    }
}
