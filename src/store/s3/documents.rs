//! The documents of copies and uploads in parts: what is sent, and what the answers mean.
//!
//! Pure. An answer is judged whatever its status was: a store that works for long begins with `200`
//! and says only in the body how it ended. A document that does not say what its kind must is a
//! corrupt answer.

use super::answer::{self, corrupt};
use super::list::decoded;
use super::sign::Verb;
use crate::xml::{self, Document, Node, XmlError};
use forebay_io::multipart::{CompletedPart, PartMeta, PartsPage};
use forebay_io::store::StoreResult;
use forebay_io::tags::Tags;

/// What a store says of what it made.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// Without its quotes; empty where the store told none.
    pub(super) etag: String,
    /// Seconds since the Unix epoch; 0 where the store told none.
    pub(super) last_modified: u64,
    /// The id of the version that was made, which stands in the answer's head.
    pub(super) version_id: Option<String>,
}

/// An upload as the store lists it, its key that of the bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListedUpload {
    pub(super) key: String,
    pub(super) upload_id: String,
    pub(super) initiated: u64,
}

/// A page of uploads as the store wrote it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct UploadsAnswer {
    pub(super) uploads: Vec<ListedUpload>,
    pub(super) is_truncated: bool,
    /// Where the next page begins, in the store's words.
    pub(super) next: (String, String),
    is_encoded: bool,
}

/// What completes an upload.
pub(super) fn completion(parts: &[CompletedPart], with_checksums: bool) -> String {
    const ROOT: &str = "CompleteMultipartUpload";
    let mut document = Document::new(ROOT);
    for part in parts {
        document
            .open("Part")
            .number("PartNumber", u64::from(part.number))
            .element("ETag", &format!("\"{}\"", part.etag));
        for (name, value) in part.checksums.iter().filter(|_| with_checksums) {
            document.element(name, value);
        }
        document.close("Part");
    }
    document.finish(ROOT)
}

