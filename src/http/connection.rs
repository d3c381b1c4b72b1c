//! One client connection: requests in order, bodies within their bounds, answers in full.
//!
//! This file owns the bytes of a connection. It reads exactly the body that a request announced
//! and never parses one byte of it as another request; it holds every read and write to a
//! deadline; and it ends a connection whose state is in doubt. It knows nothing of objects.

use super::CoreContext;
use super::aws_chunked::{Decoder, Malformed, Step};
use super::head::{self, Framing, Head, HeadError};
use super::limits::{
    BODY_GRACE, BODY_RATE_MIN, CHUNKED_READ_BYTES, DRAIN_BYTES_MAX, HEAD_BYTES_MAX,
    HEAD_READ_BYTES, HEAD_TIME_MAX, IDLE_TIME_MAX, LINGER_TIME_MAX, SEND_BYTES_MAX,
};
use super::reply::{ErrorReply, ReplyHead};
use forebay_io::buffer::View;
use forebay_io::local::Permit;
use forebay_io::net::Stream;
use forebay_io::runtime::{MonoTime, Runtime, timeout};
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// The interim answer to `Expect: 100-continue`.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Why a connection ends without another answer.
#[derive(Debug)]
pub enum Ended {
    /// The client closed it, or it idled, or we are stopping.
    Done,
    /// The client was slower than it may be.
    TooSlow,
    /// The stream failed.
    Io(io::Error),
    /// The body's transfer coding is broken.
    Framing(Malformed),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Ended::Io(error)
    }
}

/// Why a request could not be read.
pub enum Refused {
    /// Nothing can be answered.
    Ended(Ended),
    /// The head is refused.
    Head(HeadError),
}

/// A connection and the request it is at.
pub struct Connection {
    stream: Stream,
    context: Rc<CoreContext>,
    /// Bytes received and not yet used: `buffer[start..]`.
    buffer: Vec<u8>,
    start: usize,
    /// Body bytes of the current request still to come.
    body_left: u64,
    /// Takes the transfer coding off a body of unknown length; `None` once that has ended.
    chunked: Option<Decoder>,
    /// Whether `100 Continue` is owed before the body comes.
    continue_owed: bool,
    body_received: u64,
    body_started: MonoTime,
    keep_alive: bool,
    /// Whether a chunked body, once read to its end, may be followed by another request.
    keep_alive_after_body: bool,
    request_id: String,
    request_started: MonoTime,
    method: &'static str,
    /// Whether the body is read in turn with those of other connections.
    in_turn: bool,
    turn: Option<Permit>,
}

/// How long a client may take to receive so many bytes.
fn send_time_max(bytes: usize) -> Duration {
    debug_assert!(
        bytes <= 2 * SEND_BYTES_MAX,
        "larger sends are cut by the caller"
    );
    BODY_GRACE + Duration::from_millis(bytes as u64 * 1000 / BODY_RATE_MIN)
}

/// A method as metrics know it.
fn method_label(method: &str) -> &'static str {
    ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"]
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("other")
}

impl Connection {
    /// A connection whose stream is ready for HTTP.
    pub fn new(stream: Stream, context: Rc<CoreContext>) -> Self {
        let now = context.runtime.now();
        Connection {
            stream,
            context,
            buffer: Vec::new(),
            start: 0,
            body_left: 0,
            chunked: None,
            continue_owed: false,
            body_received: 0,
            body_started: now,
            keep_alive: true,
            keep_alive_after_body: false,
            request_id: String::new(),
            request_started: now,
            method: "other",
            in_turn: false,
            turn: None,
        }
    }

    /// The core's context.
    pub fn context(&self) -> &Rc<CoreContext> {
        &self.context
    }

    /// The id of the current request.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Time since the current request's head arrived.
    pub fn elapsed(&self) -> Duration {
        self.context.runtime.now().since(self.request_started)
    }

    /// Ends the connection after the current response.
    pub fn close_after(&mut self) {
        self.keep_alive = false;
        self.keep_alive_after_body = false;
    }

