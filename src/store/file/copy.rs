//! Copies inside the folder: of objects, and of spans of them into parts.
//!
//! This file owns how bytes get from one file to another without all of them being in memory. Where
//! their MD5 is known already the kernel moves them; else they are read, to learn it. A copy is as
//! whole and as durable as what is put.

use super::{
    Condition, FileStore, Found, PIECE_BYTES, Sealed, Trouble, Writing, blocking, name, read_piece,
    unix_seconds,
};
use crate::store::etag;
use forebay_io::multipart::{CopyRequest, CopySource};
use forebay_io::store::{
    ByteSpan, ObjectHead, ObjectMeta, PutReply, StoreError, StoreErrorKind, StoreResult, check_key,
};
use forebay_io::versions::no_versions;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

/// Bytes that the kernel moves in one blocking call: it does so at some GB/s, or by reference.
pub(super) const MOVED_BYTES: u64 = 8 << 20;

impl FileStore {
    pub(super) async fn copy_inner(&self, request: CopyRequest) -> StoreResult<PutReply> {
        check_key(&request.key)?;
        if request.headers.is_none() && request.key == request.source.key {
            let message = "a copy onto itself that changes nothing";
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        let found = self.find_source(&request.source).await?;
        let headers = match request.headers {
            Some(headers) => headers,
            None => found.meta.headers.clone(),
        };
        let span = ByteSpan {
            start: 0,
            end: found.meta.size,
        };
        let sealed = self.copied(found, span, headers).await?;
        let folder = Arc::clone(&self.folder);
        let names = name::names_of(&request.key);
        blocking(move || sealed.publish(&folder, &names, &Condition::default())).await
    }

    /// The source of a copy, if it is the version that is wanted.
    pub(super) async fn find_source(&self, source: &CopySource) -> StoreResult<Found> {
        if source.version_id.is_some() {
            return Err(no_versions());
        }
        let found = self.find(&source.key).await?;
        let wanted = source.if_match.as_ref();
        if wanted.is_some_and(|tag| *tag != found.meta.etag) {
            let message = "the source of the copy has another ETag";
            return Err(StoreError::new(StoreErrorKind::PreconditionFailed, message));
        }
        Ok(found)
    }

    /// A new file with the bytes of a span of an object.
    pub(super) async fn copied(
        &self,
        found: Found,
        span: ByteSpan,
        headers: Vec<(String, String)>,
    ) -> StoreResult<Sealed> {
        let folder = Arc::clone(&self.folder);
        let mut writing = blocking(move || Writing::start(&folder)).await?;
        if let Some(head) = known_head(&found, span, &headers) {
            let mut moving = Moving {
                source: found.file,
                left: span.len(),
                target: writing.temporary,
            };
            while moving.left > 0 {
                moving = blocking(move || moving.step()).await?;
            }
            return blocking(move || Sealed::new(moving.target, &head)).await;
        }
        let found = Arc::new(found);
        let mut at = span.start;
        while at < span.end {
            let length = (span.end - at).min(PIECE_BYTES as u64);
            let source = Arc::clone(&found);
            let piece = blocking(move || read_piece(&source, at, length as usize)).await?;
            writing = writing.write(piece, span.len()).await?;
            at += length;
        }
        let crc = found.crc64nvme.filter(|_| span.len() == found.meta.size);
        blocking(move || writing.seal(headers, crc)).await
    }
}

/// What a copy of a span is, if that is known without reading it: of a whole object that we wrote in
/// one piece.
fn known_head(found: &Found, span: ByteSpan, headers: &[(String, String)]) -> Option<ObjectHead> {
    let is_whole = span.start == 0 && span.end == found.meta.size;
    let is_ours = found.plain.is_none() && found.crc64nvme.is_some();
    (is_whole && is_ours && etag::md5_of(&found.meta.etag).is_some()).then(|| ObjectHead {
        meta: ObjectMeta {
            size: found.meta.size,
            etag: found.meta.etag.clone(),
            last_modified: unix_seconds(),
            headers: headers.to_vec(),
        },
        crc64nvme: found.crc64nvme,
        version_id: None,
    })
}

/// Bytes on their way from the place of one file to the end of another.
pub(super) struct Moving {
    pub(super) source: File,
    pub(super) left: u64,
    pub(super) target: super::Temporary,
}

impl Moving {
    /// Moves the next bytes, by `copy_file_range` where the file system knows it.
    pub(super) fn step(mut self) -> Result<Self, Trouble> {
        let wanted = self.left.min(MOVED_BYTES);
        let mut span = (&self.source).take(wanted);
        let moved = io::copy(&mut span, &mut self.target.file)?;
        if moved != wanted {
            return Err(Trouble::Damaged("a file was cut while it was copied"));
        }
        self.left -= moved;
        Ok(self)
    }
}
