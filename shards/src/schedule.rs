//! Which dirty block of one core is uploaded next, and when one that failed is tried again.
//!
//! This file owns the order of uploads. It is pure policy: time, chance and everything that
//! happens are arguments; it does no I/O, and it never marks anything clean. Who drives it asks
//! [`Schedule::next`], uploads what it is told, and reports with [`Schedule::ended`].
//!
//! Oldest first among what may be uploaded now. What may not:
//!
//! - a block whose older content is being uploaded: never are there two uploads of a block;
//! - a block of a store that is paused, in doubt or full (`flow.rs`): the trouble of one store is
//!   its own, and a quarter of the slots is kept for the others;
//! - a block that failed by itself, until it is due; then it takes one start and one slot in four
//!   at most while others wait (`lanes.rs`);
//! - a block that is held: quarantined, in conflict or orphaned.
//!
//! A block that fails with its store is not blamed, unless it does so again and again while others
//! succeed. Finding the next one costs a look at each store and a few steps into sorted lists
//! (`order.rs`), however many blocks wait.

mod backoff;
mod blocks;
mod flow;
mod lanes;
mod order;
mod report;
#[cfg(test)]
mod tests;

use crate::index::BlockMap;
use crate::key::{BLOCK_BYTES_MAX, BlockHash};
use backoff::Backoff;
use blocks::{Blocks, Entry, Place};
use flow::{Evidence, Flow, Permit, RETRY_AFTER_MAX, StoreTrouble};
use forebay_io::runtime::MonoTime;
use lanes::{BLAMED_SHARE, Lanes, blamed_max};
use order::Order;
pub use report::{Listed, StoreSummary, Summary};
use std::collections::BTreeMap;
use std::time::Duration;

/// Between tries of a block that failed by itself. Half of it is fixed: such a block has nobody
/// to wait for but itself, so only the rest matters.
const BLOCK_BACKOFF: Backoff = Backoff {
    base: Duration::from_secs(1),
    cap: Duration::from_secs(5 * 60),
};

/// How often a block may fail with its store, others having succeeded in between, before it is
/// blamed. In a storm in which every second upload fails, one block in sixteen is blamed wrongly
/// and waits a second more.
const SUSPICION_MAX: u32 = 3;

/// When a block is due that need not wait: before any run of the clock.
const DUE_NOW: MonoTime = MonoTime(0);

/// One part in this many of the slots is kept free by each store for the others.
const STORES_SHARE: usize = 4;

const _: () = assert!(
    BLOCK_BYTES_MAX <= u32::MAX as u64,
    "an entry counts in 32 bits"
);

/// Place of a dirty block in the order of uploads: oldest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age {
    /// When its content was acknowledged, by the wall clock.
    pub acked_unix_ms: u64,
    /// Sequence of its record, for those of the same millisecond.
    pub sequence: u64,
}

/// What a schedule is told once.
#[derive(Clone, Copy, Debug)]
pub struct ScheduleSettings {
    /// Uploads at a time on this core; at least 1.
    pub active_max: usize,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Upload this block. It counts as being uploaded from now on, until [`Schedule::ended`].
    Start(BlockHash),
    /// Nothing until then, unless something is added or finished.
    WaitUntil(MonoTime),
    /// Nothing until something is added or finished.
    Idle,
}

/// How an upload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The store has it, or had it already.
    Uploaded,
    /// The record was replaced or deleted meanwhile. What is dirty now was added anew, or nothing is.
    Superseded,
    /// It is tried again, or quarantined.
    Failed {
        /// Whose fault it is.
        cause: FailureCause,
        /// What the store asked for.
        retry_after: Option<Duration>,
        /// What to tell the operator.
        message: String,
    },
    /// The store has something else that must not be overwritten.
    Conflict {
        /// What to tell the operator.
        message: String,
    },
}

/// Whose fault a failure is, and hence who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// The store wants fewer requests (503, 429).
    SlowDown,
    /// The store as a whole is in doubt: no connection, timeout, 5xx, corrupt answers.
    Unreachable,
    /// The store refuses our credentials; heals when they change.
    Denied,
    /// The store will never take this block (400, 413): it is quarantined.
    Rejected,
    /// This block only, and it may heal (409).
    Key,
    /// Our disk could not read it now.
    Disk,
}

