//! A folder in memory, with durability kept by sector and the faults that a test asks for.
//!
//! A write is in flight for some virtual time, then complete, then (after a sync that began later)
//! durable. [`SimDisk::crash`] decides what is left of the rest. The folder outlives executors:
//! give a clone of it to the next run. It never fails by itself: faults are set by tests, by
//! script or by seeded chance, and equal seeds give equal runs.
//!
//! What the file system promises here: a file's directory entry is durable when `create` returned,
//! as [`crate::disk::Disk::create`] says; a kill during it leaves no file, an empty one or a whole one. A removal
//! is durable only once a later `create` has synced the directory: a power cut before that may
//! bring the file back as it was.

mod crash;
mod faults;
mod operations;
mod pages;
#[cfg(test)]
mod tests;

pub use crash::{Crash, CrashReport, Undecided};
pub use faults::{DiskChances, DiskFault, DiskOperation};
pub use pages::SECTOR;

use super::SimRuntime;
use super::random::Dice;
use crate::buffer::PAGE;
use crate::runtime::Runtime;
use faults::Faults;
use pages::{Content, Page};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// A write that was begun and whose completion was not reported.
#[derive(Clone)]
struct InFlight {
    file: u64,
    first_page: u32,
    pages: Vec<Page>,
    /// So many of `pages`, from the front, are shown to reads already.
    landed: usize,
    /// Nobody waits for it any more; it lands all the same.
    abandoned: bool,
}

/// All that a crash may change.
#[derive(Clone)]
struct State {
    /// File numbers by name.
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, Content>,
    /// Removed since the directory was last synced.
    removed: Vec<(String, u64)>,
    /// Files whose making has not returned.
    half_made: Vec<u64>,
    in_flight: BTreeMap<u64, InFlight>,
    /// Numbers of files and writes from here up were never used.
    next_number: u64,
    /// Completions so far.
    order: u64,
    dice: Dice,
    faults: Faults,
    /// Longest stall, milliseconds.
    stall_ms_max: u64,
}

/// A point in the life of an operation, for [`SimDisk::observe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Asked for; nothing has happened.
    Begun,
    /// Under way; any part may have happened.
    Halfway,
    /// Done, and about to be reported.
    Done,
}

type Observer = Rc<dyn Fn(DiskOperation, Moment)>;

struct Folder {
    state: RefCell<State>,
    runtime: RefCell<Option<SimRuntime>>,
    observer: RefCell<Option<Observer>>,
    capacity_bytes: Cell<u64>,
    operations: Cell<u64>,
    used_bytes_max: Cell<u64>,
    trace: Cell<u64>,
}

/// A simulated folder. Clones are the same folder.
#[derive(Clone)]
pub struct SimDisk(Rc<Folder>);

/// An open file of a [`SimDisk`].
#[derive(Clone)]
pub struct SimFile {
    folder: SimDisk,
    number: u64,
}

impl SimDisk {
    /// An empty folder that takes `capacity_bytes`; 0 means without limit.
    pub fn new(capacity_bytes: u64) -> SimDisk {
        let state = State {
            names: BTreeMap::new(),
            files: BTreeMap::new(),
            removed: Vec::new(),
            half_made: Vec::new(),
            in_flight: BTreeMap::new(),
            next_number: 0,
            order: 0,
            dice: Dice::new(0),
            faults: Faults::default(),
            stall_ms_max: 0,
        };
        let disk = SimDisk::of(state);
        if capacity_bytes > 0 {
            disk.set_capacity(capacity_bytes);
        }
        disk
    }

    fn of(state: State) -> SimDisk {
        SimDisk(Rc::new(Folder {
            state: RefCell::new(state),
            runtime: RefCell::default(),
            observer: RefCell::default(),
            capacity_bytes: Cell::new(u64::MAX),
            operations: Cell::new(0),
            used_bytes_max: Cell::new(0),
            trace: Cell::new(0),
        }))
    }

    /// Begins a run of the program: operations take random virtual time on `runtime`, so that
    /// they interleave. What an earlier run left in flight ends as by [`Crash::Kill`].
    pub fn attach(&self, runtime: SimRuntime) {
        self.crash(Crash::Kill);
        *self.0.runtime.borrow_mut() = Some(runtime);
    }

    /// Draws everything that this disk leaves to chance from `seed` from now on.
    pub fn set_seed(&self, seed: u64) {
        self.0.state.borrow_mut().dice = Dice::new(seed);
    }

    /// Lets faults strike by `chances`, `budget` times in all.
    pub fn set_chances(&self, chances: DiskChances, budget: u32) {
        let mut state = self.0.state.borrow_mut();
        state.faults.set_chances(chances, budget);
    }

