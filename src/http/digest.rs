//! Checksums that a client sends with a body, verified before the write is acknowledged.
//!
//! Pure. It knows `Content-MD5`, `x-amz-content-sha256` and `x-amz-checksum-*`, in headers or in
//! a trailer. A checksum that it cannot compute is refused, never ignored. One of the last kind
//! belongs to the object from then on.

use super::head::Head;
use super::reply::ErrorReply;
use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use forebay_io::store::CHECKSUM_PREFIX;
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

/// A checksum that an object may have.
struct Algorithm {
    /// Its name behind [`CHECKSUM_PREFIX`].
    suffix: &'static str,
    /// Its name in other headers.
    word: &'static str,
    /// Bytes of it.
    width: usize,
    hasher: fn(usize) -> Hasher,
}

const ALGORITHMS: [Algorithm; 5] = [
    Algorithm {
        suffix: "crc32",
        word: "CRC32",
        width: 4,
        hasher: |width| crc(CrcAlgorithm::Crc32IsoHdlc, width),
    },
    Algorithm {
        suffix: "crc32c",
        word: "CRC32C",
        width: 4,
        hasher: |width| crc(CrcAlgorithm::Crc32Iscsi, width),
    },
    Algorithm {
        suffix: "crc64nvme",
        word: "CRC64NVME",
        width: 8,
        hasher: |width| crc(CrcAlgorithm::Crc64Nvme, width),
    },
    Algorithm {
        suffix: "sha1",
        word: "SHA1",
        width: 20,
        hasher: |_| Hasher::Sha(Box::new(Context::new(&SHA1_FOR_LEGACY_USE_ONLY))),
    },
    Algorithm {
        suffix: "sha256",
        word: "SHA256",
        width: 32,
        hasher: |_| Hasher::Sha(Box::new(Context::new(&SHA256))),
    },
];

fn crc(algorithm: CrcAlgorithm, width: usize) -> Hasher {
    Hasher::Crc(Box::new(crc_fast::Digest::new(algorithm)), width)
}

/// The algorithm of an `x-amz-checksum-*` header.
fn algorithm(name: &str) -> Option<&'static Algorithm> {
    let suffix = name.strip_prefix(CHECKSUM_PREFIX)?;
    ALGORITHMS.iter().find(|known| known.suffix == suffix)
}

/// Words after `x-amz-checksum-` that are not checksums.
const NOT_CHECKSUMS: [&str; 3] = [
    "x-amz-checksum-algorithm",
    "x-amz-checksum-mode",
    "x-amz-checksum-type",
];

/// Names the algorithm of the checksum that comes, by the will of Amazon's SDKs.
const SDK_ALGORITHM: &str = "x-amz-sdk-checksum-algorithm";

/// An object's checksum: the name and value of its header.
pub type ObjectChecksum = (String, String);

/// The checksum header of an object of which only the CRC64-NVME is known, which S3 gives to those that
/// come without a checksum.
pub fn crc64nvme_header(crc64nvme: u64) -> ObjectChecksum {
    let name = format!("{CHECKSUM_PREFIX}crc64nvme");
    (name, STANDARD.encode(crc64nvme.to_be_bytes()))
}

/// Whether a word names an algorithm, as S3 has them.
pub fn is_algorithm(word: &str) -> bool {
    let mut known = ALGORITHMS.iter();
    known.any(|known| known.word.eq_ignore_ascii_case(word))
}

/// The checksum of the checksums of an object's parts, as S3 tells it of an object that came in parts;
/// `None` if one of them is none.
pub fn composite(name: &str, parts: &[(&str, u64)]) -> Option<String> {
    let algorithm = algorithm(name)?;
    let mut hasher = (algorithm.hasher)(algorithm.width);
    for (checksum, _) in parts {
        let digest = STANDARD.decode(checksum).ok();
        hasher.update(&digest.filter(|digest| digest.len() == algorithm.width)?);
    }
    Some(format!(
        "{}-{}",
        STANDARD.encode(hasher.finish()),
        parts.len()
    ))
}

/// The checksum of an object whose parts have these, and so many bytes each; `None` if it cannot be told
/// from them.
pub fn joined(name: &str, parts: &[(&str, u64)]) -> Option<String> {
    let algorithm = algorithm(name)?;
    let crc = match algorithm.suffix {
        "crc32" => CrcAlgorithm::Crc32IsoHdlc,
        "crc32c" => CrcAlgorithm::Crc32Iscsi,
        "crc64nvme" => CrcAlgorithm::Crc64Nvme,
        _ => return None,
    };
    let mut sum = None;
    for (checksum, bytes) in parts {
        let digest = STANDARD.decode(checksum).ok();
        let digest = digest.filter(|digest| digest.len() == algorithm.width)?;
        let value = digest
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        sum = Some(match sum {
            None => value,
            Some(sum) => crc_fast::checksum_combine(crc, sum, value, *bytes),
        });
    }
    let bytes = sum?.to_be_bytes();
    Some(STANDARD.encode(&bytes[bytes.len() - algorithm.width..]))
}

