//! What can be asked of a volume as a bucket, and of the service: which operation a request is, and
//! the small answers.
//!
//! What a volume is follows from the settings, so most answers need neither cache nor store. An
//! operation that S3 knows and we do not is refused by name; nothing is ever answered as if it had
//! been done. Lists are in [`super::list`], DeleteObjects in [`super::delete_objects`].

use super::auth::{self, Access, Identity};
use super::connection::{Connection, Ended};
use super::delete_objects;
use super::head::{Framing, Head};
use super::limits::SEND_BYTES_MAX;
use super::list::{self, ListParameters, Token};
use super::list_parts::{self, UploadsParameters};
use super::list_versions::{self, VersionsParameters};
use super::reply::{ErrorReply, ReplyHead};
use super::{admit, changes_nothing, versions};
use crate::config::VolumeStore;
use crate::server::volumes::{ServedVolume, VolumeTable};
use crate::xml::Document;
use forebay_shards::key::Volume;
use std::sync::Arc;

/// Who owns everything, in documents that name an owner: the proxy itself.
pub const OWNER: &str = "forebay";

/// When a volume was made, which nobody knows: a time has to be given.
const NO_DATE: &str = "1970-01-01T00:00:00.000Z";

/// Volumes of one answer at most: S3's own limit.
const BUCKETS_MAX: usize = 10_000;

/// What is to be done.
pub enum Plan {
    /// Send a document that is complete.
    Document(String),
    /// Say that the volume is there, and in which region.
    Describe(String),
    /// List objects.
    List(Arc<Volume>, ListParameters),
    /// List uploads in parts.
    ListUploads(Arc<Volume>, UploadsParameters),
    /// List versions of objects.
    ListVersions(Arc<Volume>, VersionsParameters),
    /// Say what the bucket does with versions.
    Versioning(Arc<Volume>),
    /// Have the bucket keep versions, or no more new ones, as the body says.
    SetVersioning(Arc<Volume>),
    /// Delete the objects that the body names.
    Delete(Arc<Volume>),
}

/// Operations on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    List,
    ListUploads,
    Head,
    Location,
    ListVersions,
    Versioning,
    SetVersioning,
    Acl,
    Create,
    Delete,
}

/// Finds out what a request for a volume, or for the service, wants, and whether it may have it.
///
/// # Errors
/// What the client is told instead.
pub fn plan(
    table: &VolumeTable,
    volume: Option<&str>,
    identity: Identity<'_>,
    head: &Head,
    query: &[(String, String)],
) -> Result<Plan, ErrorReply> {
    let planned = match volume {
        None => service(table, identity, head, query),
        Some(name) => of_volume(table, name, identity, head, query),
    };
    // Nothing after a body of unknown length can be a request until its end was seen.
    planned.map_err(|error| match head.framing {
        Framing::Chunked => error.closing(),
        Framing::None | Framing::Length(_) => error,
    })
}

fn of_volume(
    table: &VolumeTable,
    name: &str,
    identity: Identity<'_>,
    head: &Head,
    query: &[(String, String)],
) -> Result<Plan, ErrorReply> {
    let served = admit(table, Some(name), identity, head)?;
    let signed = matches!(identity, Identity::Pair(_));
    let query: Vec<(&str, &str)> = query
        .iter()
        .filter(|(name, value)| !changes_nothing(name, value, signed))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    Ok(match operation(&head.method, &query)? {
        Operation::List => {
            let parameters = ListParameters::parse(&query)?;
            Plan::List(served.volume.clone(), parameters)
        }
        Operation::ListUploads => {
            let parameters = UploadsParameters::parse(&query)?;
            Plan::ListUploads(served.volume.clone(), parameters)
        }
        Operation::Head => Plan::Describe(region(served).to_owned()),
        Operation::Location => {
            let root = "LocationConstraint";
            let mut document = Document::new(root);
            // The oldest region has no name here.
            if region(served) != "us-east-1" {
                document.text(region(served));
            }
            Plan::Document(document.finish(root))
        }
        Operation::ListVersions => {
            let parameters = VersionsParameters::parse(&query)?;
            if !served.volume.versions.may_be_kept() {
                return Err(ErrorReply::not_implemented("a list of versions"));
            }
            Plan::ListVersions(served.volume.clone(), parameters)
        }
        Operation::Versioning => Plan::Versioning(served.volume.clone()),
        Operation::SetVersioning => Plan::SetVersioning(served.volume.clone()),
        Operation::Acl => Plan::Document(acl(served)),
        Operation::Create => {
            let message = "the volume exists; what it is like is said in the settings";
            return Err(ErrorReply::new(409, "BucketAlreadyOwnedByYou", message));
        }
        Operation::Delete => Plan::Delete(served.volume.clone()),
    })
}

