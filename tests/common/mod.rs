//! What the black-box tests share: a running proxy, a strict raw client, and a relay to the store.
//!
//! Nothing here links the server: the built binary is started as its users start it and is only
//! spoken to over sockets, files and signals. Each proxy has its own folders and its own port, so
//! tests run in parallel. No helper retries a failed request: a test sees what a client sees.

// Every test binary compiles this module and each uses another part of it.
#![allow(dead_code, unused_imports)]

pub mod azure;
pub mod http;
pub mod proxy;
pub mod relay;
pub mod signing;
pub mod stores;
pub mod tls;

pub use http::{Answer, Client, Ending};
pub use proxy::{OPERATOR, OTHER, Proxy, READ_ONLY, READ_WRITE, Setup, VOLUME};

use std::time::{Duration, Instant};

/// The longest that any single wait in a test may take before it counts as a hang. Generous,
/// because a two-core machine may be compiling beside the tests; it is no measurement.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// Ends a test that cannot run here. Where everything was installed for the tests
/// (`FOREBAY_TEST_REQUIRE_SERVERS=1`, as `scripts/test` sets it) nothing is skipped: it fails.
pub fn skip(reason: &str) {
    assert!(
        std::env::var_os("FOREBAY_TEST_REQUIRE_SERVERS").is_none(),
        "cannot run, and skipping is not allowed here: {reason}"
    );
    eprintln!("skipped: {reason}");
}

/// Waits until `condition` holds, and fails naming `what` when it does not in [`WAIT_MAX`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < WAIT_MAX,
            "waited {WAIT_MAX:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes that do not repeat within any block and differ for every seed, so that a block in the
/// wrong place or of the wrong object never compares equal.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64*: fast, and good enough to tell blocks apart.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Compares without printing megabytes when it fails.
pub fn assert_same_bytes(actual: &[u8], expected: &[u8], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    if actual != expected {
        let first = actual
            .iter()
            .zip(expected)
            .position(|(left, right)| left != right);
        panic!("{what}: first differing byte: {first:?}");
    }
}
