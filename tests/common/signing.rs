//! Requests as S3's own clients sign them, and bodies as they seal them.
//!
//! Written from Amazon's description; it shares nothing with the server. Nothing here sends anything
//! but what it is given.

use super::http::Answer;
use super::proxy::{OTHER_VOLUME, Proxy, Setup};
use aws_lc_rs::{digest, hmac};
use rusty_s3::S3Action;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub const HOST: &str = "localhost";
pub const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
pub const TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
pub const SIGNED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
pub const SIGNED_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";

/// A key pair, and what signing with it looks like.
#[derive(Clone, Copy)]
pub struct Pair {
    pub access: &'static str,
    pub secret: &'static str,
}

pub const WRITER: Pair = Pair {
    access: "FBWRITER",
    secret: "writer-secret-0123456789abcdef",
};
pub const READER: Pair = Pair {
    access: "FBREADER",
    secret: "reader-secret-0123456789abcdef",
};
/// Opens [`OTHER_VOLUME`] only.
pub const STRANGER: Pair = Pair {
    access: "FBSTRANGER",
    secret: "stranger-secret-0123456789abcdef",
};

/// A proxy whose volumes have those pairs beside their tokens.
pub fn start() -> Proxy {
    start_with(Setup::default())
}

/// The same, started as `setup` says.
pub fn start_with(setup: Setup) -> Proxy {
    let mut proxy = setup.prepare();
    let key = |pair: Pair, permission: &str| {
        let Pair { access, secret } = pair;
        format!(
            "\n[[volume.key]]\naccess_key = \"{access}\"\nsecret_key = \"{secret}\"\npermission = \"{permission}\"\n"
        )
    };
    let text = std::fs::read_to_string(proxy.config_file()).expect("settings");
    let border = format!("\n[[volume]]\nname = \"{OTHER_VOLUME}\"\n");
    let (first, second) = text.split_once(&border).expect("two volumes");
    let keys = key(WRITER, "rw") + &key(READER, "r");
    let text = format!("{first}{keys}{border}{second}{}", key(STRANGER, "rw"));
    std::fs::write(proxy.config_file(), text).expect("settings");
    proxy.start();
    proxy
}

pub fn now() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(passed.expect("after 1970").as_secs()).expect("fits")
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

pub fn hmac_of(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

/// What is to be signed. The target's query must be in canonical form.
pub struct Signing<'a> {
    pub method: &'a str,
    pub target: &'a str,
    /// Signed too, names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
    pub payload: &'a str,
    pub at: i64,
}

/// A body whose chunks are to be signed.
pub struct Sealing<'a> {
    pub target: &'a str,
    /// Signed too, names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
    pub content: &'a [u8],
    pub chunk_bytes: usize,
    /// Name and value of what follows the last chunk.
    pub trailer: Option<(&'a str, &'a str)>,
}

