//! Uploads in parts in a folder.
//!
//! This file owns `.forebay-uploads`, where no key leads. Each upload has a directory there, named
//! after it, with
//!
//! * `upload`: its key, with the object's headers and the time it was begun in the trailer. The
//!   upload is there from when this file is to when it is removed, which is first of all;
//! * `part-00001` and so on: files like those of objects, whose headers are the part's checksums.
//!
//! They outlive the process. The object is made by moving the parts' bytes into a new file, which is
//! published as any object is, before the upload is removed. It never keeps a part in memory, and
//! what a crash leaves half removed is removed when the folder is opened.

use super::copy::Moving;
use super::folder::{Folder, UPLOAD_FILE, UPLOADS_FOLDER};
use super::{
    Condition, FileStore, Found, Sealed, Trouble, Writing, blocking, composite, describe, name,
    unix_seconds,
};
use crate::store::etag;
use crc_fast::CrcAlgorithm;
use forebay_io::multipart::{
    CompleteRequest, CompletedPart, CopyPartRequest, CopyRequest, PART_BYTES_MIN, PartMeta,
    PartRequest, PartStore, PartsPage, PartsRequest, UploadMeta, UploadName, UploadsPage,
    UploadsRequest, check_part_number, choose_parts,
};
use forebay_io::store::{
    ByteSpan, KEY_BYTES_MAX, ObjectHead, ObjectMeta, PutReply, StoreError, StoreErrorKind,
    StoreResult, check_key,
};
use futures::future::LocalBoxFuture;
use rustix::fs::FlockOperation;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest name of an upload that is looked for; ours have some 40 bytes.
const UPLOAD_ID_BYTES_MAX: usize = 64;

const PART_PREFIX: &str = "part-";

/// The object's size as the client tells it when it completes an upload.
const SIZE_HEADER: &str = "x-amz-mp-object-size";

/// Numbers the uploads of this process.
static UPLOAD_COUNT: AtomicU64 = AtomicU64::new(0);

impl FileStore {
    async fn create_inner(
        &self,
        key: String,
        headers: Vec<(String, String)>,
    ) -> StoreResult<UploadName> {
        check_key(&key)?;
        let folder = Arc::clone(&self.folder);
        let body = key.clone().into_bytes();
        let writing = blocking(move || Writing::start(&folder)).await?;
        let length = body.len() as u64;
        let writing = writing.write(body.into(), length).await?;
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            let upload_id = new_upload_id();
            let sealed = writing.seal(headers, None)?;
            let names = upload_names(&upload_id);
            folder.publish(sealed.temporary, &names, true)?;
            Ok(UploadName { key, upload_id })
        })
        .await
    }

    async fn find_upload(&self, upload: &UploadName) -> StoreResult<()> {
        let (folder, upload) = (Arc::clone(&self.folder), upload.clone());
        blocking(move || find_upload(&folder, &upload).map(drop)).await
    }

    async fn put_part_inner(&self, request: PartRequest) -> StoreResult<PutReply> {
        check_part_number(request.number)?;
        self.find_upload(&request.upload).await?;
        let folder = Arc::clone(&self.folder);
        let writing = blocking(move || Writing::start(&folder)).await?;
        let writing = writing.receive(request.body, request.length).await?;
        let (headers, crc) = (request.headers, request.crc64nvme);
        let sealed = blocking(move || writing.seal(headers, crc)).await?;
        self.keep_part(request.upload, request.number, sealed).await
    }

    async fn copy_part_inner(&self, request: CopyPartRequest) -> StoreResult<PutReply> {
        check_part_number(request.number)?;
        self.find_upload(&request.upload).await?;
        let found = self.find_source(&request.source).await?;
        let size = found.meta.size;
        let span = request.span.unwrap_or(ByteSpan {
            start: 0,
            end: size,
        });
        let is_odd = request.span.is_some() && span.start >= span.end;
        if is_odd {
            let message = "an empty span cannot be copied";
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        if span.end > size {
            let message = format!("bytes up to {} of an object of {size}", span.end);
            let mut error = StoreError::new(StoreErrorKind::RangeNotSatisfiable, message);
            error.object_size = Some(size);
            return Err(error);
        }
        let sealed = self.copied(found, span, Vec::new()).await?;
        self.keep_part(request.upload, request.number, sealed).await
    }

    /// Publishes a part, unless its upload is over by then.
    async fn keep_part(
        &self,
        upload: UploadName,
        number: u32,
        sealed: Sealed,
    ) -> StoreResult<PutReply> {
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            let names = part_names(&upload.upload_id, number);
            folder.publish(sealed.temporary, &names, false)?;
            if let Err(trouble) = find_upload(&folder, &upload) {
                // Whoever ended it may have been through before the part was there.
                folder.remove(&names)?;
                return Err(trouble);
            }
            Ok(sealed.reply)
        })
        .await
    }

    async fn complete_inner(&self, request: CompleteRequest) -> StoreResult<PutReply> {
        let key = request.upload.key.clone();
        check_key(&key)?;
        let upload_id = request.upload.upload_id.clone();
        let condition = Condition {
            only_new: request.if_none_match,
            only_over: None,
        };
        let (folder, checked) = (Arc::clone(&self.folder), condition.clone());
        let mut assembly = blocking(move || {
            let assembly = Assembly::plan(&folder, &request)?;
            checked.check(&folder, &name::names_of(&request.upload.key))?;
            Ok(assembly)
        })
        .await?;
        while !assembly.is_whole() {
            let folder = Arc::clone(&self.folder);
            assembly = blocking(move || assembly.step(&folder)).await?;
        }
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            let Assembly {
                moving, head, lock, ..
            } = assembly;
            let sealed = Sealed::new(moving.target, &head)?;
            let reply = sealed.publish(&folder, &name::names_of(&key), &condition)?;
            remove_upload(&folder, &upload_id)?;
            drop(lock);
            Ok(reply)
        })
        .await
    }

    async fn abort_inner(&self, upload: UploadName) -> StoreResult<()> {
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            let _lock = lock_upload(&folder, &upload)?;
            remove_upload(&folder, &upload.upload_id)
        })
        .await
    }
}

