//! Response heads and error documents. The only place where an error becomes a status.

use forebay_io::store::{StoreError, StoreErrorKind};
use forebay_shards::messages::{ReadError, WriteError};
use std::cell::RefCell;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::aws_chunked::{Malformed, Part};
use super::head::HeadError;
use super::limits::RETRY_AFTER_SECONDS;
use super::target::TargetError;
use crate::xml;

thread_local! {
    /// The date of this second, as headers have it: it is the same for thousands of responses.
    static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

fn push_date(text: &mut String) {
    let now = SystemTime::now();
    let second = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.as_secs());
    DATE.with_borrow_mut(|(of, date)| {
        if *of != second || date.is_empty() {
            *of = second;
            *date = httpdate::fmt_http_date(now);
        }
        text.push_str(date);
    });
}

/// What a header's value may be. The usual kinds are put down without the machinery of `fmt`, which was a
/// quarter of all that a small hit cost.
pub trait HeaderValue {
    /// Appends it as it goes out.
    fn push_to(&self, text: &mut String);
}

impl HeaderValue for &str {
    fn push_to(&self, text: &mut String) {
        text.push_str(self);
    }
}

impl HeaderValue for String {
    fn push_to(&self, text: &mut String) {
        text.push_str(self);
    }
}

impl HeaderValue for &String {
    fn push_to(&self, text: &mut String) {
        text.push_str(self);
    }
}

impl HeaderValue for u64 {
    fn push_to(&self, text: &mut String) {
        text.push_str(itoa::Buffer::new().format(*self));
    }
}

impl HeaderValue for usize {
    fn push_to(&self, text: &mut String) {
        text.push_str(itoa::Buffer::new().format(*self));
    }
}

impl HeaderValue for std::fmt::Arguments<'_> {
    fn push_to(&self, text: &mut String) {
        // A `String` takes everything.
        let _ = text.write_fmt(*self);
    }
}

/// A response's status line and headers, as they go out.
pub struct ReplyHead {
    text: String,
}

/// The reason phrase of a status.
fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

impl ReplyHead {
    /// A head with what every response carries.
    pub fn new(status: u16, request_id: &str) -> Self {
        let mut text = String::with_capacity(512);
        text.push_str("HTTP/1.1 ");
        text.push_str(itoa::Buffer::new().format(status));
        text.push(' ');
        text.push_str(reason(status));
        text.push_str("\r\ndate: ");
        push_date(&mut text);
        text.push_str("\r\nserver: forebay\r\nx-amz-request-id: ");
        text.push_str(request_id);
        text.push_str("\r\n");
        ReplyHead { text }
    }

    /// Adds a header. A value that could break out of its line is left out: a store's metadata is
    /// no reason to send a second response.
    pub fn header(&mut self, name: &str, value: impl HeaderValue) -> &mut Self {
        let start = self.text.len();
        self.text.push_str(name);
        self.text.push_str(": ");
        value.push_to(&mut self.text);
        let line = &self.text.as_bytes()[start..];
        if memchr::memchr3(b'\r', b'\n', 0, line).is_some() {
            self.text.truncate(start);
        } else {
            self.text.push_str("\r\n");
        }
        self
    }

    /// The head's bytes.
    pub fn finish(mut self, keep_alive: bool) -> Vec<u8> {
        if !keep_alive {
            self.text.push_str("connection: close\r\n");
        }
        self.text.push_str("\r\n");
        self.text.into_bytes()
    }
}

/// An error as the client gets it.
#[derive(Clone, Debug)]
pub struct ErrorReply {
    /// HTTP status.
    pub status: u16,
    /// S3's error code, or one in its manner.
    pub code: &'static str,
    /// For people: what is wrong and what would be right.
    pub message: String,
    /// Headers beside the usual ones.
    pub headers: Vec<(&'static str, String)>,
    /// Elements of the document beside the usual ones, as S3 names them. They never hold a secret, or
    /// what only one who has it can compute.
    pub details: Vec<(&'static str, String)>,
    /// Whether the connection cannot be used any more.
    pub close: bool,
}

impl ErrorReply {
    /// An error with a status, a code and a message.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        ErrorReply {
            status,
            code,
            message: message.into(),
            headers: Vec::new(),
            details: Vec::new(),
            close: false,
        }
    }

