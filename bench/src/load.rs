//! The load generator: owns the run, from typed arguments to a report. Knows no server's internals; what it learns about one
//! comes from its answers and from `/proc`.
//!
//! ```text
//! arguments --> plan --> worker (a thread each) --> connection (a task each) --> request --> wire: plain or TLS
//!               keys, sizes, trace, target, sign     schedule, topology, herd \--> response: counts, checks, forgets
//!
//!    main thread: machine (CPU, RSS, device) and samples once a second --> report, distribution; compare: two sides in turn
//! ```
//!
//! What it never does: count an error as a sample, call a run without samples a success, or hide that it was itself the
//! limit. In the open loop, latency starts when the request was *due*, so that a stalled server cannot hide the
//! requests that it kept from being sent.

pub mod arguments;
pub mod compare;
mod connection;
mod distribution;
mod herd;
mod keys;
mod machine;
mod plan;
pub mod report;
mod request;
mod response;
mod samples;
mod schedule;
mod sign;
mod sizes;
mod target;
mod tls;
mod topology;
mod trace;
mod wire;
mod worker;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arguments::Verb;
use machine::{CpuTime, Machine, Usage};
use plan::Plan;
use report::{Report, Second};
use samples::{Kind, Samples, Window};
use worker::Workers;

/// Length of an interval of the time series, and how often the progress line is rewritten.
const INTERVAL: Duration = Duration::from_secs(1);

/// A last interval shorter than this share of a whole one is left out of the series: its rates would be noise.
const INTERVAL_SHARE_MIN: f64 = 0.2;

/// How often it is looked whether a run that ends by itself has ended.
const END_PERIOD: Duration = Duration::from_millis(10);

/// Share of its own threads' time above which the generator, not the server, may be what was measured.
const GENERATOR_BUSY_MAX: f64 = 0.9;

/// Share of the machine's CPU time that a hypervisor may take before the figures are doubted.
const STOLEN_SHARE_MAX: f64 = 0.05;

/// Share of an open loop's requests that must have been made for the rate to have been offered.
const OFFERED_SHARE_MIN: f64 = 0.95;

/// Standard deviations that random arrivals may be below their mean without a word: one run in 700 is.
const OFFERED_DEVIATIONS_MAX: f64 = 3.0;

/// Why there is no report. The text is for the user.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The arguments make no sense together; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// The run could not be made.
    #[error("{0}")]
    Run(String),
}

/// Runs `forebay-bench get`.
pub fn get(arguments: &arguments::Get) -> Result<Report, LoadError> {
    run(&Verb::Get(arguments.clone()))
}

/// Runs `forebay-bench put`.
pub fn put(arguments: &arguments::Put) -> Result<Report, LoadError> {
    run(&Verb::Put(arguments.clone()))
}

/// Runs a verb that has one rate or none.
pub fn run(verb: &Verb) -> Result<Report, LoadError> {
    match plan::rates(verb)?[..] {
        [rate] => run_plan(Plan::new(verb, rate)?),
        _ => Err(LoadError::Usage("only one --rate is possible here".into())),
    }
}

/// Runs a verb once for each of its rates and hands on each report when it is there, until one is not good.
pub fn run_steps(verb: &Verb, mut each: impl FnMut(&Report)) -> Result<(), LoadError> {
    let rates = plan::rates(verb)?;
    for rate in &rates {
        let mut plan = Plan::new(verb, *rate)?;
        if let (Some(path), Some(rate), true) = (&plan.hdr, rate, rates.len() > 1) {
            // A file for each step: latency.hgrm becomes latency-100.hgrm.
            let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_os_string();
            let (mut name, ending) = (part(path.file_stem()), part(path.extension()));
            name.push(format!("-{rate}."));
            name.push(ending);
            plan.hdr = Some(path.with_file_name(name));
        }
        let report = run_plan(plan)?;
        each(&report);
        if !report.is_good() {
            return Ok(());
        }
    }
    Ok(())
}

fn run_plan(plan: Plan) -> Result<Report, LoadError> {
    let plan = Arc::new(plan);
    let machine =
        Machine::new(&plan.server_pids, plan.device.as_deref()).map_err(LoadError::Run)?;
    let dispatcher = worker::dispatcher(&plan).map_err(LoadError::Run)?;
    let window = Arc::new(Window::planned(Instant::now(), plan.warmup, plan.seconds));
    // Taken before the threads start, so that an exact number of requests is counted from its first byte.
    let at_start = Snapshot::take(&machine, &window)?;
    if plan.warmup.is_zero() {
        window.open(at_start.time);
    }
    let workers = worker::start(&plan, &window, dispatcher)
        .map_err(|error| LoadError::Run(format!("start threads: {error}")))?;
    let mut watch = Watch {
        plan: &plan,
        machine: &machine,
        window: &window,
        workers: &workers,
        total: Samples::default(),
        series: Vec::new(),
    };
    let before = if plan.warmup.is_zero() {
        at_start
    } else {
        watch.until(at_start, window.planned_start(), "warm-up")?;
        watch.series.clear();
        let before = Snapshot::take(&machine, &window)?;
        window.open(before.time);
        before
    };
    let started = SystemTime::now().duration_since(UNIX_EPOCH);
    let after = watch.until(before.clone(), window.planned_end(), plan.workload)?;
    window.close();
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let (mut samples, series) = (watch.total, watch.series);
    workers.join(&mut samples).map_err(LoadError::Run)?;
    let report = Summary {
        plan: &plan,
        before: &before,
        after: &after,
        has_device: machine.has_device(),
    }
    .report(samples, series, started.unwrap_or_default())
    .map_err(LoadError::Run)?;
    Ok(report)
}