impl PartStore for FileStore {
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
        let folder = Arc::clone(&self.folder);
        Box::pin(blocking(move || list_parts(&folder, &request)))
    }

    fn list_uploads(
        &self,
        request: UploadsRequest,
    ) -> LocalBoxFuture<'_, StoreResult<UploadsPage>> {
        let folder = Arc::clone(&self.folder);
        Box::pin(blocking(move || list_uploads(&folder, &request)))
    }
}

/// An object that is being made from parts.
struct Assembly {
    upload: UploadName,
    /// What is still to be opened, last first.
    parts_left: Vec<PartMeta>,
    moving: Moving,
    head: ObjectHead,
    /// Keeps others from completing or removing the upload.
    lock: File,
}

impl Assembly {
    /// Checks the parts and describes the object that they make.
    fn plan(folder: &Folder, request: &CompleteRequest) -> Result<Self, Trouble> {
        let lock = lock_upload(folder, &request.upload)?;
        let upload = find_upload(folder, &request.upload)?;
        let mut kept = BTreeMap::new();
        for part in &request.parts {
            if let Some(found) = find_part(folder, &request.upload, part.number)? {
                check_checksums(part, &found)?;
                kept.insert(part.number, (found.part_meta(part.number), found));
            }
        }
        let chosen = choose_parts(&request.parts, PART_BYTES_MIN, |number| {
            kept.get(&number).map(|(meta, _)| meta)
        })?;
        let size = chosen.iter().map(|part| part.size).sum();
        check_size(&request.headers, size)?;
        let etags = chosen.iter().map(|part| part.etag.as_str());
        let etag = etag::of_parts(etags).ok_or(DAMAGED_PART)?;
        let mut crc = Some(0);
        for part in &chosen {
            let (_, found) = &kept[&part.number];
            crc = crc.zip(found.crc64nvme).map(|(all, next)| {
                let algorithm = CrcAlgorithm::Crc64Nvme;
                crc_fast::checksum_combine(algorithm, all, next, part.size)
            });
        }
        let found = chosen.iter().map(|part| &kept[&part.number].1.headers);
        let mut headers = upload.meta.headers;
        composite::set_checksums(&mut headers, request, found.collect(), crc)?;
        let head = ObjectHead {
            version_id: None,
            meta: ObjectMeta {
                size,
                etag,
                last_modified: unix_seconds(),
                headers,
            },
            crc64nvme: crc,
        };
        let parts_left: Vec<PartMeta> = chosen.into_iter().rev().cloned().collect();
        let moving = Moving {
            // Replaced by the first part before anything is read.
            source: lock.try_clone()?,
            left: 0,
            target: folder.temporary()?,
        };
        Ok(Assembly {
            upload: request.upload.clone(),
            parts_left,
            moving,
            head,
            lock,
        })
    }

