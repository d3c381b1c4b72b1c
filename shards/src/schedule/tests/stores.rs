//! Virtual time: a driver that does as it is told, and stores that fail in the known ways.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// An upload that began and has ended.
#[derive(Clone, Debug)]
struct Done {
    begun: MonoTime,
    ended: MonoTime,
    number: u64,
    end: Ended,
}

/// An upload as a store sees it.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    number: u64,
    store: u32,
    /// Since the start.
    at: Duration,
    /// Uploads of the store in flight, this one included.
    in_flight: usize,
}

struct Simulation {
    schedule: Schedule,
    now: MonoTime,
    chance: Chance,
    store_of: BTreeMap<u64, u32>,
    /// By end.
    in_flight: BTreeMap<(MonoTime, u64), (MonoTime, Ended)>,
    done: Vec<Done>,
}

impl Simulation {
    fn new(active_max: usize) -> Simulation {
        Simulation {
            schedule: schedule(active_max),
            now: START,
            chance: Chance(7),
            store_of: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            done: Vec::new(),
        }
    }

    fn add(&mut self, numbers: std::ops::Range<u64>, store: u32) {
        for number in numbers {
            self.schedule.add(block(number), age(number), store, 1);
            self.store_of.insert(number, store);
        }
    }

    fn in_flight_of(&self, store: u32) -> usize {
        let numbers = self.in_flight.keys().map(|(_, number)| number);
        numbers
            .filter(|number| self.store_of[number] == store)
            .count()
    }

    /// Runs until `end` or until nothing is left to do.
    fn run(&mut self, end: MonoTime, mut store: impl FnMut(Attempt) -> (Duration, Ended)) {
        loop {
            let wait_until = match self.schedule.next(self.now) {
                Next::Start(block) => {
                    let number = number(block);
                    let attempt = Attempt {
                        number,
                        store: self.store_of[&number],
                        at: self.now.since(START),
                        in_flight: self.in_flight_of(self.store_of[&number]) + 1,
                    };
                    let (duration, ended) = store(attempt);
                    let key = (self.now.plus(duration), number);
                    self.in_flight.insert(key, (self.now, ended));
                    continue;
                }
                Next::WaitUntil(until) => Some(until),
                Next::Idle => None,
            };
            let first_end = self.in_flight.keys().next().map(|key| key.0);
            let Some(now) = wait_until.into_iter().chain(first_end).min() else {
                return;
            };
            if now > end {
                self.now = end;
                return;
            }
            self.now = now;
            self.end_what_is_due();
        }
    }

    fn end_what_is_due(&mut self) {
        while let Some(entry) = self.in_flight.first_entry()
            && entry.key().0 <= self.now
        {
            let ((ended, number), (begun, end)) = entry.remove_entry();
            let random = self.chance.next();
            let age = age(number);
            self.schedule
                .ended(block(number), age, end.clone(), ended, random);
            self.done.push(Done {
                begun,
                ended,
                number,
                end,
            });
        }
    }

    fn uploaded(&self) -> BTreeSet<u64> {
        let uploaded = self.done.iter().filter(|done| done.end == Ended::Uploaded);
        uploaded.map(|done| done.number).collect()
    }

