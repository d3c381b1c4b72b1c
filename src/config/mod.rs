//! The config file: volumes, their stores and keys, and the operator's token.
//!
//! A file is read in two steps, as written ([`written`]) and checked (`check.rs`), and is refused
//! whole: there is never half a config. Everything here is plain data. It opens the config file and
//! the files that it names, and nothing else; it never talks to a store.

mod check;
pub mod names;
pub mod written;

use crate::creds::{AzureCredentials, CredentialSources, StoreCredentials};
use crate::settings::private_file::{self, PrivateFileError};
use crate::settings::secret::{Secret, TokenHash};
use std::fmt;
use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;
use written::WrittenConfig;
use zeroize::Zeroizing;

/// Largest config file, bytes: some thousand volumes. Keeps a wrong path from filling memory.
pub const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Block size of a volume that names none, bytes.
pub const BLOCK_SIZE_DEFAULT: u64 = 4 * 1024 * 1024;
/// Smallest block size, bytes.
pub const BLOCK_SIZE_MIN: u64 = forebay_shards::key::BLOCK_BYTES_MIN;
/// Largest block size, bytes.
pub const BLOCK_SIZE_MAX: u64 = forebay_shards::key::BLOCK_BYTES_MAX;
/// Age up to which a copy is served without asking the store, where the volume does not say.
pub const TTL_DEFAULT: Duration = Duration::from_secs(5);
/// Region that requests are signed for where the volume does not say: what S3 tools assume.
pub const REGION_DEFAULT: &str = "us-east-1";

const _: () = assert!(BLOCK_SIZE_MIN.is_power_of_two() && BLOCK_SIZE_MAX.is_power_of_two());
const _: () = assert!(BLOCK_SIZE_MIN <= BLOCK_SIZE_DEFAULT && BLOCK_SIZE_DEFAULT <= BLOCK_SIZE_MAX);

/// A checked config file.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Hash of the token that opens the control paths; `None` closes them to everybody.
    pub operator_token: Option<TokenHash>,
    /// The volumes, in the file's order; names are unique.
    pub volumes: Vec<Volume>,
    /// What is allowed but probably not meant, for the log.
    pub warnings: Vec<String>,
}

/// A named, authorised view of one bucket and prefix, or of one folder.
#[derive(Clone, Debug)]
pub struct Volume {
    /// First path segment of its objects' URLs; follows the rules of bucket names.
    pub name: String,
    /// What stands behind it.
    pub store: VolumeStore,
    /// Unit of caching, bytes: a power of two from [`BLOCK_SIZE_MIN`] to [`BLOCK_SIZE_MAX`].
    pub block_size: u64,
    /// How long a cached copy is good.
    pub consistency: Consistency,
    /// How long the store's word that an object does not exist is believed; zero asks every time.
    pub negative_ttl: Duration,
    /// Whether writes may be acknowledged before the store has them.
    pub writeback: bool,
    /// What tags those until the store does.
    pub etag: EtagKind,
    /// Whether anybody may read without a key.
    pub anonymous_read: bool,
    /// Who else may do what.
    pub keys: Vec<VolumeKey>,
}

/// The object store behind a volume.
#[derive(Clone, Debug)]
pub enum VolumeStore {
    /// A bucket, addressed path-style.
    S3 {
        /// `http` or `https`, host and port, perhaps a path; no user, query or fragment.
        endpoint: Url,
        /// Region to sign for.
        region: String,
        /// The bucket.
        bucket: String,
        /// What every key is put behind, without a slash at either end; empty for none.
        prefix: String,
        /// PEM certificates to trust besides the system's; it was readable when checked.
        ca_file: Option<PathBuf>,
        /// What requests are signed with, from the first source that has any.
        credentials: StoreCredentials,
    },
    /// A container of Azure's Blob storage.
    Azure {
        /// `http` or `https`, host and port, perhaps a path; no user, query or fragment.
        endpoint: Url,
        /// The container.
        container: String,
        /// What every key is put behind, without a slash at either end; empty for none.
        prefix: String,
        /// PEM certificates to trust besides the system's; it was readable when checked.
        ca_file: Option<PathBuf>,
        /// What opens it, from the first source that has any.
        credentials: AzureCredentials,
    },
    /// A folder; it existed when checked.
    File {
        /// The folder, absolute.
        path: PathBuf,
    },
}

/// What the ETag of an object is that the store does not have yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtagKind {
    /// The MD5 for clients that sign, who may compare it; the checksum at hand for those with a token.
    ByClient,
    /// The MD5, as S3's. It costs more CPU than all else that is done with the bytes.
    Md5,
    /// The checksum at hand, and `-1`, by which S3's clients know that it is no MD5.
    Fast,
}

impl EtagKind {
    /// Whether an MD5 is to be computed for a client that signs its requests, or does not.
    pub fn is_md5(self, is_signed: bool) -> bool {
        match self {
            EtagKind::ByClient => is_signed,
            EtagKind::Md5 => true,
            EtagKind::Fast => false,
        }
    }
}

/// How long a cached copy is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// A copy older than `ttl` is checked with the store by its ETag before it is served.
    Revalidate {
        /// Age up to which nothing is asked; zero asks every time.
        ttl: Duration,
    },
    /// Keys are written once, so a copy is good for ever.
    Immutable,
}

