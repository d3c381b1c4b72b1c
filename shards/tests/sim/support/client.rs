//! What the HTTP side does with a router, without HTTP: reads objects block by block, writes them
//! whole or streamed. It checks nothing; it reports what it was given.

use super::world::{Node, home};
use bytes::Bytes;
use forebay_io::buffer::{BufferWriter, PAGE};
use forebay_io::queue;
use forebay_io::runtime::Runtime;
use forebay_io::sim::random::Dice;
use forebay_io::sim::store::content_tag;
use forebay_io::store::{ByteSpan, ObjectMeta};
use forebay_shards::block_reader::BlockReader;
use forebay_shards::format::PayloadChecksums;
use forebay_shards::key::Volume;
use forebay_shards::messages::{
    BlockBody, BlockPayload, BlockRequest, LateFacts, Opened, Outcome, PutObject, PutSource,
    ReadError, WriteCondition, WriteError, Written,
};
use forebay_shards::range::{RangeSpec, part_of_block};
use futures::channel::oneshot;
use std::sync::Arc;
use std::time::Duration;

/// How often a read starts over because the object changed, as over HTTP.
const CHANGED_RETRIES_MAX: usize = 3;

/// What a reader was given.
#[derive(Clone)]
pub struct Answer {
    pub meta: Arc<ObjectMeta>,
    pub outcome: Outcome,
    pub span: ByteSpan,
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Answer {
            meta,
            outcome,
            span,
            bytes,
        } = self;
        let count = bytes.len();
        write!(
            f,
            "{outcome:?}: {count} bytes of {span:?} of {} ({})",
            meta.etag, meta.size
        )
    }
}

/// Why a reader was given nothing, or less than announced.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// Before the first byte.
    Error(ReadError),
    /// After some; those, and what they are of.
    CutShort(Answer),
}

/// Reads a range of an object, or describes it if `wanted` is nothing.
pub async fn read(
    node: &Node,
    volume: &Arc<Volume>,
    key: &str,
    wanted: Option<RangeSpec>,
) -> Result<Answer, Refusal> {
    let home = home(volume, key);
    for _ in 0..CHANGED_RETRIES_MAX {
        let opened = node
            .router
            .open(home.clone(), wanted)
            .await
            .map_err(Refusal::Error)?;
        let Opened {
            meta,
            outcome,
            span,
            first,
        } = opened;
        let mut answer = Answer {
            meta: meta.clone(),
            outcome,
            span,
            bytes: Vec::new(),
        };
        if span.is_empty() {
            return Ok(answer);
        }
        let first_number = span.start / volume.block_bytes;
        let last_number = (span.end - 1) / volume.block_bytes;
        let mut first = first;
        let mut started = false;
        for number in first_number..=last_number {
            let request = BlockRequest {
                id: home.sibling(number),
                meta: meta.clone(),
                range: part_of_block(span, number, volume.block_bytes),
            };
            let body = match first.take() {
                Some(body) => Ok(body),
                None => {
                    let answer = node.router.read_block(request.clone()).await;
                    answer.map(|(body, _)| body)
                }
            };
            match body {
                Ok(body) => {
                    if !collect(node, request, body, &mut answer.bytes).await {
                        return Err(Refusal::CutShort(answer));
                    }
                    started = true;
                }
                Err(error) => {
                    if let ReadError::Changed = error {
                        node.router.invalidate(home.clone()).await;
                        if !started {
                            break;
                        }
                    }
                    return Err(match started {
                        true => Refusal::CutShort(answer),
                        false => Refusal::Error(error),
                    });
                }
            }
        }
        if started {
            return Ok(answer);
        }
    }
    Err(Refusal::Error(ReadError::Changed))
}

/// Takes a block's bytes as they come; returns whether all came.
async fn collect(node: &Node, request: BlockRequest, body: BlockBody, bytes: &mut Vec<u8>) -> bool {
    let home = request.id.sibling(0);
    let mut reader = BlockReader::new(&node.router, request, body);
    loop {
        match reader.next().await {
            Ok(Some(view)) => bytes.extend_from_slice(&view),
            Ok(None) => return true,
            Err(error) => {
                if let ReadError::Changed = error {
                    node.router.invalidate(home).await;
                }
                return false;
            }
        }
    }
}

/// A block in a buffer of the node's pool.
pub async fn payload(node: &Node, bytes: &[u8]) -> BlockPayload {
    let mut buffer = node.pool.take(bytes.len()).await;
    let mut checksums = PayloadChecksums::default();
    checksums.update(bytes);
    buffer.append(bytes);
    finished(buffer, checksums)
}

