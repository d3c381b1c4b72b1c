//! `GET` and `HEAD` of an object.
//!
//! The response begins as soon as the object's head and its first block are known to be coming;
//! further blocks are asked for one ahead. All blocks of a response are of one version: a block of
//! another version ends the connection before its declared length, which no client takes for
//! success.

use super::conditional::{self, Verdict};
use super::connection::{Connection, Ended};
use super::head::Head;
use super::limits::{CHANGED_RETRIES_MAX, SEND_BYTES_MAX};
use super::overrides::Overrides;
use super::put::{CHECKSUM_TYPE, WHOLE_CHECKSUM};
use super::range;
use super::reply::{ErrorReply, ReplyHead};
use super::{ObjectRequest, finish_with};
use forebay_io::buffer::View;
use forebay_io::disk::ring::RingDisk;
use forebay_io::rt::GlommioRuntime;
use forebay_io::store::{ByteSpan, CHECKSUM_PREFIX, ObjectMeta};
use forebay_shards::block_reader::BlockReader;
use forebay_shards::key::BlockId;
use forebay_shards::messages::{BlockBody, BlockRequest, Opened, Outcome, ReadError};
use forebay_shards::range::{RangeSpec, part_of_block};
use std::io;
use std::sync::Arc;

/// What a read found, before the first byte is sent.
pub(super) struct Reading {
    pub(super) meta: Arc<ObjectMeta>,
    span: ByteSpan,
    outcome: Outcome,
    /// The first block with wanted bytes, and those.
    first: Option<(u64, BlockBody)>,
}

/// Asks for the object's checksum in the answer, if it is `ENABLED`.
const CHECKSUM_MODE: &str = "x-amz-checksum-mode";

/// How a reader wants to be answered.
pub struct Wishes {
    with_body: bool,
    with_checksum: bool,
    overrides: Overrides,
}

impl Wishes {
    /// What to ask for to get the bytes of `spec`, if bytes are wanted.
    pub(super) fn wanted(&self, spec: RangeSpec) -> Option<RangeSpec> {
        self.with_body.then_some(spec)
    }

    /// Whether the object's bytes are wanted, not only its description.
    pub(super) fn with_body(&self) -> bool {
        self.with_body
    }

    /// Whether the object's checksum is to be told.
    pub(super) fn with_checksum(&self) -> bool {
        self.with_checksum
    }

    /// What is to be told in place of the object's own headers.
    pub(super) fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// What a request asks for; `query` has no parameter of which the access was not judged.
    pub fn of(
        head: &Head,
        query: &[(String, String)],
        is_anonymous: bool,
    ) -> Result<Wishes, ErrorReply> {
        let in_query = query.iter().filter(|(name, _)| name == CHECKSUM_MODE);
        let in_query = in_query.map(|(_, value)| value.as_str());
        let mut modes = head.values(CHECKSUM_MODE).chain(in_query);
        Ok(Wishes {
            with_body: head.method != "HEAD",
            with_checksum: modes.any(|mode| mode.eq_ignore_ascii_case("ENABLED")),
            overrides: Overrides::of(query, is_anonymous)?,
        })
    }
}

/// Serves `GET` or `HEAD`.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    wishes: &Wishes,
) -> Result<(), Ended> {
    let (reading, spec) = match read_wanted(connection, head, object, wishes).await {
        Ok(found) => found,
        Err(error) => {
            if let ReadError::NotFound = error {
                connection
                    .context()
                    .stats()
                    .outcome(Outcome::Miss)
                    .responses
                    .add(1);
            }
            return finish_with(connection, error.into(), object).await;
        }
    };
    answer(connection, head, object, wishes, reading, spec, None).await
}

