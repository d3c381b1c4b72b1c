//! The command line as it is meant: owns every check, so that a run that starts does not fail over its arguments.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::content::parse_size;
use crate::load::LoadError;
use crate::load::arguments::{Common, Get, Herd, Mixed, Put, Scan, Verb};
use crate::load::keys::{Keys, Naming, Order};
use crate::load::samples::Kind;
use crate::load::sign::Signer;
use crate::load::target::{self, Target, Trust};

/// Most connections: a generator that needs more is a generator on several machines.
const CONNECTIONS_MAX: usize = 20_000;

/// Most requests under way on one connection. Servers stop reading long before.
const DEPTH_MAX: usize = 1024;

/// Most rounds of a herd, each of which costs a key and 8 bytes.
const ROUNDS_MAX: u64 = 1_000_000;

/// Longest run of a `put --count`, which ends by itself: a day.
const COUNT_SECONDS_MAX: u64 = 24 * 3600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Put,
}

impl Method {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// Which bodies are compared with the bytes that they should be. Lengths always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    Length,
    Sample,
    All,
}

/// When open-loop requests are due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Arrivals {
    /// Requests per second, over all threads.
    pub(super) rate: f64,
    pub(super) poisson: bool,
}

/// Which of a server's cores a request is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CoreChoice {
    Owner,
    /// Another one, whichever owns the object.
    Wrong,
    /// Whichever comes; only counted.
    Any,
}

/// Connections that do the same.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) connections: usize,
    pub(super) keys: Keys,
    /// Share of reads, 0 to 1.
    pub(super) reads: f64,
    /// Reads ask for aligned ranges of this size.
    pub(super) range: Option<u64>,
    /// As what its reads are counted.
    pub(super) read_kind: Kind,
    /// Stop after this many requests.
    pub(super) count: Option<u64>,
    /// The run lasts as long as this lane's requests.
    pub(super) ends_run: bool,
    /// It is part of the load before the window.
    pub(super) warms_up: bool,
}

impl Lane {
    fn new(connections: usize, keys: Keys, reads: f64) -> Self {
        Self {
            connections,
            keys,
            reads,
            range: None,
            read_kind: Kind::Read,
            count: None,
            ends_run: false,
            warms_up: true,
        }
    }

    /// As what a request is counted that failed before it was made.
    pub(super) fn kind_of_failure(&self) -> Kind {
        if self.reads > 0.0 {
            self.read_kind
        } else {
            Kind::Write
        }
    }

    fn with_range(mut self, range: Option<&str>) -> Result<Self, LoadError> {
        self.range = range.map(parse_size).transpose().map_err(usage)?;
        if self
            .range
            .is_some_and(|range| range == 0 || range > self.keys.size_max())
        {
            return Err(usage("--range must be between 1 and --size".into()));
        }
        Ok(self)
    }
}

/// The offered rates, one for each step; one step without a rate in the closed loop.
pub(super) fn rates(verb: &Verb) -> Result<Vec<Option<f64>>, LoadError> {
    let Some(list) = verb.common().rate else {
        return Ok(vec![None]);
    };
    let rates: Vec<f64> = numbers("--rate", Some(&list))?;
    if let Some(wrong) = rates
        .iter()
        .find(|rate| !(**rate > 0.0 && rate.is_finite()))
    {
        return Err(usage(format!(
            "--rate {wrong}: expected requests per second above 0"
        )));
    }
    Ok(rates.into_iter().map(Some).collect())
}

/// A run, checked.
#[derive(Debug)]
pub(super) struct Plan {
    /// The verb.
    pub(super) workload: &'static str,
    pub(super) targets: Vec<Arc<Target>>,
    pub(super) lanes: Vec<Lane>,
    /// Sizes and order of keys, as typed.
    pub(super) size: String,
    pub(super) order: String,
    pub(super) seed: u64,
    pub(super) depth: usize,
    pub(super) threads: usize,
    pub(super) seconds: Duration,
    pub(super) warmup: Duration,
    /// Rounds of a herd.
    pub(super) rounds: Option<u64>,
    /// Header lines, each with its line end.
    pub(super) header_lines: String,
    pub(super) signer: Option<Signer>,
    pub(super) server_pids: Vec<u32>,
    pub(super) device: Option<String>,
    pub(super) cpus: Vec<usize>,
    pub(super) arrivals: Option<Arrivals>,
    pub(super) verify: Verify,
    /// One answer in this many is broken off by closing the connection.
    pub(super) break_off: Option<u64>,
    pub(super) core_choice: Option<CoreChoice>,
    pub(super) hdr: Option<PathBuf>,
}

