//! Name and moment to an authorized request.
//!
//! This file owns the only way from a name to a URL of Azure's, and Shared Key signatures. It never
//! lets a name leave its container or prefix: names that Azure's rules leave open are refused, and the
//! URL that comes out is compared with the path it must have. It reads no clock and sends nothing.

use super::super::s3::sign::{KEY_ENCODED, normal_prefix, without_user};
use super::super::{AzureSpec, BuildError};
use crate::creds::{self, AzureCredentials};
use aws_lc_rs::hmac;
use forebay_io::store::{StoreError, StoreErrorKind, StoreResult, check_key};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::time::SystemTime;
use url::Url;

/// The protocol's version that we speak: the first that begins a list at a name (`startFrom`).
const VERSION: &str = "2026-02-06";

/// What volumes' uploads in parts are remembered under, within the volume's prefix. No key begins so.
pub(super) const RESERVED: &str = ".forebay-uploads/";

/// Most segments of a blob's name: Azure's own limit.
const SEGMENTS_MAX: usize = 254;

/// In a query everything but RFC 3986's unreserved characters.
const QUERY_ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Headers that a signature covers beside `x-ms-*`, in the order that it has them.
const SIGNED_HEADERS: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// The verbs that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Head,
    Put,
    Delete,
    List,
}

impl Verb {
    pub(super) fn method(self) -> reqwest::Method {
        match self {
            Verb::Get | Verb::List => reqwest::Method::GET,
            Verb::Head => reqwest::Method::HEAD,
            Verb::Put => reqwest::Method::PUT,
            Verb::Delete => reqwest::Method::DELETE,
        }
    }
}

/// A request before it is authorized.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) verb: Verb,
    /// A blob's name, the volume's prefix included; `None`: the container.
    pub(super) name: Option<String>,
    /// The query's parameters, decoded.
    pub(super) query: Vec<(&'static str, String)>,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
}

impl Asked {
    pub(super) fn of(verb: Verb, name: String) -> Self {
        Asked {
            verb,
            name: Some(name),
            query: Vec::new(),
            headers: Vec::new(),
        }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// How requests are authorized.
enum Authorization {
    Key {
        account: String,
        key: Box<hmac::Key>,
    },
    /// A query that is encoded already.
    Sas(String),
}

/// Authorizes for one container and prefix.
pub(super) struct Signer {
    /// The container's URL, without a slash at its end.
    container: Url,
    authorization: Authorization,
    /// Empty, or ends with the `/` that parts it from the key.
    prefix: String,
    /// When a token ends, for messages; seconds since the Unix epoch.
    expires: Option<i64>,
}

/// A request that is authorized: where it goes and all its headers.
pub(super) struct Signed {
    pub(super) url: Url,
    pub(super) headers: Vec<(String, String)>,
}

impl Signer {
    pub(super) fn new(spec: &AzureSpec) -> Result<Self, BuildError> {
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
        if !matches!(endpoint.scheme(), "http" | "https") || !endpoint.has_host() {
            let why = format!("the scheme {:?} or the host is wrong", endpoint.scheme());
            return Err(bad_endpoint(why));
        }
        crate::config::names::check_container(&spec.container).map_err(|why| {
            BuildError::Setting {
                setting: "container",
                why: why.to_owned(),
            }
        })?;
        let credentials = |why: String| BuildError::Setting {
            setting: "credentials",
            why: format!("they {why}"),
        };
        spec.credentials.check().map_err(credentials)?;
        let authorization = match &spec.credentials {
            AzureCredentials::Key { account, key } => {
                let key = creds::decode_key(key).map_err(credentials)?;
                Authorization::Key {
                    account: account.clone(),
                    key: Box::new(hmac::Key::new(hmac::HMAC_SHA256, &key)),
                }
            }
            AzureCredentials::Sas(token) => {
                Authorization::Sas(creds::sas_query(token.expose()).to_owned())
            }
        };
        let base = endpoint.as_str().trim_end_matches('/');
        let container = Url::parse(&format!("{base}/{}", spec.container))
            .map_err(|error| bad_endpoint(error.to_string()))?;
        Ok(Signer {
            container,
            authorization,
            prefix: normal_prefix(&spec.prefix)?,
            expires: spec.credentials.expires(),
        })
    }

    /// The container's URL without any signature, for messages.
    pub(super) fn container_url(&self) -> &Url {
        &self.container
    }

    /// Whether requests are signed by the clock.
    pub(super) fn is_clocked(&self) -> bool {
        matches!(self.authorization, Authorization::Key { .. })
    }

    /// When the token expires, seconds since the Unix epoch.
    pub(super) fn expires(&self) -> Option<i64> {
        self.expires
    }

    /// A key of the volume as a blob's name.
    pub(super) fn name_of(&self, key: &str) -> StoreResult<String> {
        check_key(key)?;
        let name = format!("{}{key}", self.prefix);
        check_kept(&self.prefix, key)?;
        Ok(name)
    }

    /// A name that is ours and no key of the volume.
    pub(super) fn reserved(&self, rest: &str) -> String {
        format!("{}{RESERVED}{rest}", self.prefix)
    }

    /// What a list of the volume's keys that begin with `prefix` is asked for by.
    pub(super) fn prefixed(&self, prefix: &str) -> String {
        format!("{}{prefix}", self.prefix)
    }

    /// A name in the container as a key of the volume; `None` if it is not under the prefix.
    pub(super) fn strip<'k>(&self, name: &'k str) -> Option<&'k str> {
        name.strip_prefix(self.prefix.as_str())
    }

