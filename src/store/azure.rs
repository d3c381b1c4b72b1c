//! A container of Azure's Blob storage as a [`Store`].
//!
//! This file owns the course of one request: authorize, send, judge, and put right a clock that is
//! off by asking once more. It never retries failures ([`super::retry`] does), never follows a
//! redirect, and never lets a key, a signature or a token into a message. HTTP itself, bodies and
//! deadlines are those of `s3/client.rs` and `s3/body.rs`.
//!
//! Azure's CRC64 is S3's CRC64-NVME with its bytes the other way round (its own library gives
//! ae8b14860a799888 for "123456789"), so the store verifies every body whose checksum is known.

mod answer;
mod block;
mod headers;
mod list;
mod parts;
mod sign;

use super::s3::answer::{clock_ahead_seconds, corrupt};
use super::s3::body;
use super::s3::client::{Client, no_response};
use super::s3::{
    Deadlines, ERROR_BODY_BYTES_MAX, Refusal, SKEW_NOTICED_SECONDS_MIN, base64, describe,
    header_value, quoted, shifted, streamed_refusal,
};
use super::{AzureSpec, BuildError};
use forebay_io::listing::{ListPage, ListRequest};
use forebay_io::store::{
    GetReply, GetRequest, ObjectHead, PutBody, PutReply, PutRequest, Store, StoreError,
    StoreErrorKind, StoreResult,
};
use forebay_io::versions::{Deleted, VersionStore, no_versions};
use futures::future::{Either, LocalBoxFuture, select};
use futures::stream::{self, LocalBoxStream, StreamExt};
use reqwest::Response;
use reqwest::header::HeaderMap;
use sign::{Asked, Signer, Verb};
use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The highest end of a range that is asked for: more than any blob has (190 TiB), and no more than
/// servers can count.
const RANGE_END_MAX: u64 = 1 << 50;

/// The longest document that is read, bytes: a list of a thousand names of 1,024 bytes with a kilobyte
/// around each, or 40,000 blocks, is less.
const DOCUMENT_BYTES_MAX: usize = 6 << 20;

/// How long a document may take from its head to its end.
const DOCUMENT_TIME_MAX: Duration = Duration::from_secs(30);

/// One container, or the part of it under a prefix.
pub struct AzureStore {
    signer: Signer,
    client: Client,
    deadlines: Deadlines,
    /// How far the store's clock is ahead of ours, seconds; 0 below what is noticed.
    clock_ahead_seconds: Cell<i64>,
    /// Whether the store takes checksums; Azurite does not, and says so.
    takes_crc: Cell<bool>,
    /// Whether the store is known to begin lists where it is asked to.
    start_from: Cell<list::StartFrom>,
    markers: RefCell<list::Markers>,
}

/// Refuses a key that a container cannot keep for sure under `prefix`, before anybody is told that it is
/// kept.
///
/// # Errors
/// `InvalidKey`, with the reason.
pub fn check_key(prefix: &str, key: &str) -> StoreResult<()> {
    sign::check_kept(prefix, key)
}

/// A body on its way, and its checksum where it is known.
struct Sending {
    length: u64,
    source: LocalBoxStream<'static, StoreResult<bytes::Bytes>>,
}

impl AzureStore {
    /// A store from its description. Sends nothing.
    pub fn new(spec: &AzureSpec) -> Result<Self, BuildError> {
        Ok(AzureStore {
            signer: Signer::new(spec)?,
            client: Client::new(&spec.endpoint, spec.ca_pem.as_deref(), spec.deadlines)?,
            deadlines: spec.deadlines,
            clock_ahead_seconds: Cell::new(0),
            takes_crc: Cell::new(true),
            start_from: Cell::default(),
            markers: RefCell::default(),
        })
    }

    async fn get_inner(&self, request: GetRequest) -> StoreResult<GetReply> {
        if request.version_id.is_some() {
            return Err(no_versions());
        }
        let mut asked = Asked::of(Verb::Get, self.signer.name_of(&request.key)?);
        if let Some(span) = request.span {
            if span.start >= span.end {
                let message = "an empty span cannot be asked for";
                return Err(StoreError::new(StoreErrorKind::Rejected, message));
            }
            let last = span.end.min(RANGE_END_MAX).max(span.start + 1) - 1;
            asked = asked.header("range", format!("bytes={}-{last}", span.start));
        }
        if let Some(tag) = &request.if_match {
            asked = asked.header("if-match", quoted(tag));
        }
        if let Some(tag) = &request.if_none_match {
            asked = asked.header("if-none-match", quoted(tag));
        }
        let response = self.ask(&asked).await?;
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
        let asked = Asked::of(Verb::Head, self.signer.name_of(key)?);
        let response = self.ask(&asked).await?;
        answer::described(response.status().as_u16(), response.headers())
    }

