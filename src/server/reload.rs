//! Settings that change while the server runs: on SIGHUP all that can, by themselves credentials.
//!
//! This file owns what the main thread does about it. On SIGHUP the config and creds files are read
//! again and taken whole or not at all. In between, the files that credentials come from are looked
//! at every few seconds, and when one has changed, the credentials in them are taken and nothing
//! else: a config that somebody is editing takes effect when they say so. It never lets go of
//! settings that work for a file that does not.

use super::Running;
use super::stores_file::StoresFile;
use super::volumes::{Stores, VolumeTable, identity};
use crate::config::{Config, VolumeStore};
use crate::settings::StartSettings;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often the files are looked at: some stats each time. Credentials that are rotated overlap
/// for minutes, so this is soon enough.
pub const CREDENTIALS_LOOK: Duration = Duration::from_secs(2);

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Also of the mode, which may be what was wrong.
    changed: (i64, i64),
}

impl FileState {
    /// `None` for a file that is not there or cannot be looked at: reading it says why.
    fn of(path: &Path) -> Option<FileState> {
        let metadata = fs::metadata(path).ok()?;
        Some(FileState {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Files with credentials, as they were when they were last read.
struct Watched {
    files: Vec<(PathBuf, Option<FileState>)>,
}

impl Watched {
    /// To be made before the files are read: a change in between shows at the next look.
    fn new(paths: Vec<PathBuf>) -> Watched {
        let files = paths.into_iter().map(|path| {
            let state = FileState::of(&path);
            (path, state)
        });
        Watched {
            files: files.collect(),
        }
    }

    fn is_changed(&self) -> bool {
        let mut files = self.files.iter();
        files.any(|(path, state)| FileState::of(path) != *state)
    }
}

/// The settings being served and where they come from.
pub struct Reloader<'a> {
    settings: &'a StartSettings,
    stores: Stores,
    served: Config,
    table: Arc<VolumeTable>,
    known_stores: StoresFile,
    watched: Watched,
    /// Whether some core has not been told yet.
    is_owed: bool,
}

impl<'a> Reloader<'a> {
    /// Begins with what the server is started with: `table` is what `stores` made of `served`.
    pub fn new(
        settings: &'a StartSettings,
        served: Config,
        stores: Stores,
        table: Arc<VolumeTable>,
        known_stores: StoresFile,
    ) -> Self {
        Reloader {
            watched: Watched::new(credential_files(settings, &served)),
            settings,
            stores,
            served,
            table,
            known_stores,
            is_owed: false,
        }
    }

    /// Reads all files again; the old settings stay if they are refused.
    pub fn reload(&mut self, running: &Running) {
        match self.read().and_then(|config| {
            for warning in &config.warnings {
                log::warn!("{warning}");
            }
            self.adopt(config)
        }) {
            Ok(_) => {
                self.tell(running);
                let count = self.served.volumes.len();
                log::info!("settings reloaded: {count} volumes");
            }
            Err(error) => log::error!("reload refused, the old settings stay: {error}"),
        }
    }

    /// Takes credentials that have changed on disk since the last look.
    pub fn look(&mut self, running: &Running) {
        if self.is_owed {
            self.tell(running);
        }
        if !self.watched.is_changed() {
            return;
        }
        let taken = self.read().and_then(|config| {
            let config = with_credentials_of(&self.served, &config);
            self.adopt(config)
        });
        match taken {
            Ok(0) => {}
            Ok(count) => {
                self.tell(running);
                log::info!("took changed credentials for {count} volumes");
            }
            // Said once: the files are read again when they have changed again.
            Err(error) => log::error!("changed credentials refused, the old ones stay: {error}"),
        }
    }

    fn read(&mut self) -> Result<Config, String> {
        self.watched = Watched::new(credential_files(self.settings, &self.served));
        self.settings.reload().map_err(|error| error.to_string())
    }

    /// Serves `config` from now on; gives the number of stores that are reached in another way.
    fn adopt(&mut self, config: Config) -> Result<usize, String> {
        let table = self
            .stores
            .adopt(&config, self.settings.sse)
            .map_err(|error| error.to_string())?;
        // Before a block of another store can become dirty.
        self.known_stores
            .add(&table.written_back())
            .map_err(|error| format!("the list of stores cannot be written: {error}"))?;
        let renewed = table.renewed_since(&self.table).len();
        (self.served, self.table) = (config, table);
        Ok(renewed)
    }

    fn tell(&mut self, running: &Running) {
        self.is_owed = !running.serve_volumes(&self.table, &self.stores);
        if self.is_owed {
            log::warn!("a core is too busy to take the new settings; it is told again soon");
        }
    }
}

/// The files that the credentials of `served` come from, certificate authorities included.
fn credential_files(settings: &StartSettings, served: &Config) -> Vec<PathBuf> {
    let mut paths = vec![settings.config_path.clone()];
    paths.extend(settings.credential_origin.creds_file().map(Path::to_owned));
    for volume in &served.volumes {
        if let VolumeStore::S3 { ca_file, .. } | VolumeStore::Azure { ca_file, .. } = &volume.store
        {
            paths.extend(ca_file.clone());
        }
    }
    paths
}

/// `served` with the credentials that `read` has for the same volumes at the same places: those for
/// another bucket are of no use for this one.
fn with_credentials_of(served: &Config, read: &Config) -> Config {
    let mut config = served.clone();
    for volume in &mut config.volumes {
        let same = read.volumes.iter().find(|other| {
            other.name == volume.name && identity(&other.store) == identity(&volume.store)
        });
        match (&mut volume.store, same.map(|same| &same.store)) {
            (
                VolumeStore::S3 { credentials, .. },
                Some(VolumeStore::S3 {
                    credentials: read, ..
                }),
            ) => credentials.clone_from(read),
            (
                VolumeStore::Azure { credentials, .. },
                Some(VolumeStore::Azure {
                    credentials: read, ..
                }),
            ) => credentials.clone_from(read),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_replaced_written_or_made_readable_has_changed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("creds");
        let watch = || Watched::new(vec![path.clone()]);
        let missing = watch();
        assert!(!missing.is_changed());
        fs::write(&path, "one").expect("written");
        assert!(missing.is_changed());
        let written = watch();
        fs::write(&path, "three").expect("written");
        assert!(written.is_changed());
        let replaced = watch();
        let other = folder.path().join("other");
        fs::write(&other, "three").expect("written");
        fs::rename(&other, &path).expect("renamed");
        assert!(replaced.is_changed());
        let removed = watch();
        assert!(!removed.is_changed());
        fs::remove_file(&path).expect("removed");
        assert!(removed.is_changed());
        fs::write(&path, "one").expect("written");
        let opened = watch();
        // Some file systems count time in steps of milliseconds.
        std::thread::sleep(Duration::from_millis(50));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        assert!(opened.is_changed());
    }

    #[test]
    fn credentials_are_taken_and_nothing_else() {
        let text = |bucket: &str, secret: &str, more: &str| {
            format!(
                "[[volume]]\nname = \"vol\"\nstore = \"s3\"\nendpoint = \"http://127.0.0.1:1\"\n\
                 bucket = \"{bucket}\"\n{more}\n[volume.credentials]\naccess_key = \"me\"\n\
                 secret_key = \"{secret}\"\n"
            )
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("forebay.toml");
        let load = |text: String| {
            let existing = crate::settings::private_file::Existing::Replace;
            crate::settings::private_file::write(&path, text.as_bytes(), existing)
                .expect("written");
            Config::load(&path, &Default::default()).expect("a good config")
        };
        let secret = |config: &Config| match &config.volumes[0].store {
            VolumeStore::S3 { credentials, .. } => credentials.secret_key.expose().to_owned(),
            _ => panic!("it was a bucket"),
        };
        let served = load(text("bucket", "old", ""));
        let read = load(text("bucket", "new", "block_size = \"1MiB\""));
        let mixed = with_credentials_of(&served, &read);
        assert_eq!(secret(&mixed), "new");
        assert_eq!(mixed.volumes[0].block_size, served.volumes[0].block_size);
        let elsewhere = load(text("other-bucket", "new", ""));
        assert_eq!(secret(&with_credentials_of(&served, &elsewhere)), "old");
    }
}