/// Answers with what was read. `parts` is how many parts the object has, for who asked for one.
pub(super) async fn answer(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    wishes: &Wishes,
    reading: Reading,
    spec: RangeSpec,
    parts: Option<usize>,
) -> Result<(), Ended> {
    match conditional::judge(head, &reading.meta) {
        Verdict::Proceed => {}
        Verdict::NotModified => return not_modified(connection, object, &reading).await,
        Verdict::Failed => {
            let error = ErrorReply::new(412, "PreconditionFailed", "a precondition did not hold");
            return finish_with(connection, error, object).await;
        }
    }
    let span = match spec.resolve(reading.meta.size) {
        Ok(span) => span,
        Err(_) => {
            let error = ReadError::NotSatisfiable {
                size: reading.meta.size,
            };
            return finish_with(connection, error.into(), object).await;
        }
    };
    let status = if spec == RangeSpec::All { 200 } else { 206 };
    let mut reply = describe(connection, object, &reading, status);
    object_headers(&mut reply, &reading.meta, &wishes.overrides);
    if wishes.with_checksum && status == 200 {
        checksum_headers(&mut reply, &reading.meta);
    }
    if let Some(parts) = parts {
        reply.header("x-amz-mp-parts-count", parts);
    }
    span_headers(&mut reply, status, span, reading.meta.size);
    let reply = connection.seal_head(reply);
    let outcome = reading.outcome;
    let sent = if wishes.with_body {
        send_body(connection, object, reply, reading).await
    } else {
        connection.send(&[&reply]).await
    };
    let stats = connection.context().stats().outcome(outcome);
    stats.responses.add(1);
    if wishes.with_body && sent.is_ok() {
        stats.bytes.add(span.len());
    }
    stats.times.record(connection.elapsed());
    sent
}

/// The headers that say which bytes of an object of `size` bytes follow.
pub(super) fn span_headers(reply: &mut ReplyHead, status: u16, span: ByteSpan, size: u64) {
    reply.header("content-length", span.len());
    if status == 206 {
        let (start, last) = (span.start, span.end - 1);
        reply.header(
            "content-range",
            concatenated(["bytes ", "-", "/"], [start, last, size]),
        );
    }
}

/// Reads what a request wants: its range, or all where it has none that counts.
async fn read_wanted(
    connection: &Connection,
    head: &Head,
    object: &ObjectRequest,
    wishes: &Wishes,
) -> Result<(Reading, RangeSpec), ReadError> {
    let mut ranges = head.values("range");
    let mut spec = match (ranges.next(), ranges.next()) {
        (Some(value), None) => range::parse(value),
        // Two headers are a list of ranges, which is ignored as a list in one is.
        _ => RangeSpec::All,
    };
    let wanted = |spec| wishes.wanted(spec);
    if spec == RangeSpec::All || !head.has("if-range") {
        let reading = match read(connection, object, wanted(spec)).await {
            // Conditions come first: what is not wanted at all is no question of ranges.
            Err(ReadError::NotSatisfiable { .. }) if conditional::is_asked(head) => {
                unsatisfied(connection, object, spec).await?
            }
            read => read?,
        };
        return Ok((reading, spec));
    }
    // A part is wanted only if it is of the version that the client has the rest of.
    let mut reading = read(connection, object, None).await?;
    for _ in 0..CHANGED_RETRIES_MAX {
        if !conditional::range_holds(head, &reading.meta) {
            spec = RangeSpec::All;
        }
        reading = read(connection, object, wanted(spec)).await?;
        if spec == RangeSpec::All || conditional::range_holds(head, &reading.meta) {
            return Ok((reading, spec));
        }
    }
    Err(ReadError::Changed)
}

/// The object without its bytes, of which `spec` wants none.
async fn unsatisfied(
    connection: &Connection,
    object: &ObjectRequest,
    spec: RangeSpec,
) -> Result<Reading, ReadError> {
    let reading = read(connection, object, None).await?;
    match spec.resolve(reading.meta.size) {
        Err(_) => Ok(reading),
        // It was another one a moment ago.
        Ok(_) => Err(ReadError::Changed),
    }
}

/// Opens the object, and the first block that holds wanted bytes; starts over if it changes.
pub(super) async fn read(
    connection: &Connection,
    object: &ObjectRequest,
    wanted: Option<RangeSpec>,
) -> Result<Reading, ReadError> {
    let router = &connection.context().router;
    let home = object.block(0);
    for _ in 0..CHANGED_RETRIES_MAX {
        let opened = router.open(home.clone(), wanted).await?;
        let Opened {
            meta,
            outcome,
            span,
            first,
        } = opened;
        if let Some(body) = first {
            return Ok(Reading {
                meta,
                span,
                outcome,
                first: Some((0, body)),
            });
        }
        if span.is_empty() {
            return Ok(Reading {
                meta,
                span,
                outcome,
                first: None,
            });
        }
        let number = span.start / object.volume.block_bytes;
        match router.read_block(part(object, &meta, span, number)).await {
            Ok((body, outcome)) => {
                return Ok(Reading {
                    meta,
                    span,
                    outcome,
                    first: Some((number, body)),
                });
            }
            Err(ReadError::Changed) => router.invalidate(home.clone()).await,
            Err(error) => return Err(error),
        }
    }
    Err(ReadError::Changed)
}

