//! When a store request is sent again, and how a body that broke is taken up where it broke off.
//!
//! This file owns the back-off policy ([`Backoff`], [`RetryBudget`]: pure, time and chance are
//! arguments) and [`Retrying`], which applies it to any [`Store`]. It never sends a request that
//! cannot be repeated twice (a streamed PUT), never mixes two versions of an object in one body,
//! and never passes a body off as whole that is not.

mod parts;
mod versions;

use bytes::Bytes;
use forebay_io::listing::{ListPage, ListRequest};
use forebay_io::store::{
    Attempts, ByteSpan, GetReply, GetRequest, ObjectHead, ObjectMeta, PutBody, PutReply,
    PutRequest, Store, StoreError, StoreErrorKind, StoreResult,
};
use forebay_io::tags::{TagStore, Tags};
use forebay_io::versions::Deleted;
use futures::future::LocalBoxFuture;
use futures::stream::{self, LocalBoxStream, StreamExt};
use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Tokens of a full [`RetryBudget`]: some hundred retries in a row before the first success.
const BUDGET_TOKENS_MAX: u32 = 500;

/// What a retry takes from the budget, and what a success gives back. In the long run at most one
/// request in five is a retry, so a store in trouble is not buried under its own failures.
const BUDGET_RETRY_TOKENS: u32 = 5;
const BUDGET_SUCCESS_TOKENS: u32 = 1;

/// How often and how long a request is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    /// Sendings of one request in all; at least 1.
    pub attempts_max: u32,
    /// No attempt begins later than this after the first began, or, for a body, after its last
    /// byte arrived.
    pub elapsed_max: Duration,
    /// Upper end of the first pause; doubles with each further one.
    pub pause_first_max: Duration,
    /// No pause of our own choice is longer. A store's `Retry-After` may be.
    pub pause_max: Duration,
}

impl Default for RetrySettings {
    /// A few seconds in all: a client waits for the answer, and most have deadlines of their own
    /// of 10 s and more. Uploads in the background retry for ever on top of this.
    fn default() -> Self {
        RetrySettings {
            attempts_max: 5,
            elapsed_max: Duration::from_secs(5),
            pause_first_max: Duration::from_millis(100),
            pause_max: Duration::from_secs(2),
        }
    }
}

/// The pauses of one request: exponential, each drawn from its upper half.
///
/// Half of each pause is fixed so that a store in trouble gets a rest; the other half is chance,
/// so that those who failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    settings: RetrySettings,
    attempts: u32,
}

impl Backoff {
    /// Before the first attempt.
    pub fn new(settings: RetrySettings) -> Self {
        Backoff {
            settings,
            attempts: 0,
        }
    }

    /// Notes that an attempt begins.
    pub fn attempt(&mut self) {
        self.attempts += 1;
    }

    /// Attempts begun so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long to wait before the next attempt, or `None` to give up. `elapsed` is the time since
    /// the first attempt began (or since the last progress), `random` any number.
    pub fn pause(&self, error: &StoreError, elapsed: Duration, random: u64) -> Option<Duration> {
        if !error.kind.is_retryable() || self.attempts >= self.settings.attempts_max {
            return None;
        }
        let doublings = self.attempts.saturating_sub(1).min(20);
        let longest = self.settings.pause_first_max.saturating_mul(1 << doublings);
        let half = longest.min(self.settings.pause_max) / 2;
        let jittered = half + half.mul_f64(random as f64 / u64::MAX as f64);
        let pause = jittered.max(error.retry_after.unwrap_or_default());
        (elapsed.saturating_add(pause) <= self.settings.elapsed_max).then_some(pause)
    }
}

/// Retries that all requests of one store share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    tokens: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        RetryBudget {
            tokens: BUDGET_TOKENS_MAX,
        }
    }
}

impl RetryBudget {
    /// Takes one retry out of the budget; `false` if there is none left.
    pub fn try_claim(&mut self) -> bool {
        match self.tokens.checked_sub(BUDGET_RETRY_TOKENS) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }

    /// A request succeeded.
    pub fn succeeded(&mut self) {
        self.tokens = (self.tokens + BUDGET_SUCCESS_TOKENS).min(BUDGET_TOKENS_MAX);
    }
}

/// Time and chance as [`Retrying`] needs them; a test brings its own.
pub trait Pace {
    /// Time since some fixed point.
    fn now(&self) -> Duration;
    /// Completes after `pause`.
    fn sleep(&self, pause: Duration) -> LocalBoxFuture<'static, ()>;
    /// Any number.
    fn random(&self) -> u64;
}

/// The companion thread's time (tokio's) and chance.
pub struct CompanionPace {
    started: Instant,
    random: Cell<u64>,
}

