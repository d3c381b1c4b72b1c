//! Counts and the request log: owns what the stub remembers about the requests it saw. Never holds a secret.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

/// Requests kept in the log; older ones are forgotten. Enough for any one test, small enough for a benchmark of hours.
pub const LOG_ENTRIES_MAX: usize = 10_000;

/// Keys that are counted one by one; the rest is counted in the totals only.
pub const KEYS_COUNTED_MAX: usize = 1_000_000;

/// Counts since the start or the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests that were answered or deliberately left unanswered. Requests to `/_stub/` are not counted anywhere.
    pub requests_total: u64,
    /// Requests by `METHOD STATUS`, such as `GET 206`. Status 0 stands for no answer.
    pub requests: BTreeMap<String, u64>,
    /// Connections accepted.
    pub connections: u64,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Requests in progress at the same time, at most.
    pub concurrent_max: u64,
    /// By `bucket/key`.
    pub keys: BTreeMap<String, KeyStats>,
}

impl Stats {
    /// Requests of that method, whatever their status.
    pub fn method(&self, method: &str) -> u64 {
        let of_method = |name: &String| name.split(' ').next() == Some(method);
        self.requests
            .iter()
            .filter(|(name, _)| of_method(name))
            .map(|(_, count)| count)
            .sum()
    }

    /// Keys, as `bucket/key`, of which two PUTs were ever in progress at the same time.
    pub fn overlapping_puts(&self) -> Vec<&str> {
        let overlapping = self
            .keys
            .iter()
            .filter(|(_, key)| key.puts_concurrent_max > 1);
        overlapping.map(|(name, _)| name.as_str()).collect()
    }

    /// The counts of one key; zeros for one that was never asked for.
    pub fn key(&self, bucket: &str, key: &str) -> KeyStats {
        self.keys
            .get(&format!("{bucket}/{key}"))
            .cloned()
            .unwrap_or_default()
    }
}

/// Counts of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KeyStats {
    /// GET requests, refused ones included.
    pub gets: u64,
    /// HEAD requests.
    pub heads: u64,
    /// PUT requests, refused ones included.
    pub puts: u64,
    /// DELETE requests.
    pub deletes: u64,
    /// PUT requests in progress now.
    pub puts_active: u64,
    /// PUT requests in progress at the same time, at most.
    pub puts_concurrent_max: u64,
}

/// One request, as the log keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// Position since the start or the last reset, from 0; in order of arrival of the head.
    pub sequence: u64,
    /// HTTP method.
    pub method: String,
    /// First segment of the path.
    pub bucket: String,
    /// The rest of the path, decoded.
    pub key: String,
    /// Headers of the request, names in lower case; the value of `authorization` is replaced by `(present)`.
    pub headers: Vec<(String, String)>,
    /// Whether the request carried a signature, in a header or in the query.
    pub signed: bool,
    /// Status sent; 0 when none was.
    pub status: u16,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Whether a fault bent the request.
    pub fault: bool,
}

impl LogEntry {
    /// The value of a request header, name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The living counts.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    stats: Stats,
    active: u64,
    sequence: u64,
    log: VecDeque<LogEntry>,
}

impl Recorder {
    pub(super) fn stats(&self) -> Stats {
        self.stats.clone()
    }

    pub(super) fn log(&self) -> Vec<LogEntry> {
        let mut log: Vec<LogEntry> = self.log.iter().cloned().collect();
        log.sort_by_key(|entry| entry.sequence);
        log
    }

    /// Requests whose head was read and that are not over.
    pub(super) fn active(&self) -> u64 {
        self.active
    }

    pub(super) fn connection(&mut self) {
        self.stats.connections += 1;
    }

    /// A head was read. Numbers the entry.
    pub(super) fn begin(&mut self, entry: &mut LogEntry) {
        entry.sequence = self.sequence;
        self.sequence += 1;
        self.active += 1;
        self.stats.concurrent_max = self.stats.concurrent_max.max(self.active);
        if let Some(key) = self.key(entry) {
            match entry.method.as_str() {
                "GET" => key.gets += 1,
                "HEAD" => key.heads += 1,
                "DELETE" => key.deletes += 1,
                "PUT" => {
                    key.puts += 1;
                    key.puts_active += 1;
                    key.puts_concurrent_max = key.puts_concurrent_max.max(key.puts_active);
                }
                _ => {}
            }
        }
    }

    /// The request is over, one way or another. A reset in between has made the counts forget it; so be it.
    pub(super) fn end(&mut self, entry: LogEntry) {
        self.active = self.active.saturating_sub(1);
        if entry.method == "PUT"
            && let Some(key) = self.key(&entry)
        {
            key.puts_active = key.puts_active.saturating_sub(1);
        }
        self.stats.requests_total += 1;
        *self
            .stats
            .requests
            .entry(format!("{} {}", entry.method, entry.status))
            .or_default() += 1;
        self.stats.bytes_in += entry.bytes_in;
        self.stats.bytes_out += entry.bytes_out;
        if self.log.len() == LOG_ENTRIES_MAX {
            self.log.pop_front();
        }
        self.log.push_back(entry);
    }

    fn key(&mut self, entry: &LogEntry) -> Option<&mut KeyStats> {
        let name = format!("{}/{}", entry.bucket, entry.key);
        let room = self.stats.keys.len() < KEYS_COUNTED_MAX || self.stats.keys.contains_key(&name);
        room.then(|| self.stats.keys.entry(name).or_default())
    }
}
