//! `forebay drain`, `flush` and `dirty`: what is acknowledged and not yet in the store.
//!
//! This file owns what the commands ask of a proxy, how they wait, and their words. It decides nothing
//! about a block: the proxy does. A command that waits may be stopped at any time; what it has asked
//! for goes on.

mod export;
mod progress;

use super::remote::{Remote, RemoteArguments, RemoteError, printable};
use super::{DirtyArguments, DrainArguments, FlushArguments};
use crate::settings::{Environment, SettingsError};
use export::ExportError;
use indicatif::HumanBytes;
use progress::Progress;
use reqwest::Method;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

/// Pause between two looks at what is left.
const POLL_PAUSE: Duration = Duration::from_millis(500);

/// Looks that may fail one after another before the proxy is given up: the time of a restart.
const POLL_FAILURES_MAX: u32 = 20;

/// After so long without an upload, the last failure is shown.
const STANDSTILL: Duration = Duration::from_secs(10);

/// Blocks that the proxy lists when nothing else is asked for.
const LIST_DEFAULT: u64 = 1000;
/// Blocks that the proxy lists at most.
const LIST_MAX: u64 = 10_000;

/// Why a command failed. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum BacklogError {
    /// The proxy cannot be asked, or refuses.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Everything that can be uploaded is, and yet something is left.
    #[error(
        "not everything is in the store: {}; `forebay dirty` lists these blocks and decides about them",
        .0.held()
    )]
    Held(Remaining),
    /// The proxy has stopped answering.
    #[error("{source}; when it last did, {} had yet to be uploaded", counted(*.blocks))]
    WentAway {
        /// What it left.
        blocks: u64,
        /// How it went.
        source: RemoteError,
    },
    /// A key that is in several volumes.
    #[error("--volume: dirty blocks of this key are in the volumes {0}; say which is meant")]
    Ambiguous(String),
    /// A key that is nowhere.
    #[error("no held block has the key {0:?}; `forebay dirty` lists them")]
    NoSuchBlock(String),
    /// Not every block could be written.
    #[error("{failed} of {total} held blocks were not exported")]
    NotExported {
        /// How many were not.
        failed: u64,
        /// Of how many.
        total: u64,
    },
    /// The folder for exported blocks cannot be used.
    #[error(transparent)]
    Export(#[from] ExportError),
}

impl From<SettingsError> for BacklogError {
    fn from(error: SettingsError) -> Self {
        BacklogError::Remote(error.into())
    }
}

impl BacklogError {
    /// Whether the fault lies in what was typed.
    pub fn is_usage(&self) -> bool {
        match self {
            BacklogError::Remote(error) => error.is_usage(),
            BacklogError::Ambiguous(_) => true,
            BacklogError::Held(_)
            | BacklogError::WentAway { .. }
            | BacklogError::NoSuchBlock(_)
            | BacklogError::NotExported { .. }
            | BacklogError::Export(_) => false,
        }
    }
}

/// What is left, as `/-/dirty/remaining` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Remaining {
    blocks: u64,
    bytes: u64,
    quarantined_blocks: u64,
    conflict_blocks: u64,
    orphaned_blocks: u64,
    shards_unread: u64,
}

impl Remaining {
    /// Whether nothing more will be uploaded.
    fn is_over(&self) -> bool {
        self.blocks == 0 && self.shards_unread == 0
    }

    /// What stays although nothing more will be uploaded; empty if nothing does.
    fn held(&self) -> String {
        let kinds = [
            (self.quarantined_blocks, "quarantined"),
            (self.conflict_blocks, "in conflict"),
            (self.orphaned_blocks, "of volumes that are gone"),
        ];
        let told: Vec<String> = kinds
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, kind)| format!("{count} {kind}"))
            .collect();
        told.join(", ")
    }
}

/// The answer to `POST /-/flush` and `/-/drain`.
#[derive(Deserialize)]
struct Begun {
    before_unix_ms: u64,
    #[serde(flatten)]
    remaining: Remaining,
}

/// A block of `/-/dirty`.
#[derive(Deserialize)]
struct Block {
    volume: String,
    key: String,
    bytes: u64,
    age_seconds: u64,
    attempts: u32,
    state: String,
    last_error: Option<String>,
}

impl Block {
    /// Whether it waits for a decision instead of an upload.
    fn is_held(&self) -> bool {
        matches!(self.state.as_str(), "quarantined" | "conflict" | "orphaned")
    }
}

