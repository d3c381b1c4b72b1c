//! The request head: strict bytes in, a checked [`Head`] out. Pure.
//!
//! What is ambiguous is refused, never repaired (RFC 9112 section 11.2): bare CR or LF, folded
//! lines, NUL, doubled or odd lengths, `Content-Length` beside `Transfer-Encoding`. hyper's parser
//! accepts bare LF as a line's end and drops one of the two framing headers; that is why the head
//! is checked here before `httparse` splits it.

use super::limits::{HEADERS_MAX, TARGET_BYTES_MAX};
use std::borrow::Cow;
use std::mem::MaybeUninit;

/// Why a head is refused. The connection is closed after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// 400: what is wrong.
    Malformed(&'static str),
    /// 431: too many headers, or too many bytes of them.
    TooLarge,
    /// 414.
    TargetTooLong,
    /// 505.
    Version,
    /// 501: a transfer coding that is none.
    TransferEncoding,
    /// 417: an expectation other than `100-continue`.
    Expectation,
}

/// How the request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunked: its length is not known, which S3 does not take.
    Chunked,
}

/// A request head that passed every check.
#[derive(Clone, Debug)]
pub struct Head {
    /// The method, as sent.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// Names in lower case, values as sent, in order.
    pub headers: Vec<(Cow<'static, str>, Vec<u8>)>,
    /// How the body is framed.
    pub framing: Framing,
    /// Whether the client waits for `100 Continue`.
    pub expects_continue: bool,
    /// Whether the connection may carry another request.
    pub keep_alive: bool,
}

impl Head {
    /// The value of the first header of this (lower-case) name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value).ok()
    }

    /// All values of a header.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(n, _)| n == name)
            .filter_map(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// Whether a header of this name is there, whatever its value.
    pub fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(n, _)| n == name)
    }
}

/// Finds the end of the head in what has arrived, checking every byte on the way. `Ok(None)` if
/// more must come. `scanned` is how much was looked at before; those bytes were good.
pub fn find_end(bytes: &[u8], scanned: usize) -> Result<Option<usize>, HeadError> {
    // A pair may straddle the border.
    let from = scanned.saturating_sub(3);
    for at in memchr::memchr3_iter(0, b'\r', b'\n', &bytes[from..]) {
        let at = from + at;
        match bytes[at] {
            0 => return Err(HeadError::Malformed("a NUL byte in the head")),
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => {
                return Err(HeadError::Malformed("a line that ends without CR"));
            }
            b'\n' => match bytes.get(at + 1) {
                Some(b' ' | b'\t') => {
                    return Err(HeadError::Malformed("a folded header line"));
                }
                Some(b'\r') if bytes.get(at + 2) == Some(&b'\n') => return Ok(Some(at + 3)),
                _ => {}
            },
            b'\r' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => {
                return Err(HeadError::Malformed("a CR that does not end a line"));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Parses a head whose end [`find_end`] has found.
pub fn parse(bytes: &[u8]) -> Result<Head, HeadError> {
    // Not filled in advance: that would cost more than the parsing.
    let mut slots = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut slots) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(HeadError::Malformed("an unfinished head")),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(httparse::Error::Version) => return Err(HeadError::Version),
        Err(httparse::Error::HeaderName) => return Err(HeadError::Malformed("a bad header name")),
        Err(_) => return Err(HeadError::Malformed("a malformed request line or header")),
    }
    let target = request.path.unwrap_or_default();
    if target.len() > TARGET_BYTES_MAX {
        return Err(HeadError::TargetTooLong);
    }
    let minor = request.version.unwrap_or(1);
    let headers = request.headers.iter();
    let headers = headers.map(|header| (lower_case(header.name), header.value.to_vec()));
    let mut head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        target: origin_form(target).to_owned(),
        headers: headers.collect(),
        framing: Framing::None,
        expects_continue: false,
        keep_alive: true,
    };
    if minor == 1
        && head
            .headers
            .iter()
            .filter(|(name, _)| name == "host")
            .count()
            != 1
    {
        return Err(HeadError::Malformed(
            "HTTP/1.1 needs exactly one Host header",
        ));
    }
    head.framing = framing(&head, minor)?;
    head.expects_continue = expectation(&head, minor)?;
    head.keep_alive = keep_alive(&head, minor);
    Ok(head)
}

/// Headers that most requests have: their names need no memory of their own.
const COMMON_NAMES: [&str; 18] = [
    "host",
    "authorization",
    "range",
    "accept",
    "user-agent",
    "connection",
    "accept-encoding",
    "content-length",
    "content-type",
    "expect",
    "x-amz-date",
    "x-amz-content-sha256",
    "amz-sdk-request",
    "amz-sdk-invocation-id",
    "x-amz-checksum-mode",
    "if-match",
    "if-none-match",
    "transfer-encoding",
];

fn lower_case(name: &str) -> Cow<'static, str> {
    let known = COMMON_NAMES
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(name));
    known.map_or_else(|| Cow::Owned(name.to_ascii_lowercase()), Cow::Borrowed)
}

/// `http://host/path` means `/path` (RFC 9112 section 3.2.2).
fn origin_form(target: &str) -> &str {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| target.strip_prefix(scheme));
    match rest {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    }
}

