//! What these tests share: uploads as a client sees them, and what the store was asked meanwhile.

use crate::common::signing::{
    Pair, Signing, UNSIGNED, WRITER, assert_code, borrowed, now, send, start_with,
};
use crate::common::stores::S3Server;
use crate::common::{Answer, Proxy, Setup, VOLUME, assert_same_bytes, pattern};
use md5::{Digest as _, Md5};

/// The least size of a part that is not the last.
pub const PART_BYTES_MIN: usize = 5 << 20;

/// Proxies in front of every kind of store that is here: a folder, and Ceph.
pub fn proxies() -> Vec<Proxy> {
    proxies_with(&Setup::default())
}

/// The same, started as `setup` says.
pub fn proxies_with(setup: &Setup) -> Vec<Proxy> {
    let rgw = S3Server::rgw().map(|server| Setup {
        store: Some(server.own_prefix()),
        ..setup.clone()
    });
    let setups = [Some(setup.clone()), rgw];
    setups.into_iter().flatten().map(start_with).collect()
}

/// Whether the store is Ceph of a version that refuses what S3 takes: a completion that does not list all
/// parts that were sent.
pub fn wants_all_parts(proxy: &Proxy) -> bool {
    proxy.setup.store.is_some()
}

/// Writes that are acknowledged before the store has them.
pub fn writeback() -> Setup {
    Setup {
        volume_lines: "ttl = \"600s\"\nwriteback = true\n".to_string(),
        // Nothing is uploaded while a test looks.
        flags: vec!["--writebackDelay".to_string(), "600000".to_string()],
        ..Setup::default()
    }
}

pub fn target(key: &str) -> String {
    format!("/{VOLUME}/{key}")
}

pub fn md5(body: &[u8]) -> String {
    hex::encode(Md5::digest(body))
}

/// The ETag of an object that came in these parts, as S3 makes it.
pub fn etag_of(parts: &[&[u8]]) -> String {
    let digests: Vec<u8> = parts.iter().flat_map(Md5::digest).collect();
    format!("\"{}-{}\"", md5(&digests), parts.len())
}

/// A signed request with more headers, its body unsigned.
pub fn request_as(
    proxy: &Proxy,
    pair: Pair,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let signed = pair.sign(&Signing {
        method,
        target,
        headers,
        payload: UNSIGNED,
        at: now(),
    });
    proxy.request(method, target, &borrowed(&signed), body)
}

pub fn request(
    proxy: &Proxy,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    request_as(proxy, WRITER, method, target, headers, body)
}

