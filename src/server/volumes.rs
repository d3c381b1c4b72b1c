//! The volumes being served, and the stores behind them.
//!
//! This file turns checked settings into what cores work with. Stores are numbered, and a number
//! keeps its meaning for the life of the process: requests in flight across a reload still reach
//! the store that they were meant for.

use crate::config::{Config, Consistency, Volume as VolumeSettings, VolumeStore};
use crate::settings::secret::TokenHash;
use crate::store::{self, BuildError, StoreSpec};
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use forebay_io::uplink::{StoreFactory, StoreTable};
use forebay_shards::key::{Freshness, Volume, store_identity};
use std::collections::HashMap;
use std::sync::Arc;

/// A volume as it is served.
pub struct ServedVolume {
    /// Its settings.
    pub settings: VolumeSettings,
    /// Its face towards the cache.
    pub volume: Arc<Volume>,
}

/// All volumes of one reading of the config.
pub struct VolumeTable {
    volumes: HashMap<String, ServedVolume>,
    /// Opens the control paths.
    pub operator_token: Option<TokenHash>,
}

impl VolumeTable {
    /// A volume by name.
    pub fn find(&self, name: &str) -> Option<&ServedVolume> {
        self.volumes.get(name)
    }

    /// The volumes as the cache sees them.
    pub fn faces(&self) -> impl Iterator<Item = Arc<Volume>> {
        self.volumes.values().map(|served| served.volume.clone())
    }

    /// All volumes.
    pub fn list(&self) -> impl Iterator<Item = &ServedVolume> {
        self.volumes.values()
    }
}

/// Why a volume's store cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume:?}: {problem}")]
pub struct VolumeError {
    volume: String,
    problem: String,
}

/// The stores of this process, by number.
#[derive(Default)]
pub struct Stores {
    specs: Vec<StoreSpec>,
    /// Number of each store by everything that makes it what it is, credentials included.
    numbers: HashMap<[u8; SHA256_OUTPUT_LEN], u32>,
}

impl Stores {
    /// Takes a config in. Nothing changes if a store cannot be built.
    pub fn adopt(&mut self, config: &Config, sse: bool) -> Result<Arc<VolumeTable>, VolumeError> {
        let mut specs = Vec::new();
        for settings in &config.volumes {
            let failed = |problem: String| VolumeError {
                volume: settings.name.clone(),
                problem,
            };
            let spec = store_spec(settings, sse).map_err(failed)?;
            // Built once here only to learn whether it can be.
            check(&spec).map_err(|error| failed(error.to_string()))?;
            specs.push(spec);
        }
        let mut volumes = HashMap::new();
        for (settings, spec) in config.volumes.iter().zip(specs) {
            let store_number = self.number(spec);
            let volume = Arc::new(face(settings, store_number));
            let served = ServedVolume {
                settings: settings.clone(),
                volume,
            };
            volumes.insert(settings.name.clone(), served);
        }
        Ok(Arc::new(VolumeTable {
            volumes,
            operator_token: config.operator_token,
        }))
    }

    fn number(&mut self, spec: StoreSpec) -> u32 {
        let specs = &mut self.specs;
        *self.numbers.entry(fingerprint(&spec)).or_insert_with(|| {
            specs.push(spec);
            specs.len() as u32 - 1
        })
    }

    /// What makes all stores on a companion thread.
    pub fn factory(&self) -> StoreFactory {
        let specs = self.specs.clone();
        Box::new(move || -> StoreTable {
            let built = specs.iter().map(|spec| {
                store::build(spec).unwrap_or_else(|error| {
                    // It could be built a moment ago: a CA file gone bad, memory gone.
                    log::error!("a store cannot be built any more: {error}");
                    std::process::abort()
                })
            });
            built.collect()
        })
    }
}

/// Equal exactly for stores that are equal in everything, secrets included.
fn fingerprint(spec: &StoreSpec) -> [u8; SHA256_OUTPUT_LEN] {
    let mut text = format!("{spec:?}");
    if let StoreSpec::S3(s3) = spec {
        let secret = (&s3.secret_key, &s3.session_token, &s3.ca_pem);
        text.push_str(&format!("{secret:?}"));
    }
    let digest = digest(&SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has its length")
}

fn check(spec: &StoreSpec) -> Result<(), BuildError> {
    store::build(spec).map(drop)
}

fn face(settings: &VolumeSettings, store_number: u32) -> Volume {
    Volume {
        name: settings.name.clone(),
        store_number,
        store_identity: identity(&settings.store),
        block_bytes: settings.block_size,
        freshness: match settings.consistency {
            Consistency::Immutable => Freshness::Immutable,
            Consistency::Revalidate { ttl } => Freshness::RevalidateAfter(ttl),
        },
        writeback: settings.writeback,
    }
}

/// What names the bucket or folder: not the credentials, which may change without the data.
fn identity(store: &VolumeStore) -> u64 {
    match store {
        VolumeStore::S3 {
            endpoint,
            bucket,
            prefix,
            ..
        } => store_identity(&format!("s3 {endpoint} {bucket} {prefix}")),
        VolumeStore::File { path } => store_identity(&format!("file {}", path.display())),
    }
}

fn store_spec(settings: &VolumeSettings, sse: bool) -> Result<StoreSpec, String> {
    match &settings.store {
        VolumeStore::File { path } => Ok(StoreSpec::File { path: path.clone() }),
        VolumeStore::S3 {
            endpoint,
            region,
            bucket,
            prefix,
            ca_file,
            credentials,
        } => {
            let ca_pem = match ca_file {
                None => None,
                Some(path) => Some(
                    std::fs::read(path).map_err(|e| format!("ca_file {}: {e}", path.display()))?,
                ),
            };
            Ok(StoreSpec::S3(store::S3Spec {
                endpoint: endpoint.to_string(),
                region: region.clone(),
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                ca_pem,
                access_key: credentials.access_key.clone(),
                secret_key: credentials.secret_key.expose().to_owned(),
                session_token: credentials
                    .session_token
                    .as_ref()
                    .map(|t| t.expose().to_owned()),
                sse,
                upload_check: Default::default(),
                deadlines: Default::default(),
                retry: Default::default(),
            }))
        }
    }
}