    /// The same, after which the connection is closed.
    pub fn closing(self) -> Self {
        ErrorReply {
            close: true,
            ..self
        }
    }

    /// The same with one more header.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The same with one more element in its document.
    pub fn detail(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.details.push((name, value.into()));
        self
    }

    /// 403.
    pub fn denied(message: &str) -> Self {
        ErrorReply::new(403, "AccessDenied", message)
    }

    /// 501.
    pub fn not_implemented(what: &str) -> Self {
        ErrorReply::new(501, "NotImplemented", format!("{what} is not implemented"))
    }

    /// 503: try again in a moment.
    pub fn slow_down(message: &str) -> Self {
        ErrorReply::new(503, "SlowDown", message)
            .with("retry-after", RETRY_AFTER_SECONDS.to_string())
    }

    /// The error document.
    pub fn document(&self, resource: &str, request_id: &str) -> String {
        let mut document = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>");
        let details = self.details.iter();
        let fields = [("Code", self.code), ("Message", &self.message)]
            .into_iter()
            .chain(details.map(|(name, value)| (*name, value.as_str())))
            .chain([("Resource", resource), ("RequestId", request_id)]);
        for (name, value) in fields {
            let _ = write!(document, "<{name}>{}</{name}>", xml::escape(value));
        }
        document.push_str("</Error>");
        document
    }
}

/// A broken envelope; a broken transfer coding of HTTP is told by whoever finds it.
impl From<Malformed> for ErrorReply {
    fn from(error: Malformed) -> Self {
        let code = match error.part {
            Part::Size => "InvalidChunkSizeError",
            Part::End => "IncompleteBody",
            Part::Trailer => "MalformedTrailerError",
        };
        ErrorReply::new(400, code, error.to_string())
    }
}

impl From<HeadError> for ErrorReply {
    fn from(error: HeadError) -> Self {
        let reply = match error {
            HeadError::Malformed(what) => {
                ErrorReply::new(400, "InvalidRequest", format!("the request has {what}"))
            }
            HeadError::TooLarge => ErrorReply::new(
                431,
                "RequestHeaderSectionTooLarge",
                "the request's headers are too many or too large",
            ),
            HeadError::TargetTooLong => {
                ErrorReply::new(414, "URITooLong", "the request target is too long")
            }
            HeadError::Version => {
                ErrorReply::new(505, "HTTPVersionNotSupported", "HTTP/1.1 is served")
            }
            HeadError::TransferEncoding => {
                ErrorReply::not_implemented("a transfer coding other than chunked")
            }
            HeadError::Expectation => ErrorReply::new(
                417,
                "ExpectationFailed",
                "only 100-continue can be expected",
            ),
        };
        reply.closing()
    }
}

impl From<TargetError> for ErrorReply {
    fn from(error: TargetError) -> Self {
        let code = match error {
            TargetError::KeyTooLong => "KeyTooLongError",
            _ => "InvalidURI",
        };
        ErrorReply::new(400, code, error.to_string())
    }
}

