//! What names, keys, tokens and durations may look like: pure functions that answer with what is
//! wrong, in words that follow "must be" or "is".
//!
//! Nothing here knows of files, lines or volumes, and no answer repeats what it was given.

use std::net::Ipv4Addr;
use std::time::Duration;

/// Shortest bearer token, bytes: 64 bits in hexadecimal, which nobody guesses over a network.
pub const TOKEN_BYTES_MIN: usize = 16;
/// Longest bearer token, bytes: it must fit a request's header beside everything else.
pub const TOKEN_BYTES_MAX: usize = 512;
/// Shortest access key, bytes: as S3 tools have it.
pub const ACCESS_KEY_BYTES_MIN: usize = 3;
/// Longest access key, bytes: as AWS has it.
pub const ACCESS_KEY_BYTES_MAX: usize = 128;
/// Shortest secret key that clients may sign with, bytes: half of AWS's, twice the least of others.
pub const SECRET_KEY_BYTES_MIN: usize = 16;
/// Longest secret key, bytes.
pub const SECRET_KEY_BYTES_MAX: usize = 128;
/// Longest store prefix, bytes: half of what S3 allows a key, so that clients keep the other half.
pub const PREFIX_BYTES_MAX: usize = 512;
/// Longest `ttl`. Beyond a day, `immutable` or a shorter time is meant.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether `name` follows S3's rules for bucket names, as volume names must.
pub fn check_volume_name(name: &str) -> Result<(), &'static str> {
    let bytes = name.as_bytes();
    if !(3..=63).contains(&bytes.len()) {
        return Err("must have 3 to 63 characters");
    }
    let letter = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !bytes
        .iter()
        .all(|byte| letter(byte) || matches!(byte, b'.' | b'-'))
    {
        return Err("may hold only lower-case letters, digits, `.` and `-`");
    }
    if !bytes.first().is_some_and(letter) || !bytes.last().is_some_and(letter) {
        return Err("must begin and end with a letter or digit");
    }
    if name.contains("..") || name.contains(".-") || name.contains("-.") {
        return Err("must not have `.` beside `.` or `-`");
    }
    if name.parse::<Ipv4Addr>().is_ok() {
        return Err("must not look like an IP address");
    }
    Ok(())
}

/// Whether `bucket` can be one of a store's. Stores differ (RGW has `tenant:bucket`), so this only
/// keeps out what could be taken for something else in a path.
pub fn check_bucket(bucket: &str) -> Result<(), &'static str> {
    if !(1..=255).contains(&bucket.len()) {
        return Err("must have 1 to 255 characters");
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    if !bucket.bytes().all(fits) {
        return Err("may hold only letters, digits, `.`, `-`, `_` and `:`");
    }
    if bucket.bytes().all(|byte| byte == b'.') {
        return Err("must not be dots only");
    }
    Ok(())
}

/// Whether `name` follows Azure's rules for containers; `$root` is none, for its blobs' URLs are others'.
pub fn check_container(name: &str) -> Result<(), &'static str> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_plain = name.bytes().all(|byte| fits(byte) || byte == b'-');
    let ends = name.bytes().next().is_some_and(fits) && name.bytes().last().is_some_and(fits);
    match (3..=63).contains(&name.len()) && is_plain && ends && !name.contains("--") {
        true => Ok(()),
        false => Err(
            "must have 3 to 63 lower-case letters, digits and single hyphens between them, as              Azure's containers do",
        ),
    }
}

/// Whether `prefix` is safe before every key: a key must never leave it, whatever the key is.
pub fn check_prefix(prefix: &str) -> Result<(), &'static str> {
    if prefix.len() > PREFIX_BYTES_MAX {
        return Err("must have at most 512 bytes");
    }
    if prefix.chars().any(char::is_control) {
        return Err("must not hold control characters");
    }
    for segment in prefix.split('/') {
        match segment {
            "" => return Err("must not begin or end with `/` or hold `//`"),
            "." | ".." => return Err("must not hold the segments `.` or `..`"),
            _ => {}
        }
    }
    Ok(())
}