#[derive(Deserialize)]
struct Listing {
    summary: Summary,
    blocks: Vec<Block>,
}

/// What is used of `status.writeback`.
#[derive(Deserialize)]
struct Summary {
    draining: bool,
    dirty_blocks: u64,
    dirty_bytes: u64,
    quarantined_blocks: u64,
    conflict_blocks: u64,
    orphaned_blocks: u64,
}

impl Summary {
    fn blocks(&self) -> u64 {
        self.dirty_blocks + self.held_blocks()
    }

    fn held_blocks(&self) -> u64 {
        self.quarantined_blocks + self.conflict_blocks + self.orphaned_blocks
    }
}

macro_rules! remote_arguments {
    ($arguments:expr) => {
        RemoteArguments {
            url: $arguments.url.as_deref(),
            token: $arguments.token.as_ref(),
            token_file: $arguments.token_file.as_deref(),
            config: $arguments.config.as_deref(),
            ca: $arguments.ca.as_deref(),
            fingerprint: $arguments.fingerprint.as_deref(),
            insecure: $arguments.insecure,
            dev: $arguments.dev,
        }
    };
}

fn connect(
    arguments: RemoteArguments<'_>,
    environment: &Environment,
) -> Result<Remote, BacklogError> {
    let remote = Remote::new(arguments, environment)?;
    for warning in &remote.warnings {
        note(&format!("warning: {warning}"));
    }
    Ok(remote)
}

/// One line on standard error. One that is gone changes nothing.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}: {text}", super::PROGRAM);
}

/// `forebay drain`
pub fn drain(
    arguments: &DrainArguments,
    environment: &Environment,
) -> Result<String, BacklogError> {
    let remote = connect(remote_arguments!(arguments), environment)?;
    if arguments.end {
        let _: IgnoredAny = remote.ask(Method::DELETE, "/-/drain", &[])?;
        return Ok("the drain is over: writes are acknowledged before the store has them\n".into());
    }
    let started = Instant::now();
    let begun: Begun = remote.ask(Method::POST, "/-/drain", &[])?;
    // Whatever its age: a write that was being taken when the drain began is waited for too.
    let uploaded = wait(&remote, None, begun.remaining)?;
    Ok(format!(
        "drained{}; new writes go through to the store until `forebay drain --end` or a restart\n",
        uploaded.told(started.elapsed())
    ))
}

/// `forebay flush`
pub fn flush(
    arguments: &FlushArguments,
    environment: &Environment,
) -> Result<String, BacklogError> {
    let remote = connect(remote_arguments!(arguments), environment)?;
    let started = Instant::now();
    let begun: Begun = remote.ask(Method::POST, "/-/flush", &[])?;
    let before = begun.before_unix_ms.to_string();
    let uploaded = wait(&remote, Some(&before), begun.remaining)?;
    Ok(format!("flushed{}\n", uploaded.told(started.elapsed())))
}

/// What a wait has seen go.
struct Uploaded {
    blocks: u64,
    bytes: u64,
}

impl Uploaded {
    fn told(&self, passed: Duration) -> String {
        if self.blocks == 0 {
            return ": nothing was left to upload".to_owned();
        }
        format!(
            ": {} ({}) in {:.1} s",
            counted(self.blocks),
            HumanBytes(self.bytes),
            passed.as_secs_f64()
        )
    }
}

/// Waits until nothing that was acknowledged up to a time is left to upload.
fn wait(
    remote: &Remote,
    before_unix_ms: Option<&str>,
    first: Remaining,
) -> Result<Uploaded, BacklogError> {
    let query: Vec<(&str, &str)> = before_unix_ms
        .iter()
        .map(|before| ("before_unix_ms", *before))
        .collect();
    let mut progress = Progress::new();
    let mut standstill = Standstill::new();
    let mut failures = 0;
    let mut remaining = first;
    // While shards load after a start, blocks are counted of which the store may have some.
    let mut most = Remaining::default();
    loop {
        let is_known = remaining.shards_unread == 0;
        if is_known && (remaining.blocks > most.blocks || remaining.bytes > most.bytes) {
            most = remaining.clone();
        }
        progress.show(&remaining);
        if remaining.is_over() {
            break;
        }
        if standstill.is_worth_a_word(&remaining)
            && let Some(reason) = standstill.reason(remote)
        {
            progress.note(&reason);
        }
        std::thread::sleep(POLL_PAUSE);
        match remote.ask(Method::GET, "/-/dirty/remaining", &query) {
            Ok(next) => (remaining, failures) = (next, 0),
            Err(error) if error.may_pass() && failures < POLL_FAILURES_MAX => failures += 1,
            Err(source) => {
                progress.finish();
                let blocks = remaining.blocks;
                return Err(BacklogError::WentAway { blocks, source });
            }
        }
    }
    progress.finish();
    if remaining.held().is_empty() {
        Ok(Uploaded {
            blocks: most.blocks,
            bytes: most.bytes,
        })
    } else {
        Err(BacklogError::Held(remaining))
    }
}

