//! A folder as a [`Store`]: one file per object.
//!
//! This file owns what a folder answers. Objects appear and change by one rename of a file that is
//! whole and synced, with its metadata in it (`trailer`); names follow [`name`]; no call leaves
//! the folder (`folder`); uploads in parts are where no key leads (`parts`). Calls that block run on tokio's blocking threads, one bounded piece
//! at a time. It never changes a file in place.
//!
//! A plain file that somebody puts into the folder under a name that a key maps to is an object as
//! well, with an ETag made of its identity, size and time. It should be put there by a rename:
//! one that is changed while it is read ends the read with `Corrupt`.

mod composite;
mod copy;
mod folder;
mod list;
pub mod name;
mod parts;
mod trailer;

use super::BuildError;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use folder::{Folder, Temporary};
use forebay_io::listing::{ListPage, ListRequest};
use forebay_io::store::{
    ByteSpan, GetReply, GetRequest, ObjectHead, ObjectMeta, PutBody, PutReply, PutRequest, Store,
    StoreError, StoreErrorKind, StoreResult, check_key,
};
use forebay_io::versions::{Deleted, VersionStore, no_versions};
use futures::future::LocalBoxFuture;
use futures::stream::{self, LocalBoxStream, StreamExt};
use md5::{Digest, Md5};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes read or written by one blocking call: long enough to be worth the hop to another thread
/// (some 20 µs), short enough that a slow disk holds no thread for long.
const PIECE_BYTES: usize = 512 * 1024;

/// A folder that holds objects. Clones of the spec may open the same folder many times at once.
pub struct FileStore {
    folder: Arc<Folder>,
}

/// An object that was found: its description and the file that it is the beginning of.
struct Found {
    file: File,
    meta: ObjectMeta,
    /// Of an object that we wrote.
    crc64nvme: Option<u64>,
    /// Of a plain file: what it was like, to notice that it changes.
    plain: Option<Identity>,
}

/// What tells one state of a plain file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    inode: u64,
    size: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

/// A body being written.
struct Writing {
    temporary: Temporary,
    md5: Md5,
    crc: crc_fast::Digest,
    length: u64,
}

impl FileStore {
    /// Opens a folder, which must exist, and removes what a crash left in it.
    pub fn open(path: &Path) -> Result<Self, BuildError> {
        let folder = Folder::open(path).map_err(|error| BuildError::Folder {
            path: path.to_owned(),
            why: error.to_string(),
        })?;
        Ok(FileStore {
            folder: Arc::new(folder),
        })
    }

    async fn find(&self, key: &str) -> StoreResult<Found> {
        check_key(key)?;
        let names = name::names_of(key);
        let folder = Arc::clone(&self.folder);
        blocking(move || {
            let Some(file) = folder.find(&names)? else {
                return Err(match folder.is_gone() {
                    true => Trouble::Gone,
                    false => Trouble::NotFound,
                });
            };
            describe(file)
        })
        .await
    }

    async fn get_inner(&self, request: GetRequest) -> StoreResult<GetReply> {
        if request.version_id.is_some() {
            return Err(no_versions());
        }
        if request.span.is_some_and(|span| span.start >= span.end) {
            let message = "an empty span cannot be asked for";
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        let found = self.find(&request.key).await?;
        check_conditions(&request, &found.meta)?;
        let size = found.meta.size;
        let span = match request.span {
            None => ByteSpan {
                start: 0,
                end: size,
            },
            Some(span) if span.start >= size => {
                let message = format!("byte {} of an object of {size} bytes", span.start);
                let mut error = StoreError::new(StoreErrorKind::RangeNotSatisfiable, message);
                error.object_size = Some(size);
                return Err(error);
            }
            Some(span) => ByteSpan {
                start: span.start,
                end: span.end.min(size),
            },
        };
        Ok(GetReply {
            meta: found.meta.clone(),
            span,
            body: body_of(found, span),
        })
    }

    async fn put_inner(&self, request: PutRequest) -> StoreResult<PutReply> {
        check_key(&request.key)?;
        let folder = Arc::clone(&self.folder);
        let names = name::names_of(&request.key);
        let condition = Condition {
            only_new: request.if_none_match,
            only_over: request.if_match,
        };
        let checked = condition.clone();
        let writing = blocking(move || {
            // Refused before the body is read; whether it still holds is checked at the end.
            checked.check(&folder, &names)?;
            Writing::start(&folder)
        })
        .await?;
        let writing = writing.receive(request.body, request.length).await?;
        let folder = Arc::clone(&self.folder);
        let names = name::names_of(&request.key);
        let (headers, crc) = (request.headers, request.crc64nvme);
        blocking(move || {
            let sealed = writing.seal(headers, crc)?;
            sealed.publish(&folder, &names, &condition)
        })
        .await
    }
}

impl forebay_io::tags::TagStore for FileStore {}

impl VersionStore for FileStore {}

impl Store for FileStore {
    fn get(&self, request: GetRequest) -> LocalBoxFuture<'_, StoreResult<GetReply>> {
        Box::pin(self.get_inner(request))
    }

