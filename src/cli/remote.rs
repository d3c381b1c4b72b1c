//! A running proxy as its operator reaches it: where it is, who it proves to be, the token.
//!
//! This file owns the requests that commands make. It talks to one proxy, follows no redirect, asks
//! the environment for no detour, and sends the token to nobody who has not proved to be the proxy
//! that was meant. It never shows the token.

mod trust;

use crate::config::{Config, names};
use crate::settings::dev;
use crate::settings::private_file;
use crate::settings::secret::Secret;
use crate::settings::{Environment, SettingsError};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Response};
use serde::de::DeserializeOwned;
use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;
use trust::Trust;
use url::Url;

/// Where a proxy is when nothing is said: where `start` listens by default.
const URL_DEFAULT: &str = "https://localhost:443";
/// Where `start --dev` listens.
const URL_DEV: &str = "https://localhost:8443";

/// The proxy is near; one that takes longer to accept is not there.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Between two pieces of an answer, its head included: a flush waits for every disk.
const ANSWER_STALL_MAX: Duration = Duration::from_secs(60);
/// Longest answer that is kept in memory, bytes: four times the longest list of blocks.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Longest message of the proxy that is shown, characters.
const MESSAGE_CHARS_MAX: usize = 500;

const USER_AGENT: &str = concat!("forebay/", env!("CARGO_PKG_VERSION"));

/// What was typed about the proxy.
#[derive(Clone, Copy)]
pub struct RemoteArguments<'a> {
    /// `--url`
    pub url: Option<&'a str>,
    /// `--token`
    pub token: Option<&'a Secret>,
    /// `--tokenFile`
    pub token_file: Option<&'a str>,
    /// `--config`
    pub config: Option<&'a str>,
    /// `--ca`
    pub ca: Option<&'a str>,
    /// `--fingerprint`
    pub fingerprint: Option<&'a str>,
    /// `--insecure`
    pub insecure: bool,
    /// `--dev`
    pub dev: bool,
}

