//! Bodies on their way out and in, counted and against the clock.
//!
//! This file owns how an object's bytes reach reqwest and how they come back. An outgoing body's
//! last byte never leaves before its source has ended at exactly the announced length, so that a
//! wrong body can never become an object. An incoming body never ends well unless it had exactly
//! the bytes that its head announced. Time that the other side of the cache takes is nobody's
//! stall.

use super::Deadlines;
use super::answer::{BodyPlan, corrupt};
use bytes::Bytes;
use forebay_io::store::{StoreError, StoreErrorKind, StoreResult};
use futures::SinkExt;
use futures::channel::mpsc;
use futures::stream::{self, LocalBoxStream, Stream, StreamExt};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The measure of progress: a body must move this many bytes per [`Deadlines::stall`]. With its
/// 10 s that is 6.5 KB/s, far below any link worth having, far above a peer that is only pretending.
const PROGRESS_BYTES: usize = 64 * 1024;

/// A body on its way out, and what happened to it so far.
pub(in crate::store) struct Outgoing {
    pub(in crate::store) body: reqwest::Body,
    /// Moves bytes from the source into `body`; must be polled while the request is sent.
    pub(in crate::store) pump: Pin<Box<dyn Future<Output = StoreResult<()>>>>,
    /// Bytes that were not handed over yet.
    pub(in crate::store) left: Rc<Cell<u64>>,
}

/// Couples a source of `length` bytes, which may not leave its thread, to a body of reqwest's.
pub(in crate::store) fn outgoing(
    source: LocalBoxStream<'static, StoreResult<Bytes>>,
    length: u64,
    deadlines: Deadlines,
) -> Outgoing {
    // One piece on the way beside the one being sent.
    let (sender, receiver) = mpsc::channel::<Result<Bytes, io::Error>>(0);
    let left = Rc::new(Cell::new(length));
    let sender = Sender {
        parts: sender,
        left: Rc::clone(&left),
        stall: deadlines.stall,
    };
    let pump = pump(source, length, sender);
    Outgoing {
        body: reqwest::Body::wrap_stream(receiver),
        pump: Box::pin(pump),
        left,
    }
}

async fn pump(
    mut source: LocalBoxStream<'static, StoreResult<Bytes>>,
    length: u64,
    mut sender: Sender,
) -> StoreResult<()> {
    let mut left = length;
    // Held back until the source shows that it goes on or that it is over.
    let mut held = Bytes::new();
    while let Some(piece) = source.next().await {
        let piece = piece?;
        if piece.is_empty() {
            continue;
        }
        left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
            let message = format!("the body is longer than the {length} bytes announced");
            StoreError::new(StoreErrorKind::Rejected, message)
        })?;
        sender
            .hand_over(std::mem::replace(&mut held, piece))
            .await?;
    }
    if left > 0 {
        let message = format!("the body ended {left} bytes before the {length} announced");
        return Err(StoreError::new(StoreErrorKind::Rejected, message));
    }
    sender.hand_over(held).await
}

/// The way into reqwest's body.
struct Sender {
    parts: mpsc::Sender<Result<Bytes, io::Error>>,
    left: Rc<Cell<u64>>,
    stall: Duration,
}

impl Sender {
    /// Passes `piece` on in small parts, each within the time for one.
    async fn hand_over(&mut self, mut piece: Bytes) -> StoreResult<()> {
        while !piece.is_empty() {
            let part = piece.split_to(PROGRESS_BYTES.min(piece.len()));
            // Before it is sent: the answer to the last part may come before we run again.
            self.left.set(self.left.get() - part.len() as u64);
            match tokio::time::timeout(self.stall, self.parts.send(Ok(part))).await {
                Ok(Ok(())) => {}
                // Nobody takes the body any more: the answer, which is coming, says why.
                Ok(Err(_)) => futures::future::pending().await,
                Err(_) => {
                    let message = format!(
                        "the store took less than {PROGRESS_BYTES} bytes in {:?}",
                        self.stall
                    );
                    return Err(StoreError::new(StoreErrorKind::Timeout, message));
                }
            }
        }
        Ok(())
    }
}

