//! ListParts and ListMultipartUploads: what the store knows of uploads that are under way.
//!
//! Uploads are the store's alone, so a page is the store's, told in S3's words. Names that share a
//! delimiter are put together here. A page is complete up to its last name, or refused.

use super::ObjectRequest;
use super::bucket::OWNER;
use super::connection::Connection;
use super::get::quoted;
use super::limits::{LIST_STORE_PAGES_MAX, LIST_WAIT_MAX};
use super::list::encoded;
use super::operation::{PartsQuery, encoding, limit};
use super::reply::ErrorReply;
use crate::xml::{Document, moment};
use forebay_io::multipart::{PartsPage, PartsRequest, UploadMeta, UploadName, UploadsRequest};
use forebay_io::runtime::timeout;
use forebay_shards::key::Volume;

/// Uploads of one page at most: S3's own limit.
const LISTED_UPLOADS_MAX: usize = 1000;

/// The parameters of a list of uploads.
const PARAMETERS: [&str; 7] = [
    "uploads",
    "prefix",
    "delimiter",
    "key-marker",
    "upload-id-marker",
    "max-uploads",
    "encoding-type",
];

/// What uploads are to be listed, and how they are to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadsParameters {
    prefix: String,
    delimiter: String,
    key_marker: String,
    upload_id_marker: String,
    limit: usize,
    is_encoded: bool,
}

impl UploadsParameters {
    /// Whether a query asks for a list of uploads, and nothing else.
    pub fn are(query: &[(&str, &str)]) -> bool {
        let is_asked = query.iter().any(|(name, _)| *name == "uploads");
        is_asked && query.iter().all(|(name, _)| PARAMETERS.contains(name))
    }

    /// Reads the parameters.
    ///
    /// # Errors
    /// `InvalidArgument` for what says nothing, or contradicts itself.
    pub fn parse(query: &[(&str, &str)]) -> Result<UploadsParameters, ErrorReply> {
        for (at, (name, _)) in query.iter().enumerate() {
            if query[..at].iter().any(|(earlier, _)| earlier == name) {
                let message = format!("{name} is given twice");
                return Err(ErrorReply::new(400, "InvalidArgument", message));
            }
        }
        let value = |name: &str| {
            let pair = query.iter().find(|(given, _)| *given == name);
            pair.map(|(_, value)| *value)
        };
        let owned = |name: &str| value(name).unwrap_or_default().to_owned();
        let key_marker = owned("key-marker");
        // It means nothing without the key.
        let upload_id_marker = match key_marker.is_empty() {
            true => String::new(),
            false => owned("upload-id-marker"),
        };
        Ok(UploadsParameters {
            prefix: owned("prefix"),
            delimiter: owned("delimiter"),
            key_marker,
            upload_id_marker,
            limit: limit(value("max-uploads"), "max-uploads", LISTED_UPLOADS_MAX)?,
            is_encoded: encoding(value("encoding-type"))?,
        })
    }

    /// The common prefix that a key is told as, if it is.
    fn common_prefix<'k>(&self, key: &'k str) -> Option<&'k str> {
        let rest = key.strip_prefix(self.prefix.as_str())?;
        let at = rest.find(self.delimiter.as_str())?;
        let end = self.prefix.len() + at + self.delimiter.len();
        (!self.delimiter.is_empty()).then(|| &key[..end])
    }
}

/// A page of a list of uploads in the making.
#[derive(Default)]
struct Page {
    uploads: Vec<UploadMeta>,
    prefixes: Vec<String>,
    /// The last upload that the page tells, or has in a common prefix.
    last: Option<UploadName>,
    is_truncated: bool,
}

impl Page {
    fn len(&self) -> usize {
        self.uploads.len() + self.prefixes.len()
    }

    /// Takes the next upload in; false if there is no more room for it.
    fn take(&mut self, parameters: &UploadsParameters, upload: UploadMeta) -> bool {
        let key = &upload.upload.key;
        let name = upload.upload.clone();
        match parameters.common_prefix(key) {
            Some(prefix) => {
                let is_told = self.prefixes.last().is_some_and(|last| last == prefix)
                    // On the page before this one.
                    || parameters.key_marker.starts_with(prefix);
                if !is_told && self.len() == parameters.limit {
                    return false;
                }
                if !is_told {
                    self.prefixes.push(prefix.to_owned());
                }
            }
            None if self.len() == parameters.limit => return false,
            None => self.uploads.push(upload),
        }
        self.last = Some(name);
        true
    }
}

