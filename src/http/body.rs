//! The body of a write as its object's bytes: out of its envelope, every checksum on the way.
//!
//! This file owns the reading of a body from its connection. It never hands out more bytes than
//! were announced, and its end is told only when all that was signed or announced of it holds.
//! What becomes of the bytes is its caller's to say.

use super::aws_chunked::{Malformed, Part};
use super::connection::{Connection, Ended};
use super::digest::{BodyChecks, Verified};
use super::envelope::{Envelope, Piece, Seal};
use super::head::{Framing, Head};
use super::limits::{CHUNKED_READ_BYTES, OBJECT_BYTES_MAX};
use super::reply::ErrorReply;
use super::sigv4::{ChunkVerifier, SIGNED_CHUNKS, SIGNED_CHUNKS_AND_TRAILER, UNSIGNED_ENVELOPE};
use std::io;

/// What one step of taking an envelope off costs beside its bytes, as bytes that would take as long: the
/// signature of a chunk, at worst. A body in tiny chunks must not hold its core.
const STEP_COST_BYTES: usize = 2 << 10;

/// A body as the object's bytes: with its envelope taken off, if it has one.
pub struct Body {
    length: u64,
    left: u64,
    envelope: Option<EnvelopeReader>,
    checks: BodyChecks,
    /// What the envelope cost since the last pause, as bytes.
    work: usize,
}

/// An envelope, and what came of it and is not used yet: `scratch[start..end]`.
struct EnvelopeReader {
    envelope: Envelope,
    scratch: Vec<u8>,
    start: usize,
    end: usize,
}

/// Why a body could not be taken.
pub enum BodyError {
    /// The connection ended, or must end.
    Ended(Ended),
    /// The client is told.
    Refused(ErrorReply),
}

impl From<Ended> for BodyError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Framing(error) => {
                let reply = ErrorReply::new(400, "InvalidRequest", error.to_string());
                BodyError::Refused(reply.closing())
            }
            Ended::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let message = "the body ended before its announced length";
                BodyError::Refused(ErrorReply::new(400, "IncompleteBody", message).closing())
            }
            ended => BodyError::Ended(ended),
        }
    }
}

impl From<ErrorReply> for BodyError {
    fn from(reply: ErrorReply) -> Self {
        BodyError::Refused(reply)
    }
}

/// The envelope and what was said of it disagree.
fn incomplete(what: &'static str) -> BodyError {
    let part = Part::End;
    BodyError::Refused(Malformed { part, what }.into())
}

impl Body {
    /// What the head says of the body. `chunks` verifies its chunks, if a signature says that they are
    /// signed.
    pub fn of(head: &Head, chunks: Option<ChunkVerifier>) -> Result<Body, ErrorReply> {
        let seal = seal(head, chunks)?;
        let framed = match head.framing {
            Framing::Length(framed) => framed,
            // The envelope says the object's length, so nothing else has to.
            Framing::Chunked if seal.is_some() => 0,
            Framing::Chunked | Framing::None => {
                let message = "a PUT needs a Content-Length";
                return Err(ErrorReply::new(411, "MissingContentLength", message).closing());
            }
        };
        let length = match &seal {
            Some(_) => decoded_length(head)?,
            None => framed,
        };
        if length > OBJECT_BYTES_MAX || framed > 2 * OBJECT_BYTES_MAX {
            let message = format!("an object has at most {OBJECT_BYTES_MAX} bytes");
            return Err(ErrorReply::new(413, "EntityTooLarge", message));
        }
        let envelope = seal.map(|seal| EnvelopeReader {
            envelope: Envelope::new(seal),
            scratch: vec![0; CHUNKED_READ_BYTES],
            start: 0,
            end: 0,
        });
        Ok(Body {
            length,
            left: length,
            envelope,
            checks: BodyChecks::of(head)?,
            work: 0,
        })
    }

    /// Bytes of the object.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of the object still to be read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// What the body must match.
    pub fn checks(&self) -> &BodyChecks {
        &self.checks
    }

    /// Takes out the MD5 that the client told, before anything was read.
    pub fn take_md5(&mut self) -> Option<Vec<u8>> {
        self.checks.take_md5()
    }

    /// Whether the envelope cost `budget` bytes' worth of work since this last said so.
    pub fn is_pause_due(&mut self, budget: usize) -> bool {
        let is_due = self.work >= budget;
        if is_due {
            self.work = 0;
        }
        is_due
    }

    /// Reads the next object bytes into `target`; 0 once all are read.
    pub async fn read(
        &mut self,
        connection: &mut Connection,
        target: &mut [u8],
    ) -> Result<usize, BodyError> {
        let wanted = target
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let target = &mut target[..wanted];
        let count = match &mut self.envelope {
            None => connection.read_body(target).await?,
            Some(reader) => {
                self.work += STEP_COST_BYTES;
                reader.read(connection, target, &mut self.checks).await?
            }
        };
        self.checks.update(&target[..count]);
        self.left -= count as u64;
        Ok(count)
    }

    /// Reads and verifies all of it, of which the length was found good.
    pub async fn read_all(mut self, connection: &mut Connection) -> Result<Vec<u8>, BodyError> {
        let mut bytes = vec![0; self.left as usize];
        let mut filled = 0;
        while self.left > 0 {
            filled += self.read(connection, &mut bytes[filled..]).await?;
        }
        self.finish(connection).await?;
        Ok(bytes)
    }