impl From<&StoreError> for ErrorReply {
    fn from(error: &StoreError) -> Self {
        let gateway = |status, code, what: &str| {
            ErrorReply::new(status, code, format!("the object store {what}: {error}"))
        };
        match error.kind {
            StoreErrorKind::NotFound => {
                ErrorReply::new(404, "NoSuchKey", "the object does not exist")
            }
            StoreErrorKind::PreconditionFailed | StoreErrorKind::NotModified => {
                ErrorReply::new(412, "PreconditionFailed", "a precondition did not hold")
            }
            StoreErrorKind::RangeNotSatisfiable => {
                ErrorReply::new(416, "InvalidRange", "the range holds no byte of the object")
            }
            StoreErrorKind::NoSuchUpload => ErrorReply::new(
                404,
                "NoSuchUpload",
                "the upload does not exist, or has ended",
            ),
            StoreErrorKind::InvalidPart => ErrorReply::new(400, "InvalidPart", &error.message),
            StoreErrorKind::PartTooSmall => ErrorReply::new(400, "EntityTooSmall", &error.message),
            StoreErrorKind::InvalidKey => ErrorReply::new(400, "InvalidURI", &error.message),
            StoreErrorKind::Unsupported => ErrorReply::new(501, "NotImplemented", &error.message),
            StoreErrorKind::SlowDown => {
                let wait = error
                    .retry_after
                    .map_or(RETRY_AFTER_SECONDS.into(), |w| w.as_secs());
                gateway(503, "SlowDown", "is overloaded").with("retry-after", wait.to_string())
            }
            StoreErrorKind::Timeout => gateway(504, "GatewayTimeout", "did not answer in time"),
            StoreErrorKind::Unreachable => gateway(502, "BadGateway", "cannot be reached"),
            StoreErrorKind::NoSuchBucket => gateway(502, "BadGateway", "has no such bucket"),
            StoreErrorKind::Denied => gateway(502, "BadGateway", "refuses our credentials"),
            StoreErrorKind::ClockSkew => gateway(502, "BadGateway", "has another time than we"),
            StoreErrorKind::Misdirected => gateway(502, "BadGateway", "is somewhere else"),
            StoreErrorKind::Contended => ErrorReply::new(
                409,
                "OperationAborted",
                format!("another request for the key is under way at the object store: {error}"),
            ),
            StoreErrorKind::Corrupt => gateway(502, "BadGateway", "answered with wrong data"),
            StoreErrorKind::Internal => gateway(502, "BadGateway", "failed"),
            StoreErrorKind::Rejected => gateway(502, "BadGateway", "refuses the request"),
        }
    }
}

impl From<ReadError> for ErrorReply {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotFound => ErrorReply::new(404, "NoSuchKey", "the object does not exist"),
            ReadError::NotSatisfiable { size } => {
                ErrorReply::new(416, "InvalidRange", "the range holds no byte of the object")
                    .with("content-range", format!("bytes */{size}"))
                    // By this Amazon's own client knows an empty object from a wrong range.
                    .detail("ActualObjectSize", size.to_string())
            }
            ReadError::Changed => {
                ErrorReply::slow_down("the object is being overwritten; try again")
            }
            ReadError::Overloaded => ErrorReply::slow_down("all block buffers are in use"),
            ReadError::Loading => {
                ErrorReply::slow_down("this part of the cache is still loading after a start")
            }
            ReadError::Unreadable(_) => ErrorReply::new(500, "InternalError", error.to_string()),
            ReadError::Store(error) => ErrorReply::from(&*error),
        }
    }
}

impl From<WriteError> for ErrorReply {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Exists => {
                ErrorReply::new(412, "PreconditionFailed", "the object exists already")
            }
            WriteError::OtherVersion => {
                ErrorReply::new(412, "PreconditionFailed", "a precondition did not hold")
            }
            WriteError::Immutable => ErrorReply::new(409, "ObjectImmutable", error.to_string()),
            WriteError::Store(error) => ErrorReply::from(&*error),
            WriteError::Stalled => {
                ErrorReply::slow_down("the disk of this part of the cache does not answer")
            }
            WriteError::Incomplete => {
                ErrorReply::new(400, "IncompleteBody", error.to_string()).closing()
            }
            WriteError::Loading => {
                ErrorReply::slow_down("this part of the cache is still loading after a start")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_cannot_split_a_response() {
        let mut head = ReplyHead::new(200, "id");
        head.header("x-amz-meta-a", "b\r\nset-cookie: c")
            .header("etag", "\"d\"");
        let text = String::from_utf8(head.finish(true)).expect("text");
        assert!(!text.contains("set-cookie") && text.contains("etag: \"d\"\r\n\r\n"));
    }

    #[test]
    fn documents_escape_what_clients_sent() {
        let error = ErrorReply::denied("no").detail("Expires", "<soon>");
        let xml = error.document("/v/<&>\u{1}", "id");
        assert!(xml.contains("<Message>no</Message><Expires>&lt;soon&gt;</Expires><Resource>"));
        assert!(xml.contains("<Resource>/v/&lt;&amp;&gt;\u{fffd}</Resource>"));
        assert!(xml.contains("<Code>AccessDenied</Code>"));
    }
}
