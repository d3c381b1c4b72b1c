//! How much one store takes now: its concurrency, its pauses, and whether it is in doubt. Pure
//! state; it knows no blocks, and no other store's flow.
//!
//! Concurrency grows by one for as many successes as it counts and is halved when the store says
//! SlowDown. Every such reaction begins a new *generation*; what was started in an older one tells
//! of the time before the reaction and causes no other. So a hundred failures that were in flight
//! together count once, whatever a round trip takes.
//!
//! A store is *in doubt* after some failures in a row to reach it, or one refusal of our
//! credentials: then one upload at a time probes it, with a pause between, until one is answered.

use super::backoff::Backoff;
use forebay_io::runtime::MonoTime;
use std::time::Duration;

/// Failures in a row to reach a store before it is in doubt: single ones happen to a healthy one.
pub(super) const UNREACHABLE_MAX: u32 = 3;

/// The longest pause that a store may ask for. A larger number is more likely a mistake, and one
/// try in five minutes harms no store.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(5 * 60);

/// After SlowDown without Retry-After: S3 splits a hot prefix within minutes, and answers in tens
/// of milliseconds until then.
pub(super) const SLOW_DOWN: Backoff = Backoff {
    base: Duration::from_millis(250),
    cap: Duration::from_secs(60),
};

/// Between probes of a store that cannot be reached: it should be noticed soon that it is back.
pub(super) const UNREACHABLE: Backoff = Backoff {
    base: Duration::from_millis(500),
    cap: Duration::from_secs(30),
};

/// Between probes with credentials that were refused: a person has to act, and some stores lock
/// out who tries too often. Half of it is fixed.
pub(super) const DENIED: Backoff = Backoff {
    base: Duration::from_secs(5),
    cap: Duration::from_secs(60),
};

/// A failure that tells of the store as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreTrouble {
    SlowDown,
    Unreachable,
    Denied,
}

/// What the end of an upload tells of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// It took the block.
    Worked,
    /// It answered, and knows us.
    Answered,
    /// Nothing.
    None,
    /// It is in trouble, and perhaps asked for a pause.
    Failed(StoreTrouble, Option<Duration>),
}

/// Whether an upload may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    Go,
    /// Not before then.
    Paused(MonoTime),
    /// When one has ended.
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: MonoTime,
    /// A refusal of credentials is the only cause: the store did not ask for rest.
    is_denial: bool,
}

/// Failures in a row by what they were, each with its own back-off.
#[derive(Clone, Copy, Debug, Default)]
struct Streaks {
    slow_down: u32,
    unreachable: u32,
    denied: u32,
    all: u32,
}

/// One store as seen by one core.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    ceiling: usize,
    /// Uploads at a time while not in doubt; from 1 to `ceiling`.
    concurrency: usize,
    in_doubt: bool,
    /// Successes since `concurrency` last changed.
    growth: usize,
    generation: u32,
    in_flight: usize,
    /// Those in flight that began in this generation; at most `in_flight`.
    in_flight_of_generation: usize,
    pause: Option<Pause>,
    streaks: Streaks,
    successes: u64,
}

impl Flow {
    /// A store of which nothing is known yet, with at most `ceiling` uploads at a time.
    pub fn new(ceiling: usize) -> Flow {
        assert!(ceiling > 0);
        Flow {
            ceiling,
            concurrency: ceiling,
            in_doubt: false,
            growth: 0,
            generation: 0,
            in_flight: 0,
            in_flight_of_generation: 0,
            pause: None,
            streaks: Streaks::default(),
            successes: 0,
        }
    }

    pub fn permit(&self, now: MonoTime) -> Permit {
        let is_full = match self.in_doubt {
            // Not `in_flight`: those that began before the doubt may hang for long.
            true => self.in_flight_of_generation > 0,
            false => self.in_flight >= self.concurrency,
        };
        match self.pause {
            Some(pause) if pause.until > now => Permit::Paused(pause.until),
            _ if is_full => Permit::Full,
            _ => Permit::Go,
        }
    }

    /// An upload begins; its generation.
    pub fn started(&mut self) -> u32 {
        self.in_flight += 1;
        self.in_flight_of_generation += 1;
        self.generation
    }

    /// An upload that began in `generation` has ended.
    pub fn ended(&mut self, generation: u32, evidence: Evidence, now: MonoTime, random: u64) {
        assert!(self.in_flight > 0);
        self.in_flight -= 1;
        let is_current = generation == self.generation;
        if is_current {
            self.in_flight_of_generation -= 1;
        }
        match evidence {
            Evidence::Worked => {
                self.successes += 1;
                if is_current {
                    self.heal();
                    self.grow();
                }
            }
            Evidence::Answered if is_current => self.heal(),
            Evidence::Answered | Evidence::None => {}
            Evidence::Failed(trouble, retry_after) => {
                let asked = retry_after.filter(|wait| !wait.is_zero());
                let asked = asked.map(|wait| wait.min(RETRY_AFTER_MAX));
                if is_current {
                    self.react(trouble, asked, now, random);
                } else if let Some(wait) = asked {
                    self.pause_until(now.plus(wait), false);
                }
            }
        }
    }

