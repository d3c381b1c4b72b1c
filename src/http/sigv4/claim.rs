//! Reading what a request says about its signature. Pure; it verifies nothing.
//!
//! A claim that leaves out what must be signed, says a thing twice or contradicts itself is refused
//! here, in S3's words where it has any.

use super::{
    ALGORITHM, Claim, QUERY_PARAMETERS, SERVICE, SIGNED_CHUNKS, SIGNED_CHUNKS_AND_TRAILER, Scope,
    TERMINATOR, UNSIGNED_ENVELOPE, UNSIGNED_PAYLOAD, date,
};
use crate::http::head::Head;
use crate::http::limits::PRESIGNED_SECONDS_MAX;
use crate::http::reply::ErrorReply;

/// Words in the place of a body's hash. Those with signatures of another kind are known, so that a PUT
/// can say that it does not take them.
const PAYLOAD_WORDS: [&str; 6] = [
    UNSIGNED_PAYLOAD,
    UNSIGNED_ENVELOPE,
    SIGNED_CHUNKS,
    SIGNED_CHUNKS_AND_TRAILER,
    "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD",
    "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER",
];

/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Reads a request's claim; `None` where it makes none.
pub fn read(head: &Head, query: &[(String, String)]) -> Result<Option<Claim>, ErrorReply> {
    let presigned = query
        .iter()
        .any(|(name, _)| QUERY_PARAMETERS.contains(&name.as_str()));
    let mut authorizations = head.headers.iter().filter(|(n, _)| n == "authorization");
    let claim = match (authorizations.next(), presigned) {
        (Some(_), true) => {
            let message = "only one of the Authorization header and X-Amz-* parameters is allowed";
            return Err(ErrorReply::new(400, "InvalidArgument", message));
        }
        (Some((_, value)), false) if value.starts_with(b"AWS") => {
            let text = std::str::from_utf8(value).map_err(|_| bad_header("it is not text"))?;
            from_header(head, text)?
        }
        (None, true) => from_query(head, query)?,
        (None, false) if query.iter().any(|(name, _)| name == "AWSAccessKeyId") => {
            return Err(unsupported());
        }
        _ => return Ok(None),
    };
    check_coverage(head, &claim)?;
    Ok(Some(claim))
}

/// A header that may stand there once, if it is there.
fn single<'a>(head: &'a Head, name: &str) -> Result<Option<&'a str>, ErrorReply> {
    let mut found = head.headers.iter().filter(|(n, _)| n == name);
    let (first, second) = (found.next(), found.next());
    let Some((_, value)) = first else {
        return Ok(None);
    };
    match std::str::from_utf8(value) {
        Ok(text) if second.is_none() => Ok(Some(text.trim())),
        _ => {
            let message = format!("the header {name} must stand there once, as text");
            Err(ErrorReply::new(400, "InvalidArgument", message))
        }
    }
}

fn unsupported() -> ErrorReply {
    let message = format!("this way of signing is not supported; use {ALGORITHM}");
    ErrorReply::new(400, "InvalidRequest", message)
}

fn bad_header(what: &str) -> ErrorReply {
    let message = format!("the Authorization header is malformed: {what}");
    ErrorReply::new(400, "AuthorizationHeaderMalformed", message)
}

fn bad_query(what: &str) -> ErrorReply {
    ErrorReply::new(400, "AuthorizationQueryParametersError", what)
}

fn bad_token() -> ErrorReply {
    let message = "the keys of a volume have no session token; leave it out";
    ErrorReply::new(400, "InvalidToken", message)
}

