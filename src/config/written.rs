//! The config file as written: every key that may stand in it, and nothing about what is right.
//!
//! Each value carries its place in the file, so that `check.rs` can name the line. A key that
//! is not declared here is a mistake, never ignored.

use crate::settings::secret::Secret;
use serde::Deserialize;
use toml::Spanned;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenConfig {
    /// `[operator]`
    pub operator: Option<WrittenOperator>,
    /// Each `[[volume]]`
    #[serde(default)]
    pub volume: Vec<Spanned<WrittenVolume>>,
}

/// `[operator]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenOperator {
    /// Token for the control paths.
    pub token: Option<Spanned<Secret>>,
    /// File that holds it.
    pub token_file: Option<Spanned<String>>,
}

/// `[[volume]]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenVolume {
    /// First path segment.
    pub name: Spanned<String>,
    /// `s3`, `azure` or `file`.
    pub store: Spanned<String>,
    /// For `s3` and `azure`: address of the store.
    pub endpoint: Option<Spanned<String>>,
    /// For `s3`: region to sign for.
    pub region: Option<Spanned<String>>,
    /// For `s3`: bucket.
    pub bucket: Option<Spanned<String>>,
    /// For `azure`: container.
    pub container: Option<Spanned<String>>,
    /// For `s3` and `azure`: what every key is put behind.
    pub prefix: Option<Spanned<String>>,
    /// For `s3` and `azure`: certificates to trust besides the system's.
    pub ca_file: Option<Spanned<String>>,
    /// For `s3` and `azure`: credentials of this volume.
    pub credentials: Option<Spanned<WrittenCredentials>>,
    /// For `file`: folder of the objects.
    pub path: Option<Spanned<String>>,
    /// Unit of caching.
    pub block_size: Option<Spanned<String>>,
    /// `revalidate` or `immutable`.
    pub consistency: Option<Spanned<String>>,
    /// For `revalidate`: age up to which a copy is served unasked.
    pub ttl: Option<Spanned<String>>,
    /// Time for which the store's word that an object does not exist is believed.
    pub negative_ttl: Option<Spanned<String>>,
    /// Whether writes may be acknowledged before the store has them.
    pub writeback: Option<bool>,
    /// `md5` or `fast`.
    pub etag: Option<Spanned<String>>,
    /// `none` or `read`.
    pub anonymous: Option<Spanned<String>>,
    /// Each `[[volume.key]]`
    #[serde(default)]
    pub key: Vec<Spanned<WrittenKey>>,
}

/// `[volume.credentials]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenCredentials {
    /// Access key for the store; Azure's account.
    pub access_key: Option<Spanned<String>>,
    /// Secret key for the store.
    pub secret_key: Option<Spanned<Secret>>,
    /// For `s3`: session token of temporary credentials.
    pub session_token: Option<Spanned<Secret>>,
    /// For `azure`, in place of the others: a shared access signature.
    pub sas_token: Option<Spanned<Secret>>,
}

/// `[[volume.key]]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenKey {
    /// Access key of a SigV4 pair.
    pub access_key: Option<Spanned<String>>,
    /// Secret key of a SigV4 pair.
    pub secret_key: Option<Spanned<Secret>>,
    /// Bearer token.
    pub token: Option<Spanned<Secret>>,
    /// `r` or `rw`.
    pub permission: Spanned<String>,
}

impl WrittenConfig {
    /// Whether the file itself holds anything that must not be read by others.
    pub fn holds_secrets(&self) -> bool {
        self.operator
            .as_ref()
            .is_some_and(|operator| operator.token.is_some())
            || self.volume.iter().any(|volume| {
                let volume = volume.get_ref();
                volume.credentials.is_some()
                    || volume.key.iter().any(|key| {
                        key.get_ref().token.is_some() || key.get_ref().secret_key.is_some()
                    })
            })
    }
}
