//! From segment files to a shard: footers where there are any, a scan where there are none.
//!
//! Recovery reads and never writes: a crash during it changes nothing. It trusts a page only if
//! the page proves its folder, shard, segment, incarnation and offset. The highest sequence per
//! block wins, whatever order the segments are read in.

use crate::format::{
    self, FooterEntry, NotOurs, Place, RecordHeader, RecordKind, decode_segment_header,
    decode_trailer,
};
use crate::log::{RecoveredSegments, Segment, ShardLayout, segment_name};
use crate::shard::{BlockMap, Location, RecoveredShard};
use forebay_io::buffer::{PAGE, Pool, View, page_align};
use forebay_io::disk::{Disk, DiskFile};
use std::collections::hash_map::Entry;
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// Bytes read at once while scanning a segment without a footer.
const SCAN_BYTES: usize = 1 << 20;

/// How a shard was recovered, for the log and the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segments whose footer was read.
    pub footers: u64,
    /// Segments that had to be scanned.
    pub scans: u64,
    /// Segments that hold nothing.
    pub empty: u64,
    /// Blocks in the index.
    pub blocks: u64,
}

impl RecoveryReport {
    /// Adds another shard's.
    pub fn add(&mut self, other: &RecoveryReport) {
        self.footers += other.footers;
        self.scans += other.scans;
        self.empty += other.empty;
        self.blocks += other.blocks;
    }
}

struct Life {
    incarnation: u64,
    entries: Vec<FooterEntry>,
}

/// Reads the segments `numbers` of one shard.
///
/// # Errors
/// Only if a file cannot be opened; what cannot be read in it counts as empty.
pub async fn recover<D: Disk>(
    disk: &D,
    pool: &Pool,
    layout: &ShardLayout,
    numbers: &[u32],
) -> io::Result<(RecoveredShard<D::File>, RecoveryReport)> {
    let mut report = RecoveryReport::default();
    let mut lives: Vec<(u64, Rc<Segment<D::File>>)> = Vec::new();
    let mut free = Vec::new();
    let mut newest: BlockMap<(u64, u32, FooterEntry)> = BlockMap::default();
    for number in numbers {
        let file = disk.open(&segment_name(layout.shard, *number)).await?;
        let place = Place {
            folder: layout.folder,
            shard: layout.shard,
            segment: *number,
            incarnation: 0,
            offset: 0,
        };
        let Some(life) = read_life(&file, pool, place, layout, &mut report).await else {
            report.empty += 1;
            free.push(Rc::new(Segment::recovered(*number, file, 0, Vec::new())));
            continue;
        };
        for entry in &life.entries {
            outrank(&mut newest, *number, *entry);
        }
        let segment = Segment::recovered(*number, file, life.incarnation, life.entries);
        lives.push((life.incarnation, Rc::new(segment)));
    }
    // Incarnations are handed out in order, so this is the order of sealing.
    lives.sort_by_key(|(incarnation, _)| *incarnation);
    let next_incarnation = lives.last().map_or(1, |(incarnation, _)| incarnation + 1);
    let next_sequence = newest.values().map(|(sequence, ..)| sequence + 1).max().unwrap_or(1);
    let index = index_of(&newest);
    report.blocks = index.len() as u64;
    let sealed = lives.into_iter().map(|(_, segment)| segment).collect();
    let segments = RecoveredSegments { sealed, free, next_incarnation };
    Ok((RecoveredShard { index, segments, next_sequence }, report))
}

fn outrank(newest: &mut BlockMap<(u64, u32, FooterEntry)>, segment: u32, entry: FooterEntry) {
    match newest.entry(entry.hash) {
        Entry::Vacant(place) => {
            place.insert((entry.sequence, segment, entry));
        }
        Entry::Occupied(mut place) if place.get().0 < entry.sequence => {
            place.insert((entry.sequence, segment, entry));
        }
        Entry::Occupied(_) => {}
    }
}

fn index_of(newest: &BlockMap<(u64, u32, FooterEntry)>) -> BlockMap<Location> {
    let blocks = newest.values().filter(|(_, _, entry)| entry.kind == RecordKind::Block);
    blocks
        .map(|(_, segment, entry)| {
            let location = Location {
                segment: *segment,
                page: entry.page,
                payload_length: entry.payload_length,
            };
            (entry.hash, location)
        })
        .collect()
}