fn part(
    object: &ObjectRequest,
    meta: &Arc<ObjectMeta>,
    span: ByteSpan,
    number: u64,
) -> BlockRequest {
    let range = part_of_block(span, number, object.volume.block_bytes);
    BlockRequest {
        id: object.block(number),
        meta: meta.clone(),
        range,
    }
}

/// The head of a response that describes the object.
fn describe(
    connection: &Connection,
    object: &ObjectRequest,
    reading: &Reading,
    status: u16,
) -> ReplyHead {
    let meta = &reading.meta;
    let mut reply = connection.reply(status);
    reply
        .header("accept-ranges", "bytes")
        .header("x-cache", reading.outcome.label())
        .header("x-forebay-core", core_label(connection, &object.block(0)));
    version_headers(&mut reply, meta);
    reply
}

/// The headers that name a version of an object.
pub(super) fn version_headers(reply: &mut ReplyHead, meta: &ObjectMeta) {
    reply.header("etag", quoted(&meta.etag));
    if let Some(date) = conditional::last_modified(meta) {
        reply.header("last-modified", date);
    }
}

/// The headers that belong to an object, beside its ETag, its date and its checksum.
pub(super) fn object_headers(reply: &mut ReplyHead, meta: &ObjectMeta, overrides: &Overrides) {
    let own = meta
        .headers
        .iter()
        .filter(|(name, _)| !name.starts_with(CHECKSUM_PREFIX) && !overrides.replaces(name));
    let mut has_type = overrides.replaces("content-type");
    for (name, value) in own {
        has_type |= name == "content-type";
        reply.header(name, value);
    }
    for (name, value) in overrides.headers() {
        reply.header(name, value);
    }
    if !has_type {
        reply.header("content-type", "binary/octet-stream");
    }
}

/// The checksum of an object, and of what it is. It belongs to all of the object's bytes: a client
/// would compare it with those of a part.
pub(super) fn checksum_headers(reply: &mut ReplyHead, meta: &ObjectMeta) {
    let told = meta.headers.iter();
    for (name, value) in told.filter(|(name, _)| name.starts_with(CHECKSUM_PREFIX)) {
        reply.header(name, value);
    }
    let has_type = meta.headers.iter().any(|(name, _)| name == CHECKSUM_TYPE);
    if meta.has_checksum() && !has_type {
        reply.header(CHECKSUM_TYPE, WHOLE_CHECKSUM);
    }
}

/// Words with a number after each, without the machinery of `fmt`.
fn concatenated<const N: usize>(words: [&str; N], numbers: [u64; N]) -> String {
    let mut text = String::with_capacity(32);
    for (word, number) in words.into_iter().zip(numbers) {
        text.push_str(word);
        text.push_str(itoa::Buffer::new().format(number));
    }
    text
}

/// An entity tag as it goes out.
pub fn quoted(etag: &str) -> String {
    match etag.strip_prefix("W/") {
        Some(tag) => ["W/\"", tag.trim_matches('"'), "\""].concat(),
        None => ["\"", etag, "\""].concat(),
    }
}

/// `i/n`: the object's home core, so that a client can go straight there next time.
pub fn core_label(connection: &Connection, home: &BlockId) -> String {
    let router = &connection.context().router;
    let (owner, cores) = (router.owner(home.hash()), router.topology().cores());
    concatenated(["", "/"], [owner as u64, cores as u64])
}

async fn not_modified(
    connection: &mut Connection,
    object: &ObjectRequest,
    reading: &Reading,
) -> Result<(), Ended> {
    let mut reply = describe(connection, object, reading, 304);
    object_headers(&mut reply, &reading.meta, &Overrides::default());
    let reply = connection.seal_head(reply);
    connection.send(&[&reply]).await
}

