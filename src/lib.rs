//! Forebay, an NVMe block cache between compute clusters and a cloud bucket: the server as a library.

pub mod store;
