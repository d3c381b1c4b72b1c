//! An HTTP server that does what a script says, for the faults that no real store has on demand.
//!
//! It owns sockets and bytes only: each request takes the next [`Act`] of the script, whatever it
//! asks for, and is kept for the test to look at. It knows no S3.

#![allow(dead_code, reason = "each test file uses its part of it")]

pub mod client;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What to do with one request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Read the request's body, send these bytes, keep the connection.
    Send(Vec<u8>),
    /// Read the request's body, send these bytes, close the connection.
    SendAndClose(Vec<u8>),
    /// Read the request's body, send these bytes, reset the connection.
    SendAndReset(Vec<u8>),
    /// Read the request's body, send these bytes, then nothing more; keep the connection.
    SendAndHang(Vec<u8>),
    /// Read the request's body, send the first bytes at once and the second one by one, so far
    /// apart.
    SendSlowly(Vec<u8>, Vec<u8>, Duration),
    /// Send these bytes without reading the request's body; then keep the connection, unread.
    SendEarly(Vec<u8>),
    /// Read nothing but the head, answer nothing.
    Ignore,
    /// Answer by the clock: refuse requests signed more than 15 minutes off it.
    CheckClock {
        /// How far the server's clock is ahead, seconds.
        ahead_seconds: i64,
        /// What a request signed in time gets.
        good: Vec<u8>,
    },
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Request line and headers.
    pub head: String,
    /// As much of the body as was read.
    pub body: Vec<u8>,
    /// Which connection it came on, counted from 0.
    pub connection: usize,
}

impl Seen {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

#[derive(Default)]
struct State {
    script: VecDeque<Act>,
    seen: Vec<Seen>,
    connections: usize,
}

/// The server; it serves as long as the test's runtime lives.
#[derive(Clone)]
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Listens on a free port with this script. Requests beyond it get a closed connection.
    pub async fn start(script: impl IntoIterator<Item = Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let server = Server {
            address: listener.local_addr().expect("bound"),
            state: Arc::default(),
        };
        server.then(script);
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = serving.with(|state| {
                    state.connections += 1;
                    state.connections - 1
                });
                let serving = serving.clone();
                tokio::spawn(async move {
                    // A client that leaves is part of the tests.
                    let _ = serving.serve(stream, connection).await;
                });
            }
        });
        server
    }

    /// Appends to the script.
    pub fn then(&self, acts: impl IntoIterator<Item = Act>) {
        self.with(|state| state.script.extend(acts));
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has arrived so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.with(|state| state.seen.clone())
    }

    /// Connections made so far.
    pub fn connections(&self) -> usize {
        self.with(|state| state.connections)
    }

    /// Acts that no request has taken yet.
    pub fn script_left(&self) -> usize {
        self.with(|state| state.script.len())
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().expect("no test panics inside"))
    }

    async fn serve(&self, mut stream: TcpStream, connection: usize) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::new();
        while let Some(head) = read_head(&mut stream, &mut buffer).await? {
            let Some(act) = self.with(|state| state.script.pop_front()) else {
                return Ok(());
            };
            let is_read = !matches!(act, Act::SendEarly(_) | Act::Ignore);
            let mut seen = Seen {
                head,
                body: Vec::new(),
                connection,
            };
            if is_read {
                let length = seen
                    .header("content-length")
                    .and_then(|text| text.parse().ok());
                seen.body = read_body(&mut stream, &mut buffer, length.unwrap_or(0)).await?;
            }
            self.with(|state| state.seen.push(seen.clone()));
            if !perform(act, &seen, &mut stream).await? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Does one act; `false` if the connection is over.
async fn perform(act: Act, seen: &Seen, stream: &mut TcpStream) -> io::Result<bool> {
    match act {
        Act::Send(bytes) => stream.write_all(&bytes).await?,
        Act::SendAndClose(bytes) => {
            stream.write_all(&bytes).await?;
            return Ok(false);
        }
        Act::SendAndReset(bytes) => {
            stream.write_all(&bytes).await?;
            // A reset throws away what the other side has not read yet.
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.set_zero_linger()?;
            return Ok(false);
        }
        Act::SendAndHang(bytes) | Act::SendEarly(bytes) => {
            stream.write_all(&bytes).await?;
            std::future::pending().await
        }
        Act::SendSlowly(first, rest, pause) => {
            stream.write_all(&first).await?;
            for byte in rest {
                tokio::time::sleep(pause).await;
                stream.write_all(&[byte]).await?;
            }
        }
        Act::Ignore => std::future::pending().await,
        Act::CheckClock {
            ahead_seconds,
            good,
        } => {
            let bytes = clock_answer(seen, ahead_seconds, good);
            stream.write_all(&bytes).await?;
        }
    }
    Ok(true)
}

fn clock_answer(seen: &Seen, ahead_seconds: i64, good: Vec<u8>) -> Vec<u8> {
    let now = jiff::Timestamp::now().as_second() + ahead_seconds;
    let stamp = seen.head.split("X-Amz-Date=").nth(1).expect("a signed URL");
    let signed = jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ%z", format!("{}+0000", &stamp[..16]));
    let signed = signed.and_then(|time| time.to_timestamp()).expect("a date");
    if signed.as_second().abs_diff(now) <= 900 {
        return good;
    }
    let now = std::time::UNIX_EPOCH + Duration::from_secs(now.unsigned_abs());
    let date = httpdate::fmt_http_date(now);
    let body = "<Error><Code>RequestTimeTooSkewed</Code><Message>off</Message></Error>";
    answer(403, &[("Date", &date)], body.as_bytes())
}

/// An answer with its length, unless `headers` have one.
pub fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    let has_length = headers.iter().any(|(name, _)| {
        name.eq_ignore_ascii_case("content-length")
            || name.eq_ignore_ascii_case("transfer-encoding")
    });
    if !has_length {
        bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            let head = std::mem::replace(buffer, rest);
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn read_body(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    length: usize,
) -> io::Result<Vec<u8>> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let rest = buffer.split_off(length);
    Ok(std::mem::replace(buffer, rest))
}
