//! AWS Signature Version 4: owns the check of a request's signature, in its headers or in its query. Signs nothing and
//! reads no body; what the signature promises about the body is handed back to be checked.
//!
//! As strict as S3: every `x-amz-*` header and `host` must be signed, times are held to 15 minutes of skew, a presigned
//! URL ends when it says so. The path is canonicalised from its decoded form, so a client that encodes it in its own way
//! must still sign the one canonical spelling.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, hmac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use time::PrimitiveDateTime;
use time::macros::format_description;

use crate::stub::StubOptions;
use crate::stub::error::S3Error;
use crate::stub::request::Request;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// How far a client's clock may be off: the limit that S3 applies.
const SKEW_MAX: Duration = Duration::from_secs(15 * 60);

/// Longest life of a presigned URL: seven days, as in S3.
const EXPIRES_S_MAX: u64 = 7 * 24 * 3600;

/// What SigV4 leaves bare in a query; everything else is percent-encoded.
const QUERY_SET: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
const PATH_SET: &AsciiSet = &QUERY_SET.remove(b'/');

/// What the signature says about the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    /// Nothing.
    Unsigned,
    /// Its SHA-256, in hexadecimal.
    Sha256(String),
}

/// The parts of a signature, wherever it stood.
struct Claim<'a> {
    credential: Cow<'a, str>,
    signed_headers: Cow<'a, str>,
    signature: Cow<'a, str>,
    date: &'a str,
    presigned: bool,
    payload: &'a str,
}

/// Checks the signature of a request; refusals are those of S3.
pub(super) fn verify(
    request: &Request,
    options: &StubOptions,
    now: SystemTime,
) -> Result<Payload, S3Error> {
    let claim = match (
        request.headers.get("authorization"),
        request.parameter("X-Amz-Algorithm"),
    ) {
        (Some(_), Some(_)) => {
            return Err(S3Error::new("InvalidArgument").because("Only one auth mechanism allowed"));
        }
        (Some(authorization), None) => header_claim(request, authorization)?,
        (None, Some(algorithm)) => query_claim(request, algorithm)?,
        (None, None) => return Err(S3Error::new("AccessDenied")),
    };
    let signed_at = parse_date(claim.date)?;
    let scope = check_credential(&claim, options)?;
    check_time(request, &claim, signed_at, now)?;
    check_signed_headers(request, &claim)?;
    let canonical = canonical_request(request, &claim);
    let text = format!(
        "{ALGORITHM}\n{}\n{scope}\n{}",
        claim.date,
        sha256_hex(canonical.as_bytes())
    );
    let key = signing_key(&options.secret_key, &scope);
    if hex::encode(sign(&key, text.as_bytes())) != claim.signature {
        return Err(S3Error::new("SignatureDoesNotMatch"));
    }
    match claim.payload {
        UNSIGNED_PAYLOAD => Ok(Payload::Unsigned),
        streaming if streaming.starts_with("STREAMING-") => Err(S3Error::new("NotImplemented")
            .because("x-amz-content-sha256: the stub takes no aws-chunked bodies")),
        hash => Ok(Payload::Sha256(hash.to_owned())),
    }
}

fn header_claim<'a>(request: &'a Request, authorization: &'a str) -> Result<Claim<'a>, S3Error> {
    let malformed =
        |what: &str| S3Error::new("InvalidArgument").because(format!("Authorization: {what}"));
    let fields = authorization
        .strip_prefix(ALGORITHM)
        .ok_or_else(|| malformed("expected AWS4-HMAC-SHA256"))?;
    let field = |name: &str| {
        let mut fields = fields
            .split(',')
            .filter_map(|field| field.trim().split_once('='));
        fields
            .find(|(field, _)| *field == name)
            .map(|(_, value)| value)
    };
    let payload = request.headers.get("x-amz-content-sha256");
    Ok(Claim {
        credential: field("Credential")
            .ok_or_else(|| malformed("no Credential"))?
            .into(),
        signed_headers: field("SignedHeaders")
            .ok_or_else(|| malformed("no SignedHeaders"))?
            .into(),
        signature: field("Signature")
            .ok_or_else(|| malformed("no Signature"))?
            .into(),
        date: request.headers.get("x-amz-date").ok_or_else(|| {
            S3Error::new("AccessDenied").because("a signed request needs an x-amz-date header")
        })?,
        presigned: false,
        payload: payload.ok_or_else(|| {
            S3Error::new("InvalidRequest")
                .because("Missing required header for this request: x-amz-content-sha256")
        })?,
    })
}

