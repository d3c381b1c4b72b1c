//! The ledger's rows, in sled. The only file that knows sled, and the traps of 0.34.7:
//!
//! - `flush_async` deadlocks with eight threads or more: it is never called; one thread calls `flush`.
//! - A batch first writes out what is in memory, to escape another deadlock. Rows need not be atomic
//!   together, so there are no batches: plain writes, and one flush for many of them.
//! - Room is given back only by sled's own flusher thread, so that thread must run.
//! - The first failure of its file fails everything after it, until the database is opened again.
//! - Its file's lock outlives what held it: in a process that is ending, or that was forked. Whoever has
//!   the folder waits for it.
//! - Damage may be met with a panic, which ends the process. [`LedgerFolder::begin_opening`] leaves a
//!   note for the next start, and the opening reads every row, so that damage is met while the note is
//!   there.

use super::folder::LedgerFolder;
use super::{Lost, Row, Rows};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant};

/// How often sled's flusher wakes to give room back; it works at it for at most half of that. It
/// also syncs the file each time, changed or not, which is why it is not more often.
const GIVE_BACK_EVERY_MS: u64 = 10_000;

/// Least cache, bytes: sled divides it among hundreds of parts.
const CACHE_BYTES_MIN: u64 = 1 << 20;

/// After a failure the rows are opened again, and after a failure another one is logged, no sooner
/// than this.
const FAILURE_PAUSE: Duration = Duration::from_secs(60);

/// How long the file's lock may outlive whoever held it, and how often it is tried.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_TRY_EVERY: Duration = Duration::from_millis(10);

/// Rows that are removed before the next look at what is left of a prefix.
const REMOVE_ROWS_MAX: usize = 1024;

/// The rows, or the want of them.
pub(super) struct SledRows {
    folder: LedgerFolder,
    cache_bytes: u64,
    /// `None` while the rows cannot be had.
    database: Option<sled::Db>,
    /// When the rows are tried again.
    retry_at: Instant,
    logged_at: Option<Instant>,
    /// Failures that were not logged since.
    unlogged: u64,
}

impl SledRows {
    /// Opens the rows. Damaged ones are set aside; where the system refuses, there are none for now.
    pub fn open(folder: LedgerFolder, cache_bytes: u64) -> SledRows {
        let mut rows = SledRows {
            folder,
            cache_bytes: cache_bytes.max(CACHE_BYTES_MIN),
            database: None,
            retry_at: Instant::now() + FAILURE_PAUSE,
            logged_at: None,
            unlogged: 0,
        };
        match rows.open_or_begin_anew() {
            Ok(database) => rows.database = Some(database),
            Err(error) => rows.fail("cannot be opened", &error),
        }
        rows
    }

    fn open_or_begin_anew(&self) -> sled::Result<sled::Db> {
        let damage = if self.folder.begin_opening()? {
            "the last start did not survive opening it".to_owned()
        } else {
            match self.open_whole() {
                Err(error) if !is_refusal(&error) => error.to_string(),
                answer => {
                    self.folder.end_opening()?;
                    return answer;
                }
            }
        };
        let whereto = match self.folder.set_aside() {
            Ok(Some(aside)) => format!("moved to {}", aside.display()),
            Ok(None) => "removed, as damaged ones are kept already".to_owned(),
            // The last start died before it had made any rows.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "not there".to_owned(),
            Err(error) => return Err(error.into()),
        };
        log::warn!(
            "the ledger is damaged ({damage}) and begun anew (the old one is {whereto}); blocks \
             whose upload it had noted are uploaded once more"
        );
        let answer = self.open_whole();
        self.folder.end_opening()?;
        answer
    }

    /// Opens the rows and reads each.
    fn open_whole(&self) -> sled::Result<sled::Db> {
        let database = self.open_quickly()?;
        for row in database.iter() {
            row?;
        }
        Ok(database)
    }

