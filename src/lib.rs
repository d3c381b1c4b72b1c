//! The server as its users meet it: command line, settings, stores, HTTP.

pub mod certificate;
pub mod cli;
pub mod config;
pub mod creds;
pub mod http;
pub mod metrics;
pub mod server;
pub mod settings;
pub mod size;
pub mod store;
pub mod systemd;
pub mod xml;
