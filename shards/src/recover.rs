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
use std::rc::Rc;

/// Bytes read at once while scanning a segment without a footer.
const SCAN_BYTES: usize = 1 << 20;

/// Times that a read is tried. More would make a start on a dying disk endless.
const READ_ATTEMPTS_MAX: usize = 2;

/// Pages of a segment that are tried one by one when larger reads fail. Beyond it the disk is
/// dying rather than scratched, and [`SCAN_BYTES`] are given up at a time.
const UNREADABLE_PAGES_MAX: u32 = 16;

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
    /// Whether there was a record that is not among them because it cannot be read any more.
    doubtful: bool,
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
    let mut doubtful = false;
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
        doubtful |= life.doubtful;
        let segment = Segment::recovered(*number, file, life.incarnation, life.entries);
        lives.push((life.incarnation, Rc::new(segment)));
    }
    // Incarnations are handed out in order, so this is the order of sealing.
    lives.sort_by_key(|(incarnation, _)| *incarnation);
    let next_incarnation = lives.last().map_or(1, |(incarnation, _)| incarnation + 1);
    let next_sequence = newest
        .values()
        .map(|(sequence, ..)| sequence + 1)
        .max()
        .unwrap_or(1);
    let index = index_of(&newest);
    report.blocks = index.len() as u64;
    let sealed = lives.into_iter().map(|(_, segment)| segment).collect();
    let segments = RecoveredSegments {
        sealed,
        free,
        next_incarnation,
    };
    Ok((
        RecoveredShard {
            index,
            segments,
            next_sequence,
            doubtful,
        },
        report,
    ))
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
    let blocks = newest
        .values()
        .filter(|(_, _, entry)| entry.kind == RecordKind::Block);
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
    place.incarnation = match read_pages(file, pool, 0, PAGE).await {
        Some(first) if first.iter().all(|byte| *byte == 0) => return None,
        Some(first) => match decode_segment_header(&first, &place) {
            Ok(incarnation) => incarnation,
            Err(_) => newest_incarnation(file, pool, place, layout).await?,
        },
        None => newest_incarnation(file, pool, place, layout).await?,
    };
    let (entries, doubtful) = match read_footer(file, pool, place, layout).await {
        Some(entries) => {
            report.footers += 1;
            (entries, false)
        }
        None => {
            report.scans += 1;
            scan(file, pool, place, layout).await
        }
    };
    if doubtful {
        let (shard, segment) = (place.shard, place.segment);
        log::warn!(
            "shard {shard} segment {segment}: a record is damaged and may have replaced another: \
             the store is asked before blocks of this shard are served"
        );
    }
    Some(Life {
        incarnation: place.incarnation,
        entries,
        doubtful,
    })
}

/// The life of a segment whose header page is damaged, told by its records. To give it up would
/// lose its tombstones, and hand its incarnation and its sequences out a second time.
async fn newest_incarnation<F: DiskFile>(
    file: &F,
    pool: &Pool,
    place: Place,
    layout: &ShardLayout,
) -> Option<u64> {
    let mut newest = None;
    let mut window = Window::new(PAGE as u64);
    while let Some((offset, page)) = window.next(file, pool, layout.segment_bytes).await {
        newest = newest.max(RecordHeader::incarnation_of(
            page,
            &Place { offset, ..place },
        ));
    }
    newest
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

/// Reads whole pages; once more if the disk refuses, for a passing error must not hide records.
async fn read_pages<F: DiskFile>(
    file: &F,
    pool: &Pool,
    offset: u64,
    length: usize,
) -> Option<View> {
    for _ in 0..READ_ATTEMPTS_MAX {
        let buffer = pool.take(length).await;
        let (count, mut buffer) = file
            .read(offset, buffer, PAGE..PAGE + page_align(length))
            .await;
        match count {
            Err(_) => continue,
            Ok(count) if count < length => return None,
            Ok(_) => {}
        }
        buffer.advance(length);
        buffer.finish();
        return Some(buffer.watch().view_all());
    }
    None
}

/// Looks for records page by page. A page that is not the head of a record of this life is
/// stepped over, so that valid records behind a torn one are found. Returns them, and whether one was
/// there that cannot be read any more.
async fn scan<F: DiskFile>(
    file: &F,
    pool: &Pool,
    place: Place,
    layout: &ShardLayout,
) -> (Vec<FooterEntry>, bool) {
    let mut doubtful = false;
    let mut entries = Vec::new();
    let mut window = Window::new(PAGE as u64);
    while let Some((offset, page)) = window.next(file, pool, layout.segment_bytes).await {
        let place = Place { offset, ..place };
        let header = match found_record(page, &place, layout) {
            Ok(header) => header,
            Err(problem) => {
                doubtful |= format::was_record(page, problem, &place);
                continue;
            }
        };
        entries.push(FooterEntry {
            hash: header.hash,
            sequence: header.sequence,
            page: (offset / PAGE as u64) as u32,
            payload_length: header.payload_length,
            kind: header.kind,
        });
        window.jump(offset + header.record_bytes());
    }
    (entries, doubtful || window.unreadable > 0)
}

fn found_record(page: &[u8], place: &Place, layout: &ShardLayout) -> Result<RecordHeader, NotOurs> {
    let header = RecordHeader::decode(page, place)?;
    if place.offset + header.record_bytes() > layout.segment_bytes {
        return Err(NotOurs::Field("payload length"));
    }
    Ok(header)
}

/// Goes through a segment page by page and holds the part around it in memory.
struct Window {
    /// The page to be looked at next.
    next: u64,
    /// Where `bytes` are from.
    start: u64,
    bytes: View,
    /// Reads that failed.
    unreadable: u32,
}

impl Window {
    fn new(next: u64) -> Self {
        Window {
            next,
            start: 0,
            bytes: View::empty(),
            unreadable: 0,
        }
    }

    /// Goes on at another page.
    fn jump(&mut self, next: u64) {
        self.next = next;
    }

    /// The next readable page and its offset; `None` at the end.
    async fn next<F: DiskFile>(
        &mut self,
        file: &F,
        pool: &Pool,
        segment_bytes: u64,
    ) -> Option<(u64, &[u8])> {
        while self.next < segment_bytes {
            let offset = self.next;
            if self.holds(offset) || self.load(file, pool, offset, segment_bytes).await {
                self.next = offset + PAGE as u64;
                let at = (offset - self.start) as usize;
                return Some((offset, &self.bytes[at..at + PAGE]));
            }
            self.unreadable += 1;
            let few = self.unreadable <= UNREADABLE_PAGES_MAX;
            self.next = offset + if few { PAGE as u64 } else { SCAN_BYTES as u64 };
        }
        None
    }

    fn holds(&self, offset: u64) -> bool {
        let end = self.start + self.bytes.len() as u64;
        offset >= self.start && offset + PAGE as u64 <= end
    }

    /// Reads what follows `offset`, or its page alone if something behind it cannot be read.
    async fn load<F: DiskFile>(
        &mut self,
        file: &F,
        pool: &Pool,
        offset: u64,
        segment_bytes: u64,
    ) -> bool {
        self.bytes = View::empty();
        self.start = offset;
        for length in [SCAN_BYTES, PAGE] {
            let length = (segment_bytes - offset).min(length as u64) as usize;
            if let Some(bytes) = read_pages(file, pool, offset, length).await {
                self.bytes = bytes;
                return true;
            }
        }
        false
    }
}
