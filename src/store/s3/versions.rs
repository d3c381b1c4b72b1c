//! Versions of objects: their requests, and what the answers mean.
//!
//! This file owns the translation of versions and their markers between bucket and volume. A key that
//! is not under our prefix is a corrupt answer, as in [`super::list`]; an id is only ever passed on.

use super::answer::corrupt;
use super::documents::{parse, unquoted};
use super::list::{ANSWER_BYTES_MAX, EMPTY_PAGES_MAX, decoded};
use super::sign::{Target, Verb};
use super::{RequestHeaders, S3Store, base64};
use crate::xml::{self, Document, Node, XmlError};
use bytes::Bytes;
use forebay_io::store::{ObjectHead, StoreError, StoreErrorKind, StoreResult};
use forebay_io::tags::Tags;
use forebay_io::versions::{
    Deleted, ListedVersion, VersionName, VersionStore, Versioning, VersionsPage, VersionsRequest,
    no_versions,
};
use futures::future::LocalBoxFuture;
use md5::{Digest, Md5};
use reqwest::header::HeaderName;

/// Longest id of a version that is asked for; S3 says that its own have at most so many bytes.
const VERSION_ID_BYTES_MAX: usize = 1024;

/// Root of the document that says what a bucket does with versions.
const VERSIONING: &str = "VersioningConfiguration";

/// The parameter that names a version. An id that is empty would turn the request into one for the
/// object itself.
pub(super) fn parameter(version_id: &str) -> StoreResult<(&'static str, String)> {
    let is_odd = version_id.is_empty()
        || version_id.len() > VERSION_ID_BYTES_MAX
        // No store uses others, and some stumble over them.
        || !version_id.bytes().all(|byte| byte.is_ascii_graphic());
    match is_odd {
        true => {
            let message = "no version has such an id";
            Err(StoreError::new(StoreErrorKind::NotFound, message))
        }
        false => Ok(("versionId", version_id.to_owned())),
    }
}

/// A page as the store wrote it, its names those of the bucket.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    versions: Vec<ListedVersion>,
    prefixes: Vec<String>,
    is_truncated: bool,
    /// Where the next page begins, in the store's words.
    next: (String, String),
    is_encoded: bool,
}

impl S3Store {
    async fn versioning_inner(&self) -> StoreResult<Versioning> {
        let mut target = Target::of(Verb::GetVersioning, "");
        target.query = vec![("versioning", String::new())];
        let response = self
            .send_target(&target, &RequestHeaders::default())
            .await?;
        let body = self
            .read_answer(&target, response, ANSWER_BYTES_MAX)
            .await?;
        versioning_of(&body)
    }

    async fn set_versioning_inner(&self, is_enabled: bool) -> StoreResult<()> {
        let mut target = Target::of(Verb::SetVersioning, "");
        target.query = vec![("versioning", String::new())];
        let mut document = Document::new(VERSIONING);
        let word = if is_enabled { "Enabled" } else { "Suspended" };
        document.element("Status", word);
        let document = Bytes::from(document.finish(VERSIONING));
        let mut headers = RequestHeaders::default();
        let name = HeaderName::from_static("content-md5");
        headers.plain.push((name, base64(&Md5::digest(&document))));
        self.send_document(&target, &headers, document)
            .await
            .map(drop)
    }

    pub(super) async fn head_version_inner(
        &self,
        key: &str,
        version_id: &str,
    ) -> StoreResult<ObjectHead> {
        let mut target = Target::of(Verb::HeadVersion, key);
        target.query = vec![parameter(version_id)?];
        self.describe_target(&target).await
    }

    async fn delete_version_inner(&self, name: &VersionName) -> StoreResult<Deleted> {
        let mut target = Target::of(Verb::Delete, &name.key);
        target.query = vec![parameter(&name.version_id)?];
        self.delete_inner(&target).await
    }

    async fn list_versions_inner(&self, request: VersionsRequest) -> StoreResult<VersionsPage> {
        let mut marker = (String::new(), String::new());
        if !request.key_marker.is_empty() {
            marker.0 = self.signer.name(&request.key_marker);
            marker.1 = request.version_id_marker.clone();
        }
        for _ in 0..EMPTY_PAGES_MAX {
            let target = self.versions_target(&request, &marker);
            let response = self
                .send_target(&target, &RequestHeaders::default())
                .await?;
            let body = self
                .read_answer(&target, response, ANSWER_BYTES_MAX)
                .await?;
            let answer = answer_of(&body)?;
            if answer.is_truncated && answer.next == marker {
                return Err(corrupt("a list of versions that leads nowhere"));
            }
            let next = answer.is_truncated.then(|| answer.next.clone());
            let page = self.page_of(answer, &request)?;
            let is_empty = page.versions.is_empty() && page.prefixes.is_empty();
            match next {
                Some(next) if is_empty => marker = next,
                _ => return Ok(page),
            }
        }
        let message = format!("{EMPTY_PAGES_MAX} pages of versions in a row held none");
        Err(StoreError::new(StoreErrorKind::Internal, message))
    }

