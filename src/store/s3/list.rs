//! `ListObjectsV2`: asking for a page, and reading the answer.
//!
//! This file owns what a store's list means. A key that is not under our prefix, a name out of order
//! or a page that leads nowhere is a corrupt answer, never a list. The answer is read into bounded
//! memory and parsed whole.

use super::answer::corrupt;
use super::sign::Verb;
use super::{S3Store, shifted};
use crate::xml::{self, Node, XmlError};
use forebay_io::listing::{Entry, ListPage, ListRequest, ListedObject};
use forebay_io::store::{StoreError, StoreErrorKind, StoreResult};
use futures::stream::StreamExt;
use percent_encoding::percent_decode_str;
use reqwest::Response;
use reqwest::header;
use std::time::{Duration, SystemTime};

/// The longest answer that is read, bytes: a thousand keys of 1,024 bytes, each percent-encoded, with
/// half a kilobyte around each, are less than 4 MiB.
pub const ANSWER_BYTES_MAX: usize = 6 << 20;

/// How long an answer may take from its head to its end: a page of usual keys has 400 KiB.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// Pages without a name that are asked for in a row: of prefixes that are past, or of what was
/// deleted. Each costs a round trip while a client waits.
pub(super) const EMPTY_PAGES_MAX: usize = 20;

/// An answer as the store wrote it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    objects: Vec<ListedObject>,
    prefixes: Vec<String>,
    is_truncated: bool,
    token: String,
    is_encoded: bool,
}

impl S3Store {
    pub(super) async fn list_inner(&self, request: ListRequest) -> StoreResult<ListPage> {
        let mut token = None;
        for _ in 0..EMPTY_PAGES_MAX {
            let response = self
                .ask_signed(Verb::List, || {
                    let now = shifted(SystemTime::now(), self.clock_ahead_seconds.get());
                    let url = self.signer.sign_list(&request, token.as_deref(), now)?;
                    let sending = self.client.get().get(url);
                    Ok(sending.header(header::ACCEPT_ENCODING, "identity"))
                })
                .await?;
            let reading = read_body(response, ANSWER_BYTES_MAX);
            let body = tokio::time::timeout(ANSWER_TIME_MAX, reading).await;
            let body = body.map_err(|_| self.no_answer(Verb::List, ANSWER_TIME_MAX))??;
            let answer = parse(&body).map_err(|error| corrupt(&format!("a list: {error}")))?;
            let next = answer.is_truncated.then(|| answer.token.clone());
            let entries = self.entries_of(answer, &request)?;
            if next.is_none() {
                return Ok(ListPage {
                    entries,
                    complete_to: None,
                });
            }
            if let Some(last) = entries.last() {
                let complete_to = Some(last.name().to_owned());
                return Ok(ListPage {
                    entries,
                    complete_to,
                });
            }
            token = next;
        }
        let message = format!("{EMPTY_PAGES_MAX} pages of a list in a row held nothing");
        Err(StoreError::new(StoreErrorKind::Internal, message))
    }

    /// The names of an answer as names of the volume, in order.
    fn entries_of(&self, answer: Answer, request: &ListRequest) -> StoreResult<Vec<Entry>> {
        let Answer {
            objects, prefixes, ..
        } = answer;
        if objects.len() + prefixes.len() > request.limit {
            return Err(corrupt("a list with more names than were asked for"));
        }
        let own = |name: &str| {
            let inside = self
                .signer
                .strip(name)
                .filter(|key| key.starts_with(&request.prefix));
            let message = "a list with a key that does not begin as was asked";
            inside.map(str::to_owned).ok_or_else(|| corrupt(message))
        };
        let mut entries = Vec::with_capacity(objects.len() + prefixes.len());
        for mut object in objects {
            object.key = own(&object.key)?;
            if request.common_prefix(&object.key).is_some() {
                return Err(corrupt("a list with a key that holds the delimiter"));
            }
            entries.push(Entry::Object(object));
        }
        for prefix in prefixes {
            let prefix = own(&prefix)?;
            if request.common_prefix(&prefix) != Some(prefix.as_str()) {
                return Err(corrupt("a list with a common prefix that is none"));
            }
            entries.push(Entry::CommonPrefix(prefix));
        }
        // Both kinds come in order, and each may come first.
        entries.sort_by(|one, other| one.name().cmp(other.name()));
        if entries.windows(2).any(|two| two[0].name() == two[1].name()) {
            return Err(corrupt("a list with a name that comes twice"));
        }
        // Where a store goes on is its own idea of what comes after a common prefix.
        entries.retain(|entry| entry.name() > request.after.as_str());
        // The volume's own prefix as an object: no key of the volume.
        entries.retain(|entry| !entry.name().is_empty());
        Ok(entries)
    }
}

