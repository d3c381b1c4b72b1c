//! One trace through LRU and through real shards of the same size.
//!
//! The shards are the product's, on the simulated disk: every miss appends a record, every hit is
//! read back, verified and compared. This is the only file that knows how a shard is driven.
//!
//! Both caches hold the same number of records when full: LRU spends its whole quota on them and
//! wastes nothing, while the shards pay for open segments, spare ones and stale records out of
//! theirs. Segments are cut so that their own header and footer, a few pages whatever the segment's
//! size, weigh on neither side: records are of two pages here, and of 65 to 2,049 in use. Tombstones
//! count as bytes written, and weigh half a record here: that errs against us.

use super::trace::Request;
use forebay_io::buffer::Pool;
use forebay_io::runtime::Runtime;
use forebay_io::sim::{SimDisk, SimExecutor, SimRuntime};
use forebay_io::store::ObjectMeta;
use forebay_shards::format::{
    PayloadChecksums, RecordHeader, RecordKind, RecordState, footer_bytes, record_bytes,
};
use forebay_shards::key::{BlockHash, BlockId, Freshness, Topology, Volume};
use forebay_shards::log::ShardLayout;
use forebay_shards::recover::recover;
use forebay_shards::shard::{Housekeeping, Shard, ShardParts};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Payload of every record: one page, of which the first bytes say what it is.
const PAYLOAD_BYTES: usize = 4096;

/// Room for the few blocks that are on their way at a time.
const POOL_BYTES: usize = 8 << 20;

/// How large the cache is and how it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Virtual shards, a power of two.
    pub shards: u32,
    /// Segments that each may have.
    pub segments: u32,
    /// Records that fit a segment.
    pub segment_records: u32,
}

impl Geometry {
    /// Records that all segments can hold.
    pub fn cache_records(&self) -> usize {
        (self.shards * self.segments * self.segment_records) as usize
    }

    fn layout(&self, shard: u32) -> ShardLayout {
        let records = self.segment_records as usize;
        let records_bytes = records as u64 * record_bytes(PAYLOAD_BYTES as u32);
        ShardLayout {
            folder: *b"eviction contest",
            shard,
            segment_bytes: SEGMENT_HEADER_BYTES + records_bytes + footer_bytes(records),
            segments_max: self.segments,
        }
    }
}

/// A segment begins with one page of its own.
const SEGMENT_HEADER_BYTES: u64 = forebay_io::buffer::PAGE as u64;

/// Share of the measured reads that hit when LRU has room for `cache_records`.
pub fn lru_hit_ratio(requests: &[Request], cache_records: usize) -> f64 {
    let capacity = NonZeroUsize::new(cache_records).expect("a cache holds something");
    let mut cache = LruCache::new(capacity);
    let mut tally = Tally::default();
    for request in requests {
        let is_hit = cache.get(&request.key).is_some();
        tally.count(request, is_hit);
        if !is_hit {
            cache.put(request.key, ());
        }
    }
    tally.hit_ratio()
}

/// What real shards made of a trace.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Share of the measured reads that hit.
    pub hit_ratio: f64,
    /// Bytes of records written for each byte admitted, while it was measured.
    pub write_amplification: f64,
}

/// Runs a trace through shards that may re-append `write_budget_percent` bytes for 100 admitted.
///
/// # Panics
/// If a shard fails or serves other bytes than were written last.
pub fn run_shards(
    requests: Vec<Request>,
    geometry: Geometry,
    write_budget_percent: u32,
    seed: u64,
) -> Outcome {
    let mut executor = SimExecutor::new(seed);
    let runtime = executor.runtime();
    executor.block_on(async move {
        let cache = Cache::open(runtime, geometry, write_budget_percent).await;
        cache.run(&requests).await
    })
}

/// Reads that count, and those of them that hit.
#[derive(Default)]
struct Tally {
    reads: u64,
    hits: u64,
}

impl Tally {
    fn count(&mut self, request: &Request, is_hit: bool) {
        if request.is_measured && !request.is_write {
            self.reads += 1;
            self.hits += u64::from(is_hit);
        }
    }

    fn hit_ratio(&self) -> f64 {
        self.hits as f64 / self.reads as f64
    }
}

/// All shards of one cache.
struct Cache {
    runtime: SimRuntime,
    topology: Topology,
    shards: Vec<Shard<SimRuntime, SimDisk>>,
    pool: Pool,
    volume: Arc<Volume>,
}

