//! Files that hold secrets: who may read them, and how they are written.
//!
//! This file owns the one rule: a secret is read only from a regular file, not through a link, that
//! belongs to us or to root and that nobody else may touch; and it is written whole or not at all,
//! with mode 0600 from its first byte. It never changes the mode of a file that it finds.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Largest file that is read as one holding a secret, bytes. A creds file has two lines.
pub const PRIVATE_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why a private file is refused. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// There is no such file.
    #[error("{}: there is no such file", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The path is a symbolic link.
    #[error("{}: it is a symbolic link; give the file itself", .path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// The path is a folder, a pipe, a device.
    #[error("{}: it is not a regular file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file belongs to somebody else.
    #[error(
        "{}: it belongs to user id {owner}; it must belong to user id {ours}, who runs this, or to root",
        .path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective user id.
        ours: u32,
    },
    /// Others may read or write the file.
    #[error("{path}: its mode is {mode:04o}, so other users may reach the secrets in it; `chmod 600 {path}`", path = .path.display())]
    ModeOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is larger than any that is right.
    #[error("{}: it is larger than {bytes_max} bytes, so it cannot be the right file", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// The file holds bytes that are no text.
    #[error("{}: it is not UTF-8 text", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The file that was to be made is there already.
    #[error("{}: it is there already; --force replaces it", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("{}: {source}", .path.display())]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl PrivateFileError {
    fn refused(path: &Path, source: io::Error) -> Self {
        PrivateFileError::Refused {
            path: path.to_owned(),
            source,
        }
    }
}

/// Reads a file that holds a secret.
pub fn read(path: &Path) -> Result<Zeroizing<String>, PrivateFileError> {
    let file = OpenOptions::new()
        .read(true)
        // Without O_NONBLOCK, opening a pipe that somebody put there would wait for ever.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT) => PrivateFileError::Missing {
                path: path.to_owned(),
            },
            Some(libc::ELOOP) => PrivateFileError::Link {
                path: path.to_owned(),
            },
            _ => PrivateFileError::refused(path, source),
        })?;
    let metadata = file
        .metadata()
        .map_err(|source| PrivateFileError::refused(path, source))?;
    check_regular(path, &metadata)?;
    check_private(path, &metadata)?;
    read_text(path, file, PRIVATE_FILE_BYTES_MAX)
}

/// Whether an open file is a regular one.
pub fn check_regular(path: &Path, metadata: &Metadata) -> Result<(), PrivateFileError> {
    if metadata.is_file() {
        Ok(())
    } else {
        Err(PrivateFileError::NotAFile {
            path: path.to_owned(),
        })
    }
}

/// Whether an open file is closed to everybody but us and root.
pub fn check_private(path: &Path, metadata: &Metadata) -> Result<(), PrivateFileError> {
    // SAFETY: geteuid has no arguments, cannot fail and touches no memory.
    let ours = unsafe { libc::geteuid() };
    if metadata.uid() != ours && metadata.uid() != 0 {
        return Err(PrivateFileError::NotOurs {
            path: path.to_owned(),
            owner: metadata.uid(),
            ours,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PrivateFileError::ModeOpen {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Reads an open file to its end as text, up to `bytes_max` bytes.
pub fn read_text(
    path: &Path,
    file: File,
    bytes_max: u64,
) -> Result<Zeroizing<String>, PrivateFileError> {
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| PrivateFileError::refused(path, source))?;
    if bytes.len() as u64 > bytes_max {
        return Err(PrivateFileError::TooLarge {
            path: path.to_owned(),
            bytes_max,
        });
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(PrivateFileError::NotText {
            path: path.to_owned(),
        }),
    }
}

/// What to do where a file is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and say so.
    Keep,
    /// Put the new file in its place.
    Replace,
}

/// Writes a file of mode 0600, whole or not at all, and makes it last. The folder must be there.
pub fn write(path: &Path, contents: &[u8], existing: Existing) -> Result<(), PrivateFileError> {
    let refused = |source| PrivateFileError::refused(path, source);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(refused(io::ErrorKind::InvalidInput.into()));
    };
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}.new", std::process::id()));
    let temporary = folder.join(temporary_name);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(refused)?;
    let placed = file
        .write_all(contents)
        .and_then(|()| file.sync_all())
        .and_then(|()| match existing {
            Existing::Replace => std::fs::rename(&temporary, path),
            // Unlike a rename, a link never takes the place of a file.
            Existing::Keep => std::fs::hard_link(&temporary, path),
        });
    if placed.is_err() || existing == Existing::Keep {
        // A leftover is harmless and named after the file; the outcome that matters is `placed`.
        let _ = std::fs::remove_file(&temporary);
    }
    placed.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PrivateFileError::Exists {
            path: path.to_owned(),
        },
        _ => refused(source),
    })?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(refused)
}

