//! The times that signatures carry, to seconds since the Unix epoch and back. Pure.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::time::UNIX_EPOCH;

/// Letters of `YYYYMMDDTHHMMSSZ`.
const BASIC_LENGTH: usize = 16;

/// Letters of `YYYYMMDD`, its day.
pub const DAY_LENGTH: usize = 8;

/// Reads `YYYYMMDDTHHMMSSZ`, the only form of `x-amz-date`.
pub fn parse_basic(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.len() != BASIC_LENGTH || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0_i16, |number, byte| {
            byte.is_ascii_digit()
                .then(|| number * 10 + i16::from(byte - b'0'))
        })
    };
    let short = |from: usize| i8::try_from(number(from, from + 2)?).ok();
    let time = DateTime::new(
        number(0, 4)?,
        short(4)?,
        short(6)?,
        short(9)?,
        short(11)?,
        short(13)?,
        0,
    );
    let timestamp = TimeZone::UTC.to_timestamp(time.ok()?).ok()?;
    Some(timestamp.as_second())
}

/// Reads a `Date` header: HTTP's form, or the basic one.
pub fn parse_header(text: &str) -> Option<i64> {
    parse_basic(text).or_else(|| {
        let time = httpdate::parse_http_date(text).ok()?;
        i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
    })
}

/// Seconds since the Unix epoch as `YYYYMMDDTHHMMSSZ`; `None` beyond the year 9999.
pub fn basic(seconds: i64) -> Option<String> {
    let time = TimeZone::UTC.to_datetime(Timestamp::from_second(seconds).ok()?);
    Some(format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    ))
}

/// Seconds since the Unix epoch as `YYYY-MM-DDTHH:MM:SSZ`, as answers have them.
pub fn readable(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_agree() {
        let seconds = 1_369_353_600;
        assert_eq!(parse_basic("20130524T000000Z"), Some(seconds));
        assert_eq!(parse_header("Fri, 24 May 2013 00:00:00 GMT"), Some(seconds));
        assert_eq!(parse_header("20130524T000000Z"), Some(seconds));
        assert_eq!(basic(seconds).as_deref(), Some("20130524T000000Z"));
        assert_eq!(readable(seconds + 61), "2013-05-24T00:01:01Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "20130524",
            "20130524T000000",
            "20130524T000000z",
            "20130524 000000Z",
            "20131324T000000Z",
            "20130532T000000Z",
            "20130229T000000Z",
            "20130524T240000Z",
            "20130524T006000Z",
            "20130524T000060Z",
            "+0130524T000000Z",
            "2013-05-24T00:00:00Z",
            "201305240T00000Z",
            "２0130524T0000Z",
        ] {
            assert_eq!(parse_basic(text), None, "{text}");
        }
        assert_eq!(parse_header("yesterday"), None);
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in 0_i64..253_402_300_000) {
            let text = basic(seconds).expect("before the year 10000");
            prop_assert_eq!(parse_basic(&text), Some(seconds));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,20}") {
            let _ = parse_header(&text);
        }
    }
}
