//! Load and origin: everything that stands *around* a Forebay server when it is tested or measured.
//!
//! - [`stub`]: an S3 server in memory that checks signatures, counts what it is asked, and fails on demand.
//! - [`crash`]: clients with a ledger of acknowledgements, around a server that is killed again and again.
//! - [`content`]: deterministic bytes that the stub serves and any client can verify at any offset.
//! - [`load`]: the load generator behind the `forebay-bench` binary.
//! - [`page`]: runs as one HTML page with plots, and as Markdown tables.
//!
//! This crate never imports the server: what it measures, it meets over a socket like any other client.

pub mod content;
pub mod crash;
pub mod load;
pub mod page;
pub mod stub;
