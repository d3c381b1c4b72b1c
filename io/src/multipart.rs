//! Objects that come to a store in parts, or from another object of it: what can be asked.
//!
//! This file owns that vocabulary, beside [`crate::store`], and what every store that keeps parts
//! itself must hold them against. It never talks to a network and knows nothing of caching: an
//! upload in parts is at the store, and nowhere else, until it is complete.

use crate::store::{
    Attempts, ByteSpan, PutBody, PutReply, StoreError, StoreErrorKind, StoreResult,
};
use futures::future::LocalBoxFuture;
use std::cmp::Ordering;

/// Highest number of a part; the lowest is 1. S3's own limit.
pub const PART_NUMBER_MAX: u32 = 10_000;

/// The least size of every part but the last of a completed upload, bytes. S3's own limit.
pub const PART_BYTES_MIN: u64 = 5 << 20;

/// Refuses a part's number that no upload has.
pub fn check_part_number(number: u32) -> StoreResult<()> {
    if (1..=PART_NUMBER_MAX).contains(&number) {
        return Ok(());
    }
    let message = format!("part {number}: parts are numbered from 1 to {PART_NUMBER_MAX}");
    Err(StoreError::new(StoreErrorKind::Rejected, message))
}

/// Holds the parts that an upload is to be completed from against those that are kept, and gives
/// the kept ones in their order. Every part but the last must have at least `bytes_min` bytes.
///
/// # Errors
/// `Rejected` without any part, `InvalidPart` for one that is not kept, has another ETag or is out
/// of order, `PartTooSmall` for one that is.
pub fn choose_parts<'k>(
    listed: &[CompletedPart],
    bytes_min: u64,
    kept: impl Fn(u32) -> Option<&'k PartMeta>,
) -> StoreResult<Vec<&'k PartMeta>> {
    let refuse = |kind, why: String| Err(StoreError::new(kind, why));
    if listed.is_empty() {
        let message = "an upload cannot be completed from no part".to_owned();
        return refuse(StoreErrorKind::Rejected, message);
    }
    let mut chosen: Vec<&PartMeta> = Vec::with_capacity(listed.len());
    for part in listed {
        let number = part.number;
        if chosen.last().is_some_and(|last| last.number >= number) {
            let message = format!("part {number} is not in ascending order");
            return refuse(StoreErrorKind::InvalidPart, message);
        }
        match kept(number).filter(|kept| kept.etag == part.etag) {
            Some(kept) => chosen.push(kept),
            None => {
                let message = format!("part {number} is missing or has another ETag");
                return refuse(StoreErrorKind::InvalidPart, message);
            }
        }
    }
    let mut all_but_last = chosen.iter().take(chosen.len() - 1);
    if let Some(small) = all_but_last.find(|part| part.size < bytes_min) {
        let message = format!("part {} has only {} bytes", small.number, small.size);
        return refuse(StoreErrorKind::PartTooSmall, message);
    }
    Ok(chosen)
}

/// An upload in parts: the object that it is to become, and the store's name of the upload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadName {
    /// Key inside the volume, as raw characters.
    pub key: String,
    /// The store's own opaque name of the upload. A store answers `NoSuchUpload` for any that it
    /// does not know, whatever bytes are in it.
    pub upload_id: String,
}

/// Writes one part, replacing one of the same number.
pub struct PartRequest {
    /// The upload.
    pub upload: UploadName,
    /// 1 … [`PART_NUMBER_MAX`].
    pub number: u32,
    /// Exact length of the body, bytes.
    pub length: u64,
    /// Checksums of the part that the client gave, as `x-amz-checksum-*` headers; known before the
    /// body only if the body is in memory or the client sent them as headers.
    pub headers: Vec<(String, String)>,
    /// CRC64-NVME of the body where it is known.
    pub crc64nvme: Option<u64>,
    /// How often a body in memory may be sent; a stream is sent once.
    pub attempts: Attempts,
    /// The body.
    pub body: PutBody,
}

/// The bytes of an object of the same store that are to be copied there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySource {
    /// Key inside the volume, as raw characters.
    pub key: String,
    /// Copy only if the object's ETag (the store's, unquoted) is this one, else `PreconditionFailed`.
    pub if_match: Option<String>,
    /// The version with this id, not the present one; `Unsupported` where a store keeps none.
    pub version_id: Option<String>,
}

/// Makes an object from another one, inside the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    /// What is copied.
    pub source: CopySource,
    /// The object that is written; may be the source, if `headers` are replaced.
    pub key: String,
    /// `None`: the source's headers; else these, as in [`crate::store::ObjectMeta::headers`].
    pub headers: Option<Vec<(String, String)>>,
}