/// The document that lists the uploads of a volume.
///
/// # Errors
/// What the client is told instead.
pub async fn uploads(
    connection: &Connection,
    volume: &Volume,
    parameters: &UploadsParameters,
) -> Result<String, ErrorReply> {
    let context = connection.context();
    let permit = timeout(&context.runtime, LIST_WAIT_MAX, context.listing.acquire()).await;
    let _permit = permit.ok_or_else(|| ErrorReply::slow_down("too many lists are being made"))?;
    let mut page = Page::default();
    let mut request = UploadsRequest {
        prefix: parameters.prefix.clone(),
        key_marker: parameters.key_marker.clone(),
        upload_id_marker: parameters.upload_id_marker.clone(),
        limit: LISTED_UPLOADS_MAX,
    };
    for _ in 0..LIST_STORE_PAGES_MAX {
        if parameters.limit == 0 {
            break;
        }
        let stored = context.router.list_uploads(volume, request.clone()).await;
        let stored = stored.map_err(|error| ErrorReply::from(&error))?;
        let mut left = stored.uploads.into_iter();
        page.is_truncated = left.any(|upload| !page.take(parameters, upload));
        if page.is_truncated || !stored.is_truncated {
            break;
        }
        page.is_truncated = true;
        if let Some(last) = &page.last {
            request.key_marker.clone_from(&last.key);
            request.upload_id_marker.clone_from(&last.upload_id);
        }
    }
    Ok(tell_uploads(&volume.name, parameters, &page))
}

fn owner(document: &mut Document, role: &str) {
    document.open(role);
    document.element("ID", OWNER).element("DisplayName", OWNER);
    document.close(role);
}

/// An element that holds a name or a part of one.
fn name(document: &mut Document, is_encoded: bool, element: &str, name: &str) {
    match is_encoded {
        true => document.element(element, &encoded(name)),
        false => document.exact_element(element, name),
    };
}

fn tell_uploads(volume: &str, parameters: &UploadsParameters, page: &Page) -> String {
    const ROOT: &str = "ListMultipartUploadsResult";
    let is_encoded = parameters.is_encoded;
    let mut document = Document::new(ROOT);
    document.element("Bucket", volume);
    name(
        &mut document,
        is_encoded,
        "KeyMarker",
        &parameters.key_marker,
    );
    document.element("UploadIdMarker", &parameters.upload_id_marker);
    if let Some(last) = page.last.as_ref().filter(|_| page.is_truncated) {
        name(&mut document, is_encoded, "NextKeyMarker", &last.key);
        document.element("NextUploadIdMarker", &last.upload_id);
    }
    name(&mut document, is_encoded, "Prefix", &parameters.prefix);
    if !parameters.delimiter.is_empty() {
        name(
            &mut document,
            is_encoded,
            "Delimiter",
            &parameters.delimiter,
        );
    }
    if is_encoded {
        document.element("EncodingType", "url");
    }
    document.number("MaxUploads", parameters.limit as u64);
    document.flag("IsTruncated", page.is_truncated);
    for upload in &page.uploads {
        document.open("Upload");
        name(&mut document, is_encoded, "Key", &upload.upload.key);
        document.element("UploadId", &upload.upload.upload_id);
        owner(&mut document, "Initiator");
        owner(&mut document, "Owner");
        document
            .element("StorageClass", "STANDARD")
            .element("Initiated", &moment(upload.initiated * 1000))
            .close("Upload");
    }
    for prefix in &page.prefixes {
        document.open("CommonPrefixes");
        name(&mut document, is_encoded, "Prefix", prefix);
        document.close("CommonPrefixes");
    }
    document.finish(ROOT)
}

/// The document that lists the parts of an upload.
///
/// # Errors
/// What the client is told instead.
pub async fn parts(
    connection: &Connection,
    object: &ObjectRequest,
    query: &PartsQuery,
) -> Result<String, ErrorReply> {
    let context = connection.context();
    let permit = timeout(&context.runtime, LIST_WAIT_MAX, context.listing.acquire()).await;
    let _permit = permit.ok_or_else(|| ErrorReply::slow_down("too many lists are being made"))?;
    let request = PartsRequest {
        upload: UploadName {
            key: object.key.to_string(),
            upload_id: query.upload_id.clone(),
        },
        after: query.after,
        // The store is asked all the same whether there is such an upload.
        limit: query.limit.max(1),
    };
    let page = context.router.list_parts(&object.volume, request).await;
    let mut page = page.map_err(|error| ErrorReply::from(&error))?;
    if query.limit == 0 {
        page = PartsPage::default();
    }
    Ok(tell_parts(object, query, &page))
}