impl Plan {
    /// The run of `verb` at one of its rates.
    pub(super) fn new(verb: &Verb, rate: Option<f64>) -> Result<Self, LoadError> {
        let common = verb.common();
        let plan = Self::of_common(verb.name(), &common, rate)?;
        match verb {
            Verb::Get(get) => plan.for_get(get, &common),
            Verb::Put(put) => plan.for_put(put, &common),
            Verb::Mixed(mixed) => plan.for_mixed(mixed, &common),
            Verb::Herd(herd) => plan.for_herd(herd, &common),
            Verb::Scan(scan) => plan.for_scan(scan, &common),
        }?
        .checked()
    }

    /// All that does not hang on the verb; without lanes.
    fn of_common(
        workload: &'static str,
        common: &Common,
        rate: Option<f64>,
    ) -> Result<Self, LoadError> {
        let trust = Trust {
            ca: common.ca.as_deref(),
            insecure: common.insecure,
            tls13_aes128: common.tls13_aes128,
        };
        let seconds = match (rate, common.step_seconds) {
            (Some(_), Some(step)) => duration("--step-seconds", step)?,
            (None, Some(_)) => return Err(usage("--step-seconds needs --rate".into())),
            (_, None) => duration("--seconds", common.seconds)?,
        };
        Ok(Self {
            workload,
            targets: target::parse_all(&common.target, &trust)?,
            lanes: Vec::new(),
            size: common.size.clone(),
            order: common.order.clone(),
            seed: common.seed,
            depth: common.depth,
            threads: common.threads,
            seconds,
            warmup: duration("--warmup", common.warmup)?,
            rounds: None,
            header_lines: header_lines(common)?,
            signer: Signer::new(common)?,
            server_pids: numbers("--server-pid", common.server_pid.as_deref())?,
            device: common.device.clone(),
            cpus: numbers("--pin", common.pin.as_deref())?,
            arrivals: arrivals(rate, &common.arrivals)?,
            verify: verify(&common.verify)?,
            break_off: None,
            core_choice: core_choice(common)?,
            hdr: common.hdr.clone(),
        })
    }

    fn for_get(mut self, get: &Get, common: &Common) -> Result<Self, LoadError> {
        let mut lane = Lane::new(common.connections, keys(common, common.keys)?, 1.0)
            .with_range(get.range.as_deref())?;
        if lane.keys.names_method(Method::Put) {
            return Err(usage("the trace writes: use mixed".into()));
        }
        lane.count = get.count;
        self.break_off = get.break_off;
        self.lanes.push(lane);
        Ok(self)
    }

    fn for_put(mut self, put: &Put, common: &Common) -> Result<Self, LoadError> {
        let keys = keys(common, put.count.unwrap_or(common.keys))?;
        if keys.names_method(Method::Get) {
            return Err(usage("the trace reads: use mixed".into()));
        }
        let mut lane = Lane::new(common.connections, keys, 0.0);
        lane.count = put.count;
        self.lanes.push(lane);
        Ok(self)
    }

    fn for_mixed(mut self, mixed: &Mixed, common: &Common) -> Result<Self, LoadError> {
        if !(0.0..=100.0).contains(&mixed.reads) {
            return Err(usage("--reads is a percentage".into()));
        }
        let reads = mixed.reads / 100.0;
        let mut lane = Lane::new(common.connections, keys(common, common.keys)?, reads)
            .with_range(mixed.range.as_deref())?;
        lane.count = mixed.count;
        self.lanes.push(lane);
        Ok(self)
    }

