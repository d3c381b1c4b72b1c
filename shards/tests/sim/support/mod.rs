//! What all simulated tests share.

pub mod client;
pub mod model;
pub mod wan;
pub mod workload;
pub mod world;
