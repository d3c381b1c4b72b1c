//! Bytes on disk: the record's header page, the segment's header page, the footer.
//!
//! Pure encoding and decoding. This file never does I/O and trusts nothing that it decodes: every
//! length is checked before it is used, and a page that does not carry its own checksum, folder,
//! segment and offset is not a page of ours.
//!
//! A segment file is
//!
//! ```text
//! page 0          segment header: which folder, shard, segment, incarnation; purpose at byte 14,
//!                 count of graves at 56, graves (block hash 16, sequence 8) from 64
//! page 1 ..       records: header page, then payload padded with zeroes to whole pages
//! ..              unused
//! last pages      footer, once sealed: entries, then the trailer page at the very end
//! ```
//!
//! Record header page, little endian. Identity comes before description, so that a glance at the
//! first 96 bytes decides whether the rest means anything:
//!
//! ```text
//!    0  magic              8      64  payload length     4      136 etag length     2
//!    8  CRC32C of 12..4096 4      68  block size log2    1      138 headers length  2
//!   12  format version     2      69  (zero)             3      140 store ETag length 2
//!                                                              142 on its way length  2
//!                                                              144 validated          8
//!                                                              152 (zero)             8
//!   14  kind               1      72  payload CRC64-NVME 8      160 chunk CRC32Cs 128 × 4
//!   15  state              1      80  block hash        16      672 strings
//!   16  folder id         16      96  store identity     8
//!   32  shard              4     104  object size        8
//!   36  segment            4     112  block number       8
//!   40  incarnation        8     120  last modified      8
//!   48  own offset         8     128  (zero)             4
//!   56  sequence           8     132  volume, key length 2 + 2
//!
//!  672  volume, key, ETag, headers, store's ETag, what was on its way
//! ```
//!
//! `own offset`, `segment` and `incarnation` bind a record to its place: a misdirected write, a
//! stale read or a leftover of the segment's former life never passes for the record looked for.

use crate::key::{BlockHash, BlockId};
use crc_fast::CrcAlgorithm::{Crc32Iscsi, Crc64Nvme};
use forebay_io::buffer::PAGE;
use forebay_io::checksum::PairedCrc;
use forebay_io::store::ObjectMeta;

/// Version of everything in this file.
pub const FORMAT_VERSION: u16 = 2;

/// Payload bytes per CRC32C, so that a range read checks only the chunks it touches.
pub const CHUNK_BYTES: usize = 64 << 10;

const CHUNKS_MAX: usize = forebay_io::buffer::BODY_BYTES_MAX / CHUNK_BYTES;
const CHUNKS_AT: usize = 160;
const STRINGS_AT: usize = CHUNKS_AT + CHUNKS_MAX * 4;

const RECORD_MAGIC: [u8; 8] = *b"FBRECORD";
const SEGMENT_MAGIC: [u8; 8] = *b"FBSEGMNT";
const FOOTER_MAGIC: [u8; 8] = *b"FBFOOTER";

/// Sequences and incarnations are below this: they count up from 1, one a write, and are counted on
/// from what the disk says. A page that claims more was not written by us.
const COUNTER_END: u64 = 1 << 63;

/// Bytes of one footer entry.
pub const FOOTER_ENTRY_BYTES: usize = 40;

const _: () = assert!(STRINGS_AT == 672 && CHUNKS_MAX == 128);

/// Identity of a cache folder, random, made when it is formatted.
pub type FolderId = [u8; 16];

/// CRC32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(Crc32Iscsi, bytes) as u32
}

/// CRC64-NVME of `bytes`, the checksum that S3 takes as `x-amz-checksum-crc64nvme`.
pub fn crc64nvme(bytes: &[u8]) -> u64 {
    crc_fast::checksum(Crc64Nvme, bytes)
}

/// Where a record or page must be for it to be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The folder.
    pub folder: FolderId,
    /// The virtual shard.
    pub shard: u32,
    /// The segment's number inside the shard.
    pub segment: u32,
    /// The segment's life; differs each time the segment is reused.
    pub incarnation: u64,
    /// Byte offset in the segment file.
    pub offset: u64,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The key holds this block.
    Block,
    /// The key holds nothing any more.
    Tombstone,
}

/// Whether the store has what a record holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordState {
    /// The store had it when the record was written.
    #[default]
    Clean,
    /// Acknowledged, and not known to be in the store: the record is the only copy.
    Dirty,
    /// Acknowledged, and the store has something newer from somebody else: kept for an operator,
    /// whatever becomes of the key.
    Conflict,
}

