//! Makes a large cache folder as the engine leaves it, for `bench/restart`: headers, footers and open
//! segments are real, payloads are holes.
//!
//! Everything on disk comes from the engine's own layout and encoding. With `--crash`, one segment
//! of each clean queue per shard has no footer, as after `kill -9`; without it every segment is
//! sealed, as after an orderly stop. Prints one line of JSON.
//!
//! ```text
//! restart_folder FOLDER QUOTA BLOCK_BYTES RECORDS FILES_MAX [--crash]
//! ```
//!
//! What it never does: touch a folder that holds anything, or write into a payload.

use forebay_io::buffer::{PAGE, Pool};
use forebay_io::disk::ring::RingDisk;
use forebay_io::rt::{CoreBuilder, GlommioRuntime};
use forebay_shards::format::{
    self, FooterEntry, Place, RecordHeader, RecordKind, RecordState, SegmentPurpose,
};
use forebay_shards::key::{BlockId, Freshness, Topology, Volume};
use forebay_shards::segment::segment_name;
use forebay_shards::superblock::{self, FolderLimits, Superblock};
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Sealed segments of fewer records than this have their record headers too: nothing reads them at
/// a start, and those of millions of records would be tens of gigabytes.
const SEALED_HEADERS_MAX: u64 = 300_000;

/// One segment in this many is of the main queue.
const MAIN_EVERY: u32 = 4;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| -> Result<u64, Failure> {
        let word = words
            .get(at)
            .ok_or("see the head of this file for the arguments")?;
        Ok(word.parse::<u64>()?)
    };
    let folder = PathBuf::from(words.first().ok_or("the folder is missing")?);
    let (quota_bytes, block_bytes) = (number(1)?, number(2)?);
    let (records_max, files_max) = (number(3)?, number(4)?);
    if std::fs::read_dir(&folder)?.next().is_some() {
        return Err(format!("{} is not empty", folder.display()).into());
    }
    let limits = FolderLimits {
        quota_bytes,
        segment_files_max: files_max,
    };
    let (superblock, segments_max) = format_folder(&folder, limits)?;
    let mut maker = Maker {
        folder,
        superblock,
        segments_max,
        is_crash: words.iter().any(|word| word == "--crash"),
        volume: Arc::new(Volume {
            name: "bench".into(),
            store_number: 0,
            store_identity: 7,
            block_bytes,
            freshness: Freshness::Immutable,
            absence_ttl: std::time::Duration::ZERO,
            writeback: false,
            versions: Default::default(),
        }),
        records_max,
        next_key: 0,
        records: 0,
        segments: 0,
        segments_open: 0,
    };
    maker.make()?;
    if maker.records < records_max {
        return Err(format!(
            "only {} records have room in {quota_bytes} bytes",
            maker.records
        )
        .into());
    }
    println!("{}", maker.report());
    Ok(())
}

/// Formats the folder as the server would.
fn format_folder(folder: &Path, limits: FolderLimits) -> Result<(Superblock, u32), Failure> {
    let path = folder.to_owned();
    let executor = CoreBuilder {
        index: 0,
        cpu: None,
    };
    let formatted = executor.spawn(move || async move {
        let disk = RingDisk::open_folder(&path)?;
        let runtime = GlommioRuntime::current(Instant::now());
        let pool = Pool::new(1 << 20);
        Ok::<_, Failure>(superblock::open_or_format(&runtime, &disk, &pool, limits).await?)
    })?;
    let superblock = formatted.join()??;
    let segments_max = superblock.segments_per_shard(limits.quota_bytes)?;
    Ok((superblock, segments_max))
}

/// The folder as far as it is made.
struct Maker {
    folder: PathBuf,
    superblock: Superblock,
    segments_max: u32,
    is_crash: bool,
    volume: Arc<Volume>,
    records_max: u64,
    next_key: u64,
    records: u64,
    segments: u64,
    segments_open: u64,
}

impl Maker {
    /// Fills every shard but for the segments that the engine keeps free.
    fn make(&mut self) -> Result<(), Failure> {
        let shards = self.superblock.shards;
        let topology = Topology::new(shards, 1);
        let per_shard = self.records_max.div_ceil(u64::from(shards)) as usize;
        // Keys go where their hashes say; each shard's wait until all are there.
        let mut blocks: Vec<Vec<BlockId>> = vec![Vec::with_capacity(per_shard); shards as usize];
        for _ in 0..self.records_max {
            let id = BlockId {
                volume: self.volume.clone(),
                key: format!("restart/{}", self.next_key).into(),
                number: 0,
            };
            self.next_key += 1;
            blocks[topology.shard_of(id.hash()) as usize].push(id);
        }
        for (shard, ids) in blocks.into_iter().enumerate() {
            self.make_shard(shard as u32, &ids)?;
        }
        Ok(())
    }

