//! A bucket behind S3's protocol as a [`Store`].
//!
//! This file owns the course of one request: sign, send, judge, and put right what can be put
//! right by asking once more (a clock that is off, a checksum that the store does not know). It
//! never retries failures ([`super::retry`] does), never follows a redirect, and never lets a
//! signed URL into a message.

pub(super) mod answer;
pub(super) mod body;
pub(super) mod client;
mod documents;
mod list;
mod parts;
pub(super) mod sign;
mod tags;
mod versions;

use super::{BuildError, S3Spec, UploadCheck};
use answer::{ErrorDocument, META_PREFIX, OBJECT_HEADERS};
use base64::Engine;
use bytes::Bytes;
use client::{Client, no_response};
use forebay_io::listing::{ListPage, ListRequest};
use forebay_io::store::{
    CHECKSUM_PREFIX, GetReply, GetRequest, ObjectHead, PutBody, PutReply, PutRequest, Store,
    StoreError, StoreErrorKind, StoreResult,
};
use forebay_io::versions::Deleted;
use futures::future::{Either, LocalBoxFuture, select};
use futures::stream::{self, LocalBoxStream, StreamExt};
use md5::{Digest, Md5};
use reqwest::Response;
use reqwest::header::{self, HeaderName, HeaderValue};
use sign::{Signer, Target, Verb};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::error::Error;
use std::time::{Duration, SystemTime};

/// How far the store's clock may be off before requests are signed by it. A third of what S3
/// tolerates, and of a signature's lifetime.
pub(super) const SKEW_NOTICED_SECONDS_MIN: u64 = 5 * 60;

/// The beginning of an error's body that is read; S3's error documents have some 300 bytes.
pub(super) const ERROR_BODY_BYTES_MAX: usize = 16 * 1024;

const CHECKSUM_HEADER: &str = "x-amz-checksum-crc64nvme";

/// Without it S3 keeps the checksums that it knows to itself.
const CHECKSUM_MODE: (&str, &str) = ("x-amz-checksum-mode", "ENABLED");

/// How long each phase of a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// DNS, TCP and TLS together.
    pub connect: Duration,
    /// From a request without a body to the head of its answer.
    pub first_byte: Duration,
    /// From the last byte of a PUT to the head of its answer.
    pub put_answer: Duration,
    /// For each 64 KiB of a body, out or in.
    pub stall: Duration,
    /// From a request for a copy or a completion to the head of its answer, and from there to its
    /// end.
    pub store_work: Duration,
}

impl Deadlines {
    /// How long the head of the answer to a request without a stream may take.
    fn answer(&self, verb: Verb) -> Duration {
        match verb.is_store_work() {
            true => self.store_work,
            false => self.first_byte,
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            // Two lost SYN (1 s, then 2 s later) and three round trips over half the globe.
            connect: Duration::from_secs(4),
            // S3's slowest answers take a second or two; a client is waiting.
            first_byte: Duration::from_secs(5),
            // A store may place and replicate the whole object before it answers.
            put_answer: Duration::from_secs(30),
            // See `body::PROGRESS_BYTES` for the rate that this means.
            stall: Duration::from_secs(10),
            // A copy moves up to 5 GiB inside the store, and Swift moves them through its front: at
            // 6 MB/s that takes so long. Meanwhile stores may send nothing at all.
            store_work: Duration::from_secs(15 * 60),
        }
    }
}

/// What a store has shown about checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CrcSupport {
    /// Nothing was uploaded with one yet.
    Unknown,
    /// It echoes the checksum, so it verified it.
    Verified,
    /// It takes the header and ignores it, or refuses it.
    Absent,
}

/// One bucket, or the part of it under a prefix.
pub struct S3Store {
    signer: Signer,
    client: Client,
    deadlines: Deadlines,
    sse: bool,
    upload_check: UploadCheck,
    crc_support: Cell<CrcSupport>,
    /// How far the store's clock is ahead of ours, seconds; 0 below what is noticed.
    clock_ahead_seconds: Cell<i64>,
}

/// What an answer is judged by, beside itself.
struct Asked {
    verb: Verb,
    /// How far ahead of our clock the request was signed, seconds.
    signed_ahead: i64,
    had_checksum: bool,
}

/// A failed request, and whether its cause was put right so that it should be sent once more.
pub(super) struct Refusal {
    pub(super) error: StoreError,
    pub(super) is_put_right: bool,
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Refusal {
            error,
            is_put_right: false,
        }
    }
}