/// The text of the first element of this name.
pub fn element(answer: &Answer, name: &str) -> String {
    let text = answer.text();
    let inside = text
        .split_once(&format!("<{name}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
    let (inside, _) = inside.unwrap_or_else(|| panic!("no {name} in {text}"));
    inside.replace("&quot;", "\"").replace("&amp;", "&")
}

/// The texts of all elements of this name.
pub fn elements(answer: &Answer, name: &str) -> Vec<String> {
    let text = answer.text();
    let (opening, closing) = (format!("<{name}>"), format!("</{name}>"));
    let pieces = text.split(&opening).skip(1);
    pieces
        .map(|piece| piece.split(&closing).next().expect("closed").to_owned())
        .map(|inside| inside.replace("&quot;", "\"").replace("&amp;", "&"))
        .collect()
}

/// An upload under way.
pub struct Upload<'p> {
    pub proxy: &'p Proxy,
    pub key: String,
    pub id: String,
}

impl<'p> Upload<'p> {
    pub fn begin(proxy: &'p Proxy, key: &str) -> Upload<'p> {
        Upload::begin_with(proxy, key, &[])
    }

    pub fn begin_with(proxy: &'p Proxy, key: &str, headers: &[(&str, &str)]) -> Upload<'p> {
        // In canonical form, as it is signed.
        let uploads = format!("{}?uploads=", target(key));
        let answer = request(proxy, "POST", &uploads, headers, b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(element(&answer, "Bucket"), VOLUME);
        Upload {
            proxy,
            key: key.to_owned(),
            id: element(&answer, "UploadId"),
        }
    }

    fn encoded_id(&self) -> String {
        let bytes = self.id.bytes();
        let encoded = bytes.map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        });
        encoded.collect()
    }

    /// The target of the upload itself.
    pub fn target(&self) -> String {
        format!("{}?uploadId={}", target(&self.key), self.encoded_id())
    }

    pub fn part_target(&self, number: u32) -> String {
        let id = self.encoded_id();
        format!("{}?partNumber={number}&uploadId={id}", target(&self.key))
    }

    pub fn put_with(&self, number: u32, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        request(self.proxy, "PUT", &self.part_target(number), headers, body)
    }

    /// Puts a part that must be taken; gives its ETag with quotes.
    pub fn put(&self, number: u32, body: &[u8]) -> String {
        let answer = self.put_with(number, &[], body);
        assert_eq!(answer.status, 200, "part {number}: {}", answer.text());
        let etag = answer.expect_header("etag").to_owned();
        assert_eq!(etag, format!("\"{}\"", md5(body)));
        etag
    }

    pub fn complete_with(&self, parts: &[(u32, &str)], headers: &[(&str, &str)]) -> Answer {
        let parts = parts.iter().map(|(number, etag)| {
            format!("<Part><ETag>{etag}</ETag><PartNumber>{number}</PartNumber></Part>")
        });
        let parts: String = parts.collect();
        let document = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let target = self.target();
        request(self.proxy, "POST", &target, headers, document.as_bytes())
    }

    /// Completes an upload whose parts are good; gives the object's ETag.
    pub fn complete(&self, parts: &[(u32, &str)]) -> String {
        let answer = self.complete_with(parts, &[]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(element(&answer, "Bucket"), VOLUME);
        element(&answer, "ETag")
    }

    pub fn abort(&self) -> Answer {
        request(self.proxy, "DELETE", &self.target(), &[], b"")
    }

    pub fn list(&self, more: &str) -> Answer {
        // The parameters in canonical order.
        let id = format!("uploadId={}", self.encoded_id());
        let mut query: Vec<&str> = more.split('&').filter(|pair| !pair.is_empty()).collect();
        query.push(&id);
        query.sort_unstable();
        let target = format!("{}?{}", target(&self.key), query.join("&"));
        request(self.proxy, "GET", &target, &[], b"")
    }
}

/// Three parts of which none ends where a block does.
pub fn bodies(seed: u64) -> [Vec<u8>; 3] {
    [
        pattern(seed, PART_BYTES_MIN + 13),
        pattern(seed + 1, PART_BYTES_MIN + 700_007),
        pattern(seed + 2, 1000),
    ]
}

/// Puts an object in those parts; gives its bytes.
pub fn put_in_parts(proxy: &Proxy, key: &str, bodies: &[Vec<u8>]) -> Vec<u8> {
    let upload = Upload::begin(proxy, key);
    let etags: Vec<String> = bodies
        .iter()
        .zip(1..)
        .map(|(body, number)| upload.put(number, body))
        .collect();
    let parts: Vec<(u32, &str)> = (1..).zip(etags.iter().map(String::as_str)).collect();
    let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
    assert_eq!(upload.complete(&parts), etag_of(&slices));
    bodies.concat()
}

/// The sum of a metric's samples whose labels hold `label`; 0 if there is none.
pub fn metric(proxy: &Proxy, name: &str, label: &str) -> u64 {
    let page = proxy.operator("GET", "/-/metrics").text();
    let samples = page.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    });
    let values = samples.map(|line| {
        let (_, value) = line.rsplit_once(' ').expect("a value");
        value.parse::<f64>().expect("a number")
    });
    values.sum::<f64>() as u64
}

/// GETs that the store was sent.
pub fn store_gets(proxy: &Proxy) -> u64 {
    metric(proxy, "forebay_store_requests_total", "verb=\"GET\"")
}

/// Whether the store has all that was acknowledged.
pub fn is_clean(proxy: &Proxy) -> bool {
    let dirty = proxy.operator("GET", "/-/dirty").text();
    dirty.contains("\"blocks\": []")
}

/// Reads all of an object, which must be `expected`.
pub fn assert_object(proxy: &Proxy, key: &str, expected: &[u8], what: &str) -> Answer {
    let answer = proxy.get(key);
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    assert_same_bytes(&answer.body, expected, what);
    answer
}

pub fn assert_gone(proxy: &Proxy, key: &str, what: &str) {
    let answer = request(proxy, "GET", &target(key), &[], b"");
    assert_code(&answer, 404, "NoSuchKey", what);
}

/// A request that is not signed but bears a token.
pub fn bear(proxy: &Proxy, token: &str, method: &str, target: &str, body: &[u8]) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization".to_owned(), bearer)];
    send(proxy, method, target, &headers, body)
}
