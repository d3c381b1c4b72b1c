//! HTTP as clients see it: one file per verb, one for errors, one for the connection.
//!
//! This file owns the way of a request: the head is checked, the target parsed, the access judged,
//! all before a body is read; then the verb's file takes over. It knows what a core shares with
//! its connections and nothing of sockets or stores.

pub mod auth;
pub mod aws_chunked;
pub mod backlog;
pub mod body;
pub mod bucket;
pub mod conditional;
pub mod connection;
pub mod control;
pub mod copy;
pub mod delete_objects;
pub mod digest;
pub mod envelope;
pub mod get;
pub mod head;
pub mod hoist;
pub mod limits;
pub mod list;
pub mod list_parts;
pub mod list_versions;
pub mod md5_queue;
pub mod multipart;
pub mod operation;
pub mod overrides;
pub mod part;
pub mod put;
pub mod range;
pub mod reply;
pub mod sigv4;
pub mod source;
pub mod stats;
pub mod tagging;
pub mod target;
pub mod upload_part;
pub mod versions;

use crate::config::VolumeStore;
use crate::server::ServerState;
use crate::server::volumes::{ServedVolume, VolumeTable};
use crate::store::azure;
use auth::{Access, Credential, Identity};
use connection::{Connection, Ended, Refused};
use forebay_io::disk::ring::RingDisk;
use forebay_io::local::{Event, Permits};
use forebay_io::rt::GlommioRuntime;
use forebay_io::runtime::Runtime;
use forebay_shards::key::{BlockId, Volume};
use forebay_shards::router::Router;
use get::Wishes;
use head::{Framing, Head};
use md5_queue::Md5Queue;
use operation::Operation;
use reply::ErrorReply;
use sigv4::ChunkVerifier;
use source::Source;
use stats::HttpStats;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use target::Target;

/// What a core shares with its connections.
pub struct CoreContext {
    /// Which core this is.
    pub index: usize,
    /// The executor.
    pub runtime: GlommioRuntime,
    /// The way to any block.
    pub router: Router<GlommioRuntime, RingDisk>,
    /// What all cores share and only read.
    pub server: Arc<ServerState>,
    /// Set when the server stops.
    pub stopping: Event,
    /// Replaced whole when the config is read again.
    pub volume_table: RefCell<Arc<VolumeTable>>,
    /// Makes request ids unique.
    pub requests: Cell<u64>,
    /// Turns of connections that receive bodies; see [`Connection::set_in_turn`].
    pub receiving: Permits,
    /// Lists that may be made at a time.
    pub listing: Permits,
    /// DeleteObjects that may be in memory at a time.
    pub deleting: Permits,
    /// Versions that may be read at a time.
    pub version_reads: Permits,
    /// Bodies whose MD5 is wanted.
    pub md5s: Rc<Md5Queue>,
}

impl CoreContext {
    /// The volumes as of now.
    pub fn volumes(&self) -> Arc<VolumeTable> {
        self.volume_table.borrow().clone()
    }

    /// This core's counters.
    pub fn stats(&self) -> &HttpStats {
        &self.server.http[self.index]
    }

    /// A new request id: start of the server, core, count.
    pub fn next_request_id(&self) -> String {
        let count = self.requests.get();
        self.requests.set(count + 1);
        let mut id = String::with_capacity(20);
        push_hex(&mut id, u64::from(self.server.run_id), 8);
        push_hex(&mut id, self.index as u64, 2);
        push_hex(&mut id, count, 10);
        id
    }
}

/// Appends the last `digits` hexadecimal digits of a number.
fn push_hex(text: &mut String, number: u64, digits: u32) {
    let nibbles = (0..digits).rev().map(|at| (number >> (4 * at)) & 15);
    text.extend(nibbles.map(|nibble| char::from(b"0123456789ABCDEF"[nibble as usize])));
}

/// An object that a request may touch.
pub struct ObjectRequest {
    /// The volume as the cache sees it.
    pub volume: Arc<Volume>,
    /// The key.
    pub key: Arc<str>,
}

impl ObjectRequest {
    /// One of the object's blocks.
    pub fn block(&self, number: u64) -> BlockId {
        BlockId {
            volume: self.volume.clone(),
            key: self.key.clone(),
            number,
        }
    }

    /// The object's name in error documents and logs.
    pub fn resource(&self) -> String {
        format!("/{}/{}", self.volume.name, self.key)
    }
}