    /// How long [`DiskFault::Stall`] takes at most.
    pub fn set_stall_max(&self, stall: Duration) {
        self.0.state.borrow_mut().stall_ms_max = stall.as_millis() as u64;
    }

    /// How often a fault has struck by chance.
    pub fn struck(&self, fault: DiskFault) -> u64 {
        self.0.state.borrow().faults.struck(fault)
    }

    /// Whether any fault has struck after which the disk may hold less or other than it took.
    pub fn is_damaged(&self) -> bool {
        let damage = DiskFault::ALL.iter().filter(|fault| fault.is_damage());
        damage.map(|fault| self.struck(*fault)).sum::<u64>() > 0
    }

    /// Ends the run of the program: what is undecided is decided by chance.
    pub fn crash(&self, crash: Crash) -> CrashReport {
        *self.0.runtime.borrow_mut() = None;
        self.0.state.borrow_mut().settle_by_chance(crash)
    }

    /// All that `crash` may leave or take now, in a fixed order.
    pub fn undecided(&self, crash: Crash) -> Vec<Undecided> {
        self.0.state.borrow().undecided(crash)
    }

    /// As [`SimDisk::crash`], leaving exactly what `keep` says of each undecided thing, which are
    /// asked for in the order of [`SimDisk::undecided`].
    pub fn crash_keeping(
        &self,
        crash: Crash,
        mut keep: impl FnMut(Undecided) -> bool,
    ) -> CrashReport {
        *self.0.runtime.borrow_mut() = None;
        self.0.state.borrow_mut().settle(crash, &mut keep)
    }

    /// Has `observer` called at every moment of every operation; it may fork the disk.
    pub fn observe(&self, observer: impl Fn(DiskOperation, Moment) + 'static) {
        *self.0.observer.borrow_mut() = Some(Rc::new(observer));
    }

    /// Calls no observer any more.
    pub fn unobserve(&self) {
        self.0.observer.take();
    }

    /// Another folder in exactly this state, pending and in-flight writes included, that goes its
    /// own way from here. Nobody observes it.
    pub fn fork(&self) -> SimDisk {
        let fork = SimDisk::of(self.0.state.borrow().clone());
        fork.0.capacity_bytes.set(self.0.capacity_bytes.get());
        fork
    }

    /// Another folder that holds durably what reads of this one show, without its faults.
    pub fn duplicate(&self) -> SimDisk {
        let twin = SimDisk::new(0);
        for name in self.names() {
            twin.put_file(&name, self.content(&name));
        }
        twin
    }

    /// A digest of every operation so far with its virtual time: equal for equal runs.
    pub fn trace(&self) -> u64 {
        self.0.trace.get()
    }

    /// Makes the next `times` operations of a kind fail with `errno`.
    pub fn fail_next(&self, operation: DiskOperation, errno: i32, times: u32) {
        let mut state = self.0.state.borrow_mut();
        state.faults.script(operation, errno, 0, times);
    }

    /// Makes one operation of a kind fail with `errno`, after `skips` that do not.
    pub fn fail_after(&self, operation: DiskOperation, errno: i32, skips: u32) {
        let mut state = self.0.state.borrow_mut();
        state.faults.script(operation, errno, skips, 1);
    }

    /// Sets no faults any more, and replaces the places that had gone bad. What faults have done
    /// to the content stays.
    pub fn heal(&self) {
        let mut state = self.0.state.borrow_mut();
        state.faults.heal();
        for file in state.files.values_mut() {
            file.unreadable.clear();
            file.unwritable.clear();
        }
    }

    fn with_file<T>(&self, name: &str, look: impl FnOnce(&mut Content) -> T) -> T {
        let mut state = self.0.state.borrow_mut();
        let number = state.names[name];
        look(state.files.get_mut(&number).expect("named files exist"))
    }

