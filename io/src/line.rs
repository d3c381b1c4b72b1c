//! Who waits for a pool's budget, in the order in which they came.
//!
//! Whoever gives budget back serves the line: the first gets what it wants as soon as there is
//! enough, then the next. Nobody overtakes, so that one who wants much is not passed by for ever by
//! those who want little, and one return wakes only those whom it serves. There is no lock: of
//! several who want to serve one does, and looks again for the others. This file counts no budget
//! and holds no memory.

use crossbeam_queue::{ArrayQueue, SegQueue};
use futures::task::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll};

const WAITING: u8 = 0;
/// The cost is reserved for it, and it may not know yet.
const SERVED: u8 = 1;
/// It has taken what was reserved, or waits no longer.
const LEFT: u8 = 2;

/// One who waits.
pub(crate) struct Place {
    cost: usize,
    state: AtomicU8,
    waker: AtomicWaker,
}

impl Place {
    /// Ready once the cost is reserved; it is the caller's from then on.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        match self.state.load(Ordering::Acquire) {
            SERVED => {
                self.state.store(LEFT, Ordering::Release);
                Poll::Ready(())
            }
            _ => Poll::Pending,
        }
    }
}

/// The line.
pub(crate) struct Line {
    /// Those in `state` [`WAITING`].
    length: AtomicUsize,
    /// The first of the line, if it was looked at and there was not enough for it.
    first: ArrayQueue<Arc<Place>>,
    others: SegQueue<Arc<Place>>,
    /// Calls of [`Line::serve`] since the line was last left in order; above zero, one serves.
    calls: AtomicUsize,
}

impl Line {
    pub(crate) fn new() -> Line {
        Line {
            length: AtomicUsize::new(0),
            first: ArrayQueue::new(1),
            others: SegQueue::new(),
            calls: AtomicUsize::new(0),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        // In one order with the returns of budget: who joins after this was read sees the return.
        self.length.load(Ordering::SeqCst) == 0
    }

    /// Joins the end of the line. The caller serves it then: there may be enough.
    pub(crate) fn join(&self, cost: usize) -> Arc<Place> {
        let place = Arc::new(Place {
            cost,
            state: AtomicU8::new(WAITING),
            waker: AtomicWaker::new(),
        });
        self.length.fetch_add(1, Ordering::SeqCst);
        self.others.push(place.clone());
        place
    }

    /// Leaves the line; gives what was reserved and not taken. The caller serves it then: the next
    /// may want less.
    pub(crate) fn leave(&self, place: &Place) -> usize {
        match place.state.swap(LEFT, Ordering::AcqRel) {
            WAITING => {
                self.length.fetch_sub(1, Ordering::SeqCst);
                0
            }
            SERVED => place.cost,
            _ => 0,
        }
    }

    /// Serves those at the front for whom `reserve` says that there is enough. `release` takes a
    /// reservation back.
    pub(crate) fn serve(&self, reserve: impl Fn(usize) -> bool, release: impl Fn(usize)) {
        if self.is_empty() || self.calls.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let mut seen = 1;
        loop {
            self.serve_front(&reserve, &release);
            let ended = self
                .calls
                .compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire);
            match ended {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    fn serve_front(&self, reserve: &impl Fn(usize) -> bool, release: &impl Fn(usize)) {
        while let Some(place) = self.first.pop().or_else(|| self.others.pop()) {
            if place.state.load(Ordering::Acquire) != WAITING {
                continue;
            }
            if !reserve(place.cost) {
                let is_kept = self.first.push(place).is_ok();
                assert!(is_kept, "only who serves touches the first place");
                return;
            }
            let served =
                place
                    .state
                    .compare_exchange(WAITING, SERVED, Ordering::AcqRel, Ordering::Acquire);
            match served {
                Ok(_) => {
                    self.length.fetch_sub(1, Ordering::SeqCst);
                    place.waker.wake();
                }
                Err(_) => release(place.cost),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::buffer::{PAGE, Pool};
    use futures::FutureExt;
    use futures::executor::block_on;

    /// A page of headroom, and as many of body.
    const fn cost(pages: usize) -> usize {
        (1 + pages) * PAGE
    }

    #[test]
    fn nobody_overtakes_one_who_wants_more() {
        let pool = Pool::new(cost(4));
        let held = pool.try_take(PAGE).expect("room");
        let mut large = Box::pin(pool.take(4 * PAGE));
        assert!((&mut large).now_or_never().is_none());
        let mut small = Box::pin(pool.take(PAGE));
        assert!((&mut small).now_or_never().is_none(), "there is room");
        assert!(pool.try_take(PAGE).is_none(), "not past those who wait");
        drop(held);
        let large = large.now_or_never().expect("first come, first served");
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        assert!(small.now_or_never().is_some());
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn one_who_leaves_lets_the_next_go_on_and_keeps_nothing() {
        let pool = Pool::new(cost(4));
        let held = pool.try_take(PAGE).expect("room");
        let mut large = Box::pin(pool.take(4 * PAGE));
        assert!((&mut large).now_or_never().is_none());
        let mut small = Box::pin(pool.take(PAGE));
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        let small = small.now_or_never().expect("the one before it has left");
        let mut served = Box::pin(pool.take(4 * PAGE));
        assert!((&mut served).now_or_never().is_none());
        drop((held, small));
        assert_eq!(pool.used_bytes(), cost(4), "reserved, not taken");
        drop(served);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn two_buffers_are_taken_at_once_or_not_at_all() {
        let pool = Pool::new(cost(1) + cost(2));
        let held = pool.try_take(PAGE).expect("room");
        let mut first = Box::pin(pool.take_two(0, 2 * PAGE));
        let mut second = Box::pin(pool.take_two(0, 2 * PAGE));
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(pool.used_bytes(), cost(1), "nobody holds one and waits");
        drop(held);
        let (header, body) = first.now_or_never().expect("room for both");
        assert_eq!((header.capacity(), body.capacity()), (PAGE, 2 * PAGE));
        assert!((&mut second).now_or_never().is_none());
        drop((header, body));
        assert!(second.now_or_never().is_some());
    }

    #[test]
    fn threads_that_take_return_and_give_up_all_come_to_an_end() {
        let pool = Pool::new(2 * cost(4));
        let threads: Vec<_> = (0..4_usize)
            .map(|thread| {
                let pool = pool.clone();
                std::thread::spawn(move || {
                    for turn in 0..3000_usize {
                        let pages = 1 << ((thread + turn) % 3);
                        if turn % 5 == 0 {
                            // Polled once, and gone: served or not.
                            drop(pool.take(pages * PAGE).now_or_never());
                        }
                        let (one, two) = block_on(pool.take_two(0, pages * PAGE));
                        assert!(pool.used_bytes() <= pool.budget_bytes());
                        drop(two);
                        drop(one);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("none waits for ever");
        }
        assert_eq!(pool.used_bytes(), 0);
    }
}
