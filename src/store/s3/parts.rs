//! Copies inside the bucket, and uploads in parts.
//!
//! This file owns their requests. What the store does by itself for long (copies, completions) has a
//! deadline of its own. A key is always one of this volume, with its prefix put before it on the way
//! out and taken off on the way in; an upload of other keys is never seen.
//!
//! Checksums that a client gave for its parts travel only to stores that the operator says verify
//! them ([`UploadCheck::Crc64Nvme`]): an upload that is begun with a kind of checksum needs it with
//! each of its parts, so what a core learns meanwhile must not decide it.

use super::answer::{self, corrupt};
use super::list::{ANSWER_BYTES_MAX, ANSWER_TIME_MAX, EMPTY_PAGES_MAX, read_body};
use super::sign::{KEY_ENCODED, Target, Verb};
use super::{RequestHeaders, S3Store, base64, documents, quoted, versions};
use crate::store::{UploadCheck, etag};
use bytes::Bytes;
use forebay_io::multipart::{
    CompleteRequest, CopyPartRequest, CopyRequest, CopySource, PartRequest, PartStore, PartsPage,
    PartsRequest, UploadMeta, UploadName, UploadsPage, UploadsRequest, check_part_number,
};
use forebay_io::store::{
    Attempts, CHECKSUM_PREFIX, GetRequest, PutBody, PutReply, StoreError, StoreErrorKind,
    StoreResult, check_key,
};
use futures::future::LocalBoxFuture;
use md5::{Digest, Md5};
use percent_encoding::utf8_percent_encode;
use reqwest::Response;
use reqwest::header::{self, HeaderName};

/// Longest answer to a copy or a completion, bytes. Ceph tells its progress once per MiB of the
/// copy, in some 30 bytes; S3 sends a blank now and then.
const MADE_BYTES_MAX: usize = 1 << 20;

/// Longest name of an upload that is asked for; S3's have some 130 bytes.
const UPLOAD_ID_BYTES_MAX: usize = 1024;

const SIZE_HEADER: &str = "x-amz-mp-object-size";