    fn head(&self, key: String) -> LocalBoxFuture<'_, StoreResult<ObjectHead>> {
        Box::pin(async move {
            let found = self.find(&key).await?;
            Ok(ObjectHead {
                meta: found.meta,
                crc64nvme: found.crc64nvme,
                version_id: None,
            })
        })
    }

    fn put(&self, request: PutRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(self.put_inner(request))
    }

    fn delete(&self, key: String) -> LocalBoxFuture<'_, StoreResult<Deleted>> {
        Box::pin(async move {
            check_key(&key)?;
            let folder = Arc::clone(&self.folder);
            blocking(move || match folder.is_gone() {
                true => Err(Trouble::Gone),
                false => {
                    let _others_may_write_too = folder.lock(false)?;
                    folder.remove(&name::names_of(&key))?;
                    Ok(Deleted::default())
                }
            })
            .await
        })
    }

    fn list(&self, request: ListRequest) -> LocalBoxFuture<'_, StoreResult<ListPage>> {
        let folder = Arc::clone(&self.folder);
        Box::pin(blocking(move || match folder.is_gone() {
            true => Err(Trouble::Gone),
            false => list::page(&folder, &request),
        }))
    }
}

impl Writing {
    fn start(folder: &Folder) -> Result<Self, Trouble> {
        if folder.is_gone() {
            return Err(Trouble::Gone);
        }
        Ok(Writing {
            temporary: folder.temporary()?,
            md5: Md5::new(),
            crc: crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme),
            length: 0,
        })
    }

    async fn write(mut self, mut piece: Bytes, length_max: u64) -> StoreResult<Self> {
        while !piece.is_empty() {
            let part = piece.split_to(PIECE_BYTES.min(piece.len()));
            self.length += part.len() as u64;
            if self.length > length_max {
                return Err(wrong_length(self.length, length_max));
            }
            self = blocking(move || {
                self.md5.update(&part);
                self.crc.update(&part);
                self.temporary.file.write_all(&part)?;
                Ok(self)
            })
            .await?;
        }
        Ok(self)
    }

    /// Writes a whole body.
    async fn receive(mut self, body: PutBody, length: u64) -> StoreResult<Self> {
        let mut pieces = match body {
            PutBody::Whole(pieces) => stream::iter(pieces).map(Ok).boxed_local(),
            PutBody::Stream(pieces) => pieces,
        };
        while let Some(piece) = pieces.next().await {
            self = self.write(piece?, length).await?;
        }
        match self.length == length {
            true => Ok(self),
            false => Err(wrong_length(self.length, length)),
        }
    }

    /// Ends the file with what was learned of its bytes.
    fn seal(
        self,
        headers: Vec<(String, String)>,
        crc64nvme: Option<u64>,
    ) -> Result<Sealed, Trouble> {
        let crc = self.crc.finalize();
        if crc64nvme.is_some_and(|announced| announced != crc) {
            return Err(Trouble::Damaged(
                "the body does not have the checksum announced",
            ));
        }
        let etag = hex::encode(self.md5.finalize());
        let head = ObjectHead {
            meta: ObjectMeta {
                size: self.length,
                etag,
                last_modified: unix_seconds(),
                headers,
            },
            crc64nvme: Some(crc),
            version_id: None,
        };
        Sealed::new(self.temporary, &head)
    }
}

