//! What a home remembers of objects that came in parts, or from another object: which bytes the
//! cache has of them under other names.
//!
//! Pure, and bounded by bytes, oldest out. It says where bytes may be found and of which exact version
//! of an object they are; it never reads one. Forgetting costs a fetch, nothing else, and nothing here
//! outlives the process. An entry counts only for the version that it names.
//!
//! The body of a part is cached under a name of its own, a random one, before anybody knows whether
//! the store takes it and as which ETag. So the bytes of two bodies that were sent as one part are
//! never mixed, and which of them the object is made of follows from the ETag alone.

use crate::index::Uniform;
use crate::key::{BlockHash, BlockId, Volume};
use crate::range::{block_span, part_of_block};
use forebay_io::store::{ByteSpan, ObjectMeta};
use lru::LruCache;
use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, Hash};
use std::ops::Range;
use std::sync::Arc;

/// Memory for uploads that are under way, and as much for objects that were made of parts, on each
/// core, bytes: some 25,000 parts, which of 8 MiB are 200 GiB.
const HALF_BYTES_MAX: usize = 4 << 20;

/// All of it.
pub const PARTS_BYTES_MAX: usize = 2 * HALF_BYTES_MAX;

/// What a part takes beside its strings, bytes: the entry, and its place in the table.
const PART_BYTES: usize = 160;

/// What an upload or an object takes beside its parts, bytes.
const ENTRY_BYTES: usize = 256;

/// Places that one block is put together from, at most. Parts have 5 MiB or more, so a block lies in a
/// few; what was copied in tinier spans is fetched. Each place pins a buffer.
const PLACES_MAX: usize = 8;

/// Starts the keys of bodies of parts. No client can name one: a key of theirs has no NUL.
const BODY_PREFIX: char = '\0';

/// The version of all bodies of parts: their names are unique.
const BODY_VERSION: &str = "part";

/// The name of a body of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BodyName(u128);

impl BodyName {
    /// A name from two random numbers.
    pub fn new(high: u64, low: u64) -> BodyName {
        BodyName(u128::from(high) << 64 | u128::from(low))
    }

    /// One of its blocks, as the cache knows it.
    pub fn block(self, volume: &Arc<Volume>, number: u64) -> BlockId {
        BlockId {
            volume: volume.clone(),
            key: format!("{BODY_PREFIX}{:032x}", self.0).into(),
            number,
        }
    }

    /// The description of a body of so many bytes.
    pub fn meta(size: u64) -> ObjectMeta {
        ObjectMeta {
            size,
            etag: BODY_VERSION.to_owned(),
            ..ObjectMeta::default()
        }
    }
}

/// Whether a block is of the body of a part.
pub fn is_body(id: &BlockId) -> bool {
    id.key.starts_with(BODY_PREFIX)
}

/// Under which name the cache may have bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A part as it was received.
    Body(BodyName),
    /// A version of another object of the volume.
    Object {
        /// Its key.
        key: Arc<str>,
        /// The ETag that clients are told of it.
        etag: Arc<str>,
    },
}

/// Bytes that the cache may have under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The name.
    pub origin: Origin,
    /// How many bytes there are under it in all.
    pub size: u64,
    /// The first of them that is meant; as many follow as the part has.
    pub start: u64,
}

impl Piece {
    fn block(&self, volume: &Arc<Volume>, number: u64) -> BlockId {
        match &self.origin {
            Origin::Body(name) => name.block(volume, number),
            Origin::Object { key, .. } => BlockId {
                volume: volume.clone(),
                key: key.clone(),
                number,
            },
        }
    }

    fn meta(&self) -> ObjectMeta {
        match &self.origin {
            Origin::Body(_) => BodyName::meta(self.size),
            Origin::Object { etag, .. } => ObjectMeta {
                size: self.size,
                etag: etag.to_string(),
                ..ObjectMeta::default()
            },
        }
    }

    fn bytes(&self) -> usize {
        match &self.origin {
            Origin::Body(_) => 0,
            Origin::Object { key, etag } => key.len() + etag.len(),
        }
    }

    /// The blocks that it reaches into.
    pub fn blocks(&self, volume: &Arc<Volume>) -> Vec<BlockId> {
        let count = self.size.div_ceil(volume.block_bytes);
        (0..count)
            .map(|number| self.block(volume, number))
            .collect()
    }
}

/// A part that the store has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedPart {
    /// Its number.
    pub number: u32,
    /// The store's ETag of it.
    pub etag: String,
    /// Its length, bytes.
    pub size: u64,
    /// The checksum that its client gave it: a header's name and value.
    pub checksum: Option<(String, String)>,
    /// Where the cache may have its bytes.
    pub piece: Option<Piece>,
}