/// Why a block is not uploaded until somebody says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The store will never take it as it is, or it is damaged.
    Quarantined,
    /// The store has something else.
    Conflict,
    /// Its volume is no longer configured.
    Orphaned,
}

/// What is remembered of an upload in flight.
struct Upload {
    store: u32,
    generation: u32,
    is_blamed: bool,
}

/// The dirty blocks of one core. See the file's head.
///
/// Equations: a block that is not held is in `waiting`, and in one lane of its store unless an
/// upload of it is in flight; a block that is held is in the list of its kind.
pub struct Schedule {
    active_max: usize,
    blocks: Blocks,
    waiting: Order,
    held: [Order; 3],
    stores: BTreeMap<u32, Lanes>,
    uploading: BlockMap<Upload>,
    blamed_uploading: usize,
    /// Starts since one from a blamed lane.
    starts_since_blamed: usize,
}

/// What could be started now.
#[derive(Default)]
struct Candidates {
    first: Option<(Age, u32)>,
    blamed: Option<(MonoTime, Age, u32)>,
    wait_until: Option<MonoTime>,
}

impl Schedule {
    /// A core without dirty blocks.
    pub fn new(settings: ScheduleSettings) -> Schedule {
        assert!(settings.active_max >= 1, "nothing could ever be uploaded");
        Schedule {
            active_max: settings.active_max,
            blocks: Blocks::default(),
            waiting: Order::default(),
            held: Default::default(),
            stores: BTreeMap::new(),
            uploading: BlockMap::default(),
            blamed_uploading: 0,
            starts_since_blamed: 0,
        }
    }

    /// A block became dirty, or dirty again with newer content: its failures are forgotten. While
    /// older content is being uploaded it waits for that to end.
    pub fn add(&mut self, block: BlockHash, age: Age, store: u32, bytes: u64) {
        if let Some(slot) = self.blocks.find(block) {
            let entry = self.blocks.get(slot);
            if entry.age == age && entry.place == Place::Uploading {
                return;
            }
            self.destroy(slot);
        }
        let place = self.place_unless_uploading(block, Place::Fresh);
        self.create(Entry {
            block,
            age,
            bytes: u32::try_from(bytes).expect("a block is shorter than 4 GiB"),
            store,
            attempts: 0,
            place,
        });
    }

    /// A block is no longer dirty, for whatever reason (deleted, written through). If it is being
    /// uploaded, [`Schedule::ended`] still comes.
    pub fn remove(&mut self, block: BlockHash) {
        if let Some(slot) = self.blocks.find(block) {
            self.destroy(slot);
        }
    }

