//! An S3 store in memory that a test can take away, make choosy, and change behind the proxy's back.
//!
//! It knows no signatures: whether requests are signed right is tested against real servers.

use md5::{Digest, Md5};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

const BUCKET: &str = "bucket";

#[derive(Clone)]
struct Object {
    bytes: Vec<u8>,
    headers: Vec<(String, String)>,
    modified: SystemTime,
}

#[derive(Default)]
struct State {
    is_away: bool,
    refused: Vec<String>,
    objects: BTreeMap<String, Object>,
}

/// The store; it serves until the test's process ends.
#[derive(Clone)]
pub struct Store {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Store {
    /// Listens on a port of its own.
    pub fn start() -> Store {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let store = Store {
            address: listener.local_addr().expect("bound"),
            state: Arc::default(),
        };
        let serving = store.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (serving, stream) = (serving.clone(), stream.expect("accept"));
                std::thread::spawn(move || {
                    // A proxy that leaves is part of the tests.
                    let _ = serving.serve(&stream);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        store
    }

    /// `http://` and the address.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bucket that it has.
    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().expect("not poisoned"))
    }

    /// Stops answering: connections are closed without a word. Or answers again.
    pub fn set_away(&self, is_away: bool) {
        self.with(|state| state.is_away = is_away);
    }

    /// Answers uploads of keys that end so with 400.
    pub fn refuse(&self, suffixes: &[&str]) {
        let suffixes = suffixes.iter().map(|suffix| (*suffix).to_owned()).collect();
        self.with(|state| state.refused = suffixes);
    }

    /// An object's bytes, by its whole key in the bucket.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.with(|state| state.objects.get(key).map(|object| object.bytes.clone()))
    }

    /// Writes an object as somebody else would, some time ahead: clocks tell whole seconds.
    pub fn overwrite(&self, key: &str, bytes: &[u8], ahead: Duration) {
        let object = Object {
            bytes: bytes.to_vec(),
            headers: Vec::new(),
            modified: SystemTime::now() + ahead,
        };
        self.with(|state| state.objects.insert(key.to_owned(), object));
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader)? {
            if self.with(|state| state.is_away) {
                return Ok(());
            }
            let answer = self.answer(&request);
            (&mut &*stream).write_all(&answer)?;
        }
        Ok(())
    }

    fn answer(&self, request: &Request) -> Vec<u8> {
        let key = request.key.clone();
        self.with(|state| match request.method.as_str() {
            "PUT" if state.refused.iter().any(|suffix| key.ends_with(suffix)) => {
                error(400, "InvalidArgument", "this store does not like the key")
            }
            "PUT"
                if request.header("if-none-match") == Some("*")
                    && state.objects.contains_key(&key) =>
            {
                error(412, "PreconditionFailed", "it is there")
            }
            "PUT" => {
                let kept = |name: &str| name == "content-type" || name.starts_with("x-amz-meta-");
                let headers = request.headers.iter().filter(|(name, _)| kept(name));
                let object = Object {
                    bytes: request.body.clone(),
                    headers: headers.cloned().collect(),
                    modified: SystemTime::now(),
                };
                let mut headers = vec![("etag".to_owned(), object.etag())];
                let name = "x-amz-checksum-crc64nvme";
                if let Some(checksum) = request.header(name) {
                    headers.push((name.to_owned(), checksum.to_owned()));
                }
                state.objects.insert(key, object);
                reply(200, &headers, b"", false)
            }
            "DELETE" => {
                state.objects.remove(&key);
                reply(204, &[], b"", false)
            }
            method => match state.objects.get(&key) {
                Some(object) => object.answer(request),
                None if method == "HEAD" => reply(404, &[], b"", false),
                None => error(404, "NoSuchKey", "it is not there"),
            },
        })
    }
}

impl Object {
    fn etag(&self) -> String {
        let digest = Md5::digest(&self.bytes);
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\"{digits}\"")
    }

    fn answer(&self, request: &Request) -> Vec<u8> {
        let mut headers = self.headers.clone();
        headers.push(("etag".to_owned(), self.etag()));
        let modified = http_date(self.modified);
        headers.push(("last-modified".to_owned(), modified));
        if request.header("if-none-match") == Some(&self.etag()) {
            return reply(304, &headers, b"", false);
        }
        let is_head = request.method == "HEAD";
        let range = request.header("range").and_then(|range| {
            let (start, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            let last: usize = last.parse().ok()?;
            Some((start.parse::<usize>().ok()?, last.min(self.bytes.len() - 1)))
        });
        match range {
            Some((start, last)) if start <= last => {
                let value = format!("bytes {start}-{last}/{}", self.bytes.len());
                headers.push(("content-range".to_owned(), value));
                reply(206, &headers, &self.bytes[start..=last], is_head)
            }
            _ => reply(200, &headers, &self.bytes, is_head),
        }
    }
}

struct Request {
    method: String,
    /// Without the bucket, decoded.
    key: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// The next request; `None` at the end of the connection.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let path = words
            .next()
            .unwrap_or_default()
            .split('?')
            .next()
            .unwrap_or_default();
        let key = decode(
            path.strip_prefix(&format!("/{BUCKET}/"))
                .unwrap_or_default(),
        );
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Request {
            method,
            key,
            headers,
            body: Vec::new(),
        };
        let length = request.header("content-length").unwrap_or("0");
        request.body = vec![0; length.parse().expect("a length")];
        reader.read_exact(&mut request.body)?;
        Ok(Some(request))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_str())
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("hexadecimal");
                bytes.push(u8::from_str_radix(digits, 16).expect("hexadecimal"));
                rest = tail;
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).expect("a key is text")
}

fn reply(status: u16, headers: &[(String, String)], body: &[u8], is_head: bool) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} X\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !matches!(status, 204 | 304) {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let body = if is_head { b"" } else { body };
    [head.as_bytes(), body].concat()
}

fn error(status: u16, code: &str, message: &str) -> Vec<u8> {
    let document = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let headers = [("content-type".to_owned(), "application/xml".to_owned())];
    reply(status, &headers, document.as_bytes(), false)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn http_date(time: SystemTime) -> String {
    httpdate::fmt_http_date(time)
}
