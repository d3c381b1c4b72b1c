//! Objects in parts and copies as the HTTP side makes them, without HTTP. Like [`super::client`], it
//! checks nothing.

use super::client::{self, Refusal};
use super::world::{Node, home};
use bytes::Bytes;
use forebay_io::multipart::{CompletedPart, UploadName};
use forebay_io::queue;
use forebay_io::sim::random::Dice;
use forebay_io::store::{Attempts, StoreError, StoreErrorKind};
use forebay_io::uplink::{PartUpload, UploadBody};
use forebay_shards::key::Volume;
use forebay_shards::messages::{
    CompleteObject, CopyFrom, CopyObject, ReadError, WriteCondition, WriteError, Written,
};
use forebay_shards::parts::{BodyName, NotedPart, Origin, Piece};
use forebay_shards::range::RangeSpec;
use std::cell::RefCell;
use std::sync::Arc;

/// An upload of which all parts are at the store.
#[derive(Clone)]
pub struct Begun {
    pub key: String,
    pub upload_id: String,
    pub parts: Vec<CompletedPart>,
    pub bytes: Bytes,
}

/// Where `bytes` are cut into parts.
fn cuts(bytes: &Bytes, seed: u64) -> Vec<Bytes> {
    let mut dice = Dice::new(seed ^ bytes.len() as u64);
    let mut rest = bytes.clone();
    let mut parts = Vec::new();
    while rest.len() > 1 && parts.len() < 4 {
        let count = 1 + dice.below(rest.len() as u64 - 1) as usize;
        parts.push(rest.split_to(count));
    }
    parts.push(rest);
    parts
}

/// Puts all parts of an object, one of them twice, the first time with other bytes.
pub async fn begin(
    node: &Node,
    volume: &Arc<Volume>,
    key: &str,
    bytes: &Bytes,
    seed: u64,
    bodies: &RefCell<Vec<BodyName>>,
) -> Result<Begun, StoreError> {
    let id = home(volume, key);
    let UploadName { upload_id, .. } = node.router.create_upload(&id, Vec::new()).await?;
    let mut parts = Vec::new();
    let cuts = cuts(bytes, seed);
    let twice = seed as usize % cuts.len();
    for (index, part) in cuts.iter().enumerate() {
        let number = 2 + 3 * index as u32;
        if index == twice {
            let other: Bytes = part.iter().map(|byte| !byte).collect();
            put_part(node, volume, key, &upload_id, number, &other, bodies).await?;
        }
        let etag = put_part(node, volume, key, &upload_id, number, part, bodies).await?;
        parts.push(CompletedPart {
            number,
            etag,
            checksums: Vec::new(),
        });
    }
    Ok(Begun {
        key: key.to_owned(),
        upload_id,
        parts,
        bytes: bytes.clone(),
    })
}

async fn put_part(
    node: &Node,
    volume: &Arc<Volume>,
    key: &str,
    upload_id: &str,
    number: u32,
    bytes: &Bytes,
    bodies: &RefCell<Vec<BodyName>>,
) -> Result<String, StoreError> {
    let (id, name) = (home(volume, key), node.router.name_body());
    bodies.borrow_mut().push(name);
    let (sender, receiver) = queue::bounded(2);
    let part = PartUpload {
        upload: UploadName {
            key: key.to_owned(),
            upload_id: upload_id.to_owned(),
        },
        number,
        length: bytes.len() as u64,
        headers: Vec::new(),
        crc64nvme: None,
        attempts: Attempts::StorePolicy,
        body: UploadBody::Stream(receiver),
    };
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
    let meta = Arc::new(BodyName::meta(bytes.len() as u64));
    let keep = async {
        for (number, block) in (0..).zip(bytes.chunks(volume.block_bytes as usize)) {
            let payload = client::payload(node, block).await;
            let meta = meta.clone();
            let router = &node.router;
            router
                .insert_body(name, volume, number, meta, payload)
                .await;
        }
    };
    let (reply, (), ()) = futures::join!(node.router.put_part(volume, part), send, keep);
    let size = bytes.len() as u64;
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => {
            node.router.discard_body(name, volume, size).await;
            return Err(error);
        }
    };
    let noted = NotedPart {
        number,
        etag: reply.etag.clone(),
        size,
        checksum: None,
        piece: Some(Piece {
            origin: Origin::Body(name),
            size,
            start: 0,
        }),
    };
    node.router.note_part(&id, upload_id, noted).await;
    Ok(reply.etag)
}

/// Makes the object of its parts.
pub async fn complete(
    node: &Node,
    volume: &Arc<Volume>,
    begun: &Begun,
) -> Result<Written, WriteError> {
    let object = CompleteObject {
        id: home(volume, &begun.key),
        upload_id: begun.upload_id.clone(),
        parts: begun.parts.clone(),
        condition: WriteCondition::Always,
        headers: Vec::new(),
    };
    node.router.complete(object).await
}

/// Gives an upload up.
pub async fn abort(node: &Node, volume: &Arc<Volume>, begun: &Begun) -> Result<(), StoreError> {
    let id = home(volume, &begun.key);
    node.router.abort_upload(&id, &begun.upload_id).await
}

/// What is to be copied.
pub async fn describe(node: &Node, volume: &Arc<Volume>, key: &str) -> Result<CopyFrom, ReadError> {
    node.router.describe_source(&home(volume, key)).await
}

/// Why a copy ended without one.
pub enum NotCopied {
    /// The source is another one now.
    Changed,
    /// The source could not be read.
    Unread,
    Write(WriteError),
}

/// Copies what was described.
pub async fn copy(
    node: &Node,
    volume: &Arc<Volume>,
    source: &str,
    from: &CopyFrom,
    key: &str,
) -> Result<Written, NotCopied> {
    if from.store_etag.is_none() {
        return match client::read(node, volume, source, Some(RangeSpec::All)).await {
            Ok(answer) if answer.meta.etag == from.meta.etag => {
                let bytes = Bytes::from(answer.bytes);
                let written = client::put(node, volume, key, &bytes, false).await;
                written.map_err(NotCopied::Write)
            }
            Ok(_) => Err(NotCopied::Changed),
            Err(Refusal::Error(_) | Refusal::CutShort(_)) => Err(NotCopied::Unread),
        };
    }
    let object = CopyObject {
        id: home(volume, key),
        source: source.into(),
        from: from.clone(),
        headers: None,
    };
    match node.router.copy(object).await {
        Err(WriteError::Store(error))
            if matches!(
                error.kind,
                StoreErrorKind::NotFound | StoreErrorKind::PreconditionFailed
            ) =>
        {
            node.router.invalidate(home(volume, source)).await;
            Err(NotCopied::Changed)
        }
        copied => copied.map_err(NotCopied::Write),
    }
}
