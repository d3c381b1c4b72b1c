//! Lists of objects: what is asked, what a page is, and how pages of several sources become one.
//!
//! Pure. This file owns the rules that every source of names keeps, stores and caches alike: names
//! come in the order of their UTF-8 bytes, keys that share a beginning up to a delimiter are one
//! name, and a page says up to where it is complete. It never asks anybody anything.
//!
//! A *name* is a key, or the common prefix that stands for keys. What a position is compared with is
//! the name: after `a/b`, the common prefix `a/` is over, whatever keys there are under it.

use std::cmp::Ordering;

/// Names of one page at most: S3's own limit.
pub const LIST_NAMES_MAX: usize = 1000;

/// Asks for a page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Only keys that begin so; empty: all.
    pub prefix: String,
    /// Keys that hold it after the prefix are given as one common prefix, which ends with the first
    /// of them. Never `Some` of an empty string.
    pub delimiter: Option<String>,
    /// Only names that come after this one; empty: all.
    pub after: String,
    /// Names at most, 1 to [`LIST_NAMES_MAX`].
    pub limit: usize,
}

/// An object in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: String,
    /// Its length, bytes.
    pub size: u64,
    /// Its entity tag without quotes.
    pub etag: String,
    /// When it was written, milliseconds since the Unix epoch.
    pub last_modified_ms: u64,
}

/// One name of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An object.
    Object(ListedObject),
    /// What keys begin with that hold the delimiter.
    CommonPrefix(String),
}

/// A page of a list: every name of its source after the one that was asked for, up to where it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// In ascending order of their names, none twice.
    pub entries: Vec<Entry>,
    /// The last name up to which nothing is missing; `None` if nothing follows at all. It goes on
    /// with this as [`ListRequest::after`].
    pub complete_to: Option<String>,
}

impl Entry {
    /// What it is ordered by.
    pub fn name(&self) -> &str {
        match self {
            Entry::Object(object) => &object.key,
            Entry::CommonPrefix(prefix) => prefix,
        }
    }
}

impl ListRequest {
    /// The common prefix that stands for `key`, a key or the beginning of some, if one does.
    pub fn common_prefix<'k>(&self, key: &'k str) -> Option<&'k str> {
        let delimiter = self.delimiter.as_deref()?;
        let rest = key.strip_prefix(self.prefix.as_str())?;
        let end = self.prefix.len() + rest.find(delimiter)? + delimiter.len();
        Some(&key[..end])
    }

    /// The name under which `key` is listed, if it is and comes after the position.
    pub fn name_of<'k>(&self, key: &'k str) -> Option<&'k str> {
        if !key.starts_with(&self.prefix) {
            return None;
        }
        let name = self.common_prefix(key).unwrap_or(key);
        (name > self.after.as_str()).then_some(name)
    }

    /// The first key that may be listed: every earlier one is left out.
    pub fn first_key(&self) -> &str {
        self.prefix.as_str().max(self.after.as_str())
    }

    /// Whether a key that begins with `beginning` may be listed.
    pub fn may_hold(&self, beginning: &str) -> bool {
        let fits = beginning.starts_with(&self.prefix) || self.prefix.starts_with(beginning);
        let is_past = beginning < self.after.as_str() && !self.after.starts_with(beginning);
        fits && !is_past
    }
}

/// Collects a page from keys that come in order.
#[derive(Debug)]
pub struct PageBuilder<'r> {
    request: &'r ListRequest,
    page: ListPage,
}

/// What a [`PageBuilder`] wants to know of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing: it is not listed, or by a name that the page has.
    Nothing,
    /// That it is there: it is listed by a common prefix.
    Presence,
    /// All that is listed of it.
    Object,
    /// Nothing more: the page is full, and this key is one of a later page.
    Full,
}

impl<'r> PageBuilder<'r> {
    /// An empty page.
    pub fn new(request: &'r ListRequest) -> Self {
        PageBuilder {
            request,
            page: ListPage::default(),
        }
    }