impl Cache {
    async fn open(runtime: SimRuntime, geometry: Geometry, write_budget_percent: u32) -> Cache {
        // No runtime is attached to the disk: its operations take no time.
        let disk = SimDisk::new(0);
        let pool = Pool::new(POOL_BYTES);
        let mut shards = Vec::new();
        for number in 0..geometry.shards {
            let layout = geometry.layout(number);
            let (nothing, _) = recover(&disk, &pool, &layout, &[]).await;
            let parts = ShardParts {
                runtime: runtime.clone(),
                disk: disk.clone(),
                blocks: pool.clone(),
                housekeeping: Housekeeping::new(layout.segment_bytes),
                layout,
                write_budget_percent,
                marks: None,
                sync: false,
            };
            shards.push(Shard::new(parts, nothing));
        }
        Cache {
            runtime,
            topology: Topology::new(geometry.shards, 1),
            shards,
            pool,
            volume: Arc::new(Volume {
                name: "trace".into(),
                store_number: 0,
                store_identity: 1,
                block_bytes: PAYLOAD_BYTES as u64,
                freshness: Freshness::Immutable,
                absence_ttl: std::time::Duration::ZERO,
                writeback: false,
                versions: Default::default(),
            }),
        }
    }

    async fn run(&self, requests: &[Request]) -> Outcome {
        let mut tally = Tally::default();
        let mut versions = vec![
            0;
            requests
                .iter()
                .map(|r| r.key as usize + 1)
                .max()
                .unwrap_or(0)
        ];
        let mut before = None;
        for request in requests {
            if request.is_measured && before.is_none() {
                before = Some(self.bytes());
            }
            let version: &mut u32 = &mut versions[request.key as usize];
            *version += u32::from(request.is_write);
            let is_hit = !request.is_write && self.read(request.key, *version).await;
            tally.count(request, is_hit);
            if !is_hit {
                self.append(request.key, *version).await;
            }
        }
        let (admitted_before, written_before) = before.unwrap_or_default();
        let (admitted, written) = self.bytes();
        Outcome {
            hit_ratio: tally.hit_ratio(),
            write_amplification: (written - written_before) as f64
                / (admitted - admitted_before).max(1) as f64,
        }
    }

    /// Bytes admitted, and bytes written, by all shards so far.
    fn bytes(&self) -> (u64, u64) {
        let stats = self.shards.iter().map(Shard::stats);
        stats.fold((0, 0), |(admitted, written), stats| {
            (
                admitted + stats.admitted_bytes.get(),
                written + stats.written_bytes.get(),
            )
        })
    }

    fn block(&self, key: u32) -> BlockId {
        BlockId {
            volume: self.volume.clone(),
            key: format!("{key}").into(),
            number: 0,
        }
    }

    fn shard_of(&self, hash: BlockHash) -> &Shard<SimRuntime, SimDisk> {
        &self.shards[self.topology.shard_of(hash) as usize]
    }

    /// Whether the block is there; a block that is must be its newest version.
    async fn read(&self, key: u32, version: u32) -> bool {
        let hash = self.block(key).hash();
        let shard = self.shard_of(hash);
        let Some(location) = shard.find(hash) else {
            return false;
        };
        let room = shard.read_room(location, 0..PAYLOAD_BYTES).await;
        let found = shard.read(hash, location, 0..PAYLOAD_BYTES, room).await;
        let found = found.unwrap_or_else(|e| panic!("key {key}: {e}"));
        let bytes = found.wanted.into_bytes();
        assert_eq!(bytes[..8], label(key, version), "wrong bytes for key {key}");
        shard.touch(hash, PAYLOAD_BYTES);
        true
    }

    async fn append(&self, key: u32, version: u32) {
        let id = self.block(key);
        let mut body = self.pool.take(PAYLOAD_BYTES).await;
        body.append(&label(key, version));
        body.append(&[0; PAYLOAD_BYTES - 8]);
        let mut checksums = PayloadChecksums::default();
        checksums.update(body.body());
        let (payload_crc64, chunk_crcs) = checksums.finish();
        let header = RecordHeader {
            kind: RecordKind::Block,
            state: RecordState::Clean,
            sequence: 0,
            hash: id.hash(),
            store_identity: id.volume.store_identity,
            volume: id.volume.name.clone(),
            key: id.key.to_string(),
            block_number: id.number,
            block_bytes: PAYLOAD_BYTES as u64,
            payload_length: PAYLOAD_BYTES as u32,
            payload_crc64,
            chunk_crcs,
            validated_at: self.runtime.unix_seconds(),
            meta: ObjectMeta {
                size: PAYLOAD_BYTES as u64,
                ..ObjectMeta::default()
            },
            store_etag: String::new(),
            on_its_way: String::new(),
        };
        let shard = self.shard_of(header.hash);
        let appended = shard.append(header, body, || true).await.map(drop);
        appended.unwrap_or_else(|e| panic!("key {key}: {e}"));
        // Making room in the background gets its turn, as it does between real requests.
        self.runtime.yield_now().await;
    }
}

/// What a payload begins with.
fn label(key: u32, version: u32) -> [u8; 8] {
    (u64::from(key) << 32 | u64::from(version)).to_le_bytes()
}
