//! The ledger's simulated twin: rows in memory, of which a crash loses what was not flushed.
//!
//! It flushes only when it is asked to, so that a crash may lose far more than it would in life.

use super::random::Dice;
use crate::ledger::{LedgerService, Lost, Row, Rows};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

type Table = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
struct State {
    /// What readers see: `durable` with `unflushed` carried out on it.
    visible: Table,
    durable: Table,
    unflushed: Vec<Change>,
}

enum Change {
    Put(Row),
    RemovePrefix(Vec<u8>),
}

impl Change {
    fn carry_out(&self, table: &mut Table) {
        match self {
            Change::Put((key, value)) => {
                table.insert(key.clone(), value.clone());
            }
            Change::RemovePrefix(prefix) => table.retain(|key, _| !key.starts_with(prefix)),
        }
    }
}

/// A ledger that outlives simulated processes. Clones are the same ledger.
#[derive(Clone, Default)]
pub struct SimLedger(Rc<RefCell<State>>);

impl SimLedger {
    /// An empty ledger.
    pub fn new() -> SimLedger {
        SimLedger::default()
    }

    /// Serves one core, as the ledger's thread does in life, until the core's ends are dropped.
    pub fn service(&self, mut service: LedgerService) -> impl Future<Output = ()> + 'static {
        let mut ledger = self.clone();
        async move {
            while let Some(order) = service.next_order().await {
                if let Some(reply) = service.carry_out(order, &mut ledger) {
                    ledger.0.borrow_mut().flush();
                    // Whoever asked may be gone.
                    let _ = reply.send(());
                }
            }
        }
    }

    /// What a crash leaves: what was flushed, and of what was ordered since the last flush the
    /// beginning, up to a point that the dice choose.
    pub fn crash(&self, dice: &mut Dice) {
        let mut state = self.0.borrow_mut();
        let kept = dice.below(state.unflushed.len() as u64 + 1) as usize;
        state.unflushed.truncate(kept);
        state.flush();
        state.visible = state.durable.clone();
    }

    /// Loses everything: somebody has removed the folder.
    pub fn clear(&self) {
        *self.0.borrow_mut() = State::default();
    }

    /// Rows as readers see them.
    pub fn len(&self) -> usize {
        self.0.borrow().visible.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl State {
    fn change(&mut self, change: Change) {
        change.carry_out(&mut self.visible);
        self.unflushed.push(change);
    }

    fn flush(&mut self) {
        for change in std::mem::take(&mut self.unflushed) {
            change.carry_out(&mut self.durable);
        }
    }
}

impl Rows for SimLedger {
    fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), Lost> {
        let row = (key.to_vec(), value);
        self.0.borrow_mut().change(Change::Put(row));
        Ok(())
    }

    fn remove_prefix(&mut self, prefix: &[u8]) -> Result<(), Lost> {
        let change = Change::RemovePrefix(prefix.to_vec());
        self.0.borrow_mut().change(change);
        Ok(())
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Lost> {
        Ok(self.0.borrow().visible.get(key).cloned())
    }

    fn scan_prefix(&mut self, prefix: &[u8]) -> Result<Vec<Row>, Lost> {
        let state = self.0.borrow();
        let rows = state.visible.range(prefix.to_vec()..);
        Ok(rows
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn flush(&mut self) -> Result<(), Lost> {
        self.0.borrow_mut().flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{self, Ledger};
    use crate::runtime::Runtime;
    use crate::sim::SimExecutor;

    fn attach(executor: &SimExecutor, sim: &SimLedger) -> Ledger {
        let (port, service) = ledger::pair();
        executor.runtime().spawn(sim.service(service));
        port.attach()
    }

    fn key(number: u8) -> Vec<u8> {
        vec![b'k', number]
    }

    #[test]
    fn a_crash_leaves_what_was_flushed_and_a_beginning_of_the_rest() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let sim = SimLedger::new();
            let mut executor = SimExecutor::new(seed);
            let ledger = attach(&executor, &sim);
            executor.block_on(async move {
                for number in 0..4 {
                    ledger.put(key(number), vec![1]).await;
                }
                ledger.flush().await;
                for number in 4..8 {
                    ledger.put(key(number), vec![2]).await;
                }
                ledger.remove_prefix(key(0)).await;
                assert_eq!(ledger.get(key(0)).await, None);
                assert_eq!(ledger.scan_prefix(b"k".to_vec()).await.len(), 7);
            });
            drop(executor);
            sim.crash(&mut Dice::new(seed));
            let mut executor = SimExecutor::new(seed);
            let ledger = attach(&executor, &sim);
            let rows = executor.block_on(async move { ledger.scan_prefix(b"k".to_vec()).await });
            let whole: Vec<Row> = (0..8)
                .map(|number| (key(number), vec![1 + number / 4]))
                .collect();
            let is_beginning = rows.len() >= 4 && rows[..] == whole[..rows.len()];
            assert!(
                is_beginning || rows[..] == whole[1..],
                "seed {seed}: {rows:?}"
            );
            lengths.insert((rows.len(), rows[0].0.clone()));
        }
        assert_eq!(lengths.len(), 6, "every point of the crash: {lengths:?}");
    }

    #[test]
    fn a_cleared_ledger_is_empty_and_goes_on() {
        let sim = SimLedger::new();
        let mut executor = SimExecutor::new(7);
        let ledger = attach(&executor, &sim);
        let lost = sim.clone();
        executor.block_on(async move {
            ledger.put(key(1), vec![1]).await;
            ledger.flush().await;
            lost.clear();
            assert_eq!(ledger.get(key(1)).await, None);
            ledger.put(key(2), vec![2]).await;
            assert_eq!(ledger.get(key(2)).await, Some(vec![2]));
        });
        assert_eq!(sim.len(), 1);
    }

    #[test]
    fn a_ledger_that_is_gone_answers_with_nothing() {
        let (port, service) = ledger::pair();
        let ledger = port.attach();
        drop(service);
        SimExecutor::new(1).block_on(async move {
            ledger.put(key(1), vec![1]).await;
            ledger.flush().await;
            assert_eq!(ledger.get(key(1)).await, None);
            assert!(ledger.scan_prefix(Vec::new()).await.is_empty());
            assert_eq!(ledger.failures(), 4);
        });
    }
}
