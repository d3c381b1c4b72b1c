//! An object's headers as Azure keeps them, and back.
//!
//! Pure. Content headers have places of their own in Azure. Everything else is the blob's metadata,
//! whose names must be identifiers: a letter or `_`, then letters, digits and `_`. Whatever S3 allows
//! beyond that is written so that it comes back as it was:
//!
//! | header | metadata |
//! |---|---|
//! | `x-amz-meta-colour2` | `colour2` |
//! | `x-amz-meta-last-seen_by` | `last_2dseen_5fby`: any other byte as `_` and two hexadecimal digits |
//! | `x-amz-meta-1st` | `_31st` |
//! | a value that is empty or not of visible ASCII and blanks | `…__u`, its bytes percent-encoded |
//! | `expires` | `__expires` |
//! | `x-amz-checksum-sha256` | `__checksum_sha256` |
//!
//! `__` followed by a letter is no such escape, so nothing is written in two ways. A name that others gave and that is
//! none of these is told as it is, so `a_b` of theirs is `x-amz-meta-a_b`.

use super::super::s3::answer::{META_PREFIX, OBJECT_HEADERS};
use forebay_io::store::{CHECKSUM_PREFIX, StoreError, StoreErrorKind, StoreResult};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use reqwest::header::HeaderMap;
use std::collections::BTreeSet;

/// What starts the names of a blob's metadata among headers.
pub(super) const OWN_META: &str = "x-ms-meta-";

/// Metadata of ours, without [`OWN_META`].
const EXPIRES: &str = "__expires";
const CHECKSUM: &str = "__checksum_";
const CRC64NVME: &str = "__crc64nvme";
const ENCODED_VALUE: &str = "__u";

/// Of an object that was made from parts: the upload's name. Told to nobody.
pub(super) const UPLOAD_META: &str = "x-ms-meta-__upload";

/// Of what an upload is remembered by: the object's key, percent-encoded. Told to nobody.
pub(super) const KEY_META: &str = "x-ms-meta-__key";

/// What stands for a value that is empty: nothing that is percent-encoded.
const EMPTY_VALUE: &str = "%";

/// The header of the CRC64-NVME that S3's stores give.
const CRC_HEADER: &str = "x-amz-checksum-crc64nvme";

/// An object's headers for a request that writes it; `crc64nvme` is of its bytes.
///
/// # Errors
/// `Rejected` for a header that no object has, or that is there twice.
pub(super) fn to_azure(
    headers: &[(String, String)],
    crc64nvme: Option<u64>,
) -> StoreResult<Vec<(String, String)>> {
    let mut names = BTreeSet::new();
    let mut out = Vec::with_capacity(headers.len() + 1);
    for (name, value) in headers {
        if !names.insert(name) || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(not_an_objects(name));
        }
        if let Some(user) = name.strip_prefix(META_PREFIX) {
            let (mut name, value) = (encode_name(user), encode_value(value));
            if user.is_empty() {
                return Err(not_an_objects(META_PREFIX));
            }
            let value = match value {
                Ok(plain) => plain,
                Err(encoded) => {
                    name.push_str(ENCODED_VALUE);
                    encoded
                }
            };
            out.push((format!("{OWN_META}{name}"), value));
        } else if let Some(kind) = name.strip_prefix(CHECKSUM_PREFIX) {
            if !kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(not_an_objects(name));
            }
            // Ours stands below, and is the same.
            if kind != "type" && !(kind == "crc64nvme" && crc64nvme.is_some()) {
                out.push((format!("{OWN_META}{CHECKSUM}{kind}"), value.clone()));
            }
        } else if name == "expires" {
            out.push((format!("{OWN_META}{EXPIRES}"), value.clone()));
        } else if OBJECT_HEADERS.contains(&name.as_str()) {
            let name = match name.as_str() {
                "cache-control" => "x-ms-blob-cache-control".to_owned(),
                content => format!("x-ms-blob-{content}"),
            };
            out.push((name, value.clone()));
        } else {
            return Err(not_an_objects(name));
        }
    }
    if let Some(crc) = crc64nvme {
        let value = super::super::s3::base64(&crc.to_be_bytes());
        out.push((format!("{OWN_META}{CRC64NVME}"), value));
    }
    Ok(out)
}

fn not_an_objects(name: &str) -> StoreError {
    let message = format!("header {name:?} is not one that an object has once");
    StoreError::new(StoreErrorKind::Rejected, message)
}

/// What an answer tells of an object's headers, and of its CRC64-NVME.
pub(super) fn from_azure(headers: &HeaderMap) -> (Vec<(String, String)>, Option<u64>) {
    let mut out = Vec::new();
    let mut crc = None;
    for (name, value) in headers {
        if name == UPLOAD_META || name == KEY_META {
            continue;
        }
        let (name, value) = (name.as_str(), String::from_utf8_lossy(value.as_bytes()));
        if OBJECT_HEADERS.contains(&name) && name != "expires" {
            out.push((name.to_owned(), value.into_owned()));
        } else if let Some(own) = name.strip_prefix(OWN_META) {
            if own == CRC64NVME {
                crc = decode_crc(&value);
            } else {
                out.push(user_header(own, &value));
            }
        }
    }
    let has_checksum = out
        .iter()
        .any(|(name, _)| name.starts_with(CHECKSUM_PREFIX));
    if let Some(crc) = crc.filter(|_| !has_checksum) {
        let value = super::super::s3::base64(&crc.to_be_bytes());
        out.push((CRC_HEADER.to_owned(), value));
    }
    (out, crc)
}

/// The CRC64-NVME among an object's headers.
pub(super) fn told_crc(headers: &[(String, String)]) -> Option<u64> {
    let told = headers.iter().find(|(name, _)| name == CRC_HEADER)?;
    decode_crc(&told.1)
}

