//! From a config file as written to a checked [`Config`].
//!
//! This file owns every rule about what a config file may say. The first mistake, in the order of
//! the file's volumes, ends the check; nothing is repaired and nothing is assumed.

mod azure;

use super::names;
use super::written::{
    WrittenConfig, WrittenCredentials, WrittenKey, WrittenOperator, WrittenVolume,
};
use super::{
    BLOCK_SIZE_DEFAULT, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, Config, ConfigError, Consistency, EtagKind,
    Permission, REGION_DEFAULT, Source, TTL_DEFAULT, Volume, VolumeKey, VolumeStore,
};
use crate::creds::{CredentialSources, StoreCredentials};
use crate::settings::private_file;
use crate::settings::secret::{Secret, TokenHash};
use crate::size;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use url::Url;

type Checked<T> = Result<T, ConfigError>;

/// Checks a whole file.
pub fn check(
    source: &Source,
    written: WrittenConfig,
    sources: &CredentialSources,
) -> Checked<Config> {
    let mut config = Config {
        operator_token: written
            .operator
            .map(|operator| check_operator(source, operator))
            .transpose()?,
        ..Config::default()
    };
    if config.operator_token.is_none() {
        config.warnings.push(
            "no operator's token: metrics, status and the other /-/ commands are closed; give \
             [operator] token or token_file to open them"
                .to_owned(),
        );
    }
    let mut checker = Checker {
        source,
        sources,
        names: BTreeSet::new(),
        pairs: BTreeMap::new(),
        warnings: Vec::new(),
    };
    for volume in written.volume {
        config.volumes.push(checker.check_volume(volume)?);
    }
    if config.volumes.is_empty() {
        return Err(ConfigError {
            file: source.path().to_owned(),
            line: None,
            key: Some("[[volume]]".to_owned()),
            problem: "there is none; at least one volume is needed".to_owned(),
        });
    }
    config.warnings.append(&mut checker.warnings);
    Ok(config)
}

fn check_operator(source: &Source, operator: WrittenOperator) -> Checked<TokenHash> {
    let token = operator_token(source, operator)?;
    Ok(TokenHash::of(token.expose().as_bytes()))
}

/// The operator's token in clear, from the file itself or the one that it names.
pub(super) fn operator_token(source: &Source, operator: WrittenOperator) -> Checked<Secret> {
    let (token, span, key) = match (operator.token, operator.token_file) {
        (Some(token), None) => {
            let span = token.span();
            (token.into_inner(), span, "token")
        }
        (None, Some(file)) => {
            let span = file.span();
            let path = resolve(source, &file, "token_file")?;
            let text = private_file::read(&path)
                .map_err(|error| source.error(span.clone(), "token_file", error.to_string()))?;
            (Secret::new(text.trim()), span, "token_file")
        }
        (Some(_), Some(file)) => {
            let problem = "token is given too; give one of them";
            return Err(source.error(file.span(), "token_file", problem));
        }
        (None, None) => {
            return Err(ConfigError {
                file: source.path().to_owned(),
                line: None,
                key: Some("[operator]".to_owned()),
                problem: "it is empty; give token or token_file".to_owned(),
            });
        }
    };
    names::check_token(token.expose()).map_err(|problem| source.error(span, key, problem))?;
    Ok(token)
}

fn resolve(source: &Source, written: &Spanned<String>, key: &str) -> Checked<PathBuf> {
    if written.get_ref().is_empty() {
        return Err(source.error(written.span(), key, "it is empty; give a path"));
    }
    source
        .resolve(written.get_ref())
        .map_err(|error| source.error(written.span(), key, error.to_string()))
}

/// What has been seen of the file so far.
struct Checker<'a> {
    source: &'a Source,
    sources: &'a CredentialSources,
    names: BTreeSet<String>,
    /// SigV4 pairs by access key: a signature names only that, so it must mean one secret.
    pairs: BTreeMap<String, Secret>,
    warnings: Vec<String>,
}