impl RecordState {
    /// Whether the record may be the only copy of what it holds.
    pub fn is_dirty(self) -> bool {
        self != RecordState::Clean
    }
}

/// What a segment is for. Which records share a segment decides what is reclaimed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentPurpose {
    /// New clean records: the small queue of S3-FIFO.
    Probation,
    /// Clean records that were wanted again: the main queue of S3-FIFO.
    Main,
    /// Records that were dirty when they were written.
    Dirty,
    /// No record: it was reclaimed and waits for its next life.
    Free,
}

impl SegmentPurpose {
    fn to_byte(self) -> u8 {
        match self {
            SegmentPurpose::Probation => 1,
            SegmentPurpose::Main => 2,
            SegmentPurpose::Dirty => 3,
            SegmentPurpose::Free => 4,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, NotOurs> {
        match byte {
            1 => Ok(SegmentPurpose::Probation),
            2 => Ok(SegmentPurpose::Main),
            3 => Ok(SegmentPurpose::Dirty),
            4 => Ok(SegmentPurpose::Free),
            _ => Err(NotOurs::Field("purpose")),
        }
    }
}

/// A record's header, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it says.
    pub kind: RecordKind,
    /// Whether the store had it.
    pub state: RecordState,
    /// Orders the records of one key: the highest wins.
    pub sequence: u64,
    /// Hash of volume, key and block number.
    pub hash: BlockHash,
    /// The bucket and prefix that the payload came from or went to.
    pub store_identity: u64,
    /// Volume name.
    pub volume: String,
    /// Object key.
    pub key: String,
    /// Which block of the object.
    pub block_number: u64,
    /// Size of the volume's blocks when this was written: a power of two.
    pub block_bytes: u64,
    /// Payload bytes; the record's payload area is padded to whole pages.
    pub payload_length: u32,
    /// CRC64-NVME of the payload.
    pub payload_crc64: u64,
    /// CRC32C of each [`CHUNK_BYTES`] of the payload, the last one short.
    pub chunk_crcs: Vec<u32>,
    /// When the store vouched for the block, seconds since the Unix epoch.
    pub validated_at: u64,
    /// The object that the block belongs to.
    pub meta: ObjectMeta,
    /// The store's own ETag where it is not the one that clients are told. In a clean record that
    /// of this version; in a dirty one that of the version which the store had when this one was
    /// acknowledged, as far as it was known.
    pub store_etag: String,
    /// Of a dirty record: the contents of older versions of its key whose uploads may have been on
    /// their way when this one was acknowledged, as [`content_name`] has them, with semicolons
    /// between. What the store has of the key later may be one of them.
    pub on_its_way: String,
}

/// Names content by its CRC64-NVME and its MD5, which stores tell of their objects; the latter is empty
/// where it is not known.
pub fn content_name(crc64nvme: u64, md5: &str) -> String {
    format!("{crc64nvme:016x} {md5}")
}

/// A page or footer that is not what was looked for. It may be damage, a former life, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// Never written, or something else.
    #[error("no magic number")]
    Magic,
    /// Written by a newer or unknown version.
    #[error("unknown format version {0}")]
    Version(u16),
    /// Its checksum does not match.
    #[error("checksum mismatch")]
    Checksum,
    /// A valid page of another place or life.
    #[error("belongs to another place")]
    Place,
    /// Checksum and place fit but a field cannot be.
    #[error("impossible field: {0}")]
    Field(&'static str),
}

/// A header whose strings do not fit a page; such an object is not cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object's names and headers need {needed_bytes} bytes, a record has {}", PAGE - STRINGS_AT)]
pub struct HeaderTooLarge {
    /// Bytes that they would take.
    pub needed_bytes: usize,
}

/// Checksums of a payload that arrives in pieces: one pass for both, while the bytes are in cache.
#[derive(Default)]
pub struct PayloadChecksums {
    sums: PairedCrc,
    chunk_filled: usize,
    chunks: Vec<u32>,
}

impl PayloadChecksums {
    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = bytes.len().min(CHUNK_BYTES - self.chunk_filled);
            self.sums.update(&bytes[..count]);
            self.chunk_filled += count;
            if self.chunk_filled == CHUNK_BYTES {
                self.end_chunk();
            }
            bytes = &bytes[count..];
        }
    }

    fn end_chunk(&mut self) {
        self.chunks.push(self.sums.take_crc32c());
        self.chunk_filled = 0;
    }

    /// The whole payload's CRC64-NVME and the chunks' CRC32Cs.
    pub fn finish(mut self) -> (u64, Vec<u32>) {
        if self.chunk_filled > 0 {
            self.end_chunk();
        }
        (self.sums.crc64nvme(), self.chunks)
    }
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(page[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"))
}

fn u128_at(page: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(page[at..at + 16].try_into().expect("sixteen bytes"))
}

/// Writes what every page of ours begins with; the checksum comes last, with [`seal_page`].
fn begin_page(page: &mut [u8], magic: [u8; 8], place: &Place) {
    page.fill(0);
    put(page, 0, &magic);
    put(page, 12, &FORMAT_VERSION.to_le_bytes());
    put(page, 16, &place.folder);
    put(page, 32, &place.shard.to_le_bytes());
    put(page, 36, &place.segment.to_le_bytes());
    put(page, 40, &place.incarnation.to_le_bytes());
    put(page, 48, &place.offset.to_le_bytes());
}

fn seal_page(page: &mut [u8]) {
    let crc = crc32c(&page[12..PAGE]);
    put(page, 8, &crc.to_le_bytes());
}

/// Checks magic, version and checksum, and returns the place that the page claims.
fn open_page(page: &[u8], magic: [u8; 8]) -> Result<Place, NotOurs> {
    assert_eq!(page.len(), PAGE);
    if page[..8] != magic {
        return Err(NotOurs::Magic);
    }
    if u32_at(page, 8) != crc32c(&page[12..]) {
        return Err(NotOurs::Checksum);
    }
    // After the checksum: a version read from damage would mislead whoever reads the message.
    if u16_at(page, 12) != FORMAT_VERSION {
        return Err(NotOurs::Version(u16_at(page, 12)));
    }
    if u64_at(page, 40) >= COUNTER_END {
        return Err(NotOurs::Field("incarnation"));
    }
    Ok(Place {
        folder: page[16..32].try_into().expect("sixteen bytes"),
        shard: u32_at(page, 32),
        segment: u32_at(page, 36),
        incarnation: u64_at(page, 40),
        offset: u64_at(page, 48),
    })
}

/// Whether a page that is no valid record of `place`, because of `problem`, was one before it was
/// damaged or torn: it has the magic number, or the identity behind it.
pub fn was_record(page: &[u8], problem: NotOurs, place: &Place) -> bool {
    match problem {
        NotOurs::Checksum | NotOurs::Field(_) | NotOurs::Version(_) => true,
        NotOurs::Magic => {
            let mut expected = [0; PAGE];
            begin_page(&mut expected, RECORD_MAGIC, place);
            page[16..56] == expected[16..56]
        }
        // Whole, but of a former life or another place: a leftover.
        NotOurs::Place => false,
    }
}

/// Tombstones that a segment's first page has room for.
pub const GRAVES_MAX: usize = (PAGE - GRAVES_AT) / GRAVE_BYTES;
const GRAVES_AT: usize = 64;
const GRAVE_BYTES: usize = 24;

/// A tombstone in a segment's first page: the block has no record of this sequence or a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grave {
    /// The block.
    pub hash: BlockHash,
    /// The tombstone's place in the order of the shard's records.
    pub sequence: u64,
}

