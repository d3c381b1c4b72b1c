//! One segment, read from its first byte to its last.
//!
//! This file follows a segment as recovery does (header, footer, records page by page) but looks
//! at every byte that a checksum covers. It reads forward through one buffer of the caller's, so
//! that its memory does not depend on the segment, and it ends whatever the bytes are: each step
//! goes at least a page ahead.

use super::{Defect, Fault, GRAVE_PAGE, Meaning, RecordSummary};
use crate::format::{
    self, CHUNK_BYTES, FooterEntry, Grave, NotOurs, PayloadChecksums, Place, RecordHeader,
    RecordKind, RecordState, SegmentPurpose, decode_segment_header, decode_trailer,
};
use crate::key::{BlockId, Freshness, Topology, Volume};
use crate::segment::segment_name;
use crate::superblock::Superblock;
use forebay_io::buffer::PAGE;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// Reads that may fail in one segment before the rest of it is given up. Beyond it the disk is
/// dying, and each further try may take it seconds.
const FAILED_READS_MAX: u32 = 64;

/// A segment's bytes.
pub trait SegmentSource {
    /// Length of the file.
    fn length(&self) -> u64;
    /// Fills `buffer` from `offset` and returns how many bytes there were: fewer only at the end
    /// of the file. `offset` and the buffer's length are multiples of a page.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Told how many bytes of the segment have been dealt with since the last call.
    fn passed(&mut self, bytes: u64);
}

/// In what state of its life a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// It holds nothing.
    Empty,
    /// It has records and no footer: it was being written, or its footer is damaged.
    Open,
    /// It has a footer.
    Sealed,
}

/// What a check found in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its state.
    pub state: SegmentState,
    /// What it is for, if that can be told.
    pub purpose: Option<SegmentPurpose>,
    /// Its records, damaged ones included where it is known that they are there, and the graves of
    /// its header.
    pub records: Vec<RecordSummary>,
    /// What is wrong with it.
    pub defects: Vec<Defect>,
}

/// Checks one segment of a folder. `buffer` is where its bytes are read to; the larger, the fewer
/// reads.
///
/// # Panics
/// If `buffer` is not at least two pages, and whole ones.
pub fn check_segment<S: SegmentSource>(
    source: &mut S,
    buffer: &mut [u8],
    superblock: &Superblock,
    shard: u32,
    segment: u32,
) -> SegmentReport {
    assert!(buffer.len() >= 2 * PAGE && buffer.len().is_multiple_of(PAGE));
    let segment_bytes = superblock.segment_bytes;
    let mut check = SegmentCheck {
        window: Window {
            end: source.length().min(segment_bytes),
            source,
            buffer,
            start: 0,
            length: 0,
            failed: Vec::new(),
            failures: 0,
            passed: 0,
        },
        place: Place {
            folder: superblock.folder,
            shard,
            segment,
            incarnation: 0,
            offset: 0,
        },
        topology: Topology::new(superblock.shards, 1),
        segment_bytes,
        purpose: None,
        listed: None,
        records: Vec::new(),
        defects: Vec::new(),
    };
    let state = check.run();
    check.report_unreadable();
    let SegmentCheck {
        purpose,
        records,
        mut defects,
        ..
    } = check;
    defects.sort_by_key(|defect| defect.offset);
    SegmentReport {
        state,
        purpose,
        records,
        defects,
    }
}

/// The records that a footer lists, by page.
type Listed = HashMap<u32, FooterEntry>;

struct SegmentCheck<'a, S> {
    window: Window<'a, S>,
    /// The segment's place; its incarnation once that is known.
    place: Place,
    topology: Topology,
    segment_bytes: u64,
    purpose: Option<SegmentPurpose>,
    listed: Option<Listed>,
    records: Vec<RecordSummary>,
    defects: Vec<Defect>,
}