/// The body of a GET whose head was judged, as its caller gets it.
pub(in crate::store) fn incoming(
    response: reqwest::Response,
    plan: &BodyPlan,
    deadlines: Deadlines,
) -> LocalBoxStream<'static, StoreResult<Bytes>> {
    let incoming = Incoming {
        bytes: response.bytes_stream().boxed_local(),
        skipped_left: plan.skipped_bytes,
        left: plan.span.len(),
        is_exact: plan.is_exact,
        is_over: false,
        waited: Duration::ZERO,
        moved: 0,
        stall: deadlines.stall,
    };
    stream::unfold(incoming, |mut incoming| async move {
        let item = incoming.next().await?;
        Some((item, incoming))
    })
    .boxed_local()
}

struct Incoming<S> {
    bytes: S,
    skipped_left: u64,
    left: u64,
    is_exact: bool,
    is_over: bool,
    /// Time spent waiting for the store since `moved` was last zero.
    waited: Duration,
    moved: usize,
    stall: Duration,
}

impl<S: Stream<Item = reqwest::Result<Bytes>> + Unpin> Incoming<S> {
    async fn next(&mut self) -> Option<StoreResult<Bytes>> {
        while !self.is_over {
            if self.left == 0 && !self.is_exact {
                // The store ignored Range; the rest is dropped with the connection.
                self.is_over = true;
                break;
            }
            match self.receive().await {
                Ok(Some(bytes)) => {
                    if let Some(item) = self.take(bytes) {
                        return Some(item);
                    }
                }
                Ok(None) if self.left == 0 => self.is_over = true,
                Ok(None) => {
                    let message = format!("the body ended {} bytes early", self.left);
                    return self.fail(corrupt(&message));
                }
                Err(error) => return self.fail(error),
            }
        }
        None
    }

    fn fail(&mut self, error: StoreError) -> Option<StoreResult<Bytes>> {
        self.is_over = true;
        Some(Err(error))
    }

    /// What of `bytes` is for the caller.
    fn take(&mut self, mut bytes: Bytes) -> Option<StoreResult<Bytes>> {
        let skipped = self.skipped_left.min(bytes.len() as u64);
        self.skipped_left -= skipped;
        let _ = bytes.split_to(skipped as usize);
        if bytes.len() as u64 > self.left {
            if self.is_exact {
                return self.fail(corrupt("the body is longer than its head says"));
            }
            bytes.truncate(self.left as usize);
        }
        self.left -= bytes.len() as u64;
        (!bytes.is_empty()).then_some(Ok(bytes))
    }

    /// Waits for the next bytes within the time that is left for the next [`PROGRESS_BYTES`].
    async fn receive(&mut self) -> StoreResult<Option<Bytes>> {
        let time_left = self.stall.saturating_sub(self.waited);
        let began = Instant::now();
        let item = tokio::time::timeout(time_left, self.bytes.next()).await;
        self.waited += began.elapsed();
        match item {
            Ok(Some(Ok(bytes))) => {
                self.moved += bytes.len();
                if self.moved >= PROGRESS_BYTES {
                    self.moved = 0;
                    self.waited = Duration::ZERO;
                }
                Ok(Some(bytes))
            }
            Ok(None) => Ok(None),
            Ok(Some(Err(error))) => {
                let message = format!("the body broke off: {}", super::describe(error));
                Err(corrupt(&message))
            }
            Err(_) => {
                let message = format!(
                    "the store sent {} bytes in {:?}, at least {PROGRESS_BYTES} are expected",
                    self.moved, self.stall
                );
                Err(StoreError::new(StoreErrorKind::Timeout, message))
            }
        }
    }
}