/// Makes a folder and those above it where they are missing, each with mode 0700.
pub fn make_folders(folder: &Path) -> Result<(), PrivateFileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| PrivateFileError::refused(folder, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("temporary folder")
    }

    #[test]
    fn what_is_written_is_private_and_reads_back() {
        let folder = folder();
        let path = folder.path().join("secret");
        write(&path, b"hush", Existing::Keep).expect("write");
        assert_eq!(
            std::fs::metadata(&path).expect("stat").mode() & 0o7777,
            0o600
        );
        assert_eq!(read(&path).expect("read").as_str(), "hush");
        let again = write(&path, b"other", Existing::Keep);
        assert!(matches!(again, Err(PrivateFileError::Exists { .. })));
        assert_eq!(read(&path).expect("read").as_str(), "hush");
        write(&path, b"other", Existing::Replace).expect("replace");
        assert_eq!(read(&path).expect("read").as_str(), "other");
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_mode_that_lets_others_in_is_refused() {
        let folder = folder();
        let path = folder.path().join("secret");
        write(&path, b"hush", Existing::Keep).expect("write");
        for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
            set_mode(&path, mode);
            let error = read(&path).expect_err("open to others").to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.contains("chmod 600"), "{error}");
        }
        set_mode(&path, 0o400);
        read(&path).expect("read-only is fine");
    }

    #[test]
    fn what_is_no_plain_file_is_refused_and_nothing_waits_for_it() {
        let folder = folder();
        let path = folder.path().join("secret");
        write(&path, b"hush", Existing::Keep).expect("write");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("link");
        assert!(matches!(read(&link), Err(PrivateFileError::Link { .. })));
        assert!(matches!(
            read(folder.path()),
            Err(PrivateFileError::NotAFile { .. })
        ));
        let absent = folder.path().join("absent");
        assert!(matches!(
            read(&absent),
            Err(PrivateFileError::Missing { .. })
        ));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo").success());
        assert!(matches!(
            read(&pipe),
            Err(PrivateFileError::NotAFile { .. })
        ));
    }

    #[test]
    fn a_file_of_somebody_else_is_refused() {
        // SAFETY: geteuid has no arguments, cannot fail and touches no memory.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        let folder = folder();
        let path = folder.path().join("secret");
        write(&path, b"hush", Existing::Keep).expect("write");
        std::os::unix::fs::chown(&path, Some(12345), None).expect("chown");
        let error = read(&path).expect_err("not ours").to_string();
        assert!(error.contains("belongs to user id 12345"), "{error}");
    }

    #[test]
    fn too_much_and_no_text_are_refused() {
        let folder = folder();
        let path = folder.path().join("secret");
        write(&path, &[b'x'; 64 * 1024 + 1], Existing::Keep).expect("write");
        assert!(matches!(
            read(&path),
            Err(PrivateFileError::TooLarge { .. })
        ));
        write(&path, b"\xff", Existing::Replace).expect("write");
        assert!(matches!(read(&path), Err(PrivateFileError::NotText { .. })));
    }

    #[test]
    fn folders_are_made_private() {
        let folder = folder();
        let deep = folder.path().join("a/b");
        make_folders(&deep).expect("make");
        make_folders(&deep).expect("again");
        for path in [deep.as_path(), deep.parent().expect("parent")] {
            assert_eq!(
                std::fs::metadata(path).expect("stat").mode() & 0o7777,
                0o700
            );
        }
    }
}
