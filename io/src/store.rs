//! The object store as an effect: what a store can be asked, what it may answer, how it may fail.
//!
//! This file owns the vocabulary between a core's uplink and whatever stands behind it: the real
//! stores live in the server crate (`s3`, `file`), the in-memory faulty twin in [`crate::sim`].
//! It never talks to a network, never retries and knows nothing of blocks: a request names an
//! object and at most one byte range of it.

use crate::listing::{ListPage, ListRequest};
use crate::multipart::PartStore;
use crate::tags::TagStore;
use crate::versions::{Deleted, VersionStore};
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::LocalBoxStream;
use std::fmt;
use std::time::Duration;

/// Longest key a store takes, bytes of UTF-8, its volume's prefix included: S3's own limit.
pub const KEY_BYTES_MAX: usize = 1024;

/// Refuses keys that cannot reach every store byte for byte.
///
/// Those are the empty key (a DELETE of it would name the bucket), keys over [`KEY_BYTES_MAX`],
/// keys with a NUL, and keys with a segment that is `.` or `..`, plain or with its dots written as
/// `%2e`: URL libraries and servers resolve such segments, so that the request would name another
/// object.
pub fn check_key(key: &str) -> StoreResult<()> {
    let refuse = |why: &str| Err(StoreError::new(StoreErrorKind::InvalidKey, why));
    if key.is_empty() {
        return refuse("the key is empty; it must have at least one byte");
    }
    if key.len() > KEY_BYTES_MAX {
        return refuse("the key with its prefix is longer than 1,024 bytes");
    }
    if key.contains('\0') {
        return refuse("the key holds a NUL byte; no store takes one");
    }
    if key.split('/').any(is_dot_segment) {
        return refuse("the key has a segment `.` or `..`; it would name another object");
    }
    Ok(())
}

/// Whether a URL library may resolve `segment` away. `%2e` is a dot to the URL standard, so it
/// counts as one here although our own encoding would keep it apart.
fn is_dot_segment(segment: &str) -> bool {
    let dots = segment.to_ascii_lowercase().replace("%2e", ".");
    dots == "." || dots == ".."
}

/// What a store answers with.
pub type StoreResult<T> = Result<T, StoreError>;

/// What went wrong, by what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// The object does not exist. A fact, not a fault.
    NotFound,
    /// There is no such upload in parts. A fact, not a fault.
    NoSuchUpload,
    /// The parts that an upload is to be completed from are not those that the store has: one is
    /// missing, has another ETag or checksum, or they are out of order (400 `InvalidPart`,
    /// `InvalidPartOrder`).
    InvalidPart,
    /// A part other than the last is too small to complete the upload (400 `EntityTooSmall`).
    PartTooSmall,
    /// The bucket or root folder is gone or was never there. A fault: nothing is deduced about keys.
    NoSuchBucket,
    /// `If-Match` or `If-None-Match` did not hold (412).
    PreconditionFailed,
    /// `If-None-Match` held: the caller's copy is current (304).
    NotModified,
    /// The range starts past the end of the object (416).
    RangeNotSatisfiable,
    /// The store refuses our credentials or the access (401, 403). Heals when those change.
    Denied,
    /// The store finds our clock too far from its own, and signing by its clock did not help (403
    /// `RequestTimeTooSkewed`). Heals when a clock is set right.
    ClockSkew,
    /// We ask in the wrong place or for the wrong region: a redirect, or a scope that the store
    /// does not take. Says nothing about the object. Heals only by an operator.
    Misdirected,
    /// The store asks us to slow down (503, 429).
    SlowDown,
    /// Another request for the same key is under way at the store (409).
    Contended,
    /// A deadline passed, the connection stalled, or the body came slower than the least rate.
    Timeout,
    /// No connection: refused, reset before an answer, DNS, TLS.
    Unreachable,
    /// The answer contradicts itself: short, long, other range, other version, bad checksum.
    Corrupt,
    /// The store failed (5xx other than 503).
    Internal,
    /// The store refuses the request itself for good (400, 413 and other 4xx), in its own words: an
    /// answer that no object store wrote is [`StoreErrorKind::Corrupt`].
    Rejected,
    /// The key cannot be sent to this store byte for byte.
    InvalidKey,
    /// The store cannot do this.
    Unsupported,
}