impl S3Store {
    async fn copy_inner(&self, request: CopyRequest) -> StoreResult<PutReply> {
        let is_itself = request.key == request.source.key && request.source.version_id.is_none();
        if request.headers.is_none() && is_itself {
            // S3 refuses it; Swift does not notice where the names are written differently.
            let message = "a copy onto itself that changes nothing";
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        let mut headers = match &request.headers {
            Some(given) => {
                let mut headers = self.object_headers(given)?;
                headers.sign("x-amz-metadata-directive", "REPLACE");
                headers
            }
            None => self.object_headers(&[])?,
        };
        self.add_source(&mut headers, &request.source)?;
        let target = Target::of(Verb::Copy, &request.key);
        let made = self.make(&target, &headers, Bytes::new()).await?;
        match made.etag.is_empty() {
            true => self.reply_of_head(&request.key).await,
            false => Ok(reply(made)),
        }
    }

    async fn copy_part_inner(&self, request: CopyPartRequest) -> StoreResult<PutReply> {
        let mut headers = RequestHeaders::default();
        self.add_source(&mut headers, &request.source)?;
        if let Some(span) = request.span {
            if span.start >= span.end {
                let message = "an empty span cannot be copied";
                return Err(StoreError::new(StoreErrorKind::Rejected, message));
            }
            let range = format!("bytes={}-{}", span.start, span.end - 1);
            headers.sign("x-amz-copy-source-range", &range);
        }
        let target = part_target(Verb::CopyPart, &request.upload, request.number)?;
        self.check_source(&request).await?;
        if self.signer.name(&request.source.key).contains('%') {
            return self.carry_part(request).await;
        }
        let made = self.make(&target, &headers, Bytes::new()).await?;
        match made.etag.is_empty() {
            true => Err(corrupt("a part was copied and got no ETag")),
            false => Ok(reply(made)),
        }
    }

    /// Copies a part through here. Ceph decodes the source's name twice when it copies a part, so
    /// that a name with a `%` would be that of another object, copied without a word.
    async fn carry_part(&self, request: CopyPartRequest) -> StoreResult<PutReply> {
        let source = GetRequest {
            key: request.source.key,
            span: request.span,
            if_match: request.source.if_match,
            if_none_match: None,
            version_id: request.source.version_id,
        };
        let source = self.get_inner(source).await?;
        self.put_part_inner(PartRequest {
            upload: request.upload,
            number: request.number,
            length: source.span.len(),
            headers: Vec::new(),
            crc64nvme: None,
            attempts: Attempts::Once,
            body: PutBody::Stream(source.body),
        })
        .await
    }

    /// Looks at the source before a part is copied: Ceph knows no condition there, and Swift cuts a
    /// span at the end without a word. What a store does check, it checks at the copy itself.
    async fn check_source(&self, request: &CopyPartRequest) -> StoreResult<()> {
        let source = &request.source;
        if source.if_match.is_none() && request.span.is_none() {
            return Ok(());
        }
        let head = match &source.version_id {
            None => self.head_inner(&source.key).await?,
            Some(id) => self.head_version_inner(&source.key, id).await?,
        };
        let meta = head.meta;
        if source
            .if_match
            .as_ref()
            .is_some_and(|tag| *tag != meta.etag)
        {
            let message = "the source of the copy has another ETag";
            return Err(StoreError::new(StoreErrorKind::PreconditionFailed, message));
        }
        if let Some(span) = request.span.filter(|span| span.end > meta.size) {
            let message = format!("bytes up to {} of an object of {}", span.end, meta.size);
            let mut error = StoreError::new(StoreErrorKind::RangeNotSatisfiable, message);
            error.object_size = Some(meta.size);
            return Err(error);
        }
        Ok(())
    }

    /// Names the source of a copy, byte for byte.
    fn add_source(&self, headers: &mut RequestHeaders, source: &CopySource) -> StoreResult<()> {
        let mut path = self.signer.source_path(&source.key)?;
        if let Some(version_id) = &source.version_id {
            let (name, id) = versions::parameter(version_id)?;
            path = format!("{path}?{name}={}", utf8_percent_encode(&id, KEY_ENCODED));
        }
        headers.sign("x-amz-copy-source", &path);
        if let Some(tag) = &source.if_match {
            headers.sign("x-amz-copy-source-if-match", &quoted(tag));
            // What Ceph reads; the right one it ignores without a word.
            headers.sign("x-amz-copy-if-match", &quoted(tag));
        }
        Ok(())
    }

    async fn create_inner(
        &self,
        key: String,
        given: Vec<(String, String)>,
    ) -> StoreResult<UploadName> {
        let mut headers = self.object_headers(&given)?;
        if self.passes_checksums() {
            let checksums = given.iter().filter(|(name, _)| is_checksum(name));
            headers.signed.extend(checksums.cloned());
        }
        let mut target = Target::of(Verb::CreateUpload, &key);
        target.query = vec![("uploads", String::new())];
        let response = self.send_document(&target, &headers, Bytes::new()).await?;
        let body = self
            .read_answer(&target, response, ANSWER_BYTES_MAX)
            .await?;
        let upload_id = documents::begun(&body)?;
        Ok(UploadName { key, upload_id })
    }

    async fn put_part_inner(&self, mut request: PartRequest) -> StoreResult<PutReply> {
        let body = std::mem::replace(&mut request.body, PutBody::Whole(Vec::new()));
        let target = part_target(Verb::PutPart, &request.upload, request.number)?;
        self.send_body(&target, request.length, body, |pieces| {
            Ok(self.part_headers(&request, pieces))
        })
        .await
    }

    fn part_headers(&self, request: &PartRequest, pieces: Option<&[Bytes]>) -> RequestHeaders {
        let mut headers = RequestHeaders::default();
        let length = request.length.to_string();
        headers.plain.push((header::CONTENT_LENGTH, length));
        if self.passes_checksums() {
            let checksums = request.headers.iter().filter(|(name, _)| is_checksum(name));
            headers.signed.extend(checksums.cloned());
        }
        let may_md5 = match self.upload_check {
            UploadCheck::Auto | UploadCheck::ContentMd5 => true,
            UploadCheck::Crc64Nvme | UploadCheck::Nothing => false,
        };
        if let Some(pieces) = pieces.filter(|_| may_md5) {
            let mut md5 = Md5::new();
            pieces.iter().for_each(|piece| md5.update(piece));
            let name = HeaderName::from_static("content-md5");
            headers.plain.push((name, base64(&md5.finalize())));
        }
        headers
    }

    async fn complete_inner(&self, request: CompleteRequest) -> StoreResult<PutReply> {
        if request.parts.is_empty() {
            let message = "an upload cannot be completed from no part";
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        for part in &request.parts {
            check_part_number(part.number)?;
            let mut names = part.checksums.iter().map(|(name, _)| name);
            if !names.all(|name| documents::is_checksum_name(name)) {
                let message = format!("part {} has a checksum of no known kind", part.number);
                return Err(StoreError::new(StoreErrorKind::Rejected, message));
            }
        }
        let target = upload_target(Verb::Complete, &request.upload)?;
        let mut headers = RequestHeaders::default();
        let kind = "application/xml".to_owned();
        headers.plain.push((header::CONTENT_TYPE, kind));
        for (name, value) in &request.headers {
            if name == SIZE_HEADER || (is_checksum(name) && self.passes_checksums()) {
                headers.sign(name, value);
            }
        }
        if request.if_none_match {
            self.refuse_taken(&request.upload.key).await?;
            headers.plain.push((header::IF_NONE_MATCH, "*".to_owned()));
        }
        let document = documents::completion(&request.parts, self.passes_checksums());
        let made = self.make(&target, &headers, document.into()).await;
        let mut made = match made {
            // Ceph's word for an upload that it does not know: that it is being completed.
            Err(error) if error.kind == StoreErrorKind::Internal => {
                return Err(self.unknown_upload(&request.upload).await.unwrap_or(error));
            }
            other => other?,
        };
        if made.etag.is_empty() {
            let etags = request.parts.iter().map(|part| part.etag.as_str());
            match etag::of_parts(etags) {
                Some(etag) => made.etag = etag,
                None => return self.reply_of_head(&request.upload.key).await,
            }
        }
        Ok(reply(made))
    }

    /// The error that there is no such upload, if the store says so when it is asked for nothing else.
    async fn unknown_upload(&self, upload: &UploadName) -> Option<StoreError> {
        let request = PartsRequest {
            upload: upload.clone(),
            after: 0,
            limit: 1,
        };
        let error = self.list_parts_inner(request).await.err()?;
        (error.kind == StoreErrorKind::NoSuchUpload).then_some(error)
    }

    /// Many stores know no condition for a completion and overwrite without a word, so it is asked
    /// before as well.
    async fn refuse_taken(&self, key: &str) -> StoreResult<()> {
        match self.head_inner(key).await {
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                let message = "an object has this key already";
                Err(StoreError::new(StoreErrorKind::PreconditionFailed, message))
            }
        }
    }

    async fn abort_inner(&self, upload: UploadName) -> StoreResult<()> {
        let target = upload_target(Verb::Abort, &upload)?;
        let response = self
            .send_target(&target, &RequestHeaders::default())
            .await?;
        match response.status().as_u16() {
            200 | 204 => Ok(()),
            status => Err(corrupt(&format!("status {status} to an abort"))),
        }
    }

    async fn list_parts_inner(&self, request: PartsRequest) -> StoreResult<PartsPage> {
        let mut target = upload_target(Verb::ListParts, &request.upload)?;
        let limit = request.limit.max(1);
        target.query.insert(0, ("max-parts", limit.to_string()));
        if request.after > 0 {
            let marker = request.after.to_string();
            target.query.insert(1, ("part-number-marker", marker));
        }
        let response = self
            .send_target(&target, &RequestHeaders::default())
            .await?;
        let body = self
            .read_answer(&target, response, ANSWER_BYTES_MAX)
            .await?;
        documents::parts(&body, request.after, limit)
    }

    async fn list_uploads_inner(&self, request: UploadsRequest) -> StoreResult<UploadsPage> {
        let mut marker = (String::new(), String::new());
        if !request.key_marker.is_empty() {
            marker.0 = self.signer.name(&request.key_marker);
            marker.1 = request.upload_id_marker.clone();
        }
        for _ in 0..EMPTY_PAGES_MAX {
            let target = self.uploads_target(&request, &marker);
            let response = self
                .send_target(&target, &RequestHeaders::default())
                .await?;
            let body = self
                .read_answer(&target, response, ANSWER_BYTES_MAX)
                .await?;
            let answer = documents::uploads(&body)?;
            let uploads = self.uploads_of(answer.uploads, &request)?;
            if !uploads.is_empty() || !answer.is_truncated {
                return Ok(UploadsPage {
                    uploads,
                    is_truncated: answer.is_truncated,
                });
            }
            marker = answer.next;
        }
        let message = format!("{EMPTY_PAGES_MAX} pages of uploads in a row held none");
        Err(StoreError::new(StoreErrorKind::Internal, message))
    }

    fn uploads_target(
        &self,
        request: &UploadsRequest,
        marker: &(String, String),
    ) -> Target<'static> {
        // Without `encoding-type`: Ceph before 18 does encode then, but only some of the names, and
        // does not say so. As XML the names are exact as well.
        let mut target = Target::of(Verb::ListUploads, "");
        if !marker.0.is_empty() {
            target.query.push(("key-marker", marker.0.clone()));
        }
        let limit = request.limit.max(1).to_string();
        target.query.push(("max-uploads", limit));
        let prefix = self.signer.name(&request.prefix);
        target.query.push(("prefix", prefix));
        if !marker.0.is_empty() && !marker.1.is_empty() {
            target.query.push(("upload-id-marker", marker.1.clone()));
        }
        target.query.push(("uploads", String::new()));
        target
    }