impl Default for CompanionPace {
    fn default() -> Self {
        // The hasher's keys are the one source of chance in std; plenty for jitter.
        let seed = RandomState::new().build_hasher().finish();
        CompanionPace {
            started: Instant::now(),
            random: Cell::new(seed | 1),
        }
    }
}

impl Pace for CompanionPace {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn sleep(&self, pause: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(pause))
    }

    fn random(&self) -> u64 {
        // Xorshift64*: the state is never 0.
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// A store whose failures are retried as [`RetrySettings`] say.
///
/// Repeated are GET, HEAD and lists, DELETE, and PUT of a body in memory unless it asks to be sent
/// [`Attempts::Once`]. A PUT with `if_none_match`
/// that is repeated after a lost answer may meet its own first write: its `PreconditionFailed`
/// then carries more than one attempt, and the caller compares the contents.
pub struct Retrying<S, P = CompanionPace> {
    inner: Rc<Inner<S, P>>,
}

struct Inner<S, P> {
    store: S,
    settings: RetrySettings,
    budget: RefCell<RetryBudget>,
    pace: P,
}

impl<S: Store + 'static, P: Pace + 'static> Retrying<S, P> {
    /// Wraps `store`.
    pub fn new(store: S, settings: RetrySettings, pace: P) -> Self {
        Retrying {
            inner: Rc::new(Inner {
                store,
                settings,
                budget: RefCell::default(),
                pace,
            }),
        }
    }
}

impl<S: Store + 'static, P: Pace + 'static> TagStore for Retrying<S, P> {
    fn tags(&self, key: String) -> LocalBoxFuture<'_, StoreResult<Tags>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.tags(key.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn set_tags(&self, key: String, tags: Tags) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.set_tags(key.clone(), tags.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }
}

impl<S: Store + 'static, P: Pace + 'static> Store for Retrying<S, P> {
    fn get(&self, request: GetRequest) -> LocalBoxFuture<'_, StoreResult<GetReply>> {
        let inner = Rc::clone(&self.inner);
        Box::pin(async move {
            let mut backoff = Backoff::new(inner.settings);
            let send = || inner.store.get(request.clone());
            let reply = inner.repeat(&mut backoff, send).await?;
            Ok(Resuming::start(inner, request, backoff, reply))
        })
    }

    fn head(&self, key: String) -> LocalBoxFuture<'_, StoreResult<ObjectHead>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.head(key.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn put(&self, request: PutRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(async move {
            let pieces = match &request.body {
                PutBody::Whole(pieces) if request.attempts == Attempts::StorePolicy => pieces,
                PutBody::Whole(_) | PutBody::Stream(_) => {
                    return self.inner.store.put(request).await;
                }
            };
            let send = || {
                self.inner.store.put(PutRequest {
                    key: request.key.clone(),
                    length: request.length,
                    headers: request.headers.clone(),
                    crc64nvme: request.crc64nvme,
                    if_none_match: request.if_none_match,
                    if_match: request.if_match.clone(),
                    attempts: request.attempts,
                    body: PutBody::Whole(pieces.clone()),
                })
            };
            let mut backoff = Backoff::new(self.inner.settings);
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn delete(&self, key: String) -> LocalBoxFuture<'_, StoreResult<Deleted>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.delete(key.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn list(&self, request: ListRequest) -> LocalBoxFuture<'_, StoreResult<ListPage>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.list(request.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }
}

impl<S: Store, P: Pace> Inner<S, P> {
    /// Sends until it succeeds, fails for good or the policy gives up.
    async fn repeat<T, F>(&self, backoff: &mut Backoff, send: impl Fn() -> F) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>>,
    {
        self.repeat_if(backoff, send, |_| true).await
    }

    /// The same, and not after a failure that `may_again` refuses.
    async fn repeat_if<T, F>(
        &self,
        backoff: &mut Backoff,
        send: impl Fn() -> F,
        may_again: impl Fn(&StoreError) -> bool,
    ) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>>,
    {
        let started = self.pace.now();
        loop {
            backoff.attempt();
            let error = match send().await {
                Ok(value) => {
                    self.budget.borrow_mut().succeeded();
                    return Ok(value);
                }
                Err(mut error) => {
                    error.attempts = backoff.attempts();
                    error
                }
            };
            if !may_again(&error) {
                return Err(error);
            }
            self.wait_or_give_up(backoff, started, error).await?;
        }
    }

