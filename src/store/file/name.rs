//! Keys to file names and back.
//!
//! This file owns the one-to-one map between keys and relative paths. No two keys share a path, no
//! path leaves the folder, and no path is the directory of another key's file. It touches no file
//! system.
//!
//! A key is cut at each `/`. Of each segment, ASCII letters, digits, `-`, `_`, `.` (but not a
//! leading one) stay as they are, every other byte of its UTF-8 becomes `%XX` in upper-case hex,
//! and an empty segment becomes `%`. Then
//!
//! * the last segment names the file: key `a.bin` is file `a.bin`;
//! * each earlier one names a directory by a `+` at its end: key `a/b.bin` is file `a+/b.bin`,
//!   so that keys `a` and `a/b.bin` can both exist;
//! * a segment longer than 240 bytes is cut into pieces, all but the last of which are
//!   directories marked by a `=`; a `.` that comes to lead a piece is escaped too.
//!
//! `+`, `=` and a lone `%` never come out of escaping, so the marks cannot be mistaken, and a
//! leading `.` never does, so `.`, `..` and our own `.forebay-tmp` cannot be named by a key.

/// Longest piece of a name without its mark. File systems take 255 bytes; encrypted ones less (143
/// on eCryptfs), which is no reason to split names that people would like to read.
const PIECE_BYTES_MAX: usize = 240;

/// Ends the name of a directory that stands for a whole segment.
const DIRECTORY_MARK: u8 = b'+';

/// Ends the name of a directory that stands for the beginning of a segment.
const PIECE_MARK: u8 = b'=';

/// A lone `%` is an empty segment.
const EMPTY_SEGMENT: &str = "%";

/// The names that lead from the folder to the file of `key`; all but the last are directories.
pub(super) fn names_of(key: &str) -> Vec<String> {
    let mut names = Vec::new();
    let segments: Vec<&str> = key.split('/').collect();
    for (index, segment) in segments.iter().enumerate() {
        let mut rest = escaped(segment);
        while rest.len() > PIECE_BYTES_MAX {
            let mut tail = rest.split_off(PIECE_BYTES_MAX);
            if tail.starts_with('.') {
                tail.replace_range(..1, "%2E");
            }
            rest.push(char::from(PIECE_MARK));
            names.push(std::mem::replace(&mut rest, tail));
        }
        if index + 1 < segments.len() {
            rest.push(char::from(DIRECTORY_MARK));
        }
        names.push(rest);
    }
    names
}

/// The key whose file has this path, if there is one.
pub fn key_of<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.into_iter().collect();
    let (file, directories) = names.split_last()?;
    let mut key = Vec::new();
    let mut segment = String::new();
    for directory in directories {
        if let Some(piece) = directory.strip_suffix(char::from(PIECE_MARK)) {
            segment.push_str(piece);
        } else {
            segment.push_str(directory.strip_suffix(char::from(DIRECTORY_MARK))?);
            unescape(&segment, &mut key)?;
            key.push(b'/');
            segment.clear();
        }
    }
    segment.push_str(file);
    unescape(&segment, &mut key)?;
    let key = String::from_utf8(key).ok()?;
    // Only the one spelling that we would choose is the file of a key.
    (names_of(&key) == names).then_some(key)
}

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameKind {
    /// A key that ends here.
    File,
    /// A whole segment; what is below it are keys that go on.
    Directory,
    /// The beginning of a long segment.
    Piece,
}

/// The kind of a name, by its mark.
pub(super) fn kind_of(name: &str) -> NameKind {
    match name.as_bytes().last() {
        Some(&DIRECTORY_MARK) => NameKind::Directory,
        Some(&PIECE_MARK) => NameKind::Piece,
        _ => NameKind::File,
    }
}

/// The beginning of every key whose path leads through these directories, the last of which stands
/// for a whole segment; `None` if there are none.
pub(super) fn beginning_of(directories: &[String]) -> Option<String> {
    if directories.is_empty() {
        return Some(String::new());
    }
    // A file with the name of an empty segment is there for any directory.
    let names = directories.iter().map(String::as_str);
    key_of(names.chain([EMPTY_SEGMENT]))
}

