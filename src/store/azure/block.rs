//! The names of blocks, which are all that Azure tells of a part.
//!
//! Pure. A block's name says which upload and part it is of, when it was begun, and what the bytes'
//! CRC64-NVME is where that was known; so a part that came twice is the later one, and its ETag is the
//! same whoever is asked. All names are of one length, as Azure wants of the blocks of a blob.
//!
//! ```text
//! magic       2 bytes    "fb"
//! upload     16 bytes    when it was begun (8, microseconds) and chance (8)
//! number      2 bytes    big-endian, as all that follows
//! begun       8 bytes    microseconds since the Unix epoch
//! has CRC     1 byte     0 or 1
//! CRC64       8 bytes    NVME
//! ```

use super::super::s3::base64;
use base64::Engine;
use forebay_io::multipart::{PART_NUMBER_MAX, PartMeta};
use std::collections::BTreeMap;

const MAGIC: [u8; 2] = *b"fb";
const BLOCK_ID_BYTES: usize = 37;

/// The name of an upload: its bytes in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UploadId([u8; 16]);

impl UploadId {
    /// A name for an upload that begins at `now_us`; later ones have greater names.
    pub(super) fn new(now_us: u64, chance: [u8; 8]) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&now_us.to_be_bytes());
        bytes[8..].copy_from_slice(&chance);
        UploadId(bytes)
    }

    /// Reads a name; `None` if it is none that [`UploadId::text`] gives.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 16] = hex::decode(text).ok()?.try_into().ok()?;
        Some(UploadId(bytes)).filter(|id| id.text() == text)
    }

    pub(super) fn text(self) -> String {
        hex::encode(self.0)
    }

    /// When it was begun, seconds since the Unix epoch.
    pub(super) fn begun(self) -> u64 {
        let (us, _) = self.0.split_at(8);
        u64::from_be_bytes(us.try_into().unwrap_or_default()) / 1_000_000
    }
}

/// A block's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockId {
    pub(super) upload: UploadId,
    pub(super) number: u32,
    pub(super) begun_us: u64,
    pub(super) crc64nvme: Option<u64>,
}

impl BlockId {
    /// As Azure takes it.
    pub(super) fn text(&self) -> String {
        let mut bytes = Vec::with_capacity(BLOCK_ID_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.upload.0);
        bytes.extend_from_slice(&(self.number as u16).to_be_bytes());
        bytes.extend_from_slice(&self.begun_us.to_be_bytes());
        bytes.push(u8::from(self.crc64nvme.is_some()));
        bytes.extend_from_slice(&self.crc64nvme.unwrap_or(0).to_be_bytes());
        base64(&bytes)
    }

    /// Reads a name; `None` if it is somebody else's.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(text)
            .ok()?;
        let bytes: [u8; BLOCK_ID_BYTES] = bytes.try_into().ok()?;
        let eight = |at: usize| {
            let bytes: [u8; 8] = bytes[at..at + 8].try_into().unwrap_or_default();
            u64::from_be_bytes(bytes)
        };
        let number = u32::from(u16::from_be_bytes([bytes[18], bytes[19]]));
        let is_ours = bytes[..2] == MAGIC && (1..=PART_NUMBER_MAX).contains(&number);
        is_ours.then(|| BlockId {
            upload: UploadId(bytes[2..18].try_into().unwrap_or_default()),
            number,
            begun_us: eight(20),
            crc64nvme: (bytes[28] == 1).then(|| eight(29)),
        })
    }

    /// The part's ETag. The `-1` says to S3's clients that it is no MD5.
    pub(super) fn etag(&self) -> String {
        let crc = self.crc64nvme.unwrap_or(0);
        format!("{:016x}{crc:016x}-1", self.begun_us)
    }
}

/// A part and the block that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) id: BlockId,
    pub(super) meta: PartMeta,
}

/// The parts of an upload by their numbers, out of all blocks of a blob; of those of one number the
/// latest.
pub(super) fn parts_of(
    upload: UploadId,
    blocks: impl IntoIterator<Item = (String, u64)>,
) -> BTreeMap<u32, Part> {
    let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
    for (name, size) in blocks {
        let Some(id) = BlockId::parse(&name).filter(|id| id.upload == upload) else {
            continue;
        };
        let known = parts.get(&id.number);
        if known.is_some_and(|known| known.id.begun_us > id.begun_us) {
            continue;
        }
        let meta = PartMeta {
            number: id.number,
            etag: id.etag(),
            size,
            last_modified: id.begun_us / 1_000_000,
        };
        parts.insert(id.number, Part { id, meta });
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn upload(us: u64) -> UploadId {
        UploadId::new(us, [7; 8])
    }

    proptest! {
        #[test]
        fn names_are_read_as_they_were_written(
            us in any::<u64>(),
            chance in any::<[u8; 8]>(),
            number in 1..=PART_NUMBER_MAX,
            begun_us in any::<u64>(),
            crc64nvme in any::<Option<u64>>(),
        ) {
            let upload = UploadId::new(us, chance);
            prop_assert_eq!(UploadId::parse(&upload.text()), Some(upload));
            let id = BlockId { upload, number, begun_us, crc64nvme };
            let text = id.text();
            // Azure's limit, and one length for all.
            prop_assert_eq!(text.len(), 52);
            prop_assert_eq!(BlockId::parse(&text), Some(id));
        }

        #[test]
        fn what_others_wrote_is_none(text in "\\PC{0,60}", bytes in any::<Vec<u8>>()) {
            prop_assert!(UploadId::parse(&text).is_none_or(|id| id.text() == text));
            let _ = BlockId::parse(&text);
            let _ = BlockId::parse(&base64(&bytes));
        }
    }

    #[test]
    fn upload_names_come_in_the_order_of_time() {
        assert!(upload(1).text() < upload(2).text());
        assert!(upload(255).text() < upload(256).text());
        assert_eq!(upload(5_000_000).begun(), 5);
        for text in [
            "",
            "x",
            "00",
            &"0".repeat(31),
            &"F".repeat(32),
            &"0".repeat(34),
        ] {
            assert_eq!(UploadId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_later_block_of_a_part_counts() {
        let block = |of: UploadId, number, begun_us| {
            let id = BlockId {
                upload: of,
                number,
                begun_us,
                crc64nvme: Some(begun_us),
            };
            (id.text(), begun_us)
        };
        let (mine, other) = (upload(1), upload(2));
        let blocks = [
            block(mine, 2, 30),
            block(mine, 1, 20),
            block(mine, 1, 10),
            block(other, 1, 99),
            ("c29tZWJvZHk=".to_owned(), 5),
        ];
        let parts = parts_of(mine, blocks);
        let found: Vec<_> = parts
            .values()
            .map(|p| (p.meta.number, p.meta.size))
            .collect();
        assert_eq!(found, [(1, 20), (2, 30)]);
        assert!(parts[&1].meta.etag.ends_with("-1"));
        assert_ne!(parts[&1].meta.etag, parts[&2].meta.etag);
    }
}
