//! Effects: everything that can fail because of the outside world, and nothing that decides.
//!
//! The crate owns executors, per-core queues, direct files, aligned buffers, `SO_REUSEPORT`
//! listeners, TLS streams and the clock. It never knows what a block, a volume or a request is.
//! Each effect that policy depends on is a narrow trait ([`runtime::Runtime`], [`disk::Disk`],
//! [`store::Store`]) with a real implementation and a simulated twin in [`sim`], so that whole
//! shards run in a seeded simulator.
//!
//! | module | owns |
//! |---|---|
//! | [`runtime`] | the trait for spawning, time and randomness |
//! | [`rt`] | the only door to glommio: executors, pinning, timers |
//! | [`buffer`] | pooled, 4 KiB-aligned memory with a fill watermark |
//! | [`checksum`] | both checksums of what enters the cache, in one pass |
//! | [`disk`] | direct files on the core's own ring |
//! | [`md5`] | MD5 of several bodies at once |
//! | [`memory`] | how much of it there is |
//! | [`probe`] | what the machine must permit, asked before glommio is |
//! | [`queue`] | bounded lock-free queues; the mesh between cores |
//! | [`uplink`] | a core's queue to its companion thread, where stores run |
//! | [`ledger`] | a core's queue to the thread that owns sled |
//! | [`store`] | what a store can be asked and may answer |
//! | [`listing`] | names of objects in order: pages, and many pages as one |
//! | [`multipart`] | objects that come in parts, or from another one |
//! | [`tags`] | tags of objects |
//! | [`versions`] | versions of objects |
//! | [`net`] | listeners, sockets with vectored writes, TLS |
//! | [`sim`] | the simulated twins |

pub mod buffer;
pub mod checksum;
pub mod disk;
pub mod histogram;
pub mod ledger;
mod line;
pub mod listing;
pub mod local;
pub mod md5;
pub mod memory;
pub mod multipart;
pub mod net;
mod pages;
pub mod probe;
pub mod queue;
pub mod rt;
pub mod runtime;
pub mod sim;
pub mod store;
pub mod tags;
pub mod uplink;
pub mod versions;