fn query_claim<'a>(request: &'a Request, algorithm: &str) -> Result<Claim<'a>, S3Error> {
    let malformed =
        |what: &str| S3Error::new("InvalidArgument").because(format!("query signature: {what}"));
    if algorithm != ALGORITHM {
        return Err(malformed("X-Amz-Algorithm must be AWS4-HMAC-SHA256"));
    }
    let parameter = |name: &str| {
        request
            .parameter(name)
            .ok_or_else(|| malformed(&format!("no {name}")))
    };
    Ok(Claim {
        credential: parameter("X-Amz-Credential")?.into(),
        signed_headers: parameter("X-Amz-SignedHeaders")?.into(),
        signature: parameter("X-Amz-Signature")?.into(),
        date: parameter("X-Amz-Date")?,
        presigned: true,
        payload: request
            .headers
            .get("x-amz-content-sha256")
            .unwrap_or(UNSIGNED_PAYLOAD),
    })
}

fn parse_date(text: &str) -> Result<SystemTime, S3Error> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let date = PrimitiveDateTime::parse(text, &format);
    date.map(|date| date.assume_utc().into()).map_err(|_| {
        S3Error::new("AccessDenied")
            .because(format!("date {text:?} is not of the form YYYYMMDDTHHMMSSZ"))
    })
}

/// Checks access key and scope, and returns the scope.
fn check_credential(claim: &Claim<'_>, options: &StubOptions) -> Result<String, S3Error> {
    let (access_key, scope) = claim
        .credential
        .split_once('/')
        .ok_or_else(|| S3Error::new("InvalidArgument").because("Credential has no scope"))?;
    if access_key != options.access_key {
        return Err(S3Error::new("InvalidAccessKeyId"));
    }
    let day = claim.date.get(..8).unwrap_or_default();
    let expected = format!("{day}/{}/s3/aws4_request", options.region);
    if scope != expected {
        let message = format!("credential scope is {scope:?}, expected {expected:?}");
        return Err(S3Error::new("SignatureDoesNotMatch").because(message));
    }
    Ok(expected)
}

fn check_time(
    request: &Request,
    claim: &Claim<'_>,
    signed_at: SystemTime,
    now: SystemTime,
) -> Result<(), S3Error> {
    if !claim.presigned {
        let skew = now
            .duration_since(signed_at)
            .unwrap_or_else(|error| error.duration());
        return if skew > SKEW_MAX {
            Err(S3Error::new("RequestTimeTooSkewed"))
        } else {
            Ok(())
        };
    }
    let expires_s = request
        .parameter("X-Amz-Expires")
        .and_then(|text| text.parse().ok());
    let Some(expires_s @ 1..=EXPIRES_S_MAX) = expires_s else {
        let message = format!("X-Amz-Expires must be between 1 and {EXPIRES_S_MAX}");
        return Err(S3Error::new("InvalidArgument").because(message));
    };
    if signed_at > now + SKEW_MAX {
        return Err(S3Error::new("AccessDenied").because("Request is not yet valid"));
    }
    if now > signed_at + Duration::from_secs(expires_s) {
        return Err(S3Error::new("AccessDenied").because("Request has expired"));
    }
    Ok(())
}

fn check_signed_headers(request: &Request, claim: &Claim<'_>) -> Result<(), S3Error> {
    let signed: Vec<&str> = claim.signed_headers.split(';').collect();
    if !signed.contains(&"host") {
        return Err(S3Error::new("AccessDenied").because("the host header must be signed"));
    }
    let must_be_signed =
        |name: &str| name.starts_with("x-amz-") || (name == "content-md5" && !claim.presigned);
    let unsigned = request
        .headers
        .0
        .iter()
        .find(|(name, _)| must_be_signed(name) && !signed.contains(&name.as_str()));
    match unsigned {
        Some((name, _)) => {
            let message =
                format!("There were headers present in the request which were not signed: {name}");
            Err(S3Error::new("AccessDenied").because(message))
        }
        None => Ok(()),
    }
}

