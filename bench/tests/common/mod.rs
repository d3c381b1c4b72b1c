//! A client that shows everything: one request over a raw socket, the answer taken apart, no retries, no pooling.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use forebay_bench::stub::StubHandle;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

/// Nothing here takes this long; a test that hangs should fail instead.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer, or as much of it as came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The error that ended the connection, if it did not end in an orderly way.
    pub broken: Option<std::io::ErrorKind>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }

    /// The code in an S3 error document.
    pub fn code(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let code = text
            .split("<Code>")
            .nth(1)
            .and_then(|rest| rest.split("</Code>").next());
        code.unwrap_or_default().to_owned()
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect to the stub");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("set a timeout");
    stream
}

/// Sends a request that asks for the connection to be closed, and reads to the end.
pub fn send(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        head.push_str(&format!("Host: {address}\r\n"));
    }
    if !body.is_empty() || method == "PUT" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut stream = connect(address);
    stream.write_all(head.as_bytes()).expect("send a head");
    // A stub that answers early may have closed its side already.
    let _ = stream.write_all(body);
    read_answer(&mut stream)
}

/// Everything until the end of the connection, as one answer.
pub fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let broken = stream
        .read_to_end(&mut bytes)
        .err()
        .map(|error| error.kind());
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Answer {
            status: 0,
            headers: Vec::new(),
            body: bytes,
            broken,
        };
    };
    let head = String::from_utf8(bytes[..end].to_vec()).expect("a head is text");
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(": "));
    Answer {
        status: status.expect("a status line"),
        headers: headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
        body: bytes[end + 4..].to_vec(),
        broken,
    }
}

/// Presigns as the server under test does, and sends. `headers` named `x-amz-*` are signed.
pub fn signed(
    stub: &StubHandle,
    method: &str,
    key: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let target = presigned_target(stub, method, key, headers, Duration::from_secs(60));
    send(stub.addr(), method, &target, headers, body)
}

pub fn presigned_target(
    stub: &StubHandle,
    method: &str,
    key: &str,
    headers: &[(&str, &str)],
    expires: Duration,
) -> String {
    let options = stub.options();
    let endpoint = stub.url().parse().expect("the stub's address is a URL");
    let bucket = Bucket::new(
        endpoint,
        UrlStyle::Path,
        options.buckets[0].clone(),
        options.region.clone(),
    );
    let bucket = bucket.expect("a bucket");
    let credentials = Credentials::new(&options.access_key, &options.secret_key);
    let url = match method {
        "GET" => sign(bucket.get_object(Some(&credentials), key), headers, expires),
        "HEAD" => sign(
            bucket.head_object(Some(&credentials), key),
            headers,
            expires,
        ),
        "PUT" => sign(bucket.put_object(Some(&credentials), key), headers, expires),
        "DELETE" => sign(
            bucket.delete_object(Some(&credentials), key),
            headers,
            expires,
        ),
        _ => panic!("no action for {method}"),
    };
    format!("{}?{}", url.path(), url.query().unwrap_or_default())
}

fn sign<'a>(
    mut action: impl S3Action<'a>,
    headers: &[(&str, &str)],
    expires: Duration,
) -> url::Url {
    for (name, value) in headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-amz-"))
    {
        action
            .headers_mut()
            .insert(name.to_string(), value.to_string());
    }
    action.sign(expires)
}