    /// The uploads of an answer as uploads of the volume.
    fn uploads_of(
        &self,
        listed: Vec<documents::ListedUpload>,
        request: &UploadsRequest,
    ) -> StoreResult<Vec<UploadMeta>> {
        if listed.len() > request.limit.max(1) {
            return Err(corrupt("a list with more uploads than were asked for"));
        }
        let mut uploads = Vec::with_capacity(listed.len());
        for upload in listed {
            let own = self.signer.strip(&upload.key);
            let own = own.filter(|key| key.starts_with(&request.prefix));
            let key = own.ok_or_else(|| corrupt("an upload whose key is not as was asked"))?;
            uploads.push(UploadMeta {
                upload: UploadName {
                    key: key.to_owned(),
                    upload_id: upload.upload_id,
                },
                initiated: upload.initiated,
            });
        }
        // Stores differ in whether a marker without an upload leaves its key out.
        let is_key_past = !request.key_marker.is_empty() && request.upload_id_marker.is_empty();
        uploads.retain(|upload| !is_key_past || upload.upload.key != request.key_marker);
        // The volume's own prefix as an object: no key of the volume.
        uploads.retain(|upload| check_key(&upload.upload.key).is_ok());
        Ok(uploads)
    }

    /// Lets the store make something, and reads what came of it.
    async fn make(
        &self,
        target: &Target<'_>,
        headers: &RequestHeaders,
        document: Bytes,
    ) -> StoreResult<documents::Made> {
        let response = self.send_document(target, headers, document).await?;
        let version_id = answer::version_id(response.headers());
        let body = self.read_answer(target, response, MADE_BYTES_MAX).await?;
        let made = documents::made(target.verb, &body)?;
        Ok(documents::Made { version_id, ..made })
    }