/// Whether uploads go on, and why not.
struct Standstill {
    blocks: u64,
    since: Instant,
    told: Option<String>,
}

impl Standstill {
    fn new() -> Standstill {
        Standstill {
            blocks: 0,
            since: Instant::now(),
            told: None,
        }
    }

    fn is_worth_a_word(&mut self, remaining: &Remaining) -> bool {
        if self.blocks != remaining.blocks {
            self.blocks = remaining.blocks;
            self.since = Instant::now();
        }
        let is_time = self.since.elapsed() >= STANDSTILL;
        if is_time {
            self.since = Instant::now();
        }
        is_time
    }

    /// The oldest block's last failure, once; a question that fails is not worth a word.
    fn reason(&mut self, remote: &Remote) -> Option<String> {
        let listing: Listing = remote
            .ask(Method::GET, "/-/dirty", &[("limit", "1")])
            .ok()?;
        let block = listing.blocks.into_iter().next()?;
        let reason = format!(
            "no upload for {} s; the oldest block, {}/{}, has failed {} times: {}",
            STANDSTILL.as_secs(),
            printable(&block.volume),
            printable(&block.key),
            block.attempts,
            printable(&block.last_error?),
        );
        (self.told.as_ref() != Some(&reason)).then(|| {
            self.told = Some(reason.clone());
            reason
        })
    }
}

/// `forebay dirty`
pub fn dirty(
    arguments: &DirtyArguments,
    environment: &Environment,
) -> Result<String, BacklogError> {
    check_dirty(arguments)?;
    let limit = check_limit(arguments.limit.as_deref())?;
    let remote = connect(remote_arguments!(arguments), environment)?;
    let volume = arguments.volume.as_deref();
    if let Some(key) = &arguments.abandon {
        let volume = volume_of(&remote, volume, key)?;
        let name = [("volume", volume.as_str()), ("key", key)];
        let _: IgnoredAny = remote.ask(Method::POST, "/-/dirty/abandon", &name)?;
        return Ok(format!("{} is given up\n", shown(&volume, key)));
    }
    if let Some(key) = &arguments.retry {
        return retry(&remote, volume, key);
    }
    if let Some(folder) = &arguments.export {
        let folder = environment.path("--export", folder)?;
        let listing = list(&remote, LIST_MAX)?;
        return export::run(&remote, &folder, volume, &listing);
    }
    if arguments.json {
        let limit = limit.to_string();
        return Ok(remote.ask_text(Method::GET, "/-/dirty", &[("limit", &limit)])?);
    }
    let listing = list(&remote, limit)?;
    Ok(table(&listing, volume))
}