impl<S: SegmentSource> SegmentCheck<'_, S> {
    fn run(&mut self) -> SegmentState {
        let found = self.window.source.length();
        if found != self.segment_bytes {
            let fault = Fault::FileSize {
                found,
                expected: self.segment_bytes,
            };
            let at = found.min(self.segment_bytes);
            let meaning = match found > self.segment_bytes {
                true => Meaning::Nothing,
                false => Meaning::SegmentFetchedAgain,
            };
            self.tell(at, fault, meaning);
        }
        let Some(incarnation) = self.life() else {
            self.window.pass_to(self.window.end);
            return SegmentState::Empty;
        };
        self.place.incarnation = incarnation;
        let records_end = self.footer();
        self.walk(records_end);
        self.window.pass_to(self.window.end);
        match self.listed {
            Some(_) => SegmentState::Sealed,
            None => SegmentState::Open,
        }
    }

    fn tell(&mut self, offset: u64, fault: Fault, meaning: Meaning) {
        self.defects.push(Defect {
            file: segment_name(self.place.shard, self.place.segment),
            offset,
            fault,
            meaning,
        });
    }

    fn report_unreadable(&mut self) {
        for (offset, bytes, error) in std::mem::take(&mut self.window.failed) {
            let fault = Fault::Unreadable { bytes, error };
            self.tell(offset, fault, Meaning::SegmentFetchedAgain);
        }
    }

    /// The life that the segment is in; nothing if it never began one, or if it is free.
    fn life(&mut self) -> Option<u64> {
        let place = self.place;
        let fault = match self.window.page(0) {
            // Told as unreadable, or as too short.
            None => None,
            Some(page) => match decode_segment_header(page, &place) {
                Ok(header) => {
                    self.purpose = Some(header.purpose);
                    header.graves.iter().for_each(|grave| self.grave(grave));
                    let is_free = header.purpose == SegmentPurpose::Free;
                    return (!is_free).then_some(header.incarnation);
                }
                Err(_) if page.iter().all(|byte| *byte == 0) => Some(Fault::SegmentHeaderMissing),
                Err(problem) => Some(Fault::SegmentHeader(problem)),
            },
        };
        let newest = self.newest_life();
        match (&fault, newest) {
            (None | Some(Fault::SegmentHeaderMissing), None) => {}
            (Some(Fault::SegmentHeaderMissing), Some(_)) => {
                // A start takes an empty first page for a segment that was never used.
                self.tell(0, Fault::SegmentHeaderMissing, Meaning::SegmentFetchedAgain);
            }
            // Its graves are lost with it, and nobody knows whose they were.
            (Some(fault), Some(_)) => self.tell(0, fault.clone(), Meaning::StoreAsked),
            (Some(fault), None) => self.tell(0, fault.clone(), Meaning::SegmentFetchedAgain),
            (None, Some(_)) => {}
        }
        newest
    }

    /// A block that the segment's header says is deleted.
    fn grave(&mut self, grave: &Grave) {
        self.records.push(RecordSummary {
            hash: grave.hash,
            sequence: grave.sequence,
            payload_crc64: None,
            segment: self.place.segment,
            page: GRAVE_PAGE,
            payload_length: 0,
            kind: RecordKind::Tombstone,
            state: RecordState::Clean,
        });
    }

    /// The highest incarnation that any record of the segment bears.
    fn newest_life(&mut self) -> Option<u64> {
        let mut newest = None;
        let mut offset = PAGE as u64;
        while offset < self.window.end {
            let place = Place {
                offset,
                ..self.place
            };
            if let Some(page) = self.window.page(offset) {
                newest = newest.max(RecordHeader::incarnation_of(page, &place));
            }
            offset += PAGE as u64;
        }
        newest
    }

    /// Reads the footer, if this life has one. Returns where records end.
    fn footer(&mut self) -> u64 {
        let at = self.segment_bytes - PAGE as u64;
        let (place, segment_bytes) = (self.place, self.segment_bytes);
        let Some(page) = self.window.page(at) else {
            return self.window.end;
        };
        let trailer = match decode_trailer(page, &place, segment_bytes) {
            Ok(trailer) => trailer,
            // A former life's, or none: this life was never sealed.
            Err(NotOurs::Place) => return self.window.end,
            Err(_) if page.iter().all(|byte| *byte == 0) => return self.window.end,
            Err(problem) => {
                self.tell(at, Fault::Trailer(problem), Meaning::Scanned);
                return self.window.end;
            }
        };
        self.purpose.get_or_insert(trailer.purpose);
        let length = (at - trailer.offset) as usize;
        let Some(pages) = self.window.copy(trailer.offset, length) else {
            return self.window.end;
        };
        match format::decode_entries(&pages, &trailer) {
            Ok(entries) if self.entries_can_be(&entries, trailer.offset) => {
                let by_page = entries.into_iter().map(|entry| (entry.page, entry));
                self.listed = Some(by_page.collect());
                trailer.offset
            }
            Ok(_) => self.window.end,
            Err(problem) => {
                let fault = Fault::FooterEntries(problem);
                self.tell(trailer.offset, fault, Meaning::Scanned);
                self.window.end
            }
        }
    }

    /// Whether all records that a footer lists lie between the first page and the footer, none of
    /// them on another.
    fn entries_can_be(&mut self, entries: &[FooterEntry], footer_offset: u64) -> bool {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_unstable_by_key(|index| entries[*index].page);
        let mut free_from = PAGE as u64;
        for index in order {
            let entry = &entries[index];
            let start = u64::from(entry.page) * PAGE as u64;
            let end = start + format::record_bytes(entry.payload_length);
            let (problem, meaning) = if start < free_from {
                (
                    "it claims a place that another record has",
                    Meaning::Ambiguous,
                )
            } else if end > footer_offset
                || entry.payload_length as usize > forebay_io::buffer::BODY_BYTES_MAX
            {
                ("its record reaches into the footer", Meaning::Scanned)
            } else {
                free_from = end;
                continue;
            };
            let fault = Fault::FooterEntry {
                entry: index,
                problem,
            };
            self.tell(footer_offset, fault, meaning);
            return false;
        }
        true
    }

    /// Goes through the pages of records.
    fn walk(&mut self, records_end: u64) {
        let mut offset = PAGE as u64;
        while offset < records_end {
            self.window.pass_to(offset);
            let place = Place {
                offset,
                ..self.place
            };
            let number = (offset / PAGE as u64) as u32;
            let entry = self.listed.as_mut().and_then(|all| all.remove(&number));
            let decoded = self.window.page(offset).map(|page| {
                let decoded = RecordHeader::decode(page, &place);
                let damaged = match &decoded {
                    Ok(_) => false,
                    Err(problem) => format::was_record(page, *problem, &place),
                };
                (decoded, damaged)
            });
            offset += match (decoded, entry) {
                (Some((Ok(header), _)), entry) => {
                    self.record(&place, header, entry.as_ref(), records_end)
                }
                (Some((Err(problem), _)), Some(entry)) => {
                    self.damaged_header(offset, &entry, Some(problem))
                }
                (None, Some(entry)) => self.damaged_header(offset, &entry, None),
                (Some((Err(problem), true)), None) if self.listed.is_none() => {
                    let fault = Fault::RecordHeader(problem);
                    self.tell(offset, fault, Meaning::StoreAsked);
                    PAGE as u64
                }
                _ => PAGE as u64,
            };
        }
        // Only where a record that the footer does not know covers one that it does.
        let mut missed: Vec<FooterEntry> = match &mut self.listed {
            Some(listed) => listed.drain().map(|(_, entry)| entry).collect(),
            None => Vec::new(),
        };
        missed.sort_unstable_by_key(|entry| entry.page);
        for entry in missed {
            let offset = u64::from(entry.page) * PAGE as u64;
            self.damaged_header(offset, &entry, Some(NotOurs::Place));
        }
    }

    /// A record that the footer lists and that is not there. Returns its bytes.
    fn damaged_header(
        &mut self,
        offset: u64,
        entry: &FooterEntry,
        problem: Option<NotOurs>,
    ) -> u64 {
        if let Some(problem) = problem {
            let meaning = match entry.kind {
                RecordKind::Block => Meaning::of_loss(entry.state),
                // The footer says as much as the tombstone did.
                RecordKind::Tombstone => Meaning::Nothing,
            };
            self.tell(offset, Fault::RecordHeader(problem), meaning);
        }
        self.records.push(RecordSummary {
            hash: entry.hash,
            sequence: entry.sequence,
            payload_crc64: None,
            segment: self.place.segment,
            page: entry.page,
            payload_length: entry.payload_length,
            kind: entry.kind,
            state: entry.state,
        });
        format::record_bytes(entry.payload_length)
    }

    /// A record whose header is good. Returns its bytes.
    fn record(
        &mut self,
        place: &Place,
        header: RecordHeader,
        entry: Option<&FooterEntry>,
        records_end: u64,
    ) -> u64 {
        let offset = place.offset;
        let name = name_of(&header);
        let bytes = header.record_bytes();
        let loss = Meaning::of_loss(header.state);
        if offset + bytes > records_end {
            let problem = "it reaches past the end of the records";
            let fault = Fault::RecordField { name, problem };
            self.tell(offset, fault, loss);
            return PAGE as u64;
        }
        let problem = if self.topology.shard_of(header.hash) == self.place.shard {
            impossible(&header)
        } else {
            Some("it belongs to another shard")
        };
        if let Some(problem) = problem {
            let name = name.clone();
            let fault = Fault::RecordField { name, problem };
            self.tell(offset, fault, loss);
        }
        match (entry, &self.listed) {
            (Some(entry), _) if !agrees(entry, &header) => {
                let name = name.clone();
                let problem = "the footer lists another record here";
                let fault = Fault::RecordField { name, problem };
                self.tell(offset, fault, loss);
            }
            (None, Some(_)) => {
                let name = name.clone();
                self.tell(offset, Fault::Unlisted { name }, Meaning::Nothing);
            }
            _ => {}
        }
        self.payload(place, &header, &name);
        self.records.push(RecordSummary {
            hash: header.hash,
            sequence: header.sequence,
            payload_crc64: Some(header.payload_crc64),
            segment: place.segment,
            page: (offset / PAGE as u64) as u32,
            payload_length: header.payload_length,
            kind: header.kind,
            state: header.state,
        });
        bytes
    }

    /// Compares a payload with its checksums, and looks for records inside it.
    fn payload(&mut self, place: &Place, header: &RecordHeader, name: &str) {
        let start = place.offset + PAGE as u64;
        let end = place.offset + header.record_bytes();
        let mut left = header.payload_length as usize;
        let mut sums = PayloadChecksums::default();
        let mut padding_is_zero = true;
        let mut inside = Vec::new();
        let mut at = start;
        while at < end {
            let Some(bytes) = self.window.span(at, end - at) else {
                // Told as unreadable; the checksums of the rest would say nothing new.
                return;
            };
            let (payload, padding) = bytes.split_at(left.min(bytes.len()));
            sums.update(payload);
            padding_is_zero &= padding.iter().all(|byte| *byte == 0);
            for (index, page) in bytes.chunks_exact(PAGE).enumerate() {
                let offset = at + (index * PAGE) as u64;
                if let Ok(inner) = RecordHeader::decode(page, &Place { offset, ..*place }) {
                    inside.push((offset, name_of(&inner)));
                }
            }
            left -= payload.len();
            at += bytes.len() as u64;
            self.window.pass_to(at);
        }
        for (offset, inner) in inside {
            let outer = name.to_owned();
            let fault = Fault::Overlap { name: inner, outer };
            self.tell(offset, fault, Meaning::Ambiguous);
        }
        let name = name.to_owned();
        if !padding_is_zero {
            let offset = start + u64::from(header.payload_length);
            let name = name.clone();
            self.tell(offset, Fault::Padding { name }, Meaning::Nothing);
        }
        let (whole, chunks) = sums.finish();
        let pairs = chunks.iter().zip(&header.chunk_crcs);
        let bad: Vec<usize> = pairs
            .enumerate()
            .filter(|(_, (found, expected))| found != expected)
            .map(|(index, _)| index)
            .collect();
        if let Some(first) = bad.first().copied() {
            let fault = Fault::Chunks {
                name,
                damaged: bad.len(),
                chunks: chunks.len(),
                first,
            };
            let offset = start + (first * CHUNK_BYTES) as u64;
            self.tell(offset, fault, Meaning::of_loss(header.state));
        } else if whole != header.payload_crc64 {
            // Reads check chunks, so this one is served; its upload would be refused.
            self.tell(start, Fault::Whole { name }, Meaning::Ambiguous);
        }
    }
}