/// What a request on a volume is, by its method and the parameters that mean something.
fn operation(method: &str, query: &[(&str, &str)]) -> Result<Operation, ErrorReply> {
    let other = query.iter().find(|(name, _)| !list::is_parameter(name));
    let only = |wanted: &str| matches!(query, [(name, _)] if *name == wanted);
    match method {
        "GET" if other.is_none() => Ok(Operation::List),
        "GET" if UploadsParameters::are(query) => Ok(Operation::ListUploads),
        "GET" if VersionsParameters::are(query) => Ok(Operation::ListVersions),
        "GET" if only("location") => Ok(Operation::Location),
        "GET" if only("versioning") => Ok(Operation::Versioning),
        "PUT" if only("versioning") => Ok(Operation::SetVersioning),
        "GET" if only("acl") => Ok(Operation::Acl),
        "HEAD" if query.is_empty() => Ok(Operation::Head),
        "PUT" if query.is_empty() => Ok(Operation::Create),
        "POST" if only("delete") => Ok(Operation::Delete),
        "DELETE" if query.is_empty() => Err(ErrorReply::not_implemented(
            "DELETE of a volume, which only the settings can take away,",
        )),
        "POST" if query.is_empty() => Err(ErrorReply::not_implemented("POST of a form")),
        "GET" | "HEAD" | "PUT" | "POST" | "DELETE" => {
            let (name, _) = other.or(query.first()).unwrap_or(&("", ""));
            let what = format!("{method} of a volume with the query parameter {name:?}");
            Err(ErrorReply::not_implemented(&what))
        }
        _ => {
            let message = "volumes take GET, HEAD, PUT, POST and DELETE";
            let refusal = ErrorReply::new(405, "MethodNotAllowed", message);
            Err(refusal.with("allow", "GET, HEAD, PUT, POST, DELETE"))
        }
    }
}

/// The region that clients may sign for. Any is taken; this is the bucket's own.
fn region(served: &ServedVolume) -> &str {
    match &served.settings.store {
        VolumeStore::S3 { region, .. } => region,
        VolumeStore::Azure { .. } | VolumeStore::File { .. } => "us-east-1",
    }
}

/// Who may do what, in S3's words: the proxy's owner everything, and everybody what the settings say.
fn acl(served: &ServedVolume) -> String {
    let root = "AccessControlPolicy";
    let kind = "xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type";
    let mut document = Document::new(root);
    document.open("Owner");
    document.element("ID", OWNER).element("DisplayName", OWNER);
    document.close("Owner").open("AccessControlList");
    let mut grant = |kind_of: &str, name: &str, who: &str, permission: &str| {
        document.open("Grant");
        document.open(&format!("Grantee {kind}=\"{kind_of}\""));
        document.element(name, who).close("Grantee");
        document.element("Permission", permission).close("Grant");
    };
    grant("CanonicalUser", "ID", OWNER, "FULL_CONTROL");
    if served.settings.anonymous_read {
        let everybody = "http://acs.amazonaws.com/groups/global/AllUsers";
        grant("Group", "URI", everybody, "READ");
    }
    document.close("AccessControlList");
    document.finish(root)
}

