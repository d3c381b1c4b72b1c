//! The cache itself: blocks, segments, quota. It knows no HTTP, TLS, S3 or sockets.
//!
//! ```text
//!   core 0                                core 1
//!   ┌───────────────────────────┐         ┌───────────────────────────┐
//!   │ connections ─▶ Router ────┼─ mesh ──┼▶ Core (owner of the block)│
//!   │                 │         │         │   RAM tier, heads         │
//!   │                 ▼         │◀────────┼─  flights, turns          │
//!   │               Core        │ handles │   Shard Shard Shard       │
//!   │  Shard Shard Shard        │         │     │ direct I/O, ring    │
//!   └────┬──────────────────────┘         └─────┼─────────────────────┘
//!        │ uplink queue                         │ uplink queue
//!   ┌────▼──────┐                          ┌────▼──────┐
//!   │ companion │ stores                   │ companion │ stores
//!   └───────────┘                          └───────────┘
//! ```
//!
//! Who may mutate what: a [`shard::Shard`] and everything in a [`core::Core`] is touched by its
//! own core's tasks only. What crosses is a [`messages::Message`] and handles to immutable or
//! growing buffers. Policy here is free of I/O: it runs over the traits of `forebay-io`, in the
//! simulator as in the server.
//!
//! X never does Y: a block is never in an index before its record is completely written; a
//! segment is never reused while a read or write relies on it; a byte that failed its checksum is
//! never handed out; a fetch is never tied to a client; a superseded fetch is never cached.

pub mod absent;
mod assemble;
pub mod backlog;
pub mod block_reader;
pub mod check;
pub mod core;
mod early;
pub mod evict;
pub mod flight;
mod flush;
mod follow;
pub mod format;
mod ghost;
pub mod heads;
pub mod index;
mod inherit;
pub mod key;
pub mod log;
pub mod marks;
pub mod messages;
mod multipart;
pub mod names;
pub mod operator;
pub mod parts;
pub mod patience;
pub mod ram;
pub mod range;
mod read;
pub mod reclaim;
pub mod record;
pub mod record_pieces;
pub mod recover;
pub mod router;
pub mod schedule;
pub mod scrub;
pub mod segment;
pub mod shard;
pub mod stats;
pub mod superblock;
pub mod table;
mod tags;
pub mod upload;
mod verdict;
pub mod versions;
pub mod write;
mod writeback;
