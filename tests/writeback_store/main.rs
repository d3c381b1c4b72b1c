//! Writeback in front of a store that misbehaves, row by row of the fault catalogue (35–54).
//!
//! A proxy is spawned as its users start it, and a stub of S3 plays the store with a script of
//! faults. What holds in every test, and is checked by [`rig::Rig::finish`]: what was acknowledged
//! reads back equal while the store fails, it reaches the store when the store has healed and with
//! nobody's help, and the store never sees two PUTs of one key at once.

#[path = "../common/mod.rs"]
mod common;

mod away;
mod conflicts;
mod credentials;
mod faults;
mod handover;
mod order;
mod poison;
mod refusals;
mod restart;
mod rig;