/// Headers of a request by whether the signature covers them: all `x-amz-*` must be.
#[derive(Clone, Default)]
struct RequestHeaders {
    signed: Vec<(String, String)>,
    plain: Vec<(HeaderName, String)>,
}

impl RequestHeaders {
    fn ask_checksums(&mut self) {
        let (name, value) = CHECKSUM_MODE;
        self.sign(name, value);
    }

    fn sign(&mut self, name: &str, value: &str) {
        self.signed.push((name.to_owned(), value.to_owned()));
    }
}

impl S3Store {
    /// A store from its description. Sends nothing.
    pub fn new(spec: &S3Spec) -> Result<Self, BuildError> {
        Ok(S3Store {
            signer: Signer::new(spec)?,
            client: Client::new(&spec.endpoint, spec.ca_pem.as_deref(), spec.deadlines)?,
            deadlines: spec.deadlines,
            sse: spec.sse,
            upload_check: spec.upload_check,
            crc_support: Cell::new(CrcSupport::Unknown),
            clock_ahead_seconds: Cell::new(0),
        })
    }

    async fn get_inner(&self, request: GetRequest) -> StoreResult<GetReply> {
        let mut headers = RequestHeaders::default();
        headers.ask_checksums();
        if let Some(span) = request.span {
            if span.start >= span.end {
                let message = "an empty span cannot be asked for";
                return Err(StoreError::new(StoreErrorKind::Rejected, message));
            }
            let range = format!("bytes={}-{}", span.start, span.end - 1);
            headers.plain.push((header::RANGE, range));
        }
        if let Some(tag) = &request.if_match {
            headers.plain.push((header::IF_MATCH, quoted(tag)));
        }
        if let Some(tag) = &request.if_none_match {
            headers.plain.push((header::IF_NONE_MATCH, quoted(tag)));
        }
        let mut target = Target::of(Verb::Get, &request.key);
        if let Some(version_id) = &request.version_id {
            target.query = vec![versions::parameter(version_id)?];
        }
        let response = self.send_target(&target, &headers).await?;
        let status = response.status().as_u16();
        let plan = answer::plan_body(&request, status, response.headers())?;
        let body = body::incoming(response, &plan, self.deadlines);
        Ok(GetReply {
            meta: plan.meta,
            span: plan.span,
            body,
        })
    }

    async fn head_inner(&self, key: &str) -> StoreResult<ObjectHead> {
        self.describe_target(&Target::of(Verb::Head, key)).await
    }

    async fn describe_target(&self, target: &Target<'_>) -> StoreResult<ObjectHead> {
        let mut headers = RequestHeaders::default();
        headers.ask_checksums();
        let response = self.send_target(target, &headers).await?;
        answer::described(response.status().as_u16(), response.headers())
    }

    async fn delete_inner(&self, target: &Target<'_>) -> StoreResult<Deleted> {
        match self.send_target(target, &RequestHeaders::default()).await {
            Ok(response) => answer::deleted(response.status().as_u16(), response.headers()),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(Deleted::default()),
            Err(error) => Err(error),
        }
    }

    async fn put_inner(&self, mut request: PutRequest) -> StoreResult<PutReply> {
        let body = std::mem::replace(&mut request.body, PutBody::Whole(Vec::new()));
        let target = Target::of(Verb::Put, &request.key);
        let headers = |pieces: Option<&[Bytes]>| self.put_headers(&request, pieces);
        self.send_body(&target, request.length, body, headers).await
    }

    /// Sends a body; one in memory once more if what was wrong could be put right. `headers` are
    /// made anew each time, from the body where it is in memory.
    async fn send_body(
        &self,
        target: &Target<'_>,
        length: u64,
        body: PutBody,
        headers: impl Fn(Option<&[Bytes]>) -> StoreResult<RequestHeaders>,
    ) -> StoreResult<PutReply> {
        let pieces = match body {
            PutBody::Whole(pieces) => pieces,
            PutBody::Stream(source) => {
                let sent = self.put_once(target, length, headers(None)?, source).await;
                return sent.map_err(streamed_refusal);
            }
        };
        let mut was_put_right = false;
        loop {
            let headers = headers(Some(&pieces))?;
            let source = stream::iter(pieces.clone()).map(Ok).boxed_local();
            match self.put_once(target, length, headers, source).await {
                Err(refusal) if refusal.is_put_right && !was_put_right => was_put_right = true,
                other => return other.map_err(|refusal| refusal.error),
            }
        }
    }