/// Refuses flags that do not go together.
fn check_dirty(arguments: &DirtyArguments) -> Result<(), SettingsError> {
    let given = |flags: &[(&'static str, bool)]| -> Vec<&'static str> {
        let given = flags.iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| *flag).collect()
    };
    let actions = given(&[
        ("--retry", arguments.retry.is_some()),
        ("--export", arguments.export.is_some()),
        ("--abandon", arguments.abandon.is_some()),
    ]);
    let of_lists = given(&[
        ("--json", arguments.json),
        ("--limit", arguments.limit.is_some()),
    ]);
    let refuse = |flag, problem: String| Err(SettingsError::Flag { flag, problem });
    match (actions.as_slice(), of_lists.as_slice()) {
        ([one, other, ..], _) => refuse(other, format!("{one} is given too; give one of them")),
        ([action], [flag, ..]) => refuse(
            flag,
            format!("it belongs to the list, which {action} does not print"),
        ),
        _ if arguments.json && arguments.volume.is_some() => refuse(
            "--volume",
            "--json prints the whole list as the proxy sends it; leave one of them out".to_owned(),
        ),
        _ if arguments.retry.as_deref() == Some("") && arguments.volume.is_some() => refuse(
            "--volume",
            "--retry without a key is about all volumes; name the key".to_owned(),
        ),
        _ => Ok(()),
    }
}

fn check_limit(given: Option<&str>) -> Result<u64, SettingsError> {
    let Some(text) = given else {
        return Ok(LIST_DEFAULT);
    };
    match text.parse() {
        Ok(limit) if (1..=LIST_MAX).contains(&limit) => Ok(limit),
        _ => Err(SettingsError::Flag {
            flag: "--limit",
            problem: format!("`{text}` is not a number from 1 to {LIST_MAX}"),
        }),
    }
}

fn list(remote: &Remote, limit: u64) -> Result<Listing, RemoteError> {
    remote.ask(Method::GET, "/-/dirty", &[("limit", &limit.to_string())])
}

/// `--retry`; an empty key is none.
fn retry(remote: &Remote, volume: Option<&str>, key: &str) -> Result<String, BacklogError> {
    #[derive(Deserialize)]
    struct Retried {
        retried: u64,
    }
    if key.is_empty() {
        let answer: Retried = remote.ask(Method::POST, "/-/dirty/retry", &[])?;
        return Ok(match answer.retried {
            0 => "no block is quarantined\n".to_owned(),
            count => format!("{} will be uploaded again\n", counted(count)),
        });
    }
    let volume = volume_of(remote, volume, key)?;
    let name = [("volume", volume.as_str()), ("key", key)];
    let answer: Retried = remote.ask(Method::POST, "/-/dirty/retry", &name)?;
    match answer.retried {
        0 => Err(BacklogError::NoSuchBlock(key.to_owned())),
        _ => Ok(format!("{} will be uploaded again\n", shown(&volume, key))),
    }
}

/// The volume that is meant: the one that is named, or the only one with a held block of this key.
fn volume_of(remote: &Remote, given: Option<&str>, key: &str) -> Result<String, BacklogError> {
    if let Some(volume) = given {
        return Ok(volume.to_owned());
    }
    let listing = list(remote, LIST_MAX)?;
    let held = listing.blocks.iter().filter(|block| block.is_held());
    let volumes: BTreeSet<&str> = held
        .filter(|block| block.key == key)
        .map(|block| block.volume.as_str())
        .collect();
    match volumes.len() {
        0 => Err(BacklogError::NoSuchBlock(key.to_owned())),
        1 => Ok(volumes.into_iter().collect()),
        _ => {
            let names: Vec<String> = volumes.into_iter().map(printable).collect();
            Err(BacklogError::Ambiguous(names.join(", ")))
        }
    }
}

fn counted(blocks: u64) -> String {
    match blocks {
        1 => "1 block".to_owned(),
        blocks => format!("{blocks} blocks"),
    }
}

fn shown(volume: &str, key: &str) -> String {
    printable(&format!("{volume}/{key}"))
}

/// The list for people, one line for each block.
fn table(listing: &Listing, volume: Option<&str>) -> String {
    let mut text = String::new();
    let blocks: Vec<&Block> = listing
        .blocks
        .iter()
        .filter(|block| volume.is_none_or(|volume| block.volume == volume))
        .collect();
    if !blocks.is_empty() {
        let (state, tries, age, size) = ("STATE", "TRIES", "AGE", "SIZE");
        let _ = writeln!(text, "{state:<11} {tries:>5} {age:>8} {size:>12}  BLOCK");
    }
    for block in blocks {
        let _ = write!(
            text,
            "{:<11} {:>5} {:>8} {:>12}  {}",
            printable(&block.state),
            block.attempts,
            age(block.age_seconds),
            HumanBytes(block.bytes).to_string(),
            shown(&block.volume, &block.key),
        );
        if let Some(error) = &block.last_error {
            let _ = write!(text, "  ({})", printable(error));
        }
        text.push('\n');
    }
    let summary = &listing.summary;
    let listed = listing.blocks.len() as u64;
    if let Some(more @ 1..) = summary.blocks().checked_sub(listed) {
        let _ = writeln!(text, "and {more} more; --limit N lists up to {LIST_MAX}");
    }
    let draining = if summary.draining { "; draining" } else { "" };
    let _ = writeln!(
        text,
        "{} to upload ({}), {} quarantined, {} in conflict, {} of volumes that are gone{draining}",
        summary.dirty_blocks,
        HumanBytes(summary.dirty_bytes),
        summary.quarantined_blocks,
        summary.conflict_blocks,
        summary.orphaned_blocks,
    );
    text
}

/// An age in its two largest units.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests;
