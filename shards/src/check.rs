//! What is wrong with a cache folder, told from its bytes alone.
//!
//! This file owns the words for damage and what is known only of a folder as a whole: its
//! superblock, its file names, and which of several records of a block counts. [`segment`] reads one
//! segment. Nothing here writes, opens a file or stops at the first defect, and nothing here
//! decides what the cache serves: it follows [`crate::recover`], which does.

pub mod segment;

use crate::format::{NotOurs, RecordKind, RecordState, SegmentPurpose};
use crate::key::BlockHash;
use crate::segment::{parse_segment_name, segment_name};
use crate::superblock::{
    FolderError, LOCK_NAME, STORES_NAME, STORES_NEW_NAME, SUPERBLOCK_NAME, Superblock,
};
use forebay_io::buffer::PAGE;
use forebay_io::disk::FileEntry;
use std::fmt;

pub use segment::{SegmentReport, SegmentSource, SegmentState, check_segment};

/// A folder that the file system itself makes; it belongs to nobody.
const FILE_SYSTEM_FOLDER: &str = "lost+found";

/// Something that is not as the program wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect {
    /// The file's name in the folder.
    pub file: String,
    /// Where in the file, bytes.
    pub offset: u64,
    /// What is wrong there.
    pub fault: Fault,
    /// What that means.
    pub meaning: Meaning,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Defect {
            file,
            offset,
            fault,
            meaning,
        } = self;
        write!(f, "{file} at {offset}: {fault}; {meaning}")
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A file that is none of the folder's.
    #[error("not a file of this cache folder")]
    ForeignFile,
    /// A file that cannot be opened.
    #[error("the file cannot be opened: {0}")]
    Unopened(String),
    /// A file that is longer or shorter than it was made.
    #[error("the file has {found} bytes instead of {expected}")]
    FileSize {
        /// Its length.
        found: u64,
        /// What it was made with.
        expected: u64,
    },
    /// The disk does not give the bytes.
    #[error("{bytes} bytes cannot be read: {error}")]
    Unreadable {
        /// How many.
        bytes: u64,
        /// What the system says.
        error: String,
    },
    /// One copy of the superblock.
    #[error("copy {number} of the superblock is damaged")]
    SuperblockCopy {
        /// Counted from 1.
        number: usize,
    },
    /// Two valid copies that differ.
    #[error("the two copies of the superblock are both valid and differ")]
    SuperblocksDiffer,
    /// A segment's first page.
    #[error("segment header: {0}")]
    SegmentHeader(NotOurs),
    /// A segment's first page is empty, but records of a life follow.
    #[error("segment header: it is empty although records follow")]
    SegmentHeaderMissing,
    /// A sealed segment's last page.
    #[error("footer, last page: {0}")]
    Trailer(NotOurs),
    /// The list of records that the last page describes.
    #[error("footer, list of records: {0}")]
    FooterEntries(NotOurs),
    /// The list itself cannot be.
    #[error("footer, entry {entry}: {problem}")]
    FooterEntry {
        /// Position in the list.
        entry: usize,
        /// What cannot be.
        problem: &'static str,
    },
    /// A record's header page.
    #[error("record header: {0}")]
    RecordHeader(NotOurs),
    /// A record's header page is valid and yet impossible.
    #[error("record of {name}: {problem}")]
    RecordField {
        /// The block, in words.
        name: String,
        /// What cannot be.
        problem: &'static str,
    },
    /// A valid record that the footer does not list.
    #[error("record of {name}: the footer does not list it")]
    Unlisted {
        /// The block, in words.
        name: String,
    },
    /// Chunks that do not match their checksums.
    #[error(
        "record of {name}: {damaged} of {chunks} chunks do not match their CRC32C, the first is chunk {first}"
    )]
    Chunks {
        /// The block, in words.
        name: String,
        /// How many do not match.
        damaged: usize,
        /// How many there are.
        chunks: usize,
        /// The first that does not.
        first: usize,
    },
    /// Every chunk matches but the whole does not.
    #[error(
        "record of {name}: the payload does not match its CRC64-NVME although all its chunks match"
    )]
    Whole {
        /// The block, in words.
        name: String,
    },
    /// Bytes between a payload and the end of its last page.
    #[error("record of {name}: the padding behind its payload is not zero")]
    Padding {
        /// The block, in words.
        name: String,
    },
    /// A valid record inside another.
    #[error("record of {name}: it lies inside the record of {outer}")]
    Overlap {
        /// The block, in words.
        name: String,
        /// The block around it.
        outer: String,
    },
    /// Two records of one block and one sequence with different content.
    #[error(
        "the record and the one in {other_file} at {other_offset} have one block and one sequence but not one content"
    )]
    Twins {
        /// The other record's file.
        other_file: String,
        /// Its offset.
        other_offset: u64,
    },
}

