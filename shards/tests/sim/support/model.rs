//! What a reader may be given, worked out without a cache.
//!
//! The model knows every write to every key: when it began, when it ended, whether it is certain.
//! From that follows for each key the set of values that a read may be given: the last certain
//! one, those under way, those whose outcome is unknown, nothing. A crash or an unknown outcome
//! widens the set, a read narrows it: what is seen has happened, and what had ended before and is
//! not seen is gone for good.
//!
//! What was acknowledged before the store had it ([`Ending::Dirty`]) counts at once like any other
//! write. What the store itself may hold meanwhile is [`Model::allowed_in_store`].
//!
//! Where a fault makes a check undecidable, that check alone is relaxed:
//!
//! - A write behind the cache's back counts as unknown until [`Model::settle`], and a read of its
//!   key narrows nothing until then: a stale copy is served while the store does not answer.
//! - A write that a kill cut off, to a key whose copies are checked: the store may have it, and the
//!   cache had no chance to forget its copy. If the store does not answer the first who checks that
//!   copy, he is given it all the same (it is at most a time to live and a grace older than the
//!   store), and the next one is given the write. So until [`Model::settle`] a read does not say that
//!   such a write is gone (seed 412144). Keys that are written once have no such excuse: their copy
//!   is buried before the store hears of another.
//! - A write through of unknown outcome, to a key of which something older waits for its upload: the
//!   older is served until its upload finds the other in the store, and is a conflict then. So with
//!   [`Model::write_back`] a read does not say that such a write is gone, until it is settled.
//! - Somebody changed the store while something waited for its upload: whichever came last in the
//!   store won, and that is what [`Model::settle_by`] is told.
//! - A delete that a kill cut off, of a key that is written once: the store is told first, so that
//!   nothing is dropped for a delete that it refuses, and a kill before the tombstone leaves a copy
//!   that nothing checks. It ends when one of its blocks is missed, or with the next write; until
//!   then a read of it does not say that the delete is gone (seed 2686).
//! - A delete of such a key that ended with an error, because the disk took no tombstone: the key
//!   holds nothing then, and the next start may find the copy again. So a read of nothing does not
//!   say that the copy is gone (seed 6003869).
//! - A power cut makes unknown again what was written after the oldest thing that the disk lost
//!   ([`Model::power_cut`]). What is older must all be there.
//! - Damage (bit rot, lost, misdirected and stale sectors, errors without limit) can take the
//!   newest record of any key, a tombstone too, so that an older version comes back. Between
//!   [`Model::set_lossy`] and [`Model::end_lossy`] any version ever written may be read.
//!
//! Never relaxed: bytes are those of exactly one version that was written to that very key.

use super::journal::Journal;
use super::ops::is_immutable;
use bytes::Bytes;
use forebay_io::sim::store::content_tag;
use std::collections::BTreeMap;
use std::rc::Rc;

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Acknowledged after the store had it.
    Done,
    /// Acknowledged before the store had it: from here on the cache alone is responsible.
    Dirty,
    /// An error that does not say whether it happened.
    Unknown,
    /// An error that says that it did not happen.
    NotDone,
}

#[derive(Clone)]
struct Write {
    /// `None`: the key holds nothing.
    etag: Option<String>,
    began: u64,
    ended: Option<u64>,
    certain: bool,
    /// Behind the cache's back, and not settled yet.
    external: bool,
    /// The store need not have it yet.
    dirty: bool,
    /// It was acknowledged as one that survives a power cut.
    synced: bool,
    /// The store may have it while the cache has lost it: a read that is given something older
    /// does not say that it is gone.
    undone: bool,
    /// A kill cut it off, and the cache may still have a copy that is older. Not settled yet.
    cut_off: bool,
    /// A delete that the store has done, and of which the disk has no tombstone.
    unburied: bool,
    /// Completions of the disk when it ended.
    completions: u64,
    /// Reads that begin later are not given it: one before them was given something else.
    dead_from: u64,
}

