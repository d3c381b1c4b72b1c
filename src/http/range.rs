//! The `Range` header. Pure.
//!
//! One range of bytes is served. Anything else (several ranges, another unit, a malformed value)
//! is as if there were no header, as RFC 9110 section 14.2 allows; S3 does the same.

use forebay_shards::range::RangeSpec;

/// The range that a header's value asks for; [`RangeSpec::All`] if it is to be ignored.
pub fn parse(value: &str) -> RangeSpec {
    parse_one(value).unwrap_or(RangeSpec::All)
}

fn parse_one(value: &str) -> Option<RangeSpec> {
    let (unit, set) = value.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    match (number(first)?, number(last)?) {
        (Some(first), None) => Some(RangeSpec::From(first)),
        (None, Some(count)) => Some(RangeSpec::Last(count)),
        (Some(first), Some(last)) if first <= last => Some(RangeSpec::Between(first, last)),
        _ => None,
    }
}

/// An empty text is no number; digits beyond `u64` mean "as far as there is".
fn number(text: &str) -> Option<Option<u64>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(None);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_ranges_are_understood_and_all_else_is_ignored() {
        assert_eq!(parse("bytes=0-99"), RangeSpec::Between(0, 99));
        assert_eq!(parse("Bytes = 5-"), RangeSpec::From(5));
        assert_eq!(parse("bytes=-7"), RangeSpec::Last(7));
        assert_eq!(
            parse("bytes=3-99999999999999999999999"),
            RangeSpec::Between(3, u64::MAX)
        );
        for ignored in [
            "bytes=5-2",
            "bytes=-",
            "bytes=a-b",
            "items=0-1",
            "bytes=0-1,3-4",
            "0-1",
            "bytes=--5",
        ] {
            assert_eq!(parse(ignored), RangeSpec::All, "{ignored}");
        }
    }
}