/// Sends the head and all wanted bytes, asking for each next block while one is sent.
async fn send_body(
    connection: &mut Connection,
    object: &ObjectRequest,
    head: Vec<u8>,
    reading: Reading,
) -> Result<(), Ended> {
    let Reading {
        meta,
        span,
        mut outcome,
        first,
    } = reading;
    let (Some((mut number, mut body)), false) = (first, span.is_empty()) else {
        return connection.send(&[&head]).await;
    };
    let last = (span.end - 1) / object.volume.block_bytes;
    let context = connection.context().clone();
    let router = &context.router;
    let mut head = head;
    while number < last {
        let next = router.read_block(part(object, &meta, span, number + 1));
        let reader = BlockReader::new(router, part(object, &meta, span, number), body);
        let sending = send_block(connection, &head, reader, outcome);
        let (sent, next) = futures::join!(sending, next);
        if let Err(unsent) = sent {
            return Err(unsent.into_ended(&context, object).await);
        }
        head.clear();
        number += 1;
        (body, outcome) = match next {
            Ok(next) => next,
            Err(error) => return Err(cut_short(&context, object, error).await),
        };
    }
    let reader = BlockReader::new(router, part(object, &meta, span, number), body);
    match send_block(connection, &head, reader, outcome).await {
        Ok(()) => Ok(()),
        Err(unsent) => Err(unsent.into_ended(&context, object).await),
    }
}

/// Why a block was not sent to its end.
enum Unsent {
    /// The connection has ended.
    Ended(Ended),
    /// The rest of the block cannot be had.
    Read(ReadError),
}

impl From<Ended> for Unsent {
    fn from(ended: Ended) -> Unsent {
        Unsent::Ended(ended)
    }
}

impl Unsent {
    async fn into_ended(self, context: &super::CoreContext, object: &ObjectRequest) -> Ended {
        match self {
            Unsent::Ended(ended) => ended,
            Unsent::Read(error) => cut_short(context, object, error).await,
        }
    }
}

/// The response cannot be completed: the connection ends short of the declared length.
async fn cut_short(
    context: &super::CoreContext,
    object: &ObjectRequest,
    error: ReadError,
) -> Ended {
    let name = object.resource();
    log::warn!("{name}: the response was cut short: {error}");
    if let ReadError::Changed = error {
        context.router.invalidate(object.block(0)).await;
    }
    Ended::Io(io::Error::other(error.to_string()))
}

type Reader<'a> = BlockReader<'a, GlommioRuntime, RingDisk>;

/// Sends what is wanted of a block as it comes; the head goes with its first bytes.
async fn send_block(
    connection: &mut Connection,
    mut head: &[u8],
    mut reader: Reader<'_>,
    outcome: Outcome,
) -> Result<(), Unsent> {
    if reader.is_waiting() && !head.is_empty() {
        // The client learns that its object is coming before the store has sent it.
        connection.send(&[head]).await?;
        head = b"";
    }
    let is_resident = reader.is_ready() && outcome == Outcome::HitRam;
    while let Some(view) = reader.next().await.map_err(Unsent::Read)? {
        match is_resident {
            true => send_resident(connection, head, &view).await?,
            false => send_view(connection, head, &view).await?,
        }
        head = b"";
    }
    Ok(())
}

/// The same as [`send_view`] for a block of the RAM tier.
async fn send_resident(
    connection: &mut Connection,
    mut head: &[u8],
    view: &View,
) -> Result<(), Ended> {
    let mut start = 0;
    while start < view.len() {
        let end = view.len().min(start + SEND_BYTES_MAX);
        connection
            .send_resident(head, &view.slice(start..end))
            .await?;
        head = b"";
        start = end;
    }
    Ok(())
}

/// Sends a view in parts that have a deadline each; the head goes with the first.
pub(super) async fn send_view(
    connection: &mut Connection,
    head: &[u8],
    view: &View,
) -> Result<(), Ended> {
    let mut head = head;
    for piece in view.chunks(SEND_BYTES_MAX) {
        connection.send(&[head, piece]).await?;
        head = b"";
    }
    if head.is_empty() {
        Ok(())
    } else {
        connection.send(&[head]).await
    }
}
