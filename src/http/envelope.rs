//! A body in S3's envelope: framing, signatures of its chunks and its trailer, together. Pure.
//!
//! Bytes in, content out, and an error where anything of it does not hold. The bytes of a chunk are
//! handed out as they come, its last ones when its signature was verified; the end is told when all
//! has come that was announced. Which checksum the content has is `digest.rs`' to say.

use super::aws_chunked::{Decoder, Malformed, Part, Step};
use super::digest::BodyChecks;
use super::reply::ErrorReply;
use super::sigv4::{ChunkVerifier, SIGNATURE_DIGITS};

/// What stands before a signature in what follows a chunk's size.
const CHUNK_SIGNATURE: &[u8] = b"chunk-signature=";

/// The last line of a trailer that is signed.
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

/// How an envelope is sealed.
pub enum Seal {
    /// Not at all; its connection may be.
    Unsigned,
    /// Each chunk is signed.
    Chunks(ChunkVerifier),
    /// So is the trailer.
    ChunksAndTrailer(ChunkVerifier),
}

/// What the next step found.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of the object.
    Content(&'a [u8]),
    /// All input is used up.
    NeedMore,
    /// The end of the envelope: all signatures hold. What is left of the input is not part of it.
    End,
}

/// An envelope in the middle.
pub struct Envelope {
    decoder: Decoder,
    seal: Seal,
    /// What the chunk that is being received is signed with.
    signature: Vec<u8>,
    /// The trailer so far, which means nothing before its signature was verified. The decoder bounds its
    /// lines, and how many they are.
    unverified: Vec<(String, String)>,
    is_trailer_signed: bool,
}

impl Envelope {
    /// An envelope of which nothing came yet.
    pub fn new(seal: Seal) -> Self {
        Envelope {
            decoder: Decoder::envelope(),
            seal,
            signature: Vec::new(),
            unverified: Vec::new(),
            is_trailer_signed: false,
        }
    }

    /// Bytes of content that come next, without anything between.
    pub fn content_left(&self) -> u64 {
        self.decoder.content_left()
    }

    /// Takes from the front of `input`, which shrinks by what was used. `checks` is told the trailer.
    pub fn step<'a>(
        &mut self,
        input: &mut &'a [u8],
        checks: &mut BodyChecks,
    ) -> Result<Piece<'a>, ErrorReply> {
        loop {
            match self.decoder.step(input)? {
                Step::Chunk(size) => self.begin_chunk(size)?,
                Step::Content(bytes) => {
                    self.take_content(bytes)?;
                    return Ok(Piece::Content(bytes));
                }
                Step::Trailer(name, value) => self.take_trailer(name, value, checks)?,
                Step::NeedMore => return Ok(Piece::NeedMore),
                Step::End => {
                    self.end()?;
                    return Ok(Piece::End);
                }
            }
        }
    }

    fn begin_chunk(&mut self, size: u64) -> Result<(), ErrorReply> {
        let extension = self.decoder.extension();
        let Some(verifier) = self.seal.verifier() else {
            return check_extension(extension);
        };
        let signature = extension.strip_prefix(CHUNK_SIGNATURE).unwrap_or_default();
        if signature.len() != SIGNATURE_DIGITS {
            let message = "each chunk must say `;chunk-signature=` and 64 hexadecimal digits";
            return Err(ErrorReply::new(403, "SignatureDoesNotMatch", message));
        }
        if size == 0 {
            return verifier.end_chunk(signature);
        }
        self.signature.clear();
        self.signature.extend_from_slice(signature);
        Ok(())
    }

    fn take_content(&mut self, bytes: &[u8]) -> Result<(), ErrorReply> {
        let Some(verifier) = self.seal.verifier() else {
            return Ok(());
        };
        verifier.update(bytes);
        match self.decoder.content_left() {
            0 => verifier.end_chunk(&self.signature),
            _ => Ok(()),
        }
    }

    fn take_trailer(
        &mut self,
        name: String,
        value: String,
        checks: &mut BodyChecks,
    ) -> Result<(), ErrorReply> {
        if self.is_trailer_signed {
            let what = "something after its trailer's signature";
            return Err(malformed_trailer(what));
        }
        match &mut self.seal {
            Seal::Unsigned | Seal::Chunks(_) => checks.trailer(&name, &value),
            Seal::ChunksAndTrailer(_) if name != TRAILER_SIGNATURE => {
                self.unverified.push((name, value));
                Ok(())
            }
            Seal::ChunksAndTrailer(verifier) => {
                let lines = self.unverified.iter();
                let canonical: String = lines.map(|(n, v)| format!("{n}:{v}\n")).collect();
                verifier.end_trailer(&canonical, value.as_bytes())?;
                self.is_trailer_signed = true;
                let mut verified = self.unverified.drain(..);
                verified.try_for_each(|(name, value)| checks.trailer(&name, &value))
            }
        }
    }

    fn end(&self) -> Result<(), ErrorReply> {
        match self.seal {
            Seal::ChunksAndTrailer(_) if !self.is_trailer_signed => {
                let message = format!("the trailer is not signed: {TRAILER_SIGNATURE} is missing");
                Err(ErrorReply::new(403, "SignatureDoesNotMatch", message))
            }
            _ => Ok(()),
        }
    }
}

impl Seal {
    fn verifier(&mut self) -> Option<&mut ChunkVerifier> {
        match self {
            Seal::Unsigned => None,
            Seal::Chunks(verifier) | Seal::ChunksAndTrailer(verifier) => Some(verifier),
        }
    }
}

/// What follows a size that nothing signs may be anything that HTTP lets stand there.
fn check_extension(extension: &[u8]) -> Result<(), ErrorReply> {
    let is_text = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t');
    match extension.iter().all(is_text) {
        true => Ok(()),
        false => Err(Malformed {
            part: Part::Size,
            what: "something after a chunk's size that is not text",
        }
        .into()),
    }
}

fn malformed_trailer(what: &'static str) -> ErrorReply {
    let part = Part::Trailer;
    Malformed { part, what }.into()
}

#[cfg(test)]
mod tests;
