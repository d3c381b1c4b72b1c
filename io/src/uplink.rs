//! Uplink.