impl NotedPart {
    fn bytes(&self) -> usize {
        let checksum = self.checksum.as_ref();
        let checksum = checksum.map_or(0, |(name, value)| name.len() + value.len());
        let piece = self.piece.as_ref().map_or(0, Piece::bytes);
        PART_BYTES + self.etag.len() + checksum + piece
    }
}

/// One part of an object that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssembledPart {
    /// Its number when it was uploaded.
    pub number: u32,
    /// The object's bytes up to its end.
    pub end: u64,
    /// Where the cache may have its bytes.
    pub piece: Option<Piece>,
}

/// How one version of an object was put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembly {
    /// The ETag that clients are told.
    pub etag: String,
    /// In the order of the object's bytes.
    pub parts: Vec<AssembledPart>,
}

/// Part of a block that the cache may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The block.
    pub id: BlockId,
    /// What it belongs to: `size` and `etag` say it.
    pub meta: ObjectMeta,
    /// Bytes of the block.
    pub range: Range<usize>,
}

impl Assembly {
    /// An object that is made of `parts`, in this order.
    pub fn new(etag: String, parts: impl IntoIterator<Item = NotedPart>) -> Assembly {
        let mut end = 0;
        let parts = parts.into_iter().map(|part| {
            end += part.size;
            AssembledPart {
                number: part.number,
                end,
                piece: part.piece,
            }
        });
        Assembly {
            etag,
            parts: parts.collect(),
        }
    }

    /// An object that has the bytes of another one.
    pub fn copy(etag: String, piece: Piece) -> Assembly {
        let part = AssembledPart {
            number: 1,
            end: piece.size,
            piece: Some(piece),
        };
        Assembly {
            etag,
            parts: vec![part],
        }
    }

    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.end)
    }

    /// Whether it is of the version that `meta` describes.
    pub fn is_of(&self, meta: &ObjectMeta) -> bool {
        self.etag == meta.etag && self.size() == meta.size
    }

    /// The bytes of the part at `position`, counted from 1 in the order of the object's bytes: so does
    /// S3 count the parts of an object that is complete.
    pub fn part(&self, position: usize) -> Option<ByteSpan> {
        let index = position.checked_sub(1)?;
        let end = self.parts.get(index)?.end;
        let start = match index {
            0 => 0,
            _ => self.parts[index - 1].end,
        };
        Some(ByteSpan { start, end })
    }

    /// Where the cache may have the bytes of block `number`, in their order; `None` if it cannot have
    /// all of them, or they are too scattered.
    pub fn places(&self, volume: &Arc<Volume>, number: u64) -> Option<Vec<Place>> {
        let wanted = block_span(number, volume.block_bytes, self.size());
        let first = self.parts.partition_point(|part| part.end <= wanted.start);
        let mut places = Vec::new();
        let mut at = wanted.start;
        for (index, part) in self.parts.iter().enumerate().skip(first) {
            if at >= wanted.end {
                break;
            }
            let part_start = match index {
                0 => 0,
                _ => self.parts[index - 1].end,
            };
            let piece = part.piece.as_ref()?;
            let end = part.end.min(wanted.end);
            let inside = ByteSpan {
                start: piece.start + (at - part_start),
                end: piece.start + (end - part_start),
            };
            add_places(&mut places, volume, piece, inside)?;
            at = end;
        }
        (at == wanted.end).then_some(places)
    }

    fn bytes(&self) -> usize {
        let parts = self.parts.iter();
        let parts = parts.map(|part| PART_BYTES + part.piece.as_ref().map_or(0, Piece::bytes));
        ENTRY_BYTES + self.etag.len() + parts.sum::<usize>()
    }
}

/// Adds the places of a span of a piece, block by block.
fn add_places(
    places: &mut Vec<Place>,
    volume: &Arc<Volume>,
    piece: &Piece,
    span: ByteSpan,
) -> Option<()> {
    if span.end > piece.size {
        return None;
    }
    let block_bytes = volume.block_bytes;
    let mut number = span.start / block_bytes;
    while number * block_bytes < span.end {
        if places.len() == PLACES_MAX {
            return None;
        }
        places.push(Place {
            id: piece.block(volume, number),
            meta: piece.meta(),
            range: part_of_block(span, number, block_bytes),
        });
        number += 1;
    }
    Some(())
}

/// The parts of an upload that are known, by number.
pub type KnownParts = BTreeMap<u32, NotedPart>;

/// What is remembered within a budget of bytes; what was not asked for longest goes first.
struct Bounded<K: Hash + Eq, V, S> {
    latest: LruCache<K, V, S>,
    used_bytes: usize,
    bytes_of: fn(&V) -> usize,
}