impl Checker<'_> {
    fn error(&self, span: Range<usize>, key: &str, problem: impl Into<String>) -> ConfigError {
        self.source.error(span, key, problem)
    }

    fn check_volume(&mut self, written: Spanned<WrittenVolume>) -> Checked<Volume> {
        let span = written.span();
        let mut written = written.into_inner();
        let name = self.check_name(&written.name)?;
        let store = self.check_store(&mut written, span)?;
        let block_size = self.check_block_size(written.block_size.as_ref())?;
        let consistency = self.check_consistency(&written)?;
        let negative_ttl = match &written.negative_ttl {
            Some(text) => self.check_duration(text, "negative_ttl")?,
            None => Duration::ZERO,
        };
        let etag = self.check_etag(&written)?;
        let anonymous_read = match written
            .anonymous
            .as_ref()
            .map(|word| word.get_ref().as_str())
        {
            None | Some("none") => false,
            Some("read") => true,
            Some(_) => {
                let at = written
                    .anonymous
                    .map(|word| word.span())
                    .unwrap_or_default();
                return Err(self.error(at, "anonymous", "must be \"none\" or \"read\""));
            }
        };
        let mut keys = Vec::new();
        let mut tokens = HashSet::new();
        let mut access_keys = BTreeSet::new();
        for key in written.key {
            keys.push(self.check_key(key, &mut tokens, &mut access_keys)?);
        }
        if keys.is_empty() && !anonymous_read {
            self.warnings.push(format!(
                "volume {name}: nobody can use it; give it a [[volume.key]] or anonymous = \"read\""
            ));
        }
        Ok(Volume {
            name,
            store,
            block_size,
            consistency,
            negative_ttl,
            writeback: written.writeback.unwrap_or(true),
            etag,
            anonymous_read,
            keys,
        })
    }

    fn check_name(&mut self, written: &Spanned<String>) -> Checked<String> {
        let name = written.get_ref();
        names::check_volume_name(name)
            .map_err(|problem| self.error(written.span(), "name", format!("`{name}` {problem}")))?;
        if !self.names.insert(name.clone()) {
            let problem = format!("`{name}` names an earlier volume too; names must be unique");
            return Err(self.error(written.span(), "name", problem));
        }
        Ok(name.clone())
    }

    fn check_store(
        &mut self,
        written: &mut WrittenVolume,
        volume: Range<usize>,
    ) -> Checked<VolumeStore> {
        match written.store.get_ref().as_str() {
            "s3" => {
                self.refuse_foreign(written, &["path", "container"])?;
                self.check_s3(written, volume)
            }
            "azure" => {
                self.refuse_foreign(written, &["path", "bucket", "region"])?;
                self.check_azure(written, volume)
            }
            "file" => {
                let foreign = [
                    "endpoint",
                    "region",
                    "bucket",
                    "container",
                    "prefix",
                    "ca_file",
                    "credentials",
                ];
                self.refuse_foreign(written, &foreign)?;
                self.check_file(written, volume)
            }
            other => {
                let problem = format!("`{other}` is unknown; use \"s3\", \"azure\" or \"file\"");
                Err(self.error(written.store.span(), "store", problem))
            }
        }
    }

    /// Refuses keys that other kinds of store have, by their names.
    fn refuse_foreign(&self, written: &WrittenVolume, foreign: &[&str]) -> Checked<()> {
        let place = |at: &Option<Spanned<String>>| at.as_ref().map(Spanned::span);
        let all = [
            ("endpoint", place(&written.endpoint), "\"s3\" or \"azure\""),
            ("region", place(&written.region), "\"s3\""),
            ("bucket", place(&written.bucket), "\"s3\""),
            ("container", place(&written.container), "\"azure\""),
            ("prefix", place(&written.prefix), "\"s3\" or \"azure\""),
            ("ca_file", place(&written.ca_file), "\"s3\" or \"azure\""),
            (
                "credentials",
                written.credentials.as_ref().map(Spanned::span),
                "\"s3\" or \"azure\"",
            ),
            ("path", place(&written.path), "\"file\""),
        ];
        for (key, span, owners) in all {
            if let Some(span) = span.filter(|_| foreign.contains(&key)) {
                let problem = format!("belongs to store = {owners} only");
                return Err(self.error(span, key, problem));
            }
        }
        Ok(())
    }

    fn check_file(&self, written: &WrittenVolume, volume: Range<usize>) -> Checked<VolumeStore> {
        let Some(named) = &written.path else {
            let problem = "it is missing; store = \"file\" needs the folder of the objects";
            return Err(self.error(volume, "path", problem));
        };
        let path = resolve(self.source, named, "path")?;
        if !path.is_dir() {
            let problem = format!("{} is not an existing folder", path.display());
            return Err(self.error(named.span(), "path", problem));
        }
        Ok(VolumeStore::File { path })
    }

    fn check_s3(
        &mut self,
        written: &mut WrittenVolume,
        volume: Range<usize>,
    ) -> Checked<VolumeStore> {
        let missing = |key: &str, what: &str| {
            let problem = format!("it is missing; store = \"s3\" needs {what}");
            self.error(volume.clone(), key, problem)
        };
        let Some(endpoint) = &written.endpoint else {
            return Err(missing("endpoint", "the store's URL"));
        };
        let Some(bucket) = &written.bucket else {
            return Err(missing("bucket", "the name of a bucket"));
        };
        names::check_bucket(bucket.get_ref())
            .map_err(|problem| self.error(bucket.span(), "bucket", problem))?;
        let endpoint = self.check_endpoint(endpoint)?;
        self.check_prefix_and_region(written)?;
        let ca_file = match &written.ca_file {
            Some(named) => Some(self.check_ca_file(named, &endpoint)?),
            None => None,
        };
        let own = match written.credentials.take() {
            Some(credentials) => Some(self.check_credentials(credentials)?),
            None => None,
        };
        let Some(credentials) = self.sources.choose(own) else {
            let problem = "there are none for this volume; give --blockUser and --blockPass, a creds \
                           file (`forebay init creds`), [volume.credentials], or AWS_ACCESS_KEY_ID \
                           and AWS_SECRET_ACCESS_KEY";
            return Err(self.error(volume, "credentials", problem));
        };
        if endpoint.scheme() == "http" && !is_loopback(&endpoint) {
            self.warnings.push(format!(
                "volume {}: its endpoint is plain http, so objects travel unencrypted; use https",
                written.name.get_ref()
            ));
        }
        let text = |value: &Option<Spanned<String>>, default: &str| {
            let value = value.as_ref().map(|value| value.get_ref().clone());
            value.unwrap_or_else(|| default.to_owned())
        };
        Ok(VolumeStore::S3 {
            endpoint,
            region: text(&written.region, REGION_DEFAULT),
            bucket: bucket.get_ref().clone(),
            prefix: text(&written.prefix, ""),
            ca_file,
            credentials,
        })
    }

    fn check_prefix_and_region(&self, written: &WrittenVolume) -> Checked<()> {
        if let Some(prefix) = &written.prefix
            && !prefix.get_ref().is_empty()
        {
            names::check_prefix(prefix.get_ref())
                .map_err(|problem| self.error(prefix.span(), "prefix", problem))?;
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if let Some(region) = &written.region
            && (region.get_ref().is_empty() || !region.get_ref().bytes().all(fits))
        {
            let problem = "may hold only letters, digits and `-`, as us-east-1";
            return Err(self.error(region.span(), "region", problem));
        }
        Ok(())
    }

    /// The URL is not repeated in errors: it may hold a password.
    fn check_endpoint(&self, written: &Spanned<String>) -> Checked<Url> {
        let refuse = |problem: &str| Err(self.error(written.span(), "endpoint", problem));
        let Ok(url) = Url::parse(written.get_ref()) else {
            return refuse("is not a URL; write for instance https://s3.us-east-1.amazonaws.com");
        };
        if !matches!(url.scheme(), "http" | "https") {
            return refuse("must begin with https:// or http://");
        }
        if url.host_str().is_none_or(str::is_empty) {
            return refuse("names no host");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("must not hold a user or password; give them as credentials");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return refuse("must not hold a query or fragment");
        }
        Ok(url)
    }

    fn check_ca_file(&self, named: &Spanned<String>, endpoint: &Url) -> Checked<PathBuf> {
        let refuse = |problem: String| Err(self.error(named.span(), "ca_file", problem));
        if endpoint.scheme() != "https" {
            return refuse(
                "has no use with an http endpoint; use https or leave it out".to_owned(),
            );
        }
        let path = resolve(self.source, named, "ca_file")?;
        match read_certificates(&path) {
            Ok(()) => Ok(path),
            Err(problem) => refuse(format!("{}: {problem}", path.display())),
        }
    }

    fn check_credentials(&self, written: Spanned<WrittenCredentials>) -> Checked<StoreCredentials> {
        let span = written.span();
        let written = written.into_inner();
        let empty = |span, key| self.error(span, key, "it is empty");
        if let Some(token) = written.sas_token {
            let problem = "belongs to store = \"azure\" only";
            return Err(self.error(token.span(), "credentials.sas_token", problem));
        }
        let Some(access_key) = written.access_key else {
            return Err(self.error(span, "credentials.access_key", "it is missing"));
        };
        let Some(secret_key) = written.secret_key else {
            return Err(self.error(span, "credentials.secret_key", "it is missing"));
        };
        if access_key.get_ref().is_empty() {
            return Err(empty(access_key.span(), "credentials.access_key"));
        }
        if secret_key.get_ref().expose().is_empty() {
            return Err(empty(secret_key.span(), "credentials.secret_key"));
        }
        Ok(StoreCredentials {
            access_key: access_key.into_inner(),
            secret_key: secret_key.into_inner(),
            session_token: written.session_token.map(Spanned::into_inner),
        })
    }

    fn check_block_size(&self, written: Option<&Spanned<String>>) -> Checked<u64> {
        let Some(written) = written else {
            return Ok(BLOCK_SIZE_DEFAULT);
        };
        let refuse = |problem: String| Err(self.error(written.span(), "block_size", problem));
        match size::parse_bytes(written.get_ref()) {
            Err(error) => refuse(error.to_string()),
            Ok(bytes)
                if bytes.is_power_of_two()
                    && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&bytes) =>
            {
                Ok(bytes)
            }
            Ok(_) => refuse(format!(
                "`{}` is not a power of two from 256KiB to 8MiB",
                written.get_ref()
            )),
        }
    }

    fn check_etag(&self, written: &WrittenVolume) -> Checked<EtagKind> {
        match &written.etag {
            None => Ok(EtagKind::ByClient),
            Some(word) => match word.get_ref().as_str() {
                "md5" => Ok(EtagKind::Md5),
                "fast" => Ok(EtagKind::Fast),
                _ => {
                    let problem = "must be \"md5\" or \"fast\"; left out, it is md5 for clients that \
                                   sign and fast for tokens";
                    Err(self.error(word.span(), "etag", problem))
                }
            },
        }
    }

    fn check_consistency(&self, written: &WrittenVolume) -> Checked<Consistency> {
        let word = written
            .consistency
            .as_ref()
            .map(|word| word.get_ref().as_str());
        match (word, &written.ttl) {
            (Some("immutable"), None) => Ok(Consistency::Immutable),
            (Some("immutable"), Some(ttl)) => {
                let problem = "has no meaning for \"immutable\"; leave it out";
                Err(self.error(ttl.span(), "ttl", problem))
            }
            (None | Some("revalidate"), None) => Ok(Consistency::Revalidate { ttl: TTL_DEFAULT }),
            (None | Some("revalidate"), Some(text)) => {
                let ttl = self.check_duration(text, "ttl")?;
                Ok(Consistency::Revalidate { ttl })
            }
            (Some(_), _) => {
                let span = written
                    .consistency
                    .as_ref()
                    .map(Spanned::span)
                    .unwrap_or_default();
                let problem = "must be \"revalidate\" or \"immutable\"";
                Err(self.error(span, "consistency", problem))
            }
        }
    }

    fn check_duration(&self, text: &Spanned<String>, key: &str) -> Checked<Duration> {
        names::parse_duration(text.get_ref()).map_err(|problem| {
            let problem = format!("`{}` {problem}", text.get_ref());
            self.error(text.span(), key, problem)
        })
    }

    fn check_key(
        &mut self,
        written: Spanned<WrittenKey>,
        tokens: &mut HashSet<TokenHash>,
        access_keys: &mut BTreeSet<String>,
    ) -> Checked<VolumeKey> {
        let span = written.span();
        let written = written.into_inner();
        let permission = match written.permission.get_ref().as_str() {
            "r" => Permission::Read,
            "rw" => Permission::ReadWrite,
            _ => {
                let problem = "must be \"r\" or \"rw\"";
                return Err(self.error(written.permission.span(), "permission", problem));
            }
        };
        let token = match written.token {
            None => None,
            Some(token) => {
                let secret = token.get_ref();
                names::check_token(secret.expose())
                    .map_err(|problem| self.error(token.span(), "token", problem))?;
                let hash = TokenHash::of(secret.expose().as_bytes());
                if !tokens.insert(hash) {
                    let problem = "an earlier key of this volume has the same; tokens must differ";
                    return Err(self.error(token.span(), "token", problem));
                }
                Some(hash)
            }
        };
        if token.is_none() && written.access_key.is_none() && written.secret_key.is_none() {
            let problem = "it opens nothing; give token, or access_key and secret_key, or all";
            return Err(self.error(span, "[[volume.key]]", problem));
        }
        let pair = match (written.access_key, written.secret_key) {
            (None, None) => None,
            (Some(access), None) => {
                let problem = "secret_key is missing; a SigV4 pair needs both";
                return Err(self.error(access.span(), "access_key", problem));
            }
            (None, Some(secret)) => {
                let problem = "access_key is missing; a SigV4 pair needs both";
                return Err(self.error(secret.span(), "secret_key", problem));
            }
            (Some(access), Some(secret)) => {
                self.check_pair(&access, &secret, access_keys)?;
                Some((access.into_inner(), secret.into_inner()))
            }
        };
        let (access_key, secret_key) = pair.unzip();
        Ok(VolumeKey {
            access_key,
            secret_key,
            token,
            permission,
        })
    }

    fn check_pair(
        &mut self,
        access: &Spanned<String>,
        secret: &Spanned<Secret>,
        access_keys: &mut BTreeSet<String>,
    ) -> Checked<()> {
        names::check_access_key(access.get_ref())
            .map_err(|problem| self.error(access.span(), "access_key", problem))?;
        names::check_secret_key(secret.get_ref().expose())
            .map_err(|problem| self.error(secret.span(), "secret_key", problem))?;
        let name = access.get_ref();
        if !access_keys.insert(name.clone()) {
            let problem = format!("an earlier key of this volume is `{name}` too; give it once");
            return Err(self.error(access.span(), "access_key", problem));
        }
        let known = self.pairs.entry(name.clone());
        if known.or_insert_with(|| secret.get_ref().clone()) != secret.get_ref() {
            let problem = format!(
                "`{name}` has another secret_key in an earlier volume; one access key has one secret"
            );
            return Err(self.error(access.span(), "access_key", problem));
        }
        Ok(())
    }
}

fn is_loopback(endpoint: &Url) -> bool {
    match endpoint.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Whether a file holds at least one PEM certificate and no broken one.
fn read_certificates(path: &Path) -> Result<(), String> {
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|error| format!("it is not PEM: {error}"))?;
        count += 1;
    }
    if count == 0 {
        return Err("it holds no PEM certificate".to_owned());
    }
    Ok(())
}
