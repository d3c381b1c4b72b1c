//! Parts and copies of the store in memory.
//!
//! This file owns what [`MemoryStore`] keeps of uploads that are not complete. They meet the same
//! faults as its other requests, by their key; an upload that was completed or aborted is one that
//! was never there, so a repeated request finds out as at the strictest of stores.

use super::{MemoryStore, Object, Verb, collect, content_tag, crc64nvme, lose_reply, satisfy};
use crate::multipart::{
    CompleteRequest, CopyPartRequest, CopyRequest, CopySource, PartMeta, PartRequest, PartStore,
    PartsPage, PartsRequest, UploadMeta, UploadName, UploadsPage, UploadsRequest,
    check_part_number, choose_parts,
};
use crate::store::{PutReply, StoreError, StoreErrorKind, StoreResult};
use bytes::{Bytes, BytesMut};
use futures::future::LocalBoxFuture;
use std::collections::BTreeMap;

/// An upload that is neither complete nor aborted.
pub(super) struct Upload {
    headers: Vec<(String, String)>,
    initiated: u64,
    parts: BTreeMap<u32, Part>,
}

/// Uploads in the order that lists tell them: by key, then by the store's name.
pub(super) type Uploads = BTreeMap<(String, String), Upload>;

struct Part {
    meta: PartMeta,
    bytes: Bytes,
}

/// The tag that this store gives an object of `bytes` that came in `parts` parts.
pub fn parts_tag(bytes: &[u8], parts: usize) -> String {
    format!("{}-{parts}", content_tag(bytes))
}

impl MemoryStore {
    /// How small a part other than the last may be, bytes; S3's limit without this call.
    pub fn set_part_bytes_min(&self, bytes: u64) {
        self.inside.borrow_mut().part_bytes_min = bytes;
    }

    /// Uploads that are neither complete nor aborted, past every fault and count.
    pub fn uploads(&self) -> Vec<UploadName> {
        let inside = self.inside.borrow();
        inside.uploads.keys().map(named).collect()
    }

    /// The source of a copy.
    fn copied(&self, source: &CopySource) -> StoreResult<Object> {
        if source.version_id.is_some() {
            return Err(crate::versions::no_versions());
        }
        let object = self.find(&source.key)?;
        let wanted = source.if_match.as_ref();
        if wanted.is_some_and(|tag| *tag != object.meta.etag) {
            let message = "the source of the copy has another ETag";
            return Err(StoreError::new(StoreErrorKind::PreconditionFailed, message));
        }
        Ok(object)
    }

    /// Does `work` with an upload.
    fn with_upload<T>(
        &self,
        name: &UploadName,
        work: impl FnOnce(&mut Upload) -> StoreResult<T>,
    ) -> StoreResult<T> {
        let mut inside = self.inside.borrow_mut();
        let upload = inside.uploads.get_mut(&place(name));
        work(upload.ok_or_else(no_such_upload)?)
    }