    fn versions_target(
        &self,
        request: &VersionsRequest,
        marker: &(String, String),
    ) -> Target<'static> {
        let mut target = Target::of(Verb::ListVersions, "");
        let query = &mut target.query;
        if let Some(delimiter) = &request.delimiter {
            query.push(("delimiter", delimiter.clone()));
        }
        query.push(("encoding-type", "url".to_owned()));
        if !marker.0.is_empty() {
            query.push(("key-marker", marker.0.clone()));
        }
        query.push(("max-keys", request.limit.max(1).to_string()));
        query.push(("prefix", self.signer.name(&request.prefix)));
        if !marker.0.is_empty() && !marker.1.is_empty() {
            query.push(("version-id-marker", marker.1.clone()));
        }
        query.push(("versions", String::new()));
        target
    }

    /// An answer in the names of the volume.
    fn page_of(&self, answer: Answer, request: &VersionsRequest) -> StoreResult<VersionsPage> {
        if answer.versions.len() + answer.prefixes.len() > request.limit.max(1) {
            return Err(corrupt("a list with more versions than were asked for"));
        }
        let own = |name: &str| {
            let inside = self.signer.strip(name);
            let inside = inside.filter(|key| key.starts_with(&request.prefix));
            let message = "a list with a version whose key is not as was asked";
            inside.map(str::to_owned).ok_or_else(|| corrupt(message))
        };
        let mut page = VersionsPage::default();
        for version in answer.versions {
            let key = own(&version.key)?;
            page.versions.push(ListedVersion { key, ..version });
        }
        for prefix in &answer.prefixes {
            page.prefixes.push(own(prefix)?);
        }
        if answer.is_truncated {
            let key = self.signer.strip(&answer.next.0);
            let key = key.ok_or_else(|| corrupt("a list of versions that goes on elsewhere"))?;
            page.next = Some((key.to_owned(), answer.next.1));
        }
        // The volume's own prefix as an object: no key of the volume.
        page.versions.retain(|version| !version.key.is_empty());
        Ok(page)
    }
}

/// What a bucket does with versions, in the store's words.
fn versioning_of(body: &[u8]) -> StoreResult<Versioning> {
    let mut status = String::new();
    let mut is_other = false;
    let read = xml::read(body.trim_ascii(), |path, node| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        is_other |= names[0] != VERSIONING;
        if let ([VERSIONING, "Status"], Node::Close(text)) = (names.as_slice(), node) {
            status = text.trim().to_owned();
        }
        Ok(())
    });
    read.map_err(|error| corrupt(&format!("the answer about versions: {error}")))?;
    // A store that passes over what it does not know lists the bucket.
    if is_other {
        return Err(no_versions());
    }
    match status.as_str() {
        "" | "Disabled" => Ok(Versioning::Never),
        "Enabled" => Ok(Versioning::Enabled),
        "Suspended" => Ok(Versioning::Suspended),
        other => Err(corrupt(&format!("versions are {other:?}"))),
    }
}

/// Reads a `ListVersionsResult`. Swift, and Ceph in some answers, call it otherwise.
fn answer_of(body: &[u8]) -> StoreResult<Answer> {
    let mut answer = Answer::default();
    let mut version = ListedVersion::default();
    let (mut etag, mut size) = (String::new(), None);
    parse(
        Verb::ListVersions,
        body,
        "ListVersionsResult",
        |path, text| {
            match path {
                ["IsTruncated"] => answer.is_truncated = text.trim() == "true",
                ["EncodingType"] => answer.is_encoded = text.trim() == "url",
                ["NextKeyMarker"] => answer.next.0 = text.to_owned(),
                ["NextVersionIdMarker"] => answer.next.1 = text.trim().to_owned(),
                ["CommonPrefixes", "Prefix"] => answer.prefixes.push(text.to_owned()),
                ["Version" | "DeleteMarker", "Key"] => version.key = text.to_owned(),
                ["Version" | "DeleteMarker", "VersionId"] => {
                    version.version_id = text.trim().to_owned()
                }
                ["Version" | "DeleteMarker", "IsLatest"] => {
                    version.is_latest = text.trim() == "true"
                }
                ["Version" | "DeleteMarker", "LastModified"] => {
                    version.last_modified_ms = milliseconds(text)?;
                }
                ["Version", "ETag"] => etag = unquoted(text),
                ["Version", "Size"] => size = text.trim().parse().ok(),
                ["Version" | "DeleteMarker"] => {
                    let mut whole = std::mem::take(&mut version);
                    if whole.key.is_empty() || whole.version_id.is_empty() {
                        return Err(XmlError::new("a version without key or id"));
                    }
                    if path == ["Version"] {
                        let size = size.take();
                        let size = size.ok_or_else(|| XmlError::new("a version without size"))?;
                        whole.content = Some((std::mem::take(&mut etag), size));
                    }
                    answer.versions.push(whole);
                }
                _ => {}
            }
            Ok(())
        },
    )?;
    decode(&mut answer)?;
    Ok(answer)
}

