//! The folder itself: finding, publishing and removing files, never through a link.
//!
//! This file owns every blocking call on the folder. It opens one directory after the other from
//! the folder's own handle, refusing symbolic links at each, so that nothing outside the folder is
//! ever touched, wherever links point. It knows names, not keys.

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where files grow until they are published. No key has a name that begins with a dot.
const TEMPORARY_FOLDER: &str = ".forebay-tmp";

/// Where uploads in parts are kept, a directory for each, until they are complete.
pub(super) const UPLOADS_FOLDER: &str = ".forebay-uploads";

/// What an upload's directory holds first and loses first: without it there is no such upload.
pub(super) const UPLOAD_FILE: &str = "upload";

/// Makes and removes of one directory may cross each other; each try begins anew from the top.
const RACE_TRIES_MAX: u32 = 16;

/// Names tried for one temporary file before something is wrong with the folder.
const TEMPORARY_NAME_TRIES_MAX: u32 = 64;

/// Only we may read what is kept here.
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o700);

const OPEN_FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::RDONLY)
    .union(OFlags::CLOEXEC);

/// Numbers the temporary files of this process.
static TEMPORARY_COUNT: AtomicU64 = AtomicU64::new(0);

/// An open folder.
pub(super) struct Folder {
    root: OwnedFd,
    temporary: OwnedFd,
}

/// A file that nobody sees yet. Dropping it removes it.
pub(super) struct Temporary {
    pub(super) file: File,
    folder: OwnedFd,
    name: String,
    is_published: bool,
}

impl Folder {
    /// Opens `path` and removes what writers that died left behind.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // The folder itself may be reached through links: it is the operator's to name.
        let flags = OPEN_FOLDER.difference(OFlags::NOFOLLOW);
        let root = fs::open(path, flags, Mode::empty())?;
        match fs::mkdirat(&root, TEMPORARY_FOLDER, FOLDER_MODE) {
            Ok(()) => fs::fsync(&root)?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let temporary = fs::openat(&root, TEMPORARY_FOLDER, OPEN_FOLDER, Mode::empty())?;
        let folder = Folder { root, temporary };
        folder.refuse_folded_names()?;
        folder.remove_leftovers()?;
        folder.remove_dead_uploads()?;
        Ok(folder)
    }

    /// A file system that takes `A` for `a` would make two keys one.
    fn refuse_folded_names(&self) -> io::Result<()> {
        let probe = self.temporary()?;
        let upper = probe.name.to_ascii_uppercase();
        match fs::statat(&self.temporary, upper.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(io::Error::other(
                "its file system takes upper and lower case for the same; keys would collide",
            )),
        }
    }