/// A segment's records; `None` if it never began a life that reached the disk.
async fn read_life<F: DiskFile>(
    file: &F,
    pool: &Pool,
    mut place: Place,
    layout: &ShardLayout,
    report: &mut RecoveryReport,
) -> Option<Life> {
    let first = read_pages(file, pool, 0, PAGE).await?;
    place.incarnation = decode_segment_header(&first, &place).ok()?;
    let entries = match read_footer(file, pool, place, layout).await {
        Some(entries) => {
            report.footers += 1;
            entries
        }
        None => {
            report.scans += 1;
            scan(file, pool, place, layout).await
        }
    };
    Some(Life { incarnation: place.incarnation, entries })
}

async fn read_footer<F: DiskFile>(
    file: &F,
    pool: &Pool,
    place: Place,
    layout: &ShardLayout,
) -> Option<Vec<FooterEntry>> {
    let last = read_pages(file, pool, layout.segment_bytes - PAGE as u64, PAGE).await?;
    let trailer = decode_trailer(&last, &place, layout.segment_bytes).ok()?;
    let length = (layout.segment_bytes - PAGE as u64 - trailer.offset) as usize;
    let pages = read_pages(file, pool, trailer.offset, length).await?;
    let entries = format::decode_entries(&pages, &trailer).ok()?;
    let inside = |entry: &FooterEntry| {
        let start = u64::from(entry.page) * PAGE as u64;
        entry.payload_length as usize <= forebay_io::buffer::BODY_BYTES_MAX
            && start + format::record_bytes(entry.payload_length) <= trailer.offset
    };
    entries.iter().all(inside).then_some(entries)
}

async fn read_pages<F: DiskFile>(
    file: &F,
    pool: &Pool,
    offset: u64,
    length: usize,
) -> Option<View> {
    let buffer = pool.take(length).await;
    let (count, mut buffer) = file.read(offset, buffer, PAGE..PAGE + page_align(length)).await;
    if count.ok()? < length {
        return None;
    }
    buffer.advance(length);
    buffer.finish();
    Some(buffer.watch().view_all())
}

/// Looks for records page by page. A page that is not the head of a record of this life is
/// stepped over, so that valid records behind a torn one are found.
async fn scan<F: DiskFile>(
    file: &F,
    pool: &Pool,
    place: Place,
    layout: &ShardLayout,
) -> Vec<FooterEntry> {
    let mut entries = Vec::new();
    let mut window = Window { start: 0, bytes: View::empty() };
    let mut offset = PAGE as u64;
    while offset < layout.segment_bytes {
        let Some(range) = window.page(file, pool, offset, layout.segment_bytes).await else {
            // Unreadable: step over what one read would have covered.
            offset += SCAN_BYTES as u64;
            continue;
        };
        let here = Place { offset, ..place };
        offset += match found_record(&window.bytes[range], &here, layout) {
            Ok(header) => {
                entries.push(FooterEntry {
                    hash: header.hash,
                    sequence: header.sequence,
                    page: (offset / PAGE as u64) as u32,
                    payload_length: header.payload_length,
                    kind: header.kind,
                });
                header.record_bytes()
            }
            Err(_) => PAGE as u64,
        };
    }
    entries
}

fn found_record(
    page: &[u8],
    place: &Place,
    layout: &ShardLayout,
) -> Result<RecordHeader, NotOurs> {
    let header = RecordHeader::decode(page, place)?;
    if place.offset + header.record_bytes() > layout.segment_bytes {
        return Err(NotOurs::Field("payload length"));
    }
    Ok(header)
}

/// The part of a segment that a scan holds in memory.
struct Window {
    start: u64,
    bytes: View,
}

impl Window {
    /// Makes sure that the page at `offset` is in the window; its place there.
    async fn page<F: DiskFile>(
        &mut self,
        file: &F,
        pool: &Pool,
        offset: u64,
        segment_bytes: u64,
    ) -> Option<Range<usize>> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + PAGE as u64 > end {
            let length = (segment_bytes - offset).min(SCAN_BYTES as u64) as usize;
            self.bytes = View::empty();
            self.bytes = read_pages(file, pool, offset, length).await?;
            self.start = offset;
        }
        let at = (offset - self.start) as usize;
        Some(at..at + PAGE)
    }
}