impl Pair {
    /// Request headers with a signature among them.
    pub fn sign(self, request: &Signing<'_>) -> Vec<(String, String)> {
        let time = jiff::Timestamp::from_second(request.at).expect("a time");
        let time = time.strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = &time[..8];
        let mut headers: Vec<(&str, &str)> = request.headers.to_vec();
        headers.extend([
            ("host", HOST),
            ("x-amz-content-sha256", request.payload),
            ("x-amz-date", &time),
        ]);
        headers.sort_unstable();
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = headers.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((request.target, ""));
        let canonical = format!(
            "{}\n{path}\n{query}\n{lines}\n{names}\n{}",
            request.method, request.payload
        );
        let scope = format!("{day}/nowhere-1/s3/aws4_request");
        let text = format!(
            "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
            sha256(canonical.as_bytes())
        );
        let signature = hex::encode(hmac_of(&self.key(day), &text));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.access
        );
        let mut all: Vec<(String, String)> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        all.push(("authorization".to_owned(), authorization));
        all
    }

    /// The key that signs on a day.
    fn key(self, day: &str) -> Vec<u8> {
        let mut key = format!("AWS4{}", self.secret).into_bytes();
        for part in [day, "nowhere-1", "s3", "aws4_request"] {
            key = hmac_of(&key, part);
        }
        key
    }

    /// The headers and the body of a PUT whose chunks are signed now, and its trailer if it has one.
    pub fn seal(self, put: &Sealing<'_>) -> (Vec<(String, String)>, Vec<u8>) {
        let length = put.content.len().to_string();
        let mut headers = put.headers.to_vec();
        headers.extend([
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", &length),
        ]);
        let mut payload = SIGNED;
        if let Some((name, _)) = put.trailer {
            headers.push(("x-amz-trailer", name));
            payload = SIGNED_TRAILER;
        }
        let headers = self.sign(&Signing {
            method: "PUT",
            target: put.target,
            headers: &headers,
            payload,
            at: now(),
        });
        let find = |wanted: &str| {
            let found = headers.iter().find(|(name, _)| name == wanted);
            found.expect("signed").1.clone()
        };
        let (time, seed) = (find("x-amz-date"), find("authorization"));
        let seed = seed.rsplit_once('=').expect("a signature").1;
        let body = self.seal_body(put, &time, seed);
        (headers, body)
    }

    fn seal_body(self, put: &Sealing<'_>, time: &str, seed: &str) -> Vec<u8> {
        let (key, mut previous) = (self.key(&time[..8]), seed.to_owned());
        let mut sign = |kind: &str, hashes: &str| {
            let scope = format!("{}/nowhere-1/s3/aws4_request", &time[..8]);
            let text = format!("AWS4-HMAC-SHA256-{kind}\n{time}\n{scope}\n{previous}\n{hashes}");
            previous = hex::encode(hmac_of(&key, &text));
            previous.clone()
        };
        let mut body = Vec::new();
        for chunk in put.content.chunks(put.chunk_bytes).chain([&b""[..]]) {
            let hashes = format!("{}\n{}", sha256(b""), sha256(chunk));
            let signature = sign("PAYLOAD", &hashes);
            let line = format!("{:x};chunk-signature={signature}\r\n", chunk.len());
            body.extend_from_slice(line.as_bytes());
            body.extend_from_slice(chunk);
            if !chunk.is_empty() {
                body.extend_from_slice(b"\r\n");
            }
        }
        if let Some((name, value)) = put.trailer {
            let line = format!("{name}:{value}");
            let signature = sign("TRAILER", &sha256(format!("{line}\n").as_bytes()));
            let lines = format!("{line}\r\nx-amz-trailer-signature:{signature}\r\n");
            body.extend_from_slice(lines.as_bytes());
        }
        body.extend_from_slice(b"\r\n");
        body
    }

    /// Headers of a request that is signed now, its body by its hash.
    pub fn headers(self, method: &str, target: &str, body: &[u8]) -> Vec<(String, String)> {
        self.sign(&Signing {
            method,
            target,
            headers: &[],
            payload: &sha256(body),
            at: now(),
        })
    }

    pub fn send(self, proxy: &Proxy, method: &str, target: &str, body: &[u8]) -> Answer {
        let headers = self.headers(method, target, body);
        send(proxy, method, target, &headers, body)
    }

    pub fn presign<'a, A: S3Action<'a>>(self, action: A, at: i64, seconds: u64) -> String {
        let at = jiff::Timestamp::from_second(at).expect("a time");
        let url = action.sign_with_time(Duration::from_secs(seconds), &at);
        format!("{}?{}", url.path(), url.query().expect("a query"))
    }

    pub fn credentials(self) -> rusty_s3::Credentials {
        rusty_s3::Credentials::new(self.access, self.secret)
    }
}

pub fn borrowed(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect()
}

pub fn send(
    proxy: &Proxy,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Answer {
    proxy.request(method, target, &borrowed(headers), body)
}

/// Status and error code, which `HEAD` has no body for.
pub fn verdict(answer: &Answer, method: &str) -> (u16, String) {
    let code = (answer.status >= 400 && method != "HEAD").then(|| answer.error_code());
    (answer.status, code.unwrap_or_default())
}

pub fn assert_code(answer: &Answer, status: u16, code: &str, what: &str) {
    let found = verdict(answer, "GET");
    assert_eq!(
        (found.0, found.1.as_str()),
        (status, code),
        "{what}: {}",
        answer.text()
    );
}

/// A request whose signature is in its query.
pub fn send_presigned(proxy: &Proxy, method: &str, target: &str, body: &[u8]) -> Answer {
    let headers = [("Authorization", "")];
    proxy.request(method, target, &headers, body)
}

pub fn bucket(name: &'static str) -> rusty_s3::Bucket {
    let endpoint = format!("http://{HOST}").parse().expect("a URL");
    rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, name, "eu-1").expect("a bucket")
}
