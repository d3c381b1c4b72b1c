//! Requests written down beforehand: owns the form of a trace file. Knows no HTTP beyond two method names.
//!
//! A line is a request, its words parted by blanks:
//!
//! ```text
//! KEY SIZE
//! GET KEY SIZE
//! GET KEY SIZE OFFSET LENGTH
//! PUT KEY SIZE
//! ```
//!
//! SIZE, OFFSET and LENGTH are bytes or carry KiB, MiB, GiB. SIZE is that of the whole object. Without a method, the verb
//! decides. Empty lines and lines that begin with `#` mean nothing.

use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::content::parse_size;
use crate::load::plan::Method;

/// Most requests of a trace, which is held in memory at about 100 bytes each.
const LINES_MAX: usize = 10_000_000;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) method: Option<Method>,
    pub(super) key: Box<str>,
    pub(super) size: u64,
    /// Offset and length of what is read.
    pub(super) range: Option<(u64, u64)>,
}

/// Reads a trace; the error names the line.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let explain = |what: String| format!("--order trace:{}: {what}", path.display());
    let file = std::fs::File::open(path).map_err(|error| explain(error.to_string()))?;
    let mut entries = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| explain(error.to_string()))?;
        let entry = parse(&line).map_err(|why| explain(format!("line {}: {why}", number + 1)))?;
        entries.extend(entry);
        if entries.len() > LINES_MAX {
            return Err(explain(format!("more than {LINES_MAX} requests")));
        }
    }
    if entries.is_empty() {
        return Err(explain("holds no request".into()));
    }
    Ok(entries)
}

fn parse(line: &str) -> Result<Option<Entry>, String> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if words.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let method = match words[0] {
        "GET" => Some(Method::Get),
        "PUT" => Some(Method::Put),
        _ => None,
    };
    if method.is_some() {
        words.remove(0);
    }
    let (key, size, range) = match words[..] {
        [key, size] => (key, parse_size(size)?, None),
        [key, size, offset, length] if method == Some(Method::Get) => {
            let (size, offset, length) =
                (parse_size(size)?, parse_size(offset)?, parse_size(length)?);
            if length == 0 || offset.checked_add(length).is_none_or(|end| end > size) {
                return Err("the range does not lie within the object".into());
            }
            (key, size, Some((offset, length)))
        }
        _ => return Err("expected [GET|PUT] KEY SIZE, or GET KEY SIZE OFFSET LENGTH".into()),
    };
    Ok(Some(Entry {
        method,
        key: key.into(),
        size,
        range,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_requests() {
        let entry = parse("GET a/b 1MiB 4096 4KiB").unwrap().unwrap();
        assert_eq!(
            (entry.method, entry.size, entry.range),
            (Some(Method::Get), 1 << 20, Some((4096, 4096)))
        );
        let entry = parse("PUT a 10").unwrap().unwrap();
        assert_eq!(
            (entry.method, &*entry.key, entry.range),
            (Some(Method::Put), "a", None)
        );
        assert_eq!(parse("a 10").unwrap().unwrap().method, None);
        assert_eq!(parse("  "), Ok(None));
        assert_eq!(parse("# a 10"), Ok(None));
    }

    #[test]
    fn other_lines_are_refused() {
        for wrong in [
            "a",
            "GET a",
            "a b",
            "DELETE a 10",
            "GET a 10 5 6",
            "GET a 10 5 0",
            "PUT a 10 0 5",
            "a 10 0 5",
            "GET a 10 5",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
