//! What a reader may be given, worked out without a cache.
//!
//! The model knows every write to every key: when it began, when it ended, whether it is certain.
//! A value may be read as long as no certain write, begun after the value's own write had ended,
//! had ended before the read began. Changes behind the cache's back count as uncertain until
//! [`Model::settle`]. Bytes must be those of exactly one version.

use bytes::Bytes;
use forebay_io::sim::store::content_tag;
use std::collections::BTreeMap;

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Acknowledged.
    Done,
    /// An error that does not say whether it happened.
    Unknown,
    /// An error that says that it did not happen.
    NotDone,
}

struct Write {
    key: String,
    /// `None`: the key holds nothing.
    etag: Option<String>,
    began: u64,
    ended: Option<u64>,
    certain: bool,
    external: bool,
}

/// All that was ever written.
#[derive(Default)]
pub struct Model {
    now: u64,
    writes: Vec<Write>,
    contents: BTreeMap<(String, String), Bytes>,
    /// Set once the disk has lost what it had taken: deleted and older values may come back then.
    lossy: bool,
}

impl Model {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A write begins; nothing as `bytes` is a delete.
    pub fn begin_write(&mut self, key: &str, bytes: Option<&Bytes>) -> usize {
        let etag = bytes.map(|bytes| content_tag(bytes));
        if let (Some(etag), Some(bytes)) = (&etag, bytes) {
            self.contents
                .insert((key.to_owned(), etag.clone()), bytes.clone());
        }
        let began = self.tick();
        let key = key.to_owned();
        let write = Write {
            key,
            etag,
            began,
            ended: None,
            certain: false,
            external: false,
        };
        self.writes.push(write);
        self.writes.len() - 1
    }

    /// It ends.
    pub fn end_write(&mut self, write: usize, ending: Ending) {
        let now = self.tick();
        let write = &mut self.writes[write];
        write.ended = Some(now);
        match ending {
            Ending::Done => write.certain = true,
            Ending::Unknown => {}
            // It never was: no key has this name.
            Ending::NotDone => write.key.clear(),
        }
    }

    /// Somebody changed the store behind the cache's back.
    pub fn external_write(&mut self, key: &str, bytes: Option<&Bytes>) {
        let write = self.begin_write(key, bytes);
        self.end_write(write, Ending::Unknown);
        self.writes[write].external = true;
    }

    /// All writes under way are cut off: their outcome is unknown.
    pub fn crash(&mut self) {
        let now = self.tick();
        for write in self.writes.iter_mut().filter(|write| write.ended.is_none()) {
            write.ended = Some(now);
        }
    }

    /// From now on every copy was checked since the last external change.
    pub fn settle(&mut self) {
        let now = self.tick();
        for write in self.writes.iter_mut().filter(|write| write.external) {
            (write.certain, write.external, write.ended) = (true, false, Some(now));
        }
    }

    /// The disk lost or damaged something.
    pub fn set_lossy(&mut self) {
        self.lossy = true;
    }

    /// A read begins.
    pub fn begin_read(&mut self) -> u64 {
        self.tick()
    }

    /// A read that began at `began` was told that `key` holds the version `etag`, or nothing.
    pub fn check_version(&mut self, key: &str, began: u64, etag: Option<&str>) {
        let now = self.tick();
        let of_key: Vec<&Write> = self
            .writes
            .iter()
            .filter(|write| write.key == key)
            .collect();
        let replaced = |when: u64| {
            !self.lossy
                && of_key.iter().any(|other| {
                    other.certain && other.began > when && other.ended.is_some_and(|e| e < began)
                })
        };
        let mut candidates: Vec<u64> = of_key
            .iter()
            .filter(|write| write.etag.as_deref() == etag && write.began < now)
            .map(|write| write.ended.unwrap_or(u64::MAX))
            .collect();
        if etag.is_none() {
            // Before everything, no key held anything.
            candidates.push(0);
        }
        assert!(
            !candidates.is_empty(),
            "{key}: version {etag:?} was never written"
        );
        assert!(
            candidates.iter().any(|ended| !replaced(*ended)),
            "{key}: a read begun at {began} was given {etag:?}, which had been replaced"
        );
    }

    /// `bytes` were given as the first of those from `start` of version `etag`.
    pub fn check_bytes(&self, key: &str, etag: &str, start: u64, size: u64, bytes: &[u8]) {
        let content = self.contents.get(&(key.to_owned(), etag.to_owned()));
        let content = content.unwrap_or_else(|| panic!("{key}: unknown version {etag}"));
        assert_eq!(content.len() as u64, size, "{key}: size of {etag}");
        let start = start as usize;
        let expected = &content[start..start + bytes.len()];
        if let Some(at) = expected.iter().zip(bytes).position(|(a, b)| a != b) {
            panic!("{key}: wrong byte at {} of version {etag}", start + at);
        }
    }
}
