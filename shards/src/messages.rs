//! What cores ask of each other, and what they answer.
//!
//! Everything here may cross cores; it carries handles to bytes, never the bytes. This file holds
//! no behaviour.

use crate::backlog::{AbandonError, Backlog, DirtyBlock, Exported, ObjectName};
use crate::key::{BlockId, Volume};
use crate::names::NamesError;
use crate::parts::{Assembly, KnownParts, NotedPart, Place};
use crate::range::RangeSpec;
use crate::stats::CoreSnapshot;
use bytes::Bytes;
use forebay_io::buffer::{BufferWriter, View, Watch};
use forebay_io::listing::{ListPage, ListRequest};
use forebay_io::multipart::CompletedPart;
use forebay_io::queue::Receiver;
use forebay_io::store::{ByteSpan, ObjectMeta, StoreError, StoreResult};
use forebay_io::tags::Tags;
use forebay_io::versions::Deleted;
use futures::channel::oneshot;
use std::ops::Range;
use std::sync::Arc;

/// How an answer came about. One per response; the labels are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// From the owner core's memory.
    HitRam,
    /// From the owner core's segment files.
    HitDisk,
    /// Joined a fetch that another reader had started.
    Coalesced,
    /// Fetched from the store for this reader.
    Miss,
    /// The store confirmed the cached copy.
    Revalidated,
    /// From this proxy, which alone has it: the store does not yet.
    HitDirty,
    /// Passed by the cache.
    Bypass,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 7] = [
        Outcome::HitRam,
        Outcome::HitDisk,
        Outcome::Coalesced,
        Outcome::Miss,
        Outcome::Revalidated,
        Outcome::HitDirty,
        Outcome::Bypass,
    ];

    /// The label in `x-cache` and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::HitRam => "hit-ram",
            Outcome::HitDisk => "hit-disk",
            Outcome::Coalesced => "coalesced",
            Outcome::Miss => "miss",
            Outcome::Revalidated => "revalidated",
            Outcome::HitDirty => "hit-dirty",
            Outcome::Bypass => "bypass",
        }
    }
}

/// Bytes of one block.
#[derive(Clone)]
pub enum BlockBody {
    /// All there.
    Ready(View),
    /// Arriving: `range` of what `watch` follows.
    Filling {
        /// The block as it fills.
        watch: Watch,
        /// The wanted bytes of it.
        range: Range<usize>,
    },
    /// Being read from disk, verified piece by piece: as it fills, but if it breaks off, whoever asks
    /// for the rest again gets it from where the rest can be had.
    Reading {
        /// The block as it is read.
        watch: Watch,
        /// The wanted bytes of it.
        range: Range<usize>,
    },
}

/// An object opened at its home: what it is, and its first block's part of what was wanted.
#[derive(Clone)]
pub struct Opened {
    /// The object.
    pub meta: Arc<ObjectMeta>,
    /// How it was found.
    pub outcome: Outcome,
    /// The bytes wanted of the object; empty when only the description was.
    pub span: ByteSpan,
    /// The part of `span` in block 0, if any.
    pub first: Option<BlockBody>,
}

/// Why an object or block cannot be given.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such object.
    #[error("no such object")]
    NotFound,
    /// The range holds no byte of an object of this size.
    #[error("the range holds no byte of the object's {size}")]
    NotSatisfiable {
        /// The object's size.
        size: u64,
    },
    /// The object is no longer the version asked for.
    #[error("the object changed")]
    Changed,
    /// No memory for another block now.
    #[error("all block buffers are in use")]
    Overloaded,
    /// The part of the cache that alone may have the object is still being loaded after a start.
    #[error("the cache is still loading; try again in a moment")]
    Loading,
    /// The only copy of the block is here, and the disk cannot give it now.
    #[error("the block is not yet in the store, and the disk cannot read it: {0}")]
    Unreadable(String),
    /// The store failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