fn canonical_request(request: &Request, claim: &Claim<'_>) -> String {
    let path: Cow<'_, [u8]> = percent_decode_str(&request.path).into();
    let path = percent_encoding::percent_encode(&path, PATH_SET);
    let encode = |text: &str| utf8_percent_encode(text, QUERY_SET).to_string();
    let parameters = request
        .query
        .iter()
        .filter(|(name, _)| !claim.presigned || name != "X-Amz-Signature");
    let mut query: Vec<(String, String)> = parameters
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    query.sort();
    let query: Vec<String> = query
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut headers = String::new();
    for name in claim.signed_headers.split(';') {
        // A signed header that is absent counts as empty, and so makes the signature wrong unless the signer agreed.
        let values: Vec<String> = request.headers.all(name).map(collapse_spaces).collect();
        headers.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    let (query, signed) = (query.join("&"), &claim.signed_headers);
    format!(
        "{}\n{path}\n{query}\n{headers}\n{signed}\n{}",
        request.method, claim.payload
    )
}

fn collapse_spaces(value: &str) -> String {
    value
        .split(' ')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The key that signs within `scope` (`day/region/service/aws4_request`): one HMAC for each part.
fn signing_key(secret: &str, scope: &str) -> Vec<u8> {
    let start = format!("AWS4{secret}").into_bytes();
    scope
        .split('/')
        .fold(start, |key, part| sign(&key, part.as_bytes()))
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text)
        .as_ref()
        .to_vec()
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The GET example of Amazon's own description of header signing, with its published signature.
    const EXAMPLE: &str = "GET /test.txt HTTP/1.1\r\nHost: examplebucket.s3.amazonaws.com\r\nRange: bytes=0-9\r\n\
        x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\r\n\
        x-amz-date: 20130524T000000Z\r\n\
        Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
        SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
        Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41\r\n\r\n";

    fn options() -> StubOptions {
        StubOptions {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            ..StubOptions::default()
        }
    }

    fn check(head: &str, minutes_late: i64) -> Result<Payload, String> {
        let (request, _) = Request::parse(head.as_bytes()).unwrap().unwrap();
        let signed_at = parse_date("20130524T000000Z").unwrap();
        let offset = Duration::from_secs(minutes_late.unsigned_abs() * 60);
        let now = if minutes_late < 0 {
            signed_at - offset
        } else {
            signed_at + offset
        };
        verify(&request, &options(), now).map_err(|error| error.code)
    }

    #[test]
    fn the_published_example_verifies() {
        let payload = check(EXAMPLE, 1);
        assert_eq!(payload, Ok(Payload::Sha256(sha256_hex(b""))));
    }

    #[test]
    fn what_was_signed_cannot_change() {
        for (from, to) in [
            ("/test.txt", "/test.tx"),
            ("bytes=0-9", "bytes=0-8"),
            ("examplebucket.s3", "otherbucket.s3"),
            ("=f0e8", "=f0e9"),
            ("/us-east-1/", "/us-west-1/"),
            ("GET ", "PUT "),
            ("test.txt ", "test.txt?acl "),
        ] {
            let changed = EXAMPLE.replace(from, to);
            assert_ne!(changed, EXAMPLE);
            assert_eq!(
                check(&changed, 0),
                Err("SignatureDoesNotMatch".into()),
                "{from} -> {to}"
            );
        }
        assert_eq!(
            check(&EXAMPLE.replace("AKIA", "BKIA"), 0),
            Err("InvalidAccessKeyId".into())
        );
        assert_eq!(
            check(&EXAMPLE.replace("Range:", "x-amz-acl: a\r\nRange:"), 0),
            Err("AccessDenied".into())
        );
    }

    #[test]
    fn a_clock_may_be_off_by_fifteen_minutes() {
        for minutes in [-15, 15] {
            assert!(check(EXAMPLE, minutes).is_ok(), "{minutes} minutes");
        }
        for minutes in [-16, 16] {
            assert_eq!(
                check(EXAMPLE, minutes),
                Err("RequestTimeTooSkewed".into()),
                "{minutes} minutes"
            );
        }
    }
}
