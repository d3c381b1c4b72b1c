//! Hides secrets from the process list.
//!
//! A command line is readable by every user through `/proc/PID/cmdline`, so `--blockPass` would be no
//! secret for as long as the proxy runs. This file owns the one place that overwrites the process's
//! own arguments, in the memory where the kernel keeps them. It changes nothing but the bytes of
//! secret values, and if anything about that memory is not as expected it changes nothing at all.

use crate::cli::fold::{SECRET_FLAGS, camel};
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

/// What a hidden byte becomes.
const HIDDEN: u8 = b'*';

/// Places of `arg_start` and `arg_end` in `/proc/self/stat`, counted from the field after the
/// command's name, which is field 3 of proc(5).
const ARG_START_FIELD: usize = 48 - 3;
/// See [`ARG_START_FIELD`].
const ARG_END_FIELD: usize = 49 - 3;

/// Overwrites the values of secret flags in this process's arguments. `words` are all of the
/// arguments, the program's name first. Does nothing if no secret is among them.
///
/// To be called first thing in `main`, before any thread is started and before anything else can
/// hold a pointer into the arguments.
pub fn hide_secrets(words: &[OsString]) -> io::Result<()> {
    let spans = secret_spans(words);
    if spans.is_empty() {
        return Ok(());
    }
    let area = argument_area()?;
    let mut expected = Vec::new();
    for word in words {
        expected.extend_from_slice(word.as_bytes());
        expected.push(0);
    }
    // The kernel's own view of the area: if it is what we were given, then so is every offset in it.
    if std::fs::read("/proc/self/cmdline")? != expected || area.len() != expected.len() {
        return Err(io::Error::other(
            "the argument area does not hold the arguments",
        ));
    }
    for span in spans {
        for offset in span {
            // SAFETY: `area` is the kernel's record of where execve put this process's argument
            // strings: its initial stack, mapped readable and writable until the process ends.
            // `offset` is below `expected.len()`, which was just found equal to the area's length, so
            // the byte lies inside it. No Rust reference into it exists: the standard library keeps
            // only the raw `argv` and copies the strings out on each use. No other thread runs yet.
            // Only bytes of values are written, never a NUL, so every C string keeps its end.
            unsafe {
                std::ptr::with_exposed_provenance_mut::<u8>(area.start + offset)
                    .write_volatile(HIDDEN);
            }
        }
    }
    Ok(())
}

/// Where the kernel put the argument strings.
fn argument_area() -> io::Result<Range<usize>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    parse_argument_area(&stat)
        .ok_or_else(|| io::Error::other("/proc/self/stat does not tell where the arguments are"))
}

fn parse_argument_area(stat: &str) -> Option<Range<usize>> {
    // The command's name may hold anything, parentheses and spaces included; the last `)` ends it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let start = fields.get(ARG_START_FIELD)?.parse().ok()?;
    let end = fields.get(ARG_END_FIELD)?.parse().ok()?;
    (0 < start && start < end).then_some(start..end)
}

/// The byte ranges of secret values in the NUL-terminated concatenation of `words`.
fn secret_spans(words: &[OsString]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut offset = 0;
    let mut value_follows = false;
    for word in words {
        let bytes = word.as_bytes();
        if value_follows {
            spans.push(offset..offset + bytes.len());
            value_follows = false;
        } else {
            for name in SECRET_FLAGS
                .iter()
                .flat_map(|flag| [(*flag).to_owned(), camel(flag)])
            {
                match bytes.strip_prefix(name.as_bytes()) {
                    Some([]) => value_follows = true,
                    Some([b'=', value @ ..]) => {
                        let end = offset + bytes.len();
                        spans.push(end - value.len()..end);
                    }
                    _ => {}
                }
            }
        }
        offset += bytes.len() + 1;
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(words: &[&str]) -> String {
        let mut all = words.join("\0").into_bytes();
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        for span in secret_spans(&words) {
            all[span].fill(HIDDEN);
        }
        String::from_utf8(all).expect("text").replace('\0', " ")
    }

    #[test]
    fn values_of_secret_flags_are_found_in_every_spelling() {
        assert_eq!(
            hidden(&["forebay", "start", "--blockPass", "hush", "--sync"]),
            "forebay start --blockPass **** --sync"
        );
        assert_eq!(
            hidden(&[
                "forebay",
                "drain",
                "--token",
                "hush",
                "--tokenFile=f",
                "--token=hush"
            ]),
            "forebay drain --token **** --tokenFile=f --token=****"
        );
        assert_eq!(
            hidden(&["forebay", "--block-pass=hush=h", "--blockPass=", "-v"]),
            "forebay --block-pass=****** --blockPass= -v"
        );
        assert_eq!(
            hidden(&["forebay", "--block-pass", "--block-pass", "x"]),
            "forebay --block-pass ************ x"
        );
        assert_eq!(
            hidden(&[
                "forebay",
                "--blockPassword=x",
                "--blockUser",
                "me",
                "--blockPass"
            ]),
            "forebay --blockPassword=x --blockUser me --blockPass"
        );
    }

    #[test]
    fn the_area_is_read_past_odd_command_names() {
        let fields: Vec<String> = (3..=52).map(|field| (field * 1000).to_string()).collect();
        let stat = format!("7 (a) R b) {}", fields.join(" "));
        assert_eq!(parse_argument_area(&stat), Some(48_000..49_000));
        assert_eq!(parse_argument_area("7 (a) R 1 2 3"), None);
        assert_eq!(parse_argument_area(""), None);
    }
}
