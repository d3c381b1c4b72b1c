//! Any sequence of events against a plain map of what is dirty.

use super::*;
use proptest::prelude::*;

const STORES: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Add(u64, u32),
    Remove(u64),
    Hold(u64, Held),
    Next,
    End(usize, End),
    Sleep(u64),
    Retry(Option<u64>),
    StoreChanged(Option<u32>),
    Hurry,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Uploaded,
    Superseded,
    Conflict,
    Failed(FailureCause, Option<u64>),
}

#[derive(Clone, Copy, Debug)]
struct Dirty {
    age: Age,
    store: u32,
    held: Option<Held>,
    attempts: u32,
    /// This content failed, or was held.
    has_failed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Upload {
    age: Age,
    store: u32,
}

struct World {
    schedule: Schedule,
    active_max: usize,
    now: MonoTime,
    chance: Chance,
    sequence: u64,
    dirty: BTreeMap<u64, Dirty>,
    uploads: BTreeMap<u64, Upload>,
    /// The newest content of each block that was ever started.
    started: BTreeMap<u64, u64>,
    /// Until when each store asked for a pause.
    asked: BTreeMap<u32, MonoTime>,
    failures: u64,
}

impl World {
    fn new(active_max: usize, seed: u64) -> World {
        World {
            schedule: schedule(active_max),
            active_max,
            now: START,
            chance: Chance(seed),
            sequence: 0,
            dirty: BTreeMap::new(),
            uploads: BTreeMap::new(),
            started: BTreeMap::new(),
            asked: BTreeMap::new(),
            failures: 0,
        }
    }

    fn age(&mut self) -> Age {
        self.sequence += 1;
        Age {
            // The wall clock stands still at times and jumps back at others.
            acked_unix_ms: 1000 + self.sequence / 4 - self.chance.next() % 3,
            sequence: self.sequence,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add(n, store) => self.add(n, store, None),
            Step::Hold(n, held) => self.add(n, 0, Some(held)),
            Step::Remove(n) => {
                self.dirty.remove(&n);
                self.schedule.remove(block(n));
            }
            Step::Next => _ = self.next(),
            Step::End(index, end) => {
                let uploads: Vec<u64> = self.uploads.keys().copied().collect();
                if !uploads.is_empty() {
                    self.end(uploads[index % uploads.len()], end);
                }
            }
            Step::Sleep(ms) => self.now = self.now.plus(Duration::from_millis(ms)),
            Step::Retry(n) => self.retry(n),
            Step::StoreChanged(store) => {
                self.schedule.store_changed(store);
                self.asked
                    .retain(|s, _| store.is_some_and(|store| store != *s));
            }
            Step::Hurry => self.schedule.hurry(),
        }
    }

    fn add(&mut self, n: u64, store: u32, held: Option<Held>) {
        let age = self.age();
        let dirty = Dirty {
            age,
            store,
            held,
            attempts: 0,
            has_failed: held.is_some(),
        };
        self.dirty.insert(n, dirty);
        match held {
            None => self.schedule.add(block(n), age, store, n),
            Some(held) => self
                .schedule
                .hold(block(n), age, store, n, held, 0, "held".into()),
        }
    }

    fn retry(&mut self, n: Option<u64>) {
        let named = self
            .dirty
            .iter_mut()
            .filter(|(m, _)| n.is_none_or(|n| n == **m));
        let mut count = 0;
        for (_, dirty) in named {
            let is_retried = match dirty.held {
                Some(Held::Quarantined) => true,
                Some(Held::Conflict) => n.is_some(),
                Some(Held::Orphaned) | None => false,
            };
            if is_retried {
                dirty.held = None;
                count += 1;
            }
        }
        assert_eq!(self.schedule.retry(n.map(block)), count);
    }

