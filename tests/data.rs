//! t
mod common;