/// The one operation on the service: ListBuckets.
fn service(
    table: &VolumeTable,
    identity: Identity<'_>,
    head: &Head,
    query: &[(String, String)],
) -> Result<Plan, ErrorReply> {
    if !auth::is_known(identity, table.list().map(|volume| &volume.settings)) {
        return Err(auth::refuse_stranger(identity));
    }
    let signed = matches!(identity, Identity::Pair(_));
    let (mut prefix, mut after, mut limit) = ("", String::new(), BUCKETS_MAX);
    for (name, value) in query {
        match name.as_str() {
            "prefix" => prefix = value,
            "continuation-token" => after = Token::decode(value)?,
            "max-buckets" => limit = buckets_max(value)?,
            _ if changes_nothing(name, value, signed) => {}
            _ => {
                let what = format!("the query parameter {name:?} on the service");
                return Err(ErrorReply::not_implemented(&what));
            }
        }
    }
    if head.method != "GET" {
        let message = "the service takes GET";
        return Err(ErrorReply::new(405, "MethodNotAllowed", message).with("allow", "GET"));
    }
    let visible = table.list().filter(|served| {
        let may = auth::check(identity, &served.settings, Access::Read);
        let name = served.settings.name.as_str();
        may.is_ok() && name.starts_with(prefix) && name > after.as_str()
    });
    let mut names: Vec<&str> = visible
        .map(|served| served.settings.name.as_str())
        .collect();
    names.sort_unstable();
    let is_truncated = names.len() > limit;
    names.truncate(limit);
    Ok(Plan::Document(buckets(&names, prefix, is_truncated)))
}

fn buckets_max(value: &str) -> Result<usize, ErrorReply> {
    let number = value.parse().ok();
    let in_range = number.filter(|number| (1..=BUCKETS_MAX).contains(number));
    in_range.ok_or_else(|| {
        let message = format!("max-buckets is not 1 to {BUCKETS_MAX}");
        ErrorReply::new(400, "InvalidArgument", message)
    })
}

fn buckets(names: &[&str], prefix: &str, is_truncated: bool) -> String {
    let root = "ListAllMyBucketsResult";
    let mut document = Document::new(root);
    document.open("Owner");
    document.element("ID", OWNER).element("DisplayName", OWNER);
    document.close("Owner").open("Buckets");
    for name in names {
        document.open("Bucket").element("Name", name);
        document.element("CreationDate", NO_DATE).close("Bucket");
    }
    document.close("Buckets");
    if !prefix.is_empty() {
        document.element("Prefix", prefix);
    }
    if let Some(last) = names.last().filter(|_| is_truncated) {
        document.element("ContinuationToken", &Token::encode(last));
    }
    document.finish(root)
}

/// Does what was planned.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    plan: &Plan,
    resource: &str,
) -> Result<(), Ended> {
    let made = match plan {
        Plan::Document(document) => return respond(connection, document).await,
        Plan::Describe(region) => {
            let mut reply = connection.reply(200);
            reply.header("x-amz-bucket-region", region);
            return connection.respond(reply, b"").await;
        }
        Plan::ListUploads(volume, parameters) => {
            list_parts::uploads(connection, volume, parameters).await
        }
        Plan::ListVersions(volume, parameters) => {
            list_versions::make(connection, volume, parameters).await
        }
        Plan::Versioning(volume) => versions::versioning(connection, volume).await,
        Plan::SetVersioning(volume) => {
            match versions::set_versioning(connection, head, volume).await? {
                Ok(()) => {
                    let reply = connection.reply(200);
                    return connection.respond(reply, b"").await;
                }
                Err(error) => Err(error),
            }
        }
        Plan::List(volume, parameters) => list::make(connection, volume, parameters).await,
        Plan::Delete(volume) => match delete_objects::make(connection, head, volume).await {
            Ok(made) => made,
            Err(ended) => return Err(ended),
        },
    };
    match made {
        Ok(document) => respond(connection, &document).await,
        Err(error) => connection.respond_error(&error, resource).await,
    }
}

/// Sends a document, in pieces that each have a deadline.
pub async fn respond(connection: &mut Connection, document: &str) -> Result<(), Ended> {
    let reply = connection.reply(200);
    respond_with(connection, reply, document).await
}

