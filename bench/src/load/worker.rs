//! Threads and connections: owns who sends what when. One thread drives many connections; threads share the window and the
//! keys, nothing else.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::content::Content;
use crate::load::keys::{Random, encode};
use crate::load::plan::{Arrivals, Method, Plan, Target, Verify};
use crate::load::response::{Expectation, Response};
use crate::load::samples::{Samples, Window};
use crate::load::wire::{ReadBuffer, Wire};

/// Wait after a failed request, so that a server that is gone is not hammered.
const RETRY_WAIT: Duration = Duration::from_millis(20);

/// One response in this many is compared byte by byte with `--verify sample`.
const VERIFY_SAMPLE_EVERY: u64 = 16;

/// Content is made and sent this much at a time.
const SEND_STEP_BYTES: usize = 64 * 1024;

/// How close to the moment a timer is trusted; the rest is spun away, because tokio's timers tick in milliseconds.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// How long answers may take after the window's end before their connections are dropped.
const LINGER: Duration = Duration::from_secs(2);

/// The running threads.
pub(super) struct Workers {
    threads: Vec<JoinHandle<Result<Samples, String>>>,
    running: Arc<AtomicUsize>,
}

impl Workers {
    /// Whether every thread has come to its end by itself.
    pub(super) fn all_done(&self) -> bool {
        self.running.load(Ordering::Relaxed) == 0
    }

    /// Waits for all and adds up what they saw.
    pub(super) fn join(self) -> Result<Samples, String> {
        let mut total = Samples::new()?;
        for thread in self.threads {
            total.merge(
                thread
                    .join()
                    .map_err(|_| "a generator thread panicked".to_owned())??,
            )?;
        }
        Ok(total)
    }
}

/// Starts all threads at once.
pub(super) fn start(plan: &Arc<Plan>, window: &Arc<Window>) -> io::Result<Workers> {
    let running = Arc::new(AtomicUsize::new(plan.threads));
    let tickets = Arc::new(AtomicU64::new(0));
    let spawn = |index: usize| {
        let (plan, window) = (Arc::clone(plan), Arc::clone(window));
        let (running, tickets) = (Arc::clone(&running), Arc::clone(&tickets));
        std::thread::Builder::new()
            .name(format!("load-{index}"))
            .spawn(move || {
                let outcome = drive(&plan, &window, &tickets, index);
                running.fetch_sub(1, Ordering::Relaxed);
                outcome
            })
    };
    let threads = (0..plan.threads).map(spawn).collect::<io::Result<_>>()?;
    Ok(Workers { threads, running })
}

fn drive(
    plan: &Arc<Plan>,
    window: &Arc<Window>,
    tickets: &Arc<AtomicU64>,
    index: usize,
) -> Result<Samples, String> {
    if let Some(cpu) = plan.cpus.get(index % plan.cpus.len().max(1)) {
        pin(*cpu)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| format!("start a runtime: {error}"))?;
    let samples = Rc::new(RefCell::new(Samples::new()?));
    let buffer = ReadBuffer::new();
    let schedule = Rc::new(Schedule::new(plan.arrivals, plan.threads, index));
    let tasks = tokio::task::LocalSet::new();
    for number in (index..plan.connections).step_by(plan.threads) {
        let connection = Connection {
            plan: Arc::clone(plan),
            window: Arc::clone(window),
            tickets: Arc::clone(tickets),
            samples: Rc::clone(&samples),
            schedule: Rc::clone(&schedule),
            buffer: buffer.clone(),
            target: plan.targets[number % plan.targets.len()].clone(),
            random: Random::new(number as u64),
            wire: None,
            content: Vec::new(),
        };
        tasks.spawn_local(connection.run());
    }
    let deadline = tokio::time::Instant::from_std(window.end() + LINGER);
    runtime.block_on(async {
        // Late answers are not samples anyway; a server that never answers must not hold up the report.
        let _ = tokio::time::timeout_at(deadline, tasks).await;
    });
    Ok(samples.replace(Samples::new()?))
}

/// When requests of one thread are due, in the open loop.
struct Schedule {
    arrivals: Option<Arrivals>,
    threads: usize,
    due: Cell<Instant>,
    random: RefCell<Random>,
}

impl Schedule {
    fn new(arrivals: Option<Arrivals>, threads: usize, index: usize) -> Self {
        let random = RefCell::new(Random::new(!(index as u64)));
        Self {
            arrivals,
            threads,
            due: Cell::new(Instant::now()),
            random,
        }
    }

    /// Waits for the next request's moment and returns it; at once in the closed loop.
    async fn next(&self) -> Instant {
        let Some(arrivals) = self.arrivals else {
            return Instant::now();
        };
        let gap_s = self.threads as f64 / arrivals.rate;
        let factor = if arrivals.poisson {
            -(1.0 - self.random.borrow_mut().unit()).ln()
        } else {
            1.0
        };
        let due = self.due.get() + Duration::from_secs_f64(gap_s * factor);
        self.due.set(due);
        if let Some(early) = due.checked_duration_since(Instant::now() + TIMER_SLACK) {
            tokio::time::sleep(early).await;
        }
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
        due
    }
}

/// One request, ready to be sent.
struct Task {
    head: String,
    /// What is sent as a body.
    body: Option<Content>,
    expectation: Expectation,
}

