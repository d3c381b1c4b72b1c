//! The policy without time: a clock that only sleeping moves, and faults from the in-memory store.

use super::*;
use forebay_io::sim::store::{Fault, MemoryStore, Verb};
use futures::executor::block_on;
use proptest::prelude::*;

const SETTINGS: RetrySettings = RetrySettings {
    attempts_max: 4,
    elapsed_max: Duration::from_secs(10),
    pause_first_max: Duration::from_millis(100),
    pause_max: Duration::from_secs(2),
};

/// Time that passes only while somebody sleeps, and no chance at all.
#[derive(Clone, Default)]
struct TestPace {
    now: Rc<Cell<Duration>>,
    slept: Rc<RefCell<Vec<Duration>>>,
}

impl Pace for TestPace {
    fn now(&self) -> Duration {
        self.now.get()
    }

    fn sleep(&self, pause: Duration) -> LocalBoxFuture<'static, ()> {
        self.now.set(self.now.get() + pause);
        self.slept.borrow_mut().push(pause);
        Box::pin(futures::future::ready(()))
    }

    fn random(&self) -> u64 {
        u64::MAX
    }
}

struct Rig {
    memory: MemoryStore,
    pace: TestPace,
    store: Retrying<MemoryStore, TestPace>,
}

fn rig() -> Rig {
    let pace = TestPace::default();
    let sleeper = pace.clone();
    let memory = MemoryStore::new(Rc::new(move |pause| sleeper.sleep(pause)));
    let store = Retrying::new(memory.clone(), SETTINGS, pace.clone());
    Rig {
        memory,
        pace,
        store,
    }
}

fn whole(key: &str, body: &'static [u8]) -> PutRequest {
    PutRequest {
        key: key.into(),
        length: body.len() as u64,
        headers: Vec::new(),
        crc64nvme: None,
        if_none_match: false,
        if_match: None,
        attempts: Attempts::StorePolicy,
        body: PutBody::Whole(vec![Bytes::from_static(body)]),
    }
}

async fn drain(mut reply: GetReply) -> (Vec<u8>, Option<StoreError>) {
    let mut all = Vec::new();
    while let Some(piece) = reply.body.next().await {
        match piece {
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(error) => return (all, Some(error)),
        }
    }
    (all, None)
}

fn get(store: &impl Store, key: &str) -> (Vec<u8>, Option<StoreError>) {
    let request = GetRequest {
        key: key.into(),
        ..GetRequest::default()
    };
    block_on(async {
        match store.get(request).await {
            Ok(reply) => drain(reply).await,
            Err(error) => (Vec::new(), Some(error)),
        }
    })
}

fn content() -> Vec<u8> {
    (0..100_000_u32).map(|at| (at % 251) as u8).collect()
}