/// What a checksum is of, and so what a wrong one means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `Content-MD5`.
    Md5,
    /// What was signed.
    Payload,
    /// What the object has, in the head or behind the body.
    Object { trailing: bool },
}

struct Check {
    name: String,
    role: Role,
    hasher: Hasher,
    /// Bytes of it.
    width: usize,
    /// `None` until the trailer has said it.
    expected: Option<Vec<u8>>,
}

/// The checksums that one body must match.
#[derive(Default)]
pub struct BodyChecks {
    checks: Vec<Check>,
}

/// What a body turned out to be, all of its checksums holding.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// What the object has from now on, if the client gave it one.
    pub checksum: Option<ObjectChecksum>,
    /// Its MD5 in hexadecimal, where the client told it and it was not taken out.
    pub md5: Option<String>,
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
            checks.add_trailer(&name.trim().to_ascii_lowercase())?;
        }
        checks.check_words(head)?;
        Ok(checks)
    }

    fn add_header(&mut self, name: &str, value: &str) -> Result<(), ErrorReply> {
        let (role, hasher, width, expected) = if name == "content-md5" {
            let hasher = Hasher::Md5(Box::new(Md5::new()));
            (Role::Md5, hasher, 16, STANDARD.decode(value).ok())
        } else if name == "x-amz-content-sha256" {
            if value == "UNSIGNED-PAYLOAD" || value.starts_with("STREAMING-") {
                return Ok(());
            }
            let hasher = Hasher::Sha(Box::new(Context::new(&SHA256)));
            (Role::Payload, hasher, 32, hex::decode(value).ok())
        } else if name.starts_with(CHECKSUM_PREFIX) && !NOT_CHECKSUMS.contains(&name) {
            let algorithm =
                algorithm(name).ok_or_else(|| ErrorReply::not_implemented(&format!("{name:?}")))?;
            let hasher = (algorithm.hasher)(algorithm.width);
            let role = Role::Object { trailing: false };
            (role, hasher, algorithm.width, STANDARD.decode(value).ok())
        } else {
            return Ok(());
        };
        let Some(expected) = expected.filter(|digest| digest.len() == width) else {
            let code = match role {
                Role::Object { .. } => "InvalidRequest",
                Role::Md5 | Role::Payload => "InvalidDigest",
            };
            let message = format!("the value of the header {name} is no such checksum");
            return Err(ErrorReply::new(400, code, message));
        };
        self.add(Check {
            name: name.to_owned(),
            role,
            hasher,
            width,
            expected: Some(expected),
        })
    }

    fn add_trailer(&mut self, name: &str) -> Result<(), ErrorReply> {
        let Some(algorithm) = algorithm(name) else {
            if name.starts_with(CHECKSUM_PREFIX) {
                return Err(ErrorReply::not_implemented(&format!(
                    "the trailer {name:?}"
                )));
            }
            let message = format!("x-amz-trailer takes the name of a checksum, not {name:?}");
            return Err(invalid(message));
        };
        self.add(Check {
            name: name.to_owned(),
            role: Role::Object { trailing: true },
            hasher: (algorithm.hasher)(algorithm.width),
            width: algorithm.width,
            expected: None,
        })
    }

    fn add(&mut self, check: Check) -> Result<(), ErrorReply> {
        let is_objects = |check: &Check| matches!(check.role, Role::Object { .. });
        if is_objects(&check) && self.checks.iter().any(is_objects) {
            let message = "an object has one checksum: send a single x-amz-checksum-* header or \
                           trailer";
            return Err(invalid(message.to_owned()));
        }
        self.checks.push(check);
        Ok(())
    }

    /// What is said of the checksum elsewhere must be true of the one that comes.
    fn check_words(&self, head: &Head) -> Result<(), ErrorReply> {
        if let Some(kind) = head.header("x-amz-checksum-type")
            && !kind.eq_ignore_ascii_case("FULL_OBJECT")
        {
            let message = "an object that comes whole has a checksum of the type FULL_OBJECT";
            return Err(invalid(message.to_owned()));
        }
        let Some(word) = head.header(SDK_ALGORITHM) else {
            return Ok(());
        };
        let named = ALGORITHMS
            .iter()
            .find(|known| known.word.eq_ignore_ascii_case(word.trim()))
            .ok_or_else(|| {
                let words = ALGORITHMS.map(|known| known.word).join(", ");
                invalid(format!("{SDK_ALGORITHM} must be one of {words}"))
            })?;
        let sent = self.checks.iter().find_map(|check| algorithm(&check.name));
        match sent {
            Some(sent) if sent.word == named.word => Ok(()),
            Some(_) => Err(invalid(format!(
                "{SDK_ALGORITHM} names another algorithm than the checksum that comes"
            ))),
            None => Err(invalid(format!(
                "{SDK_ALGORITHM} announces a checksum, and no x-amz-checksum-* header or x-amz-trailer has it"
            ))),
        }
    }

    /// Takes the next bytes of the (decoded) body.
    pub fn update(&mut self, bytes: &[u8]) {
        for check in &mut self.checks {
            check.hasher.update(bytes);
        }
    }

    /// Takes out the MD5 that the client told, before the first byte: somebody else computes it, and
    /// compares it with [`check_md5`].
    pub fn take_md5(&mut self) -> Option<Vec<u8>> {
        let place = self
            .checks
            .iter()
            .position(|check| check.role == Role::Md5)?;
        self.checks.remove(place).expected
    }

    /// Takes a line of the trailer.
    pub fn trailer(&mut self, name: &str, value: &str) -> Result<(), ErrorReply> {
        let Some(check) = self
            .checks
            .iter_mut()
            .find(|c| c.name == name && c.expected.is_none())
        else {
            let message =
                format!("the trailer {name:?} was not announced in x-amz-trailer, or came twice");
            return Err(ErrorReply::new(400, "MalformedTrailerError", message));
        };
        match STANDARD.decode(value).ok() {
            Some(digest) if digest.len() == check.width => check.expected = Some(digest),
            _ => {
                let message = format!("the value of the trailer {name} is no such checksum");
                return Err(invalid(message));
            }
        }
        Ok(())
    }

    /// Compares everything; the body was complete.
    pub fn verify(self) -> Result<Verified, ErrorReply> {
        let mut verified = Verified::default();
        for check in self.checks {
            let Some(expected) = check.expected else {
                let message = format!("the trailer {:?} did not come", check.name);
                return Err(ErrorReply::new(400, "MalformedTrailerError", message));
            };
            let found = check.hasher.finish();
            if found != expected {
                return Err(mismatch(check.role, &check.name, &expected, &found));
            }
            match check.role {
                Role::Object { .. } => {
                    verified.checksum = Some((check.name, STANDARD.encode(expected)));
                }
                Role::Md5 => verified.md5 = Some(hex::encode(expected)),
                Role::Payload => {}
            }
        }
        Ok(verified)
    }

    /// The object's checksum, where the head has it: it holds once all is verified.
    pub fn announced(&self) -> Option<ObjectChecksum> {
        let check = self
            .checks
            .iter()
            .find(|check| check.role == Role::Object { trailing: false })?;
        let expected = check.expected.as_ref()?;
        Some((check.name.clone(), STANDARD.encode(expected)))
    }

    /// Whether nothing is to be verified.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    /// Whether the client gives the object a checksum.
    pub fn has_object_checksum(&self) -> bool {
        self.checks
            .iter()
            .any(|check| matches!(check.role, Role::Object { .. }))
    }
}

