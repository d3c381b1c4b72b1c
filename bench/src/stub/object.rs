//! Stored objects: owns their bytes, tags and headers, and decides preconditions and ranges. Knows no sockets.

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use md5::{Digest, Md5};

use crate::content::Content;
use crate::stub::error::S3Error;
use crate::stub::request::Headers;

/// What the bytes of an object are.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// Bytes that somebody wrote.
    Stored(Bytes),
    /// Bytes made as they are sent: `size` of them.
    Synthetic { content: Content, size: u64 },
}

impl Body {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Stored(bytes) => bytes.len() as u64,
            Self::Synthetic { size, .. } => *size,
        }
    }
}

/// An object as S3 would hold it.
#[derive(Debug, Clone)]
pub struct Object {
    pub(super) body: Body,
    etag: String,
    modified: SystemTime,
    headers: Vec<(String, String)>,
}

impl Object {
    pub(super) fn new(body: Bytes, headers: Vec<(String, String)>, modified: SystemTime) -> Self {
        let etag = format!("\"{}\"", hex::encode(Md5::digest(&body)));
        Self {
            body: Body::Stored(body),
            etag,
            modified: whole_second(modified),
            headers,
        }
    }

    pub(super) fn synthetic(key: &str, size: u64) -> Self {
        let content = Content::of_key(key);
        // Any fixed time does; one that changed between requests would look like a new version.
        let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
        let etag = content.etag(size);
        Self {
            body: Body::Synthetic { content, size },
            etag,
            modified,
            headers: Vec::new(),
        }
    }

    /// The entity tag, quotes included: the MD5 in hexadecimal of what was written.
    pub fn etag(&self) -> &str {
        &self.etag
    }

    /// When it was written, to the second.
    pub fn modified(&self) -> SystemTime {
        self.modified
    }

    /// The headers kept with it (`content-type`, `x-amz-meta-*` and the like), names in lower case.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.body.size()
    }

    /// All its bytes; those of a synthetic object are made here.
    pub fn bytes(&self) -> Bytes {
        match &self.body {
            Body::Stored(bytes) => bytes.clone(),
            Body::Synthetic { content, size } => {
                let mut bytes = vec![0; *size as usize];
                content.fill(0, &mut bytes);
                bytes.into()
            }
        }
    }
}

fn whole_second(time: SystemTime) -> SystemTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(since.as_secs())
}

/// What the preconditions of a request say about the object it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on.
    Proceed,
    /// 304: the client has it.
    NotModified,
    /// 412.
    Failed,
}

/// Weighs the preconditions of a read in the order of RFC 9110 section 13.2.2.
pub(super) fn weigh(headers: &Headers, object: &Object) -> Verdict {
    if let Some(tags) = headers.get("if-match") {
        if !tag_listed(tags, object.etag()) {
            return Verdict::Failed;
        }
    } else if let Some(limit) = headers.date("if-unmodified-since")
        && object.modified > limit
    {
        return Verdict::Failed;
    }
    if let Some(tags) = headers.get("if-none-match") {
        if tag_listed(tags, object.etag()) {
            return Verdict::NotModified;
        }
    } else if let Some(limit) = headers.date("if-modified-since")
        && object.modified <= limit
    {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// Whether `tag` is in a list such as `"a", W/"b"`; `*` lists everything, and S3 takes tags without quotes too.
pub(super) fn tag_listed(list: &str, tag: &str) -> bool {
    let bare = |text: &str| {
        text.trim()
            .trim_start_matches("W/")
            .trim_matches('"')
            .to_owned()
    };
    list.trim() == "*" || list.split(',').any(|listed| bare(listed) == bare(tag))
}

/// The bytes that a `Range` header asks for; `None` for a form that a server ignores (several ranges, other units).
pub(super) fn resolve_range(header: &str, size: u64) -> Result<Option<Range<u64>>, S3Error> {
    let Some((first, last)) = header
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
    else {
        return Ok(None);
    };
    let parse = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u64>().ok())
            .flatten()
    };
    let range = match (first, last) {
        ("", last) => parse(last).map(|suffix| (size.saturating_sub(suffix), size)),
        (first, "") => parse(first).map(|first| (first, size)),
        (first, last) => match (parse(first), parse(last)) {
            (Some(first), Some(last)) if first <= last => {
                Some((first, size.min(last.saturating_add(1))))
            }
            _ => None,
        },
    };
    match range {
        None => Ok(None),
        Some((start, end)) if start < end => Ok(Some(start..end)),
        Some(_) => {
            Err(S3Error::new("InvalidRange")
                .with_header("Content-Range", format!("bytes */{size}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_resolve_as_rfc_9110_says() {
        let resolve = |header| resolve_range(header, 10).map_err(|error| error.status);
        assert_eq!(resolve("bytes=0-0"), Ok(Some(0..1)));
        assert_eq!(resolve("bytes=2-5"), Ok(Some(2..6)));
        assert_eq!(resolve("bytes=2-"), Ok(Some(2..10)));
        assert_eq!(resolve("bytes=8-99"), Ok(Some(8..10)));
        assert_eq!(resolve("bytes=-3"), Ok(Some(7..10)));
        assert_eq!(resolve("bytes=-30"), Ok(Some(0..10)));
        assert_eq!(resolve("bytes=-0"), Err(416));
        assert_eq!(resolve("bytes=10-"), Err(416));
        assert_eq!(resolve("bytes=10-12"), Err(416));
        for ignored in [
            "bytes=5-2",
            "bytes=0-1,3-4",
            "lines=1-2",
            "bytes=",
            "bytes=-",
            "bytes=+1-2",
        ] {
            assert_eq!(resolve(ignored), Ok(None), "{ignored}");
        }
    }

    #[test]
    fn tags_are_found_in_lists() {
        assert!(tag_listed("*", "\"a\""));
        assert!(tag_listed("\"b\", W/\"a\"", "\"a\""));
        assert!(tag_listed("a", "\"a\""));
        assert!(!tag_listed("\"ab\"", "\"a\""));
    }
}
