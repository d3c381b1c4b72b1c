//! From segment files to a shard: footers where there are any, a scan where there are none.
//!
//! Recovery reads and never writes: a crash during it changes nothing. It trusts a page only if
//! the page proves its folder, shard, segment, incarnation and offset. The highest sequence per
//! block wins, whatever order the segments are read in.

use crate::format::{
    self, FooterEntry, Grave, NotOurs, Place, RecordHeader, RecordKind, RecordState,
    SegmentPurpose, decode_segment_header, decode_trailer,
};
use crate::index::{BlockMap, Index, Location};
use crate::log::{RecoveredSegments, ShardLayout};
use crate::segment::{Segment, segment_name};
use crate::shard::{DirtyFound, RecoveredShard, footer_entry};
use forebay_io::buffer::{PAGE, Pool, View, page_align};
use forebay_io::disk::{Disk, DiskFile};
use futures::stream::{self, StreamExt};
use std::rc::Rc;

/// Bytes read at once while scanning a segment without a footer.
const SCAN_BYTES: usize = 1 << 20;

/// Bytes at the end of a segment that are read to find its footer: enough for 600 records.
const FOOTER_GUESS_BYTES: usize = 28 << 10;

/// Segments of a shard that are read at the same time, so that a start is not bound by the time of
/// one read. Each holds a footer's or a scan's worth of memory.
const SEGMENTS_AT_ONCE: usize = 8;

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
    /// Segment files that cannot be opened.
    pub lost: u64,
    /// Blocks in the index.
    pub blocks: u64,
}

impl RecoveryReport {
    /// Adds another shard's.
    pub fn add(&mut self, other: &RecoveryReport) {
        self.footers += other.footers;
        self.scans += other.scans;
        self.empty += other.empty;
        self.lost += other.lost;
        self.blocks += other.blocks;
    }
}

/// What one segment file says.
struct Life {
    number: u32,
    incarnation: u64,
    purpose: SegmentPurpose,
    entries: Vec<FooterEntry>,
    /// Whether there was a record that is not among them because it cannot be read any more.
    doubtful: bool,
}

/// A segment file, read.
enum Found<F> {
    /// Records of a life, maybe none.
    Life(Life, F),
    /// No record, but perhaps graves.
    Free(Life, F),
    /// It cannot be opened, so it is neither read nor used.
    Lost(u32),
}

/// Reads the segments `numbers` of one shard. A file that cannot be opened is left alone, what
/// cannot be read in one counts as not there.
pub async fn recover<D: Disk>(
    disk: &D,
    pool: &Pool,
    layout: &ShardLayout,
    numbers: &[u32],
) -> (RecoveredShard<D::File>, RecoveryReport) {
    let reads = numbers
        .iter()
        .map(|number| read_segment(disk, pool, layout, *number));
    let reads = stream::iter(reads).buffer_unordered(SEGMENTS_AT_ONCE);
    let mut found: Vec<(Found<D::File>, RecoveryReport)> = reads.collect().await;
    // In whatever order the reads ended, the outcome is the same.
    found.sort_by_key(|(found, _)| match found {
        Found::Life(life, _) | Found::Free(life, _) => (life.incarnation, life.number),
        Found::Lost(number) => (0, *number),
    });
    let mut report = RecoveryReport::default();
    let (mut free, mut sealed, mut lives, mut lost) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut next_incarnation = 1;
    let mut doubtful = false;
    for (found, of_segment) in found {
        report.add(&of_segment);
        match found {
            Found::Life(life, file) => {
                doubtful |= life.doubtful;
                next_incarnation = next_incarnation.max(life.incarnation + 1);
                sealed.push(segment_of(&life, file));
                lives.push(life);
            }
            Found::Free(life, file) => {
                doubtful |= life.doubtful;
                next_incarnation = next_incarnation.max(life.incarnation + 1);
                free.push(segment_of(&life, file));
                lives.push(life);
            }
            Found::Lost(_) => {
                doubtful = true;
                lost += 1;
            }
        }
    }
    let (index, next_sequence, dirty) = index_of(&lives);
    report.blocks = index.len() as u64;
    let with_dirty = sealed.into_iter().map(|segment| {
        let dirty_records = index.dirty_records(segment.number);
        (segment, dirty_records)
    });
    let segments = RecoveredSegments {
        sealed: with_dirty.collect(),
        free,
        lost,
        next_number: numbers.iter().map(|number| number + 1).max().unwrap_or(0),
        next_incarnation,
    };
    let shard = RecoveredShard {
        index,
        segments,
        next_sequence,
        dirty,
        doubtful,
    };
    (shard, report)
}

fn segment_of<F>(life: &Life, file: F) -> Rc<Segment<F>> {
    let segment = Segment::new(life.number, file, life.incarnation, life.purpose);
    Rc::new(segment)
}