    /// Removes temporary files that no living writer holds a lock on.
    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::Dir::read_from(&self.temporary)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let Ok(file) = fs::openat(&self.temporary, name, flags, Mode::empty()) else {
                continue;
            };
            let is_left = fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && fs::fstat(&file)?.st_nlink > 0;
            if !is_left {
                continue;
            }
            match fs::unlinkat(&self.temporary, name, AtFlags::empty()) {
                // Its writer, or another cleaner, was quicker.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Removes what is left of uploads that a crash stopped while they were begun or removed. One that
    /// is being begun right now finds its directory gone and makes it again.
    fn remove_dead_uploads(&self) -> io::Result<()> {
        let uploads = [UPLOADS_FOLDER.to_owned()];
        let mut names = Vec::new();
        self.names_in(&uploads, |name| {
            if !name.starts_with('.') {
                names.push(name.to_owned());
            }
        })?;
        for name in names {
            let upload = [UPLOADS_FOLDER.to_owned(), name];
            let file = [&upload[..], &[UPLOAD_FILE.to_owned()]].concat();
            // What is no directory is not ours to remove.
            if let Ok(None) = self.find(&file) {
                self.clear_upload(&upload)?;
            }
        }
        Ok(())
    }

    /// Removes the parts in the directory of an upload that is over, and the directory.
    pub(super) fn clear_upload(&self, directories: &[String]) -> io::Result<()> {
        let Some(directory) = self.find_directory(directories)? else {
            return Ok(());
        };
        for entry in fs::Dir::read_from(&directory)? {
            let entry = match entry {
                Ok(entry) => entry,
                // Another cleaner was quicker.
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let name = entry.file_name();
            // Never the file by which an upload is one: it may be begun this moment.
            if name.to_bytes().starts_with(b".") || name.to_bytes() == UPLOAD_FILE.as_bytes() {
                continue;
            }
            match fs::unlinkat(&directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.remove_empty(directories)
    }

    /// Makes writers whose condition is checked and then relied on exclude all others, in every
    /// process, as long as the guard lives. Blocks.
    pub(super) fn lock(&self, is_exclusive: bool) -> io::Result<OwnedFd> {
        // Opened anew: a lock belongs to what was opened.
        let directory = fs::openat(&self.temporary, ".", OPEN_FOLDER, Mode::empty())?;
        let operation = match is_exclusive {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::LockShared,
        };
        fs::flock(&directory, operation)?;
        Ok(directory)
    }

    /// A new file for writing, locked as long as it is open.
    pub(super) fn temporary(&self) -> io::Result<Temporary> {
        for _ in 0..TEMPORARY_NAME_TRIES_MAX {
            let number = TEMPORARY_COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("put-{}-{number}", std::process::id());
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = match fs::openat(&self.temporary, name.as_str(), flags, FILE_MODE) {
                Ok(file) => file,
                // Left by an earlier process with our number, or another host's.
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(error.into()),
            };
            let temporary = Temporary {
                file: File::from(file),
                folder: self.temporary.try_clone()?,
                name,
                is_published: false,
            };
            // Whoever cleans up may have taken the file before we locked it.
            let is_ours = fs::flock(&temporary.file, FlockOperation::NonBlockingLockExclusive)
                .is_ok()
                && fs::fstat(&temporary.file)?.st_nlink == 1;
            if is_ours {
                return Ok(temporary);
            }
        }
        Err(io::Error::other("no free name for a temporary file"))
    }

    /// Opens a regular file for reading; `None` if there is none.
    pub(super) fn find(&self, names: &[String]) -> io::Result<Option<File>> {
        let Some((name, directories)) = names.split_last() else {
            return Ok(None);
        };
        let Some(directory) = self.find_directory(directories)? else {
            return Ok(None);
        };
        // Without NONBLOCK a pipe that somebody put there would stop us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(&directory, name.as_str(), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let is_file = fs::FileType::from_raw_mode(fs::fstat(&file)?.st_mode).is_file();
        Ok(is_file.then(|| File::from(file)))
    }

    /// Tells `visit` the names in a directory, ours and others', in no order; nothing if there is no
    /// such directory.
    pub(super) fn names_in(
        &self,
        directories: &[String],
        mut visit: impl FnMut(&str),
    ) -> io::Result<()> {
        let Some(directory) = self.find_directory(directories)? else {
            return Ok(());
        };
        for entry in fs::Dir::read_from(&directory)? {
            let entry = match entry {
                Ok(entry) => entry,
                // Removed since it was opened: nothing is in it.
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if let Ok(name) = entry.file_name().to_str() {
                visit(name);
            }
        }
        Ok(())
    }

    /// Whether the folder itself was removed beneath us.
    pub(super) fn is_gone(&self) -> bool {
        fs::fstat(&self.root).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Gives a synced temporary file its name, in place of what has it, and syncs the directory.
    /// With `only_new` it fails with `AlreadyExists` where something has the name.
    pub(super) fn publish(
        &self,
        mut temporary: Temporary,
        names: &[String],
        only_new: bool,
    ) -> io::Result<()> {
        let (name, directories) = split(names)?;
        for _ in 0..RACE_TRIES_MAX {
            let directory = self.make_directory(directories)?;
            let moved = if only_new {
                // Unlike a rename that replaces nothing, every file system knows this.
                let flags = AtFlags::empty();
                fs::linkat(
                    &temporary.folder,
                    temporary.name.as_str(),
                    &directory,
                    name,
                    flags,
                )
            } else {
                fs::renameat(&temporary.folder, temporary.name.as_str(), &directory, name)
            };
            match moved {
                Ok(()) => {
                    // After a link the temporary name is still there to be removed.
                    temporary.is_published = !only_new;
                    return Ok(fs::fsync(&directory)?);
                }
                // Somebody removed the empty directory before our file was in it.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other(
            "its directory is removed as often as it is made",
        ))
    }

    /// Removes a file and the directories that it leaves empty. Nothing there is fine.
    pub(super) fn remove(&self, names: &[String]) -> io::Result<()> {
        let (name, directories) = split(names)?;
        let Some(directory) = self.find_directory(directories)? else {
            return Ok(());
        };
        match fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) => fs::fsync(&directory)?,
            Err(Errno::NOENT | Errno::ISDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.remove_empty(directories)
    }

    /// Removes a directory and those that it is in as far as they are empty.
    fn remove_empty(&self, mut directories: &[String]) -> io::Result<()> {
        while let Some((last, parents)) = directories.split_last() {
            let Some(parent) = self.find_directory(parents)? else {
                break;
            };
            if fs::unlinkat(&parent, last.as_str(), AtFlags::REMOVEDIR).is_err() {
                break;
            }
            directories = parents;
        }
        Ok(())
    }

    fn find_directory(&self, names: &[String]) -> io::Result<Option<OwnedFd>> {
        let mut directory = self.root.try_clone()?;
        for name in names {
            directory = match fs::openat(&directory, name.as_str(), OPEN_FOLDER, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(Some(directory))
    }

    /// Opens the directories one below the other, making those that are missing, each synced into
    /// its parent before anything is put into it.
    fn make_directory(&self, names: &[String]) -> io::Result<OwnedFd> {
        'anew: for _ in 0..RACE_TRIES_MAX {
            let mut directory = self.root.try_clone()?;
            for name in names {
                match fs::mkdirat(&directory, name.as_str(), FOLDER_MODE) {
                    Ok(()) => fs::fsync(&directory)?,
                    Err(Errno::EXIST) => {}
                    // The parent was removed since we opened it.
                    Err(Errno::NOENT) => continue 'anew,
                    Err(error) => return Err(error.into()),
                }
                match fs::openat(&directory, name.as_str(), OPEN_FOLDER, Mode::empty()) {
                    Ok(next) => directory = next,
                    Err(Errno::NOENT) => continue 'anew,
                    Err(error) => return Err(error.into()),
                }
            }
            return Ok(directory);
        }
        Err(io::Error::other(
            "its directory is removed as often as it is made",
        ))
    }
}

impl Temporary {
    /// Puts everything written so far on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(self.file.as_fd())?)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_published {
            // What stays is removed when the folder is opened next.
            let _ = fs::unlinkat(&self.folder, self.name.as_str(), AtFlags::empty());
        }
    }
}

fn split(names: &[String]) -> io::Result<(&str, &[String])> {
    let (name, directories) = names.split_last().ok_or(Errno::INVAL)?;
    Ok((name, directories))
}
