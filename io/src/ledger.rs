//! A core's way to the ledger: a bounded queue to the one thread that owns it.
//!
//! The core's side is [`Ledger`]: it never touches a file or waits for more than a queue. The
//! thread's side is [`spawn_ledger`]: it alone calls sled, and only in ways that block that thread
//! alone. Keys and values are bytes; what they mean is not known here. The ledger is never the only
//! witness of anything: whatever goes wrong with it is logged, counted and borne as rows that are
//! not there.

mod folder;
mod rows;

use crate::queue::{self, Receiver, Sender};
use folder::LedgerFolder;
use futures::channel::oneshot;
use rows::SledRows;
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Orders that may wait per core. Beyond it, those who order wait. A thousand rows are some 100 KiB,
/// and more than a core's uploads complete in one flush of the slowest disk that is any use.
const QUEUE_CAPACITY: usize = 1024;

/// Orders of one core that are carried out before the next core has its turn.
const TURN_ORDERS_MAX: usize = 256;

/// The oldest row that is not on disk is at most this old, plus the time of a flush.
const FLUSH_AFTER: Duration = Duration::from_millis(500);

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// What can be asked of the ledger.
pub(crate) enum Order {
    Put(Row),
    RemovePrefix(Vec<u8>),
    Get(Vec<u8>, oneshot::Sender<Option<Vec<u8>>>),
    ScanPrefix(Vec<u8>, oneshot::Sender<Vec<Row>>),
    Flush(oneshot::Sender<()>),
}

/// Where the rows are. Every failure has been logged by the time that it is returned.
pub(crate) trait Rows {
    fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), Lost>;
    fn remove_prefix(&mut self, prefix: &[u8]) -> Result<(), Lost>;
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Lost>;
    fn scan_prefix(&mut self, prefix: &[u8]) -> Result<Vec<Row>, Lost>;
    fn flush(&mut self) -> Result<(), Lost>;
}

/// The rows that an order was about are lost, or cannot be had.
#[derive(Debug)]
pub(crate) struct Lost;

/// A core's end. Clones share the queue, and so the order.
#[derive(Clone)]
pub struct Ledger {
    orders: Sender<Order>,
    failures: Arc<AtomicU64>,
}

/// The core's end before it reaches its core's thread.
pub struct LedgerPort(Ledger);

/// The ledger thread's end of one core's queue.
pub struct LedgerService {
    orders: Receiver<Order>,
    failures: Arc<AtomicU64>,
}

/// Makes the two ends of one core's queue.
pub fn pair() -> (LedgerPort, LedgerService) {
    let (sender, receiver) = queue::bounded(QUEUE_CAPACITY);
    let failures = Arc::new(AtomicU64::new(0));
    (
        LedgerPort(Ledger {
            orders: sender,
            failures: failures.clone(),
        }),
        LedgerService {
            orders: receiver,
            failures,
        },
    )
}

impl LedgerPort {
    /// The core's end, on the core's thread.
    pub fn attach(self) -> Ledger {
        self.0
    }
}

impl Ledger {
    /// Writes a row, before all that this core orders later. Returns when it is queued.
    pub async fn put(&self, key: Vec<u8>, value: Vec<u8>) {
        self.order(Order::Put((key, value))).await;
    }

    /// Removes every row whose key begins with `prefix`. Returns when it is queued.
    pub async fn remove_prefix(&self, prefix: Vec<u8>) {
        self.order(Order::RemovePrefix(prefix)).await;
    }

    /// A row's value, as this core's earlier orders left it; `None` also when it cannot be had.
    pub async fn get(&self, key: Vec<u8>) -> Option<Vec<u8>> {
        self.ask(|reply| Order::Get(key, reply)).await.flatten()
    }

    /// All rows whose keys begin with `prefix`, by key; empty also when they cannot be had.
    pub async fn scan_prefix(&self, prefix: Vec<u8>) -> Vec<Row> {
        self.ask(|reply| Order::ScanPrefix(prefix, reply))
            .await
            .unwrap_or_default()
    }

    /// Returns when everything that this core ordered before is on disk, or cannot be brought there.
    pub async fn flush(&self) {
        self.ask(Order::Flush).await;
    }

    /// Orders of this core that failed since the start: their rows are not in the ledger.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    async fn order(&self, order: Order) {
        if self.orders.send(order).await.is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.order(order(reply)).await;
        answer.await.ok()
    }
}

