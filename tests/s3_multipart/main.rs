//! Objects in parts, and copies: what S3's clients do with them, what they are refused, and that a
//! just-completed object is read without asking the store for a byte.

#[path = "../common/mod.rs"]
mod common;

mod conditions;
mod copies;
mod parts;
mod refusals;
mod rig;
