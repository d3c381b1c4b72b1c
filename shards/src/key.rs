//! What a block is called, where it lives, and which core owns it.
//!
//! This file owns hashing and placement. It never changes either: both are part of the on-disk
//! format and of `GET /-/topology`.

use crate::versions::Versions;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// Longest object key, bytes.
pub use forebay_io::store::KEY_BYTES_MAX;

/// Smallest block size, bytes.
pub const BLOCK_BYTES_MIN: u64 = 256 << 10;

/// Largest block size, bytes.
pub const BLOCK_BYTES_MAX: u64 = forebay_io::buffer::BODY_BYTES_MAX as u64;

/// When a cached copy must be checked against the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Keys are written once: a copy is good for ever.
    Immutable,
    /// A copy that was last checked longer ago than this is checked by ETag before it is served.
    RevalidateAfter(Duration),
}

/// A volume as the cache sees it: a name space with a store behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The volume's name.
    pub name: String,
    /// Position of its store in the uplink's table.
    pub store_number: u32,
    /// Identity of the bucket and prefix behind it; records of another identity are never served.
    pub store_identity: u64,
    /// Unit of caching, bytes: a power of two.
    pub block_bytes: u64,
    /// When cached copies are checked.
    pub freshness: Freshness,
    /// How long the store's word that there is no such object is believed; zero asks every time.
    pub absence_ttl: Duration,
    /// Whether writes may be acknowledged before the store has them.
    pub writeback: bool,
    /// What is known of the versions that the bucket behind it keeps.
    pub versions: Versions,
}

/// The identity of a store, from what names it (endpoint, bucket, prefix or path).
pub fn store_identity(description: &str) -> u64 {
    xxh3_64(description.as_bytes())
}

/// 128-bit hash of a block's name: its key in every table and its place among virtual shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct BlockHash(pub u128);

/// The hash of a block: XXH3-128 over `volume/key`, seeded with the block number.
pub fn block_hash(volume: &str, key: &str, number: u64) -> BlockHash {
    let mut name = Vec::with_capacity(volume.len() + 1 + key.len());
    name.extend_from_slice(volume.as_bytes());
    name.push(b'/');
    name.extend_from_slice(key.as_bytes());
    BlockHash(xxh3_128_with_seed(&name, number))
}

/// One block of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockId {
    /// The volume.
    pub volume: Arc<Volume>,
    /// The object's key.
    pub key: Arc<str>,
    /// Which block of the object, from 0.
    pub number: u64,
}

impl BlockId {
    /// The block's hash.
    pub fn hash(&self) -> BlockHash {
        block_hash(&self.volume.name, &self.key, self.number)
    }

    /// The same object's block `number`.
    pub fn sibling(&self, number: u64) -> BlockId {
        BlockId {
            volume: self.volume.clone(),
            key: self.key.clone(),
            number,
        }
    }
}

/// How hashes map to virtual shards and those to cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    shards: u32,
    cores: u32,
}

impl Topology {
    /// `shards` virtual shards (a power of two, fixed by the folder) on `cores` cores.
    pub fn new(shards: u32, cores: u32) -> Topology {
        assert!(shards.is_power_of_two() && cores > 0);
        Topology { shards, cores }
    }

    /// Virtual shards.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// Cores.
    pub fn cores(&self) -> usize {
        self.cores as usize
    }

    /// The virtual shard of a block: the low bits of its hash.
    pub fn shard_of(&self, hash: BlockHash) -> u32 {
        (hash.0 as u32) & (self.shards - 1)
    }

    /// The core that runs a virtual shard.
    pub fn core_of_shard(&self, shard: u32) -> usize {
        (shard % self.cores) as usize
    }

    /// The core that owns a block.
    pub fn core_of(&self, hash: BlockHash) -> usize {
        self.core_of_shard(self.shard_of(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, key: &str, number: u64) -> BlockId {
        let volume = Volume {
            name: name.into(),
            store_number: 0,
            store_identity: 0,
            block_bytes: BLOCK_BYTES_MIN,
            freshness: Freshness::Immutable,
            absence_ttl: std::time::Duration::ZERO,
            writeback: false,
            versions: Default::default(),
        };
        BlockId {
            volume: Arc::new(volume),
            key: key.into(),
            number,
        }
    }

    #[test]
    fn the_hash_is_part_of_the_format_and_does_not_change() {
        // As the reference implementation computes it: xxh3_128_hexdigest(b"demo/a/b").
        assert_eq!(
            block("demo", "a/b", 0).hash().0,
            0xf4b5_1565_6ddd_c464_1736_2cfc_86f6_dc98
        );
        assert_ne!(
            block("demo", "a/b", 0).hash(),
            block("demo", "a/b", 1).hash()
        );
        assert_ne!(
            block("demo", "a/b", 0).hash(),
            block("demo", "a/c", 0).hash()
        );
    }

    #[test]
    fn every_shard_has_one_core_whatever_their_number() {
        for cores in 1..6 {
            let topology = Topology::new(16, cores);
            for shard in 0..16 {
                assert!(topology.core_of_shard(shard) < topology.cores());
            }
        }
    }
}