/// The index that `lives`, in the order of their incarnations, add up to, the first sequence
/// that none of them has, and the dirty records in it.
fn index_of(lives: &[Life]) -> (Index, u64, Vec<DirtyFound>) {
    let entries = || {
        lives
            .iter()
            .flat_map(|life| life.entries.iter().map(|entry| (life.number, entry)))
    };
    let mut newest: BlockMap<(u64, u32, u32)> = BlockMap::default();
    newest.reserve(entries().count());
    for (segment, entry) in entries() {
        let rank = (entry.sequence, segment, entry.page);
        let winner = newest.entry(entry.hash).or_insert(rank);
        // Equal sequences are copies of one record. The later life's is kept: the other one's
        // segment was about to be reclaimed.
        if winner.0 <= entry.sequence {
            *winner = rank;
        }
    }
    let blocks = newest.len();
    let mut index = Index::with_capacity(blocks);
    let mut next_sequence = 1;
    let mut dirty = Vec::new();
    let is_newest = |segment: u32, entry: &FooterEntry| {
        newest[&entry.hash] == (entry.sequence, segment, entry.page)
    };
    for (segment, entry) in entries() {
        next_sequence = next_sequence.max(entry.sequence + 1);
        if entry.kind == RecordKind::Block {
            if is_newest(segment, entry) {
                let at = Location {
                    segment,
                    page: entry.page,
                    payload_length: entry.payload_length,
                };
                index.publish(entry.hash, at, entry.state);
                if entry.state.is_dirty() {
                    dirty.push(DirtyFound {
                        sequence: entry.sequence,
                        hash: entry.hash,
                        in_conflict: entry.state == RecordState::Conflict,
                        mark: None,
                    });
                }
            } else {
                index.note_stale(entry.hash, segment);
            }
        }
    }
    // Last, when it is known which of them still outrank something.
    for (segment, entry) in entries() {
        if entry.kind == RecordKind::Tombstone && is_newest(segment, entry) {
            index.publish_tombstone(entry.hash, segment, false);
        }
    }
    (index, next_sequence, dirty)
}

async fn read_segment<D: Disk>(
    disk: &D,
    pool: &Pool,
    layout: &ShardLayout,
    number: u32,
) -> (Found<D::File>, RecoveryReport) {
    let mut report = RecoveryReport::default();
    let name = segment_name(layout.shard, number);
    let file = match disk.open(&name).await {
        Ok(file) => file,
        Err(e) => {
            log::error!("{name} cannot be opened and is left alone: {e}");
            report.lost = 1;
            return (Found::Lost(number), report);
        }
    };
    let place = Place {
        folder: layout.folder,
        shard: layout.shard,
        segment: number,
        incarnation: 0,
        offset: 0,
    };
    let found = match read_life(&file, pool, place, layout, &mut report).await {
        Ok(life) => Found::Life(life, file),
        Err(free) => {
            report.empty += 1;
            Found::Free(free, file)
        }
    };
    (found, report)
}

/// A segment's records and graves; as an error one that is free, with its graves.
async fn read_life<F: DiskFile>(
    file: &F,
    pool: &Pool,
    mut place: Place,
    layout: &ShardLayout,
    report: &mut RecoveryReport,
) -> Result<Life, Life> {
    let free = |incarnation, entries| Life {
        number: place.segment,
        incarnation,
        purpose: SegmentPurpose::Free,
        entries,
        doubtful: false,
    };
    let first = read_pages(file, pool, 0, PAGE).await;
    if first
        .as_ref()
        .is_some_and(|page| page.iter().all(|byte| *byte == 0))
    {
        return Err(free(0, Vec::new()));
    }
    let header = first.and_then(|page| decode_segment_header(&page, &place).ok());
    let (mut purpose, graves) = match header {
        Some(header) => {
            let graves = header.graves.into_iter().map(grave_entry).collect();
            if header.purpose == SegmentPurpose::Free {
                return Err(free(header.incarnation, graves));
            }
            place.incarnation = header.incarnation;
            (Some(header.purpose), graves)
        }
        None => match newest_incarnation(file, pool, place, layout).await {
            Some(incarnation) => {
                place.incarnation = incarnation;
                (None, Vec::new())
            }
            // Not a page that can be read, and not a record: whatever was there is lost.
            None => {
                return Err(Life {
                    doubtful: true,
                    ..free(0, Vec::new())
                });
            }
        },
    };
    // With the first page its graves are lost.
    let has_graves = purpose.is_some();
    let (mut entries, doubtful) = match read_footer(file, pool, place, layout).await {
        Some((entries, of_footer)) => {
            report.footers += 1;
            purpose = purpose.or(Some(of_footer));
            (entries, false)
        }
        None => {
            report.scans += 1;
            scan(file, pool, place, layout).await
        }
    };
    let doubtful = doubtful || !has_graves;
    if doubtful {
        let (shard, segment) = (place.shard, place.segment);
        log::warn!(
            "shard {shard} segment {segment}: a record is damaged and may have replaced another: \
             the store is asked before blocks of this shard are served"
        );
    }
    let is_dirty = |entry: &FooterEntry| entry.kind == RecordKind::Block && entry.state.is_dirty();
    let purpose = purpose.unwrap_or(match entries.iter().any(is_dirty) {
        true => SegmentPurpose::Dirty,
        false => SegmentPurpose::Probation,
    });
    entries.extend::<Vec<FooterEntry>>(graves);
    Ok(Life {
        number: place.segment,
        incarnation: place.incarnation,
        purpose,
        entries,
        doubtful,
    })
}

