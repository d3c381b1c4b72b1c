//! Sizes as people write them: `5%`, `64M`, `1T`, `4MiB`, plain bytes.
//!
//! This file owns the reading of such words and nothing else: it never asks the system how large
//! anything is. Multiples are binary, whatever the letter case and with or without `B` or `iB`.

use std::fmt;
use std::str::FromStr;

/// Bytes in one KiB, MiB and so on, by the letter that names them.
const UNITS: [(char, u64); 5] = [
    ('k', 1 << 10),
    ('m', 1 << 20),
    ('g', 1 << 30),
    ('t', 1 << 40),
    ('p', 1 << 50),
];

/// A word that is no size. Prints what was given and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` {problem}")]
pub struct SizeError {
    given: String,
    problem: &'static str,
}

/// A share of something or a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Percent of the whole, more than 0 and at most 100.
    Percent(f64),
    /// Bytes.
    Bytes(u64),
}

impl Amount {
    /// The amount in bytes where the whole is `total` bytes. An absolute amount is not cut to it.
    pub fn resolve(self, total: u64) -> u64 {
        match self {
            // Exact to 2^53 bytes, which is beyond any disk; the cast saturates.
            Amount::Percent(percent) => (total as f64 * (percent / 100.0)) as u64,
            Amount::Bytes(bytes) => bytes,
        }
    }
}

impl FromStr for Amount {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let Some(number) = text.strip_suffix('%') else {
            let bytes = parse_bytes(text)?;
            return Ok(Amount::Bytes(bytes));
        };
        let refuse = |problem| {
            Err(SizeError {
                given: text.to_owned(),
                problem,
            })
        };
        // Digits and a point only: `inf%`, `1e1%` and `+5%` are numbers to the standard library.
        if !number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
        {
            return refuse("is not a percentage; write for instance 5% or 12.5%");
        }
        match number.parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Amount::Percent(percent)),
            Ok(_) => refuse("is out of range; a percentage is more than 0% and at most 100%"),
            Err(_) => refuse("is not a percentage; write for instance 5% or 12.5%"),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Percent(percent) => write!(f, "{percent}%"),
            Amount::Bytes(bytes) => {
                let largest = UNITS
                    .iter()
                    .rev()
                    .find(|(_, unit)| *bytes > 0 && bytes % unit == 0);
                match largest {
                    Some((letter, unit)) => {
                        write!(f, "{}{}", bytes / unit, letter.to_ascii_uppercase())
                    }
                    None => write!(f, "{bytes}"),
                }
            }
        }
    }
}

/// Reads an absolute size: digits, then nothing, `B`, or one of k M G T P with `B`, `iB` or nothing.
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let refuse = |problem| {
        Err(SizeError {
            given: text.to_owned(),
            problem,
        })
    };
    let digits_end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits_end);
    if suffix.starts_with('.') {
        return refuse(
            "has a fraction; write a whole number with a smaller unit (1536M, not 1.5G)",
        );
    }
    if digits.is_empty() {
        return refuse(
            "is not a size; write for instance 512k, 64M, 4MiB, 1T or a number of bytes",
        );
    }
    let Some(unit) = unit_bytes(suffix) else {
        return refuse("has an unknown unit; use k, M, G, T or P (multiples of 1024)");
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(0) => refuse("is nothing; it must be more than 0"),
        Some(bytes) => Ok(bytes),
        None => refuse("is too large; the largest size is 16383P"),
    }
}

/// The multiple that a suffix stands for.
fn unit_bytes(suffix: &str) -> Option<u64> {
    let lower = suffix.to_ascii_lowercase();
    if lower.is_empty() || lower == "b" {
        return Some(1);
    }
    let mut letters = lower.chars();
    let first = letters.next()?;
    let rest = letters.as_str();
    let (_, bytes) = UNITS.iter().find(|(letter, _)| *letter == first)?;
    matches!(rest, "" | "b" | "ib").then_some(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_documented_form_is_read() {
        for (text, bytes) in [
            ("1", 1),
            ("1048576", 1 << 20),
            ("512k", 512 << 10),
            ("512K", 512 << 10),
            ("64M", 64 << 20),
            ("4MiB", 4 << 20),
            ("256KiB", 256 << 10),
            ("8MB", 8 << 20),
            ("3G", 3 << 30),
            ("1T", 1 << 40),
            ("2pib", 2 << 50),
            ("7b", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
            assert_eq!(text.parse(), Ok(Amount::Bytes(bytes)), "{text}");
        }
        assert_eq!("5%".parse(), Ok(Amount::Percent(5.0)));
        assert_eq!("12.5%".parse(), Ok(Amount::Percent(12.5)));
        assert_eq!("100%".parse(), Ok(Amount::Percent(100.0)));
    }

    #[test]
    fn what_is_no_size_says_what_would_be_right() {
        for (text, hint) in [
            ("", "write for instance"),
            ("M", "write for instance"),
            ("-1", "write for instance"),
            ("+1", "write for instance"),
            (" 1", "write for instance"),
            ("1 M", "unknown unit"),
            ("1X", "unknown unit"),
            ("1MM", "unknown unit"),
            ("1i", "unknown unit"),
            ("1ib", "unknown unit"),
            ("1é", "unknown unit"),
            ("0", "more than 0"),
            ("0G", "more than 0"),
            ("1.5G", "1536M, not 1.5G"),
            ("16384P", "too large"),
            ("99999999999999999999", "too large"),
        ] {
            let error = parse_bytes(text).expect_err(text).to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        for text in [
            "%", "0%", "101%", "-5%", "inf%", "nan%", "1e1%", "5%%", "+5%", "1.2.3%",
        ] {
            let error = text.parse::<Amount>().expect_err(text).to_string();
            assert!(error.contains('%'), "{text}: {error}");
        }
    }

    #[test]
    fn percentages_are_of_the_whole() {
        assert_eq!(Amount::Percent(50.0).resolve(1000), 500);
        assert_eq!(Amount::Percent(100.0).resolve(1 << 50), 1 << 50);
        assert_eq!(Amount::Percent(0.1).resolve(100), 0);
        assert_eq!(Amount::Bytes(7).resolve(3), 7);
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(bytes in 1u64..) {
            let amount = Amount::Bytes(bytes);
            prop_assert_eq!(amount.to_string().parse(), Ok(amount));
        }

        #[test]
        fn no_word_makes_it_panic(text in "\\PC*") {
            let _ = text.parse::<Amount>();
        }

        #[test]
        fn a_share_never_exceeds_the_whole(percent in 0.001f64..=100.0, total in 0u64..(1 << 53)) {
            prop_assert!(Amount::Percent(percent).resolve(total) <= total);
        }
    }
}