/// What a segment's first page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment's life.
    pub incarnation: u64,
    /// What it is for.
    pub purpose: SegmentPurpose,
    /// Blocks whose newest record went with the life before this one, while older records of them
    /// are elsewhere. They stand here so that one write ends that life and buries them.
    pub graves: Vec<Grave>,
}

/// Writes a segment's first page.
///
/// # Panics
/// If there are more than [`GRAVES_MAX`] graves.
pub fn encode_segment_header(
    page: &mut [u8],
    place: &Place,
    purpose: SegmentPurpose,
    graves: &[Grave],
) {
    assert_eq!(place.offset, 0);
    assert!(graves.len() <= GRAVES_MAX);
    begin_page(page, SEGMENT_MAGIC, place);
    page[14] = purpose.to_byte();
    put(page, 56, &(graves.len() as u16).to_le_bytes());
    for (i, grave) in graves.iter().enumerate() {
        let at = GRAVES_AT + i * GRAVE_BYTES;
        put(page, at, &grave.hash.0.to_le_bytes());
        put(page, at + 16, &grave.sequence.to_le_bytes());
    }
    seal_page(page);
}

/// Reads a segment's first page. `place.incarnation` is not looked at.
pub fn decode_segment_header(page: &[u8], place: &Place) -> Result<SegmentHeader, NotOurs> {
    let found = open_page(page, SEGMENT_MAGIC)?;
    if found
        != (Place {
            incarnation: found.incarnation,
            ..*place
        })
    {
        return Err(NotOurs::Place);
    }
    let count = usize::from(u16_at(page, 56));
    if count > GRAVES_MAX {
        return Err(NotOurs::Field("grave count"));
    }
    let grave = |i: usize| {
        let at = GRAVES_AT + i * GRAVE_BYTES;
        let sequence = u64_at(page, at + 16);
        if sequence >= COUNTER_END {
            return Err(NotOurs::Field("sequence"));
        }
        Ok(Grave {
            hash: BlockHash(u128_at(page, at)),
            sequence,
        })
    };
    Ok(SegmentHeader {
        incarnation: found.incarnation,
        purpose: SegmentPurpose::from_byte(page[14])?,
        graves: (0..count).map(grave).collect::<Result<_, _>>()?,
    })
}