    /// What the page wants of the next key.
    pub fn wants(&self, key: &str) -> Wanted {
        let Some(name) = self.request.name_of(key) else {
            return Wanted::Nothing;
        };
        let last = self.page.entries.last().map(Entry::name);
        match name.len() == key.len() && self.request.common_prefix(key).is_none() {
            _ if last == Some(name) => Wanted::Nothing,
            _ if self.page.entries.len() >= self.request.limit => Wanted::Full,
            true => Wanted::Object,
            false => Wanted::Presence,
        }
    }

    /// How many names it takes yet.
    pub fn room(&self) -> usize {
        self.request.limit - self.page.entries.len()
    }

    /// Takes in a key of which [`Wanted::Object`] was wanted.
    pub fn add_object(&mut self, object: ListedObject) {
        self.page.entries.push(Entry::Object(object));
    }

    /// Takes in the common prefix of a key of which [`Wanted::Presence`] was wanted.
    pub fn add_presence(&mut self, key: &str) {
        let prefix = self.request.common_prefix(key).unwrap_or(key);
        let entry = Entry::CommonPrefix(prefix.to_owned());
        self.page.entries.push(entry);
    }

    /// The page; `is_full` says that a key was met of which nothing was taken in.
    pub fn finish(mut self, is_full: bool) -> ListPage {
        if is_full {
            let last = self.page.entries.last().map(Entry::name);
            self.page.complete_to = Some(last.unwrap_or(&self.request.after).to_owned());
        }
        self.page
    }
}