/// Answers a request about an object with an error.
pub async fn finish_with(
    connection: &mut Connection,
    error: ErrorReply,
    object: &ObjectRequest,
) -> Result<(), Ended> {
    connection.respond_error(&error, &object.resource()).await
}

/// Serves a connection until it ends.
pub async fn serve(mut connection: Connection) {
    let context: Rc<CoreContext> = connection.context().clone();
    let ended = loop {
        match serve_one(&mut connection).await {
            Ok(true) => {}
            Ok(false) => return connection.close().await,
            Err(ended) => break ended,
        }
    };
    match ended {
        Ended::Done => connection.close().await,
        Ended::TooSlow => {
            context.stats().too_slow.add(1);
            log::debug!("a connection was closed: too slow");
        }
        // Without a goodbye: a body that was cut short must not look complete.
        Ended::Io(error) => log::debug!("a connection ended: {error}"),
        Ended::Framing(error) => log::debug!("a connection ended: {error}"),
    }
}

/// Serves one request; whether another may follow.
async fn serve_one(connection: &mut Connection) -> Result<bool, Ended> {
    let head = match connection.next_request().await {
        Ok(head) => head,
        Err(Refused::Ended(ended)) => return Err(ended),
        Err(Refused::Head(error)) => {
            connection.context().stats().malformed.add(1);
            connection
                .respond_error(&ErrorReply::from(error), "")
                .await?;
            return Ok(false);
        }
    };
    dispatch(connection, &head).await?;
    connection.finish_request().await
}

async fn dispatch(connection: &mut Connection, head: &Head) -> Result<(), Ended> {
    let parsed = match target::parse(&head.target) {
        Ok(parsed) => parsed,
        Err(error) => return connection.respond_error(&error.into(), "").await,
    };
    let credential = Credential::of(head, &parsed.query);
    let (volume, key) = match parsed.target {
        Target::Control(path) => {
            return control::serve(connection, head, &credential, &path, &parsed.query).await;
        }
        Target::Service => (None, String::new()),
        Target::Volume(volume) => (Some(volume), String::new()),
        Target::Object { volume, key } => (Some(volume), key),
    };
    let resource = || format!("/{}/{key}", volume.as_deref().unwrap_or_default());
    let now = connection.context().runtime.unix_seconds();
    let table = connection.context().volumes();
    let identified = {
        let volumes = table.list().map(|volume| &volume.settings);
        auth::identify(&credential, head, &parsed.query, volumes, now)
    };
    let prepared = identified.and_then(|(identity, chunks)| {
        let (head, query) = match credential.is_presigned() {
            true => {
                let (head, query) = hoist::unfold(head, &parsed.query)?;
                (Cow::Owned(head), query)
            }
            false => (Cow::Borrowed(head), parsed.query),
        };
        Ok((identity, chunks, head, query))
    });
    if key.is_empty() {
        let planned = prepared.and_then(|(identity, _, head, query)| {
            let plan = bucket::plan(&table, volume.as_deref(), identity, &head, &query)?;
            Ok((plan, head))
        });
        return match planned {
            Ok((plan, head)) => bucket::serve(connection, &head, &plan, &resource()).await,
            Err(error) => connection.respond_error(&error, &resource()).await,
        };
    }
    let admitted = prepared.and_then(|(identity, chunks, head, query)| {
        let served = admit(&table, volume.as_deref(), identity, &head)?;
        check_kept(served, &key)?;
        let task = task(&table, served, identity, chunks, &head, &query)?;
        Ok((served, head, task))
    });
    let (served, head, task) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return connection.respond_error(&error, &resource()).await,
    };
    let object = ObjectRequest {
        volume: served.volume.clone(),
        key: key.into(),
    };
    carry_out(connection, head.as_ref(), &object, task).await
}

/// What a request that may do what it wants is to have done.
struct Task {
    operation: Operation,
    /// Of a copy.
    source: Option<Source>,
    wishes: Wishes,
    signed: put::Signed,
}