fn agrees(entry: &FooterEntry, header: &RecordHeader) -> bool {
    entry.hash == header.hash
        && entry.sequence == header.sequence
        && entry.payload_length == header.payload_length
        && entry.kind == header.kind
        && entry.state == header.state
}

/// A block in words.
fn name_of(header: &RecordHeader) -> String {
    let RecordHeader {
        volume,
        key,
        block_number,
        ..
    } = header;
    // Keys may hold anything; a line must stay a line.
    let key = key.escape_debug();
    format!("{volume}/{key} block {block_number}")
}

/// What cannot be in a header although its checksum is right.
fn impossible(header: &RecordHeader) -> Option<&'static str> {
    let id = BlockId {
        volume: Arc::new(Volume {
            name: header.volume.clone(),
            store_number: 0,
            store_identity: header.store_identity,
            block_bytes: header.block_bytes,
            freshness: Freshness::Immutable,
            absence_ttl: std::time::Duration::ZERO,
            writeback: false,
            versions: Default::default(),
        }),
        key: header.key.as_str().into(),
        number: header.block_number,
    };
    if id.hash() != header.hash {
        return Some("its hash is not that of its name");
    }
    if u64::from(header.payload_length) > header.block_bytes {
        return Some("its payload is larger than its volume's blocks");
    }
    None
}

