//! ListObjectVersions: what the store tells of versions, in the names of the volume.
//!
//! This file owns the parameters and the answer. What is acknowledged and waits for its upload reaches
//! the store first: only there it becomes a version. If that takes too long, or the store cannot tell,
//! there is no list.

use super::bucket::OWNER;
use super::connection::Connection;
use super::get::quoted;
use super::limits::{LIST_PAUSE_NAMES, LIST_WAIT_MAX};
use super::list::{encoded, store_is_away};
use super::operation;
use super::reply::ErrorReply;
use super::versions::unsettled;
use crate::xml::{Document, moment};
use forebay_io::listing::LIST_NAMES_MAX;
use forebay_io::runtime::{Runtime, timeout};
use forebay_io::store::KEY_BYTES_MAX;
use forebay_io::versions::{ListedVersion, VersionsPage, VersionsRequest};
use forebay_shards::key::Volume;
use std::sync::Arc;

/// The parameters, the first of which says what is asked for.
const PARAMETERS: [&str; 7] = [
    "versions",
    "prefix",
    "delimiter",
    "key-marker",
    "version-id-marker",
    "max-keys",
    "encoding-type",
];

const ROOT: &str = "ListVersionsResult";

/// What is to be listed, and how it is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionsParameters {
    prefix: String,
    delimiter: String,
    key_marker: String,
    version_id_marker: String,
    max_keys: usize,
    is_encoded: bool,
}

impl VersionsParameters {
    /// Whether a query asks for versions, and for nothing else.
    pub fn are(query: &[(&str, &str)]) -> bool {
        let is_known = query.iter().all(|(name, _)| PARAMETERS.contains(name));
        is_known && query.iter().any(|(name, _)| *name == PARAMETERS[0])
    }

    /// Reads the parameters, which must be all of the query.
    ///
    /// # Errors
    /// `InvalidArgument` for what says nothing, or contradicts itself.
    pub fn parse(query: &[(&str, &str)]) -> Result<VersionsParameters, ErrorReply> {
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
        let key_marker = owned("key-marker");
        if value("version-id-marker").is_some_and(|id| id.is_empty() || key_marker.is_empty()) {
            let message = "version-id-marker is a version of the key that key-marker names";
            return Err(invalid(message));
        }
        Ok(VersionsParameters {
            prefix: owned("prefix"),
            delimiter: owned("delimiter"),
            key_marker,
            version_id_marker: owned("version-id-marker"),
            max_keys: operation::limit(value("max-keys"), "max-keys", LIST_NAMES_MAX)?,
            is_encoded: operation::encoding(value("encoding-type"))?,
        })
    }

    /// What to ask the store; `None` if no version can be an answer.
    fn request(&self) -> Option<VersionsRequest> {
        let is_key = |name: &str| name.len() <= KEY_BYTES_MAX && !name.contains('\0');
        if self.max_keys == 0 || !is_key(&self.prefix) || !is_key(&self.key_marker) {
            return None;
        }
        let delimiter = Some(&self.delimiter).filter(|d| !d.is_empty() && !d.contains('\0'));
        Some(VersionsRequest {
            prefix: self.prefix.clone(),
            delimiter: delimiter.cloned(),
            key_marker: self.key_marker.clone(),
            version_id_marker: self.version_id_marker.clone(),
            limit: self.max_keys,
        })
    }
}

fn invalid(message: &str) -> ErrorReply {
    ErrorReply::new(400, "InvalidArgument", message)
}

/// The document that answers.
///
/// # Errors
/// What the client is told instead; 503 if the store is away.
pub async fn make(
    connection: &Connection,
    volume: &Arc<Volume>,
    parameters: &VersionsParameters,
) -> Result<String, ErrorReply> {
    let context = connection.context();
    let permit = timeout(&context.runtime, LIST_WAIT_MAX, context.listing.acquire()).await;
    let _permit = permit.ok_or_else(|| ErrorReply::slow_down("too many lists are being made"))?;
    let page = match parameters.request() {
        Some(request) => {
            let router = &context.router;
            let settled = router.settle_volume(volume, &request.prefix).await;
            settled.map_err(unsettled)?;
            let page = router.list_versions(volume, request).await;
            page.map_err(|error| store_is_away(&error))?
        }
        None => VersionsPage::default(),
    };
    let mut writer = Writer::new(parameters);
    writer.head(&volume.name, &page);
    for (count, version) in page.versions.iter().enumerate() {
        writer.version(version);
        if count % LIST_PAUSE_NAMES == LIST_PAUSE_NAMES - 1 {
            context.runtime.yield_now().await;
        }
    }
    for prefix in &page.prefixes {
        writer.document.open("CommonPrefixes");
        writer.name("Prefix", prefix);
        writer.document.close("CommonPrefixes");
    }
    Ok(writer.document.finish(ROOT))
}

/// Writes the answer piece by piece.
struct Writer<'p> {
    parameters: &'p VersionsParameters,
    document: Document,
}

