//! The ledger of acknowledgements and the account of it: owns what each key may hold.
//!
//! The ledger is a text file, one line an event, appended to by all clients. The line that says that a request begins is
//! written before the first byte is sent; the line with its answer is synced before the client goes on. Everything that is
//! expected of the server comes from the file, read back, never from what a client remembers.
//!
//! ```text
//! 17 put rv/c0/3 5 70000      request 17 writes version 5 of a key, 70,000 bytes
//! 17 answer 200               it was acknowledged: the key holds that and nothing else
//! 18 delete rv/c0/3           no answer follows: the key holds version 5, or nothing
//! store off                   from here on the store cannot be reached
//! round 4                     the server is started again
//! settled                     the server says that its disks are durable
//! seen rv/c0/3 5 70000        that is what was left of it by a power cut
//! ```
//!
//! The account never forgets a version: it tells a stale content from a foreign one.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::content::Content;
use crate::crash::CrashError;

/// Lines of a key's history that are kept to be shown.
const HISTORY_LINES_MAX: usize = 40;

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Nothing: never written, or deleted.
    Absent,
    /// The content with this number, of this length.
    Written {
        /// Number of the version, counted by key.
        sequence: u64,
        /// Bytes.
        length: u64,
    },
}

impl Version {
    /// The bytes that a key of this version holds; `None` for [`Version::Absent`].
    pub fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        let Version::Written { sequence, length } = *self else {
            return None;
        };
        // Lengths are of blocks, which fit in memory.
        let mut bytes = vec![0; length as usize];
        Content::of_key(&format!("{key}#{sequence}")).fill(0, &mut bytes);
        Some(bytes)
    }

    /// Whether `found` is what a key of this version holds; `None` stands for an absent object.
    pub fn is(&self, key: &str, found: Option<&[u8]>) -> bool {
        match (*self, found) {
            (Version::Absent, None) => true,
            (Version::Written { sequence, length }, Some(found)) => {
                found.len() as u64 == length
                    && Content::of_key(&format!("{key}#{sequence}"))
                        .first_difference(0, found)
                        .is_none()
            }
            _ => false,
        }
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Write this version, or remove the key for [`Version::Absent`].
    Make(Version),
    /// Send the head and a part of the body: nothing may come of it.
    Part(Version),
}

/// The file. Shared by all clients.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: Mutex<File>,
    next: AtomicU64,
}

impl Ledger {
    /// Makes a ledger, which must not exist yet.
    pub fn create(path: &Path) -> Result<Self, CrashError> {
        let opened = OpenOptions::new().append(true).create_new(true).open(path);
        let file = opened.map_err(|error| CrashError::new(path.display().to_string(), error))?;
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            next: AtomicU64::new(1),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that a request is about to be sent and gives it a number.
    pub fn begin(&self, key: &str, request: Request) -> Result<u64, CrashError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let line = match request {
            Request::Make(Version::Absent) => format!("{number} delete {key}"),
            Request::Make(Version::Written { sequence, length }) => {
                format!("{number} put {key} {sequence} {length}")
            }
            Request::Part(Version::Written { sequence, length }) => {
                format!("{number} part {key} {sequence} {length}")
            }
            Request::Part(Version::Absent) => format!("{number} part {key} 0 0"),
        };
        self.append(&line, false)?;
        Ok(number)
    }

    /// Notes an answer; when this returns, it is on disk.
    pub fn answered(&self, number: u64, status: u16) -> Result<(), CrashError> {
        self.append(&format!("{number} answer {status}"), true)
    }

    /// Notes something that concerns all keys, see the first paragraph; when this returns, it is on disk.
    pub fn note(&self, line: &str) -> Result<(), CrashError> {
        self.append(line, true)
    }

    /// Notes what a power cut has left of a key.
    pub fn seen(&self, key: &str, version: Version) -> Result<(), CrashError> {
        let (sequence, length) = match version {
            Version::Absent => (0, 0),
            Version::Written { sequence, length } => (sequence, length),
        };
        self.append(&format!("seen {key} {sequence} {length}"), false)
    }

    fn append(&self, line: &str, sync: bool) -> Result<(), CrashError> {
        let failed = |error| CrashError::new(self.path.display().to_string(), error);
        let copy = {
            let mut file = self.file.lock().unwrap_or_else(|error| error.into_inner());
            file.write_all(format!("{line}\n").as_bytes())
                .map_err(failed)?;
            sync.then(|| file.try_clone()).transpose().map_err(failed)?
        };
        // Outside the lock, so that clients sync together.
        copy.map_or(Ok(()), |file| file.sync_data().map_err(failed))
    }
}

