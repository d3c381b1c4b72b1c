//! Signed chunks: whether each part of a body is what the signer of its request sent, in its order.
//!
//! The request's own signature is the seed; every chunk is signed together with the signature before
//! it, and so is what follows the last one. Nothing here knows how chunks are framed, and no more
//! than the running hash of one chunk is ever kept.

use super::ALGORITHM;
use crate::http::reply::ErrorReply;
use aws_lc_rs::digest::{Context, SHA256, digest};
use aws_lc_rs::{constant_time, hmac};

/// Hexadecimal digits of a signature.
pub const SIGNATURE_DIGITS: usize = 64;

/// Verifies the chunks of one body, one after the other.
pub struct ChunkVerifier {
    key: hmac::Key,
    /// Timestamp and scope of the request, as strings to sign have them.
    context: String,
    /// The signature of what came before, in hexadecimal.
    previous: String,
    /// Of the chunk that is being received.
    hash: Context,
}

impl ChunkVerifier {
    /// A verifier of the body of a request that `key` signed with `seed`.
    pub(super) fn new(key: hmac::Key, timestamp: &str, scope: &str, seed: &str) -> Self {
        ChunkVerifier {
            key,
            context: format!("{timestamp}\n{scope}"),
            previous: seed.to_owned(),
            hash: Context::new(&SHA256),
        }
    }

    /// Takes the next bytes of a chunk.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    /// Ends a chunk: whether its bytes are those that `presented` signs, in hexadecimal.
    pub fn end_chunk(&mut self, presented: &[u8]) -> Result<(), ErrorReply> {
        let hash = std::mem::replace(&mut self.hash, Context::new(&SHA256)).finish();
        let empty = digest(&SHA256, b"");
        let signed = format!("{}\n{}", hex::encode(empty), hex::encode(hash));
        self.verify("PAYLOAD", &signed, presented, "a chunk")
    }

    /// Ends the body: whether its trailer is the one that `presented` signs. `canonical` has a line
    /// `name:value` with a line feed for each of its headers.
    pub fn end_trailer(&mut self, canonical: &str, presented: &[u8]) -> Result<(), ErrorReply> {
        let signed = hex::encode(digest(&SHA256, canonical.as_bytes()));
        self.verify("TRAILER", &signed, presented, "the trailer")
    }

    fn verify(
        &mut self,
        kind: &str,
        signed: &str,
        presented: &[u8],
        what: &str,
    ) -> Result<(), ErrorReply> {
        let (context, previous) = (&self.context, &self.previous);
        let text = format!("{ALGORITHM}-{kind}\n{context}\n{previous}\n{signed}");
        let expected = hex::encode(hmac::sign(&self.key, text.as_bytes()));
        if constant_time::verify_slices_are_equal(expected.as_bytes(), presented).is_err() {
            let message = format!("the signature of {what} does not match what came");
            return Err(ErrorReply::new(403, "SignatureDoesNotMatch", message));
        }
        self.previous = expected;
        Ok(())
    }
}
