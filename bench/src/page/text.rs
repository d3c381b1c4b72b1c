//! Words and numbers as a reader sees them: owns rounding, units and what must be escaped in HTML and in Markdown.

use std::fmt::{Arguments, Write as _};

/// Significant digits of a figure: two runs seldom agree in more.
const DIGITS: i32 = 3;

/// A figure in three digits, with commas between thousands: `0.0523`, `4.10`, `12,300`.
pub(super) fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let exponent = value.abs().log10().floor() as i32;
    // The place that is kept, from units (0) down to billionths, so that 0.9996 is 1.00 and 12,345 is 12,300.
    let place = exponent - (DIGITS - 1);
    if place >= 0 {
        let unit = 10_f64.powi(place);
        return grouped(&format!("{:.0}", (value / unit).round() * unit));
    }
    let rounded = format!("{:.*}", place.unsigned_abs().min(9) as usize, value);
    // Rounding may have added a digit: 9.996 is 10.0.
    let digits = rounded
        .trim_start_matches(['-', '0', '.'])
        .bytes()
        .filter(u8::is_ascii_digit)
        .count();
    if digits > DIGITS as usize {
        return rounded[..rounded.len() - 1].trim_end_matches('.').into();
    }
    rounded
}

/// Digits with commas between thousands.
fn grouped(digits: &str) -> String {
    let (sign, digits) = digits
        .strip_prefix('-')
        .map_or(("", digits), |rest| ("-", rest));
    let mut text = String::from(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Adds to a text. Unlike `write!` it cannot fail, as memory does not.
pub(super) fn put(text: &mut String, what: Arguments<'_>) {
    // A `String` takes all that is written to it.
    let _ = text.write_fmt(what);
}

/// A whole number with commas between thousands.
pub(super) fn count(value: u64) -> String {
    grouped(&value.to_string())
}

/// Bytes in the largest unit that leaves at least one of it: `64 KiB`, `1.5 GiB`.
pub(super) fn bytes(value: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if value >= 1 << shift {
            let whole = 1_u64 << shift;
            return if value.is_multiple_of(whole) {
                format!("{} {unit}", count(value >> shift))
            } else {
                format!("{} {unit}", figure(value as f64 / whole as f64))
            };
        }
    }
    format!("{value} B")
}

/// Microseconds in the unit that fits: `312 µs`, `1.25 ms`, `2.00 s`.
pub(super) fn latency(us: f64) -> String {
    // As it is rounded, not as it is: 999.9 is a millisecond.
    if us < 999.5 {
        format!("{} µs", figure(us))
    } else if us < 999_500.0 {
        format!("{} ms", figure(us / 1e3))
    } else {
        format!("{} s", figure(us / 1e6))
    }
}

/// A figure beside an axis: without the zeros at its end that only say how exact it is.
pub(super) fn tick(value: f64) -> String {
    shortest(&figure(value))
}

/// A latency beside an axis.
pub(super) fn tick_latency(us: f64) -> String {
    let text = latency(us);
    let (number, unit) = text.split_once(' ').unwrap_or((&text, ""));
    format!("{} {unit}", shortest(number))
}

fn shortest(number: &str) -> String {
    if !number.contains('.') {
        return number.into();
    }
    number.trim_end_matches('0').trim_end_matches('.').into()
}

/// `1 round`, `3 rounds`.
pub(super) fn plural(number: usize, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(number as u64))
}

/// Text for an HTML document, in elements and in quoted attributes alike. Control characters that HTML has no place for become
/// the sign that stands for what cannot be shown.
pub(super) fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(letter),
            _ if letter.is_control() => escaped.push('\u{fffd}'),
            _ => escaped.push(letter),
        }
    }
    escaped
}

/// Text for one cell of a Markdown table: on one line, and no part of it is markup.
pub(super) fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '~' | '#' | '&' => {
                escaped.push('\\');
                escaped.push(letter);
            }
            _ if letter.is_control() => escaped.push(' '),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.052_34, "0.0523"),
            (0.000_123_49, "0.000123"),
            (0.999_6, "1.00"),
            (4.1, "4.10"),
            (9.996, "10.0"),
            (99.96, "100"),
            (999.6, "1,000"),
            (123.4, "123"),
            (12_345.0, "12,300"),
            (-1.5, "-1.50"),
            (1_234_567.0, "1,230,000"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(figure(value), text, "{value}");
        }
    }

    #[test]
    fn units_fit_what_is_said() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(65_536), "64 KiB");
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(latency(312.0), "312 µs");
        assert_eq!(latency(999.7), "1.00 ms");
        assert_eq!(latency(1_250.0), "1.25 ms");
        assert_eq!(latency(2e6), "2.00 s");
        assert_eq!((tick(0.5), tick(100.0)), ("0.5".into(), "100".into()));
        assert_eq!(
            (tick_latency(10_000.0), tick_latency(1_500.0)),
            ("10 ms".into(), "1.5 ms".into())
        );
        assert_eq!(count(1_048_576), "1,048,576");
        assert_eq!(
            (plural(1, "row"), plural(2, "row")),
            ("1 row".into(), "2 rows".into())
        );
    }

    #[test]
    fn no_text_is_markup() {
        assert_eq!(
            html("<a href=\"x\" o='y'>&\u{1}"),
            "&lt;a href=&quot;x&quot; o=&#39;y&#39;&gt;&amp;\u{fffd}"
        );
        assert_eq!(markdown("a|b\n*c*"), "a\\|b \\*c\\*");
        assert_eq!(markdown("<b>`x`</b>"), "\\<b\\>\\`x\\`\\</b\\>");
    }
}