    /// The headers of an object that is to be, but for its checksums.
    fn object_headers(&self, given: &[(String, String)]) -> StoreResult<RequestHeaders> {
        let mut headers = RequestHeaders::default();
        let mut names = BTreeSet::new();
        let kept = given
            .iter()
            .filter(|(name, _)| !name.starts_with(CHECKSUM_PREFIX));
        for (name, value) in kept {
            let is_users = name.starts_with(META_PREFIX);
            let is_objects = is_users || OBJECT_HEADERS.contains(&name.as_str());
            let parsed = HeaderName::from_bytes(name.as_bytes())
                .ok()
                // The signature covers the name as it is sent: in lower case.
                .filter(|parsed| is_objects && parsed.as_str() == name);
            match parsed.filter(|_| names.insert(name)) {
                Some(_) if is_users => headers.signed.push((name.clone(), value.clone())),
                Some(parsed) => headers.plain.push((parsed, value.clone())),
                None => {
                    let message = format!("header {name:?} is not one that an object has once");
                    return Err(StoreError::new(StoreErrorKind::Rejected, message));
                }
            }
        }
        if self.sse {
            headers.sign("x-amz-server-side-encryption", "AES256");
        }
        Ok(headers)
    }

    /// Headers of a PUT; `pieces` is its body where it is in memory.
    fn put_headers(
        &self,
        request: &PutRequest,
        pieces: Option<&[Bytes]>,
    ) -> StoreResult<RequestHeaders> {
        let mut headers = self.object_headers(&request.headers)?;
        // An upload has one checksum, and what is in memory has ours.
        if pieces.is_none() && request.crc64nvme.is_none() && self.takes_checksums() {
            let checksums = request.headers.iter();
            let checksums = checksums.filter(|(name, _)| name.starts_with(CHECKSUM_PREFIX));
            headers.signed.extend(checksums.cloned());
        }
        headers
            .plain
            .push((header::CONTENT_LENGTH, request.length.to_string()));
        if request.if_none_match {
            headers.plain.push((header::IF_NONE_MATCH, "*".to_owned()));
        }
        if let Some(tag) = &request.if_match {
            // Bare: S3 takes it either way, and Ceph compares the quotes too.
            headers.plain.push((header::IF_MATCH, tag.clone()));
        }
        let may_crc = match self.upload_check {
            UploadCheck::Auto => self.crc_support.get() != CrcSupport::Absent,
            UploadCheck::Crc64Nvme => true,
            UploadCheck::ContentMd5 | UploadCheck::Nothing => false,
        };
        let may_md5 = matches!(
            self.upload_check,
            UploadCheck::Auto | UploadCheck::ContentMd5
        );
        let crc = request.crc64nvme.filter(|_| may_crc);
        if let Some(crc) = crc {
            let checksum = base64(&crc.to_be_bytes());
            headers.signed.push((CHECKSUM_HEADER.to_owned(), checksum));
        }
        // Until the store has shown that it verifies the checksum, the digest goes along.
        let is_verified = crc.is_some() && self.crc_support.get() == CrcSupport::Verified;
        if let Some(pieces) = pieces.filter(|_| may_md5 && !is_verified) {
            let mut md5 = Md5::new();
            pieces.iter().for_each(|piece| md5.update(piece));
            let name = HeaderName::from_static("content-md5");
            headers.plain.push((name, base64(&md5.finalize())));
        }
        Ok(headers)
    }

    /// Whether the store is known to verify checksums.
    fn takes_checksums(&self) -> bool {
        match self.upload_check {
            UploadCheck::Auto => self.crc_support.get() == CrcSupport::Verified,
            UploadCheck::Crc64Nvme => true,
            UploadCheck::ContentMd5 | UploadCheck::Nothing => false,
        }
    }

