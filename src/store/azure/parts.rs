//! Uploads in parts, and copies.
//!
//! This file owns how S3's uploads are made of Azure's blocks. A part is an uncommitted block of the
//! blob that it is for, whose name tells all of it ([`super::block`]); completing is one
//! `Put Block List`, which takes the listed blocks and discards all others. An upload itself is an
//! empty blob under [`RESERVED`], which has the object's headers as its own and its key as metadata.
//!
//! So what writes the key meanwhile, whole or from another upload, takes the blocks away, and the
//! upload is refused with `InvalidPart`: nothing is made of a part of it. Blocks of an upload that is
//! aborted are not told any more; Azure itself removes them within a week, or with the next write.
//!
//! A copy that keeps the source's headers is Azure's own. Where headers are replaced, and for parts,
//! the bytes pass through here: `Copy Blob` cannot replace them with the same request, the two that
//! could (`Put Blob From URL`, `Put Block From URL`) need a token for the source and are nowhere to be
//! tested.

use super::answer;
use super::block::{BlockId, Part, UploadId, parts_of};
use super::headers::{self, UPLOAD_META};
use super::list::{Listed, container_list};
use super::sign::{Asked, RESERVED, Verb};
use super::{AzureStore, corrupt, crc_text};
use crate::xml::{self, Node, XmlError};
use aws_lc_rs::rand;
use crc_fast::CrcAlgorithm;
use forebay_io::multipart::{
    CompleteRequest, CopyPartRequest, CopyRequest, PART_BYTES_MIN, PartRequest, PartStore,
    PartsPage, PartsRequest, UploadMeta, UploadName, UploadsPage, UploadsRequest,
    check_part_number, choose_parts,
};
use forebay_io::store::{
    Attempts, GetRequest, PutBody, PutReply, PutRequest, StoreError, StoreErrorKind, StoreResult,
};
use futures::future::LocalBoxFuture;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::header::HeaderMap;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a copy inside the store is waited for. Within an account it is usually done at once.
const COPY_TIME_MAX: Duration = Duration::from_secs(300);

/// Pauses between looks at a copy that is under way: the first, and what they double up to.
const COPY_LOOK_FIRST: Duration = Duration::from_millis(50);
const COPY_LOOK_MAX: Duration = Duration::from_secs(2);

/// Most uploads at a time of which a list can be given: each page of it looks at all.
const UPLOADS_MAX: usize = 100_000;

/// An upload that is there.
struct Upload {
    id: UploadId,
    headers: Vec<(String, String)>,
}

impl AzureStore {
    /// Where an upload is remembered.
    fn upload_blob(&self, id: UploadId) -> String {
        self.signer.reserved(&id.text())
    }

    async fn create_inner(
        &self,
        key: String,
        headers: Vec<(String, String)>,
    ) -> StoreResult<UploadName> {
        self.signer.name_of(&key)?;
        let mut chance = [0; 8];
        rand::fill(&mut chance).map_err(|_| {
            StoreError::new(StoreErrorKind::Internal, "the system gives no random bytes")
        })?;
        let id = UploadId::new(now_us(), chance);
        let mut asked = Asked::of(Verb::Put, self.upload_blob(id))
            .header("x-ms-blob-type", "BlockBlob")
            .header(headers::KEY_META, encode_key(&key));
        asked.headers.extend(headers::to_azure(&headers, None)?);
        let empty = PutBody::Whole(Vec::new());
        let response = self.send_body(asked, 0, None, empty).await?;
        answer::written(response.status().as_u16(), response.headers(), None)?;
        Ok(UploadName {
            key,
            upload_id: id.text(),
        })
    }

    /// An upload by its name.
    async fn find_upload(&self, name: &UploadName) -> StoreResult<Upload> {
        self.signer.name_of(&name.key)?;
        let id = UploadId::parse(&name.upload_id).ok_or_else(no_such_upload)?;
        let asked = Asked::of(Verb::Head, self.upload_blob(id));
        let response = self.ask(&asked).await.map_err(|error| match error.kind {
            StoreErrorKind::NotFound => no_such_upload(),
            _ => error,
        })?;
        let told = response.headers();
        let key = told
            .get(headers::KEY_META)
            .and_then(|key| key.to_str().ok());
        match key.and_then(decode_key) == Some(name.key.clone()) {
            true => Ok(Upload {
                id,
                headers: headers::from_azure(told).0,
            }),
            false => Err(no_such_upload()),
        }
    }

