//! Simulated twins of the effects: seeded, in memory, faulty on request.

pub mod disk;
pub mod executor;
pub mod ledger;
pub mod random;
pub mod store;

pub use disk::{Crash, DiskOperation, SimDisk, SimFile};
pub use executor::{SimExecutor, SimRuntime};
pub use ledger::SimLedger;
