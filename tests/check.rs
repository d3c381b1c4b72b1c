//! `forebay check` from outside: what it says of good and of damaged folders, and that it changes
//! neither; and that a proxy on the same damaged folder still answers with the store's bytes.

mod common;

use common::proxy::files_below;
use common::{Proxy, Setup, VOLUME, assert_same_bytes, pattern};
use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PAGE: u64 = 4096;

/// Objects in a used folder. Some of one page, some of several checksummed chunks.
const OBJECTS: u64 = 10;

/// What a check said, and how it ended.
struct Checked {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Checked {
    fn ends(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// The one line of the report that begins with this file's name.
    fn line_of(&self, file: &str) -> &str {
        let lines: Vec<&str> = self
            .stdout
            .lines()
            .filter(|line| line.starts_with(file))
            .collect();
        assert_eq!(lines.len(), 1, "{file} in:\n{}", self.stdout);
        lines[0]
    }

    /// The line of the report with this title.
    fn total(&self, title: &str) -> &str {
        let line = self.stdout.lines().find(|line| line.starts_with(title));
        line.unwrap_or_else(|| panic!("no {title} in:\n{}", self.stdout))
    }
}

fn check_with(words: &[&str]) -> Checked {
    let binary = std::env::var("FOREBAY_TEST_BINARY")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_forebay").to_owned());
    let output = Command::new(binary)
        .arg("check")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    Checked {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// Everything of a file that a check could change by mistake, and its content.
type Snapshot = BTreeMap<PathBuf, (Vec<u8>, (i64, i64), (i64, i64), u32, u64)>;

/// All files but the lock, which holds the process id of whoever locked last.
fn snapshot(folder: &Path) -> Snapshot {
    let files = files_below(folder).into_iter();
    let files = files.filter(|path| !path.ends_with("lock"));
    files
        .map(|path| {
            let meta = path.metadata().expect("file");
            let modified = (meta.mtime(), meta.mtime_nsec());
            let changed = (meta.ctime(), meta.ctime_nsec());
            let content = std::fs::read(&path).expect("readable file");
            (path, (content, modified, changed, meta.mode(), meta.len()))
        })
        .collect()
}

/// Checks a folder, and that the check has changed nothing in it.
fn check(proxy: &Proxy) -> Checked {
    let folder = proxy.cache_folder();
    let before = snapshot(&folder);
    let checked = check_with(&["--diskFolder", folder.to_str().expect("text")]);
    assert!(snapshot(&folder) == before, "the check changed the folder");
    checked
}

fn key(number: u64) -> String {
    format!("object-{number}")
}

fn content(number: u64) -> Vec<u8> {
    pattern(
        number + 1,
        if number.is_multiple_of(2) {
            300_000
        } else {
            3_000
        },
    )
}

/// A folder with live, replaced and deleted blocks, its proxy stopped in order.
fn used_proxy() -> Proxy {
    let mut proxy = filled_proxy();
    assert!(proxy.terminate().success());
    proxy
}

fn filled_proxy() -> Proxy {
    let proxy = Setup::default().start();
    for number in 0..OBJECTS {
        proxy.put(&key(number), &pattern(99, 5_000));
        proxy.put(&key(number), &content(number));
    }
    proxy.put("gone", &pattern(98, 5_000));
    let deleted = proxy.request("DELETE", &format!("/{VOLUME}/gone"), &[], b"");
    assert_eq!(deleted.status, 204);
    proxy
}

/// The record header pages in the folder's segments: file and offset.
fn records(proxy: &Proxy) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for path in files_below(&proxy.cache_folder()) {
        let bytes = std::fs::read(&path).expect("readable file");
        for (number, page) in bytes.chunks(PAGE as usize).enumerate() {
            if page.starts_with(b"FBRECORD") {
                found.push((path.clone(), number as u64 * PAGE));
            }
        }
    }
    found
}

/// The record of the object's newest version: it says the key and the length of the content.
fn record_of(proxy: &Proxy, number: u64) -> (PathBuf, u64) {
    let wanted = (key(number), content(number).len() as u32);
    let found = records(proxy).into_iter().find(|(path, offset)| {
        let page = page(path, *offset);
        let length = u32::from_le_bytes(page[64..68].try_into().expect("four bytes"));
        let names = String::from_utf8_lossy(&page[672..800]).into_owned();
        length == wanted.1 && names.contains(&wanted.0)
    });
    found.expect("a record of every object")
}

fn page(path: &Path, offset: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    let file = std::fs::File::open(path).expect("file");
    file.read_exact_at(&mut page, offset).expect("page");
    page
}

fn flip(path: &Path, offset: u64) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path);
    let file = file.expect("file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("byte");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("byte");
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .expect("a text")
}

/// All objects come back as they were written, from wherever.
fn assert_right_bytes(proxy: &mut Proxy) {
    proxy.start();
    for number in 0..OBJECTS {
        let answer = proxy.get(&key(number));
        assert_eq!(answer.status, 200, "{}", key(number));
        assert_same_bytes(&answer.body, &content(number), &key(number));
    }
    assert_eq!(proxy.get("gone").status, 404);
    assert!(proxy.terminate().success());
}

#[test]
fn a_good_folder_has_no_defects_and_every_record_is_counted() {
    let proxy = used_proxy();
    let checked = check(&proxy);
    checked.ends(0);
    assert!(checked.total("found").ends_with("no defects"));
    let counts = checked.total("records");
    // Each object was written twice; the deleted one is a record and its tombstone.
    for count in ["10 live", "11 replaced", "1 tombstones"] {
        assert!(counts.contains(count), "{count} in {counts}");
    }
    assert!(checked.total("segments").contains(" 0 open"));
    assert!(checked.total("read").contains("GiB/s"));
    assert_eq!(checked.stderr, "");
}

#[test]
fn both_spellings_are_taken_and_verbose_names_every_segment() {
    let proxy = used_proxy();
    let folder = proxy.cache_folder();
    let folder = folder.to_str().expect("text");
    let short = check_with(&[&format!("--disk-folder={folder}")]);
    let verbose = check_with(&["--verbose", "--diskFolder", folder]);
    let segments: Vec<PathBuf> = files_below(&proxy.cache_folder())
        .into_iter()
        .filter(|path| name_of(path).starts_with("segment-"))
        .collect();
    let mut sealed = 0;
    for path in &segments {
        let line = verbose.ends(0).line_of(name_of(path));
        // A segment is made before it is needed.
        assert!(line.contains("sealed") || line.contains("empty, not used yet, 0 records"));
        sealed += usize::from(line.contains("sealed"));
        assert!(!short.ends(0).stdout.contains(name_of(path)));
    }
    assert!(sealed > 0);
}

#[test]
fn a_folder_left_by_a_kill_has_open_segments_and_no_defects() {
    let mut proxy = filled_proxy();
    proxy.kill();
    let checked = check(&proxy);
    checked.ends(0);
    assert!(!checked.total("segments").contains(" 0 open"));
    assert!(checked.total("records").contains("10 live"));
}

#[test]
fn a_folder_in_use_is_refused_with_one_line() {
    let proxy = Setup::default().start();
    let folder = proxy.cache_folder();
    let checked = check_with(&["--diskFolder", folder.to_str().expect("text")]);
    checked.ends(1);
    assert_eq!(checked.stderr.lines().count(), 1, "{}", checked.stderr);
    assert!(checked.stderr.contains("another process uses it"));
    assert_eq!(checked.stdout, "");
}

#[test]
fn what_is_no_cache_folder_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("folder");
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(folder.path(), mode).expect("mode");
    let path = folder.path().to_str().expect("text");
    for word in ["no superblock", "not a cache folder"] {
        let checked = check_with(&["--diskFolder", path]);
        assert!(checked.ends(1).stderr.contains(word), "{}", checked.stderr);
        assert_eq!(checked.stderr.lines().count(), 1, "{}", checked.stderr);
    }
    assert_eq!(
        files_below(folder.path()),
        [] as [PathBuf; 0],
        "no lock file"
    );
    std::fs::write(folder.path().join("superblock"), pattern(1, 8192)).expect("file");
    let checked = check_with(&["--diskFolder", path]);
    assert!(checked.ends(1).stderr.contains("damaged in both copies"));
    assert_eq!(files_below(folder.path()).len(), 1, "no lock file");
    let missing = format!("{path}/missing");
    check_with(&["--diskFolder", &missing]).ends(1);
    check_with(&["--diskFoldr", path]).ends(2);
    check_with(&["--diskFolder"]).ends(2);
}

#[test]
fn a_flipped_byte_of_a_payload_is_named_and_fetched_again() {
    let mut proxy = used_proxy();
    let (path, offset) = record_of(&proxy, 4);
    flip(&path, offset + PAGE + 70_000);
    let checked = check(&proxy);
    let line = checked.ends(1).line_of(name_of(&path));
    let place = format!("at {}:", offset + PAGE + 65_536);
    for part in [
        place.as_str(),
        "object-4 block 0",
        "1 of 5 chunks",
        "the first is chunk 1",
        "fetched again from the store",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(checked.stderr.contains("check: 1 defect"));
    assert_right_bytes(&mut proxy);
}

#[test]
fn a_flipped_byte_of_any_page_that_describes_is_named_and_survived() {
    let mut proxy = used_proxy();
    // The proxy may not mend what it reads wrongly: each time the folder is as it was.
    let kept = snapshot(&proxy.cache_folder());
    let (path, record) = record_of(&proxy, 2);
    let end = path.metadata().expect("file").len();
    let superblock = proxy.cache_folder().join("superblock");
    let cases: [(&Path, u64, &str); 8] = [
        (&path, 3, "segment header"),
        (&path, 42, "segment header"),
        (&path, record + 1, "record header"),
        (&path, record + 700, "record header"),
        (&path, end - PAGE + 20, "footer, last page"),
        (&path, end - 2 * PAGE + 20, "footer, list of records"),
        (&superblock, 33, "copy 1 of the superblock"),
        (&superblock, PAGE + 33, "copy 2 of the superblock"),
    ];
    for (path, offset, words) in cases {
        flip(path, offset);
        let checked = check(&proxy);
        let line = checked.ends(1).line_of(name_of(path));
        assert!(line.contains(words), "{words} in {line}");
        assert_right_bytes(&mut proxy);
        for file in files_below(&proxy.cache_folder()) {
            match kept.get(&file) {
                Some((content, ..)) => std::fs::write(&file, content).expect("restored"),
                None if file.ends_with("lock") => {}
                None => std::fs::remove_file(&file).expect("removed"),
            }
        }
    }
}

#[test]
fn files_that_do_not_belong_or_lost_their_end_are_named() {
    let mut proxy = used_proxy();
    let (path, record) = record_of(&proxy, 4);
    std::fs::write(proxy.cache_folder().join("notes.txt"), b"mine").expect("file");
    let file = std::fs::OpenOptions::new().write(true).open(&path);
    // In the middle of a payload, and of a page.
    let length = record + PAGE + 100_000;
    file.expect("file").set_len(length).expect("truncated");
    let checked = check(&proxy);
    let foreign = checked.ends(1).line_of("notes.txt");
    assert!(foreign.contains("not a file of this cache folder"));
    let told = format!(
        "{} at {length}: the file has {length} bytes",
        name_of(&path)
    );
    assert!(checked.stdout.contains(&told), "{}", checked.stdout);
    assert_right_bytes(&mut proxy);
}