    /// Waits before the next attempt, or gives the error back with its attempts counted.
    async fn wait_or_give_up(
        &self,
        backoff: &Backoff,
        since: Duration,
        mut error: StoreError,
    ) -> StoreResult<()> {
        let elapsed = self.pace.now().saturating_sub(since);
        let pause = backoff.pause(&error, elapsed, self.pace.random());
        let Some(pause) = pause.filter(|_| self.budget.borrow_mut().try_claim()) else {
            error.attempts = backoff.attempts();
            return Err(error);
        };
        log::debug!("store request failed, again in {pause:?}: {error}");
        self.pace.sleep(pause).await;
        Ok(())
    }
}

/// A body in flight that knows how to go on after a break.
struct Resuming<S, P> {
    inner: Rc<Inner<S, P>>,
    key: String,
    version_id: Option<String>,
    backoff: Backoff,
    meta: ObjectMeta,
    /// What is still to come.
    left: ByteSpan,
    progress_at: Duration,
    /// `None` once the body has ended, well or not.
    body: Option<LocalBoxStream<'static, StoreResult<Bytes>>>,
}

impl<S: Store + 'static, P: Pace + 'static> Resuming<S, P> {
    fn start(
        inner: Rc<Inner<S, P>>,
        request: GetRequest,
        backoff: Backoff,
        reply: GetReply,
    ) -> GetReply {
        let (meta, span) = (reply.meta.clone(), reply.span);
        let resuming = Resuming {
            progress_at: inner.pace.now(),
            inner,
            key: request.key,
            version_id: request.version_id,
            backoff,
            meta: reply.meta,
            left: span,
            body: Some(reply.body),
        };
        let body = stream::unfold(resuming, |mut resuming| async move {
            let item = resuming.next().await?;
            Some((item, resuming))
        });
        let body = body.boxed_local();
        GetReply { meta, span, body }
    }

    async fn next(&mut self) -> Option<StoreResult<Bytes>> {
        loop {
            let item = self.body.as_mut()?.next().await;
            let error = match item {
                Some(Ok(bytes)) if bytes.len() as u64 <= self.left.len() => {
                    self.left.start += bytes.len() as u64;
                    self.progress_at = self.inner.pace.now();
                    return Some(Ok(bytes));
                }
                None if self.left.is_empty() => return None,
                Some(Ok(_)) => {
                    let message = format!("the store sent more of {:?} than was asked", self.key);
                    self.body = None;
                    return Some(Err(StoreError::new(StoreErrorKind::Corrupt, message)));
                }
                Some(Err(error)) => error,
                None => {
                    let message = format!(
                        "the body of {:?} ended {} bytes early",
                        self.key,
                        self.left.len()
                    );
                    StoreError::new(StoreErrorKind::Corrupt, message)
                }
            };
            self.body = None;
            match self.resume(error).await {
                Ok(body) => self.body = Some(body),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Asks for the rest of the same version, until it comes or the policy gives up.
    async fn resume(
        &mut self,
        mut error: StoreError,
    ) -> StoreResult<LocalBoxStream<'static, StoreResult<Bytes>>> {
        let tag = &self.meta.etag;
        if tag.is_empty() || tag.starts_with("W/") || self.left.is_empty() {
            error.attempts = self.backoff.attempts();
            return Err(error);
        }
        loop {
            let since = self.progress_at;
            self.inner
                .wait_or_give_up(&self.backoff, since, error)
                .await?;
            self.backoff.attempt();
            let request = GetRequest {
                key: self.key.clone(),
                span: Some(self.left),
                if_match: Some(self.meta.etag.clone()),
                if_none_match: None,
                version_id: self.version_id.clone(),
            };
            error = match self.inner.store.get(request).await {
                Ok(reply) if self.fits(&reply) => {
                    self.inner.budget.borrow_mut().succeeded();
                    return Ok(reply.body);
                }
                Ok(_) => self.changed("the store answered with another version or span of it"),
                Err(error) if is_sign_of_change(error.kind) => self.changed(&error.message),
                Err(error) => error,
            };
        }
    }

    fn fits(&self, reply: &GetReply) -> bool {
        reply.meta.etag == self.meta.etag
            && reply.meta.size == self.meta.size
            && reply.span == self.left
    }

    /// Not retryable: the bytes already passed on have no continuation.
    fn changed(&self, detail: &str) -> StoreError {
        let message = format!("{:?} changed while it was read: {detail}", self.key);
        StoreError::new(StoreErrorKind::PreconditionFailed, message)
    }
}

fn is_sign_of_change(kind: StoreErrorKind) -> bool {
    use StoreErrorKind::{NotFound, PreconditionFailed, RangeNotSatisfiable};
    matches!(kind, NotFound | PreconditionFailed | RangeNotSatisfiable)
}

#[cfg(test)]
mod tests;
