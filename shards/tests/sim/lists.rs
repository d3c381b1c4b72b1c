//! Lists while clients write, overwrite and delete, uploads end and fail, and after crashes.
//!
//! Each key has one client, who knows what it must look like whenever nothing is asked of it. A page is
//! made as the server makes it: the cores are asked first, the store second. What was so before the page
//! was asked for, and still is when it came, the page must show.

use crate::support::client;
use crate::support::ops::content;
use crate::support::world::{Geometry, Machine, Node, World};
use forebay_io::listing::{Entry, ListPage, ListRequest, merge};
use forebay_io::runtime::Runtime;
use forebay_io::sim::Crash;
use forebay_io::sim::random::Dice;
use forebay_io::sim::store::FaultChances;
use forebay_shards::key::Volume;
use forebay_shards::upload::WritebackSettings;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const KEYS: u64 = 12;
const OPERATIONS: u64 = 25;
const SEEDS: u64 = 24;

/// What the client of a key knows of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    begun: u64,
    ended: u64,
    /// Its size, if it is there.
    size: Option<u64>,
    /// Whether the last operation failed, so that nobody knows.
    is_unknown: bool,
    /// Deletes that were begun, and whether one is under way.
    deletes: u64,
    is_deleting: bool,
}

impl Known {
    fn is_certain(&self) -> bool {
        self.begun == self.ended && !self.is_unknown
    }

    /// Whether the object was there all the time until `later`, whatever was written meanwhile.
    fn was_there_until(&self, later: &Known) -> bool {
        let is_there = self.size.is_some() && !self.is_unknown && !self.is_deleting;
        is_there && later.deletes == self.deletes
    }
}

type Keys = Rc<RefCell<BTreeMap<String, Known>>>;

/// Puts and deletes one key, one after the other.
async fn one_client(node: Rc<Node>, volume: Arc<Volume>, keys: Keys, key: String, seed: u64) {
    let mut dice = Dice::new(seed);
    for operation in 0..OPERATIONS {
        let pause = Duration::from_micros(dice.below(40_000));
        node.runtime.sleep(pause).await;
        let what = dice.below(3);
        {
            let mut keys = keys.borrow_mut();
            let known = keys.entry(key.clone()).or_default();
            known.begun += 1;
            known.is_deleting = what == 0;
            known.deletes += u64::from(what == 0);
        }
        let outcome = match what {
            0 => client::delete(&node, &volume, &key).await.map(|()| None),
            // Some are larger than a block, and go through.
            large => {
                let longest = if large == 1 {
                    5_000
                } else {
                    3 * volume.block_bytes
                };
                let bytes = content(seed ^ operation, 1 + dice.below(longest));
                let written = client::put(&node, &volume, &key, &bytes, false).await;
                written.map(|written| Some(written.meta.size))
            }
        };
        let mut keys = keys.borrow_mut();
        let known = keys.entry(key.clone()).or_default();
        known.ended += 1;
        known.is_deleting = false;
        known.is_unknown = outcome.is_err();
        known.size = outcome.unwrap_or_default();
    }
}

/// A page as the server makes it; `None` if it is refused.
async fn page(node: &Node, volume: &Arc<Volume>, request: &ListRequest) -> Option<ListPage> {
    let dirty = node.router.list_dirty(volume, request).await.ok()?;
    let stored = node.router.list_store(volume, request.clone()).await.ok()?;
    Some(merge(request.limit, vec![dirty, stored]))
}

