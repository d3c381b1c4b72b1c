//! The object store's credentials: the creds file, and which source of credentials wins.
//!
//! This file owns the format of the creds file (TOML, `blockUser` and `blockPass`) and the order of
//! precedence: flags, creds file, the volume's own, environment. It never sends credentials anywhere
//! and never shows a secret key.

mod azure;

pub use azure::{AzureCredentials, decode_key, sas_query};

use crate::settings::private_file::{self, Existing, PrivateFileError};
use crate::settings::secret::Secret;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What a request to the store is signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreCredentials {
    /// Access key, not secret.
    pub access_key: String,
    /// Secret key.
    pub secret_key: Secret,
    /// Session token of temporary credentials.
    pub session_token: Option<Secret>,
}

/// The sources outside of the volume itself, each as found.
#[derive(Clone, Debug, Default)]
pub struct CredentialSources {
    /// `--blockUser` and `--blockPass`.
    pub flags: Option<StoreCredentials>,
    /// The creds file's contents.
    pub file: Option<StoreCredentials>,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if set, `AWS_SESSION_TOKEN`.
    pub environment: Option<StoreCredentials>,
    /// `AZURE_STORAGE_ACCOUNT` and `AZURE_STORAGE_KEY`, or `AZURE_STORAGE_SAS_TOKEN`.
    pub azure_environment: Option<AzureCredentials>,
}

impl CredentialSources {
    /// The credentials for a volume whose own section gives `volume`.
    pub fn choose(&self, volume: Option<StoreCredentials>) -> Option<StoreCredentials> {
        self.flags
            .clone()
            .or_else(|| self.file.clone())
            .or(volume)
            .or_else(|| self.environment.clone())
    }

    /// The same for a volume in Azure. A pair is the account's name and its key, or a SAS token in the
    /// key's place.
    pub fn choose_azure(&self, volume: Option<AzureCredentials>) -> Option<AzureCredentials> {
        let pair = self.flags.as_ref().or(self.file.as_ref());
        pair.map(AzureCredentials::of_pair)
            .or(volume)
            .or_else(|| self.azure_environment.clone())
    }
}

/// Why a creds file is refused. Prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum CredsError {
    /// The file itself is refused.
    #[error("creds file {0}")]
    File(#[from] PrivateFileError),
    /// The file is not TOML of the right form.
    #[error(
        "creds file {}:{line}: {problem}; it must hold blockUser = \"…\" and blockPass = \"…\"",
        .path.display()
    )]
    Form {
        /// The file.
        path: PathBuf,
        /// Line of the mistake, from 1.
        line: usize,
        /// The mistake, without any value.
        problem: &'static str,
    },
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenCreds {
    block_user: String,
    block_pass: Secret,
}

/// Reads a creds file.
pub fn load(path: &Path) -> Result<StoreCredentials, CredsError> {
    let text = private_file::read(path)?;
    let form = |line, problem| CredsError::Form {
        path: path.to_owned(),
        line,
        problem,
    };
    // The parser's own words may repeat a value, so they are not shown.
    let written: WrittenCreds = toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text
            .bytes()
            .take(start)
            .filter(|byte| *byte == b'\n')
            .count();
        form(line, "a key is missing, unknown, or not a quoted string")
    })?;
    if written.block_user.is_empty() || written.block_pass.expose().is_empty() {
        return Err(form(1, "blockUser or blockPass is empty"));
    }
    Ok(StoreCredentials {
        access_key: written.block_user,
        secret_key: written.block_pass,
        session_token: None,
    })
}

/// Writes a creds file, and the folders above it where they are missing.
pub fn save(
    path: &Path,
    credentials: &StoreCredentials,
    existing: Existing,
) -> Result<(), CredsError> {
    if let Some(folder) = path.parent() {
        private_file::make_folders(folder)?;
    }
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let contents = zeroize::Zeroizing::new(format!(
        "# Credentials of the object store behind Forebay. Keep this file's mode at 0600.\n\
         blockUser = {}\nblockPass = {}\n",
        quoted(&credentials.access_key),
        quoted(credentials.secret_key.expose()),
    ));
    private_file::write(path, contents.as_bytes(), existing)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(access_key: &str, secret_key: &str) -> StoreCredentials {
        StoreCredentials {
            access_key: access_key.to_owned(),
            secret_key: Secret::new(secret_key),
            session_token: None,
        }
    }

    #[test]
    fn flags_win_over_the_file_over_the_volume_over_the_environment() {
        let mut sources = CredentialSources {
            flags: Some(pair("flags", "1")),
            file: Some(pair("file", "2")),
            environment: Some(pair("environment", "3")),
            azure_environment: None,
        };
        let chosen = |sources: &CredentialSources, volume: bool| {
            let volume = volume.then(|| pair("volume", "4"));
            sources.choose(volume).map(|chosen| chosen.access_key)
        };
        assert_eq!(chosen(&sources, true).as_deref(), Some("flags"));
        sources.flags = None;
        assert_eq!(chosen(&sources, true).as_deref(), Some("file"));
        sources.file = None;
        assert_eq!(chosen(&sources, true).as_deref(), Some("volume"));
        assert_eq!(chosen(&sources, false).as_deref(), Some("environment"));
        sources.environment = None;
        assert_eq!(chosen(&sources, false), None);
    }

    #[test]
    fn a_mistake_is_told_by_line_and_never_by_value() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("creds");
        for (text, part) in [
            ("blockUser = \"me\"\n", ":1:"),
            ("blockUser = \"me\"\nblockPass = 12345678\n", ":2:"),
            ("blockUser = \"me\"\nblockPass = \"12345678\nx\"\n", ":3:"),
            (
                "blockUser = \"me\"\nblockPass = \"12345678\"\nmore = 1\n",
                ":3:",
            ),
            ("blockUser = \"\"\nblockPass = \"12345678\"\n", "empty"),
            ("12345678", ":1:"),
        ] {
            private_file::write(&path, text.as_bytes(), Existing::Replace).expect("write");
            let error = load(&path).expect_err(text).to_string();
            assert!(error.contains(part), "{text:?}: {error}");
            assert!(!error.contains("12345678"), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_saved_loads(user in "\\PC{1,40}", pass in "[^\\x00]{1,80}") {
            let folder = tempfile::tempdir().expect("temporary folder");
            let path = folder.path().join("deep/creds");
            save(&path, &pair(&user, &pass), Existing::Keep).expect("save");
            prop_assert_eq!(load(&path).expect("load"), pair(&user, &pass));
        }
    }
}