impl StoreErrorKind {
    /// Whether the same request may succeed if it is only sent again.
    pub fn is_retryable(self) -> bool {
        use StoreErrorKind::{
            ClockSkew, Contended, Corrupt, Denied, Internal, InvalidKey, InvalidPart, Misdirected,
            NoSuchBucket, NoSuchUpload, NotFound, NotModified, PartTooSmall, PreconditionFailed,
            RangeNotSatisfiable, Rejected, SlowDown, Timeout, Unreachable, Unsupported,
        };
        match self {
            SlowDown | Contended | Timeout | Unreachable | Corrupt | Internal => true,
            NotFound | NoSuchUpload | InvalidPart | PartTooSmall | NoSuchBucket
            | PreconditionFailed | NotModified | RangeNotSatisfiable | Denied | ClockSkew
            | Misdirected | Rejected | InvalidKey | Unsupported => false,
        }
    }
}

/// A failed store request.
#[derive(Clone, Debug)]
pub struct StoreError {
    /// Class of the failure.
    pub kind: StoreErrorKind,
    /// The store's HTTP status, where it answered with one.
    pub status: Option<u16>,
    /// For people: what was tried and what came back. Never holds a secret or a signed URL.
    pub message: String,
    /// The store's `Retry-After`, where it sent one.
    pub retry_after: Option<Duration>,
    /// For [`StoreErrorKind::RangeNotSatisfiable`]: the object's size, where the store told it.
    pub object_size: Option<u64>,
    /// How many times the request was sent before this was given up.
    pub attempts: u32,
    /// Whether there was no connection at the last attempt, so that nothing of it reached the store.
    pub was_never_sent: bool,
}

impl StoreError {
    /// An error of `kind` after one attempt, with a message for people.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        StoreError {
            kind,
            status: None,
            message: message.into(),
            retry_after: None,
            object_size: None,
            attempts: 1,
            was_never_sent: false,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)?;
        if let Some(status) = self.status {
            write!(f, " (status {status})")?;
        }
        if self.attempts > 1 {
            write!(f, " after {} attempts", self.attempts)?;
        }
        Ok(())
    }
}

impl std::error::Error for StoreError {}

/// What starts the names of headers that tell a checksum of an object.
pub const CHECKSUM_PREFIX: &str = "x-amz-checksum-";

/// An object as the store describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Length of the whole object, bytes.
    pub size: u64,
    /// Entity tag without its quotes; a weak tag keeps its `W/` and is never used as a validator.
    pub etag: String,
    /// Seconds since the Unix epoch; 0 when the store gave none.
    pub last_modified: u64,
    /// Headers that belong to the object and are given back with it: names in lower case, among
    /// `content-type`, `cache-control`, `content-disposition`, `content-encoding`,
    /// `content-language`, `expires`, `x-amz-meta-*` and [`CHECKSUM_PREFIX`]`*`. Of the last, a store
    /// keeps what it can.
    pub headers: Vec<(String, String)>,
}

impl ObjectMeta {
    /// Whether a checksum of the object is told.
    pub fn has_checksum(&self) -> bool {
        let mut names = self.headers.iter().map(|(name, _)| name);
        names.any(|name| name.starts_with(CHECKSUM_PREFIX))
    }

    /// Takes over the checksum that is told of the same version elsewhere, if none is told here.
    pub fn inherit_checksum(&mut self, known: &ObjectMeta) {
        if self.has_checksum() {
            return;
        }
        let told = known.headers.iter();
        let told = told.filter(|(name, _)| name.starts_with(CHECKSUM_PREFIX));
        self.headers.extend(told.cloned());
    }
}

/// An object as the store describes it to [`Store::head`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectHead {
    /// The object.
    pub meta: ObjectMeta,
    /// CRC64-NVME of all its bytes, where the store knows it.
    pub crc64nvme: Option<u64>,
    /// The id of this version, where the store tells one.
    pub version_id: Option<String>,
}

/// A half-open span of bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSpan {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteSpan {
    /// Bytes in the span.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// Asks for an object or a span of it.
#[derive(Clone, Debug, Default)]
pub struct GetRequest {
    /// Key inside the volume, as raw characters (not percent-encoded).
    pub key: String,
    /// The bytes wanted; may reach past the end, the reply is then cut at the end. A span that
    /// starts at or past the end is `RangeNotSatisfiable`, in an empty object too; an empty span
    /// is `Rejected`, for HTTP cannot say it. `None` asks for all.
    pub span: Option<ByteSpan>,
    /// Answer only if the object's ETag is this one (unquoted), else `PreconditionFailed`.
    pub if_match: Option<String>,
    /// Answer `NotModified` if the object's ETag is this one (unquoted).
    pub if_none_match: Option<String>,
    /// The version with this id, not the present one; `Unsupported` where a store keeps none.
    pub version_id: Option<String>,
}

