//! `List Blobs`: asking for a page, and reading the answer.
//!
//! This file owns what a list of Azure's means and where one is begun. Positions of ours are names.
//! Azure takes them as `startFrom` since version 2026-02-06; what does not know that (Azurite) begins
//! at the beginning, which shows in its answer. There a page goes on from the marker that came with
//! the page before it, of which the last are remembered; else names are passed over, remembering the
//! way, so that the next page is near.
//!
//! Whether Azure orders names by bytes of UTF-8 or units of UTF-16 is told nowhere (Azurite: the
//! latter). It matters only where a character above U+FFFF meets one of U+E000 … U+FFFF in the same
//! place of two names: a list in which that shows is refused, never given out with a name missing.

use super::sign::{Asked, RESERVED, Verb};
use super::{AzureStore, corrupt};
use crate::xml::{self, Node, XmlError};
use forebay_io::listing::{Entry, LIST_NAMES_MAX, ListPage, ListRequest, ListedObject};
use forebay_io::store::{StoreError, StoreErrorKind, StoreResult};
use std::collections::VecDeque;
use std::time::UNIX_EPOCH;

/// Pages that are asked for in a row to come to a position. Those after them are asked for by whoever
/// asks again, from where this ended: each costs a round trip while a client waits.
const PAGES_MAX: usize = 50;

/// What markers may take, bytes: some thousands of them.
const MARKERS_BYTES_MAX: usize = 1 << 20;

/// Whether the store begins a list where it is asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum StartFrom {
    /// Nothing was seen that speaks against it.
    #[default]
    Expected,
    /// It has begun elsewhere.
    Ignored,
}

/// Where lists went on: the store's markers by the last name before them. The oldest go first.
#[derive(Default)]
pub(super) struct Markers {
    kept: VecDeque<Kept>,
    bytes: usize,
}

struct Kept {
    prefix: String,
    delimiter: Option<String>,
    after: String,
    marker: String,
}

impl Kept {
    fn bytes(&self) -> usize {
        let delimiter = self.delimiter.as_ref().map_or(0, String::len);
        size_of::<Kept>() + self.prefix.len() + delimiter + self.after.len() + self.marker.len()
    }

    fn is_of(&self, request: &ListRequest) -> bool {
        self.prefix == request.prefix && self.delimiter == request.delimiter
    }
}

impl Markers {
    fn keep(&mut self, request: &ListRequest, after: &str, marker: &str) {
        self.forget(|kept| kept.is_of(request) && kept.after == after);
        let kept = Kept {
            prefix: request.prefix.clone(),
            delimiter: request.delimiter.clone(),
            after: after.to_owned(),
            marker: marker.to_owned(),
        };
        self.bytes += kept.bytes();
        self.kept.push_back(kept);
        while self.bytes > MARKERS_BYTES_MAX {
            let gone = self.kept.pop_front();
            self.bytes -= gone.map_or(self.bytes, |kept| kept.bytes());
        }
    }

    fn forget(&mut self, is_gone: impl Fn(&Kept) -> bool) {
        self.kept.retain(|kept| !is_gone(kept));
        self.bytes = self.kept.iter().map(Kept::bytes).sum();
    }

    /// The last place known that is not behind the position.
    fn nearest(&self, request: &ListRequest) -> Option<(&str, &str)> {
        let near = self
            .kept
            .iter()
            .filter(|kept| kept.is_of(request) && kept.after <= request.after);
        let last = near.max_by(|one, other| one.after.cmp(&other.after))?;
        Some((&last.after, &last.marker))
    }
}

/// Where a page is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cursor {
    marker: Option<String>,
    start: Option<String>,
    limit: usize,
}

/// A blob as a list tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) object: ListedObject,
    /// Names and values, where they were asked for.
    pub(super) metadata: Vec<(String, String)>,
}

/// An answer as the store wrote it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) blobs: Vec<Listed>,
    prefixes: Vec<String>,
    /// Empty at the end.
    pub(super) next: String,
}