/// Lists all, and holds each page against what was known before and after it. Returns how many keys
/// were held against it.
async fn list_and_check(node: &Node, volume: &Arc<Volume>, keys: &Keys, limit: usize) -> u64 {
    let mut request = ListRequest {
        limit,
        ..ListRequest::default()
    };
    let mut checked = 0;
    loop {
        let before = keys.borrow().clone();
        let Some(page) = page(node, volume, &request).await else {
            return checked;
        };
        let after = keys.borrow().clone();
        let is_last = page.complete_to.is_none();
        assert!(is_last || page.entries.len() == limit, "{page:?}");
        let listed: BTreeMap<&str, u64> = page
            .entries
            .iter()
            .map(|entry| match entry {
                Entry::Object(object) => (object.key.as_str(), object.size),
                Entry::CommonPrefix(prefix) => panic!("{prefix:?} without a delimiter"),
            })
            .collect();
        for (key, known) in &before {
            let end = page.complete_to.as_ref();
            if *key <= request.after || end.is_some_and(|end| key > end) {
                continue;
            }
            let size = listed.get(key.as_str()).copied();
            let later = &after[key];
            if known.is_certain() && later == known {
                assert_eq!(size, known.size, "{key}: {known:?} in {page:?}");
                checked += 1;
            } else if known.was_there_until(later) {
                assert!(size.is_some(), "{key}: {known:?}, {later:?} in {page:?}");
                checked += 1;
            }
        }
        match page.complete_to {
            Some(end) => request.after = end,
            None => return checked,
        }
    }
}

/// Runs the clients and lists beside them; returns how many keys were held against lists.
fn churn(world: &mut World, volume: &Arc<Volume>, keys: &Keys, seed: u64) -> u64 {
    let node = world.nodes[0].clone();
    let (volume, keys) = (volume.clone(), keys.clone());
    world.run(async move {
        let clients = (0..KEYS).map(|number| {
            let key = format!("k{number:02}");
            one_client(
                node.clone(),
                volume.clone(),
                keys.clone(),
                key,
                seed * 100 + number,
            )
        });
        let clients = futures::future::join_all(clients);
        futures::pin_mut!(clients);
        let (mut dice, mut checked) = (Dice::new(seed), 0);
        loop {
            let limit = 1 + dice.below(KEYS + 2) as usize;
            let listing = list_and_check(&node, &volume, &keys, limit);
            futures::pin_mut!(listing);
            match futures::future::select(clients.as_mut(), listing).await {
                futures::future::Either::Left(_) => return checked,
                futures::future::Either::Right((count, _)) => checked += count,
            }
        }
    })
}

fn machine(dice: &mut Dice) -> Machine {
    let machine = Machine::new(Geometry::SMALL);
    machine.writeback.set(WritebackSettings {
        enabled: true,
        active_max: 1 + dice.below(4) as usize,
        delay: Duration::from_millis([0, 5, 200, 100_000][dice.below(4) as usize]),
        ..WritebackSettings::off()
    });
    machine.wan.set_pause_us_max(1 + dice.below(20_000));
    machine
}

#[test]
fn a_list_shows_what_was_acknowledged_whatever_goes_on_beside_it() {
    let mut checked = 0;
    for seed in 0..SEEDS {
        let mut dice = Dice::new(seed);
        let machine = machine(&mut dice);
        if dice.one_in(2) {
            let chances = FaultChances {
                internal: 30,
                unreachable: 30,
                lost_reply: 30,
                ..FaultChances::default()
            };
            machine.store.set_chances(chances, seed);
        }
        let volume = machine.checked();
        let cores = 1 + dice.below(3) as u32;
        let mut world = machine.start(seed, cores);
        let keys = Keys::default();
        checked += churn(&mut world, &volume, &keys, seed);
        machine.store.heal();
        // What nobody was sure of is settled by asking once more.
        drop(world);
        machine.disk.crash(Crash::Kill);
        let mut world = machine.start(seed + 1000, 1 + dice.below(3) as u32);
        let (node, volume, known) = (world.nodes[0].clone(), volume.clone(), keys.clone());
        checked += world.run(async move { list_and_check(&node, &volume, &known, 5).await });
    }
    // Else this test would say nothing.
    assert!(
        checked > 100 * SEEDS,
        "{checked} keys were held against lists"
    );
}