/// The part of a segment that is in memory, and what could not be read.
struct Window<'a, S> {
    source: &'a mut S,
    buffer: &'a mut [u8],
    /// Where the buffer's bytes are from.
    start: u64,
    /// How many bytes of the buffer are good.
    length: usize,
    /// Bytes of the segment that there are.
    end: u64,
    /// Offset, bytes and error of what could not be read, in the order of reading.
    failed: Vec<(u64, u64, String)>,
    failures: u32,
    /// Up to where the source has been told of.
    passed: u64,
}

impl<S: SegmentSource> Window<'_, S> {
    /// Tells the source how far the check has come.
    fn pass_to(&mut self, offset: u64) {
        if offset > self.passed {
            self.source.passed(offset - self.passed);
            self.passed = offset;
        }
    }

    /// One page; nothing if it cannot be read.
    fn page(&mut self, offset: u64) -> Option<&[u8]> {
        self.span(offset, PAGE as u64)
    }

    /// Whole pages from `offset` on, at most `most` bytes, as many as are in memory but one page
    /// at least; nothing if that page cannot be read.
    fn span(&mut self, offset: u64, most: u64) -> Option<&[u8]> {
        if !self.holds(offset) && !self.load(offset) {
            return None;
        }
        let at = (offset - self.start) as usize;
        let count = (self.length - at).min(usize::try_from(most).unwrap_or(usize::MAX));
        Some(&self.buffer[at..at + count])
    }

    /// Exactly `length` bytes from `offset` on.
    fn copy(&mut self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let left = (length - bytes.len()) as u64;
            let span = self.span(offset + bytes.len() as u64, left)?;
            bytes.extend_from_slice(span);
        }
        Some(bytes)
    }

    fn holds(&self, offset: u64) -> bool {
        offset >= self.start && offset + PAGE as u64 <= self.start + self.length as u64
    }

    /// Reads a buffer full from `offset` on, or that page alone if something behind it cannot be
    /// read.
    fn load(&mut self, offset: u64) -> bool {
        self.length = 0;
        if offset + PAGE as u64 > self.end || self.failures > FAILED_READS_MAX {
            return false;
        }
        let left = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
        let whole = left.min(self.buffer.len()) / PAGE * PAGE;
        let mut error = None;
        for length in [whole, PAGE] {
            match self.source.read(offset, &mut self.buffer[..length]) {
                Ok(count) if count >= PAGE => {
                    self.start = offset;
                    self.length = count.min(length) / PAGE * PAGE;
                    return true;
                }
                Ok(_) => error = Some("the file ends here".to_owned()),
                Err(failure) => error = Some(failure.to_string()),
            }
        }
        self.note_failure(offset, error.unwrap_or_default());
        false
    }

    /// Adds a page that cannot be read to those before it.
    fn note_failure(&mut self, offset: u64, error: String) {
        self.failures += 1;
        let bytes = match self.failures > FAILED_READS_MAX {
            // The rest is given up.
            true => self.end - offset,
            false => PAGE as u64,
        };
        match self.failed.last_mut() {
            Some((start, length, _)) if *start + *length == offset => *length += bytes,
            Some((start, length, _)) if (*start..*start + *length).contains(&offset) => {}
            _ => self.failed.push((offset, bytes, error)),
        }
    }
}
