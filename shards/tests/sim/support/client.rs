//! What the HTTP side does with a router, without HTTP: reads objects block by block, writes them
//! whole or streamed. It checks nothing; it reports what it was given.

use super::world::{Node, home};
use bytes::Bytes;
use forebay_io::queue;
use forebay_io::sim::store::content_tag;
use forebay_io::store::{ByteSpan, ObjectMeta};
use forebay_shards::format::PayloadChecksums;
use forebay_shards::key::Volume;
use forebay_shards::messages::{
    BlockBody, BlockPayload, BlockRequest, Opened, Outcome, PutObject, PutSource, ReadError,
    WriteError, Written,
};
use forebay_shards::range::{RangeSpec, part_of_block};
use std::sync::Arc;

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
            let body = match first.take() {
                Some(body) => Ok(body),
                None => {
                    let range = part_of_block(span, number, volume.block_bytes);
                    let request = BlockRequest {
                        id: home.sibling(number),
                        meta: meta.clone(),
                        range,
                    };
                    node.router.read_block(request).await.map(|(body, _)| body)
                }
            };
            match body {
                Ok(body) => {
                    if !collect(body, &mut answer.bytes).await {
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
async fn collect(body: BlockBody, bytes: &mut Vec<u8>) -> bool {
    let (watch, range) = match body {
        BlockBody::Ready(view) => {
            bytes.extend_from_slice(&view);
            return true;
        }
        BlockBody::Filling { watch, range } => (watch, range),
    };
    let mut position = range.start;
    while position < range.end {
        let Ok(filled) = watch.wait_for(position + 1).await else {
            return false;
        };
        let end = filled.min(range.end);
        if end <= position {
            return false;
        }
        bytes.extend_from_slice(&watch.view(position..end));
        position = end;
    }
    true
}

/// A block in a buffer of the node's pool.
pub async fn payload(node: &Node, bytes: &[u8]) -> BlockPayload {
    let mut buffer = node.pool.take(bytes.len()).await;
    let mut checksums = PayloadChecksums::default();
    checksums.update(bytes);
    buffer.append(bytes);
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
    let id = home(volume, key);
    let object = |source| PutObject {
        id: id.clone(),
        headers: Vec::new(),
        length: bytes.len() as u64,
        crc64nvme: None,
        // The store's tag of these bytes, so that a version has one name everywhere.
        md5: Some(content_tag(bytes)),
        if_none_match,
        source,
    };
    let block_bytes = volume.block_bytes as usize;
    if bytes.len() <= block_bytes {
        let payload = payload(node, bytes).await;
        return node.router.put(object(PutSource::Whole(payload))).await;
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
    let write = node.router.put(object(PutSource::Stream(receiver)));
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
    node.router.delete(home(volume, key)).await
}
