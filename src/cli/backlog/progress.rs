//! How far a drain or flush has come, on standard error.

use super::Remaining;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// Pause between two lines of progress where there is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// What a terminal shows.
const BAR: &str = "{percent:>3} % {wide_bar} {binary_bytes} of {binary_total_bytes}, {msg}, \
                   {binary_bytes_per_sec}, {eta} left";

/// Shows what is left.
pub(super) enum Progress {
    /// On a terminal.
    Bar(ProgressBar),
    /// In a file or a pipe: a line now and then.
    Lines {
        started: Instant,
        last: Option<Instant>,
        /// The most bytes that were left at any time.
        total_bytes: u64,
    },
}

impl Progress {
    pub fn new() -> Progress {
        if !io::stderr().is_terminal() {
            return Progress::Lines {
                started: Instant::now(),
                last: None,
                total_bytes: 0,
            };
        }
        let style = ProgressStyle::with_template(BAR).expect("a constant that the tests parse");
        Progress::Bar(ProgressBar::new(0).with_style(style))
    }

    pub fn show(&mut self, remaining: &Remaining) {
        let blocks = told(remaining);
        match self {
            Progress::Bar(bar) => {
                let total = bar.length().unwrap_or(0).max(remaining.bytes);
                bar.set_length(total);
                bar.set_message(blocks);
                bar.set_position(total - remaining.bytes);
            }
            Progress::Lines {
                started,
                last,
                total_bytes,
            } => {
                *total_bytes = (*total_bytes).max(remaining.bytes);
                if remaining.is_over() || last.is_some_and(|last| last.elapsed() < LINE_PAUSE) {
                    return;
                }
                *last = Some(Instant::now());
                let line = line(&blocks, *total_bytes, remaining.bytes, started.elapsed());
                super::note(&line);
            }
        }
    }

    /// Says something without spoiling the bar.
    pub fn note(&self, text: &str) {
        match self {
            Progress::Bar(bar) => bar.suspend(|| super::note(text)),
            Progress::Lines { .. } => super::note(text),
        }
    }

    pub fn finish(self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn told(remaining: &Remaining) -> String {
    let blocks = match remaining.blocks {
        1 => "1 block".to_owned(),
        blocks => format!("{blocks} blocks"),
    };
    match remaining.shards_unread {
        0 => blocks,
        shards => format!("{blocks} and those of {shards} shards that still load"),
    }
}

fn line(blocks: &str, total_bytes: u64, left_bytes: u64, passed: Duration) -> String {
    let done = total_bytes - left_bytes;
    let per_second = (done as f64 / passed.as_secs_f64().max(1e-3)) as u64;
    let time_left = match left_bytes.checked_div(per_second) {
        Some(seconds) => format!("{} left", super::age(seconds)),
        None => "time unknown".to_owned(),
    };
    format!(
        "{blocks} to upload, {} of {} done, {}/s, {time_left}",
        HumanBytes(done),
        HumanBytes(total_bytes),
        HumanBytes(per_second),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_s_template_is_right() {
        ProgressStyle::with_template(BAR).expect("a template");
    }

    #[test]
    fn a_line_tells_bytes_blocks_rate_and_time() {
        let remaining = Remaining {
            blocks: 3,
            ..Remaining::default()
        };
        let text = line(&told(&remaining), 4 << 20, 1 << 20, Duration::from_secs(3));
        assert_eq!(
            text,
            "3 blocks to upload, 3.00 MiB of 4.00 MiB done, 1.00 MiB/s, 1s left"
        );
        let text = line("1 block", 5, 5, Duration::ZERO);
        assert!(text.ends_with("0 B/s, time unknown"), "{text}");
    }
}