    /// Where a blob is, as another request names it: with the token, if that is how we get in.
    pub(super) fn source_url(&self, name: &str) -> StoreResult<String> {
        let mut url = self.url_of(Some(name))?;
        if let Authorization::Sas(token) = &self.authorization {
            url.set_query(Some(token));
        }
        Ok(url.into())
    }

    /// Authorizes a request at `now`.
    pub(super) fn sign(&self, asked: &Asked, now: SystemTime) -> StoreResult<Signed> {
        let mut url = self.url_of(asked.name.as_deref())?;
        let mut query = String::new();
        for (name, value) in &asked.query {
            let parted = if query.is_empty() { "" } else { "&" };
            let value = utf8_percent_encode(value, QUERY_ENCODED);
            query.push_str(&format!("{parted}{name}={value}"));
        }
        let mut headers = asked.headers.clone();
        headers.push(("x-ms-version".to_owned(), VERSION.to_owned()));
        match &self.authorization {
            Authorization::Sas(token) => {
                let parted = if query.is_empty() { "" } else { "&" };
                query.push_str(&format!("{parted}{token}"));
            }
            Authorization::Key { account, key } => {
                let date = httpdate::fmt_http_date(now);
                headers.push(("x-ms-date".to_owned(), date));
                let text = text_to_sign(asked, &headers, account, url.path());
                let signature = super::super::s3::base64(hmac::sign(key, text.as_bytes()).as_ref());
                let value = format!("SharedKey {account}:{signature}");
                headers.push(("authorization".to_owned(), value));
            }
        }
        url.set_query((!query.is_empty()).then_some(&query));
        Ok(Signed { url, headers })
    }

    /// The last look before a request leaves: the URL names this container and exactly this blob.
    fn url_of(&self, name: Option<&str>) -> StoreResult<Url> {
        let Some(name) = name else {
            return Ok(self.container.clone());
        };
        let path = format!(
            "{}/{}",
            self.container.path(),
            utf8_percent_encode(name, KEY_ENCODED)
        );
        let mut url = self.container.clone();
        url.set_path(&path);
        match url.path() == path && url.origin() == self.container.origin() {
            true => Ok(url),
            false => Err(invalid_key(
                "the key does not survive as a URL; it would name another object",
            )),
        }
    }
}

