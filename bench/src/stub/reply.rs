//! Answers: owns their head, and sending them, bent by a plan where there is one. Decides nothing about objects.

use std::io;
use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::content;
use crate::stub::fault::{Action, Plan};

/// Bytes made at a time for a synthetic object: a few writes' worth, and little enough to stay in cache until sent.
const SYNTHETIC_STEP_BYTES: usize = 256 * 1024;

/// Steps in each second of a rate-limited body.
const RATE_STEPS_PER_S: u64 = 20;

/// The body of an answer.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Bytes(Bytes),
    Synthetic {
        content: content::Content,
        range: Range<u64>,
    },
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Synthetic { range, .. } => range.end - range.start,
        }
    }

    /// All of it in memory, for faults that work on bytes.
    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Synthetic { content, range } => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                content.fill(range.start, &mut bytes);
                bytes
            }
        }
    }
}

/// An answer, not yet sent.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) content: Content,
}

/// What is to become of the connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    KeepAlive,
    Close,
    Reset,
}

/// What happened to an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) body_bytes: u64,
    pub(super) after: After,
}

/// How an answer is to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner<'a> {
    pub(super) plan: &'a Plan,
    pub(super) request_id: &'a str,
    pub(super) date: std::time::SystemTime,
    /// HEAD: the length is told, the body is not sent.
    pub(super) head_only: bool,
    pub(super) keep_alive: bool,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            content: Content::Bytes(Bytes::new()),
        }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.content = Content::Bytes(body.into());
        self
    }

    /// Sends the answer.
    pub(super) async fn send<S>(mut self, stream: &mut S, manner: Manner<'_>) -> io::Result<Sent>
    where
        S: AsyncWrite + Unpin,
    {
        let mut length = self.content.size();
        let mut delivery = Delivery {
            keep_alive: manner.keep_alive,
            ..Delivery::default()
        };
        for action in manner.plan.actions() {
            self.bend(action, &mut length, &mut delivery);
        }
        let head = self.head(length, &delivery, &manner);
        if delivery.body_delay.is_some() {
            stream.write_all(&head).await?;
            stream.flush().await?;
            tokio::time::sleep(delivery.body_delay.unwrap_or_default()).await;
        }
        let mut head = if delivery.body_delay.is_some() {
            Bytes::new()
        } else {
            Bytes::from(head)
        };
        let content = if manner.head_only {
            Content::Bytes(Bytes::new())
        } else {
            self.content
        };
        let end = delivery
            .cut
            .map_or(content.size(), |(bytes, _)| bytes.min(content.size()));
        let body_bytes = match content {
            Content::Bytes(bytes) if delivery.rate.is_none() => {
                stream
                    .write_all_buf(&mut head.chain(bytes.slice(..end as usize)))
                    .await?;
                end
            }
            content => {
                stream.write_all_buf(&mut head).await?;
                send_in_steps(stream, content, end, delivery.rate).await?
            }
        };
        stream.flush().await?;
        let after = match delivery.cut {
            Some((_, true)) => After::Reset,
            Some((_, false)) => After::Close,
            None if delivery.keep_alive => After::KeepAlive,
            None => After::Close,
        };
        Ok(Sent { body_bytes, after })
    }

    /// Changes the answer as `action` says. Actions that strike before there is an answer are none of its business.
    fn bend(&mut self, action: &Action, length: &mut u64, delivery: &mut Delivery) {
        match action {
            Action::DelayBody { ms } => delivery.body_delay = Some(Duration::from_millis(*ms)),
            Action::RateLimit { bytes_per_s } => delivery.rate = Some((*bytes_per_s).max(1)),
            Action::Cut { after_bytes, reset } => delivery.cut = Some((*after_bytes, *reset)),
            Action::Extend { bytes } => {
                let mut longer = self.take_bytes();
                longer.resize(longer.len() + *bytes as usize, b'!');
                self.content = Content::Bytes(longer.into());
                delivery.keep_alive = false;
            }
            Action::ContentLength { value } => {
                *length = *value;
                delivery.keep_alive = false;
            }
            Action::SetHeader { name, value } => {
                self.headers
                    .retain(|(header, _)| !header.eq_ignore_ascii_case(name));
                if !value.is_empty() {
                    self.headers.push((name.clone(), value.clone()));
                }
            }
            Action::Corrupt { offset } => {
                let mut bytes = self.take_bytes();
                if let Some(byte) = bytes.get_mut(*offset as usize) {
                    *byte ^= 0x01;
                }
                self.content = Content::Bytes(bytes.into());
            }
            Action::Status { .. }
            | Action::EarlyAnswer { .. }
            | Action::DelayHead { .. }
            | Action::DelayApply { .. }
            | Action::CaptivePortal
            | Action::NeverAnswer
            | Action::CommitThenDrop
            | Action::Drop
            | Action::CutUpload { .. }
            | Action::IgnoreRange
            | Action::Redirect { .. } => {}
        }
    }

    fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::replace(&mut self.content, Content::Bytes(Bytes::new())).into_bytes()
    }

    fn head(&self, length: u64, delivery: &Delivery, manner: &Manner<'_>) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nServer: forebay-s3-stub\r\nDate: {}\r\nx-amz-request-id: {}\r\n",
            self.status,
            reason(self.status),
            httpdate::fmt_http_date(manner.date),
            manner.request_id
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !matches!(self.status, 204 | 304) {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        // A cut connection promises to stay open, as one that is cut by an accident does.
        if !delivery.keep_alive && delivery.cut.is_none() {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// How the body is to be sent.
#[derive(Debug, Default)]
struct Delivery {
    keep_alive: bool,
    body_delay: Option<Duration>,
    rate: Option<u64>,
    cut: Option<(u64, bool)>,
}

/// Sends the first `end` bytes piece by piece, because they are yet to be made or may not go out faster.
async fn send_in_steps<S>(
    stream: &mut S,
    content: Content,
    end: u64,
    rate: Option<u64>,
) -> io::Result<u64>
where
    S: AsyncWrite + Unpin,
{
    let step_bytes = rate.map_or(SYNTHETIC_STEP_BYTES, |rate| {
        (rate / RATE_STEPS_PER_S).clamp(1, SYNTHETIC_STEP_BYTES as u64) as usize
    });
    let mut buffer = vec![0; step_bytes.min(end as usize)];
    let mut position = 0;
    while position < end {
        let piece = &mut buffer[..step_bytes.min((end - position) as usize)];
        match &content {
            Content::Bytes(bytes) => {
                piece.copy_from_slice(&bytes[position as usize..position as usize + piece.len()])
            }
            Content::Synthetic { content, range } => content.fill(range.start + position, piece),
        }
        stream.write_all(piece).await?;
        position += piece.len() as u64;
        if let Some(rate) = rate {
            stream.flush().await?;
            tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
        }
    }
    Ok(position)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}
