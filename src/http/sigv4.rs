//! AWS Signature Version 4, as S3 has it: whether a request was signed with a key pair. Pure.
//!
//! A [`Claim`] is what a request says about its signature, in its `Authorization` header or in the
//! query of a presigned URL; [`Claim::verify`] says whether the secret key that belongs to it made
//! the signature, at a time that the caller gives. Nothing here knows volumes or permissions, reads
//! a body or a clock, or puts a secret or an expected signature into an answer.
//!
//! What the signature says about the body is not judged here: `digest.rs` compares the hash that
//! was signed with the body that came, and a [`ChunkVerifier`] the signatures of its chunks.

mod canonical;
mod chunks;
mod claim;
mod date;
#[cfg(test)]
mod tests;

pub use chunks::{ChunkVerifier, SIGNATURE_DIGITS};

use super::head::Head;
use super::limits::SIGNATURE_SKEW_SECONDS_MAX;
use super::reply::ErrorReply;
use crate::settings::secret::Secret;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::{constant_time, hmac};
use zeroize::Zeroizing;

/// The only algorithm that is served.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The service that a scope must name.
const SERVICE: &str = "s3";

/// The last word of a scope.
const TERMINATOR: &str = "aws4_request";

/// Stands for a body whose hash is not signed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// Stands for a body in an envelope whose chunks are not signed.
pub const UNSIGNED_ENVELOPE: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

/// Stands for a body in an envelope whose chunks are signed.
pub const SIGNED_CHUNKS: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";

/// Stands for a body in an envelope whose chunks and trailer are signed.
pub const SIGNED_CHUNKS_AND_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";

/// Query parameters that a presigned URL is made of. Each may stand in it once.
pub const QUERY_PARAMETERS: [&str; 7] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
];

/// What a request says about its signature: well-formed, and not yet verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Names the secret key.
    access_key: String,
    scope: Scope,
    /// Names in lower case, ascending. `host` and all `x-amz-*` of the request are among them.
    signed_headers: Vec<String>,
    /// In hexadecimal, as sent.
    signature: String,
    /// When it was signed, as the string to sign has it.
    timestamp: String,
    /// The same, seconds since the Unix epoch.
    signed_at: i64,
    /// What stands for the body in what was signed.
    payload: String,
    /// How long it is good; `None` for a header, which is good around its time only.
    lifetime_seconds: Option<i64>,
}

/// Where and when a signing key is good.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    /// `YYYYMMDD`.
    day: String,
    /// Taken as given: a proxy stands in no region.
    region: String,
}

impl Scope {
    fn text(&self) -> String {
        format!("{}/{}/{SERVICE}/{TERMINATOR}", self.day, self.region)
    }
}

impl Claim {
    /// Reads a request's claim; `None` where it makes none. `query` is decoded.
    pub fn of(head: &Head, query: &[(String, String)]) -> Result<Option<Claim>, ErrorReply> {
        claim::read(head, query)
    }

    /// Names the secret key that made the signature, if anything did.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// Whether it is in the query, as of a presigned URL.
    pub fn is_presigned(&self) -> bool {
        self.lifetime_seconds.is_some()
    }

    /// Whether `secret` made this signature of this request, and `now` (seconds since the Unix
    /// epoch) is within its time. `head` and `query` are those that the claim was read from. Returns
    /// what verifies the body's chunks, if they are signed, too.
    pub fn verify(
        &self,
        head: &Head,
        query: &[(String, String)],
        secret: &Secret,
        now: u64,
    ) -> Result<Option<ChunkVerifier>, ErrorReply> {
        self.check_time(i64::try_from(now).unwrap_or(i64::MAX))?;
        let key = signing_key(secret, &self.scope);
        let mut first = None;
        for path in canonical::paths(&head.target) {
            let request = canonical::request(self, head, &path, query);
            let text = self.string_to_sign(&hex::encode(digest(&SHA256, &request)));
            let expected = hex::encode(hmac::sign(&key, text.as_bytes()));
            let presented = self.signature.as_bytes();
            if constant_time::verify_slices_are_equal(expected.as_bytes(), presented).is_ok() {
                return Ok(self.chunk_verifier(key));
            }
            first.get_or_insert((request, text));
        }
        let (request, text) = first.unwrap_or_default();
        Err(self.mismatch(&request, &text))
    }

    /// What helps whoever compares step by step. It tells nothing that was not sent.
    fn mismatch(&self, request: &[u8], string_to_sign: &str) -> ErrorReply {
        let message = "the signature does not match; check the secret key and what is signed";
        ErrorReply::new(403, "SignatureDoesNotMatch", message)
            .detail("AWSAccessKeyId", &self.access_key)
            .detail("StringToSign", string_to_sign)
            .detail("SignatureProvided", &self.signature)
            .detail("CanonicalRequest", String::from_utf8_lossy(request))
    }

    fn chunk_verifier(&self, key: hmac::Key) -> Option<ChunkVerifier> {
        let scope = self.scope.text();
        [SIGNED_CHUNKS, SIGNED_CHUNKS_AND_TRAILER]
            .contains(&self.payload.as_str())
            .then(|| ChunkVerifier::new(key, &self.timestamp, &scope, &self.signature))
    }

    fn string_to_sign(&self, request_digest: &str) -> String {
        let scope = self.scope.text();
        format!("{ALGORITHM}\n{}\n{scope}\n{request_digest}", self.timestamp)
    }

    fn check_time(&self, now: i64) -> Result<(), ErrorReply> {
        let age = now.saturating_sub(self.signed_at);
        match self.lifetime_seconds {
            None if age.saturating_abs() > SIGNATURE_SKEW_SECONDS_MAX => {
                let message = format!(
                    "the request was signed {} seconds {} the time here; {} are allowed",
                    age.saturating_abs(),
                    if age < 0 { "after" } else { "before" },
                    SIGNATURE_SKEW_SECONDS_MAX,
                );
                let skew_ms = SIGNATURE_SKEW_SECONDS_MAX * 1000;
                Err(ErrorReply::new(403, "RequestTimeTooSkewed", message)
                    .detail("RequestTime", &self.timestamp)
                    .detail("ServerTime", date::readable(now))
                    .detail("MaxAllowedSkewMilliseconds", skew_ms.to_string()))
            }
            Some(_) if age < -SIGNATURE_SKEW_SECONDS_MAX => {
                Err(ErrorReply::denied("Request is not valid yet")
                    .detail("X-Amz-Date", &self.timestamp)
                    .detail("ServerTime", date::readable(now)))
            }
            Some(lifetime) if age > lifetime => {
                let end = self.signed_at.saturating_add(lifetime);
                Err(ErrorReply::denied("Request has expired")
                    .detail("X-Amz-Expires", lifetime.to_string())
                    .detail("Expires", date::readable(end))
                    .detail("ServerTime", date::readable(now)))
            }
            _ => Ok(()),
        }
    }
}

/// The key that signs within a scope.
fn signing_key(secret: &Secret, scope: &Scope) -> hmac::Key {
    let start = Zeroizing::new(format!("AWS4{}", secret.expose()));
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, start.as_bytes());
    for part in [&scope.day, &scope.region, SERVICE, TERMINATOR] {
        key = hmac::Key::new(
            hmac::HMAC_SHA256,
            hmac::sign(&key, part.as_bytes()).as_ref(),
        );
    }
    key
}