    fn make_shard(&mut self, shard: u32, ids: &[BlockId]) -> Result<(), Failure> {
        let record_bytes = format::record_bytes(self.volume.block_bytes as u32);
        let per_segment = (1..)
            .take_while(|count| {
                let used =
                    PAGE as u64 + *count as u64 * record_bytes + format::footer_bytes(*count);
                used <= self.superblock.segment_bytes
            })
            .last()
            .ok_or("a segment holds no such block")?;
        // Chance may give a shard more than it holds, which `main` then says.
        let groups: Vec<&[BlockId]> = ids
            .chunks(per_segment)
            .take(self.segments_max as usize)
            .collect();
        let mut sequence = 1;
        for (number, group) in groups.iter().enumerate() {
            let number = number as u32;
            // The last of each queue were open when the program ended.
            let is_open = self.is_crash && number as usize + 2 >= groups.len();
            let is_main = number.is_multiple_of(MAIN_EVERY) || number as usize + 1 == groups.len();
            let purpose = match is_main {
                true => SegmentPurpose::Main,
                false => SegmentPurpose::Probation,
            };
            self.make_segment(shard, number, purpose, group, sequence, is_open)?;
            sequence += group.len() as u64;
        }
        Ok(())
    }

    fn make_segment(
        &mut self,
        shard: u32,
        number: u32,
        purpose: SegmentPurpose,
        ids: &[BlockId],
        first_sequence: u64,
        is_open: bool,
    ) -> Result<(), Failure> {
        let file = self.create(&segment_name(shard, number))?;
        let mut place = Place {
            folder: self.superblock.folder,
            shard,
            segment: number,
            incarnation: u64::from(number) + 1,
            offset: 0,
        };
        let mut page = vec![0; PAGE];
        format::encode_segment_header(&mut page, &place, purpose, &[]);
        file.write_all_at(&page, 0)?;
        let has_headers = is_open || self.records_max <= SEALED_HEADERS_MAX;
        place.offset = PAGE as u64;
        let mut entries = Vec::with_capacity(ids.len());
        for (id, sequence) in ids.iter().zip(first_sequence..) {
            let header = self.header(id, sequence);
            if has_headers {
                header.encode(&mut page, &place)?;
                file.write_all_at(&page, place.offset)?;
            }
            entries.push(FooterEntry {
                hash: header.hash,
                sequence,
                page: (place.offset / PAGE as u64) as u32,
                payload_length: header.payload_length,
                kind: header.kind,
                state: header.state,
            });
            place.offset += header.record_bytes();
        }
        if !is_open {
            place.offset = self.superblock.segment_bytes - format::footer_bytes(entries.len());
            let footer = format::encode_footer(&entries, &place, purpose);
            file.write_all_at(&footer, place.offset)?;
        }
        self.records += entries.len() as u64;
        self.segments += 1;
        self.segments_open += u64::from(is_open);
        Ok(())
    }

    fn create(&self, name: &str) -> Result<File, Failure> {
        let mut options = File::options();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.folder.join(name))?;
        file.set_len(self.superblock.segment_bytes)?;
        Ok(file)
    }

    fn header(&self, id: &BlockId, sequence: u64) -> RecordHeader {
        let chunks = (self.volume.block_bytes as usize).div_ceil(format::CHUNK_BYTES);
        RecordHeader {
            kind: RecordKind::Block,
            state: RecordState::Clean,
            sequence,
            payload_length: self.volume.block_bytes as u32,
            chunk_crcs: vec![0; chunks],
            ..RecordHeader::tombstone(id.hash(), id, 0)
        }
    }

    fn report(&self) -> String {
        format!(
            "{{\"records\": {}, \"segments\": {}, \"segments_without_footer\": {}, \"segment_bytes\": {}, \
             \"shards\": {}}}",
            self.records,
            self.segments,
            self.segments_open,
            self.superblock.segment_bytes,
            self.superblock.shards
        )
    }
}
