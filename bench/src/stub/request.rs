//! Request heads: owns the step from bytes to method, path, query and headers. Refuses what is ambiguous, decides nothing else.

use std::time::SystemTime;

use percent_encoding::percent_decode_str;

use crate::stub::error::S3Error;

/// Most headers in a request: twice what any S3 client sends.
const HEADERS_MAX: usize = 100;

/// Longest request head, as in the server under test's own default.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Longest key that S3 takes.
const KEY_BYTES_MAX: usize = 1024;

/// Headers in the order they came, names in lower case.
#[derive(Debug, Clone, Default)]
pub(super) struct Headers(pub(super) Vec<(String, String)>);

impl Headers {
    /// The first value of that name (lower case).
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }

    /// All values of that name, in order.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }

    /// The value as an HTTP date; an unreadable date counts as absent, as RFC 9110 wants it.
    pub(super) fn date(&self, name: &str) -> Option<SystemTime> {
        httpdate::parse_http_date(self.get(name)?).ok()
    }
}

/// How the end of a request's body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// `Content-Length`, or 0 where the method may go without.
    Length(u64),
    /// `Transfer-Encoding`, which S3 does not take.
    Encoded,
    /// A method with a body and no word about its length.
    Unknown,
}

/// A request without its body.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    /// The path as it was sent, without the query.
    pub(super) path: String,
    /// Names and values of the query, decoded, in the order they came.
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: Headers,
    /// First segment of the path, decoded. Empty for the service itself.
    pub(super) bucket: String,
    /// The rest of the path, decoded. Empty for the bucket itself.
    pub(super) key: String,
    pub(super) framing: Framing,
    /// Whether the client means to send another request on this connection.
    pub(super) keep_alive: bool,
}

impl Request {
    /// Reads a head. `Ok(None)` means: not all of it is here yet. Else, the request and the bytes its head took.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, S3Error> {
        let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parser = httparse::Request::new(&mut slots);
        let refuse = |message: String| S3Error::new("InvalidRequest").because(message);
        let length = match parser.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() >= HEAD_BYTES_MAX => {
                return Err(refuse(format!(
                    "request head is longer than {HEAD_BYTES_MAX} bytes"
                )));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(refuse(format!("request head: {error}"))),
        };
        let mut headers = Headers::default();
        for header in parser.headers.iter() {
            let value = std::str::from_utf8(header.value)
                .map_err(|_| refuse(format!("header {} is not UTF-8", header.name)))?;
            headers
                .0
                .push((header.name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let method = parser.method.unwrap_or_default().to_owned();
        let target = parser.path.unwrap_or_default();
        // HTTP/1.0 closes by default; that is all the stub makes of the difference.
        let keep_alive = parser.version == Some(1)
            && !headers
                .get("connection")
                .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let framing = framing(&method, &headers)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (bucket, key) = bucket_and_key(path)?;
        let query = decode_query(query)?;
        Ok(Some((
            Self {
                method,
                path: path.to_owned(),
                query,
                headers,
                bucket,
                key,
                framing,
                keep_alive,
            },
            length,
        )))
    }

    /// The value of a query parameter; empty for one that stands alone.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(parameter, _)| parameter == name)
            .map(|(_, value)| value.as_str())
    }
}

fn framing(method: &str, headers: &Headers) -> Result<Framing, S3Error> {
    let refuse = |message: &str| S3Error::new("InvalidRequest").because(message);
    let mut lengths = headers.all("content-length");
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(refuse("more than one Content-Length"));
    }
    if headers.get("transfer-encoding").is_some() {
        return if length.is_some() {
            Err(refuse("Content-Length and Transfer-Encoding"))
        } else {
            Ok(Framing::Encoded)
        };
    }
    match length {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
            .parse()
            .map(Framing::Length)
            .map_err(|_| refuse("Content-Length is out of range")),
        Some(_) => Err(refuse("Content-Length is not a number")),
        None if matches!(method, "PUT" | "POST") => Ok(Framing::Unknown),
        None => Ok(Framing::Length(0)),
    }
}

fn bucket_and_key(path: &str) -> Result<(String, String), S3Error> {
    let rest = path
        .strip_prefix('/')
        .ok_or_else(|| S3Error::new("InvalidURI"))?;
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    let (bucket, key) = (decode(bucket)?, decode(key)?);
    if key.len() > KEY_BYTES_MAX {
        return Err(S3Error::new("KeyTooLongError"));
    }
    Ok((bucket, key))
}

fn decode_query(query: &str) -> Result<Vec<(String, String)>, S3Error> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

fn decode(text: &str) -> Result<String, S3Error> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(|text| text.into_owned())
        .map_err(|_| S3Error::new("InvalidURI").because("the path or query is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> Result<Option<(Request, usize)>, S3Error> {
        Request::parse(head.as_bytes())
    }

    #[test]
    fn path_query_and_headers_are_taken_apart() {
        let head =
            "GET /b/a%20b/../c?prefix=x%2Fy&acl HTTP/1.1\r\nHost: h\r\nX-Amz-Date:  d \r\n\r\nrest";
        let (request, length) = parse(head).unwrap().unwrap();
        assert_eq!(length, head.len() - 4);
        assert_eq!(
            (request.bucket.as_str(), request.key.as_str()),
            ("b", "a b/../c"),
            "a key is never normalised"
        );
        assert_eq!(request.parameter("prefix"), Some("x/y"));
        assert_eq!(request.parameter("acl"), Some(""));
        assert_eq!(request.headers.get("x-amz-date"), Some("d"));
        assert_eq!(request.framing, Framing::Length(0));
        assert!(request.keep_alive);
        assert!(
            parse(&head[..length - 1]).unwrap().is_none(),
            "a head without its end is not complete"
        );
    }

    #[test]
    fn ambiguous_lengths_are_refused() {
        for headers in [
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: +1",
            "Content-Length: 99999999999999999999999",
        ] {
            let error = parse(&format!("PUT /b/k HTTP/1.1\r\n{headers}\r\n\r\n")).unwrap_err();
            assert_eq!(error.status, 400, "{headers}");
        }
        let (request, _) = parse("PUT /b/k HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(request.framing, Framing::Encoded);
        let (request, _) = parse("PUT /b/k HTTP/1.1\r\n\r\n").unwrap().unwrap();
        assert_eq!(request.framing, Framing::Unknown);
    }
}