impl<K: Hash + Eq, V, S: std::hash::BuildHasher + Default> Bounded<K, V, S> {
    fn new(bytes_of: fn(&V) -> usize) -> Self {
        Bounded {
            latest: LruCache::unbounded_with_hasher(S::default()),
            used_bytes: 0,
            bytes_of,
        }
    }

    fn take(&mut self, key: &K) -> Option<V> {
        let value = self.latest.pop(key)?;
        self.used_bytes -= (self.bytes_of)(&value);
        Some(value)
    }

    fn put(&mut self, key: K, value: V) {
        self.take(&key);
        self.used_bytes += (self.bytes_of)(&value);
        self.latest.put(key, value);
        while self.used_bytes > HALF_BYTES_MAX {
            let Some((_, oldest)) = self.latest.pop_lru() else {
                break;
            };
            self.used_bytes -= (self.bytes_of)(&oldest);
        }
    }
}

/// An upload under way.
struct Upload {
    id: Box<str>,
    parts: KnownParts,
    /// What it takes: the sum of its parts and its own.
    bytes: usize,
}

/// What one core remembers: of uploads to objects whose home it is, and of those objects.
pub struct Parts {
    uploads: Bounded<(BlockHash, u64), Upload, std::hash::RandomState>,
    objects: Bounded<BlockHash, Arc<Assembly>, BuildHasherDefault<Uniform>>,
}

impl Default for Parts {
    fn default() -> Self {
        Parts {
            uploads: Bounded::new(|upload| upload.bytes),
            objects: Bounded::new(|assembly| assembly.bytes()),
        }
    }
}

impl Parts {
    /// A name of an upload in the table; another upload of the same name is told apart by its id.
    fn name(home: BlockHash, upload_id: &str) -> (BlockHash, u64) {
        (home, xxhash_rust::xxh3::xxh3_64(upload_id.as_bytes()))
    }

    /// Notes a part of an upload of the object whose block 0 is `home`. Returns what it replaces.
    pub fn note(&mut self, home: BlockHash, upload_id: &str, part: NotedPart) -> Option<NotedPart> {
        let name = Parts::name(home, upload_id);
        let known = self.uploads.take(&name);
        let known = known.filter(|known| *known.id == *upload_id);
        let mut upload = known.unwrap_or_else(|| Upload {
            id: upload_id.into(),
            parts: KnownParts::new(),
            bytes: ENTRY_BYTES + upload_id.len(),
        });
        upload.bytes += part.bytes();
        let former = upload.parts.insert(part.number, part);
        upload.bytes -= former.as_ref().map_or(0, NotedPart::bytes);
        self.uploads.put(name, upload);
        former
    }

    /// What is known of an upload's parts.
    pub fn known(&self, home: BlockHash, upload_id: &str) -> KnownParts {
        let known = self.uploads.latest.peek(&Parts::name(home, upload_id));
        let known = known.filter(|known| *known.id == *upload_id);
        known.map(|known| known.parts.clone()).unwrap_or_default()
    }

    /// Forgets an upload; returns what was known of it.
    pub fn end(&mut self, home: BlockHash, upload_id: &str) -> KnownParts {
        let known = self.uploads.take(&Parts::name(home, upload_id));
        let known = known.filter(|known| *known.id == *upload_id);
        known.map(|known| known.parts).unwrap_or_default()
    }

    /// Remembers how the object whose block 0 is `home` was put together.
    pub fn remember(&mut self, home: BlockHash, assembly: Assembly) {
        self.objects.put(home, Arc::new(assembly));
    }

