//! Connections: owns accepting, reading requests off a stream, and the order in which things happen to one request.
//! Keep-alive and pipelined requests are served one after another.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::stub::control::{self, CONTROL_BUCKET};
use crate::stub::error::{S3Error, code_of_status};
use crate::stub::fault::{Action, Plan};
use crate::stub::reply::{After, Manner, Reply};
use crate::stub::request::{Framing, HEAD_BYTES_MAX, Request};
use crate::stub::signature::{self, Payload};
use crate::stub::stats::LogEntry;
use crate::stub::{Shared, verb};

/// Largest body that is taken: all objects live in memory.
const BODY_BYTES_MAX: u64 = 1 << 30;

/// How long to wait after a failed accept, such as for want of file descriptors, so as not to spin.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(20);

/// How long a client may go on sending after it was refused early; servers allow some seconds.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// What a `CaptivePortal` fault answers.
const PORTAL_PAGE: &str = "<!DOCTYPE html><html><head><title>Welcome</title></head>\
    <body><h1>Sign in to use this network</h1></body></html>\n";

static REQUEST_ID: AtomicU64 = AtomicU64::new(1);

/// A byte stream over a TCP connection that can be made to end with a reset.
trait Transport: AsyncRead + AsyncWrite + Unpin + Send {
    fn tcp(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Transport for tokio_rustls::server::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Accepts for ever.
pub(super) async fn accept_all(
    shared: Arc<Shared>,
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
) -> io::Result<()> {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY_WAIT).await;
            continue;
        };
        shared.stats().connection();
        let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
        tokio::spawn(async move {
            // Clients come and go as they like; their connection errors are no news to a stub.
            let _ = serve(shared, stream, acceptor).await;
        });
    }
}

async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match acceptor {
        None => {
            Connection {
                shared,
                stream,
                buffer: BytesMut::new(),
            }
            .run()
            .await
        }
        Some(acceptor) => {
            let stream = acceptor.accept(stream).await?;
            Connection {
                shared,
                stream,
                buffer: BytesMut::new(),
            }
            .run()
            .await
        }
    }
}

struct Connection<S> {
    shared: Arc<Shared>,
    stream: S,
    /// Bytes that were read and not yet used: the rest of a head, the start of a body, the next request.
    buffer: BytesMut,
}

impl<S: Transport> Connection<S> {
    async fn run(mut self) -> io::Result<()> {
        loop {
            let request = match self.read_head().await? {
                None => return Ok(()),
                Some(Ok(request)) => request,
                Some(Err(error)) => {
                    let id = request_id();
                    let calm = Plan::default();
                    let manner = Manner {
                        keep_alive: false,
                        ..self.manner(&calm, &id)
                    };
                    error
                        .into_reply("", &id)
                        .send(&mut self.stream, manner)
                        .await?;
                    return self.stream.shutdown().await;
                }
            };
            let after = if request.bucket == CONTROL_BUCKET {
                self.control(&request).await?
            } else {
                self.exchange(&request).await?
            };
            match after {
                After::KeepAlive => {}
                After::Close => return self.linger().await,
                After::Reset => return self.stream.tcp().set_zero_linger(),
            }
        }
    }

