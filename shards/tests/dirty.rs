//! Dirty records in one shard that is far too small: none is ever evicted or dropped (P4), each
//! survives the death of the process (P2), and the quota holds (P5), whatever else is written.
//!
//! Nobody uploads anything here: the test itself says when the store has a record.

use forebay_io::buffer::Pool;
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;
use forebay_io::sim::{SimDisk, SimExecutor, SimRuntime};
use forebay_shards::evict::WRITE_BUDGET_PERCENT;
use forebay_shards::format::{PayloadChecksums, RecordHeader, RecordKind, RecordState};
use forebay_shards::key::BlockHash;
use forebay_shards::log::ShardLayout;
use forebay_shards::recover::recover;
use forebay_shards::segment::parse_segment_name;
use forebay_shards::shard::{Housekeeping, Shard, ShardParts};
use std::collections::BTreeMap;

const LAYOUT: ShardLayout = ShardLayout {
    folder: *b"a dirty folder..",
    shard: 0,
    segment_bytes: 128 << 10,
    segments_max: 12,
};

/// Blocks written; about three times what fits.
const BLOCKS: u64 = 300;

/// Dirty blocks at a time: few, for each may pin a segment of a dozen records.
const DIRTY_MAX: usize = 16;

type SimShard = Shard<SimRuntime, SimDisk>;

fn payload(block: u64, version: u64) -> Vec<u8> {
    let length = 500 + (block * 7919 + version * 104_729) as usize % 15_000;
    let byte = |i: usize| (i as u64 * 31 + block * 7 + version) as u8;
    (0..length).map(byte).collect()
}

async fn open(runtime: &SimRuntime, disk: &SimDisk) -> SimShard {
    let files = disk.list().await.expect("a listing");
    let names = files.iter().map(|file| file.name.as_str());
    let numbers: Vec<u32> = names
        .filter_map(|name| parse_segment_name(name).map(|(_, segment)| segment))
        .collect();
    let pool = Pool::new(64 << 20);
    let (found, _) = recover(disk, &pool, &LAYOUT, &numbers).await;
    let parts = ShardParts {
        runtime: runtime.clone(),
        disk: disk.clone(),
        blocks: pool,
        housekeeping: Housekeeping::new(LAYOUT.segment_bytes),
        layout: LAYOUT,
        write_budget_percent: WRITE_BUDGET_PERCENT,
        marks: None,
        sync: false,
    };
    Shard::new(parts, found)
}

async fn write(
    shard: &SimShard,
    pool: &Pool,
    block: u64,
    version: u64,
    state: RecordState,
) -> bool {
    let bytes = payload(block, version);
    let mut sums = PayloadChecksums::default();
    sums.update(&bytes);
    let (payload_crc64, chunk_crcs) = sums.finish();
    let header = RecordHeader {
        kind: RecordKind::Block,
        state,
        payload_length: bytes.len() as u32,
        payload_crc64,
        chunk_crcs,
        ..RecordHeader::grave(BlockHash(block.into()))
    };
    let mut body = pool.take(bytes.len()).await;
    body.append(&bytes);
    shard.append(header, body, || true).await.is_ok()
}

async fn check(shard: &SimShard, dirty: &BTreeMap<u64, u64>, seed: u64) {
    for (block, version) in dirty {
        let hash = BlockHash((*block).into());
        let location = shard.find(hash);
        let location =
            location.unwrap_or_else(|| panic!("seed {seed}: dirty block {block} is gone"));
        assert!(shard.is_dirty(hash), "seed {seed}: block {block} is dirty");
        let expected = payload(*block, *version);
        let room = shard.read_room(location, 0..expected.len()).await;
        let found = shard.read(hash, location, 0..expected.len(), room).await;
        let bytes = found.map(|record| record.wanted.to_vec());
        assert!(
            bytes.is_ok_and(|bytes| bytes == expected),
            "seed {seed}: dirty block {block} has its bytes"
        );
    }
}

/// One life of the shard: random writes until it ends, without an orderly stop.
async fn live(
    runtime: SimRuntime,
    disk: SimDisk,
    mut dirty: BTreeMap<u64, u64>,
    seed: u64,
) -> BTreeMap<u64, u64> {
    let shard = open(&runtime, &disk).await;
    // What was uploaded in a former life, as the ledger will say.
    for (hash, location) in shard.blocks() {
        if !dirty.contains_key(&(hash.0 as u64)) {
            shard.mark_clean(hash, location);
        }
    }
    check(&shard, &dirty, seed).await;
    let pool = Pool::new(1 << 20);
    let mut cached = 0;
    for step in 0..300 {
        let block = runtime.random() % BLOCKS;
        let hash = BlockHash(block.into());
        let version = seed * 1000 + step;
        match runtime.random() % 10 {
            0..3 if dirty.len() < DIRTY_MAX || dirty.contains_key(&block) => {
                if write(&shard, &pool, block, version, RecordState::Dirty).await {
                    dirty.insert(block, version);
                }
            }
            3..5 => {
                if let (Some(location), true) = (shard.find(hash), dirty.contains_key(&block)) {
                    shard.mark_clean(hash, location);
                    dirty.remove(&block);
                }
            }
            // A block of which the only copy is here is never fetched over.
            _ if !dirty.contains_key(&block) => {
                cached += u32::from(write(&shard, &pool, block, version, RecordState::Clean).await);
            }
            _ => shard.touch(hash, usize::MAX),
        }
        assert!(shard.log().used_bytes() <= 12 * LAYOUT.segment_bytes);
        if step % 50 == 0 {
            check(&shard, &dirty, seed).await;
        }
    }
    check(&shard, &dirty, seed).await;
    assert!(
        cached > 20,
        "seed {seed}: clean blocks are still cached: {cached}"
    );
    dirty
}

#[test]
fn no_dirty_record_is_ever_lost() {
    for seed in 0..15 {
        let disk = SimDisk::new(0);
        let mut dirty = BTreeMap::new();
        for life in 0..4 {
            let mut executor = SimExecutor::new(seed * 10 + life);
            let runtime = executor.runtime();
            disk.attach(runtime.clone());
            dirty = executor.block_on(live(runtime, disk.clone(), dirty, seed * 10 + life));
            drop(executor);
        }
        assert!(disk.used_bytes() <= 12 * LAYOUT.segment_bytes);
    }
}
