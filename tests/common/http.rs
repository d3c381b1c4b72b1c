//! A raw HTTP/1.1 client: sends any bytes at all and reads answers strictly.
//!
//! It never repairs, follows or retries. An answer that breaks the grammar (a bare line feed, two
//! lengths, a body beyond its length left unread is fine, a short one is not) is an error of the
//! server and fails the test.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::WAIT_MAX;
use super::proxy::READ_WRITE;

/// No answer of ours has a longer head.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// A parsed answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header that appears once; `None` when it is absent.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str());
        let first = found.next();
        assert!(
            found.next().is_none(),
            "header {name} appears more than once: {self:?}"
        );
        first
    }

    /// The value of a header that must be there.
    pub fn expect_header(&self, name: &str) -> &str {
        self.header(name)
            .unwrap_or_else(|| panic!("no {name} in status {}: {:?}", self.status, self.headers))
    }

    /// The body as text, for messages and documents.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The error code of an S3 XML error document.
    pub fn error_code(&self) -> String {
        let text = self.text();
        let code = text
            .split_once("<Code>")
            .and_then(|(_, rest)| rest.split_once("</Code>"));
        code.map(|(code, _)| code.to_string())
            .unwrap_or_else(|| panic!("no <Code> in {text:?}"))
    }

    /// Where the bytes came from.
    pub fn cache(&self) -> &str {
        self.expect_header("x-cache")
    }
}

/// How the server met something that is not a good request.
#[derive(Debug)]
pub enum Ending {
    /// It answered.
    Answered(Answer),
    /// It closed the connection, cleanly or with a reset, without a byte.
    Closed,
    /// It kept the connection open and said nothing for the whole wait.
    Silent,
}

impl Ending {
    /// The status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Ending::Answered(answer) => Some(answer.status),
            Ending::Closed | Ending::Silent => None,
        }
    }
}