    /// Reads what follows the object's bytes and verifies them.
    pub async fn finish(mut self, connection: &mut Connection) -> Result<Verified, BodyError> {
        if let Some(reader) = &mut self.envelope {
            reader.finish(connection, &mut self.checks).await?;
        }
        Ok(self.checks.verify()?)
    }
}

/// How the body is enveloped, if it is.
fn seal(head: &Head, chunks: Option<ChunkVerifier>) -> Result<Option<Seal>, ErrorReply> {
    let payload = head.header("x-amz-content-sha256").unwrap_or_default();
    let is_named = head.values("content-encoding").any(has_aws_chunked);
    let seal = match (payload, chunks) {
        (SIGNED_CHUNKS, Some(verifier)) => Some(Seal::Chunks(verifier)),
        (SIGNED_CHUNKS_AND_TRAILER, Some(verifier)) => Some(Seal::ChunksAndTrailer(verifier)),
        (SIGNED_CHUNKS | SIGNED_CHUNKS_AND_TRAILER, None) => {
            let message = "chunks are signed with the key of a signed request, and this is none";
            return Err(ErrorReply::denied(message));
        }
        (UNSIGNED_ENVELOPE, _) => Some(Seal::Unsigned),
        (other, _) if other.starts_with("STREAMING-") => {
            return Err(ErrorReply::not_implemented(&format!(
                "a body signed as {other:?}"
            )));
        }
        _ => is_named.then_some(Seal::Unsigned),
    };
    let wrong = match (&seal, head.has("x-amz-trailer")) {
        (None, true) => "x-amz-trailer needs a body that is aws-chunked",
        (Some(Seal::Chunks(_)), true) => {
            "a trailer of a body with signed chunks must be signed, too"
        }
        (Some(Seal::ChunksAndTrailer(_)), false) => "x-amz-trailer must say what the trailer has",
        _ => return Ok(seal),
    };
    Err(ErrorReply::new(400, "InvalidRequest", wrong))
}

/// Whether a `content-encoding` names the envelope.
fn has_aws_chunked(value: &str) -> bool {
    value
        .split(',')
        .any(|coding| coding.trim().eq_ignore_ascii_case("aws-chunked"))
}

fn decoded_length(head: &Head) -> Result<u64, ErrorReply> {
    let mut values = head.values("x-amz-decoded-content-length");
    let length = match (values.next(), values.next()) {
        (Some(text), None) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            text.parse().ok()
        }
        _ => None,
    };
    length.ok_or_else(|| {
        let message = "an aws-chunked body needs x-amz-decoded-content-length";
        ErrorReply::new(411, "MissingContentLength", message)
    })
}

impl EnvelopeReader {
    async fn refill(&mut self, connection: &mut Connection) -> Result<(), BodyError> {
        self.start = 0;
        self.end = connection.read_body(&mut self.scratch).await?;
        match self.end {
            0 => Err(incomplete("no end")),
            _ => Ok(()),
        }
    }

    async fn read(
        &mut self,
        connection: &mut Connection,
        target: &mut [u8],
        checks: &mut BodyChecks,
    ) -> Result<usize, BodyError> {
        loop {
            let next = usize::try_from(self.envelope.content_left()).unwrap_or(usize::MAX);
            if self.start == self.end && next > 0 {
                // Nothing stands between: straight to where it belongs.
                let wanted = next.min(target.len());
                let count = connection.read_body(&mut target[..wanted]).await?;
                return match self.envelope.step(&mut &target[..count], checks)? {
                    Piece::Content(bytes) => Ok(bytes.len()),
                    Piece::NeedMore | Piece::End => Err(incomplete("no end")),
                };
            }
            let end = self.end.min(self.start + target.len());
            let mut input = &self.scratch[self.start..end];
            let piece = self.envelope.step(&mut input, checks)?;
            self.start = end - input.len();
            match piece {
                Piece::Content(bytes) => {
                    target[..bytes.len()].copy_from_slice(bytes);
                    return Ok(bytes.len());
                }
                Piece::NeedMore if self.start < self.end => {}
                Piece::NeedMore if self.envelope.content_left() > 0 => {}
                Piece::NeedMore => self.refill(connection).await?,
                Piece::End => return Err(incomplete("less than x-amz-decoded-content-length")),
            }
        }
    }

    async fn finish(
        &mut self,
        connection: &mut Connection,
        checks: &mut BodyChecks,
    ) -> Result<(), BodyError> {
        loop {
            let mut input = &self.scratch[self.start..self.end];
            let piece = self.envelope.step(&mut input, checks)?;
            self.start = self.end - input.len();
            match piece {
                Piece::Content(_) => {
                    return Err(incomplete("more than x-amz-decoded-content-length"));
                }
                // The next step says that something follows.
                Piece::End if self.start < self.end => {}
                Piece::End => {
                    // The body around the envelope must end with it.
                    return match connection.read_body(&mut self.scratch).await? {
                        0 => Ok(()),
                        _ => Err(incomplete("bytes after its end")),
                    };
                }
                Piece::NeedMore => self.refill(connection).await?,
            }
        }
    }
}
