//! A seeded single-thread executor with a virtual clock.
//!
//! Among the tasks that are ready it picks at random; when none is, the clock jumps to the next
//! timer. The same seed runs the same way. It never reads a real clock or a global generator.

use super::random::Dice;
use crate::runtime::{CLOCK_START_NS, MonoTime, Runtime};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Seconds since the Unix epoch at which simulated time begins, unless another time is given.
pub const UNIX_START_SECONDS: u64 = 1_800_000_000;

struct Shared {
    spawned: RefCell<Vec<(u64, Task)>>,
    next_task: Cell<u64>,
    /// Ids of woken tasks. A mutex because wakers must be `Send`; there is only one thread.
    ready: Arc<Mutex<BTreeSet<u64>>>,
    now_ns: Cell<u64>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    next_timer: Cell<u64>,
    random: RefCell<Dice>,
    unix_start_seconds: u64,
}

struct TaskWaker {
    id: u64,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lock().expect("one thread").insert(self.id);
    }
}

/// A handle to the simulation for policy code.
#[derive(Clone)]
pub struct SimRuntime(Rc<Shared>);

/// The executor. Dropping it drops every task at once: a crash.
pub struct SimExecutor {
    shared: Rc<Shared>,
    /// By number, so that a crash drops them in the same order in every run.
    tasks: BTreeMap<u64, Task>,
}

impl SimExecutor {
    /// An executor whose every choice follows from `seed`.
    pub fn new(seed: u64) -> Self {
        SimExecutor::starting_at(seed, UNIX_START_SECONDS)
    }

    /// As [`SimExecutor::new`], with another wall clock: a later run of the same machine.
    pub fn starting_at(seed: u64, unix_seconds: u64) -> Self {
        SimExecutor {
            shared: Rc::new(Shared {
                spawned: RefCell::default(),
                next_task: Cell::new(0),
                ready: Arc::default(),
                now_ns: Cell::new(CLOCK_START_NS),
                timers: RefCell::default(),
                next_timer: Cell::new(0),
                random: RefCell::new(Dice::new(seed)),
                unix_start_seconds: unix_seconds,
            }),
            tasks: BTreeMap::new(),
        }
    }

    /// A handle for the code under test.
    pub fn runtime(&self) -> SimRuntime {
        SimRuntime(self.shared.clone())
    }

    /// Runs everything until `future` completes.
    ///
    /// # Panics
    /// If nothing can ever run again although `future` is not complete: a deadlock.
    pub fn block_on<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let place = result.clone();
        self.runtime().spawn(async move {
            *place.borrow_mut() = Some(future.await);
        });
        while result.borrow().is_none() {
            assert!(
                self.step(),
                "deadlock: no task is ready and no timer is set"
            );
        }
        result.take().expect("checked above")
    }

    /// Tasks that have not ended. Those that serve queues never do; any other that is left when
    /// nothing is asked is stuck.
    pub fn tasks(&self) -> usize {
        self.tasks.len() + self.shared.spawned.borrow().len()
    }

    /// Runs until `steps` polls were made or nothing can run; returns whether anything still can.
    pub fn run_steps(&mut self, steps: usize) -> bool {
        (0..steps).all(|_| self.step())
    }

    fn step(&mut self) -> bool {
        self.adopt();
        let Some(id) = self.pick() else {
            return self.advance_clock();
        };
        let Some(mut task) = self.tasks.remove(&id) else {
            return true;
        };
        let waker = Waker::from(Arc::new(TaskWaker {
            id,
            ready: self.shared.ready.clone(),
        }));
        if task
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            self.tasks.insert(id, task);
        }
        true
    }

    fn adopt(&mut self) {
        for (id, task) in self.shared.spawned.take() {
            self.shared.ready.lock().expect("one thread").insert(id);
            self.tasks.insert(id, task);
        }
    }

    fn pick(&self) -> Option<u64> {
        let mut ready = self.shared.ready.lock().expect("one thread");
        let count = ready.len() as u64;
        if count == 0 {
            return None;
        }
        let at = (self.runtime().random() % count) as usize;
        let id = *ready.iter().nth(at).expect("below the count");
        ready.remove(&id);
        Some(id)
    }

    fn advance_clock(&self) -> bool {
        let first = self.shared.timers.borrow_mut().pop_first();
        let Some(((due_ns, _), waker)) = first else {
            return false;
        };
        self.shared.now_ns.set(due_ns.max(self.shared.now_ns.get()));
        waker.wake();
        true
    }
}

impl Drop for SimExecutor {
    fn drop(&mut self) {
        self.tasks.clear();
        // What was spawned last holds this runtime, which would hold it for ever.
        self.shared.spawned.take();
    }
}

impl SimRuntime {
    /// The whole process stands still for so long, as under SIGSTOP or on a suspended machine.
    pub fn pause(&self, duration: Duration) {
        let now_ns = self.0.now_ns.get() + duration.as_nanos() as u64;
        self.0.now_ns.set(now_ns);
    }
}

impl Runtime for SimRuntime {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let id = self.0.next_task.get();
        self.0.next_task.set(id + 1);
        self.0.spawned.borrow_mut().push((id, Box::pin(task)));
    }

    fn now(&self) -> MonoTime {
        MonoTime(self.0.now_ns.get())
    }

    fn unix_seconds(&self) -> u64 {
        self.0.unix_start_seconds + (self.0.now_ns.get() - CLOCK_START_NS) / 1_000_000_000
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let shared = self.0.clone();
        let due_ns = shared.now_ns.get() + duration.as_nanos() as u64;
        let timer = shared.next_timer.get();
        shared.next_timer.set(timer + 1);
        let guard = TimerGuard {
            shared,
            key: (due_ns, timer),
        };
        poll_fn(move |cx| {
            let shared = &guard.shared;
            if shared.now_ns.get() >= due_ns {
                return Poll::Ready(());
            }
            shared
                .timers
                .borrow_mut()
                .insert(guard.key, cx.waker().clone());
            Poll::Pending
        })
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        crate::rt::yield_now()
    }

    fn random(&self) -> u64 {
        self.0.random.borrow_mut().draw()
    }
}

struct TimerGuard {
    shared: Rc<Shared>,
    key: (u64, u64),
}

impl Drop for TimerGuard {
    fn drop(&mut self) {
        self.shared.timers.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(seed: u64) -> Vec<(u64, u64)> {
        let mut executor = SimExecutor::new(seed);
        let runtime = executor.runtime();
        let log = Rc::new(RefCell::new(Vec::new()));
        let written = log.clone();
        executor.block_on(async move {
            for task in 0..5 {
                let (inner, log) = (runtime.clone(), log.clone());
                runtime.spawn(async move {
                    for _ in 0..5 {
                        let pause = Duration::from_nanos(inner.random() % 1000);
                        inner.sleep(pause).await;
                        log.borrow_mut().push((task, inner.now().0));
                    }
                });
            }
            runtime.sleep(Duration::from_secs(1)).await;
        });
        written.take()
    }

    #[test]
    fn the_same_seed_runs_the_same_way() {
        assert_eq!(trace(1), trace(1));
        assert_ne!(trace(1), trace(2));
        assert_eq!(trace(3).len(), 25);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_deadlock_is_reported() {
        SimExecutor::new(0).block_on(std::future::pending::<()>());
    }
}