/// Why a write was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The store failed or refused.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The key is taken, and was to be written only if free.
    #[error("the object exists")]
    Exists,
    /// The key was to be written only if it holds one version, and it holds another.
    #[error("the object is of another version")]
    OtherVersion,
    /// Keys of the volume are written once, and this one holds something else.
    #[error("the volume is immutable, and the object has other content")]
    Immutable,
    /// The disk does not answer, so that what it holds of the object is not known to be gone.
    #[error("the disk does not answer")]
    Stalled,
    /// The body never became complete.
    #[error("the body is incomplete")]
    Incomplete,
    /// The part of the cache that the object belongs to is still being loaded after a start.
    #[error("the cache is still loading; try again in a moment")]
    Loading,
}

/// A complete block and its checksums.
pub struct BlockPayload {
    /// The bytes, as the body of a buffer whose headroom is free.
    pub buffer: BufferWriter,
    /// CRC64-NVME of all of it.
    pub crc64nvme: u64,
    /// CRC32C of each chunk.
    pub chunk_crcs: Vec<u32>,
}

/// A write that was done.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object.
    pub meta: Arc<ObjectMeta>,
    /// Whether this proxy alone has it so far.
    pub is_dirty: bool,
    /// The id of the version that was made, where the bucket keeps versions.
    pub version_id: Option<String>,
}

/// An object on its way to the store.
pub enum PutSource {
    /// One of at most a block, while it is received: its buffer, and in the end the verified whole.
    /// If that never comes, nothing was written.
    Arriving(Watch, oneshot::Receiver<BlockPayload>),
    /// A larger one, as it arrives.
    Stream(Receiver<StoreResult<Bytes>>),
}

/// What of an object is known only when all of its bytes are.
#[derive(Clone, Debug, Default)]
pub struct LateFacts {
    /// More headers that belong to it.
    pub headers: Vec<(String, String)>,
    /// Its MD5 in hexadecimal, where that is to be its ETag until the store gives one.
    pub md5: Option<String>,
}

/// What must be true of a key for a write of it to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WriteCondition {
    /// Nothing.
    #[default]
    Always,
    /// It holds no object.
    Free,
    /// It holds the version of which clients are told this ETag.
    Version(String),
}

/// Writes an object.
pub struct PutObject {
    /// Block 0 of the object.
    pub id: BlockId,
    /// Headers that belong to the object.
    pub headers: Vec<(String, String)>,
    /// What is known when all of its bytes are: told before the last of those, or never, if that is
    /// nothing.
    pub late: oneshot::Receiver<LateFacts>,
    /// Its size, bytes.
    pub length: u64,
    /// What must be true of the key.
    pub condition: WriteCondition,
    /// The bytes.
    pub source: PutSource,
}

/// Makes an object from the parts of an upload.
#[derive(Clone, Debug)]
pub struct CompleteObject {
    /// Block 0 of the object.
    pub id: BlockId,
    /// The store's name of the upload.
    pub upload_id: String,
    /// The parts in the order of their numbers.
    pub parts: Vec<CompletedPart>,
    /// What must be true of the key.
    pub condition: WriteCondition,
    /// Headers of the request that concern the whole object's checksum.
    pub headers: Vec<(String, String)>,
}

/// An object that is to be copied, as its home describes it.
#[derive(Clone, Debug)]
pub struct CopyFrom {
    /// The object.
    pub meta: Arc<ObjectMeta>,
    /// The store's own ETag of it; nothing if the store does not have it yet.
    pub store_etag: Option<String>,
    /// The id of the version that is meant, if it is not the present one.
    pub version_id: Option<String>,
}

/// Makes an object from another one of the same store, there.
#[derive(Clone, Debug)]
pub struct CopyObject {
    /// Block 0 of the object.
    pub id: BlockId,
    /// The source's key; it is of the same volume.
    pub source: Arc<str>,
    /// The source, as it must be.
    pub from: CopyFrom,
    /// The object's headers, if they are not to be the source's.
    pub headers: Option<Vec<(String, String)>>,
}