impl AzureStore {
    pub(super) async fn list_inner(&self, request: ListRequest) -> StoreResult<ListPage> {
        let mut cursor = self.first_cursor(&request);
        let mut passed: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let answer = match self.ask_page(&request, &cursor).await {
                Err(error) if error.kind == StoreErrorKind::Rejected && cursor.marker.is_some() => {
                    // It does not know its own marker any more.
                    let marker = cursor.marker.take();
                    let is_it = |kept: &Kept| Some(&kept.marker) == marker.as_ref();
                    self.markers.borrow_mut().forget(is_it);
                    cursor = self.first_cursor(&request);
                    passed = None;
                    continue;
                }
                other => other?,
            };
            let next = answer.next.clone();
            let mut entries = self.entries_of(answer, &request)?;
            check_order(&entries, passed.as_deref(), &request)?;
            if let (Some(start), Some(first)) = (&cursor.start, entries.first())
                && first.name() < start.as_str()
                && !start.starts_with(first.name())
                && self.start_from.replace(StartFrom::Ignored) == StartFrom::Expected
            {
                log::info!(
                    "store {} does not begin lists where it is asked to; names are passed over",
                    self.signer.container_url()
                );
                cursor = self.first_cursor(&request);
                if cursor.marker.is_some() {
                    continue;
                }
            }
            if let Some(last) = entries.last() {
                let last = last.name().to_owned();
                if !next.is_empty() {
                    self.markers.borrow_mut().keep(&request, &last, &next);
                }
                passed = Some(last);
            }
            entries.retain(|entry| entry.name() > request.after.as_str());
            let entries = self.visible(entries).await?;
            if !entries.is_empty() || next.is_empty() {
                return Ok(page_of(entries, !next.is_empty(), request.limit));
            }
            cursor = Cursor {
                marker: Some(next),
                start: None,
                limit: LIST_NAMES_MAX,
            };
        }
        let message = format!(
            "{PAGES_MAX} pages of a list were passed over on the way to the position; it goes on \
             from there when it is asked for again"
        );
        Err(StoreError::new(StoreErrorKind::Timeout, message))
    }

    /// Where the first page is asked for.
    fn first_cursor(&self, request: &ListRequest) -> Cursor {
        if request.after.is_empty() {
            return Cursor {
                limit: request.limit,
                ..Cursor::default()
            };
        }
        let markers = self.markers.borrow();
        let near = markers.nearest(request);
        let is_exact = near.is_some_and(|(after, _)| after == request.after);
        if is_exact || self.start_from.get() == StartFrom::Ignored {
            return Cursor {
                marker: near.map(|(_, marker)| marker.to_owned()),
                start: None,
                limit: match is_exact {
                    true => request.limit,
                    false => LIST_NAMES_MAX,
                },
            };
        }
        Cursor {
            marker: None,
            start: Some(start_of(request)),
            // The position itself comes too.
            limit: request.limit + 1,
        }
    }

    async fn ask_page(&self, request: &ListRequest, cursor: &Cursor) -> StoreResult<Answer> {
        let mut asked = container_list(cursor.limit);
        if let Some(delimiter) = &request.delimiter {
            asked = asked.query("delimiter", delimiter);
        }
        let prefix = self.signer.prefixed(&request.prefix);
        if !prefix.is_empty() {
            asked = asked.query("prefix", prefix);
        }
        if let Some(marker) = &cursor.marker {
            asked = asked.query("marker", marker);
        }
        if let Some(start) = &cursor.start {
            asked = asked.query("startFrom", self.signer.prefixed(start));
        }
        let answer = self.ask_list(&asked).await?;
        if answer.blobs.len() + answer.prefixes.len() > cursor.limit {
            return Err(corrupt("a list with more names than were asked for"));
        }
        Ok(answer)
    }

    pub(super) async fn ask_list(&self, asked: &Asked) -> StoreResult<Answer> {
        let (_, body) = self.ask_document(asked).await?;
        parse(&body).map_err(|error| corrupt(&format!("a list: {error}")))
    }

    /// The names of an answer as names of the volume, in order.
    fn entries_of(&self, answer: Answer, request: &ListRequest) -> StoreResult<Vec<Entry>> {
        let own = |name: &str| {
            let inside = self
                .signer
                .strip(name)
                .filter(|key| key.starts_with(&request.prefix));
            let message = "a list with a key that does not begin as was asked";
            inside.map(str::to_owned).ok_or_else(|| corrupt(message))
        };
        let mut entries = Vec::with_capacity(answer.blobs.len() + answer.prefixes.len());
        for mut object in answer.blobs.into_iter().map(|listed| listed.object) {
            object.key = own(&object.key)?;
            if request.common_prefix(&object.key).is_some() {
                return Err(corrupt("a list with a key that holds the delimiter"));
            }
            entries.push(Entry::Object(object));
        }
        let objects = entries.len();
        for prefix in answer.prefixes {
            let prefix = whole_prefix(own(&prefix)?, request);
            if request.common_prefix(&prefix) != Some(prefix.as_str()) {
                return Err(corrupt("a list with a common prefix that is none"));
            }
            entries.push(Entry::CommonPrefix(prefix));
        }
        let is_ordered = |some: &[Entry]| some.is_sorted_by(|one, other| one.name() < other.name());
        if !is_ordered(&entries[..objects]) || !is_ordered(&entries[objects..]) {
            return Err(other_order());
        }
        entries.sort_by(|one, other| one.name().cmp(other.name()));
        if entries.windows(2).any(|two| two[0].name() == two[1].name()) {
            return Err(corrupt("a list with a name that comes twice"));
        }
        Ok(entries)
    }

    /// Without what is ours, and without the volume's own prefix as a blob.
    async fn visible(&self, entries: Vec<Entry>) -> StoreResult<Vec<Entry>> {
        let mut out = Vec::with_capacity(entries.len());
        for entry in entries {
            let name = entry.name();
            let is_ours = name.is_empty() || name.starts_with(RESERVED);
            let may_be_ours =
                matches!(&entry, Entry::CommonPrefix(_)) && RESERVED.starts_with(name);
            if !is_ours && (!may_be_ours || self.has_keys(name).await?) {
                out.push(entry);
            }
        }
        Ok(out)
    }

    /// Whether a key of the volume begins so, beside what is ours.
    async fn has_keys(&self, beginning: &str) -> StoreResult<bool> {
        let mut marker = String::new();
        for _ in 0..PAGES_MAX {
            let mut asked = container_list(2)
                .query("delimiter", "/")
                .query("prefix", self.signer.prefixed(beginning));
            if !marker.is_empty() {
                asked = asked.query("marker", &marker);
            }
            let answer = self.ask_list(&asked).await?;
            let blobs = answer.blobs.iter().map(|listed| &listed.object.key);
            let mut names = blobs.chain(&answer.prefixes);
            if names.any(|name| *name != self.signer.reserved("")) {
                return Ok(true);
            }
            if answer.next.is_empty() {
                return Ok(false);
            }
            marker = answer.next;
        }
        Err(corrupt("a list that has no end"))
    }
}

