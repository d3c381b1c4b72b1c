//! Signing requests: owns AWS Signature Version 4 in headers, from the client's side. Sends nothing and keeps no clock but
//! the one that it is given.

use std::time::SystemTime;

use aws_lc_rs::{digest, hmac};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::load::LoadError;
use crate::load::arguments::Common;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What is signed in place of a body's hash.
pub(super) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// SHA-256 of nothing, for requests without a body.
pub(super) const EMPTY_PAYLOAD: &str =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Where the secret is taken from if it is not typed: a process's arguments can be seen by everyone on its machine.
const SECRET_VARIABLE: &str = "AWS_SECRET_ACCESS_KEY";

/// Signs as one access key.
pub(super) struct Signer {
    access_key: String,
    secret_key: String,
    region: String,
    /// Whether bodies are signed without their hash.
    pub(super) unsigned_payload: bool,
    /// The user's own headers that must be signed: lower-case name and value, sorted.
    headers: Vec<(String, String)>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// The signer that the options ask for, if they ask for one.
    pub(super) fn new(common: &Common) -> Result<Option<Self>, LoadError> {
        let wrong = |why: &str| Err(LoadError::Usage(why.into()));
        let Some(access_key) = common.access_key.clone() else {
            return match common.secret_key {
                Some(_) => wrong("--secret-key needs --access-key"),
                None => Ok(None),
            };
        };
        if common.token.is_some() {
            return wrong("--token and --access-key exclude each other");
        }
        let typed = common.secret_key.clone();
        let Some(secret_key) = typed.or_else(|| std::env::var(SECRET_VARIABLE).ok()) else {
            return wrong("--access-key needs --secret-key, or AWS_SECRET_ACCESS_KEY set");
        };
        let mut headers: Vec<(String, String)> = common
            .header
            .iter()
            .filter_map(|header| header.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .filter(|(name, _)| name.starts_with("x-amz-"))
            .collect();
        headers.sort();
        Ok(Some(Self {
            access_key,
            secret_key,
            region: common.region.clone(),
            unsigned_payload: common.unsigned_payload,
            headers,
        }))
    }

    /// The header lines that make `method` on `path` (as it stands in the request) a signed request.
    pub(super) fn header_lines(
        &self,
        method: &str,
        host: &str,
        path: &str,
        payload: &str,
        now: SystemTime,
    ) -> String {
        let now = OffsetDateTime::from(now);
        let form = format_description!("[year][month][day]T[hour][minute][second]Z");
        // A clock that reads a year beyond four digits has worse problems than an unsigned request.
        let date = now.format(&form).unwrap_or_default();
        let day = &date[..date.len().min(8)];
        let mut headers = vec![
            ("host", host),
            ("x-amz-content-sha256", payload),
            ("x-amz-date", &date),
        ];
        headers.extend(self.headers.iter().map(|(name, value)| (&**name, &**value)));
        headers.sort_unstable();
        let (mut canonical, mut names) = (format!("{method}\n{path}\n\n"), String::new());
        for (name, value) in headers {
            canonical.push_str(&format!("{name}:{value}\n"));
            names.push_str(if names.is_empty() { "" } else { ";" });
            names.push_str(name);
        }
        canonical.push_str(&format!("\n{names}\n{payload}"));
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let hashed = sha256_hex(canonical.as_bytes());
        let text = format!("{ALGORITHM}\n{date}\n{scope}\n{hashed}");
        let mut key = format!("AWS4{}", self.secret_key).into_bytes();
        for part in [day, &self.region, "s3", "aws4_request", &text] {
            let secret = hmac::Key::new(hmac::HMAC_SHA256, &key);
            key = hmac::sign(&secret, part.as_bytes()).as_ref().to_vec();
        }
        format!(
            "x-amz-date: {date}\r\nx-amz-content-sha256: {payload}\r\nAuthorization: {ALGORITHM} \
             Credential={}/{scope}, SignedHeaders={names}, Signature={}\r\n",
            self.access_key,
            hex::encode(key)
        )
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// SHA-256 in hexadecimal of what comes in pieces.
pub(super) struct Sha256(digest::Context);

impl Sha256 {
    pub(super) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn hex(self) -> String {
        hex::encode(self.0.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_signature_is_the_one_that_botocore_makes() {
        // The key pair and the object of the S3 API reference's "Example: GET object", without the Range header that is signed
        // there; the signature is what botocore 1.44 (S3SigV4Auth) makes of the same request.
        let signer = Signer {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            region: "us-east-1".into(),
            unsigned_payload: false,
            headers: Vec::new(),
        };
        let time = UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        let lines = signer.header_lines(
            "GET",
            "examplebucket.s3.amazonaws.com",
            "/test.txt",
            EMPTY_PAYLOAD,
            time,
        );
        assert!(
            lines.contains("x-amz-date: 20130524T000000Z\r\n"),
            "{lines}"
        );
        assert!(
            lines.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date, "),
            "{lines}"
        );
        assert!(
            lines.ends_with(
                "Signature=df548e2ce037944d03f3e68682813b093763996d597cf890ca3d9037fd231eb4\r\n"
            ),
            "{lines}"
        );
        assert_eq!(sha256_hex(b""), EMPTY_PAYLOAD);
    }
}