/// What was true at one moment.
#[derive(Clone)]
struct Snapshot {
    time: Instant,
    bytes: u64,
    usage: Usage,
}

impl Snapshot {
    fn take(machine: &Machine, window: &Window) -> Result<Self, LoadError> {
        Ok(Self {
            time: Instant::now(),
            bytes: window.bytes(),
            usage: machine.usage().map_err(LoadError::Run)?,
        })
    }
}

/// The main thread while the others work.
struct Watch<'a> {
    plan: &'a Plan,
    machine: &'a Machine,
    window: &'a Window,
    workers: &'a Workers,
    total: Samples,
    series: Vec<Second>,
}

impl Watch<'_> {
    /// Watches from `first` until `end`, or until there is nothing left to do; returns how things stood then.
    fn until(&mut self, first: Snapshot, end: Instant, phase: &str) -> Result<Snapshot, LoadError> {
        let (origin, mut last) = (first.time, first);
        loop {
            let intervals = self.series.len() as u32 + 1;
            let interval_end = (origin + INTERVAL * intervals).min(end);
            while Instant::now() < interval_end && !self.workers.all_done() {
                let left = interval_end.saturating_duration_since(Instant::now());
                let ends_by_itself = self.plan.has_own_end();
                std::thread::sleep(if ends_by_itself {
                    END_PERIOD.min(left)
                } else {
                    left
                });
            }
            let now = Snapshot::take(self.machine, self.window)?;
            let is_end = now.time >= end || self.workers.all_done();
            // At once, for what ends from here on is not in this snapshot's length of time.
            if is_end && self.window.is_open() {
                self.window.shut(now.time);
            }
            let seen = self.workers.take_samples().map_err(LoadError::Run)?;
            let second = second(origin, &last, &now, &seen).map_err(LoadError::Run)?;
            self.total.merge(seen).map_err(LoadError::Run)?;
            let share = (now.time - last.time).as_secs_f64() / INTERVAL.as_secs_f64();
            if share >= INTERVAL_SHARE_MIN || self.series.is_empty() {
                self.show(phase, &second, end);
                self.series.push(second);
            }
            last = now;
            if is_end {
                return Ok(last);
            }
        }
    }

    /// Rewrites the line of progress, on a terminal.
    fn show(&self, phase: &str, second: &Second, end: Instant) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        // There is none in a warm-up.
        let samples = match second.p99_us {
            0 => String::new(),
            p99_us => format!(
                ", {:.0} requests/s, p50 {:.2} ms, p99 {:.2} ms",
                second.requests_per_s,
                second.p50_us as f64 / 1000.0,
                p99_us as f64 / 1000.0
            ),
        };
        let left = end.saturating_duration_since(Instant::now()).as_secs_f64();
        let left = match self.plan.counted() {
            Some((lane, count)) => {
                let done = done(lane, &self.total);
                format!("{} of {count} left", count.saturating_sub(done))
            }
            None => format!("{left:.0} s left"),
        };
        let (gib_per_s, errors) = (second.gib_per_s, self.total.errors_total());
        eprint!("\r\x1b[K{phase}: {gib_per_s:.2} GiB/s{samples}, {errors} errors, {left}");
        // A terminal that cannot be written to is no reason to stop measuring.
        let _ = std::io::stderr().flush();
    }
}

/// One entry of the series.
fn second(
    origin: Instant,
    last: &Snapshot,
    now: &Snapshot,
    seen: &Samples,
) -> Result<Second, String> {
    let seconds = (now.time - last.time).as_secs_f64().max(f64::MIN_POSITIVE);
    let latencies = seen.latencies()?;
    let latency = samples::percentiles(&latencies).unwrap_or_default();
    let server = now.usage.since(&last.usage).server;
    Ok(Second {
        t_s: (now.time - origin).as_secs_f64(),
        gib_per_s: report::gib(now.bytes - last.bytes) / seconds,
        requests_per_s: latencies.len() as f64 / seconds,
        p50_us: latency.p50,
        p99_us: latency.p99,
        errors: seen.errors_total(),
        server_cpu: server.map(|server| (server.user_s + server.system_s) / seconds),
    })
}