impl RecordHeader {
    /// The header of a tombstone for a block; the block's own record differs from it in the kind
    /// and in what describes the payload.
    pub fn tombstone(hash: BlockHash, id: &BlockId, validated_at: u64) -> RecordHeader {
        RecordHeader {
            store_identity: id.volume.store_identity,
            volume: id.volume.name.clone(),
            key: id.key.to_string(),
            block_number: id.number,
            block_bytes: id.volume.block_bytes,
            validated_at,
            ..RecordHeader::grave(hash)
        }
    }

    /// The header of a tombstone that nobody asked for: it only keeps older records of a block
    /// from being found. It has no names, because whoever writes it knows the hash alone.
    pub fn grave(hash: BlockHash) -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Tombstone,
            state: RecordState::Clean,
            sequence: 0,
            hash,
            store_identity: 0,
            volume: String::new(),
            key: String::new(),
            block_number: 0,
            block_bytes: 1,
            payload_length: 0,
            payload_crc64: 0,
            chunk_crcs: Vec::new(),
            validated_at: 0,
            meta: ObjectMeta::default(),
            store_etag: String::new(),
            on_its_way: String::new(),
        }
    }

    /// Bytes of the record on disk: header page and padded payload.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.payload_length)
    }

    /// Writes the header page of a record at `place`.
    pub fn encode(&self, page: &mut [u8], place: &Place) -> Result<(), HeaderTooLarge> {
        let headers = encode_headers(&self.meta.headers);
        let strings: [&[u8]; 6] = [
            self.volume.as_bytes(),
            self.key.as_bytes(),
            self.meta.etag.as_bytes(),
            &headers,
            self.store_etag.as_bytes(),
            self.on_its_way.as_bytes(),
        ];
        let needed_bytes: usize = strings.iter().map(|s| s.len()).sum();
        if needed_bytes > PAGE - STRINGS_AT {
            return Err(HeaderTooLarge { needed_bytes });
        }
        assert!(self.chunk_crcs.len() <= CHUNKS_MAX && self.block_bytes.is_power_of_two());
        begin_page(page, RECORD_MAGIC, place);
        page[14] = match self.kind {
            RecordKind::Block => 1,
            RecordKind::Tombstone => 2,
        };
        page[15] = match self.state {
            RecordState::Clean => 1,
            RecordState::Dirty => 2,
            RecordState::Conflict => 3,
        };
        put(page, 56, &self.sequence.to_le_bytes());
        put(page, 64, &self.payload_length.to_le_bytes());
        page[68] = self.block_bytes.trailing_zeros() as u8;
        put(page, 72, &self.payload_crc64.to_le_bytes());
        put(page, 80, &self.hash.0.to_le_bytes());
        put(page, 96, &self.store_identity.to_le_bytes());
        put(page, 104, &self.meta.size.to_le_bytes());
        put(page, 112, &self.block_number.to_le_bytes());
        put(page, 120, &self.meta.last_modified.to_le_bytes());
        put(page, 144, &self.validated_at.to_le_bytes());
        let mut at = STRINGS_AT;
        for (i, string) in strings.iter().enumerate() {
            put(page, 132 + 2 * i, &(string.len() as u16).to_le_bytes());
            put(page, at, string);
            at += string.len();
        }
        for (i, crc) in self.chunk_crcs.iter().enumerate() {
            put(page, CHUNKS_AT + 4 * i, &crc.to_le_bytes());
        }
        seal_page(page);
        Ok(())
    }

    /// Reads the header page of the record that must be at `place`.
    pub fn decode(page: &[u8], place: &Place) -> Result<RecordHeader, NotOurs> {
        if open_page(page, RECORD_MAGIC)? != *place {
            return Err(NotOurs::Place);
        }
        let kind = match page[14] {
            1 => RecordKind::Block,
            2 => RecordKind::Tombstone,
            _ => return Err(NotOurs::Field("kind")),
        };
        let state = match page[15] {
            1 => RecordState::Clean,
            2 => RecordState::Dirty,
            3 => RecordState::Conflict,
            _ => return Err(NotOurs::Field("state")),
        };
        let payload_length = u32_at(page, 64);
        let chunks = (payload_length as usize).div_ceil(CHUNK_BYTES);
        if chunks > CHUNKS_MAX {
            return Err(NotOurs::Field("payload length"));
        }
        if page[68] > 62 {
            return Err(NotOurs::Field("block size"));
        }
        if u64_at(page, 56) >= COUNTER_END {
            return Err(NotOurs::Field("sequence"));
        }
        let mut strings = [&page[..0]; 6];
        let mut at = STRINGS_AT;
        for (i, string) in strings.iter_mut().enumerate() {
            let length = u16_at(page, 132 + 2 * i) as usize;
            *string = page
                .get(at..at + length)
                .ok_or(NotOurs::Field("string length"))?;
            at += length;
        }
        let text = |bytes: &[u8], what| {
            String::from_utf8(bytes.to_vec()).map_err(|_| NotOurs::Field(what))
        };
        Ok(RecordHeader {
            kind,
            state,
            sequence: u64_at(page, 56),
            hash: BlockHash(u128_at(page, 80)),
            store_identity: u64_at(page, 96),
            volume: text(strings[0], "volume")?,
            key: text(strings[1], "key")?,
            block_number: u64_at(page, 112),
            block_bytes: 1 << page[68],
            payload_length,
            payload_crc64: u64_at(page, 72),
            chunk_crcs: (0..chunks)
                .map(|i| u32_at(page, CHUNKS_AT + 4 * i))
                .collect(),
            validated_at: u64_at(page, 144),
            meta: ObjectMeta {
                size: u64_at(page, 104),
                etag: text(strings[2], "etag")?,
                last_modified: u64_at(page, 120),
                headers: decode_headers(strings[3]).ok_or(NotOurs::Field("headers"))?,
            },
            store_etag: text(strings[4], "store's etag")?,
            on_its_way: text(strings[5], "what was on its way")?,
        })
    }

    /// The life that a record's header page at `place` belongs to; `place.incarnation` is not
    /// looked at. For segments whose own header is damaged.
    pub fn incarnation_of(page: &[u8], place: &Place) -> Option<u64> {
        let found = open_page(page, RECORD_MAGIC).ok()?;
        let incarnation = found.incarnation;
        (found
            == Place {
                incarnation,
                ..*place
            })
        .then_some(incarnation)
    }

    /// Whether `payload`, which starts at chunk `first_chunk`, matches its checksums. It ends at
    /// a chunk's end or at the payload's.
    pub fn verify_chunks(&self, first_chunk: usize, payload: &[u8]) -> bool {
        let chunks = payload.chunks(CHUNK_BYTES);
        let Some(expected) = self.chunk_crcs.get(first_chunk..first_chunk + chunks.len()) else {
            return false;
        };
        chunks
            .zip(expected)
            .all(|(chunk, crc)| crc32c(chunk) == *crc)
    }
}