    fn begun_between(&self, from: Duration, to: Duration) -> usize {
        let between = START.plus(from)..START.plus(to);
        let done = self.done.iter();
        done.filter(|done| between.contains(&done.begun)).count()
    }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn after(seconds: u32) -> MonoTime {
    START.plus(SECOND * seconds)
}

#[test]
fn a_storm_of_503_calms_down_and_heals() {
    let mut simulation = Simulation::new(32);
    simulation.add(0..60_000, 0);
    let storm = SECOND * 5..SECOND * 125;
    simulation.run(after(600), |attempt| match storm.contains(&attempt.at) {
        true => (MS * 20, failed(FailureCause::SlowDown)),
        false => (MS * 50, Ended::Uploaded),
    });
    let before = simulation.begun_between(SECOND * 4, SECOND * 5);
    assert!(before >= 32 * 19, "{before} in a healthy second");
    let first = simulation.begun_between(SECOND * 5, SECOND * 15);
    let last = simulation.begun_between(SECOND * 95, SECOND * 125);
    assert!(
        first < 80 && last <= 10,
        "{first} in ten seconds, {last} in thirty"
    );
    let end = simulation
        .done
        .last()
        .expect("all were uploaded")
        .ended
        .since(START);
    assert_eq!(simulation.uploaded().len(), 60_000);
    assert!(
        end < SECOND * 340,
        "{end:?}, of which 120 s of storm and at most 60 s of wait"
    );
    assert_eq!(simulation.schedule.summary().stores[0].concurrency, 32);
}

#[test]
fn concurrency_settles_at_what_the_store_takes() {
    let mut simulation = Simulation::new(64);
    simulation.add(0..20_000, 0);
    simulation.run(after(3600), |attempt| match attempt.in_flight > 10 {
        true => (MS * 5, failed(FailureCause::SlowDown)),
        false => (MS * 50, Ended::Uploaded),
    });
    assert_eq!(simulation.uploaded().len(), 20_000);
    let refused = simulation.done.len() - 20_000;
    assert!(refused < 1000, "{refused} refusals");
    let end = simulation
        .done
        .last()
        .expect("all were uploaded")
        .ended
        .since(START);
    assert!(
        end < SECOND * 250,
        "{end:?}; ten at a time would take 100 s"
    );
}

#[test]
fn a_store_out_of_reach_is_probed_and_found_again() {
    let mut simulation = Simulation::new(16);
    simulation.add(0..5000, 0);
    let outage = SECOND * 2..SECOND * 3600;
    simulation.run(after(7200), |attempt| match outage.contains(&attempt.at) {
        true => (SECOND * 10, failed(FailureCause::Unreachable)),
        false => (MS * 20, Ended::Uploaded),
    });
    let probes = simulation.begun_between(SECOND * 600, SECOND * 3600);
    assert!((60..300).contains(&probes), "{probes} probes in 50 minutes");
    let found = simulation
        .done
        .iter()
        .find(|done| done.begun > START.plus(outage.end) && done.end == Ended::Uploaded);
    let found = found.expect("it is found").begun.since(START);
    assert!(found < outage.end + SECOND * 41, "{found:?}");
    assert_eq!(simulation.uploaded().len(), 5000);
}

#[test]
fn stores_do_not_suffer_from_each_other() {
    let causes = [
        FailureCause::SlowDown,
        FailureCause::Unreachable,
        FailureCause::Denied,
    ];
    for cause in causes {
        let mut simulation = Simulation::new(8);
        // Those of the store in trouble are all older.
        simulation.add(0..1000, 0);
        simulation.add(1000..3000, 1);
        simulation.run(after(59), |attempt| match attempt.store {
            0 => (SECOND * 60, failed(cause)),
            _ => (MS * 50, Ended::Uploaded),
        });
        // Two slots are its own while the other six hang: 40 a second.
        let uploaded = simulation.uploaded().len();
        assert_eq!(uploaded, 2000, "{cause:?}");
    }
}

#[test]
fn a_store_that_hangs_in_all_its_slots_leaves_a_quarter() {
    for (active_max, stores) in [(2, 2), (8, 2), (8, 3), (16, 3), (4, 9)] {
        let mut schedule = schedule(active_max);
        for store in 0..stores {
            for n in 0..100 {
                let n = u64::from(store) * 100 + n;
                schedule.add(block(n), age(n), store, 1);
            }
        }
        let mut by_store = vec![0; stores as usize];
        while let Next::Start(block) = schedule.next(START) {
            by_store[number(block) as usize / 100] += 1;
        }
        let quarter = (active_max / 4).max(1);
        assert_eq!(by_store[0], active_max - quarter, "{by_store:?}");
        assert_eq!(by_store.iter().sum::<usize>(), active_max, "{by_store:?}");
    }
}

#[test]
fn poison_holds_nothing_back() {
    // However it fails, and although it is older than everything else.
    let causes = [
        FailureCause::Key,
        FailureCause::Disk,
        FailureCause::Rejected,
        FailureCause::Unreachable,
        FailureCause::SlowDown,
        FailureCause::Denied,
    ];
    for cause in causes {
        let mut simulation = Simulation::new(8);
        simulation.add(0..10, 0);
        simulation.add(10..20_000, 0);
        simulation.run(after(3600), |attempt| match attempt.number < 10 {
            true => (SECOND, failed(cause)),
            false => (MS * 50, Ended::Uploaded),
        });
        assert_eq!(simulation.uploaded().len(), 20_000 - 10, "{cause:?}");
        let last = simulation
            .done
            .iter()
            .rfind(|done| done.end == Ended::Uploaded);
        let end = last.expect("they were uploaded").ended.since(START);
        assert!(
            end < SECOND * 600,
            "{cause:?}: {end:?}; 125 s without poison"
        );
        let tries = simulation
            .done
            .iter()
            .filter(|done| done.number == 0)
            .count();
        match cause {
            FailureCause::Rejected => assert_eq!(tries, 1),
            _ => assert!(
                (8..500).contains(&tries),
                "{cause:?}: {tries} tries in an hour"
            ),
        }
    }
}

#[test]
fn blamed_blocks_take_a_quarter_of_the_slots_at_most_while_others_wait() {
    let mut simulation = Simulation::new(8);
    simulation.add(0..10_000, 0);
    let mut tried = BTreeSet::new();
    let (mut fresh, mut most) = (10_000, [0, 0]);
    let mut blamed_ends: Vec<Duration> = Vec::new();
    simulation.run(after(3600), |attempt| {
        let is_poison = attempt.number % 10 == 0;
        if tried.insert(attempt.number) {
            fresh -= 1;
            return match is_poison {
                true => (MS * 100, failed(FailureCause::Key)),
                false => (MS * 100, Ended::Uploaded),
            };
        }
        assert!(is_poison);
        blamed_ends.retain(|end| *end > attempt.at);
        blamed_ends.push(attempt.at + SECOND * 30);
        let most = &mut most[usize::from(fresh > 0)];
        *most = blamed_ends.len().max(*most);
        (SECOND * 30, failed(FailureCause::Key))
    });
    assert_eq!(simulation.uploaded().len(), 9000);
    assert_eq!(most, [6, 2], "when alone, and while others wait");
}

#[test]
fn blamed_blocks_of_many_stores_share_one_quarter() {
    let mut schedule = schedule(8);
    let mut now = START;
    for store in 0..4 {
        for n in 0..5 {
            let n = u64::from(store) * 100 + n;
            schedule.add(block(n), age(n), store, 1);
            assert_eq!(schedule.next(now), Next::Start(block(n)));
            schedule.ended(block(n), age(n), failed(FailureCause::Key), now, 0);
        }
    }
    now = now.plus(SECOND);
    for n in 1000..1100 {
        schedule.add(block(n), age(n), 0, 1);
    }
    let mut blamed = 0;
    for _ in 0..100 {
        let Next::Start(block) = schedule.next(now) else {
            panic!("fresh ones wait and a slot is free");
        };
        match number(block) < 1000 {
            true => blamed += 1,
            false => schedule.ended(block, age(number(block)), Ended::Uploaded, now, 0),
        }
    }
    assert_eq!(blamed, 2);
}

/// JuiceFS#7558: a block must not wait for ever while younger ones flow.
#[test]
fn a_block_that_heals_is_uploaded_however_many_others_come_and_fail() {
    for active_max in [1, 2, 8] {
        let mut simulation = Simulation::new(active_max);
        // The first heals; the others of the first hundred never do.
        simulation.add(0..100, 0);
        let mut tries = 0;
        for minute in 0..60_u64 {
            // More than can be uploaded until then.
            let first = 1000 * (minute + 1);
            simulation.add(first..first + 900 * active_max as u64, 0);
            simulation.run(after(60 * (minute as u32 + 1)), |attempt| {
                tries += u32::from(attempt.number == 0);
                match attempt.number {
                    0 if tries > 3 => (MS * 100, Ended::Uploaded),
                    0..100 => (MS * 100, failed(FailureCause::Key)),
                    _ => (MS * 100, Ended::Uploaded),
                }
            });
        }
        assert!(
            simulation.uploaded().contains(&0),
            "{active_max}: {tries} tries"
        );
        let healed = simulation
            .done
            .iter()
            .find(|d| d.number == 0 && d.end == Ended::Uploaded);
        let healed = healed.expect("it was uploaded").ended.since(START);
        assert!(healed < SECOND * 900, "{active_max}: {healed:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Stores that fail at random in all ways that heal get everything in the end, and nothing
    /// begins while a store has asked for a pause.
    #[test]
    fn what_can_heal_is_uploaded(
        seed: u64, active_max in 1..20_usize, failures_percent in 0..60_u64, blocks in 1..400_u64,
    ) {
        let mut simulation = Simulation::new(active_max);
        simulation.add(0..blocks, 0);
        simulation.add(blocks..blocks + 20, 1);
        let mut chance = Chance(seed);
        let mut ends_asked = Vec::new();
        simulation.run(after(1_000_000), |attempt| {
            let paused = |(store, ended, until): &(u32, Duration, Duration)| {
                *store == attempt.store && (*ended..*until).contains(&attempt.at)
            };
            assert!(!ends_asked.iter().any(paused), "{attempt:?}");
            let duration = MS * (1 + (chance.next() % 500) as u32);
            if chance.next() % 100 >= failures_percent {
                return (duration, Ended::Uploaded);
            }
            let retry_after = chance.next().is_multiple_of(3).then_some(SECOND * 7);
            let cause = match chance.next() % 5 {
                0 => FailureCause::SlowDown,
                1 => FailureCause::Unreachable,
                2 => FailureCause::Denied,
                3 => FailureCause::Key,
                _ => FailureCause::Disk,
            };
            if retry_after.is_some() && store_trouble(cause).is_some() {
                let ended = attempt.at + duration;
                ends_asked.push((attempt.store, ended, ended + SECOND * 7));
            }
            let message = "by chance".to_string();
            (duration, Ended::Failed { cause, retry_after, message })
        });
        prop_assert_eq!(simulation.uploaded().len() as u64, blocks + 20);
    }
}