/// Refuses keys that Azure's rules for names leave open, which another name could come out of, and
/// those that are ours. The prefix may end with a slash or not.
pub(super) fn check_kept(prefix: &str, key: &str) -> StoreResult<()> {
    let name = match prefix.trim_end_matches('/') {
        "" => key.to_owned(),
        prefix => format!("{prefix}/{key}"),
    };
    check_key(&name)?;
    if name.split('/').count() > SEGMENTS_MAX {
        return Err(invalid_key("the key has more than 254 segments"));
    }
    if key.starts_with(RESERVED) || key == RESERVED.trim_end_matches('/') {
        return Err(invalid_key(
            "the key begins as what uploads in parts are remembered by",
        ));
    }
    if key.contains('\\') || key.chars().any(char::is_control) {
        let message = "the key has a backslash or a control character, which Azure does not keep";
        return Err(invalid_key(message));
    }
    if key.split('/').any(|segment| segment.ends_with('.')) {
        let message = "the key has a segment that ends with a dot, which Azure may take away";
        return Err(invalid_key(message));
    }
    Ok(())
}

fn invalid_key(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::InvalidKey, message)
}

/// What a Shared Key signature is made of; `path` as it is sent.
fn text_to_sign(asked: &Asked, headers: &[(String, String)], account: &str, path: &str) -> String {
    let mut text = format!("{}\n", asked.verb.method());
    for name in SIGNED_HEADERS {
        let found = headers.iter().find(|header| header.0 == name);
        let value = found.map_or("", |header| header.1.as_str());
        // No length at all is signed as none of zero is.
        if (name, value) != ("content-length", "0") {
            text.push_str(value);
        }
        text.push('\n');
    }
    let own = headers.iter().filter(|(name, _)| name.starts_with("x-ms-"));
    let mut own: Vec<&(String, String)> = own.collect();
    own.sort_by_key(|header| sort_key(&header.0));
    for (name, value) in own {
        text.push_str(&format!("{name}:{}\n", value.trim()));
    }
    text.push_str(&format!("/{account}{path}"));
    let mut query: Vec<(String, &str)> = asked
        .query
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
        .collect();
    query.sort();
    for (name, value) in query {
        text.push_str(&format!("\n{name}:{value}"));
    }
    text
}