/// Bytes of a record with this payload on disk.
pub fn record_bytes(payload_length: u32) -> u64 {
    (PAGE + (payload_length as usize).next_multiple_of(PAGE)) as u64
}

/// Object headers as length-prefixed strings: name, value, name, value …
fn encode_headers(headers: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        // A single header longer than this cannot fit a page either; the caller refuses it.
        bytes.extend_from_slice(&(text.len().min(u16::MAX as usize) as u16).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

fn decode_headers(mut bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let mut texts = Vec::new();
    while !bytes.is_empty() {
        let length = u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        texts.push(String::from_utf8(bytes.get(2..2 + length)?.to_vec()).ok()?);
        bytes = &bytes[2 + length..];
    }
    let mut pairs = Vec::new();
    let mut texts = texts.into_iter();
    while let Some(name) = texts.next() {
        pairs.push((name, texts.next()?));
    }
    Some(pairs)
}

/// A record as the footer lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterEntry {
    /// The block.
    pub hash: BlockHash,
    /// The record's sequence.
    pub sequence: u64,
    /// Page of the segment at which the record starts.
    pub page: u32,
    /// Payload bytes.
    pub payload_length: u32,
    /// What the record says.
    pub kind: RecordKind,
    /// Whether the store had it.
    pub state: RecordState,
}

/// Bytes of a footer with `entries` entries: whole pages, the trailer's included.
pub fn footer_bytes(entries: usize) -> u64 {
    ((entries * FOOTER_ENTRY_BYTES).next_multiple_of(PAGE) + PAGE) as u64
}

/// A sealed segment's footer, ready to be written at its end; `place.offset` is where it starts.
pub fn encode_footer(entries: &[FooterEntry], place: &Place, purpose: SegmentPurpose) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(footer_bytes(entries.len()) as usize);
    for entry in entries {
        bytes.extend_from_slice(&entry.hash.0.to_le_bytes());
        bytes.extend_from_slice(&entry.sequence.to_le_bytes());
        bytes.extend_from_slice(&entry.page.to_le_bytes());
        bytes.extend_from_slice(&entry.payload_length.to_le_bytes());
        let flags: u64 = match (entry.kind, entry.state) {
            (RecordKind::Block, RecordState::Clean) => 1,
            (RecordKind::Tombstone, RecordState::Clean) => 2,
            (RecordKind::Block, RecordState::Dirty) => 3,
            (RecordKind::Tombstone, RecordState::Dirty | RecordState::Conflict) => 4,
            (RecordKind::Block, RecordState::Conflict) => 5,
        };
        bytes.extend_from_slice(&flags.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    let mut trailer = [0; PAGE];
    begin_page(&mut trailer, FOOTER_MAGIC, place);
    trailer[14] = purpose.to_byte();
    put(&mut trailer, 56, &(entries.len() as u64).to_le_bytes());
    put(&mut trailer, 64, &crc64nvme(&bytes).to_le_bytes());
    seal_page(&mut trailer);
    bytes.extend_from_slice(&trailer);
    bytes
}

/// What a segment's last page says about its footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Byte offset of the footer's first entry.
    pub offset: u64,
    /// Entries.
    pub count: usize,
    /// CRC64-NVME of the entries' pages.
    pub crc64: u64,
    /// What the segment is for; stands for the segment header's word when that page is damaged.
    pub purpose: SegmentPurpose,
}

/// Reads a segment's last page. `place.offset` is not looked at; `segment_bytes` bounds the rest.
pub fn decode_trailer(page: &[u8], place: &Place, segment_bytes: u64) -> Result<Trailer, NotOurs> {
    let found = open_page(page, FOOTER_MAGIC)?;
    if found
        != (Place {
            offset: found.offset,
            ..*place
        })
    {
        return Err(NotOurs::Place);
    }
    let count = u64_at(page, 56);
    if count > segment_bytes / PAGE as u64
        || Some(found.offset) != segment_bytes.checked_sub(footer_bytes(count as usize))
    {
        return Err(NotOurs::Field("entry count"));
    }
    Ok(Trailer {
        offset: found.offset,
        count: count as usize,
        crc64: u64_at(page, 64),
        purpose: SegmentPurpose::from_byte(page[14])?,
    })
}

/// Reads the entries whose pages are `bytes`.
pub fn decode_entries(bytes: &[u8], trailer: &Trailer) -> Result<Vec<FooterEntry>, NotOurs> {
    if crc64nvme(bytes) != trailer.crc64 {
        return Err(NotOurs::Checksum);
    }
    let entries = bytes.chunks_exact(FOOTER_ENTRY_BYTES).take(trailer.count);
    entries
        .map(|entry| {
            let (kind, state) = match u64_at(entry, 32) {
                1 => (RecordKind::Block, RecordState::Clean),
                2 => (RecordKind::Tombstone, RecordState::Clean),
                3 => (RecordKind::Block, RecordState::Dirty),
                4 => (RecordKind::Tombstone, RecordState::Dirty),
                5 => (RecordKind::Block, RecordState::Conflict),
                _ => return Err(NotOurs::Field("kind")),
            };
            if u64_at(entry, 16) >= COUNTER_END {
                return Err(NotOurs::Field("sequence"));
            }
            Ok(FooterEntry {
                hash: BlockHash(u128_at(entry, 0)),
                sequence: u64_at(entry, 16),
                page: u32_at(entry, 24),
                payload_length: u32_at(entry, 28),
                kind,
                state,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