    fn open_quickly(&self) -> sled::Result<sled::Db> {
        // sled would let everybody look into it.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.folder.rows())?;
        let config = sled::Config::new()
            .path(self.folder.rows())
            .cache_capacity(self.cache_bytes)
            .flush_every_ms(Some(GIVE_BACK_EVERY_MS));
        let began = Instant::now();
        loop {
            match config.open() {
                Err(error) if is_locked(&error) && began.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(LOCK_TRY_EVERY);
                }
                answer => return answer,
            }
        }
    }

    /// Runs `work` on the rows, if they can be had.
    fn with<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, Lost> {
        if self.database.is_none() && Instant::now() >= self.retry_at {
            self.retry_at = Instant::now() + FAILURE_PAUSE;
            match self.open_quickly() {
                Ok(database) => {
                    log::info!("the ledger is open again");
                    self.database = Some(database);
                }
                Err(error) => self.fail("cannot be opened again", &error),
            }
        }
        let outcome = match &self.database {
            Some(database) => work(database),
            None => {
                self.unlogged += 1;
                return Err(Lost);
            }
        };
        outcome.map_err(|error| {
            self.fail(doing, &error);
            // Every later call would fail alike; opening anew may not.
            self.database = None;
            self.retry_at = Instant::now() + FAILURE_PAUSE;
            Lost
        })
    }

    fn fail(&mut self, doing: &str, error: &sled::Error) {
        let is_time = self
            .logged_at
            .is_none_or(|logged| logged.elapsed() >= FAILURE_PAUSE);
        if is_time {
            log::error!(
                "the ledger in {} {doing}: {error} ({} failures before this one went unlogged); its \
                 rows are lost until it can be used again, which costs uploads that are done once \
                 more and nothing else",
                self.folder.rows().display(),
                std::mem::take(&mut self.unlogged)
            );
            self.logged_at = Some(Instant::now());
        } else {
            self.unlogged += 1;
        }
    }
}

/// Whether somebody has the lock of the file. sled says so in words alone.
fn is_locked(error: &sled::Error) -> bool {
    matches!(
        error,
        sled::Error::Io(source) if source.to_string().starts_with("could not acquire lock")
    )
}

/// Whether the operating system refused, rather than the bytes being wrong: then the rows are as good
/// as before.
fn is_refusal(error: &sled::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    // sled keeps only the kind of an error that it tells a second time.
    let kinds = [
        PermissionDenied,
        QuotaExceeded,
        ReadOnlyFilesystem,
        StorageFull,
    ];
    is_locked(error)
        || matches!(
            error,
            sled::Error::Io(source) if source.raw_os_error().is_some() || kinds.contains(&source.kind())
        )
}

impl Rows for SledRows {
    fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), Lost> {
        self.with("cannot take a row", |database| {
            database.insert(key, value).map(drop)
        })
    }

    fn remove_prefix(&mut self, prefix: &[u8]) -> Result<(), Lost> {
        self.with("cannot remove rows", |database| {
            loop {
                let keys: Vec<sled::IVec> = database
                    .scan_prefix(prefix)
                    .keys()
                    .take(REMOVE_ROWS_MAX)
                    .collect::<sled::Result<_>>()?;
                for key in &keys {
                    database.remove(key)?;
                }
                if keys.len() < REMOVE_ROWS_MAX {
                    return Ok(());
                }
            }
        })
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Lost> {
        self.with("cannot give a row", |database| {
            Ok(database.get(key)?.map(|value| value.to_vec()))
        })
    }

    fn scan_prefix(&mut self, prefix: &[u8]) -> Result<Vec<Row>, Lost> {
        self.with("cannot give rows", |database| {
            database
                .scan_prefix(prefix)
                .map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())))
                .collect()
        })
    }

    fn flush(&mut self) -> Result<(), Lost> {
        self.with("cannot be flushed", |database| database.flush().map(drop))
    }
}