fn escaped(segment: &str) -> String {
    if segment.is_empty() {
        return EMPTY_SEGMENT.to_owned();
    }
    let mut name = String::with_capacity(segment.len());
    for (index, byte) in segment.bytes().enumerate() {
        let is_plain = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_')
            || (byte == b'.' && index > 0);
        if is_plain {
            name.push(char::from(byte));
        } else {
            name.push('%');
            name.push_str(&hex::encode_upper([byte]));
        }
    }
    name
}

fn unescape(name: &str, key: &mut Vec<u8>) -> Option<()> {
    if name == EMPTY_SEGMENT {
        return Some(());
    }
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = after.get(..2)?;
            key.push(hex::decode(digits).ok()?[0]);
            rest = &after[2..];
        } else {
            key.push(*first);
            rest = after;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn path_of(key: &str) -> String {
        names_of(key).join("/")
    }

    fn back(path: &str) -> Option<String> {
        key_of(path.split('/'))
    }

    #[test]
    fn readable_names_stay_readable() {
        assert_eq!(path_of("a.bin"), "a.bin");
        assert_eq!(path_of("a/b.bin"), "a+/b.bin");
        assert_eq!(path_of("a"), "a");
        assert_eq!(path_of("a/"), "a+/%");
        assert_eq!(path_of("/a"), "%+/a");
        assert_eq!(path_of("a//b"), "a+/%+/b");
        assert_eq!(path_of(".a b+%ü"), "%2Ea%20b%2B%25%C3%BC");
        assert_eq!(path_of("..."), "%2E..");
    }

    #[test]
    fn names_that_no_key_has_map_back_to_none() {
        for path in [
            "a/b", "a b", "+", "a+", "%2e", "%41", ".x", "%", "a=", "a=/b", "%zz", "%4", "ü",
        ] {
            let expected = (path == "%").then(String::new);
            assert_eq!(back(path), expected, "{path}");
        }
    }

    #[test]
    fn long_segments_are_cut() {
        let key = format!("{}/{}", "x".repeat(500), "ü".repeat(200));
        let names = names_of(&key);
        assert!(names.iter().all(|name| name.len() <= 255), "{names:?}");
        assert_eq!(back(&names.join("/")).as_deref(), Some(key.as_str()));
    }

    #[test]
    fn no_piece_is_a_dot_segment() {
        let key = format!("{}..", "x".repeat(PIECE_BYTES_MAX));
        assert_eq!(names_of(&key)[1], "%2E.");
        assert_eq!(back(&path_of(&key)), Some(key));
    }

    #[test]
    fn the_longest_key_fits_a_path() {
        for unit in ["/", "\u{1}", "\u{1}/", "ü/", "ü"] {
            let key = unit.repeat(1024 / unit.len());
            // PATH_MAX is 4,096; the rest is for the folder itself. Names are opened one by one.
            assert!(path_of(&key).len() < 3500, "{unit:?}");
        }
    }

    /// Keys that are near each other: of few characters, most of them special somewhere.
    fn near_key() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "a", "A", "/", "%", "+", "=", ".", "2E", "%2E", " ", "ü", "\u{308}", "u",
        ]);
        let filler = prop::sample::select(vec![0_usize, 0, 0, 238, 239, 240, 241, 480]);
        (prop::collection::vec(part, 1..8), filler)
            .prop_map(|(parts, count)| format!("{}{}", "x".repeat(count), parts.concat()))
    }

    proptest! {
        #[test]
        fn every_key_comes_back(key in prop_oneof![near_key(), any::<String>()]) {
            let names = names_of(&key);
            for name in &names {
                prop_assert!(!name.is_empty() && name.len() <= 255);
                prop_assert!(!name.starts_with('.') && !name.contains('/') && name.is_ascii());
            }
            let back = key_of(names.iter().map(String::as_str));
            prop_assert_eq!(back, Some(key));
        }

        #[test]
        fn no_two_keys_collide(keys in prop::collection::btree_set(near_key(), 2..40)) {
            let mut files = BTreeMap::new();
            for key in &keys {
                let other = files.insert(path_of(key), key);
                prop_assert!(other.is_none(), "{:?} and {:?}", key, other);
            }
            // Nor is one key's file another's directory.
            for key in &keys {
                let names = names_of(key);
                for length in 1..names.len() {
                    prop_assert!(!files.contains_key(&names[..length].join("/")));
                }
            }
        }
    }
}