/// What a defect means for whoever runs the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The block is not served from here.
    FetchedAgain,
    /// The record may be the only copy of what was acknowledged.
    AcknowledgedLost,
    /// All blocks of the segment are not served from here.
    SegmentFetchedAgain,
    /// A list is lost that the next start makes anew.
    Scanned,
    /// Which block it was cannot be told, so neither can what it replaced.
    StoreAsked,
    /// Nothing relies on it.
    Nothing,
    /// The other copy is used.
    OtherCopy,
    /// Only a person can tell.
    Ambiguous,
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Meaning::FetchedAgain => "the block will be fetched again from the store",
            Meaning::AcknowledgedLost => {
                "the store may not have had the block yet: an acknowledged write may be lost"
            }
            Meaning::SegmentFetchedAgain => {
                "what cannot be read of its blocks will be fetched again from the store"
            }
            Meaning::Scanned => {
                "the segment will be scanned at the next start and no block is lost by this"
            }
            Meaning::StoreAsked => {
                "it may have replaced another record, so the store will be asked before blocks of \
                 this shard are served"
            }
            Meaning::Nothing => "nothing is lost by this",
            Meaning::OtherCopy => "the other copy is used and no block is lost by this",
            Meaning::Ambiguous => "which of the two is served cannot be told",
        })
    }
}

impl Meaning {
    /// What it means when a record of this state cannot be served.
    pub fn of_loss(state: RecordState) -> Meaning {
        match state {
            RecordState::Clean => Meaning::FetchedAgain,
            RecordState::Dirty | RecordState::Conflict => Meaning::AcknowledgedLost,
        }
    }
}

/// Page of a grave: it stands in the segment's header, where no record is.
const GRAVE_PAGE: u32 = 0;

/// What a check keeps of a record, or of a grave in a segment's header, until its shard is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordSummary {
    /// The block.
    pub hash: BlockHash,
    /// The record's sequence.
    pub sequence: u64,
    /// CRC64-NVME that its header gives for the payload; nothing when the header is damaged.
    pub payload_crc64: Option<u64>,
    /// Segment in the shard.
    pub segment: u32,
    /// Page of the segment at which it starts.
    pub page: u32,
    /// Payload bytes.
    pub payload_length: u32,
    /// What the record says.
    pub kind: RecordKind,
    /// Whether the store had it when it was written.
    pub state: RecordState,
}

/// Counts of a checked folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segments with a valid footer.
    pub segments_sealed: u64,
    /// Segments with records but no footer.
    pub segments_open: u64,
    /// Segments that hold nothing.
    pub segments_empty: u64,
    /// Segments with records, sealed or open, that hold new clean blocks.
    pub segments_probation: u64,
    /// Those that hold clean blocks which were wanted again.
    pub segments_main: u64,
    /// Those that hold blocks which were dirty when they were written.
    pub segments_dirty: u64,
    /// Records that the next start puts into the index.
    pub records_live: u64,
    /// Those of them that were dirty when they were written; the ledger may know that some have
    /// been uploaded since.
    pub records_dirty: u64,
    /// Records of blocks of which there is a newer record, or the same once more.
    pub records_replaced: u64,
    /// Records and graves that say that a block is deleted, replaced ones apart.
    pub tombstones: u64,
    /// Payload bytes of live records.
    pub live_bytes: u64,
    /// Payload bytes of replaced records.
    pub replaced_bytes: u64,
    /// Defects.
    pub defects: u64,
}

impl Summary {
    /// Adds another part's counts.
    pub fn add(&mut self, other: &Summary) {
        self.segments_sealed += other.segments_sealed;
        self.segments_open += other.segments_open;
        self.segments_empty += other.segments_empty;
        self.segments_probation += other.segments_probation;
        self.segments_main += other.segments_main;
        self.segments_dirty += other.segments_dirty;
        self.records_live += other.records_live;
        self.records_dirty += other.records_dirty;
        self.records_replaced += other.records_replaced;
        self.tombstones += other.tombstones;
        self.live_bytes += other.live_bytes;
        self.replaced_bytes += other.replaced_bytes;
        self.defects += other.defects;
    }