    /// Sends a PUT once. The answer may come before the body was sent; then the body is dropped.
    async fn put_once(
        &self,
        target: &Target<'_>,
        length: u64,
        headers: RequestHeaders,
        source: LocalBoxStream<'static, StoreResult<Bytes>>,
    ) -> Result<PutReply, Refusal> {
        let outgoing = body::outgoing(source, length, self.deadlines);
        let signed_ahead = self.clock_ahead_seconds.get();
        let signed = self.sign(target, &headers)?.body(outgoing.body);
        let sending = Box::pin(signed.send());
        let sent = match select(outgoing.pump, sending).await {
            Either::Left((Ok(()), sending)) => {
                let deadline = self.deadlines.put_answer;
                tokio::time::timeout(deadline, sending)
                    .await
                    .map_err(|_| self.no_answer(target.verb, deadline))?
            }
            Either::Left((Err(error), _)) => return Err(error.into()),
            Either::Right((sent, _)) => sent,
        };
        let response = sent.map_err(|error| self.no_response(error))?;
        let checksum = headers
            .signed
            .iter()
            .find(|(name, _)| name == CHECKSUM_HEADER);
        let checksum = checksum.map(|(_, value)| value.as_str());
        let asked = Asked {
            verb: target.verb,
            signed_ahead,
            had_checksum: checksum.is_some(),
        };
        let response = self.accept(asked, response).await?;
        if outgoing.left.get() > 0 {
            let message = "the store confirmed an object before it had all of it";
            return Err(answer::corrupt(message).into());
        }
        let reply = answer::written(response.status().as_u16(), response.headers(), checksum)?;
        if checksum.is_some() {
            self.note_crc(match answer::echoed_checksum(response.headers()) {
                Some(_) => CrcSupport::Verified,
                None => CrcSupport::Absent,
            });
        }
        Ok(reply)
    }

    fn note_crc(&self, support: CrcSupport) {
        if self.crc_support.replace(support) != support && support == CrcSupport::Absent {
            log::info!(
                "store {} does not verify CRC64-NVME; uploads in memory carry Content-MD5 instead",
                self.signer.bucket_url()
            );
        }
    }

    /// Sends a request without a body, once more if what was wrong could be put right.
    async fn send_target(
        &self,
        target: &Target<'_>,
        headers: &RequestHeaders,
    ) -> StoreResult<Response> {
        self.ask_signed(target.verb, || self.sign(target, headers))
            .await
    }

    /// The same for a request that is signed anew each time.
    async fn ask_signed(
        &self,
        verb: Verb,
        sign: impl Fn() -> StoreResult<reqwest::RequestBuilder>,
    ) -> StoreResult<Response> {
        match self.ask_once(verb, sign()?).await {
            Err(refusal) if refusal.is_put_right => self
                .ask_once(verb, sign()?)
                .await
                .map_err(|refusal| refusal.error),
            other => other.map_err(|refusal| refusal.error),
        }
    }

    async fn ask_once(
        &self,
        verb: Verb,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, Refusal> {
        let asked = Asked {
            verb,
            signed_ahead: self.clock_ahead_seconds.get(),
            had_checksum: false,
        };
        let sending = request.send();
        let deadline = self.deadlines.connect + self.deadlines.answer(verb);
        let response = tokio::time::timeout(deadline, sending)
            .await
            .map_err(|_| self.no_answer(verb, deadline))?
            .map_err(|error| self.no_response(error))?;
        self.accept(asked, response).await
    }

    /// A request that is ready to go.
    fn sign(
        &self,
        target: &Target<'_>,
        headers: &RequestHeaders,
    ) -> StoreResult<reqwest::RequestBuilder> {
        let now = shifted(SystemTime::now(), self.clock_ahead_seconds.get());
        let url = self.signer.sign(target, &headers.signed, now)?;
        // Transparent compression would change lengths and tags.
        let mut request = self
            .client
            .get()
            .request(target.verb.method(), url)
            .header(header::ACCEPT_ENCODING, "identity");
        for (name, value) in &headers.plain {
            request = request.header(name, header_value(name.as_str(), value)?);
        }
        for (name, value) in &headers.signed {
            request = request.header(name, header_value(name, value)?);
        }
        Ok(request)
    }

    /// Lets a 2xx pass; reads any other answer to its end and learns from it.
    async fn accept(&self, asked: Asked, response: Response) -> Result<Response, Refusal> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let beginning = self.error_body(response).await;
        let now = SystemTime::now();
        let error = answer::refusal(asked.verb, status, &headers, &beginning, now);
        if status >= 500 {
            self.client.abandon_connections();
        }
        let is_put_right = match status {
            403 => {
                let ahead = answer::clock_ahead_seconds(&headers, now);
                self.learn_clock(ahead, asked.signed_ahead)
            }
            400 | 501 if asked.had_checksum && self.upload_check == UploadCheck::Auto => {
                self.learn_refused_checksum(answer::parse_error_document(&beginning))
            }
            _ => false,
        };
        Err(Refusal {
            error,
            is_put_right,
        })
    }