/// What one key may hold, and why.
#[derive(Debug, Clone)]
pub struct KeyAccount {
    /// What it may hold if every acknowledgement counts.
    pub possible: Vec<Version>,
    /// What it may hold if only acknowledgements count that came before the last `settled`.
    pub possible_after_cut: Vec<Version>,
    /// Every version that was ever sent.
    pub versions: Vec<Version>,
    /// The last request on it.
    pub touched: u64,
    /// The round of the last request on it.
    pub round: u64,
    /// Whether its last acknowledgement came while the store was away, which it still is.
    pub must_be_on_disk: bool,
    /// The last events, as in the ledger.
    pub history: Vec<String>,
    before: Vec<Version>,
}

impl KeyAccount {
    /// A key that nobody has written to.
    pub fn new() -> Self {
        Self {
            possible: vec![Version::Absent],
            possible_after_cut: vec![Version::Absent],
            versions: Vec::new(),
            touched: 0,
            round: 0,
            must_be_on_disk: false,
            history: Vec::new(),
            before: Vec::new(),
        }
    }

    /// A request was sent: from now on the key may hold its outcome.
    pub fn begin(&mut self, version: Version) {
        self.before = self.possible.clone();
        add(&mut self.possible, version);
        add(&mut self.possible_after_cut, version);
        add(&mut self.versions, version);
    }

    /// The last request was answered with this status.
    pub fn answered(&mut self, version: Version, status: u16) {
        match status {
            200..300 => self.possible = vec![version],
            // Refused for what it is: nothing was done. Anything else says that the outcome is unknown.
            400..500 => self.possible = self.before.clone(),
            _ => {}
        }
    }

    /// What a complete object, or its absence, is by this account; `None` if it is no version at all.
    pub fn identify(&self, key: &str, found: Option<&[u8]>) -> Option<Version> {
        let absent = [Version::Absent];
        let known = self.possible.iter().chain(&self.versions).chain(&absent);
        known.copied().find(|version| version.is(key, found))
    }

    fn remember(&mut self, line: &str) {
        if self.history.len() == HISTORY_LINES_MAX {
            self.history.remove(0);
        }
        self.history.push(line.to_owned());
    }
}

impl Default for KeyAccount {
    fn default() -> Self {
        Self::new()
    }
}

fn add(versions: &mut Vec<Version>, version: Version) {
    if !versions.contains(&version) {
        versions.push(version);
    }
}

/// The ledger, read back. [`Account::read`] goes on where it stopped.
#[derive(Debug, Default)]
pub struct Account {
    /// By volume and key.
    pub keys: BTreeMap<String, KeyAccount>,
    /// Rounds begun.
    pub rounds: u64,
    /// PUTs and DELETEs that were acknowledged.
    pub acknowledged: u64,
    /// Those whose outcome is unknown: no answer, or one that says so.
    pub in_doubt: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Whether the store is away at the ledger's end.
    pub store_is_away: bool,
    offset: u64,
    pending: HashMap<u64, (String, Version)>,
}

impl Account {
    /// Takes in what was appended to the ledger since the last call. No client may be at work.
    pub fn read(&mut self, path: &Path) -> Result<(), CrashError> {
        let failed = |error: std::io::Error| CrashError::new(path.display().to_string(), error);
        let mut file = File::open(path).map_err(failed)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        for line in BufReader::new(file).lines() {
            let line = line.map_err(failed)?;
            self.offset += line.len() as u64 + 1;
            self.take(&line)
                .ok_or_else(|| CrashError::new(format!("ledger line {line:?}"), "malformed"))?;
        }
        // Their clients are gone, so no answer will follow.
        self.in_doubt += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match *words.as_slice() {
            ["round", number] => self.rounds = number.parse().ok()?,
            ["store", state] => {
                self.store_is_away = state == "off";
                if !self.store_is_away {
                    let keys = self.keys.values_mut();
                    keys.for_each(|key| key.must_be_on_disk = false);
                }
            }
            ["settled"] => {
                let keys = self.keys.values_mut();
                keys.for_each(|key| key.possible_after_cut = key.possible.clone());
            }
            ["seen", key, sequence, length] => {
                let version = written(sequence, length)?;
                let account = self.keys.entry(key.to_owned()).or_default();
                account.possible = vec![version];
                account.possible_after_cut = vec![version];
                account.remember(line);
            }
            [number, "put", key, sequence, length] => {
                self.begin(number, key, written(sequence, length)?, line)?;
            }
            [number, "delete", key] => self.begin(number, key, Version::Absent, line)?,
            [number, "part", key, sequence, length] => {
                let account = self.touch(number, key, line)?;
                // Not possible, but to be recognised when it is seen all the same.
                add(&mut account.versions, written(sequence, length)?);
            }
            [number, "answer", status] => self.answer(number, status, line)?,
            _ => return None,
        }
        Some(())
    }