    async fn delete_inner(&self, key: &str) -> StoreResult<()> {
        self.remove(self.signer.name_of(key)?).await
    }

    /// Removes a blob, if it is there.
    async fn remove(&self, name: String) -> StoreResult<()> {
        match self.ask(&Asked::of(Verb::Delete, name)).await {
            Ok(response) if response.status().as_u16() == 202 => Ok(()),
            Ok(response) => {
                let message = format!("status {} to a DELETE", response.status());
                Err(corrupt(&message))
            }
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn put_inner(&self, mut request: PutRequest) -> StoreResult<PutReply> {
        let body = std::mem::replace(&mut request.body, PutBody::Whole(Vec::new()));
        let mut asked = Asked::of(Verb::Put, self.signer.name_of(&request.key)?)
            .header("x-ms-blob-type", "BlockBlob");
        asked
            .headers
            .extend(headers::to_azure(&request.headers, request.crc64nvme)?);
        if request.if_none_match {
            asked = asked.header("if-none-match", "*");
        }
        if let Some(tag) = &request.if_match {
            asked = asked.header("if-match", quoted(tag));
        }
        let crc = request.crc64nvme.map(crc_text);
        let response = self
            .send_body(asked, request.length, crc.as_deref(), body)
            .await?;
        let status = response.status().as_u16();
        answer::written(status, response.headers(), crc.as_deref())
    }

    /// Sends a request with a body, once more if what was wrong could be put right and the body is
    /// still there. `crc` lets the store verify it.
    async fn send_body(
        &self,
        mut asked: Asked,
        length: u64,
        crc: Option<&str>,
        body: PutBody,
    ) -> StoreResult<Response> {
        asked = asked.header("content-length", length.to_string());
        let pieces = match body {
            PutBody::Whole(pieces) => pieces,
            PutBody::Stream(source) => {
                let asked = self.with_crc(asked, crc);
                let sent = self.send_once(&asked, Sending { length, source }).await;
                return sent.map_err(streamed_refusal);
            }
        };
        let mut was_put_right = false;
        loop {
            let source = stream::iter(pieces.clone()).map(Ok).boxed_local();
            let asked = self.with_crc(asked.clone(), crc);
            match self.send_once(&asked, Sending { length, source }).await {
                Err(refusal) if refusal.is_put_right && !was_put_right => was_put_right = true,
                other => return other.map_err(|refusal| refusal.error),
            }
        }
    }

    fn with_crc(&self, asked: Asked, crc: Option<&str>) -> Asked {
        match crc.filter(|_| self.takes_crc.get()) {
            Some(crc) => asked.header("x-ms-content-crc64", crc),
            None => asked,
        }
    }

    /// Sends a body once. The answer may come before the body was sent; then the body is dropped.
    async fn send_once(&self, asked: &Asked, sending: Sending) -> Result<Response, Refusal> {
        let outgoing = body::outgoing(sending.source, sending.length, self.deadlines);
        let signed_ahead = self.clock_ahead_seconds.get();
        let request = self.sign(asked)?.body(outgoing.body);
        let sending = Box::pin(request.send());
        let sent = match select(outgoing.pump, sending).await {
            Either::Left((Ok(()), sending)) => {
                let deadline = self.deadlines.put_answer;
                tokio::time::timeout(deadline, sending)
                    .await
                    .map_err(|_| self.no_answer(asked.verb, deadline))?
            }
            Either::Left((Err(error), _)) => return Err(error.into()),
            Either::Right((sent, _)) => sent,
        };
        let response = sent.map_err(|error| self.no_response(error))?;
        let response = self.accept(asked.verb, signed_ahead, response).await?;
        if outgoing.left.get() > 0 {
            let message = "the store confirmed an object before it had all of it";
            return Err(corrupt(message).into());
        }
        Ok(response)
    }

    /// Sends a request without a body, once more if what was wrong could be put right.
    async fn ask(&self, asked: &Asked) -> StoreResult<Response> {
        match self.ask_once(asked).await {
            Err(refusal) if refusal.is_put_right => {
                self.ask_once(asked).await.map_err(|refusal| refusal.error)
            }
            other => other.map_err(|refusal| refusal.error),
        }
    }

    async fn ask_once(&self, asked: &Asked) -> Result<Response, Refusal> {
        let signed_ahead = self.clock_ahead_seconds.get();
        let deadline = self.deadlines.connect + self.deadlines.first_byte;
        let sending = self.sign(asked)?.send();
        let response = tokio::time::timeout(deadline, sending)
            .await
            .map_err(|_| self.no_answer(asked.verb, deadline))?
            .map_err(|error| self.no_response(error))?;
        self.accept(asked.verb, signed_ahead, response).await
    }

    /// The same for an answer that is a document, read to its end.
    async fn ask_document(&self, asked: &Asked) -> StoreResult<(HeaderMap, Vec<u8>)> {
        let response = self.ask(asked).await?;
        let headers = response.headers().clone();
        let reading = read_document(response);
        let body = tokio::time::timeout(DOCUMENT_TIME_MAX, reading).await;
        let body = body.map_err(|_| self.no_answer(asked.verb, DOCUMENT_TIME_MAX))??;
        Ok((headers, body))
    }

    /// A request that is ready to go.
    fn sign(&self, asked: &Asked) -> StoreResult<reqwest::RequestBuilder> {
        let now = shifted(SystemTime::now(), self.clock_ahead_seconds.get());
        let signed = self.signer.sign(asked, now)?;
        let client = self.client.get();
        // Transparent compression would change lengths and tags.
        let mut request = client
            .request(asked.verb.method(), signed.url)
            .header("accept-encoding", "identity");
        for (name, value) in &signed.headers {
            request = request.header(name, header_value(name, value)?);
        }
        Ok(request)
    }

    /// Lets a 2xx pass; reads any other answer to its end and learns from it.
    async fn accept(
        &self,
        verb: Verb,
        signed_ahead: i64,
        response: Response,
    ) -> Result<Response, Refusal> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let beginning = self.error_body(response).await;
        let now = SystemTime::now();
        let mut error = answer::refusal(verb, status, &headers, &beginning, now);
        if status >= 500 {
            self.client.abandon_connections();
        }
        if error.kind == StoreErrorKind::Denied {
            self.explain_denial(&mut error, now);
        }
        let is_denied = error.kind == StoreErrorKind::Denied && self.signer.is_clocked();
        let ahead = clock_ahead_seconds(&headers, now).filter(|_| is_denied);
        let is_about_crc = error.kind == StoreErrorKind::Unsupported && is_about_crc(&beginning);
        let is_put_right = match is_about_crc {
            true => self.learn_refused_crc(),
            false => ahead.is_some_and(|ahead| self.learn_clock(ahead, signed_ahead)),
        };
        Err(Refusal {
            error,
            is_put_right,
        })
    }

    fn learn_refused_crc(&self) -> bool {
        if self.takes_crc.replace(false) {
            log::info!(
                "store {} does not verify CRC64; uploads are verified by their length alone",
                self.signer.container_url()
            );
        }
        true
    }

    /// Says of a token that it has expired, which Azure does not.
    fn explain_denial(&self, error: &mut StoreError, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let expires = self.signer.expires();
        if let Some(end) = expires.filter(|end| *end <= i64::try_from(now).unwrap_or(i64::MAX)) {
            let end = jiff::Timestamp::from_second(end).unwrap_or_default();
            let message = format!(" (the SAS token expired at {end}; give a new one)");
            error.message.push_str(&message);
        }
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
    fn learn_clock(&self, ahead: i64, signed_ahead: i64) -> bool {
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
            self.signer.container_url()
        );
        self.clock_ahead_seconds.set(ahead);
        true
    }

    fn no_answer(&self, verb: Verb, deadline: Duration) -> StoreError {
        self.client
            .no_answer(self.signer.container_url(), verb, deadline)
    }

    fn no_response(&self, error: reqwest::Error) -> StoreError {
        no_response(self.signer.container_url(), error)
    }
}

impl forebay_io::tags::TagStore for AzureStore {}

impl VersionStore for AzureStore {}

impl Store for AzureStore {
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
        Box::pin(async move { self.delete_inner(&key).await.map(|()| Deleted::default()) })
    }