/// Starts the thread that owns the ledger in `folder`, which is made if it is not there. The thread
/// ends when all cores' ends are dropped, with everything on disk.
///
/// Fails when the folder is not a ledger's, is in use, or is not ours alone; the caller names the
/// folder. A ledger of ours that cannot be read is no failure: it is moved aside and begun anew.
pub fn spawn_ledger(
    folder: &Path,
    cache_bytes: u64,
    services: Vec<LedgerService>,
) -> io::Result<JoinHandle<()>> {
    let folder = LedgerFolder::claim(folder)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    std::thread::Builder::new()
        .name("forebay-ledger".to_owned())
        .spawn(move || {
            let mut rows = SledRows::open(folder, cache_bytes);
            runtime.block_on(run(&mut rows, services));
        })
}

/// Serves all cores until they are gone.
async fn run(rows: &mut impl Rows, mut services: Vec<LedgerService>) {
    let mut unflushed_since: Option<Instant> = None;
    loop {
        let due = unflushed_since.map(|since| since + FLUSH_AFTER);
        let Some(turns) = next_turns(&mut services, due).await else {
            break;
        };
        let mut flushes = Vec::new();
        for (service, orders) in services.iter().zip(turns) {
            for order in orders {
                if matches!(order, Order::Put(_) | Order::RemovePrefix(_)) {
                    unflushed_since.get_or_insert_with(Instant::now);
                }
                flushes.extend(service.carry_out(order, rows));
            }
        }
        let is_due = unflushed_since.is_some_and(|since| since.elapsed() >= FLUSH_AFTER);
        if is_due || (unflushed_since.is_some() && !flushes.is_empty()) {
            flush(rows, &services);
            unflushed_since = None;
        }
        // One flush for all who asked: each asked before it began.
        for reply in flushes {
            // A core that is gone waits for nothing.
            let _ = reply.send(());
        }
    }
    if unflushed_since.is_some() {
        flush(rows, &services);
    }
}

fn flush(rows: &mut impl Rows, services: &[LedgerService]) {
    if rows.flush().is_err() {
        for service in services {
            service.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The orders that wait, by core: waits for the first one, but not past `due`. `None` when all
/// cores are gone.
async fn next_turns(
    services: &mut [LedgerService],
    due: Option<Instant>,
) -> Option<Vec<Vec<Order>>> {
    let waiting = poll_fn(|cx| {
        let mut gone = true;
        let turns: Vec<Vec<Order>> = services
            .iter_mut()
            .map(|service| {
                let (orders, is_gone) = service.take_turn(cx);
                gone &= is_gone;
                orders
            })
            .collect();
        if turns.iter().any(|orders| !orders.is_empty()) {
            Poll::Ready(Some(turns))
        } else if gone {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    });
    match due {
        None => waiting.await,
        Some(due) => tokio::time::timeout_at(due.into(), waiting)
            .await
            .unwrap_or_else(|_| Some(Vec::new())),
    }
}

impl LedgerService {
    /// Orders that wait now, no more than a turn's worth, and whether the core is gone.
    fn take_turn(&mut self, cx: &Context<'_>) -> (Vec<Order>, bool) {
        let mut orders = Vec::new();
        while orders.len() < TURN_ORDERS_MAX {
            match self.orders.poll_recv(cx) {
                Poll::Ready(Some(order)) => orders.push(order),
                Poll::Ready(None) => return (orders, true),
                Poll::Pending => return (orders, false),
            }
        }
        (orders, false)
    }

    /// The next order; `None` when the core is gone.
    pub(crate) async fn next_order(&mut self) -> Option<Order> {
        self.orders.recv().await
    }

    /// Carries out an order. One to flush is left to the caller, who may do several at once; the
    /// answer that it waits for comes back.
    pub(crate) fn carry_out(
        &self,
        order: Order,
        rows: &mut impl Rows,
    ) -> Option<oneshot::Sender<()>> {
        // An answer that nobody waits for any more is dropped.
        let outcome = match order {
            Order::Put((key, value)) => rows.put(&key, value),
            Order::RemovePrefix(prefix) => rows.remove_prefix(&prefix),
            Order::Get(key, reply) => rows.get(&key).map(|value| drop(reply.send(value))),
            Order::ScanPrefix(prefix, reply) => rows
                .scan_prefix(&prefix)
                .map(|found| drop(reply.send(found))),
            Order::Flush(reply) => return Some(reply),
        };
        if outcome.is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        None
    }
}

#[cfg(test)]
mod tests;