/// Asks for a list of the container.
pub(super) fn container_list(limit: usize) -> Asked {
    Asked {
        verb: Verb::List,
        name: None,
        query: vec![
            ("restype", "container".to_owned()),
            ("comp", "list".to_owned()),
            ("maxresults", limit.to_string()),
        ],
        headers: Vec::new(),
    }
}

fn page_of(mut entries: Vec<Entry>, has_more: bool, limit: usize) -> ListPage {
    let is_cut = entries.len() > limit;
    entries.truncate(limit);
    let last = entries.last().map(|entry| entry.name().to_owned());
    ListPage {
        complete_to: last.filter(|_| has_more || is_cut),
        entries,
    }
}

/// A common prefix with all of the delimiter at its end: Azurite gives only its first character, where
/// the delimiter first is, so it means one prefix all the same.
fn whole_prefix(told: String, request: &ListRequest) -> String {
    let mut delimiter = request.delimiter.as_deref().unwrap_or_default().chars();
    let is_begun = delimiter.next().is_some_and(|first| told.ends_with(first));
    let whole = format!("{told}{}", delimiter.as_str());
    match is_begun && request.common_prefix(&whole) == Some(whole.as_str()) {
        true => whole,
        false => told,
    }
}

/// The least name that may come after the position: the store begins with it.
fn start_of(request: &ListRequest) -> String {
    let after = request.after.as_str();
    let behind = request.common_prefix(after).and_then(|prefix| {
        let (at, last) = prefix.char_indices().next_back()?;
        // Surrogates are no characters.
        let next = match last {
            '\u{d7ff}' => '\u{e000}',
            other => char::from_u32(u32::from(other) + 1)?,
        };
        Some(format!("{}{next}", &prefix[..at]))
    });
    behind.unwrap_or_else(|| after.to_owned())
}

/// Refuses names in an order in which some after the position could have come before it: `passed` is
/// the last name of the page before this.
fn check_order(entries: &[Entry], passed: Option<&str>, request: &ListRequest) -> StoreResult<()> {
    let first = entries.first().map(Entry::name);
    let goes_back = matches!((first, passed), (Some(first), Some(passed)) if first <= passed);
    let after = request.after.as_str();
    let early = entries
        .iter()
        .map(Entry::name)
        .take_while(|name| *name < after);
    let is_late = |name: &str| name.encode_utf16().gt(after.encode_utf16());
    // A common prefix of the position itself comes again, and is over.
    match goes_back || early.into_iter().any(is_late) {
        true => Err(other_order()),
        false => Ok(()),
    }
}