    pub(super) async fn send_document(
        &self,
        target: &Target<'_>,
        headers: &RequestHeaders,
        document: Bytes,
    ) -> StoreResult<Response> {
        self.ask_signed(target.verb, || {
            // Told also where it is 0: Ceph refuses a copy without it.
            let sending = self.sign(target, headers)?;
            let sending = sending.header(header::CONTENT_LENGTH, document.len());
            Ok(sending.body(document.clone()))
        })
        .await
    }

    pub(super) async fn read_answer(
        &self,
        target: &Target<'_>,
        response: Response,
        bytes_max: usize,
    ) -> StoreResult<Vec<u8>> {
        let time_max = match target.verb.is_store_work() {
            true => self.deadlines.store_work,
            false => ANSWER_TIME_MAX,
        };
        let reading = tokio::time::timeout(time_max, read_body(response, bytes_max));
        reading
            .await
            .map_err(|_| self.no_answer(target.verb, time_max))?
    }

    /// The answer of a store that did not tell the ETag of what it made.
    async fn reply_of_head(&self, key: &str) -> StoreResult<PutReply> {
        let head = self.head_inner(key).await?;
        Ok(PutReply {
            etag: head.meta.etag,
            last_modified: head.meta.last_modified,
            version_id: head.version_id,
        })
    }

    fn passes_checksums(&self) -> bool {
        self.upload_check == UploadCheck::Crc64Nvme
    }
}

impl PartStore for S3Store {
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

fn reply(made: documents::Made) -> PutReply {
    PutReply {
        etag: made.etag,
        last_modified: made.last_modified,
        version_id: made.version_id,
    }
}

fn is_checksum(name: &str) -> bool {
    name.starts_with(CHECKSUM_PREFIX)
}

/// A request to an upload. A name that is empty would turn it into one to the object itself.
fn upload_target(verb: Verb, upload: &UploadName) -> StoreResult<Target<'_>> {
    let upload_id = &upload.upload_id;
    let is_odd = upload_id.is_empty()
        || upload_id.len() > UPLOAD_ID_BYTES_MAX
        // Swift stumbles over other characters, and no store uses them.
        || !upload_id.bytes().all(|byte| byte.is_ascii_graphic());
    if is_odd {
        let message = "no upload has such a name";
        return Err(StoreError::new(StoreErrorKind::NoSuchUpload, message));
    }
    let mut target = Target::of(verb, &upload.key);
    target.query = vec![("uploadId", upload_id.clone())];
    Ok(target)
}

fn part_target(verb: Verb, upload: &UploadName, number: u32) -> StoreResult<Target<'_>> {
    check_part_number(number)?;
    let mut target = upload_target(verb, upload)?;
    target.query.insert(0, ("partNumber", number.to_string()));
    Ok(target)
}
