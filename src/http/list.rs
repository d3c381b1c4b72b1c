//! ListObjects, both versions: the store's list and what only the cache has, as one.
//!
//! This file owns what the parameters mean, the order of the two questions, and the answer. A list
//! is complete or refused: if the store, or a core, cannot tell, there is none.
//!
//! **The order.** The cores are asked first for what is dirty, then the store for what it has, and
//! both become one page ([`forebay_io::listing::merge`]), in which a dirty object counts more than
//! the store's of the same key. Then nothing that was acknowledged before the request is missed:
//!
//! - *An upload ends in between.* The object was dirty when the cores were asked, so it is in the page
//!   from there. Asked the other way round, it would be in neither answer.
//! - *It ended before.* The store has it, and the store is asked later.
//! - *A write that goes through to the store while something dirty of the key is there:* what is dirty
//!   counts until the store's answer was seen, so the page has the one or the other.
//! - *A DELETE is acknowledged only when the store has no such object and nothing is dirty:* neither
//!   answer that is asked for later names it. One that runs beside the list may show or not.
//! - *A write that is acknowledged while the list is made* may be missed, as by any list that was made
//!   a moment earlier.
//!
//! The next page asks both anew from the last name on, so that all of this holds for each page.

use super::bucket::OWNER;
use super::connection::Connection;
use super::limits::{LIST_PAUSE_NAMES, LIST_STORE_PAGES_MAX, LIST_WAIT_MAX};
use super::reply::ErrorReply;
use crate::xml::{Document, moment};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crc_fast::CrcAlgorithm;
use forebay_io::listing::{Entry, LIST_NAMES_MAX, ListPage, ListRequest, ListedObject, merge};
use forebay_io::runtime::{Runtime, timeout};
use forebay_io::store::{KEY_BYTES_MAX, StoreError, StoreErrorKind};
use forebay_shards::key::Volume;
use forebay_shards::names::NamesError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::sync::Arc;

/// What stays as it is in names that are asked for percent-encoded.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// The parameters of both versions.
const PARAMETERS: [&str; 9] = [
    "list-type",
    "prefix",
    "delimiter",
    "max-keys",
    "marker",
    "start-after",
    "continuation-token",
    "encoding-type",
    "fetch-owner",
];

/// A name as it is told percent-encoded.
pub fn encoded(name: &str) -> String {
    utf8_percent_encode(name, PLAIN).to_string()
}

/// Whether a query parameter is one of a list.
pub fn is_parameter(name: &str) -> bool {
    PARAMETERS.contains(&name)
}

/// Which version was asked for, and where it begins in that version's words.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    One {
        marker: String,
    },
    Two {
        start_after: Option<String>,
        token: Option<String>,
        fetch_owner: bool,
    },
}

/// What is to be listed, and how it is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListParameters {
    version: Version,
    prefix: String,
    delimiter: String,
    /// As asked for, up to [`LIST_NAMES_MAX`].
    max_keys: usize,
    is_encoded: bool,
    /// The name after which it begins.
    after: String,
}

/// The place where a list goes on, as clients carry it: opaque to them, and checked.
pub struct Token;

impl Token {
    /// The first byte; another one would mean another form.
    const FORM: u8 = 1;

    fn checksum(name: &[u8]) -> [u8; 8] {
        crc_fast::checksum(CrcAlgorithm::Crc64Nvme, name).to_be_bytes()
    }