/// Requests of a lane that succeeded, in a run where no other lane writes.
fn done(lane: &plan::Lane, samples: &Samples) -> u64 {
    samples.requests_of(lane.read_kind) + samples.requests_of(Kind::Write)
}

/// What a report is made of, beside the samples.
struct Summary<'a> {
    plan: &'a Plan,
    before: &'a Snapshot,
    after: &'a Snapshot,
    has_device: bool,
}

impl Summary<'_> {
    fn report(
        &self,
        samples: Samples,
        series: Vec<Second>,
        started: Duration,
    ) -> Result<Report, String> {
        let plan = self.plan;
        let seconds = (self.after.time - self.before.time).as_secs_f64();
        let bytes = self.after.bytes - self.before.bytes;
        let usage = self.after.usage.since(&self.before.usage);
        let busy = usage.own_cpu_s / (seconds * plan.threads as f64);
        let stolen_share = usage.machine.stolen_share();
        let latencies = samples.latencies()?;
        if let Some(path) = &plan.hdr {
            distribution::write(path, &latencies, started.as_secs_f64(), seconds)?;
        }
        let requests = latencies.len();
        let missing = plan.counted().map_or(0, |(lane, count)| {
            count.saturating_sub(done(lane, &samples))
        });
        let per_gib = |cpu_s: f64| (bytes > 0).then(|| cpu_s / report::gib(bytes));
        let server = usage.server.as_ref();
        let mixes = matches!(plan.workload, "mixed" | "herd" | "scan");
        Ok(Report {
            workload: plan.workload.to_owned(),
            method: plan.methods().into(),
            targets: plan
                .targets
                .iter()
                .map(|target| target.text.clone())
                .collect(),
            size: plan.size.clone(),
            size_bytes: plan.body_bytes().unwrap_or(bytes / requests.max(1)),
            connections: plan.connections(),
            depth: plan.depth,
            order: plan.order.clone(),
            threads: plan.threads,
            core_aware: plan.core_choice == Some(plan::CoreChoice::Owner),
            owner_share: (samples.owner_known > 0)
                .then(|| samples.owner_met as f64 / samples.owner_known as f64),
            rate: plan.arrivals.map(|arrivals| arrivals.rate),
            tls: samples.tls.clone(),
            seconds,
            requests,
            errors: samples.errors.clone(),
            bytes,
            gib_per_s: report::gib(bytes) / seconds,
            requests_per_s: requests as f64 / seconds,
            latency_us: samples::percentiles(&latencies),
            latency_histogram: distribution::points(&latencies),
            series,
            by_kind: if mixes {
                samples.by_kind()
            } else {
                Default::default()
            },
            generator_cpu_s: usage.own_cpu_s,
            generator_busy: busy,
            generator_cpu_s_per_gib: per_gib(usage.own_cpu_s),
            server_cpu_user_s: server.map(|server| server.user_s),
            server_cpu_system_s: server.map(|server| server.system_s),
            server_cpu_s_per_gib: server
                .and_then(|server| per_gib(server.user_s + server.system_s)),
            server_core_busy: usage.server_cpu.as_ref().map(CpuTime::busy_share),
            stolen_share,
            server_rss_bytes: server.map(|server| server.rss_bytes),
            device_bytes_read: self.has_device.then_some(usage.device.read),
            device_bytes_written: self.has_device.then_some(usage.device.written),
            wrong_content: samples.wrong_content,
            missing,
            warnings: self.warnings(&samples, requests, seconds, busy, stolen_share),
        })
    }

    fn warnings(
        &self,
        samples: &Samples,
        requests: u64,
        seconds: f64,
        busy: f64,
        stolen_share: f64,
    ) -> Vec<String> {
        let (plan, mut warnings) = (self.plan, Vec::new());
        if stolen_share > STOLEN_SHARE_MAX {
            warnings.push(format!(
                "a hypervisor took {:.0} % of this machine's CPU time from it: throughput is a lower bound, latency an upper one",
                stolen_share * 100.0
            ));
        }
        if busy > GENERATOR_BUSY_MAX {
            warnings.push(format!(
                "the generator used {:.0} % of its {} thread(s): throughput is a lower bound, latency an upper one",
                busy * 100.0,
                plan.threads
            ));
        }
        let errors = samples.errors_total();
        if let Some(arrivals) = plan.arrivals {
            let offered = arrivals.rate * seconds;
            let made = (requests + errors) as f64;
            let by_chance = f64::from(arrivals.poisson) * OFFERED_DEVIATIONS_MAX * offered.sqrt();
            if made < offered * OFFERED_SHARE_MIN - by_chance {
                warnings.push(format!(
                    "{made:.0} requests ended where {offered:.0} were offered: the server, or the number of connections, is \
                     too small for the rate"
                ));
            }
        }
        if errors > 0 {
            warnings.push(format!(
                "{errors} requests failed and are in no figure but this"
            ));
        }
        warnings
    }
}