    /// A block that was held before the restart, as the ledger has it.
    #[expect(
        clippy::too_many_arguments,
        reason = "a row of the ledger, each of its own type"
    )]
    pub fn hold(
        &mut self,
        block: BlockHash,
        age: Age,
        store: u32,
        bytes: u64,
        state: Held,
        attempts: u32,
        message: String,
    ) {
        self.remove(block);
        let slot = self.create(Entry {
            block,
            age,
            bytes: u32::try_from(bytes).expect("a block is shorter than 4 GiB"),
            store,
            attempts,
            place: Place::Held(state),
        });
        self.blocks.tell(slot, &message);
    }

    /// What to do now. A block that it tells to start is being uploaded from then on.
    pub fn next(&mut self, now: MonoTime) -> Next {
        if self.waiting.is_empty() || self.uploading.len() >= self.active_max {
            return Next::Idle;
        }
        let candidates = self.candidates(now);
        let blamed = candidates.blamed.filter(|_| {
            let others_wait = candidates.first.is_some();
            let has_turn = !others_wait || self.starts_since_blamed >= BLAMED_SHARE - 1;
            has_turn && self.blamed_uploading < blamed_max(self.active_max, others_wait)
        });
        let blamed = blamed.map(|(_, _, slot)| slot);
        match blamed.or(candidates.first.map(|(_, slot)| slot)) {
            Some(slot) => Next::Start(self.start(slot)),
            None => candidates.wait_until.map_or(Next::Idle, Next::WaitUntil),
        }
    }

    /// An upload that [`Schedule::next`] told to start has ended. `age` is that of the content that
    /// was uploaded; what was added since still waits. `random` is any number.
    pub fn ended(&mut self, block: BlockHash, age: Age, end: Ended, now: MonoTime, random: u64) {
        let Some(upload) = self.uploading.remove(&block) else {
            debug_assert!(false, "{block:?} was not being uploaded");
            return;
        };
        let lanes = self.stores.get_mut(&upload.store);
        let lanes = lanes.expect("a store that had an upload is known");
        self.blamed_uploading -= usize::from(upload.is_blamed);
        lanes.blamed_uploading -= usize::from(upload.is_blamed);
        lanes
            .flow
            .ended(upload.generation, evidence(&end), now, random);
        let successes = lanes.flow.successes();
        let Some(slot) = self.blocks.find(block) else {
            return;
        };
        let entry = self.blocks.get(slot);
        let is_held = matches!(entry.place, Place::Held(_));
        if entry.age != age {
            if !is_held {
                self.move_to(slot, Place::Fresh);
            }
            return;
        }
        match end {
            Ended::Uploaded | Ended::Superseded => self.destroy(slot),
            Ended::Failed { .. } | Ended::Conflict { .. } if is_held => {}
            Ended::Failed {
                cause,
                retry_after,
                message,
            } => {
                self.count_attempt(slot, &message);
                let wait_min = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
                let place = match self.is_own_failure(slot, cause, successes) {
                    _ if cause == FailureCause::Rejected => Place::Held(Held::Quarantined),
                    Some(true) => self.blame(slot, wait_min, now, random),
                    Some(false) => Place::Blamed,
                    None => Place::Again,
                };
                self.move_to(slot, place);
            }
            Ended::Conflict { message } => {
                self.count_attempt(slot, &message);
                self.move_to(slot, Place::Held(Held::Conflict));
            }
        }
    }
    /// Quarantined blocks wait again: all, or the named one, which may be in conflict too. Returns
    /// how many. They stay blamed, so that they hold nothing back if they fail as before.
    pub fn retry(&mut self, block: Option<BlockHash>) -> u64 {
        let slots: Vec<u32> = match block {
            None => self.held[Held::Quarantined as usize].iter().collect(),
            Some(block) => self.blocks.find(block).into_iter().collect(),
        };
        let mut count = 0;
        for slot in slots {
            let entry = self.blocks.get(slot);
            let Place::Held(Held::Quarantined | Held::Conflict) = entry.place else {
                continue;
            };
            let place = self.place_unless_uploading(entry.block, Place::Blamed);
            if let Some(trouble) = self.blocks.trouble_mut(slot) {
                trouble.own_failures = 1;
                trouble.due = DUE_NOW;
            }
            self.move_to(slot, place);
            count += 1;
        }
        count
    }

    /// Credentials or settings of a store changed, or of all: everything that waits for it may be
    /// tried at once.
    pub fn store_changed(&mut self, store: Option<u32>) {
        for (number, lanes) in &mut self.stores {
            if store.is_none_or(|store| store == *number) {
                lanes.flow.forget();
                lanes.make_blamed_due(&mut self.blocks);
            }
        }
    }

    /// The settings have changed: blocks whose volume was not among them may have one now.
    pub fn retry_orphans(&mut self) {
        let slots: Vec<u32> = self.held[Held::Orphaned as usize].iter().collect();
        for slot in slots {
            let block = self.blocks.get(slot).block;
            let place = self.place_unless_uploading(block, Place::Fresh);
            self.move_to(slot, place);
        }
    }

    /// Somebody waits for the uploads: every wait ends that is not the store's wish. What a store
    /// asked for is kept, and so is the back-off from one that does not keep up or is out of reach.
    pub fn hurry(&mut self) {
        for lanes in self.stores.values_mut() {
            lanes.flow.hurry();
            lanes.make_blamed_due(&mut self.blocks);
        }
    }

    fn candidates(&self, now: MonoTime) -> Candidates {
        let mut candidates = Candidates::default();
        let keep_free = self.slots_kept_free();
        for lanes in self.stores.values().filter(|lanes| !lanes.is_empty()) {
            match lanes.flow.permit(now) {
                Permit::Go if self.leaves_others_room(lanes, keep_free) => {}
                Permit::Go | Permit::Full => continue,
                Permit::Paused(until) => {
                    earliest(&mut candidates.wait_until, Some(until));
                    continue;
                }
            }
            earliest(&mut candidates.first, lanes.first());
            match lanes.blamed.first() {
                Some((due, _, _)) if *due > now => {
                    earliest(&mut candidates.wait_until, Some(*due));
                }
                first if lanes.has_room_for_blamed() => {
                    earliest(&mut candidates.blamed, first.copied());
                }
                _ => {}
            }
        }
        candidates
    }

    /// Slots that each store keeps free for the others together, and those that one of them may
    /// take of these.
    fn slots_kept_free(&self) -> (usize, usize) {
        let others = self.stores.len().saturating_sub(1);
        if others == 0 || self.active_max == 1 {
            return (0, 1);
        }
        let all = (self.active_max / STORES_SHARE).max(1);
        (all, (all / others).max(1))
    }

    /// Whether a store may begin one more upload. One that hangs in all of its slots must leave the
    /// others some, even if these have nothing to upload now.
    fn leaves_others_room(&self, lanes: &Lanes, (all, of_one): (usize, usize)) -> bool {
        if lanes.flow.in_flight() < of_one {
            return true;
        }
        let unused = |lanes: &Lanes| of_one.saturating_sub(lanes.flow.in_flight());
        let unused: usize = self.stores.values().map(unused).sum();
        let free_after = self.active_max - self.uploading.len() - 1;
        free_after >= all.min(unused)
    }

    fn start(&mut self, slot: u32) -> BlockHash {
        let Entry {
            block,
            store,
            place,
            ..
        } = *self.blocks.get(slot);
        self.move_to(slot, Place::Uploading);
        let is_blamed = place == Place::Blamed;
        self.starts_since_blamed = match is_blamed {
            true => 0,
            false => self.starts_since_blamed.saturating_add(1),
        };
        let lanes = self.stores.get_mut(&store);
        let lanes = lanes.expect("the block was in a lane of it");
        let generation = lanes.flow.started();
        lanes.blamed_uploading += usize::from(is_blamed);
        self.blamed_uploading += usize::from(is_blamed);
        let upload = Upload {
            store,
            generation,
            is_blamed,
        };
        let former = self.uploading.insert(block, upload);
        assert!(former.is_none(), "{block:?} is being uploaded already");
        block
    }

    fn count_attempt(&mut self, slot: u32, message: &str) {
        let entry = self.blocks.get_mut(slot);
        entry.attempts = entry.attempts.saturating_add(1);
        self.blocks.tell(slot, message);
    }

    /// Whether a failure counts against the block itself; `None` if none ever did. A failure with
    /// the store does when the block failed with it before, and others succeeded in between.
    fn is_own_failure(&mut self, slot: u32, cause: FailureCause, successes: u64) -> Option<bool> {
        let trouble = self.blocks.trouble_mut(slot)?;
        if store_trouble(cause).is_none() {
            return Some(true);
        }
        let seen = trouble.successes_seen.replace(successes);
        if seen.is_some_and(|seen| successes > seen) {
            trouble.suspicion = trouble.suspicion.saturating_add(1);
            if trouble.suspicion >= SUSPICION_MAX {
                return Some(true);
            }
        }
        (trouble.own_failures > 0).then_some(false)
    }

    /// Counts a failure against the block.
    fn blame(&mut self, slot: u32, wait_min: Duration, now: MonoTime, random: u64) -> Place {
        if let Some(trouble) = self.blocks.trouble_mut(slot) {
            trouble.own_failures = trouble.own_failures.saturating_add(1);
            let wait = BLOCK_BACKOFF.half_jitter(trouble.own_failures, random);
            trouble.due = now.plus(wait.max(wait_min));
        }
        Place::Blamed
    }

    fn place_unless_uploading(&self, block: BlockHash, place: Place) -> Place {
        match self.is_uploading(block) {
            true => Place::Behind,
            false => place,
        }
    }

    fn create(&mut self, entry: Entry) -> u32 {
        let slot = self.blocks.insert(entry);
        if !matches!(entry.place, Place::Held(_)) {
            self.waiting.insert(&self.blocks, slot);
        }
        self.enter(slot);
        slot
    }

    fn destroy(&mut self, slot: u32) {
        self.leave(slot);
        if !matches!(self.blocks.get(slot).place, Place::Held(_)) {
            self.waiting.remove(&self.blocks, slot);
        }
        self.blocks.remove(slot);
    }

    fn move_to(&mut self, slot: u32, place: Place) {
        self.leave(slot);
        let former = std::mem::replace(&mut self.blocks.get_mut(slot).place, place);
        let is_held = |place| matches!(place, Place::Held(_));
        match (is_held(former), is_held(place)) {
            (false, true) => self.waiting.remove(&self.blocks, slot),
            (true, false) => self.waiting.insert(&self.blocks, slot),
            _ => {}
        }
        self.enter(slot);
    }

    /// Puts a block into the list of its place.
    fn enter(&mut self, slot: u32) {
        let Entry {
            age, store, place, ..
        } = *self.blocks.get(slot);
        let (blocks, ceiling) = (&self.blocks, self.active_max);
        let lanes = self.stores.entry(store);
        let lanes = || lanes.or_insert_with(|| Lanes::new(Flow::new(ceiling)));
        match place {
            Place::Fresh => lanes().fresh.insert(blocks, slot),
            Place::Again => lanes().again.insert(blocks, slot),
            Place::Blamed => _ = lanes().blamed.insert((due(blocks, slot), age, slot)),
            Place::Uploading | Place::Behind => {}
            Place::Held(held) => self.held[held as usize].insert(blocks, slot),
        }
    }

    /// Takes a block out of the list of its place.
    fn leave(&mut self, slot: u32) {
        let Entry {
            age, store, place, ..
        } = *self.blocks.get(slot);
        let (blocks, lanes) = (&self.blocks, self.stores.get_mut(&store));
        let lanes = || lanes.expect("the store of a block in a lane is known");
        match place {
            Place::Fresh => lanes().fresh.remove(blocks, slot),
            Place::Again => lanes().again.remove(blocks, slot),
            Place::Blamed => {
                let was_there = lanes().blamed.remove(&(due(blocks, slot), age, slot));
                assert!(was_there, "a blamed block is in its lane");
            }
            Place::Uploading | Place::Behind => {}
            Place::Held(held) => self.held[held as usize].remove(blocks, slot),
        }
    }
}