    /// The whole content of a file.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn content(&self, name: &str) -> Vec<u8> {
        self.with_file(name, |file| file.bytes())
    }

    /// Changes the capacity.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.capacity_bytes.set(bytes);
    }

    /// Flips the lowest bit of the byte at `offset`.
    ///
    /// # Panics
    /// If there is no such file or byte.
    pub fn flip_bit(&self, name: &str, offset: usize) {
        self.with_file(name, |file| file.flip_bit(offset));
    }

    /// Puts a file there as somebody else would.
    pub fn put_file(&self, name: &str, content: Vec<u8>) {
        let mut state = self.0.state.borrow_mut();
        let number = state.take_number();
        state.files.insert(number, Content::of(&content));
        state.names.insert(name.into(), number);
    }

    /// Names of all files, sorted.
    pub fn names(&self) -> Vec<String> {
        self.0.state.borrow().names.keys().cloned().collect()
    }

    /// Length of a file.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn length(&self, name: &str) -> usize {
        self.with_file(name, |file| file.length() as usize)
    }

    /// Bytes of all files.
    pub fn used_bytes(&self) -> u64 {
        self.0.state.borrow().used_bytes()
    }

    /// The most bytes that all files ever had together.
    pub fn used_bytes_max(&self) -> u64 {
        self.0.used_bytes_max.get()
    }

    /// Forgets [`SimDisk::used_bytes_max`], as when another quota holds from now on.
    pub fn reset_used_bytes_max(&self) {
        self.0.used_bytes_max.set(self.used_bytes());
    }

    /// Writes completed so far: a place in the order that [`CrashReport::lost_since`] tells.
    pub fn completions(&self) -> u64 {
        self.0.state.borrow().order
    }

    /// Reads, writes, syncs and creations begun so far.
    pub fn operations(&self) -> u64 {
        self.0.operations.get()
    }

    fn note_used_bytes(&self) {
        let most = self.0.used_bytes_max.get().max(self.used_bytes());
        self.0.used_bytes_max.set(most);
    }

    fn now_ns(&self) -> u64 {
        let runtime = self.0.runtime.borrow();
        runtime.as_ref().map_or(0, |runtime| runtime.now().0)
    }

    /// Mixes numbers into the trace (FNV-1a by words).
    fn note(&self, words: &[u64]) {
        let mut trace = self.0.trace.get();
        for word in words.iter().chain(&[self.now_ns()]) {
            trace = (trace ^ word)
                .wrapping_mul(0x0100_0000_01b3)
                .rotate_left(29);
        }
        self.0.trace.set(trace);
    }

    fn tell(&self, operation: DiskOperation, moment: Moment) {
        let observer = self.0.observer.borrow().clone();
        if let Some(observer) = observer {
            observer(operation, moment);
        }
    }

    async fn pause_ns(&self, nanoseconds_max: u64) {
        let runtime = self.0.runtime.borrow().clone();
        if let Some(runtime) = runtime {
            let pause = self.0.state.borrow_mut().dice.below(nanoseconds_max + 1);
            runtime.sleep(Duration::from_nanos(pause)).await;
        }
    }
}

impl State {
    fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn used_bytes(&self) -> u64 {
        let lengths = self.names.values().map(|file| self.files[file].length());
        lengths.sum()
    }

    /// A bit of a written page flips, if there is any.
    fn rot(&mut self) {
        let named: Vec<u64> = self.names.values().copied().collect();
        if named.is_empty() {
            return;
        }
        let number = named[self.dice.below(named.len() as u64) as usize];
        let file = self.files.get_mut(&number).expect("named files exist");
        let written: Vec<u32> = (0..file.page_count())
            .filter(|page| file.visible(*page).is_some())
            .collect();
        if written.is_empty() {
            return;
        }
        let page = written[self.dice.below(written.len() as u64) as usize] as usize;
        // Headers stand at the front of pages: half of the flips strike there.
        let reach = if self.dice.one_in(2) {
            200
        } else {
            PAGE as u64
        };
        let offset = page * PAGE + self.dice.below(reach) as usize;
        file.flip_bit(offset.min(file.length() as usize - 1));
    }

    /// Shows the pages of a write up to `end` to reads.
    fn land_until(&mut self, write: u64, end: usize) {
        let Some(in_flight) = self.in_flight.get_mut(&write) else {
            return;
        };
        let Some(file) = self.files.get_mut(&in_flight.file) else {
            return;
        };
        for page in in_flight.landed..end {
            file.land(pages::Pending {
                write,
                page: in_flight.first_page + page as u32,
                content: in_flight.pages[page].clone(),
                sectors: pages::ALL,
                order: None,
                acknowledged: false,
            });
        }
        in_flight.landed = in_flight.landed.max(end);
    }

    /// Lands all of a write and ends it.
    fn complete(&mut self, write: u64, acknowledged: bool) {
        let count = self.in_flight.get(&write).map_or(0, |w| w.pages.len());
        self.land_until(write, count);
        self.end(write, acknowledged);
    }

    /// Ends a write; what has landed of it is complete.
    fn end(&mut self, write: u64, acknowledged: bool) {
        let Some(in_flight) = self.in_flight.remove(&write) else {
            return;
        };
        self.order += 1;
        if let Some(file) = self.files.get_mut(&in_flight.file) {
            file.complete(write, self.order, acknowledged);
        }
    }

    /// Some writes that nobody waits for any more land.
    fn land_abandoned(&mut self) {
        let abandoned: Vec<u64> = self
            .in_flight
            .iter()
            .filter(|(_, write)| write.abandoned)
            .map(|(number, _)| *number)
            .collect();
        for write in abandoned {
            if self.dice.one_in(4) {
                self.complete(write, false);
            }
        }
    }
}
