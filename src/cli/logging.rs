//! The log on standard error: for people at a terminal, for journald under systemd.
//!
//! This file owns the form of a line, and how many complaints of one kind are written: a disk that
//! refuses every block must not fill another one with its log. It decides no levels beyond the
//! default, which `RUST_LOG` overrides as usual.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::collections::HashMap;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Set by systemd exactly where standard error goes to the journal.
const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";

/// Warnings and errors from one place in the program that are written in each [`WINDOW`]: enough to
/// see what is going on. The metrics count every case.
const LINES_PER_WINDOW_MAX: u64 = 10;

/// How long one place in the program is quiet after it has said enough.
const WINDOW: Duration = Duration::from_secs(60);

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
    let inner = builder.build();
    log::set_max_level(inner.filter());
    let logger = Limited {
        inner,
        sites: Mutex::default(),
    };
    log::set_boxed_logger(Box::new(logger)).expect("the log is started once");
}

/// Where in the program a line comes from.
type Site = (Option<&'static str>, Option<u32>);

/// Writes what `inner` writes, but few complaints of one kind at a time.
struct Limited<L> {
    inner: L,
    sites: Mutex<HashMap<Site, Window>>,
}

/// What one place in the program has said lately.
struct Window {
    started: Instant,
    lines: u64,
}

/// What to do with a line.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Write,
    /// The last one of its kind for a while.
    WriteAsLast,
    /// The first one again, after so many that were not written.
    WriteAfter(u64),
    Drop,
}

impl<L: Log> Limited<L> {
    fn judge(&self, site: Site, now: Instant) -> Verdict {
        let Ok(mut sites) = self.sites.lock() else {
            return Verdict::Write;
        };
        let fresh = Window {
            started: now,
            lines: 0,
        };
        let window = sites.entry(site).or_insert(fresh);
        let mut dropped = 0;
        if now.duration_since(window.started) >= WINDOW {
            dropped = window.lines.saturating_sub(LINES_PER_WINDOW_MAX);
            *window = Window {
                started: now,
                lines: 0,
            };
        }
        window.lines += 1;
        match window.lines {
            1 if dropped > 0 => Verdict::WriteAfter(dropped),
            LINES_PER_WINDOW_MAX => Verdict::WriteAsLast,
            lines if lines < LINES_PER_WINDOW_MAX => Verdict::Write,
            _ => Verdict::Drop,
        }
    }

    fn write(&self, record: &Record<'_>, note: std::fmt::Arguments<'_>) {
        let said = record.args();
        let mut line = Record::builder();
        line.metadata(record.metadata().clone())
            .module_path(record.module_path())
            .file(record.file())
            .line(record.line());
        self.inner
            .log(&line.args(format_args!("{said}{note}")).build());
    }
}

impl<L: Log> Log for Limited<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() > Level::Warn || !self.enabled(record.metadata()) {
            return self.inner.log(record);
        }
        let site = (record.file_static(), record.line());
        match self.judge(site, Instant::now()) {
            Verdict::Write => self.inner.log(record),
            Verdict::WriteAsLast => {
                self.write(record, format_args!(" (no more of these for {WINDOW:?})"));
            }
            Verdict::WriteAfter(count) => {
                self.write(record, format_args!(" ({count} more of these since)"));
            }
            Verdict::Drop => {}
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_says_a_few_lines_a_minute_and_counts_the_rest() {
        let logger = Limited {
            inner: env_logger::Builder::new().build(),
            sites: Mutex::default(),
        };
        let (site, other) = ((Some("disk.rs"), Some(1)), (Some("disk.rs"), Some(2)));
        let start = Instant::now();
        for line in 1..=1000 {
            let expected = match line {
                1..LINES_PER_WINDOW_MAX => Verdict::Write,
                LINES_PER_WINDOW_MAX => Verdict::WriteAsLast,
                _ => Verdict::Drop,
            };
            assert_eq!(logger.judge(site, start), expected, "line {line}");
        }
        assert_eq!(logger.judge(other, start), Verdict::Write);
        let later = start + WINDOW;
        let dropped = 1000 - LINES_PER_WINDOW_MAX;
        assert_eq!(logger.judge(site, later), Verdict::WriteAfter(dropped));
        assert_eq!(logger.judge(site, later), Verdict::Write);
        assert_eq!(logger.judge(site, later + WINDOW), Verdict::Write);
    }
}