/// A grave as a record would be listed. It is in the segment's first page, where no record is.
fn grave_entry(grave: Grave) -> FooterEntry {
    FooterEntry {
        hash: grave.hash,
        sequence: grave.sequence,
        page: 0,
        payload_length: 0,
        kind: RecordKind::Tombstone,
        state: RecordState::Clean,
    }
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
) -> Option<(Vec<FooterEntry>, SegmentPurpose)> {
    // Most footers are within the guess, and one read is enough.
    let guess = FOOTER_GUESS_BYTES.min(layout.segment_bytes as usize - PAGE);
    let end = layout.segment_bytes;
    let tail = read_pages(file, pool, end - guess as u64, guess).await?;
    let trailer = decode_trailer(&tail[guess - PAGE..], &place, end).ok()?;
    let length = (end - PAGE as u64 - trailer.offset) as usize;
    let pages = match guess.checked_sub(PAGE + length) {
        Some(start) => tail.slice(start..guess - PAGE),
        None => {
            // Whoever reads must not hold memory while waiting for more.
            drop(tail);
            read_pages(file, pool, trailer.offset, length).await?
        }
    };
    let entries = format::decode_entries(&pages, &trailer).ok()?;
    let inside = |entry: &FooterEntry| {
        let start = u64::from(entry.page) * PAGE as u64;
        entry.payload_length as usize <= forebay_io::buffer::BODY_BYTES_MAX
            && start + format::record_bytes(entry.payload_length) <= trailer.offset
    };
    let sane = entries.iter().all(inside);
    sane.then_some((entries, trailer.purpose))
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
///
/// A dirty record counts only with its payload: no flush is known to have covered it, so a power cut
/// may have taken a part, and what it replaced is all there is then.
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
        window.jump(offset + header.record_bytes());
        if header.state.is_dirty() && is_torn(file, pool, offset, &header).await {
            let (shard, segment) = (place.shard, place.segment);
            log::error!(
                "shard {shard} segment {segment}: a dirty block of {}/{} is torn: a power cut took \
                 what was not yet flushed",
                header.volume,
                header.key
            );
            continue;
        }
        entries.push(footer_entry(&header, (offset / PAGE as u64) as u32));
    }
    (entries, doubtful || window.unreadable > 0)
}

/// Whether the payload of the record at `offset` is not the one that was written. What the disk
/// cannot give now may be there.
async fn is_torn<F: DiskFile>(file: &F, pool: &Pool, offset: u64, header: &RecordHeader) -> bool {
    let length = header.payload_length as usize;
    if length == 0 {
        return false;
    }
    let payload = read_pages(file, pool, offset + PAGE as u64, length).await;
    payload.is_some_and(|payload| !header.verify_chunks(0, &payload))
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
    /// Whether a record is expected at `next`. Then its page alone is read: what follows is
    /// payload, which need not be looked at if the record is there.
    expects: bool,
    /// Reads that failed.
    unreadable: u32,
}

impl Window {
    fn new(next: u64) -> Self {
        Window {
            next,
            start: 0,
            bytes: View::empty(),
            expects: true,
            unreadable: 0,
        }
    }

    /// Goes on at another page, at which a record is expected.
    fn jump(&mut self, next: u64) {
        self.next = next;
        self.expects = true;
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

    /// Reads what follows `offset`, or its page alone if a record is expected there or something
    /// behind it cannot be read.
    async fn load<F: DiskFile>(
        &mut self,
        file: &F,
        pool: &Pool,
        offset: u64,
        segment_bytes: u64,
    ) -> bool {
        self.bytes = View::empty();
        self.start = offset;
        let first = match std::mem::take(&mut self.expects) {
            true => PAGE,
            false => SCAN_BYTES,
        };
        for length in [first, PAGE] {
            let length = (segment_bytes - offset).min(length as u64) as usize;
            if let Some(bytes) = read_pages(file, pool, offset, length).await {
                self.bytes = bytes;
                return true;
            }
        }
        false
    }
}
