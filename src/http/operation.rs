//! Which operation a request on an object is, by its method, its query and its headers. Pure.
//!
//! What S3 knows and we do not is refused by name: a parameter that is not understood never leaves a
//! request to be taken for another one.

use super::head::Head;
use super::reply::ErrorReply;
use super::{changes_nothing, overrides};
use forebay_io::multipart::PART_NUMBER_MAX;

/// Says which object a copy is made of.
pub const COPY_SOURCE: &str = "x-amz-copy-source";

/// Says which version of an object is meant.
pub const VERSION_ID: &str = "versionId";

/// Parts that one page of a list of parts tells, at most: S3's own limit.
const LISTED_PARTS_MAX: usize = 1000;

/// Which part of which upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartName {
    /// The store's name of the upload.
    pub upload_id: String,
    /// The part's number.
    pub number: u32,
}

/// A page of a list of parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsQuery {
    /// The store's name of the upload.
    pub upload_id: String,
    /// Only parts with a higher number.
    pub after: u32,
    /// At most so many.
    pub limit: usize,
    /// Whether names are to be told percent-encoded.
    pub is_encoded: bool,
}

/// What is to be done with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// GET or HEAD; perhaps of one part only.
    Read(Option<u32>),
    /// PutObject.
    Put,
    /// CopyObject.
    Copy,
    /// GET or HEAD of one version.
    ReadVersion(String),
    /// DeleteObject.
    Delete,
    /// DeleteObject of one version, for good.
    DeleteVersion(String),
    /// CreateMultipartUpload.
    CreateUpload,
    /// UploadPart.
    PutPart(PartName),
    /// UploadPartCopy.
    CopyPart(PartName),
    /// CompleteMultipartUpload.
    Complete(String),
    /// AbortMultipartUpload.
    Abort(String),
    /// ListParts.
    ListParts(PartsQuery),
    /// GetObjectTagging, perhaps of one version.
    ReadTags(Option<String>),
    /// PutObjectTagging, perhaps of one version.
    WriteTags(Option<String>),
    /// DeleteObjectTagging, perhaps of one version.
    ClearTags(Option<String>),
}

impl Operation {
    /// The version that is meant, if it is not the present one.
    pub fn version_id(&self) -> Option<&str> {
        match self {
            Operation::ReadVersion(id) | Operation::DeleteVersion(id) => Some(id),
            Operation::ReadTags(id) | Operation::WriteTags(id) | Operation::ClearTags(id) => {
                id.as_deref()
            }
            Operation::Read(_)
            | Operation::Put
            | Operation::Copy
            | Operation::Delete
            | Operation::CreateUpload
            | Operation::PutPart(_)
            | Operation::CopyPart(_)
            | Operation::Complete(_)
            | Operation::Abort(_)
            | Operation::ListParts(_) => None,
        }
    }

    /// Whether an object is written or deleted, so that it matters whether its bucket keeps versions.
    pub fn changes_object(&self) -> bool {
        matches!(
            self,
            Operation::Put | Operation::Copy | Operation::Delete | Operation::Complete(_)
        )
    }
}

/// Finds out what a request wants.
///
/// # Errors
/// What the client is told instead.
pub fn of(head: &Head, query: &[(String, String)], signed: bool) -> Result<Operation, ErrorReply> {
    let method = head.method.as_str();
    let reads = matches!(method, "GET" | "HEAD");
    let mut rest = Vec::new();
    for (name, value) in query {
        let is_wish = reads && overrides::is_override(name);
        if is_wish || changes_nothing(name, value, signed) {
            continue;
        }
        if rest.iter().any(|(earlier, _)| *earlier == name) {
            return Err(invalid(&format!("{name} is given twice")));
        }
        rest.push((name.as_str(), value.as_str()));
    }
    let query = Query(rest);
    let operation = match method {
        "GET" if query.has("uploadId") => Operation::ListParts(parts_query(&query)?),
        "GET" | "PUT" | "DELETE" if query.has("tagging") => {
            query.only(&["tagging", VERSION_ID])?;
            let version_id = version_id(&query)?;
            match method {
                "GET" => Operation::ReadTags(version_id),
                "PUT" => Operation::WriteTags(version_id),
                _ => Operation::ClearTags(version_id),
            }
        }
        "GET" | "HEAD" if query.has(VERSION_ID) => {
            query.only(&[VERSION_ID])?;
            Operation::ReadVersion(version_id(&query)?.unwrap_or_default())
        }
        "GET" | "HEAD" => {
            query.only(&["partNumber"])?;
            Operation::Read(query.value("partNumber").map(part_number).transpose()?)
        }
        "PUT" if query.has("uploadId") || query.has("partNumber") => {
            query.only(&["uploadId", "partNumber"])?;
            let part = part_name(&query)?;
            match head.has(COPY_SOURCE) {
                true => Operation::CopyPart(part),
                false => Operation::PutPart(part),
            }
        }
        "PUT" => {
            query.only(&[])?;
            match head.has(COPY_SOURCE) {
                true => Operation::Copy,
                false => Operation::Put,
            }
        }
        "DELETE" if query.has("uploadId") => {
            query.only(&["uploadId"])?;
            Operation::Abort(upload_id(&query)?)
        }
        "DELETE" if query.has(VERSION_ID) => {
            query.only(&[VERSION_ID])?;
            Operation::DeleteVersion(version_id(&query)?.unwrap_or_default())
        }
        "DELETE" => {
            query.only(&[])?;
            Operation::Delete
        }
        "POST" if query.has("uploads") => {
            query.only(&["uploads"])?;
            Operation::CreateUpload
        }
        "POST" if query.has("uploadId") => {
            query.only(&["uploadId"])?;
            Operation::Complete(upload_id(&query)?)
        }
        "POST" => {
            query.only(&[])?;
            return Err(ErrorReply::not_implemented("POST on an object"));
        }
        _ => return Err(unknown_method()),
    };
    Ok(operation)
}

