//! Key and moment to signed URL.
//!
//! This file owns the only way from a key to a URL. It never lets a key leave its bucket or prefix:
//! keys that URL libraries would rewrite are refused before signing, and the URL that comes out is
//! compared with the path it must have. It reads no clock and sends nothing.

use super::super::{BuildError, S3Spec};
use forebay_io::listing::ListRequest;
use forebay_io::store::{StoreError, StoreErrorKind, StoreResult, check_key};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rusty_s3::{Bucket, Credentials, UrlStyle};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use url::Url;

/// How long a signature is good for. Servers check it when the request arrives, so it only has to
/// cover the way there and the clocks' difference below what [`super::SKEW_NOTICED_SECONDS_MIN`]
/// corrects; 15 min is what S3 itself allows clocks to differ.
const SIGNATURE_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// What SigV4 leaves as it is: the unreserved characters of RFC 3986, and `/` in keys.
pub(in crate::store) const KEY_ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// The verbs that are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Head,
    Put,
    Delete,
    List,
    Copy,
    CreateUpload,
    PutPart,
    CopyPart,
    Complete,
    Abort,
    ListParts,
    ListUploads,
    GetTags,
    SetTags,
    ClearTags,
    HeadVersion,
    GetVersioning,
    SetVersioning,
    ListVersions,
}

impl Verb {
    pub(super) fn method(self) -> reqwest::Method {
        match self {
            Verb::Get
            | Verb::List
            | Verb::ListParts
            | Verb::ListUploads
            | Verb::GetTags
            | Verb::GetVersioning
            | Verb::ListVersions => reqwest::Method::GET,
            Verb::Head | Verb::HeadVersion => reqwest::Method::HEAD,
            Verb::Put
            | Verb::Copy
            | Verb::PutPart
            | Verb::CopyPart
            | Verb::SetTags
            | Verb::SetVersioning => reqwest::Method::PUT,
            Verb::CreateUpload | Verb::Complete => reqwest::Method::POST,
            Verb::Delete | Verb::Abort | Verb::ClearTags => reqwest::Method::DELETE,
        }
    }

    fn signed_method(self) -> rusty_s3::Method {
        match self.method() {
            reqwest::Method::GET => rusty_s3::Method::Get,
            reqwest::Method::HEAD => rusty_s3::Method::Head,
            reqwest::Method::PUT => rusty_s3::Method::Put,
            reqwest::Method::POST => rusty_s3::Method::Post,
            _ => rusty_s3::Method::Delete,
        }
    }

    /// Whether the bucket is asked, not an object.
    fn is_of_bucket(self) -> bool {
        matches!(
            self,
            Verb::List
                | Verb::ListUploads
                | Verb::GetVersioning
                | Verb::SetVersioning
                | Verb::ListVersions
        )
    }

    /// Whether the store moves whole objects before it answers.
    pub(super) fn is_store_work(self) -> bool {
        matches!(self, Verb::Copy | Verb::CopyPart | Verb::Complete)
    }

    /// Whether the only thing that is asked for is an upload in parts.
    pub(super) fn is_of_upload(self) -> bool {
        matches!(
            self,
            Verb::PutPart | Verb::Complete | Verb::Abort | Verb::ListParts
        )
    }

    /// Whether an object is written.
    pub(super) fn is_write(self) -> bool {
        matches!(self, Verb::Put | Verb::Copy | Verb::Complete)
    }
}

/// What a request is for.
pub(super) struct Target<'k> {
    pub(super) verb: Verb,
    /// Of the volume; empty for what is asked of the bucket.
    pub(super) key: &'k str,
    /// In the order of the names.
    pub(super) query: Vec<(&'static str, String)>,
}

impl<'k> Target<'k> {
    /// Without a query.
    pub(super) fn of(verb: Verb, key: &'k str) -> Self {
        Target {
            verb,
            key,
            query: Vec::new(),
        }
    }
}

/// Signs for one bucket and prefix.
pub(super) struct Signer {
    bucket: Bucket,
    credentials: Credentials,
    /// Empty, or ends with the `/` that parts it from the key.
    prefix: String,
}