/// Why a request failed. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A flag's value is wrong, or a file that it names.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// There is no answer.
    #[error("the proxy at {url} does not answer: {problem}")]
    Away {
        /// Where it should be.
        url: String,
        /// What happened instead.
        problem: String,
    },
    /// The token is not the operator's.
    #[error("the proxy at {url} refuses the token: {message}")]
    Denied {
        /// Where it is.
        url: String,
        /// What it says.
        message: String,
    },
    /// The proxy refuses the request.
    #[error("the proxy answers {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// What answers is no proxy of ours.
    #[error("{url} gives an answer that no Forebay of this version gives: {problem}")]
    Foreign {
        /// Where it is.
        url: String,
        /// What is odd.
        problem: String,
    },
    /// The answer cannot be written down.
    #[error("{what}: {source}")]
    Local {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl RemoteError {
    /// Whether the fault lies in what was typed.
    pub fn is_usage(&self) -> bool {
        match self {
            RemoteError::Settings(_) => true,
            RemoteError::Away { .. }
            | RemoteError::Denied { .. }
            | RemoteError::Refused { .. }
            | RemoteError::Foreign { .. }
            | RemoteError::Local { .. } => false,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub fn may_pass(&self) -> bool {
        match self {
            RemoteError::Away { .. } => true,
            RemoteError::Refused { status, .. } => *status >= 500,
            RemoteError::Settings(_)
            | RemoteError::Denied { .. }
            | RemoteError::Foreign { .. }
            | RemoteError::Local { .. } => false,
        }
    }
}

/// An error about a flag.
fn wrong(flag: &'static str, problem: impl Into<String>) -> SettingsError {
    SettingsError::Flag {
        flag,
        problem: problem.into(),
    }
}

/// One proxy. Calls block until they are answered.
pub struct Remote {
    base: Url,
    authorization: HeaderValue,
    client: reqwest::Client,
    runtime: Runtime,
    /// What is allowed but worth a line.
    pub warnings: Vec<String>,
}

impl Remote {
    /// Checks what was typed and reads the files that it names. Sends nothing.
    pub fn new(
        arguments: RemoteArguments<'_>,
        environment: &Environment,
    ) -> Result<Remote, RemoteError> {
        let base = check_url(arguments.url, arguments.dev)?;
        let token = token(arguments, environment)?;
        let trust = Trust::choose(arguments, environment, &base)?;
        let mut warnings = Vec::new();
        if arguments.insecure {
            warnings.push(
                "--insecure: whoever is between here and the proxy can take the token".to_owned(),
            );
        }
        if base.scheme() == "http" && !is_loopback(&base) {
            warnings.push(format!("{base}: the token crosses the network unencrypted"));
        }
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
            .map_err(|_| wrong("--token", "it holds a character that no token has"))?;
        authorization.set_sensitive(true);
        let local = |what: &str, problem: String| RemoteError::Local {
            what: what.to_owned(),
            source: io::Error::other(problem),
        };
        let client = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .connect_timeout(CONNECT_TIME_MAX)
            .read_timeout(ANSWER_STALL_MAX)
            .use_preconfigured_tls(trust.into_config()?)
            .build()
            .map_err(|error| local("the HTTP client", chain(&error)))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| local("the HTTP client", source.to_string()))?;
        Ok(Remote {
            base,
            authorization,
            client,
            runtime,
            warnings,
        })
    }

    /// Asks and reads the answer as JSON.
    pub fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, RemoteError> {
        let text = self.ask_text(method, path, query)?;
        serde_json::from_str(&text).map_err(|error| self.foreign(error.to_string()))
    }

    /// Asks and gives the answer as it is.
    pub fn ask_text(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<String, RemoteError> {
        self.runtime.block_on(async {
            let response = self.send(method, path, query).await?;
            let body = self.read(response).await?;
            String::from_utf8(body).map_err(|_| self.foreign("it is not UTF-8 text"))
        })
    }

    /// Asks for bytes and hands them to `sink` as they come. Returns how many they were, which is
    /// what the proxy announced.
    pub fn download(
        &self,
        path: &str,
        query: &[(&str, &str)],
        mut sink: impl FnMut(&[u8]) -> Result<(), RemoteError>,
    ) -> Result<u64, RemoteError> {
        self.runtime.block_on(async {
            let mut response = self.send(Method::GET, path, query).await?;
            let announced = response
                .content_length()
                .ok_or_else(|| self.foreign("it does not tell its length"))?;
            let mut received = 0;
            while let Some(piece) = response.chunk().await.map_err(|e| self.away(&e))? {
                received += piece.len() as u64;
                sink(&piece)?;
            }
            if received != announced {
                return Err(RemoteError::Away {
                    url: self.shown(),
                    problem: format!("it sent {received} bytes of {announced}"),
                });
            }
            Ok(received)
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Response, RemoteError> {
        let mut url = self.base.clone();
        url.set_path(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self
            .client
            .request(method, url)
            .header(AUTHORIZATION, self.authorization.clone());
        let response = request.send().await.map_err(|e| self.away(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.read(response).await?;
        let message = message_of(&String::from_utf8_lossy(&body));
        Err(match status.as_u16() {
            401 | 403 => RemoteError::Denied {
                url: self.shown(),
                message,
            },
            status => RemoteError::Refused { status, message },
        })
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, RemoteError> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| self.away(&e))? {
            body.extend_from_slice(&piece);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(self.foreign("it is endless"));
            }
        }
        Ok(body)
    }

    fn away(&self, error: &reqwest::Error) -> RemoteError {
        RemoteError::Away {
            url: self.shown(),
            problem: chain(error),
        }
    }

    /// An answer that only something else than a proxy of this version gives.
    pub fn foreign(&self, problem: impl Into<String>) -> RemoteError {
        RemoteError::Foreign {
            url: self.shown(),
            problem: problem.into(),
        }
    }

    fn shown(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }
}

fn check_url(given: Option<&str>, dev: bool) -> Result<Url, SettingsError> {
    let text = given.unwrap_or(if dev { URL_DEV } else { URL_DEFAULT });
    let refuse = |problem: &str| {
        wrong(
            "--url",
            format!("{text:?} {problem}; an example is {URL_DEFAULT}"),
        )
    };
    let url = Url::parse(text).map_err(|error| refuse(&format!("is no URL ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("begins neither with https:// nor with http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("names a user; the proxy knows only the token"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("goes on behind host and port"));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The folder that `start --dev` made.
fn dev_folder(environment: &Environment) -> PathBuf {
    environment.working_folder.join(dev::FOLDER_NAME)
}

/// The operator's token, from the one place that was named.
fn token(
    arguments: RemoteArguments<'_>,
    environment: &Environment,
) -> Result<Secret, SettingsError> {
    let given = [
        arguments.token.is_some(),
        arguments.token_file.is_some(),
        arguments.config.is_some(),
    ];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(wrong(
            "--token",
            "more than one of --token, --tokenFile and --config is given; give one",
        ));
    }
    if let Some(token) = arguments.token {
        return checked("--token", token.clone());
    }
    if let Some(file) = arguments.token_file {
        let path = environment.path("--tokenFile", file)?;
        let text =
            private_file::read(&path).map_err(|error| wrong("--tokenFile", error.to_string()))?;
        return checked("--tokenFile", Secret::new(text.trim()));
    }
    let (flag, path) = match arguments.config {
        Some(given) => ("--config", environment.path("--config", given)?),
        None if arguments.dev => {
            let folder = dev_folder(environment);
            if !folder.is_dir() {
                let problem = format!(
                    "there is no {}; go to the folder where `forebay start --dev` runs",
                    folder.display()
                );
                return Err(wrong("--dev", problem));
            }
            ("--dev", folder.join("config.toml"))
        }
        None => {
            return Err(wrong(
                "--token",
                "it is missing; give --token, --tokenFile, --config (the proxy's own) or --dev",
            ));
        }
    };
    let problem = "the file has no [operator] token, so the proxy takes no such commands";
    Config::operator_token(&path)?
        .ok_or_else(|| wrong(flag, format!("{}: {problem}", path.display())))
}

fn checked(flag: &'static str, token: Secret) -> Result<Secret, SettingsError> {
    names::check_token(token.expose()).map_err(|problem| wrong(flag, format!("it {problem}")))?;
    Ok(token)
}

/// An error of the HTTP client with its causes; the first link only repeats the URL.
fn chain(error: &reqwest::Error) -> String {
    let mut links = Vec::new();
    let mut next = error.source();
    while let Some(source) = next {
        links.push(source.to_string());
        next = source.source();
    }
    // Each link may repeat the next: the last two tell what was done and what came of it.
    links.dedup();
    match links.as_slice() {
        [] => error.to_string(),
        [.., before, last] if !before.contains(last.as_str()) => format!("{before}: {last}"),
        [.., last] => last.clone(),
    }
}

/// What an error document says, made fit for a terminal.
fn message_of(body: &str) -> String {
    let message = body
        .split_once("<Message>")
        .and_then(|(_, rest)| rest.split_once("</Message>"))
        .map_or(body, |(message, _)| message);
    let plain = message
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&amp;", "&");
    let cut: String = plain.chars().take(MESSAGE_CHARS_MAX).collect();
    if cut.trim().is_empty() {
        return "(it says no more)".to_owned();
    }
    printable(&cut)
}

/// Text from elsewhere, harmless to a terminal and on one line: control characters are escaped.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() || is_invisible(letter) {
            shown.extend(letter.escape_unicode());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Characters that reorder or hide what stands around them.
fn is_invisible(letter: char) -> bool {
    matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