    /// Counts a segment.
    pub fn count_segment(&mut self, report: &SegmentReport) {
        match report.state {
            SegmentState::Empty => self.segments_empty += 1,
            SegmentState::Open => self.segments_open += 1,
            SegmentState::Sealed => self.segments_sealed += 1,
        }
        match report.purpose {
            Some(SegmentPurpose::Probation) => self.segments_probation += 1,
            Some(SegmentPurpose::Main) => self.segments_main += 1,
            Some(SegmentPurpose::Dirty) => self.segments_dirty += 1,
            Some(SegmentPurpose::Free) | None => {}
        }
    }
}

/// Reads both copies of the superblock from its file's content.
///
/// # Errors
/// If there is no valid copy: then nothing of the folder can be checked.
pub fn check_superblock(content: &[u8]) -> Result<(Superblock, Vec<Defect>), FolderError> {
    let mut valid: Option<Superblock> = None;
    let mut defects = Vec::new();
    let mut verdict = FolderError::Damaged;
    let defect = |offset: usize, fault, meaning| Defect {
        file: SUPERBLOCK_NAME.to_owned(),
        offset: offset as u64,
        fault,
        meaning,
    };
    let expected = 2 * PAGE;
    if content.len() != expected {
        let fault = Fault::FileSize {
            found: content.len() as u64,
            expected: expected as u64,
        };
        defects.push(defect(
            content.len().min(expected),
            fault,
            Meaning::OtherCopy,
        ));
    }
    for (index, copy) in content.chunks_exact(PAGE).take(2).enumerate() {
        match (Superblock::decode(copy), valid) {
            (Ok(found), Some(first)) if found != first => {
                defects.push(defect(
                    index * PAGE,
                    Fault::SuperblocksDiffer,
                    Meaning::Ambiguous,
                ));
            }
            (Ok(found), _) => valid = Some(found),
            (Err(error), _) => {
                if let FolderError::Version { .. } = error {
                    verdict = error;
                }
                let fault = Fault::SuperblockCopy { number: index + 1 };
                defects.push(defect(index * PAGE, fault, Meaning::OtherCopy));
            }
        }
    }
    match valid {
        Some(superblock) => Ok((superblock, defects)),
        None => Err(verdict),
    }
}

/// A folder's segment files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Shard and segment of each, in order, with the file's length.
    pub segments: Vec<(u32, u32, u64)>,
    /// Names that do not belong there.
    pub defects: Vec<Defect>,
}

/// What may stand in a cache folder beside segments.
const KNOWN_NAMES: [&str; 5] = [
    SUPERBLOCK_NAME,
    LOCK_NAME,
    STORES_NAME,
    STORES_NEW_NAME,
    FILE_SYSTEM_FOLDER,
];

/// Sorts the folder's files into segments and others.
pub fn check_names(entries: &[FileEntry], superblock: &Superblock) -> Listing {
    let mut listing = Listing::default();
    for entry in entries {
        match parse_segment_name(&entry.name) {
            Some((shard, segment)) if shard < superblock.shards => {
                listing.segments.push((shard, segment, entry.size));
            }
            _ if KNOWN_NAMES.contains(&entry.name.as_str()) => {}
            _ => listing.defects.push(Defect {
                file: entry.name.clone(),
                offset: 0,
                fault: Fault::ForeignFile,
                meaning: Meaning::Nothing,
            }),
        }
    }
    listing.segments.sort_unstable();
    listing.defects.sort_by(|a, b| a.file.cmp(&b.file));
    listing
}