/// One way into a volume. At least one of the pair and the token is there.
#[derive(Clone, Debug)]
pub struct VolumeKey {
    /// Access key of a SigV4 pair; `Some` exactly where `secret_key` is.
    pub access_key: Option<String>,
    /// Secret key of the pair.
    pub secret_key: Option<Secret>,
    /// Hash of a bearer token.
    pub token: Option<TokenHash>,
    /// What it allows.
    pub permission: Permission,
}

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Reading only.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// Why a config file is refused. Prints as one line, `FILE:LINE: key: what, what would be right`.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; `None` where the file as a whole is refused.
    pub line: Option<usize>,
    /// The key, where one is to blame.
    pub key: Option<String>,
    /// What is wrong and what would be right. Never holds a secret.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if let Some(key) = &self.key {
            write!(f, " {key}:")?;
        }
        write!(f, " {}", self.problem)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a config file. Stores' credentials are taken from `sources` and the file in
    /// their order of precedence. Relative paths in the file are relative to the file's folder.
    pub fn load(path: &Path, sources: &CredentialSources) -> Result<Config, ConfigError> {
        let source = Source::read(path)?;
        let written = source.parse()?;
        if written.holds_secrets() {
            source.refuse_open_mode()?;
        }
        check::check(&source, written, sources)
    }

    /// Reads a config file for the operator's token alone, in clear: for commands that talk to the
    /// proxy as its operator. `None` if the file has none.
    pub fn operator_token(path: &Path) -> Result<Option<Secret>, ConfigError> {
        let source = Source::read(path)?;
        let written = source.parse()?;
        if written.holds_secrets() {
            source.refuse_open_mode()?;
        }
        written
            .operator
            .map(|operator| check::operator_token(&source, operator))
            .transpose()
    }
}

/// An open config file and its text, for errors that name a line.
pub struct Source {
    path: PathBuf,
    text: Zeroizing<String>,
    metadata: std::fs::Metadata,
}

impl Source {
    /// Reads the file. It may be a link, unlike a creds file: configuration is often linked in place.
    pub fn read(path: &Path) -> Result<Source, ConfigError> {
        let whole = |problem: String| ConfigError {
            file: path.to_owned(),
            line: None,
            key: None,
            problem,
        };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| whole(format!("it cannot be opened: {error}")))?;
        let metadata = file
            .metadata()
            .map_err(|error| whole(format!("it cannot be examined: {error}")))?;
        let without_path = |error: PrivateFileError| whole(problem_of(path, &error));
        private_file::check_regular(path, &metadata).map_err(without_path)?;
        let text = private_file::read_text(path, file, CONFIG_BYTES_MAX).map_err(without_path)?;
        Ok(Source {
            path: path.to_owned(),
            text,
            metadata,
        })
    }

    /// The file as written.
    pub fn parse(&self) -> Result<WrittenConfig, ConfigError> {
        toml::from_str(&self.text).map_err(|error| self.form_error(&error))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path named in the file: relative ones are relative to the file's folder.
    fn resolve(&self, named: &str) -> std::io::Result<PathBuf> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        std::path::absolute(folder.join(named))
    }

    fn refuse_open_mode(&self) -> Result<(), ConfigError> {
        private_file::check_private(&self.path, &self.metadata).map_err(|error| ConfigError {
            file: self.path.clone(),
            line: None,
            key: None,
            problem: problem_of(&self.path, &error),
        })
    }

    /// An error about the value or table at `span`.
    fn error(&self, span: Range<usize>, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError {
            file: self.path.clone(),
            line: Some(self.line_of(span.start)),
            key: Some(key.to_owned()),
            problem: problem.into(),
        }
    }

    fn line_of(&self, offset: usize) -> usize {
        1 + self
            .text
            .bytes()
            .take(offset)
            .filter(|byte| *byte == b'\n')
            .count()
    }

    /// An error of the TOML parser, with the key that its line names.
    fn form_error(&self, error: &toml::de::Error) -> ConfigError {
        let offset = error.span().map_or(0, |span| span.start);
        let line = self.line_of(offset);
        let line_text = self.text.lines().nth(line - 1).unwrap_or_default();
        let key = match line_text.split_once('=') {
            Some((key, _)) => Some(key.trim()),
            None if line_text.trim_start().starts_with('[') => Some(line_text.trim()),
            None => None,
        };
        let shows_key = |key: &&str| key.len() <= 64 && !key.is_empty();
        // The parser's words may quote a value of the wrong type, and that may be a secret.
        let lower = line_text.to_ascii_lowercase();
        let hides = ["secret", "token", "credential"]
            .iter()
            .any(|word| lower.contains(word));
        let words = error
            .message()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        let problem = if hides
            && !words.starts_with("unknown field")
            && !words.starts_with("missing field")
        {
            "it is not a string in double quotes (the value is not shown here)".to_owned()
        } else {
            words
        };
        ConfigError {
            file: self.path.clone(),
            line: Some(line),
            key: key.filter(shows_key).map(str::to_owned),
            problem,
        }
    }
}

/// A private file's error without the path that it begins with.
fn problem_of(path: &Path, error: &PrivateFileError) -> String {
    let text = error.to_string();
    let prefix = format!("{}: ", path.display());
    text.strip_prefix(&prefix).unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests;