    /// The beginning of an error's body; less if it is slow to come.
    async fn error_body(&self, response: Response) -> Vec<u8> {
        let mut beginning = Vec::new();
        let mut pieces = response.bytes_stream();
        let reading = async {
            while let Some(Ok(piece)) = pieces.next().await {
                beginning.extend_from_slice(&piece);
                if beginning.len() >= ERROR_BODY_BYTES_MAX {
                    break;
                }
            }
        };
        // What was read until then is what there is.
        let _ = tokio::time::timeout(self.deadlines.first_byte, reading).await;
        beginning
    }

    /// Whether the store's clock is off by something that a request signed `signed_ahead` did not
    /// know: then signing anew may help.
    fn learn_clock(&self, ahead_seconds: Option<i64>, signed_ahead: i64) -> bool {
        let Some(ahead) = ahead_seconds else {
            return false;
        };
        let known = self.clock_ahead_seconds.get();
        if known.abs_diff(signed_ahead) >= SKEW_NOTICED_SECONDS_MIN {
            // The answer to another request taught it while this one was on its way.
            return true;
        }
        if ahead.abs_diff(known) < SKEW_NOTICED_SECONDS_MIN {
            return false;
        }
        log::warn!(
            "store {} refused us and its clock is {ahead} s ahead of ours; signing by its clock",
            self.signer.bucket_url()
        );
        self.clock_ahead_seconds.set(ahead);
        true
    }

    fn learn_refused_checksum(&self, document: Option<ErrorDocument>) -> bool {
        let Some(document) = document else {
            return false;
        };
        let is_about_it = document.code == "NotImplemented"
            || document.message.to_ascii_lowercase().contains("checksum")
            || document.message.contains("crc64nvme");
        let is_mismatch = matches!(
            document.code.as_str(),
            "BadDigest" | "XAmzContentChecksumMismatch" | "IncompleteBody"
        );
        if !is_about_it || is_mismatch || self.crc_support.get() == CrcSupport::Verified {
            return false;
        }
        self.note_crc(CrcSupport::Absent);
        true
    }

    fn no_answer(&self, verb: Verb, deadline: Duration) -> StoreError {
        self.client
            .no_answer(self.signer.bucket_url(), verb, deadline)
    }

    fn no_response(&self, error: reqwest::Error) -> StoreError {
        no_response(self.signer.bucket_url(), error)
    }
}

impl Store for S3Store {
    fn get(&self, request: GetRequest) -> LocalBoxFuture<'_, StoreResult<GetReply>> {
        Box::pin(self.get_inner(request))
    }

    fn head(&self, key: String) -> LocalBoxFuture<'_, StoreResult<ObjectHead>> {
        Box::pin(async move { self.head_inner(&key).await })
    }

    fn put(&self, request: PutRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(self.put_inner(request))
    }

    fn delete(&self, key: String) -> LocalBoxFuture<'_, StoreResult<Deleted>> {
        Box::pin(async move { self.delete_inner(&Target::of(Verb::Delete, &key)).await })
    }

    fn list(&self, request: ListRequest) -> LocalBoxFuture<'_, StoreResult<ListPage>> {
        Box::pin(self.list_inner(request))
    }
}

/// A streamed body is gone, so even a request whose cause was put right has failed. It is marked
/// as retryable for whoever still has the bytes.
pub(super) fn streamed_refusal(refusal: Refusal) -> StoreError {
    let mut error = refusal.error;
    if refusal.is_put_right {
        error.kind = StoreErrorKind::Internal;
        error
            .message
            .push_str(" (the cause was put right; send it again)");
    }
    error
}

pub(super) fn shifted(now: SystemTime, ahead_seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(ahead_seconds.unsigned_abs());
    let shifted = match ahead_seconds >= 0 {
        true => now.checked_add(distance),
        false => now.checked_sub(distance),
    };
    shifted.unwrap_or(now)
}

pub(super) fn header_value(name: &str, value: &str) -> StoreResult<HeaderValue> {
    HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
        let message = format!("the value of header {name:?} cannot be sent");
        StoreError::new(StoreErrorKind::Rejected, message)
    })
}

/// An entity tag as HTTP writes it.
pub(super) fn quoted(tag: &str) -> String {
    match tag.strip_prefix("W/") {
        Some(weak) => format!("W/\"{weak}\""),
        None => format!("\"{tag}\""),
    }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// An error of reqwest's with its causes, without the URL, which holds a signature.
pub(super) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