    /// The token of a name.
    pub fn encode(name: &str) -> String {
        let mut bytes = vec![Token::FORM];
        bytes.extend_from_slice(&Token::checksum(name.as_bytes()));
        bytes.extend_from_slice(name.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The name of a token.
    ///
    /// # Errors
    /// If it is none of ours.
    pub fn decode(token: &str) -> Result<String, ErrorReply> {
        let name = || {
            let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
            let (form, rest) = bytes.split_first()?;
            let (checksum, name) = rest.split_at_checked(8)?;
            let is_ours = *form == Token::FORM && checksum == Token::checksum(name);
            String::from_utf8(name.to_vec()).ok().filter(|_| is_ours)
        };
        name().ok_or_else(|| invalid("the continuation token is not one that was given out"))
    }
}

fn invalid(message: &str) -> ErrorReply {
    ErrorReply::new(400, "InvalidArgument", message)
}

impl ListParameters {
    /// Reads the parameters of a list, which must be all of the query.
    ///
    /// # Errors
    /// `InvalidArgument` for what says nothing, or contradicts itself.
    pub fn parse(query: &[(&str, &str)]) -> Result<ListParameters, ErrorReply> {
        for (at, (name, _)) in query.iter().enumerate() {
            if query[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(invalid(&format!("{name} is given twice")));
            }
        }
        let value = |name: &str| {
            let pair = query.iter().find(|(given, _)| *given == name);
            pair.map(|(_, value)| *value)
        };
        let owned = |name: &str| value(name).unwrap_or_default().to_owned();
        let version = match value("list-type") {
            None => Version::One {
                marker: owned("marker"),
            },
            Some("2") => Version::Two {
                start_after: value("start-after").map(str::to_owned),
                token: value("continuation-token").map(str::to_owned),
                fetch_owner: value("fetch-owner") == Some("true"),
            },
            Some(_) => return Err(invalid("list-type is 2 or not given")),
        };
        let after = match &version {
            Version::One { marker } => marker.clone(),
            Version::Two {
                token: Some(token), ..
            } => Token::decode(token)?,
            Version::Two { start_after, .. } => start_after.clone().unwrap_or_default(),
        };
        let is_encoded = match value("encoding-type") {
            None | Some("") => false,
            Some("url") => true,
            Some(_) => return Err(invalid("encoding-type is url or not given")),
        };
        Ok(ListParameters {
            version,
            prefix: owned("prefix"),
            delimiter: owned("delimiter"),
            max_keys: max_keys(value("max-keys"))?,
            is_encoded,
            after,
        })
    }

    /// What to ask the cores and the store; `None` if no key can be an answer.
    fn request(&self) -> Option<ListRequest> {
        let is_possible = self.prefix.len() <= KEY_BYTES_MAX && !self.prefix.contains('\0');
        if self.max_keys == 0 || !is_possible {
            return None;
        }
        // No key holds a NUL, and none is longer than this: nothing lies between.
        let after = self.after.split('\0').next().unwrap_or_default();
        let mut end = after.len().min(KEY_BYTES_MAX);
        while !after.is_char_boundary(end) {
            end -= 1;
        }
        let after = &after[..end];
        let delimiter = Some(&self.delimiter).filter(|d| !d.is_empty() && !d.contains('\0'));
        Some(ListRequest {
            prefix: self.prefix.clone(),
            delimiter: delimiter.cloned(),
            after: after.to_owned(),
            limit: self.max_keys,
        })
    }
}

/// S3 takes any number that a signed integer can be, and gives a thousand at most.
fn max_keys(value: Option<&str>) -> Result<usize, ErrorReply> {
    let Some(text) = value.filter(|text| !text.is_empty()) else {
        return Ok(LIST_NAMES_MAX);
    };
    let number: Option<i32> = text.parse().ok();
    let number = number.and_then(|number| usize::try_from(number).ok());
    let number = number.ok_or_else(|| invalid("max-keys is not 0 to 2147483647"))?;
    Ok(number.min(LIST_NAMES_MAX))
}

/// The document that answers a list.
///
/// # Errors
/// What the client is told instead; 503 if the store is away.
pub async fn make(
    connection: &Connection,
    volume: &Arc<Volume>,
    parameters: &ListParameters,
) -> Result<String, ErrorReply> {
    let context = connection.context();
    let permit = timeout(&context.runtime, LIST_WAIT_MAX, context.listing.acquire()).await;
    let _permit = permit.ok_or_else(|| ErrorReply::slow_down("too many lists are being made"))?;
    let page = match parameters.request() {
        Some(request) => page(connection, volume, request).await?,
        None => ListPage::default(),
    };
    Ok(render(connection, &volume.name, parameters, &page).await)
}

/// A page of the list of a volume. See the file's head for the order.
async fn page(
    connection: &Connection,
    volume: &Arc<Volume>,
    request: ListRequest,
) -> Result<ListPage, ErrorReply> {
    let router = &connection.context().router;
    let mut dirty = router.list_dirty(volume, &request).await?;
    let mut whole = ListPage::default();
    let mut ask = request.clone();
    for _ in 0..LIST_STORE_PAGES_MAX {
        let stored = router.list_store(volume, ask.clone()).await;
        let stored = stored.map_err(|error| store_is_away(&error))?;
        let merged = merge(ask.limit, vec![dirty.clone(), stored]);
        whole.entries.extend(merged.entries);
        whole.complete_to = merged.complete_to;
        let Some(end) = &whole.complete_to else {
            return Ok(whole);
        };
        ask.limit = request.limit - whole.entries.len();
        if ask.limit == 0 {
            return Ok(whole);
        }
        // The store gave less than it was asked for, and has more.
        dirty.entries.retain(|entry| entry.name() > end.as_str());
        ask.after.clone_from(end);
    }
    Ok(whole)
}

/// A list that cannot be made now is one to ask for again.
pub(super) fn store_is_away(error: &StoreError) -> ErrorReply {
    use StoreErrorKind as Kind;
    match error.kind {
        Kind::Timeout | Kind::Unreachable | Kind::Corrupt | Kind::Internal | Kind::Contended => {
            let message = format!("the object store cannot be listed: {error}");
            let refusal = ErrorReply::new(503, "ServiceUnavailable", message);
            refusal.with("retry-after", "1")
        }
        Kind::NotFound
        | Kind::NoSuchUpload
        | Kind::InvalidPart
        | Kind::PartTooSmall
        | Kind::NoSuchBucket
        | Kind::PreconditionFailed
        | Kind::NotModified
        | Kind::RangeNotSatisfiable
        | Kind::Denied
        | Kind::ClockSkew
        | Kind::Misdirected
        | Kind::SlowDown
        | Kind::Rejected
        | Kind::InvalidKey
        | Kind::Unsupported => ErrorReply::from(error),
    }
}

impl From<NamesError> for ErrorReply {
    fn from(error: NamesError) -> Self {
        ErrorReply::slow_down(&error.to_string())
    }
}

async fn render(
    connection: &Connection,
    volume: &str,
    parameters: &ListParameters,
    page: &ListPage,
) -> String {
    let mut writer = Writer::new(parameters);
    writer.head(volume, page);
    let objects = page.entries.iter().filter_map(|entry| match entry {
        Entry::Object(object) => Some(object),
        Entry::CommonPrefix(_) => None,
    });
    for (count, object) in objects.enumerate() {
        writer.object(object);
        if count % LIST_PAUSE_NAMES == LIST_PAUSE_NAMES - 1 {
            connection.context().runtime.yield_now().await;
        }
    }
    for entry in &page.entries {
        if let Entry::CommonPrefix(prefix) = entry {
            writer.prefix(prefix);
        }
    }
    writer.document.finish(ROOT)
}

const ROOT: &str = "ListBucketResult";

/// Writes the answer piece by piece.
struct Writer<'p> {
    parameters: &'p ListParameters,
    document: Document,
}

impl<'p> Writer<'p> {
    fn new(parameters: &'p ListParameters) -> Self {
        Writer {
            parameters,
            document: Document::new(ROOT),
        }
    }