    fn for_herd(mut self, herd: &Herd, common: &Common) -> Result<Self, LoadError> {
        if !(1..=ROUNDS_MAX).contains(&herd.rounds) {
            return Err(usage(format!(
                "--rounds must be between 1 and {ROUNDS_MAX}"
            )));
        }
        if self.arrivals.is_some() || self.core_choice.is_some() {
            return Err(usage("a herd has no --rate and no choice of cores".into()));
        }
        let order = Order::Sequential;
        let keys = Keys::new(&naming(common, herd.rounds, &run_word()), order).map_err(usage)?;
        let mut lane = Lane::new(common.connections, keys, 1.0);
        lane.count = Some(herd.rounds * common.connections as u64);
        self.lanes.push(lane);
        self.rounds = Some(herd.rounds);
        Ok(self)
    }

    fn for_scan(mut self, scan: &Scan, common: &Common) -> Result<Self, LoadError> {
        if self.core_choice.is_some() {
            return Err(usage("a scan has no choice of cores".into()));
        }
        let run = run_word();
        let order = Order::Sequential;
        let keys = Keys::new(&naming(common, common.keys, &run), order).map_err(usage)?;
        let mut cold = Lane::new(common.connections, keys, 1.0);
        cold.read_kind = Kind::Scan;
        cold.count = Some(common.keys);
        cold.ends_run = true;
        cold.warms_up = false;
        let naming = Naming {
            pattern: &scan.hot_key_pattern,
            first: 0,
            ..naming(common, scan.hot_keys, &run)
        };
        let order = Order::parse(&scan.hot_order).map_err(usage)?;
        let keys = Keys::new(&naming, order).map_err(usage)?;
        let mut hot = Lane::new(scan.hot_connections, keys, 1.0);
        hot.read_kind = Kind::Hot;
        self.lanes.extend([cold, hot]);
        self.order = format!("sequential beside {}", scan.hot_order);
        Ok(self)
    }

    fn checked(mut self) -> Result<Self, LoadError> {
        let connections = self.connections();
        if self.lanes.iter().any(|lane| lane.connections == 0) || connections > CONNECTIONS_MAX {
            return Err(usage(format!(
                "--connections must be between 1 and {CONNECTIONS_MAX}"
            )));
        }
        if self.threads == 0 || self.threads > connections {
            return Err(usage(
                "--threads must be between 1 and --connections".into(),
            ));
        }
        if !(1..=DEPTH_MAX).contains(&self.depth) {
            return Err(usage(format!("--depth must be between 1 and {DEPTH_MAX}")));
        }
        if self.break_off == Some(0) {
            return Err(usage("--break-off must be above 0".into()));
        }
        if self.lanes.iter().any(|lane| lane.count == Some(0)) {
            return Err(usage("--count must be above 0".into()));
        }
        if self.seconds.is_zero() {
            return Err(usage("--seconds must be above 0".into()));
        }
        if self.core_choice.is_some() && self.targets.len() > 1 {
            return Err(usage("a choice of cores takes one --target".into()));
        }
        if self.lanes.iter().all(|lane| lane.count.is_some()) {
            self.warmup = Duration::ZERO;
            if self.rounds.is_none() {
                self.seconds = Duration::from_secs(COUNT_SECONDS_MAX);
            }
        }
        Ok(self)
    }

    /// Connections of all lanes.
    pub(super) fn connections(&self) -> usize {
        self.lanes.iter().map(|lane| lane.connections).sum()
    }

    /// The lane of a connection.
    pub(super) fn lane_of(&self, connection: usize) -> usize {
        let mut end = 0;
        let found = self.lanes.iter().position(|lane| {
            end += lane.connections;
            connection < end
        });
        found.unwrap_or(self.lanes.len() - 1)
    }

    /// The first lane that makes an exact number of requests, and the number.
    pub(super) fn counted(&self) -> Option<(&Lane, u64)> {
        let mut lanes = self.lanes.iter();
        lanes.find_map(|lane| Some((lane, lane.count?)))
    }

    /// Whether the run may end before its time.
    pub(super) fn has_own_end(&self) -> bool {
        self.counted().is_some()
    }

