//! The blocks of one store that wait to be uploaded, in three lanes, and the store's flow.
//!
//! - *fresh*: they have not failed;
//! - *again*: they failed together with the store, so it tells little of them. They stand in line
//!   with the fresh ones, but behind them until something succeeds: one that fails whatever the
//!   store does must not be what the store is tried with for ever;
//! - *blamed*: they failed by themselves. First come is first served by the time at which they are
//!   due, not by age: a hundred old ones that always fail would starve the others that way.
//!
//! It never decides between stores and knows no slot outside its lanes.

use super::blocks::Blocks;
use super::flow::Flow;
use super::order::Order;
use super::{Age, DUE_NOW};
use forebay_io::runtime::MonoTime;
use std::collections::BTreeSet;

/// One in this many slots, and one in this many starts, is for blamed blocks while others wait.
pub(super) const BLAMED_SHARE: usize = 4;

/// The blamed blocks among `slots` uploads at most. Alone they may take what leaves others room to
/// come: a slot that hangs in one is not free for minutes.
pub(super) fn blamed_max(slots: usize, others_wait: bool) -> usize {
    let share = (slots / BLAMED_SHARE).max(1);
    match others_wait {
        true => share,
        false => slots.saturating_sub(share).max(1),
    }
}

/// One store's.
pub(super) struct Lanes {
    pub flow: Flow,
    pub fresh: Order,
    pub again: Order,
    /// When it is due, its age, its slot.
    pub blamed: BTreeSet<(MonoTime, Age, u32)>,
    /// Uploads in flight that came from the blamed lane.
    pub blamed_uploading: usize,
}

impl Lanes {
    pub fn new(flow: Flow) -> Lanes {
        Lanes {
            flow,
            fresh: Order::default(),
            again: Order::default(),
            blamed: BTreeSet::new(),
            blamed_uploading: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.again.is_empty() && self.blamed.is_empty()
    }

    /// Which of those that are not blamed is next.
    pub fn first(&self) -> Option<(Age, u32)> {
        let (fresh, again) = (self.fresh.first(), self.again.first());
        match (fresh, again) {
            (Some(fresh), Some(again)) if self.flow.failures() == 0 => Some(fresh.min(again)),
            _ => fresh.or(again),
        }
    }

    /// Whether a blamed block may take a slot of this store.
    pub fn has_room_for_blamed(&self) -> bool {
        let others_wait = self.first().is_some();
        if others_wait && self.flow.is_in_doubt() {
            // A probe by one that may fail whatever the store does tells little.
            return false;
        }
        self.blamed_uploading < blamed_max(self.flow.concurrency(), others_wait)
    }

    /// Ends the waits of the blamed blocks; the oldest of them is first then.
    pub fn make_blamed_due(&mut self, blocks: &mut Blocks) {
        let blamed = std::mem::take(&mut self.blamed);
        for (_, age, slot) in blamed {
            if let Some(trouble) = blocks.trouble_mut(slot) {
                trouble.due = DUE_NOW;
            }
            self.blamed.insert((DUE_NOW, age, slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blamed_blocks_have_one_slot_at_least_and_leave_one_if_there_are_two() {
        let max = |others_wait| [1, 2, 3, 4, 8, 100].map(|slots| blamed_max(slots, others_wait));
        assert_eq!(max(true), [1, 1, 1, 1, 2, 25]);
        assert_eq!(max(false), [1, 1, 2, 3, 6, 75]);
    }
}