/// All of an answer's body, if it has no more than `bytes_max`.
pub(super) async fn read_body(response: Response, bytes_max: usize) -> StoreResult<Vec<u8>> {
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| {
            let message = format!("an answer broke off: {}", super::describe(error));
            StoreError::new(StoreErrorKind::Corrupt, message)
        })?;
        if body.len() + piece.len() > bytes_max {
            return Err(corrupt("an answer that is too long"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Reads a `ListBucketResult`.
fn parse(body: &[u8]) -> Result<Answer, XmlError> {
    let mut answer = Answer::default();
    let mut object = ListedObject::default();
    let mut has = (false, false, false);
    xml::read(body, |path, node| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some((&"ListBucketResult", inside)) = names.split_first() else {
            return Err(XmlError::new("it is no ListBucketResult"));
        };
        let Node::Close(text) = node else {
            return Ok(());
        };
        match inside {
            ["IsTruncated"] => answer.is_truncated = text.trim() == "true",
            ["NextContinuationToken"] => answer.token = text.to_owned(),
            ["EncodingType"] => answer.is_encoded = text.trim() == "url",
            ["CommonPrefixes", "Prefix"] => answer.prefixes.push(text.to_owned()),
            ["Contents", "Key"] => (object.key, has.0) = (text.to_owned(), true),
            ["Contents", "Size"] => {
                let size = text.trim().parse();
                object.size = size.map_err(|_| XmlError::new("a size that is no number"))?;
                has.1 = true;
            }
            ["Contents", "LastModified"] => {
                let moment: Result<jiff::Timestamp, _> = text.trim().parse();
                let moment = moment.map_err(|_| XmlError::new("a time that is none"))?;
                object.last_modified_ms = u64::try_from(moment.as_millisecond()).unwrap_or(0);
                has.2 = true;
            }
            ["Contents", "ETag"] => object.etag = text.trim().trim_matches('"').to_owned(),
            ["Contents"] => {
                if has != (true, true, true) {
                    return Err(XmlError::new("an object without key, size or time"));
                }
                has = (false, false, false);
                answer.objects.push(std::mem::take(&mut object));
            }
            _ => {}
        }
        Ok(())
    })?;
    if answer.is_truncated && answer.token.is_empty() {
        return Err(XmlError::new("it says that more follows, and not where"));
    }
    if answer.is_encoded {
        for object in &mut answer.objects {
            object.key = decoded(&object.key)?;
        }
        for prefix in &mut answer.prefixes {
            *prefix = decoded(prefix)?;
        }
    }
    Ok(answer)
}

/// A name that was percent-encoded as in a query, where a plus is a blank.
pub(super) fn decoded(name: &str) -> Result<String, XmlError> {
    let blanks = name.replace('+', " ");
    let text = percent_decode_str(&blanks).decode_utf8();
    let text = text.map_err(|_| XmlError::new("a name that is not UTF-8"))?;
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::S3Spec;

    fn document(inside: &str) -> String {
        format!(
            "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{inside}</ListBucketResult>"
        )
    }

    fn contents(key: &str) -> String {
        format!(
            "<Contents><Key>{key}</Key><Size>5</Size><ETag>&quot;tag&quot;</ETag>\
             <LastModified>2024-01-02T03:04:05.678Z</LastModified><Owner><ID>x</ID></Owner></Contents>"
        )
    }

    fn store() -> S3Store {
        let mut spec = S3Spec::new("http://localhost:1", "r", "bkt");
        spec.access_key = "key".into();
        spec.secret_key = "secret".into();
        spec.prefix = "p".into();
        S3Store::new(&spec).expect("a good spec")
    }

    fn entries(inside: &str, request: &ListRequest) -> StoreResult<Vec<Entry>> {
        let answer = parse(document(inside).as_bytes()).expect("well-formed");
        store().entries_of(answer, request)
    }

    #[test]
    fn an_answer_is_read_and_decoded() {
        let inside = format!(
            "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>{}\
             <CommonPrefixes><Prefix>p/b%2B/</Prefix></CommonPrefixes>\
             <NextContinuationToken>t+1</NextContinuationToken>",
            contents("p/a%20b+c%C3%BC")
        );
        let answer = parse(document(&inside).as_bytes()).expect("well-formed");
        assert!(answer.is_truncated);
        assert_eq!(
            (answer.token.as_str(), answer.prefixes[0].as_str()),
            ("t+1", "p/b+/")
        );
        let object = &answer.objects[0];
        assert_eq!(
            (
                object.key.as_str(),
                object.size,
                object.etag.as_str(),
                object.last_modified_ms
            ),
            ("p/a b cü", 5, "tag", 1_704_164_645_678)
        );
    }

    #[test]
    fn names_are_those_of_the_volume_in_order() {
        let inside = format!(
            "{}{}<CommonPrefixes><Prefix>p/b/</Prefix></CommonPrefixes>{}",
            contents("p/"),
            contents("p/a"),
            contents("p/c")
        );
        let request = ListRequest {
            delimiter: Some("/".into()),
            limit: 10,
            ..ListRequest::default()
        };
        let names = |request: &ListRequest| {
            let entries = entries(&inside, request).expect("good");
            let names = entries.iter().map(|entry| entry.name().to_owned());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(&request), ["a", "b/", "c"]);
        let later = ListRequest {
            after: "b/x".into(),
            ..request
        };
        assert_eq!(names(&later), ["c"]);
    }

    #[test]
    fn answers_that_cannot_be_are_corrupt() {
        let plain = ListRequest {
            prefix: "a".into(),
            limit: 2,
            ..ListRequest::default()
        };
        let cut = ListRequest {
            delimiter: Some("/".into()),
            ..plain.clone()
        };
        let of = |keys: &[&str]| keys.iter().map(|key| contents(key)).collect::<String>();
        let prefix =
            |name: &str| format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>");
        for (request, inside) in [
            (&plain, of(&["p/b"])),
            (&plain, of(&["q/a"])),
            (&plain, of(&["p/a", "p/a"])),
            (&plain, of(&["p/a", "p/aa", "p/ab"])),
            (&plain, prefix("p/a/")),
            (&cut, of(&["p/a/b"])),
            (&cut, prefix("p/a/b/")),
            (&cut, prefix("p/a")),
        ] {
            let error = entries(&inside, request).expect_err(&inside);
            assert_eq!(error.kind, StoreErrorKind::Corrupt);
        }
        for inside in [
            "<Contents><Key>k</Key><Size>1</Size></Contents>",
            "<Contents><Key>k</Key><Size>-1</Size></Contents>",
            "<Contents><LastModified>today</LastModified></Contents>",
            "<IsTruncated>true</IsTruncated>",
            "<EncodingType>url</EncodingType><CommonPrefixes><Prefix>%ff</Prefix></CommonPrefixes>",
        ] {
            parse(document(inside).as_bytes()).expect_err(inside);
        }
        parse(b"<html></html>").expect_err("a portal");
    }

    #[test]
    fn a_page_after_a_common_prefix_is_asked_for_behind_its_keys() {
        let request = ListRequest {
            prefix: "d".into(),
            delimiter: Some("/".into()),
            after: "d/".into(),
            limit: 7,
        };
        let now = SystemTime::now();
        let signer = &store().signer;
        let url = signer.sign_list(&request, None, now).expect("signed");
        let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let value = |name: &str| {
            let pair = query.iter().find(|pair| pair.0 == name);
            pair.map(|pair| pair.1.as_str())
        };
        assert_eq!(url.path().trim_end_matches('/'), "/bkt");
        assert_eq!(value("prefix"), Some("p/d"));
        assert_eq!(value("start-after"), Some("p/d/\u{10ffff}"));
        assert_eq!(
            (value("max-keys"), value("encoding-type")),
            (Some("7"), Some("url"))
        );
        // What only ends with the delimiter is a key, and Ceph must not see it end so.
        let inside = ListRequest {
            prefix: "d//".into(),
            after: "d//".into(),
            ..request.clone()
        };
        let url_inside = signer.sign_list(&inside, None, now).expect("signed");
        assert!(
            url_inside.as_str().contains("start-after=p%2Fd&"),
            "{url_inside}"
        );
        let url = signer.sign_list(&request, Some("t"), now).expect("signed");
        assert!(url.as_str().contains("continuation-token=t"));
        assert!(!url.as_str().contains("start-after"));
    }
}
