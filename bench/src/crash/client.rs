//! One blocking connection to a server that may die at any moment: owns a request's bytes and reading its answer. It
//! repairs, follows and retries nothing: what is not a whole answer is an error.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The longest wait for anything. A server that is slower counts as one that does not answer, whose outcome is unknown.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// No answer has a longer head.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// No head has more lines.
const HEADERS_MAX: usize = 64;

/// Larger answers than any block mean that the length is wrong.
const BODY_BYTES_MAX: u64 = 64 << 20;

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body, empty for HEAD.
    pub body: Vec<u8>,
    keep_alive: bool,
}

/// A connection, made when it is needed and again when it was lost.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    authorization: String,
    wait_max: Duration,
    stream: Option<TcpStream>,
}

impl Client {
    /// A client that presents this bearer token.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        Self {
            address,
            authorization: format!("Authorization: Bearer {token}\r\n"),
            wait_max: WAIT_MAX,
            stream: None,
        }
    }

    /// Sets the longest wait for the answers to come.
    pub fn wait_at_most(&mut self, wait_max: Duration) {
        // The socket took its limit when it was made.
        if wait_max != self.wait_max {
            self.wait_max = wait_max;
            self.stream = None;
        }
    }

    /// One request and its answer. After an error its outcome is unknown and the connection is gone.
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        let mut message = self.head(method, path, body.len());
        message.extend_from_slice(body);
        stream.write_all(&message)?;
        let answer = read_answer(&mut stream, method)?;
        if answer.keep_alive {
            self.stream = Some(stream);
        }
        Ok(answer)
    }

    /// Sends the head of a PUT and so many bytes of its body, and waits for nothing.
    pub fn send_part(&mut self, path: &str, body: &[u8], sent_bytes: usize) -> io::Result<()> {
        let mut stream = self.connect()?;
        let mut message = self.head("PUT", path, body.len());
        message.extend_from_slice(&body[..sent_bytes]);
        stream.write_all(&message)?;
        self.stream = Some(stream);
        Ok(())
    }

    fn connect(&mut self) -> io::Result<TcpStream> {
        if let Some(stream) = self.stream.take() {
            return Ok(stream);
        }
        let stream = TcpStream::connect_timeout(&self.address, WAIT_MAX)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.wait_max))?;
        stream.set_write_timeout(Some(WAIT_MAX))?;
        Ok(stream)
    }

    fn head(&self, method: &str, path: &str, length: usize) -> Vec<u8> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{}",
            self.authorization
        );
        if matches!(method, "PUT" | "POST") {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

fn read_answer(stream: &mut TcpStream, method: &str) -> io::Result<Answer> {
    let mut received = Vec::with_capacity(64 * 1024);
    let (status, length, keep_alive, head_bytes) = loop {
        if let Some(head) = parse_head(&received)? {
            break head;
        }
        if received.len() > HEAD_BYTES_MAX {
            return Err(invalid("the answer's head does not end"));
        }
        fill(stream, &mut received)?;
    };
    let mut body = received.split_off(head_bytes);
    let has_body = method != "HEAD" && !matches!(status, 204 | 304);
    let length = if has_body { length } else { Some(0) };
    let length = length.ok_or_else(|| invalid("an answer without Content-Length"))?;
    if length > BODY_BYTES_MAX {
        return Err(invalid("an answer longer than any block"));
    }
    while (body.len() as u64) < length {
        fill(stream, &mut body)?;
    }
    if body.len() as u64 > length {
        return Err(invalid("bytes behind the answer's end"));
    }
    Ok(Answer {
        status,
        body,
        keep_alive,
    })
}

fn fill(stream: &mut TcpStream, target: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 64 * 1024];
    match stream.read(&mut chunk)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            target.extend_from_slice(&chunk[..count]);
            Ok(())
        }
    }
}

type Head = (u16, Option<u64>, bool, usize);

/// Status, length, whether the connection stays, and the head's own length; `None` while it is not complete.
fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response
        .parse(bytes)
        .map_err(|error| invalid(&error.to_string()))?;
    let httparse::Status::Complete(head_bytes) = parsed else {
        return Ok(None);
    };
    let value = |name: &str| {
        let header = response.headers.iter();
        let mut header = header.filter(|header| header.name.eq_ignore_ascii_case(name));
        header
            .next()
            .and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let length = match value("content-length") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| invalid("Content-Length"))?),
    };
    let keep_alive = !value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let status = response.code.ok_or_else(|| invalid("no status"))?;
    Ok(Some((status, length, keep_alive, head_bytes)))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
