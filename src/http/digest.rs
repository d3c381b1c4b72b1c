//! Checksums that a client sends with a body, verified before the write is acknowledged.
//!
//! Pure. It knows `Content-MD5`, `x-amz-content-sha256` and `x-amz-checksum-*`, in headers or in
//! a trailer. A checksum that it cannot compute is refused, never ignored.

use super::head::Head;
use super::reply::ErrorReply;
use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use md5::{Digest as _, Md5};

/// A running checksum. Boxed, for their states are of very different size.
enum Hasher {
    Md5(Box<Md5>),
    Sha(Box<Context>),
    Crc(Box<crc_fast::Digest>, usize),
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Md5(md5) => md5.update(bytes),
            Hasher::Sha(context) => context.update(bytes),
            Hasher::Crc(digest, _) => digest.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Hasher::Md5(md5) => md5.finalize().to_vec(),
            Hasher::Sha(context) => context.finish().as_ref().to_vec(),
            Hasher::Crc(digest, width) => {
                let bytes = digest.finalize().to_be_bytes();
                bytes[bytes.len() - width..].to_vec()
            }
        }
    }
}

/// The hasher of an `x-amz-checksum-*` header.
fn checksum_hasher(name: &str) -> Option<Hasher> {
    let crc = |algorithm, width| Hasher::Crc(Box::new(crc_fast::Digest::new(algorithm)), width);
    Some(match name {
        "x-amz-checksum-crc32" => crc(CrcAlgorithm::Crc32IsoHdlc, 4),
        "x-amz-checksum-crc32c" => crc(CrcAlgorithm::Crc32Iscsi, 4),
        "x-amz-checksum-crc64nvme" => crc(CrcAlgorithm::Crc64Nvme, 8),
        "x-amz-checksum-sha1" => Hasher::Sha(Box::new(Context::new(&SHA1_FOR_LEGACY_USE_ONLY))),
        "x-amz-checksum-sha256" => Hasher::Sha(Box::new(Context::new(&SHA256))),
        _ => return None,
    })
}

/// Words after `x-amz-checksum-` that are not checksums.
const NOT_CHECKSUMS: [&str; 3] = [
    "x-amz-checksum-algorithm",
    "x-amz-checksum-mode",
    "x-amz-checksum-type",
];

struct Check {
    name: String,
    hasher: Hasher,
    /// `None` until the trailer has said it.
    expected: Option<Vec<u8>>,
    mismatch: &'static str,
}

/// The checksums that one body must match.
#[derive(Default)]
pub struct BodyChecks {
    checks: Vec<Check>,
}

impl BodyChecks {
    /// What the head announces, trailer included.
    pub fn of(head: &Head) -> Result<BodyChecks, ErrorReply> {
        let mut checks = BodyChecks::default();
        for (name, value) in &head.headers {
            let value = std::str::from_utf8(value).unwrap_or_default().trim();
            checks.add_header(name, value)?;
        }
        for name in head
            .values("x-amz-trailer")
            .flat_map(|names| names.split(','))
        {
            let name = name.trim().to_ascii_lowercase();
            let hasher = checksum_hasher(&name)
                .ok_or_else(|| ErrorReply::not_implemented(&format!("the trailer {name:?}")))?;
            checks.checks.push(Check {
                name,
                hasher,
                expected: None,
                mismatch: "BadDigest",
            });
        }
        Ok(checks)
    }

    fn add_header(&mut self, name: &str, value: &str) -> Result<(), ErrorReply> {
        let (hasher, expected, mismatch) = if name == "content-md5" {
            (
                Hasher::Md5(Box::new(Md5::new())),
                decode(value, 16),
                "BadDigest",
            )
        } else if name == "x-amz-content-sha256" {
            if value == "UNSIGNED-PAYLOAD" || value.starts_with("STREAMING-") {
                return Ok(());
            }
            let expected = hex::decode(value).ok().filter(|digest| digest.len() == 32);
            (
                Hasher::Sha(Box::new(Context::new(&SHA256))),
                expected,
                "XAmzContentSHA256Mismatch",
            )
        } else if name.starts_with("x-amz-checksum-") && !NOT_CHECKSUMS.contains(&name) {
            let hasher = checksum_hasher(name)
                .ok_or_else(|| ErrorReply::not_implemented(&format!("{name:?}")))?;
            let width = match &hasher {
                Hasher::Crc(_, width) => *width,
                Hasher::Sha(_) if name.ends_with("sha1") => 20,
                _ => 32,
            };
            (hasher, decode(value, width), "BadDigest")
        } else {
            return Ok(());
        };
        let expected = expected.ok_or_else(|| {
            ErrorReply::new(
                400,
                "InvalidDigest",
                format!("the {name} header is not a digest"),
            )
        })?;
        let name = name.to_owned();
        self.checks.push(Check {
            name,
            hasher,
            expected: Some(expected),
            mismatch,
        });
        Ok(())
    }