/// A request to the core that owns a block, with the way back for its answer.
pub enum Message {
    /// Describe an object and give block 0's part of a range; `None` wants the description only.
    Open(
        BlockId,
        Option<RangeSpec>,
        oneshot::Sender<Result<Opened, ReadError>>,
    ),
    /// Give part of a block of a known version of an object.
    ReadBlock(
        BlockRequest,
        oneshot::Sender<Result<(BlockBody, Outcome), ReadError>>,
    ),
    /// Write an object.
    Put(Box<PutObject>, oneshot::Sender<Result<Written, WriteError>>),
    /// Cache a block of an object that was just written.
    Insert(BlockId, Arc<ObjectMeta>, BlockPayload, oneshot::Sender<()>),
    /// Delete an object, if a condition holds.
    Delete(
        BlockId,
        WriteCondition,
        oneshot::Sender<Result<Deleted, WriteError>>,
    ),
    /// Delete one version of an object.
    DeleteVersion(
        BlockId,
        String,
        oneshot::Sender<Result<Deleted, WriteError>>,
    ),
    /// Bring what waits for its upload of an object to the store.
    Settle(BlockId, oneshot::Sender<Result<(), WriteError>>),
    /// Forget what is known of an object: the store has another version.
    Invalidate(BlockId, oneshot::Sender<()>),
    /// Tell the counters.
    Snapshot(oneshot::Sender<CoreSnapshot>),
    /// Sum up what is dirty: all, or what was acknowledged up to a time in milliseconds since the
    /// Unix epoch.
    Backlog(Option<u64>, oneshot::Sender<Backlog>),
    /// List the oldest dirty blocks, so many at most.
    DirtyBlocks(usize, oneshot::Sender<Vec<DirtyBlock>>),
    /// List a volume's dirty objects.
    ListDirty(
        Arc<Volume>,
        Box<ListRequest>,
        oneshot::Sender<Result<ListPage, NamesError>>,
    ),
    /// Try a quarantined block, or one in conflict, again; without a name all that are quarantined.
    Retry(Option<ObjectName>, oneshot::Sender<u64>),
    /// Give a block up that is quarantined or in conflict.
    Abandon(ObjectName, oneshot::Sender<Result<(), AbandonError>>),
    /// Give the bytes of a dirty block.
    Export(
        ObjectName,
        oneshot::Sender<Result<Option<Exported>, ReadError>>,
    ),
    /// Take no new dirty blocks, or take them again.
    SetDraining(bool, oneshot::Sender<()>),
    /// Make all that was acknowledged durable, and upload without waiting.
    Hurry(oneshot::Sender<()>),
    /// Note a part that the store has taken, of the object with this block 0, and of which upload.
    NotePart(BlockId, String, Box<NotedPart>, oneshot::Sender<()>),
    /// Tell what is known of the parts of an upload.
    KnownParts(BlockId, String, oneshot::Sender<KnownParts>),
    /// Make an object from its parts.
    Complete(
        Box<CompleteObject>,
        oneshot::Sender<Result<Written, WriteError>>,
    ),
    /// Forget an upload that was given up.
    EndUpload(BlockId, String, oneshot::Sender<()>),
    /// Describe an object that is to be copied.
    DescribeSource(BlockId, oneshot::Sender<Result<CopyFrom, ReadError>>),
    /// Copy an object inside its store.
    Copy(
        Box<CopyObject>,
        oneshot::Sender<Result<Written, WriteError>>,
    ),
    /// Tell the tags of an object.
    Tags(BlockId, oneshot::Sender<Result<Tags, ReadError>>),
    /// Replace the tags of an object.
    SetTags(BlockId, Tags, oneshot::Sender<Result<(), WriteError>>),
    /// Tell how a version of an object was put together, if that is known.
    FindAssembly(
        BlockId,
        Arc<ObjectMeta>,
        oneshot::Sender<Option<Arc<Assembly>>>,
    ),
    /// Give part of a block if it is here in the version that is meant; nothing is fetched.
    Peek(Box<Place>, oneshot::Sender<Option<View>>),
    /// Forget blocks of bodies of parts, which nobody needs any more.
    Discard(Vec<BlockId>, oneshot::Sender<()>),
}

/// Part of a block of one version of an object.
#[derive(Clone, Debug)]
pub struct BlockRequest {
    /// The block.
    pub id: BlockId,
    /// The object, as its home described it.
    pub meta: Arc<ObjectMeta>,
    /// Bytes of the block.
    pub range: Range<usize>,
}