fn tell_parts(object: &ObjectRequest, query: &PartsQuery, page: &PartsPage) -> String {
    const ROOT: &str = "ListPartsResult";
    let mut document = Document::new(ROOT);
    document.element("Bucket", &object.volume.name);
    name(&mut document, query.is_encoded, "Key", &object.key);
    document.element("UploadId", &query.upload_id);
    owner(&mut document, "Initiator");
    owner(&mut document, "Owner");
    document
        .element("StorageClass", "STANDARD")
        .number("PartNumberMarker", query.after.into());
    if let Some(last) = page.parts.last().filter(|_| page.is_truncated) {
        document.number("NextPartNumberMarker", last.number.into());
    }
    document.number("MaxParts", query.limit as u64);
    document.flag("IsTruncated", page.is_truncated);
    if query.is_encoded {
        document.element("EncodingType", "url");
    }
    for part in &page.parts {
        document
            .open("Part")
            .number("PartNumber", part.number.into());
        document
            .element("LastModified", &moment(part.last_modified * 1000))
            .element("ETag", &quoted(&part.etag))
            .number("Size", part.size)
            .close("Part");
    }
    document.finish(ROOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(query: &[(&str, &str)]) -> UploadsParameters {
        let query: Vec<(&str, &str)> = query.iter().copied().chain([("uploads", "")]).collect();
        assert!(UploadsParameters::are(&query));
        UploadsParameters::parse(&query).expect("good")
    }

    fn upload(key: &str) -> UploadMeta {
        UploadMeta {
            upload: UploadName {
                key: key.into(),
                upload_id: "u".into(),
            },
            initiated: 0,
        }
    }

    /// All pages of what a delimiter makes of uploads.
    fn pages(keys: &[&str], query: &[(&str, &str)]) -> Vec<String> {
        let mut parameters = parameters(query);
        let mut told = Vec::new();
        loop {
            let mut page = Page::default();
            let behind = keys.iter().filter(|key| {
                **key > parameters.key_marker.as_str() && key.starts_with(&parameters.prefix)
            });
            let is_cut = behind
                .map(|key| upload(key))
                .any(|upload| !page.take(&parameters, upload));
            let uploads = page.uploads.iter().map(|upload| upload.upload.key.clone());
            told.push(
                uploads
                    .chain(page.prefixes.iter().cloned())
                    .collect::<Vec<_>>()
                    .join(" "),
            );
            match page.last.filter(|_| is_cut) {
                Some(last) => parameters.key_marker = last.key,
                None => return told,
            }
        }
    }

    #[test]
    fn prefixes_are_told_once_page_by_page() {
        let keys = ["a", "b/1", "b/2", "b/3", "c", "d/1", "d/2"];
        assert_eq!(pages(&keys, &[]), [keys.join(" ")]);
        let delimiter = ("delimiter", "/");
        assert_eq!(pages(&keys, &[delimiter]), ["a c b/ d/"]);
        let one = [delimiter, ("max-uploads", "1")];
        assert_eq!(pages(&keys, &one), ["a", "b/", "c", "d/"]);
        let inside = [delimiter, ("prefix", "b/")];
        assert_eq!(pages(&keys, &inside), ["b/1 b/2 b/3"]);
        let behind = [delimiter, ("key-marker", "b/2")];
        assert_eq!(pages(&keys, &behind), ["c d/"]);
    }

    #[test]
    fn parameters_are_one_list_or_refused() {
        let twice = [("uploads", ""), ("prefix", "a"), ("prefix", "b")];
        assert!(UploadsParameters::parse(&twice).is_err());
        assert!(!UploadsParameters::are(&[
            ("uploads", ""),
            ("list-type", "2")
        ]));
        assert!(!UploadsParameters::are(&[("prefix", "a")]));
        assert!(UploadsParameters::parse(&[("max-uploads", "x")]).is_err());
        let alone = parameters(&[("upload-id-marker", "u")]);
        assert_eq!(alone.upload_id_marker, "");
        assert_eq!(parameters(&[("max-uploads", "5000")]).limit, 1000);
    }
}