/// Makes a part from (a span of) an object, inside the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyPartRequest {
    /// What is copied.
    pub source: CopySource,
    /// Which bytes of it; `None`: all. A span that reaches past the end is `RangeNotSatisfiable`.
    pub span: Option<ByteSpan>,
    /// The upload.
    pub upload: UploadName,
    /// 1 … [`PART_NUMBER_MAX`].
    pub number: u32,
}

/// A part as the client lists it when it completes the upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletedPart {
    /// Its number.
    pub number: u32,
    /// The ETag that the store gave for it, unquoted.
    pub etag: String,
    /// Its checksums as the client tells them: names as in S3's document (`ChecksumCRC32`, …).
    pub checksums: Vec<(String, String)>,
}

/// Makes the object from parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompleteRequest {
    /// The upload.
    pub upload: UploadName,
    /// The parts in ascending order of their numbers; parts of the upload that are not among them
    /// are discarded.
    pub parts: Vec<CompletedPart>,
    /// Complete only if no object has this key.
    pub if_none_match: bool,
    /// Headers of the request that concern the whole object's checksum: `x-amz-checksum-*` and
    /// `x-amz-mp-object-size`.
    pub headers: Vec<(String, String)>,
}

/// A part as the store describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartMeta {
    /// Its number.
    pub number: u32,
    /// Its ETag, unquoted.
    pub etag: String,
    /// Its length, bytes.
    pub size: u64,
    /// Seconds since the Unix epoch; 0 when the store gave none.
    pub last_modified: u64,
}

/// Asks for the parts of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsRequest {
    /// The upload.
    pub upload: UploadName,
    /// Only parts with a higher number; 0 for all.
    pub after: u32,
    /// At most so many, 1 … 1,000.
    pub limit: usize,
}

/// Parts in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartsPage {
    /// The parts; fewer than asked for although more follow are allowed, but never none then.
    pub parts: Vec<PartMeta>,
    /// Whether more follow.
    pub is_truncated: bool,
}

/// An upload that is neither complete nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadMeta {
    /// Its key and name.
    pub upload: UploadName,
    /// When it was begun, seconds since the Unix epoch; 0 when the store gave none.
    pub initiated: u64,
}

/// Asks for uploads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadsRequest {
    /// Only of keys that start so.
    pub prefix: String,
    /// Only of keys behind this one, or of this one with an upload behind `upload_id_marker`
    /// (empty: none of this key).
    pub key_marker: String,
    /// See `key_marker`; means nothing without it.
    pub upload_id_marker: String,
    /// At most so many, 1 … 1,000.
    pub limit: usize,
}

impl UploadsRequest {
    /// Whether an upload is behind the markers, in a store whose uploads of one key are in the order
    /// of their names' bytes.
    pub fn is_behind_markers(&self, upload: &UploadName) -> bool {
        match upload.key.as_str().cmp(&self.key_marker) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => {
                !self.upload_id_marker.is_empty() && upload.upload_id > self.upload_id_marker
            }
        }
    }
}

/// Uploads in the order of their keys' UTF-8 bytes, then in an order of the store's. From Ceph
/// and Swift a key comes after those that go on behind it with a byte below `.` or `/`; their markers
/// go by the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadsPage {
    /// The uploads; fewer than asked for although more follow are allowed, but never none then.
    pub uploads: Vec<UploadMeta>,
    /// Whether more follow.
    pub is_truncated: bool,
}

/// What a [`crate::store::Store`] does with parts and copies. The same rules hold for its calls.
pub trait PartStore {
    /// Copies an object inside the store.
    fn copy(&self, request: CopyRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>>;
    /// Begins an upload; `headers` become the object's. Returns its name.
    fn create_upload(
        &self,
        key: String,
        headers: Vec<(String, String)>,
    ) -> LocalBoxFuture<'_, StoreResult<UploadName>>;
    /// Writes a part, whole or not at all.
    fn put_part(&self, request: PartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>>;
    /// Copies a part inside the store.
    fn copy_part(&self, request: CopyPartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>>;
    /// Makes the object from its parts, whole or not at all. The ETag of the answer is the object's,
    /// also where the store's own answer has none (Ceph's before 18).
    fn complete_upload(
        &self,
        request: CompleteRequest,
    ) -> LocalBoxFuture<'_, StoreResult<PutReply>>;
    /// Discards an upload and its parts.
    fn abort_upload(&self, upload: UploadName) -> LocalBoxFuture<'_, StoreResult<()>>;
    /// Lists the parts of an upload.
    fn list_parts(&self, request: PartsRequest) -> LocalBoxFuture<'_, StoreResult<PartsPage>>;
    /// Lists uploads.
    fn list_uploads(&self, request: UploadsRequest)
    -> LocalBoxFuture<'_, StoreResult<UploadsPage>>;
}