    fn is_whole(&self) -> bool {
        self.parts_left.is_empty() && self.moving.left == 0
    }

    /// Moves a bounded number of bytes.
    fn step(mut self, folder: &Folder) -> Result<Self, Trouble> {
        if self.moving.left > 0 {
            self.moving = self.moving.step()?;
            return Ok(self);
        }
        let Some(wanted) = self.parts_left.pop() else {
            return Ok(self);
        };
        let found = find_file(folder, &part_names(&self.upload.upload_id, wanted.number))?;
        let same = found.filter(|found| found.meta.etag == wanted.etag);
        let Some(found) = same.filter(|found| found.meta.size == wanted.size) else {
            let message = format!("part {} was replaced meanwhile", wanted.number);
            return Err(StoreError::new(StoreErrorKind::InvalidPart, message).into());
        };
        self.moving.source = found.file;
        self.moving.left = wanted.size;
        Ok(self)
    }
}

const DAMAGED_PART: Trouble = Trouble::Damaged("a part's trailer is damaged");

/// What is known of a part without its file being open.
pub(super) struct KeptPart {
    meta: ObjectMeta,
    pub(super) headers: Vec<(String, String)>,
    crc64nvme: Option<u64>,
}

impl KeptPart {
    fn part_meta(&self, number: u32) -> PartMeta {
        PartMeta {
            number,
            etag: self.meta.etag.clone(),
            size: self.meta.size,
            last_modified: self.meta.last_modified,
        }
    }
}

fn find_part(
    folder: &Folder,
    upload: &UploadName,
    number: u32,
) -> Result<Option<KeptPart>, Trouble> {
    let found = find_file(folder, &part_names(&upload.upload_id, number))?;
    Ok(found.map(|found| KeptPart {
        headers: found.meta.headers.clone(),
        meta: found.meta,
        crc64nvme: found.crc64nvme,
    }))
}

/// A file of ours; `None` if there is none.
fn find_file(folder: &Folder, names: &[String]) -> Result<Option<Found>, Trouble> {
    let found = folder.find(names)?.map(describe).transpose()?;
    match found {
        // Nobody but us puts files here.
        Some(found) if found.plain.is_some() => Err(DAMAGED_PART),
        other => Ok(other),
    }
}

/// What is kept of an upload, whose key must be the one that is named.
fn find_upload(folder: &Folder, upload: &UploadName) -> Result<Found, Trouble> {
    if folder.is_gone() {
        return Err(Trouble::Gone);
    }
    if !is_upload_id(&upload.upload_id) {
        return Err(no_such_upload());
    }
    let found = find_file(folder, &upload_names(&upload.upload_id))?;
    let found = found.ok_or_else(no_such_upload)?;
    match key_in(&found)? == upload.key {
        true => Ok(found),
        false => Err(no_such_upload()),
    }
}

/// Finds an upload and keeps others from ending it as long as the file is open.
fn lock_upload(folder: &Folder, upload: &UploadName) -> Result<File, Trouble> {
    let found = find_upload(folder, upload)?;
    if rustix::fs::flock(&found.file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let message = "the upload is being completed or aborted";
        return Err(StoreError::new(StoreErrorKind::Contended, message).into());
    }
    // It may have been ended before we had the lock.
    match rustix::fs::fstat(&found.file)
        .map_err(io::Error::from)?
        .st_nlink
    {
        0 => Err(no_such_upload()),
        _ => Ok(found.file),
    }
}

/// Ends an upload: from the first step on there is none.
fn remove_upload(folder: &Folder, upload_id: &str) -> Result<(), Trouble> {
    let names = upload_names(upload_id);
    folder.remove(&names)?;
    Ok(folder.clear_upload(&names[..names.len() - 1])?)
}

fn key_in(found: &Found) -> Result<String, Trouble> {
    if found.meta.size > KEY_BYTES_MAX as u64 {
        return Err(DAMAGED_PART);
    }
    let mut key = vec![0; found.meta.size as usize];
    found.file.read_exact_at(&mut key, 0)?;
    String::from_utf8(key).map_err(|_| DAMAGED_PART)
}