/// A file that is whole and synced, and that nobody sees yet.
struct Sealed {
    temporary: Temporary,
    reply: PutReply,
}

impl Sealed {
    /// Ends a file that holds an object's bytes with what is known of it.
    fn new(mut temporary: Temporary, head: &ObjectHead) -> Result<Self, Trouble> {
        let trailer = trailer::encode(head).ok_or(Trouble::LongHeaders)?;
        temporary.file.write_all(&trailer)?;
        temporary.sync()?;
        let reply = PutReply {
            etag: head.meta.etag.clone(),
            last_modified: head.meta.last_modified,
            version_id: None,
        };
        Ok(Sealed { temporary, reply })
    }

    fn publish(
        self,
        folder: &Folder,
        names: &[String],
        condition: &Condition,
    ) -> Result<PutReply, Trouble> {
        let _guard = folder.lock(condition.only_over.is_some())?;
        if condition.only_over.is_some() {
            condition.check(folder, names)?;
        }
        match folder.publish(self.temporary, names, condition.only_new) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Trouble::Exists),
            other => Ok(other?),
        }?;
        Ok(self.reply)
    }
}

/// What must hold for an object to be written.
#[derive(Clone, Default)]
struct Condition {
    /// No object has the key.
    only_new: bool,
    /// An object with this ETag has it.
    only_over: Option<String>,
}

impl Condition {
    fn check(&self, folder: &Folder, names: &[String]) -> Result<(), Trouble> {
        if !self.only_new && self.only_over.is_none() {
            return Ok(());
        }
        let found = folder.find(names)?.map(describe).transpose()?;
        match (&found, &self.only_over) {
            (None, Some(_)) => Err(Trouble::NotFound),
            (Some(found), Some(tag)) if found.meta.etag != *tag => Err(Trouble::Changed),
            (Some(_), _) if self.only_new => Err(Trouble::Exists),
            _ => Ok(()),
        }
    }
}

fn unix_seconds() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.map_or(0, |since_epoch| since_epoch.as_secs())
}

/// Why a blocking call failed.
enum Trouble {
    Io(io::Error),
    NotFound,
    Gone,
    Exists,
    Changed,
    LongHeaders,
    Damaged(&'static str),
    /// As it is.
    Refused(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Trouble::Refused(error)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Io(error)
    }
}

impl From<Trouble> for StoreError {
    fn from(trouble: Trouble) -> Self {
        use StoreErrorKind as Kind;
        match trouble {
            Trouble::NotFound => StoreError::new(Kind::NotFound, "the key does not exist"),
            Trouble::Gone => StoreError::new(Kind::NoSuchBucket, "the folder was removed"),
            Trouble::Exists => {
                StoreError::new(Kind::PreconditionFailed, "an object has this key already")
            }
            Trouble::Changed => {
                StoreError::new(Kind::PreconditionFailed, "the object has another ETag")
            }
            Trouble::Refused(error) => error,
            Trouble::LongHeaders => StoreError::new(
                Kind::Rejected,
                "the object's headers are too long to be kept",
            ),
            Trouble::Damaged(what) => StoreError::new(Kind::Corrupt, what),
            Trouble::Io(error) => StoreError::new(io_kind(&error), error.to_string()),
        }
    }
}

fn io_kind(error: &io::Error) -> StoreErrorKind {
    match error.kind() {
        // A link or a file where a directory should be: somebody must look at the folder.
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory => StoreErrorKind::Denied,
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            StoreErrorKind::Denied
        }
        _ => StoreErrorKind::Internal,
    }
}

/// Runs `work` on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> StoreResult<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(StoreError::from),
        Err(error) => {
            let message = format!("a blocking thread failed: {error}");
            Err(StoreError::new(StoreErrorKind::Internal, message))
        }
    }
}

