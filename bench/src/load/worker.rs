//! Threads: owns starting them, each with a share of the connections, and gathering what they saw. Threads share the window
//! and the keys, nothing else that is touched for each request.

use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::load::connection::{Common, Connection, Crew};
use crate::load::herd::Gate;
use crate::load::plan::Plan;
use crate::load::samples::{Kind, Samples, Window};
use crate::load::schedule::Schedule;
use crate::load::topology::{self, Dispatcher};
use crate::load::wire::{ReadBuffer, Wire};

/// How long answers may take after the window's end before their connections are dropped.
const LINGER: Duration = Duration::from_secs(2);

/// How long the first question of a run, for the server's cores, may take.
const TOPOLOGY_WAIT: Duration = Duration::from_secs(10);

/// The running threads.
pub(super) struct Workers {
    threads: Vec<JoinHandle<Result<(), String>>>,
    samples: Vec<Arc<Mutex<Samples>>>,
    running: Arc<AtomicUsize>,
    common: Arc<Common>,
}

impl Workers {
    /// Whether there is nothing left to do before the window's end.
    pub(super) fn all_done(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0 || self.common.over.load(Ordering::Acquire)
    }

    /// What all saw since the last call.
    pub(super) fn take_samples(&self) -> Result<Samples, String> {
        let mut taken = Samples::default();
        for samples in &self.samples {
            let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = std::mem::take(&mut *samples);
            drop(samples);
            taken.merge(seen)?;
        }
        Ok(taken)
    }

    /// Waits for all and adds what they saw since the last call to `total`.
    pub(super) fn join(mut self, total: &mut Samples) -> Result<(), String> {
        for thread in std::mem::take(&mut self.threads) {
            thread
                .join()
                .map_err(|_| "a generator thread panicked".to_owned())??;
        }
        total.merge(self.take_samples()?)?;
        let slowest = self.common.gate.iter().flat_map(Gate::slowest);
        for latency in slowest {
            total.add(Kind::Slowest, latency, 0)?;
        }
        Ok(())
    }
}

/// Starts all threads at once.
pub(super) fn start(
    plan: &Arc<Plan>,
    window: &Arc<Window>,
    dispatcher: Option<Dispatcher>,
) -> io::Result<Workers> {
    let common = Arc::new(Common {
        plan: Arc::clone(plan),
        window: Arc::clone(window),
        tickets: plan.lanes.iter().map(|_| AtomicU64::new(0)).collect(),
        running: plan
            .lanes
            .iter()
            .map(|lane| AtomicUsize::new(lane.connections))
            .collect(),
        over: AtomicBool::new(false),
        dispatcher,
        gate: plan
            .rounds
            .map(|rounds| Gate::new(plan.connections(), rounds)),
    });
    let running = Arc::new(AtomicUsize::new(plan.threads));
    let samples: Vec<Arc<Mutex<Samples>>> = (0..plan.threads).map(|_| Arc::default()).collect();
    let spawn = |(index, samples): (usize, &Arc<Mutex<Samples>>)| {
        let (common, samples, running) = (
            Arc::clone(&common),
            Arc::clone(samples),
            Arc::clone(&running),
        );
        std::thread::Builder::new()
            .name(format!("load-{index}"))
            .spawn(move || {
                let outcome = drive(&common, samples, index);
                running.fetch_sub(1, Ordering::AcqRel);
                outcome
            })
    };
    let threads = samples
        .iter()
        .enumerate()
        .map(spawn)
        .collect::<io::Result<_>>()?;
    Ok(Workers {
        threads,
        samples,
        running,
        common,
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start a runtime: {error}"))
}

fn drive(common: &Arc<Common>, samples: Arc<Mutex<Samples>>, index: usize) -> Result<(), String> {
    let plan = &common.plan;
    if let Some(cpu) = plan.cpus.get(index % plan.cpus.len().max(1)) {
        pin(*cpu)?;
    }
    let runtime = runtime()?;
    let deadline = tokio::time::Instant::from_std(common.window.planned_end() + LINGER);
    runtime.block_on(async {
        let crew = Rc::new(Crew {
            common: Arc::clone(common),
            samples,
            schedule: Schedule::new(plan.arrivals, plan.threads, index)
                .map_err(|error| format!("make a timer: {error}"))?,
            buffer: ReadBuffer::new(),
        });
        let tasks = tokio::task::LocalSet::new();
        for number in (index..plan.connections()).step_by(plan.threads) {
            tasks.spawn_local(Connection::new(Rc::clone(&crew), number).run());
        }
        // Late answers are not samples anyway; a server that never answers must not hold up the report. Neither must the
        // one of a run that ended early.
        let closed_early = async {
            while !common.window.is_closed() {
                tokio::time::sleep(LINGER / 20).await;
            }
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            () = tasks => (),
            () = closed_early => (),
            () = tokio::time::sleep_until(deadline) => (),
        }
        Ok(())
    })
}

/// Learns the server's cores, if the plan wants to know them.
pub(super) fn dispatcher(plan: &Plan) -> Result<Option<Dispatcher>, String> {
    let Some(choice) = plan.core_choice else {
        return Ok(None);
    };
    let target = &plan.targets[0];
    let question = async {
        let mut wire = Wire::connect(target, ReadBuffer::new()).await?;
        topology::ask(&mut wire, target).await
    };
    let answer = runtime()?.block_on(async { tokio::time::timeout(TOPOLOGY_WAIT, question).await });
    let topology = answer
        .map_err(|_| "/-/topology: no answer".to_owned())?
        .map_err(|error| error.to_string())?;
    Dispatcher::new(topology, choice, target, plan.has_own_end()).map(Some)
}

fn pin(cpu: usize) -> Result<(), String> {
    let mut set = rustix::thread::CpuSet::new();
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        return Err(format!("--pin {cpu}: there is no such CPU"));
    }
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| format!("--pin {cpu}: {error}"))
}