    /// An element that holds a name or a part of one.
    fn name(&mut self, element: &str, name: &str) {
        if self.parameters.is_encoded {
            self.document.element(element, &encoded(name));
        } else {
            self.document.exact_element(element, name);
        }
    }

    fn head(&mut self, volume: &str, page: &ListPage) {
        let parameters = self.parameters;
        self.document.element("Name", volume);
        self.name("Prefix", &parameters.prefix);
        match &parameters.version {
            Version::One { marker } => {
                self.name("Marker", marker);
                if let Some(next) = &page.complete_to {
                    self.name("NextMarker", next);
                }
            }
            Version::Two {
                start_after, token, ..
            } => {
                if let Some(start_after) = start_after {
                    self.name("StartAfter", start_after);
                }
                if let Some(token) = token {
                    self.document.element("ContinuationToken", token);
                }
                if let Some(next) = &page.complete_to {
                    let token = Token::encode(next);
                    self.document.element("NextContinuationToken", &token);
                }
                self.document.number("KeyCount", page.entries.len() as u64);
            }
        }
        self.document.number("MaxKeys", parameters.max_keys as u64);
        if !parameters.delimiter.is_empty() {
            self.name("Delimiter", &parameters.delimiter);
        }
        if parameters.is_encoded {
            self.document.element("EncodingType", "url");
        }
        let is_truncated = page.complete_to.is_some();
        self.document.flag("IsTruncated", is_truncated);
    }

    fn object(&mut self, object: &ListedObject) {
        self.document.open("Contents");
        self.name("Key", &object.key);
        let document = &mut self.document;
        document
            .element("LastModified", &moment(object.last_modified_ms))
            .element("ETag", &super::get::quoted(&object.etag))
            .number("Size", object.size)
            .element("StorageClass", "STANDARD");
        let has_owner = match &self.parameters.version {
            Version::One { .. } => true,
            Version::Two { fetch_owner, .. } => *fetch_owner,
        };
        if has_owner {
            document.open("Owner");
            document.element("ID", OWNER).element("DisplayName", OWNER);
            document.close("Owner");
        }
        document.close("Contents");
    }

