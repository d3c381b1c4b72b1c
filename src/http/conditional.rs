//! Preconditions of reads: `If-Match`, `If-None-Match`, `If-(Un)Modified-Since`, `If-Range`. Pure.

use super::head::Head;
use forebay_io::store::ObjectMeta;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the preconditions say (RFC 9110 section 13.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Headers that [`judge`] looks at.
const CONDITIONS: [&str; 4] = [
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
];

/// Whether a read has preconditions.
pub fn is_asked(head: &Head) -> bool {
    CONDITIONS.iter().any(|name| head.has(name))
}

/// Judges a read of the object that `meta` describes.
pub fn judge(head: &Head, meta: &ObjectMeta) -> Verdict {
    match head.header("if-match") {
        Some(list) if !matches(list, &meta.etag, false) => return Verdict::Failed,
        None if modified_since(head, "if-unmodified-since", meta) == Some(true) => {
            return Verdict::Failed;
        }
        _ => {}
    }
    match head.header("if-none-match") {
        Some(list) if matches(list, &meta.etag, true) => Verdict::NotModified,
        None if modified_since(head, "if-modified-since", meta) == Some(false) => {
            Verdict::NotModified
        }
        _ => Verdict::Proceed,
    }
}

/// Whether the preconditions of a copy hold for its source. As in S3, a tag that matches counts more than
/// a date that does not, and one that does not match more than a date that does.
pub fn judge_source(head: &Head, meta: &ObjectMeta) -> bool {
    const PREFIX: &str = "x-amz-copy-source-";
    let tags = |name: &str| head.header(&format!("{PREFIX}{name}")).map(str::to_owned);
    let newer = |name: &str| modified_since(head, &format!("{PREFIX}{name}"), meta);
    let is_meant = match tags("if-match") {
        Some(list) => matches(&list, &meta.etag, false),
        None => newer("if-unmodified-since") != Some(true),
    };
    let is_new = match tags("if-none-match") {
        Some(list) => !matches(&list, &meta.etag, true),
        None => newer("if-modified-since") != Some(false),
    };
    is_meant && is_new
}

/// Whether `If-Range`, where it is, lets a range count (RFC 9110 section 13.1.5): the client's part is
/// of exactly this version.
pub fn range_holds(head: &Head, meta: &ObjectMeta) -> bool {
    let Some(value) = head.header("if-range") else {
        return !head.has("if-range");
    };
    match httpdate::parse_http_date(value.trim()) {
        Ok(date) => modified_at(meta) == Some(date),
        Err(_) => value.trim() != "*" && matches(value, &meta.etag, false),
    }
}

/// Whether a list of entity tags names `etag` (given without quotes).
fn matches(list: &str, etag: &str, weak_compares: bool) -> bool {
    if list.trim() == "*" {
        return true;
    }
    let bare = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    let ours_is_weak = etag.starts_with("W/");
    list.split(',').map(str::trim).any(|candidate| {
        let weak = candidate.starts_with("W/");
        let tag = candidate
            .strip_prefix("W/")
            .unwrap_or(candidate)
            .trim_matches('"');
        tag == bare && (weak_compares || !(weak || ours_is_weak))
    })
}

/// Whether the object is newer than the header's date; `None` if there is no usable date.
fn modified_since(head: &Head, name: &str, meta: &ObjectMeta) -> Option<bool> {
    let date = httpdate::parse_http_date(head.header(name)?).ok()?;
    Some(modified_at(meta)? > date)
}

fn modified_at(meta: &ObjectMeta) -> Option<SystemTime> {
    (meta.last_modified > 0).then(|| UNIX_EPOCH + Duration::from_secs(meta.last_modified))
}

/// An object's modification time as HTTP writes it.
pub fn last_modified(meta: &ObjectMeta) -> Option<String> {
    modified_at(meta).map(httpdate::fmt_http_date)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(headers: &str) -> Verdict {
        let text = format!("GET /v/k HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let head = super::super::head::parse(text.as_bytes()).expect("good");
        judge(&head, &meta())
    }

    fn meta() -> ObjectMeta {
        ObjectMeta {
            etag: "abc".into(),
            last_modified: 1_000_000_000,
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn a_range_counts_for_the_same_version_only() {
        let holds = |value: &str| {
            let text = format!("GET /v/k HTTP/1.1\r\nHost: x\r\nIf-Range: {value}\r\n\r\n");
            let head = super::super::head::parse(text.as_bytes()).expect("good");
            range_holds(&head, &meta())
        };
        for (value, expected) in [
            ("\"abc\"", true),
            ("abc", true),
            ("\"abd\"", false),
            ("W/\"abc\"", false),
            ("*", false),
            ("", false),
            ("Sun, 09 Sep 2001 01:46:40 GMT", true),
            ("Sun, 09 Sep 2001 01:46:41 GMT", false),
            ("Sun, 09 Sep 2001 01:46:39 GMT", false),
            ("\u{ff}", false),
        ] {
            assert_eq!(holds(value), expected, "{value}");
        }
    }

    #[test]
    fn the_source_of_a_copy_is_judged_by_its_own_headers() {
        let holds = |headers: &str| {
            let text = format!("PUT /v/k HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
            let head = super::super::head::parse(text.as_bytes()).expect("good");
            judge_source(&head, &meta())
        };
        let (older, same) = (
            "Sat, 08 Sep 2001 01:46:40 GMT",
            "Sun, 09 Sep 2001 01:46:40 GMT",
        );
        let line = |name: &str, value: &str| format!("x-amz-copy-source-{name}: {value}\r\n");
        for (headers, expected) in [
            (String::new(), true),
            ("if-match: \"x\"\r\n".into(), true),
            (line("if-match", "\"abc\""), true),
            (line("if-match", "abc"), true),
            (line("if-match", "\"x\""), false),
            (line("if-none-match", "\"abc\""), false),
            (line("if-none-match", "\"x\""), true),
            (line("if-unmodified-since", same), true),
            (line("if-unmodified-since", older), false),
            (line("if-modified-since", older), true),
            (line("if-modified-since", same), false),
            (
                line("if-match", "abc") + &line("if-unmodified-since", older),
                true,
            ),
            (
                line("if-none-match", "abc") + &line("if-modified-since", older),
                false,
            ),
        ] {
            assert_eq!(holds(&headers), expected, "{headers}");
        }
    }

    #[test]
    fn tags_and_dates_decide_in_the_order_of_the_rfc() {
        use Verdict::{Failed, NotModified, Proceed};
        let older = "Sat, 08 Sep 2001 01:46:40 GMT";
        let same = "Sun, 09 Sep 2001 01:46:40 GMT";
        for (headers, expected) in [
            (String::new(), Proceed),
            ("If-Match: \"abc\"\r\n".into(), Proceed),
            ("If-Match: abc\r\n".into(), Proceed),
            ("If-Match: \"x\", \"abc\"\r\n".into(), Proceed),
            ("If-Match: *\r\n".into(), Proceed),
            ("If-Match: \"x\"\r\n".into(), Failed),
            ("If-Match: W/\"abc\"\r\n".into(), Failed),
            ("If-None-Match: \"abc\"\r\n".into(), NotModified),
            ("If-None-Match: W/\"abc\"\r\n".into(), NotModified),
            ("If-None-Match: \"x\"\r\n".into(), Proceed),
            (format!("If-Modified-Since: {same}\r\n"), NotModified),
            (format!("If-Modified-Since: {older}\r\n"), Proceed),
            (format!("If-Unmodified-Since: {same}\r\n"), Proceed),
            (format!("If-Unmodified-Since: {older}\r\n"), Failed),
            (
                format!("If-Match: \"abc\"\r\nIf-Unmodified-Since: {older}\r\n"),
                Proceed,
            ),
            (
                format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {same}\r\n"),
                Proceed,
            ),
            ("If-Modified-Since: soon\r\n".into(), Proceed),
        ] {
            assert_eq!(verdict(&headers), expected, "{headers}");
        }
    }
}