/// Sends a document after a head that says more than usual.
pub(super) async fn respond_with(
    connection: &mut Connection,
    mut reply: ReplyHead,
    document: &str,
) -> Result<(), Ended> {
    reply
        .header("content-type", "application/xml")
        .header("content-length", document.len());
    let reply = connection.seal_head(reply);
    let bytes = document.as_bytes();
    let (first, rest) = bytes.split_at(bytes.len().min(SEND_BYTES_MAX));
    connection.send(&[&reply, first]).await?;
    for piece in rest.chunks(SEND_BYTES_MAX) {
        connection.send(&[piece]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(method: &str, query: &[(&str, &str)]) -> (u16, &'static str) {
        let error = operation(method, query).expect_err("not served");
        (error.status, error.code)
    }

    #[test]
    fn operations_are_told_by_method_and_parameters() {
        for (method, query, expected) in [
            ("GET", &[][..], Operation::List),
            (
                "GET",
                &[("list-type", "2"), ("prefix", "a")],
                Operation::List,
            ),
            (
                "GET",
                &[("uploads", ""), ("prefix", "a")],
                Operation::ListUploads,
            ),
            ("GET", &[("location", "")], Operation::Location),
            (
                "GET",
                &[("versions", ""), ("prefix", "a"), ("key-marker", "b")],
                Operation::ListVersions,
            ),
            ("GET", &[("versioning", "")], Operation::Versioning),
            ("PUT", &[("versioning", "")], Operation::SetVersioning),
            ("GET", &[("acl", "")], Operation::Acl),
            ("HEAD", &[], Operation::Head),
            ("PUT", &[], Operation::Create),
            ("POST", &[("delete", "")], Operation::Delete),
        ] {
            assert_eq!(operation(method, query).expect("served"), expected);
        }
    }

    #[test]
    fn what_is_not_served_is_not_done() {
        for subresource in [
            "accelerate",
            "analytics",
            "cors",
            "encryption",
            "intelligent-tiering",
            "inventory",
            "lifecycle",
            "logging",
            "metrics",
            "notification",
            "object-lock",
            "ownershipControls",
            "policy",
            "policyStatus",
            "publicAccessBlock",
            "replication",
            "requestPayment",
            "session",
            "tagging",
            "website",
            "anything",
        ] {
            for method in ["GET", "PUT", "POST", "DELETE", "HEAD"] {
                let query = [(subresource, "")];
                assert_eq!(refusal(method, &query), (501, "NotImplemented"));
                let among = [("prefix", "a"), (subresource, "")];
                assert_eq!(refusal(method, &among), (501, "NotImplemented"));
            }
        }
        for method in ["PUT", "POST", "DELETE", "HEAD"] {
            assert_eq!(refusal(method, &[("versions", "")]).0, 501);
            assert_eq!(refusal(method, &[("uploads", "")]).0, 501);
        }
        assert_eq!(refusal("GET", &[("versions", ""), ("marker", "a")]).0, 501);
        for method in ["POST", "DELETE", "HEAD"] {
            assert_eq!(refusal(method, &[("versioning", "")]).0, 501);
        }
        for method in ["PUT", "POST", "DELETE"] {
            assert_eq!(refusal(method, &[("acl", "")]).0, 501);
        }
        assert_eq!(refusal("DELETE", &[]).0, 501);
        assert_eq!(refusal("POST", &[]).0, 501);
        assert_eq!(refusal("PATCH", &[]).0, 405);
        assert_eq!(refusal("GET", &[("location", ""), ("acl", "")]).0, 501);
    }

    #[test]
    fn buckets_are_told_page_by_page() {
        let all = buckets(&["a", "b"], "", false);
        assert!(all.contains("<Bucket><Name>a</Name>") && !all.contains("ContinuationToken"));
        let cut = buckets(&["a"], "x", true);
        assert!(cut.contains("<Prefix>x</Prefix>"));
        assert!(cut.contains(&format!("<ContinuationToken>{}<", Token::encode("a"))));
    }
}
