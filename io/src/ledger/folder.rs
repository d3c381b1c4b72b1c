//! The ledger's folder: whose it is, who uses it, and what becomes of rows that cannot be read.
//!
//! The folder holds a marker file, which is also the lock, and the folder `rows`, which is sled's.
//! A folder that does not prove to be ours is never written to.

use crate::probe;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file that says whose folder it is.
const MARKER_NAME: &str = "forebay-ledger";
/// What it says. The number changes when a ledger can no longer be read by what wrote it.
const MARKER_TEXT: &str = "Forebay ledger, format 1\n";
/// Longest marker that is read, bytes: ours, or enough to show what it is instead.
const MARKER_BYTES_MAX: u64 = 64;
/// The folder that sled gets.
const ROWS_NAME: &str = "rows";
/// There while the rows are opened, and after an opening that the process did not survive.
const OPENING_NAME: &str = "opening";
/// What the top folder of an empty ext4 file system holds.
const FILE_SYSTEM_S_OWN: &str = "lost+found";
/// Damaged ledgers that are kept for whoever wants to know why. More would only take room.
const DAMAGED_KEPT_MAX: u32 = 3;

/// A folder that this process owns until the value is dropped.
#[derive(Debug)]
pub(super) struct LedgerFolder {
    path: PathBuf,
    /// The lock on the marker lasts as long as the file is open.
    _marker: File,
}

impl LedgerFolder {
    /// Makes the folder ours, or says why it cannot be.
    pub fn claim(path: &Path) -> io::Result<LedgerFolder> {
        let refuse = io::Error::other::<String>;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| refuse(format!("it cannot be made: {source}")))?;
        probe::private_folder(path).map_err(|error| refuse(error.to_string()))?;
        let marker = open_marker(path).map_err(|source| refuse(source.to_string()))?;
        match marker.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refuse("another process is using it".to_owned()));
            }
            Err(TryLockError::Error(source)) => {
                return Err(refuse(format!("it cannot be locked: {source}")));
            }
        }
        finish_marker(marker, path)
            .map(|marker| LedgerFolder {
                path: path.to_owned(),
                _marker: marker,
            })
            .map_err(|source| refuse(source.to_string()))
    }

    /// Where the rows are.
    pub fn rows(&self) -> PathBuf {
        self.path.join(ROWS_NAME)
    }

    /// Notes that the rows are about to be opened, which a damaged ledger may make fatal. Returns
    /// whether the last opening ended neither well nor badly: the process did not survive it.
    pub fn begin_opening(&self) -> io::Result<bool> {
        let note = self.path.join(OPENING_NAME);
        let was_fatal = note.symlink_metadata().is_ok();
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(note)?;
        Ok(was_fatal)
    }

    /// Notes that the opening is over.
    pub fn end_opening(&self) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(OPENING_NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the rows out of the way and says where they went; `None` where they had to be removed,
    /// as enough of their kind are kept.
    pub fn set_aside(&self) -> io::Result<Option<PathBuf>> {
        for number in 1..=DAMAGED_KEPT_MAX {
            let aside = self.path.join(format!("{ROWS_NAME}.damaged-{number}"));
            if aside.symlink_metadata().is_err() {
                std::fs::rename(self.rows(), &aside)?;
                return Ok(Some(aside));
            }
        }
        std::fs::remove_dir_all(self.rows())?;
        Ok(None)
    }
}

/// Opens the marker, or makes it where there is nothing at all.
fn open_marker(folder: &Path) -> io::Result<File> {
    let path = folder.join(MARKER_NAME);
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    match options.open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if name != FILE_SYSTEM_S_OWN {
            return Err(io::Error::other(format!(
                "it is no ledger (there is no {MARKER_NAME}) and not empty (there is {name:?}); give \
                 an empty folder or one that does not exist"
            )));
        }
    }
    options.create(true).truncate(false).open(&path)
}

/// Reads the locked marker, or completes one that has just been made or was cut short.
fn finish_marker(mut marker: File, folder: &Path) -> io::Result<File> {
    let mut text = Vec::new();
    (&mut marker)
        .take(MARKER_BYTES_MAX)
        .read_to_end(&mut text)?;
    if text == MARKER_TEXT.as_bytes() {
        return Ok(marker);
    }
    if !MARKER_TEXT.as_bytes().starts_with(&text) {
        return Err(io::Error::other(format!(
            "its {MARKER_NAME} says {:?} where {:?} would be right; it belongs to another version or \
             program, so give another folder",
            String::from_utf8_lossy(&text),
            MARKER_TEXT.trim_end()
        )));
    }
    marker.write_all(&MARKER_TEXT.as_bytes()[text.len()..])?;
    marker.sync_all()?;
    // Without this, a power cut could leave rows without the marker, which would be refused.
    File::open(folder)?.sync_all()?;
    Ok(marker)
}
