//! Nothing acknowledged is lost by SIGKILL (P2): the short form of `scripts/kill-loop`, against the built binary.
//!
//! This file owns the number of rounds. What is done in each, and what counts as a loss, is in `forebay_bench::crash`.

use std::path::PathBuf;

use forebay_bench::crash::kill_loop::{self, Options, StoreMode};

/// In all tests of this file together 50, of which most with a store that comes and goes.
fn run(rounds: u64, store: StoreMode, sync: bool) {
    let binary = std::env::var_os("FOREBAY_TEST_BINARY");
    let binary = binary.map_or(env!("CARGO_BIN_EXE_forebay").into(), PathBuf::from);
    let folder = tempfile::tempdir().expect("temporary folder");
    let options = Options {
        binary,
        folder: folder.path().to_owned(),
        rounds,
        sync,
        store,
        shards: 2,
        seed: rounds,
    };
    let report = kill_loop::run(&options).unwrap_or_else(|error| panic!("{error}"));
    assert!(report.is_good(), "{report}");
    assert_eq!(report.rounds, rounds, "{report}");
    if store != StoreMode::Off {
        assert!(report.acknowledged > 0, "nothing was tested:\n{report}");
    }
}

#[test]
fn kills_while_the_store_comes_and_goes() {
    run(25, StoreMode::Flapping, false);
}

#[test]
fn kills_while_the_store_is_away() {
    run(15, StoreMode::Off, false);
}

#[test]
fn kills_with_sync() {
    run(10, StoreMode::Flapping, true);
}
