//! The load generator: owns the run, from typed arguments to a report. Knows no server's internals; what it learns about one
//! comes from its answers and from `/proc`.
//!
//! ```text
//! arguments --> plan --> worker (a thread each) --> connection (a task each) --> wire: plain or TLS
//!                           |                            \--> response: counts, checks, forgets
//!    main thread: machine (CPU, RSS, device) at the start and the end of the window --> report
//! ```
//!
//! What it never does: count an error as a sample, call a run without samples a success, or hide that it was itself the
//! limit. In the open loop, latency starts when the request was *due*, so that a stalled server cannot hide the
//! requests that it kept from being sent.

pub mod arguments;
pub mod compare;
mod keys;
mod machine;
mod plan;
pub mod report;
mod response;
mod samples;
mod tls;
mod wire;
mod worker;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::{CpuTime, Machine, Usage};
use plan::{Method, Plan};
use report::Report;
use samples::{Samples, Window};

/// How often the progress line is rewritten.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// Share of its own threads' time above which the generator, not the server, may be what was measured.
const GENERATOR_BUSY_MAX: f64 = 0.9;

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
    run(Plan::for_get(arguments)?)
}

/// Runs `forebay-bench put`.
pub fn put(arguments: &arguments::Put) -> Result<Report, LoadError> {
    run(Plan::for_put(arguments)?)
}

fn run(plan: Plan) -> Result<Report, LoadError> {
    let plan = Arc::new(plan);
    let machine =
        Machine::new(&plan.server_pids, plan.device.as_deref()).map_err(LoadError::Run)?;
    let window = Arc::new(Window::starting(Instant::now() + plan.warmup, plan.seconds));
    // Taken before the threads start, so that an exact number of requests is counted from its first byte.
    let at_start = Snapshot::take(&machine, &window)?;
    let workers = worker::start(&plan, &window)
        .map_err(|error| LoadError::Run(format!("start threads: {error}")))?;
    watch(
        &plan,
        &window,
        Instant::now() + plan.warmup,
        || workers.all_done(),
        "warm-up",
    );
    let before = if plan.warmup.is_zero() {
        at_start
    } else {
        Snapshot::take(&machine, &window)?
    };
    watch(
        &plan,
        &window,
        window.end(),
        || workers.all_done(),
        plan.method.name(),
    );
    let after = Snapshot::take(&machine, &window)?;
    window.close();
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let samples = workers.join().map_err(LoadError::Run)?;
    Ok(summarise(&plan, &machine, &before, &after, samples))
}

/// What was true at one end of the window.
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

/// Sleeps until `end` or until there is nothing left to do, with a line of progress on a terminal.
fn watch(plan: &Plan, window: &Window, end: Instant, done: impl Fn() -> bool, phase: &str) {
    let terminal = std::io::stderr().is_terminal();
    let (mut bytes_before, mut time_before) = (window.bytes(), Instant::now());
    while Instant::now() < end && !done() {
        let period = if plan.count.is_some() {
            Duration::from_millis(10)
        } else {
            PROGRESS_PERIOD
        };
        std::thread::sleep(period.min(end.saturating_duration_since(Instant::now())));
        if terminal && time_before.elapsed() >= PROGRESS_PERIOD {
            let (bytes, time) = (window.bytes(), Instant::now());
            let rate = report::gib(bytes - bytes_before) / (time - time_before).as_secs_f64();
            eprint!(
                "\r\x1b[K{phase}: {rate:.2} GiB/s, {} errors",
                window.errors()
            );
            // A terminal that cannot be written to is no reason to stop measuring.
            let _ = std::io::stderr().flush();
            (bytes_before, time_before) = (bytes, time);
        }
    }
}

fn summarise(
    plan: &Plan,
    machine: &Machine,
    before: &Snapshot,
    after: &Snapshot,
    samples: Samples,
) -> Report {
    let seconds = (after.time - before.time).as_secs_f64();
    let bytes = after.bytes - before.bytes;
    let usage = after.usage.since(&before.usage);
    let busy = usage.own_cpu_s / (seconds * plan.threads as f64);
    let mut warnings = Vec::new();
    // In the open loop a thread spins while it waits for the moment to send; its time says nothing then.
    if plan.arrivals.is_none() && busy > GENERATOR_BUSY_MAX {
        warnings.push(format!(
            "the generator used {:.0} % of its {} thread(s): throughput is a lower bound",
            busy * 100.0,
            plan.threads
        ));
    }
    if samples.errors_total() > 0 {
        warnings.push(format!(
            "{} requests failed and are in no figure but this",
            samples.errors_total()
        ));
    }
    let server_cpu_s = usage
        .server
        .as_ref()
        .map(|server| server.user_s + server.system_s);
    Report {
        workload: plan.method.name().to_ascii_lowercase(),
        method: plan.method.name().into(),
        targets: plan
            .targets
            .iter()
            .map(|target| target.text.clone())
            .collect(),
        size_bytes: plan.body_bytes(),
        connections: plan.connections,
        threads: plan.threads,
        rate: plan.arrivals.map(|arrivals| arrivals.rate),
        tls: samples.tls.clone(),
        seconds,
        requests: samples.requests(),
        errors: samples.errors.clone(),
        bytes,
        gib_per_s: report::gib(bytes) / seconds,
        requests_per_s: samples.requests() as f64 / seconds,
        latency_us: samples.latency(),
        generator_cpu_s: usage.own_cpu_s,
        generator_busy: busy,
        server_cpu_user_s: usage.server.as_ref().map(|server| server.user_s),
        server_cpu_system_s: usage.server.as_ref().map(|server| server.system_s),
        server_cpu_s_per_gib: server_cpu_s
            .filter(|_| bytes > 0)
            .map(|cpu_s| cpu_s / report::gib(bytes)),
        server_core_busy: usage.server_cpu.as_ref().map(CpuTime::busy_share),
        server_rss_bytes: after.usage.server.as_ref().map(|server| server.rss_bytes),
        device_bytes_read: machine.has_device().then_some(usage.device_bytes_read),
        wrong_content: samples.wrong_content,
        missing: plan
            .count
            .map_or(0, |count| count.saturating_sub(samples.requests())),
        warnings,
        sent: plan.method == Method::Put,
        depth: 1,
        generator_cpu_s_per_gib: (bytes > 0).then(|| usage.own_cpu_s / report::gib(bytes)),
        ..Report::default()
    }
}