impl<'p> Writer<'p> {
    fn new(parameters: &'p VersionsParameters) -> Self {
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

    fn head(&mut self, volume: &str, page: &VersionsPage) {
        let parameters = self.parameters;
        self.document.element("Name", volume);
        self.name("Prefix", &parameters.prefix);
        self.name("KeyMarker", &parameters.key_marker);
        self.document
            .element("VersionIdMarker", &parameters.version_id_marker);
        if let Some((key, version_id)) = &page.next {
            self.name("NextKeyMarker", key);
            if !version_id.is_empty() {
                self.document.element("NextVersionIdMarker", version_id);
            }
        }
        self.document.number("MaxKeys", parameters.max_keys as u64);
        if !parameters.delimiter.is_empty() {
            self.name("Delimiter", &parameters.delimiter);
        }
        if parameters.is_encoded {
            self.document.element("EncodingType", "url");
        }
        self.document.flag("IsTruncated", page.next.is_some());
    }

    fn version(&mut self, version: &ListedVersion) {
        let root = match version.content {
            Some(_) => "Version",
            None => "DeleteMarker",
        };
        self.document.open(root);
        self.name("Key", &version.key);
        let document = &mut self.document;
        document
            .element("VersionId", &version.version_id)
            .flag("IsLatest", version.is_latest)
            .element("LastModified", &moment(version.last_modified_ms));
        if let Some((etag, size)) = &version.content {
            document
                .element("ETag", &quoted(etag))
                .number("Size", *size)
                .element("StorageClass", "STANDARD");
        }
        document.open("Owner");
        document.element("ID", OWNER).element("DisplayName", OWNER);
        document.close("Owner").close(root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &[(&str, &str)]) -> VersionsParameters {
        VersionsParameters::parse(query).expect("taken")
    }

    #[test]
    fn parameters_are_read() {
        assert!(VersionsParameters::are(&[
            ("versions", ""),
            ("prefix", "a")
        ]));
        assert!(!VersionsParameters::are(&[("prefix", "a")]));
        assert!(!VersionsParameters::are(&[
            ("versions", ""),
            ("marker", "a")
        ]));
        let all = parsed(&[("versions", "")]).request().expect("possible");
        assert_eq!((all.limit, all.delimiter), (1000, None));
        let some = parsed(&[
            ("versions", ""),
            ("max-keys", "5000"),
            ("delimiter", "/"),
            ("key-marker", "k"),
            ("version-id-marker", "v"),
        ]);
        let request = some.request().expect("possible");
        assert_eq!((request.limit, request.key_marker.as_str()), (1000, "k"));
        assert_eq!(request.version_id_marker, "v");
        for nothing in [("max-keys", "0"), ("prefix", "a\0"), ("key-marker", "a\0")] {
            assert_eq!(parsed(&[nothing]).request(), None);
        }
    }

    #[test]
    fn bad_parameters_are_refused() {
        for query in [
            &[("version-id-marker", "v")][..],
            &[("key-marker", "k"), ("version-id-marker", "")],
            &[("key-marker", ""), ("version-id-marker", "v")],
            &[("max-keys", "-1")],
            &[("max-keys", "x")],
            &[("encoding-type", "base64")],
            &[("prefix", "a"), ("prefix", "b")],
        ] {
            let error = VersionsParameters::parse(query).expect_err("refused");
            assert_eq!(
                (error.status, error.code),
                (400, "InvalidArgument"),
                "{query:?}"
            );
        }
    }

    #[test]
    fn documents_tell_versions_and_markers() {
        let page = VersionsPage {
            versions: vec![
                ListedVersion {
                    key: "a b&".into(),
                    version_id: "v2".into(),
                    is_latest: true,
                    last_modified_ms: 1_704_164_645_678,
                    content: None,
                },
                ListedVersion {
                    key: "a b&".into(),
                    version_id: "v1".into(),
                    is_latest: false,
                    last_modified_ms: 1_704_164_645_678,
                    content: Some(("tag".into(), 7)),
                },
            ],
            prefixes: vec!["c/".into()],
            next: Some(("c/".into(), String::new())),
        };
        let write = |parameters: &VersionsParameters| {
            let mut writer = Writer::new(parameters);
            writer.head("vol", &page);
            page.versions
                .iter()
                .for_each(|version| writer.version(version));
            writer.document.finish(ROOT)
        };
        let plain = write(&parsed(&[("versions", "")]));
        for part in [
            "<Name>vol</Name><Prefix></Prefix><KeyMarker></KeyMarker><VersionIdMarker></VersionIdMarker>\
             <NextKeyMarker>c/</NextKeyMarker><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>",
            "<DeleteMarker><Key>a b&amp;</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest>\
             <LastModified>2024-01-02T03:04:05.678Z</LastModified><Owner>",
            "<Version><Key>a b&amp;</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest>",
            "<ETag>&quot;tag&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass><Owner>",
        ] {
            assert!(plain.contains(part), "{part}\n{plain}");
        }
        let encoded = write(&parsed(&[("versions", ""), ("encoding-type", "url")]));
        assert!(encoded.contains("<Key>a%20b%26</Key>"), "{encoded}");
    }
}
