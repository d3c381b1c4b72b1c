//! Where requests go: owns reading `--target`. Resolves names once, so that no run measures a resolver.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use crate::load::LoadError;
use crate::load::tls;

/// One URL that keys are appended to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) text: String,
    pub(super) address: SocketAddr,
    /// Value of the `Host` header.
    pub(super) host: String,
    /// Path that the key is appended to; begins and ends with a slash, or as typed.
    pub(super) path: String,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// What is trusted and offered in TLS.
pub(super) struct Trust<'a> {
    pub(super) ca: Option<&'a Path>,
    pub(super) insecure: bool,
    pub(super) tls13_aes128: bool,
}

/// Reads a list of URLs.
pub(super) fn parse_all(list: &str, trust: &Trust<'_>) -> Result<Vec<Arc<Target>>, LoadError> {
    let mut config = None;
    let mut client_config = || -> Result<Arc<ClientConfig>, LoadError> {
        if config.is_none() {
            let made = tls::client_config(trust.ca, trust.insecure, trust.tls13_aes128);
            config = Some(made.map_err(LoadError::Usage)?);
        }
        config
            .clone()
            .ok_or_else(|| LoadError::Run("no TLS configuration".into()))
    };
    list.split(',')
        .map(|text| parse(text, &mut client_config).map(Arc::new))
        .collect()
}

fn parse(
    text: &str,
    client_config: &mut impl FnMut() -> Result<Arc<ClientConfig>, LoadError>,
) -> Result<Target, LoadError> {
    let wrong = |why: &str| LoadError::Usage(format!("--target {text:?}: {why}"));
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| wrong("expected http:// or https://"))?;
    let port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return Err(wrong("expected http:// or https://")),
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let named_port = host
        .rsplit_once(':')
        .filter(|(_, port)| port.parse::<u16>().is_ok());
    let resolvable = match named_port {
        Some(_) => host.to_owned(),
        None => format!("{host}:{port}"),
    };
    let address = resolvable
        .to_socket_addrs()
        .map_err(|error| wrong(&error.to_string()))?
        .next();
    let tls = if scheme == "https" {
        let bare = named_port.map_or(host, |(name, _)| name);
        let bare = bare.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| wrong("the host is neither a name nor an address"))?;
        Some((client_config()?, name))
    } else {
        None
    };
    Ok(Target {
        text: text.to_owned(),
        address: address.ok_or_else(|| wrong("the host has no address"))?,
        host: host.to_owned(),
        path: if path.is_empty() { "/" } else { path }.to_owned(),
        tls,
    })
}
