//! What a file knows about its object, at its end.
//!
//! This file owns the bytes behind an object's bytes. They are in the same file so that one rename
//! publishes both or neither, on any file system, without extended attributes. A file without a
//! trailer is a plain file that somebody put there: all of it is the object. The magic stands twice
//! so that damage to one does not turn a file of ours into a plain one, trailer and all.
//!
//! ```text
//! object bytes                  so that a range is read from where it is
//! metadata, JSON                etag, last_modified, headers, the object's CRC64-NVME
//! magic          8 bytes        "FBOBJ\r\n\x01": the last byte is the version
//! object length  8 bytes LE
//! JSON length    4 bytes LE
//! zero           4 bytes
//! CRC64-NVME     8 bytes LE     of the JSON and the 24 bytes before this
//! magic          8 bytes        again
//! ```
//!
//! The fixed part is last: a reader knows where it is without having read anything.

use crc_fast::{CrcAlgorithm, Digest};
use forebay_io::store::{ObjectHead, ObjectMeta};
use serde::{Deserialize, Serialize};

/// Bytes of the fixed part.
pub(super) const TAIL_BYTES: usize = 40;

/// Longest JSON that is believed: S3 takes 8 KiB of request headers, which JSON may escape.
pub(super) const JSON_BYTES_MAX: usize = 64 * 1024;

const MAGIC: [u8; 8] = *b"FBOBJ\r\n\x01";

#[derive(Serialize, Deserialize)]
struct Metadata {
    etag: String,
    last_modified: u64,
    headers: Vec<(String, String)>,
    /// Files of the first version have none.
    #[serde(default)]
    crc64nvme: Option<u64>,
}

/// The fixed part, once it looks right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) object_bytes: u64,
    pub(super) json_bytes: usize,
    checksum: u64,
}

/// What the last bytes of a file say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Somebody put it there: no trailer.
    Plain,
    /// We wrote it.
    Ours(Tail),
    /// We wrote it, and it was damaged since.
    Damaged,
}

/// The trailer of an object; `None` if its headers are too long to be kept.
pub(super) fn encode(head: &ObjectHead) -> Option<Vec<u8>> {
    let meta = &head.meta;
    let metadata = Metadata {
        etag: meta.etag.clone(),
        last_modified: meta.last_modified,
        headers: meta.headers.clone(),
        crc64nvme: head.crc64nvme,
    };
    let mut trailer = serde_json::to_vec(&metadata).ok()?;
    if trailer.len() > JSON_BYTES_MAX {
        return None;
    }
    let json_bytes = trailer.len() as u32;
    trailer.extend_from_slice(&MAGIC);
    trailer.extend_from_slice(&meta.size.to_le_bytes());
    trailer.extend_from_slice(&json_bytes.to_le_bytes());
    trailer.extend_from_slice(&[0; 4]);
    let checksum = checksum(&trailer);
    trailer.extend_from_slice(&checksum.to_le_bytes());
    trailer.extend_from_slice(&MAGIC);
    Some(trailer)
}

/// Judges a file of `file_bytes` by its last bytes.
pub(super) fn decode_tail(tail: &[u8; TAIL_BYTES], file_bytes: u64) -> Kind {
    let magics = (tail[..8] == MAGIC, tail[32..] == MAGIC);
    if magics == (false, false) {
        return Kind::Plain;
    }
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&tail[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (object_bytes, json_bytes) = (word(8), word(16));
    let expected = object_bytes
        .checked_add(json_bytes)
        .and_then(|bytes| bytes.checked_add(TAIL_BYTES as u64));
    let is_sound = magics == (true, true)
        && json_bytes <= JSON_BYTES_MAX as u64
        && expected == Some(file_bytes);
    if !is_sound {
        return Kind::Damaged;
    }
    Kind::Ours(Tail {
        object_bytes,
        json_bytes: json_bytes as usize,
        checksum: word(24),
    })
}

/// The object's description from its JSON; `None` if the trailer is damaged.
pub(super) fn decode(tail: &Tail, raw_tail: &[u8; TAIL_BYTES], json: &[u8]) -> Option<ObjectHead> {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(json);
    digest.update(&raw_tail[..24]);
    if digest.finalize() != tail.checksum {
        return None;
    }
    let metadata: Metadata = serde_json::from_slice(json).ok()?;
    Some(ObjectHead {
        version_id: None,
        meta: ObjectMeta {
            size: tail.object_bytes,
            etag: metadata.etag,
            last_modified: metadata.last_modified,
            headers: metadata.headers,
        },
        crc64nvme: metadata.crc64nvme,
    })
}

fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> ObjectHead {
        ObjectHead {
            version_id: None,
            meta: ObjectMeta {
                size: 5,
                etag: "tag".into(),
                last_modified: 1_700_000_000,
                headers: vec![("x-amz-meta-a".into(), "ü\"\\".into())],
            },
            crc64nvme: Some(u64::MAX),
        }
    }

    #[derive(Debug, PartialEq)]
    enum Read {
        Plain,
        Ours(ObjectHead),
        Damaged,
    }

    fn read(file: &[u8]) -> Read {
        let Some((_, tail)) = file.split_last_chunk::<TAIL_BYTES>() else {
            return Read::Plain;
        };
        let decoded = match decode_tail(tail, file.len() as u64) {
            Kind::Plain => return Read::Plain,
            Kind::Damaged => return Read::Damaged,
            Kind::Ours(decoded) => decoded,
        };
        let json_end = file.len() - TAIL_BYTES;
        let json = &file[json_end - decoded.json_bytes..json_end];
        decode(&decoded, tail, json).map_or(Read::Damaged, Read::Ours)
    }

    #[test]
    fn what_is_written_is_read() {
        let mut file = b"bytes".to_vec();
        file.extend(encode(&head()).expect("small headers"));
        assert_eq!(read(&file), Read::Ours(head()));
    }

    #[test]
    fn files_of_the_first_version_are_read() {
        let json = r#"{"etag":"tag","last_modified":7,"headers":[]}"#;
        let metadata: Metadata = serde_json::from_str(json).expect("without a checksum");
        assert_eq!(metadata.crc64nvme, None);
    }

    #[test]
    fn every_flipped_bit_of_the_trailer_is_noticed() {
        let mut file = b"bytes".to_vec();
        file.extend(encode(&head()).expect("small headers"));
        for bit in 5 * 8..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&damaged), Read::Damaged, "bit {bit}");
        }
    }

    #[test]
    fn headers_without_end_are_not_kept() {
        let mut head = head();
        head.meta.headers[0].1 = "x".repeat(JSON_BYTES_MAX);
        assert!(encode(&head).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_asked(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(read(&bytes), Read::Plain);
        }
    }
}
