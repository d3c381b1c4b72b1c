//! Bounded lock-free queues, and the mesh of them between cores.
//!
//! A queue has one receiving task and any number of sending tasks. Both ends may live on any
//! thread and under any executor: only wakers cross. Nothing here ever blocks, grows past its
//! capacity or takes a lock.

use crossbeam_queue::{ArrayQueue, SegQueue};
use futures::task::AtomicWaker;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

struct Shared<T> {
    items: ArrayQueue<T>,
    /// Tasks that found the queue full. Each is woken once per freed place and asks again.
    waiting_senders: SegQueue<Waker>,
    receiver: Arc<AtomicWaker>,
    senders: AtomicUsize,
    receiver_gone: AtomicBool,
}

/// The sending end.
pub struct Sender<T>(Arc<Shared<T>>);

/// The receiving end.
pub struct Receiver<T>(Arc<Shared<T>>);

/// The other end is gone; the value comes back.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed<T>(pub T);

/// Why a value was not taken at once.
#[derive(Debug, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// No room now.
    Full(T),
    /// The receiver is gone.
    Closed(T),
}

/// A queue that holds at most `capacity` values.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    with_waker(capacity, Arc::default())
}

fn with_waker<T>(capacity: usize, receiver: Arc<AtomicWaker>) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        items: ArrayQueue::new(capacity),
        waiting_senders: SegQueue::new(),
        receiver,
        senders: AtomicUsize::new(1),
        receiver_gone: AtomicBool::new(false),
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Puts `value` in if there is room.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if self.0.receiver_gone.load(Ordering::Acquire) {
            return Err(TrySendError::Closed(value));
        }
        match self.0.items.push(value) {
            Ok(()) => {
                self.0.receiver.wake();
                Ok(())
            }
            Err(value) => Err(TrySendError::Full(value)),
        }
    }

    /// Puts `value` in, waiting for room.
    pub async fn send(&self, value: T) -> Result<(), Closed<T>> {
        let mut slot = Some(value);
        poll_fn(|cx| self.poll_send(cx, &mut slot)).await
    }

    fn poll_send(&self, cx: &Context<'_>, slot: &mut Option<T>) -> Poll<Result<(), Closed<T>>> {
        // Twice: the second try follows the registration, so a place freed between cannot be missed.
        for registered in [false, true] {
            match self.try_send(slot.take().expect("polled after completion")) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(TrySendError::Closed(value)) => return Poll::Ready(Err(Closed(value))),
                Err(TrySendError::Full(value)) => *slot = Some(value),
            }
            if !registered {
                self.0.waiting_senders.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    /// Sends no more, and waits until everything that was sent has been received or the receiver
    /// is gone. The receiver is told of the end at once: it does not wait for this one.
    pub async fn drained(self) {
        let shared = self.0.clone();
        drop(self);
        let is_over = || shared.items.is_empty() || shared.receiver_gone.load(Ordering::Acquire);
        poll_fn(|cx| {
            if is_over() {
                return Poll::Ready(());
            }
            // Woken for each place that becomes free, as those who wait for one.
            shared.waiting_senders.push(cx.waker().clone());
            if is_over() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.0.receiver_gone.load(Ordering::Acquire)
    }

    /// Values waiting to be received.
    pub fn len(&self) -> usize {
        self.0.items.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.items.is_empty()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.receiver.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The next value if one waits.
    pub fn try_recv(&mut self) -> Option<T> {
        let value = self.0.items.pop()?;
        self.wake_senders();
        Some(value)
    }

    /// The next value; `None` once every sender is gone and nothing is left.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`Receiver::recv`], for hand-written futures.
    pub fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.try_recv() {
            return Poll::Ready(Some(value));
        }
        self.0.receiver.register(cx.waker());
        let closed = self.0.senders.load(Ordering::Acquire) == 0;
        match self.try_recv() {
            Some(value) => Poll::Ready(Some(value)),
            None if closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn wake_senders(&self) {
        while let Some(waker) = self.0.waiting_senders.pop() {
            waker.wake();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.receiver_gone.store(true, Ordering::Release);
        while self.0.items.pop().is_some() {}
        self.wake_senders();
    }
}

/// One core's place in the mesh: a queue to each core (itself included) and one inbox.
pub struct MeshPort<T> {
    outgoing: Vec<Sender<T>>,
    inbox: Inbox<T>,
}

/// Everything that other cores send to this one.
pub struct Inbox<T> {
    sources: Vec<Receiver<T>>,
    waker: Arc<AtomicWaker>,
    /// Where the next look begins, so that no core is starved by a busy one.
    next: usize,
}

/// Connects `cores` cores, each ordered pair by a queue of its own of `capacity` messages.
/// The ports are handed to the cores' threads.
pub fn mesh<T>(cores: usize, capacity: usize) -> Vec<MeshPort<T>> {
    let wakers: Vec<Arc<AtomicWaker>> = (0..cores).map(|_| Arc::default()).collect();
    let mut outgoing: Vec<Vec<Sender<T>>> = (0..cores).map(|_| Vec::new()).collect();
    let mut sources: Vec<Vec<Receiver<T>>> = (0..cores).map(|_| Vec::new()).collect();
    for from in &mut outgoing {
        for (to, waker) in wakers.iter().enumerate() {
            let (sender, receiver) = with_waker(capacity, waker.clone());
            from.push(sender);
            sources[to].push(receiver);
        }
    }
    outgoing
        .into_iter()
        .zip(sources)
        .zip(wakers)
        .map(|((outgoing, sources), waker)| MeshPort {
            outgoing,
            inbox: Inbox {
                sources,
                waker,
                next: 0,
            },
        })
        .collect()
}

impl<T> MeshPort<T> {
    /// The sending ends, by core, and the inbox.
    pub fn split(self) -> (Vec<Sender<T>>, Inbox<T>) {
        (self.outgoing, self.inbox)
    }
}

impl<T> Inbox<T> {
    /// The next message from any core; `None` once all other ends are gone.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| {
            if let Some(value) = self.take_one() {
                return Poll::Ready(Some(value));
            }
            self.waker.register(cx.waker());
            let closed = self
                .sources
                .iter()
                .all(|s| s.0.senders.load(Ordering::Acquire) == 0);
            match self.take_one() {
                Some(value) => Poll::Ready(Some(value)),
                None if closed => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn take_one(&mut self) -> Option<T> {
        let count = self.sources.len();
        for step in 0..count {
            let at = (self.next + step) % count;
            if let Some(value) = self.sources[at].try_recv() {
                self.next = (at + 1) % count;
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::executor::block_on;

    #[test]
    fn a_full_queue_makes_senders_wait_and_loses_nothing() {
        let (sender, mut receiver) = bounded(2);
        assert_eq!(sender.try_send(1), Ok(()));
        assert_eq!(sender.try_send(2), Ok(()));
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        let mut waiting = Box::pin(sender.send(3));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(receiver.try_recv(), Some(1));
        assert!((&mut waiting).now_or_never().is_some());
        assert_eq!(
            (receiver.try_recv(), receiver.try_recv()),
            (Some(2), Some(3))
        );
    }

    #[test]
    fn both_ends_learn_of_the_other_s_departure() {
        let (sender, mut receiver) = bounded(1);
        sender.try_send(5).expect("room");
        drop(sender);
        assert_eq!(block_on(receiver.recv()), Some(5));
        assert_eq!(block_on(receiver.recv()), None);
        let (sender, receiver) = bounded(1);
        drop(receiver);
        assert_eq!(block_on(sender.send(6)), Err(Closed(6)));
    }

    #[test]
    fn values_cross_threads_in_order_under_contention() {
        const COUNT: u64 = 20_000;
        let (sender, mut receiver) = bounded::<(u64, u64)>(4);
        let threads: Vec<_> = (0..3)
            .map(|thread| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    block_on(async {
                        for n in 0..COUNT {
                            sender.send((thread, n)).await.expect("receiver lives");
                        }
                    });
                })
            })
            .collect();
        drop(sender);
        let mut next = [0; 3];
        block_on(async {
            while let Some((thread, n)) = receiver.recv().await {
                assert_eq!(next[thread as usize], n, "order per sender");
                next[thread as usize] += 1;
            }
        });
        assert_eq!(next, [COUNT; 3]);
        for thread in threads {
            thread.join().expect("sender thread");
        }
    }

    #[test]
    fn a_queue_is_drained_when_all_was_received_or_nobody_receives() {
        use futures::FutureExt;
        let (sender, mut receiver) = bounded(3);
        assert_eq!(sender.clone().drained().now_or_never(), Some(()));
        sender.try_send(1).expect("room");
        sender.try_send(2).expect("room");
        let mut drained = Box::pin(sender.clone().drained());
        assert_eq!(drained.as_mut().now_or_never(), None);
        assert_eq!(receiver.try_recv(), Some(1));
        assert_eq!(drained.as_mut().now_or_never(), None);
        assert_eq!(receiver.try_recv(), Some(2));
        assert_eq!(drained.as_mut().now_or_never(), Some(()));
        sender.try_send(3).expect("room");
        let waiting = std::thread::spawn(move || futures::executor::block_on(sender.drained()));
        drop(receiver);
        waiting.join().expect("ends when the receiver is gone");
    }

    #[test]
    fn the_end_is_told_before_the_queue_is_drained() {
        use futures::FutureExt;
        let (sender, mut receiver) = bounded(3);
        sender.try_send(1).expect("room");
        let mut drained = Box::pin(sender.drained());
        assert_eq!(drained.as_mut().now_or_never(), None);
        assert_eq!(receiver.recv().now_or_never(), Some(Some(1)));
        assert_eq!(receiver.recv().now_or_never(), Some(None));
        assert_eq!(drained.as_mut().now_or_never(), Some(()));
    }

    #[test]
    fn the_mesh_delivers_from_every_core_to_every_core() {
        let cores = 3;
        let threads: Vec<_> = mesh::<usize>(cores, 2)
            .into_iter()
            .enumerate()
            .map(|(me, port)| {
                std::thread::spawn(move || {
                    let (outgoing, mut inbox) = port.split();
                    block_on(async {
                        let send = async {
                            for _ in 0..100 {
                                for to in &outgoing {
                                    to.send(me).await.expect("peer lives");
                                }
                            }
                        };
                        let receive = async {
                            let mut seen = vec![0; cores];
                            for _ in 0..100 * cores {
                                seen[inbox.recv().await.expect("peer lives")] += 1;
                            }
                            assert_eq!(seen, vec![100; cores]);
                        };
                        futures::join!(send, receive);
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("core thread");
        }
    }
}