    /// Takes the next bytes of the (decoded) body.
    pub fn update(&mut self, bytes: &[u8]) {
        for check in &mut self.checks {
            check.hasher.update(bytes);
        }
    }

    /// Takes a line of the trailer.
    pub fn trailer(&mut self, name: &str, value: &str) -> Result<(), ErrorReply> {
        let bad = |what: &str| {
            Err(ErrorReply::new(
                400,
                "MalformedTrailerError",
                format!("the trailer {name:?} {what}"),
            ))
        };
        let Some(check) = self
            .checks
            .iter_mut()
            .find(|c| c.name == name && c.expected.is_none())
        else {
            return bad("was not announced in x-amz-trailer, or came twice");
        };
        match STANDARD.decode(value) {
            Ok(digest) => check.expected = Some(digest),
            Err(_) => return bad("is not base64"),
        }
        Ok(())
    }

    /// The body's MD5 in hexadecimal, if the client says it; it holds once all is verified.
    pub fn md5(&self) -> Option<String> {
        let check = self.checks.iter().find(|check| check.name == "content-md5");
        check?.expected.as_ref().map(hex::encode)
    }

    /// Compares everything; the body was complete.
    pub fn verify(self) -> Result<(), ErrorReply> {
        for check in self.checks {
            let Some(expected) = check.expected else {
                let message = format!("the trailer {:?} did not come", check.name);
                return Err(ErrorReply::new(400, "MalformedTrailerError", message));
            };
            if check.hasher.finish() != expected {
                let message = format!("the body does not match {}", check.name);
                return Err(ErrorReply::new(400, check.mismatch, message));
            }
        }
        Ok(())
    }

    /// Whether nothing is to be verified.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }
}

fn decode(value: &str, width: usize) -> Option<Vec<u8>> {
    STANDARD
        .decode(value)
        .ok()
        .filter(|digest| digest.len() == width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(headers: &str) -> Result<BodyChecks, ErrorReply> {
        let text = format!("PUT /v/k HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        BodyChecks::of(&super::super::head::parse(text.as_bytes()).expect("good"))
    }

    /// Published check values of "123456789", in base64 where S3 sends base64.
    const GOOD: [(&str, &str); 7] = [
        ("content-md5", "JfnnlDI7RTiF9RgfG2JNCw=="),
        ("x-amz-checksum-crc32", "y/Q5Jg=="),
        ("x-amz-checksum-crc32c", "4waSgw=="),
        ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
        ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE="),
        (
            "x-amz-checksum-sha256",
            "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
        ),
        (
            "x-amz-content-sha256",
            "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
        ),
    ];

    #[test]
    fn each_checksum_is_verified() {
        for (name, value) in GOOD {
            for (body, good) in [("123456789", true), ("123456780", false)] {
                let mut checks = checks(&format!("{name}: {value}\r\n")).expect("understood");
                checks.update(&body.as_bytes()[..4]);
                checks.update(&body.as_bytes()[4..]);
                assert_eq!(checks.verify().is_ok(), good, "{name} of {body}");
            }
        }
    }

    #[test]
    fn what_cannot_be_verified_is_refused() {
        assert_eq!(
            checks("content-md5: abc\r\n").err().map(|e| e.code),
            Some("InvalidDigest")
        );
        assert_eq!(
            checks("x-amz-checksum-md6: abc\r\n")
                .err()
                .map(|e| e.status),
            Some(501)
        );
        assert_eq!(
            checks("x-amz-trailer: x-something\r\n")
                .err()
                .map(|e| e.status),
            Some(501)
        );
        assert!(
            checks("x-amz-checksum-algorithm: CRC32\r\n")
                .expect("fine")
                .is_empty()
        );
    }

    #[test]
    fn trailers_count_once_and_must_come() {
        let headers = "x-amz-trailer: x-amz-checksum-crc32\r\n";
        let mut good = checks(headers).expect("understood");
        good.update(b"123456789");
        good.trailer("x-amz-checksum-crc32", "y/Q5Jg==")
            .expect("announced");
        assert!(good.trailer("x-amz-checksum-crc32", "y/Q5Jg==").is_err());
        assert!(good.verify().is_ok());
        let missing = checks(headers).expect("understood");
        assert_eq!(
            missing.verify().err().map(|e| e.code),
            Some("MalformedTrailerError")
        );
        assert!(
            checks("")
                .expect("none")
                .trailer("x-amz-checksum-crc32", "y/Q5Jg==")
                .is_err()
        );
    }
}