    /// Uploads at a time now.
    pub fn concurrency(&self) -> usize {
        match self.in_doubt {
            true => 1,
            false => self.concurrency,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    pub fn paused_until(&self) -> Option<MonoTime> {
        self.pause.map(|pause| pause.until)
    }

    /// Failures of the store in a row.
    pub fn failures(&self) -> u32 {
        self.streaks.all
    }

    /// Uploads that worked, ever.
    pub fn successes(&self) -> u64 {
        self.successes
    }

    /// The store's settings or credentials are others now: nothing known of it holds any longer.
    pub fn forget(&mut self) {
        self.heal();
        self.pause = None;
        self.begin_generation();
    }

    /// Ends a pause that the store did not ask for.
    pub fn hurry(&mut self) {
        self.pause = self.pause.filter(|pause| !pause.is_denial);
    }

    fn heal(&mut self) {
        self.streaks = Streaks::default();
        if self.in_doubt {
            self.in_doubt = false;
            self.set_concurrency(self.concurrency / 2);
        }
    }

    fn grow(&mut self) {
        self.growth += 1;
        if self.growth >= self.concurrency {
            self.set_concurrency(self.concurrency + 1);
        }
    }

    fn set_concurrency(&mut self, concurrency: usize) {
        self.concurrency = concurrency.clamp(1, self.ceiling);
        self.growth = 0;
    }

    fn begin_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.in_flight_of_generation = 0;
    }

    fn react(
        &mut self,
        trouble: StoreTrouble,
        asked: Option<Duration>,
        now: MonoTime,
        random: u64,
    ) {
        let streaks = &mut self.streaks;
        streaks.all = streaks.all.saturating_add(1);
        let wait = match trouble {
            StoreTrouble::SlowDown => {
                streaks.slow_down = streaks.slow_down.saturating_add(1);
                let failures = streaks.slow_down;
                self.set_concurrency(self.concurrency / 2);
                SLOW_DOWN.full_jitter(failures, random)
            }
            StoreTrouble::Unreachable => {
                streaks.unreachable = streaks.unreachable.saturating_add(1);
                let failures = (streaks.unreachable + 1).saturating_sub(UNREACHABLE_MAX);
                if failures == 0 {
                    if let Some(wait) = asked {
                        self.pause_until(now.plus(wait), false);
                    }
                    return;
                }
                self.in_doubt = true;
                UNREACHABLE.full_jitter(failures, random)
            }
            StoreTrouble::Denied => {
                streaks.denied = streaks.denied.saturating_add(1);
                self.in_doubt = true;
                DENIED.half_jitter(streaks.denied, random)
            }
        };
        let is_denial = trouble == StoreTrouble::Denied && asked.is_none();
        self.pause_until(now.plus(asked.unwrap_or(wait)), is_denial);
        self.begin_generation();
    }

    fn pause_until(&mut self, until: MonoTime, is_denial: bool) {
        if self.pause.is_none_or(|pause| pause.until < until) {
            self.pause = Some(Pause { until, is_denial });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: MonoTime = MonoTime(1 << 62);
    const SLOW: Evidence = Evidence::Failed(StoreTrouble::SlowDown, None);
    const GONE: Evidence = Evidence::Failed(StoreTrouble::Unreachable, None);
    const DENIAL: Evidence = Evidence::Failed(StoreTrouble::Denied, None);

    fn seconds(count: u64) -> MonoTime {
        NOW.plus(Duration::from_secs(count))
    }

    /// One upload that begins and ends at `now`.
    fn upload(flow: &mut Flow, evidence: Evidence, now: MonoTime, random: u64) {
        assert_eq!(flow.permit(now), Permit::Go);
        let generation = flow.started();
        flow.ended(generation, evidence, now, random);
    }

    #[test]
    fn a_round_trip_of_failures_halves_once() {
        let mut flow = Flow::new(16);
        let generations: Vec<u32> = (0..16).map(|_| flow.started()).collect();
        assert_eq!(flow.permit(NOW), Permit::Full);
        for generation in generations {
            flow.ended(generation, SLOW, NOW, u64::MAX);
        }
        assert_eq!((flow.concurrency(), flow.failures()), (8, 1));
        let until = flow.paused_until().expect("it pauses").since(NOW);
        assert!(until <= SLOW_DOWN.base && until > SLOW_DOWN.base / 2);
    }

    #[test]
    fn successes_add_what_failures_halve() {
        let mut flow = Flow::new(8);
        for n in 0..4 {
            upload(&mut flow, SLOW, seconds(100 * n), 0);
        }
        assert_eq!(flow.concurrency(), 1);
        let grown = (0..1 + 2 + 3).map(|_| {
            upload(&mut flow, Evidence::Worked, seconds(1000), 0);
            flow.concurrency()
        });
        assert_eq!(grown.collect::<Vec<_>>(), [2, 2, 3, 3, 3, 4]);
        for _ in 0..1000 {
            upload(&mut flow, Evidence::Worked, seconds(1000), 0);
        }
        assert_eq!(flow.concurrency(), 8);
    }

    #[test]
    fn a_pause_that_was_asked_for_is_kept_whatever_succeeds_or_hurries() {
        let mut flow = Flow::new(4);
        let old = flow.started();
        let asked = |s| Evidence::Failed(StoreTrouble::SlowDown, Some(Duration::from_secs(s)));
        upload(&mut flow, asked(20), NOW, 0);
        flow.ended(old, Evidence::Worked, NOW, 0);
        flow.hurry();
        assert_eq!(flow.permit(seconds(19)), Permit::Paused(seconds(20)));
        upload(&mut flow, asked(1 << 40), seconds(20), 0);
        assert_eq!(flow.paused_until(), Some(seconds(320)), "not for ever");
        upload(&mut flow, asked(0), seconds(400), u64::MAX);
        assert!(flow.paused_until() > Some(seconds(400)), "no hot loop");
    }

    #[test]
    fn a_store_out_of_reach_is_probed_by_one_and_half_is_restored() {
        let mut flow = Flow::new(12);
        let hanging: Vec<u32> = (0..5).map(|_| flow.started()).collect();
        for _ in 0..UNREACHABLE_MAX - 1 {
            upload(&mut flow, GONE, NOW, u64::MAX);
            assert_eq!(flow.permit(NOW), Permit::Go, "single failures happen");
        }
        upload(&mut flow, GONE, NOW, u64::MAX);
        let Permit::Paused(until) = flow.permit(NOW) else {
            panic!("{flow:?}");
        };
        assert!(until <= NOW.plus(UNREACHABLE.base));
        let probe = flow.started();
        assert_eq!(flow.permit(until), Permit::Full, "one at a time");
        for generation in hanging {
            flow.ended(generation, GONE, until, u64::MAX);
        }
        assert_eq!(flow.failures(), 3, "those tell of the past");
        flow.ended(probe, Evidence::Worked, until, 0);
        assert_eq!((flow.concurrency(), flow.failures()), (6, 0));
        assert_eq!(flow.permit(until), Permit::Go);
    }

    #[test]
    fn probes_come_ever_slower_up_to_the_cap() {
        for (evidence, cap) in [(GONE, UNREACHABLE.cap), (DENIAL, DENIED.cap)] {
            let (mut flow, mut now) = (Flow::new(2), NOW);
            for _ in 0..40 {
                upload(&mut flow, evidence, now, u64::MAX);
                let until = flow.paused_until().unwrap_or(now);
                assert!(until.since(now) <= cap);
                now = until.max(now);
            }
            upload(&mut flow, evidence, now, u64::MAX);
            let last = flow.paused_until().expect("paused").since(now);
            assert!(last > cap - Duration::from_millis(1));
        }
    }

    #[test]
    fn a_denial_ends_with_other_credentials_or_a_hurry() {
        let mut flow = Flow::new(4);
        let old = flow.started();
        upload(&mut flow, DENIAL, NOW, 0);
        let half = DENIED.base / 2;
        assert_eq!(flow.permit(NOW), Permit::Paused(NOW.plus(half)));
        flow.hurry();
        upload(&mut flow, DENIAL, NOW, 0);
        flow.forget();
        assert_eq!(flow.permit(NOW), Permit::Go);
        flow.ended(old, DENIAL, NOW, 0);
        assert_eq!(flow.permit(NOW), Permit::Go, "of the old credentials");
    }

    #[test]
    fn an_answer_ends_the_doubt() {
        let mut flow = Flow::new(4);
        for _ in 0..UNREACHABLE_MAX {
            upload(&mut flow, GONE, NOW, 0);
        }
        assert!(flow.is_in_doubt());
        upload(&mut flow, Evidence::None, NOW, 0);
        assert!(flow.is_in_doubt());
        upload(&mut flow, Evidence::Answered, NOW, 0);
        assert_eq!((flow.concurrency(), flow.failures()), (2, 0));
    }
}