impl Signer {
    pub(super) fn new(spec: &S3Spec) -> Result<Self, BuildError> {
        let bad_endpoint = |why: String| BuildError::Endpoint {
            endpoint: without_user(&spec.endpoint),
            why,
        };
        let endpoint =
            Url::parse(&spec.endpoint).map_err(|error| bad_endpoint(error.to_string()))?;
        let has_user = !endpoint.username().is_empty() || endpoint.password().is_some();
        if has_user || endpoint.query().is_some() || endpoint.fragment().is_some() {
            return Err(bad_endpoint("it has parts that would not be sent".into()));
        }
        let required = [
            ("region", &spec.region),
            ("access key", &spec.access_key),
            ("secret key", &spec.secret_key),
        ];
        for (setting, value) in required {
            if value.is_empty() {
                let why = "it is empty".into();
                return Err(BuildError::Setting { setting, why });
            }
        }
        check_bucket_name(&spec.bucket)?;
        let prefix = normal_prefix(&spec.prefix)?;
        let style = UrlStyle::Path;
        let bucket = Bucket::new(endpoint, style, spec.bucket.clone(), spec.region.clone())
            .map_err(|error| bad_endpoint(error.to_string()))?;
        let (key, secret) = (spec.access_key.clone(), spec.secret_key.clone());
        let credentials = match spec.session_token.clone() {
            Some(token) => Credentials::new_with_token(key, secret, token),
            None => Credentials::new(key, secret),
        };
        Ok(Signer {
            bucket,
            credentials,
            prefix,
        })
    }

    /// The bucket's URL without any signature, for messages.
    pub(super) fn bucket_url(&self) -> &Url {
        self.bucket.base_url()
    }

    /// The URL that asks for `target` at `now`, with `headers` (lower-case names) covered by the
    /// signature.
    pub(super) fn sign(
        &self,
        target: &Target<'_>,
        headers: &[(String, String)],
        now: SystemTime,
    ) -> StoreResult<Url> {
        if target.verb.is_of_bucket() {
            let url = self.bucket.base_url().clone();
            return self.signed(url, target, headers, now);
        }
        let name = self.checked_name(target.key)?;
        let url = self.signed(self.bucket.object_url(&name), target, headers, now)?;
        self.check_path(&url, &name)?;
        Ok(url)
    }

    fn signed(
        &self,
        url: Url,
        target: &Target<'_>,
        headers: &[(String, String)],
        now: SystemTime,
    ) -> StoreResult<Url> {
        debug_assert!(target.query.is_sorted_by(|one, other| one.0 < other.0));
        let headers: BTreeMap<&str, &str> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let query = target.query.iter();
        let credentials = &self.credentials;
        Ok(rusty_s3::signing::sign(
            &moment_of(now)?,
            target.verb.signed_method(),
            url,
            credentials.key(),
            credentials.secret(),
            credentials.token(),
            self.bucket.region(),
            SIGNATURE_LIFETIME.as_secs(),
            query.map(|(name, value)| (*name, value.as_str())),
            headers.iter().map(|(name, value)| (*name, *value)),
        ))
    }

    /// A key of the volume as a key of the bucket.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn checked_name(&self, key: &str) -> StoreResult<String> {
        let name = self.name(key);
        check_key(key)?;
        check_key(&name)?;
        Ok(name)
    }

    /// Bucket and key as the header that names the source of a copy has them.
    pub(super) fn source_path(&self, key: &str) -> StoreResult<String> {
        let name = self.checked_name(key)?;
        let name = utf8_percent_encode(&name, KEY_ENCODED);
        Ok(format!("/{}/{name}", self.bucket.name()))
    }

    /// The URL that asks for a page of the list of this bucket and prefix at `now`. It goes on with
    /// the store's own `token` where there is one, else after the request's position.
    pub(super) fn sign_list(
        &self,
        request: &ListRequest,
        token: Option<&str>,
        now: SystemTime,
    ) -> StoreResult<Url> {
        // In the order of their names, as the signature wants them.
        let mut query = vec![("encoding-type", "url".to_owned())];
        if let Some(token) = token {
            query.insert(0, ("continuation-token", token.to_owned()));
        }
        if let Some(delimiter) = &request.delimiter {
            query.insert(query.len() - 1, ("delimiter", delimiter.clone()));
        }
        query.push(("list-type", "2".to_owned()));
        query.push(("max-keys", request.limit.to_string()));
        query.push(("prefix", format!("{}{}", self.prefix, request.prefix)));
        let start = start_of(request);
        if token.is_none() && !start.is_empty() {
            query.push(("start-after", format!("{}{start}", self.prefix)));
        }
        let mut target = Target::of(Verb::List, "");
        target.query = query;
        self.sign(&target, &[], now)
    }

    /// A key of the bucket as a key of the volume; `None` if it is not under the prefix.
    pub(super) fn strip<'k>(&self, name: &'k str) -> Option<&'k str> {
        name.strip_prefix(self.prefix.as_str())
    }

    /// The last look before a request leaves: the URL names this bucket and exactly this object.
    fn check_path(&self, url: &Url, name: &str) -> StoreResult<()> {
        let base = self.bucket.base_url();
        let path = format!("{}{}", base.path(), utf8_percent_encode(name, KEY_ENCODED));
        if url.path() != path || url.origin() != base.origin() {
            let message = "the key does not survive as a URL; it would name another object";
            return Err(StoreError::new(StoreErrorKind::InvalidKey, message));
        }
        Ok(())
    }
}