/// The order of headers in a signature: the service's, which is that of words in English and not of
/// bytes. Of what is in our names, `_` comes before digits, which come before letters. A hyphen
/// counts for nothing: none of ours differ by one alone.
fn sort_key(name: &str) -> Vec<u8> {
    let counted = name.bytes().filter(|byte| *byte != b'-');
    counted
        .map(|byte| if byte == b'_' { 1 } else { byte })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::secret::Secret;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;
    use std::time::Duration;

    /// Azurite's own, which is no secret.
    const KEY: &str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    fn signer(endpoint: &str, prefix: &str) -> Signer {
        let credentials = AzureCredentials::Key {
            account: "devstoreaccount1".into(),
            key: Secret::new(KEY),
        };
        let mut spec = AzureSpec::new(endpoint, "con", credentials);
        spec.prefix = prefix.into();
        Signer::new(&spec).expect("a good spec")
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    #[test]
    fn what_is_signed_is_what_the_documents_say() {
        let asked = Asked::of(Verb::Put, "p/ü b".into())
            .query("comp", "block")
            .query("blockid", "QQ==")
            .header("content-length", "11")
            .header("if-none-match", "*")
            .header("x-ms-meta-b", " two ")
            .header("x-ms-meta-a_1", "x")
            .header("x-ms-meta-a1", "y");
        let text = text_to_sign(&asked, &asked.headers, "acc", "/con/p/%C3%BC%20b");
        let expected = "PUT\n\n\n11\n\n\n\n\n\n*\n\n\nx-ms-meta-a_1:x\nx-ms-meta-a1:y\n\
                        x-ms-meta-b:two\n/acc/con/p/%C3%BC%20b\nblockid:QQ==\ncomp:block";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_length_of_zero_is_signed_as_none() {
        let asked = Asked::of(Verb::Put, "k".into()).header("content-length", "0");
        let text = text_to_sign(&asked, &asked.headers, "acc", "/con/k");
        assert_eq!(text, "PUT\n\n\n\n\n\n\n\n\n\n\n\n/acc/con/k");
    }

    #[test]
    fn an_account_in_the_path_is_in_the_signed_resource_too() {
        let signer = signer("http://127.0.0.1:10000/devstoreaccount1", "");
        let signed = signer
            .sign(&Asked::of(Verb::Get, "k".into()), now())
            .expect("signed");
        assert_eq!(signed.url.path(), "/devstoreaccount1/con/k");
        let header = |name: &str| {
            let found = signed.headers.iter().find(|header| header.0 == name);
            found.map(|header| header.1.as_str()).unwrap_or_default()
        };
        assert_eq!(header("x-ms-date"), "Tue, 14 Nov 2023 22:13:20 GMT");
        let authorization = header("authorization");
        assert!(
            authorization.starts_with("SharedKey devstoreaccount1:"),
            "{authorization}"
        );
    }

    #[test]
    fn a_token_goes_along_as_it_is_and_is_in_no_name() {
        let token = "sv=2024-11-04&sr=c&sp=rl&se=2030-01-01&sig=a%2Bb%3D";
        let spec = AzureSpec::new(
            "https://acc.blob.core.windows.net/",
            "con",
            AzureCredentials::Sas(Secret::new(format!("?{token}"))),
        );
        let signer = Signer::new(&spec).expect("a good spec");
        let asked = Asked::of(Verb::Get, "k".into()).query("comp", "blocklist");
        let signed = signer.sign(&asked, now()).expect("signed");
        let query = format!("comp=blocklist&{token}");
        assert_eq!(signed.url.query(), Some(query.as_str()));
        assert!(
            signed
                .headers
                .iter()
                .all(|header| header.0 != "authorization")
        );
        assert!(signer.container_url().query().is_none());
        assert!(
            signer
                .source_url("k")
                .expect("good")
                .ends_with(&format!("?{token}"))
        );
    }

    #[test]
    fn names_that_azure_leaves_open_are_refused() {
        let signer = signer("http://h:1", "p");
        for key in [
            "a\\b",
            "a.",
            "a./b",
            "...",
            "a\u{1}",
            "a\u{81}",
            "..",
            "",
            ".forebay-uploads/x",
            ".forebay-uploads",
            &"/".repeat(300),
        ] {
            let error = signer.name_of(key).expect_err(key);
            assert_eq!(error.kind, StoreErrorKind::InvalidKey, "{key}");
        }
        for key in [
            ".a",
            "a..b",
            "/a",
            "a//b",
            "a/",
            "a b+c",
            ".forebay-uploads2",
        ] {
            assert_eq!(signer.name_of(key).expect(key), format!("p/{key}"));
        }
    }

    #[test]
    fn bad_settings_are_refused_without_repeating_secrets() {
        let refusal = |endpoint: &str, container: &str, key: &str| {
            let credentials = AzureCredentials::Key {
                account: "account1".into(),
                key: Secret::new(key),
            };
            let spec = AzureSpec::new(endpoint, container, credentials);
            Signer::new(&spec).err().expect("a bad spec").to_string()
        };
        assert!(refusal("ftp://h", "con", KEY).contains("ftp"));
        assert!(!refusal("https://me:hush@h", "con", KEY).contains("hush"));
        assert!(refusal("https://h", "Con", KEY).contains("container"));
        let bad = refusal("https://h", "con", "hush!");
        assert!(bad.contains("base64") && !bad.contains("hush"), "{bad}");
    }

    proptest! {
        #[test]
        fn any_key_is_refused_or_arrives_unchanged(key in any_key()) {
            let signer = signer("http://h:1", "pre/fix");
            if let Ok(name) = signer.name_of(&key) {
                let signed = signer.sign(&Asked::of(Verb::Put, name), now()).expect("signed");
                let uri: http::Uri = signed.url.as_str().parse().expect("reqwest parses it so");
                let raw = uri.path().strip_prefix("/con/").expect("inside the container");
                let seen = percent_decode_str(raw).decode_utf8().expect("UTF-8").into_owned();
                prop_assert_eq!(seen, format!("pre/fix/{}", key));
            }
        }
    }

    /// Anything, with the characters that URLs are touchy about far more often than chance has it.
    fn any_key() -> impl Strategy<Value = String> {
        let touchy =
            prop::sample::select(vec![".", "..", "/", "//", "%", "%2e", "%2F", "?", "#", " "]);
        let part = prop_oneof![touchy.prop_map(str::to_owned), any::<String>()];
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }
}