/// Takes the encoding off the names, and finds out where the next page begins.
fn decode(answer: &mut Answer) -> StoreResult<()> {
    if answer.is_encoded {
        let plain = |name: &str| {
            let wrong = |error: XmlError| corrupt(&format!("a list of versions: {error}"));
            decoded(name).map_err(wrong)
        };
        for version in &mut answer.versions {
            version.key = plain(&version.key)?;
        }
        for prefix in &mut answer.prefixes {
            *prefix = plain(prefix)?;
        }
        // Ceph before 18 encodes the names and not the markers, and the other way round is no name.
        let is_told = |name: &str| {
            let last = answer.versions.last().map(|version| version.key.as_str());
            last == Some(name) || answer.prefixes.last().is_some_and(|last| last == name)
        };
        if !is_told(&answer.next.0) {
            answer.next.0 = plain(&answer.next.0)?;
        }
    }
    if !answer.is_truncated || !answer.next.0.is_empty() {
        return Ok(());
    }
    // Who leaves it out goes on behind what was told last.
    let last = answer.versions.last();
    let last = last.map(|version| (version.key.clone(), version.version_id.clone()));
    let prefix = answer
        .prefixes
        .last()
        .map(|prefix| (prefix.clone(), String::new()));
    let next = last
        .into_iter()
        .chain(prefix)
        .max_by(|one, other| one.0.cmp(&other.0));
    answer.next = next.ok_or_else(|| corrupt("a list of versions that goes on nowhere"))?;
    Ok(())
}

fn milliseconds(text: &str) -> Result<u64, XmlError> {
    let moment: Result<jiff::Timestamp, _> = text.trim().parse();
    let moment = moment.map_err(|_| XmlError::new("a time that is none"))?;
    Ok(u64::try_from(moment.as_millisecond()).unwrap_or(0))
}

