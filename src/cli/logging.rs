//! The log on standard error: for people at a terminal, for journald under systemd.
//!
//! This file owns the form of a line. It decides no levels beyond the default, which `RUST_LOG`
//! overrides as usual.

use log::{Level, LevelFilter};
use std::io::Write;

/// Set by systemd exactly where standard error goes to the journal.
const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";

/// Starts the log. To be called once.
pub fn start(verbose: bool) {
    let level = if verbose {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).parse_default_env();
    if std::env::var_os(JOURNAL_VARIABLE).is_some() {
        // The journal has its own clock and takes the priority from the prefix (sd-daemon(3)).
        builder.format(|line, record| {
            writeln!(line, "<{}>{}", priority(record.level()), record.args())
        });
    }
    builder.init();
}

/// The syslog priority of a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