fn other_order() -> StoreError {
    let message = "the store lists names that hold characters above U+FFFF beside ones from U+E000 \
                   to U+FFFF in another order than their bytes; such a list cannot be given";
    StoreError::new(StoreErrorKind::Unsupported, message)
}

/// Reads an `EnumerationResults`.
fn parse(body: &[u8]) -> Result<Answer, XmlError> {
    // Names that XML cannot hold; none of ours is.
    let encoded = b"<Name Encoded=\"true\">";
    if body.windows(encoded.len()).any(|window| window == encoded) {
        return Err(XmlError::new("a name with characters that XML cannot hold"));
    }
    let mut answer = Answer::default();
    let mut blob = Listed::default();
    let mut has = (false, false, false);
    xml::read(body, |path, node| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some((&"EnumerationResults", inside)) = names.split_first() else {
            return Err(XmlError::new("it is no EnumerationResults"));
        };
        let Node::Close(text) = node else {
            return Ok(());
        };
        match inside {
            ["NextMarker"] => answer.next = text.to_owned(),
            ["Blobs", "BlobPrefix", "Name"] => answer.prefixes.push(text.to_owned()),
            ["Blobs", "Blob", "Name"] => (blob.object.key, has.0) = (text.to_owned(), true),
            ["Blobs", "Blob", "Properties", "Content-Length"] => {
                let size = text.trim().parse();
                blob.object.size = size.map_err(|_| XmlError::new("a size that is no number"))?;
                has.1 = true;
            }
            ["Blobs", "Blob", "Properties", "Last-Modified"] => {
                let time = httpdate::parse_http_date(text.trim())
                    .ok()
                    .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
                    .ok_or_else(|| XmlError::new("a time that is none"))?;
                blob.object.last_modified_ms = time.as_secs() * 1000;
                has.2 = true;
            }
            ["Blobs", "Blob", "Properties", "Etag"] => {
                blob.object.etag = text.trim().trim_matches('"').to_owned();
            }
            ["Blobs", "Blob", "Metadata", name] => {
                blob.metadata.push(((*name).to_owned(), text.to_owned()));
            }
            ["Blobs", "Blob"] => {
                if has != (true, true, true) {
                    return Err(XmlError::new("a blob without name, size or time"));
                }
                has = (false, false, false);
                answer.blobs.push(std::mem::take(&mut blob));
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::creds::AzureCredentials;
    use crate::settings::secret::Secret;
    use crate::store::AzureSpec;
    use proptest::prelude::*;

    fn store() -> AzureStore {
        let credentials = AzureCredentials::Key {
            account: "account1".into(),
            key: Secret::new("c2VjcmV0"),
        };
        let mut spec = AzureSpec::new("http://localhost:1", "con", credentials);
        spec.prefix = "p".into();
        AzureStore::new(&spec).expect("a good spec")
    }

    fn document(inside: &str, next: &str) -> Vec<u8> {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ServiceEndpoint=\"x\">\
             <Blobs>{inside}</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
        );
        text.into_bytes()
    }

    fn blob(name: &str) -> String {
        format!(
            "<Blob><Name>{name}</Name><Properties><Last-Modified>Tue, 14 Nov 2023 22:13:20 GMT\
             </Last-Modified><Etag>0x8D</Etag><Content-Length>5</Content-Length></Properties>\
             <Metadata><__key>a</__key></Metadata></Blob>"
        )
    }

    fn prefix(name: &str) -> String {
        format!("<BlobPrefix><Name>{name}</Name></BlobPrefix>")
    }

    fn asked(delimiter: Option<&str>, after: &str) -> ListRequest {
        ListRequest {
            delimiter: delimiter.map(str::to_owned),
            after: after.to_owned(),
            limit: 10,
            ..ListRequest::default()
        }
    }

    #[test]
    fn an_answer_is_read() {
        let answer = parse(&document(&(blob("p/a&amp;b") + &prefix("p/d/")), "m!1"));
        let answer = answer.expect("well-formed");
        assert_eq!(
            (answer.next.as_str(), answer.prefixes[0].as_str()),
            ("m!1", "p/d/")
        );
        let listed = &answer.blobs[0];
        assert_eq!(listed.object.key, "p/a&b");
        assert_eq!(
            (listed.object.size, listed.object.etag.as_str()),
            (5, "0x8D")
        );
        assert_eq!(listed.object.last_modified_ms, 1_700_000_000_000);
        assert_eq!(listed.metadata, [("__key".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn answers_that_cannot_be_are_refused() {
        let entries = |inside: String, request: &ListRequest| {
            let answer = parse(&document(&inside, "")).expect("well-formed");
            store().entries_of(answer, request).map_err(|e| e.kind)
        };
        let (plain, cut) = (asked(None, ""), asked(Some("/"), ""));
        for (request, inside) in [
            (&plain, blob("q/a")),
            (&plain, prefix("p/a/")),
            (&cut, blob("p/a/b")),
            (&cut, prefix("p/a/b/")),
        ] {
            assert_eq!(entries(inside, request), Err(StoreErrorKind::Corrupt));
        }
        for inside in [
            blob("p/b") + &blob("p/a"),
            blob("p/\u{10000}") + &blob("p/\u{ff01}"),
        ] {
            assert_eq!(entries(inside, &plain), Err(StoreErrorKind::Unsupported));
        }
        let encoded = document("<Blob><Name Encoded=\"true\">a%01</Name></Blob>", "");
        parse(&encoded).expect_err("a name that XML cannot hold");
        parse(b"<html></html>").expect_err("a portal");
    }

    #[test]
    fn a_prefix_that_is_cut_within_its_delimiter_is_completed() {
        let whole = |told: &str, delimiter| whole_prefix(told.into(), &asked(Some(delimiter), ""));
        assert_eq!(whole("x-", "-=-"), "x-=-");
        assert_eq!(whole("x-=-", "-=-"), "x-=-");
        assert_eq!(whole("x/", "/"), "x/");
        // Nothing that was cut so: refused where it is judged.
        assert_eq!(whole("x=", "-=-"), "x=");
    }

    #[test]
    fn a_list_begins_with_the_first_name_that_may_come() {
        assert_eq!(start_of(&asked(None, "a/b")), "a/b");
        assert_eq!(start_of(&asked(Some("/"), "a/b")), "a0");
        assert_eq!(start_of(&asked(Some("/"), "a")), "a");
        assert_eq!(start_of(&asked(Some("\u{d7ff}"), "a\u{d7ff}")), "a\u{e000}");
        let last = asked(Some("\u{10ffff}"), "a\u{10ffff}");
        assert_eq!(start_of(&last), "a\u{10ffff}");
    }

    #[test]
    fn names_that_come_late_are_noticed() {
        let entry = |name: &str| {
            Entry::Object(ListedObject {
                key: name.to_owned(),
                ..ListedObject::default()
            })
        };
        let request = asked(None, "x\u{1f600}");
        // In units of UTF-16 it comes after the position, in bytes before it.
        let late = [entry("x\u{ff01}")];
        check_order(&late, None, &request).expect_err("it would be missing");
        check_order(&[entry("a"), entry("y")], None, &request).expect("passed over");
        check_order(&[entry("y")], Some("x"), &request).expect("in order");
        check_order(&[entry("y")], Some("y"), &request).expect_err("it goes back");
    }

    #[test]
    fn markers_take_little_and_the_nearest_is_found() {
        let mut markers = Markers::default();
        let request = |after: &str| asked(Some("/"), after);
        markers.keep(&request(""), "b", "m-b");
        markers.keep(&request(""), "d", "m-d");
        markers.keep(&asked(None, ""), "c", "other list");
        assert_eq!(markers.nearest(&request("a")), None);
        assert_eq!(markers.nearest(&request("c")), Some(("b", "m-b")));
        assert_eq!(markers.nearest(&request("d")), Some(("d", "m-d")));
        markers.keep(&request(""), "d", "m-new");
        assert_eq!(markers.nearest(&request("z")), Some(("d", "m-new")));
        for number in 0..5_000 {
            let (after, marker) = (format!("{number:0900}"), "m".repeat(100));
            markers.keep(&request(""), &after, &marker);
        }
        assert!(markers.bytes <= MARKERS_BYTES_MAX);
        assert!(markers.kept.len() > 500);
        assert_eq!(
            markers.nearest(&request("b")).map(|near| near.0.len()),
            Some(900)
        );
    }

    proptest! {
        /// The start is no later than any name that may come.
        #[test]
        fn no_name_is_before_the_start(
            key in "[a-c/\u{ff01}]{1,6}",
            after in "[a-c/\u{ff01}]{1,6}",
            delimiter in prop::option::of("[a/]"),
        ) {
            let request = asked(delimiter.as_deref(), &after);
            if request.name_of(&key).is_some() {
                prop_assert!(key >= start_of(&request), "{key:?} after {after:?}");
            }
        }
    }
}