    fn next(&mut self) -> Next {
        let next = self.schedule.next(self.now);
        match next {
            Next::Start(block) => self.check_start(number(block)),
            Next::WaitUntil(until) => {
                assert!(until > self.now);
                assert!(until.since(self.now) <= Duration::from_secs(300));
            }
            Next::Idle => {
                let is_busy = !self.uploads.is_empty();
                let waits = self.dirty.values().any(|dirty| dirty.held.is_none());
                assert!(is_busy || !waits, "something would wait for ever");
            }
        }
        next
    }

    fn check_start(&mut self, n: u64) {
        let dirty = self.dirty[&n];
        assert_eq!(dirty.held, None);
        let asked = self.asked.get(&dirty.store);
        assert!(
            asked.is_none_or(|until| *until <= self.now),
            "the store asked for a pause"
        );
        if !dirty.has_failed {
            let older = self.dirty.iter().filter(|(m, other)| {
                let is_ready = other.held.is_none() && !self.uploads.contains_key(m);
                let is_like = !other.has_failed && other.store == dirty.store;
                is_ready && is_like && other.age < dirty.age
            });
            assert_eq!(older.count(), 0, "oldest first");
        }
        let upload = Upload {
            age: dirty.age,
            store: dirty.store,
        };
        assert!(
            self.uploads.insert(n, upload).is_none(),
            "two uploads of a block"
        );
        assert!(self.uploads.len() <= self.active_max);
        let newest = self.started.entry(n).or_default();
        assert!(*newest <= dirty.age.sequence, "older content after newer");
        *newest = dirty.age.sequence;
    }

    fn end(&mut self, n: u64, end: End) {
        let upload = self.uploads.remove(&n).expect("it is being uploaded");
        let random = self.chance.next();
        let current = self
            .dirty
            .get_mut(&n)
            .filter(|dirty| dirty.age == upload.age);
        let current = current.filter(|dirty| dirty.held.is_none());
        let message = || "it failed".to_string();
        let ended = match end {
            End::Uploaded => Ended::Uploaded,
            End::Superseded => Ended::Superseded,
            End::Conflict => Ended::Conflict { message: message() },
            End::Failed(cause, retry_after) => Ended::Failed {
                cause,
                retry_after: retry_after.map(Duration::from_secs),
                message: message(),
            },
        };
        match (end, current) {
            (End::Uploaded | End::Superseded, Some(_)) => _ = self.dirty.remove(&n),
            (End::Conflict, Some(dirty)) => {
                dirty.held = Some(Held::Conflict);
                dirty.attempts += 1;
                dirty.has_failed = true;
            }
            (End::Failed(cause, _), Some(dirty)) => {
                dirty.attempts += 1;
                dirty.has_failed = true;
                if cause == FailureCause::Rejected {
                    dirty.held = Some(Held::Quarantined);
                }
            }
            (_, None) => {}
        }
        if let End::Failed(cause, Some(seconds)) = end
            && store_trouble(cause).is_some()
        {
            let until = self.now.plus(Duration::from_secs(seconds.min(300)));
            let asked = self.asked.entry(upload.store).or_insert(until);
            *asked = until.max(*asked);
        }
        self.failures += u64::from(matches!(end, End::Failed(..)));
        self.schedule
            .ended(block(n), upload.age, ended, self.now, random);
    }

    fn check_figures(&self) {
        let of = |held: Option<Held>| {
            let some = self.dirty.iter().filter(|(_, dirty)| dirty.held == held);
            some.fold((0, 0), |sum, (n, _)| (sum.0 + 1, sum.1 + n))
        };
        let summary = self.schedule.summary();
        assert_eq!((summary.waiting_blocks, summary.waiting_bytes), of(None));
        let quarantined = (summary.quarantined_blocks, summary.quarantined_bytes);
        assert_eq!(quarantined, of(Some(Held::Quarantined)));
        let conflicts = (summary.conflict_blocks, summary.conflict_bytes);
        assert_eq!(conflicts, of(Some(Held::Conflict)));
        assert_eq!(summary.orphaned_blocks, of(Some(Held::Orphaned)).0);
        assert_eq!(summary.uploading, self.uploads.len());
        let waiting = self.dirty.values().filter(|dirty| dirty.held.is_none());
        assert_eq!(summary.oldest, waiting.clone().map(|dirty| dirty.age).min());
        let until = 1000 + self.sequence / 8;
        let old = waiting.filter(|dirty| dirty.age.acked_unix_ms <= until);
        assert_eq!(self.schedule.waiting_up_to(until).0, old.count() as u64);
        let mut listed: Vec<_> = self.dirty.values().map(|d| (d.age, d.attempts)).collect();
        listed.sort_by_key(|(age, _)| *age);
        listed.truncate(5);
        let told = self.schedule.oldest(5);
        assert!(told.iter().map(|l| (l.age, l.attempts)).eq(listed));
    }