/// What a client speaks over: a socket, or TLS on one.
pub trait Wire: Read + Write + Send {
    /// The socket below.
    fn socket(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

/// One connection.
pub struct Client {
    wire: Box<dyn Wire>,
    /// Received and not yet consumed: the rest of a pipelined answer.
    pending: Vec<u8>,
}

impl Client {
    /// A plain TCP connection.
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address)
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// A plain TCP connection, or why there is none.
    pub fn try_connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, WAIT_MAX)?;
        stream.set_nodelay(true)?;
        Ok(Client::over(Box::new(stream)))
    }

    /// A client over any wire.
    pub fn over(wire: Box<dyn Wire>) -> Client {
        wire.socket()
            .set_read_timeout(Some(WAIT_MAX))
            .expect("read timeout");
        wire.socket()
            .set_write_timeout(Some(WAIT_MAX))
            .expect("write timeout");
        Client {
            wire,
            pending: Vec::new(),
        }
    }

    /// Sends bytes as they are. A server that closed early is no error here: its answer tells.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire
            .write_all(bytes.as_ref())
            .and_then(|()| self.wire.flush())
            .is_ok()
    }

    /// Sends one byte at a time with a pause after each, until the server has enough of it.
    pub fn send_slowly(&mut self, bytes: &[u8], pause: Duration) -> bool {
        bytes.iter().all(|byte| {
            std::thread::sleep(pause);
            self.send([*byte])
        })
    }

    /// Ends our side of the conversation; the server may still answer.
    pub fn half_close(&mut self) {
        // An error means that the server closed first, which the next read reports.
        let _ = self.wire.socket().shutdown(Shutdown::Write);
    }

    /// Leaves at once with a TCP reset.
    pub fn reset(self) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // SAFETY: the descriptor is open for as long as `self`, the option is given with its size.
        let code = unsafe {
            libc::setsockopt(
                self.wire.socket().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                std::ptr::from_ref(&linger).cast(),
                std::mem::size_of::<libc::linger>() as libc::socklen_t,
            )
        };
        assert_eq!(code, 0, "SO_LINGER: {}", io::Error::last_os_error());
    }

    /// Sends a whole good request. `Host`, `Authorization` and `Content-Length` are added where
    /// `headers` does not have them; an empty value leaves the header out.
    pub fn send_request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        let length = body.len().to_string();
        let bearer = format!("Bearer {READ_WRITE}");
        let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        let mut add = |name: &str, value: &str| {
            if !value.is_empty() {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        };
        if !has("host") {
            add("Host", "localhost");
        }
        if !has("authorization") {
            add("Authorization", &bearer);
        }
        if !has("content-length") && (!body.is_empty() || matches!(method, "PUT" | "POST")) {
            add("Content-Length", &length);
        }
        for (name, value) in headers {
            add(name, value);
        }
        head.push_str("\r\n");
        let mut message = head.into_bytes();
        message.extend_from_slice(body);
        self.send(&message);
    }

    /// One request and its answer.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.send_request(method, target, headers, body);
        self.read_answer(method)
    }

    /// The next final answer to a request of the given method (its body depends on that).
    pub fn read_answer(&mut self, method: &str) -> Answer {
        self.try_read_answer(method)
            .unwrap_or_else(|error| panic!("no whole answer to {method}: {error}"))
    }

    /// The next answer, or what broke it. `UnexpectedEof` before the first byte means a clean close.
    pub fn try_read_answer(&mut self, method: &str) -> io::Result<Answer> {
        let head_length = loop {
            if let Some(end) = find(&self.pending, b"\r\n\r\n") {
                break end + 4;
            }
            if self.pending.len() > HEAD_BYTES_MAX {
                return Err(broken("the answer's head does not end"));
            }
            if self.fill()? == 0 {
                return Err(closed(&self.pending));
            }
        };
        let head: Vec<u8> = self.pending.drain(..head_length).collect();
        let mut answer = parse_head(&head)?;
        let length = body_length(&answer, method)?;
        while self.pending.len() < length {
            if self.fill()? == 0 {
                let got = self.pending.len();
                return Err(broken(&format!("body ended after {got} of {length} bytes")));
            }
        }
        answer.body = self.pending.drain(..length).collect();
        Ok(answer)
    }

    /// Reads at least one byte of what comes, for tests that leave in the middle.
    pub fn read_some(&mut self) -> io::Result<usize> {
        self.fill()
    }

    /// Waits for an answer or the end of the connection, at most `wait`.
    pub fn ending(&mut self, method: &str, wait: Duration) -> Ending {
        self.wire
            .socket()
            .set_read_timeout(Some(wait))
            .expect("read timeout");
        let ending = match self.try_read_answer(method) {
            Ok(answer) => Ending::Answered(answer),
            Err(error) if is_timeout(&error) && self.pending.is_empty() => Ending::Silent,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                panic!("malformed answer: {error}")
            }
            Err(_) => Ending::Closed,
        };
        self.wire
            .socket()
            .set_read_timeout(Some(WAIT_MAX))
            .expect("read timeout");
        ending
    }

    /// Whether the server ends the connection within `wait` and sends nothing more before.
    pub fn closes_within(&mut self, wait: Duration) -> bool {
        if !self.pending.is_empty() {
            return false;
        }
        self.wire
            .socket()
            .set_read_timeout(Some(wait))
            .expect("read timeout");
        match self.fill() {
            Ok(count) => count == 0,
            Err(error) => !is_timeout(&error),
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0_u8; 64 * 1024];
        let count = loop {
            match self.wire.read(&mut chunk) {
                // Of our own process: a wait with a limit is not taken up again by the kernel.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.pending.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

fn closed(pending: &[u8]) -> io::Error {
    if pending.is_empty() {
        io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer")
    } else {
        broken(&format!(
            "closed inside a head: {:?}",
            String::from_utf8_lossy(pending)
        ))
    }
}

/// Where `needle` first begins in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn parse_head(head: &[u8]) -> io::Result<Answer> {
    let text = std::str::from_utf8(head).map_err(|_| broken("the head is not UTF-8"))?;
    let text = text.strip_suffix("\r\n\r\n").expect("found by its end");
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let rest = status_line
        .strip_prefix("HTTP/1.1 ")
        .ok_or_else(|| broken(&format!("status line {status_line:?}")))?;
    let status = rest.get(..3).and_then(|digits| digits.parse::<u16>().ok());
    let status = status.filter(|_| rest.len() == 3 || rest.as_bytes()[3] == b' ');
    let status = status.ok_or_else(|| broken(&format!("status line {status_line:?}")))?;
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| broken(&format!("header line {line:?}")))?;
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(broken(&format!("header name in {line:?}")));
        }
        if value.contains(['\r', '\n', '\0']) {
            return Err(broken(&format!("header value in {line:?}")));
        }
        headers.push((
            name.to_string(),
            value.trim_matches([' ', '\t']).to_string(),
        ));
    }
    Ok(Answer {
        status,
        headers,
        body: Vec::new(),
    })
}

fn body_length(answer: &Answer, method: &str) -> io::Result<usize> {
    if answer.header("transfer-encoding").is_some() {
        return Err(broken("our answers name their length"));
    }
    let length = match answer.header("content-length") {
        Some(value) if value.bytes().all(|b| b.is_ascii_digit()) => value.parse::<usize>().ok(),
        Some(value) => return Err(broken(&format!("content-length {value:?}"))),
        None => None,
    };
    if method == "HEAD" || (100..200).contains(&answer.status) || matches!(answer.status, 204 | 304)
    {
        return Ok(0);
    }
    length.ok_or_else(|| broken(&format!("status {} without content-length", answer.status)))
}
