//! The simulated machine, its clients, and what must hold of them.

pub mod client;
pub mod heal;
pub mod journal;
pub mod model;
pub mod ops;
pub mod parts;
pub mod wan;
pub mod workload;
pub mod world;