/// Reads what a file says about its object.
fn describe(file: File) -> Result<Found, Trouble> {
    let identity = Identity::of(&file)?;
    let mut tail = [0; trailer::TAIL_BYTES];
    let tail_at = identity.size.checked_sub(tail.len() as u64);
    let kind = match tail_at {
        None => trailer::Kind::Plain,
        Some(at) => {
            file.read_exact_at(&mut tail, at)?;
            trailer::decode_tail(&tail, identity.size)
        }
    };
    let damaged = || Trouble::Damaged("the file's trailer is damaged");
    match kind {
        trailer::Kind::Plain => Ok(Found {
            file,
            meta: identity.meta(),
            crc64nvme: None,
            plain: Some(identity),
        }),
        trailer::Kind::Damaged => Err(damaged()),
        trailer::Kind::Ours(decoded) => {
            let mut json = vec![0; decoded.json_bytes];
            file.read_exact_at(&mut json, decoded.object_bytes)?;
            let head = trailer::decode(&decoded, &tail, &json).ok_or_else(damaged)?;
            Ok(Found {
                file,
                meta: head.meta,
                crc64nvme: head.crc64nvme,
                plain: None,
            })
        }
    }
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Identity {
            inode: metadata.ino(),
            size: metadata.size(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
        })
    }

    /// A plain file's object. Its tag is not 32 hex digits, so that nobody takes it for an MD5.
    fn meta(&self) -> ObjectMeta {
        let etag = format!(
            "plain-{:x}-{:x}-{:x}.{:x}",
            self.inode, self.size, self.modified_seconds, self.modified_nanoseconds
        );
        ObjectMeta {
            size: self.size,
            etag,
            last_modified: u64::try_from(self.modified_seconds).unwrap_or(0),
            headers: Vec::new(),
        }
    }
}

fn check_conditions(request: &GetRequest, meta: &ObjectMeta) -> StoreResult<()> {
    if request
        .if_match
        .as_ref()
        .is_some_and(|tag| *tag != meta.etag)
    {
        let message = "the object has another ETag";
        return Err(StoreError::new(StoreErrorKind::PreconditionFailed, message));
    }
    if request.if_none_match.as_ref() == Some(&meta.etag) {
        let message = "the object still has this ETag";
        return Err(StoreError::new(StoreErrorKind::NotModified, message));
    }
    Ok(())
}

/// The bytes of `span`, read as they are asked for from the file as it was found: a rename over it
/// changes nothing.
fn body_of(found: Found, span: ByteSpan) -> LocalBoxStream<'static, StoreResult<Bytes>> {
    let found = Arc::new(found);
    let pieces = stream::unfold(Some(span.start), move |at| {
        let found = Arc::clone(&found);
        async move {
            let at = at.filter(|at| *at < span.end)?;
            let length = (span.end - at).min(PIECE_BYTES as u64);
            match blocking(move || read_piece(&found, at, length as usize)).await {
                Ok(bytes) => Some((Ok(bytes), Some(at + length))),
                Err(error) => Some((Err(error), None)),
            }
        }
    });
    pieces.boxed_local()
}

fn read_piece(found: &Found, at: u64, length: usize) -> Result<Bytes, Trouble> {
    let mut bytes = vec![0; length];
    match found.file.read_exact_at(&mut bytes, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Trouble::Damaged("the file was cut while it was read"));
        }
        other => other?,
    }
    // Looked at after the bytes were read: they belong to the state that was announced.
    if let Some(plain) = found.plain
        && Identity::of(&found.file)? != plain
    {
        return Err(Trouble::Damaged("the file was changed while it was read"));
    }
    Ok(Bytes::from(bytes))
}

fn wrong_length(length: u64, announced: u64) -> StoreError {
    let message = format!("the body has {length} bytes or more, {announced} were announced");
    StoreError::new(StoreErrorKind::Rejected, message)
}

#[cfg(test)]
mod tests;
