//! One response as it arrives: owns finding its end and checking its length and bytes. Keeps nothing of a body.

use crate::content::Content;

/// Longest response head that is taken.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most headers in a response.
const HEADERS_MAX: usize = 100;

/// What a request is to be answered with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expectation {
    /// 200 or 206; other statuses are errors.
    pub(super) status: u16,
    /// Body length; `None` takes any that the response declares, as for the answer to a PUT.
    pub(super) length: Option<u64>,
    /// The bytes that the body must have, and the offset of its first within them.
    pub(super) content: Option<(Content, u64)>,
}

/// Why a response is not a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A status that was not expected.
    Status(u16),
    /// Not a response that this program can frame.
    Malformed(String),
    /// A body of another length than asked for.
    Length { declared: u64 },
    /// A body that differs at this offset.
    Content { offset: u64 },
    /// Bytes after the end of the body.
    Surplus,
}

impl Flaw {
    /// The name under which it is counted: few enough that a table can hold them.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Status(status) => format!("status {status}"),
            Self::Malformed(why) => format!("malformed response: {why}"),
            Self::Length { declared } => format!("wrong length {declared}"),
            Self::Content { .. } => "wrong content".into(),
            Self::Surplus => "bytes after the body".into(),
        }
    }

    /// Whether bytes were served as right that are not.
    pub(super) fn is_wrong_content(&self) -> bool {
        match self {
            Self::Length { .. } | Self::Content { .. } | Self::Surplus => true,
            Self::Status(_) | Self::Malformed(_) => false,
        }
    }
}

/// A response, as far as it has come.
#[derive(Debug)]
pub(super) struct Response {
    expectation: Expectation,
    /// The start of a head that is not complete yet.
    head: Vec<u8>,
    /// Body length, once the head is complete.
    length: Option<u64>,
    received: u64,
    flaw: Option<Flaw>,
    /// Whether the connection can carry another request.
    keep_alive: bool,
    /// Body bytes that came since the last [`Self::take_new_bytes`].
    new_bytes: u64,
    /// The core that owns the object, if the server says so.
    owner: Option<usize>,
}

impl Response {
    pub(super) fn new(expectation: Expectation) -> Self {
        Self {
            expectation,
            head: Vec::new(),
            length: None,
            received: 0,
            flaw: None,
            keep_alive: true,
            new_bytes: 0,
            owner: None,
        }
    }

    /// Takes the next bytes off the wire and says how many of them are this response's.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        if self.length.is_some() {
            return self.push_body(bytes);
        }
        let held_bytes = self.head.len();
        // Mostly the whole head is in the first piece, with a lot of body behind it that is better not copied.
        let held = std::mem::take(&mut self.head);
        let joined = if held.is_empty() {
            bytes
        } else {
            &[held.as_slice(), bytes].concat()
        };
        match Head::parse(joined) {
            Ok(None) if joined.len() > HEAD_BYTES_MAX => self.break_off("head too long"),
            Ok(None) => self.head = joined.to_vec(),
            Ok(Some(head)) => {
                self.begin_body(&head);
                return head.bytes - held_bytes + self.push_body(&joined[head.bytes..]);
            }
            Err(why) => self.break_off(&why),
        }
        bytes.len()
    }

    fn begin_body(&mut self, head: &Head) {
        self.keep_alive = head.keep_alive;
        self.length = Some(head.declared);
        self.owner = head.owner;
        // WebDAV servers answer a PUT with 201 or 204; where a body is expected, only one status is right.
        let is_write = self.expectation.length.is_none();
        let is_done = is_write && matches!(head.status, 201 | 204);
        if head.status != self.expectation.status && !is_done {
            self.flaw = Some(Flaw::Status(head.status));
        } else if self
            .expectation
            .length
            .is_some_and(|expected| expected != head.declared)
        {
            self.flaw = Some(Flaw::Length {
                declared: head.declared,
            });
        }
    }

    fn push_body(&mut self, bytes: &[u8]) -> usize {
        let left = self.length.unwrap_or_default() - self.received;
        let bytes = &bytes[..bytes.len().min(left as usize)];
        if let Some((content, start)) = self.expectation.content
            && self.flaw.is_none()
            && let Some(offset) = content.first_difference(start + self.received, bytes)
        {
            self.flaw = Some(Flaw::Content { offset });
        }
        self.received += bytes.len() as u64;
        self.new_bytes += bytes.len() as u64;
        bytes.len()
    }

    /// Says that bytes came behind the end of this response which belong to no other.
    pub(super) fn add_surplus(&mut self) {
        self.flaw.get_or_insert(Flaw::Surplus);
        self.keep_alive = false;
    }

    /// Ends the response here; what follows cannot be understood.
    fn break_off(&mut self, why: &str) {
        self.flaw = Some(Flaw::Malformed(why.to_owned()));
        self.length = Some(self.received);
        self.keep_alive = false;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.length == Some(self.received)
    }

    pub(super) fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// The core that owns the object, as `x-forebay-core` said.
    pub(super) fn owner(&self) -> Option<usize> {
        self.owner
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn flaw(&self) -> Option<&Flaw> {
        self.flaw.as_ref()
    }

    /// Body bytes since the last call; none of a response that was refused already.
    pub(super) fn take_new_bytes(&mut self) -> u64 {
        let bytes = std::mem::take(&mut self.new_bytes);
        if self.flaw.is_some() { 0 } else { bytes }
    }
}

