//! When requests are due: owns the moments of the open loop, for one thread. In the closed loop a request is due at once.
//!
//! Moments are drawn whether or not a connection is free, and a request that had to wait for one is late from the moment on
//! at which it was due. Waiting is done by a timer of the kernel's (tokio's ticks in milliseconds), not by spinning, so that
//! the generator's CPU time means in the open loop what it means in the closed one.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use crate::load::keys::Random;
use crate::load::plan::Arrivals;

/// When requests of one thread are due.
pub(super) struct Schedule {
    open: Option<OpenLoop>,
}

struct OpenLoop {
    arrivals: Arrivals,
    threads: usize,
    /// The last moment that was drawn.
    last: Cell<Instant>,
    /// It, until a request has taken it. Outlives a connection that stops waiting for it.
    pending: Cell<Option<Instant>>,
    random: RefCell<Random>,
    /// Whose turn it is: connections wait in a row, the first of them for the moment.
    turn: Mutex<()>,
    timer: AsyncFd<std::os::fd::OwnedFd>,
}

impl Schedule {
    /// The part of thread `index` of `threads`. To be called inside the thread's runtime.
    #[expect(
        deprecated,
        reason = "what takes its place is `unsafe`, for descriptors that may change under it: an OwnedFd does not"
    )]
    pub(super) fn new(
        arrivals: Option<Arrivals>,
        threads: usize,
        index: usize,
    ) -> io::Result<Self> {
        let open_loop = |arrivals| -> io::Result<OpenLoop> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            Ok(OpenLoop {
                arrivals,
                threads,
                last: Cell::new(Instant::now()),
                pending: Cell::new(None),
                random: RefCell::new(Random::new(!(index as u64))),
                turn: Mutex::new(()),
                timer: AsyncFd::new(timer)?,
            })
        };
        let open = arrivals.map(open_loop).transpose()?;
        Ok(Self { open })
    }

    /// Waits for the next request's moment and returns it; at once in the closed loop. Dropped, it has taken none.
    pub(super) async fn next(&self) -> io::Result<Instant> {
        let Some(open) = &self.open else {
            return Ok(Instant::now());
        };
        let _turn = open.turn.lock().await;
        let due = open.pending.get().unwrap_or_else(|| open.draw());
        open.pending.set(Some(due));
        open.wait_until(due).await?;
        open.pending.set(None);
        Ok(due)
    }
}

impl OpenLoop {
    fn draw(&self) -> Instant {
        let gap_s = self.threads as f64 / self.arrivals.rate;
        let factor = if self.arrivals.poisson {
            -(1.0 - self.random.borrow_mut().unit()).ln()
        } else {
            1.0
        };
        let due = self.last.get() + Duration::from_secs_f64(gap_s * factor);
        self.last.set(due);
        due
    }

    async fn wait_until(&self, due: Instant) -> io::Result<()> {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let value = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: i64::from(left.subsec_nanos()),
                },
            };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
            let mut ready = self.timer.readable().await?;
            // What is read is how often it fired, which does not matter: the clock is looked at again. Not to find it
            // fired is no error, for an earlier setting may have been what woke us.
            let mut fired = [0; 8];
            let _ = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut fired)?));
            ready.clear_ready();
        }
    }
}