    async fn put_part_inner(&self, request: PartRequest) -> StoreResult<PutReply> {
        check_part_number(request.number)?;
        let upload = self.find_upload(&request.upload).await?;
        let id = BlockId {
            upload: upload.id,
            number: request.number,
            begun_us: now_us(),
            crc64nvme: request.crc64nvme,
        };
        let asked = Asked::of(Verb::Put, self.signer.name_of(&request.upload.key)?)
            .query("comp", "block")
            .query("blockid", id.text());
        let crc = request.crc64nvme.map(crc_text);
        let response = self
            .send_body(asked, request.length, crc.as_deref(), request.body)
            .await?;
        let status = response.status().as_u16();
        answer::accepted(status, response.headers(), crc.as_deref())?;
        Ok(PutReply {
            etag: id.etag(),
            last_modified: id.begun_us / 1_000_000,
            version_id: None,
        })
    }

    /// The parts of an upload to `key` that no object was made of.
    async fn parts(&self, key: &str, id: UploadId) -> StoreResult<BTreeMap<u32, Part>> {
        let asked = Asked::of(Verb::Get, self.signer.name_of(key)?)
            .query("comp", "blocklist")
            .query("blocklisttype", "uncommitted");
        let body = match self.ask_document(&asked).await {
            Ok((_, body)) => body,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let blocks =
            parse_blocks(&body).map_err(|error| corrupt(&format!("a list of blocks: {error}")))?;
        Ok(parts_of(id, blocks))
    }

    async fn list_parts_inner(&self, request: PartsRequest) -> StoreResult<PartsPage> {
        let upload = self.find_upload(&request.upload).await?;
        let parts = self.parts(&request.upload.key, upload.id).await?;
        let mut later = parts.range(request.after.saturating_add(1)..);
        let page = later.by_ref().take(request.limit);
        Ok(PartsPage {
            parts: page.map(|(_, part)| part.meta.clone()).collect(),
            is_truncated: later.next().is_some(),
        })
    }

    async fn complete_inner(&self, request: CompleteRequest) -> StoreResult<PutReply> {
        let id = UploadId::parse(&request.upload.upload_id).ok_or_else(no_such_upload)?;
        let upload = match self.find_upload(&request.upload).await {
            Err(error) if error.kind == StoreErrorKind::NoSuchUpload => {
                let known = self.completed(&request.upload.key, id).await?;
                return known.ok_or(error);
            }
            other => other?,
        };
        let parts = self.parts(&request.upload.key, id).await?;
        let kept = |number| parts.get(&number).map(|part| &part.meta);
        let made = match choose_parts(&request.parts, PART_BYTES_MIN, kept) {
            Ok(_) => self.commit(&request, &upload, &parts).await,
            Err(error) => Err(error),
        };
        use StoreErrorKind::{InvalidPart, PreconditionFailed};
        let reply = match made {
            // The answer to an earlier request was lost, perhaps.
            Err(error) if matches!(error.kind, InvalidPart | PreconditionFailed) => {
                let known = self.completed(&request.upload.key, id).await?;
                known.ok_or(error)?
            }
            other => other?,
        };
        if let Err(error) = self.remove(self.upload_blob(id)).await {
            log::info!("an upload that is complete is still told: {error}");
        }
        Ok(reply)
    }

    /// Makes the object; its parts are known to be there.
    async fn commit(
        &self,
        request: &CompleteRequest,
        upload: &Upload,
        parts: &BTreeMap<u32, Part>,
    ) -> StoreResult<PutReply> {
        let listed = request.parts.iter();
        let chosen: Vec<&Part> = listed.filter_map(|part| parts.get(&part.number)).collect();
        let crc = whole_crc(&chosen);
        check_whole(&request.headers, &chosen, crc)?;
        let mut document = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for part in chosen {
            // Base64 holds nothing that XML would want escaped.
            document.push_str(&format!("<Uncommitted>{}</Uncommitted>", part.id.text()));
        }
        document.push_str("</BlockList>");
        let mut asked = Asked::of(Verb::Put, self.signer.name_of(&request.upload.key)?)
            .query("comp", "blocklist")
            .header(UPLOAD_META, upload.id.text());
        let kept = upload.headers.iter();
        let kept: Vec<_> = kept
            .filter(|(name, _)| name != "content-length")
            .cloned()
            .collect();
        asked.headers.extend(headers::to_azure(&kept, crc)?);
        if request.if_none_match {
            asked = asked.header("if-none-match", "*");
        }
        let body = PutBody::Whole(vec![document.clone().into()]);
        let response = self
            .send_body(asked, document.len() as u64, None, body)
            .await?;
        answer::written(response.status().as_u16(), response.headers(), None)
    }

    /// The object, if it was made from this upload.
    async fn completed(&self, key: &str, id: UploadId) -> StoreResult<Option<PutReply>> {
        let asked = Asked::of(Verb::Head, self.signer.name_of(key)?);
        let response = match self.ask(&asked).await {
            Ok(response) => response,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let told = response.headers();
        let from = told.get(UPLOAD_META).and_then(|from| from.to_str().ok());
        if from != Some(id.text().as_str()) {
            return Ok(None);
        }
        let meta = answer::described(response.status().as_u16(), told)?.meta;
        Ok(Some(PutReply {
            etag: meta.etag,
            last_modified: meta.last_modified,
            version_id: None,
        }))
    }

    async fn abort_inner(&self, name: UploadName) -> StoreResult<()> {
        let upload = self.find_upload(&name).await?;
        self.remove(self.upload_blob(upload.id)).await
    }

    async fn list_uploads_inner(&self, request: UploadsRequest) -> StoreResult<UploadsPage> {
        // By key, then by name; one more than asked for tells whether more follow.
        let mut found: BTreeMap<(String, String), UploadMeta> = BTreeMap::new();
        let (mut marker, mut seen) = (String::new(), 0);
        loop {
            let mut asked = container_list(forebay_io::listing::LIST_NAMES_MAX)
                .query("prefix", self.signer.reserved(""))
                .query("include", "metadata");
            if !marker.is_empty() {
                asked = asked.query("marker", &marker);
            }
            let answer = self.ask_list(&asked).await?;
            seen += answer.blobs.len();
            for upload in answer.blobs.iter().filter_map(|blob| self.upload_of(blob)) {
                let name = &upload.upload;
                if name.key.starts_with(&request.prefix) && request.is_behind_markers(name) {
                    found.insert((name.key.clone(), name.upload_id.clone()), upload);
                }
                if found.len() > request.limit + 1 {
                    found.pop_last();
                }
            }
            if answer.next.is_empty() {
                break;
            }
            if seen > UPLOADS_MAX {
                let message = format!("there are more than {UPLOADS_MAX} uploads at a time");
                return Err(StoreError::new(StoreErrorKind::Unsupported, message));
            }
            marker = answer.next;
        }
        let is_truncated = found.len() > request.limit;
        let uploads = found.into_values().take(request.limit).collect();
        Ok(UploadsPage {
            uploads,
            is_truncated,
        })
    }

    /// The upload that a blob stands for.
    fn upload_of(&self, blob: &Listed) -> Option<UploadMeta> {
        let own = self.signer.strip(&blob.object.key)?;
        let id = UploadId::parse(own.strip_prefix(RESERVED)?)?;
        let name = headers::KEY_META.trim_start_matches(headers::OWN_META);
        let key = blob.metadata.iter().find(|pair| pair.0 == name)?;
        Some(UploadMeta {
            upload: UploadName {
                key: decode_key(&key.1)?,
                upload_id: id.text(),
            },
            initiated: id.begun(),
        })
    }

    async fn copy_inner(&self, request: CopyRequest) -> StoreResult<PutReply> {
        let name = self.signer.name_of(&request.key)?;
        let source = self.signer.name_of(&request.source.key)?;
        if let Some(headers) = request.headers {
            return self
                .copy_through(request.source, request.key, headers)
                .await;
        }
        if request.source.version_id.is_some() {
            return Err(forebay_io::versions::no_versions());
        }
        if source == name {
            let message = "a copy onto itself that changes nothing";
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        let mut asked = Asked::of(Verb::Put, name.clone())
            .header("content-length", "0")
            .header("x-ms-copy-source", self.signer.source_url(&source)?);
        if let Some(tag) = &request.source.if_match {
            asked = asked.header("x-ms-source-if-match", super::quoted(tag));
        }
        let response = self.ask(&asked).await?;
        let headers = response.headers();
        let reply = answer::written(response.status().as_u16(), headers, None)?;
        match copy_status(headers) {
            Some(("pending", id)) => {
                let id = id.to_owned();
                self.wait_for_copy(name, &id).await
            }
            _ => Ok(reply),
        }
    }

    /// Looks at a copy until it is done; takes away what there is of one that fails.
    async fn wait_for_copy(&self, name: String, id: &str) -> StoreResult<PutReply> {
        let (began, mut pause) = (Instant::now(), COPY_LOOK_FIRST);
        let failure = loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(COPY_LOOK_MAX);
            let response = self.ask(&Asked::of(Verb::Head, name.clone())).await?;
            let headers = response.headers();
            match copy_status(headers) {
                Some(("pending", now)) if now == id => {}
                Some(("success", now)) if now == id => {
                    let meta = answer::described(response.status().as_u16(), headers)?.meta;
                    return Ok(PutReply {
                        etag: meta.etag,
                        last_modified: meta.last_modified,
                        version_id: None,
                    });
                }
                Some((status, now)) if now == id => {
                    let message = format!("the store's copy ended with {status:?}");
                    break StoreError::new(StoreErrorKind::Internal, message);
                }
                // Something newer was written there: the copy was done, or over.
                _ => {
                    let message = "another write came while the store copied";
                    return Err(StoreError::new(StoreErrorKind::Contended, message));
                }
            }
            if began.elapsed() > COPY_TIME_MAX {
                let message = format!("the store's copy takes longer than {COPY_TIME_MAX:?}");
                break StoreError::new(StoreErrorKind::Timeout, message);
            }
        };
        let abort = Asked::of(Verb::Put, name.clone())
            .query("comp", "copy")
            .query("copyid", id)
            .header("content-length", "0")
            .header("x-ms-copy-action", "abort");
        // Whether it was still under way or not, what is there is no object.
        let _ = self.ask(&abort).await;
        self.remove(name).await?;
        Err(failure)
    }

    /// A copy whose bytes pass through here.
    async fn copy_through(
        &self,
        source: forebay_io::multipart::CopySource,
        key: String,
        headers: Vec<(String, String)>,
    ) -> StoreResult<PutReply> {
        let read = self
            .get_inner(GetRequest {
                key: source.key,
                span: None,
                if_match: source.if_match,
                if_none_match: None,
                version_id: source.version_id,
            })
            .await?;
        self.put_inner(PutRequest {
            key,
            length: read.span.len(),
            crc64nvme: headers::told_crc(&read.meta.headers),
            headers,
            if_none_match: false,
            if_match: None,
            attempts: Attempts::Once,
            body: PutBody::Stream(read.body),
        })
        .await
    }

    async fn copy_part_inner(&self, request: CopyPartRequest) -> StoreResult<PutReply> {
        check_part_number(request.number)?;
        self.find_upload(&request.upload).await?;
        let read = self
            .get_inner(GetRequest {
                key: request.source.key,
                span: request.span,
                if_match: request.source.if_match,
                if_none_match: None,
                version_id: request.source.version_id,
            })
            .await?;
        if request.span.is_some_and(|span| span != read.span) {
            let message = "the source of the part ends before its span does";
            let mut error = StoreError::new(StoreErrorKind::RangeNotSatisfiable, message);
            error.object_size = Some(read.meta.size);
            return Err(error);
        }
        let crc64nvme = match request.span {
            None => headers::told_crc(&read.meta.headers),
            Some(_) => None,
        };
        self.put_part_inner(PartRequest {
            upload: request.upload,
            number: request.number,
            length: read.span.len(),
            headers: Vec::new(),
            crc64nvme,
            attempts: Attempts::Once,
            body: PutBody::Stream(read.body),
        })
        .await
    }
}

impl PartStore for AzureStore {
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

fn now_us() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since_epoch.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

fn no_such_upload() -> StoreError {
    StoreError::new(StoreErrorKind::NoSuchUpload, "there is no such upload")
}

fn encode_key(key: &str) -> String {
    utf8_percent_encode(key, NON_ALPHANUMERIC).to_string()
}

fn decode_key(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text.trim()).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// State and id of the last copy to a blob.
fn copy_status(headers: &HeaderMap) -> Option<(&str, &str)> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    Some((text("x-ms-copy-status")?, text("x-ms-copy-id")?))
}

/// The checksum of all parts together, where that of each is known.
fn whole_crc(parts: &[&Part]) -> Option<u64> {
    let mut whole = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, b"");
    for part in parts {
        let (crc, size) = (part.id.crc64nvme?, part.meta.size);
        whole = crc_fast::checksum_combine(CrcAlgorithm::Crc64Nvme, whole, crc, size);
    }
    Some(whole)
}

/// Refuses an object that is not what the client says of it.
fn check_whole(
    told: &[(String, String)],
    parts: &[&Part],
    crc64nvme: Option<u64>,
) -> StoreResult<()> {
    let refuse = |message: &str| Err(StoreError::new(StoreErrorKind::Rejected, message));
    let find = |name: &str| told.iter().find(|header| header.0 == name);
    let size: u64 = parts.iter().map(|part| part.meta.size).sum();
    if let Some((_, told)) = find("x-amz-mp-object-size")
        && told.trim().parse() != Ok(size)
    {
        return refuse("x-amz-mp-object-size is not the size of the parts together");
    }
    if let (Some(_), Some(told)) = (crc64nvme, headers::told_crc(told))
        && crc64nvme != Some(told)
    {
        return refuse("the CRC64-NVME that was given is not that of the parts together");
    }
    Ok(())
}

/// Names and sizes of the uncommitted blocks in a `BlockList`.
fn parse_blocks(body: &[u8]) -> Result<Vec<(String, u64)>, XmlError> {
    let mut blocks = Vec::new();
    let (mut name, mut size) = (None, None);
    xml::read(body, |path, node| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some((&"BlockList", inside)) = names.split_first() else {
            return Err(XmlError::new("it is no BlockList"));
        };
        let Node::Close(text) = node else {
            return Ok(());
        };
        match inside {
            ["UncommittedBlocks", "Block", "Name"] => name = Some(text.trim().to_owned()),
            ["UncommittedBlocks", "Block", "Size"] => size = text.trim().parse().ok(),
            ["UncommittedBlocks", "Block"] => {
                let both = name.take().zip(size.take());
                blocks.push(both.ok_or_else(|| XmlError::new("a block without name or size"))?);
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u32, bytes: &[u8]) -> Part {
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes);
        let id = BlockId {
            upload: UploadId::new(1, [0; 8]),
            number,
            begun_us: 1,
            crc64nvme: Some(crc),
        };
        let blocks = [(id.text(), bytes.len() as u64)];
        parts_of(id.upload, blocks)
            .remove(&number)
            .expect("it is there")
    }

    #[test]
    fn checksums_of_parts_make_that_of_the_object() {
        let parts = [part(1, b"hello "), part(2, b""), part(3, b"world")];
        let parts: Vec<&Part> = parts.iter().collect();
        let whole = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, b"hello world");
        assert_eq!(whole_crc(&parts), Some(whole));
        let unknown = Part {
            id: BlockId {
                crc64nvme: None,
                ..parts[0].id
            },
            ..parts[0].clone()
        };
        assert_eq!(whole_crc(&[&unknown]), None);
    }

    #[test]
    fn an_object_that_is_not_what_was_said_is_refused() {
        let parts = [part(1, b"hello")];
        let parts: Vec<&Part> = parts.iter().collect();
        let crc = whole_crc(&parts);
        let told = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let right = super::super::base64(&crc.expect("known").to_be_bytes());
        for (headers, is_good) in [
            (told("x-amz-mp-object-size", "5"), true),
            (told("x-amz-mp-object-size", "6"), false),
            (told("x-amz-checksum-crc64nvme", &right), true),
            (told("x-amz-checksum-crc64nvme", "AAAAAAAAAAA="), false),
            (told("x-amz-checksum-sha256", "whatever"), true),
        ] {
            assert_eq!(
                check_whole(&headers, &parts, crc).is_ok(),
                is_good,
                "{headers:?}"
            );
        }
    }

    #[test]
    fn uncommitted_blocks_are_read_and_others_are_not() {
        let body = b"<?xml version=\"1.0\"?><BlockList><CommittedBlocks><Block><Name>QQ==</Name>\
                     <Size>1</Size></Block></CommittedBlocks><UncommittedBlocks><Block>\
                     <Name>Qg==</Name><Size>2</Size></Block></UncommittedBlocks></BlockList>";
        assert_eq!(parse_blocks(body), Ok(vec![("Qg==".to_owned(), 2)]));
        parse_blocks(b"<html/>").expect_err("a portal");
        let half = b"<BlockList><UncommittedBlocks><Block><Name>Qg==</Name></Block>\
                     </UncommittedBlocks></BlockList>";
        parse_blocks(half).expect_err("a block without size");
    }

    #[test]
    fn keys_are_kept_as_ascii() {
        for key in ["a/b", "ü 日本", "a%20b", "\u{10ffff}"] {
            assert!(encode_key(key).is_ascii());
            assert_eq!(decode_key(&encode_key(key)).as_deref(), Some(key));
        }
    }
}