fn unknown_method() -> ErrorReply {
    let message = "objects take GET, HEAD, PUT, POST and DELETE";
    let refusal = ErrorReply::new(405, "MethodNotAllowed", message);
    refusal.with("allow", "GET, HEAD, PUT, POST, DELETE")
}

/// Parameters that mean something, each once.
struct Query<'q>(Vec<(&'q str, &'q str)>);

impl<'q> Query<'q> {
    fn value(&self, name: &str) -> Option<&'q str> {
        let pair = self.0.iter().find(|(given, _)| *given == name);
        pair.map(|(_, value)| *value)
    }

    fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Refuses every other parameter.
    fn only(&self, names: &[&str]) -> Result<(), ErrorReply> {
        match self.0.iter().find(|(name, _)| !names.contains(name)) {
            None => Ok(()),
            Some((name, _)) => Err(ErrorReply::not_implemented(&format!(
                "the query parameter {name:?}"
            ))),
        }
    }
}

fn invalid(message: &str) -> ErrorReply {
    ErrorReply::new(400, "InvalidArgument", message)
}

fn upload_id(query: &Query<'_>) -> Result<String, ErrorReply> {
    let id = query.value("uploadId").filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| invalid("uploadId is missing"))?;
    Ok(id.to_owned())
}

fn version_id(query: &Query<'_>) -> Result<Option<String>, ErrorReply> {
    match query.value(VERSION_ID) {
        Some("") => Err(invalid("versionId is empty")),
        id => Ok(id.map(str::to_owned)),
    }
}

fn part_number(text: &str) -> Result<u32, ErrorReply> {
    let number = text.parse().ok();
    let number = number.filter(|number| (1..=PART_NUMBER_MAX).contains(number));
    number.ok_or_else(|| invalid(&format!("partNumber is not 1 to {PART_NUMBER_MAX}")))
}

fn part_name(query: &Query<'_>) -> Result<PartName, ErrorReply> {
    let number = query.value("partNumber");
    let number = number.ok_or_else(|| invalid("partNumber is missing"))?;
    Ok(PartName {
        upload_id: upload_id(query)?,
        number: part_number(number)?,
    })
}

fn parts_query(query: &Query<'_>) -> Result<PartsQuery, ErrorReply> {
    query.only(&[
        "uploadId",
        "max-parts",
        "part-number-marker",
        "encoding-type",
    ])?;
    Ok(PartsQuery {
        upload_id: upload_id(query)?,
        after: count(query.value("part-number-marker"), "part-number-marker", 0)?,
        limit: limit(query.value("max-parts"), "max-parts", LISTED_PARTS_MAX)?,
        is_encoded: encoding(query.value("encoding-type"))?,
    })
}

/// A number that a signed integer can be, as S3 takes them.
fn count(value: Option<&str>, name: &str, default: u32) -> Result<u32, ErrorReply> {
    let Some(text) = value.filter(|text| !text.is_empty()) else {
        return Ok(default);
    };
    let number: Option<i32> = text.parse().ok();
    let number = number.and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| invalid(&format!("{name} is not 0 to 2147483647")))
}

/// How many names a page has at most; whoever asks for more is given `most`.
pub fn limit(value: Option<&str>, name: &str, most: usize) -> Result<usize, ErrorReply> {
    Ok((count(value, name, most as u32)? as usize).min(most))
}