fn list_parts(folder: &Folder, request: &PartsRequest) -> Result<PartsPage, Trouble> {
    find_upload(folder, &request.upload)?;
    let limit = request.limit.max(1);
    let upload_id = &request.upload.upload_id;
    let directory = [UPLOADS_FOLDER.to_owned(), upload_id.clone()];
    let mut numbers = BTreeSet::new();
    folder.names_in(&directory, |name| {
        let number = name.strip_prefix(PART_PREFIX);
        let number = number.and_then(|digits| digits.parse::<u32>().ok());
        numbers.extend(number.filter(|number| *number > request.after));
    })?;
    let mut page = PartsPage::default();
    for number in numbers {
        if page.parts.len() == limit {
            page.is_truncated = true;
            break;
        }
        if let Some(found) = find_part(folder, &request.upload, number)? {
            page.parts.push(found.part_meta(number));
        }
    }
    Ok(page)
}

/// Reads the key of every upload: the names of their directories do not tell it.
fn list_uploads(folder: &Folder, request: &UploadsRequest) -> Result<UploadsPage, Trouble> {
    if folder.is_gone() {
        return Err(Trouble::Gone);
    }
    let mut upload_ids = Vec::new();
    folder.names_in(&[UPLOADS_FOLDER.to_owned()], |name| {
        if is_upload_id(name) {
            upload_ids.push(name.to_owned());
        }
    })?;
    let limit = request.limit.max(1);
    let mut first = BTreeMap::new();
    let mut is_truncated = false;
    for upload_id in upload_ids {
        let Some(found) = find_file(folder, &upload_names(&upload_id))? else {
            continue;
        };
        let key = key_in(&found)?;
        let upload = UploadName { key, upload_id };
        if !upload.key.starts_with(&request.prefix) || !request.is_behind_markers(&upload) {
            continue;
        }
        let initiated = found.meta.last_modified;
        first.insert(
            (upload.key.clone(), upload.upload_id.clone()),
            UploadMeta { upload, initiated },
        );
        if first.len() > limit {
            first.pop_last();
            is_truncated = true;
        }
    }
    Ok(UploadsPage {
        uploads: first.into_values().collect(),
        is_truncated,
    })
}

/// Holds what the client says of a part's checksums against what was sent with the part.
fn check_checksums(part: &CompletedPart, found: &KeptPart) -> Result<(), Trouble> {
    for (name, told) in &part.checksums {
        let Some(header) = composite::header_of(name) else {
            continue;
        };
        let kept = found.headers.iter().find(|(name, _)| *name == header);
        if kept.is_some_and(|(_, value)| value != told) {
            let message = format!("part {} has another {name}", part.number);
            return Err(StoreError::new(StoreErrorKind::InvalidPart, message).into());
        }
    }
    Ok(())
}

fn check_size(headers: &[(String, String)], size: u64) -> Result<(), Trouble> {
    let told = headers.iter().find(|(name, _)| name == SIZE_HEADER);
    match told {
        Some((_, told)) if told.parse() != Ok(size) => {
            let message = format!("the parts have {size} bytes, {SIZE_HEADER} is {told:?}");
            Err(StoreError::new(StoreErrorKind::Rejected, message).into())
        }
        _ => Ok(()),
    }
}

/// Nobody else's: the time, the process and a count. Names of later uploads sort behind.
fn new_upload_id() -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = since_epoch.map_or(0, |since_epoch| since_epoch.as_nanos() as u64);
    let count = UPLOAD_COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{nanoseconds:016x}-{:08x}-{count:x}", std::process::id())
}

/// Whether a name can be one of ours: then it is one file name and no way out of the folder.
fn is_upload_id(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f' | b'-');
    !name.is_empty() && name.len() <= UPLOAD_ID_BYTES_MAX && name.bytes().all(is_plain)
}

fn upload_names(upload_id: &str) -> [String; 3] {
    let names = [UPLOADS_FOLDER, upload_id, UPLOAD_FILE];
    names.map(str::to_owned)
}

fn part_names(upload_id: &str, number: u32) -> [String; 3] {
    let part = format!("{PART_PREFIX}{number:05}");
    [UPLOADS_FOLDER.to_owned(), upload_id.to_owned(), part]
}

fn no_such_upload() -> Trouble {
    StoreError::new(StoreErrorKind::NoSuchUpload, "there is no such upload").into()
}

#[cfg(test)]
mod tests;