    /// Reads the next request's head.
    pub async fn next_request(&mut self) -> Result<Head, Refused> {
        let mut scanned = 0;
        let mut since_first_byte: Option<MonoTime> = None;
        loop {
            self.skip_blank_lines();
            let pending = &self.buffer[self.start..];
            if !pending.is_empty() && since_first_byte.is_none() {
                since_first_byte = Some(self.context.runtime.now());
            }
            match head::find_end(pending, scanned) {
                Ok(Some(end)) if end <= HEAD_BYTES_MAX => return self.begin_request(end),
                Ok(None) if pending.len() <= HEAD_BYTES_MAX => scanned = pending.len(),
                Ok(_) => return Err(Refused::Head(HeadError::TooLarge)),
                Err(error) => return Err(Refused::Head(error)),
            }
            self.read_more_head(since_first_byte)
                .await
                .map_err(Refused::Ended)?;
        }
    }

    /// A CRLF before a request line is ignored (RFC 9112 section 2.2).
    fn skip_blank_lines(&mut self) {
        while self.buffer[self.start..].starts_with(b"\r\n") {
            self.start += 2;
        }
    }

    fn begin_request(&mut self, end: usize) -> Result<Head, Refused> {
        let bytes = &self.buffer[self.start..self.start + end];
        self.request_started = self.context.runtime.now();
        self.request_id = self.context.next_request_id();
        let head = head::parse(bytes).map_err(Refused::Head)?;
        self.start += end;
        self.keep_alive = head.keep_alive;
        self.continue_owed = head.expects_continue;
        self.method = method_label(&head.method);
        self.body_received = 0;
        self.body_started = self.request_started;
        self.body_left = match head.framing {
            Framing::None | Framing::Chunked => 0,
            Framing::Length(length) => length,
        };
        self.chunked = (head.framing == Framing::Chunked).then(Decoder::http);
        if self.chunked.is_some() {
            // Nothing after it can be a request until its end was seen.
            self.keep_alive = false;
            self.keep_alive_after_body = head.keep_alive;
        }
        Ok(head)
    }

    async fn read_more_head(&mut self, since_first_byte: Option<MonoTime>) -> Result<(), Ended> {
        self.compact();
        let now = self.context.runtime.now();
        let limit = match since_first_byte {
            None => IDLE_TIME_MAX,
            Some(since) => HEAD_TIME_MAX.saturating_sub(now.since(since)),
        };
        let filled = self.buffer.len();
        self.buffer.resize(filled + HEAD_READ_BYTES, 0);
        let read = timeout(
            &self.context.runtime,
            limit,
            self.stream.read(&mut self.buffer[filled..]),
        );
        let stopping = self.context.stopping.clone();
        let result = if since_first_byte.is_none() {
            futures::pin_mut!(read);
            let stop = stopping.wait();
            futures::pin_mut!(stop);
            match futures::future::select(read, stop).await {
                futures::future::Either::Left((result, _)) => result,
                futures::future::Either::Right(_) => Some(Ok(0)),
            }
        } else {
            read.await
        };
        let count = match result {
            Some(Ok(count)) => count,
            Some(Err(error)) => {
                self.buffer.truncate(filled);
                return Err(Ended::Io(error));
            }
            None => {
                self.buffer.truncate(filled);
                return Err(if since_first_byte.is_some() {
                    Ended::TooSlow
                } else {
                    Ended::Done
                });
            }
        };
        self.buffer.truncate(filled + count);
        if count == 0 { Err(Ended::Done) } else { Ok(()) }
    }