/// Whether names are to be told percent-encoded.
pub fn encoding(value: Option<&str>) -> Result<bool, ErrorReply> {
    match value {
        None | Some("") => Ok(false),
        Some("url") => Ok(true),
        Some(_) => Err(invalid("encoding-type is url or not given")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{head, target};

    fn operation(line: &str, headers: &str) -> Result<Operation, (u16, &'static str)> {
        let text = format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let head = head::parse(text.as_bytes()).expect("a good head");
        let query = target::parse(&head.target).expect("a good target").query;
        of(&head, &query, true).map_err(|error| (error.status, error.code))
    }

    fn part(number: u32) -> PartName {
        PartName {
            upload_id: "u+/=".into(),
            number,
        }
    }

    #[test]
    fn each_operation_has_its_form() {
        let copy = "x-amz-copy-source: v/k\r\n";
        let id = "uploadId=u%2B%2F%3D";
        for (line, headers, expected) in [
            ("GET /v/k".to_owned(), "", Operation::Read(None)),
            (
                "HEAD /v/k?partNumber=7".into(),
                "",
                Operation::Read(Some(7)),
            ),
            (
                "GET /v/k?x-id=GetObject&response-expires=a".into(),
                "",
                Operation::Read(None),
            ),
            ("PUT /v/k?x-id=PutObject".into(), "", Operation::Put),
            ("PUT /v/k".into(), copy, Operation::Copy),
            (
                format!("PUT /v/k?partNumber=1&{id}"),
                "",
                Operation::PutPart(part(1)),
            ),
            (
                format!("PUT /v/k?{id}&partNumber=10000"),
                copy,
                Operation::CopyPart(part(10_000)),
            ),
            ("DELETE /v/k".into(), "", Operation::Delete),
            (
                format!("DELETE /v/k?{id}"),
                "",
                Operation::Abort("u+/=".into()),
            ),
            ("POST /v/k?uploads".into(), "", Operation::CreateUpload),
            ("GET /v/k?tagging".into(), "", Operation::ReadTags(None)),
            (
                "HEAD /v/k?versionId=a%2Bb".into(),
                "",
                Operation::ReadVersion("a+b".into()),
            ),
            (
                "DELETE /v/k?versionId=null".into(),
                "",
                Operation::DeleteVersion("null".into()),
            ),
            (
                "PUT /v/k?tagging&versionId=a".into(),
                "",
                Operation::WriteTags(Some("a".into())),
            ),
            ("PUT /v/k?tagging".into(), "", Operation::WriteTags(None)),
            ("DELETE /v/k?tagging".into(), "", Operation::ClearTags(None)),
            (
                format!("POST /v/k?{id}"),
                "",
                Operation::Complete("u+/=".into()),
            ),
            (
                format!("GET /v/k?{id}&max-parts=9999&part-number-marker=3&encoding-type=url"),
                "",
                Operation::ListParts(PartsQuery {
                    upload_id: "u+/=".into(),
                    after: 3,
                    limit: 1000,
                    is_encoded: true,
                }),
            ),
        ] {
            assert_eq!(operation(&line, headers), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_not_done() {
        for (line, status, code) in [
            ("POST /v/k?tagging", 501, "NotImplemented"),
            ("GET /v/k?acl", 501, "NotImplemented"),
            ("GET /v/k?versionId=", 400, "InvalidArgument"),
            ("GET /v/k?versionId=a&versionId=b", 400, "InvalidArgument"),
            ("GET /v/k?versionId=a&partNumber=1", 501, "NotImplemented"),
            ("PUT /v/k?versionId=a", 501, "NotImplemented"),
            ("POST /v/k?uploads&versionId=a", 501, "NotImplemented"),
            ("GET /v/k?uploads", 501, "NotImplemented"),
            ("PUT /v/k?response-expires=a", 501, "NotImplemented"),
            ("PUT /v/k?partNumber=1&uploadId=a&b", 501, "NotImplemented"),
            ("DELETE /v/k?versionId=", 400, "InvalidArgument"),
            ("DELETE /v/k?versionId=a&uploadId=b", 501, "NotImplemented"),
            ("POST /v/k?select", 501, "NotImplemented"),
            ("POST /v/k?restore", 501, "NotImplemented"),
            ("POST /v/k", 501, "NotImplemented"),
            ("POST /v/k?uploads&uploadId=a", 501, "NotImplemented"),
            ("PATCH /v/k", 405, "MethodNotAllowed"),
            ("PUT /v/k?partNumber=1", 400, "InvalidArgument"),
            ("PUT /v/k?uploadId=a", 400, "InvalidArgument"),
            ("PUT /v/k?partNumber=1&uploadId=", 400, "InvalidArgument"),
            ("PUT /v/k?partNumber=0&uploadId=a", 400, "InvalidArgument"),
            (
                "PUT /v/k?partNumber=10001&uploadId=a",
                400,
                "InvalidArgument",
            ),
            ("PUT /v/k?partNumber=+1&uploadId=a", 400, "InvalidArgument"),
            (
                "PUT /v/k?partNumber=1&uploadId=a&uploadId=b",
                400,
                "InvalidArgument",
            ),
            ("GET /v/k?partNumber=x", 400, "InvalidArgument"),
            ("GET /v/k?uploadId=a&max-parts=-1", 400, "InvalidArgument"),
            (
                "GET /v/k?uploadId=a&encoding-type=b",
                400,
                "InvalidArgument",
            ),
        ] {
            assert_eq!(operation(line, ""), Err((status, code)), "{line}");
        }
    }
}