    async fn copy_inner(&self, request: CopyRequest) -> StoreResult<PutReply> {
        let fault = self.begin(Verb::Copy, &request.key).await?;
        crate::store::check_key(&request.source.key)?;
        if request.headers.is_none() && request.key == request.source.key {
            let message = "a copy onto itself that changes nothing";
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        let object = self.copied(&request.source)?;
        let headers = request.headers.unwrap_or(object.meta.headers);
        let reply = self.commit(&request.key, object.bytes, headers);
        lose_reply(fault.as_ref()).map(|()| reply)
    }

    async fn create_inner(
        &self,
        key: String,
        headers: Vec<(String, String)>,
    ) -> StoreResult<UploadName> {
        let fault = self.begin(Verb::CreateUpload, &key).await?;
        let mut inside = self.inside.borrow_mut();
        inside.uploads_begun += 1;
        // Padded, so that the order of names is the order of time.
        let upload_id = format!("upload-{:08}", inside.uploads_begun);
        let upload = Upload {
            headers,
            initiated: inside.now(),
            parts: BTreeMap::new(),
        };
        let name = UploadName { key, upload_id };
        inside.uploads.insert(place(&name), upload);
        lose_reply(fault.as_ref()).map(|()| name)
    }

    fn keep_part(&self, name: &UploadName, number: u32, bytes: Bytes) -> StoreResult<PutReply> {
        let last_modified = self.inside.borrow().now();
        self.with_upload(name, |upload| {
            let etag = content_tag(&bytes);
            let meta = PartMeta {
                number,
                etag: etag.clone(),
                size: bytes.len() as u64,
                last_modified,
            };
            upload.parts.insert(number, Part { meta, bytes });
            Ok(PutReply {
                etag,
                last_modified,
                version_id: None,
            })
        })
    }

    async fn put_part_inner(&self, request: PartRequest) -> StoreResult<PutReply> {
        let fault = self.begin(Verb::PutPart, &request.upload.key).await?;
        check_part_number(request.number)?;
        self.with_upload(&request.upload, |_| Ok(()))?;
        let bytes = collect(request.body).await?;
        if bytes.len() as u64 != request.length {
            let (has, announced) = (bytes.len(), request.length);
            let message = format!("the part has {has} bytes, {announced} were announced");
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        if (request.crc64nvme).is_some_and(|announced| announced != crc64nvme(&bytes)) {
            let message = "the part does not have the checksum announced";
            return Err(StoreError::new(StoreErrorKind::Corrupt, message));
        }
        let reply = self.keep_part(&request.upload, request.number, bytes)?;
        lose_reply(fault.as_ref()).map(|()| reply)
    }

    async fn copy_part_inner(&self, request: CopyPartRequest) -> StoreResult<PutReply> {
        let fault = self.begin(Verb::CopyPart, &request.upload.key).await?;
        crate::store::check_key(&request.source.key)?;
        check_part_number(request.number)?;
        self.with_upload(&request.upload, |_| Ok(()))?;
        let object = self.copied(&request.source)?;
        let size = object.meta.size;
        if let Some(span) = request.span.filter(|span| span.end > size) {
            // Unlike a read, a copy is never cut at the end.
            let message = format!("bytes up to {} of an object of {size}", span.end);
            let mut error = StoreError::new(StoreErrorKind::RangeNotSatisfiable, message);
            error.object_size = Some(size);
            return Err(error);
        }
        let span = satisfy(request.span, size)?;
        let bytes = object.bytes.slice(span.start as usize..span.end as usize);
        let reply = self.keep_part(&request.upload, request.number, bytes)?;
        lose_reply(fault.as_ref()).map(|()| reply)
    }

    async fn complete_inner(&self, request: CompleteRequest) -> StoreResult<PutReply> {
        let key = &request.upload.key;
        let fault = self.begin(Verb::CompleteUpload, key).await?;
        let bytes_min = self.inside.borrow().part_bytes_min;
        let is_taken = request.if_none_match && self.object(key).is_some();
        let (bytes, headers) = self.with_upload(&request.upload, |upload| {
            let kept = |number| upload.parts.get(&number).map(|part| &part.meta);
            let chosen = choose_parts(&request.parts, bytes_min, kept)?;
            if is_taken {
                let message = "an object has this key already";
                return Err(StoreError::new(StoreErrorKind::PreconditionFailed, message));
            }
            let mut all = BytesMut::new();
            for part in chosen {
                all.extend_from_slice(&upload.parts[&part.number].bytes);
            }
            Ok((all.freeze(), upload.headers.clone()))
        })?;
        let reply = self.commit_tagged(key, parts_tag(&bytes, request.parts.len()), bytes, headers);
        let mut inside = self.inside.borrow_mut();
        inside.uploads.remove(&place(&request.upload));
        lose_reply(fault.as_ref()).map(|()| reply)
    }

    async fn abort_inner(&self, upload: UploadName) -> StoreResult<()> {
        let fault = self.begin(Verb::AbortUpload, &upload.key).await?;
        let removed = self.inside.borrow_mut().uploads.remove(&place(&upload));
        removed.ok_or_else(no_such_upload)?;
        lose_reply(fault.as_ref())
    }

    async fn list_parts_inner(&self, request: PartsRequest) -> StoreResult<PartsPage> {
        self.begin(Verb::ListParts, &request.upload.key).await?;
        self.with_upload(&request.upload, |upload| {
            let mut left = upload.parts.range(request.after.saturating_add(1)..);
            let limit = request.limit.max(1);
            let parts = left.by_ref().take(limit);
            let parts = parts.map(|(_, part)| part.meta.clone()).collect();
            let is_truncated = left.next().is_some();
            Ok(PartsPage {
                parts,
                is_truncated,
            })
        })
    }

    async fn list_uploads_inner(&self, request: UploadsRequest) -> StoreResult<UploadsPage> {
        self.begin(Verb::ListUploads, &request.prefix).await?;
        let inside = self.inside.borrow();
        let mut left = inside.uploads.iter().filter_map(|(place, upload)| {
            let upload = UploadMeta {
                upload: named(place),
                initiated: upload.initiated,
            };
            let name = &upload.upload;
            let is_wanted =
                name.key.starts_with(&request.prefix) && request.is_behind_markers(name);
            is_wanted.then_some(upload)
        });
        let uploads = left.by_ref().take(request.limit.max(1)).collect();
        let is_truncated = left.next().is_some();
        Ok(UploadsPage {
            uploads,
            is_truncated,
        })
    }
}

impl PartStore for MemoryStore {
    fn copy(&self, request: CopyRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(self.copy_inner(request))
    }

    fn create_upload(
        &self,
        key: String,
        headers: Vec<(String, String)>,
    ) -> LocalBoxFuture<'_, StoreResult<UploadName>> {
        Box::pin(self.create_inner(key, headers))
    }

    fn put_part(&self, request: PartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(self.put_part_inner(request))
    }

    fn copy_part(&self, request: CopyPartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(self.copy_part_inner(request))
    }

    fn complete_upload(
        &self,
        request: CompleteRequest,
    ) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(self.complete_inner(request))
    }