/// The key after which a store is asked to go on, empty for the beginning. It may lie before the
/// position: what comes in between is left out of the answer.
fn start_of(request: &ListRequest) -> String {
    let after = request.after.as_str();
    let Some(delimiter) = request.delimiter.as_deref() else {
        return after.to_owned();
    };
    // Stores differ in what comes after a common prefix: some go on behind all of its keys, others at
    // the first of them.
    if let Some(prefix) = request.common_prefix(after) {
        return format!("{prefix}{}", char::MAX);
    }
    // Ceph takes whatever ends with the delimiter for a common prefix and leaves out the keys that
    // begin with it, though the delimiter may be part of the prefix that was asked for.
    let mut start = after;
    while start.ends_with(delimiter) {
        let last = start.char_indices().next_back();
        start = last.map_or("", |(at, _)| &start[..at]);
    }
    start.to_owned()
}

fn moment_of(now: SystemTime) -> StoreResult<jiff::Timestamp> {
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_err(|error| {
        let message = format!("the clock cannot be signed with: {error}");
        StoreError::new(StoreErrorKind::Rejected, message)
    })
}

/// A user and password in the endpoint are a mistake; they are not repeated in a message.
pub(in crate::store) fn without_user(endpoint: &str) -> String {
    match endpoint.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => endpoint.to_owned(),
    }
}

fn check_bucket_name(name: &str) -> Result<(), BuildError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || !name.chars().all(is_plain) || name.chars().all(|c| c == '.') {
        return Err(BuildError::Setting {
            setting: "bucket",
            why: format!("{name:?} is no bucket name; letters, digits, `.`, `-` and `_` are"),
        });
    }
    Ok(())
}