impl VersionStore for S3Store {
    fn versioning(&self) -> LocalBoxFuture<'_, StoreResult<Versioning>> {
        Box::pin(self.versioning_inner())
    }

    fn set_versioning(&self, is_enabled: bool) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(self.set_versioning_inner(is_enabled))
    }

    fn head_version(&self, name: VersionName) -> LocalBoxFuture<'_, StoreResult<ObjectHead>> {
        Box::pin(async move { self.head_version_inner(&name.key, &name.version_id).await })
    }

    fn delete_version(&self, name: VersionName) -> LocalBoxFuture<'_, StoreResult<Deleted>> {
        Box::pin(async move { self.delete_version_inner(&name).await })
    }

    fn version_tags(&self, name: VersionName) -> LocalBoxFuture<'_, StoreResult<Tags>> {
        Box::pin(async move { self.tags_inner(&name.key, Some(&name.version_id)).await })
    }

    fn set_version_tags(
        &self,
        name: VersionName,
        tags: Tags,
    ) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(async move {
            let id = Some(name.version_id.as_str());
            self.set_tags_inner(&name.key, id, &tags).await
        })
    }

    fn list_versions(
        &self,
        request: VersionsRequest,
    ) -> LocalBoxFuture<'_, StoreResult<VersionsPage>> {
        Box::pin(self.list_versions_inner(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::S3Spec;

    fn document(inside: &str) -> String {
        format!("<ListVersionsResult xmlns=\"urn:a\">{inside}</ListVersionsResult>")
    }

    fn version(key: &str, id: &str) -> String {
        format!(
            "<Version><Key>{key}</Key><VersionId>{id}</VersionId><IsLatest>true</IsLatest>\
             <LastModified>2024-01-02T03:04:05.678Z</LastModified><ETag>&quot;tag&quot;</ETag>\
             <Size>5</Size><StorageClass>STANDARD</StorageClass></Version>"
        )
    }

    fn marker(key: &str, id: &str) -> String {
        format!(
            "<DeleteMarker><Key>{key}</Key><VersionId>{id}</VersionId><IsLatest>false</IsLatest>\
             <LastModified>2024-01-02T03:04:05.678Z</LastModified></DeleteMarker>"
        )
    }

    fn page(inside: &str, request: &VersionsRequest) -> StoreResult<VersionsPage> {
        let mut spec = S3Spec::new("http://localhost:1", "r", "bkt");
        spec.access_key = "key".into();
        spec.secret_key = "secret".into();
        spec.prefix = "p".into();
        let store = S3Store::new(&spec).expect("a good spec");
        let answer = answer_of(document(inside).as_bytes())?;
        store.page_of(answer, request)
    }

    fn ten() -> VersionsRequest {
        VersionsRequest {
            limit: 10,
            ..VersionsRequest::default()
        }
    }

    #[test]
    fn what_a_bucket_does_with_versions_is_read() {
        let of = |inside: &str| {
            let body = format!("<{VERSIONING} xmlns=\"urn:a\">{inside}</{VERSIONING}>");
            versioning_of(body.as_bytes()).map_err(|error| error.kind)
        };
        assert_eq!(of(""), Ok(Versioning::Never));
        assert_eq!(of("<Status>Enabled</Status>"), Ok(Versioning::Enabled));
        let suspended = "<Status>Suspended</Status><MfaDelete>Disabled</MfaDelete>";
        assert_eq!(of(suspended), Ok(Versioning::Suspended));
        let odd = of("<Status>Perhaps</Status>");
        assert_eq!(odd, Err(StoreErrorKind::Corrupt));
        let list = versioning_of(b"<ListBucketResult/>").expect_err("a list");
        assert_eq!(list.kind, StoreErrorKind::Unsupported);
        let page = versioning_of(b"Hello").expect_err("no document");
        assert_eq!(page.kind, StoreErrorKind::Corrupt);
    }

    #[test]
    fn versions_and_markers_keep_their_order_and_lose_the_prefix() {
        let inside = format!(
            "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
             <NextKeyMarker>p/c/</NextKeyMarker><NextVersionIdMarker>null</NextVersionIdMarker>{}{}{}{}\
             <CommonPrefixes><Prefix>p/c/</Prefix></CommonPrefixes>",
            version("p/", "v0"),
            marker("p/a%20b+c", "v2"),
            version("p/a%20b+c", "v1"),
            version("p/b", "null"),
        );
        let page = page(&inside, &ten()).expect("good");
        let told: Vec<(&str, &str, bool)> = page
            .versions
            .iter()
            .map(|v| (v.key.as_str(), v.version_id.as_str(), v.content.is_some()))
            .collect();
        let expected = [
            ("a b c", "v2", false),
            ("a b c", "v1", true),
            ("b", "null", true),
        ];
        assert_eq!(told, expected);
        assert_eq!(page.versions[1].content, Some(("tag".into(), 5)));
        assert_eq!(page.versions[0].last_modified_ms, 1_704_164_645_678);
        assert!(!page.versions[0].is_latest && page.versions[1].is_latest);
        assert_eq!(page.prefixes, ["c/"]);
        assert_eq!(page.next, Some(("c/".into(), "null".into())));
    }

    #[test]
    fn markers_are_understood_encoded_and_not() {
        let next = |told: &str| {
            let inside = format!(
                "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>{}{told}",
                version("p/a%2Bb", "v"),
            );
            page(&inside, &ten()).expect("good").next
        };
        let expected = Some(("a+b".to_owned(), "v".to_owned()));
        let with = |key: &str| {
            let id = "<NextVersionIdMarker>v</NextVersionIdMarker>";
            next(&format!("<NextKeyMarker>{key}</NextKeyMarker>{id}"))
        };
        assert_eq!(with("p/a+b"), expected);
        assert_eq!(with("p/a%2Bb"), expected);
        assert_eq!(next(""), expected);
    }

    #[test]
    fn answers_that_cannot_be_are_corrupt() {
        let one = VersionsRequest {
            prefix: "a".into(),
            limit: 1,
            ..VersionsRequest::default()
        };
        for inside in [
            version("q/a", "v"),
            version("p/b", "v"),
            version("p/a", ""),
            version("p/a", "v1") + &version("p/a", "v2"),
            version("p/a", "v").replace("<Size>5</Size>", ""),
            version("p/a", "v").replace("2024-01-02T", "soon"),
            "<IsTruncated>true</IsTruncated>".into(),
        ] {
            let error = page(&inside, &one).expect_err(&inside);
            assert_eq!(error.kind, StoreErrorKind::Corrupt, "{inside}");
        }
    }

    #[test]
    fn ids_that_none_has_are_not_asked_for() {
        for id in ["", "a b", "ü", "a\n", &"x".repeat(VERSION_ID_BYTES_MAX + 1)] {
            let error = parameter(id).expect_err(id);
            assert_eq!(error.kind, StoreErrorKind::NotFound);
        }
        let odd = "aZ09._-+/=~";
        assert_eq!(parameter(odd).expect("an id").1, odd);
    }
}