struct Connection {
    plan: Arc<Plan>,
    window: Arc<Window>,
    /// Requests that were begun, for runs that make an exact number.
    tickets: Arc<AtomicU64>,
    samples: Rc<RefCell<Samples>>,
    schedule: Rc<Schedule>,
    buffer: ReadBuffer,
    target: Target,
    random: Random,
    wire: Option<Wire>,
    /// Room for the content that is sent.
    content: Vec<u8>,
}

impl Connection {
    async fn run(mut self) {
        while !self.window.is_closed() {
            if self
                .plan
                .count
                .is_some_and(|count| self.tickets.fetch_add(1, Ordering::Relaxed) >= count)
            {
                return;
            }
            let begun = self.schedule.next().await;
            let task = self.next_task();
            let failure = match self.exchange(&task).await {
                Ok(None) => continue,
                Ok(Some(response)) => response
                    .flaw()
                    .map(|flaw| (flaw.kind(), flaw.is_wrong_content())),
                Err(error) => {
                    self.wire = None;
                    Some((format!("connection: {error}"), false))
                }
            };
            let ended = Instant::now();
            if self.window.contains(ended) {
                self.file(ended - begun, failure.clone());
            }
            if failure.is_some() {
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
    }

    fn file(&self, latency: Duration, failure: Option<(String, bool)>) {
        let mut samples = self.samples.borrow_mut();
        match failure {
            None => samples.add(latency),
            Some((kind, wrong_content)) => {
                samples.add_error(kind);
                samples.wrong_content += u64::from(wrong_content);
                self.window.add_error();
            }
        }
    }

    fn next_task(&mut self) -> Task {
        let key = self.plan.keys.name(self.plan.keys.next(&mut self.random));
        let start = format!(
            "{} {}{} HTTP/1.1\r\nHost: {}\r\n{}",
            self.plan.method.name(),
            self.target.path,
            encode(&key),
            self.target.host,
            self.plan.header_lines
        );
        let size = self.plan.size;
        if self.plan.method == Method::Put {
            return Task {
                head: format!("{start}Content-Length: {size}\r\n\r\n"),
                body: Some(Content::of_key(&key)),
                expectation: Expectation {
                    status: 200,
                    length: None,
                    content: None,
                },
            };
        }
        let offset = self
            .plan
            .range
            .map(|range| self.random.below(size / range) * range);
        let verify = match self.plan.verify {
            Verify::Length => false,
            Verify::Sample => self.random.below(VERIFY_SAMPLE_EVERY) == 0,
            Verify::All => true,
        };
        let content = verify.then(|| (Content::of_key(&key), offset.unwrap_or(0)));
        let length = self.plan.body_bytes();
        let (head, status) = match offset {
            None => (format!("{start}\r\n"), 200),
            Some(offset) => (
                format!(
                    "{start}Range: bytes={offset}-{}\r\n\r\n",
                    offset + length - 1
                ),
                206,
            ),
        };
        Task {
            head,
            body: None,
            expectation: Expectation {
                status,
                length: Some(length),
                content,
            },
        }
    }

    /// Sends a request and takes its answer in; `None` if it was broken off on purpose.
    async fn exchange(&mut self, task: &Task) -> io::Result<Option<Response>> {
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => {
                let wire = Wire::connect(&self.target, self.buffer.clone()).await?;
                self.samples.borrow_mut().tls = wire.tls_name();
                wire
            }
        };
        wire.send(task.head.as_bytes()).await?;
        if let Some(content) = &task.body {
            self.send_body(&mut wire, content).await?;
        }
        let mut response = Response::new(task.expectation);
        let break_off = self
            .plan
            .break_off
            .is_some_and(|every| self.random.below(every) == 0)
            .then(|| self.plan.body_bytes() / 2);
        let mut received = 0;
        while !response.is_complete() {
            wire.receive(|bytes| response.push(bytes)).await?;
            let new_bytes = response.take_new_bytes();
            received += new_bytes;
            if break_off.is_some_and(|bytes| received >= bytes) {
                return Ok(None);
            }
            if self.plan.method == Method::Get {
                self.window.add_bytes(new_bytes);
            }
        }
        if self.plan.method == Method::Put && response.flaw().is_none() {
            self.window.add_bytes(self.plan.size);
        }
        if response.keep_alive() {
            self.wire = Some(wire);
        }
        Ok(Some(response))
    }

    async fn send_body(&mut self, wire: &mut Wire, content: &Content) -> io::Result<()> {
        self.content.resize(SEND_STEP_BYTES, 0);
        let mut offset = 0;
        while offset < self.plan.size {
            let step = (self.plan.size - offset).min(SEND_STEP_BYTES as u64) as usize;
            content.fill(offset, &mut self.content[..step]);
            wire.send(&self.content[..step]).await?;
            offset += step as u64;
        }
        Ok(())
    }
}

fn pin(cpu: usize) -> Result<(), String> {
    // SAFETY: an all-zero `cpu_set_t` is the empty set; it is a plain array of words.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(format!("--pin {cpu}: there is no such CPU"));
    }
    // SAFETY: `cpu` lies within the set, as checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a valid set of the size that is named, and only read.
    let outcome = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(format!("--pin {cpu}: {}", io::Error::last_os_error()))
    }
}
