//! The volumes being served, and the stores behind them.
//!
//! This file turns checked settings into what cores work with. Stores are numbered, and a number
//! means one volume at one bucket or folder for the life of the process: requests in flight across a
//! reload still reach the objects that they were meant for. How that place is reached may change
//! under a number, credentials above all, so that what waits for the store goes on with the new.

use super::stores_file::KnownStore;
use crate::config::{Config, Consistency, Volume as VolumeSettings, VolumeStore};
use crate::creds::AzureCredentials;
use crate::settings::secret::TokenHash;
use crate::store::{self, BuildError, StoreSpec};
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use forebay_io::uplink::{StoreFactory, StoreTable};
use forebay_shards::key::{Freshness, Volume, store_identity};
use forebay_shards::versions::Versions;
use std::collections::HashMap;
use std::path::Path;
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
    /// By store number: how often the way to the store has changed.
    store_generations: Vec<u64>,
    /// Opens the control paths.
    pub operator_token: Option<TokenHash>,
}

impl VolumeTable {
    /// A volume by name.
    pub fn find(&self, name: &str) -> Option<&ServedVolume> {
        self.volumes.get(name)
    }

    /// How often the way to a store has changed, credentials for instance: what the store refused
    /// under an earlier generation may be tried again.
    pub fn store_generation(&self, store_number: u32) -> u64 {
        let known = self.store_generations.get(store_number as usize);
        known.copied().unwrap_or(0)
    }

    /// Numbers of the stores that are reached in another way than in `earlier`.
    pub fn renewed_since(&self, earlier: &VolumeTable) -> Vec<u32> {
        (0..self.store_generations.len() as u32)
            .filter(|number| self.store_generation(*number) != earlier.store_generation(*number))
            .collect()
    }

    /// The stores for which blocks may become dirty.
    pub fn written_back(&self) -> Vec<KnownStore> {
        let volumes = self.volumes.values();
        let written_back = volumes.filter(|served| served.volume.writeback);
        let known = written_back.map(|served| KnownStore {
            volume: served.settings.name.clone(),
            store: description(&served.settings.store),
        });
        known.collect()
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

/// The stores of this process, by number. None is ever removed: blocks may wait for it.
#[derive(Default)]
pub struct Stores {
    stores: Vec<Numbered>,
    /// Number of each store by its volume's name and its place.
    numbers: HashMap<(String, u64), u32>,
    /// By endpoint and bucket.
    versions: HashMap<(String, String), Versions>,
}

/// A store as it is reached now.
struct Numbered {
    spec: StoreSpec,
    /// Of the description, secrets included.
    fingerprint: [u8; SHA256_OUTPUT_LEN],
    /// Grows with each change of the fingerprint.
    generation: u64,
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
            let store_number = self.number(settings, spec);
            let versions = self.versions_of(&settings.store);
            let volume = Arc::new(face(settings, store_number, versions));
            let served = ServedVolume {
                settings: settings.clone(),
                volume,
            };
            volumes.insert(settings.name.clone(), served);
        }
        let generations = self.stores.iter().map(|numbered| numbered.generation);
        Ok(Arc::new(VolumeTable {
            volumes,
            store_generations: generations.collect(),
            operator_token: config.operator_token,
        }))
    }

    /// What is known of the versions that a bucket keeps, which all volumes of it share.
    fn versions_of(&mut self, store: &VolumeStore) -> Versions {
        match store {
            VolumeStore::S3 {
                endpoint, bucket, ..
            } => {
                let place = (endpoint.to_string(), bucket.clone());
                let known = self.versions.entry(place);
                known.or_insert_with(Versions::of_bucket).clone()
            }
            VolumeStore::Azure { .. } | VolumeStore::File { .. } => Versions::default(),
        }
    }

    fn number(&mut self, settings: &VolumeSettings, spec: StoreSpec) -> u32 {
        let fingerprint = fingerprint(&spec);
        let place = (settings.name.clone(), identity(&settings.store));
        match self.numbers.get(&place) {
            Some(number) => {
                let numbered = &mut self.stores[*number as usize];
                if numbered.fingerprint != fingerprint {
                    *numbered = Numbered {
                        spec,
                        fingerprint,
                        generation: numbered.generation + 1,
                    };
                }
                *number
            }
            None => {
                self.stores.push(Numbered {
                    spec,
                    fingerprint,
                    generation: 0,
                });
                let number = self.stores.len() as u32 - 1;
                self.numbers.insert(place, number);
                number
            }
        }
    }

