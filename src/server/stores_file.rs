//! The stores that a cache folder may hold dirty blocks for, in a file of that folder.
//!
//! A dirty block belongs to the bucket that its volume named when it was acknowledged. If the settings name
//! another one now, it must neither go there nor be forgotten, and a start has to say so before it
//! serves anybody. This file owns that list: it is written before the first block of a store can
//! become dirty, and shortened only when none of its blocks is left. It knows no blocks.

pub use forebay_shards::superblock::STORES_NAME;
use forebay_shards::superblock::STORES_NEW_NAME;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Largest file that is read, bytes: some ten thousand stores.
const STORES_BYTES_MAX: u64 = 4 << 20;

/// A volume and the store behind it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KnownStore {
    /// The volume's name.
    pub volume: String,
    /// Names the bucket and prefix, or the folder.
    pub store: String,
}

/// The list, as it is on disk.
pub struct StoresFile {
    folder: PathBuf,
    known: Vec<KnownStore>,
}

impl StoresFile {
    /// Reads the list of a folder; empty if there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not such a list: what is dirty would be taken for somebody
    /// else's.
    pub fn read(folder: &Path) -> io::Result<StoresFile> {
        let path = folder.join(STORES_NAME);
        let known = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > STORES_BYTES_MAX => {
                let problem = format!("{} is larger than any list of stores", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            Ok(_) => decode(&fs::read(&path)?).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let folder = folder.to_owned();
        Ok(StoresFile { folder, known })
    }

    /// Those of the list that are not among `configured`.
    pub fn strangers(&self, configured: &[KnownStore]) -> Vec<KnownStore> {
        let is_stranger = |known: &&KnownStore| !configured.contains(known);
        self.known.iter().filter(is_stranger).cloned().collect()
    }

    /// Adds `configured` to the list, durably. Nothing of theirs may become dirty before.
    pub fn add(&mut self, configured: &[KnownStore]) -> io::Result<()> {
        let mut known = self.known.clone();
        known.extend(configured.iter().cloned());
        self.replace(known)
    }

    /// Makes the list `configured` alone: nothing is dirty of any other store.
    pub fn set(&mut self, configured: &[KnownStore]) -> io::Result<()> {
        self.replace(configured.to_vec())
    }

    fn replace(&mut self, mut known: Vec<KnownStore>) -> io::Result<()> {
        known.sort();
        known.dedup();
        if known == self.known {
            return Ok(());
        }
        let new = self.folder.join(STORES_NEW_NAME);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&encode(&known))?;
        file.sync_all()?;
        fs::rename(&new, self.folder.join(STORES_NAME))?;
        File::open(&self.folder)?.sync_all()?;
        self.known = known;
        Ok(())
    }
}

fn encode(known: &[KnownStore]) -> Vec<u8> {
    let list = BTreeMap::from([("stores", known)]);
    let mut text = serde_json::to_vec_pretty(&list).expect("strings are JSON");
    text.push(b'\n');
    text
}

fn decode(text: &[u8]) -> io::Result<Vec<KnownStore>> {
    let mut list: BTreeMap<String, Vec<KnownStore>> = serde_json::from_slice(text)?;
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "no list of stores");
    list.remove("stores").ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(volume: &str, store: &str) -> KnownStore {
        KnownStore {
            volume: volume.into(),
            store: store.into(),
        }
    }

    #[test]
    fn a_list_grows_until_it_is_set() {
        let folder = tempfile::tempdir().expect("a folder");
        let (old, new) = (known("v", "s3 a b c"), known("v", "s3 a b2 c"));
        let mut file = StoresFile::read(folder.path()).expect("none yet");
        file.add(std::slice::from_ref(&old)).expect("written");
        let mut file = StoresFile::read(folder.path()).expect("read");
        assert_eq!(file.strangers(std::slice::from_ref(&old)), []);
        let strangers = file.strangers(std::slice::from_ref(&new));
        assert_eq!(strangers, std::slice::from_ref(&old));
        file.add(std::slice::from_ref(&new)).expect("written");
        let mut file = StoresFile::read(folder.path()).expect("read");
        assert_eq!(file.strangers(&[]), [old.clone(), new.clone()]);
        file.set(std::slice::from_ref(&new)).expect("written");
        let file = StoresFile::read(folder.path()).expect("read");
        assert_eq!(file.strangers(&[]), [new]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for content in ["", "{}", "[]", "{\"stores\": 3}", "{\"stores\": [{}]}"] {
            fs::write(folder.path().join(STORES_NAME), content).expect("written");
            let refusal = StoresFile::read(folder.path()).err().expect(content);
            assert!(refusal.to_string().contains(STORES_NAME), "{refusal}");
        }
    }
}
