//! The request target: which volume and key, or which control path. Pure.
//!
//! A key is decoded once and taken byte for byte. One that another system could resolve to a
//! different object (`.` and `..` segments, raw or encoded, NUL) is refused here, before any
//! table or store sees it.

use forebay_shards::key::KEY_BYTES_MAX;
use percent_encoding::percent_decode_str;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/-/…`: the part after `/-/`.
    Control(String),
    /// `/`: the service itself.
    Service,
    /// `/{volume}` or `/{volume}/`: a volume without a key.
    Volume(String),
    /// `/{volume}/{key}`.
    Object {
        /// The volume's name.
        volume: String,
        /// The object's key.
        key: String,
    },
}

/// Why a target is refused (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a path.
    #[error("the request target must be a path")]
    NotAPath,
    /// `%` without two hexadecimal digits.
    #[error("a percent sign must be followed by two hexadecimal digits")]
    Escape,
    /// Not UTF-8 after decoding.
    #[error("the key must be UTF-8")]
    NotUtf8,
    /// A NUL or other control byte that no S3 tool sends.
    #[error("the key must not hold NUL")]
    Nul,
    /// `.` or `..` between slashes.
    #[error("a key must not have `.` or `..` between slashes")]
    DotSegment,
    /// Longer than S3 allows.
    #[error("a key has at most {KEY_BYTES_MAX} bytes")]
    KeyTooLong,
}

/// A target and its query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedTarget {
    /// What it is about.
    pub target: Target,
    /// Decoded pairs in order; a name without `=` has an empty value.
    pub query: Vec<(String, String)>,
}

/// Parses path and query as sent.
pub fn parse(raw: &str) -> Result<ParsedTarget, TargetError> {
    let (path, query) = raw.split_once('?').unwrap_or((raw, ""));
    let path = path.strip_prefix('/').ok_or(TargetError::NotAPath)?;
    let (first, rest) = match path.split_once('/') {
        Some((first, rest)) => (decode(first)?, Some(rest)),
        None => (decode(path)?, None),
    };
    let target = match (first.as_str(), rest) {
        ("-", rest) => Target::Control(decode(rest.unwrap_or_default())?),
        ("", None) => Target::Service,
        (_, None | Some("")) => Target::Volume(first),
        (_, Some(key)) => Target::Object {
            volume: first,
            key: check_key(decode(key)?)?,
        },
    };
    Ok(ParsedTarget {
        target,
        query: parse_query(query)?,
    })
}

fn decode(text: &str) -> Result<String, TargetError> {
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let hex = |offset: usize| bytes.get(at + offset).is_some_and(u8::is_ascii_hexdigit);
        if *byte == b'%' && !(hex(1) && hex(2)) {
            return Err(TargetError::Escape);
        }
    }
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| TargetError::NotUtf8)?;
    Ok(decoded.into_owned())
}

/// Refuses a key that another system could take for another one.
pub fn check_key(key: String) -> Result<String, TargetError> {
    if key.len() > KEY_BYTES_MAX {
        return Err(TargetError::KeyTooLong);
    }
    if key.contains('\0') {
        return Err(TargetError::Nul);
    }
    if key
        .split('/')
        .any(|segment| segment == "." || segment == "..")
    {
        return Err(TargetError::DotSegment);
    }
    Ok(key)
}

fn parse_query(query: &str) -> Result<Vec<(String, String)>, TargetError> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // In a query, unlike in a path, a plus is a blank.
            Ok((
                decode(&name.replace('+', " "))?,
                decode(&value.replace('+', " "))?,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(raw: &str) -> Result<(String, String), TargetError> {
        match parse(raw)?.target {
            Target::Object { volume, key } => Ok((volume, key)),
            other => panic!("{raw}: {other:?}"),
        }
    }

    #[test]
    fn keys_are_taken_byte_for_byte() {
        let key = |raw: &str| object(raw).map(|(_, key)| key);
        assert_eq!(key("/v/a/b"), Ok("a/b".into()));
        assert_eq!(key("/v//a//b/"), Ok("/a//b/".into()));
        assert_eq!(key("/v/a%2Fb+c%20d"), Ok("a/b+c d".into()));
        assert_eq!(key("/v/%D1%8E"), Ok("ю".into()));
        assert_eq!(key("/v/...a/.b"), Ok("...a/.b".into()));
        assert_eq!(
            key(&format!("/v/{}", "k".repeat(1024))).map(|k| k.len()),
            Ok(1024)
        );
    }

    #[test]
    fn hostile_keys_are_refused() {
        for raw in [
            "/v/..",
            "/v/.",
            "/v/a/../b",
            "/v/%2e%2e/b",
            "/v/a/%2E",
            "/v/a%2f..%2fb",
            "/v/./",
        ] {
            assert_eq!(object(raw), Err(TargetError::DotSegment), "{raw}");
        }
        assert_eq!(object("/v/a%00"), Err(TargetError::Nul));
        assert_eq!(object("/v/%ff"), Err(TargetError::NotUtf8));
        assert_eq!(object("/v/%4"), Err(TargetError::Escape));
        assert_eq!(object("/v/%zz"), Err(TargetError::Escape));
        assert_eq!(
            object(&format!("/v/{}", "k".repeat(1025))),
            Err(TargetError::KeyTooLong)
        );
        assert_eq!(parse("v/k"), Err(TargetError::NotAPath));
        assert_eq!(parse("*"), Err(TargetError::NotAPath));
    }

    #[test]
    fn the_rest_of_the_name_space() {
        let target = |raw: &str| parse(raw).map(|parsed| parsed.target);
        assert_eq!(target("/"), Ok(Target::Service));
        assert_eq!(target("/v"), Ok(Target::Volume("v".into())));
        assert_eq!(target("/v/?list-type=2"), Ok(Target::Volume("v".into())));
        assert_eq!(target("/-/ping"), Ok(Target::Control("ping".into())));
        assert_eq!(target("/-/"), Ok(Target::Control(String::new())));
        let query = parse("/v/k?a=b%20c&d&e=f+g").expect("good").query;
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(query, [pair("a", "b c"), pair("d", ""), pair("e", "f g")]);
    }

    proptest! {
        #[test]
        fn every_legal_key_survives_encoding(key in "\\PC{1,80}") {
            let legal = !key.split('/').any(|s| s == "." || s == "..");
            let encoded: String = key.bytes().map(|b| format!("%{b:02X}")).collect();
            match object(&format!("/v/{encoded}")) {
                Ok((_, decoded)) => prop_assert!(legal && decoded == key),
                Err(_) => prop_assert!(!legal),
            }
        }
    }
}