fn from_header(head: &Head, value: &str) -> Result<Claim, ErrorReply> {
    let (algorithm, fields) = value.split_once(' ').unwrap_or((value, ""));
    if algorithm != ALGORITHM {
        return Err(unsupported());
    }
    let [credential, signed_headers, signature] = header_fields(fields)?;
    if head.has("x-amz-security-token") {
        return Err(bad_token());
    }
    let Some(payload) = single(head, "x-amz-content-sha256")? else {
        let message = "Missing required header for this request: x-amz-content-sha256";
        return Err(ErrorReply::new(400, "InvalidRequest", message));
    };
    check_payload(payload)?;
    let (timestamp, signed_at) = header_time(head)?;
    let (access_key, scope) =
        parse_credential(credential, &timestamp).map_err(|what| bad_header(&what))?;
    Ok(Claim {
        access_key,
        scope,
        signed_headers: parse_signed_headers(signed_headers).map_err(bad_header)?,
        signature: signature.to_owned(),
        timestamp,
        signed_at,
        payload: payload.to_owned(),
        lifetime_seconds: None,
    })
}

/// `Credential`, `SignedHeaders` and `Signature`, each once, in any order.
fn header_fields(fields: &str) -> Result<[&str; 3], ErrorReply> {
    let names = ["Credential", "SignedHeaders", "Signature"];
    let mut found = [""; 3];
    for field in fields.split(',') {
        let (name, value) = field.trim().split_once('=').unwrap_or((field.trim(), ""));
        let Some(number) = names.iter().position(|known| *known == name) else {
            return Err(bad_header(
                "it takes Credential, SignedHeaders and Signature only",
            ));
        };
        if !found[number].is_empty() {
            return Err(bad_header(&format!("{name} stands there twice")));
        }
        found[number] = value;
    }
    match found.iter().position(|value| value.is_empty()) {
        Some(missing) => Err(bad_header(&format!("{} is missing", names[missing]))),
        None => Ok(found),
    }
}

/// When a header was signed: `x-amz-date`, else `Date`.
fn header_time(head: &Head) -> Result<(String, i64), ErrorReply> {
    let seconds = match single(head, "x-amz-date")? {
        Some(text) => date::parse_basic(text),
        None => single(head, "date")?.and_then(date::parse_header),
    };
    let time = seconds.and_then(|seconds| Some((date::basic(seconds)?, seconds)));
    time.ok_or_else(|| {
        ErrorReply::denied("a signature needs x-amz-date (YYYYMMDDTHHMMSSZ) or a valid Date header")
    })
}

fn from_query(head: &Head, query: &[(String, String)]) -> Result<Claim, ErrorReply> {
    let get = |wanted: &str| {
        let mut values = query.iter().filter(|(name, _)| name == wanted);
        match (values.next(), values.next()) {
            (Some((_, value)), None) if !value.is_empty() => Ok(value.as_str()),
            (Some(_), None) => Err(bad_query(&format!("{wanted} is empty"))),
            (Some(_), Some(_)) => Err(bad_query(&format!("{wanted} stands there twice"))),
            (None, _) => Err(bad_query(&format!("{wanted} is missing"))),
        }
    };
    if get("X-Amz-Algorithm")? != ALGORITHM {
        return Err(bad_query(&format!("X-Amz-Algorithm must be {ALGORITHM}")));
    }
    if head.has("x-amz-security-token")
        || query.iter().any(|(name, _)| name == "X-Amz-Security-Token")
    {
        return Err(bad_token());
    }
    let timestamp = get("X-Amz-Date")?;
    let signed_at = date::parse_basic(timestamp)
        .ok_or_else(|| bad_query("X-Amz-Date must look like YYYYMMDDTHHMMSSZ"))?;
    let (access_key, scope) = parse_credential(get("X-Amz-Credential")?, timestamp)
        .map_err(|what| bad_query(&format!("X-Amz-Credential: {what}")))?;
    let lifetime = parse_lifetime(get("X-Amz-Expires")?)?;
    let payload = single(head, "x-amz-content-sha256")?.unwrap_or(UNSIGNED_PAYLOAD);
    check_payload(payload)?;
    Ok(Claim {
        access_key,
        scope,
        signed_headers: parse_signed_headers(get("X-Amz-SignedHeaders")?)
            .map_err(|what| bad_query(&format!("X-Amz-SignedHeaders: {what}")))?,
        signature: get("X-Amz-Signature")?.to_owned(),
        timestamp: timestamp.to_owned(),
        signed_at,
        payload: payload.to_owned(),
        lifetime_seconds: Some(lifetime),
    })
}