/// Whether the name of a checksum can be an element's.
pub(super) fn is_checksum_name(name: &str) -> bool {
    let rest = name.strip_prefix("Checksum");
    rest.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// The store's name of an upload that it has begun.
pub(super) fn begun(body: &[u8]) -> StoreResult<String> {
    let mut upload_id = String::new();
    parse(
        Verb::CreateUpload,
        body,
        "InitiateMultipartUploadResult",
        |path, text| {
            if path == ["UploadId"] {
                upload_id = text.trim().to_owned();
            }
            Ok(())
        },
    )?;
    match upload_id.is_empty() {
        true => Err(corrupt("an upload was begun without a name")),
        false => Ok(upload_id),
    }
}

/// What came of a copy or a completion.
pub(super) fn made(verb: Verb, body: &[u8]) -> StoreResult<Made> {
    let root = match verb {
        Verb::Complete => "CompleteMultipartUploadResult",
        Verb::CopyPart => "CopyPartResult",
        _ => "CopyObjectResult",
    };
    let mut made = Made::default();
    parse(verb, body, root, |path, text| {
        match path {
            ["ETag"] => made.etag = unquoted(text),
            ["LastModified"] => made.last_modified = seconds(text)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(made)
}

/// The tags of an object.
pub(super) fn tags(body: &[u8]) -> StoreResult<Tags> {
    let mut tags = Tags::new();
    let (mut name, mut value) = (None, None);
    parse(Verb::GetTags, body, "Tagging", |path, text| {
        match path {
            ["TagSet", "Tag", "Key"] => name = Some(text.to_owned()),
            ["TagSet", "Tag", "Value"] => value = Some(text.to_owned()),
            ["TagSet", "Tag"] => {
                let name = name
                    .take()
                    .ok_or_else(|| XmlError::new("a tag without a name"))?;
                tags.push((name, value.take().unwrap_or_default()));
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(tags)
}

/// A page of parts behind `after`.
pub(super) fn parts(body: &[u8], after: u32, limit: usize) -> StoreResult<PartsPage> {
    let mut page = PartsPage::default();
    let (mut number, mut size, mut etag, mut last_modified) = (None, None, String::new(), 0);
    parse(Verb::ListParts, body, "ListPartsResult", |path, text| {
        match path {
            ["IsTruncated"] => page.is_truncated = text.trim() == "true",
            ["Part", "PartNumber"] => number = text.trim().parse::<u32>().ok(),
            ["Part", "Size"] => size = text.trim().parse::<u64>().ok(),
            ["Part", "ETag"] => etag = unquoted(text),
            ["Part", "LastModified"] => last_modified = seconds(text)?,
            ["Part"] => {
                let (Some(number), Some(size)) = (number.take(), size.take()) else {
                    return Err(XmlError::new("a part without number or size"));
                };
                page.parts.push(PartMeta {
                    number,
                    etag: std::mem::take(&mut etag),
                    size,
                    last_modified: std::mem::take(&mut last_modified),
                });
            }
            _ => {}
        }
        Ok(())
    })?;
    let is_ascending = page
        .parts
        .is_sorted_by(|one, other| one.number < other.number);
    let is_behind = page.parts.iter().all(|part| part.number > after);
    if !is_ascending || !is_behind || page.parts.len() > limit {
        return Err(corrupt("a list of parts that are not those asked for"));
    }
    if page.is_truncated && page.parts.is_empty() {
        return Err(corrupt("a list of parts that goes on from nowhere"));
    }
    Ok(page)
}

/// A page of uploads.
pub(super) fn uploads(body: &[u8]) -> StoreResult<UploadsAnswer> {
    let mut answer = UploadsAnswer::default();
    let mut upload = ListedUpload::default();
    parse(
        Verb::ListUploads,
        body,
        "ListMultipartUploadsResult",
        |path, text| {
            match path {
                ["IsTruncated"] => answer.is_truncated = text.trim() == "true",
                ["EncodingType"] => answer.is_encoded = text.trim() == "url",
                ["NextKeyMarker"] => answer.next.0 = text.to_owned(),
                ["NextUploadIdMarker"] => answer.next.1 = text.to_owned(),
                ["Upload", "Key"] => upload.key = text.to_owned(),
                ["Upload", "UploadId"] => upload.upload_id = text.trim().to_owned(),
                ["Upload", "Initiated"] => upload.initiated = seconds(text)?,
                ["Upload"] => {
                    let upload = std::mem::take(&mut upload);
                    if upload.key.is_empty() || upload.upload_id.is_empty() {
                        return Err(XmlError::new("an upload without key or name"));
                    }
                    answer.uploads.push(upload);
                }
                _ => {}
            }
            Ok(())
        },
    )?;
    if answer.is_encoded {
        let decode = |name: &str| decoded(name).map_err(|error| wrong(Verb::ListUploads, &error));
        answer.next.0 = decode(&answer.next.0)?;
        for upload in &mut answer.uploads {
            upload.key = decode(&upload.key)?;
        }
    }
    if answer.is_truncated && answer.next.0.is_empty() {
        // Swift leaves it out; behind what it told is where S3 goes on.
        let last = answer.uploads.last();
        let last = last.ok_or_else(|| corrupt("a list of uploads that goes on nowhere"))?;
        answer.next = (last.key.clone(), last.upload_id.clone());
    }
    Ok(answer)
}

/// Tells `visit` of each element inside the root that ends, unless the document is an error's.
pub(super) fn parse(
    verb: Verb,
    body: &[u8],
    root: &str,
    mut visit: impl FnMut(&[&str], &str) -> Result<(), XmlError>,
) -> StoreResult<()> {
    // Stores that work for long send blanks first.
    let body = body.trim_ascii();
    if let Some(document) = answer::parse_error_document(body) {
        return Err(answer::late_refusal(verb, &document));
    }
    let read = xml::read(body, |path, node| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match (names.split_first(), node) {
            (Some((first, inside)), Node::Close(text)) if *first == root => visit(inside, text),
            (Some((first, _)), _) if *first == root => Ok(()),
            _ => Err(XmlError::new(format!("it is no {root}"))),
        }
    });
    read.map_err(|error| wrong(verb, &error))
}

fn wrong(verb: Verb, error: &XmlError) -> forebay_io::store::StoreError {
    corrupt(&format!("the answer to {verb:?}: {error}"))
}

pub(super) fn unquoted(text: &str) -> String {
    let text = text.trim();
    let bare = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    bare.unwrap_or(text).to_owned()
}

fn seconds(text: &str) -> Result<u64, XmlError> {
    let moment: Result<jiff::Timestamp, _> = text.trim().parse();
    let moment = moment.map_err(|_| XmlError::new("a time that is none"))?;
    Ok(u64::try_from(moment.as_second()).unwrap_or(0))
}

#[cfg(test)]
mod tests;