/// What matters of a response's head.
pub(super) struct Head {
    pub(super) bytes: usize,
    pub(super) status: u16,
    pub(super) declared: u64,
    keep_alive: bool,
    owner: Option<usize>,
}

impl Head {
    /// `Ok(None)` while it is incomplete.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parser = httparse::Response::new(&mut slots);
        let head_bytes = match parser.parse(bytes) {
            Ok(httparse::Status::Complete(bytes)) => bytes,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let status = parser.code.unwrap_or_default();
        let value = |name: &str| {
            let mut headers = parser.headers.iter();
            let header = headers.find(|header| header.name.eq_ignore_ascii_case(name));
            header.and_then(|header| std::str::from_utf8(header.value).ok())
        };
        let declared = match (value("content-length"), status) {
            (Some(length), _) => length
                .trim()
                .parse()
                .map_err(|_| "Content-Length".to_owned())?,
            (None, 204 | 304) => 0,
            (None, _) => return Err("no Content-Length".into()),
        };
        let keep_alive =
            !value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let owner = value("x-forebay-core").and_then(|value| value.split('/').next()?.parse().ok());
        Ok(Some(Self {
            owner,
            bytes: head_bytes,
            status,
            declared,
            keep_alive,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(expected: Expectation, pieces: &[&[u8]]) -> Response {
        let mut response = Response::new(expected);
        for piece in pieces {
            if response.push(piece) < piece.len() {
                response.add_surplus();
            }
        }
        response
    }

    const FIVE: Expectation = Expectation {
        status: 200,
        length: Some(5),
        content: None,
    };

    #[test]
    fn a_response_in_any_pieces_is_complete_at_its_end() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        for cut in 1..text.len() {
            let mut response = receive(FIVE, &[&text[..cut]]);
            assert!(!response.is_complete(), "cut at {cut}");
            response.push(&text[cut..]);
            assert!(response.is_complete() && response.flaw().is_none() && response.keep_alive());
            assert_eq!(response.take_new_bytes(), 5);
        }
    }

    #[test]
    fn two_responses_in_one_piece_are_told_apart_wherever_it_is_cut() {
        let one = b"HTTP/1.1 200 OK\r\nx-forebay-core: 3/4\r\nContent-Length: 5\r\n\r\nhello";
        let two = [one.as_slice(), one].concat();
        for cut in 0..one.len() {
            let (mut first, mut second) = (Response::new(FIVE), Response::new(FIVE));
            let mut used = first.push(&two[..cut]);
            assert_eq!(used, cut);
            used += first.push(&two[cut..]);
            assert_eq!(used, one.len(), "cut at {cut}");
            assert_eq!(second.push(&two[used..]), one.len());
            for response in [first, second] {
                assert!(response.is_complete() && response.flaw().is_none());
                assert_eq!(response.owner(), Some(3));
            }
        }
    }

    #[test]
    fn what_is_not_asked_for_is_a_flaw() {
        let flaw = |text: &[u8]| receive(FIVE, &[text]).flaw().cloned();
        assert_eq!(
            flaw(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"),
            Some(Flaw::Status(503))
        );
        assert_eq!(
            flaw(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell"),
            Some(Flaw::Length { declared: 4 })
        );
        assert_eq!(
            flaw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!"),
            Some(Flaw::Surplus)
        );
        assert!(matches!(
            flaw(b"HTTP/1.1 200 OK\r\n\r\nhello"),
            Some(Flaw::Malformed(_))
        ));
        assert!(matches!(
            flaw(b"nonsense\r\n\r\n"),
            Some(Flaw::Malformed(_))
        ));
        let wrong = receive(FIVE, &[b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell"]);
        assert_eq!(
            Response::take_new_bytes(&mut { wrong }),
            0,
            "flawed bytes count for nothing"
        );
    }

    #[test]
    fn content_is_compared_from_its_offset() {
        let content = Content::of_key("k");
        let mut bytes = vec![0; 100];
        content.fill(50, &mut bytes);
        let expected = Expectation {
            status: 206,
            length: Some(100),
            content: Some((content, 50)),
        };
        let head = b"HTTP/1.1 206 Partial\r\nContent-Length: 100\r\n\r\n".as_slice();
        assert_eq!(
            receive(expected, &[head, &bytes[..33], &bytes[33..]]).flaw(),
            None
        );
        bytes[60] ^= 1;
        let flaw = receive(expected, &[head, &bytes[..33], &bytes[33..]])
            .flaw()
            .cloned();
        assert_eq!(flaw, Some(Flaw::Content { offset: 110 }));
    }
}
