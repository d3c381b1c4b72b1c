//! x
pub mod private_file;
pub mod secret;