    /// How the version of an object that `meta` describes was put together, if that is known.
    pub fn find(&mut self, home: BlockHash, meta: &ObjectMeta) -> Option<Arc<Assembly>> {
        let assembly = self.objects.latest.get(&home)?;
        assembly.is_of(meta).then(|| assembly.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{BLOCK_BYTES_MIN, Freshness};
    use proptest::prelude::*;

    fn volume() -> Arc<Volume> {
        Arc::new(Volume {
            name: "v".into(),
            store_number: 0,
            store_identity: 0,
            block_bytes: BLOCK_BYTES_MIN,
            freshness: Freshness::Immutable,
            absence_ttl: std::time::Duration::ZERO,
            writeback: false,
            versions: Default::default(),
        })
    }

    fn body(number: u32, size: u64) -> NotedPart {
        NotedPart {
            number,
            etag: format!("{number:032x}"),
            size,
            checksum: None,
            piece: Some(Piece {
                origin: Origin::Body(BodyName::new(7, number.into())),
                size,
                start: 0,
            }),
        }
    }

    #[test]
    fn a_part_that_is_not_here_leaves_its_blocks_to_the_store() {
        let volume = volume();
        let block = volume.block_bytes;
        let missing = NotedPart {
            piece: None,
            ..body(2, block)
        };
        let parts = [body(1, 2 * block), missing, body(9, 10)];
        let assembly = Assembly::new("e".into(), parts);
        let found: Vec<bool> = (0..4)
            .map(|number| assembly.places(&volume, number).is_some())
            .collect();
        assert_eq!(found, [true, true, false, true]);
        assert_eq!(assembly.part(3).map(|span| span.len()), Some(10));
        assert_eq!(assembly.part(0), None);
        assert_eq!(assembly.part(4), None);
    }

    #[test]
    fn what_is_scattered_is_fetched() {
        let volume = volume();
        let parts = |count| (0..count).map(|number| body(number + 1, 100));
        let few = Assembly::new("e".into(), parts(PLACES_MAX as u32));
        assert_eq!(few.places(&volume, 0).map(|p| p.len()), Some(PLACES_MAX));
        let many = Assembly::new("e".into(), parts(PLACES_MAX as u32 + 1));
        assert_eq!(many.places(&volume, 0), None);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let mut table = Parts::default();
        for upload in 0..40_u128 {
            for number in 1..=1000 {
                table.note(BlockHash(upload << 64), "u", body(number, 5 << 20));
                assert!(table.uploads.used_bytes <= HALF_BYTES_MAX);
            }
            let parts = table.end(BlockHash(upload << 64), "u");
            assert_eq!(parts.len(), 1000);
            let assembly = Assembly::new("e".into(), parts.into_values());
            let meta = ObjectMeta {
                size: assembly.size(),
                etag: "e".into(),
                ..ObjectMeta::default()
            };
            table.remember(BlockHash(upload << 64), assembly);
            assert!(table.objects.used_bytes <= HALF_BYTES_MAX);
            assert!(table.find(BlockHash(upload << 64), &meta).is_some());
            let other = ObjectMeta {
                etag: "f".into(),
                ..meta
            };
            assert!(table.find(BlockHash(upload << 64), &other).is_none());
        }
        assert_eq!(table.uploads.used_bytes, 0);
        assert!(table.objects.latest.peek(&BlockHash(0)).is_none());
    }

    #[test]
    fn a_part_that_comes_again_replaces_the_former() {
        let mut table = Parts::default();
        assert_eq!(table.note(BlockHash(1), "u", body(1, 5)), None);
        assert_eq!(table.note(BlockHash(1), "u", body(1, 6)), Some(body(1, 5)));
        assert_eq!(table.known(BlockHash(1), "u")[&1].size, 6);
        assert!(table.known(BlockHash(1), "v").is_empty());
        assert!(table.known(BlockHash(2), "u").is_empty());
        assert_eq!(table.end(BlockHash(1), "u").len(), 1);
        assert_eq!(table.uploads.used_bytes, 0);
    }

    proptest! {
        /// The places of all blocks, one after the other, are the parts' bytes, one after the other.
        #[test]
        fn places_tile_the_object(
            parts in proptest::collection::vec((1..900_000_u64, 0..300_000_u64), 1..6),
        ) {
            let volume = volume();
            let mut expected = Vec::new();
            let noted = parts.iter().enumerate().map(|(index, (size, start))| {
                let part = body(index as u32 + 1, *size);
                expected.push((index as u64 + 1, *start, start + size));
                NotedPart {
                    piece: part.piece.map(|piece| Piece {
                        size: start + size,
                        start: *start,
                        ..piece
                    }),
                    ..part
                }
            });
            let assembly = Assembly::new("e".into(), noted.collect::<Vec<_>>());
            let blocks = assembly.size().div_ceil(volume.block_bytes);
            let mut found: Vec<(u64, u64, u64)> = Vec::new();
            for number in 0..blocks {
                let places = assembly.places(&volume, number).expect("all is here");
                let bytes: u64 = places.iter().map(|place| place.range.len() as u64).sum();
                let span = block_span(number, volume.block_bytes, assembly.size());
                prop_assert_eq!(bytes, span.len());
                for place in places {
                    let low = u64::from_str_radix(&place.id.key[17..], 16).expect("a name");
                    let start = place.id.number * volume.block_bytes + place.range.start as u64;
                    let end = start + place.range.len() as u64;
                    match found.last_mut() {
                        Some((name, _, last)) if *name == low && *last == start => *last = end,
                        _ => found.push((low, start, end)),
                    }
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