#[test]
fn pauses_double_and_are_capped() {
    let error = StoreError::new(StoreErrorKind::Internal, "");
    let settings = RetrySettings {
        attempts_max: 99,
        elapsed_max: Duration::MAX,
        ..SETTINGS
    };
    let mut backoff = Backoff::new(settings);
    let mut longest = Vec::new();
    for _ in 0..8 {
        backoff.attempt();
        let shortest = backoff.pause(&error, Duration::ZERO, 0).expect("retryable");
        let pause = backoff
            .pause(&error, Duration::ZERO, u64::MAX)
            .expect("retryable");
        assert_eq!(shortest * 2, pause);
        longest.push(pause.as_millis());
    }
    assert_eq!(longest, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
}

#[test]
fn retry_after_is_honoured_or_the_request_is_given_up() {
    let mut error = StoreError::new(StoreErrorKind::SlowDown, "");
    let mut backoff = Backoff::new(SETTINGS);
    backoff.attempt();
    error.retry_after = Some(Duration::from_secs(7));
    assert_eq!(backoff.pause(&error, Duration::ZERO, 0), error.retry_after);
    // Coming back before the store wants us would be of no use, and later is too late.
    assert_eq!(backoff.pause(&error, Duration::from_secs(4), 0), None);
}

proptest! {
    #[test]
    fn no_pause_breaks_its_bounds(
        attempts in 1_u32..200, elapsed_ms in 0_u64..20_000, random: u64, after_ms in 0_u64..20_000,
    ) {
        let settings = RetrySettings { attempts_max: 100, ..SETTINGS };
        let mut backoff = Backoff::new(settings);
        (0..attempts).for_each(|_| backoff.attempt());
        let mut error = StoreError::new(StoreErrorKind::SlowDown, "");
        error.retry_after = Some(Duration::from_millis(after_ms));
        let elapsed = Duration::from_millis(elapsed_ms);
        if let Some(pause) = backoff.pause(&error, elapsed, random) {
            prop_assert!(attempts < settings.attempts_max);
            prop_assert!(elapsed + pause <= settings.elapsed_max);
            prop_assert!(pause >= Duration::from_millis(after_ms));
            prop_assert!(pause <= settings.pause_max.max(Duration::from_millis(after_ms)));
            prop_assert!(pause >= settings.pause_first_max / 2);
        }
    }
}

#[test]
fn failures_that_may_pass_are_repeated() {
    let Rig {
        memory,
        pace,
        store,
    } = rig();
    memory.insert("k", &b"v"[..]);
    memory.script(Verb::Get, None, Fault::Fail(StoreErrorKind::Internal));
    memory.script(Verb::Get, None, Fault::SlowDown(Duration::from_secs(3)));
    assert_eq!(get(&store, "k").0, b"v");
    let pauses = [Duration::from_millis(100), Duration::from_secs(3)];
    assert_eq!(*pace.slept.borrow(), pauses);
}

#[test]
fn facts_and_refusals_are_not_repeated() {
    use StoreErrorKind::{Denied, NoSuchBucket, PreconditionFailed, Rejected, Unsupported};
    for kind in [
        Denied,
        NoSuchBucket,
        PreconditionFailed,
        Rejected,
        Unsupported,
    ] {
        let Rig { memory, store, .. } = rig();
        memory.script(Verb::Head, None, Fault::Fail(kind));
        let error = block_on(store.head("k".into())).expect_err("scripted");
        assert_eq!((error.kind, error.attempts), (kind, 1));
        assert_eq!(memory.requests(Verb::Head, "k"), 1);
    }
}

#[test]
fn the_last_error_counts_its_attempts() {
    let Rig { memory, store, .. } = rig();
    for _ in 0..9 {
        memory.script(Verb::Delete, None, Fault::Fail(StoreErrorKind::Unreachable));
    }
    let error = block_on(store.delete("k".into())).expect_err("scripted");
    assert_eq!(
        (error.kind, error.attempts),
        (StoreErrorKind::Unreachable, 4)
    );
    assert_eq!(memory.requests(Verb::Delete, "k"), 4);
}

#[test]
fn a_put_in_memory_is_repeated_and_a_streamed_one_is_not() {
    let Rig { memory, store, .. } = rig();
    memory.script(Verb::Put, Some("k"), Fault::LostReply);
    block_on(store.put(whole("k", b"v"))).expect("the second try succeeds");
    assert_eq!(memory.requests(Verb::Put, "k"), 2);

    memory.script(Verb::Put, Some("s"), Fault::Fail(StoreErrorKind::Internal));
    let mut request = whole("s", b"v");
    request.body = PutBody::Stream(stream::iter([Ok(Bytes::from_static(b"v"))]).boxed_local());
    let error = block_on(store.put(request)).expect_err("sent once");
    assert_eq!((error.kind, error.attempts), (StoreErrorKind::Internal, 1));
    assert_eq!(memory.requests(Verb::Put, "s"), 1);
}

#[test]
fn a_cut_body_goes_on_where_it_broke_off() {
    // 1 and 99,999 are the edges; 16,384 is where the store's own pieces end.
    for cut in [0, 1, 16_383, 16_384, 16_385, 99_999, 100_000] {
        let Rig { memory, store, .. } = rig();
        memory.insert("k", content());
        memory.script(Verb::Get, None, Fault::Cut(cut));
        let (bytes, error) = get(&store, "k");
        if cut == 100_000 {
            // All bytes came, then the connection broke: nothing is left to ask for.
            assert_eq!(error.expect("reported").kind, StoreErrorKind::Corrupt);
        } else {
            assert!(error.is_none(), "cut at {cut}: {error:?}");
            assert_eq!(memory.requests(Verb::Get, "k"), 2);
        }
        assert_eq!(bytes, content());
    }
}

#[test]
fn a_body_cut_again_and_again_ends_with_an_error() {
    let Rig { memory, store, .. } = rig();
    memory.insert("k", content());
    for _ in 0..9 {
        memory.script(Verb::Get, None, Fault::Cut(10));
    }
    let (bytes, error) = get(&store, "k");
    let error = error.expect("never whole");
    assert_eq!((error.kind, error.attempts), (StoreErrorKind::Corrupt, 4));
    assert_eq!(bytes, content()[..40]);
}

#[test]
fn a_silently_short_body_is_noticed_and_a_long_one_is_cut_off() {
    let Rig { memory, store, .. } = rig();
    memory.insert("k", content());
    memory.script(Verb::Get, None, Fault::Short(5));
    let (bytes, error) = get(&store, "k");
    assert!(error.is_none(), "{error:?}");
    assert_eq!(bytes, content());
    memory.script(Verb::Get, None, Fault::Long(3));
    let (bytes, error) = get(&store, "k");
    assert_eq!(error.expect("noticed").kind, StoreErrorKind::Corrupt);
    assert!(content().starts_with(&bytes));
}

#[test]
fn two_versions_are_never_mixed() {
    for change in ["other bytes", "removed"] {
        let Rig { memory, store, .. } = rig();
        memory.insert("k", content());
        memory.script(Verb::Get, None, Fault::Cut(20_000));
        let request = GetRequest {
            key: "k".into(),
            ..GetRequest::default()
        };
        let reply = block_on(store.get(request)).expect("the head is good");
        if change == "removed" {
            block_on(memory.delete("k".into())).expect("no fault left");
        } else {
            memory.insert("k", vec![9; 100_000]);
        }
        let (bytes, error) = block_on(drain(reply));
        let error = error.expect("the rest is of no use");
        assert_eq!(
            error.kind,
            StoreErrorKind::PreconditionFailed,
            "{change}: {error}"
        );
        assert_eq!(bytes, content()[..20_000]);
    }
}

#[test]
fn a_store_that_ignores_if_match_cannot_mix_versions_either() {
    let Rig { memory, store, .. } = rig();
    memory.insert("k", content());
    memory.script(Verb::Get, None, Fault::Cut(20_000));
    memory.script(Verb::Get, None, Fault::WrongEtag);
    let (bytes, error) = get(&store, "k");
    assert_eq!(
        error.expect("other version").kind,
        StoreErrorKind::PreconditionFailed
    );
    assert_eq!(bytes, content()[..20_000]);
}

#[test]
fn an_outage_uses_up_the_shared_budget_and_successes_refill_it() {
    let mut budget = RetryBudget::default();
    let claimed = (0..1000).filter(|_| budget.try_claim()).count();
    assert_eq!(claimed, (BUDGET_TOKENS_MAX / BUDGET_RETRY_TOKENS) as usize);
    assert!(!budget.try_claim());
    (0..BUDGET_RETRY_TOKENS).for_each(|_| budget.succeeded());
    assert!(budget.try_claim());
    (0..10_000).for_each(|_| budget.succeeded());
    assert_eq!(budget, RetryBudget::default());
}

#[test]
fn a_put_that_asks_for_one_attempt_is_sent_once() {
    let Rig { memory, store, .. } = rig();
    memory.script(Verb::Put, None, Fault::Fail(StoreErrorKind::SlowDown));
    let request = PutRequest {
        attempts: Attempts::Once,
        ..whole("k", b"x")
    };
    let error = block_on(store.put(request)).expect_err("scripted");
    assert_eq!((error.kind, error.attempts), (StoreErrorKind::SlowDown, 1));
    assert_eq!(memory.requests(Verb::Put, "k"), 1);
    assert!(memory.object("k").is_none());
}
