//! Whole shards, their cores, the mesh between them and their uplinks in a seeded simulation.
//!
//! Nothing here touches the kernel: the folder, the store and the clock are simulated twins, and
//! one thread runs everything, so a seed is a complete report of a failure.

mod crashes;
mod early;
mod fills;
mod freshness;
mod lists;
mod pieces;
mod random;
mod recovery;
mod support;
mod writes;