    fn touch(&mut self, number: &str, key: &str, line: &str) -> Option<&mut KeyAccount> {
        let round = self.rounds;
        let account = self.keys.entry(key.to_owned()).or_default();
        account.touched = number.parse().ok()?;
        account.round = round;
        account.remember(&format!("round {round}: {line}"));
        Some(account)
    }

    fn begin(&mut self, number: &str, key: &str, version: Version, line: &str) -> Option<()> {
        self.touch(number, key, line)?.begin(version);
        let number = number.parse().ok()?;
        self.pending.insert(number, (key.to_owned(), version));
        Some(())
    }

    fn answer(&mut self, number: &str, status: &str, line: &str) -> Option<()> {
        let (key, version) = self.pending.remove(&number.parse().ok()?)?;
        let status = status.parse().ok()?;
        let away = self.store_is_away;
        let account = self.touch(number, &key, line)?;
        account.answered(version, status);
        match status {
            200..300 => {
                account.must_be_on_disk = away;
                self.acknowledged += 1;
            }
            400..500 => self.refused += 1,
            _ => self.in_doubt += 1,
        }
        Some(())
    }
}

/// Versions are counted from 1; 0 stands for none.
fn written(sequence: &str, length: &str) -> Option<Version> {
    let (sequence, length) = (sequence.parse().ok()?, length.parse().ok()?);
    Some(match sequence {
        0 => Version::Absent,
        sequence => Version::Written { sequence, length },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Version = Version::Written {
        sequence: 1,
        length: 10,
    };
    const SECOND: Version = Version::Written {
        sequence: 2,
        length: 20,
    };

    fn account_of(lines: &[&str]) -> Account {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(&folder.path().join("ledger")).unwrap();
        lines.iter().for_each(|line| ledger.note(line).unwrap());
        let mut account = Account::default();
        account.read(ledger.path()).unwrap();
        account
    }

    #[test]
    fn an_acknowledgement_leaves_one_possibility_and_a_lost_answer_two() {
        let account = account_of(&["1 put v/a 1 10", "1 answer 200"]);
        assert_eq!(account.keys["v/a"].possible, [FIRST]);
        let account = account_of(&["1 put v/a 1 10", "1 answer 200", "2 put v/a 2 20"]);
        assert_eq!(account.keys["v/a"].possible, [FIRST, SECOND]);
        assert_eq!((account.acknowledged, account.in_doubt), (1, 1));
    }

    #[test]
    fn errors_of_the_server_leave_two_possibilities_and_refusals_the_old_one() {
        let begun = ["1 put v/a 1 10", "1 answer 200", "2 delete v/a"];
        let account = account_of(&[&begun[..], &["2 answer 503"]].concat());
        assert_eq!(account.keys["v/a"].possible, [FIRST, Version::Absent]);
        let account = account_of(&[&begun[..], &["2 answer 403"]].concat());
        assert_eq!(account.keys["v/a"].possible, [FIRST]);
    }

    #[test]
    fn a_part_of_a_body_is_no_possibility_but_is_recognised() {
        let account = account_of(&["1 part v/a 1 10"]);
        let key = &account.keys["v/a"];
        assert_eq!(key.possible, [Version::Absent]);
        let bytes = FIRST.bytes("v/a").unwrap();
        assert_eq!(key.identify("v/a", Some(&bytes)), Some(FIRST));
        assert_eq!(key.identify("v/a", Some(&bytes[1..])), None);
    }

    #[test]
    fn a_power_cut_may_take_what_was_not_settled() {
        let lines = [
            "1 put v/a 1 10",
            "1 answer 200",
            "settled",
            "2 put v/a 2 20",
            "2 answer 200",
        ];
        let account = account_of(&lines);
        let key = &account.keys["v/a"];
        assert_eq!(key.possible, [SECOND]);
        assert_eq!(key.possible_after_cut, [FIRST, SECOND]);
    }

    #[test]
    fn what_was_acknowledged_without_a_store_must_be_on_disk_until_it_returns() {
        let mut lines = vec!["store off", "1 put v/a 1 10", "1 answer 200"];
        assert!(account_of(&lines).keys["v/a"].must_be_on_disk);
        lines.push("store on");
        assert!(!account_of(&lines).keys["v/a"].must_be_on_disk);
    }
}
