//! Simulated twins of the effects: seeded, in memory, faulty on request.

pub mod store;