/// A write of `bytes`.
fn object(volume: &Arc<Volume>, key: &str, bytes: &Bytes, source: PutSource) -> PutObject {
    let (late, facts) = oneshot::channel();
    // The store's tag of these bytes, so that a version has one name everywhere.
    let _ = late.send(LateFacts {
        headers: Vec::new(),
        md5: Some(content_tag(bytes)),
    });
    PutObject {
        id: home(volume, key),
        headers: Vec::new(),
        late: facts,
        length: bytes.len() as u64,
        condition: WriteCondition::Always,
        source,
    }
}

/// How the body of a write comes.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// Where it breaks off, if that is before its end.
    pub end: usize,
    /// Between two pieces of it.
    pub pause: Duration,
}

impl Arrival {
    /// To its end, quickly or slowly, as the bytes have it.
    fn whole(bytes: &Bytes) -> Arrival {
        let first = bytes.first().map_or(0, |byte| u64::from(*byte));
        let pauses = [0, 500, 20_000, 400_000].map(Duration::from_micros);
        Arrival {
            end: bytes.len(),
            pause: pauses[(first + bytes.len() as u64) as usize % pauses.len()],
        }
    }
}

/// Writes an object of at most a block as it arrives.
pub async fn put_block(
    node: &Node,
    volume: &Arc<Volume>,
    key: &str,
    bytes: &Bytes,
    if_none_match: bool,
    arrival: Arrival,
) -> Result<Written, WriteError> {
    let condition = condition(if_none_match);
    put_block_when(node, volume, key, bytes, condition, arrival).await
}

fn condition(if_none_match: bool) -> WriteCondition {
    match if_none_match {
        true => WriteCondition::Free,
        false => WriteCondition::Always,
    }
}

async fn put_block_when(
    node: &Node,
    volume: &Arc<Volume>,
    key: &str,
    bytes: &Bytes,
    condition: WriteCondition,
    arrival: Arrival,
) -> Result<Written, WriteError> {
    let mut buffer = node.pool.take(bytes.len()).await;
    let (sender, complete) = oneshot::channel();
    let source = PutSource::Arriving(buffer.watch(), complete);
    let write = node.router.put(PutObject {
        condition,
        ..object(volume, key, bytes, source)
    });
    let send = async {
        let mut dice = Dice::new(bytes.len() as u64);
        let mut checksums = PayloadChecksums::default();
        while buffer.filled() < arrival.end {
            let left = arrival.end - buffer.filled();
            let count = (1 + dice.below(3 * PAGE as u64) as usize).min(left);
            let piece = &bytes[buffer.filled()..][..count];
            checksums.update(piece);
            buffer.append(piece);
            if !arrival.pause.is_zero() {
                node.runtime.sleep(arrival.pause).await;
            }
        }
        if arrival.end == bytes.len() {
            let _ = sender.send(finished(buffer, checksums));
        }
    };
    futures::join!(write, send).0
}

fn finished(mut buffer: BufferWriter, checksums: PayloadChecksums) -> BlockPayload {
    buffer.finish();
    let (crc64nvme, chunk_crcs) = checksums.finish();
    BlockPayload {
        buffer,
        crc64nvme,
        chunk_crcs,
    }
}

/// Writes an object: whole if it fits a block, else streamed and then inserted block by block.
pub async fn put(
    node: &Node,
    volume: &Arc<Volume>,
    key: &str,
    bytes: &Bytes,
    if_none_match: bool,
) -> Result<Written, WriteError> {
    put_when(node, volume, key, bytes, condition(if_none_match)).await
}

/// As [`put`], if the key is as it must be.
pub async fn put_when(
    node: &Node,
    volume: &Arc<Volume>,
    key: &str,
    bytes: &Bytes,
    condition: WriteCondition,
) -> Result<Written, WriteError> {
    let id = home(volume, key);
    let block_bytes = volume.block_bytes as usize;
    if bytes.len() <= block_bytes {
        let arrival = Arrival::whole(bytes);
        return put_block_when(node, volume, key, bytes, condition, arrival).await;
    }
    let (sender, receiver) = queue::bounded(2);
    let send = async {
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(5000.min(rest.len()));
            if sender.send(Ok(piece)).await.is_err() {
                break;
            }
        }
        drop(sender);
    };
    let write = node.router.put(PutObject {
        condition,
        ..object(volume, key, bytes, PutSource::Stream(receiver))
    });
    let (written, ()) = futures::join!(write, send);
    let written = written?;
    for (number, block) in bytes.chunks(block_bytes).enumerate() {
        let payload = payload(node, block).await;
        node.router
            .insert(id.sibling(number as u64), written.meta.clone(), payload)
            .await;
    }
    Ok(written)
}

/// Deletes an object.
pub async fn delete(node: &Node, volume: &Arc<Volume>, key: &str) -> Result<(), WriteError> {
    node.router
        .delete(home(volume, key), WriteCondition::Always)
        .await
        .map(drop)
}