fn task(
    table: &VolumeTable,
    served: &ServedVolume,
    identity: Identity<'_>,
    chunks: Option<ChunkVerifier>,
    head: &Head,
    query: &[(String, String)],
) -> Result<Task, ErrorReply> {
    let is_signed = matches!(identity, Identity::Pair(_));
    let operation = operation::of(head, query, is_signed).map_err(|error| {
        match head.framing == Framing::Chunked {
            true => error.closing(),
            false => error,
        }
    })?;
    if operation.version_id().is_some() && !served.volume.versions.may_be_kept() {
        let what = format!("the query parameter {:?}", operation::VERSION_ID);
        return Err(ErrorReply::not_implemented(&what));
    }
    let source = match operation {
        Operation::Copy | Operation::CopyPart(_) => Some(source::of(table, identity, head)?),
        _ => None,
    };
    let is_anonymous = matches!(identity, Identity::Anonymous);
    Ok(Task {
        operation,
        source,
        wishes: Wishes::of(head, query, is_anonymous)?,
        signed: put::Signed {
            is_signed,
            wants_md5: served.settings.etag.is_md5(is_signed),
            chunks,
        },
    })
}

async fn carry_out(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    task: Task,
) -> Result<(), Ended> {
    let Task {
        operation,
        source,
        wishes,
        signed,
    } = task;
    let source = || source.as_ref().expect("a copy has a source");
    if operation.changes_object() {
        let router = &connection.context().router;
        router.know_versioning(&object.volume).await;
    }
    match operation {
        Operation::Read(None) => get::serve(connection, head, object, &wishes).await,
        Operation::Read(Some(number)) => {
            part::serve(connection, head, object, &wishes, number).await
        }
        Operation::Put => put::serve(connection, head, object, signed).await,
        Operation::Copy => copy::serve(connection, head, object, source()).await,
        Operation::Delete => put::delete(connection, head, object).await,
        Operation::CreateUpload => multipart::create(connection, head, object).await,
        Operation::PutPart(part) => {
            upload_part::serve(connection, head, object, &part, signed).await
        }
        Operation::CopyPart(part) => {
            copy::serve_part(connection, head, object, &part, source()).await
        }
        Operation::Complete(upload_id) => {
            multipart::complete(connection, head, object, upload_id, signed).await
        }
        Operation::Abort(upload_id) => multipart::abort(connection, head, object, &upload_id).await,
        Operation::ReadVersion(id) => versions::serve(connection, head, object, &wishes, &id).await,
        Operation::DeleteVersion(id) => versions::delete(connection, head, object, &id).await,
        Operation::ReadTags(id) => tagging::read(connection, object, id.as_deref()).await,
        Operation::WriteTags(id) => {
            tagging::write(connection, head, object, id.as_deref(), signed).await
        }
        Operation::ClearTags(id) => tagging::clear(connection, head, object, id.as_deref()).await,
        Operation::ListParts(query) => match list_parts::parts(connection, object, &query).await {
            Ok(document) => bucket::respond(connection, &document).await,
            Err(error) => finish_with(connection, error, object).await,
        },
    }
}

/// Judges whether a request may do what it wants with a volume.
fn admit<'a>(
    table: &'a VolumeTable,
    name: Option<&str>,
    identity: Identity<'_>,
    head: &Head,
) -> Result<&'a ServedVolume, ErrorReply> {
    let access = match head.method.as_str() {
        "GET" | "HEAD" => Access::Read,
        _ => Access::Write,
    };
    let known = || auth::is_known(identity, table.list().map(|volume| &volume.settings));
    match name.and_then(|name| table.find(name)) {
        Some(served) => {
            auth::check(identity, &served.settings, access)?;
            Ok(served)
        }
        // Who has no key learns nothing about which volumes there are.
        None if known() => Err(ErrorReply::new(
            404,
            "NoSuchBucket",
            "there is no volume of this name",
        )),
        None => Err(auth::refuse_stranger(identity)),
    }
}

/// Refuses a key that the volume's store could not keep: acknowledged from disk, it would never get there.
fn check_kept(served: &ServedVolume, key: &str) -> Result<(), ErrorReply> {
    match &served.settings.store {
        VolumeStore::Azure { prefix, .. } => azure::check_key(prefix, key)
            .map_err(|error| ErrorReply::new(400, "InvalidURI", &error.message)),
        VolumeStore::S3 { .. } | VolumeStore::File { .. } => Ok(()),
    }
}

/// Whether a query parameter leaves an operation on an object as it is.
fn changes_nothing(name: &str, value: &str, signed: bool) -> bool {
    match name {
        // Names the operation for the server's log.
        "x-id" => true,
        // Asks for checksums in the answer to a read.
        "x-amz-checksum-mode" => signed,
        // Some SDKs put into a presigned URL what it means anyway.
        "X-Amz-Content-Sha256" => signed && value == "UNSIGNED-PAYLOAD",
        _ => signed && sigv4::QUERY_PARAMETERS.contains(&name),
    }
}