    /// Moves unused bytes to the front; an idle connection keeps no memory.
    fn compact(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer = Vec::new();
        } else {
            self.buffer.drain(..self.start);
        }
        self.start = 0;
    }

    /// Reads the next bytes of the current request's body into `target`; 0 once it is complete.
    pub async fn read_body(&mut self, target: &mut [u8]) -> Result<usize, Ended> {
        if self.chunked.is_some() && !target.is_empty() {
            return self.read_chunked(target).await;
        }
        let wanted = target
            .len()
            .min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        self.send_continue().await?;
        let target = &mut target[..wanted];
        let buffered = &self.buffer[self.start..];
        let count = if buffered.is_empty() {
            self.read_stream(target).await?
        } else {
            let count = wanted.min(buffered.len());
            target[..count].copy_from_slice(&buffered[..count]);
            self.start += count;
            count
        };
        self.body_left -= count as u64;
        self.body_received += count as u64;
        Ok(count)
    }

    /// The same for a body of unknown length, whose transfer coding is taken off here.
    async fn read_chunked(&mut self, target: &mut [u8]) -> Result<usize, Ended> {
        while let Some(decoder) = &mut self.chunked {
            let end = self.buffer.len().min(self.start + target.len());
            let mut input = &self.buffer[self.start..end];
            let step = decoder.step(&mut input).map_err(Ended::Framing)?;
            let used = end - input.len() - self.start;
            self.start += used;
            self.body_received += used as u64;
            match step {
                Step::Content(bytes) => {
                    target[..bytes.len()].copy_from_slice(bytes);
                    return Ok(bytes.len());
                }
                // HTTP's trailers say nothing that we use; those of S3 are inside its envelope.
                Step::Trailer(..) | Step::Chunk(_) => {}
                Step::End => {
                    self.chunked = None;
                    self.keep_alive = self.keep_alive_after_body;
                }
                Step::NeedMore if self.start < self.buffer.len() => {}
                Step::NeedMore => self.refill_chunked().await?,
            }
        }
        Ok(0)
    }

    async fn refill_chunked(&mut self) -> Result<(), Ended> {
        self.send_continue().await?;
        let mut buffer = std::mem::take(&mut self.buffer);
        self.start = 0;
        buffer.resize(CHUNKED_READ_BYTES, 0);
        let count = self.read_stream(&mut buffer).await?;
        buffer.truncate(count);
        self.buffer = buffer;
        Ok(())
    }

    async fn send_continue(&mut self) -> Result<(), Ended> {
        if std::mem::take(&mut self.continue_owed) {
            self.send(&[CONTINUE]).await?;
        }
        Ok(())
    }

    /// Reads bodies in turn from now on, or no longer.
    ///
    /// Connections that have bytes waiting are served one after the other, each until it has none or
    /// its block is complete. If they shared the core they would all be complete at the same time: then
    /// all wait for the disk, the core idles, and so it goes on in step. Nothing that another
    /// turn could be needed for may be waited for meanwhile.
    pub fn set_in_turn(&mut self, in_turn: bool) {
        self.in_turn = in_turn;
        self.turn = None;
    }

    async fn take_turn(&mut self) {
        if self.in_turn && self.turn.is_none() {
            let began = self.context.runtime.now();
            self.turn = Some(self.context.receiving.acquire().await);
            // Our time, not the client's.
            let waited = self.context.runtime.now().since(began);
            self.body_started = self.body_started.plus(waited);
        }
    }

    /// Reads at least one byte of a body from the stream, at the least rate that is allowed.
    async fn read_stream(&mut self, target: &mut [u8]) -> Result<usize, Ended> {
        self.take_turn().await;
        let allowed = BODY_GRACE
            + Duration::from_millis(self.body_received.saturating_mul(1000) / BODY_RATE_MIN);
        let passed = self.context.runtime.now().since(self.body_started);
        let limit = allowed.saturating_sub(passed);
        let (stream, turn) = (&mut self.stream, &mut self.turn);
        let reading = async {
            let mut reading = std::pin::pin!(stream.read(target));
            match futures::poll!(reading.as_mut()) {
                Poll::Ready(result) => result,
                Poll::Pending => {
                    // Whoever has bytes goes first.
                    *turn = None;
                    reading.await
                }
            }
        };
        match timeout(&self.context.runtime, limit, reading).await {
            Some(Ok(0)) => Err(Ended::Io(io::ErrorKind::UnexpectedEof.into())),
            Some(result) => Ok(result?),
            None => Err(Ended::TooSlow),
        }
    }

    /// Sends pieces in order, each part of them within a deadline that its size sets.
    pub async fn send(&mut self, pieces: &[&[u8]]) -> Result<(), Ended> {
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        let (context, limit) = (&self.context, send_time_max(bytes));
        match timeout(&context.runtime, limit, self.stream.send(pieces)).await {
            Some(result) => Ok(result?),
            None => Err(Ended::TooSlow),
        }
    }

    /// The same for a head and bytes whose buffer is likely to stay in memory and be sent again.
    pub async fn send_resident(&mut self, head: &[u8], view: &View) -> Result<(), Ended> {
        let (context, limit) = (&self.context, send_time_max(head.len() + view.len()));
        let sending = self.stream.send_resident(head, view);
        match timeout(&context.runtime, limit, sending).await {
            Some(result) => Ok(result?),
            None => Err(Ended::TooSlow),
        }
    }

    /// Starts a response head with what every response carries.
    pub fn reply(&self, status: u16) -> ReplyHead {
        self.context.stats().count_status(self.method, status);
        ReplyHead::new(status, &self.request_id)
    }

    /// A finished head, with or without `connection: close`.
    ///
    /// A body that nobody will read is decided on here: a short rest is drained before the next
    /// request, a long one (or one that still waits for `100 Continue`) ends the connection.
    pub fn seal_head(&mut self, head: ReplyHead) -> Vec<u8> {
        if self.body_left > 0 && (self.continue_owed || self.body_left > DRAIN_BYTES_MAX) {
            self.keep_alive = false;
        }
        if self.context.stopping.is_set() {
            self.keep_alive = false;
        }
        let head = head.finish(self.keep_alive);
        // Where there is no body to wait for, nobody has said it yet. Old releases of botocore take the next answer
        // on the connection for broken if the one to `Expect` came without it.
        let has_no_body = self.body_left + self.body_received == 0 && self.chunked.is_none();
        match has_no_body && std::mem::take(&mut self.continue_owed) {
            true => [CONTINUE, &head].concat(),
            false => head,
        }
    }

    /// Sends a response whose body is at hand.
    pub async fn respond(&mut self, mut head: ReplyHead, body: &[u8]) -> Result<(), Ended> {
        head.header("content-length", body.len());
        let head = self.seal_head(head);
        self.send(&[&head, body]).await
    }

    /// Sends an error document; `HEAD` gets its headers only.
    pub async fn respond_error(&mut self, error: &ErrorReply, resource: &str) -> Result<(), Ended> {
        if error.close {
            self.keep_alive = false;
        }
        let document = error.document(resource, &self.request_id);
        let mut head = self.reply(error.status);
        for (name, value) in &error.headers {
            head.header(name, value);
        }
        if error.status == 304 {
            let head = self.seal_head(head);
            return self.send(&[&head]).await;
        }
        head.header("content-type", "application/xml")
            .header("content-length", document.len());
        let head = self.seal_head(head);
        let body: &[u8] = if self.method == "HEAD" {
            b""
        } else {
            document.as_bytes()
        };
        self.send(&[&head, body]).await
    }

    /// After a response: whether another request may follow. Drains a short rest of the body.
    pub async fn finish_request(&mut self) -> Result<bool, Ended> {
        if !self.keep_alive {
            return Ok(false);
        }
        let mut scratch = [0; 4096];
        while self.body_left > 0 {
            self.read_body(&mut scratch).await?;
        }
        Ok(true)
    }

    /// Closes the connection so that the client can still read our last answer: says goodbye,
    /// then reads and drops what it still sends, for a moment. Closing with unread bytes would
    /// reset the connection and take the answer with it.
    pub async fn close(mut self) {
        let context = self.context.clone();
        let linger = async {
            if self.stream.close().await.is_err() {
                return;
            }
            let mut scratch = vec![0; 16 << 10];
            let mut drained = 0;
            while let Ok(count) = self.stream.read(&mut scratch).await {
                drained += count as u64;
                if count == 0 || drained > 16 * DRAIN_BYTES_MAX {
                    return;
                }
            }
        };
        timeout(&context.runtime, LINGER_TIME_MAX, linger).await;
    }
}
