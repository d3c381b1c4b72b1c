//! Objects that come to a store in parts, or from another object of it: what can be asked.
//!
//! This file owns that vocabulary, beside [`crate::store`]. It never talks to a network and knows
//! nothing of caching: an upload in parts is at the store, and nowhere else, until it is complete.

use crate::store::{
    Attempts, ByteSpan, PutBody, PutReply, StoreError, StoreErrorKind, StoreResult,
};
use futures::future::LocalBoxFuture;

/// Highest number of a part; the lowest is 1. S3's own limit.
pub const PART_NUMBER_MAX: u32 = 10_000;

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

/// Uploads in the order of their keys' UTF-8 bytes, then in an order of the store's.
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
    fn copy(&self, _request: CopyRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        unsupported()
    }
    /// Begins an upload; `headers` become the object's. Returns its name.
    fn create_upload(
        &self,
        _key: String,
        _headers: Vec<(String, String)>,
    ) -> LocalBoxFuture<'_, StoreResult<UploadName>> {
        unsupported()
    }
    /// Writes a part, whole or not at all.
    fn put_part(&self, _request: PartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        unsupported()
    }
    /// Copies a part inside the store.
    fn copy_part(&self, _request: CopyPartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        unsupported()
    }
    /// Makes the object from its parts, whole or not at all. The ETag of the answer is the object's,
    /// also where the store's own answer has none (Ceph's before 18).
    fn complete_upload(
        &self,
        _request: CompleteRequest,
    ) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        unsupported()
    }
    /// Discards an upload and its parts.
    fn abort_upload(&self, _upload: UploadName) -> LocalBoxFuture<'_, StoreResult<()>> {
        unsupported()
    }
    /// Lists the parts of an upload.
    fn list_parts(&self, _request: PartsRequest) -> LocalBoxFuture<'_, StoreResult<PartsPage>> {
        unsupported()
    }
    /// Lists uploads.
    fn list_uploads(
        &self,
        _request: UploadsRequest,
    ) -> LocalBoxFuture<'_, StoreResult<UploadsPage>> {
        unsupported()
    }
}

fn unsupported<T: 'static>() -> LocalBoxFuture<'static, StoreResult<T>> {
    let error = StoreError::new(
        StoreErrorKind::Unsupported,
        "this store knows neither parts nor copies",
    );
    Box::pin(async move { Err(error) })
}