impl Write {
    /// Whether it was in full effect before `when`, and not before `floor`.
    fn had_replaced(&self, floor: u64, when: u64) -> bool {
        self.certain && self.began > floor && self.ended.is_some_and(|ended| ended < when)
    }
}

/// All that was ever written.
#[derive(Clone)]
pub struct Model {
    now: u64,
    writes: BTreeMap<String, Vec<Write>>,
    contents: BTreeMap<(String, String), Bytes>,
    /// Certain writes that began until then replace nothing: the disk may have lost them.
    lossy_until: u64,
    journal: Rc<Journal>,
    writes_back: bool,
    /// Whether dirty writes survive power cuts.
    synced: bool,
}

/// A write that has begun.
#[derive(Clone, Debug)]
pub struct WriteTicket {
    key: String,
    place: usize,
}

impl Model {
    /// A model of an empty store that tells `journal` of broken promises.
    pub fn new(journal: Rc<Journal>) -> Model {
        Model {
            now: 0,
            writes: BTreeMap::new(),
            contents: BTreeMap::new(),
            lossy_until: 0,
            journal,
            writes_back: false,
            synced: false,
        }
    }

    /// Writes may be acknowledged before the store has them from now on, and survive power cuts
    /// or not.
    pub fn write_back(&mut self, synced: bool) {
        (self.writes_back, self.synced) = (true, synced);
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn of_key(&mut self, key: &str) -> &mut Vec<Write> {
        // Before everything, no key held anything.
        let nothing = || Write {
            etag: None,
            began: 0,
            ended: Some(0),
            certain: true,
            external: false,
            dirty: false,
            synced: false,
            undone: false,
            cut_off: false,
            unburied: false,
            completions: 0,
            dead_from: u64::MAX,
        };
        let entry = self.writes.entry(key.to_owned());
        entry.or_insert_with(|| vec![nothing()])
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Write> {
        self.writes.values_mut().flatten()
    }

    /// A write begins; nothing as `bytes` is a delete.
    pub fn begin_write(&mut self, key: &str, bytes: Option<&Bytes>) -> WriteTicket {
        let etag = bytes.map(|bytes| content_tag(bytes));
        self.begin_write_as(key, bytes, etag)
    }

    /// As [`Model::begin_write`], of a version that the store will call `etag`.
    pub fn begin_write_as(
        &mut self,
        key: &str,
        bytes: Option<&Bytes>,
        etag: Option<String>,
    ) -> WriteTicket {
        if let (Some(etag), Some(bytes)) = (&etag, bytes) {
            let name = (key.to_owned(), etag.clone());
            self.contents.insert(name, bytes.clone());
        }
        let write = Write {
            etag,
            began: self.tick(),
            ended: None,
            certain: false,
            external: false,
            dirty: false,
            synced: false,
            undone: false,
            cut_off: false,
            unburied: false,
            completions: u64::MAX,
            dead_from: u64::MAX,
        };
        let writes = self.of_key(key);
        writes.push(write);
        WriteTicket {
            key: key.to_owned(),
            place: writes.len() - 1,
        }
    }

    /// It ends, when the disk had completed so many writes.
    pub fn end_write(&mut self, ticket: &WriteTicket, ending: Ending, completions: u64) {
        let now = self.tick();
        let (synced, writes_back) = (self.synced, self.writes_back);
        let is_unchecked = is_immutable(&ticket.key);
        let write = &mut self.of_key(&ticket.key)[ticket.place];
        write.ended = Some(now);
        write.completions = completions;
        match ending {
            Ending::Done => write.certain = true,
            Ending::Dirty => (write.certain, write.dirty, write.synced) = (true, true, synced),
            Ending::Unknown => {
                write.cut_off = writes_back;
                write.unburied = is_unchecked && write.etag.is_none();
            }
            // It never was: no read is given it from now on.
            Ending::NotDone => write.dead_from = 0,
        }
    }

    /// Somebody changed the store behind the cache's back.
    pub fn external_write(&mut self, key: &str, bytes: Option<&Bytes>) {
        let ticket = self.begin_write(key, bytes);
        self.end_write(&ticket, Ending::Unknown, 0);
        self.of_key(key)[ticket.place].external = true;
    }

    /// The program dies: the outcome of all writes under way is unknown.
    pub fn kill(&mut self) {
        let now = self.tick();
        for (key, writes) in &mut self.writes {
            for write in writes.iter_mut().filter(|write| write.ended.is_none()) {
                write.ended = Some(now);
                write.cut_off = !is_immutable(key);
                write.undone |= is_immutable(key) && write.etag.is_none();
            }
        }
    }

    /// The disk lost what it completed as number `lost_since` and perhaps all after it.
    pub fn power_cut(&mut self, lost_since: u64) {
        let lost = |write: &&mut Write| write.completions >= lost_since && !write.synced;
        for write in self.all().filter(lost) {
            write.certain = false;
            write.undone = true;
        }
        // What a read had shown to be gone may have been so by records that are lost now.
        self.revive();
    }

    fn revive(&mut self) {
        for write in self.all().filter(|write| write.dead_from != 0) {
            write.dead_from = u64::MAX;
        }
    }

    /// From now on every copy was checked since the last change that the cache did not see the end
    /// of.
    pub fn settle(&mut self) {
        let now = self.tick();
        for write in self.all().filter(|write| write.external) {
            (write.certain, write.external, write.ended) = (true, false, Some(now));
        }
        for write in self.all() {
            write.cut_off = false;
        }
    }

    /// As [`Model::settle`], after everything was uploaded: of the writes to `key` that may be in
    /// the store, the one that is there counts from now on.
    pub fn settle_by(&mut self, key: &str, stored: Option<&str>) {
        let allowed = self.allowed_in_store(key);
        if !allowed.iter().any(|etag| etag.as_deref() == stored) {
            let what = format!("the store has {stored:?}, which is none of {allowed:?}");
            self.journal.accuse(key, &what);
        }
        let now = self.tick();
        // Nothing checks such a copy: it outlives a delete whose tombstone a crash has taken.
        let is_unchecked = is_immutable(key);
        for write in self.of_key(key).iter_mut() {
            let is_there = write.etag.as_deref() == stored && write.dead_from != 0;
            let is_open = write.external || !write.certain;
            (write.external, write.cut_off) = (false, false);
            match is_there {
                _ if is_unchecked => {}
                true => (write.certain, write.ended, write.began) = (true, Some(now), now),
                false if is_open => write.dead_from = 0,
                false => {}
            }
        }
    }

    /// The disk may lose and damage anything from now on.
    pub fn set_lossy(&mut self) {
        self.lossy_until = u64::MAX;
        self.revive();
    }

    /// The disk keeps what it takes from now on.
    pub fn end_lossy(&mut self) {
        if self.lossy_until == u64::MAX {
            self.lossy_until = self.tick();
        }
    }

    /// Whether the disk may have lost or damaged something.
    pub fn is_lossy(&self) -> bool {
        self.lossy_until > 0
    }

    /// The store has everything that was acknowledged.
    pub fn clean(&mut self) {
        for write in self.all() {
            write.dirty = false;
        }
    }

    /// Versions of `key` that the store may hold: `None` stands for nothing. Before
    /// [`Model::clean`], what dirty writes replaced is among them.
    pub fn allowed_in_store(&self, key: &str) -> Vec<Option<String>> {
        let Some(writes) = self.writes.get(key) else {
            return vec![None];
        };
        let replaced = |write: &Write| {
            let when = write.ended.unwrap_or(u64::MAX);
            let mut others = writes.iter().filter(|other| !other.dirty);
            others.any(|other| other.had_replaced(when, u64::MAX))
        };
        let allowed = writes
            .iter()
            .filter(|write| write.dead_from != 0 && !replaced(write));
        allowed.map(|write| write.etag.clone()).collect()
    }

    /// A read begins.
    pub fn begin_read(&mut self) -> u64 {
        self.tick()
    }

    /// A read that began at `began` was told that `key` holds the version `etag`, or nothing.
    pub fn check_version(&mut self, key: &str, began: u64, etag: Option<&str>) {
        let now = self.tick();
        let lossy_until = self.lossy_until;
        let writes = self.of_key(key);
        let given = |write: &Write| write.etag.as_deref() == etag;
        let mut why = "was never written";
        let allowed = writes.iter().filter(|write| given(write)).any(|write| {
            let when = write.ended.unwrap_or(u64::MAX).max(lossy_until);
            if write.dead_from < began {
                why = "was gone already for an earlier reader";
                return false;
            }
            let replaced = writes.iter().any(|other| other.had_replaced(when, began));
            if replaced {
                why = "had been replaced";
            }
            !replaced
        });
        if !allowed {
            let what = format!("a read begun at {began} was given {etag:?}, which {why}");
            self.journal.accuse(key, &what);
        }
        if lossy_until == u64::MAX || writes.iter().any(|write| write.external) {
            return;
        }
        if etag.is_none() && writes.iter().any(|write| write.unburied) {
            return;
        }
        let unseen = |write: &&mut Write| !given(write) && !write.undone && !write.cut_off;
        for write in writes.iter_mut().filter(unseen) {
            if write.ended.is_some_and(|ended| ended < began) {
                write.dead_from = write.dead_from.min(now);
            }
        }
    }

    /// The bytes of a version of `key` that was written once.
    pub fn content(&self, key: &str, etag: &str) -> Option<Bytes> {
        let name = (key.to_owned(), etag.to_owned());
        self.contents.get(&name).cloned()
    }

    /// `bytes` were given as the first of those from `start` of version `etag`.
    pub fn check_bytes(&self, key: &str, etag: &str, start: u64, size: u64, bytes: &[u8]) {
        let Some(content) = self.contents.get(&(key.to_owned(), etag.to_owned())) else {
            self.journal.accuse(key, &format!("unknown version {etag}"));
        };
        let start = start as usize;
        if content.len() as u64 != size || start + bytes.len() > content.len() {
            let length = content.len();
            let what = format!("version {etag} of {length} bytes was said to have {size}");
            self.journal.accuse(key, &what);
        }
        let expected = &content[start..start + bytes.len()];
        if let Some(at) = expected.iter().zip(bytes).position(|(a, b)| a != b) {
            let at = start + at;
            let what = format!("wrong byte at {at} of version {etag}");
            self.journal.accuse(key, &what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    struct Case {
        model: Model,
        key: &'static str,
    }

    impl Case {
        fn new() -> Case {
            Case::of_key("checked")
        }

        fn of_key(key: &'static str) -> Case {
            let model = Model::new(Rc::default());
            Case { model, key }
        }

        fn write(&mut self, bytes: Option<&'static str>, ending: Ending, completions: u64) {
            let bytes = bytes.map(|text| Bytes::from_static(text.as_bytes()));
            let ticket = self.model.begin_write(self.key, bytes.as_ref());
            self.model.end_write(&ticket, ending, completions);
        }

        /// Reads now; whether the model takes `bytes` for an answer.
        fn takes(&mut self, bytes: Option<&'static str>) -> bool {
            let began = self.model.begin_read();
            self.takes_since(began, bytes)
        }

        fn takes_since(&mut self, began: u64, bytes: Option<&'static str>) -> bool {
            let etag = bytes.map(|bytes| content_tag(bytes.as_bytes()));
            let check = || self.model.check_version(self.key, began, etag.as_deref());
            catch_unwind(AssertUnwindSafe(check)).is_ok()
        }
    }

    #[test]
    fn only_the_last_certain_version_is_taken() {
        let mut case = Case::new();
        assert!(case.takes(None) && !case.takes(Some("a")));
        case.write(Some("a"), Ending::Done, 1);
        assert!(case.takes(Some("a")) && !case.takes(None));
        let early = case.model.begin_read();
        case.write(Some("b"), Ending::Done, 2);
        assert!(!case.takes(Some("a")) && case.takes(Some("b")));
        assert!(case.takes_since(early, Some("b")), "it overlaps");
        case.write(Some("c"), Ending::NotDone, 3);
        assert!(!case.takes(Some("c")));
    }

    #[test]
    fn an_unknown_outcome_widens_and_a_read_narrows() {
        let mut case = Case::new();
        case.write(Some("a"), Ending::Done, 1);
        case.write(Some("b"), Ending::Unknown, 2);
        assert!(case.takes(Some("a")));
        assert!(!case.takes(Some("b")), "seen not to have happened");
        case.write(None, Ending::Unknown, 3);
        assert!(case.takes(None));
        assert!(!case.takes(Some("a")));
    }

    #[test]
    fn a_copy_does_not_say_that_what_a_kill_cut_off_is_gone() {
        for (key, stays) in [("checked", true), ("immutable", false)] {
            let mut case = Case::of_key(key);
            case.write(Some("a"), Ending::Done, 1);
            case.model.begin_write(key, Some(&Bytes::from_static(b"b")));
            case.model.kill();
            assert!(case.takes(Some("a")));
            let mut settled = case.model.clone();
            assert_eq!(case.takes(Some("b")), stays, "{key}");
            assert!(!stays || !case.takes(Some("a")), "b has been seen");
            settled.settle();
            case.model = settled;
            assert!(case.takes(Some("a")), "the store was asked");
            assert!(!case.takes(Some("b")));
        }
    }

    #[test]
    fn a_copy_does_not_say_that_a_delete_that_a_kill_cut_off_is_gone() {
        let mut case = Case::of_key("immutable");
        case.write(Some("a"), Ending::Done, 1);
        case.model.begin_write(case.key, None);
        case.model.kill();
        case.model.settle();
        assert!(case.takes(Some("a")), "nobody checks it");
        assert!(case.takes(None), "until a block of it is missed");
        assert!(!case.takes(Some("a")), "and that is for good");
    }

    #[test]
    fn a_copy_comes_back_after_a_delete_without_a_tombstone() {
        for (key, comes_back) in [("checked", false), ("immutable", true)] {
            let mut case = Case::of_key(key);
            case.write(Some("a"), Ending::Done, 1);
            case.write(None, Ending::Unknown, 2);
            assert!(case.takes(None));
            assert_eq!(case.takes(Some("a")), comes_back, "{key}");
            case.write(None, Ending::Done, 3);
            assert!(case.takes(None) && !case.takes(Some("a")), "{key}");
        }
    }

    #[test]
    fn a_power_cut_undoes_only_what_the_disk_lost() {
        let mut case = Case::new();
        case.write(Some("a"), Ending::Done, 1);
        case.write(Some("b"), Ending::Done, 2);
        case.write(Some("c"), Ending::Done, 3);
        assert!(case.takes(Some("c")));
        case.model.power_cut(3);
        assert!(!case.takes(Some("a")), "b was durable");
        assert!(case.takes(Some("b")));
    }

    #[test]
    fn a_dirty_write_is_acknowledged_before_the_store_has_it() {
        let mut case = Case::new();
        case.write(Some("a"), Ending::Done, 1);
        case.write(Some("b"), Ending::Dirty, 2);
        case.model.kill();
        assert!(case.takes(Some("b")) && !case.takes(Some("a")));
        let versions = |case: &Case| case.model.allowed_in_store(case.key).len();
        assert_eq!(versions(&case), 2, "the store may be behind");
        case.model.clean();
        assert_eq!(versions(&case), 1, "and then it has it");
    }

    #[test]
    fn damage_brings_anything_back_until_something_new_is_written() {
        let mut case = Case::new();
        case.write(Some("a"), Ending::Done, 1);
        case.write(None, Ending::Done, 2);
        case.model.set_lossy();
        assert!(case.takes(Some("a")) && case.takes(None) && !case.takes(Some("z")));
        case.model.end_lossy();
        case.write(Some("b"), Ending::Done, 3);
        assert!(!case.takes(Some("a")) && !case.takes(None) && case.takes(Some("b")));
    }
}