    /// What makes all stores on a companion thread.
    pub fn factory(&self) -> StoreFactory {
        let specs: Vec<_> = self.stores.iter().map(|each| each.spec.clone()).collect();
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
    match spec {
        StoreSpec::S3(s3) => {
            let secret = (&s3.secret_key, &s3.session_token, &s3.ca_pem);
            text.push_str(&format!("{secret:?}"));
        }
        StoreSpec::Azure(azure) => {
            let secret = match &azure.credentials {
                AzureCredentials::Key { key, .. } => key,
                AzureCredentials::Sas(token) => token,
            };
            text.push_str(&format!("{:?}", (secret.expose(), &azure.ca_pem)));
        }
        StoreSpec::File { .. } => {}
    }
    let digest = digest(&SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has its length")
}

fn check(spec: &StoreSpec) -> Result<(), BuildError> {
    store::build(spec).map(drop)
}

fn face(settings: &VolumeSettings, store_number: u32, versions: Versions) -> Volume {
    Volume {
        name: settings.name.clone(),
        store_number,
        store_identity: identity(&settings.store),
        block_bytes: settings.block_size,
        freshness: match settings.consistency {
            Consistency::Immutable => Freshness::Immutable,
            Consistency::Revalidate { ttl } => Freshness::RevalidateAfter(ttl),
        },
        absence_ttl: settings.negative_ttl,
        writeback: settings.writeback,
        versions,
    }
}

/// What names the bucket or folder: not the credentials, which may change without the data.
pub(super) fn identity(store: &VolumeStore) -> u64 {
    store_identity(&description(store))
}

/// What tells it to people and to later runs.
fn description(store: &VolumeStore) -> String {
    match store {
        VolumeStore::S3 {
            endpoint,
            bucket,
            prefix,
            ..
        } => format!("s3 {endpoint} {bucket} {prefix}"),
        VolumeStore::Azure {
            endpoint,
            container,
            prefix,
            ..
        } => format!("azure {endpoint} {container} {prefix}"),
        VolumeStore::File { path } => format!("file {}", path.display()),
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
            let ca_pem = read_ca(ca_file.as_deref())?;
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
        // What Azure keeps is always encrypted: `sse` asks for nothing there.
        VolumeStore::Azure {
            endpoint,
            container,
            prefix,
            ca_file,
            credentials,
        } => Ok(StoreSpec::Azure(store::AzureSpec {
            endpoint: endpoint.to_string(),
            container: container.clone(),
            prefix: prefix.clone(),
            ca_pem: read_ca(ca_file.as_deref())?,
            credentials: credentials.clone(),
            deadlines: Default::default(),
            retry: Default::default(),
        })),
    }
}

fn read_ca(file: Option<&Path>) -> Result<Option<Vec<u8>>, String> {
    let Some(path) = file else {
        return Ok(None);
    };
    let pem = std::fs::read(path).map_err(|e| format!("ca_file {}: {e}", path.display()))?;
    Ok(Some(pem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EtagKind;
    use crate::creds::StoreCredentials;
    use crate::settings::secret::Secret;

    fn config(volumes: &[(&str, &str, &str)]) -> Config {
        let volumes = volumes.iter().map(|(name, bucket, secret)| VolumeSettings {
            name: (*name).to_owned(),
            store: VolumeStore::S3 {
                endpoint: "http://127.0.0.1:1".parse().expect("a URL"),
                region: "r".to_owned(),
                bucket: (*bucket).to_owned(),
                prefix: String::new(),
                ca_file: None,
                credentials: StoreCredentials {
                    access_key: "me".to_owned(),
                    secret_key: Secret::new(*secret),
                    session_token: None,
                },
            },
            block_size: 1 << 20,
            consistency: Consistency::Immutable,
            negative_ttl: std::time::Duration::ZERO,
            writeback: true,
            etag: EtagKind::ByClient,
            anonymous_read: false,
            keys: Vec::new(),
        });
        Config {
            volumes: volumes.collect(),
            ..Config::default()
        }
    }

    fn number(table: &VolumeTable, name: &str) -> u32 {
        let served = table.find(name).expect("a volume");
        served.volume.store_number
    }

    #[test]
    fn a_store_keeps_its_number_when_its_credentials_change() {
        let mut stores = Stores::default();
        let mut adopt = |volumes: &[_]| stores.adopt(&config(volumes), false).expect("buildable");
        let first = adopt(&[("a", "bucket", "old"), ("b", "bucket", "old")]);
        assert_ne!(number(&first, "a"), number(&first, "b"));
        let same = adopt(&[("a", "bucket", "old"), ("b", "bucket", "old")]);
        assert_eq!(same.renewed_since(&first), Vec::<u32>::new());
        let second = adopt(&[("a", "bucket", "new"), ("b", "bucket", "old")]);
        assert_eq!(number(&second, "a"), number(&first, "a"));
        assert_eq!(second.renewed_since(&first), [number(&first, "a")]);
        assert_eq!(second.store_generation(number(&first, "a")), 1);
    }

    #[test]
    fn another_bucket_is_another_store_and_the_old_one_stays() {
        let mut stores = Stores::default();
        let mut adopt = |volumes: &[_]| stores.adopt(&config(volumes), false).expect("buildable");
        let first = adopt(&[("a", "one", "s")]);
        let moved = adopt(&[("a", "two", "s")]);
        assert_ne!(number(&moved, "a"), number(&first, "a"));
        assert_eq!(moved.renewed_since(&first), Vec::<u32>::new());
        let back = adopt(&[("a", "one", "s")]);
        assert_eq!(number(&back, "a"), number(&first, "a"));
    }
}
