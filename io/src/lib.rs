//! Effects: everything that can fail because of the outside world, and nothing that decides.

pub mod probe;
pub mod store;