    /// The method, or both.
    pub(super) fn methods(&self) -> &'static str {
        let writes = |lane: &Lane| lane.reads < 1.0 || lane.keys.names_method(Method::Put);
        let reads = |lane: &Lane| lane.reads > 0.0 || lane.keys.names_method(Method::Get);
        match (self.lanes.iter().any(reads), self.lanes.iter().any(writes)) {
            (true, true) => "GET+PUT",
            (false, _) => "PUT",
            (true, false) => "GET",
        }
    }

    /// Body bytes of every request, if they are the same for all.
    pub(super) fn body_bytes(&self) -> Option<u64> {
        let mut sizes = self.lanes.iter().map(|lane| {
            let size = lane.keys.only_size()?;
            let mixed = lane.range.is_some() && lane.reads < 1.0;
            (!mixed).then_some(lane.range.unwrap_or(size))
        });
        let first = sizes.next()??;
        sizes.all(|size| size == Some(first)).then_some(first)
    }
}

fn usage(message: String) -> LoadError {
    LoadError::Usage(message)
}

/// A word that no other run has.
fn run_word() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    format!("{:x}", since.unwrap_or_default().as_micros())
}

fn naming<'a>(common: &'a Common, count: u64, run: &'a str) -> Naming<'a> {
    Naming {
        pattern: &common.key_pattern,
        size: &common.size,
        count,
        first: common.first,
        run,
    }
}

fn keys(common: &Common, count: u64) -> Result<Keys, LoadError> {
    let order = Order::parse(&common.order).map_err(usage)?;
    Keys::new(&naming(common, count, &run_word()), order).map_err(usage)
}

fn verify(text: &str) -> Result<Verify, LoadError> {
    match text {
        "length" => Ok(Verify::Length),
        "sample" => Ok(Verify::Sample),
        "all" => Ok(Verify::All),
        other => Err(usage(format!(
            "--verify {other:?}: expected length, sample or all"
        ))),
    }
}

fn core_choice(common: &Common) -> Result<Option<CoreChoice>, LoadError> {
    match (common.core_aware, common.core_choice.as_deref()) {
        (false, None) => Ok(None),
        (_, Some("owner")) | (true, None) => Ok(Some(CoreChoice::Owner)),
        (false, Some("wrong")) => Ok(Some(CoreChoice::Wrong)),
        (false, Some("any")) => Ok(Some(CoreChoice::Any)),
        (true, Some(_)) => Err(usage("--core-aware is --core-choice owner".into())),
        (false, Some(other)) => Err(usage(format!(
            "--core-choice {other:?}: expected owner, wrong or any"
        ))),
    }
}

fn duration(flag: &str, seconds: f64) -> Result<Duration, LoadError> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| usage(format!("{flag} {seconds}: expected seconds, 0 or more")))
}

fn numbers<T: std::str::FromStr>(flag: &str, list: Option<&str>) -> Result<Vec<T>, LoadError> {
    let parse = |text: &str| {
        text.trim()
            .parse()
            .map_err(|_| usage(format!("{flag} {text:?}: expected a number")))
    };
    list.map_or(Ok(Vec::new()), |list| list.split(',').map(parse).collect())
}

fn arrivals(rate: Option<f64>, spacing: &str) -> Result<Option<Arrivals>, LoadError> {
    let poisson = match spacing {
        "poisson" => true,
        "fixed" => false,
        other => {
            return Err(usage(format!(
                "--arrivals {other:?}: expected poisson or fixed"
            )));
        }
    };
    Ok(rate.map(|rate| Arrivals { rate, poisson }))
}

fn header_lines(common: &Common) -> Result<String, LoadError> {
    let mut lines = String::new();
    let bearer = common.token.as_ref();
    let bearer = bearer.map(|token| format!("Authorization: Bearer {token}"));
    for header in common.header.iter().chain(&bearer) {
        let well_formed = header
            .split_once(':')
            .is_some_and(|(name, _)| !name.is_empty() && !name.contains(' '));
        if !well_formed || header.contains(['\r', '\n']) {
            return Err(usage(format!(
                "--header {header:?}: expected 'Name: value'"
            )));
        }
        lines.push_str(header);
        lines.push_str("\r\n");
    }
    Ok(lines)
}