fn due(blocks: &Blocks, slot: u32) -> MonoTime {
    blocks.trouble(slot).map_or(DUE_NOW, |trouble| trouble.due)
}

fn earliest<T: Ord>(earliest: &mut Option<T>, other: Option<T>) {
    *earliest = match (earliest.take(), other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
}

/// What a failure tells of the store as a whole.
fn store_trouble(cause: FailureCause) -> Option<StoreTrouble> {
    match cause {
        FailureCause::SlowDown => Some(StoreTrouble::SlowDown),
        FailureCause::Unreachable => Some(StoreTrouble::Unreachable),
        FailureCause::Denied => Some(StoreTrouble::Denied),
        FailureCause::Rejected | FailureCause::Key | FailureCause::Disk => None,
    }
}

/// What the end of an upload tells of the store.
fn evidence(end: &Ended) -> Evidence {
    match end {
        Ended::Uploaded => Evidence::Worked,
        Ended::Superseded => Evidence::None,
        Ended::Conflict { .. } => Evidence::Answered,
        Ended::Failed {
            cause, retry_after, ..
        } => match (store_trouble(*cause), cause) {
            (Some(trouble), _) => Evidence::Failed(trouble, *retry_after),
            (None, FailureCause::Disk) => Evidence::None,
            (None, _) => Evidence::Answered,
        },
    }
}
