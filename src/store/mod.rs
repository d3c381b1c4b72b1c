//! The object stores behind the cache: what they are made of and how one is built.
//!
//! This folder owns every request that leaves for a bucket and every file of a folder used as one.
//! It knows keys and bytes, never blocks, caching or clients. A store is described by a plain
//! [`StoreSpec`], which travels to each core's companion thread, where [`build`] makes the store
//! itself: the stores are not shared between cores, so neither are their connections.
//!
//! | module | owns |
//! |---|---|
//! | [`s3`] | buckets over HTTP: signing, sending, checking answers |
//! | [`azure`] | containers of Azure's Blob storage, over the same HTTP client |
//! | [`file`](mod@file) | a folder as a bucket |
//! | [`retry`] | when a request is sent again |
//! | `etag` | ETags made of MD5s |

pub mod azure;
mod etag;
pub mod file;
pub mod retry;
pub mod s3;

use crate::creds::AzureCredentials;
use forebay_io::store::Store;
use retry::{CompanionPace, RetrySettings, Retrying};
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use thiserror::Error;

/// What a store is made of; plain data, so that each core builds its own.
#[derive(Clone, Debug)]
pub enum StoreSpec {
    /// A bucket, or the part of it under a prefix.
    S3(S3Spec),
    /// A container of Azure's, or the part of it under a prefix.
    Azure(AzureSpec),
    /// A folder.
    File {
        /// The folder; it must exist.
        path: PathBuf,
    },
}

/// A bucket reached with S3's protocol, path style.
#[derive(Clone)]
pub struct S3Spec {
    /// `https://host[:port][/path]`; `http` is taken too.
    pub endpoint: String,
    /// Region that requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// What every key is put under, without the `/` that follows it; empty for the whole bucket.
    pub prefix: String,
    /// Certificate authorities, PEM, trusted beside those of the system.
    pub ca_pem: Option<Vec<u8>>,
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
    /// Session token of temporary credentials.
    pub session_token: Option<String>,
    /// Whether objects are to be encrypted at rest with the store's own keys
    /// (`x-amz-server-side-encryption: AES256`).
    pub sse: bool,
    /// How the store is made to verify what it is sent.
    pub upload_check: UploadCheck,
    /// How long each phase of a request may take.
    pub deadlines: s3::Deadlines,
    /// How often a failed request is sent again.
    pub retry: RetrySettings,
}

/// How an upload is verified by the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UploadCheck {
    /// CRC64-NVME once the store has shown, by echoing it, that it verifies it; until then, and for
    /// good where it does not (Ceph and Swift take a wrong one without a word), `Content-MD5` for
    /// bodies in memory.
    #[default]
    Auto,
    /// `x-amz-checksum-crc64nvme` wherever the checksum is known.
    Crc64Nvme,
    /// `Content-MD5` for bodies in memory; for stores that refuse newer checksums.
    ContentMd5,
    /// The length alone.
    Nothing,
}

impl S3Spec {
    /// A whole bucket with the usual settings.
    pub fn new(endpoint: &str, region: &str, bucket: &str) -> Self {
        S3Spec {
            endpoint: endpoint.to_owned(),
            region: region.to_owned(),
            bucket: bucket.to_owned(),
            prefix: String::new(),
            ca_pem: None,
            access_key: String::new(),
            secret_key: String::new(),
            session_token: None,
            sse: false,
            upload_check: UploadCheck::default(),
            deadlines: s3::Deadlines::default(),
            retry: RetrySettings::default(),
        }
    }
}

impl fmt::Debug for S3Spec {
    /// Leaves the secrets out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Spec")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("access_key", &self.access_key)
            .field("sse", &self.sse)
            .finish_non_exhaustive()
    }
}

/// A container of Azure's Blob storage.
#[derive(Clone)]
pub struct AzureSpec {
    /// `https://ACCOUNT.blob.core.windows.net`, or where else the account is; `http` is taken too.
    pub endpoint: String,
    /// The container.
    pub container: String,
    /// What every key is put under, without the `/` that follows it; empty for the whole container.
    pub prefix: String,
    /// Certificate authorities, PEM, trusted beside those of the system.
    pub ca_pem: Option<Vec<u8>>,
    /// The account's key, or a token.
    pub credentials: AzureCredentials,
    /// How long each phase of a request may take.
    pub deadlines: s3::Deadlines,
    /// How often a failed request is sent again.
    pub retry: RetrySettings,
}

impl AzureSpec {
    /// A whole container with the usual settings.
    pub fn new(endpoint: &str, container: &str, credentials: AzureCredentials) -> Self {
        AzureSpec {
            endpoint: endpoint.to_owned(),
            container: container.to_owned(),
            prefix: String::new(),
            ca_pem: None,
            credentials,
            deadlines: s3::Deadlines::default(),
            retry: RetrySettings::default(),
        }
    }
}

impl fmt::Debug for AzureSpec {
    /// Leaves the secrets out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureSpec")
            .field("endpoint", &self.endpoint)
            .field("container", &self.container)
            .field("prefix", &self.prefix)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// Why a store cannot be built from its description.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Not an address a bucket can be at.
    #[error(
        "store endpoint {endpoint:?}: {why}; it must be http(s)://host[:port], without user, query or fragment"
    )]
    Endpoint {
        /// As it was written.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// A setting is empty or malformed.
    #[error("store {setting}: {why}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What would be right.
        why: String,
    },
    /// The certificate authorities cannot be used.
    #[error("store certificate authorities: {0}")]
    Authorities(String),
    /// The HTTP client cannot be made.
    #[error("store HTTP client: {0}")]
    Client(String),
    /// The folder cannot be used.
    #[error("store folder {path:?}: {why}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Builds a store for the thread that runs it, whose runtime must be tokio's with I/O and time.
///
/// Nothing is sent: a bucket that is missing or refuses us shows with the first request. A folder
/// is opened, its leftovers of a crash are removed.
pub fn build(spec: &StoreSpec) -> Result<Rc<dyn Store>, BuildError> {
    match spec {
        StoreSpec::S3(s3) => {
            let store = s3::S3Store::new(s3)?;
            let retrying = Retrying::new(store, s3.retry, CompanionPace::default());
            Ok(Rc::new(retrying))
        }
        StoreSpec::Azure(azure) => {
            let store = azure::AzureStore::new(azure)?;
            let retrying = Retrying::new(store, azure.retry, CompanionPace::default());
            Ok(Rc::new(retrying))
        }
        StoreSpec::File { path } => Ok(Rc::new(file::FileStore::open(path)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::S3Spec;

    #[test]
    fn a_printed_description_holds_no_secret() {
        let mut spec = S3Spec::new("http://127.0.0.1:1", "r", "b");
        spec.secret_key = "hush".into();
        spec.session_token = Some("whisper".into());
        let printed = format!("{spec:?}");
        assert!(printed.contains("127.0.0.1"));
        assert!(!printed.contains("hush") && !printed.contains("whisper"));
    }
}
