//! Every limit of the HTTP side, with its reason. Nothing here changes at run time.

use forebay_io::net::{SOCKET_BYTES_MAX, TLS_BYTES_MAX};
use std::time::Duration;

/// Longest document that names an object's tags, bytes: ten of the longest, every character escaped.
pub const TAGGING_BODY_BYTES_MAX: u64 = 32 << 10;

/// Request head, bytes: the request line and all headers. S3's own limit is 8 KiB of headers;
/// twice that leaves room for long keys.
pub const HEAD_BYTES_MAX: usize = 16 << 10;

/// Headers of a request. SDKs send some 20; user metadata of 2 KiB rarely makes 50 more.
pub const HEADERS_MAX: usize = 100;

/// Request target, bytes: a key of 1,024 bytes with each percent-encoded is 3 KiB, and so is a list's
/// prefix, beside a token of 1.4 KiB; a presigned query has some 800 bytes.
pub const TARGET_BYTES_MAX: usize = 8 << 10;

/// From the first byte of a request head to its last.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(10);

/// A TLS handshake, start to end.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);

/// A kept-alive connection without a request.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(60);

/// What any body, in either direction, may take at the start before its rate counts.
pub const BODY_GRACE: Duration = Duration::from_secs(10);

/// Least rate of a body in either direction after the grace, bytes per second. A client slower
/// than this holds a block buffer for minutes.
pub const BODY_RATE_MIN: u64 = 64 << 10;

/// Bytes of a body that a response has made unnecessary and that are read and thrown away to keep
/// the connection; a longer rest closes it, which is cheaper than reading it.
pub const DRAIN_BYTES_MAX: u64 = 64 << 10;

/// How long a closing connection waits for the client to read our last answer.
pub const LINGER_TIME_MAX: Duration = Duration::from_secs(2);

/// Bytes sent with one deadline: small enough that the deadline means something, large enough
/// that timers cost nothing.
pub const SEND_BYTES_MAX: usize = 1 << 20;

/// Largest object that one PUT may carry (S3's limit), bytes.
pub const OBJECT_BYTES_MAX: u64 = 5 << 30;

/// Blocks of a multi-block PUT that are kept in memory until the store has the object, to be
/// cached then. Objects beyond it are written around the cache and fetched when read.
pub const PUT_BLOCKS_KEPT_MAX: usize = 8;

/// Connections of a core that receive a body at a time while others have bytes waiting, too.
pub const RECEIVING_MAX: usize = 1;

/// Bytes asked of the stream while looking for a head: more than nearly all have. The stream has its own, larger buffer.
pub const HEAD_READ_BYTES: usize = 2 << 10;

/// Bytes asked of the stream while taking off a chunked transfer coding, or S3's own envelope.
pub const CHUNKED_READ_BYTES: usize = 64 << 10;

/// Connections per core, where memory and descriptors allow it. Each idle TLS connection holds
/// some 20 KiB.
pub const CONNECTIONS_MAX: usize = 8192;

/// Memory of a connection's task and its state between requests, bytes.
const CONNECTION_STATE_BYTES: usize = 16 << 10;

/// The most memory that a connection holds, bytes: one that uploads through both codings, or sends
/// as fast as it can. Block buffers are not counted: the pool counts them.
pub const fn connection_bytes_max(tls: bool) -> usize {
    let tls_bytes = if tls { TLS_BYTES_MAX } else { 0 };
    let head_bytes = HEAD_BYTES_MAX + HEAD_READ_BYTES;
    SOCKET_BYTES_MAX + tls_bytes + head_bytes + 2 * CHUNKED_READ_BYTES + CONNECTION_STATE_BYTES
}

/// How long accepting pauses when descriptors have run out.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What `Retry-After` says when we are overloaded, seconds.
pub const RETRY_AFTER_SECONDS: u32 = 1;

/// Times that a read starts over because the object changed under it, before it gives up.
pub const CHANGED_RETRIES_MAX: usize = 3;

/// How far the clock of whoever signed a request may be from ours, seconds: S3's own limit.
pub const SIGNATURE_SKEW_SECONDS_MAX: i64 = 15 * 60;

/// Longest life of a presigned URL, seconds: a week, as in S3.
pub const PRESIGNED_SECONDS_MAX: i64 = 7 * 24 * 60 * 60;

/// Lists that a core makes at a time: a store answers one in some tens of milliseconds, and each may
/// take [`LIST_BYTES_MAX`]. Others wait for their turn.
pub const LISTS_MAX: usize = 3;

/// The most memory of a list while it is made, bytes: the store's answer, its names, those of what is
/// dirty, and our answer, all of a thousand keys of 1,024 bytes that are percent-encoded.
pub const LIST_BYTES_MAX: usize = 12 << 20;

/// How long a list, or a DeleteObjects, waits for its turn.
pub const LIST_WAIT_MAX: Duration = Duration::from_secs(10);

/// Pages that a store is asked for to fill one of ours. A store that gives less than a fifth of what
/// it is asked for makes ours shorter, which S3 allows.
pub const LIST_STORE_PAGES_MAX: usize = 5;

/// Names that are written into an answer before others on the core have their turn.
pub const LIST_PAUSE_NAMES: usize = 128;

/// Versions that a core reads at a time, past the cache: each holds one of its fetches until its client
/// has taken all, so they must not be many of those. Others wait for their turn.
pub const VERSION_READS_MAX: usize = 4;

/// How long a read of a version waits for its turn.
pub const VERSION_WAIT_MAX: Duration = Duration::from_secs(10);

/// Body of one PutBucketVersioning, bytes: two words, and room for blanks.
pub const VERSIONING_BODY_BYTES_MAX: u64 = 4 << 10;

/// Keys of one DeleteObjects: S3's own limit.
pub const DELETE_KEYS_MAX: usize = 1000;

/// Body of one DeleteObjects, bytes: S3's own limit.
pub const DELETE_BODY_BYTES_MAX: u64 = 2 << 20;

/// Body of one CompleteMultipartUpload, bytes: 10,000 parts, each with an ETag and its longest checksum.
pub const COMPLETE_BODY_BYTES_MAX: u64 = 2 << 20;

/// DeleteObjects of a core at a time, each with its document in memory. Others wait for their turn.
pub const DELETES_MAX: usize = 3;

/// The most memory of one, bytes: its document, the keys in it, and the answer.
pub const DELETE_BYTES_MAX: usize = 5 << 20;

/// Keys of one DeleteObjects that are deleted at a time. Each is a request to the store.
pub const DELETES_AT_ONCE_MAX: usize = 16;

/// Keys of one DeleteObjects that may fail in a row because the store is away, before the rest is not
/// tried: each costs seconds, and a client waits for all.
pub const DELETE_FAILURES_MAX: usize = DELETES_AT_ONCE_MAX;