fn parse_lifetime(text: &str) -> Result<i64, ErrorReply> {
    // Digits only: `parse` would take a sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds: Option<i64> = digits.then(|| text.parse().ok()).flatten();
    match seconds {
        Some(seconds @ 1..=PRESIGNED_SECONDS_MAX) => Ok(seconds),
        _ => Err(bad_query(&format!(
            "X-Amz-Expires must be 1 to {PRESIGNED_SECONDS_MAX} seconds"
        ))),
    }
}

/// `ACCESS-KEY/YYYYMMDD/REGION/s3/aws4_request`; the day must be the timestamp's.
fn parse_credential(text: &str, timestamp: &str) -> Result<(String, Scope), String> {
    // From the right: whatever an access key holds, the scope's words hold no slash.
    let parts: Vec<&str> = text.rsplitn(5, '/').collect();
    let [terminator, service, region, day, access_key] = parts[..] else {
        return Err("a credential is ACCESS-KEY/YYYYMMDD/REGION/s3/aws4_request".to_owned());
    };
    if terminator != TERMINATOR || service != SERVICE {
        return Err(format!("its scope must end with /{SERVICE}/{TERMINATOR}"));
    }
    if access_key.is_empty() || region.is_empty() {
        return Err("its access key or region is empty".to_owned());
    }
    if timestamp.get(..date::DAY_LENGTH) != Some(day) {
        return Err("its day is not that of the date it was signed at".to_owned());
    }
    let scope = Scope {
        day: day.to_owned(),
        region: region.to_owned(),
    };
    Ok((access_key.to_owned(), scope))
}

fn parse_signed_headers(text: &str) -> Result<Vec<String>, &'static str> {
    let names: Vec<String> = text.split(';').map(str::to_owned).collect();
    if !names.is_sorted_by(|earlier, later| earlier < later) {
        return Err("signed headers must be sorted and stand there once");
    }
    let name_like = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
    if names
        .iter()
        .any(|name| name.is_empty() || !name.bytes().all(name_like))
    {
        return Err("signed headers are names in lower case with `;` between");
    }
    Ok(names)
}

fn check_payload(payload: &str) -> Result<(), ErrorReply> {
    let is_hash = payload.len() == SHA256_DIGITS && payload.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash || PAYLOAD_WORDS.contains(&payload) {
        return Ok(());
    }
    let message = "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, one of STREAMING-…, or a SHA-256 \
                   in hexadecimal";
    Err(ErrorReply::new(400, "InvalidArgument", message))
}

/// A header that could change what the request means must be signed, and what is said to be signed
/// must be there.
fn check_coverage(head: &Head, claim: &Claim) -> Result<(), ErrorReply> {
    let signed = |name: &str| claim.signed_headers.iter().any(|known| known == name);
    let must = |name: &str| name == "host" || name.starts_with("x-amz-");
    let unsigned = head
        .headers
        .iter()
        .find(|(name, _)| must(name) && !signed(name));
    if let Some((name, _)) = unsigned {
        let message = format!("the request has the header {name}, which is not signed");
        return Err(ErrorReply::denied(&message));
    }
    if !signed("host") {
        return Err(ErrorReply::denied(
            "the header host must be there and signed",
        ));
    }
    match claim.signed_headers.iter().find(|name| !head.has(name)) {
        None => Ok(()),
        Some(name) => {
            let message = format!("the header {name} is said to be signed and is not there");
            Err(ErrorReply::new(403, "SignatureDoesNotMatch", message))
        }
    }
}
