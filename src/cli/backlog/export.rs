//! `forebay dirty --export DIR`: held blocks as files.
//!
//! Keys are whatever clients sent, so no key ever becomes a path: it becomes one file name of harmless
//! letters below one folder per volume. No file is replaced, no link followed, and a file that is
//! complete is on disk before its name is printed: what comes next may be `--abandon`.

use super::super::remote::{Remote, RemoteError};
use super::{BacklogError, Block, Listing, note, shown};
use aws_lc_rs::digest;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is not left as it is. A dot is encoded where a name begins with it.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Longest file name that Linux takes, bytes.
const NAME_BYTES_MAX: usize = 255;

/// Where an encoded key is cut that is longer than a file name may be. Behind it come `~`, which no
/// encoded key holds, and a hash of the whole key.
const NAME_CUT: usize = NAME_BYTES_MAX - 1 - 2 * digest::SHA256_OUTPUT_LEN;

/// A folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--export {}: {problem}", .path.display())]
pub struct ExportError {
    path: PathBuf,
    problem: String,
}

/// Writes the held blocks of one volume, or of all. Says on standard error what failed.
pub(super) fn run(
    remote: &Remote,
    folder: &Path,
    volume: Option<&str>,
    listing: &Listing,
) -> Result<String, BacklogError> {
    let held: Vec<&Block> = listing
        .blocks
        .iter()
        .filter(|block| block.is_held() && volume.is_none_or(|volume| block.volume == volume))
        .collect();
    let listed = listing
        .blocks
        .iter()
        .filter(|block| block.is_held())
        .count() as u64;
    let unlisted = listing.summary.held_blocks().saturating_sub(listed);
    if unlisted > 0 {
        note(&format!(
            "warning: {unlisted} held blocks are beyond what the proxy lists and are not exported \
             now; export again when these are dealt with"
        ));
    }
    private_folder(folder)?;
    let mut text = String::new();
    let mut failed = 0;
    for block in &held {
        match write(remote, folder, block) {
            Ok(path) => {
                let name = shown(&block.volume, &block.key);
                text.push_str(&format!("{name} -> {}\n", path.display()));
            }
            Err(error) => {
                failed += 1;
                note(&format!("{}: {error}", shown(&block.volume, &block.key)));
            }
        }
    }
    if failed > 0 {
        // What was written is told all the same.
        let _ = io::stdout().write_all(text.as_bytes());
        let total = held.len() as u64;
        return Err(BacklogError::NotExported { failed, total });
    }
    if held.is_empty() {
        text.push_str("no block is held\n");
    }
    Ok(text)
}

/// Makes a folder, or takes one that is there if it is a folder and no link to one.
fn private_folder(path: &Path) -> Result<(), ExportError> {
    let refuse = |problem: String| ExportError {
        path: path.to_owned(),
        problem,
    };
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other.map_err(|error| refuse(error.to_string())),
    }
    let metadata = std::fs::symlink_metadata(path).map_err(|error| refuse(error.to_string()))?;
    if metadata.is_dir() {
        Ok(())
    } else {
        Err(refuse("it is there and no folder".to_owned()))
    }
}

/// Writes one block; what is not complete is removed again.
fn write(remote: &Remote, folder: &Path, block: &Block) -> Result<PathBuf, BacklogError> {
    let folder = folder.join(file_name(&block.volume));
    private_folder(&folder)?;
    let path = folder.join(file_name(&block.key));
    let local = |source: io::Error| RemoteError::Local {
        what: path.display().to_string(),
        source,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(local)?;
    let filled = fill(remote, block, &mut file, &local).and_then(|()| {
        // The name as well as the bytes.
        let synced = file
            .sync_all()
            .and_then(|()| File::open(&folder)?.sync_all());
        synced.map_err(local)
    });
    if let Err(error) = filled {
        // It was made above, so it is nobody else's.
        let _ = std::fs::remove_file(&path);
        return Err(error.into());
    }
    Ok(path)
}

fn fill(
    remote: &Remote,
    block: &Block,
    file: &mut File,
    local: &impl Fn(io::Error) -> RemoteError,
) -> Result<(), RemoteError> {
    let name = [("volume", block.volume.as_str()), ("key", &block.key)];
    let written = remote.download("/-/dirty/export", &name, |piece| {
        file.write_all(piece).map_err(local)
    })?;
    if written != block.bytes {
        return Err(remote.foreign(format!(
            "the block has {written} bytes where the list says {}",
            block.bytes
        )));
    }
    Ok(())
}

/// One file name for a volume or key, never two for one and never one for two.
fn file_name(text: &str) -> String {
    let mut name = utf8_percent_encode(text, ESCAPED).to_string();
    if name.starts_with('.') {
        name.replace_range(..1, "%2E");
    }
    if name.is_empty() {
        // No key encodes to a percent sign without digits.
        name.push('%');
    }
    if name.len() > NAME_BYTES_MAX {
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        name.truncate(NAME_CUT);
        name.push('~');
        name.push_str(&hex::encode(hash.as_ref()));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_keys_are_plain_names() {
        for (key, name) in [
            ("a/b.txt", "a%2Fb.txt"),
            ("..", "%2E."),
            (".", "%2E"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            (".bashrc", "%2Ebashrc"),
            ("/etc/passwd", "%2Fetc%2Fpasswd"),
            ("%2E", "%252E"),
            ("a~b", "a%7Eb"),
            ("", "%"),
            ("ю\n", "%D1%8E%0A"),
        ] {
            assert_eq!(file_name(key), name);
        }
        let (one, other) = ("k".repeat(1000), "k".repeat(1001));
        assert_eq!(file_name(&one).len(), NAME_BYTES_MAX);
        assert_ne!(file_name(&one), file_name(&other));
    }

    proptest! {
        #[test]
        fn every_key_is_one_harmless_name(key in "\\PC{0,400}", other in "\\PC{0,400}") {
            let name = file_name(&key);
            prop_assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX);
            prop_assert!(!name.starts_with('.'));
            prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.%~".contains(&b)));
            prop_assert!(key == other || name != file_name(&other));
        }
    }

    #[test]
    fn a_link_is_no_folder() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).expect("link");
        let error = private_folder(&link).expect_err("a link").to_string();
        assert!(error.contains("no folder"), "{error}");
        private_folder(&folder.path().join("new")).expect("made");
        private_folder(&folder.path().join("new")).expect("there");
    }
}