pub(in crate::store) fn normal_prefix(prefix: &str) -> Result<String, BuildError> {
    let prefix = prefix.trim_end_matches('/');
    if prefix.is_empty() {
        return Ok(String::new());
    }
    check_key(prefix).map_err(|error| BuildError::Setting {
        setting: "prefix",
        why: error.message.replace("the key", "the prefix"),
    })?;
    Ok(format!("{prefix}/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    fn signer(endpoint: &str, prefix: &str) -> Signer {
        let mut spec = S3Spec::new(endpoint, "us-east-1", "bkt");
        spec.access_key = "key".into();
        spec.secret_key = "secret".into();
        spec.prefix = prefix.into();
        Signer::new(&spec).expect("a good spec")
    }

    /// The object that a server sees: what it decodes from the path that goes over the wire.
    fn seen_by_server(url: &Url) -> String {
        let uri: http::Uri = url
            .as_str()
            .parse()
            .expect("reqwest parses it the same way");
        let raw = uri.path().strip_prefix("/bkt/").expect("inside the bucket");
        percent_decode_str(raw)
            .decode_utf8()
            .expect("UTF-8")
            .into_owned()
    }

    const VERBS: [Verb; 4] = [Verb::Get, Verb::Head, Verb::Put, Verb::Delete];

    #[test]
    fn odd_keys_reach_the_server_byte_for_byte() {
        let keys = [
            "/",
            "//",
            "/a",
            "//host/a",
            "a/",
            "a//b",
            "a b+c",
            "a?b#c",
            "%2e%2e%2e",
            "%252e%252e",
            "a%2Fb",
            "ü/日本",
            "a\\..\\b",
            "a;b:c@d&e=f",
            "...",
            "..a",
            "\u{1}\t\n\r",
            "~-._",
            "http://other/x",
            "a\u{feff}b",
            "%",
            "%zz",
            "\u{202e}x",
        ];
        for prefix in ["", "p", "deep/pre fix/ü"] {
            let signer = signer("http://h:1", prefix);
            for key in keys {
                for verb in VERBS {
                    let url = signer
                        .sign(&Target::of(verb, key), &[], SystemTime::now())
                        .expect(key);
                    let parted = if prefix.is_empty() { "" } else { "/" };
                    assert_eq!(seen_by_server(&url), format!("{prefix}{parted}{key}"));
                }
            }
        }
    }

    #[test]
    fn keys_that_would_leave_the_prefix_are_refused() {
        let signer = signer("http://h:1", "p");
        let long = "k".repeat(1023);
        for key in [
            "",
            ".",
            "..",
            "../q",
            "a/../../q",
            "a/%2E%2e/q",
            "./a",
            "a/.",
            "a\0b",
            &long,
        ] {
            for verb in VERBS {
                let error = signer
                    .sign(&Target::of(verb, key), &[], SystemTime::now())
                    .expect_err(key);
                assert_eq!(error.kind, StoreErrorKind::InvalidKey, "{key}");
            }
        }
    }

    #[test]
    fn a_path_in_the_endpoint_is_kept() {
        let mut spec = S3Spec::new("http://h:1/s3", "r", "bkt");
        spec.access_key = "key".into();
        spec.secret_key = "secret".into();
        let signer = Signer::new(&spec).expect("a good spec");
        let url = signer
            .sign(&Target::of(Verb::Get, "k"), &[], SystemTime::now())
            .expect("a good key");
        assert_eq!(url.path(), "/s3/bkt/k");
    }

    #[test]
    fn signed_headers_are_named_in_the_url() {
        let headers = [
            ("x-amz-meta-b".to_owned(), "2".to_owned()),
            (
                "x-amz-checksum-crc64nvme".to_owned(),
                "AAAAAAAAAAA=".to_owned(),
            ),
        ];
        let signer = signer("http://h:1", "");
        let url = signer
            .sign(&Target::of(Verb::Put, "k"), &headers, SystemTime::now())
            .expect("a good key");
        let names = "X-Amz-SignedHeaders=host%3Bx-amz-checksum-crc64nvme%3Bx-amz-meta-b";
        assert!(url.as_str().contains(names), "{url}");
    }

    #[test]
    fn bad_settings_are_refused_without_repeating_secrets() {
        let good = || {
            let mut spec = S3Spec::new("https://h", "r", "bkt");
            spec.access_key = "key".into();
            spec.secret_key = "secret".into();
            spec
        };
        let refusal = |change: &dyn Fn(&mut S3Spec)| {
            let mut spec = good();
            change(&mut spec);
            Signer::new(&spec).err().expect("a bad spec").to_string()
        };
        assert!(Signer::new(&good()).is_ok());
        assert!(refusal(&|spec| spec.endpoint = "ftp://h".into()).contains("ftp"));
        let with_user = refusal(&|spec| spec.endpoint = "https://me:hush@h".into());
        assert!(!with_user.contains("hush"), "{with_user}");
        assert!(refusal(&|spec| spec.bucket = "a/b".into()).contains("bucket"));
        assert!(refusal(&|spec| spec.bucket = "..".into()).contains("bucket"));
        assert!(refusal(&|spec| spec.prefix = "a/../b".into()).contains("prefix"));
        assert!(refusal(&|spec| spec.secret_key = String::new()).contains("secret"));
        assert!(refusal(&|spec| spec.region = String::new()).contains("region"));
    }

    proptest! {
        #[test]
        fn any_key_is_refused_or_arrives_unchanged(key in any_key()) {
            let signer = signer("http://h:1", "pre/fix");
            match signer.sign(&Target::of(Verb::Put, &key), &[], SystemTime::now()) {
                Ok(url) => prop_assert_eq!(seen_by_server(&url), format!("pre/fix/{}", key)),
                Err(error) => {
                    prop_assert_eq!(error.kind, StoreErrorKind::InvalidKey);
                    let name = format!("pre/fix/{key}");
                    prop_assert!(check_key(&name).is_err() || key.is_empty());
                }
            }
        }
    }

    /// Anything, with the characters that URLs are touchy about far more often than chance has it.
    fn any_key() -> impl Strategy<Value = String> {
        let touchy = prop::sample::select(vec![
            ".", "..", "/", "//", "%", "%2e", "%2F", "%00", "?", "#", "\\", " ", "+", ":", "@",
            "\t",
        ]);
        let part = prop_oneof![touchy.prop_map(str::to_owned), any::<String>()];
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }
}
