//! The shards of one core, which come while the core serves.
//!
//! This file owns which shards are here and in which order the others are loaded: those that
//! somebody waits for first. It never loads one itself and never does I/O.

use crate::shard::Shard;
use forebay_io::disk::Disk;
use forebay_io::local::Event;
use forebay_io::runtime::Runtime;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

enum Slot<R: Runtime, D: Disk> {
    Awaited(Event),
    Here(Rc<Shard<R, D>>),
}

/// The shards of one core, by number.
pub struct ShardTable<R: Runtime, D: Disk> {
    slots: RefCell<BTreeMap<u32, Slot<R, D>>>,
    /// Not yet handed to a loader, those asked for in front.
    to_load: RefCell<VecDeque<u32>>,
    here: Cell<usize>,
}

impl<R: Runtime, D: Disk> ShardTable<R, D> {
    /// A table of shards that are all still to be loaded.
    pub fn new(numbers: impl IntoIterator<Item = u32>) -> Self {
        let to_load: VecDeque<u32> = numbers.into_iter().collect();
        let slots = to_load.iter();
        ShardTable {
            slots: RefCell::new(
                slots
                    .map(|n| (*n, Slot::Awaited(Event::default())))
                    .collect(),
            ),
            to_load: RefCell::new(to_load),
            here: Cell::new(0),
        }
    }

    /// The shard that should be loaded next; `None` when loaders have taken them all.
    pub fn next_to_load(&self) -> Option<u32> {
        self.to_load.borrow_mut().pop_front()
    }

    /// A shard has been loaded.
    ///
    /// # Panics
    /// If it is not one of this table's, or here already.
    pub fn add(&self, number: u32, shard: Rc<Shard<R, D>>) {
        let former = self.slots.borrow_mut().insert(number, Slot::Here(shard));
        let Some(Slot::Awaited(arrival)) = former else {
            panic!("shard {number} is loaded once");
        };
        self.here.set(self.here.get() + 1);
        arrival.set();
    }

    /// A shard, if it is here.
    pub fn get(&self, number: u32) -> Option<Rc<Shard<R, D>>> {
        match self.slots.borrow().get(&number) {
            Some(Slot::Here(shard)) => Some(shard.clone()),
            Some(Slot::Awaited(_)) => None,
            None => panic!("shard {number} belongs to another core"),
        }
    }

    /// Waits for a shard and has it loaded before those that nobody waits for.
    pub async fn arrival(&self, number: u32) {
        let arrival = match self.slots.borrow().get(&number) {
            Some(Slot::Awaited(arrival)) => arrival.clone(),
            _ => return,
        };
        {
            let mut to_load = self.to_load.borrow_mut();
            if let Some(at) = to_load.iter().position(|waiting| *waiting == number) {
                to_load.remove(at);
                to_load.push_front(number);
            }
        }
        arrival.wait().await;
    }

    /// Those that are here, in the order of their numbers.
    pub fn loaded(&self) -> Vec<Rc<Shard<R, D>>> {
        let slots = self.slots.borrow();
        let here = slots.values().filter_map(|slot| match slot {
            Slot::Here(shard) => Some(shard.clone()),
            Slot::Awaited(_) => None,
        });
        here.collect()
    }

    /// How many are here.
    pub fn loaded_count(&self) -> usize {
        self.here.get()
    }

    /// How many there will be.
    pub fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    /// Whether the core has no shard at all, as when there are more cores than shards.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