fn framing(head: &Head, minor: u8) -> Result<Framing, HeadError> {
    let lengths = head
        .headers
        .iter()
        .filter(|(name, _)| name == "content-length");
    let lengths: Vec<&[u8]> = lengths.map(|(_, value)| value.as_slice()).collect();
    if head.has("transfer-encoding") {
        if !lengths.is_empty() {
            return Err(HeadError::Malformed(
                "Content-Length beside Transfer-Encoding",
            ));
        }
        if minor == 0 {
            return Err(HeadError::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        let codings: Vec<&str> = head.values("transfer-encoding").collect();
        return match codings[..] {
            [coding] if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
            _ => Err(HeadError::TransferEncoding),
        };
    }
    match lengths[..] {
        [] => Ok(Framing::None),
        [length] => parse_length(length).map(Framing::Length),
        _ => Err(HeadError::Malformed("more than one Content-Length")),
    }
}

fn parse_length(value: &[u8]) -> Result<u64, HeadError> {
    // Digits only: no sign, no list, no blanks inside; `parse` would take a plus.
    let digits = std::str::from_utf8(value)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|text| text.parse().ok())
        .ok_or(HeadError::Malformed("a Content-Length that is no number"))
}

fn expectation(head: &Head, minor: u8) -> Result<bool, HeadError> {
    match head.header("expect") {
        // An empty list expects nothing.
        None | Some("") => Ok(false),
        Some(value) if value.eq_ignore_ascii_case("100-continue") => Ok(minor == 1),
        Some(_) => Err(HeadError::Expectation),
    }
}

fn keep_alive(head: &Head, minor: u8) -> bool {
    let mut options = head.values("connection").flat_map(|value| value.split(','));
    if minor == 0 {
        return options.any(|option| option.trim().eq_ignore_ascii_case("keep-alive"));
    }
    !options.any(|option| option.trim().eq_ignore_ascii_case("close"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> Result<Head, HeadError> {
        let bytes = text.as_bytes();
        match find_end(bytes, 0)? {
            Some(end) => parse(&bytes[..end]),
            None => Err(HeadError::Malformed("never ends")),
        }
    }

    fn with(headers: &str) -> Result<Head, HeadError> {
        check(&format!("PUT /v/k HTTP/1.1\r\nHost: x\r\n{headers}\r\n"))
    }

    #[test]
    fn a_plain_request_is_understood() {
        let head = with("Content-Length: 12\r\nX-Amz-Meta-A: b\r\nExpect: 100-continue\r\n");
        let head = head.expect("good");
        assert_eq!(
            (head.method.as_str(), head.target.as_str()),
            ("PUT", "/v/k")
        );
        assert_eq!(head.framing, Framing::Length(12));
        assert_eq!(head.header("x-amz-meta-a"), Some("b"));
        assert!(head.expects_continue && head.keep_alive);
        let absolute = check("GET http://h:1/v/k?a=b HTTP/1.1\r\nHost: h\r\n\r\n").expect("good");
        assert_eq!(absolute.target, "/v/k?a=b");
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for headers in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5,5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length:\r\n",
            "Content-Length : 5\r\n",
            "X: a\r\n b\r\n",
            "X: a\rb\r\n",
            "X: a\nY: b\r\n",
            "X: a\0b\r\n",
        ] {
            assert!(
                matches!(with(headers), Err(HeadError::Malformed(_))),
                "{headers:?}"
            );
        }
        assert_eq!(
            with("Transfer-Encoding: gzip\r\n").err(),
            Some(HeadError::TransferEncoding)
        );
        assert_eq!(
            with("Transfer-Encoding: chunked, chunked\r\n").err(),
            Some(HeadError::TransferEncoding)
        );
        assert_eq!(
            with("Transfer-Encoding: chunked\r\n").map(|h| h.framing),
            Ok(Framing::Chunked)
        );
        assert!(check("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(check("GET / HTTP/1.1\r\n\r\n").is_err(), "no Host");
        assert!(!with("Expect:\r\n").expect("good").expects_continue);
        assert_eq!(
            with("Expect: magic\r\n").err(),
            Some(HeadError::Expectation)
        );
    }

    #[test]
    fn sizes_are_bounded() {
        let many: String = (0..HEADERS_MAX).map(|i| format!("h{i}: v\r\n")).collect();
        assert_eq!(with(&many).err(), Some(HeadError::TooLarge));
        let long = format!(
            "GET /{} HTTP/1.1\r\nHost: x\r\n\r\n",
            "a".repeat(TARGET_BYTES_MAX)
        );
        assert_eq!(check(&long).err(), Some(HeadError::TargetTooLong));
    }

    #[test]
    fn connections_end_when_they_should() {
        assert!(!with("Connection: Close\r\n").expect("good").keep_alive);
        let old = |rest: &str| check(&format!("GET / HTTP/1.0\r\n{rest}\r\n")).expect("good");
        assert!(!old("").keep_alive);
        assert!(old("Connection: keep-alive\r\n").keep_alive);
    }

    proptest! {
        #[test]
        fn arriving_in_pieces_changes_nothing(
            text in "(GET|X)?[ /a\r\n\t:]{0,40}(\r\n\r\n)?",
            cuts in proptest::collection::vec(0..60_usize, 0..4),
        ) {
            let bytes = text.as_bytes();
            let whole = find_end(bytes, 0);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut scanned = 0;
            let mut answer = Ok(None);
            for cut in cuts {
                answer = find_end(&bytes[..cut], scanned);
                if answer != Ok(None) {
                    break;
                }
                scanned = cut;
            }
            // A CR at a border is judged when its successor comes: the verdict is the same.
            prop_assert_eq!(answer.is_err(), whole.is_err());
            if whole.is_ok() {
                prop_assert_eq!(answer, whole);
            }
        }
    }
}
