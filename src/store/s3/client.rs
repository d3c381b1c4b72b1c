//! The HTTP client of one store, of S3 or of Azure: its TLS, its pool of connections and how it is left behind.
//!
//! This file owns how reqwest is set up. The client never follows a redirect, never asks the
//! environment for a proxy, never retries by itself, never speaks anything but HTTP/1.1 and always
//! verifies the store's certificate.

use super::super::BuildError;
use super::{Deadlines, describe};
use forebay_io::store::{StoreError, StoreErrorKind};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An idle connection is closed before the store closes it: common servers wait 20 s and more, and
/// a request sent into a closing connection fails for nothing.
const IDLE_SECONDS_MAX: u64 = 15;

/// Idle connections kept. The uplink never has more requests in flight than this.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Connections are abandoned at most this often: during an outage every answer asks for it.
const ABANDON_SECONDS_MIN: u64 = 1;

const USER_AGENT: &str = concat!("forebay/", env!("CARGO_PKG_VERSION"));

/// A client that can be replaced by one with fresh connections.
pub(in crate::store) struct Client {
    current: RefCell<reqwest::Client>,
    tls: rustls::ClientConfig,
    deadlines: Deadlines,
    abandoned_at: Cell<Option<Instant>>,
}

/// What is said of a request to `place` that got no answer at all.
pub(in crate::store) fn no_response(place: impl fmt::Display, error: reqwest::Error) -> StoreError {
    let kind = match error.is_timeout() {
        true => StoreErrorKind::Timeout,
        false => StoreErrorKind::Unreachable,
    };
    let was_never_sent = error.is_connect();
    let mut error = StoreError::new(kind, format!("{place}: {}", describe(error)));
    error.was_never_sent = was_never_sent;
    error
}

impl Client {
    /// A client for `endpoint`; `ca_pem` is trusted beside the system's authorities.
    pub(in crate::store) fn new(
        endpoint: &str,
        ca_pem: Option<&[u8]>,
        deadlines: Deadlines,
    ) -> Result<Self, BuildError> {
        // Reading the system's authorities takes milliseconds, so only where they are used.
        let roots = match endpoint.to_ascii_lowercase().starts_with("https:") {
            true => authorities(ca_pem)?,
            false => rustls::RootCertStore::empty(),
        };
        let tls = config(roots).map_err(|error| BuildError::Client(error.to_string()))?;
        let current =
            build(tls.clone(), deadlines).map_err(|error| BuildError::Client(error.to_string()))?;
        Ok(Client {
            current: RefCell::new(current),
            tls,
            deadlines,
            abandoned_at: Cell::new(None),
        })
    }

    /// A handle to the current client.
    pub(in crate::store) fn get(&self) -> reqwest::Client {
        self.current.borrow().clone()
    }

    /// What is said of a request to `place` that had no answer in time. Its connection is not trusted.
    pub(in crate::store) fn no_answer(
        &self,
        place: impl fmt::Display,
        verb: impl fmt::Debug,
        deadline: Duration,
    ) -> StoreError {
        self.abandon_connections();
        let message = format!("{verb:?} at {place}: no answer within {deadline:?}");
        StoreError::new(StoreErrorKind::Timeout, message)
    }

    /// Leaves all idle connections behind, so that the next request makes a new one with a fresh
    /// DNS lookup: the store behind the old ones is failing. Requests in flight go on.
    pub(in crate::store) fn abandon_connections(&self) {
        let now = Instant::now();
        let pause = Duration::from_secs(ABANDON_SECONDS_MIN);
        if self
            .abandoned_at
            .get()
            .is_some_and(|at| now.duration_since(at) < pause)
        {
            return;
        }
        self.abandoned_at.set(Some(now));
        match build(self.tls.clone(), self.deadlines) {
            Ok(client) => *self.current.borrow_mut() = client,
            Err(error) => log::warn!("store connections are kept: {error}"),
        }
    }
}

fn build(tls: rustls::ClientConfig, deadlines: Deadlines) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(IDLE_SECONDS_MAX))
        .connect_timeout(deadlines.connect)
        .pool_idle_timeout(Duration::from_secs(IDLE_SECONDS_MAX))
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .use_preconfigured_tls(tls)
        .build()
}

fn authorities(ca_pem: Option<&[u8]>) -> Result<rustls::RootCertStore, BuildError> {
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        log::warn!("a certificate authority of the system is left out: {error}");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(pem) = ca_pem {
        let bad = |why: String| BuildError::Authorities(why);
        let mut count = 0;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| bad(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(bad("the file holds no PEM certificate".into()));
        }
    }
    if roots.is_empty() {
        let why = "the system has none and no file is named; set ca_file";
        return Err(BuildError::Authorities(why.into()));
    }
    Ok(roots)
}

fn config(roots: rustls::RootCertStore) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(forebay_io::net::crypto_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