    fn abort_upload(&self, upload: UploadName) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(self.abort_inner(upload))
    }

    fn list_parts(&self, request: PartsRequest) -> LocalBoxFuture<'_, StoreResult<PartsPage>> {
        Box::pin(self.list_parts_inner(request))
    }

    fn list_uploads(
        &self,
        request: UploadsRequest,
    ) -> LocalBoxFuture<'_, StoreResult<UploadsPage>> {
        Box::pin(self.list_uploads_inner(request))
    }
}

/// Whether a fault that loses an answer can strike: the request changes something.
pub(super) fn is_change(verb: Verb) -> bool {
    match verb {
        Verb::Put | Verb::Delete | Verb::Copy | Verb::CreateUpload | Verb::PutPart => true,
        Verb::CopyPart | Verb::CompleteUpload | Verb::AbortUpload => true,
        Verb::Get | Verb::Head | Verb::List | Verb::ListParts | Verb::ListUploads => false,
    }
}

fn place(name: &UploadName) -> (String, String) {
    (name.key.clone(), name.upload_id.clone())
}

fn named((key, upload_id): &(String, String)) -> UploadName {
    UploadName {
        key: key.clone(),
        upload_id: upload_id.clone(),
    }
}

fn no_such_upload() -> StoreError {
    StoreError::new(StoreErrorKind::NoSuchUpload, "there is no such upload")
}

#[cfg(test)]
mod tests {
    use super::super::Fault;
    use super::*;
    use crate::multipart::CompletedPart;
    use crate::store::{Attempts, PutBody, PutRequest, Store};
    use futures::executor::block_on;
    use std::rc::Rc;

    fn memory() -> MemoryStore {
        MemoryStore::new(Rc::new(|_| Box::pin(futures::future::ready(()))))
    }

    fn begun(store: &MemoryStore) -> UploadName {
        block_on(store.create_upload("k".into(), Vec::new())).expect("no fault")
    }