    /// From now on every upload works: then everything that is not held gets there.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            match self.next() {
                Next::Start(_) => {}
                Next::WaitUntil(until) if self.uploads.is_empty() => self.now = until,
                Next::WaitUntil(_) | Next::Idle => {
                    let Some(n) = self.uploads.keys().next().copied() else {
                        break;
                    };
                    self.end(n, End::Uploaded);
                }
            }
        }
        self.check_figures();
        let summary = self.schedule.summary();
        assert_eq!((summary.waiting_blocks, summary.uploading), (0, 0));
    }
}

fn end() -> impl Strategy<Value = End> {
    let cause = prop_oneof![
        Just(FailureCause::SlowDown),
        Just(FailureCause::Unreachable),
        Just(FailureCause::Denied),
        Just(FailureCause::Rejected),
        Just(FailureCause::Key),
        Just(FailureCause::Disk),
    ];
    let retry_after = proptest::option::weighted(0.3, 0..1000_u64);
    prop_oneof![
        4 => Just(End::Uploaded),
        1 => Just(End::Superseded),
        1 => Just(End::Conflict),
        4 => (cause, retry_after).prop_map(|(cause, after)| End::Failed(cause, after)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let held = prop_oneof![
        Just(Held::Quarantined),
        Just(Held::Conflict),
        Just(Held::Orphaned)
    ];
    let block = 0..16_u64;
    prop_oneof![
        6 => (block.clone(), 0..STORES).prop_map(|(n, store)| Step::Add(n, store)),
        1 => block.clone().prop_map(Step::Remove),
        1 => (block.clone(), held).prop_map(|(n, held)| Step::Hold(n, held)),
        10 => Just(Step::Next),
        7 => (any::<usize>(), end()).prop_map(|(index, end)| Step::End(index, end)),
        3 => (0..3000_u64).prop_map(Step::Sleep),
        1 => (0..600_000_u64).prop_map(Step::Sleep),
        1 => proptest::option::of(block).prop_map(Step::Retry),
        1 => proptest::option::of(0..STORES).prop_map(Step::StoreChanged),
        1 => Just(Step::Hurry),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn whatever_happens_the_promises_hold(
        active_max in 1..10_usize,
        seed: u64,
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        let mut world = World::new(active_max, seed);
        for step in steps {
            world.step(step);
            world.check_figures();
        }
        world.drain();
    }

    /// Where nothing fails and there is one store, the order is that of the ages.
    #[test]
    fn a_healthy_store_gets_the_oldest_first(
        ages in proptest::collection::vec(0..1000_u64, 1..200),
        active_max in 1..10_usize,
    ) {
        let mut schedule = schedule(active_max);
        for (n, acked) in ages.iter().enumerate() {
            schedule.add(block(n as u64), age(*acked), 0, 1);
        }
        let mut ages = ages.clone();
        let mut started = Vec::new();
        while let Next::Start(block) = schedule.next(START) {
            let acked = schedule.oldest(1)[0].age;
            started.push(acked.acked_unix_ms);
            schedule.ended(block, acked, Ended::Uploaded, START, 0);
        }
        ages.sort_unstable();
        prop_assert_eq!(started, ages);
    }
}