    fn list(&self, request: ListRequest) -> LocalBoxFuture<'_, StoreResult<ListPage>> {
        Box::pin(self.list_inner(request))
    }
}

/// Whether a refusal is of the header that carries a checksum.
fn is_about_crc(body: &[u8]) -> bool {
    String::from_utf8_lossy(body).contains("x-ms-content-crc64")
}

/// A CRC64-NVME as Azure writes it: the same number, its lowest byte first.
fn crc_text(crc64nvme: u64) -> String {
    base64(&crc64nvme.to_le_bytes())
}

async fn read_document(response: Response) -> StoreResult<Vec<u8>> {
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece
            .map_err(|error| corrupt(&format!("a document broke off: {}", describe(error))))?;
        if body.len() + piece.len() > DOCUMENT_BYTES_MAX {
            return Err(corrupt("a document that is too long"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::crc_text;

    #[test]
    fn the_checksum_is_the_one_that_azures_own_library_computes() {
        let ours = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, b"123456789");
        // crc64.compute(b"123456789", 0) of azure-storage-extensions 0.1.0, and how its caller in
        // azure-storage-blob 12.31.1 writes it.
        assert_eq!(ours, 0xae8b_1486_0a79_9888);
        assert_eq!(crc_text(ours), "iJh5CoYUi64=");
    }
}