    fn prefix(&mut self, prefix: &str) {
        self.document.open("CommonPrefixes");
        self.name("Prefix", prefix);
        self.document.close("CommonPrefixes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(query: &[(&str, &str)]) -> (u16, &'static str) {
        let error = ListParameters::parse(query).expect_err("refused");
        (error.status, error.code)
    }

    fn parsed(query: &[(&str, &str)]) -> ListParameters {
        ListParameters::parse(query).expect("taken")
    }

    #[test]
    fn parameters_are_read() {
        let all = parsed(&[]);
        let request = all.request().expect("possible");
        assert_eq!((request.limit, request.delimiter), (1000, None));
        let one = parsed(&[("marker", "m"), ("delimiter", "ab"), ("max-keys", "5000")]);
        let request = one.request().expect("possible");
        assert_eq!((request.limit, request.after.as_str()), (1000, "m"));
        assert_eq!(request.delimiter.as_deref(), Some("ab"));
        // The token counts more than where the list once began.
        let token = Token::encode("later");
        let two = parsed(&[
            ("list-type", "2"),
            ("start-after", "s"),
            ("continuation-token", &token),
        ]);
        assert_eq!(two.request().expect("possible").after, "later");
        // A position that no key can be at.
        let odd = parsed(&[("marker", "a\0b"), ("delimiter", "\0")]);
        let request = odd.request().expect("possible");
        assert_eq!((request.after.as_str(), request.delimiter), ("a", None));
    }

    #[test]
    fn a_list_that_must_be_empty_asks_nobody() {
        let long = "p".repeat(KEY_BYTES_MAX + 1);
        for query in [
            [("max-keys", "0")],
            [("prefix", "a\0")],
            [("prefix", &long)],
        ] {
            assert_eq!(parsed(&query).request(), None);
        }
    }

    #[test]
    fn bad_parameters_are_refused() {
        for query in [
            &[("max-keys", "-1")][..],
            &[("max-keys", "x")],
            &[("max-keys", "2147483648")],
            &[("max-keys", "1.5")],
            &[("encoding-type", "base64")],
            &[("list-type", "1")],
            &[("list-type", "2"), ("continuation-token", "")],
            &[("list-type", "2"), ("continuation-token", "AQAA")],
            &[("prefix", "a"), ("prefix", "b")],
        ] {
            assert_eq!(refusal(query), (400, "InvalidArgument"), "{query:?}");
        }
    }

    proptest! {
        #[test]
        fn tokens_come_back_and_no_other_is_taken(name in any::<String>(), at in any::<prop::sample::Index>()) {
            let token = Token::encode(&name);
            prop_assert_eq!(Token::decode(&token).expect("ours"), name);
            let mut bytes = URL_SAFE_NO_PAD.decode(&token).expect("base64");
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
            prop_assert!(Token::decode(&URL_SAFE_NO_PAD.encode(bytes)).is_err());
        }
    }

    #[test]
    fn documents_hold_what_was_asked_for() {
        let page = ListPage {
            entries: vec![
                Entry::Object(ListedObject {
                    key: "a b+\u{1}&".into(),
                    size: 7,
                    etag: "tag".into(),
                    last_modified_ms: 1_704_164_645_678,
                }),
                Entry::CommonPrefix("c/".into()),
            ],
            complete_to: Some("c/".into()),
        };
        let write = |parameters: &ListParameters| {
            let mut writer = Writer::new(parameters);
            writer.head("vol", &page);
            let [Entry::Object(object), Entry::CommonPrefix(prefix)] = &page.entries[..] else {
                unreachable!("as above");
            };
            writer.object(object);
            writer.prefix(prefix);
            writer.document.finish(ROOT)
        };
        let one = write(&parsed(&[("delimiter", "/")]));
        for part in [
            "<Name>vol</Name><Prefix></Prefix><Marker></Marker><NextMarker>c/</NextMarker><MaxKeys>1000</MaxKeys>",
            "<Delimiter>/</Delimiter><IsTruncated>true</IsTruncated>",
            "<Key>a b+&#x1;&amp;</Key><LastModified>2024-01-02T03:04:05.678Z</LastModified>",
            "<ETag>&quot;tag&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass><Owner>",
            "<CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes></ListBucketResult>",
        ] {
            assert!(one.contains(part), "{part}\n{one}");
        }
        let two = write(&parsed(&[
            ("list-type", "2"),
            ("encoding-type", "url"),
            ("start-after", "+"),
        ]));
        for part in [
            "<StartAfter>%2B</StartAfter><NextContinuationToken>",
            "<KeyCount>2</KeyCount>",
            "<EncodingType>url</EncodingType>",
            "<Key>a%20b%2B%01%26</Key>",
        ] {
            assert!(two.contains(part), "{part}\n{two}");
        }
        assert!(!two.contains("<Owner>") && !two.contains("Marker"));
    }
}