/// A header from a name of metadata, without [`OWN_META`], and its value.
fn user_header(own: &str, value: &str) -> (String, String) {
    if own == EXPIRES {
        return ("expires".to_owned(), value.to_owned());
    }
    if let Some(kind) = own.strip_prefix(CHECKSUM) {
        return (format!("{CHECKSUM_PREFIX}{kind}"), value.to_owned());
    }
    let encoded = own.strip_suffix(ENCODED_VALUE).and_then(decode_name);
    if let Some(name) = encoded
        && let Some(decoded) = decode_value(value)
    {
        return (format!("{META_PREFIX}{name}"), decoded);
    }
    let name = decode_name(own);
    let name = name.as_deref().unwrap_or(own);
    (format!("{META_PREFIX}{name}"), value.to_owned())
}

/// A user's name as an identifier.
fn encode_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        let is_kept = byte.is_ascii_alphabetic() || (byte.is_ascii_digit() && at > 0);
        match is_kept {
            true => out.push(byte as char),
            false => out.push_str(&format!("_{byte:02x}")),
        }
    }
    out
}

/// The name that was written so; `None` if [`encode_name`] would have written another.
fn decode_name(own: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(own.len());
    let mut rest = own.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'_' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digits = after.get(..2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &after[2..];
    }
    let name = String::from_utf8(bytes).ok()?;
    (encode_name(&name) == own).then_some(name)
}

/// `Ok` with a value that goes as it is, `Err` with one that had to be encoded.
fn encode_value(value: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    let is_kept = !value.is_empty() && value.trim() == value && value.bytes().all(is_plain);
    match is_kept {
        true => Ok(value.to_owned()),
        false if value.is_empty() => Err(EMPTY_VALUE.to_owned()),
        false => Err(percent_encode(value.as_bytes(), NON_ALPHANUMERIC).to_string()),
    }
}

/// The value that had to be encoded so; `None` if it is none of ours.
fn decode_value(encoded: &str) -> Option<String> {
    if encoded == EMPTY_VALUE {
        return Some(String::new());
    }
    let decoded = percent_decode_str(encoded).decode_utf8().ok()?;
    let is_ours = encode_value(&decoded).err().as_deref() == Some(encoded);
    is_ours.then(|| decoded.into_owned())
}

fn decode_crc(value: &str) -> Option<u64> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(value.trim())
        .ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};

    fn answered(pairs: &[(String, String)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let plain = name.strip_prefix("x-ms-blob-").unwrap_or(name);
            let name = HeaderName::from_bytes(plain.as_bytes()).expect("a name");
            (
                name,
                HeaderValue::from_bytes(value.as_bytes()).expect("a value"),
            )
        });
        pairs.collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn names_are_identifiers_that_people_can_read() {
        for (name, own) in [
            ("colour2", "colour2"),
            ("last-seen_by", "last_2dseen_5fby"),
            ("1st", "_31st"),
            ("a.b", "a_2eb"),
        ] {
            assert_eq!(encode_name(name), own);
            assert_eq!(decode_name(own).as_deref(), Some(name));
        }
        // Of others: told as they are.
        for own in ["a_b", "_x", "a_", "a_zz", "a_41", "__u"] {
            assert_eq!(decode_name(own), None, "{own}");
            assert_eq!(user_header(own, "v").0, format!("x-amz-meta-{own}"));
        }
    }

    #[test]
    fn what_no_object_has_is_refused() {
        for headers in [
            vec![pair("x-amz-acl", "private")],
            vec![pair("x-amz-meta-A", "x")],
            vec![pair("x-amz-meta-", "x")],
            vec![pair("x-amz-checksum-sha256-x", "x")],
            vec![pair("x-amz-meta-a", "1"), pair("x-amz-meta-a", "2")],
        ] {
            let error = to_azure(&headers, None).expect_err("refused");
            assert_eq!(error.kind, StoreErrorKind::Rejected);
        }
    }

    #[test]
    fn a_checksum_is_told_as_it_was_given_else_ours() {
        let sent = to_azure(&[pair("x-amz-checksum-sha256", "abc=")], Some(7)).expect("good");
        let (headers, crc) = from_azure(&answered(&sent));
        assert_eq!(
            (headers, crc),
            (vec![pair("x-amz-checksum-sha256", "abc=")], Some(7))
        );
        let sent = to_azure(&[], Some(7)).expect("good");
        let (headers, crc) = from_azure(&answered(&sent));
        assert_eq!(
            (headers, crc),
            (vec![pair(CRC_HEADER, "AAAAAAAAAAc=")], Some(7))
        );
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back(
            names in prop::collection::btree_set("[a-z0-9!#$%&'*+.^_`|~-]{1,12}", 0..6),
            values in prop::collection::vec("[ -~äé€]{0,12}", 6),
            content in "[a-z/]{1,9}",
        ) {
            let mut headers = vec![pair("content-type", &content), pair("expires", "never")];
            for (name, value) in names.iter().zip(values) {
                headers.push((format!("x-amz-meta-{name}"), value));
            }
            let sent = to_azure(&headers, None).expect("good");
            for (name, value) in &sent {
                if let Some(own) = name.strip_prefix(OWN_META) {
                    prop_assert!(own.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
                    prop_assert!(!own.starts_with(|first: char| first.is_ascii_digit()));
                    prop_assert!(!value.is_empty() && value.is_ascii() && value.trim() == value);
                }
            }
            let unique: BTreeSet<_> = sent.iter().map(|header| &header.0).collect();
            prop_assert_eq!(unique.len(), sent.len());
            let (mut back, _) = from_azure(&answered(&sent));
            back.sort();
            headers.sort();
            prop_assert_eq!(back, headers);
        }
    }
}