    /// The next head; `None` when the client is gone.
    async fn read_head(&mut self) -> io::Result<Option<Result<Request, S3Error>>> {
        loop {
            match Request::parse(&self.buffer) {
                Ok(Some((request, length))) => {
                    let _ = self.buffer.split_to(length);
                    return Ok(Some(Ok(request)));
                }
                Ok(None) => {}
                Err(error) => return Ok(Some(Err(error))),
            }
            self.buffer.reserve(HEAD_BYTES_MAX);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn read_body(&mut self, length: u64) -> io::Result<Bytes> {
        // At most `BODY_BYTES_MAX`, which the caller has checked.
        let length = length as usize;
        let here = self.buffer.split_to(length.min(self.buffer.len()));
        if here.len() == length {
            return Ok(here.freeze());
        }
        let mut body = Vec::with_capacity(length);
        body.extend_from_slice(&here);
        let missing = (length - here.len()) as u64;
        let read = (&mut self.stream)
            .take(missing)
            .read_to_end(&mut body)
            .await?;
        if (read as u64) < missing {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(body.into())
    }

    async fn control(&mut self, request: &Request) -> io::Result<After> {
        let id = request_id();
        let outcome = match self.body_of(request).await? {
            Ok(body) => control::answer(&self.shared, request, &body),
            Err(error) => Err(error),
        };
        let reply = outcome.unwrap_or_else(|error| error.into_reply(&request.path, &id));
        let calm = Plan::default();
        let manner = Manner {
            keep_alive: request.keep_alive,
            ..self.manner(&calm, &id)
        };
        Ok(reply.send(&mut self.stream, manner).await?.after)
    }

    /// One S3 request, counted from its head to its end whatever that is.
    async fn exchange(&mut self, request: &Request) -> io::Result<After> {
        let plan = self.shared.faults().strike(&request.method, &request.key);
        let mut entry = log_entry(request, !plan.is_empty());
        self.shared.stats().begin(&mut entry);
        let mut record = Record {
            shared: Arc::clone(&self.shared),
            entry,
        };
        self.exchange_recorded(request, &plan, &mut record.entry)
            .await
    }

    async fn exchange_recorded(
        &mut self,
        request: &Request,
        plan: &Plan,
        entry: &mut LogEntry,
    ) -> io::Result<After> {
        let id = request_id();
        let resource = &request.path;
        if let (Some(cut), Framing::Length(length)) = (upload_cut(plan), request.framing) {
            entry.bytes_in = self.read_body(cut.min(length)).await?.len() as u64;
            return Ok(After::Reset);
        }
        let (payload, body) = match self.admit(request, plan).await? {
            Ok(admitted) => admitted,
            Err(error) => {
                let reply = error.into_reply(resource, &id);
                return self.refuse(reply, request, plan, &id, entry).await;
            }
        };
        entry.bytes_in = body.len() as u64;
        if plan.has(&Action::NeverAnswer) {
            // Until the client gives up; what it sends meanwhile is not looked at.
            let _ = tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await;
            return Ok(After::Close);
        }
        if plan.has(&Action::Drop) {
            return Ok(After::Reset);
        }
        sleep_for(plan, |action| {
            if let Action::DelayApply { ms } = action {
                Some(*ms)
            } else {
                None
            }
        })
        .await;
        let reply = match planned_reply(plan, resource, &id) {
            Some(reply) => reply,
            None => verb::apply(
                &self.shared,
                request,
                &payload,
                body,
                plan.has(&Action::IgnoreRange),
            )
            .unwrap_or_else(|error| error.into_reply(resource, &id)),
        };
        if plan.has(&Action::CommitThenDrop) {
            return Ok(After::Reset);
        }
        tokio::time::sleep(self.shared.options.latency).await;
        sleep_for(plan, |action| {
            if let Action::DelayHead { ms } = action {
                Some(*ms)
            } else {
                None
            }
        })
        .await;
        entry.status = reply.status;
        let head_only = request.method == "HEAD";
        let manner = Manner {
            keep_alive: request.keep_alive,
            head_only,
            ..self.manner(plan, &id)
        };
        let sent = reply.send(&mut self.stream, manner).await?;
        entry.bytes_out = sent.body_bytes;
        Ok(sent.after)
    }

    /// Signature and length come first: S3 refuses a stranger before it reads what he sends.
    async fn admit(
        &mut self,
        request: &Request,
        plan: &Plan,
    ) -> io::Result<Result<(Payload, Bytes), S3Error>> {
        if let Some(error) = early_answer(plan) {
            return Ok(Err(error));
        }
        match self.authorise(request) {
            Ok(payload) => Ok(self.body_of(request).await?.map(|body| (payload, body))),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Sends a refusal before the body was read, and closes: what follows is body, not a request.
    async fn refuse(
        &mut self,
        reply: Reply,
        request: &Request,
        plan: &Plan,
        id: &str,
        entry: &mut LogEntry,
    ) -> io::Result<After> {
        let keep_alive = request.keep_alive && request.framing == Framing::Length(0);
        entry.status = reply.status;
        let head_only = request.method == "HEAD";
        let manner = Manner {
            keep_alive,
            head_only,
            ..self.manner(plan, id)
        };
        let sent = reply.send(&mut self.stream, manner).await?;
        entry.bytes_out = sent.body_bytes;
        Ok(sent.after)
    }

    /// Closes so that the client can read an answer that came before it had sent everything: with
    /// bytes unread a close would be a reset, which takes the answer away from it.
    async fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut sink = tokio::io::sink();
        let draining = tokio::io::copy(&mut self.stream, &mut sink);
        // What was thrown away, and whether the client left by itself, is of no interest.
        let _ = tokio::time::timeout(LINGER_MAX, draining).await;
        Ok(())
    }

    fn authorise(&self, request: &Request) -> Result<Payload, S3Error> {
        if self.shared.options.auth {
            signature::verify(request, &self.shared.options, self.shared.now())
        } else {
            Ok(Payload::Unsigned)
        }
    }

    /// The body of a request, after `100 Continue` where the client waits for it.
    async fn body_of(&mut self, request: &Request) -> io::Result<Result<Bytes, S3Error>> {
        let length = match request.framing {
            Framing::Length(length) => length,
            Framing::Encoded => {
                let message = "Transfer-Encoding: the length must be known";
                return Ok(Err(S3Error::new("NotImplemented").because(message)));
            }
            Framing::Unknown if request.bucket == CONTROL_BUCKET => 0,
            Framing::Unknown => return Ok(Err(S3Error::new("MissingContentLength"))),
        };
        if length > BODY_BYTES_MAX {
            return Ok(Err(S3Error::new("EntityTooLarge")));
        }
        if request
            .headers
            .get("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            self.stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await?;
            self.stream.flush().await?;
        }
        Ok(Ok(self.read_body(length).await?))
    }

    fn manner<'a>(&self, plan: &'a Plan, request_id: &'a str) -> Manner<'a> {
        Manner {
            plan,
            request_id,
            date: self.shared.now(),
            head_only: false,
            keep_alive: true,
        }
    }
}

/// Files the entry when dropped, so that a client that leaves half-way is counted too.
struct Record {
    shared: Arc<Shared>,
    entry: LogEntry,
}

impl Drop for Record {
    fn drop(&mut self) {
        let entry = std::mem::take(&mut self.entry);
        self.shared.stats().end(entry);
    }
}

fn log_entry(request: &Request, fault: bool) -> LogEntry {
    let shown = |(name, value): &(String, String)| {
        let secret = name == "authorization";
        (
            name.clone(),
            if secret {
                "(present)".to_owned()
            } else {
                value.clone()
            },
        )
    };
    LogEntry {
        method: request.method.clone(),
        bucket: request.bucket.clone(),
        key: request.key.clone(),
        headers: request.headers.0.iter().map(shown).collect(),
        signed: request.headers.get("authorization").is_some()
            || request.parameter("X-Amz-Signature").is_some(),
        fault,
        ..LogEntry::default()
    }
}

fn upload_cut(plan: &Plan) -> Option<u64> {
    plan.actions().iter().find_map(|action| match action {
        Action::CutUpload { after_bytes } => Some(*after_bytes),
        _ => None,
    })
}

fn early_answer(plan: &Plan) -> Option<S3Error> {
    plan.actions().iter().find_map(|action| match action {
        Action::EarlyAnswer { status, code } => Some(refusal(*status, code.as_deref())),
        _ => None,
    })
}

/// The answer that a plan gives in place of the real one.
fn planned_reply(plan: &Plan, resource: &str, request_id: &str) -> Option<Reply> {
    plan.actions().iter().find_map(|action| match action {
        Action::Status {
            status,
            code,
            retry_after_s,
        } => {
            let mut error = refusal(*status, code.as_deref());
            if let Some(seconds) = retry_after_s {
                error = error.with_header("Retry-After", seconds.to_string());
            }
            Some(error.into_reply(resource, request_id))
        }
        Action::CaptivePortal => Some(
            Reply::new(200)
                .header("Content-Type", "text/html")
                .body(PORTAL_PAGE),
        ),
        Action::Redirect { status, location } => {
            let mut error =
                S3Error::new("TemporaryRedirect").because("Please re-send this request elsewhere.");
            error.status = *status;
            Some(
                error
                    .with_header("Location", location)
                    .into_reply(resource, request_id),
            )
        }
        _ => None,
    })
}

fn refusal(status: u16, code: Option<&str>) -> S3Error {
    let mut error = S3Error::new(code.unwrap_or(code_of_status(status)));
    error.status = status;
    error
}

async fn sleep_for(plan: &Plan, delay_ms: impl Fn(&Action) -> Option<u64>) {
    for ms in plan.actions().iter().filter_map(delay_ms) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

fn request_id() -> String {
    format!("{:016X}", REQUEST_ID.fetch_add(1, Ordering::Relaxed))
}