/// Ranks all records of one shard as the next start will: of each block, the highest sequence.
/// Counts them, and finds pairs of which neither outranks the other.
pub fn rank_shard(shard: u32, mut records: Vec<RecordSummary>) -> (Summary, Vec<Defect>) {
    let mut summary = Summary::default();
    let mut defects = Vec::new();
    records.sort_unstable_by_key(|record| {
        let newest_first = u64::MAX - record.sequence;
        (record.hash, newest_first, record.segment, record.page)
    });
    for block in records.chunk_by(|one, other| one.hash == other.hash) {
        for (rank, record) in block.iter().enumerate() {
            let bytes = u64::from(record.payload_length);
            match (rank, record.kind) {
                (0, RecordKind::Block) => {
                    summary.records_live += 1;
                    summary.live_bytes += bytes;
                    summary.records_dirty += u64::from(record.state.is_dirty());
                }
                (0, RecordKind::Tombstone) => summary.tombstones += 1,
                _ if record.page == GRAVE_PAGE => {}
                _ => {
                    summary.records_replaced += 1;
                    summary.replaced_bytes += bytes;
                }
            }
        }
        for pair in block.windows(2) {
            if pair[0].sequence == pair[1].sequence && !same_content(&pair[0], &pair[1]) {
                defects.push(Defect {
                    file: segment_name(shard, pair[1].segment),
                    offset: u64::from(pair[1].page) * PAGE as u64,
                    fault: Fault::Twins {
                        other_file: segment_name(shard, pair[0].segment),
                        other_offset: u64::from(pair[0].page) * PAGE as u64,
                    },
                    meaning: Meaning::Ambiguous,
                });
            }
        }
    }
    summary.defects = defects.len() as u64;
    (summary, defects)
}

/// Whether two records of one sequence may both be there: one is a copy of the other, clean by now
/// perhaps, or a grave that was made of it. A record whose header is damaged has a
/// defect of its own and is not judged twice.
fn same_content(one: &RecordSummary, other: &RecordSummary) -> bool {
    let (Some(one_crc), Some(other_crc)) = (one.payload_crc64, other.payload_crc64) else {
        return true;
    };
    one.kind == other.kind && one.payload_length == other.payload_length && one_crc == other_crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(hash: u128, sequence: u64, page: u32, crc: u64) -> RecordSummary {
        RecordSummary {
            hash: BlockHash(hash),
            sequence,
            payload_crc64: Some(crc),
            segment: 4,
            page,
            payload_length: 100,
            kind: RecordKind::Block,
            state: RecordState::Clean,
        }
    }

    fn grave(hash: u128, sequence: u64) -> RecordSummary {
        RecordSummary {
            payload_crc64: None,
            kind: RecordKind::Tombstone,
            payload_length: 0,
            ..record(hash, sequence, GRAVE_PAGE, 0)
        }
    }

    #[test]
    fn records_are_ranked_as_a_start_ranks_them() {
        let gone = RecordSummary {
            kind: RecordKind::Tombstone,
            payload_length: 0,
            ..record(2, 9, 7, 0)
        };
        let records = vec![
            record(1, 5, 1, 0xa),
            record(1, 6, 3, 0xb),
            record(2, 8, 5, 0xc),
            gone,
            record(3, 7, 9, 0xd),
            // Written once more to outlive its segment: the same content.
            record(3, 7, 11, 0xd),
            // Deleted by a tombstone whose segment was reclaimed.
            record(4, 3, 13, 0xe),
            grave(4, 4),
            // Replaced since.
            grave(1, 4),
        ];
        let (summary, defects) = rank_shard(0, records);
        assert_eq!(defects, []);
        let expected = Summary {
            records_live: 2,
            records_replaced: 4,
            tombstones: 2,
            live_bytes: 200,
            replaced_bytes: 400,
            ..Summary::default()
        };
        assert_eq!(summary, expected);
    }

    #[test]
    fn one_sequence_with_two_contents_is_told() {
        let records = vec![record(1, 5, 1, 0xa), record(1, 5, 3, 0xb)];
        let (summary, defects) = rank_shard(2, records);
        assert_eq!(summary.defects, 1);
        let told = defects[0].to_string();
        assert!(told.starts_with("segment-002-000004 at 12288: "), "{told}");
        assert!(told.contains("segment-002-000004 at 4096"), "{told}");
    }

    #[test]
    fn names_that_do_not_belong_are_told_once_each() {
        let superblock = Superblock {
            folder: [1; 16],
            shards: 2,
            segment_bytes: 16 << 20,
        };
        let names = [
            "superblock",
            "lock",
            "lost+found",
            "segment-001-000000",
            "segment-000-000003",
            "segment-002-000000",
            "segment-0-1",
            "notes.txt",
        ];
        let entries: Vec<FileEntry> = names
            .iter()
            .map(|name| FileEntry {
                name: (*name).to_owned(),
                size: 7,
            })
            .collect();
        let listing = check_names(&entries, &superblock);
        assert_eq!(listing.segments, [(0, 3, 7), (1, 0, 7)]);
        let foreign: Vec<&str> = listing
            .defects
            .iter()
            .map(|defect| defect.file.as_str())
            .collect();
        assert_eq!(foreign, ["notes.txt", "segment-0-1", "segment-002-000000"]);
    }
}