/// Compares a body's MD5 with the one that the client told.
pub fn check_md5(told: &[u8], found: &[u8]) -> Result<(), ErrorReply> {
    match told == found {
        true => Ok(()),
        false => Err(mismatch(Role::Md5, "content-md5", told, found)),
    }
}

fn mismatch(role: Role, name: &str, expected: &[u8], found: &[u8]) -> ErrorReply {
    let message = format!("the body does not match {name}");
    match role {
        Role::Md5 => ErrorReply::new(400, "BadDigest", message)
            .detail("ExpectedDigest", STANDARD.encode(expected))
            .detail("CalculatedDigest", STANDARD.encode(found)),
        Role::Object { .. } => ErrorReply::new(400, "BadDigest", message),
        Role::Payload => ErrorReply::new(400, "XAmzContentSHA256Mismatch", message)
            .detail("ClientComputedContentSHA256", hex::encode(expected))
            .detail("S3ComputedContentSHA256", hex::encode(found)),
    }
}

fn invalid(message: String) -> ErrorReply {
    ErrorReply::new(400, "InvalidRequest", message)
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
                let announced = checks.announced();
                let kept = name.starts_with(CHECKSUM_PREFIX);
                assert_eq!(announced.is_some(), kept);
                match checks.verify() {
                    Ok(found) => assert!(good && found.checksum == announced, "{name} of {body}"),
                    Err(error) => {
                        let code = match name {
                            "x-amz-content-sha256" => "XAmzContentSHA256Mismatch",
                            _ => "BadDigest",
                        };
                        assert_eq!((error.code, good), (code, false), "{name} of {body}");
                    }
                }
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
        for (headers, status) in [
            ("x-amz-trailer: x-something\r\n", 400),
            ("x-amz-trailer: x-amz-checksum-md6\r\n", 501),
            ("x-amz-trailer: \r\n", 400),
            ("x-amz-trailer: x-amz-checksum-crc32,\r\n", 400),
            ("x-amz-checksum-crc32: 4waSgwaa\r\n", 400),
            ("x-amz-checksum-crc32: 4waSgw\r\n", 400),
            ("x-amz-checksum-crc32:\r\n", 400),
            ("x-amz-checksum-type: COMPOSITE\r\n", 400),
        ] {
            let refused = checks(headers).err().map(|error| error.status);
            assert_eq!(refused, Some(status), "{headers}");
        }
        assert!(
            checks("x-amz-checksum-algorithm: CRC32\r\n")
                .expect("fine")
                .is_empty()
        );
    }

    #[test]
    fn an_object_has_one_checksum_and_it_is_the_one_that_was_named() {
        let crc32 = "x-amz-checksum-crc32: y/Q5Jg==\r\n";
        let crc32c = "x-amz-checksum-crc32c: 4waSgw==\r\n";
        let trailing = "x-amz-trailer: x-amz-checksum-crc32c\r\n";
        let word = |word: &str| format!("x-amz-sdk-checksum-algorithm: {word}\r\n");
        for (headers, good) in [
            (format!("{crc32}{crc32c}"), false),
            (format!("{crc32}{crc32}"), false),
            (format!("{crc32}{trailing}"), false),
            (format!("{trailing}{trailing}"), false),
            (
                "x-amz-trailer: x-amz-checksum-crc32, x-amz-checksum-crc32c\r\n".to_owned(),
                false,
            ),
            (format!("{crc32}{}", word("CRC32")), true),
            (format!("{trailing}{}", word("crc32c")), true),
            (format!("{crc32}{}", word("CRC32C")), false),
            (format!("{crc32}{}", word("MD6")), false),
            (word("CRC32"), false),
            (
                format!("{crc32}content-md5: JfnnlDI7RTiF9RgfG2JNCw==\r\n"),
                true,
            ),
            (format!("{crc32}x-amz-checksum-type: FULL_OBJECT\r\n"), true),
        ] {
            match checks(&headers) {
                Ok(_) => assert!(good, "{headers}"),
                Err(error) => assert_eq!((error.code, good), ("InvalidRequest", false)),
            }
        }
        assert_eq!(
            crc64nvme_header(0xae8b_1486_0a79_9888),
            (
                "x-amz-checksum-crc64nvme".to_owned(),
                "rosUhgp5mIg=".to_owned()
            )
        );
    }

    #[test]
    fn an_md5_that_was_taken_out_is_compared_elsewhere() {
        let sent = "content-md5: JfnnlDI7RTiF9RgfG2JNCw==\r\n";
        let mut checks = super::BodyChecks::default();
        assert_eq!(checks.take_md5(), None);
        let mut checks = self::checks(sent).expect("understood");
        let told = checks.take_md5().expect("sent");
        checks.update(b"anything");
        assert_eq!(checks.verify().expect("nothing to match").md5, None);
        assert!(check_md5(&told, &Md5::digest(b"123456789")).is_ok());
        let refused = check_md5(&told, &Md5::digest(b"anything"));
        assert_eq!(refused.err().map(|e| e.code), Some("BadDigest"));
        let mut checks = self::checks(sent).expect("understood");
        checks.update(b"123456789");
        let told = checks.verify().expect("matches").md5;
        assert_eq!(told.as_deref(), Some("25f9e794323b453885f5181f1b624d0b"));
    }

    #[test]
    fn trailers_count_once_and_must_come() {
        let headers = "x-amz-trailer: x-amz-checksum-crc32\r\n";
        let mut good = checks(headers).expect("understood");
        good.update(b"123456789");
        good.trailer("x-amz-checksum-crc32", "y/Q5Jg==")
            .expect("announced");
        assert!(good.trailer("x-amz-checksum-crc32", "y/Q5Jg==").is_err());
        let kept = good.verify().expect("matches").checksum;
        let crc32 = ("x-amz-checksum-crc32".to_owned(), "y/Q5Jg==".to_owned());
        assert_eq!(kept, Some(crc32));
        let mut odd = checks(headers).expect("understood");
        for value in ["", "y/Q5Jg", "y/Q5JgAA", "?"] {
            let refused = odd.trailer("x-amz-checksum-crc32", value);
            assert_eq!(refused.err().map(|e| e.code), Some("InvalidRequest"));
        }
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