    fn part(upload: &UploadName, number: u32, body: &'static [u8]) -> PartRequest {
        PartRequest {
            upload: upload.clone(),
            number,
            length: body.len() as u64,
            headers: Vec::new(),
            crc64nvme: None,
            attempts: Attempts::StorePolicy,
            body: PutBody::Whole(vec![Bytes::from_static(body)]),
        }
    }

    fn complete(upload: &UploadName, parts: &[(u32, &[u8])]) -> CompleteRequest {
        let listed = parts.iter().map(|(number, bytes)| CompletedPart {
            number: *number,
            etag: content_tag(bytes),
            checksums: Vec::new(),
        });
        CompleteRequest {
            upload: upload.clone(),
            parts: listed.collect(),
            if_none_match: false,
            headers: Vec::new(),
        }
    }

    #[test]
    fn a_lost_answer_to_a_completion_leaves_the_object_and_no_upload() {
        let store = memory();
        store.set_part_bytes_min(1);
        let upload = begun(&store);
        block_on(store.put_part(part(&upload, 3, b"ab"))).expect("written");
        block_on(store.put_part(part(&upload, 7, b"c"))).expect("written");
        store.script(Verb::CompleteUpload, Some("k"), Fault::LostReply);
        let request = complete(&upload, &[(3, b"ab"), (7, b"c")]);
        let error = block_on(store.complete_upload(request.clone())).expect_err("lost");
        assert_eq!(error.kind, StoreErrorKind::Unreachable);
        assert_eq!(store.object("k").as_deref(), Some(&b"abc"[..]));
        assert!(store.uploads().is_empty());
        let again = block_on(store.complete_upload(request)).expect_err("it is over");
        assert_eq!(again.kind, StoreErrorKind::NoSuchUpload);
        let head = block_on(store.head("k".into())).expect("there");
        assert_eq!(head.meta.etag, parts_tag(b"abc", 2));
    }

    #[test]
    fn a_refused_completion_changes_nothing() {
        let store = memory();
        let upload = begun(&store);
        for (number, body) in [(1, &b"ab"[..]), (2, b"c")] {
            block_on(store.put_part(part(&upload, number, body))).expect("written");
        }
        let kind = |parts: &[(u32, &[u8])]| {
            let request = complete(&upload, parts);
            block_on(store.complete_upload(request))
                .expect_err("refused")
                .kind
        };
        assert_eq!(kind(&[]), StoreErrorKind::Rejected);
        assert_eq!(kind(&[(1, b"ab"), (2, b"c")]), StoreErrorKind::PartTooSmall);
        assert_eq!(kind(&[(2, b"c"), (1, b"ab")]), StoreErrorKind::InvalidPart);
        assert_eq!(kind(&[(1, b"ab"), (1, b"ab")]), StoreErrorKind::InvalidPart);
        assert_eq!(kind(&[(1, b"other")]), StoreErrorKind::InvalidPart);
        assert_eq!(kind(&[(3, b"ab")]), StoreErrorKind::InvalidPart);
        assert!(store.object("k").is_none());
        assert_eq!(store.uploads(), [upload]);
    }

    #[test]
    fn a_conditional_write_meets_only_its_version() {
        let store = memory();
        let put = |body: &'static [u8], tag: &str| {
            block_on(store.put(PutRequest {
                key: "k".into(),
                length: body.len() as u64,
                headers: Vec::new(),
                crc64nvme: None,
                if_none_match: false,
                if_match: Some(tag.to_owned()),
                attempts: Attempts::StorePolicy,
                body: PutBody::Whole(vec![Bytes::from_static(body)]),
            }))
        };
        let error = put(b"x", "t").expect_err("nothing there");
        assert_eq!(error.kind, StoreErrorKind::NotFound);
        let first = store.insert("k", &b"first"[..]).etag;
        let error = put(b"x", "t").expect_err("another version");
        assert_eq!(error.kind, StoreErrorKind::PreconditionFailed);
        put(b"second", &first).expect("its version");
        assert_eq!(store.object("k").as_deref(), Some(&b"second"[..]));
    }
}