/// The head of an answer to [`GetRequest`], and its body.
pub struct GetReply {
    /// The whole object's description.
    pub meta: ObjectMeta,
    /// The bytes that `body` yields, exactly. An implementation whose store sends fewer or more
    /// ends the body with [`StoreErrorKind::Corrupt`].
    pub span: ByteSpan,
    /// The bytes, in order, in pieces of any size; ends after `span.len()` bytes or with an error.
    pub body: LocalBoxStream<'static, StoreResult<Bytes>>,
}

/// The bytes of an object on their way to the store.
pub enum PutBody {
    /// All of them, in memory: the request may be sent again.
    Whole(Vec<Bytes>),
    /// A stream that can be consumed once: the request is sent once.
    Stream(LocalBoxStream<'static, StoreResult<Bytes>>),
}

/// How often a request may be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attempts {
    /// As often as the store's own policy of a few seconds allows: somebody is waiting.
    #[default]
    StorePolicy,
    /// Once: whoever asks has a policy of their own. Sent anew all the same is a request that was
    /// refused for something that the answer itself put right, such as a clock that is off.
    Once,
}

/// Writes a whole object.
pub struct PutRequest {
    /// Key inside the volume, as raw characters.
    pub key: String,
    /// Exact length of the body, bytes.
    pub length: u64,
    /// The object's headers, as in [`ObjectMeta::headers`].
    pub headers: Vec<(String, String)>,
    /// CRC64-NVME of the body where it is known: sent to stores that can verify it.
    pub crc64nvme: Option<u64>,
    /// Write only if no object has this key (`If-None-Match: *`).
    pub if_none_match: bool,
    /// Write only if the object's ETag is this one (the store's, unquoted), else
    /// `PreconditionFailed`. Where there is no object: `NotFound`, as S3 says it, or
    /// `PreconditionFailed` from stores that say that. `Unsupported` where a store does not know it.
    pub if_match: Option<String>,
    /// How often a body in memory may be sent; a stream is sent once.
    pub attempts: Attempts,
    /// The body.
    pub body: PutBody,
}

/// A store's answer to a successful [`PutRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutReply {
    /// Entity tag without its quotes.
    pub etag: String,
    /// Seconds since the Unix epoch; 0 when the store gave none with the answer.
    pub last_modified: u64,
    /// The id of the version that was made, where the store told one.
    pub version_id: Option<String>,
}

/// An object store: one bucket and prefix, or one folder.
///
/// Methods are called on the companion thread of one core, whose runtime is tokio's
/// current-thread one (or the simulator's executor); futures and streams never leave that thread.
/// Dropping a future abandons the request, whose outcome is then unknown.
pub trait Store: PartStore + TagStore + VersionStore {
    /// Reads an object or a span of it. `Ok` as soon as the head is known and agrees with the
    /// request.
    fn get(&self, request: GetRequest) -> LocalBoxFuture<'_, StoreResult<GetReply>>;
    /// Describes an object.
    fn head(&self, key: String) -> LocalBoxFuture<'_, StoreResult<ObjectHead>>;
    /// Writes an object, whole or not at all.
    fn put(&self, request: PutRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>>;
    /// Removes an object; removing what is not there succeeds. A bucket that keeps versions puts a
    /// marker in its place.
    fn delete(&self, key: String) -> LocalBoxFuture<'_, StoreResult<Deleted>>;
    /// Lists objects in the order of their UTF-8 bytes. A page may have fewer names than asked for
    /// although more follow, but never none then.
    fn list(&self, request: ListRequest) -> LocalBoxFuture<'_, StoreResult<ListPage>>;
}

#[cfg(test)]
mod tests {
    use super::{KEY_BYTES_MAX, StoreErrorKind, check_key};

    #[test]
    fn keys_that_would_name_something_else_are_refused() {
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for key in [
            "",
            ".",
            "..",
            "a/..",
            "../b",
            "a/./b",
            "a/%2e%2E/b",
            ".%2e",
            "%2E",
            "a\0b",
            &long,
        ] {
            let error = check_key(key).expect_err(key);
            assert_eq!(error.kind, StoreErrorKind::InvalidKey, "{key}");
        }
    }

    #[test]
    fn odd_keys_that_reach_a_store_are_taken() {
        let longest = "x".repeat(KEY_BYTES_MAX);
        for key in [
            "a",
            "...",
            "a..b",
            ".a",
            "a.",
            "/",
            "//",
            "/a",
            "a/",
            "a//b",
            "%2e%2e%2e",
            "%252e",
            "ü",
            "a b+c?d#e",
            "\\..\\",
            &longest,
        ] {
            assert!(check_key(key).is_ok(), "{key}");
        }
    }
}