/// One page of at most `limit` names out of pages of several sources that were asked the same. Of an
/// object that several have, that of the earliest source counts.
///
/// Nothing comes after the place up to which every source is complete: a name of one source there
/// could be preceded by one of another that is not known yet.
pub fn merge(limit: usize, sources: Vec<ListPage>) -> ListPage {
    let ends = sources.iter().filter_map(|page| page.complete_to.as_ref());
    let complete_to = ends.min().cloned();
    let mut sources: Vec<_> = sources
        .into_iter()
        .map(|page| page.entries.into_iter().peekable())
        .collect();
    let mut merged = ListPage::default();
    loop {
        // The first of equal ones: `min_by` keeps the earliest source.
        let heads = sources.iter_mut().enumerate();
        let heads = heads.filter_map(|(at, source)| Some((at, source.peek()?.name().to_owned())));
        let next = heads.min_by(|one, other| match one.1.cmp(&other.1) {
            Ordering::Equal => one.0.cmp(&other.0),
            order => order,
        });
        let Some((at, name)) = next else {
            merged.complete_to = complete_to;
            return merged;
        };
        if complete_to.as_ref().is_some_and(|end| name > *end) {
            merged.complete_to = complete_to;
            return merged;
        }
        if merged.entries.len() == limit {
            let last = merged.entries.last().map(|entry| entry.name().to_owned());
            merged.complete_to = last;
            return merged;
        }
        merged.entries.extend(sources[at].next());
        for source in &mut sources {
            source.next_if(|entry| entry.name() == name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Objects = BTreeMap<String, u64>;

    fn object(key: &str, size: u64) -> ListedObject {
        ListedObject {
            key: key.to_owned(),
            size,
            ..ListedObject::default()
        }
    }

    /// A source that has these objects.
    fn page_of(objects: &Objects, request: &ListRequest) -> ListPage {
        let mut builder = PageBuilder::new(request);
        for (key, size) in objects {
            match builder.wants(key) {
                Wanted::Nothing => {}
                Wanted::Object => builder.add_object(object(key, *size)),
                Wanted::Presence => builder.add_presence(key),
                Wanted::Full => return builder.finish(true),
            }
        }
        builder.finish(false)
    }

    /// The whole list as the S3 documents describe it, told in the plainest way.
    fn model(objects: &Objects, prefix: &str, delimiter: Option<&str>, after: &str) -> Vec<Entry> {
        let mut names = BTreeMap::new();
        for (key, size) in objects {
            let Some(rest) = key.strip_prefix(prefix) else {
                continue;
            };
            let found = delimiter.and_then(|d| rest.split_once(d).map(|(head, _)| (head, d)));
            let entry = match found {
                Some((head, d)) => Entry::CommonPrefix(format!("{prefix}{head}{d}")),
                None => Entry::Object(object(key, *size)),
            };
            names.insert(entry.name().to_owned(), entry);
        }
        let late = names.into_iter().filter(|(name, _)| name.as_str() > after);
        late.map(|(_, entry)| entry).collect()
    }

    fn any_key() -> impl Strategy<Value = String> {
        let part =
            prop::sample::select(vec!["a", "b", "/", "//", "-", "ü", "\u{10ffff}", "ab", "0"]);
        prop::collection::vec(part, 1..6).prop_map(|parts| parts.concat())
    }

    fn objects() -> impl Strategy<Value = Objects> {
        prop::collection::btree_map(any_key(), 0..3_u64, 0..40)
    }

    fn delimiters() -> impl Strategy<Value = Option<String>> {
        let some = prop::sample::select(vec!["/", "a", "ab", "-ü", "zz"]);
        prop_oneof![Just(None), some.prop_map(|d| Some(d.to_owned()))]
    }

    fn prefixes() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            any_key(),
            Just("a".into()),
            Just("a/".into())
        ]
    }

    proptest! {
        #[test]
        fn pages_of_several_sources_are_the_model_cut_in_full_pages(
            mut first in objects(),
            second in objects(),
            third in objects(),
            prefix in prefixes(),
            delimiter in delimiters(),
            after in prefixes(),
            limit in 1..8_usize,
        ) {
            // Where several have a key, the first one's object is listed.
            let mut all = third.clone();
            all.extend(second.clone());
            first.values_mut().for_each(|size| *size += 10);
            all.extend(first.clone());
            let expected = model(&all, &prefix, delimiter.as_deref(), &after);
            let mut listed = Vec::new();
            let mut request = ListRequest { prefix, delimiter, after, limit };
            loop {
                let sources = [&first, &second, &third];
                let pages = sources.map(|source| page_of(source, &request)).to_vec();
                let page = merge(limit, pages);
                prop_assert!(page.entries.len() <= limit);
                let is_last = page.complete_to.is_none();
                prop_assert!(is_last || page.entries.len() == limit, "only the last is not full");
                listed.extend(page.entries);
                match page.complete_to {
                    Some(end) => {
                        prop_assert_eq!(listed.last().map(Entry::name), Some(end.as_str()));
                        request.after = end;
                    }
                    None => break,
                }
            }
            prop_assert_eq!(listed, expected);
        }

        #[test]
        fn a_source_that_gives_little_at_a_time_ends_a_page_early_and_loses_nothing(
            first in objects(),
            second in objects(),
            delimiter in delimiters(),
            little in 1..4_usize,
        ) {
            let mut all = second.clone();
            all.extend(first.clone());
            let expected = model(&all, "", delimiter.as_deref(), "");
            let mut request = ListRequest { delimiter, limit: 8, ..ListRequest::default() };
            let mut listed = Vec::new();
            loop {
                let short = ListRequest { limit: little, ..request.clone() };
                let page = merge(8, vec![page_of(&first, &request), page_of(&second, &short)]);
                listed.extend(page.entries);
                match page.complete_to {
                    Some(end) => request.after = end,
                    None => break,
                }
            }
            prop_assert_eq!(listed, expected);
        }

        #[test]
        fn what_cannot_hold_a_listed_key_holds_none(
            key in any_key(),
            cut in any::<prop::sample::Index>(),
            prefix in prefixes(),
            delimiter in delimiters(),
            after in prefixes(),
        ) {
            let request = ListRequest { prefix, delimiter, after, limit: 1 };
            let cuts: Vec<usize> = key.char_indices().map(|(at, _)| at).collect();
            let beginning = &key[..*cut.get(&cuts)];
            if request.name_of(&key).is_some() {
                prop_assert!(request.may_hold(beginning));
                prop_assert!(key.as_str() >= request.first_key());
            }
        }
    }

    #[test]
    fn a_position_inside_a_common_prefix_is_past_it() {
        let objects: Objects = [("a", 1), ("a/b", 2), ("a/c", 3), ("b", 4)]
            .map(|(key, size)| (key.to_owned(), size))
            .into();
        let request = ListRequest {
            delimiter: Some("/".into()),
            after: "a/b".into(),
            limit: 10,
            ..ListRequest::default()
        };
        let page = page_of(&objects, &request);
        let names: Vec<&str> = page.entries.iter().map(Entry::name).collect();
        assert_eq!(names, ["b"]);
    }
}