/// Whether `token` can be sent as a bearer token and is long enough to be one.
pub fn check_token(token: &str) -> Result<(), &'static str> {
    if token.len() < TOKEN_BYTES_MIN {
        return Err("must have at least 16 characters; `openssl rand -hex 32` makes a good one");
    }
    if token.len() > TOKEN_BYTES_MAX {
        return Err("must have at most 512 characters");
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("may hold only visible ASCII characters, no spaces");
    }
    Ok(())
}

/// Whether `key` can stand in the credential part of a SigV4 signature.
pub fn check_access_key(key: &str) -> Result<(), &'static str> {
    if !(ACCESS_KEY_BYTES_MIN..=ACCESS_KEY_BYTES_MAX).contains(&key.len()) {
        return Err("must have 3 to 128 characters");
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    if !key.bytes().all(fits) {
        return Err("may hold only letters, digits, `.`, `-`, `_` and `:`");
    }
    Ok(())
}

/// Whether `key` is long enough to sign with.
pub fn check_secret_key(key: &str) -> Result<(), &'static str> {
    if !(SECRET_KEY_BYTES_MIN..=SECRET_KEY_BYTES_MAX).contains(&key.len()) {
        return Err("must have 16 to 128 characters; `openssl rand -hex 32` makes a good one");
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("may hold only visible ASCII characters, no spaces");
    }
    Ok(())
}

/// Reads a duration: digits and one of ms, s, m, h.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let digits_end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("must be a whole number with a unit, as 500ms, 5s, 2m or 1h"),
    };
    let count: u64 = digits
        .parse()
        .map_err(|_| "must be a whole number with a unit, as 500ms, 5s, 2m or 1h")?;
    match count.checked_mul(unit_ms).map(Duration::from_millis) {
        Some(duration) if duration <= TTL_MAX => Ok(duration),
        _ => Err("must be at most 24h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_names_are_bucket_names() {
        for name in ["genomics", "a-1", "lab.data.2026", "000", &"a".repeat(63)] {
            assert_eq!(check_volume_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "-",
            "ab",
            "Genomics",
            "a_b_c",
            "-abc",
            "abc-",
            ".abc",
            "abc.",
            "a..b",
            "a.-b",
            "a-.b",
            "10.0.0.1",
            "a/b",
            "a b",
            "gén",
            &"a".repeat(64),
        ] {
            assert!(check_volume_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn prefixes_cannot_be_left() {
        for prefix in ["flexfs/vol-1", "a", "a.b/..c/d..", "ünï/b c"] {
            assert_eq!(check_prefix(prefix), Ok(()), "{prefix}");
        }
        for prefix in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/.",
            "./a",
            "a\nb",
            "a\0b",
            &"a".repeat(513),
        ] {
            assert!(check_prefix(prefix).is_err(), "{prefix}");
        }
    }

    #[test]
    fn tokens_and_keys_have_length_and_visible_letters() {
        assert_eq!(check_token(&"t".repeat(16)), Ok(()));
        assert!(check_token(&"t".repeat(15)).is_err());
        assert!(check_token(&"t".repeat(513)).is_err());
        assert!(check_token(&format!("{} ", "t".repeat(32))).is_err());
        assert_eq!(check_access_key("test:tester"), Ok(()));
        assert!(check_access_key("ab").is_err());
        assert!(check_access_key("a/b/c").is_err());
        assert_eq!(check_secret_key("sixteen+bytes/ok"), Ok(()));
        assert!(check_secret_key("short").is_err());
    }

    #[test]
    fn buckets_never_look_like_paths() {
        assert_eq!(check_bucket("lab-data"), Ok(()));
        assert_eq!(check_bucket("tenant:Bucket_1"), Ok(()));
        for bucket in ["", "..", ".", "a/b", "a b", "a?b", "a%2fb"] {
            assert!(check_bucket(bucket).is_err(), "{bucket}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("24h"), Ok(TTL_MAX));
        for text in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "1.5s",
            "5d",
            "25h",
            "99999999999999999999s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
