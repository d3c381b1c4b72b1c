//! Waiting between tasks of one core: events, permits, per-key turns.
//!
//! Everything here is `Rc`/`Cell`, belongs to one executor and depends on no runtime: it stores
//! wakers and nothing else. It never crosses cores; [`crate::queue`] does.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Something that happens once; every waiter, early or late, learns of it.
#[derive(Clone, Default)]
pub struct Event(Rc<EventInner>);

#[derive(Default)]
struct EventInner {
    happened: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
}

impl Event {
    /// Makes it happen and wakes all waiters. Doing it again changes nothing.
    pub fn set(&self) {
        self.0.happened.set(true);
        for waker in self.0.wakers.take() {
            waker.wake();
        }
    }

    /// Whether it has happened.
    pub fn is_set(&self) -> bool {
        self.0.happened.get()
    }

    /// Completes once it has happened.
    pub async fn wait(&self) {
        std::future::poll_fn(|cx| {
            if self.is_set() {
                return Poll::Ready(());
            }
            self.0.wakers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Something that happens again and again and has one waiter, who learns of it at least once.
#[derive(Default)]
pub struct Signal {
    raised: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Makes it happen.
    pub fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Completes once it has happened since the last wait ended.
    pub async fn wait(&self) {
        std::future::poll_fn(|cx| {
            if self.raised.replace(false) {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A counted number of permits, granted first come, first served.
#[derive(Clone)]
pub struct Permits(Rc<PermitsInner>);

struct PermitsInner {
    free: Cell<usize>,
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    next_ticket: Cell<u64>,
}

/// One permit; gives itself back when dropped.
pub struct Permit(Rc<PermitsInner>);

impl Permits {
    /// A pool of `count` permits.
    pub fn new(count: usize) -> Self {
        assert!(count > 0, "a pool of no permits would wait for ever");
        Permits(Rc::new(PermitsInner {
            free: Cell::new(count),
            waiting: RefCell::default(),
            next_ticket: Cell::new(0),
        }))
    }

    /// Permits not taken.
    pub fn free(&self) -> usize {
        self.0.free.get()
    }

    /// Takes a permit if one is free and nobody waits before us.
    pub fn try_acquire(&self) -> Option<Permit> {
        if self.0.free.get() == 0 || !self.0.waiting.borrow().is_empty() {
            return None;
        }
        self.0.free.set(self.0.free.get() - 1);
        Some(Permit(self.0.clone()))
    }

    /// Takes a permit, waiting for one in turn.
    pub fn acquire(&self) -> Acquire {
        Acquire {
            inner: self.0.clone(),
            ticket: None,
        }
    }
}

impl PermitsInner {
    fn wake_first(&self) {
        if self.free.get() > 0
            && let Some((_, waker)) = self.waiting.borrow().front()
        {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get() + 1);
        self.0.wake_first();
    }
}

/// Waits for a [`Permit`]; leaves the line when dropped.
pub struct Acquire {
    inner: Rc<PermitsInner>,
    ticket: Option<u64>,
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let inner = self.inner.clone();
        let mut waiting = inner.waiting.borrow_mut();
        let first = match self.ticket {
            None => waiting.is_empty(),
            Some(ticket) => waiting.front().is_some_and(|(t, _)| *t == ticket),
        };
        if first && inner.free.get() > 0 {
            if self.ticket.take().is_some() {
                waiting.pop_front();
            }
            inner.free.set(inner.free.get() - 1);
            drop(waiting);
            inner.wake_first();
            return Poll::Ready(Permit(inner));
        }
        match self.ticket {
            Some(ticket) => {
                if let Some(entry) = waiting.iter_mut().find(|(t, _)| *t == ticket) {
                    entry.1.clone_from(cx.waker());
                }
            }
            None => {
                let ticket = inner.next_ticket.get();
                inner.next_ticket.set(ticket + 1);
                waiting.push_back((ticket, cx.waker().clone()));
                self.ticket = Some(ticket);
            }
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.inner
                .waiting
                .borrow_mut()
                .retain(|(t, _)| *t != ticket);
            self.inner.wake_first();
        }
    }
}

/// Turns per key: whoever holds a key's turn excludes others of that key, in order of asking.
/// Keys without a holder cost nothing.
#[derive(Clone)]
pub struct Turns<K: Eq + Hash + Clone>(Rc<RefCell<HashMap<K, TurnLine>>>);

struct TurnLine {
    permits: Permits,
    users: usize,
}

/// A key's turn; ends when dropped.
pub struct Turn<K: Eq + Hash + Clone> {
    // Dropped before `_user`, so that the next in line runs while the line still exists.
    _permit: Permit,
    _user: TurnUser<K>,
}

struct TurnUser<K: Eq + Hash + Clone> {
    turns: Turns<K>,
    key: K,
}

impl<K: Eq + Hash + Clone> Default for Turns<K> {
    fn default() -> Self {
        Turns(Rc::default())
    }
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Waits for the turn of `key`.
    pub async fn take(&self, key: K) -> Turn<K> {
        let permits = {
            let mut lines = self.0.borrow_mut();
            let line = lines.entry(key.clone()).or_insert_with(|| TurnLine {
                permits: Permits::new(1),
                users: 0,
            });
            line.users += 1;
            line.permits.clone()
        };
        let user = TurnUser {
            turns: self.clone(),
            key,
        };
        Turn {
            _permit: permits.acquire().await,
            _user: user,
        }
    }

    /// Keys that somebody holds or waits for.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Eq + Hash + Clone> Drop for TurnUser<K> {
    fn drop(&mut self) {
        let mut lines = self.turns.0.borrow_mut();
        let line = lines
            .get_mut(&self.key)
            .expect("a turn's line outlives its users");
        line.users -= 1;
        if line.users == 0 {
            lines.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn permits_are_granted_in_order_and_survive_abandonment() {
        let permits = Permits::new(1);
        let held = permits.try_acquire().expect("one is free");
        assert!(permits.try_acquire().is_none());
        let mut second = Box::pin(permits.acquire());
        let mut third = Box::pin(permits.acquire());
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(held);
        assert!(
            (&mut third).now_or_never().is_none(),
            "the second is first in line"
        );
        drop(second);
        assert!(
            (&mut third).now_or_never().is_some(),
            "the line moves on when one leaves"
        );
        assert_eq!(permits.free(), 1);
    }

    #[test]
    fn turns_exclude_per_key_and_leave_nothing_behind() {
        let turns: Turns<u32> = Turns::default();
        let first = turns.take(7).now_or_never().expect("free key");
        assert!(
            turns.take(8).now_or_never().is_some(),
            "other keys do not wait"
        );
        let mut second = Box::pin(turns.take(7));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        let second = (&mut second).now_or_never().expect("now it is ours");
        drop(second);
        assert!(turns.is_empty());
    }

    #[test]
    fn an_event_reaches_early_and_late_waiters() {
        let event = Event::default();
        let mut early = Box::pin(event.wait());
        assert!((&mut early).now_or_never().is_none());
        event.set();
        assert!((&mut early).now_or_never().is_some());
        assert!(event.wait().now_or_never().is_some());
    }
}
